//! What counts as evidence, whatever showed it: a table of cases.

use crate::detector::Evidence;
use crate::limits::{FAST_READING, MEMORY, SERVICE_AGE, WAITING};
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
            (Port::New, _) => Verdict::WaitsFor(SERVICE_AGE),
            // Of several services that just started one reading shows all.
            (Port::Unknown, true) => Verdict::WaitsFor(FAST_READING),
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
    /// Until when a proxy may serve connections to addresses that are not the
    /// host's.
    foreign_until: Option<Instant>,
}

impl Admission {
    pub(super) const fn new() -> Self {
        Self {
            waiting: Waiting::new(),
            foreign_until: None,
        }
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
            self.foreign_until = Some(now.after(MEMORY));
        }
        let case = Case {
            waiter,
            port,
            is_blocked: firewall.is_blocked(waiter.source),
            block_ended: firewall.ended(waiter.source),
            has_foreign: self.foreign_until.is_some_and(|until| now < until),
        };
        let verdict = case.verdict();
        match verdict {
            Verdict::Ignored => {}
            Verdict::Counts => detector.observe(&evidence(waiter), now),
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

fn evidence(waiter: &Waiter) -> Evidence {
    Evidence {
        source: waiter.source,
        port: waiter.local.port,
        local: waiter.local.address,
        data: waiter.data,
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

    fn verdict(waiter: &Waiter, change: impl Fn(&mut Case)) -> Verdict {
        let mut case = Case {
            waiter,
            port: Port::Service,
            is_blocked: false,
            block_ended: None,
            has_foreign: false,
        };
        change(&mut case);
        case.verdict()
    }

    #[test]
    fn the_port_decides() {
        use Verdict::{Counts, Waits, WaitsFor, WaitsForMany};
        for (port, counted, uncounted) in [
            (Port::Service, Counts, Counts),
            (Port::New, WaitsFor(SERVICE_AGE), WaitsFor(SERVICE_AGE)),
            (Port::Foreign, Waits, Waits),
            (Port::Unknown, WaitsFor(FAST_READING), WaitsForMany),
        ] {
            for (is_counted, expected) in [(true, counted), (false, uncounted)] {
                let mut waiter = waiter("10.0.0.1:80");
                waiter.is_counted = is_counted;
                let found = verdict(&waiter, |case| case.port = port);
                assert_eq!(found, expected, "{port:?} {is_counted}");
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
        let (at_no_address, nothing) = (waiter("0.0.0.0:80"), |_: &mut Case| {});
        let foreign = |case: &mut Case| case.has_foreign = true;
        let blocked = |case: &mut Case| case.is_blocked = true;
        let ended_now = |case: &mut Case| case.block_ended = Some(NOW);
        let ended_before =
            |case: &mut Case| case.block_ended = Some(NOW.before(Duration::from_secs(1)));
        let ended_long_ago = |case: &mut Case| case.block_ended = Some(NOW.before(MEMORY));
        let cases: [(&Waiter, &dyn Fn(&mut Case), bool); 11] = [
            (&named, &nothing, true),
            (&unproven, &nothing, false),
            (&named, &blocked, false),
            (&named, &ended_now, false),
            (&named, &ended_before, true),
            (&unnamed, &nothing, true),
            (&unnamed, &ended_before, false),
            (&unnamed, &ended_long_ago, true),
            (&named, &foreign, true),
            (&at_no_address, &nothing, true),
            (&at_no_address, &foreign, false),
        ];
        for (number, (waiter, change, counts)) in cases.into_iter().enumerate() {
            for port in [Port::Service, Port::New, Port::Foreign, Port::Unknown] {
                let found = verdict(waiter, |case| {
                    change(case);
                    case.port = port;
                });
                assert_eq!(found != Verdict::Ignored, counts, "case {number} {port:?}");
            }
        }
    }
}
