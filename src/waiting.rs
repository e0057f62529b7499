//! What would be evidence, were its port known to be a service: it waits until
//! a reading shows that.

use heapless::Vec;

use crate::address::{Endpoint, Network};
use crate::detector::Data;
use crate::time::Instant;

/// A connection that somebody completed, or several of one source to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Who.
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
    /// They are counted as inbound. Others are only once a reading shows that
    /// somebody listens, and each waits by itself.
    pub is_counted: bool,
    /// The event did not name the peer's port.
    pub is_unnamed: bool,
    /// How many of its source waited before it.
    rank: u16,
}

impl Waiter {
    /// One connection, which is evidence but for its port.
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
    /// Nobody waits.
    pub const fn new() -> Self {
        Self {
            waiters: Vec::new(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody does.
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// One more. Where all places are taken, the source with most gives up its
    /// oldest: whoever fills them does not keep others out.
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
        if self.waiters.push(newer).is_err() {
            self.replace(newer);
        }
    }

    fn replace(&mut self, mut newer: Waiter) {
        let most = self.waiters.iter().max_by_key(|waiter| waiter.rank);
        let most = most.filter(|most| most.rank > newer.rank);
        let source = most.map_or(newer.source, |most| most.source);
        for waiter in self.waiters.iter_mut().chain([&mut newer]) {
            if waiter.source == source {
                waiter.rank = waiter.rank.saturating_sub(1);
            }
        }
        // Where it is the first of its source, and no source has more: the
        // oldest of all.
        let oldest = self.waiters.iter_mut().min_by_key(|waiter| {
            let is_other = waiter.source != source;
            (is_other, waiter.since)
        });
        if let Some(oldest) = oldest {
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
    pub fn get(&self, index: usize) -> Option<Waiter> {
        self.waiters.get(index).copied()
    }

    /// Puts back what `get` gave, or lets it go.
    pub fn put_back(&mut self, index: usize, waiter: Option<Waiter>) {
        if let Some(place) = self.waiters.get_mut(index) {
            match waiter {
                Some(waiter) => *place = waiter,
                None => place.source = Network::BLANK,
            }
        }
    }

    /// Closes the gaps.
    pub fn sweep(&mut self) {
        self.waiters
            .retain(|waiter| waiter.source != Network::BLANK);
    }
}

impl<const N: usize> Default for Waiting<N> {
    fn default() -> Self {
        Self::new()
    }
}
