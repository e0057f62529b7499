//! What a listing says, against what we want: adoption, repair, and what an
//! operator took away.

use crate::detector::Data;
use crate::limits::VERIFY_PERIOD;
use crate::table::{Blank, Full, Slot};
use crate::time::Instant;

use super::comment::Facts;
use super::iptables::{Hook, Listed, Rule};
use super::{Block, EndReason, Firewall, MOVE_MEMORY, Side, Stage};

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// Takes in one line of the listing.
    pub(super) fn listed(&mut self, line: &[u8], listed: Listed, now: Instant) {
        match listed {
            Listed::Chain => self.listed.has_chain = true,
            Listed::HookRule(hook, is_jump) => {
                let (Some(count), Some(jump), Some(jump_count)) = (
                    self.hook_rules.get_mut(hook as usize),
                    self.listed.jumps.get_mut(hook as usize),
                    self.listed.jump_counts.get_mut(hook as usize),
                ) else {
                    return;
                };
                *count += 1;
                *jump_count += u32::from(is_jump);
                if is_jump && *jump == 0 {
                    *jump = *count;
                } else if *jump == 0 && *count <= 3 {
                    self.note_above(line);
                }
            }
            Listed::Ours(rule) => self.listed_rule(rule, now),
            // Where our rules cannot have comments they look like that.
            Listed::Plain(rule) if self.side(rule.source.is_ipv6()).without_comment => {
                self.listed_rule(rule, now);
            }
            Listed::Plain(_) | Listed::Foreign => self.listed.has_foreign_rules = true,
            Listed::Other => {}
        }
    }

    fn listed_rule(&mut self, rule: Rule, now: Instant) {
        let Some(slot) = self.blocks.find(&rule.source) else {
            return self.adopt(rule, now);
        };
        let listing = self.listing;
        let stage = self.stage(slot);
        let is_blocked = stage.is_blocked();
        let Some(block) = self.blocks.value_mut(slot) else {
            return;
        };
        let is_known = block.comment == rule.comment;
        let is_listed_twice = !is_known && block.listing == listing;
        if is_blocked && is_listed_twice && self.ends_later(slot, &rule) {
            // Of two rules the one that lasts longer stays.
            if let Some(shorter) = self.rule(slot) {
                self.add_stray(shorter);
            }
            return self.adopt(rule, now);
        }
        let Some(block) = self.blocks.value_mut(slot) else {
            return;
        };
        if is_blocked && is_known {
            block.listing = listing;
        } else if stage == Stage::Wanted && self.is_of_this_boot(&rule, now) {
            // The first scan was faster than the first listing: the block of
            // the run before goes on as it is.
            self.adopt(rule, now);
            self.set_stage(slot, Stage::Added);
        } else if is_blocked || is_known {
            // An older rule of a blocked source, or one that we took away: a
            // reload brought it back.
            self.came_back |= is_known;
            self.add_stray(rule);
        } else {
            self.adopt(rule, now);
        }
    }

    /// Whether a rule is of this boot and its end lies behind the block's.
    fn ends_later(&self, slot: Slot, rule: &Rule) -> bool {
        let end = self
            .blocks
            .value(slot)
            .map_or(Instant::NEVER, |block| block.end);
        let is_renewed = self
            .blocks
            .value(slot)
            .is_some_and(|block| block.renewed.is_some());
        Facts::read(&rule.comment).is_some_and(|facts| {
            let lasts = facts.end_seconds == 0 || Instant::from_secs(facts.end_seconds) > end;
            facts.boot_id == self.boot_id && (lasts || is_renewed)
        })
    }

    fn is_of_this_boot(&self, rule: &Rule, now: Instant) -> bool {
        Facts::read(&rule.comment).is_some_and(|facts| {
            let is_over = facts.end_seconds != 0 && Instant::from_secs(facts.end_seconds) <= now;
            facts.boot_id == self.boot_id && !is_over
        })
    }

    /// A rule of an earlier run, or one put back by somebody.
    fn adopt(&mut self, rule: Rule, now: Instant) {
        let slot = match self.blocks.find(&rule.source) {
            Some(slot) => slot,
            None => match self.new_slot(rule.source) {
                Ok(slot) => slot,
                Err(Full) => return,
            },
        };
        self.adopted += 1;
        let (block, stage) = self.adopted_block(&rule, now);
        if let Some(value) = self.blocks.value_mut(slot) {
            *value = block;
        }
        self.set_stage(slot, stage);
        self.next_end = self.next_end.min(block.end);
    }

    fn adopted_block(&self, rule: &Rule, now: Instant) -> (Block, Stage) {
        let facts = Facts::read(&rule.comment);
        let ours = facts.filter(|facts| facts.boot_id == self.boot_id);
        if let Some(facts) = ours {
            let end = match facts.end_seconds {
                0 => Instant::NEVER,
                seconds => Instant::from_secs(seconds),
            };
            let stage = if end <= now {
                Stage::Expired
            } else {
                Stage::Standing
            };
            let block = Block {
                end,
                ..self.adopted_facts(rule, facts)
            };
            return (block, stage);
        }
        // Times of another boot mean nothing now: the first length anew.
        let (strikes, data) = facts.map_or((1, Data::Unknown), |facts| (facts.strikes, facts.data));
        let end = self.end(1, now);
        let new = self.facts(strikes, end, now.as_secs(), data);
        let block = Block {
            end,
            renewed: (!rule.comment.is_none()).then(|| new.rewrite(&rule.comment)),
            ..self.adopted_facts(rule, new)
        };
        let stage = if block.renewed.is_some() {
            Stage::Lost
        } else {
            Stage::Standing
        };
        (block, stage)
    }

    fn adopted_facts(&self, rule: &Rule, facts: Facts) -> Block {
        Block {
            since_seconds: facts.since_seconds,
            strikes: facts.strikes,
            data: facts.data,
            host_only: rule.host_only,
            comment: rule.comment,
            listing: self.listing,
            ..Block::BLANK
        }
    }

    /// The listing is whole: what it lacks was lost to a reload if more than
    /// rules is missing, else taken away by an operator.
    pub(super) fn reconcile(&mut self, is_ipv6: bool, now: Instant) {
        let before = *self.side(is_ipv6);
        let came_back = self.came_back;
        let is_jump_lost = self.listed.jumps.contains(&0);
        let is_reload = before.has_chain && (!self.listed.has_chain || is_jump_lost) || came_back;
        if is_reload && self.has_blocks(is_ipv6) {
            self.repairs += 1;
        }
        let side = Side {
            next_listing: now.after(VERIFY_PERIOD),
            last_listing: now,
            has_chain: self.listed.has_chain,
            had_chain: before.had_chain || self.listed.has_chain,
            has_foreign_rules: self.listed.has_foreign_rules,
            jumps: self.listed.jumps,
            jump_counts: self.listed.jump_counts,
            is_known: true,
            backoff: before.backoff,
            ..before
        };
        *self.side_mut(is_ipv6) = side;
        self.watch_jumps(is_ipv6, now);
        for stage in [Stage::Added, Stage::Standing] {
            self.for_each(stage, is_ipv6, |firewall, slot| {
                if firewall.is_listed(slot) {
                    return;
                }
                if is_reload {
                    firewall.set_stage(slot, Stage::Lost);
                } else {
                    firewall.end_block(slot, EndReason::Operator, now);
                }
            });
        }
        self.for_each(Stage::Expired, is_ipv6, |firewall, slot| {
            if !firewall.is_listed(slot) {
                let reason = firewall.blocks.value(slot).map(|block| block.end_reason);
                firewall.end_block(slot, reason.unwrap_or_default(), now);
            }
        });
        self.for_each(Stage::Lost, is_ipv6, |firewall, slot| {
            let is_listed = firewall.is_listed(slot);
            let Some(block) = firewall.blocks.value_mut(slot) else {
                return;
            };
            match (is_listed, block.renewed) {
                (false, Some(comment)) => (block.comment, block.renewed) = (comment, None),
                (true, None) => firewall.set_stage(slot, Stage::Standing),
                (true, Some(_)) | (false, None) => {}
            }
        });
        self.for_each(Stage::Wanted, is_ipv6, |firewall, slot| {
            if firewall.is_listed(slot) {
                firewall.set_stage(slot, Stage::Added);
            }
        });
    }

    /// A jump that is no longer first is moved back, unless it was moved back
    /// lately: whoever wants to be first, we do not fight.
    fn watch_jumps(&mut self, is_ipv6: bool, now: Instant) {
        let has_blocks = self.has_blocks(is_ipv6);
        for (index, hook) in Hook::ALL.into_iter().enumerate() {
            let side = self.side_mut(is_ipv6);
            let (Some(position), Some(moves), Some(moved)) = (
                side.jumps.get(index),
                side.moves.get_mut(index),
                side.moved.get_mut(index),
            ) else {
                return;
            };
            match *moved {
                _ if *position <= 1 || !has_blocks => {
                    *moves = false;
                    *moved = moved.filter(|moved_at| *moved_at != Instant::NEVER);
                }
                // Said already.
                Some(Instant::NEVER) => {}
                Some(moved_at) if now.since(moved_at) < MOVE_MEMORY => {
                    *moved = Some(Instant::NEVER);
                    (self.is_staying, self.staying) = (true, (hook, is_ipv6));
                }
                _ => *moves = true,
            }
        }
    }

    /// Keeps the first rules above a jump, to name them.
    fn note_above(&mut self, line: &[u8]) {
        if !self.above.is_empty() {
            self.above.put(b"; ");
        }
        for byte in line {
            let is_printable = (b' '..=b'~').contains(byte);
            self.above.put_byte(if is_printable { *byte } else { b'?' });
        }
    }

    fn is_listed(&self, slot: Slot) -> bool {
        self.blocks
            .value(slot)
            .is_some_and(|block| block.listing == self.listing)
    }
}
