//! Packets that lie and containers that forge, in the world of the simulator:
//! who is blocked must have completed handshakes, whatever was said in its name;
//! and in a calm world who did is blocked at once.

use std::net::IpAddr;

use super::fake_kernel::{FakeKernel, Random};
use super::fake_network::{BRIDGE, End, Entry, Frame, OTHER_UPLINK, SYN, UPLINK};
use super::fake_proc::FakeSocket;
use super::run::Run;
use crate::address::{Family, Network};
use crate::daemon::Flow;
use crate::kernel::Errno;
use crate::proc_net_tcp::TcpState;
use crate::time::{Duration, Instant};

const SERVICES: [u16; 6] = [22, 25, 80, 443, 445, 8_080];
/// Ports that are published for containers.
const PUBLISHED: [u16; 8] = [8_001, 8_002, 8_003, 8_004, 8_005, 8_006, 8_007, 8_008];

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn own_of(peer: IpAddr) -> IpAddr {
    address(match peer {
        IpAddr::V4(_) => "203.0.113.5",
        IpAddr::V6(_) => "2001:db8:1::5",
    })
}

/// What conntrack has of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its peer began it.
    Peer,
    /// The container did.
    Container,
    /// There is no entry.
    Unknown,
}

/// What a connection to a published port leaves behind, whoever made it.
#[derive(Clone, Debug)]
pub struct Visit {
    pub client: End,
    pub published: u16,
    /// The container's port, and whether outgoing connections have such.
    pub is_ephemeral: bool,
    /// The links by which its SYN comes in.
    pub links: Vec<u32>,
    pub origin: Origin,
    /// The peer made it.
    pub is_real: bool,
    /// How long it stays open.
    pub length: Duration,
}

/// Clients whose connections are none of anybody's business: of a private
/// network, on a link of the host, and of forged SYNs.
const NOBODY: [&str; 3] = ["10.9.9.9", "203.0.113.77", "192.0.2.13"];

impl Visit {
    /// It is proven but perhaps for the way of its SYN.
    fn looks_real(&self) -> bool {
        let client = self.client.0.to_string();
        self.origin == Origin::Peer && !self.is_ephemeral && !NOBODY.contains(&&client[..])
    }
}

impl FakeKernel {
    /// A connection to a published port that begins now.
    pub fn visit(&mut self, visit: &Visit, sequence: u32) {
        let Visit {
            client, published, ..
        } = *visit;
        let own = (own_of(client.0), published);
        let container = match client.0 {
            IpAddr::V4(_) => "172.17.0.2",
            IpAddr::V6(_) => "fd00:17::2",
        };
        let first_port = if visit.is_ephemeral { 40_000 } else { 80 };
        let served_by = (address(container), published - 8_000 + first_port);
        self.ask_for(client, own, sequence, &visit.links);
        let (source, asked_for) = match visit.origin {
            Origin::Peer => (client, own),
            Origin::Container => (served_by, client),
            Origin::Unknown => (client, client),
        };
        self.conntrack.push(Entry {
            source,
            asked_for,
            served_by: if visit.origin == Origin::Peer {
                served_by
            } else {
                client
            },
        });
        let visit = visit.clone();
        self.at(self.now.after(visit.length), move |kernel| {
            let now = kernel.now;
            if visit.is_real && visit.looks_real() {
                kernel.left.insert((client.0, published), now);
            }
            if visit.looks_real() {
                kernel.forgeable.insert((client.0, published));
            }
            kernel.destroy_foreign(served_by, client, u32::from(published) % 2);
        });
    }
}

/// A peer that anybody can be, apart from those who connect.
fn innocent(random: &mut Random) -> IpAddr {
    let number = random.below(40);
    match random.below(4) {
        0 => address(&format!("2001:db8:dead:{number:x}::1")),
        // Some are behind a bridge.
        _ => address(&format!("192.0.2.{}", 108 + number)),
    }
}

/// One frame that is no SYN of its source.
fn lie(random: &mut Random, targets: &[IpAddr]) -> Frame {
    let peer = match random.below(3) {
        0 if !targets.is_empty() => random.pick(targets),
        _ => innocent(random),
    };
    let from = (peer, 40_000 + random.below(20_000) as u16);
    let to = (own_of(peer), random.pick(&SERVICES));
    let link = random.pick(&[UPLINK, UPLINK, OTHER_UPLINK, BRIDGE, 4, 7]);
    let flags = random.pick(&[SYN, SYN, SYN, 0, 1, 0x29, 0xff, 0x12]);
    let mut frame = Frame::segment(from, to, flags, random.next() as u32, link);
    match random.below(8) {
        0 => frame.bytes.truncate(random.below(60) as usize),
        1 => {
            for byte in &mut frame.bytes {
                if random.hits(300) {
                    *byte = random.next() as u8;
                }
            }
        }
        2 => frame.bytes[0] = random.next() as u8,
        3 => frame.ethertype = random.pick(&[0x0800, 0x86dd, 0x88b5]),
        4 => frame.packet_type = random.below(5) as u32,
        _ => {}
    }
    frame
}

/// How many frames come at once, and how often.
#[derive(Clone, Copy)]
pub struct Lies {
    pub from: Instant,
    pub until: Instant,
    pub times: u64,
    pub at_once: u64,
    /// Packets that no filter lets through, beside each of those times.
    pub others: u64,
}

/// Lies between two moments, in the name of `targets` and of innocents.
pub fn tell(kernel: &mut FakeKernel, random: &mut Random, lies: Lies, targets: &[IpAddr]) {
    let span_ms = lies.until.since(lies.from).as_nanos() / 1_000_000;
    for _ in 0..lies.times {
        let at = lies
            .from
            .after(Duration::from_millis(random.below(span_ms)));
        let count = 1 + random.below(lies.at_once);
        // Now and then all of one peer, so that it would be a scan.
        let of_one = random.hits(300).then(|| innocent(random));
        let mut frames: Vec<Frame> = (0..count).map(|_| lie(random, targets)).collect();
        if let Some(peer) = of_one {
            for (number, port) in (0..).zip(SERVICES) {
                let from = (peer, 50_000 + number);
                frames.push(Frame::segment(from, (own_of(peer), port), SYN, 7, UPLINK));
            }
        }
        let others = lies.others;
        kernel.at(at, move |kernel| {
            for frame in &frames {
                kernel.arrive(frame);
            }
            kernel.received.v4 += others;
        });
    }
}

/// What root in a container does in the name of `client`, and what clients do
/// that are no scanners.
pub fn forge(random: &mut Random, client: IpAddr, number: u16) -> Visit {
    let links = [
        vec![],
        vec![BRIDGE],
        vec![4],
        vec![BRIDGE, UPLINK],
        vec![UPLINK, BRIDGE],
        vec![7],
    ];
    let (client, links) = match random.below(6) {
        // All of it is true, and no business of ours.
        0 => (address(random.pick(&NOBODY)), vec![UPLINK]),
        _ => (client, links[random.below(6) as usize].clone()),
    };
    // With a SYN that comes by the way back to its source but for another.
    let (origin, is_ephemeral, links) = match random.below(10) {
        0 => (Origin::Container, false, vec![UPLINK]),
        1 => (Origin::Unknown, false, vec![UPLINK]),
        2 => (Origin::Peer, true, vec![UPLINK]),
        _ => (Origin::Peer, false, links),
    };
    Visit {
        client: (client, 20_000 + number),
        published: random.pick(&PUBLISHED),
        is_ephemeral,
        links,
        origin,
        is_real: false,
        length: Duration::from_millis(1 + random.below(2_000)),
    }
}

/// Visits now and then, true ones and forged ones, of clients that do nothing
/// else, of innocents, and of those in `others`.
pub fn visits(
    kernel: &mut FakeKernel,
    random: &mut Random,
    from: Instant,
    until: Instant,
    others: &[IpAddr],
) {
    let span_ms = until.since(from).as_nanos() / 1_000_000;
    for number in 0..12 {
        let client = address(&format!("198.51.101.{}", 120 + number));
        let is_scanner = random.hits(500);
        let mut at_ms = random.below(span_ms);
        for index in 0..random.below(20) as u16 {
            let client = match random.below(5) {
                0 => innocent(random),
                1 if !others.is_empty() => random.pick(others),
                _ => client,
            };
            let is_of_other = !client.to_string().starts_with("198.51.101.");
            let visit = if is_of_other || random.hits(300) {
                forge(random, client, index)
            } else {
                let most = if is_scanner { 8 } else { 3 };
                let published = PUBLISHED[random.below(most) as usize];
                let length = Duration::from_millis(1 + random.below(3_000));
                let mut visit = real(client, 20_100 + index, published, length);
                if number >= 8 {
                    visit.links = vec![random.pick(&[UPLINK, OTHER_UPLINK])];
                }
                visit
            };
            let at = from.after(Duration::from_millis(at_ms));
            let sequence = random.next() as u32;
            kernel.at(at, move |kernel| kernel.visit(&visit, sequence));
            at_ms += random.below(20_000);
        }
    }
}

/// A peer's own visit.
pub fn real(client: IpAddr, from: u16, published: u16, length: Duration) -> Visit {
    Visit {
        client: (client, from),
        published,
        is_ephemeral: false,
        links: vec![UPLINK],
        origin: Origin::Peer,
        is_real: true,
        length,
    }
}

/// Frequencies of faults of packets and events, for a while.
pub fn fault(kernel: &mut FakeKernel, random: &mut Random, at: Instant, after: Instant) {
    match random.below(5) {
        0 => {
            kernel.at(at, |kernel| kernel.faults.packet_losses = 500);
            kernel.at(after, |kernel| kernel.faults.packet_losses = 0);
        }
        1 => {
            kernel.at(at, |kernel| kernel.faults.foreign_losses = 500);
            kernel.at(after, |kernel| kernel.faults.foreign_losses = 0);
        }
        2 => {
            let error = random.pick(&[Errno::EPERM, Errno::EINVAL, Errno::EOPNOTSUPP]);
            kernel.at(at, move |kernel| kernel.faults.conntrack = Some(error));
            kernel.at(after, |kernel| kernel.faults.conntrack = None);
        }
        3 => {
            // A container comes or goes.
            kernel.at(at, move |kernel| {
                let link = kernel.host.links.pop();
                kernel.at(after, move |kernel| kernel.host.links.extend(link));
            });
        }
        _ => {
            kernel.at(at, |kernel| kernel.faults.packets = Some(Errno::EPERM));
            kernel.at(after, |kernel| kernel.faults.packets = None);
        }
    }
}

/// What a held scan, or one of published ports, is due to have led to.
struct Due {
    at: Instant,
    source: String,
}

/// When a connection is looked for first, after `wait_ms` milliseconds from
/// where its SYN came in.
fn look_after(wait_ms: u64) -> u64 {
    let looks = [0, 5, 20, 50, 100, 200, 400, 800, 1_600];
    looks.into_iter().find(|look| *look >= wait_ms).unwrap()
}

/// Lies all the time or none, and nothing fails: each held scan of four services is blocked
/// within milliseconds of when the kernel has its fourth handshake, each scan
/// of four published ports within milliseconds of its fourth end; nobody else.
#[test]
fn calm_worlds() {
    for seed in 0..5 {
        for has_lies in [true, false] {
            calm_world(seed, has_lies);
        }
    }
}

fn calm_world(seed: u64, has_lies: bool) {
    const MINUTES: u64 = 8;
    let mut random = Random::new(seed ^ 0x6c69_6172);
    let mut run = Run::new(seed);
    run.checks.truth = true;
    run.kernel.forged.push(address(NOBODY[2]));
    run.kernel.nf_tables.lacks.nf_tables = false;
    for port in SERVICES {
        run.kernel.listen_on("0.0.0.0", port);
        run.kernel.listen_on("::", port);
    }
    let start = run.kernel.now.after(Duration::from_secs(5));
    let at_ms = |ms: u64| start.after(Duration::from_millis(ms));
    let lies = Lies {
        from: start,
        until: at_ms(60_000 * MINUTES),
        times: 60 * MINUTES * 4,
        at_once: 4,
        others: 100,
    };
    let mut due: Vec<Due> = Vec::new();
    let mut peers = Vec::new();
    for number in 0..24_u16 {
        let peer = address(&match number % 3 {
            0 | 1 => format!("198.51.100.{}", 10 + number),
            _ => format!("2001:db8:aa:{number:x}::1"),
        });
        peers.push(peer);
        let source = match peer {
            IpAddr::V4(_) => peer.to_string(),
            IpAddr::V6(_) => format!("2001:db8:aa:{number:x}::/64"),
        };
        let mut at = 1_000 + random.below(60_000 * MINUTES - 10_000);
        let mut last = 0;
        for (index, port) in (0..4).zip(SERVICES) {
            let from = 41_000 + 10 * number + index;
            if number % 2 == 0 {
                let round_trip = random.pick(&[0, 3, 17, 60, 150, 390]);
                held(
                    &mut run.kernel,
                    at_ms(at),
                    round_trip,
                    (peer, from),
                    port,
                    number % 4 == 0,
                );
                // Packets may rest for five milliseconds.
                last = last.max(at + 5 + look_after(round_trip));
            } else {
                let length = 1 + random.below(40);
                let published = PUBLISHED[usize::from(index)];
                let visit = real(peer, from, published, Duration::from_millis(length));
                let sequence = random.next() as u32;
                run.kernel
                    .at(at_ms(at), move |kernel| kernel.visit(&visit, sequence));
                last = last.max(at + length);
            }
            at += random.below(900);
        }
        due.push(Due {
            at: at_ms(last + 8),
            source,
        });
        // Three of another, and the rest in its name.
        let other = address(&format!("198.51.100.{}", 100 + number));
        for index in 0..30 {
            let moment = at_ms(random.below(60_000 * MINUTES - 5_000));
            let visit = match index {
                0..3 => {
                    let length = Duration::from_millis(20);
                    real(other, 30_000 + index, PUBLISHED[usize::from(index)], length)
                }
                _ => forge(&mut random, other, index),
            };
            let sequence = random.next() as u32;
            run.kernel
                .at(moment, move |kernel| kernel.visit(&visit, sequence));
        }
        peers.push(other);
    }
    // By forged SYNs, which made sockets without a handshake.
    for (index, port) in (0..).zip(SERVICES) {
        let peer = (address(NOBODY[2]), 45_000 + index);
        let socket = FakeSocket {
            local: (own_of(peer.0), port),
            remote: peer,
            state: TcpState::FinWait1,
            inode: 0,
            is_dual_stack: false,
        };
        run.kernel
            .at(at_ms(20_000 + 100 * u64::from(index)), move |kernel| {
                kernel.ask_for(socket.remote, socket.local, 1, &[UPLINK]);
                kernel.sockets.push(socket);
            });
    }
    if has_lies {
        tell(&mut run.kernel, &mut random, lies, &peers);
    }
    run.checks.oracle = false;
    let arguments = [
        "--interval=1h",
        "--firewall=nft",
        "--block-time=1h",
        "--show=scans",
    ];
    assert_eq!(run.start(&arguments), Flow::Continue);
    due.sort_by_key(|due| due.at);
    for Due { at, source } in &due {
        run.run_until(*at);
        let is_blocked = run.standing.contains_key(source);
        assert!(is_blocked, "seed {seed}: {source} by {at:?}");
    }
    run.run_for(60);
    assert_eq!(
        run.standing.len(),
        due.len(),
        "seed {seed}: {:?}",
        run.standing
    );
    run.check_quiet();
}

/// A connection that stays open: its SYN, and the handshake a round trip later.
fn held(
    kernel: &mut FakeKernel,
    at: Instant,
    round_trip_ms: u64,
    peer: End,
    port: u16,
    is_dual_stack: bool,
) {
    let socket = FakeSocket {
        local: (own_of(peer.0), port),
        remote: peer,
        state: TcpState::SynRecv,
        inode: 0,
        is_dual_stack: is_dual_stack && Family::of(peer.0) == Family::V4,
    };
    kernel.at(at, move |kernel| {
        kernel.sockets.push(socket.clone());
        kernel.ask_for(socket.remote, socket.local, 1, &[UPLINK]);
        let established = kernel.now.after(Duration::from_millis(round_trip_ms));
        kernel.at(established, move |kernel| {
            let mut sockets = kernel.sockets.iter_mut();
            let ends = (socket.local, socket.remote);
            if let Some(one) = sockets.find(|one| (one.local, one.remote) == ends) {
                (one.state, one.inode) = (TcpState::Established, u32::from(peer.1));
            }
        });
    });
}

/// What root in a container can do in the name of a client of another country,
/// who sits where `run.kernel` has a route to by the uplink; for one port.
type Attack = fn(&mut FakeKernel, &Visit, u32);

/// The SYN comes in by these links, then all else is as it would be.
fn by(links: &'static [u32]) -> impl Fn(&mut FakeKernel, &Visit, u32) {
    move |kernel, visit, sequence| {
        let links = links.to_vec();
        kernel.visit(
            &Visit {
                links,
                ..visit.clone()
            },
            sequence,
        );
    }
}

fn flood(kernel: &mut FakeKernel, count: u32, link: u32) {
    for number in 0..count {
        let bits = 0xc612_0000 + number;
        let source = (IpAddr::V4(bits.into()), 1_000);
        kernel.ask_for(source, (own_of(source.0), 9), number, &[link]);
    }
}

/// It asks for `port` by one link and is turned round to the uplink.
fn sends_by_bridge(kernel: &mut FakeKernel, visit: &Visit, port: u16, sequence: u32) {
    let own = (own_of(visit.client.0), port);
    kernel.ask_for(visit.client, own, sequence, &[BRIDGE]);
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Whether it is told; none of them blocks.
const ATTACKS: [(&str, bool, Attack); 14] = [
    ("no SYN", true, |kernel, visit, sequence| {
        by(&[])(kernel, visit, sequence)
    }),
    ("by the bridge", true, |kernel, visit, sequence| {
        by(&[BRIDGE])(kernel, visit, sequence)
    }),
    ("by a port of it", true, |kernel, visit, sequence| {
        by(&[4])(kernel, visit, sequence)
    }),
    ("by another link", true, |kernel, visit, sequence| {
        by(&[7])(kernel, visit, sequence)
    }),
    ("turned round", true, |kernel, visit, sequence| {
        by(&[BRIDGE, UPLINK])(kernel, visit, sequence);
    }),
    ("sent twice", true, |kernel, visit, sequence| {
        by(&[UPLINK, 4])(kernel, visit, sequence)
    }),
    (
        "turned round to another port",
        true,
        |kernel, visit, sequence| {
            sends_by_bridge(kernel, visit, 9, sequence);
            by(&[UPLINK])(kernel, visit, sequence);
        },
    ),
    (
        "beside the client's own to another port",
        true,
        |kernel, visit, sequence| {
            let (client, own) = (visit.client, own_of(visit.client.0));
            kernel.ask_for((client.0, 1), (own, visit.published), 1, &[UPLINK]);
            kernel.ask_for(client, (own, 443), 2, &[UPLINK]);
            by(&[BRIDGE])(kernel, visit, sequence);
        },
    ),
    ("while packets are lost", true, |kernel, visit, sequence| {
        flood(kernel, 200, UPLINK);
        sends_by_bridge(kernel, visit, visit.published, sequence);
        let visit = visit.clone();
        kernel.at(kernel.now.after(ms(200)), move |kernel| {
            by(&[UPLINK])(kernel, &visit, sequence)
        });
    }),
    (
        "behind a flood of its link",
        true,
        |kernel, visit, sequence| {
            sends_by_bridge(kernel, visit, visit.published, sequence);
            for step in 0..12 {
                let at = kernel.now.after(ms(20 * (step + 1)));
                kernel.at(at, |kernel| flood(kernel, 100, BRIDGE));
            }
            let visit = visit.clone();
            kernel.at(kernel.now.after(ms(400)), move |kernel| {
                by(&[UPLINK])(kernel, &visit, sequence)
            });
        },
    ),
    (
        "behind a flood of other links",
        true,
        |kernel, visit, sequence| {
            for (link, step) in (100..).zip(0..4) {
                let at = kernel.now.after(ms(20 * step));
                kernel.at(at, move |kernel| flood(kernel, 10, link));
            }
            let (early, late) = (visit.clone(), visit.clone());
            kernel.at(kernel.now.after(ms(100)), move |kernel| {
                sends_by_bridge(kernel, &early, early.published, sequence);
            });
            for step in 0..12 {
                let at = kernel.now.after(ms(120 + 20 * step));
                kernel.at(at, |kernel| flood(kernel, 100, 200));
            }
            kernel.at(kernel.now.after(ms(500)), move |kernel| {
                by(&[UPLINK])(kernel, &late, sequence)
            });
        },
    ),
    ("in a pause", true, |kernel, visit, sequence| {
        kernel.received.v4 += 1_000_000;
        let (early, late) = (visit.clone(), visit.clone());
        kernel.at(kernel.now.after(ms(3_000)), move |kernel| {
            sends_by_bridge(kernel, &early, early.published, sequence);
        });
        kernel.at(kernel.now.after(ms(14_000)), move |kernel| {
            by(&[UPLINK])(kernel, &late, sequence);
        });
    }),
    ("begun inside", false, |kernel, visit, sequence| {
        let visit = Visit {
            origin: Origin::Container,
            ..visit.clone()
        };
        by(&[UPLINK])(kernel, &visit, sequence);
    }),
    ("without an entry", false, |kernel, visit, sequence| {
        let visit = Visit {
            origin: Origin::Unknown,
            ..visit.clone()
        };
        by(&[UPLINK])(kernel, &visit, sequence);
    }),
];

/// Makes the host another one.
type Furnish = fn(&mut FakeKernel);

/// What of the host decides.
const HOSTS: [(&str, Furnish); 6] = [
    ("", |_| {}),
    ("whose SYNs come by a bridge", |kernel| {
        let uplink = kernel
            .host
            .links
            .iter_mut()
            .find(|one| one.number == UPLINK);
        uplink.unwrap().number = 9;
        kernel.host.links.iter_mut().for_each(|one| {
            if one.number == BRIDGE {
                one.number = UPLINK;
            } else if one.master == BRIDGE {
                one.master = UPLINK;
            }
        });
    }),
    ("whose uplink stands on a bridge", |kernel| {
        let uplink = kernel
            .host
            .links
            .iter_mut()
            .find(|one| one.number == UPLINK);
        uplink.unwrap().lower = BRIDGE;
    }),
    ("without a route back", |kernel| {
        let outside = Network::parse(b"198.51.101.0/24").unwrap();
        kernel.host.ways.push((outside, Vec::new()));
    }),
    ("without packet sockets", |kernel| {
        kernel.faults.packets = Some(Errno::EPERM)
    }),
    ("whose links are not known", |kernel| {
        kernel.faults.no_links = true
    }),
];

/// How often the client is said to have been forged, perhaps, and to be blocked.
fn attack(host: Furnish, name: &str, attack: Attack) -> (usize, usize) {
    let mut run = Run::new(1);
    run.checks.oracle = false;
    run.kernel.nf_tables.lacks.nf_tables = false;
    // Counters are there from the start.
    (run.kernel.passive_opens, run.kernel.received.v4) = (1_000, 1_000);
    host(&mut run.kernel);
    let arguments = ["--interval=1h", "--firewall=nft", "--show=scans"];
    assert_eq!(run.start(&arguments), Flow::Continue);
    // A second dump of the links shows what stands on those behind it.
    run.run_for(70);
    // Where packets are to be lost the last ones were taken in.
    let step = if name.contains("flood") || name.contains("lost") {
        1_000
    } else {
        50
    };
    for (index, published) in (0..4).zip(PUBLISHED) {
        let length = ms(20);
        let visit = real(address("198.51.101.9"), 20_000 + index, published, length);
        let sequence = 77 + u32::from(index);
        let at = run.kernel.now.after(ms(step * u64::from(index)));
        run.kernel
            .at(at, move |kernel| attack(kernel, &visit, sequence));
    }
    run.run_for(40);
    let lines = run.lines();
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    (count("it may be forged"), count("Blocked: "))
}

#[test]
fn root_in_a_container_has_nobody_blocked() {
    for (name, is_told, action) in ATTACKS {
        let said = attack(|_| {}, name, action);
        assert_eq!(said, (usize::from(is_told), 0), "{name}");
    }
    // All is true, but not known to be.
    for (name, host) in HOSTS {
        let said = attack(host, name, |kernel, visit, sequence| {
            by(&[UPLINK])(kernel, visit, sequence);
        });
        let expected = if name.is_empty() { (0, 1) } else { (1, 0) };
        assert_eq!(said, expected, "a host {name}");
    }
}
