//! What comes in from the network, true or not: packets, connections of other
//! network namespaces, and what conntrack and routes say of them.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::fake_proc::{NLMSG_ERROR, attribute, message, octets};
use crate::address::Family;
use crate::kernel::{Errno, Instruction};
use crate::packets::ethertype;

/// An address and a port.
pub type End = (IpAddr, u16);

/// The link of the default route, another that some routes take as well, and
/// the bridge of the containers.
pub const UPLINK: u32 = 2;
pub const OTHER_UPLINK: u32 = 6;
pub const BRIDGE: u32 = 3;

pub const SYN: u8 = 2;

/// Packets that a socket's buffer holds: 64 KiB, twice that for what they are in.
const ROOM: usize = 160;
/// What a socket of events holds before they are lost.
const EVENT_ROOM: usize = 2_000;

/// A packet that comes in.
#[derive(Clone, Debug)]
pub struct Frame {
    /// From the network header on.
    pub bytes: Vec<u8>,
    pub ethertype: u16,
    pub link: u32,
    /// PACKET_HOST and its like of linux/if_packet.h.
    pub packet_type: u32,
    /// Of linux/if_arp.h.
    pub hardware: u32,
}

impl Frame {
    /// A segment to this host or through it.
    pub fn segment(source: End, destination: End, flags: u8, sequence: u32, link: u32) -> Self {
        let mut bytes = match source.0 {
            IpAddr::V4(_) => vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0],
            IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 20, 6, 64],
        };
        bytes.extend(octets(source.0));
        bytes.extend(octets(destination.0));
        bytes.extend(source.1.to_be_bytes());
        bytes.extend(destination.1.to_be_bytes());
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self {
            bytes,
            ethertype: ethertype(Family::of(source.0)),
            link,
            packet_type: 0,
            hardware: 1,
        }
    }
}

/// A packet socket (packet(7)).
#[derive(Default)]
pub struct PacketSocket {
    pub ethertype: u16,
    pub filter: Vec<Instruction>,
    pub queue: VecDeque<(Vec<u8>, u32)>,
    pub lost: u32,
}

impl PacketSocket {
    pub fn take_in(&mut self, frame: &Frame, has_room: bool) {
        if frame.ethertype != self.ethertype {
            return;
        }
        let kept = run_filter(&self.filter, &frame.bytes, frame);
        if kept == 0 {
            return;
        }
        if !has_room || self.queue.len() >= ROOM {
            self.lost += 1;
            return;
        }
        let kept = kept.min(frame.bytes.len());
        let bytes = frame.bytes[..kept].to_vec();
        self.queue.push_back((bytes, frame.link));
    }
}

/// A socket of destroy events of all namespaces.
#[derive(Default)]
pub struct EventSocket {
    pub filter: Vec<Instruction>,
    pub queue: VecDeque<(Vec<u8>, u32)>,
    pub has_overrun: bool,
}

impl EventSocket {
    /// `origin` is 0 for our own namespace, else one more than its number.
    pub fn take_in(&mut self, event: &[u8], origin: u32, has_room: bool) {
        let no_frame = Frame {
            bytes: Vec::new(),
            ethertype: 0,
            link: 0,
            packet_type: 0,
            hardware: 0,
        };
        let is_wanted = self.filter.is_empty() || run_filter(&self.filter, event, &no_frame) > 0;
        match is_wanted {
            true if has_room && self.queue.len() < EVENT_ROOM => {
                self.queue.push_back((event.to_vec(), origin));
            }
            true => self.has_overrun = true,
            false => {}
        }
    }

    pub fn take(&mut self) -> Result<(Vec<u8>, u32), Errno> {
        if std::mem::take(&mut self.has_overrun) {
            return Err(Errno::ENOBUFS);
        }
        self.queue.pop_front().ok_or(Errno::EAGAIN)
    }
}

/// Classic BPF, as much of it as is needed (net/core/filter.c).
fn run_filter(filter: &[Instruction], bytes: &[u8], frame: &Frame) -> usize {
    const ANCILLARY: u32 = 0xffff_f000;
    let byte = |at: usize| bytes.get(at).map(|byte| u32::from(*byte));
    let load = |at: usize, size: usize| {
        let mut sum = Some(0);
        for at in at..at + size {
            sum = sum.zip(byte(at)).map(|(sum, byte)| sum << 8 | byte);
        }
        sum
    };
    let (mut a, mut x, mut at) = (0_u32, 0_usize, 0);
    loop {
        let one = filter[at];
        at += 1;
        let k = one.operand as usize;
        let size = match one.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            _ => 1,
        };
        // Class and mode; a load behind the end ends it.
        let loaded = match one.code & !0x18 {
            0x20 if one.operand == ANCILLARY + 4 => Some(frame.packet_type),
            0x20 if one.operand == ANCILLARY + 28 => Some(frame.hardware),
            0x20 => load(k, size),
            0x40 => load(x + k, size),
            0xa1 => match byte(k) {
                Some(first) => {
                    x = (first as usize & 15) * 4;
                    continue;
                }
                None => None,
            },
            _ => {
                let jump =
                    |is_met: bool| usize::from(if is_met { one.if_true } else { one.if_false });
                match one.code {
                    0x06 => return k,
                    0x54 => a &= one.operand,
                    0x15 => at += jump(a == one.operand),
                    0x25 => at += jump(a > one.operand),
                    0x35 => at += jump(a >= one.operand),
                    0x45 => at += jump(a & one.operand != 0),
                    code => panic!("an instruction that is not needed: {code:#x}"),
                }
                continue;
            }
        };
        match loaded {
            Some(value) => a = value,
            None => return 0,
        }
    }
}

/// An entry of conntrack: how its first packet came, and what answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub source: End,
    pub asked_for: End,
    /// Where it was led to.
    pub served_by: End,
}

// linux/netfilter/nfnetlink_conntrack.h
const ENTRY: u16 = 1 << 8;
const GET_ENTRY: u16 = ENTRY | 1;
const NESTED: u16 = 0x8000;

/// What conntrack answers to a question for one entry, by its reply tuple.
pub fn answer_conntrack(entries: &[Entry], error: Option<Errno>, request: &[u8]) -> Vec<u8> {
    let sequence = &request[8..12];
    assert_eq!(u16::from_ne_bytes([request[4], request[5]]), GET_ENTRY);
    let refuse = |error: Errno| {
        let payload = [&(-error.0).to_ne_bytes()[..], &request[..16]].concat();
        message(NLMSG_ERROR, 0, sequence, &payload)
    };
    if let Some(error) = error {
        return refuse(error);
    }
    let length = if i32::from(request[16]) == libc::AF_INET6 {
        16
    } else {
        4
    };
    assert_eq!(
        request.len(),
        64 + 2 * length,
        "two addresses and two ports"
    );
    let end = |address: usize, port: usize| {
        let octets = &request[address..address + length];
        let address = match <[u8; 4]>::try_from(octets) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets).unwrap()),
        };
        (
            address,
            u16::from_be_bytes([request[port], request[port + 1]]),
        )
    };
    // Behind the header of netlink, nfgenmsg and the heads of two nests; the
    // protocol stands before the ports.
    let ports = 36 + 2 * length + 16;
    let answers_from = end(32, ports);
    let answers_to = end(36 + length, ports + 8);
    let mut entries = entries.iter().rev();
    // By the tuple of either direction (nf_conntrack_find_get).
    let found = entries.find(|one| {
        let ends = (answers_from, answers_to);
        (one.served_by, one.source) == ends || (one.source, one.asked_for) == ends
    });
    let Some(found) = found else {
        return refuse(Errno::ENOENT);
    };
    let tuple = |from: End, to: End| {
        let kinds = if length == 4 { [1, 2] } else { [3, 4] };
        let addresses = [(kinds[0], from.0), (kinds[1], to.0)];
        let addresses = addresses.map(|(kind, address)| attribute(kind, &octets(address)));
        let protocol = [
            attribute(1, &[libc::IPPROTO_TCP as u8]),
            attribute(2, &from.1.to_be_bytes()),
            attribute(3, &to.1.to_be_bytes()),
        ];
        let addresses = attribute(1 | NESTED, &addresses.concat());
        [addresses, attribute(2 | NESTED, &protocol.concat())].concat()
    };
    let payload = [
        vec![request[16], 0, 0, 0],
        attribute(1 | NESTED, &tuple(found.source, found.asked_for)),
        attribute(2 | NESTED, &tuple(found.served_by, found.source)),
        // CTA_STATUS: what the parser passes over.
        attribute(3, &0x18e_u32.to_be_bytes()),
    ];
    message(ENTRY, 0, sequence, &payload.concat())
}
