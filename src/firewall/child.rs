//! The child: what it is to do next, and what its end means for the blocks it
//! was about.

use core::mem;

use heapless::Vec;

use crate::address::{Family, Network};
use crate::host::{Host, Knowledge, Protection};
use crate::kernel::{Exit, Invocation};
use crate::limits::{CHILD_DEADLINE, CHILD_GRACE, FACTS_WAIT, RETRY_FIRST};
use crate::table::{Blank, Slot};
use crate::time::{Instant, nearest};

use super::comment::Comment;
use super::explanation::Explanation;
use super::filter_table::{Chain, Lacks, State};
use super::iptables::{Batch, Flavour, Hook, Program, Rule, Scope, Tool};
use super::jump::Jump;
use super::place::Place;
use super::{Firewall, MINUTE, Refusal, Shown, Stage, Task};

/// What the running child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// There is none. First, so that it is all zero bytes.
    None,
    /// Asks the preferred tool for its flavour.
    Version,
    List,
    /// So many changes of blocks, and of what belongs to no block.
    Change {
        blocks: u32,
        housekeeping: u32,
        puts_jumps: bool,
    },
    RemoveChain,
}

impl Job {
    /// How many changes of blocks it makes, and how many others.
    pub(super) fn changes(self) -> Option<(u32, u32)> {
        match self {
            Self::Change {
                blocks,
                housekeeping,
                ..
            } => Some((blocks, housekeeping)),
            Self::None | Self::Version | Self::List | Self::RemoveChain => None,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Running {
    pub(super) job: Job,
    pub(super) place: Place,
    /// When it is overdue, or once more after it was asked to end.
    pub(super) deadline: Option<Instant>,
    pub(super) was_asked: bool,
}

impl Running {
    pub(super) const NONE: Self = Self {
        job: Job::None,
        place: Place::preferred(Family::V4),
        deadline: None,
        was_asked: false,
    };
}

/// How a child that is past its deadline shall be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// SIGTERM.
    Ask,
    /// SIGKILL.
    Force,
}

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// The program could not be started: not there or not executable.
    Missing,
    /// It exited with this status.
    Status(u8),
    /// It was ended by this signal.
    Signal(u8),
    /// It ran past its deadline.
    Deadline,
}

/// Jumps taken away at a time; more of them are no accident.
const JUMPS: u32 = 100;

/// Unwanted rules taken away at a time.
const STALE_RULES: usize = 64;

/// Rules of ours that the last listing of a place showed and no block stands for; what
/// does not fit shows up again.
pub(super) struct StaleRules {
    rules: Vec<Rule, STALE_RULES>,
    /// There are more: list again when these are gone.
    has_more: bool,
}

impl StaleRules {
    pub(super) const NONE: Self = Self {
        rules: Vec::new(),
        has_more: false,
    };

    pub(super) fn add(&mut self, rule: Rule) {
        self.has_more |= self.rules.push(rule).is_err();
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

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub reason: FailureReason,
    /// The command's tool.
    pub tool: Tool,
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

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// Puts the next command into `invocation`, if one is due. The caller
    /// starts it at once and reports back through `output`, `errors` and
    /// `finished`.
    #[inline(never)]
    pub fn command(&mut self, invocation: &mut Invocation, host: &Host, now: Instant) -> bool {
        if !self.is_enabled() || self.running.job != Job::None {
            return false;
        }
        self.expire(now);
        // They take turns, so that one that keeps failing never starves another.
        for turn in self.turn..self.turn + Place::COUNT {
            let place = Place::at(turn);
            if !self.is_present(place) {
                continue;
            }
            if let Some(job) = self.prepare(invocation, place, host, now) {
                self.turn = (turn + 1) % Place::COUNT;
                self.running = Running {
                    job,
                    place,
                    deadline: Some(now.after(CHILD_DEADLINE)),
                    was_asked: false,
                };
                self.explanation.clear();
                return true;
            }
        }
        false
    }

    fn prepare(
        &mut self,
        invocation: &mut Invocation,
        place: Place,
        host: &Host,
        now: Instant,
    ) -> Option<Job> {
        let table = self.table(place);
        if table.is_given_up || !table.retry.is_over(now) {
            return None;
        }
        let tool = table.tool(place.family);
        if table.state == State::Unfound && self.task != Task::End {
            tool.version(invocation);
            self.lines.clear();
            self.flavour = Flavour::Legacy;
            return Some(Job::Version);
        }
        let may_keep_house = table.housekeeping.is_over(now);
        let is_due = table.state != State::Listed && self.task != Task::End
            || table.chain != Chain::Never && now.reaches(table.next_listing);
        if is_due {
            tool.list(invocation);
            self.lines.clear();
            self.listing = self.listing.wrapping_add(1);
            self.shown = Shown {
                has_foreign_rules: self.task.keeps_chain(),
                ..Shown::NOTHING
            };
            // Only --list fills it: else its page is not written to.
            if !self.listing_ours.is_empty() {
                self.listing_ours.clear();
            }
            self.stale.get_mut(place).clear();
            self.above.iter_mut().for_each(|above| above.clear());
            return Some(Job::List);
        }
        if self.task != Task::End
            && let Some(job) = self.change(invocation, place, host, now)
        {
            return Some(job);
        }
        if may_keep_house && self.may_remove_chain(place) {
            self.remove_chain(invocation, place);
            return Some(Job::RemoveChain);
        }
        None
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

    /// Whether a jump is missing or out of place although there are blocks.
    pub(super) fn lacks_jump(&self, place: Place) -> bool {
        let table = self.table(place);
        let mut jumps = table.jumps.iter();
        let lacks = jumps.any(|jump| jump.position == 0 || jump.moves);
        table.chain.exists() && lacks && self.has_blocks(place)
    }

    /// All changes of one place in one batch. What it removes comes first, so
    /// that a source is never in two rules; one by one, blocks come first.
    fn change(
        &mut self,
        invocation: &mut Invocation,
        place: Place,
        host: &Host,
        now: Instant,
    ) -> Option<Job> {
        let table = self.table(place);
        let (has_chain, one_by_one) = (table.chain.exists(), table.one_by_one);
        let may_keep_house = table.housekeeping.is_over(now);
        let mut batch = Batch::new(invocation, table.tool(place.family));
        if !has_chain {
            batch.make_chain();
        }
        let mut housekeeping = 0;
        if may_keep_house && !one_by_one {
            housekeeping += self.remove_stale_rules(&mut batch, place, STALE_RULES);
        }
        let most = if one_by_one { 1 } else { u32::MAX };
        let mut blocks = 0;
        for stage in [Stage::Expired, Stage::Lost, Stage::Wanted] {
            let mut walk = self.walk(stage, Some(place));
            while let Some(slot) = self.step(&mut walk) {
                let is_held_back = stage == Stage::Wanted && self.is_rate_spent(now);
                if blocks >= most || !batch.has_room() || is_held_back {
                    break;
                }
                blocks += u32::from(self.add_change(&mut batch, slot, place, host, now));
            }
        }
        if may_keep_house && one_by_one && blocks == 0 {
            housekeeping += self.remove_stale_rules(&mut batch, place, 1);
        }
        let is_alone = one_by_one && blocks + housekeeping > 0;
        let has_jump_to_do = may_keep_house && self.lacks_jump(place) && !is_alone;
        if blocks == 0 && housekeeping == 0 && !has_jump_to_do {
            self.table_mut(place).one_by_one = false;
            return None;
        }
        let puts_jumps = has_jump_to_do || !has_chain;
        if puts_jumps {
            housekeeping += u32::from(has_chain);
            put_jumps(&mut batch, &self.table(place).jumps);
        }
        batch.commit();
        Some(Job::Change {
            blocks,
            housekeeping,
            puts_jumps,
        })
    }

    /// Puts one block's change into the batch. This is the last look at an
    /// address before the child: whatever is protected by now is refused.
    fn add_change(
        &mut self,
        batch: &mut Batch,
        slot: Slot,
        place: Place,
        host: &Host,
        now: Instant,
    ) -> bool {
        self.complete(slot, place, host);
        let (Some(rule), Some(block)) = (self.rule(slot), self.blocks.value(slot).copied()) else {
            return false;
        };
        if !block.retry.is_over(now) {
            return false;
        }
        let stage = match self.stage(slot) {
            Stage::Expired => {
                batch.remove(&rule);
                Stage::Removing
            }
            stage => {
                match host.protected(rule.source) {
                    Some(Protection::HostUnknown) if self.may_wait(slot, host, now) => {
                        return false;
                    }
                    Some(protection) => {
                        self.refuse(slot, Refusal::Protected(protection));
                        return false;
                    }
                    None => {}
                }
                if stage == Stage::Wanted && block.failures == 0 && !self.is_within_rate(now) {
                    return false;
                }
                if let Some(comment) = block.renewed {
                    let scope = rule.scope.renewed();
                    batch.remove(&rule);
                    batch.add(&Rule {
                        comment,
                        scope,
                        ..rule
                    });
                } else {
                    batch.add(&rule);
                }
                if stage == Stage::Lost {
                    Stage::Restoring
                } else {
                    Stage::Adding
                }
            }
        };
        self.set_stage(slot, stage);
        true
    }

    /// Whether a block waits until the host is known: one that stood as long as
    /// that takes, a new one no longer than its evidence counts, and only where
    /// that is under way.
    fn may_wait(&mut self, slot: Slot, host: &Host, now: Instant) -> bool {
        let (stage, window) = (self.stage(slot), self.window);
        let Some(block) = self.blocks.value_mut(slot) else {
            return false;
        };
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
    fn complete(&mut self, slot: Slot, place: Place, host: &Host) {
        let Lacks {
            addrtype, comment, ..
        } = self.table(place).lacks;
        let source = self.blocks.key(slot).copied();
        let is_new = self.stage(slot) == Stage::Wanted;
        let block = self.blocks.value_mut(slot).filter(|_| is_new);
        if let (Some(block), Some(source)) = (block, source) {
            block.place = place;
            block.scope = if host.is_on_link(source) && !addrtype {
                Scope::ToHost
            } else {
                Scope::Everything
            };
            if comment {
                block.comment = Comment::BLANK;
            }
        }
    }

    fn remove_stale_rules(&self, batch: &mut Batch, place: Place, most: usize) -> u32 {
        let mut removed = 0;
        for rule in self.stale.get(place).rules.iter().take(most) {
            batch.remove(rule);
            removed += 1;
        }
        removed
    }

    fn remove_chain(&mut self, invocation: &mut Invocation, place: Place) {
        let table = self.table(place);
        let mut batch = Batch::new(invocation, table.tool(place.family));
        for (hook, jump) in Hook::ALL.into_iter().zip(&table.jumps) {
            for _ in 0..jump.count.min(JUMPS) {
                batch.remove_jump(hook);
            }
        }
        batch.remove_chain();
        batch.commit();
    }

    /// Counts one more block of this minute, if there may be one.
    fn is_within_rate(&mut self, now: Instant) -> bool {
        if !now.is_within(MINUTE, self.minute) {
            (self.minute, self.minute_count) = (Some(now), 0);
        }
        let is_within = self.minute_count < self.max_per_minute;
        self.minute_count += u32::from(is_within);
        is_within
    }

    /// Whether new blocks are held back for now.
    pub(super) fn is_rate_spent(&self, now: Instant) -> bool {
        now.is_within(MINUTE, self.minute) && self.minute_count >= self.max_per_minute
    }

    pub(super) fn refuse(&mut self, slot: Slot, refusal: Refusal) {
        if let Some(block) = self.blocks.value_mut(slot) {
            block.refusal = refusal;
            block.strikes = block.strikes.saturating_sub(1);
        }
        self.set_stage(slot, Stage::Refused);
    }

    /// Takes in what the child wrote on its standard output.
    pub fn output(&mut self, bytes: &[u8], now: Instant) {
        let Running { job, place, .. } = self.running;
        let mut rest = bytes;
        while let Some(behind) = self.lines.feed(rest) {
            rest = behind;
            match job {
                Job::List => self.listed(place, now),
                Job::Version => {
                    if Flavour::read(self.lines.line()) == Flavour::Nft {
                        self.flavour = Flavour::Nft;
                    }
                }
                Job::None | Job::Change { .. } | Job::RemoveChain => {}
            }
            self.lines.clear();
        }
    }

    /// Takes in what the child wrote on its standard error.
    pub fn errors(&mut self, bytes: &[u8]) {
        self.explanation.put_printable(bytes);
    }

    /// Whether the child is past its deadline; says each step once.
    pub fn overdue(&mut self, now: Instant) -> Option<Overdue> {
        let running = &mut self.running;
        if running.job == Job::None || !now.reaches(running.deadline) {
            return None;
        }
        if mem::replace(&mut running.was_asked, true) {
            running.deadline = None;
            return Some(Overdue::Force);
        }
        running.deadline = Some(now.after(CHILD_GRACE));
        Some(Overdue::Ask)
    }

    /// Takes in how the child ended, and how long it ran. `None` stands for a
    /// child that could not be started at all.
    pub fn finished(&mut self, exit: Option<Exit>, now: Instant) -> Option<Failure> {
        let running = self.running;
        self.running.job = Job::None;
        if running.job == Job::Version {
            return self.took_version(running, exit, now);
        }
        let reason = match exit {
            Some(_) if running.was_asked => FailureReason::Deadline,
            Some(Exit::Status(0)) => {
                self.succeeded(running, now);
                return None;
            }
            Some(Exit::Status(126 | 127)) | None => FailureReason::Missing,
            Some(Exit::Status(status)) => FailureReason::Status(status),
            Some(Exit::Signal(signal)) => FailureReason::Signal(signal),
        };
        Some(self.failed(running, reason, now))
    }

    /// What a preferred tool is called here, and so whether there is another one
    /// beside it. What it prints does not matter: its listing's errors are
    /// logged.
    fn took_version(
        &mut self,
        running: Running,
        exit: Option<Exit>,
        now: Instant,
    ) -> Option<Failure> {
        let place = running.place;
        let table = self.table_mut(place);
        let is_missing = exit == Some(Exit::Status(127));
        match table.program.next() {
            Some(program) if is_missing => {
                table.program = program;
                return None;
            }
            _ if is_missing || matches!(exit, Some(Exit::Status(126)) | None) => {
                table.program = Program::Preferred;
                let listing = Running {
                    job: Job::List,
                    ..running
                };
                return Some(self.failed(listing, FailureReason::Missing, now));
            }
            _ => {}
        }
        table.state = State::Unlisted;
        let flavour = self.flavour;
        let has_legacy = *self.has_legacy.get(place.family);
        let other = self.table_mut(place.beside());
        other.program = flavour.other();
        if flavour == Flavour::Legacy || has_legacy {
            other.state = State::Unlisted;
        }
        None
    }

    fn succeeded(&mut self, running: Running, now: Instant) {
        let place = running.place;
        let has_more_stale = self.stale.get(place).has_more;
        let table = self.table_mut(place);
        match running.job {
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
            Job::Change {
                blocks,
                housekeeping,
                puts_jumps,
            } => {
                table.changed(blocks, puts_jumps, now);
                if housekeeping > 0 {
                    table.housekeeping.succeed();
                    if has_more_stale || table.one_by_one {
                        // What is left of the stale rules shows up again.
                        table.invalidate();
                    }
                    self.removed += u64::from(housekeeping);
                    self.stale.get_mut(place).clear();
                }
                self.settle(running, None, now);
            }
        }
    }

    /// Every block that the running batch was about moves on, or back after a
    /// failure.
    #[inline(never)]
    fn settle(&mut self, running: Running, mut failure: Option<&mut Failure>, now: Instant) {
        let is_alone = running.job.changes() == Some((1, 0));
        for (from, on, back) in [
            (Stage::Removing, Stage::Removed, Stage::Expired),
            (Stage::Restoring, Stage::Standing, Stage::Lost),
            (Stage::Adding, Stage::Added, Stage::Wanted),
        ] {
            let mut walk = self.walk(from, Some(running.place));
            while let Some(slot) = self.step(&mut walk) {
                if let Some(failure) = failure.as_deref_mut() {
                    self.take_back(slot, from, is_alone, failure, now);
                    self.set_stage(slot, back);
                } else {
                    self.confirm(slot, from, now);
                    self.set_stage(slot, on);
                }
            }
        }
    }

    /// The change is in the kernel.
    fn confirm(&mut self, slot: Slot, from: Stage, now: Instant) {
        if let Some(block) = self.blocks.value_mut(slot) {
            block.failures = 0;
            block.confirmed = Some(now);
            block.renew();
            if from == Stage::Removing {
                block.ended = Some(now);
            } else {
                self.next_end = nearest(self.next_end, block.end);
            }
        }
    }

    /// The change is not. A command of a single block's is that block's failure,
    /// which makes it wait longer each time.
    fn take_back(
        &mut self,
        slot: Slot,
        from: Stage,
        is_alone: bool,
        failure: &mut Failure,
        now: Instant,
    ) {
        failure.is_addition |= from != Stage::Removing;
        let source = self.blocks.key(slot).copied();
        if let Some(block) = self.blocks.value_mut(slot) {
            if from == Stage::Adding && block.failures == 0 {
                // A first try that failed is none of this minute's blocks.
                self.minute_count = self.minute_count.saturating_sub(1);
            }
            if is_alone {
                block.failures = block.failures.saturating_add(1);
                block.retry.fail(now);
                failure.source = source;
                failure.is_first = block.failures == 1;
            }
        }
    }

    fn failed(&mut self, running: Running, reason: FailureReason, now: Instant) -> Failure {
        let Running { job, place, .. } = running;
        let mut failure = Failure {
            reason,
            tool: self.table(place).tool(place.family),
            source: None,
            is_listing: job == Job::List,
            is_addition: false,
            explanation: self.explanation.clone(),
            leaves_out: b"",
            is_first: false,
        };
        self.settle(running, Some(&mut failure), now);
        let is_single_pass = self.task.is_single_pass();
        let table = self.table_mut(place);
        table.invalidate();
        if table.learns_to_lack_wait(&failure, is_single_pass) {
            return failure;
        }
        table.learn_to_lack_match(&mut failure);
        failure.is_first |= if is_single_pass {
            table.failed_in_pass(job, place, reason, now)
        } else {
            table.failed(job, place, &failure, now)
        };
        failure
    }
}

fn put_jumps(batch: &mut Batch, jumps: &[Jump; 2]) {
    for (hook, jump) in Hook::ALL.into_iter().zip(jumps) {
        if jump.moves {
            batch.remove_jump(hook);
        }
        if jump.moves || jump.position == 0 {
            batch.add_jump(hook);
        }
    }
}
