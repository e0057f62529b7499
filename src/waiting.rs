//! What would be evidence, were its port known to be a service: it waits until
//! a reading shows that.

use heapless::Vec;

use crate::address::{Endpoint, Network};
use crate::detector::Data;
use crate::time::Instant;

/// A completed connection, or several of one source to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The peer's, as evidence is held against it.
    pub source: Network,
    /// Our end.
    pub local: Endpoint,
    /// The peer's.
    pub remote: Endpoint,
    /// When the newest of the connections was seen first.
    pub first_seen: Instant,
    /// When the first one began to wait.
    pub since: Instant,
    /// Whether they carried data.
    pub data: Data,
    /// Their handshakes are proven.
    pub is_proven: bool,
    /// They are counted as inbound. Others are only once a reading shows a
    /// listener, and each waits by itself.
    pub is_counted: bool,
    /// The event did not name the peer's port.
    pub is_unnamed: bool,
    /// Its proof is whole: it may block its source.
    pub is_whole: bool,
    /// How many of its source waited before it.
    rank: u16,
}

impl Waiter {
    /// One connection, which is evidence but for its port.
    #[inline(never)]
    pub fn new(source: Network, local: Endpoint, remote: Endpoint, first_seen: Instant) -> Self {
        Self {
            source,
            local,
            remote,
            first_seen,
            since: first_seen,
            data: Data::Unknown,
            is_proven: true,
            is_counted: true,
            is_unnamed: false,
            is_whole: true,
            rank: 0,
        }
    }

    fn is_pair_of(&self, other: &Self) -> bool {
        self.local.port == other.local.port
            && self.is_counted == other.is_counted
            && (self.is_counted || self.remote == other.remote)
    }
}

/// Up to `N` that wait. All bytes zero when new.
pub struct Waiting<const N: usize> {
    waiters: Vec<Waiter, N>,
}

impl<const N: usize> Waiting<N> {
    /// Empty.
    pub const fn new() -> Self {
        Self {
            waiters: Vec::new(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// One more. Where all places are taken, the oldest of the source with most
    /// is evicted: one that fills them does not keep others out.
    #[inline(never)]
    pub fn add(&mut self, waiter: &Waiter) {
        let mut newer = *waiter;
        newer.rank = 0;
        let of_source = self.waiters.iter_mut();
        for older in of_source.filter(|older| older.source == waiter.source) {
            if older.is_pair_of(waiter) {
                older.first_seen = older.first_seen.max(waiter.first_seen);
                older.local = waiter.local;
                older.data = older.data.with(waiter.data);
                older.is_proven |= waiter.is_proven;
                return;
            }
            newer.rank += 1;
        }
        if self.waiters.is_full() {
            self.replace(newer);
        } else {
            let _ = self.waiters.push(newer);
        }
    }

    #[inline(never)]
    fn replace(&mut self, mut newer: Waiter) {
        let (mut most, mut source) = (newer.rank + 1, newer.source);
        for waiter in &self.waiters {
            if waiter.rank >= most {
                (most, source) = (waiter.rank, waiter.source);
            }
        }
        if newer.source == source {
            newer.rank = newer.rank.saturating_sub(1);
        }
        // Where it is the first of its source, and no source has more: the
        // oldest of all.
        let mut oldest: Option<((bool, Instant), &mut Waiter)> = None;
        for waiter in &mut self.waiters {
            let is_other = waiter.source != source;
            if !is_other {
                waiter.rank = waiter.rank.saturating_sub(1);
            }
            let order = (is_other, waiter.since);
            if oldest.as_ref().is_none_or(|(first, _)| order < *first) {
                oldest = Some((order, waiter));
            }
        }
        if let Some((_, oldest)) = oldest {
            *oldest = newer;
        }
    }

    /// Adds what is learned of a connection that waits.
    pub fn note_data(&mut self, source: Network, port: u16, data: Data) {
        let mut waiters = self.waiters.iter_mut();
        let waiter = waiters.find(|one| one.source == source && one.local.port == port);
        if let Some(waiter) = waiter {
            waiter.data = waiter.data.and(data);
        }
    }

    /// The one with this number.
    pub fn get(&self, index: usize) -> Option<&Waiter> {
        self.waiters.get(index)
    }

    /// Its connection counts as inbound from now on.
    pub fn set_counted(&mut self, index: usize) {
        if let Some(waiter) = self.waiters.get_mut(index) {
            waiter.is_counted = true;
        }
    }

    /// Lets the one with this number go; its place is empty until `sweep`.
    pub fn remove(&mut self, index: usize) {
        if let Some(waiter) = self.waiters.get_mut(index) {
            waiter.source = Network::BLANK;
        }
    }

    /// Closes the gaps. Where none ever waited nothing is written: no memory.
    pub fn sweep(&mut self) {
        let mut kept = 0;
        for index in 0..self.waiters.len() {
            if let Some(&waiter) = self.get(index)
                && waiter.source != Network::BLANK
                && let Some(place) = self.waiters.get_mut(kept)
            {
                *place = waiter;
                kept += 1;
            }
        }
        if kept < self.waiters.len() {
            self.waiters.truncate(kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::vec::Vec as List;

    fn waiter(peer: &str, port: u16, second: u64) -> Waiter {
        let endpoint = |text: &str| Endpoint::parse(text.as_bytes()).unwrap();
        let remote = endpoint(&format!("{peer}:50000"));
        let local = endpoint(&format!("10.0.0.1:{port}"));
        let source = Network::single(remote.address);
        Waiter::new(source, local, remote, Instant::from_secs(second))
    }

    fn ports<const N: usize>(waiting: &Waiting<N>, peer: &str) -> List<u16> {
        let source = waiter(peer, 1, 1).source;
        let all = (0..waiting.len()).filter_map(|index| waiting.get(index));
        let mut ports: List<u16> = all
            .filter(|one| one.source == source)
            .map(|one| one.local.port)
            .collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn a_pair_waits_once() {
        let mut waiting = Waiting::<4>::new();
        for second in [5, 9, 7] {
            waiting.add(&waiter("192.0.2.1", 80, second));
        }
        waiting.add(&waiter("192.0.2.1", 81, 5));
        assert_eq!(waiting.len(), 2);
        let one = waiting.get(0).unwrap();
        let times = [one.since, one.first_seen].map(Instant::as_secs);
        assert_eq!(times, [5, 9], "the first waits, the newest counts");
        // Those that are not counted yet wait one by one.
        for remote in [50_001, 50_002, 50_002] {
            let mut outgoing = waiter("192.0.2.1", 80, 6);
            outgoing.remote.port = remote;
            outgoing.is_counted = false;
            waiting.add(&outgoing);
        }
        assert_eq!(waiting.len(), 4);
    }

    #[test]
    fn data_of_all_connections_counts() {
        let mut waiting = Waiting::<4>::new();
        let mut silent = waiter("192.0.2.1", 80, 5);
        silent.data = Data::Silent;
        waiting.add(&silent);
        waiting.add(&silent);
        assert_eq!(waiting.get(0).unwrap().data, Data::Silent);
        waiting.note_data(silent.source, 80, Data::Sent);
        assert_eq!(waiting.get(0).unwrap().data, Data::Sent);
    }

    #[test]
    fn the_source_with_most_is_evicted() {
        let mut waiting = Waiting::<8>::new();
        for port in 1..=5 {
            waiting.add(&waiter("192.0.2.1", port, port.into()));
        }
        for port in 1..=4 {
            waiting.add(&waiter("192.0.2.2", port, 10));
        }
        assert_eq!(ports(&waiting, "192.0.2.1"), [2, 3, 4, 5]);
        assert_eq!(ports(&waiting, "192.0.2.2"), [1, 2, 3, 4]);
        // A third finds places as well; its own are next where it has most.
        for port in 1..=6 {
            waiting.add(&waiter("192.0.2.3", port, 20));
        }
        assert_eq!(waiting.len(), 8);
        let counts =
            ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|peer| ports(&waiting, peer).len());
        assert!(counts.iter().all(|count| *count >= 2), "{counts:?}");
    }

    #[test]
    fn among_equals_the_oldest_is_evicted() {
        let mut waiting = Waiting::<4>::new();
        for number in 1..=6 {
            waiting.add(&waiter(&format!("192.0.2.{number}"), 80, number));
        }
        for (number, expected) in [(1, 0), (2, 0), (3, 1), (6, 1)] {
            assert_eq!(
                ports(&waiting, &format!("192.0.2.{number}")).len(),
                expected
            );
        }
    }

    #[test]
    fn gaps_close() {
        let mut waiting = Waiting::<4>::new();
        for port in 1..=4 {
            waiting.add(&waiter("192.0.2.1", port, 1));
        }
        for index in [0, 2] {
            waiting.remove(index);
        }
        waiting.sweep();
        assert_eq!(ports(&waiting, "192.0.2.1"), [2, 4]);
        waiting.add(&waiter("192.0.2.1", 9, 1));
        assert_eq!(ports(&waiting, "192.0.2.1"), [2, 4, 9]);
    }
}
