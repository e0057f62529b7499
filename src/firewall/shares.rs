//! Who gets how many of a minute's blocks, so that nobody's scans use up what
//! the scanners from elsewhere need.

use crate::address::{Family, Network};
use crate::limits::{HELD_BLOCKS, SHARES};
use crate::table::Slot;
use crate::time::{Duration, Instant, nearest, order};

use super::{Firewall, Refusal, Stage, walk};

/// The period of --max-blocks-per-minute.
const MINUTE: Duration = Duration::from_secs(60);
/// Where blocks are held back, what is left of the minute's is looked for that
/// often.
const GRANT_PERIOD: Duration = Duration::from_millis(50);

/// Buckets that hold one minute's budget each and are refilled all the time:
/// the moment at which one is full again says all there is to it. All bytes zero
/// when new.
pub(super) struct Shares {
    /// Of everything, and of networks that had blocks lately. Where there are
    /// more, the one that is fullest is dropped: it says least.
    buckets: [(Network, Option<Instant>); SHARES],
}

impl Shares {
    pub(super) const NONE: Self = Self {
        buckets: [(Network::BLANK, None); SHARES],
    };

    /// How long a bucket takes to be full.
    #[inline(never)]
    fn spent(&self, network: Network, now: Instant) -> Duration {
        let mut known = self.buckets.iter();
        let known = known.find(|(one, _)| *one == network);
        let full = known.and_then(|(_, full)| *full);
        full.map_or(Duration::ZERO, |full| full.since(now))
    }

    #[inline(never)]
    fn charge(&mut self, network: Network, cost: Duration, now: Instant) {
        let full = now.after(self.spent(network, now)).after(cost);
        let rank = |(one, full): &&mut (Network, Option<Instant>)| {
            if *one == network {
                0
            } else {
                order(*full).saturating_add(1)
            }
        };
        if let Some(place) = self.buckets.iter_mut().min_by_key(rank) {
            *place = (network, Some(full));
        }
    }
}

/// What all blocks are charged to.
const ALL: Network = Network::any(Family::V6);

/// What a source's blocks are charged to: no more than a quarter of a minute's
/// for one IPv6 /48 or IPv4 /24.
#[inline(never)]
fn site(source: Network) -> Network {
    source.around(24, 48)
}

/// Where turns are taken: an IPv6 /32 or IPv4 /16.
fn provider(source: Network) -> Network {
    source.around(16, 32)
}

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// Wants as many of the blocks held back as the minute's budget allows.
    /// Those held back until their evidence left the window are given up: a
    /// source that goes on scanning is seen again. So is one where there are
    /// too many.
    #[inline(never)]
    pub(super) fn grant(&mut self, now: Instant) {
        let per_minute = u64::from(self.max_per_minute());
        let cost = |blocks: u64| {
            let nanoseconds = MINUTE.as_nanos().checked_div(blocks);
            Duration::from_nanos(nanoseconds.unwrap_or(0))
        };
        let (one, quarter) = (cost(per_minute), cost(per_minute.div_ceil(4)));
        while self.shares.spent(ALL, now).saturating_add(one) <= MINUTE
            && let Some(slot) = self.rank(quarter, true, now)
        {
            let source = *self.source_at(slot);
            self.shares.charge(ALL, one, now);
            self.shares.charge(provider(source), one, now);
            self.shares.charge(site(source), quarter, now);
            self.begin_length(slot, now);
            self.set_stage(slot, Stage::Wanted);
        }
        while let Some(slot) = self.blocks.oldest(Stage::Held as usize)
            && now.since(Instant::from_secs(self.block_at(slot).since_seconds)) > self.window
        {
            self.refuse(slot, Refusal::Rate);
        }
        let held = self.held_back();
        if held > HELD_BLOCKS
            && let Some(slot) = self.rank(Duration::ZERO, false, now)
        {
            self.refuse(slot, Refusal::Rate);
        }
        self.next_grant = (held > 0).then(|| now.after(GRANT_PERIOD));
    }

    /// A block's time begins when it is wanted, not when it was held back.
    fn begin_length(&mut self, slot: Slot, now: Instant) {
        let end = self.end(self.block_at(slot).strikes, now);
        let boot_id = self.boot_id;
        let block = self.block_at_mut(slot);
        if block.end != end {
            block.end = end;
            block.comment = block.facts(boot_id).rewrite(&block.comment);
        }
        self.next_end = nearest(self.next_end, end);
    }

    /// Of those held back whose site can bear `cost` the one whose turn it is:
    /// of the provider that had least lately the newest; or the last one: of the
    /// provider that had most the oldest.
    #[inline(never)]
    fn rank(&self, cost: Duration, is_first: bool, now: Instant) -> Option<Slot> {
        let (mut best, mut least) = (None, u64::MAX);
        let mut walk = walk(&[Stage::Held], None);
        while let Some(slot) = self.step(&mut walk) {
            let source = *self.source_at(slot);
            let spent = self.shares.spent(provider(source), now).as_nanos();
            let place = if is_first { spent } else { !spent };
            let is_better = best.is_none() || place < least || is_first && place == least;
            let share = self.shares.spent(site(source), now);
            if is_better && (!is_first || share.saturating_add(cost) <= MINUTE) {
                (best, least) = (Some(slot), place);
            }
        }
        best
    }

    /// What --max-blocks-per-minute says, or what the place of blocks can bear.
    fn max_per_minute(&self) -> u32 {
        match self.max_per_minute {
            0 if self.prefers_sets() => 10_000,
            0 => 1_000,
            given => given,
        }
    }
}
