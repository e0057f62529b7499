//! Many /64s, one hand: where enough of a network were blocked it is the
//! scanner, and is blocked as one.

use crate::address::Network;
use crate::host::Host;
use crate::table::Slot;
use crate::time::{Duration, Instant};

use super::{EndReason, Firewall, Stage};

/// Blocks of a network count together for so long.
const HOUR: Duration = Duration::from_secs(3_600);

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
            if slot.is_some_and(|slot| self.stage(slot).is_blocked()) {
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
        let lifted = |slot| {
            let block = self.blocks.value(slot)?;
            let is_lifted = block.end_reason == EndReason::Operator && block.ended.is_some();
            is_lifted.then_some(block.ended?.as_secs())
        };
        let wholes = [Some(wider), wider.wider()].into_iter().flatten();
        let whole_lifted = wholes.filter_map(|whole| lifted(self.blocks.find(&whole)?));
        let whole_lifted = whole_lifted.max().unwrap_or(0);
        let mut count = 0;
        for number in 0..=u8::MAX {
            let other = wider.part(number);
            let slot = self.blocks.find(&other).filter(|_| other != part);
            let Some(slot) = slot.filter(|slot| self.stage(*slot) != Stage::Refused) else {
                continue;
            };
            count += u16::from(self.blocks.value(slot).is_some_and(|block| {
                let since = Instant::from_secs(block.since_seconds);
                lifted(slot).is_none()
                    && block.since_seconds >= whole_lifted
                    && now.is_within(HOUR, Some(since))
            }));
        }
        count
    }

    /// Whether the block of a network around makes this one needless. One that
    /// lasts longer stays: more addresses must not shorten what one has earned.
    #[inline(never)]
    pub(super) fn is_absorbed(&self, slot: Slot) -> bool {
        let end = |slot| self.blocks.value(slot).and_then(|block| block.end);
        let source = self.blocks.key(slot).copied();
        let network = source.and_then(|source| self.around(source));
        let whole = network.and_then(|network| self.blocked_slot(network));
        whole.is_some_and(|whole| {
            let stands = matches!(self.stage(whole), Stage::Added | Stage::Standing);
            stands && end(whole).is_none_or(|last| last.reaches(end(slot)))
        })
    }

    /// A block stands. Those of its parts end; their sources stay blocked.
    #[inline(never)]
    pub(super) fn absorb(&mut self, network: Network) {
        if !network.is_wide() {
            return;
        }
        for stage in [Stage::Held, Stage::Wanted, Stage::Standing, Stage::Lost] {
            let mut walk = self.walk(stage, None);
            while let Some(slot) = self.step(&mut walk) {
                let is_absorbed = self.is_absorbed(slot);
                let Some(block) = self.blocks.value_mut(slot).filter(|_| is_absorbed) else {
                    continue;
                };
                block.end_reason = EndReason::Widened;
                if stage.is_rule() {
                    self.set_stage(slot, Stage::Expired);
                } else {
                    block.strikes = block.strikes.saturating_sub(1);
                    self.never_stood(slot);
                }
            }
        }
    }
}
