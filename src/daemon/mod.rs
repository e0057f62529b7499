//! The daemon: owns every table and ties the stages together. The only place
//! that knows everybody, logs, and decides about EINTR and EAGAIN.

mod admission;
pub(crate) mod commands;
mod destroyer;
mod facts;
mod handshakes;
mod healthcheck;
mod instance;
pub(crate) mod output;
mod reading;
mod serving;
pub(crate) mod starting;
mod supervisor;
mod watching;

use heapless::Vec;

use crate::address::Endpoint;
#[cfg(test)]
use crate::address::Network;
use crate::connections::Connections;
use crate::detector::{self, Scan};
use crate::exposition::Format;
use crate::firewall;
use crate::host::{Host, Knowledge};
use crate::http::{BODY_ROOM, Server};
use crate::kernel::{Descriptor, Interest, Kernel, Signal};
use crate::limits::{
    BLOCKS, CONNECTIONS, EXIT_GRACE, HTTP_CLIENTS, LISTENERS, OUTPUT_PATIENCE, SOURCES, index_size,
};
use crate::metrics::{EvidenceSource, Metrics, Table};
use crate::netlink::RECEIVE_BUFFER;
use crate::options::Options;
use crate::proc_net_tcp::RowReader;
use crate::report;
use crate::text::Text;
use crate::time::{Calendar, Instant};
use admission::Admission;
use commands::{Commands, Ended, Start};
use facts::HostFacts;
use handshakes::Handshakes;
use instance::InstanceLock;
use output::{Output, local_time, log_error};
use reading::Files;
use supervisor::Supervisor;
use watching::Watch;

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

/// Scans whose sockets are asked for data in one turn, since each takes the
/// kernel a walk over all sockets.
const DATA_LOOKS: usize = 8;

type Detector = detector::Detector<SOURCES, { index_size(SOURCES) }>;
type Firewall = firewall::Firewall<BLOCKS, { index_size(BLOCKS) }>;
type Interests = Vec<Interest, INTERESTS>;

/// All state of the program; `const`-constructible so that it lies in .bss.
pub struct Daemon {
    options: Options,
    host: Host,
    facts: HostFacts,
    connections:
        Connections<CONNECTIONS, { index_size(CONNECTIONS) }, LISTENERS, { index_size(LISTENERS) }>,
    detector: Detector,
    admission: Admission,
    commands: Commands,
    metrics: Metrics,
    server: Server<HTTP_CLIENTS>,
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
    has_said_unknown: bool,

    /// Where HTTP is served; port 0 for nowhere. No `Option`, whose `None` is
    /// not all zero bytes.
    listen_address: Endpoint,
    listener: Option<Descriptor>,
    next_listen: Instant,
    next_accept: Instant,
    /// Clients to accept in one turn: an accept that finds nobody costs as much
    /// as one that does, so more than one are tried only where turns before
    /// left some waiting.
    accept_burst: usize,
    /// Given up for a moment where no other descriptor is left.
    reserve: Option<Descriptor>,
    /// Clients that RLIMIT_NOFILE leaves room for.
    clients_max: u64,
    /// The metrics as they were written last, until when they are fresh, and
    /// in which format: scrapers that ask at once share them.
    exposed: Text<BODY_ROOM>,
    exposed_until: Instant,
    exposed_format: Format,

    started: u64,
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
            commands: Commands::new(),
            metrics: Metrics::new(),
            server: Server::new(),
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
            has_said_unknown: false,
            listen_address: Endpoint::BLANK,
            listener: None,
            next_listen: Instant::BOOT,
            next_accept: Instant::BOOT,
            accept_burst: 0,
            reserve: None,
            clients_max: 0,
            exposed: Text::new(),
            exposed_until: Instant::BOOT,
            exposed_format: Format::Text,
            started: 0,
            is_terminating: false,
        }
    }

    /// Waits for the next deadline or event and handles it.
    pub fn turn(&mut self, kernel: &mut impl Kernel) -> Flow {
        let found = self.wait(kernel);
        if is_ready(&found, kernel.signal_descriptor()) {
            self.take_signals(kernel);
        }
        self.watch_command(kernel);
        self.update_facts(kernel, &found);
        if self
            .watch
            .socket
            .is_some_and(|socket| is_ready(&found, socket))
        {
            self.take_events(kernel);
        }
        self.read_when_due(kernel);
        self.report_scans(kernel);
        self.run_commands(kernel);
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

    fn interests(&mut self, kernel: &mut impl Kernel, now: Instant) -> Interests {
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
        for pipe in self.commands.pipes() {
            add(Interest::read(pipe));
        }
        if let Some(listener) = self.listener.filter(|_| self.next_accept == Instant::BOOT) {
            add(Interest::read(listener));
        }
        for exchange in self.server.exchanges() {
            add(exchange.interest());
        }
        interests
    }

    fn deadline(&self, now: Instant) -> Instant {
        // The first reading waits for the first listing.
        let reading = if self.commands.firewall.is_settled(now) {
            if self.detector.has_scan() {
                return now;
            }
            self.reading_deadline()
        } else {
            self.commands.firewall.settled_at()
        };
        if self.commands.is_destroying() {
            return now;
        }
        let mut deadline = reading
            .min(self.commands.firewall.deadline())
            .min(self.facts.deadline())
            .min(self.server.deadline());
        if self.listen_address.port != 0 && self.listener.is_none() {
            deadline = deadline.min(self.next_listen);
        }
        if self.next_accept != Instant::BOOT {
            deadline = deadline.min(self.next_accept);
        }
        deadline
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
            self.commands.firewall.release_protected(&self.host);
        }
        while self.commands.firewall.is_enabled()
            && let Some(words) = self.facts.next_notice(&self.host)
        {
            self.complain(kernel, &[words]);
        }
    }

    /// Says one diagnostic on standard error.
    fn complain(&self, kernel: &mut impl Kernel, words: &[&[u8]]) {
        log_error(kernel, words);
    }

    fn calendar(&self, kernel: &mut impl Kernel) -> Calendar {
        local_time(kernel)
    }

    /// Reports each new scan and wants its source blocked.
    fn report_scans(&mut self, kernel: &mut impl Kernel) {
        // Which sources are blocked already is known only after the first listing.
        if !self.commands.firewall.is_settled(kernel.boottime()) {
            return;
        }
        if self.detector.has_scan() && self.commands.firewall.is_enabled() {
            self.renew_facts(kernel);
        }
        let mut looks = 0;
        // Where data decides, the rest of a flood comes next turn.
        while looks < DATA_LOOKS || !self.options.require_silent {
            let Some(mut scan) = self.detector.next_scan() else {
                return;
            };
            if self.commands.firewall.is_blocked(scan.source) {
                self.detector.forget(scan.source);
                continue;
            }
            if looks < DATA_LOOKS {
                looks += 1;
                self.look_for_data(kernel, &mut scan);
            }
            self.report_scan(kernel, scan);
        }
    }

    fn report_scan(&mut self, kernel: &mut impl Kernel, mut scan: Scan) {
        if scan.local.is_unspecified() {
            scan.local = self.host.own_near(scan.source).unwrap_or(scan.local);
        }
        self.metrics.port_scans += 1;
        let line = report::scan(local_time(kernel), &scan);
        self.output.line(kernel, line.as_bytes());
        let is_wanted = self.commands.decide(
            kernel,
            &scan,
            &self.options,
            &self.host,
            &mut self.metrics,
            &mut self.output,
        );
        if is_wanted {
            self.detector.forget(scan.source);
        }
    }

    /// Starts the next firewall command, if one is due.
    fn run_commands(&mut self, kernel: &mut impl Kernel) {
        // First, since the next command may move on what is to be said.
        self.report_notices(kernel);
        if self.commands.is_idle() && self.commands.firewall.pending() > 0 {
            self.renew_facts(kernel);
        }
        let start = self.commands.start(kernel, &self.host);
        if start == Start::Failed {
            let ended = self.commands.not_started(kernel);
            self.command_ended(kernel, &ended);
        }
        self.report_notices(kernel);
        if start == Start::NotDue {
            let buffer = &mut self.netlink_buffer;
            self.commands
                .destroy_sockets(kernel, &self.host, buffer, &mut self.metrics);
        }
    }

    fn watch_command(&mut self, kernel: &mut impl Kernel) {
        if let Some(ended) = self.commands.watch(kernel) {
            self.command_ended(kernel, &ended);
        }
    }

    fn command_ended(&mut self, kernel: &mut impl Kernel, ended: &Ended) {
        self.renew_facts(kernel);
        self.commands.firewall.release_protected(&self.host);
        let (metrics, output) = (&mut self.metrics, &mut self.output);
        self.commands.report_end(kernel, ended, metrics, output);
    }

    fn report_notices(&mut self, kernel: &mut impl Kernel) {
        self.commands.report_notices(
            kernel,
            &mut self.detector,
            &mut self.metrics,
            &mut self.output,
            self.watch.is_wanted(),
        );
    }

    /// What is left to do at the end, within `EXIT_GRACE`: a running child ends,
    /// blocks that an operator has lifted meanwhile are missed, and a chain that
    /// became empty goes.
    fn end_commands(&mut self, kernel: &mut impl Kernel) {
        let deadline = kernel.boottime().after(EXIT_GRACE);
        self.await_command(kernel, deadline);
        self.commands.firewall.begin_end(kernel.boottime());
        while kernel.boottime() < deadline {
            self.run_commands(kernel);
            if self.commands.is_idle() {
                break;
            }
            self.await_command(kernel, deadline);
        }
        self.report_notices(kernel);
    }

    fn await_command(&mut self, kernel: &mut impl Kernel, deadline: Instant) {
        if let Some(ended) = self.commands.wait(kernel, deadline) {
            self.command_ended(kernel, &ended);
        }
    }

    /// Whether the last good reading is fresh: not older than three intervals.
    fn is_reading_well(&self, now: Instant) -> bool {
        self.last_good_reading != Instant::BOOT
            && now.since(self.last_good_reading) <= self.options.interval.saturating_mul(3)
    }

    /// A verdict out of nowhere, past every check but the last.
    #[cfg(test)]
    pub(crate) fn want_blocked(&mut self, source: Network, now: Instant) {
        let scan = Scan {
            source,
            local: source.address(),
            ports: crate::detector::Ports::from_slice(&[22, 25, 80, 445]).unwrap_or_default(),
            port_data: Vec::new(),
        };
        assert!(self.commands.firewall.block(&scan, now).is_ok());
    }

    /// The source that a peer's evidence is held against.
    #[cfg(test)]
    pub(crate) fn source_of(&self, peer: core::net::IpAddr) -> Network {
        self.host.source_of(peer)
    }

    /// Copies what the stages know into the gauges.
    fn update_gauges(&mut self) {
        let tables = [
            (
                Table::Connections,
                self.connections.remembered().0,
                self.connections.evictions(),
            ),
            (
                Table::Sources,
                self.detector.sources().0,
                self.detector.evictions(),
            ),
            (
                Table::Blocks,
                self.commands.firewall.entries().0,
                self.commands.firewall.evictions(),
            ),
            (
                Table::Listeners,
                self.connections.listeners.entries(),
                self.connections.listeners.evictions(),
            ),
        ];
        for (table, entries, evictions) in tables {
            self.metrics.table_entries.set(table, entries as u64);
            self.metrics.table_evictions.set(table, evictions);
        }
        let has_events = u64::from(self.has_events());
        self.metrics
            .evidence_source_up
            .set(EvidenceSource::DestroyEvents, has_events);
        self.metrics.blocked_sources = self.commands.firewall.standing() as u64;
        self.metrics.blocks_adopted = self.commands.firewall.adopted();
        self.metrics.blocks_pending = self.commands.firewall.pending() as u64;
        self.metrics.blocking_enabled = self.commands.firewall.is_enabled();
        self.metrics.firewall_up = self.commands.firewall.is_up();
        self.metrics.firewall_jump_first = self.commands.firewall.is_jump_first();
        self.metrics.firewall_repairs = self.commands.firewall.repairs();
        self.metrics.host_facts_known =
            !self.host.is_incomplete() && self.host.knowledge() != Knowledge::Lacking;
        self.metrics.output_lines_dropped = self.output.dropped();
        self.metrics.http_clients = self.server.len() as u64;
    }

    /// The last turn: what stands is said, the firewall gets what is left of our
    /// last second.
    fn end(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.tell_end(kernel);
        self.end_commands(kernel);
        let standing = self.commands.firewall.standing();
        if standing > 0 {
            let line = report::exit(standing, self.options.exec_root.as_bytes());
            self.output.line(kernel, line.as_bytes());
        }
        self.output.set_patience(OUTPUT_PATIENCE, OUTPUT_PATIENCE);
        self.output.finish(kernel);
        Flow::Exit(0)
    }
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
