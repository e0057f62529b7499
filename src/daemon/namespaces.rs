//! Connections that ended in other network namespaces: those of containers, and
//! of ports that are published for them. The kernel says of each when it ends,
//! conntrack who began it and which port it asked for.
//!
//! Root in a container can forge all of that in the name of others, so such a
//! connection blocks nobody unless its SYN was seen to come in by a way back to
//! its source, and by no other link.

use heapless::Vec;

use crate::address::{Endpoint, Network, is_loopback};
use crate::conntrack;
use crate::host::Host;
use crate::kernel::{Descriptor, Errno, Kernel, Netlink};
use crate::limits::{
    EVENTS_RETRY, NAMESPACE_EVENTS, NAMESPACE_LOOKUPS, NAMESPACE_MEMORY, WITNESS_FULL_REST,
    WITNESS_REST,
};
use crate::metrics::{self, Metrics};
use crate::netlink::{route_request, walk_next_hops};
use crate::packets::Packet;
use crate::sights::Sights;
use crate::sock_diag::{DiagSocket, FOREIGN_EVENTS, Handshake, walk_events};
use crate::table::HashKey;
use crate::time::{Duration, Instant};
use crate::waiting::Waiter;

use super::diag::data;
use super::once::Once;
use super::output::log_pair;
use super::questions::{ANSWER, Questions};
use super::{Detector, Firewall, Listeners};

/// What is known of the host.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) host: &'a Host,
    pub(super) firewall: &'a Firewall,
    pub(super) listeners: &'a Listeners,
}

/// A source's connection to a port of another namespace that was evidence.
#[derive(Clone, Copy)]
struct Sure {
    fingerprint: u64,
    at: Option<Instant>,
}

/// A second's look-ups are shared out by networks, in so many parts: a flood from
/// one must not hide a scan from another.
const SHARES: usize = 64;

/// Events that may be evidence.
pub(super) type Candidates = Vec<DiagSocket, NAMESPACE_EVENTS>;

/// All bytes zero when new. What an idle daemon writes to comes first.
#[repr(C)]
pub(super) struct Namespaces {
    socket: Option<Descriptor>,
    down: Once,
    /// Events may wait until then.
    rest_until: Option<Instant>,
    conntrack: Questions,
    routes: Questions,
    /// Conntrack refused, and is not asked before that.
    conntrack_retry: Option<Instant>,
    /// Look-ups of this second, all and by shares.
    asked_all: usize,
    second: Option<Instant>,
    asked: [u8; SHARES],
    window: Duration,
    sights: Sights,
    sure: [Sure; NAMESPACE_MEMORY],
}

impl Namespaces {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            down: Once::NEW,
            rest_until: None,
            conntrack: Questions::new(),
            routes: Questions::new(),
            conntrack_retry: None,
            second: None,
            asked_all: 0,
            asked: [0; SHARES],
            window: Duration::ZERO,
            sure: [Sure {
                fingerprint: 0,
                at: None,
            }; NAMESPACE_MEMORY],
            sights: Sights::new(),
        }
    }

    pub(super) fn configure(&mut self, hash_key: HashKey, window: Duration) {
        self.window = window;
        self.sights.configure(hash_key, window);
    }

    /// The socket, where events are waited for.
    pub(super) fn events(&self, now: Instant) -> Option<Descriptor> {
        now.once_past(self.rest_until, self.socket)
    }

    /// When events are to be waited for again.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        now.end_of(self.rest_until)
    }

    /// Whether what ends in other namespaces can be evidence.
    pub(super) fn is_up(&self) -> bool {
        self.socket.is_some() && self.conntrack_retry.is_none()
    }

    /// Opens the socket, unless it stands. Whether it does.
    #[inline(never)]
    pub(super) fn check(&mut self, kernel: &mut impl Kernel) -> bool {
        if self.socket.is_none() {
            match kernel.netlink(Netlink::ForeignEvents) {
                Ok(socket) => {
                    // Without it the same is dropped here.
                    let _ = kernel.attach_filter(socket, &FOREIGN_EVENTS);
                    self.socket = Some(socket);
                    self.down.reset();
                }
                Err(Errno::EPERM) => self.log_down(kernel, b"that needs CAP_NET_BROADCAST"),
                Err(_) => self.log_down(kernel, b"the kernel does not report them"),
            }
        }
        self.socket.is_some()
    }

    #[inline(never)]
    fn log_down(&mut self, kernel: &mut impl Kernel, why: &[u8]) {
        if self.down.say() {
            let words = b"connections to containers and their published ports are not seen: ";
            log_pair(kernel, words, why);
        }
    }

    /// Receives the events that arrived, at most `NAMESPACE_EVENTS`; those that may
    /// be evidence are the candidates.
    #[inline(never)]
    pub(super) fn receive(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        metrics: &mut Metrics,
        scene: &Scene,
        candidates: &mut Candidates,
        now: Instant,
    ) {
        let mut rest = WITNESS_FULL_REST;
        let Some(socket) = self.socket else {
            return;
        };
        for _ in 0..NAMESPACE_EVENTS {
            let (count, origin) = match kernel.receive_from(socket, buffer) {
                Ok(received) => received,
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => {
                    metrics.count(metrics::DESTROY_EVENT_OVERFLOWS);
                    continue;
                }
                // EAGAIN: there are no more.
                Err(_) => {
                    rest = WITNESS_REST;
                    break;
                }
            };
            // Our own have a socket of their own.
            let bytes = buffer.get(..count).filter(|_| origin != 0);
            let malformed = walk_events(bytes.unwrap_or_default(), &mut |event| {
                metrics.count(metrics::NAMESPACE_EVENTS);
                let is_unproven = event.handshake == Handshake::Unproven;
                metrics.add(metrics::EVENTS_UNPROVEN, is_unproven.into());
                if is_candidate(&event, scene) {
                    let _ = candidates.push(event);
                }
            });
            metrics.add(metrics::MALFORMED_EVENTS, malformed as u64);
        }
        self.rest_until = Some(now.after(rest));
    }

    /// What an event is evidence of, if anything. `knows_ways`: no link is unknown,
    /// and no SYN can have come in unseen.
    #[inline(never)]
    pub(super) fn judge(
        &mut self,
        kernel: &mut impl Kernel,
        event: &DiagSocket,
        scene: &Scene,
        detector: &Detector,
        knows_ways: bool,
        now: Instant,
    ) -> Option<Waiter> {
        let source = scene.host.source_of(event.remote.address);
        let has_evidence = detector.ports_without(&source, 0, now) != Some(0);
        let fingerprint = self.fingerprint(source, event.local);
        let place = fingerprint as usize % NAMESPACE_MEMORY;
        let sure = self.sure.get(place);
        let is_sure = sure.is_some_and(|sure| {
            sure.fingerprint == fingerprint && now.is_within(self.window, sure.at)
        });
        // A source that was forgotten meanwhile has to begin anew.
        if is_sure && has_evidence || !self.may_ask(source, has_evidence, now) {
            return None;
        }
        let asked_for = self.asked_for(kernel, event, now)?;
        let is_whole =
            knows_ways && self.came_back_way(kernel, event.remote, asked_for, scene.host, now);
        let mut waiter = Waiter::new(source, asked_for, event.remote, now);
        (waiter.data, waiter.is_whole) = (data(event), is_whole);
        if let Some(sure) = self.sure.get_mut(place).filter(|_| is_whole) {
            let at = Some(now);
            *sure = Sure { fingerprint, at };
        }
        Some(waiter)
    }

    fn fingerprint(&self, source: Network, local: Endpoint) -> u64 {
        let (address, port) = (source.address(), 0);
        self.sights.fingerprint(Endpoint { address, port }, local)
    }

    /// Takes note of a SYN that came in by a link, or of what may be one.
    pub(super) fn see_syn(&mut self, packet: &Packet, link: u32, host: &Host, now: Instant) {
        if self.socket.is_some() && host.is_elsewhere(packet.source.address) {
            let (source, destination) = (packet.source, packet.destination);
            self.sights
                .note(source, destination, packet.sequence, link, now);
        }
    }

    /// Whether there is a look-up left in this second. Once half of them are used,
    /// each /16 or /48 around a source has what is left of a share, and its sources
    /// with evidence one of their own.
    #[inline(never)]
    fn may_ask(&mut self, source: Network, has_evidence: bool, now: Instant) -> bool {
        if !now.is_within(Duration::from_secs(1), self.second) {
            (self.second, self.asked_all) = (Some(now), 0);
            self.asked = [0; SHARES];
        }
        let (address, port) = (source.around(16, 48).address(), has_evidence.into());
        let site = Endpoint { address, port };
        let share = self.sights.fingerprint(site, Endpoint::BLANK) as usize % SHARES;
        // Of a scan's connections one comes first.
        let most = NAMESPACE_LOOKUPS / SHARES * if has_evidence { 3 } else { 1 };
        let is_half_left = self.asked_all < NAMESPACE_LOOKUPS / 2;
        let asked = self.asked.get_mut(share);
        let asked = asked.filter(|asked| is_half_left || usize::from(**asked) < most);
        let may_ask = asked
            .map(|asked| *asked = asked.saturating_add(1))
            .is_some();
        self.asked_all += usize::from(may_ask);
        may_ask
    }

    /// What the peer asked for, by conntrack; `None` where it did not begin.
    #[inline(never)]
    fn asked_for(
        &mut self,
        kernel: &mut impl Kernel,
        event: &DiagSocket,
        now: Instant,
    ) -> Option<Endpoint> {
        if !now.is_past(self.conntrack_retry) {
            return None;
        }
        let sequence = self.conntrack.next_sequence();
        let request = conntrack::request(event.local, event.remote, sequence);
        let mut buffer = [0; ANSWER];
        let answer = self
            .conntrack
            .ask(kernel, Netlink::Netfilter, request.as_bytes(), &mut buffer)
            .and_then(|bytes| conntrack::answer(bytes, sequence, event.remote));
        self.conntrack_retry = None;
        if let Err(error) = answer
            && !matches!(error, Errno::ENOENT | Errno::EINTR)
            && !matches!(error, Errno::EMFILE | Errno::ENFILE)
        {
            // Each question would let the kernel look for a module.
            self.conntrack_retry = Some(now.after(EVENTS_RETRY));
            self.log_down(kernel, b"they need conntrack, and CAP_NET_ADMIN to ask it");
        }
        answer.ok()
    }

    /// Whether its SYN came in by a link that the route back to its source takes,
    /// one that no other namespace can send by, and by no other.
    #[inline(never)]
    fn came_back_way(
        &mut self,
        kernel: &mut impl Kernel,
        source: Endpoint,
        destination: Endpoint,
        host: &Host,
        now: Instant,
    ) -> bool {
        // What is forwarded has no source that the kernel would take.
        let own = Some(destination.address).filter(|own| host.is_own(*own));
        let sequence = self.routes.next_sequence();
        let request = route_request(source.address, own, sequence);
        let mut buffer = [0; ANSWER];
        let bytes = self
            .routes
            .ask(kernel, Netlink::Route, request.as_bytes(), &mut buffer);
        let mut ways: Vec<u32, 16> = Vec::new();
        let mut add = |link| {
            if !host.may_be_shared(link) {
                let _ = ways.push(link);
            }
        };
        let _ = bytes.and_then(|bytes| walk_next_hops(bytes, sequence, &mut add));
        self.sights.came_back_way(source, destination, &ways, now)
    }
}

/// Whether a connection of another namespace may be evidence, as far as its end
/// shows: its handshake is proven; its peer's port is known, since no entry of
/// conntrack is found without; it did leave its namespace; its peer may be
/// anybody, and is not blocked; and its port is none that outgoing connections
/// are given.
fn is_candidate(event: &DiagSocket, scene: &Scene) -> bool {
    let (local, remote, host) = (event.local, event.remote, scene.host);
    event.handshake == Handshake::Proven
        && remote.port != 0
        && !is_loopback(local.address)
        && host.is_elsewhere(remote.address)
        && !scene.firewall.is_blocked(host.source_of(remote.address))
        && !scene.listeners.is_ephemeral(local.port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::listeners::PortRange;
    use std::boxed::Box;

    const NOW: Instant = Instant::from_secs(10_000);

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text.as_bytes()).unwrap()
    }

    fn event(local: &str, remote: &str, handshake: Handshake) -> DiagSocket {
        DiagSocket {
            local: endpoint(local),
            remote: endpoint(remote),
            state: 7,
            interface: 0,
            cookie: 1,
            inode: 0,
            received_data: Some(false),
            handshake,
            is_disconnected: false,
        }
    }

    /// Every case by the one thing that tells it from evidence.
    #[test]
    fn what_may_be_evidence() {
        let mut listeners: Box<Listeners> = crate::testing::boxed(Listeners::new);
        listeners.set_local_port_range(PortRange {
            low: 32_768,
            high: 60_999,
        });
        let mut host: Box<Host> = crate::testing::boxed(Host::new);
        let network = |text: &str| Network::parse(text.as_bytes()).unwrap();
        let address = |text: &str, prefix: &str| {
            crate::netlink::HostMessage::Address(crate::netlink::AddressMessage {
                local: endpoint(text).address,
                prefix: network(prefix),
                broadcast: None,
                scope: 0,
                flags: 0,
                interface: 2,
            })
        };
        host.take(address("198.51.100.1:0", "198.51.100.0/24"));
        let firewall: Box<Firewall> = crate::testing::boxed(Firewall::new);
        let scene = Scene {
            host: &host,
            firewall: &firewall,
            listeners: &listeners,
        };
        let proven = Handshake::Proven;
        let (local, remote) = ("10.5.0.2:80", "203.0.113.9:50001");
        let mut wrong = std::vec::Vec::new();
        for (number, (local, remote, handshake, expected)) in [
            (local, remote, proven, true),
            ("[fd05::2]:80", "[2001:db8::9]:50001", proven, true),
            // A container with a public address, a low port of a peer.
            ("192.0.2.7:8080", "203.0.113.9:80", proven, true),
            (local, remote, Handshake::Unproven, false),
            (local, remote, Handshake::Unknown, false),
            (local, "203.0.113.9:0", proven, false),
            ("127.0.0.1:80", remote, proven, false),
            ("[::1]:80", "[2001:db8::9]:50001", proven, false),
            (local, "127.0.0.1:50001", proven, false),
            (local, "10.5.0.3:50001", proven, false),
            (local, "[fd05::3]:50001", proven, false),
            // Our own address, as of a proxy, and one on a link.
            (local, "198.51.100.1:50001", proven, false),
            (local, "198.51.100.2:50001", proven, false),
            ("10.5.0.2:32768", remote, proven, false),
            ("10.5.0.2:60999", remote, proven, false),
            ("10.5.0.2:32767", remote, proven, true),
        ]
        .into_iter()
        .enumerate()
        {
            let event = event(local, remote, handshake);
            if is_candidate(&event, &scene) != expected {
                wrong.push(number);
            }
        }
        assert_eq!(wrong, []);
    }

    /// A network's sources use up what is free, and their own share alone; those
    /// without evidence not that of those with some.
    #[test]
    fn look_ups_are_shared() {
        let mut namespaces: Box<Namespaces> = crate::testing::boxed(Namespaces::new);
        // With this key no two of the sites below share a place.
        namespaces.configure(HashKey { k0: 3, k1: 4 }, Duration::from_secs(60));
        let source = |text: &str| Network::single(endpoint(text).address);
        let mut asked = |text: &str, has_evidence, now| {
            let may_ask = |_: &usize| namespaces.may_ask(source(text), has_evidence, now);
            (0..=limits::NAMESPACE_LOOKUPS).take_while(may_ask).count()
        };
        let share = limits::NAMESPACE_LOOKUPS / SHARES;
        let free = limits::NAMESPACE_LOOKUPS / 2;
        assert_eq!(asked("203.0.113.9:1", false, NOW), free);
        assert_eq!(asked("203.0.2.9:1", false, NOW), 0);
        assert_eq!(asked("203.0.2.9:1", true, NOW), 3 * share);
        assert_eq!(asked("198.51.100.9:1", false, NOW), share);
        assert_eq!(asked("[2001:db8:9::1]:1", false, NOW), share);
        assert_eq!(asked("[2001:db8:9:9::1]:1", false, NOW), 0);
        let later = NOW.after(Duration::from_secs(1));
        assert_eq!(asked("203.0.113.9:1", false, later), free);
    }
}
