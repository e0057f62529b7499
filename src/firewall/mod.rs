//! Blocks from verdict to end: what shall be dropped, what the kernel has, and
//! the commands that bring the two together.
//!
//! The table says what we want; only a listing or a finished command says what
//! the kernel has. A block stands in one `Place`: in a chain of iptables, which
//! a child changes, at most one at a time (`command`, `finished`), or in the
//! sets of nf_tables, which answers at once (`request`, `answered`). A place's
//! changes wait until it was listed once, and again after any failure.
//!
//! ```text
//!          block()      grant()       command(), request()     success       next_notice()
//! (nothing) -----> Held ------> Wanted -----------> Adding --------> Added ------> Standing
//!    ^                            ^----- failure -----'                               |
//!    |  STRIKE_MEMORY                                                       its end   |
//!   Ended <--------- Removed <----------- Removing <--------------- Expired <---------'
//!       next_notice()         exit 0                 command()
//!
//! Standing, rule lost to a reload -> Lost -> Restoring -> Standing, silently
//! Standing, rule taken by an operator -> Removed
//! Held until its evidence is old, or too many are -> Refused
//! ```

mod changes;
mod child;
pub mod comment;
pub mod explanation;
mod filter_table;
pub mod iptables;
mod jump;
mod listing;
mod place;
mod sets;
mod shares;
mod widening;

pub use changes::{Failure, FailureReason};
pub use child::Overdue;
pub use explanation::{EXPLANATION_MAX, Explanation};
pub use place::Backend;

use heapless::Vec;

use crate::address::{Family, Network, PerFamily};
use crate::detector::{Data, Scan};
use crate::host::{Host, Protection, protection_labels};
use crate::label::{Label, label};
use crate::limits::{CHAIN_RULES, STRIKE_MEMORY};
use crate::options::{FirewallChoice, Target};
use crate::table::{Blank, Full, HashKey, Slot, Table};
use crate::text::Text;
use crate::time::{Duration, Instant, nearest};
use changes::{Job, StaleRules};
use child::Running;
use comment::{Comment, Facts};
use filter_table::{Backoff, Chain, FilterTable, State};
use iptables::{Flavour, Hook, Lines, Program, Rule, Scope, Tool};
use place::{PerPlace, Place};
use sets::Sets;
use shares::Shares;

/// Where a block stands; also its class in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Decided; it waits for its share of the minute's blocks, and its source is
    /// not taken for blocked.
    Held,
    /// To be put into the kernel.
    Wanted,
    /// In the batch of the running child.
    Adding,
    /// In the kernel, not announced yet.
    Added,
    /// In the kernel.
    Standing,
    /// Announced, and lost to a reload or about to get a new comment.
    Lost,
    /// In the batch of the running child, once more.
    Restoring,
    /// Over, still in the kernel.
    Expired,
    /// In the removing batch of the running child.
    Removing,
    /// Out of the kernel, not announced yet.
    Removed,
    /// Refused by the last check, not announced yet.
    Refused,
    /// Over; kept for its strikes.
    Ended,
}

impl Stage {
    const ALL: [Self; 12] = [
        Self::Held,
        Self::Wanted,
        Self::Adding,
        Self::Added,
        Self::Standing,
        Self::Lost,
        Self::Restoring,
        Self::Expired,
        Self::Removing,
        Self::Removed,
        Self::Refused,
        Self::Ended,
    ];

    /// What a command is to change. What it takes away comes first.
    const DUE: [Self; 3] = [Self::Expired, Self::Lost, Self::Wanted];

    fn from_class(class: usize) -> Self {
        Self::ALL.get(class).copied().unwrap_or(Self::Ended)
    }

    /// Whether the source's connections are ours to ignore.
    fn is_blocked(self) -> bool {
        match self {
            Self::Wanted
            | Self::Adding
            | Self::Added
            | Self::Standing
            | Self::Lost
            | Self::Restoring
            | Self::Expired
            | Self::Removing => true,
            Self::Held | Self::Removed | Self::Refused | Self::Ended => false,
        }
    }

    /// Whether it counts as a rule of its place.
    fn is_rule(self) -> bool {
        self.is_blocked() && self != Self::Wanted
    }
}

/// Why a block ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndReason {
    /// Its time was over.
    #[default]
    Expired,
    /// Another program removed the rule.
    Operator,
    /// It came to overlap a protected address.
    Protected,
    /// The chain was full: a newer one took its place.
    Evicted,
    /// It is part of a wider one now: its source stays blocked.
    Widened,
    /// Its time was over before the kernel had it: it never stood, and is not
    /// counted.
    NeverStood,
}

label!(
    EndReason,
    "reason",
    0,
    ["expired", "operator", "protected", "evicted", "widened"]
);

/// Why a port scan was not followed by a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The block would touch what is protected.
    Protected(Protection),
    /// `--require-silent`, and the source sent data, or may have.
    DataSent(Data),
    /// Held back by `--max-blocks-per-minute` until its evidence was old.
    Rate,
    /// `--dry-run`.
    DryRun,
    /// `--firewall none`.
    NoFirewall,
    /// No place in the table of blocks.
    TableFull,
    /// It came from several sources of a network.
    Spread,
    /// Of some of its handshakes no SYN was seen by the way back to it.
    WayUnseen,
}

impl Refusal {
    /// Words for the `Not blocked` line.
    pub const fn words(self) -> &'static [u8] {
        match self {
            Self::Protected(protection) => protection.words(),
            Self::DataSent(Data::Sent) => b"it sent data (--require-silent)",
            Self::DataSent(_) => b"it may have sent data (--require-silent)",
            Self::Rate => b"held back by --max-blocks-per-minute",
            Self::DryRun => b"--dry-run",
            Self::NoFirewall => b"--firewall none",
            Self::TableFull => b"the table of blocks is full",
            Self::Spread => b"it was spread over several sources",
            Self::WayUnseen => {
                b"it may be forged (no SYN of it was seen to come in by the way back to it)"
            }
        }
    }
}

impl Label for Refusal {
    const WORDS: &'static str = concat!(
        "reason ",
        protection_labels!(),
        " data_sent rate dry_run no_firewall table_full spread way_unseen"
    );
    const COUNT: usize = Protection::COUNT + 7;

    #[inline(never)]
    fn index(self) -> usize {
        match self {
            Self::Protected(protection) => protection as usize,
            Self::DataSent(_) => Protection::COUNT,
            Self::Rate => Protection::COUNT + 1,
            Self::DryRun => Protection::COUNT + 2,
            Self::NoFirewall => Protection::COUNT + 3,
            Self::TableFull => Protection::COUNT + 4,
            Self::Spread => Protection::COUNT + 5,
            Self::WayUnseen => Protection::COUNT + 6,
        }
    }
}

/// One source's block, or the memory of one. The comments come last: what lies
/// far behind the front takes longer instructions.
#[derive(Clone, Copy)]
#[repr(C)]
struct Block {
    /// `None` for never.
    end: Option<Instant>,
    ended: Option<Instant>,
    since_seconds: u64,
    /// When the kernel had it.
    confirmed: Option<Instant>,
    /// No command of its own before that is over.
    retry: Backoff,
    /// Commands of its own that failed in a row.
    failures: u32,
    strikes: u32,
    /// The number of the listing that showed it last.
    listing: u32,
    data: Data,
    /// Where its rule stands; of no meaning while it is wanted.
    place: Place,
    scope: Scope,
    end_reason: EndReason,
    refusal: Refusal,
    /// The kernel's rule carries this comment.
    comment: Comment,
    /// The rule is of another boot, or of an older shape, and shall be replaced
    /// by one with this comment.
    renewed: Option<Comment>,
}

impl Block {
    /// What its comment says in this boot.
    #[inline(never)]
    fn facts(&self, boot_id: u32) -> Facts {
        Facts {
            boot_id,
            end_seconds: self.end.map_or(0, Instant::as_secs),
            strikes: self.strikes,
            since_seconds: self.since_seconds,
            data: self.data,
        }
    }
}

/// A block that stands, and what it is known by.
pub struct Standing<'a> {
    pub source: Network,
    pub facts: Facts,
    /// Has its ports.
    pub comment: &'a Comment,
    pub backend: Backend,
}

impl Blank for Block {
    const BLANK: Self = Self {
        end: None,
        ended: None,
        since_seconds: 0,
        strikes: 0,
        data: Data::Unknown,
        place: Place::Ipv4,
        scope: Scope::Everything,
        end_reason: EndReason::Expired,
        refusal: Refusal::Protected(Protection::Loopback),
        comment: Comment::BLANK,
        renewed: None,
        failures: 0,
        retry: Backoff::NONE,
        confirmed: None,
        listing: 0,
    };
}

/// What a listing has shown of one chain that jumps to ours.
#[derive(Clone, Copy)]
struct ShownHook {
    rules: u32,
    /// Its position from 1; 0 for none.
    first_jump: u32,
    jumps: u32,
}

/// What a listing has shown so far.
#[derive(Clone, Copy)]
struct Shown {
    /// The listing's.
    number: u32,
    has_chain: bool,
    /// The sets lack something that is no element.
    is_torn: bool,
    has_foreign_rules: bool,
    /// Of INPUT and FORWARD.
    hooks: [ShownHook; 2],
    /// A rule that we took away.
    came_back: bool,
}

impl Shown {
    const NOTHING: Self = Self {
        number: 0,
        has_chain: false,
        is_torn: false,
        has_foreign_rules: false,
        hooks: [ShownHook {
            rules: 0,
            first_jump: 0,
            jumps: 0,
        }; 2],
        came_back: false,
    };
}

/// Something to say and to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The kernel drops the source now.
    Blocked {
        /// The rule, for the undo command.
        rule: Rule,
        /// For how long; `None` for ever.
        length: Option<Duration>,
        /// Whether data was sent.
        data: Data,
    },
    /// The last check refused.
    Refused {
        /// The source.
        source: Network,
        /// Why.
        refusal: Refusal,
    },
    /// The kernel drops the source no longer.
    Unblocked {
        /// The source.
        source: Network,
        /// Why.
        reason: EndReason,
        /// Who did it, as the kernel calls the program; empty where that is not
        /// known.
        program: ProgramName,
    },
    /// Our jump is not the first rule and stays where it is: it would only be
    /// pushed down again.
    JumpStays {
        /// The chain it stands in.
        hook: Hook,
        /// The tool whose chain that is.
        tool: Tool,
        /// It is moved again if its position does not change for so long.
        wait: Duration,
        /// The first rules above it, printable bytes only.
        above: Text<ABOVE_MAX>,
    },
}

/// What the kernel calls a program, TASK_COMM_LEN of linux/sched.h less its NUL;
/// printable bytes only.
pub type ProgramName = Text<15>;

/// Bytes kept of the rules above our jump.
pub const ABOVE_MAX: usize = 160;

/// How long after a block was confirmed a new connection of its source hints
/// that the rule is gone.
const VERIFY_AFTER: Duration = Duration::from_millis(500);
/// Scans wait so long for the first listing.
const SETTLING: Duration = Duration::from_secs(2);

/// How blocks are made.
pub struct Policy<'a> {
    /// Where they go.
    pub choice: FirewallChoice,
    /// A root directory was named where iptables is to be.
    pub has_root: bool,
    /// This boot's id: its first 32 bits.
    pub boot_id: u32,
    /// Lengths of a source's first, second, … block; `None` is for ever, the
    /// last one repeats.
    pub lengths: &'a [Option<Duration>],
    /// Blocks a minute; more are held back. 0: what the place can bear.
    pub max_per_minute: u32,
    /// So many blocks of one network make it one block; 0: never.
    pub widen: u16,
    /// How long evidence counts: a block held back for longer is dropped.
    pub window: Duration,
    /// Whether the kernel holds the legacy filter table: only then is the legacy
    /// tool asked, which would make it.
    pub has_legacy: PerFamily<bool>,
}

/// What commands are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Task {
    /// Blocks are made, kept and ended. First and with a tag of its own, so
    /// that it is all zero bytes.
    Guard,
    /// The process is about to end: from now on what may hold blocks is listed
    /// once more, and what holds none is taken away. An operator may have lifted
    /// the last one since the last listing.
    End,
    /// Every table is listed once.
    List,
    /// Rules are taken away.
    Unblock {
        /// Those that this touches.
        target: Target,
        /// A chain that became empty is left to the daemon that runs.
        keeps_chain: bool,
    },
}

impl Task {
    /// Whether each table is dealt with once: what fails is not tried again.
    fn is_single_pass(self) -> bool {
        matches!(self, Self::List | Self::Unblock { .. })
    }

    fn keeps_chain(self) -> bool {
        match self {
            Self::Guard | Self::End => false,
            Self::List => true,
            Self::Unblock { keeps_chain, .. } => keeps_chain,
        }
    }
}

/// Which commands fail where blocking is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// One family's.
    Family(Family),
    /// Both.
    All,
}

impl Unusable {
    /// `ip6tables`, or all there is.
    #[inline(never)]
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Family(family) => iptables::family_name(family),
            Self::All => b"the firewall",
        }
    }
}

/// A walk over blocks, stage by stage. What comes to a stage while that is walked
/// is not of it.
struct Walk<'a> {
    /// The stages still to come, and the one that is walked.
    stages: &'a [Stage],
    stage: Stage,
    next: Option<Slot>,
    left: usize,
    place: Option<Place>,
}

/// Up to `N` blocks, with an index of `I`.
#[repr(C)]
pub struct Firewall<const N: usize, const I: usize> {
    choice: FirewallChoice,
    has_root: bool,
    boot_id: u32,
    lengths: Vec<Option<Duration>, 8>,
    /// From when on commands are made.
    enabled_at: Option<Instant>,
    has_ipv6: bool,
    has_legacy: PerFamily<bool>,
    tables: PerPlace<FilterTable>,
    running: Running,
    sets: Sets,
    lines: Lines,
    /// The last listing's number.
    listing: u32,
    /// By a child, and of the sets.
    shown: Shown,
    sets_shown: Shown,
    /// What --version said last.
    flavour: Flavour,
    adopted: u64,
    /// Rules that the listing showed above our jumps in INPUT and FORWARD.
    above: [Text<ABOVE_MAX>; 2],
    task: Task,
    /// Rules that `Task::Unblock` took away, and one that held more than it is
    /// about.
    removed: u64,
    lifted: Network,
    max_per_minute: u32,
    window: Duration,
    widen: u16,
    /// Some block is or was of a network of many /64s.
    has_wide: bool,
    next_grant: Option<Instant>,
    explanation: Explanation,
    /// No block ends before this; `None` where none does.
    next_end: Option<Instant>,
    /// The number of the place that comes first next time.
    turn: usize,
    repairs: u64,
    evictions: u64,
    blocks: Table<Network, Block, N, I>,
    stale: PerPlace<StaleRules>,
    /// What `Task::List` found in the table that was listed last.
    listing_ours: Vec<Rule, N>,
    listing_place: Place,
    shares: Shares,
    /// See `block_at`; blank.
    no_block: Block,
}

impl<const N: usize, const I: usize> Firewall<N, I> {
    /// No block, nothing known; all bytes zero.
    pub const fn new() -> Self {
        Self {
            choice: FirewallChoice::Auto,
            has_root: false,
            boot_id: 0,
            lengths: Vec::new(),
            enabled_at: None,
            has_ipv6: false,
            blocks: Table::new(),
            has_legacy: PerFamily::new(false, false),
            tables: PerPlace::new([FilterTable::UNKNOWN; Place::COUNT]),
            running: Running::NONE,
            sets: Sets::NONE,
            lines: Lines::new(),
            listing: 0,
            shown: Shown::NOTHING,
            sets_shown: Shown::NOTHING,
            flavour: Flavour::Nft,
            stale: PerPlace::new([const { StaleRules::NONE }; Place::COUNT]),
            adopted: 0,
            above: [const { Text::new() }; 2],
            task: Task::Guard,
            listing_ours: Vec::new(),
            listing_place: Place::Ipv4,
            removed: 0,
            lifted: Network::BLANK,
            max_per_minute: 0,
            window: Duration::ZERO,
            widen: 0,
            has_wide: false,
            next_grant: None,
            shares: Shares::NONE,
            explanation: Text::new(),
            next_end: None,
            turn: 0,
            repairs: 0,
            evictions: 0,
            no_block: Block::BLANK,
        }
    }

    /// Sets the secret and the rules of blocking. From then on commands are
    /// made.
    pub fn enable(&mut self, hash_key: HashKey, policy: &Policy, task: Task, now: Instant) {
        self.task = task;
        (self.choice, self.has_root) = (policy.choice, policy.has_root);
        self.table_mut(Place::Sets).state = State::Unlisted;
        self.enabled_at = Some(now);
        self.blocks.set_hash_key(hash_key);
        self.boot_id = policy.boot_id;
        self.lengths.clear();
        let _ = self.lengths.extend_from_slice(policy.lengths);
        (self.max_per_minute, self.widen) = (policy.max_per_minute, policy.widen);
        self.window = policy.window;
        self.has_legacy = policy.has_legacy;
    }

    /// The kernel speaks IPv6; until then ip6tables is left alone.
    pub fn set_ipv6(&mut self) {
        self.has_ipv6 = true;
    }

    /// Whether ip6tables is used.
    pub fn has_ipv6(&self) -> bool {
        self.has_ipv6
    }

    /// Whether scans lead to blocks.
    pub fn is_enabled(&self) -> bool {
        self.enabled_at.is_some()
    }

    /// Whether every filter table was understood and took our last block.
    pub fn is_up(&self) -> bool {
        self.is_enabled() && self.unusable().is_none()
    }

    /// The families whose blocks cannot be had.
    #[inline(never)]
    pub fn unusable(&self) -> Option<Unusable> {
        match (self.fails(Family::V4), self.fails(Family::V6)) {
            (false, false) => None,
            (true, true) => Some(Unusable::All),
            (true, false) => Some(Unusable::Family(Family::V4)),
            (false, true) => Some(Unusable::Family(Family::V6)),
        }
    }

    /// Whether blocks of this family cannot be had.
    #[inline(never)]
    fn fails(&self, family: Family) -> bool {
        let active = self.active(family);
        self.places().any(|place| {
            let table = self.table(place);
            let is_spare = match place {
                Place::Sets => table.chain == Chain::Never,
                _ => active == Place::Sets && !place.is_other(),
            };
            place.holds(family) && !table.works(place) && (place == active || !is_spare)
        })
    }

    /// Whether no block can be had at all.
    pub fn is_unusable(&self) -> bool {
        match self.unusable() {
            Some(Unusable::All) => true,
            Some(Unusable::Family(Family::V4)) => !self.has_ipv6,
            Some(Unusable::Family(Family::V6)) | None => false,
        }
    }

    /// Whether blocks may go into a chain.
    pub fn may_use_tools(&self) -> bool {
        self.choice != FirewallChoice::Nft
    }

    /// Where new blocks go, as far as is known.
    pub fn targets(&self) -> &'static [u8] {
        match self.active(Family::V4) {
            _ if !self.is_enabled() => b"none are made",
            _ if self.is_unusable() => b"none can be made",
            Place::Sets => b"nf_tables",
            _ => self.names(),
        }
    }

    /// What cannot be used where nothing can.
    pub fn names(&self) -> &'static [u8] {
        match self.choice {
            FirewallChoice::Iptables => b"iptables",
            _ => b"iptables or nf_tables",
        }
    }

    /// Whether nothing is amiss where there is no tool.
    fn does_without_tool(&self, family: Family) -> bool {
        let is_named = self.has_root || self.choice == FirewallChoice::Iptables;
        let can_do = self.can_use_sets(family) || self.task.is_single_pass();
        can_do && self.knows_sets() && !is_named
    }

    /// Whether nf_tables was listed.
    pub fn knows_sets(&self) -> bool {
        self.table(Place::Sets).last_listing.is_some()
    }

    /// Whether the rules that stand in the kernel are known, or will not be
    /// soon: only then it is known which sources are blocked already.
    pub fn is_settled(&self, now: Instant) -> bool {
        now.is_past(self.settled_at()) || self.first_listings().0
    }

    /// Whether every table was listed, or cannot be for now; and whether programs are
    /// run to change them.
    #[inline(never)]
    pub fn first_listings(&self) -> (bool, bool) {
        let (mut are_over, mut runs_tools) = (true, false);
        for place in self.places().filter(|_| self.is_enabled()) {
            are_over &= self.table(place).is_settled();
            runs_tools |= place != Place::Sets;
        }
        (are_over, runs_tools)
    }

    /// From now on no program can be run: what is left is nf_tables.
    pub fn give_up_tools(&mut self) {
        for place in Place::ALL.into_iter().take(Place::Sets as usize) {
            self.table_mut(place).is_given_up = true;
        }
    }

    /// When waiting for the first listing ends in any case.
    #[inline(never)]
    pub fn settled_at(&self) -> Option<Instant> {
        self.enabled_at.map(|enabled| enabled.after(SETTLING))
    }

    /// Blocks found in the kernel and taken over so far.
    pub fn adopted(&self) -> u64 {
        self.adopted
    }

    /// Whether our jumps are the first rules of INPUT and FORWARD wherever
    /// there is a chain of ours.
    pub fn is_jump_first(&self) -> bool {
        self.places().all(|place| {
            let table = self.table(place);
            !table.chain.exists()
                || place == Place::Sets
                || table.jumps.iter().all(|jump| jump.position == 1)
        })
    }

    /// Whether the source is blocked or about to be.
    pub fn is_blocked(&self, source: Network) -> bool {
        self.blocked_slot(source).is_some()
    }

    /// The ports that the rule of a source lists, or did.
    #[inline(never)]
    pub fn ports_of(&self, source: Network) -> &[u8] {
        let slot = self.blocks.find(&source);
        slot.map_or(b"", |slot| Facts::ports(&self.block_at(slot).comment))
    }

    /// The rules of ours that `Task::List` found in the table listed last, what
    /// that is called, and the boot they are to be of.
    pub fn take_listing(&mut self) -> (&mut Vec<Rule, N>, &'static [u8], u32) {
        let name = self.backend(self.listing_place).value();
        (&mut self.listing_ours, name, self.boot_id)
    }

    fn backend(&self, place: Place) -> Backend {
        let Some(family) = place.family() else {
            return Backend::Nft;
        };
        let other = self.table(Place::other(family)).program;
        if (other == Program::Legacy) == place.is_other() {
            Backend::IptablesLegacy
        } else {
            Backend::IptablesNft
        }
    }

    /// Whether blocks stand there, or the next one would.
    #[inline(never)]
    pub fn uses(&self, backend: Backend) -> bool {
        let is_next = |place, family| self.active(family) == place;
        self.is_enabled()
            && self.places().any(|place| {
                let table = self.table(place);
                let is_active =
                    is_next(place, Family::V4) || self.has_ipv6 && is_next(place, Family::V6);
                let can_take = table.is_usable() && table.last_listing.is_some();
                let is_used = table.chain.exists() || is_active && can_take;
                is_used && self.backend(place) == backend
            })
    }

    /// Rules that `Task::Unblock` took away, and one of those that held more than
    /// it is about.
    pub fn removed(&self) -> (u64, Option<Network>) {
        let lifted = Some(self.lifted).filter(|network| *network != Network::BLANK);
        (self.removed, lifted)
    }

    /// When the source's last block ended: connections first seen before are
    /// no evidence any more.
    #[inline(never)]
    pub fn ended(&self, source: Network) -> Option<Instant> {
        if self.blocks.is_empty() {
            return None;
        }
        let ended = |slot| match self.look(slot)? {
            (Stage::Ended | Stage::Removed, _, block) => block.ended,
            (
                Stage::Held
                | Stage::Wanted
                | Stage::Adding
                | Stage::Added
                | Stage::Standing
                | Stage::Lost
                | Stage::Restoring
                | Stage::Expired
                | Stage::Removing
                | Stage::Refused,
                ..,
            ) => None,
        };
        let (mut last, mut network) = (None, Some(source));
        while let Some(one) = network {
            last = last.max(self.blocks.find(&one).and_then(ended));
            network = self.around(one);
        }
        last
    }

    /// A blocked source opened a connection: if its rule should have kept it
    /// out, its table is listed soon.
    pub fn schedule_verify(&mut self, source: Network, now: Instant) {
        let slot = self.blocked_slot(source);
        let Some((Stage::Standing, _, block)) = slot.and_then(|slot| self.look(slot)) else {
            return;
        };
        let (confirmed, place) = (block.confirmed, block.place);
        if confirmed.is_none_or(|confirmed| now.since(confirmed) > VERIFY_AFTER) {
            if let Some(table) = self.tables.find_mut(place) {
                table.list_soon(now);
            }
            // What timed out before its end makes no generation.
            self.sets.generation = 0;
        }
    }

    /// Ends blocks that came to overlap a protected address.
    pub fn release_protected(&mut self, host: &Host) {
        // What is known is true, be it all or not.
        let is_protected = |source: &Network| {
            let protection = host.protected(*source);
            protection.is_some_and(|one| one != Protection::HostUnknown)
        };
        let mut walk = walk(&[Stage::Standing, Stage::Lost], None);
        while let Some(slot) = self.step(&mut walk) {
            if is_protected(self.source_at(slot)) {
                self.expire_block(slot, EndReason::Protected);
            }
        }
    }

    /// Blocks that stand in the kernel.
    #[inline(never)]
    pub fn standing(&self) -> usize {
        self.count(&[
            Stage::Added,
            Stage::Standing,
            Stage::Lost,
            Stage::Restoring,
            Stage::Expired,
            Stage::Removing,
        ])
    }

    /// Blocks that are about to be in the kernel.
    #[inline(never)]
    pub fn pending(&self) -> usize {
        self.count(&[Stage::Wanted, Stage::Adding])
    }

    #[inline(never)]
    fn count(&self, stages: &[Stage]) -> usize {
        let counts = stages.iter();
        counts
            .map(|stage| self.blocks.class_len(*stage as usize))
            .sum()
    }

    /// Blocks that wait for their share of the minute's.
    pub fn held_back(&self) -> usize {
        self.blocks.class_len(Stage::Held as usize)
    }

    /// The first source from `cursor` on that stands blocked, with its cursor,
    /// to list them in parts.
    #[inline(never)]
    pub fn standing_from(&self, cursor: u32) -> Option<(u32, Standing<'_>)> {
        let mut from = cursor;
        loop {
            let (at, slot) = self.blocks.next_from(from)?;
            let (stage, source, block) = self.look(slot)?;
            if stage.is_blocked() && !matches!(stage, Stage::Wanted | Stage::Adding) {
                let standing = Standing {
                    source: *source,
                    facts: block.facts(self.boot_id),
                    comment: &block.comment,
                    backend: self.backend(block.place),
                };
                return Some((at, standing));
            }
            from = at + 1;
        }
    }

    /// Blocks and memories of blocks, and how many fit.
    pub fn entries(&self) -> (usize, usize) {
        (self.blocks.len(), N)
    }

    /// Memories evicted for newer blocks so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Reloads by others that were put right so far.
    pub fn repairs(&self) -> u64 {
        self.repairs
    }

    /// Wants a scanner blocked, or the network that it is one of many scanners
    /// of. `Full` where every slot holds a block.
    #[inline(never)]
    pub fn block(&mut self, scan: &Scan, host: &Host, now: Instant) -> Result<(), Full> {
        if self.is_blocked(scan.source) {
            return Ok(());
        }
        let source = self.widened(scan.source, host, now);
        let slot = self.blocks.find(&source);
        let mut block = Block {
            since_seconds: now.as_secs(),
            strikes: 1,
            data: scan.data(),
            ..Block::BLANK
        };
        if let Some(slot) = slot {
            let (before, is_held) = (self.block_at(slot), self.stage(slot) == Stage::Held);
            block.strikes = before.strikes.saturating_add(u32::from(!is_held));
            // Until this one stands, the last one's end is what counts.
            block.ended = before.ended;
        }
        block.end = self.end(block.strikes, now);
        block.comment = block.facts(self.boot_id).write(&scan.ports);
        self.put(source, &block, Stage::Held)?;
        self.grant(now);
        Ok(())
    }

    /// Notes a source's block in the place of what is known of an earlier one.
    /// `Full` where every slot holds a block.
    #[inline(never)]
    fn put(&mut self, source: Network, block: &Block, stage: Stage) -> Result<(), Full> {
        self.has_wide |= source.is_wide();
        let slot = match self.blocks.find(&source) {
            Some(slot) => slot,
            None => self.new_slot(source)?,
        };
        // No rule while its place changes.
        self.set_stage(slot, Stage::Ended);
        *self.block_at_mut(slot) = *block;
        self.set_stage(slot, stage);
        self.next_end = nearest(self.next_end, block.end);
        Ok(())
    }

    fn new_slot(&mut self, source: Network) -> Result<Slot, Full> {
        if self.blocks.len() >= N {
            let oldest = self.blocks.oldest(Stage::Ended as usize).ok_or(Full)?;
            self.blocks.remove(oldest);
            self.evictions += 1;
        }
        self.blocks.place(source, Stage::Ended as usize)
    }

    /// Ends are whole seconds, rounded up, as the comment says them.
    fn end(&self, strikes: u32, now: Instant) -> Option<Instant> {
        let length = self.nominal_length(strikes)?;
        Some(Instant::from_secs(now.after(length).as_secs_rounded_up()))
    }

    /// The process is about to end.
    pub fn begin_end(&mut self, now: Instant) {
        self.task = Task::End;
        for &place in &Place::ALL {
            let table = self.table_mut(place);
            table.next_listing = Some(now);
            table.retry.hold(now);
            table.housekeeping.hold(now);
        }
    }

    // Ends.

    fn expire(&mut self, now: Instant) {
        while let Some(slot) = self.blocks.oldest(Stage::Ended as usize) {
            if now.is_within(STRIKE_MEMORY, self.block_at(slot).ended) {
                break;
            }
            self.blocks.remove(slot);
        }
        if now.reaches(self.next_grant) {
            self.grant(now);
        }
        if !now.reaches(self.next_end) {
            return;
        }
        self.next_end = None;
        let stages = &[Stage::Wanted, Stage::Added, Stage::Standing, Stage::Lost];
        let mut walk = walk(stages, None);
        while let Some(slot) = self.step(&mut walk) {
            let end = self.block_at(slot).end;
            if !now.reaches(end) {
                self.next_end = nearest(self.next_end, end);
            } else if walk.stage == Stage::Wanted {
                self.end_block(slot, EndReason::NeverStood, now);
            } else {
                self.set_stage(slot, Stage::Expired);
            }
        }
    }

    fn end_block(&mut self, slot: Slot, reason: EndReason, now: Instant) {
        let block = self.block_at_mut(slot);
        block.end_reason = reason;
        if reason != EndReason::NeverStood {
            block.ended = Some(now);
        }
        // An operator's decision outweighs ours.
        if matches!(reason, EndReason::Operator | EndReason::NeverStood) {
            block.strikes = block.strikes.saturating_sub(1);
        }
        self.set_stage(slot, Stage::Removed);
    }

    /// It is to go from the kernel.
    #[inline(never)]
    fn expire_block(&mut self, slot: Slot, reason: EndReason) {
        self.block_at_mut(slot).end_reason = reason;
        self.set_stage(slot, Stage::Expired);
    }

    /// The next thing to say and to count.
    #[inline(never)]
    pub fn next_notice(&mut self) -> Option<Notice> {
        if let Some(slot) = self.blocks.oldest(Stage::Added as usize) {
            self.absorb(*self.source_at(slot));
            let block = self.block_at(slot);
            let (data, end) = (block.data, block.end);
            let since = Instant::from_secs(block.since_seconds);
            let nominal = self.nominal_length(block.strikes);
            let stage = if block.renewed.is_none() {
                Stage::Standing
            } else {
                Stage::Lost
            };
            self.set_stage(slot, stage);
            return Some(Notice::Blocked {
                rule: self.rule(slot),
                length: end.map(|end| nominal.unwrap_or(end.since(since))),
                data,
            });
        }
        if let Some(slot) = self.blocks.oldest(Stage::Refused as usize) {
            let (source, refusal) = (*self.source_at(slot), self.block_at(slot).refusal);
            self.never_stood(slot);
            return Some(Notice::Refused { source, refusal });
        }
        if let Some(notice) = self.next_jump_notice() {
            return Some(notice);
        }
        let slot = self.blocks.oldest(Stage::Removed as usize)?;
        let (source, block) = (*self.source_at(slot), self.block_at(slot));
        let (reason, place) = (block.end_reason, block.place);
        if reason == EndReason::NeverStood {
            self.never_stood(slot);
        } else {
            self.set_stage(slot, Stage::Ended);
        }
        let is_known = reason == EndReason::Operator && place == Place::Sets;
        Some(Notice::Unblocked {
            source,
            reason,
            program: if is_known {
                self.sets.program.clone()
            } else {
                Text::new()
            },
        })
    }

    /// A jump that stays where it is. Said right after the listing that showed it, so
    /// that what stands above is of the same place.
    fn next_jump_notice(&mut self) -> Option<Notice> {
        for &place in &Place::ALL {
            let Some(family) = place.family() else { break };
            let table = self.tables.get_mut(place);
            let tool = table.tool(family);
            let hooks = table.jumps.iter_mut().zip(&self.above).zip(Hook::ALL);
            for ((jump, above), hook) in hooks {
                if let Some(wait) = jump.take_report() {
                    let above = above.clone();
                    return Some(Notice::JumpStays {
                        hook,
                        tool,
                        wait,
                        above,
                    });
                }
            }
        }
        None
    }

    /// Of a block that never stood only earlier strikes are worth remembering.
    #[inline(never)]
    fn never_stood(&mut self, slot: Slot) {
        self.set_stage(slot, Stage::Ended);
        if self.block_at(slot).strikes == 0 {
            self.blocks.remove(slot);
        }
    }

    /// How long a block of a source with so many strikes lasts; `None` for ever.
    #[inline(never)]
    fn nominal_length(&self, strikes: u32) -> Option<Duration> {
        let index = (strikes as usize).saturating_sub(1);
        self.lengths
            .get(index)
            .or(self.lengths.last())
            .copied()
            .flatten()
    }

    /// When the running child is to be asked or forced to end.
    pub fn child_deadline(&self) -> Option<Instant> {
        let is_busy = self.running.job != Job::None;
        self.running.deadline.filter(|_| is_busy)
    }

    /// The nearest moment at which something is to be done.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.is_enabled() {
            return None;
        }
        // A child keeps the chains waiting, not the sets.
        let is_busy = self.running.job != Job::None;
        let waits = |place| is_busy && place != Place::Sets || !self.is_present(place);
        let mut deadline = nearest(self.next_end, self.child_deadline());
        deadline = nearest(deadline, self.next_grant);
        for place in self.places().filter(|place| !waits(*place)) {
            let table = self.table(place);
            let retry = table.retry.end(now);
            let listing = if table.state != State::Listed {
                Some(retry)
            } else {
                table.next_listing.filter(|_| table.chain != Chain::Never)
            };
            let is_to_do = self.has_stale_rules(place)
                || self.lacks_frame(place)
                || self.may_remove_chain(place);
            let housekeeping = is_to_do.then(|| table.housekeeping.end(now));
            let due = nearest(listing, housekeeping);
            deadline = nearest(deadline, due.map(|due| due.max(retry)));
        }
        let mut walk = walk(&Stage::DUE, None);
        while let Some(slot) = self.step(&mut walk) {
            let place = self.place(slot);
            if !waits(place) {
                let (block, table) = (self.block_at(slot), self.table(place));
                let due = block.retry.end(now).max(table.retry.end(now));
                deadline = nearest(deadline, Some(due));
            }
        }
        deadline
    }

    // Small things.

    /// The places that matter here.
    fn places(&self) -> impl Iterator<Item = Place> + use<'_, N, I> {
        Place::ALL
            .into_iter()
            .filter(|place| self.is_present(*place))
    }

    /// The sets are; each family's preferred chain is, unless no tool is to be
    /// run; after that was listed, the other flavour's is where there may be
    /// rules of ours in it.
    #[inline(never)]
    fn is_present(&self, place: Place) -> bool {
        let table = self.table(place);
        let Some(family) = place.family() else {
            return !table.is_given_up;
        };
        let is_for_sets = self.choice == FirewallChoice::Nft && !self.task.is_single_pass();
        let has_family = self.has_ipv6 || family == Family::V4;
        let preferred = self.table(Place::preferred(family));
        let is_beside = table.state != State::Unfound && preferred.is_settled();
        let is_reached = !place.is_other() || is_beside;
        has_family && !is_for_sets && !table.is_given_up && is_reached
    }

    /// Where new blocks of a family go: some rules into the chain where that
    /// works, else into the sets.
    #[inline(never)]
    fn active(&self, family: Family) -> Place {
        // The preferred flavour's, unless only the other one has a chain of ours.
        let [preferred, other] = Place::chains(family).map(|place| self.table(place));
        let is_other = other.chain.exists() && !preferred.chain.exists();
        let (chain, table) = if is_other {
            (Place::other(family), other)
        } else {
            (Place::preferred(family), preferred)
        };
        let is_full = preferred.rules + other.rules >= CHAIN_RULES as u32;
        // One that was never listed may hang.
        let prefers_sets = is_full || table.last_listing.is_none();
        // Where the chain is of no use, sets that refused are tried all the same.
        let takes_sets = if table.is_usable() {
            prefers_sets && self.can_use_sets(family)
        } else {
            self.may_use_sets(family)
        };
        if self.choice == FirewallChoice::Nft || takes_sets {
            Place::Sets
        } else {
            chain
        }
    }

    /// Whether the sets take what the chain does not.
    fn can_use_sets(&self, family: Family) -> bool {
        self.may_use_sets(family) && self.table(Place::Sets).is_usable()
    }

    /// The same if they did not refuse.
    fn may_use_sets(&self, family: Family) -> bool {
        self.choice == FirewallChoice::Auto && self.knows_sets() && self.sets.takes(family)
    }

    /// Whether most blocks go into the sets.
    fn prefers_sets(&self) -> bool {
        self.choice == FirewallChoice::Nft || self.can_use_sets(Family::V4)
    }

    /// Where a block stands or shall stand.
    fn place(&self, slot: Slot) -> Place {
        if matches!(self.stage(slot), Stage::Held | Stage::Wanted) {
            self.active(self.source_at(slot).family())
        } else {
            self.block_at(slot).place
        }
    }

    #[inline(never)]
    fn table(&self, place: Place) -> &FilterTable {
        self.tables.get(place)
    }

    fn table_mut(&mut self, place: Place) -> &mut FilterTable {
        self.tables.get_mut(place)
    }

    /// Whether blocking a source of this family has to wait for the firewall.
    pub fn is_failing(&self, family: Family) -> bool {
        let table = self.table(self.active(family));
        table.retry.is_failing() || !table.is_usable()
    }

    fn shown(&self, place: Place) -> &Shown {
        match place {
            Place::Sets => &self.sets_shown,
            _ => &self.shown,
        }
    }

    fn shown_mut(&mut self, place: Place) -> &mut Shown {
        match place {
            Place::Sets => &mut self.sets_shown,
            _ => &mut self.shown,
        }
    }

    /// Whether a place's chain is of use. At the end what is only wanted never
    /// comes.
    fn has_blocks(&self, place: Place) -> bool {
        let mut wanted = walk(&[Stage::Wanted], Some(place));
        self.table(place).rules > 0 || self.task != Task::End && self.step(&mut wanted).is_some()
    }

    /// What the other parts of the daemon look at, which reach this one by a
    /// pointer: with a function of their own the compiler knows its address in
    /// all the others.
    #[inline(never)]
    fn look(&self, slot: Slot) -> Option<(Stage, &Network, &Block)> {
        let (class, source, block) = self.blocks.look(slot)?;
        Some((Stage::from_class(class), source, block))
    }

    #[inline(never)]
    fn stage(&self, slot: Slot) -> Stage {
        Stage::from_class(self.blocks.class(slot).unwrap_or(Stage::Ended as usize))
    }

    #[inline(never)]
    fn set_stage(&mut self, slot: Slot, stage: Stage) {
        let was_rule = self.stage(slot).is_rule();
        let place = self.block_at(slot).place;
        let rules = &mut self.tables.get_mut(place).rules;
        *rules = rules.wrapping_add(stage.is_rule().into());
        *rules = rules.wrapping_sub(was_rule.into());
        self.blocks.touch(slot, stage as usize);
    }

    fn rule(&self, slot: Slot) -> Rule {
        let block = self.block_at(slot);
        Rule {
            source: *self.source_at(slot),
            scope: block.scope,
            comment: block.comment,
        }
    }

    /// The block in a slot. What stands in for none spares all callers to say
    /// what then: they have their slots from the table.
    #[inline(never)]
    fn block_at(&self, slot: Slot) -> &Block {
        self.blocks.value(slot).unwrap_or(&self.no_block)
    }

    #[inline(never)]
    fn block_at_mut(&mut self, slot: Slot) -> &mut Block {
        let block = self.blocks.value_mut(slot);
        block.unwrap_or(&mut self.no_block)
    }

    #[inline(never)]
    fn source_at(&self, slot: Slot) -> &Network {
        self.blocks.key(slot).unwrap_or(&Network::BLANK)
    }

    /// The next block of a walk; it may be moved to another stage then.
    fn step(&self, walk: &mut Walk) -> Option<Slot> {
        loop {
            let slot = self.step_anywhere(walk)?;
            if walk.place.is_none_or(|place| self.place(slot) == place) {
                return Some(slot);
            }
        }
    }

    #[inline(never)]
    fn step_anywhere(&self, walk: &mut Walk) -> Option<Slot> {
        while walk.next.is_none() || walk.left == 0 {
            let (stage, rest) = walk.stages.split_first()?;
            (walk.stage, walk.stages) = (*stage, rest);
            walk.next = self.blocks.oldest(*stage as usize);
            walk.left = self.blocks.class_len(*stage as usize);
        }
        let slot = walk.next?;
        walk.left -= 1;
        walk.next = self.blocks.younger(slot);
        Some(slot)
    }
}

/// A walk over the blocks that are in such stages: those of one place, or of all.
#[inline(never)]
fn walk(stages: &[Stage], place: Option<Place>) -> Walk<'_> {
    Walk {
        stages,
        stage: Stage::Held,
        next: None,
        left: 0,
        place,
    }
}
