//! What the fake kernel shows of itself: rows of tcp and tcp6, addresses and
//! routes, to the letter and to the byte.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fake_network::UPLINK;

use crate::address::{Family, Network};
use crate::proc_net_tcp::TcpState;

/// One socket of the host, as it stands in the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeSocket {
    pub local: (IpAddr, u16),
    pub remote: (IpAddr, u16),
    pub state: TcpState,
    pub inode: u32,
    /// An IPv6 socket that serves IPv4 as well: IPv4 peers stand in tcp6 with
    /// mapped addresses.
    pub is_dual_stack: bool,
}

impl FakeSocket {
    /// Where it stands: in tcp or in tcp6.
    pub fn family(&self) -> Family {
        if self.is_dual_stack {
            Family::V6
        } else {
            Family::of(self.local.0)
        }
    }

    fn is_listener(&self) -> bool {
        self.state == TcpState::Listen
    }
}

/// The whole text of tcp or tcp6: listeners first, as the kernel walks them.
pub fn rows(sockets: &[FakeSocket], family: Family) -> String {
    let mut text = header(family);
    let listeners = sockets.iter().filter(|socket| socket.is_listener());
    let others = sockets.iter().filter(|socket| !socket.is_listener());
    let of_file = listeners
        .chain(others)
        .filter(|socket| socket.family() == family);
    for (slot, socket) in of_file.enumerate() {
        text += &row(slot, socket, family);
    }
    text
}

/// tcp4_seq_show pads to 149 columns (seq_setwidth); tcp6_seq_show does not.
fn header(family: Family) -> String {
    if family == Family::V6 {
        return "  sl  local_address                         remote_address                        \
                st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
            .to_owned();
    }
    let names = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                 uid  timeout inode";
    format!("{names:<149}\n")
}

fn row(slot: usize, socket: &FakeSocket, family: Family) -> String {
    let local = endpoint(socket.local, family);
    let remote = endpoint(socket.remote, family);
    let state = socket.state as u8;
    let inode = socket.inode;
    let head = format!("{slot:4}: {local} {remote} {state:02X}");
    let row = match socket.state {
        // get_timewait4_sock
        TcpState::TimeWait => {
            format!(
                "{head} 00000000:00000000 03:00001734 00000000     0        0 0 3 ffff88800f4c6a00"
            )
        }
        // get_openreq4
        TcpState::SynRecv => {
            format!(
                "{head} 00000000:00000000 01:00000063 00000000     0        0 0 1 ffff88800f4c6a00"
            )
        }
        // get_tcp4_sock
        _ => format!(
            "{head} 00000000:00000000 02:000001F7 00000000  1000        0 {inode} 2 \
             ffff88800f4c6a00 20 4 30 10 -1"
        ),
    };
    if family == Family::V6 {
        row + "\n"
    } else {
        format!("{row:<149}\n")
    }
}

fn endpoint((address, port): (IpAddr, u16), family: Family) -> String {
    let words = |octets: &[u8]| -> String {
        let words = octets.chunks(4);
        let words = words.map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        words.map(|word| format!("{word:08X}")).collect()
    };
    let digits = match address {
        IpAddr::V4(v4) if family == Family::V4 => words(&v4.octets()),
        // A dual-stack listener stands there as ::.
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => words(&[0; 16]),
        IpAddr::V4(v4) => words(&v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => words(&v6.octets()),
    };
    format!("{digits}:{port:04X}")
}

/// What the host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeHost {
    /// Own addresses with the length of their on-link prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Gateways of default routes.
    pub gateways: Vec<IpAddr>,
    /// Local networks of the table that a policy rule for TPROXY names.
    pub diverted: Vec<(IpAddr, u8)>,
    pub nameservers: Vec<IpAddr>,
    pub links: Vec<FakeLink>,
    /// Networks with routes of their own, by these links; all else goes by the
    /// uplink.
    pub ways: Vec<(Network, Vec<u32>)>,
}

/// A link, by what it is bound to; 0 for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FakeLink {
    pub number: u32,
    pub lower: u32,
    pub master: u32,
    /// The number of the network namespace where its other end is.
    pub namespace: Option<u32>,
}

/// Numbers of linux/rtnetlink.h and linux/netlink.h.
pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_REPLACE: u16 = 0x100;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTN_LOCAL: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINK_NETNSID: u16 = 37;

/// A list of what the host has, as a dump walks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Addresses,
    Ipv4Routes,
    Ipv6Routes,
    Links,
}

impl List {
    pub const ALL: [Self; 4] = [
        Self::Addresses,
        Self::Ipv4Routes,
        Self::Ipv6Routes,
        Self::Links,
    ];

    fn is_of_routes(self) -> bool {
        matches!(self, Self::Ipv4Routes | Self::Ipv6Routes)
    }

    /// The message that something is there.
    fn new_kind(self) -> u16 {
        match self {
            Self::Addresses => RTM_NEWADDR,
            Self::Ipv4Routes | Self::Ipv6Routes => RTM_NEWROUTE,
            Self::Links => RTM_NEWLINK,
        }
    }
}

/// A dump that is under way.
#[derive(Clone, Debug)]
pub struct Dump {
    list: List,
    sequence: Vec<u8>,
    /// What was listed last, and how many were.
    last: Option<Vec<u8>>,
    count: usize,
    /// All that the kernel calls interrupted is marked so.
    pub is_interrupted: bool,
}

impl Dump {
    /// What `request` asks for, or the kernel's refusal.
    pub fn new(request: &[u8]) -> Result<Self, Vec<u8>> {
        let kind = u16::from_ne_bytes([request[4], request[5]]);
        let sequence = request[8..12].to_vec();
        let list = match kind {
            RTM_GETADDR => List::Addresses,
            RTM_GETROUTE if asked_family(request) == Family::V6 => List::Ipv6Routes,
            RTM_GETROUTE => List::Ipv4Routes,
            RTM_GETLINK => List::Links,
            // A kernel without nexthop objects.
            _ => return Err(refusal(request, libc::EOPNOTSUPP)),
        };
        Ok(Self {
            list,
            sequence,
            last: None,
            count: 0,
            is_interrupted: false,
        })
    }

    pub fn unless(self, is_refused: bool, request: &[u8]) -> Result<Self, Vec<u8>> {
        if is_refused {
            Err(refusal(request, libc::EPERM))
        } else {
            Ok(self)
        }
    }

    /// The next datagram, of at most `most` messages, and whether it is the
    /// last. IPv4 routes go on behind the last one, all else at a count, whatever
    /// was removed before it.
    pub fn next(&mut self, host: &FakeHost, most: usize) -> (Vec<u8>, bool) {
        let messages = host.messages(self.list);
        let flags = NLM_F_MULTI
            | if self.is_interrupted {
                NLM_F_DUMP_INTR
            } else {
                0
            };
        let is_behind = |payload: &&Vec<u8>| Some(*payload) > self.last.as_ref();
        let rest: Vec<&Vec<u8>> = match self.list {
            List::Ipv4Routes => messages.iter().filter(is_behind).collect(),
            List::Addresses | List::Ipv6Routes | List::Links => {
                messages.iter().skip(self.count).collect()
            }
        };
        let mut datagram = Vec::new();
        for payload in rest.iter().take(most) {
            datagram.extend(message(
                self.list.new_kind(),
                flags,
                &self.sequence,
                payload,
            ));
        }
        self.count += rest.len().min(most);
        self.last = rest
            .iter()
            .take(most)
            .next_back()
            .map(|last| (*last).clone());
        if datagram.is_empty() {
            return (message(NLMSG_DONE, flags, &self.sequence, &[0; 4]), true);
        }
        (datagram, false)
    }

    /// `list` lost something.
    pub fn removed(&mut self, list: List) {
        self.is_interrupted |= list == self.list && list == List::Addresses;
    }
}

fn refusal(request: &[u8], error: i32) -> Vec<u8> {
    let error = (-error).to_ne_bytes();
    let payload = [&error[..], &request[..16]].concat();
    message(NLMSG_ERROR, 0, &request[8..12], &payload)
}

/// How the kernel reports that something is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// By a message.
    Notified,
    /// Another route or object takes its place, and that alone is reported.
    Replaced,
    /// Its link carries nothing any more.
    WithLink,
}

impl FakeHost {
    /// What the kernel reports when it has become this host, and of which lists
    /// something went.
    pub fn changes_from(&self, old: &Self, farewell: Farewell) -> (Vec<Vec<u8>>, Vec<List>) {
        let (mut events, mut shortened) = (Vec::new(), Vec::new());
        let sequence = 1u32.to_ne_bytes();
        for list in List::ALL {
            let (before, after) = (old.messages(list), self.messages(list));
            let [old_ones, new_ones] = [&before, &after].map(|all| all.iter().collect());
            let (old_ones, new_ones): (HashSet<&Vec<u8>>, HashSet<&Vec<u8>>) = (old_ones, new_ones);
            let gone: Vec<_> = before
                .iter()
                .filter(|one| !new_ones.contains(one))
                .collect();
            let new: Vec<_> = after.iter().filter(|one| !old_ones.contains(one)).collect();
            let is_replaced = farewell == Farewell::Replaced && list.is_of_routes();
            let is_replaced = is_replaced && !new.is_empty();
            for payload in &gone {
                match farewell {
                    Farewell::WithLink if list.is_of_routes() => {
                        // struct ifinfomsg: no IFF_UP.
                        events.push(message(RTM_NEWLINK, 0, &sequence, &[0; 16]));
                    }
                    Farewell::Replaced if is_replaced => {}
                    _ => events.push(message(list.new_kind() + 1, 0, &sequence, payload)),
                }
            }
            for payload in new {
                let flags = if is_replaced { NLM_F_REPLACE } else { 0 };
                events.push(message(list.new_kind(), flags, &sequence, payload));
            }
            if !gone.is_empty() {
                shortened.push(list);
            }
        }
        (events, shortened)
    }

    /// Payloads; IPv4 routes by prefix.
    fn messages(&self, list: List) -> Vec<Vec<u8>> {
        match list {
            List::Addresses => self.address_messages(),
            List::Ipv6Routes => self.route_messages(Family::V6),
            List::Links => self.links.iter().map(link_message).collect(),
            List::Ipv4Routes => {
                let mut messages = self.route_messages(Family::V4);
                messages.sort();
                messages
            }
        }
    }

    fn address_messages(&self) -> Vec<Vec<u8>> {
        let loopback = [
            (IpAddr::V4(Ipv4Addr::LOCALHOST), 8),
            (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
        ];
        let addresses = self.addresses.iter().chain(&loopback);
        let messages = addresses.map(|(address, length)| {
            // struct ifaddrmsg: family, prefix length, flags, scope, interface.
            let fixed = [family(*address), *length, 0x80, 0, 2, 0, 0, 0];
            let mut payload = fixed.to_vec();
            payload.extend(attribute(IFA_ADDRESS, &octets(*address)));
            if address.is_ipv4() {
                payload.extend(attribute(IFA_LOCAL, &octets(*address)));
            }
            payload
        });
        messages.collect()
    }

    fn route_messages(&self, family: Family) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let is_of_family = |address: &IpAddr| Family::of(*address) == family;
        for gateway in self.gateways.iter().filter(|one| is_of_family(one)) {
            let route = [attribute(RTA_GATEWAY, &octets(*gateway)), interface()].concat();
            messages.push([&route_head(*gateway, 0, 254, 0)[..], &route].concat());
        }
        for (address, length) in &self.addresses {
            if !is_of_family(address) {
                continue;
            }
            let scope = if family == Family::V6 { 0 } else { 253 };
            let to = attribute(RTA_DST, &octets(network(*address, *length)));
            let direct = route_head(*address, *length, 254, scope);
            messages.push([&direct[..], &to, &interface()].concat());
        }
        for (address, length) in &self.diverted {
            if is_of_family(address) {
                let to = attribute(RTA_DST, &octets(network(*address, *length)));
                let mut local = route_head(*address, *length, 100, 254);
                local[7] = RTN_LOCAL;
                messages.push([&local[..], &to, &interface()].concat());
            }
        }
        messages
    }
}

/// struct ifinfomsg of a link that works, and what it is bound to.
fn link_message(link: &FakeLink) -> Vec<u8> {
    let mut payload = vec![0, 0, 1, 0];
    payload.extend(link.number.to_ne_bytes());
    payload.extend(0x1_0003_u32.to_ne_bytes());
    payload.extend([0; 4]);
    for (kind, number) in [(IFLA_LINK, link.lower), (IFLA_MASTER, link.master)] {
        if number != 0 {
            payload.extend(attribute(kind, &number.to_ne_bytes()));
        }
    }
    if let Some(namespace) = link.namespace {
        // Its other end's number is of that namespace: here it looks like ours.
        payload.extend(attribute(IFLA_LINK, &UPLINK.to_ne_bytes()));
        payload.extend(attribute(IFLA_LINK_NETNSID, &namespace.to_ne_bytes()));
    }
    payload
}

impl FakeHost {
    /// The links by which packets to an address go.
    pub fn ways_to(&self, address: IpAddr) -> Vec<u32> {
        let ways = self.ways.iter().filter(|way| way.0.contains(address));
        let way = ways.max_by_key(|way| way.0.prefix_length());
        way.map_or(vec![UPLINK], |way| way.1.clone())
    }

    /// The answer to RTM_GETROUTE for one destination.
    pub fn route_answer(&self, request: &[u8]) -> Vec<u8> {
        const RTM_F_FIB_MATCH: u32 = 0x2000;
        let (sequence, family) = (&request[8..12], request[16]);
        let flags = u32::from_ne_bytes(request[24..28].try_into().unwrap());
        assert_eq!(
            flags, RTM_F_FIB_MATCH,
            "the route, not what was chosen of it"
        );
        let length = if i32::from(family) == libc::AF_INET6 {
            16
        } else {
            4
        };
        let address = |at: usize| match <[u8; 4]>::try_from(&request[at..at + length]) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(&request[at..at + length]).unwrap()),
        };
        let destination = address(32);
        if request.len() > 32 + length {
            let own = address(36 + length);
            let is_own = self.addresses.iter().any(|one| one.0 == own);
            assert!(is_own, "EINVAL: {own} is no source of ours");
        }
        let ways = self.ways_to(destination);
        let mut payload = route_head(destination, 0, 254, 0).to_vec();
        match ways[..] {
            [] => {
                let payload = [&(-libc::ENETUNREACH).to_ne_bytes()[..], &request[..16]].concat();
                return message(NLMSG_ERROR, 0, sequence, &payload);
            }
            [way] => payload.extend(attribute(RTA_OIF, &way.to_ne_bytes())),
            _ => {
                // struct rtnexthop: length, flags, hops, interface.
                let hops = ways.iter().map(|way| {
                    let head = [8_u16.to_ne_bytes(), [0; 2]].concat();
                    [head, way.to_ne_bytes().to_vec()].concat()
                });
                let hops: Vec<Vec<u8>> = hops.collect();
                payload.extend(attribute(RTA_MULTIPATH, &hops.concat()));
            }
        }
        message(RTM_NEWROUTE, 0, sequence, &payload)
    }
}

/// struct rtmsg of a unicast route.
fn route_head(address: IpAddr, length: u8, table: u8, scope: u8) -> [u8; 12] {
    const RTPROT_KERNEL: u8 = 2;
    const RTN_UNICAST: u8 = 1;
    let family = family(address);
    [
        family,
        length,
        0,
        0,
        table,
        RTPROT_KERNEL,
        scope,
        RTN_UNICAST,
        0,
        0,
        0,
        0,
    ]
}

fn interface() -> Vec<u8> {
    attribute(RTA_OIF, &2u32.to_ne_bytes())
}

/// Which family a dump of rtnetlink or sock_diag is asked for: the first byte
/// behind the header. Any other than IPv6 is taken for IPv4.
pub fn asked_family(request: &[u8]) -> Family {
    if i32::from(request[16]) == libc::AF_INET6 {
        Family::V6
    } else {
        Family::V4
    }
}

fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn network(address: IpAddr, length: u8) -> IpAddr {
    crate::address::Network::new(address, length).address()
}

pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub fn message(kind: u16, flags: u16, sequence: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = 16 + payload.len() as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence);
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows as a real kernel wrote them, but for the pointer.
    #[test]
    fn rows_to_the_letter() {
        let parse = |text: &str| text.parse().unwrap();
        let sockets = [FakeSocket {
            local: (parse("127.0.0.1"), 22),
            remote: (parse("127.0.0.2"), 53_292),
            state: TcpState::Established,
            inode: 46_153,
            is_dual_stack: false,
        }];
        let text = rows(&sockets, Family::V4);
        let (header, row) = text.split_once('\n').unwrap();
        assert_eq!((header.len(), row.len()), (149, 150));
        if cfg!(target_endian = "little") {
            assert!(row.starts_with(
                "   0: 0100007F:0016 0200007F:D02C 01 00000000:00000000 02:000001F7 00000000  \
                 1000        0 46153 2 "
            ));
        }
    }
}
