//! Which SYNs were seen to come in, and by which link: whether one came from
//! where its source is. Root in a container can forge whole handshakes in the
//! name of others, since what it forges and what answers it are both its own;
//! but its SYN comes in by the container's link, not by the one that leads to
//! the source, or by both where something outside turns it round.
//!
//! One counts for a window, and against others a little longer: what is turned round
//! comes in later by the way back, and must not outlive what shows it. In rings: what floods one link takes the memory of
//! that link only.

use core::net::IpAddr;

use crate::address::Endpoint;
use crate::limits::{SIGHT_RINGS, SIGHTS, TURN_ROUND};
use crate::table::{HashKey, words};
use crate::time::{Duration, Instant};

/// A SYN that came in.
#[derive(Clone, Copy)]
struct Sight {
    at: Option<Instant>,
    /// A fingerprint of its addresses and ports.
    connection: u64,
    /// A fingerprint of its source's address and its sequence number: what is
    /// turned round may ask for another port when it comes back.
    handshake: u64,
    link: u32,
    /// A fingerprint of its source's address and port, for what numbers segments
    /// anew.
    client: u32,
}

/// The newest SYNs of one link; the last ring has those of all links that have
/// none of their own.
#[derive(Clone, Copy)]
struct Ring {
    /// Whose it is, until none that was seen there counts.
    link: u32,
    newest: Option<Instant>,
    /// Until then one is missing that would still count.
    lossy_until: Option<Instant>,
    /// Where the next one goes.
    next: usize,
}

const SHARED: usize = SIGHT_RINGS - 1;

/// No sequence number: ports.
const PORTS: u64 = 1 << 32;

/// So many SYNs of one connection are looked at: it has one, and some more where
/// that was lost.
const TRIES: usize = 8;

/// All bytes zero when new.
#[repr(C)]
pub struct Sights {
    hash_key: HashKey,
    window: Duration,
    /// How long they count against others.
    memory: Duration,
    rings: [Ring; SIGHT_RINGS],
    /// Of one ring after the other.
    sights: [Sight; SIGHT_RINGS * SIGHTS],
}

impl Sights {
    /// None were seen.
    pub const fn new() -> Self {
        Self {
            hash_key: HashKey { k0: 0, k1: 0 },
            window: Duration::ZERO,
            memory: Duration::ZERO,
            rings: [Ring {
                link: 0,
                newest: None,
                lossy_until: None,
                next: 0,
            }; SIGHT_RINGS],
            sights: [Sight {
                at: None,
                connection: 0,
                handshake: 0,
                link: 0,
                client: 0,
            }; SIGHT_RINGS * SIGHTS],
        }
    }

    /// Sets the secret, and how long a sight counts; call once, at start.
    pub fn configure(&mut self, hash_key: HashKey, window: Duration) {
        (self.hash_key, self.window) = (hash_key, window);
        self.memory = window.saturating_add(TURN_ROUND);
    }

    /// Takes in a SYN that came in by a link, for whatever destination.
    #[inline(never)]
    pub fn note(
        &mut self,
        source: Endpoint,
        destination: Endpoint,
        sequence: u32,
        link: u32,
        now: Instant,
    ) {
        let client = PORTS | u64::from(source.port);
        let sight = Sight {
            at: Some(now),
            connection: self.fingerprint(source, destination),
            handshake: self.of_source(source.address, sequence.into()),
            link,
            client: self.of_source(source.address, client) as u32,
        };
        // The link's own, else one that none has now.
        let mut index = SHARED;
        for (own, ring) in self.rings.iter().enumerate().take(SHARED) {
            let is_free = !now.is_within(self.memory, ring.newest);
            if ring.link == link && !is_free {
                index = own;
                break;
            }
            if is_free && index == SHARED {
                index = own;
            }
        }
        let Some(ring) = self.rings.get_mut(index) else {
            return;
        };
        if let Some(place) = self.sights.get_mut(index * SIGHTS + ring.next) {
            if now.is_within(self.memory, place.at) {
                ring.lossy_until = place.at.map(|at| at.after(self.memory));
            }
            *place = sight;
        }
        ring.next = (ring.next + 1) % SIGHTS;
        (ring.link, ring.newest) = (link, Some(now));
    }

    /// Whether the SYN of this connection came in by one of the ways back to its
    /// source and by no other link, as far as all others are remembered.
    #[inline(never)]
    pub fn came_back_way(
        &self,
        source: Endpoint,
        destination: Endpoint,
        ways: &[u32],
        now: Instant,
    ) -> bool {
        for (index, ring) in self.rings.iter().enumerate() {
            let is_others = index == SHARED || !is_among(ways, ring.link);
            if is_others && !now.is_past(ring.lossy_until) {
                return false;
            }
        }
        let connection = self.fingerprint(source, destination);
        let mut tries = TRIES;
        for seen in &self.sights {
            let is_it = seen.connection == connection && now.is_within(self.window, seen.at);
            if is_it && is_among(ways, seen.link) && tries > 0 {
                tries -= 1;
                let mut others = self.sights.iter();
                let is_others = |other: &Sight| {
                    (other.handshake == seen.handshake || other.client == seen.client)
                        && !is_among(ways, other.link)
                        && now.is_within(self.memory, other.at)
                };
                if !others.any(is_others) {
                    return true;
                }
            }
        }
        false
    }

    /// A number that nobody can aim at.
    pub fn fingerprint(&self, source: Endpoint, destination: Endpoint) -> u64 {
        self.hash_key.hash_ends(&source, &destination)
    }

    fn of_source(&self, address: IpAddr, number: u64) -> u64 {
        self.hash_key.hash(&words(address), number)
    }
}

#[inline(never)]
fn is_among(ways: &[u32], link: u32) -> bool {
    ways.contains(&link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    const WINDOW: Duration = Duration::from_secs(60);
    const NOW: Instant = Instant::from_secs(10_000);
    const UPLINK: u32 = 2;
    const BRIDGE: u32 = 3;

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text.as_bytes()).unwrap()
    }

    struct Bench {
        sights: Box<Sights>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let mut sights = crate::testing::boxed(Sights::new);
            sights.configure(HashKey { k0: 1, k1: 2 }, WINDOW);
            Self { sights, now: NOW }
        }

        fn syn(&mut self, source: &str, destination: &str, sequence: u32, link: u32) {
            let (source, destination) = (endpoint(source), endpoint(destination));
            self.sights
                .note(source, destination, sequence, link, self.now);
        }

        fn seconds(&mut self, seconds: u64) {
            self.now = self.now.after(Duration::from_secs(seconds));
        }

        fn judge(&self, source: &str, destination: &str, ways: &[u32]) -> bool {
            let (source, destination) = (endpoint(source), endpoint(destination));
            self.sights
                .came_back_way(source, destination, ways, self.now)
        }
    }

    const SCANNER: &str = "203.0.113.9:50001";
    const SERVICE: &str = "198.51.100.1:8080";

    #[test]
    fn one_syn_by_the_way_back_suffices() {
        for (source, destination) in [
            (SCANNER, SERVICE),
            ("[2001:db8::9]:50001", "[2001:db8:5::1]:8080"),
        ] {
            let mut bench = Bench::new();
            assert!(!bench.judge(source, destination, &[UPLINK]));
            bench.syn(source, destination, 7, UPLINK);
            assert!(bench.judge(source, destination, &[UPLINK]));
            assert!(bench.judge(source, destination, &[9, UPLINK]));
            assert!(!bench.judge(source, destination, &[BRIDGE]));
            assert!(!bench.judge(source, destination, &[]));
        }
    }

    /// Each part of the addresses and ports counts.
    #[test]
    fn a_syn_of_another_connection_is_none() {
        let mut bench = Bench::new();
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        for (source, destination) in [
            ("203.0.113.8:50001", SERVICE),
            ("203.0.113.9:50002", SERVICE),
            (SCANNER, "198.51.100.2:8080"),
            (SCANNER, "198.51.100.1:8081"),
        ] {
            assert!(!bench.judge(source, destination, &[UPLINK]), "{source}");
        }
    }

    #[test]
    fn what_comes_by_another_link_too_is_forged() {
        // The other one may come first, and ask for something else.
        for (destination, is_first) in [
            (SERVICE, true),
            (SERVICE, false),
            ("192.0.2.7:9", true),
            ("192.0.2.7:9", false),
        ] {
            let mut bench = Bench::new();
            if is_first {
                bench.syn("203.0.113.9:9", destination, 7, BRIDGE);
            }
            bench.syn(SCANNER, SERVICE, 7, UPLINK);
            if !is_first {
                bench.syn("203.0.113.9:9", destination, 7, BRIDGE);
            }
            assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
            // Two ways back are one.
            assert!(bench.judge(SCANNER, SERVICE, &[UPLINK, BRIDGE]));
        }
    }

    /// Another port and sequence number is another SYN, and so is another
    /// source's.
    #[test]
    fn others_by_other_links_do_not_matter() {
        let mut bench = Bench::new();
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        bench.syn("203.0.113.9:50002", SERVICE, 8, BRIDGE);
        bench.syn("203.0.113.8:50001", SERVICE, 7, BRIDGE);
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
    }

    /// What turns a SYN round may number it anew.
    #[test]
    fn the_same_port_by_another_link_is_the_same_client() {
        let mut bench = Bench::new();
        bench.syn(SCANNER, "192.0.2.7:9", 8, BRIDGE);
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
    }

    #[test]
    fn one_of_several_syns_suffices() {
        let mut bench = Bench::new();
        for sequence in 0..TRIES as u32 {
            bench.syn(SCANNER, SERVICE, sequence, UPLINK);
            if sequence < TRIES as u32 - 1 {
                bench.syn("203.0.113.9:9", SERVICE, sequence, BRIDGE);
            }
        }
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.syn("203.0.113.9:9", SERVICE, TRIES as u32 - 1, BRIDGE);
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
        // No more are looked at.
        bench.syn(SCANNER, SERVICE, TRIES as u32, UPLINK);
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
    }

    #[test]
    fn they_count_for_a_window() {
        let mut bench = Bench::new();
        bench.syn(SCANNER, SERVICE, 7, BRIDGE);
        bench.seconds(1);
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        for _ in 0..59 {
            bench.seconds(1);
            assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
        }
        bench.seconds(9);
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.seconds(1);
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.seconds(58);
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.seconds(1);
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
    }

    /// What floods another link leaves nothing sure for that long, what floods the
    /// way back takes what came before.
    #[test]
    fn floods() {
        let mut bench = Bench::new();
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        for sequence in 0..=SIGHTS as u32 {
            assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]), "{sequence}");
            bench.syn("192.0.2.7:9", SERVICE, sequence, BRIDGE);
        }
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.seconds(69);
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.seconds(1);
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
        for sequence in 0..SIGHTS as u32 {
            bench.syn("192.0.2.7:9", SERVICE, sequence, UPLINK);
        }
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
    }

    /// Three links have rings of their own until they are quiet for a window; the
    /// others share one, which is complete for nobody once it overflows.
    #[test]
    fn many_links() {
        let mut bench = Bench::new();
        let others: [u32; SHARED] = core::array::from_fn(|index| 10 + index as u32);
        for link in others {
            bench.syn("192.0.2.7:9", SERVICE, 1, link);
        }
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
        for sequence in 0..SIGHTS as u32 {
            bench.syn("192.0.2.8:9", SERVICE, sequence, UPLINK);
        }
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        assert!(!bench.judge(SCANNER, SERVICE, &[UPLINK]));
        bench.seconds(70);
        for sequence in 0..=SIGHTS as u32 {
            bench.syn("192.0.2.8:9", SERVICE, sequence, UPLINK);
        }
        bench.syn(SCANNER, SERVICE, 7, UPLINK);
        assert!(bench.judge(SCANNER, SERVICE, &[UPLINK]));
    }
}
