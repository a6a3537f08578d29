//! How large datagrams may be. Some path may swallow large ones without a
//! word, after its MTU has changed somewhere.

use std::time::Duration;

/// What every path carries: IPv6's smallest MTU less headers and seal.
pub const SAFE: usize = 1200;
/// So many larger ones lost, and none arrived in between: they are swallowed.
const SWALLOWED: u32 = 8;
/// Then larger ones are tried again after this time.
const AGAIN: Duration = Duration::from_secs(60);

/// What became of larger datagrams on a path.
#[derive(Debug, Clone, Copy, Default)]
pub struct Width {
    lost: u32,
    narrow_until: Option<Duration>,
}

impl Width {
    /// A path about which nothing is known.
    pub const fn new() -> Self {
        Self {
            lost: 0,
            narrow_until: None,
        }
    }

    /// What a datagram may have of `limit` bytes.
    pub fn limit(&self, limit: usize, now: Duration) -> usize {
        if self.narrow_until.is_some_and(|until| now < until) {
            limit.min(SAFE)
        } else {
            limit
        }
    }

    /// One of this size has arrived.
    pub const fn arrived(&mut self, size: usize) {
        if size > SAFE {
            self.lost = 0;
            self.narrow_until = None;
        }
    }

    /// One of this size is lost.
    pub fn lost(&mut self, size: usize, now: Duration) {
        if size > SAFE {
            self.lost += 1;
            if self.lost >= SWALLOWED {
                self.lost = 0;
                self.narrow_until = Some(now + AGAIN);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_datagrams_that_never_arrive_narrow_the_path() {
        let (mut w, now) = (Width::new(), Duration::from_secs(5));
        for _ in 0..100 {
            w.lost(SAFE, now);
        }
        for _ in 0..SWALLOWED - 1 {
            w.lost(SAFE + 1, now);
        }
        w.arrived(SAFE + 1);
        w.lost(SAFE + 1, now);
        assert_eq!(w.limit(1400, now), 1400);
        for _ in 0..SWALLOWED {
            w.arrived(SAFE);
            w.lost(SAFE + 1, now);
        }
        assert_eq!((w.limit(1400, now), w.limit(600, now)), (SAFE, 600));
        assert_eq!(w.limit(1400, now + AGAIN), 1400);
        // It was late, not lost.
        w.arrived(SAFE + 1);
        assert_eq!(w.limit(1400, now), 1400);
    }
}
