//! What is said once.

use core::mem;

/// Whether it was said; all bytes zero when new.
#[derive(Clone, Copy)]
pub(super) struct Once {
    is_said: bool,
}

impl Once {
    pub(super) const NEW: Self = Self { is_said: false };

    /// Whether it is to be said now.
    pub(super) fn say(&mut self) -> bool {
        self.say_while(true)
    }

    /// The same of what `is` so for now: said each time that it becomes so.
    pub(super) fn say_while(&mut self, is: bool) -> bool {
        !mem::replace(&mut self.is_said, is) && is
    }

    /// It is over: said again next time.
    pub(super) fn reset(&mut self) {
        self.is_said = false;
    }
}
