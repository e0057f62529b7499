//! Who listens: which local ports are services, and which may be gone in a
//! moment.
//!
//! Ports that are listened on at every address stand in two bit maps, however
//! many there are. The table holds what needs an address, an inode or a time:
//! listeners of one address, those that are new, and services that went.

use core::net::IpAddr;

use crate::address::{Endpoint, UNSPECIFIED};
use crate::limits::{LISTENER_AGE, MEMORY, SERVICE_AGE};
use crate::table::{Blank, Full, HashKey, Key, Slot, Table};
use crate::time::Instant;

/// What a local port is to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Nobody is known to listen there.
    Unknown,
    /// Somebody listens, perhaps for one connection only: passive FTP, RPC
    /// callbacks.
    New,
    /// Somebody listens at every address, but this address is not known to be
    /// one of the host's: a proxy took the connection (TPROXY), or the address
    /// just moved here.
    Foreign,
    /// A service: a connection to it is evidence.
    Service,
}

/// The ports that outgoing connections are given, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub low: u16,
    /// The highest.
    pub high: u16,
}

impl PortRange {
    /// Whether outgoing connections are given `port`.
    pub fn contains(self, port: u16) -> bool {
        port >= self.low && port <= self.high
    }
}

/// A listening socket, as readings showed it.
#[derive(Clone, Copy)]
struct Shown {
    inode: u32,
    /// The number of the reading that showed it last.
    reading: u32,
    first_seen: Instant,
}

/// What the table knows of one endpoint.
#[derive(Clone, Copy)]
struct Listener {
    /// Several sockets may share it (SO_REUSEPORT, IPv4 beside IPv6); of more
    /// than two those that were there first are known.
    sockets: [Shown; 2],
    /// The number of the reading that showed any of them last.
    reading: u32,
    last_seen: Instant,
}

impl Blank for Listener {
    const BLANK: Self = Self {
        sockets: [Shown {
            inode: 0,
            reading: 0,
            first_seen: Instant::BOOT,
        }; 2],
        reading: 0,
        last_seen: Instant::BOOT,
    };
}

impl Listener {
    /// A reading shows one of its sockets.
    fn stand(&mut self, inode: u32, reading: u32, now: Instant) {
        (self.reading, self.last_seen) = (reading, now);
        let mut sockets = self.sockets.iter_mut();
        if let Some(socket) = sockets.find(|socket| socket.inode == inode) {
            socket.reading = reading;
            return;
        }
        let gone = self.sockets.iter_mut();
        let gone = gone.filter(|socket| socket.reading != reading);
        if let Some(place) = gone.min_by_key(|socket| socket.reading) {
            *place = Shown {
                inode,
                reading,
                first_seen: now,
            };
        }
    }

    /// Since when one of the sockets stands that the last reading showed.
    fn stands_since(&self) -> Instant {
        let standing = self.sockets.iter();
        let standing = standing.filter(|socket| socket.reading == self.reading);
        let first_seen = standing.map(|socket| socket.first_seen).min();
        first_seen.unwrap_or(self.last_seen)
    }

    /// Whether readings showed one of its sockets for long.
    fn is_old(&self) -> bool {
        self.last_seen.since(self.stands_since()) >= LISTENER_AGE
    }
}

impl Blank for Endpoint {
    const BLANK: Self = Endpoint::BLANK;
}

impl Key for Endpoint {
    fn hash(&self, key: HashKey) -> u64 {
        match self.address {
            IpAddr::V4(v4) => key.hash(&[u64::from(v4.to_bits()) << 16 | u64::from(self.port)]),
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                key.hash(&[(bits >> 64) as u64, bits as u64, u64::from(self.port)])
            }
        }
    }
}

/// Services at one address, standing.
const STANDING: usize = 0;
/// Listeners that are no services yet.
const NEW: usize = 1;
/// Services that went.
const GONE: usize = 2;

/// 32 ports that are listened on at every address.
#[derive(Clone, Copy)]
struct Ports {
    /// Shown by the reading that is going on, or by the last one.
    listening: u32,
    services: u32,
}

/// Every listener of the host; the table holds `N`, with an index of `I`.
pub struct Listeners<const N: usize, const I: usize> {
    local_port_range: PortRange,
    reading: u32,
    /// When the last whole reading was; BOOT before the first.
    last_reading: Instant,
    evictions: u64,
    refused: u64,
    has_unknown: bool,
    table: Table<Endpoint, Listener, N, I, 3>,
    wildcard: [Ports; 65_536 / 32],
}

impl<const N: usize, const I: usize> Listeners<N, I> {
    /// Nobody; all bytes zero.
    pub const fn new() -> Self {
        Self {
            local_port_range: PortRange { low: 0, high: 0 },
            reading: 0,
            last_reading: Instant::BOOT,
            evictions: 0,
            refused: 0,
            has_unknown: false,
            table: Table::new(),
            wildcard: [Ports {
                listening: 0,
                services: 0,
            }; 65_536 / 32],
        }
    }

    /// Sets the secret; call once, at start.
    pub fn set_hash_key(&mut self, hash_key: HashKey) {
        self.table.set_hash_key(hash_key);
    }

    /// Sets net.ipv4.ip_local_port_range: a port inside it that stopped
    /// listening may serve an outgoing connection next.
    pub fn set_local_port_range(&mut self, range: PortRange) {
        self.local_port_range = range;
    }

    /// Whether outgoing connections are given `port`.
    pub fn is_ephemeral(&self, port: u16) -> bool {
        self.local_port_range.contains(port)
    }

    /// Starts a reading. The kernel lists listeners before connections, so
    /// what the reading has not shown by then does not listen.
    pub fn begin_reading(&mut self) {
        self.reading = self.reading.wrapping_add(1);
        for ports in &mut self.wildcard {
            // Pages that nothing was written to take no memory.
            if ports.listening != 0 {
                ports.listening = 0;
            }
        }
    }

    /// Takes in one LISTEN row.
    pub fn listen(&mut self, local: Endpoint, inode: u32, now: Instant) {
        let local = of_any_family(local);
        if let Some(ports) = self.wildcard_mut(local) {
            ports.listening |= bit(local.port);
            if ports.services & bit(local.port) != 0 {
                return;
            }
        }
        let Some(slot) = self.table.find(&local) else {
            return self.appear(local, inode, now);
        };
        let (class, reading) = (self.table.class(slot), self.reading);
        let Some(listener) = self.table.value_mut(slot) else {
            return;
        };
        if class == Some(GONE) && now.since(listener.last_seen) >= MEMORY {
            self.table.remove(slot);
            return self.appear(local, inode, now);
        }
        listener.stand(inode, reading, now);
        if class != Some(NEW) || listener.is_old() {
            self.promote(slot, local);
        } else {
            self.table.touch(slot, NEW);
        }
    }

    /// A listener that the table does not know. What stood before anybody
    /// looked is a service, and so is what takes over from a service.
    fn appear(&mut self, local: Endpoint, inode: u32, now: Instant) {
        let was_service = self.is_wildcard_service(local.port, now);
        let is_service = self.last_reading == Instant::BOOT || was_service;
        if is_service && let Some(ports) = self.wildcard_mut(local) {
            ports.services |= bit(local.port);
            return;
        }
        let mut listener = Listener::BLANK;
        listener.stand(inode, self.reading, now);
        let class = if is_service { STANDING } else { NEW };
        if self.add(local, listener, class) == Err(Full) {
            self.refused += 1;
            self.has_unknown |= local.address != UNSPECIFIED;
        }
    }

    /// Only what is gone gives way.
    fn add(&mut self, local: Endpoint, listener: Listener, class: usize) -> Result<Slot, Full> {
        let result = self.table.insert(local, listener, class);
        if result.is_ok() {
            return result;
        }
        let oldest = self.table.oldest(GONE).ok_or(Full)?;
        self.evictions += 1;
        self.table.remove(oldest);
        self.table.insert(local, listener, class)
    }

    /// The listener is a service from now on.
    fn promote(&mut self, slot: Slot, local: Endpoint) {
        if let Some(ports) = self.wildcard_mut(local) {
            ports.services |= bit(local.port);
            self.table.remove(slot);
        } else {
            self.table.touch(slot, STANDING);
        }
    }

    /// Ends a reading that saw every row: who was not seen is gone.
    pub fn end_reading(&mut self, now: Instant) {
        while let Some((slot, _)) = self.oldest_unseen(NEW) {
            self.table.remove(slot);
        }
        while let Some((slot, local)) = self.oldest_unseen(STANDING) {
            if self.is_ephemeral(local.port) {
                self.table.remove(slot);
            } else {
                self.table.touch(slot, GONE);
            }
        }
        self.forget_wildcards();
        while let Some(slot) = self.table.oldest(GONE) {
            let gone = self.table.value(slot);
            if gone.is_none_or(|listener| now.since(listener.last_seen) < MEMORY) {
                break;
            }
            self.table.remove(slot);
        }
        self.last_reading = now;
    }

    fn oldest_unseen(&self, class: usize) -> Option<(Slot, Endpoint)> {
        let slot = self.table.oldest(class)?;
        let listener = self.table.value(slot)?;
        let local = self.table.key(slot)?;
        (listener.reading != self.reading).then_some((slot, *local))
    }

    fn forget_wildcards(&mut self) {
        for (index, first_port) in (0..).zip((0..=u16::MAX).step_by(32)) {
            let Some(ports) = self.wildcard.get_mut(index) else {
                return;
            };
            let mut gone = ports.services & !ports.listening;
            if gone != 0 {
                ports.services &= ports.listening;
            }
            while gone != 0 {
                self.forget_wildcard(first_port | gone.trailing_zeros() as u16);
                gone &= gone - 1;
            }
        }
    }

    /// A service went that every reading but this one showed.
    fn forget_wildcard(&mut self, port: u16) {
        if self.is_ephemeral(port) {
            return;
        }
        let local = Endpoint {
            address: UNSPECIFIED,
            port,
        };
        let listener = Listener {
            last_seen: self.last_reading,
            ..Listener::BLANK
        };
        self.evictions += u64::from(self.add(local, listener, GONE) == Err(Full));
    }

    /// What is known of a local port. Whether the address is the host's own is
    /// asked only where it matters. Only a listener of every address leaves
    /// sockets without one when they are aborted (net/ipv4/tcp.c,
    /// tcp_disconnect).
    pub fn port(&self, local: Endpoint, is_own: &dyn Fn() -> bool, now: Instant) -> Port {
        let local = of_any_family(local);
        let is_any = local.address == UNSPECIFIED;
        let bound = self.in_table(&local, now);
        match (bound, self.wildcard(local.port, now)) {
            (Port::Service, _) | (_, Port::Unknown) => bound,
            (_, wildcard) if is_any || is_own() => wildcard,
            (Port::Unknown, _) => Port::Foreign,
            _ => bound,
        }
    }

    /// A connection was made at `since`. A listener that outlived it, as the
    /// last reading shows, is a service from now on; else when a reading may
    /// show that.
    pub fn outlives(&mut self, local: Endpoint, since: Instant) -> Result<(), Instant> {
        let any = Endpoint {
            address: UNSPECIFIED,
            port: local.port,
        };
        let local = of_any_family(local);
        let places = [local, any].map(|local| Some((self.table.find(&local)?, local)));
        let Some((slot, local)) = places.into_iter().flatten().next() else {
            return Err(Instant::NEVER);
        };
        let Some(listener) = self.table.value(slot) else {
            return Err(Instant::NEVER);
        };
        let due = listener.stands_since().max(since).after(SERVICE_AGE);
        if listener.last_seen < due {
            return Err(due);
        }
        if listener.reading != self.reading {
            return Err(listener.last_seen.after(SERVICE_AGE));
        }
        self.promote(slot, local);
        Ok(())
    }

    fn wildcard(&self, port: u16, now: Instant) -> Port {
        let ports = self.wildcard.get(usize::from(port) / 32);
        if self.is_wildcard_service(port, now) {
            Port::Service
        } else if ports.is_some_and(|ports| ports.listening & bit(port) != 0) {
            Port::New
        } else {
            Port::Unknown
        }
    }

    fn is_wildcard_service(&self, port: u16, now: Instant) -> bool {
        let any = Endpoint {
            address: UNSPECIFIED,
            port,
        };
        let Some(ports) = self.wildcard.get(usize::from(port) / 32) else {
            return false;
        };
        if ports.services & bit(port) == 0 {
            return self.in_table(&any, now) == Port::Service;
        }
        ports.listening & bit(port) != 0 || self.is_remembered(port, self.last_reading, now)
    }

    fn in_table(&self, local: &Endpoint, now: Instant) -> Port {
        let entry = self.table.find(local).and_then(|slot| {
            let listener = self.table.value(slot)?;
            Some((self.table.class(slot)?, listener))
        });
        let Some((class, listener)) = entry else {
            return Port::Unknown;
        };
        let stands = listener.reading == self.reading;
        match class {
            NEW if stands => Port::New,
            STANDING if stands => Port::Service,
            STANDING | GONE if self.is_remembered(local.port, listener.last_seen, now) => {
                Port::Service
            }
            _ => Port::Unknown,
        }
    }

    /// A port that outgoing connections are given may serve one next.
    fn is_remembered(&self, port: u16, last_seen: Instant, now: Instant) -> bool {
        !self.is_ephemeral(port) && now.since(last_seen) < MEMORY
    }

    /// The port's place in the maps, where `local` is any address.
    fn wildcard_mut(&mut self, local: Endpoint) -> Option<&mut Ports> {
        if local.address != UNSPECIFIED {
            return None;
        }
        self.wildcard.get_mut(usize::from(local.port) / 32)
    }

    /// Entries of the table.
    pub fn entries(&self) -> usize {
        self.table.len()
    }

    /// How often an entry of the full table was evicted or refused so far.
    pub fn evictions(&self) -> u64 {
        self.evictions + self.refused
    }

    /// Whether a listener of one address ever was refused: nobody knows that it
    /// listens. One of all addresses only becomes a service later.
    pub fn has_unknown(&self) -> bool {
        self.has_unknown
    }
}

const fn bit(port: u16) -> u32 {
    1 << (port % 32)
}

/// `::` takes IPv4 as well, unless its socket says otherwise, which rows do
/// not show (ipv6(7), IPV6_V6ONLY).
fn of_any_family(local: Endpoint) -> Endpoint {
    let address = if local.address.is_unspecified() {
        UNSPECIFIED
    } else {
        local.address
    };
    Endpoint { address, ..local }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Small = Listeners<4, 64>;

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(seconds)
    }

    fn local(text: &str) -> Endpoint {
        Endpoint::parse(text.as_bytes()).unwrap()
    }

    fn small() -> std::boxed::Box<Small> {
        let mut listeners = std::boxed::Box::new(Small::new());
        listeners.set_local_port_range(PortRange {
            low: 32_768,
            high: 60_999,
        });
        listeners
    }

    /// A reading at that second shows these listeners, by inode.
    fn read(listeners: &mut Small, second: u64, rows: &[(&str, u32)]) {
        listeners.begin_reading();
        for (address, inode) in rows {
            listeners.listen(local(address), *inode, at(second));
        }
        listeners.end_reading(at(second));
    }

    fn port(listeners: &Small, text: &str, second: u64) -> Port {
        listeners.port(local(text), &|| true, at(second))
    }

    #[test]
    fn what_stood_first_or_for_long_is_a_service() {
        for address in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80", "10.0.0.1:40000"] {
            let asked = if address.ends_with("80") {
                "10.0.0.1:80"
            } else {
                "10.0.0.1:40000"
            };
            let mut listeners = small();
            read(&mut listeners, 1, &[(address, 7)]);
            assert_eq!(port(&listeners, asked, 1), Port::Service, "{address}");
            let mut listeners = small();
            read(&mut listeners, 1, &[]);
            for (second, expected) in [(2, Port::New), (11, Port::New), (12, Port::Service)] {
                read(&mut listeners, second, &[(address, 7)]);
                assert_eq!(
                    port(&listeners, asked, second),
                    expected,
                    "{address} at {second}"
                );
            }
        }
    }

    #[test]
    fn one_that_outlives_a_connection_is_a_service() {
        for address in ["0.0.0.0:80", "10.0.0.1:80"] {
            let mut listeners = small();
            let asked = local("10.0.0.1:80");
            read(&mut listeners, 1, &[]);
            assert_eq!(listeners.outlives(asked, at(1)), Err(Instant::NEVER));
            read(&mut listeners, 5, &[(address, 7)]);
            // The connection came before the reading, or after it.
            assert_eq!(listeners.outlives(asked, at(4)), Err(at(6)));
            assert_eq!(listeners.outlives(asked, at(8)), Err(at(9)));
            read(&mut listeners, 6, &[(address, 7)]);
            assert_eq!(listeners.outlives(asked, at(8)), Err(at(9)));
            assert_eq!(port(&listeners, "10.0.0.1:80", 6), Port::New);
            assert_eq!(listeners.outlives(asked, at(4)), Ok(()));
            assert_eq!(port(&listeners, "10.0.0.1:80", 6), Port::Service);
        }
    }

    /// The port of a passive transfer is listened on again by another socket.
    #[test]
    fn another_socket_at_the_same_port_starts_anew() {
        let mut listeners = small();
        let asked = local("10.0.0.1:21100");
        read(&mut listeners, 1, &[]);
        for second in 2..60 {
            read(&mut listeners, second, &[("10.0.0.1:21100", second as u32)]);
            assert_eq!(port(&listeners, "10.0.0.1:21100", second), Port::New);
            assert!(listeners.outlives(asked, at(second - 1)).is_err());
        }
        read(&mut listeners, 60, &[]);
        assert_eq!(port(&listeners, "10.0.0.1:21100", 60), Port::Unknown);
        assert_eq!(listeners.entries(), 0, "nothing of it is remembered");
    }

    #[test]
    fn several_sockets_may_share_a_port() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let mut listeners = small();
            read(&mut listeners, 1, &[]);
            for second in [2, 7, 12] {
                let rows = order.map(|inode| ("0.0.0.0:80", inode));
                read(&mut listeners, second, &rows);
            }
            assert_eq!(port(&listeners, "10.0.0.1:80", 12), Port::Service);
            // One of them goes: it has been there for as long as the other.
            let mut listeners = small();
            read(&mut listeners, 1, &[]);
            read(&mut listeners, 2, &[("0.0.0.0:80", 1), ("0.0.0.0:80", 2)]);
            read(&mut listeners, 5, &[("0.0.0.0:80", 2)]);
            read(&mut listeners, 11, &[("0.0.0.0:80", 2)]);
            assert_eq!(port(&listeners, "10.0.0.1:80", 11), Port::New);
            read(&mut listeners, 12, &[("0.0.0.0:80", 2)]);
            assert_eq!(port(&listeners, "10.0.0.1:80", 12), Port::Service);
        }
    }

    #[test]
    fn a_restarted_service_is_one_at_once() {
        for (before, after) in [
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("0.0.0.0:80", "[::]:80"),
            ("0.0.0.0:80", "10.0.0.1:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            let mut listeners = small();
            read(&mut listeners, 1, &[(before, 7)]);
            read(&mut listeners, 100, &[]);
            read(&mut listeners, 500, &[(after, 8)]);
            assert_eq!(
                port(&listeners, "10.0.0.1:80", 2_000),
                Port::Service,
                "{after}"
            );
            let mut listeners = small();
            read(&mut listeners, 1, &[(before, 7)]);
            read(&mut listeners, 100, &[]);
            read(&mut listeners, 601, &[(after, 8)]);
            assert_eq!(port(&listeners, "10.0.0.1:80", 601), Port::New, "{after}");
        }
        // Not where outgoing connections are given the port.
        for address in ["0.0.0.0:40000", "10.0.0.1:40000"] {
            let mut listeners = small();
            read(&mut listeners, 1, &[(address, 7)]);
            read(&mut listeners, 2, &[]);
            assert_eq!(port(&listeners, "10.0.0.1:40000", 2), Port::Unknown);
            read(&mut listeners, 3, &[(address, 8)]);
            assert_eq!(port(&listeners, "10.0.0.1:40000", 3), Port::New);
        }
    }

    #[test]
    fn only_own_addresses_have_listeners_of_every_address() {
        let mut listeners = small();
        read(&mut listeners, 1, &[("0.0.0.0:80", 7), ("192.0.2.1:22", 8)]);
        read(
            &mut listeners,
            2,
            &[("0.0.0.0:80", 7), ("192.0.2.1:22", 8), ("[::]:81", 9)],
        );
        let foreign = |text: &str| listeners.port(local(text), &|| false, at(2));
        assert_eq!(foreign("192.0.2.1:80"), Port::Foreign);
        assert_eq!(foreign("192.0.2.1:81"), Port::Foreign);
        // ip_nonlocal_bind
        assert_eq!(foreign("192.0.2.1:22"), Port::Service);
        assert_eq!(foreign("192.0.2.1:23"), Port::Unknown);
        // A socket that lost its address.
        assert_eq!(foreign("0.0.0.0:80"), Port::Service);
        assert_eq!(foreign("[::]:81"), Port::New);
        assert_eq!(foreign("0.0.0.0:22"), Port::Unknown);
    }

    /// What stands is never pushed out.
    #[test]
    fn newcomers_find_no_place_in_a_full_table() {
        let mut listeners = small();
        let addresses: std::vec::Vec<_> = (1..=6)
            .map(|number| std::format!("10.0.0.{number}:80"))
            .collect();
        let rows: std::vec::Vec<_> = addresses
            .iter()
            .map(|address| (address.as_str(), 7))
            .collect();
        read(&mut listeners, 1, &rows[..4]);
        assert!(!listeners.has_unknown());
        for second in 2..5 {
            read(&mut listeners, second, &rows);
            for (number, (address, _)) in (0..).zip(&rows) {
                let expected = if number < 4 {
                    Port::Service
                } else {
                    Port::Unknown
                };
                assert_eq!(port(&listeners, address, second), expected, "{address}");
            }
        }
        assert!(listeners.has_unknown());
        assert_eq!((listeners.entries(), listeners.evictions()), (4, 6));
        // One goes: what is remembered of it makes room.
        read(&mut listeners, 5, &rows[1..]);
        read(&mut listeners, 6, &rows[1..]);
        assert_eq!(port(&listeners, addresses[4].as_str(), 6), Port::New);
        assert_eq!(port(&listeners, addresses[5].as_str(), 6), Port::Unknown);
    }

    /// Every port is listened on at every address.
    #[test]
    fn wildcard_listeners_need_no_place() {
        let mut listeners = small();
        for second in [1, 2] {
            listeners.begin_reading();
            for number in 1..=u16::MAX {
                let local = Endpoint {
                    address: UNSPECIFIED,
                    port: number,
                };
                listeners.listen(local, number.into(), at(second));
            }
            listeners.end_reading(at(second));
        }
        for number in 1..=u16::MAX {
            let text = std::format!("10.0.0.1:{number}");
            assert_eq!(port(&listeners, &text, 2), Port::Service);
        }
        assert_eq!((listeners.entries(), listeners.evictions()), (0, 0));
        // All go at once: as many are remembered as fit, and none in the range.
        read(&mut listeners, 3, &[]);
        assert_eq!(listeners.entries(), 4);
        assert_eq!(port(&listeners, "10.0.0.1:65535", 3), Port::Service);
        assert_eq!(port(&listeners, "10.0.0.1:40000", 3), Port::Unknown);
        assert!(listeners.evictions() > 30_000);
        assert!(!listeners.has_unknown());
    }

    #[test]
    fn a_reading_that_failed_forgets_no_service() {
        let mut listeners = small();
        read(&mut listeners, 1, &[("0.0.0.0:80", 7), ("10.0.0.1:22", 8)]);
        listeners.begin_reading();
        for text in ["10.0.0.1:80", "10.0.0.1:22"] {
            assert_eq!(port(&listeners, text, 2), Port::Service);
        }
        read(&mut listeners, 3, &[("0.0.0.0:80", 7), ("10.0.0.1:22", 8)]);
        for text in ["10.0.0.1:80", "10.0.0.1:22"] {
            assert_eq!(port(&listeners, text, 3 + 86_400), Port::Service);
        }
    }
}
