//! The commands that carry out blocks: one child at a time, from the moment it
//! is due to the report of its end, and the sockets of sources blocked.

use crate::address::{Family, Network, PerFamily};
use crate::detector::{Data, Scan};
use crate::firewall::comment::parse_hex;
use crate::firewall::explanation::{is_forbidden, is_locked_out, lacks_capability};
use crate::firewall::{
    EndReason, Failure, FailureReason, Notice, Overdue, Policy, Refusal, Task, Unusable,
};
use crate::host::{Host, Knowledge, Protection};
use crate::kernel::{Child, Descriptor, Errno, Exit, Interest, Invocation, Kernel};
use crate::limits::OUTPUT_BUFFER;
use crate::metrics::{self, BlockFailure, CommandExit, Metrics};
use crate::options::{FirewallChoice, Options};
use crate::report::{self, Advice, Line};
use crate::table::HashKey;
use crate::text::{Text, head, trim};
use crate::time::{Duration, Instant, nearest};

use super::clock::{self, Moment};
use super::destroyer::Destroyer;
use super::hook::{Event, Hook};
use super::netfilter::Netfilter;
use super::once::Once;
use super::output::{Output, log_error, log_words};
use super::procfs::{has_legacy_table, read_small};
use super::{Detector, Firewall};

/// Reads of a child's output a turn: one that never stops writing must not
/// hold up the rest.
const CHILD_READS: usize = 64;

/// What came of looking for the next command.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// None is due, or one is running already.
    NotDue,
    /// It runs now.
    Running,
    /// It could not be started: `not_started` says what that means.
    Failed,
}

/// A command that ended.
pub struct Ended {
    /// `None` where it could not be started.
    exit: Option<Exit>,
    /// What the blocks it was about have to know of it.
    pub failure: Option<Failure>,
    duration: Duration,
}

/// The firewall, its child and its sockets of nf_tables, and the hook.
#[repr(C)]
pub struct Commands {
    /// Where signals show, and so the end of a child.
    pub signals: Option<Descriptor>,
    child: Option<Child>,
    child_started: Option<Instant>,
    /// Its standard output and its standard error, unless it closed them: those
    /// are always ready to poll, and nothing to wait for.
    pub(super) pipes: [Option<Descriptor>; 2],
    pub(super) hook: Hook,
    way_out: Once,
    /// This is a container: what is advised is to be typed outside.
    pub is_container: bool,
    /// Why the last command failed that did.
    last_failure: BlockFailure,
    pub(super) netfilter: Netfilter,
    pub firewall: Firewall,
    pub invocation: Invocation,
    /// What was read last; of no meaning between calls.
    pub buffer: [u8; OUTPUT_BUFFER],
    destroyer: Destroyer,
}

impl Commands {
    /// No child, no block; all bytes zero.
    pub const fn new() -> Self {
        Self {
            firewall: Firewall::new(),
            invocation: Invocation::new(),
            signals: None,
            child: None,
            child_started: None,
            pipes: [None; 2],
            buffer: [0; OUTPUT_BUFFER],
            destroyer: Destroyer::new(),
            hook: Hook::NEW,
            way_out: Once::NEW,
            is_container: false,
            last_failure: BlockFailure::Lock,
            netfilter: Netfilter::new(),
        }
    }

    /// Whether no child runs.
    pub fn is_idle(&self) -> bool {
        self.child.is_none()
    }

    /// From now on commands are made, for `task`.
    pub fn enable(
        &mut self,
        kernel: &mut impl Kernel,
        hash_key: HashKey,
        options: &Options,
        task: Task,
        now: Instant,
    ) {
        let policy = Policy {
            boot_id: boot_id(kernel).unwrap_or(0),
            has_legacy: PerFamily::new(
                has_legacy_table(kernel, Family::V4),
                has_legacy_table(kernel, Family::V6),
            ),
            choice: options.firewall,
            has_root: !options.exec_root.is_empty(),
            lengths: &options.block_times,
            max_per_minute: options.max_blocks_per_minute,
            widen: options.widen,
            window: options.window,
        };
        self.firewall.enable(hash_key, &policy, task, now);
    }

    /// Runs the next command to its end, if one is due, and says when that was:
    /// it may have waited for its lock.
    pub fn run(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        host: &Host,
    ) -> Option<(Ended, Moment)> {
        if let Some(ended) = self.converse(kernel, buffer, host) {
            return Some((ended, Moment::read(kernel)));
        }
        let now = clock::now(kernel);
        let ended = match self.start(kernel, host, now) {
            Start::NotDue => None,
            Start::Running => self.wait(kernel, None),
            Start::Failed => Some(self.not_started(now)),
        };
        Some((ended?, Moment::read(kernel)))
    }

    /// Has nf_tables do what is due there, if anything is: that is over at once,
    /// whatever a child does.
    #[inline(never)]
    pub fn converse(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        host: &Host,
    ) -> Option<Ended> {
        let began = clock::now(kernel);
        let mut now = began;
        let request = &mut self.invocation.input;
        while self.firewall.request(request, host, now) {
            let (bytes, firewall) = (request.as_bytes(), &mut self.firewall);
            let exchange = self
                .netfilter
                .exchange(kernel, bytes, buffer, firewall, now);
            let failure = firewall.answered(exchange.err(), now);
            now = clock::now(kernel);
            if !firewall.is_asking() {
                if firewall.has_table() {
                    self.netfilter.open_events(kernel, now);
                }
                return Some(Ended {
                    exit: Some(Exit::Status(if failure.is_none() { 0 } else { 255 })),
                    failure,
                    duration: now.since(began),
                });
            }
        }
        None
    }

    /// Takes in who changed our table.
    pub fn take_events(&mut self, kernel: &mut impl Kernel, buffer: &mut [u8], now: Instant) {
        let family = self.firewall.table_family();
        if let Some(program) = &self.netfilter.take_events(kernel, buffer, family, now) {
            self.firewall.note_change(program, now);
        }
    }

    /// Starts the next command, if one is due.
    pub fn start(&mut self, kernel: &mut impl Kernel, host: &Host, now: Instant) -> Start {
        if !self.is_idle() || !self.firewall.command(&mut self.invocation, host, now) {
            return Start::NotDue;
        }
        self.child_started = Some(now);
        match kernel.spawn(&self.invocation) {
            Ok(child) => {
                self.child = Some(child);
                self.pipes = [Some(child.output), Some(child.errors)];
                Start::Running
            }
            Err(_) => Start::Failed,
        }
    }

    /// The command could not be started.
    pub fn not_started(&mut self, now: Instant) -> Ended {
        self.ended(None, now)
    }

    /// Reads what the child wrote, stops it past its deadline, and takes its
    /// exit status.
    #[inline(never)]
    pub fn watch(&mut self, kernel: &mut impl Kernel, now: Instant) -> Option<Ended> {
        let child = self.child?;
        // Asked before reading: what is read afterwards is all there is.
        let exit = kernel.reap(child.process);
        self.read(kernel, child, exit.is_some(), now);
        if exit.is_some() {
            kernel.close(child.output);
            kernel.close(child.errors);
            (self.child, self.pipes) = (None, [None; 2]);
            return Some(self.ended(exit, now));
        }
        if let Some(step) = self.firewall.overdue(now) {
            kernel.kill_group(child.process, step == Overdue::Force);
        }
        None
    }

    fn read(&mut self, kernel: &mut impl Kernel, child: Child, has_ended: bool, now: Instant) {
        // An ended child left at most two full pipes (pipe(7): 1 MiB at most).
        let reads = if has_ended {
            8 * CHILD_READS
        } else {
            CHILD_READS
        };
        for pipe in &mut self.pipes {
            for _ in 0..reads {
                let Some(descriptor) = *pipe else { break };
                match kernel.read(descriptor, &mut self.buffer) {
                    Ok(0) => *pipe = None,
                    Ok(count) => {
                        let bytes = head(&self.buffer, count);
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

    #[inline(never)]
    fn ended(&mut self, exit: Option<Exit>, now: Instant) -> Ended {
        let started = self.child_started;
        Ended {
            exit,
            failure: self.firewall.finished(exit, now),
            duration: started.map_or(Duration::ZERO, |started| now.since(started)),
        }
    }

    /// Waits for the running child, at most until `deadline`; then it is
    /// killed. Signals that come meanwhile are of no account.
    pub fn wait(&mut self, kernel: &mut impl Kernel, deadline: Option<Instant>) -> Option<Ended> {
        let mut now = clock::now(kernel);
        while let Some(child) = self.child {
            if now.reaches(deadline) {
                kernel.kill_group(child.process, true);
                // A killed child is gone at once, unless the disk holds it;
                // then our parent reaps it.
                kernel.reap(child.process);
                (self.child, self.pipes) = (None, [None; 2]);
                break;
            }
            let wake = nearest(deadline, self.firewall.child_deadline());
            let [output, errors] = self.pipes;
            let mut interests = [self.signals, output, errors].map(Interest::read);
            let timeout = wake.map(|wake| now.until(wake));
            let _ = kernel.poll(&mut interests, timeout);
            // Before looking at the child: the signal of one that ends after
            // that look has to end the next wait.
            while kernel.next_signal().is_some() {}
            now = clock::now(kernel);
            if let Some(ended) = self.watch(kernel, now) {
                return Some(ended);
            }
        }
        None
    }

    // Reports.

    /// What undo commands depend on.
    pub fn advice(&self) -> Advice<'_> {
        Advice {
            exec_root: self.invocation.root.as_bytes(),
            is_container: self.is_container,
        }
    }

    /// Counts a command that ended, and says what failed.
    pub fn report_end(
        &mut self,
        kernel: &mut impl Kernel,
        ended: &Ended,
        metrics: &mut Metrics,
        output: &mut Output,
        moment: Moment,
    ) {
        metrics.observe(metrics::FIREWALL_COMMAND_DURATION_SECONDS, ended.duration);
        let failure = ended.failure.as_ref();
        if let Some(exit) = ended.exit {
            let timed_out = failure.is_some_and(|one| one.reason == FailureReason::Deadline);
            metrics.count(metrics::FIREWALL_COMMANDS.of(if timed_out {
                CommandExit::Timeout
            } else {
                CommandExit::new(exit)
            }));
        }
        let Some(failure) = failure else { return };
        self.last_failure = failure_label(failure, ended.exit.is_none());
        if failure.is_addition {
            metrics.count(metrics::BLOCK_FAILURES.of(self.last_failure));
        }
        if !failure.leaves_out.is_empty() {
            let words = b" is refused here: rules go in without, and this is not said again";
            log_error(kernel, &[b"the match ", failure.leaves_out, words]);
        }
        if failure.is_first {
            self.report_failure(kernel, failure, output, moment);
        }
    }

    fn report_failure(
        &mut self,
        kernel: &mut impl Kernel,
        failure: &Failure,
        output: &mut Output,
        moment: Moment,
    ) {
        let words = report::failure(failure);
        match failure.source {
            Some(_) if !failure.is_addition => {}
            Some(source) => {
                let (mut line, calendar) = (Line::new(), moment.calendar(kernel));
                report::block_failed(&mut line, calendar, source, words.as_bytes());
                output.line(kernel, &line);
            }
            None => log_words(kernel, words.as_bytes()),
        }
        if self.firewall.is_unusable() {
            self.name_way_out(kernel);
        }
    }

    /// Once, where no block can be had: what helps, if a line above does not say
    /// it.
    pub fn name_way_out(&mut self, kernel: &mut impl Kernel) {
        if !self.firewall.may_use_tools() || !self.way_out.say() {
            return;
        }
        let way_out: &[u8] = if self.is_container && self.invocation.root.is_empty() {
            b": use the iptables of its host by \
                -v /:/host:ro --cap-add=NET_RAW --cap-add=SYS_CHROOT \
                -e TCPPARSER_EXEC_ROOT=/host"
        } else {
            b""
        };
        let names = self.firewall.names();
        log_error(kernel, &[b"nothing can be blocked by ", names, way_out]);
    }

    /// Says and counts what became of blocks. The sockets of sources that are
    /// blocked are destroyed where `destroys`.
    #[inline(never)]
    pub fn report_notices(
        &mut self,
        kernel: &mut impl Kernel,
        detector: &mut Detector,
        metrics: &mut Metrics,
        output: &mut Output,
        destroys: bool,
        moment: Moment,
    ) {
        while let Some(notice) = &self.firewall.next_notice() {
            let calendar = moment.calendar(kernel);
            let mut line = Line::new();
            match *notice {
                Notice::Blocked {
                    ref rule,
                    length,
                    data,
                } => {
                    metrics.count(metrics::BLOCKS);
                    detector.forget(rule.source);
                    if destroys {
                        self.destroyer.add(rule.source);
                    }
                    self.notify_hook(kernel, metrics, Event::Block(length), rule.source);
                    report::blocked(&mut line, calendar, rule, length, data, &self.advice());
                }
                Notice::Refused { source, refusal } => {
                    match refusal {
                        Refusal::Protected(_) => detector.silence(source, moment.now),
                        // Who goes on scanning is found again.
                        _ => detector.forget(source),
                    }
                    metrics.count(metrics::BLOCKS_REFUSED.of(refusal));
                    report::not_blocked(&mut line, calendar, source, refusal.words());
                }
                Notice::JumpStays {
                    hook,
                    tool,
                    wait,
                    ref above,
                } => {
                    let words = report::jump_stays(hook, tool, wait, above.as_bytes());
                    log_words(kernel, words.as_bytes());
                    continue;
                }
                Notice::Unblocked {
                    source,
                    reason,
                    ref program,
                } => {
                    metrics.count(metrics::UNBLOCKS.of(reason));
                    self.notify_hook(kernel, metrics, Event::Unblock(reason), source);
                    if reason == EndReason::Widened {
                        continue;
                    }
                    detector.forget(source);
                    report::unblocked(&mut line, calendar, source, reason, program.as_bytes());
                }
            }
            output.line(kernel, &line);
        }
    }

    #[inline(never)]
    fn notify_hook(
        &mut self,
        kernel: &mut impl Kernel,
        metrics: &mut Metrics,
        event: Event,
        source: Network,
    ) {
        let ports = self.firewall.ports_of(source);
        self.hook.notify(kernel, metrics, event, source, ports);
    }

    // Verdicts.

    /// Wants a scan's source blocked, or says why not.
    pub fn decide(
        &mut self,
        scan: &Scan,
        options: &Options,
        host: &Host,
        now: Instant,
    ) -> Result<(), Refusal> {
        refusal(scan, options, host).map_or(Ok(()), Err)?;
        let result = self.firewall.block(scan, host, now);
        result.map_err(|_| Refusal::TableFull)
    }

    /// Says and counts what does not follow at once.
    #[inline(never)]
    pub fn report_verdict(
        &self,
        kernel: &mut impl Kernel,
        scan: &Scan,
        verdict: Result<(), Refusal>,
        metrics: &mut Metrics,
        output: &mut Output,
        moment: Moment,
    ) {
        let (mut line, calendar) = (Line::new(), moment.calendar(kernel));
        if let Err(refusal) = verdict {
            metrics.count(metrics::BLOCKS_REFUSED.of(refusal));
            report::not_blocked(&mut line, calendar, scan.source, refusal.words());
            return output.line(kernel, &line);
        }
        let family = scan.source.family();
        if self.firewall.is_failing(family) {
            let unusable = self.firewall.unusable();
            let mut why: Text<80> =
                Text::from_bytes(unusable.unwrap_or(Unusable::Family(family)).name());
            why.put(b" cannot be used; it is tried again");
            metrics.count(metrics::BLOCK_FAILURES.of(self.last_failure));
            report::block_failed(&mut line, calendar, scan.source, why.as_bytes());
            output.line(kernel, &line);
        }
    }

    /// Why blocks that are wanted cannot be had: a subject and the rest of a
    /// line.
    pub fn trouble(&self, host: &Host) -> Option<[&'static [u8]; 2]> {
        if !self.firewall.is_enabled() {
            return None;
        }
        match self.firewall.unusable() {
            Some(unusable) => Some([unusable.name(), b" cannot be used\n"]),
            None if host.knowledge() == Knowledge::Lacking => {
                Some([b"own addresses and gateways", b" are not fully known\n"])
            }
            None => None,
        }
    }

    // Sockets.

    /// Destroys sockets of sources that were blocked, once no block waits for
    /// its command any more. Their late destroy events are ends of connections
    /// seen before.
    pub fn destroy_sockets(
        &mut self,
        kernel: &mut impl Kernel,
        host: &Host,
        buffer: &mut [u8],
        metrics: &mut Metrics,
        now: Instant,
    ) {
        if !now.reaches(self.destroyer_deadline(now)) {
            return;
        }
        let firewall = &self.firewall;
        let is_blocked = |address| firewall.is_blocked(host.source_of(address));
        match self.destroyer.destroy(kernel, buffer, is_blocked, now) {
            Ok(destroyed) => metrics.add(metrics::SOCKETS_DESTROYED, destroyed),
            Err(_) => {
                let words = b"sockets of blocked sources cannot be destroyed here: they run into their timeouts";
                log_words(kernel, words);
            }
        }
    }

    /// When more of them are to be destroyed.
    pub fn destroyer_deadline(&self, now: Instant) -> Option<Instant> {
        let deadline = self.destroyer.deadline(now);
        deadline.filter(|_| self.firewall.pending() == 0)
    }
}

/// The first 32 bits of this boot's id.
fn boot_id(kernel: &mut impl Kernel) -> Option<u32> {
    let mut buffer = [0; 64];
    let bytes = read_small(kernel, b"/proc/sys/kernel/random/boot_id", &mut buffer);
    bytes.get(..8).and_then(|digits| parse_hex(trim(digits)))
}

/// Why no block is to follow.
fn refusal(scan: &Scan, options: &Options, host: &Host) -> Option<Refusal> {
    if scan.members > 0 {
        return Some(Refusal::Spread);
    }
    if !scan.is_whole {
        return Some(Refusal::WayUnseen);
    }
    if options.dry_run {
        return Some(Refusal::DryRun);
    }
    if options.firewall == FirewallChoice::None {
        return Some(Refusal::NoFirewall);
    }
    if options.require_silent && scan.data() != Data::Silent {
        return Some(Refusal::DataSent(scan.data()));
    }
    let protection = host.protected(scan.source);
    // What may be protected is decided when the host is known, if it will be.
    let may_wait = host.knowledge() == Knowledge::Awaited;
    let known = protection.filter(|one| *one != Protection::HostUnknown || !may_wait);
    known.map(Refusal::Protected)
}

/// What a failed addition counts as.
fn failure_label(failure: &Failure, is_spawn: bool) -> BlockFailure {
    let words = &failure.explanation;
    let is_forbidden = is_forbidden(words);
    match failure.reason {
        _ if is_spawn => BlockFailure::Spawn,
        FailureReason::Missing | FailureReason::Unstarted
            if is_forbidden || lacks_capability(words) =>
        {
            BlockFailure::Permission
        }
        FailureReason::Missing | FailureReason::Unstarted => BlockFailure::Missing,
        FailureReason::Status(_) if is_locked_out(words) => BlockFailure::Lock,
        FailureReason::Status(_) if is_forbidden => BlockFailure::Permission,
        FailureReason::Status(_) => BlockFailure::Refused,
        FailureReason::Signal(_) => BlockFailure::Signal,
        FailureReason::Deadline => BlockFailure::Timeout,
        FailureReason::Error(Errno::EPERM) => BlockFailure::Permission,
        FailureReason::Error(Errno::EOPNOTSUPP) => BlockFailure::Missing,
        FailureReason::Error(_) => BlockFailure::Refused,
    }
}
