//! The sets: what is asked of nf_tables next, and what its answers mean.
//!
//! The kernel is done when send(2) returns: a conversation of `request`,
//! `answer` and `answered` is over before anything else happens. A listing takes
//! several of them, a change one.

use crate::address::Family;
use crate::host::Host;
use crate::kernel::Errno;
use crate::limits::{FACTS_WAIT, RETRY_LONGEST, VERIFY_PERIOD};
use crate::netlink::{Failure as DumpFailure, Malformed, Progress};
use crate::nf_tables::{
    Answer, Batch, Element, Elements, Owner, Question, Removal, Set, TableFamily, count_rules,
    generation_answer, table_answer,
};
use crate::options::FirewallChoice;
use crate::text::{Text, TextView};
use crate::time::Instant;

use super::changes::{Changes, Contents, Failure, FailureReason, Job};
use super::comment::{Comment, Facts};
use super::filter_table::{Chain, State, VERIFY_GAP};
use super::iptables::{Rule, Scope};
use super::place::Place;
use super::{Firewall, ProgramName, Stage, Task, walk};

/// What a listing asks first: see `Question::of_listing`.
const GENERATION: u8 = 0;
const TABLE: u8 = 1;

/// Changes in a row that may fail for what a look or another try puts right.
const EXCUSES: u8 = 3;

/// The conversation with nf_tables; all bytes zero when new.
pub(super) struct Sets {
    job: Job,
    /// Of a listing.
    step: u8,
    /// Ours is of IPv4 alone.
    is_ipv4_only: bool,
    /// The kernel has no tables of both families: it lacks IPv6.
    lacks_inet: bool,
    /// Kernels before 6.3 cannot take out what may be gone.
    lacks_destroy: bool,
    /// The kernel's table carries our name and not our comment, or none and not
    /// all of our sets.
    is_strange: bool,
    /// It carries none.
    lacks_comment: bool,
    /// What stands under our name is refused: all of it goes, and is made anew.
    rebuilds: bool,
    excuses: u8,
    /// The last request's messages have these numbers, its end not included;
    /// from `frame` on they are about elements.
    first: u32,
    frame: u32,
    end: u32,
    answer: Answer,
    is_done: bool,
    /// The first refusal, and the number of the message.
    error: Option<(u32, Errno)>,
    rules: usize,
    /// That of all tables when ours was listed; 0 after a change of our own.
    pub(super) generation: u32,
    listed_generation: u32,
    /// Another program changed our table since the last look.
    has_changed: bool,
    /// Which one, if the last look came from that.
    pub(super) program: ProgramName,
}

impl Sets {
    pub(super) const NONE: Self = Self {
        job: Job::None,
        step: 0,
        is_ipv4_only: false,
        lacks_inet: false,
        lacks_destroy: false,
        is_strange: false,
        lacks_comment: false,
        rebuilds: false,
        excuses: 0,
        first: 0,
        frame: 0,
        end: 0,
        answer: Answer::NONE,
        is_done: false,
        error: None,
        rules: 0,
        generation: 0,
        listed_generation: 0,
        has_changed: false,
        program: Text::new(),
    };

    /// Whether sources of this family have a set.
    pub(super) fn takes(&self, family: Family) -> bool {
        family == Family::V4 || !self.is_ipv4_only
    }

    fn family(&self) -> TableFamily {
        if self.is_ipv4_only {
            TableFamily::Ip
        } else {
            TableFamily::Inet
        }
    }

    /// What a listing asks now; `None` at its end.
    fn question(&self) -> Option<Question> {
        let questions = Question::of_listing(self.family());
        questions.get(usize::from(self.step)).copied()
    }
}

/// A batch of changes.
struct SetChanges<'a> {
    batch: Batch<'a>,
    removal: Removal,
    now: Instant,
}

impl Changes for SetChanges<'_> {
    fn has_room(&self) -> bool {
        self.batch.takes_more()
    }

    fn add(&mut self, rule: &Rule) {
        let Some(set) = set_of(rule) else { return };
        let end = Facts::read(&rule.comment).and_then(|facts| facts.end());
        let left = end.map(|end| self.now.until(end).as_nanos() / 1_000_000);
        self.batch.add(&Element {
            set,
            source: rule.source,
            left_ms: left,
            comment: rule.comment.as_bytes(),
        });
    }

    fn remove(&mut self, rule: &Rule) {
        if let Some(set) = set_of(rule) {
            self.batch.remove(set, rule.source, self.removal);
        }
    }
}

fn set_of(rule: &Rule) -> Option<Set> {
    Set::of(rule.source, rule.scope != Scope::Everything)
}

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// Puts the next request to nf_tables into `out`, if one is due. The caller
    /// sends it at once and reports back through `answer` and `answered`.
    #[inline(never)]
    pub fn request(&mut self, out: &mut TextView, host: &Host, now: Instant) -> bool {
        if !self.is_enabled() || !self.is_present(Place::Sets) {
            return false;
        }
        if self.sets.job == Job::None {
            self.expire(now);
            self.sets.job = self.prepare_sets(out, host, now);
        }
        if self.sets.job == Job::List {
            self.put_question(out);
        }
        self.sets.answer = Answer::NONE;
        (self.sets.is_done, self.sets.error, self.sets.rules) = (false, None, 0);
        self.sets.job != Job::None
    }

    /// Whether the answer brings another request at once.
    pub fn is_asking(&self) -> bool {
        self.sets.job != Job::None
    }

    fn prepare_sets(&mut self, out: &mut TextView, host: &Host, now: Instant) -> Job {
        let place = Place::Sets;
        let table = self.table(place);
        if !table.retry.is_over(now) {
            return Job::None;
        }
        let may_keep_house = table.housekeeping.is_over(now);
        // What timed out is not listed; taking it out would be refused.
        let may_be_gone = self.sets.lacks_destroy
            && table.last_listing != Some(now)
            && self
                .step(&mut walk(&[Stage::Expired], Some(place)))
                .is_some();
        if self.is_listing_due(place, now) || may_be_gone {
            self.begin_listing(place);
            (self.sets.step, self.sets.is_strange) = (GENERATION, false);
            if core::mem::take(&mut self.sets.has_changed) {
                self.sets.generation = 0;
            } else {
                self.sets.program.clear();
            }
            return Job::List;
        }
        if self.task != Task::End && self.has_changes(place) && self.change_sets(out, host, now) {
            return Job::Change;
        }
        if may_keep_house && self.may_remove_chain(place) {
            let mut batch = Batch::begin(out, self.sets.family(), self.sets.end);
            batch.delete_table();
            self.send(&mut batch);
            return Job::RemoveChain;
        }
        Job::None
    }

    fn send(&mut self, batch: &mut Batch) {
        let numbers = batch.end();
        (self.sets.first, self.sets.end) = (numbers.start, numbers.end);
    }

    /// All changes in one batch, if there are any.
    fn change_sets(&mut self, out: &mut TextView, host: &Host, now: Instant) -> bool {
        let place = Place::Sets;
        let table = self.table(place);
        let (exists, may_keep_house) = (table.chain.exists(), table.housekeeping.is_over(now));
        let is_torn = may_keep_house && self.lacks_frame(place);
        let mut changes = SetChanges {
            batch: Batch::begin(out, self.sets.family(), self.sets.end),
            removal: if self.sets.lacks_destroy {
                Removal::Delete
            } else {
                Removal::Destroy
            },
            now,
        };
        let puts_frame = !exists || is_torn || self.sets.rebuilds;
        if self.sets.rebuilds {
            changes.batch.delete_table();
            let mut walk = walk(&[Stage::Standing], Some(place));
            while let Some(slot) = self.step(&mut walk) {
                self.set_stage(slot, Stage::Lost);
            }
        }
        if puts_frame {
            changes.batch.set_up();
        }
        self.sets.frame = changes.batch.sequence();
        self.put_changes(&mut changes, place, host, now);
        let batch = &mut self.table_mut(place).batch;
        if batch.is_empty() && !is_torn {
            return false;
        }
        batch.puts_frame = puts_frame;
        // A block's failure with the frame is the block's.
        if batch.is_empty() {
            batch.housekeeping = 1;
        }
        self.send(&mut changes.batch);
        true
    }

    // A listing.

    fn put_question(&mut self, out: &mut TextView) {
        let sets = &mut self.sets;
        let (number, family) = (sets.end, sets.family());
        (sets.first, sets.end) = (number, number.wrapping_add(1));
        if let Some(question) = sets.question() {
            question.put(out, family, number);
        }
    }

    /// Takes in a datagram of the answer.
    #[inline(never)]
    pub fn answer(&mut self, bytes: &[u8], now: Instant) {
        let sets = &mut self.sets;
        let number = sets.first;
        if sets.job != Job::List {
            let numbers = number..sets.end;
            return sets.answer.read(bytes, &numbers, &mut |number, error| {
                sets.error.get_or_insert((number, error));
            });
        }
        let progress = if sets.step > TABLE {
            let mut progress = count_rules(bytes, number, &mut sets.rules);
            let mut elements = Elements::new(bytes, number);
            while !matches!(progress, Progress::Failed(_))
                && let Some(element) = elements.next()
            {
                match element {
                    Ok(element) => self.listed_element(&element, now),
                    Err(Malformed) => progress = Progress::Failed(DumpFailure::Malformed),
                }
            }
            progress
        } else {
            self.listed_state(bytes, number)
        };
        let error = match progress {
            Progress::More => return,
            Progress::Done => {
                self.sets.is_done = true;
                return;
            }
            Progress::Failed(DumpFailure::Interrupted) => Errno::EINTR,
            Progress::Failed(DumpFailure::Malformed) => Errno::EINVAL,
            Progress::Failed(DumpFailure::Refused(error)) => error,
        };
        self.sets.error.get_or_insert((number, error));
    }

    /// The generation, or our table.
    fn listed_state(&mut self, bytes: &[u8], number: u32) -> Progress {
        let result = if self.sets.step == TABLE {
            table_answer(bytes, number).map(|table| {
                let family = self.sets.family();
                self.sets.is_strange = table.owner == Owner::Other;
                self.sets.lacks_comment = table.owner == Owner::Unknown;
                let shown = self.shown_mut(Place::Sets);
                shown.has_chain = true;
                shown.is_torn = table.flags != 0;
                shown.has_foreign_rules |= table.objects as usize > family.objects();
            })
        } else {
            generation_answer(bytes, number).map(|id| self.sets.listed_generation = id)
        };
        match result {
            Ok(()) => Progress::Done,
            Err(error) => Progress::Failed(DumpFailure::Refused(error)),
        }
    }

    #[inline(never)]
    fn listed_element(&mut self, element: &Element, now: Instant) {
        let Some(comment) = Comment::from_listing(element.comment) else {
            self.shown_mut(Place::Sets).has_foreign_rules = true;
            return;
        };
        let is_to_host = matches!(element.set, Set::Host4 | Set::Host6);
        let rule = Rule {
            source: element.source,
            scope: if is_to_host {
                Scope::ToHost
            } else {
                Scope::Everything
            },
            comment,
        };
        self.listed_ours(Place::Sets, &rule, now);
    }

    /// Takes in that all of the answer was received, or why it was not.
    #[inline(never)]
    pub fn answered(&mut self, error: Option<Errno>, now: Instant) -> Option<Failure> {
        let sets = &mut self.sets;
        let refusal = sets.error.map(|(_, error)| error);
        // An answer without its end was lost.
        let is_whole = match sets.job {
            Job::List => sets.is_done,
            _ => sets.answer.is_success(),
        };
        let lost = (!is_whole).then_some(Errno::ENOBUFS);
        let error = error.or(refusal).or(lost);
        if sets.job == Job::List {
            return self.step_on(error, now);
        }
        let job = core::mem::replace(&mut sets.job, Job::None);
        // A batch need not make a generation: one that takes out what timed out.
        sets.generation = 0;
        let Some(error) = error else {
            (sets.excuses, sets.rebuilds) = (0, false);
            self.succeeded(job, Place::Sets, now);
            return None;
        };
        if job == Job::RemoveChain && error == Errno::ENOENT {
            self.succeeded(job, Place::Sets, now);
            return None;
        }
        if job == Job::Change && self.excuse(error) {
            // It is no block's failure.
            self.table_mut(Place::Sets).batch = Contents::NONE;
            let mut nobodys = self.failure_of(job, Place::Sets, FailureReason::Error(error));
            self.settle(Place::Sets, Some(&mut nobodys), now);
            self.table_mut(Place::Sets).invalidate();
            return None;
        }
        Some(self.failed(job, Place::Sets, FailureReason::Error(error), now))
    }

    /// Whether a change was refused for what another look or another shape of it
    /// puts right.
    fn excuse(&mut self, error: Errno) -> bool {
        let puts_frame = self.table(Place::Sets).batch.puts_frame;
        let sets = &mut self.sets;
        sets.excuses = sets.excuses.saturating_add(1);
        if sets.excuses > EXCUSES {
            return false;
        }
        let at = sets
            .error
            .map_or(0, |(number, _)| number.wrapping_sub(sets.first));
        let is_of_frame = at > 1 && at < sets.frame.wrapping_sub(sets.first);
        match error {
            // The kernel does not know the message.
            Errno::EINVAL if !is_of_frame && !sets.lacks_destroy => sets.lacks_destroy = true,
            // No table of both families, as the message behind the first says.
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT if at == 1 && !sets.is_ipv4_only => {
                (sets.lacks_inet, sets.is_ipv4_only) = (true, true);
            }
            // A chain with another hook, a set without timeouts, a table that is
            // dormant and lacks a chain.
            Errno::EOPNOTSUPP | Errno::EEXIST | Errno::EBUSY | Errno::EINVAL
                if is_of_frame && !sets.rebuilds =>
            {
                sets.rebuilds = true;
            }
            // Another program took the table away, or an element, a moment ago.
            Errno::ENOENT if !puts_frame => {}
            _ => return false,
        }
        true
    }

    /// A step of the listing is done.
    fn step_on(&mut self, error: Option<Errno>, now: Instant) -> Option<Failure> {
        let place = Place::Sets;
        let is_known = self.table(place).state == State::Listed;
        let sets = &mut self.sets;
        match (error, sets.step) {
            (None, GENERATION) if is_known && sets.listed_generation == sets.generation => {
                // Nobody changed anything since.
                sets.job = Job::None;
                let table = self.table_mut(place);
                table.next_listing = Some(now.after(VERIFY_PERIOD));
                table.last_listing = Some(now);
                return None;
            }
            (None, TABLE | GENERATION) => sets.step += 1,
            (Some(Errno::ENOENT), TABLE) if !self.has_ipv6 && !sets.is_ipv4_only => {
                sets.is_ipv4_only = true;
                return None;
            }
            // There is none of ours.
            (Some(Errno::ENOENT), TABLE) => {
                sets.is_ipv4_only = sets.lacks_inet;
                sets.step = u8::MAX;
            }
            (None, step) => {
                if let Some(Question::Rules(chain)) = sets.question() {
                    let ours = chain.rules(sets.family());
                    let rules = sets.rules;
                    let shown = self.shown_mut(place);
                    shown.is_torn |= rules < ours;
                    shown.has_foreign_rules |= rules > ours;
                }
                self.sets.step = step + 1;
            }
            (Some(Errno::ENOENT), step) => {
                sets.step = step + 1;
                sets.is_strange |= sets.lacks_comment;
                self.shown_mut(place).is_torn = true;
            }
            (Some(Errno::EINTR), _) => {
                // Other programs change their tables right now. Blocks do not wait
                // for that to end where the sets were known.
                sets.job = Job::None;
                sets.has_changed = true;
                let table = self.table_mut(place);
                table.next_listing = Some(now.after(VERIFY_GAP));
                if !is_known {
                    table.retry.hold(now.after(FACTS_WAIT));
                }
                return None;
            }
            (Some(error), _) => {
                sets.job = Job::None;
                return self.failed_look(error, now);
            }
        }
        let sets = &mut self.sets;
        if sets.question().is_none() {
            sets.job = Job::None;
            if sets.is_strange {
                // To set up ours in it would take its rules away.
                return self.failed_look(Errno::EEXIST, now);
            }
            sets.generation = sets.listed_generation;
            self.succeeded(Job::List, place, now);
        }
        None
    }

    /// A kernel without nf_tables is no fault where iptables does it all.
    fn failed_look(&mut self, error: Errno, now: Instant) -> Option<Failure> {
        let is_absent = matches!(
            error,
            Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EINVAL
        );
        let error = if is_absent { Errno::EOPNOTSUPP } else { error };
        let is_said = if self.task.is_single_pass() {
            !is_absent
        } else {
            self.choice == FirewallChoice::Nft || self.sets.is_strange
        };
        let mut failure = self.failed(Job::List, Place::Sets, FailureReason::Error(error), now);
        failure.is_first &= is_said;
        if self.sets.is_strange {
            failure
                .explanation
                .put(b"the table tcpparser is another program's");
        }
        if is_absent {
            let table = self.table_mut(Place::Sets);
            table.retry.hold(now.after(RETRY_LONGEST));
        }
        Some(failure)
    }

    // Events.

    /// Another program changed our table: it is looked at soon.
    pub fn note_change(&mut self, program: &ProgramName, now: Instant) {
        // Which of two programs took what away is not known.
        if !core::mem::replace(&mut self.sets.has_changed, true) {
            self.sets.program = program.clone();
        } else if self.sets.program != *program {
            self.sets.program.clear();
        }
        let table = self.table_mut(Place::Sets);
        if table.chain == Chain::Never {
            return table.invalidate();
        }
        table.list_soon(now);
    }

    /// Whether a table of ours was there, so that others may change it.
    pub fn has_table(&self) -> bool {
        self.table(Place::Sets).chain != Chain::Never
    }

    /// The family that it is of.
    pub fn table_family(&self) -> TableFamily {
        self.sets.family()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Network;

    /// A source has the set of its kind, and one for neighbours where it can be
    /// one.
    #[test]
    fn neighbours_have_a_set_of_their_own() {
        let rule = |source: &str, scope| Rule {
            source: Network::parse(source.as_bytes()).unwrap(),
            scope,
            comment: crate::table::Blank::BLANK,
        };
        for (source, everything, to_host) in [
            ("192.0.2.9", Some(Set::Drop4), Some(Set::Host4)),
            ("2001:db8::9", Some(Set::Drop6), Some(Set::Host6)),
            ("2001:db8::/64", Some(Set::Net64), None),
        ] {
            assert_eq!(set_of(&rule(source, Scope::Everything)), everything);
            assert_eq!(set_of(&rule(source, Scope::ToHost)), to_host);
        }
    }
}
