//! What counts as evidence, whoever saw it, and what waits to count.

use crate::address::Network;
use crate::connections::Ending;
use crate::detector::{Data, Evidence};
use crate::limits::{FAST_READING, MEMORY, SERVICE_AGE, WAITING};
use crate::listeners::Port;
use crate::time::Instant;
use crate::waiting::{Waiter, Waiting};

use super::{Daemon, Detector, Firewall};

/// What waits for its port; all bytes zero when new.
pub(super) struct Admission {
    /// Until when sockets that lost their local address (tcp_disconnect of
    /// net/ipv4/tcp.c) are no evidence: a proxy serves connections to addresses
    /// that are not the host's. BOOT for no such time.
    foreign_until: Instant,
    waiting: Waiting<WAITING>,
}

impl Admission {
    pub(super) const fn new() -> Self {
        Self {
            foreign_until: Instant::BOOT,
            waiting: Waiting::new(),
        }
    }

    pub(super) fn note_data(&mut self, source: Network, port: u16, data: Data) {
        self.waiting.note_data(source, port, data);
    }

    /// A proxy takes connections to other addresses, or may.
    pub(super) fn note_diversion(&mut self, now: Instant) {
        self.foreign_until = now.after(MEMORY);
    }

    /// Takes in a connection that was completed. When a reading is wanted to
    /// find out about its port.
    fn admit(
        &mut self,
        waiter: &Waiter,
        port: Port,
        firewall: &Firewall,
        detector: &mut Detector,
        now: Instant,
    ) -> Option<Instant> {
        if port == Port::Foreign {
            self.note_diversion(now);
        }
        if waiter.is_counted && !self.may_count(waiter, firewall, now) {
            return None;
        }
        match port {
            Port::Service => {
                detector.observe(&evidence(waiter), now);
                return None;
            }
            Port::Unknown | Port::New | Port::Foreign => self.waiting.add(waiter),
        }
        match port {
            // The list of own addresses is looked at again by itself.
            Port::Service | Port::Foreign => None,
            // Outgoing connections end all day long; none is to be lost.
            Port::Unknown if !waiter.is_counted => {
                (self.waiting.len() >= WAITING / 2).then_some(now)
            }
            // Soon, so that another socket can hardly have taken over the port.
            // Of several services that just started one reading shows all.
            Port::Unknown | Port::New => Some(now.after(FAST_READING)),
        }
    }

    /// Whether a connection counts but for its port: its handshake is proven,
    /// its source is not blocked, and it is no leftover of a block that ended.
    fn may_count(&self, waiter: &Waiter, firewall: &Firewall, now: Instant) -> bool {
        let ended = firewall.ended(waiter.source);
        // Without the peer's port nobody can tell whether it is an old one.
        let is_old = ended.is_some_and(|ended| {
            waiter.first_seen <= ended
                || (waiter.is_unnamed && waiter.first_seen.since(ended) < MEMORY)
        });
        let is_diverted = waiter.local.address.is_unspecified() && now < self.foreign_until;
        waiter.is_proven && !is_old && !is_diverted && !firewall.is_blocked(waiter.source)
    }
}

fn evidence(waiter: &Waiter) -> Evidence {
    Evidence {
        source: waiter.source,
        port: waiter.local.port,
        local: waiter.local.address,
        data: waiter.data,
    }
}

impl Daemon {
    pub(super) fn admit(&mut self, waiter: &Waiter, port: Port, now: Instant) {
        if self.is_ours(waiter) {
            return;
        }
        let (firewall, detector) = (&self.firewall, &mut self.detector);
        let when = self.admission.admit(waiter, port, firewall, detector, now);
        if let Some(when) = when {
            self.watch.hasten(when);
        }
    }

    /// Our own listener proves nothing about its clients: whoever scrapes us and
    /// three exporters is no scanner.
    fn is_ours(&self, waiter: &Waiter) -> bool {
        let (ours, local) = (self.listen_address, waiter.local);
        let is_at = ours.address.is_unspecified() || ours.address == local.address;
        self.listener.is_some() && self.watch.is_wanted() && ours.port == local.port && is_at
    }

    /// Looks again at what waits: after a reading that saw every row, and in
    /// between for addresses that came.
    pub(super) fn retry_waiting(&mut self, is_after_reading: bool, now: Instant) {
        let count = self.admission.waiting.len();
        if count == 0 {
            return;
        }
        for index in 0..count {
            let waiter = self.admission.waiting.get(index);
            let rest = waiter.and_then(|waiter| self.retry(waiter, is_after_reading, now));
            self.admission.waiting.put_back(index, rest);
        }
        self.admission.waiting.sweep();
    }

    /// What of it still waits.
    fn retry(
        &mut self,
        mut waiter: Waiter,
        is_after_reading: bool,
        now: Instant,
    ) -> Option<Waiter> {
        let window = self.options.window.max(SERVICE_AGE.saturating_mul(2));
        if now.since(waiter.first_seen.max(waiter.since)) >= window {
            return None;
        }
        let port = self.port_of(&waiter, is_after_reading);
        if port == Port::Unknown {
            return (!is_after_reading).then_some(waiter);
        }
        if !waiter.is_counted {
            self.count_waiter(&waiter, now);
            waiter.is_counted = true;
        }
        if port == Port::Service {
            self.admit(&waiter, port, now);
            return None;
        }
        Some(waiter)
    }

    /// What is known of its port now. After a reading a listener that outlived
    /// the connection is a service; else another reading follows.
    fn port_of(&mut self, waiter: &Waiter, is_after_reading: bool) -> Port {
        let (watch, host, local) = (&self.watch, &self.host, waiter.local);
        let listeners = &mut self.connections.listeners;
        let seen = Some(waiter.first_seen.max(waiter.since));
        let port = listeners.port(local, &|| watch.is_local(host, local.address), seen);
        if port != Port::New || !is_after_reading {
            return port;
        }
        match listeners.outlives(local, waiter.first_seen, waiter.since) {
            Ok(()) => Port::Service,
            Err(due) => {
                self.watch.hasten(due);
                port
            }
        }
    }

    fn count_waiter(&mut self, waiter: &Waiter, now: Instant) {
        let (local, remote) = (waiter.local, waiter.remote);
        match self.ending(local, remote, waiter.is_unnamed, now) {
            Ending::Unseen(connection) => {
                self.count_new(connection, local);
                if waiter.is_proven {
                    self.list_later(local, remote, connection);
                }
            }
            Ending::Known(connection) => self.list_later(local, remote, connection),
            Ending::Unnamed(_) | Ending::Unknown => {}
        }
    }
}
