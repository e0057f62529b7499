//! Questions to sock_diag(7) about many sockets.

use heapless::Vec;

use crate::address::{Family, Network};
use crate::detector::{Data, Scan};
use crate::kernel::{Errno, Kernel, More, Netlink};
use crate::limits::PEERS_ASKED;
use crate::netlink::Progress;
use crate::sock_diag::{DiagSocket, dump_request, walk_sockets};
use crate::text::head;

/// All states but LISTEN, SYN_SENT and SYN_RECV (bit n for state n of
/// net/tcp_states.h).
const CONNECTED_STATES: u32 = 0xfff & !(1 << 10 | 1 << 2 | 1 << 3 | 1);
/// Those, without TIME_WAIT and CLOSE: older kernels destroy full sockets only
/// (net/ipv4/tcp.c, tcp_abort).
pub(super) const FULL_STATES: u32 = CONNECTED_STATES & !(1 << 6 | 1 << 7);

/// Asks for sockets and hands each to `visit`, up to the message behind which
/// it wants no more: the kernel walks its table while it is asked only. Where
/// that fails, none.
fn dump(
    kernel: &mut impl Kernel,
    buffer: &mut [u8],
    request: &[u8],
    visit: &mut dyn FnMut(DiagSocket) -> bool,
) {
    let mut wants_more = true;
    let Ok(socket) = kernel.netlink(Netlink::SockDiag) else {
        return;
    };
    let mut progress = Progress::More;
    if kernel.send(socket, request, More::No).is_err() {
        progress = Progress::Done;
    }
    while progress == Progress::More && wants_more {
        match kernel.receive(socket, buffer) {
            Ok(0) => break,
            Ok(count) => {
                let bytes = head(buffer, count);
                progress = walk_sockets(bytes, |socket| wants_more &= visit(socket));
            }
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    kernel.close(socket);
}

/// Asks for the sockets of several sources at once: each dump is a walk over
/// the sockets of all network namespaces.
#[inline(never)]
pub(super) fn search(
    kernel: &mut impl Kernel,
    buffer: &mut [u8],
    states: u32,
    sources: &[Network],
    visit: &mut dyn FnMut(DiagSocket) -> bool,
) {
    let has_v4 = sources.iter().any(|source| !source.is_ipv6());
    let mut wants_more = !sources.is_empty();
    // An IPv4 peer of a dual-stack listener has an IPv6 socket.
    for (family, has_any) in [(Family::V6, true), (Family::V4, has_v4)] {
        if has_any && wants_more {
            let request = dump_request(family, states, sources);
            dump(kernel, buffer, &request, &mut |socket| {
                wants_more &= visit(socket);
                wants_more
            });
        }
    }
}

/// Adds to scans whether the sockets that still stand carried data: rows do not
/// show it. What ended showed it then, and may be followed by more on the same
/// port, which counts where data decides.
#[inline(never)]
pub(super) fn look_for_data(
    kernel: &mut impl Kernel,
    buffer: &mut [u8],
    scans: &mut [Scan],
    decides: bool,
) {
    let mut sources: Vec<Network, PEERS_ASKED> = Vec::new();
    for scan in scans.iter() {
        let known = scan.data();
        let is_open = known == Data::Unknown || decides && known == Data::Silent;
        if is_open && scan.members == 0 {
            let _ = sources.push(scan.source);
        }
    }
    search(kernel, buffer, CONNECTED_STATES, &sources, &mut |socket| {
        note_data(scans, &socket);
        true
    });
}

/// Apart: a closure that is called through a pointer is there twice.
#[inline(never)]
fn note_data(scans: &mut [Scan], socket: &DiagSocket) {
    for scan in scans.iter_mut() {
        if scan.source.contains(socket.remote.address) {
            scan.note_data(socket.local.port, data(socket));
        }
    }
}

pub(super) fn data(socket: &DiagSocket) -> Data {
    match socket.received_data {
        None => Data::Unknown,
        Some(false) => Data::Silent,
        Some(true) => Data::Sent,
    }
}
