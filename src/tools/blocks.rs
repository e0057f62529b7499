//! --list and --unblock, with or without a running daemon: one pass of the
//! firewall's own commands over every table. What they know they read from the
//! kernel's rules.

use crate::address::{Network, PerFamily};
use crate::daemon::Flow;
use crate::daemon::clock::Moment;
use crate::daemon::commands::Commands;
use crate::daemon::output::{Output, log_error, log_words};
use crate::daemon::procfs::has_ipv6;
use crate::firewall::comment::Facts;
use crate::firewall::iptables::Tool;
use crate::firewall::{Explanation, Failure, FailureReason, Task, Unusable};
use crate::host::{Host, Protection};
use crate::kernel::Kernel;
use crate::limits::ONE_SHOT_WAIT_BUDGET;
use crate::options::Options;
use crate::report::{self, Line, error_words};
use crate::text::{Text, trim};
use crate::time::Instant;

/// Addresses that --list names for one reason.
const PROTECTED_MAX: usize = 16;

/// What of the firewall could not be listed or changed.
struct Failures {
    /// The first tool that failed.
    tools: PerFamily<Option<Tool>>,
    /// nf_tables did.
    are_sets: bool,
    /// What the first of them that wrote anything wrote on its standard error.
    explanation: Explanation,
    /// What the first tool did.
    reason: Text<80>,
}

impl Failures {
    fn add(&mut self, failure: &Failure) {
        if !failure.is_first {
            return;
        }
        if trim(self.explanation.as_bytes()).is_empty() {
            let explanation = trim(failure.explanation.as_bytes());
            self.explanation.clear();
            if let FailureReason::Error(error) = failure.reason {
                self.explanation.put(error_words(error).as_bytes());
                self.explanation
                    .put(if explanation.is_empty() { b"" } else { b": " });
            }
            self.explanation.put(explanation);
        }
        match failure.tool {
            Some(tool) => {
                self.tools.get_mut(tool.family).get_or_insert(tool);
                if self.reason.is_empty() {
                    tool.write_name(&mut self.reason);
                    report::put_reason(&mut self.reason, failure);
                }
            }
            None => self.are_sets = true,
        }
    }
}

/// Prints every block of ours, or takes away those that are meant; exit 0 only
/// if there was one and none may be missing.
#[inline(never)]
pub fn run(
    kernel: &mut impl Kernel,
    commands: &mut Commands,
    output: &mut Output,
    options: &Options,
    host: &Host,
    buffer: &mut [u8],
    task: Task,
) -> Flow {
    output.set_wait_budget(ONE_SHOT_WAIT_BUDGET, ONE_SHOT_WAIT_BUDGET);
    let mut failures = Failures {
        tools: PerFamily::new(None, None),
        are_sets: false,
        explanation: Text::new(),
        reason: Text::new(),
    };
    let mut count = 0;
    loop {
        while let Some((ended, moment)) = commands.run(kernel, buffer, host) {
            if let Some(failure) = &ended.failure {
                failures.add(failure);
            }
            count += print_blocks(kernel, commands, output, count == 0, moment);
        }
        // One family after the other, IPv6 only where the kernel has it.
        if commands.firewall.has_ipv6() || !has_ipv6(kernel, &options.proc_directory) {
            break;
        }
        commands.firewall.set_ipv6();
    }
    let (removed, lifted) = commands.firewall.removed();
    if removed > 0 {
        print_removed(kernel, output, removed, lifted);
    }
    let has_failed = failures.are_sets || failures.tools.v4.or(failures.tools.v6).is_some();
    if task == Task::List && !has_failed {
        print_protected(kernel, output, host, count > 0);
    }
    output.finish(kernel);
    end(kernel, commands, &failures, task, count + removed)
}

/// Prints what is never blocked here, and why, below the blocks if there are
/// any.
fn print_protected(
    kernel: &mut impl Kernel,
    output: &mut Output,
    host: &Host,
    is_below_blocks: bool,
) {
    if is_below_blocks {
        output.bare(kernel, b"");
    }
    output.bare(kernel, report::NEVER_BLOCKED);
    host.name_protected(PROTECTED_MAX, &mut |network, reason| {
        print_never_blocked(kernel, output, network, reason);
    });
}

#[inline(never)]
fn print_never_blocked(
    kernel: &mut impl Kernel,
    output: &mut Output,
    network: Option<Network>,
    reason: Protection,
) {
    let mut line = Line::new();
    report::never_blocked(&mut line, network, reason);
    output.bare(kernel, line.as_bytes());
}

/// Prints what the table listed last holds, and how many blocks that is. The
/// child is done: it does not wait for a slow reader.
#[inline(never)]
fn print_blocks(
    kernel: &mut impl Kernel,
    commands: &mut Commands,
    output: &mut Output,
    has_head: bool,
    moment: Moment,
) -> u64 {
    let (now, unix_seconds) = (moment.now, moment.unix_seconds());
    let (rules, place, boot_id) = commands.firewall.take_listing();
    if has_head && !rules.is_empty() {
        output.bare(kernel, report::LIST_HEAD);
    }
    for rule in rules.iter() {
        let facts = Facts::read(&rule.comment).filter(|facts| facts.boot_id == boot_id);
        let since = facts.map(|facts| {
            let age = now.since(Instant::from_secs(facts.since_seconds));
            kernel.calendar(unix_seconds.saturating_sub(age.as_secs_rounded_up()))
        });
        let mut line = Line::new();
        report::listed_block(&mut line, rule, facts, since, now, place);
        output.line(kernel, &line);
    }
    let count = rules.len() as u64;
    rules.clear();
    count
}

fn print_removed(
    kernel: &mut impl Kernel,
    output: &mut Output,
    removed: u64,
    lifted: Option<Network>,
) {
    let mut line: Text<120> = Text::new();
    line.put_decimal(removed);
    line.put(b" block");
    line.put(if removed == 1 { b"" } else { b"s" });
    line.put(b" removed");
    if let Some(network) = lifted {
        line.put(b"; all of ");
        network.write(&mut line);
        line.put(b" was blocked as one");
    }
    output.bare(kernel, line.as_bytes());
}

/// The exit status, and on standard error what it is about.
#[inline(never)]
fn end(
    kernel: &mut impl Kernel,
    commands: &mut Commands,
    failures: &Failures,
    task: Task,
    count: u64,
) -> Flow {
    let (be, nothing): (&[u8], &[u8]) = match task {
        Task::List => (b"listed", b"no source is blocked"),
        Task::Unblock { .. } | Task::Guard | Task::End => (b"changed", b"no such block"),
    };
    let mut name: Text<24> = Text::new();
    let PerFamily { v4, v6 } = failures.tools;
    match (v4.or(v6), v4.and(v6)) {
        (None, _) if failures.are_sets => name.put(b"nf_tables"),
        (None, _) => {
            if count == 0 {
                log_words(kernel, nothing);
            }
            return Flow::Exit(u8::from(count == 0));
        }
        (_, Some(_)) => name.put(Unusable::All.name()),
        (Some(tool), None) => tool.write_name(&mut name),
    }
    let mut why = trim(failures.explanation.as_bytes());
    if why.is_empty() {
        why = failures.reason.as_bytes();
    }
    log_error(kernel, &[name.as_bytes(), b" cannot be ", be, b": ", why]);
    let is_lost = v4.is_some() && (v6.is_some() || !commands.firewall.has_ipv6());
    if is_lost && !failures.are_sets && !commands.firewall.knows_sets() {
        commands.name_way_out(kernel);
    }
    Flow::Exit(1)
}
