//! When to wait for more events before the next are read.
//!
//! To read many at once costs a third of reading each as it comes; but while
//! few come, each shall be at the peer as soon as it can.

use std::time::Duration;

/// How long events are counted.
const WINDOW: Duration = Duration::from_millis(8);
/// From so many in a window on, they are read in groups: 16,000 a second.
const BUSY: usize = 128;
/// How long is waited for a group.
const PAUSE: Duration = Duration::from_micros(500);

/// Counts events.
#[derive(Debug)]
pub struct Pace {
    since: Duration,
    events: usize,
    busy: bool,
}

impl Pace {
    /// Nothing has come yet at `now`.
    pub fn new(now: Duration) -> Self {
        Self {
            since: now,
            events: 0,
            busy: false,
        }
    }

    /// `events` more have been read at `now`: how long to wait before the
    /// next, if at all.
    pub fn pause(&mut self, events: usize, now: Duration) -> Option<Duration> {
        self.events += events;
        let passed = now.saturating_sub(self.since);
        if passed >= WINDOW {
            let windows = usize::try_from(passed.as_millis() / WINDOW.as_millis());
            self.busy = self.events / BUSY >= windows.unwrap_or(usize::MAX);
            (self.since, self.events) = (now, 0);
        } else if self.events >= BUSY {
            self.busy = true;
        }
        (self.busy && events > 0).then_some(PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events come in groups of `each`, two milliseconds apart: how many of
    /// the second hundred are followed by a pause.
    fn pauses(pace: &mut Pace, start: u64, each: usize) -> usize {
        let at = |n: u64| Duration::from_millis(start + 2 * n);
        let mut paused = |n| pace.pause(each, at(n)).is_some();
        (0..100).for_each(|n| {
            paused(n);
        });
        (100..200).filter(|n| paused(*n)).count()
    }

    #[test]
    fn few_are_read_as_they_come_and_many_in_groups() {
        let mut pace = Pace::new(Duration::ZERO);
        assert_eq!(pauses(&mut pace, 0, 20), 0);
        assert_eq!(pauses(&mut pace, 1000, 48), 100);
        assert_eq!(pauses(&mut pace, 2000, 20), 0);
    }

    #[test]
    fn nothing_is_waited_for_where_nothing_came() {
        let mut pace = Pace::new(Duration::ZERO);
        let at = Duration::from_millis(1);
        assert!(pace.pause(10_000, at).is_some());
        assert_eq!(pace.pause(0, at), None);
    }

    #[test]
    fn silence_ends_it() {
        let mut pace = Pace::new(Duration::ZERO);
        assert!(pace.pause(10_000, Duration::from_millis(1)).is_some());
        let later = Duration::from_secs(10);
        assert_eq!(pace.pause(1, later), None);
        assert_eq!(pace.pause(1, later), None);
    }
}
