//! Messages between two nodes, as they lie inside a sealed frame.
//!
//! One message per frame; its first byte is the type, unknown types are
//! ignored. Datagram numbers travel as their low 32 bits.

use crate::hash::Seed;
use crate::wire::{Reader, WireError, put_counted, put_varint, varint_len};

/// Version of the messages and records. A higher one stays readable: fields
/// are only ever added behind the known ones.
pub const VERSION: u8 = 1;

const HELLO: u8 = 1;
const HELLO_ACK: u8 = 2;
const DATA: u8 = 3;
const ACK: u8 = 4;
const DIGESTS: u8 = 5;
const LIST: u8 = 6;
const ANSWER: u8 = 7;

/// Datagram numbers stay below: far from where counting them would overflow.
const MAX_NUMBER: u64 = 1 << 62;

/// Longest node name, in bytes.
pub const MAX_NAME: usize = 63;

/// What a node is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Nobody gave it one: it owns what its kernel has.
    #[default]
    Standalone,
    /// It owns the states.
    Primary,
    /// It waits.
    Backup,
    /// It must not be used.
    Fault,
}

impl Role {
    /// As in `status --json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Fault => "fault",
        }
    }

    const fn from_byte(b: u8) -> Option<Self> {
        match b {
            0 => Some(Self::Standalone),
            1 => Some(Self::Primary),
            2 => Some(Self::Backup),
            3 => Some(Self::Fault),
            _ => None,
        }
    }
}

/// Introduces the sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Highest message version it speaks.
    pub version: u8,
    /// Random per start of the program.
    pub incarnation: u64,
    /// Counts how often the sender began anew with this receiver: after a
    /// change, its queue of changes has been forgotten.
    pub session: u32,
    /// Counts hellos, for [`Message::HelloAck`].
    pub serial: u32,
    /// Seed of all its hashes.
    pub seed: Seed,
    /// Its role.
    pub role: Role,
    /// Counts takeovers; the highest owns.
    pub epoch: u64,
    /// Number of the sender's next datagram: the first of a new session.
    pub next: u64,
    /// Its name.
    pub name: String,
}

/// What is known when a datagram is built whose end leaves nothing to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// [`crate::store::Store::digests`]' root.
    pub root: u64,
    /// Live connections.
    pub flows: u64,
    /// Live expectations.
    pub expectations: u64,
}

/// Header of a data datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// Its number.
    pub number: u32,
    /// Every datagram this far back and further is settled: received, or what
    /// it said has been said again since.
    pub back: u32,
    /// State of the sender after this datagram.
    pub mark: Option<Mark>,
}

/// What the receiver of data has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Everything up to this number is settled.
    pub base: u32,
    /// Datagrams that may be on the way.
    pub credit: u32,
    /// The receiver's copy has been equal at the last mark.
    pub synced: bool,
    /// Bit i (from the lowest of byte 0): `base + 1 + i` was received.
    pub bitmap: &'a [u8],
}

/// Digests of the receiver's copy, for the origin to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests<'a> {
    /// Which query; the answer carries it back.
    pub query: Query,
    /// `None`: of groups; else of the leaves of this group.
    pub group: Option<u8>,
    /// Number of the first.
    pub first: u8,
    /// Eight bytes each.
    pub digests: &'a [u8],
}

/// Names a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Query {
    /// Round of the receiver.
    pub round: u32,
    /// Number within.
    pub id: u32,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// See [`Hello`].
    Hello(Hello),
    /// Answers a hello: its serial, and how many records the receiver holds.
    HelloAck {
        /// Serial of the hello.
        serial: u32,
        /// Incarnation of the hello.
        incarnation: u64,
        /// Records held of this origin.
        held: u64,
    },
    /// Records; the items follow.
    Data(Data, Items<'a>),
    /// See [`Ack`].
    Ack(Ack<'a>),
    /// See [`Digests`].
    Digests(Digests<'a>),
    /// What the receiver holds in some leaves.
    List(Query, Segments<'a>),
    /// Which of the digests differ, a bit each; empty for a list.
    Answer(Query, &'a [u8]),
    /// A type of a later version.
    Unknown(u8),
}

impl<'a> Message<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed. Items and segments are checked as
    /// they are read.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let r = &mut r;
        Ok(match r.u8("message type")? {
            HELLO => Self::Hello(read_hello(r)?),
            HELLO_ACK => Self::HelloAck {
                serial: r.u32("serial")?,
                incarnation: r.u64("incarnation")?,
                held: r.varint("held")?,
            },
            DATA => {
                let data = read_data(r)?;
                Self::Data(data, Items(*r))
            }
            ACK => Self::Ack(Ack {
                base: r.u32("base")?,
                credit: r.int("credit")?,
                synced: r.u8("synced")? != 0,
                bitmap: r.rest(),
            }),
            DIGESTS => Self::Digests(read_digests(r)?),
            LIST => Self::List(read_query(r)?, Segments(*r)),
            ANSWER => Self::Answer(read_query(r)?, r.rest()),
            ty => Self::Unknown(ty),
        })
    }
}

fn read_hello(r: &mut Reader<'_>) -> Result<Hello, WireError> {
    let version = r.u8("version")?;
    let incarnation = r.u64("incarnation")?;
    let session = r.u32("session")?;
    let serial = r.u32("serial")?;
    let seed = Seed::from_bytes(r.array("seed")?);
    let role = Role::from_byte(r.u8("role")?).ok_or(WireError::Value("role"))?;
    let epoch = r.varint("epoch")?;
    let next = r.varint("next")?;
    if !(1..MAX_NUMBER).contains(&next) {
        return Err(WireError::Value("next"));
    }
    let name = r.counted("name")?;
    let printable = name.iter().all(u8::is_ascii_graphic);
    if version == 0 || name.is_empty() || name.len() > MAX_NAME || !printable {
        return Err(WireError::Value("name"));
    }
    Ok(Hello {
        version,
        incarnation,
        session,
        serial,
        seed,
        role,
        epoch,
        next,
        name: String::from_utf8_lossy(name).into_owned(),
    })
}

/// Appends a hello.
pub fn put_hello(out: &mut Vec<u8>, h: &Hello) {
    out.extend_from_slice(&[HELLO, h.version]);
    out.extend_from_slice(&h.incarnation.to_be_bytes());
    out.extend_from_slice(&h.session.to_be_bytes());
    out.extend_from_slice(&h.serial.to_be_bytes());
    out.extend_from_slice(&h.seed.to_bytes());
    out.push(h.role as u8);
    put_varint(out, h.epoch);
    put_varint(out, h.next);
    put_counted(out, h.name.as_bytes());
}

/// Appends the answer to a hello.
pub fn put_hello_ack(out: &mut Vec<u8>, serial: u32, incarnation: u64, held: u64) {
    out.push(HELLO_ACK);
    out.extend_from_slice(&serial.to_be_bytes());
    out.extend_from_slice(&incarnation.to_be_bytes());
    put_varint(out, held);
}

fn read_data(r: &mut Reader<'_>) -> Result<Data, WireError> {
    let number = r.u32("number")?;
    let back = r.int("floor")?;
    let mark = match r.u8("data flags")? {
        0 => None,
        1 => Some(Mark {
            root: r.u64("mark")?,
            flows: r.varint("mark")?,
            expectations: r.varint("mark")?,
        }),
        _ => return Err(WireError::Value("data flags")),
    };
    Ok(Data { number, back, mark })
}

/// Appends a data header; items follow.
pub fn put_data(out: &mut Vec<u8>, d: &Data) {
    out.push(DATA);
    out.extend_from_slice(&d.number.to_be_bytes());
    put_varint(out, u64::from(d.back));
    match d.mark {
        None => out.push(0),
        Some(m) => {
            out.push(1);
            out.extend_from_slice(&m.root.to_be_bytes());
            put_varint(out, m.flows);
            put_varint(out, m.expectations);
        }
    }
}

/// Longest data header.
pub const DATA_HEADER: usize = 1 + 4 + 5 + 1 + 8 + 10 + 10;

/// Appends an acknowledgement.
pub fn put_ack(out: &mut Vec<u8>, a: &Ack<'_>) {
    out.push(ACK);
    out.extend_from_slice(&a.base.to_be_bytes());
    put_varint(out, u64::from(a.credit));
    out.push(u8::from(a.synced));
    out.extend_from_slice(a.bitmap);
}

fn read_query(r: &mut Reader<'_>) -> Result<Query, WireError> {
    Ok(Query {
        round: r.u32("round")?,
        id: r.u32("query")?,
    })
}

fn put_query(out: &mut Vec<u8>, q: Query) {
    out.extend_from_slice(&q.round.to_be_bytes());
    out.extend_from_slice(&q.id.to_be_bytes());
}

fn read_digests<'a>(r: &mut Reader<'a>) -> Result<Digests<'a>, WireError> {
    let query = read_query(r)?;
    let [level, group, first] = r.array("digests")?;
    let digests = r.rest();
    let n = digests.len() / 8;
    if level > 1 || digests.len() % 8 != 0 || usize::from(first) + n > 256 {
        return Err(WireError::Value("digests"));
    }
    Ok(Digests {
        query,
        group: (level == 1).then_some(group),
        first,
        digests,
    })
}

/// Appends digests `first..` of groups or of a group's leaves.
pub fn put_digests(out: &mut Vec<u8>, query: Query, group: Option<u8>, first: u8, digests: &[u64]) {
    out.push(DIGESTS);
    put_query(out, query);
    out.extend_from_slice(&[u8::from(group.is_some()), group.unwrap_or(0), first]);
    for d in digests {
        out.extend_from_slice(&d.to_be_bytes());
    }
}

/// Appends a list header; segments follow.
pub fn put_list(out: &mut Vec<u8>, query: Query) {
    out.push(LIST);
    put_query(out, query);
}

/// Appends an answer.
pub fn put_answer(out: &mut Vec<u8>, query: Query, bitmap: &[u8]) {
    out.push(ANSWER);
    put_query(out, query);
    out.extend_from_slice(bitmap);
}

/// One item of a data datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// The entry is now this, and has `timeout` seconds left.
    Put {
        /// Seconds.
        timeout: u32,
        /// The record.
        record: &'a [u8],
    },
    /// The entry with this identity is gone.
    Delete(u64),
    /// From a later version; may be ignored.
    Ignorable,
    /// From a later version; must not be ignored.
    Critical,
}

const OP_PUT: u64 = 0;
const OP_DELETE: u64 = 1;
const OP_IGNORABLE: u64 = 2;

/// Items of a data datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Items<'a>(Reader<'a>);

impl<'a> Items<'a> {
    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// [`WireError`] if it is malformed: what follows can't be read either.
    #[expect(clippy::should_implement_trait, reason = "can fail")]
    pub fn next(&mut self) -> Result<Option<Item<'a>>, WireError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let head = self.0.varint("item")?;
        let len = usize::try_from(head >> 2).map_err(|_| WireError::Value("item"))?;
        Ok(Some(match head & 3 {
            OP_PUT => Item::Put {
                timeout: self.0.int("timeout")?,
                record: self.0.bytes(len, "record")?,
            },
            OP_DELETE => Item::Delete(self.0.u64("identity")?),
            op => {
                self.0.bytes(len, "item")?;
                if op == OP_IGNORABLE {
                    Item::Ignorable
                } else {
                    Item::Critical
                }
            }
        }))
    }
}

/// Appends a record.
pub fn put_item(out: &mut Vec<u8>, timeout: u32, record: &[u8]) {
    put_varint(out, (record.len() as u64) << 2 | OP_PUT);
    put_varint(out, u64::from(timeout));
    out.extend_from_slice(record);
}

/// Bytes that [`put_item`] appends.
pub const fn item_len(timeout: u32, record: usize) -> usize {
    varint_len((record as u64) << 2) + varint_len(timeout as u64) + record
}

/// Appends a deletion: [`DELETE_LEN`] bytes.
pub fn put_delete(out: &mut Vec<u8>, key: u64) {
    put_varint(out, OP_DELETE);
    out.extend_from_slice(&key.to_be_bytes());
}

/// Bytes of a deletion.
pub const DELETE_LEN: usize = 9;

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

/// Appends a segment; at most 255 entries.
pub fn put_segment(out: &mut Vec<u8>, leaf: u16, from: u8, to: u8, entries: &[(u64, u32)]) {
    out.extend_from_slice(&leaf.to_be_bytes());
    out.extend_from_slice(&[from, to, u8::try_from(entries.len()).unwrap_or(u8::MAX)]);
    for (key, hash) in entries.iter().take(255) {
        out.extend_from_slice(key.to_be_bytes().get(2..).unwrap_or_default());
        out.extend_from_slice(&hash.to_be_bytes());
    }
}
