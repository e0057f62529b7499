//! Who gets how many of a minute's blocks, so that nobody's scans use up what
//! the scanners from elsewhere need.

use heapless::Vec;

use crate::address::Network;
use crate::limits::{HELD_BLOCKS, SHARES};
use crate::time::{Duration, Instant, order};

use super::{Firewall, Refusal, Stage};

/// The period of --max-blocks-per-minute.
const MINUTE: Duration = Duration::from_secs(60);
/// Where blocks are held back, what is left of the minute's is looked for that
/// often.
const GRANT_PERIOD: Duration = Duration::from_millis(50);

/// A bucket that holds one minute's budget and is refilled all the time: the
/// moment at which it is full again says all there is to it.
type Bucket = Option<Instant>;

/// `bucket` without what one block costs, if it holds that much.
fn taken(bucket: Bucket, cost: Duration, now: Instant) -> Option<Instant> {
    let full = now.or_later(bucket).after(cost);
    (full.since(now) <= MINUTE).then_some(full)
}

/// The buckets; all bytes zero when new.
pub(super) struct Shares {
    all: Bucket,
    /// Those of networks that had blocks lately. Where there are more, the
    /// fullest is dropped: it says least.
    networks: Vec<(Network, Instant), SHARES>,
}

impl Shares {
    pub(super) const NONE: Self = Self {
        all: None,
        networks: Vec::new(),
    };

    #[inline(never)]
    fn bucket(&self, network: Network) -> Bucket {
        let mut known = self.networks.iter();
        let known = known.find(|(one, _)| *one == network);
        known.map(|(_, full)| *full)
    }

    #[inline(never)]
    fn set(&mut self, network: Network, full: Instant) {
        if let Some(known) = self.networks.iter_mut().find(|(one, _)| *one == network) {
            known.1 = full;
        } else if let Err(new) = self.networks.push((network, full))
            && let Some(fullest) = self.networks.iter_mut().min_by_key(|(_, full)| *full)
        {
            *fullest = new;
        }
    }
}

/// What most of a source's blocks are charged to: no more than a quarter of a
/// minute's for one IPv6 /48 or IPv4 /24.
fn site(source: Network) -> Network {
    source.around(24, 48)
}

/// Where turns are taken: an IPv6 /32 or IPv4 /16.
fn provider(source: Network) -> Network {
    source.around(16, 32)
}

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// Wants as many of the blocks held back as the minute's budget allows:
    /// the next one is always of the provider that had least lately, and of
    /// that the newest.
    pub(super) fn grant(&mut self, now: Instant) {
        let per_minute = u64::from(self.max_per_minute());
        let cost = |blocks: u64| {
            let nanoseconds = MINUTE.as_nanos().checked_div(blocks);
            Duration::from_nanos(nanoseconds.unwrap_or(0))
        };
        let (one, quarter) = (cost(per_minute), cost(per_minute.div_ceil(4)));
        while let Some(all) = taken(self.shares.all, one, now) {
            let mut least = u64::MAX;
            let mut next = None;
            let mut walk = self.walk(Stage::Held, None);
            while let Some(slot) = self.step(&mut walk) {
                let Some(source) = self.blocks.key(slot).copied() else {
                    break;
                };
                let spent = self.spent(source, now);
                let site = site(source);
                let share = taken(self.shares.bucket(site), quarter, now);
                if let Some(share) = share.filter(|_| spent <= least) {
                    least = spent;
                    next = Some((slot, provider(source), site, share));
                }
            }
            let Some((slot, provider, site, share)) = next else {
                break;
            };
            self.shares.all = Some(all);
            self.shares.set(site, share);
            let turn = now.or_later(self.shares.bucket(provider)).after(one);
            self.shares.set(provider, turn);
            self.set_stage(slot, Stage::Wanted);
        }
        let is_rest = self.blocks.class_len(Stage::Held as usize) > 0;
        self.next_grant = is_rest.then(|| now.after(GRANT_PERIOD));
    }

    /// What a source's provider had lately.
    fn spent(&self, source: Network, now: Instant) -> u64 {
        order(self.shares.bucket(provider(source))).saturating_sub(now.as_nanos())
    }

    /// Blocks held back until their evidence left the window are given up: a
    /// source that goes on scanning is seen again. So is the oldest of the
    /// provider that had most, where too many are held back.
    pub(super) fn drop_held_back(&mut self, now: Instant) {
        let mut most = None;
        let mut walk = self.walk(Stage::Held, None);
        while let Some(slot) = self.step(&mut walk) {
            let (Some(source), Some(block)) = (self.blocks.key(slot), self.blocks.value(slot))
            else {
                break;
            };
            let spent = self.spent(*source, now);
            if now.since(Instant::from_secs(block.since_seconds)) > self.window {
                self.refuse(slot, Refusal::Rate);
            } else if most.is_none_or(|(most, _)| spent > most) {
                most = Some((spent, slot));
            }
        }
        let is_full = self.blocks.class_len(Stage::Held as usize) > HELD_BLOCKS;
        if let Some((_, slot)) = most.filter(|_| is_full) {
            self.refuse(slot, Refusal::Rate);
        }
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
