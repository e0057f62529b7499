//! Readings: one pass over tcp and tcp6.

use crate::address::{Family, PerFamily};
use crate::kernel::{Descriptor, Errno, Kernel, Link, Path};
use crate::metrics::Trigger;
use crate::proc_net_tcp::{RowReader, Socket};
use crate::report::error_words;
use crate::time::{Duration, Instant};

use super::kept_file::KeptFile;
use super::once::Once;
use super::output::log_error;

/// A file of rows and whether it could be read.
struct RowsSource {
    file: KeptFile,
    unreadable: Once,
}

impl RowsSource {
    const fn new() -> Self {
        Self {
            file: KeptFile::new(),
            unreadable: Once::NEW,
        }
    }
}

/// How reading one file went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Whole,
    Absent,
    Failed,
}

/// Which network namespace the rows are of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespace {
    /// Ours, whose sockets netlink shows.
    Own,
    Other,
    /// There is no such file yet, or no descriptor to look at it.
    Unknown,
}

/// The files and when they are read; all bytes zero when new.
pub(super) struct Reader {
    sources: PerFamily<RowsSource>,
    rows: RowReader,
    /// The next scheduled reading.
    next: Option<Instant>,
    /// When the last reading began that saw every row.
    last_good: Option<Instant>,
}

impl Reader {
    pub(super) const fn new() -> Self {
        Self {
            sources: PerFamily::new(RowsSource::new(), RowsSource::new()),
            rows: RowReader::new(),
            next: None,
            last_good: None,
        }
    }

    /// Names the files.
    pub(super) fn configure(&mut self, proc_directory: &Path) {
        let PerFamily { v4, v6 } = &mut self.sources;
        v4.file.set_path(proc_directory, b"/net/tcp");
        v6.file.set_path(proc_directory, b"/net/tcp6");
    }

    /// The first scheduled reading is due.
    pub(super) fn start(&mut self, now: Instant) {
        self.next = Some(now);
    }

    /// When the next scheduled reading is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Why to read now, if there is a reason: the schedule, or that an early
    /// reading is due.
    pub(super) fn trigger(
        &mut self,
        interval: Duration,
        is_early_due: impl FnOnce() -> bool,
        now: Instant,
    ) -> Option<Trigger> {
        let Some(due) = self.next.filter(|next| now >= *next) else {
            return is_early_due().then_some(Trigger::Early);
        };
        // Keep the phase; after a long suspend start a new one.
        let next = due.after(interval);
        let late = now.after(interval);
        self.next = Some(if next > now { next } else { late });
        Some(Trigger::Scheduled)
    }

    /// A reading that began then saw every row.
    pub(super) fn note_good(&mut self, began: Instant) {
        self.last_good = Some(began);
    }

    pub(super) fn last_good(&self) -> Option<Instant> {
        self.last_good
    }

    /// Whether the last good reading is not older than three intervals.
    pub(super) fn is_fresh(&self, interval: Duration, now: Instant) -> bool {
        self.last_good
            .is_some_and(|began| now.since(began) <= interval.saturating_mul(3))
    }

    /// procfs gives each network namespace's files inode numbers of their own
    /// (fs/proc/generic.c, proc_alloc_inum).
    pub(super) fn namespace(&self, kernel: &mut impl Kernel) -> Namespace {
        let path = &self.sources.v4.file.path;
        // /proc/net is a link to self/net.
        if path.as_bytes() == b"/proc/net/tcp" {
            return Namespace::Own;
        }
        let ours = inode(kernel, &Path::from_bytes(b"/proc/self/net/tcp"));
        let read = inode(kernel, path);
        match (ours, read) {
            (Err(Errno::EMFILE | Errno::ENFILE), _) => Namespace::Unknown,
            (Err(_), _) => Namespace::Own,
            (Ok(ours), Ok(read)) if ours == read => Namespace::Own,
            (Ok(_), Ok(_)) => Namespace::Other,
            (Ok(_), Err(_)) => Namespace::Unknown,
        }
    }

    /// Reads the file of one family and hands each row to `visit`;
    /// `None`: a line that is none.
    #[inline(never)]
    pub(super) fn read<K: Kernel>(
        &mut self,
        kernel: &mut K,
        family: Family,
        mut visit: impl FnMut(&mut K, Option<&Socket>),
    ) -> Outcome {
        let source = self.sources.get_mut(family);
        let rows = &mut self.rows;
        let opened = source.file.begin(kernel);
        let result = opened.and_then(|opened| read_rows(kernel, opened, rows, &mut visit));
        source.file.end(kernel, result.is_err());
        match result {
            Ok(()) => {
                source.unreadable.reset();
                Outcome::Whole
            }
            // A kernel without IPv6 has no tcp6.
            Err(Errno::ENOENT) if family == Family::V6 => Outcome::Absent,
            Err(error) => {
                source.log_unreadable(kernel, error);
                Outcome::Failed
            }
        }
    }
}

impl RowsSource {
    /// Said once, retried with each reading.
    fn log_unreadable(&mut self, kernel: &mut impl Kernel, error: Errno) {
        if !self.unreadable.say() {
            return;
        }
        let path = self.file.path.as_bytes();
        let printable = |byte: &u8| (b' '..=b'~').contains(byte);
        let path = if path.iter().all(printable) {
            path
        } else {
            b"--proc"
        };
        let words = error_words(error);
        let why = if error == Errno::EINVAL {
            b"neither on procfs nor a regular file"
        } else {
            words.as_bytes()
        };
        log_error(kernel, &[b"cannot read ", path, b": ", why]);
    }
}

fn inode(kernel: &mut impl Kernel, path: &Path) -> Result<u64, Errno> {
    let file = kernel.open(path, Link::Follow)?;
    kernel.close(file.descriptor);
    Ok(file.inode)
}

#[inline(never)]
fn read_rows<K: Kernel>(
    kernel: &mut K,
    file: Descriptor,
    rows: &mut RowReader,
    visit: &mut dyn FnMut(&mut K, Option<&Socket>),
) -> Result<(), Errno> {
    rows.begin();
    let mut is_over = false;
    while !is_over {
        let count = match kernel.read(file, rows.space()) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        };
        is_over = count == 0;
        rows.filled(count, |row| visit(kernel, row));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fake_kernel::FakeKernel;

    /// Else its rows would be held against our own sockets and addresses.
    #[test]
    fn without_a_descriptor_another_namespace_is_not_taken_for_ours() {
        let mut kernel = FakeKernel::new(1);
        kernel.faults.no_descriptors = true;
        for (proc_directory, expected) in [
            (&b"/proc"[..], Namespace::Own),
            (b"/host/proc/1", Namespace::Unknown),
        ] {
            let mut reader = Reader::new();
            reader.configure(&Path::from_bytes(proc_directory));
            assert!(reader.namespace(&mut kernel) == expected);
        }
    }
}
