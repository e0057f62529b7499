//! --list and --unblock: one command each, with or without a running daemon.
//! What they know they read from the kernel's rules.

use heapless::Vec;

use crate::address::Network;
use crate::firewall::comment::{Facts, parse_hex};
use crate::firewall::iptables::{Batch, Flavour, Hook, Lines, Listed, Program, Rule, Tool};
use crate::firewall::{EXPLANATION_MAX, Unusable};
use crate::kernel::{Child, Errno, Exit, Interest, Invocation, Kernel};
use crate::limits::{CHILD_DEADLINE, ONE_SHOT_PATIENCE};
use crate::options::Target;
use crate::report;
use crate::text::{Text, trim};
use crate::time::{Duration, Instant};

use super::instance::is_name_held;
use super::procfs::{has_ipv6, has_legacy_table, read_small};
use super::{Daemon, Flow};

/// Rules taken away in one batch.
const BATCH: usize = 64;
/// How often a batch that fails is made anew.
const TRIES: usize = 3;

/// What the first command that failed wrote on its standard error.
type Explanation = Text<EXPLANATION_MAX>;

/// What a listing of one family showed.
struct Found {
    rules: Vec<Rule, BATCH>,
    has_more: bool,
    has_chain: bool,
    is_chain_empty: bool,
    jumps: [u32; 2],
}

/// What of the firewall could not be looked at or changed.
struct Failures {
    /// Of IPv4 and of IPv6, the first tool that failed.
    tools: [Option<Tool>; 2],
    /// What that one said.
    explanation: Explanation,
}

impl Failures {
    const fn none() -> Self {
        Self {
            tools: [None; 2],
            explanation: Explanation::new(),
        }
    }

    fn add(&mut self, tool: Tool) {
        let [v4, v6] = &mut self.tools;
        let failed = if tool.is_ipv6 { v6 } else { v4 };
        failed.get_or_insert(tool);
    }
}

impl Daemon {
    /// Prints every block of ours; exit 0 only if there is one and none may be
    /// missing.
    #[inline(never)]
    pub(super) fn list_blocks(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.output
            .set_wait_budget(ONE_SHOT_PATIENCE, ONE_SHOT_PATIENCE);
        let boot_id = boot_id(kernel);
        let mut failures = Failures::none();
        let mut count = 0;
        for &is_ipv6 in self.families(kernel) {
            let runner = Runner::new(&mut self.invocation, &mut self.child_buffer);
            let tables = runner.tables(kernel, is_ipv6, &mut failures);
            for table in &tables {
                let (now, unix_seconds) = (kernel.boottime(), kernel.realtime() / 1_000_000_000);
                // Printed when the child is done: it waits for nobody else.
                let listing = &mut self.listing;
                listing.clear();
                let mut runner = Runner::new(&mut self.invocation, &mut self.child_buffer);
                let could_list = runner.list(kernel, table.tool, |listed| {
                    if let Listed::Ours(rule) = listed {
                        let _ = listing.push(rule);
                    }
                });
                if could_list.is_none() {
                    runner.fails(table, &mut failures);
                }
                for rule in listing.iter() {
                    if count == 0 {
                        self.output.line(kernel, report::LIST_HEAD);
                    }
                    count += 1;
                    let facts =
                        Facts::read(&rule.comment).filter(|facts| Some(facts.boot_id) == boot_id);
                    let since = facts.map(|facts| {
                        let age = now.since(Instant::from_secs(facts.since_seconds));
                        kernel.calendar(unix_seconds.saturating_sub(age.as_secs_rounded_up()))
                    });
                    let firewall = table.flavour.name();
                    let line = report::listed_block(rule, facts, since, now, firewall);
                    self.output.line(kernel, line.as_bytes());
                }
            }
        }
        self.output.finish(kernel);
        self.one_shot_end(kernel, &failures, b"listed", count, b"no source is blocked")
    }

    /// The families whose rules can matter: IPv6 only where the kernel has it.
    fn families(&self, kernel: &mut impl Kernel) -> &'static [bool] {
        if has_ipv6(kernel, self.options.proc_directory.as_bytes()) {
            &[false, true]
        } else {
            &[false]
        }
    }

    fn one_shot_end(
        &mut self,
        kernel: &mut impl Kernel,
        failures: &Failures,
        be: &[u8],
        count: u64,
        nothing: &[u8],
    ) -> Flow {
        let mut name: Text<24> = Text::new();
        let tool = match failures.tools {
            [None, None] => {
                if count == 0 {
                    self.complain(kernel, &[nothing]);
                }
                return Flow::Exit(u8::from(count == 0));
            }
            [Some(tool), Some(_)] => {
                name.put(Unusable::All.name());
                tool
            }
            [Some(tool), None] | [None, Some(tool)] => {
                tool.write_name(&mut name);
                tool
            }
        };
        let mut why = failures.explanation.clone();
        if trim(why.as_bytes()).is_empty() {
            why.put(b"not permitted, or no ");
            tool.write_name(&mut why);
            why.put(b" here");
        }
        let words = [
            name.as_bytes(),
            b" cannot be ",
            be,
            b": ",
            trim(why.as_bytes()),
        ];
        self.complain(kernel, &words);
        self.name_way_out(kernel, &failures.explanation);
        Flow::Exit(1)
    }

    /// Takes blocks away; exit 0 only if there was one and none may be left. While a daemon runs it
    /// removes the empty chain, else that is done here.
    #[inline(never)]
    pub(super) fn unblock(&mut self, kernel: &mut impl Kernel, target: Target) -> Flow {
        let is_daemon_running = is_name_held(kernel);
        let mut failures = Failures::none();
        let mut removed = 0;
        for &is_ipv6 in self.families(kernel) {
            let runner = Runner::new(&mut self.invocation, &mut self.child_buffer);
            let tables = runner.tables(kernel, is_ipv6, &mut failures);
            for table in &tables {
                let mut runner = Runner::new(&mut self.invocation, &mut self.child_buffer);
                let (count, is_done) =
                    runner.unblock(kernel, table.tool, target, is_daemon_running);
                removed += count;
                if !is_done {
                    runner.fails(table, &mut failures);
                }
            }
        }
        if removed > 0 {
            let mut line: Text<40> = Text::new();
            line.put_decimal(removed);
            line.put(if removed == 1 {
                b" block removed".as_slice()
            } else {
                b" blocks removed"
            });
            self.output.line(kernel, line.as_bytes());
            self.output.finish(kernel);
        }
        self.one_shot_end(kernel, &failures, b"changed", removed, b"no such block")
    }
}

/// A filter table that may hold blocks.
struct Table {
    tool: Tool,
    flavour: Flavour,
    /// It is not that of the host's `iptables`.
    is_other: bool,
}

/// What running commands needs.
struct Runner<'a> {
    invocation: &'a mut Invocation,
    buffer: &'a mut [u8],
    /// What the first one that failed wrote on its standard error.
    explanation: Explanation,
}

impl<'a> Runner<'a> {
    fn new(invocation: &'a mut Invocation, buffer: &'a mut [u8]) -> Self {
        Self {
            invocation,
            buffer,
            explanation: Explanation::new(),
        }
    }

    /// Takes down that a table could not be looked at. Without nf_tables in the
    /// kernel there is none of that flavour, and nothing is missed.
    fn fails(self, table: &Table, failures: &mut Failures) {
        if table.is_other && table.flavour == Flavour::Nft {
            return;
        }
        if trim(failures.explanation.as_bytes()).is_empty() {
            failures.explanation = self.explanation;
        }
        failures.add(table.tool);
    }

    /// The tables of one family: that of `iptables`, and the other flavour's if
    /// it may hold something.
    fn tables(
        mut self,
        kernel: &mut impl Kernel,
        is_ipv6: bool,
        failures: &mut Failures,
    ) -> Vec<Table, 2> {
        let mut tables = Vec::new();
        let mut program = Some(Program::Preferred);
        while let Some(one) = program.filter(|_| tables.is_empty()) {
            let tool = Tool {
                program: one,
                ..Tool::preferred(is_ipv6)
            };
            if let Some(flavour) = self.flavour(kernel, tool) {
                let is_other = false;
                let _ = tables.push(Table {
                    tool,
                    flavour,
                    is_other,
                });
            }
            program = one.next();
        }
        let Some(flavour) = tables.first().map(|table| table.flavour) else {
            let (tool, flavour) = (Tool::preferred(is_ipv6), Flavour::Legacy);
            let is_other = false;
            self.fails(
                &Table {
                    tool,
                    flavour,
                    is_other,
                },
                failures,
            );
            return tables;
        };
        let tool = Tool {
            program: flavour.other(),
            ..Tool::preferred(is_ipv6)
        };
        if flavour == Flavour::Legacy || has_legacy_table(kernel, is_ipv6) {
            if let Some(flavour) = self.flavour(kernel, tool) {
                let is_other = true;
                let _ = tables.push(Table {
                    tool,
                    flavour,
                    is_other,
                });
            }
        }
        tables
    }

    /// Takes away the blocks of one table; how many, and whether those are all.
    fn unblock(
        &mut self,
        kernel: &mut impl Kernel,
        tool: Tool,
        target: Target,
        is_daemon_running: bool,
    ) -> (u64, bool) {
        let mut removed = 0;
        let mut tries = TRIES;
        while let Some((found, tool)) = self.find(kernel, tool, target) {
            let is_last = !found.has_more;
            if !found.rules.is_empty() {
                let mut batch = Batch::new(self.invocation, tool);
                for rule in &found.rules {
                    batch.remove(rule);
                }
                batch.commit();
                if self.run(kernel, &mut |_| {}) != Some(Exit::Status(0)) {
                    // One that ended meanwhile vetoes the whole batch.
                    tries -= 1;
                    if tries == 0 {
                        return (removed, false);
                    }
                    continue;
                }
                removed += found.rules.len() as u64;
                tries = TRIES;
            }
            if is_last {
                if !is_daemon_running {
                    self.remove_empty_chain(kernel, tool);
                }
                return (removed, true);
            }
        }
        (removed, false)
    }

    fn remove_empty_chain(&mut self, kernel: &mut impl Kernel, tool: Tool) {
        let Some((found, tool)) = self.find(kernel, tool, Target::All) else {
            return;
        };
        if !found.has_chain || !found.is_chain_empty {
            return;
        }
        let mut batch = Batch::new(self.invocation, tool);
        for (hook, position) in Hook::ALL.into_iter().zip(found.jumps) {
            if position != 0 {
                batch.remove_jump(hook);
            }
        }
        batch.remove_chain();
        batch.commit();
        self.run(kernel, &mut |_| {});
    }

    /// What is there, and with which words the tool is to be asked.
    fn find(
        &mut self,
        kernel: &mut impl Kernel,
        tool: Tool,
        target: Target,
    ) -> Option<(Found, Tool)> {
        let mut found = Found {
            rules: Vec::new(),
            has_more: false,
            has_chain: false,
            is_chain_empty: true,
            jumps: [0; 2],
        };
        let tool = self.list(kernel, tool, |listed| match listed {
            Listed::Chain => found.has_chain = true,
            Listed::HookRule(hook, true) => {
                if let Some(jump) = found.jumps.get_mut(hook as usize) {
                    *jump = 1;
                }
            }
            Listed::Ours(rule) => {
                found.is_chain_empty = false;
                if is_meant(target, rule.source) {
                    found.has_more |= found.rules.push(rule).is_err();
                }
            }
            Listed::Plain(_) | Listed::Foreign => found.is_chain_empty = false,
            Listed::HookRule(_, false) | Listed::Other => {}
        });
        tool.map(|tool| (found, tool))
    }

    /// Lists one table; old tools that know no `-w` are asked without, from then
    /// on.
    fn list(
        &mut self,
        kernel: &mut impl Kernel,
        tool: Tool,
        mut visit: impl FnMut(Listed),
    ) -> Option<Tool> {
        for waits in [true, false] {
            let tool = Tool { waits, ..tool };
            tool.list(self.invocation);
            let mut lines = Lines::new();
            let exit = self.run(kernel, &mut |bytes| {
                lines.feed(bytes, |_, listed| visit(listed));
            });
            if exit == Some(Exit::Status(0)) {
                return Some(tool);
            }
            if exit != Some(Exit::Status(2)) {
                return None;
            }
            if waits {
                // What matters is what it says without `-w`.
                self.explanation.clear();
            }
        }
        None
    }

    /// What `iptables -V` says; `None` where it is not there.
    fn flavour(&mut self, kernel: &mut impl Kernel, tool: Tool) -> Option<Flavour> {
        tool.version(self.invocation);
        let mut flavour = Flavour::Legacy;
        let mut lines = Lines::new();
        let exit = self.run(kernel, &mut |bytes| {
            lines.feed(bytes, |line, _| flavour = Flavour::read(line));
        });
        (exit == Some(Exit::Status(0))).then_some(flavour)
    }

    /// Runs the prepared command to its end, at most `CHILD_DEADLINE`, and
    /// hands over what it writes on its standard output.
    fn run(&mut self, kernel: &mut impl Kernel, visit: &mut dyn FnMut(&[u8])) -> Option<Exit> {
        let child = kernel.spawn(self.invocation).ok()?;
        let deadline = kernel.boottime().after(CHILD_DEADLINE);
        let mut is_open = true;
        loop {
            // Before looking at the child: the signal of one that ends after
            // that look has to end the wait below.
            kernel.next_signal();
            let exit = kernel.reap(child.process);
            is_open &= self.drain(kernel, child, visit);
            if exit.is_some() {
                if exit != Some(Exit::Status(0)) && self.explanation.is_empty() {
                    // What matters of it is in its first words.
                    let count = kernel.read(child.errors, self.buffer).unwrap_or(0);
                    let words = self.buffer.get(..count).unwrap_or_default();
                    self.explanation.put_printable(words);
                }
                kernel.close(child.output);
                kernel.close(child.errors);
                return exit;
            }
            let left = kernel.boottime().until(deadline);
            if left == Duration::ZERO {
                kernel.kill_group(child.process, true);
            }
            let mut interests = [
                Interest::read(kernel.signal_descriptor()),
                Interest::read(child.output),
            ];
            let count = if is_open { 2 } else { 1 };
            let wait = left.max(Duration::from_millis(10));
            let _ = kernel.poll(interests.get_mut(..count).unwrap_or_default(), Some(wait));
        }
    }

    /// Reads what is there; false once the output was closed.
    fn drain(
        &mut self,
        kernel: &mut impl Kernel,
        child: Child,
        visit: &mut dyn FnMut(&[u8]),
    ) -> bool {
        loop {
            match kernel.read(child.output, self.buffer) {
                Ok(0) => return false,
                Ok(count) => visit(self.buffer.get(..count).unwrap_or_default()),
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }
}

/// An address means the block that holds it, a network every block in it.
fn is_meant(target: Target, source: Network) -> bool {
    match target {
        Target::All => true,
        Target::Network(network) => network.overlaps(source),
    }
}

/// The first 32 bits of this boot's id.
pub(super) fn boot_id(kernel: &mut impl Kernel) -> Option<u32> {
    let mut buffer = [0; 64];
    let bytes = read_small(kernel, b"/proc/sys/kernel/random/boot_id", &mut buffer);
    bytes.get(..8).and_then(|digits| parse_hex(trim(digits)))
}
