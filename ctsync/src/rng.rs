//! Small generator for schedules that must be replayable; not for keys.

use crate::hash::mix;

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Starts from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        u32::try_from((u64::from(n) * (self.next_u64() >> 32)) >> 32).unwrap_or_default()
    }

    /// True in `percent` of all calls.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }
}
