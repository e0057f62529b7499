//! What the daemon writes. Standard output: whole lines, few writes, and never
//! more time than was granted to a reader that does not keep up. Standard
//! error: one diagnostic a line.

use core::mem;

use crate::kernel::{Descriptor, Errno, Interest, Kernel, Stream};
use crate::limits::{LINES_PER_PERIOD, LINES_PERIOD, OUTPUT_BUFFER};
use crate::report::{self, Label, Line};
use crate::text::Text;
use crate::time::{Duration, Instant};

use super::clock::now;

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

/// Lines on their way to standard output.
#[repr(C)]
pub struct Output {
    /// Where standard output is polled.
    descriptor: Option<Descriptor>,
    dropped: u64,
    /// What a slow reader may still cost in total.
    wait_budget: Duration,
    /// What a reader that takes nothing at all may cost: then nothing is left
    /// of the budget.
    longest_wait: Duration,
    /// Scans and what becomes of blocks: a thousand scanners must not fill a
    /// disk.
    events: Budget,
    buffer: Text<OUTPUT_BUFFER>,
}

impl Output {
    /// Nothing to write; all bytes zero.
    pub const fn new() -> Self {
        Self {
            descriptor: None,
            buffer: Text::new(),
            dropped: 0,
            wait_budget: Duration::ZERO,
            longest_wait: Duration::ZERO,
            events: Budget::NEW,
        }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Where room for it is polled.
    pub fn open(&mut self, descriptor: Option<Descriptor>) {
        self.descriptor = descriptor;
    }

    /// Where bytes wait for room.
    pub fn interest(&self) -> Option<Interest> {
        (!self.buffer.is_empty()).then(|| Interest::write(self.descriptor))
    }

    /// Grants a slow reader `wait_budget` in total from now on, and one that
    /// takes nothing at most `longest_wait` of it.
    pub fn set_wait_budget(&mut self, wait_budget: Duration, longest_wait: Duration) {
        self.wait_budget = wait_budget;
        self.longest_wait = longest_wait;
    }

    /// When it is to be said what was held back.
    pub fn deadline(&self) -> Option<Instant> {
        self.events.deadline()
    }

    /// Says what was held back in a minute that is over.
    pub fn end_minute(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if now.reaches(self.deadline()) {
            self.say_held_back(kernel);
        }
    }

    /// Says how many lines were held back, if any were.
    pub fn say_held_back(&mut self, kernel: &mut impl Kernel) {
        let count = mem::take(&mut self.events.held_back);
        if count > 0 {
            self.bare(kernel, report::more(count).as_bytes());
        }
    }

    /// Appends one line, unless there were too many of its kind.
    #[inline(never)]
    pub fn line(&mut self, kernel: &mut impl Kernel, line: &Line) {
        if !matches!(line.label, None | Some(Label::Connection)) {
            let now = now(kernel);
            self.end_minute(kernel, now);
            if !self.events.admits(LINES_PER_PERIOD, now) {
                return;
            }
        }
        self.bare(kernel, line.as_bytes());
    }

    /// Appends one line that has no label; drops and counts it where there is
    /// no room.
    pub fn bare(&mut self, kernel: &mut impl Kernel, line: &[u8]) {
        if self.buffer.room() <= line.len() {
            self.flush(kernel);
        }
        while self.buffer.room() <= line.len() && self.wait(kernel) {
            self.flush(kernel);
        }
        if self.buffer.room() <= line.len() {
            self.dropped += 1;
            return;
        }
        self.buffer.put(line);
        self.buffer.put_byte(b'\n');
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

/// Nowhere is left to log that this failed.
pub fn write_error(kernel: &mut impl Kernel, line: &[u8]) {
    let _ = kernel.write(Stream::Error, line);
}
