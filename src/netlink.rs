//! Netlink bytes: walking messages and attributes, asking for addresses and
//! routes, and reading the answers (netlink(7), rtnetlink(7)).
//!
//! Headers are in the host's byte order, addresses in network byte order.
//! Lengths come from outside: whatever does not add up ends the walk.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::address::{Endpoint, Family, Network, fold_mapped};
use crate::kernel::Errno;
use crate::text::{Text, TextView, split};

// linux/netlink.h
/// An answer of an error number, 0 for none.
pub const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
/// Of every message to the kernel.
pub const NLM_F_REQUEST: u16 = 0x1;
/// The kernel shall answer with an error message even where all went well.
pub const NLM_F_ACK: u16 = 0x4;
/// Of each part of the answer to a dump; events lack it.
const NLM_F_MULTI: u16 = 0x2;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Of an event: it replaces another object, whose end is not reported.
const NLM_F_REPLACE: u16 = 0x100;
/// NLM_F_ROOT and NLM_F_MATCH: every object, not one.
pub const NLM_F_DUMP: u16 = 0x300;
const NLA_TYPE_MASK: u16 = 0x3fff;

// linux/rtnetlink.h, linux/if_addr.h, linux/nexthop.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
/// IFF_UP and IFF_LOWER_UP of linux/if.h: it can carry packets.
const LINK_WORKS: u32 = 0x1_0001;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;
const NHA_GATEWAY: u16 = 6;
const RTM_F_CLONED: u32 = 0x200;
/// The route itself, with all its next hops, not the one that was chosen.
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTN_BROADCAST: u8 = 3;
const RTN_ANYCAST: u8 = 4;

/// The routing table of the host's own addresses (linux/rtnetlink.h).
pub const RT_TABLE_LOCAL: u32 = 255;
/// Scope of what is reached without a gateway (linux/rtnetlink.h). IPv6 routes
/// all say 0, RT_SCOPE_UNIVERSE (net/ipv6/route.c, rt6_fill_node).
pub const RT_SCOPE_LINK: u8 = 253;

/// Bytes of a struct nlmsghdr.
pub const HEADER: usize = 16;

/// Bytes to receive at a time. The kernel fills at most NLMSG_GOODSIZE, 8,192
/// bytes or one page (linux/netlink.h), unless an earlier receive offered
/// more; a shorter buffer would cut messages.
pub const RECEIVE_BUFFER: usize = 8_192;

/// What a dump lists, and whose changes events report. Routes name gateways
/// themselves or point to nexthop objects, which have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Every address of both families.
    Addresses,
    /// The IPv4 routes of all tables.
    Ipv4Routes,
    /// The IPv6 routes.
    Ipv6Routes,
    /// The nexthop objects.
    Nexthops,
    /// The links. A dump numbers the namespaces of their other ends.
    Links,
}

impl Section {
    /// All of them, in the order of `bit`.
    pub const ALL: [Self; 5] = [
        Self::Addresses,
        Self::Ipv4Routes,
        Self::Ipv6Routes,
        Self::Nexthops,
        Self::Links,
    ];

    /// Those that name protected addresses, one bit each: all but the last.
    pub const PROTECTING: u8 = Self::Links.bit() - 1;

    /// One bit for each.
    pub const fn bit(self) -> u8 {
        1 << self as u8
    }

    const fn of_routes(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ipv4Routes,
            Family::V6 => Self::Ipv6Routes,
        }
    }
}

/// Bytes of the longest request.
pub const DUMP_REQUEST: usize = HEADER + 16;

/// Asks for all of a section; returns the request and its length: a header and
/// a zeroed body, struct ifaddrmsg, rtmsg, nhmsg or ifinfomsg, whose first byte
/// is the address family.
pub fn host_request(section: Section, sequence: u32) -> ([u8; DUMP_REQUEST], usize) {
    let (kind, family, body) = match section {
        Section::Addresses => (RTM_GETADDR, libc::AF_UNSPEC, 8),
        Section::Ipv4Routes => (RTM_GETROUTE, libc::AF_INET, 12),
        Section::Ipv6Routes => (RTM_GETROUTE, libc::AF_INET6, 12),
        Section::Nexthops => (RTM_GETNEXTHOP, libc::AF_UNSPEC, 8),
        Section::Links => (RTM_GETLINK, libc::AF_UNSPEC, 16),
    };
    let mut request = [0; DUMP_REQUEST];
    let header = header(HEADER + body, kind, NLM_F_DUMP, sequence);
    let bytes = header.into_iter().chain([family as u8]);
    for (to, from) in request.iter_mut().zip(bytes) {
        *to = from;
    }
    (request, HEADER + body)
}

/// The struct nlmsghdr of a request of `length` bytes, header included.
/// NLM_F_REQUEST is added to `flags`.
pub const fn header(length: usize, kind: u16, flags: u16, sequence: u32) -> [u8; HEADER] {
    let length = (length as u32).to_ne_bytes();
    let kind = kind.to_ne_bytes();
    let flags = (flags | NLM_F_REQUEST).to_ne_bytes();
    let sequence = sequence.to_ne_bytes();
    [
        length[0],
        length[1],
        length[2],
        length[3],
        kind[0],
        kind[1],
        flags[0],
        flags[1],
        sequence[0],
        sequence[1],
        sequence[2],
        sequence[3],
        0,
        0,
        0,
        0,
    ]
}

/// A length that does not add up, or a fixed part that is not all there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// nlmsg_type.
    pub kind: u16,
    /// nlmsg_flags.
    pub flags: u16,
    /// nlmsg_seq, that of the request it answers; 0 for events.
    pub sequence: u32,
    /// nlmsg_pid, the port of the socket it answers; of events that of the
    /// socket that made the change.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages in what one receive returned. After `Malformed` it ends.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Walks `bytes`, a whole datagram.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = core::mem::take(&mut self.rest);
        let Some((message, rest)) = split_message(rest) else {
            return Some(Err(Malformed));
        };
        self.rest = rest;
        Some(Ok(message))
    }
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let (message, rest) = split_aligned(bytes, length)?;
    let message = Message {
        kind: u16_at(message, 4)?,
        flags: u16_at(message, 6)?,
        sequence: u32_at(message, 8)?,
        port: u32_at(message, 12)?,
        payload: message.get(HEADER..)?,
    };
    Some((message, rest))
}

/// One attribute: struct nlattr, known to rtnetlink as struct rtattr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type without the NLA_F_NESTED and NLA_F_NET_BYTEORDER flags.
    pub kind: u16,
    /// Its payload.
    pub value: &'a [u8],
}

/// The attributes behind a message's fixed part. After `Malformed` it ends.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Walks `bytes`, nothing but attributes.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = core::mem::take(&mut self.rest);
        let Some((attribute, rest)) = split_attribute(rest) else {
            return Some(Err(Malformed));
        };
        self.rest = rest;
        Some(Ok(attribute))
    }
}

/// Values of attributes, each in the place of its type. All that are asked for have
/// types below its length.
pub struct Values<'a>([Option<&'a [u8]>; 32]);

impl<'a> Values<'a> {
    /// None yet.
    pub const NONE: Self = Self([None; 32]);

    /// Takes them; of several of one type the last stays.
    #[inline(never)]
    pub fn take(&mut self, attributes: &'a [u8]) -> Result<(), Malformed> {
        for attribute in Attributes::new(attributes) {
            let Attribute { kind, value } = attribute?;
            if let Some(place) = self.0.get_mut(usize::from(kind)) {
                *place = Some(value);
            }
        }
        Ok(())
    }

    /// That of this type.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.get(usize::from(kind)).copied().flatten()
    }
}

fn split_attribute(bytes: &[u8]) -> Option<(Attribute<'_>, &[u8])> {
    let length = usize::from(u16_at(bytes, 0)?);
    let (attribute, rest) = split_aligned(bytes, length)?;
    let attribute = Attribute {
        kind: u16_at(attribute, 2)? & NLA_TYPE_MASK,
        value: attribute.get(4..)?,
    };
    Some((attribute, rest))
}

/// Splits after `length` bytes and the padding to the next multiple of four
/// (NLMSG_ALIGN, RTA_ALIGN); the last piece may lack its padding.
fn split_aligned(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let piece = bytes.get(..length)?;
    let rest = bytes.get(length.checked_next_multiple_of(4)?..);
    Some((piece, rest.unwrap_or(&[])))
}

/// Four bytes at `offset` as a number in the host's byte order.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let (_, rest) = bytes.split_at_checked(offset)?;
    rest.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Two bytes at `offset` as a number in the host's byte order.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let (_, rest) = bytes.split_at_checked(offset)?;
    rest.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// An address, and a port at the start of other bytes, in network byte order.
#[inline(never)]
pub fn endpoint_of(address: &[u8], port: &[u8]) -> Result<Endpoint, Malformed> {
    Ok(Endpoint {
        address: address_of(address)?,
        port: u16::from_be_bytes(*port.first_chunk().ok_or(Malformed)?),
    })
}

/// An address in network byte order: 4 bytes of IPv4 or 16 of IPv6.
/// IPv4-mapped IPv6 is folded.
#[inline(never)]
pub fn address_of(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    match bytes.len() {
        4 => bytes
            .first_chunk()
            .map(|octets: &[u8; 4]| IpAddr::V4(Ipv4Addr::from_bits(u32::from_be_bytes(*octets)))),
        16 => bytes.first_chunk().map(|octets: &[u8; 16]| {
            fold_mapped(IpAddr::V6(Ipv6Addr::from_bits(u128::from_be_bytes(
                *octets,
            ))))
        }),
        _ => None,
    }
    .ok_or(Malformed)
}

/// How far a dump got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More is to be received.
    More,
    /// That was all, and all of it was understood.
    Done,
    /// Not to be used, for this reason. The kernel may go on sending the rest:
    /// close the socket.
    Failed(Failure),
}

/// Why a dump cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A length does not add up, or the receive buffer was too small.
    Malformed,
    /// What is listed changed meanwhile (NLM_F_DUMP_INTR): ask again.
    Interrupted,
    /// The kernel refused with this error.
    Refused(Errno),
}

/// Takes type and payload of an object, which lies in bytes of the lifetime 'b.
pub type Visit<'a, 'b> = dyn FnMut(u16, &'b [u8]) -> Result<(), Malformed> + 'a;

/// Hands type and payload of each object in `bytes`, one datagram of the
/// answer to dump request `sequence`, to `each`.
#[inline(never)]
pub fn walk_dump<'b>(bytes: &'b [u8], sequence: u32, each: &mut Visit<'_, 'b>) -> Progress {
    for message in Messages::new(bytes) {
        let Ok(message) = message else {
            return Progress::Failed(Failure::Malformed);
        };
        if message.sequence != sequence {
            continue;
        }
        if message.flags & NLM_F_DUMP_INTR != 0 {
            return Progress::Failed(Failure::Interrupted);
        }
        match message.kind {
            NLMSG_ERROR | NLMSG_DONE => return last_word(message.payload),
            NLMSG_OVERRUN => return Progress::Failed(Failure::Refused(Errno::ENOBUFS)),
            kind => {
                if each(kind, message.payload).is_err() {
                    return Progress::Failed(Failure::Malformed);
                }
            }
        }
    }
    Progress::More
}

/// NLMSG_ERROR and NLMSG_DONE both begin with a negative errno or 0
/// (net/netlink/af_netlink.c, netlink_dump_done); kernels before 4.16 leave
/// NLMSG_DONE without meaning but with four bytes of 0.
fn last_word(payload: &[u8]) -> Progress {
    match u32_at(payload, 0).map(|bits| bits as i32) {
        Some(0) | None => Progress::Done,
        Some(error) => Progress::Failed(Failure::Refused(Errno(error.saturating_neg()))),
    }
}

/// An address of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressMessage {
    /// The host's own address.
    pub local: IpAddr,
    /// The prefix the kernel reaches through it: that of the peer on a
    /// point-to-point link (linux/if_addr.h on IFA_ADDRESS).
    pub prefix: Network,
    /// The broadcast address, where there is one.
    pub broadcast: Option<IpAddr>,
    /// ifa_scope: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// IFA_F_* of linux/if_addr.h.
    pub flags: u32,
    /// The interface's number.
    pub interface: u32,
}

/// Nothing for another family than IPv4 and IPv6, or without an address.
#[inline(never)]
fn parse_address(payload: &[u8], each: &mut dyn FnMut(HostMessage)) -> Result<(), Malformed> {
    // struct ifaddrmsg
    let (fixed, attributes) = payload.split_first_chunk::<8>().ok_or(Malformed)?;
    let [family, prefix_length, flags, scope, ..] = *fixed;
    let mut values = Values::NONE;
    values.take(attributes)?;
    // IPv6 says IFA_LOCAL only where there is a peer; a driver's IPv4 address
    // may lack IFA_ADDRESS.
    let address = values.get(IFA_ADDRESS);
    let local = values.get(IFA_LOCAL).or(address);
    let (Some(_), Some(local)) = (Family::from_number(family), local) else {
        return Ok(());
    };
    each(HostMessage::Address(AddressMessage {
        local: address_of(local)?,
        prefix: Network::new(address_of(address.unwrap_or(local))?, prefix_length),
        broadcast: values.get(IFA_BROADCAST).map(address_of).transpose()?,
        scope,
        flags: match values.get(IFA_FLAGS) {
            Some(value) => u32_at(value, 0).ok_or(Malformed)?,
            None => flags.into(),
        },
        interface: u32_at(fixed, 4).ok_or(Malformed)?,
    }));
    Ok(())
}

/// What the kernel does with packets to a route's destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// RTN_UNICAST: forwards or sends.
    Unicast,
    /// RTN_LOCAL and RTN_ANYCAST: takes them in.
    Local,
    /// RTN_BROADCAST: takes them in and sends them as a broadcast.
    Broadcast,
    /// Blackholes, prohibitions, multicast and the like.
    Other,
}

/// A route, without its gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its destination; of length 0 for a default route.
    pub destination: Network,
    /// Its type.
    pub kind: RouteKind,
    /// rtm_scope; says nothing for IPv6.
    pub scope: u8,
    /// The number of its table.
    pub table: u32,
    /// The interface it leads to; 0 where there are several.
    pub interface: u32,
    /// Whether it names a gateway, or a nexthop object that may have one.
    pub has_gateway: bool,
}

impl Route {
    /// What lists it.
    pub const fn section(&self) -> Section {
        Section::of_routes(self.destination.family())
    }
}

/// A link, by what it is bound to; numbers are 0 where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub number: u32,
    /// The link that it is made of, as a VLAN is, or its other end, as of a veth
    /// pair, where that is of our network namespace.
    pub lower: u32,
    /// The bridge or bond that it is a port of.
    pub master: u32,
    /// Its other end is of another network namespace.
    pub leaves_namespace: bool,
    /// A tunnel without keys: whatever reaches this host can put packets into it.
    pub is_open_tunnel: bool,
}

/// What the kernel reports of the host, asked or by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// An address is there.
    Address(AddressMessage),
    /// A route is there; its gateways came before it.
    Route(Route),
    /// A route or a nexthop object has this gateway.
    Gateway(Section, IpAddr),
    /// Something of this section is no longer as it was reported before.
    Removed(Section),
    /// A link carries nothing any more. With it go IPv4 routes and nexthop
    /// objects without a message (net/ipv4/fib_trie.c, fib_table_flush;
    /// net/ipv4/nexthop.c, nexthop_flush_dev), and where
    /// net.ipv6.route.skip_notify_on_dev_down is set IPv6 routes.
    LinkDown,
    /// A link is there.
    Link(Link),
    /// The section being dumped changed meanwhile (NLM_F_DUMP_INTR): something
    /// may be missing in the answer.
    Interrupted,
}

/// Hands what one receive returned to `each`: events, which carry the sequence
/// number of the request that changed something, ours or not, and parts of
/// the answer to `host_request` with this `sequence`, whose progress is
/// returned. NLMSG_DONE and NLMSG_ERROR are never events. A kernel
/// without nexthop objects (before 5.3) refuses with EOPNOTSUPP: that is
/// `Done`.
pub fn walk_host(bytes: &[u8], sequence: u32, each: &mut dyn FnMut(HostMessage)) -> Progress {
    for message in Messages::new(bytes) {
        let Ok(message) = message else {
            return Progress::Failed(Failure::Malformed);
        };
        if message.flags & NLM_F_DUMP_INTR != 0 {
            each(HostMessage::Interrupted);
        }
        match message.kind {
            NLMSG_ERROR | NLMSG_DONE if message.sequence == sequence => {
                return host_end(message.payload);
            }
            _ => {
                if parse_host(&message, each).is_err() {
                    return Progress::Failed(Failure::Malformed);
                }
            }
        }
    }
    Progress::More
}

fn host_end(payload: &[u8]) -> Progress {
    match last_word(payload) {
        Progress::Failed(Failure::Refused(Errno(libc::EOPNOTSUPP))) => Progress::Done,
        other => other,
    }
}

fn parse_host(message: &Message, each: &mut dyn FnMut(HostMessage)) -> Result<(), Malformed> {
    let payload = message.payload;
    if message.flags & NLM_F_REPLACE != 0 {
        match message.kind {
            RTM_NEWROUTE => each(HostMessage::Removed(route_section(payload)?)),
            RTM_NEWNEXTHOP => each(HostMessage::Removed(Section::Nexthops)),
            _ => {}
        }
    }
    match message.kind {
        RTM_NEWADDR => parse_address(payload, each)?,
        RTM_DELADDR => {
            // Routes with it as their source go without a message
            // (net/ipv4/fib_semantics.c, fib_sync_down_addr).
            each(HostMessage::Removed(Section::Addresses));
            each(HostMessage::Removed(Section::Ipv4Routes));
        }
        RTM_NEWROUTE => parse_route(payload, each)?,
        RTM_DELROUTE => each(HostMessage::Removed(route_section(payload)?)),
        RTM_NEWNEXTHOP => parse_nexthop(payload, each)?,
        RTM_DELNEXTHOP => each(HostMessage::Removed(Section::Nexthops)),
        RTM_NEWLINK => {
            let link = parse_link(payload)?;
            // A dump only lists what was down before.
            if message.flags & NLM_F_MULTI == 0 && !link_works(payload)? {
                each(HostMessage::LinkDown);
            }
            each(HostMessage::Link(link));
        }
        RTM_DELLINK => {
            each(HostMessage::LinkDown);
            each(HostMessage::Removed(Section::Links));
        }
        _ => {}
    }
    Ok(())
}

fn route_section(payload: &[u8]) -> Result<Section, Malformed> {
    let family = Family::from_number(*payload.first().ok_or(Malformed)?);
    // No other family's routes were subscribed to.
    Ok(Section::of_routes(family.unwrap_or(Family::V6)))
}

/// struct ifinfomsg has IFF_* at 8.
fn link_works(payload: &[u8]) -> Result<bool, Malformed> {
    let flags = u32_at(payload, 8).ok_or(Malformed)?;
    Ok(flags & LINK_WORKS == LINK_WORKS)
}

#[inline(never)]
fn parse_link(payload: &[u8]) -> Result<Link, Malformed> {
    // struct ifinfomsg
    let (fixed, attributes) = payload.split_first_chunk::<16>().ok_or(Malformed)?;
    let number_of = |kind| u32_at(find(attributes, kind), 0);
    let leaves_namespace = number_of(IFLA_LINK_NETNSID).is_some();
    Ok(Link {
        number: u32_at(fixed, 4).ok_or(Malformed)?,
        // Numbers of another namespace's links mean nothing here.
        lower: number_of(IFLA_LINK)
            .filter(|_| !leaves_namespace)
            .unwrap_or(0),
        master: number_of(IFLA_MASTER).unwrap_or(0),
        leaves_namespace,
        is_open_tunnel: is_open_tunnel(find(find(attributes, IFLA_LINKINFO), IFLA_INFO_KIND)),
    })
}

/// Kinds of links. What WireGuard, IPsec and ppp carry has been checked.
const OPEN_TUNNELS: &[u8] = b"vxlan,geneve,gre,gretap,erspan,ip6gre,ip6gretap,ip6erspan,\
    ipip,ip6tnl,sit,bareudp,gtp,amt";

#[inline(never)]
fn is_open_tunnel(kind: &[u8]) -> bool {
    let kind = kind.strip_suffix(b"\0").unwrap_or(kind);
    split(OPEN_TUNNELS, b',').any(|open| open == kind)
}

#[inline(never)]
fn parse_route(payload: &[u8], each: &mut dyn FnMut(HostMessage)) -> Result<(), Malformed> {
    // struct rtmsg
    let (fixed, attributes) = payload.split_first_chunk::<12>().ok_or(Malformed)?;
    let [family, prefix_length, _, _, table, _, scope, kind, ..] = *fixed;
    let flags = u32_at(fixed, 8).ok_or(Malformed)?;
    // A cloned route is a cache entry for one destination.
    let family = Family::from_number(family).filter(|_| flags & RTM_F_CLONED == 0);
    let Some(family) = family else {
        return Ok(());
    };
    let mut values = Values::NONE;
    values.take(attributes)?;
    let number = |kind, otherwise| match values.get(kind) {
        Some(value) => u32_at(value, 0).ok_or(Malformed),
        None => Ok(otherwise),
    };
    // The gateways of a nexthop object are its own, and change without the route,
    // which has copies of them.
    let has_object = values.get(RTA_NH_ID).is_some();
    let section = Section::of_routes(family);
    let has_gateway = has_object
        || parse_gateway(&values, section, each)?
            | parse_multipath(values.get(RTA_MULTIPATH), section, each)?;
    each(HostMessage::Route(Route {
        destination: match values.get(RTA_DST) {
            Some(value) => Network::new(address_of(value)?, prefix_length),
            None => Network::any(family),
        },
        kind: route_kind(kind),
        scope,
        table: number(RTA_TABLE, table.into())?,
        interface: number(RTA_OIF, 0)?,
        has_gateway,
    }));
    Ok(())
}

fn route_kind(kind: u8) -> RouteKind {
    match kind {
        RTN_UNICAST => RouteKind::Unicast,
        RTN_LOCAL | RTN_ANYCAST => RouteKind::Local,
        RTN_BROADCAST => RouteKind::Broadcast,
        _ => RouteKind::Other,
    }
}

/// Reports the gateway, and whether there is one.
#[inline(never)]
fn parse_gateway(
    values: &Values,
    section: Section,
    each: &mut dyn FnMut(HostMessage),
) -> Result<bool, Malformed> {
    // struct rtvia: two bytes of family, then the address.
    let via = values.get(RTA_VIA).map(|via| via.get(2..).unwrap_or(&[]));
    let Some(address) = values.get(RTA_GATEWAY).or(via) else {
        return Ok(false);
    };
    let address = address_of(address)?;
    if address.is_unspecified() {
        return Ok(false);
    }
    each(HostMessage::Gateway(section, address));
    Ok(true)
}

/// An array of struct rtnexthop (rtnetlink(7)), each with its attributes:
/// whether one names a gateway.
fn parse_multipath(
    bytes: Option<&[u8]>,
    section: Section,
    each: &mut dyn FnMut(HostMessage),
) -> Result<bool, Malformed> {
    let mut has_gateway = false;
    let mut rest = bytes.unwrap_or_default();
    while !rest.is_empty() {
        let length = usize::from(u16_at(rest, 0).ok_or(Malformed)?);
        let (nexthop, behind) = split_aligned(rest, length).ok_or(Malformed)?;
        // Eight bytes at least, so the loop always advances.
        let attributes = nexthop.get(8..).ok_or(Malformed)?;
        let mut values = Values::NONE;
        values.take(attributes)?;
        has_gateway |= parse_gateway(&values, section, each)?;
        rest = behind;
    }
    Ok(has_gateway)
}

fn parse_nexthop(payload: &[u8], each: &mut dyn FnMut(HostMessage)) -> Result<(), Malformed> {
    // struct nhmsg
    let mut values = Values::NONE;
    values.take(payload.get(8..).ok_or(Malformed)?)?;
    if let Some(value) = values.get(NHA_GATEWAY) {
        each(HostMessage::Gateway(Section::Nexthops, address_of(value)?));
    }
    Ok(())
}

/// Bytes of the longest question for a route: two IPv6 addresses.
pub const ROUTE_REQUEST: usize = HEADER + 12 + 2 * (4 + 16);

/// Asks for the route that packets to `destination` take; `source` is theirs,
/// and must be the host's own (net/ipv4/route.c, ip_route_output_key_hash_rcu).
#[inline(never)]
pub fn route_request(
    destination: IpAddr,
    source: Option<IpAddr>,
    sequence: u32,
) -> Text<ROUTE_REQUEST> {
    let mut request = Text::new();
    let family = Family::of(destination);
    let bits = family.bits();
    request.put(&header(0, RTM_GETROUTE, 0, sequence));
    // struct rtmsg
    let [a, b, c, d] = RTM_F_FIB_MATCH.to_ne_bytes();
    request.put(&[family.number(), bits, 0, 0, 0, 0, 0, 0, a, b, c, d]);
    put_address(&mut request, RTA_DST, destination);
    if let Some(source) = source {
        put_address(&mut request, RTA_SRC, source);
        request.overwrite(HEADER + 2, &[bits]);
    }
    let length = request.as_bytes().len() as u32;
    request.overwrite(0, &length.to_ne_bytes());
    request
}

/// Hands each link that the route in the answer to `route_request` leads to, one
/// for each of its next hops, to `each`. None for a route that leads nowhere, and
/// where net.ipv4.nexthop_compat_mode is 0 and it points to a nexthop object.
#[inline(never)]
pub fn walk_next_hops(bytes: &[u8], sequence: u32, each: &mut dyn FnMut(u32)) -> Result<(), Errno> {
    // struct rtmsg
    let route = only(bytes, sequence, RTM_NEWROUTE)?.split_first_chunk::<12>();
    let (fixed, attributes) = route.ok_or(Errno::EINVAL)?;
    if fixed[7] != RTN_UNICAST {
        return Ok(());
    }
    if let Some(link) = u32_at(find(attributes, RTA_OIF), 0) {
        each(link);
    }
    // struct rtnexthop has its length first, and at 4 the link.
    let mut rest = find(attributes, RTA_MULTIPATH);
    while let Some(length) = u16_at(rest, 0)
        && let Some((next_hop, behind)) = split_aligned(rest, length.into())
        && let Some(link) = u32_at(next_hop, 4)
    {
        each(link);
        rest = behind;
    }
    Ok(())
}

/// The payload of the one object of an answer, behind which no NLMSG_DONE comes.
#[inline(never)]
pub fn only(bytes: &[u8], sequence: u32, kind: u16) -> Result<&[u8], Errno> {
    let mut object = None;
    let progress = walk_dump(bytes, sequence, &mut |found, payload| {
        if found == kind {
            object = Some(payload);
        }
        Ok(())
    });
    match progress {
        Progress::Failed(Failure::Refused(error)) => Err(error),
        Progress::Failed(_) => Err(Errno::EINVAL),
        Progress::More | Progress::Done => object.ok_or(Errno::EINVAL),
    }
}

/// The value of the first attribute of this type; nothing where there is none.
#[inline(never)]
pub fn find(attributes: &[u8], kind: u16) -> &[u8] {
    for attribute in Attributes::new(attributes).flatten() {
        if attribute.kind == kind {
            return attribute.value;
        }
    }
    &[]
}

/// `address` in network byte order, with zeros behind IPv4.
#[inline(never)]
pub fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96).to_be_bytes(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Appends an attribute that is an address in network byte order.
#[inline(never)]
pub fn put_address(out: &mut TextView, kind: u16, address: IpAddr) {
    let length = Family::of(address).bits() / 8;
    let [[a, b], [c, d]] = [4 + u16::from(length), kind].map(u16::to_ne_bytes);
    out.put(&[a, b, c, d]);
    let bytes = octets(address);
    out.put(bytes.get(..length.into()).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(HEADER + payload.len(), kind, flags, sequence).to_vec();
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn route(family: i32, length: u8, scope: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let fixed = [
            family as u8,
            length,
            0,
            0,
            254,
            0,
            scope,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let payload = [&fixed[..], &attributes.concat()].concat();
        message(RTM_NEWROUTE, NLM_F_MULTI, SEQUENCE, &payload)
    }

    const SEQUENCE: u32 = 2;

    fn routes(bytes: &[u8]) -> (Vec<HostMessage>, Progress) {
        let mut found = Vec::new();
        let progress = walk_host(bytes, SEQUENCE, &mut |message| found.push(message));
        (found, progress)
    }

    fn gateways(bytes: &[u8]) -> Vec<String> {
        let found = routes(bytes).0.into_iter();
        found
            .filter_map(|message| match message {
                HostMessage::Gateway(_, gateway) => Some(gateway.to_string()),
                _ => None,
            })
            .collect()
    }

    /// struct nlmsghdr and struct rtmsg, byte by byte.
    #[test]
    #[cfg(target_endian = "little")]
    fn requests_are_what_the_kernel_expects() {
        let expected = [24, 0, 0, 0, 22, 0, 1, 3, 7, 0, 0, 0, 0, 0, 0, 0];
        let requests = Section::ALL.map(|section| host_request(section, 7));
        assert_eq!(requests[0].0[..16], expected);
        assert_eq!(requests[0].0[16..24], [0; 8]);
        assert_eq!(requests.map(|request| request.1), [24, 28, 28, 24, 32]);
        assert_eq!(requests.map(|request| request.0[0]), [24, 28, 28, 24, 32]);
        assert_eq!(requests.map(|request| request.0[4]), [22, 26, 26, 106, 18]);
        assert_eq!(requests.map(|request| request.0[16]), [0, 2, 10, 0, 0]);
        let mut bits = Section::ALL.iter().map(|section| section.bit());
        assert!(bits.by_ref().eq([1, 2, 4, 8, 16]));
        assert_eq!(Section::PROTECTING, 15);
    }

    #[test]
    fn walks_by_aligned_lengths() {
        let bytes = [message(20, 0, 1, b"abcde"), message(24, 2, 3, b"")].concat();
        let found: Vec<_> = Messages::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].payload), (20, &b"abcde"[..]));
        assert_eq!((found[1].flags, found[1].sequence), (3, 3));
        let bytes = [attribute(0x8001, b"x"), attribute(2, b"")].concat();
        let found: Vec<_> = Attributes::new(&bytes).map(Result::unwrap).collect();
        assert_eq!((found[0].kind, found[0].value), (1, &b"x"[..]));
        assert_eq!((found[1].kind, found[1].value), (2, &b""[..]));
    }

    /// Lengths of 0, shorter than a header, or beyond the end.
    #[test]
    fn lying_lengths_end_the_walk() {
        for length in [0u32, 1, 15, 21, u32::MAX] {
            let mut bytes = [message(20, 0, 1, b"abcd"), message(20, 0, 1, b"")].concat();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let found: Vec<_> = Messages::new(&bytes[..20]).collect();
            assert_eq!(found, [Err(Malformed)], "{length}");
        }
        for length in [0u16, 3, 9, u16::MAX] {
            let mut bytes = attribute(1, b"abcd");
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            let found: Vec<_> = Attributes::new(&bytes).collect();
            assert_eq!(found, [Err(Malformed)], "{length}");
        }
        for length in [0u16, 7, 9] {
            let mut nexthop = std::vec![0; 8];
            nexthop[..2].copy_from_slice(&length.to_ne_bytes());
            let bytes = route(libc::AF_INET, 0, 0, &[attribute(RTA_MULTIPATH, &nexthop)]);
            assert_eq!(routes(&bytes).1, Progress::Failed(Failure::Malformed));
        }
    }

    #[test]
    fn a_dump_ends_as_the_kernel_says() {
        let end = |kind, code: i32| message(kind, NLM_F_MULTI, SEQUENCE, &code.to_ne_bytes());
        let refused = |errno| Progress::Failed(Failure::Refused(Errno(errno)));
        assert_eq!(routes(&end(NLMSG_DONE, 0)).1, Progress::Done);
        assert_eq!(routes(&end(NLMSG_DONE, -12)).1, refused(12));
        assert_eq!(routes(&end(NLMSG_ERROR, -1)).1, refused(1));
        assert_eq!(routes(&end(NLMSG_ERROR, i32::MIN)).1, refused(i32::MAX));
        // No nexthop objects in this kernel.
        let unknown = message(NLMSG_ERROR, 0, SEQUENCE, &(-libc::EOPNOTSUPP).to_ne_bytes());
        assert_eq!(routes(&unknown).1, Progress::Done);
        assert_eq!(routes(&[]).1, Progress::More);
        let flags = NLM_F_MULTI | NLM_F_DUMP_INTR;
        let interrupted = message(NLMSG_DONE, flags, SEQUENCE, &[0; 4]);
        let expected = (std::vec![HostMessage::Interrupted], Progress::Done);
        assert_eq!(routes(&interrupted), expected);
        let of_another = message(NLMSG_DONE, NLM_F_MULTI, 77, &[0; 4]);
        assert_eq!(routes(&of_another).1, Progress::More);
    }

    /// Dumps of which nothing may be missing, as sock_diag answers them.
    #[test]
    fn a_dump_that_lost_something_has_failed() {
        let walk = |bytes: &[u8]| walk_dump(bytes, SEQUENCE, &mut |_, _| Ok(()));
        let end = |kind, flags| message(kind, flags, SEQUENCE, &[0; 4]);
        let overrun = Failure::Refused(Errno::ENOBUFS);
        for (bytes, expected) in [
            (end(NLMSG_DONE, 0), Progress::Done),
            (end(NLMSG_OVERRUN, 0), Progress::Failed(overrun)),
            (
                end(NLMSG_DONE, NLM_F_DUMP_INTR),
                Progress::Failed(Failure::Interrupted),
            ),
        ] {
            assert_eq!(walk(&bytes), expected);
        }
    }

    /// Messages that were not asked for have the sequence number of the request
    /// that made the change, which may be ours.
    #[test]
    fn events_are_no_answers() {
        let route = |kind, flags, family: i32, sequence| {
            let fixed = [family as u8, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
            message(kind, flags, sequence, &fixed)
        };
        for sequence in [0, SEQUENCE, 77] {
            let gone = |section| std::vec![HostMessage::Removed(section)];
            let event = |kind, family| routes(&route(kind, 0, family, sequence));
            let (found, progress) = event(RTM_DELROUTE, libc::AF_INET);
            assert_eq!(
                (found, progress),
                (gone(Section::Ipv4Routes), Progress::More)
            );
            let (found, _) = event(RTM_DELROUTE, libc::AF_INET6);
            assert_eq!(found, gone(Section::Ipv6Routes));
            let (found, _) = event(RTM_NEWROUTE, libc::AF_INET);
            assert!(matches!(found[..], [HostMessage::Route(_)]));
            // What it replaces is not reported.
            let replaced = route(RTM_NEWROUTE, NLM_F_REPLACE, libc::AF_INET, sequence);
            let found = routes(&replaced).0;
            assert_eq!(found[..1], gone(Section::Ipv4Routes));
            assert!(matches!(found[1], HostMessage::Route(_)));
            let nexthop = message(RTM_NEWNEXTHOP, NLM_F_REPLACE, sequence, &[0; 8]);
            assert_eq!(routes(&nexthop).0, gone(Section::Nexthops));
            let nexthop = message(RTM_DELNEXTHOP, 0, sequence, &[0; 8]);
            assert_eq!(routes(&nexthop).0, gone(Section::Nexthops));
            let address = message(RTM_DELADDR, 0, sequence, &[0; 8]);
            let both = [gone(Section::Addresses), gone(Section::Ipv4Routes)].concat();
            assert_eq!(routes(&address).0, both);
        }
    }

    #[test]
    fn links_that_carry_nothing() {
        let is_there = HostMessage::Link(Link {
            number: 0,
            lower: 0,
            master: 0,
            leaves_namespace: false,
            is_open_tunnel: false,
        });
        let (down, gone) = (HostMessage::LinkDown, HostMessage::Removed(Section::Links));
        for (kind, of_dump, flags, expected) in [
            (RTM_NEWLINK, 0, 0x1_1043_u32, &[is_there][..]),
            (RTM_NEWLINK, 0, 0x1_1042, &[down, is_there]),
            (RTM_NEWLINK, 0, 0x1043, &[down, is_there]),
            // It was down before.
            (RTM_NEWLINK, NLM_F_MULTI, 0x1043, &[is_there]),
            (RTM_DELLINK, 0, 0x1_1043, &[down, gone]),
        ] {
            let payload = [&[0; 8], &flags.to_ne_bytes()[..], &[0; 4]].concat();
            let found = routes(&message(kind, of_dump, 0, &payload)).0;
            assert_eq!(found, expected);
        }
    }

    /// What a route copies from its nexthop object is the object's.
    #[test]
    fn gateways_of_objects_are_not_the_routes() {
        let object = attribute(RTA_NH_ID, &[1, 0, 0, 0]);
        let gateway = attribute(RTA_GATEWAY, &[192, 0, 2, 1]);
        let found = routes(&route(libc::AF_INET, 0, 0, &[object, gateway])).0;
        let [HostMessage::Route(route)] = found[..] else {
            panic!("{found:?}");
        };
        assert!(route.has_gateway);
    }

    #[test]
    fn routes_and_gateways_in_every_form() {
        let nexthop = |gateway: &[u8]| {
            let attributes = attribute(RTA_GATEWAY, gateway);
            let mut bytes = (8 + attributes.len() as u16).to_ne_bytes().to_vec();
            bytes.extend([0; 6]);
            [bytes, attributes].concat()
        };
        let several = [nexthop(&[192, 0, 2, 1]), nexthop(&[192, 0, 2, 2])].concat();
        let via = [
            &(libc::AF_INET6 as u16).to_ne_bytes()[..],
            &[0xfe, 0x80],
            &[0; 13],
            &[7],
        ];
        for (attributes, expected) in [
            (attribute(RTA_GATEWAY, &[192, 0, 2, 1]), &["192.0.2.1"][..]),
            (
                attribute(RTA_MULTIPATH, &several),
                &["192.0.2.1", "192.0.2.2"],
            ),
            (attribute(RTA_VIA, &via.concat()), &["fe80::7"]),
            (attribute(RTA_GATEWAY, &[0; 4]), &[]),
            (attribute(RTA_OIF, &[3, 0, 0, 0]), &[]),
        ] {
            let bytes = route(libc::AF_INET, 0, 0, &[attributes]);
            assert_eq!(gateways(&bytes), expected);
            let Some(HostMessage::Route(route)) = routes(&bytes).0.pop() else {
                panic!("the route comes last");
            };
            assert_eq!(route.has_gateway, !expected.is_empty());
            assert_eq!(route.destination.prefix_length(), 0);
        }
    }

    /// What `ip address` and `ip route show table all` printed beside the
    /// recording: a veth pair with two addresses in one network, a single one,
    /// a point-to-point peer and an IPv6 /64.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_real_dump_of_addresses() {
        let bytes = include_bytes!("testing/netlink/addresses.bin");
        let mut found = Vec::new();
        let progress = walk_host(bytes, 1, &mut |message| {
            let HostMessage::Address(address) = message else {
                panic!("{message:?}");
            };
            let prefix = address.prefix;
            found.push(std::format!(
                "{} {}/{} {}",
                address.local,
                prefix.address(),
                prefix.prefix_length(),
                address.broadcast.map_or("-".into(), |a| a.to_string()),
            ));
        });
        assert_eq!(progress, Progress::Done);
        found.retain(|line| !line.starts_with("fe80"));
        let expected = [
            "127.0.0.1 127.0.0.0/8 -",
            "192.0.2.10 192.0.2.0/24 192.0.2.255",
            "203.0.113.5 203.0.113.5/32 -",
            "10.9.0.1 10.9.0.2/32 -",
            "192.0.2.11 192.0.2.0/24 192.0.2.255",
            "::1 ::1/128 -",
            "2001:db8:1:2::10 2001:db8:1:2::/64 -",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_real_dump_of_routes() {
        let ipv4 = include_bytes!("testing/netlink/routes_ipv4.bin");
        assert_eq!(routes(ipv4).1, Progress::Done);
        let mut found = gateways(ipv4);
        found.sort();
        let expected = [
            "192.0.2.1",
            "192.0.2.2",
            "192.0.2.3",
            "192.0.2.4",
            "fe80::77",
        ];
        assert_eq!(found, expected);
        let tables = |table| {
            let has_table = |message: &&HostMessage| match message {
                HostMessage::Route(route) => route.table == table,
                _ => false,
            };
            routes(ipv4).0.iter().filter(has_table).count()
        };
        assert_eq!((tables(100), tables(200), tables(300)), (1, 1, 1));
        let ipv6 = include_bytes!("testing/netlink/routes_ipv6.bin");
        assert_eq!(routes(ipv6).1, Progress::Done);
        assert_eq!(gateways(ipv6), ["fe80::1"]);
        let nexthops = include_bytes!("testing/netlink/nexthops.bin");
        assert_eq!(routes(nexthops).1, Progress::Done);
        assert_eq!(gateways(nexthops), ["192.0.2.5"]);
    }

    /// Every cut of a real dump, and every byte of it set to odd values, ends
    /// without a panic and without more messages than there is room for.
    #[test]
    fn damaged_dumps_end() {
        let whole = include_bytes!("testing/netlink/routes_ipv4.bin");
        let check = |bytes: &[u8]| {
            let mut count = 0;
            walk_host(bytes, SEQUENCE, &mut |_| count += 1);
            assert!(count <= bytes.len() / 4);
        };
        for end in 0..whole.len() {
            check(&whole[..end]);
            for odd in [0, 1, 3, 5, 0x7f, 0xff] {
                let mut bytes = whole.to_vec();
                bytes[end] = odd;
                check(&bytes);
            }
        }
    }

    fn link(number: u32, lower: u32, master: u32, leaves_namespace: bool) -> Link {
        Link {
            number,
            lower,
            master,
            leaves_namespace,
            is_open_tunnel: false,
        }
    }

    #[test]
    fn tunnels_that_whoever_reaches_the_host_can_use() {
        for (kind, is_open) in [
            ("vxlan\0", true),
            ("sit\0", true),
            ("ip6gretap\0", true),
            ("wireguard\0", false),
            ("veth\0", false),
            ("vxlans\0", false),
            ("", false),
        ] {
            let kind = attribute(IFLA_INFO_KIND, kind.as_bytes());
            let payload = [&[0; 16], &attribute(IFLA_LINKINFO, &kind)[..]].concat();
            let found = routes(&message(RTM_NEWLINK, NLM_F_MULTI, SEQUENCE, &payload)).0;
            let is_it = |message: &HostMessage| matches!(message, HostMessage::Link(link) if link.is_open_tunnel == is_open);
            assert!(found.iter().all(is_it) && found.len() == 1, "{kind:?}");
        }
    }

    /// A veth whose other end is in another namespace, and one that is a port of a
    /// bridge as well.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_real_dump_of_links() {
        let bytes = include_bytes!("testing/netlink/links.bin");
        let mut found = Vec::new();
        let progress = walk_host(bytes, 11, &mut |message| found.push(message));
        assert_eq!(progress, Progress::Done);
        let expected = [link(2, 0, 0, true), link(4, 0, 3, true)];
        assert_eq!(found, expected.map(HostMessage::Link));
    }

    /// Its lower link is ours where no namespace is named.
    #[test]
    fn a_link_on_another() {
        let attributes = [(IFLA_LINK, 7_u32), (IFLA_MASTER, 9)];
        let attributes = attributes.map(|(kind, number)| attribute(kind, &number.to_ne_bytes()));
        let fixed = [&[0; 4], &8_u32.to_ne_bytes()[..], &[0; 8]].concat();
        let payload = [&fixed[..], &attributes.concat()].concat();
        let found = routes(&message(RTM_NEWLINK, NLM_F_MULTI, SEQUENCE, &payload)).0;
        assert_eq!(found, [HostMessage::Link(link(8, 7, 9, false))]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn questions_for_a_route() {
        let ip = |text: &str| text.parse().unwrap();
        let request = route_request(ip("203.0.113.9"), Some(ip("198.51.100.1")), 3);
        let expected = [
            44, 0, 0, 0, 26, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2, 32, 32, 0, 0, 0, 0, 0, 0, 0x20, 0,
            0, 8, 0, 1, 0, 203, 0, 113, 9, 8, 0, 2, 0, 198, 51, 100, 1,
        ];
        assert_eq!(request.as_bytes(), expected);
        let request = route_request(ip("203.0.113.9"), None, 3);
        assert_eq!(request.as_bytes()[..4], [36, 0, 0, 0]);
        assert_eq!(request.as_bytes()[4..18], expected[4..18]);
        assert_eq!(request.as_bytes()[18..], [&[0], &expected[19..36]].concat());
        let request = route_request(ip("2001:db8::9"), Some(ip("2001:db8::1")), 3);
        assert_eq!(request.as_bytes().len(), ROUTE_REQUEST);
        assert_eq!(request.as_bytes()[..4], [68, 0, 0, 0]);
        assert_eq!(request.as_bytes()[16..19], [10, 128, 128]);
    }

    /// Answers of Linux 6.18: a default route by link 2; by links 2 and 5; by a
    /// nexthop object of link 5, with net.ipv4.nexthop_compat_mode 1 and 0; to an
    /// address of its own; none.
    #[test]
    #[cfg(target_endian = "little")]
    fn real_routes() {
        let next_hops = |bytes: &[u8], sequence| {
            let mut found = Vec::new();
            walk_next_hops(bytes, sequence, &mut |link| found.push(link)).map(|()| found)
        };
        macro_rules! recorded {
            ($name:literal) => {
                &include_bytes!(concat!("testing/netlink/route_", $name, ".bin"))[..]
            };
        }
        for (bytes, sequence, expected) in [
            (recorded!("ipv4"), 1, &[2][..]),
            (recorded!("ipv6"), 2, &[2]),
            (recorded!("ipv4_multipath"), 4, &[2, 5]),
            (recorded!("ipv6_multipath"), 5, &[2, 5]),
            (recorded!("nexthop_object"), 6, &[5]),
            (recorded!("nexthop_object_only"), 7, &[]),
            (recorded!("local"), 10, &[]),
        ] {
            assert_eq!(next_hops(bytes, sequence), Ok(expected.to_vec()));
            assert_eq!(next_hops(bytes, sequence + 1), Err(Errno::EINVAL));
            for end in 0..bytes.len() {
                assert!(next_hops(&bytes[..end], sequence).is_err(), "{end}");
                for odd in [0, 1, 3, 5, 0x7f, 0xff] {
                    let mut damaged = bytes.to_vec();
                    damaged[end] = odd;
                    let found = next_hops(&damaged, sequence).unwrap_or_default();
                    assert!(found.len() <= bytes.len() / 8);
                }
            }
        }
        let none = recorded!("unreachable");
        assert_eq!(next_hops(none, 8), Err(Errno(libc::EHOSTUNREACH)));
    }
}
