//! Scenarios of where blocks stand and what others do there: two flavours,
//! jumps that are pushed down, rules of earlier versions, the end of the
//! process.

use std::net::IpAddr;

use super::fake_kernel::{ChildFault, Command, FakeKernel, Tools};
use super::filter_table::FilterTable;
use super::nf_tables_model::NfTables;
use super::run::Run;
use super::scenarios::{OWN_OCTETS, SCANNER, host, started};
use super::trace::{NFT_COMMENT, network, play, trace};
use crate::address::{Family, PerFamily};
use crate::daemon::Flow;
use crate::limits::{
    CHAIN_RULES, CHAIN_RULES_MAX, DESTROYS_PER_TURN, DOOMED, MOVE_MEMORY, VERIFY_PERIOD,
};
use crate::nf_tables::{Element, Set};
use crate::time::Duration;

/// Off-link, IPv6; and how a rule names a neighbour.
const SCANNER_IPV6: &str = "2001:db8:2::9";
const TO_HOST: &str = "-m addrtype --dst-type LOCAL ";

/// A rule of ours for `source`, of this boot, that ends at `end`.
fn rule(source: &str, scope: &str, end: u64) -> String {
    format!(
        "-s {source} {scope}-m comment --comment \
         \"tcpparser v1 b=0badcafe e={end} s=2 t=500 d=n p=22,25,80,445\" -j DROP"
    )
}

pub fn feed(table: &mut FilterTable, rules: &[String]) {
    let _ = table.command("-N TCPPARSER");
    let _ = table.command("-I INPUT 1 -j TCPPARSER");
    let _ = table.command("-I FORWARD 1 -j TCPPARSER");
    for rule in rules {
        table.command(&format!("-A TCPPARSER {rule}")).unwrap();
    }
}

// Neighbours.

#[test]
fn an_ipv6_neighbour_keeps_what_the_router_needs_to_find_it() {
    let why =
        "-m comment --comment \"tcpparser v1 b=0badcafe e=1210 s=1 t=610 d=? p=22,25,80,445\"";
    let to_host = "-m addrtype --dst-type LOCAL";
    trace! {"
        at 0 s: start
        at 1 s: 10.0.0.9 scans
        2001:db8:1::9 scans
        2001:db8:2::9 scans
        at 11 s: 10.0.0.9 is blocked for 10m
        2001:db8:1::9 is blocked for 10m
        2001:db8:2::/64 is blocked for 10m
        iptables shows in TCPPARSER: -s 10.0.0.9/32 {to_host} {why} -j DROP
        ip6tables shows in TCPPARSER: -s 2001:db8:1::9/128 ! -p ipv6-icmp {to_host} {why} -j DROP | -s 2001:db8:2::/64 {why} -j DROP
        kernel holds what was said
    "}
}

/// Same end, same strikes, no word; whether the version before was stopped or
/// killed, and whenever its rules come back.
#[test]
fn a_rule_of_the_older_shape_is_renewed() {
    let old = rule("2001:db8:1::9/128", TO_HOST, 900);
    let scope = format!("! -p ipv6-icmp {TO_HOST}");
    let new = rule("2001:db8:1::9/128", &scope, 900);
    trace! {"
        with foreign rules
        ip6tables already holds: {old}
        at 0 s: start
        at 2 s: ip6tables shows in TCPPARSER: {new}
        metric tcpparser_blocked_sources is 1

        # An old saved ruleset, in place of ours and beside it.
        ip6tables -D TCPPARSER {new}
        ip6tables -A TCPPARSER {old}
        at 67 s: ip6tables shows in TCPPARSER: {new}
        ip6tables -A TCPPARSER {old}
        at 132 s: ip6tables shows in TCPPARSER: {new}
        ip6tables -D TCPPARSER {new}
        ip6tables -A TCPPARSER {old}
        ip6tables -A TCPPARSER {new}
        at 197 s: ip6tables shows in TCPPARSER: {new}
        at 347 s: expect: Unblocked: 2001:db8:1::9 its time is over
        kernel holds what was said
    "}
}

/// Lifted by an operator: an old saved ruleset restores no block.
#[test]
fn a_lifted_rule_stays_lifted_in_its_older_shape() {
    let old = rule("2001:db8:1::9/128", TO_HOST, 9_000);
    let other = rule("2001:db8:2::/64", "", 0);
    let scope = format!("! -p ipv6-icmp {TO_HOST}");
    let new = rule("2001:db8:1::9/128", &scope, 9_000);
    trace! {"
        with foreign rules
        ip6tables already holds: {old}
        ip6tables -A TCPPARSER {other}
        at 0 s: start
        at 2 s: ip6tables -D TCPPARSER {new}
        at 67 s: expect: Unblocked: 2001:db8:1::9 its rule was removed by somebody
        ip6tables -A TCPPARSER {old}
        at 132 s: ip6tables shows in TCPPARSER: {other}
        kernel holds what was said
    "}
}

// Jumps.

impl FakeKernel {
    /// Another firewall manager puts its own rule first.
    fn deploy(&mut self, hook: &str) {
        let rule = format!("-I {hook} 1 -j ACCEPT");
        self.tables.v4.command(&rule).unwrap();
        self.interfered = Some(self.now);
    }

    fn is_jump_first(&self, hook: &str) -> bool {
        self.tables.v4.rules(hook)[0] == "-j TCPPARSER"
    }
}

fn minutes(count: u64) -> u64 {
    count * VERIFY_PERIOD.as_secs_rounded_up()
}

#[test]
fn two_deploys_do_not_open_the_host_for_good() {
    for hooks in [&["FORWARD"][..], &["INPUT", "FORWARD"]] {
        let mut run = started(&["--block-time", "1d"]);
        run.kernel.scan(SCANNER);
        run.run_for(10);
        for is_second in [false, true] {
            for hook in hooks {
                run.kernel.deploy(hook);
            }
            run.run_for(minutes(2));
            let is_first = hooks.iter().all(|hook| run.kernel.is_jump_first(hook));
            assert_eq!(is_first, !is_second);
        }
        assert_eq!(run.metric("tcpparser_firewall_jump_first"), "0");
        let said = run.error_output();
        assert_eq!(said.lines().count(), hooks.len(), "{said}");
        for hook in hooks {
            let line = format!(
                "tcpparser: iptables: the jump in {hook} was moved twice and stays behind \
                 for 10m: -A {hook} -j ACCEPT\n"
            );
            assert!(said.contains(&line), "{said}");
        }
        run.run_for(MOVE_MEMORY.as_secs_rounded_up());
        assert_eq!(run.metric("tcpparser_firewall_jump_first"), "1");
        assert!(hooks.iter().all(|hook| run.kernel.is_jump_first(hook)));
        assert_eq!(run.error_output(), "");
        run.check_quiet();
    }
}

/// A manager that keeps the first place is tried ever less often, and keeps it.
#[test]
fn a_stubborn_manager_is_not_fought() {
    let mut run = started(&["--block-time", "7d"]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    for _ in 0..10 * 60 {
        if run.kernel.is_jump_first("INPUT") {
            run.kernel.deploy("INPUT");
        }
        run.run_for(minutes(1));
    }
    let said = run.error_output();
    for wait in ["10m", "20m", "40m", "80m", "160m"] {
        let words = format!("stays behind for {wait}: ");
        assert_eq!(
            said.matches(&words).count(),
            if wait == "160m" { 3 } else { 1 },
            "{said}"
        );
    }
    let jumps = run.kernel.commands.iter();
    let jumps = jumps.filter(|command| command.input.contains("-D INPUT -j TCPPARSER"));
    assert_eq!(jumps.count(), 7);
}

// One family's tool.

#[test]
fn the_tool_that_is_missing_is_named() {
    trace! {"
        ip6tables vanishes
        at 0 s: start
        at 3 s: stderr: tcpparser: ip6tables is not installed: install the package iptables or ip6tables; it is tried again
        get /healthz gives 503 ip6tables cannot be used
        198.51.100.7 scans
        2001:db8:2::9 scans
        at 13 s: 198.51.100.7 is blocked for 10m
        expect: Port scan detected: 2001:db8:2::/64 …
        expect: Block failed: 2001:db8:2::/64 ip6tables cannot be used; it is tried again
        ip6tables returns
        at 74 s: expect: Blocked: 2001:db8:2::/64 for 10m, …
        get /healthz gives 200 ok
        kernel holds what was said
    "}
}

#[test]
fn without_any_tool_it_is_the_firewall() {
    trace! {"
        iptables vanishes
        at 0 s: start
        at 3 s: stderr: tcpparser: iptables is not installed: install the package iptables; it is tried again
        stderr: tcpparser: ip6tables is not installed: install the package iptables or ip6tables; it is tried again
        stderr: tcpparser: nothing can be blocked by iptables or nf_tables
        get /healthz gives 503 the firewall cannot be used
    "}
}

/// Whose image has no package to install.
#[test]
fn without_any_tool_a_container_uses_those_of_its_host() {
    trace! {"
        host is a container
        iptables vanishes
        at 0 s: start
        at 3 s: stderr: tcpparser: iptables is not installed: …
        stderr: tcpparser: ip6tables is not installed: …
        stderr: tcpparser: nothing can be blocked by iptables or nf_tables: use the iptables of its host by -v /:/host:ro --cap-add=NET_RAW --cap-add=SYS_CHROOT -e TCPPARSER_EXEC_ROOT=/host
    "}
}

/// Those that are in use, from the start on; without any what blocks fail for.
#[test]
fn metrics_name_what_holds_blocks() {
    fn backends(run: &mut Run) -> Vec<String> {
        let text = run.get("/metrics");
        let lines = text.lines();
        let found = lines.filter_map(|line| line.strip_prefix("tcpparser_firewall_info{backend="));
        found.map(str::to_owned).collect()
    }
    let (nft, legacy) = ("\"iptables-nft\"} 1", "\"iptables-legacy\"} 1");
    let sets = "\"nft\"} 1";
    for (is_legacy, chain) in [(false, nft), (true, legacy)] {
        let mut run = host();
        run.kernel.tools.is_legacy = is_legacy;
        run.kernel.nf_tables.lacks.nf_tables = false;
        assert_eq!(run.start(&["--firewall=auto"]), Flow::Continue);
        run.run_for(5);
        assert_eq!(backends(&mut run), [chain]);
        for number in 1..=CHAIN_RULES + 1 {
            run.kernel.scan(&std::format!("198.51.100.{number}"));
        }
        run.run_for(15);
        assert_eq!(backends(&mut run), [chain, sets]);
        run.terminate();
    }
    let mut run = host();
    run.kernel.nf_tables.lacks.nf_tables = false;
    assert_eq!(run.start(&["--firewall=nft"]), Flow::Continue);
    run.run_for(5);
    assert_eq!(backends(&mut run), [sets]);
    let mut run = started(&["--dry-run"]);
    assert!(backends(&mut run).is_empty());
    let mut run = host();
    run.kernel.faults.child = ChildFault::Exit(127);
    assert_eq!(run.start(&[]), Flow::Continue);
    run.run_for(5);
    run.kernel.scan(SCANNER);
    run.kernel.scan("2001:db8:7:8::9");
    run.run_for(15);
    assert!(backends(&mut run).is_empty());
    let missing = run.metric("tcpparser_block_failures_total{reason=\"missing\"}");
    assert_eq!(missing, "2");
}

// The end.

/// Lifted by an operator a moment before SIGTERM; a child may be running.
#[test]
fn who_lifts_blocks_and_stops_us_finds_nothing_left() {
    for left in [0, 1] {
        for is_busy in [false, true] {
            let mut run = started(&[]);
            run.kernel.scan(SCANNER);
            run.kernel.scan("198.51.100.8");
            run.run_for(10);
            run.lines();
            run.kernel.delete_rule_of(SCANNER);
            if left == 0 {
                run.kernel.delete_rule_of("198.51.100.8");
            }
            if is_busy {
                // A block that comes at the last moment.
                run.kernel.scan(SCANNER_IPV6);
                while !run.kernel.has_child() {
                    run.turn();
                }
            }
            run.terminate();
            let lines = run.lines();
            let standing = left + usize::from(is_busy);
            let last = match standing {
                0 => None,
                1 => Some("1 block stands; to lift all: tcpparser --unblock all"),
                _ => Some("2 blocks stand; to lift all: tcpparser --unblock all"),
            };
            let exit = lines.iter().find(|line| line.contains("to lift all"));
            assert_eq!(exit.map(String::as_str), last, "{lines:?}");
            let lifted = lines
                .iter()
                .filter(|line| line.contains("removed by somebody"));
            assert_eq!(lifted.count(), 2 - left);
            let PerFamily { v4, v6 } = &run.kernel.tables;
            assert_eq!(v4.has_chain("TCPPARSER"), left == 1, "{}", v4.listing());
            assert_eq!(v6.has_chain("TCPPARSER"), is_busy, "{}", v6.listing());
            if left == 0 {
                assert_eq!(*v4, FilterTable::new());
            }
        }
    }
}

/// Whatever the last look meets, the end comes within the second.
#[test]
fn the_last_look_is_no_reason_to_stay() {
    let hangs = ChildFault::Hangs {
        ignores_sigterm: true,
        closes_output: false,
        worked: false,
    };
    for fault in [
        hangs,
        ChildFault::LockHeld,
        ChildFault::Exit(4),
        ChildFault::Garbage,
        ChildFault::Huge,
    ] {
        let mut run = started(&[]);
        run.kernel.scan(SCANNER);
        run.run_for(10);
        run.lines();
        run.kernel.faults.child = fault;
        run.terminate();
        if fault != ChildFault::Garbage {
            let words = "1 block stands; to lift all: tcpparser --unblock all";
            assert_eq!(run.lines(), [words], "{fault:?}");
        }
        assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
    }
}

/// A start that blocked no source ends without a listing.
#[test]
fn a_quiet_daemon_ends_as_it_came() {
    trace! {"
        at 0 s: start
        at 1 s: commands so far 4
        terminate
        commands so far 4
    "}
}

/// What waits for its block when the end comes keeps no chain.
#[test]
fn what_is_held_back_leaves_nothing() {
    trace! {"
        at 0 s: start --max-blocks-per-minute 1
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        198.51.100.8 scans
        at 21 s: expect: Port scan detected: 198.51.100.8 …
        iptables has 1 rule
        operator deletes 198.51.100.7
        terminate
        expect: Unblocked: 198.51.100.7 its rule was removed by somebody
        iptables is untouched
    "}
}

// Two flavours.

/// Both flavours are installed; `iptables` is of this one.
fn both(is_legacy: bool) -> Tools {
    Tools {
        has_preferred: true,
        is_legacy,
        has_nft: true,
        has_legacy: true,
        are_tables_made: true,
        lacks_ipv6: false,
    }
}

#[test]
fn a_block_of_the_other_flavour_is_found_and_ended_there() {
    for is_legacy in [false, true] {
        for family in Family::ALL {
            let (source, again, other) = match family {
                Family::V4 => ("198.51.100.7/32", SCANNER, "198.51.100.8"),
                Family::V6 => ("2001:db8:2::/64", SCANNER_IPV6, "2001:db8:3::8"),
            };
            let mut run = host();
            run.kernel.tools = both(is_legacy);
            feed(
                run.kernel.other_tables.get_mut(family),
                &[rule(source, "", 700)],
            );
            (run.checks.oracle, run.checks.own_rules) = (false, false);
            assert_eq!(run.start(&[]), Flow::Continue);
            run.run_for(2);
            assert_eq!(run.metric("tcpparser_blocked_sources"), "1");
            // Not blocked twice, and its flavour is the one in use.
            run.kernel.scan(again);
            run.kernel.scan(other);
            run.run_for(20);
            let lines = run.lines_with("Block");
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert_eq!(run.kernel.other_tables.get(family).blocks().len(), 2);
            assert_eq!(*run.kernel.tables.get(family), FilterTable::new());
            run.kernel.close_all_of(again);
            run.kernel.close_all_of(other);
            run.run_for(100);
            assert_eq!(run.lines_with("its time is over").len(), 1);
            run.check_quiet();
            // The last block there ends, and the next one goes to `iptables`.
            run.run_for(600);
            assert_eq!(*run.kernel.other_tables.get(family), FilterTable::new());
            run.kernel.scan_again(other);
            run.run_for(20);
            assert_eq!(run.kernel.tables.get(family).blocks().len(), 1);
            assert_eq!(*run.kernel.other_tables.get(family), FilterTable::new());
            run.check_quiet();
            assert_eq!(run.error_output(), "");
        }
    }
}

/// One source in both, a migration that copied the rules: one block is left.
#[test]
fn a_source_in_both_flavours_stands_once_and_for_the_longer_time() {
    for is_legacy in [false, true] {
        for (here, there) in [
            (700, 700),
            (700, 0),
            (0, 700),
            (0, 0),
            (700, 900),
            (900, 700),
        ] {
            let mut run = host();
            run.kernel.tools = both(is_legacy);
            (run.checks.oracle, run.checks.own_rules) = (false, false);
            feed(
                &mut run.kernel.tables.v4,
                &[rule("198.51.100.7/32", "", here)],
            );
            feed(
                &mut run.kernel.other_tables.v4,
                &[rule("198.51.100.7/32", "", there)],
            );
            assert_eq!(run.start(&[]), Flow::Continue);
            run.run_for(3);
            let is_there_longer = here != 0 && (there == 0 || there > here);
            let (long, short) = if is_there_longer {
                (&run.kernel.other_tables.v4, &run.kernel.tables.v4)
            } else {
                (&run.kernel.tables.v4, &run.kernel.other_tables.v4)
            };
            assert_eq!(long.blocks().len(), 1);
            assert_eq!(*short, FilterTable::new());
            assert!(run.lines_with("locked").is_empty());
            run.check_quiet();
        }
    }
}

/// The legacy tool makes its tables where they are only asked for.
#[test]
fn what_is_not_there_is_not_looked_into() {
    for (tools, looks) in [
        (
            Tools {
                are_tables_made: false,
                ..both(false)
            },
            0,
        ),
        (both(false), 2),
        (both(true), 2),
        (
            Tools {
                has_nft: false,
                ..both(true)
            },
            2,
        ),
    ] {
        let mut run = host();
        run.kernel.tools = tools;
        assert_eq!(run.start(&[]), Flow::Continue);
        run.run_for(300);
        let named = run.kernel.commands.iter();
        let named =
            named.filter(|one| one.words.contains("-nft ") || one.words.contains("-legacy "));
        assert_eq!(named.count(), looks, "{tools:?}: {:?}", run.kernel.commands);
        assert_eq!(run.error_output(), "");
        assert!(run.get("/healthz").ends_with("\r\n\r\nok\n"));
    }
}

/// A legacy table that cannot be read is said once and given up in the end; the
/// nft one is then not in this kernel at all.
#[test]
fn another_flavour_that_cannot_be_listed_is_no_trouble() {
    for is_legacy in [false, true] {
        let mut run = host();
        run.kernel.tools = both(is_legacy);
        for _ in 0..4 {
            run.kernel.child_faults.push_back(ChildFault::None);
        }
        assert_eq!(run.start(&[]), Flow::Continue);
        while run.kernel.commands.len() < 4 {
            run.turn();
        }
        run.kernel.faults.child = ChildFault::Exit(4);
        run.run_for(30);
        let said = run.error_output();
        assert_eq!(
            said.lines().count(),
            if is_legacy { 0 } else { 2 },
            "{said}"
        );
        assert!(run.get("/healthz").ends_with("\r\n\r\nok\n"));
        run.run_for(600);
        let looks = run.kernel.commands.len();
        run.kernel.faults.child = ChildFault::None;
        run.run_for(600);
        assert_eq!(run.kernel.commands.len(), looks, "given up");
        run.kernel.scan(SCANNER);
        run.run_for(10);
        assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
    }
}

#[test]
fn a_flavour_that_is_alone_here_is_used() {
    for is_legacy in [false, true] {
        let mut run = host();
        run.kernel.tools = Tools {
            has_preferred: false,
            has_nft: !is_legacy,
            has_legacy: is_legacy,
            ..both(is_legacy)
        };
        assert_eq!(run.start(&[]), Flow::Continue);
        run.run_for(2);
        run.kernel.scan(SCANNER);
        run.run_for(10);
        assert_eq!(run.kernel.tables.v4.blocks().len(), 1);
        let command = &run.kernel.commands.last().unwrap().words;
        let name = if is_legacy {
            "iptables-legacy-restore"
        } else {
            "iptables-nft-restore"
        };
        assert!(command.starts_with(name), "{command}");
        assert_eq!(run.error_output(), "");
        run.check_quiet();
    }
}

/// One block in each flavour, of IPv4 or IPv6.
fn blocked_in_both(is_legacy: bool, family: Family) -> (Run, [&'static str; 2]) {
    let mut run = host();
    run.kernel.tools = both(is_legacy);
    let sources = match family {
        Family::V4 => ["198.51.100.7/32", "198.51.100.8/32"],
        Family::V6 => ["2001:db8:2::/64", "2001:db8:3::/64"],
    };
    let kernel = &mut run.kernel;
    let tables = [&mut kernel.tables, &mut kernel.other_tables];
    for (tables, source) in tables.into_iter().zip(sources) {
        feed(tables.get_mut(family), &[rule(source, "", 0)]);
    }
    (run, sources)
}

#[test]
fn both_flavours_are_listed_and_lifted() {
    let cases = [false, true].map(|is_legacy| Family::ALL.map(|family| (is_legacy, family)));
    for (is_legacy, family) in cases.concat() {
        let (mut run, sources) = blocked_in_both(is_legacy, family);
        let output = run.one_shot(&["--list"]);
        let flavours = if is_legacy {
            ["iptables-legacy", "iptables-nft"]
        } else {
            ["iptables-nft", "iptables-legacy"]
        };
        for (source, flavour) in sources.into_iter().zip(flavours) {
            let source = source.trim_end_matches("/32");
            let line = output.lines().find(|line| line.starts_with(source));
            assert!(line.is_some_and(|line| line.contains(flavour)), "{output}");
        }
        let (mut run, _) = blocked_in_both(is_legacy, family);
        assert_eq!(run.one_shot(&["--unblock", "all"]), "2 blocks removed\n");
        for tables in [&run.kernel.tables, &run.kernel.other_tables] {
            assert_eq!(*tables.get(family), FilterTable::new());
        }
    }
}

/// However long iptables waited for its lock.
#[test]
fn what_is_left_of_a_block_is_of_when_it_is_listed() {
    let mut run = host();
    let rule = rule("198.51.100.7/32", "", 900);
    feed(&mut run.kernel.tables.v4, &[rule]);
    let faults = [ChildFault::None, ChildFault::LockLate];
    run.kernel.child_faults.extend(faults);
    assert_eq!(run.kernel.now.as_secs(), 600);
    let output = run.one_shot(&["--list"]);
    assert!(output.contains(" 4m56s "), "{output}");
}

fn restores(run: &Run) -> usize {
    let is_restore = |one: &&Command| one.words.contains("-restore");
    run.kernel.commands.iter().filter(is_restore).count()
}

#[test]
fn more_rules_than_a_batch_takes_are_lifted_and_the_chain_with_its_jumps() {
    let mut run = host();
    let table = &mut run.kernel.tables.v4;
    let rules = (1..=150).map(|last| rule(&format!("192.0.2.{last}/32"), "", 0));
    feed(table, &rules.collect::<Vec<_>>());
    table.command("-I FORWARD 1 -j TCPPARSER").unwrap();
    assert_eq!(run.one_shot(&["--unblock", "all"]), "150 blocks removed\n");
    assert_eq!(run.kernel.tables.v4, FilterTable::new());
}

#[test]
fn only_what_is_meant_is_lifted() {
    let rules = ["192.0.2.7/32", "192.0.2.8/32"].map(|source| rule(source, "", 0));
    let [first, second] = &rules;
    trace! {"
        iptables already holds: {first}
        iptables -A TCPPARSER {second}
        run --unblock 192.0.2.7 prints: 1 block removed
        iptables shows in TCPPARSER: {second}
    "}
    trace! {"
        # A rule of another program keeps the chain.
        iptables already holds: {first}
        iptables -A TCPPARSER {second}
        iptables -A TCPPARSER -s 192.0.2.9/32 -j ACCEPT
        run --unblock all prints: 2 blocks removed
        iptables shows in TCPPARSER: -s 192.0.2.9/32 -j ACCEPT
    "}
    trace! {"
        # So does a daemon that runs.
        another daemon runs
        iptables already holds: {first}
        iptables -A TCPPARSER {second}
        run --unblock all prints: 2 blocks removed
        iptables has an empty chain
    "}
}

/// A block that ends meanwhile vetoes the whole batch.
#[test]
fn a_batch_that_fails_is_made_anew_and_not_for_ever() {
    let rules = ["192.0.2.7/32", "192.0.2.8/32"].map(|source| rule(source, "", 0));
    for failures in 0..4 {
        let mut run = host();
        feed(&mut run.kernel.tables.v4, &rules);
        let faults = [ChildFault::None, ChildFault::None];
        run.kernel.child_faults.extend(faults);
        for _ in 0..failures {
            run.kernel
                .child_faults
                .extend([ChildFault::Exit(1), ChildFault::None]);
        }
        if failures < 3 {
            let output = run.one_shot(&["--unblock", "all"]);
            assert_eq!(output, "2 blocks removed\n");
            // With the batch that takes the chain.
            assert_eq!(restores(&run), failures + 2);
        } else {
            assert_eq!(run.start(&["--unblock", "all"]), Flow::Exit(1));
            assert_eq!(restores(&run), 3);
            let said = run.error_output();
            let words = "tcpparser: iptables cannot be changed: ";
            assert!(said.starts_with(words), "{said}");
        }
    }
}

#[test]
fn a_listing_that_hangs_is_ended() {
    for ignores_sigterm in [false, true] {
        let mut run = host();
        run.kernel.faults.child = ChildFault::Hangs {
            ignores_sigterm,
            closes_output: false,
            worked: false,
        };
        assert_eq!(run.start(&["--list"]), Flow::Exit(1));
        let said = run.error_output();
        let words = "tcpparser: the firewall cannot be listed: ";
        assert!(said.starts_with(words), "{said}");
    }
}

// Sockets.

#[test]
fn thousands_of_sockets_are_destroyed_some_in_a_turn() {
    let mut run = started(&[]);
    run.kernel.destroyed = Some(0);
    run.checks.oracle = false;
    let count = 2 * DOOMED + DESTROYS_PER_TURN + 7;
    for from in 0..count as u16 {
        let port = [22, 25, 80, 445][usize::from(from % 4)];
        run.kernel.open_connection(SCANNER, 10_000 + from, port);
    }
    run.kernel.open_connection("198.51.100.8", 50_000, 22);
    let until = run.kernel.now.after(Duration::from_secs(20));
    run.kernel.stop_at = Some(until);
    let (mut most, mut turns) = (0, 0);
    while run.kernel.now < until {
        let before = (run.kernel.destroyed.unwrap(), run.kernel.now);
        run.turn();
        let destroyed = run.kernel.destroyed.unwrap() - before.0;
        most = most.max(destroyed);
        turns += usize::from(destroyed > 0);
    }
    assert_eq!(run.kernel.destroyed, Some(count));
    assert_eq!(
        (most, turns),
        (DESTROYS_PER_TURN, count.div_ceil(DESTROYS_PER_TURN))
    );
    assert!(
        run.kernel
            .sockets
            .iter()
            .any(|one| one.remote.0.to_string() == "198.51.100.8")
    );
    assert_eq!(
        run.metric("tcpparser_sockets_destroyed_total"),
        count.to_string()
    );
}

/// They keep no socket of a blocked source alive.
#[test]
fn blocks_that_are_held_back_delay_no_destruction() {
    let mut run = host();
    run.kernel.destroyed = Some(0);
    let arguments = ["--max-blocks-per-minute=1", "--window=10m"];
    assert_eq!(run.start(&arguments), Flow::Continue);
    run.checks.oracle = false;
    for peer in ["198.51.100.1", "198.51.100.2"] {
        run.kernel.scan(peer);
    }
    run.run_for(15);
    assert_eq!(run.metric("tcpparser_blocks_pending"), "1");
    assert_eq!(run.kernel.destroyed, Some(4));
}

/// Each is a walk over the sockets of all network namespaces.
#[test]
fn a_flood_of_scans_takes_few_dumps() {
    for (is_held, argument, most) in [
        // Their ends said what they sent; for sockets four times a second.
        (false, "--window=60s", (5 * 4 + 1) * 2),
        // Where it decides what came after an end is asked for as well.
        (false, "--require-silent", (5 * (4 + 100) + 1) * 2),
        // One reading brings all of a second.
        (true, "--window=60s", 5 * (4 + 1) * 2),
        (true, "--require-silent", 5 * (4 + 4) * 2),
    ] {
        let mut run = host();
        run.kernel.nf_tables.lacks.nf_tables = false;
        run.kernel.destroyed = Some(0);
        let budget = "--max-blocks-per-minute=100000";
        let arguments = ["--interval=1s", "--show=scans", budget, argument];
        assert_eq!(run.start(&arguments), Flow::Continue);
        run.run_for(1);
        run.checks.oracle = false;
        for number in 0..500u16 {
            let [high, low] = (256 + number).to_be_bytes();
            let peer = [198, 51, high, low];
            for port in [22, 25, 80, 445] {
                if is_held {
                    let peer = IpAddr::from(peer).to_string();
                    run.kernel.open_connection(&peer, 50_000, port);
                } else {
                    run.kernel.destroy((OWN_OCTETS, port), (peer, 50_000));
                }
            }
            run.run_until(run.kernel.now.after(Duration::from_millis(10)));
        }
        run.run_for(2);
        assert_eq!(run.metric("tcpparser_blocks_total"), "500");
        let (dumps, destroyed) = (run.kernel.dumps, run.kernel.destroyed);
        assert!(dumps <= most, "{dumps} dumps {is_held} {argument}");
        assert_eq!(destroyed, Some(if is_held { 2_000 } else { 0 }));
    }
}

impl Run {
    /// What a command prints that ends well and at once.
    pub fn one_shot(&mut self, arguments: &[&str]) -> String {
        let (daemon, kernel) = self.daemon();
        let before = kernel.output.len();
        let arguments = arguments.iter().map(|word| word.as_bytes());
        let start_up = kernel.start_up(&|_| None);
        assert_eq!(daemon.start(kernel, &start_up, arguments), Flow::Exit(0));
        assert_eq!(self.error_output(), "");
        String::from_utf8(self.kernel.output.split_off(before)).unwrap()
    }
}

// The sets.

/// A host without iptables.
fn bare() -> Run {
    let mut run = host();
    run.kernel.nf_tables.lacks.nf_tables = false;
    run.kernel.tools.has_preferred = false;
    run
}

fn bare_started(arguments: &[&str]) -> Run {
    let mut run = bare();
    assert_eq!(run.start(arguments), Flow::Continue);
    run.run_for(1);
    run.lines();
    run
}

/// With iptables, and nf_tables beside it.
fn both_started(arguments: &[&str]) -> Run {
    let mut run = host();
    run.kernel.nf_tables.lacks.nf_tables = false;
    assert_eq!(run.start(arguments), Flow::Continue);
    run.run_for(1);
    run.lines();
    run
}

impl FakeKernel {
    /// Whether a packet to the host is dropped, and one to be forwarded.
    pub fn dropped(&self, source: &str) -> (bool, bool) {
        let source = source.parse().unwrap();
        let drops = |is_forwarded| self.nf_tables.drops(source, is_forwarded);
        (drops(false), drops(true))
    }

    /// An element that an earlier run left; the torn rest is made anew.
    pub fn feed_element(&mut self, source: &str, left_ms: Option<u64>, comment: &str) {
        let source = network(source);
        let (set, comment) = (Set::of(source, false).unwrap(), comment.as_bytes());
        let element = Element {
            set,
            source,
            left_ms,
            comment,
        };
        self.nf_tables.expire(self.now);
        if !self.nf_tables.is_there() {
            assert!(self.nf_tables.add_table(NFT_COMMENT, false));
            assert!(self.nf_tables.add_set("drop4", true));
        }
        assert!(self.nf_tables.add_element(&element));
    }
}

#[test]
fn without_iptables_the_sets_take_each_kind_of_source() {
    // No tool is looked for again; the router must go on finding its neighbour.
    let run = play(
        "
        kernel has nf_tables
        iptables vanishes
        at 0 s: start --block-time 1m
        at 1 s: sets are gone
        commands so far 6
        198.51.100.7 scans
        2001:db8:2::9 scans
        10.0.0.9 scans
        2001:db8:1::9 scans
        at 12 s: 198.51.100.7 is blocked for 1m
        2001:db8:2::/64 is blocked for 1m
        10.0.0.9 is blocked for 1m
        2001:db8:1::9 is blocked for 1m
        packets from 198.51.100.7 are dropped
        packets from 198.51.100.8 are passed
        packets from 2001:db8:2::9 are dropped
        packets from 2001:db8:2::77 are dropped
        packets from 2001:db8:3::9 are passed
        packets from 10.0.0.9 are dropped towards the host
        packets from 2001:db8:1::9 are dropped towards the host
        packets of ICMPv6 from 2001:db8:1::9 are passed
        get /healthz gives 200 ok
        198.51.100.7 closes
        2001:db8:2::9 closes
        10.0.0.9 closes
        2001:db8:1::9 closes
        at 82 s: expect: Unblocked: 198.51.100.7 its time is over
        expect: Unblocked: 2001:db8:2::/64 its time is over
        expect: Unblocked: 10.0.0.9 its time is over
        expect: Unblocked: 2001:db8:1::9 its time is over
        kernel holds what was said
        sets are gone
        commands so far 6
        ",
    );
    let mut commands = run.kernel.commands.iter();
    assert!(commands.all(|command| command.words.ends_with("-V")));
}

/// Kernels before 6.3 and 6.12, of which each refusal costs a batch.
#[test]
fn blocks_of_older_kernels_end_as_well() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        kernel lacks destroy
        kernel lacks timeout_updates
        kernel lacks comments
        at 0 s: start --block-time 1m,2m
        198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 1m
        198.51.100.7 closes
        at 71 s: expect: Unblocked: 198.51.100.7 its time is over
        198.51.100.7 scans
        at 82 s: 198.51.100.7 is blocked for 2m
        198.51.100.7 closes
        at 202 s: expect: Unblocked: 198.51.100.7 its time is over

        # One that ends early is taken out.
        198.51.100.7 scans
        at 213 s: 198.51.100.7 is blocked for 2m
        198.51.100.7 is a nameserver
        at 224 s: expect: Unblocked: 198.51.100.7 it holds a protected address now
        packets from 198.51.100.7 are passed
        kernel holds what was said
    "}
}

#[test]
fn an_element_that_is_deleted_is_unblocked_by_its_deleter() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        at 0 s: start --block-time 1h,2h
        at 1 s: 198.51.100.7 scans
        2001:db8:2::9 scans
        at 12 s: 198.51.100.7 is blocked for 1h
        2001:db8:2::/64 is blocked for 1h
        nft delete element 198.51.100.7
        at 13 s: expect: Unblocked: 198.51.100.7 its rule was removed by nft
        metric tcpparser_firewall_repairs_total is 0
        packets from 2001:db8:2::9 are dropped

        # No strike is left of it.
        198.51.100.7 scans
        at 24 s: 198.51.100.7 is blocked for 1h
        kernel holds what was said
    "}
}

/// Once it is gone the sets are ours again.
#[test]
fn another_programs_table_is_waited_for() {
    let mut run = bare();
    run.checks.own_rules = false;
    assert!(run.kernel.nf_tables.add_table("of another program", false));
    assert_eq!(run.start(&["--firewall", "nft"]), Flow::Continue);
    run.run_for(1);
    run.kernel.scan(SCANNER);
    run.run_for(11);
    assert_eq!(run.kernel.dropped(SCANNER), (false, false));
    assert!(
        run.error_output()
            .contains("is another program's; it is tried again")
    );
    run.kernel
        .interfere(|tables| assert!(tables.delete_table()));
    run.run_for(61);
    assert_eq!(run.kernel.dropped(SCANNER), (true, true));
}

/// Two programs changed something before the next look: which did what is not
/// known.
#[test]
fn the_deleter_is_named_where_there_was_one() {
    for (second, words) in [("nft", "nft"), ("python3", "somebody")] {
        let mut run = bare_started(&["--block-time", "1h"]);
        let sources = [SCANNER, "198.51.100.8", "198.51.100.9"];
        for source in sources {
            run.kernel.scan(source);
        }
        run.run_for(11);
        run.lines();
        // The first one is seen at once, and the next look is a second later.
        for (source, program) in sources.into_iter().zip(["nft", "nft", second]) {
            run.kernel.interfere(|tables| {
                tables.program = program;
                assert!(tables.delete_element(Set::Drop4, network(source)));
            });
            run.run_until(run.kernel.now.after(Duration::from_millis(100)));
        }
        run.run_for(2);
        let mut lines = run.lines_with("Unblocked").into_iter();
        let is_named = |line: &str, by: &str| line.ends_with(&format!(" was removed by {by}"));
        assert!(lines.next().is_some_and(|line| is_named(&line, "nft")));
        assert_eq!(lines.filter(|line| is_named(line, words)).count(), 2);
    }
}

/// What takes away more than elements is a reload: all is back at once, without
/// a word.
#[test]
fn a_flushed_ruleset_is_put_right_at_once() {
    for reload in ["delete table", "flush table", "makes the table dormant"] {
        trace! {"
            kernel has nf_tables
            iptables vanishes
            at 0 s: start --block-time 1h
            at 1 s: 198.18.0.1-100 scans
            at 12 s: 198.18.0.1-100 is blocked for 1h
            nft {reload}
            packets from 198.18.0.1 are passed
            at 12100 ms: packets from 198.18.0.1-100 are dropped
            metric tcpparser_firewall_repairs_total is 1
            at 72 s: kernel holds what was said
        "}
    }
}

/// Loads of others are nobody's business; of ours there is a look a second.
#[test]
fn storms_of_changes_cost_a_look_a_second() {
    let mut run = bare_started(&["--block-time", "1h"]);
    run.kernel.scan(SCANNER);
    run.run_for(11);
    let asked = |run: &mut Run| -> u64 {
        let count = run.metric("tcpparser_firewall_commands_total{exit=\"0\"}");
        count.parse().unwrap()
    };
    let before = asked(&mut run);
    for _ in 0..100 {
        run.kernel.interfere(|tables| tables.load_other(50));
        run.run_until(run.kernel.now.after(Duration::from_millis(50)));
    }
    assert_eq!(asked(&mut run), before);
    for _ in 0..100 {
        run.kernel
            .interfere(|tables| assert!(tables.add_rule("input")));
        run.run_until(run.kernel.now.after(Duration::from_millis(50)));
    }
    let looks = asked(&mut run) - before;
    assert!((4..=6).contains(&looks), "{looks}");
}

/// As a kill leaves them, of this boot and another; what is over goes.
#[test]
fn elements_are_adopted() {
    let mut run = play(
        "
        kernel has nf_tables
        iptables vanishes
        with foreign rules
        sets already hold 192.0.2.1 for 100s: b=0badcafe e=700 s=3 t=10 d=n p=22
        sets already hold 192.0.2.2 for ever: b=deadbeef e=0 s=3 t=10 d=n p=22
        sets already hold 192.0.2.3 for ever: b=0badcafe e=1 s=3 t=10 d=n p=22
        at 0 s: start --block-time 10m
        at 3 s: expect: Unblocked: 192.0.2.3 its time is over
        packets from 192.0.2.1 are dropped
        packets from 192.0.2.3 are passed
        sets hold 2
        ",
    );
    let elements = run.kernel.nf_tables.elements();
    let other = elements
        .iter()
        .find(|one| one.source == network("192.0.2.2"));
    let left = other.and_then(|other| other.left_ms);
    assert!(left.is_some_and(|left| (590_000..=601_000).contains(&left)));
    run.run_for(100);
    let said = run.lines_with("Unblocked");
    assert_eq!(said, ["Unblocked: 192.0.2.1 its time is over"]);
    assert_eq!(run.error_output(), "");
}

#[test]
fn an_empty_table_goes_and_one_with_more_in_it_stays() {
    let mut run = bare_started(&["--block-time", "1m"]);
    run.kernel.scan(SCANNER);
    run.run_for(11);
    run.kernel.interfere(|tables| {
        assert!(tables.delete_element(Set::Drop4, network(SCANNER)));
    });
    run.checks.own_rules = false;
    run.kernel.close_all_of(SCANNER);
    assert_eq!(run.restart(&[]), Flow::Continue);
    run.run_for(2);
    assert!(!run.kernel.nf_tables.is_there());
    // With somebody's rule in it, or an element.
    type Addition = fn(&mut NfTables);
    let additions: [Addition; 2] = [
        |tables| assert!(tables.add_rule("forward")),
        |tables| {
            let source = network("192.0.2.77");
            let element = Element {
                set: Set::Drop4,
                source,
                left_ms: None,
                comment: b"mine",
            };
            assert!(tables.add_element(&element));
        },
    ];
    for addition in additions {
        let mut run = bare_started(&["--block-time", "1m"]);
        run.checks.own_rules = false;
        run.kernel.scan(SCANNER);
        run.run_for(11);
        run.kernel.interfere(addition);
        run.kernel.close_all_of(SCANNER);
        run.run_for(130);
        assert_eq!(run.lines_with("its time is over").len(), 1);
        assert!(run.kernel.nf_tables.is_there());
        assert_eq!(run.error_output(), "");
    }
}

/// What stands under our name and cannot be used is made anew where it is ours.
#[test]
fn what_is_refused_is_rebuilt_if_it_is_ours() {
    let ours = NFT_COMMENT;
    for (comment, is_ours) in [(ours, true), ("of another program", false)] {
        for has_chain in [false, true] {
            let mut run = bare();
            run.checks.own_rules = false;
            assert!(run.kernel.nf_tables.add_table(comment, false));
            let is_made = if has_chain {
                run.kernel.nf_tables.add_chain("input", 1, 0)
            } else {
                run.kernel.nf_tables.add_set("drop4", false)
            };
            assert!(is_made);
            assert_eq!(run.start(&[]), Flow::Continue);
            run.run_for(2);
            // Another program makes it while we run, if it is ours: an empty one went.
            if is_ours {
                run.kernel.interfere(|tables| {
                    tables.add_table(comment, false);
                    if has_chain {
                        tables.add_chain("input", 1, 0);
                    } else {
                        tables.add_set("drop4", false);
                    }
                    tables.add_rule("input");
                });
            }
            run.kernel.scan(SCANNER);
            run.run_for(15);
            assert_eq!(
                run.kernel.dropped(SCANNER),
                (is_ours, is_ours),
                "{comment} {has_chain}"
            );
            assert_eq!(run.lines_with("Blocked").is_empty(), !is_ours);
        }
    }
}

#[test]
fn a_kernel_without_tables_of_both_families_blocks_ipv4() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        kernel lacks inet
        at 0 s: start
        at 1 s: 198.51.100.7 scans
        at 12 s: 198.51.100.7 is blocked for 10m
        packets from 198.51.100.7 are dropped
        nft delete table
        at 14 s: packets from 198.51.100.7 are dropped
        kernel holds what was said
    "}
}

#[test]
fn a_kernel_that_permits_nothing_is_named() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        kernel lacks permission
        at 0 s: start --firewall nft
        at 3 s: stderr: tcpparser: nf_tables refuses: permission denied; it is tried again
        198.51.100.7 scans
        at 14 s: expect: Port scan detected: 198.51.100.7 …
        expect: Block failed: 198.51.100.7 …
        commands so far 0
        kernel permits nf_tables
        at 75 s: expect: Blocked: 198.51.100.7 for 10m, …
        packets from 198.51.100.7 are dropped
        kernel holds what was said
    "}
}

/// Where there is neither: what helps, once; and it is tried again.
#[test]
fn the_way_out_is_named_where_nothing_blocks() {
    trace! {"
        iptables vanishes
        at 0 s: start
        at 150 s: stderr: tcpparser: iptables is not installed: install the package iptables; it is tried again
        stderr: tcpparser: ip6tables is not installed: install the package iptables or ip6tables; it is tried again
        stderr: tcpparser: nothing can be blocked by iptables or nf_tables
        198.51.100.7 scans
        at 161 s: expect: Port scan detected: 198.51.100.7 …
        expect: Block failed: 198.51.100.7 …
        kernel has nf_tables
        at 231 s: expect: Blocked: 198.51.100.7 for 10m, …
        packets from 198.51.100.7 are dropped
    "}
}

#[test]
fn a_batch_is_cut_where_the_chain_is_full_enough() {
    trace! {"
        kernel has nf_tables
        at 0 s: start --block-time 10m
        at 1 s: 198.18.0.1-20 scans
        2001:db8:2::9 scans
        at 12 s: 198.18.0.1-20 is blocked for 10m
        2001:db8:2::/64 is blocked for 10m
        iptables has {CHAIN_RULES} rules
        ip6tables has 1 rule
        sets hold 4
        kernel holds what was said

        # Both are known to the next start, and taken away by it.
        198.18.0.1-20 closes
        kill
        start --block-time 10m
        at 14 s: metric tcpparser_blocked_sources is 21
        at 714 s: expect 21: Unblocked: …
        iptables is untouched
        sets are gone
    "}
}

#[test]
fn only_the_place_that_is_asked_for_is_used() {
    for (choice, rules, elements, commands) in [("iptables", 20, 0, 5), ("nft", 0, 20, 0)] {
        trace! {"
            kernel has nf_tables
            at 0 s: start --firewall {choice}
            at 1 s: 198.18.0.1-20 scans
            at 12 s: 198.18.0.1-20 is blocked for 10m
            iptables has {rules} rules
            sets hold {elements}
            commands so far {commands}
            kernel holds what was said
        "}
    }
}

#[test]
fn a_full_chain_ends_the_block_with_least_time_left() {
    let mut run = started(&["--block-time", "10m,1d", "--max-blocks-per-minute", "1000"]);
    let peer = |number: usize| format!("198.18.{}.{}", number / 200, 1 + number % 200);
    for number in 0..CHAIN_RULES_MAX {
        run.kernel.scan(&peer(number));
        // Slowly enough for every line to come out.
        if number == 9 || number % 100 == 99 {
            run.run_for(61);
        }
    }
    assert_eq!(run.kernel.tables.v4.blocks().len(), CHAIN_RULES_MAX);
    run.lines();
    for number in 0..3 {
        run.kernel.scan(&peer(CHAIN_RULES_MAX + number));
    }
    run.run_for(11);
    assert_eq!(run.kernel.tables.v4.blocks().len(), CHAIN_RULES_MAX);
    let lines = run.lines_with("locked: 198");
    let evicted = lines.iter().filter(|line| {
        line.ends_with("the chain is full, a newer block takes its place")
            && (0..10).any(|number| line.contains(&format!(": {} ", peer(number))))
    });
    assert_eq!(evicted.count(), 3, "{lines:?}");
    assert_eq!(
        run.metric("tcpparser_unblocks_total{reason=\"evicted\"}"),
        "3"
    );
    run.check_quiet();
}

/// A package upgrade takes the program away for a moment.
#[test]
fn iptables_that_vanishes_is_stood_in_for_at_once() {
    trace! {"
        kernel has nf_tables
        at 0 s: start --block-time 10m
        at 1 s: 198.51.100.7 scans
        at 12 s: 198.51.100.7 is blocked for 10m
        iptables has 1 rule
        iptables vanishes
        198.51.100.8 scans
        at 23 s: 198.51.100.8 is blocked for 10m
        stderr: tcpparser: iptables…
        packets from 198.51.100.8 are dropped
        get /healthz gives 200 ok
        iptables returns
        at 93 s: 198.51.100.9 scans
        at 104 s: 198.51.100.9 is blocked for 10m
        iptables has 2 rules
        kernel holds what was said
    "}
}

/// The chain refuses every rule, and the sets take them.
#[test]
fn a_chain_that_refuses_is_stood_in_for() {
    trace! {"
        kernel has nf_tables
        at 0 s: start
        at 1 s: iptables refuses -A TCPPARSER
        198.51.100.7 scans
        198.51.100.8 scans
        at 12 s: 198.51.100.7 is blocked for 10m
        198.51.100.8 is blocked for 10m
        expect: Block failed: …
        packets from 198.51.100.7 are dropped
        packets from 198.51.100.8 are dropped
        kernel holds what was said
    "}
}

/// Each of the two places once; lifted by one command.
#[test]
fn a_source_in_both_places_is_one_block() {
    let rule = rule("198.51.100.7/32", "", 9_000);
    let run = play(&format!(
        "
        kernel has nf_tables
        with foreign rules
        iptables already holds: {rule}
        sets already hold 198.51.100.7 for 8000s: b=0badcafe e=9100 s=2 t=500 d=n p=22
        at 0 s: start
        at 5 s: metric tcpparser_blocked_sources is 1
        packets from 198.51.100.7 are dropped
        kernel holds what was said
        "
    ));
    assert_eq!(run.kernel.rules_of(Family::V4).len(), 1);
}

#[test]
fn both_places_are_listed_and_lifted() {
    for is_all in [true, false] {
        let mut run = both_started(&["--block-time", "10m"]);
        run.checks.own_rules = false;
        for number in 1..=20 {
            run.kernel.scan(&format!("198.18.0.{number}"));
        }
        run.run_for(11);
        let mut tool = host();
        std::mem::swap(&mut tool.kernel, &mut run.kernel);
        tool.kernel.restart();
        tool.kernel.output.clear();
        let output = tool.one_shot(&["--list"]);
        let named = |name: &str| output.lines().filter(|line| line.contains(name)).count();
        assert_eq!(
            (named(" iptables-nft "), named(" nft ")),
            (CHAIN_RULES, 4),
            "{output}"
        );
        let target = if is_all { "all" } else { "198.18.0.0/27" };
        let mut other = host();
        std::mem::swap(&mut other.kernel, &mut tool.kernel);
        other.kernel.restart();
        assert_eq!(
            other.one_shot(&["--unblock", target]),
            "20 blocks removed\n"
        );
        assert_eq!(other.kernel.tables.v4, FilterTable::new());
        assert!(!other.kernel.nf_tables.is_there());
    }
}

// What was found by attacking it.

/// The kernel counts no generation for a batch that takes out what timed out
/// already.
#[test]
fn a_flush_soon_after_a_block_timed_out_is_put_right() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        with foreign rules
        sets already hold 198.51.100.7 for 9000s: b=0badcafe e=9600 s=3 t=10 d=n p=22
        at 0 s: start --block-time 10s
        at 70 s: packets from 198.51.100.7 are dropped
        198.18.0.1 scans
        at 81 s: 198.18.0.1 is blocked for 10s
        packets from 198.18.0.1 are dropped
        198.18.0.1 closes
        at 93 s: expect: Unblocked: 198.18.0.1 its time is over
        nft delete table

        # Within a second.
        at 95 s: packets from 198.51.100.7 are dropped
    "}
}

/// One refusal of the sets is not for ever where there is no other place.
#[test]
fn sets_that_refused_once_are_tried_again() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        at 0 s: start
        at 1 s: kernel lacks permission
        198.51.100.7 scans
        at 12 s: expect: Port scan detected: 198.51.100.7 …
        expect: Block failed: 198.51.100.7 …
        stderr: tcpparser: nothing can be blocked by iptables or nf_tables
        kernel permits nf_tables
        at 212 s: expect: Blocked: 198.51.100.7 for 10m, …
        packets from 198.51.100.7 are dropped
        metric tcpparser_firewall_up is 1
    "}
}

/// A frame that cannot be put right, and is no element's fault: said, and
/// tried again later and later.
#[test]
fn a_frame_that_is_refused_is_not_tried_without_end() {
    let mut run = bare();
    run.checks.own_rules = false;
    let tables = &mut run.kernel.nf_tables;
    assert!(tables.add_table("of somebody else", false));
    assert!(tables.add_chain("input", 0, -10));
    assert_eq!(run.start(&["--firewall", "nft"]), Flow::Continue);
    run.run_for(1);
    run.kernel.scan(SCANNER);
    run.run_for(21);
    let failures = run.metric("tcpparser_block_failures_total{reason=\"refused\"}");
    let failures: u64 = failures.parse().unwrap();
    assert!(failures <= 6, "{failures} tries");
    assert_eq!(run.lines_with("Block failed").len(), 1);
}

/// The kernel's clock and ours differ by some milliseconds.
#[test]
fn an_element_that_times_out_early_was_not_taken_away() {
    trace! {"
        kernel has nf_tables
        at 0 s: start --firewall nft
        at 1 s: 198.51.100.7-8 scans
        at 11 s: 198.51.100.7-8 is blocked for 10m
        198.51.100.7-8 closes
        at 600 s: nft delete element 198.51.100.8
        at 602 s: expect: Unblocked: 198.51.100.8 its rule was removed by nft
        at 609800 ms: nft delete element 198.51.100.7
        at 612 s: expect: Unblocked: 198.51.100.7 its time is over
    "}
}

/// The end of a block passes, and others are held back, while a child hangs:
/// nothing is polled for meanwhile.
#[test]
fn a_hanging_child_costs_no_turns() {
    let mut run = started(&[
        "--firewall=iptables",
        "--block-time=12s",
        "--max-blocks-per-minute=2",
    ]);
    run.checks.oracle = false;
    run.kernel.scan("198.51.100.7");
    run.run_for(12);
    run.kernel.faults.child = ChildFault::Hangs {
        ignores_sigterm: true,
        closes_output: false,
        worked: false,
    };
    for peer in ["192.0.2.8", "198.51.100.9", "198.51.100.10"] {
        run.kernel.scan(peer);
    }
    // A turn that does nothing and does not sleep fails any run.
    run.run_for(30);
    assert_eq!(run.lines_with("did not end in time").len(), 1);
}
