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
/// Leaves that are compared together.
pub const BLOCK: usize = 128;
/// Number of such blocks.
pub const BLOCKS: u16 = 512;

/// Number of a leaf; its high byte is the group.
pub type Leaf = u16;

/// What is known of all entries of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// XOR of their marks: the digest.
    pub digest: u64,
    /// XOR of their identities: where two leaves differ in one entry, its
    /// identity is the difference.
    pub keys: u64,
    /// First of the leaf's list of slots.
    head: u32,
}

/// The digests of one store.
#[derive(Debug)]
pub struct Digests {
    root: u64,
    groups: Box<[u64]>,
    leaves: Box<[Sums]>,
}

impl Default for Digests {
    fn default() -> Self {
        let empty = Sums {
            digest: 0,
            keys: 0,
            head: NONE,
        };
        Self {
            root: 0,
            groups: vec![0; GROUPS].into(),
            leaves: vec![empty; LEAVES].into(),
        }
    }
}

/// The leaf of an identity.
pub const fn leaf_of(key: u64) -> Leaf {
    let [a, b, ..] = key.to_be_bytes();
    u16::from_be_bytes([a, b])
}

impl Digests {
    pub(super) const MEMORY: usize = LEAVES * size_of::<Sums>() + GROUPS * 8;

    /// Digest of everything.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Digests of all groups.
    pub fn groups(&self) -> &[u64] {
        &self.groups
    }

    /// A leaf.
    pub fn leaf(&self, leaf: Leaf) -> Option<&Sums> {
        self.leaves.get(usize::from(leaf))
    }

    /// The leaves of a block; none, beyond [`BLOCKS`].
    pub fn block(&self, block: u16) -> &[Sums] {
        let at = usize::from(block) * BLOCK;
        self.leaves.get(at..at + BLOCK).unwrap_or_default()
    }

    pub(super) fn flip(&mut self, slot: &Slot) {
        let leaf = usize::from(leaf_of(slot.key));
        let mark = slot.mark();
        self.root ^= mark;
        if let Some(d) = self.groups.get_mut(leaf >> 8) {
            *d ^= mark;
        }
        if let Some(sums) = self.leaves.get_mut(leaf) {
            sums.digest ^= mark;
            sums.keys ^= slot.key;
        }
    }

    pub(super) fn head(&self, leaf: Leaf) -> u32 {
        self.leaf(leaf).map_or(NONE, |l| l.head)
    }

    pub(super) fn swap_head(&mut self, key: u64, index: u32) -> u32 {
        self.leaves
            .get_mut(usize::from(leaf_of(key)))
            .map_or(NONE, |l| std::mem::replace(&mut l.head, index))
    }
}
