//! Counters and gauges: a plain struct that every stage's caller writes into
//! and `exposition` reads. Metrics observe and decide nothing.
//!
//! What has one value is a public field (`metrics.resets_sent = 7`), what has
//! labels is counted by them (`metrics.unblocks.count(UnblockReason::Expired)`),
//! durations are observed (`metrics.reading_duration.observe(duration)`).

use core::marker::PhantomData;

use crate::http::Status;
use crate::kernel::Exit;
use crate::limits;
use crate::time::Duration;

/// The values of one label: all of them are exposed, from zero on.
pub trait Label: Copy {
    /// The label's name.
    const NAME: &'static str;
    /// The label's values, in the order of the enum's variants, with a blank
    /// between: one text, where an array would be addresses that the loader
    /// writes into memory of our own.
    const VALUES: &'static str;
    /// How many values there are.
    const COUNT: usize;

    /// The place of this value in `VALUES`.
    fn index(self) -> usize;
}

/// The words of a text with one blank between.
pub fn words(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split_ascii_whitespace()
}

/// An enum whose variants are the values of a label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident $label:literal { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static str = concat!($($value, " ",)+);
            const COUNT: usize = [$($value),+].len();

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// Who opened a connection.
    Direction "direction" {
        /// The peer connected to us.
        In = "in",
        /// We connected to the peer.
        Out = "out",
    }
}

label! {
    /// The address family of a connection; IPv4-mapped IPv6 is IPv4.
    Family "family" {
        /// IPv4.
        V4 = "4",
        /// IPv6.
        V6 = "6",
    }
}

label! {
    /// The states of include/net/tcp_states.h that /proc/net/tcp shows, in the
    /// kernel's order; it shows NEW_SYN_RECV as SYN_RECV
    /// (net/ipv4/tcp_ipv4.c, get_openreq4).
    TcpState "state" {
        /// 1.
        Established = "established",
        /// 2.
        SynSent = "syn_sent",
        /// 3.
        SynRecv = "syn_recv",
        /// 4.
        FinWait1 = "fin_wait1",
        /// 5.
        FinWait2 = "fin_wait2",
        /// 6.
        TimeWait = "time_wait",
        /// 7.
        Close = "close",
        /// 8.
        CloseWait = "close_wait",
        /// 9.
        LastAck = "last_ack",
        /// 10.
        Listen = "listen",
        /// 11.
        Closing = "closing",
    }
}

impl TcpState {
    /// The state with the kernel's number, 1 to 11.
    pub fn from_kernel(number: u8) -> Option<Self> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }
}

label! {
    /// The two files of one reading.
    RowsFile "file" {
        /// /proc/net/tcp.
        Tcp = "tcp",
        /// /proc/net/tcp6.
        Tcp6 = "tcp6",
    }
}

label! {
    /// Why a reading was made.
    Trigger "trigger" {
        /// `--interval` had passed.
        Scheduled = "scheduled",
        /// Something hinted at connections not seen yet.
        Early = "early",
    }
}

label! {
    /// Where evidence comes from.
    EvidenceSource "source" {
        /// Rows of /proc/net/tcp and tcp6.
        Readings = "readings",
        /// Destroy events of NETLINK_SOCK_DIAG.
        DestroyEvents = "destroy_events",
    }
}

label! {
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
    }
}

/// What each table can hold, in the order of `Table`.
pub const TABLE_CAPACITIES: [u64; 4] = [
    limits::CONNECTIONS as u64,
    limits::SOURCES as u64,
    limits::BLOCKS as u64,
    limits::LISTENERS as u64,
];

label! {
    /// Why a port scan was not followed by a block.
    Refusal "reason" {
        /// The block would hold a loopback address.
        Loopback = "loopback",
        /// The block would hold the unspecified address.
        Unspecified = "unspecified",
        /// The block would hold a multicast address.
        Multicast = "multicast",
        /// The block would hold a broadcast address.
        Broadcast = "broadcast",
        /// The block would touch 169.254.0.0/16, where clouds keep metadata.
        LinkLocal = "link_local",
        /// The block would hold an address of this host.
        Own = "own",
        /// The block would hold a gateway of a routing table.
        Gateway = "gateway",
        /// The block would hold a nameserver.
        Nameserver = "nameserver",
        /// The block would touch a network of `--allow`.
        Allowed = "allowed",
        /// The block would hold the peer of our own SSH session.
        SshPeer = "ssh_peer",
        /// The host's own addresses and gateways are not fully known.
        HostUnknown = "host_unknown",
        /// `--require-silent`, and the source sent data.
        DataSent = "data_sent",
        /// Held back by `--max-blocks-per-minute` until its evidence was gone.
        Rate = "rate",
        /// `--dry-run`.
        DryRun = "dry_run",
        /// `--firewall none`, or no firewall that could be used.
        NoFirewall = "no_firewall",
        /// No place in the table of blocks.
        TableFull = "table_full",
    }
}

label! {
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
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// Why a block ended.
    UnblockReason "reason" {
        /// Its time was over.
        Expired = "expired",
        /// An operator took it away.
        Operator = "operator",
        /// It came to overlap a protected address.
        Protected = "protected",
    }
}

label! {
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
        /// Ended by a signal of somebody else.
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

impl Label for Status {
    const NAME: &'static str = "code";
    const VALUES: &'static str = Status::CODES;
    const COUNT: usize = Status::ALL.len();

    fn index(self) -> usize {
        self as usize
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

    /// The numbers in the order of `L::VALUES`.
    pub fn values(&self) -> &[u64] {
        &self.values
    }
}

impl<L: Label, const N: usize> Default for Labelled<L, N> {
    fn default() -> Self {
        Self::new()
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

    /// Sets a gauge.
    pub fn set(&mut self, a: A, b: B, number: u64) {
        if let Some(value) = self.values.get_mut(Self::index(a, b)) {
            *value = number;
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

impl<A: Label, B: Label, const N: usize> Default for Grid<A, B, N> {
    fn default() -> Self {
        Self::new()
    }
}

/// One bucket of a histogram: its upper bound, and that bound as text.
pub struct Bucket {
    /// Durations up to this one fall into the bucket.
    pub upper_bound: Duration,
    /// The bound in seconds as OpenMetrics 1.0.0 wants it ("Canonical
    /// Numbers"), so that a series has one name in both formats.
    pub le: &'static str,
}

/// The buckets of all durations: from the fastest reading (some 50 us) to the
/// deadline of a firewall command (10 s).
pub const BUCKETS: [Bucket; 12] = [
    bucket(100, "0.0001"),
    bucket(500, "0.0005"),
    bucket(1_000, "0.001"),
    bucket(2_500, "0.0025"),
    bucket(5_000, "0.005"),
    bucket(10_000, "0.01"),
    bucket(25_000, "0.025"),
    bucket(100_000, "0.1"),
    bucket(500_000, "0.5"),
    bucket(1_000_000, "1.0"),
    bucket(5_000_000, "5.0"),
    bucket(10_000_000, "10.0"),
];

const fn bucket(microseconds: u64, le: &'static str) -> Bucket {
    Bucket {
        upper_bound: Duration::from_nanos(microseconds * 1_000),
        le,
    }
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
        if let Some((_, count)) = buckets.find(|(bucket, _)| duration <= bucket.upper_bound) {
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

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
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
    /// Valid rows read.
    pub rows: Labelled<RowsFile, 2>,
    /// Lines that were no row.
    pub malformed_rows: u64,
    /// Now: rows of the last reading.
    pub connections: Grid<Family, TcpState, 22>,
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
    /// Messages on the event socket that were no event.
    pub malformed_events: u64,
    /// Now: 1 where a source of evidence works.
    pub evidence_source_up: Labelled<EvidenceSource, 2>,
    /// Port scans reported.
    pub port_scans: u64,
    /// Blocks the kernel has confirmed; adopted ones are not among them.
    pub blocks: u64,
    /// Blocks found in the kernel at start or put back by somebody else.
    pub blocks_adopted: u64,
    /// Tries to block that failed.
    pub block_failures: Labelled<BlockFailure, 8>,
    /// Blocks that ended.
    pub unblocks: Labelled<UnblockReason, 3>,
    /// Scans that no block followed.
    pub blocks_refused: Labelled<Refusal, 16>,
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
    /// Sockets of blocked sources that were destroyed.
    pub sockets_destroyed: u64,
    /// Now: entries of each table.
    pub table_entries: Labelled<Table, 4>,
    /// Entries that gave way in a full table, or found no place in it.
    pub table_evictions: Labelled<Table, 4>,
    /// Lines that a blocked or broken stdout cost.
    pub output_lines_dropped: u64,
    /// Now: HTTP clients.
    pub http_clients: u64,
    /// HTTP clients accepted.
    pub http_clients_accepted: u64,
    /// HTTP clients that gave way to a newer one.
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
            rows: Labelled::new(),
            malformed_rows: 0,
            connections: Grid::new(),
            new_connections: Grid::new(),
            connections_missed: 0,
            resets_sent: 0,
            destroy_events: 0,
            events_unproven: 0,
            destroy_event_overflows: 0,
            malformed_events: 0,
            evidence_source_up: Labelled::new(),
            port_scans: 0,
            blocks: 0,
            blocks_adopted: 0,
            block_failures: Labelled::new(),
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

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_count_apart() {
        let mut metrics = Metrics::new();
        metrics.blocks_refused.count(Refusal::Gateway);
        metrics.blocks_refused.add(Refusal::TableFull, 2);
        for refusal in Refusal::ALL {
            let expected = match refusal {
                Refusal::Gateway => 1,
                Refusal::TableFull => 2,
                _ => 0,
            };
            assert_eq!(metrics.blocks_refused.get(*refusal), expected);
        }
        assert_eq!(metrics.blocks_refused.total(), 3);
    }

    #[test]
    fn grids_hold_one_number_for_each_pair() {
        let mut metrics = Metrics::new();
        for (a, family) in Family::ALL.iter().enumerate() {
            for (b, state) in TcpState::ALL.iter().enumerate() {
                metrics
                    .connections
                    .set(*family, *state, (a * 100 + b) as u64);
            }
        }
        for (a, family) in Family::ALL.iter().enumerate() {
            for (b, state) in TcpState::ALL.iter().enumerate() {
                let number = metrics.connections.get(*family, *state);
                assert_eq!(number, (a * 100 + b) as u64);
            }
        }
        metrics.connections.clear();
        assert!(metrics.connections.values().iter().all(|n| *n == 0));
    }

    #[test]
    fn states_carry_the_kernels_numbers() {
        assert_eq!(TcpState::from_kernel(0), None);
        assert_eq!(TcpState::from_kernel(1), Some(TcpState::Established));
        assert_eq!(TcpState::from_kernel(10), Some(TcpState::Listen));
        assert_eq!(TcpState::from_kernel(11), Some(TcpState::Closing));
        assert_eq!(TcpState::from_kernel(12), None);
    }

    #[test]
    fn durations_fall_into_the_first_bucket_that_holds_them() {
        let mut histogram = Histogram::new();
        for (index, bucket) in BUCKETS.iter().enumerate() {
            histogram.observe(bucket.upper_bound);
            assert_eq!(histogram.counts()[index], 1, "{}", bucket.le);
            let seconds = bucket.upper_bound.as_nanos() as f64 / 1e9;
            assert_eq!(bucket.le.parse::<f64>().unwrap(), seconds);
        }
        histogram.observe(Duration::from_secs(11));
        assert_eq!(histogram.count(), BUCKETS.len() as u64 + 1);
        assert_eq!(histogram.counts().iter().sum::<u64>(), BUCKETS.len() as u64);
        assert!(BUCKETS.is_sorted_by_key(|bucket| bucket.upper_bound));
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
            let label = CommandExit::new(exit);
            assert_eq!(
                words(CommandExit::VALUES).nth(label.index()),
                Some(expected)
            );
        }
    }

    #[test]
    fn tables_have_capacities() {
        assert_eq!(TABLE_CAPACITIES.len(), Table::COUNT);
    }
}
