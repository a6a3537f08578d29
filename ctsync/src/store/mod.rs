//! The cache of one origin's states: encoded records, found by the keyed hash
//! of their key, with digests over 65,536 ranges of that hash.
//!
//! A record's identity is the 64-bit keyed hash of its key. Two keys collide
//! once in 10^7 tables of a million; then one entry is missed, no more. In
//! return a lookup touches no record, a deletion is eight bytes on the wire,
//! and a slot outlives its record as a tombstone.

mod arena;
mod digest;
mod index;
mod slot;

pub use arena::MAX_LEN;
pub use digest::{BLOCK, BLOCKS, GROUPS, LEAVES, Leaf, Sums};
pub use slot::{Flags, NONE, Slot, body_of};

use crate::hash::Seed;
use arena::Arena;
use digest::Digests;
use index::Index;

/// What [`Store::put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The record is new (or was a tombstone).
    New,
    /// Its bytes differ.
    Changed,
    /// Its bytes are the same.
    Same,
}

/// The store is full, or the record is longer than [`MAX_LEN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for the record")]
pub struct NoRoom;

/// A record on its way in.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its identity ([`Store::key`]).
    pub key: u64,
    /// All its bytes.
    pub bytes: &'a [u8],
    /// True for an expectation.
    pub expect: bool,
    /// See [`Slot::deadline`].
    pub deadline: u32,
}

/// A cache of records.
#[derive(Debug)]
pub struct Store {
    key_seed: Seed,
    body_seed: Seed,
    index: Index,
    slots: Vec<Slot>,
    free: Vec<u32>,
    arena: Arena,
    digests: Digests,
    flows: usize,
    expectations: usize,
    limit: usize,
}

impl Store {
    /// An empty store that hashes with `seed` and holds at most `limit`
    /// records, and as many tombstones.
    pub fn new(seed: Seed, limit: usize) -> Self {
        Self {
            key_seed: seed,
            body_seed: seed.derive(1),
            index: Index::default(),
            slots: Vec::new(),
            free: Vec::new(),
            arena: Arena::default(),
            digests: Digests::default(),
            flows: 0,
            expectations: 0,
            limit,
        }
    }

    /// Live connections.
    pub const fn flows(&self) -> usize {
        self.flows
    }

    /// Live expectations.
    pub const fn expectations(&self) -> usize {
        self.expectations
    }

    /// Live records.
    pub const fn len(&self) -> usize {
        self.flows + self.expectations
    }

    /// True without live records.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots in use or free: the bound of [`Store::slot`].
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Digests of the live records.
    pub const fn digests(&self) -> &Digests {
        &self.digests
    }

    /// Bytes of memory held, about.
    pub fn memory(&self) -> usize {
        self.arena.capacity()
            + self.slots.capacity() * size_of::<Slot>()
            + self.index.memory()
            + Digests::MEMORY
    }

    /// The identity of a record with this key.
    #[inline]
    pub fn key(&self, key: &[u8]) -> u64 {
        self.key_seed.hash(key)
    }

    /// The slot of an identity, live or tombstone.
    #[inline]
    pub fn find(&self, key: u64) -> Option<u32> {
        self.index.find(&self.slots, key)
    }

    /// A slot in use.
    #[inline]
    pub fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots
            .get(index as usize)
            .filter(|s| s.flags.contains(Flags::USED))
    }

    /// A slot in use, to change its marks.
    #[inline]
    pub fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.slots
            .get_mut(index as usize)
            .filter(|s| s.flags.contains(Flags::USED))
    }

    /// The bytes of a live record; empty for tombstones and refused ones.
    #[inline]
    pub fn bytes(&self, slot: &Slot) -> &[u8] {
        if slot.len == 0 {
            return &[];
        }
        self.arena.get(slot.place, usize::from(slot.len))
    }

    /// Slots that are live, in no order.
    pub fn live(&self) -> impl Iterator<Item = (u32, &Slot)> {
        (0..).zip(&self.slots).filter(|(_, s)| s.is_live())
    }

    /// Stores a record. If it is the same, its deadline is left as it is: see
    /// [`Store::set_deadline`].
    ///
    /// # Errors
    /// [`NoRoom`]; the store is unchanged then.
    pub fn put(&mut self, entry: &Entry<'_>) -> Result<(u32, Change), NoRoom> {
        let hash = self.body_seed.hash(entry.bytes);
        let body = u32::try_from(hash >> 32).unwrap_or_default();
        match self.find(entry.key) {
            Some(index) => self.overwrite(index, entry, body),
            None => self.insert(entry, body),
        }
    }

    /// Holds only the hashes of a record that can't be used: the digest of
    /// this copy then equals its origin's.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_refused(&mut self, entry: &Entry<'_>) -> Result<u32, NoRoom> {
        let (index, _) = self.put(entry)?;
        self.drop_bytes(index);
        if let Some(s) = self.slot_mut(index) {
            s.flags.insert(Flags::REFUSED);
        }
        Ok(index)
    }

    /// Tombstones take no room from records: a peer that confirms nothing,
    /// or asks about what never existed, makes many.
    fn has_room(&self) -> bool {
        self.len() < self.limit && self.index.len() < self.limit.saturating_mul(2)
    }

    fn insert(&mut self, entry: &Entry<'_>, body: u32) -> Result<(u32, Change), NoRoom> {
        if !self.has_room() {
            return Err(NoRoom);
        }
        let place = self.arena.put(entry.bytes).ok_or(NoRoom)?;
        let len = u16::try_from(entry.bytes.len()).map_err(|_| NoRoom)?;
        let index = self.free.pop().map_or_else(|| self.grow(), Ok)?;
        if let Some(s) = self.slots.get_mut(index as usize) {
            *s = Slot {
                key: entry.key,
                body,
                place,
                len,
                deadline: entry.deadline,
                flags: kind(entry.expect) | Flags::USED,
                ..Slot::EMPTY
            };
        }
        self.index.insert(&self.slots, entry.key, index);
        self.link(index);
        self.count(entry.expect, 1);
        Ok((index, Change::New))
    }

    fn grow(&mut self) -> Result<u32, NoRoom> {
        let index = u32::try_from(self.slots.len()).map_err(|_| NoRoom)?;
        self.slots.push(Slot::EMPTY);
        Ok(index)
    }

    fn overwrite(
        &mut self,
        index: u32,
        entry: &Entry<'_>,
        body: u32,
    ) -> Result<(u32, Change), NoRoom> {
        let Some(old) = self.slots.get(index as usize).copied() else {
            return Err(NoRoom);
        };
        let same = old.is_live() && old.body == body && self.bytes(&old) == entry.bytes;
        if same {
            return Ok((index, Change::Same));
        }
        if !old.is_live() && self.len() >= self.limit {
            return Err(NoRoom);
        }
        let len = u16::try_from(entry.bytes.len()).map_err(|_| NoRoom)?;
        let place = if old.len == 0 {
            self.arena.put(entry.bytes)
        } else {
            self.arena
                .replace(old.place, usize::from(old.len), entry.bytes)
        };
        let place = place.ok_or(NoRoom)?;
        if old.is_live() {
            self.digests.flip(&old);
            self.count(old.is_expect(), -1);
        }
        if let Some(s) = self.slots.get_mut(index as usize) {
            s.place = place;
            s.len = len;
            s.body = body;
            s.deadline = entry.deadline;
            s.pending = 0;
            s.flags.remove(Flags::TOMB | Flags::REFUSED | Flags::EXPECT);
            s.flags.insert(kind(entry.expect));
            self.digests.flip(s);
        }
        if !old.is_live() {
            self.thread(index);
        }
        self.count(entry.expect, 1);
        let change = if old.is_live() {
            Change::Changed
        } else {
            Change::New
        };
        Ok((index, change))
    }

    /// When the entry times out, see [`Slot::deadline`].
    pub fn set_deadline(&mut self, index: u32, deadline: u32) {
        if let Some(s) = self.slots.get_mut(index as usize) {
            s.deadline = deadline;
        }
    }

    /// Turns a live record into a tombstone: it leaves the digests and the
    /// counts, its slot stays until [`Store::bury`].
    pub fn kill(&mut self, index: u32) {
        let Some(old) = self.slot(index).copied().filter(Slot::is_live) else {
            return;
        };
        self.digests.flip(&old);
        self.unthread(index);
        self.count(old.is_expect(), -1);
        self.drop_bytes(index);
        if let Some(s) = self.slots.get_mut(index as usize) {
            s.flags.insert(Flags::TOMB);
            s.flags
                .remove(Flags::INSTALLED | Flags::REFUSED | Flags::SEEN | Flags::FRESH);
        }
    }

    /// Makes a tombstone for an identity that has no slot.
    ///
    /// # Errors
    /// [`NoRoom`] if there are half as many tombstones as there may be
    /// records; the other half is for records that are deleted.
    pub fn plant(&mut self, key: u64) -> Result<u32, NoRoom> {
        if self.index.len() - self.len() >= self.limit / 2 {
            return Err(NoRoom);
        }
        let index = self.free.pop().map_or_else(|| self.grow(), Ok)?;
        if let Some(s) = self.slots.get_mut(index as usize) {
            *s = Slot {
                key,
                flags: Flags::USED | Flags::TOMB,
                ..Slot::EMPTY
            };
        }
        self.index.insert(&self.slots, key, index);
        Ok(index)
    }

    /// Frees a tombstone's slot.
    pub fn bury(&mut self, index: u32) {
        let Some(old) = self.slot(index).copied().filter(Slot::is_tomb) else {
            return;
        };
        self.index.remove(old.key, index);
        if let Some(s) = self.slots.get_mut(index as usize) {
            *s = Slot::EMPTY;
        }
        self.free.push(index);
    }

    /// Kills and buries at once.
    pub fn remove(&mut self, index: u32) {
        self.kill(index);
        self.bury(index);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let (seed, limit) = (self.key_seed, self.limit);
        *self = Self::new(seed, limit);
    }

    /// Computes all hashes anew with another seed, because the origin has
    /// restarted. `key_of` cuts the key out of a record; refused records and
    /// tombstones are dropped.
    pub fn reseed(&mut self, seed: Seed, key_of: impl Fn(&[u8]) -> Option<&[u8]>) {
        let old = std::mem::replace(self, Self::new(seed, self.limit));
        for (_, slot) in old.live() {
            let bytes = old.bytes(slot);
            let Some(key) = key_of(bytes) else { continue };
            let entry = Entry {
                key: self.key(key),
                bytes,
                expect: slot.is_expect(),
                deadline: slot.deadline,
            };
            if let Ok((index, _)) = self.put(&entry) {
                if let Some(s) = self.slot_mut(index) {
                    s.flags.insert(slot.flags & Flags::INSTALLED);
                }
            }
        }
    }

    fn drop_bytes(&mut self, index: u32) {
        if let Some(s) = self.slots.get_mut(index as usize) {
            if s.len != 0 {
                self.arena.free(s.place, usize::from(s.len));
                s.len = 0;
            }
        }
    }

    const fn count(&mut self, expect: bool, by: isize) {
        if expect {
            self.expectations = self.expectations.wrapping_add_signed(by);
        } else {
            self.flows = self.flows.wrapping_add_signed(by);
        }
    }

    fn link(&mut self, index: u32) {
        if let Some(s) = self.slots.get(index as usize) {
            self.digests.flip(s);
        }
        self.thread(index);
    }

    /// Puts the slot at the head of its leaf's list.
    fn thread(&mut self, index: u32) {
        let Some(key) = self.slots.get(index as usize).map(|s| s.key) else {
            return;
        };
        let head = self.digests.swap_head(key, index);
        if let Some(h) = self.slots.get_mut(head as usize) {
            h.prev = index;
        }
        if let Some(s) = self.slots.get_mut(index as usize) {
            s.next = head;
            s.prev = NONE;
        }
    }

    fn unthread(&mut self, index: u32) {
        let Some(&Slot {
            key, next, prev, ..
        }) = self.slots.get(index as usize)
        else {
            return;
        };
        if let Some(n) = self.slots.get_mut(next as usize) {
            n.prev = prev;
        }
        match self.slots.get_mut(prev as usize) {
            Some(p) => p.next = next,
            None => {
                self.digests.swap_head(key, next);
            }
        }
    }

    /// The live slots of one leaf, in no order.
    pub fn leaf(&self, leaf: Leaf) -> impl Iterator<Item = (u32, &Slot)> {
        let mut at = self.digests.head(leaf);
        std::iter::from_fn(move || {
            let index = at;
            let slot = self.slots.get(index as usize)?;
            at = slot.next;
            Some((index, slot))
        })
    }
}

const fn kind(expect: bool) -> Flags {
    if expect {
        Flags::EXPECT
    } else {
        Flags::empty()
    }
}

#[cfg(test)]
mod tests;
