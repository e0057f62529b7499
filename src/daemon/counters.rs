//! What the kernel counted against what was seen, and the readings that are
//! made early for what was not.

use crate::coverage::{Coverage, Look, parse_snmp};
use crate::kernel::{Kernel, Path};
use crate::limits::{
    COUNTERS_AGAIN, COUNTERS_PERIOD, EARLY_READING_SAVINGS, EARLY_READING_SHARE, EVENTS_LATENESS,
};
use crate::metrics::{self, Metrics};
use crate::time::{Duration, Instant, nearest};

use super::cpu_share::CpuShare;
use super::kept_file::KeptFile;

/// The kernel's own count; all bytes zero when new.
pub(super) struct Counters {
    snmp: KeptFile,
    /// `None` until the first reading, which has the first look.
    next_look: Option<Instant>,
    coverage: Coverage,
    /// When the last interval ended that was held against the kernel's count.
    interval_ended: Option<Instant>,
    /// Until when events belong to the last such reading.
    late_until: Option<Instant>,
    /// Packets of IPv4 that the kernel received, by the last look.
    received: u64,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self {
            snmp: KeptFile::new(),
            next_look: None,
            coverage: Coverage::new(),
            interval_ended: None,
            late_until: None,
            received: 0,
        }
    }

    pub(super) fn start(&mut self, proc_directory: &Path) {
        self.snmp.set_path(proc_directory, b"/net/snmp");
    }

    /// When the counters are to be looked at.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_look
    }

    /// Whether they are to be looked at now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.is_past(self.next_look)
    }

    /// Looks at the counters when due, against the inbound connections `seen`
    /// so far, and again after `period`; `None` where they cannot be read.
    pub(super) fn look(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        metrics: &mut Metrics,
        seen: u64,
        period: Duration,
        now: Instant,
    ) -> Option<Look> {
        self.next_look = Some(now.after(period));
        let passive_opens = self.settle(kernel, buffer, metrics, seen)?;
        let look = self.coverage.look(passive_opens, seen);
        if look == Look::Again {
            self.next_look = Some(now.after(COUNTERS_AGAIN));
        }
        Some(look)
    }

    /// Reads the counters with every event taken in: what was seen was counted
    /// before. That of inbound connections, right before a reading's rows, is what
    /// the rows are held against.
    #[inline(never)]
    pub(super) fn settle(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        metrics: &mut Metrics,
        seen: u64,
    ) -> Option<u64> {
        let passive_opens = self.read(kernel, buffer, metrics)?;
        self.coverage.settle(passive_opens, seen);
        Some(passive_opens)
    }

    #[inline(never)]
    fn read(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        metrics: &mut Metrics,
    ) -> Option<u64> {
        let counters = parse_snmp(self.snmp.read(kernel, buffer)?)?;
        metrics.set(metrics::RESETS_SENT, counters.resets_sent);
        self.received = counters.received;
        Some(counters.passive_opens)
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Events were taken in, all there were if `is_drained`.
    pub(super) fn after_events(&mut self, seen: u64, is_drained: bool, now: Instant) {
        if self.late_until.is_none() {
            return;
        }
        self.coverage.after_events(seen);
        // However late our turn comes, all that waits is taken in.
        if is_drained && now.is_past(self.late_until) {
            self.late_until = None;
        }
    }

    /// Before that the first whole reading is still to come: it only shows what
    /// stood before.
    pub(super) fn is_started(&self) -> bool {
        self.coverage.is_started()
    }

    /// After the first whole reading.
    pub(super) fn start_coverage(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        metrics: &mut Metrics,
        seen: u64,
    ) {
        if let Some(passive_opens) = self.read(kernel, buffer, metrics) {
            self.coverage.start(passive_opens, seen);
        }
    }

    /// After each later one, which began at the counter `before`.
    pub(super) fn after_reading(&mut self, before: u64, seen: u64, now: Instant) {
        self.coverage.after_reading(before, seen);
        // What was on its way just now is not missing any more by then.
        self.next_look = Some(now.after(EVENTS_LATENESS));
    }

    /// After a scheduled one: how many connections were missed for good since
    /// the last interval ended. On a busy host the kernel's worker sends its
    /// events late, so a short interval is not held against its count.
    pub(super) fn end_interval(&mut self, before: u64, seen: u64, now: Instant) -> u64 {
        if now.is_within(COUNTERS_PERIOD, self.interval_ended) {
            return 0;
        }
        self.interval_ended = Some(now);
        self.late_until = Some(now.after(EVENTS_LATENESS));
        self.coverage.end_interval(before, seen)
    }
}

/// Readings between two scheduled ones, within a share of the processor; all
/// bytes zero when new.
pub(super) struct EarlyReadings {
    requested: Option<Instant>,
    share: CpuShare,
}

impl EarlyReadings {
    pub(super) const fn new() -> Self {
        Self {
            requested: None,
            share: CpuShare::new(),
        }
    }

    pub(super) fn start(&mut self) {
        self.share.start(EARLY_READING_SHARE, EARLY_READING_SAVINGS);
    }

    /// Requests one at `when`, or before.
    #[inline(never)]
    pub(super) fn request(&mut self, when: Instant) {
        self.requested = nearest(self.requested, Some(when));
    }

    /// The same, where one is wanted.
    pub(super) fn request_at(&mut self, when: Option<Instant>) {
        if let Some(when) = when {
            self.request(when);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.requested
    }

    /// Whether one is due and there are savings to pay for it; else it waits
    /// until there are.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if !now.reaches(self.requested) {
            return false;
        }
        let is_due = self.share.earn(now);
        if !is_due {
            self.requested = Some(now.after(COUNTERS_PERIOD));
        }
        is_due
    }

    /// A reading was made: what was requested is done.
    pub(super) fn clear(&mut self) {
        self.requested = None;
    }

    /// It was an early one, which may overdraw the savings; the next waits
    /// until the debt is paid.
    pub(super) fn pay(&mut self, cost: Duration, now: Instant) {
        self.share.pay(cost, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(seconds)
    }

    fn full() -> EarlyReadings {
        let mut early = EarlyReadings::new();
        early.start();
        early.share.earn(at(100));
        early
    }

    #[test]
    fn the_earliest_request_counts() {
        let mut early = full();
        assert!(!early.is_due(at(100)), "none was requested");
        for second in [105, 103, 104] {
            early.request(at(second));
        }
        assert_eq!(early.deadline(), Some(at(103)));
        assert!(!early.is_due(at(102)) && early.is_due(at(103)));
        early.clear();
        assert_eq!(early.deadline(), None);
    }

    #[test]
    fn a_debt_is_paid_before_the_next() {
        let mut early = full();
        early.request(at(100));
        assert!(early.is_due(at(100)));
        // As much again as was saved up.
        early.clear();
        early.pay(EARLY_READING_SAVINGS.saturating_mul(2), at(100));
        let paid = EARLY_READING_SAVINGS.saturating_mul(EARLY_READING_SHARE as u64);
        let paid = at(100).after(paid);
        early.request(at(101));
        assert!(!early.is_due(at(101)), "there is a debt");
        early.request(at(101));
        assert!(!early.is_due(paid), "nothing was earned yet");
        assert_eq!(early.deadline(), Some(paid.after(COUNTERS_PERIOD)));
        assert!(early.is_due(paid.after(COUNTERS_PERIOD)));
    }
}
