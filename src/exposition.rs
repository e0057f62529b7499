//! Metrics as text: Prometheus text format 0.0.4 and OpenMetrics 1.0.0.
//!
//! Each family is one entry with its kind, its name (without `_total` and
//! `_info`), its numbers, and what it means. A name that ends with `_seconds` or
//! `_bytes` says its unit. What a family means is one line without quotes and
//! backslashes, so that neither format needs to escape any of it.

use crate::address::Family;
use crate::connections::Direction;
use crate::firewall::{Backend, EndReason, Refusal};

use crate::http::{Format, Status};
use crate::kernel::{HookRun, ProcessStatus};
use crate::label::{Label, words};
use crate::metrics::{
    BUCKETS, BlockFailure, CommandExit, EvidenceSource, Found, Histogram, Metrics, RowsFile,
    TABLE_CAPACITIES, Table, Trigger,
};
use crate::packets::Kind;
use crate::probes::Target;
use crate::proc_net_tcp::TcpState;
use crate::sandbox::{Layer, Tier};
use crate::text::{TextView, split_once};
use crate::time::Duration;

/// All that is exposed at one moment.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    /// What we counted.
    pub metrics: &'a Metrics,
    /// What the kernel says about this process.
    pub process: ProcessStatus,
}

/// Appends all families, in the order in which they are exposed.
pub fn write(snapshot: &Snapshot, format: Format, out: &mut TextView) {
    let mut writer = Writer {
        out,
        format,
        start: snapshot.metrics.start_unix_nanoseconds,
        has_created: false,
        families: b"",
        prefix: b"",
        name: b"",
        suffix: b"",
        labels: 0,
    };
    write_readings(&mut writer, snapshot.metrics);
    write_evidence(&mut writer, snapshot.metrics);
    write_firewall(&mut writer, snapshot.metrics);
    write_tables(&mut writer, snapshot.metrics);
    write_process(&mut writer, snapshot);
    if format == Format::OpenMetrics {
        writer.out.put(b"# EOF\n");
    }
}

/// Writes families down: for each its kind, name and number, and what it means.
/// Names and meanings are one text, where strings of their own would take two
/// registers in each call.
macro_rules! families {
    ($w:ident, $prefix:literal: $($kind:ident $name:literal = $method:ident $(::<$($label:ty),+>)? ($($number:expr)?),
        $help:literal;)+) => {
        $w.prefix = $prefix;
        $w.families = concat!($(letter!($kind), $name, " ", $help, "\n",)+).as_bytes();
        $($w.$method $(::<$($label),+>)? ($($number)?);)+
    };
}

/// How a kind is named in that text.
macro_rules! letter {
    (counter) => {
        "c"
    };
    // The kernel's, which did not start with this process.
    (counter_since_boot) => {
        "b"
    };
    (gauge) => {
        "g"
    };
    (histogram) => {
        "h"
    };
    (info) => {
        "i"
    };
}

#[inline(never)]
fn write_readings(w: &mut Writer, m: &Metrics) {
    families! { w, b"tcpparser_":
        info "build" = build(),
            "Always 1; version, target and revision of the running binary.";
        counter "readings" = number(m.readings.total()),
            "Passes over /proc/net/tcp and tcp6, scheduled and early ones together.";
        counter "scheduled_readings" = number(m.readings.get(Trigger::Scheduled)),
            "Readings made because the interval had passed.";
        counter "early_readings" = number(m.readings.get(Trigger::Early)),
            "Readings made ahead of schedule.";
        counter "readings_failed" = number(m.readings_failed),
            "Readings given up because a file could not be read.";
        histogram "reading_duration_seconds" = histogram(&m.reading_duration),
            "How long readings took.";
        gauge "last_reading_timestamp_seconds" = seconds(m.last_reading_unix_nanoseconds),
            "Unix time of the last good reading, 0 before the first.";
        gauge "interval_seconds" = seconds(m.interval.as_nanos()),
            "Time between scheduled readings, as configured.";
        counter "rows" = labelled::<RowsFile>(m.rows.values()),
            "Valid rows read, by file.";
        counter "malformed_rows" = number(m.malformed_rows),
            "Lines of /proc/net/tcp and tcp6 that were no row.";
        gauge "connections" = grid::<Family, TcpState>(m.connections.values()),
            "TCP sockets of the last reading, without those within the host, by address family and state.";
        counter "new_connections" = grid::<Direction, Family>(m.new_connections.values()),
            "Connections first seen, without those within the host, by who opened them and address family.";
        counter "connections_missed" = number(m.connections_missed),
            "Inbound connections the kernel completed and nothing here saw.";
        counter_since_boot "resets_sent" = number(m.resets_sent),
            "Resets sent by this host since boot: refused connects, aborts by services, destroyed sockets.";
    }
}

fn write_evidence(w: &mut Writer, m: &Metrics) {
    families! { w, b"tcpparser_":
        counter "destroy_events" = number(m.destroy_events),
            "Socket destroy events received from the kernel.";
        counter "events_unproven" = number(m.events_unproven),
            "Destroy events of inbound connections whose handshake nothing proves: no evidence.";
        counter "destroy_event_overflows" = number(m.destroy_event_overflows),
            "Times the kernel dropped destroy events because the receive buffer was full.";
        counter "namespace_events" = number(m.namespace_events),
            "Socket destroy events of other network namespaces, without those of private peers.";
        counter "malformed_events" = number(m.malformed_events),
            "Messages on the event sockets that were no destroy event.";
        gauge "evidence_source_up" = labelled::<EvidenceSource>(m.evidence_source_up.values()),
            "Whether a source of evidence works.";
        gauge "witness_up" = number(u64::from(m.witness_up)),
            "Whether packet sockets show what asks for connections.";
        counter "witness_packets" = number(m.witness_packets),
            "Packets they showed: SYN, NULL, FIN, XMAS.";
        counter "witness_packets_dropped" = number(m.witness_packets_dropped),
            "Packets they had no room for.";
        counter "witness_pauses" = number(m.witness_pauses),
            "Times they paused because of too many packets.";
        counter "witness_lookups" = labelled::<Found>(m.witness_lookups.values()),
            "Connections looked up for a SYN, by what was found.";
        counter "probing_sources" = grid::<Kind, Target>(m.probing_sources.values()),
            "Sources that asked for ports without a handshake; may be forged.";
        counter "probes_of_blocked" = number(m.probes_of_blocked),
            "Such packets of blocked sources.";
        counter "port_scans" = number(m.port_scans),
            "Port scans reported.";
        counter "blocks" = number(m.blocks),
            "Blocks of a source that the kernel has confirmed, without adopted ones.";
        counter "blocks_adopted" = number(m.blocks_adopted),
            "Blocks found in the kernel and taken over.";
        counter "block_failures" = labelled::<BlockFailure>(m.block_failures.values()),
            "Tries to block that failed, by reason.";
        counter "unblocks" = labelled::<EndReason>(m.unblocks.values()),
            "Blocks that ended, by reason.";
        counter "blocks_refused" = labelled::<Refusal>(m.blocks_refused.values()),
            "Port scans that no block followed, by reason.";
    }
}

fn write_firewall(w: &mut Writer, m: &Metrics) {
    families! { w, b"tcpparser_":
        gauge "blocked_sources" = number(m.blocked_sources),
            "Sources blocked in the kernel now.";
        gauge "blocks_pending" = number(m.blocks_pending),
            "Blocks decided and not yet in the kernel.";
        gauge "blocking_enabled" = number(u64::from(m.blocking_enabled)),
            "Whether scanners are to be blocked: 0 in a dry run and without a firewall.";
        gauge "firewall_up" = number(u64::from(m.firewall_up)),
            "Whether the firewall can be used.";
        info "firewall" = labelled::<Backend>(m.backends.values()),
            "Always 1; what holds blocks, or would hold the next one.";
        gauge "sandbox_info" = labelled::<Tier>(m.sandbox_tier.values()),
            "1 for the sandbox that was entered.";
        gauge "sandbox" = labelled::<Layer>(m.sandbox_layers.values()),
            "Whether the kernel holds up each part of it.";
        gauge "firewall_jump_first" = number(u64::from(m.firewall_jump_first)),
            "Whether the jump to our chain is the first rule.";
        gauge "host_facts_known" = number(u64::from(m.host_facts_known)),
            "Whether own addresses and gateways are fully known: without that nothing is blocked.";
        counter "firewall_repairs" = number(m.firewall_repairs),
            "Times our rules were lost and built again.";
        counter "firewall_commands" = labelled::<CommandExit>(m.firewall_commands.values()),
            "Firewall commands run, by exit status; what nf_tables does counts as 0, or other.";
        histogram "firewall_command_duration_seconds" = histogram(&m.firewall_command_duration),
            "How long firewall commands took.";
        counter "hook_runs" = labelled::<HookRun>(m.hook_runs.values()),
            "Events for the hook, by what became of its run.";
        counter "sockets_destroyed" = number(m.sockets_destroyed),
            "Sockets of blocked sources that were destroyed.";
    }
}

fn write_tables(w: &mut Writer, m: &Metrics) {
    families! { w, b"tcpparser_":
        gauge "table_entries" = labelled::<Table>(m.table_entries.values()),
            "Entries in each fixed-size table now.";
        gauge "table_capacity" = labelled::<Table>(&TABLE_CAPACITIES),
            "Entries each fixed-size table can hold.";
        counter "table_evictions" = labelled::<Table>(m.table_evictions.values()),
            "Entries evicted from a full table, or refused by one.";
        counter "output_lines_dropped" = number(m.output_lines_dropped),
            "Lines lost because standard output was blocked or broken.";
        gauge "http_clients" = number(m.http_clients),
            "HTTP clients connected now.";
        counter "http_clients_accepted" = number(m.http_clients_accepted),
            "HTTP clients accepted.";
        counter "http_clients_evicted" = number(m.http_clients_evicted),
            "HTTP clients evicted for a newer one.";
        counter "http_requests" = labelled::<Status>(m.http_requests.values()),
            "HTTP requests answered, by status code.";
    }
}

/// The names and meanings all Prometheus client libraries share.
fn write_process(w: &mut Writer, snapshot: &Snapshot) {
    let p = &snapshot.process;
    families! { w, b"process_":
        counter "cpu_seconds" = seconds(p.cpu_time.as_nanos()),
            "Total user and system CPU time spent in seconds.";
        gauge "open_fds" = number(p.open_descriptors),
            "Number of open file descriptors.";
        gauge "max_fds" = limit(p.max_descriptors),
            "Maximum number of open file descriptors.";
        gauge "virtual_memory_bytes" = number(p.virtual_bytes),
            "Virtual memory size in bytes.";
        gauge "virtual_memory_max_bytes" = limit(p.max_virtual_bytes),
            "Maximum amount of virtual memory available in bytes.";
        gauge "resident_memory_bytes" = number(p.resident_bytes),
            "Resident memory size in bytes.";
        gauge "start_time_seconds" = seconds(snapshot.metrics.start_unix_nanoseconds),
            "Start time of the process since unix epoch in seconds.";
    }
}

/// Writes families, one after the other.
struct Writer<'a> {
    out: &'a mut TextView,
    format: Format,
    /// When counting began, and whether the family being written says so.
    start: u64,
    has_created: bool,
    /// What of `families!` is not written yet.
    families: &'static [u8],
    /// What the names of all of those begin with.
    prefix: &'static [u8],
    /// Name of the family being written, and what its samples have behind it.
    name: &'static [u8],
    suffix: &'static [u8],
    /// Where behind the name the labels of the sample being written begin.
    labels: usize,
}

impl Writer<'_> {
    #[inline(never)]
    fn number(&mut self, number: u64) {
        self.begin();
        self.sample(&[b" "]);
        self.end(number);
    }

    #[inline(never)]
    fn seconds(&mut self, nanoseconds: u64) {
        self.begin();
        self.sample(&[b" "]);
        self.out.put_seconds(nanoseconds);
        self.end_line();
    }

    /// `None` is infinite.
    fn limit(&mut self, limit: Option<u64>) {
        match limit {
            Some(number) => self.number(number),
            None => {
                self.begin();
                self.sample(&[b" +Inf\n"]);
            }
        }
    }

    /// One number for each value of a label; where that is always 1, for those
    /// that apply.
    fn labelled<L: Label>(&mut self, numbers: &[u64]) {
        self.row(L::WORDS, numbers);
    }

    #[inline(never)]
    fn row(&mut self, label: &'static str, numbers: &[u64]) {
        self.begin();
        self.series(&[b"{"], label, numbers);
    }

    /// One number for each pair of values of two labels.
    fn grid<A: Label, B: Label>(&mut self, numbers: &[u64]) {
        self.rows(A::WORDS, B::WORDS, B::COUNT, numbers);
    }

    #[inline(never)]
    fn rows(&mut self, label: &'static str, columns: &'static str, count: usize, numbers: &[u64]) {
        self.begin();
        let mut rows = numbers.chunks(count.max(1));
        let mut values = words(label);
        let name = values.next().unwrap_or_default();
        for value in values {
            let row = rows.next().unwrap_or_default();
            let head = [b"{", name, b"=\"", value, b"\","];
            self.series(&head, columns, row);
        }
    }

    #[inline(never)]
    fn series(&mut self, head: &[&[u8]], label: &'static str, numbers: &[u64]) {
        let shows_all = self.suffix != b"_info";
        let mut values = words(label);
        let name = values.next().unwrap_or_default();
        let samples = values.zip(numbers);
        for (value, number) in samples.filter(|(_, number)| shows_all || **number > 0) {
            self.sample(head);
            self.put(&[name, b"=\"", value, b"\"} "]);
            self.end(*number);
        }
    }

    #[inline(never)]
    fn histogram(&mut self, durations: &Histogram) {
        self.begin();
        let mut below: u64 = 0;
        for (bound, count) in BUCKETS.iter().zip(durations.counts()) {
            below = below.wrapping_add(*count);
            self.sample(&[b"_bucket{le=\""]);
            self.out.put_seconds(bound.as_nanos());
            // As OpenMetrics 1.0.0 wants it ("Canonical Numbers"), so that a
            // series has one name in both formats.
            if *bound >= Duration::from_secs(1) {
                self.put(&[b".0"]);
            }
            self.put(&[b"\"} "]);
            self.end(below);
        }
        self.sample(&[b"_bucket{le=\"+Inf\"} "]);
        self.end(durations.count());
        self.sample(&[b"_sum "]);
        self.out.put_seconds(durations.sum().as_nanos());
        self.end_line();
        self.sample(&[b"_count "]);
        self.end(durations.count());
    }

    /// Always 1: what it shows are its labels.
    fn build(&mut self) {
        self.begin();
        self.sample(&[b"{"]);
        for (label, value) in [
            ("version=\"", env!("CARGO_PKG_VERSION")),
            ("\",target=\"", env!("TCPPARSER_TARGET")),
            ("\",revision=\"", env!("TCPPARSER_REVISION")),
        ] {
            self.put(&[label.as_bytes()]);
            put_escaped(self.out, value);
        }
        self.put(&[b"\"} 1\n"]);
    }

    /// The lines that describe the next family. In OpenMetrics they name it
    /// without the suffix (section "MetricFamily"), in the text format with it.
    #[inline(never)]
    fn begin(&mut self) {
        let (family, rest) = split_once(self.families, b'\n');
        let (name, help) = split_once(family, b' ');
        let Some((kind, name)) = name.split_first() else {
            return;
        };
        self.families = rest;
        let is_text = self.format == Format::Text;
        let (suffix, word): (&[u8], &[u8]) = match kind {
            b'c' | b'b' => (b"_total", b"counter"),
            b'g' => (b"", b"gauge"),
            b'h' => (b"", b"histogram"),
            // The text format has no such type.
            _ if is_text => (b"_info", b"gauge"),
            _ => (b"_info", b"info"),
        };
        (self.name, self.suffix) = (name, suffix);
        self.has_created = !is_text && *kind == b'c';
        let suffix: &[u8] = if is_text { suffix } else { b"" };
        self.describe(b"# HELP ", suffix, help);
        self.describe(b"# TYPE ", suffix, word);
        let units: [&[u8]; 2] = [b"seconds", b"bytes"];
        let unit = units.into_iter().find(|unit| name.ends_with(unit));
        if let Some(unit) = unit.filter(|_| !is_text) {
            self.describe(b"# UNIT ", suffix, unit);
        }
    }

    #[inline(never)]
    fn describe(&mut self, what: &[u8], suffix: &[u8], words: &[u8]) {
        self.put(&[what, self.prefix, self.name, suffix, b" ", words, b"\n"]);
    }

    /// Begins a sample: its name, then `rest`.
    #[inline(never)]
    fn sample(&mut self, rest: &[&[u8]]) {
        self.put(&[self.prefix, self.name, self.suffix]);
        self.labels = self.out.as_bytes().len();
        self.put(rest);
    }

    #[inline(never)]
    fn put(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.out.put(part);
        }
    }

    #[inline(never)]
    fn end(&mut self, number: u64) {
        self.out.put_decimal(number);
        self.end_line();
    }

    /// Behind a counter comes in OpenMetrics since when it counts (section
    /// "Counter"): what it counted before the first scrape is an increase, too.
    #[inline(never)]
    fn end_line(&mut self) {
        self.out.put_byte(b'\n');
        if self.has_created {
            self.put(&[self.prefix, self.name, b"_created"]);
            self.out.put_word_again(self.labels);
            self.out.put_seconds(self.start);
            self.out.put_byte(b'\n');
        }
    }
}

/// A label value; both formats escape these three characters.
fn put_escaped(out: &mut TextView, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'\\' => out.put(b"\\\\"),
            b'"' => out.put(b"\\\""),
            b'\n' => out.put(b"\\n"),
            _ => out.put_byte(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::string::{String, ToString};
    use std::vec::Vec;

    use super::*;
    use crate::host::Protection;
    use crate::http::BODY_ROOM;
    use crate::testing::golden::assert_golden;
    use crate::text::Text;
    use crate::time::Duration;

    fn written(snapshot: &Snapshot, format: Format) -> String {
        let mut text: std::boxed::Box<Text<BODY_ROOM>> = std::boxed::Box::new(Text::new());
        write(snapshot, format, &mut *text);
        assert!(!text.is_truncated());
        String::from_utf8(text.as_bytes().to_vec()).unwrap()
    }

    fn sample(metrics: &Metrics) -> Snapshot<'_> {
        Snapshot {
            metrics,
            process: ProcessStatus {
                cpu_time: Duration::from_millis(1_500),
                open_descriptors: 9,
                max_descriptors: Some(1_024),
                virtual_bytes: 1 << 20,
                max_virtual_bytes: None,
                resident_bytes: 65_536,
            },
        }
    }

    fn busy() -> Metrics {
        let mut metrics = Metrics::new();
        metrics.readings.add(Trigger::Scheduled, 3);
        metrics.readings.add(Trigger::Early, 2);
        metrics.reading_duration.observe(Duration::from_millis(2));
        metrics.reading_duration.observe(Duration::from_secs(60));
        (0..17).for_each(|_| metrics.connections.count(Family::V6, TcpState::TimeWait));
        metrics
            .new_connections
            .count(Direction::Outbound, Family::V4);
        metrics
            .blocks_refused
            .count(Refusal::Protected(Protection::Gateway));
        metrics.firewall_up = true;
        metrics.backends.set(Backend::Nft, 1);
        metrics.start_unix_nanoseconds = 1_635_801_113_250_000_000;
        metrics
    }

    /// Family, sample name and labels of one sample line.
    fn split_sample(line: &str) -> (&str, &str, &str) {
        let (series, number) = line.rsplit_once(' ').unwrap();
        assert!(number.parse::<f64>().is_ok(), "{line}");
        series
            .split_once('{')
            .map_or((series, "", number), |(name, labels)| {
                (name, labels, number)
            })
    }

    fn family_of<'a>(sample: &'a str, families: &BTreeMap<&str, &str>) -> &'a str {
        let candidates = [
            "", "_total", "_created", "_info", "_bucket", "_sum", "_count",
        ];
        candidates
            .iter()
            .filter_map(|suffix| sample.strip_suffix(suffix))
            .find(|name| families.contains_key(name))
            .unwrap_or_else(|| panic!("{sample} has no family"))
    }

    /// What promtool does not find: series written twice, families split,
    /// families without HELP, TYPE or samples, a missing last newline.
    fn check(text: &str) {
        let (mut helps, mut types, mut series) =
            (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
        let mut with_samples = BTreeSet::new();
        let mut current = "";
        assert!(text.ends_with('\n') && !text.contains("\n\n"));
        for line in text.lines().filter(|line| *line != "# EOF") {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words.as_slice() {
                ["#", "HELP", name, help] => {
                    assert!(helps.insert(*name), "{name} is described twice");
                    assert!(!help.contains(['\\', '"']));
                    current = name;
                }
                ["#", "TYPE", name, kind] => {
                    assert_eq!(*name, current);
                    assert!(types.insert(*name, *kind).is_none());
                }
                ["#", "UNIT", name, unit] => {
                    assert_eq!(*name, current);
                    assert!(name.ends_with(&std::format!("_{unit}")));
                }
                _ => {
                    let (name, labels, _) = split_sample(line);
                    assert_eq!(family_of(name, &types), current, "split family");
                    assert!(series.insert((name, labels)), "{line} is written twice");
                    with_samples.insert(current);
                }
            }
        }
        assert!(helps.len() > 40);
        assert_eq!(helps, types.keys().copied().collect());
        // There may be none in use.
        for name in ["tcpparser_firewall", "tcpparser_firewall_info"] {
            helps.remove(name);
            with_samples.remove(name);
        }
        assert_eq!(helps, with_samples);
    }

    #[test]
    fn both_formats_are_well_formed() {
        for metrics in [Metrics::new(), busy()] {
            check(&written(&sample(&metrics), Format::Text));
            let open = written(&sample(&metrics), Format::OpenMetrics);
            check(&open);
            assert!(open.ends_with("\n# EOF\n"));
            assert_eq!(open.matches("# EOF").count(), 1);
        }
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let metrics = busy();
        let samples = |format| -> Vec<String> {
            written(&sample(&metrics), format)
                .lines()
                .filter(|line| !line.starts_with('#') && !is_created(line))
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(samples(Format::Text), samples(Format::OpenMetrics));
    }

    fn is_created(line: &str) -> bool {
        line.split(['{', ' ']).next().unwrap().ends_with("_created")
    }

    /// Right behind each sample of a counter, with its labels; but not where the
    /// kernel counts since it booted.
    #[test]
    fn counters_say_since_when_they_count() {
        let metrics = busy();
        let text = written(&sample(&metrics), Format::Text);
        assert!(!text.lines().any(is_created));
        let open = written(&sample(&metrics), Format::OpenMetrics);
        let since_boot = "tcpparser_resets_sent_total ";
        let mut lines = open.lines();
        let mut counters = 0;
        while let Some(line) = lines.next() {
            assert!(!is_created(line), "{line}");
            let (series, _) = line.rsplit_once(' ').unwrap();
            let is_counter = series.split('{').next().unwrap().ends_with("_total");
            if is_counter && !line.starts_with('#') && !line.starts_with(since_boot) {
                let created = series.replace("_total", "_created") + " 1635801113.25";
                assert_eq!(lines.next(), Some(created.as_str()));
                counters += 1;
            }
        }
        assert!(counters > 80, "{counters} counters");
        assert!(open.contains(since_boot));
    }

    #[test]
    fn samples_carry_their_numbers() {
        let metrics = busy();
        let text = written(&sample(&metrics), Format::Text);
        let is_fixed = |line: &&str| !line.starts_with("tcpparser_build_info{");
        let lines: Vec<&str> = text.split_inclusive('\n').filter(is_fixed).collect();
        assert_golden("exposition.txt", &lines.concat());
        let open = written(&sample(&metrics), Format::OpenMetrics);
        for line in [
            "# TYPE tcpparser_build info",
            "# TYPE tcpparser_readings counter",
            "# UNIT tcpparser_reading_duration_seconds seconds",
            "# UNIT process_resident_memory_bytes bytes",
        ] {
            assert!(open.lines().any(|l| l == line), "{line} is missing");
        }
    }

    /// The list of dist/tcpparser.8: name with labels, type and meaning.
    fn families_of_the_man_page() -> Vec<(String, String, String)> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/tcpparser.8");
        let page = std::fs::read_to_string(path).unwrap();
        let (_, section) = page.split_once("\n.Sh METRICS\n").unwrap();
        let (section, _) = section.split_once("\n.El\n").unwrap();
        let entries = section.split("\n.It Li ").skip(1).map(|entry| {
            let (head, meaning) = entry.split_once('\n').unwrap();
            let (name, kind) = head.split_once(" Pq ").unwrap();
            (
                name.to_string(),
                kind.to_string(),
                meaning.replace('\n', " "),
            )
        });
        entries.collect()
    }

    /// Every family and no other, with its type and what its HELP says.
    #[test]
    fn the_man_page_documents_every_metric() {
        let metrics = Metrics::new();
        let text = written(&sample(&metrics), Format::Text);
        let lines: Vec<&str> = text.lines().collect();
        let families = lines.windows(2).filter_map(|lines| {
            let (name, help) = lines[0].strip_prefix("# HELP ")?.split_once(' ')?;
            let kind = lines[1].strip_prefix(&std::format!("# TYPE {name} "))?;
            name.starts_with("tcpparser_").then_some((name, kind, help))
        });
        let families: Vec<_> = families.collect();
        assert!(families.len() > 40, "{} families", families.len());
        let documented = families_of_the_man_page();
        let own_names: Vec<&str> = documented.iter().map(|(name, ..)| name_of(name)).collect();
        let names: Vec<&str> = families.iter().map(|(name, ..)| *name).collect();
        assert_eq!(own_names, names);
        for ((name, own_kind, meaning), (_, kind, help)) in documented.iter().zip(families) {
            assert_eq!(own_kind, kind, "{name}");
            assert!(meaning.starts_with(help), "{name}: {meaning}, not {help}");
        }
    }

    /// The Python program's only metric has a successor.
    #[test]
    fn the_man_page_says_what_new_connections_total_became() {
        let documented = families_of_the_man_page();
        let mut successors = documented
            .iter()
            .filter(|(name, ..)| name_of(name) == "tcpparser_new_connections_total");
        let (_, kind, meaning) = successors.next().unwrap();
        assert_eq!(kind, "counter");
        assert!(meaning.contains(" new_connections_total"), "{meaning}");
    }

    /// Each label of a family stands behind its name.
    #[test]
    fn the_man_page_documents_every_label() {
        let heads = families_of_the_man_page();
        let metrics = Metrics::new();
        let text = written(&sample(&metrics), Format::Text);
        let samples = text.lines().filter_map(|line| line.split_once('{'));
        let mut documented = 0;
        for (name, rest) in samples.filter(|(name, _)| name.starts_with("tcpparser_")) {
            let labels: Vec<&str> = rest.split("=\"").map(last_word).collect();
            let labels = &labels[..labels.len() - 1];
            if labels == ["le"] || name == "tcpparser_build_info" {
                continue;
            }
            let head = std::format!("{name}{{{}}}", labels.join(","));
            let is_there = heads.iter().any(|(name, ..)| *name == head);
            assert!(is_there, "dist/tcpparser.8 has no {head}");
            documented += 1;
        }
        assert!(documented > 50, "{documented} samples with labels");
    }

    fn name_of(head: &str) -> &str {
        head.split('{').next().unwrap_or_default()
    }

    fn last_word(text: &str) -> &str {
        text.rsplit(',').next().unwrap_or_default()
    }

    #[test]
    fn labels_are_few() {
        let metrics = Metrics::new();
        let text = written(&sample(&metrics), Format::Text);
        let labels: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(|line| split_sample(line).1.split(','))
            .filter_map(|pair| pair.split_once('=').map(|(label, _)| label))
            .collect();
        let expected = [
            "version",
            "target",
            "revision",
            "le",
            "family",
            "state",
            "direction",
            "source",
            "reason",
            "result",
            "table",
            "code",
            "file",
            "exit",
            "kind",
            "layer",
            "tier",
        ];
        assert_eq!(labels, expected.into_iter().collect());
    }

    /// The longest text that can ever come about fits an answer.
    #[test]
    fn the_longest_text_fits() {
        let mut metrics = busy();
        metrics.start_unix_nanoseconds = u64::MAX;
        let text = written(&sample(&metrics), Format::OpenMetrics);
        let has_number = |line: &&str| !line.starts_with('#') && !is_created(line);
        let samples = text.lines().filter(has_number).count();
        let longest_number = "18446744073709551615".len();
        let longest = text.len() + samples * longest_number;
        assert!(longest <= BODY_ROOM, "{longest} of {BODY_ROOM} bytes");
    }

    #[test]
    fn label_values_are_escaped() {
        let mut text: Text<32> = Text::new();
        put_escaped(&mut text, "a\\b\"c\nd");
        assert_eq!(text.as_bytes(), b"a\\\\b\\\"c\\nd");
    }

    #[test]
    fn promtool_has_nothing_to_say() {
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            std::println!("skipped: promtool (Debian package prometheus) is not installed");
            return;
        };
        let metrics = busy();
        let text = written(&sample(&metrics), Format::Text);
        let mut input = child.stdin.take().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert_eq!(String::from_utf8_lossy(&said), "");
        assert!(output.status.success());
    }
}
