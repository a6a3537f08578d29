//! Messages between two nodes, as they lie inside a sealed frame.
//!
//! One message per frame; its first byte is the type, unknown types are
//! ignored. Datagram numbers travel as their low 32 bits.

mod query;

use crate::hash::Seed;
use crate::wire::{Reader, WireError, put_counted, put_varint, varint_len};
pub use query::{
    Block, Blocks, ENTRY_LEN, Groups, Keys, Ours, OursBlock, Query, SEGMENT_HEADER, Segment,
    Segments, cut_of, put_answer, put_block, put_blocks, put_ghosts, put_groups, put_list,
    put_ours, put_ours_block, put_segment, put_wanted,
};

/// Version of the messages and records. A higher one stays readable: fields
/// are only ever added behind the known ones, and messages under new types.
/// What an older node would misread is a new
/// [`VERSION`](crate::transport::frame::VERSION) of the frames.
pub const VERSION: u8 = 1;

const HELLO: u8 = 1;
const HELLO_ACK: u8 = 2;
const DATA: u8 = 3;
const ACK: u8 = 4;
const GROUPS: u8 = 5;
const LIST: u8 = 6;
const ANSWER: u8 = 7;
const BLOCKS: u8 = 8;
const OURS: u8 = 9;
const WANTED: u8 = 10;
const GHOSTS: u8 = 11;

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
    /// See [`Groups`].
    Groups(Groups<'a>),
    /// Digests of the receiver's leaves, cut short.
    Blocks(Query, Blocks<'a>),
    /// Answers them: the origin's digests where they differ.
    Ours(Query, Ours<'a>),
    /// Entries that the receiver seems to lack, or to have otherwise.
    Wanted(Query, Keys<'a>),
    /// Entries that the receiver has and the origin seems not to.
    Ghosts(Query, Keys<'a>),
    /// What the receiver holds in some leaves.
    List(Query, Segments<'a>),
    /// Which of the groups differ, or which of the wanted entries the origin
    /// has not, a bit each; empty for others.
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
            GROUPS => Self::Groups(Groups::read(r)?),
            BLOCKS => Self::Blocks(Query::read(r)?, Blocks::new(*r)),
            OURS => Self::Ours(Query::read(r)?, Ours::new(*r)),
            WANTED => Self::Wanted(Query::read(r)?, Keys::new(*r)),
            GHOSTS => Self::Ghosts(Query::read(r)?, Keys::new(*r)),
            LIST => Self::List(Query::read(r)?, Segments::new(*r)),
            ANSWER => Self::Answer(Query::read(r)?, r.rest()),
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

/// Longest acknowledgement, but for its bitmap.
pub const ACK_HEADER: usize = 1 + 4 + 5 + 1;

/// Appends an acknowledgement.
pub fn put_ack(out: &mut Vec<u8>, a: &Ack<'_>) {
    out.push(ACK);
    out.extend_from_slice(&a.base.to_be_bytes());
    put_varint(out, u64::from(a.credit));
    out.push(u8::from(a.synced));
    out.extend_from_slice(a.bitmap);
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
