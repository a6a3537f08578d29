//! From what the kernel says to our own entries. Pure.
//!
//! Events carry a part of a connection's state (KERNEL: TCP state only when
//! it changed, sequence adjustments never), dumps and GETs all of it. A dump
//! takes a while, during which events come: what they said is newer.

use super::filter::Filter;
use super::withdrawn::{Withdrawn, is_withdrawn};
use crate::record;
use crate::replica::{PeerId, Replica, Sink};
use crate::store::{Change as Stored, Entry, Flags, Slot, Store};
use netfilter::conntrack::{self, Change};
use netfilter::flow::Flow;
use netfilter::protoinfo::ProtoInfo;
use netfilter::tuple::IPPROTO_TCP;
use netfilter::{Expectation, Tuple, expect};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// Something the kernel should be asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// Original tuple.
    pub tuple: Tuple,
    /// Zone.
    pub zone: u16,
}

/// Where complete state of a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A dump of the whole table, for a reconciliation.
    Dump,
    /// A question about something we have: what we don't have any more by
    /// then is gone.
    Answer,
}

/// What has been counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events of connections and expectations.
    pub events: u64,
    /// Of those, not mirrored because of the filter.
    pub filtered: u64,
    /// Entries that no record can hold.
    pub unencodable: u64,
    /// Entries for which there was no room.
    pub full: u64,
    /// Reconciliation dumps that were completed.
    pub reconciled: u64,
    /// Entries found only by a dump.
    pub found: u64,
    /// Entries gone without an event.
    pub vanished: u64,
    /// Connections that stayed although the kernel dropped them.
    pub withdrawn: u64,
}

/// A later look at a master, after its expectation was seen.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(200)];

/// A change, for those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What happened.
    pub change: Change,
    /// In the peers' cache instead of our own.
    pub external: bool,
    /// The record.
    pub record: Vec<u8>,
}

/// Keeps our own entries equal to the kernel's.
#[derive(Debug, Default)]
pub struct Tracker {
    /// What is mirrored.
    pub filter: Filter,
    scratch: Vec<u8>,
    /// During a dump: identities that events have deleted.
    destroyed: Option<HashSet<u64>>,
    /// The dump shows everything.
    whole: bool,
    zones: BTreeSet<u16>,
    asks: Vec<Ask>,
    later: BTreeMap<(Duration, Ask), ()>,
    /// What has been counted.
    pub counts: Counts,
    /// Changes, if anybody watches.
    pub journal: Option<Vec<Note>>,
    /// Another node owns the states: the kernel's are not ours.
    pub paused: bool,
    /// Entries of peers that the kernel has dropped.
    pub dropped: Vec<(PeerId, u32)>,
    withdrawn: Withdrawn,
}

impl Tracker {
    /// A tracker that mirrors what `filter` lets pass.
    pub fn new(filter: Filter) -> Self {
        Self {
            filter,
            ..Self::default()
        }
    }

    /// Another filter; it counts from the next reconciliation.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// What to ask the kernel now.
    pub fn take_asks(&mut self, now: Duration) -> Vec<Ask> {
        while let Some(((at, ask), ())) = self.later.pop_first() {
            if at > now {
                self.later.insert((at, ask), ());
                break;
            }
            self.asks.push(ask);
        }
        std::mem::take(&mut self.asks)
    }

    /// When [`Tracker::take_asks`] has something.
    pub fn deadline(&self) -> Option<Duration> {
        if self.asks.is_empty() {
            self.later.first_key_value().map(|((at, _), ())| *at)
        } else {
            Some(Duration::ZERO)
        }
    }

    /// Takes an event about a connection.
    pub fn on_flow(&mut self, replica: &mut Replica, event: &conntrack::Event, now: Duration) {
        self.counts.events += 1;
        let flow = &event.flow;
        if event.change == Change::Destroy {
            let gone = self.uninstall_flow(replica, flow);
            if self.stays(&replica.own, event, now) {
                return;
            }
            if !self.forget_flow(replica, flow, now) {
                self.dropped.extend(gone);
            }
            return;
        }
        if self.paused {
            return;
        }
        if !self.filter.passes(flow) {
            self.counts.filtered += 1;
            if event.change == Change::Update {
                self.forget_flow(replica, flow, now);
            }
            return;
        }
        match event.change {
            Change::Update => {
                let merged = self.merge(&replica.own, flow);
                if let Some(index) = self.put_flow(replica, &merged, now) {
                    self.mark(&mut replica.own, index);
                }
            }
            _ => {
                if let Some(index) = self.put_flow(replica, flow, now) {
                    self.mark(&mut replica.own, index);
                }
            }
        }
    }

    /// True if the connection is to stay although the kernel has dropped it.
    fn stays(&mut self, own: &Store, event: &conntrack::Event, now: Duration) -> bool {
        let known = self.known(own, &event.flow);
        let stays = known.is_some_and(|known| is_withdrawn(event, &known));
        if stays {
            self.withdrawn.add(own.key(&self.scratch), now);
            self.counts.withdrawn += 1;
        }
        stays
    }

    /// Forgets what has stayed long enough.
    pub fn forget_withdrawn(&mut self, replica: &mut Replica, now: Duration) {
        for key in self.withdrawn.take_due(now) {
            if let Some(index) = replica.own.find(key) {
                self.forget(replica, index, now);
            }
        }
    }

    /// What we know of the connection and what the event says of it.
    fn merge(&mut self, own: &Store, event: &Flow) -> Flow {
        let known = self.known(own, event);
        let mut flow = *event;
        let Some(known) = known else {
            if flow.orig.l4proto == IPPROTO_TCP && flow.protoinfo == ProtoInfo::None {
                self.asks.push(ask_of(&flow));
            }
            return flow;
        };
        if flow.protoinfo == ProtoInfo::None {
            flow.protoinfo = known.protoinfo;
        }
        flow.labels = flow.labels.or(known.labels);
        flow.seq_adj_orig = flow.seq_adj_orig.or(known.seq_adj_orig);
        flow.seq_adj_reply = flow.seq_adj_reply.or(known.seq_adj_reply);
        flow.synproxy = flow.synproxy.or(known.synproxy);
        flow.master = flow.master.or(known.master);
        flow
    }

    fn known(&mut self, own: &Store, flow: &Flow) -> Option<Flow> {
        let slot = own
            .slot(self.find_flow(own, flow)?)
            .filter(|s| s.is_live())?;
        match record::decode(own.bytes(slot)) {
            Ok(record::Record::Flow(f)) => Some(f),
            _ => None,
        }
    }

    fn find_flow(&mut self, own: &Store, flow: &Flow) -> Option<u32> {
        self.scratch.clear();
        record::put_flow_key(&mut self.scratch, flow).ok()?;
        own.find(own.key(&self.scratch))
    }

    fn put_flow(&mut self, replica: &mut Replica, flow: &Flow, now: Duration) -> Option<u32> {
        self.scratch.clear();
        if record::put_flow(&mut self.scratch, flow).is_err() {
            self.counts.unencodable += 1;
            return None;
        }
        if flow.zone != 0 {
            self.zones.insert(flow.zone);
        }
        self.put(replica, false, flow.timeout, now)
    }

    /// Stores the record in the scratch buffer.
    fn put(
        &mut self,
        replica: &mut Replica,
        expect: bool,
        timeout: Option<u32>,
        now: Duration,
    ) -> Option<u32> {
        let split = record::split(&self.scratch).ok()?;
        let deadline = now.as_secs() + u64::from(timeout.unwrap_or(0));
        let entry = Entry {
            key: replica.own.key(split.key),
            bytes: &self.scratch,
            expect,
            deadline: u32::try_from(deadline).unwrap_or(u32::MAX),
        };
        self.withdrawn.remove(entry.key);
        match replica.put(&entry, now) {
            Ok((index, change)) => {
                if let Some(journal) = self.journal.as_mut().filter(|_| change != Stored::Same) {
                    journal.push(Note {
                        change: kind(change),
                        external: false,
                        record: self.scratch.clone(),
                    });
                }
                Some(index)
            }
            Err(_) => {
                self.counts.full += 1;
                None
            }
        }
    }

    /// An event is newer than the dump that runs.
    fn mark(&self, own: &mut Store, index: u32) {
        if self.destroyed.is_some() {
            if let Some(slot) = own.slot_mut(index) {
                slot.flags.insert(Flags::SEEN | Flags::FRESH);
            }
        }
    }

    fn uninstall_flow(&mut self, replica: &mut Replica, flow: &Flow) -> Vec<(PeerId, u32)> {
        self.scratch.clear();
        match record::put_flow_key(&mut self.scratch, flow) {
            Ok(()) => uninstall(replica, &self.scratch),
            Err(_) => Vec::new(),
        }
    }

    /// Drops a connection from our own entries; false if it is not there.
    fn forget_flow(&mut self, replica: &mut Replica, flow: &Flow, now: Duration) -> bool {
        let found = self.find_flow(&replica.own, flow);
        if let Some(index) = found {
            self.forget(replica, index, now);
        } else {
            let key = replica.own.key(&self.scratch);
            if let Some(destroyed) = &mut self.destroyed {
                destroyed.insert(key);
            }
        }
        found.is_some()
    }

    fn forget(&mut self, replica: &mut Replica, index: u32, now: Duration) {
        let Some(slot) = replica.own.slot(index).filter(|s| s.is_live()) else {
            return;
        };
        if let Some(destroyed) = &mut self.destroyed {
            destroyed.insert(slot.key);
        }
        if let Some(journal) = &mut self.journal {
            journal.push(Note {
                change: Change::Destroy,
                external: false,
                record: replica.own.bytes(slot).to_vec(),
            });
        }
        replica.delete(index, now);
    }

    /// Takes an event about an expectation. Its master has changed too,
    /// which no event tells.
    pub fn on_expect(&mut self, replica: &mut Replica, event: &expect::Event, now: Duration) {
        self.counts.events += 1;
        let mut exp = event.expectation;
        exp.zone = self.master_zone(&replica.own, &exp);
        if event.change == Change::Destroy {
            self.forget_expect(replica, &mut exp, now);
            return;
        }
        if self.paused {
            return;
        }
        if let Some(index) = self.put_expect(replica, &exp, now) {
            self.mark(&mut replica.own, index);
        }
        let ask = Ask {
            tuple: exp.master,
            zone: exp.zone,
        };
        self.asks.push(ask);
        for delay in LOOK_AGAIN {
            self.later.insert((now + delay, ask), ());
        }
    }

    fn forget_expect(&mut self, replica: &mut Replica, exp: &mut Expectation, now: Duration) {
        self.scratch.clear();
        if record::put_expect_key(&mut self.scratch, exp).is_err() {
            return;
        }
        let key = replica.own.key(&self.scratch);
        if self.has_withdrawn_master(&replica.own, exp) {
            // It went with its master, and it stays with it.
            self.withdrawn.add(key, now);
            return;
        }
        if let Some(index) = replica.own.find(key) {
            self.forget(replica, index, now);
        } else if let Some(destroyed) = &mut self.destroyed {
            destroyed.insert(key);
        }
        // A peer's, whose zone we don't know: used up or timed out here. It
        // is not put back.
        let zones: Vec<u16> = self.zones.iter().copied().collect();
        for zone in std::iter::once(0).chain(zones) {
            exp.zone = zone;
            self.scratch.clear();
            if record::put_expect_key(&mut self.scratch, exp).is_ok() {
                uninstall(replica, &self.scratch);
            }
        }
    }

    fn put_expect(
        &mut self,
        replica: &mut Replica,
        exp: &Expectation,
        now: Duration,
    ) -> Option<u32> {
        if !self.filter.expectations() || !self.has_master(&replica.own, exp) {
            self.counts.filtered += 1;
            return None;
        }
        self.scratch.clear();
        if record::put_expect(&mut self.scratch, exp).is_err() {
            self.counts.unencodable += 1;
            return None;
        }
        self.put(replica, true, exp.timeout, now)
    }

    fn has_withdrawn_master(&mut self, own: &Store, exp: &Expectation) -> bool {
        let mut master = Flow::new(exp.master, exp.master);
        master.zone = exp.zone;
        self.scratch.clear();
        record::put_flow_key(&mut self.scratch, &master).is_ok()
            && self.withdrawn.contains(own.key(&self.scratch))
    }

    /// An expectation is mirrored if its master is.
    fn has_master(&mut self, own: &Store, exp: &Expectation) -> bool {
        let mut master = Flow::new(exp.master, exp.master);
        master.zone = exp.zone;
        let found = self.find_flow(own, &master);
        found.and_then(|i| own.slot(i)).is_some_and(|s| s.is_live())
    }

    /// The kernel does not tell an expectation's zone: it is its master's.
    fn master_zone(&mut self, own: &Store, exp: &Expectation) -> u16 {
        let zones: Vec<u16> = self.zones.iter().copied().collect();
        let mut probe = *exp;
        for zone in std::iter::once(0).chain(zones) {
            probe.zone = zone;
            if self.has_master(own, &probe) {
                return zone;
            }
        }
        0
    }

    /// Begins a reconciliation; dump the kernel's tables next.
    /// `whole` if they show everything that is in the kernel.
    pub fn begin_dump(&mut self, replica: &mut Replica, whole: bool) {
        self.destroyed = Some(HashSet::new());
        self.whole = whole;
        let copies = replica.peers.iter_mut().map(|p| &mut p.inbound.store);
        for store in copies.chain([&mut replica.own]) {
            for index in 0..u32::try_from(store.slots()).unwrap_or(u32::MAX) {
                if let Some(slot) = store.slot_mut(index) {
                    slot.flags.remove(Flags::SEEN | Flags::FRESH);
                }
            }
        }
    }

    /// True if events have said newer things of the entry in the scratch
    /// buffer than the dump.
    fn is_outdated(&self, own: &Store, source: Source) -> bool {
        let Ok(split) = record::split(&self.scratch) else {
            return true;
        };
        let key = own.key(split.key);
        let gone = self.destroyed.as_ref().is_some_and(|d| d.contains(&key));
        match own.find(key).and_then(|i| own.slot(i)) {
            Some(slot) if slot.is_live() => {
                source == Source::Dump && slot.flags.contains(Flags::FRESH)
            }
            _ => gone || source == Source::Answer,
        }
    }

    /// Takes an entry of a dump of connections, or the answer to a GET.
    /// `is_foreign` tells connections that were put into the kernel on a
    /// peer's behalf.
    pub fn on_dumped_flow(
        &mut self,
        replica: &mut Replica,
        flow: &Flow,
        source: Source,
        is_foreign: impl Fn(&Replica, &[u8]) -> bool,
        now: Duration,
    ) {
        if source == Source::Dump {
            self.scratch.clear();
            if record::put_flow_key(&mut self.scratch, flow).is_ok() {
                mark_installed(replica, &self.scratch);
            }
        }
        if self.paused || !self.filter.passes(flow) {
            return;
        }
        self.scratch.clear();
        if record::put_flow(&mut self.scratch, flow).is_err() {
            self.counts.unencodable += 1;
            return;
        }
        if self.is_outdated(&replica.own, source) {
            return;
        }
        if flow.zone != 0 {
            self.zones.insert(flow.zone);
        }
        self.put_dumped(replica, false, flow.timeout, is_foreign, now);
    }

    fn put_dumped(
        &mut self,
        replica: &mut Replica,
        expect: bool,
        timeout: Option<u32>,
        is_foreign: impl Fn(&Replica, &[u8]) -> bool,
        now: Duration,
    ) {
        let Ok(split) = record::split(&self.scratch) else {
            return;
        };
        let known = replica.own.find(replica.own.key(split.key));
        let live = known
            .and_then(|i| replica.own.slot(i))
            .is_some_and(|s| s.is_live());
        if !live && is_foreign(replica, split.key) {
            return;
        }
        let before = replica.own.len();
        if let Some(index) = self.put(replica, expect, timeout, now) {
            if self.destroyed.is_some() {
                self.counts.found += u64::from(replica.own.len() > before);
                if let Some(slot) = replica.own.slot_mut(index) {
                    slot.flags.insert(Flags::SEEN);
                }
            }
        }
    }

    /// Takes an entry of a dump of expectations.
    pub fn on_dumped_expect(
        &mut self,
        replica: &mut Replica,
        exp: &Expectation,
        source: Source,
        is_foreign: impl Fn(&Replica, &[u8]) -> bool,
        now: Duration,
    ) {
        if self.paused {
            return;
        }
        let mut exp = *exp;
        exp.zone = self.master_zone(&replica.own, &exp);
        if !self.filter.expectations() || !self.has_master(&replica.own, &exp) {
            return;
        }
        self.scratch.clear();
        let encoded = record::put_expect(&mut self.scratch, &exp).is_ok();
        if encoded && !self.is_outdated(&replica.own, source) {
            self.put_dumped(replica, true, exp.timeout, is_foreign, now);
        }
    }

    /// Ends a reconciliation: what the dump has not shown is gone, unless
    /// `complete` is false because it broke off.
    pub fn end_dump(&mut self, replica: &mut Replica, complete: bool, now: Duration) {
        self.destroyed = None;
        if !complete {
            return;
        }
        self.counts.reconciled += 1;
        if self.whole {
            self.drop_unseen(replica);
        }
        let gone: Vec<u32> = replica
            .own
            .live()
            .filter(|(_, s)| !s.flags.contains(Flags::SEEN) && !self.withdrawn.contains(s.key))
            .map(|(i, _)| i)
            .collect();
        self.counts.vanished += gone.len() as u64;
        for index in gone {
            replica.delete(index, now);
        }
    }

    /// Peers' connections that are not in the kernel any more, and of whose
    /// end an event was lost.
    fn drop_unseen(&mut self, replica: &mut Replica) {
        for (peer, p) in replica.peers.iter_mut().enumerate() {
            let copy = &mut p.inbound.store;
            for index in 0..u32::try_from(copy.slots()).unwrap_or(u32::MAX) {
                let unseen = |s: &&mut Slot| {
                    s.is_live()
                        && !s.is_expect()
                        && s.flags & (Flags::INSTALLED | Flags::SEEN) == Flags::INSTALLED
                };
                if let Some(slot) = copy.slot_mut(index).filter(unseen) {
                    slot.flags.remove(Flags::INSTALLED);
                    self.dropped.push((peer, index));
                }
            }
        }
    }

    /// True while a reconciliation runs.
    pub const fn is_dumping(&self) -> bool {
        self.destroyed.is_some()
    }

    /// Takes a connection that was put into the kernel on a peer's behalf into
    /// our own: the peer has dropped it, but it is in use here.
    pub fn adopt(&mut self, replica: &mut Replica, flow: &Flow, now: Duration) {
        if !self.paused && self.filter.passes(flow) {
            self.put_flow(replica, flow, now);
        }
    }

    /// Takes a peer's entry that has just been committed into our own.
    pub fn take_over(&mut self, replica: &mut Replica, bytes: &[u8], timeout: u32, now: Duration) {
        self.scratch.clear();
        self.scratch.extend_from_slice(bytes);
        let expect = record::split(bytes).is_ok_and(|s| s.expect);
        if let Ok(record::Record::Flow(f)) = record::decode(bytes) {
            if f.zone != 0 {
                self.zones.insert(f.zone);
            }
        }
        if let Some(index) = self.put(replica, expect, Some(timeout), now) {
            self.mark(&mut replica.own, index);
        }
    }
}

/// The entry with this key is not in the kernel any more; in which copies it
/// was marked as installed.
fn uninstall(replica: &mut Replica, key: &[u8]) -> Vec<(PeerId, u32)> {
    let mut removed = Vec::new();
    for (peer, p) in replica.peers.iter_mut().enumerate() {
        let copy = &mut p.inbound.store;
        if copy.is_empty() {
            continue;
        }
        let index = copy.find(copy.key(key));
        let slot = index.and_then(|i| Some((i, copy.slot_mut(i)?)));
        if let Some((index, slot)) = slot.filter(|(_, s)| s.flags.contains(Flags::INSTALLED)) {
            slot.flags.remove(Flags::INSTALLED);
            removed.push((peer, index));
        }
    }
    removed
}

/// A dump has shown the connection with this key: what copies say of it is
/// right.
fn mark_installed(replica: &mut Replica, key: &[u8]) {
    for p in &mut replica.peers {
        let copy = &mut p.inbound.store;
        if copy.is_empty() {
            continue;
        }
        let index = copy.find(copy.key(key));
        if let Some(slot) = index.and_then(|i| copy.slot_mut(i)) {
            slot.flags.insert(Flags::SEEN);
        }
    }
}

fn ask_of(flow: &Flow) -> Ask {
    Ask {
        tuple: flow.orig,
        zone: flow.zone,
    }
}

/// True if this node or another peer than the one that dropped it has the
/// record's entry in the kernel.
pub fn is_wanted(replica: &Replica, bytes: &[u8]) -> bool {
    let foreign = record::split(bytes).is_ok_and(|s| is_foreign(replica, s.key));
    foreign || crate::commit::owns(replica, bytes)
}

/// True if the entry with this key was put into the kernel on a peer's
/// behalf.
pub fn is_foreign(replica: &Replica, key: &[u8]) -> bool {
    replica.peers.iter().any(|p| {
        let copy = &p.inbound.store;
        let slot = copy.find(copy.key(key)).and_then(|i| copy.slot(i));
        slot.is_some_and(|s| s.is_live() && s.flags.contains(Flags::INSTALLED))
    })
}

const fn kind(change: Stored) -> Change {
    match change {
        Stored::New => Change::New,
        _ => Change::Update,
    }
}

/// Collects what changes in a copy: to write it into the kernel, and for
/// those who watch.
#[derive(Debug, Default)]
pub struct Inlet {
    /// Slots to install.
    pub put: Vec<u32>,
    /// Slots that are installed, and of which only the timeout has changed.
    pub later: Vec<u32>,
    /// Records to delete from the kernel, and when they would have timed out
    /// there, see [`crate::store::Slot::deadline`].
    pub delete: Vec<(Vec<u8>, u32)>,
    /// Changes, if anybody watches.
    pub journal: Option<Vec<Note>>,
}

impl Sink for Inlet {
    fn put(&mut self, copy: &mut Store, index: u32, change: Stored) {
        if change == Stored::Same {
            let installed = |s: &crate::store::Slot| s.flags.contains(Flags::INSTALLED);
            if copy.slot(index).is_some_and(installed) {
                self.later.push(index);
            }
            return;
        }
        self.put.push(index);
        self.note(copy, index, kind(change));
    }

    fn delete(&mut self, copy: &mut Store, index: u32) {
        self.note(copy, index, Change::Destroy);
        if let Some(slot) = copy.slot(index) {
            if slot.flags.contains(Flags::INSTALLED) {
                let bytes = copy.bytes(slot).to_vec();
                self.delete.push((bytes, slot.deadline));
            }
        }
    }
}

impl Inlet {
    fn note(&mut self, copy: &Store, index: u32, change: Change) {
        if let (Some(journal), Some(slot)) = (&mut self.journal, copy.slot(index)) {
            journal.push(Note {
                change,
                external: true,
                record: copy.bytes(slot).to_vec(),
            });
        }
    }
}
