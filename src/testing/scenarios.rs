//! Short scenarios of the whole daemon, each to be read from top to bottom.

use std::net::{IpAddr, Ipv4Addr};

use super::fake_kernel::{ChildFault, FakeKernel, Random, Service, Stdout};
use super::fake_proc::FakeSocket;
use super::run::Run;
use crate::address::{Family, Network};
use crate::daemon::Flow;
use crate::kernel::{Claim, Errno};
use crate::limits::{CLAIM_TRIES, COUNTERS_AGAIN, EVENTS_LATENESS, EVENTS_REST, HANDSHAKES_ASKED};
use crate::proc_net_tcp::TcpState;
use crate::time::{Duration, Instant};

const OWN: &str = "203.0.113.5";
const OWN_IPV6: &str = "2001:db8:1::5";
/// Off-link, IPv4.
pub const SCANNER: &str = "198.51.100.7";
/// In the host's own network.
pub const NEIGHBOUR: &str = "10.0.0.9";

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
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    let lines = run.lines();
    assert_eq!(
        lines[4],
        "Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,445"
    );
    assert_eq!(
        lines[5],
        "Blocked: 198.51.100.7 for 10m, data sent: unknown, undo: tcpparser --unblock 198.51.100.7"
    );
    assert_eq!(
        run.kernel.tables.v4.blocks(),
        ["-s 198.51.100.7/32 -m comment --comment \
         \"tcpparser v1 b=0badcafe e=1210 s=1 t=610 d=? p=22,25,80,445\" -j DROP"]
    );
    assert_eq!(run.kernel.tables.v4.rules("INPUT"), ["-j TCPPARSER"]);
    assert_eq!(run.kernel.tables.v4.rules("FORWARD"), ["-j TCPPARSER"]);
    run.check_quiet();
    run.terminate();
    assert_eq!(
        run.lines(),
        ["1 block stands; to lift all: tcpparser --unblock all"]
    );
}

#[test]
fn three_ports_are_no_scan() {
    let mut run = started(&[]);
    for (from, port) in (50_000..).zip([22, 25, 80, 22, 25, 80]) {
        run.kernel.open_connection(SCANNER, from, port);
    }
    run.run_for(120);
    assert!(run.lines_with("scan").is_empty());
    assert_eq!(run.kernel.commands.len(), 4, "start-up only looks");
}

#[test]
fn a_neighbour_is_blocked_towards_the_host_only() {
    let mut run = started(&[]);
    run.kernel.scan(NEIGHBOUR);
    run.run_for(10);
    let [rule] = run.kernel.tables.v4.blocks() else {
        panic!("one rule");
    };
    let expected = "-s 10.0.0.9/32 -m addrtype --dst-type LOCAL -m comment";
    assert!(rule.starts_with(expected), "{rule}");
}

#[test]
fn an_operator_takes_one_rule_away() {
    let mut run = started(&["--block-time", "10m,1h"]);
    run.kernel.scan(SCANNER);
    run.kernel.scan(NEIGHBOUR);
    run.run_for(10);
    assert_eq!(run.lines_with("Blocked: 1").len(), 2);
    run.kernel.delete_rule_of(SCANNER);
    run.run_for(60);
    assert_eq!(
        run.lines_with("nblocked"),
        ["Unblocked: 198.51.100.7 its rule was removed by somebody"]
    );
    // What stood before is no evidence, what comes anew is; and the strike
    // did not count.
    run.run_for(60);
    assert!(run.lines_with("scan").is_empty());
    run.kernel.close_all_of(SCANNER);
    run.run_for(10);
    run.kernel.scan_again(SCANNER);
    run.run_for(10);
    let blocked = run.lines_with("Blocked: 198.51.100.7");
    assert!(blocked[0].contains("for 10m"), "{blocked:?}");
    run.check_quiet();
}

#[test]
fn a_lost_jump_is_put_back() {
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    run.lines();
    for lost in ["-F INPUT", "-F FORWARD"] {
        run.kernel.tables.v4.command(lost).unwrap();
        run.kernel
            .tables
            .v4
            .command("-A INPUT -p tcp -j ACCEPT")
            .unwrap();
        run.run_for(61);
        assert_eq!(run.kernel.tables.v4.rules("INPUT")[0], "-j TCPPARSER");
        assert_eq!(run.kernel.tables.v4.rules("FORWARD"), ["-j TCPPARSER"]);
    }
    assert!(run.lines_with("locked").is_empty(), "repaired in silence");
    assert_eq!(run.metric("tcpparser_firewall_repairs_total"), "2");
}

#[test]
fn a_lost_chain_is_rebuilt_with_its_rules() {
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.kernel.scan(NEIGHBOUR);
    run.run_for(10);
    run.lines();
    let before = run.kernel.tables.v4.blocks().to_vec();
    run.kernel.tables.v4 = super::filter_table::FilterTable::new();
    run.run_for(61);
    assert_eq!(run.kernel.tables.v4.blocks(), before);
    assert!(run.lines_with("locked").is_empty(), "repaired in silence");
    assert_eq!(run.metric("tcpparser_firewall_repairs_total"), "1");
    run.check_quiet();
}

#[test]
fn a_flushed_chain_is_an_operators_judgement() {
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.kernel.scan(NEIGHBOUR);
    run.run_for(10);
    run.kernel.tables.v4.command("-F TCPPARSER").unwrap();
    run.kernel.interfered = Some(run.kernel.now);
    run.run_for(61);
    assert_eq!(run.lines_with("removed by somebody").len(), 2);
    assert!(!run.kernel.tables.v4.has_chain("TCPPARSER"));
    run.check_quiet();
}

#[test]
fn rules_of_others_in_our_chain_keep_it() {
    let mut run = started(&["--block-time", "90s"]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    let foreign = "-A TCPPARSER -s 192.0.2.0/24 -j DROP";
    run.kernel.tables.v4.command(foreign).unwrap();
    run.run_for(300);
    assert_eq!(
        run.kernel.tables.v4.blocks(),
        ["-s 192.0.2.0/24 -j DROP"],
        "not ours to touch"
    );
    assert_eq!(run.error_output(), "");
}

#[test]
fn a_restart_adopts_blocks_with_their_ends() {
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    let before = run.kernel.tables.v4.clone();
    run.checks.oracle = false;
    assert_eq!(run.restart(&[]), Flow::Continue);
    run.run_for(500);
    assert_eq!(run.kernel.tables.v4, before, "the block goes on");
    let lines = run.lines_with("198.51.100.7");
    assert_eq!(
        lines.len(),
        6,
        "what was said once is not said again: {lines:?}"
    );
    run.run_for(110);
    assert_eq!(
        run.lines_with("Unblocked"),
        ["Unblocked: 198.51.100.7 its time is over"]
    );
    run.check_quiet();
}

#[test]
fn what_ended_while_no_daemon_ran_goes_at_the_start() {
    let mut run = started(&["--block-time", "2m"]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    run.terminate();
    run.kernel.now = run.kernel.now.after(Duration::from_secs(600));
    run.kernel.close_all_of(SCANNER);
    assert_eq!(run.restart(&[]), Flow::Continue);
    run.run_for(1);
    assert!(!run.kernel.tables.v4.has_chain("TCPPARSER"));
}

#[test]
fn blocks_of_another_boot_get_the_first_length_from_now() {
    let mut run = started(&["--block-time", "10m,1h"]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    run.terminate();
    run.kernel.close_all_of(SCANNER);
    run.kernel.boot_id = "feedbeef-0000-4000-8000-000000000000".to_owned();
    run.kernel.now = crate::time::Instant::from_secs(50);
    assert_eq!(run.restart(&["--block-time", "10m,1h"]), Flow::Continue);
    run.run_for(10);
    assert_eq!(
        run.kernel.tables.v4.blocks(),
        [
            "-s 198.51.100.7/32 -m comment --comment \"tcpparser v1 b=feedbeef e=651 s=1 t=50 d=? \
          p=22,25,80,445\" -j DROP"
        ]
    );
    run.run_for(600);
    assert!(!run.kernel.tables.v4.has_chain("TCPPARSER"));
}

#[test]
fn a_missing_iptables_is_said_once_and_tried_again() {
    let mut run = host();
    run.kernel.faults.child = ChildFault::Exit(127);
    assert_eq!(run.start(&[]), Flow::Continue);
    run.run_for(5);
    let errors = run.error_output();
    assert_eq!(
        errors.matches("iptables could not be started").count(),
        1,
        "{errors}"
    );
    assert_eq!(
        errors.matches("ip6tables could not be started").count(),
        1,
        "{errors}"
    );
    run.kernel.scan(SCANNER);
    run.run_for(10);
    assert_eq!(
        run.lines_with("Block"),
        ["Block failed: 198.51.100.7 the firewall cannot be used yet; it is tried again"]
    );
    run.run_for(300);
    assert_eq!(run.error_output(), "", "no flood");
    // Three names of each are tried.
    let tries = run.kernel.commands.len() / 3;
    assert!(tries < 40, "{tries} tries: no back-off");
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
    let mut run = started(&["--block-time", "90s"]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    run.kernel
        .tables
        .v4
        .command("-A INPUT -j TCPPARSER")
        .unwrap();
    run.run_for(180);
    run.check_quiet();
    assert_eq!(run.error_output(), "");
}

#[test]
fn one_refused_entry_never_vetoes_the_others() {
    let mut run = started(&[]);
    run.kernel.faults.refused = Some("198.51.100.3/32".to_owned());
    for number in 1..=5 {
        run.kernel.scan(&format!("198.51.100.{number}"));
    }
    run.run_for(11);
    assert_eq!(run.lines_with("Blocked:").len(), 4);
    run.run_for(300);
    assert!(run.lines_with("failed").len() <= 1, "no flood");
    let commands = run.kernel.commands.len();
    assert!(commands < 60, "{commands}");
    run.kernel.faults.refused = None;
    run.run_for(61);
    assert_eq!(run.lines_with("Blocked:").len(), 1);
    run.check_quiet();
}

#[test]
fn a_thousand_scanners_need_few_children() {
    let mut run = host();
    run.kernel.nf_tables.lacks.nf_tables = false;
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
    let mut run = started(&["--block-time", "1m,5m"]);
    for length in ["1m", "5m", "5m"] {
        run.kernel.scan_again(SCANNER);
        run.run_for(11);
        let lines = run.lines_with("Blocked: 198.51.100.7");
        assert!(lines[0].contains(&format!("for {length},")), "{lines:?}");
        run.kernel.close_all_of(SCANNER);
        run.run_for(311);
        assert_eq!(run.lines_with("Unblocked: 198.51.100.7").len(), 1);
        run.check_quiet();
    }
}

#[test]
fn protected_between_verdict_and_command() {
    let mut run = started(&[]);
    run.kernel.faults.child = ChildFault::LockHeld;
    run.kernel.scan(NEIGHBOUR);
    run.run_for(12);
    // It answers names from now on.
    run.kernel.host.nameservers.push(NEIGHBOUR.parse().unwrap());
    run.run_for(10);
    run.kernel.faults.child = ChildFault::None;
    run.run_for(60);
    assert_eq!(
        run.lines_with("locked: 10.0.0.9"),
        ["Not blocked: 10.0.0.9 nameserver"],
        "said once, while its connections stand"
    );
    assert!(!run.kernel.tables.v4.has_chain("TCPPARSER"));
}

#[test]
fn protected_hosts_are_reported_and_never_blocked() {
    let mut run = started(&["--allow", "198.51.100.0/24"]);
    let protected = [SCANNER, "10.0.0.53", "203.0.113.1"];
    for peer in protected {
        run.kernel.scan(peer);
    }
    run.run_for(120);
    let lines = run.lines();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("Port scan detected"), 3);
    assert_eq!(count("Not blocked: 198.51.100.7 --allow"), 1);
    assert_eq!(count("Not blocked: 10.0.0.53 nameserver"), 1);
    assert_eq!(count("Not blocked: 203.0.113.1 gateway"), 1);
    assert_eq!(run.kernel.commands.len(), 4, "two names, two looks");
}

const UNKNOWN: &str = "tcpparser: own addresses and gateways are not fully known; nothing is blocked until they are\n";

/// Nothing of the host is known from the start: that is said and shown, and no
/// scan waits for it.
#[test]
fn an_unknown_host_blocks_no_source_and_says_so() {
    let mut run = host();
    run.kernel.faults.netlink = Some(Errno::EACCES);
    run.checks.oracle = false;
    assert_eq!(run.start(&["--window=5s", "--interval=1s"]), Flow::Continue);
    run.run_for(3);
    assert_eq!(run.error_output(), UNKNOWN);
    let answer = run.get("/healthz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.ends_with("own addresses and gateways are not fully known\n"));
    assert_eq!(run.metric("tcpparser_host_facts_known"), "0");
    run.kernel.scan(SCANNER);
    run.run_for(2);
    let said = run.lines_with("locked");
    let expected = "Not blocked: 198.51.100.7 own addresses and gateways not fully known";
    assert_eq!(said, [expected]);
    assert_eq!(run.metric("tcpparser_blocks_pending"), "0");

    // Nothing that was said comes true later.
    run.kernel.close_all_of(SCANNER);
    run.run_for(60);
    run.kernel.faults.netlink = None;
    run.run_for(60);
    assert!(run.lines_with("locked").is_empty());
    assert!(run.get("/healthz").starts_with("HTTP/1.1 200 "));
    assert_eq!(run.metric("tcpparser_host_facts_known"), "1");
    run.kernel.scan("198.51.100.8");
    run.run_for(2);
    assert_eq!(run.lines_with("Blocked: 198.51.100.8").len(), 1);
    assert_eq!(run.error_output(), "");
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
        assert_eq!(run.error_output(), [UNKNOWN, links].concat());
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
    let mut run = host();
    run.kernel.faults.dump_pause = Duration::from_millis(100);
    run.checks.oracle = false;
    assert_eq!(run.start(&[]), Flow::Continue);
    run.kernel.scan(SCANNER);
    run.kernel.scan("203.0.113.1");
    run.run_for(1);
    let mut said = run.lines();
    assert!(!said.iter().any(|line| line.starts_with("Blocked")));
    assert_eq!(run.metric("tcpparser_host_facts_known"), "0");
    assert!(run.get("/healthz").starts_with("HTTP/1.1 200 "));
    run.run_for(5);
    assert_eq!(run.metric("tcpparser_host_facts_known"), "1");
    said.extend(run.lines());
    let count = |words: &str| said.iter().filter(|line| line.starts_with(words)).count();
    assert_eq!(count("Port scan detected: "), 2);
    assert_eq!(count("Blocked: 198.51.100.7 for 10m"), 1);
    assert_eq!(count("Not blocked: 203.0.113.1 gateway"), 1);
    assert_eq!(run.error_output(), "");
}

/// But no longer than its evidence counts.
#[test]
fn a_block_waits_for_a_dump_no_longer_than_the_window() {
    let mut run = host();
    let many = (1..=60).map(|low| (IpAddr::V4([10, 1, 1, low].into()), 32));
    run.kernel.host.addresses.extend(many);
    run.kernel.faults.dump_pause = Duration::from_millis(500);
    run.checks.oracle = false;
    assert_eq!(run.start(&["--window=5s"]), Flow::Continue);
    run.kernel.scan(SCANNER);
    run.run_for(4);
    assert_eq!(run.lines_with("scan").len(), 1);
    assert!(run.lines_with("locked").is_empty());
    run.run_for(3);
    let said = run.lines_with("locked");
    let expected = "Not blocked: 198.51.100.7 own addresses and gateways not fully known";
    assert_eq!(said, [expected]);
    run.kernel.close_all_of(SCANNER);
    run.run_for(120);
    assert_eq!(run.metric("tcpparser_host_facts_known"), "1");
    assert!(run.lines_with("locked").is_empty());
}

/// Between two readings an hour apart the host gets another gateway, address
/// and nameserver.
#[test]
fn what_came_to_be_protected_since_the_reading_is_not_blocked() {
    let mut run = started(&["--interval=1h", "--allow=192.0.2.9"]);
    run.checks.oracle = false;
    let (gateway, own, nameserver) = ("198.51.100.1", "198.51.100.2", "198.51.100.3");
    run.kernel.host.gateways.push(gateway.parse().unwrap());
    run.kernel.host.addresses.push((own.parse().unwrap(), 24));
    run.kernel
        .host
        .nameservers
        .push(nameserver.parse().unwrap());
    run.run_for(10);
    for peer in [gateway, nameserver, SCANNER] {
        run.scan_by_events(peer);
    }
    run.run_for(10);
    one_is_blocked_but(
        &mut run,
        &[
            "Not blocked: 198.51.100.1 gateway",
            "Not blocked: 198.51.100.3 nameserver",
        ],
    );
    // In our own network by now: towards the host only.
    assert!(run.kernel.tables.v4.blocks()[0].contains("addrtype"));

    // A standing block of what becomes protected ends at once.
    run.kernel.host.gateways.push(SCANNER.parse().unwrap());
    run.run_for(1);
    assert_eq!(run.lines_with("it holds a protected address now").len(), 1);
}

/// Where the kernel reports no changes it is asked before a block.
#[test]
fn a_kernel_that_reports_nothing_is_asked_before_a_block() {
    let mut run = host();
    run.kernel.faults.no_route_events = true;
    run.checks.oracle = false;
    assert_eq!(run.start(&["--interval=1h"]), Flow::Continue);
    run.run_for(2);
    run.kernel.host.gateways.push(SCANNER.parse().unwrap());
    run.run_for(10);
    run.scan_by_events(SCANNER);
    run.scan_by_events("198.51.100.8");
    run.run_for(5);
    one_is_blocked_but(&mut run, &["Not blocked: 198.51.100.7 gateway"]);
}

fn one_is_blocked_but(run: &mut Run, refused: &[&str]) {
    let said = run.lines_with("locked");
    for line in refused {
        assert!(said.iter().any(|said| said == line), "{said:?}");
    }
    let blocked = said.iter().filter(|line| line.starts_with("Blocked"));
    assert_eq!(blocked.count(), 1, "{said:?}");
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
        if round % 50 == 0 {
            run.run_for(1);
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
        let mut run = host();
        (run.checks.oracle, run.checks.own_rules) = (false, false);
        run.checks.output = false;
        let rules = ["203.0.113.1", "10.0.0.53", SCANNER].map(|source| {
            format!(
                "-A TCPPARSER -s {source}/32 -m comment --comment \
                 \"tcpparser v1 b={boot} e=9999 s=1 t=10 d=n p=22,25,80,443\" -j DROP\n"
            )
        });
        let batch = format!(
            "*filter\n-N TCPPARSER\n-I INPUT 1 -j TCPPARSER\n-I FORWARD 1 -j TCPPARSER\n{}COMMIT\n",
            rules.concat()
        );
        run.kernel.tables.v4.restore(&batch, None).unwrap();
        assert_eq!(run.start(&[]), Flow::Continue);
        run.run_for(11);
        let [rule] = run.kernel.tables.v4.blocks() else {
            panic!("{}", run.kernel.tables.v4.listing());
        };
        assert!(rule.contains(SCANNER), "{rule}");
        let lifted = run.lines_with("it holds a protected address now");
        assert_eq!(lifted.len(), 2, "{boot}: {lifted:?}");
    }
}

#[test]
fn more_blocks_than_a_minute_may_have_are_held_back() {
    let mut run = started(&["--max-blocks-per-minute=2", "--window=2m"]);
    run.checks.oracle = false;
    let peers: Vec<_> = (1..=7).map(|n| format!("198.51.100.{n}")).collect();
    for peer in &peers {
        run.kernel.scan(peer);
    }
    run.run_for(10);
    for peer in &peers {
        run.kernel.close_all_of(peer);
    }
    assert_eq!(run.lines_with("Blocked:").len(), 2);
    assert_eq!(run.metric("tcpparser_blocks_pending"), "5");
    run.run_for(58);
    assert!(run.lines_with("locked").is_empty(), "not within the minute");
    run.run_for(2);
    let blocked = run.lines_with("locked");
    assert_eq!(blocked.len(), 2, "the oldest of those that wait");
    assert!(blocked[0].starts_with("Blocked: 198.51.100.3 for 10m"));
    assert!(blocked[1].starts_with("Blocked: 198.51.100.4 for 10m"));
    run.run_for(60);
    let said = run.lines_with("locked");
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[1].starts_with("Blocked: 198.51.100.6 for 10m"));
    // The window is over: what still scans is seen again.
    let dropped = "Not blocked: 198.51.100.7 held back by --max-blocks-per-minute";
    assert_eq!(said[2], dropped);
    assert_eq!(run.kernel.tables.v4.blocks().len(), 6);
    run.check_quiet();
}

#[test]
fn stale_rows_never_block_again() {
    let mut run = started(&["--block-time", "1m"]);
    run.kernel.scan(SCANNER);
    run.run_for(120);
    assert_eq!(run.lines_with("locked: 198.51.100.7").len(), 2);
    // The kernel keeps rows of a dead peer for a quarter of an hour.
    run.run_for(900);
    assert!(run.lines_with("scan").is_empty());
    run.kernel.open_connection(SCANNER, 51_000, 22);
    run.run_for(60);
    assert!(
        run.lines_with("scan").is_empty(),
        "one new port is one port"
    );
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut run = host();
    run.kernel.capabilities = 0;
    assert_eq!(run.start(&["--dry-run"]), Flow::Continue);
    run.kernel.scan(SCANNER);
    run.run_for(120);
    let lines = run.lines();
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count("Port scan detected: 198.51.100.7"), 1);
    assert_eq!(count("Not blocked: 198.51.100.7 --dry-run"), 1);
    assert!(run.kernel.commands.is_empty());
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
        (Errno::EADDRINUSE, "address in use"),
        (Errno::EADDRNOTAVAIL, "address not there"),
        (Errno::EACCES, "permission denied"),
    ] {
        let mut run = host();
        run.kernel.faults.listen = Some(error);
        assert_eq!(run.start(&["--interval", "5s"]), Flow::Continue);
        assert!(blocks(&mut run));
        assert_eq!(
            run.error_output(),
            format!("tcpparser: cannot listen on [::]:3021: {why}; it is tried again\n")
        );
        run.kernel.faults.listen = None;
        run.run_for(2);
        assert_eq!(
            run.error_output(),
            "tcpparser: listening on [::]:3021 now\n"
        );
        let request = b"GET /healthz HTTP/1.0\r\n\r\n";
        let client = run.kernel.connect("192.0.2.9", request);
        run.run_for(1);
        assert!(run.kernel.clients[client].answer.ends_with(b"\r\n\r\nok\n"));
    }
}

#[test]
fn the_list_in_three_modes() {
    let connect = |run: &mut Run| run.kernel.open_connection(SCANNER, 50_000, 22);
    let line = "New connection: 198.51.100.7:50000 -> 203.0.113.5:22";
    let nothing = "No TCP peer connection established yet";
    for (show, first, second) in [
        ("all", vec![nothing, line], vec![line]),
        ("new", vec![nothing, line], vec![]),
        ("scans", vec![], vec![]),
    ] {
        let mut run = host();
        run.checks.oracle = false;
        assert_eq!(run.start(&["--show", show]), Flow::Continue);
        assert_eq!(run.lines(), ["tcpparser starting...", ""]);
        run.run_for(5);
        connect(&mut run);
        run.run_for(6);
        assert_eq!(run.lines(), first, "{show}");
        run.run_for(10);
        assert_eq!(run.lines(), second, "{show}");
    }
}

#[test]
fn one_reading_and_out() {
    let mut run = host();
    run.kernel.scan(SCANNER);
    run.checks.oracle = false;
    assert_eq!(run.start(&["--once"]), Flow::Exit(0));
    let lines = run.lines();
    assert_eq!(lines.len(), 7, "{lines:?}");
    assert!(lines[6].starts_with("Port scan detected: 198.51.100.7"));
    assert!(run.kernel.commands.is_empty() && !run.kernel.is_listening());
    let mut run = host();
    run.kernel.faults.rows.v4 = Some(Errno::EACCES);
    assert_eq!(run.start(&["--once"]), Flow::Exit(1));
}

#[test]
fn healthz_shows_when_readings_stop() {
    let mut run = started(&[]);
    assert!(run.get("/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    run.kernel.faults.rows.v4 = Some(Errno::EACCES);
    run.run_for(29);
    assert!(run.get("/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    run.run_for(10);
    assert!(
        run.get("/healthz")
            .starts_with("HTTP/1.1 503 Service Unavailable\r\n")
    );
    assert_eq!(
        run.error_output(),
        "tcpparser: cannot read /proc/net/tcp: permission denied\n"
    );
    run.kernel.faults.rows.v4 = None;
    run.run_for(11);
    assert!(run.get("/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
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
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.run_for(11);
    for (peer, expected) in [
        ("127.0.0.1", "HTTP/1.1 200 OK"),
        ("::1", "HTTP/1.1 200 OK"),
        (NEIGHBOUR, "HTTP/1.1 200 OK"),
        ("198.51.100.77", "HTTP/1.1 403 Forbidden"),
    ] {
        let answer = run.get_from(peer, "/blocked");
        assert!(answer.starts_with(expected), "{peer}: {answer}");
        assert_eq!(
            answer.contains("198.51.100.7/32"),
            expected.contains("200"),
            "{peer}"
        );
    }
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
    let mut run = started(&[]);
    run.checks = super::run::Checks {
        oracle: false,
        output: false,
        own_rules: true,
    };
    run.kernel.stdout = Stdout::Broken;
    run.kernel.scan(SCANNER);
    run.run_for(11);
    assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
    run.terminate();
}

#[test]
fn an_exit_waits_for_no_child() {
    for (ignores_sigterm, closes_output) in
        [(false, false), (true, false), (false, true), (true, true)]
    {
        let mut run = started(&[]);
        run.kernel.faults.child = ChildFault::Hangs {
            ignores_sigterm,
            closes_output,
            worked: false,
        };
        run.kernel.scan(SCANNER);
        run.run_for(11);
        assert!(run.kernel.has_child());
        run.terminate();
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
    let mut run = started(&[]);
    for port in 40_000..40_006 {
        run.kernel.open_connection(SCANNER, 443, port);
    }
    run.run_for(60);
    assert!(run.lines_with("scan").is_empty());
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
    let mut run = host();
    run.kernel.faults.late_events = Duration::from_secs(3_600);
    run.kernel.faults.lacks_tcp_diag = true;
    assert_eq!(run.start(&[]), Flow::Continue);
    run.run_for(10);
    run.kernel.scan_closing(SCANNER, TcpState::LastAck);
    run.run_for(2);
    assert_eq!(run.kernel.lookups, 4);
    assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
}

#[test]
fn events_within_the_host_may_wait_for_a_millisecond() {
    let mut run = started(&[]);
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
    let mut run = started(&["--interval=1s"]);
    run.kernel.forged.push(SCANNER.parse().unwrap());
    run.kernel.scan_closing(SCANNER, TcpState::FinWait1);
    run.run_for(5);
    assert_eq!(run.kernel.lookups, 4, "each is asked for once");
    run.kernel.scan_closing(SCANNER, TcpState::Closing);
    run.kernel.scan_closing(SCANNER, TcpState::LastAck);
    run.run_for(2);
    // Their ends come, and those of some that no reading showed.
    run.kernel.close_all_of(SCANNER);
    for from in [50_000, 51_000] {
        run.kernel.end_scan(SCANNER, from);
    }
    run.run_for(120);
    assert_eq!(run.metric("tcpparser_events_unproven_total"), "8");
    assert_eq!(run.metric("tcpparser_port_scans_total"), "0");
    assert!(run.lines_with("New connection").is_empty(), "nor listed");
    // The real owner of that address is no less a scanner.
    run.kernel.forged.clear();
    run.kernel.end_scan(SCANNER, 50_000);
    run.run_for(1);
    assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
}

#[test]
fn connections_first_seen_while_they_close_are_evidence() {
    for state in [TcpState::FinWait1, TcpState::Closing, TcpState::LastAck] {
        let mut run = started(&[]);
        run.kernel.scan_closing(SCANNER, state);
        run.run_for(11);
        assert_eq!(run.kernel.tables.v4.blocks().len(), 1, "{state:?}");
    }
}

/// A row that proved a handshake stays proof, and nothing is asked for.
#[test]
fn connections_seen_before_they_close_are_not_asked_for() {
    let mut run = started(&["--interval=1s"]);
    run.kernel.scan(NEIGHBOUR);
    run.kernel.sockets.pop();
    run.run_for(2);
    for socket in &mut run.kernel.sockets {
        if socket.state == TcpState::Established {
            (socket.state, socket.inode) = (TcpState::FinWait1, 0);
        }
    }
    run.run_for(100);
    assert_eq!(run.kernel.lookups, 0);
    run.kernel.open_connection(NEIGHBOUR, 50_003, 445);
    run.run_for(2);
    assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
}

/// Where no socket can be asked for, the setting decides.
#[test]
fn what_cannot_be_asked_for_is_forgeable_by_the_setting_alone() {
    for (tcp_fastopen, blocks) in [(3, 1), (0x203, 0)] {
        let mut run = started(&[]);
        run.checks.oracle = false;
        run.kernel.tcp_fastopen = tcp_fastopen;
        run.kernel.faults.netlink = Some(Errno::EACCES);
        run.run_for(70);
        run.kernel.scan_closing(SCANNER, TcpState::LastAck);
        run.run_for(11);
        assert_eq!(run.kernel.lookups, 0);
        assert_eq!(run.kernel.tables.v4.blocks().len(), blocks);
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

const OWN_OCTETS: [u8; 4] = [203, 0, 113, 5];
const NEW_INBOUND: &str = "tcpparser_new_connections_total{direction=\"in\",family=\"4\"}";

/// A scraper of us and three exporters is no scanner.
#[test]
fn our_own_port_is_no_evidence() {
    let mut run = started(&["--interval=1m"]);
    run.end_connections(OWN_OCTETS, 50_000, &[22, 25, 80]);
    run.kernel.connect(SCANNER, b"");
    run.run_for(1);
    assert_eq!(run.metric(NEW_INBOUND), "4");
    // Its end is no other connection.
    run.end_connections(OWN_OCTETS, 40_000, &[3021]);
    run.run_for(1);
    assert_eq!(run.metric(NEW_INBOUND), "4");
    assert!(run.lines_with("Port scan detected").is_empty());
    run.end_connections(OWN_OCTETS, 50_010, &[443]);
    run.run_for(1);
    assert_eq!(
        run.lines_with("Port scan detected"),
        ["Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,443"]
    );
}

/// Without a listener of ours it is a port like any other.
#[test]
fn the_port_of_another_listener_is_evidence() {
    let mut run = host();
    run.kernel.listen_on("0.0.0.0", 3021);
    assert_eq!(run.start(&["--listen", "none"]), Flow::Continue);
    run.run_for(1);
    run.end_connections(OWN_OCTETS, 50_000, &[22, 25, 80, 3021]);
    run.run_for(1);
    assert_eq!(run.lines_with("Port scan detected").len(), 1);
}

#[test]
fn services_that_just_started_are_seen_within_two_seconds() {
    for ports in [
        [6_001, 6_002, 6_003, 6_004],
        [40_001, 40_002, 40_003, 6_004],
    ] {
        for interval in ["10s", "1h"] {
            let mut run = started(&["--interval", interval]);
            run.checks.oracle = false;
            for port in ports {
                run.kernel.listen_on("0.0.0.0", port);
            }
            run.end_connections(OWN_OCTETS, 50_000, &ports);
            run.run_for(2);
            assert_eq!(run.lines_with("Blocked: 198.51.100.7").len(), 1);
            assert_eq!(run.metric(NEW_INBOUND), "4");
        }
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
    let mut run = started(&["--interval=10s"]);
    run.checks.oracle = false;
    let moving = [203, 0, 113, 99];
    run.end_connections(moving, 50_000, &[22, 25, 80, 443]);
    run.run_for(20);
    assert!(run.lines_with("Port scan detected").is_empty());
    // Nor can an aborted connection be distinguished from one to such an
    // address.
    for port in [22, 25, 80, 443] {
        run.kernel.destroy(([0; 4], port), ([198, 51, 100, 8], 0));
    }
    run.run_for(2);
    assert!(run.lines_with("Port scan detected").is_empty());
    // It moves here within the window.
    let address = (IpAddr::from(moving), 24);
    run.kernel.host.addresses.push(address);
    run.run_for(11);
    assert_eq!(
        run.lines_with("Port scan detected"),
        ["Port scan detected: 198.51.100.7 -> 203.0.113.99 on ports 22,25,80,443"]
    );
}

/// What a proxy aborts no longer names the address it was meant for: while
/// packets may be diverted, and ten minutes after, it is no evidence.
#[test]
fn what_is_aborted_beside_a_proxy_is_no_evidence() {
    for networks in [&["0.0.0.0"][..], &["::"], &["0.0.0.0", "::"]] {
        let mut run = started(&["--interval=1m"]);
        run.checks.oracle = false;
        let networks = networks.iter().map(|one| (one.parse().unwrap(), 0));
        run.kernel.host.diverted = networks.collect();
        run.run_for(2);
        let abort = |run: &mut Run, last: u8| {
            for port in [22, 25, 80, 443] {
                run.kernel.destroy(([0; 4], port), ([10, 0, 0, last], 0));
            }
            run.run_for(2);
        };
        abort(&mut run, 7);
        run.run_for(700);
        abort(&mut run, 8);
        run.kernel.host.diverted.clear();
        run.run_for(590);
        abort(&mut run, 9);
        assert!(run.lines_with("Port scan detected").is_empty());
        // What names its address is.
        run.end_connections(OWN_OCTETS, 50_000, &[22, 25, 80, 443]);
        run.run_for(2);
        assert_eq!(run.lines_with("Blocked: 198.51.100.7").len(), 1);
        run.run_for(20);
        abort(&mut run, 10);
        assert_eq!(
            run.lines_with("Port scan detected: 10.0.0"),
            ["Port scan detected: 10.0.0.10 -> 10.0.0.1 on ports 22,25,80,443"]
        );
    }
}

#[test]
fn aborted_connections_name_an_own_address() {
    let mut run = started(&["--interval=1m"]);
    for port in [22, 25, 80, 443] {
        run.kernel.destroy(([0; 4], port), ([10, 0, 0, 9], 0));
    }
    run.run_for(1);
    assert_eq!(
        run.lines_with("Port scan detected"),
        ["Port scan detected: 10.0.0.9 -> 10.0.0.1 on ports 22,25,80,443"]
    );
    assert_eq!(run.metric(NEW_INBOUND), "0", "which is unknown");
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
    // Half by half: more sources at once than the detector watches.
    let half = (crate::limits::BLOCKS / 2) as u32;
    let peer = |number: u32| IpAddr::V4((0xc612_0000 + number).into()).to_string();
    for start in [0, half, 2 * half] {
        let count = if start == 2 * half { 5 } else { half };
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
    /// Four short connections that only events show.
    fn scan_by_events(&mut self, peer: &str) {
        let IpAddr::V4(peer) = peer.parse().unwrap() else {
            panic!("{peer}");
        };
        for (from, port) in (52_000..).zip([22, 25, 80, 445]) {
            let own = [203, 0, 113, 5];
            self.kernel.destroy((own, port), (peer.octets(), from));
        }
    }

    fn get_from(&mut self, peer: &str, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
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
    /// A scan whose connections are first seen while they close.
    fn scan_closing(&mut self, peer: &str, state: TcpState) {
        self.close_all_of(peer);
        self.scan(peer);
        for socket in self.sockets.iter_mut().rev().take(4) {
            (socket.state, socket.inode) = (state, 0);
        }
    }

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
