//! A file that is read again and again: on procfs it stays open and is rewound
//! for each pass, elsewhere, a fixture, it is opened anew.

use crate::kernel::{Descriptor, Errno, Kernel, Path};

use super::files::open_regular;

/// All bytes zero when new.
pub(super) struct KeptFile {
    pub(super) path: Path,
    open: Option<Descriptor>,
    is_on_procfs: bool,
}

impl KeptFile {
    pub(super) const fn new() -> Self {
        Self {
            path: Path::new(),
            open: None,
            is_on_procfs: false,
        }
    }

    /// Names the file `name` below --proc.
    #[inline(never)]
    pub(super) fn set_path(&mut self, proc_directory: &Path, name: &[u8]) {
        self.path.clear();
        self.path.put(proc_directory.as_bytes());
        self.path.put(name);
    }

    /// Starts a pass at the file's start; `end` follows in any case.
    #[inline(never)]
    pub(super) fn begin(&mut self, kernel: &mut impl Kernel) -> Result<Descriptor, Errno> {
        if let Some(descriptor) = self.open {
            kernel.rewind(descriptor)?;
            return Ok(descriptor);
        }
        let file = open_regular(kernel, &self.path)?;
        (self.open, self.is_on_procfs) = (Some(file.descriptor), file.is_procfs);
        Ok(file.descriptor)
    }

    /// What stands in it, as far as the buffer holds it.
    #[inline(never)]
    pub(super) fn read<'a>(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let filled = match self.begin(kernel) {
            Ok(file) => fill(kernel, file, buffer),
            Err(_) => (0, false),
        };
        self.end(kernel, !filled.1);
        let (count, is_whole) = filled;
        buffer.get(..count).filter(|_| is_whole)
    }

    /// Ends a pass; after one that failed the next opens the file anew.
    #[inline(never)]
    pub(super) fn end(&mut self, kernel: &mut impl Kernel, has_failed: bool) {
        if (has_failed || !self.is_on_procfs)
            && let Some(descriptor) = self.open.take()
        {
            kernel.close(descriptor);
        }
    }
}

/// Reads up to the end of the file or of the buffer: how many bytes, and
/// whether nothing failed.
#[inline(never)]
pub(super) fn fill(kernel: &mut impl Kernel, file: Descriptor, buffer: &mut [u8]) -> (usize, bool) {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match kernel.read(file, room) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(_) => return (filled, false),
        }
    }
    (filled, true)
}
