//! Finding out what differs between an origin and a copy of it, at the cost
//! of what differs.
//!
//! The receiver shows digests of its copy: of all groups; of the leaves of
//! groups that the origin says differ; then the identities and hashes in
//! leaves that differ. The origin compares with its own state and queues
//! what the receiver lacks, and deletions of what it should not have. Every
//! query is answered on its own, without state at the origin, and repeated
//! until answered.

use super::message::{
    self, Digests, ENTRY_LEN, Query, SEGMENT_HEADER, Segment, Segments, put_digests, put_list,
    put_segment,
};
use super::outbound::Outbound;
use crate::store::{GROUPS, Leaf, Slot, Store};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Digests per query: what fits a small datagram.
const CHUNK: usize = 128;
/// Queries on the way: a table of half a million takes some 800 if one in a
/// hundred entries differs, and each round trip costs both sides a wake-up.
const OUTSTANDING: usize = 128;
const RETRY: Duration = Duration::from_millis(100);
const HEADER: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Groups { first: u8 },
    Leaves { group: u8, first: u8 },
    List(Vec<Part>),
}

/// A leaf, or a part of one that is too long for a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    leaf: Leaf,
    from: u8,
    to: u8,
}

/// One comparison, at the receiver.
#[derive(Debug)]
pub struct Round {
    round: u32,
    next: u32,
    todo: VecDeque<Ask>,
    leaves: VecDeque<Part>,
    asked: BTreeMap<u32, (Duration, Ask)>,
}

impl Round {
    /// Starts with the groups.
    pub fn new(round: u32) -> Self {
        let todo = [0, 128].map(|first| Ask::Groups { first }).into();
        Self {
            round,
            next: 0,
            todo,
            leaves: VecDeque::new(),
            asked: BTreeMap::new(),
        }
    }

    /// True when every query was answered.
    pub fn is_over(&self) -> bool {
        self.todo.is_empty() && self.leaves.is_empty() && self.asked.is_empty()
    }

    /// When a query has to be sent (again).
    pub fn deadline(&self) -> Option<Duration> {
        let new = !(self.todo.is_empty() && self.leaves.is_empty());
        if self.is_over() || (new && self.asked.len() < OUTSTANDING) {
            return Some(Duration::ZERO);
        }
        self.asked.values().map(|(at, _)| *at + RETRY).min()
    }

    /// Builds the next query of at most `limit` bytes.
    pub fn fill(&mut self, store: &Store, now: Duration, limit: usize, out: &mut Vec<u8>) -> bool {
        let Some((id, ask)) = self.take_late(now).or_else(|| self.take_new(store, limit)) else {
            return false;
        };
        let query = Query {
            round: self.round,
            id,
        };
        put_ask(out, query, &ask, store);
        self.asked.insert(id, (now, ask));
        true
    }

    /// A query that was not answered in time. Lists are made anew: what they
    /// cover may have grown.
    fn take_late(&mut self, now: Duration) -> Option<(u32, Ask)> {
        let late = self.asked.iter().find(|(_, (at, _))| *at + RETRY <= now);
        let id = late.map(|(id, _)| *id)?;
        match self.asked.remove(&id)? {
            (_, Ask::List(parts)) => {
                self.leaves.extend(parts);
                None
            }
            (_, ask) => Some((id, ask)),
        }
    }

    fn take_new(&mut self, store: &Store, limit: usize) -> Option<(u32, Ask)> {
        if self.asked.len() >= OUTSTANDING {
            return None;
        }
        let ask = self.next_ask(store, limit)?;
        self.next += 1;
        Some((self.next, ask))
    }

    fn next_ask(&mut self, store: &Store, limit: usize) -> Option<Ask> {
        if let Some(ask) = self.todo.pop_front() {
            return Some(ask);
        }
        let mut room = limit - HEADER;
        let mut parts = Vec::new();
        while let Some(&part) = self.leaves.front() {
            let n = slots(store, part).count();
            let size = SEGMENT_HEADER + n * ENTRY_LEN;
            if n > 255 || size > limit - HEADER {
                self.halve(part);
                continue;
            }
            if size > room {
                break;
            }
            room -= size;
            parts.push(part);
            self.leaves.pop_front();
        }
        (!parts.is_empty()).then_some(Ask::List(parts))
    }

    /// Splits the part at the head of the line.
    fn halve(&mut self, part: Part) {
        self.leaves.pop_front();
        if part.from == part.to {
            return;
        }
        let middle = part.from + (part.to - part.from) / 2;
        self.leaves.push_front(Part {
            from: middle + 1,
            ..part
        });
        self.leaves.push_front(Part { to: middle, ..part });
    }

    /// Takes an answer.
    pub fn on_answer(&mut self, query: Query, bitmap: &[u8]) {
        if query.round != self.round {
            return;
        }
        let Some((_, ask)) = self.asked.remove(&query.id) else {
            return;
        };
        let first = match ask {
            Ask::Groups { first } | Ask::Leaves { first, .. } => first,
            Ask::List(_) => return,
        };
        for i in 0..u8::try_from(CHUNK).unwrap_or(0) {
            let byte = bitmap.get(usize::from(i / 8)).copied().unwrap_or(0);
            if byte & (1 << (i % 8)) == 0 {
                continue;
            }
            let index = first.wrapping_add(i);
            match ask {
                Ask::Groups { .. } => self.todo.extend([0, 128].map(|first| Ask::Leaves {
                    group: index,
                    first,
                })),
                Ask::Leaves { group, .. } => self.leaves.push_back(Part {
                    leaf: u16::from_be_bytes([group, index]),
                    from: 0,
                    to: 255,
                }),
                Ask::List(_) => {}
            }
        }
    }
}

fn put_ask(out: &mut Vec<u8>, query: Query, ask: &Ask, store: &Store) {
    let digests = store.digests();
    let chunk = |all: &[u64], first: u8| -> Vec<u64> {
        let rest = all.iter().skip(usize::from(first));
        rest.take(CHUNK).copied().collect()
    };
    match ask {
        Ask::Groups { first } => {
            put_digests(out, query, None, *first, &chunk(digests.groups(), *first));
        }
        Ask::Leaves { group, first } => {
            let leaves = chunk(digests.leaves(*group), *first);
            put_digests(out, query, Some(*group), *first, &leaves);
        }
        Ask::List(parts) => {
            put_list(out, query);
            for p in parts {
                put_segment(out, p.leaf, p.from, p.to, &entries(store, *p));
            }
        }
    }
}

fn third_byte(key: u64) -> u8 {
    let [_, _, b, ..] = key.to_be_bytes();
    b
}

fn slots(store: &Store, part: Part) -> impl Iterator<Item = (u32, &Slot)> {
    let inside = move |s: &Slot| (part.from..=part.to).contains(&third_byte(s.key));
    store.leaf(part.leaf).filter(move |(_, s)| inside(s))
}

fn entries(store: &Store, part: Part) -> Vec<(u64, u32)> {
    slots(store, part).map(|(_, s)| (s.key, s.body)).collect()
}

/// Answers a digest query: which differ from our own.
pub fn answer_digests(own: &Store, d: &Digests<'_>, out: &mut Vec<u8>) {
    let ours = match d.group {
        None => own.digests().groups(),
        Some(group) => own.digests().leaves(group),
    };
    let ours = ours.iter().skip(usize::from(d.first));
    let mut bitmap = [0_u8; GROUPS / 8];
    let theirs = d.digests.chunks_exact(8);
    for (i, (theirs, ours)) in theirs.zip(ours).enumerate() {
        if ours.to_be_bytes() != theirs {
            if let Some(b) = bitmap.get_mut(i / 8) {
                *b |= 1 << (i % 8);
            }
        }
    }
    message::put_answer(out, d.query, &bitmap);
}

/// Answers a list: queues what the receiver lacks or has otherwise, and
/// deletions of what does not exist.
///
/// # Errors
/// [`crate::wire::WireError`] if a segment is malformed; the ones before it
/// are dealt with.
pub fn answer_list(
    own: &mut Store,
    outbound: &mut Outbound,
    bit: u16,
    mut segments: Segments<'_>,
    now: Duration,
) -> Result<(), crate::wire::WireError> {
    outbound.repair();
    while let Some(segment) = segments.next()? {
        compare(own, outbound, bit, &segment, now);
    }
    Ok(())
}

fn compare(own: &mut Store, outbound: &mut Outbound, bit: u16, s: &Segment<'_>, now: Duration) {
    let mut theirs: Vec<(u64, u32)> = s.entries().collect();
    theirs.sort_unstable();
    let part = Part {
        leaf: s.leaf,
        from: s.from,
        to: s.to,
    };
    let known = |slot: &Slot| theirs.binary_search(&(slot.key, slot.body)).is_ok();
    let lacking: Vec<u32> = slots(own, part)
        .filter(|(_, slot)| !known(slot))
        .map(|(index, _)| index)
        .collect();
    for index in lacking {
        outbound.enqueue(own, index, now);
    }
    for (key, _) in theirs {
        let index = match own.find(key) {
            Some(index) if own.slot(index).is_some_and(Slot::is_live) => continue,
            Some(index) => index,
            None => match own.plant(key) {
                Ok(index) => index,
                Err(_) => return,
            },
        };
        if let Some(slot) = own.slot_mut(index) {
            slot.pending |= bit;
        }
        outbound.enqueue(own, index, now);
    }
}
