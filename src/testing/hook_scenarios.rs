//! Scans, blocks and their ends as the hook's launcher gets them.

use super::trace::play;

// Its counters, in the order of the label.
const OK: &str = "tcpparser_hook_runs_total{result=\"ok\"}";
const FAILED: &str = "tcpparser_hook_runs_total{result=\"failed\"}";
const TIMEOUT: &str = "tcpparser_hook_runs_total{result=\"timeout\"}";
const DROPPED: &str = "tcpparser_hook_runs_total{result=\"dropped\"}";

/// A trace of a host that has a hook.
macro_rules! trace {
    ($text:literal) => {
        drop(play(&format!(
            "file /etc/hook is #!/bin/sh\n{}",
            format!($text)
        )))
    };
}

#[test]
fn each_event_runs_it_with_its_words() {
    trace! {"
        kernel has nf_tables
        at 0 s: start --firewall nft --hook /etc/hook --block-time 1m,forever
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 1m
        hook runs scan|198.51.100.7|22,25,80,445||
        hook runs block|198.51.100.7|22,25,80,445|60|
        198.51.100.7 closes
        at 72 s: expect: Unblocked: 198.51.100.7 its time is over
        hook runs unblock|198.51.100.7|22,25,80,445||expired|
        2001:db8:7::7 scans
        at 82 s: 2001:db8:7::/64 is blocked for 1m
        hook runs scan|2001:db8:7::/64|22,25,80,445||
        hook runs block|2001:db8:7::/64|22,25,80,445|60|
        2001:db8:7::7 closes
        nft delete element 2001:db8:7::/64
        at 130 s: expect: Unblocked: 2001:db8:7::/64 its rule was removed by …
        hook runs unblock|2001:db8:7::/64|22,25,80,445||operator|
        198.51.100.7 scans
        at 141 s: expect: Port scan detected: 198.51.100.7 -> …
        expect: Blocked: 198.51.100.7 for ever, …
        hook runs scan|198.51.100.7|22,25,80,445||
        hook runs block|198.51.100.7|22,25,80,445|0|
        hook ran 0 times more
        metric {OK} is 8
        # What a start finds is no event.
        kill
        at 143 s: start --firewall nft --hook /etc/hook
        at 160 s: hook ran 0 times more
    "};
}

#[test]
fn a_scan_without_a_block_runs_it() {
    trace! {"
        at 0 s: start --hook /etc/hook --dry-run
        at 1 s: 198.51.100.7 scans
        at 11 s: expect: Port scan detected: 198.51.100.7 -> …
        expect: Not blocked: 198.51.100.7 …
        hook runs scan|198.51.100.7|22,25,80,445||
        at 30 s: hook ran 0 times more
    "};
}

/// Another program may have written a comment, and chooses no other words by it.
#[test]
fn ports_of_a_comment_are_numbers() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        with foreign rules
        sets already hold 192.0.2.1 for 100s: b=0badcafe e=700 s=3 t=10 d=n p=22,25,80,+9
        sets already hold 192.0.2.2 for 100s: b=0badcafe e=700 s=3 t=10 d=n p=22,80$(id)
        at 0 s: start --firewall nft --hook /etc/hook
        at 101 s: expect: Unblocked: 192.0.2.1 its time is over
        expect: Unblocked: 192.0.2.2 its time is over
        hook runs unblock|192.0.2.1|22,25,80,+9||expired|
        hook runs unblock|192.0.2.2|22,80||expired|
    "}
}

/// It ran for no block, and so for no end of one.
#[test]
fn a_block_that_never_stood_does_not_end() {
    trace! {"
        kernel has nf_tables
        iptables vanishes
        kernel lacks permission
        at 0 s: start --firewall nft --hook /etc/hook --block-time 5s
        at 3 s: stderr: tcpparser: nf_tables refuses: permission denied; it is tried again
        198.51.100.7 scans
        at 14 s: expect: Port scan detected: 198.51.100.7 …
        expect: Block failed: 198.51.100.7 …
        hook runs scan|198.51.100.7|22,25,80,445||
        198.51.100.7 closes
        at 30 s: expect: Block failed: 198.51.100.7 its time was over before the firewall took it
        hook ran 0 times more
    "}
}

/// A block that became part of a wider one ends for the hook, too: what it keeps
/// elsewhere would stay there.
#[test]
fn blocks_that_are_widened_end() {
    trace! {"
        kernel has nf_tables
        without oracle
        at 0 s: start --hook /etc/hook --firewall nft --widen 2
        at 1 s: 2001:db8:5:101::1 scans
        at 11 s: 2001:db8:5:101::/64 is blocked for 10m
        hook runs scan|2001:db8:5:101::/64|22,25,80,445||
        hook runs block|2001:db8:5:101::/64|22,25,80,445|600|
        at 12 s: 2001:db8:5:102::1 scans
        at 21 s: expect: Port scan detected: 2001:db8:5:102::/64 …
        expect: Blocked: 2001:db8:5:100::/56 for 10m, …
        hook runs scan|2001:db8:5:102::/64|22,25,80,445||
        hook runs block|2001:db8:5:100::/56|22,25,80,445|600|
        hook runs unblock|2001:db8:5:101::/64|22,25,80,445||widened|
        hook ran 0 times more
    "};
}

/// One run and sixty-four that wait; more are dropped, and blocks come as they do
/// without a hook.
#[test]
fn what_hangs_delays_and_holds_nothing() {
    trace! {"
        kernel has nf_tables
        hook hangs
        at 0 s: start --hook /etc/hook
        at 1 s: 198.18.0.1-100 scans
        at 11 s: expect 100: Port scan detected: …
        expect 100: Blocked: …
        metric {DROPPED} is 135
        metric {TIMEOUT} is 0
        at 20 s: hook runs scan|198.18.0.…
        metric {TIMEOUT} is 0
        at 22 s: metric {TIMEOUT} is 1
        hook runs scan|198.18.0.…
        # One is over: there is room for one.
        198.51.100.7 scans
        at 31 s: 198.51.100.7 is blocked for 10m
        metric {DROPPED} is 136
    "};
}

#[test]
fn failures_are_counted() {
    trace! {"
        hook fails
        at 0 s: start --hook /etc/hook
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        metric {FAILED} is 2
        metric {OK} is 0
    "};
}

#[test]
fn a_launcher_that_is_gone_costs_the_hook_alone() {
    trace! {"
        hook takes 2s
        at 0 s: start --hook /etc/hook
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        at 13500 ms: metric {OK} is 1
        launcher ends
        198.51.100.8 scans
        at 21 s: stderr: tcpparser: the hook is run no more: its launcher is gone
        198.51.100.8 is blocked for 10m
        # The one it was at, and two that it never got.
        metric {DROPPED} is 3
        metric {OK} is 1
        at 31 s: terminate
        expect: 2 blocks stand; to lift all: tcpparser --unblock all
    "};
}

/// And `--check` says so before: a service that is to read its settings anew would
/// end by them.
#[test]
fn files_that_others_may_change_end_the_start() {
    trace! {"
        at 0 s: start --hook /etc/none exits 2
        stderr: tcpparser: --hook needs a program that only root can change, in such folders: no such file
        at 0 s: start --check --hook /etc/none exits 2
        stderr: tcpparser: --hook needs a program that only root can change, in such folders: no such file
        at 0 s: start --hook /etc exits 2
        stderr: tcpparser: --hook needs a program that only root can change, in such folders: permission denied
    "};
}

#[test]
fn a_check_starts_no_launcher() {
    trace! {"
        at 0 s: start --check --hook /etc/hook exits 0
        no launcher was started
        at 0 s: start --hook /etc/hook
        a launcher of /etc/hook was started
    "}
}

/// Others can take all processes and files, and so keep no guard from its post.
#[test]
fn a_start_without_a_process_for_it_goes_on() {
    trace! {"
        launcher fails EMFILE
        at 0 s: start --hook /etc/hook
        stderr: tcpparser: no launcher for the hook: too many open files
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        metric {DROPPED} is 2
    "};
}
