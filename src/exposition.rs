//! Metrics as text: Prometheus text format 0.0.4 and OpenMetrics 1.0.0, both
//! from one table of families.

use crate::http::Status;
use crate::kernel::ProcessStatus;
use crate::metrics::{
    BUCKETS, BlockFailure, CommandExit, Direction, EvidenceSource, Family, Histogram, Label,
    Metrics, Refusal, RowsFile, TABLE_CAPACITIES, Table, TcpState, Trigger, UnblockReason,
};
use crate::text::Sink;

use Samples::{Flag, Limit, Number, Seconds};

/// Which text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// All that is told at one moment.
#[derive(Clone, Copy)]
pub struct Snapshot<'a> {
    /// What we counted.
    pub metrics: &'a Metrics,
    /// What the kernel says about this process.
    pub process: ProcessStatus,
    /// Wall clock at the start of the process, in nanoseconds since 1970.
    pub start_unix_nanoseconds: u64,
}

/// The kind of a family. It decides the suffixes of names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge that is always 1 and tells by its labels; the text format has
    /// no such type.
    Info,
}

/// Where the samples of a family come from.
enum Samples {
    /// One whole number.
    Number(fn(&Snapshot) -> u64),
    /// 0 or 1.
    Flag(fn(&Snapshot) -> bool),
    /// One number of nanoseconds, told in seconds.
    Seconds(fn(&Snapshot) -> u64),
    /// One whole number; `None` is infinite.
    Limit(fn(&Snapshot) -> Option<u64>),
    /// One number for each value of a label.
    Labelled {
        label: &'static str,
        values: &'static [&'static str],
        numbers: for<'a> fn(&'a Snapshot) -> &'a [u64],
    },
    /// One number for each pair of values of two labels.
    Grid {
        labels: [&'static str; 2],
        values: [&'static [&'static str]; 2],
        numbers: for<'a> fn(&'a Snapshot) -> &'a [u64],
    },
    /// Durations.
    Histogram(for<'a> fn(&'a Snapshot) -> &'a Histogram),
    /// The number 1 with these labels.
    Build(&'static [(&'static str, &'static str)]),
}

/// A metric family: samples of one name.
struct MetricFamily {
    /// Without `_total` and `_info`; ends with the unit, if there is one.
    name: &'static str,
    kind: Kind,
    /// Empty where numbers have no unit.
    unit: &'static str,
    /// One line without quotes and backslashes, so that neither format needs
    /// to escape any of it.
    help: &'static str,
    samples: Samples,
}

const fn counter(name: &'static str, help: &'static str, samples: Samples) -> MetricFamily {
    MetricFamily {
        name,
        kind: Kind::Counter,
        unit: "",
        help,
        samples,
    }
}

const fn gauge(name: &'static str, help: &'static str, samples: Samples) -> MetricFamily {
    MetricFamily {
        name,
        kind: Kind::Gauge,
        unit: "",
        help,
        samples,
    }
}

const fn histogram(
    name: &'static str,
    help: &'static str,
    durations: for<'a> fn(&'a Snapshot) -> &'a Histogram,
) -> MetricFamily {
    MetricFamily {
        name,
        kind: Kind::Histogram,
        unit: "seconds",
        help,
        samples: Samples::Histogram(durations),
    }
}

impl MetricFamily {
    const fn in_unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }
}

const fn labelled<L: Label>(
    label: &'static str,
    numbers: for<'a> fn(&'a Snapshot) -> &'a [u64],
) -> Samples {
    Samples::Labelled {
        label,
        values: L::VALUES,
        numbers,
    }
}

const fn grid<A: Label, B: Label>(
    labels: [&'static str; 2],
    numbers: for<'a> fn(&'a Snapshot) -> &'a [u64],
) -> Samples {
    Samples::Grid {
        labels,
        values: [A::VALUES, B::VALUES],
        numbers,
    }
}

/// Every family, in the order in which it is told.
static FAMILIES: &[MetricFamily] = &[
    MetricFamily {
        name: "tcpparser_build",
        kind: Kind::Info,
        unit: "",
        help: "Always 1; version, target and revision of the running binary.",
        samples: Samples::Build(&[
            ("version", env!("CARGO_PKG_VERSION")),
            ("target", env!("TCPPARSER_TARGET")),
            ("revision", env!("TCPPARSER_REVISION")),
        ]),
    },
    counter(
        "tcpparser_readings",
        "Passes over /proc/net/tcp and tcp6, scheduled and early ones together.",
        Number(|s| s.metrics.readings.total()),
    ),
    counter(
        "tcpparser_scheduled_readings",
        "Readings made because the interval had passed.",
        Number(|s| s.metrics.readings.get(Trigger::Scheduled)),
    ),
    counter(
        "tcpparser_early_readings",
        "Readings made ahead of schedule.",
        Number(|s| s.metrics.readings.get(Trigger::Early)),
    ),
    counter(
        "tcpparser_readings_failed",
        "Readings given up because a file could not be read.",
        Number(|s| s.metrics.readings_failed),
    ),
    histogram(
        "tcpparser_reading_duration_seconds",
        "How long readings took.",
        |s| &s.metrics.reading_duration,
    ),
    gauge(
        "tcpparser_last_reading_timestamp_seconds",
        "Unix time of the last good reading, 0 before the first.",
        Seconds(|s| s.metrics.last_reading_unix_nanoseconds),
    )
    .in_unit("seconds"),
    gauge(
        "tcpparser_interval_seconds",
        "Time between scheduled readings, as configured.",
        Seconds(|s| s.metrics.interval.as_nanos()),
    )
    .in_unit("seconds"),
    counter(
        "tcpparser_rows",
        "Valid rows read, by file.",
        labelled::<RowsFile>("file", |s| s.metrics.rows.values()),
    ),
    counter(
        "tcpparser_malformed_rows",
        "Lines of /proc/net/tcp and tcp6 that were no row.",
        Number(|s| s.metrics.malformed_rows),
    ),
    gauge(
        "tcpparser_connections",
        "TCP sockets of the last reading, without those within the host, by address family and state.",
        grid::<Family, TcpState>(["family", "state"], |s| s.metrics.connections.values()),
    ),
    counter(
        "tcpparser_new_connections",
        "Connections first seen, without those within the host, by who opened them and address family.",
        grid::<Direction, Family>(["direction", "family"], |s| {
            s.metrics.new_connections.values()
        }),
    ),
    counter(
        "tcpparser_connections_missed",
        "Inbound connections the kernel completed and nothing here saw.",
        Number(|s| s.metrics.connections_missed),
    ),
    counter(
        "tcpparser_resets_sent",
        "Resets sent by this host since boot: refused connects, aborts by services, destroyed sockets.",
        Number(|s| s.metrics.resets_sent),
    ),
    counter(
        "tcpparser_destroy_events",
        "Socket destroy events received from the kernel.",
        Number(|s| s.metrics.destroy_events),
    ),
    counter(
        "tcpparser_events_unproven",
        "Destroy events of inbound connections whose handshake nothing proves: no evidence.",
        Number(|s| s.metrics.events_unproven),
    ),
    counter(
        "tcpparser_destroy_event_overflows",
        "Times the kernel dropped destroy events because the receive buffer was full.",
        Number(|s| s.metrics.destroy_event_overflows),
    ),
    counter(
        "tcpparser_malformed_events",
        "Messages on the event socket that were no destroy event.",
        Number(|s| s.metrics.malformed_events),
    ),
    gauge(
        "tcpparser_evidence_source_up",
        "Whether a source of evidence works.",
        labelled::<EvidenceSource>("source", |s| s.metrics.evidence_source_up.values()),
    ),
    counter(
        "tcpparser_port_scans",
        "Port scans reported.",
        Number(|s| s.metrics.port_scans),
    ),
    counter(
        "tcpparser_blocks",
        "Blocks of a source that the kernel has confirmed, without adopted ones.",
        Number(|s| s.metrics.blocks),
    ),
    counter(
        "tcpparser_blocks_adopted",
        "Blocks found in the kernel and taken over.",
        Number(|s| s.metrics.blocks_adopted),
    ),
    counter(
        "tcpparser_block_failures",
        "Tries to block that failed, by reason.",
        labelled::<BlockFailure>("reason", |s| s.metrics.block_failures.values()),
    ),
    counter(
        "tcpparser_unblocks",
        "Blocks that ended, by reason.",
        labelled::<UnblockReason>("reason", |s| s.metrics.unblocks.values()),
    ),
    counter(
        "tcpparser_blocks_refused",
        "Port scans that no block followed, by reason.",
        labelled::<Refusal>("reason", |s| s.metrics.blocks_refused.values()),
    ),
    gauge(
        "tcpparser_blocked_sources",
        "Sources blocked in the kernel now.",
        Number(|s| s.metrics.blocked_sources),
    ),
    gauge(
        "tcpparser_blocks_pending",
        "Blocks decided and not yet in the kernel.",
        Number(|s| s.metrics.blocks_pending),
    ),
    gauge(
        "tcpparser_blocking_enabled",
        "Whether scanners are to be blocked: 0 in a dry run and without a firewall.",
        Flag(|s| s.metrics.blocking_enabled),
    ),
    gauge(
        "tcpparser_firewall_up",
        "Whether the firewall can be used.",
        Flag(|s| s.metrics.firewall_up),
    ),
    gauge(
        "tcpparser_firewall_jump_first",
        "Whether the jump to our chain is the first rule.",
        Flag(|s| s.metrics.firewall_jump_first),
    ),
    gauge(
        "tcpparser_host_facts_known",
        "Whether own addresses and gateways are fully known: without that nothing is blocked.",
        Flag(|s| s.metrics.host_facts_known),
    ),
    counter(
        "tcpparser_firewall_repairs",
        "Times our rules were lost and built again.",
        Number(|s| s.metrics.firewall_repairs),
    ),
    counter(
        "tcpparser_firewall_commands",
        "Firewall commands run, by exit status.",
        labelled::<CommandExit>("exit", |s| s.metrics.firewall_commands.values()),
    ),
    histogram(
        "tcpparser_firewall_command_duration_seconds",
        "How long firewall commands took.",
        |s| &s.metrics.firewall_command_duration,
    ),
    counter(
        "tcpparser_sockets_destroyed",
        "Sockets of blocked sources that were destroyed.",
        Number(|s| s.metrics.sockets_destroyed),
    ),
    gauge(
        "tcpparser_table_entries",
        "Entries in each fixed-size table now.",
        labelled::<Table>("table", |s| s.metrics.table_entries.values()),
    ),
    gauge(
        "tcpparser_table_capacity",
        "Entries each fixed-size table can hold.",
        labelled::<Table>("table", |_| &TABLE_CAPACITIES),
    ),
    counter(
        "tcpparser_table_evictions",
        "Entries that gave way in a full table, or found no place in it.",
        labelled::<Table>("table", |s| s.metrics.table_evictions.values()),
    ),
    counter(
        "tcpparser_output_lines_dropped",
        "Lines lost because standard output was blocked or broken.",
        Number(|s| s.metrics.output_lines_dropped),
    ),
    gauge(
        "tcpparser_http_clients",
        "HTTP clients connected now.",
        Number(|s| s.metrics.http_clients),
    ),
    counter(
        "tcpparser_http_clients_accepted",
        "HTTP clients accepted.",
        Number(|s| s.metrics.http_clients_accepted),
    ),
    counter(
        "tcpparser_http_clients_evicted",
        "HTTP clients that gave way to a newer one.",
        Number(|s| s.metrics.http_clients_evicted),
    ),
    counter(
        "tcpparser_http_requests",
        "HTTP requests answered, by status code.",
        labelled::<Status>("code", |s| s.metrics.http_requests.values()),
    ),
    // The names and meanings all Prometheus client libraries share.
    counter(
        "process_cpu_seconds",
        "Total user and system CPU time spent in seconds.",
        Seconds(|s| s.process.cpu_time.as_nanos()),
    )
    .in_unit("seconds"),
    gauge(
        "process_open_fds",
        "Number of open file descriptors.",
        Number(|s| s.process.open_descriptors),
    ),
    gauge(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        Limit(|s| s.process.max_descriptors),
    ),
    gauge(
        "process_virtual_memory_bytes",
        "Virtual memory size in bytes.",
        Number(|s| s.process.virtual_bytes),
    )
    .in_unit("bytes"),
    gauge(
        "process_virtual_memory_max_bytes",
        "Maximum amount of virtual memory available in bytes.",
        Limit(|s| s.process.max_virtual_bytes),
    )
    .in_unit("bytes"),
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes.",
        Number(|s| s.process.resident_bytes),
    )
    .in_unit("bytes"),
    gauge(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        Seconds(|s| s.start_unix_nanoseconds),
    )
    .in_unit("seconds"),
];

/// Appends all families.
pub fn write(snapshot: &Snapshot, format: Format, out: &mut impl Sink) {
    for family in FAMILIES {
        family.write_head(format, out);
        family.write_samples(snapshot, out);
    }
    if format == Format::OpenMetrics {
        out.put(b"# EOF\n");
    }
}

impl MetricFamily {
    /// What a sample's name has behind the family's.
    const fn suffix(&self) -> &'static str {
        match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        }
    }

    /// The lines that describe the family. In OpenMetrics they name it without
    /// the suffix (section "MetricFamily"), in the text format with it.
    fn write_head(&self, format: Format, out: &mut impl Sink) {
        let (suffix, kind) = match (format, self.kind) {
            (Format::Text, Kind::Info) => (self.suffix(), "gauge"),
            (Format::OpenMetrics, Kind::Info) => ("", "info"),
            (Format::Text, Kind::Counter) => (self.suffix(), "counter"),
            (Format::OpenMetrics, Kind::Counter) => ("", "counter"),
            (_, Kind::Gauge) => ("", "gauge"),
            (_, Kind::Histogram) => ("", "histogram"),
        };
        let mut line = |keyword: &str, text: &str| {
            put_all(
                out,
                &["# ", keyword, " ", self.name, suffix, " ", text, "\n"],
            );
        };
        line("HELP", self.help);
        line("TYPE", kind);
        if format == Format::OpenMetrics && !self.unit.is_empty() {
            line("UNIT", self.unit);
        }
    }

    fn write_samples(&self, snapshot: &Snapshot, out: &mut impl Sink) {
        match &self.samples {
            Number(number) => self.write_number(out, number(snapshot)),
            Flag(flag) => self.write_number(out, u64::from(flag(snapshot))),
            Seconds(nanoseconds) => {
                put_all(out, &[self.name, self.suffix(), " "]);
                out.put_seconds(nanoseconds(snapshot));
                out.put_byte(b'\n');
            }
            Limit(limit) => match limit(snapshot) {
                Some(number) => self.write_number(out, number),
                None => put_all(out, &[self.name, self.suffix(), " +Inf\n"]),
            },
            Samples::Labelled {
                label,
                values,
                numbers,
            } => self.write_labelled(out, label, values, numbers(snapshot)),
            Samples::Grid {
                labels,
                values,
                numbers,
            } => self.write_grid(out, *labels, *values, numbers(snapshot)),
            Samples::Histogram(durations) => self.write_histogram(out, durations(snapshot)),
            Samples::Build(labels) => self.write_build(out, labels),
        }
    }

    fn write_number(&self, out: &mut impl Sink, number: u64) {
        put_all(out, &[self.name, self.suffix(), " "]);
        put_end(out, number);
    }

    fn write_labelled(&self, out: &mut impl Sink, label: &str, values: &[&str], numbers: &[u64]) {
        for (value, number) in values.iter().zip(numbers) {
            put_all(
                out,
                &[self.name, self.suffix(), "{", label, "=\"", value, "\"} "],
            );
            put_end(out, *number);
        }
    }

    fn write_grid(
        &self,
        out: &mut impl Sink,
        labels: [&str; 2],
        values: [&[&str]; 2],
        numbers: &[u64],
    ) {
        let [a_label, b_label] = labels;
        let [a_values, b_values] = values;
        let pairs = a_values
            .iter()
            .flat_map(|a| b_values.iter().map(move |b| (a, b)));
        for ((a, b), number) in pairs.zip(numbers) {
            put_all(out, &[self.name, self.suffix(), "{", a_label, "=\"", a]);
            put_all(out, &["\",", b_label, "=\"", b, "\"} "]);
            put_end(out, *number);
        }
    }

    fn write_histogram(&self, out: &mut impl Sink, durations: &Histogram) {
        let mut below: u64 = 0;
        for (bucket, count) in BUCKETS.iter().zip(durations.counts()) {
            below = below.wrapping_add(*count);
            put_all(out, &[self.name, "_bucket{le=\"", bucket.le, "\"} "]);
            put_end(out, below);
        }
        put_all(out, &[self.name, "_bucket{le=\"+Inf\"} "]);
        put_end(out, durations.count());
        put_all(out, &[self.name, "_sum "]);
        out.put_seconds(durations.sum().as_nanos());
        put_all(out, &["\n", self.name, "_count "]);
        put_end(out, durations.count());
    }

    fn write_build(&self, out: &mut impl Sink, labels: &[(&str, &str)]) {
        put_all(out, &[self.name, self.suffix()]);
        let mut separator = "{";
        for (label, value) in labels {
            put_all(out, &[separator, label, "=\""]);
            put_escaped(out, value);
            out.put_byte(b'"');
            separator = ",";
        }
        out.put(b"} 1\n");
    }
}

#[inline(never)]
fn put_all(out: &mut impl Sink, parts: &[&str]) {
    for part in parts {
        out.put(part.as_bytes());
    }
}

fn put_end(out: &mut impl Sink, number: u64) {
    out.put_decimal(number);
    out.put_byte(b'\n');
}

/// A label value; both formats escape these three characters.
fn put_escaped(out: &mut impl Sink, value: &str) {
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
    use crate::http::BODY_ROOM;
    use crate::text::Text;
    use crate::time::Duration;

    fn written(snapshot: &Snapshot, format: Format) -> String {
        let mut text: std::boxed::Box<Text<BODY_ROOM>> = std::boxed::Box::default();
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
            start_unix_nanoseconds: 1_635_801_113_250_000_000,
        }
    }

    fn busy() -> Metrics {
        let mut metrics = Metrics::new();
        metrics.readings.add(Trigger::Scheduled, 3);
        metrics.readings.add(Trigger::Early, 2);
        metrics.reading_duration.observe(Duration::from_millis(2));
        metrics.reading_duration.observe(Duration::from_secs(60));
        metrics.connections.set(Family::V6, TcpState::TimeWait, 17);
        metrics.new_connections.count(Direction::Out, Family::V4);
        metrics.blocks_refused.count(Refusal::Gateway);
        metrics.firewall_up = true;
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
        let candidates = ["", "_total", "_info", "_bucket", "_sum", "_count"];
        candidates
            .iter()
            .filter_map(|suffix| sample.strip_suffix(suffix))
            .find(|name| families.contains_key(name))
            .unwrap_or_else(|| panic!("{sample} has no family"))
    }

    /// What promtool does not find: series told twice, families split, families
    /// without HELP, TYPE or samples, a missing last newline.
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
                    assert!(series.insert((name, labels)), "{line} is told twice");
                    with_samples.insert(current);
                }
            }
        }
        assert_eq!(helps.len(), FAMILIES.len());
        assert_eq!(helps, types.keys().copied().collect());
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
    fn both_formats_tell_the_same_samples() {
        let metrics = busy();
        let samples = |format| -> Vec<String> {
            written(&sample(&metrics), format)
                .lines()
                .filter(|line| !line.starts_with('#'))
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(samples(Format::Text), samples(Format::OpenMetrics));
    }

    #[test]
    fn samples_carry_their_numbers() {
        let metrics = busy();
        let text = written(&sample(&metrics), Format::Text);
        for line in [
            "tcpparser_readings_total 5",
            "tcpparser_early_readings_total 2",
            "tcpparser_reading_duration_seconds_bucket{le=\"0.001\"} 0",
            "tcpparser_reading_duration_seconds_bucket{le=\"0.0025\"} 1",
            "tcpparser_reading_duration_seconds_bucket{le=\"10.0\"} 1",
            "tcpparser_reading_duration_seconds_bucket{le=\"+Inf\"} 2",
            "tcpparser_reading_duration_seconds_sum 60.002",
            "tcpparser_reading_duration_seconds_count 2",
            "tcpparser_connections{family=\"6\",state=\"time_wait\"} 17",
            "tcpparser_connections{family=\"4\",state=\"time_wait\"} 0",
            "tcpparser_new_connections_total{direction=\"out\",family=\"4\"} 1",
            "tcpparser_new_connections_total{direction=\"in\",family=\"6\"} 0",
            "tcpparser_blocks_refused_total{reason=\"gateway\"} 1",
            "tcpparser_firewall_up 1",
            "tcpparser_firewall_jump_first 0",
            "tcpparser_http_requests_total{code=\"431\"} 0",
            "tcpparser_table_capacity{table=\"connections\"} 131072",
            "process_cpu_seconds_total 1.5",
            "process_max_fds 1024",
            "process_virtual_memory_max_bytes +Inf",
            "process_start_time_seconds 1635801113.25",
            "# TYPE tcpparser_build_info gauge",
            "# TYPE tcpparser_readings_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing");
        }
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

    /// README.md's table: name without labels -> type and meaning.
    fn told_in_readme() -> BTreeMap<String, (String, String)> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let rows = readme
            .lines()
            .filter_map(|line| line.strip_prefix("| `tcpparser_"));
        let mut told = BTreeMap::new();
        for row in rows {
            let (name, rest) = row.split_once("` | ").unwrap();
            let (kind, meaning) = rest.split_once(" | ").unwrap();
            let name = "tcpparser_".to_string() + name.split('{').next().unwrap();
            let before = told.insert(name, (kind.to_string(), meaning.to_string()));
            assert_eq!(before, None, "told twice: {row}");
        }
        told
    }

    /// Every family and no other, with its type.
    #[test]
    fn readme_tells_every_metric() {
        let metrics = Metrics::new();
        let text = written(&sample(&metrics), Format::Text);
        let types = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE tcpparser_"));
        let families: BTreeMap<String, String> = types
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, kind)| ("tcpparser_".to_string() + name, kind.to_string()))
            .collect();
        let told = told_in_readme().into_iter();
        let told: BTreeMap<_, _> = told.map(|(name, (kind, _))| (name, kind)).collect();
        assert_eq!(told, families);
    }

    /// The Python program's only metric has a successor.
    #[test]
    fn readme_says_what_new_connections_total_became() {
        let told = told_in_readme();
        let (kind, meaning) = &told["tcpparser_new_connections_total"];
        assert_eq!(kind, "counter");
        assert!(meaning.contains(" `new_connections_total`"), "{meaning}");
    }

    /// Each label of a family stands behind its name.
    #[test]
    fn readme_tells_every_label() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        for family in FAMILIES {
            let labels: Vec<&str> = match &family.samples {
                Samples::Labelled { label, .. } => [*label].to_vec(),
                Samples::Grid { labels, .. } => labels.to_vec(),
                _ => continue,
            };
            let name = [family.name, family.suffix()].concat();
            let start = std::format!("| `{name}{{{}}}` | ", labels.join(","));
            assert!(readme.contains(&start), "README.md has no {start}");
        }
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
            "table",
            "code",
            "file",
            "exit",
        ];
        assert_eq!(labels, expected.into_iter().collect());
    }

    /// The longest text that can ever come about fits an answer.
    #[test]
    fn the_longest_text_fits() {
        let metrics = Metrics::new();
        let text = written(&sample(&metrics), Format::OpenMetrics);
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        let longest_number = "18446744073709551615".len();
        assert!(text.len() + samples * longest_number <= BODY_ROOM);
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
