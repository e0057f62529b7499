//! What tells of connections between two scheduled readings: destroy events
//! and the kernel's own count. Both hasten readings, within a share of the
//! processor.

use core::net::IpAddr;

use heapless::Vec;

use crate::address::{Endpoint, is_loopback};
use crate::connections::{Connection, Direction, Ending};
use crate::coverage::{Coverage, Look, TcpCounters, parse_snmp};
use crate::detector::{Data, Scan};
use crate::host::Host;
use crate::kernel::{Accepted, Descriptor, Errno, Kernel, Netlink, Path, RowsFile};
use crate::limits::{
    COUNTERS_AGAIN, COUNTERS_PERIOD, EARLY_READING_SAVINGS, EARLY_READING_SHARE, EVENTS_LATENESS,
    EVENTS_PER_TURN, EVENTS_REST, EVENTS_RETRY, FAST_READING, LIST_EXTRA, SELF_TEST_PATIENCE,
};
use crate::listeners::Port;
use crate::metrics;
use crate::netlink::Progress;
use crate::options::{Action, Show};
use crate::report;
use crate::sock_diag::{DiagSocket, Family, Handshake, dump_request, walk_events, walk_sockets};
use crate::text::{Sink, Text};
use crate::time::{Duration, Instant};
use crate::waiting::Waiter;

use super::Daemon;

/// A connection that was over before a scheduled reading.
#[derive(Clone, Copy)]
struct Extra {
    remote: Endpoint,
    local: Endpoint,
    is_inbound: bool,
}

/// State between readings; all bytes zero when new.
pub(super) struct Watch {
    pub(super) socket: Option<Descriptor>,
    /// Events arrive in this network namespace, and it is the one we read.
    is_wanted: bool,
    is_up: bool,
    has_said_down: bool,
    next_check: Instant,
    /// The port whose event the self-test waits for; 0 for none.
    test_port: u16,
    test_deadline: Instant,
    /// Events may wait until then: the last were of connections within the host,
    /// which are counted and no more. BOOT for no rest.
    rest_until: Instant,
    /// All events that the kernel had were taken in.
    is_drained: bool,

    snmp: Option<Descriptor>,
    snmp_path: Path,
    next_counters: Instant,
    counters: TcpCounters,
    coverage: Coverage,
    /// When the last interval ended that was held against the kernel's count.
    interval_ended: Instant,
    /// Until when events belong to the last such reading; BOOT for no more.
    late_until: Instant,

    /// When an early reading is wanted; BOOT for not at all.
    early: Instant,
    savings: Duration,
    saved_at: Instant,

    extras: Vec<Extra, LIST_EXTRA>,
    more_extras: u64,
    buffer: [u8; WATCH_BUFFER],
}

/// Bytes of one event (a message of some 400) or of /proc/net/snmp.
const WATCH_BUFFER: usize = 4_096;

impl Watch {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            is_wanted: false,
            is_up: false,
            has_said_down: false,
            next_check: Instant::BOOT,
            test_port: 0,
            test_deadline: Instant::BOOT,
            rest_until: Instant::BOOT,
            is_drained: false,
            snmp: None,
            snmp_path: Path::new(),
            next_counters: Instant::BOOT,
            counters: TcpCounters {
                passive_opens: 0,
                resets_sent: 0,
            },
            coverage: Coverage::new(),
            interval_ended: Instant::BOOT,
            late_until: Instant::BOOT,
            early: Instant::BOOT,
            savings: Duration::ZERO,
            saved_at: Instant::BOOT,
            extras: Vec::new(),
            more_extras: 0,
            buffer: [0; WATCH_BUFFER],
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        let mut deadline = self.next_counters.min(self.next_check);
        if self.test_port != 0 {
            deadline = deadline.min(self.test_deadline);
        }
        for wanted in [self.early, self.rest_until] {
            if wanted != Instant::BOOT {
                deadline = deadline.min(wanted);
            }
        }
        deadline
    }

    /// The socket of destroy events, where they are waited for.
    pub(super) fn events(&self, now: Instant) -> Option<Descriptor> {
        self.socket.filter(|_| now >= self.rest_until)
    }

    /// Whether what netlink tells is of the network namespace that we read.
    pub(super) fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// Whether destroy events arrive, or are being tested.
    pub(super) fn expects_events(&self) -> bool {
        self.is_up || self.test_port != 0
    }

    /// Whether a local address is one where listeners of every address accept.
    /// Those of another network namespace nobody knows.
    pub(super) fn is_local(&self, host: &Host, address: IpAddr) -> bool {
        !self.is_wanted || host.is_incomplete() || host.is_own(address)
    }

    /// Wants an early reading at `when`.
    pub(super) fn hasten(&mut self, when: Instant) {
        if self.early == Instant::BOOT || when < self.early {
            self.early = when;
        }
    }

    /// Whether readings are all there is, though there should be events.
    fn reads_faster(&self) -> bool {
        self.is_wanted && !self.is_up && self.test_port == 0
    }

    /// Whether an early reading is due and there are savings to pay for it;
    /// else it waits until there are.
    pub(super) fn is_early_due(&mut self, now: Instant) -> bool {
        if self.early == Instant::BOOT || now < self.early {
            return false;
        }
        let earned = now.since(self.saved_at).as_nanos() / EARLY_READING_SHARE as u64;
        let savings = self.savings.saturating_add(Duration::from_nanos(earned));
        self.savings = savings.min(EARLY_READING_SAVINGS);
        self.saved_at = now;
        if self.savings == Duration::ZERO {
            self.early = now.after(COUNTERS_PERIOD);
            return false;
        }
        true
    }

    /// A reading was made and cost that much of a processor. An early one may
    /// overdraw the savings; the next waits until the debt is paid.
    pub(super) fn reading_done(&mut self, now: Instant, cost: Duration, is_early: bool) {
        self.early = Instant::BOOT;
        if self.reads_faster() {
            self.hasten(now.after(FAST_READING));
        }
        if !is_early {
            return;
        }
        let debt = cost.saturating_sub(self.savings);
        self.savings = self.savings.saturating_sub(cost);
        self.saved_at = now.after(debt.saturating_mul(EARLY_READING_SHARE as u64));
    }
}

impl Daemon {
    /// Prepares what turns need.
    pub(super) fn start_watching(&mut self) {
        self.watch
            .snmp_path
            .put(self.options.proc_directory.as_bytes());
        self.watch.snmp_path.put(b"/net/snmp");
        self.watch.savings = EARLY_READING_SAVINGS;
    }

    /// Whether what is read is of the network namespace whose events we get.
    /// A file that is not there yet says nothing.
    fn check_namespace(&mut self, kernel: &mut impl Kernel) {
        if !self.is_own_namespace(kernel) && kernel.inode(&self.files.tcp.path).is_ok() {
            self.events_down(kernel, b"--proc is of another network namespace");
        }
    }

    /// Notes whether it is, and so whether its addresses are known.
    pub(super) fn is_own_namespace(&mut self, kernel: &mut impl Kernel) -> bool {
        let ours = kernel.inode(&Path::from_bytes(b"/proc/self/net/tcp"));
        self.watch.is_wanted = ours.is_err() || ours == kernel.inode(&self.files.tcp.path);
        self.watch.is_wanted
    }

    /// Takes in the destroy events that arrived, at most `EVENTS_PER_TURN`.
    pub(super) fn take_events(&mut self, kernel: &mut impl Kernel) {
        let Some(socket) = self.watch.socket else {
            return;
        };
        let mut batch: Vec<DiagSocket, 16> = Vec::new();
        let (mut has_own, mut has_foreign) = (false, false);
        self.watch.is_drained = false;
        for _ in 0..EVENTS_PER_TURN {
            match kernel.receive(socket, &mut self.watch.buffer) {
                Ok(count) => {
                    let bytes = self.watch.buffer.get(..count).unwrap_or_default();
                    let malformed = walk_events(bytes, |event| {
                        let _ = batch.push(event);
                    });
                    self.metrics.malformed_events += malformed as u64;
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    self.metrics.destroy_event_overflows += 1;
                    let now = kernel.boottime();
                    self.watch.hasten(now);
                }
                // EAGAIN: there are no more.
                Err(_) => {
                    self.watch.is_drained = true;
                    break;
                }
            }
            for event in &batch {
                self.metrics.destroy_events += 1;
                let is_own = self.host.is_own(event.remote.address);
                has_own |= is_own;
                has_foreign |= !is_own;
                self.take_event(kernel, event);
            }
            batch.clear();
        }
        self.watch.rest_until = if has_own && !has_foreign {
            kernel.boottime().after(EVENTS_REST)
        } else {
            Instant::BOOT
        };
        if self.watch.late_until != Instant::BOOT {
            let seen = self.connections.inbound_seen();
            self.watch.coverage.after_events(seen);
            // However late our turn comes, all that waits is taken in.
            if self.watch.is_drained && kernel.boottime() >= self.watch.late_until {
                self.watch.late_until = Instant::BOOT;
            }
        }
    }

    fn take_event(&mut self, kernel: &mut impl Kernel, event: &DiagSocket) {
        let now = kernel.boottime();
        let (local, remote) = (event.local, event.remote);
        if self.is_self_test(event) {
            return self.events_up();
        }
        // A listener's own end, or a socket that never connected.
        if remote.address.is_unspecified() {
            return;
        }
        let ending = self.ending(local, remote, event.is_disconnected, now);
        if self.host.is_own(remote.address) {
            return;
        }
        let source = self.host.source_of(remote.address);
        let mut waiter = Waiter::new(source, local, remote, now);
        waiter.data = data(event);
        waiter.is_unnamed = event.is_disconnected;
        waiter.is_proven = self.handshakes.is_proof(event.handshake);
        let (port, connection) = match ending {
            Ending::Known(connection)
                if connection.handshake == Handshake::Proven
                    || connection.port == Port::Unknown =>
            {
                return self.known_end(event, connection);
            }
            // Its rows proved nothing; perhaps its end does.
            Ending::Known(connection) => (connection.port, Some(connection)),
            Ending::Unseen(connection) => {
                // A forged one, too: PassiveOpens has it (net/ipv4/tcp_minisocks.c,
                // tcp_create_openreq_child).
                self.count_new(connection, local);
                (connection.port, Some(connection))
            }
            Ending::Unnamed(port) => (port, None),
            Ending::Unknown => {
                waiter.is_counted = false;
                (Port::Unknown, None)
            }
        };
        if !waiter.is_proven {
            self.metrics.events_unproven += 1;
            if waiter.is_counted {
                return;
            }
        }
        if let Some(connection) = connection {
            waiter.first_seen = connection.first_seen;
            self.connections
                .set_handshake(connection, Handshake::Proven);
            self.list_later(local, remote, connection);
        }
        if waiter.is_counted {
            self.firewall.doubt(source, now);
        }
        self.admit(&waiter, port, now);
    }

    /// Takes note of the end of a connection.
    pub(super) fn ending(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        is_disconnected: bool,
        now: Instant,
    ) -> Ending {
        let (watch, host) = (&self.watch, &self.host);
        let is_own = &|| watch.is_local(host, local.address);
        if is_disconnected {
            self.connections.disconnected(local, is_own, now)
        } else {
            self.connections.ended(local, remote, is_own, now)
        }
    }

    /// The end of what was seen before refreshes nothing; it tells whether
    /// data was sent.
    fn known_end(&mut self, event: &DiagSocket, connection: Connection) {
        if self.host.is_own(event.remote.address) {
            return;
        }
        self.list_later(event.local, event.remote, connection);
        if connection.direction == Direction::Inbound {
            let source = self.host.source_of(event.remote.address);
            let (port, data) = (event.local.port, data(event));
            self.detector.note_data(source, port, data);
            self.admission.note_data(source, port, data);
        }
    }

    /// A client of our own port is seen before any row or event tells of it:
    /// under load there always is one that neither told of yet, and the kernel's
    /// count alone would bring reading after reading.
    pub(super) fn see_client(&mut self, accepted: &Accepted, now: Instant) {
        let (local, remote) = (accepted.local, accepted.remote);
        // Another network namespace is read.
        if !self.watch.is_wanted || local.port == 0 {
            return;
        }
        let Some(connection) = self.connections.accepted(local, remote, now) else {
            return;
        };
        if self.host.is_own(remote.address) {
            return;
        }
        self.count_new(connection, local);
        let source = self.host.source_of(remote.address);
        self.firewall.doubt(source, now);
    }

    /// Counts a connection that was seen for the first time.
    pub(super) fn count_new(&mut self, connection: Connection, local: Endpoint) {
        let direction = match connection.direction {
            Direction::Inbound => metrics::Direction::In,
            Direction::Outbound => metrics::Direction::Out,
        };
        let family = if local.address.is_ipv4() {
            metrics::Family::V4
        } else {
            metrics::Family::V6
        };
        self.metrics.new_connections.count(direction, family);
    }

    /// A connection that no scheduled reading can show any more joins the next
    /// list.
    pub(super) fn list_later(&mut self, local: Endpoint, remote: Endpoint, connection: Connection) {
        let source = self.host.source_of(remote.address);
        if connection.listed || self.options.show == Show::Scans || self.firewall.is_blocked(source)
        {
            return;
        }
        self.connections.set_listed(connection);
        let extra = Extra {
            remote,
            local,
            is_inbound: connection.direction == Direction::Inbound,
        };
        if self.watch.extras.push(extra).is_err() {
            self.watch.more_extras += 1;
        }
    }

    /// Prints what joined the list; how many lines.
    pub(super) fn list_extras(&mut self, kernel: &mut impl Kernel) -> u64 {
        let calendar = self.calendar(kernel);
        let extras = core::mem::take(&mut self.watch.extras);
        for extra in &extras {
            // Blocked since it was kept.
            let source = self.host.source_of(extra.remote.address);
            if self.firewall.is_blocked(source) {
                continue;
            }
            let direction = if extra.is_inbound {
                Direction::Inbound
            } else {
                Direction::Outbound
            };
            let line = report::connection(calendar, extra.remote, direction, extra.local);
            self.output.line(kernel, line.as_bytes());
        }
        let more = core::mem::take(&mut self.watch.more_extras);
        if more > 0 {
            self.output.line(kernel, report::more(more).as_bytes());
        }
        extras.len() as u64 + more
    }

    // The self-test.

    /// Opens the event socket and proves that events arrive; reads
    /// tcp_fastopen and finds out what --proc is. At start, and each `EVENTS_RETRY`.
    pub(super) fn check_events(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if self.watch.test_port != 0 && now >= self.watch.test_deadline {
            // A late one proves as much.
            self.watch.test_deadline = Instant::NEVER;
            self.events_down(kernel, b"the kernel sends none");
        }
        if now < self.watch.next_check {
            return;
        }
        self.watch.next_check = now.after(EVENTS_RETRY);
        self.handshakes
            .read_setting(kernel, self.options.proc_directory.as_bytes());
        self.read_local_port_range(kernel);
        self.check_namespace(kernel);
        if !self.watch.is_wanted || self.watch.is_up {
            return;
        }
        if self.watch.socket.is_none() {
            self.watch.socket = kernel.netlink(Netlink::DestroyEvents).ok();
        }
        let port = self
            .watch
            .socket
            .and_then(|_| kernel.refused_connect().ok());
        match port {
            Some(port) => {
                self.watch.test_port = port;
                self.watch.test_deadline = now.after(SELF_TEST_PATIENCE);
            }
            None => self.events_down(kernel, b"no socket for them, or no loopback to test them"),
        }
    }

    fn is_self_test(&self, event: &DiagSocket) -> bool {
        self.watch.test_port != 0
            && event.local.port == self.watch.test_port
            && is_loopback(event.remote.address)
    }

    fn events_up(&mut self) {
        self.watch.test_port = 0;
        self.watch.is_up = true;
        self.watch.has_said_down = false;
    }

    fn events_down(&mut self, kernel: &mut impl Kernel, why: &[u8]) {
        if !core::mem::replace(&mut self.watch.has_said_down, true) {
            let words = b"; short connections are seen only where readings catch them";
            self.complain(kernel, &[b"no destroy events: ", why, words]);
        }
    }

    /// Whether destroy events are evidence now.
    pub(super) fn has_events(&self) -> bool {
        self.watch.is_up
    }

    // The kernel's own count.

    /// Reads /proc/net/snmp when due; connections that nobody saw hasten a
    /// reading.
    pub(super) fn watch_counters(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if now < self.watch.next_counters {
            return;
        }
        self.watch.next_counters = now.after(COUNTERS_PERIOD);
        // The kernel counted who waits at our own port.
        self.accept_waiting(kernel);
        self.retry_waiting(false, now);
        let Some(counters) = self.read_counters(kernel) else {
            return;
        };
        let (opens, seen) = (counters.passive_opens, self.connections.inbound_seen());
        self.watch.coverage.settle(opens, seen);
        match self.watch.coverage.look(opens, seen) {
            Look::AllSeen => {}
            Look::Again => self.watch.next_counters = now.after(COUNTERS_AGAIN),
            Look::Unseen => self.watch.hasten(now),
        }
        if self.watch.reads_faster() {
            self.watch.hasten(now.after(FAST_READING));
        }
    }

    fn read_counters(&mut self, kernel: &mut impl Kernel) -> Option<TcpCounters> {
        let (file, is_kept) = match self.watch.snmp {
            Some(file) => (file, true),
            None => match kernel.open_rows(&self.watch.snmp_path).ok()? {
                RowsFile::Procfs(file) => (file, true),
                RowsFile::Regular(file) => (file, false),
            },
        };
        self.watch.snmp = is_kept.then_some(file);
        let counters = self.read_snmp(kernel, file);
        if !is_kept || counters.is_none() {
            kernel.close(file);
            self.watch.snmp = None;
        }
        let counters = counters?;
        self.metrics.resets_sent = counters.resets_sent;
        self.watch.counters = counters;
        Some(counters)
    }

    fn read_snmp(&mut self, kernel: &mut impl Kernel, file: Descriptor) -> Option<TcpCounters> {
        kernel.rewind(file).ok()?;
        let mut text: Text<WATCH_BUFFER> = Text::new();
        loop {
            match kernel.read(file, &mut self.watch.buffer) {
                Ok(0) => return parse_snmp(text.as_bytes()),
                Ok(count) => text.put(self.watch.buffer.get(..count).unwrap_or_default()),
                Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Right before a reading's rows, with every event taken in: the counter
    /// they are held against.
    pub(super) fn settled_counters(&mut self, kernel: &mut impl Kernel) -> Option<TcpCounters> {
        if self.options.action == Action::Once {
            return None;
        }
        let counters = self.read_counters(kernel)?;
        let seen = self.connections.inbound_seen();
        self.watch.coverage.settle(counters.passive_opens, seen);
        Some(counters)
    }

    /// After a whole reading. The first one only shows what stood before.
    pub(super) fn coverage_after(
        &mut self,
        kernel: &mut impl Kernel,
        before: Option<TcpCounters>,
        is_scheduled: bool,
    ) {
        let Some(before) = before else { return };
        let (opens, seen) = (before.passive_opens, self.connections.inbound_seen());
        if !self.watch.coverage.is_started() {
            if let Some(after) = self.read_counters(kernel) {
                self.watch.coverage.start(after.passive_opens, seen);
            }
            return;
        }
        self.watch.coverage.after_reading(opens, seen);
        // What was on its way just now is not missing any more by then.
        self.watch.next_counters = kernel.boottime().after(EVENTS_LATENESS);
        // However long our turn did not come: nothing that waits is missed. And
        // on a busy host the kernel's worker sends its events late.
        let now = kernel.boottime();
        let is_over = now.since(self.watch.interval_ended) >= COUNTERS_PERIOD;
        let has_all = self.watch.is_drained || self.watch.socket.is_none();
        if is_scheduled && is_over && has_all {
            self.metrics.connections_missed += self.watch.coverage.end_interval(opens, seen);
            self.watch.interval_ended = now;
            self.watch.late_until = now.after(EVENTS_LATENESS);
        }
    }

    // Data.

    /// Looks at the suspect's sockets that still stand: rows do not tell
    /// whether data was sent.
    pub(super) fn look_for_data(&mut self, kernel: &mut impl Kernel, scan: &mut Scan) {
        if scan.data() == Data::Sent || !self.watch.is_wanted {
            return;
        }
        // An IPv4 peer of a dual-stack listener has an IPv6 socket.
        let families = [Family::V6, Family::V4];
        for family in families
            .into_iter()
            .take(if scan.source.is_ipv6() { 1 } else { 2 })
        {
            let request = dump_request(family, CONNECTED_STATES, scan.source);
            diag_dump(kernel, &mut self.netlink_buffer, &request, |socket| {
                scan.note_data(socket.local.port, data(&socket));
            });
        }
    }
}

/// Asks for sockets and hands each to `visit`; where that fails, none.
pub(super) fn diag_dump(
    kernel: &mut impl Kernel,
    buffer: &mut [u8],
    request: &[u8],
    mut visit: impl FnMut(DiagSocket),
) {
    diag_search(kernel, buffer, request, |socket| {
        visit(socket);
        true
    });
}

/// The same up to the message behind which `visit` wants no more: the kernel
/// walks its table while it is asked only.
pub(super) fn diag_search(
    kernel: &mut impl Kernel,
    buffer: &mut [u8],
    request: &[u8],
    mut visit: impl FnMut(DiagSocket) -> bool,
) {
    let mut wants_more = true;
    let Ok(socket) = kernel.netlink(Netlink::SockDiag) else {
        return;
    };
    let mut progress = Progress::More;
    if kernel.send(socket, request).is_err() {
        progress = Progress::Done;
    }
    while progress == Progress::More && wants_more {
        match kernel.receive(socket, buffer) {
            Ok(0) => break,
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                progress = walk_sockets(bytes, |socket| wants_more &= visit(socket));
            }
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    kernel.close(socket);
}

/// All states but LISTEN, SYN_SENT and SYN_RECV (bit n for state n of
/// net/tcp_states.h).
const CONNECTED_STATES: u32 = 0xfff & !(1 << 10 | 1 << 2 | 1 << 3 | 1);
/// Those, without TIME_WAIT and CLOSE: older kernels destroy full sockets only
/// (net/ipv4/tcp.c, tcp_abort).
pub(super) const FULL_STATES: u32 = CONNECTED_STATES & !(1 << 6 | 1 << 7);

fn data(socket: &DiagSocket) -> Data {
    match socket.received_data {
        None => Data::Unknown,
        Some(false) => Data::Silent,
        Some(true) => Data::Sent,
    }
}
