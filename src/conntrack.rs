//! Bytes of conntrack (NETLINK_NETFILTER, linux/netfilter/nfnetlink_conntrack.h)
//! <-> who began a connection, and what it asked for. One entry is asked for by
//! the addresses and ports of its answers, which are those that the namespace
//! behind it knows; the entry says how its first packet came in.
//!
//! An entry proves no handshake: who can guess where the windows are not checked
//! makes one of any source.

use crate::address::{Endpoint, Family};
use crate::kernel::Errno;
use crate::netlink::{HEADER, Malformed, endpoint_of, find, header, only, put_address};
use crate::text::Text;

/// NFNL_SUBSYS_CTNETLINK of linux/netfilter/nfnetlink.h, and IPCTNL_MSG_CT_NEW.
const ENTRY: u16 = 1 << 8;
/// The same with IPCTNL_MSG_CT_GET.
const GET_ENTRY: u16 = ENTRY | 1;

// linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;

/// CTA_IP_V4_SRC and CTA_IP_V4_DST, or those of IPv6.
const fn address_kinds(family: Family) -> [u16; 2] {
    match family {
        Family::V4 => [1, 2],
        Family::V6 => [3, 4],
    }
}

/// Bytes of two addresses as attributes.
const fn addresses(family: Family) -> usize {
    2 * (4 + family.bits() as usize / 8)
}

/// What stands before the addresses: struct nlmsghdr, struct nfgenmsg, and the
/// heads of two attributes that hold others.
const HEAD: usize = HEADER + 4 + 4 + 4;
/// What stands behind them: such a head, and three attributes.
const TAIL: usize = 4 + 3 * 8;

/// Bytes of the longest question, one of IPv6.
pub const REQUEST: usize = HEAD + addresses(Family::V6) + TAIL;

/// Puts numbers of two bytes into it, from a place on.
const fn with<const N: usize, const M: usize>(
    mut bytes: [u8; N],
    at: usize,
    numbers: [u16; M],
) -> [u8; N] {
    let mut index = 0;
    while index < M {
        let [first, second] = numbers[index].to_ne_bytes();
        bytes[at + 2 * index] = first;
        bytes[at + 2 * index + 1] = second;
        index += 1;
    }
    bytes
}

const fn head(family: Family) -> [u8; HEAD] {
    let addresses = addresses(family);
    let header = header(HEAD + addresses + TAIL, GET_ENTRY, 0, 0);
    let mut bytes = [0; HEAD];
    let mut index = 0;
    while index < HEADER {
        bytes[index] = header[index];
        index += 1;
    }
    bytes[HEADER] = family.number();
    let (tuple, addresses) = (8 + addresses + TAIL, 4 + addresses);
    let numbers = [
        tuple as u16,
        CTA_TUPLE_REPLY | NLA_F_NESTED,
        addresses as u16,
        CTA_TUPLE_IP | NLA_F_NESTED,
    ];
    with(bytes, HEADER + 4, numbers)
}

const HEADS: [[u8; HEAD]; 2] = [head(Family::V4), head(Family::V6)];

/// The ports are to be put in.
const PROTOCOL: [u8; TAIL] = {
    let mut bytes = with([0; TAIL], 0, [TAIL as u16, CTA_TUPLE_PROTO | NLA_F_NESTED]);
    bytes = with(bytes, 4, [5, CTA_PROTO_NUM]);
    bytes[8] = libc::IPPROTO_TCP as u8;
    bytes = with(bytes, 12, [6, CTA_PROTO_SRC_PORT]);
    with(bytes, 20, [6, CTA_PROTO_DST_PORT])
};

/// Asks for the entry of a connection whose answers go from `local` to `remote`.
#[inline(never)]
pub fn request(local: Endpoint, remote: Endpoint, sequence: u32) -> Text<REQUEST> {
    let family = Family::of(remote.address);
    let [from, to] = address_kinds(family);
    let [v4, v6] = &HEADS;
    let mut out = Text::new();
    out.put(if family == Family::V4 { v4 } else { v6 });
    put_address(&mut out, from, local.address);
    put_address(&mut out, to, remote.address);
    let tail = out.as_bytes().len();
    out.put(&PROTOCOL);
    out.overwrite(8, &sequence.to_ne_bytes());
    out.overwrite(tail + 16, &local.port.to_be_bytes());
    out.overwrite(tail + 24, &remote.port.to_be_bytes());
    out
}

/// What `remote` asked for when it began the connection, before any address or
/// port was rewritten; ENOENT where there is no entry, or where it did not begin.
#[inline(never)]
pub fn answer(bytes: &[u8], sequence: u32, remote: Endpoint) -> Result<Endpoint, Errno> {
    let payload = only(bytes, sequence, ENTRY)?;
    // struct nfgenmsg
    let tuple = find(payload.get(4..).unwrap_or_default(), CTA_TUPLE_ORIG);
    let [from, to] = address_kinds(Family::of(remote.address));
    let has_begun = end(tuple, from, CTA_PROTO_SRC_PORT) == Ok(remote);
    let destination = end(tuple, to, CTA_PROTO_DST_PORT);
    destination.ok().filter(|_| has_begun).ok_or(Errno::ENOENT)
}

/// One end of a tuple.
#[inline(never)]
fn end(tuple: &[u8], address: u16, port: u16) -> Result<Endpoint, Malformed> {
    let address = find(find(tuple, CTA_TUPLE_IP), address);
    let port = find(find(tuple, CTA_TUPLE_PROTO), port);
    endpoint_of(address, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text.as_bytes()).unwrap()
    }

    // From Linux 6.18: port 8080 of a router is that of a service in another
    // namespace. The ends as that namespace knows them, and what was asked for.
    #[cfg(target_endian = "little")]
    const RECORDED: [(&[u8], &[u8], [&str; 3]); 2] = [
        (
            include_bytes!("testing/conntrack/ipv4_request.bin"),
            include_bytes!("testing/conntrack/ipv4_answer.bin"),
            ["10.5.0.2:80", "203.0.113.9:50001", "198.51.100.1:8080"],
        ),
        (
            include_bytes!("testing/conntrack/ipv6_request.bin"),
            include_bytes!("testing/conntrack/ipv6_answer.bin"),
            [
                "[fd05::2]:80",
                "[2001:db8:9::9]:50001",
                "[2001:db8:5::1]:8080",
            ],
        ),
    ];

    #[test]
    #[cfg(target_endian = "little")]
    fn real_questions_and_answers() {
        for ((asked, told, ends), sequence) in RECORDED.into_iter().zip(1..) {
            let [local, remote, destination] = ends.map(endpoint);
            let request = request(local, remote, sequence);
            assert_eq!(request.as_bytes(), asked);
            assert_eq!(answer(told, sequence, remote), Ok(destination));
            assert_eq!(answer(told, sequence + 5, remote), Err(Errno::EINVAL));
            // The service began it, or somebody else.
            let port = remote.port + 1;
            for other in [local, destination, Endpoint { port, ..remote }] {
                assert_eq!(answer(told, sequence, other), Err(Errno::ENOENT));
            }
        }
        let (none, remote) = (
            include_bytes!("testing/conntrack/no_answer.bin"),
            endpoint("203.0.113.9:50001"),
        );
        assert_eq!(answer(none, 3, remote), Err(Errno::ENOENT));
    }

    /// Every cut of real answers, and every byte of them set to odd values.
    #[test]
    #[cfg(target_endian = "little")]
    fn damaged_answers_end() {
        for ((_, told, ends), sequence) in RECORDED.into_iter().zip(1..) {
            let [_, remote, destination] = ends.map(endpoint);
            for end in 0..told.len() {
                assert!(answer(&told[..end], sequence, remote).is_err());
                for odd in [0, 1, 3, 5, 0x7f, 0xff] {
                    let mut bytes = told.to_vec();
                    bytes[end] = odd;
                    let is_end = |found: Endpoint| {
                        found.address == destination.address || found.port == destination.port
                    };
                    assert!(answer(&bytes, sequence, remote).map_or(true, is_end));
                }
            }
        }
    }
}
