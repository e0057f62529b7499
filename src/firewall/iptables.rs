//! The input of iptables and its output: restore batches, listings and
//! the undo command. Both flavours (legacy and nft) speak the same language.

use crate::address::{Family, Network};
use crate::firewall::comment::Comment;
use crate::kernel::Invocation;
use crate::table::Blank;
use crate::text::{Text, TextView, holds};

/// Our chain in the filter table.
pub const CHAIN: &[u8] = b"TCPPARSER";

/// What a rule drops of its source's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    #[default]
    Everything,
    /// What is addressed to this host: the source is a neighbour that we may
    /// route for. Never ICMPv6, by which the kernel asks for its link address
    /// (RFC 4861 section 7.2): unanswered, it would route nothing to it.
    ToHost,
    /// The same and ICMPv6, as earlier versions wrote it for IPv6.
    ToHostAndIcmpv6,
}

impl Scope {
    /// How such a rule is written now.
    pub fn renewed(self) -> Self {
        match self {
            Self::ToHostAndIcmpv6 => Self::ToHost,
            Self::Everything | Self::ToHost => self,
        }
    }
}

/// One block as a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The source it drops.
    pub source: Network,
    /// And what of it.
    pub scope: Scope,
    /// What makes it ours.
    pub comment: Comment,
}

impl Rule {
    /// The rule as `iptables -S` prints it, behind the chain's name.
    fn write(&self, out: &mut TextView) {
        out.put(b" -s ");
        self.source.write_cidr(out);
        if self.scope == Scope::ToHost && self.source.is_ipv6() {
            out.put(b" ! -p ");
            out.put(ICMPV6);
        }
        if self.scope != Scope::Everything {
            out.put(ADDRESSED_TO_HOST);
        }
        if !self.comment.is_none() {
            out.put(b" -m comment --comment \"");
            out.put(self.comment.as_bytes());
            out.put_byte(b'"');
        }
        out.put(b" -j DROP");
    }
}

const ADDRESSED_TO_HOST: &[u8] = b" -m addrtype --dst-type LOCAL";

/// The protocol's name in iptables (libxtables/xtables.c, xtables_chain_protos).
const ICMPV6: &[u8] = b"ipv6-icmp";
/// How it may be listed: /etc/protocols has the first word.
const ICMPV6_LISTED: [&[u8]; 3] = [ICMPV6, b"icmpv6", b"58"];

/// The two ways of iptables to keep its tables in the kernel: none sees what
/// the other one holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// Tables of nf_tables.
    #[default]
    Nft,
    /// Those of x_tables.
    Legacy,
}

impl Flavour {
    /// The flavour that a line of `iptables -V` names: versions before 1.8 are
    /// legacy and name none.
    pub fn read(line: &[u8]) -> Self {
        if holds(line, b"nf_tables") {
            Self::Nft
        } else {
            Self::Legacy
        }
    }

    /// The command of the flavour that is not this one.
    pub fn other(self) -> Program {
        match self {
            Self::Nft => Program::Legacy,
            Self::Legacy => Program::Nft,
        }
    }
}

/// A name under which iptables is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Program {
    /// `iptables`: of the flavour that this host prefers.
    #[default]
    Preferred,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Program {
    /// What to try where this one is missing.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Preferred => Some(Self::Nft),
            Self::Nft => Some(Self::Legacy),
            Self::Legacy => None,
        }
    }
}

/// The tool that reaches one filter table: one family's in one flavour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Whose tables it reaches.
    pub family: Family,
    /// Under which name.
    pub program: Program,
    /// Versions older than 1.4.20 (restore: 1.6.2) know no `-w`.
    pub waits: bool,
}

impl Tool {
    /// `iptables` or `ip6tables`, of whatever flavour and age.
    #[cfg(test)]
    pub const fn preferred(family: Family) -> Self {
        Self {
            family,
            program: Program::Preferred,
            waits: true,
        }
    }

    /// `iptables`, `ip6tables-legacy` …
    pub fn write_name(self, out: &mut TextView) {
        out.put(family_name(self.family));
        out.put(match self.program {
            Program::Preferred => b"",
            Program::Nft => b"-nft",
            Program::Legacy => b"-legacy",
        });
    }

    /// Begins `invocation`, behind whose program `suffix` follows.
    fn begin(self, invocation: &mut Invocation, suffix: &[u8]) {
        invocation.arguments.clear();
        invocation.input.clear();
        self.write_name(&mut invocation.arguments);
        invocation.arguments.put(suffix);
        invocation.arguments.put_byte(0);
    }

    /// Waits up to five seconds for the xtables lock: as two words, since `-w5`
    /// is refused, and never bare, which waits for ever (iptables(8)).
    #[inline(never)]
    fn put_wait(self, invocation: &mut Invocation) {
        if self.waits {
            invocation.arguments.put(b"-w\x005\0");
        }
    }

    /// Prepares `iptables -w 5 -S`: one listing of the filter table.
    pub fn list(self, invocation: &mut Invocation) {
        self.begin(invocation, b"");
        self.put_wait(invocation);
        invocation.arguments.put(b"-S\0");
    }

    /// Prepares `iptables -V`, which names the flavour.
    pub fn version(self, invocation: &mut Invocation) {
        self.begin(invocation, b"");
        invocation.arguments.put(b"-V\0");
    }
}

/// The family's tool.
pub fn family_name(family: Family) -> &'static [u8] {
    match family {
        Family::V4 => b"iptables",
        Family::V6 => b"ip6tables",
    }
}

/// The longest line of a batch.
pub const LINE_MAX: usize = 320;

/// A restore batch under construction: all changes of one family, applied as
/// one transaction (iptables-restore(8), --noflush).
pub struct Batch<'a> {
    invocation: &'a mut Invocation,
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new(invocation: &'a mut Invocation, tool: Tool) -> Self {
        tool.begin(invocation, b"-restore");
        tool.put_wait(invocation);
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
    #[inline(never)]
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

    #[inline(never)]
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
    #[inline(never)]
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
        let rest = behind(line, b"-A ").and_then(|rest| behind(rest, hook.name()));
        if let Some(rest) = rest.filter(|rest| rest.starts_with(b" ")) {
            return Listed::HookRule(hook, rest == b" -j TCPPARSER");
        }
    }
    match behind(line, b"-A TCPPARSER ") {
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
#[inline(never)]
fn read_rule(rest: &[u8]) -> Option<Rule> {
    let rest = behind(rest, b"-s ")?;
    let end = rest.iter().position(|byte| *byte == b' ')?;
    let (source, rest) = rest.split_at_checked(end)?;
    let source = Network::parse(source)?;
    let without_icmpv6 = behind(rest, b" ! -p ").and_then(|rest| {
        let mut words = ICMPV6_LISTED.iter();
        words.find_map(|word| behind(rest, word))
    });
    let (scope, rest) = match (without_icmpv6, behind(rest, ADDRESSED_TO_HOST)) {
        (Some(rest), _) if source.is_ipv6() => (Scope::ToHost, behind(rest, ADDRESSED_TO_HOST)?),
        (None, Some(rest)) if source.is_ipv6() => (Scope::ToHostAndIcmpv6, rest),
        (None, Some(rest)) => (Scope::ToHost, rest),
        (_, _) => (Scope::Everything, rest),
    };
    let comment = match behind(rest, b" -m comment --comment \"") {
        Some(rest) => Comment::from_listing(rest.strip_suffix(b"\" -j DROP")?)?,
        None if rest == b" -j DROP" => Comment::BLANK,
        None => return None,
    };
    Some(Rule {
        source,
        scope,
        comment,
    })
}

/// What follows `prefix`. Out of line: each comparison is larger than the call.
#[inline(never)]
fn behind<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    text.strip_prefix(prefix)
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

    /// Forgets the line so far.
    pub fn clear(&mut self) {
        self.line.clear();
    }

    /// Takes in `bytes` up to the end of a line, and hands back what is behind
    /// it; `None` where no line ends there.
    pub fn feed<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (head, tail) = bytes.split_at_checked(end.unwrap_or(bytes.len()))?;
        self.line.put(head);
        tail.get(1..)
    }

    /// The line so far.
    pub fn line(&self) -> &[u8] {
        self.line.as_bytes()
    }

    /// What it says. One longer than any of ours is not ours.
    pub fn listed(&self) -> Listed {
        match read_line(self.line()) {
            Listed::HookRule(hook, _) if self.line.is_truncated() => Listed::HookRule(hook, false),
            Listed::Ours(_) | Listed::Plain(_) if self.line.is_truncated() => Listed::Foreign,
            listed => listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPES: [Scope; 3] = [Scope::Everything, Scope::ToHost, Scope::ToHostAndIcmpv6];

    fn rule(source: &str, scope: Scope) -> Rule {
        let comment = b"tcpparser v1 b=0badcafe e=700 s=1 t=100 d=? p=22,25,80,443";
        Rule {
            source: Network::parse(source.as_bytes()).unwrap(),
            scope,
            comment: Comment::from_listing(comment).unwrap(),
        }
    }

    #[test]
    fn a_batch_to_the_letter() {
        let mut invocation = Invocation::new();
        let mut batch = Batch::new(&mut invocation, Tool::preferred(Family::V4));
        batch.make_chain();
        batch.add_jump(Hook::Input);
        batch.add_jump(Hook::Forward);
        batch.add(&rule("10.0.0.2", Scope::ToHost));
        batch.remove(&rule("192.0.2.1", Scope::Everything));
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
        for (source, scopes) in [
            ("10.0.0.2", &SCOPES[..2]),
            ("2001:db8:1:2::/64", &SCOPES),
            ("2001:db8::1", &SCOPES),
        ] {
            for scope in scopes {
                let rule = rule(source, *scope);
                let mut text: Text<LINE_MAX> = Text::new();
                text.put(b"-A TCPPARSER");
                rule.write(&mut text);
                assert!(!text.is_truncated());
                assert_eq!(read_line(text.as_bytes()), Listed::Ours(rule));
            }
        }
    }

    /// What tools of both flavours, with and without an /etc/protocols, list.
    #[test]
    fn a_rule_that_spares_icmpv6() {
        let rest = "-m addrtype --dst-type LOCAL -m comment --comment \
            \"tcpparser v1 b=0badcafe e=700 s=1 t=100 d=? p=22,25,80,443\" -j DROP";
        let line = std::format!("-A TCPPARSER -s 2001:db8::1/128 ! -p ipv6-icmp {rest}");
        let mut text: Text<LINE_MAX> = Text::new();
        text.put(b"-A TCPPARSER");
        rule("2001:db8::1", Scope::ToHost).write(&mut text);
        assert_eq!(std::str::from_utf8(text.as_bytes()).unwrap(), line);
        for (source, what, expected) in [
            ("2001:db8::1/128", "! -p ipv6-icmp ", Some(Scope::ToHost)),
            ("2001:db8::1/128", "! -p icmpv6 ", Some(Scope::ToHost)),
            ("2001:db8::1/128", "! -p 58 ", Some(Scope::ToHost)),
            ("2001:db8::1/128", "", Some(Scope::ToHostAndIcmpv6)),
            ("10.0.0.9/32", "", Some(Scope::ToHost)),
            ("2001:db8::1/128", "! -p tcp ", None),
            ("2001:db8::1/128", "-p ipv6-icmp ", None),
            ("2001:db8::1/128", "! -p 580 ", None),
            ("10.0.0.9/32", "! -p ipv6-icmp ", None),
        ] {
            let line = std::format!("-A TCPPARSER -s {source} {what}{rest}");
            let expected =
                expected.map_or(Listed::Foreign, |scope| Listed::Ours(rule(source, scope)));
            assert_eq!(read_line(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn tools_of_both_flavours() {
        let mut names = std::vec::Vec::new();
        for family in Family::ALL {
            let mut command = Some(Program::Preferred);
            while let Some(one) = command {
                let tool = Tool {
                    program: one,
                    ..Tool::preferred(family)
                };
                let mut invocation = Invocation::new();
                Batch::new(&mut invocation, tool).commit();
                let words = invocation.arguments.as_bytes().split(|byte| *byte == 0);
                names.push(
                    std::string::String::from_utf8(words.take(1).next().unwrap().to_vec()).unwrap(),
                );
                command = one.next();
            }
        }
        assert_eq!(
            names,
            [
                "iptables-restore",
                "iptables-nft-restore",
                "iptables-legacy-restore",
                "ip6tables-restore",
                "ip6tables-nft-restore",
                "ip6tables-legacy-restore"
            ]
        );
        for (line, flavour, other) in [
            ("iptables v1.8.9 (nf_tables)", Flavour::Nft, Program::Legacy),
            ("iptables v1.8.9 (legacy)", Flavour::Legacy, Program::Nft),
            ("iptables v1.4.21", Flavour::Legacy, Program::Nft),
        ] {
            assert_eq!(Flavour::read(line.as_bytes()), flavour);
            assert_eq!(flavour.other(), other);
        }
    }

    #[rustfmt::skip]
    #[test]
    fn other_lines() {
        let rule = "-A TCPPARSER -s 10.0.0.9/32";
        for (line, expected) in [
            ("-P INPUT ACCEPT", Listed::Other),
            ("-N TCPPARSER", Listed::Chain),
            ("-N TCPPARSER2", Listed::Other),
            ("-A INPUT -j TCPPARSER", Listed::HookRule(Hook::Input, true)),
            ("-A INPUT -i eth0 -j TCPPARSER", Listed::HookRule(Hook::Input, false)),
            ("-A INPUTS -j TCPPARSER", Listed::Other),
            ("-A FORWARD -j ACCEPT", Listed::HookRule(Hook::Forward, false)),
            ("{rule} -m comment --comment \"mine\" -j DROP", Listed::Foreign),
            ("{rule} -p tcp -m comment --comment \"tcpparser v1\" -j DROP", Listed::Foreign),
            ("{rule} -m comment --comment \"tcpparser v1\" -j ACCEPT", Listed::Foreign),
            ("", Listed::Other),
        ] {
            let line = line.replace("{rule}", rule);
            assert_eq!(read_line(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn a_rule_without_comment_is_merely_plain() {
        for scope in [Scope::Everything, Scope::ToHost] {
            let plain = Rule {
                comment: Comment::BLANK,
                ..rule("10.0.0.9", scope)
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
            for mut rest in [head, tail] {
                while let Some(behind) = lines.feed(rest) {
                    rest = behind;
                    seen.push(lines.listed());
                    lines.clear();
                }
            }
            assert_eq!(seen, whole, "split at {split}");
        }
    }
}
