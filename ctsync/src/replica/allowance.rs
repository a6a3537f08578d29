//! How often a peer may make us go through everything.
//!
//! A greeting under a new name of itself hashes our copy of it anew, and one
//! that it answers queues all that is ours. Both cost by the table, and the
//! peer a datagram.

use std::time::Duration;

/// Time a pass over one entry earns: several times what it takes.
const PER_ENTRY: Duration = Duration::from_micros(2);
/// However large the table.
const LONGEST: Duration = Duration::from_secs(10);
/// Passes at once: a node that restarts needs three, and may restart again.
const BURST: u32 = 16;

/// What is left of a peer's share.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowance {
    until: Duration,
}

impl Allowance {
    /// Takes a pass over so many entries; false if that has to wait.
    pub fn take(&mut self, entries: usize, now: Duration) -> bool {
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        let cost = PER_ENTRY.saturating_mul(entries).min(LONGEST);
        let used = self.until.max(now);
        if used > now + cost * (BURST - 1) {
            return false;
        }
        self.until = used + cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_passes_at_once_then_at_a_rate() {
        let mut allowance = Allowance::default();
        let start = Duration::from_secs(100);
        let taken = |a: &mut Allowance, from: Duration| {
            let steps = (0..1000).map(|ms| from + Duration::from_millis(ms));
            steps.filter(|now| a.take(10_000, *now)).count()
        };
        // 20 ms each.
        assert_eq!(taken(&mut allowance, start), 65);
        assert_eq!(taken(&mut allowance, start + Duration::from_secs(1)), 50);
        assert_eq!(taken(&mut allowance, start * 2), 65);
        assert!((0..1000).all(|_| allowance.take(0, start * 3)));
    }

    #[test]
    fn a_large_table_is_waited_for_at_most_so_long() {
        let mut allowance = Allowance::default();
        let mut now = Duration::ZERO;
        for _ in 0..100 {
            let _ = allowance.take(usize::MAX, now);
        }
        now += LONGEST;
        assert!(allowance.take(usize::MAX, now));
        assert!(!allowance.take(usize::MAX, now));
    }
}
