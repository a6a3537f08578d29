//! From identities to slots.
//!
//! A hash table that grows moves all its entries at once, and nothing else is done
//! meanwhile. So there are several, of which the largest has nearly twice as much
//! as the smallest: they grow one after the other, at most a tenth of the entries
//! at a time.

use super::slot::Slot;
use crate::hash::mix;
use hashbrown::HashTable;

/// Number of tables.
const PARTS: usize = 16;

/// The slots in use of a store by identity.
#[derive(Debug, Default)]
pub struct Index {
    parts: [HashTable<u32>; PARTS],
    len: usize,
}

impl Index {
    /// Slots it knows.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.parts.iter().map(HashTable::allocation_size).sum()
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
/// 16 (4u - u^2) / 3: the last part gets nearly twice as much as the first.
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

    fn slots(count: u32) -> Vec<Slot> {
        let slot = |n: u32| Slot {
            key: mix(n.into()),
            ..Slot::EMPTY
        };
        (0..count).map(slot).collect()
    }

    #[test]
    fn what_was_inserted_is_found_until_it_is_removed() {
        let slots = slots(2000);
        let mut index = Index::default();
        for (at, slot) in (0..).zip(&slots) {
            assert_eq!(index.find(&slots, slot.key), None);
            index.insert(&slots, slot.key, at);
        }
        assert_eq!(index.len(), slots.len());
        for (at, slot) in (0..).zip(&slots) {
            assert_eq!(index.find(&slots, slot.key), Some(at));
            index.remove(slot.key, at);
            index.remove(slot.key, at);
            assert_eq!(index.find(&slots, slot.key), None);
        }
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn each_part_gets_more_than_the_one_before() {
        let mut counts = [0; PARTS];
        for u in 0..=0xffff {
            counts[part_of(u << 40)] += 1;
        }
        assert!(counts.is_sorted(), "{counts:?}");
        assert_eq!((counts[0], counts[PARTS - 1]), (3109, 5880));
    }

    #[test]
    fn they_do_not_grow_at_once() {
        let slots = slots(50_000);
        let (mut index, mut grown, mut before) = (Index::default(), Vec::new(), 0);
        for (at, slot) in (0..).zip(&slots) {
            index.insert(&slots, slot.key, at);
            if index.memory() > before {
                before = index.memory();
                grown.push(index.len());
            }
        }
        for from in (10_000..45_000).step_by(1000) {
            let range = from..from + from / 10;
            let some = grown.iter().filter(|at| range.contains(*at)).count();
            assert!((1..6).contains(&some), "{some} within {range:?}");
        }
    }
}
