//! This reading against the last: which connections are new, which way they
//! go, and which are gone.

use core::net::{IpAddr, Ipv6Addr};

use crate::address::{Endpoint, UNSPECIFIED};
use crate::limits::MEMORY;
use crate::proc_net_tcp::{Socket, TcpState};
use crate::sock_diag::Handshake;
use crate::table::{Blank, Full, HashKey, Key, Slot, Table};
use crate::time::Instant;

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The peer connected to one of our listening ports.
    Inbound,
    /// We connected to the peer.
    Outbound,
}

/// What a row says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// Seen for the first time.
    Opened(Connection),
    /// Seen before, and still there.
    Standing(Connection),
    /// Seen in this very reading already: rows repeat under churn.
    Repeated,
    /// No connection that completed a handshake: a listener, a half-open or
    /// closed socket, a row without a peer.
    Other,
}

/// What is remembered of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who opened it; decided once.
    pub direction: Direction,
    /// When it was seen for the first time.
    pub first_seen: Instant,
    /// Whether it stood in a list.
    pub listed: bool,
    /// What was noted of its handshake before this row or event.
    pub handshake: Handshake,
    /// Where it is remembered, if it is.
    slot: Option<Slot>,
}

/// What a destroy event says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It opened and closed unseen.
    Unseen(Connection),
    /// It was seen before: this is its end, however late.
    Known(Connection),
    /// Nobody is known to listen on its port: one of ours to somewhere, or a
    /// port that a reading has to show first.
    Unknown,
}

#[derive(Clone, Copy)]
struct Memory {
    first_seen: Instant,
    vanished: Instant,
    /// The last non-zero inode: one connection's goes 0, N, 0 from accept
    /// queue over accepted socket to TIME_WAIT (net/ipv4/tcp_ipv4.c).
    inode: u32,
    /// The number of the reading that saw it last.
    reading: u32,
    inbound: bool,
    /// Its destroy event came: what still shows up is a TIME_WAIT remnant, or
    /// another connection.
    destroyed: bool,
    /// It stood in a list.
    listed: bool,
    handshake: Handshake,
}

impl Memory {
    fn connection(&self, slot: Slot) -> Connection {
        let direction = if self.inbound {
            Direction::Inbound
        } else {
            Direction::Outbound
        };
        Connection {
            direction,
            first_seen: self.first_seen,
            listed: self.listed,
            handshake: self.handshake,
            slot: Some(slot),
        }
    }
}

impl Blank for Memory {
    const BLANK: Self = Self {
        first_seen: Instant::BOOT,
        vanished: Instant::BOOT,
        inode: 0,
        reading: 0,
        inbound: false,
        destroyed: false,
        listed: false,
        handshake: Handshake::Unknown,
    };
}

#[derive(Clone, Copy)]
struct Listener {
    reading: u32,
    last_seen: Instant,
}

impl Blank for Listener {
    const BLANK: Self = Self {
        reading: 0,
        last_seen: Instant::BOOT,
    };
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

/// Rows of the reading that is going on, or of the last one.
const PRESENT: usize = 0;
/// Rows that are gone but remembered.
const VANISHED: usize = 1;

/// The ports that outgoing connections are given, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub low: u16,
    /// The highest.
    pub high: u16,
}

/// Every connection and listener of the host, as keyed fingerprints.
///
/// `N` connections with an index of `I`; `L` listeners with an index of `LI`.
pub struct Connections<const N: usize, const I: usize, const L: usize, const LI: usize> {
    hash_key: HashKey,
    reading: u32,
    local_port_range: PortRange,
    inbound_seen: u64,
    remembered: Table<u64, Memory, N, I, 2>,
    /// The connection that followed the one seen last in the reading before:
    /// the kernel walks its hash table in the same order each time.
    expected: Option<Slot>,
    listeners: Table<Endpoint, Listener, L, LI, 2>,
    evictions: u64,
    listener_evictions: u64,
}

impl<const N: usize, const I: usize, const L: usize, const LI: usize> Connections<N, I, L, LI> {
    /// Nothing seen yet; all bytes zero.
    pub const fn new() -> Self {
        Self {
            hash_key: HashKey { k0: 0, k1: 0 },
            reading: 0,
            local_port_range: PortRange { low: 0, high: 0 },
            inbound_seen: 0,
            remembered: Table::new(),
            expected: None,
            listeners: Table::new(),
            evictions: 0,
            listener_evictions: 0,
        }
    }

    /// Sets the secret; call once, at start.
    pub fn set_hash_key(&mut self, hash_key: HashKey) {
        self.hash_key = hash_key;
        self.remembered.set_hash_key(hash_key);
        self.listeners.set_hash_key(hash_key);
    }

    /// Sets net.ipv4.ip_local_port_range: a port inside it that stopped
    /// listening may serve an outgoing connection next.
    pub fn set_local_port_range(&mut self, range: PortRange) {
        self.local_port_range = range;
    }

    /// Starts a reading.
    pub fn begin_reading(&mut self) {
        self.reading = self.reading.wrapping_add(1);
        self.expected = self.remembered.oldest(PRESENT);
    }

    /// Ends a reading that saw every row: what was not seen is gone.
    pub fn end_reading(&mut self, now: Instant) {
        while let Some(slot) = self.remembered.oldest(PRESENT) {
            let Some(memory) = self.remembered.value_mut(slot) else {
                break;
            };
            if memory.reading == self.reading {
                break;
            }
            memory.vanished = now;
            if memory.destroyed {
                self.remembered.remove(slot);
            } else {
                self.remembered.touch(slot, VANISHED);
            }
        }
        while let Some(slot) = self.remembered.oldest(VANISHED) {
            let vanished = self
                .remembered
                .value(slot)
                .map_or(Instant::BOOT, |memory| memory.vanished);
            if now.since(vanished) < MEMORY {
                break;
            }
            self.remembered.remove(slot);
        }
        self.forget_listeners(now);
    }

    fn forget_listeners(&mut self, now: Instant) {
        while let Some(slot) = self.listeners.oldest(PRESENT) {
            if self
                .listeners
                .value(slot)
                .is_none_or(|listener| listener.reading == self.reading)
            {
                break;
            }
            self.listeners.touch(slot, VANISHED);
        }
        while let Some(slot) = self.listeners.oldest(VANISHED) {
            if self
                .listeners
                .value(slot)
                .is_none_or(|listener| now.since(listener.last_seen) < MEMORY)
            {
                break;
            }
            self.listeners.remove(slot);
        }
    }

    /// Takes in one row of the reading that is going on.
    pub fn observe(&mut self, socket: &Socket, now: Instant) -> Sighting {
        match socket.state {
            TcpState::Listen => {
                self.listen(socket.local, now);
                Sighting::Other
            }
            TcpState::SynSent | TcpState::SynRecv | TcpState::NewSynRecv | TcpState::Close => {
                Sighting::Other
            }
            TcpState::Established
            | TcpState::FinWait1
            | TcpState::FinWait2
            | TcpState::TimeWait
            | TcpState::CloseWait
            | TcpState::LastAck
            | TcpState::Closing => {
                if socket.remote.port == 0 || socket.remote.address.is_unspecified() {
                    return Sighting::Other;
                }
                let sighting = self.connection(socket, now);
                if let Sighting::Opened(connection) | Sighting::Standing(connection) = sighting
                    && connection.handshake != Handshake::Proven
                    && socket.state.proves_handshake()
                {
                    self.set_handshake(connection, Handshake::Proven);
                }
                sighting
            }
        }
    }

    fn connection(&mut self, socket: &Socket, now: Instant) -> Sighting {
        let fingerprint = self.fingerprint(socket.local, socket.remote);
        let Some(slot) = self.find(fingerprint) else {
            let direction = self.direction(socket.local, now);
            return Sighting::Opened(self.remember(fingerprint, direction, socket.inode, now));
        };
        let reading = self.reading;
        let Some(memory) = self.remembered.value_mut(slot) else {
            return Sighting::Other;
        };
        if memory.reading == reading && !memory.destroyed {
            // Whatever the inode says: the next reading shows what stands.
            return Sighting::Repeated;
        }
        memory.reading = reading;
        let is_other_inode = memory.inode != 0 && socket.inode != 0 && memory.inode != socket.inode;
        let renewed = is_other_inode || (memory.destroyed && !is_remnant(socket));
        if socket.inode != 0 {
            memory.inode = socket.inode;
        }
        let connection = memory.connection(slot);
        self.remembered.touch(slot, PRESENT);
        if renewed {
            let direction = self.direction(socket.local, now);
            Sighting::Opened(self.renew(slot, direction, now))
        } else {
            Sighting::Standing(connection)
        }
    }

    /// A right guess spares the way over the index, which is scattered memory.
    fn find(&mut self, fingerprint: u64) -> Option<Slot> {
        let guess = self
            .expected
            .filter(|slot| self.remembered.key(*slot) == Some(&fingerprint));
        let slot = guess.or_else(|| self.remembered.find(&fingerprint))?;
        self.expected = self.remembered.younger(slot);
        Some(slot)
    }

    /// Takes in a connection that a listener of ours accepted; `None` if it was
    /// seen before. Where the 4-tuple served another one whose end nobody told
    /// yet, this one is seen when it ends: each end is of one connection. So it
    /// is where the table is full of present ones: unremembered, it would count
    /// twice.
    pub fn accepted(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        now: Instant,
    ) -> Option<Connection> {
        let fingerprint = self.fingerprint(local, remote);
        let Some(slot) = self.remembered.find(&fingerprint) else {
            let has_room = self.remembered.len() < N || self.remembered.oldest(VANISHED).is_some();
            return has_room.then(|| self.remember(fingerprint, Direction::Inbound, 0, now));
        };
        let memory = self.remembered.value_mut(slot)?;
        if !memory.destroyed {
            return None;
        }
        memory.inode = 0;
        self.remembered.touch(slot, PRESENT);
        Some(self.renew(slot, Direction::Inbound, now))
    }

    /// Takes in a destroy event of a connection with both its ends known.
    pub fn ended(&mut self, local: Endpoint, remote: Endpoint, now: Instant) -> Ending {
        let fingerprint = self.fingerprint(local, remote);
        let Some(slot) = self.remembered.find(&fingerprint) else {
            if self.direction(local, now) == Direction::Outbound {
                return Ending::Unknown;
            }
            let connection = self.remember(fingerprint, Direction::Inbound, 0, now);
            self.set_destroyed(connection.slot);
            return Ending::Unseen(connection);
        };
        let is_vanished = self.remembered.class(slot) == Some(VANISHED);
        let Some(memory) = self.remembered.value_mut(slot) else {
            return Ending::Unknown;
        };
        if memory.destroyed {
            // The same 4-tuple served another connection meanwhile.
            memory.inode = 0;
            let direction = self.direction(local, now);
            let connection = self.renew(slot, direction, now);
            self.set_destroyed(Some(slot));
            return Ending::Unseen(connection);
        }
        let connection = memory.connection(slot);
        if is_vanished {
            self.remembered.remove(slot);
            return Ending::Known(Connection {
                slot: None,
                ..connection
            });
        }
        // Its row may stand on in TIME_WAIT: forgotten when it is gone.
        self.set_destroyed(Some(slot));
        Ending::Known(connection)
    }

    fn set_destroyed(&mut self, slot: Option<Slot>) {
        if let Some(memory) = self.memory_mut(slot) {
            memory.destroyed = true;
        }
    }

    /// Notes that the connection stood in a list.
    pub fn set_listed(&mut self, connection: Connection) {
        if let Some(memory) = self.memory_mut(connection.slot) {
            memory.listed = true;
        }
    }

    /// Notes what was found out about the connection's handshake.
    pub fn set_handshake(&mut self, connection: Connection, handshake: Handshake) {
        if let Some(memory) = self.memory_mut(connection.slot) {
            memory.handshake = handshake;
        }
    }

    fn memory_mut(&mut self, slot: Option<Slot>) -> Option<&mut Memory> {
        self.remembered.value_mut(slot?)
    }

    /// The same 4-tuple serves another connection.
    fn renew(&mut self, slot: Slot, direction: Direction, now: Instant) -> Connection {
        self.inbound_seen += u64::from(direction == Direction::Inbound);
        if let Some(memory) = self.remembered.value_mut(slot) {
            memory.first_seen = now;
            memory.inbound = direction == Direction::Inbound;
            memory.destroyed = false;
            memory.listed = false;
            memory.handshake = Handshake::Unknown;
        }
        Connection {
            direction,
            first_seen: now,
            listed: false,
            handshake: Handshake::Unknown,
            slot: Some(slot),
        }
    }

    fn remember(
        &mut self,
        fingerprint: u64,
        direction: Direction,
        inode: u32,
        now: Instant,
    ) -> Connection {
        self.inbound_seen += u64::from(direction == Direction::Inbound);
        let memory = Memory {
            first_seen: now,
            vanished: now,
            inode,
            reading: self.reading,
            inbound: direction == Direction::Inbound,
            destroyed: false,
            listed: false,
            handshake: Handshake::Unknown,
        };
        let mut slot = self.remembered.insert(fingerprint, memory, PRESENT);
        if slot == Err(Full) {
            // Vanished ones give way; where all are present the row stays
            // evidence without being remembered.
            self.evictions += 1;
            if let Some(oldest) = self.remembered.oldest(VANISHED) {
                self.remembered.remove(oldest);
                slot = self.remembered.insert(fingerprint, memory, PRESENT);
            }
        }
        Connection {
            direction,
            first_seen: now,
            listed: false,
            handshake: Handshake::Unknown,
            slot: slot.ok(),
        }
    }

    /// Inbound connections seen for the first time so far, loopback and own
    /// addresses included: what the kernel counts as PassiveOpens.
    pub fn inbound_seen(&self) -> u64 {
        self.inbound_seen
    }

    /// Whether anybody listens on `port`, whatever the address.
    pub fn listens_on(&self, port: u16, now: Instant) -> bool {
        self.listeners
            .iter()
            .any(|(_, local, _)| local.port == port && self.listens(*local, now))
    }

    /// Whether outgoing connections are given `port`.
    pub fn is_ephemeral(&self, port: u16) -> bool {
        port >= self.local_port_range.low && port <= self.local_port_range.high
    }

    fn fingerprint(&self, local: Endpoint, remote: Endpoint) -> u64 {
        let ports = u64::from(local.port) << 16 | u64::from(remote.port);
        match (local.address, remote.address) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => self.hash_key.hash(&[
                u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits()),
                ports,
            ]),
            (local, remote) => {
                let (local, remote) = (wide(local), wide(remote));
                self.hash_key.hash(&[
                    (local >> 64) as u64,
                    local as u64,
                    (remote >> 64) as u64,
                    remote as u64,
                    ports,
                ])
            }
        }
    }

    fn listen(&mut self, local: Endpoint, now: Instant) {
        let listener = Listener {
            reading: self.reading,
            last_seen: now,
        };
        if let Some(slot) = self.listeners.find(&local) {
            if let Some(value) = self.listeners.value_mut(slot) {
                *value = listener;
            }
            self.listeners.touch(slot, PRESENT);
        } else if self.listeners.insert(local, listener, PRESENT) == Err(Full) {
            self.listener_evictions += 1;
            let oldest = self
                .listeners
                .oldest(VANISHED)
                .or(self.listeners.oldest(PRESENT));
            if let Some(oldest) = oldest {
                self.listeners.remove(oldest);
                let _ = self.listeners.insert(local, listener, PRESENT);
            }
        }
    }

    /// Inbound iff the local port is or was lately a listening one, on this
    /// address or on any (0.0.0.0, ::). Timers and port numbers prove nothing.
    fn direction(&self, local: Endpoint, now: Instant) -> Direction {
        let any_ipv6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        for address in [local.address, UNSPECIFIED, any_ipv6] {
            if self.listens(
                Endpoint {
                    address,
                    port: local.port,
                },
                now,
            ) {
                return Direction::Inbound;
            }
        }
        Direction::Outbound
    }

    fn listens(&self, local: Endpoint, now: Instant) -> bool {
        let listener = self
            .listeners
            .find(&local)
            .and_then(|slot| self.listeners.value(slot));
        let Some(listener) = listener else {
            return false;
        };
        listener.reading == self.reading
            || (!self.is_ephemeral(local.port) && now.since(listener.last_seen) < MEMORY)
    }

    /// Connections remembered and how many can be.
    pub fn remembered(&self) -> (usize, usize) {
        (self.remembered.len(), N)
    }

    /// Listeners remembered and how many can be.
    pub fn listeners(&self) -> (usize, usize) {
        (self.listeners.len(), L)
    }

    /// Connections and listeners that gave way to newer ones so far.
    pub fn evictions(&self) -> (u64, u64) {
        (self.evictions, self.listener_evictions)
    }
}

impl<const N: usize, const I: usize, const L: usize, const LI: usize> Default
    for Connections<N, I, L, LI>
{
    fn default() -> Self {
        Self::new()
    }
}

/// What may be left of a destroyed connection: the kernel keeps a small
/// stand-in without an inode for TIME_WAIT, and for FIN_WAIT2 of sockets that
/// were closed (net/ipv4/tcp_minisocks.c, tcp_time_wait).
fn is_remnant(socket: &Socket) -> bool {
    socket.inode == 0 && matches!(socket.state, TcpState::TimeWait | TcpState::FinWait2)
}

/// 128 bits of any address; IPv4 as its mapped form.
fn wide(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MEMORY;
    use crate::time::Duration;

    type Small = Connections<8, 64, 4, 64>;

    fn at(seconds: u64) -> Instant {
        Instant::from_secs(seconds)
    }

    fn socket(local: &str, remote: &str, state: TcpState, inode: u32) -> Socket {
        let parse = |text: &str| Endpoint::parse(text.as_bytes()).unwrap();
        Socket {
            local: parse(local),
            remote: parse(remote),
            state,
            inode,
        }
    }

    fn listener(local: &str) -> Socket {
        let remote = if local.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        socket(local, remote, TcpState::Listen, 1)
    }

    fn row(remote: &str, inode: u32) -> Socket {
        socket("10.0.0.1:80", remote, TcpState::Established, inode)
    }

    fn small() -> std::boxed::Box<Small> {
        let mut connections = std::boxed::Box::new(Small::new());
        connections.set_local_port_range(PortRange {
            low: 32_768,
            high: 60_999,
        });
        connections
    }

    fn read(connections: &mut Small, now: Instant, rows: &[Socket]) -> std::vec::Vec<Sighting> {
        connections.begin_reading();
        let sightings = rows
            .iter()
            .map(|row| connections.observe(row, now))
            .collect();
        connections.end_reading(now);
        sightings
    }

    fn direction(sighting: Sighting) -> Option<Direction> {
        match sighting {
            Sighting::Opened(connection) | Sighting::Standing(connection) => {
                Some(connection.direction)
            }
            Sighting::Repeated | Sighting::Other => None,
        }
    }

    fn is_opened(sighting: Sighting) -> bool {
        matches!(sighting, Sighting::Opened(_))
    }

    #[test]
    fn inbound_is_what_a_listener_of_that_address_accepts() {
        for (listening, local, expected) in [
            ("10.0.0.1:80", "10.0.0.1:80", Direction::Inbound),
            ("0.0.0.0:80", "10.0.0.1:80", Direction::Inbound),
            ("[::]:80", "10.0.0.1:80", Direction::Inbound),
            ("10.0.0.2:80", "10.0.0.1:80", Direction::Outbound),
            ("0.0.0.0:81", "10.0.0.1:80", Direction::Outbound),
            ("[2001:db8::1]:80", "10.0.0.1:80", Direction::Outbound),
        ] {
            let mut connections = small();
            let rows = [
                listener(listening),
                socket(local, "10.9.9.9:5000", TcpState::Established, 5),
            ];
            assert_eq!(
                direction(read(&mut connections, at(1), &rows)[1]),
                Some(expected),
                "{listening}"
            );
        }
    }

    /// A row tells what was noted before it; another connection starts anew.
    #[test]
    fn what_proves_a_handshake_is_noted() {
        let mut connections = small();
        let mut noted = |state, inode| {
            let row = socket("10.0.0.1:80", "10.9.9.9:5000", state, inode);
            let sighting = read(&mut connections, at(1), &[row])[0];
            let (Sighting::Opened(connection) | Sighting::Standing(connection)) = sighting else {
                panic!("{sighting:?}");
            };
            if connection.handshake == Handshake::Unknown && state == TcpState::LastAck {
                connections.set_handshake(connection, Handshake::Unproven);
            }
            connection.handshake
        };
        assert_eq!(noted(TcpState::FinWait1, 5), Handshake::Unknown);
        assert_eq!(noted(TcpState::LastAck, 5), Handshake::Unknown);
        assert_eq!(noted(TcpState::FinWait2, 5), Handshake::Unproven);
        assert_eq!(noted(TcpState::Closing, 5), Handshake::Proven);
        assert_eq!(noted(TcpState::Closing, 6), Handshake::Unknown);
    }

    #[test]
    fn direction_is_decided_once() {
        let mut connections = small();
        let stands = row("10.9.9.9:5000", 5);
        assert_eq!(
            direction(read(&mut connections, at(1), &[stands])[0]),
            Some(Direction::Outbound)
        );
        let rows = [listener("0.0.0.0:80"), stands];
        assert_eq!(
            direction(read(&mut connections, at(2), &rows)[1]),
            Some(Direction::Outbound)
        );
    }

    #[test]
    fn a_gone_listener_is_remembered_ten_minutes_outside_the_ephemeral_range() {
        let minutes = MEMORY.as_nanos() / 1_000_000_000;
        for (port, after, expected) in [
            (80, 10, Direction::Inbound),
            (80, minutes - 1, Direction::Inbound),
            (80, minutes, Direction::Outbound),
            (32_767, 10, Direction::Inbound),
            (32_768, 10, Direction::Outbound),
            (60_999, 10, Direction::Outbound),
            (61_000, 10, Direction::Inbound),
        ] {
            let mut connections = small();
            let local = std::format!("10.0.0.1:{port}");
            read(&mut connections, at(1), &[listener(&local)]);
            let rows = [socket(&local, "10.9.9.9:5000", TcpState::Established, 5)];
            let seen = read(&mut connections, at(1 + after), &rows);
            assert_eq!(direction(seen[0]), Some(expected), "{port} after {after} s");
        }
    }

    #[test]
    fn same_connection_until_both_inodes_are_known_and_differ() {
        let mut connections = small();
        let peer = "10.9.9.9:5000";
        for (second, inode, opened) in [
            (1, 0, true),
            (2, 7, false),
            (3, 0, false),
            (4, 7, false),
            (5, 8, true),
            (6, 0, false),
            (7, 7, true),
        ] {
            let seen = read(&mut connections, at(second), &[row(peer, inode)]);
            assert_eq!(is_opened(seen[0]), opened, "second {second}");
        }
    }

    #[test]
    fn a_vanished_connection_stays_known_ten_minutes() {
        let mut connections = small();
        let rows = [row("10.9.9.9:5000", 7)];
        read(&mut connections, at(0), &rows);
        read(&mut connections, at(10), &[]);
        let mut late = rows;
        late[0].state = TcpState::TimeWait;
        late[0].inode = 0;
        assert!(!is_opened(read(&mut connections, at(400), &late)[0]));
        read(&mut connections, at(410), &[]);
        let past = at(410).after(MEMORY).after(Duration::from_secs(1));
        read(&mut connections, past, &[]);
        assert!(is_opened(read(&mut connections, past, &late)[0]));
    }

    #[test]
    fn repeated_rows_count_once() {
        let mut connections = small();
        let rows = [row("10.9.9.9:5000", 7), row("10.9.9.9:5000", 7)];
        assert_eq!(read(&mut connections, at(1), &rows)[1], Sighting::Repeated);
        assert_eq!(read(&mut connections, at(2), &rows)[1], Sighting::Repeated);
        let renewed = [row("10.9.9.9:5000", 7), row("10.9.9.9:5000", 8)];
        assert_eq!(
            read(&mut connections, at(3), &renewed)[1],
            Sighting::Repeated
        );
        assert!(is_opened(read(&mut connections, at(4), &renewed[1..])[0]));
    }

    fn ended(connections: &mut Small, remote: &str, now: Instant) -> Ending {
        let row = row(remote, 0);
        connections.ended(row.local, row.remote, now)
    }

    #[test]
    fn an_event_is_the_end_of_what_was_seen() {
        let mut connections = small();
        let peer = "10.9.9.9:5000";
        let listening = listener("0.0.0.0:80");
        read(&mut connections, at(1), &[listening, row(peer, 7)]);
        assert!(matches!(
            ended(&mut connections, peer, at(2)),
            Ending::Known(_)
        ));
        // TIME_WAIT and a closed FIN_WAIT2 may be left of it.
        for state in [TcpState::FinWait2, TcpState::TimeWait] {
            let rows = [
                listening,
                Socket {
                    state,
                    ..row(peer, 0)
                },
            ];
            assert!(!is_opened(read(&mut connections, at(3), &rows)[1]));
        }
        // A full socket is another connection.
        let rows = [listening, row(peer, 0)];
        assert!(is_opened(read(&mut connections, at(4), &rows)[1]));
        assert_eq!(connections.inbound_seen(), 2);
    }

    /// Each end that is told is of one connection, whatever was seen first.
    #[test]
    fn what_a_listener_accepted_is_seen_once() {
        let mut connections = small();
        let peer = row("10.9.9.9:5000", 0);
        let accepted = |connections: &mut Small, second| {
            let connection = connections.accepted(peer.local, peer.remote, at(second));
            connection.map(|connection| connection.direction)
        };
        // Nobody was seen to listen yet.
        assert_eq!(accepted(&mut connections, 1), Some(Direction::Inbound));
        let rows = [listener("0.0.0.0:80"), peer];
        assert!(!is_opened(read(&mut connections, at(2), &rows)[1]));
        assert!(matches!(
            ended(&mut connections, "10.9.9.9:5000", at(3)),
            Ending::Known(_)
        ));
        // Two with the same 4-tuple are accepted before either's end is told.
        assert_eq!(accepted(&mut connections, 4), Some(Direction::Inbound));
        assert_eq!(accepted(&mut connections, 5), None);
        assert!(matches!(
            ended(&mut connections, "10.9.9.9:5000", at(6)),
            Ending::Known(_)
        ));
        assert!(matches!(
            ended(&mut connections, "10.9.9.9:5000", at(7)),
            Ending::Unseen(_)
        ));
        assert_eq!(connections.inbound_seen(), 3);
    }

    #[test]
    fn an_event_of_something_unseen_is_a_connection() {
        let mut connections = small();
        let peer = "10.9.9.9:5000";
        read(&mut connections, at(1), &[listener("0.0.0.0:80")]);
        for second in 2..5 {
            assert!(matches!(
                ended(&mut connections, peer, at(second)),
                Ending::Unseen(_)
            ));
        }
        let rows = [
            listener("0.0.0.0:80"),
            Socket {
                state: TcpState::TimeWait,
                ..row(peer, 0)
            },
        ];
        assert!(!is_opened(read(&mut connections, at(5), &rows)[1]));
        assert_eq!(connections.inbound_seen(), 3);
        read(&mut connections, at(6), &rows[..1]);
        assert_eq!(connections.remembered().0, 0, "event and row are gone");
    }

    #[test]
    fn a_late_event_is_no_second_connection() {
        let mut connections = small();
        let peer = "10.9.9.9:5000";
        read(
            &mut connections,
            at(1),
            &[listener("0.0.0.0:80"), row(peer, 7)],
        );
        read(&mut connections, at(10), &[listener("0.0.0.0:80")]);
        assert!(matches!(
            ended(&mut connections, peer, at(400)),
            Ending::Known(_)
        ));
        assert_eq!(connections.remembered().0, 0);
        assert_eq!(connections.inbound_seen(), 1);
    }

    #[test]
    fn events_of_ports_nobody_listens_on_are_unknown() {
        let mut connections = small();
        read(&mut connections, at(1), &[listener("10.0.0.2:80")]);
        assert_eq!(
            ended(&mut connections, "10.9.9.9:5000", at(2)),
            Ending::Unknown
        );
        assert!(connections.listens_on(80, at(2)));
        assert!(!connections.listens_on(81, at(2)));
    }

    #[test]
    fn half_open_listening_and_peerless_rows_are_no_connections() {
        let mut connections = small();
        for state in [
            TcpState::SynSent,
            TcpState::SynRecv,
            TcpState::NewSynRecv,
            TcpState::Close,
        ] {
            let rows = [socket("10.0.0.1:80", "10.9.9.9:5000", state, 0)];
            assert_eq!(read(&mut connections, at(1), &rows)[0], Sighting::Other);
        }
        assert_eq!(
            read(&mut connections, at(1), &[row("0.0.0.0:0", 3)])[0],
            Sighting::Other
        );
        assert_eq!(
            read(&mut connections, at(1), &[row("10.0.0.9:0", 3)])[0],
            Sighting::Other
        );
        for state in [
            TcpState::Established,
            TcpState::FinWait1,
            TcpState::FinWait2,
            TcpState::TimeWait,
            TcpState::CloseWait,
            TcpState::LastAck,
            TcpState::Closing,
        ] {
            let mut connections = small();
            let rows = [socket("10.0.0.1:80", "10.9.9.9:5000", state, 0)];
            assert!(is_opened(read(&mut connections, at(1), &rows)[0]));
        }
    }

    #[test]
    fn a_full_table_gives_up_vanished_ones_first_and_counts() {
        let mut connections = small();
        let peer = |number: u32| row(&std::format!("10.9.9.{number}:5000"), 7);
        let first: std::vec::Vec<_> = (0..8).map(peer).collect();
        read(&mut connections, at(1), &first);
        assert_eq!(connections.evictions().0, 0);
        // All present: a ninth is evidence, but new again and again.
        let mut nine = first.clone();
        nine.push(peer(8));
        for second in [2, 3] {
            assert!(is_opened(read(&mut connections, at(second), &nine)[8]));
        }
        assert_eq!(connections.evictions().0, 2);
        // What is accepted is counted when it ends.
        let (seen, ninth) = (connections.inbound_seen(), peer(8));
        let accepted = connections.accepted(ninth.local, ninth.remote, at(3));
        assert!(accepted.is_none());
        assert_eq!(connections.inbound_seen(), seen);
        // The first vanishes and gives way.
        assert!(!is_opened(read(&mut connections, at(4), &first[1..])[0]));
        assert!(is_opened(read(&mut connections, at(5), &nine[1..])[7]));
        assert!(!is_opened(read(&mut connections, at(6), &nine[1..])[7]));
    }
}
