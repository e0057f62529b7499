//! The daemon: owns every table and ties the stages together. The only place
//! that knows everybody, logs, and decides about EINTR and EAGAIN.

mod admission;
mod blocking;
mod destroying;
mod facts;
mod handshakes;
mod healthcheck;
mod instance;
mod output;
mod reading;
mod serving;
mod starting;
mod supervisor;
mod tools;
mod watching;

use heapless::Vec;

use crate::address::Endpoint;
use crate::connections::Connections;
use crate::detector;
use crate::exposition::Format;
use crate::firewall::{self, iptables::Rule};
use crate::host::{Host, Knowledge};
use crate::http::{BODY_ROOM, Server};
use crate::kernel::{Child, Descriptor, Interest, Invocation, Kernel, Signal};
use crate::limits::{
    BLOCKS, CONNECTIONS, HTTP_CLIENTS, LISTENERS, OUTPUT_BUFFER, OUTPUT_PATIENCE, SOURCES,
    index_size,
};
use crate::metrics::{EvidenceSource, Metrics, Table};
use crate::netlink::RECEIVE_BUFFER;
use crate::options::Options;
use crate::proc_net_tcp::RowReader;
use crate::report;
use crate::text::{Sink, Text};
use crate::time::{Calendar, Duration, Instant};
use admission::Admission;
use destroying::Destroyer;
use facts::HostFacts;
use handshakes::Handshakes;
use instance::InstanceLock;
use output::Output;
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
    firewall: Firewall,
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
    /// Descriptors to poll for more before a sleep, after a turn that accepted or
    /// answered. None on a single processor: a client of this host could not
    /// run meanwhile.
    looks: usize,
    has_served: bool,
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
            firewall: Firewall::new(),
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
            destroyer: Destroyer::new(),
            has_said_unknown: false,
            has_named_way_out: false,
            invocation: Invocation::new(),
            listing: Vec::new(),
            child: None,
            child_started: Instant::BOOT,
            child_has_closed: [false; 2],
            child_buffer: [0; OUTPUT_BUFFER],
            listen_address: Endpoint::BLANK,
            listener: None,
            next_listen: Instant::BOOT,
            next_accept: Instant::BOOT,
            accept_burst: 0,
            looks: 0,
            has_served: false,
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
        let has_served = core::mem::take(&mut self.has_served);
        let looks = if has_served && timeout != Some(Duration::ZERO) {
            self.looks.checked_div(interests.len()).unwrap_or(0)
        } else {
            0
        };
        let timeouts = core::iter::repeat_n(Some(Duration::ZERO), looks).chain([timeout]);
        for timeout in timeouts {
            let polled = kernel.poll(&mut interests, timeout);
            if polled.is_err() {
                // Interrupted, or short of memory: what is due is done anyway.
                for interest in &mut interests {
                    (interest.is_readable, interest.is_writable) = (false, false);
                }
            }
            if polled.is_err() || interests.iter().any(Interest::is_met) {
                break;
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
        for pipe in self.child_pipes() {
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
        let mut deadline = reading
            .min(self.firewall.deadline())
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
        if self.host.diverts() {
            self.admission.note_diversion(now);
        }
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
        let mut line: Text<512> = Text::new();
        line.put(b"tcpparser: ");
        for word in words {
            line.put(word);
        }
        line.put(b"\n");
        kernel.write_error(line.as_bytes());
    }

    fn calendar(&self, kernel: &mut impl Kernel) -> Calendar {
        let seconds = kernel.realtime() / 1_000_000_000;
        kernel.calendar(seconds)
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
                self.firewall.entries().0,
                self.firewall.evictions(),
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
        self.metrics.blocked_sources = self.firewall.standing() as u64;
        self.metrics.blocks_adopted = self.firewall.adopted();
        self.metrics.blocks_pending = self.firewall.pending() as u64;
        self.metrics.blocking_enabled = self.firewall.is_enabled();
        self.metrics.firewall_up = self.firewall.is_up();
        self.metrics.firewall_jump_first = self.firewall.is_jump_first();
        self.metrics.firewall_repairs = self.firewall.repairs();
        self.metrics.host_facts_known =
            !self.host.is_incomplete() && self.host.knowledge() != Knowledge::Lacking;
        self.metrics.output_lines_dropped = self.output.dropped();
        self.metrics.http_clients = self.server.len() as u64;
    }

    /// The last turn: what stands is said, the firewall gets what is left of our
    /// last second.
    fn end(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.tell_end(kernel);
        self.end_firewall(kernel);
        let standing = self.firewall.standing();
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
