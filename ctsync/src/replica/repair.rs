//! Finding out what differs between an origin and a copy of it, at the cost
//! of what differs.
//!
//! The receiver shows digests of its copy: of all groups; 16 bits of those of
//! the leaves in groups that differ. The origin answers with its sums of the
//! leaves that differ: the XOR of the entries' marks, which is the digest, and
//! of their identities. Where a leaf differs in one entry, which is the rule,
//! that entry's identity is the difference, or its two bodies explain it. So
//! the receiver asks for what it lacks and shows what the origin has not,
//! eight bytes each. Only where a leaf differs in more are its entries listed.
//!
//! The origin queues what the receiver lacks, and deletions of what it should
//! not have. Every query is answered on its own, without state at the origin,
//! and repeated until answered.

mod answer;

use super::message::{self, Block, ENTRY_LEN, Keys, Ours, OursBlock, Query, SEGMENT_HEADER};
use super::timer::Timer;
use crate::store::{BLOCK, GROUPS, Leaf, Slot, Store, body_of};
use crate::wire::WireError;
pub use answer::answer;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Digests of groups per query: what fits a small datagram.
const CHUNK: usize = 128;
/// Blocks in a group.
const BLOCKS_PER_GROUP: u16 = 2;
/// Queries on the way: each round trip costs both sides a wake-up.
const OUTSTANDING: usize = 128;
/// A query is repeated no earlier; later, where answers take longer.
const RETRY: Duration = Duration::from_millis(100);
const HEADER: usize = 16;
/// The last of the four cuts of a digest.
const LAST_CUT: u8 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Groups { first: u8 },
    Blocks(Vec<Cut>),
    Wanted(Vec<Wanted>),
    Ghosts(Vec<u64>),
    List(Vec<Part>),
}

/// A block, and which bits of its digests to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    block: u16,
    cut: u8,
}

/// An entry that would explain why a leaf differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    key: u64,
    leaf: Leaf,
}

/// A leaf, or a part of one that is too long for a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    leaf: Leaf,
    from: u8,
    to: u8,
}

impl Part {
    const fn all(leaf: Leaf) -> Self {
        Self {
            leaf,
            from: 0,
            to: 255,
        }
    }
}

/// One comparison, at the receiver.
#[derive(Debug)]
pub struct Round {
    round: u32,
    next: u32,
    groups: VecDeque<u8>,
    blocks: VecDeque<Cut>,
    wanted: VecDeque<Wanted>,
    ghosts: VecDeque<u64>,
    parts: VecDeque<Part>,
    asked: BTreeMap<u32, Asked>,
    /// Queries on the way whose answers lead to more.
    open: usize,
    timer: Timer,
    /// When something was answered, or the time was up.
    heard: Duration,
}

/// A query on the way.
#[derive(Debug)]
struct Asked {
    at: Duration,
    /// Under the same number before: an answer may be one to that.
    repeated: bool,
    ask: Ask,
}

impl Round {
    /// Starts with the groups.
    pub fn new(round: u32) -> Self {
        Self {
            round,
            next: 0,
            groups: [0, 128].into(),
            blocks: VecDeque::new(),
            wanted: VecDeque::new(),
            ghosts: VecDeque::new(),
            parts: VecDeque::new(),
            asked: BTreeMap::new(),
            open: 0,
            timer: Timer::new(),
            heard: Duration::ZERO,
        }
    }

    /// True when every query was answered.
    pub fn is_over(&self) -> bool {
        self.asked.is_empty()
            && self.groups.is_empty()
            && self.blocks.is_empty()
            && self.wanted.is_empty()
            && self.ghosts.is_empty()
            && self.parts.is_empty()
    }

    /// When a query has to be sent (again).
    pub fn deadline(&self) -> Option<Duration> {
        if self.is_over() || (self.asked.len() < OUTSTANDING && self.has_new()) {
            return Some(Duration::ZERO);
        }
        let oldest = self.asked.values().map(|asked| asked.at).min();
        oldest.map(|at| at + self.timeout())
    }

    fn timeout(&self) -> Duration {
        self.timer.timeout().max(RETRY)
    }

    /// True if a query can be made. Half a datagram of details waits for more
    /// while answers that bring some are on the way.
    fn has_new(&self) -> bool {
        let details = !(self.wanted.is_empty() && self.ghosts.is_empty() && self.parts.is_empty());
        !(self.groups.is_empty() && self.blocks.is_empty())
            || (details && self.open == 0)
            || self.wanted.len().max(self.ghosts.len()) >= super::width::SAFE / Keys::LEN
    }

    /// Builds the next query of at most `limit` bytes.
    pub fn fill(&mut self, store: &Store, now: Duration, limit: usize, out: &mut Vec<u8>) -> bool {
        let late = self.take_late(now);
        let repeated = late.is_some();
        let Some((id, ask)) = late.or_else(|| self.take_new(store, limit)) else {
            return false;
        };
        let query = Query {
            round: self.round,
            id,
        };
        put_ask(out, query, &ask, store);
        self.open += usize::from(is_open(&ask));
        let at = now;
        self.asked.insert(id, Asked { at, repeated, ask });
        true
    }

    fn take_asked(&mut self, id: u32) -> Option<Asked> {
        let asked = self.asked.remove(&id)?;
        self.open -= usize::from(is_open(&asked.ask));
        Some(asked)
    }

    fn take_answered(&mut self, id: u32, now: Duration) -> Option<Ask> {
        let asked = self.take_asked(id)?;
        self.heard = now;
        if !asked.repeated {
            self.timer.sample(now.saturating_sub(asked.at));
        }
        Some(asked.ask)
    }

    /// A query that was not answered in time. What covers entries is made
    /// anew: they may have changed. If nothing is answered, the time grows:
    /// one end may get no processor.
    fn take_late(&mut self, now: Duration) -> Option<(u32, Ask)> {
        let timeout = self.timeout();
        let late = self.asked.iter().find(|(_, a)| a.at + timeout <= now);
        let id = late.map(|(id, _)| *id)?;
        if self.heard + timeout <= now {
            self.timer.expire();
            self.heard = now;
        }
        match self.take_asked(id)?.ask {
            Ask::List(parts) => self.parts.extend(parts),
            Ask::Wanted(wanted) => self.wanted.extend(wanted),
            Ask::Ghosts(keys) => self.ghosts.extend(keys),
            ask => return Some((id, ask)),
        }
        None
    }

    fn take_new(&mut self, store: &Store, limit: usize) -> Option<(u32, Ask)> {
        if self.asked.len() >= OUTSTANDING || !self.has_new() {
            return None;
        }
        let ask = self.next_ask(store, limit)?;
        self.next += 1;
        Some((self.next, ask))
    }

    fn next_ask(&mut self, store: &Store, limit: usize) -> Option<Ask> {
        let room = limit.saturating_sub(HEADER);
        if let Some(first) = self.groups.pop_front() {
            return Some(Ask::Groups { first });
        }
        let blocks = take(&mut self.blocks, room / Block::LEN);
        if !blocks.is_empty() {
            return Some(Ask::Blocks(blocks));
        }
        let mut ghosts = take(&mut self.ghosts, room / Keys::LEN);
        // It may have been deleted meanwhile.
        ghosts.retain(|key| {
            let slot = store.find(*key).and_then(|i| store.slot(i));
            slot.is_some_and(Slot::is_live)
        });
        if !ghosts.is_empty() {
            return Some(Ask::Ghosts(ghosts));
        }
        let wanted = take(&mut self.wanted, room / Keys::LEN);
        if !wanted.is_empty() {
            return Some(Ask::Wanted(wanted));
        }
        let parts = self.take_parts(store, room);
        (!parts.is_empty()).then_some(Ask::List(parts))
    }

    /// Leaves whose entries fit into `room` bytes.
    fn take_parts(&mut self, store: &Store, room: usize) -> Vec<Part> {
        let mut left = room;
        let mut parts = Vec::new();
        while let Some(&part) = self.parts.front() {
            let n = slots(store, part).count();
            let size = SEGMENT_HEADER + n * ENTRY_LEN;
            if n > 255 || size > room {
                self.halve(part);
                continue;
            }
            if size > left {
                break;
            }
            left -= size;
            parts.push(part);
            self.parts.pop_front();
        }
        parts
    }

    /// Splits the part at the head of the line.
    fn halve(&mut self, part: Part) {
        self.parts.pop_front();
        if part.from == part.to {
            return;
        }
        let middle = part.from + (part.to - part.from) / 2;
        self.parts.push_front(Part {
            from: middle + 1,
            ..part
        });
        self.parts.push_front(Part { to: middle, ..part });
    }

    /// Takes an answer.
    pub fn on_answer(&mut self, query: Query, bitmap: &[u8], now: Duration) {
        if query.round != self.round {
            return;
        }
        match self.take_answered(query.id, now) {
            Some(Ask::Groups { first }) => {
                let differ = (0..128_u8).filter(|i| is_set(bitmap, usize::from(*i)));
                let blocks = differ.flat_map(|i| {
                    let block = u16::from(first.wrapping_add(i)) * BLOCKS_PER_GROUP;
                    [block, block + 1].map(|block| Cut { block, cut: 0 })
                });
                self.blocks.extend(blocks);
            }
            Some(Ask::Wanted(wanted)) => {
                let missing = (0..).zip(wanted).filter(|(i, _)| is_set(bitmap, *i));
                self.parts.extend(missing.map(|(_, w)| Part::all(w.leaf)));
            }
            _ => {}
        }
    }

    /// Takes what the origin has in blocks that were compared.
    ///
    /// # Errors
    /// [`WireError`] if a block is malformed; those before it are dealt with.
    pub fn on_ours(
        &mut self,
        store: &Store,
        query: Query,
        mut ours: Ours<'_>,
        now: Duration,
    ) -> Result<(), WireError> {
        if query.round != self.round {
            return Ok(());
        }
        let Some(Ask::Blocks(cuts)) = self.take_answered(query.id, now) else {
            return Ok(());
        };
        while let Some(block) = ours.next()? {
            if let Some(cut) = cuts.iter().find(|c| c.block == block.block) {
                self.on_block(store, *cut, &block);
            }
        }
        Ok(())
    }

    fn on_block(&mut self, store: &Store, asked: Cut, block: &OursBlock<'_>) {
        let mine = store.digests().block(block.block).iter();
        let mut unexplained = mine.fold(block.sum, |sum, leaf| sum ^ leaf.digest);
        for (leaf, theirs) in block.leaves() {
            let mine = store.digests().leaf(leaf);
            let Some(((digest, keys), mine)) = theirs.zip(mine) else {
                self.parts.push_back(Part::all(leaf));
                continue;
            };
            unexplained ^= digest ^ mine.digest;
            self.on_leaf(store, leaf, digest ^ mine.digest, keys ^ mine.keys);
        }
        // A leaf differs, but not in the bits that were shown.
        if unexplained != 0 && block.is_whole() && asked.cut < LAST_CUT {
            self.blocks.push_back(Cut {
                cut: asked.cut + 1,
                ..asked
            });
        }
    }

    /// Looks for the one entry that explains why a leaf differs.
    fn on_leaf(&mut self, store: &Store, leaf: Leaf, digest: u64, keys: u64) {
        if digest == 0 {
            return;
        }
        if keys == 0 {
            match changed(store, leaf, digest) {
                Some(key) => self.wanted.push_back(Wanted { key, leaf }),
                None => self.parts.push_back(Part::all(leaf)),
            }
            return;
        }
        match store.find(keys).and_then(|i| store.slot(i)) {
            Some(slot) if slot.is_live() && slot.mark() == digest => self.ghosts.push_back(keys),
            Some(slot) if slot.is_live() => self.parts.push_back(Part::all(leaf)),
            _ => self.wanted.push_back(Wanted { key: keys, leaf }),
        }
    }
}

/// The entry that has another body at the origin, if that explains the
/// difference of the digests.
fn changed(store: &Store, leaf: Leaf, digest: u64) -> Option<u64> {
    let explains = |s: &Slot| body_of(s.mark() ^ digest, s.key).is_some_and(|b| b != s.body);
    store
        .leaf(leaf)
        .find(|(_, s)| explains(s))
        .map(|(_, s)| s.key)
}

/// True if the answer brings more to ask.
const fn is_open(ask: &Ask) -> bool {
    matches!(ask, Ask::Groups { .. } | Ask::Blocks(_) | Ask::Wanted(_))
}

fn is_set(bitmap: &[u8], i: usize) -> bool {
    bitmap.get(i / 8).is_some_and(|b| b & (1 << (i % 8)) != 0)
}

/// The first `n`, or all.
fn take<T>(from: &mut VecDeque<T>, n: usize) -> Vec<T> {
    let n = n.min(from.len());
    from.drain(..n).collect()
}

fn put_ask(out: &mut Vec<u8>, query: Query, ask: &Ask, store: &Store) {
    let digests = store.digests();
    match ask {
        Ask::Groups { first } => {
            let rest = digests.groups().iter().skip(usize::from(*first));
            let chunk: Vec<u64> = rest.take(CHUNK).copied().collect();
            message::put_groups(out, query, *first, &chunk);
        }
        Ask::Blocks(cuts) => {
            message::put_blocks(out, query);
            for c in cuts {
                message::put_block(out, c.block, c.cut, digests.block(c.block));
            }
        }
        Ask::Wanted(wanted) => {
            message::put_wanted(out, query, wanted.iter().map(|w| w.key));
        }
        Ask::Ghosts(keys) => message::put_ghosts(out, query, keys),
        Ask::List(parts) => {
            message::put_list(out, query);
            for p in parts {
                message::put_segment(out, p.leaf, p.from, p.to, &entries(store, *p));
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

const _: () = assert!(GROUPS * BLOCKS_PER_GROUP as usize * BLOCK == crate::store::LEAVES);
