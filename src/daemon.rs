//! The daemon: owns every table and ties the stages together.

use crate::kernel::Kernel;

/// What shall happen after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Call `turn` again.
    Continue,
    /// End the process with this exit status.
    Exit(u8),
}

/// All state of the program; `const`-constructible so that it lies in .bss.
pub struct Daemon {}

impl Daemon {
    /// A daemon before its start.
    pub const fn new() -> Self {
        Self {}
    }

    /// Reads the command line (without the program's name) and the
    /// environment, prints the start lines and opens what turns need.
    pub fn start<'a>(
        &mut self,
        _kernel: &mut impl Kernel,
        _arguments: impl Iterator<Item = &'a [u8]>,
    ) -> Flow {
        Flow::Exit(0)
    }

    /// Waits for the next deadline or event and handles it.
    pub fn turn(&mut self, _kernel: &mut impl Kernel) -> Flow {
        Flow::Exit(0)
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self::new()
    }
}
