//! How much of what the kernel counted was seen: the counters of
//! /proc/net/snmp against the connections first seen.

use crate::limits::COUNTERS_LOOKS;
use crate::text::{parse_decimal, split, trim};

/// What /proc/net/snmp says (RFC 4022, RFC 4293; net/ipv4/proc.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Packets of IPv4 received, before anything was done with them.
    pub received: u64,
    /// Inbound handshakes completed, IPv4, IPv6 and loopback together.
    pub passive_opens: u64,
    /// Segments with RST sent.
    pub resets_sent: u64,
}

/// Reads them. `None` where those of TCP are not all there.
pub fn parse_snmp(text: &[u8]) -> Option<TcpCounters> {
    Some(TcpCounters {
        received: value_of(text, b"Ip: ", b"InReceives").unwrap_or(0),
        passive_opens: value_of(text, b"Tcp: ", b"PassiveOpens")?,
        resets_sent: value_of(text, b"Tcp: ", b"OutRsts")?,
    })
}

/// Of the two lines that begin with `protocol`: names, then values.
#[inline(never)]
fn value_of(text: &[u8], protocol: &[u8], name: &[u8]) -> Option<u64> {
    let mut lines = split(text, b'\n').filter_map(|line| line.strip_prefix(protocol));
    let mut both: [&[u8]; 2] = [b""; 2];
    for line in &mut both {
        *line = lines.next()?;
    }
    let [names, values] = both;
    let mut pairs = split(names, b' ').zip(split(values, b' '));
    let (_, value) = pairs.find(|(found, _)| *found == name)?;
    parse_decimal(trim(value))
}

/// What one look at the counter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing new is missing.
    AllSeen,
    /// Something is, perhaps only on its way: look again soon.
    Again,
    /// Something stayed missing: only a reading can show it.
    Unseen,
}

/// The deficit of seen against counted connections. What survives a whole
/// interval was missed: a connection in between is merely on its way to us.
pub struct Coverage {
    is_started: bool,
    /// `passive_opens` minus seen when nothing is missing.
    offset: u64,
    /// The counter right before the last reading's rows.
    read_passive_opens: u64,
    /// How many looks in a row missed something that was counted since.
    looks: u32,
    /// The counter right before the last scheduled reading's rows.
    ended_passive_opens: u64,
    /// The smallest deficit since the last scheduled reading, that one's
    /// included.
    lowest: u64,
}

impl Coverage {
    /// Not started; all bytes zero.
    pub const fn new() -> Self {
        Self {
            is_started: false,
            offset: 0,
            read_passive_opens: 0,
            looks: 0,
            ended_passive_opens: 0,
            lowest: 0,
        }
    }

    /// Whether `start` was called.
    pub fn is_started(&self) -> bool {
        self.is_started
    }

    /// Starts here: what stands already was opened before the first look. What
    /// opened during the first reading unseen comes to light later (`settle`).
    pub fn start(&mut self, passive_opens: u64, seen: u64) {
        self.is_started = true;
        self.offset = passive_opens.wrapping_sub(seen);
        self.read_passive_opens = passive_opens;
        self.ended_passive_opens = passive_opens;
        self.lowest = 0;
    }

    /// With the counter just read and nothing seen since: whatever was seen
    /// was counted before. A surplus is connections that were given up as
    /// missed, or opened before the start, and came to light late (a service
    /// accepts what was reset long ago); it must not hide others.
    pub fn settle(&mut self, passive_opens: u64, seen: u64) {
        let offset = passive_opens.wrapping_sub(seen);
        if self.is_started && self.offset.wrapping_sub(offset) <= i64::MAX as u64 {
            self.offset = offset;
        }
    }

    /// Whether the kernel counted connections since the last reading, and some
    /// were not seen. One look proves little: a busy host always has one on its
    /// way to us. Those that are held are missing at each look, so one look that
    /// misses none settles it.
    pub fn look(&mut self, passive_opens: u64, seen: u64) -> Look {
        let has_moved = passive_opens != self.read_passive_opens;
        let is_missing = self.is_started && has_moved && self.deficit(passive_opens, seen) > 0;
        self.looks = if is_missing { self.looks + 1 } else { 0 };
        match self.looks {
            0 => Look::AllSeen,
            looks if looks < COUNTERS_LOOKS as u32 => Look::Again,
            _ => {
                self.looks = 0;
                Look::Unseen
            }
        }
    }

    /// Takes in the state after a reading: the counter right before its rows.
    pub fn after_reading(&mut self, passive_opens: u64, seen: u64) {
        self.read_passive_opens = passive_opens;
        self.looks = 0;
        self.note_deficit(passive_opens, seen);
    }

    /// Ends an interval, after `after_reading`: how many connections were
    /// missed for good.
    pub fn end_interval(&mut self, passive_opens: u64, seen: u64) -> u64 {
        let missed = self.lowest;
        self.offset = self.offset.wrapping_add(missed);
        self.lowest = self.deficit(passive_opens, seen);
        self.ended_passive_opens = passive_opens;
        missed
    }

    /// Takes in what events reported soon after the end of an interval. Of what
    /// was closed right before a reading there is neither a row nor an event
    /// yet, and under load there always is such a connection. What opened
    /// meanwhile is taken for one of them, too: so what is called missed is a
    /// lower bound, and the rest stays in the deficit of the next interval.
    pub fn after_events(&mut self, seen: u64) {
        self.note_deficit(self.ended_passive_opens, seen);
    }

    #[inline(never)]
    fn note_deficit(&mut self, passive_opens: u64, seen: u64) {
        self.lowest = self.lowest.min(self.deficit(passive_opens, seen));
    }

    /// Connections seen that the counter had not counted yet when it was read
    /// make it zero for the moment.
    fn deficit(&self, passive_opens: u64, seen: u64) -> u64 {
        let deficit = passive_opens.wrapping_sub(seen).wrapping_sub(self.offset);
        (deficit as i64).max(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &[u8] = b"Ip: Forwarding DefaultTTL\nIp: 1 64\n\
        Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab \
        InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors\n\
        Tcp: 1 200 120000 -1 11 22 3 4 5 600 700 8 0 99 0\nUdp: InDatagrams\nUdp: 1\n";

    #[test]
    fn counters_are_found_by_name() {
        let expected = TcpCounters {
            received: 0,
            passive_opens: 22,
            resets_sent: 99,
        };
        assert_eq!(parse_snmp(SNMP), Some(expected));
        let received = [b"Ip: Forwarding DefaultTTL InReceives\nIp: 1 64 33\n", SNMP].concat();
        let counters = parse_snmp(&received).unwrap();
        assert_eq!((counters.received, counters.passive_opens), (33, 22));
        let swapped = b"Tcp: OutRsts PassiveOpens\nTcp: 7 8\n";
        assert_eq!(
            parse_snmp(swapped),
            Some(TcpCounters {
                received: 0,
                passive_opens: 8,
                resets_sent: 7
            })
        );
    }

    #[test]
    fn torn_and_foreign_files_have_no_counters() {
        for end in 0..SNMP.len() - 40 {
            let torn = &SNMP[..end];
            // A cut inside the values may still show the whole numbers.
            if let Some(counters) = parse_snmp(torn) {
                assert_eq!(counters.passive_opens, 22);
            }
        }
        for text in [
            &b""[..],
            b"Tcp: PassiveOpens OutRsts\n",
            b"Tcp: A B\nTcp: 1 2\n",
            b"Tcp: PassiveOpens\nTcp: x\n",
        ] {
            assert_eq!(parse_snmp(text), None);
        }
    }

    #[test]
    fn what_survives_an_interval_was_missed() {
        let mut coverage = Coverage::new();
        coverage.start(100, 0);
        // Two opened, one seen: on its way at the first scheduled reading.
        coverage.after_reading(102, 1);
        assert_eq!(coverage.end_interval(102, 1), 0);
        // Still missing one interval later.
        coverage.after_reading(102, 1);
        assert_eq!(coverage.end_interval(102, 1), 1);
        // Counted once only.
        coverage.after_reading(102, 1);
        assert_eq!(coverage.end_interval(102, 1), 0);
    }

    #[test]
    fn what_shows_up_late_was_not_missed() {
        let mut coverage = Coverage::new();
        coverage.start(100, 5);
        coverage.after_reading(103, 5);
        assert_eq!(coverage.end_interval(103, 5), 0);
        coverage.after_reading(103, 8);
        assert_eq!(coverage.end_interval(104, 8), 0);
        coverage.after_reading(104, 9);
        assert_eq!(coverage.end_interval(104, 9), 0);
    }

    /// Three are on their way at each reading: never the same ones. Of ten
    /// missed among them all are found once nothing hides them.
    #[test]
    fn a_steady_stream_is_not_missed() {
        let mut coverage = Coverage::new();
        coverage.start(0, 0);
        let mut interval = |opens: u64, seen: u64, later: u64| {
            coverage.settle(opens, seen);
            coverage.after_reading(opens, seen);
            let missed = coverage.end_interval(opens, seen);
            coverage.after_events(later);
            missed
        };
        for opens in (100..1000).step_by(100) {
            assert_eq!(interval(opens, opens - 3, opens + 2), 0);
        }
        assert_eq!(interval(1010, 1000 - 3, 1000 + 2), 0);
        assert_eq!(interval(1110, 1100 - 3, 1100 + 2), 8, "hidden by two");
        assert_eq!(interval(1210, 1200, 1200), 0);
        assert_eq!(interval(1210, 1200, 1200), 2);
    }

    #[test]
    fn rows_may_be_ahead_of_the_counter() {
        let mut coverage = Coverage::new();
        coverage.start(100, 0);
        coverage.after_reading(100, 1);
        assert_eq!(coverage.end_interval(100, 1), 0);
        coverage.after_reading(101, 1);
        assert_eq!(coverage.end_interval(101, 1), 0);
        coverage.after_reading(101, 1);
        assert_eq!(coverage.end_interval(101, 1), 0);
    }

    /// Ten were missed and come to light; five missed later still count.
    #[test]
    fn late_ones_hide_none() {
        let mut coverage = Coverage::new();
        coverage.settle(u64::MAX, 7);
        coverage.start(100, 0);
        let mut interval = |opens, seen| {
            coverage.settle(opens, seen);
            coverage.after_reading(opens, seen);
            coverage.end_interval(opens, seen)
        };
        assert_eq!(interval(110, 0), 0);
        assert_eq!(interval(110, 0), 10);
        assert_eq!(interval(110, 10), 0);
        assert_eq!(interval(115, 10), 0);
        assert_eq!(interval(115, 10), 5);
        // Seen more often than counted, by whatever mistake.
        assert_eq!(interval(115, 40), 0);
        assert_eq!(interval(118, 40), 0);
        assert_eq!(interval(118, 40), 3);
    }

    #[test]
    fn a_reading_follows_only_what_was_not_seen() {
        let mut coverage = Coverage::new();
        assert_eq!(coverage.look(5, 0), Look::AllSeen, "not started");
        coverage.start(100, 0);
        assert_eq!(coverage.look(100, 0), Look::AllSeen);
        for _ in 1..COUNTERS_LOOKS {
            assert_eq!(coverage.look(101, 0), Look::Again);
        }
        assert_eq!(coverage.look(101, 0), Look::Unseen);
        // The reading did not show it, so another one would not either.
        coverage.after_reading(101, 0);
        assert_eq!(coverage.look(101, 0), Look::AllSeen);
        // It comes to light and another one is held: the same number is missing.
        assert_eq!(coverage.look(102, 1), Look::Again);
        assert_eq!(coverage.look(102, 2), Look::AllSeen);
        // Given up at the end of an interval, they are not missing any more.
        coverage.after_reading(104, 2);
        coverage.end_interval(104, 2);
        coverage.after_reading(104, 2);
        assert_eq!(coverage.end_interval(104, 2), 2);
        assert_eq!(coverage.look(105, 3), Look::AllSeen);
        assert_eq!(coverage.look(106, 3), Look::Again);
    }

    /// One is on its way at each look but the last; one is held at each.
    #[test]
    fn what_was_on_its_way_brings_no_reading() {
        let mut coverage = Coverage::new();
        coverage.start(0, 0);
        let looks = COUNTERS_LOOKS as u64;
        for number in 1..looks {
            assert_eq!(coverage.look(number, number - 1), Look::Again);
        }
        assert_eq!(coverage.look(looks, looks), Look::AllSeen);
        for number in 1..looks {
            assert_eq!(coverage.look(looks + number, looks), Look::Again);
        }
        assert_eq!(coverage.look(2 * looks, looks + 3), Look::Unseen);
    }
}
