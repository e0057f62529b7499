//! What the daemon writes. Standard output: whole lines, few writes, and never
//! more time than was granted to a reader that does not keep up. Standard
//! error: one diagnostic a line.

use core::mem;

use crate::kernel::{Descriptor, Errno, Interest, Kernel, StartUp, Stream};
use crate::limits::{DAY, LINES_PER_PERIOD, LINES_PERIOD, OUTPUT_BUFFER, PROBE_LINES};
use crate::metrics::{self, Metrics};
use crate::report::{self, LABEL_WIDTH, Label, Line, STAMP_WIDTH};
use crate::text::{Text, parse_decimal, split_once};
use crate::time::{Duration, Instant, nearest};

use super::clock::now;
use super::once::Once;

/// Lines of one kind that a period may have; all bytes zero when new. Periods
/// follow each other from the first line on, and only while there are lines.
struct Budget {
    ends: Option<Instant>,
    used: usize,
    /// What came on top of that.
    held_back: u64,
}

impl Budget {
    const NEW: Self = Self {
        ends: None,
        used: 0,
        held_back: 0,
    };

    /// When it is to be said how many were held back.
    #[inline(never)]
    fn deadline(&self) -> Option<Instant> {
        self.ends.filter(|_| self.held_back > 0)
    }

    /// Whether one more may come; what was held back is said before.
    fn admits(&mut self, most: usize, now: Instant) -> bool {
        if now.is_past(self.ends) {
            (self.ends, self.used) = (Some(now.after(LINES_PERIOD)), 0);
        }
        let is_admitted = self.used < most;
        if is_admitted {
            self.used += 1;
        } else {
            self.held_back += 1;
        }
        is_admitted
    }
}

/// What standard output is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// A pipe or a file.
    Plain,
    /// systemd's, which has the time and a priority for each line
    /// (systemd.exec(5), SyslogLevelPrefix).
    Journal,
    /// A terminal.
    Terminal,
    /// One that shows colours.
    Colours,
}

impl Style {
    fn of(start_up: &StartUp) -> Self {
        let journal = start_up.variable(b"JOURNAL_STREAM").and_then(|value| {
            let (device, inode) = split_once(value, b':');
            Some((parse_decimal(device)?, parse_decimal(inode)?))
        });
        if journal.is_some() && journal == start_up.output_file {
            Self::Journal
        } else if start_up.screen.is_none() {
            Self::Plain
        } else if has_colours(start_up) {
            Self::Colours
        } else {
            Self::Terminal
        }
    }
}

/// The most that a style adds to a line: an escape sequence and its end.
const DECORATION: usize = 9;

/// Whether a terminal shows colours, and is to: <https://no-color.org>.
fn has_colours(start_up: &StartUp) -> bool {
    let value = |name: &[u8]| start_up.variable(name).unwrap_or_default();
    value(b"NO_COLOR").is_empty() && !matches!(value(b"TERM"), b"" | b"dumb")
}

/// A line's priority in the journal: sd-daemon(3) has 4 for warnings and 6 for
/// information; and its label's colour on a terminal: red, yellow, green of
/// ECMA-48, if any.
fn look(label: Option<Label>) -> (u8, Option<u8>) {
    match label {
        Some(Label::Scan) => (b'4', Some(b'1')),
        Some(Label::NotBlocked | Label::BlockFailed) => (b'4', Some(b'3')),
        Some(Label::Unblocked) => (b'6', Some(b'2')),
        Some(Label::Blocked | Label::Connection | Label::Probes) | None => (b'6', None),
    }
}

/// Lines on their way to standard output.
#[repr(C)]
pub struct Output {
    /// Where standard output is polled.
    descriptor: Option<Descriptor>,
    style: Style,
    introduction: Once,
    dropped: u64,
    /// When the journal gets its next sign of life, and what was counted at the
    /// last one.
    day_ends: Option<Instant>,
    scans: u64,
    blocks: u64,
    /// What a slow reader may still cost in total.
    wait_budget: Duration,
    /// What a reader that takes nothing at all may cost: then nothing is left
    /// of the budget.
    longest_wait: Duration,
    /// Of scans and what becomes of blocks, a thousand of which must not fill a
    /// disk, and of probes.
    budgets: [Budget; 2],
    buffer: Text<OUTPUT_BUFFER>,
}

impl Output {
    /// Nothing to write; all bytes zero.
    pub const fn new() -> Self {
        Self {
            descriptor: None,
            style: Style::Plain,
            introduction: Once::NEW,
            day_ends: None,
            scans: 0,
            blocks: 0,
            buffer: Text::new(),
            dropped: 0,
            wait_budget: Duration::ZERO,
            longest_wait: Duration::ZERO,
            budgets: [Budget::NEW; 2],
        }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Takes what is known of standard output.
    pub fn open(&mut self, start_up: &StartUp) {
        self.descriptor = start_up.output;
        self.style = Style::of(start_up);
    }

    /// Whether somebody sits there who knows nothing of us yet.
    pub fn takes_introduction(&mut self) -> bool {
        matches!(self.style, Style::Terminal | Style::Colours) && self.introduction.say()
    }

    /// A daemon's first day begins.
    #[inline(never)]
    pub fn start(&mut self, now: Instant) {
        self.day_ends = (self.style == Style::Journal).then(|| now.after(DAY));
    }

    /// Where bytes wait for room.
    pub fn interest(&self) -> Interest {
        Interest::write(self.descriptor.filter(|_| !self.buffer.is_empty()))
    }

    /// Grants a slow reader `wait_budget` in total from now on, and one that
    /// takes nothing at most `longest_wait` of it.
    #[inline(never)]
    pub fn set_wait_budget(&mut self, wait_budget: Duration, longest_wait: Duration) {
        self.wait_budget = wait_budget;
        self.longest_wait = longest_wait;
    }

    /// When it is to be said what was held back, or what a day brought.
    pub fn deadline(&self) -> Option<Instant> {
        let [events, probes] = &self.budgets;
        let budgets = nearest(events.deadline(), probes.deadline());
        nearest(budgets, self.day_ends)
    }

    /// Whether a day is over; the next one begins.
    pub fn ends_day(&mut self, now: Instant) -> bool {
        let is_over = now.reaches(self.day_ends);
        if is_over {
            self.start(now);
        }
        is_over
    }

    /// Says what a day brought.
    pub fn say_day(&mut self, kernel: &mut impl Kernel, metrics: &Metrics, standing: u64) {
        let scans = metrics.get(metrics::PORT_SCANS)
            - mem::replace(&mut self.scans, metrics.get(metrics::PORT_SCANS));
        let blocks = metrics.get(metrics::BLOCKS)
            - mem::replace(&mut self.blocks, metrics.get(metrics::BLOCKS));
        let mut line = Line::new();
        report::day(&mut line, scans, blocks, standing);
        self.line(kernel, &line);
    }

    /// Says how many lines were held back in minutes that are over.
    #[inline(never)]
    pub fn end_minute(&mut self, kernel: &mut impl Kernel, now: Instant) {
        for index in 0..self.budgets.len() {
            let budget = self.budgets.get_mut(index);
            if let Some(budget) = budget.filter(|budget| now.reaches(budget.deadline())) {
                let count = mem::take(&mut budget.held_back);
                self.more(kernel, count);
            }
        }
    }

    /// Says that there would be so many more.
    #[inline(never)]
    pub fn more(&mut self, kernel: &mut impl Kernel, count: u64) {
        let mut line = Line::new();
        report::more(&mut line, count);
        self.line(kernel, &line);
    }

    /// Says it of those that are not, too.
    #[inline(never)]
    pub fn say_held_back(&mut self, kernel: &mut impl Kernel) {
        let end = now(kernel).after(LINES_PERIOD);
        self.end_minute(kernel, end);
    }

    /// Appends one line, unless there were too many of its kind.
    #[inline(never)]
    pub fn line(&mut self, kernel: &mut impl Kernel, line: &Line) {
        if !matches!(line.label, None | Some(Label::Connection)) {
            let now = now(kernel);
            self.end_minute(kernel, now);
            let [events, probes] = &mut self.budgets;
            let (budget, most) = match line.label {
                Some(Label::Probes) => (probes, PROBE_LINES),
                _ => (events, LINES_PER_PERIOD),
            };
            if !budget.admits(most, now) {
                return;
            }
        }
        self.put(kernel, line.label, line.as_bytes());
    }

    /// Appends one line that has neither time nor label.
    #[inline(never)]
    pub fn bare(&mut self, kernel: &mut impl Kernel, line: &[u8]) {
        self.put(kernel, None, line);
    }

    /// Drops and counts a line for which there is no room.
    #[inline(never)]
    fn put(&mut self, kernel: &mut impl Kernel, label: Option<Label>, line: &[u8]) {
        let length = line.len() + DECORATION;
        let mut has_flushed = false;
        while self.buffer.room() <= length {
            if has_flushed && !self.wait(kernel) {
                self.dropped += 1;
                return;
            }
            self.flush(kernel);
            has_flushed = true;
        }
        let out = &mut self.buffer;
        let (priority, colour) = look(label);
        let start = label.map_or(0, |_| STAMP_WIDTH);
        let (time, mut rest) = line.split_at_checked(start).unwrap_or_default();
        match (self.style, colour) {
            (Style::Journal, _) => out.put(&[b'<', priority, b'>']),
            (Style::Colours, Some(colour)) => {
                out.put(time);
                out.put(&[b'\x1b', b'[', b'3', colour, b'm']);
                out.put(rest.get(..LABEL_WIDTH).unwrap_or_default());
                out.put(b"\x1b[0m");
                rest = rest.get(LABEL_WIDTH..).unwrap_or_default();
            }
            _ => out.put(time),
        }
        out.put(rest);
        out.put_byte(b'\n');
    }

    /// Writes what standard output takes without waiting. Where it is broken
    /// the lines are lost.
    pub fn flush(&mut self, kernel: &mut impl Kernel) {
        while !self.buffer.is_empty() {
            match kernel.write(Stream::Output, self.buffer.as_bytes()) {
                Ok(0) | Err(Errno::EAGAIN) => return,
                Ok(count) => self.buffer.consume(count),
                Err(Errno::EINTR) => {}
                Err(_) => {
                    let lines = self
                        .buffer
                        .as_bytes()
                        .iter()
                        .filter(|byte| **byte == b'\n')
                        .count();
                    self.dropped += lines as u64;
                    self.buffer.clear();
                }
            }
        }
    }

    /// Writes everything, as long as the wait budget lasts: before the process
    /// ends.
    pub fn finish(&mut self, kernel: &mut impl Kernel) {
        self.say_held_back(kernel);
        self.flush(kernel);
        while !self.buffer.is_empty() && self.wait(kernel) {
            self.flush(kernel);
        }
    }

    /// Waits a little for room; false when the budget is spent.
    fn wait(&mut self, kernel: &mut impl Kernel) -> bool {
        if self.wait_budget == Duration::ZERO {
            return false;
        }
        let before = now(kernel);
        let mut interests = [Interest::write(self.descriptor)];
        let found = kernel.poll(
            &mut interests,
            Some(self.wait_budget.min(self.longest_wait)),
        );
        let waited = now(kernel).since(before);
        self.wait_budget = self.wait_budget.saturating_sub(waited);
        let [interest] = interests;
        if found.is_ok() && !interest.is_writable {
            self.wait_budget = Duration::ZERO;
        }
        self.wait_budget != Duration::ZERO
    }
}

/// Says one diagnostic on standard error.
#[inline(never)]
pub fn log_error(kernel: &mut impl Kernel, words: &[&[u8]]) {
    let mut line: Text<512> = Text::new();
    line.put(b"tcpparser: ");
    for word in words {
        line.put(word);
    }
    line.put(b"\n");
    write_error(kernel, line.as_bytes());
}

/// The same of one text.
#[inline(never)]
pub fn log_words(kernel: &mut impl Kernel, words: &[u8]) {
    log_error(kernel, &[words]);
}

/// The same of one text and what it is about.
#[inline(never)]
pub fn log_pair(kernel: &mut impl Kernel, words: &[u8], about: &[u8]) {
    log_error(kernel, &[words, about]);
}

/// Nowhere is left to log that this failed.
pub fn write_error(kernel: &mut impl Kernel, line: &[u8]) {
    let _ = kernel.write(Stream::Error, line);
}
