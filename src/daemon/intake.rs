//! From what was seen to evidence: rows, destroy events and clients of our own
//! take the same way through the stages.

use crate::address::{Endpoint, Family, Network, is_loopback};
use crate::connections::{Connection, Direction, Ending, Sighting};
use crate::host::{Host, Protection};
use crate::kernel::{Accepted, Kernel};
use crate::limits::SERVICE_AGE;
use crate::listeners::Port;
use crate::metrics::{self, Found, Metrics};
use crate::options::Options;
use crate::packets::Packet;
use crate::proc_net_tcp::{Socket, TcpState};
use crate::sock_diag::{DiagSocket, Handshake};
use crate::table::HashKey;
use crate::time::{Duration, Instant, nearest};
use crate::waiting::Waiter;

use super::admission::Admission;
use super::diag::data;
use super::handshakes::Handshakes;
use super::list::{Entry, List};
use super::once::Once;
use super::output::log_words;
use super::procfs::is_first_namespace;
use super::watcher::Watcher;
use super::web::Web;
use super::{Connections, Detector, Firewall, Probes};

/// What is the same for all that is seen at one time.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) now: Instant,
    pub(super) host: &'a Host,
    /// What is read and received is of our own network namespace.
    pub(super) is_own_namespace: bool,
    /// Where our own listener listens.
    pub(super) own_listener: Option<Endpoint>,
}

impl<'a> Context<'a> {
    #[inline(never)]
    pub(super) fn new(host: &'a Host, watcher: &Watcher, web: &Web, now: Instant) -> Self {
        Self {
            now,
            host,
            is_own_namespace: watcher.is_own_namespace(),
            own_listener: web.own_listener(),
        }
    }

    /// Whether a local address is one where listeners of every address accept;
    /// those of another network namespace are not known.
    fn is_local(&self, local: &Endpoint) -> impl Fn() -> bool {
        move || {
            let is_any = !self.is_own_namespace || self.host.is_incomplete();
            is_any || self.host.is_own(local.address)
        }
    }

    /// Our own listener proves nothing about its clients: what scrapes us and
    /// three exporters is no scanner.
    fn is_own_listener(&self, local: &Endpoint) -> bool {
        self.own_listener.is_some_and(|own| {
            let is_at = own.address.is_unspecified() || own.address == local.address;
            self.is_own_namespace && own.port == local.port && is_at
        })
    }
}

/// Where a row was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RowOf {
    /// By the scheduled reading, which lists what stands.
    List,
    /// By an early one.
    EarlyReading,
    /// It was looked up by itself.
    LookUp,
}

/// What a row brings.
pub(super) struct Shown {
    /// Which way its connection goes, where that belongs into the list.
    pub(super) listed: Option<Direction>,
    /// When a reading is wanted.
    pub(super) reading: Option<Instant>,
}

impl Shown {
    const NOTHING: Self = Self {
        listed: None,
        reading: None,
    };
}

/// Everything on that way; all bytes zero when new. The largest table is the
/// last field.
#[repr(C)]
pub(super) struct Intake {
    unknown: Once,
    /// It was asked whether something else listens here.
    alone: Once,
    /// A listener that is neither ours nor on loopback was there.
    has_listener: bool,
    pub(super) handshakes: Handshakes,
    pub(super) list: List,
    pub(super) admission: Admission,
    pub(super) detector: Detector,
    pub(super) connections: Connections,
    pub(super) probes: Probes,
}

impl Intake {
    pub(super) const fn new() -> Self {
        Self {
            connections: Connections::new(),
            handshakes: Handshakes::new(),
            admission: Admission::new(),
            probes: Probes::new(),
            detector: Detector::new(),
            list: List::new(),
            unknown: Once::NEW,
            alone: Once::NEW,
            has_listener: false,
        }
    }

    /// Takes the secret and what the options say.
    pub(super) fn configure(&mut self, hash_key: HashKey, options: &Options) {
        self.connections.set_hash_key(hash_key);
        self.detector
            .configure(hash_key, options.ports, options.window);
        self.list.configure(options.show);
    }

    /// Starts a reading; `expects_events`: a connection that is gone has a
    /// destroy event.
    pub(super) fn begin_reading(&mut self, is_own_namespace: bool, expects_events: bool) {
        self.list.begin();
        self.connections.begin_reading();
        self.handshakes
            .begin_reading(is_own_namespace, expects_events);
    }

    /// Ends one that saw every row. A blind spot is logged, once.
    #[inline(never)]
    pub(super) fn end_reading(&mut self, kernel: &mut impl Kernel, now: Instant) {
        self.connections.end_reading(now);
        let has_unknown = self.connections.listeners.has_unknown();
        if self.unknown.say_while(has_unknown) {
            let words =
                b"more listeners of one address than fit; connections to the rest are no evidence";
            log_words(kernel, words);
        }
    }

    /// After the first reading of a container: it may have a network of its own,
    /// where there is no scan to be seen.
    pub(super) fn log_if_alone(&mut self, kernel: &mut impl Kernel) {
        if self.alone.say() && !self.has_listener && !is_first_namespace(kernel) {
            let words = b"nothing else listens in this container's own network: \
                to watch that of the host start it with --net=host";
            log_words(kernel, words);
        }
    }

    /// Inbound connections seen so far, which the kernel counts, too.
    pub(super) fn inbound_seen(&self) -> u64 {
        self.connections.inbound_seen()
    }

    /// A row of /proc/net/tcp.
    pub(super) fn row(
        &mut self,
        kernel: &mut impl Kernel,
        socket: &Socket,
        origin: RowOf,
        context: &Context,
        firewall: &mut Firewall,
        metrics: &mut Metrics,
    ) -> Shown {
        let (now, remote) = (context.now, socket.remote.address);
        if socket.state == TcpState::Listen {
            let is_of_no_service =
                is_loopback(socket.local.address) || context.is_own_listener(&socket.local);
            self.has_listener |= !is_of_no_service;
        }
        let is_local = &context.is_local(&socket.local);
        let (connection, is_opened) = match self.connections.observe(socket, is_local, now) {
            Sighting::Opened(connection) => (Some(connection), true),
            Sighting::Standing(connection) => (Some(connection), false),
            Sighting::Repeated => return Shown::NOTHING,
            Sighting::Other => (None, false),
        };
        if context.host.is_own(remote) {
            return Shown::NOTHING;
        }
        if origin != RowOf::LookUp {
            let family = Family::of(socket.local.address);
            metrics.count(metrics::CONNECTIONS.of(family, socket.state));
        }
        let Some(connection) = connection else {
            return Shown::NOTHING;
        };
        if is_opened {
            count_new(metrics, connection, &socket.local);
        }
        let source = context.host.source_of(remote);
        if firewall.is_blocked(source) {
            if is_opened {
                firewall.schedule_verify(source, now);
            }
            return Shown::NOTHING;
        }
        if is_opened && self.probes.sources.sources().0 > 0 {
            let port = socket.local.port;
            self.probes.sources.forget_port(source, port, now);
        }
        let is_listed = origin == RowOf::List && socket.state == TcpState::Established;
        let is_listed = is_listed && self.list.shows(connection);
        if is_listed {
            self.connections.set_listed(connection);
        }
        Shown {
            listed: is_listed.then_some(connection.direction),
            reading: self.admit_row(kernel, socket, connection, source, context, firewall),
        }
    }

    /// A packet that asks for a port. What our own side sends out is no probe,
    /// nor what may not be known for it.
    #[inline(never)]
    pub(super) fn probe(&mut self, packet: &Packet, context: &Context, firewall: &Firewall) {
        let (host, local, address) = (context.host, packet.destination, packet.source.address);
        let source = host.source_of(address);
        if firewall.is_blocked(source) {
            self.probes.of_blocked += 1;
            return;
        }
        let is_expected = if host.is_own(local.address) {
            context.is_own_listener(&local)
        } else {
            !host.is_elsewhere(address) || host.is_elsewhere(local.address)
        };
        let is_nobody = matches!(
            host.protected(source),
            Some(
                Protection::Loopback
                    | Protection::Unspecified
                    | Protection::Multicast
                    | Protection::Broadcast
                    | Protection::OwnAddress
                    | Protection::Allowed
                    | Protection::HostUnknown
            )
        );
        if !is_expected && !is_nobody {
            let scanners = &self.detector;
            self.probes.note(source, packet, scanners, context.now);
        }
    }

    /// Whose evidence a connection from `remote` would be, if it were completed;
    /// `None` where it would be nobody's.
    #[inline(never)]
    pub(super) fn suspect(
        &self,
        local: &Endpoint,
        remote: &Endpoint,
        context: &Context,
        firewall: &Firewall,
    ) -> Option<Network> {
        let host = context.host;
        let is_ours = host.is_own(remote.address) || context.is_own_listener(local);
        if is_ours || !host.is_own(local.address) {
            return None;
        }
        let port = self.connections.listeners.port(local, &|| true, None);
        let source = host.source_of(remote.address);
        (port == Port::Service && !firewall.is_blocked(source)).then_some(source)
    }

    /// Asks the kernel for a connection; what is found with a proven handshake
    /// is a row like any other. `None` where the kernel cannot be asked.
    #[inline(never)]
    pub(super) fn look_up(
        &mut self,
        kernel: &mut impl Kernel,
        local: Endpoint,
        remote: Endpoint,
        context: &Context,
        firewall: &mut Firewall,
        metrics: &mut Metrics,
    ) -> Option<Found> {
        let found = match self.handshakes.ask(kernel, local, remote) {
            Ok(found) => found,
            Err(error) => return self.handshakes.is_gone(error).then_some(Found::None),
        };
        let state = TcpState::from_number(found.state.into());
        let state = state.filter(|state| state.is_connection());
        let Some(state) = state.filter(|_| self.handshakes.is_proof(found.handshake)) else {
            return Some(Found::Open);
        };
        let row = Socket {
            local,
            remote,
            state,
            inode: found.inode,
        };
        self.row(kernel, &row, RowOf::LookUp, context, firewall, metrics);
        Some(Found::Proven)
    }

    fn admit_row(
        &mut self,
        kernel: &mut impl Kernel,
        socket: &Socket,
        connection: Connection,
        source: Network,
        context: &Context,
        firewall: &Firewall,
    ) -> Option<Instant> {
        // TIME_WAIT proves a handshake once, not that anything is open.
        let counts =
            socket.state != TcpState::TimeWait || connection.handshake != Handshake::Proven;
        if !counts || connection.port == Port::Unknown {
            return None;
        }
        let noted = connection.handshake;
        let handshake = self.handshakes.of_row(kernel, socket, noted);
        if handshake != noted {
            self.connections.set_handshake(connection, handshake);
        }
        if handshake != Handshake::Proven {
            return None;
        }
        let waiter = Waiter::new(source, socket.local, socket.remote, connection.first_seen);
        self.admit(&waiter, connection.port, context, firewall)
    }

    /// A destroy event. When a reading is wanted.
    #[inline(never)]
    pub(super) fn event(
        &mut self,
        event: &DiagSocket,
        context: &Context,
        firewall: &mut Firewall,
        metrics: &mut Metrics,
    ) -> Option<Instant> {
        let (local, remote, now) = (&event.local, &event.remote, context.now);
        // A listener's own end, or a socket that never connected.
        if remote.address.is_unspecified() {
            return None;
        }
        let ending = self.ending(local, remote, event.is_disconnected, context);
        if context.host.is_own(remote.address) {
            return None;
        }
        let source = context.host.source_of(remote.address);
        let mut waiter = Waiter::new(source, *local, *remote, now);
        waiter.data = data(event);
        waiter.is_unnamed = event.is_disconnected;
        waiter.is_proven = self.handshakes.is_proof(event.handshake);
        if waiter.is_proven {
            self.probes.sources.forget_port(source, local.port, now);
        }
        let (port, connection) = match ending {
            Ending::Known(connection)
                if connection.handshake == Handshake::Proven
                    || connection.port == Port::Unknown =>
            {
                self.known_end(&waiter, connection, firewall);
                return None;
            }
            // Its rows proved nothing; perhaps its end does.
            Ending::Known(connection) => (connection.port, Some(connection)),
            Ending::Unseen(connection) => {
                // A forged one, too: PassiveOpens has it (net/ipv4/tcp_minisocks.c,
                // tcp_create_openreq_child).
                count_new(metrics, connection, local);
                (connection.port, Some(connection))
            }
            Ending::Unnamed(port) => (port, None),
            Ending::Unknown => {
                waiter.is_counted = false;
                (Port::Unknown, None)
            }
        };
        if !waiter.is_proven {
            metrics.count(metrics::EVENTS_UNPROVEN);
            if waiter.is_counted {
                return None;
            }
        }
        if let Some(connection) = connection {
            waiter.first_seen = connection.first_seen;
            self.connections
                .set_handshake(connection, Handshake::Proven);
            self.list_later(&waiter, connection, firewall);
        }
        if waiter.is_counted {
            firewall.schedule_verify(source, now);
        }
        self.admit(&waiter, port, context, firewall)
    }

    /// Takes note of the end of a connection.
    fn ending(
        &mut self,
        local: &Endpoint,
        remote: &Endpoint,
        is_disconnected: bool,
        context: &Context,
    ) -> Ending {
        let is_local = &context.is_local(local);
        if is_disconnected {
            self.connections.disconnected(local, is_local, context.now)
        } else {
            self.connections.ended(local, remote, is_local, context.now)
        }
    }

    /// The end of what was seen before refreshes nothing; it shows whether data
    /// was sent.
    fn known_end(&mut self, waiter: &Waiter, connection: Connection, firewall: &Firewall) {
        self.list_later(waiter, connection, firewall);
        if connection.direction == Direction::Inbound {
            let (source, port, data) = (waiter.source, waiter.local.port, waiter.data);
            self.detector.note_data(source, port, data);
            self.admission.waiting.note_data(source, port, data);
        }
    }

    /// A client of our own port, seen before any row or event shows it: under
    /// load there always is one that neither showed yet, and the kernel's count
    /// alone would bring reading after reading.
    pub(super) fn client(
        &mut self,
        accepted: &Accepted,
        context: &Context,
        firewall: &mut Firewall,
        metrics: &mut Metrics,
    ) {
        let (local, remote, now) = (&accepted.local, &accepted.remote, context.now);
        if !context.is_own_namespace || local.port == 0 {
            return;
        }
        let opened = self.connections.accepted(local, remote, now);
        let Some(connection) = opened.filter(|_| !context.host.is_own(remote.address)) else {
            return;
        };
        count_new(metrics, connection, local);
        firewall.schedule_verify(context.host.source_of(remote.address), now);
    }

    fn admit(
        &mut self,
        waiter: &Waiter,
        port: Port,
        context: &Context,
        firewall: &Firewall,
    ) -> Option<Instant> {
        if context.is_own_listener(&waiter.local) {
            return None;
        }
        let (detector, now) = (&mut self.detector, context.now);
        self.admission.admit(waiter, port, firewall, detector, now)
    }

    /// A connection that no scheduled reading can show any more joins the next
    /// list.
    fn list_later(&mut self, waiter: &Waiter, connection: Connection, firewall: &Firewall) {
        if !self.list.misses(connection) || firewall.is_blocked(waiter.source) {
            return;
        }
        self.connections.set_listed(connection);
        self.list.keep(Entry {
            remote: waiter.remote,
            local: waiter.local,
            direction: connection.direction,
        });
    }

    /// Looks again at what waits: after a reading that saw every row, and in
    /// between for addresses that came. Nothing waits longer than `window`, but
    /// always for a reading. When a reading is wanted.
    pub(super) fn retry_waiting(
        &mut self,
        is_after_reading: bool,
        window: Duration,
        context: &Context,
        firewall: &Firewall,
        metrics: &mut Metrics,
    ) -> Option<Instant> {
        let window = window.max(SERVICE_AGE.saturating_mul(2));
        let mut reading = None;
        for index in 0..self.admission.waiting.len() {
            let Some(waiter) = self.admission.waiting.get(index) else {
                break;
            };
            let mut waiter = *waiter;
            let age = context.now.since(waiter.first_seen.max(waiter.since));
            let retried = if age < window {
                self.retry(&mut waiter, is_after_reading, context, firewall, metrics)
            } else {
                Retried::Done
            };
            let waiting = &mut self.admission.waiting;
            match retried {
                Retried::Done => waiting.remove(index),
                Retried::Unknown => {}
                Retried::Counted => waiting.set_counted(index),
                Retried::CountedUntil(due) => {
                    waiting.set_counted(index);
                    reading = nearest(reading, Some(due));
                }
            }
        }
        self.admission.waiting.sweep();
        reading
    }

    #[inline(never)]
    fn retry(
        &mut self,
        waiter: &mut Waiter,
        is_after_reading: bool,
        context: &Context,
        firewall: &Firewall,
        metrics: &mut Metrics,
    ) -> Retried {
        let (local, seen) = (&waiter.local, waiter.first_seen.max(waiter.since));
        let listeners = &mut self.connections.listeners;
        let port = listeners.port(local, &context.is_local(local), Some(seen));
        let mut retried = match port {
            Port::Unknown if is_after_reading => return Retried::Done,
            Port::Unknown => return Retried::Unknown,
            Port::New | Port::Foreign => Retried::Counted,
            Port::Service => Retried::Done,
        };
        if port == Port::New && is_after_reading {
            // A listener that outlived the connection is a service; else
            // another reading follows.
            let outlives = listeners.outlives(local, waiter.first_seen, waiter.since);
            retried = match outlives {
                Ok(()) => Retried::Done,
                Err(Some(due)) => Retried::CountedUntil(due),
                Err(None) => Retried::Counted,
            };
        }
        if !waiter.is_counted {
            self.count_waiter(waiter, context, firewall, metrics);
        }
        if retried == Retried::Done {
            waiter.is_counted = true;
            self.admit(waiter, Port::Service, context, firewall);
        }
        retried
    }

    fn count_waiter(
        &mut self,
        waiter: &Waiter,
        context: &Context,
        firewall: &Firewall,
        metrics: &mut Metrics,
    ) {
        let (local, remote) = (&waiter.local, &waiter.remote);
        match self.ending(local, remote, waiter.is_unnamed, context) {
            Ending::Unseen(connection) => {
                count_new(metrics, connection, local);
                if waiter.is_proven {
                    self.list_later(waiter, connection, firewall);
                }
            }
            Ending::Known(connection) => self.list_later(waiter, connection, firewall),
            Ending::Unnamed(_) | Ending::Unknown => {}
        }
    }
}

/// What became of one that waited.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retried {
    /// It waits no more.
    Done,
    /// Its port is not known yet.
    Unknown,
    /// Its port is none of outgoing connections.
    Counted,
    /// The same, and a reading is wanted then.
    CountedUntil(Instant),
}

/// Counts a connection that was seen for the first time.
#[inline(never)]
fn count_new(metrics: &mut Metrics, connection: Connection, local: &Endpoint) {
    let family = Family::of(local.address);
    metrics.count(metrics::NEW_CONNECTIONS.of(connection.direction, family));
}
