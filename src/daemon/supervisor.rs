//! Word to whoever started us and asked for it: sd_notify(3), which systemd
//! and others speak.
//!
//! READY=1 follows the first reading, good or not: what is missing at boot is
//! tried again for ever, and a start that fails would take the listener with
//! its metrics away meanwhile. WATCHDOG=1 follows good readings only, and where
//! they would be too rare for the watchdog, more are made.

use crate::kernel::{Errno, Kernel, Path};
use crate::limits::{FAST_READING, START_RETRY};
use crate::text::parse_decimal;
use crate::time::{Duration, Instant};

use super::Daemon;
use super::output::error_words;

/// State of that; all bytes zero when new.
pub(super) struct Supervisor {
    /// NOTIFY_SOCKET, a path or `@` and an abstract name; empty: nobody asked.
    socket: Path,
    /// Readings are at most this far apart; zero: any time.
    beat: Duration,
    /// BOOT for none.
    next_beat: Instant,
    has_said_ready: bool,
    has_said_deaf: bool,
}

impl Supervisor {
    pub(super) const fn new() -> Self {
        Self {
            socket: Path::new(),
            beat: Duration::ZERO,
            next_beat: Instant::BOOT,
            has_said_ready: false,
            has_said_deaf: false,
        }
    }

    /// When a reading is wanted here.
    pub(super) fn deadline(&self) -> Instant {
        if self.next_beat == Instant::BOOT {
            Instant::NEVER
        } else {
            self.next_beat
        }
    }
}

impl Daemon {
    /// Learns who wants to know, and how often: WATCHDOG_USEC is when patience
    /// ends, half of it when sd_watchdog_enabled(3) says to report. Where
    /// WATCHDOG_PID names another process, nobody heeds what we report.
    pub(super) fn start_telling(&mut self, kernel: &mut impl Kernel) {
        let Some(socket) = kernel.environment(b"NOTIFY_SOCKET") else {
            return;
        };
        self.supervisor.socket.put(socket);
        let patience = kernel.environment(b"WATCHDOG_USEC").and_then(parse_decimal);
        if let Some(microseconds @ 1..) = patience {
            let half = Duration::from_nanos(microseconds.saturating_mul(500));
            self.supervisor.beat = half.max(FAST_READING);
        }
    }

    /// A reading was made.
    pub(super) fn tell_reading(&mut self, kernel: &mut impl Kernel, is_good: bool) {
        if !self.supervisor.has_said_ready {
            self.supervisor.has_said_ready = self.tell(kernel, b"READY=1");
        }
        // What found no room is sent again before patience with a start ends.
        let beat = if self.supervisor.has_said_ready {
            self.supervisor.beat
        } else {
            START_RETRY
        };
        self.supervisor.next_beat = if beat == Duration::ZERO {
            Instant::BOOT
        } else {
            kernel.boottime().after(beat)
        };
        if is_good {
            self.tell(kernel, b"WATCHDOG=1");
        }
    }

    /// The last turn.
    pub(super) fn tell_end(&mut self, kernel: &mut impl Kernel) {
        self.tell(kernel, b"STOPPING=1");
    }

    /// Whether it got through; why not is said once.
    fn tell(&mut self, kernel: &mut impl Kernel, state: &[u8]) -> bool {
        if self.supervisor.socket.is_empty() {
            return true;
        }
        let result = kernel.notify(self.supervisor.socket.as_bytes(), state);
        if let Err(error) = result
            && error != Errno::EAGAIN
            && !core::mem::replace(&mut self.supervisor.has_said_deaf, true)
        {
            let why = error_words(error);
            self.complain(kernel, &[b"NOTIFY_SOCKET cannot be told: ", why.as_bytes()]);
        }
        result.is_ok()
    }
}
