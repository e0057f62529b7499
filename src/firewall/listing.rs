//! What a listing says, against what we want: adoption, repair, and what an
//! operator took away.

use crate::detector::Data;
use crate::limits::VERIFY_PERIOD;
use crate::table::{Blank, Slot};
use crate::text::Text;
use crate::time::{Duration, Instant};

use super::comment::Facts;
use super::filter_table::{Chain, State};
use super::iptables::{Listed, Rule};
use super::place::Place;
use super::{ABOVE_MAX, Block, EndReason, Firewall, Stage, Task, walk};

/// What goes so long before its end went by itself.
const EARLY_END: Duration = Duration::from_secs(1);

impl Block {
    /// The kernel's rule is about to be, or is, the one that was to replace it.
    #[inline(never)]
    pub(super) fn renew(&mut self) {
        if let Some(comment) = self.renewed.take() {
            self.comment = comment;
            self.scope = self.scope.renewed();
        }
    }
}

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// Takes in one line of the listing.
    #[inline(never)]
    pub(super) fn listed(&mut self, place: Place, now: Instant) {
        match &self.lines.listed() {
            Listed::Chain => self.shown_mut(place).has_chain = true,
            &Listed::HookRule(hook, is_jump) => {
                let (Some(shown), Some(above)) = (
                    self.shown.hooks.get_mut(hook as usize),
                    self.above.get_mut(hook as usize),
                ) else {
                    return;
                };
                shown.rules += 1;
                shown.jumps += u32::from(is_jump);
                if is_jump && shown.first_jump == 0 {
                    shown.first_jump = shown.rules;
                } else if shown.first_jump == 0 && shown.rules <= 3 {
                    note_above(above, self.lines.line());
                }
            }
            Listed::Ours(rule) => self.listed_ours(place, rule, now),
            // Where our rules cannot have comments they look like that.
            Listed::Plain(rule) if self.table(place).lacks.comment => {
                self.listed_rule(place, rule, now);
            }
            Listed::Plain(_) | Listed::Foreign => self.shown_mut(place).has_foreign_rules = true,
            Listed::Other => {}
        }
    }

    /// Takes in a rule of ours, or an element.
    pub(super) fn listed_ours(&mut self, place: Place, rule: &Rule, now: Instant) {
        match self.task {
            Task::Guard | Task::End => self.listed_rule(place, rule, now),
            Task::List => {
                let _ = self.listing_ours.push(*rule);
            }
            Task::Unblock { target, .. } if target.touches(rule.source) => {
                if target.is_within(rule.source) {
                    self.lifted = rule.source;
                }
                self.stale.get_mut(place).add(rule);
            }
            Task::Unblock { .. } => self.shown_mut(place).has_foreign_rules = true,
        }
    }

    fn listed_rule(&mut self, place: Place, rule: &Rule, now: Instant) {
        let Some(slot) = self.blocks.find(&rule.source) else {
            return self.adopt(place, rule, now);
        };
        let (listing, stage) = (self.shown(place).number, self.stage(slot));
        let is_here = self.place(slot) == place;
        let is_known = self.rule(slot) == *rule;
        let block = self.block_at_mut(slot);
        let is_listed = block.listing == listing;
        let is_in_kernel = is_listed
            || block.renewed.is_some()
            || matches!(stage, Stage::Added | Stage::Standing | Stage::Expired);
        if !stage.is_blocked() {
            if block.comment != rule.comment {
                return self.adopt(place, rule, now);
            }
            // One that we took away, in whatever shape: a reload brought it back.
            self.shown_mut(place).came_back = true;
            return self.stale.get_mut(place).add(rule);
        }
        if is_known && is_here {
            block.listing = listing;
            return;
        }
        if stage == Stage::Wanted && !is_listed {
            if self.is_of_this_boot(rule, now) {
                // The first scan was faster than the first listing: the block of
                // the run before goes on as it is.
                self.adopt(place, rule, now);
                return self.set_stage(slot, Stage::Added);
            }
        } else if is_here && !is_listed && block.comment == rule.comment {
            // The same block in the shape of an earlier version: a reload.
            return self.adopt(place, rule, now);
        } else if (is_listed || !is_here) && self.ends_later(slot, rule) {
            // Of two rules the one that lasts longer stays.
            if is_in_kernel {
                let (at, shorter) = (self.place(slot), self.rule(slot));
                self.stale.get_mut(at).add(&shorter);
            }
            return self.adopt(place, rule, now);
        }
        // An older rule of a blocked source.
        self.stale.get_mut(place).add(rule);
    }

    /// Whether a rule is of this boot and its end lies behind the block's.
    fn ends_later(&self, slot: Slot, rule: &Rule) -> bool {
        let block = self.block_at(slot);
        let facts = Facts::read(&rule.comment).filter(|facts| facts.boot_id == self.boot_id);
        // The end of one of another boot is but a guess.
        let is_guessed = block
            .renewed
            .is_some_and(|renewed| renewed != block.comment);
        let is_later = |end: Option<Instant>| {
            let block_end = block.end;
            block_end.is_some_and(|block_end| end.is_none_or(|end| end > block_end))
        };
        facts.is_some_and(|facts| is_later(facts.end()) || is_guessed)
    }

    fn is_of_this_boot(&self, rule: &Rule, now: Instant) -> bool {
        Facts::read(&rule.comment)
            .is_some_and(|facts| facts.boot_id == self.boot_id && !now.reaches(facts.end()))
    }

    /// A rule of an earlier run, or one put back by another program.
    fn adopt(&mut self, place: Place, rule: &Rule, now: Instant) {
        let mut block = Block {
            since_seconds: now.as_secs(),
            strikes: 1,
            data: Data::Unknown,
            place,
            scope: rule.scope,
            comment: rule.comment,
            listing: self.shown(place).number,
            ..Block::BLANK
        };
        let read = Facts::read(&rule.comment);
        if let Some(facts) = read {
            (block.strikes, block.data) = (facts.strikes, facts.data);
        }
        let mut comment = rule.comment;
        if let Some(ours) = read.filter(|facts| facts.boot_id == self.boot_id) {
            (block.end, block.since_seconds) = (ours.end(), ours.since_seconds);
        } else {
            // Times of another boot mean nothing now: the first length anew.
            block.end = self.end(1, now);
            if !comment.is_none() {
                comment = block.facts(self.boot_id).rewrite(&comment);
            }
        }
        if comment != rule.comment || rule.scope != rule.scope.renewed() {
            block.renewed = Some(comment);
        }
        let stage = if now.reaches(block.end) {
            Stage::Expired
        } else if block.renewed.is_some() {
            Stage::Lost
        } else {
            Stage::Standing
        };
        self.adopted += u64::from(self.put(rule.source, &block, stage).is_ok());
    }

    /// The listing is whole: what it lacks was lost to a reload if more than
    /// rules is missing, else taken away by an operator.
    pub(super) fn reconcile(&mut self, place: Place, now: Instant) {
        let shown = *self.shown(place);
        let has_blocks = self.has_blocks(place);
        let table = self.table_mut(place);
        table.is_torn = shown.is_torn;
        let is_jump_lost =
            place != Place::Sets && shown.hooks.iter().any(|hook| hook.first_jump == 0);
        let is_lost = !shown.has_chain || is_jump_lost || shown.is_torn;
        let is_reload = table.chain.exists() && is_lost || shown.came_back;
        table.next_listing = Some(now.after(VERIFY_PERIOD));
        table.last_listing = Some(now);
        table.state = State::Listed;
        table.chain = match (shown.has_chain, shown.has_foreign_rules) {
            (false, _) if table.chain == Chain::Never => Chain::Never,
            (false, _) => Chain::Gone,
            (true, false) => Chain::Ours,
            (true, true) => Chain::Shared,
        };
        for (jump, hook) in table.jumps.iter_mut().zip(shown.hooks) {
            jump.seen(hook.first_jump, hook.jumps, has_blocks, now);
        }
        if is_reload && has_blocks {
            self.repairs += 1;
            // What flushed our own table may have flushed the chains.
            let is_chain = |other: &Place| place == Place::Sets && *other != place;
            for chain in Place::ALL.into_iter().filter(is_chain) {
                let chain = self.table_mut(chain);
                chain.next_listing = chain.next_listing.map(|_| now);
            }
        }
        let stages = &[
            Stage::Added,
            Stage::Standing,
            Stage::Expired,
            Stage::Lost,
            Stage::Wanted,
        ];
        let mut walk = walk(stages, Some(place));
        while let Some(slot) = self.step(&mut walk) {
            self.reconcile_block(slot, walk.stage, shown.number, is_reload, now);
        }
    }

    fn reconcile_block(
        &mut self,
        slot: Slot,
        stage: Stage,
        listing: u32,
        is_reload: bool,
        now: Instant,
    ) {
        let is_absorbed = stage == Stage::Standing && self.is_absorbed(slot);
        let block = self.block_at_mut(slot);
        let is_listed = block.listing == listing;
        if is_absorbed && is_listed {
            // Both were adopted, or this one was on its way into another place.
            return self.expire_block(slot, EndReason::Widened);
        }
        let reason = block.end_reason;
        match (stage, is_listed) {
            (Stage::Added | Stage::Standing, false) if is_reload => {
                self.set_stage(slot, Stage::Lost);
            }
            (Stage::Added | Stage::Standing, false) => {
                // The kernel ends an element by itself, some milliseconds before
                // we do.
                let is_over = now.after(EARLY_END).reaches(block.end);
                let reason = if is_over {
                    EndReason::Expired
                } else {
                    EndReason::Operator
                };
                self.end_block(slot, reason, now);
            }
            (Stage::Expired, false) => self.end_block(slot, reason, now),
            (Stage::Lost, false) => block.renew(),
            (Stage::Lost, true) if block.renewed.is_none() => {
                self.set_stage(slot, Stage::Standing);
            }
            (Stage::Wanted, true) => self.set_stage(slot, Stage::Added),
            (Stage::Added | Stage::Standing | Stage::Expired | Stage::Lost, true)
            | (Stage::Wanted, false) => {}
            // Not walked: a change is under way, or the block is over.
            (Stage::Held | Stage::Adding | Stage::Restoring | Stage::Removing, _)
            | (Stage::Removed | Stage::Refused | Stage::Ended, _) => {}
        }
    }
}

/// Keeps the first rules above a jump, to name them.
fn note_above(above: &mut Text<ABOVE_MAX>, line: &[u8]) {
    if !above.is_empty() {
        above.put(b"; ");
    }
    for byte in line {
        let is_printable = (b' '..=b'~').contains(byte);
        above.put_byte(if is_printable { *byte } else { b'?' });
    }
}
