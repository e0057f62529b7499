//! Bytes of NETLINK_SOCK_DIAG (sock_diag(7)) <-> TCP sockets: destroy events,
//! dumps, and the request to destroy a socket.

use core::net::IpAddr;

use heapless::Vec;

use crate::address::{Endpoint, Network};
use crate::netlink::{
    Attribute, Attributes, Malformed, Messages, NLM_F_ACK, NLM_F_DUMP, Progress, address_of,
    header, u32_at, walk_dump,
};

// linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

// linux/inet_diag.h
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_BC_D_COND: u8 = 8;

/// Where tcpi_data_segs_in stands in struct tcp_info (linux/tcp.h). Kernels
/// before 4.6 end before it; later ones append behind it only.
const DATA_SEGMENTS_IN: usize = 152;

/// sizeof(struct inet_diag_msg).
const FIXED: usize = 72;
/// sizeof(struct inet_diag_req_v2).
const REQUEST_FIXED: usize = 56;

/// The longest request: header, fixed part, and a filter for an IPv6 network
/// (attribute header 4, operation 4, condition 8, address 16).
pub const REQUEST: usize = 16 + REQUEST_FIXED + 32;

/// A request, ready to be sent.
pub type Request = Vec<u8, REQUEST>;

const DUMP_SEQUENCE: u32 = 1;

/// A TCP socket as the kernel describes it, alive or just destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiagSocket {
    /// Our end. The address is unspecified where the socket was disconnected.
    pub local: Endpoint,
    /// The peer. Its port is 0 where the connection was aborted by the service
    /// or ended before accept(2) with its listener; the address is unspecified
    /// for listeners and sockets never connected.
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
}

/// Walks one datagram of the destroy groups SKNLGRP_INET_TCP_DESTROY and
/// SKNLGRP_INET6_TCP_DESTROY (linux/sock_diag.h). Returns the number of
/// messages that were not understood.
pub fn walk_events(bytes: &[u8], mut each: impl FnMut(DiagSocket)) -> usize {
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
    walk_dump(bytes, DUMP_SEQUENCE, |kind, payload| {
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
    walk_dump(bytes, sequence, |_, _| Ok(()))
}

fn parse_socket(payload: &[u8]) -> Result<DiagSocket, Malformed> {
    // struct inet_diag_msg: four bytes, then struct inet_diag_sockid, whose
    // ports and addresses are in network byte order.
    let (fixed, attributes) = payload.split_first_chunk::<FIXED>().ok_or(Malformed)?;
    let (local, remote) = (endpoint(fixed, 4, 8)?, endpoint(fixed, 6, 24)?);
    let word = |offset| u32_at(fixed, offset).ok_or(Malformed);
    Ok(DiagSocket {
        local,
        remote,
        state: fixed[1],
        interface: word(40)?,
        cookie: u64::from(word(48)?) << 32 | u64::from(word(44)?),
        inode: word(68)?,
        received_data: received_data(attributes, remote)?,
    })
}

fn endpoint(fixed: &[u8; FIXED], port: usize, address: usize) -> Result<Endpoint, Malformed> {
    let length = match i32::from(fixed[0]) {
        libc::AF_INET => 4,
        libc::AF_INET6 => 16,
        _ => return Err(Malformed),
    };
    let part = |offset: usize, length: usize| {
        let (_, rest) = fixed.split_at_checked(offset)?;
        rest.get(..length)
    };
    let port = part(port, 2).and_then(|bytes| bytes.first_chunk());
    Ok(Endpoint {
        address: address_of(part(address, length).ok_or(Malformed)?)?,
        port: u16::from_be_bytes(*port.ok_or(Malformed)?),
    })
}

/// From tcp_info, where it is long enough. A disconnected socket, known by its
/// remote port 0, lost its counters with it (net/ipv4/tcp.c, tcp_disconnect):
/// their 0 says nothing.
fn received_data(attributes: &[u8], remote: Endpoint) -> Result<Option<bool>, Malformed> {
    let mut segments = None;
    for attribute in Attributes::new(attributes) {
        let Attribute { kind, value } = attribute?;
        if kind == INET_DIAG_INFO {
            segments = u32_at(value, DATA_SEGMENTS_IN);
        }
    }
    Ok(segments
        .filter(|_| remote.port != 0)
        .map(|segments| segments > 0))
}

/// The families of one dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AF_INET sockets.
    V4,
    /// AF_INET6 sockets, among them those of IPv4 peers of dual-stack
    /// listeners.
    V6,
}

impl Family {
    const fn number(self) -> u8 {
        match self {
            Self::V4 => libc::AF_INET as u8,
            Self::V6 => libc::AF_INET6 as u8,
        }
    }

    const fn of(address: IpAddr) -> Self {
        if address.is_ipv6() {
            Self::V6
        } else {
            Self::V4
        }
    }
}

/// Asks for the sockets of `family` in one of `states` (bit n for state n)
/// whose peer lies in `peers`, with their tcp_info. An IPv4 source may have
/// sockets of both families. The kernel filters (net/ipv4/inet_diag.c,
/// inet_diag_bc_run), so a busy host costs it time, not us.
pub fn dump_request(family: Family, states: u32, peers: Network) -> Request {
    let filter = peer_filter(peers);
    let length = 16 + REQUEST_FIXED + filter.len();
    let mut request = Request::new();
    put(
        &mut request,
        &header(length, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, DUMP_SEQUENCE),
    );
    put_fixed(&mut request, family, states);
    put(&mut request, &[0; 48]);
    put(&mut request, &filter);
    request
}

/// Asks the kernel to destroy one socket, as a reset from the peer would. The
/// cookie keeps another one with the same addresses and ports from harm.
pub fn destroy_request(socket: &DiagSocket, sequence: u32) -> Request {
    let length = 16 + REQUEST_FIXED;
    let mut request = Request::new();
    put(
        &mut request,
        &header(length, SOCK_DESTROY, NLM_F_ACK, sequence),
    );
    put_fixed(&mut request, Family::of(socket.remote.address), u32::MAX);
    // struct inet_diag_sockid
    put(&mut request, &socket.local.port.to_be_bytes());
    put(&mut request, &socket.remote.port.to_be_bytes());
    put(&mut request, &octets(socket.local.address));
    put(&mut request, &octets(socket.remote.address));
    put(&mut request, &socket.interface.to_ne_bytes());
    put(&mut request, &(socket.cookie as u32).to_ne_bytes());
    put(&mut request, &((socket.cookie >> 32) as u32).to_ne_bytes());
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

/// One INET_DIAG_BC_D_COND: go to the end if it matches, else four bytes
/// behind it, which refuses.
fn peer_filter(peers: Network) -> Request {
    let address = peers.address();
    let octets = octets(address);
    let family = Family::of(address);
    let address = octets.get(..if family == Family::V6 { 16 } else { 4 });
    let address = address.unwrap_or(&[]);
    let length = 4 + 8 + address.len();
    let mut filter = Request::new();
    put(&mut filter, &(4 + length as u16).to_ne_bytes());
    put(&mut filter, &INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    // struct inet_diag_bc_op
    put(&mut filter, &[INET_DIAG_BC_D_COND, length as u8]);
    put(&mut filter, &(4 + length as u16).to_ne_bytes());
    // struct inet_diag_hostcond; port -1 is any.
    put(&mut filter, &[family.number(), peers.prefix_length(), 0, 0]);
    put(&mut filter, &(-1i32).to_ne_bytes());
    put(&mut filter, address);
    filter
}

/// `address` in network byte order, with zeros behind IPv4.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96).to_be_bytes(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Requests are of fixed composition and fit by `REQUEST`.
fn put(request: &mut Request, bytes: &[u8]) {
    let fits = request.extend_from_slice(bytes).is_ok();
    debug_assert!(fits);
}
