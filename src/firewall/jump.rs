//! The jumps to our chain: first in INPUT and FORWARD, unless another
//! firewall manager keeps pushing them down.
//!
//! It may claim the first position as well. A jump that was moved back and is
//! pushed down again soon after stays where it is, so that the two do not take
//! turns; yet two deploys within ten minutes must not leave it behind for good.
//! After ten quiet minutes it is moved once more, and each time that does not
//! last the wait doubles. A jump that stayed first for as long as it would have
//! waited starts anew.

use crate::limits::MOVE_MEMORY;
use crate::time::{Duration, Instant};

/// The longest wait, in times of the first: a manager that puts its rule first
/// at once, day and night, is contradicted some times a day.
const LONGEST: u64 = 16;

/// Whose the first position is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// No other rule claims it: a jump pushed down is moved back at once. First,
    /// so that it is all zero bytes.
    Undisputed,
    /// Ours again, since then; pushed down before `wait` is over the jump
    /// stays there.
    Regained { since: Instant, wait: Duration },
    /// The jump stays where it is, and is moved once more when this
    /// position has not changed for `wait`.
    Left {
        since: Instant,
        wait: Duration,
        position: u32,
    },
}

/// One jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Its position from 1; 0 where it is missing.
    pub position: u32,
    /// How many there are: a reload may have added one.
    pub count: u32,
    /// It is to be put back to position 1.
    pub moves: bool,
    order: Order,
    /// It was left where it is for so long, which was not said yet.
    report: Option<Duration>,
}

impl Jump {
    /// Not there; all bytes zero.
    pub const NONE: Self = Self {
        position: 0,
        count: 0,
        moves: false,
        order: Order::Undisputed,
        report: None,
    };

    /// A listing shows it at `position`. Without blocks it is of no use.
    #[inline(never)]
    pub fn seen(&mut self, position: u32, count: u32, is_needed: bool, now: Instant) {
        (self.position, self.count) = (position, count);
        let is_first = position <= 1 || !is_needed;
        (self.order, self.moves) = match (self.order, is_first) {
            (Order::Undisputed, true) => (Order::Undisputed, false),
            (Order::Undisputed, false) => (Order::Undisputed, true),
            (Order::Regained { since, wait }, true) if now.since(since) >= wait => {
                (Order::Undisputed, false)
            }
            (order @ Order::Regained { .. }, true) => (order, false),
            (Order::Regained { since, wait }, false) if now.since(since) < wait => {
                self.report = Some(wait);
                (self.leave(wait, now), false)
            }
            (Order::Regained { .. }, false) => (Order::Undisputed, true),
            (
                Order::Left {
                    wait, position: at, ..
                },
                _,
            ) if at != position => (self.leave(wait, now), false),
            (Order::Left { since, wait, .. }, true) if now.since(since) >= wait => {
                (Order::Undisputed, false)
            }
            (order @ Order::Left { .. }, true) => (order, false),
            (order @ Order::Left { since, wait, .. }, false) => (order, now.since(since) >= wait),
        };
    }

    fn leave(&self, wait: Duration, now: Instant) -> Order {
        Order::Left {
            since: now,
            wait,
            position: self.position,
        }
    }

    /// A batch that puts it where it belongs is in the kernel.
    pub fn was_put(&mut self, now: Instant) {
        if self.position == 0 {
            (self.position, self.count) = (1, 1);
        }
        if !core::mem::take(&mut self.moves) {
            return;
        }
        self.position = 1;
        let wait = match self.order {
            Order::Undisputed | Order::Regained { .. } => MOVE_MEMORY,
            Order::Left { wait, .. } => wait
                .saturating_mul(2)
                .min(MOVE_MEMORY.saturating_mul(LONGEST)),
        };
        self.order = Order::Regained { since: now, wait };
    }

    /// The chain was taken away with it; the next one has no past.
    pub fn was_removed(&mut self) {
        *self = Self::NONE;
    }

    /// For how long it was left behind, if that is still to be said.
    pub fn take_report(&mut self) -> Option<Duration> {
        self.report.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A jump that is looked at each minute, by a manager's schedule: at which
    /// minutes it is pushed down to the end, and when it was moved and said.
    struct Scene {
        jump: Jump,
        rules_above: u32,
        moved: Vec<u64>,
        reported: Vec<(u64, u64)>,
    }

    type Vec<T> = std::vec::Vec<T>;

    fn at(minute: u64) -> Instant {
        Instant::from_secs(6_000 + 60 * minute)
    }

    impl Scene {
        fn new() -> Self {
            let mut jump = Jump::NONE;
            jump.was_put(at(0));
            Self {
                jump,
                rules_above: 0,
                moved: Vec::new(),
                reported: Vec::new(),
            }
        }

        fn minute(&mut self, minute: u64, pushed: bool) {
            self.rules_above += u32::from(pushed);
            self.jump.seen(1 + self.rules_above, 1, true, at(minute));
            if let Some(wait) = self.jump.take_report() {
                self.reported
                    .push((minute, wait.as_nanos() / 60_000_000_000));
            }
            if self.jump.moves {
                self.jump.was_put(at(minute));
                self.rules_above = 0;
                self.moved.push(minute);
            }
        }

        fn run(mut self, minutes: u64, is_pushed: impl Fn(u64, &Self) -> bool) -> Self {
            for minute in 1..minutes {
                let pushed = is_pushed(minute, &self);
                self.minute(minute, pushed);
            }
            self
        }
    }

    #[test]
    fn two_deploys_do_not_leave_it_behind_for_good() {
        let scene = Scene::new().run(100, |minute, _| minute == 5 || minute == 8);
        assert_eq!(
            (scene.moved, scene.reported),
            (std::vec![5, 18], std::vec![(8, 10)])
        );
        assert_eq!(scene.jump.position, 1);
    }

    #[test]
    fn pushes_start_the_wait_anew() {
        let scene = Scene::new().run(100, |minute, _| [5, 8, 12, 17].contains(&minute));
        assert_eq!(
            (scene.moved, scene.reported),
            (std::vec![5, 27], std::vec![(8, 10)])
        );
    }

    /// Against a program that takes the first place back at once it tries ever
    /// less often.
    #[test]
    fn waits_double_up_to_a_bound() {
        let scene = Scene::new().run(1_000, |_, scene| scene.rules_above == 0);
        let gaps: Vec<u64> = scene.moved.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(gaps, [11, 21, 41, 81, 161, 161, 161, 161, 161]);
        let waits: Vec<u64> = scene.reported.iter().map(|one| one.1).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 160, 160, 160, 160, 160]);
    }

    /// Twenty minutes after the second try the pushes are forgotten.
    #[test]
    fn who_stayed_first_for_long_starts_anew() {
        let pushes = [5, 8, 60, 62, 90];
        let scene = Scene::new().run(100, |minute, _| pushes.contains(&minute));
        assert_eq!(scene.moved, [5, 18, 60, 72]);
        assert_eq!(scene.reported, [(8, 10), (62, 10), (90, 20)]);
    }

    #[test]
    fn without_blocks_nothing_is_moved() {
        let mut jump = Jump::NONE;
        jump.was_put(at(0));
        for minute in 0..100 {
            jump.seen(3, 1, false, at(minute));
            assert!(!jump.moves && jump.take_report().is_none());
        }
    }

    /// A rule that comes and goes above it brings neither moves nor words.
    #[test]
    fn flapping_is_no_flood() {
        let mut jump = Jump::NONE;
        jump.was_put(at(0));
        let (mut moved, mut reported) = (0, 0);
        for minute in 0..1_000 {
            jump.seen(1 + minute as u32 % 2, 1, true, at(minute));
            reported += u32::from(jump.take_report().is_some());
            moved += u32::from(jump.moves);
            if jump.moves {
                jump.was_put(at(minute));
            }
        }
        assert!(
            moved <= 2 && reported <= 2,
            "moved {moved}, reported {reported} times"
        );
    }
}
