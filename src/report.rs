//! The lines of standard output, to the letter.

use core::net::IpAddr;
use core::ops::{Deref, DerefMut};

use crate::address::{ENDPOINT_TEXT, Endpoint, Family, Network, write_address};
use crate::connections::Direction;
use crate::detector::{Data, Scan};
use crate::firewall::comment::{Facts, put_ports};
use crate::firewall::iptables::{Hook, Rule, Tool};
use crate::firewall::{EndReason, Failure, FailureReason, Standing};
use crate::host::Protection;
use crate::kernel::Errno;
use crate::label::Label as _;
use crate::probes::Target;
use crate::text::{Text, TextView, split};
use crate::time::{Calendar, Duration, Instant};

/// The longest line: a scan of 64 ports, or a block with its undo command.
pub const LINE_MAX: usize = 640;

/// What a line is about, and its word for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// Of the list of connections.
    Connection,
    Scan,
    Blocked,
    NotBlocked,
    Unblocked,
    BlockFailed,
    Probes,
}

impl Label {
    fn words(self) -> &'static [u8] {
        match self {
            Self::Connection => b"New connection",
            Self::Scan => b"Port scan detected",
            Self::Blocked => b"Blocked",
            Self::NotBlocked => b"Not blocked",
            Self::Unblocked => b"Unblocked",
            Self::BlockFailed => b"Block failed",
            Self::Probes => b"Ports probed",
        }
    }
}

/// One line without its newline.
pub struct Line {
    /// None where it has neither time nor label.
    pub label: Option<Label>,
    text: Text<LINE_MAX>,
}

impl Line {
    /// An empty one. What writes a line writes into such a one, since its bytes
    /// would be moved to hand it back.
    #[inline(never)]
    pub const fn new() -> Self {
        Self {
            label: None,
            text: Text::new(),
        }
    }
}

impl Deref for Line {
    type Target = TextView;

    fn deref(&self) -> &TextView {
        &self.text
    }
}

impl DerefMut for Line {
    fn deref_mut(&mut self) -> &mut TextView {
        &mut self.text
    }
}

/// The first lines of every run.
pub const START: &[u8] = b"tcpparser starting...\n\n";
/// What a scheduled reading without a connection prints.
pub const NO_CONNECTION: &[u8] = b"No TCP peer connection established yet";

/// Columns of the time, of the label and of who it is about.
pub const STAMP_WIDTH: usize = 21;
pub const LABEL_WIDTH: usize = 18;
const WHO_WIDTH: usize = 21;

fn begin(line: &mut Line, time: Calendar, label: Label, who: &[u8]) {
    line.label = Some(label);
    time.write(line);
    line.put(b": ");
    line.put_right(label.words(), LABEL_WIDTH);
    line.put(b": ");
    line.put_right(who, WHO_WIDTH);
    line.put_byte(b' ');
}

#[inline(never)]
fn begin_source(line: &mut Line, time: Calendar, label: Label, source: Network) {
    let mut who: Text<48> = Text::new();
    source.write(&mut who);
    begin(line, time, label, who.as_bytes());
}

#[inline(never)]
fn about_source(line: &mut Line, time: Calendar, label: Label, source: Network, words: &[u8]) {
    begin_source(line, time, label, source);
    line.put(words);
}

#[inline(never)]
fn begin_ports(
    line: &mut Line,
    time: Calendar,
    label: Label,
    source: Network,
    destination: IpAddr,
) {
    begin_source(line, time, label, source);
    line.put(b"-> ");
    write_address(line, destination);
    line.put(b" on ports ");
}

/// A connection of the list, or so many of one peer with one port of a service,
/// whose other ports differ.
pub fn connections(
    line: &mut Line,
    time: Calendar,
    remote: Endpoint,
    direction: Direction,
    local: Endpoint,
    count: u64,
) {
    let is_inbound = direction == Direction::Inbound;
    let mut who: Text<ENDPOINT_TEXT> = Text::new();
    write_end(&mut who, remote, count == 1 || !is_inbound);
    begin(line, time, Label::Connection, who.as_bytes());
    line.put(if is_inbound { b"-> " } else { b"<- " });
    write_end(line, local, count == 1 || is_inbound);
    if count > 1 {
        line.put(b", ");
        put_count(line, count, b" connection");
    }
}

#[inline(never)]
fn write_end(out: &mut TextView, end: Endpoint, has_port: bool) {
    if has_port {
        end.write(out);
    } else {
        write_address(out, end.address);
    }
}

/// The end of a list that is longer than what was kept of it.
pub fn more(line: &mut Line, count: u64) {
    line.put("… and ".as_bytes());
    line.put_decimal(count);
    line.put(b" more");
}

/// A port scan.
pub fn scan(line: &mut Line, time: Calendar, scan: &Scan) {
    begin_ports(line, time, Label::Scan, scan.source, scan.local);
    for (index, port) in scan.ports.iter().enumerate() {
        if index > 0 {
            line.put_byte(b',');
        }
        line.put_decimal(u64::from(*port));
    }
    if scan.members > 0 {
        line.put(b", from ");
        line.put_decimal(scan.members as u64);
        line.put(b" addresses");
    }
    if !scan.is_new {
        line.put(b" (before the start)");
    }
}

/// A source that probes ports, of which a few are enough.
pub fn probes(line: &mut Line, time: Calendar, probing: &Scan, target: Target) {
    begin_ports(line, time, Label::Probes, probing.source, probing.local);
    let mut ports: Text<48> = Text::new();
    put_ports(&mut ports, &probing.ports);
    line.put(ports.as_bytes());
    if probing.ports.is_full() {
        line.put(b" or more");
    }
    if target == Target::Behind {
        line.put(b" behind this host");
    }
    let mut before: &[u8] = b" (";
    // In the order of `Kind`.
    for (number, kind) in split(b"SYN NULL FIN XMAS", b' ').enumerate() {
        if probing.marks >> number & 1 != 0 {
            line.put(before);
            line.put(kind);
            before = b", ";
        }
    }
    line.put(b"; no handshake: may be forged, not blocked)");
}

/// A block that the kernel has: how long, whether data was sent, how to undo.
pub fn blocked(
    line: &mut Line,
    time: Calendar,
    rule: &Rule,
    length: Option<Duration>,
    data: Data,
    advice: &Advice,
) {
    begin_source(line, time, Label::Blocked, rule.source);
    match length {
        Some(length) => {
            line.put(b"for ");
            length.write(line);
        }
        None => line.put(b"for ever"),
    }
    line.put(match data {
        Data::Unknown => b", data sent: unknown, undo: ",
        Data::Silent => b", data sent: no, undo: ",
        Data::Sent => b", data sent: yes, undo: ",
    });
    let mut whom: Text<48> = Text::new();
    rule.source.write(&mut whom);
    put_undo(line, whom.as_bytes(), advice);
}

/// What undo commands depend on.
pub struct Advice<'a> {
    /// The root directory of the tools; empty: ours.
    pub exec_root: &'a [u8],
    /// They are typed outside of this container, whose name is not known here.
    pub is_container: bool,
}

/// Appends an undo command. A directory's name that a shell may read as more
/// than a name stays out.
#[inline(never)]
fn put_undo(out: &mut TextView, whom: &[u8], advice: &Advice) {
    if advice.is_container {
        out.put(b"docker exec NAME ");
    }
    out.put(b"tcpparser --unblock ");
    out.put(whom);
    let directory = advice.exec_root;
    if directory.is_empty() {
        return;
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-".contains(byte);
    out.put(b" --exec-root ");
    out.put(if directory.iter().all(is_plain) {
        directory
    } else {
        b"DIR"
    });
}

/// A scan that no block follows.
pub fn not_blocked(line: &mut Line, time: Calendar, source: Network, why: &[u8]) {
    about_source(line, time, Label::NotBlocked, source, why);
}

/// The end of a block, or of the wish for one.
pub fn unblocked(
    line: &mut Line,
    time: Calendar,
    source: Network,
    reason: EndReason,
    program: &[u8],
) {
    let words: &[u8] = match reason {
        // A block that became part of a wider one ends without a line.
        EndReason::Expired | EndReason::Widened => b"its time is over",
        EndReason::Operator => b"its rule was removed by ",
        EndReason::Protected => b"it holds a protected address now",
        EndReason::Evicted => b"the chain is full, a newer block takes its place",
        EndReason::NeverStood => b"its time was over before the firewall took it",
    };
    let label = match reason {
        EndReason::NeverStood => Label::BlockFailed,
        _ => Label::Unblocked,
    };
    about_source(line, time, label, source, words);
    if reason == EndReason::Operator {
        line.put(if program.is_empty() {
            b"somebody"
        } else {
            program
        });
    }
}

/// A block that is not in the kernel yet.
pub fn block_failed(line: &mut Line, time: Calendar, source: Network, why: &[u8]) {
    about_source(line, time, Label::BlockFailed, source, why);
}

/// Words for a failed command.
pub fn failure(failure: &Failure) -> Text<320> {
    let mut text = Text::new();
    failure.write_name(&mut text);
    if !failure.is_listing && failure.tool.is_some() {
        text.put(b"-restore");
    }
    put_reason(&mut text, failure);
    let explanation = crate::text::trim(failure.explanation.as_bytes());
    if !explanation.is_empty() {
        text.put(b": ");
        text.put(explanation);
    }
    text.put(b"; it is tried again");
    text
}

/// Appends what a command did, for a line that begins with its name.
pub fn put_reason(text: &mut TextView, failure: &Failure) {
    match failure.reason {
        FailureReason::Missing => {
            text.put(b" is not installed");
            // What is said says of another root that it is not there.
            if failure.explanation.is_empty() {
                text.put(b": install the package iptables");
                // One of its own on some systems.
                if failure.tool.is_some_and(|tool| tool.family == Family::V6) {
                    text.put(b" or ip6tables");
                }
            }
        }
        FailureReason::Unstarted => text.put(b" could not be started"),
        FailureReason::Status(status) => {
            text.put(b" exited with ");
            text.put_decimal(u64::from(status));
        }
        FailureReason::Signal(signal) => {
            text.put(b" was ended by signal ");
            text.put_decimal(u64::from(signal));
        }
        FailureReason::Deadline => text.put(b" did not end in time"),
        // Of an element: the set has no room.
        FailureReason::Error(Errno::ENFILE) => text.put(b" refuses: the set is full"),
        FailureReason::Error(error) => {
            text.put(b" refuses: ");
            text.put(error_words(error).as_bytes());
        }
    }
}

/// An errno in words, for a diagnostic.
pub fn error_words(error: Errno) -> Text<48> {
    const ERRORS: [Errno; 12] = [
        Errno::ENOENT,
        Errno::EACCES,
        Errno::EPERM,
        Errno::EADDRINUSE,
        Errno::ELOOP,
        Errno::EEXIST,
        Errno::ECONNREFUSED,
        Errno::ETIMEDOUT,
        Errno::EADDRNOTAVAIL,
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::EOPNOTSUPP,
    ];
    // In that order.
    let words = b"no such file\npermission denied\npermission denied\naddress in use\n\
        a symbolic link\nthe name is taken\nconnection refused\nno answer in time\n\
        address not there\ntoo many open files\ntoo many open files\n\
        not supported by this kernel\nerror ";
    let known = ERRORS.iter().position(|known| *known == error);
    let place = known.unwrap_or(ERRORS.len());
    let mut text = Text::from_bytes(split(words, b'\n').nth(place).unwrap_or_default());
    if known.is_none() {
        text.put_decimal(error.0.unsigned_abs().into());
    }
    text
}

/// Words for a jump that is not the first rule and stays where it is.
pub fn jump_stays(hook: Hook, tool: Tool, wait: Duration, above: &[u8]) -> Text<320> {
    let mut text = Text::new();
    tool.write_name(&mut text);
    text.put(b": the jump in ");
    text.put(hook.name());
    text.put(b" was moved twice and stays behind for ");
    wait.write(&mut text);
    text.put(b": ");
    text.put(above);
    text
}

/// The first line of --list.
pub const LIST_HEAD: &[u8] =
    b"SOURCE                                      SINCE               LEFT      STRIKES FIREWALL        PORTS";

/// One line of --list. Without `facts` its times are those of another boot.
pub fn listed_block(
    line: &mut Line,
    rule: &Rule,
    facts: Option<Facts>,
    since: Option<Calendar>,
    now: Instant,
    firewall: &[u8],
) {
    rule.source.write(line);
    put_blanks(line, 44);
    match since {
        Some(since) => since.write(line),
        None => line.put(b"before this boot"),
    }
    put_blanks(line, 64);
    match facts.map(|facts| facts.end_seconds) {
        None => line.put(b"?"),
        Some(0) => line.put(b"for ever"),
        Some(end) => {
            let left = now.until(Instant::from_secs(end)).as_secs_rounded_up();
            write_left(line, left);
        }
    }
    put_blanks(line, 74);
    match facts {
        Some(facts) => line.put_decimal(u64::from(facts.strikes)),
        None => line.put(b"?"),
    }
    put_blanks(line, 82);
    line.put(firewall);
    put_blanks(line, 98);
    // Last, since there can be many.
    line.put(Facts::ports(&rule.comment));
}

/// What --list says first of what is never blocked: no line of it begins with an
/// address, so that a script that reads those of blocks finds none.
pub const NEVER_BLOCKED: &[u8] =
    b"never blocked: loopback, multicast, broadcast, 169.254.0.0/16 (on any host)";

/// What is never blocked here, or more of that, and why.
pub fn never_blocked(line: &mut Line, network: Option<Network>, reason: Protection) {
    line.put(b"never blocked: ");
    match network {
        Some(network) => network.write(line),
        None => line.put("…".as_bytes()),
    }
    line.put(b" (");
    line.put(reason.words());
    line.put(b")");
}

/// Appends blanks up to the next column, at least one.
#[inline(never)]
fn put_blanks(line: &mut Line, column: usize) {
    line.put_byte(b' ');
    for _ in line.as_bytes().len()..column {
        line.put_byte(b' ');
    }
}

/// Appends `6d23h`, `9m50s`: the two largest units.
#[inline(never)]
fn write_left(out: &mut TextView, seconds: u64) {
    let mut rest = seconds;
    let mut shown = 0;
    for (size, unit) in [86_400, 3_600, 60, 1].into_iter().zip(b"dhms") {
        let count = rest.checked_div(size).unwrap_or(0);
        rest -= count * size;
        if (count > 0 || shown > 0 || size == 1) && shown < 2 {
            out.put_decimal(count);
            out.put_byte(*unit);
            shown += 1;
        }
    }
}

/// Appends `1 scan`, `2 scans`.
fn put_count(out: &mut TextView, count: u64, what: &[u8]) {
    out.put_decimal(count);
    out.put(what);
    if count != 1 {
        out.put_byte(b's');
    }
}

/// What the last day brought, and how many blocks stand.
pub fn day(line: &mut Line, scans: u64, blocks: u64, standing: u64) {
    line.put(b"24 h: ");
    put_count(line, scans, b" scan");
    line.put(b", ");
    put_count(line, blocks, b" block");
    line.put(b", ");
    line.put_decimal(standing);
    line.put(stand(standing));
}

fn stand(count: u64) -> &'static [u8] {
    if count == 1 { b" stands" } else { b" stand" }
}

/// The last line where blocks stand: how many, and how to lift them.
pub fn exit(line: &mut Line, standing: u64, advice: &Advice) {
    put_count(line, standing, b" block");
    line.put(stand(standing));
    line.put(b"; to lift all: ");
    // It is not there any more.
    if advice.is_container {
        line.put(b"docker start NAME; ");
    }
    put_undo(line, b"all", advice);
}

/// Words for a diagnostic about a listen address.
pub fn endpoint_words(prefix: &[u8], endpoint: Endpoint, suffix: &[u8]) -> Text<160> {
    let mut text = Text::new();
    text.put(prefix);
    endpoint.write(&mut text);
    text.put(suffix);
    text
}

/// The first line of `/blocks`: its columns, by tabs.
pub const BLOCKS_HEAD: &[u8] = b"source\tsince\tleft\tstrikes\tports\tplace\n";

/// Appends one of its other lines, without its end. Both clocks go on alike, so
/// that `since` is the same each time.
#[inline(never)]
pub fn put_block(out: &mut TextView, block: &Standing, now: Instant, unix_nanoseconds: u64) {
    let facts = &block.facts;
    let age = now.since(Instant::from_secs(facts.since_seconds));
    let since = match facts.since_seconds {
        0 => Instant::from_secs(0),
        _ => Instant::from_nanos(unix_nanoseconds.saturating_sub(age.as_nanos())),
    };
    // One that is over stands until it is taken away, and not for ever.
    let left = facts
        .end()
        .map_or(0, |end| now.until(end).as_secs_rounded_up().max(1));
    block.source.write(out);
    for number in [since.as_secs(), left, u64::from(facts.strikes)] {
        out.put_byte(b'\t');
        out.put_decimal(number);
    }
    for word in [Facts::ports(block.comment), block.backend.value()] {
        out.put_byte(b'\t');
        out.put(word);
    }
}

/// Bytes of the longest field of that name.
pub const UNDO_FIELD: usize = 320;

/// How a block of /blocks is undone: a field of its head, behind the end of
/// another.
pub fn put_undo_field(out: &mut TextView, advice: &Advice) {
    out.put(b"\r\nUndo: ");
    put_undo(out, b"SOURCE", advice);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::Ports;
    use crate::firewall::Backend;
    use crate::firewall::comment::Comment;
    use crate::firewall::iptables::Scope;
    use std::format;
    use std::str::from_utf8;

    /// 2021-11-01 21:11:53.
    const SECONDS: i64 = 1_635_801_113;
    const TIME: Calendar = Calendar::at(SECONDS);

    const fn advice(exec_root: &[u8]) -> Advice<'_> {
        Advice {
            exec_root,
            is_container: false,
        }
    }

    const fn in_container(exec_root: &[u8]) -> Advice<'_> {
        Advice {
            exec_root,
            is_container: true,
        }
    }

    /// Makes of each that writes a line one that returns it.
    macro_rules! returned {
        ($($name:ident($($argument:ident: $type:ty),+);)+) => { $(
            fn $name($($argument: $type),+) -> Line {
                let mut line = Line::new();
                super::$name(&mut line, $($argument),+);
                line
            }
        )+ };
    }

    returned! {
        connections(time: Calendar, remote: Endpoint, way: Direction, local: Endpoint, count: u64);
        scan(time: Calendar, scan: &Scan);
        blocked(time: Calendar, rule: &Rule, length: Option<Duration>, data: Data, advice: &Advice);
        not_blocked(time: Calendar, source: Network, why: &[u8]);
        unblocked(time: Calendar, source: Network, reason: EndReason, program: &[u8]);
        block_failed(time: Calendar, source: Network, why: &[u8]);
        listed_block(rule: &Rule, facts: Option<Facts>, since: Option<Calendar>, now: Instant, place: &[u8]);
        never_blocked(network: Option<Network>, reason: Protection);
        exit(standing: u64, advice: &Advice);
    }

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text.as_bytes()).unwrap()
    }

    fn network(text: &str) -> Network {
        Network::parse(text.as_bytes()).unwrap()
    }

    fn assert_line(line: impl Deref<Target = TextView>, expected: &str) {
        assert_eq!(from_utf8(line.as_bytes()).unwrap(), expected);
        assert!(!line.is_truncated());
    }

    #[test]
    fn the_demo_to_the_letter() {
        assert_line(
            connections(
                TIME,
                endpoint("206.11.237.209:52239"),
                Direction::Inbound,
                endpoint("172.31.59.87:22"),
                1,
            ),
            "2021-11-01 21:11:53:     New connection:  206.11.237.209:52239 -> 172.31.59.87:22",
        );
        assert_line(
            connections(
                TIME,
                endpoint("99.84.191.103:443"),
                Direction::Outbound,
                endpoint("172.31.59.87:37474"),
                1,
            ),
            "2021-11-01 21:11:53:     New connection:     99.84.191.103:443 <- 172.31.59.87:37474",
        );
        let seen = Scan {
            members: 0,
            source: network("172.31.63.176"),
            local: endpoint("172.31.59.87:1").address,
            ports: Ports::from_slice(&[22, 25, 80, 445]).unwrap(),
            port_data: heapless::Vec::new(),
            is_new: true,
            is_whole: true,
            marks: 0,
        };
        assert_line(
            scan(Calendar::at(SECONDS + 20), &seen),
            "2021-11-01 21:12:13: Port scan detected:         172.31.63.176 -> 172.31.59.87 on ports 22,25,80,445",
        );
    }

    #[test]
    fn ipv6_stands_in_brackets_and_sources_as_blocked() {
        assert_line(
            connections(
                TIME,
                endpoint("[2001:db8::1]:443"),
                Direction::Inbound,
                endpoint("[2001:db8::2]:22"),
                1,
            ),
            "2021-11-01 21:11:53:     New connection:     [2001:db8::1]:443 -> [2001:db8::2]:22",
        );
        let seen = Scan {
            members: 0,
            source: network("2001:db8:1:2::/64"),
            local: endpoint("[2001:db8::2]:1").address,
            ports: Ports::from_slice(&[1, 2, 3, 4]).unwrap(),
            port_data: heapless::Vec::new(),
            is_new: true,
            is_whole: true,
            marks: 0,
        };
        assert_line(
            scan(TIME, &seen),
            "2021-11-01 21:11:53: Port scan detected:     2001:db8:1:2::/64 -> 2001:db8::2 on ports 1,2,3,4",
        );
    }

    #[test]
    fn own_labels() {
        let comment = b"tcpparser v1 b=0badcafe e=700 s=1 t=100 d=? p=22,25,80,445";
        let rule = Rule {
            source: network("10.0.0.2"),
            scope: Scope::ToHost,
            comment: Comment::from_listing(comment).unwrap(),
        };
        assert_line(
            blocked(
                TIME,
                &rule,
                Some(Duration::from_secs(600)),
                Data::Unknown,
                &advice(b""),
            ),
            "2021-11-01 21:11:53:            Blocked:              10.0.0.2 for 10m, data sent: unknown, undo: \
            tcpparser --unblock 10.0.0.2",
        );
        assert_line(
            blocked(TIME, &rule, None, Data::Silent, &advice(b"/host")),
            "2021-11-01 21:11:53:            Blocked:              10.0.0.2 for ever, data sent: no, undo: \
            tcpparser --unblock 10.0.0.2 --exec-root /host",
        );
        assert_line(
            blocked(TIME, &rule, None, Data::Silent, &in_container(b"")),
            "2021-11-01 21:11:53:            Blocked:              10.0.0.2 for ever, data sent: no, undo: \
            docker exec NAME tcpparser --unblock 10.0.0.2",
        );
        assert_line(
            not_blocked(TIME, network("10.0.0.2"), b"gateway"),
            "2021-11-01 21:11:53:        Not blocked:              10.0.0.2 gateway",
        );
        assert_line(
            unblocked(TIME, network("10.0.0.2"), EndReason::Expired, b""),
            "2021-11-01 21:11:53:          Unblocked:              10.0.0.2 its time is over",
        );
        for (program, words) in [(b"".as_slice(), "somebody"), (b"nft", "nft")] {
            assert_line(
                unblocked(TIME, network("10.0.0.2"), EndReason::Operator, program),
                &format!(
                    "2021-11-01 21:11:53:          Unblocked:              10.0.0.2 \
                     its rule was removed by {words}"
                ),
            );
        }
        let mut failed = Failure {
            reason: FailureReason::Status(4),
            tool: Some(Tool::preferred(Family::V4)),
            source: None,
            is_listing: false,
            is_addition: true,
            leaves_out: b"",
            explanation: Text::from_bytes(b"Another app holds the lock. "),
            is_first: true,
        };
        assert_line(
            block_failed(TIME, network("10.0.0.2"), failure(&failed).as_bytes()),
            "2021-11-01 21:11:53:       Block failed:              10.0.0.2 iptables-restore exited with 4: \
            Another app holds the lock.; it is tried again",
        );
        (failed.tool, failed.explanation) = (None, Text::new());
        for (error, words) in [
            (Errno::EPERM, "permission denied"),
            (Errno::EOPNOTSUPP, "not supported by this kernel"),
            (Errno::ENFILE, "the set is full"),
            (Errno::ENOBUFS, "error 105"),
        ] {
            failed.reason = FailureReason::Error(error);
            assert_line(
                failure(&failed),
                &format!("nf_tables refuses: {words}; it is tried again"),
            );
        }
    }

    #[test]
    fn what_is_never_blocked() {
        for (network, reason, line) in [
            (
                Some("10.0.0.0/8"),
                Protection::Allowed,
                "10.0.0.0/8 (--allow)",
            ),
            (Some("fe80::1"), Protection::Gateway, "fe80::1 (gateway)"),
            (None, Protection::OwnAddress, "… (own address)"),
        ] {
            let line = format!("never blocked: {line}");
            assert_line(never_blocked(network.map(self::network), reason), &line);
        }
    }

    /// The ports come last, however many they are.
    #[test]
    fn columns_of_the_list() {
        let head = from_utf8(LIST_HEAD).unwrap();
        for ports in ["22,25,80,445", "4001,4002,4003,4004,4005,4006,4007,4008,+9"] {
            for place in [b"nft".as_slice(), b"iptables-legacy"] {
                let comment = format!("tcpparser v1 b=0badcafe e=700 s=1 t=100 d=? p={ports}");
                let rule = Rule {
                    source: network("2001:db8:1:2::/64"),
                    scope: Scope::Everything,
                    comment: Comment::from_listing(comment.as_bytes()).unwrap(),
                };
                let (facts, now) = (Facts::read(&rule.comment), Instant::from_secs(0));
                let line = listed_block(&rule, facts, Some(TIME), now, place);
                let line = from_utf8(line.as_bytes()).unwrap();
                for (name, value) in [
                    ("SINCE", "2021-11-01 21:11:53 "),
                    ("LEFT", "11m40s "),
                    ("STRIKES", "1 "),
                    ("FIREWALL", from_utf8(place).unwrap()),
                    ("PORTS", ports),
                ] {
                    let column = &line[head.find(name).unwrap()..];
                    assert!(column.starts_with(value), "{name}: {line}");
                }
                assert!(line.ends_with(&format!(" {ports}")), "{line}");
            }
        }
    }

    /// One that began at an unknown time, one for ever, one that is over and
    /// still stands, and the longest.
    #[test]
    fn lines_of_blocks() {
        let now = Instant::from_secs(400).after(Duration::from_millis(250));
        let unix_nanoseconds = 1_000_000_400_250_000_000;
        let longest = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff";
        for (source, since_seconds, end_seconds, strikes, numbers) in [
            ("192.0.2.1", 100, 700, 1, "1000000100\t300\t1"),
            ("192.0.2.0/24", 0, 401, 2, "0\t1\t2"),
            ("2001:db8:1:2::/64", 400, 0, 3, "1000000400\t0\t3"),
            ("2001:db8::1", 100, 399, 4, "1000000100\t1\t4"),
            (
                longest,
                1,
                1 << 30,
                u32::MAX,
                "1000000001\t1073741424\t4294967295",
            ),
        ] {
            let facts = Facts {
                boot_id: 7,
                end_seconds,
                strikes,
                since_seconds,
                data: Data::Silent,
            };
            let ports = [b"tcpparser v1 p=".as_slice(), &[b'9'; 105]].concat();
            let block = Standing {
                source: network(source),
                facts,
                comment: &Comment::from_listing(&ports).unwrap(),
                backend: Backend::IptablesLegacy,
            };
            let mut line: Text<256> = Text::new();
            put_block(&mut line, &block, now, unix_nanoseconds);
            let ports = "9".repeat(105);
            let expected = format!("{source}\t{numbers}\t{ports}\tiptables-legacy");
            assert_eq!(from_utf8(line.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn the_longest_lines_fit() {
        let longest = network("2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff");
        let mut ports = Ports::new();
        for port in 65_000..65_064 {
            ports.push(port).unwrap();
        }
        let local = endpoint("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535");
        let line = scan(
            TIME,
            &Scan {
                members: 0,
                source: longest,
                local: local.address,
                ports,
                port_data: heapless::Vec::new(),
                is_new: true,
                is_whole: true,
                marks: 0,
            },
        );
        assert!(!line.is_truncated());
        let comment =
            Comment::from_listing(&[b"tcpparser ".as_slice(), &[b'x'; 110]].concat()).unwrap();
        let rule = Rule {
            source: longest,
            scope: Scope::ToHost,
            comment,
        };
        let line = blocked(
            TIME,
            &rule,
            Some(Duration::from_millis(2_073_600_001)),
            Data::Sent,
            &in_container(&[b'r'; crate::options::OPTION_PATH_MAX_LENGTH]),
        );
        assert!(!line.is_truncated());
        let directory = [b'r'; crate::options::OPTION_PATH_MAX_LENGTH];
        let line = exit(u64::MAX, &in_container(&directory));
        assert!(!line.is_truncated());
        let mut field: Text<UNDO_FIELD> = Text::new();
        put_undo_field(&mut field, &in_container(&directory));
        assert!(field.as_bytes().starts_with(b"\r\nUndo: ") && !field.is_truncated());
        // No byte of a name begins another field.
        field.clear();
        put_undo_field(&mut field, &in_container(b"/r\r\nSet-Cookie: a"));
        let expected = "\r\nUndo: docker exec NAME tcpparser --unblock SOURCE --exec-root DIR";
        assert_eq!(from_utf8(field.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn the_exit_line_lifts_what_stands() {
        assert_line(
            exit(1, &advice(b"")),
            "1 block stands; to lift all: tcpparser --unblock all",
        );
        assert_line(
            exit(3, &advice(b"")),
            "3 blocks stand; to lift all: tcpparser --unblock all",
        );
        assert_line(
            exit(3, &in_container(b"")),
            "3 blocks stand; to lift all: docker start NAME; docker exec NAME tcpparser --unblock all",
        );
        for (directory, shown) in [("../a-b_c", "../a-b_c"), ("/a b", "DIR"), ("$(x)", "DIR")] {
            let expected = std::format!(
                "2 blocks stand; to lift all: tcpparser --unblock all --exec-root {shown}"
            );
            assert_line(exit(2, &advice(directory.as_bytes())), &expected);
        }
    }
}
