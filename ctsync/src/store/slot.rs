//! What the store knows of a record besides its bytes.

use super::arena::Place;
use crate::hash;
use bitflags::bitflags;

bitflags! {
    /// Properties of a slot.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Flags: u8 {
        /// In use.
        const USED = 1;
        /// An expectation; else a connection.
        const EXPECT = 2;
        /// Deleted, but some peer may not know yet.
        const TOMB = 4;
        /// Seen since the current reconciliation began.
        const SEEN = 8;
        /// Changed by an event since the current reconciliation began.
        const FRESH = 16;
        /// This node has written it into its own kernel.
        const INSTALLED = 32;
        /// The record can't be used here (its reason was counted); only its
        /// hashes are held, so that both ends still agree.
        const REFUSED = 64;
    }
}

/// No slot.
pub const NONE: u32 = u32::MAX;

/// A slot; 40 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// Keyed hash of the record's key: its identity.
    pub key: u64,
    /// Keyed hash of the whole record, cut to 32 bits.
    pub body: u32,
    pub(super) place: Place,
    pub(super) next: u32,
    pub(super) prev: u32,
    /// When the kernel drops it, in seconds on the owner's or this node's
    /// monotonic clock. Not part of the digest.
    pub deadline: u32,
    /// Origin: count of changes. Copy: number of the datagram it came in.
    pub version: u32,
    pub(super) len: u16,
    /// Properties.
    pub flags: Flags,
    /// Peers whose queue holds this slot, a bit each.
    pub queued: u16,
    /// Peers that still have to confirm its deletion, a bit each.
    pub pending: u16,
}

impl Slot {
    pub(super) const EMPTY: Self = Self {
        key: 0,
        body: 0,
        place: 0,
        next: NONE,
        prev: NONE,
        deadline: 0,
        version: 0,
        len: 0,
        flags: Flags::empty(),
        queued: 0,
        pending: 0,
    };

    /// True if it holds a record that exists.
    pub const fn is_live(&self) -> bool {
        self.flags.contains(Flags::USED) && !self.flags.contains(Flags::TOMB)
    }

    /// True for an expectation.
    pub const fn is_expect(&self) -> bool {
        self.flags.contains(Flags::EXPECT)
    }

    /// True if it waits for peers to learn of its deletion.
    pub const fn is_tomb(&self) -> bool {
        self.flags.contains(Flags::TOMB)
    }

    /// What it adds to a digest.
    pub const fn mark(&self) -> u64 {
        mark(self.key, self.body)
    }
}

const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const UNSPREAD: u64 = hash::inverse(SPREAD);

const fn mark(key: u64, body: u32) -> u64 {
    hash::mix(key ^ (body as u64).wrapping_mul(SPREAD))
}

/// The body whose mark this is, if the record's key is `key`: of 2^32 marks,
/// one is any body's.
pub fn body_of(mark: u64, key: u64) -> Option<u32> {
    u32::try_from((hash::unmix(mark) ^ key).wrapping_mul(UNSPREAD)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_the_body_to_who_knows_the_key() {
        for (key, body) in [
            (0, 0),
            (1, u32::MAX),
            (u64::MAX, 7),
            (0x1234_5678_9abc_def0, 9),
        ] {
            assert_eq!(body_of(mark(key, body), key), Some(body));
            assert_eq!(body_of(mark(key, body), key ^ 1), None);
        }
    }
}
