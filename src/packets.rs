//! Packets that open connections or probe ports: the filters by which packet
//! sockets receive no others (classic BPF), and their bytes to values.
//!
//! ```text
//! IPv4   9 protocol   12 source  16 destination  4 * (0 & 15) struct tcphdr
//! IPv6   6 protocol    8 source  24 destination            40 struct tcphdr
//! TCP    0 source port  2 destination port  4 sequence number  13 flags
//! ```
//!
//! What stands behind extension headers of IPv6 is not looked for.

use crate::address::{Endpoint, Family};
use crate::kernel::Instruction;
use crate::kernel::bpf::{AND, JEQ, JSET, LDB, LDB_X, LDH, LDX_HEADER, RET, jump, load};
use crate::label::label;
use crate::netlink::endpoint_of;

// linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// ETH_P_802_EX1, for experiments in one's own network (IEEE 802): no packet
/// has it.
pub const NO_ETHERTYPE: u16 = 0x88b5;

/// The ethertype of a family's packets.
pub const fn ethertype(family: Family) -> u16 {
    match family {
        Family::V4 => ETH_P_IP,
        Family::V6 => ETH_P_IPV6,
    }
}

// Flags of a segment (RFC 9293, 3.1).
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;

// linux/filter.h: SKF_AD_OFF with SKF_AD_PKTTYPE and SKF_AD_HATYPE.
const PACKET_TYPE: u32 = 0xffff_f004;
const HARDWARE_TYPE: u32 = 0xffff_f01c;
/// A packet to this host (linux/if_packet.h), not one of ours on its way out.
const PACKET_HOST: u32 = 0;
/// Of the loopback device (linux/if_arp.h).
const ARPHRD_LOOPBACK: u32 = 772;

const PROTOCOL_TCP: u32 = 6;
/// IP_OFFSET of net/ip.h: fragments but the first have no TCP header.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// IP_MF of net/ip.h: a first fragment, whose flags may be in the next.
const MORE_FRAGMENTS: u16 = 0x2000;
/// NEXTHDR_FRAGMENT of net/ipv6.h, and IP6_OFFSET in it.
const FRAGMENT_HEADER: u8 = 44;
const FRAGMENT_OFFSET_V6: u16 = 0xfff8;

/// Lets TCP segments of IPv4 through that came from another host without ACK,
/// and with SYN or with neither SYN nor RST; and the first fragments of segments.
/// Nearly all end at ACK, the eighth.
const FILTER_V4: [Instruction; 17] = [
    load(LDB, 9),
    jump(JEQ, PROTOCOL_TCP, 0, 14),
    load(LDH, 6),
    jump(JSET, FRAGMENT_OFFSET as u32, 12, 0),
    jump(JSET, MORE_FRAGMENTS as u32, 6, 0),
    load(LDX_HEADER, 0),
    load(LDB_X, 13),
    jump(JSET, ACK as u32, 8, 0),
    load(AND, (SYN | RST) as u32),
    jump(JEQ, SYN as u32, 1, 0),
    jump(JEQ, 0, 0, 5),
    load(LDB, PACKET_TYPE),
    jump(JEQ, PACKET_HOST, 0, 3),
    load(LDH, HARDWARE_TYPE),
    jump(JEQ, ARPHRD_LOOPBACK, 1, 0),
    // The longest header, and that of TCP.
    load(RET, 60 + 20),
    load(RET, 0),
];

/// The same of IPv6.
const FILTER_V6: [Instruction; 18] = [
    load(LDB, 6),
    jump(JEQ, PROTOCOL_TCP, 5, 0),
    jump(JEQ, FRAGMENT_HEADER as u32, 0, 14),
    load(LDB, 40),
    jump(JEQ, PROTOCOL_TCP, 0, 12),
    load(LDH, 42),
    jump(JSET, FRAGMENT_OFFSET_V6 as u32, 10, 5),
    load(LDB, 40 + 13),
    jump(JSET, ACK as u32, 8, 0),
    load(AND, (SYN | RST) as u32),
    jump(JEQ, SYN as u32, 1, 0),
    jump(JEQ, 0, 0, 5),
    load(LDB, PACKET_TYPE),
    jump(JEQ, PACKET_HOST, 0, 3),
    load(LDH, HARDWARE_TYPE),
    jump(JEQ, ARPHRD_LOOPBACK, 1, 0),
    load(RET, 40 + 20),
    load(RET, 0),
];

/// The filter of a family.
pub const fn filter(family: Family) -> &'static [Instruction] {
    match family {
        Family::V4 => &FILTER_V4,
        Family::V6 => &FILTER_V6,
    }
}

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It asks for a connection.
    Syn,
    /// No flag at all.
    Null,
    /// FIN alone.
    Fin,
    /// FIN, PSH and URG.
    Xmas,
    /// The first piece of a segment.
    Fragment,
}

label!(Kind, "kind", 0, ["syn", "null", "fin", "xmas"]);

impl Kind {
    /// One bit for each.
    pub const fn mark(self) -> u16 {
        1 << self as u16
    }
}

/// A packet that no connection of the peer needs, or that opens one. Whoever
/// sent it may have forged all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it says it comes from.
    pub source: Endpoint,
    /// Where it goes: to this host, or past it.
    pub destination: Endpoint,
    /// What it is for.
    pub kind: Kind,
    /// Its sequence number.
    pub sequence: u32,
}

/// Reads a packet from its network header on, as the filter cuts it. `None`
/// for what is cut further, and for flags of no meaning.
pub fn parse(bytes: &[u8], family: Family) -> Option<Packet> {
    let [first, .., sixth] = *bytes.first_chunk::<7>()?;
    let (addresses, header, is_fragment) = match family {
        Family::V4 => {
            let is_fragment = u16::from(sixth) & MORE_FRAGMENTS >> 8 != 0;
            (12, usize::from(first & 15) * 4, is_fragment)
        }
        Family::V6 if sixth == FRAGMENT_HEADER => (8, 40 + 8, true),
        Family::V6 => (8, 40, false),
    };
    let length = usize::from(family.bits() / 8);
    let (_, rest) = bytes.split_at_checked(addresses)?;
    let (source, rest) = rest.split_at_checked(length)?;
    let (destination, _) = rest.split_at_checked(length)?;
    let (_, tcp) = bytes.split_at_checked(header.max(addresses + 2 * length))?;
    // Of a fragment there may be no more than ports and number.
    let known = tcp.get(..if is_fragment { 8 } else { 20 })?;
    let mut tcp = [0; 20];
    for (to, from) in tcp.iter_mut().zip(known) {
        *to = *from;
    }
    let kind = match tcp[13] & (FIN | SYN | RST | PSH | ACK | URG) {
        _ if is_fragment => Kind::Fragment,
        flags if flags & (FIN | SYN | RST | ACK) == SYN => Kind::Syn,
        0 => Kind::Null,
        FIN => Kind::Fin,
        flags if flags == FIN | PSH | URG => Kind::Xmas,
        _ => return None,
    };
    let packet = Packet {
        source: endpoint_of(source, &tcp).ok()?,
        destination: endpoint_of(destination, &[tcp[2], tcp[3]]).ok()?,
        kind,
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
    };
    // IPv4 in IPv6 is dropped (net/ipv6/ip6_input.c, ip6_rcv_core), but after us.
    let is_of = |end: Endpoint| Family::of(end.address) == family;
    (is_of(packet.source) && is_of(packet.destination)).then_some(packet)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kernel::bpf::LDW;
    use std::net::IpAddr;
    use std::vec::Vec;

    /// Runs a filter over a packet as net/core/filter.c does: how many bytes
    /// of it are let through.
    pub fn run(filter: &[Instruction], packet: &[u8], packet_type: u32, hardware: u32) -> usize {
        let (mut a, mut x, mut at) = (0_u32, 0_usize, 0);
        let byte = |offset: usize| packet.get(offset).map(|byte| u32::from(*byte));
        loop {
            let instruction = filter[at];
            at += 1;
            let operand = instruction.operand;
            let offset = operand as usize;
            // A load behind the end ends the filter.
            let loaded = match (instruction.code, operand) {
                (LDB, PACKET_TYPE) => Some(packet_type),
                (LDH, HARDWARE_TYPE) => Some(hardware),
                (LDB, _) => byte(offset),
                (LDB_X, _) => byte(x + offset),
                (LDW, _) => (0..4).try_fold(0, |a, i| Some(a << 8 | byte(offset + i)?)),
                (LDH, _) => byte(offset).zip(byte(offset + 1)).map(|(a, b)| a << 8 | b),
                (LDX_HEADER, _) => byte(offset).map(|byte| (byte & 15) * 4),
                (AND, _) => Some(a & operand),
                (JEQ | JSET, _) => {
                    let holds = match instruction.code {
                        JEQ => a == operand,
                        _ => a & operand != 0,
                    };
                    at += usize::from(if holds {
                        instruction.if_true
                    } else {
                        instruction.if_false
                    });
                    continue;
                }
                (RET, _) => return offset.min(packet.len()),
                _ => panic!("not one of ours"),
            };
            match loaded {
                None => return 0,
                Some(value) if instruction.code == LDX_HEADER => x = value as usize,
                Some(value) => a = value,
            }
        }
    }

    /// A segment as it comes in.
    pub fn segment(source: Endpoint, destination: Endpoint, flags: u8, options: usize) -> Vec<u8> {
        let octets = |endpoint: Endpoint| match endpoint.address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let mut packet = match source.address {
            IpAddr::V4(_) => {
                let mut packet = [0; 12].to_vec();
                (packet[0], packet[9]) = (0x45 + options as u8, 6);
                packet
            }
            IpAddr::V6(_) => [0x60, 0, 0, 0, 0, 20, 6, 64].to_vec(),
        };
        packet.extend(octets(source));
        packet.extend(octets(destination));
        packet.extend(std::vec![1; options * 4]);
        packet.extend(source.port.to_be_bytes());
        packet.extend(destination.port.to_be_bytes());
        packet.extend(0x0123_4567_u32.to_be_bytes());
        packet.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet
    }

    fn ends(family: Family) -> (Endpoint, Endpoint) {
        let end = |text: &str, port| Endpoint {
            address: text.parse().unwrap(),
            port,
        };
        match family {
            Family::V4 => (end("198.51.100.7", 40_000), end("203.0.113.5", 443)),
            Family::V6 => (end("2001:db8:7::7", 40_000), end("2001:db8:1::5", 443)),
        }
    }

    fn sample(family: Family, flags: u8) -> Vec<u8> {
        let (source, destination) = ends(family);
        segment(source, destination, flags, 0)
    }

    const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

    #[test]
    fn every_combination_of_flags() {
        for family in FAMILIES {
            for flags in 0..=255 {
                let packet = sample(family, flags);
                let passes = run(filter(family), &packet, PACKET_HOST, 1) > 0;
                let has = |flag| flags & flag != 0;
                let expected = !has(ACK) && !has(RST);
                assert_eq!(passes, expected, "{flags:#x}");
                // ECN's two flags make no difference (RFC 3168).
                let kind = match flags & 0x3f {
                    0x02 | 0x0a | 0x22 | 0x2a => Some(Kind::Syn),
                    0x00 => Some(Kind::Null),
                    0x01 => Some(Kind::Fin),
                    0x29 => Some(Kind::Xmas),
                    _ => None,
                };
                let parsed = parse(&packet, family);
                assert_eq!(parsed.map(|packet| packet.kind), kind, "{flags:#x}");
                assert!(kind.is_none() || passes, "{flags:#x}");
            }
        }
    }

    #[test]
    fn what_comes_in_from_other_hosts() {
        for family in FAMILIES {
            let packet = sample(family, SYN);
            let passed = |packet_type, hardware| {
                let passed = run(filter(family), &packet, packet_type, hardware);
                assert!(passed == 0 || passed == packet.len());
                passed > 0
            };
            // Broadcast, multicast, another host's, outgoing.
            for packet_type in 1..8 {
                assert!(!passed(packet_type, 1), "{packet_type}");
            }
            // Ethernet, tunnels, none.
            for hardware in [1, 768, 776, 65_534, 771, 773] {
                assert!(passed(PACKET_HOST, hardware));
            }
            assert!(!passed(PACKET_HOST, ARPHRD_LOOPBACK));
        }
    }

    #[test]
    fn other_protocols() {
        for protocol in 0..=255 {
            for (family, offset) in [(Family::V4, 9), (Family::V6, 6)] {
                let mut packet = sample(family, SYN);
                packet[offset] = protocol;
                let passes = run(filter(family), &packet, PACKET_HOST, 1) > 0;
                assert_eq!(passes, protocol == 6, "{protocol}");
            }
        }
    }

    /// Whatever its flags seem to be; also where nothing but ports and a number
    /// is in the first piece.
    #[test]
    fn first_fragments() {
        let expected = |family| {
            let (source, destination) = ends(family);
            (source, destination, Kind::Fragment, 0x0123_4567)
        };
        let parts = |packet: Packet| {
            (
                packet.source,
                packet.destination,
                packet.kind,
                packet.sequence,
            )
        };
        for bit in 0..16 {
            let mut packet = sample(Family::V4, ACK);
            packet[6..8].copy_from_slice(&(1_u16 << bit).to_be_bytes());
            for end in [28, packet.len()] {
                let passes = run(&FILTER_V4, &packet[..end], PACKET_HOST, 1) > 0;
                // Not those behind it, nor what must not be cut.
                assert_eq!(passes, bit == 13, "{bit}");
            }
            let parsed = parse(&packet[..28], Family::V4);
            assert_eq!(
                parsed.map(parts),
                (bit == 13).then_some(expected(Family::V4))
            );
            packet[6] |= 0x20;
            let passes = run(&FILTER_V4, &packet, PACKET_HOST, 1) > 0;
            assert_eq!(passes, bit >= 13, "{bit}");
        }
        let whole = sample(Family::V6, ACK);
        for (protocol, place) in [(6, 0), (6, 1), (6, 8), (6, 0xfff8), (17, 0), (60, 1)] {
            let place = u16::to_be_bytes(place);
            let header = [protocol, 0, place[0], place[1], 0, 0, 0, 7];
            let mut packet = [&whole[..40], &header, &whole[40..]].concat();
            packet[6] = FRAGMENT_HEADER;
            for end in [56, packet.len()] {
                let passes = run(&FILTER_V6, &packet[..end], PACKET_HOST, 1);
                let is_first = protocol == 6 && place[0] == 0 && place[1] < 8;
                assert_eq!(passes > 0, is_first, "{protocol} {place:?}");
                let parsed = parse(&packet[..passes], Family::V6);
                assert_eq!(parsed.map(parts), is_first.then_some(expected(Family::V6)));
            }
        }
    }

    #[test]
    fn options_of_ip() {
        let (source, destination) = ends(Family::V4);
        for options in 0..=10 {
            let mut packet = segment(source, destination, SYN, options);
            let length = packet.len();
            packet.extend([0; 40]);
            let passed = run(&FILTER_V4, &packet, PACKET_HOST, 1);
            assert!(passed >= length && passed <= 80, "{options}");
            let parsed = parse(&packet[..passed], Family::V4);
            let expected = Packet {
                source,
                destination,
                kind: Kind::Syn,
                sequence: 0x0123_4567,
            };
            assert_eq!(parsed, Some(expected), "{options}");
        }
        let mut packet = sample(Family::V4, SYN);
        packet.extend([0; 100]);
        for words in 0..5 {
            packet[0] = 0x40 + words;
            // Not as long as it must be: dropped by the kernel.
            let _ = parse(&packet, Family::V4);
        }
    }

    #[test]
    fn both_families_are_read() {
        for family in FAMILIES {
            let (source, destination) = ends(family);
            let parsed = parse(&sample(family, SYN), family).unwrap();
            assert_eq!((parsed.source, parsed.destination), (source, destination));
            assert_eq!(parsed.sequence, 0x0123_4567);
        }
        let mapped = |text: &str| Endpoint {
            address: IpAddr::V6(text.parse().unwrap()),
            port: 1,
        };
        let (source, destination) = ends(Family::V6);
        for (source, destination) in [
            (mapped("::ffff:198.51.100.7"), destination),
            (source, mapped("::ffff:203.0.113.5")),
        ] {
            let packet = segment(source, destination, SYN, 0);
            assert_eq!(parse(&packet, Family::V6), None);
        }
    }

    #[test]
    fn cut_and_odd_bytes_are_no_harm() {
        for family in FAMILIES {
            let packet = sample(family, SYN);
            for end in 0..packet.len() {
                assert_eq!(parse(&packet[..end], family), None, "{end}");
                run(filter(family), &packet[..end], PACKET_HOST, 1);
                for odd in [0, 1, 4, 5, 0x4f, 0x7f, 0x80, 0xff] {
                    let mut packet = packet.clone();
                    packet[end] = odd;
                    parse(&packet, family);
                    parse(&packet[..packet.len() - end], family);
                }
            }
        }
    }

    /// The kernel refuses a filter that jumps past its end.
    #[test]
    fn jumps_stay_inside() {
        for family in FAMILIES {
            let filter = filter(family);
            for (at, instruction) in filter.iter().enumerate() {
                let far = instruction.if_true.max(instruction.if_false);
                assert!(at + 1 + usize::from(far) < filter.len() || instruction.code == RET);
            }
            assert_eq!(filter.last().map(|last| last.code), Some(RET));
        }
    }
}
