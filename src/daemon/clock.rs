//! Reading the clocks: for the loop, which passes the time down, and for what
//! waits in between.

use crate::kernel::{Clock, Kernel};
use crate::time::{Calendar, Duration, Instant};

/// One moment by two clocks.
#[derive(Clone, Copy)]
pub struct Moment {
    /// What is decided by.
    pub now: Instant,
    /// What is printed.
    pub unix_nanoseconds: u64,
}

impl Moment {
    #[inline(never)]
    pub fn read(kernel: &mut impl Kernel) -> Self {
        Self {
            now: now(kernel),
            unix_nanoseconds: kernel.clock(Clock::Realtime).as_nanos(),
        }
    }

    #[inline(never)]
    pub fn unix_seconds(self) -> u64 {
        self.unix_nanoseconds / 1_000_000_000
    }

    /// The time that lines begin with.
    #[inline(never)]
    pub fn calendar(self, kernel: &mut impl Kernel) -> Calendar {
        kernel.calendar(self.unix_seconds())
    }
}

#[inline(never)]
pub fn now(kernel: &mut impl Kernel) -> Instant {
    Instant::from_nanos(kernel.clock(Clock::Boottime).as_nanos())
}

pub fn cpu_time(kernel: &mut impl Kernel) -> Duration {
    cpu_time_since(kernel, Duration::ZERO)
}

/// What came on top of that.
#[inline(never)]
pub fn cpu_time_since(kernel: &mut impl Kernel, before: Duration) -> Duration {
    kernel.clock(Clock::ProcessCpu).saturating_sub(before)
}
