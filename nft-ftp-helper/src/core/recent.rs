//! What the daemon decided a moment ago and the kernel's packets can not know.
//!
//! A queued packet carries the private data and sequence adjustments of the
//! moment it was queued. A client that sends two segments at once has the second
//! queued before the verdict of the first: its private data is the old one. So
//! what was decided last is kept for as long as such packets may still come,
//! in a table of fixed size. Losing an entry, by a restart or a collision, costs
//! time, and at worst a line: a segment that was queued before looks as if one
//! before it were missing, is dropped, and puts the older private data back. What
//! its sender repeats is read again, rewritten to the same text and the same
//! adjustment. If the receiver has it and the sender knows, the place is given up
//! once an acknowledgement or the fourth try shows it, and the next segment is
//! taken to begin a line.

use super::conn::{Dir, SeqAdj};
use super::state::PrivateData;
use super::tracker::{Outcome, Segment};
use std::time::Duration;

/// Longest time a packet may wait in the queue and still find what was decided
/// after it was queued.
const KEEP: Duration = Duration::from_secs(5);

/// Entries that share a place.
const WAYS: usize = 4;

/// What is known of a connection besides its tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its helper's private data.
    pub data: PrivateData,
    /// The client's and the server's sequence adjustment.
    pub seq_adj: [SeqAdj; 2],
}

impl Known {
    /// Takes over what an outcome for `dir` changed; false if nothing.
    pub fn take(&mut self, dir: Dir, outcome: &Outcome) -> bool {
        if let Some(data) = outcome.state {
            self.data = data;
        }
        let [orig, reply] = &mut self.seq_adj;
        if let Some(adj) = outcome.seq_adj {
            match dir {
                Dir::Orig => *orig = adj,
                Dir::Reply => *reply = adj,
            }
        }
        outcome.state.is_some() || outcome.seq_adj.is_some()
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    id: u32,
    at: Duration,
    known: Known,
}

/// A table of the latest decisions, by connection id (`CTA_ID`). Of fixed size;
/// one per queue.
#[derive(Debug)]
pub struct Recent {
    sets: Box<[Option<Box<Set>>]>,
}

/// Entries that share a place; there is none before it is needed.
type Set = [Option<Entry>; WAYS];

impl Recent {
    /// A table of at least `entries`, rounded up to a power of two.
    pub fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).next_power_of_two();
        Self {
            sets: vec![None; sets].into_boxed_slice(),
        }
    }

    fn set(&mut self, id: u32) -> Option<&mut Option<Box<Set>>> {
        let place = usize::try_from(id).ok()? & (self.sets.len() - 1);
        self.sets.get_mut(place)
    }

    /// What holds for a segment of connection `id` whose packet brought
    /// `snapshot`: that, or what was decided since.
    pub fn newest(
        &mut self,
        id: u32,
        segment: &Segment<'_>,
        snapshot: Known,
        now: Duration,
    ) -> Known {
        // A new connection may get the id of one that has just ended.
        let begins = segment.flags.syn && segment.ack.is_none();
        if begins && snapshot.data == PrivateData::default() {
            return snapshot;
        }
        let ways = self.set(id).and_then(|set| set.as_deref());
        let entry = ways
            .into_iter()
            .flatten()
            .flatten()
            .find(|e| e.id == id && now.saturating_sub(e.at) < KEEP);
        entry.map_or(snapshot, |e| e.known)
    }

    /// Remembers what was decided for connection `id`. The oldest entry that
    /// shares its place goes.
    pub fn decided(&mut self, id: u32, known: Known, now: Duration) {
        let Some(set) = self.set(id) else {
            return;
        };
        let set = set.get_or_insert_default();
        let entry = Entry { id, at: now, known };
        let same = set.iter().position(|e| e.is_some_and(|e| e.id == id));
        let oldest = || {
            let ages = set.iter().enumerate();
            ages.min_by_key(|(_, e)| e.map(|e| e.at)).map(|(i, _)| i)
        };
        if let Some(slot) = same.or_else(oldest).and_then(|i| set.get_mut(i)) {
            *slot = Some(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Flags;

    fn segment(syn: bool) -> Segment<'static> {
        Segment {
            dir: Dir::Orig,
            seq: 1,
            ack: (!syn).then_some(1),
            flags: Flags {
                syn,
                ..Flags::default()
            },
            payload: b"",
        }
    }

    fn known(n: u8) -> Known {
        Known {
            data: [n; 32],
            seq_adj: [SeqAdj::default(); 2],
        }
    }

    #[test]
    fn the_latest_decision_holds_for_a_while() {
        let (mut recent, start) = (Recent::new(8), Duration::from_secs(1));
        let later = |secs| start + Duration::from_secs(secs);
        assert_eq!(recent.newest(7, &segment(false), known(1), start), known(1));
        recent.decided(7, known(2), start);
        recent.decided(7, known(3), later(1));
        assert_eq!(
            recent.newest(7, &segment(false), known(1), later(2)),
            known(3)
        );
        assert_eq!(
            recent.newest(8, &segment(false), known(1), later(2)),
            known(1)
        );
        assert_eq!(
            recent.newest(7, &segment(false), known(4), later(7)),
            known(4)
        );
    }

    #[test]
    fn a_new_connection_with_an_old_id_begins_anew() {
        let (mut recent, now) = (Recent::new(8), Duration::from_secs(1));
        recent.decided(7, known(2), now);
        assert_eq!(recent.newest(7, &segment(true), known(0), now), known(0));
        assert_eq!(recent.newest(7, &segment(false), known(0), now), known(2));
    }

    #[test]
    fn a_full_place_loses_its_oldest_entry() {
        let (mut recent, start) = (Recent::new(8), Duration::from_secs(1));
        for i in 0..5u8 {
            let at = start + Duration::from_millis(i.into());
            recent.decided(u32::from(i) * 2, known(i + 1), at);
        }
        let mut ask = |id| recent.newest(id, &segment(false), known(9), start);
        assert_eq!([ask(0), ask(2), ask(8)], [known(9), known(2), known(5)]);
    }
}
