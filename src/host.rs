//! What this host is: its own addresses, the prefixes on its links, and the
//! addresses no block may ever touch.
//!
//! A fact may be kept too long and is never lost too early. So each counts as
//! soon as any message names it, and goes only where a whole dump of every
//! section that listed it lists it no longer. Messages of removals are not
//! counted against those of additions: the kernel repeats and omits both.

use core::mem;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use heapless::{Vec, VecView};

use crate::address::{NAT64, Network, below, fold_mapped, is_loopback, parse_address};
use crate::limits::{
    ALLOWED, BROADCASTS, GATEWAYS, LINK_LOCAL_GATEWAYS, NAMESERVERS, ON_LINK_PREFIXES,
    OWN_ADDRESSES, SHARED_LINKS,
};
use crate::netlink::{
    AddressMessage, HostMessage, Link, RT_SCOPE_LINK, RT_TABLE_LOCAL, Route, RouteKind, Section,
};
use crate::text::{Text, place, trim};

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

/// The label of each, in their order: a macro, since only literals make one text
/// with the labels of other refusals.
macro_rules! protection_labels {
    () => {
        "loopback unspecified multicast broadcast link_local own gateway nameserver allowed \
            ssh_peer host_unknown"
    };
}

pub(crate) use protection_labels;

impl Protection {
    /// How many there are.
    pub const COUNT: usize = Self::HostUnknown as usize + 1;

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

/// Where one /64 holds many unrelated hosts: NAT64 and Teredo (RFC 4380 section
/// 2.6).
const SHARED: [Network; 3] = [NAT64[0], NAT64[1], v6(0x2001_0000 << 96, 32)];

/// Addresses that name nobody beyond a site (RFC 1918, RFC 6598, RFC 3927,
/// RFC 4193, RFC 4291 section 2.5.6). Those kept for documentation are like any
/// other: nobody has them, and tests do.
const PRIVATE: [Network; 7] = [
    v4(10, 0, 0, 0, 8),
    v4(172, 16, 0, 0, 12),
    v4(192, 168, 0, 0, 16),
    v4(100, 64, 0, 0, 10),
    v4(169, 254, 0, 0, 16),
    v6(0xfc << 120, 7),
    LINK_LOCAL,
];

/// A link by its number, where networks are kept.
#[inline(never)]
fn place_of_link(number: u32) -> Network {
    Network::single(IpAddr::V6(Ipv6Addr::from_bits(number.into())))
}

/// Where routers that announce themselves have their address (RFC 4861 section
/// 6.1.2): one host on a link can be thousands of them.
const LINK_LOCAL: Network = v6(0xfe80 << 112, 10);

/// Where a fact is listed: a bit for each `Section`, and one for these.
const RESOLVER_FILES: u8 = 1 << Section::ALL.len();
/// And what the start brought.
const START: u8 = RESOLVER_FILES << 1;

/// A network, and where it is listed. IPv4 stands above all of IPv6, in
/// ff00::/8, where no fact ever is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fact {
    high: u64,
    low: u64,
    host_bits: u8,
    /// The sections it is listed in.
    origins: u8,
    /// Those that listed it since their last dump began.
    fresh: u8,
}

/// The lowest address as a number, and the number of last bits that do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(u128, u8);

impl Place {
    fn of(network: Network) -> Self {
        let number = match network.address() {
            IpAddr::V4(v4) => u128::MAX << 32 | u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        Self(number, network.host_bits())
    }

    fn last(self) -> u128 {
        self.0 | below(self.1)
    }

    /// The network of `host_bits` around it.
    fn within(self, host_bits: u8) -> Self {
        Self(self.0 & !below(host_bits), host_bits)
    }

    const fn is_ipv4(self) -> bool {
        self.0 >= u128::MAX << 32
    }

    const fn network(self) -> Network {
        Network::of_size(self.address(), self.1)
    }

    const fn address(self) -> IpAddr {
        if self.is_ipv4() {
            IpAddr::V4(Ipv4Addr::from_bits(self.0 as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(self.0))
        }
    }
}

impl Fact {
    const fn place(self) -> Place {
        Place((self.high as u128) << 64 | self.low as u128, self.host_bits)
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

/// Facts of one kind, by place. The code is one for every capacity.
struct Facts<V: ?Sized = VecView<Fact>> {
    /// A bit for each number of host bits among them, from one on.
    sizes: u128,
    /// A bit for each `ending`, all where there is a whole network: hardly any
    /// peer of the thousands in a reading needs a search.
    endings: u64,
    /// The sections with facts that did not fit: by their last whole dump, and
    /// since the last one began.
    lost: u8,
    losing: u8,
    sorted: V,
}

impl<const N: usize> Facts<Vec<Fact, N>> {
    const fn new() -> Self {
        Self {
            sizes: 0,
            endings: 0,
            lost: 0,
            losing: 0,
            sorted: Vec::new(),
        }
    }

    const fn view(&self) -> &Facts {
        self
    }

    const fn view_mut(&mut self) -> &mut Facts {
        self
    }
}

impl Facts {
    /// Whether it is news.
    fn insert(&mut self, network: Network, origin: u8) -> bool {
        let place = Place::of(network);
        let index = self.index_of(place);
        let held = self.sorted.get_mut(index);
        if let Some(fact) = held.filter(|fact| fact.place() == place) {
            (fact.origins, fact.fresh) = (fact.origins | origin, fact.fresh | origin);
            return false;
        }
        let mut fact = Fact {
            high: (place.0 >> 64) as u64,
            low: place.0 as u64,
            host_bits: place.1,
            origins: origin,
            fresh: origin,
        };
        if self.sorted.push(fact).is_err() {
            self.lost |= origin;
            self.losing |= origin;
            return false;
        }
        // Each one behind it moves on by a place.
        for held in self.sorted.get_mut(index..).unwrap_or_default() {
            mem::swap(held, &mut fact);
        }
        self.summarise(place);
        true
    }

    #[inline(never)]
    fn index_of(&self, place: Place) -> usize {
        self.sorted.partition_point(|held| held.place() < place)
    }

    #[inline(never)]
    fn summarise(&mut self, Place(bits, host_bits): Place) {
        if host_bits == 0 {
            self.endings |= 1 << (bits as u32 & 63);
        } else {
            self.sizes |= 1 << ((host_bits - 1) & 127);
            self.endings = u64::MAX;
        }
    }

    /// Whether nothing was ever put in; then nothing is written either.
    fn is_untouched(&self) -> bool {
        self.sorted.is_empty() && self.lost | self.losing == 0
    }

    /// A dump of `origin` begins.
    #[inline(never)]
    fn begin(&mut self, origin: u8) {
        if self.is_untouched() {
            return;
        }
        self.losing &= !origin;
        for fact in &mut self.sorted {
            fact.fresh &= !origin;
        }
    }

    /// The dump was whole: what it did not list goes. Whether anything went.
    fn finish(&mut self, origin: u8) -> bool {
        if self.is_untouched() {
            return false;
        }
        self.lost &= self.losing | !origin;
        let before = self.sorted.len();
        let mut kept = 0;
        for index in 0..before {
            let fact = self.sorted.get(index).copied();
            if let (Some(mut fact), Some(place)) = (fact, self.sorted.get_mut(kept)) {
                fact.origins &= fact.fresh | !origin;
                *place = fact;
                kept += usize::from(fact.origins != 0);
            }
        }
        let has_removed = kept != before;
        if has_removed {
            self.sorted.truncate(kept);
            (self.sizes, self.endings) = (0, 0);
            for index in 0..self.sorted.len() {
                let place = self.sorted.get(index).map(|fact| fact.place());
                place.into_iter().for_each(|place| self.summarise(place));
            }
        }
        has_removed
    }

    /// Whether a fact shares an address with `network`: one lies in it, or, one
    /// search for each length that there is, around it.
    fn overlaps(&self, network: Network) -> bool {
        let Some(first) = self.sorted.first() else {
            return false;
        };
        let place = Place::of(network);
        // IPv4 stands above: where no fact is of IPv6, no IPv6 peer of the
        // thousands in a reading needs a search.
        let last = place.last();
        if last < first.place().0 {
            return false;
        }
        let next = self.sorted.get(self.index_of(Place(place.0, 0)));
        let within = |fact: &&Fact| {
            let held = fact.place();
            held.0 <= last && held.is_ipv4() == place.is_ipv4()
        };
        if next.filter(within).is_some() {
            return true;
        }
        let mut wider = self.sizes & !below(place.1);
        if place.is_ipv4() {
            wider &= below(32);
        }
        while wider != 0 {
            let around = place.within(wider.trailing_zeros() as u8 + 1);
            let held = self.sorted.get(self.index_of(around));
            if held.is_some_and(|fact| fact.place() == around) {
                return true;
            }
            wider &= wider - 1;
        }
        false
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.endings & ending(address) != 0 && self.overlaps(Network::single(address))
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

/// Whether a source may be blocked, as far as that depends on what is known of
/// the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// A dump is under way.
    Awaited,
    /// All that must be known is.
    Whole,
    /// It cannot be had, or is more than fits.
    Lacking,
}

/// A line of a resolver's file (resolv.conf(5), dnsmasq(8)), of any length: the
/// part of it that came last and may matter.
struct ResolverLine {
    part: LinePart,
    /// Longer than any address with its port.
    word: Text<64>,
}

#[derive(Clone, Copy)]
enum LinePart {
    /// The name of an option.
    Name,
    /// The network before the address of dnsmasq's `rev-server`.
    Network,
    /// An address, or a domain between slashes before it.
    Address,
    /// Nothing more of the line counts.
    Rest,
}

impl ResolverLine {
    const fn new() -> Self {
        Self {
            part: LinePart::Name,
            word: Text::new(),
        }
    }

    #[inline(never)]
    fn put(&mut self, byte: u8) {
        let is_blank = matches!(byte, b' ' | b'\t' | b'\r');
        match self.part {
            LinePart::Name if byte == b'=' || is_blank => {
                let word = self.word.as_bytes();
                let name = place(b"nameserver|server|local|rev-server", word, |a, b| a == b);
                let part = match (name, is_blank) {
                    (Some(0), true) | (Some(1 | 2), false) => LinePart::Address,
                    (Some(3), false) => LinePart::Network,
                    (_, false) => LinePart::Rest,
                    (_, true) => return,
                };
                self.begin_value(part);
            }
            LinePart::Network if byte == b',' => self.part = LinePart::Address,
            LinePart::Address if byte == b'/' => self.word.clear(),
            LinePart::Address if is_blank && !self.word.is_empty() => self.part = LinePart::Rest,
            LinePart::Name | LinePart::Address if !is_blank => self.word.put_byte(byte),
            _ => {}
        }
    }

    #[inline(never)]
    fn begin_value(&mut self, part: LinePart) {
        self.word.clear();
        self.part = part;
    }

    /// The nameserver that the line names; a new line begins.
    fn end(&mut self) -> Option<IpAddr> {
        let address = first_address(self.word.as_bytes());
        let is_value = !matches!(self.part, LinePart::Name);
        self.begin_value(LinePart::Name);
        address.filter(|_| is_value)
    }
}

/// What this host is, as far as it is known. All zero bytes when new. Lists that
/// nothing was put into take no memory.
#[repr(C)]
pub struct Host<const OWN: usize = OWN_ADDRESSES, const LINKS: usize = ON_LINK_PREFIXES> {
    /// The sections that were whole once.
    known: u8,
    knowledge: Knowledge,
    /// Something came to be protected.
    has_grown: bool,
    /// A shared link was found since the last dump of links began.
    has_new_shared_links: bool,
    /// The files that named a nameserver when all were read last, and those
    /// that do in this reading, one bit each.
    named: u32,
    naming: u32,
    names_stub: bool,
    resolver_line: ResolverLine,
    ssh_peer: Facts<Vec<Fact, 1>>,
    /// The sections with local networks that make nothing ours, as one fact.
    diversions: Facts<Vec<Fact, 1>>,
    nameservers: Facts<Vec<Fact, NAMESERVERS>>,
    broadcasts: Facts<Vec<Fact, BROADCASTS>>,
    shared_links: Facts<Vec<Fact, SHARED_LINKS>>,
    gateways: Facts<Vec<Fact, GATEWAYS>>,
    link_local_gateways: Facts<Vec<Fact, LINK_LOCAL_GATEWAYS>>,
    own: Facts<Vec<Fact, OWN>>,
    on_link: Facts<Vec<Fact, LINKS>>,
    allowed: Facts<Vec<Fact, ALLOWED>>,
}

impl<const OWN: usize, const LINKS: usize> Host<OWN, LINKS> {
    /// Nothing is known yet: everything is protected.
    pub const fn new() -> Self {
        Self {
            known: 0,
            knowledge: Knowledge::Awaited,
            has_grown: false,
            named: 0,
            naming: 0,
            names_stub: false,
            resolver_line: ResolverLine::new(),
            ssh_peer: Facts::new(),
            allowed: Facts::new(),
            nameservers: Facts::new(),
            broadcasts: Facts::new(),
            shared_links: Facts::new(),
            has_new_shared_links: false,
            gateways: Facts::new(),
            link_local_gateways: Facts::new(),
            diversions: Facts::new(),
            own: Facts::new(),
            on_link: Facts::new(),
        }
    }

    /// Protects a network of --allow for good; `false` where that was done, or no
    /// more fit.
    pub fn allow(&mut self, network: Network) -> bool {
        let network = fold_network(network);
        self.allowed.view_mut().insert(network, START)
    }

    /// Protects the peer named first in `value`, the environment variable
    /// SSH_CONNECTION (ssh(1)); `false` where it names none.
    pub fn set_ssh_connection(&mut self, value: &[u8]) -> bool {
        let address = first_address(value).map(Network::single);
        address.is_some_and(|address| self.ssh_peer.view_mut().insert(address, START))
    }

    /// A dump of `section` begins.
    pub fn begin(&mut self, section: Section) {
        self.has_new_shared_links &= section != Section::Links;
        for facts in self.kernel_facts() {
            facts.begin(section.bit());
        }
    }

    #[inline(never)]
    fn kernel_facts(&mut self) -> [&mut Facts; 7] {
        [
            &mut self.own,
            &mut self.gateways,
            &mut self.link_local_gateways,
            &mut self.diversions,
            &mut self.on_link,
            &mut self.broadcasts,
            &mut self.shared_links,
        ]
    }

    /// Whether the last dump of links is to be made again.
    pub fn has_new_shared_links(&self) -> bool {
        self.has_new_shared_links
    }

    /// Takes in what is there. What is gone is found by the next dump.
    #[inline(never)]
    pub fn take(&mut self, message: HostMessage) {
        match message {
            HostMessage::Address(address) => self.take_address(address),
            HostMessage::Route(route) => self.take_route(route),
            HostMessage::Gateway(section, gateway) => {
                let gateways = if LINK_LOCAL.contains(gateway) {
                    self.link_local_gateways.view_mut()
                } else {
                    self.gateways.view_mut()
                };
                self.has_grown |= gateways.insert(Network::single(gateway), section.bit());
            }
            HostMessage::Link(link) => self.take_link(link),
            HostMessage::Removed(_) | HostMessage::LinkDown | HostMessage::Interrupted => {}
        }
    }

    /// The dump of `section` ended well. Where it `is_whole`, what it did not
    /// list goes; else something may be missing in it. Returns the sections to
    /// be asked for again: there is room now for what did not fit.
    pub fn finish(&mut self, section: Section, is_whole: bool) -> u8 {
        let origin = section.bit();
        if section != Section::Links || !self.has_new_shared_links {
            self.known |= origin;
        }
        if !is_whole {
            return 0;
        }
        let (mut has_room, mut lost) = (false, 0);
        for facts in self.kernel_facts() {
            has_room |= facts.finish(origin);
            lost |= facts.lost;
        }
        if has_room { lost } else { 0 }
    }

    /// The files of the resolver are about to be read.
    pub fn begin_resolver(&mut self) {
        self.nameservers.view_mut().begin(RESOLVER_FILES);
        (self.naming, self.names_stub) = (0, false);
    }

    /// Takes a part, of any size, of a resolver's file, one of 32.
    pub fn feed_resolver(&mut self, file: u8, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.end_resolver_file(file);
            } else {
                self.resolver_line.put(*byte);
            }
        }
    }

    /// The file ends, and its last line, which may lack a newline. A nameserver
    /// at an address of our own is a stub of others.
    pub fn end_resolver_file(&mut self, file: u8) {
        match self.resolver_line.end() {
            Some(address) if self.is_own(address) => self.names_stub = true,
            Some(address) => {
                self.naming |= 1 << (file & 31);
                let address = Network::single(address);
                self.has_grown |= self.nameservers.view_mut().insert(address, RESOLVER_FILES);
            }
            None => {}
        }
    }

    /// Whether upstream nameservers are named elsewhere, if anywhere.
    pub fn needs_upstreams(&self) -> bool {
        self.names_stub || self.lacks_nameserver()
    }

    /// Whether no file named a nameserver that is not this host itself.
    pub fn lacks_nameserver(&self) -> bool {
        self.naming == 0
    }

    /// The files were read. Where one names no nameserver any more those known
    /// before stay until the next time: it may be away or empty while it is
    /// written anew.
    pub fn finish_resolver(&mut self) {
        if self.naming == 0 {
            return;
        }
        if self.naming & self.named == self.named {
            self.nameservers.view_mut().finish(RESOLVER_FILES);
        }
        self.named = self.naming;
    }

    /// Decides from now on whether sources may be blocked.
    pub fn set_knowledge(&mut self, knowledge: Knowledge) {
        self.knowledge = knowledge;
    }

    /// Whether sources may be blocked, as far as that depends on this.
    pub fn knowledge(&self) -> Knowledge {
        self.knowledge
    }

    /// Whether something came to be protected since this was asked last.
    pub fn take_growth(&mut self) -> bool {
        core::mem::take(&mut self.has_grown)
    }

    /// Whether `address` is the host's own or loopback. One binary search.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let address = fold_mapped(address);
        is_loopback(address) || self.own.view().contains(address)
    }

    /// The own address that has most in common with `source`: where one lost
    /// its local address, the likely one (RFC 6724 section 5, rule 8).
    #[inline(never)]
    pub fn own_near(&self, source: Network) -> Option<IpAddr> {
        let peer = Place::of(source);
        let mut nearest = None;
        let mut most = 0;
        for own in self.own.view().sorted.iter().map(|fact| fact.place()) {
            let common = (own.0 ^ peer.0).leading_zeros();
            if own.1 == 0 && own.is_ipv4() == peer.is_ipv4() && common >= most {
                (nearest, most) = (Some(own), common);
            }
        }
        nearest.map(Place::address)
    }

    /// Whether `network` shares addresses with one of the host's own on-link
    /// prefixes.
    #[inline(never)]
    pub fn is_on_link(&self, network: Network) -> bool {
        self.on_link.view().overlaps(fold_network(network))
    }

    /// Whether an address may be anybody's: neither private nor our own, nor on a
    /// link of ours.
    pub fn is_elsewhere(&self, address: IpAddr) -> bool {
        let address = fold_mapped(address);
        let is_private = PRIVATE.iter().any(|network| network.contains(address));
        !is_private && !self.is_own(address) && !self.is_on_link(Network::single(address))
    }

    /// Whether what is in another network namespace may send by this link as
    /// well: it is a bridge with a port whose other end is there, or a tunnel
    /// without keys. So is every link while they are not known, or more than fit.
    #[inline(never)]
    pub fn may_be_shared(&self, link: u32) -> bool {
        let shared = self.shared_links.view();
        let is_known = self.known & Section::Links.bit() != 0 && shared.lost == 0;
        !is_known || shared.overlaps(place_of_link(link))
    }

    /// The source that `address` belongs to: IPv4 by itself, IPv6 by its /64,
    /// the unit a single host commands (RFC 6177 section 2), but by itself
    /// where unrelated hosts or protected addresses share that /64.
    pub fn source_of(&self, address: IpAddr) -> Network {
        if address.is_ipv4() {
            return Network::single(address);
        }
        let address = fold_mapped(address);
        let around = Network::new(address, 64);
        if address.is_ipv4() || self.shares_its_64(address, around) {
            Network::single(address)
        } else {
            around
        }
    }

    /// Why `network` must not be blocked, if any address in it is protected;
    /// `HostUnknown` for everything while not all is known, and for what is
    /// link-local while it may be a gateway that did not fit. A network of many
    /// /64s is protected where single addresses of it are sources, too.
    pub fn protected(&self, network: Network) -> Option<Protection> {
        let has_lost = self.link_local_gateways.lost != 0;
        let is_unknown =
            self.knowledge != Knowledge::Whole || (has_lost && LINK_LOCAL.overlaps(network));
        let unknown = is_unknown.then_some(Protection::HostUnknown);
        // One network for many sources must hold none that stands for itself.
        let is_shared = || SHARED.iter().any(|shared| shared.overlaps(network));
        let holds_others = network.is_wide() && (self.is_on_link(network) || is_shared());
        let others = holds_others.then_some(Protection::OwnAddress);
        let known = self.known_protection(fold_network(network));
        known.or(others).or(unknown)
    }

    /// Whether --allow protects anything.
    pub fn has_allowed(&self) -> bool {
        !self.allowed.sorted.is_empty()
    }

    /// Whether the peer of an SSH session is protected.
    pub fn has_ssh_peer(&self) -> bool {
        !self.ssh_peer.sorted.is_empty()
    }

    /// Whether protected addresses may be missing: some dump was never whole,
    /// or listed more than fits.
    pub fn is_incomplete(&self) -> bool {
        self.known & Section::PROTECTING != Section::PROTECTING || self.lost() != 0
    }

    /// The sections with protected addresses that did not fit, but for link-local
    /// gateways.
    pub fn lost(&self) -> u8 {
        self.own.lost | self.gateways.lost
    }

    /// Whether there is room for all nameservers. Those that did not fit are
    /// not protected.
    pub fn fits_nameservers(&self) -> bool {
        self.nameservers.lost == 0
    }

    /// Whether there is room for all prefixes on links. Sources in those that
    /// did not fit are taken for sources from elsewhere.
    pub fn fits_links(&self) -> bool {
        self.on_link.lost == 0
    }

    /// Whether packets to addresses that are not ours may be taken here.
    pub fn diverts(&self) -> bool {
        !self.diversions.sorted.is_empty()
    }

    fn take_address(&mut self, message: AddressMessage) {
        let origin = Section::Addresses.bit();
        self.add_own(Network::single(message.local), origin);
        if let Some(broadcast) = message.broadcast {
            self.add_broadcast(Network::single(broadcast), origin);
        }
        // A prefix of one address is the address itself, or the peer of a
        // point-to-point link, which has a route of its own.
        if !message.prefix.is_single() {
            self.add_on_link(message.prefix, LARGEST_ALLOCATION, origin);
        }
    }

    /// What stands on a shared link is shared, and so are its other ports: a
    /// VLAN, or a veth pair to the next bridge. Of those named before it the next
    /// dump shows it, and until one has shown no other all links count as shared.
    /// An open tunnel is shared by all who reach its end here.
    fn take_link(&mut self, link: Link) {
        let Link { lower, master, .. } = link;
        self.share_link(link.leaves_namespace, lower, master);
        self.share_link(link.is_open_tunnel, lower, link.number);
        self.share_link(false, master, link.number);
    }

    #[inline(never)]
    fn share_link(&mut self, is_shared: bool, by: u32, number: u32) {
        let shared = self.shared_links.view_mut();
        let is_shared = is_shared || shared.overlaps(place_of_link(by));
        let place = place_of_link(number);
        if is_shared && number != 0 && shared.insert(place, Section::Links.bit()) {
            self.has_new_shared_links = true;
            self.known &= !Section::Links.bit();
        }
    }

    fn take_route(&mut self, route: Route) {
        let destination = route.destination;
        let origin = route.section().bit();
        match route.kind {
            RouteKind::Unicast if is_direct(route) => {
                self.add_on_link(destination, SLAAC_PREFIX, origin);
            }
            // Outside the table `local`, and of every address, a local network is
            // a trick to divert packets (`ip route add local default dev lo table
            // 100` for TPROXY), not a statement of what is ours.
            RouteKind::Local
                if destination.is_single()
                    || (route.table == RT_TABLE_LOCAL && destination.prefix_length() > 0) =>
            {
                self.add_own(destination, origin);
            }
            RouteKind::Local if !is_loopback(destination.address()) => {
                self.diversions.view_mut().insert(v6(0, 0), origin);
            }
            RouteKind::Broadcast if destination.is_single() => {
                self.add_broadcast(destination, origin);
            }
            RouteKind::Unicast | RouteKind::Local | RouteKind::Broadcast | RouteKind::Other => {}
        }
    }

    fn add_own(&mut self, network: Network, origin: u8) {
        if !is_loopback(network.address()) && network.prefix_length() > 0 {
            self.has_grown |= self.own.view_mut().insert(network, origin);
        }
    }

    /// One that does not fit is no loss: no handshake ever comes from there.
    fn add_broadcast(&mut self, network: Network, origin: u8) {
        self.has_grown |= self.broadcasts.view_mut().insert(network, origin);
    }

    /// `shortest_v6` is the shortest IPv6 prefix that is taken for a link.
    fn add_on_link(&mut self, network: Network, shortest_v6: u8, origin: u8) {
        let shortest = if network.is_ipv6() {
            shortest_v6
        } else {
            LARGEST_PRIVATE
        };
        let address = network.address();
        if network.prefix_length() >= shortest && !is_loopback(address) && !address.is_multicast() {
            self.on_link.view_mut().insert(network, origin);
        }
    }

    fn shares_its_64(&self, address: IpAddr, around: Network) -> bool {
        SHARED.iter().any(|network| network.contains(address))
            || self.on_link.view().overlaps(Network::single(address))
            || self.known_protection(around).is_some()
    }

    fn known_protection(&self, network: Network) -> Option<Protection> {
        let always = ALWAYS.iter().find(|(held, _)| held.overlaps(network));
        if let Some((_, protection)) = always {
            return Some(*protection);
        }
        if self.own.view().overlaps(network) {
            Some(Protection::OwnAddress)
        } else if self.gateways.view().overlaps(network)
            || self.link_local_gateways.view().overlaps(network)
        {
            Some(Protection::Gateway)
        } else if self.nameservers.view().overlaps(network) {
            Some(Protection::Nameserver)
        } else if self.broadcasts.view().overlaps(network) {
            Some(Protection::Broadcast)
        } else if self.allowed.view().overlaps(network) {
            Some(Protection::Allowed)
        } else {
            let is_peer = self.ssh_peer.view().overlaps(network);
            is_peer.then_some(Protection::SshPeer)
        }
    }

    /// Names what is protected on this host and why, but for the broadcast
    /// addresses of its links: of one kind at most so many, and then `None`.
    #[inline(never)]
    pub fn name_protected(&self, most: usize, name: &mut dyn FnMut(Option<Network>, Protection)) {
        let facts: [(Protection, &Facts); 6] = [
            (Protection::OwnAddress, self.own.view()),
            (Protection::Gateway, self.gateways.view()),
            (Protection::Gateway, self.link_local_gateways.view()),
            (Protection::Nameserver, self.nameservers.view()),
            (Protection::Allowed, self.allowed.view()),
            (Protection::SshPeer, self.ssh_peer.view()),
        ];
        for (protection, facts) in facts {
            for fact in facts.sorted.iter().take(most) {
                name(Some(fact.place().network()), protection);
            }
            if facts.sorted.len() > most {
                name(None, protection);
            }
        }
        if self.is_incomplete() {
            name(None, Protection::HostUnknown);
        }
    }
}

/// `network` as IPv4 where it lies in ::ffff:0:0/96.
fn fold_network(network: Network) -> Network {
    if network.host_bits() > 32 {
        return network;
    }
    Network::of_size(fold_mapped(network.address()), network.host_bits())
}

/// The first word of `text` as an address, without the zone of `fe80::1%eth0`
/// (RFC 4007 section 11), and dnsmasq's port and interface.
fn first_address(text: &[u8]) -> Option<IpAddr> {
    let is_end = |byte: &u8| matches!(byte, b' ' | b'\t' | b'%' | b'#' | b'@');
    let word = trim(text).split(is_end).next()?;
    parse_address(word).map(fold_mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;
    use crate::netlink::{Progress, header, walk_host};
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

    /// Room enough for tests, and little of it on their stack.
    type SmallHost = Host<64, 64>;

    fn feed<const O: usize, const L: usize>(host: &mut Host<O, L>, bytes: &[u8]) {
        let progress = walk_host(bytes, 0, &mut |message| host.take(message));
        assert_eq!(progress, Progress::More);
    }

    /// A whole dump of everything.
    fn refresh<const O: usize, const L: usize>(
        host: &mut Host<O, L>,
        addresses: &[u8],
        routes: &[u8],
    ) -> u8 {
        let mut again = 0;
        for section in Section::ALL {
            host.begin(section);
            feed(
                host,
                if section == Section::Addresses {
                    addresses
                } else {
                    routes
                },
            );
            again |= host.finish(section, true);
        }
        host.set_knowledge(Knowledge::Whole);
        again
    }

    fn read(host: &mut SmallHost, files: &[&str]) {
        host.begin_resolver();
        for (file, number) in files.iter().zip(0..) {
            host.feed_resolver(number, file.as_bytes());
            host.end_resolver_file(number);
        }
        host.finish_resolver();
    }

    fn host(addresses: &[List<u8>], routes: &[List<u8>], resolv_conf: &str) -> Box<SmallHost> {
        let mut host = Box::new(Host::new());
        refresh(&mut host, &addresses.concat(), &routes.concat());
        read(&mut host, &[resolv_conf]);
        host
    }

    fn nameservers(host: &SmallHost) -> List<String> {
        let facts = host.nameservers.sorted.iter();
        let addresses = facts.map(|fact| match fact.place() {
            place if place.is_ipv4() => format!("{}", Ipv4Addr::from_bits(place.0 as u32)),
            place => format!("{}", Ipv6Addr::from_bits(place.0)),
        });
        addresses.collect()
    }

    fn written(network: Network) -> String {
        format!("{}/{}", network.address(), network.prefix_length())
    }

    /// The network this was recorded in: see `netlink::tests`. Beside what is
    /// listed there, p0 has 172.20.0.0/16, 2001:db8:5::/64, 2000::/3 and a
    /// default route in table 300; 10.77.0.0/16 and 2001:db8:77::/48 are local,
    /// and so is everything in table 200.
    #[cfg(target_endian = "little")]
    fn recorded() -> Box<SmallHost> {
        let mut host = Box::new(Host::new());
        let answers = [
            (&include_bytes!("testing/netlink/addresses.bin")[..], 1),
            (include_bytes!("testing/netlink/routes_ipv4.bin"), 2),
            (include_bytes!("testing/netlink/routes_ipv6.bin"), 2),
            (include_bytes!("testing/netlink/nexthops.bin"), 2),
        ];
        for (section, (bytes, sequence)) in Section::ALL.into_iter().zip(answers) {
            assert!(host.is_incomplete());
            host.begin(section);
            let progress = walk_host(bytes, sequence, &mut |message| host.take(message));
            assert_eq!(progress, Progress::Done);
            host.finish(section, true);
        }
        host.set_knowledge(Knowledge::Whole);
        host
    }

    /// No address of a host lies there, but an option may name it.
    #[test]
    fn the_highest_ipv6_addresses_are_none_of_ipv4() {
        let mut host: Box<Host> = crate::testing::boxed(Host::new);
        for text in [
            "ffff:ffff:ffff:ffff::/64",
            "ffff:ffff:ffff:ffff::1",
            "192.0.2.1",
            "0.0.0.0/0",
        ] {
            assert!(host.allow(net(text)));
        }
        let mut named = List::new();
        host.name_protected(9, &mut |network, _| named.extend(network));
        for text in [
            "ffff:ffff:ffff:ffff::/64",
            "ffff:ffff:ffff:ffff::1",
            "192.0.2.1",
            "0.0.0.0/0",
        ] {
            assert!(named.contains(&net(text)), "{text}: {named:?}");
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_real_host() {
        let host = recorded();
        assert!(!host.is_incomplete());
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
    fn what_diverts_traffic() {
        for (routes, expected) in [
            (&[][..], false),
            (&[local("127.0.0.0/8", 255), local("::1", 255)], false),
            // A VRF has them in a table of its own; AnyIP, and IPVS.
            (&[local("127.0.0.0/8", 10), local("192.0.2.1", 10)], false),
            (&[local("192.0.2.0/24", 255)], false),
            (&[direct("0.0.0.0/0"), via("::/0", "2001:db8::1")], false),
            (&[local("0.0.0.0/0", 100)], true),
            (&[local("::/0", 100)], true),
            (&[local("0.0.0.0/1", 100), local("128.0.0.0/1", 100)], true),
            (&[local("::/0", 255)], true),
        ] {
            let mut host = host(&[], routes, "");
            assert_eq!(host.diverts(), expected, "{routes:?}");
            refresh(&mut host, &[], &[]);
            assert!(!host.diverts(), "gone: {routes:?}");
        }
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
                &["2001:db8::1", "192.0.2.1"],
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
                host.begin_resolver();
                for part in text.as_bytes().chunks(size) {
                    host.feed_resolver(0, part);
                }
                host.end_resolver_file(0);
                host.finish_resolver();
                assert_eq!(nameservers(&host), expected, "{text:?}");
            }
        }
        let (domains, words) = ("a.example/".repeat(300), "a, b/c ".repeat(300));
        for line in [
            format!("nameserver 192.0.2.1{}# {words}", " ".repeat(999)),
            format!("server=/{domains}192.0.2.1\n"),
            format!("local = /{domains}192.0.2.1 # {words}"),
        ] {
            assert_eq!(nameservers(&host(&[], &[], &line)), ["192.0.2.1"], "{line}");
        }
    }

    #[test]
    fn every_option_of_dnsmasq_that_names_a_server() {
        for (line, expected) in [
            ("server=192.0.2.1", Some("192.0.2.1")),
            ("  server =\t192.0.2.1 # router\r", Some("192.0.2.1")),
            ("server=192.0.2.1#5353@eth0", Some("192.0.2.1")),
            ("server=192.0.2.1@192.0.2.9#55", Some("192.0.2.1")),
            (
                "server=/a.example/b.example/2001:db8::1#53",
                Some("2001:db8::1"),
            ),
            ("local=/a.example/192.0.2.1", Some("192.0.2.1")),
            ("rev-server=10.0.0.0/8,192.0.2.1#53", Some("192.0.2.1")),
            ("rev-server = 10.0.0.3, 192.0.2.1", Some("192.0.2.1")),
            ("rev-server=192.0.2.1", None),
            ("server=/a.example/", None),
            ("server=/a.example/#", None),
            ("local=/a.example/", None),
            ("#server=192.0.2.1", None),
            ("# server = 192.0.2.1", None),
            ("no-server=192.0.2.1", None),
            ("address=/a.example/192.0.2.1", None),
            ("192.0.2.1", None),
        ] {
            let found = nameservers(&host(&[], &[], line));
            assert_eq!(found, List::from_iter(expected), "{line}");
        }
    }

    /// They are not what must be known before a source is blocked.
    #[test]
    fn nameservers_that_do_not_fit_are_not_protected() {
        let line = |n: usize| format!("nameserver 203.0.{}.{}\n", n / 250, n % 250 + 1);
        let fits = |count: usize| {
            let host = host(&[], &[], &(0..count).map(line).collect::<String>());
            (host.fits_nameservers(), host.lost())
        };
        assert_eq!(fits(limits::NAMESERVERS), (true, 0));
        assert_eq!(fits(limits::NAMESERVERS + 1), (false, 0));
    }

    /// A stub is no nameserver, be it at an address of our own.
    #[test]
    fn those_that_a_stub_asks_stand_elsewhere() {
        let own = address(ip("192.0.2.10"), 24, None, None);
        for (files, needs, lacks) in [
            (&["nameserver 192.0.2.53\n"][..], false, false),
            (&["nameserver 127.0.0.53\n"], true, true),
            (&["nameserver ::1\n"], true, true),
            (&["nameserver 192.0.2.10\n"], true, true),
            (
                &["nameserver 127.0.0.1\nnameserver 192.0.2.53"],
                true,
                false,
            ),
            (
                &["nameserver 127.0.0.1", "server=192.0.2.53\n"],
                true,
                false,
            ),
            (
                &["nameserver 127.0.0.1", "#server=192.0.2.53\n"],
                true,
                true,
            ),
            (&[""], true, true),
        ] {
            let mut host = host(core::slice::from_ref(&own), &[], "");
            read(&mut host, files);
            let found = (host.needs_upstreams(), host.lacks_nameserver());
            assert_eq!(found, (needs, lacks), "{files:?}");
            let expected: &[&str] = if lacks { &[] } else { &["192.0.2.53"] };
            assert_eq!(nameservers(&host), expected, "{files:?}");
        }
    }

    /// Files are away or empty while they are written anew.
    #[test]
    fn nameservers_stay_while_a_file_is_written() {
        let mut host = host(&[], &[], "");
        let all = ["nameserver 192.0.2.53", "nameserver 192.0.2.54"];
        read(&mut host, &all);
        read(&mut host, &["", ""]);
        assert_eq!(nameservers(&host), ["192.0.2.53", "192.0.2.54"]);
        // One of them only.
        read(&mut host, &["nameserver 192.0.2.53", ""]);
        assert_eq!(nameservers(&host), ["192.0.2.53", "192.0.2.54"]);
        read(&mut host, &["nameserver 192.0.2.53", ""]);
        assert_eq!(nameservers(&host), ["192.0.2.53"]);
        read(&mut host, &["nameserver 192.0.2.55", ""]);
        assert_eq!(nameservers(&host), ["192.0.2.55"]);
    }

    #[test]
    fn what_is_reported_counts_at_once_and_goes_with_a_whole_dump() {
        let mut host = Box::new(SmallHost::new());
        assert!(host.is_incomplete());
        assert_eq!(
            host.protected(net("8.8.8.8")),
            Some(Protection::HostUnknown)
        );
        assert_eq!(host.protected(net("127.0.0.1")), Some(Protection::Loopback));
        let own = address(ip("192.0.2.10"), 24, None, None);
        refresh(&mut host, &own, &[]);
        assert!(!host.is_incomplete() && host.take_growth() && !host.take_growth());
        assert_eq!(host.protected(net("8.8.8.8")), None);

        // Reported by an event, and once more: no news.
        let other = address(ip("198.51.100.10"), 24, None, None);
        feed(&mut host, &other);
        assert!(host.is_own(ip("198.51.100.10")) && host.take_growth());
        feed(&mut host, &other);
        assert!(!host.take_growth());

        // A dump that is not whole takes nothing away, one that is does, and
        // keeps what was reported meanwhile.
        host.begin(Section::Addresses);
        assert_eq!(host.finish(Section::Addresses, false), 0);
        assert!(host.is_own(ip("192.0.2.10")) && host.is_own(ip("198.51.100.10")));
        host.begin(Section::Addresses);
        feed(&mut host, &other);
        assert_eq!(host.finish(Section::Addresses, true), 0);
        assert!(!host.is_own(ip("192.0.2.10")) && host.is_own(ip("198.51.100.10")));
    }

    /// An address that is also a local route, and a gateway of a route and of an
    /// object, stay as long as one of the two is there.
    #[test]
    fn each_section_is_counted_alone() {
        let mut host = Box::new(SmallHost::new());
        let own = address(ip("192.0.2.10"), 32, None, None);
        let routes = [local("192.0.2.10", 255), via("0.0.0.0/0", "192.0.2.1")].concat();
        refresh(&mut host, &own, &routes);
        host.begin(Section::Addresses);
        host.finish(Section::Addresses, true);
        assert!(host.is_own(ip("192.0.2.10")));
        host.begin(Section::Nexthops);
        host.take(HostMessage::Gateway(Section::Nexthops, ip("192.0.2.1")));
        host.finish(Section::Nexthops, true);
        host.begin(Section::Ipv4Routes);
        host.finish(Section::Ipv4Routes, true);
        assert!(!host.is_own(ip("192.0.2.10")));
        let gateway = net("192.0.2.1");
        assert_eq!(host.protected(gateway), Some(Protection::Gateway));
        host.begin(Section::Nexthops);
        host.finish(Section::Nexthops, true);
        assert_eq!(host.protected(gateway), None);
    }

    fn numbered(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
    }

    #[test]
    fn more_addresses_than_fit_are_known_to_be_lost() {
        let addresses = |numbers: core::ops::Range<u32>| {
            let single = numbers.map(|number| address(numbered(number), 32, None, None));
            single.collect::<List<_>>().concat()
        };
        let mut host = Box::new(SmallHost::new());
        assert_eq!(refresh(&mut host, &addresses(0..64), &[]), 0);
        assert_eq!((host.is_incomplete(), host.lost()), (false, 0));
        feed(&mut host, &addresses(64..65));
        assert!(host.is_incomplete());
        assert_eq!(host.lost(), Section::Addresses.bit());
        assert_eq!(refresh(&mut host, &addresses(0..65), &[]), 0);
        assert!(host.is_incomplete() && host.is_own(numbered(0)));
        // That stays so until a dump ended in which nothing was lost.
        host.begin(Section::Addresses);
        assert!(host.is_incomplete());
        // There is room when the old ones have gone, so a second dump helps.
        let again = refresh(&mut host, &addresses(100..130), &[]);
        assert_eq!(again, Section::Addresses.bit());
        assert_eq!(refresh(&mut host, &addresses(100..130), &[]), 0);
        assert!(!host.is_incomplete() && host.is_own(numbered(129)));
        assert!(!host.is_own(numbered(0)));
    }

    #[test]
    fn more_gateways_than_fit_are_known_to_be_lost() {
        let mut host = Box::new(SmallHost::new());
        let gateways = |count: usize| {
            let routes = (0..count as u32).map(numbered);
            let routes = routes.map(|gateway| via("0.0.0.0/0", &format!("{gateway}")));
            routes.collect::<List<_>>().concat()
        };
        refresh(&mut host, &[], &gateways(limits::GATEWAYS));
        assert!(!host.is_incomplete());
        refresh(&mut host, &[], &gateways(limits::GATEWAYS + 1));
        assert!(host.is_incomplete());
    }

    /// One host on a link can announce any number of routers.
    #[test]
    fn link_local_gateways_that_do_not_fit_protect_what_is_link_local() {
        let mut host = Box::new(SmallHost::new());
        let routes = |count: usize| {
            let routes = (1..=count).map(|number| via("::/0", &format!("fe80::{number:x}")));
            [via("0.0.0.0/0", "192.0.2.1")]
                .into_iter()
                .chain(routes)
                .collect::<List<_>>()
                .concat()
        };
        let gateway = Some(Protection::Gateway);
        refresh(&mut host, &[], &routes(limits::LINK_LOCAL_GATEWAYS));
        assert_eq!(host.protected(net("fe80::1")), gateway);
        assert_eq!(host.protected(net("fe80::ffff")), None);
        refresh(&mut host, &[], &routes(limits::LINK_LOCAL_GATEWAYS + 1));
        assert_eq!((host.is_incomplete(), host.lost()), (false, 0));
        for (source, expected) in [
            ("fe80::1", gateway),
            ("192.0.2.1", gateway),
            ("fe80::ffff", Some(Protection::HostUnknown)),
            ("febf::/64", Some(Protection::HostUnknown)),
            ("198.51.100.7", None),
            ("2001:db8::/64", None),
            ("fec0::1", None),
        ] {
            assert_eq!(host.protected(net(source)), expected, "{source}");
        }
        refresh(&mut host, &[], &routes(1));
        assert_eq!(host.protected(net("fe80::ffff")), None);
    }

    /// Those beyond are taken for sources from elsewhere: no block gets less.
    #[test]
    fn more_links_than_fit_make_nothing_on_link() {
        let peers = |count: u32| {
            let peers = (0..count).map(|number| direct(&format!("{}", numbered(number))));
            peers.collect::<List<_>>().concat()
        };
        let mut host = Box::new(SmallHost::new());
        refresh(&mut host, &[], &peers(64));
        assert!(host.fits_links() && host.is_on_link(net("10.0.0.63")));
        refresh(&mut host, &[], &peers(65));
        assert!(!host.fits_links() && !host.is_incomplete());
        assert!(host.is_on_link(net("10.0.0.63")) && !host.is_on_link(net("10.0.0.64")));
        assert!(!host.is_on_link(net("8.8.8.8")));
        assert_eq!(written(host.source_of(ip("2001:db8::1"))), "2001:db8::/64");
    }

    #[test]
    fn allow_and_ssh_are_bounded() {
        let mut host = Box::new(SmallHost::new());
        for number in 0..limits::ALLOWED {
            assert!(host.allow(net(&format!("192.0.{number}.0/24"))));
        }
        assert!(!host.allow(net("198.51.100.0/24")));
        for value in ["", "garbage 1 2 3", " "] {
            assert!(!host.set_ssh_connection(value.as_bytes()), "{value}");
        }
        assert!(host.set_ssh_connection(b"fe80::5%eth0 1 fe80::6%eth0 22"));
        assert_eq!(host.protected(net("fe80::5")), Some(Protection::SshPeer));
    }

    /// Lists searched from end to end do the same, slowly.
    #[derive(Default)]
    struct Oracle {
        own: List<Network>,
        broadcast: List<Network>,
        gateways: List<Network>,
        on_link: List<Network>,
    }

    impl Oracle {
        fn protects(&self, network: Network) -> bool {
            let lists = [&self.own, &self.broadcast, &self.gateways];
            ALWAYS.iter().any(|(held, _)| held.overlaps(network))
                || lists
                    .iter()
                    .any(|list| list.iter().any(|held| held.overlaps(network)))
                || network.is_wide()
                    && (self.on_link.iter().chain(&SHARED)).any(|held| held.overlaps(network))
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

    fn random_address(dice: &mut Dice, oracle: &mut Oracle) -> List<u8> {
        let (local, prefix) = (dice.address(), dice.network());
        let broadcast = (dice.roll(2) == 0).then(|| dice.address());
        oracle.own.push(Network::single(local));
        oracle.broadcast.extend(broadcast.map(Network::single));
        let shortest = if prefix.is_ipv6() { 32 } else { 8 };
        if prefix.prefix_length() >= shortest && !prefix.is_single() {
            oracle.on_link.push(prefix);
        }
        address(
            prefix.address(),
            prefix.prefix_length(),
            Some(local),
            broadcast,
        )
    }

    fn random_route(dice: &mut Dice, oracle: &mut Oracle) -> List<u8> {
        let route = TestRoute {
            destination: dice.network(),
            kind: 1 + dice.roll(3) as u8,
            scope: [0, 253, 254][dice.roll(3) as usize],
            table: [100, 254, 255][dice.roll(3) as usize],
            gateway: (dice.roll(3) == 0).then(|| dice.address()),
        };
        let (destination, length) = (route.destination, route.destination.prefix_length());
        oracle.gateways.extend(route.gateway.map(Network::single));
        match route.kind {
            1 if route.gateway.is_none() && destination.is_ipv6() && length >= 64 => {
                oracle.on_link.push(destination);
            }
            1 if route.gateway.is_none()
                && route.scope == 253
                && !destination.is_ipv6()
                && length >= 8 =>
            {
                oracle.on_link.push(destination);
            }
            2 if destination.is_single() || (route.table == 255 && length > 0) => {
                oracle.own.push(destination);
            }
            3 if destination.is_single() => oracle.broadcast.push(destination),
            _ => {}
        }
        route.bytes()
    }

    #[test]
    fn agrees_with_a_naive_oracle() {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let mut host = Box::new(SmallHost::new());
        let mut seen = [0; 4];
        for _ in 0..300 {
            let mut oracle = Oracle::default();
            let (mut addresses, mut routes) = (List::new(), List::new());
            for _ in 0..dice.roll(12) {
                addresses.extend(random_address(&mut dice, &mut oracle));
                routes.extend(random_route(&mut dice, &mut oracle));
            }
            refresh(&mut host, &addresses, &routes);
            for _ in 0..300 {
                let (address, network) = (dice.address(), dice.network());
                let is_own = oracle.own.iter().any(|held| held.contains(address));
                let is_on_link = oracle.on_link.iter().any(|held| held.overlaps(network));
                assert_eq!(host.is_own(address), is_own, "{address}");
                assert_eq!(host.is_on_link(network), is_on_link, "{network:?}");
                assert_eq!(
                    host.source_of(address),
                    oracle.source_of(address),
                    "{address}"
                );
                let is_protected = host.protected(network).is_some();
                assert_eq!(is_protected, oracle.protects(network), "{network:?}");
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

    /// A message of RTM_NEWLINK, and the end of a dump of links.
    fn links_of(host: &mut Host<4, 4>, links: &[(u32, u32, u32, bool)]) {
        host.begin(Section::Links);
        for (number, lower, master, leaves_namespace) in links.iter().copied() {
            host.take(HostMessage::Link(Link {
                number,
                lower,
                master,
                leaves_namespace,
                is_open_tunnel: false,
            }));
        }
        host.finish(Section::Links, true);
    }

    fn shared_of(links: &[(u32, u32, u32, bool)], dumps: usize) -> List<u32> {
        let mut host = Host::<4, 4>::new();
        (0..dumps).for_each(|_| links_of(&mut host, links));
        (1..20).filter(|link| host.may_be_shared(*link)).collect()
    }

    #[test]
    fn links_that_containers_may_send_by() {
        // A veth uplink; a bridge with a container's port and the uplink's.
        assert_eq!(shared_of(&[(2, 0, 0, true)], 1), []);
        let bridge = [(2, 0, 3, false), (3, 0, 0, false), (4, 0, 3, true)];
        let all: List<u32> = (1..20).collect();
        assert_eq!(shared_of(&bridge, 1), all);
        // The second dump shows the bridge's other port.
        assert_eq!(shared_of(&bridge, 2), all);
        assert_eq!(shared_of(&bridge, 3), [2, 3, 4]);
        // A VLAN of it.
        let vlan = [(4, 0, 3, true), (5, 3, 0, false), (6, 2, 0, false)];
        assert_eq!(shared_of(&vlan, 2), [3, 4, 5]);
        // A veth pair of our own joins it to the next bridge: 7 and 8.
        let pair = [(4, 0, 3, true), (7, 8, 3, false), (8, 7, 9, false)];
        assert_eq!(shared_of(&pair, 2), [3, 4, 7, 8, 9]);
        let late = [(8, 7, 9, false), (7, 8, 3, false), (4, 0, 3, true)];
        assert_eq!(shared_of(&late, 3), all);
        assert_eq!(shared_of(&late, 4), [3, 4, 7, 8, 9]);
    }

    /// So is a VLAN of one.
    #[test]
    fn an_open_tunnel_is_shared() {
        let mut host = Host::<4, 4>::new();
        for _ in 0..2 {
            host.begin(Section::Links);
            for (number, lower, is_open_tunnel) in [(2, 0, false), (3, 2, true), (4, 3, false)] {
                host.take(HostMessage::Link(Link {
                    number,
                    lower,
                    master: 0,
                    leaves_namespace: false,
                    is_open_tunnel,
                }));
            }
            host.finish(Section::Links, true);
        }
        let shared: List<u32> = (1..6).filter(|link| host.may_be_shared(*link)).collect();
        assert_eq!(shared, [3, 4]);
    }

    /// Every link counts as shared while they are not known.
    #[test]
    fn unknown_links_are_shared() {
        let mut host = Host::<4, 4>::new();
        assert!(host.may_be_shared(2));
        host.begin(Section::Links);
        assert!(host.may_be_shared(2));
        host.finish(Section::Links, true);
        assert!(!host.may_be_shared(2));
        // What must be known to block is something else.
        assert!(host.is_incomplete());
        links_of(&mut host, &[(4, 0, 3, true)]);
        assert!(host.may_be_shared(3));
        links_of(&mut host, &[]);
        assert!(!host.may_be_shared(3));
        let too_many: List<_> = (1..=limits::SHARED_LINKS as u32 + 1)
            .map(|number| (0, 0, number * 2, true))
            .collect();
        links_of(&mut host, &too_many);
        assert!(host.may_be_shared(1) && host.may_be_shared(4));
        links_of(&mut host, &[]);
        assert!(!host.may_be_shared(1));
    }

    #[test]
    fn who_may_be_anybody() {
        let mut host = Host::<4, 4>::new();
        for (text, expected) in [
            ("203.0.113.9", true),
            ("::ffff:203.0.113.9", true),
            ("2001:db8::9", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("10.255.255.255", false),
            ("::ffff:10.0.0.1", false),
            ("172.16.0.1", false),
            ("172.32.0.1", true),
            ("192.168.1.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("169.254.1.1", false),
            ("fd00::1", false),
            ("fe80::1", false),
        ] {
            assert_eq!(host.is_elsewhere(ip(text)), expected, "{text}");
        }
        let own = address(ip("203.0.113.1"), 24, None, None);
        walk_host(&own, 0, &mut |message| host.take(message));
        assert!(!host.is_elsewhere(ip("203.0.113.1")));
        assert!(!host.is_elsewhere(ip("203.0.113.9")));
        assert!(host.is_elsewhere(ip("203.0.114.9")));
    }
}
