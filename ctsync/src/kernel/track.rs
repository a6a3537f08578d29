//! From what the kernel says to our own entries. Pure.
//!
//! Events carry a part of a connection's state (KERNEL: TCP state only when
//! it changed, sequence adjustments never), dumps and GETs all of it. A dump
//! takes a while, during which events come: what they said is newer.

mod dump;
mod expectation;
mod inlet;

use super::filter::Filter;
use super::withdrawn::{Withdrawn, is_withdrawn};
use crate::record;
use crate::replica::{PeerId, Replica};
use crate::store::{Change as Stored, Entry, Flags, Slot, Store};
use netfilter::Tuple;
use netfilter::conntrack::{self, Change};
use netfilter::flow::Flow;
use netfilter::protoinfo::ProtoInfo;
use netfilter::tuple::IPPROTO_TCP;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

pub use inlet::Inlet;

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
        record::as_flow(own.bytes(slot))
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

    /// Takes a connection that was put into the kernel on a peer's behalf into
    /// our own: the peer has dropped it, but it is in use here. False if it can't be.
    pub fn adopt(&mut self, replica: &mut Replica, flow: &Flow, now: Duration) -> bool {
        if self.paused || !self.filter.passes(flow) {
            return false;
        }
        let index = self.put_flow(replica, flow, now);
        if let Some(index) = index {
            self.mark(&mut replica.own, index);
        }
        index.is_some()
    }

    /// A peer's entry of this identity is to be deleted from the kernel: a dump that
    /// runs may still show it.
    pub fn on_deletion(&mut self, key: u64) {
        if let Some(destroyed) = &mut self.destroyed {
            destroyed.insert(key);
        }
    }

    /// Takes a peer's entry that has just been committed into our own.
    pub fn take_over(&mut self, replica: &mut Replica, bytes: &[u8], timeout: u32, now: Duration) {
        self.scratch.clear();
        self.scratch.extend_from_slice(bytes);
        let expect = record::is_expect(bytes);
        if let Some(f) = record::as_flow(bytes) {
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

/// True if a peer has the record's entry and its states are committed.
pub fn comes(replica: &Replica, bytes: &[u8]) -> bool {
    record::split(bytes).is_ok_and(|split| {
        copies(replica, split.key)
            .any(|(id, s)| !s.flags.contains(Flags::REFUSED) && !replica.is_fenced(id))
    })
}

/// True if the entry with this key was put into the kernel on a peer's
/// behalf.
pub fn is_foreign(replica: &Replica, key: &[u8]) -> bool {
    copies(replica, key).any(|(_, s)| s.flags.contains(Flags::INSTALLED))
}

/// What peers have under a key and has not ended.
fn copies<'r>(replica: &'r Replica, key: &[u8]) -> impl Iterator<Item = (PeerId, &'r Slot)> {
    (0..).zip(&replica.peers).filter_map(move |(id, p)| {
        let copy = &p.inbound.store;
        let slot = copy.slot(copy.find(copy.key(key))?)?;
        slot.is_live().then_some((id, slot))
    })
}

const fn kind(change: Stored) -> Change {
    match change {
        Stored::New => Change::New,
        _ => Change::Update,
    }
}
