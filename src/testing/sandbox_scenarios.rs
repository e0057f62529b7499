//! Scenarios of what is given up, and when: the fake kernel refuses or reports
//! what the sandbox does not leave.

use super::fake_kernel::ChildFault;
use super::run::Run;
use super::scenarios::{SCANNER, host};
use crate::daemon::Flow;
use crate::limits::SANDBOX_WAIT;
use crate::sandbox::Layer;
use crate::time::{Duration, Instant};

const NET_ADMIN: u32 = 1 << 12;
const NET_RAW: u32 = 1 << 13;
const NET_BIND_SERVICE: u32 = 1 << 10;
const SYS_CHROOT: u32 = 1 << 18;

/// With iptables or without, and nf_tables.
fn world(has_tool: bool) -> Run {
    let mut run = host();
    run.kernel.nf_tables.lacks.nf_tables = false;
    run.kernel.tools.has_preferred = has_tool;
    run
}

fn start(run: &mut Run, arguments: &[&str]) -> Instant {
    assert_eq!(run.start(arguments), Flow::Continue);
    run.kernel.now
}

#[test]
fn where_no_program_will_run_it_is_sealed() {
    let none: &[&str] = &[];
    let root = NET_ADMIN | NET_RAW;
    for (has_tool, arguments, is_sealed, capabilities) in [
        (true, none, false, root),
        (false, none, true, NET_ADMIN),
        (true, &["--firewall=iptables"], false, root),
        // What is tried again may be installed later.
        (false, &["--firewall=iptables"], false, root),
        (true, &["--firewall=nft"], true, NET_ADMIN),
        (true, &["--firewall=none"], true, NET_ADMIN),
        (true, &["--dry-run"], true, NET_ADMIN),
        (true, &["--exec-root=/host"], false, root | SYS_CHROOT),
        (true, &["--dry-run", "--exec-root=/host"], true, NET_ADMIN),
    ] {
        let mut run = world(has_tool);
        let began = start(&mut run, arguments);
        run.run_for(2);
        let given = run.kernel.sandbox.clone().expect("entered");
        assert_eq!(given.is_sealed, is_sealed, "{has_tool} {arguments:?}");
        assert_eq!(given.capabilities, capabilities, "{arguments:?}");
        assert!(given.at.since(began) < Duration::from_secs(1));
        let tier = if is_sealed { "sealed" } else { "confined" };
        for other in ["sealed", "confined", "none"] {
            let name = format!("tcpparser_sandbox_info{{tier=\"{other}\"}}");
            assert_eq!(run.metric(&name), u8::from(other == tier).to_string());
        }
        assert_eq!(run.metric("tcpparser_witness_up"), "1");
        run.run_for(300);
        run.terminate();
    }
}

#[test]
fn none_is_entered_where_none_is_wanted() {
    let mut run = world(false);
    start(&mut run, &["--sandbox=none"]);
    run.run_for(60);
    assert!(run.kernel.sandbox.is_none());
    let name = "tcpparser_sandbox_info{tier=\"none\"}";
    assert_eq!(run.metric(name), "1");
}

/// A listing that hangs keeps it open for its deadline, and no longer.
#[test]
fn a_listing_that_hangs_ends_the_wait() {
    let mut run = world(true);
    run.kernel.faults.child = ChildFault::Hangs {
        ignores_sigterm: true,
        closes_output: false,
        worked: false,
    };
    let began = start(&mut run, &[]);
    run.run_for(9);
    assert!(run.kernel.sandbox.is_none());
    run.run_for(10);
    let given = run.kernel.sandbox.clone().expect("entered");
    assert!(!given.is_sealed && given.at.since(began) <= SANDBOX_WAIT.saturating_mul(2));
}

/// IPv6 that comes when no program can run any more is blocked by the sets.
#[test]
fn what_comes_later_runs_no_program() {
    let mut run = world(false);
    run.kernel.has_tcp6 = false;
    start(&mut run, &[]);
    run.run_for(5);
    run.kernel.has_tcp6 = true;
    // And another tool.
    run.kernel.tools.has_preferred = true;
    run.run_for(30);
    for source in [SCANNER, "2001:db8:2::9"] {
        run.kernel.scan(source);
    }
    run.run_for(15);
    assert_eq!(run.metric("tcpparser_blocked_sources"), "2");
    assert!(
        run.kernel
            .commands
            .iter()
            .all(|one| one.words.ends_with(" -V"))
    );
    run.terminate();
}

/// What a port below 1024 needs stays while it is not had, and no longer than that.
#[test]
fn a_low_port_that_is_not_had_yet_keeps_its_right() {
    for (port, kept) in [("80", NET_BIND_SERVICE), ("3021", 0)] {
        let mut run = world(false);
        run.kernel.faults.listen = Some(crate::kernel::Errno::EADDRINUSE);
        start(&mut run, &["--listen", &format!("192.0.2.1:{port}")]);
        run.run_for(5);
        let given = run.kernel.sandbox.clone().expect("entered");
        assert_eq!(given.capabilities, NET_ADMIN | kept);
        run.kernel.faults.listen = None;
        run.run_for(5);
        assert!(run.error_output().contains("listening on"));
    }
}

#[test]
fn layers_that_lack_are_said_and_counted() {
    let labels = ["capabilities", "no_new_privs", "landlock", "seccomp"];
    for (missing, label) in Layer::ALL.into_iter().zip(labels) {
        let mut run = world(false);
        run.kernel.lacks_layers = missing.bit();
        start(&mut run, &[]);
        run.run_for(5);
        let said = run.error_output();
        let said: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("sandbox"))
            .collect();
        assert!(said.len() == 1 && said[0].ends_with(label), "{said:?}");
        for other in labels {
            let name = format!("tcpparser_sandbox{{layer=\"{other}\"}}");
            assert_eq!(run.metric(&name), u8::from(other != label).to_string());
        }
    }
}
