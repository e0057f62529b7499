//! Metrics as text: Prometheus text format 0.0.4 and OpenMetrics 1.0.0.

use core::slice::Iter;

use crate::http::Format;
use crate::label::nth;
use crate::metrics::{BUCKETS, FAMILIES, Metrics, START_TIME_SECONDS};
use crate::text::{TextView, split, split_into, split_once};
use crate::time::Duration;

/// Appends all families, in the order in which they are exposed.
pub fn write(metrics: &Metrics, format: Format, out: &mut TextView) {
    let mut writer = Writer {
        out,
        is_text: format == Format::Text,
        has_created: false,
        start: metrics.get(START_TIME_SECONDS),
        numbers: metrics.numbers().iter(),
        name: b"",
        suffix: b"",
        labels: 0,
    };
    for family in split(FAMILIES, b'\n') {
        writer.family(family);
    }
    if format == Format::OpenMetrics {
        out.put(b"# EOF\n");
    }
}

/// Writes families, one after the other.
struct Writer<'a> {
    out: &'a mut TextView,
    /// Not OpenMetrics.
    is_text: bool,
    /// Whether the family being written says when counting began, and when it did.
    has_created: bool,
    start: u64,
    /// Those that are not written yet.
    numbers: Iter<'a, u64>,
    /// Name of the family being written, and what its samples have behind it.
    name: &'static [u8],
    suffix: &'static [u8],
    /// Where behind the name the labels of the sample being written begin.
    labels: usize,
}

impl Writer<'_> {
    /// One line of `FAMILIES`.
    fn family(&mut self, family: &'static [u8]) {
        let mut fields: [&[u8]; 4] = [b""; 4];
        split_into(&mut fields, family, b'|');
        let [name, help, rows, columns] = fields;
        let Some((kind, name)) = name.split_first() else {
            return;
        };
        let mut kind = kind.wrapping_sub(b'0');
        self.name = name;
        self.suffix = nth("_total _total   _info", kind.into());
        self.has_created = !self.is_text && kind == 0;
        // The text format has no such type.
        if self.is_text && kind == 4 {
            kind = 2;
        }
        self.describe(b"# HELP ", help);
        self.describe(
            b"# TYPE ",
            nth("counter counter gauge histogram info", kind.into()),
        );
        for unit in [b"seconds".as_slice(), b"bytes"] {
            if !self.is_text && name.ends_with(unit) {
                self.describe(b"# UNIT ", unit);
            }
        }
        if kind == 3 {
            self.histogram();
        } else {
            self.series(rows, columns);
        }
    }

    /// A line about the family, which OpenMetrics names without the suffix
    /// (section "MetricFamily").
    #[inline(never)]
    fn describe(&mut self, what: &[u8], words: &[u8]) {
        self.put(what);
        self.put_name(if self.is_text { self.suffix } else { b"" });
        self.put(b" ");
        self.put(words);
        self.put(b"\n");
    }

    /// The names that all Prometheus client libraries share are whole.
    #[inline(never)]
    fn put_name(&mut self, suffix: &[u8]) {
        if !self.name.starts_with(b"process_") {
            self.put(b"tcpparser_");
        }
        self.put(self.name);
        self.put(suffix);
    }

    /// One number; or one for each value of a label, and those for each value of
    /// another. Where a number is always 1, those that apply.
    fn series(&mut self, rows: &[u8], columns: &[u8]) {
        let (row_label, rows) = split_once(rows, b' ');
        let (label, columns) = split_once(columns, b' ');
        for row in split(rows, b' ') {
            for value in split(columns, b' ') {
                let number = self.next();
                if number == 0 && self.suffix == b"_info" {
                    continue;
                }
                self.sample(b"");
                self.label(row_label, row);
                self.label(label, value);
                self.end(number, self.name.ends_with(b"seconds"));
            }
        }
    }

    #[inline(never)]
    fn next(&mut self) -> u64 {
        self.numbers.next().copied().unwrap_or_default()
    }

    fn histogram(&mut self) {
        let mut below: u64 = 0;
        for bound in BUCKETS {
            below = below.wrapping_add(self.next());
            self.sample(b"_bucket{le=\"");
            self.out.put_seconds(bound.as_nanos());
            // As OpenMetrics 1.0.0 wants it ("Canonical Numbers"), so that a
            // series has one name in both formats.
            if bound >= Duration::from_secs(1) {
                self.put(b".0");
            }
            self.put(b"\"");
            self.end(below, false);
        }
        let (count, sum) = (self.next(), self.next());
        self.sample(b"_bucket{le=\"+Inf\"");
        self.end(count, false);
        self.sample(b"_sum");
        self.end(sum, true);
        self.sample(b"_count");
        self.end(count, false);
    }

    /// Begins a sample: its name, then `rest`.
    #[inline(never)]
    fn sample(&mut self, rest: &[u8]) {
        self.put_name(self.suffix);
        self.labels = self.out.as_bytes().len();
        self.put(rest);
    }

    /// A label, if there is one, behind another or the name.
    #[inline(never)]
    fn label(&mut self, label: &[u8], value: &[u8]) {
        if !label.is_empty() {
            self.put(if self.has_labels() { b"," } else { b"{" });
            self.put(label);
            self.put(b"=\"");
            self.put(value);
            self.put(b"\"");
        }
    }

    #[inline(never)]
    fn has_labels(&self) -> bool {
        self.out.as_bytes().ends_with(b"\"")
    }

    #[inline(never)]
    fn put(&mut self, text: &[u8]) {
        self.out.put(text);
    }

    /// Ends a sample. Behind a counter comes in OpenMetrics since when it counts
    /// (section "Counter"): what it counted before the first scrape is an increase,
    /// too.
    #[inline(never)]
    fn end(&mut self, number: u64, are_seconds: bool) {
        self.put(if self.has_labels() { b"} " } else { b" " });
        match number {
            _ if are_seconds => self.out.put_seconds(number),
            u64::MAX => self.put(b"+Inf"),
            _ => self.out.put_decimal(number),
        }
        self.put(b"\n");
        if self.has_created {
            self.put_name(b"_created");
            self.out.put_word_again(self.labels);
            self.out.put_seconds(self.start);
            self.put(b"\n");
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
    use crate::address::Family;
    use crate::connections::Direction;
    use crate::firewall::{Backend, Refusal};
    use crate::host::Protection;
    use crate::http::BODY_ROOM;
    use crate::kernel::ProcessStatus;
    use crate::metrics::{
        BLOCKS_REFUSED, CONNECTIONS, EARLY_READINGS, FIREWALL, FIREWALL_UP, NEW_CONNECTIONS,
        READING_DURATION_SECONDS, READINGS, SCHEDULED_READINGS,
    };
    use crate::proc_net_tcp::TcpState;
    use crate::testing::golden::assert_golden;
    use crate::text::Text;
    use crate::time::Duration;

    fn written(metrics: &Metrics, format: Format) -> String {
        let mut text: std::boxed::Box<Text<BODY_ROOM>> = std::boxed::Box::new(Text::new());
        write(metrics, format, &mut *text);
        assert!(!text.is_truncated());
        String::from_utf8(text.as_bytes().to_vec()).unwrap()
    }

    fn idle() -> Metrics {
        let mut metrics = Metrics::new();
        metrics.set_process(&ProcessStatus {
            cpu_time: Duration::from_millis(1_500),
            open_descriptors: 9,
            max_descriptors: Some(1_024),
            virtual_bytes: 1 << 20,
            max_virtual_bytes: None,
            resident_bytes: 65_536,
        });
        metrics
    }

    fn busy() -> Metrics {
        let mut metrics = idle();
        metrics.set(READINGS, 5_u64);
        metrics.set(SCHEDULED_READINGS, 3_u64);
        metrics.set(EARLY_READINGS, 2_u64);
        metrics.observe(READING_DURATION_SECONDS, Duration::from_millis(2));
        metrics.observe(READING_DURATION_SECONDS, Duration::from_secs(60));
        metrics.add(CONNECTIONS.of(Family::V6, TcpState::TimeWait), 17);
        metrics.count(NEW_CONNECTIONS.of(Direction::Outbound, Family::V4));
        metrics.count(BLOCKS_REFUSED.of(Refusal::Protected(Protection::Gateway)));
        metrics.set(FIREWALL_UP, true);
        metrics.set(FIREWALL.of(Backend::Nft), true);
        metrics.set(START_TIME_SECONDS, 1_635_801_113_250_000_000_u64);
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
        for metrics in [idle(), busy()] {
            check(&written(&metrics, Format::Text));
            let open = written(&metrics, Format::OpenMetrics);
            check(&open);
            assert!(open.ends_with("\n# EOF\n"));
            assert_eq!(open.matches("# EOF").count(), 1);
        }
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let metrics = busy();
        let samples = |format| -> Vec<String> {
            written(&metrics, format)
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
        let text = written(&metrics, Format::Text);
        assert!(!text.lines().any(is_created));
        let open = written(&metrics, Format::OpenMetrics);
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
        let text = written(&metrics, Format::Text);
        let is_fixed = |line: &&str| !line.starts_with("tcpparser_build_info{");
        let lines: Vec<&str> = text.split_inclusive('\n').filter(is_fixed).collect();
        assert_golden("exposition.txt", &lines.concat());
        let open = written(&metrics, Format::OpenMetrics);
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
        let metrics = idle();
        let text = written(&metrics, Format::Text);
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
        let metrics = idle();
        let text = written(&metrics, Format::Text);
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
        let metrics = idle();
        let text = written(&metrics, Format::Text);
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
        metrics.set(START_TIME_SECONDS, u64::MAX);
        let text = written(&metrics, Format::OpenMetrics);
        let has_number = |line: &&str| !line.starts_with('#') && !is_created(line);
        let samples = text.lines().filter(has_number).count();
        let longest_number = "18446744073709551615".len();
        let longest = text.len() + samples * longest_number;
        assert!(longest <= BODY_ROOM, "{longest} of {BODY_ROOM} bytes");
    }

    /// Neither format needs to escape any of it.
    #[test]
    fn labels_and_meanings_are_plain() {
        let lines = split(FAMILIES.strip_suffix(b"\n").unwrap(), b'\n');
        for line in lines.clone() {
            assert_eq!(split(line, b'|').count(), 4);
            assert!(line.iter().all(|byte| (b' '..=b'~').contains(byte)));
            assert!(!line.contains(&b'\\'));
        }
        assert!(lines.count() > 60);
        let build = env!("TCPPARSER_REVISION").to_string() + env!("TCPPARSER_TARGET");
        assert!(!build.contains(['"', ' ', '|']), "{build}");
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
        let text = written(&metrics, Format::Text);
        let mut input = child.stdin.take().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert_eq!(String::from_utf8_lossy(&said), "");
        assert!(output.status.success());
    }
}
