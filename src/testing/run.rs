//! A daemon on a fake kernel, and what must hold after each of its turns.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Mutex;

use super::fake_kernel::FakeKernel;
use super::oracle::{Opinion, Oracle, ReportedScan};
use crate::address::{Family, Network, PerFamily};
use crate::daemon::{Daemon, Flow};
use crate::kernel::Signal;
use crate::report::LINE_MAX;
use crate::time::{Duration, Instant};

/// One line of standard output, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Starting,
    Empty,
    NoConnection,
    Connection(String),
    Scan(ReportedScan),
    /// One of several sources together.
    Spread,
    Probes,
    Blocked {
        source: String,
    },
    NotBlocked {
        source: String,
        /// No SYN was seen of some of it.
        may_be_forged: bool,
    },
    Unblocked {
        source: String,
    },
    BlockFailed {
        source: String,
        gave_up: bool,
    },
    More,
    Day,
    Exit,
}

/// A line has a known shape or there is a bug.
pub fn read_line(line: &str) -> Option<Line> {
    match line {
        "tcpparser starting..." => return Some(Line::Starting),
        "" => return Some(Line::Empty),
        "No TCP peer connection established yet" => return Some(Line::NoConnection),
        _ => {}
    }
    if line.contains("; to lift all: tcpparser --unblock all") {
        return Some(Line::Exit);
    }
    if line.starts_with("… and ") && line.ends_with(" more") {
        return Some(Line::More);
    }
    if line.starts_with("24 h: ") {
        return Some(Line::Day);
    }
    let (time, rest) = line.split_at_checked(19)?;
    let is_time = time
        .bytes()
        .zip(b"dddd-dd-dd dd:dd:dd")
        .all(|(byte, shape)| match shape {
            b'd' => byte.is_ascii_digit(),
            _ => byte == *shape,
        });
    read_labelled(rest.strip_prefix(": ").filter(|_| is_time)?)
}

/// A line of a terminal, without its escape sequences of colours.
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |line, part| {
        line + part.split_once('m').expect("a colour").1
    })
}

/// A line of the journal, without its priority.
fn read_untimed(line: &str) -> Option<Line> {
    read_labelled(line).or_else(|| {
        let is_timed = line.starts_with("20");
        read_line(line).filter(|_| !is_timed || line.starts_with("24 h: "))
    })
}

fn read_labelled(line: &str) -> Option<Line> {
    let (label, rest) = line.split_at_checked(18)?;
    let rest = rest.strip_prefix(": ")?.trim_start();
    let (who, rest) = rest.split_once(' ')?;
    let source = who.to_owned();
    match label.trim_start() {
        "New connection" => Some(Line::Connection(format!("{who} {rest}"))),
        "Port scan detected" => {
            let (local, ports) = rest.strip_prefix("-> ")?.split_once(" on ports ")?;
            let ports = ports.trim_end_matches(" (before the start)");
            let spread = ports.split_once(", from ");
            let ports = spread.map_or(ports, |(ports, _)| ports);
            let ports: Result<Vec<u16>, _> = ports.split(',').map(str::parse).collect();
            if let Some((_, count)) = spread {
                let count = count.strip_suffix(" addresses")?.parse::<usize>().ok()?;
                let is_wide = source.ends_with("/24") || source.ends_with("/48");
                return (is_wide && count >= 4 && ports.ok()?.len() > 16).then_some(Line::Spread);
            }
            Some(Line::Scan(ReportedScan {
                source,
                local: local.to_owned(),
                ports: ports.ok()?,
            }))
        }
        "Ports probed" => {
            let (_, rest) = rest.strip_prefix("-> ")?.split_once(" on ports ")?;
            let (ports, rest) = rest.split_once(" (")?;
            let ports = ports.trim_end_matches(" behind this host");
            let ports = ports.trim_end_matches(" or more").replacen(",+", ",", 1);
            let (kinds, rest) = rest.split_once("; ")?;
            let is_known = |kind| ["SYN", "NULL", "FIN", "XMAS"].contains(&kind);
            let are_known = ports.split(',').all(|port| port.parse::<u16>().is_ok())
                && kinds.split(", ").all(is_known)
                && rest == "no handshake: may be forged, not blocked)";
            are_known.then_some(Line::Probes)
        }
        "Blocked" => {
            let (_, block) = rest.strip_prefix("for ")?.split_once(", data sent: ")?;
            let (data, undo) = block.split_once(", undo: ")?;
            let is_known = matches!(data, "unknown" | "no" | "yes");
            let undo = undo.trim_end_matches(" --exec-root /host");
            let is_undone = undo.strip_prefix("tcpparser --unblock ") == Some(who);
            (is_known && is_undone).then_some(Line::Blocked { source })
        }
        "Not blocked" => Some(Line::NotBlocked {
            source,
            may_be_forged: rest.starts_with("it may be forged"),
        }),
        "Unblocked"
            if [
                "its time is over",
                "its rule was removed by somebody",
                "its rule was removed by nft",
                "it holds a protected address now",
                "the chain is full, a newer block takes its place",
            ]
            .contains(&rest) =>
        {
            Some(Line::Unblocked { source })
        }
        "Block failed" => {
            let gave_up = rest.contains("its time was over");
            Some(Line::BlockFailed { source, gave_up })
        }
        _ => None,
    }
}

/// Whether a block is that of a source, or of a network around it.
fn holds(block: &str, source: &str) -> bool {
    let network = |text: &str| Network::parse(text.as_bytes()).unwrap();
    let is_wide = block.ends_with("/56") || block.ends_with("/48");
    block == source || is_wide && network(block).contains(network(source).address())
}

/// What `--interval` asks for.
fn interval_of(arguments: &[&str]) -> Option<Duration> {
    let mut words = arguments.iter().flat_map(|word| word.split('='));
    words.find(|word| *word == "--interval")?;
    Duration::parse(words.next()?.as_bytes())
}

/// 22 MB each: used again rather than made anew.
static DAEMONS: Mutex<Vec<Box<Daemon>>> = Mutex::new(Vec::new());

/// A daemon before its start, built where the stack is deep enough for it.
fn new_daemon() -> Box<Daemon> {
    const NEW: Daemon = Daemon::new();
    let used = DAEMONS
        .lock()
        .unwrap_or_else(|error| error.into_inner())
        .pop();
    let build = move || match used {
        Some(mut daemon) => {
            *daemon = NEW;
            daemon
        }
        None => Box::new(NEW),
    };
    let thread = std::thread::Builder::new()
        .stack_size(128 << 20)
        .spawn(build);
    thread.unwrap().join().unwrap()
}

/// What a run is compared with; each can be turned off where the world makes
/// it meaningless.
#[derive(Clone, Copy, Debug)]
pub struct Checks {
    /// The oracle sees every row and every line.
    pub oracle: bool,
    /// Every line comes out, so that what is missing proves something.
    pub output: bool,
    /// Rules appear in our chain only through the daemon.
    pub own_rules: bool,
    /// The kernel knows of each connection who made it.
    pub truth: bool,
}

pub struct Run {
    pub kernel: FakeKernel,
    pub checks: Checks,
    pub oracle: Oracle,
    daemon: Option<Box<Daemon>>,
    /// Bytes of output and numbers of commands and readings looked at.
    lines_seen: usize,
    commands_seen: usize,
    readings_seen: usize,
    lookups_seen: usize,
    pending: Vec<String>,
    idle_turns: u32,
    second: u64,
    turns_this_second: u32,
    /// Sources a scan line named so far.
    scanned: HashSet<String>,
    /// Decided and neither blocked nor refused yet.
    pub wanted: HashSet<String>,
    /// Said to be blocked and not said to be unblocked: family and rule.
    pub standing: HashMap<String, (Family, String)>,
    pub blocks: u64,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.trace());
        }
        if let (Ok(mut daemons), Some(daemon)) = (DAEMONS.lock(), self.daemon.take()) {
            daemons.push(daemon);
        }
    }
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let kernel = FakeKernel::new(seed);
        let own: Vec<_> = kernel.host.addresses.iter().map(|one| one.0).collect();
        Self {
            oracle: Oracle::new(3, Duration::from_secs(60), &own),
            kernel,
            checks: Checks {
                oracle: true,
                output: true,
                own_rules: true,
                truth: false,
            },
            daemon: Some(new_daemon()),
            lines_seen: 0,
            commands_seen: 0,
            readings_seen: 0,
            lookups_seen: 0,
            pending: Vec::new(),
            idle_turns: 0,
            second: 0,
            turns_this_second: 0,
            scanned: HashSet::new(),
            wanted: HashSet::new(),
            standing: HashMap::new(),
            blocks: 0,
        }
    }

    pub fn daemon(&mut self) -> (&mut Daemon, &mut FakeKernel) {
        (self.daemon.as_deref_mut().unwrap(), &mut self.kernel)
    }

    pub fn start(&mut self, arguments: &[&str]) -> Flow {
        self.oracle.next_scheduled = Some(self.kernel.now);
        if let Some(interval) = interval_of(arguments) {
            self.oracle.interval = interval;
        }
        let (daemon, kernel) = self.daemon();
        let variables = kernel.environment.iter();
        let variables: Vec<Vec<u8>> = variables
            .map(|(name, value)| [name.as_bytes(), b"=", value].concat())
            .collect();
        let variable = |index: usize| variables.get(index).map(Vec::as_slice);
        let start_up = kernel.start_up(&variable);
        let arguments = arguments.iter().map(|word| word.as_bytes());
        let flow = daemon.start(kernel, &start_up, arguments);
        self.look();
        flow
    }

    /// Another process takes over: what the last one knew is gone.
    pub fn restart(&mut self, arguments: &[&str]) -> Flow {
        self.kernel.restart();
        self.wanted.clear();
        self.standing.clear();
        // Rules stand that this process said nothing about.
        (self.checks.oracle, self.checks.own_rules) = (false, false);
        let old = self.daemon.take().unwrap();
        DAEMONS.lock().unwrap().push(old);
        self.daemon = Some(new_daemon());
        self.start(arguments)
    }

    pub fn turn(&mut self) -> Flow {
        let before = (self.kernel.now, self.kernel.progress);
        let (daemon, kernel) = self.daemon();
        let flow = daemon.turn(kernel);
        self.check_work(before);
        self.look();
        flow
    }

    pub fn run_until(&mut self, at: Instant) {
        self.kernel.stop_at = Some(at);
        while self.kernel.now < at {
            assert_eq!(self.turn(), Flow::Continue);
        }
        // What is due by then is done by then.
        for _ in 0..3 {
            assert_eq!(self.turn(), Flow::Continue);
        }
        self.idle_turns = 0;
        self.kernel.stop_at = None;
    }

    pub fn run_for(&mut self, seconds: u64) {
        self.run_until(self.kernel.now.after(Duration::from_secs(seconds)));
    }

    /// SIGTERM: the process is asked to be gone within a second.
    pub fn terminate(&mut self) {
        let before = self.kernel.now;
        self.kernel.signal(Signal::Terminate);
        // A poll that is interrupted shows no signal.
        let most = if self.kernel.faults.interrupts > 0 {
            20
        } else {
            3
        };
        let mut turns = 0;
        while self.turn() != Flow::Exit(0) {
            turns += 1;
            assert!(turns < most, "asked to end");
        }
        let took = self.kernel.now.since(before);
        assert!(took <= Duration::from_secs(1), "ended after {took:?}");
    }

    /// The end of this process: asked for, or kill -9.
    pub fn terminate_or_kill(&mut self, is_killed: bool) {
        if !is_killed {
            self.terminate();
        }
    }

    /// Lines since the last call, without times.
    pub fn lines(&mut self) -> Vec<String> {
        let lines = std::mem::take(&mut self.pending).into_iter();
        lines
            .map(|line| match line.split_at_checked(21) {
                Some((time, rest)) if time.ends_with(": ") => {
                    let mut words = rest.split_ascii_whitespace();
                    let mut text = words.next().unwrap_or_default().to_owned();
                    for word in words {
                        text += " ";
                        text += word;
                    }
                    text
                }
                _ if line.starts_with('<') => {
                    let (priority, rest) = line.split_at(3);
                    let words: Vec<_> = rest.split_ascii_whitespace().collect();
                    priority.to_owned() + &words.join(" ")
                }
                _ => line,
            })
            .collect()
    }

    /// The same, but only those that hold `text`.
    pub fn lines_with(&mut self, text: &str) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| line.contains(text));
        lines
    }

    /// What went to standard error since the last call.
    pub fn error_output(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.kernel.errors)).unwrap()
    }

    // Checks.

    /// A turn without anything to do is a turn too many.
    fn check_work(&mut self, before: (Instant, u64)) {
        let kernel = &self.kernel;
        if before == (kernel.now, kernel.progress) && !kernel.now.reaches(kernel.stop_at) {
            self.idle_turns += 1;
        } else {
            self.idle_turns = 0;
        }
        assert!(self.idle_turns <= 3, "turns for nothing");
        let commands = kernel.commands.iter().rev();
        let minute_ago = kernel.now.before(Duration::from_secs(60));
        let lately = commands
            .take_while(|command| command.at > minute_ago)
            .take(201);
        assert!(lately.count() <= 200, "too many commands a minute");
        let errors = kernel.errors.iter().filter(|byte| **byte == b'\n');
        assert!(errors.count() <= 100, "a flood of errors");
        let second = kernel.now.as_secs();
        if second != self.second {
            (self.second, self.turns_this_second) = (second, 0);
        }
        self.turns_this_second += 1;
        let is_busy = self.turns_this_second >= 3_000;
        assert!(!is_busy, "too many turns a second");
    }

    /// What happened lately, to find out why.
    fn trace(&self) -> String {
        let kernel = &self.kernel;
        let tail = |bytes: &[u8]| {
            let tail = &bytes[bytes.len().saturating_sub(1_500)..];
            String::from_utf8_lossy(tail).into_owned()
        };
        let commands = kernel.commands.iter().rev().take(5).rev();
        let commands: String = commands
            .map(|one| format!("{:?} {}\n{}", one.at, one.words, one.input))
            .collect();
        let tables = kernel.tables.iter();
        let tables: String = tables.map(|(_, table)| table.listing()).collect();
        format!(
            " at {:?}\n{}\n{}\n{commands}\n{tables}",
            kernel.now,
            tail(&kernel.output),
            tail(&kernel.errors)
        )
    }

    fn look(&mut self) {
        assert!(
            self.kernel.violations.is_empty(),
            "{:?}",
            self.kernel.violations
        );
        assert!(self.kernel.descriptors() < 100, "descriptors leak");
        let opinion = self.ask_oracle();
        let lines = self.new_lines();
        self.check_opinion(opinion, &lines);
        let refused = lines.iter().filter_map(|line| match line {
            Line::NotBlocked {
                source,
                may_be_forged,
            } => Some((source.clone(), *may_be_forged)),
            _ => None,
        });
        let refused: HashMap<String, bool> = refused.collect();
        if self.checks.truth {
            self.check_truth(&lines, &refused);
        }
        let blocks = lines
            .iter()
            .any(|line| matches!(line, Line::Blocked { .. }));
        let rules = if blocks {
            Family::ALL.map(|family| self.kernel.rules_of(family))
        } else {
            Default::default()
        };
        let source = |rule: &String| rule.split(' ').nth(1).unwrap_or_default().to_owned();
        let rules = rules.concat().into_iter();
        let rules: HashMap<_, _> = rules.map(|rule| (source(&rule), rule)).collect();
        for line in lines {
            self.take(line, &refused, &rules);
        }
        self.check_commands();
    }

    fn ask_oracle(&mut self) -> Option<Opinion> {
        let kernel = &self.kernel;
        let readings = &kernel.readings[self.readings_seen..];
        assert!(readings.len() <= 1, "two readings in one turn");
        let looked_up = &kernel.looked_up[self.lookups_seen..];
        // Others are of a reading, which asks for what its rows do not show.
        for one in looked_up {
            let is_proven = !kernel.forged.contains(&one.remote.0);
            if let Some((state, inode)) = one.found
                && is_proven
                && state.is_connection()
                && one.readings == self.readings_seen
            {
                let found = (state as u8, inode.into());
                self.oracle.look_up(one.local, one.remote, found, one.at);
            }
        }
        self.readings_seen = kernel.readings.len();
        self.lookups_seen = kernel.looked_up.len();
        let opinion = match readings.first() {
            Some(reading) => Some(self.oracle.read(reading, &kernel.forged)),
            None if !looked_up.is_empty() => Some(self.oracle.scans_so_far()),
            None => None,
        };
        opinion.filter(|_| self.checks.oracle)
    }

    fn new_lines(&mut self) -> Vec<Line> {
        let unseen = &self.kernel.output[self.lines_seen..];
        let whole = unseen
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        self.lines_seen += whole;
        let text = String::from_utf8(unseen[..whole].to_vec()).unwrap();
        let mut lines = Vec::new();
        for line in text.lines() {
            assert!(line.len() <= LINE_MAX, "{line}");
            let priorities = ["<4>", "<6>"].into_iter();
            let mut untimed = priorities.filter_map(|start| line.strip_prefix(start));
            let known = match untimed.next() {
                Some(line) => read_untimed(line),
                None => read_line(&without_colours(line)),
            };
            lines.push(known.unwrap_or_else(|| panic!("unknown shape: {line}")));
            self.pending.push(line.to_owned());
        }
        lines
    }

    fn check_opinion(&mut self, opinion: Option<Opinion>, lines: &[Line]) {
        let Some(opinion) = opinion else {
            return;
        };
        let mut scans = Vec::new();
        let mut list = Vec::new();
        // A block that ended in this very turn: its rows may be listed or not.
        let mut ambiguous = HashSet::new();
        for line in lines {
            match line {
                // What is of containers is in no row.
                Line::Scan(scan) if scan.source.starts_with("198.51.101.") => {}
                Line::Scan(scan) if scan.source.starts_with("192.0.2.1") => {}
                Line::Scan(scan) => scans.push(scan.clone()),
                Line::Connection(text) => list.push(text.clone()),
                Line::Unblocked { source } => {
                    ambiguous.insert(source.clone());
                }
                _ => {}
            }
        }
        scans.sort();
        assert_eq!(scans, opinion.scans, "at {:?}", self.kernel.now);
        let is_clear = |text: &String| {
            let remote: std::net::SocketAddr = text.split(' ').next().unwrap().parse().unwrap();
            !ambiguous.contains(&self.oracle.source_of(remote.ip()))
        };
        let list: Vec<_> = list.into_iter().filter(is_clear).collect();
        let expected: Vec<_> = opinion.list.into_iter().filter(is_clear).collect();
        assert_eq!(list, expected, "at {:?}", self.kernel.now);
    }

    /// Each port of a scan was touched by its source, or by who could forge that;
    /// and where it is to be blocked more than the threshold by itself.
    fn check_truth(&self, lines: &[Line], refused: &HashMap<String, bool>) {
        for line in lines {
            let Line::Scan(ReportedScan { source, ports, .. }) = line else {
                continue;
            };
            let is_real = |port: &&u16| self.has_touched(source, **port);
            let is_forgeable = |port: &&u16| {
                let mut forgeable = self.kernel.forgeable.iter();
                forgeable
                    .any(|(peer, other)| other == *port && self.oracle.source_of(*peer) == *source)
            };
            let real = ports.iter().filter(is_real).count();
            let may_be_forged = refused.get(source) == Some(&true);
            assert!(
                may_be_forged || real > self.oracle.ports,
                "no scan: {line:?}"
            );
            let made_up = ports
                .iter()
                .find(|port| !is_real(port) && !is_forgeable(port));
            assert_eq!(made_up, None, "nobody touched that: {line:?}");
        }
    }

    fn has_touched(&self, source: &str, port: u16) -> bool {
        let kernel = &self.kernel;
        let is_of_source = |peer: IpAddr| self.oracle.source_of(peer) == source;
        let mut open = kernel.sockets.iter();
        let mut left = kernel.left.iter();
        // Some wait as long for their listener as they count afterwards.
        let window = self.oracle.window.saturating_mul(3);
        open.any(|socket| {
            socket.local.1 == port
                && socket.state.is_connection()
                && !kernel.forged.contains(&socket.remote.0)
                && is_of_source(socket.remote.0)
        }) || left.any(|((peer, other), at)| {
            *other == port && kernel.now.since(*at) < window && is_of_source(*peer)
        })
    }

    fn take(
        &mut self,
        line: Line,
        refused: &HashMap<String, bool>,
        rules: &HashMap<String, String>,
    ) {
        match line {
            Line::Scan(ReportedScan { source, .. }) => {
                if !refused.contains_key(&source) {
                    self.oracle.block(&source);
                    self.wanted.insert(source.clone());
                }
                self.scanned.insert(source);
            }
            Line::NotBlocked { source, .. } => {
                self.wanted.remove(&source);
                self.oracle.refuse(&source, self.kernel.now);
            }
            Line::Blocked { source } => {
                self.blocks += 1;
                let (family, longest) = if source.contains(':') {
                    (Family::V6, "/128")
                } else {
                    (Family::V4, "/32")
                };
                let length = if source.contains('/') { "" } else { longest };
                let rule = rules.get(&format!("{source}{length}"));
                let interfered = self.kernel.interfered;
                let calm =
                    interfered.is_none_or(|at| at.after(Duration::from_secs(15)) < self.kernel.now);
                assert!(!calm || rule.is_some(), "not in the kernel: {source}");
                let rule = rule.cloned().unwrap_or_default();
                if self.checks.output {
                    let count = self.wanted.len();
                    self.wanted.remove(&source);
                    if source.ends_with("/56") || source.ends_with("/48") {
                        // Blocks of parts end without a word.
                        self.wanted.retain(|wanted| !holds(&source, wanted));
                        let is_part = |other: &String| *other != source && holds(&source, other);
                        self.standing.retain(|other, _| !is_part(other));
                    }
                    assert!(self.wanted.len() < count, "{source} was not to be blocked");
                    let before = self.standing.insert(source, (family, rule));
                    assert_eq!(before, None, "blocked twice");
                }
            }
            Line::Unblocked { source } => {
                let before = self.standing.remove(&source);
                let is_known = !self.checks.output || !self.checks.own_rules;
                assert!(is_known || before.is_some(), "was not blocked: {source}");
                self.oracle.unblock(&source, Some(self.kernel.now));
            }
            Line::BlockFailed {
                source,
                gave_up: true,
            } => {
                self.wanted.remove(&source);
                self.oracle.unblock(&source, None);
            }
            Line::BlockFailed { .. }
            | Line::Spread
            | Line::Probes
            | Line::Starting
            | Line::Empty
            | Line::NoConnection
            | Line::Connection(_)
            | Line::More
            | Line::Day
            | Line::Exit => {}
        }
    }

    /// No rule without its evidence printed before.
    fn check_commands(&mut self) {
        for command in &self.kernel.commands[self.commands_seen..] {
            if !self.checks.output || !self.checks.own_rules {
                continue;
            }
            let added = command
                .input
                .lines()
                .filter_map(|line| line.strip_prefix("-A TCPPARSER -s "));
            for rule in added {
                let source = rule.split(' ').next().unwrap_or_default();
                let source = source.trim_end_matches("/32").trim_end_matches("/128");
                let mut scanned = self.scanned.iter();
                let is_known =
                    self.scanned.contains(source) || scanned.any(|scanner| holds(source, scanner));
                assert!(is_known, "no scan was printed: {rule}");
            }
        }
        self.commands_seen = self.kernel.commands.len();
    }

    /// After a quiet time: the kernel holds exactly what was said.
    pub fn check_quiet(&self) {
        for family in Family::ALL {
            let mut rules = self.kernel.rules_of(family);
            rules.sort();
            let count = rules.len();
            let source = |rule: &String| rule.split(' ').nth(1).map(str::to_owned);
            rules.dedup_by_key(|rule| source(rule));
            assert_eq!(rules.len(), count, "a source stands twice");
            if self.checks.output && self.checks.own_rules {
                let said = self.standing.values().filter(|one| one.0 == family);
                let mut said: Vec<_> = said.map(|one| one.1.clone()).collect();
                said.sort();
                assert_eq!(rules, said);
            }
        }
        let sets = &self.kernel.nf_tables;
        assert_eq!(sets.is_there(), !sets.elements().is_empty());
        let tables = [&self.kernel.tables, &self.kernel.other_tables];
        for (_, table) in tables.into_iter().flat_map(PerFamily::iter) {
            let count = table.blocks().len();
            let hooks = ["INPUT", "FORWARD"].map(|hook| {
                let jumps = table.rules(hook).iter();
                jumps.filter(|rule| *rule == "-j TCPPARSER").count()
            });
            assert_eq!(
                table.has_chain("TCPPARSER"),
                count > 0,
                "{}",
                table.listing()
            );
            // A second jump by another program does no harm while there is one.
            let is_hooked = hooks.iter().all(|jumps| (*jumps > 0) == (count > 0));
            assert!(is_hooked, "{}", table.listing());
        }
        if self.checks.output {
            assert_eq!(self.wanted, HashSet::new(), "still wanted");
        }
    }
}
