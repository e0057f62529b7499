//! What this host is: its own addresses, the prefixes on its links, and the
//! addresses no block may ever touch.
//!
//! A refresh fills the spare one of two `Facts` while the other goes on
//! answering; only a complete one takes over.

use core::cmp::Ordering;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heapless::Vec;

use crate::address::{Network, fold_mapped, is_loopback, parse_address};
use crate::limits::{ALLOWED, GATEWAYS, ON_LINK_PREFIXES, OWN_ADDRESSES};
use crate::netlink::{
    AddressMessage, Progress, ROUTE_REQUESTS, RT_SCOPE_LINK, RT_TABLE_LOCAL, Route, RouteKind,
    RouteMessage, walk_addresses, walk_routes,
};
use crate::text::{Sink, Text, trim};

/// Why a source must not be blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// 127.0.0.0/8, ::1.
    Loopback,
    /// 0.0.0.0, ::.
    Unspecified,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 255.255.255.255 or the broadcast address of an interface.
    Broadcast,
    /// 169.254.0.0/16, where clouds answer for instance metadata.
    LinkLocal,
    /// An address of this host.
    OwnAddress,
    /// A gateway of any routing table.
    Gateway,
    /// A nameserver of /etc/resolv.conf.
    Nameserver,
    /// In a network given by --allow.
    Allowed,
    /// The peer in SSH_CONNECTION.
    SshPeer,
    /// What this host is could not be read, or is more than fits: nothing can
    /// be proved to be harmless.
    HostUnknown,
}

impl Protection {
    /// Every protection, for counters that exist from 0.
    pub const ALL: [Self; 11] = [
        Self::Loopback,
        Self::Unspecified,
        Self::Multicast,
        Self::Broadcast,
        Self::LinkLocal,
        Self::OwnAddress,
        Self::Gateway,
        Self::Nameserver,
        Self::Allowed,
        Self::SshPeer,
        Self::HostUnknown,
    ];

    /// Words for the `Not blocked` line.
    pub const fn words(self) -> &'static [u8] {
        match self {
            Self::Loopback => b"loopback",
            Self::Unspecified => b"unspecified address",
            Self::Multicast => b"multicast",
            Self::Broadcast => b"broadcast address",
            Self::LinkLocal => b"link-local (cloud metadata)",
            Self::OwnAddress => b"own address",
            Self::Gateway => b"gateway",
            Self::Nameserver => b"nameserver",
            Self::Allowed => b"--allow",
            Self::SshPeer => b"our own SSH session",
            Self::HostUnknown => b"own addresses and gateways not fully known",
        }
    }

    /// The value of a metric's `reason` label.
    pub const fn label(self) -> &'static [u8] {
        match self {
            Self::Loopback => b"loopback",
            Self::Unspecified => b"unspecified",
            Self::Multicast => b"multicast",
            Self::Broadcast => b"broadcast",
            Self::LinkLocal => b"link_local",
            Self::OwnAddress => b"own_address",
            Self::Gateway => b"gateway",
            Self::Nameserver => b"nameserver",
            Self::Allowed => b"allowed",
            Self::SshPeer => b"ssh_peer",
            Self::HostUnknown => b"host_unknown",
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_length: u8) -> Network {
    Network::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix_length)
}

const fn v6(bits: u128, prefix_length: u8) -> Network {
    Network::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), prefix_length)
}

/// Networks that are never blocked on any host (RFC 6890, RFC 1112 section 4,
/// RFC 4291 section 2.4, RFC 3927).
const ALWAYS: [(Network, Protection); 8] = [
    (v4(127, 0, 0, 0, 8), Protection::Loopback),
    (v6(1, 128), Protection::Loopback),
    (v4(0, 0, 0, 0, 32), Protection::Unspecified),
    (v6(0, 128), Protection::Unspecified),
    (v4(224, 0, 0, 0, 4), Protection::Multicast),
    (v6(0xff << 120, 8), Protection::Multicast),
    (v4(255, 255, 255, 255, 32), Protection::Broadcast),
    (v4(169, 254, 0, 0, 16), Protection::LinkLocal),
];

/// Where one /64 holds many unrelated hosts: NAT64 (RFC 6052 section 2.1, RFC
/// 8215 section 5) and Teredo (RFC 4380 section 2.6).
const SHARED: [Network; 3] = [
    v6(0x0064_ff9b << 96, 96),
    v6(0x0064_ff9b_0001 << 80, 48),
    v6(0x2001_0000 << 96, 32),
];

/// What a fact says about its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    OwnAddress,
    /// A whole network of own addresses, such as `ip route add local` makes.
    OwnNetwork,
    Broadcast,
    Gateway,
    Nameserver,
    OnLink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fact {
    kind: Kind,
    network: Network,
}

impl Fact {
    fn order(self, other: Self) -> Ordering {
        let key = |fact: Self| (fact.kind, first(fact.network), fact.network.prefix_length());
        key(self).cmp(&key(other))
    }
}

/// The lowest address as a number; IPv4 stands where its mapped form would.
fn first(network: Network) -> u128 {
    match network.address() {
        IpAddr::V4(v4) => 0xffff << 32 | u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// One bit of 64 for the last six bits of an address.
fn ending(address: IpAddr) -> u64 {
    let low = match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(v6) => v6.to_bits() as u32,
    };
    1 << (low & 63)
}

/// The highest address as such a number.
fn last(network: Network) -> u128 {
    let length = u32::from(network.prefix_length());
    let longest: u32 = if network.is_ipv6() { 128 } else { 32 };
    let host_bits = longest.saturating_sub(length);
    first(network) | !u128::MAX.checked_shl(host_bits).unwrap_or(0)
}

/// At most `N` facts, sorted by kind, then address.
struct Facts<const N: usize> {
    sorted: Vec<Fact, N>,
    /// Facts that did not fit.
    lost: usize,
}

impl<const N: usize> Facts<N> {
    const fn new() -> Self {
        Self {
            sorted: Vec::new(),
            lost: 0,
        }
    }

    fn clear(&mut self) {
        self.sorted.clear();
        self.lost = 0;
    }

    fn insert(&mut self, kind: Kind, network: Network) {
        let fact = Fact { kind, network };
        let place = self
            .sorted
            .partition_point(|held| held.order(fact) == Ordering::Less);
        if self.sorted.get(place) == Some(&fact) {
            return;
        }
        if self.sorted.is_full() {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        // Each fact from the place on moves up by one.
        let mut carried = fact;
        for slot in self.sorted.iter_mut().skip(place) {
            core::mem::swap(slot, &mut carried);
        }
        let _ = self.sorted.push(carried);
    }

    /// The facts of one kind, by address.
    fn of(&self, kind: Kind) -> impl Iterator<Item = Network> {
        let start = self.sorted.partition_point(|held| held.kind < kind);
        self.sorted
            .iter()
            .skip(start)
            .take_while(move |held| held.kind == kind)
            .map(|held| held.network)
    }

    /// Whether a fact of `kind`, all of which are single addresses, lies in
    /// `network`: one binary search.
    fn holds_address_in(&self, kind: Kind, network: Network) -> bool {
        let bounds = (first(network), last(network));
        let place = self
            .sorted
            .partition_point(|held| (held.kind, first(held.network)) < (kind, bounds.0));
        self.sorted
            .get(place)
            .is_some_and(|held| held.kind == kind && first(held.network) <= bounds.1)
    }

    fn holds_overlap(&self, kind: Kind, network: Network) -> bool {
        self.of(kind).any(|held| held.overlaps(network))
    }
}

/// Own addresses with a broadcast address each, gateways and nameservers.
const PROTECTED: usize = 2 * OWN_ADDRESSES + GATEWAYS;

/// What one refresh found.
struct Snapshot {
    protected: Facts<PROTECTED>,
    on_link: Facts<ON_LINK_PREFIXES>,
    /// A bit for the last six bits of each own address, all for an own network:
    /// hardly any peer of the thousands in a reading needs a search.
    own_endings: u64,
}

impl Snapshot {
    const fn new() -> Self {
        Self {
            protected: Facts::new(),
            on_link: Facts::new(),
            own_endings: 0,
        }
    }

    fn clear(&mut self) {
        self.protected.clear();
        self.on_link.clear();
        self.own_endings = 0;
    }

    fn add_address(&mut self, message: AddressMessage) {
        self.add_own(Network::single(message.local));
        if let Some(broadcast) = message.broadcast {
            self.protected
                .insert(Kind::Broadcast, Network::single(broadcast));
        }
        // A prefix of one address is the address itself, or the peer of a
        // point-to-point link, which has a route of its own.
        if !message.prefix.is_single() {
            self.add_on_link(message.prefix, LARGEST_ALLOCATION);
        }
    }

    fn add_route(&mut self, route: Route) {
        let destination = route.destination;
        match route.kind {
            RouteKind::Unicast if is_direct(route) => self.add_on_link(destination, SLAAC_PREFIX),
            // Outside the table `local` a local network is a trick to divert
            // packets (`ip route add local default dev lo table 100` for
            // TPROXY), not a statement of what is ours.
            RouteKind::Local if destination.is_single() || route.table == RT_TABLE_LOCAL => {
                self.add_own(destination);
            }
            RouteKind::Broadcast if destination.is_single() => {
                self.protected.insert(Kind::Broadcast, destination);
            }
            RouteKind::Unicast | RouteKind::Local | RouteKind::Broadcast | RouteKind::Other => {}
        }
    }

    fn add_own(&mut self, network: Network) {
        if is_loopback(network.address()) || network.prefix_length() == 0 {
            return;
        }
        let (kind, endings) = if network.is_single() {
            (Kind::OwnAddress, ending(network.address()))
        } else {
            (Kind::OwnNetwork, u64::MAX)
        };
        self.own_endings |= endings;
        self.protected.insert(kind, network);
    }

    /// `shortest_v6` is the shortest IPv6 prefix that is taken for a link.
    fn add_on_link(&mut self, network: Network, shortest_v6: u8) {
        let shortest = if network.is_ipv6() {
            shortest_v6
        } else {
            LARGEST_PRIVATE
        };
        let address = network.address();
        if network.prefix_length() < shortest || is_loopback(address) || address.is_multicast() {
            return;
        }
        self.on_link.insert(Kind::OnLink, network);
    }
}

// A default route without a gateway (ppp, WireGuard), its halves 0.0.0.0/1 and
// 128.0.0.0/1, or 2000::/3 through a tunnel lead to the internet, not to a
// link. Were they on-link, every scanner would keep its way through a router,
// and every address of an IPv6 scanner's /64 would be a source of its own. So
// a prefix counts from these lengths on only.

/// 10.0.0.0/8, the largest private network (RFC 1918).
const LARGEST_PRIVATE: u8 = 8;
/// No link is larger than what a registry gives a whole provider (/32).
const LARGEST_ALLOCATION: u8 = 32;
/// Links announced by routers are /64 (RFC 4862 section 5.5.3, RFC 7421);
/// shorter routes to a device are tunnels and delegations.
const SLAAC_PREFIX: u8 = 64;

fn is_direct(route: Route) -> bool {
    !route.has_gateway && (route.destination.is_ipv6() || route.scope == RT_SCOPE_LINK)
}

/// Which dumps of a refresh are complete.
#[derive(Clone, Copy)]
struct Done {
    addresses: bool,
    route_dumps: usize,
    has_failed: bool,
}

impl Done {
    const NOTHING: Self = Self {
        addresses: false,
        route_dumps: 0,
        has_failed: false,
    };
}

/// Longest line of resolv.conf that is looked at, in bytes.
const RESOLV_LINE: usize = 128;

/// What this host is, as far as it is known. All zero bytes when new.
pub struct Host {
    snapshots: [Snapshot; 2],
    /// Whether the second snapshot answers and the first is refilled.
    is_second: bool,
    is_known: bool,
    done: Done,
    resolv_line: Text<RESOLV_LINE>,
    allowed: Vec<Network, ALLOWED>,
    ssh_peer: Vec<IpAddr, 1>,
}

impl Host {
    /// Nothing is known yet: everything is protected.
    pub const fn new() -> Self {
        Self {
            snapshots: [Snapshot::new(), Snapshot::new()],
            is_second: false,
            is_known: false,
            done: Done::NOTHING,
            resolv_line: Text::new(),
            allowed: Vec::new(),
            ssh_peer: Vec::new(),
        }
    }

    /// Protects a network of --allow for good; `false` where no more fit.
    pub fn allow(&mut self, network: Network) -> bool {
        self.allowed.push(fold_network(network)).is_ok()
    }

    /// Protects the peer named first in `value`, the environment variable
    /// SSH_CONNECTION (ssh(1)); `false` where it names none.
    pub fn set_ssh_connection(&mut self, value: &[u8]) -> bool {
        self.ssh_peer.clear();
        first_address(value).is_some_and(|address| self.ssh_peer.push(address).is_ok())
    }

    /// Starts a refresh; one that was under way is given up.
    pub fn begin(&mut self) {
        self.spare().clear();
        self.resolv_line.clear();
        self.done = Done::NOTHING;
    }

    /// Takes what one receive returned after `netlink::ADDRESS_REQUEST` was
    /// sent; to be repeated while the answer is `More`.
    pub fn feed_addresses(&mut self, bytes: &[u8]) -> Progress {
        let spare = self.spare();
        let progress = walk_addresses(bytes, |message| spare.add_address(message));
        self.done.addresses |= progress == Progress::Done;
        self.note_failure(progress)
    }

    /// Takes what one receive returned after one of `netlink::ROUTE_REQUESTS`
    /// was sent; to be repeated for each of them while the answer is `More`.
    pub fn feed_routes(&mut self, bytes: &[u8]) -> Progress {
        let spare = self.spare();
        let progress = walk_routes(bytes, |message| match message {
            RouteMessage::Route(route) => spare.add_route(route),
            RouteMessage::Gateway(gateway) => spare
                .protected
                .insert(Kind::Gateway, Network::single(gateway)),
        });
        if progress == Progress::Done {
            self.done.route_dumps = self.done.route_dumps.saturating_add(1);
        }
        self.note_failure(progress)
    }

    /// Takes a part of /etc/resolv.conf (resolv.conf(5)), of any size. Where
    /// none names a nameserver those known before stay: the file may be away
    /// or empty while it is written anew.
    pub fn feed_resolv_conf(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end_resolv_line();
            } else {
                self.resolv_line.put_byte(*byte);
            }
        }
    }

    /// Ends a refresh: what was fed takes over if every dump was complete,
    /// else all stays as it was. Returns whether it took over.
    pub fn finish(&mut self) -> bool {
        let done = self.done;
        self.done = Done::NOTHING;
        self.end_resolv_line();
        if done.has_failed || !done.addresses || done.route_dumps < ROUTE_REQUESTS.len() {
            return false;
        }
        self.keep_nameservers();
        self.is_second = !self.is_second;
        self.is_known = true;
        true
    }

    /// Whether `address` is the host's own or loopback. One binary search.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let address = fold_mapped(address);
        is_loopback(address)
            || (self.current().own_endings & ending(address) != 0
                && (self.protects(Kind::OwnAddress, Network::single(address))
                    || self.protects(Kind::OwnNetwork, Network::single(address))))
    }

    /// The own address that has most in common with `source`: where one lost
    /// its local address, the likely one (RFC 6724 section 5, rule 8).
    pub fn own_near(&self, source: Network) -> Option<IpAddr> {
        let peer = first(source);
        let own = self.current().protected.of(Kind::OwnAddress);
        let own = own.filter(|own| own.is_ipv6() == source.is_ipv6());
        own.map(|own| own.address())
            .max_by_key(|own| (first(Network::single(*own)) ^ peer).leading_zeros())
    }

    /// Whether `network` shares addresses with one of the host's own on-link
    /// prefixes. With more prefixes than fit, everything is: a block then
    /// keeps a source from the host only, the lesser harm.
    pub fn is_on_link(&self, network: Network) -> bool {
        let on_link = &self.current().on_link;
        on_link.lost > 0 || on_link.holds_overlap(Kind::OnLink, fold_network(network))
    }

    /// The source that `address` belongs to: IPv4 by itself, IPv6 by its /64,
    /// the unit a single host commands (RFC 6177 section 2), but by itself
    /// where unrelated hosts or protected addresses share that /64.
    pub fn source_of(&self, address: IpAddr) -> Network {
        let address = fold_mapped(address);
        if address.is_ipv4() || self.shares_its_64(address) {
            Network::single(address)
        } else {
            Network::new(address, 64)
        }
    }

    /// Why `network` must not be blocked, if any address in it is protected;
    /// `HostUnknown` for everything while `is_incomplete`.
    pub fn protected(&self, network: Network) -> Option<Protection> {
        let unknown = self.is_incomplete().then_some(Protection::HostUnknown);
        self.known_protection(fold_network(network)).or(unknown)
    }

    /// Whether protected addresses may be missing: no refresh was complete
    /// yet, or more were found than fit.
    pub fn is_incomplete(&self) -> bool {
        !self.is_known || self.current().protected.lost > 0
    }

    /// Addresses and prefixes that did not fit at the last refresh; an address
    /// listed several times counts each time.
    pub fn lost(&self) -> usize {
        let current = self.current();
        current.protected.lost.saturating_add(current.on_link.lost)
    }

    fn shares_its_64(&self, address: IpAddr) -> bool {
        let on_link = &self.current().on_link;
        SHARED.iter().any(|network| network.contains(address))
            || on_link.holds_overlap(Kind::OnLink, Network::single(address))
            || self.known_protection(Network::new(address, 64)).is_some()
    }

    fn known_protection(&self, network: Network) -> Option<Protection> {
        let always = ALWAYS.iter().find(|(held, _)| held.overlaps(network));
        if let Some((_, protection)) = always {
            return Some(*protection);
        }
        let kinds = [
            (Kind::OwnAddress, Protection::OwnAddress),
            (Kind::OwnNetwork, Protection::OwnAddress),
            (Kind::Gateway, Protection::Gateway),
            (Kind::Nameserver, Protection::Nameserver),
            (Kind::Broadcast, Protection::Broadcast),
        ];
        let of_host = kinds.iter().find(|(kind, _)| self.protects(*kind, network));
        if let Some((_, protection)) = of_host {
            return Some(*protection);
        }
        if self.allowed.iter().any(|held| held.overlaps(network)) {
            return Some(Protection::Allowed);
        }
        let mut peers = self.ssh_peer.iter().map(|peer| Network::single(*peer));
        peers
            .any(|peer| peer.overlaps(network))
            .then_some(Protection::SshPeer)
    }

    fn protects(&self, kind: Kind, network: Network) -> bool {
        let protected = &self.current().protected;
        if kind == Kind::OwnNetwork {
            protected.holds_overlap(kind, network)
        } else {
            protected.holds_address_in(kind, network)
        }
    }

    fn current(&self) -> &Snapshot {
        let [one, other] = &self.snapshots;
        if self.is_second { other } else { one }
    }

    fn spare(&mut self) -> &mut Snapshot {
        let [one, other] = &mut self.snapshots;
        if self.is_second { one } else { other }
    }

    fn note_failure(&mut self, progress: Progress) -> Progress {
        self.done.has_failed |= matches!(progress, Progress::Failed(_));
        progress
    }

    fn end_resolv_line(&mut self) {
        let nameserver = parse_nameserver(self.resolv_line.as_bytes())
            .filter(|_| !self.resolv_line.is_truncated());
        if let Some(address) = nameserver {
            self.spare()
                .protected
                .insert(Kind::Nameserver, Network::single(address));
        }
        self.resolv_line.clear();
    }

    fn keep_nameservers(&mut self) {
        let [one, other] = &mut self.snapshots;
        let (old, new) = if self.is_second {
            (other, one)
        } else {
            (one, other)
        };
        if new.protected.of(Kind::Nameserver).next().is_none() {
            for nameserver in old.protected.of(Kind::Nameserver) {
                new.protected.insert(Kind::Nameserver, nameserver);
            }
        }
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

/// `network` as IPv4 where it lies in ::ffff:0:0/96.
fn fold_network(network: Network) -> Network {
    match network.prefix_length().checked_sub(96) {
        Some(length) if network.is_ipv6() => match fold_mapped(network.address()) {
            IpAddr::V4(v4) => Network::new(IpAddr::V4(v4), length),
            IpAddr::V6(_) => network,
        },
        _ => network,
    }
}

/// `nameserver`, blanks, an address.
fn parse_nameserver(line: &[u8]) -> Option<IpAddr> {
    let rest = trim(line).strip_prefix(b"nameserver")?;
    match rest.first() {
        Some(b' ' | b'\t') => first_address(rest),
        _ => None,
    }
}

/// The first word of `text` as an address, without the zone of `fe80::1%eth0`
/// (RFC 4007 section 11).
fn first_address(text: &[u8]) -> Option<IpAddr> {
    let is_end = |byte: &u8| matches!(byte, b' ' | b'\t' | b'%');
    let word = trim(text).split(is_end).next()?;
    parse_address(word).map(fold_mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::netlink::{Failure, header};
    use std::boxed::Box;
    use std::format;
    use std::string::String;

    type List<T> = std::vec::Vec<T>;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> Network {
        Network::parse(text.as_bytes()).unwrap()
    }

    fn octets(address: IpAddr) -> List<u8> {
        match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }

    fn family(address: IpAddr) -> u8 {
        if address.is_ipv6() {
            libc::AF_INET6 as u8
        } else {
            libc::AF_INET as u8
        }
    }

    fn message(kind: u16, sequence: u32, fixed: &[u8], attributes: &[(u16, List<u8>)]) -> List<u8> {
        let mut payload = fixed.to_vec();
        for (kind, value) in attributes {
            payload.extend((4 + value.len() as u16).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value);
        }
        [&header(16 + payload.len(), kind, 0, sequence)[..], &payload].concat()
    }

    fn done(sequence: u32) -> List<u8> {
        message(3, sequence, &[0; 4], &[])
    }

    /// RTM_NEWADDR with IFA_ADDRESS, IFA_LOCAL and IFA_BROADCAST.
    fn address(
        prefix: IpAddr,
        length: u8,
        local: Option<IpAddr>,
        broadcast: Option<IpAddr>,
    ) -> List<u8> {
        let mut attributes = std::vec![(1, octets(prefix))];
        attributes.extend(local.map(|address| (2, octets(address))));
        attributes.extend(broadcast.map(|address| (4, octets(address))));
        message(
            20,
            1,
            &[family(prefix), length, 0, 0, 3, 0, 0, 0],
            &attributes,
        )
    }

    #[derive(Clone, Copy)]
    struct TestRoute {
        destination: Network,
        kind: u8,
        scope: u8,
        table: u8,
        gateway: Option<IpAddr>,
    }

    impl TestRoute {
        fn bytes(self) -> List<u8> {
            let Self {
                destination,
                kind,
                scope,
                table,
                gateway,
            } = self;
            let mut attributes = List::new();
            if destination.prefix_length() > 0 {
                attributes.push((1, octets(destination.address())));
            }
            attributes.extend(gateway.map(|address| (5, octets(address))));
            let family = family(destination.address());
            let length = destination.prefix_length();
            let fixed = [family, length, 0, 0, table, 0, scope, kind, 0, 0, 0, 0];
            message(24, 2, &fixed, &attributes)
        }
    }

    /// `destination dev eth0 scope link`.
    fn direct(destination: &str) -> List<u8> {
        let destination = net(destination);
        TestRoute {
            destination,
            kind: 1,
            scope: 253,
            table: 254,
            gateway: None,
        }
        .bytes()
    }

    fn local(destination: &str, table: u8) -> List<u8> {
        let destination = net(destination);
        TestRoute {
            destination,
            kind: 2,
            scope: 254,
            table,
            gateway: None,
        }
        .bytes()
    }

    fn via(destination: &str, gateway: &str) -> List<u8> {
        let (destination, gateway) = (net(destination), Some(ip(gateway)));
        TestRoute {
            destination,
            kind: 1,
            scope: 0,
            table: 254,
            gateway,
        }
        .bytes()
    }

    fn refresh(host: &mut Host, addresses: &[u8], routes: &[u8], resolv_conf: &[u8]) -> bool {
        host.begin();
        host.feed_addresses(addresses);
        host.feed_routes(routes);
        host.feed_resolv_conf(resolv_conf);
        end_refresh(host)
    }

    fn end_refresh(host: &mut Host) -> bool {
        host.feed_addresses(&done(1));
        for _ in ROUTE_REQUESTS {
            host.feed_routes(&done(2));
        }
        host.finish()
    }

    fn host(addresses: &[List<u8>], routes: &[List<u8>], resolv_conf: &str) -> Box<Host> {
        let mut host = Box::new(Host::new());
        let resolv_conf = resolv_conf.as_bytes();
        assert!(refresh(
            &mut host,
            &addresses.concat(),
            &routes.concat(),
            resolv_conf
        ));
        host
    }

    fn written(network: Network) -> String {
        format!("{}/{}", network.address(), network.prefix_length())
    }

    /// The network this was recorded in: see `netlink::tests`. Beside what is
    /// listed there, p0 has 172.20.0.0/16, 2001:db8:5::/64, 2000::/3 and a
    /// default route in table 300; 10.77.0.0/16 and 2001:db8:77::/48 are local,
    /// and so is everything in table 200.
    #[cfg(target_endian = "little")]
    fn recorded() -> Box<Host> {
        let mut host = Box::new(Host::new());
        host.begin();
        let addresses = include_bytes!("testing/netlink/addresses.bin");
        assert_eq!(host.feed_addresses(addresses), Progress::Done);
        for routes in [
            &include_bytes!("testing/netlink/routes_ipv4.bin")[..],
            include_bytes!("testing/netlink/routes_ipv6.bin"),
            include_bytes!("testing/netlink/nexthops.bin"),
        ] {
            assert_eq!(host.feed_routes(routes), Progress::Done);
        }
        assert!(host.finish());
        host
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_real_host() {
        let host = recorded();
        assert!(!host.is_incomplete());
        assert_eq!(host.lost(), 0);
        for own in [
            "192.0.2.10",
            "192.0.2.11",
            "203.0.113.5",
            "10.9.0.1",
            "2001:db8:1:2::10",
            "10.77.3.4",
            "2001:db8:77:1::1",
            "127.9.9.9",
            "::1",
            "::ffff:192.0.2.10",
        ] {
            assert!(host.is_own(ip(own)), "{own}");
        }
        for other in [
            "192.0.2.1",
            "192.0.2.255",
            "8.8.8.8",
            "10.9.0.2",
            "10.78.0.1",
            "2001:db8::",
        ] {
            assert!(!host.is_own(ip(other)), "{other}");
        }
        for on_link in [
            "192.0.2.77",
            "172.20.1.1",
            "2001:db8:1:2::7",
            "2001:db8:5::7",
            "10.9.0.2",
            "fe80::9",
        ] {
            assert!(host.is_on_link(net(on_link)), "{on_link}");
        }
        for remote in [
            "8.8.8.8",
            "198.51.100.7",
            "203.0.113.6",
            "198.18.0.1",
            "2001:db8:9::7",
            "10.50.0.1",
        ] {
            assert!(!host.is_on_link(net(remote)), "{remote}");
        }
        for (network, expected) in [
            ("192.0.2.10", Some(Protection::OwnAddress)),
            ("10.77.0.9", Some(Protection::OwnAddress)),
            ("192.0.2.255", Some(Protection::Broadcast)),
            ("192.0.2.1", Some(Protection::Gateway)),
            ("192.0.2.3", Some(Protection::Gateway)),
            ("192.0.2.4", Some(Protection::Gateway)),
            ("192.0.2.5", Some(Protection::Gateway)),
            ("fe80::1", Some(Protection::Gateway)),
            ("fe80::77", Some(Protection::Gateway)),
            ("192.0.2.6", None),
            ("8.8.8.8", None),
            ("2001:db8:9::/64", None),
        ] {
            assert_eq!(host.protected(net(network)), expected, "{network}");
        }
    }

    #[test]
    fn sources() {
        let mut host = host(
            &[
                address(ip("2001:db8:1:2::10"), 64, None, None),
                address(ip("2001:db8:a:b::10"), 128, None, None),
            ],
            &[
                via("::/0", "2001:db8:c:d::1"),
                direct("::/0"),
                direct("2001:db8:e:f::/64"),
            ],
            "nameserver 2001:db8:9:9::53\n",
        );
        host.allow(net("2001:db8:8:8::5"));
        host.set_ssh_connection(b"2001:db8:7:7::2 50000 2001:db8:1:2::10 22");
        for (address, source) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("2001:db8:5:6::7", "2001:db8:5:6::/64"),
            // On-link, by address and by route.
            ("2001:db8:1:2::7", "2001:db8:1:2::7/128"),
            ("2001:db8:e:f::7", "2001:db8:e:f::7/128"),
            // NAT64, its local-use prefix, Teredo, and their edges.
            ("64:ff9b::c000:201", "64:ff9b::c000:201/128"),
            ("64:ff9b:0:0:0:1::1", "64:ff9b::/64"),
            ("64:ff9b:1:ffff::1", "64:ff9b:1:ffff::1/128"),
            ("64:ff9b:2::1", "64:ff9b:2::/64"),
            ("2001:0:53aa::1", "2001:0:53aa::1/128"),
            ("2001:1::1", "2001:1::/64"),
            // The /64 of an own address, a gateway, a nameserver, an allowed
            // address and of the SSH peer.
            ("2001:db8:a:b::7", "2001:db8:a:b::7/128"),
            ("2001:db8:c:d::7", "2001:db8:c:d::7/128"),
            ("2001:db8:9:9::7", "2001:db8:9:9::7/128"),
            ("2001:db8:8:8::7", "2001:db8:8:8::7/128"),
            ("2001:db8:7:7::7", "2001:db8:7:7::7/128"),
            ("::7", "::7/128"),
        ] {
            assert_eq!(written(host.source_of(ip(address))), source, "{address}");
        }
    }

    #[test]
    fn protected_on_every_host() {
        let mut host = host(
            &[],
            &[],
            "nameserver 192.0.2.53\nnameserver ::ffff:192.0.2.54",
        );
        assert!(host.allow(net("198.51.100.0/24")));
        assert!(host.set_ssh_connection(b"203.0.113.9 50000 192.0.2.10 22"));
        for (network, expected) in [
            ("127.0.0.53", Some(Protection::Loopback)),
            ("::1", Some(Protection::Loopback)),
            ("0.0.0.0", Some(Protection::Unspecified)),
            ("0.0.0.1", None),
            ("::", Some(Protection::Unspecified)),
            ("224.0.0.1", Some(Protection::Multicast)),
            ("239.255.255.255", Some(Protection::Multicast)),
            ("ff02::1", Some(Protection::Multicast)),
            ("255.255.255.255", Some(Protection::Broadcast)),
            ("255.255.255.254", None),
            ("169.254.169.254", Some(Protection::LinkLocal)),
            ("169.253.255.255", None),
            ("::ffff:169.254.1.1", Some(Protection::LinkLocal)),
            ("::ffff:169.254.0.0/112", Some(Protection::LinkLocal)),
            ("192.0.2.53", Some(Protection::Nameserver)),
            ("192.0.2.54", Some(Protection::Nameserver)),
            ("198.51.100.77", Some(Protection::Allowed)),
            ("198.51.0.0/16", Some(Protection::Allowed)),
            ("203.0.113.9", Some(Protection::SshPeer)),
            ("203.0.113.0/24", Some(Protection::SshPeer)),
            ("0.0.0.0/0", Some(Protection::Loopback)),
            ("::/0", Some(Protection::Loopback)),
            ("8.8.8.8", None),
        ] {
            assert_eq!(host.protected(net(network)), expected, "{network}");
        }
    }

    /// Routes to a device that lead to the internet do not put it on a link.
    #[test]
    fn the_internet_is_not_on_link() {
        let wide = [
            "0.0.0.0/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "::/0",
            "2000::/3",
            "2001:db8::/48",
        ];
        let host = host(
            &[address(ip("10.0.0.2"), 0, None, None)],
            &wide.map(direct),
            "",
        );
        assert!(!host.is_on_link(net("8.8.8.8")));
        assert!(!host.is_on_link(net("10.0.0.3")));
        assert_eq!(written(host.source_of(ip("2001:db8::1"))), "2001:db8::/64");
    }

    /// TPROXY diverts everything with a local default route in a table of its
    /// own; that makes nothing ours.
    #[test]
    fn diverted_traffic_is_not_ours() {
        let host = host(
            &[],
            &[
                local("0.0.0.0/0", 100),
                local("0.0.0.0/0", 255),
                local("10.0.0.0/8", 100),
                local("192.0.2.1", 100),
            ],
            "",
        );
        assert!(!host.is_own(ip("8.8.8.8")));
        assert!(!host.is_own(ip("10.0.0.1")));
        assert!(host.is_own(ip("192.0.2.1")));
    }

    #[test]
    fn the_own_address_near_a_peer() {
        let own = ["192.0.2.10", "10.77.0.1", "10.78.0.1", "2001:db8:1:2::10"];
        let addresses: List<_> = own
            .iter()
            .map(|own| address(ip(own), 24, None, None))
            .collect();
        let host = host(&addresses, &[], "");
        for (peer, expected) in [
            ("10.77.0.9", "10.77.0.1"),
            ("10.78.5.9", "10.78.0.1"),
            ("192.0.2.1", "192.0.2.10"),
            ("2001:db8:9::1", "2001:db8:1:2::10"),
        ] {
            assert_eq!(host.own_near(net(peer)), Some(ip(expected)), "{peer}");
        }
    }

    #[test]
    fn resolv_conf_in_every_shape() {
        for (text, expected) in [
            ("nameserver 192.0.2.1\n", &["192.0.2.1"][..]),
            (
                "nameserver\t192.0.2.1   \r\nnameserver 2001:db8::1",
                &["192.0.2.1", "2001:db8::1"],
            ),
            ("# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n", &[]),
            ("nameserver fe80::1%eth0\n", &["fe80::1"]),
            (
                "nameserver192.0.2.1\nnameservers 192.0.2.2\nnameserver\n",
                &[],
            ),
            ("  nameserver 192.0.2.1 # router\n", &["192.0.2.1"]),
            ("search a.example\nnameserver bogus\noptions ndots:1\n", &[]),
            ("\0\n\n", &[]),
        ] {
            for size in [1, 3, 4096] {
                let mut host = host(&[], &[], "");
                host.begin();
                for part in text.as_bytes().chunks(size) {
                    host.feed_resolv_conf(part);
                }
                assert!(end_refresh(&mut host));
                let facts = host.current().protected.of(Kind::Nameserver);
                let found: List<_> = facts
                    .map(|network| format!("{}", network.address()))
                    .collect();
                assert_eq!(found, expected, "{text:?}");
            }
        }
        let line = format!("nameserver 192.0.2.1{}\n", " ".repeat(RESOLV_LINE));
        assert_eq!(host(&[], &[], &line).current().protected.sorted.len(), 0);
    }

    #[test]
    fn an_incomplete_refresh_changes_nothing() {
        let mut host = Box::new(Host::new());
        assert!(host.is_incomplete());
        assert_eq!(
            host.protected(net("8.8.8.8")),
            Some(Protection::HostUnknown)
        );
        assert_eq!(host.protected(net("127.0.0.1")), Some(Protection::Loopback));
        let own = address(ip("192.0.2.10"), 24, None, None);
        assert!(refresh(&mut host, &own, &[], b"nameserver 192.0.2.53"));
        assert!(!host.is_incomplete());
        assert_eq!(host.protected(net("8.8.8.8")), None);

        let other = address(ip("198.51.100.10"), 24, None, None);
        // No end of the address dump.
        host.begin();
        host.feed_addresses(&other);
        for _ in ROUTE_REQUESTS {
            host.feed_routes(&done(2));
        }
        assert!(!host.finish());
        // One route dump too few.
        host.begin();
        host.feed_addresses(&[other.clone(), done(1)].concat());
        host.feed_routes(&done(2));
        assert!(!host.finish());
        // A torn one.
        assert!(!refresh(&mut host, &other[..other.len() - 1], &[], b""));
        assert_eq!(host.feed_routes(&[1]), Progress::Failed(Failure::Malformed));
        // Nothing at all.
        assert!(!host.finish());
        assert!(host.is_own(ip("192.0.2.10")) && !host.is_own(ip("198.51.100.10")));

        // A complete one takes over; an empty resolv.conf does not.
        assert!(refresh(&mut host, &other, &[], b""));
        assert!(!host.is_own(ip("192.0.2.10")) && host.is_own(ip("198.51.100.10")));
        assert_eq!(
            host.protected(net("192.0.2.53")),
            Some(Protection::Nameserver)
        );
        assert!(refresh(&mut host, &other, &[], b"nameserver 192.0.2.54"));
        assert_eq!(host.protected(net("192.0.2.53")), None);
    }

    #[test]
    fn too_much_to_know_protects_everything() {
        let gateways: List<_> = (0..PROTECTED as u32)
            .map(|number| {
                via(
                    "0.0.0.0/0",
                    &Ipv4Addr::from_bits(0x0a00_0000 + number).to_string(),
                )
            })
            .collect();
        let full = host(&[], &gateways, "");
        assert_eq!((full.is_incomplete(), full.lost()), (false, 0));
        assert_eq!(full.protected(net("8.8.8.8")), None);
        let own = address(ip("192.0.2.10"), 32, None, None);
        let one_more = host(
            &[address(ip("192.0.2.9"), 32, None, None), own],
            &gateways,
            "",
        );
        assert_eq!((one_more.is_incomplete(), one_more.lost()), (true, 2));
        assert_eq!(
            one_more.protected(net("8.8.8.8")),
            Some(Protection::HostUnknown)
        );
        assert_eq!(
            one_more.protected(net("192.0.2.10")),
            Some(Protection::OwnAddress)
        );
        assert!(one_more.is_own(ip("192.0.2.10")));
    }

    /// A concentrator has a route for each of its many peers.
    #[test]
    fn too_many_links_make_everything_on_link() {
        let peers: List<_> = (0..=limits::ON_LINK_PREFIXES as u32)
            .map(|number| direct(&Ipv4Addr::from_bits(0x0a00_0000 + number).to_string()))
            .collect();
        let full = host(&[], &peers[1..], "");
        assert!(!full.is_on_link(net("8.8.8.8")));
        let one_more = host(&[], &peers, "");
        assert!(one_more.is_on_link(net("8.8.8.8")));
        assert!(!one_more.is_incomplete());
        assert_eq!(
            written(one_more.source_of(ip("2001:db8::1"))),
            "2001:db8::/64"
        );
    }

    #[test]
    fn allow_and_ssh_are_bounded() {
        let mut host = Box::new(Host::new());
        for _ in 0..limits::ALLOWED {
            assert!(host.allow(net("192.0.2.0/24")));
        }
        assert!(!host.allow(net("198.51.100.0/24")));
        for value in ["", "garbage 1 2 3", " "] {
            assert!(!host.set_ssh_connection(value.as_bytes()), "{value}");
        }
        assert!(host.set_ssh_connection(b"fe80::5%eth0 1 fe80::6%eth0 22"));
        assert_eq!(host.protected(net("fe80::5")), Some(Protection::SshPeer));
    }

    /// Words and labels are distinct, labels fit Prometheus' data model.
    #[test]
    fn every_protection_has_its_words() {
        for (index, protection) in Protection::ALL.iter().enumerate() {
            assert_eq!(*protection as usize, index);
            let label = protection.label();
            assert!(
                label
                    .iter()
                    .all(|byte| byte.is_ascii_lowercase() || *byte == b'_')
            );
            let others = Protection::ALL.iter().filter(|other| *other != protection);
            for other in others {
                assert_ne!(protection.words(), other.words());
                assert_ne!(label, other.label());
            }
        }
    }

    /// Lists searched from end to end do the same, slowly.
    #[derive(Default)]
    struct Twin {
        own: List<Network>,
        broadcast: List<Network>,
        gateways: List<Network>,
        on_link: List<Network>,
    }

    impl Twin {
        fn protects(&self, network: Network) -> bool {
            let lists = [&self.own, &self.broadcast, &self.gateways];
            ALWAYS.iter().any(|(held, _)| held.overlaps(network))
                || lists
                    .iter()
                    .any(|list| list.iter().any(|held| held.overlaps(network)))
        }

        fn source_of(&self, address: IpAddr) -> Network {
            let whole = Network::new(address, 64);
            let on_link = self.on_link.iter().any(|held| held.contains(address));
            let shared = SHARED.iter().any(|held| held.contains(address));
            if address.is_ipv4() || on_link || shared || self.protects(whole) {
                Network::single(address)
            } else {
                whole
            }
        }
    }

    /// xorshift64.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) % sides
        }

        /// Few addresses, so that they meet.
        fn address(&mut self) -> IpAddr {
            let low = self.roll(24) as u32;
            if self.roll(2) == 0 {
                let high =
                    [0x0a00_0000, 0x0a00_0100, 0xc0a8_0000, 0xa9fe_0000][self.roll(4) as usize];
                IpAddr::V4(Ipv4Addr::from_bits(high + low))
            } else {
                let high = [
                    0x2001_0db8 << 96,
                    0x2001_0db8_0000_0001 << 64,
                    0xfe80 << 112,
                    0x0064_ff9b << 96,
                ];
                IpAddr::V6(Ipv6Addr::from_bits(
                    high[self.roll(4) as usize] + u128::from(low),
                ))
            }
        }

        fn network(&mut self) -> Network {
            let address = self.address();
            let lengths = if address.is_ipv6() {
                [0, 3, 32, 48, 64, 120, 124, 128]
            } else {
                [0, 1, 8, 16, 24, 28, 30, 32]
            };
            Network::new(address, lengths[self.roll(8) as usize])
        }
    }

    fn random_address(dice: &mut Dice, twin: &mut Twin) -> List<u8> {
        let (local, prefix) = (dice.address(), dice.network());
        let broadcast = (dice.roll(2) == 0).then(|| dice.address());
        twin.own.push(Network::single(local));
        twin.broadcast.extend(broadcast.map(Network::single));
        let shortest = if prefix.is_ipv6() { 32 } else { 8 };
        if prefix.prefix_length() >= shortest && !prefix.is_single() {
            twin.on_link.push(prefix);
        }
        address(
            prefix.address(),
            prefix.prefix_length(),
            Some(local),
            broadcast,
        )
    }

    fn random_route(dice: &mut Dice, twin: &mut Twin) -> List<u8> {
        let route = TestRoute {
            destination: dice.network(),
            kind: 1 + dice.roll(3) as u8,
            scope: [0, 253, 254][dice.roll(3) as usize],
            table: [100, 254, 255][dice.roll(3) as usize],
            gateway: (dice.roll(3) == 0).then(|| dice.address()),
        };
        let (destination, length) = (route.destination, route.destination.prefix_length());
        twin.gateways.extend(route.gateway.map(Network::single));
        match route.kind {
            1 if route.gateway.is_none() && destination.is_ipv6() && length >= 64 => {
                twin.on_link.push(destination);
            }
            1 if route.gateway.is_none()
                && route.scope == 253
                && !destination.is_ipv6()
                && length >= 8 =>
            {
                twin.on_link.push(destination);
            }
            2 if destination.is_single() || (route.table == 255 && length > 0) => {
                twin.own.push(destination);
            }
            3 if destination.is_single() => twin.broadcast.push(destination),
            _ => {}
        }
        route.bytes()
    }

    #[test]
    fn agrees_with_a_naive_twin() {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let mut host = Box::new(Host::new());
        let mut seen = [0; 4];
        for _ in 0..300 {
            let mut twin = Twin::default();
            let (mut addresses, mut routes) = (List::new(), List::new());
            for _ in 0..dice.roll(12) {
                addresses.extend(random_address(&mut dice, &mut twin));
                routes.extend(random_route(&mut dice, &mut twin));
            }
            assert!(refresh(&mut host, &addresses, &routes, b""));
            for _ in 0..300 {
                let (address, network) = (dice.address(), dice.network());
                let is_own = twin.own.iter().any(|held| held.contains(address));
                let is_on_link = twin.on_link.iter().any(|held| held.overlaps(network));
                assert_eq!(host.is_own(address), is_own, "{address}");
                assert_eq!(host.is_on_link(network), is_on_link, "{network:?}");
                assert_eq!(
                    host.source_of(address),
                    twin.source_of(address),
                    "{address}"
                );
                let is_protected = host.protected(network).is_some();
                assert_eq!(is_protected, twin.protects(network), "{network:?}");
                seen[0] += u32::from(is_own);
                seen[1] += u32::from(is_on_link);
                seen[2] += u32::from(is_protected);
                seen[3] += u32::from(host.source_of(address).is_single());
            }
        }
        assert!(
            seen.iter().all(|count| (5_000..85_000).contains(count)),
            "{seen:?}"
        );
    }
}
