//! The rule: a source with evidence on more than N distinct local ports
//! within the window is a port scan.

use core::net::IpAddr;

use heapless::Vec;

use crate::address::{Network, UNSPECIFIED};
use crate::limits::PORTS_PER_SOURCE;
use crate::table::{Blank, CLASSES, HashKey, Slot, Table};
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
    /// Everything proves it. Otherwise the handshake alone does, and not the
    /// way by which its SYN came: that is reported and leads to no block.
    pub is_whole: bool,
}

/// Whether a peer sent data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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
        if self == other || self.max(other) == Self::Sent {
            self.max(other)
        } else {
            Self::Unknown
        }
    }

    /// What is known of the same connections after `newer` was learned.
    pub fn and(self, newer: Self) -> Self {
        self.max(newer)
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
    /// Its whole ports alone exceed the threshold.
    pub is_whole: bool,
    /// What its evidence was marked with.
    pub marks: u16,
}

impl Scan {
    /// What is known of all connections together: silent only if each was.
    #[inline(never)]
    pub fn data(&self) -> Data {
        let all = self.port_data.iter().copied();
        all.fold(Data::Silent, Data::with)
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
    /// The source within its network; in a source the mark of its evidence.
    member: u16,
    data: Data,
    /// Of several proofs one is whole, and what is noted here is of such ones.
    is_whole: bool,
}

impl Touched {
    /// What is evicted first has the lowest: whole ones come last, and among
    /// equals the youngest. Times end long before the highest bit.
    fn rank(&self) -> u64 {
        u64::from(self.is_whole) << 63 | order(self.seen)
    }
}

/// A source's ports, or a network's; the first `count` are in use, in no order.
#[derive(Clone, Copy)]
#[repr(C)]
struct Watched {
    last_seen: Option<Instant>,
    /// When it crossed the threshold.
    crossed: Option<Instant>,
    local: IpAddr,
    count: u8,
    /// So many of them are whole.
    whole: u8,
    /// Some evidence is.
    is_new: bool,
    /// Whole ports alone made it a scanner.
    is_whole: bool,
    /// It was reported as a scanner by ports that are not whole.
    is_told: bool,
    touched: [Touched; PORTS_PER_SOURCE],
}

impl Blank for Watched {
    const BLANK: Self = Self {
        last_seen: None,
        crossed: None,
        local: UNSPECIFIED,
        count: 0,
        whole: 0,
        is_new: false,
        is_whole: false,
        is_told: false,
        touched: [Touched {
            seen: None,
            port: 0,
            member: 0,
            data: Data::Unknown,
            is_whole: false,
        }; PORTS_PER_SOURCE],
    };
}

impl Watched {
    /// Nothing seen yet; what stands behind `count` stays as it is.
    fn clear(&mut self) {
        self.last_seen = None;
        self.local = UNSPECIFIED;
        (self.count, self.whole) = (0, 0);
        (self.is_new, self.is_whole, self.is_told) = (false, false, false);
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
        let newer = Touched {
            seen: Some(now),
            port: evidence.port,
            member,
            data: evidence.data,
            is_whole: evidence.is_whole,
        };
        if let Some(known) = self.find(evidence.port) {
            if known.is_whole == evidence.is_whole {
                (known.seen, known.member) = (Some(now), member);
                known.data = known.data.with(evidence.data);
            } else if evidence.is_whole {
                // The other way round who forges it could hold together what
                // is older than the window, or add data to a silent scan.
                *known = newer;
                self.whole += 1;
            }
            return false;
        }
        if usize::from(self.count) >= PORTS_PER_SOURCE {
            // More ports than can decide anything: the oldest is evicted, and
            // no whole one for one that is not.
            let all = self.touched.iter().enumerate();
            let oldest = all.min_by_key(|(_, touched)| touched.rank());
            let evicted = oldest.filter(|(_, oldest)| newer.is_whole || !oldest.is_whole);
            let Some((index, _)) = evicted else {
                return false;
            };
            self.remove(index);
        }
        if let Some(free) = self.touched.get_mut(usize::from(self.count)) {
            *free = newer;
            self.count += 1;
            self.whole += u8::from(newer.is_whole);
        }
        true
    }

    fn drop_old(&mut self, now: Instant, window: Duration) {
        let mut index = 0;
        while let Some(touched) = self.touched.get(index)
            && index < usize::from(self.count)
        {
            if now.is_within(window, touched.seen) {
                index += 1;
            } else {
                self.remove(index);
            }
        }
    }

    /// The last one takes its place.
    #[inline(never)]
    fn remove(&mut self, index: usize) -> Option<()> {
        let last = *self.touched.get(usize::from(self.count).wrapping_sub(1))?;
        let hole = self.touched.get_mut(index)?;
        self.whole -= u8::from(hole.is_whole);
        self.count -= 1;
        *hole = last;
        Some(())
    }

    /// The class of a source that is no scanner yet, or none to be blocked.
    fn class(&self) -> usize {
        // One port is not fewer than two.
        usize::from(self.whole) + usize::from(self.whole == 1)
    }

    /// How many sources its ports were touched from last.
    fn members(&self) -> usize {
        let in_use = self.in_use();
        let is_first = |(index, touched): &(usize, &Touched)| {
            let mut earlier = in_use.get(..*index).unwrap_or_default().iter();
            earlier.all(|other| other.member != touched.member)
        };
        in_use.iter().enumerate().filter(is_first).count()
    }

    /// The one with the lowest port from this one on: at most 64 times a scan.
    fn next(&self, from: u32) -> Option<&Touched> {
        let in_use = self.in_use().iter();
        let behind = in_use.filter(|touched| u32::from(touched.port) >= from);
        behind.min_by_key(|touched| touched.port)
    }
}

/// Classes of the table: a source with k whole ports that decide nothing yet
/// stands in class k, so that the least suspicious is evicted first.
const CROSSED: usize = PORTS_PER_SOURCE + 2;
/// Reported and not blocked: silent until it was quiet for one window.
const REPORTED: usize = PORTS_PER_SOURCE + 1;
/// Sources without a whole port, reported ones too: they have what others leave
/// free, since who forges them may have any number.
const UNPROVEN: usize = 0;
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
    /// So many of the places are used.
    limit: usize,
    window: Duration,
    evictions: u64,
    sources: Table<Network, Watched, N, I>,
}

/// Whether an entry is a network's: no source has such a length.
const fn is_network(key: Network) -> bool {
    matches!(key.host_bits(), 8 | 80)
}

impl<const N: usize, const I: usize> Detector<N, I> {
    /// No source is watched; all bytes zero.
    pub const fn new() -> Self {
        Self {
            threshold: 0,
            limit: 0,
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
        self.limit = N;
        self.window = window;
    }

    /// The same as of another one, for at most `limit` sources.
    pub fn configure_as(&mut self, other: &Self, limit: usize) {
        self.configure(other.sources.hash_key(), other.threshold, other.window);
        self.limit = limit;
    }

    /// Takes in one piece of evidence.
    pub fn observe(&mut self, evidence: &Evidence, now: Instant) {
        if self.note(evidence.source, 0, evidence, now)
            && let Some((network, member)) = network_of(evidence.source)
        {
            self.note(network, member, evidence, now);
        }
    }

    /// The same with a mark, and without regard to the source's network.
    pub fn observe_marked(&mut self, evidence: &Evidence, mark: u16, now: Instant) {
        self.note(evidence.source, mark, evidence, now);
    }

    /// Notes a port of a source, or of a network; whether it is a new one of a
    /// source that is no scanner by itself, and so may be part of a spread scan.
    #[inline(never)]
    fn note(&mut self, key: Network, member: u16, evidence: &Evidence, now: Instant) -> bool {
        let Some(slot) = self.watch(key, evidence.is_whole) else {
            return false;
        };
        let class = self.sources.class(slot).unwrap_or_default();
        let Some(watched) = self.sources.value_mut(slot) else {
            return false;
        };
        let was_quiet = !now.is_within(self.window, watched.last_seen);
        let is_new = watched.note(evidence, member, now, self.window);
        watched.last_seen = Some(now);
        let class = match class {
            // It keeps its place: in the order in which they crossed.
            CROSSED => {
                watched.is_whole |= watched.whole > self.threshold;
                return false;
            }
            REPORTED if !was_quiet => REPORTED,
            _ => {
                if !evidence.local.is_unspecified() {
                    watched.local = evidence.local;
                }
                let (most, sources, class) = if is_network(key) {
                    (SPREAD_PORTS.max(self.threshold), SPREAD_SOURCES, NETWORKS)
                } else {
                    (self.threshold, 1, watched.class())
                };
                watched.is_whole = watched.whole > most;
                watched.is_told &= !was_quiet;
                if watched.count > most
                    && (watched.is_whole || !watched.is_told)
                    && watched.members() >= sources
                {
                    watched.crossed = Some(now);
                    CROSSED
                } else {
                    class
                }
            }
        };
        self.sources.touch(slot, class);
        is_new && class < REPORTED
    }

    /// The place of a source, or of a network; `is_whole`: of one with a whole
    /// port now.
    fn watch(&mut self, source: Network, is_whole: bool) -> Option<Slot> {
        if let Some(slot) = self.sources.find(&source) {
            return Some(slot);
        }
        let is_network = is_network(source);
        let (class, share) = if is_network {
            (NETWORKS, self.limit / 8)
        } else {
            (NEWCOMERS, self.limit / 4)
        };
        let has_share = self.sources.class_len(class) >= share.max(1);
        let is_full = self.sources.len() >= self.limit;
        if is_full || is_network && has_share {
            self.evictions += 1;
            let has_unproven = is_full && self.sources.class_len(UNPROVEN) > 0;
            if !has_unproven && !is_whole && !is_network {
                return None;
            }
            // Newcomers below their share take the place of one with more ports.
            let is_crowded = has_share && !is_network && !has_unproven;
            let first = if has_unproven {
                UNPROVEN
            } else if is_network || has_share {
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
        }
        let slot = self.sources.place(source, UNPROVEN).ok()?;
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

    /// How many ports a source has touched within the window; `None` if this
    /// one is among them.
    #[inline(never)]
    pub fn ports_without(&self, source: &Network, port: u16, now: Instant) -> Option<usize> {
        let slot = self.sources.find(source);
        let watched = slot.and_then(|slot| self.sources.value(slot));
        let mut count = 0;
        for touched in watched.map(Watched::in_use).unwrap_or_default() {
            if now.is_within(self.window, touched.seen) {
                if touched.port == port {
                    return None;
                }
                count += 1;
            }
        }
        Some(count)
    }

    /// Whether a source was reported, or is about to be.
    #[inline(never)]
    pub fn is_reported(&self, source: &Network) -> bool {
        let slot = self.sources.find(source);
        slot.is_some_and(|slot| self.sources.class(slot) >= Some(REPORTED))
    }

    /// When the scan that `next_scan` has was recognised, and how many there are.
    pub fn recognised(&self) -> Option<(Instant, usize)> {
        let slot = self.sources.oldest(CROSSED)?;
        let watched = self.sources.value(slot)?;
        Some((watched.crossed?, self.sources.class_len(CROSSED)))
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
        let watched = self.sources.value_mut(slot)?;
        let is_spread = is_network(source);
        let mut scan = Scan {
            source,
            members: if is_spread { watched.members() } else { 0 },
            local: watched.local,
            ports: Vec::new(),
            port_data: Vec::new(),
            is_new: watched.is_new,
            is_whole: watched.is_whole,
            marks: 0,
        };
        let mut from = 0;
        while let Some(touched) = watched.next(from) {
            from = u32::from(touched.port) + 1;
            scan.marks |= touched.member;
            let _ = scan.ports.push(touched.port);
            // What is not whole keeps no scanner from a block.
            let counts = touched.is_whole || !scan.is_whole;
            let data = if counts { touched.data } else { Data::Silent };
            let _ = scan.port_data.push(data);
        }
        let class = if is_spread || watched.is_whole {
            REPORTED
        } else {
            watched.is_told = true;
            watched.class()
        };
        self.sources.touch(slot, class);
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

    /// Drops a port of a source, which is no scanner then unless others make it
    /// one.
    #[inline(never)]
    pub fn forget_port(&mut self, source: Network, port: u16, now: Instant) {
        let Some(slot) = self.sources.find(&source) else {
            return;
        };
        let class = self.sources.class(slot);
        let Some(watched) = self.sources.value_mut(slot) else {
            return;
        };
        let Some(touched) = watched.find(port) else {
            return;
        };
        touched.seen = None;
        watched.drop_old(now, self.window);
        if class != Some(REPORTED) && watched.count <= self.threshold {
            let class = watched.class();
            self.sources.touch(slot, class);
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
        let Some(slot) = self.watch(source, true) else {
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
            is_whole: true,
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

    fn unproven(number: u32, port: u16) -> Evidence {
        Evidence {
            is_whole: false,
            ..evidence(number, port)
        }
    }

    /// What `next_scan` says: whether it is whole, and the ports.
    fn verdict<const N: usize, const I: usize>(
        detector: &mut Detector<N, I>,
    ) -> Option<(bool, std::vec::Vec<u16>)> {
        let scan = detector.next_scan()?;
        Some((scan.is_whole, scan.ports.to_vec()))
    }

    #[test]
    fn ports_that_are_not_whole_are_told_once_and_whole_ones_alone_are_a_scan() {
        let mut detector = detector::<16, 64>();
        for port in 1..=3 {
            detector.observe(&evidence(1, port), at(0));
        }
        detector.observe(&unproven(1, 4), at(1));
        assert_eq!(
            verdict(&mut detector),
            Some((false, std::vec![1, 2, 3, 4])),
            "three whole ones and one more"
        );
        for port in 1..=20 {
            detector.observe(&unproven(1, port), at(2));
            assert_eq!(verdict(&mut detector), None, "told already");
        }
        detector.observe(&evidence(1, 20), at(3));
        let (is_whole, ports) = verdict(&mut detector).unwrap();
        assert!(is_whole && ports.len() == 20, "{ports:?}");
        detector.observe(&evidence(1, 21), at(4));
        assert_eq!(verdict(&mut detector), None, "reported already");
        // Quiet for a window: told again.
        for port in 1..=4 {
            detector.observe(&unproven(1, port), at(64));
        }
        assert_eq!(verdict(&mut detector), Some((false, std::vec![1, 2, 3, 4])));
    }

    /// Who forges what is not whole keeps nothing together that is older than
    /// the window, hides no port, and sends no data for somebody else.
    #[test]
    fn what_is_not_whole_changes_nothing_that_is() {
        let mut detector = detector::<16, 64>();
        for port in 1..=3 {
            detector.observe(&evidence(1, port), at(0));
        }
        for second in 1..60 {
            for port in 1..=3 {
                detector.observe(&unproven(1, port), at(second));
            }
        }
        detector.observe(&evidence(1, 4), at(60));
        assert_eq!(verdict(&mut detector), None, "ports 1 to 3 are 60 s old");

        for port in 1..=3 {
            detector.observe(&evidence(2, port), at(0));
        }
        let mut forged = unproven(2, 0);
        forged.data = Data::Sent;
        for port in 1..=200 {
            forged.port = port;
            detector.observe(&forged, at(1));
        }
        assert!(!detector.next_scan().unwrap().is_whole);
        let mut last = evidence(2, 201);
        for port in 1..=3 {
            detector.note_data(source(2), port, Data::Silent);
        }
        last.data = Data::Silent;
        detector.observe(&last, at(2));
        let scan = detector.next_scan().unwrap();
        assert!(scan.is_whole);
        assert_eq!(scan.data(), Data::Silent);
        for port in [1, 2, 3, 201] {
            assert!(scan.ports.contains(&port), "{port}");
        }
    }

    /// With as many whole ones as fit, before anything is handed out.
    #[test]
    fn what_is_not_whole_takes_no_whole_port_s_place() {
        let mut detector = detector::<16, 64>();
        detector.configure(HashKey { k0: 1, k1: 2 }, 63, WINDOW);
        for port in 1..=64 {
            detector.observe(&evidence(1, port), at(0));
        }
        detector.observe(&unproven(1, 65), at(0));
        detector.observe(&unproven(1, 66), at(59));
        assert_eq!(
            verdict(&mut detector),
            Some((true, (1..=64).collect::<std::vec::Vec<u16>>()))
        );
    }

    /// It is whole if it was when it crossed the threshold, whatever became of
    /// its ports before it was handed out.
    #[test]
    fn a_whole_scan_stays_whole_while_it_waits() {
        let mut detector = detector::<16, 64>();
        for port in 1..=4 {
            detector.observe(&evidence(1, port), at(0));
            detector.observe(&unproven(2, port), at(0));
        }
        detector.observe(&unproven(1, 5), at(59));
        detector.observe(&unproven(1, 6), at(61));
        // Another becomes whole meanwhile.
        for port in 1..=4 {
            detector.observe(&evidence(2, port), at(61));
        }
        let scans: [Scan; 2] = core::array::from_fn(|_| detector.next_scan().unwrap());
        assert!(scans[0].is_whole && scans[1].is_whole);
        assert_eq!(scans.map(|scan| scan.source), [source(1), source(2)]);
    }

    /// However many sources root in a container forges, told ones too, they take
    /// no place of one with a whole port.
    #[test]
    fn sources_without_a_whole_port_take_only_free_places() {
        let mut detector = detector::<64, 128>();
        for number in 1..=8 {
            let number = number << 16;
            for port in 1..=3 {
                detector.observe(&evidence(number, port), at(0));
            }
        }
        let mut newcomers = 0;
        while detector.sources.len() < 64 {
            newcomers += 1;
            detector.observe(&unproven(0x100 + newcomers, 80), at(0));
        }
        for number in 0..1_000 {
            for port in 1..=5 {
                detector.observe(&unproven(0x1000 + number, port), at(1));
            }
            while detector.next_scan().is_some_and(|scan| !scan.is_whole) {}
        }
        for number in 1..=8 {
            detector.observe(&evidence(number << 16, 4), at(2));
            let scan = detector.next_scan().expect("it is still known");
            assert!(scan.is_whole && scan.source == source(number << 16));
        }
        // Newcomers take their places, and then there are none for them.
        let mut newcomers = 0;
        let places = detector.sources.class_len(UNPROVEN);
        assert!(places > 40, "{places}");
        while detector.sources.class_len(UNPROVEN) > 0 {
            newcomers += 1;
            detector.observe(&evidence(0x100_0000 + (newcomers << 16), 1), at(3));
        }
        let proven = |detector: &Detector<64, 128>| {
            let class_len = |class| detector.sources.class_len(class);
            (class_len(REPORTED), class_len(NEWCOMERS))
        };
        assert_eq!(proven(&detector), (8, newcomers as usize));
        let evictions = detector.evictions();
        detector.observe(&unproven(0x7777, 80), at(4));
        assert_eq!(proven(&detector), (8, newcomers as usize));
        assert_eq!(detector.evictions(), evictions + 1, "it is counted");
    }

    /// Several sources of a network are told together, whole or not.
    #[test]
    fn spread_scans_are_told_once_whole_or_not() {
        let mut detector = detector::<64, 128>();
        for port in 0..40 {
            let evidence = unproven(u32::from(port) % 20, 100 + port);
            detector.observe(&evidence, at(0));
        }
        let scan = detector.next_scan().unwrap();
        assert!(scan.members >= 4 && scan.source.prefix_length() == 24);
        for port in 0..40 {
            let evidence = evidence(20 + u32::from(port) % 20, 200 + port);
            detector.observe(&evidence, at(1));
        }
        assert_eq!(detector.next_scan(), None);
    }

    /// The rule in a few slow lines: maps of every port's last sight.
    #[derive(Default)]
    struct Naive {
        threshold: usize,
        sources: HashMap<Network, NaiveSource>,
    }

    #[derive(Default)]
    struct NaiveSource {
        whole: HashMap<u16, Instant>,
        unproven: HashMap<u16, Instant>,
        last: Option<Instant>,
        is_told: bool,
        is_reported: bool,
    }

    impl Naive {
        fn observe(
            &mut self,
            evidence: &Evidence,
            now: Instant,
        ) -> Option<(bool, std::vec::Vec<u16>)> {
            let one = self.sources.entry(evidence.source).or_default();
            if one.last.is_none_or(|last| now.since(last) >= WINDOW) {
                *one = NaiveSource::default();
            }
            one.last = Some(now);
            for ports in [&mut one.whole, &mut one.unproven] {
                ports.retain(|_, seen| now.since(*seen) < WINDOW);
            }
            if evidence.is_whole {
                one.whole.insert(evidence.port, now);
                one.unproven.remove(&evidence.port);
            } else if !one.whole.contains_key(&evidence.port) {
                one.unproven.insert(evidence.port, now);
            }
            let is_whole = one.whole.len() > self.threshold;
            let is_scan = one.whole.len() + one.unproven.len() > self.threshold;
            if one.is_reported || !is_scan || !is_whole && one.is_told {
                return None;
            }
            (one.is_told, one.is_reported) = (true, is_whole);
            let ports = one.whole.keys().chain(one.unproven.keys());
            let mut ports: std::vec::Vec<u16> = ports.copied().collect();
            ports.sort();
            Some((is_whole, ports))
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
        let mut naive = Naive {
            threshold: 3,
            ..Naive::default()
        };
        let mut state: u64 = 42;
        let mut now = at(0);
        let mut scans = [0; 2];
        for step in 0..200_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let mut evidence = evidence((state >> 33) as u32 % 12, (state >> 45) as u16 % 7);
            // A third of the sources is whole always, a third half of the time.
            evidence.is_whole = match (state >> 33) % 3 {
                0 => true,
                1 => (state >> 20) % 2 == 0,
                _ => (state >> 20) % 8 == 0,
            };
            now = now.after(Duration::from_millis((state >> 50) % 6_000));
            detector.observe(&evidence, now);
            let expected = naive.observe(&evidence, now);
            let scan = verdict(&mut detector);
            if let Some((is_whole, _)) = scan {
                scans[usize::from(is_whole)] += 1;
            }
            assert_eq!(scan, expected, "step {step}");
            if step % 10 == 0 {
                detector.expire(now);
            }
        }
        assert!(scans.iter().all(|count| *count > 1_000), "{scans:?}");
    }

    /// Every order of four sights of three ports, whole or not, at once, within
    /// the window or after it, where two ports are a scan.
    #[test]
    fn agrees_with_a_naive_oracle_in_every_small_case() {
        let mut detector = detector::<4, 64>();
        detector.configure(HashKey { k0: 1, k1: 2 }, 1, WINDOW);
        let steps = [0, 31, 60];
        let mut now = at(0);
        for case in 0..18_u32.pow(4) {
            let mut naive = Naive {
                threshold: 1,
                ..Naive::default()
            };
            detector.forget(source(1));
            let mut digits = case;
            for step in 0..4 {
                let digit = digits % 18;
                digits /= 18;
                let mut evidence = evidence(1, (digit % 3) as u16);
                evidence.is_whole = digit / 3 % 2 == 0;
                now = now.after(Duration::from_secs(steps[digit as usize / 6]));
                detector.observe(&evidence, now);
                let expected = naive.observe(&evidence, now);
                assert_eq!(verdict(&mut detector), expected, "case {case} step {step}");
            }
        }
    }
}
