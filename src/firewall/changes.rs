//! What is to be done next in one place, and what came of it for the blocks it
//! was about: the same whether a child does it or netlink.

use heapless::Vec;

use crate::address::Network;
use crate::host::{Host, Knowledge, Protection};
use crate::kernel::Errno;
use crate::limits::{CHAIN_RULES_MAX, FACTS_WAIT, RETRY_FIRST};
use crate::nf_tables::Set;
use crate::table::{Blank, Slot};
use crate::text::TextView;
use crate::time::{Instant, nearest};

use super::comment::Comment;
use super::explanation::Explanation;
use super::filter_table::{Chain, Lacks, State};
use super::iptables::{Rule, Scope, Tool};
use super::jump::Jump;
use super::place::Place;
use super::{EndReason, Firewall, Refusal, Shown, Stage, Task, walk};

/// What is done in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Nothing. First, so that it is all zero bytes.
    None,
    /// The preferred tool is asked for its flavour.
    Version,
    List,
    /// Changes of blocks, and of what belongs to no block: see
    /// `FilterTable::batch`.
    Change,
    /// The chain is taken away, or the table with the sets.
    RemoveChain,
}

/// What a batch of changes is about.
#[derive(Clone, Copy)]
pub(super) struct Contents {
    /// So many changes of blocks, and of what belongs to no block.
    pub(super) blocks: u32,
    pub(super) housekeeping: u32,
    /// Jumps, or all but the elements of the sets.
    pub(super) puts_frame: bool,
}

impl Contents {
    pub(super) const NONE: Self = Self {
        blocks: 0,
        housekeeping: 0,
        puts_frame: false,
    };

    pub(super) fn is_empty(self) -> bool {
        self.blocks + self.housekeeping == 0
    }

    /// Whether it is one block's change alone.
    pub(super) fn is_one_block(self) -> bool {
        (self.blocks, self.housekeeping) == (1, 0)
    }
}

/// Changes of one place under construction: all of them, or none.
pub(super) trait Changes {
    /// Whether two more fit.
    fn has_room(&self) -> bool;
    /// Puts a block in.
    fn add(&mut self, rule: &Rule);
    /// Takes one out.
    fn remove(&mut self, rule: &Rule);
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// The program is not there.
    Missing,
    /// It could not be started.
    Unstarted,
    /// It exited with this status.
    Status(u8),
    /// It was ended by this signal.
    Signal(u8),
    /// It ran past its deadline.
    Deadline,
    /// nf_tables refused.
    Error(Errno),
}

impl FailureReason {
    /// Whether there is no such program here, or none that runs.
    pub(super) fn is_absence(self) -> bool {
        matches!(self, Self::Missing | Self::Unstarted)
    }
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub reason: FailureReason,
    /// The command's tool; `None` where nf_tables was spoken to.
    pub tool: Option<Tool>,
    /// The first words it wrote on its standard error, printable bytes only.
    pub explanation: Explanation,
    /// The source whose block it was about, if just one's.
    pub source: Option<Network>,
    /// Whether it was a listing, else a restore batch.
    pub is_listing: bool,
    /// Whether something was to be added, and not merely listed or removed.
    pub is_addition: bool,
    /// The match that rules go without from now on; empty for none.
    pub leaves_out: &'static [u8],
    /// Whether it was the first of its kind: later ones are counted only.
    pub is_first: bool,
}

impl Failure {
    /// `iptables`, `ip6tables-legacy`, `nf_tables` …
    #[inline(never)]
    pub fn write_name(&self, out: &mut TextView) {
        match self.tool {
            Some(tool) => tool.write_name(out),
            None => out.put(b"nf_tables"),
        }
    }
}

/// Unwanted rules taken away at a time.
const STALE_RULES: usize = 64;

/// Rules of ours that the last listing of a place showed and no block stands for; what
/// does not fit shows up again.
pub(super) struct StaleRules {
    rules: Vec<Rule, STALE_RULES>,
    /// There are more: list again when these are gone.
    pub(super) has_more: bool,
}

impl StaleRules {
    pub(super) const NONE: Self = Self {
        rules: Vec::new(),
        has_more: false,
    };

    #[inline(never)]
    pub(super) fn add(&mut self, rule: &Rule) {
        self.has_more |= self.rules.push(*rule).is_err();
    }

    fn is_empty(&self) -> bool {
        self.rules.is_empty() && !self.has_more
    }

    /// Writes nothing where there are none, as nearly always: each side's lie on
    /// a page of their own.
    fn clear(&mut self) {
        if !self.is_empty() {
            self.rules.clear();
            self.has_more = false;
        }
    }
}

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// Whether a place is to be listed before anything else.
    pub(super) fn is_listing_due(&self, place: Place, now: Instant) -> bool {
        let table = self.table(place);
        table.state != State::Listed && self.task != Task::End
            || table.chain != Chain::Never && now.reaches(table.next_listing)
    }

    pub(super) fn begin_listing(&mut self, place: Place) {
        self.listing = self.listing.wrapping_add(1);
        self.listing_place = place;
        *self.shown_mut(place) = Shown {
            number: self.listing,
            has_foreign_rules: self.task.keeps_chain(),
            ..Shown::NOTHING
        };
        // Only --list fills it: else its page is not written to.
        if !self.listing_ours.is_empty() {
            self.listing_ours.clear();
        }
        self.stale.get_mut(place).clear();
    }

    /// Whether our chain is there, empty and of no use any more.
    pub(super) fn may_remove_chain(&self, place: Place) -> bool {
        let table = self.table(place);
        table.state == State::Listed
            && table.chain == Chain::Ours
            && !self.has_stale_rules(place)
            && !self.has_blocks(place)
    }

    pub(super) fn has_stale_rules(&self, place: Place) -> bool {
        !self.stale.get(place).is_empty()
    }

    /// Whether a jump is missing or out of place, or anything but elements,
    /// although there are blocks.
    pub(super) fn lacks_frame(&self, place: Place) -> bool {
        let table = self.table(place);
        let mut jumps = table.jumps.iter();
        let lacks = if place == Place::Sets {
            table.is_torn
        } else {
            jumps.any(|jump| jump.position == 0 || jump.moves)
        };
        table.chain.exists() && lacks && self.has_blocks(place)
    }

    /// Whether there may be changes of one place; where there are none, all went
    /// through that were tried one by one.
    pub(super) fn has_changes(&mut self, place: Place) -> bool {
        let has_changes = self.has_stale_rules(place)
            || self.lacks_frame(place)
            || self.step(&mut walk(&Stage::DUE, Some(place))).is_some();
        if !has_changes {
            self.table_mut(place).one_by_one = false;
        }
        has_changes
    }

    /// Puts all changes of one place into `changes`, and into the table how many
    /// they are. What is removed comes first, so that a source is never in two
    /// rules; one by one, blocks come first.
    pub(super) fn put_changes(
        &mut self,
        changes: &mut dyn Changes,
        place: Place,
        host: &Host,
        now: Instant,
    ) {
        let room = if place == Place::Sets {
            u32::MAX
        } else {
            self.make_room(place, now)
        };
        let table = self.table(place);
        let one_by_one = table.one_by_one;
        let may_keep_house = table.housekeeping.is_over(now);
        let mut housekeeping = 0;
        if may_keep_house && !one_by_one {
            housekeeping += self.remove_stale_rules(changes, place, STALE_RULES);
        }
        let most = if one_by_one { 1 } else { u32::MAX };
        let (mut blocks, mut added) = (0, 0);
        let mut walk = walk(&Stage::DUE, Some(place));
        while blocks < most
            && changes.has_room()
            && let Some(slot) = self.step(&mut walk)
        {
            let is_new = walk.stage == Stage::Wanted;
            if is_new && added >= room {
                break;
            }
            let one = u32::from(self.add_change(changes, slot, place, host, now));
            added += one * u32::from(is_new);
            blocks += one;
        }
        if may_keep_house && one_by_one && blocks == 0 {
            housekeeping += self.remove_stale_rules(changes, place, 1);
        }
        let table = self.table_mut(place);
        table.batch = Contents {
            blocks,
            housekeeping,
            puts_frame: false,
        };
        table.one_by_one &= !table.batch.is_empty();
    }

    /// Ends the blocks with least time left where a chain would hold more rules
    /// than is good for other traffic; how many new ones it takes then.
    fn make_room(&mut self, place: Place, now: Instant) -> u32 {
        let wanted = self.count_due(Stage::Wanted, place, now);
        let going = self.count_due(Stage::Expired, place, now);
        let rules = self.table(place).rules.saturating_sub(going);
        // What an earlier version left stays.
        let excess = (rules + wanted).saturating_sub(CHAIN_RULES_MAX as u32);
        let mut room = (CHAIN_RULES_MAX as u32).saturating_sub(rules);
        for _ in 0..excess.min(wanted) {
            let Some(slot) = self.first_to_end(place) else {
                break;
            };
            room += 1;
            self.expire_block(slot, EndReason::Evicted);
        }
        room.max(1)
    }

    /// How many blocks in that stage may be changed now, as far as that matters.
    #[inline(never)]
    fn count_due(&self, stage: Stage, place: Place, now: Instant) -> u32 {
        let mut count = 0;
        let stages = [stage];
        let mut walk = walk(&stages, Some(place));
        while let Some(slot) = self.step(&mut walk) {
            count += u32::from(self.block_at(slot).retry.is_over(now));
            if count >= STALE_RULES as u32 {
                break;
            }
        }
        count
    }

    /// The block with least time left.
    fn first_to_end(&self, place: Place) -> Option<Slot> {
        let (mut first, mut least) = (None, u64::MAX);
        let mut walk = walk(&[Stage::Standing], Some(place));
        while let Some(slot) = self.step(&mut walk) {
            let end = self.block_at(slot).end.map_or(u64::MAX, Instant::as_secs);
            if first.is_none() || end < least {
                (first, least) = (Some(slot), end);
            }
        }
        first
    }

    /// Puts one block's change into `changes`. This is the last look at an
    /// address before the kernel: whatever is protected by now is refused.
    #[inline(never)]
    fn add_change(
        &mut self,
        changes: &mut dyn Changes,
        slot: Slot,
        place: Place,
        host: &Host,
        now: Instant,
    ) -> bool {
        self.complete(slot, place, host);
        if !self.block_at(slot).retry.is_over(now) {
            return false;
        }
        let stage = self.stage(slot);
        let is_addition = stage != Stage::Expired;
        let protection = host.protected(*self.source_at(slot));
        if let Some(protection) = protection.filter(|_| is_addition) {
            if protection != Protection::HostUnknown || !self.may_wait(slot, host, now) {
                self.refuse(slot, Refusal::Protected(protection));
            }
            return false;
        }
        let (mut rule, block) = (self.rule(slot), self.block_at(slot));
        if !is_addition || block.renewed.is_some() {
            changes.remove(&rule);
        }
        if let Some(comment) = block.renewed {
            (rule.comment, rule.scope) = (comment, rule.scope.renewed());
        }
        if is_addition {
            changes.add(&rule);
        }
        let stage = match stage {
            Stage::Expired => Stage::Removing,
            Stage::Lost => Stage::Restoring,
            _ => Stage::Adding,
        };
        self.set_stage(slot, stage);
        true
    }

    /// Whether a block waits until the host is known: one that stood as long as
    /// that takes, a new one no longer than its evidence counts, and only where
    /// that is under way.
    fn may_wait(&mut self, slot: Slot, host: &Host, now: Instant) -> bool {
        let (stage, window) = (self.stage(slot), self.window);
        let block = self.block_at_mut(slot);
        if stage != Stage::Wanted {
            block.retry.hold(now.after(RETRY_FIRST));
            return true;
        }
        block.retry.hold(now.after(FACTS_WAIT));
        let age = now.since(Instant::from_secs(block.since_seconds));
        host.knowledge() == Knowledge::Awaited && age <= window
    }

    /// Last changes to a new rule: what is known of the host by now, and without
    /// what the kernel refuses.
    #[inline(never)]
    fn complete(&mut self, slot: Slot, place: Place, host: &Host) {
        let Lacks {
            addrtype, comment, ..
        } = self.table(place).lacks;
        if self.stage(slot) != Stage::Wanted {
            return;
        }
        let (source, boot_id) = (*self.source_at(slot), self.boot_id);
        let has_set = place != Place::Sets || Set::of(source, true).is_some();
        let block = self.block_at_mut(slot);
        block.place = place;
        block.scope = if host.is_on_link(source) && !addrtype && has_set {
            Scope::ToHost
        } else {
            Scope::Everything
        };
        if comment {
            block.comment = Comment::BLANK;
        } else if block.comment.is_none() {
            // What a chain without comments refused, the sets take only with one.
            block.comment = block.facts(boot_id).write(&Vec::new());
        }
    }

    fn remove_stale_rules(&self, changes: &mut dyn Changes, place: Place, most: usize) -> u32 {
        let mut removed = 0;
        for rule in self.stale.get(place).rules.iter().take(most) {
            changes.remove(rule);
            removed += 1;
        }
        removed
    }

    #[inline(never)]
    pub(super) fn refuse(&mut self, slot: Slot, refusal: Refusal) {
        let block = self.block_at_mut(slot);
        block.refusal = refusal;
        block.strikes = block.strikes.saturating_sub(1);
        self.set_stage(slot, Stage::Refused);
    }

    #[inline(never)]
    pub(super) fn succeeded(&mut self, job: Job, place: Place, now: Instant) {
        let has_more_stale = self.stale.get(place).has_more;
        let table = self.table_mut(place);
        match job {
            Job::None | Job::Version => {}
            Job::List => {
                table.retry.succeed();
                self.reconcile(place, now);
                if self.task.is_single_pass() {
                    self.table_mut(place).next_listing = None;
                }
            }
            Job::RemoveChain => {
                table.housekeeping.succeed();
                table.chain = Chain::Gone;
                table.jumps.iter_mut().for_each(Jump::was_removed);
            }
            Job::Change => {
                let housekeeping = table.batch.housekeeping;
                table.changed(now);
                if housekeeping > 0 {
                    table.housekeeping.succeed();
                    if has_more_stale || table.one_by_one {
                        // What is left of the stale rules shows up again.
                        table.invalidate();
                    }
                    self.removed += u64::from(housekeeping);
                    self.stale.get_mut(place).clear();
                }
                self.settle(place, None, now);
            }
        }
    }

    /// Every block that a batch was about moves on, or back after a failure.
    #[inline(never)]
    pub(super) fn settle(&mut self, place: Place, mut failure: Option<&mut Failure>, now: Instant) {
        let stages = &[Stage::Removing, Stage::Restoring, Stage::Adding];
        let mut walk = walk(stages, Some(place));
        while let Some(slot) = self.step(&mut walk) {
            let from = walk.stage;
            let to = match failure.as_deref_mut() {
                Some(failure) => {
                    self.take_back(slot, from, place, failure, now);
                    match from {
                        Stage::Removing => Stage::Expired,
                        Stage::Restoring => Stage::Lost,
                        _ => Stage::Wanted,
                    }
                }
                None => {
                    self.confirm(slot, from, now);
                    match from {
                        Stage::Removing => Stage::Removed,
                        Stage::Restoring => Stage::Standing,
                        _ => Stage::Added,
                    }
                }
            };
            self.set_stage(slot, to);
        }
    }

    /// The change is in the kernel.
    fn confirm(&mut self, slot: Slot, from: Stage, now: Instant) {
        let block = self.block_at_mut(slot);
        block.failures = 0;
        block.confirmed = Some(now);
        block.renew();
        if from == Stage::Removing {
            block.ended = Some(now);
        } else {
            let end = block.end;
            self.next_end = nearest(self.next_end, end);
        }
    }

    /// The change is not. A command of a single block's is that block's failure,
    /// which makes it wait longer each time, unless it is to be tried at another
    /// place now.
    fn take_back(
        &mut self,
        slot: Slot,
        from: Stage,
        place: Place,
        failure: &mut Failure,
        now: Instant,
    ) {
        failure.is_addition |= from != Stage::Removing;
        if !self.table(place).batch.is_one_block() {
            return;
        }
        let source = *self.source_at(slot);
        let may_move =
            from == Stage::Adding && failure.tool.is_some() && self.can_use_sets(source.family());
        // A tool that is gone is no matter of this block.
        if !may_move || !failure.reason.is_absence() {
            failure.source = Some(source);
        }
        if !may_move {
            let block = self.block_at_mut(slot);
            block.failures = block.failures.saturating_add(1);
            block.retry.fail(now);
            failure.is_first = block.failures == 1;
        }
    }

    pub(super) fn failure_of(&self, job: Job, place: Place, reason: FailureReason) -> Failure {
        let tool = place.family().map(|family| self.table(place).tool(family));
        Failure {
            reason,
            tool,
            source: None,
            is_listing: job == Job::List,
            is_addition: false,
            explanation: if tool.is_some() {
                self.explanation.clone()
            } else {
                Explanation::new()
            },
            leaves_out: b"",
            is_first: false,
        }
    }

    #[inline(never)]
    pub(super) fn failed(
        &mut self,
        job: Job,
        place: Place,
        reason: FailureReason,
        now: Instant,
    ) -> Failure {
        let mut failure = self.failure_of(job, place, reason);
        self.settle(place, Some(&mut failure), now);
        let is_single_pass = self.task.is_single_pass();
        let may_move = place
            .family()
            .is_some_and(|family| self.can_use_sets(family));
        let table = self.table_mut(place);
        table.invalidate();
        if table.learns_to_lack_wait(&failure, is_single_pass) {
            return failure;
        }
        table.learn_to_lack_match(&mut failure);
        failure.is_first |= if is_single_pass {
            table.failed_in_pass(job, place, reason, now)
        } else {
            table.failed(job, place, &failure, may_move, now)
        };
        failure
    }
}
