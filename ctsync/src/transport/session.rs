//! A session: keys for both directions, a counter out, a window in.

use super::frame::{self, HEADER};
use super::key::Public;
use snow::StatelessTransportState;
use std::time::Duration;

const WORDS: usize = 64;
/// Frames that may overtake one another.
const WINDOW: u64 = 64 * WORDS as u64;
/// Never reached; a session that did would have to stop.
const MAX_COUNTER: u64 = 1 << 60;

/// Which counters have been used, so that no frame counts twice.
#[derive(Debug, Clone)]
pub struct Replay {
    next: u64,
    seen: [u64; WORDS],
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            next: 0,
            seen: [0; WORDS],
        }
    }
}

impl Replay {
    fn bit(counter: u64) -> (usize, u64) {
        let at = counter % WINDOW;
        (usize::try_from(at / 64).unwrap_or(0), 1 << (at % 64))
    }

    /// True if a frame with this counter would be new.
    pub fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < MAX_COUNTER;
        }
        let (word, bit) = Self::bit(counter);
        counter + WINDOW >= self.next && self.seen.get(word).is_some_and(|w| w & bit == 0)
    }

    /// Notes a counter. Call only once the frame has proved authentic.
    pub fn note(&mut self, counter: u64) {
        let from = self.next.max(counter.saturating_sub(WINDOW - 1));
        for skipped in from..=counter {
            let (word, bit) = Self::bit(skipped);
            if let Some(w) = self.seen.get_mut(word) {
                *w &= !bit;
            }
        }
        self.next = self.next.max(counter + 1);
        let (word, bit) = Self::bit(counter);
        if let Some(w) = self.seen.get_mut(word) {
            *w |= bit;
        }
    }
}

/// A session.
pub struct Session {
    /// How we name it; the peer writes this into its frames.
    pub local: u32,
    remote: u32,
    /// The key that the peer has proved to have.
    pub public: Public,
    noise: StatelessTransportState,
    counter: u64,
    replay: Replay,
    /// When its keys were made.
    pub born: Duration,
    /// True if we began it: then we renew it.
    pub initiator: bool,
    /// The peer's incarnation.
    pub incarnation: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:08x})", self.local)
    }
}

impl Session {
    /// A session after its handshake with the owner of `public`. `names` are
    /// ours for it and the peer's.
    pub fn new(
        noise: StatelessTransportState,
        public: Public,
        names: (u32, u32),
        incarnation: u64,
        now: Duration,
    ) -> Self {
        Self {
            local: names.0,
            remote: names.1,
            public,
            initiator: noise.is_initiator(),
            noise,
            counter: 0,
            replay: Replay::default(),
            born: now,
            incarnation,
        }
    }

    /// Seals `plain` into a frame; `None` if it is too long.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let counter = self.counter;
        self.counter += 1;
        out.clear();
        out.extend_from_slice(&frame::header(self.remote, counter));
        out.resize(frame::OVERHEAD + plain.len(), 0);
        let room = out.get_mut(HEADER..)?;
        self.noise.write_message(counter, plain, room).ok()?;
        Some(())
    }

    /// Opens a frame into `out`.
    ///
    /// # Errors
    /// [`Refused`] if it is a replay or not authentic.
    pub fn open(&mut self, counter: u64, sealed: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
        if !self.replay.is_new(counter) {
            return Err(Refused::Replay);
        }
        out.resize(sealed.len(), 0);
        let len = self
            .noise
            .read_message(counter, sealed, out)
            .map_err(|_| Refused::Forged)?;
        out.truncate(len);
        self.replay.note(counter);
        Ok(())
    }
}

/// Why a sealed frame was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It came before.
    Replay,
    /// It is not from who holds the keys.
    Forged,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use std::collections::BTreeSet;

    #[test]
    fn a_counter_is_new_once_and_only_inside_the_window() {
        let mut rng = Rng::new(3);
        let (mut r, mut used, mut top) = (Replay::default(), BTreeSet::new(), 0_u64);
        for _ in 0..50_000 {
            let counter = top.saturating_sub(3000) + u64::from(rng.below(9000));
            if r.is_new(counter) {
                assert!(used.insert(counter), "{counter} twice");
                r.note(counter);
                top = top.max(counter);
            } else {
                assert!(
                    used.contains(&counter) || counter + WINDOW <= top,
                    "{counter}"
                );
            }
        }
        assert!(!Replay::default().is_new(MAX_COUNTER));
    }
}
