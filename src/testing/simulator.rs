//! A little world from a seed: peers that come, stay, vanish and scan, an
//! operator's changes, a kernel and a firewall that fail. The daemon lives
//! many minutes in it, and `Run` looks at every turn.
//!
//! `TCPPARSER_SEED=n` runs one seed, `TCPPARSER_SEEDS=n` another number of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::fake_kernel::{ChildFault, FakeKernel, Random, Stdout, Tools};
use super::fake_network::UPLINK;
use super::fake_proc::FakeSocket;
use super::liars::{self, Lies};
use super::nf_tables_model::NfTables;
use super::run::Run;
use crate::address::{Family, Network};
use crate::daemon::Flow;
use crate::kernel::Errno;
use crate::proc_net_tcp::TcpState;
use crate::time::{Duration, Instant};

/// Seeds by default: a debug build on a busy core stays well below 20 s.
const SEEDS: u64 = 60;

/// Whose SYNs are forged.
const FORGED: &str = "192.0.2.13";

/// Faulty minutes of a world; calm ones follow.
const MINUTES: u64 = 12;
const CALM_MINUTES: u64 = 4;

#[test]
fn worlds() {
    if let Some(seed) = number("TCPPARSER_SEED") {
        return live(seed);
    }
    let mut counts = BTreeMap::new();
    for seed in 0..number("TCPPARSER_SEEDS").unwrap_or(SEEDS) {
        let result = catch_unwind(AssertUnwindSafe(|| simulate(seed)));
        match result {
            Ok(of_world) => {
                for (name, count) in of_world {
                    *counts.entry(name).or_insert(0) += count;
                }
            }
            Err(panic) => {
                eprintln!("run it again: TCPPARSER_SEED={seed} cargo test worlds");
                resume_unwind(panic);
            }
        }
    }
    if number("TCPPARSER_SEEDS").is_none() {
        for (name, count) in counts {
            assert!(count > 0, "worlds without that prove little: {name}");
        }
    }
}

/// What a world is to have had, beside others.
const HAPPENED: [&str; 10] = [
    "blocks_total",
    "blocks_refused_total{reason=\"way_unseen\"}",
    "witness_packets_total",
    "witness_packets_dropped_total",
    "witness_pauses_total",
    "witness_lookups_total{result=\"proven\"}",
    "witness_lookups_total{result=\"open\"}",
    "witness_lookups_total{result=\"none\"}",
    "namespace_events_total",
    "destroy_event_overflows_total",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn live(seed: u64) {
    eprintln!("{:?}", simulate(seed));
}

/// What kinds of trouble a world has.
#[derive(Debug)]
struct Trouble {
    /// Short reads, EINTR, interrupted dumps.
    interrupts: bool,
    /// Children that fail.
    firewall: bool,
    /// Files that cannot be read for a while, no descriptors.
    hidden: bool,
    /// Other programs change the filter tables.
    operator: bool,
    /// Standard output is slow, full or closed.
    output: bool,
    /// Clocks jump.
    clocks: bool,
    /// kill -9, and another daemon takes over.
    restarts: bool,
}

impl Trouble {
    fn new(random: &mut Random) -> Self {
        let mut has = |per_mille| random.hits(per_mille);
        Self {
            interrupts: has(500),
            firewall: has(500),
            hidden: has(250),
            operator: has(300),
            output: has(150),
            clocks: has(250),
            restarts: has(200),
        }
    }
}

struct World {
    random: Random,
    trouble: Trouble,
    arguments: Vec<&'static str>,
    /// SYNs are seen, true ones and others.
    has_packets: bool,
    /// Who connects.
    peers: Vec<IpAddr>,
    start: Instant,
    end: Instant,
}

fn simulate(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut random = Random::new(seed ^ 0x7763_7061_7273_6572);
    let trouble = Trouble::new(&mut random);
    let mut run = Run::new(seed);
    run.checks.oracle =
        !trouble.hidden && !trouble.output && !trouble.restarts && !trouble.operator;
    run.checks.output = !trouble.output && !trouble.restarts;
    run.checks.truth = true;
    run.checks.own_rules = !trouble.operator && !trouble.restarts;
    let start = run.kernel.now;
    let mut world = World {
        random,
        trouble,
        arguments: Vec::new(),
        has_packets: seed % 3 != 0,
        peers: Vec::new(),
        start,
        end: start.after(Duration::from_secs(60 * MINUTES)),
    };
    world.furnish(&mut run);
    world.people(&mut run.kernel);
    world.forger(&mut run.kernel);
    world.lie(&mut run, seed);
    world.clients(&mut run.kernel);
    world.faults(&mut run.kernel);
    if number("TCPPARSER_SEED").is_some() {
        eprintln!("{:?} {:?}", world.trouble, world.arguments);
    }
    world.live(&mut run)
}

impl World {
    fn live(&mut self, run: &mut Run) -> BTreeMap<&'static str, u64> {
        assert_eq!(run.start(&self.arguments), Flow::Continue);
        while run.kernel.now < self.end {
            let next = run.kernel.now.after(self.some_time(300)).min(self.end);
            run.run_until(next);
            if self.trouble.restarts && run.kernel.now < self.end {
                run.terminate_or_kill(self.random.hits(500));
                if self.random.hits(300) {
                    run.kernel.change_flavour();
                }
                assert_eq!(run.restart(&self.arguments), Flow::Continue);
            }
        }
        run.kernel.calm();
        run.run_for(60 * CALM_MINUTES);
        run.check_quiet();
        let page = run.get("/metrics");
        let count = |name: &'static str| {
            let mut lines = page
                .lines()
                .filter_map(|line| line.strip_prefix("tcpparser_"));
            let value = lines.find_map(|line| line.strip_prefix(name));
            (name, value.expect(name).trim().parse().expect(name))
        };
        let counts = HAPPENED.map(count).into_iter().collect();
        for client in &run.kernel.clients {
            assert!(client.is_done, "a client was forgotten");
        }
        run.terminate();
        let output = String::from_utf8_lossy(&run.kernel.output);
        let mut proofs = output.lines().filter(|line| !line.contains("Ports probed"));
        assert!(
            !proofs.any(|line| line.contains(FORGED)),
            "a forged connection proved something"
        );
        counts
    }

    fn some_time(&mut self, seconds: u64) -> Duration {
        Duration::from_millis(1 + self.random.below(1_000 * seconds))
    }

    fn some_moment(&mut self) -> Instant {
        let span = self.end.since(self.start).as_nanos() / 1_000_000;
        let milliseconds = self.random.below(span);
        self.start.after(Duration::from_millis(milliseconds))
    }

    /// Options, listeners, what is protected.
    fn furnish(&mut self, run: &mut Run) {
        let interval = self.random.pick(&["1s", "5s", "10s", "10s", "37s"]);
        let times = self
            .random
            .pick(&["2m,4m", "1m,90s,3m", "10m,1h", "forever", "45s"]);
        self.arguments = vec![
            "--interval",
            interval,
            "--block-time",
            times,
            "--allow",
            "198.51.100.200/29",
        ];
        if self.random.hits(300) {
            self.arguments.extend(["--window", "30s", "--ports", "2"]);
            (run.oracle.window, run.oracle.ports) = (Duration::from_secs(30), 2);
        }
        run.kernel.tools = Tools {
            has_preferred: true,
            is_legacy: self.random.hits(300),
            has_nft: self.random.hits(500),
            has_legacy: self.random.hits(500),
            are_tables_made: self.random.hits(500),
            lacks_ipv6: false,
        };
        let sets = &mut run.kernel.nf_tables;
        sets.lacks.nf_tables = self.random.hits(300);
        sets.lacks.destroy = self.random.hits(300);
        sets.lacks.timeout_updates = self.random.hits(300);
        sets.lacks.comments = self.random.hits(300);
        if !sets.lacks.nf_tables {
            run.kernel.tools.has_preferred = self.random.hits(700);
            if self.random.hits(200) {
                self.arguments.extend(["--firewall", "nft"]);
            }
        }
        for port in [22, 25, 80, 443, 445, 8_080] {
            run.kernel.listen_on("0.0.0.0", port);
            run.kernel.listen_on("::", port);
        }
        // A listener in the ephemeral range, and one on a single address.
        run.kernel.listen_on("::", 40_000);
        run.kernel.listen_on("10.0.0.1", 9_000);
        run.kernel.protected = [
            "127.0.0.0/8",
            "203.0.113.5",
            "10.0.0.1",
            "2001:db8:1::5",
            "203.0.113.1",
            "fe80::1",
            "10.0.0.53",
            "198.51.100.200/29",
        ]
        .map(|text| Network::parse(text.as_bytes()).unwrap())
        .to_vec();
    }

    // People.

    fn people(&mut self, kernel: &mut FakeKernel) {
        for number in 0..self.random.below(6) {
            let peer = self.peer(20 + number as u16);
            self.passing_listener(kernel, number as u16, peer);
        }
        for number in 0..4 + self.random.below(12) {
            let peer = self.peer(number as u16);
            let own = if peer.is_ipv4() {
                self.own_ipv4()
            } else {
                "2001:db8:1::5".parse().unwrap()
            };
            match self.random.below(4) {
                0 => self.visitor(kernel, own, peer, 2),
                1 => self.servant(kernel, own, peer),
                _ => self.visitor(kernel, own, peer, 9),
            }
        }
    }

    fn peer(&mut self, number: u16) -> IpAddr {
        let low = number as u8 + 2;
        match self.random.below(12) {
            0 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, 53)),
            1 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
            2 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, low)),
            3 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 200 + low % 8)),
            4 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, low)),
            5 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100 + number)),
            // Several hosts share a /64.
            6..=8 => IpAddr::V6(Ipv6Addr::new(
                0x2001,
                0xdb8,
                0xaa,
                number % 3,
                0,
                0,
                0,
                number,
            )),
            _ => IpAddr::V4(Ipv4Addr::new(198, 51, 100, low)),
        }
    }

    fn own_ipv4(&mut self) -> IpAddr {
        let address = self.random.pick(&["203.0.113.5", "10.0.0.1"]);
        address.parse().unwrap()
    }

    /// Connects to up to `ports` of ours, now and then.
    fn visitor(&mut self, kernel: &mut FakeKernel, own: IpAddr, peer: IpAddr, ports: u64) {
        const PORTS: [u16; 9] = [22, 25, 80, 443, 445, 8_080, 40_000, 9_000, 5_555];
        let is_dual_stack = peer.is_ipv4() && self.random.hits(300);
        let count = 1 + self.random.below(4 * ports);
        let pace = 2 + self.random.below(90);
        let mut at = self.some_moment();
        for number in 0..count {
            let port = PORTS[self.random.below(ports) as usize];
            let from = 50_000 + (number % 7) as u16;
            let inode = 1 + self.random.below(1 << 40) as u32 % 1_000_000;
            let socket = FakeSocket {
                local: (own, port),
                remote: (peer, from),
                state: TcpState::Established,
                inode,
                is_dual_stack,
            };
            self.life(kernel, socket, at);
            at = at.after(self.some_time(pace));
        }
    }

    /// Packets that lie, and connections of containers, true and forged.
    fn lie(&mut self, run: &mut Run, seed: u64) {
        if !self.has_packets {
            return;
        }
        // The rest of the world stays as it is.
        let random = &mut Random::new(seed ^ 0x6c69_6573);
        let minute = Duration::from_secs(60);
        let (from, until) = (self.start.after(minute), self.end);
        let lies = Lies {
            from,
            until,
            times: random.pick(&[50, 300]),
            at_once: random.pick(&[1, 10, 300]),
            others: random.pick(&[0, 0, 100, 60_000]),
        };
        liars::tell(&mut run.kernel, random, lies, &self.peers);
        // Who has both connections of the host's and of containers is told
        // sooner than the oracle knows, which reads rows.
        let others: &[IpAddr] = if run.checks.oracle { &[] } else { &self.peers };
        liars::visits(&mut run.kernel, random, from, until, others);
        for _ in 0..random.below(6) {
            let at = from.after(Duration::from_secs(random.below(600)));
            let after = at.after(Duration::from_secs(random.below(90)));
            liars::fault(&mut run.kernel, random, at, after);
        }
        if random.hits(200) {
            let error = random.pick(&[Errno::EPERM, Errno::EAFNOSUPPORT]);
            run.kernel.faults.packets = Some(error);
        }
        if random.hits(200) {
            run.kernel.faults.foreign_events = Some(Errno::EPERM);
        }
    }

    /// Connections by forged SYNs, whose services closed them. Where sockets
    /// cannot be asked for now and then, the setting decides.
    fn forger(&mut self, kernel: &mut FakeKernel) {
        // The rest of the world stays as it is.
        let others = self.random.clone();
        let peer: IpAddr = FORGED.parse().unwrap();
        kernel.forged.push(peer);
        if self.trouble.hidden {
            kernel.tcp_fastopen = 0x203;
        }
        for number in 0..self.random.below(40) as u16 {
            let socket = FakeSocket {
                local: (self.own_ipv4(), [22, 25, 80, 443, 445][number as usize % 5]),
                remote: (peer, 40_000 + number),
                state: TcpState::FinWait1,
                inode: 0,
                is_dual_stack: self.random.hits(300),
            };
            let socket_ends = (socket.local, socket.remote);
            let states = [TcpState::FinWait1, TcpState::Closing, TcpState::LastAck];
            let mut at = self.some_moment();
            if self.has_packets {
                kernel.at(at, move |kernel| {
                    kernel.ask_for(socket_ends.1, socket_ends.0, 1, &[UPLINK]);
                });
            }
            for _ in 0..1 + self.random.below(2) {
                kernel.set_state(at, &socket, self.random.pick(&states), 0);
                at = at.after(self.some_time(60));
            }
            kernel.vanish(at, &socket);
            kernel.at(at, move |kernel| {
                kernel.destroy_ends(socket.local, socket.remote)
            });
        }
        self.random = others;
    }

    /// A listener that comes late, and may be gone with its first connection;
    /// then it comes back as another socket.
    fn passing_listener(&mut self, kernel: &mut FakeKernel, number: u16, peer: IpAddr) {
        let own: IpAddr = if peer.is_ipv4() {
            // One is not the host's: a proxy took what was meant for it.
            let own = ["203.0.113.5", "10.0.0.1", "192.0.2.80"];
            self.random.pick(&own).parse().unwrap()
        } else {
            "2001:db8:1::5".parse().unwrap()
        };
        let any: IpAddr = if peer.is_ipv4() { "0.0.0.0" } else { "::" }
            .parse()
            .unwrap();
        let is_one_shot = self.random.hits(500);
        let at_one_address = self.random.hits(400);
        let mut at = self.some_moment();
        for turn in 0..1 + self.random.below(20) as u16 {
            let port = self.random.pick(&[21_100, 21_101, 6_000, 45_000]) + turn % 3;
            let listener = FakeSocket {
                local: (if at_one_address { own } else { any }, port),
                remote: (any, 0),
                state: TcpState::Listen,
                inode: 3_000_000 + 100 * u32::from(number) + u32::from(turn),
                is_dual_stack: false,
            };
            kernel.set_state(at, &listener, TcpState::Listen, listener.inode);
            let delay = self.random.pick(&[1, 11, 11]);
            let opened = at.after(self.some_time(delay));
            let socket = FakeSocket {
                local: (own, port),
                remote: (peer, 51_000 + turn),
                state: TcpState::Established,
                inode: 4_000_000 + 100 * u32::from(number) + u32::from(turn),
                is_dual_stack: false,
            };
            self.life(kernel, socket, opened);
            let stays = self.random.pick(&[1, 3, 20]);
            let closed = opened.after(self.some_time(stays));
            let closed = if is_one_shot { opened } else { closed };
            kernel.vanish(closed, &listener);
            at = closed.after(self.some_time(3));
        }
    }

    /// A peer that we connect to.
    fn servant(&mut self, kernel: &mut FakeKernel, own: IpAddr, peer: IpAddr) {
        for number in 0..1 + self.random.below(8) {
            let socket = FakeSocket {
                local: (own, 33_000 + number as u16),
                remote: (peer, 443),
                state: TcpState::Established,
                inode: 2_000_000 + number as u32,
                is_dual_stack: false,
            };
            let at = self.some_moment();
            self.life(kernel, socket, at);
        }
    }

    /// A connection from its handshake to its end.
    fn life(&mut self, kernel: &mut FakeKernel, socket: FakeSocket, opened: Instant) {
        let mut at = opened;
        if self.has_packets {
            self.peers.push(socket.remote.0);
            let (local, remote, sequence) = (socket.local, socket.remote, socket.inode);
            kernel.at(at, move |kernel| {
                kernel.ask_for(remote, local, sequence, &[UPLINK]);
            });
        }
        if self.random.hits(200) {
            kernel.set_state(at, &socket, TcpState::SynRecv, 0);
            at = at.after(self.some_time(20));
        }
        kernel.set_state(at, &socket, TcpState::Established, socket.inode);
        let stay = self.random.pick(&[1, 15, 120, 2_000]);
        at = at.after(self.some_time(stay));
        match self.random.below(4) {
            // Reset: gone at once.
            0 => {}
            1 => {
                kernel.set_state(at, &socket, TcpState::CloseWait, socket.inode);
                at = at.after(self.some_time(100));
                kernel.set_state(at, &socket, TcpState::LastAck, 0);
                at = at.after(self.some_time(5));
            }
            _ => {
                kernel.set_state(at, &socket, TcpState::FinWait2, 0);
                at = at.after(self.some_time(10));
                kernel.set_state(at, &socket, TcpState::TimeWait, 0);
                at = at.after(Duration::from_secs(60));
            }
        }
        kernel.vanish(at, &socket);
    }

    /// Prometheus, and some that are not as well behaved.
    fn clients(&mut self, kernel: &mut FakeKernel) {
        for _ in 0..self.random.below(30) {
            let at = self.some_moment();
            let request: &[u8] = self.random.pick(&[
                &b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"[..],
                b"GET /blocked HTTP/1.0\r\n\r\n",
                b"GET /blocks HTTP/1.0\r\n\r\n",
                b"GET / HTTP/1.0\r\nAccept: text/html\r\nAccept-Encoding: gzip\r\n\r\n",
                b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.0\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost",
                b"\x16\x03\x01",
            ]);
            let peer = self.random.pick(&["127.0.0.1", "::1", "198.51.100.77"]);
            kernel.at(at, move |kernel| {
                kernel.connect(peer, request);
            });
        }
    }

    // Faults.

    fn faults(&mut self, kernel: &mut FakeKernel) {
        if self.trouble.interrupts {
            kernel.faults.interrupts = self.random.pick(&[5, 50, 200]);
            kernel.faults.short = true;
            kernel.faults.churn = self.random.hits(500);
            kernel.faults.dump_interruptions = 100;
            kernel.faults.no_route_events = self.random.hits(300);
            kernel.faults.route_losses = self.random.pick(&[0, 100, 500]);
            for _ in 0..self.random.below(20) {
                self.change_of_host(kernel);
            }
        }
        if self.trouble.firewall {
            for _ in 0..1 + self.random.below(5) {
                self.firewall_fault(kernel);
            }
        }
        if self.trouble.hidden {
            for _ in 0..1 + self.random.below(4) {
                self.hidden_fault(kernel);
            }
        }
        if self.trouble.operator {
            for _ in 0..1 + self.random.below(6) {
                self.operator_change(kernel);
            }
        }
        if self.trouble.output {
            let at = self.some_moment();
            let stdout = self
                .random
                .pick(&[Stdout::Room(0), Stdout::Room(5_000), Stdout::Broken]);
            kernel.at(at, move |kernel| kernel.stdout = stdout);
        }
        if self.trouble.clocks {
            for _ in 0..1 + self.random.below(4) {
                self.clock_jump(kernel);
            }
        }
    }

    /// For up to a minute each child fails in some way, or those that would
    /// change something of one kind.
    fn firewall_fault(&mut self, kernel: &mut FakeKernel) {
        if self.random.hits(250) {
            let refused = self
                .random
                .pick(&["-X", "-N", "-I INPUT", "/64", "-D", "198.51.100.4"]);
            let at = self.some_moment();
            kernel.at(at, move |kernel| {
                kernel.faults.refused = Some(refused.to_owned())
            });
            let after = at.after(self.some_time(50));
            kernel.at(after, |kernel| kernel.faults.refused = None);
            return;
        }
        let hang = |ignores_sigterm, closes_output, worked| ChildFault::Hangs {
            ignores_sigterm,
            closes_output,
            worked,
        };
        let fault = self.random.pick(&[
            ChildFault::NoSpawn(Errno::EMFILE),
            ChildFault::Exit(1),
            ChildFault::Exit(2),
            ChildFault::Exit(3),
            ChildFault::Exit(4),
            ChildFault::Exit(127),
            ChildFault::LockHeld,
            ChildFault::Killed { worked: false },
            ChildFault::Killed { worked: true },
            hang(false, false, false),
            hang(false, true, true),
            hang(true, false, true),
            hang(true, true, false),
            ChildFault::Huge,
            ChildFault::Flood,
        ]);
        let at = self.some_moment();
        kernel.at(at, move |kernel| kernel.faults.child = fault);
        let after = at.after(self.some_time(50));
        kernel.at(after, |kernel| kernel.faults.child = ChildFault::None);
    }

    fn hidden_fault(&mut self, kernel: &mut FakeKernel) {
        let at = self.some_moment();
        let after = at.after(self.some_time(90));
        match self.random.below(4) {
            0 => {
                kernel.at(at, |kernel| kernel.faults.rows.v4 = Some(Errno::EACCES));
                kernel.at(after, |kernel| kernel.faults.rows.v4 = None);
            }
            1 => {
                kernel.at(at, |kernel| kernel.faults.rows.v6 = Some(Errno::EACCES));
                kernel.at(after, |kernel| kernel.faults.rows.v6 = None);
            }
            2 => {
                kernel.at(at, |kernel| kernel.faults.netlink = Some(Errno::ENOBUFS));
                kernel.at(after, |kernel| kernel.faults.netlink = None);
            }
            _ => {
                kernel.at(at, |kernel| kernel.faults.no_descriptors = true);
                kernel.at(after, |kernel| kernel.faults.no_descriptors = false);
            }
        }
    }

    /// A gateway without connections comes and goes.
    fn change_of_host(&mut self, kernel: &mut FakeKernel) {
        let gateway = IpAddr::V4(Ipv4Addr::new(192, 0, 2, self.random.below(250) as u8));
        let at = self.some_moment();
        kernel.at(at, move |kernel| kernel.host.gateways.push(gateway));
        let after = at.after(self.some_time(100));
        kernel.at(after, move |kernel| {
            kernel.host.gateways.retain(|other| *other != gateway);
        });
    }

    fn operator_change(&mut self, kernel: &mut FakeKernel) {
        let at = self.some_moment();
        let family = self.random.pick(&Family::ALL);
        let choice = self.random.below(9);
        if !kernel.nf_tables.lacks.nf_tables && self.random.hits(500) {
            return kernel.at(at, move |kernel| {
                let element = |tables: &NfTables| {
                    let elements = tables.elements();
                    let first = elements.first();
                    first.map(|one| (one.set, one.source))
                };
                kernel.interfere(|tables| match (choice, element(tables)) {
                    (0 | 1, Some((set, source))) => {
                        tables.delete_element(set, source);
                    }
                    (2, Some(_)) => {
                        tables.flush_table();
                    }
                    (3, Some(_)) => {
                        tables.add_table("", true);
                    }
                    (4 | 5, _) => {
                        tables.delete_table();
                    }
                    _ => tables.load_other(100),
                });
            });
        }
        kernel.at(at, move |kernel| {
            kernel.interfered = Some(kernel.now);
            let table = kernel.tables.get_mut(family);
            let first = table.blocks().first().cloned();
            let commands = match (choice, first) {
                (0, Some(rule)) => vec![format!("-D TCPPARSER {rule}")],
                (1, _) => vec!["-F TCPPARSER".to_owned()],
                (2, _) => vec!["-D INPUT -j TCPPARSER".to_owned()],
                (3, _) => ["-F INPUT", "-F FORWARD", "-F TCPPARSER", "-X TCPPARSER"]
                    .map(str::to_owned)
                    .to_vec(),
                (4, _) => vec!["-I INPUT 1 -j ACCEPT".to_owned()],
                (5, _) => vec!["-D FORWARD -j TCPPARSER".to_owned()],
                (6, _) => vec!["-A INPUT -j TCPPARSER".to_owned()],
                // What was saved now comes back later.
                _ => {
                    let saved = table.clone();
                    let later = kernel.now.after(Duration::from_secs(100));
                    kernel.at(later, move |kernel| {
                        kernel.interfered = Some(kernel.now);
                        // Without a chain of its own the daemon does not look.
                        let table = kernel.tables.get_mut(family);
                        if table.has_chain("TCPPARSER") {
                            *table = saved;
                        }
                    });
                    return;
                }
            };
            for command in commands {
                let _ = table.command(&command);
            }
        });
    }

    fn clock_jump(&mut self, kernel: &mut FakeKernel) {
        let at = self.some_moment();
        let seconds = self.random.below(200);
        let backwards = self.random.hits(500);
        kernel.at(at, move |kernel| {
            let jump = seconds * 1_000_000_000_000;
            kernel.realtime_at_boot = if backwards {
                kernel.realtime_at_boot.saturating_sub(jump)
            } else {
                kernel.realtime_at_boot.saturating_add(jump)
            };
        });
        // A suspend: CLOCK_BOOTTIME runs on, unnoticed.
        let at = self.some_moment();
        kernel.at(at, move |kernel| {
            kernel.now = kernel.now.after(Duration::from_secs(seconds));
        });
    }
}

impl FakeKernel {
    /// The connection is in `state` from `at` on.
    fn set_state(&mut self, at: Instant, socket: &FakeSocket, state: TcpState, inode: u32) {
        let socket = FakeSocket {
            state,
            inode,
            ..socket.clone()
        };
        self.at(at, move |kernel| {
            kernel.remove(&socket);
            kernel.sockets.push(socket);
        });
    }

    fn vanish(&mut self, at: Instant, socket: &FakeSocket) {
        let socket = socket.clone();
        self.at(at, move |kernel| kernel.remove(&socket));
    }

    fn remove(&mut self, socket: &FakeSocket) {
        let tuple = (socket.local, socket.remote);
        let is_it = |other: &FakeSocket| (other.local, other.remote) == tuple;
        if self
            .sockets
            .iter()
            .any(|other| is_it(other) && other.state.is_connection())
        {
            let peer = (socket.remote.0, socket.local.1);
            self.left.insert(peer, self.now);
        }
        self.sockets.retain(|other| !is_it(other));
    }

    /// `update-alternatives --set iptables` between two runs.
    fn change_flavour(&mut self) {
        let tools = &mut self.tools;
        if !tools.has_nft || !tools.has_legacy {
            return;
        }
        tools.are_tables_made |= tools.is_legacy;
        tools.is_legacy = !tools.is_legacy;
        std::mem::swap(&mut self.tables, &mut self.other_tables);
    }

    /// No fault and no event is left to come.
    fn calm(&mut self) {
        self.forget_events();
        self.faults = Default::default();
        self.child_faults.clear();
    }
}
