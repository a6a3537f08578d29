//! What peers no longer have, until it is deleted from the kernel.

use std::collections::{HashMap, VecDeque};

/// What was put into the kernel for a peer that has it no longer.
#[derive(Debug)]
pub struct Gone {
    /// Its identity, as this node's own entries have them.
    pub key: u64,
    /// Its record.
    pub record: Vec<u8>,
    /// See [`crate::store::Slot::deadline`].
    pub deadline: u32,
    /// The peer's copy was complete when it said so.
    pub was_synced: bool,
}

/// Those that wait.
#[derive(Debug, Default)]
pub struct Queue {
    order: VecDeque<u64>,
    all: HashMap<u64, Gone>,
}

impl Queue {
    /// Memory for so many is kept when it is empty.
    const KEPT: usize = 4096;

    /// How many wait.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// True if none does.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Those that wait, in any order.
    pub fn iter(&self) -> impl Iterator<Item = &Gone> {
        self.all.values()
    }

    /// One more, or one that had come again and has gone again: what was said of it
    /// before no longer holds.
    pub fn push(&mut self, gone: Gone) {
        let key = gone.key;
        if self.all.insert(key, gone).is_none() {
            self.order.push_back(key);
        }
    }

    /// Takes the first ones, at most `count`.
    pub fn take(&mut self, count: usize) -> Vec<Gone> {
        let count = count.min(self.order.len());
        let keys = self.order.drain(..count);
        let first = keys.filter_map(|key| self.all.remove(&key)).collect();
        if self.is_empty() {
            self.order.shrink_to(Self::KEPT);
            self.all.shrink_to(Self::KEPT);
        }
        first
    }

    /// Puts back what was taken.
    pub fn put_back(&mut self, first: Vec<Gone>) {
        for gone in first.into_iter().rev() {
            self.order.push_front(gone.key);
            self.all.insert(gone.key, gone);
        }
    }

    /// Drops the last ones, so that `count` are left.
    pub fn truncate(&mut self, count: usize) {
        let count = count.min(self.order.len());
        for key in self.order.drain(count..) {
            self.all.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(key: u64, deadline: u32) -> Gone {
        Gone {
            key,
            record: Vec::new(),
            deadline,
            was_synced: true,
        }
    }

    fn keys(gone: &[Gone]) -> Vec<u64> {
        gone.iter().map(|g| g.key).collect()
    }

    #[test]
    fn the_first_are_taken_first_and_what_is_said_last_holds() {
        let mut queue = Queue::default();
        for (key, deadline) in [(1, 1), (2, 1), (1, 7), (3, 1)] {
            queue.push(gone(key, deadline));
        }
        let first = queue.take(2);
        assert_eq!(keys(&first), [1, 2]);
        assert_eq!(first.first().map(|g| g.deadline), Some(7));
        queue.put_back(first);
        queue.truncate(2);
        assert_eq!(queue.len(), 2);
        assert_eq!(keys(&queue.take(9)), [1, 2]);
        assert!(queue.is_empty() && queue.take(1).is_empty());
    }
}
