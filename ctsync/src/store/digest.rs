//! Digests: the XOR of a keyed mark per record, over 65,536 leaves (the top
//! 16 bits of the identity) and 256 groups of leaves.
//!
//! Two caches of the same origin are equal if their roots are; where they
//! differ, groups, then leaves, then the records of a leaf show where.

use super::slot::{NONE, Slot};

/// Number of groups.
pub const GROUPS: usize = 256;
/// Number of leaves.
pub const LEAVES: usize = 65536;

/// Number of a leaf; its high byte is the group.
pub type Leaf = u16;

/// The digests of one store.
#[derive(Debug)]
pub struct Digests {
    root: u64,
    groups: Box<[u64]>,
    leaves: Box<[u64]>,
    heads: Box<[u32]>,
}

impl Default for Digests {
    fn default() -> Self {
        Self {
            root: 0,
            groups: vec![0; GROUPS].into(),
            leaves: vec![0; LEAVES].into(),
            heads: vec![NONE; LEAVES].into(),
        }
    }
}

/// The leaf of an identity.
pub const fn leaf_of(key: u64) -> Leaf {
    let [a, b, ..] = key.to_be_bytes();
    u16::from_be_bytes([a, b])
}

impl Digests {
    pub(super) const MEMORY: usize = LEAVES * 12 + GROUPS * 8;

    /// Digest of everything.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Digests of all groups.
    pub fn groups(&self) -> &[u64] {
        &self.groups
    }

    /// Digests of the 256 leaves of a group.
    pub fn leaves(&self, group: u8) -> &[u64] {
        let at = usize::from(group) * 256;
        self.leaves.get(at..at + 256).unwrap_or_default()
    }

    pub(super) fn flip(&mut self, slot: &Slot) {
        let leaf = usize::from(leaf_of(slot.key));
        let mark = slot.mark();
        self.root ^= mark;
        if let Some(d) = self.groups.get_mut(leaf >> 8) {
            *d ^= mark;
        }
        if let Some(d) = self.leaves.get_mut(leaf) {
            *d ^= mark;
        }
    }

    pub(super) fn head(&self, leaf: Leaf) -> u32 {
        self.heads.get(usize::from(leaf)).copied().unwrap_or(NONE)
    }

    pub(super) fn swap_head(&mut self, key: u64, index: u32) -> u32 {
        self.heads
            .get_mut(usize::from(leaf_of(key)))
            .map_or(NONE, |h| std::mem::replace(h, index))
    }
}
