//! How long to wait for an acknowledgement (RFC 6298).
//!
//! No two datagrams have the same number, whatever they say. So each
//! acknowledgement tells of one sending, and is a sample: there is nothing to
//! leave out (Karn's rule).

use std::time::Duration;

const INITIAL: Duration = Duration::from_millis(200);
/// Least that is granted beyond the mean: the peer acknowledges when it gets a
/// processor.
const SLACK: Duration = Duration::from_millis(30);
const MAX: Duration = Duration::from_secs(2);
/// Times the timeout may double: then it is [`MAX`] anyway.
const DOUBLINGS: u32 = 6;

/// What is known of a round trip.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timer {
    /// Mean, and mean deviation.
    known: Option<(Duration, Duration)>,
    /// Expirations since the last sample.
    expired: u32,
}

impl Timer {
    /// One that knows nothing.
    pub const fn new() -> Self {
        Self {
            known: None,
            expired: 0,
        }
    }

    /// A round trip was measured.
    pub fn sample(&mut self, rtt: Duration) {
        let (mean, deviation) = match self.known {
            None => (rtt, rtt / 2),
            Some((mean, deviation)) => (
                (mean * 7 + rtt) / 8,
                (deviation * 3 + mean.abs_diff(rtt)) / 4,
            ),
        };
        self.known = Some((mean, deviation));
        self.expired = 0;
    }

    /// The time was up, and nothing had come.
    pub fn expire(&mut self) {
        self.expired = (self.expired + 1).min(DOUBLINGS);
    }

    /// How long to wait.
    pub fn timeout(&self) -> Duration {
        let once = self.known.map_or(INITIAL, |(mean, deviation)| {
            mean + (deviation * 4).max(SLACK)
        });
        (once * (1 << self.expired)).min(MAX)
    }

    /// Mean of the round trips.
    pub fn mean(&self) -> Duration {
        self.known.map_or(INITIAL, |(mean, _)| mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_timeout_is_the_mean_and_four_deviations() {
        let mut timer = Timer::new();
        assert_eq!(timer.timeout(), ms(200));
        timer.sample(ms(100));
        assert_eq!(timer.timeout(), ms(100 + 4 * 50));
        timer.sample(ms(180));
        // 110 and (3 * 50 + 80) / 4.
        assert_eq!(timer.timeout(), ms(110 + 230));
    }

    #[test]
    fn a_steady_path_keeps_some_slack() {
        let mut timer = Timer::new();
        for _ in 0..100 {
            timer.sample(ms(1));
        }
        assert_eq!(timer.timeout(), ms(31));
    }

    #[test]
    fn a_timeout_doubles_until_there_is_a_sample() {
        let mut timer = Timer::new();
        timer.sample(ms(20));
        let mut seen = Vec::new();
        for _ in 0..9 {
            seen.push(timer.timeout().as_millis());
            timer.expire();
        }
        assert_eq!(seen, [60, 120, 240, 480, 960, 1920, 2000, 2000, 2000]);
        timer.sample(ms(20));
        // The deviation shrinks: 4 * 7.5.
        assert_eq!(timer.timeout(), ms(50));
    }
}
