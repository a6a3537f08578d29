//! The live expectations of this daemon's helpers, for the limits that span
//! connections and queues.
//!
//! What is made is counted before it is made; what the kernel reports counts
//! besides: expectations that are consumed, time out or go with their master,
//! and those that others put in (a restarted daemon's predecessor, ctsync).
//! The kernel queues its events before it goes on, so reading them when a
//! limit is reached gives the count of that moment. Where it reports nothing
//! (`nf_conntrack_events=0`), or more than the buffer holds, the table is read
//! again, at most once a second.

use crate::core::OpenError;
use crate::ledger::{Key, Ledger, Limits};
use crate::support::{self, Failure};
use netfilter::conntrack::{Change, group};
use netfilter::expect::{self, Event};
use netfilter::message::Messages;
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Name, Socket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Receive buffer: some 3,000 events.
const BUFFER: usize = 4 << 20;
/// Between two readings of the table because of a limit.
const RECOUNT: Duration = Duration::from_secs(1);

/// Counts live expectations; all queue threads share it.
#[derive(Debug)]
pub struct Census {
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Counted {
    ledger: Ledger,
    helpers: Vec<Name>,
    events: Socket,
    table: Socket,
    buf: RecvBuf,
    recounted: Instant,
}

impl Census {
    /// Listens to the kernel and counts what `helpers` have already.
    ///
    /// # Errors
    /// No nfnetlink, or no privilege.
    pub fn open(helpers: Vec<Name>, limits: Limits) -> Result<Self, Failure> {
        let events = Socket::open()?;
        events.set_receive_buffer(BUFFER)?;
        for group in [group::EXP_NEW, group::EXP_DESTROY] {
            events.join(group).map_err(support::registry)?;
        }
        let mut counted = Counted {
            ledger: Ledger::new(limits),
            helpers,
            events,
            table: Socket::open()?,
            buf: RecvBuf::new(),
            recounted: Instant::now(),
        };
        counted.recount(Instant::now());
        Ok(Self {
            counted: Mutex::new(counted),
        })
    }

    /// Does `f` with the socket that gets readable when there are events.
    pub fn with_events<T>(&self, f: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        f(self.lock().events.as_fd())
    }

    /// Puts limits in force for what is made from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().ledger.limits = limits;
    }

    /// Counts `keys`, all of one master, before they are made or renewed.
    /// Returns which of them were not counted before, as bits.
    ///
    /// # Errors
    /// [`OpenError::ClientLimit`] or [`OpenError::TotalLimit`].
    pub fn admit(
        &self,
        keys: impl Iterator<Item = Key> + Clone,
        timeout: Duration,
    ) -> Result<u64, OpenError> {
        let mut counted = self.lock();
        let now = Instant::now();
        let mut outcome = counted.ledger.admit(keys.clone(), now + timeout);
        for look_again in [
            Counted::read_events,
            Counted::expire,
            Counted::recount_at_times,
        ] {
            if outcome.is_ok() {
                break;
            }
            look_again(&mut counted, now);
            outcome = counted.ledger.admit(keys.clone(), now + timeout);
        }
        outcome
    }

    /// Those of `keys` that `new` has a bit for were not made after all.
    pub fn withdraw(&self, keys: impl Iterator<Item = Key>, new: u64) {
        let mut counted = self.lock();
        for (i, key) in keys.take(64).enumerate() {
            if new >> i & 1 == 1 {
                counted.ledger.remove(&key);
            }
        }
    }

    /// Takes in what the kernel has reported.
    pub fn read_events(&self) {
        self.lock().read_events(Instant::now());
    }

    /// Live expectations, and clients that have any.
    pub fn size(&self) -> (usize, usize) {
        let mut counted = self.lock();
        counted.expire(Instant::now());
        counted.ledger.size()
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn read_events(&mut self, now: Instant) {
        let mut lost = false;
        loop {
            match self.events.try_receive(&mut self.buf) {
                Ok(Received::Datagram(datagram)) => {
                    for message in Messages::new(datagram) {
                        if let Ok(Some(event)) = Event::decode(&message) {
                            take(&mut self.ledger, &self.helpers, &event, now);
                        }
                    }
                }
                Ok(Received::Overrun) => lost = true,
                Ok(Received::Empty) => break,
                Err(error) => {
                    tracing::debug!(%error, "expectation events");
                    break;
                }
            }
        }
        if lost {
            self.recount(now);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.ledger.expire(now);
    }

    fn recount_at_times(&mut self, now: Instant) {
        if now.saturating_duration_since(self.recounted) >= RECOUNT {
            self.recount(now);
        }
    }

    /// Reads the kernel's table. What another thread is about to make is not in
    /// it yet: its event follows.
    fn recount(&mut self, now: Instant) {
        self.recounted = now;
        self.ledger.clear();
        let (ledger, helpers) = (&mut self.ledger, &self.helpers);
        let dumped = self.table.exchange(
            "listing expectations",
            |buf, seq| expect::dump(buf, None, seq),
            |message| {
                if let Ok(Some(event)) = Event::decode(message) {
                    take(ledger, helpers, &event, now);
                }
            },
        );
        if let Err(error) = dumped {
            tracing::debug!(%error);
        }
    }
}

/// An expectation was made, listed or destroyed.
fn take(ledger: &mut Ledger, helpers: &[Name], event: &Event, now: Instant) {
    let e = &event.expectation;
    let key = Key::of(e);
    if event.change == Change::Destroy {
        ledger.remove(&key);
    } else if e.helper.is_some_and(|helper| helpers.contains(&helper)) {
        let left = Duration::from_secs(e.timeout.unwrap_or(0).into());
        ledger.note(std::iter::once(key), now + left);
    }
}
