//! Sockets of blocked sources are destroyed, so that nothing of theirs lingers
//! half-open: some in each turn, since one source may hold thousands.

use core::net::IpAddr;

use heapless::Vec;

use crate::address::{Family, Network};
use crate::kernel::{Descriptor, Errno, Kernel, More, Netlink};
use crate::limits::{DESTROY_REST, DESTROYS_PER_TURN, DOOMED, PEERS_ASKED};
use crate::netlink::{Failure, Progress};
use crate::sock_diag::{DiagSocket, destroy_answer, destroy_request};
use crate::time::Instant;

use super::diag::{FULL_STATES, search};

const EVERYTHING: [Network; 2] = [Network::any(Family::V6), Network::any(Family::V4)];

/// What is still to be destroyed.
pub struct Destroyer {
    /// Whose sockets the next search is for.
    sources: Vec<Network, PEERS_ASKED>,
    next_search: Option<Instant>,
    /// What the last search found and how many that were.
    doomed: Vec<DiagSocket, DOOMED>,
    found: usize,
    /// How many of these were destroyed.
    destroyed: usize,
    /// The kernel or our rights lack SOCK_DESTROY.
    is_refused: bool,
}

impl Destroyer {
    /// Nothing to do; all bytes zero.
    pub const fn new() -> Self {
        Self {
            sources: Vec::new(),
            next_search: None,
            doomed: Vec::new(),
            found: 0,
            destroyed: 0,
            is_refused: false,
        }
    }

    /// A source was blocked.
    pub fn add(&mut self, source: Network) {
        if self.is_refused {
            return;
        }
        if self.sources.push(source).is_err() {
            // One look at all sockets serves any number of sources.
            self.sources.clear();
            let _ = self.sources.extend_from_slice(&EVERYTHING);
        }
    }

    /// When `destroy` has more to do.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.doomed.is_empty() {
            return Some(now);
        }
        let next = self.next_search.unwrap_or(now);
        Some(next).filter(|_| !self.sources.is_empty())
    }

    /// One turn's work: a search if what the last one found is done, and some
    /// of the sockets found. How many were destroyed; an error where that is
    /// refused from now on.
    pub fn destroy(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        is_blocked: impl Fn(IpAddr) -> bool,
        now: Instant,
    ) -> Result<u64, Errno> {
        if self.doomed.is_empty() {
            self.search(kernel, buffer, is_blocked);
            self.next_search = Some(now.after(DESTROY_REST));
        }
        let before = self.destroyed;
        let result = self.destroy_some(kernel, buffer);
        if result.is_err() {
            self.sources.clear();
            self.doomed.clear();
        }
        result.map(|()| (self.destroyed - before) as u64)
    }

    fn search(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        is_blocked: impl Fn(IpAddr) -> bool,
    ) {
        // A full batch is looked for again; not where most of it was gone or
        // refused, and would only be found again.
        let is_in_vain = self.found == DOOMED && self.destroyed < DOOMED / 2;
        (self.found, self.destroyed) = (0, 0);
        if is_in_vain {
            return self.sources.clear();
        }
        let (sources, doomed) = (&self.sources, &mut self.doomed);
        search(kernel, buffer, FULL_STATES, sources, &mut |socket| {
            if is_blocked(socket.remote.address) {
                push(doomed, socket);
            }
            !doomed.is_full()
        });
        self.found = doomed.len();
        if !doomed.is_full() {
            self.sources.clear();
        }
    }

    fn destroy_some(&mut self, kernel: &mut impl Kernel, buffer: &mut [u8]) -> Result<(), Errno> {
        if self.doomed.is_empty() {
            return Ok(());
        }
        let Ok(netlink) = kernel.netlink(Netlink::SockDiag) else {
            // No descriptor is left, most likely: what runs into its timeout is
            // no harm.
            self.doomed.clear();
            return Ok(());
        };
        let mut result = Ok(());
        for sequence in (2..).take(DESTROYS_PER_TURN) {
            let Some(socket) = &self.doomed.pop() else {
                break;
            };
            result = self.destroy_one(kernel, netlink, buffer, socket, sequence);
            if result.is_err() {
                break;
            }
        }
        kernel.close(netlink);
        result
    }

    #[inline(never)]
    fn destroy_one(
        &mut self,
        kernel: &mut impl Kernel,
        netlink: Descriptor,
        buffer: &mut [u8],
        socket: &DiagSocket,
        sequence: u32,
    ) -> Result<(), Errno> {
        let request = destroy_request(socket, sequence);
        let sent = kernel.send(netlink, &request, More::No);
        let count = sent.and_then(|_| kernel.receive(netlink, buffer));
        let answer = buffer.get(..count.unwrap_or(0)).unwrap_or_default();
        match destroy_answer(answer, sequence) {
            Progress::Done => self.destroyed += 1,
            Progress::Failed(Failure::Refused(error @ (Errno::EPERM | Errno::EOPNOTSUPP))) => {
                self.is_refused = true;
                return Err(error);
            }
            // Gone already, most likely.
            Progress::Failed(_) | Progress::More => {}
        }
        Ok(())
    }
}

/// Apart: a closure that is called through a pointer is there twice.
#[inline(never)]
fn push(doomed: &mut Vec<DiagSocket, DOOMED>, socket: DiagSocket) {
    let _ = doomed.push(socket);
}
