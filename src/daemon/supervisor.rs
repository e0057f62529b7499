//! Notifications to the service manager that asked for them: sd_notify(3),
//! which systemd and others speak.
//!
//! READY=1 follows the first reading, good or not: what is missing at boot is
//! tried again for ever, and a start that fails would take the listener with
//! its metrics away meanwhile. WATCHDOG=1 follows good readings only, and where
//! they would be too rare for the watchdog, more are made.

use crate::kernel::{Errno, Kernel, Path, StartUp};
use crate::limits::{FAST_READING, START_RETRY};
use crate::report::error_words;
use crate::text::parse_decimal;
use crate::time::{Duration, Instant};

use super::once::Once;
use super::output::log_pair;

/// All bytes zero when new.
pub(super) struct Supervisor {
    /// NOTIFY_SOCKET, a path or `@` and an abstract name; empty where it is not
    /// set.
    socket: Path,
    /// Readings are at most this far apart; zero: any time.
    watchdog_interval: Duration,
    next_reading: Option<Instant>,
    is_ready: bool,
    unreachable: Once,
}

impl Supervisor {
    pub(super) const fn new() -> Self {
        Self {
            socket: Path::new(),
            watchdog_interval: Duration::ZERO,
            next_reading: None,
            is_ready: false,
            unreachable: Once::NEW,
        }
    }

    /// When a reading is wanted here.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next_reading
    }

    /// Reads the environment. WATCHDOG_USEC is when the manager gives up on us,
    /// half of it when sd_watchdog_enabled(3) says to notify. Where WATCHDOG_PID
    /// names another process, notifications are ignored.
    pub(super) fn start(&mut self, kernel: &mut impl Kernel, start_up: &StartUp) {
        let Some(socket) = start_up.variable(b"NOTIFY_SOCKET") else {
            return;
        };
        self.socket.put(socket);
        // Connects, while rights are still there.
        self.notify(kernel, b"");
        let timeout = start_up.variable(b"WATCHDOG_USEC").and_then(parse_decimal);
        if let Some(microseconds @ 1..) = timeout {
            let half = Duration::from_nanos(microseconds).saturating_mul(500);
            self.watchdog_interval = half.max(FAST_READING);
        }
    }

    /// A reading was made.
    pub(super) fn reading_done(&mut self, kernel: &mut impl Kernel, is_good: bool, now: Instant) {
        if !self.is_ready {
            self.is_ready = self.notify(kernel, b"READY=1");
        }
        // What found no room is sent again before the start times out.
        let interval = if self.is_ready {
            self.watchdog_interval
        } else {
            START_RETRY
        };
        let is_wanted = interval != Duration::ZERO;
        self.next_reading = is_wanted.then(|| now.after(interval));
        if is_good {
            self.notify(kernel, b"WATCHDOG=1");
        }
    }

    /// The last turn.
    pub(super) fn stopping(&mut self, kernel: &mut impl Kernel) {
        self.notify(kernel, b"STOPPING=1");
    }

    /// Whether it got through; why not is said once.
    fn notify(&mut self, kernel: &mut impl Kernel, state: &[u8]) -> bool {
        if self.socket.is_empty() {
            return true;
        }
        let result = kernel.notify(self.socket.as_bytes(), state);
        if let Err(error) = result
            && error != Errno::EAGAIN
            && self.unreachable.say()
        {
            let why = error_words(error);
            log_pair(
                kernel,
                b"NOTIFY_SOCKET cannot be notified: ",
                why.as_bytes(),
            );
        }
        result.is_ok()
    }
}
