//! Scenarios as data, like packet traces: a line for what happens on a host,
//! or for what the daemon is to say, with the time since its first start.
//!
//! ```text
//! at 0 s: start --block-time 1m
//! at 1 s: 198.51.100.7 scans
//! at 11 s: 198.51.100.7 is blocked for 1m
//! at 72 s: expect: Unblocked: 198.51.100.7 its time is over
//! ```
//!
//! A line without a time belongs to that of the line above. The host listens on
//! 22, 25, 80, 443 and 445. `…` stands for any rest. Every line of output but
//! the list of connections is to be expected, and every one of standard error:
//! what a trace does not name must not happen. An unknown word is a failure.

use std::net::IpAddr;

use super::fake_kernel::{ChildFault, FakeKernel, Stdout};
use super::fake_network::UPLINK;
use super::fake_proc::FakeSocket;
use super::filter_table::FilterTable;
use super::firewall_scenarios::feed;
use super::liars::real;
use super::run::Run;
use super::scenarios::{OWN, OWN_IPV6, host};
use crate::address::{Endpoint, Family, Network};
use crate::daemon::Flow;
use crate::kernel::{Claim, Errno, HookRun, Screen};
use crate::limits::{CHILD_DEADLINE, CHILD_GRACE};
use crate::nf_tables::Set;
use crate::proc_net_tcp::TcpState;
use crate::time::{Duration, Instant};

/// When the kernel of a scenario is looked at first.
const START: Instant = Instant::from_secs(600);
/// From where the first connection comes.
const FIRST_PORT: u16 = 50_000;

/// Plays a trace in which names in braces stand for their values.
macro_rules! trace {
    ($text:literal) => {
        drop($crate::testing::trace::play(&format!($text)))
    };
}
pub(super) use trace;

/// Plays a trace, or fails at its first line that is not so.
pub fn play(text: &str) -> Run {
    let mut trace = Trace {
        run: host(),
        start: START,
        is_running: false,
        has_list: false,
        next_port: FIRST_PORT,
        output: Vec::new(),
        errors: Vec::new(),
    };
    let lines = text.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let _place = Place(line);
        trace.play_line(line);
    }
    let _place = Place("the end");
    trace.nothing_more();
    trace.run
}

/// Says where a failed trace stands.
struct Place<'a>(&'a str);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed at this line of the trace: {}", self.0);
        }
    }
}

struct Trace {
    run: Run,
    /// When the first daemon of this boot starts.
    start: Instant,
    /// A daemon was started and not ended.
    is_running: bool,
    /// The list of connections is to be expected, too.
    has_list: bool,
    /// Where the next connection comes from.
    next_port: u16,
    /// Said and not expected yet.
    output: Vec<String>,
    errors: Vec<String>,
}

impl Trace {
    fn play_line(&mut self, line: &str) {
        let line = match line.strip_prefix("at ") {
            Some(timed) => {
                let (time, line) = timed.split_once(':').expect("a colon after the time");
                self.go_to(&time.replace(' ', ""));
                line.trim()
            }
            None => line,
        };
        if let Some(expected) = line.strip_prefix("expect: ") {
            return self.expect(1, expected);
        }
        if let Some(expected) = line.strip_prefix("stderr: ") {
            self.listen();
            return take(&mut self.errors, expected);
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_known = line.is_empty()
            || self.play_daemon(&words, line)
            || self.play_peer(&words)
            || self.play_firewall(&words, line)
            || self.play_host(&words)
            || self.check(&words, line);
        assert!(is_known, "a trace knows no such line: {line}");
    }

    fn go_to(&mut self, time: &str) {
        self.nothing_more();
        let time_since = Duration::parse(time.as_bytes()).expect(time);
        let at = self.start.after(time_since);
        assert!(at >= self.run.kernel.now, "it is later than {time}");
        if self.is_running {
            self.run.run_until(at);
        } else {
            self.run.kernel.now = at;
        }
    }

    fn listen(&mut self) {
        let has_list = self.has_list;
        let is_list = |line: &String| {
            let starts = ["New connection: ", "No TCP peer ", "tcpparser starting..."];
            let line = line.strip_prefix("<6>").unwrap_or(line);
            line.is_empty() || starts.iter().any(|start| line.starts_with(start))
        };
        let lines = self.run.lines().into_iter();
        self.output
            .extend(lines.filter(|line| has_list || !is_list(line)));
        let errors = self.run.error_output();
        self.errors.extend(errors.lines().map(str::to_owned));
    }

    /// Lines of one moment come in any order.
    fn expect(&mut self, count: usize, expected: &str) {
        self.listen();
        for _ in 0..count {
            take(&mut self.output, expected);
        }
    }

    fn nothing_more(&mut self) {
        self.listen();
        assert_eq!(self.output, [""; 0], "not expected");
        assert_eq!(self.errors, [""; 0], "not expected");
    }

    /// The daemon's own life.
    fn play_daemon(&mut self, words: &[&str], line: &str) -> bool {
        match *words {
            ["start", ref arguments @ .., "exits", status] => {
                let status = number(status);
                assert_eq!(self.run.start(arguments), Flow::Exit(status));
            }
            ["start", ref arguments @ ..] => {
                let is_first = self.run.kernel.readings.is_empty();
                let start = if is_first { Run::start } else { Run::restart };
                assert_eq!(start(&mut self.run, arguments), Flow::Continue);
                self.is_running = true;
            }
            // A command that ends well and at once.
            ["run", ref arguments @ ..] => {
                let words = arguments.iter().take_while(|word| **word != "prints:");
                let (_, expected) = line.split_once(" prints: ").unwrap();
                let printed = self.run.one_shot(&words.copied().collect::<Vec<_>>());
                assert_like(printed.trim_end(), expected);
            }
            ["terminate"] => {
                self.run.terminate();
                self.is_running = false;
            }
            ["kill"] => self.is_running = false,
            ["with", "the", "list"] => self.has_list = true,
            // It reads rows only.
            ["without", "oracle"] => self.run.checks.oracle = false,
            // Rules stand that no daemon of this run made.
            ["with", "foreign", "rules"] => self.run.checks.own_rules = false,
            _ => return false,
        }
        true
    }

    /// What one peer does, or many: `198.18.0.1-100`.
    fn play_peer(&mut self, words: &[&str]) -> bool {
        let [peers, ref words @ ..] = *words else {
            return false;
        };
        if !peers.contains(['.', ':']) {
            return false;
        }
        let from = self.next_port;
        for peer in &each(peers) {
            self.next_port = from;
            if !self.play_one_peer(peer, words) {
                return false;
            }
        }
        true
    }

    fn play_one_peer(&mut self, peer: &str, words: &[&str]) -> bool {
        let kernel = &mut self.run.kernel;
        match *words {
            // Standing connections; in a state of closing from the first.
            [verb @ ("opens" | "holds"), ref ports @ .., "in", state] => {
                if verb == "holds" {
                    self.ask(peer, ports);
                }
                self.open(peer, ports);
                let sockets = self.run.kernel.sockets.iter_mut();
                for socket in sockets.rev().take(ports.len()) {
                    (socket.state, socket.inode) = (closing_state(state), 0);
                }
            }
            ["opens", ref ports @ ..] => self.open(peer, ports),
            // The kernel completes their handshakes, or not, or not yet.
            ["holds", ref ports @ ..] => {
                self.ask(peer, ports);
                self.open(peer, ports);
            }
            [
                "asks",
                "for",
                ref ports @ ..,
                "and",
                "opens",
                "them",
                ms,
                "ms",
                "later",
            ] => {
                let at = kernel.now.after(Duration::from_millis(number(ms)));
                for (from, port) in (self.next_port..).zip(ports) {
                    let (peer, port) = (peer.to_owned(), number(port));
                    kernel.at(at, move |kernel| kernel.open_connection(&peer, from, port));
                }
                self.ask(peer, ports);
                self.next_port += ports.len() as u16;
            }
            // To this host, or past it.
            ["sends", kind, "to", ref ports @ .., "at", destination] => {
                self.send(peer, kind, ports, destination);
            }
            ["sends", kind, "to", ref ports @ ..] => self.send(peer, kind, ports, own(peer)),
            ["asks", "for", ref ports @ ..] => {
                self.ask(peer, ports);
                self.next_port += ports.len() as u16;
            }
            // Ports that are published for containers, for a moment each.
            ["visits", ref ports @ ..] => self.visit(peer, ports),
            ["scans"] => self.open(peer, &["22", "25", "80", "445"]),
            ["enters", state] => {
                let peer: IpAddr = peer.parse().unwrap();
                let sockets = kernel.sockets.iter_mut();
                for socket in sockets.filter(|socket| socket.remote.0 == peer) {
                    (socket.state, socket.inode) = (closing_state(state), 0);
                }
            }
            // From one port of theirs, as a server we connected to.
            ["from", from, "opens", ref ports @ ..] => {
                for port in ports {
                    kernel.open_connection(peer, number(from), number(port));
                }
            }
            // Rows go without an event, or with one.
            ["closes"] => kernel.close_all_of(peer),
            ["ends"] => {
                let sockets = std::mem::take(&mut kernel.sockets).into_iter();
                let is_peer = |socket: &FakeSocket| socket.remote.0.to_string() == peer;
                let (ended, left) = sockets.partition::<Vec<_>, _>(is_peer);
                kernel.sockets = left;
                for FakeSocket { local, remote, .. } in ended {
                    let local = (octets(&local.0.to_string()), local.1);
                    kernel.destroy(local, (octets(peer), remote.1));
                }
            }
            // Connections so short that events alone show them.
            ["resets", ref ports @ .., "at", own] => self.reset(peer, ports, own),
            ["resets", ref ports @ ..] => self.reset(peer, ports, OWN),
            ["from", from, "resets", port] => {
                kernel.destroy((octets(OWN), number(port)), (octets(peer), number(from)));
            }
            // Ended before accept(2): the event names half of it.
            ["aborts", ref ports @ ..] => {
                for port in ports {
                    kernel.destroy(([0; 4], number(port)), (octets(peer), 0));
                }
            }
            // A handshake that is proven but for the way its SYN came.
            ["seems", "to", "open", ref ports @ ..] => {
                let (daemon, kernel) = self.run.daemon();
                for port in ports {
                    daemon.note_unproven(peer.parse().unwrap(), number(port), kernel.now);
                }
            }
            // A client of our own listener, that sends nothing yet.
            ["connects"] => drop(kernel.connect(peer, b"")),
            // Its scan is printed, then its block.
            ["is", "blocked", "for", length] => {
                self.expect(1, &format!("Port scan detected: {peer} -> …"));
                self.expect(1, &format!("Blocked: {peer} for {length}, …"));
            }
            ["is", "forged"] => kernel.forged.push(peer.parse().unwrap()),
            ["is", "real"] => kernel.forged.clear(),
            ["is", "a", "gateway"] => kernel.host.gateways.push(peer.parse().unwrap()),
            ["is", "a", "nameserver"] => kernel.host.nameservers.push(peer.parse().unwrap()),
            ["is", "own"] => kernel.host.addresses.push((peer.parse().unwrap(), 24)),
            _ => return false,
        }
        true
    }

    fn open(&mut self, peer: &str, ports: &[&str]) {
        for port in ports {
            let kernel = &mut self.run.kernel;
            kernel.open_connection(peer, self.next_port, number(port));
            self.next_port += 1;
        }
    }

    /// SYNs, by link 2.
    fn ask(&mut self, peer: &str, ports: &[&str]) {
        self.send(peer, "SYN", ports, own(peer));
    }

    fn send(&mut self, peer: &str, kind: &str, ports: &[&str], destination: &str) {
        let flags = match kind {
            "SYN" => 2,
            "NULL" => 0,
            "FIN" => 1,
            "XMAS" => 0x29,
            _ => panic!("no kind: {kind}"),
        };
        let end = |address: &str, port| Endpoint {
            address: address.parse().unwrap(),
            port,
        };
        for (from, port) in (self.next_port..).zip(ports) {
            let (source, destination) = (end(peer, from), end(destination, number(port)));
            self.run.kernel.send_packet(source, destination, flags, 2);
        }
    }

    /// With SYNs by the uplink, or `by link 3 2`, or `by link none`.
    fn visit(&mut self, peer: &str, ports: &[&str]) {
        let mut words = ports.split(|word| *word == "by");
        let ports = words.next().unwrap_or_default();
        let links = words.next().map_or(vec![UPLINK], |words| {
            let links = words.iter().skip(1).filter(|word| **word != "none");
            links.map(|word| number(word)).collect()
        });
        for port in ports {
            let mut visit = real(
                peer.parse().unwrap(),
                self.next_port,
                number(port),
                Duration::from_millis(3),
            );
            visit.links.clone_from(&links);
            let sequence = self.next_port.into();
            self.run.kernel.visit(&visit, sequence);
            self.next_port += 1;
        }
    }

    fn reset(&mut self, peer: &str, ports: &[&str], own: &str) {
        for port in ports {
            let own = if peer.contains(':') { OWN_IPV6 } else { own };
            let own = (own.parse().unwrap(), number(port));
            let peer = (peer.parse().unwrap(), self.next_port);
            self.run.kernel.destroy_ends(own, peer);
            self.next_port += 1;
        }
    }

    /// What becomes of iptables and nf_tables, and what others do there.
    fn play_firewall(&mut self, words: &[&str], line: &str) -> bool {
        let kernel = &mut self.run.kernel;
        match *words {
            ["iptables", "vanishes"] => kernel.tools.has_preferred = false,
            ["iptables", "returns"] => kernel.tools.has_preferred = true,
            ["ip6tables", "vanishes"] => kernel.tools.lacks_ipv6 = true,
            ["ip6tables", "returns"] => kernel.tools.lacks_ipv6 = false,
            ["iptables", "exits", status] => kernel.faults.child = ChildFault::Exit(number(status)),
            ["iptables", "finds", "its", "lock", "held"] => {
                kernel.faults.child = ChildFault::LockHeld;
            }
            ["iptables", "refuses", ..] => {
                kernel.faults.refused = line.strip_prefix("iptables refuses ").map(String::from);
            }
            ["iptables", "works"] => {
                (kernel.faults.child, kernel.faults.refused) = (ChildFault::None, None);
            }
            // Another program reloads its ruleset.
            ["iptables", "is", "emptied"] => kernel.tables.v4 = FilterTable::new(),
            [tool @ ("iptables" | "ip6tables"), "already", "holds:", ..] => {
                let (_, rule) = line.split_once(": ").unwrap();
                feed(table(kernel, tool), &[rule.to_owned()]);
            }
            ["iptables", "hangs", ref how @ .., "until", signal] => {
                kernel.faults.child = ChildFault::Hangs {
                    ignores_sigterm: signal == "SIGKILL",
                    closes_output: how == ["silently"],
                    worked: false,
                };
            }
            [tool @ ("iptables" | "ip6tables"), option, ..] if option.starts_with('-') => {
                let command = line.strip_prefix(tool).unwrap().trim();
                table(kernel, tool).command(command).expect(command);
                if command.contains(" TCPPARSER") {
                    kernel.interfered = Some(kernel.now);
                }
            }
            ["operator", "deletes", peer] => kernel.delete_rule_of(peer),
            ["hook", "takes", time] => {
                kernel.launcher.takes = Duration::parse(time.as_bytes()).unwrap();
            }
            ["hook", "fails"] => kernel.launcher.ends = HookRun::Failed,
            ["hook", "hangs"] => {
                (kernel.launcher.takes, kernel.launcher.ends) =
                    (CHILD_DEADLINE.saturating_add(CHILD_GRACE), HookRun::Timeout);
            }
            ["launcher", "fails", error] => kernel.launcher.fault = Some(errno(error)),
            ["launcher", "ends"] => kernel.launcher.is_gone = true,
            ["kernel", "has", "nf_tables"] => kernel.nf_tables.lacks.nf_tables = false,
            ["sets", "already", "hold", peer, "for", time, ..] => {
                let (_, comment) = line.split_once(": ").unwrap();
                let left = Duration::parse(time.trim_end_matches(':').as_bytes());
                let left_ms = left.map(|left| left.as_secs_rounded_up() * 1_000);
                kernel.feed_element(peer, left_ms, &format!("tcpparser v1 {comment}"));
            }
            ["nft", "delete", "element", peer] => kernel.interfere(|tables| {
                let set = Set::of(network(peer), false).unwrap();
                assert!(tables.delete_element(set, network(peer)));
            }),
            ["nft", "delete", "table"] => kernel.interfere(|all| assert!(all.delete_table())),
            ["nft", "flush", "table"] => kernel.interfere(|all| assert!(all.flush_table())),
            ["nft", "makes", "the", "table", "dormant"] => kernel.interfere(|tables| {
                assert!(tables.add_table(NFT_COMMENT, true));
            }),
            _ => return false,
        }
        true
    }

    /// What becomes of the host and its kernel.
    fn play_host(&mut self, words: &[&str]) -> bool {
        let kernel = &mut self.run.kernel;
        match *words {
            ["host", "listens", "on", ref ports @ ..] => {
                for port in ports {
                    kernel.listen_on("0.0.0.0", number(port));
                }
            }
            ["packets", "to", ref networks @ .., "are", "diverted"] => {
                let networks = networks.iter().filter(|one| **one != "none");
                let networks = networks.map(|one| (one.parse().unwrap(), 0));
                kernel.host.diverted = networks.collect();
            }
            ["sysctl", "tcp_fastopen", value] => kernel.tcp_fastopen = number(value),
            ["dumps", "pause", milliseconds, "ms"] => {
                kernel.faults.dump_pause = Duration::from_millis(number(milliseconds));
            }
            ["another", "daemon", "runs"] => kernel.claims.push_back(Claim::Silent),
            ["stdout", "breaks"] => {
                kernel.stdout = Stdout::Broken;
                (self.run.checks.oracle, self.run.checks.output) = (false, false);
            }
            ["stdout", "is", "the", "journal"] => {
                let name = "JOURNAL_STREAM".to_owned();
                kernel.environment.insert(name, b"8:4711".to_vec());
            }
            // What a service redirects, its children's output.
            ["stdout", "is", "not", "the", "journal"] => {
                let name = "JOURNAL_STREAM".to_owned();
                kernel.environment.insert(name, b"8:4712".to_vec());
            }
            ["stdout", "is", "a", "screen", "of", rows, "x", columns] => {
                let (rows, columns) = (number(rows), number(columns));
                kernel.screen = Some(Screen { rows, columns });
            }
            ["variable", name, "is", value] => {
                let value = value.as_bytes().to_vec();
                kernel.environment.insert(name.to_owned(), value);
            }
            ["lines", "are", "held", "back"] => {
                (self.run.checks.oracle, self.run.checks.output) = (false, false);
            }
            ["host", "boots", "anew"] => {
                kernel.boot_id = "feedbeef-0000-4000-8000-000000000000".to_owned();
                kernel.now = Instant::from_secs(50);
                self.start = kernel.now;
            }
            ["host", "has", "no", "rights"] => kernel.capabilities = 0,
            ["host", "is", "a", "container"] => {
                let value = b"oci".to_vec();
                kernel.environment.insert("container".to_owned(), value);
            }
            ["kernel", "reports", "no", "routes"] => kernel.faults.no_route_events = true,
            ["kernel", "lacks", what] => {
                let lacks = &mut kernel.nf_tables.lacks;
                match what {
                    "inet" => lacks.inet = true,
                    "destroy" => lacks.destroy = true,
                    "timeout_updates" => lacks.timeout_updates = true,
                    "comments" => lacks.comments = true,
                    "permission" => lacks.permission = true,
                    "tcp_diag" => kernel.faults.lacks_tcp_diag = true,
                    "loopback" => kernel.faults.no_loopback = true,
                    "events" => kernel.faults.late_events = Duration::from_secs(86_400),
                    _ => return false,
                }
            }
            ["kernel", "permits", "nf_tables"] => kernel.nf_tables.lacks.permission = false,
            ["tcp", "fails", error] => kernel.faults.rows.v4 = Some(errno(error)),
            ["tcp", "works"] => kernel.faults.rows.v4 = None,
            ["rtnetlink", "fails", error] => kernel.faults.netlink = Some(errno(error)),
            ["rtnetlink", "works"] => kernel.faults.netlink = None,
            ["file", path, "is", text] => {
                kernel.files.insert(path.to_owned(), format!("{text}\n"));
            }
            ["namespaces", "fail", error] => kernel.faults.foreign_events = Some(errno(error)),
            ["namespaces", "work"] => kernel.faults.foreign_events = None,
            ["conntrack", "fails", error] => kernel.faults.conntrack = Some(errno(error)),
            ["conntrack", "works"] => kernel.faults.conntrack = None,
            ["events", "of", "namespaces", "are", "lost"] => kernel.faults.foreign_losses = 1_000,
            ["events", "of", "namespaces", "arrive"] => kernel.faults.foreign_losses = 0,
            ["packet", "sockets", "fail", error] => kernel.faults.packets = Some(errno(error)),
            ["kernel", "counts", count, "more", "connections"] => {
                kernel.passive_opens += number::<u64>(count);
            }
            ["kernel", "counts", count, "more", "packets", "of", family] => {
                *kernel.received.get_mut(match family {
                    "IPv4" => Family::V4,
                    _ => Family::V6,
                }) += number::<u64>(count);
            }
            ["bind", "fails", error] => kernel.faults.listen = Some(errno(error)),
            ["bind", "works"] => kernel.faults.listen = None,
            _ => return false,
        }
        true
    }

    /// What is to be so by now, beside what is said.
    fn check(&mut self, words: &[&str], line: &str) -> bool {
        match *words {
            ["expect", count, ..] if count.ends_with(':') => {
                let (_, expected) = line.split_once(':').unwrap();
                self.expect(number(count), expected.trim());
            }
            ["metric", name, "is", value] => assert_eq!(self.run.metric(name), value, "{name}"),
            ["get", path, "from", peer, "gives", ..] => self.check_answer(peer, path, line),
            ["get", path, "gives", ..] => self.check_answer("127.0.0.1", path, line),
            ["packets", "from", peers, "are", ref fate @ ..] => {
                let expected = match fate {
                    ["dropped"] => (true, true),
                    ["dropped", "towards", "the", "host"] => (true, false),
                    ["passed"] => (false, false),
                    _ => return false,
                };
                for peer in &each(peers) {
                    assert_eq!(self.run.kernel.dropped(peer), expected, "{peer}");
                }
            }
            ["packets", "of", "ICMPv6", "from", peer, "are", "passed"] => {
                let (tables, icmp) = (&self.run.kernel.nf_tables, libc::IPPROTO_ICMPV6);
                assert!(!tables.drops_protocol(peer.parse().unwrap(), false, icmp));
            }
            // Words of the next run, each with a bar behind it.
            ["hook", "runs", ..] => {
                let (_, expected) = line.split_once("runs ").unwrap();
                let runs = &mut self.run.kernel.launcher.runs;
                assert!(!runs.is_empty(), "it does not run");
                assert_like(&runs.remove(0), expected);
            }
            ["hook", "ran", count, "times", "more"] => {
                let runs = std::mem::take(&mut self.run.kernel.launcher.runs);
                assert_eq!(runs.len(), number::<usize>(count), "{runs:?}");
            }
            ["a", "launcher", "of", file, "was", "started"] => {
                assert_eq!(self.run.kernel.launcher.file, file);
            }
            ["no", "launcher", "was", "started"] => {
                assert_eq!(self.run.kernel.launcher.file, "");
            }
            ["a", "child", "runs"] => assert!(self.run.kernel.has_child()),
            [tool @ ("iptables" | "ip6tables"), ref words @ ..] => {
                let table = table(&mut self.run.kernel, tool);
                return check_table(table, words, line);
            }
            ["sets", "hold", count] => {
                let elements = self.run.kernel.nf_tables.elements();
                assert_eq!(elements.len(), number::<usize>(count));
            }
            ["sets", "are", "gone"] => assert!(!self.run.kernel.nf_tables.is_there()),
            ["commands", "so", "far", count] => {
                let commands = &self.run.kernel.commands;
                assert_eq!(commands.len(), number::<usize>(count), "{commands:?}");
            }
            ["lookups", "so", "far", count] => assert_eq!(self.run.kernel.lookups, number(count)),
            // Sources that were said to be blocked, and no others, once each.
            ["kernel", "holds", "what", "was", "said"] => self.run.check_quiet(),
            _ => return false,
        }
        true
    }

    fn check_answer(&mut self, peer: &str, path: &str, line: &str) {
        let answer = self.run.get_from(peer, path);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).expect("a status");
        let (_, expected) = line.split_once(" gives ").unwrap();
        assert_like(format!("{status} {body}").trim_end(), expected);
    }
}

/// Whether text is as expected, of which `…` leaves the rest open.
fn is_like(said: &str, expected: &str) -> bool {
    match expected.strip_suffix('…') {
        Some(start) => said.starts_with(start),
        None => said == expected,
    }
}

fn assert_like(said: &str, expected: &str) {
    assert!(is_like(said, expected), "{said} is not: {expected}");
}

/// Takes an expected line out of those that were said.
fn take(said: &mut Vec<String>, expected: &str) {
    let at = said.iter().position(|line| is_like(line, expected));
    let Some(at) = at else {
        panic!("{expected} is not in {said:?}");
    };
    said.remove(at);
}

fn number<T: std::str::FromStr>(word: &str) -> T {
    let digits = word.trim_end_matches([',', ':']);
    let Ok(number) = digits.parse() else {
        panic!("that is no number here: {word}");
    };
    number
}

/// The addresses of a range such as `198.18.0.1-100`.
fn each(peers: &str) -> Vec<String> {
    let range = peers.rsplit_once('.');
    let range = range.and_then(|(start, last)| Some((start, last.split_once('-')?)));
    let Some((start, (first, last))) = range else {
        return vec![peers.to_owned()];
    };
    let numbers = number::<u8>(first)..=number::<u8>(last);
    numbers.map(|last| format!("{start}.{last}")).collect()
}

pub fn network(text: &str) -> Network {
    Network::parse(text.as_bytes()).unwrap()
}

fn own(peer: &str) -> &'static str {
    if peer.contains(':') { OWN_IPV6 } else { OWN }
}

fn octets(address: &str) -> [u8; 4] {
    address.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

fn closing_state(word: &str) -> TcpState {
    match word {
        "FIN_WAIT1" => TcpState::FinWait1,
        "CLOSING" => TcpState::Closing,
        "LAST_ACK" => TcpState::LastAck,
        _ => panic!("a trace knows no such state: {word}"),
    }
}

fn errno(word: &str) -> Errno {
    match word {
        "EACCES" => Errno::EACCES,
        "EAGAIN" => Errno::EAGAIN,
        "EMFILE" => Errno::EMFILE,
        "ENOENT" => Errno::ENOENT,
        "EADDRINUSE" => Errno::EADDRINUSE,
        "EPERM" => Errno::EPERM,
        "EADDRNOTAVAIL" => Errno::EADDRNOTAVAIL,
        _ => panic!("a trace knows no such error: {word}"),
    }
}

fn table<'a>(kernel: &'a mut FakeKernel, tool: &str) -> &'a mut FilterTable {
    let family = if tool == "iptables" {
        Family::V4
    } else {
        Family::V6
    };
    kernel.tables.get_mut(family)
}

/// What `iptables -S` is to show.
fn check_table(table: &FilterTable, words: &[&str], line: &str) -> bool {
    match *words {
        ["has", count, "rule" | "rules"] => {
            assert_eq!(table.blocks().len(), number::<usize>(count))
        }
        ["has", "no", "chain"] => assert!(!table.has_chain("TCPPARSER"), "{}", table.listing()),
        ["has", "an", "empty", "chain"] => {
            assert!(table.has_chain("TCPPARSER") && table.blocks().is_empty());
        }
        ["is", "untouched"] => assert_eq!(*table, FilterTable::new()),
        // Its rules, with a bar between them.
        ["shows", "in", chain, ..] => {
            let (_, expected) = line.split_once(": ").expect("a colon before the rules");
            let rules = table.rules(chain.trim_end_matches(':'));
            assert_like(&rules.join(" | "), expected);
        }
        _ => return false,
    }
    true
}

/// The comment of our table.
pub const NFT_COMMENT: &str = "port scan sources; tcpparser --unblock all lifts them";

#[test]
#[should_panic(expected = "a trace knows no such line: 198.51.100.7 knocks 22")]
fn an_unknown_word_is_a_failure() {
    play("at 0 s: start\nat 1 s: 198.51.100.7 knocks 22");
}

#[test]
#[should_panic(expected = "not expected")]
fn output_that_is_not_expected_is_a_failure() {
    play("at 0 s: start\nat 1 s: 198.51.100.7 scans\nat 11 s: sets are gone");
}

#[test]
#[should_panic(expected = "Blocked: 198.51.100.7 … is not in []")]
fn output_that_does_not_come_is_a_failure() {
    play("at 0 s: start\nat 11 s: expect: Blocked: 198.51.100.7 …");
}

#[test]
#[should_panic(expected = "Port scan detected: 198.51.100.7 -> … is not in []")]
fn a_block_that_does_not_come_is_a_failure() {
    play("at 0 s: start\nat 11 s: 198.51.100.7 is blocked for 10m");
}

#[test]
#[should_panic(expected = "/proc/net/tcp: permission denied")]
fn errors_that_are_not_expected_are_a_failure() {
    play("at 0 s: start\nat 1 s: tcp fails EACCES\nat 20 s:");
}
