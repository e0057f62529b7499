//! Counters and gauges: all numbers in the order in which `exposition` writes
//! them. Metrics observe and decide nothing.
//!
//! What has one value is set or counted (`metrics.set(RESETS_SENT, 7)`), what has
//! labels by them (`metrics.count(UNBLOCKS.of(EndReason::Expired))`), durations
//! are observed (`metrics.observe(READING_DURATION, duration)`).

use core::marker::PhantomData;

use crate::address::Family;
use crate::connections::Direction;
use crate::firewall::Backend;
use crate::firewall::{EndReason, Refusal};
use crate::http::Status;
use crate::kernel::{Exit, HookRun, ProcessStatus};
use crate::label::{Label, label};
use crate::limits;
use crate::packets::Kind;
use crate::probes::Target;
use crate::proc_net_tcp::TcpState;
use crate::sandbox::{Layer, Tier};
use crate::time::Duration;

/// An enum whose variants are the values of a label, for what no stage has a
/// type of its own.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        label!($name, $label, 0, [$($value),+]);
    };
}

labels! {
    /// The two files of one reading.
    RowsFile "file" {
        /// /proc/net/tcp.
        Tcp = "tcp",
        /// /proc/net/tcp6.
        Tcp6 = "tcp6",
    }
}

impl RowsFile {
    /// The one that shows a family's sockets.
    pub const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self::Tcp,
            Family::V6 => Self::Tcp6,
        }
    }
}

/// Why a reading was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// `--interval` had passed.
    Scheduled,
    /// Something hinted at connections not seen yet.
    Early,
}

labels! {
    /// Where evidence comes from.
    EvidenceSource "source" {
        /// Rows of /proc/net/tcp and tcp6.
        Readings = "readings",
        /// Destroy events of NETLINK_SOCK_DIAG.
        DestroyEvents = "destroy_events",
        /// The same of other network namespaces.
        Namespaces = "namespaces",
    }
}

labels! {
    /// What the look-up of a connection that a SYN asked for found.
    Found "result" {
        /// One whose handshake was completed.
        Proven = "proven",
        /// One whose handshake was not.
        Open = "open",
        /// None.
        None = "none",
    }
}

labels! {
    /// The fixed-capacity tables.
    Table "table" {
        /// 4-tuples remembered.
        Connections = "connections",
        /// Sources watched.
        Sources = "sources",
        /// Sources blocked, waiting to be, or with strikes.
        Blocks = "blocks",
        /// Listening endpoints.
        Listeners = "listeners",
        /// Sources that ask for ports.
        Probes = "probes",
    }
}

/// What each table can hold, in the order of `Table`.
const TABLE_CAPACITIES: [u64; 5] = [
    limits::CONNECTIONS as u64,
    limits::SOURCES as u64,
    limits::BLOCKS as u64,
    limits::LISTENERS as u64,
    limits::PROBERS as u64,
];

labels! {
    /// Why a block could not be put into the kernel at one try.
    BlockFailure "reason" {
        /// Another process held the firewall's lock.
        Lock = "lock",
        /// Not permitted.
        Permission = "permission",
        /// The tool is not there.
        Missing = "missing",
        /// The tool refused the rule.
        Refused = "refused",
        /// The tool did not end in time.
        Timeout = "timeout",
        /// The tool was ended by a signal.
        Signal = "signal",
        /// No child could be started.
        Spawn = "spawn",
    }
}

labels! {
    /// How a firewall command ended.
    CommandExit "exit" {
        /// Exit status 0.
        Status0 = "0",
        /// Exit status 1.
        Status1 = "1",
        /// Exit status 2.
        Status2 = "2",
        /// Exit status 3.
        Status3 = "3",
        /// Exit status 4: with iptables lock or permission.
        Status4 = "4",
        /// Exit status 127: the program could not be started.
        Status127 = "127",
        /// Any other exit status.
        Other = "other",
        /// Ended by a signal of another process.
        Signal = "signal",
        /// Ended by us, past its deadline.
        Timeout = "timeout",
    }
}

impl CommandExit {
    /// The label of how a child ended by itself.
    pub fn new(exit: Exit) -> Self {
        match exit {
            Exit::Status(0) => Self::Status0,
            Exit::Status(1) => Self::Status1,
            Exit::Status(2) => Self::Status2,
            Exit::Status(3) => Self::Status3,
            Exit::Status(4) => Self::Status4,
            Exit::Status(127) => Self::Status127,
            Exit::Status(_) => Self::Other,
            Exit::Signal(_) => Self::Signal,
        }
    }
}

/// The binary that runs, whose labels are always the same.
#[derive(Clone, Copy)]
pub struct Running;

impl Label for Running {
    // build.rs lets no blank and no quote in.
    const WORDS: &'static str = concat!(
        "version ",
        env!("CARGO_PKG_VERSION"),
        "\",target=\"",
        env!("TCPPARSER_TARGET"),
        "\",revision=\"",
        env!("TCPPARSER_REVISION")
    );
    const COUNT: usize = 1;

    fn index(self) -> usize {
        0
    }
}

/// Where one number stands.
#[derive(Clone, Copy)]
pub struct Number(usize);

impl Number {
    const COUNT: usize = 1;
    const LABELS: [&'static str; 2] = ["", ""];

    const fn at(place: usize) -> Self {
        Self(place)
    }
}

/// One number for each value of a label.
#[derive(Clone, Copy)]
pub struct Labelled<L>(usize, PhantomData<L>);

impl<L: Label> Labelled<L> {
    const COUNT: usize = L::COUNT;
    const LABELS: [&'static str; 2] = ["", L::WORDS];

    const fn at(place: usize) -> Self {
        Self(place, PhantomData)
    }

    /// The number of this kind; nowhere if it is not counted.
    pub fn of(self, label: L) -> Number {
        let index = label.index();
        let is_counted = index < L::COUNT;
        Number(if is_counted { self.0 + index } else { NUMBERS })
    }
}

/// One number for each pair of values of two labels, those of the first value of
/// `A` first.
#[derive(Clone, Copy)]
pub struct Grid<A, B>(usize, PhantomData<(A, B)>);

impl<A: Label, B: Label> Grid<A, B> {
    const COUNT: usize = A::COUNT * B::COUNT;
    const LABELS: [&'static str; 2] = [A::WORDS, B::WORDS];

    const fn at(place: usize) -> Self {
        Self(place, PhantomData)
    }

    /// The number of this kind.
    pub fn of(self, a: A, b: B) -> Number {
        Number(self.0 + a.index() * B::COUNT + b.index())
    }
}

/// Durations counted by the bucket they fall into, then how many there were, and
/// how long they were together.
#[derive(Clone, Copy)]
pub struct Durations(usize);

impl Durations {
    const COUNT: usize = BUCKETS.len() + 2;
    const LABELS: [&'static str; 2] = ["", ""];

    const fn at(place: usize) -> Self {
        Self(place)
    }
}

/// The upper bounds of the buckets of all durations: from the fastest reading
/// (some 50 us) to the deadline of a firewall command (10 s).
pub const BUCKETS: [Duration; 12] = [
    microseconds(100),
    microseconds(500),
    microseconds(1_000),
    microseconds(2_500),
    microseconds(5_000),
    microseconds(10_000),
    microseconds(25_000),
    microseconds(100_000),
    microseconds(500_000),
    microseconds(1_000_000),
    microseconds(5_000_000),
    microseconds(10_000_000),
];

const fn microseconds(number: u64) -> Duration {
    Duration::from_nanos(number * 1_000)
}

/// Declares all families, in the order in which they are exposed: kind, name
/// (without `_total` and `_info`), numbers, and what it means. A name that ends
/// with `_seconds` or `_bytes` says its unit; seconds are counted in nanoseconds.
/// What a family means is one line without quotes and backslashes, so that neither
/// format needs to escape any of it.
macro_rules! families {
    ($($kind:ident $name:literal = $family:ident: $numbers:ty, $help:literal;)+) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Order { $($family,)+ }

        /// How many numbers each has.
        const COUNTS: &[usize] = &[$(<$numbers>::COUNT,)+];

        $(
            #[doc = $help]
            pub const $family: $numbers = <$numbers>::at(sum(COUNTS, Order::$family as usize));
        )+

        const WORDS: &[&str] = &[$(
            digit!($kind), $name, "|", $help, "|",
            <$numbers>::LABELS[0], "|", <$numbers>::LABELS[1], "\n",
        )+];
    };
}

/// How a kind is named in `FAMILIES`.
macro_rules! digit {
    (counter) => {
        "0"
    };
    // The kernel's, which did not start with this process.
    (counter_since_boot) => {
        "1"
    };
    (gauge) => {
        "2"
    };
    (histogram) => {
        "3"
    };
    (info) => {
        "4"
    };
}

/// A line for each family: the digit of its kind with its name, what it means,
/// and its labels with their values, between bars. One text, since a table of
/// texts would be addresses that the loader writes into memory of our own.
pub const FAMILIES: &[u8] = &joined::<{ length(WORDS) }>(WORDS);

const fn length(words: &[&str]) -> usize {
    let (mut at, mut length) = (0, 0);
    while at < words.len() {
        length += words[at].len();
        at += 1;
    }
    length
}

const fn joined<const N: usize>(words: &[&str]) -> [u8; N] {
    let (mut text, mut length, mut at) = ([0; N], 0, 0);
    while at < words.len() {
        let (word, mut from) = (words[at].as_bytes(), 0);
        while from < word.len() {
            text[length] = word[from];
            (length, from) = (length + 1, from + 1);
        }
        at += 1;
    }
    text
}

/// The sum of the first of these.
const fn sum(numbers: &[usize], count: usize) -> usize {
    let (mut at, mut sum) = (0, 0);
    while at < count {
        sum += numbers[at];
        at += 1;
    }
    sum
}

const NUMBERS: usize = sum(COUNTS, COUNTS.len());

families! {
    info "build" = BUILD: Labelled<Running>,
        "Always 1; version, target and revision of the running binary.";
    counter "readings" = READINGS: Number,
        "Passes over /proc/net/tcp and tcp6, scheduled and early ones together.";
    counter "scheduled_readings" = SCHEDULED_READINGS: Number,
        "Readings made because the interval had passed.";
    counter "early_readings" = EARLY_READINGS: Number,
        "Readings made ahead of schedule.";
    counter "readings_failed" = READINGS_FAILED: Number,
        "Readings given up because a file could not be read.";
    histogram "reading_duration_seconds" = READING_DURATION_SECONDS: Durations,
        "How long readings took.";
    gauge "last_reading_timestamp_seconds" = LAST_READING_TIMESTAMP_SECONDS: Number,
        "Unix time of the last good reading, 0 before the first.";
    gauge "interval_seconds" = INTERVAL_SECONDS: Number,
        "Time between scheduled readings, as configured.";
    counter "rows" = ROWS: Labelled<RowsFile>,
        "Valid rows read, by file.";
    counter "malformed_rows" = MALFORMED_ROWS: Number,
        "Lines of /proc/net/tcp and tcp6 that were no row.";
    gauge "connections" = CONNECTIONS: Grid<Family, TcpState>,
        "TCP sockets of the last reading, without those within the host, by address family and state.";
    counter "new_connections" = NEW_CONNECTIONS: Grid<Direction, Family>,
        "Connections first seen, without those within the host, by who opened them and address family.";
    counter "connections_missed" = CONNECTIONS_MISSED: Number,
        "Inbound connections the kernel completed and nothing here saw.";
    counter_since_boot "resets_sent" = RESETS_SENT: Number,
        "Resets sent by this host since boot: refused connects, aborts by services, destroyed sockets.";
    counter "destroy_events" = DESTROY_EVENTS: Number,
        "Socket destroy events received from the kernel.";
    counter "events_unproven" = EVENTS_UNPROVEN: Number,
        "Destroy events of inbound connections whose handshake nothing proves: no evidence.";
    counter "destroy_event_overflows" = DESTROY_EVENT_OVERFLOWS: Number,
        "Times the kernel dropped destroy events because the receive buffer was full.";
    counter "namespace_events" = NAMESPACE_EVENTS: Number,
        "Socket destroy events of other network namespaces, without those of private peers.";
    counter "malformed_events" = MALFORMED_EVENTS: Number,
        "Messages on the event sockets that were no destroy event.";
    gauge "evidence_source_up" = EVIDENCE_SOURCE_UP: Labelled<EvidenceSource>,
        "Whether a source of evidence works.";
    gauge "witness_up" = WITNESS_UP: Number,
        "Whether packet sockets show what asks for connections.";
    counter "witness_packets" = WITNESS_PACKETS: Number,
        "Packets they showed: SYN, NULL, FIN, XMAS.";
    counter "witness_packets_dropped" = WITNESS_PACKETS_DROPPED: Number,
        "Packets they had no room for.";
    counter "witness_pauses" = WITNESS_PAUSES: Number,
        "Times they paused because of too many packets.";
    counter "witness_lookups" = WITNESS_LOOKUPS: Labelled<Found>,
        "Connections looked up for a SYN, by what was found.";
    counter "probing_sources" = PROBING_SOURCES: Grid<Kind, Target>,
        "Sources that asked for ports without a handshake; may be forged.";
    counter "probes_of_blocked" = PROBES_OF_BLOCKED: Number,
        "Such packets of blocked sources.";
    counter "port_scans" = PORT_SCANS: Number,
        "Port scans reported.";
    counter "blocks" = BLOCKS: Number,
        "Blocks of a source that the kernel has confirmed, without adopted ones.";
    counter "blocks_adopted" = BLOCKS_ADOPTED: Number,
        "Blocks found in the kernel and taken over.";
    counter "block_failures" = BLOCK_FAILURES: Labelled<BlockFailure>,
        "Tries to block that failed, by reason.";
    counter "unblocks" = UNBLOCKS: Labelled<EndReason>,
        "Blocks that ended, by reason.";
    counter "blocks_refused" = BLOCKS_REFUSED: Labelled<Refusal>,
        "Port scans that no block followed, by reason.";
    gauge "blocked_sources" = BLOCKED_SOURCES: Number,
        "Sources blocked in the kernel now.";
    gauge "blocks_pending" = BLOCKS_PENDING: Number,
        "Blocks decided and not yet in the kernel.";
    gauge "blocking_enabled" = BLOCKING_ENABLED: Number,
        "Whether scanners are to be blocked: 0 in a dry run and without a firewall.";
    gauge "firewall_up" = FIREWALL_UP: Number,
        "Whether the firewall can be used.";
    info "firewall" = FIREWALL: Labelled<Backend>,
        "Always 1; what holds blocks, or would hold the next one.";
    gauge "sandbox_info" = SANDBOX_INFO: Labelled<Tier>,
        "1 for the sandbox that was entered.";
    gauge "sandbox" = SANDBOX: Labelled<Layer>,
        "Whether the kernel holds up each part of it.";
    gauge "firewall_jump_first" = FIREWALL_JUMP_FIRST: Number,
        "Whether the jump to our chain is the first rule.";
    gauge "host_facts_known" = HOST_FACTS_KNOWN: Number,
        "Whether own addresses and gateways are fully known: without that nothing is blocked.";
    counter "firewall_repairs" = FIREWALL_REPAIRS: Number,
        "Times our rules were lost and built again.";
    counter "firewall_commands" = FIREWALL_COMMANDS: Labelled<CommandExit>,
        "Firewall commands run, by exit status; what nf_tables does counts as 0, or other.";
    histogram "firewall_command_duration_seconds" = FIREWALL_COMMAND_DURATION_SECONDS: Durations,
        "How long firewall commands took.";
    counter "hook_runs" = HOOK_RUNS: Labelled<HookRun>,
        "Events for the hook, by what became of its run.";
    counter "sockets_destroyed" = SOCKETS_DESTROYED: Number,
        "Sockets of blocked sources that were destroyed.";
    gauge "table_entries" = TABLE_ENTRIES: Labelled<Table>,
        "Entries in each fixed-size table now.";
    gauge "table_capacity" = TABLE_CAPACITY: Labelled<Table>,
        "Entries each fixed-size table can hold.";
    counter "table_evictions" = TABLE_EVICTIONS: Labelled<Table>,
        "Entries evicted from a full table, or refused by one.";
    counter "output_lines_dropped" = OUTPUT_LINES_DROPPED: Number,
        "Lines lost because standard output was blocked or broken.";
    gauge "http_clients" = HTTP_CLIENTS: Number,
        "HTTP clients connected now.";
    counter "http_clients_accepted" = HTTP_CLIENTS_ACCEPTED: Number,
        "HTTP clients accepted.";
    counter "http_clients_evicted" = HTTP_CLIENTS_EVICTED: Number,
        "HTTP clients evicted for a newer one.";
    counter "http_requests" = HTTP_REQUESTS: Labelled<Status>,
        "HTTP requests answered, by status code.";
    counter "process_cpu_seconds" = CPU_SECONDS: Number,
        "Total user and system CPU time spent in seconds.";
    gauge "process_open_fds" = OPEN_FDS: Number,
        "Number of open file descriptors.";
    gauge "process_max_fds" = MAX_FDS: Number,
        "Maximum number of open file descriptors.";
    gauge "process_virtual_memory_bytes" = VIRTUAL_MEMORY_BYTES: Number,
        "Virtual memory size in bytes.";
    gauge "process_virtual_memory_max_bytes" = VIRTUAL_MEMORY_MAX_BYTES: Number,
        "Maximum amount of virtual memory available in bytes.";
    gauge "process_resident_memory_bytes" = RESIDENT_MEMORY_BYTES: Number,
        "Resident memory size in bytes.";
    gauge "process_start_time_seconds" = START_TIME_SECONDS: Number,
        "Start time of the process since unix epoch in seconds.";
}

/// Everything that is counted.
pub struct Metrics {
    numbers: [u64; NUMBERS],
}

impl Metrics {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            numbers: [0; NUMBERS],
        }
    }

    /// One more.
    pub fn count(&mut self, number: Number) {
        self.add(number, 1);
    }

    /// So many more.
    pub fn add(&mut self, number: Number, more: u64) {
        if let Some(value) = self.numbers.get_mut(number.0) {
            *value = value.wrapping_add(more);
        }
    }

    /// Sets a gauge, or what is counted elsewhere.
    pub fn set(&mut self, number: Number, to: impl Into<u64>) {
        if let Some(value) = self.numbers.get_mut(number.0) {
            *value = to.into();
        }
    }

    /// Counts one duration.
    pub fn observe(&mut self, durations: Durations, duration: Duration) {
        let mut bounds = BUCKETS.iter();
        let bucket = bounds.position(|bound| duration <= *bound);
        let count = durations.0 + BUCKETS.len();
        self.count(Number(
            bucket.map_or(NUMBERS, |bucket| durations.0 + bucket),
        ));
        self.count(Number(count));
        self.add(Number(count + 1), duration.as_nanos());
    }

    /// All zero again: gauges are counted anew by each reading.
    pub fn clear<A: Label, B: Label>(&mut self, grid: Grid<A, B>) {
        let numbers = self.numbers.iter_mut().skip(grid.0);
        for number in numbers.take(Grid::<A, B>::COUNT) {
            *number = 0;
        }
    }

    /// What the kernel says about this process, and what is always the same.
    #[inline(never)]
    pub fn set_process(&mut self, process: &ProcessStatus) {
        let or_infinite = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        self.set(BUILD.of(Running), true);
        let capacities = self.numbers.get_mut(TABLE_CAPACITY.0..);
        if let Some(capacities) = capacities.and_then(|numbers| numbers.first_chunk_mut()) {
            *capacities = TABLE_CAPACITIES;
        }
        self.set(CPU_SECONDS, process.cpu_time.as_nanos());
        self.set(OPEN_FDS, process.open_descriptors);
        self.set(MAX_FDS, or_infinite(process.max_descriptors));
        self.set(VIRTUAL_MEMORY_BYTES, process.virtual_bytes);
        self.set(
            VIRTUAL_MEMORY_MAX_BYTES,
            or_infinite(process.max_virtual_bytes),
        );
        self.set(RESIDENT_MEMORY_BYTES, process.resident_bytes);
    }

    /// The number now.
    pub fn get(&self, number: Number) -> u64 {
        self.numbers.get(number.0).copied().unwrap_or(0)
    }

    /// All of them, in the order of `FAMILIES`.
    pub fn numbers(&self) -> &[u64] {
        &self.numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::Data;
    use crate::host::Protection;

    #[test]
    fn labels_count_apart() {
        let mut metrics = Metrics::new();
        metrics.count(ROWS.of(RowsFile::Tcp6));
        metrics.add(ROWS.of(RowsFile::Tcp), 2);
        assert_eq!(metrics.get(ROWS.of(RowsFile::Tcp6)), 1);
        assert_eq!(metrics.get(ROWS.of(RowsFile::Tcp)), 2);
        metrics.count(UNBLOCKS.of(EndReason::NeverStood));
        let all: u64 = metrics.numbers().iter().sum();
        assert_eq!(all, 3, "no value of that label");
    }

    #[test]
    fn grids_hold_one_number_for_each_pair() {
        let mut metrics = Metrics::new();
        let families = [Family::V4, Family::V6];
        let pairs = families.map(|family| TcpState::ALL.map(|state| (family, state)));
        for (times, (family, state)) in pairs.concat().into_iter().enumerate() {
            (0..times).for_each(|_| metrics.count(CONNECTIONS.of(family, state)));
        }
        for (times, (family, state)) in pairs.concat().into_iter().enumerate() {
            assert_eq!(metrics.get(CONNECTIONS.of(family, state)), times as u64);
        }
        metrics.count(MALFORMED_ROWS);
        metrics.count(NEW_CONNECTIONS.of(Direction::Inbound, Family::V4));
        metrics.clear(CONNECTIONS);
        let all: u64 = metrics.numbers().iter().sum();
        assert_eq!(all, 2, "those beside stay");
    }

    /// What no number has is at no other one's place.
    #[test]
    fn numbers_stand_one_after_the_other() {
        assert_eq!(BUILD.0, 0);
        assert_eq!(MALFORMED_ROWS.0, ROWS.0 + 2);
        assert_eq!(NEW_CONNECTIONS.0, CONNECTIONS.0 + 22);
        assert_eq!(HOOK_RUNS.0, FIREWALL_COMMAND_DURATION_SECONDS.0 + 14);
        assert_eq!(START_TIME_SECONDS.0 + 1, NUMBERS);
        assert!(Metrics::new().numbers().iter().all(|number| *number == 0));
    }

    /// Each refusal has a label and words of its own, in the right order.
    #[test]
    fn every_refusal_has_its_label() {
        let mut words = std::vec::Vec::new();
        for (refusal, expected) in [
            (Refusal::Protected(Protection::Loopback), "loopback"),
            (Refusal::Protected(Protection::Unspecified), "unspecified"),
            (Refusal::Protected(Protection::Multicast), "multicast"),
            (Refusal::Protected(Protection::Broadcast), "broadcast"),
            (Refusal::Protected(Protection::LinkLocal), "link_local"),
            (Refusal::Protected(Protection::OwnAddress), "own"),
            (Refusal::Protected(Protection::Gateway), "gateway"),
            (Refusal::Protected(Protection::Nameserver), "nameserver"),
            (Refusal::Protected(Protection::Allowed), "allowed"),
            (Refusal::Protected(Protection::SshPeer), "ssh_peer"),
            (Refusal::Protected(Protection::HostUnknown), "host_unknown"),
            (Refusal::DataSent(Data::Sent), "data_sent"),
            (Refusal::Rate, "rate"),
            (Refusal::DryRun, "dry_run"),
            (Refusal::NoFirewall, "no_firewall"),
            (Refusal::TableFull, "table_full"),
            (Refusal::Spread, "spread"),
            (Refusal::WayUnseen, "way_unseen"),
        ] {
            assert_eq!(value(refusal), expected);
            assert!(!words.contains(&refusal.words()), "{expected}");
            words.push(refusal.words());
        }
        assert_eq!(words.len(), Refusal::COUNT);
    }

    #[test]
    fn states_and_ends_have_their_labels() {
        for (state, expected) in TcpState::ALL.into_iter().zip(TcpState::values()) {
            let name: std::string::String = std::format!("{state:?}")
                .chars()
                .map(|letter| letter.to_ascii_lowercase())
                .collect();
            let expected = std::str::from_utf8(expected).unwrap();
            assert_eq!(name, expected.replace('_', ""));
            assert_eq!(value(state), expected);
        }
        assert_eq!(value(EndReason::Protected), "protected");
        assert_eq!(value(Direction::Outbound), "out");
        assert_eq!(value(Family::V6), "6");
    }

    fn value<L: Label>(label: L) -> &'static str {
        assert_eq!(L::values().count(), L::COUNT);
        let word = L::values().nth(label.index()).unwrap();
        std::str::from_utf8(word).unwrap()
    }

    #[test]
    fn durations_fall_into_the_first_bucket_that_holds_them() {
        let mut metrics = Metrics::new();
        let place = READING_DURATION_SECONDS.0;
        for (index, bound) in BUCKETS.iter().enumerate() {
            metrics.observe(READING_DURATION_SECONDS, *bound);
            assert_eq!(metrics.numbers()[place + index], 1, "{bound:?}");
        }
        metrics.observe(READING_DURATION_SECONDS, Duration::from_secs(11));
        let [buckets @ .., count, sum] = &metrics.numbers()[place..place + Durations::COUNT] else {
            panic!("two more");
        };
        assert_eq!(*count, BUCKETS.len() as u64 + 1);
        assert_eq!(buckets.iter().sum::<u64>(), BUCKETS.len() as u64);
        let all = BUCKETS.iter().map(|bound| bound.as_nanos()).sum::<u64>();
        assert_eq!(*sum, all + Duration::from_secs(11).as_nanos());
        assert!(BUCKETS.is_sorted());
    }

    #[test]
    fn every_exit_has_its_label() {
        for (exit, expected) in [
            (Exit::Status(0), "0"),
            (Exit::Status(4), "4"),
            (Exit::Status(5), "other"),
            (Exit::Status(127), "127"),
            (Exit::Signal(9), "signal"),
        ] {
            assert_eq!(value(CommandExit::new(exit)), expected);
        }
    }

    #[test]
    fn tables_have_capacities() {
        assert_eq!(TABLE_CAPACITIES.len(), Table::COUNT);
    }
}
