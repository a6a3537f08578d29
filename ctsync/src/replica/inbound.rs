//! Receiving half of a peer: our copy of its entries.

use super::Sink;
use super::message::{ACK_HEADER, Ack, Data, Hello, Item, Items, Mark, Role};
use super::outbound::{PROBES, expand, low};
use super::repair::Round;
use crate::hash::Seed;
use crate::record;
use crate::store::{Entry, Flags, Store};
use std::collections::VecDeque;
use std::time::Duration;

/// Datagrams that can be told apart behind the newest.
const WINDOW: u64 = 8192;
const WORDS: usize = 128;
/// Acknowledge at least so often.
const ACK_EVERY: u32 = 32;
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Without a mark that matched for so long, the copy isn't known to be equal.
const SYNC_TTL: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// What went wrong with what the peer sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Datagrams or items that could not be read.
    pub malformed: u64,
    /// Records that could be told apart but not used.
    pub refused: u64,
    /// Records for which there was no room.
    pub full: u64,
    /// Datagrams that came twice or too late.
    pub stale: u64,
    /// Marks that did not match.
    pub diverged: u64,
}

/// State of the receiving half.
#[derive(Debug)]
pub struct Inbound {
    /// The copy.
    pub store: Store,
    /// Who sent the last hello.
    pub hello: Option<Hello>,
    highest: u64,
    floor: u64,
    frontier: u64,
    seen: Box<[u64; WORDS]>,
    tombs: VecDeque<(u32, u64)>,
    unacked: u32,
    ack_at: Option<Duration>,
    credit: u32,
    /// The running comparison, if any.
    pub round: Option<Round>,
    rounds: u32,
    backoff: Duration,
    round_at: Option<Duration>,
    matched: Option<Duration>,
    synced: bool,
    complete: bool,
    busy: bool,
    /// Since when `synced` has been as it is.
    pub since: Duration,
    /// What went wrong.
    pub faults: Faults,
    /// Records taken in.
    pub items: u64,
}

/// True if `a` was counted before `b`.
const fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) > u32::MAX / 2
}

impl Inbound {
    /// An empty copy of at most `limit` entries; the peer may have `credit`
    /// datagrams on the way.
    pub fn new(limit: usize, credit: u32) -> Self {
        Self {
            store: Store::new(Seed::default(), limit),
            hello: None,
            highest: 0,
            floor: 0,
            frontier: 0,
            seen: Box::new([0; WORDS]),
            tombs: VecDeque::new(),
            unacked: 0,
            ack_at: None,
            credit,
            round: None,
            rounds: 0,
            backoff: FIRST_BACKOFF,
            round_at: None,
            matched: None,
            synced: false,
            complete: false,
            busy: false,
            since: Duration::ZERO,
            faults: Faults::default(),
            items: 0,
        }
    }

    /// True if the copy was equal at the last mark, lately.
    pub fn is_synced(&self, now: Duration) -> bool {
        self.synced && self.matched.is_some_and(|m| now < m + SYNC_TTL)
    }

    /// True if the copy has been equal once and, as far as we know, nothing
    /// was missed before the connection was lost.
    pub const fn was_synced(&self) -> bool {
        self.complete
    }

    /// Drops the copy; if the peer is there, it is sent again.
    pub fn forget(&mut self, now: Duration) {
        self.store.clear();
        self.tombs.clear();
        self.complete = false;
        self.set_synced(false, now);
        self.round_at = Some(now);
    }

    /// Whether this node still looks at what peers no longer have, and may find some of
    /// it in use here. Of that they are to hear: meanwhile none is told that its copy
    /// here is as it should be.
    pub fn set_busy(&mut self, busy: bool, now: Duration) {
        if std::mem::replace(&mut self.busy, busy) && !busy && self.synced {
            self.ack_at = Some(now);
        }
    }

    /// Number of the newest datagram.
    pub const fn newest(&self) -> u64 {
        self.highest
    }

    fn set_synced(&mut self, synced: bool, now: Duration) {
        self.complete |= synced;
        if self.synced != synced {
            self.synced = synced;
            self.since = now;
        }
    }

    /// The connection is gone: the copy stays, but may grow old.
    pub fn stop(&mut self, now: Duration) {
        self.set_synced(false, now);
        self.round = None;
        self.round_at = None;
        self.ack_at = None;
    }

    /// Takes a hello. If the sender has begun anew, its numbers start again
    /// and our copy must be compared.
    pub fn on_hello(&mut self, hello: Hello, now: Duration) {
        let restarted = match &self.hello {
            None => true,
            Some(old) if old.incarnation != hello.incarnation => true,
            Some(old) if is_before(hello.serial, old.serial) => return,
            Some(old) if old.session == hello.session => {
                self.hello = Some(hello);
                return;
            }
            Some(_) => false,
        };
        while let Some((index, _)) = self.tombs.pop_front() {
            self.store.bury(index);
        }
        if restarted {
            self.store
                .reseed(hello.seed, |b| record::split(b).ok().map(|s| s.key));
        }
        self.frontier = hello.next.saturating_sub(1);
        (self.highest, self.floor) = (self.frontier, hello.next);
        self.seen.fill(0);
        self.hello = Some(hello);
        self.set_synced(false, now);
        self.round = None;
        self.backoff = FIRST_BACKOFF;
        self.round_at = None;
        if !self.store.is_empty() {
            self.start_round();
        }
    }

    /// Compares with the origin.
    pub fn start_round(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
        self.round = Some(Round::new(self.rounds));
    }

    /// The peer's role and epoch.
    pub fn role(&self) -> (Role, u64) {
        self.hello
            .as_ref()
            .map_or((Role::Standalone, 0), |h| (h.role, h.epoch))
    }

    /// Takes a data datagram.
    pub fn on_data(&mut self, data: &Data, items: Items<'_>, now: Duration, sink: &mut dyn Sink) {
        if self.hello.is_none() {
            return;
        }
        self.unacked += 1;
        let due = now + ACK_DELAY;
        self.ack_at = Some(self.ack_at.map_or(due, |at| at.min(due)));
        let Some(number) = expand(data.number, self.highest.max(1)).filter(|n| self.admit(*n))
        else {
            self.faults.stale += 1;
            return;
        };
        self.floor = self.floor.max(number.saturating_sub(u64::from(data.back)));
        self.advance();
        if self.frontier < number {
            self.ack_at = Some(now);
        }
        self.apply(number, items, now, sink);
        self.bury();
        if let Some(mark) = data.mark {
            self.on_mark(number, &mark, now, sink);
        }
    }

    /// Notes the number; false if it came before or is too old.
    fn admit(&mut self, number: u64) -> bool {
        if number < self.floor.max(1) || number + WINDOW <= self.highest {
            return false;
        }
        if number > self.highest {
            for n in self.highest + 1..=number.min(self.highest + WINDOW) {
                self.set_seen(n, false);
            }
            self.highest = number;
        } else if self.is_seen(number) {
            return false;
        }
        self.set_seen(number, true);
        true
    }

    fn place(number: u64) -> (usize, u64) {
        let at = number % WINDOW;
        (usize::try_from(at / 64).unwrap_or(0), 1 << (at % 64))
    }

    fn is_seen(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        self.seen.get(word).is_some_and(|w| w & bit != 0)
    }

    fn set_seen(&mut self, number: u64, seen: bool) {
        let (word, bit) = Self::place(number);
        if let Some(w) = self.seen.get_mut(word) {
            *w = if seen { *w | bit } else { *w & !bit };
        }
    }

    /// Moves the frontier: everything up to it is here or settled.
    fn advance(&mut self) {
        let oldest = (self.highest + 1).saturating_sub(WINDOW);
        self.frontier = self
            .frontier
            .max(self.floor.saturating_sub(1))
            .max(oldest.saturating_sub(1));
        while self.frontier < self.highest && self.is_seen(self.frontier + 1) {
            self.frontier += 1;
        }
    }

    fn apply(&mut self, number: u64, mut items: Items<'_>, now: Duration, sink: &mut dyn Sink) {
        loop {
            match items.next() {
                Ok(Some(Item::Put { timeout, record })) => {
                    self.put(number, timeout, record, now, sink);
                }
                Ok(Some(Item::Delete(key))) => self.delete(number, key, sink),
                Ok(Some(Item::Ignorable)) => {}
                Ok(Some(Item::Critical)) => self.faults.refused += 1,
                Ok(None) => break,
                Err(_) => {
                    self.faults.malformed += 1;
                    break;
                }
            }
        }
    }

    /// True if what a datagram after `number` said of the slot is known.
    fn is_newer(&self, index: u32, number: u64) -> bool {
        let ahead = |v: u32| u64::from(v.wrapping_sub(low(number)));
        self.store
            .slot(index)
            .is_some_and(|s| (1..=WINDOW).contains(&ahead(s.version)))
    }

    fn put(
        &mut self,
        number: u64,
        timeout: u32,
        record: &[u8],
        now: Duration,
        sink: &mut dyn Sink,
    ) {
        let Ok(split) = record::split(record) else {
            self.faults.malformed += 1;
            return;
        };
        let key = self.store.key(split.key);
        let known = self.store.find(key);
        if known.is_some_and(|i| self.is_newer(i, number)) {
            return;
        }
        self.items += 1;
        let deadline = now.as_secs() + u64::from(timeout);
        let entry = Entry {
            key,
            bytes: record,
            expect: split.expect,
            deadline: u32::try_from(deadline).unwrap_or(u32::MAX),
        };
        let usable = record::decode(record).is_ok();
        let put = if usable {
            self.store.put(&entry)
        } else {
            self.faults.refused += 1;
            self.store
                .put_refused(&entry)
                .map(|i| (i, crate::store::Change::Same))
        };
        let Ok((index, change)) = put else {
            self.faults.full += 1;
            return;
        };
        if let Some(slot) = self.store.slot_mut(index) {
            slot.version = low(number);
            slot.deadline = entry.deadline;
        }
        if usable {
            sink.put(&mut self.store, index, change);
        }
    }

    fn delete(&mut self, number: u64, key: u64, sink: &mut dyn Sink) {
        self.items += 1;
        let holes = self.frontier + 1 < number;
        let index = match self.store.find(key) {
            Some(index) if self.is_newer(index, number) => return,
            Some(index) => index,
            None if holes => match self.store.plant(key) {
                Ok(index) => index,
                Err(_) => return,
            },
            None => return,
        };
        if self.store.slot(index).is_some_and(|s| s.is_live()) {
            sink.delete(&mut self.store, index);
            self.store.kill(index);
        }
        if let Some(slot) = self.store.slot_mut(index) {
            slot.version = low(number);
        }
        self.tombs.push_back((index, number));
    }

    /// Frees tombstones that no datagram on the way can contradict.
    fn bury(&mut self) {
        while let Some(&(index, number)) = self.tombs.front() {
            if self.frontier < number {
                break;
            }
            self.tombs.pop_front();
            if self
                .store
                .slot(index)
                .is_some_and(|s| s.version == low(number))
            {
                self.store.bury(index);
            }
        }
    }

    /// Compares, if the sender's state at `number` is what we should have.
    fn on_mark(&mut self, number: u64, mark: &Mark, now: Duration, sink: &mut dyn Sink) {
        if number != self.highest || self.frontier != number {
            return;
        }
        self.ack_at = Some(now);
        if mark.flows == 0 && mark.expectations == 0 && mark.root == 0 {
            self.clear(sink);
        }
        let counts = (self.store.flows() as u64, self.store.expectations() as u64);
        let root = self.store.digests().root();
        if mark.root == root && counts == (mark.flows, mark.expectations) {
            self.set_synced(true, now);
            self.matched = Some(now);
            self.round = None;
            self.round_at = None;
            self.backoff = FIRST_BACKOFF;
        } else {
            self.faults.diverged += u64::from(self.synced);
            self.complete = false;
            self.set_synced(false, now);
            self.round_at.get_or_insert(now);
        }
    }

    fn clear(&mut self, sink: &mut dyn Sink) {
        for index in 0..u32::try_from(self.store.slots()).unwrap_or(u32::MAX) {
            if self.store.slot(index).is_some_and(|s| s.is_live()) {
                sink.delete(&mut self.store, index);
                self.store.remove(index);
            }
        }
    }

    /// Starts a comparison if a mark did not match and the last comparison
    /// did not just end.
    pub fn poll(&mut self, now: Duration) {
        if self.round.as_ref().is_some_and(Round::is_over) {
            self.round = None;
            self.round_at = Some(now + self.backoff);
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        }
        if self.round.is_none() && self.round_at.is_some_and(|at| at <= now) {
            self.round_at = None;
            self.start_round();
        }
    }

    /// When there is something to do without new input.
    pub fn deadline(&self) -> Option<Duration> {
        let round = match &self.round {
            Some(r) => r.deadline(),
            None => self.round_at,
        };
        [self.ack_at, round].into_iter().flatten().min()
    }

    /// Builds an acknowledgement of at most `limit` bytes into `out` if one is
    /// due. No more datagrams may be on the way than it can tell of, probes
    /// included: of what it can't tell, the peer would never hear.
    pub fn fill_ack(&mut self, now: Duration, limit: usize, out: &mut Vec<u8>) -> bool {
        let due = self.ack_at.is_some_and(|at| at <= now);
        if self.hello.is_none() || !(due || self.unacked >= ACK_EVERY) {
            return false;
        }
        self.ack_at = None;
        self.unacked = 0;
        let room = limit.saturating_sub(ACK_HEADER) as u64 * 8;
        let room = room.min(WINDOW);
        let span = (self.highest - self.frontier).min(room);
        let credit = u32::try_from(room.saturating_sub(PROBES as u64)).unwrap_or(u32::MAX);
        let mut bitmap = vec![0_u8; usize::try_from(span.div_ceil(8)).unwrap_or(0)];
        for ahead in 0..span {
            if self.is_seen(self.frontier + 1 + ahead) {
                let at = usize::try_from(ahead).unwrap_or(0);
                if let Some(b) = bitmap.get_mut(at / 8) {
                    *b |= 1 << (at % 8);
                }
            }
        }
        super::message::put_ack(
            out,
            &Ack {
                base: low(self.frontier),
                credit: self.credit.min(credit),
                synced: self.is_synced(now) && !self.busy,
                bitmap: &bitmap,
            },
        );
        true
    }

    /// Entries that can't be used here.
    pub fn refused(&self) -> usize {
        self.store
            .live()
            .filter(|(_, s)| s.flags.contains(Flags::REFUSED))
            .count()
    }
}
