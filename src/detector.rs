//! The rule: a source with evidence on more than N distinct local ports
//! within the window is a port scan.

use core::net::IpAddr;

use heapless::Vec;

use crate::address::{Network, UNSPECIFIED};
use crate::limits::PORTS_PER_SOURCE;
use crate::table::{Blank, HashKey, Slot, Table};
use crate::time::{Duration, Instant, order};

/// Proof that a source completed a handshake with a local port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Who.
    pub source: Network,
    /// The local port.
    pub port: u16,
    /// The local address, to be printed; unspecified where it is not known.
    pub local: IpAddr,
    /// Whether the connection carried data from the peer.
    pub data: Data,
    /// It was not there at the start.
    pub is_new: bool,
}

/// Whether a peer sent data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Data {
    /// Nothing says so or otherwise.
    #[default]
    Unknown,
    /// It did not.
    Silent,
    /// It did.
    Sent,
}

impl Data {
    /// What is known of several connections together: silent only if each is.
    pub fn with(self, other: Self) -> Self {
        match (self, other) {
            (Self::Sent, _) | (_, Self::Sent) => Self::Sent,
            (Self::Silent, Self::Silent) => Self::Silent,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
        }
    }

    /// What is known of the same connections after `newer` was learned.
    pub fn and(self, newer: Self) -> Self {
        match (self, newer) {
            (Self::Sent, _) | (_, Self::Sent) => Self::Sent,
            (known, Self::Unknown) => known,
            (_, Self::Silent) => Self::Silent,
        }
    }
}

/// More services than this, touched from at least that many sources of one
/// network, are a spread scan.
const SPREAD_PORTS: u8 = 16;
const SPREAD_SOURCES: usize = 4;

/// Local ports in ascending order.
pub type Ports = Vec<u16, PORTS_PER_SOURCE>;

/// A port scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Who scanned; of a spread scan the network.
    pub source: Network,
    /// The sources that a spread scan came from; 0 where it was one.
    pub members: usize,
    /// The local address of the connection that completed the evidence.
    pub local: IpAddr,
    /// The ports seen within the window.
    pub ports: Ports,
    /// What is known of each port's connections, in the order of `ports`.
    pub port_data: Vec<Data, PORTS_PER_SOURCE>,
    /// Some of its connections were not there at the start.
    pub is_new: bool,
}

impl Scan {
    /// What is known of all connections together: silent only if each was.
    #[inline(never)]
    pub fn data(&self) -> Data {
        if self.port_data.contains(&Data::Sent) {
            Data::Sent
        } else if self.port_data.iter().all(|data| *data == Data::Silent) {
            Data::Silent
        } else {
            Data::Unknown
        }
    }

    /// Adds what is learned of one of its connections.
    #[inline(never)]
    pub fn note_data(&mut self, port: u16, data: Data) {
        let mut known = self.ports.iter().zip(&mut self.port_data);
        if let Some((_, known)) = known.find(|(known, _)| **known == port) {
            *known = known.and(data);
        }
    }
}

/// One port of a source.
#[derive(Clone, Copy)]
struct Touched {
    seen: Option<Instant>,
    port: u16,
    /// The source within its network.
    member: u16,
    data: Data,
}

/// A source's ports, or a network's; the first `count` are in use, in no order.
#[derive(Clone, Copy)]
#[repr(C)]
struct Watched {
    last_seen: Option<Instant>,
    local: IpAddr,
    count: u8,
    /// Some evidence is.
    is_new: bool,
    touched: [Touched; PORTS_PER_SOURCE],
}

impl Blank for Watched {
    const BLANK: Self = Self {
        last_seen: None,
        local: UNSPECIFIED,
        count: 0,
        is_new: false,
        touched: [Touched {
            seen: None,
            port: 0,
            member: 0,
            data: Data::Unknown,
        }; PORTS_PER_SOURCE],
    };
}

impl Watched {
    /// Nothing seen yet; what stands behind `count` stays as it is.
    fn clear(&mut self) {
        self.last_seen = None;
        self.local = UNSPECIFIED;
        self.count = 0;
        self.is_new = false;
    }

    fn in_use(&self) -> &[Touched] {
        self.touched.get(..usize::from(self.count)).unwrap_or(&[])
    }

    fn find(&mut self, port: u16) -> Option<&mut Touched> {
        let in_use = self.touched.iter_mut().take(usize::from(self.count));
        in_use.filter(|touched| touched.port == port).last()
    }

    /// Drops what is older than the window and notes one more connection; whether
    /// its port is a new one.
    fn note(&mut self, evidence: &Evidence, member: u16, now: Instant, window: Duration) -> bool {
        self.drop_old(now, window);
        self.is_new |= evidence.is_new;
        let port = evidence.port;
        if let Some(known) = self.find(port) {
            (known.seen, known.member) = (Some(now), member);
            known.data = known.data.with(evidence.data);
            return false;
        }
        let newer = Touched {
            seen: Some(now),
            port,
            member,
            data: evidence.data,
        };
        if let Some(free) = self.touched.get_mut(usize::from(self.count)) {
            *free = newer;
            self.count += 1;
        } else if let Some(oldest) = self
            .touched
            .iter_mut()
            .min_by_key(|touched| order(touched.seen))
        {
            // More ports than can decide anything: the oldest is evicted.
            *oldest = newer;
        }
        true
    }

    fn drop_old(&mut self, now: Instant, window: Duration) {
        let mut index = 0;
        while let Some(touched) = self.in_use().get(index) {
            if now.is_within(window, touched.seen) {
                index += 1;
                continue;
            }
            let last = self.in_use().last().copied();
            if let (Some(hole), Some(last)) = (self.touched.get_mut(index), last) {
                *hole = last;
                self.count -= 1;
            }
        }
    }

    /// How many sources its ports were touched from last.
    fn members(&self) -> usize {
        let in_use = self.in_use();
        let is_first = |(index, touched): &(usize, &Touched)| {
            let mut earlier = in_use.iter().take(*index);
            earlier.all(|other| other.member != touched.member)
        };
        in_use.iter().enumerate().filter(is_first).count()
    }

    /// In ascending order of ports, by selection: at most 64, once a scan.
    fn sorted(&self) -> Vec<Touched, PORTS_PER_SOURCE> {
        let mut sorted = Vec::new();
        let mut floor = None;
        loop {
            let above = self
                .in_use()
                .iter()
                .filter(|touched| Some(touched.port) > floor);
            let Some(next) = above.min_by_key(|touched| touched.port) else {
                return sorted;
            };
            floor = Some(next.port);
            if sorted.push(*next).is_err() {
                return sorted;
            }
        }
    }
}

/// Classes of the table: a source with k ports that decide nothing yet stands
/// in class k, so that the least suspicious is evicted first.
const CROSSED: usize = PORTS_PER_SOURCE + 2;
/// Reported and not blocked: silent until it was quiet for one window.
const REPORTED: usize = PORTS_PER_SOURCE + 1;
const CLASSES: usize = PORTS_PER_SOURCE + 3;
/// Networks, until they are reported. They take an eighth of the table at most.
const NETWORKS: usize = 1;
/// Sources with one or two ports. A quarter of the table is theirs, and they
/// evict each other, the oldest first.
const NEWCOMERS: usize = 2;

/// So many of them are looked through for one to give way.
const NEIGHBOURS: usize = 4;

/// The network that a source's neighbours under the same hand come from, and
/// which one of it the source is. IPv6 sources of one address have none.
fn network_of(source: Network) -> Option<(Network, u16)> {
    match source.address() {
        IpAddr::V4(v4) => Some((source.around(24, 48), v4.to_bits() as u16)),
        IpAddr::V6(_) if source.is_single() => None,
        IpAddr::V6(v6) => Some((source.around(24, 48), (v6.to_bits() >> 64) as u16)),
    }
}

/// Up to `N` sources under watch, with an index of `I`. What an idle daemon
/// writes to, its head, is in one page.
#[repr(C, align(64))]
pub struct Detector<const N: usize, const I: usize> {
    threshold: u8,
    window: Duration,
    evictions: u64,
    sources: Table<Network, Watched, N, I, CLASSES>,
}

/// Whether an entry is a network's: no source has such a length.
const fn is_network(key: Network) -> bool {
    matches!(key.prefix_length(), 24 | 48)
}

impl<const N: usize, const I: usize> Detector<N, I> {
    /// No source is watched; all bytes zero.
    pub const fn new() -> Self {
        Self {
            threshold: 0,
            window: Duration::ZERO,
            sources: Table::new(),
            evictions: 0,
        }
    }

    /// Sets the secret, the number of ports that are still no scan, and how far
    /// back ports count; call once, at start.
    pub fn configure(&mut self, hash_key: HashKey, threshold: u8, window: Duration) {
        self.sources.set_hash_key(hash_key);
        self.threshold = threshold;
        self.window = window;
    }

    /// Takes in one piece of evidence.
    pub fn observe(&mut self, evidence: &Evidence, now: Instant) {
        if self.note(evidence.source, 0, evidence, now)
            && let Some((network, member)) = network_of(evidence.source)
        {
            self.note(network, member, evidence, now);
        }
    }

    /// Notes a port of a source, or of a network; whether it is a new one of a
    /// source that is no scanner by itself, and so may be part of a spread scan.
    #[inline(never)]
    fn note(&mut self, key: Network, member: u16, evidence: &Evidence, now: Instant) -> bool {
        let Some(slot) = self.watch(key) else {
            return false;
        };
        let class = self.sources.class(slot);
        let Some(watched) = self.sources.value_mut(slot) else {
            return false;
        };
        let was_quiet = !now.is_within(self.window, watched.last_seen);
        let is_new = watched.note(evidence, member, now, self.window);
        watched.last_seen = Some(now);
        let class = match class {
            Some(CROSSED) => CROSSED,
            Some(REPORTED) if !was_quiet => REPORTED,
            _ => {
                if !evidence.local.is_unspecified() {
                    watched.local = evidence.local;
                }
                let (most, sources, class) = if is_network(key) {
                    (SPREAD_PORTS.max(self.threshold), SPREAD_SOURCES, NETWORKS)
                } else {
                    (self.threshold, 1, NEWCOMERS.max(watched.count.into()))
                };
                if watched.count > most && watched.members() >= sources {
                    CROSSED
                } else {
                    class
                }
            }
        };
        self.sources.touch(slot, class);
        is_new && class < REPORTED
    }

    fn watch(&mut self, source: Network) -> Option<Slot> {
        if let Some(slot) = self.sources.find(&source) {
            return Some(slot);
        }
        let is_network = is_network(source);
        let (class, share) = if is_network {
            (NETWORKS, N / 8)
        } else {
            (NEWCOMERS, N / 4)
        };
        let has_share = self.sources.class_len(class) >= share.max(1);
        if self.sources.len() >= N || is_network && has_share {
            // Newcomers below their share take the place of one with more ports.
            let is_crowded = has_share && !is_network;
            let first = if is_network || has_share {
                class
            } else {
                class + 1
            };
            let mut classes = (first..CLASSES).chain(0..CLASSES);
            let neighbour = if is_crowded {
                self.neighbour(source)
            } else {
                None
            };
            let oldest =
                neighbour.or_else(|| classes.find_map(|class| self.sources.oldest(class)))?;
            self.sources.remove(oldest);
            self.evictions += 1;
        }
        let slot = self.sources.place(source, 0).ok()?;
        if let Some(watched) = self.sources.value_mut(slot) {
            watched.clear();
        }
        Some(slot)
    }

    /// A newcomer of the same IPv6 /48 or IPv4 /16, among the oldest: a flood
    /// takes its own places, not those of others.
    #[inline(never)]
    fn neighbour(&self, source: Network) -> Option<Slot> {
        let site = source.around(16, 48);
        let mut next = self.sources.oldest(NEWCOMERS);
        for _ in 0..NEIGHBOURS {
            let slot = next?;
            if self.sources.key(slot)?.around(16, 48) == site {
                return next;
            }
            next = self.sources.younger(slot);
        }
        None
    }

    /// The ports with evidence against a source within the window.
    #[inline(never)]
    pub fn ports(&self, source: &Network, now: Instant) -> Ports {
        let mut ports = Ports::new();
        let slot = self.sources.find(source);
        if let Some(watched) = slot.and_then(|slot| self.sources.value(slot)) {
            for touched in watched.in_use() {
                if now.is_within(self.window, touched.seen) {
                    let _ = ports.push(touched.port);
                }
            }
        }
        ports
    }

    /// Whether `next_scan` has one.
    pub fn has_scan(&self) -> bool {
        self.sources.class_len(CROSSED) > 0
    }

    /// The next scan that was recognised and not handed out yet. It is handed
    /// out again only after `forget`, or after one window of quiet.
    pub fn next_scan(&mut self) -> Option<Scan> {
        let slot = self.sources.oldest(CROSSED)?;
        let source = *self.sources.key(slot)?;
        let watched = self.sources.value(slot)?;
        let mut scan = Scan {
            source,
            members: if is_network(source) {
                watched.members()
            } else {
                0
            },
            local: watched.local,
            ports: Vec::new(),
            port_data: Vec::new(),
            is_new: watched.is_new,
        };
        for touched in &watched.sorted() {
            let _ = scan.ports.push(touched.port);
            let _ = scan.port_data.push(touched.data);
        }
        self.sources.touch(slot, REPORTED);
        Some(scan)
    }

    /// Adds what is learned of a connection that is evidence already; its age
    /// stays as it was.
    pub fn note_data(&mut self, source: Network, port: u16, data: Data) {
        let slot = self.sources.find(&source);
        let watched = slot.and_then(|slot| self.sources.value_mut(slot));
        if let Some(touched) = watched.and_then(|watched| watched.find(port)) {
            touched.data = touched.data.and(data);
        }
    }

    /// Drops all evidence of a source, or of all those in a wide block.
    #[inline(never)]
    pub fn forget(&mut self, source: Network) {
        if let Some(slot) = self.sources.find(&source) {
            self.sources.remove(slot);
        }
        let mut from = 0;
        while source.is_wide()
            && let Some((at, slot)) = self.sources.next_from(from)
        {
            let key = self.sources.key(slot);
            if key.is_some_and(|key| !is_network(*key) && source.contains(key.address())) {
                self.sources.remove(slot);
            }
            from = at + 1;
        }
    }

    /// Takes a source for reported: no block followed its scan after all.
    pub fn silence(&mut self, source: Network, now: Instant) {
        let Some(slot) = self.watch(source) else {
            return;
        };
        if let Some(watched) = self.sources.value_mut(slot) {
            watched.last_seen = Some(now);
        }
        self.sources.touch(slot, REPORTED);
    }

    /// Drops sources that were quiet for one window.
    pub fn expire(&mut self, now: Instant) {
        for class in 0..CLASSES {
            while let Some(slot) = self.sources.oldest(class) {
                let watched = self.sources.value(slot);
                let last_seen = watched.and_then(|watched| watched.last_seen);
                if now.is_within(self.window, last_seen) {
                    break;
                }
                self.sources.remove(slot);
            }
        }
    }

    /// Sources under watch and how many can be.
    pub fn sources(&self) -> (usize, usize) {
        (self.sources.len() - self.sources.class_len(NETWORKS), N)
    }

    /// Sources evicted for newer ones so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use std::boxed::Box;
    use std::collections::HashMap;

    const WINDOW: Duration = Duration::from_secs(60);

    fn detector<const N: usize, const I: usize>() -> Box<Detector<N, I>> {
        let mut detector = Box::new(Detector::new());
        detector.configure(HashKey { k0: 1, k1: 2 }, 3, WINDOW);
        detector
    }

    fn source(number: u32) -> Network {
        Network::single(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number)))
    }

    fn evidence(number: u32, port: u16) -> Evidence {
        Evidence {
            source: source(number),
            port,
            local: UNSPECIFIED,
            data: Data::Unknown,
            is_new: true,
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(1_000 + seconds)
    }

    #[test]
    fn three_ports_are_no_scan_four_are() {
        let mut detector = detector::<16, 64>();
        for port in [80, 22, 445, 80, 22] {
            detector.observe(&evidence(1, port), at(0));
        }
        assert_eq!(detector.next_scan(), None);
        detector.observe(&evidence(1, 25), at(1));
        let scan = detector.next_scan().unwrap();
        assert_eq!(
            (scan.source, &scan.ports[..]),
            (source(1), &[22, 25, 80, 445][..])
        );
        assert_eq!(detector.next_scan(), None);
    }

    #[test]
    fn ports_count_for_one_window() {
        let mut detector = detector::<16, 64>();
        detector.observe(&evidence(1, 1), at(0));
        detector.observe(&evidence(1, 2), at(1));
        detector.observe(&evidence(1, 3), at(2));
        detector.observe(&evidence(1, 4), at(60));
        assert_eq!(detector.next_scan(), None, "port 1 is 60 s old");
        detector.observe(&evidence(1, 5), at(60));
        assert_eq!(detector.next_scan().unwrap().ports[..], [2, 3, 4, 5]);
    }

    #[test]
    fn a_scan_is_reported_again_only_after_a_window_of_quiet() {
        let mut detector = detector::<16, 64>();
        for port in 1..=4 {
            detector.observe(&evidence(1, port), at(0));
        }
        assert!(detector.next_scan().is_some());
        for second in (10..300).step_by(10) {
            for port in 1..=6 {
                detector.observe(&evidence(1, port), at(second));
            }
            detector.expire(at(second));
            assert_eq!(detector.next_scan(), None);
        }
        for port in 1..=4 {
            detector.observe(&evidence(1, port), at(350));
        }
        assert!(
            detector.next_scan().is_some(),
            "60 s after the last evidence"
        );
    }

    #[test]
    fn forgotten_sources_start_from_nothing() {
        let mut detector = detector::<16, 64>();
        for port in 1..=3 {
            detector.observe(&evidence(1, port), at(0));
        }
        detector.forget(source(1));
        detector.observe(&evidence(1, 4), at(1));
        assert_eq!(detector.next_scan(), None);
        assert_eq!(detector.sources(), (1, 16));
    }

    #[test]
    fn one_port_short_survives_a_flood_of_ten_times_the_capacity() {
        let mut detector = detector::<16, 64>();
        for port in 1..=3 {
            detector.observe(&evidence(0, port), at(0));
        }
        for number in 1..=160 {
            detector.observe(&evidence(number, 80), at(1));
        }
        assert_eq!(detector.evictions(), 146, "one place is the network's");
        detector.observe(&evidence(0, 4), at(2));
        assert_eq!(detector.next_scan().unwrap().source, source(0));
    }

    /// A table full of sources one port short keeps a quarter for newcomers,
    /// who evict each other, the oldest first.
    #[test]
    fn a_table_of_suspects_hides_no_newcomer() {
        let mut detector = detector::<64, 128>();
        let mut flood = 0;
        let mut suspects = |detector: &mut Detector<64, 128>, count: u32, second| {
            for _ in 0..count {
                flood += 1;
                for port in 1..=3 {
                    detector.observe(&evidence(1_000 + flood, port), at(second));
                }
            }
        };
        suspects(&mut detector, 640, 0);
        for port in 1..=4 {
            detector.observe(&evidence(1, port), at(u64::from(port)));
            suspects(&mut detector, 12, u64::from(port));
        }
        assert_eq!(detector.next_scan().unwrap().source, source(1));
        // As many newcomers as there are places for them.
        for port in 1..=4 {
            let second = 10 + u64::from(port);
            detector.observe(&evidence(2, port), at(second));
            for number in 0..14 {
                let number = 100 + number + 14 * u32::from(port);
                detector.observe(&evidence(number, 80), at(second));
            }
        }
        assert_eq!(detector.next_scan().unwrap().source, source(2));
    }

    /// Newcomers of one network take each other's places, not a slow scanner's.
    #[test]
    fn a_flood_of_newcomers_hides_no_newcomer_from_elsewhere() {
        let mut detector = detector::<64, 128>();
        let scanner = Network::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 32);
        let mut number = 0;
        for port in 1..=4 {
            let own = evidence(0, port);
            detector.observe(
                &Evidence {
                    source: scanner,
                    ..own
                },
                at(port.into()),
            );
            for _ in 0..1_000 {
                number += 1;
                detector.observe(&evidence(number, 80), at(port.into()));
            }
        }
        assert_eq!(detector.next_scan().unwrap().source, scanner);
    }

    /// However many networks there are, they take an eighth of the table.
    #[test]
    fn networks_leave_the_places_to_sources() {
        let mut detector = detector::<64, 128>();
        for number in 0..1_000 {
            detector.observe(&evidence(number << 8, 80), at(0));
        }
        assert_eq!(detector.sources(), (56, 64));
    }

    #[test]
    fn more_ports_than_fit_never_lose_the_scan() {
        let mut detector = detector::<16, 64>();
        for port in 1..=1_000 {
            detector.observe(&evidence(1, port), at(0));
        }
        let scan = detector.next_scan().unwrap();
        assert_eq!(scan.ports.len(), PORTS_PER_SOURCE);
        assert!(scan.ports.is_sorted());
    }

    #[test]
    fn silent_only_if_every_connection_was() {
        use Data::{Sent, Silent, Unknown};
        for (all, expected) in [
            ([Silent, Silent, Silent, Silent], Silent),
            ([Silent, Silent, Silent, Unknown], Unknown),
            ([Silent, Unknown, Silent, Sent], Sent),
        ] {
            let mut detector = detector::<16, 64>();
            for (port, data) in (1..).zip(all) {
                detector.observe(
                    &Evidence {
                        data,
                        ..evidence(1, port)
                    },
                    at(0),
                );
            }
            assert_eq!(detector.next_scan().unwrap().data(), expected);
        }
        let mut detector = detector::<16, 64>();
        for port in 1..=4 {
            detector.observe(&evidence(1, port), at(0));
            detector.note_data(source(1), port, Silent);
        }
        let mut scan = detector.next_scan().unwrap();
        assert_eq!(scan.data(), Silent);
        scan.note_data(3, Sent);
        scan.note_data(3, Silent);
        assert_eq!(scan.data(), Sent);
    }

    /// The rule in a few slow lines: a map of every port's last sight.
    #[derive(Default)]
    struct Naive {
        sources: HashMap<Network, (HashMap<u16, Instant>, Option<Instant>)>,
    }

    impl Naive {
        fn observe(&mut self, evidence: &Evidence, now: Instant) -> Option<Vec<u16, 64>> {
            let (ports, reported) = self.sources.entry(evidence.source).or_default();
            if reported.is_some_and(|last| now.since(last) < WINDOW) {
                *reported = Some(now);
                return None;
            }
            *reported = None;
            ports.insert(evidence.port, now);
            ports.retain(|_, seen| now.since(*seen) < WINDOW);
            if ports.len() <= 3 {
                return None;
            }
            let mut sorted: std::vec::Vec<u16> = ports.keys().copied().collect();
            sorted.sort();
            *reported = Some(now);
            Vec::from_slice(&sorted).ok()
        }
    }

    impl std::hash::Hash for Network {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            (self.address(), self.prefix_length()).hash(state);
        }
    }

    #[test]
    fn agrees_with_a_naive_oracle() {
        let mut detector = detector::<64, 128>();
        let mut naive = Naive::default();
        let mut state: u64 = 42;
        let mut now = at(0);
        let mut scans = 0;
        for step in 0..100_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let evidence = evidence((state >> 33) as u32 % 12, (state >> 45) as u16 % 7);
            now = now.after(Duration::from_millis((state >> 50) % 6_000));
            detector.observe(&evidence, now);
            let expected = naive.observe(&evidence, now);
            let scan = detector.next_scan();
            scans += usize::from(scan.is_some());
            assert_eq!(scan.map(|scan| scan.ports), expected, "step {step}");
            if step % 10 == 0 {
                detector.expire(now);
            }
        }
        assert!(scans > 1_000, "{scans}");
    }
}
