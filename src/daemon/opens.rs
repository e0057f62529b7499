//! SYNs to services whose connections are looked for, exactly and soon: what
//! the kernel's table shows then is evidence, whatever the packets said.

use heapless::Vec;

use crate::address::{Endpoint, Network};
use crate::detector::Ports;
use crate::limits::{OPENS, OPENS_PER_SECOND, OPENS_PER_TURN};
use crate::metrics::Found;
use crate::time::{Duration, Instant, nearest};

/// How long after its SYN a connection is looked for, in milliseconds: at once,
/// and until a SYN that was lost has come again.
const LOOKS: [u16; 9] = [0, 5, 20, 50, 100, 200, 400, 800, 1_600];

/// A SYN, and what became of it so far.
#[derive(Clone, Copy)]
pub(super) struct Open {
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) source: Network,
    pub(super) born: Instant,
    /// How many of `LOOKS` are over.
    looks: u8,
    /// Its source may complete a scan with it.
    is_wanted: bool,
}

impl Open {
    pub(super) const fn new(
        local: Endpoint,
        remote: Endpoint,
        source: Network,
        born: Instant,
    ) -> Self {
        Self {
            local,
            remote,
            source,
            born,
            looks: 0,
            is_wanted: false,
        }
    }

    /// When it is to be looked for; `None` where not any more.
    fn due(&self) -> Option<Instant> {
        let milliseconds = *LOOKS.get(usize::from(self.looks))?;
        let wait = Duration::from_millis(u64::from(milliseconds));
        Some(self.born.after(wait))
    }

    /// The looks that are due by now are over, all of them at once.
    fn looked(&mut self, now: Instant) {
        while self.due().is_some_and(|due| due <= now) {
            self.looks += 1;
        }
    }
}

/// All bytes zero when new.
pub(super) struct Opens {
    next_look: Option<Instant>,
    /// How many more until then.
    left: usize,
    left_until: Option<Instant>,
    pending: Vec<Open, OPENS>,
}

impl Opens {
    pub(super) const fn new() -> Self {
        Self {
            next_look: None,
            left: 0,
            left_until: None,
            pending: Vec::new(),
        }
    }

    /// When `look` has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// Takes in a SYN of a source with evidence on these `ports` already. Its
    /// connections are looked for where all of them together are a scan.
    #[inline(never)]
    pub(super) fn note(&mut self, open: &Open, mut ports: Ports, threshold: u8, window: Duration) {
        let (source, now) = (open.source, open.born);
        let pending = &mut self.pending;
        pending.retain(|other| now.since(other.born) < window);
        let is_known = |other: &Open| other.local == open.local && other.remote == open.remote;
        if ports.contains(&open.local.port) || pending.iter().any(is_known) {
            return;
        }
        if pending.is_full() {
            let ages = pending.iter().enumerate();
            let oldest = ages.min_by_key(|(_, other)| (other.is_wanted, other.born.as_nanos()));
            if let Some((oldest, _)) = oldest {
                pending.swap_remove(oldest);
            }
        }
        let _ = pending.push(*open);
        for other in pending.iter().filter(|other| other.source == source) {
            if !ports.contains(&other.local.port) {
                let _ = ports.push(other.local.port);
            }
        }
        if ports.len() <= usize::from(threshold) {
            return;
        }
        for other in pending.iter_mut().filter(|other| other.source == source) {
            other.is_wanted = true;
        }
        self.next_look = Some(now);
    }

    /// Hands what is due to `look_up`, which says what it found; `None` where
    /// that is not to be known.
    pub(super) fn look(&mut self, now: Instant, look_up: &mut dyn FnMut(&Open) -> Option<Found>) {
        if now.is_past(self.left_until) {
            self.left_until = Some(now.after(Duration::from_secs(1)));
            self.left = OPENS_PER_SECOND;
        }
        self.next_look = None;
        let mut left = self.left.min(OPENS_PER_TURN);
        self.left -= left;
        let mut index = 0;
        while let Some(open) = self.pending.get_mut(index) {
            let due = open.due().filter(|_| open.is_wanted);
            if now.reaches(due) && left > 0 {
                left -= 1;
                let found = look_up(open);
                open.looked(now);
                if !matches!(found, Some(Found::Open | Found::None)) || open.due().is_none() {
                    self.pending.swap_remove(index);
                    continue;
                }
            }
            let due = self
                .pending
                .get(index)
                .and_then(|open| open.due().filter(|_| open.is_wanted));
            self.next_look = nearest(self.next_look, due);
            index += 1;
        }
        self.left += left;
        if self.left == 0 && self.next_look.is_some() {
            self.next_look = self.left_until;
        }
    }
}
