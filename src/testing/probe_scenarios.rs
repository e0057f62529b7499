//! Sources that ask for ports and complete no handshake: what is said of them.

use super::fake_network::Frame;
use super::scenarios::{OWN, SCANNER, started};
use super::trace::trace;
use crate::address::Endpoint;
use crate::limits::{LINES_PERIOD, PROBE_LINES, PROBERS};

const WORDS: &str = "no handshake: may be forged, not blocked";

fn probing(kind: &str, target: &str) -> String {
    format!("tcpparser_probing_sources_total{{kind=\"{kind}\",target=\"{target}\"}}")
}

#[test]
fn each_kind_is_told_once_and_never_blocked() {
    for (kind, label) in [
        ("SYN", "syn"),
        ("NULL", "null"),
        ("FIN", "fin"),
        ("XMAS", "xmas"),
    ] {
        let counted = probing(label, "host");
        for (peer, source, own) in [
            (SCANNER, SCANNER, OWN),
            ("2001:db8:7::7", "2001:db8:7::/64", "2001:db8:1::5"),
        ] {
            trace! {"
                without oracle
                at 0 s: start
                at 5 s: {peer} sends {kind} to 21, 22, 23, 25
                at 5900 ms: metric {counted} is 0
                at 6 s: expect: Ports probed: {source} -> {own} on ports 21,22,23,25 ({kind}; {WORDS})
                metric {counted} is 1
                at 30 s: {peer} sends {kind} to 21, 22, 23, 25, 80
                at 85 s: {peer} sends {kind} to 21, 22, 23, 25, 80
                at 146 s: metric {counted} is 1
                {peer} sends {kind} to 21, 22, 23, 25, 80
                at 147 s: expect: Ports probed: {source} -> {own} on ports 21,22,23,25,80 ({kind}; {WORDS})
                metric {counted} is 2
                at 200 s: iptables has no chain
                metric tcpparser_port_scans_total is 0
            "}
        }
    }
}

/// Whose flags may stand in the next piece.
#[test]
fn pieces_of_segments_are_no_probes() {
    let mut run = started(&["--interval=1h"]);
    for (from, port) in (50_000..).zip([21, 22, 23, 25, 80]) {
        let (source, own) = (SCANNER.parse().unwrap(), OWN.parse().unwrap());
        let mut frame = Frame::segment((source, from), (own, port), 16, 7, 2);
        // IP_MF of net/ip.h.
        frame.bytes[6] = 0x20;
        run.kernel.hand_over(&frame);
    }
    run.run_for(3);
    assert_eq!(run.metric("tcpparser_witness_packets_total"), "5");
    assert_eq!(run.lines_with("Ports probed"), [""; 0]);
}

#[test]
fn three_ports_are_no_probe_and_kinds_are_told_together() {
    let counted = probing("fin", "host");
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 sends SYN to 22, 22, 22, 25, 80
        198.51.100.8 sends SYN to 22, 25, 80
        at 66 s: 198.51.100.8 sends SYN to 443
        198.51.100.9 sends SYN to 22, 25
        198.51.100.9 sends FIN to 80, 443
        at 67 s: expect: Ports probed: 198.51.100.9 -> 203.0.113.5 on ports 22,25,80,443 (SYN, FIN; {WORDS})
        metric {counted} is 1
    "}
}

/// At most a few ports are printed, and what 64 of them hide is not claimed.
#[test]
fn of_many_ports_a_few_are_named() {
    let ports: String = (1..=41).map(|port| format!("{port}, ")).collect();
    let more: String = (1..=100).map(|port| format!("{port}, ")).collect();
    let (ports, more) = (ports.trim_end_matches(", "), more.trim_end_matches(", "));
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 sends SYN to {ports}
        at 6 s: expect: Ports probed: 198.51.100.7 -> 203.0.113.5 on ports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,+24 (SYN; {WORDS})
        at 7 s: 198.51.100.8 sends SYN to {more}
        at 8 s: expect: Ports probed: 198.51.100.8 -> 203.0.113.5 on ports 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,+48 or more (SYN; {WORDS})
    "}
}

/// It is told once, as what it is.
#[test]
fn a_real_scan_meanwhile_is_told_as_one() {
    for option in ["--window=1m", "--dry-run"] {
        let blocked = if option == "--dry-run" {
            "Not blocked: 198.51.100.7 …"
        } else {
            "Blocked: 198.51.100.7 for 10m, …"
        };
        trace! {"
            without oracle
            at 0 s: start {option}
            at 5 s: 198.51.100.7 sends SYN to 1, 2, 3, 4, 5, 6
            at 5500 ms: 198.51.100.7 resets 22, 25, 80, 445
            at 5600 ms: expect: Port scan detected: 198.51.100.7 -> …
            expect: {blocked}
            at 30 s: metric tcpparser_port_scans_total is 1
        "}
    }
}

#[test]
fn blocked_sources_are_only_counted() {
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 scans
        at 15 s: 198.51.100.7 is blocked for 10m
        198.51.100.7 sends SYN to 1, 2, 3, 4, 5, 6
        198.51.100.7 sends XMAS to 7
        at 20 s: metric tcpparser_probes_of_blocked_total is 7
    "}
}

/// Clients that complete their handshakes, with services or with none, such as
/// the data ports of passive FTP, ask for nothing in vain.
#[test]
fn clients_probe_nothing() {
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 holds 22, 25, 80
        198.51.100.8 sends SYN to 22, 40000, 40001, 40002, 40003
        198.51.100.8 resets 22, 40000, 40001, 40002
        at 30 s: 198.51.100.8 sends SYN to 40004
        198.51.100.8 resets 40004
        198.51.100.9 sends SYN to 22, 25, 80, 443, 445
        198.51.100.9 resets 443
        at 31 s: expect: Ports probed: 198.51.100.9 -> 203.0.113.5 on ports 22,25,80,445 (SYN; {WORDS})
    "}
}

/// Packets that rest are taken in before the ends of their connections.
#[test]
fn clients_between_other_packets_probe_nothing() {
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.9 sends SYN to 9
        at 5001 ms: 198.51.100.8 sends SYN to 40000, 40001, 40002, 40003
        198.51.100.8 resets 40000, 40001, 40002, 40003
        at 9 s: metric tcpparser_witness_packets_total is 5
    "}
}

/// What a scanner that was forgiven some ports asks for next counts with the
/// ports that are left.
#[test]
fn completed_ports_leave_the_others() {
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 sends SYN to 22, 25, 1, 2
        198.51.100.7 resets 22, 25
        at 10 s: 198.51.100.7 sends SYN to 3, 4
        at 11 s: expect: Ports probed: 198.51.100.7 -> 203.0.113.5 on ports 1,2,3,4 (SYN; {WORDS})
    "}
}

#[test]
fn what_is_behind_this_host_is_told_apart() {
    let counted = probing("syn", "behind");
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 sends SYN to 22, 80, 443, 8080 at 10.5.0.2
        at 6 s: expect: Ports probed: 198.51.100.7 -> 10.5.0.2 on ports 22,80,443,8080 behind this host (SYN; {WORDS})
        metric {counted} is 1
    "}
}

/// Own addresses, loopback, what has no single sender, --allow; and past this
/// host our own side, or what only passes through.
#[test]
fn who_is_never_a_prober() {
    let mut run = started(&["--allow=192.0.2.0/24"]);
    run.checks.oracle = false;
    let end = |address: &str, port| Endpoint {
        address: address.parse().unwrap(),
        port,
    };
    let mut send = |peer: &str, own: &str| {
        for port in [1, 2, 3, 4, 5, 6] {
            run.kernel
                .send_packet(end(peer, 50_000), end(own, port), 2, 2);
        }
    };
    for peer in [
        "127.0.0.1",
        OWN,
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "192.0.2.9",
    ] {
        send(peer, OWN);
    }
    for peer in ["::", "::1", "ff02::1"] {
        send(peer, "2001:db8:1::5");
    }
    for peer in [
        "10.9.0.1",
        "172.17.0.2",
        "192.168.1.7",
        "100.64.0.1",
        "169.254.7.7",
        "203.0.113.77",
    ] {
        send(peer, "10.5.0.2");
        send(peer, "198.51.100.1");
    }
    send("fd00::7", "2001:db8:9::9");
    send("fe80::7", "2001:db8:9::9");
    send("2001:db8:1::77", "2001:db8:9::9");
    // Somebody else's.
    send("198.51.100.7", "198.51.100.99");
    send("2001:db8:7::7", "2001:db8:9::9");
    run.run_for(5);
    assert_eq!(run.lines_with("Ports probed"), [""; 0]);
    for target in ["host", "behind"] {
        assert_eq!(run.metric(&probing("syn", target)), "0");
    }
}

/// Whoever scrapes us and three exporters is no prober, but who asks for our
/// port among others is.
#[test]
fn our_own_port_is_no_probe() {
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 sends SYN to 3021, 9100, 9113, 9187
        198.51.100.8 sends SYN to 3021, 9100, 9113, 9187, 9256
        at 6 s: expect: Ports probed: 198.51.100.8 -> 203.0.113.5 on ports 9100,9113,9187,9256 (SYN; {WORDS})
    "}
}

/// Lines have their own budget, the table is bounded, each source is counted,
/// and a real scan beside them is told and blocked.
#[test]
fn ten_thousand_probing_sources_a_minute() {
    let mut run = started(&[]);
    run.checks.oracle = false;
    let end = |address: &str, port| Endpoint {
        address: address.parse().unwrap(),
        port,
    };
    for number in 0..10_000_u64 {
        let at = run.kernel.now.after(LINES_PERIOD.saturating_mul(number));
        let at = crate::time::Instant::from_nanos(
            run.kernel.now.as_nanos() + at.since(run.kernel.now).as_nanos() / 10_000,
        );
        run.kernel.at(at, move |kernel| {
            let peer = format!("198.18.{}.{}", number / 250, number % 250);
            for port in 1..=4 {
                kernel.send_packet(end(&peer, 50_000), end(OWN, port), 2, 2);
            }
        });
    }
    run.run_for(30);
    for (from, port) in (50_000..).zip([22, 25, 80, 445]) {
        run.kernel.open_connection(SCANNER, from, port);
    }
    run.run_for(40);
    assert_eq!(run.metric(&probing("syn", "host")), "10000");
    let entries = "tcpparser_table_entries{table=\"probes\"}";
    let entries: usize = run.metric(entries).parse().unwrap();
    assert_eq!(entries, PROBERS);
    let evictions = run.metric("tcpparser_table_evictions_total{table=\"probes\"}");
    assert_eq!(evictions, (10_000 - PROBERS).to_string());
    // The line of a minute that is over says how many there were.
    let lines = run.lines();
    let with = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
    assert!(with("Ports probed") <= 2 * PROBE_LINES, "{lines:?}");
    assert_eq!(with("… and 9990 more"), 1, "{lines:?}");
    assert_eq!(with("Port scan detected"), 1);
    assert_eq!(with("Blocked: 198.51.100.7 for"), 1);
}
