//! A keyed hash table of fixed capacity whose entries stand in ordered classes.
//!
//! One shape serves every table of the daemon: connections, listeners, sources
//! and blocks. Entries keep their slot for life, and each belongs to one class,
//! a list ordered by last touch, so that "the oldest of the least suspicious"
//! is one look at a list's head. All-zero bytes are an empty table, and slots
//! and index are used from the front, so memory in .bss grows with use only.

use core::net::IpAddr;

use crate::address::{Endpoint, Network};
use crate::limits::PORTS_PER_SOURCE;

/// What an unused slot holds; must be all zero bytes where that matters for
/// .bss.
pub trait Blank: Copy {
    /// The filler.
    const BLANK: Self;
}

/// A secret 128-bit key: without it no peer can aim at collisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKey {
    /// The first half.
    pub k0: u64,
    /// The second half.
    pub k1: u64,
}

impl HashKey {
    /// SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF")
    /// over whole 64-bit words and a `tail` of seven bytes, which stands in one
    /// word with the length.
    pub fn hash(self, words: &[u64], tail: u64) -> u64 {
        debug_assert!(tail >> 56 == 0);
        let mut v = [
            self.k0 ^ 0x736f_6d65_7073_6575,
            self.k1 ^ 0x646f_7261_6e64_6f6d,
            self.k0 ^ 0x6c79_6765_6e65_7261,
            self.k1 ^ 0x7465_6462_7974_6573,
        ];
        for word in words {
            absorb(&mut v, *word);
        }
        absorb(&mut v, (words.len() as u64 * 8 + 7) << 56 | tail);
        v[2] ^= 0xff;
        // One by one: each row comes here twice, and a loop is not unrolled where
        // the compiler optimises for size.
        sip_round(&mut v);
        sip_round(&mut v);
        sip_round(&mut v);
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }

    /// An address, and a number that stands with it.
    #[inline(never)]
    pub fn hash_address(&self, address: IpAddr, number: u16) -> u32 {
        let number = u64::from(number);
        fold(match address {
            IpAddr::V4(v4) => self.hash(&[], u64::from(v4.to_bits()) << 16 | number),
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                self.hash(&[(bits >> 64) as u64, bits as u64], number)
            }
        })
    }

    /// Both ends of a connection, each in its place.
    #[inline(never)]
    pub fn hash_ends(self, one: &Endpoint, other: &Endpoint) -> u64 {
        let ports = u64::from(one.port) << 16 | u64::from(other.port);
        match (one.address, other.address) {
            (IpAddr::V4(one), IpAddr::V4(other)) => {
                let addresses = u64::from(one.to_bits()) << 32 | u64::from(other.to_bits());
                self.hash(&[addresses], ports)
            }
            (one, other) => {
                let ([a, b], [c, d]) = (words(one), words(other));
                self.hash(&[a, b, c, d], ports)
            }
        }
    }
}

/// As 128 bits. IPv4 has 64 ones in front: those of IPv6 that begin so are
/// multicast, which no connection has.
pub fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [u64::MAX, v4.to_bits().into()],
        IpAddr::V6(v6) => [(v6.to_bits() >> 64) as u64, v6.to_bits() as u64],
    }
}

fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
}

// Where a word takes two registers, a copy at each place costs 350 bytes.
#[cfg_attr(target_pointer_width = "32", inline(never))]
fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// What a table looks entries up by.
pub trait Key: Blank + Eq {
    /// A keyed hash of the whole value.
    fn hash(&self, key: &HashKey) -> u32;
}

impl Blank for u64 {
    const BLANK: Self = 0;
}

/// A key that is a keyed fingerprint already.
impl Key for u64 {
    fn hash(&self, _: &HashKey) -> u32 {
        fold(*self)
    }
}

impl Blank for Network {
    const BLANK: Self = Network::BLANK;
}

impl Key for Network {
    fn hash(&self, key: &HashKey) -> u32 {
        key.hash_address(self.address(), self.host_bits().into())
    }
}

/// The number of an entry's place, stable until the entry is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

#[derive(Clone, Copy)]
struct Entry<K, V> {
    key: K,
    value: V,
}

/// What binds an entry. Apart from the entries, so that the functions on lists
/// and index are the same for every table.
#[derive(Clone, Copy)]
struct Link {
    hash: u32,
    /// Neighbours in the class's list as slot number + 1; 0 ends it. A free
    /// entry uses `next` for the free list.
    previous: u32,
    next: u32,
    /// Class number + 1; 0 marks a free entry.
    class: u8,
}

/// Head and tail of a class's list as slot number + 1, and its length.
#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
    length: u32,
}

/// As many classes as any table needs, so that all have the same lists.
pub const CLASSES: usize = PORTS_PER_SOURCE + 3;

const _: () = assert!(CLASSES < 255, "a class is a byte");

/// What is the same for every table: its numbers, lists and index, and what is
/// done to them. The code is one for every capacity.
#[repr(C)]
struct Core<I: ?Sized = [u32]> {
    hash_key: HashKey,
    length: u32,
    /// Slots ever used: those behind were never touched.
    used: u32,
    free: u32,
    /// Index positions in use minus one; 0 until the first insertion.
    index_mask: u32,
    lists: [List; CLASSES],
    /// Open addressing with linear probing; slot number + 1, 0 for empty.
    index: I,
}

/// Index sizes are powers of two from this one up to `INDEX`.
const INDEX_MIN: usize = 64;

/// A table of at most `N` entries. `INDEX` is a power of two of at least `2 * N`.
#[repr(C)]
pub struct Table<K, V, const N: usize, const INDEX: usize> {
    core: Core<[u32; INDEX]>,
    links: [Link; N],
    entries: [Entry<K, V>; N],
}

/// The table has no free slot: evict first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<K: Key, V: Blank, const N: usize, const INDEX: usize> Table<K, V, N, INDEX> {
    const PROOF: () = {
        assert!(
            N > 0 && N < u32::MAX as usize,
            "a table needs between 1 and 2^32-2 slots"
        );
        assert!(INDEX.is_power_of_two(), "an index is a power of two");
        assert!(
            INDEX >= INDEX_MIN && INDEX >= 2 * N,
            "an index is at least twice the table"
        );
    };

    /// An empty table: all zero bytes.
    pub const fn new() -> Self {
        let () = Self::PROOF;
        Self {
            core: Core {
                hash_key: HashKey { k0: 0, k1: 0 },
                length: 0,
                used: 0,
                free: 0,
                index_mask: 0,
                lists: [List {
                    head: 0,
                    tail: 0,
                    length: 0,
                }; CLASSES],
                index: [0; INDEX],
            },
            links: [Link {
                hash: 0,
                previous: 0,
                next: 0,
                class: 0,
            }; N],
            entries: [Entry {
                key: K::BLANK,
                value: V::BLANK,
            }; N],
        }
    }

    /// Sets the secret; call before the first insertion.
    pub fn set_hash_key(&mut self, hash_key: HashKey) {
        self.core.hash_key = hash_key;
    }

    /// The secret.
    pub fn hash_key(&self) -> HashKey {
        self.core.hash_key
    }

    /// Entries in the table.
    pub fn len(&self) -> usize {
        self.core.length as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.core.length == 0
    }

    /// Entries in one class.
    pub fn class_len(&self, class: usize) -> usize {
        let list = self.core.lists.get(class);
        list.map_or(0, |list| list.length as usize)
    }

    /// The slot of `key`.
    pub fn find(&self, key: &K) -> Option<Slot> {
        if self.core.index_mask == 0 {
            return None;
        }
        let hash = key.hash(&self.core.hash_key);
        let mut position = hash;
        // The index is at most half full, so an empty position ends the probe.
        loop {
            position &= self.core.index_mask;
            let slot = self.core.index.get(position as usize)?.checked_sub(1)?;
            if self.links.get(slot as usize)?.hash == hash
                && self.entries.get(slot as usize)?.key == *key
            {
                return Some(Slot(slot));
            }
            position += 1;
        }
    }

    /// Adds an entry at the young end of `class`. The key must not be in the
    /// table yet.
    pub fn insert(&mut self, key: K, value: V, class: usize) -> Result<Slot, Full> {
        let slot = self.place(key, class)?;
        if let Some(place) = self.value_mut(slot) {
            *place = value;
        }
        Ok(slot)
    }

    /// The same for a large value of which the caller sets the parts that count:
    /// it starts as whatever its slot held before.
    pub fn place(&mut self, key: K, class: usize) -> Result<Slot, Full> {
        debug_assert!(self.find(&key).is_none());
        let hash = key.hash(&self.core.hash_key);
        let slot = Core::place(&mut self.core, &mut self.links, hash, class);
        let slot = slot.ok_or(Full)?;
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            entry.key = key;
        }
        Ok(Slot(slot))
    }

    /// Takes an entry out; its slot may serve another key afterwards.
    #[inline(never)]
    pub fn remove(&mut self, slot: Slot) {
        Core::remove(&mut self.core, &mut self.links, slot.0);
    }

    /// The key in `slot`.
    pub fn key(&self, slot: Slot) -> Option<&K> {
        self.entry(slot).map(|entry| &entry.key)
    }

    /// The value in `slot`.
    pub fn value(&self, slot: Slot) -> Option<&V> {
        self.entry(slot).map(|entry| &entry.value)
    }

    /// The value in `slot`, to change.
    pub fn value_mut(&mut self, slot: Slot) -> Option<&mut V> {
        self.entry_mut(slot).map(|entry| &mut entry.value)
    }

    /// Class, key and value in `slot`, inline.
    pub fn look(&self, slot: Slot) -> Option<(usize, &K, &V)> {
        let class = self.class(slot)?;
        let entry = self.entries.get(slot.0 as usize)?;
        Some((class, &entry.key, &entry.value))
    }

    /// The class an entry is in.
    pub fn class(&self, slot: Slot) -> Option<usize> {
        self.link(slot).map(|link| usize::from(link.class) - 1)
    }

    /// Moves an entry to the young end of `class`.
    #[inline(never)]
    pub fn touch(&mut self, slot: Slot, class: usize) {
        Core::touch(&mut self.core, &mut self.links, slot.0, class);
    }

    /// The entry of `class` that was touched longest ago.
    pub fn oldest(&self, class: usize) -> Option<Slot> {
        self.core.lists.get(class)?.head.checked_sub(1).map(Slot)
    }

    /// The next younger entry of the same class.
    pub fn younger(&self, slot: Slot) -> Option<Slot> {
        self.link(slot)?.next.checked_sub(1).map(Slot)
    }

    /// The first entry from slot number `from` on, to walk a table in parts.
    pub fn next_from(&self, from: u32) -> Option<(u32, Slot)> {
        (from..self.core.used).find_map(|slot| self.link(Slot(slot)).map(|_| (slot, Slot(slot))))
    }

    // The same code as the next one, which the linker then keeps once.
    #[inline(never)]
    fn entry(&self, slot: Slot) -> Option<&Entry<K, V>> {
        self.link(slot)?;
        self.entries.get(slot.0 as usize)
    }

    #[inline(never)]
    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry<K, V>> {
        self.link(slot)?;
        self.entries.get_mut(slot.0 as usize)
    }

    /// The link of an entry that is not free.
    fn link(&self, slot: Slot) -> Option<&Link> {
        let link = self.links.get(slot.0 as usize);
        link.filter(|link| link.class != 0)
    }
}

impl Core {
    #[inline(never)]
    fn place(&mut self, links: &mut [Link], hash: u32, class: usize) -> Option<u32> {
        if (self.length + 1) * 2 > self.index_mask {
            self.grow_index(links);
        }
        let slot = match self.free.checked_sub(1) {
            Some(slot) => {
                self.free = links.get(slot as usize)?.next;
                slot
            }
            None => self.used,
        };
        links.get_mut(slot as usize)?.hash = hash;
        self.used = self.used.max(slot + 1);
        self.index_insert(hash, slot);
        self.link(links, slot, class);
        self.length += 1;
        Some(slot)
    }

    #[inline(never)]
    fn remove(&mut self, links: &mut [Link], slot: u32) {
        let link = links.get(slot as usize).filter(|link| link.class != 0);
        let Some(hash) = link.map(|link| link.hash) else {
            return;
        };
        self.index_remove(links, hash, slot);
        self.unlink(links, slot);
        if let Some(link) = links.get_mut(slot as usize) {
            link.class = 0;
            link.next = self.free;
        }
        self.free = slot + 1;
        self.length -= 1;
    }

    fn grow_index(&mut self, links: &[Link]) {
        let size = ((self.index_mask as usize + 1) * 2).max(INDEX_MIN);
        let Some(index) = self.index.get_mut(..size) else {
            return;
        };
        index.fill(0);
        self.index_mask = size as u32 - 1;
        for (slot, link) in (0..self.used).zip(links) {
            if link.class != 0 {
                self.index_insert(link.hash, slot);
            }
        }
    }

    fn index_insert(&mut self, hash: u32, slot: u32) {
        let mut position = hash & self.index_mask;
        while let Some(place) = self.index.get_mut(position as usize) {
            if *place == 0 {
                *place = slot + 1;
                return;
            }
            position = (position + 1) & self.index_mask;
        }
    }

    /// Backward-shift deletion (Knuth, TAOCP volume 3, section 6.4, algorithm
    /// R): no tombstones, probes stay short for ever.
    fn index_remove(&mut self, links: &[Link], hash: u32, slot: u32) {
        let (index, mask) = (&mut self.index, self.index_mask);
        let mut hole = hash & mask;
        let is_other = |place: &u32| *place != slot + 1 && *place != 0;
        while index.get(hole as usize).is_some_and(is_other) {
            hole = (hole + 1) & mask;
        }
        let mut position = hole;
        loop {
            position = (position + 1) & mask;
            let Some(&place) = index.get(position as usize) else {
                return;
            };
            let link = place
                .checked_sub(1)
                .and_then(|slot| links.get(slot as usize));
            let Some(link) = link else { break };
            // An entry may fill the hole only if its home lies at or before it.
            let home = link.hash;
            if (position.wrapping_sub(home) & mask) >= (position.wrapping_sub(hole) & mask) {
                if let Some(empty) = index.get_mut(hole as usize) {
                    *empty = place;
                }
                hole = position;
            }
        }
        if let Some(empty) = index.get_mut(hole as usize) {
            *empty = 0;
        }
    }

    /// Moves an entry that is not free to the young end of `class`. Each row of a
    /// reading comes here once or twice: one call for all of it.
    #[inline(never)]
    fn touch(&mut self, links: &mut [Link], slot: u32, class: usize) {
        if self.unlink(links, slot).is_some() {
            self.link(links, slot, class);
        }
    }

    /// Puts an entry at the young end of `class`.
    #[inline(always)]
    fn link(&mut self, links: &mut [Link], slot: u32, class: usize) {
        let class = class.min(CLASSES - 1);
        let Some(list) = self.lists.get_mut(class) else {
            return;
        };
        let previous = list.tail;
        list.tail = slot + 1;
        list.length += 1;
        if previous == 0 {
            list.head = slot + 1;
        } else if let Some(link) = links.get_mut(previous as usize - 1) {
            link.next = slot + 1;
        }
        if let Some(link) = links.get_mut(slot as usize) {
            link.previous = previous;
            link.next = 0;
            link.class = class as u8 + 1;
        }
    }

    /// Takes an entry out of its class; `None` where it is free and in none.
    #[inline(always)]
    fn unlink(&mut self, links: &mut [Link], slot: u32) -> Option<()> {
        let &Link {
            previous,
            next,
            class,
            ..
        } = links.get(slot as usize)?;
        let list = self.lists.get_mut(usize::from(class).wrapping_sub(1))?;
        list.length -= 1;
        if previous == 0 {
            list.head = next;
        } else if let Some(link) = links.get_mut(previous as usize - 1) {
            link.next = next;
        }
        if next == 0 {
            list.tail = previous;
        } else if let Some(link) = links.get_mut(next as usize - 1) {
            link.previous = previous;
        }
        Some(())
    }
}

fn fold(hash: u64) -> u32 {
    (hash ^ hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// The standard library's DefaultHasher is SipHash-1-3 with a zero key.
    #[test]
    fn siphash_agrees_with_std() {
        use std::hash::{DefaultHasher, Hasher};
        for words in [
            &[0u64][..],
            &[0, 0],
            &[1],
            &[0, 1, 7],
            &[u64::MAX, 1 << 63],
            &[],
        ] {
            for tail in [0, 1, 0x0102_0304_0506, u64::MAX >> 8] {
                let mut reference = DefaultHasher::new();
                for word in words {
                    reference.write_u64(*word);
                }
                reference.write(&tail.to_le_bytes()[..7]);
                let (zero, other) = (HashKey::default(), HashKey { k0: 1, k1: 2 });
                assert_eq!(zero.hash(words, tail), reference.finish());
                assert_ne!(other.hash(words, tail), reference.finish());
            }
        }
    }

    type Small = Table<u64, u64, 8, 64>;

    #[test]
    fn full_is_an_answer() {
        let mut table = std::boxed::Box::new(Small::new());
        for key in 0..8 {
            table.insert(key, key * 10, 0).unwrap();
        }
        assert_eq!(
            table.find(&0).and_then(|slot| table.value(slot).copied()),
            Some(0)
        );
        assert_eq!(table.insert(8, 0, 0), Err(Full));
        let oldest = table.oldest(0).unwrap();
        table.remove(oldest);
        assert_eq!(table.find(&0), None);
        assert!(table.insert(8, 80, 1).is_ok());
        assert_eq!(table.len(), 8);
        assert_eq!(table.class_len(1), 1);
    }

    /// A Vec with linear search does the same, slowly.
    #[test]
    fn agrees_with_a_naive_oracle() {
        let mut table = std::boxed::Box::new(Table::<u64, u64, 300, 1024>::new());
        let mut oracle: [Vec<(u64, u64)>; 3] = [Vec::new(), Vec::new(), Vec::new()];
        let mut state: u64 = 88_172_645_463_325_252;
        for step in 0..200_000u64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Few distinct low bits: long probe chains.
            let key = (state >> 8) % 500 * 64;
            let class = (state >> 40) as usize % 3;
            let held = oracle
                .iter()
                .position(|list| list.iter().any(|(k, _)| *k == key));
            let found = table.find(&key);
            assert_eq!(found.is_some(), held.is_some());
            match (found, held) {
                (None, _) => match table.insert(key, step, class) {
                    Ok(_) => oracle[class].push((key, step)),
                    Err(Full) => assert_eq!(oracle.iter().map(Vec::len).sum::<usize>(), 300),
                },
                (Some(slot), Some(held)) => {
                    let at = oracle[held].iter().position(|(k, _)| *k == key).unwrap();
                    assert_eq!(table.class(slot), Some(held));
                    assert_eq!(table.value(slot), Some(&oracle[held][at].1));
                    let pair = oracle[held].remove(at);
                    if state & 1 == 0 {
                        table.remove(slot);
                        assert_eq!(table.find(&key), None);
                    } else {
                        table.touch(slot, class);
                        oracle[class].push(pair);
                    }
                }
                _ => unreachable!(),
            }
            if step % 1_000 == 0 {
                for (class, list) in oracle.iter().enumerate() {
                    let mut keys = Vec::new();
                    let mut next = table.oldest(class);
                    while let Some(slot) = next {
                        keys.push((*table.key(slot).unwrap(), *table.value(slot).unwrap()));
                        next = table.younger(slot);
                    }
                    assert_eq!(&keys, list);
                    assert_eq!(table.class_len(class), list.len());
                }
                let first = table.next_from(0);
                let walk = std::iter::successors(first, |(at, _)| table.next_from(at + 1));
                assert_eq!(walk.count(), table.len());
            }
        }
    }
}
