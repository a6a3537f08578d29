//! From identities to slots.
//!
//! A hash table that grows moves all its entries at once: tens of milliseconds
//! for half a million, in which nothing else is done. So there are several, of
//! which the largest has twice as much as the smallest: they grow one after the
//! other, at most a tenth of the entries at a time.

use super::slot::Slot;
use crate::hash::mix;
use hashbrown::HashTable;

/// Number of tables.
const PARTS: usize = 16;

/// The slots in use of a store by identity.
#[derive(Debug)]
pub struct Index {
    parts: Box<[HashTable<u32>]>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        let parts = std::iter::repeat_with(HashTable::new).take(PARTS);
        Self {
            parts: parts.collect(),
            len: 0,
        }
    }
}

impl Index {
    /// Slots it knows.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory held, about.
    pub fn memory(&self) -> usize {
        let room: usize = self.parts.iter().map(HashTable::capacity).sum();
        room * (size_of::<u32>() + 1)
    }

    /// The slot of an identity.
    #[inline]
    pub fn find(&self, slots: &[Slot], key: u64) -> Option<u32> {
        let hash = mix(key);
        let part = self.parts.get(part_of(hash))?;
        part.find(hash, |i| key_of(slots, *i) == key).copied()
    }

    /// Adds a slot whose identity no other has.
    #[inline]
    pub fn insert(&mut self, slots: &[Slot], key: u64, index: u32) {
        let hash = mix(key);
        if let Some(part) = self.parts.get_mut(part_of(hash)) {
            part.insert_unique(hash, index, |i| mix(key_of(slots, *i)));
            self.len += 1;
        }
    }

    /// Takes a slot out.
    pub fn remove(&mut self, key: u64, index: u32) {
        let hash = mix(key);
        let part = self.parts.get_mut(part_of(hash));
        if let Some(Ok(entry)) = part.map(|p| p.find_entry(hash, |i| *i == index)) {
            entry.remove();
            self.len -= 1;
        }
    }
}

fn key_of(slots: &[Slot], index: u32) -> u64 {
    slots.get(index as usize).map_or(0, |s| s.key)
}

/// Where a hash belongs. With u, 16 of its bits read as 0 to 1, that is
/// 16 (4u - u^2) / 3: the last part gets twice as much as the first.
///
/// A table looks at the lowest bits and at the top seven.
const fn part_of(hash: u64) -> usize {
    let u = (hash >> 40) & 0xffff;
    let part = (u * ((4 << 16) - u) * PARTS as u64 / 3) >> 32;
    part as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(count: u32, mut each: impl FnMut(&Index)) {
        let mut index = Index::default();
        let slots: Vec<_> = (0..count).map(slot).collect();
        for (at, slot) in (0..).zip(&slots) {
            index.insert(&slots, slot.key, at);
            each(&index);
        }
        assert_eq!(index.len(), slots.len());
        for (at, slot) in (0..).zip(&slots) {
            assert_eq!(index.find(&slots, slot.key), Some(at));
            index.remove(slot.key, at);
            assert_eq!(index.find(&slots, slot.key), None);
        }
        assert_eq!(index.len(), 0);
    }

    fn slot(n: u32) -> Slot {
        Slot {
            key: mix(n.into()),
            ..Slot::EMPTY
        }
    }

    #[test]
    fn every_part_is_used_and_none_beyond() {
        let part = |u: u64| part_of(u << 40);
        assert_eq!((part(0), part(0xffff)), (0, PARTS - 1));
        let count = |wanted| (0..=0xffff).filter(|u| part(*u) == wanted).count();
        assert_eq!((count(0), count(PARTS - 1)), (3109, 5880));
    }

    #[test]
    fn they_do_not_grow_at_once() {
        let mut grown = Vec::new();
        let mut before = 0;
        filled(50_000, |index| {
            let room = index.memory();
            if room > before {
                grown.push(index.len());
                before = room;
            }
        });
        for from in (10_000..45_000).step_by(1000) {
            let range = from..from + from / 10;
            let some = grown.iter().filter(|at| range.contains(*at)).count();
            assert!((1..6).contains(&some), "{some} within {range:?}");
        }
    }
}
