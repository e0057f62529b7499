//! A share of one processor for work that others bring.

use crate::time::{Duration, Instant};

/// All bytes zero when new, and then nothing is left of the share.
pub(super) struct CpuShare {
    /// One part in this many, and what may be saved up of it.
    parts: u64,
    most: Duration,
    /// Processor time that is left of the share, as of `saved_at`.
    savings: Duration,
    saved_at: Option<Instant>,
}

impl CpuShare {
    pub(super) const fn new() -> Self {
        Self {
            parts: 0,
            most: Duration::ZERO,
            savings: Duration::ZERO,
            saved_at: None,
        }
    }

    /// Sets the share; all of it is saved up.
    pub(super) fn start(&mut self, parts: usize, most: Duration) {
        self.parts = parts as u64;
        (self.most, self.savings) = (most, most);
    }

    /// Adds what was earned meanwhile; whether anything is left.
    #[inline(never)]
    pub(super) fn earn(&mut self, now: Instant) -> bool {
        let saved = self.saved_at.map_or(Duration::ZERO, |at| now.since(at));
        let earned = saved.as_nanos().checked_div(self.parts);
        let earned = Duration::from_nanos(earned.unwrap_or(0));
        self.savings = self.savings.saturating_add(earned).min(self.most);
        // A debt is paid until then, however often this is asked.
        self.saved_at = Some(now.or_later(self.saved_at));
        self.savings != Duration::ZERO
    }

    /// What was done cost so much, which may overdraw the savings.
    #[inline(never)]
    pub(super) fn pay(&mut self, cost: Duration, now: Instant) {
        let debt = cost.saturating_sub(self.savings);
        self.savings = self.savings.saturating_sub(cost);
        // One that is not paid yet stays.
        let from = now.or_later(self.saved_at);
        self.saved_at = Some(from.after(debt.saturating_mul(self.parts)));
    }

    /// When a debt is paid.
    pub(super) fn paid_at(&self, now: Instant) -> Option<Instant> {
        now.end_of(self.saved_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_paid_by_the_share() {
        let ms = Duration::from_millis;
        let at = |milliseconds| Instant::from_secs(0).after(ms(milliseconds));
        let mut share = CpuShare::new();
        assert!(!share.earn(at(0)), "nothing without a start");
        share.start(4, ms(100));
        assert!(share.earn(at(1_000)));
        share.pay(ms(90), at(1_000));
        assert_eq!(share.paid_at(at(1_000)), None);
        assert!(share.earn(at(1_000)));
        share.pay(ms(30), at(1_000));
        // 20 more than there was.
        assert_eq!(share.paid_at(at(1_000)), Some(at(1_080)));
        assert!(!share.earn(at(1_040)) && !share.earn(at(1_080)));
        assert_eq!(share.paid_at(at(1_080)), None);
        assert!(share.earn(at(1_084)));
        share.pay(ms(2), at(1_084));
        assert_eq!(share.paid_at(at(1_084)), Some(at(1_088)));
        // What comes on top of a debt is paid after it.
        share.pay(ms(20), at(1_084));
        assert!(!share.earn(at(1_085)));
        share.pay(ms(1), at(1_085));
        let paid = share.paid_at(at(1_085));
        assert!(paid >= Some(at(1_160)), "{paid:?}");
        // No more is saved up than that.
        assert!(share.earn(at(100_000)));
        share.pay(ms(101), at(100_000));
        assert_eq!(share.paid_at(at(100_000)), Some(at(100_004)));
    }
}
