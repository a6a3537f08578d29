//! Keyed 64-bit hash (SipHash-1-3, Aumasson and Bernstein 2012).
//!
//! Both ends of a link compute it over the same bytes with the origin's seed,
//! so its definition is part of the wire format. The seed is secret to the
//! peers: who sends packets can't choose tuples that collide.

/// A 128-bit hash key.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Seed {
    k0: u64,
    k1: u64,
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Seed {
    /// The key from its 16 bytes, little-endian.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let v = u128::from_le_bytes(bytes);
        Self {
            k0: low(v),
            k1: low(v >> 64),
        }
    }

    /// The 16 bytes of the key.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.k0) | (u128::from(self.k1) << 64)).to_le_bytes()
    }

    /// A key for another purpose, derived from this one.
    #[must_use]
    pub fn derive(self, purpose: u64) -> Self {
        Self {
            k0: self.hash(&purpose.to_le_bytes()),
            k1: self.hash(&(!purpose).to_le_bytes()),
        }
    }

    /// Hash of `data`.
    #[inline]
    pub fn hash(self, data: &[u8]) -> u64 {
        let mut s = State::new(self);
        let mut chunks = data.chunks_exact(8);
        for c in &mut chunks {
            s.word(c.try_into().map_or(0, u64::from_le_bytes));
        }
        let mut last = (data.len() as u64) << 56;
        for (i, b) in chunks.remainder().iter().enumerate() {
            last |= u64::from(*b) << (8 * i);
        }
        s.word(last);
        s.finish()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn low(v: u128) -> u64 {
    v as u64
}

struct State(u64, u64, u64, u64);

impl State {
    #[inline]
    const fn new(seed: Seed) -> Self {
        Self(
            seed.k0 ^ 0x736f_6d65_7073_6575,
            seed.k1 ^ 0x646f_7261_6e64_6f6d,
            seed.k0 ^ 0x6c79_6765_6e65_7261,
            seed.k1 ^ 0x7465_6462_7974_6573,
        )
    }

    #[inline]
    const fn round(&mut self) {
        self.0 = self.0.wrapping_add(self.1);
        self.2 = self.2.wrapping_add(self.3);
        self.1 = self.1.rotate_left(13) ^ self.0;
        self.3 = self.3.rotate_left(16) ^ self.2;
        self.0 = self.0.rotate_left(32);
        self.2 = self.2.wrapping_add(self.1);
        self.0 = self.0.wrapping_add(self.3);
        self.1 = self.1.rotate_left(17) ^ self.2;
        self.3 = self.3.rotate_left(21) ^ self.0;
        self.2 = self.2.rotate_left(32);
    }

    #[inline]
    const fn word(&mut self, m: u64) {
        self.3 ^= m;
        self.round();
        self.0 ^= m;
    }

    #[inline]
    const fn finish(mut self) -> u64 {
        self.2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.0 ^ self.1 ^ self.2 ^ self.3
    }
}

/// Spreads a word over all its bits (the finaliser of `SplitMix64`).
#[inline]
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The inverse of [`mix`].
pub const fn unmix(mut x: u64) -> u64 {
    const SECOND: u64 = inverse(0x94d0_49bb_1331_11eb);
    const FIRST: u64 = inverse(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 31) ^ (x >> 62)).wrapping_mul(SECOND);
    x = (x ^ (x >> 27) ^ (x >> 54)).wrapping_mul(FIRST);
    x ^ (x >> 30) ^ (x >> 60)
}

/// The inverse of an odd number modulo 2^64 (Newton's method: each step
/// doubles the bits that are right, and three are to begin with).
pub const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut bits = 3;
    while bits < 64 {
        x = x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)));
        bits *= 2;
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_equals_the_standard_librarys_siphash_1_3() {
        // `DefaultHasher` is SipHash-1-3 with key 0; `write` adds raw bytes.
        use std::hash::Hasher;
        for len in 0..40_u8 {
            let data: Vec<u8> = (0..len).collect();
            let mut h = std::collections::hash_map::DefaultHasher::new();
            h.write(&data);
            assert_eq!(Seed::default().hash(&data), h.finish(), "{len}");
        }
    }

    #[test]
    fn mixing_can_be_undone() {
        for x in [0, 1, 7, u64::MAX, 0x0123_4567_89ab_cdef] {
            assert_eq!(unmix(mix(x)), x);
        }
    }

    #[test]
    fn seeds_survive_bytes_and_separate_purposes() {
        let s = Seed::from_bytes(*b"0123456789abcdef");
        assert_eq!(Seed::from_bytes(s.to_bytes()), s);
        assert_ne!(s.derive(1).hash(b"x"), s.derive(2).hash(b"x"));
        assert_ne!(s.hash(b"x"), Seed::default().hash(b"x"));
    }
}
