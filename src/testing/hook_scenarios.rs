//! Scans, blocks and their ends as the hook's launcher gets them.

use super::trace::trace;

/// Its counters, in the order of the label.
fn counted(result: &str) -> String {
    format!("tcpparser_hook_runs_total{{result=\"{result}\"}}")
}

#[test]
fn each_event_runs_it_with_its_words() {
    let ok = counted("ok");
    trace! {"
        kernel has nf_tables
        file /etc/hook is #!/bin/sh
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
        metric {ok} is 8
        # What a start finds is no event.
        kill
        at 143 s: start --firewall nft --hook /etc/hook
        at 160 s: hook ran 0 times more
    "};
}

#[test]
fn a_scan_without_a_block_runs_it() {
    trace! {"
        file /etc/hook is #!/bin/sh
        at 0 s: start --hook /etc/hook --dry-run
        at 1 s: 198.51.100.7 scans
        at 11 s: expect: Port scan detected: 198.51.100.7 -> …
        expect: Not blocked: 198.51.100.7 …
        hook runs scan|198.51.100.7|22,25,80,445||
        at 30 s: hook ran 0 times more
    "};
}

/// A block that became part of a wider one ends for the hook, too: what it keeps
/// elsewhere would stay there.
#[test]
fn blocks_that_are_widened_end() {
    trace! {"
        kernel has nf_tables
        without oracle
        file /etc/hook is #!/bin/sh
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
    let (timeout, dropped) = (counted("timeout"), counted("dropped"));
    trace! {"
        kernel has nf_tables
        hook hangs
        file /etc/hook is #!/bin/sh
        at 0 s: start --hook /etc/hook
        at 1 s: 198.18.0.1-100 scans
        at 11 s: expect 100: Port scan detected: …
        expect 100: Blocked: …
        metric {dropped} is 135
        metric {timeout} is 0
        at 20 s: hook runs scan|198.18.0.…
        metric {timeout} is 0
        at 22 s: metric {timeout} is 1
        hook runs scan|198.18.0.…
        # One is over: there is room for one.
        198.51.100.7 scans
        at 31 s: 198.51.100.7 is blocked for 10m
        metric {dropped} is 136
    "};
}

#[test]
fn failures_are_counted() {
    let (ok, failed) = (counted("ok"), counted("failed"));
    trace! {"
        hook fails
        file /etc/hook is #!/bin/sh
        at 0 s: start --hook /etc/hook
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        metric {failed} is 2
        metric {ok} is 0
    "};
}

#[test]
fn a_launcher_that_is_gone_costs_the_hook_alone() {
    let (ok, dropped) = (counted("ok"), counted("dropped"));
    trace! {"
        hook takes 2s
        file /etc/hook is #!/bin/sh
        at 0 s: start --hook /etc/hook
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        at 13500 ms: metric {ok} is 1
        launcher ends
        198.51.100.8 scans
        at 21 s: stderr: tcpparser: the hook is run no more: its launcher is gone
        198.51.100.8 is blocked for 10m
        # The one it was at, and two that it never got.
        metric {dropped} is 3
        metric {ok} is 1
        at 31 s: terminate
        expect: 2 blocks stand; to lift all: tcpparser --unblock all
    "};
}

/// And `--check` says so before: a service that is to read its settings anew would
/// end by them.
#[test]
fn files_that_others_may_change_end_the_start() {
    trace! {"
        at 0 s: start --hook /etc/hook exits 2
        stderr: tcpparser: --hook needs a program that only root can change, in such folders: no such file
        at 0 s: start --check --hook /etc/hook exits 2
        stderr: tcpparser: --hook needs a program that only root can change, in such folders: no such file
        file /etc/other is text
        at 0 s: start --hook /etc exits 2
        stderr: tcpparser: --hook needs a program that only root can change, in such folders: permission denied
    "};
}

/// Others can take all processes and files, and so keep no guard from its post.
#[test]
fn a_start_without_a_process_for_it_goes_on() {
    let dropped = counted("dropped");
    trace! {"
        launcher fails EMFILE
        file /etc/hook is #!/bin/sh
        at 0 s: start --hook /etc/hook
        stderr: tcpparser: no launcher for the hook: too many open files
        at 1 s: 198.51.100.7 scans
        at 11 s: 198.51.100.7 is blocked for 10m
        metric {dropped} is 2
    "};
}
