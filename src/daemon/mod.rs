//! The daemon: its parts own the tables, and a turn of its loop hands each
//! stage's result to the next. The only folder that counts, logs, and decides
//! about EINTR and EAGAIN.

mod admission;
pub(crate) mod clock;
pub(crate) mod commands;
mod confinement;
mod counters;
mod cpu_share;
mod destroyer;
mod diag;
mod facts;
pub(crate) mod files;
mod handshakes;
mod hook;
mod instance;
mod intake;
mod kept_file;
mod list;
mod names;
mod namespaces;
mod netfilter;
mod once;
mod opens;
pub(crate) mod output;
pub(crate) mod procfs;
mod questions;
mod reader;
mod resources;
mod start;
mod supervisor;
mod watcher;
mod web;
mod witness;

use heapless::Vec;

#[cfg(test)]
use crate::address::Network;
use crate::address::{Family, PerFamily};
use crate::connections;
use crate::coverage::Look;
use crate::detector::{self, Scan};
use crate::firewall::comment::put_ports;
use crate::firewall::{self, Task};
use crate::host::Host;
use crate::kernel::{Accepted, Interest, Kernel, Signal, StartUp};
use crate::limits::{
    BLOCKS, CONNECTIONS, COUNTERS_PERIOD, COUNTERS_PERIOD_BLIND, EXIT_GRACE, FACTS_PER_TURN,
    FACTS_SLICE, FAST_READING, HTTP_CLIENTS, LISTENERS, NETFILTER_JOBS, ONE_SHOT_WAIT_BUDGET,
    OUTPUT_WAIT_BUDGET, PEERS_ASKED, SOURCES, TURN_ROUND, index_size,
};
use crate::listeners::{self, Port};
use crate::metrics::{self, EvidenceSource, Metrics, RowsFile, Trigger};
use crate::netlink::RECEIVE_BUFFER;
use crate::options::{Action, Options, write_help, write_version};
use crate::packets::Kind;
use crate::probes::{self, Target};
use crate::proc_net_tcp::TcpState;
use crate::report::{self, Line};
use crate::sandbox::Tier;
use crate::text::Text;
use crate::time::{Calendar, Duration, Instant, nearest};
use crate::tools::{blocks, healthcheck};
use clock::Moment;
use commands::{Commands, Ended, Start};
use confinement::Confinement;
use counters::{Counters, EarlyReadings};
use facts::{HostFacts, START_SLICES};
use hook::Event;
use instance::{InstanceLock, is_name_held};
use intake::{Context, Intake, RowOf};
use list::Entry;
use namespaces::{Candidates, Namespaces, Scene};
use opens::Opens;
use output::{Output, log_words, write_error};
use procfs::{has_ipv6, local_port_range};
use reader::{Outcome, Reader};
use resources::Resources;
use supervisor::Supervisor;
use watcher::Watcher;
use web::Web;
use witness::Witness;

/// What shall happen after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Call `turn` again.
    Continue,
    /// End the process with this exit status.
    Exit(u8),
}

/// What is read in a turn, in the order in which it is polled.
#[derive(Clone, Copy)]
enum Readable {
    Signals,
    Hook,
    Facts,
    DestroyEvents,
    Ipv4Packets,
    Ipv6Packets,
    NamespaceEvents,
    NetfilterEvents,
    Listener,
}

impl Readable {
    const COUNT: usize = Self::Listener as usize + 1;

    /// Whether its bit is one of these.
    fn is_in(self, ready: u32) -> bool {
        ready & 1 << self as u8 != 0
    }
}

/// What lines of a reading may cost where standard output takes some, but not all.
const READING_WAIT_BUDGET: Duration = OUTPUT_WAIT_BUDGET.saturating_mul(10);

/// Beside the clients and these: a child's two pipes, and standard output.
const INTERESTS: usize = HTTP_CLIENTS + Readable::COUNT + 3;

type Connections = connections::Connections<
    CONNECTIONS,
    { index_size(CONNECTIONS) },
    LISTENERS,
    { index_size(LISTENERS) },
>;
type Listeners = listeners::Listeners<LISTENERS, { index_size(LISTENERS) }>;
type Detector = detector::Detector<SOURCES, { index_size(SOURCES) }>;
type Probes = probes::Probes<SOURCES, { index_size(SOURCES) }>;
type Firewall = firewall::Firewall<BLOCKS, { index_size(BLOCKS) }>;
type Interests = Vec<Interest, INTERESTS>;

/// All state of the program; `const`-constructible so that it lies in .bss.
///
/// In memory as it stands here, and so are the parts: what is small and written
/// to in any case shares pages, then come buffers, then tables, of which an idle
/// host needs the first page or none. The largest table is the last field: what
/// lies 16 MiB behind the start of a static is not addressed in one instruction.
/// Where it begins decides what shares a page: of several alignments and orders this
/// one leaves an idle daemon the fewest.
#[repr(C, align(64))]
pub struct Daemon {
    options: Options,

    facts: HostFacts,
    witness: Witness,
    counters: Counters,
    early: EarlyReadings,
    metrics: Metrics,
    instance: InstanceLock,
    confinement: Confinement,
    is_terminating: bool,
    web: Web,

    netlink_buffer: [u8; RECEIVE_BUFFER],
    reader: Reader,
    output: Output,

    namespaces: Namespaces,
    commands: Commands,
    opens: Opens,
    host: Host,
    watcher: Watcher,
    supervisor: Supervisor,
    intake: Intake,
}

impl Daemon {
    /// A daemon before its start.
    pub const fn new() -> Self {
        Self {
            options: Options::new(),
            host: Host::new(),
            facts: HostFacts::new(),
            reader: Reader::new(),
            watcher: Watcher::new(),
            witness: Witness::new(),
            namespaces: Namespaces::new(),
            opens: Opens::new(),
            counters: Counters::new(),
            early: EarlyReadings::new(),
            intake: Intake::new(),
            commands: Commands::new(),
            metrics: Metrics::new(),
            web: Web::new(),
            output: Output::new(),
            supervisor: Supervisor::new(),
            instance: InstanceLock::new(),
            confinement: Confinement::new(),
            netlink_buffer: [0; RECEIVE_BUFFER],
            is_terminating: false,
        }
    }

    /// Reads the command line (without the program's name) and the environment,
    /// and does what they ask for: a daemon is opened for its turns.
    #[inline(never)]
    pub fn start<'a>(
        &mut self,
        kernel: &mut impl Kernel,
        start_up: &StartUp<'a>,
        arguments: impl Iterator<Item = &'a [u8]>,
    ) -> Flow {
        if let Err(error) = self.options.parse_into(arguments, start_up.variables()) {
            write_error(kernel, error.line().as_bytes());
            return start::USAGE;
        }
        let start = Moment::read(kernel).unix_nanoseconds;
        self.metrics.set(metrics::START_TIME_SECONDS, start);
        self.commands.signals = start_up.signals;
        self.commands.is_container = start::is_container(start_up);
        self.output.open(start_up);
        self.commands.invocation.root = self.options.exec_root.clone();
        match self.options.action {
            Action::Help => start::print(kernel, &mut self.output, write_help),
            Action::Version => start::print(kernel, &mut self.output, write_version),
            Action::Check => {
                let is_right = self.commands.hook.start(kernel, &self.options.hook, true);
                if is_right {
                    Flow::Exit(0)
                } else {
                    start::USAGE
                }
            }
            Action::Once => self.once(kernel, start_up),
            Action::Run => self.run(kernel, start_up),
            Action::List => self.run_blocks(kernel, start_up, Task::List),
            Action::Unblock(target) => {
                let keeps_chain = is_name_held(kernel);
                let task = Task::Unblock {
                    target,
                    keeps_chain,
                };
                self.run_blocks(kernel, start_up, task)
            }
            Action::Healthcheck => {
                let (address, buffer) = (self.options.listen, &mut self.commands.buffer);
                Flow::Exit(healthcheck::run(kernel, address, buffer))
            }
        }
    }

    fn run_blocks(&mut self, kernel: &mut impl Kernel, start_up: &StartUp, task: Task) -> Flow {
        let now = clock::now(kernel);
        let (commands, options) = (&mut self.commands, &self.options);
        commands.enable(kernel, start_up.hash_key, options, task, now);
        if task == Task::List {
            start::protect(start_up, &mut self.host, &self.options);
            self.start_facts(kernel);
        }
        let (commands, options) = (&mut self.commands, &self.options);
        let (output, host, buffer) = (&mut self.output, &self.host, &mut self.netlink_buffer);
        blocks::run(kernel, commands, output, options, host, buffer, task)
    }

    /// One reading and every scan that is visible in it.
    #[inline(never)]
    fn once(&mut self, kernel: &mut impl Kernel, start_up: &StartUp) -> Flow {
        // Looking only: whatever else is asked for, nothing is blocked.
        self.options.dry_run = true;
        self.output
            .set_wait_budget(ONE_SHOT_WAIT_BUDGET, ONE_SHOT_WAIT_BUDGET);
        self.prepare(start_up);
        start::print_start(kernel, &mut self.output);
        self.start_facts(kernel);
        let namespace = self.reader.namespace(kernel);
        self.watcher.set_namespace(namespace);
        self.read_settings(kernel);
        let could_read = self.read(kernel, Trigger::Scheduled);
        while let Some(scan) = &self.intake.detector.next_scan() {
            let moment = Moment::read(kernel);
            self.print_scan(kernel, scan, moment);
        }
        self.output.finish(kernel);
        Flow::Exit(u8::from(!could_read))
    }

    #[inline(never)]
    fn run(&mut self, kernel: &mut impl Kernel, start_up: &StartUp) -> Flow {
        // First, while there is nothing else of ours that its launcher would hold.
        if !self.commands.hook.start(kernel, &self.options.hook, false) {
            return start::USAGE;
        }
        self.prepare(start_up);
        let may_block = start::may_block(kernel, start_up, &self.options, &mut self.instance);
        let Some(may_block) = may_block else {
            return Flow::Exit(1);
        };
        if let Some(address) = self.options.listen {
            let now = clock::now(kernel);
            self.web.start(kernel, address, now);
        }
        self.start_facts(kernel);
        let now = clock::now(kernel);
        if may_block {
            let (commands, options) = (&mut self.commands, &self.options);
            commands.enable(kernel, start_up.hash_key, options, Task::Guard, now);
            if has_ipv6(kernel, &self.options.proc_directory) {
                self.commands.firewall.set_ipv6();
            }
        }
        self.counters.start(&self.options.proc_directory);
        self.early.start();
        self.supervisor.start(kernel, start_up);
        let (confinement, metrics) = (&mut self.confinement, &mut self.metrics);
        confinement.start(&self.options, metrics, now);
        start::print_start(kernel, &mut self.output);
        self.output.start(now);
        self.reader.start(now);
        Flow::Continue
    }

    /// Secrets, paths, limits: what every kind of reading needs.
    fn prepare(&mut self, start_up: &StartUp) {
        let options = &self.options;
        let proc_directory = &options.proc_directory;
        self.reader.configure(proc_directory);
        self.intake.configure(start_up.hash_key, options);
        self.namespaces.configure(start_up.hash_key, options.window);
        self.metrics
            .set(metrics::INTERVAL_SECONDS, options.interval.as_nanos());
        if let Some(screen) = start_up.screen {
            self.intake.list.set_screen(screen);
        }
        start::protect(start_up, &mut self.host, options);
    }

    /// Settings of the kernel that say what is proof.
    #[inline(never)]
    fn read_settings(&mut self, kernel: &mut impl Kernel) {
        let (intake, proc_directory) = (&mut self.intake, &self.options.proc_directory);
        intake.handshakes.read_setting(kernel, proc_directory);
        let range = local_port_range(kernel, proc_directory);
        intake.connections.set_local_port_range(range);
    }

    /// Waits for the next deadline or event and handles it.
    #[inline(never)]
    pub fn turn(&mut self, kernel: &mut impl Kernel) -> Flow {
        let mut found = Interests::new();
        let ready = self.wait(kernel, &mut found);
        let moment = Moment::read(kernel);
        if Readable::Signals.is_in(ready) {
            self.take_signals(kernel);
        }
        self.watch_command(kernel, moment);
        if Readable::Hook.is_in(ready) {
            self.commands.hook.take_answer(kernel, &mut self.metrics);
        }
        self.update_facts(kernel, Readable::Facts.is_in(ready), moment.now);
        let has_events = Readable::DestroyEvents.is_in(ready);
        let has_packets = Readable::Ipv4Packets.is_in(ready) || Readable::Ipv6Packets.is_in(ready);
        // What opened a connection comes before its end.
        let is_wanted = has_packets || has_events && self.witness.may_be_hurried(moment.now);
        if is_wanted || moment.now.reaches(self.witness.deadline()) {
            self.take_packets(kernel, moment.now);
        }
        if has_events {
            self.take_events(kernel, moment.now);
        }
        if moment.now.reaches(self.opens.deadline()) {
            self.look_up_opens(kernel, moment.now);
        }
        if Readable::NamespaceEvents.is_in(ready) {
            self.take_namespace_events(kernel, moment.now);
        }
        if Readable::NetfilterEvents.is_in(ready) {
            let buffer = &mut self.netlink_buffer;
            self.commands.take_events(kernel, buffer, moment.now);
        }
        self.read_when_due(kernel, moment.now);
        // What follows comes after the reading.
        let moment = Moment::read(kernel);
        self.report_scans(kernel, moment);
        if moment.now.reaches(self.intake.probes.deadline()) {
            self.report_probes(kernel, moment);
        }
        self.run_commands(kernel, moment);
        self.enter_sandbox(kernel, moment.now);
        self.serve(kernel, &found, Readable::Listener.is_in(ready), moment);
        self.instance.drain(kernel, moment.now);
        self.say_counts(kernel, moment.now);
        self.output.flush(kernel);
        if self.is_terminating {
            self.end(kernel)
        } else {
            Flow::Continue
        }
    }

    /// Poll interest is computed from state each turn; the sleep is the nearest
    /// deadline of any stage. The bits of the sources that can be read.
    #[inline(never)]
    fn wait(&mut self, kernel: &mut impl Kernel, found: &mut Interests) -> u32 {
        let now = clock::now(kernel);
        self.put_interests(found, now);
        let deadline = self.deadline(now);
        let timeout = deadline.map(|deadline| now.until(deadline));
        if kernel.poll(found, timeout).is_err() {
            // Interrupted, or short of memory: what is due is done anyway.
            found.clear();
        }
        let sources = found.iter().take(Readable::COUNT).rev();
        sources.fold(0, |ready, one| ready << 1 | u32::from(one.is_readable))
    }

    fn put_interests(&self, found: &mut Interests, now: Instant) {
        let [v4, v6] = self.witness.sockets(now);
        let [output, errors] = self.commands.pipes;
        // In the order of `Readable`; then what no turn asks for.
        let own = [
            self.commands.signals,
            self.commands.hook.answers(),
            self.facts.events(now),
            self.watcher.events(now),
            v4,
            v6,
            self.namespaces.events(now),
            self.commands.netfilter.events(now),
            self.web.listener(now),
            output,
            errors,
        ];
        let _ = found.extend_from_slice(&own.map(Interest::read));
        let _ = found.push(self.output.interest());
        self.web.interests(now).for_each(|interest| {
            let _ = found.push(interest);
        });
    }

    #[inline(never)]
    fn deadline(&self, now: Instant) -> Option<Instant> {
        // The first reading waits for the first listing.
        let reading = if self.commands.firewall.is_settled(now) {
            if self.intake.detector.has_scan() {
                return Some(now);
            }
            self.reading_deadline()
        } else {
            self.commands.firewall.settled_at()
        };
        let deadlines = [
            reading,
            self.commands.firewall.deadline(now),
            self.commands.netfilter.deadline(now),
            self.commands.destroyer_deadline(now),
            self.facts.deadline(now),
            self.web.deadline(now),
            self.output.deadline(),
            self.intake.probes.deadline(),
            self.witness.deadline(),
            self.opens.deadline(),
            self.namespaces.deadline(now),
        ];
        deadlines.into_iter().fold(None, nearest)
    }

    fn take_signals(&mut self, kernel: &mut impl Kernel) {
        while let Some(signal) = kernel.next_signal() {
            match signal {
                Signal::Terminate => self.is_terminating = true,
                // `watch_command` asks for the child's end each turn.
                Signal::Child => {}
            }
        }
    }

    /// Takes in messages about the host.
    fn update_facts(&mut self, kernel: &mut impl Kernel, has_messages: bool, now: Instant) {
        if has_messages || now.reaches(self.facts.deadline(now)) {
            self.take_facts(kernel);
        }
        self.apply_facts(kernel);
        if self.host.diverts() {
            self.intake.admission.note_diversion(now);
        }
    }

    /// Before a block.
    fn renew_facts(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let (host, buffer) = (&mut self.host, &mut self.netlink_buffer);
        self.facts.renew(kernel, host, buffer, now);
        self.take_facts(kernel);
        self.apply_facts(kernel);
    }

    /// What a very large routing table leaves to be done comes in the first
    /// turns.
    fn start_facts(&mut self, kernel: &mut impl Kernel) {
        self.facts.start();
        for _ in 0..START_SLICES {
            self.take_facts(kernel);
            if self.facts.is_idle() {
                break;
            }
        }
        let now = clock::now(kernel);
        self.read_resolver(kernel, now);
    }

    fn read_resolver(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let (host, buffer) = (&mut self.host, &mut self.netlink_buffer);
        self.facts.read_resolver(kernel, host, buffer, now);
    }

    /// Takes in messages about the host, and requests them: at most a slice.
    fn take_facts(&mut self, kernel: &mut impl Kernel) {
        let (now, cpu_before) = (clock::now(kernel), clock::cpu_time(kernel));
        let (host, buffer) = (&mut self.host, &mut self.netlink_buffer);
        for _ in 0..FACTS_PER_TURN {
            let is_done = !self.facts.take(kernel, host, buffer, now);
            if is_done || clock::now(kernel).since(now) >= FACTS_SLICE {
                break;
            }
        }
        let cost = clock::cpu_time_since(kernel, cpu_before);
        self.facts.end_slice(kernel, host, cost, now);
    }

    /// Blocks of what came to be protected end at once.
    fn apply_facts(&mut self, kernel: &mut impl Kernel) {
        if self.host.take_growth() {
            self.commands.firewall.release_protected(&self.host);
        }
        while self.commands.firewall.is_enabled()
            && let Some(words) = self.facts.next_notice(&self.host)
        {
            log_words(kernel, words);
        }
    }

    /// Reports sources that probe ports, unless they came to be scanners.
    #[inline(never)]
    fn report_probes(&mut self, kernel: &mut impl Kernel, moment: Moment) {
        let (intake, firewall) = (&mut self.intake, &self.commands.firewall);
        while let Some(probing) = &intake.probes.next(moment.now) {
            let source = probing.source;
            if firewall.is_blocked(source) || intake.detector.is_reported(&source) {
                continue;
            }
            let target = if self.host.is_own(probing.local) {
                Target::Host
            } else {
                Target::Behind
            };
            let kind = probes::kind(probing.marks);
            self.metrics
                .count(metrics::PROBING_SOURCES.of(kind, target));
            let mut line = Line::new();
            report::probes(&mut line, moment.calendar(kernel), probing, target);
            self.output.line(kernel, &line);
        }
    }

    /// Reports each new scan and wants its source blocked.
    fn report_scans(&mut self, kernel: &mut impl Kernel, moment: Moment) {
        // Which sources are blocked already is known only after the first listing.
        if !self.commands.firewall.is_settled(moment.now) || !self.intake.detector.has_scan() {
            return;
        }
        if self.commands.firewall.is_enabled() {
            self.renew_facts(kernel, moment.now);
        }
        self.report_new_scans(kernel, moment);
    }

    /// Apart, since an idle daemon would touch the pages of its stack.
    #[inline(never)]
    fn report_new_scans(&mut self, kernel: &mut impl Kernel, moment: Moment) {
        // Asking for data takes the kernel a walk over all sockets: once a turn.
        let mut may_ask = self.watcher.is_own_namespace();
        let mut scans: Vec<Scan, PEERS_ASKED> = Vec::new();
        while self.intake.detector.has_scan() {
            scans.clear();
            while !scans.is_full()
                && let Some(scan) = self.intake.detector.next_scan()
            {
                if self.commands.firewall.is_blocked(scan.source) {
                    self.intake.detector.forget(scan.source);
                } else {
                    let _ = scans.push(scan);
                }
            }
            // Where data decides, the rest of a flood comes next turn.
            let decides = self.options.require_silent;
            if may_ask {
                let buffer = &mut self.netlink_buffer;
                diag::look_for_data(kernel, buffer, &mut scans, decides);
                may_ask = false;
            }
            for scan in &mut scans {
                self.report_scan(kernel, scan, moment);
            }
            if decides {
                break;
            }
        }
    }

    fn report_scan(&mut self, kernel: &mut impl Kernel, scan: &mut Scan, moment: Moment) {
        if scan.local.is_unspecified()
            && let Some(own) = self.host.own_near(scan.source)
        {
            scan.local = own;
        }
        self.metrics.count(metrics::PORT_SCANS);
        self.print_scan(kernel, scan, moment);
        let mut ports: Text<{ hook::PORTS }> = Text::new();
        put_ports(&mut ports, &scan.ports);
        let (hook, metrics) = (&mut self.commands.hook, &mut self.metrics);
        hook.notify(kernel, metrics, Event::Scan, scan.source, ports.as_bytes());
        let (options, host) = (&self.options, &self.host);
        let verdict = self.commands.decide(scan, options, host, moment.now);
        let (metrics, output) = (&mut self.metrics, &mut self.output);
        self.commands
            .report_verdict(kernel, scan, verdict, metrics, output, moment);
        // What a source does that is held back goes on to count.
        if self.commands.firewall.is_blocked(scan.source) {
            self.intake.detector.forget(scan.source);
        }
    }

    #[inline(never)]
    fn print_scan(&mut self, kernel: &mut impl Kernel, scan: &Scan, moment: Moment) {
        let mut line = Line::new();
        report::scan(&mut line, moment.calendar(kernel), scan);
        self.output.line(kernel, &line);
    }

    /// Starts the next firewall command, if one is due.
    fn run_commands(&mut self, kernel: &mut impl Kernel, moment: Moment) {
        // First, since the next command may move on what is to be said.
        self.report_notices(kernel, moment);
        if self.commands.is_idle() && self.commands.firewall.pending() > 0 {
            self.renew_facts(kernel, moment.now);
        }
        for _ in 0..NETFILTER_JOBS {
            let (buffer, host) = (&mut self.netlink_buffer, &self.host);
            let Some(ended) = &self.commands.converse(kernel, buffer, host) else {
                break;
            };
            self.command_ended(kernel, ended, moment);
            self.report_notices(kernel, moment);
        }
        let now = clock::now(kernel);
        let start = self.commands.start(kernel, &self.host, now);
        if start == Start::Failed {
            let ended = self.commands.not_started(now);
            self.command_ended(kernel, &ended, moment);
        }
        self.report_notices(kernel, moment);
        if start == Start::NotDue {
            let buffer = &mut self.netlink_buffer;
            let metrics = &mut self.metrics;
            self.commands
                .destroy_sockets(kernel, &self.host, buffer, metrics, now);
        }
    }

    /// Gives up rights once the sockets that need them are open, and no listing runs.
    fn enter_sandbox(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let is_idle = self.commands.is_idle() && !self.watcher.is_check_due(now);
        let firewall = &mut self.commands.firewall;
        let Some(tier) = self.confinement.due(firewall, is_idle, now) else {
            return;
        };
        if tier == Tier::Sealed {
            firewall.give_up_tools();
        }
        let awaits_port = self.web.awaits_port();
        let (options, metrics) = (&self.options, &mut self.metrics);
        self.confinement
            .enter(kernel, tier, options, awaits_port, metrics);
    }

    fn watch_command(&mut self, kernel: &mut impl Kernel, moment: Moment) {
        if let Some(ended) = &self.commands.watch(kernel, moment.now) {
            self.command_ended(kernel, ended, moment);
        }
    }

    fn command_ended(&mut self, kernel: &mut impl Kernel, ended: &Ended, moment: Moment) {
        self.renew_facts(kernel, moment.now);
        self.commands.firewall.release_protected(&self.host);
        let (metrics, output) = (&mut self.metrics, &mut self.output);
        self.commands
            .report_end(kernel, ended, metrics, output, moment);
    }

    #[inline(never)]
    fn report_notices(&mut self, kernel: &mut impl Kernel, moment: Moment) {
        self.commands.report_notices(
            kernel,
            &mut self.intake.detector,
            &mut self.metrics,
            &mut self.output,
            self.watcher.is_own_namespace(),
            moment,
        );
    }

    /// What is left to do at the end, within `EXIT_GRACE`: a running child ends,
    /// blocks that an operator has lifted meanwhile are missed, and a chain that
    /// became empty goes.
    fn end_commands(&mut self, kernel: &mut impl Kernel) {
        let deadline = clock::now(kernel).after(EXIT_GRACE);
        let mut moment = self.await_command(kernel, deadline);
        self.commands.firewall.begin_end(moment.now);
        while moment.now < deadline {
            self.run_commands(kernel, moment);
            if self.commands.is_idle() {
                break;
            }
            moment = self.await_command(kernel, deadline);
        }
        self.report_notices(kernel, moment);
    }

    fn await_command(&mut self, kernel: &mut impl Kernel, deadline: Instant) -> Moment {
        let ended = self.commands.wait(kernel, Some(deadline));
        let moment = Moment::read(kernel);
        if let Some(ended) = &ended {
            self.command_ended(kernel, ended, moment);
        }
        moment
    }

    /// A verdict out of nowhere, past every check but the last.
    #[cfg(test)]
    pub(crate) fn want_blocked(&mut self, source: Network, now: Instant) {
        let scan = Scan {
            source,
            members: 0,
            local: source.address(),
            ports: crate::detector::Ports::from_slice(&[22, 25, 80, 445]).unwrap_or_default(),
            port_data: Vec::new(),
            is_new: true,
            is_whole: true,
            marks: 0,
        };
        assert!(self.commands.firewall.block(&scan, &self.host, now).is_ok());
    }

    /// A handshake that is proven but for the way its SYN came.
    #[cfg(test)]
    pub(crate) fn note_unproven(&mut self, peer: core::net::IpAddr, port: u16, now: Instant) {
        let evidence = crate::detector::Evidence {
            source: self.host.source_of(peer),
            port,
            local: crate::address::UNSPECIFIED,
            data: crate::detector::Data::Silent,
            is_new: true,
            is_whole: false,
        };
        self.intake.detector.observe(&evidence, now);
    }

    /// The source that a peer's evidence is held against.
    #[cfg(test)]
    pub(crate) fn source_of(&self, peer: core::net::IpAddr) -> Network {
        self.host.source_of(peer)
    }

    // What is seen.

    /// When a reading, or a look at what may bring one, is due.
    fn reading_deadline(&self) -> Option<Instant> {
        let deadlines = [
            self.watcher.deadline(),
            self.counters.deadline(),
            self.early.deadline(),
            self.supervisor.deadline(),
            self.reader.deadline(),
        ];
        deadlines.into_iter().fold(None, nearest)
    }

    /// The scheduled reading, or an early one where something hints at
    /// connections that were not seen.
    fn read_when_due(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if !now.reaches(self.reading_deadline()) {
            return;
        }
        // Before what was seen is held against the kernel's count.
        self.take_events(kernel, now);
        self.check_events(kernel, now);
        self.check_counters(kernel, now);
        if !self.commands.firewall.is_settled(now) {
            return;
        }
        let (early, supervisor) = (&mut self.early, &self.supervisor);
        let is_early_due = || early.is_due(now) || now.reaches(supervisor.deadline());
        let trigger = self
            .reader
            .trigger(self.options.interval, is_early_due, now);
        let Some(trigger) = trigger else {
            return;
        };
        if trigger == Trigger::Scheduled {
            self.read_resolver(kernel, now);
            if self.facts.refresh() {
                self.take_facts(kernel);
            }
            self.commands.firewall.release_protected(&self.host);
        }
        if self.output.takes_introduction() {
            let (host, firewall) = (&self.host, &self.commands.firewall);
            let has_events = self.watcher.expects_events();
            start::introduce(kernel, self.options.listen, host, firewall, has_events);
        }
        let cpu_before = clock::cpu_time(kernel);
        self.read(kernel, trigger);
        let cost = clock::cpu_time_since(kernel, cpu_before);
        let ended = clock::now(kernel);
        self.account_reading(trigger, cost, ended);
        let good = self.reader.last_good().filter(|began| *began >= now);
        if let Some(began) = good {
            self.retry_waiting(true, began);
        }
        self.supervisor.reading_done(kernel, good.is_some(), ended);
    }

    fn account_reading(&mut self, trigger: Trigger, cost: Duration, now: Instant) {
        self.early.clear();
        self.read_often(now);
        if trigger == Trigger::Early {
            self.early.pay(cost, now);
        }
    }

    /// Takes in the destroy events that arrived.
    fn take_events(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let context = Context::new(&self.host, &self.watcher, &self.web, now);
        let (intake, early) = (&mut self.intake, &mut self.early);
        let (firewall, metrics) = (&mut self.commands.firewall, &mut self.metrics);
        let buffer = &mut self.netlink_buffer;
        let taken = self.watcher.take(kernel, buffer, now, |event| {
            early.request_at(intake.event(event, &context, firewall, metrics));
            context.host.is_own(event.remote.address)
        });
        let Some(taken) = taken else { return };
        metrics.add(metrics::DESTROY_EVENTS, taken.events);
        metrics.add(metrics::MALFORMED_EVENTS, taken.malformed);
        metrics.add(metrics::DESTROY_EVENT_OVERFLOWS, taken.overflows);
        if taken.overflows > 0 {
            early.request(now);
        }
        self.counters
            .after_events(intake.inbound_seen(), self.watcher.is_drained(), now);
    }

    /// Takes in the packets that came; those that may complete a scan are looked
    /// up next.
    #[inline(never)]
    fn take_packets(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let context = Context::new(&self.host, &self.watcher, &self.web, now);
        let (intake, firewall) = (&mut self.intake, &self.commands.firewall);
        let (buffer, metrics) = (&mut self.netlink_buffer, &mut self.metrics);
        let (opens, options) = (&mut self.opens, &self.options);
        let namespaces = &mut self.namespaces;
        self.witness
            .drain(kernel, buffer, metrics, now, &mut |packet, link| {
                if matches!(packet.kind, Kind::Syn | Kind::Fragment) {
                    namespaces.see_syn(packet, link, context.host, now);
                }
                if packet.kind != Kind::Fragment {
                    intake.probe(packet, &context, firewall);
                }
                // Where data decides, it gets the time to come.
                if packet.kind != Kind::Syn || options.require_silent {
                    return;
                }
                let (local, remote) = (&packet.destination, &packet.source);
                if let Some(source) = intake.suspect(local, remote, &context, firewall)
                    && let Some(ports) = intake.detector.ports_without(&source, local.port, now)
                {
                    opens.note(packet, source, ports, options.ports, now);
                }
            });
    }

    /// Takes in the events of other network namespaces that arrived.
    #[inline(never)]
    fn take_namespace_events(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let mut candidates = Candidates::new();
        let (buffer, metrics) = (&mut self.netlink_buffer, &mut self.metrics);
        let scene = Scene {
            host: &self.host,
            firewall: &self.commands.firewall,
            listeners: &self.intake.connections.listeners,
        };
        let namespaces = &mut self.namespaces;
        namespaces.receive(kernel, buffer, metrics, &scene, &mut candidates, now);
        if !candidates.is_empty() {
            // Each came in before its end, but may wait.
            loop {
                self.take_packets(kernel, now);
                if !self.witness.catches_up() {
                    break;
                }
            }
            self.judge(kernel, &candidates, now);
        }
    }

    #[inline(never)]
    fn judge(&mut self, kernel: &mut impl Kernel, candidates: &Candidates, now: Instant) {
        let memory = self.options.window.saturating_add(TURN_ROUND);
        let scene = Scene {
            host: &self.host,
            firewall: &self.commands.firewall,
            listeners: &self.intake.connections.listeners,
        };
        let knows_ways = self.facts.knows_links() && !self.witness.is_blind(memory, now);
        let (admission, detector) = (&mut self.intake.admission, &mut self.intake.detector);
        for event in candidates {
            let evidence = self
                .namespaces
                .judge(kernel, event, &scene, detector, knows_ways, now);
            if let Some(waiter) = evidence {
                let (source, port) = (waiter.source, waiter.local.port);
                self.intake.probes.sources.forget_port(source, port, now);
                admission.admit(&waiter, Port::Service, scene.firewall, detector, now);
            }
        }
    }

    /// Looks up connections that packets asked for.
    #[inline(never)]
    fn look_up_opens(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let context = Context::new(&self.host, &self.watcher, &self.web, now);
        let (intake, early) = (&mut self.intake, &mut self.early);
        let (firewall, metrics) = (&mut self.commands.firewall, &mut self.metrics);
        self.opens.look(now, &mut |open| {
            // It may be blocked by now.
            intake.suspect(&open.local, &open.remote, &context, firewall)?;
            let found =
                intake.look_up(kernel, open.local, open.remote, &context, firewall, metrics);
            match found {
                Some(found) => metrics.count(metrics::WITNESS_LOOKUPS.of(found)),
                // A reading shows what there is.
                None => early.request(now),
            }
            found
        });
    }

    /// Proves that events arrive, reads the settings again and finds out what
    /// --proc is.
    fn check_events(&mut self, kernel: &mut impl Kernel, now: Instant) {
        self.watcher.check_test(kernel, now);
        if self.watcher.is_check_due(now) {
            self.read_settings(kernel);
            let namespace = self.reader.namespace(kernel);
            self.watcher.check(kernel, namespace, now);
            if self.options.has_witness && self.watcher.is_own_namespace() {
                self.witness
                    .check(kernel, &self.options.proc_directory, now);
            }
            if self.watcher.is_own_namespace() && self.namespaces.check(kernel) {
                self.facts.refresh_links(now);
            }
        }
    }

    /// Reads /proc/net/snmp when due; connections that stayed unseen request a
    /// reading.
    fn check_counters(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if !self.counters.is_due(now) {
            return;
        }
        // The kernel counted the clients that wait at our own port.
        self.accept_waiting(kernel, now);
        self.retry_waiting(false, now);
        let seen = self.intake.inbound_seen();
        let (buffer, metrics) = (&mut self.netlink_buffer, &mut self.metrics);
        let period = if self.witness.is_up() {
            COUNTERS_PERIOD
        } else {
            COUNTERS_PERIOD_BLIND
        };
        let look = self
            .counters
            .look(kernel, buffer, metrics, seen, period, now);
        let received = self.counters.received();
        self.witness.check_rate(kernel, metrics, received, now);
        if look == Some(Look::Unseen) {
            self.early.request(now);
        }
        self.read_often(now);
    }

    /// Where readings are all there is.
    #[inline(never)]
    fn read_often(&mut self, now: Instant) {
        if self.watcher.lacks_events() {
            self.early.request(now.after(FAST_READING));
        }
    }

    /// One reading; whether tcp could be read.
    fn read(&mut self, kernel: &mut impl Kernel, trigger: Trigger) -> bool {
        let moment = Moment::read(kernel);
        let (now, calendar) = (moment.now, moment.calendar(kernel));
        self.metrics.clear(metrics::CONNECTIONS);
        let mut before = None;
        // With --once nothing follows that this is held against.
        if self.options.action == Action::Run {
            self.output
                .set_wait_budget(READING_WAIT_BUDGET, OUTPUT_WAIT_BUDGET);
            before = self.settle_counters(kernel);
            self.intake.admission.note_first_reading(now);
        }
        self.intake.begin_reading(
            self.watcher.is_own_namespace(),
            self.watcher.expects_events(),
        );
        let outcomes = self.read_rows(kernel, trigger, calendar, now);
        if outcomes.v6 == Outcome::Whole {
            self.commands.firewall.set_ipv6();
        }
        let is_v4_whole = outcomes.v4 == Outcome::Whole;
        let is_whole = is_v4_whole && outcomes.v6 != Outcome::Failed;
        if is_whole {
            self.intake.end_reading(kernel, now);
            if self.commands.is_container && self.watcher.is_own_namespace() {
                self.intake.log_if_alone(kernel);
            }
            self.count_missed(kernel, before, trigger);
            self.reader.note_good(now);
            let end = Moment::read(kernel).unix_nanoseconds;
            self.metrics
                .set(metrics::LAST_READING_TIMESTAMP_SECONDS, end);
        } else {
            self.metrics.count(metrics::READINGS_FAILED);
        }
        self.metrics.set(
            metrics::EVIDENCE_SOURCE_UP.of(EvidenceSource::Readings),
            is_whole,
        );
        self.metrics.count(metrics::READINGS);
        self.metrics.count(match trigger {
            Trigger::Scheduled => metrics::SCHEDULED_READINGS,
            Trigger::Early => metrics::EARLY_READINGS,
        });
        self.intake.detector.expire(now);
        self.intake.probes.sources.expire(now);
        if trigger == Trigger::Scheduled {
            self.end_list(kernel, is_v4_whole, calendar, now);
        }
        let duration = clock::now(kernel).since(now);
        self.metrics
            .observe(metrics::READING_DURATION_SECONDS, duration);
        is_v4_whole
    }

    /// The kernel's count that the rows are held against.
    fn settle_counters(&mut self, kernel: &mut impl Kernel) -> Option<u64> {
        let seen = self.intake.inbound_seen();
        let (buffer, metrics) = (&mut self.netlink_buffer, &mut self.metrics);
        self.counters.settle(kernel, buffer, metrics, seen)
    }

    #[inline(never)]
    fn read_rows(
        &mut self,
        kernel: &mut impl Kernel,
        trigger: Trigger,
        calendar: Calendar,
        now: Instant,
    ) -> PerFamily<Outcome> {
        let context = Context::new(&self.host, &self.watcher, &self.web, now);
        let (intake, early) = (&mut self.intake, &mut self.early);
        let (firewall, metrics) = (&mut self.commands.firewall, &mut self.metrics);
        let (reader, output) = (&mut self.reader, &mut self.output);
        let origin = match trigger {
            Trigger::Scheduled => RowOf::List,
            Trigger::Early => RowOf::EarlyReading,
        };
        PerFamily::from_fn(|family| {
            reader.read(kernel, family, |kernel, row| {
                let Some(socket) = row else {
                    metrics.count(metrics::MALFORMED_ROWS);
                    return;
                };
                metrics.count(metrics::ROWS.of(RowsFile::of(family)));
                let shown = intake.row(kernel, socket, origin, &context, firewall, metrics);
                if let Some(direction) = shown.listed {
                    let entry = Entry {
                        remote: socket.remote,
                        local: socket.local,
                        direction,
                    };
                    intake.list.print(kernel, output, calendar, &entry);
                }
                early.request_at(shown.reading);
            })
        })
    }

    /// After a whole reading that began at this count of the kernel's.
    fn count_missed(&mut self, kernel: &mut impl Kernel, before: Option<u64>, trigger: Trigger) {
        let Some(before) = before else { return };
        let seen = self.intake.inbound_seen();
        let (buffer, metrics) = (&mut self.netlink_buffer, &mut self.metrics);
        if !self.counters.is_started() {
            return self.counters.start_coverage(kernel, buffer, metrics, seen);
        }
        let now = clock::now(kernel);
        self.counters.after_reading(before, seen, now);
        // However long our turn did not come: nothing that waits is missed.
        if trigger == Trigger::Scheduled && self.watcher.is_drained() {
            let missed = self.counters.end_interval(before, seen, now);
            metrics.add(metrics::CONNECTIONS_MISSED, missed);
        }
    }

    fn end_list(
        &mut self,
        kernel: &mut impl Kernel,
        has_rows: bool,
        calendar: Calendar,
        now: Instant,
    ) {
        let (list, output) = (&mut self.intake.list, &mut self.output);
        let (firewall, host) = (&self.commands.firewall, &self.host);
        list.end(kernel, output, calendar, now, |entry| {
            firewall.is_blocked(host.source_of(entry.remote.address))
        });
        let standing = |family| {
            let number = metrics::CONNECTIONS.of(family, TcpState::Established);
            self.metrics.get(number)
        };
        let established = standing(Family::V4) + standing(Family::V6);
        if has_rows && list.is_empty(established) {
            output.bare(kernel, report::NO_CONNECTION);
        }
    }

    /// Looks again at what waits for its port.
    fn retry_waiting(&mut self, is_after_reading: bool, now: Instant) {
        let context = Context::new(&self.host, &self.watcher, &self.web, now);
        let (firewall, metrics) = (&self.commands.firewall, &mut self.metrics);
        let window = self.options.window;
        let reading =
            self.intake
                .retry_waiting(is_after_reading, window, &context, firewall, metrics);
        self.early.request_at(reading);
    }

    /// A client of our own port was accepted.
    #[inline(never)]
    fn see_client(&mut self, accepted: &Accepted, now: Instant) {
        let context = Context::new(&self.host, &self.watcher, &self.web, now);
        let (firewall, metrics) = (&mut self.commands.firewall, &mut self.metrics);
        self.intake.client(accepted, &context, firewall, metrics);
    }

    // What is answered.

    #[inline(never)]
    fn serve(
        &mut self,
        kernel: &mut impl Kernel,
        found: &[Interest],
        has_clients: bool,
        moment: Moment,
    ) {
        self.web.listen_when_due(kernel, moment.now);
        let cpu_before = clock::cpu_time(kernel);
        let resources = Resources {
            options: &self.options,
            host: &self.host,
            reader: &self.reader,
            watcher: &self.watcher,
            witness: &self.witness,
            namespaces: &self.namespaces,
            intake: &self.intake,
            commands: &self.commands,
            lines_dropped: self.output.dropped(),
        };
        self.web
            .service_clients(kernel, found, &mut self.metrics, &resources, moment);
        if self.web.may_accept(has_clients) {
            self.accept_clients(kernel, moment.now);
        }
        self.web.close_clients(kernel, moment);
        let cost = clock::cpu_time_since(kernel, cpu_before);
        self.web.pay(cost, moment.now);
    }

    /// Says what a minute held back and what a day brought, when they are over.
    fn say_counts(&mut self, kernel: &mut impl Kernel, now: Instant) {
        self.output.end_minute(kernel, now);
        if self.output.ends_day(now) {
            let standing = self.commands.firewall.standing() as u64;
            self.output.say_day(kernel, &self.metrics, standing);
        }
    }

    /// Accepts all of a burst of clients that wait, however few came lately.
    fn accept_waiting(&mut self, kernel: &mut impl Kernel, now: Instant) {
        self.web.expect_burst();
        self.accept_clients(kernel, now);
    }

    fn accept_clients(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let mut left = self.web.begin_burst(kernel, now);
        while let Some(client) = &self.web.accept(kernel, &mut self.metrics, &mut left, now) {
            self.see_client(client, now);
        }
    }

    /// The last turn: what stands is said, the firewall gets what is left of our
    /// last second.
    fn end(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.supervisor.stopping(kernel);
        self.end_commands(kernel);
        let standing = self.commands.firewall.standing() as u64;
        self.output.say_held_back(kernel);
        if standing > 0 {
            let mut line = Line::new();
            report::exit(&mut line, standing, &self.commands.advice());
            self.output.line(kernel, &line);
        }
        self.output
            .set_wait_budget(OUTPUT_WAIT_BUDGET, OUTPUT_WAIT_BUDGET);
        self.output.finish(kernel);
        Flow::Exit(0)
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self::new()
    }
}
