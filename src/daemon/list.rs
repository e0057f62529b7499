//! The list of connections that each scheduled reading prints.

use heapless::Vec;

use crate::address::Endpoint;
use crate::connections::{Connection, Direction};
use crate::kernel::Kernel;
use crate::limits::LIST_EXTRA;
use crate::options::Show;
use crate::report;
use crate::time::{Calendar, Instant, order};

use super::output::Output;

/// A connection of the list.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) remote: Endpoint,
    pub(super) local: Endpoint,
    pub(super) direction: Direction,
}

/// All bytes zero when new.
#[repr(C)]
pub(super) struct List {
    show: Show,
    /// Lines of the list that is being printed.
    length: u64,
    /// When the reading of the last one began.
    printed: Option<Instant>,
    more_extras: u64,
    /// Connections that were over before a scheduled reading: they join the
    /// next list.
    extras: Vec<Entry, LIST_EXTRA>,
}

impl List {
    pub(super) const fn new() -> Self {
        Self {
            show: Show::All,
            length: 0,
            printed: None,
            extras: Vec::new(),
            more_extras: 0,
        }
    }

    pub(super) fn configure(&mut self, show: Show) {
        self.show = show;
    }

    pub(super) fn begin(&mut self) {
        self.length = 0;
    }

    /// Whether a connection that stands belongs into it.
    pub(super) fn shows(&self, connection: Connection) -> bool {
        match self.show {
            Show::All => true,
            Show::New => connection.first_seen.as_nanos() > order(self.printed),
            Show::Scans => false,
        }
    }

    /// Whether a connection that is over belongs into the next one.
    pub(super) fn misses(&self, connection: Connection) -> bool {
        !connection.listed && self.show != Show::Scans
    }

    /// Keeps one for the next list.
    pub(super) fn keep(&mut self, entry: Entry) {
        if self.extras.push(entry).is_err() {
            self.more_extras += 1;
        }
    }

    /// Prints a connection that stands.
    pub(super) fn print(
        &mut self,
        kernel: &mut impl Kernel,
        output: &mut Output,
        calendar: Calendar,
        entry: &Entry,
    ) {
        self.length += 1;
        print(kernel, output, calendar, entry);
    }

    /// Ends the list: prints what was kept for it, without those that
    /// `is_blocked` since.
    pub(super) fn end(
        &mut self,
        kernel: &mut impl Kernel,
        output: &mut Output,
        calendar: Calendar,
        now: Instant,
        is_blocked: impl Fn(&Entry) -> bool,
    ) {
        for entry in self.extras.iter().filter(|entry| !is_blocked(entry)) {
            print(kernel, output, calendar, entry);
        }
        if self.more_extras > 0 {
            output.line(kernel, &report::more(self.more_extras));
        }
        self.length += self.extras.len() as u64 + self.more_extras;
        self.extras.clear();
        self.more_extras = 0;
        self.printed = Some(now);
    }

    /// Whether the last list says that there is no connection. Without news it
    /// says nothing of those that are `established`.
    pub(super) fn is_empty(&self, established: u64) -> bool {
        let unlisted = match self.show {
            Show::All => 0,
            Show::New => established,
            Show::Scans => return false,
        };
        self.length == 0 && unlisted == 0
    }
}

#[inline(never)]
fn print(kernel: &mut impl Kernel, output: &mut Output, calendar: Calendar, entry: &Entry) {
    let line = report::connection(calendar, entry.remote, entry.direction, entry.local);
    output.line(kernel, &line);
}
