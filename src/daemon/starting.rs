//! From the command line to the first turn.

use crate::firewall::Policy;
use crate::kernel::{CAP_NET_ADMIN, Errno, Kernel, Path, RowsFile};
use crate::limits::ONE_SHOT_PATIENCE;
use crate::listeners::PortRange;
use crate::metrics::Trigger;
use crate::options::{Action, FirewallChoice, USAGE_LINE, write_help, write_version};
use crate::report;
use crate::text::{Sink, Text, parse_decimal, trim};

use super::instance::Obstacle;
use super::tools::boot_id;
use super::{Daemon, Flow};

/// A bad command line, as usual (BSD sysexits call it EX_USAGE, shells 2).
const USAGE: Flow = Flow::Exit(2);
const FAILURE: Flow = Flow::Exit(1);

impl Daemon {
    /// Reads the command line (without the program's name) and the
    /// environment, prints the start lines and opens what turns need.
    pub fn start<'a>(
        &mut self,
        kernel: &mut impl Kernel,
        arguments: impl Iterator<Item = &'a [u8]>,
    ) -> Flow {
        let parsed = self
            .options
            .parse_into(arguments, |name| kernel.environment(name));
        if let Err(error) = parsed {
            let mut line: Text<USAGE_LINE> = Text::new();
            error.write(&mut line);
            kernel.write_error(line.as_bytes());
            return USAGE;
        }
        self.started = kernel.realtime();
        self.invocation.root = self.options.exec_root.clone();
        match self.options.action {
            Action::Help => self.print(kernel, write_help),
            Action::Version => self.print(kernel, write_version),
            Action::Once => self.once(kernel),
            Action::Run => self.run(kernel),
            Action::List => self.list_blocks(kernel),
            Action::Unblock(target) => self.unblock(kernel, target),
            Action::Healthcheck => self.healthcheck(kernel),
        }
    }

    fn print(&mut self, kernel: &mut impl Kernel, write: impl Fn(&mut Text<2_400>)) -> Flow {
        let mut text = Text::new();
        write(&mut text);
        self.output
            .set_patience(ONE_SHOT_PATIENCE, ONE_SHOT_PATIENCE);
        for line in trim_end(text.as_bytes()).split(|byte| *byte == b'\n') {
            self.output.line(kernel, line);
        }
        self.output.finish(kernel);
        Flow::Exit(0)
    }

    /// One reading and whatever scan is visible in it.
    fn once(&mut self, kernel: &mut impl Kernel) -> Flow {
        // Looking only: whatever else is asked for, nothing is blocked.
        self.options.dry_run = true;
        self.output
            .set_patience(ONE_SHOT_PATIENCE, ONE_SHOT_PATIENCE);
        self.prepare(kernel);
        self.print_start(kernel);
        self.facts
            .start(kernel, &mut self.host, &mut self.netlink_buffer);
        self.is_own_namespace(kernel);
        self.handshakes
            .read_setting(kernel, self.options.proc_directory.as_bytes());
        let could_read = self.reading(kernel, Trigger::Scheduled);
        while let Some(scan) = self.detector.next_scan() {
            let calendar = self.calendar(kernel);
            self.output
                .line(kernel, report::scan(calendar, &scan).as_bytes());
        }
        self.output.finish(kernel);
        if could_read { Flow::Exit(0) } else { FAILURE }
    }

    fn run(&mut self, kernel: &mut impl Kernel) -> Flow {
        self.prepare(kernel);
        let may_block = !self.options.dry_run && self.options.firewall != FirewallChoice::None;
        if may_block && kernel.capabilities() & CAP_NET_ADMIN == 0 {
            self.complain(
                kernel,
                &[b"blocking needs CAP_NET_ADMIN: start it with sudo, or only watch with --dry-run"],
            );
            return FAILURE;
        }
        if may_block && !self.is_only_instance(kernel) {
            return FAILURE;
        }
        if let Some(address) = self.options.listen {
            self.listen(kernel, address);
        }
        self.facts
            .start(kernel, &mut self.host, &mut self.netlink_buffer);
        if may_block {
            self.enable_firewall(kernel);
        }
        self.start_watching();
        self.start_telling(kernel);
        self.print_start(kernel);
        self.next_reading = kernel.boottime();
        Flow::Continue
    }

    /// Whether no other daemon of ours blocks here.
    fn is_only_instance(&mut self, kernel: &mut impl Kernel) -> bool {
        let Err(obstacle) = self.instance.acquire(kernel) else {
            return true;
        };
        let is_only = obstacle != Obstacle::Instance;
        if is_only {
            let why = obstacle.words();
            self.complain(
                kernel,
                &[b"blocking without the socket @tcpparser: ", why.as_bytes()],
            );
        } else {
            self.complain(
                kernel,
                &[b"another tcpparser blocks in this network namespace; only watch with --dry-run"],
            );
        }
        is_only
    }

    /// Secrets, paths, limits: what every kind of run needs.
    fn prepare(&mut self, kernel: &mut impl Kernel) {
        let options = &self.options;
        for (name, path) in [
            (&b"/net/tcp"[..], &mut self.files.tcp.path),
            (b"/net/tcp6", &mut self.files.tcp6.path),
        ] {
            path.clear();
            path.put(options.proc_directory.as_bytes());
            path.put(name);
        }
        self.connections.set_hash_key(kernel.hash_key());
        self.detector
            .configure(kernel.hash_key(), options.ports, options.window);
        self.metrics.interval = options.interval;
        for network in &options.allow {
            self.host.allow(*network);
        }
        if let Some(value) = kernel.environment("SSH_CONNECTION") {
            self.host.set_ssh_connection(value);
        }
        self.read_local_port_range(kernel);
    }

    fn print_start(&mut self, kernel: &mut impl Kernel) {
        for line in trim_end(report::START)
            .split(|byte| *byte == b'\n')
            .chain([&b""[..]])
        {
            self.output.line(kernel, line);
        }
        self.output.flush(kernel);
    }

    fn enable_firewall(&mut self, kernel: &mut impl Kernel) {
        let boot_id = boot_id(kernel).unwrap_or(0);
        let key = kernel.hash_key();
        let policy = Policy {
            boot_id,
            lengths: &self.options.block_times,
            max_per_minute: self.options.max_blocks_per_minute,
            window: self.options.window,
            has_legacy: [false, true].map(|is_ipv6| has_legacy_table(kernel, is_ipv6)),
        };
        let now = kernel.boottime();
        self.firewall.enable(key, &policy, now);
        if self.has_ipv6(kernel) {
            self.firewall.set_ipv6();
        }
    }

    /// Whether there is a tcp6, and so IPv6 in the kernel.
    pub(super) fn has_ipv6(&self, kernel: &mut impl Kernel) -> bool {
        let mut path = Path::from_bytes(self.options.proc_directory.as_bytes());
        path.put(b"/net/tcp6");
        let file = kernel.open(&path);
        if let Ok(file) = file {
            kernel.close(file);
        }
        file.is_ok()
    }

    /// net.ipv4.ip_local_port_range, which IPv6 uses as well
    /// (Documentation/networking/ip-sysctl.rst). A process's folder of procfs
    /// has no `sys`: ours is the best guess there, the default the last.
    pub(super) fn read_local_port_range(&mut self, kernel: &mut impl Kernel) {
        let mut range = PortRange {
            low: 32_768,
            high: 60_999,
        };
        for directory in [self.options.proc_directory.as_bytes(), b"/proc"] {
            let mut path = Path::from_bytes(directory);
            path.put(b"/sys/net/ipv4/ip_local_port_range");
            let mut buffer = [0; 64];
            let bytes = read_small(kernel, path.as_bytes(), &mut buffer);
            let mut numbers = trim_end(bytes)
                .split(|byte| matches!(byte, b' ' | b'\t'))
                .filter_map(|word| {
                    parse_decimal(trim(word)).and_then(|number| u16::try_from(number).ok())
                });
            if let (Some(low), Some(high)) = (numbers.next(), numbers.next()) {
                range = PortRange { low, high };
                break;
            }
        }
        self.connections.set_local_port_range(range);
    }
}

fn trim_end(text: &[u8]) -> &[u8] {
    let mut rest = text;
    while let [head @ .., b'\n'] = rest {
        rest = head;
    }
    rest
}

/// Whether the kernel holds the legacy filter table here. The legacy tool would
/// load and make it where it is only asked for it (iptable_filter.c).
pub(super) fn has_legacy_table(kernel: &mut impl Kernel, is_ipv6: bool) -> bool {
    let path: &[u8] = if is_ipv6 {
        b"/proc/self/net/ip6_tables_names"
    } else {
        b"/proc/self/net/ip_tables_names"
    };
    let mut buffer = [0; 128];
    let bytes = read_small(kernel, path, &mut buffer);
    bytes
        .split(|byte| *byte == b'\n')
        .any(|name| name == b"filter")
}

/// The first bytes of a small file of procfs; empty where it can't be read.
pub(super) fn read_small<'a>(
    kernel: &mut impl Kernel,
    path: &[u8],
    buffer: &'a mut [u8],
) -> &'a [u8] {
    let Ok(RowsFile::Regular(file) | RowsFile::Procfs(file)) =
        kernel.open_rows(&Path::from_bytes(path))
    else {
        return &[];
    };
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match kernel.read(file, room) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    kernel.close(file);
    buffer.get(..filled).unwrap_or_default()
}
