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

/// Those that wait, of each identity one.
#[derive(Debug, Default)]
pub struct Queue {
    /// Identities; what is no longer in `all` is passed by.
    order: VecDeque<u64>,
    all: HashMap<u64, Gone>,
    unsynced: bool,
    short: bool,
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

    /// True if some are to be deleted now.
    pub fn is_due(&self) -> bool {
        !self.is_empty() && !self.short
    }

    /// True if they wait until the kernel has memory.
    pub const fn is_short(&self) -> bool {
        self.short
    }

    /// The kernel may have memory again.
    pub const fn try_again(&mut self) {
        self.short = false;
    }

    /// True if some may live here: the peer's copy was not complete.
    pub const fn may_live(&self) -> bool {
        self.unsynced
    }

    /// Those that wait, in any order.
    pub fn iter(&self) -> impl Iterator<Item = &Gone> {
        self.all.values()
    }

    /// One more, or one that had come again and has gone again: what was said of it
    /// before no longer holds.
    pub fn push(&mut self, gone: Gone) {
        let key = gone.key;
        if self.insert(gone) {
            self.order.push_back(key);
        }
    }

    fn insert(&mut self, gone: Gone) -> bool {
        self.unsynced |= !gone.was_synced;
        self.all.insert(gone.key, gone).is_none()
    }

    /// One less.
    pub fn remove(&mut self, key: u64) {
        self.all.remove(&key);
        self.tidy();
    }

    /// Takes the first ones, at most `count`.
    pub fn take(&mut self, count: usize) -> Vec<Gone> {
        let keys = std::iter::from_fn(|| self.order.pop_front());
        let there = keys.filter_map(|key| self.all.remove(&key));
        let first = there.take(count).collect();
        self.tidy();
        first
    }

    /// Puts back what the kernel had no memory for: all wait now.
    pub fn put_back(&mut self, first: Vec<Gone>) {
        self.short |= !first.is_empty();
        for gone in first.into_iter().rev() {
            self.order.push_front(gone.key);
            self.insert(gone);
        }
    }

    /// Drops the last ones, so that at most `count` are left.
    pub fn truncate(&mut self, count: usize) {
        while self.len() > count {
            if let Some(key) = self.order.pop_back() {
                self.all.remove(&key);
            }
        }
        self.tidy();
    }

    fn tidy(&mut self) {
        if self.is_empty() {
            self.order.clear();
            self.order.shrink_to(Self::KEPT);
            self.all.shrink_to(Self::KEPT);
            self.unsynced = false;
            self.short = false;
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
        assert!(queue.is_due());
        queue.put_back(first);
        assert!(queue.is_short() && !queue.is_due());
        queue.truncate(2);
        assert_eq!(queue.len(), 2);
        assert_eq!(keys(&queue.take(9)), [1, 2]);
        assert!(queue.is_empty() && queue.take(1).is_empty());
        assert!(!queue.is_short() && !queue.is_due());
    }

    #[test]
    fn what_was_removed_and_comes_again_is_there_once() {
        let mut queue = Queue::default();
        for key in 1..=3 {
            queue.push(gone(key, 1));
        }
        queue.remove(1);
        queue.put_back(vec![gone(1, 2)]);
        queue.remove(3);
        queue.push(gone(3, 2));
        queue.truncate(3);
        assert_eq!(keys(&queue.take(2)), [1, 2]);
        assert_eq!(keys(&queue.take(2)), [3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn some_may_live_until_none_waits() {
        let mut queue = Queue::default();
        queue.push(gone(1, 1));
        assert!(!queue.may_live());
        queue.push(Gone {
            was_synced: false,
            ..gone(2, 1)
        });
        let first = queue.take(1);
        assert!(queue.may_live());
        queue.put_back(first);
        queue.take(2);
        assert!(!queue.may_live());
    }
}
