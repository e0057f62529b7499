//! Counters and gauges: a plain struct that every stage's caller writes into
//! and `exposition` reads. Metrics observe and decide nothing.
//!
//! What has one value is a public field (`metrics.resets_sent = 7`), what has
//! labels is counted by them (`metrics.unblocks.count(UnblockReason::Expired)`),
//! durations are observed (`metrics.reading_duration.observe(duration)`).

use core::marker::PhantomData;

use crate::address::Family;
use crate::connections::Direction;
use crate::firewall::Backend;
use crate::firewall::{EndReason, Refusal};
use crate::http::Status;
use crate::kernel::{Exit, HookRun};
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

labels! {
    /// Why a reading was made.
    Trigger "trigger" {
        /// `--interval` had passed.
        Scheduled = "scheduled",
        /// Something hinted at connections not seen yet.
        Early = "early",
    }
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
pub const TABLE_CAPACITIES: [u64; 5] = [
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

/// One number for each value of a label.
pub struct Labelled<L, const N: usize> {
    values: [u64; N],
    label: PhantomData<L>,
}

impl<L: Label, const N: usize> Labelled<L, N> {
    /// All zero.
    pub const fn new() -> Self {
        const { assert!(N == L::COUNT, "one number for each value") };
        Self {
            values: [0; N],
            label: PhantomData,
        }
    }

    /// One more of this kind.
    pub fn count(&mut self, label: L) {
        self.add(label, 1);
    }

    /// `number` more of this kind.
    pub fn add(&mut self, label: L, number: u64) {
        if let Some(value) = self.values.get_mut(label.index()) {
            *value = value.wrapping_add(number);
        }
    }

    /// Sets a gauge.
    pub fn set(&mut self, label: L, number: u64) {
        if let Some(value) = self.values.get_mut(label.index()) {
            *value = number;
        }
    }

    /// The number of this kind.
    pub fn get(&self, label: L) -> u64 {
        self.values.get(label.index()).copied().unwrap_or(0)
    }

    /// The sum of all kinds.
    pub fn total(&self) -> u64 {
        self.values.iter().fold(0, |sum, n| sum.wrapping_add(*n))
    }

    /// The numbers in the order of `L::values`.
    pub fn values(&self) -> &[u64] {
        &self.values
    }
}

/// One number for each pair of values of two labels; `N` is the product.
pub struct Grid<A, B, const N: usize> {
    values: [u64; N],
    labels: PhantomData<(A, B)>,
}

impl<A: Label, B: Label, const N: usize> Grid<A, B, N> {
    /// All zero.
    pub const fn new() -> Self {
        const { assert!(N == A::COUNT * B::COUNT, "one for each pair") };
        Self {
            values: [0; N],
            labels: PhantomData,
        }
    }

    fn index(a: A, b: B) -> usize {
        a.index() * B::COUNT + b.index()
    }

    /// One more of this kind.
    pub fn count(&mut self, a: A, b: B) {
        if let Some(value) = self.values.get_mut(Self::index(a, b)) {
            *value = value.wrapping_add(1);
        }
    }

    /// The number of this kind.
    pub fn get(&self, a: A, b: B) -> u64 {
        self.values.get(Self::index(a, b)).copied().unwrap_or(0)
    }

    /// All numbers zero again: gauges are counted anew by each reading.
    pub fn clear(&mut self) {
        self.values = [0; N];
    }

    /// The numbers, those of the first value of `A` first.
    pub fn values(&self) -> &[u64] {
        &self.values
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

/// Durations counted by the bucket they fall into.
pub struct Histogram {
    /// Not cumulative: exposition adds them up.
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// Nothing observed.
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS.len()],
            count: 0,
            sum: Duration::ZERO,
        }
    }

    /// Counts one duration.
    pub fn observe(&mut self, duration: Duration) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.saturating_add(duration);
        let mut buckets = BUCKETS.iter().zip(&mut self.counts);
        if let Some((_, count)) = buckets.find(|(bound, _)| duration <= **bound) {
            *count = count.wrapping_add(1);
        }
    }

    /// How many fell into each bucket, without those below.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long they were together.
    pub fn sum(&self) -> Duration {
        self.sum
    }
}

/// Everything that is counted. A `u64` whose comment says "now" is a gauge,
/// the others only grow.
pub struct Metrics {
    /// Readings, by why they were made.
    pub readings: Labelled<Trigger, 2>,
    /// Readings given up because a file could not be read.
    pub readings_failed: u64,
    /// How long readings took.
    pub reading_duration: Histogram,
    /// Wall clock at the end of the last good reading, in nanoseconds since
    /// 1970; 0 before the first.
    pub last_reading_unix_nanoseconds: u64,
    /// `--interval`.
    pub interval: Duration,
    /// Wall clock at the start of the process, in nanoseconds since 1970.
    pub start_unix_nanoseconds: u64,
    /// Valid rows read.
    pub rows: Labelled<RowsFile, 2>,
    /// Lines that were no row.
    pub malformed_rows: u64,
    /// Now: rows of the last reading.
    pub connections: Grid<Family, TcpState, { Family::COUNT * TcpState::COUNT }>,
    /// Connections first seen.
    pub new_connections: Grid<Direction, Family, 4>,
    /// Inbound connections the kernel counted and we did not see.
    pub connections_missed: u64,
    /// Resets sent by the kernel since boot, OutRsts of /proc/net/snmp: set it
    /// as read.
    pub resets_sent: u64,
    /// Destroy events received.
    pub destroy_events: u64,
    /// Those of them that ended a connection to us without proof of a handshake.
    pub events_unproven: u64,
    /// Times the kernel dropped events because our buffer was full (ENOBUFS).
    pub destroy_event_overflows: u64,
    /// Those of other network namespaces.
    pub namespace_events: u64,
    /// Messages on the event sockets that were no event.
    pub malformed_events: u64,
    /// Now: 1 where a source of evidence works.
    pub evidence_source_up: Labelled<EvidenceSource, 3>,
    /// Now: whether packet sockets show packets as they come in.
    pub witness_up: bool,
    /// Packets they showed.
    pub witness_packets: u64,
    /// Packets they had no room for.
    pub witness_packets_dropped: u64,
    /// Times they paused because there were too many.
    pub witness_pauses: u64,
    /// Connections looked up because a SYN asked for them.
    pub witness_lookups: Labelled<Found, 3>,
    /// Sources that probed ports, told or not.
    pub probing_sources: Grid<Kind, Target, 8>,
    /// Packets of sources that are blocked.
    pub probes_of_blocked: u64,
    /// Port scans reported.
    pub port_scans: u64,
    /// Blocks the kernel has confirmed; adopted ones are not among them.
    pub blocks: u64,
    /// Blocks found in the kernel at start or put back by another program.
    pub blocks_adopted: u64,
    /// Tries to block that failed.
    pub block_failures: Labelled<BlockFailure, 7>,
    /// 1 for each that is in use.
    pub backends: Labelled<Backend, 3>,
    /// 1 for the one that was entered.
    pub sandbox_tier: Labelled<Tier, 3>,
    /// 1 for each that holds.
    pub sandbox_layers: Labelled<Layer, 4>,
    /// Blocks that ended.
    pub unblocks: Labelled<EndReason, 5>,
    /// Scans that no block followed.
    pub blocks_refused: Labelled<Refusal, { Refusal::COUNT }>,
    /// Now: sources blocked in the kernel.
    pub blocked_sources: u64,
    /// Now: blocks decided and not yet in the kernel.
    pub blocks_pending: u64,
    /// Now: whether blocks are wanted at all: neither `--dry-run` nor
    /// `--firewall none`.
    pub blocking_enabled: bool,
    /// Now: whether the firewall can be used.
    pub firewall_up: bool,
    /// Now: whether our jump is the first rule of its chains.
    pub firewall_jump_first: bool,
    /// Now: whether own addresses and gateways are fully known.
    pub host_facts_known: bool,
    /// Times our rules were lost and built again.
    pub firewall_repairs: u64,
    /// Firewall commands, by how they ended.
    pub firewall_commands: Labelled<CommandExit, 9>,
    /// How long firewall commands took.
    pub firewall_command_duration: Histogram,
    /// Events the hook was to be run for, by what became of that.
    pub hook_runs: Labelled<HookRun, 4>,
    /// Sockets of blocked sources that were destroyed.
    pub sockets_destroyed: u64,
    /// Now: entries of each table.
    pub table_entries: Labelled<Table, 5>,
    /// Entries evicted from a full table, or those that found no place in it.
    pub table_evictions: Labelled<Table, 5>,
    /// Lines that a blocked or broken stdout cost.
    pub output_lines_dropped: u64,
    /// Now: HTTP clients.
    pub http_clients: u64,
    /// HTTP clients accepted.
    pub http_clients_accepted: u64,
    /// HTTP clients evicted for a newer one.
    pub http_clients_evicted: u64,
    /// Answers given, by status code.
    pub http_requests: Labelled<Status, { Status::ALL.len() }>,
}

impl Metrics {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            readings: Labelled::new(),
            readings_failed: 0,
            reading_duration: Histogram::new(),
            last_reading_unix_nanoseconds: 0,
            interval: Duration::ZERO,
            start_unix_nanoseconds: 0,
            rows: Labelled::new(),
            malformed_rows: 0,
            connections: Grid::new(),
            new_connections: Grid::new(),
            connections_missed: 0,
            resets_sent: 0,
            destroy_events: 0,
            events_unproven: 0,
            destroy_event_overflows: 0,
            namespace_events: 0,
            malformed_events: 0,
            evidence_source_up: Labelled::new(),
            witness_up: false,
            witness_packets: 0,
            witness_packets_dropped: 0,
            witness_pauses: 0,
            witness_lookups: Labelled::new(),
            probing_sources: Grid::new(),
            probes_of_blocked: 0,
            port_scans: 0,
            blocks: 0,
            blocks_adopted: 0,
            block_failures: Labelled::new(),
            backends: Labelled::new(),
            sandbox_tier: Labelled::new(),
            sandbox_layers: Labelled::new(),
            unblocks: Labelled::new(),
            blocks_refused: Labelled::new(),
            blocked_sources: 0,
            blocks_pending: 0,
            blocking_enabled: false,
            firewall_up: false,
            firewall_jump_first: false,
            host_facts_known: false,
            firewall_repairs: 0,
            firewall_commands: Labelled::new(),
            firewall_command_duration: Histogram::new(),
            hook_runs: Labelled::new(),
            sockets_destroyed: 0,
            table_entries: Labelled::new(),
            table_evictions: Labelled::new(),
            output_lines_dropped: 0,
            http_clients: 0,
            http_clients_accepted: 0,
            http_clients_evicted: 0,
            http_requests: Labelled::new(),
        }
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
        metrics.readings.count(Trigger::Early);
        metrics.readings.add(Trigger::Scheduled, 2);
        assert_eq!(metrics.readings.values(), [2, 1]);
        assert_eq!(metrics.readings.get(Trigger::Scheduled), 2);
        assert_eq!(metrics.readings.total(), 3);
        metrics.unblocks.count(EndReason::NeverStood);
        assert_eq!(metrics.unblocks.total(), 0, "no value of that label");
    }

    #[test]
    fn grids_hold_one_number_for_each_pair() {
        let mut metrics = Metrics::new();
        let families = [Family::V4, Family::V6];
        let pairs = families.map(|family| TcpState::ALL.map(|state| (family, state)));
        for (times, (family, state)) in pairs.concat().into_iter().enumerate() {
            (0..times).for_each(|_| metrics.connections.count(family, state));
        }
        for (times, (family, state)) in pairs.concat().into_iter().enumerate() {
            assert_eq!(metrics.connections.get(family, state), times as u64);
        }
        metrics.connections.clear();
        assert!(metrics.connections.values().iter().all(|n| *n == 0));
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
        let mut histogram = Histogram::new();
        for (index, bound) in BUCKETS.iter().enumerate() {
            histogram.observe(*bound);
            assert_eq!(histogram.counts()[index], 1, "{bound:?}");
        }
        histogram.observe(Duration::from_secs(11));
        assert_eq!(histogram.count(), BUCKETS.len() as u64 + 1);
        assert_eq!(histogram.counts().iter().sum::<u64>(), BUCKETS.len() as u64);
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
