//! This reading against the last: which connections are new, which way they
//! go, and which are gone.

use crate::address::Endpoint;
use crate::label::label;
use crate::limits::MEMORY;
use crate::listeners::{Listeners, Port, PortRange};
use crate::proc_net_tcp::{Socket, TcpState};
use crate::sock_diag::Handshake;
use crate::table::{Blank, HashKey, Slot, Table};
use crate::time::Instant;

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The peer connected to one of our listening ports.
    Inbound,
    /// We connected to the peer.
    Outbound,
}

label!(Direction, "direction", 0, ["in", "out"]);

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
    /// Which end opened it; decided once. A guess where no listener was known.
    pub direction: Direction,
    /// What its local port is; decided once the port is a service, or has no
    /// listener any more.
    pub port: Port,
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
    /// A connection came in to such a port; which one is unknown.
    Unnamed(Port),
    /// No listener of its port is known, which is one that outgoing
    /// connections are given: one of ours to somewhere, or a reading has to
    /// show its listener first.
    Unknown,
}

/// Which way a connection goes, and how that is known.
#[derive(Clone, Copy)]
struct Way {
    direction: Direction,
    port: Port,
}

/// Of connections to our own listener, which are never evidence.
const ACCEPTED: Way = Way {
    direction: Direction::Inbound,
    port: Port::Unknown,
};

#[derive(Clone, Copy)]
struct Memory {
    first_seen: Option<Instant>,
    vanished: Option<Instant>,
    /// The last non-zero inode: one connection's goes 0, N, 0 from accept
    /// queue over accepted socket to TIME_WAIT (net/ipv4/tcp_ipv4.c).
    inode: u32,
    /// The number of the reading that saw it last.
    reading: u32,
    port: Port,
    inbound: bool,
    /// Its destroy event came: what still shows up is a TIME_WAIT remnant, or
    /// another connection.
    destroyed: bool,
    /// It stood in a list.
    listed: bool,
    handshake: Handshake,
}

impl Memory {
    fn connection(&self, slot: Slot, now: Instant) -> Connection {
        let direction = if self.inbound {
            Direction::Inbound
        } else {
            Direction::Outbound
        };
        Connection {
            direction,
            port: self.port,
            first_seen: self.first_seen.unwrap_or(now),
            listed: self.listed,
            handshake: self.handshake,
            slot: Some(slot),
        }
    }
}

impl Blank for Memory {
    const BLANK: Self = Self {
        first_seen: None,
        vanished: None,
        inode: 0,
        reading: 0,
        port: Port::Unknown,
        inbound: false,
        destroyed: false,
        listed: false,
        handshake: Handshake::Unknown,
    };
}

/// Rows of the reading that is going on, or of the last one.
const PRESENT: usize = 0;
/// Rows that are gone but remembered.
const VANISHED: usize = 1;

/// Every connection and listener of the host, as keyed fingerprints.
///
/// `N` connections with an index of `I`; `L` listeners with an index of `LI`.
#[repr(C)]
pub struct Connections<const N: usize, const I: usize, const L: usize, const LI: usize> {
    hash_key: HashKey,
    reading: u32,
    inbound_seen: u64,
    evictions: u64,
    /// The connection that followed the one seen last in the reading before:
    /// the kernel walks its hash table in the same order each time.
    expected: Option<Slot>,
    /// Who listens.
    pub listeners: Listeners<L, LI>,
    remembered: Table<u64, Memory, N, I>,
}

impl<const N: usize, const I: usize, const L: usize, const LI: usize> Connections<N, I, L, LI> {
    /// Nothing seen yet; all bytes zero.
    pub const fn new() -> Self {
        Self {
            hash_key: HashKey { k0: 0, k1: 0 },
            reading: 0,
            inbound_seen: 0,
            evictions: 0,
            expected: None,
            listeners: Listeners::new(),
            remembered: Table::new(),
        }
    }

    /// Sets the secret; call once, at start.
    pub fn set_hash_key(&mut self, hash_key: HashKey) {
        self.hash_key = hash_key;
        self.remembered.set_hash_key(hash_key);
        self.listeners.set_hash_key(hash_key);
    }

    /// Sets net.ipv4.ip_local_port_range.
    pub fn set_local_port_range(&mut self, range: PortRange) {
        self.listeners.set_local_port_range(range);
    }

    /// Starts a reading.
    pub fn begin_reading(&mut self) {
        self.reading = self.reading.wrapping_add(1);
        self.expected = self.remembered.oldest(PRESENT);
        self.listeners.begin_reading();
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
            memory.vanished = Some(now);
            if memory.destroyed {
                self.remembered.remove(slot);
            } else {
                self.remembered.touch(slot, VANISHED);
            }
        }
        while let Some(slot) = self.remembered.oldest(VANISHED) {
            let memory = self.remembered.value(slot);
            let vanished = memory.and_then(|memory| memory.vanished);
            if now.is_within(MEMORY, vanished) {
                break;
            }
            self.remembered.remove(slot);
        }
        self.listeners.end_reading(now);
    }

    /// Takes in one row of the reading that is going on.
    pub fn observe(
        &mut self,
        socket: &Socket,
        is_own: &dyn Fn() -> bool,
        now: Instant,
    ) -> Sighting {
        match socket.state {
            TcpState::Listen => {
                self.listeners.listen(&socket.local, socket.inode, now);
                Sighting::Other
            }
            TcpState::SynSent | TcpState::SynRecv | TcpState::Close => Sighting::Other,
            TcpState::Established
            | TcpState::FinWait1
            | TcpState::FinWait2
            | TcpState::TimeWait
            | TcpState::CloseWait
            | TcpState::LastAck
            | TcpState::Closing => {
                if socket.remote.address.is_unspecified() {
                    return Sighting::Other;
                }
                let sighting = self.connection(socket, is_own, now);
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

    fn connection(&mut self, socket: &Socket, is_own: &dyn Fn() -> bool, now: Instant) -> Sighting {
        let fingerprint = self.hash_key.hash_ends(&socket.local, &socket.remote);
        let slot = self.find(fingerprint);
        let reading = self.reading;
        if let Some(slot) = slot
            && let Some(memory) = self.remembered.value_mut(slot)
        {
            if memory.reading == reading && !memory.destroyed {
                // Whatever the inode says: the next reading shows what stands.
                return Sighting::Repeated;
            }
            let inodes = (memory.inode, socket.inode);
            let is_other_inode = inodes.0 != 0 && inodes.1 != 0 && inodes.0 != inodes.1;
            let is_renewed = is_other_inode || (memory.destroyed && !is_remnant(socket));
            if !is_renewed {
                memory.reading = reading;
                if socket.inode != 0 {
                    memory.inode = socket.inode;
                }
                if matches!(memory.port, Port::New | Port::Foreign) {
                    memory.port = self.listeners.port(&socket.local, is_own, None);
                }
                let connection = memory.connection(slot, now);
                self.remembered.touch(slot, PRESENT);
                return Sighting::Standing(connection);
            }
        }
        let way = self.way(&socket.local, is_own, None);
        Sighting::Opened(self.open(slot, fingerprint, way, socket.inode, now))
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
    /// seen before. Where the 4-tuple served another one whose end was not
    /// reported yet, this one is seen when it ends: each end is of one
    /// connection. So it is where the table is full of present ones:
    /// unremembered, it would count twice.
    pub fn accepted(
        &mut self,
        local: &Endpoint,
        remote: &Endpoint,
        now: Instant,
    ) -> Option<Connection> {
        let fingerprint = self.hash_key.hash_ends(local, remote);
        let slot = self.remembered.find(&fingerprint);
        let is_free = match slot {
            Some(slot) => self.remembered.value(slot)?.destroyed,
            None => self.remembered.len() < N || self.remembered.oldest(VANISHED).is_some(),
        };
        is_free.then(|| self.open(slot, fingerprint, ACCEPTED, 0, now))
    }

    /// Takes in a destroy event of a socket that was disconnected: it does
    /// not say whether its connection was seen before. Counting one twice hides
    /// less than taking each of them for missed.
    pub fn disconnected(
        &mut self,
        local: &Endpoint,
        is_own: &dyn Fn() -> bool,
        now: Instant,
    ) -> Ending {
        let way = self.way(local, is_own, Some(now));
        if way.direction == Direction::Outbound {
            return Ending::Unknown;
        }
        self.inbound_seen += 1;
        Ending::Unnamed(way.port)
    }

    /// Takes in a destroy event of a connection with both its ends known.
    pub fn ended(
        &mut self,
        local: &Endpoint,
        remote: &Endpoint,
        is_own: &dyn Fn() -> bool,
        now: Instant,
    ) -> Ending {
        let fingerprint = self.hash_key.hash_ends(local, remote);
        let slot = self.remembered.find(&fingerprint);
        if let Some(slot) = slot
            && let Some(memory) = self.remembered.value_mut(slot)
            && !memory.destroyed
        {
            // Its row may stand on in TIME_WAIT: forgotten when it is gone.
            memory.destroyed = true;
            let mut connection = memory.connection(slot, now);
            if self.remembered.class(slot) == Some(VANISHED) {
                self.remembered.remove(slot);
                connection.slot = None;
            }
            return Ending::Known(connection);
        }
        let way = self.way(local, is_own, Some(now));
        // Else the same 4-tuple served another connection meanwhile.
        if slot.is_none() && way.direction == Direction::Outbound {
            return Ending::Unknown;
        }
        let connection = self.open(slot, fingerprint, way, 0, now);
        if let Some(memory) = self.memory_mut(connection.slot) {
            memory.destroyed = true;
        }
        Ending::Unseen(connection)
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

    /// A connection that was not seen before, in the `slot` of another one that
    /// the same 4-tuple served, if there is one.
    #[inline(never)]
    fn open(
        &mut self,
        slot: Option<Slot>,
        fingerprint: u64,
        way: Way,
        inode: u32,
        now: Instant,
    ) -> Connection {
        let Way { direction, port } = way;
        self.inbound_seen += u64::from(direction == Direction::Inbound);
        let slot = match slot {
            Some(slot) => {
                self.remembered.touch(slot, PRESENT);
                Some(slot)
            }
            None => self.place(fingerprint),
        };
        let reading = self.reading;
        if let Some(memory) = self.memory_mut(slot) {
            *memory = Memory {
                first_seen: Some(now),
                inode,
                reading,
                port,
                inbound: direction == Direction::Inbound,
                ..Memory::BLANK
            };
        }
        Connection {
            direction,
            port,
            first_seen: now,
            listed: false,
            handshake: Handshake::Unknown,
            slot,
        }
    }

    /// Vanished ones are evicted; where all are present the row stays evidence
    /// without being remembered.
    fn place(&mut self, fingerprint: u64) -> Option<Slot> {
        let result = self.remembered.place(fingerprint, PRESENT);
        if result.is_ok() {
            return result.ok();
        }
        self.evictions += 1;
        let oldest = self.remembered.oldest(VANISHED)?;
        self.remembered.remove(oldest);
        self.remembered.place(fingerprint, PRESENT).ok()
    }

    /// Inbound connections seen for the first time so far, loopback and own
    /// addresses included: what the kernel counts as PassiveOpens.
    pub fn inbound_seen(&self) -> u64 {
        self.inbound_seen
    }

    /// Inbound iff a socket listens on the local port: timers and port numbers
    /// prove nothing. Without a listener it is a guess, for the
    /// list and the count of what was seen alone: outgoing connections are
    /// given ports of one range.
    fn way(&self, local: &Endpoint, is_own: &dyn Fn() -> bool, seen: Option<Instant>) -> Way {
        let port = self.listeners.port(local, is_own, seen);
        let is_outbound = port == Port::Unknown && self.listeners.is_ephemeral(local.port);
        let direction = if is_outbound {
            Direction::Outbound
        } else {
            Direction::Inbound
        };
        Way { direction, port }
    }

    /// Connections remembered and how many can be.
    pub fn remembered(&self) -> (usize, usize) {
        (self.remembered.len(), N)
    }

    /// Connections evicted for newer ones so far.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }
}

/// What may be left of a destroyed connection: the kernel keeps a small
/// stand-in without an inode for TIME_WAIT, and for FIN_WAIT2 of sockets that
/// were closed (net/ipv4/tcp_minisocks.c, tcp_time_wait).
fn is_remnant(socket: &Socket) -> bool {
    socket.inode == 0 && matches!(socket.state, TcpState::TimeWait | TcpState::FinWait2)
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
        let mut connections = crate::testing::boxed(Small::new);
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
            .map(|row| connections.observe(row, &|| true, now))
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

    fn port(sighting: Sighting) -> Option<Port> {
        match sighting {
            Sighting::Opened(connection) | Sighting::Standing(connection) => Some(connection.port),
            Sighting::Repeated | Sighting::Other => None,
        }
    }

    fn is_opened(sighting: Sighting) -> bool {
        matches!(sighting, Sighting::Opened(_))
    }

    /// One that waits for accept(2) where another ended has no inode yet: that of
    /// the other one is not its own.
    #[test]
    fn what_takes_over_a_4_tuple_is_one_connection() {
        let mut connections = small();
        let peer = "10.9.9.9:5000";
        let rows = |inode| [listener("0.0.0.0:80"), row(peer, inode)];
        read(&mut connections, at(1), &rows(7));
        assert!(matches!(
            ended(&mut connections, peer, at(2)),
            Ending::Known(_)
        ));
        assert!(is_opened(read(&mut connections, at(3), &rows(0))[1]));
        assert!(!is_opened(read(&mut connections, at(4), &rows(8))[1]));
        assert!(is_opened(read(&mut connections, at(5), &rows(9))[1]));
        assert_eq!(connections.inbound_seen(), 3);
    }

    #[test]
    fn inbound_is_what_a_listener_of_that_address_accepts() {
        for (listening, local, expected) in [
            ("10.0.0.1:80", "10.0.0.1:80", Port::Service),
            ("0.0.0.0:80", "10.0.0.1:80", Port::Service),
            ("[::]:80", "10.0.0.1:80", Port::Service),
            ("10.0.0.2:80", "10.0.0.1:80", Port::Unknown),
            ("0.0.0.0:81", "10.0.0.1:80", Port::Unknown),
            ("[2001:db8::1]:80", "10.0.0.1:80", Port::Unknown),
        ] {
            let mut connections = small();
            let rows = [
                listener(listening),
                socket(local, "10.9.9.9:5000", TcpState::Established, 5),
            ];
            assert_eq!(
                port(read(&mut connections, at(1), &rows)[1]),
                Some(expected),
                "{listening}"
            );
        }
    }

    /// A row shows what was noted before it; another connection starts anew.
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
    fn without_a_listener_the_port_decides_the_direction() {
        for (local, expected) in [
            ("10.0.0.1:80", Direction::Inbound),
            ("10.0.0.1:32767", Direction::Inbound),
            ("10.0.0.1:32768", Direction::Outbound),
            ("10.0.0.1:60999", Direction::Outbound),
            ("10.0.0.1:61000", Direction::Inbound),
        ] {
            let mut connections = small();
            let rows = [socket(local, "10.9.9.9:5000", TcpState::Established, 5)];
            let seen = read(&mut connections, at(1), &rows)[0];
            assert_eq!(direction(seen), Some(expected), "{local}");
            assert_eq!(port(seen), Some(Port::Unknown));
            let seen = u64::from(expected == Direction::Inbound);
            assert_eq!(connections.inbound_seen(), seen);
        }
    }

    #[test]
    fn direction_is_decided_once() {
        let mut connections = small();
        let stands = socket("10.0.0.1:40000", "10.9.9.9:5000", TcpState::Established, 5);
        assert_eq!(
            direction(read(&mut connections, at(1), &[stands])[0]),
            Some(Direction::Outbound)
        );
        let rows = [listener("0.0.0.0:40000"), stands];
        let seen = read(&mut connections, at(2), &rows)[1];
        assert_eq!(direction(seen), Some(Direction::Outbound));
        assert_eq!(port(seen), Some(Port::Unknown));
    }

    /// A connection to a new listener counts once that is a service, and never
    /// where the listener goes before.
    #[test]
    fn a_connection_learns_what_its_port_is() {
        for (third, expected) in [(Some("0.0.0.0:80"), Port::Service), (None, Port::Unknown)] {
            let mut connections = small();
            read(&mut connections, at(1), &[]);
            let rows = [listener("0.0.0.0:80"), row("10.9.9.9:5000", 5)];
            let seen = read(&mut connections, at(2), &rows)[1];
            assert_eq!(port(seen), Some(Port::New));
            assert_eq!(direction(seen), Some(Direction::Inbound));
            let mut rows: std::vec::Vec<_> = third.map(listener).into_iter().collect();
            rows.push(row("10.9.9.9:5000", 5));
            let later = read(&mut connections, at(1_202), &rows);
            let seen = *later.last().unwrap();
            assert!(!is_opened(seen));
            assert_eq!(port(seen), Some(expected));
            assert_eq!(direction(seen), Some(Direction::Inbound));
            // A service that starts there later is another listener.
            let rows = [listener("0.0.0.0:80"), row("10.9.9.9:5000", 5)];
            read(&mut connections, at(1_203), &rows);
            let seen = read(&mut connections, at(2_500), &rows)[1];
            assert_eq!(port(seen), Some(expected));
        }
    }

    /// Without a listener it went out from here; what listens there again is a
    /// service at once where one stood for long.
    #[test]
    fn a_gone_listener_is_remembered_ten_minutes_outside_the_ephemeral_range() {
        let minutes = MEMORY.as_nanos() / 1_000_000_000;
        for (number, after, expected) in [
            (80, 10, Port::Service),
            (80, minutes - 1, Port::Service),
            (80, minutes, Port::New),
            (32_767, 10, Port::Service),
            (32_768, 10, Port::New),
            (60_999, 10, Port::New),
            (61_000, 10, Port::Service),
        ] {
            for address in ["10.0.0.1", "0.0.0.0", "[::]"] {
                let mut connections = small();
                let listening = std::format!("{address}:{number}");
                let local = std::format!("10.0.0.1:{number}");
                read(&mut connections, at(1), &[listener(&listening)]);
                read(&mut connections, at(2_000), &[listener(&listening)]);
                let mut rows = std::vec![socket(&local, "10.9.9.9:5000", TcpState::Established, 5)];
                let seen = read(&mut connections, at(2_001), &[]);
                assert!(seen.is_empty());
                let seen = read(&mut connections, at(2_002), &rows);
                assert_eq!(port(seen[0]), Some(Port::Unknown), "{listening}");
                let other = socket(&local, "10.9.9.9:5001", TcpState::Established, 6);
                rows = std::vec![listener(&listening), other];
                let seen = read(&mut connections, at(2_000 + after), &rows);
                assert_eq!(port(seen[1]), Some(expected), "{listening} after {after} s");
            }
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
        connections.ended(&row.local, &row.remote, &|| true, now)
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

    /// Each end that is reported is of one connection, whatever was seen first.
    #[test]
    fn what_a_listener_accepted_is_seen_once() {
        let mut connections = small();
        let peer = row("10.9.9.9:5000", 0);
        let accepted = |connections: &mut Small, second| {
            let connection = connections.accepted(&peer.local, &peer.remote, at(second));
            connection.map(|connection| connection.direction)
        };
        // No listener was seen yet.
        assert_eq!(accepted(&mut connections, 1), Some(Direction::Inbound));
        let rows = [listener("0.0.0.0:80"), peer];
        assert!(!is_opened(read(&mut connections, at(2), &rows)[1]));
        assert!(matches!(
            ended(&mut connections, "10.9.9.9:5000", at(3)),
            Ending::Known(_)
        ));
        // Two with the same 4-tuple are accepted before either's end is
        // reported.
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
    fn events_of_ports_without_a_listener() {
        let mut connections = small();
        read(&mut connections, at(1), &[listener("10.0.0.2:80")]);
        // Nothing distinguishes it from one that we opened.
        let local = socket("10.0.0.1:40000", "10.9.9.9:443", TcpState::Established, 0);
        let outgoing = connections.ended(&local.local, &local.remote, &|| true, at(2));
        assert_eq!(outgoing, Ending::Unknown);
        let Ending::Unseen(connection) = ended(&mut connections, "10.9.9.9:5000", at(2)) else {
            panic!("outgoing connections are not given port 80");
        };
        assert_eq!(
            (connection.direction, connection.port),
            (Direction::Inbound, Port::Unknown)
        );
        assert_eq!(connections.inbound_seen(), 1);
        // What is left of it is no other connection.
        let rows = [Socket {
            state: TcpState::TimeWait,
            ..row("10.9.9.9:5000", 0)
        }];
        assert!(!is_opened(read(&mut connections, at(3), &rows)[0]));
    }

    #[test]
    fn sockets_that_were_disconnected_were_seen() {
        let mut connections = small();
        read(&mut connections, at(1), &[listener("0.0.0.0:80")]);
        for (local, expected, seen) in [
            ("0.0.0.0:80", Ending::Unnamed(Port::Service), 1),
            ("0.0.0.0:81", Ending::Unnamed(Port::Unknown), 2),
            ("0.0.0.0:40000", Ending::Unknown, 2),
        ] {
            let local = Endpoint::parse(local.as_bytes()).unwrap();
            let ending = connections.disconnected(&local, &|| false, at(2));
            assert_eq!(ending, expected);
            assert_eq!(connections.inbound_seen(), seen);
        }
    }

    #[test]
    fn half_open_listening_and_peerless_rows_are_no_connections() {
        let mut connections = small();
        for state in [TcpState::SynSent, TcpState::SynRecv, TcpState::Close] {
            let rows = [socket("10.0.0.1:80", "10.9.9.9:5000", state, 0)];
            assert_eq!(read(&mut connections, at(1), &rows)[0], Sighting::Other);
        }
        assert_eq!(
            read(&mut connections, at(1), &[row("0.0.0.0:0", 3)])[0],
            Sighting::Other
        );
        // Port 0 is as good as any.
        assert!(is_opened(
            read(&mut connections, at(1), &[row("10.0.0.9:0", 3)])[0]
        ));
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
        assert_eq!(connections.evictions(), 0);
        // All present: a ninth is evidence, but new again and again.
        let mut nine = first.clone();
        nine.push(peer(8));
        for second in [2, 3] {
            assert!(is_opened(read(&mut connections, at(second), &nine)[8]));
        }
        assert_eq!(connections.evictions(), 2);
        // What is accepted is counted when it ends.
        let (seen, ninth) = (connections.inbound_seen(), peer(8));
        let accepted = connections.accepted(&ninth.local, &ninth.remote, at(3));
        assert!(accepted.is_none());
        assert_eq!(connections.inbound_seen(), seen);
        // The first vanishes and is evicted.
        assert!(!is_opened(read(&mut connections, at(4), &first[1..])[0]));
        assert!(is_opened(read(&mut connections, at(5), &nine[1..])[7]));
        assert!(!is_opened(read(&mut connections, at(6), &nine[1..])[7]));
    }
}
