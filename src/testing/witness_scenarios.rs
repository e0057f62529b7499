//! What packets hint at, and what comes of it.

use super::fake_kernel::FakeKernel;
use super::scenarios::{OWN, started};
use super::trace::{play, trace};
use crate::address::Endpoint;
use crate::limits::{
    OPENS_PER_SECOND, WITNESS_BURST, WITNESS_FULL_REST, WITNESS_READS, WITNESS_REST,
};
use crate::packets::NO_ETHERTYPE;
use crate::proc_net_tcp::TcpState;
use crate::time::Duration;

const LOOKUPS: &str = "tcpparser_witness_lookups_total{result=\"proven\"}";

/// However seldom readings are.
#[test]
fn a_scan_that_is_held_is_known_at_once() {
    for (peer, source) in [(SCANNER, SCANNER), ("2001:db8:7::7", "2001:db8:7::/64")] {
        trace! {"
            without oracle
            at 0 s: start --interval=1h
            at 5 s: {peer} holds 22, 25, 80, 445
            at 5015 ms: {source} is blocked for 10m
            metric {LOOKUPS} is 4
            metric tcpparser_witness_packets_total is 4
            metric tcpparser_witness_up is 1
        "}
    }
}

/// With the last one after a while, or by what else is known of the source.
#[test]
fn connections_are_looked_up_once_they_may_be_a_scan() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: 198.51.100.7 holds 22, 25, 80
        198.51.100.8 holds 22, 25
        198.51.100.9 holds 22, 22, 22, 22, 22, 25, 80
        at 30 s: lookups so far 0
        198.51.100.7 holds 445
        198.51.100.8 resets 80, 445
        at 30010 ms: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,445
        expect: Blocked: 198.51.100.7 for …
        lookups so far 4
        198.51.100.8 holds 443
        at 30020 ms: expect: Port scan detected: 198.51.100.8 -> 203.0.113.5 on ports 22,25,80,443,445
        expect: Blocked: 198.51.100.8 for …
        lookups so far 7
    "}
}

/// A source with that many ports is no scan where one of them is known.
#[test]
fn ports_count_once() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: 198.51.100.7 resets 22, 25, 80
        at 6 s: 198.51.100.7 holds 22, 25, 80
        at 20 s: lookups so far 0
    "}
}

#[test]
fn half_open_connections_are_no_evidence() {
    trace! {"
        without oracle
        at 0 s: start
        at 5 s: 198.51.100.7 asks for 22, 25, 80, 443, 445
        at 6 s: expect: Ports probed: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,443,445 (SYN; …
        at 3605 s: metric tcpparser_witness_lookups_total{{result=\"none\"}} is 45
        metric tcpparser_port_scans_total is 0
        metric tcpparser_new_connections_total{{direction=\"in\",family=\"4\"}} is 0
        iptables has no chain
    "}
}

/// Fast Open without a cookie: the socket shows no proof.
#[test]
fn forged_connections_stay_no_evidence() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 1 s: 198.51.100.7 is forged
        at 5 s: 198.51.100.7 holds 22, 25, 80, 445 in FIN_WAIT1
        at 6 s: expect: Ports probed: 198.51.100.7 -> …
        at 20 s: metric tcpparser_port_scans_total is 0
    "}
    for (state, label) in [
        (TcpState::FinWait1, "fin_wait1"),
        (TcpState::SynRecv, "syn_recv"),
    ] {
        let mut run = started(&["--interval=1h"]);
        run.checks.oracle = false;
        if state == TcpState::FinWait1 {
            run.kernel.forged.push(SCANNER.parse().unwrap());
        }
        for (from, port) in (50_000..).zip([22, 25, 80, 445]) {
            run.kernel.open_connection(SCANNER, from, port);
            syn(&mut run.kernel, SCANNER, from, port);
        }
        for socket in &mut run.kernel.sockets {
            if socket.remote.1 != 0 {
                socket.state = state;
            }
        }
        run.run_for(10);
        let open = "tcpparser_witness_lookups_total{result=\"open\"}";
        assert_eq!(run.metric(open), "36");
        assert_eq!(run.metric("tcpparser_port_scans_total"), "0");
        let gauge = format!("tcpparser_connections{{family=\"4\",state=\"{label}\"}}");
        assert_eq!(run.metric(&gauge), "0");
    }
}

const SCANNER: &str = "198.51.100.7";

fn end(address: &str, port: u16) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        port,
    }
}

fn syn(kernel: &mut FakeKernel, peer: &str, from: u16, port: u16) {
    kernel.send_packet(end(peer, from), end(OWN, port), 2, 2);
}

/// A SYN that was lost, or the answer to it, comes again.
#[test]
fn late_handshakes_are_found() {
    for (late, known) in [(3, 5), (30, 50), (150, 200), (1_500, 1_600)] {
        let (before, after) = (5_000 + known - 1, 5_000 + known + 6);
        let line = format!("at 6 s: expect: Ports probed: {SCANNER} -> …");
        let probed = if known > 1_000 { &line } else { "" };
        trace! {"
            without oracle
            at 0 s: start --interval=1h
            at 5 s: {SCANNER} asks for 22, 25, 80, 445 and opens them {late} ms later
            {probed}
            at {before} ms: metric tcpparser_port_scans_total is 0
            at {after} ms: {SCANNER} is blocked for 10m
        "}
    }
}

/// SYNs of sources that would be no scanners, or to what is no service here.
#[test]
fn who_is_not_looked_for() {
    let mut run = started(&["--interval=1h", "--allow=192.0.2.9"]);
    run.checks.oracle = false;
    for (from, port) in (50_000..).zip([22, 25, 80, 443, 445]) {
        for peer in ["127.0.0.1", "10.0.0.1", OWN] {
            syn(&mut run.kernel, peer, from, port);
        }
        // Past this host, and to ports that do not listen.
        let kernel = &mut run.kernel;
        kernel.send_packet(end(SCANNER, from), end("192.0.2.77", port), 2, 2);
        syn(kernel, SCANNER, from, 1_000 + port);
        // No SYN.
        kernel.send_packet(end(SCANNER, from), end(OWN, port), 1, 2);
    }
    run.run_for(3);
    assert_eq!(run.kernel.lookups, 0);
    assert_eq!(run.metric("tcpparser_witness_packets_total"), "30");
}

#[test]
fn blocked_sources_are_not_looked_for() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: 198.51.100.7 holds 22, 25, 80, 445
        at 6 s: 198.51.100.7 is blocked for 10m
        198.51.100.7 asks for 22, 25, 80, 443, 445
        at 9 s: lookups so far 4
    "}
}

/// Said once, and then the kernel's counters are all there is, four times a
/// second. A capability that comes later is found within a minute.
#[test]
fn without_packet_sockets_counters_are_looked_at_more_often() {
    let said = "packet sockets fail EPERM";
    let stderr = "stderr: tcpparser: no packet sockets (CAP_NET_RAW): …";
    for (fails, line, option) in [(said, stderr, "auto"), ("", "", "none")] {
        trace! {"
            without oracle
            {fails}
            kernel counts 1000 more connections
            at 0 s: start --interval=1h --witness={option}
            at 5 s: {line}
            at 130 s: metric tcpparser_witness_up is 0
            198.51.100.7 holds 22, 25, 80, 445
            kernel counts 4 more connections
            at 130300 ms: 198.51.100.7 is blocked for 10m
            lookups so far 0
        "}
    }
}

/// Of a flood so many packets are taken each second, and what is lost is counted.
#[test]
fn a_flood_is_sampled() {
    let mut run = started(&["--interval=1h"]);
    run.checks.oracle = false;
    let before = run.kernel.lookups;
    // Each of these sources might complete a scan.
    for millisecond in 0..1_000_u64 {
        let at = run.kernel.now.after(Duration::from_millis(millisecond));
        run.kernel.at(at, move |kernel| {
            let peer = format!("192.0.2.{}", millisecond % 200);
            for (from, port) in (1_000..).zip([22, 25, 80, 445].iter().cycle().take(100)) {
                syn(kernel, &peer, from, *port);
            }
        });
    }
    run.run_for(1);
    let taken: usize = run
        .metric("tcpparser_witness_packets_total")
        .parse()
        .unwrap();
    let lost: usize = run
        .metric("tcpparser_witness_packets_dropped_total")
        .parse()
        .unwrap();
    let most = WITNESS_BURST + WITNESS_READS * (1_000 / 50 + 2);
    assert!((most / 2..=most).contains(&taken), "{taken}");
    assert!(
        taken + lost <= 100_000 && taken + lost > 90_000,
        "{taken} {lost}"
    );
    let lookups = (run.kernel.lookups - before) as usize;
    assert!(lookups > 0 && lookups <= 2 * OPENS_PER_SECOND, "{lookups}");
    assert_eq!(run.metric("tcpparser_port_scans_total"), "0");
    // A scan after it is known as ever.
    run.run_for(2);
    for (from, port) in (50_000..).zip([22, 25, 80, 445]) {
        run.kernel.open_connection(SCANNER, from, port);
        syn(&mut run.kernel, SCANNER, from, port);
    }
    run.run_for(1);
    assert_eq!(run.lines_with("Port scan").len(), 1);
}

/// Packets wait for others for some milliseconds; idle, nothing wakes us.
#[test]
fn packets_rest() {
    let mut run = started(&["--interval=1h"]);
    let mut wait_after = |count: usize| {
        for from in 0..count {
            syn(&mut run.kernel, SCANNER, from as u16, 9);
        }
        run.turn();
        let before = run.kernel.now;
        syn(&mut run.kernel, SCANNER, 1, 9);
        run.turn();
        let rest = run.kernel.now.since(before);
        run.turn();
        rest
    };
    assert_eq!(wait_after(1), WITNESS_REST);
    assert_eq!(wait_after(WITNESS_READS - 1), WITNESS_REST);
    for _ in 0..WITNESS_BURST / (WITNESS_READS + 2) - 1 {
        assert_eq!(wait_after(WITNESS_READS), WITNESS_REST);
    }
    assert_eq!(wait_after(WITNESS_READS), WITNESS_FULL_REST);
    let before = run.kernel.now;
    run.turn();
    assert!(run.kernel.now.since(before) > Duration::from_millis(500));
}

/// By an ethertype that never comes, and back after ten seconds.
#[test]
fn too_many_packets_make_the_sockets_pause() {
    const PAUSES: &str = "tcpparser_witness_pauses_total";
    for (processors, family, few, many) in [
        ("0-1", "IPv4", 49_000, 52_000),
        ("0-1", "IPv6", 49_000, 52_000),
        ("0", "IPv4", 24_000, 26_000),
    ] {
        let run = play(&format!(
            "
            without oracle
            kernel counts 1000 more connections
            kernel counts 1000 more packets of IPv4
            kernel counts 1000 more packets of IPv6
            file /sys/devices/system/cpu/online is {processors}
            at 0 s: start --interval=1h
            at 4500 ms: kernel counts {few} more packets of {family}
            at 5500 ms: kernel counts {few} more packets of {family}
            at 6500 ms: metric {PAUSES} is 0
            kernel counts {many} more packets of {family}
            at 7500 ms: stderr: tcpparser: too many packets: …
            metric {PAUSES} is 1
            metric tcpparser_witness_up is 0
            198.51.100.7 asks for 22, 25, 80, 445
            at 16800 ms: metric tcpparser_witness_up is 0
            at 19 s: metric tcpparser_witness_up is 1
            metric tcpparser_witness_packets_total is 0
            kernel counts {many} more packets of {family}
            at 21 s: metric {PAUSES} is 2
            "
        ));
        let [v4, v6] = [0x0800, 0x86dd];
        let paused = [NO_ETHERTYPE; 2];
        let expected = [[v4, v6], paused, [v4, v6], paused].concat();
        assert_eq!(run.kernel.bound, expected);
    }
}

/// Where sockets cannot be asked for, a reading shows what there is.
#[test]
fn where_no_socket_can_be_asked_for_a_hint_brings_a_reading() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: rtnetlink fails EACCES
        198.51.100.7 holds 22, 25, 80, 445
        at 5010 ms: 198.51.100.7 is blocked for 10m
        metric tcpparser_early_readings_total is 1
    "}
}

/// Signals, and answers that came too late for their questions.
#[test]
fn questions_are_asked_in_spite_of_trouble() {
    let mut run = started(&["--interval=1h"]);
    run.checks.oracle = false;
    run.kernel.faults.interrupts = 200;
    run.kernel.faults.older_answers = true;
    for (from, port) in (50_000..).zip([22, 25, 80, 445]) {
        run.kernel.open_connection(SCANNER, from, port);
        syn(&mut run.kernel, SCANNER, from, port);
    }
    run.run_for(1);
    assert_eq!(run.lines_with("Port scan").len(), 1);
    run.kernel.faults.interrupts = 0;
    assert_eq!(run.metric(LOOKUPS), "4");
}

/// A client that sends something does so after its handshake.
#[test]
fn where_data_decides_nothing_is_looked_up() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h --require-silent --dry-run
        at 5 s: 198.51.100.7 holds 22, 25, 80, 445
        at 5500 ms: metric {LOOKUPS} is 0
        metric tcpparser_port_scans_total is 0
    "}
}

/// The gauge of connections is of readings, the counter of all.
#[test]
fn what_is_looked_up_is_counted_once() {
    trace! {"
        without oracle
        at 0 s: start --interval=30s --dry-run
        at 5 s: 198.51.100.7 holds 22, 25, 80, 445
        at 6 s: expect: Port scan detected: …
        expect: Not blocked: …
        metric tcpparser_connections{{family=\"4\",state=\"established\"}} is 0
        metric tcpparser_new_connections_total{{direction=\"in\",family=\"4\"}} is 4
        at 31 s: metric tcpparser_connections{{family=\"4\",state=\"established\"}} is 4
        metric tcpparser_new_connections_total{{direction=\"in\",family=\"4\"}} is 4
        198.51.100.7 ends
        at 65 s: metric tcpparser_new_connections_total{{direction=\"in\",family=\"4\"}} is 4
    "}
}
