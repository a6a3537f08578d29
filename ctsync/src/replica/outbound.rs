//! Sending half of a peer: which of our entries it doesn't have yet.
//!
//! The queue holds slots, not events: an entry that changes ten times before
//! there is room is sent once, as it is then. Of a datagram on the way only
//! the slots it touched are remembered; if it is lost they are queued again,
//! unless they have changed (and so were queued) since. Memory is bounded by
//! the number of entries and the window.
//!
//! What says that a datagram is lost is an acknowledgement of a later one.
//! Silence says nothing: the peer may get no processor, and then reads all of
//! it. So a timeout gives up the two oldest alone, for something that will be
//! acknowledged, and that tells what became of the rest.

use super::message::{self, Ack, Data, Mark};
use super::timer::Timer;
use super::width::Width;
use crate::store::{Slot, Store};
use std::collections::VecDeque;
use std::time::Duration;

/// A hole this far behind the newest acknowledged datagram is a loss.
const REORDER: u64 = 24;
/// So is one that was sent this long before it, and a round trip.
const REORDER_TIME: Duration = Duration::from_millis(10);
/// Datagrams given up when nothing is heard, and sent in their place: even if
/// the window has closed since below what is on the way.
pub const PROBES: usize = 2;
const MIN_WINDOW: u32 = 32;
/// Between marks while entries change.
const MARK_BUSY: Duration = Duration::from_millis(20);
/// Between marks while the peer's copy is repaired: only a mark proves to it
/// that it has everything.
const MARK_REPAIR: Duration = Duration::from_micros(500);
/// How exactly the age of a change is known.
const CLOCK: Duration = Duration::from_millis(100);
/// Without an acknowledgement for so long, what the last one said is old.
const SYNC_TTL: Duration = Duration::from_secs(10);
/// Between marks when nothing changes.
const MARK_IDLE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Flight {
    number: u64,
    sent: Duration,
    /// Age of what it says.
    since: Duration,
    items: u32,
    size: usize,
    settled: bool,
}

/// State of the sending half.
#[derive(Debug)]
pub struct Outbound {
    bit: u16,
    up: bool,
    queue: VecDeque<u32>,
    /// Slots that have entered and left the queue.
    pushed: u64,
    popped: u64,
    /// When the slots from a count of `pushed` on came, about.
    times: VecDeque<(u64, Duration)>,
    /// Up to a count of `pushed`, slots that were sent and lost wait again:
    /// they are as old as this.
    overdue: Option<(u64, Duration)>,
    next: u64,
    flights: VecDeque<Flight>,
    touched: VecDeque<(u32, u32)>,
    credit: u32,
    window: u32,
    growth: u32,
    shrunk_at: u64,
    /// Datagrams that may be sent although the window is full.
    probes: usize,
    timer: Timer,
    /// When something was acknowledged, or the time was up.
    heard: Duration,
    /// When the newest datagram that was acknowledged had been sent.
    reached: Duration,
    marked: Duration,
    unmarked: bool,
    /// The peer has shown what differs, and has not confirmed a mark since.
    repairing: bool,
    /// Changes are queued, but nothing is said of our state: it is not known
    /// in full.
    pub held: bool,
    acked: Option<Duration>,
    /// The peer has said that its copy equals our state.
    pub peer_synced: bool,
    width: Width,
    /// Datagrams declared lost.
    pub lost: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Entries sent, deletions included.
    pub items: u64,
}

impl Outbound {
    /// The half of the peer that has bit `bit` in slots.
    pub const fn new(bit: u16) -> Self {
        Self {
            bit,
            up: false,
            queue: VecDeque::new(),
            pushed: 0,
            popped: 0,
            times: VecDeque::new(),
            overdue: None,
            next: 1,
            flights: VecDeque::new(),
            touched: VecDeque::new(),
            credit: MIN_WINDOW,
            window: 256,
            growth: 0,
            shrunk_at: 0,
            probes: 0,
            timer: Timer::new(),
            heard: Duration::ZERO,
            reached: Duration::ZERO,
            marked: Duration::ZERO,
            unmarked: false,
            repairing: false,
            held: false,
            acked: None,
            peer_synced: false,
            width: Width::new(),
            lost: 0,
            sent: 0,
            items: 0,
        }
    }

    /// True if changes are tracked and sent.
    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// True if the peer may be told what our state is.
    pub const fn may_tell(&self) -> bool {
        self.up && !self.held
    }

    /// Number of the next datagram.
    pub const fn next_number(&self) -> u64 {
        self.next
    }

    /// Entries that wait.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How old the oldest change is that the peer has not confirmed.
    pub fn lag(&self, now: Duration) -> Duration {
        let flying = self.flights.iter().filter(|f| !f.settled && f.items > 0);
        let oldest = flying.map(|f| f.since).chain(self.waiting_since()).min();
        oldest.map_or(Duration::ZERO, |s| now.saturating_sub(s))
    }

    /// True if the peer has said lately that its copy equals our state.
    pub fn is_peer_synced(&self, now: Duration) -> bool {
        self.peer_synced && self.acked.is_some_and(|at| now < at + SYNC_TTL)
    }

    /// How old the oldest change in the queue is.
    fn waiting_since(&self) -> Option<Duration> {
        if self.queue.is_empty() {
            return None;
        }
        let head = self.times.front().map(|(_, at)| *at);
        let overdue = self.overdue.map(|(_, since)| since);
        [head, overdue].into_iter().flatten().min()
    }

    fn pop(&mut self) {
        self.queue.pop_front();
        self.popped += 1;
        while self.times.get(1).is_some_and(|(n, _)| *n <= self.popped) {
            self.times.pop_front();
        }
        if self.overdue.is_some_and(|(until, _)| until <= self.popped) {
            self.overdue = None;
        }
    }

    /// Begins: from now on changes are queued.
    pub fn start(&mut self) {
        self.up = true;
        self.unmarked = true;
        self.marked = Duration::ZERO;
    }

    /// Forgets everything; deletions the peer has not confirmed are dropped.
    pub fn stop(&mut self, own: &mut Store) {
        let was_up = std::mem::take(&mut self.up);
        self.repairing = false;
        self.peer_synced = false;
        self.queue.clear();
        self.times.clear();
        self.overdue = None;
        self.popped = self.pushed;
        self.acked = None;
        self.flights.clear();
        self.touched.clear();
        self.probes = 0;
        self.window = 256;
        self.width = Width::new();
        self.timer = Timer::new();
        (self.heard, self.reached) = (Duration::ZERO, Duration::ZERO);
        if !was_up {
            // Nothing has been queued since the last stop.
            return;
        }
        for index in 0..u32::try_from(own.slots()).unwrap_or(u32::MAX) {
            if let Some(slot) = own.slot_mut(index) {
                slot.queued &= !self.bit;
                slot.pending &= !self.bit;
                bury_if_done(own, index);
            }
        }
    }

    /// Queues a slot unless it is.
    pub fn enqueue(&mut self, own: &mut Store, index: u32, now: Duration) {
        let Some(slot) = own.slot_mut(index) else {
            return;
        };
        if slot.queued & self.bit == 0 {
            slot.queued |= self.bit;
            self.push(index, now);
        }
    }

    fn push(&mut self, index: u32, now: Duration) {
        if self.queue.is_empty() {
            self.times.clear();
        }
        if self.times.back().is_none_or(|(_, at)| *at + CLOCK <= now) {
            self.times.push_back((self.pushed, now));
        }
        self.queue.push_back(index);
        self.pushed += 1;
        self.unmarked = true;
    }

    /// Queues everything: the peer has nothing.
    pub fn enqueue_all(&mut self, own: &mut Store, now: Duration) {
        for index in 0..u32::try_from(own.slots()).unwrap_or(u32::MAX) {
            if own.slot(index).is_some_and(Slot::is_live) {
                self.enqueue(own, index, now);
            }
        }
    }

    /// Something changed that no item tells (everything was dropped).
    pub const fn touch(&mut self) {
        self.unmarked = true;
    }

    /// The peer's copy differs; what it lacks is queued.
    pub const fn repair(&mut self) {
        self.repairing = true;
    }

    fn room(&self) -> bool {
        let flying = u32::try_from(self.flights.len()).unwrap_or(u32::MAX);
        flying < self.window.min(self.credit).max(1) || self.probes > 0
    }

    /// Between marks while entries change.
    const fn mark_pause(&self) -> Duration {
        if self.repairing {
            MARK_REPAIR
        } else {
            MARK_BUSY
        }
    }

    fn mark_due(&self) -> Option<Duration> {
        let every = if self.unmarked {
            self.mark_pause()
        } else {
            MARK_IDLE
        };
        self.queue.is_empty().then_some(self.marked + every)
    }

    /// When [`Outbound::poll`] or [`Outbound::fill`] has something to do
    /// without new input.
    pub fn deadline(&self) -> Option<Duration> {
        if !self.may_tell() {
            return None;
        }
        if !self.queue.is_empty() && self.room() {
            return Some(Duration::ZERO);
        }
        let mark = self.mark_due().filter(|_| self.room());
        [self.time_is_up(), mark].into_iter().flatten().min()
    }

    /// Builds the next datagram of at most `limit` bytes into `out`; false if
    /// there is nothing to send or no room on the way.
    pub fn fill(
        &mut self,
        own: &mut Store,
        now: Duration,
        limit: usize,
        out: &mut Vec<u8>,
        items: &mut Vec<u8>,
    ) -> bool {
        if !self.may_tell() || !self.room() {
            return false;
        }
        let due = self.mark_due().is_some_and(|at| at <= now);
        if self.queue.is_empty() && !due {
            return false;
        }
        items.clear();
        let limit = self.width.limit(limit, now);
        let since = self.waiting_since().unwrap_or(now);
        let count = self.take_items(own, now, limit - message::DATA_HEADER, items);
        let mark = self.take_mark(own, now, count);
        let floor = self.flights.front().map_or(self.next, |f| f.number);
        let data = Data {
            number: low(self.next),
            back: low(self.next - floor),
            mark,
        };
        message::put_data(out, &data);
        out.extend_from_slice(items);
        self.flights.push_back(Flight {
            number: self.next,
            sent: now,
            since,
            items: count,
            size: out.len(),
            settled: false,
        });
        self.next += 1;
        self.probes = self.probes.saturating_sub(1);
        self.sent += 1;
        self.items += u64::from(count);
        true
    }

    fn take_mark(&mut self, own: &Store, now: Duration, count: u32) -> Option<Mark> {
        let fresh = self.marked + self.mark_pause() <= now || count == 0;
        if !self.queue.is_empty() || !fresh {
            return None;
        }
        self.marked = now;
        self.unmarked = false;
        Some(Mark {
            root: own.digests().root(),
            flows: own.flows() as u64,
            expectations: own.expectations() as u64,
        })
    }

    fn take_items(
        &mut self,
        own: &mut Store,
        now: Duration,
        limit: usize,
        items: &mut Vec<u8>,
    ) -> u32 {
        let mut count = 0;
        while let Some(&index) = self.queue.front() {
            let Some(slot) = own.slot(index).copied() else {
                self.pop();
                continue;
            };
            if !append(own, &slot, self.bit, now, limit, items) {
                break;
            }
            self.pop();
            if let Some(s) = own.slot_mut(index) {
                s.queued &= !self.bit;
            }
            if slot.is_tomb() && slot.pending & self.bit == 0 {
                bury_if_done(own, index);
                continue;
            }
            self.touched.push_back((index, slot.version));
            count += 1;
        }
        count
    }

    /// Takes in what the peer has received.
    pub fn on_ack(&mut self, own: &mut Store, ack: &Ack<'_>, now: Duration) {
        if !self.up {
            return;
        }
        self.credit = ack.credit;
        self.peer_synced = ack.synced;
        self.repairing &= !ack.synced;
        self.acked = Some(now);
        let Some(base) = expand(ack.base, self.next).filter(|b| *b < self.next) else {
            return;
        };
        let (mut newest, mut last, mut acked) = (base, None, 0);
        let mut at = 0;
        for flight in &mut self.flights {
            let range = at..at + flight.items as usize;
            at = range.end;
            if flight.settled || !covers(ack, base, flight.number) {
                continue;
            }
            flight.settled = true;
            self.width.arrived(flight.size);
            acked += 1;
            newest = newest.max(flight.number);
            last = Some(flight.sent);
            for (index, version) in self.touched.range(range) {
                confirm(own, *index, *version, self.bit);
            }
        }
        if let Some(sent) = last {
            self.timer.sample(now.saturating_sub(sent));
            self.heard = now;
            self.reached = self.reached.max(sent);
            self.grow(acked);
        }
        let behind = newest.saturating_sub(REORDER);
        let late = self.timer.mean().max(REORDER_TIME);
        let late = self.reached.saturating_sub(late);
        let lost = self.lose(own, now, |f| f.number < behind || f.sent < late);
        if lost.is_some_and(|number| number > self.shrunk_at) {
            self.shrunk_at = self.next;
            self.window = (self.window / 2).max(MIN_WINDOW);
        }
        self.pop_settled();
    }

    fn grow(&mut self, acked: u32) {
        self.growth += acked;
        if self.growth >= self.window / 4 {
            self.growth = 0;
            self.window = self.window.saturating_add(self.window / 4).min(1 << 16);
        }
    }

    /// When to do something about the silence, if something is on the way.
    fn time_is_up(&self) -> Option<Duration> {
        let oldest = self.flights.iter().find(|f| !f.settled)?;
        Some(oldest.sent.max(self.heard) + self.timer.timeout())
    }

    /// Gives up the oldest datagrams if nothing was heard for too long, and
    /// makes room for others.
    pub fn poll(&mut self, own: &mut Store, now: Duration) {
        if self.time_is_up().is_none_or(|at| now < at) {
            return;
        }
        let flying = self.flights.iter().filter(|f| !f.settled);
        let last = flying.take(PROBES).last().map_or(0, |f| f.number);
        self.lose(own, now, |f| f.number <= last);
        self.probes = PROBES;
        self.timer.expire();
        self.heard = now;
        self.pop_settled();
    }

    /// Declares datagrams lost and queues what they said, as it is now; the
    /// number of the last one.
    fn lose(
        &mut self,
        own: &mut Store,
        now: Duration,
        is_lost: impl Fn(&Flight) -> bool,
    ) -> Option<u64> {
        let (mut at, mut again, mut since) = (0, Vec::new(), None);
        let mut last = None;
        for flight in &mut self.flights {
            let range = at..at + flight.items as usize;
            at = range.end;
            if flight.settled || !is_lost(flight) {
                continue;
            }
            flight.settled = true;
            self.width.lost(flight.size, now);
            self.lost += 1;
            self.unmarked = true;
            last = Some(flight.number);
            again.extend(self.touched.range(range).copied());
            if flight.items > 0 {
                since = Some(since.map_or(flight.since, |s: Duration| s.min(flight.since)));
            }
        }
        for (index, version) in again {
            let bit = self.bit;
            let stale = own
                .slot(index)
                .is_none_or(|s| s.version != version || (s.is_tomb() && s.pending & bit == 0));
            if !stale {
                self.enqueue(own, index, now);
            }
        }
        if let Some(since) = since.filter(|_| self.popped < self.pushed) {
            let before = self.overdue.map_or(since, |(_, s)| s.min(since));
            self.overdue = Some((self.pushed, before));
        }
        last
    }

    fn pop_settled(&mut self) {
        while let Some(flight) = self.flights.pop_front() {
            if !flight.settled {
                self.flights.push_front(flight);
                break;
            }
            self.touched.drain(..flight.items as usize);
        }
    }
}

/// Appends the slot's item; false if it does not fit.
fn append(
    own: &Store,
    slot: &Slot,
    bit: u16,
    now: Duration,
    limit: usize,
    items: &mut Vec<u8>,
) -> bool {
    if slot.is_tomb() {
        if items.len() + message::DELETE_LEN > limit {
            return false;
        }
        if slot.pending & bit != 0 {
            message::put_delete(items, slot.key);
        }
        return true;
    }
    let timeout = u64::from(slot.deadline).saturating_sub(now.as_secs());
    let timeout = u32::try_from(timeout).unwrap_or(0);
    let bytes = own.bytes(slot);
    if items.len() + message::item_len(timeout, bytes.len()) > limit {
        return false;
    }
    message::put_item(items, timeout, bytes);
    true
}

fn covers(ack: &Ack<'_>, base: u64, number: u64) -> bool {
    let Some(ahead) = number.checked_sub(base + 1) else {
        return true;
    };
    let Ok(ahead) = usize::try_from(ahead) else {
        return false;
    };
    let byte = ack.bitmap.get(ahead / 8).copied().unwrap_or(0);
    byte & (1 << (ahead % 8)) != 0
}

/// The peer has the slot as it was at `version`; a deletion it has heard of
/// needs no tombstone.
fn confirm(own: &mut Store, index: u32, version: u32, bit: u16) {
    let Some(slot) = own.slot_mut(index) else {
        return;
    };
    if !slot.is_tomb() || slot.version != version {
        return;
    }
    slot.pending &= !bit;
    bury_if_done(own, index);
}

/// Frees a tombstone that no peer waits for and no queue holds.
fn bury_if_done(own: &mut Store, index: u32) {
    let done = |s: &Slot| s.is_tomb() && s.pending == 0 && s.queued == 0;
    if own.slot(index).is_some_and(done) {
        own.bury(index);
    }
}

/// The low 32 bits.
#[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
pub const fn low(v: u64) -> u32 {
    v as u32
}

/// The number nearest to `near` with these low bits.
pub fn expand(bits: u32, near: u64) -> Option<u64> {
    let delta = bits.wrapping_sub(low(near));
    let delta = i32::from_ne_bytes(delta.to_ne_bytes());
    near.checked_add_signed(i64::from(delta))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Seed;
    use crate::record::{self, tests::tcp};
    use crate::store::Entry;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn store(entries: u32) -> Store {
        let mut own = Store::new(Seed::default(), 100_000);
        for n in 0..entries {
            let mut bytes = Vec::new();
            record::put_flow(&mut bytes, &tcp(n)).unwrap();
            let key = own.key(record::split(&bytes).unwrap().key);
            let entry = Entry {
                key,
                bytes: &bytes,
                expect: false,
                deadline: 1000,
            };
            own.put(&entry).unwrap();
        }
        own
    }

    fn ack(base: u32, bitmap: &[u8]) -> Ack<'_> {
        Ack {
            base,
            credit: 4096,
            synced: false,
            bitmap,
        }
    }

    /// The window closes below what is on the way, and nothing more is heard:
    /// there must be something that can be acknowledged.
    #[test]
    fn silence_is_broken_while_the_window_is_full() {
        let mut own = store(20_000);
        let mut half = Outbound::new(1);
        let (mut out, mut items) = (Vec::new(), Vec::new());
        half.start();
        half.enqueue_all(&mut own, ms(0));
        let mut send = |half: &mut Outbound, own: &mut Store, now| {
            let mut full = |half: &mut Outbound| !half.fill(own, now, 1300, &mut out, &mut items);
            (0..).find(|_| full(half)).unwrap_or(0)
        };
        assert_eq!(send(&mut half, &mut own, ms(1)), 32);
        half.on_ack(&mut own, &ack(32, &[]), ms(2));
        let sent = send(&mut half, &mut own, ms(2));
        assert!(sent > 200, "{sent}");
        // Of those after the first 32 one alone has arrived, the fortieth.
        half.on_ack(&mut own, &ack(32, &[0, 0, 0, 0, 1]), ms(3));
        assert!(half.lost > 0);
        assert_eq!(send(&mut half, &mut own, ms(3)), 0);
        let at = half.deadline().expect("something on the way");
        half.poll(&mut own, at);
        assert_eq!(send(&mut half, &mut own, at), 2);
        // One of them is there: so all before it is lost.
        let newest = low(half.next_number() - 1);
        let before = newest - 33;
        let mut bitmap = vec![0; 1 + before as usize / 8];
        bitmap[before as usize / 8] |= 1 << (before % 8);
        half.on_ack(&mut own, &ack(32, &bitmap), at + ms(1));
        assert!(send(&mut half, &mut own, at + ms(1)) > 10);
    }
}
