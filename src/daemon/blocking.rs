//! From scans to blocks: verdicts, the firewall's child, and what is said of
//! both.

use heapless::Vec;

use crate::detector::Scan;
use crate::firewall::{EndReason, Failure, FailureReason, Notice, Overdue};
use crate::host::Protection;
use crate::kernel::{Child, Errno, Exit, Interest, Kernel};
use crate::limits::EXIT_GRACE;
use crate::metrics::{BlockFailure, CommandExit, Refusal, UnblockReason};
use crate::options::FirewallChoice;
use crate::report;
use crate::time::Instant;

use super::Daemon;

/// Reads of a child's output a turn: a chatterbox must not hold up the rest.
const CHILD_READS: usize = 64;

impl Daemon {
    /// Reports each new scan and wants its source blocked.
    pub(super) fn judge(&mut self, kernel: &mut impl Kernel) {
        while let Some(scan) = self.detector.next_scan() {
            self.metrics.port_scans += 1;
            let calendar = self.calendar(kernel);
            self.output
                .line(kernel, report::scan(calendar, &scan).as_bytes());
            self.decide(kernel, &scan);
        }
    }

    fn decide(&mut self, kernel: &mut impl Kernel, scan: &Scan) {
        let refusal = if self.options.dry_run {
            Some((Refusal::DryRun, b"--dry-run".as_slice()))
        } else if self.options.firewall == FirewallChoice::None {
            Some((Refusal::NoFirewall, b"--firewall none".as_slice()))
        } else {
            let protection = self.host.protected(scan.source);
            protection.map(|protection| (refusal(protection), protection.words()))
        };
        if let Some((reason, words)) = refusal {
            return self.not_blocked(kernel, scan.source, reason, words);
        }
        if !self.firewall.is_enabled() {
            return;
        }
        let now = kernel.boottime();
        if self.firewall.block(scan, &self.host, now).is_err() {
            return self.not_blocked(
                kernel,
                scan.source,
                Refusal::TableFull,
                b"the table of blocks is full",
            );
        }
        self.detector.forget(scan.source);
        if self.firewall.is_failing(scan.source.is_ipv6()) {
            let calendar = self.calendar(kernel);
            let why = b"the firewall cannot be used yet; it is tried again";
            self.output.line(
                kernel,
                report::block_failed(calendar, scan.source, why).as_bytes(),
            );
        }
    }

    fn not_blocked(
        &mut self,
        kernel: &mut impl Kernel,
        source: crate::address::Network,
        reason: Refusal,
        words: &[u8],
    ) {
        self.metrics.blocks_refused.count(reason);
        let calendar = self.calendar(kernel);
        self.output.line(
            kernel,
            report::not_blocked(calendar, source, words).as_bytes(),
        );
    }

    /// Starts the next firewall command, if one is due.
    pub(super) fn run_firewall(&mut self, kernel: &mut impl Kernel) {
        // First, since the next command may move on what is to be said.
        self.say_notices(kernel);
        let now = kernel.boottime();
        if self.child.is_some() || !self.firewall.command(&mut self.invocation, &self.host, now) {
            self.say_notices(kernel);
            return;
        }
        self.child_started = now;
        match kernel.spawn(&self.invocation) {
            Ok(child) => (self.child, self.child_has_closed) = (Some(child), [false; 2]),
            Err(_) => self.child_ended(kernel, None),
        }
        self.say_notices(kernel);
    }

    /// Reads what the child says, ends it past its deadline, and takes its
    /// exit status.
    pub(super) fn watch_child(&mut self, kernel: &mut impl Kernel) {
        let Some(child) = self.child else { return };
        // Asked before reading: what is read afterwards is all there is.
        let exit = kernel.reap(child.process);
        self.read_child(kernel, child, exit.is_some());
        if exit.is_some() {
            kernel.close(child.output);
            kernel.close(child.errors);
            self.child = None;
            self.child_ended(kernel, exit);
            return;
        }
        match self.firewall.overdue(kernel.boottime()) {
            Some(Overdue::Ask) => kernel.kill_group(child.process, false),
            Some(Overdue::Force) => kernel.kill_group(child.process, true),
            None => {}
        }
    }

    fn read_child(&mut self, kernel: &mut impl Kernel, child: Child, has_ended: bool) {
        // An ended child left at most two full pipes (pipe(7): 1 MiB at most).
        let reads = if has_ended {
            8 * CHILD_READS
        } else {
            CHILD_READS
        };
        let now = kernel.boottime();
        let pipes = [child.output, child.errors].into_iter();
        for (descriptor, has_closed) in pipes.zip(&mut self.child_has_closed) {
            for _ in 0..reads {
                match kernel.read(descriptor, &mut self.child_buffer) {
                    Ok(0) => {
                        *has_closed = true;
                        break;
                    }
                    Ok(count) => {
                        let bytes = self.child_buffer.get(..count).unwrap_or_default();
                        if descriptor == child.output {
                            self.firewall.output(bytes, now);
                        } else {
                            self.firewall.errors(bytes);
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
    }

    fn child_ended(&mut self, kernel: &mut impl Kernel, exit: Option<Exit>) {
        let now = kernel.boottime();
        let failure = self.firewall.finished(exit, now);
        self.metrics
            .firewall_command_duration
            .observe(now.since(self.child_started));
        let timed_out = failure
            .as_ref()
            .is_some_and(|failure| failure.reason == FailureReason::Deadline);
        if let Some(exit) = exit {
            let label = if timed_out {
                CommandExit::Timeout
            } else {
                CommandExit::new(exit)
            };
            self.metrics.firewall_commands.count(label);
        }
        if let Some(failure) = failure {
            self.command_failed(kernel, &failure, exit.is_none());
        }
    }

    fn command_failed(&mut self, kernel: &mut impl Kernel, failure: &Failure, is_spawn: bool) {
        self.metrics.block_failures.count(match failure.reason {
            _ if is_spawn => BlockFailure::Spawn,
            FailureReason::Missing => BlockFailure::Missing,
            FailureReason::Status(4) => BlockFailure::Lock,
            FailureReason::Status(_) => BlockFailure::Refused,
            FailureReason::Signal(_) => BlockFailure::Signal,
            FailureReason::Deadline => BlockFailure::Timeout,
        });
        if !failure.is_first {
            return;
        }
        let words = report::failure(failure);
        match failure.source {
            Some(source) => {
                let calendar = self.calendar(kernel);
                self.output.line(
                    kernel,
                    report::block_failed(calendar, source, words.as_bytes()).as_bytes(),
                );
            }
            None => self.complain(kernel, &[words.as_bytes()]),
        }
    }

    fn say_notices(&mut self, kernel: &mut impl Kernel) {
        while let Some(notice) = self.firewall.next_notice() {
            let calendar = self.calendar(kernel);
            let line = match notice {
                Notice::Blocked { rule, length, data } => {
                    self.metrics.blocks += 1;
                    report::blocked(calendar, &rule, length, data)
                }
                Notice::Refused { source, protection } => {
                    let now = kernel.boottime();
                    self.detector.silence(source, now);
                    self.metrics.blocks_refused.count(refusal(protection));
                    report::not_blocked(calendar, source, protection.words())
                }
                Notice::Unblocked { source, reason } => {
                    self.detector.forget(source);
                    match reason {
                        EndReason::Expired => self.metrics.unblocks.count(UnblockReason::Expired),
                        EndReason::Operator => {
                            self.metrics.unblocks.count(UnblockReason::Operator);
                        }
                        EndReason::NeverStood => {}
                    }
                    report::unblocked(calendar, source, reason)
                }
            };
            self.output.line(kernel, line.as_bytes());
        }
    }

    /// Gives a running child what is left of our last second, then ends it.
    pub(super) fn await_child(&mut self, kernel: &mut impl Kernel) {
        let deadline = kernel.boottime().after(EXIT_GRACE);
        while let Some(child) = self.child {
            let left = kernel.boottime().until(deadline);
            if left == crate::time::Duration::ZERO {
                kernel.kill_group(child.process, true);
                // A killed child is gone at once, unless the disk holds it;
                // then our parent reaps it.
                kernel.reap(child.process);
                self.child = None;
                break;
            }
            let mut interests: Vec<Interest, 3> = Vec::new();
            let signals = kernel.signal_descriptor();
            for descriptor in self.child_pipes().chain([signals]) {
                let _ = interests.push(Interest::read(descriptor));
            }
            let _ = kernel.poll(&mut interests, Some(left));
            self.take_signals(kernel);
            self.watch_child(kernel);
        }
        self.say_notices(kernel);
    }

    /// Whether blocks can be had where they are wanted.
    pub(super) fn is_blocking_well(&self) -> bool {
        !self.firewall.is_enabled() || self.firewall.is_up()
    }

    /// Whether the last good reading is fresh: not older than three intervals.
    pub(super) fn is_reading_well(&self, now: Instant) -> bool {
        self.last_good_reading != Instant::BOOT
            && now.since(self.last_good_reading) <= self.options.interval.saturating_mul(3)
    }
}

fn refusal(protection: Protection) -> Refusal {
    match protection {
        Protection::Loopback => Refusal::Loopback,
        Protection::Unspecified => Refusal::Unspecified,
        Protection::Multicast => Refusal::Multicast,
        Protection::Broadcast => Refusal::Broadcast,
        Protection::LinkLocal => Refusal::LinkLocal,
        Protection::OwnAddress => Refusal::Own,
        Protection::Gateway => Refusal::Gateway,
        Protection::Nameserver => Refusal::Nameserver,
        Protection::Allowed => Refusal::Allowed,
        Protection::SshPeer => Refusal::SshPeer,
        Protection::HostUnknown => Refusal::HostUnknown,
    }
}
