//! What counts as evidence, whatever showed it: a table of cases.

use crate::detector::Evidence;
use crate::limits::{FAST_READING, MEMORY, WAITING};
use crate::listeners::Port;
use crate::time::{Duration, Instant};
use crate::waiting::{Waiter, Waiting};

use super::{Detector, Firewall};

/// A connection that was completed, and what else decides about it.
#[derive(Clone, Copy)]
struct Case<'a> {
    waiter: &'a Waiter,
    port: Port,
    is_blocked: bool,
    /// When the last block of its source ended.
    block_ended: Option<Instant>,
    /// Sockets that lost their local address are no evidence.
    has_foreign: bool,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is no evidence.
    Ignored,
    /// It is evidence.
    Counts,
    /// It waits for what comes by itself.
    Waits,
    /// It waits for a reading that long after.
    WaitsFor(Duration),
    /// It waits for a reading once many of them do.
    WaitsForMany,
}

impl Case<'_> {
    fn verdict(&self) -> Verdict {
        match (self.port, self.waiter.is_counted) {
            (_, true) if !self.may_count() => Verdict::Ignored,
            (Port::Service, _) => Verdict::Counts,
            // The list of own addresses is kept current by itself.
            (Port::Foreign, _) => Verdict::Waits,
            // Soon, so that another socket can hardly have taken over the port.
            // Of several services that just started one reading shows all.
            (Port::New, _) | (Port::Unknown, true) => Verdict::WaitsFor(FAST_READING),
            // Outgoing connections end all day long; none is to be lost.
            (Port::Unknown, false) => Verdict::WaitsForMany,
        }
    }

    /// Whether it counts but for its port: its handshake is proven, its source
    /// is not blocked, and it is no leftover of a block that ended.
    fn may_count(&self) -> bool {
        let waiter = self.waiter;
        // Without the peer's port an old one looks like any other.
        let is_old = self.block_ended.is_some_and(|ended| {
            let is_recent = waiter.first_seen.since(ended) < MEMORY;
            waiter.first_seen <= ended || (waiter.is_unnamed && is_recent)
        });
        let is_diverted = self.has_foreign && waiter.local.address.is_unspecified();
        waiter.is_proven && !is_old && !is_diverted && !self.is_blocked
    }
}

/// What waits for its port; all bytes zero when new.
pub(super) struct Admission {
    pub(super) waiting: Waiting<WAITING>,
    /// Until when sockets that lost their local address (tcp_disconnect of
    /// net/ipv4/tcp.c) are no evidence: a proxy may serve connections to
    /// addresses that are not the host's.
    foreign_until: Option<Instant>,
    /// When connections were first seen that were there at the start.
    first_reading: Option<Instant>,
}

impl Admission {
    pub(super) const fn new() -> Self {
        Self {
            waiting: Waiting::new(),
            foreign_until: None,
            first_reading: None,
        }
    }

    /// A reading begins.
    pub(super) fn note_first_reading(&mut self, now: Instant) {
        self.first_reading.get_or_insert(now);
    }

    /// A proxy takes connections to other addresses, or may.
    pub(super) fn note_diversion(&mut self, now: Instant) {
        self.foreign_until = Some(now.after(MEMORY));
    }

    /// Takes in a connection that was completed. When a reading is wanted to
    /// find out about its port.
    #[inline(never)]
    pub(super) fn admit(
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
        let case = Case {
            waiter,
            port,
            is_blocked: firewall.is_blocked(waiter.source),
            block_ended: firewall.ended(waiter.source),
            has_foreign: !now.is_past(self.foreign_until),
        };
        let verdict = case.verdict();
        match verdict {
            Verdict::Ignored => {}
            Verdict::Counts => {
                let is_new = self.first_reading != Some(waiter.first_seen);
                detector.observe(&evidence(waiter, is_new), now);
            }
            Verdict::Waits | Verdict::WaitsFor(_) | Verdict::WaitsForMany => {
                self.waiting.add(waiter);
            }
        }
        match verdict {
            Verdict::Ignored | Verdict::Counts | Verdict::Waits => None,
            Verdict::WaitsFor(length) => Some(now.after(length)),
            Verdict::WaitsForMany => (self.waiting.len() >= WAITING / 2).then_some(now),
        }
    }
}

fn evidence(waiter: &Waiter, is_new: bool) -> Evidence {
    Evidence {
        source: waiter.source,
        port: waiter.local.port,
        local: waiter.local.address,
        data: waiter.data,
        is_new,
        is_whole: waiter.is_whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Endpoint, Network};

    const NOW: Instant = Instant::from_secs(10_000);

    fn waiter(local: &str) -> Waiter {
        let endpoint = |text: &str| Endpoint::parse(text.as_bytes()).unwrap();
        let (local, remote) = (endpoint(local), endpoint("192.0.2.1:50000"));
        Waiter::new(Network::single(remote.address), local, remote, NOW)
    }

    #[test]
    fn the_port_decides() {
        use Verdict::{Counts, Waits, WaitsFor, WaitsForMany};
        for (port, counted, uncounted) in [
            (Port::Service, Counts, Counts),
            (Port::New, WaitsFor(FAST_READING), WaitsFor(FAST_READING)),
            (Port::Foreign, Waits, Waits),
            (Port::Unknown, WaitsFor(FAST_READING), WaitsForMany),
        ] {
            for (is_counted, expected) in [(true, counted), (false, uncounted)] {
                let mut waiter = waiter("10.0.0.1:80");
                waiter.is_counted = is_counted;
                let case = Case {
                    waiter: &waiter,
                    port,
                    is_blocked: false,
                    block_ended: None,
                    has_foreign: false,
                };
                assert_eq!(case.verdict(), expected, "{port:?} {is_counted}");
            }
        }
    }

    /// Whatever its port is.
    #[test]
    fn what_is_no_evidence() {
        let named = waiter("10.0.0.1:80");
        let (mut unproven, mut unnamed) = (named, named);
        unproven.is_proven = false;
        unnamed.is_unnamed = true;
        let at_no_address = waiter("0.0.0.0:80");
        let ended = |seconds| Some(NOW.before(Duration::from_secs(seconds)));
        // Whether its source is blocked, when its last block ended, whether
        // a proxy serves foreign addresses; whether it may be evidence.
        for (number, (waiter, is_blocked, block_ended, has_foreign, counts)) in [
            (named, false, None, false, true),
            (unproven, false, None, false, false),
            (named, true, None, false, false),
            (named, false, ended(0), false, false),
            (named, false, ended(1), false, true),
            (unnamed, false, None, false, true),
            (unnamed, false, ended(1), false, false),
            (unnamed, false, Some(NOW.before(MEMORY)), false, true),
            (named, false, None, true, true),
            (at_no_address, false, None, false, true),
            (at_no_address, false, None, true, false),
        ]
        .into_iter()
        .enumerate()
        {
            for port in [Port::Service, Port::New, Port::Foreign, Port::Unknown] {
                let case = Case {
                    waiter: &waiter,
                    port,
                    is_blocked,
                    block_ended,
                    has_foreign,
                };
                let is_ignored = case.verdict() == Verdict::Ignored;
                assert_eq!(!is_ignored, counts, "case {number} {port:?}");
            }
        }
    }
}
