//! What iptables is told and what it answers: restore batches, listings and
//! the undo command. Both flavours (legacy and nft) speak the same language.

use crate::address::Network;
use crate::firewall::comment::Comment;
use crate::kernel::Invocation;
use crate::table::Blank;
use crate::text::{Text, TextView};

/// Our chain in the filter table.
pub const CHAIN: &[u8] = b"TCPPARSER";

/// One block as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom it drops.
    pub source: Network,
    /// Only what is addressed to this host: the source is a neighbour that we
    /// may route for.
    pub host_only: bool,
    /// What makes it ours.
    pub comment: Comment,
}

impl Rule {
    /// The rule as `iptables -S` prints it, behind the chain's name.
    fn write(&self, out: &mut TextView) {
        out.put(b" -s ");
        self.source.write_cidr(out);
        if self.host_only {
            out.put(b" -m addrtype --dst-type LOCAL");
        }
        if !self.comment.is_none() {
            out.put(b" -m comment --comment \"");
            out.put(self.comment.as_bytes());
            out.put_byte(b'"');
        }
        out.put(b" -j DROP");
    }
}

fn program(is_ipv6: bool) -> &'static [u8] {
    if is_ipv6 { b"ip6tables" } else { b"iptables" }
}

/// The longest line of a batch.
pub const LINE_MAX: usize = 320;

/// Prepares `iptables -w 5 -S`: one listing of the filter table.
pub fn list(invocation: &mut Invocation, is_ipv6: bool, waits: bool) {
    invocation.arguments.clear();
    invocation.input.clear();
    invocation.arguments.put(program(is_ipv6));
    invocation.arguments.put(b"\0");
    put_wait(invocation, waits);
    invocation.arguments.put(b"-S\0");
}

/// Waits up to five seconds for the xtables lock: as two words, since `-w5` is
/// refused, and never bare, which waits for ever (iptables(8)).
fn put_wait(invocation: &mut Invocation, waits: bool) {
    if waits {
        invocation.arguments.put(b"-w\x005\0");
    }
}

/// Prepares `iptables -V`, which names the flavour.
pub fn version(invocation: &mut Invocation, is_ipv6: bool) {
    invocation.arguments.clear();
    invocation.input.clear();
    invocation.arguments.put(program(is_ipv6));
    invocation.arguments.put(b"\0-V\0");
}

/// A restore batch under construction: all changes of one family, applied as
/// one transaction (iptables-restore(8), --noflush).
pub struct Batch<'a> {
    invocation: &'a mut Invocation,
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new(invocation: &'a mut Invocation, is_ipv6: bool, waits: bool) -> Self {
        invocation.arguments.clear();
        invocation.input.clear();
        invocation.arguments.put(program(is_ipv6));
        invocation.arguments.put(b"-restore\0");
        put_wait(invocation, waits);
        invocation.arguments.put(b"--noflush\0");
        invocation.input.put(b"*filter\n");
        Self { invocation }
    }

    /// Whether another rule, and the end of the batch, still fit.
    pub fn has_room(&self) -> bool {
        self.invocation.input.room() >= 2 * LINE_MAX
    }

    /// Makes the chain. Not by a line `:CHAIN`, which would empty one that is
    /// there already.
    pub fn make_chain(&mut self) {
        self.line(b"-N ", CHAIN, b"");
    }

    /// Puts the jump at position 1 of `hook`, INPUT or FORWARD: above any rule
    /// that accepts established connections.
    pub fn add_jump(&mut self, hook: Hook) {
        self.line(b"-I ", hook.name(), b" 1 -j TCPPARSER");
    }

    /// Takes one jump away.
    pub fn remove_jump(&mut self, hook: Hook) {
        self.line(b"-D ", hook.name(), b" -j TCPPARSER");
    }

    /// Takes the empty chain away.
    pub fn remove_chain(&mut self) {
        self.line(b"-X ", CHAIN, b"");
    }

    /// Adds a rule.
    pub fn add(&mut self, rule: &Rule) {
        self.rule(b"-A ", rule);
    }

    /// Takes a rule away.
    pub fn remove(&mut self, rule: &Rule) {
        self.rule(b"-D ", rule);
    }

    /// Ends the batch.
    pub fn commit(self) {
        self.invocation.input.put(b"COMMIT\n");
    }

    fn rule(&mut self, verb: &[u8], rule: &Rule) {
        let input = &mut self.invocation.input;
        input.put(verb);
        input.put(CHAIN);
        rule.write(input);
        input.put_byte(b'\n');
    }

    fn line(&mut self, verb: &[u8], chain: &[u8], rest: &[u8]) {
        let input = &mut self.invocation.input;
        input.put(verb);
        input.put(chain);
        input.put(rest);
        input.put_byte(b'\n');
    }
}

/// The built-in chains that jump to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets for this host.
    Input,
    /// Packets routed through it.
    Forward,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Input, Self::Forward];

    /// The chain's name.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::Input => b"INPUT",
            Self::Forward => b"FORWARD",
        }
    }
}

/// What one line of a listing says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Our chain is there.
    Chain,
    /// A rule of INPUT or FORWARD; whether it is our jump.
    HookRule(Hook, bool),
    /// A rule of ours.
    Ours(Rule),
    /// A rule in our chain that would be ours if it had our comment.
    Plain(Rule),
    /// A rule in our chain that is not ours.
    Foreign,
    /// Nothing that concerns us.
    Other,
}

/// Understands one line of `iptables -S`.
pub fn read_line(line: &[u8]) -> Listed {
    if line == b"-N TCPPARSER" {
        return Listed::Chain;
    }
    for hook in Hook::ALL {
        let rest = line
            .strip_prefix(b"-A ")
            .and_then(|rest| rest.strip_prefix(hook.name()));
        if let Some(rest) = rest.filter(|rest| rest.starts_with(b" ")) {
            return Listed::HookRule(hook, rest == b" -j TCPPARSER");
        }
    }
    match line.strip_prefix(b"-A TCPPARSER ") {
        Some(rest) => match read_rule(rest) {
            Some(rule) if rule.comment.is_none() => Listed::Plain(rule),
            Some(rule) => Listed::Ours(rule),
            None => Listed::Foreign,
        },
        None => Listed::Other,
    }
}

/// Exactly the shapes that `Rule::write` makes; anything else is not ours to
/// touch.
fn read_rule(rest: &[u8]) -> Option<Rule> {
    let rest = rest.strip_prefix(b"-s ")?;
    let end = rest.iter().position(|byte| *byte == b' ')?;
    let (source, rest) = rest.split_at_checked(end)?;
    let source = Network::parse(source)?;
    let (host_only, rest) = match rest.strip_prefix(b" -m addrtype --dst-type LOCAL") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let comment = match rest.strip_prefix(b" -m comment --comment \"") {
        Some(rest) => Comment::from_listing(rest.strip_suffix(b"\" -j DROP")?)?,
        None if rest == b" -j DROP" => Comment::BLANK,
        None => return None,
    };
    Some(Rule {
        source,
        host_only,
        comment,
    })
}

/// Cuts a listing of any length into lines; a line longer than any of ours is
/// passed over.
pub struct Lines {
    line: Text<{ LINE_MAX }>,
}

impl Lines {
    /// Nothing read yet.
    pub const fn new() -> Self {
        Self { line: Text::new() }
    }

    /// Forgets a torn line.
    pub fn clear(&mut self) {
        self.line.clear();
    }

    /// Takes in `bytes` and hands each whole line to `visit`.
    pub fn feed(&mut self, bytes: &[u8], mut visit: impl FnMut(&[u8], Listed)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at_checked(end).unwrap_or((rest, &[]));
            self.line.put(head);
            rest = tail.get(1..).unwrap_or(&[]);
            let listed = match read_line(self.line.as_bytes()) {
                // Longer than any of ours.
                Listed::HookRule(hook, _) if self.line.is_truncated() => {
                    Listed::HookRule(hook, false)
                }
                Listed::Ours(_) | Listed::Plain(_) if self.line.is_truncated() => Listed::Foreign,
                listed => listed,
            };
            visit(self.line.as_bytes(), listed);
            self.line.clear();
        }
        self.line.put(rest);
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(source: &str, host_only: bool) -> Rule {
        let comment = b"tcpparser v1 b=0badcafe e=700 s=1 t=100 d=? p=22,25,80,443";
        Rule {
            source: Network::parse(source.as_bytes()).unwrap(),
            host_only,
            comment: Comment::from_listing(comment).unwrap(),
        }
    }

    #[test]
    fn a_batch_to_the_letter() {
        let mut invocation = Invocation::new();
        let mut batch = Batch::new(&mut invocation, false, true);
        batch.make_chain();
        batch.add_jump(Hook::Input);
        batch.add_jump(Hook::Forward);
        batch.add(&rule("10.0.0.2", true));
        batch.remove(&rule("192.0.2.1", false));
        batch.commit();
        assert_eq!(
            invocation.arguments.as_bytes(),
            b"iptables-restore\0-w\x005\0--noflush\0"
        );
        let expected = "*filter\n-N TCPPARSER\n-I INPUT 1 -j TCPPARSER\n-I FORWARD 1 -j TCPPARSER\n\
            -A TCPPARSER -s 10.0.0.2/32 -m addrtype --dst-type LOCAL -m comment --comment \
            \"tcpparser v1 b=0badcafe e=700 s=1 t=100 d=? p=22,25,80,443\" -j DROP\n\
            -D TCPPARSER -s 192.0.2.1/32 -m comment --comment \
            \"tcpparser v1 b=0badcafe e=700 s=1 t=100 d=? p=22,25,80,443\" -j DROP\nCOMMIT\n";
        assert_eq!(
            std::str::from_utf8(invocation.input.as_bytes()).unwrap(),
            expected
        );
    }

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        for source in ["10.0.0.2", "2001:db8:1:2::/64", "2001:db8::1"] {
            for host_only in [false, true] {
                let rule = rule(source, host_only);
                let mut text: Text<LINE_MAX> = Text::new();
                text.put(b"-A TCPPARSER");
                rule.write(&mut text);
                assert!(!text.is_truncated());
                assert_eq!(read_line(text.as_bytes()), Listed::Ours(rule));
            }
        }
    }

    #[test]
    fn other_lines() {
        for (line, expected) in [
            ("-P INPUT ACCEPT", Listed::Other),
            ("-N TCPPARSER", Listed::Chain),
            ("-N TCPPARSER2", Listed::Other),
            ("-A INPUT -j TCPPARSER", Listed::HookRule(Hook::Input, true)),
            (
                "-A INPUT -i eth0 -j TCPPARSER",
                Listed::HookRule(Hook::Input, false),
            ),
            ("-A INPUTS -j TCPPARSER", Listed::Other),
            (
                "-A FORWARD -j ACCEPT",
                Listed::HookRule(Hook::Forward, false),
            ),
            (
                "-A TCPPARSER -s 10.0.0.9/32 -m comment --comment \"mine\" -j DROP",
                Listed::Foreign,
            ),
            (
                "-A TCPPARSER -s 10.0.0.9/32 -p tcp -m comment --comment \"tcpparser v1\" -j DROP",
                Listed::Foreign,
            ),
            (
                "-A TCPPARSER -s 10.0.0.9/32 -m comment --comment \"tcpparser v1\" -j ACCEPT",
                Listed::Foreign,
            ),
            ("", Listed::Other),
        ] {
            assert_eq!(read_line(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn a_rule_without_comment_is_merely_plain() {
        for host_only in [false, true] {
            let plain = Rule {
                comment: Comment::BLANK,
                ..rule("10.0.0.9", host_only)
            };
            let mut text: Text<LINE_MAX> = Text::new();
            text.put(b"-A TCPPARSER");
            plain.write(&mut text);
            assert_eq!(read_line(text.as_bytes()), Listed::Plain(plain));
        }
    }

    #[test]
    fn lines_survive_every_split() {
        let long = std::format!("-A INPUT {}\n", "x".repeat(1_000));
        let text =
            std::format!("-N TCPPARSER\n{long}-A INPUT -j TCPPARSER\n-A FORWARD -j ACCEPT\ntorn");
        let whole = [
            Listed::Chain,
            Listed::HookRule(Hook::Input, false),
            Listed::HookRule(Hook::Input, true),
            Listed::HookRule(Hook::Forward, false),
        ];
        for split in 0..text.len() {
            let (head, tail) = text.as_bytes().split_at(split);
            let mut lines = Lines::new();
            let mut seen = std::vec::Vec::new();
            lines.feed(head, |_, listed| seen.push(listed));
            lines.feed(tail, |_, listed| seen.push(listed));
            assert_eq!(seen, whole, "split at {split}");
        }
    }
}
