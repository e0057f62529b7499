//! From scans to blocks: verdicts, the firewall's child, and what is said of
//! both.

use core::mem;

use heapless::Vec;

use crate::address::Network;
use crate::detector::{Data, Scan};
use crate::firewall::{
    self, EXPLANATION_MAX, FailureReason, Notice, Overdue, Refusal, Unusable, lacks_tables,
    speaks_of,
};
use crate::host::{Knowledge, Protection};
use crate::kernel::{Child, Errno, Exit, Interest, Kernel};
use crate::limits::EXIT_GRACE;
use crate::metrics::{BlockFailure, CommandExit};
use crate::options::FirewallChoice;
use crate::report;
use crate::text::Text;
use crate::time::{Duration, Instant};

use super::Daemon;

/// Scans whose sockets are asked for data in one turn, since each takes the
/// kernel a walk over all sockets.
const DATA_LOOKS: usize = 8;

/// Reads of a child's output a turn: a chatterbox must not hold up the rest.
const CHILD_READS: usize = 64;

impl Daemon {
    /// Reports each new scan and wants its source blocked.
    pub(super) fn judge(&mut self, kernel: &mut impl Kernel) {
        // Who is blocked already is known only after the first listing.
        if !self.firewall.is_settled(kernel.boottime()) {
            return;
        }
        if self.detector.has_scan() && self.firewall.is_enabled() {
            self.renew_facts(kernel);
        }
        let mut looks = 0;
        // Where data decides, the rest of a flood comes next turn.
        while looks < DATA_LOOKS || !self.options.require_silent {
            let Some(mut scan) = self.detector.next_scan() else {
                return;
            };
            if self.firewall.is_blocked(scan.source) {
                self.detector.forget(scan.source);
                continue;
            }
            if looks < DATA_LOOKS {
                looks += 1;
                self.look_for_data(kernel, &mut scan);
            }
            if scan.local.is_unspecified() {
                scan.local = self.host.own_near(scan.source).unwrap_or(scan.local);
            }
            self.metrics.port_scans += 1;
            let calendar = self.calendar(kernel);
            self.output
                .line(kernel, report::scan(calendar, &scan).as_bytes());
            self.decide(kernel, &scan);
        }
    }

    fn decide(&mut self, kernel: &mut impl Kernel, scan: &Scan) {
        if let Some(refusal) = self.refusal(scan) {
            return self.not_blocked(kernel, scan.source, refusal);
        }
        if !self.firewall.is_enabled() {
            return;
        }
        let now = kernel.boottime();
        if self.firewall.block(scan, now).is_err() {
            return self.not_blocked(kernel, scan.source, Refusal::TableFull);
        }
        self.detector.forget(scan.source);
        if self.firewall.is_failing(scan.source.is_ipv6()) {
            let calendar = self.calendar(kernel);
            let is_ipv6 = scan.source.is_ipv6();
            let failing = self.firewall.unusable();
            let failing = failing.unwrap_or(Unusable::Family { is_ipv6 });
            let mut why: Text<80> = Text::from_bytes(failing.name());
            why.put(b" cannot be used yet; it is tried again");
            self.metrics.block_failures.count(BlockFailure::Other);
            self.output.line(
                kernel,
                report::block_failed(calendar, scan.source, why.as_bytes()).as_bytes(),
            );
        }
    }

    /// A verdict out of nowhere, past every check but the last.
    #[cfg(test)]
    pub(crate) fn want_blocked(&mut self, source: Network, now: Instant) {
        let scan = Scan {
            source,
            local: source.address(),
            ports: crate::detector::Ports::from_slice(&[22, 25, 80, 445]).unwrap_or_default(),
            port_data: Vec::new(),
        };
        assert!(self.firewall.block(&scan, now).is_ok());
    }

    /// The source that a peer's evidence is held against.
    #[cfg(test)]
    pub(crate) fn source_of(&self, peer: core::net::IpAddr) -> Network {
        self.host.source_of(peer)
    }

    /// Why no block is to follow.
    fn refusal(&self, scan: &Scan) -> Option<Refusal> {
        if self.options.dry_run {
            return Some(Refusal::DryRun);
        }
        if self.options.firewall == FirewallChoice::None {
            return Some(Refusal::NoFirewall);
        }
        if self.options.require_silent && scan.data() != Data::Silent {
            return Some(Refusal::DataSent(scan.data()));
        }
        let protection = self.host.protected(scan.source);
        // Who may be protected is decided when the host is known, if it will be.
        let may_wait = self.host.knowledge() == Knowledge::Awaited;
        let known = protection.filter(|one| *one != Protection::HostUnknown || !may_wait);
        known.map(Refusal::Protected)
    }

    fn not_blocked(&mut self, kernel: &mut impl Kernel, source: Network, refusal: Refusal) {
        self.metrics.blocks_refused.count(refusal);
        let calendar = self.calendar(kernel);
        let line = report::not_blocked(calendar, source, refusal.words());
        self.output.line(kernel, line.as_bytes());
    }

    /// Starts the next firewall command, if one is due.
    pub(super) fn run_firewall(&mut self, kernel: &mut impl Kernel) {
        // First, since the next command may move on what is to be said.
        self.say_notices(kernel);
        if self.child.is_none() && self.firewall.pending() > 0 {
            self.renew_facts(kernel);
        }
        let now = kernel.boottime();
        if self.child.is_some() || !self.firewall.command(&mut self.invocation, &self.host, now) {
            self.say_notices(kernel);
            self.destroy_sockets(kernel);
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
        self.renew_facts(kernel);
        self.firewall.release_protected(&self.host);
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

    fn command_failed(
        &mut self,
        kernel: &mut impl Kernel,
        failure: &firewall::Failure,
        is_spawn: bool,
    ) {
        if failure.is_addition {
            let says = |words: &[u8]| speaks_of(&failure.explanation, words);
            let is_forbidden = says(b"ermission denied") || says(b"not permitted");
            self.metrics.block_failures.count(match failure.reason {
                _ if is_spawn => BlockFailure::Spawn,
                FailureReason::Missing if is_forbidden || says(b"CAP_") => BlockFailure::Permission,
                FailureReason::Missing => BlockFailure::Missing,
                FailureReason::Status(_) if says(b" lock") => BlockFailure::Lock,
                FailureReason::Status(_) if is_forbidden => BlockFailure::Permission,
                FailureReason::Status(_) => BlockFailure::Refused,
                FailureReason::Signal(_) => BlockFailure::Signal,
                FailureReason::Deadline => BlockFailure::Timeout,
            });
        }
        if !failure.leaves_out.is_empty() {
            let words = b" is refused here: rules go in without, and this is not said again";
            self.complain(kernel, &[b"the match ", failure.leaves_out, words]);
        }
        if !failure.is_first {
            return;
        }
        let words = report::failure(failure);
        match failure.source {
            Some(_) if !failure.is_addition => {}
            Some(source) => {
                let calendar = self.calendar(kernel);
                self.output.line(
                    kernel,
                    report::block_failed(calendar, source, words.as_bytes()).as_bytes(),
                );
            }
            None => self.complain(kernel, &[words.as_bytes()]),
        }
        self.name_way_out(kernel, &failure.explanation);
    }

    /// Once, where legacy tools find no tables: those of the host may be of the
    /// other flavour.
    pub(super) fn name_way_out(
        &mut self,
        kernel: &mut impl Kernel,
        explanation: &Text<EXPLANATION_MAX>,
    ) {
        if !lacks_tables(explanation) || mem::replace(&mut self.has_named_way_out, true) {
            return;
        }
        let way_out: &[u8] = if self.options.exec_root.is_empty() {
            b": a container can use the tools of its host, with \
                -v /:/host:ro --cap-add=SYS_CHROOT and --exec-root /host"
        } else {
            b""
        };
        let words = b"this kernel has no tables for legacy iptables, or has not loaded them";
        self.complain(kernel, &[words, way_out]);
    }

    fn say_notices(&mut self, kernel: &mut impl Kernel) {
        while let Some(notice) = self.firewall.next_notice() {
            let calendar = self.calendar(kernel);
            let line = match notice {
                Notice::Blocked { rule, length, data } => {
                    self.metrics.blocks += 1;
                    if self.watch.is_wanted() {
                        self.destroyer.add(rule.source);
                    }
                    let exec_root = self.options.exec_root.as_bytes();
                    report::blocked(calendar, &rule, length, data, exec_root)
                }
                Notice::Refused { source, refusal } => {
                    if let Refusal::Protected(_) = refusal {
                        let now = kernel.boottime();
                        self.detector.silence(source, now);
                    }
                    self.metrics.blocks_refused.count(refusal);
                    report::not_blocked(calendar, source, refusal.words())
                }
                Notice::JumpStays {
                    hook,
                    tool,
                    wait,
                    above,
                } => {
                    let words = report::jump_stays(hook, tool, wait, above.as_bytes());
                    self.complain(kernel, &[words.as_bytes()]);
                    continue;
                }
                Notice::Unblocked { source, reason } => {
                    self.detector.forget(source);
                    self.metrics.unblocks.count(reason);
                    report::unblocked(calendar, source, reason)
                }
            };
            self.output.line(kernel, line.as_bytes());
        }
    }

    /// Destroys sockets of sources that were blocked, once no block waits for
    /// its command any more. Their late destroy events are ends of connections
    /// seen before.
    fn destroy_sockets(&mut self, kernel: &mut impl Kernel) {
        if !self.is_destroying() {
            return;
        }
        let (host, firewall) = (&self.host, &self.firewall);
        let is_blocked = |address| firewall.is_blocked(host.source_of(address));
        let buffer = &mut self.netlink_buffer;
        match self.destroyer.destroy(kernel, buffer, is_blocked) {
            Ok(destroyed) => self.metrics.sockets_destroyed += destroyed,
            Err(_) => {
                let words = b"sockets of blocked sources cannot be destroyed here: they run into their timeouts";
                self.complain(kernel, &[words]);
            }
        }
    }

    /// Whether the next turn destroys more of them.
    pub(super) fn is_destroying(&self) -> bool {
        self.destroyer.has_work() && self.firewall.pending() == 0
    }

    /// What is left to do at the end, within `EXIT_GRACE`: a running child ends,
    /// blocks that an operator has lifted meanwhile are missed, and a chain that
    /// became empty goes.
    pub(super) fn end_firewall(&mut self, kernel: &mut impl Kernel) {
        let deadline = kernel.boottime().after(EXIT_GRACE);
        self.await_child(kernel, deadline);
        self.firewall.begin_end(kernel.boottime());
        while kernel.boottime() < deadline {
            self.run_firewall(kernel);
            if self.child.is_none() {
                break;
            }
            self.await_child(kernel, deadline);
        }
        self.say_notices(kernel);
    }

    /// Waits for a running child until `deadline`, then ends it.
    fn await_child(&mut self, kernel: &mut impl Kernel, deadline: Instant) {
        while let Some(child) = self.child {
            let left = kernel.boottime().until(deadline);
            if left == Duration::ZERO {
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
    }
}
