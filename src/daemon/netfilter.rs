//! The sockets of nf_tables: one that asks and changes, and one on which the
//! kernel says who changed something.

use crate::firewall::ProgramName;
use crate::kernel::{Descriptor, Errno, Kernel, More, Netlink};
use crate::limits::{EVENTS_RETRY, NETFILTER_EVENTS, NETFILTER_REST};
use crate::netlink::Messages;
use crate::nf_tables::{Event, TableFamily, walk_events};
use crate::text::head;
use crate::time::Instant;

use super::Firewall;

/// All bytes zero when new.
pub struct Netfilter {
    socket: Option<Descriptor>,
    /// That socket's, by which the kernel names who made a change.
    port: u32,
    events: Option<Descriptor>,
    /// The socket of events is tried again then.
    next_open: Option<Instant>,
    /// Events may wait until then.
    rest_until: Option<Instant>,
    /// The transaction whose end is still to come changed our table.
    is_touched: bool,
}

impl Netfilter {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            port: 0,
            events: None,
            next_open: None,
            rest_until: None,
            is_touched: false,
        }
    }

    /// Sends a request and hands each datagram of the answer to `firewall`: all
    /// of it is there when send(2) returns.
    #[inline(never)]
    pub(super) fn exchange(
        &mut self,
        kernel: &mut impl Kernel,
        request: &[u8],
        buffer: &mut [u8],
        firewall: &mut Firewall,
        now: Instant,
    ) -> Result<(), Errno> {
        let socket = match self.socket {
            Some(socket) => socket,
            None => kernel.netlink(Netlink::Netfilter)?,
        };
        self.socket = Some(socket);
        let mut result = kernel.send(socket, request, More::No);
        while result == Err(Errno::EINTR) {
            result = kernel.send(socket, request, More::No);
        }
        while result.is_ok() {
            match kernel.receive(socket, buffer) {
                Ok(count) => {
                    let bytes = head(buffer, count);
                    if let Some(Ok(message)) = Messages::new(bytes).next() {
                        self.port = message.port;
                    }
                    firewall.answer(bytes, now);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => result = Err(error),
            }
        }
        // What may still come is no answer to the next request.
        kernel.close(socket);
        self.socket = None;
        result.map(drop)
    }

    // Events.

    /// The socket of events, where they are waited for.
    pub(super) fn events(&self, now: Instant) -> Option<Descriptor> {
        now.once_past(self.rest_until, self.events)
    }

    /// When they are waited for again.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        now.end_of(self.rest_until)
    }

    /// Opens the socket of events, which needs CAP_NET_ADMIN.
    pub(super) fn open_events(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if self.events.is_none() && now.is_past(self.next_open) {
            self.events = kernel.netlink(Netlink::NetfilterEvents).ok();
            self.next_open = Some(now.after(EVENTS_RETRY));
        }
    }

    /// Takes in the events that arrived, at most `NETFILTER_EVENTS`: who changed
    /// our table, a name that is empty where events were lost.
    #[inline(never)]
    pub(super) fn take_events(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        family: TableFamily,
        now: Instant,
    ) -> Option<ProgramName> {
        let socket = self.events?;
        let mut changed = None;
        self.rest_until = None;
        for _ in 0..NETFILTER_EVENTS {
            match kernel.receive(socket, buffer) {
                Ok(count) => {
                    self.rest_until = Some(now.after(NETFILTER_REST));
                    let bytes = head(buffer, count);
                    let is_touched = &mut self.is_touched;
                    let walk = walk_events(bytes, family, self.port, &mut |event| match event {
                        Event::Committed { generation, is_own } => {
                            if core::mem::take(is_touched) && !is_own {
                                changed = Some(generation.program);
                            }
                        }
                        Event::Deleted | Event::Changed => *is_touched = true,
                    });
                    if walk.is_err() {
                        changed = Some(ProgramName::new());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => changed = Some(ProgramName::new()),
                Err(_) => break,
            }
        }
        changed
    }
}
