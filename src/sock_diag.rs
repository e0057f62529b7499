//! Bytes of NETLINK_SOCK_DIAG (sock_diag(7)) <-> TCP sockets: destroy events,
//! dumps, and requests for one socket: what it is, or to destroy it.

use heapless::Vec;

use crate::address::{Endpoint, Family, Network};
use crate::kernel::bpf::{AND, JEQ, LDB, LDH, LDW, RET, jump, load};
use crate::kernel::{Errno, Instruction};
use crate::limits::PEERS_ASKED;
use crate::netlink::{
    Malformed, Messages, NLM_F_ACK, NLM_F_DUMP, Progress, Values, endpoint_of, header, octets,
    only, u32_at, walk_dump,
};
use crate::proc_net_tcp::TcpState;

// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

// linux/inet_diag.h
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_D_COND: u8 = 8;

/// INET_DIAG_NOCOOKIE, twice: whichever socket has the addresses and ports.
const NO_COOKIE: u64 = u64::MAX;

// Where fields stand in struct tcp_info (linux/tcp.h), to which kernels only
// append: tcpi_segs_in in 4.2, tcpi_min_rtt and tcpi_data_segs_in in 4.6,
// tcpi_delivered in 4.18.
const RTT: usize = 68;
const SEGMENTS_IN: usize = 140;
const MIN_RTT: usize = 148;
const DATA_SEGMENTS_IN: usize = 152;
const DELIVERED: usize = 192;
/// What tcpi_min_rtt is before the first measurement.
const NOT_MEASURED: u32 = u32::MAX;

/// sizeof(struct inet_diag_msg).
const FIXED: usize = 72;
/// sizeof(struct inet_diag_req_v2).
const REQUEST_FIXED: usize = 56;

/// One network in a filter: operation 4, condition 8, address 16, and a jump
/// of 4 to the end. The room behind an IPv4 address is skipped.
const CONDITION: usize = 32;

/// The longest request: header, fixed part, and a filter.
pub const REQUEST: usize = 16 + REQUEST_FIXED + CONDITION * PEERS_ASKED;

/// A request, ready to be sent.
pub type Request = Vec<u8, REQUEST>;

const DUMP_SEQUENCE: u32 = 1;

/// What a socket shows of the handshake with its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Nothing that would prove it.
    Unknown,
    /// The peer acknowledged our SYN-ACK, so its address is not forged.
    Proven,
    /// Nothing was ever acknowledged: Fast Open without a cookie.
    Unproven,
}

/// A TCP socket as the kernel describes it, alive or just destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiagSocket {
    /// Our end. The address is unspecified where the socket was disconnected.
    pub local: Endpoint,
    /// The peer. Its port is 0 where the socket was disconnected; the address is
    /// unspecified for listeners and sockets never connected.
    pub remote: Endpoint,
    /// TCP_* of net/tcp_states.h: 1 established, 7 closed, 10 listening.
    pub state: u8,
    /// The interface it is bound to (SO_BINDTODEVICE), 0 for none.
    pub interface: u32,
    /// Names the socket until reboot, unlike its addresses and ports.
    pub cookie: u64,
    /// The inode of its descriptor; 0 in destroy events.
    pub inode: u32,
    /// Whether the peer ever sent data; `None` where the kernel does not say.
    pub received_data: Option<bool>,
    /// Whether the peer completed the handshake.
    pub handshake: Handshake,
    /// It was disconnected: no port of the peer, and where its listener binds
    /// no address no local one (net/ipv4/tcp.c, tcp_disconnect). Aborted by
    /// the service, or ended with its listener before accept(2); each socket
    /// of MPTCP whose peer closed first.
    pub is_disconnected: bool,
}

/// The filter of events of other network namespaces: drops those whose peer's
/// address is loopback, private (RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 4291
/// section 2.5.6) or unspecified, or whose peer's port is not named. What
/// connects within a host ends thousands of times a second, and is none of them.
/// Offsets are those of `parse_socket` behind a struct nlmsghdr.
pub const FOREIGN_EVENTS: [Instruction; 31] = [
    load(LDH, 22),
    jump(JEQ, 0, 28, 0),
    load(LDB, 16),
    jump(JEQ, libc::AF_INET6 as u32, 0, 13),
    // IPv6: all of ::/96 is dropped, and what is IPv4-mapped goes on as IPv4.
    load(LDW, 40),
    jump(JEQ, 0, 4, 0),
    load(AND, 0xffc0_0000),
    jump(JEQ, 0xfe80_0000, 22, 0),
    load(AND, 0xfe00_0000),
    jump(JEQ, 0xfc00_0000, 20, 19),
    load(LDW, 44),
    jump(JEQ, 0, 0, 17),
    load(LDW, 48),
    jump(JEQ, 0, 16, 0),
    jump(JEQ, 0xffff, 0, 14),
    load(LDW, 52),
    jump(JEQ, 0, 1, 1),
    // IPv4, by ever shorter prefixes.
    load(LDW, 40),
    load(AND, 0xffff_0000),
    jump(JEQ, 0xc0a8_0000, 10, 0),
    jump(JEQ, 0xa9fe_0000, 9, 0),
    load(AND, 0xfff0_0000),
    jump(JEQ, 0xac10_0000, 7, 0),
    load(AND, 0xffc0_0000),
    jump(JEQ, 0x6440_0000, 5, 0),
    load(AND, 0xff00_0000),
    jump(JEQ, 0x0a00_0000, 3, 0),
    jump(JEQ, 0x7f00_0000, 2, 0),
    jump(JEQ, 0, 1, 0),
    load(RET, u32::MAX),
    load(RET, 0),
];

/// Walks one datagram of the destroy groups SKNLGRP_INET_TCP_DESTROY and
/// SKNLGRP_INET6_TCP_DESTROY (linux/sock_diag.h). Returns the number of
/// messages that were not understood.
#[inline(never)]
pub fn walk_events(bytes: &[u8], each: &mut dyn FnMut(DiagSocket)) -> usize {
    let mut malformed: usize = 0;
    for message in Messages::new(bytes) {
        let socket = match message {
            Ok(message) if message.kind == SOCK_DIAG_BY_FAMILY => parse_socket(message.payload),
            Ok(_) | Err(Malformed) => Err(Malformed),
        };
        match socket {
            Ok(socket) => each(socket),
            Err(Malformed) => malformed = malformed.saturating_add(1),
        }
    }
    malformed
}

/// Walks a part of the answer to `dump_request`.
pub fn walk_sockets(bytes: &[u8], mut each: impl FnMut(DiagSocket)) -> Progress {
    walk_dump(bytes, DUMP_SEQUENCE, &mut |kind, payload| {
        if kind == SOCK_DIAG_BY_FAMILY {
            each(parse_socket(payload)?);
        }
        Ok(())
    })
}

/// What became of the `destroy_request` of that `sequence`: `Done`, or refused
/// with ENOENT (gone already), EPERM (no CAP_NET_ADMIN) or EOPNOTSUPP (kernel
/// built without CONFIG_INET_DIAG_DESTROY).
pub fn destroy_answer(bytes: &[u8], sequence: u32) -> Progress {
    walk_dump(bytes, sequence, &mut |_, _| Ok(()))
}

fn parse_socket(payload: &[u8]) -> Result<DiagSocket, Malformed> {
    // struct inet_diag_msg: four bytes, then struct inet_diag_sockid, whose
    // ports and addresses are in network byte order.
    let (fixed, attributes) = payload.split_first_chunk::<FIXED>().ok_or(Malformed)?;
    let (local, remote) = (endpoint(fixed, 4, 8)?, endpoint(fixed, 6, 24)?);
    let word = |offset| u32_at(fixed, offset).ok_or(Malformed);
    // struct tcp_info; there is none of TIME_WAIT.
    let mut values = Values::NONE;
    values.take(attributes)?;
    let info = values.get(INET_DIAG_INFO).unwrap_or_default();
    // It lost its counters, too (before Linux 5.4 its data's alone): a peer
    // whose port is 0 sent segments.
    let has_lost = local.address.is_unspecified() || u32_at(info, SEGMENTS_IN).unwrap_or(0) == 0;
    let is_disconnected = remote.port == 0 && has_lost;
    let data_segments = u32_at(info, DATA_SEGMENTS_IN).filter(|_| !is_disconnected);
    Ok(DiagSocket {
        local,
        remote,
        state: fixed[1],
        interface: word(40)?,
        cookie: u64::from(word(48)?) << 32 | u64::from(word(44)?),
        inode: word(68)?,
        received_data: data_segments.map(|segments| segments > 0),
        handshake: handshake(fixed[1], info),
        is_disconnected,
    })
}

fn endpoint(fixed: &[u8; FIXED], port: usize, address: usize) -> Result<Endpoint, Malformed> {
    let family = Family::from_number(fixed[0]).ok_or(Malformed)?;
    let length = usize::from(family.bits() / 8);
    let (_, address) = fixed.split_at_checked(address).ok_or(Malformed)?;
    let (_, port) = fixed.split_at_checked(port).ok_or(Malformed)?;
    endpoint_of(address.get(..length).ok_or(Malformed)?, port)
}

/// By a round trip that was measured, or by a segment (the SYN-ACK among them)
/// that was delivered: SYN cookies and a repeated SYN-ACK leave nothing to
/// measure where there are no timestamps, and tcp_disconnect takes all but
/// tcpi_min_rtt away. Kernels without that field forge by
/// net.ipv4.tcp_fastopen alone (TCP_FASTOPEN_NO_COOKIE is of 4.15), so there
/// its absence leaves the question open.
fn handshake(state: u8, info: &[u8]) -> Handshake {
    let state = TcpState::from_number(state.into());
    let is_positive = |offset| u32_at(info, offset).is_some_and(|value| value > 0);
    let min_rtt = u32_at(info, MIN_RTT);
    if state.is_some_and(TcpState::proves_handshake)
        || is_positive(RTT)
        || is_positive(DELIVERED)
        || min_rtt.is_some_and(|rtt| rtt != NOT_MEASURED)
    {
        Handshake::Proven
    } else if min_rtt.is_some() {
        Handshake::Unproven
    } else {
        Handshake::Unknown
    }
}

/// Asks for the sockets of `family` in one of `states` (bit n for state n)
/// whose peer lies in one of `peers`, at most `PEERS_ASKED`, with their tcp_info.
/// An IPv4 source may have sockets of both families. The kernel filters
/// (net/ipv4/inet_diag.c, inet_diag_bc_run), so a busy host costs it time, not
/// us.
#[inline(never)]
pub fn dump_request(family: Family, states: u32, peers: &[Network]) -> Request {
    let mut request = Request::new();
    // The head of the attribute makes up for the jump that the last one lacks.
    let mut left = peers.len() * CONDITION;
    let whole = 16 + REQUEST_FIXED + left;
    let head = header(whole, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, DUMP_SEQUENCE);
    put(&mut request, &head);
    put_fixed(&mut request, family, states);
    put(&mut request, &[0; 48]);
    put(&mut request, &(left as u16).to_ne_bytes());
    put(&mut request, &INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    for peers in peers {
        // Go on behind it if it matches, else past the jump that follows, or
        // past the end, which refuses.
        let [code, yes, a, b] = operation(INET_DIAG_BC_D_COND, CONDITION - 4, CONDITION);
        // struct inet_diag_hostcond; port -1 is any.
        let (family, length) = (peers.family().number(), peers.prefix_length());
        let head = [code, yes, a, b, family, length, 0, 0, !0, !0, !0, !0];
        put(&mut request, &head);
        put(&mut request, &octets(peers.address()));
        left -= CONDITION;
        if left > 0 {
            put(&mut request, &operation(INET_DIAG_BC_JMP, 4, left));
        }
    }
    request
}

/// Asks for the one socket with these ends, and its tcp_info. The kernel looks
/// them up as it does for a packet (net/ipv4/inet_diag.c,
/// inet_diag_find_one_icsk): 3 us were measured.
pub fn lookup_request(local: Endpoint, remote: Endpoint, sequence: u32) -> Request {
    let head = header(ONE_SOCKET, SOCK_DIAG_BY_FAMILY, 0, sequence);
    one_socket(&head, local, remote, 0, NO_COOKIE)
}

/// What the answer to that `lookup_request` says; ENOENT where the connection is
/// gone. Then the kernel describes the listener of its port, if there is one.
pub fn lookup_answer(
    bytes: &[u8],
    sequence: u32,
    local: Endpoint,
    remote: Endpoint,
) -> Result<DiagSocket, Errno> {
    let payload = only(bytes, sequence, SOCK_DIAG_BY_FAMILY)?;
    let socket = parse_socket(payload).map_err(|Malformed| Errno::EINVAL)?;
    let is_it = socket.local == local && socket.remote == remote;
    is_it.then_some(socket).ok_or(Errno::ENOENT)
}

/// Asks the kernel to destroy one socket, as a reset from the peer would. The
/// cookie keeps another one with the same addresses and ports from harm.
pub fn destroy_request(socket: &DiagSocket, sequence: u32) -> Request {
    let head = header(ONE_SOCKET, SOCK_DESTROY, NLM_F_ACK, sequence);
    let (local, remote) = (socket.local, socket.remote);
    one_socket(&head, local, remote, socket.interface, socket.cookie)
}

/// The length of a request for one socket.
const ONE_SOCKET: usize = 16 + REQUEST_FIXED;

#[inline(never)]
fn one_socket(
    head: &[u8],
    local: Endpoint,
    remote: Endpoint,
    interface: u32,
    cookie: u64,
) -> Request {
    let mut request = Request::new();
    put(&mut request, head);
    put_fixed(&mut request, Family::of(remote.address), u32::MAX);
    // struct inet_diag_sockid
    put(&mut request, &local.port.to_be_bytes());
    put(&mut request, &remote.port.to_be_bytes());
    put(&mut request, &octets(local.address));
    put(&mut request, &octets(remote.address));
    put(&mut request, &interface.to_ne_bytes());
    put(&mut request, &(cookie as u32).to_ne_bytes());
    put(&mut request, &((cookie >> 32) as u32).to_ne_bytes());
    request
}

/// What struct inet_diag_req_v2 has before its struct inet_diag_sockid.
fn put_fixed(request: &mut Request, family: Family, states: u32) {
    let extensions = 1 << (INET_DIAG_INFO - 1);
    put(
        request,
        &[family.number(), libc::IPPROTO_TCP as u8, extensions, 0],
    );
    put(request, &states.to_ne_bytes());
}

/// struct inet_diag_bc_op
fn operation(code: u8, yes: usize, no: usize) -> [u8; 4] {
    let [first, second] = (no as u16).to_ne_bytes();
    [code, yes as u8, first, second]
}

/// Requests are of fixed composition and fit by `REQUEST`.
fn put(request: &mut Request, bytes: &[u8]) {
    let fits = request.extend_from_slice(bytes).is_ok();
    debug_assert!(fits);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Errno;
    use crate::netlink::Failure;
    use core::net::{IpAddr, Ipv4Addr};
    use std::format;
    use std::string::String;

    type List<T> = std::vec::Vec<T>;

    const EVENT: usize = 380;

    /// One datagram each, from Linux 6.18: a service at 192.0.2.1 port 1004
    /// (IPv4) or 2001:db8::1 port 1006 (dual-stack), a peer at 192.0.2.9 or
    /// 2001:db8::9, and what happened as named below.
    fn recorded(index: usize) -> &'static [u8] {
        let all = include_bytes!("testing/sock_diag/destroy_events.bin");
        &all[index * EVENT..][..EVENT]
    }

    fn events(bytes: &[u8]) -> (List<DiagSocket>, usize) {
        let mut found = List::new();
        let malformed = walk_events(bytes, &mut |socket| found.push(socket));
        (found, malformed)
    }

    fn written(socket: &DiagSocket) -> String {
        let text =
            |endpoint: Endpoint| String::from_utf8(endpoint.to_text().as_bytes().to_vec()).unwrap();
        let data = match socket.received_data {
            Some(true) => "data",
            Some(false) => "silent",
            None => "?",
        };
        format!("{} {} {data}", text(socket.local), text(socket.remote))
    }

    /// What the filter lets through of an event with this peer, whose socket is of
    /// IPv6 where the text is.
    #[cfg(target_endian = "little")]
    fn passes(peer: &str, port: u16) -> bool {
        let mut event = recorded(0).to_vec();
        let (family, octets) = match peer.parse().unwrap() {
            IpAddr::V4(v4) => (Family::V4, v4.octets().to_vec()),
            IpAddr::V6(v6) => (Family::V6, v6.octets().to_vec()),
        };
        event[16] = family.number();
        event[22..24].copy_from_slice(&port.to_be_bytes());
        event[40..56].fill(0);
        event[40..40 + octets.len()].copy_from_slice(&octets);
        crate::packets::tests::run(&FOREIGN_EVENTS, &event, 0, 0) > 0
    }

    /// Each network that is left out, by its first and last address and those
    /// beside them.
    #[test]
    #[cfg(target_endian = "little")]
    fn events_of_peers_that_may_be_anybody() {
        let v4 = [
            ("0.0.0.0/32", false),
            ("9.255.255.255/32", true),
            ("10.0.0.0/8", false),
            ("11.0.0.0/32", true),
            ("100.63.255.255/32", true),
            ("100.64.0.0/10", false),
            ("100.128.0.0/32", true),
            ("126.255.255.255/32", true),
            ("127.0.0.0/8", false),
            ("128.0.0.0/32", true),
            ("169.253.255.255/32", true),
            ("169.254.0.0/16", false),
            ("169.255.0.0/32", true),
            ("172.15.255.255/32", true),
            ("172.16.0.0/12", false),
            ("172.32.0.0/32", true),
            ("192.167.255.255/32", true),
            ("192.168.0.0/16", false),
            ("192.169.0.0/32", true),
            ("203.0.113.9/32", true),
            ("255.255.255.255/32", true),
        ];
        for (network, expected) in v4 {
            let network = Network::parse(network.as_bytes()).unwrap();
            let IpAddr::V4(first) = network.address() else {
                panic!("{network:?}")
            };
            let hosts = u32::MAX.checked_shr(network.prefix_length().into());
            let last = Ipv4Addr::from_bits(first.to_bits() | hosts.unwrap_or(0));
            for address in [first, last] {
                for text in [format!("{address}"), format!("::ffff:{address}")] {
                    assert_eq!(passes(&text, 40_000), expected, "{text}");
                    assert!(!passes(&text, 0), "{text}");
                }
            }
        }
        for (address, expected) in [
            ("::", false),
            ("::1", false),
            ("::ffff:ffff", false),
            ("::fffe:203.0.113.9", true),
            ("::1:203.0.113.9", true),
            ("::1:0:203.0.113.9", true),
            ("0:1::", true),
            ("64:ff9b::203.0.113.9", true),
            ("2001:db8::9", true),
            ("fbff:ffff::", true),
            ("fc00::", false),
            ("fdff:ffff:ffff::ffff", false),
            ("fe00::", true),
            ("fe7f:ffff::", true),
            ("fe80::", false),
            ("febf:ffff::1", false),
            ("fec0::", true),
        ] {
            assert_eq!(passes(address, 40_000), expected, "{address}");
            assert!(!passes(address, 0), "{address}");
        }
    }

    /// The peer's port may be 0: what was disconnected lost more than that.
    #[test]
    #[cfg(target_endian = "little")]
    fn port_0_is_no_disconnect() {
        let change = |index: usize, places: core::ops::Range<usize>| {
            let mut event = recorded(index).to_vec();
            event[places].fill(0);
            events(&event).0[0]
        };
        // struct nlmsghdr, then what `parse_socket` says.
        let (remote_port, local) = (16 + 6..16 + 8, 16 + 8..16 + 24);
        for index in [0, 1, 2, 4, 6, 8] {
            let socket = change(index, 0..0);
            assert!(!socket.is_disconnected);
            let from_port_0 = change(index, remote_port.clone());
            assert!(!from_port_0.is_disconnected);
            assert_eq!(from_port_0.received_data, socket.received_data);
            // Kernels before 5.4 leave the counter of segments.
            assert!(change(index, remote_port.start..local.end).is_disconnected);
        }
        for index in [3, 5, 7, 9] {
            assert!(change(index, 0..0).is_disconnected);
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn real_destroy_events() {
        for (index, (what, expected)) in [
            (
                "closed by the peer",
                "192.0.2.1:1004 192.0.2.9:36728 silent",
            ),
            (
                "so, after five bytes",
                "192.0.2.1:1004 192.0.2.9:36742 data",
            ),
            ("reset by the peer", "192.0.2.1:1004 192.0.2.9:36750 silent"),
            (
                "SO_LINGER 0, after five bytes",
                "0.0.0.0:1004 192.0.2.9:0 ?",
            ),
            (
                "IPv6, five bytes",
                "[2001:db8::1]:1006 [2001:db8::9]:56354 data",
            ),
            ("IPv6, SO_LINGER 0", "[::]:1006 [2001:db8::9]:0 ?"),
            ("IPv4 to dual-stack", "192.0.2.1:1006 192.0.2.9:40760 data"),
            ("so, SO_LINGER 0", "[::]:1006 192.0.2.9:0 ?"),
            (
                "reset before accept",
                "192.0.2.1:1004 192.0.2.9:36790 silent",
            ),
            ("never accepted", "0.0.0.0:1004 192.0.2.9:0 ?"),
            ("the listener itself", "0.0.0.0:1004 0.0.0.0:0 ?"),
            ("refused connect", "0.0.0.0:36298 127.0.0.1:0 ?"),
            ("bound only", "127.0.0.1:44521 0.0.0.0:0 ?"),
        ]
        .into_iter()
        .enumerate()
        {
            let (found, malformed) = events(recorded(index));
            assert_eq!((found.len(), malformed), (1, 0), "{what}");
            assert_eq!(written(&found[0]), expected, "{what}");
            assert_eq!((found[0].state, found[0].inode), (7, 0), "{what}");
        }
    }

    /// A destroy event each, from Linux 6.18: a service at 192.0.2.1 port 1004,
    /// a peer at 192.0.2.9 or, where no host answers, at 192.0.2.50.
    #[test]
    #[cfg(target_endian = "little")]
    fn real_handshakes() {
        let all = include_bytes!("testing/sock_diag/handshakes.bin");
        let expected = [
            ("forged Fast Open, closed", Handshake::Unproven),
            ("so, SO_LINGER 0", Handshake::Unproven),
            ("SO_LINGER 0", Handshake::Proven),
            ("never accepted", Handshake::Proven),
            ("SYN cookies without timestamps", Handshake::Proven),
            ("the first SYN-ACK lost", Handshake::Proven),
            ("so, without timestamps", Handshake::Proven),
            // tcp_disconnect leaves nothing of it.
            (
                "SYN cookies without timestamps, SO_LINGER 0",
                Handshake::Unproven,
            ),
        ];
        assert_eq!(all.len(), expected.len() * EVENT);
        for (bytes, (what, handshake)) in all.chunks(EVENT).zip(expected) {
            let (found, malformed) = events(bytes);
            assert_eq!((found.len(), malformed), (1, 0), "{what}");
            assert_eq!(found[0].handshake, handshake, "{what}");
        }
    }

    /// One of the three fields is enough. Before 4.6 nothing shows that there
    /// was none; 104 bytes are those of Linux 2.6.
    #[test]
    #[cfg(target_endian = "little")]
    fn each_proof_of_a_handshake() {
        let shown = |length: usize, rtt: u32, min_rtt: u32, delivered: u32| {
            let mut info = std::vec![0; 280];
            for (at, value) in [(RTT, rtt), (MIN_RTT, min_rtt), (DELIVERED, delivered)] {
                info[at..][..4].copy_from_slice(&value.to_ne_bytes());
            }
            events(&with_tcp_info(&info[..length])).0[0].handshake
        };
        for length in [104, 148, 151, 152, 160, 195, 196, 280] {
            let unproven = if length < MIN_RTT + 4 {
                Handshake::Unknown
            } else {
                Handshake::Unproven
            };
            let when = |is_proven| {
                if is_proven {
                    Handshake::Proven
                } else {
                    unproven
                }
            };
            assert_eq!(shown(length, 0, NOT_MEASURED, 0), unproven);
            assert_eq!(shown(length, 1, NOT_MEASURED, 0), Handshake::Proven);
            let has_delivered = length >= DELIVERED + 4;
            assert_eq!(shown(length, 0, NOT_MEASURED, 1), when(has_delivered));
            // Below a microsecond is measured, too.
            let has_min_rtt = length >= MIN_RTT + 4;
            assert_eq!(shown(length, 0, 0, 0), when(has_min_rtt));
        }
        for state in TcpState::ALL {
            let expected = if state.proves_handshake() {
                Handshake::Proven
            } else {
                Handshake::Unknown
            };
            assert_eq!(handshake(state as u8, &[]), expected);
        }
        for number in [0, 13, 255] {
            assert_eq!(handshake(number, &[]), Handshake::Unknown);
        }
    }

    /// What Linux 6.18 answered: a forged connection in FIN_WAIT1, the
    /// listener on its port where it is gone, and ENOENT without one.
    #[test]
    #[cfg(target_endian = "little")]
    fn real_lookups() {
        let all = include_bytes!("testing/sock_diag/lookups.bin");
        let (found, rest) = all.split_at(408);
        let (listener, gone) = rest.split_at(408);
        let end = |address: &str, port| Endpoint {
            address: address.parse().unwrap(),
            port,
        };
        let port = u16::from_be_bytes([found[22], found[23]]);
        let (local, remote) = (end("192.0.2.1", 1004), end("192.0.2.50", port));
        let answer = |bytes, sequence| {
            let socket = lookup_answer(bytes, sequence, local, remote)?;
            assert_eq!((socket.local, socket.remote), (local, remote));
            Ok(socket.handshake)
        };
        assert_eq!(answer(found, 7), Ok(Handshake::Unproven));
        assert_eq!(answer(listener, 7), Err(Errno::ENOENT));
        assert_eq!(answer(gone, 7), Err(Errno::ENOENT));
        let mut time_wait = found[..16 + FIXED].to_vec();
        time_wait[..4].copy_from_slice(&(16 + FIXED as u32).to_ne_bytes());
        time_wait[17] = TcpState::TimeWait as u8;
        assert_eq!(answer(&time_wait, 7), Ok(Handshake::Proven));
        // Another one's answer, or none.
        assert_eq!(answer(found, 8), Err(Errno::EINVAL));
        for cut in 0..found.len() {
            assert_eq!(answer(&found[..cut], 7), Err(Errno::EINVAL), "{cut}");
        }
    }

    /// Byte for byte what the same kernel answered.
    #[test]
    #[cfg(target_endian = "little")]
    fn lookup_requests() {
        let socket = events(recorded(1)).0[0];
        let request = lookup_request(socket.local, socket.remote, 7);
        assert_eq!(request[..12], [72, 0, 0, 0, 20, 0, 1, 0, 7, 0, 0, 0]);
        assert_eq!(request[16..24], [2, 6, 2, 0, 255, 255, 255, 255]);
        // Ends as an event names them, no interface, any cookie.
        assert_eq!(request[24..60], recorded(1)[20..56]);
        assert_eq!(
            request[60..72],
            [0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]
        );
    }

    /// An event with another tcp_info.
    fn with_tcp_info(info: &[u8]) -> List<u8> {
        let mut bytes = recorded(1)[..16 + FIXED].to_vec();
        for (kind, value) in [(10u16, &[1u8][..]), (INET_DIAG_INFO, info), (99, b"new")] {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    /// 104 bytes in Linux 2.6, 160 in 4.6, 280 in 6.18.
    #[test]
    #[cfg(target_endian = "little")]
    fn tcp_info_of_any_length() {
        for length in 0..400 {
            let mut info = std::vec![0xff; length];
            for (byte, segments) in [(0, Some(false)), (1, Some(true))] {
                if length >= DATA_SEGMENTS_IN + 4 {
                    info[DATA_SEGMENTS_IN..][..4].copy_from_slice(&[byte, 0, 0, 0]);
                }
                let (found, malformed) = events(&with_tcp_info(&info));
                let expected = segments.filter(|_| length >= DATA_SEGMENTS_IN + 4);
                assert_eq!(malformed, 0);
                assert_eq!(found[0].received_data, expected, "{length}");
            }
        }
        let mut without = recorded(1)[..16 + FIXED].to_vec();
        without[..4].copy_from_slice(&(16 + FIXED as u32).to_ne_bytes());
        assert_eq!(events(&without).0[0].received_data, None);
    }

    /// What is not understood is counted and never ends the program; what
    /// follows a whole message is still read.
    #[test]
    #[cfg(target_endian = "little")]
    fn damaged_events_are_counted() {
        let whole = recorded(4);
        for end in 1..whole.len() {
            assert_eq!(events(&whole[..end]), (List::new(), 1), "{end}");
            for odd in [0, 1, 3, 5, 0x7f, 0xff] {
                let mut bytes = whole.to_vec();
                bytes[end] = odd;
                let (found, malformed) = events(&bytes);
                assert!(found.len() <= 1 && malformed <= 2);
            }
        }
        assert_eq!(events(&[]), (List::new(), 0));
        for (offset, odd) in [(16, 1), (4, 21)] {
            let mut bytes = whole.to_vec();
            bytes[offset] = odd;
            bytes.extend(whole);
            let (found, malformed) = events(&bytes);
            assert_eq!((found.len(), malformed), (1, 1), "another family or type");
        }
    }

    /// `Done` and one socket, a connection with data from 192.0.2.9, as Linux
    /// 6.18 answered `dump_request`.
    #[test]
    #[cfg(target_endian = "little")]
    fn a_real_dump() {
        let bytes = include_bytes!("testing/sock_diag/sockets.bin");
        let mut found = List::new();
        let progress = walk_sockets(bytes, |socket| found.push(socket));
        assert_eq!((progress, found.len()), (Progress::Done, 1));
        let [socket] = found[..] else { unreachable!() };
        let end = |address: &str, port| Endpoint {
            address: address.parse().unwrap(),
            port,
        };
        assert_eq!(socket.local, end("192.0.2.1", 1004));
        assert_eq!(socket.remote.address, end("192.0.2.9", 0).address);
        assert_eq!((socket.state, socket.interface), (1, 0));
        assert_eq!(socket.received_data, Some(true));
        assert_ne!((socket.inode, socket.cookie), (0, 0));
        for cut in 1..bytes.len() {
            let progress = walk_sockets(&bytes[..cut], |_| {});
            assert_ne!(progress, Progress::Done, "{cut}");
        }
    }

    /// Byte for byte what the same kernel accepted.
    #[test]
    #[cfg(target_endian = "little")]
    fn dump_requests() {
        let peers = |text: &str| Network::parse(text.as_bytes()).unwrap();
        let request = dump_request(Family::V6, 1 << 1, &[peers("192.0.2.0/24")]);
        let head = [104, 0, 0, 0, 20, 0, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0];
        let fixed = [10, 6, 2, 0, 2, 0, 0, 0];
        let filter = [
            32, 0, 1, 0, 8, 28, 32, 0, 2, 24, 0, 0, 255, 255, 255, 255, 192, 0, 2, 0,
        ];
        let expected = [&head[..], &fixed, &[0; 48], &filter, &[0; 12]].concat();
        assert_eq!(request.as_slice(), expected);
        let request = dump_request(Family::V6, u32::MAX, &[peers("2001:db8::/64")]);
        assert_eq!(request.len(), 104);
        assert_eq!(request[..4], 104u32.to_ne_bytes());
        assert_eq!(request[72..80], [32, 0, 1, 0, 8, 28, 32, 0]);
        assert_eq!(
            request[80..92],
            [10, 64, 0, 0, 255, 255, 255, 255, 0x20, 1, 0xd, 0xb8]
        );
    }

    /// Conditions and the jump between them, as ss(8) writes "or".
    #[test]
    #[cfg(target_endian = "little")]
    fn dump_requests_for_several() {
        let peers = |text: &str| Network::parse(text.as_bytes()).unwrap();
        let list = ["192.0.2.1", "2001:db8::/64", "192.0.2.9"].map(peers);
        let request = dump_request(Family::V6, u32::MAX, &list);
        let bytecode = &request[76..];
        assert_eq!(request[..4], (request.len() as u32).to_ne_bytes());
        assert_eq!(request[72..74], (request.len() as u16 - 72).to_ne_bytes());
        for (at, operation) in [
            (0, [8, 28, 32, 0]),
            (28, [1, 4, 64, 0]),
            (32, [8, 28, 32, 0]),
            (60, [1, 4, 32, 0]),
            (64, [8, 28, 32, 0]),
        ] {
            assert_eq!(bytecode[at..][..4], operation, "{at}");
        }
        assert_eq!(bytecode.len(), 92);
        let most = [peers("2001:db8::/64"); PEERS_ASKED];
        let request = dump_request(Family::V6, u32::MAX, &most);
        assert_eq!(request.len(), REQUEST);
    }

    /// A destroy request names the socket exactly as an event or dump does.
    #[test]
    #[cfg(target_endian = "little")]
    fn destroy_requests() {
        for index in [1, 4] {
            let socket = events(recorded(index)).0[0];
            let request = destroy_request(&socket, 7);
            assert_eq!(request.len(), 16 + REQUEST_FIXED);
            assert_eq!(request[..12], [72, 0, 0, 0, 21, 0, 5, 0, 7, 0, 0, 0]);
            assert_eq!(request[16], recorded(index)[16]);
            let (expected, identity) = (&recorded(index)[20..68], &request[24..72]);
            assert_eq!(identity, expected);
        }
        // An IPv4 peer of a dual-stack listener is looked up as IPv4.
        let socket = events(recorded(6)).0[0];
        let request = destroy_request(&socket, 7);
        assert_eq!(request[16], libc::AF_INET as u8);
        assert_eq!(request[28..36], [192, 0, 2, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn destroy_answers() {
        let answer = |code: i32| {
            let head = header(36, 2, 0, 7);
            [&head[..], &code.to_ne_bytes(), &[0; 16]].concat()
        };
        assert_eq!(destroy_answer(&answer(0), 7), Progress::Done);
        let gone = Progress::Failed(Failure::Refused(Errno::ENOENT));
        assert_eq!(destroy_answer(&answer(-libc::ENOENT), 7), gone);
        assert_eq!(destroy_answer(&answer(0), 8), Progress::More);
    }
}
