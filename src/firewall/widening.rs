//! Many /64s, one hand: where enough of a network were blocked it is the
//! scanner, and is blocked as one.

use crate::address::Network;
use crate::host::Host;
use crate::table::Slot;
use crate::time::{Duration, Instant};

use super::{Block, EndReason, Firewall, Stage, walk};

/// Blocks of a network count together for so long.
const HOUR: Duration = Duration::from_secs(3_600);

impl Block {
    /// When an operator lifted it.
    fn lifted(&self) -> Option<Instant> {
        let ended = self.ended;
        ended.filter(|_| self.end_reason == EndReason::Operator)
    }
}

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// The network around one, where some of those are or were blocked.
    pub(super) fn around(&self, network: Network) -> Option<Network> {
        network.wider().filter(|_| self.has_wide)
    }

    /// The block that a source is under: its own, or that of a network around it.
    #[inline(never)]
    pub(super) fn blocked_slot(&self, source: Network) -> Option<Slot> {
        // Each row asks: where there is no block that is no more than a look.
        if self.blocks.is_empty() {
            None
        } else {
            self.find_blocked(source)
        }
    }

    #[inline(never)]
    fn find_blocked(&self, source: Network) -> Option<Slot> {
        let mut network = Some(source);
        while let Some(one) = network {
            let slot = self.blocks.find(&one);
            let found = slot.and_then(|slot| self.look(slot));
            if found.is_some_and(|(stage, ..)| stage.is_blocked()) {
                return slot;
            }
            network = self.around(one);
        }
        None
    }

    /// What to block for a scanner: the widest network of which enough parts
    /// were blocked with it.
    pub(super) fn widened(&self, source: Network, host: &Host, now: Instant) -> Network {
        let mut widest = source;
        while let Some(wider) = widest.wider()
            && self.widen > 0
            && self.count_parts(wider, widest, now) + 1 >= self.widen
            && host.protected(wider).is_none()
        {
            widest = wider;
        }
        widest
    }

    /// How many parts of a network, this one aside, were blocked within the
    /// hour. What an operator lifted does not count, nor does what was before
    /// the operator lifted the whole.
    #[inline(never)]
    fn count_parts(&self, wider: Network, part: Network, now: Instant) -> u16 {
        let (mut lifted, mut whole) = (None, Some(wider));
        while let Some(network) = whole {
            lifted = lifted.max(self.noted(&network).and_then(Block::lifted));
            whole = network.wider();
        }
        let lifted = lifted.map_or(0, Instant::as_secs);
        let mut count = 0;
        for number in 0..=u8::MAX {
            let other = wider.part(number);
            let Some(block) = self.noted(&other).filter(|_| other != part) else {
                continue;
            };
            let since = Instant::from_secs(block.since_seconds);
            let is_recent = block.since_seconds >= lifted && now.is_within(HOUR, Some(since));
            count += u16::from(is_recent && block.lifted().is_none());
        }
        count
    }

    /// A network's block, or the memory of one; none that was refused.
    #[inline(never)]
    fn noted(&self, network: &Network) -> Option<&Block> {
        let slot = self.blocks.find(network)?;
        (self.stage(slot) != Stage::Refused).then(|| self.block_at(slot))
    }

    /// Whether the block of a network around makes this one needless. One that
    /// lasts longer stays: more addresses must not shorten what one has earned.
    #[inline(never)]
    pub(super) fn is_absorbed(&self, slot: Slot) -> bool {
        let network = self.around(*self.source_at(slot));
        let whole = network.and_then(|network| self.blocked_slot(network));
        let Some(whole) = whole else { return false };
        let (last, end) = (self.block_at(whole).end, self.block_at(slot).end);
        matches!(self.stage(whole), Stage::Added | Stage::Standing)
            && last.is_none_or(|last| last.reaches(end))
    }

    /// A block stands. Those of its parts end; their sources stay blocked.
    #[inline(never)]
    pub(super) fn absorb(&mut self, network: Network) {
        if !network.is_wide() {
            return;
        }
        let stages = &[Stage::Held, Stage::Wanted, Stage::Standing, Stage::Lost];
        let mut walk = walk(stages, None);
        while let Some(slot) = self.step(&mut walk) {
            if !self.is_absorbed(slot) {
                continue;
            }
            if walk.stage.is_rule() {
                self.expire_block(slot, EndReason::Widened);
            } else {
                let block = self.block_at_mut(slot);
                block.end_reason = EndReason::Widened;
                block.strikes = block.strikes.saturating_sub(1);
                self.never_stood(slot);
            }
        }
    }
}
