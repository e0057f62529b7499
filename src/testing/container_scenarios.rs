//! Connections to ports that are published for containers.

use super::trace::trace;

const UP: &str = "tcpparser_evidence_source_up{source=\"namespaces\"}";

#[test]
fn a_scan_of_published_ports_is_blocked_at_once() {
    for (peer, source, own) in [
        ("198.51.100.7", "198.51.100.7", "203.0.113.5"),
        ("2001:db8:7::7", "2001:db8:7::/64", "2001:db8:1::5"),
    ] {
        trace! {"
            without oracle
        at 0 s: start --interval=1h
            at 5 s: {peer} visits 8001 8002 8003 8004
            at 5020 ms: expect: Port scan detected: {source} -> {own} on ports 8001,8002,8003,8004
            expect: Blocked: {source} for 10m, …
            metric tcpparser_namespace_events_total is 4
            metric {UP} is 1
            # What it still ends is of no account.
            {peer} visits 8001 8002 8003 8004 8005
            at 6 s: metric tcpparser_port_scans_total is 1
        "}
    }
}

/// One that is proven whole beside three that are not, and the other way round.
#[test]
fn what_root_in_a_container_may_have_forged_is_told() {
    for links in ["none", "3", "3 2"] {
        trace! {"
            without oracle
        at 0 s: start --interval=1h
            at 5 s: 198.51.100.7 visits 8001
            at 6 s: 198.51.100.7 visits 8002 8003 8004 8005 by link {links}
            at 7 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 8001,8002,8003,8004,8005
            expect: Not blocked: 198.51.100.7 it may be forged …
            198.51.100.7 visits 8002 8003
            at 8 s: metric tcpparser_port_scans_total is 1
            198.51.100.7 visits 8004
            at 9 s: 198.51.100.7 is blocked for 10m
            metric tcpparser_blocks_refused_total{{reason=\"way_unseen\"}} is 1
        "}
    }
}

/// Its SYN may have come in by another link before the sockets were opened.
#[test]
fn what_comes_in_right_after_the_start_is_told() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 500 ms: 198.51.100.7 visits 8001 8002 8003 8004
        at 3 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 8001,8002,8003,8004
        expect: Not blocked: 198.51.100.7 it may be forged …
        198.51.100.7 visits 8001 8002 8003 8004
        at 4 s: 198.51.100.7 is blocked for 10m
    "}
}

/// However many others of its network come to one port each at that moment.
#[test]
fn neighbours_of_a_scanner_do_not_hide_it() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: 198.51.100.10 visits 8001 8002
        198.51.100.11 visits 8001 8002
        198.51.100.12 visits 8001 8002
        198.51.100.13 visits 8001 8002
        198.51.100.14 visits 8001 8002
        198.51.100.15 visits 8001 8002
        198.51.100.16 visits 8001 8002
        198.51.100.17 visits 8001 8002
        198.51.100.18 visits 8001 8002
        198.51.100.7 visits 8001 8002 8003 8004
        at 6 s: 198.51.100.7 is blocked for 10m
    "}
}

/// Neighbours, clients of a private network, and three ports.
#[test]
fn who_is_no_scanner_of_published_ports() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: 203.0.113.77 visits 8001 8002 8003 8004 8005
        10.9.9.9 visits 8001 8002 8003 8004 8005
        198.51.100.7 visits 8001 8002 8003 8001 8002 8003
        198.51.100.9 is forged
        198.51.100.9 visits 8001 8002 8003 8004 8005
        at 65 s: metric tcpparser_port_scans_total is 0
        expect: Ports probed: 203.0.113.77 …
        expect: Ports probed: 10.9.9.9 …
        expect: Ports probed: 198.51.100.9 …
        iptables has no chain
    "}
}

/// Both kinds of ports of one source count together.
#[test]
fn ports_of_the_host_and_of_containers_are_one_scan() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: 198.51.100.7 resets 22, 25
        198.51.100.7 visits 8001 8002
        at 6 s: expect: Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,8001,8002
        expect: Blocked: …
    "}
}

#[test]
fn without_the_right_to_see_other_namespaces() {
    trace! {"
        namespaces fail EPERM
        without oracle
        at 0 s: start --interval=1h --sandbox=none
        at 5 s: stderr: tcpparser: connections to containers and their published ports are not seen: …
        metric {UP} is 0
        198.51.100.7 visits 8001 8002 8003 8004
        at 50 s: metric tcpparser_port_scans_total is 0
        expect: Ports probed: 198.51.100.7 …
        namespaces work
        at 130 s: metric {UP} is 1
        198.51.100.7 visits 8001 8002 8003 8004
        at 131 s: 198.51.100.7 is blocked for 10m
    "}
}

#[test]
fn without_conntrack() {
    trace! {"
        conntrack fails EPERM
        without oracle
        at 0 s: start --interval=1h
        at 5 s: metric {UP} is 1
        198.51.100.7 visits 8001 8002 8003 8004
        at 8 s: stderr: tcpparser: connections to containers and their published ports are not seen: …
        metric {UP} is 0
        metric tcpparser_port_scans_total is 0
        expect: Ports probed: 198.51.100.7 …
        conntrack works
        at 130 s: 198.51.100.7 visits 8001 8002 8003 8004
        at 131 s: 198.51.100.7 is blocked for 10m
        metric {UP} is 1
    "}
}

/// Of those that arrived some are left, and lost ones are counted.
#[test]
fn events_of_namespaces_may_be_lost() {
    trace! {"
        without oracle
        at 0 s: start --interval=1h
        at 5 s: events of namespaces are lost
        198.51.100.7 visits 8001 8002 8003 8004
        at 8 s: metric tcpparser_destroy_event_overflows_total is 1
        expect: Ports probed: 198.51.100.7 …
        events of namespaces arrive
        198.51.100.7 visits 8001 8002 8003 8004
        at 9 s: 198.51.100.7 is blocked for 10m
    "}
}
