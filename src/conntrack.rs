//! Bytes of conntrack (NETLINK_NETFILTER, linux/netfilter/nfnetlink_conntrack.h)
//! <-> who began a connection, and what it asked for. One entry is asked for by
//! the addresses and ports of its answers, which are those that the namespace
//! behind it knows; the entry says how its first packet came in.
//!
//! An entry proves no handshake: who can guess where the windows are not checked
//! makes one of any source.

use crate::address::{Endpoint, Family};
use crate::kernel::Errno;
use crate::netlink::{
    HEADER, Malformed, address_of, find, header, only, put_address, put_attribute,
};
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

/// Addresses of IPv4 in a tuple, and of IPv6.
const fn address_attributes(family: Family) -> [u16; 2] {
    match family {
        Family::V4 => [1, 2],
        Family::V6 => [3, 4],
    }
}

/// Three attributes of at most four bytes.
const PROTOCOL: usize = 3 * 8;
/// The heads of three attributes that hold others.
const NESTS: usize = 3 * 4;

/// Bytes of the longest question: of IPv6.
pub const REQUEST: usize = HEADER + 4 + NESTS + 2 * (4 + 16) + PROTOCOL;

/// Asks for the entry of a connection whose answers go from `local` to `remote`.
pub fn request(local: Endpoint, remote: Endpoint, sequence: u32) -> Text<REQUEST> {
    let family = Family::of(remote.address);
    let addresses = 2 * (4 + usize::from(family.bits() / 8));
    let tuple = NESTS - 4 + addresses + PROTOCOL;
    let mut out = Text::new();
    let nest = |out: &mut Text<REQUEST>, kind: u16, length: usize| {
        out.put(&(4 + length as u16).to_ne_bytes());
        out.put(&(kind | NLA_F_NESTED).to_ne_bytes());
    };
    out.put(&header(HEADER + 4 + 4 + tuple, GET_ENTRY, 0, sequence));
    // struct nfgenmsg
    out.put(&[family.number(), 0, 0, 0]);
    nest(&mut out, CTA_TUPLE_REPLY, tuple);
    nest(&mut out, CTA_TUPLE_IP, addresses);
    let [from, to] = address_attributes(family);
    put_address(&mut out, from, local.address);
    put_address(&mut out, to, remote.address);
    nest(&mut out, CTA_TUPLE_PROTO, PROTOCOL);
    put_attribute(&mut out, CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8]);
    put_attribute(&mut out, CTA_PROTO_SRC_PORT, &local.port.to_be_bytes());
    put_attribute(&mut out, CTA_PROTO_DST_PORT, &remote.port.to_be_bytes());
    out
}

/// How the first packet of a connection came in, before any address or port of
/// it was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// Who sent it.
    pub source: Endpoint,
    /// What it asked for.
    pub destination: Endpoint,
}

/// What the entry says that was asked for; ENOENT where there is none.
pub fn answer(bytes: &[u8], sequence: u32) -> Result<Original, Errno> {
    let payload = only(bytes, sequence, ENTRY)?;
    original(payload).map_err(|Malformed| Errno::EINVAL)
}

fn original(payload: &[u8]) -> Result<Original, Malformed> {
    // struct nfgenmsg
    let (fixed, attributes) = payload.split_first_chunk::<4>().ok_or(Malformed)?;
    let family = Family::from_number(fixed[0]).ok_or(Malformed)?;
    let tuple = find(attributes, CTA_TUPLE_ORIG);
    let (addresses, ports) = (find(tuple, CTA_TUPLE_IP), find(tuple, CTA_TUPLE_PROTO));
    let [from, to] = address_attributes(family);
    let endpoint = |address, port| {
        let port = find(ports, port).first_chunk().ok_or(Malformed)?;
        Ok(Endpoint {
            address: address_of(find(addresses, address))?,
            port: u16::from_be_bytes(*port),
        })
    };
    Ok(Original {
        source: endpoint(from, CTA_PROTO_SRC_PORT)?,
        destination: endpoint(to, CTA_PROTO_DST_PORT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text.as_bytes()).unwrap()
    }

    // From Linux 6.18: port 8080 of a router is that of a service in another
    // namespace.
    #[cfg(target_endian = "little")]
    const RECORDED: [(&[u8], &[u8], [&str; 4]); 2] = [
        (
            include_bytes!("testing/conntrack/ipv4_request.bin"),
            include_bytes!("testing/conntrack/ipv4_answer.bin"),
            [
                "10.5.0.2:80",
                "203.0.113.9:50001",
                "203.0.113.9:50001",
                "198.51.100.1:8080",
            ],
        ),
        (
            include_bytes!("testing/conntrack/ipv6_request.bin"),
            include_bytes!("testing/conntrack/ipv6_answer.bin"),
            [
                "[fd05::2]:80",
                "[2001:db8:9::9]:50001",
                "[2001:db8:9::9]:50001",
                "[2001:db8:5::1]:8080",
            ],
        ),
    ];

    #[test]
    #[cfg(target_endian = "little")]
    fn real_questions_and_answers() {
        for ((asked, told, ends), sequence) in RECORDED.into_iter().zip(1..) {
            let [local, remote, source, destination] = ends.map(endpoint);
            let request = request(local, remote, sequence);
            assert_eq!(request.as_bytes(), asked);
            let original = Original {
                source,
                destination,
            };
            assert_eq!(answer(told, sequence), Ok(original));
            assert_eq!(answer(told, sequence + 5), Err(Errno::EINVAL));
        }
        let none = include_bytes!("testing/conntrack/no_answer.bin");
        assert_eq!(answer(none, 3), Err(Errno::ENOENT));
    }

    /// Every cut of real answers, and every byte of them set to odd values.
    #[test]
    #[cfg(target_endian = "little")]
    fn damaged_answers_end() {
        for ((_, told, _), sequence) in RECORDED.into_iter().zip(1..) {
            for end in 0..told.len() {
                assert!(answer(&told[..end], sequence).is_err());
                for odd in [0, 1, 3, 5, 0x7f, 0xff] {
                    let mut bytes = told.to_vec();
                    bytes[end] = odd;
                    let _ = answer(&bytes, sequence);
                }
            }
        }
    }
}
