//! Short scenarios of the whole daemon, each to be read from top to bottom.

use std::net::{IpAddr, Ipv4Addr};

use super::fake_kernel::{ChildFault, FakeKernel, Random, Service, Stdout};
use super::fake_proc::FakeSocket;
use super::run::Run;
use super::trace::{play, trace};
use crate::address::{Family, Network};
use crate::daemon::Flow;
use crate::kernel::Screen;
use crate::kernel::{Claim, Errno};
use crate::limits::SCREEN_LINES;
use crate::limits::{CLAIM_TRIES, COUNTERS_AGAIN, EVENTS_LATENESS, EVENTS_REST, HANDSHAKES_ASKED};
use crate::proc_net_tcp::TcpState;
use crate::time::{Duration, Instant};

pub const OWN: &str = "203.0.113.5";
pub const OWN_IPV6: &str = "2001:db8:1::5";
/// Off-link, IPv4.
pub const SCANNER: &str = "198.51.100.7";

/// A host that listens on 22, 25, 80, 443 and 445, on all addresses.
pub fn host() -> Run {
    let mut run = Run::new(1);
    for port in [22, 25, 80, 443, 445] {
        run.kernel.listen_on("0.0.0.0", port);
        run.kernel.listen_on("::", port);
    }
    run
}

pub fn started(arguments: &[&str]) -> Run {
    let mut run = host();
    assert_eq!(run.start(arguments), Flow::Continue);
    run.run_for(1);
    run.lines();
    run
}

impl FakeKernel {
    pub fn listen_on(&mut self, address: &str, port: u16) {
        let address: IpAddr = address.parse().unwrap();
        let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
        self.sockets.push(FakeSocket {
            local: (address, port),
            remote: (any.parse().unwrap(), 0),
            state: TcpState::Listen,
            inode: u32::from(port),
            is_dual_stack: false,
        });
    }

    /// `peer` connects from `from` to `port`, and stays.
    pub fn open_connection(&mut self, peer: &str, from: u16, port: u16) {
        let peer: IpAddr = peer.parse().unwrap();
        let own = if peer.is_ipv4() { OWN } else { OWN_IPV6 };
        let inode = 1_000_000 + self.sockets.len() as u32;
        self.sockets.push(FakeSocket {
            local: (own.parse().unwrap(), port),
            remote: (peer, from),
            state: TcpState::Established,
            inode,
            is_dual_stack: false,
        });
    }

    /// `peer` connects to four ports.
    pub fn scan(&mut self, peer: &str) {
        for (from, port) in (50_000..).zip([22, 25, 80, 445]) {
            self.open_connection(peer, from, port);
        }
    }

    pub fn close_all_of(&mut self, peer: &str) {
        let peer: IpAddr = peer.parse().unwrap();
        self.sockets.retain(|socket| socket.remote.0 != peer);
    }
}

#[test]
fn a_scanner_is_printed_and_blocked() {
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 scans
        at 11 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,445
        expect: Blocked: 198.51.100.7 for 10m, data sent: unknown, undo: tcpparser --unblock 198.51.100.7
        iptables shows in TCPPARSER: -s 198.51.100.7/32 -m comment --comment \"tcpparser v1 b=0badcafe e=1210 s=1 t=610 d=? p=22,25,80,445\" -j DROP
        iptables shows in INPUT: -j TCPPARSER
        iptables shows in FORWARD: -j TCPPARSER
        kernel holds what was said
        terminate
        expect: 1 block stands; to lift all: tcpparser --unblock all
    "}
}

/// Nothing says when such connections were opened.
#[test]
fn scans_from_before_the_start_are_marked() {
    trace! {"
        198.51.100.7 scans
        198.51.100.8 opens 22 25 80
        at 0 s: start
        at 1 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,445 (before the start)
        expect: Blocked: 198.51.100.7 for 10m, …
        198.51.100.8 opens 445
        198.51.100.9 scans
        at 11 s: expect: Port scan detected: 198.51.100.8 -> 203.0.113.5 on ports 22,25,80,445
        expect: Port scan detected: 198.51.100.9 -> 203.0.113.5 on ports 22,25,80,445
        expect: Blocked: 198.51.100.8 for 10m, …
        expect: Blocked: 198.51.100.9 for 10m, …
        terminate
        expect: 3 blocks stand; to lift all: tcpparser --unblock all
    "}
}

#[test]
fn three_ports_are_no_scan() {
    // Start-up only looks.
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 opens 22, 25, 80, 22, 25, 80
        at 121 s: commands so far 4
    "}
}

#[test]
fn what_may_be_forged_is_told_once_and_not_blocked() {
    trace! {"
        without oracle
        at 0 s: start
        at 1 s: 198.51.100.7 opens 22 25 80
        at 11 s: 198.51.100.7 seems to open 445
        at 12 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,445
        expect: Not blocked: 198.51.100.7 it may be forged (no SYN of it was seen to come in by the way back to it)
        198.51.100.7 seems to open 22 25 80 443 445
        at 31 s: metric tcpparser_blocks_refused_total{{reason=\"way_unseen\"}} is 1
        iptables is untouched

        # What is proven whole is a scan.
        198.51.100.7 opens 443
        at 41 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,443,445
        expect: Blocked: 198.51.100.7 for 10m, …
        metric tcpparser_port_scans_total is 2

        # Quiet for a window: it is told again.
        198.51.100.8 seems to open 22 25 80 445
        at 42 s: expect: Port scan detected: 198.51.100.8 -> …
        expect: Not blocked: 198.51.100.8 it may be forged …
        at 100 s: 198.51.100.8 seems to open 443
        at 159 s: 198.51.100.8 seems to open 22 25 80 443
        at 221 s: 198.51.100.8 seems to open 22 25 80 443
        at 222 s: expect: Port scan detected: 198.51.100.8 -> …
        expect: Not blocked: 198.51.100.8 it may be forged …
    "}
}

#[test]
fn a_neighbour_is_blocked_towards_the_host_only() {
    trace! {"
        at 0 s: start
        at 1 s: 10.0.0.9 scans
        at 11 s: 10.0.0.9 is blocked for 10m
        iptables has 1 rule
        iptables shows in TCPPARSER: -s 10.0.0.9/32 -m addrtype --dst-type LOCAL -m comment…
    "}
}

#[test]
fn an_operator_takes_one_rule_away() {
    trace! {"
        at 0 s: start --block-time 10m,1h
        at 1 s: 198.51.100.7 scans
        10.0.0.9 scans
        at 11 s: 10.0.0.9 is blocked for 10m
        198.51.100.7 is blocked for 10m
        operator deletes 198.51.100.7
        at 71 s: expect: Unblocked: 198.51.100.7 its rule was removed by somebody

        # What stood before is no evidence, what comes anew is; and the strike did not count.
        at 131 s: 198.51.100.7 closes
        at 141 s: 198.51.100.7 scans
        at 151 s: 198.51.100.7 is blocked for 10m
        kernel holds what was said
    "}
}

#[test]
fn a_lost_jump_is_put_back() {
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        iptables -F INPUT
        iptables -A INPUT -p tcp -j ACCEPT
        at 72 s: iptables shows in INPUT: -j TCPPARSER | -p tcp -j ACCEPT
        iptables shows in FORWARD: -j TCPPARSER
        iptables -F FORWARD
        iptables -A INPUT -p tcp -j ACCEPT
        at 133 s: iptables shows in INPUT: -j TCPPARSER | -p tcp -j ACCEPT | -p tcp -j ACCEPT
        iptables shows in FORWARD: -j TCPPARSER
        metric tcpparser_firewall_repairs_total is 2
    "}
}

#[test]
fn a_lost_chain_is_rebuilt_with_its_rules() {
    let why = "--comment \"tcpparser v1 b=0badcafe e=1210 s=1 t=610 d=? p=22,25,80,445\" -j DROP";
    let first = format!("-s 198.51.100.7/32 -m comment {why}");
    let second = format!("-s 10.0.0.9/32 -m addrtype --dst-type LOCAL -m comment {why}");
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 scans
        10.0.0.9 scans
        at 11 s: 10.0.0.9 is blocked for 10m
        198.51.100.7 is blocked for 10m
        iptables shows in TCPPARSER: {first} | {second}
        iptables is emptied
        at 72 s: iptables shows in TCPPARSER: {first} | {second}
        metric tcpparser_firewall_repairs_total is 1
        kernel holds what was said
    "}
}

#[test]
fn a_flushed_chain_is_an_operators_judgement() {
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 scans
        10.0.0.9 scans
        at 11 s: 10.0.0.9 is blocked for 10m
        198.51.100.7 is blocked for 10m
        iptables -F TCPPARSER
        at 72 s: expect: Unblocked: 10.0.0.9 its rule was removed by somebody
        expect: Unblocked: 198.51.100.7 its rule was removed by somebody
        iptables has no chain
        kernel holds what was said
    "}
}

#[test]
fn rules_of_others_in_our_chain_keep_it() {
    trace! {"
        at 0 s: start --block-time 90s
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 90s
        iptables -A TCPPARSER -s 192.0.2.0/24 -j DROP
        at 311 s: expect: Unblocked: 198.51.100.7 its time is over
        iptables shows in TCPPARSER: -s 192.0.2.0/24 -j DROP
    "}
}

#[test]
fn a_restart_adopts_blocks_with_their_ends() {
    const RULE: &str = "-s 198.51.100.7/32 -m comment --comment \
        \"tcpparser v1 b=0badcafe e=1210 s=1 t=610 d=? p=22,25,80,445\" -j DROP";
    // What was said once is not said again.
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        iptables shows in TCPPARSER: {RULE}
        kill
        start
        at 511 s: iptables shows in TCPPARSER: {RULE}
        iptables shows in INPUT: -j TCPPARSER
        iptables shows in FORWARD: -j TCPPARSER
        at 621 s: expect: Unblocked: 198.51.100.7 its time is over
        kernel holds what was said
    "}
}

#[test]
fn what_ended_while_no_daemon_ran_goes_at_the_start() {
    trace! {"
        at 0 s: start --block-time 2m
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 2m
        terminate
        expect: 1 block stands; …
        at 611 s: 198.51.100.7 closes
        start
        at 612 s: expect: Unblocked: 198.51.100.7 its time is over
        iptables has no chain
    "}
}

#[test]
fn blocks_of_another_boot_get_the_first_length_from_now() {
    trace! {"
        at 0 s: start --block-time 10m,1h
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        terminate
        expect: 1 block stands; …
        198.51.100.7 closes
        host boots anew
        at 0 s: start --block-time 10m,1h
        at 10 s: iptables shows in TCPPARSER: -s 198.51.100.7/32 -m comment --comment \"tcpparser v1 b=feedbeef e=651 s=1 t=50 d=? p=22,25,80,445\" -j DROP
        at 610 s: expect: Unblocked: 198.51.100.7 its time is over
        iptables has no chain
    "}
}

#[test]
fn a_missing_iptables_is_said_once_and_tried_again() {
    // Three names of each are tried, ever less often.
    let mut run = play(
        "
        iptables exits 127
        at 0 s: start
        at 5 s: stderr: tcpparser: iptables is not installed: …
        stderr: tcpparser: ip6tables is not installed: …
        stderr: tcpparser: nothing can be blocked by iptables or nf_tables
        198.51.100.7 scans
        at 15 s: expect: Port scan detected: 198.51.100.7 …
        expect: Block failed: 198.51.100.7 the firewall cannot be used; it is tried again
        at 315 s:
        ",
    );
    let tries = run.kernel.commands.len() / 3;
    assert!(tries < 40, "{tries} tries");
    run.kernel.faults.child = ChildFault::None;
    run.run_for(61);
    assert_eq!(run.lines_with("Blocked: 198.51.100.7").len(), 1);
    run.check_quiet();
}

#[test]
fn every_command_runs_in_the_root_that_was_asked_for() {
    for (arguments, root) in [(&[][..], ""), (&["--exec-root", "/host"], "/host")] {
        let mut run = started(arguments);
        run.kernel.scan(SCANNER);
        run.kernel.scan("2001:db8:7:8::9");
        run.run_for(700);
        let blocked = run.lines_with("Blocked: ");
        assert!(blocked.len() > 1, "{blocked:?}");
        let names_root = |line: &String| line.ends_with(" --exec-root /host");
        assert_eq!(blocked.iter().all(names_root), !root.is_empty());
        let commands = &run.kernel.commands;
        assert!(commands.len() > 6, "{commands:?}");
        assert!(commands.iter().all(|one| one.root == root), "{commands:?}");
        run.terminate();
    }
    for command in ["--list", "--unblock=all"] {
        let mut run = host();
        run.kernel.faults.child = ChildFault::Exit(126);
        assert_eq!(run.start(&[command, "--exec-root=/host"]), Flow::Exit(1));
        assert!(run.kernel.commands.iter().all(|one| one.root == "/host"));
        assert!(run.error_output().contains("Permission denied"));
    }
}

#[test]
fn a_firewall_that_lists_but_never_changes_is_not_hammered() {
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    // An end that cannot be carried out, again and again.
    run.kernel.faults.refused = Some("-X".to_owned());
    run.kernel.delete_rule_of(SCANNER);
    run.kernel.close_all_of(SCANNER);
    run.run_for(60);
    run.error_output();
    let before = run.kernel.commands.len();
    run.run_for(600);
    let tries = run.kernel.commands.len() - before;
    assert!(tries < 60, "{tries} commands in ten minutes");
    let errors = run.error_output();
    assert!(errors.lines().count() <= 1, "{errors}");
    run.kernel.faults.refused = None;
    run.run_for(61);
    run.check_quiet();
}

#[test]
fn a_jump_that_stands_twice_does_not_keep_the_chain() {
    trace! {"
        at 0 s: start --block-time 90s
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 90s
        iptables -A INPUT -j TCPPARSER
        at 191 s: expect: Unblocked: 198.51.100.7 its time is over
        kernel holds what was said
    "}
}

#[test]
fn one_refused_entry_never_vetoes_the_others() {
    let run = play(
        "
        at 0 s: start
        at 1 s: iptables refuses 198.51.100.3/32
        198.51.100.1-5 scans
        at 12 s: 198.51.100.1-2 is blocked for 10m
        198.51.100.4-5 is blocked for 10m
        expect: Port scan detected: 198.51.100.3 …
        expect: Block failed: 198.51.100.3 …
        at 312 s: iptables has 4 rules
        iptables works
        at 373 s: expect: Blocked: 198.51.100.3 …
        kernel holds what was said
        ",
    );
    let commands = run.kernel.commands.len();
    assert!(commands < 60, "{commands}");
}

#[test]
fn a_thousand_scanners_need_few_children() {
    let mut run = host();
    run.kernel.nf_tables.lacks.nf_tables = false;
    // Most lines are held back.
    (run.checks.oracle, run.checks.output) = (false, false);
    assert_eq!(run.start(&[]), Flow::Continue);
    run.run_for(1);
    run.lines();
    for number in 0..1_000u32 {
        run.kernel
            .scan(&format!("198.18.{}.{}", number / 250, 1 + number % 250));
    }
    let before = run.kernel.commands.len();
    run.run_for(11);
    assert_eq!(run.kernel.tables.v4.blocks().len(), 16);
    assert_eq!(run.kernel.rules_of(Family::V4).len(), 1_000);
    let children = run.kernel.commands.len() - before;
    assert!(children <= 2, "{children} children");
    run.check_quiet();
}

#[test]
fn blocks_end_and_grow_longer() {
    trace! {"
        at 0 s: start --block-time 1m,5m
        at 1 s: 198.51.100.7 scans
        at 12 s: 198.51.100.7 is blocked for 1m
        198.51.100.7 closes
        at 323 s: expect: Unblocked: 198.51.100.7 its time is over
        kernel holds what was said
        198.51.100.7 scans
        at 334 s: 198.51.100.7 is blocked for 5m
        198.51.100.7 closes
        at 645 s: expect: Unblocked: 198.51.100.7 its time is over
        kernel holds what was said
        198.51.100.7 scans
        at 656 s: 198.51.100.7 is blocked for 5m
        198.51.100.7 closes
        at 967 s: expect: Unblocked: 198.51.100.7 its time is over
        kernel holds what was said
    "}
}

#[test]
fn protected_between_verdict_and_command() {
    // Said once, while its connections stand.
    trace! {"
        at 0 s: start
        at 1 s: iptables finds its lock held
        10.0.0.9 scans
        at 13 s: expect: Port scan detected: 10.0.0.9 …
        10.0.0.9 is a nameserver
        at 23 s: expect: Block failed: 10.0.0.9 iptables-restore exited with 4: …
        stderr: tcpparser: iptables exited with 4: …
        iptables works
        at 83 s: expect: Not blocked: 10.0.0.9 nameserver
        iptables has no chain
    "}
}

#[test]
fn protected_hosts_are_reported_and_never_blocked() {
    // Two names, two looks.
    trace! {"
        at 0 s: start --allow 198.51.100.0/24
        at 1 s: 198.51.100.7 scans
        10.0.0.53 scans
        203.0.113.1 scans
        at 121 s: expect: Port scan detected: 10.0.0.53 …
        expect: Not blocked: 10.0.0.53 nameserver
        expect: Port scan detected: 198.51.100.7 …
        expect: Not blocked: 198.51.100.7 --allow
        expect: Port scan detected: 203.0.113.1 …
        expect: Not blocked: 203.0.113.1 gateway
        commands so far 4
    "}
}

const TOO_MANY: &str =
    "tcpparser: more own addresses or gateways than fit; nothing is blocked until they do\n";

/// Nothing of the host is known from the start: that is said and shown, and no
/// scan waits for it.
#[test]
fn an_unknown_host_blocks_no_source_and_says_so() {
    trace! {"
        rtnetlink fails EACCES
        without oracle
        at 0 s: start --window=5s --interval=1s
        at 3 s: stderr: tcpparser: own addresses and gateways are not fully known; nothing is blocked until they are
        get /healthz gives 503 own addresses and gateways are not fully known
        metric tcpparser_host_facts_known is 0
        198.51.100.7 scans
        at 5 s: expect: Port scan detected: 198.51.100.7 …
        expect: Not blocked: 198.51.100.7 own addresses and gateways not fully known
        metric tcpparser_blocks_pending is 0

        # Nothing that was said comes true later.
        198.51.100.7 closes
        at 65 s: rtnetlink works
        at 125 s: get /healthz gives 200 ok
        metric tcpparser_host_facts_known is 1
        198.51.100.8 scans
        at 127 s: 198.51.100.8 is blocked for 10m
    "}
}

/// It becomes so, ends, and becomes so again: said each time.
#[test]
fn a_host_that_becomes_unknown_is_said_each_time() {
    let mut run = started(&[]);
    assert_eq!(run.error_output(), "");
    for _ in 0..2 {
        let before = run.kernel.host.clone();
        let many = 0x0a64_0000..0x0a64_0000 + crate::limits::OWN_ADDRESSES as u32;
        let many = many.map(|bits| (IpAddr::V4(bits.into()), 32));
        run.kernel.host.addresses.extend(many);
        run.run_for(20);
        // Each address brings a network on a link.
        let links = "tcpparser: more networks on links than fit; \
                     sources in the others are blocked like those from elsewhere\n";
        assert_eq!(run.error_output(), [TOO_MANY, links].concat());
        assert!(run.get("/healthz").starts_with("HTTP/1.1 503 "));
        run.kernel.host = before;
        run.run_for(20);
        assert!(run.get("/healthz").starts_with("HTTP/1.1 200 "));
        assert_eq!(run.error_output(), "");
    }
}

/// The first dump takes its time: blocks wait for its end, and clients do not.
#[test]
fn a_block_waits_for_the_first_dump() {
    trace! {"
        dumps pause 100 ms
        without oracle
        at 0 s: start
        198.51.100.7 scans
        203.0.113.1 scans
        at 1 s: expect 2: Port scan detected: …
        metric tcpparser_host_facts_known is 0
        get /healthz gives 200 ok
        expect: Not blocked: 203.0.113.1 gateway
        at 6 s: expect: Blocked: 198.51.100.7 for 10m, …
        metric tcpparser_host_facts_known is 1
    "}
}

/// But no longer than its evidence counts.
#[test]
fn a_block_waits_for_a_dump_no_longer_than_the_window() {
    trace! {"
        10.1.1.1-60 is own
        dumps pause 500 ms
        without oracle
        at 0 s: start --window=5s
        198.51.100.7 scans
        at 4 s: expect: Port scan detected: 198.51.100.7 …
        at 7 s: expect: Not blocked: 198.51.100.7 own addresses and gateways not fully known
        198.51.100.7 closes
        at 127 s: metric tcpparser_host_facts_known is 1
    "}
}

/// Between two readings an hour apart the host gets another gateway, address
/// and nameserver.
#[test]
fn what_came_to_be_protected_since_the_reading_is_not_blocked() {
    // In our own network by now: towards the host only. A standing block of
    // what becomes protected ends at once.
    trace! {"
        without oracle
        at 0 s: start --interval=1h --allow=192.0.2.9
        at 1 s: 198.51.100.1 is a gateway
        198.51.100.2 is own
        198.51.100.3 is a nameserver
        at 11 s: 198.51.100.1 resets 22, 25, 80, 445
        198.51.100.3 resets 22, 25, 80, 445
        198.51.100.7 resets 22, 25, 80, 445
        at 21 s: expect: Port scan detected: 198.51.100.1 …
        expect: Not blocked: 198.51.100.1 gateway
        expect: Port scan detected: 198.51.100.3 …
        expect: Not blocked: 198.51.100.3 nameserver
        198.51.100.7 is blocked for 10m
        iptables shows in TCPPARSER: -s 198.51.100.7/32 -m addrtype --dst-type LOCAL …
        198.51.100.7 is a gateway
        at 22 s: expect: Unblocked: 198.51.100.7 it holds a protected address now
    "}
}

/// Where the kernel reports no changes it is asked before a block.
#[test]
fn a_kernel_that_reports_nothing_is_asked_before_a_block() {
    trace! {"
        kernel reports no routes
        without oracle
        at 0 s: start --interval=1h
        at 2 s: 198.51.100.7 is a gateway
        at 12 s: 198.51.100.7 resets 22, 25, 80, 445
        198.51.100.8 resets 22, 25, 80, 445
        at 17 s: expect 2: Port scan detected: 198.51.100.…
        expect: Not blocked: 198.51.100.7 gateway
        expect: Blocked: 198.51.100.8 for 10m, …
    "}
}

/// resolv.conf names a stub; what it asks stands elsewhere, or nowhere.
#[test]
fn those_that_a_stub_asks_are_protected() {
    for (stub, path, text) in [
        (
            "127.0.0.53",
            "/run/systemd/resolve/resolv.conf",
            "nameserver 198.51.100.7\n",
        ),
        (
            "::1",
            "/tmp/resolv.conf.d/resolv.conf.auto",
            "# Interface wan\nnameserver 198.51.100.7",
        ),
        (
            OWN,
            "/run/NetworkManager/no-stub-resolv.conf",
            "nameserver 198.51.100.7\n",
        ),
        (
            "127.0.0.1",
            "/etc/dnsmasq.conf",
            "port=53\nserver=/lan/198.51.100.7#53\n",
        ),
    ] {
        let mut run = host();
        run.kernel.host.nameservers = vec![stub.parse().unwrap()];
        run.kernel.files.insert(path.to_owned(), text.to_owned());
        assert_eq!(run.start(&[]), Flow::Continue);
        run.kernel.scan(SCANNER);
        run.run_for(20);
        let said = run.lines_with("locked");
        assert_eq!(said, ["Not blocked: 198.51.100.7 nameserver"], "{path}");
        assert_eq!(run.error_output(), "");
    }
    for arguments in [&[][..], &["--dry-run"], &["--once"]] {
        let mut run = host();
        run.kernel.host.nameservers = vec!["127.0.0.1".parse().unwrap()];
        run.start(arguments);
        if arguments != ["--once"] {
            run.run_for(20);
            assert!(run.get("/healthz").starts_with("HTTP/1.1 200 "));
        }
        let said = "tcpparser: no nameserver is known but this host itself; \
                    protect its upstream nameservers with --allow\n";
        let expected = if arguments.is_empty() { said } else { "" };
        assert_eq!(run.error_output(), expected);
    }
}

/// What must never be in a batch, on the host of the next scenario.
const PROTECTED: [&str; 14] = [
    "127.0.0.0/8",
    "224.0.0.0/4",
    "169.254.169.254",
    "::1",
    "ff00::/8",
    OWN,
    OWN_IPV6,
    "203.0.113.1",
    "192.0.2.254",
    "10.0.0.53",
    "2001:db8:7::53",
    "198.51.100.64/26",
    "64:ff9b::c612:35",
    "2001:0:c000:201:0:3fff:39cd:9b01",
];

/// An address and the addresses around it, near and far.
fn near(random: &mut Random, network: Network) -> IpAddr {
    let bits = match network.address() {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    let mut change = 0u128;
    for _ in 0..random.below(4) {
        change |= 1 << random.below(bits);
    }
    match network.address() {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) ^ change as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) ^ change).into()),
    }
}

#[test]
fn no_verdict_brings_a_protected_address_to_a_child() {
    let mut run = host();
    let network = |text: &str| Network::parse(text.as_bytes()).unwrap();
    let gateway_of_another_table = "192.0.2.254".parse().unwrap();
    run.kernel.host.gateways.push(gateway_of_another_table);
    let nameserver = "2001:db8:7::53".parse().unwrap();
    run.kernel.host.nameservers.push(nameserver);
    // `look` holds every batch of every turn against these.
    run.kernel.protected = PROTECTED.map(network).to_vec();
    run.checks = super::run::Checks {
        oracle: false,
        output: false,
        own_rules: false,
        truth: false,
    };
    let allow = "198.51.100.64/26,64:ff9b::c612:35,2001:0:c000:201:0:3fff:39cd:9b01";
    let arguments = ["--max-blocks-per-minute=100000", "--show=scans", "--allow"];
    let allows = allow.split(',').collect::<Vec<_>>().join(" --allow ");
    let words: Vec<_> = arguments.into_iter().chain(allows.split(' ')).collect();
    assert_eq!(run.start(&words), Flow::Continue);
    run.run_for(1);
    let mut random = Random::new(4);
    for round in 0..2_000u32 {
        let base = network(random.pick(&PROTECTED));
        let peer = near(&mut random, base);
        let length = random.below(if peer.is_ipv4() { 33 } else { 129 }) as u8;
        let (daemon, kernel) = run.daemon();
        let source = match round % 3 {
            0 => daemon.source_of(peer),
            1 => Network::new(peer, if peer.is_ipv4() { 32 } else { 64 }),
            _ => Network::new(peer, length),
        };
        daemon.want_blocked(source, kernel.now);
        // Slowly enough for every line to come out.
        if round % 50 == 0 {
            run.run_for(12);
        }
    }
    run.run_for(10);
    let standing: usize = run
        .kernel
        .tables
        .iter()
        .map(|(_, table)| table.blocks().len())
        .sum();
    assert!(standing > 300, "{standing}: the others are blocked");
    let refused = run.lines_with("Not blocked").len();
    assert!(refused > 300, "{refused}");
}

/// Whole /64 networks there belong to no host in particular.
#[test]
fn neighbours_behind_a_translator_are_distinguished() {
    let mut run = started(&["--max-blocks-per-minute=100000"]);
    for text in ["64:ff9b::c000:201", "64:ff9b:1:2::7", "2001:0:c000:201::7"] {
        let (daemon, _) = run.daemon();
        let source = daemon.source_of(text.parse().unwrap());
        assert!(source.is_single(), "{text}");
    }
}

#[test]
fn rules_against_protected_hosts_go_at_the_start() {
    for boot in ["0badcafe", "feedbeef"] {
        let comment =
            format!("--comment \"tcpparser v1 b={boot} e=9999 s=1 t=10 d=n p=22,25,80,443\"");
        trace! {"
            with foreign rules
            iptables -N TCPPARSER
            iptables -I INPUT 1 -j TCPPARSER
            iptables -I FORWARD 1 -j TCPPARSER
            iptables -A TCPPARSER -s 203.0.113.1/32 -m comment {comment} -j DROP
            iptables -A TCPPARSER -s 10.0.0.53/32 -m comment {comment} -j DROP
            iptables -A TCPPARSER -s 198.51.100.7/32 -m comment {comment} -j DROP
            at 0 s: start
            at 11 s: expect: Unblocked: 10.0.0.53 it holds a protected address now
            expect: Unblocked: 203.0.113.1 it holds a protected address now
            iptables has 1 rule
            iptables shows in TCPPARSER: -s 198.51.100.7/32 …
        "}
    }
}

#[test]
fn more_blocks_than_a_minute_may_have_are_held_back() {
    // A /24 gets a quarter of eight a minute, and then one each 30 s: the newest
    // of those that wait. What still scans when the window is over is seen again.
    trace! {"
        without oracle
        at 0 s: start --max-blocks-per-minute=8 --window=2m
        at 1 s: 198.51.100.1-7 scans
        at 11 s: expect 7: Port scan detected: 198.51.100.…
        expect: Blocked: 198.51.100.1 for 10m, …
        expect: Blocked: 198.51.100.2 for 10m, …
        198.51.100.1-7 closes
        metric tcpparser_blocks_pending is 5
        at 12 s: 192.0.2.9 scans
        at 21 s: 192.0.2.9 is blocked for 10m
        at 39 s:
        at 41 s: expect: Blocked: 198.51.100.7 for 10m, …
        at 69 s:
        at 71 s: expect: Blocked: 198.51.100.6 for 10m, …
        at 99 s:
        at 101 s: expect: Blocked: 198.51.100.5 for 10m, …
        at 132 s: expect: Blocked: 198.51.100.4 for 10m, …
        expect: Not blocked: 198.51.100.3 held back by --max-blocks-per-minute
        iptables has 7 rules
        198.51.100.3 scans
        at 141 s: expect: Port scan detected: 198.51.100.3 …
    "}
}

/// What a source does while it is held back goes on to count.
#[test]
fn a_source_held_back_is_not_taken_for_blocked() {
    trace! {"
        without oracle
        at 0 s: start --max-blocks-per-minute=1 --show new --window 30s
        at 1 s: 198.51.100.1 resets 22 25 80 445
        at 2 s: expect: Port scan detected: 198.51.100.1 …
        expect: Blocked: 198.51.100.1 for 10m, …
        198.51.100.2 resets 22 25 80 445
        at 3 s: expect: Port scan detected: 198.51.100.2 …
        198.51.100.2 opens 443
        at 34 s: expect: Not blocked: 198.51.100.2 held back by --max-blocks-per-minute
        198.51.100.2 resets 22 25 80
        at 41 s: expect: Port scan detected: 198.51.100.2 -> 203.0.113.5 on ports 22,25,80,443
        at 62 s: expect: Blocked: 198.51.100.2 for 10m, …
    "}
}

/// A block that waited for its share lasts as long as any.
#[test]
fn a_block_that_was_held_back_lasts_its_whole_time() {
    trace! {"
        without oracle
        at 0 s: start --max-blocks-per-minute=1 --show new --window 2m --block-time 40s
        at 1 s: 198.51.100.1 resets 22 25 80 445
        at 2 s: expect: Port scan detected: 198.51.100.1 …
        expect: Blocked: 198.51.100.1 for 40s, …
        198.51.100.2 resets 22 25 80 445
        at 3 s: expect: Port scan detected: 198.51.100.2 …
        at 42 s: expect: Unblocked: 198.51.100.1 its time is over
        at 62 s: expect: Blocked: 198.51.100.2 for 40s, …
        at 101 s: iptables has 1 rule
        at 103 s: expect: Unblocked: 198.51.100.2 its time is over
    "}
}

/// However many networks they are from, none of which had a block yet.
#[test]
fn blocks_held_back_leave_room_in_the_table() {
    let mut run = started(&["--max-blocks-per-minute=1", "--show=scans"]);
    (run.checks.oracle, run.checks.output) = (false, false);
    for number in 0..600u32 {
        run.kernel
            .scan(&format!("{}.{}.0.7", 60 + number / 200, number % 200));
    }
    run.run_for(11);
    assert_eq!(run.metric("tcpparser_port_scans_total"), "600");
    let most = crate::limits::HELD_BLOCKS.to_string();
    assert_eq!(run.metric("tcpparser_blocks_pending"), most);
}

/// A thousand decoys of five /48s, or of a /16, do not keep other scanners from
/// being blocked.
#[test]
fn decoys_spend_the_share_of_their_own_network() {
    for decoys in ["2001:db8", "198.18"] {
        let arguments = ["--max-blocks-per-minute=60", "--show=scans"];
        let mut run = started(&arguments);
        // Most of it is beyond the lines of a minute.
        (run.checks.oracle, run.checks.output) = (false, false);
        for second in 0..20u32 {
            for number in second * 50..second * 50 + 50 {
                let (site, host) = (number % 5, number / 5);
                let peer = if decoys.contains(':') {
                    format!("{decoys}:{}:{host:x}::1", 0x50 + site)
                } else {
                    format!("{decoys}.{site}.{}", 1 + host)
                };
                run.kernel.scan(&peer);
            }
            if second == 10 {
                run.kernel.scan("192.0.2.77");
                run.kernel.scan("2001:dead:1::7");
            }
            run.run_for(1);
        }
        run.run_for(12);
        for (family, scanner) in [
            (Family::V4, "192.0.2.77/32"),
            (Family::V6, "2001:dead:1::/64"),
        ] {
            let rules = run.kernel.rules_of(family);
            let is_blocked = rules.iter().any(|rule| rule.contains(scanner));
            assert!(
                is_blocked,
                "{scanner} beside {decoys}: {} blocks",
                rules.len()
            );
        }
    }
}

/// Sixteen /64s of one /56 are one scanner, so are sixteen /56s of one /48.
#[test]
fn many_scanners_of_one_network_are_blocked_as_one() {
    let scans = |site: u32, count: u32| {
        let peers = (0..count).map(|number| format!("2001:db8:5:{site:x}{number:02x}::7 scans"));
        peers.collect::<Vec<_>>().join("\n")
    };
    let fifteen = scans(1, 15);
    trace! {"
        kernel has nf_tables
        without oracle
        at 0 s: start --firewall nft
        at 1 s: {fifteen}
        at 11 s: expect 15: Port scan detected: 2001:db8:5:1…
        expect 15: Blocked: 2001:db8:5:1…
        sets hold 15
        at 12 s: 2001:db8:5:1ff::7 scans
        at 21 s: expect: Port scan detected: 2001:db8:5:1ff::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 10m, …
        sets hold 1
        metric tcpparser_unblocks_total{{reason=\"widened\"}} is 15
        metric tcpparser_blocked_sources is 1
        # Whatever comes from there is of a blocked source.
        2001:db8:5:1aa::7 scans
        at 622 s: expect: Unblocked: 2001:db8:5:100::/56 its time is over
        metric tcpparser_blocked_sources is 0
        # What counted within the hour counts on; this is the second time.
        at 623 s: 2001:db8:5:1ab::7 scans
        at 631 s: expect: Port scan detected: 2001:db8:5:1ab::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 1h, …
        at 640 s: nft delete element 2001:db8:5:100::/56
        at 641 s: expect: Unblocked: 2001:db8:5:100::/56 its rule was removed by …
        # An operator's decision outweighs ours.
        at 692 s: 2001:db8:5:1ac::7 scans
        at 701 s: 2001:db8:5:1ac::/64 is blocked for 10m
    "}
    // More than an hour before is too long ago.
    trace! {"
        kernel has nf_tables
        without oracle
        at 0 s: start --firewall nft --widen 2 --block-time 2h
        at 1 s: 2001:db8:5:101::7 scans
        at 11 s: 2001:db8:5:101::/64 is blocked for 2h
        at 3612 s: 2001:db8:5:102::7 scans
        at 3621 s: 2001:db8:5:102::/64 is blocked for 2h
        at 3622 s: 2001:db8:5:103::7 scans
        at 3631 s: expect: Port scan detected: 2001:db8:5:103::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 2h, …
    "}
    trace! {"
        kernel has nf_tables
        without oracle
        at 0 s: start --firewall nft --widen 2
        at 1 s: 2001:db8:5:101::7 scans
        at 11 s: 2001:db8:5:101::/64 is blocked for 10m
        at 12 s: 2001:db8:5:102::7 scans
        at 21 s: expect: Port scan detected: 2001:db8:5:102::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 10m, …
        at 22 s: 2001:db8:5:201::7 scans
        at 31 s: 2001:db8:5:201::/64 is blocked for 10m
        at 32 s: 2001:db8:5:202::7 scans
        at 41 s: expect: Port scan detected: 2001:db8:5:202::/64 …
        expect: Blocked: 2001:db8:5::/48 for 10m, …
        sets hold 1
        terminate
        expect: 1 block stands; to lift all: tcpparser --unblock all
        run --unblock 2001:db8:5:177::1 prints: 1 block removed; all of 2001:db8:5::/48 was blocked as one
        sets hold 0
    "}
}

/// A source whose network was held back for too long is found again, though it
/// never was quiet.
#[test]
fn a_network_held_back_is_not_forgotten() {
    trace! {"
        kernel has nf_tables
        without oracle
        at 0 s: start --firewall nft --widen 2 --max-blocks-per-minute=1 --show new --window 10s
        at 1 s: 2001:db8:5:101::7 resets 22 25 80 445
        at 2 s: 2001:db8:5:101::/64 is blocked for 10m
        2001:db8:5:102::7 resets 22 25 80 445
        at 3 s: expect: Port scan detected: 2001:db8:5:102::/64 …
        at 9 s: 2001:db8:5:102::7 resets 22
        at 14 s: expect: Not blocked: 2001:db8:5:100::/56 held back by --max-blocks-per-minute
        2001:db8:5:102::7 resets 22 25 80 445
        at 15 s: expect: Port scan detected: 2001:db8:5:102::/64 …
    "}
}

/// Who lifted a /48 lifted its /56s: they count anew.
#[test]
fn a_lifted_site_counts_anew() {
    trace! {"
        kernel has nf_tables
        without oracle
        at 0 s: start --firewall nft --widen 2 --show new
        at 1 s: 2001:db8:5:101::7 resets 22 25 80 445
        at 2 s: 2001:db8:5:101::/64 is blocked for 10m
        2001:db8:5:102::7 resets 22 25 80 445
        at 3 s: expect: Port scan detected: 2001:db8:5:102::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 10m, …
        2001:db8:5:201::7 resets 22 25 80 445
        at 4 s: 2001:db8:5:201::/64 is blocked for 10m
        2001:db8:5:202::7 resets 22 25 80 445
        at 5 s: expect: Port scan detected: 2001:db8:5:202::/64 …
        expect: Blocked: 2001:db8:5::/48 for 10m, …
        at 20 s: nft delete element 2001:db8:5::/48
        at 21 s: expect: Unblocked: 2001:db8:5::/48 its rule was removed by …
        at 82 s: 2001:db8:5:103::7 resets 22 25 80 445
        at 83 s: 2001:db8:5:103::/64 is blocked for 10m
        at 84 s: 2001:db8:5:104::7 resets 22 25 80 445
        at 85 s: expect: Port scan detected: 2001:db8:5:104::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 1h, …
    "}
}

/// A few more addresses must not shorten what one of them has earned.
#[test]
fn a_network_ends_no_block_that_outlasts_its_own() {
    trace! {"
        kernel has nf_tables
        without oracle
        at 0 s: start --firewall nft --widen 2 --show new
        at 1 s: 2001:db8:5:101::7 resets 22 25 80 445
        at 2 s: 2001:db8:5:101::/64 is blocked for 10m
        at 610 s: expect: Unblocked: 2001:db8:5:101::/64 its time is over
        2001:db8:5:101::7 resets 22 25 80 445
        at 611 s: 2001:db8:5:101::/64 is blocked for 1h
        2001:db8:5:102::7 resets 22 25 80 445
        at 612 s: expect: Port scan detected: 2001:db8:5:102::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 10m, …
        at 1220 s: expect: Unblocked: 2001:db8:5:100::/56 its time is over
        packets from 2001:db8:5:101::7 are dropped
        packets from 2001:db8:5:102::7 are passed
    "}
}

/// A kill between the network's block and the end of its parts.
#[test]
fn parts_that_a_killed_daemon_left_end() {
    let comment = "b=0badcafe e=1200 s=1 t=590 d=n p=22,25,80,443";
    let rule = |source: &str| {
        let comment = format!("-m comment --comment \"tcpparser v1 {comment}\"");
        format!("ip6tables already holds: -s {source} {comment} -j DROP")
    };
    let (part, whole) = (rule("2001:db8:5:101::/64"), rule("2001:db8:5:100::/56"));
    trace! {"
        without oracle
        with foreign rules
        {part}
        {whole}
        at 0 s: start
        at 70 s: ip6tables has 1 rule
        metric tcpparser_blocked_sources is 1
    "}
}

/// Nor are those one network that hold what must not be blocked, or where each
/// address is a source.
#[test]
fn networks_that_hold_others_are_never_blocked_as_one() {
    for (protect, site) in [
        ("2001:db8:5:1ee::53 is a nameserver", "2001:db8:5:1"),
        ("2001:db8:5:1ee::1 is a gateway", "2001:db8:5:1"),
        // Own links, and NAT64.
        ("", "2001:db8:1:"),
        ("", "64:ff9b:1:"),
    ] {
        let peers = (2..40).map(|number| format!("{site}{number:02x}::7 scans"));
        let peers = peers.collect::<Vec<_>>().join("\n");
        let protect = if protect.is_empty() {
            String::new()
        } else {
            format!("at 0 s: {protect}")
        };
        trace! {"
            kernel has nf_tables
            without oracle
            {protect}
            at 0 s: start --firewall nft --widen 2
            at 1 s: {peers}
            at 11 s: expect 38: Port scan detected: {site}…
            expect 38: Blocked: {site}…
            sets hold 38
        "}
    }
}

/// Three ports from each of six addresses: told once, by their network.
#[test]
fn a_scan_spread_over_sources_is_told_and_not_blocked() {
    for (family, network) in [
        ("198.51.100.", "198.51.100.0/24"),
        ("2001:db8:9:", "2001:db8:9::/48"),
    ] {
        let peer = |number: u32| match family {
            "198.51.100." => format!("{family}{number}"),
            _ => format!("{family}{number:x}::1"),
        };
        let scan = |first: u32, count: u32| {
            let scans = (first..first + count).map(|number| {
                let port = 1000 + 3 * number;
                format!("{} opens {} {} {}", peer(number), port, port + 1, port + 2)
            });
            scans.collect::<Vec<_>>().join("\n")
        };
        let (six, more) = (scan(1, 6), scan(7, 6));
        let ports = (1003..1050)
            .map(|port| port.to_string())
            .collect::<Vec<_>>();
        let ports = ports.join(" ");
        trace! {"
            without oracle
            at 0 s: host listens on {ports}
            start
            at 1 s: {six}
            at 11 s: expect: Port scan detected: {network} -> …
            expect: Not blocked: {network} it was spread over several sources
            at 12 s: {more}
            at 21 s: metric tcpparser_blocks_refused_total{{reason=\"spread\"}} is 1
            metric tcpparser_port_scans_total is 1
            kernel holds what was said
        "}
        // Sixteen ports are no such scan, nor are three sources.
        let five = scan(1, 5);
        let sixth = peer(6);
        trace! {"
            without oracle
            at 0 s: host listens on {ports}
            start
            at 1 s: {five}
            {sixth} opens 1018
            at 31 s: metric tcpparser_port_scans_total is 0
        "}
        let six_each = (0..3).map(|number| {
            let ports = (0..6).map(|port| (1003 + 6 * number + port).to_string());
            format!(
                "{} opens {}",
                peer(number + 1),
                ports.collect::<Vec<_>>().join(" ")
            )
        });
        let three = six_each.collect::<Vec<_>>().join("\n");
        let fourth = peer(4);
        trace! {"
            without oracle
            at 0 s: host listens on {ports}
            start --ports 6
            at 1 s: {three}
            at 21 s: metric tcpparser_port_scans_total is 0
            {fourth} opens 1003
            at 31 s: expect: Port scan detected: {network} -> …
            expect: Not blocked: {network} it was spread over several sources
        "}
    }
}

#[test]
fn stale_rows_never_block_again() {
    // The kernel keeps rows of a dead peer for a quarter of an hour; one new
    // port is one port.
    trace! {"
        at 0 s: start --block-time 1m
        at 1 s: 198.51.100.7 scans
        at 121 s: 198.51.100.7 is blocked for 1m
        expect: Unblocked: 198.51.100.7 its time is over
        at 1021 s: 198.51.100.7 opens 22
        at 1081 s:
    "}
}

#[test]
fn a_dry_run_changes_nothing() {
    trace! {"
        host has no rights
        at 0 s: start --dry-run
        198.51.100.7 scans
        at 120 s: expect: Port scan detected: 198.51.100.7 …
        expect: Not blocked: 198.51.100.7 --dry-run
        commands so far 0
    "}
}

#[test]
fn what_a_start_refuses() {
    let mut run = host();
    run.kernel.capabilities = 0;
    assert_eq!(run.start(&[]), Flow::Exit(1));
    assert!(run.error_output().contains("--dry-run"));
    for (user, own) in [(0, 0), (0, 1_000), (1_000, 1_000)] {
        let mut run = host();
        hold(&mut run, Claim::Held { user, own }, CLAIM_TRIES);
        assert_eq!(run.start(&[]), Flow::Exit(1));
        assert!(run.error_output().contains("another tcpparser"));
    }
    let mut run = host();
    assert_eq!(run.start(&["--interval", "never"]), Flow::Exit(2));
    assert!(run.error_output().contains("--interval"));
}

/// Another process has our name when it is asked for this often.
fn hold(run: &mut Run, claim: Claim, times: usize) {
    run.kernel.claims.extend(std::iter::repeat_n(claim, times));
}

/// A scanner comes and is blocked.
fn blocks(run: &mut Run) -> bool {
    run.kernel.scan(SCANNER);
    run.run_for(15);
    !run.lines_with("Blocked: 198.51.100.7").is_empty()
}

#[test]
fn the_name_held_by_another_user_ends_no_start() {
    let stranger = |own| Claim::Held { user: 65_534, own };
    for (claim, why) in [
        (stranger(0), "user 65534 holds it"),
        (stranger(1_000), "user 65534 holds it"),
        (Claim::Silent, "its holder does not answer"),
    ] {
        let mut run = host();
        hold(&mut run, claim, CLAIM_TRIES);
        assert_eq!(run.start(&[]), Flow::Continue);
        assert!(blocks(&mut run));
        assert_eq!(
            run.error_output(),
            format!("tcpparser: blocking without the socket @tcpparser: {why}\n")
        );
    }
}

#[test]
fn a_name_held_for_a_moment_is_taken_then() {
    for claim in [Claim::Silent, Claim::Held { user: 0, own: 0 }] {
        let mut run = host();
        hold(&mut run, claim, CLAIM_TRIES - 1);
        assert_eq!(run.start(&[]), Flow::Continue);
        assert_eq!(run.error_output(), "");
        let waited = run.kernel.now.since(Instant::from_secs(600));
        assert!(waited < Duration::from_millis(100), "{waited:?}");
    }
}

#[test]
fn connections_to_the_name_are_closed_at_leisure() {
    let mut run = started(&[]);
    let descriptors = run.kernel.descriptors();
    run.kernel.knocks = 3;
    run.run_for(2);
    assert_eq!(run.kernel.knocks, 0);
    // More at once than it takes in a turn.
    run.kernel.knocks = 1_000_000;
    assert!(blocks(&mut run));
    let taken = 1_000_000 - run.kernel.knocks;
    assert!((16..=16 * 16).contains(&taken), "{taken}");
    run.kernel.faults.no_descriptors = true;
    run.run_for(5);
    run.kernel.faults.no_descriptors = false;
    run.kernel.knocks = 1;
    run.run_for(5);
    assert_eq!(run.kernel.knocks, 0);
    assert_eq!(run.kernel.descriptors(), descriptors);
}

#[test]
fn lifting_blocks_never_stands_in_the_way_of_a_start() {
    let mut run = host();
    let descriptors = run.kernel.descriptors();
    run.checks.oracle = false;
    assert_eq!(run.start(&["--unblock", "all"]), Flow::Exit(1));
    // The socket of nf_tables stays; the name is free.
    assert_eq!(run.kernel.descriptors(), descriptors + 1);
}

#[test]
fn a_listen_address_that_cannot_be_had_is_tried_again() {
    for (error, why) in [
        ("EADDRINUSE", "address in use"),
        ("EADDRNOTAVAIL", "address not there"),
        ("EACCES", "permission denied"),
    ] {
        trace! {"
            bind fails {error}
            at 0 s: start --interval 5s
            stderr: tcpparser: cannot listen on [::]:3021: {why}; it is tried again
            198.51.100.7 scans
            at 15 s: 198.51.100.7 is blocked for 10m
            bind works
            at 17 s: stderr: tcpparser: listening on [::]:3021 now
            get /healthz from 192.0.2.9 gives 200 ok
        "}
    }
}

#[test]
fn the_list_in_three_modes() {
    let line = "New connection: 198.51.100.7:50000 -> 203.0.113.5:22";
    for (show, nothing, first, second) in [("all", 1, 1, 1), ("new", 1, 1, 0), ("scans", 0, 0, 0)] {
        trace! {"
            with the list
            without oracle
            at 0 s: start --show {show}
            expect: tcpparser starting...
            expect 1:
            at 5 s: expect {nothing}: No TCP peer connection established yet
            198.51.100.7 opens 22
            at 11 s: expect {first}: {line}
            at 21 s: expect {second}: {line}
        "}
    }
}

#[test]
fn one_reading_and_out() {
    let run = play(
        "
        with the list
        without oracle
        198.51.100.7 scans
        start --once exits 0
        expect: tcpparser starting...
        expect 1:
        expect 4: New connection: 198.51.100.7:…
        expect: Port scan detected: 198.51.100.7 …
        commands so far 0
        ",
    );
    assert!(!run.kernel.is_listening());
    trace! {"
        tcp fails EACCES
        start --once exits 1
        stderr: tcpparser: cannot read /proc/net/tcp: permission denied
    "}
}

#[test]
fn healthz_shows_when_readings_stop() {
    trace! {"
        at 0 s: start
        at 1 s: get /healthz gives 200 ok
        tcp fails EACCES
        at 30 s: stderr: tcpparser: cannot read /proc/net/tcp: permission denied
        get /healthz gives 200 ok
        at 40 s: get /healthz gives 503 …
        tcp works
        at 51 s: get /healthz gives 200 ok
    "}
}

/// How --healthcheck ends, and what it says.
fn healthcheck(service: Service, variables: &[(&str, &str)]) -> (Flow, String, Run) {
    let mut run = host();
    // It needs no rights, and minds no interruptions.
    run.kernel.capabilities = 0;
    (run.kernel.faults.interrupts, run.kernel.faults.short) = (200, true);
    run.kernel.service = service;
    for (name, value) in variables {
        let value = value.as_bytes().to_vec();
        run.kernel.environment.insert((*name).to_owned(), value);
    }
    let flow = run.start(&["--healthcheck"]);
    assert_eq!(run.kernel.descriptors(), 4, "all is closed");
    assert!(run.lines().is_empty());
    let errors = run.error_output();
    (flow, errors, run)
}

#[test]
fn a_health_check_asks_the_daemon() {
    let (flow, said, run) = healthcheck(Service::Answers("HTTP/1.1 200 OK\r\n\r\nok\n"), &[]);
    assert_eq!((flow, said.as_str()), (Flow::Exit(0), ""));
    let request = String::from_utf8_lossy(&run.kernel.request).into_owned();
    assert!(request.starts_with("GET /healthz HTTP/1.1\r\n"));
    assert!(request.ends_with("\r\n\r\n"));
    for (service, expected) in [
        (Service::Refuses, "connection refused"),
        (Service::Silent, "no answer in time"),
        (
            Service::Answers(
                "HTTP/1.1 503 Unavailable\r\nA: b\r\n\r\nthe firewall cannot be used\n",
            ),
            "503 the firewall cannot be used",
        ),
        (Service::Answers("HTTP/1.1 2000\r\n\r\n"), "2000"),
        (
            Service::Answers("HTTP/1.1 200 OK\r\nServer: other\r\n\r\n<html></html>\n"),
            "that is no answer of tcpparser",
        ),
        (
            Service::Answers("HTTP/1.1 200 OK\r\n\r\n"),
            "that is no answer of tcpparser",
        ),
        (
            Service::Answers("HTTP/1.1 404 No\r\n\r\n\x1b[2J\n"),
            "404 [2J",
        ),
        (
            Service::Answers("HTTP/1.1"),
            "that is no answer of tcpparser",
        ),
        (
            Service::Answers("SSH-2.0-a\r\n"),
            "that is no answer of tcpparser",
        ),
        (Service::Answers(""), "that is no answer of tcpparser"),
    ] {
        let is_silent = matches!(service, Service::Silent);
        let (flow, said, run) = healthcheck(service, &[]);
        assert_eq!(flow, Flow::Exit(1));
        assert_eq!(said, format!("tcpparser: 127.0.0.1:3021: {expected}\n"));
        let took = run.kernel.now.since(Instant::from_secs(600));
        let expected = if is_silent { 3 } else { 0 };
        assert_eq!(took, Duration::from_secs(expected));
    }
}

#[test]
fn a_health_check_asks_where_the_daemon_listens() {
    for (listen, asked) in [
        ("", "127.0.0.1:3021"),
        (":99", "127.0.0.1:99"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("192.0.2.1:80", "192.0.2.1:80"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
    ] {
        let (flow, said, run) = healthcheck(Service::Refuses, &[("TCPPARSER_LISTEN", listen)]);
        assert_eq!(flow, Flow::Exit(1));
        assert_eq!(said, format!("tcpparser: {asked}: connection refused\n"));
        assert_eq!(run.kernel.asked.len(), 1);
    }
    let (flow, said, run) = healthcheck(Service::Refuses, &[("TCPPARSER_LISTEN", "none")]);
    assert_eq!(flow, Flow::Exit(1));
    assert_eq!(said, "tcpparser: --listen none leaves no listener to ask\n");
    assert!(run.kernel.asked.is_empty());
}

/// A host whose init system supervises us.
fn supervised(watchdog: &str) -> Run {
    let mut run = host();
    for (name, value) in [("NOTIFY_SOCKET", "@init"), ("WATCHDOG_USEC", watchdog)] {
        let value = value.as_bytes().to_vec();
        run.kernel.environment.insert(name.to_owned(), value);
    }
    run
}

/// What it received since the last call, with the seconds since the start.
fn notified(run: &mut Run) -> Vec<(u64, String)> {
    let notified = std::mem::take(&mut run.kernel.notified).into_iter();
    notified
        .map(|(at, text)| (at.as_secs() - 600, text))
        .collect()
}

#[test]
fn an_init_system_learns_of_start_life_and_end() {
    let mut run = supervised("");
    assert_eq!(run.start(&[]), Flow::Continue);
    assert_eq!(notified(&mut run), [], "not before the first reading");
    run.run_for(25);
    let expected = [
        (0, "READY=1"),
        (0, "WATCHDOG=1"),
        (10, "WATCHDOG=1"),
        (20, "WATCHDOG=1"),
    ];
    assert_eq!(
        notified(&mut run),
        expected.map(|(at, text)| (at, text.to_owned()))
    );
    run.terminate();
    assert_eq!(notified(&mut run), [(25, "STOPPING=1".to_owned())]);
    // Not asked for.
    let mut run = supervised("1000000");
    run.kernel.environment.remove("NOTIFY_SOCKET");
    run.start(&[]);
    run.run_for(25);
    assert_eq!((notified(&mut run), run.kernel.readings.len()), (vec![], 3));
}

#[test]
fn a_start_without_rows_is_a_start_and_nothing_to_feed_a_watchdog() {
    let mut run = supervised("30000000");
    run.kernel.faults.rows.v4 = Some(Errno::ENOENT);
    assert_eq!(run.start(&[]), Flow::Continue);
    run.run_for(35);
    assert_eq!(notified(&mut run), [(0, "READY=1".to_owned())]);
    run.kernel.faults.rows.v4 = None;
    run.run_for(10);
    assert_eq!(notified(&mut run), [(40, "WATCHDOG=1".to_owned())]);
    run.kernel.faults.rows.v6 = Some(Errno::EACCES);
    run.run_for(20);
    assert_eq!(notified(&mut run), []);
}

#[test]
fn readings_come_often_enough_for_the_watchdog() {
    for (microseconds, interval, readings, longest) in [
        ("6000000", "1h", 21, 3_000),
        ("6000000", "2s", 31, 2_000),
        ("1", "1h", 601, 100),
        ("30000000", "10s", 7, 10_000),
        ("99999999999999999999", "1h", 1, 0),
        ("soon", "1h", 1, 0),
        ("0", "1h", 1, 0),
    ] {
        let mut run = supervised(microseconds);
        run.checks.oracle = false;
        assert_eq!(run.start(&["--interval", interval]), Flow::Continue);
        run.run_for(60);
        let fed = &run.kernel.notified[1..];
        let gaps = fed.windows(2).map(|pair| pair[1].0.since(pair[0].0));
        let longest = Duration::from_millis(longest);
        assert_eq!(gaps.max().unwrap_or_default(), longest, "{microseconds}");
        let count = run.kernel.readings.len();
        assert!(
            fed.len() == count && count.abs_diff(readings) < 2,
            "{count} {microseconds}"
        );
    }
}

#[test]
fn a_deaf_init_system_is_notified_again_that_we_are_ready() {
    let mut run = supervised("");
    run.kernel.faults.notify = Some(Errno::ECONNREFUSED);
    assert_eq!(run.start(&[]), Flow::Continue);
    run.run_for(25);
    assert_eq!(run.kernel.readings.len(), 26);
    let said = "tcpparser: NOTIFY_SOCKET cannot be notified: connection refused\n";
    assert_eq!(run.error_output(), said);
    run.kernel.faults.notify = Some(Errno::EAGAIN);
    run.run_for(10);
    run.kernel.faults.notify = None;
    run.run_for(10);
    assert_eq!(notified(&mut run)[0], (36, "READY=1".to_owned()));
    run.run_for(10);
    assert_eq!(notified(&mut run), [(50, "WATCHDOG=1".to_owned())]);
    assert_eq!(run.error_output(), "");
}

#[test]
fn blocked_is_for_neighbours() {
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 scans
        at 12 s: 198.51.100.7 is blocked for 10m
        get /blocked from 127.0.0.1 gives 200 198.51.100.7/32
        get /blocked from ::1 gives 200 198.51.100.7/32
        get /blocked from 10.0.0.9 gives 200 198.51.100.7/32
        get /blocked from 198.51.100.77 gives 403 403 Forbidden
        get /blocks from 198.51.100.77 gives 403 403 Forbidden
    "}
}

/// A browser asks by the name of the page, which pointed elsewhere before.
#[test]
fn blocked_is_for_no_web_page() {
    let mut run = started(&[]);
    let files = &mut run.kernel.files;
    files.insert("/proc/sys/kernel/hostname".into(), "fw\n".into());
    let resolver = "search corp.example\nnameserver 10.0.0.53\n";
    files.insert("/etc/resolv.conf".into(), resolver.into());
    for (host, status) in [
        ("203.0.113.5:3021", "200"),
        ("fw:3021", "200"),
        ("fw.lan", "200"),
        ("fw.corp.example", "200"),
        ("page.example", "403"),
        ("fw.page.example:3021", "403"),
    ] {
        for path in ["/blocked", "/blocks"] {
            let answer = run.get_of("10.0.0.9", host, path);
            assert_eq!(answer.split(' ').nth(1), Some(status), "{host}");
        }
        let metrics = run.get_of("10.0.0.9", host, "/metrics");
        assert_eq!(metrics.split(' ').nth(1), Some("200"), "{host}");
    }
    let client = run
        .kernel
        .connect("10.0.0.9", b"GET /blocked HTTP/1.0\r\n\r\n");
    run.run_for(0);
    assert!(
        run.kernel.clients[client]
            .answer
            .starts_with(b"HTTP/1.1 200 ")
    );
}

#[test]
fn slow_clients_never_delay_a_reading() {
    let mut run = started(&[]);
    for _ in 0..20 {
        let client = run.kernel.connect("192.0.2.9", b"G");
        for (second, byte) in (1..).zip(b"ET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") {
            let at = run.kernel.now.after(Duration::from_secs(second));
            run.kernel
                .at(at, move |kernel| kernel.client_sends(client, &[*byte]));
        }
    }
    let before = run.kernel.readings.len();
    run.run_for(100);
    let readings = &run.kernel.readings[before..];
    let gaps = readings.windows(2).map(|pair| pair[1].at.since(pair[0].at));
    assert_eq!(readings.len(), 10);
    for gap in gaps {
        assert_eq!(gap, Duration::from_secs(10));
    }
}

#[test]
fn without_descriptors_a_client_waits_and_nothing_spins() {
    let mut run = started(&["--interval", "1h"]);
    run.kernel.faults.no_descriptors = true;
    let client = run
        .kernel
        .connect("192.0.2.9", b"GET /healthz HTTP/1.0\r\n\r\n");
    let at = run.kernel.now.after(Duration::from_secs(5));
    run.kernel.at(at, move |kernel| {
        assert_eq!(kernel.clients[client].answer, b"");
        kernel.faults.no_descriptors = false;
    });
    run.run_for(10);
    assert!(
        run.kernel.clients[client]
            .answer
            .starts_with(b"HTTP/1.1 200 ")
    );
}

#[test]
fn a_silent_client_is_closed_in_time() {
    let mut run = started(&["--interval", "1h"]);
    let client = run.kernel.connect("192.0.2.9", b"G");
    let at = run.kernel.now.after(Duration::from_secs(8));
    run.kernel.at(at, move |kernel| {
        assert!(kernel.clients[client].is_done, "after 8 s");
    });
    run.run_for(20);
    assert!(
        run.kernel.clients[client]
            .answer
            .starts_with(b"HTTP/1.1 408 ")
    );
}

#[test]
fn a_slow_stdout_costs_lines_not_time() {
    let mut run = started(&[]);
    run.checks = super::run::Checks {
        oracle: false,
        output: false,
        own_rules: true,
        truth: false,
    };
    for from in 50_000..50_500 {
        run.kernel.open_connection("192.0.2.7", from, 22);
    }
    run.kernel.stdout = Stdout::Room(0);
    let before = run.kernel.readings.len();
    run.run_for(100);
    let readings = &run.kernel.readings[before..];
    assert_eq!(readings.len(), 10);
    for pair in readings.windows(2) {
        let gap = pair[1].at.since(pair[0].at);
        assert!(gap < Duration::from_millis(10_200), "{gap:?}");
    }
    run.kernel.scan(SCANNER);
    run.run_for(11);
    assert_eq!(
        run.kernel.tables.v4.blocks().len(),
        1,
        "and detection goes on"
    );
    run.kernel.stdout = Stdout::Open;
    run.run_for(11);
    assert_ne!(run.metric("tcpparser_output_lines_dropped_total"), "0");
    assert!(run.lines_with("New connection").len() > 500);
    run.terminate();
}

#[test]
fn a_broken_stdout_stops_nothing() {
    trace! {"
        at 0 s: start
        at 1 s: stdout breaks
        198.51.100.7 scans
        at 12 s: iptables has 1 rule
        terminate
    "}
}

#[test]
fn an_exit_waits_for_no_child() {
    for how in [
        "until SIGTERM",
        "until SIGKILL",
        "silently until SIGTERM",
        "silently until SIGKILL",
    ] {
        trace! {"
            at 0 s: start
            at 1 s: iptables hangs {how}
            198.51.100.7 scans
            at 12 s: expect: Port scan detected: 198.51.100.7 …
            a child runs
            terminate
        "}
    }
}

#[test]
fn a_hanging_child_is_ended() {
    for ignores_sigterm in [false, true] {
        let mut run = started(&[]);
        let hang = ChildFault::Hangs {
            ignores_sigterm,
            closes_output: false,
            worked: true,
        };
        run.kernel.child_faults.push_back(hang);
        run.kernel.scan(SCANNER);
        run.run_for(60);
        let lines = run.lines_with("lock");
        assert_eq!(
            lines[0],
            "Block failed: 198.51.100.7 iptables-restore did not end in time; it is tried again"
        );
        assert!(
            lines[1].starts_with("Blocked: 198.51.100.7"),
            "its work was done: {lines:?}"
        );
        run.check_quiet();
    }
}

#[test]
fn listings_of_any_kind_are_survived() {
    for fault in [ChildFault::Garbage, ChildFault::Huge, ChildFault::Flood] {
        let mut run = started(&[]);
        run.kernel.scan(SCANNER);
        run.run_for(10);
        run.kernel.child_faults.extend([fault, fault]);
        run.kernel.interfered = Some(run.kernel.now);
        run.run_for(300);
        assert_eq!(run.kernel.tables.v4.blocks().len(), 1, "{fault:?}");
        let jumps = ["-j TCPPARSER"];
        assert_eq!(run.kernel.tables.v4.rules("INPUT"), jumps, "{fault:?}");
        for byte in run.error_output().bytes() {
            assert!(
                byte == b'\n' || (b' '..=b'~').contains(&byte),
                "raw bytes echoed"
            );
        }
    }
}

#[test]
fn a_client_of_a_dual_stack_listener_counts_as_ipv4() {
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    for socket in &mut run.kernel.sockets {
        socket.is_dual_stack = socket.state == TcpState::Established;
    }
    run.run_for(11);
    let scans = run.lines_with("Port scan detected");
    assert_eq!(
        scans,
        ["Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,445"]
    );
    assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
}

#[test]
fn parallel_downloads_are_no_scan() {
    trace! {"
        at 0 s: start
        at 1 s: 198.51.100.7 from 443 opens 40000, 40001, 40002, 40003, 40004, 40005
        at 61 s:
    "}
}

/// Those of other hosts are evidence and do not wait.
#[test]
fn a_late_event_of_the_self_test_proves_as_much() {
    for (late, is_said) in [(4, false), (20, true)] {
        let mut run = host();
        run.kernel.faults.late_events = Duration::from_secs(late);
        assert_eq!(run.start(&[]), Flow::Continue);
        let up = |run: &mut Run| {
            let request = b"GET /metrics HTTP/1.0\r\n\r\n";
            let client = run.kernel.connect("192.0.2.9", request);
            run.run_for(1);
            let answer = String::from_utf8_lossy(&run.kernel.clients[client].answer).into_owned();
            answer.contains("tcpparser_evidence_source_up{source=\"destroy_events\"} 1")
        };
        run.run_for(2);
        assert!(!up(&mut run));
        run.run_for(20);
        assert!(up(&mut run));
        let said = run.error_output().matches("the kernel sends none").count();
        assert_eq!(said, usize::from(is_said));
    }
}

/// Each cause by its name.
#[test]
fn why_no_events_come_is_said() {
    trace! {"
        kernel lacks events
        at 0 s: start
        at 5 s: stderr: tcpparser: no destroy events: the kernel sends none; …
    "}
    trace! {"
        kernel lacks loopback
        at 0 s: start
        at 5 s: stderr: tcpparser: no destroy events: no loopback to test them; …
    "}
}

/// The self-test is over when it failed, though a late event still counts.
#[test]
fn readings_come_fast_where_events_never_do() {
    for passive_opens in [0, 1_000] {
        let mut run = host();
        // 0: no counters are to be had either.
        run.kernel.passive_opens = passive_opens;
        run.kernel.faults.late_events = Duration::from_secs(3_600);
        assert_eq!(run.start(&["--interval=1h"]), Flow::Continue);
        let early = |run: &mut Run| {
            let count = run.metric("tcpparser_early_readings_total");
            count.parse::<u64>().unwrap()
        };
        run.run_for(4);
        assert_eq!(early(&mut run), 0, "while the test goes on");
        run.run_for(2);
        let before = early(&mut run);
        run.run_for(10);
        let made = early(&mut run) - before;
        assert!((90..=110).contains(&made), "{made} in 10 s");
    }
}

/// Without tcp_diag no socket is found: that is no sign that one is gone.
#[test]
fn closing_rows_are_evidence_where_the_kernel_lacks_tcp_diag() {
    trace! {"
        kernel lacks events
        kernel lacks tcp_diag
        at 0 s: start
        at 10 s: stderr: tcpparser: …
        198.51.100.7 opens 22, 25, 80, 445 in LAST_ACK
        at 12 s: 198.51.100.7 is blocked for 10m
        lookups so far 4
        iptables has 1 rule
    "}
}

#[test]
fn events_within_the_host_may_wait_for_a_millisecond() {
    let mut run = host();
    // They would wake us by the socket of all namespaces, too.
    run.kernel.faults.foreign_events = Some(Errno::EPERM);
    assert_eq!(run.start(&[]), Flow::Continue);
    run.run_for(1);
    let (own, loopback, scanner) = ([203, 0, 113, 5], [127, 0, 0, 1], [198, 51, 100, 7]);
    let mut wait_after = |local, remote| {
        run.kernel.destroy((local, 80), (remote, 50_000));
        assert_eq!(run.turn(), Flow::Continue);
        let before = run.kernel.now;
        run.kernel.destroy((own, 80), (scanner, 50_001));
        assert_eq!(run.turn(), Flow::Continue);
        run.kernel.now.since(before)
    };
    assert_eq!(wait_after(loopback, loopback), EVENTS_REST);
    assert_eq!(wait_after(own, own), EVENTS_REST);
    assert_eq!(wait_after(own, scanner), Duration::ZERO);
    assert_eq!(run.metric("tcpparser_destroy_events_total"), "7");
}

/// What waits when an interval ends is taken in before anything is missed,
/// however late the daemon gets a processor.
#[test]
fn a_backlog_of_events_is_not_missed() {
    let mut run = host();
    run.kernel.passive_opens = 1_000;
    assert_eq!(
        run.start(&["--interval=1s", "--show=scans"]),
        Flow::Continue
    );
    run.run_for(1);
    let mut peers = 10_000..;
    for _ in 0..2 {
        run.kernel.passive_opens += 600;
        run.run_for(1);
        for port in peers.by_ref().take(600) {
            let (own, peer) = ([203, 0, 113, 5], [198, 51, 100, 7]);
            run.kernel.destroy((own, 80), (peer, port));
        }
        run.kernel.now = run.kernel.now.after(EVENTS_LATENESS);
    }
    run.kernel.passive_opens += 5;
    run.run_for(10);
    assert_eq!(run.metric("tcpparser_connections_missed_total"), "5");
}

/// The service took the data and closed; no answer will ever come.
#[test]
fn forged_connections_are_no_evidence() {
    // Each is asked for once, and none is listed. Their ends come, and those of
    // some that no reading showed. The real owner of that address is no less a
    // scanner.
    let run = play(
        "
        at 0 s: start --interval=1s
        at 1 s: 198.51.100.7 is forged
        198.51.100.7 opens 22, 25, 80, 445 in FIN_WAIT1
        at 6 s: lookups so far 4
        198.51.100.7 closes
        198.51.100.7 opens 22, 25 in CLOSING
        198.51.100.7 opens 80, 445 in LAST_ACK
        at 8 s: 198.51.100.7 ends
        198.51.100.7 resets 22, 25, 80, 445
        at 128 s: metric tcpparser_events_unproven_total is 8
        metric tcpparser_port_scans_total is 0
        198.51.100.7 is real
        198.51.100.7 resets 22, 25, 80, 445
        at 129 s: 198.51.100.7 is blocked for 10m
        iptables has 1 rule
        ",
    );
    let output = String::from_utf8_lossy(&run.kernel.output);
    assert!(!output.contains("New connection"));
}

#[test]
fn connections_first_seen_while_they_close_are_evidence() {
    for state in ["FIN_WAIT1", "CLOSING", "LAST_ACK"] {
        trace! {"
            at 0 s: start
            at 1 s: 198.51.100.7 opens 22, 25, 80, 445 in {state}
            at 12 s: 198.51.100.7 is blocked for 10m
            iptables has 1 rule
        "}
    }
}

/// A row that proved a handshake stays proof, and nothing is asked for.
#[test]
fn connections_seen_before_they_close_are_not_asked_for() {
    trace! {"
        at 0 s: start --interval=1s
        at 1 s: 10.0.0.9 opens 22, 25, 80
        at 3 s: 10.0.0.9 enters FIN_WAIT1
        at 103 s: lookups so far 0
        10.0.0.9 opens 445
        at 105 s: 10.0.0.9 is blocked for 10m
        iptables has 1 rule
    "}
}

/// Where no socket can be asked for, the setting decides.
#[test]
fn what_cannot_be_asked_for_is_forgeable_by_the_setting_alone() {
    let said = "198.51.100.7 is blocked for 10m";
    for (setting, expected) in [("3", said), ("515", "iptables has no chain")] {
        trace! {"
            without oracle
            at 0 s: start
            at 1 s: sysctl tcp_fastopen {setting}
            rtnetlink fails EACCES
            at 71 s: 198.51.100.7 opens 22, 25, 80, 445 in LAST_ACK
            at 82 s: lookups so far 0
            {expected}
        "}
    }
}

/// A reading asks for so many and no more; an end proves what no row did.
#[test]
fn questions_are_bounded() {
    let mut run = started(&["--interval=1h"]);
    run.checks.oracle = false;
    for number in 0..HANDSHAKES_ASKED as u16 {
        let from = 10_000 + number;
        run.kernel.open_connection("192.0.2.77", from, 22);
    }
    run.kernel.scan(SCANNER);
    for socket in &mut run.kernel.sockets {
        if socket.state == TcpState::Established {
            (socket.state, socket.inode) = (TcpState::FinWait1, 0);
        }
    }
    run.run_for(3_600);
    assert_eq!(run.kernel.lookups, HANDSHAKES_ASKED as u64);
    assert!(run.lines_with("Port scan").is_empty());
    run.kernel.close_all_of(SCANNER);
    run.kernel.end_scan(SCANNER, 50_000);
    run.run_for(1);
    assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
}

/// The kernel counts a client before we accept it; under load there always is
/// one that no row and no event showed yet.
#[test]
fn our_own_clients_bring_no_early_readings() {
    let mut run = host();
    run.kernel.passive_opens = 1_000;
    assert_eq!(
        run.start(&["--interval=1m", "--show=scans"]),
        Flow::Continue
    );
    run.run_for(2);
    for _ in 0..30 {
        // They come while the counter is looked at, too.
        for _ in 0..100 {
            run.kernel.passive_opens += 2;
            run.kernel.connect("127.0.0.1", b"");
            run.kernel.connect("192.0.2.77", b"");
            run.kernel.now = run.kernel.now.after(COUNTERS_AGAIN);
            assert_eq!(run.turn(), Flow::Continue);
        }
    }
    assert_eq!(run.metric("tcpparser_early_readings_total"), "0");
    run.checks.oracle = false;
    // What is held besides them is found all the same.
    run.kernel.passive_opens += 5;
    run.kernel.connect("127.0.0.1", b"");
    run.kernel.scan(SCANNER);
    run.run_for(2);
    assert_eq!(run.metric("tcpparser_early_readings_total"), "1");
    assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
}

impl Run {
    /// `SCANNER` connected to these ports of `own`, and was reset.
    fn end_connections(&mut self, own: [u8; 4], from: u16, ports: &[u16]) {
        for (number, port) in (from..).zip(ports) {
            self.kernel
                .destroy((own, *port), ([198, 51, 100, 7], number));
        }
    }
}

pub const OWN_OCTETS: [u8; 4] = [203, 0, 113, 5];
const NEW_INBOUND: &str = "tcpparser_new_connections_total{direction=\"in\",family=\"4\"}";

/// A scraper of us and three exporters is no scanner.
#[test]
fn our_own_port_is_no_evidence() {
    // The end of our own client is no other connection.
    trace! {"
        at 0 s: start --interval=1m
        at 1 s: 198.51.100.7 resets 22, 25, 80
        198.51.100.7 connects
        at 2 s: metric {NEW_INBOUND} is 4
        198.51.100.7 from 40000 resets 3021
        at 3 s: metric {NEW_INBOUND} is 4
        198.51.100.7 resets 443
        at 4 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,443
        expect: Blocked: 198.51.100.7 for 10m, …
    "}
}

/// Without a listener of ours it is a port like any other.
#[test]
fn the_port_of_another_listener_is_evidence() {
    trace! {"
        host listens on 3021
        at 0 s: start --listen none
        at 1 s: 198.51.100.7 resets 22, 25, 80, 3021
        at 2 s: 198.51.100.7 is blocked for 10m
    "}
}

#[test]
fn services_that_just_started_are_seen_within_two_seconds() {
    for (ports, interval) in [
        ("6001, 6002, 6003, 6004", "10s"),
        ("6001, 6002, 6003, 6004", "1h"),
        ("40001, 40002, 40003, 6004", "10s"),
        ("40001, 40002, 40003, 6004", "1h"),
    ] {
        trace! {"
            without oracle
            at 0 s: start --interval {interval}
            at 1 s: host listens on {ports}
            198.51.100.7 resets {ports}
            at 3 s: 198.51.100.7 is blocked for 10m
            metric {NEW_INBOUND} is 4
        "}
    }
}

/// Each listener is gone with its connection.
#[test]
fn the_data_ports_of_ftp_are_no_services() {
    let mut run = started(&["--interval=1s", "--show=scans"]);
    run.checks.oracle = false;
    run.kernel.passive_opens = 1_000;
    run.run_for(2);
    for number in 0..60 {
        let port = 21_100 + number % 11;
        run.kernel.listen_on("203.0.113.5", port);
        run.run_for(u64::from(number % 3));
        let is_data = |socket: &FakeSocket| socket.local.1 == port;
        run.kernel.sockets.retain(|socket| !is_data(socket));
        run.kernel.passive_opens += 1;
        run.end_connections(OWN_OCTETS, 50_000 + number, &[port]);
        run.run_for(u64::from(number % 2));
    }
    run.run_for(5);
    assert!(run.lines_with("Port scan detected").is_empty());
    assert_eq!(run.metric(NEW_INBOUND), "60");
    assert_eq!(run.metric("tcpparser_connections_missed_total"), "0");
}

/// A proxy takes connections to addresses that are not the host's.
#[test]
fn an_address_that_is_not_ours_has_no_services() {
    // Nor can an aborted connection be distinguished from one to such an
    // address. It moves here within the window.
    trace! {"
        without oracle
        at 0 s: start --interval=10s
        at 1 s: 198.51.100.7 resets 22, 25, 80, 443 at 203.0.113.99
        at 21 s: 198.51.100.8 aborts 22, 25, 80, 443
        at 23 s: 203.0.113.99 is own
        at 34 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.99 on ports 22,25,80,443
        expect: Blocked: 198.51.100.7 for 10m, …
    "}
}

/// What a proxy aborts no longer names the address it was meant for: while
/// packets may be diverted, and ten minutes after, it is no evidence.
#[test]
fn what_is_aborted_beside_a_proxy_is_no_evidence() {
    for networks in ["0.0.0.0", "::", "0.0.0.0 ::"] {
        trace! {"
            without oracle
            at 0 s: start --interval=1m
            at 1 s: packets to {networks} are diverted
            at 3 s: 10.0.0.7 aborts 22, 25, 80, 443
            at 705 s: 10.0.0.8 aborts 22, 25, 80, 443
            at 707 s: packets to none are diverted
            at 1297 s: 10.0.0.9 aborts 22, 25, 80, 443

            # What names its address is.
            at 1299 s: 198.51.100.7 resets 22, 25, 80, 443
            at 1301 s: 198.51.100.7 is blocked for 10m
            at 1321 s: 10.0.0.10 aborts 22, 25, 80, 443
            at 1323 s: expect: Port scan detected: 10.0.0.10 -> 10.0.0.1 on ports 22,25,80,443
            expect: Blocked: 10.0.0.10 for 10m, …
        "}
    }
}

#[test]
fn aborted_connections_name_an_own_address() {
    // Their direction is unknown.
    trace! {"
        at 0 s: start --interval=1m
        at 1 s: 10.0.0.9 aborts 22, 25, 80, 443
        at 2 s: 10.0.0.9 is blocked for 10m
        metric {NEW_INBOUND} is 0
    "}
}

/// More of them than fit, to peers that differ, around one scan.
#[test]
fn outgoing_connections_push_no_scan_out() {
    for peers in [1, 250] {
        let mut run = started(&["--interval=10s"]);
        run.checks.oracle = false;
        let ports = [40_001, 40_002, 40_003, 40_004];
        for port in ports {
            run.kernel.listen_on("0.0.0.0", port);
        }
        let flood = |run: &mut Run| {
            for number in 0..2_000 {
                let peer = [192, 0, 2, (number % peers) as u8];
                run.kernel
                    .destroy((OWN_OCTETS, 33_000 + number), (peer, 443));
            }
        };
        flood(&mut run);
        run.end_connections(OWN_OCTETS, 50_000, &ports);
        flood(&mut run);
        run.run_for(12);
        assert_eq!(
            run.lines_with("Port scan detected"),
            ["Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 40001,40002,40003,40004"]
        );
        assert_eq!(run.metric(NEW_INBOUND), "4");
    }
}

/// Stopped for longer than an interval: what the socket holds is more than one
/// turn takes in, and none of it is missed.
#[test]
fn what_waits_while_we_are_stopped_is_not_missed() {
    for interval in ["100ms", "1s"] {
        let mut run = host();
        run.kernel.passive_opens = 1_000;
        let arguments = ["--show=scans", "--interval", interval];
        assert_eq!(run.start(&arguments), Flow::Continue);
        run.run_for(2);
        run.checks.oracle = false;
        run.kernel.passive_opens += 4_000;
        let interval = Duration::parse(interval.as_bytes()).unwrap();
        run.run_until(run.kernel.now.after(interval));
        run.kernel.now = run.kernel.now.after(Duration::from_secs(5));
        for number in 0..4_000 {
            run.kernel
                .destroy((OWN_OCTETS, 80), ([198, 51, 100, 7], 10_000 + number));
        }
        for _ in 0..4 {
            run.kernel.now = run.kernel.now.after(Duration::from_secs(5));
            assert_eq!(run.turn(), Flow::Continue);
        }
        run.kernel.passive_opens += 5;
        run.run_for(5);
        assert_eq!(run.metric(NEW_INBOUND), "4000");
        assert_eq!(run.metric("tcpparser_connections_missed_total"), "5");
    }
}

/// Their answers use up a share of the processor; between two turns they wait,
/// and so does a scraper, for a moment.
#[test]
fn busy_clients_get_a_share_of_the_processor() {
    let mut run = started(&["--interval=1s"]);
    run.kernel.send_cost = Duration::from_millis(1);
    let request = b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    let busy: Vec<_> = (0..16)
        .map(|_| run.kernel.connect("192.0.2.77", &request))
        .collect();
    let (began, cpu_before) = (run.kernel.now, run.kernel.cpu_time);
    let (mut turns, until) = (0, began.after(Duration::from_secs(20)));
    while run.kernel.now < until {
        for client in &busy {
            if run.kernel.clients[*client].to_send.len() < request.len() {
                run.kernel.client_sends(*client, &request);
            }
        }
        let cpu_before = run.kernel.cpu_time;
        assert_eq!(run.turn(), Flow::Continue);
        turns += 1;
        let cost = run.kernel.cpu_time.saturating_sub(cpu_before);
        assert!(cost <= Duration::from_millis(16 * 4), "one turn");
    }
    let cost = run.kernel.cpu_time.saturating_sub(cpu_before);
    // A second was saved up; then one part in four of the time, and a debt.
    let most = Duration::from_millis(1_000 + 20_000 / 4 + 200);
    assert!(cost <= most, "{cost:?}");
    assert!(cost >= Duration::from_secs(4), "{cost:?}");
    assert!(turns < 500, "{turns} turns: nothing is polled for it");
    let scraper = run
        .kernel
        .connect("192.0.2.78", b"GET /metrics HTTP/1.0\r\n\r\n");
    run.run_until(run.kernel.now.after(Duration::from_millis(600)));
    assert!(run.kernel.clients[scraper].is_done, "a scraper");
    run.kernel.send_cost = Duration::ZERO;
    run.run_for(1);
    let readings = run.metric("tcpparser_readings_total");
    assert!(
        readings.parse::<u64>().unwrap() >= 20,
        "{readings} readings"
    );
}

#[test]
fn a_burst_of_clients_is_answered_in_few_turns() {
    let mut run = started(&[]);
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let clients: Vec<_> = (0..40)
        .map(|_| run.kernel.connect("192.0.2.77", request))
        .collect();
    for _ in 0..8 {
        assert_eq!(run.turn(), Flow::Continue);
    }
    let answers = clients.iter().map(|one| &run.kernel.clients[*one].answer);
    assert_eq!(answers.filter(|answer| !answer.is_empty()).count(), 40);
}

#[test]
fn a_table_of_blocks_that_is_full_refuses() {
    let mut run = host();
    run.kernel.nf_tables.lacks.nf_tables = false;
    run.checks.oracle = false;
    let started = run.start(&[
        "--interval=1m",
        "--window=2m",
        "--show=scans",
        "--max-blocks-per-minute=100000",
    ]);
    assert_eq!(started, Flow::Continue);
    run.run_for(1);
    // In parts: more sources at once than the detector watches.
    let part = (crate::limits::BLOCKS / 4) as u32;
    let peer = |number: u32| IpAddr::V4((0xc612_0000 + number).into()).to_string();
    for start in (0..=4 * part).step_by(part as usize) {
        let count = if start == 4 * part { 5 } else { part };
        run.kernel
            .sockets
            .retain(|socket| socket.state == TcpState::Listen);
        for number in start..start + count {
            run.kernel.scan(&peer(number));
        }
        run.run_for(60);
    }
    assert_eq!(run.lines_with("Not blocked").len(), 5);
    assert_eq!(run.kernel.rules_of(Family::V4).len(), crate::limits::BLOCKS);
}

impl Run {
    pub fn get_from(&mut self, peer: &str, path: &str) -> String {
        self.get_of(peer, "localhost", path)
    }

    fn get_of(&mut self, peer: &str, host: &str, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let client = self.kernel.connect(peer, request.as_bytes());
        self.run_for(0);
        let client = &self.kernel.clients[client];
        assert!(client.is_done);
        String::from_utf8(client.answer.clone()).unwrap()
    }

    pub fn get(&mut self, path: &str) -> String {
        self.get_from("127.0.0.1", path)
    }

    /// The value of a metric without labels.
    pub fn metric(&mut self, name: &str) -> String {
        let answer = self.get("/metrics");
        let mut values = answer
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.next().expect("the metric is there").to_owned()
    }
}

impl FakeKernel {
    /// The ends of a scan's connections, from that port on.
    fn end_scan(&mut self, peer: &str, from: u16) {
        let octets = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        for (from, port) in (from..).zip([22, 25, 80, 445]) {
            self.destroy((octets(OWN), port), (octets(peer), from));
        }
    }

    /// The same four ports, by connections of their own.
    pub fn scan_again(&mut self, peer: &str) {
        let from = 51_000 + (self.now.as_secs() % 1_000) as u16;
        for (from, port) in (from..).zip([22, 25, 80, 445]) {
            self.open_connection(peer, from, port);
        }
    }

    pub fn delete_rule_of(&mut self, peer: &str) {
        let table = &mut self.tables.v4;
        let mut rules = table.blocks().iter();
        let rule = rules.find(|rule| rule.contains(peer)).unwrap().clone();
        table.command(&format!("-D TCPPARSER {rule}")).unwrap();
        self.interfered = Some(self.now);
    }
}

#[test]
fn a_flood_of_scans_has_300_lines_a_minute() {
    trace!(
        "kernel has nf_tables
        lines are held back
        at 0 s: start --firewall nft
        at 1 s: 198.51.100.1-200 scans
        at 15 s: expect 200: Port scan detected: …
        expect 100: Blocked: …
        metric tcpparser_port_scans_total is 200
        metric tcpparser_blocks_total is 200
        metric tcpparser_output_lines_dropped_total is 0
        sets hold 200
        # Once more, in the same minute.
        198.51.101.1-10 scans
        at 26 s: metric tcpparser_blocks_total is 210
        at 80 s: expect: … and 120 more
        # The next minute has lines of its own.
        198.51.101.11 scans
        at 91 s: 198.51.101.11 is blocked for 10m
        at 92 s: metric tcpparser_unblocks_total{{reason=\"expired\"}} is 0
        at 620 s: expect 210: Unblocked: …
        # What is held back is said at the end, too.
        198.51.102.1-200 scans
        at 635 s: expect 90: Port scan detected: …
        terminate
        expect: … and 310 more
        expect: 201 blocks stand; to lift all: tcpparser --unblock all"
    );
}

#[test]
fn the_journal_gets_priorities_and_a_sign_of_life() {
    trace!(
        "stdout is the journal
        with the list
        at 0 s: start --block-time 25h
        expect: <6>tcpparser starting...
        expect: <6>
        at 1 s: expect: <6>No TCP peer connection established yet
        198.51.100.7 opens 22
        at 11 s: expect: <6>New connection: 198.51.100.7:50000 -> 203.0.113.5:22
        terminate"
    );
    trace!(
        "stdout is the journal
        without oracle
        at 0 s: start --interval 1m --block-time 25h
        at 1 s: 198.51.100.7 scans
        203.0.113.1 scans
        at 61 s: expect 2: <4>Port scan detected: …
        expect: <4>Not blocked: 203.0.113.1 gateway
        expect: <6>Blocked: 198.51.100.7 for 25h, …
        203.0.113.1 closes
        at 86401 s: expect: <6>24 h: 2 scans, 1 block, 1 stands
        at 90070 s: expect: <6>Unblocked: 198.51.100.7 its time is over
        at 172801 s: expect: <6>24 h: 0 scans, 0 blocks, 0 stand
        terminate"
    );
    trace!(
        "stdout is not the journal
        without oracle
        at 0 s: start --interval 1m --block-time 10m
        at 1 s: 198.51.100.7 scans
        at 61 s: expect: Port scan detected: …
        expect: Blocked: …
        at 670 s: expect: Unblocked: …
        at 87000 s: terminate"
    );
}

/// What a terminal shows in colours, its labels told apart.
fn play_in_colours(settings: &str, colours: [&str; 4]) {
    let [scan, failed, ended, plain] = colours;
    trace!(
        "stdout is a screen of 24 x 100
        {settings}
        at 0 s: start --block-time 1m
        at 1 s: stderr: tcpparser: metrics: http://127.0.0.1:3021/metrics
        stderr: tcpparser: blocks: iptables or nf_tables; connections: readings and destroy events
        stderr: tcpparser: never blocked: own addresses, gateways, nameservers
        198.51.100.7 scans
        203.0.113.1 scans
        at 11 s: expect: {scan}Port scan detected{plain}: 198.51.100.7 -> …
        expect: {scan}Port scan detected{plain}: 203.0.113.1 -> …
        expect: {failed}Not blocked{plain}: 203.0.113.1 gateway
        expect: Blocked: 198.51.100.7 for 1m, …
        198.51.100.7 closes
        203.0.113.1 closes
        at 75 s: expect: {ended}Unblocked{plain}: 198.51.100.7 its time is over
        terminate"
    );
}

#[test]
fn a_terminal_has_an_introduction_and_coloured_labels() {
    let colours = ["\x1b[31m", "\x1b[33m ", "\x1b[32m ", "\x1b[0m"];
    let xterm = "variable TERM is xterm";
    play_in_colours(xterm, colours);
    play_in_colours("variable TERM is dumb", [""; 4]);
    play_in_colours("", [""; 4]);
    play_in_colours(&format!("{xterm}\nvariable NO_COLOR is 1"), [""; 4]);
    // A failed block, what is seen without events, and what else is protected.
    trace!(
        "stdout is a screen of 24 x 100
        {xterm}
        variable SSH_CONNECTION is 192.0.2.1
        bind fails EADDRINUSE
        iptables exits 127
        at 0 s: start --allow 192.0.2.9 --listen 192.0.2.7:80
        stderr: tcpparser: cannot listen on 192.0.2.7:80: address in use; it is tried again
        at 5 s: stderr: tcpparser: iptables …
        stderr: tcpparser: ip6tables …
        stderr: tcpparser: nothing can be blocked by …
        stderr: tcpparser: metrics: http://192.0.2.7:80/metrics
        stderr: tcpparser: blocks: none can be made; connections: readings and destroy events
        stderr: tcpparser: never blocked: own addresses, gateways, nameservers, --allow, our own SSH session
        198.51.100.7 scans
        at 11 s: expect: \x1b[31mPort scan detected\x1b[0m: 198.51.100.7 -> …
        expect: \x1b[33m Block failed\x1b[0m: 198.51.100.7 …
        terminate"
    );
    trace!(
        "stdout is a screen of 24 x 100
        at 0 s: start --dry-run --listen none
        at 1 s: stderr: tcpparser: metrics: none
        stderr: tcpparser: blocks: none are made; connections: readings and destroy events
        stderr: tcpparser: never blocked: own addresses, gateways, nameservers
        terminate"
    );
}

#[test]
fn a_list_longer_than_the_screen_is_folded() {
    let mut run = host();
    // Five lines fit, above the cursor.
    run.kernel.screen = Some(Screen {
        rows: 6,
        columns: 100,
    });
    run.checks.oracle = false;
    assert_eq!(run.start(&["--dry-run", "--ports", "9"]), Flow::Continue);
    run.run_for(1);
    let mut list = |opened: &[(&str, u16, u16, u16)]| {
        run.lines();
        for (peer, from, to, count) in opened {
            for number in 0..*count {
                let own = if *from == 443 { *to + number } else { *to };
                let from = if *from == 443 { *from } else { *from + number };
                run.kernel.open_connection(peer, from, own);
            }
        }
        run.run_for(10);
        run.lines()
    };
    let few = [
        ("198.51.100.2", 443, 40_001, 2),
        ("198.51.100.1", 50_000, 22, 3),
    ];
    assert_eq!(
        list(&few),
        [
            "New connection: 198.51.100.2:443 <- 203.0.113.5:40001",
            "New connection: 198.51.100.2:443 <- 203.0.113.5:40002",
            "New connection: 198.51.100.1:50000 -> 203.0.113.5:22",
            "New connection: 198.51.100.1:50001 -> 203.0.113.5:22",
            "New connection: 198.51.100.1:50002 -> 203.0.113.5:22",
        ]
    );
    // One more than fits; a single one is shown as ever.
    assert_eq!(
        list(&[("2001:db8:9::3", 50_000, 80, 1)]),
        [
            "New connection: 198.51.100.1 -> 203.0.113.5:22, 3 connections",
            "New connection: 198.51.100.2:443 <- 203.0.113.5, 2 connections",
            "New connection: [2001:db8:9::3]:50000 -> [2001:db8:1::5]:80",
        ]
    );
    // More pairs than fit, and one that is over.
    let many = [
        ("2001:db8:9::4", 50_000, 80, 4),
        ("2001:db8:9::4", 50_000, 22, 1),
        ("198.51.100.6", 50_000, 22, 1),
    ];
    let folded = [
        "New connection: 2001:db8:9::4 -> [2001:db8:1::5]:80, 4 connections",
        "New connection: 198.51.100.1 -> 203.0.113.5:22, 3 connections",
        "New connection: 198.51.100.2:443 <- 203.0.113.5, 2 connections",
    ];
    let lines = list(&many);
    assert_eq!(lines[..3], folded);
    assert!(
        lines[3].starts_with("New connection: 198.51.100.6:50000 -> "),
        "{lines:?}"
    );
    assert_eq!(lines[4..], ["… and 2 more"]);
    // More pairs than are kept: no connection is lost, and those with most are
    // shown, wherever they stand.
    let single = 2 * SCREEN_LINES as u16;
    for number in 0..single {
        let peer = format!("198.18.{}.{}", number / 200, 1 + number % 200);
        run.kernel.open_connection(&peer, 50_000, 22);
    }
    for number in 0..20 {
        run.kernel
            .open_connection("198.51.100.8", 50_000 + number, 22);
    }
    run.run_for(10);
    let lines = run.lines();
    assert_eq!(
        lines[..2],
        [
            "New connection: 198.51.100.8 -> 203.0.113.5:22, 20 connections",
            folded[0],
        ]
    );
    let rest = single + 3;
    assert_eq!(lines.last().unwrap(), &format!("… and {rest} more"));
    assert_eq!(lines.len(), 5);
    // What fits is shown as ever again.
    run.kernel
        .sockets
        .retain(|socket| socket.state == TcpState::Listen);
    run.kernel.open_connection("198.51.100.1", 50_000, 22);
    run.kernel.open_connection("198.51.100.1", 50_001, 22);
    run.run_for(10);
    assert_eq!(
        run.lines(),
        [
            "New connection: 198.51.100.1:50000 -> 203.0.113.5:22",
            "New connection: 198.51.100.1:50001 -> 203.0.113.5:22",
        ]
    );
}

/// Two rows for each line.
#[test]
fn a_narrow_screen_has_half_as_many_lines() {
    for (columns, folds) in [(80, true), (88, false), (0, false)] {
        let mut run = host();
        run.kernel.screen = Some(Screen { rows: 6, columns });
        run.checks.oracle = false;
        for from in 50_000..50_003 {
            run.kernel.open_connection("198.51.100.1", from, 22);
        }
        assert_eq!(run.start(&["--dry-run"]), Flow::Continue);
        run.run_for(1);
        let folded = run.lines_with(", 3 connections").len();
        assert_eq!(folded, usize::from(folds), "{columns} columns");
    }
}
