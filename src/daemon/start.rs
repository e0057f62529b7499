//! From the command line to the first turn: what a start says and sets.

use crate::address::Endpoint;
use crate::host::Host;
use crate::kernel::{CAP_NET_ADMIN, Kernel, StartUp};
use crate::limits::ONE_SHOT_WAIT_BUDGET;
use crate::options::{FirewallChoice, Options};
use crate::report;
use crate::text::{Text, TextView, split};

use super::instance::{InstanceLock, Obstacle};
use super::output::{Output, log_error, log_pair, log_words};
use super::{Firewall, Flow};

/// A bad command line, as usual (BSD sysexits call it EX_USAGE, shells 2).
pub(super) const USAGE: Flow = Flow::Exit(2);

/// Prints a text and ends.
#[inline(never)]
pub(super) fn print(
    kernel: &mut impl Kernel,
    output: &mut Output,
    write: fn(&mut TextView),
) -> Flow {
    let mut text: Text<2_400> = Text::new();
    write(&mut text);
    output.set_wait_budget(ONE_SHOT_WAIT_BUDGET, ONE_SHOT_WAIT_BUDGET);
    print_lines(kernel, output, text.as_bytes());
    output.finish(kernel);
    Flow::Exit(0)
}

/// The first lines of a daemon.
#[inline(never)]
pub(super) fn print_start(kernel: &mut impl Kernel, output: &mut Output) {
    print_lines(kernel, output, report::START);
    output.flush(kernel);
}

/// Prints the lines of a text whose last one is ended as well.
fn print_lines(kernel: &mut impl Kernel, output: &mut Output, text: &[u8]) {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    for line in split(text, b'\n') {
        output.bare(kernel, line);
    }
}

/// Whether this is a container: podman, systemd and our own image have the
/// variable (systemd.io/CONTAINER_INTERFACE).
pub(super) fn is_container(start_up: &StartUp) -> bool {
    start_up.variable(b"container").is_some()
}

/// Where to look and what to expect, for whoever sits at the terminal.
#[inline(never)]
pub(super) fn introduce(
    kernel: &mut impl Kernel,
    listen: Option<Endpoint>,
    host: &Host,
    firewall: &Firewall,
    has_events: bool,
) {
    let url = match listen {
        None => Text::from_bytes(b"none"),
        Some(own) => report::endpoint_words(b"http://", own.local(), b"/metrics"),
    };
    log_pair(kernel, b"metrics: ", url.as_bytes());
    let blocks = firewall.targets();
    let events = words_if(has_events, b" and destroy events");
    log_error(
        kernel,
        &[b"blocks: ", blocks, b"; connections: readings", events],
    );
    let always = b"never blocked: own addresses, gateways, nameservers";
    let allowed = words_if(host.has_allowed(), b", --allow");
    let peer = words_if(host.has_ssh_peer(), b", our own SSH session");
    log_error(kernel, &[always, allowed, peer]);
}

fn words_if(is_so: bool, words: &'static [u8]) -> &'static [u8] {
    if is_so { words } else { b"" }
}

/// What is never to be blocked: --allow, and the peer of an SSH session.
pub(super) fn protect(start_up: &StartUp, host: &mut Host, options: &Options) {
    for network in &options.allow {
        host.allow(*network);
    }
    if let Some(value) = start_up.variable(b"SSH_CONNECTION") {
        host.set_ssh_connection(value);
    }
}

/// Whether this daemon is one that blocks; `None` where it should and can't.
pub(super) fn may_block(
    kernel: &mut impl Kernel,
    start_up: &StartUp,
    options: &Options,
    instance: &mut InstanceLock,
) -> Option<bool> {
    if options.dry_run || options.firewall == FirewallChoice::None {
        return Some(false);
    }
    if options.names_ipset {
        let words = b"--firewall ipset is read as auto: sets are made by nf_tables now";
        log_words(kernel, words);
    }
    if start_up.capabilities & CAP_NET_ADMIN == 0 {
        let means: &[u8] = if is_container(start_up) {
            b"--cap-add=NET_ADMIN"
        } else {
            b"sudo"
        };
        let (words, or) = (
            b"blocking needs CAP_NET_ADMIN: start it with ",
            b", or only watch with --dry-run",
        );
        log_error(kernel, &[words, means, or]);
        return None;
    }
    is_only_instance(kernel, instance).then_some(true)
}

/// Whether no other daemon of ours blocks here.
fn is_only_instance(kernel: &mut impl Kernel, instance: &mut InstanceLock) -> bool {
    match instance.acquire(kernel) {
        Ok(()) => true,
        Err(Obstacle::Instance) => {
            let words =
                b"another tcpparser blocks in this network namespace; only watch with --dry-run";
            log_words(kernel, words);
            false
        }
        Err(obstacle) => {
            let (words, why) = (
                b"blocking without the socket @tcpparser: ",
                obstacle.words(),
            );
            log_pair(kernel, words, why.as_bytes());
            true
        }
    }
}
