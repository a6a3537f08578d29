//! What dumps say, and answers to questions: all of a connection's state, but
//! older than events that came meanwhile.

use super::{Source, Tracker};
use crate::record;
use crate::replica::Replica;
use crate::store::{Flags, Slot, Store};
use netfilter::Expectation;
use netfilter::flow::Flow;
use std::collections::HashSet;
use std::time::Duration;

impl Tracker {
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
