//! The hook: a program that is run at each scan, block and unblock. A launcher,
//! forked before anything else is opened, runs it: a pipe takes its records, and
//! holds those that wait; another brings a byte for each run that ended.

use crate::address::Network;
use crate::firewall::EndReason;
use crate::kernel::{Descriptor, Errno, HOOK_RECORD, HookRun, Kernel, Path, Stream};
use crate::label::Label;
use crate::limits::{HOOK_WAITING, PORTS_PER_SOURCE};
use crate::metrics::{self, Metrics};
use crate::report::error_words;
use crate::text::Text;
use crate::time::Duration;

use super::files::check_program;
use super::output::{log_pair, log_words};

/// Bytes of the longest list of ports.
pub(super) const PORTS: usize = "65535,".len() * (PORTS_PER_SOURCE + 1);

const _: () = assert!(HOOK_RECORD <= 4_096, "a pipe takes it whole (PIPE_BUF)");
const _: () = assert!(
    HOOK_RECORD * (HOOK_WAITING + 1) <= 65_536,
    "a pipe holds all that wait"
);
const _: () = assert!(
    PORTS + "unblock 2001:db8:1234:1234:1234:1234:1234:1234/128 2073600 protected ".len()
        <= HOOK_RECORD,
    "the longest words fit"
);

/// What it is run for.
#[derive(Clone, Copy)]
pub(super) enum Event {
    Scan,
    /// For that long; `None` for ever.
    Block(Option<Duration>),
    Unblock(EndReason),
}

/// The launcher as it is seen from here; all bytes zero when new.
pub(super) struct Hook {
    /// Where it answers, as long as it lives.
    answers: Option<Descriptor>,
    /// There is to be one.
    is_wanted: bool,
    /// Records without an answer: that of the run it is at, and those that wait.
    unanswered: usize,
}

impl Hook {
    pub(super) const NEW: Self = Self {
        answers: None,
        is_wanted: false,
        unanswered: 0,
    };

    /// Starts the launcher, if there is to be one; false where its file is not
    /// allowed. A mere check starts none. A guard without its hook is one, too.
    pub(super) fn start(&mut self, kernel: &mut impl Kernel, file: &Path, is_check: bool) -> bool {
        if file.is_empty() {
            return true;
        }
        self.is_wanted = true;
        let checked = check_program(kernel, file);
        let (words, error): (&[u8], Errno) = match checked {
            Err(error) => (
                b"--hook needs a program that only root can change, in such folders: ",
                error,
            ),
            Ok(()) if is_check => return true,
            Ok(()) => match kernel.start_launcher(file) {
                Ok(answers) => {
                    self.answers = Some(answers);
                    return true;
                }
                Err(error) => (b"no launcher for the hook: ", error),
            },
        };
        log_pair(kernel, words, error_words(error).as_bytes());
        checked.is_ok()
    }

    /// Where answers show.
    pub(super) fn answers(&self) -> Option<Descriptor> {
        self.answers
    }

    /// Counts a run that ended, if one did.
    #[inline(never)]
    pub(super) fn take_answer(&mut self, kernel: &mut impl Kernel, metrics: &mut Metrics) {
        let Some(answers) = self.answers else { return };
        let mut answer = [0];
        match kernel.read(answers, &mut answer) {
            Ok(0) => {
                kernel.close(answers);
                self.answers = None;
                metrics.add(
                    metrics::HOOK_RUNS.of(HookRun::Dropped),
                    self.unanswered as u64,
                );
                log_words(kernel, b"the hook is run no more: its launcher is gone");
            }
            Ok(_) => {
                self.unanswered = self.unanswered.saturating_sub(1);
                metrics.count(metrics::HOOK_RUNS.of(match answer[0] {
                    0 => HookRun::Ok,
                    1 => HookRun::Failed,
                    _ => HookRun::Timeout,
                }));
            }
            Err(_) => {}
        }
    }

    /// Has it run for an event; never waits: what finds no room is dropped. Another
    /// program may have written the ports of a comment: one that may change the
    /// firewall, and no more, is not to choose words of what runs as root.
    #[inline(never)]
    pub(super) fn notify(
        &mut self,
        kernel: &mut impl Kernel,
        metrics: &mut Metrics,
        event: Event,
        source: Network,
        ports: &[u8],
    ) {
        if !self.is_wanted || matches!(event, Event::Unblock(EndReason::NeverStood)) {
            return;
        }
        let mut record: Text<HOOK_RECORD> = Text::new();
        record.put(match event {
            Event::Scan => b"scan\0",
            Event::Block(_) => b"block\0",
            Event::Unblock(_) => b"unblock\0",
        });
        source.write(&mut record);
        record.put_byte(0);
        for byte in ports {
            if matches!(byte, b'0'..=b'9' | b',' | b'+') {
                record.put_byte(*byte);
            }
        }
        record.put_byte(0);
        match event {
            Event::Scan => {}
            Event::Block(length) => {
                record.put_decimal(length.map_or(0, Duration::as_secs_rounded_up));
            }
            Event::Unblock(reason) => {
                record.put_byte(0);
                record.put(reason.value());
            }
        }
        record.put_byte(0);
        while record.room() > 0 {
            record.put_byte(b' ');
        }
        let has_room = self.answers.is_some() && self.unanswered <= HOOK_WAITING;
        if has_room && kernel.write(Stream::Hook, record.as_bytes()).is_ok() {
            self.unanswered += 1;
        } else {
            metrics.count(metrics::HOOK_RUNS.of(HookRun::Dropped));
        }
    }
}
