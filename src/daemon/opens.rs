//! SYNs to services whose connections are looked for, exactly and soon: what
//! the kernel's table shows then is evidence, whatever the packets said.

use crate::address::{Endpoint, Network};
use crate::detector::Ports;
use crate::limits::{OPENS, OPENS_PER_SECOND, OPENS_PER_TURN};
use crate::metrics::Found;
use crate::packets::Packet;
use crate::time::{Duration, Instant, nearest};

/// How long after its SYN a connection is looked for, in milliseconds: at once,
/// and until a SYN or its answer that was lost has come again.
const LOOKS: [u16; 9] = [0, 5, 20, 50, 100, 200, 400, 800, 1_600];

/// What a SYN asked for.
#[derive(Clone, Copy)]
pub(super) struct Open {
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    source: Network,
    /// When; `None` for a place that is free.
    since: Option<Instant>,
    /// When it is looked for next; `None` until its source may complete a scan.
    due: Option<Instant>,
}

impl Open {
    /// All bytes zero.
    const FREE: Self = Self {
        local: Endpoint::BLANK,
        remote: Endpoint::BLANK,
        source: Network::BLANK,
        since: None,
        due: None,
    };

    /// The next of its looks, all that are overdue being over; `None` after
    /// the last one.
    fn due_after(&self, now: Instant) -> Option<Instant> {
        let since = self.since?;
        let looks = LOOKS.iter();
        let mut looks = looks.map(|wait| since.after(Duration::from_millis((*wait).into())));
        looks.find(|due| *due > now)
    }
}

/// All bytes zero when new.
pub(super) struct Opens {
    next_look: Option<Instant>,
    /// How many looks are left, and until when.
    left: usize,
    left_until: Option<Instant>,
    /// The place that is taken next.
    next: usize,
    places: [Open; OPENS],
}

impl Opens {
    pub(super) const fn new() -> Self {
        Self {
            next_look: None,
            left: 0,
            left_until: None,
            next: 0,
            places: [Open::FREE; OPENS],
        }
    }

    /// When `look` has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// Takes in a SYN of a source that touched `ports` other ones, in the place
    /// of the oldest. Its connections are looked for where all of them together
    /// are a scan.
    #[inline(never)]
    pub(super) fn note(
        &mut self,
        packet: &Packet,
        source: Network,
        ports: usize,
        threshold: u8,
        now: Instant,
    ) {
        // Counted anew: of several SYNs for one port any may leave first.
        let mut seen = Ports::new();
        let _ = seen.push(packet.destination.port);
        for other in self.places.iter().filter(|other| other.source == source) {
            if ports + seen.len() > usize::from(threshold) {
                break;
            }
            let port = other.local.port;
            if seen.iter().all(|one| *one != port) {
                let _ = seen.push(port);
            }
        }
        if let Some(place) = self.places.get_mut(self.next) {
            *place = Open {
                local: packet.destination,
                remote: packet.source,
                source,
                since: Some(now),
                due: None,
            };
        }
        self.next = (self.next + 1) % OPENS;
        if ports + seen.len() > usize::from(threshold) {
            let same = self.places.iter_mut();
            for same in same.filter(|other| other.source == source) {
                same.due = same.due.or(same.since);
            }
            self.next_look = Some(now);
        }
    }

    /// Hands what is due to `look_up`, which says what it found; `None` where
    /// that is not to be known.
    #[inline(never)]
    pub(super) fn look(&mut self, now: Instant, look_up: &mut dyn FnMut(&Open) -> Option<Found>) {
        if now.is_past(self.left_until) {
            self.left_until = Some(now.after(Duration::from_secs(1)));
            self.left = OPENS_PER_SECOND;
        }
        let enough = self.left.saturating_sub(OPENS_PER_TURN);
        self.next_look = None;
        for open in &mut self.places {
            if self.left > enough && now.reaches(open.due) {
                self.left -= 1;
                let found = look_up(open);
                open.due = open.due_after(now);
                if open.due.is_none() || matches!(found, None | Some(Found::Proven)) {
                    *open = Open::FREE;
                }
            }
            self.next_look = nearest(self.next_look, open.due);
        }
        if self.left == 0 && self.next_look.is_some() {
            self.next_look = self.left_until;
        }
    }
}
