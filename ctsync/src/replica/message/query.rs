//! Messages of a comparison: what the receiver shows of its copy, and what
//! the origin says to it. [`crate::replica::repair`] is the conversation.

use super::{ANSWER, BLOCKS, GHOSTS, GROUPS, LIST, OURS, WANTED};
use crate::store::{self, BLOCK, Leaf, Sums};
use crate::wire::{Reader, WireError};

/// Names a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Query {
    /// Round of the receiver.
    pub round: u32,
    /// Number within.
    pub id: u32,
}

impl Query {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            round: r.u32("round")?,
            id: r.u32("query")?,
        })
    }
}

fn begin(out: &mut Vec<u8>, ty: u8, q: Query) {
    out.push(ty);
    out.extend_from_slice(&q.round.to_be_bytes());
    out.extend_from_slice(&q.id.to_be_bytes());
}

/// Appends an answer.
pub fn put_answer(out: &mut Vec<u8>, query: Query, bitmap: &[u8]) {
    begin(out, ANSWER, query);
    out.extend_from_slice(bitmap);
}

/// Digests of the receiver's groups, for the origin to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups<'a> {
    /// Which query; the answer carries it back.
    pub query: Query,
    /// Number of the first.
    pub first: u8,
    /// Eight bytes each.
    pub digests: &'a [u8],
}

impl<'a> Groups<'a> {
    pub(super) fn read(r: &mut Reader<'a>) -> Result<Self, WireError> {
        let query = Query::read(r)?;
        let first = r.u8("groups")?;
        let digests = r.rest();
        if digests.len() % 8 != 0 || usize::from(first) + digests.len() / 8 > store::GROUPS {
            return Err(WireError::Value("groups"));
        }
        Ok(Self {
            query,
            first,
            digests,
        })
    }
}

/// Appends digests `first..` of groups.
pub fn put_groups(out: &mut Vec<u8>, query: Query, first: u8, digests: &[u64]) {
    begin(out, GROUPS, query);
    out.push(first);
    for d in digests {
        out.extend_from_slice(&d.to_be_bytes());
    }
}

/// A block of leaves' digests, 16 bits of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// Number of the block.
    pub block: u16,
    /// Which 16 bits, from the lowest: 0 to 3.
    pub cut: u8,
    /// Two bytes per leaf.
    cuts: &'a [u8],
}

impl Block<'_> {
    /// Bytes of one.
    pub const LEN: usize = 2 + 1 + 2 * BLOCK;

    /// The cuts, in the order of the leaves.
    pub fn cuts(&self) -> impl Iterator<Item = u16> {
        let both = self.cuts.chunks_exact(2).filter_map(|c| c.first_chunk());
        both.map(|c| u16::from_be_bytes(*c))
    }
}

/// Sixteen bits of a digest.
pub fn cut_of(digest: u64, cut: u8) -> u16 {
    u16::try_from(digest >> (u32::from(cut) * 16) & 0xffff).unwrap_or_default()
}

/// Blocks of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks<'a>(Reader<'a>);

impl<'a> Blocks<'a> {
    pub(super) const fn new(r: Reader<'a>) -> Self {
        Self(r)
    }

    /// Bytes that are left.
    pub const fn len(&self) -> usize {
        self.0.rest().len()
    }

    /// True at the end.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next block; `None` at the end.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed.
    #[expect(clippy::should_implement_trait, reason = "can fail")]
    pub fn next(&mut self) -> Result<Option<Block<'a>>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let block = self.0.u16("block")?;
        let cut = self.0.u8("block")?;
        if block >= store::BLOCKS || cut > 3 {
            return Err(WireError::Value("block"));
        }
        let cuts = self.0.bytes(2 * BLOCK, "block")?;
        Ok(Some(Block { block, cut, cuts }))
    }
}

/// Appends the head of a query of blocks; blocks follow.
pub fn put_blocks(out: &mut Vec<u8>, query: Query) {
    begin(out, BLOCKS, query);
}

/// Appends a block: [`Block::LEN`] bytes.
pub fn put_block(out: &mut Vec<u8>, block: u16, cut: u8, leaves: &[Sums]) {
    out.extend_from_slice(&block.to_be_bytes());
    out.push(cut);
    for leaf in leaves {
        out.extend_from_slice(&cut_of(leaf.digest, cut).to_be_bytes());
    }
}

/// What the origin has in a block that was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OursBlock<'a> {
    /// Number of the block.
    pub block: u16,
    /// XOR of its leaves' digests.
    pub sum: u64,
    differ: &'a [u8; BLOCK / 8],
    /// Of the leaves that differ, [`OursBlock::LEAF`] bytes each; none if they
    /// were too many.
    sums: &'a [u8],
}

impl OursBlock<'_> {
    /// Bytes without the sums of leaves.
    pub const HEAD: usize = 2 + 8 + 1 + BLOCK / 8;
    /// Bytes of a leaf: its digest, and the XOR of its identities.
    pub const LEAF: usize = 8 + 8;

    /// True if nothing is left out.
    pub fn is_whole(&self) -> bool {
        !self.sums.is_empty() || self.differ.iter().all(|b| *b == 0)
    }

    /// The leaves that differ; the origin's digest and XOR of identities if
    /// they are here.
    pub fn leaves(&self) -> impl Iterator<Item = (Leaf, Option<(u64, u64)>)> {
        let mut sums = self.sums.chunks_exact(Self::LEAF);
        let first = self.block * 128;
        (0..128_u16).filter_map(move |i| {
            let byte = self.differ.get(usize::from(i / 8))?;
            (byte & (1 << (i % 8)) != 0).then(|| (first + i, sums.next().and_then(both)))
        })
    }
}

fn both(bytes: &[u8]) -> Option<(u64, u64)> {
    let (a, rest) = bytes.split_first_chunk()?;
    Some((
        u64::from_be_bytes(*a),
        u64::from_be_bytes(*rest.first_chunk()?),
    ))
}

/// Blocks of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ours<'a>(Reader<'a>);

impl<'a> Ours<'a> {
    pub(super) const fn new(r: Reader<'a>) -> Self {
        Self(r)
    }

    /// The next block; `None` at the end.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed.
    #[expect(clippy::should_implement_trait, reason = "can fail")]
    pub fn next(&mut self) -> Result<Option<OursBlock<'a>>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let block = self.0.u16("block")?;
        let sum = self.0.u64("block")?;
        let whole = self.0.u8("block")? != 0;
        let differ = self.0.bytes(BLOCK / 8, "block")?;
        let differ = differ.first_chunk().ok_or(WireError::Short("block"))?;
        let count: u32 = differ.iter().map(|b| b.count_ones()).sum();
        let count = usize::try_from(count).unwrap_or(0);
        let len = if whole { OursBlock::LEAF * count } else { 0 };
        let sums = self.0.bytes(len, "block")?;
        if block >= store::BLOCKS {
            return Err(WireError::Value("block"));
        }
        Ok(Some(OursBlock {
            block,
            sum,
            differ,
            sums,
        }))
    }
}

/// Appends the head of an answer to blocks; blocks follow.
pub fn put_ours(out: &mut Vec<u8>, query: Query) {
    begin(out, OURS, query);
}

/// Appends what the origin has in a block; `differ` are the numbers in it of
/// the leaves that differ. Their sums only if `room` bytes hold them.
pub fn put_ours_block(
    out: &mut Vec<u8>,
    block: u16,
    leaves: &[Sums],
    differ: &[usize],
    room: usize,
) {
    let whole = OursBlock::HEAD + OursBlock::LEAF * differ.len() <= room;
    out.extend_from_slice(&block.to_be_bytes());
    let sum = leaves.iter().fold(0, |sum, leaf| sum ^ leaf.digest);
    out.extend_from_slice(&sum.to_be_bytes());
    out.push(u8::from(whole));
    let mut bitmap = [0_u8; BLOCK / 8];
    for i in differ {
        if let Some(b) = bitmap.get_mut(i / 8) {
            *b |= 1 << (i % 8);
        }
    }
    out.extend_from_slice(&bitmap);
    if whole {
        for leaf in differ.iter().filter_map(|i| leaves.get(*i)) {
            out.extend_from_slice(&leaf.digest.to_be_bytes());
            out.extend_from_slice(&leaf.keys.to_be_bytes());
        }
    }
}

/// Identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys<'a>(Reader<'a>);

impl<'a> Keys<'a> {
    /// Bytes of one.
    pub const LEN: usize = 8;

    pub(super) const fn new(r: Reader<'a>) -> Self {
        Self(r)
    }

    /// The next identity; `None` at the end.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed.
    #[expect(clippy::should_implement_trait, reason = "can fail")]
    pub fn next(&mut self) -> Result<Option<u64>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        self.0.u64("identity").map(Some)
    }
}

/// Appends a query of identities that the origin seems to lack.
pub fn put_ghosts(out: &mut Vec<u8>, query: Query, keys: &[u64]) {
    begin(out, GHOSTS, query);
    put_keys(out, keys.iter().copied());
}

/// Appends a query of identities that the receiver lacks or has otherwise.
pub fn put_wanted(out: &mut Vec<u8>, query: Query, keys: impl Iterator<Item = u64>) {
    begin(out, WANTED, query);
    put_keys(out, keys);
}

fn put_keys(out: &mut Vec<u8>, keys: impl Iterator<Item = u64>) {
    for key in keys {
        out.extend_from_slice(&key.to_be_bytes());
    }
}

/// Everything the receiver holds whose identity starts with a leaf's 16 bits
/// and goes on with a byte of `from..=to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Leaf.
    pub leaf: u16,
    /// First third byte.
    pub from: u8,
    /// Last third byte.
    pub to: u8,
    entries: &'a [u8],
}

/// Bytes of a segment's header.
pub const SEGMENT_HEADER: usize = 2 + 1 + 1 + 1;
/// Bytes of an entry in a segment: six of the identity, four of the hash.
pub const ENTRY_LEN: usize = 10;

impl Segment<'_> {
    /// `(identity, hash)` of each entry.
    pub fn entries(&self) -> impl Iterator<Item = (u64, u32)> {
        let [a, b] = self.leaf.to_be_bytes();
        self.entries.chunks_exact(ENTRY_LEN).filter_map(move |e| {
            let &[c, d, e, f, g, h, w, x, y, z] = e.first_chunk::<ENTRY_LEN>()?;
            let key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            Some((key, u32::from_be_bytes([w, x, y, z])))
        })
    }
}

/// Segments of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments<'a>(Reader<'a>);

impl<'a> Segments<'a> {
    pub(super) const fn new(r: Reader<'a>) -> Self {
        Self(r)
    }

    /// The next segment; `None` at the end.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed.
    #[expect(clippy::should_implement_trait, reason = "can fail")]
    pub fn next(&mut self) -> Result<Option<Segment<'a>>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let leaf = self.0.u16("segment")?;
        let [from, to, n] = self.0.array("segment")?;
        Ok(Some(Segment {
            leaf,
            from,
            to,
            entries: self.0.bytes(usize::from(n) * ENTRY_LEN, "segment")?,
        }))
    }
}

/// Appends a list header; segments follow.
pub fn put_list(out: &mut Vec<u8>, query: Query) {
    begin(out, LIST, query);
}

/// Appends a segment; at most 255 entries.
pub fn put_segment(out: &mut Vec<u8>, leaf: u16, from: u8, to: u8, entries: &[(u64, u32)]) {
    out.extend_from_slice(&leaf.to_be_bytes());
    out.extend_from_slice(&[from, to, u8::try_from(entries.len()).unwrap_or(u8::MAX)]);
    for (key, hash) in entries.iter().take(255) {
        out.extend_from_slice(key.to_be_bytes().get(2..).unwrap_or_default());
        out.extend_from_slice(&hash.to_be_bytes());
    }
}
