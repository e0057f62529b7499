//! The daemon: owns every table and ties the stages together. The only place
//! that knows everybody, logs, and decides about EINTR and EAGAIN.

mod admission;
mod blocking;
mod destroying;
mod facts;
mod handshakes;
mod instance;
pub(crate) mod output;
mod procfs;
mod reading;
mod resources;
mod start;
mod supervisor;
mod tools;
mod watching;
mod web;

use heapless::Vec;

use crate::connections;
use crate::detector;
use crate::firewall::{self, iptables::Rule};
use crate::host::Host;
use crate::kernel::{Child, Descriptor, Interest, Invocation, Kernel, Signal};
use crate::limits::{
    BLOCKS, CONNECTIONS, HTTP_CLIENTS, LISTENERS, ONE_SHOT_PATIENCE, OUTPUT_BUFFER,
    OUTPUT_PATIENCE, SOURCES, index_size,
};
use crate::metrics::{Metrics, Trigger};
use crate::netlink::RECEIVE_BUFFER;
use crate::options::{Action, Options, write_help, write_version};
use crate::proc_net_tcp::RowReader;
use crate::report;
use crate::time::{Calendar, Instant};
use crate::tools::healthcheck;
use admission::Admission;
use destroying::Destroyer;
use facts::HostFacts;
use handshakes::Handshakes;
use instance::InstanceLock;
use output::{Output, log_error};
use procfs::local_port_range;
use reading::Files;
use resources::Resources;
use supervisor::Supervisor;
use watching::Watch;
use web::Web;

/// What shall happen after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Call `turn` again.
    Continue,
    /// End the process with this exit status.
    Exit(u8),
}

/// Descriptors of our own beside the clients: signals, destroy events, events of
/// the host, listener, standard output, and a child's two.
const OWN_INTERESTS: usize = 7;
const INTERESTS: usize = HTTP_CLIENTS + OWN_INTERESTS;

type Connections = connections::Connections<
    CONNECTIONS,
    { index_size(CONNECTIONS) },
    LISTENERS,
    { index_size(LISTENERS) },
>;
type Detector = detector::Detector<SOURCES, { index_size(SOURCES) }>;
type Firewall = firewall::Firewall<BLOCKS, { index_size(BLOCKS) }>;
type Interests = Vec<Interest, INTERESTS>;

/// All state of the program; `const`-constructible so that it lies in .bss.
pub struct Daemon {
    options: Options,
    host: Host,
    facts: HostFacts,
    connections: Connections,
    detector: Detector,
    admission: Admission,
    firewall: Firewall,
    metrics: Metrics,
    web: Web,
    output: Output,

    files: Files,
    rows: RowReader,
    watch: Watch,
    handshakes: Handshakes,
    supervisor: Supervisor,
    instance: InstanceLock,
    next_reading: Instant,
    last_scheduled: Instant,
    last_good_reading: Instant,
    listed: u64,

    netlink_buffer: [u8; RECEIVE_BUFFER],
    destroyer: Destroyer,
    has_said_unknown: bool,
    has_named_way_out: bool,

    invocation: Invocation,
    /// What --list found.
    listing: Vec<Rule, BLOCKS>,
    child: Option<Child>,
    child_started: Instant,
    /// The child closed its standard output, its standard error: always ready
    /// to poll, and nothing to wait for.
    child_has_closed: [bool; 2],
    child_buffer: [u8; OUTPUT_BUFFER],

    is_terminating: bool,
}

impl Daemon {
    /// A daemon before its start.
    pub const fn new() -> Self {
        Self {
            options: Options::new(),
            host: Host::new(),
            facts: HostFacts::new(),
            connections: Connections::new(),
            detector: Detector::new(),
            admission: Admission::new(),
            firewall: Firewall::new(),
            metrics: Metrics::new(),
            web: Web::new(),
            output: Output::new(),
            files: Files::new(),
            rows: RowReader::new(),
            watch: Watch::new(),
            handshakes: Handshakes::new(),
            supervisor: Supervisor::new(),
            instance: InstanceLock::new(),
            next_reading: Instant::BOOT,
            last_scheduled: Instant::BOOT,
            last_good_reading: Instant::BOOT,
            listed: 0,
            netlink_buffer: [0; RECEIVE_BUFFER],
            destroyer: Destroyer::new(),
            has_said_unknown: false,
            has_named_way_out: false,
            invocation: Invocation::new(),
            listing: Vec::new(),
            child: None,
            child_started: Instant::BOOT,
            child_has_closed: [false; 2],
            child_buffer: [0; OUTPUT_BUFFER],
            is_terminating: false,
        }
    }

    /// Reads the command line (without the program's name) and the environment,
    /// and does what they ask for: a daemon is opened for its turns.
    pub fn start<'a>(
        &mut self,
        kernel: &mut impl Kernel,
        arguments: impl Iterator<Item = &'a [u8]>,
    ) -> Flow {
        let parsed = self
            .options
            .parse_into(arguments, |name| kernel.environment(name));
        if let Some(line) = parsed.err().map(|error| error.line()) {
            kernel.write_error(line.as_bytes());
            return start::USAGE;
        }
        self.metrics.start_unix_nanoseconds = kernel.realtime();
        self.invocation.root = self.options.exec_root.clone();
        match self.options.action {
            Action::Help => start::print(kernel, &mut self.output, write_help),
            Action::Version => start::print(kernel, &mut self.output, write_version),
            Action::Once => self.once(kernel),
            Action::Run => self.run(kernel),
            Action::List => self.list_blocks(kernel),
            Action::Unblock(target) => self.unblock(kernel, target),
            Action::Healthcheck => {
                let (address, buffer) = (self.options.listen, &mut self.child_buffer);
                Flow::Exit(healthcheck::run(kernel, address, buffer))
            }
        }
    }

    /// One reading and every scan that is visible in it.
    #[inline(never)]
    fn once(&mut self, kernel: &mut impl Kernel) -> Flow {
        // Looking only: whatever else is asked for, nothing is blocked.
        self.options.dry_run = true;
        self.output
            .set_wait_budget(ONE_SHOT_PATIENCE, ONE_SHOT_PATIENCE);
        self.prepare(kernel);
        start::print_start(kernel, &mut self.output);
        self.facts
            .start(kernel, &mut self.host, &mut self.netlink_buffer);
        self.is_own_namespace(kernel);
        self.handshakes
            .read_setting(kernel, self.options.proc_directory.as_bytes());
        let could_read = self.reading(kernel, Trigger::Scheduled);
        while let Some(scan) = self.detector.next_scan() {
            let calendar = self.calendar(kernel);
            self.output
                .line(kernel, report::scan(calendar, &scan).as_bytes());
        }
        self.output.finish(kernel);
        Flow::Exit(u8::from(!could_read))
    }

    #[inline(never)]
    fn run(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.prepare(kernel);
        let may_block = start::may_block(kernel, &self.options, &mut self.instance);
        let Some(may_block) = may_block else {
            return Flow::Exit(1);
        };
        if let Some(address) = self.options.listen {
            self.web.start(kernel, address);
        }
        self.facts
            .start(kernel, &mut self.host, &mut self.netlink_buffer);
        if may_block {
            start::enable_firewall(kernel, &mut self.firewall, &self.options);
        }
        self.start_watching();
        self.supervisor.start(kernel);
        start::print_start(kernel, &mut self.output);
        self.next_reading = kernel.boottime();
        Flow::Continue
    }

    /// Secrets, paths, limits: what every kind of reading needs.
    fn prepare(&mut self, kernel: &mut impl Kernel) {
        let options = &self.options;
        let proc_directory = options.proc_directory.as_bytes();
        self.files.set_directory(proc_directory);
        self.connections.set_hash_key(kernel.hash_key());
        self.detector
            .configure(kernel.hash_key(), options.ports, options.window);
        self.metrics.interval = options.interval;
        start::protect(kernel, &mut self.host, options);
        let range = local_port_range(kernel, proc_directory);
        self.connections.set_local_port_range(range);
    }

    /// Waits for the next deadline or event and handles it.
    pub fn turn(&mut self, kernel: &mut impl Kernel) -> Flow {
        let found = self.wait(kernel);
        if is_ready(&found, kernel.signal_descriptor()) {
            self.take_signals(kernel);
        }
        self.watch_child(kernel);
        self.update_facts(kernel, &found);
        if self
            .watch
            .socket
            .is_some_and(|socket| is_ready(&found, socket))
        {
            self.take_events(kernel);
        }
        self.read_when_due(kernel);
        self.judge(kernel);
        self.run_firewall(kernel);
        self.serve(kernel, &found);
        self.instance.drain(kernel);
        self.output.flush(kernel);
        if self.is_terminating {
            self.end(kernel)
        } else {
            Flow::Continue
        }
    }

    /// Poll interest is computed from state each turn; the sleep is the nearest
    /// deadline of any stage.
    fn wait(&mut self, kernel: &mut impl Kernel) -> Interests {
        let now = kernel.boottime();
        let mut interests = self.interests(kernel, now);
        let deadline = self.deadline(now);
        let timeout = (deadline != Instant::NEVER).then(|| now.until(deadline));
        if kernel.poll(&mut interests, timeout).is_err() {
            // Interrupted, or short of memory: what is due is done anyway.
            for interest in &mut interests {
                (interest.is_readable, interest.is_writable) = (false, false);
            }
        }
        interests
    }

    fn interests(&self, kernel: &mut impl Kernel, now: Instant) -> Interests {
        let mut interests = Interests::new();
        let mut add = |interest| {
            let _ = interests.push(interest);
        };
        add(Interest::read(kernel.signal_descriptor()));
        if self.output.is_waiting() {
            add(Interest::write(kernel.output_descriptor()));
        }
        if let Some(socket) = self.watch.events(now) {
            add(Interest::read(socket));
        }
        if let Some(socket) = self.facts.events(now) {
            add(Interest::read(socket));
        }
        for pipe in self.child_pipes() {
            add(Interest::read(pipe));
        }
        self.web.interests().for_each(add);
        interests
    }

    /// The child's pipes that are still open at its end.
    fn child_pipes(&self) -> impl Iterator<Item = Descriptor> + use<> {
        let pipes = self.child.map(|child| [child.output, child.errors]);
        let pipes = pipes.into_iter().flatten().zip(self.child_has_closed);
        pipes
            .filter(|(_, is_closed)| !is_closed)
            .map(|(pipe, _)| pipe)
    }

    fn deadline(&self, now: Instant) -> Instant {
        // The first reading waits for the first listing.
        let reading = if self.firewall.is_settled(now) {
            if self.detector.has_scan() {
                return now;
            }
            self.reading_deadline()
        } else {
            self.firewall.settled_at()
        };
        if self.is_destroying() {
            return now;
        }
        reading
            .min(self.firewall.deadline())
            .min(self.facts.deadline())
            .min(self.web.deadline())
    }

    fn take_signals(&mut self, kernel: &mut impl Kernel) {
        while let Some(signal) = kernel.next_signal() {
            match signal {
                Signal::Terminate => self.is_terminating = true,
                // `watch_child` asks for the child's end each turn.
                Signal::Child => {}
            }
        }
    }

    /// Takes in messages about the host.
    fn update_facts(&mut self, kernel: &mut impl Kernel, found: &[Interest]) {
        let now = kernel.boottime();
        let has_messages = self
            .facts
            .events(now)
            .is_some_and(|socket| is_ready(found, socket));
        if has_messages || now >= self.facts.deadline() {
            self.facts
                .take(kernel, &mut self.host, &mut self.netlink_buffer);
        }
        self.apply_facts(kernel);
    }

    /// Before a block.
    fn renew_facts(&mut self, kernel: &mut impl Kernel) {
        self.facts
            .renew(kernel, &mut self.host, &mut self.netlink_buffer);
        self.apply_facts(kernel);
    }

    /// Blocks of what came to be protected end at once.
    fn apply_facts(&mut self, kernel: &mut impl Kernel) {
        if self.host.take_growth() {
            self.firewall.release_protected(&self.host);
        }
        while self.firewall.is_enabled()
            && let Some(words) = self.facts.next_notice(&self.host)
        {
            self.complain(kernel, &[words]);
        }
    }

    /// Says one diagnostic on standard error.
    fn complain(&self, kernel: &mut impl Kernel, words: &[&[u8]]) {
        log_error(kernel, words);
    }

    #[inline(never)]
    fn calendar(&self, kernel: &mut impl Kernel) -> Calendar {
        let seconds = unix_seconds(kernel);
        kernel.calendar(seconds)
    }

    fn serve(&mut self, kernel: &mut impl Kernel, found: &[Interest]) {
        self.web.listen_when_due(kernel);
        let resources = Resources {
            has_events: self.has_events(),
            options: &self.options,
            connections: &self.connections,
            detector: &self.detector,
            firewall: &self.firewall,
            host: &self.host,
            lines_dropped: self.output.dropped(),
            last_good_reading: self.last_good_reading,
        };
        self.web
            .service_clients(kernel, found, &mut self.metrics, &resources);
        if self.web.may_accept(found) {
            self.accept_clients(kernel);
        }
        self.web.close_clients(kernel);
    }

    /// Accepts all of a burst of clients that wait, however few came lately.
    pub(super) fn accept_waiting(&mut self, kernel: &mut impl Kernel) {
        self.web.expect_burst();
        self.accept_clients(kernel);
    }

    fn accept_clients(&mut self, kernel: &mut impl Kernel) {
        let clients = self.web.accept(kernel, &mut self.metrics);
        for client in &clients {
            let now = kernel.boottime();
            self.see_client(client, now);
        }
    }

    /// The last turn: what stands is said, the firewall gets what is left of our
    /// last second.
    fn end(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.supervisor.stopping(kernel);
        self.end_firewall(kernel);
        let standing = self.firewall.standing();
        if standing > 0 {
            let line = report::exit(standing, self.options.exec_root.as_bytes());
            self.output.line(kernel, line.as_bytes());
        }
        self.output
            .set_wait_budget(OUTPUT_PATIENCE, OUTPUT_PATIENCE);
        self.output.finish(kernel);
        Flow::Exit(0)
    }
}

/// The wall clock, to be printed only.
fn unix_seconds(kernel: &mut impl Kernel) -> u64 {
    kernel.realtime() / 1_000_000_000
}

/// Whether poll(2) found something to read there.
fn is_ready(found: &[Interest], descriptor: Descriptor) -> bool {
    found
        .iter()
        .any(|interest| interest.descriptor == descriptor && interest.is_readable)
}

impl Default for Daemon {
    fn default() -> Self {
        Self::new()
    }
}
