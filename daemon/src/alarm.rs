//! A deadline for an event loop, kept by the kernel.
//!
//! A timeout given to epoll is set at each wait and taken back at each
//! wake-up. Where one of them is the processor's next timer, that programs its
//! clock; in a virtual machine that is a way to the hypervisor, ten microseconds
//! between an event and its reader. Here a timer that is set stays until it
//! runs out, though there may be nothing to do then: a loop whose deadlines move
//! on with each event touches it once per deadline, not twice per event.

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A timer; readable when it has run out.
#[derive(Debug)]
pub struct Alarm {
    timer: TimerFd,
    set: Option<Duration>,
}

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            set: None,
        })
    }

    /// Runs out at `at` at the latest; `now` is before it, on the same clock,
    /// which is the caller's and monotonic.
    ///
    /// # Errors
    /// The timer is broken.
    pub fn set(&mut self, at: Duration, now: Duration) -> io::Result<()> {
        if self.set.is_some_and(|set| set <= at) {
            return Ok(());
        }
        // Zero would stop it.
        let rest = at.saturating_sub(now).max(Duration::from_nanos(1));
        let once = Expiration::OneShot(TimeSpec::from_duration(rest));
        self.timer.set(once, TimerSetTimeFlags::empty())?;
        self.set = Some(at);
        Ok(())
    }

    /// To be called when it is readable: it is not set any more.
    ///
    /// # Errors
    /// The timer is broken.
    pub fn ran_out(&mut self) -> io::Result<()> {
        match self.timer.wait() {
            Ok(()) => self.set = None,
            // It was set anew since.
            Err(Errno::EAGAIN) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reactor;
    use std::time::Instant;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Waits, for a minute at most, until the alarm is readable.
    fn wait(alarm: &Alarm) -> bool {
        let reactor = Reactor::new().unwrap();
        reactor.add(alarm, 7).unwrap();
        let mut tokens = Vec::new();
        reactor
            .wait(Some(Duration::from_secs(60)), &mut tokens)
            .unwrap();
        tokens == [7]
    }

    #[test]
    fn it_runs_out_not_before_its_time() {
        let mut alarm = Alarm::new().unwrap();
        let start = Instant::now();
        alarm.set(ms(20), ms(0)).unwrap();
        assert!(wait(&alarm));
        assert!(start.elapsed() >= ms(20));
    }

    #[test]
    fn an_earlier_deadline_counts_and_a_later_one_waits() {
        let mut alarm = Alarm::new().unwrap();
        let start = Instant::now();
        alarm.set(ms(3_600_000), ms(0)).unwrap();
        alarm.set(ms(10), ms(0)).unwrap();
        alarm.set(ms(3_600_000), ms(5)).unwrap();
        assert!(wait(&alarm));
        alarm.ran_out().unwrap();
        // Now the later one has its turn.
        alarm.set(ms(30), ms(10)).unwrap();
        assert!(wait(&alarm));
        assert!(start.elapsed() >= ms(30));
    }

    #[test]
    fn it_is_set_again_before_it_is_looked_at() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(ms(2), ms(0)).unwrap();
        assert!(wait(&alarm));
        alarm.set(ms(1), ms(0)).unwrap();
        alarm.ran_out().unwrap();
        alarm.ran_out().unwrap();
        alarm.set(ms(10), ms(9)).unwrap();
        assert!(wait(&alarm));
    }

    #[test]
    fn a_deadline_that_has_passed_runs_out_at_once() {
        let mut alarm = Alarm::new().unwrap();
        alarm.set(ms(1), ms(2)).unwrap();
        assert!(wait(&alarm));
    }
}
