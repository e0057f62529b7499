//! The list of connections that each scheduled reading prints.

use core::mem;

use heapless::{Vec, VecView};

use crate::address::Endpoint;
use crate::connections::{Connection, Direction};
use crate::kernel::{Kernel, Screen};
use crate::limits::{LIST_EXTRA, SCREEN_LINES};
use crate::options::Show;
use crate::report::{self, Line};
use crate::time::{Calendar, Instant, order};

use super::output::Output;

/// A connection of the list.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) remote: Endpoint,
    pub(super) local: Endpoint,
    pub(super) direction: Direction,
}

impl Entry {
    /// The port of the service.
    fn port(&self) -> u16 {
        match self.direction {
            Direction::Inbound => self.local.port,
            Direction::Outbound => self.remote.port,
        }
    }

    /// Whether both are of one peer with one port.
    fn is_like(&self, other: &Self) -> bool {
        self.remote.address == other.remote.address
            && self.direction == other.direction
            && self.port() == other.port()
    }
}

/// So many connections of one peer with one port.
struct Fold {
    first: Entry,
    count: u64,
}

/// Columns of a line of IPv4.
const LINE_WIDTH: u16 = 88;

/// A list on its way to a screen: connection by connection while it fits, else
/// folded. All bytes zero when new.
#[repr(C)]
struct Folder {
    /// How many lines fit; 0 where there is no screen.
    room: usize,
    is_folded: bool,
    /// Connections that have no line.
    more: u64,
    folds: Vec<Fold, SCREEN_LINES>,
}

impl Folder {
    const fn new() -> Self {
        Self {
            room: 0,
            is_folded: false,
            more: 0,
            folds: Vec::new(),
        }
    }

    /// One row is the cursor's, and a narrow screen breaks each line.
    fn set_screen(&mut self, screen: Screen) {
        let is_narrow = (1..LINE_WIDTH).contains(&screen.columns);
        let rows = screen.rows.saturating_sub(1) >> u16::from(is_narrow);
        self.room = usize::from(rows).min(SCREEN_LINES);
    }

    #[inline(never)]
    fn add(&mut self, entry: Entry) {
        if !self.is_folded && self.folds.len() == self.room {
            self.is_folded = true;
            let unfolded = mem::take(&mut self.folds);
            for fold in &unfolded {
                self.fold(fold.first);
            }
        }
        self.fold(entry);
    }

    /// Of more pairs than are kept, those with most stay.
    fn fold(&mut self, entry: Entry) {
        let mut folds = self.folds.iter_mut();
        if self.is_folded
            && let Some(fold) = folds.find(|fold| fold.first.is_like(&entry))
        {
            fold.count += 1;
            return;
        }
        let fold = Fold {
            first: entry,
            count: 1,
        };
        if !self.folds.is_full() {
            let _ = self.folds.push(fold);
        } else if let Some(least) = self.folds.iter_mut().min_by_key(|fold| fold.count) {
            self.more += least.count;
            *least = fold;
        }
    }

    /// Prints all that was added; how many connections have no line.
    fn end(&mut self, kernel: &mut impl Kernel, output: &mut Output, calendar: Calendar) -> u64 {
        let lines = self.room - usize::from(self.is_folded);
        for _ in 0..lines {
            // Of those with as many the first.
            let folds = self.folds.iter_mut().rev();
            let most = folds.max_by_key(|fold| fold.count);
            let Some(fold) = most.filter(|fold| fold.count > 0) else {
                break;
            };
            let count = mem::take(&mut fold.count);
            print(kernel, output, calendar, &fold.first, count);
        }
        let rest = self.folds.iter().map(|fold| fold.count).sum::<u64>();
        empty(&mut self.folds);
        self.is_folded = false;
        mem::take(&mut self.more) + rest
    }
}

/// Its length stands behind the entries, in a page that an idle daemon does not
/// need.
fn empty<T>(entries: &mut VecView<T>) {
    if !entries.is_empty() {
        entries.clear();
    }
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
    folder: Folder,
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
            folder: Folder::new(),
            extras: Vec::new(),
            more_extras: 0,
        }
    }

    pub(super) fn configure(&mut self, show: Show) {
        self.show = show;
    }

    /// From now on what is longer than that is folded.
    pub(super) fn set_screen(&mut self, screen: Screen) {
        self.folder.set_screen(screen);
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
        put(kernel, output, calendar, entry, &mut self.folder);
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
            put(kernel, output, calendar, entry, &mut self.folder);
        }
        let more = self.more_extras + self.folder.end(kernel, output, calendar);
        if more > 0 {
            output.more(kernel, more);
        }
        self.length += self.extras.len() as u64 + self.more_extras;
        empty(&mut self.extras);
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

/// Prints a connection, or keeps it until it is known whether the list fits.
fn put(
    kernel: &mut impl Kernel,
    output: &mut Output,
    calendar: Calendar,
    entry: &Entry,
    folder: &mut Folder,
) {
    if folder.room == 0 {
        print(kernel, output, calendar, entry, 1);
    } else {
        folder.add(*entry);
    }
}

#[inline(never)]
fn print(
    kernel: &mut impl Kernel,
    output: &mut Output,
    calendar: Calendar,
    entry: &Entry,
    count: u64,
) {
    let mut line = Line::new();
    let (remote, local) = (entry.remote, entry.local);
    report::connections(&mut line, calendar, remote, entry.direction, local, count);
    output.line(kernel, &line);
}
