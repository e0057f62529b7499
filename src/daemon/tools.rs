//! --list and --unblock: one command each, with or without a running daemon.
//! What they know they read from the kernel's rules.

use heapless::Vec;

use crate::address::Network;
use crate::firewall::EXPLANATION_MAX;
use crate::firewall::comment::{Facts, parse_hex};
use crate::firewall::iptables::{self, Batch, Hook, Lines, Listed, Rule};
use crate::kernel::{Child, Errno, Exit, Interest, Invocation, Kernel};
use crate::limits::{CHILD_DEADLINE, ONE_SHOT_PATIENCE};
use crate::options::Target;
use crate::report;
use crate::text::{Sink, Text, trim};
use crate::time::{Duration, Instant};

use super::instance::is_name_held;
use super::starting::read_small;
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

impl Daemon {
    /// Prints every block of ours; exit 0 only if there is one and none may be
    /// missing.
    pub(super) fn list_blocks(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.output
            .set_patience(ONE_SHOT_PATIENCE, ONE_SHOT_PATIENCE);
        let boot_id = boot_id(kernel);
        let mut explanation = Explanation::new();
        let mut count = 0;
        let mut failed = None;
        for &is_ipv6 in self.families(kernel) {
            let mut tool = Tool::new(
                &mut self.invocation,
                &mut self.child_buffer,
                &mut explanation,
            );
            let Some(flavour) = tool.flavour(kernel, is_ipv6) else {
                failed = failed.or(Some(is_ipv6));
                continue;
            };
            let (now, unix_seconds) = (kernel.boottime(), kernel.realtime() / 1_000_000_000);
            // Printed when the child is done: it waits for nobody else.
            let listing = &mut self.listing;
            listing.clear();
            let could_list = tool.list(kernel, is_ipv6, |listed| {
                if let Listed::Ours(rule) = listed {
                    let _ = listing.push(rule);
                }
            });
            if !could_list {
                failed = failed.or(Some(is_ipv6));
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
                let line = report::listed_block(rule, facts, since, now, flavour.as_bytes());
                self.output.line(kernel, line.as_bytes());
            }
        }
        self.output.finish(kernel);
        if let Some(is_ipv6) = failed {
            return self.cannot(kernel, b"listed", is_ipv6, &explanation);
        }
        if count == 0 {
            self.complain(kernel, &[b"no source is blocked"]);
        }
        Flow::Exit(u8::from(count == 0))
    }

    /// The families whose rules can matter: IPv6 only where the kernel has it.
    fn families(&self, kernel: &mut impl Kernel) -> &'static [bool] {
        if self.has_ipv6(kernel) {
            &[false, true]
        } else {
            &[false]
        }
    }

    fn cannot(
        &mut self,
        kernel: &mut impl Kernel,
        be: &[u8],
        is_ipv6: bool,
        explanation: &Explanation,
    ) -> Flow {
        let why: &[u8] = match (trim(explanation.as_bytes()), is_ipv6) {
            ([], false) => b"not permitted, or no iptables here",
            ([], true) => b"not permitted, or no ip6tables here",
            (why, _) => why,
        };
        self.complain(kernel, &[b"the firewall cannot be ", be, b": ", why]);
        self.name_way_out(kernel, explanation);
        Flow::Exit(1)
    }

    /// Takes blocks away; exit 0 only if there was one and none may be left. While a daemon runs it
    /// removes the empty chain, else that is done here.
    pub(super) fn unblock(&mut self, kernel: &mut impl Kernel, target: Target) -> Flow {
        let is_daemon_running = is_name_held(kernel);
        let mut explanation = Explanation::new();
        let mut removed = 0;
        let mut failed = None;
        for &is_ipv6 in self.families(kernel) {
            let mut tool = Tool::new(
                &mut self.invocation,
                &mut self.child_buffer,
                &mut explanation,
            );
            let (count, is_done) = tool.unblock(kernel, is_ipv6, target, is_daemon_running);
            removed += count;
            if !is_done {
                failed = failed.or(Some(is_ipv6));
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
        if let Some(is_ipv6) = failed {
            return self.cannot(kernel, b"changed", is_ipv6, &explanation);
        }
        if removed == 0 {
            self.complain(kernel, &[b"no such block"]);
        }
        Flow::Exit(u8::from(removed == 0))
    }
}

/// What running a command needs.
struct Tool<'a> {
    invocation: &'a mut Invocation,
    buffer: &'a mut [u8],
    explanation: &'a mut Explanation,
    without_wait: bool,
}

impl<'a> Tool<'a> {
    fn new(
        invocation: &'a mut Invocation,
        buffer: &'a mut [u8],
        explanation: &'a mut Explanation,
    ) -> Self {
        Self {
            invocation,
            buffer,
            explanation,
            without_wait: false,
        }
    }

    /// Takes away the blocks of one family; how many, and whether those are all.
    fn unblock(
        &mut self,
        kernel: &mut impl Kernel,
        is_ipv6: bool,
        target: Target,
        is_daemon_running: bool,
    ) -> (u64, bool) {
        let mut removed = 0;
        let mut tries = TRIES;
        while let Some(found) = self.find(kernel, is_ipv6, target) {
            let is_last = !found.has_more;
            if !found.rules.is_empty() {
                let mut batch = Batch::new(self.invocation, is_ipv6, !self.without_wait);
                for rule in &found.rules {
                    batch.remove(rule);
                }
                batch.commit();
                if self.run(kernel, |_| {}) != Some(Exit::Status(0)) {
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
                    self.remove_empty_chain(kernel, is_ipv6);
                }
                return (removed, true);
            }
        }
        (removed, false)
    }

    fn remove_empty_chain(&mut self, kernel: &mut impl Kernel, is_ipv6: bool) {
        let Some(found) = self.find(kernel, is_ipv6, Target::All) else {
            return;
        };
        if !found.has_chain || !found.is_chain_empty {
            return;
        }
        let mut batch = Batch::new(self.invocation, is_ipv6, !self.without_wait);
        for (hook, position) in Hook::ALL.into_iter().zip(found.jumps) {
            if position != 0 {
                batch.remove_jump(hook);
            }
        }
        batch.remove_chain();
        batch.commit();
        self.run(kernel, |_| {});
    }

    fn find(&mut self, kernel: &mut impl Kernel, is_ipv6: bool, target: Target) -> Option<Found> {
        let mut found = Found {
            rules: Vec::new(),
            has_more: false,
            has_chain: false,
            is_chain_empty: true,
            jumps: [0; 2],
        };
        let could_list = self.list(kernel, is_ipv6, |listed| match listed {
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
        could_list.then_some(found)
    }

    /// Lists one family; old tools that know no `-w` are asked without.
    fn list(
        &mut self,
        kernel: &mut impl Kernel,
        is_ipv6: bool,
        mut visit: impl FnMut(Listed),
    ) -> bool {
        for waits in [true, false] {
            iptables::list(self.invocation, is_ipv6, waits);
            let mut lines = Lines::new();
            let exit = self.run(kernel, |bytes| lines.feed(bytes, |_, listed| visit(listed)));
            if exit == Some(Exit::Status(0)) {
                self.without_wait = !waits;
                return true;
            }
            if exit != Some(Exit::Status(2)) {
                return false;
            }
            if waits {
                // What matters is what it says without `-w`.
                self.explanation.clear();
            }
        }
        false
    }

    /// `legacy` or `nft`, as `iptables -V` says; `None` where it is not there.
    fn flavour(&mut self, kernel: &mut impl Kernel, is_ipv6: bool) -> Option<Text<16>> {
        iptables::version(self.invocation, is_ipv6);
        let mut is_nft = false;
        let exit = self.run(kernel, |bytes| {
            is_nft |= bytes.windows(9).any(|word| word == b"nf_tables");
        });
        let words: &[u8] = if is_nft {
            b"iptables-nft"
        } else {
            b"iptables-legacy"
        };
        (exit == Some(Exit::Status(0))).then(|| Text::from_bytes(words))
    }

    /// Runs the prepared command to its end, at most `CHILD_DEADLINE`, and
    /// hands over what it writes on its standard output.
    fn run(&mut self, kernel: &mut impl Kernel, mut visit: impl FnMut(&[u8])) -> Option<Exit> {
        let child = kernel.spawn(self.invocation).ok()?;
        let deadline = kernel.boottime().after(CHILD_DEADLINE);
        let mut is_open = true;
        loop {
            // Before looking at the child: the signal of one that ends after
            // that look has to end the wait below.
            kernel.next_signal();
            let exit = kernel.reap(child.process);
            is_open &= self.drain(kernel, child, &mut visit);
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
        visit: &mut impl FnMut(&[u8]),
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
