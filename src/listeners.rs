//! Who listens: which local ports are services, and which may be gone in a
//! moment.
//!
//! Ports that are listened on at every address have a place each, however many
//! there are: bits, and what is known of those that are new or went. The table
//! holds listeners of one address.

use crate::address::Endpoint;
use crate::limits::{LISTENER_AGE, MEMORY, SERVICE_AGE};
use crate::table::{Blank, Full, HashKey, Key, Slot, Table};
use crate::time::{Instant, nearest, order};

/// What a local port is to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// No listener is known there.
    Unknown,
    /// A socket listens, perhaps for one connection only: passive FTP, RPC
    /// callbacks.
    New,
    /// A socket listens at every address, but this address is not known to be
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
    first_seen: Option<Instant>,
    /// What came before then it can't have accepted: the last reading that did
    /// not show it, or, where that showed another socket there, the first that
    /// did.
    absent_at: Option<Instant>,
}

/// What is known of one endpoint.
#[derive(Clone, Copy)]
struct Listener {
    /// Several sockets may share it (SO_REUSEPORT, IPv4 beside IPv6); of more
    /// than two those that were there first are known.
    sockets: [Shown; 2],
    /// The number of the reading that showed any of them last; 0 for none.
    reading: u32,
    last_seen: Option<Instant>,
    /// When one that is old stood last.
    last_old: Option<Instant>,
}

impl Blank for Listener {
    const BLANK: Self = Self {
        sockets: [Shown {
            inode: 0,
            reading: 0,
            first_seen: None,
            absent_at: None,
        }; 2],
        reading: 0,
        last_seen: None,
        last_old: None,
    };
}

impl Listener {
    /// A reading shows one of its sockets; the one before was at `last_reading`.
    /// Whether that makes a service of it.
    #[inline(never)]
    fn stand(
        &mut self,
        inode: u32,
        reading: u32,
        last_reading: Option<Instant>,
        now: Instant,
    ) -> bool {
        let mut takes_over = self.reading != 0 && self.reading != reading;
        if order(self.last_seen) < order(last_reading) {
            // Whatever stood here went meanwhile.
            self.sockets = Self::BLANK.sockets;
            takes_over = false;
        }
        (self.reading, self.last_seen) = (reading, Some(now));
        let mut sockets = self.sockets.iter_mut();
        if let Some(socket) = sockets.find(|socket| socket.inode == inode) {
            socket.reading = reading;
        } else if let Some(place) = self.longest_gone() {
            *place = Shown {
                inode,
                reading,
                first_seen: Some(now),
                absent_at: if takes_over { Some(now) } else { last_reading },
            };
        }
        self.is_old() || self.is_remembered(now)
    }

    /// The place of the socket that was shown longest ago, if that went.
    fn longest_gone(&mut self) -> Option<&mut Shown> {
        let [one, other] = &mut self.sockets;
        let oldest = if other.reading < one.reading {
            other
        } else {
            one
        };
        (oldest.reading != self.reading).then_some(oldest)
    }

    /// Since when one of the sockets stands that the last reading showed and
    /// that can have accepted a connection seen first at `connected`, where that
    /// matters: the reading that did not show it was before that.
    fn stands_since(&self, connected: Option<Instant>) -> Option<Instant> {
        let mut since = None;
        for socket in &self.sockets {
            let is_earlier = connected.is_none_or(|at| order(socket.absent_at) < at.as_nanos());
            if self.reading != 0 && socket.reading == self.reading && is_earlier {
                since = nearest(since, socket.first_seen);
            }
        }
        since
    }

    /// Whether readings showed one of its sockets for long.
    #[inline(never)]
    fn is_old(&self) -> bool {
        let times = self.last_seen.zip(self.stands_since(None));
        times.is_some_and(|(last_seen, since)| last_seen.since(since) >= LISTENER_AGE)
    }

    /// Whether one that was old stood here less than ten minutes ago.
    fn is_remembered(&self, now: Instant) -> bool {
        now.is_within(MEMORY, self.last_old)
    }
}

impl Blank for Endpoint {
    const BLANK: Self = Endpoint::BLANK;
}

impl Key for Endpoint {
    fn hash(&self, key: &HashKey) -> u32 {
        key.hash_address(self.address, self.port)
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
#[repr(C)]
pub struct Listeners<const N: usize, const I: usize> {
    local_port_range: PortRange,
    reading: u32,
    /// When the last whole reading was.
    last_reading: Option<Instant>,
    first_reading: Option<Instant>,
    evictions: u64,
    has_unknown: bool,
    table: Table<Endpoint, Listener, N, I>,
    wildcard: [Ports; 65_536 / 32],
    /// Of each port, while it is new, and once it went.
    wildcard_listeners: [Listener; 65_536],
}

impl<const N: usize, const I: usize> Listeners<N, I> {
    /// No listeners; all bytes zero.
    pub const fn new() -> Self {
        Self {
            local_port_range: PortRange { low: 0, high: 0 },
            reading: 0,
            last_reading: None,
            first_reading: None,
            evictions: 0,
            has_unknown: false,
            table: Table::new(),
            wildcard: [Ports {
                listening: 0,
                services: 0,
            }; 65_536 / 32],
            wildcard_listeners: [Listener::BLANK; 65_536],
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
    #[inline(never)]
    pub fn listen(&mut self, local: &Endpoint, inode: u32, now: Instant) {
        if local.address.is_unspecified() {
            return self.listen_everywhere(local.port, inode, now);
        }
        let (slot, mut is_service) = match self.table.find(local) {
            Some(slot) => (slot, self.table.class(slot) == Some(STANDING)),
            None => {
                let Ok(slot) = self.add(local) else {
                    self.has_unknown = true;
                    return;
                };
                let was_service = self.is_wildcard_service(local.port, now);
                (slot, self.last_reading.is_none() || was_service)
            }
        };
        let (reading, last_reading) = (self.reading, self.last_reading);
        if let Some(listener) = self.table.value_mut(slot) {
            is_service |= listener.stand(inode, reading, last_reading, now);
        }
        let class = if is_service { STANDING } else { NEW };
        self.table.touch(slot, class);
    }

    /// At every address. What stood before the first look is a service, and so
    /// is what takes over from one that was old.
    fn listen_everywhere(&mut self, port: u16, inode: u32, now: Instant) {
        let (reading, last_reading) = (self.reading, self.last_reading);
        let Some((ports, listener)) = self.wildcard_mut(port) else {
            return;
        };
        ports.listening |= bit(port);
        if ports.services & bit(port) == 0
            && (last_reading.is_none() || listener.stand(inode, reading, last_reading, now))
        {
            ports.services |= bit(port);
        }
    }

    /// Whether a service stands or stood at every address of the port.
    fn is_wildcard_service(&self, port: u16, now: Instant) -> bool {
        let ports = self.wildcard.get(usize::from(port) / 32);
        let listener = self.wildcard_listeners.get(usize::from(port));
        ports.is_some_and(|ports| ports.services & bit(port) != 0)
            || listener.is_some_and(|listener| listener.is_remembered(now))
    }

    /// A place for a listener of one address. Only what is gone is evicted.
    fn add(&mut self, local: &Endpoint) -> Result<Slot, Full> {
        let result = self.table.insert(*local, Listener::BLANK, NEW);
        if result.is_ok() {
            return result;
        }
        self.evictions += 1;
        let oldest = self.table.oldest(GONE).ok_or(Full)?;
        self.table.remove(oldest);
        self.table.insert(*local, Listener::BLANK, NEW)
    }

    /// Ends a reading that saw every row: who was not seen is gone.
    pub fn end_reading(&mut self, now: Instant) {
        for class in STANDING..GONE {
            while let Some(slot) = self.oldest_unseen(class) {
                self.go(slot, now);
            }
        }
        self.forget_wildcards();
        while let Some(slot) = self.table.oldest(GONE) {
            let gone = self.table.value(slot);
            if gone.is_some_and(|listener| listener.is_remembered(now)) {
                break;
            }
            self.table.remove(slot);
        }
        self.first_reading.get_or_insert(now);
        self.last_reading = Some(now);
    }

    /// A listener of one address went; one that was old is remembered. A port
    /// that outgoing connections are given may serve one next.
    fn go(&mut self, slot: Slot, now: Instant) {
        let local = self.table.key(slot);
        let is_ephemeral = local.is_some_and(|local| self.is_ephemeral(local.port));
        let is_remembered = self.table.value_mut(slot).is_some_and(|listener| {
            if listener.is_old() {
                listener.last_old = listener.last_seen;
            }
            listener.is_remembered(now) && !is_ephemeral
        });
        if is_remembered {
            self.table.touch(slot, GONE);
        } else {
            self.table.remove(slot);
        }
    }

    fn oldest_unseen(&self, class: usize) -> Option<Slot> {
        let slot = self.table.oldest(class)?;
        let listener = self.table.value(slot)?;
        (listener.reading != self.reading).then_some(slot)
    }

    #[inline(never)]
    fn forget_wildcards(&mut self) {
        for index in 0..self.wildcard.len() {
            let Some(ports) = self.wildcard.get_mut(index) else {
                return;
            };
            let mut gone = ports.services & !ports.listening;
            if gone != 0 {
                ports.services &= ports.listening;
            }
            while gone != 0 {
                self.forget_wildcard((32 * index) as u16 | gone.trailing_zeros() as u16);
                gone &= gone - 1;
            }
        }
    }

    /// A service went that every reading but this one showed. What stood at
    /// the first one has no entry.
    fn forget_wildcard(&mut self, port: u16) {
        let (first_reading, last_reading) = (self.first_reading, self.last_reading);
        let is_ephemeral = self.is_ephemeral(port);
        let Some((_, listener)) = self.wildcard_mut(port) else {
            return;
        };
        let since = listener.stands_since(None).or(first_reading);
        let times = last_reading.zip(since);
        let is_old = times.is_some_and(|(last, since)| last.since(since) >= LISTENER_AGE);
        if is_old && !is_ephemeral {
            listener.last_old = last_reading;
        }
    }

    /// What is known of a local port: by the reading that goes on, or of a
    /// connection seen at `seen`. Whether the address is the host's own is
    /// asked only where it matters. Only a listener of every address leaves
    /// sockets without one when they are aborted (net/ipv4/tcp.c,
    /// tcp_disconnect).
    pub fn port(&self, local: &Endpoint, is_own: &dyn Fn() -> bool, seen: Option<Instant>) -> Port {
        let is_any = local.address.is_unspecified();
        let bound = if is_any {
            Port::Unknown
        } else {
            self.in_table(local, seen)
        };
        match (bound, self.wildcard(local.port, seen)) {
            (Port::Service, _) | (_, Port::Unknown) => bound,
            (_, wildcard) if is_any || is_own() => wildcard,
            (Port::Unknown, _) => Port::Foreign,
            _ => bound,
        }
    }

    /// A connection was seen first at `connected` and waits since then or
    /// later. A listener that can have accepted it and outlived it, as the last
    /// reading shows, is a service from now on; else when a reading may show
    /// that, if one may.
    pub fn outlives(
        &mut self,
        local: &Endpoint,
        connected: Instant,
        since: Instant,
    ) -> Result<(), Option<Instant>> {
        let slot = self.table.find(local);
        let slot = slot.filter(|slot| self.table.class(*slot) == Some(NEW));
        let in_table = slot.and_then(|slot| self.table.value(slot));
        let everywhere = self.wildcard_listeners.get(usize::from(local.port));
        let listener = in_table.or(everywhere).ok_or(None)?;
        let stands_since = listener.stands_since(Some(connected)).ok_or(None)?;
        let last_seen = listener.last_seen.ok_or(None)?;
        let due = stands_since.max(since).after(SERVICE_AGE);
        if last_seen < due {
            return Err(Some(due));
        }
        if listener.reading != self.reading {
            return Err(Some(last_seen.after(SERVICE_AGE)));
        }
        if let Some(slot) = slot {
            self.table.touch(slot, STANDING);
        } else if let Some((ports, _)) = self.wildcard_mut(local.port) {
            ports.services |= bit(local.port);
        }
        Ok(())
    }

    fn wildcard(&self, port: u16, seen: Option<Instant>) -> Port {
        let Some(ports) = self.wildcard.get(usize::from(port) / 32) else {
            return Port::Unknown;
        };
        let stands = ports.listening & bit(port) != 0;
        if ports.services & bit(port) != 0 {
            self.service(port, stands, seen)
        } else if stands {
            Port::New
        } else {
            Port::Unknown
        }
    }

    fn in_table(&self, local: &Endpoint, seen: Option<Instant>) -> Port {
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
            STANDING => self.service(local.port, stands, seen),
            _ => Port::Unknown,
        }
    }

    /// A service that the last whole reading showed. Where outgoing connections
    /// are given its port it may have gone since then, and serve one by now:
    /// only a reading of the same time or later shows it.
    fn service(&self, port: u16, stands: bool, seen: Option<Instant>) -> Port {
        if !self.is_ephemeral(port) {
            return Port::Service;
        }
        match seen {
            None if stands => Port::Service,
            None => Port::Unknown,
            Some(seen) if seen.as_nanos() <= order(self.last_reading) => Port::Service,
            Some(_) => Port::New,
        }
    }

    /// The port's places in the maps.
    fn wildcard_mut(&mut self, port: u16) -> Option<(&mut Ports, &mut Listener)> {
        let port = usize::from(port);
        let ports = self.wildcard.get_mut(port / 32)?;
        Some((ports, self.wildcard_listeners.get_mut(port)?))
    }

    /// Entries of the table.
    pub fn entries(&self) -> usize {
        self.table.len()
    }

    /// How often an entry of the full table was evicted or refused so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Whether a listener of one address ever was refused: it listens,
    /// unknown to us.
    pub fn has_unknown(&self) -> bool {
        self.has_unknown
    }
}

const fn bit(port: u16) -> u32 {
    1 << (port % 32)
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
        let mut listeners = crate::testing::boxed(Small::new);
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
            listeners.listen(&local(address), *inode, at(second));
        }
        listeners.end_reading(at(second));
    }

    /// What is known of a connection seen in that second.
    fn port(listeners: &Small, text: &str, second: u64) -> Port {
        listeners.port(&local(text), &|| true, Some(at(second)))
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
            for (second, expected) in [(2, Port::New), (1_201, Port::New), (1_202, Port::Service)] {
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
            let outlives =
                |listeners: &mut Small, second| listeners.outlives(&asked, at(second), at(second));
            read(&mut listeners, 1, &[]);
            assert_eq!(outlives(&mut listeners, 1), Err(None));
            read(&mut listeners, 5, &[(address, 7)]);
            // The connection came before the reading, or after it.
            assert_eq!(outlives(&mut listeners, 4), Err(Some(at(6))));
            assert_eq!(outlives(&mut listeners, 8), Err(Some(at(9))));
            read(&mut listeners, 6, &[(address, 7)]);
            assert_eq!(outlives(&mut listeners, 8), Err(Some(at(9))));
            assert_eq!(port(&listeners, "10.0.0.1:80", 6), Port::New);
            assert_eq!(outlives(&mut listeners, 4), Ok(()));
            assert_eq!(port(&listeners, "10.0.0.1:80", 6), Port::Service);
        }
    }

    /// A reading saw the connection and not yet this socket, so another one
    /// accepted it.
    #[test]
    fn one_that_came_after_a_connection_proves_nothing_of_it() {
        for address in ["0.0.0.0:21100", "10.0.0.1:21100"] {
            let mut listeners = small();
            let asked = local("10.0.0.1:21100");
            read(&mut listeners, 1, &[]);
            read(&mut listeners, 3, &[]);
            for second in [5, 7, 9] {
                read(&mut listeners, second, &[(address, 8)]);
                for connected in [2, 3] {
                    let result = listeners.outlives(&asked, at(connected), at(connected));
                    assert_eq!(result, Err(None), "{address} at {second}");
                }
            }
            assert_eq!(listeners.outlives(&asked, at(4), at(4)), Ok(()));
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
            let connected = at(second - 1);
            assert!(listeners.outlives(&asked, connected, connected).is_err());
        }
        read(&mut listeners, 60, &[]);
        assert_eq!(port(&listeners, "10.0.0.1:21100", 60), Port::Unknown);
        assert_eq!(listeners.entries(), 0, "nothing of it is remembered");
    }

    /// Within one interval it accepts, closes, and the next transfer draws the
    /// same port: who accepted is gone.
    #[test]
    fn one_that_takes_over_proves_nothing_of_earlier_connections() {
        for address in ["0.0.0.0:21100", "10.0.0.1:21100"] {
            let mut listeners = small();
            let asked = local("10.0.0.1:21100");
            read(&mut listeners, 1, &[]);
            read(&mut listeners, 3, &[(address, 7)]);
            for second in [5, 7, 9] {
                read(&mut listeners, second, &[(address, 8)]);
                let result = listeners.outlives(&asked, at(4), at(4));
                assert_eq!(result, Err(None), "{address} at {second}");
            }
            assert_eq!(listeners.outlives(&asked, at(6), at(6)), Ok(()));
        }
    }

    #[test]
    fn several_sockets_may_share_a_port() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let mut listeners = small();
            read(&mut listeners, 1, &[]);
            for second in [2, 700, 1_202] {
                let rows = order.map(|inode| ("0.0.0.0:80", inode));
                read(&mut listeners, second, &rows);
            }
            assert_eq!(port(&listeners, "10.0.0.1:80", 1_202), Port::Service);
            // One of them goes: it has been there for as long as the other.
            let mut listeners = small();
            read(&mut listeners, 1, &[]);
            read(&mut listeners, 2, &[("0.0.0.0:80", 1), ("0.0.0.0:80", 2)]);
            read(&mut listeners, 5, &[("0.0.0.0:80", 2)]);
            read(&mut listeners, 1_201, &[("0.0.0.0:80", 2)]);
            assert_eq!(port(&listeners, "10.0.0.1:80", 1_201), Port::New);
            read(&mut listeners, 1_202, &[("0.0.0.0:80", 2)]);
            assert_eq!(port(&listeners, "10.0.0.1:80", 1_202), Port::Service);
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
            // How long it stood, when it comes again, and what it is then.
            for (stood, comes, expected) in [
                (1_201, 1_700, Port::Service),
                (1_201, 1_801, Port::New),
                (1_200, 1_700, Port::New),
            ] {
                let mut listeners = small();
                read(&mut listeners, 1, &[(before, 7)]);
                read(&mut listeners, stood, &[(before, 7)]);
                read(&mut listeners, 1_600, &[]);
                // No listener: such a connection went out from here.
                let gone = port(&listeners, "10.0.0.1:80", 1_600);
                assert_eq!(gone, Port::Unknown, "{before}");
                read(&mut listeners, comes, &[(after, 8)]);
                assert_eq!(port(&listeners, "10.0.0.1:80", comes), expected, "{after}");
            }
        }
        // Not where outgoing connections are given the port.
        for address in ["0.0.0.0:40000", "10.0.0.1:40000"] {
            let mut listeners = small();
            read(&mut listeners, 1, &[(address, 7)]);
            read(&mut listeners, 1_500, &[(address, 7)]);
            read(&mut listeners, 1_501, &[]);
            assert_eq!(port(&listeners, "10.0.0.1:40000", 1_501), Port::Unknown);
            read(&mut listeners, 1_502, &[(address, 8)]);
            assert_eq!(port(&listeners, "10.0.0.1:40000", 1_502), Port::New);
        }
    }

    /// It may have stopped since the last reading.
    #[test]
    fn where_connections_go_out_from_only_a_later_reading_shows_a_service() {
        for address in ["0.0.0.0:40000", "10.0.0.1:40000"] {
            let mut listeners = small();
            read(&mut listeners, 1, &[(address, 7)]);
            assert_eq!(port(&listeners, "10.0.0.1:40000", 2), Port::New);
            let row = |listeners: &Small| listeners.port(&local("10.0.0.1:40000"), &|| true, None);
            listeners.begin_reading();
            assert_eq!(row(&listeners), Port::Unknown, "not shown");
            listeners.listen(&local(address), 7, at(3));
            assert_eq!(row(&listeners), Port::Service);
            listeners.end_reading(at(3));
            assert_eq!(port(&listeners, "10.0.0.1:40000", 2), Port::Service);
            read(&mut listeners, 4, &[]);
            assert_eq!(port(&listeners, "10.0.0.1:40000", 3), Port::Unknown);
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
        let foreign = |text: &str| listeners.port(&local(text), &|| false, Some(at(2)));
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
                    port: number,
                    ..Endpoint::BLANK
                };
                listeners.listen(&local, number.into(), at(second));
            }
            listeners.end_reading(at(second));
        }
        for number in 1..=u16::MAX {
            let text = std::format!("10.0.0.1:{number}");
            assert_eq!(port(&listeners, &text, 2), Port::Service);
        }
        assert_eq!((listeners.entries(), listeners.evictions()), (0, 0));
        // All go at once, and are remembered, but for those in the range.
        read(&mut listeners, 1_500, &[]);
        let rows = [("0.0.0.0:65535", 1), ("0.0.0.0:40000", 2)];
        read(&mut listeners, 1_501, &rows);
        assert_eq!(port(&listeners, "10.0.0.1:65535", 1_501), Port::New);
        assert_eq!((listeners.entries(), listeners.evictions()), (0, 0));
        assert!(!listeners.has_unknown());
    }

    /// However full the table is of listeners of one address.
    #[test]
    fn wildcard_listeners_are_new_beside_a_full_table() {
        let mut listeners = small();
        let addresses: std::vec::Vec<_> = (1..=6)
            .map(|number| std::format!("127.0.0.{number}:80"))
            .collect();
        let mut rows: std::vec::Vec<_> = addresses
            .iter()
            .map(|address| (address.as_str(), 7))
            .collect();
        read(&mut listeners, 1, &rows);
        rows.push(("0.0.0.0:22", 8));
        read(&mut listeners, 2, &rows);
        assert_eq!(port(&listeners, "10.0.0.1:22", 2), Port::New);
        read(&mut listeners, 4, &rows);
        let asked = local("10.0.0.1:22");
        assert_eq!(listeners.outlives(&asked, at(3), at(3)), Ok(()));
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
