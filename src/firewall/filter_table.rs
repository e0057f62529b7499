//! What is known of one table of the kernel that can hold blocks, and when it
//! may be asked again.

use crate::address::Family;
use crate::limits::{RETRY_FIRST, RETRY_LONGEST, VERIFY_PERIOD};
use crate::time::{Duration, Instant, nearest};

use super::changes::{Contents, Failure, FailureReason, Job};
use super::explanation::is_about;
use super::iptables::{Program, Tool};
use super::jump::Jump;
use super::place::Place;

/// Listings that are asked for are at least this far apart.
pub(super) const VERIFY_GAP: Duration = Duration::from_secs(1);

/// Three tries in a row: the wait doubles twice.
const LAST_TRY: Duration = RETRY_FIRST.saturating_mul(4);

/// A wait that doubles with each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    until: Option<Instant>,
    /// Zero after a success.
    wait: Duration,
}

impl Backoff {
    /// All bytes zero.
    pub(super) const NONE: Self = Self {
        until: None,
        wait: Duration::ZERO,
    };

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.is_past(self.until)
    }

    /// When it is over, at the earliest `now`.
    pub(super) fn end(&self, now: Instant) -> Instant {
        now.or_later(self.until)
    }

    #[inline(never)]
    pub(super) fn is_failing(&self) -> bool {
        self.wait != Duration::ZERO
    }

    /// Waits 1, 2, 4 … 60 seconds; true for the first failure in a row.
    #[inline(never)]
    pub(super) fn fail(&mut self, now: Instant) -> bool {
        let is_first = !self.is_failing();
        let twice = self.wait.saturating_mul(2);
        self.wait = twice.max(RETRY_FIRST).min(RETRY_LONGEST);
        self.until = Some(now.after(self.wait));
        is_first
    }

    pub(super) fn succeed(&mut self) {
        self.wait = Duration::ZERO;
    }

    /// Waits until then, failure or not.
    pub(super) fn hold(&mut self, until: Instant) {
        self.until = Some(until);
    }
}

/// How far a table is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// `program` is what is tried next for a preferred table; the other
    /// flavour's is left alone. First, so that it is all zero bytes.
    Unfound,
    /// `program` reaches it. No listing succeeded yet, or not since the last
    /// failure: it is listed before the next change.
    Unlisted,
    Listed,
}

/// Our chain in a filter table, or our own table with its sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// There was none so far. First, so that it is all zero bytes.
    Never,
    /// It is not there any more: a reload may bring it back.
    Gone,
    Ours,
    /// With rules in it that are not ours.
    Shared,
}

impl Chain {
    pub(super) fn exists(self) -> bool {
        matches!(self, Self::Ours | Self::Shared)
    }
}

/// What tools or kernels do without.
#[derive(Clone, Copy)]
pub(super) struct Lacks {
    /// Tools older than 1.4.20 (restore: 1.6.2) know no `-w`.
    pub(super) wait: bool,
    /// Without these matches, rules go without them.
    pub(super) addrtype: bool,
    pub(super) comment: bool,
}

/// What we know of one table. What is large comes last: what lies far behind the
/// front takes longer instructions.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct FilterTable {
    pub(super) program: Program,
    pub(super) state: State,
    pub(super) chain: Chain,
    /// The sets lack something that is no element.
    pub(super) is_torn: bool,
    pub(super) lacks: Lacks,
    /// A single pass failed here, or there was no tool where the sets stand in:
    /// no more commands.
    pub(super) is_given_up: bool,
    /// The last change of a block failed.
    pub(super) has_refused: bool,
    /// A batch failed: one change at a time until all are through, so that one
    /// refused entry never vetoes the others.
    pub(super) one_by_one: bool,
    /// Rules of ours that stand there, or are about to.
    pub(super) rules: u32,
    /// What the last change was about, or is.
    pub(super) batch: Contents,
    pub(super) next_listing: Option<Instant>,
    pub(super) last_listing: Option<Instant>,
    /// Listing failed: no command before that is over.
    pub(super) retry: Backoff,
    /// What belongs to no block (a stale rule, a jump, the empty chain) could
    /// not be put right: not before that is over.
    pub(super) housekeeping: Backoff,
    /// Those in INPUT and FORWARD.
    pub(super) jumps: [Jump; 2],
}

impl FilterTable {
    /// All bytes zero.
    pub(super) const UNKNOWN: Self = Self {
        program: Program::Preferred,
        state: State::Unfound,
        chain: Chain::Never,
        rules: 0,
        batch: Contents::NONE,
        jumps: [Jump::NONE; 2],
        is_torn: false,
        next_listing: None,
        last_listing: None,
        lacks: Lacks {
            wait: false,
            addrtype: false,
            comment: false,
        },
        retry: Backoff::NONE,
        housekeeping: Backoff::NONE,
        is_given_up: false,
        has_refused: false,
        one_by_one: false,
    };

    pub(super) fn tool(&self, family: Family) -> Tool {
        Tool {
            family,
            program: self.program,
            waits: !self.lacks.wait,
        }
    }

    /// Whether it was listed, or will not be soon.
    pub(super) fn is_settled(&self) -> bool {
        self.last_listing.is_some() || self.retry.is_failing()
    }

    /// Whether its listing was understood and it took our last block. The other
    /// flavour's is no loss where it never held anything of ours.
    pub(super) fn works(&self, place: Place) -> bool {
        self.is_usable() || place.is_other() && self.chain == Chain::Never
    }

    pub(super) fn is_usable(&self) -> bool {
        let is_understood = self.state == State::Listed || !self.retry.is_failing();
        is_understood && !self.has_refused && !self.is_given_up
    }

    /// What the kernel has is uncertain now: look before the next change.
    pub(super) fn invalidate(&mut self) {
        if self.state == State::Listed {
            self.state = State::Unlisted;
        }
    }

    /// It may have changed: it is listed soon, yet not all the time.
    #[inline(never)]
    pub(super) fn list_soon(&mut self, now: Instant) {
        let soon = now.or_later(self.last_listing.map(|last| last.after(VERIFY_GAP)));
        self.next_listing = nearest(self.next_listing, Some(soon));
    }

    /// The other flavour's table, where nothing of ours was seen so far, cannot
    /// be listed: whether that is worth a word. Without nf_tables in the kernel
    /// it cannot be there; a legacy one is there, and is tried some times.
    pub(super) fn looked_in_vain(&mut self, reason: FailureReason) -> bool {
        let is_legacy = self.program == Program::Legacy;
        let is_worth_it = is_legacy && !reason.is_absence();
        if !is_worth_it || self.retry.wait >= RETRY_LONGEST {
            self.state = State::Unfound;
        }
        is_worth_it
    }

    /// The batch is in the kernel.
    pub(super) fn changed(&mut self, now: Instant) {
        self.has_refused &= self.batch.blocks == 0;
        if !self.chain.exists() {
            self.chain = Chain::Ours;
            self.next_listing = Some(now.after(VERIFY_PERIOD));
        }
        if self.batch.puts_frame {
            self.is_torn = false;
            self.jumps.iter_mut().for_each(|jump| jump.was_put(now));
        }
    }

    /// Whether a command failed for its `-w`, which is left out from now on. A
    /// single pass is content with the status of a bad command line.
    pub(super) fn learns_to_lack_wait(&mut self, failure: &Failure, is_single_pass: bool) -> bool {
        let is_bad_option = match failure.reason {
            FailureReason::Status(2) if is_single_pass && failure.is_listing => true,
            FailureReason::Status(1 | 2) => is_about(&failure.explanation, b"option"),
            FailureReason::Status(_)
            | FailureReason::Missing
            | FailureReason::Unstarted
            | FailureReason::Signal(_)
            | FailureReason::Deadline
            | FailureReason::Error(_) => false,
        };
        is_bad_option && !core::mem::replace(&mut self.lacks.wait, true)
    }

    /// Whether a block's own command failed for one of its rule's matches, which
    /// is left out from now on.
    pub(super) fn learn_to_lack_match(&mut self, failure: &mut Failure) {
        if failure.source.is_none() || !failure.is_addition {
            return;
        }
        for (word, is_left_out) in [
            (b"addrtype".as_slice(), &mut self.lacks.addrtype),
            (b"comment", &mut self.lacks.comment),
        ] {
            if !*is_left_out && is_about(&failure.explanation, word) {
                *is_left_out = true;
                failure.leaves_out = word;
            }
        }
    }

    /// A command failed: whether that is to be said. A failure of one block's
    /// own command is said as the block's, unless its block `may_move` to another
    /// place.
    pub(super) fn failed(
        &mut self,
        job: Job,
        place: Place,
        failure: &Failure,
        may_move: bool,
        now: Instant,
    ) -> bool {
        let batch = self.batch;
        match job {
            Job::List => self.failed_listing(place, failure.reason, now),
            Job::Change if may_move && failure.reason.is_absence() => self.retry.fail(now),
            Job::Change if batch.blocks + batch.housekeeping > 1 && !self.one_by_one => {
                self.one_by_one = true;
                false
            }
            Job::Change if batch.blocks > 0 => {
                // What a rule goes without from now on may help.
                let is_final = !may_move || failure.leaves_out.is_empty();
                let refuses = failure.is_addition && is_final;
                let is_first = refuses && !self.has_refused;
                self.has_refused |= refuses;
                is_first && may_move
            }
            Job::Change | Job::RemoveChain => self.housekeeping.fail(now),
            Job::None | Job::Version => false,
        }
    }

    fn failed_listing(&mut self, place: Place, reason: FailureReason, now: Instant) -> bool {
        let is_first = self.retry.fail(now);
        let is_other = place.is_other() && self.chain == Chain::Never;
        (!is_other || self.looked_in_vain(reason)) && is_first
    }

    /// A command of a single pass failed: whether its table is given up, which
    /// is worth a word unless it is only the empty chain that stays. One rule
    /// that ended meanwhile vetoes the whole batch, which is made anew from
    /// another listing some times.
    pub(super) fn failed_in_pass(
        &mut self,
        job: Job,
        place: Place,
        reason: FailureReason,
        now: Instant,
    ) -> bool {
        let is_over = match job {
            Job::List => self.failed_listing(place, reason, now),
            Job::Change => {
                self.housekeeping.fail(now);
                self.housekeeping.hold(now);
                if self.housekeeping.wait < LAST_TRY {
                    return false;
                }
                true
            }
            Job::RemoveChain | Job::None | Job::Version => false,
        };
        self.is_given_up = true;
        is_over
    }
}
