//! The child: iptables, what it is to do next, and what its end means.

use core::mem;

use crate::address::Family;
use crate::host::Host;
use crate::kernel::{Exit, Invocation};
use crate::limits::{CHILD_DEADLINE, CHILD_GRACE};
use crate::time::Instant;

use super::changes::{Changes, Failure, FailureReason, Job};
use super::filter_table::State;
use super::iptables::{Batch, Flavour, Hook, Program, Rule};
use super::jump::Jump;
use super::place::Place;
use super::{Firewall, Task};

impl Changes for Batch<'_> {
    fn has_room(&self) -> bool {
        Batch::has_room(self)
    }

    fn add(&mut self, rule: &Rule) {
        Batch::add(self, rule);
    }

    fn remove(&mut self, rule: &Rule) {
        Batch::remove(self, rule);
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

/// Jumps taken away at a time; more of them are no accident.
const JUMPS: u32 = 100;

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
        let (last, first) = Place::ALL.split_at_checked(self.turn).unwrap_or_default();
        for place in first.iter().chain(last).copied() {
            let Some(family) = place.family().filter(|_| self.is_present(place)) else {
                continue;
            };
            if let Some(job) = self.prepare(invocation, place, family, host, now) {
                self.turn = (place as usize + 1) % Place::COUNT;
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

    #[inline(never)]
    fn prepare(
        &mut self,
        invocation: &mut Invocation,
        place: Place,
        family: Family,
        host: &Host,
        now: Instant,
    ) -> Option<Job> {
        let table = self.table(place);
        if !table.retry.is_over(now) {
            return None;
        }
        let tool = table.tool(family);
        if table.state == State::Unfound && self.task != Task::End {
            tool.version(invocation);
            self.lines.clear();
            self.flavour = Flavour::Legacy;
            return Some(Job::Version);
        }
        let may_keep_house = table.housekeeping.is_over(now);
        if self.is_listing_due(place, now) {
            tool.list(invocation);
            self.lines.clear();
            self.begin_listing(place);
            self.above.iter_mut().for_each(|above| above.clear());
            return Some(Job::List);
        }
        if self.task != Task::End
            && self.has_changes(place)
            && self.change(Batch::new(invocation, tool), place, host, now)
        {
            return Some(Job::Change);
        }
        if may_keep_house && self.may_remove_chain(place) {
            let batch = Batch::new(invocation, tool);
            remove_chain(batch, &self.table(place).jumps);
            return Some(Job::RemoveChain);
        }
        None
    }

    /// All changes of one chain in one batch, if there are any.
    fn change(&mut self, mut batch: Batch, place: Place, host: &Host, now: Instant) -> bool {
        let has_chain = self.table(place).chain.exists();
        if !has_chain {
            batch.make_chain();
        }
        self.put_changes(&mut batch, place, host, now);
        let lacks_frame = self.lacks_frame(place);
        let table = self.table_mut(place);
        let may_keep_house = table.housekeeping.is_over(now);
        let has_jump_to_do = may_keep_house && lacks_frame && !table.one_by_one;
        if table.batch.is_empty() && !has_jump_to_do {
            return false;
        }
        if has_jump_to_do || !has_chain {
            table.batch.puts_frame = true;
            table.batch.housekeeping += u32::from(has_chain);
            put_jumps(&mut batch, &table.jumps);
        }
        batch.commit();
        true
    }

    /// Takes in what the child wrote on its standard output.
    #[inline(never)]
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
                Job::None | Job::Change | Job::RemoveChain => {}
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
                self.succeeded(running.job, running.place, now);
                return None;
            }
            Some(Exit::Status(127)) => FailureReason::Missing,
            Some(Exit::Status(126)) | None => FailureReason::Unstarted,
            Some(Exit::Status(status)) => FailureReason::Status(status),
            Some(Exit::Signal(signal)) => FailureReason::Signal(signal),
        };
        Some(self.failed(running.job, running.place, reason, now))
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
        let family = place.family()?;
        let is_missing = exit == Some(Exit::Status(127));
        let does_without = self.does_without_tool(family);
        let table = self.table_mut(place);
        match table.program.next() {
            Some(program) if is_missing => {
                table.program = program;
                return None;
            }
            _ if is_missing && does_without => {
                table.is_given_up = true;
                return None;
            }
            _ if is_missing || matches!(exit, Some(Exit::Status(126)) | None) => {
                table.program = Program::Preferred;
                let reason = if is_missing {
                    FailureReason::Missing
                } else {
                    FailureReason::Unstarted
                };
                return Some(self.failed(Job::List, place, reason, now));
            }
            _ => {}
        }
        table.state = State::Unlisted;
        let flavour = self.flavour;
        let has_legacy = *self.has_legacy.get(family);
        let other = self.table_mut(Place::other(family));
        other.program = flavour.other();
        if flavour == Flavour::Legacy || has_legacy {
            other.state = State::Unlisted;
        }
        None
    }
}

/// Takes the chain and the jumps to it away.
fn remove_chain(mut batch: Batch, jumps: &[Jump; 2]) {
    for (hook, jump) in Hook::ALL.iter().copied().zip(jumps) {
        for _ in 0..jump.count.min(JUMPS) {
            batch.remove_jump(hook);
        }
    }
    batch.remove_chain();
    batch.commit();
}

fn put_jumps(batch: &mut Batch, jumps: &[Jump; 2]) {
    for (hook, jump) in Hook::ALL.iter().copied().zip(jumps) {
        if jump.moves {
            batch.remove_jump(hook);
        }
        if jump.moves || jump.position == 0 {
            batch.add_jump(hook);
        }
    }
}
