//! Encoding of connections and expectations: the same bytes in the cache and
//! on the wire.
//!
//! A record is a *key* (what identifies the entry) and a *body*. Optional
//! fields are announced by a bit each, in fixed order; fields of later
//! versions go into an extension area of tagged values, skipped if unknown
//! unless their tag is critical (odd). The remaining timeout is not part of a
//! record: it changes without the entry changing. A record has one encoding
//! only, so equal entries have equal bytes.
//!
//! Size: 19 bytes for an established TCP connection over IPv4.

mod expect;
mod flow;
mod tuple;

use crate::wire::{Reader, WireError};
use netfilter::{Expectation, Flow, Name};

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A connection.
    Flow(Flow),
    /// An expectation.
    Expect(Expectation),
}

/// The entry has something this encoding can't say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} can't be encoded")]
pub struct Unencodable(pub(crate) &'static str);

/// Kind and key of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split<'a> {
    /// True for an expectation.
    pub expect: bool,
    /// The key's bytes, from the record's start.
    pub key: &'a [u8],
}

/// Appends a connection's key.
///
/// # Errors
/// [`Unencodable`] if source and destination are of different families.
pub fn put_flow_key(out: &mut Vec<u8>, flow: &Flow) -> Result<(), Unencodable> {
    tuple::put_key(out, false, &flow.orig, flow.zone)
}

/// Appends a connection.
///
/// # Errors
/// [`Unencodable`] if its tuples are of different families or protocols.
pub fn put_flow(out: &mut Vec<u8>, flow: &Flow) -> Result<(), Unencodable> {
    flow::put(out, flow)
}

/// Appends an expectation's key.
///
/// # Errors
/// [`Unencodable`] if tuple and mask are of different families.
pub fn put_expect_key(out: &mut Vec<u8>, exp: &Expectation) -> Result<(), Unencodable> {
    expect::put_key(out, exp)
}

/// Appends an expectation.
///
/// # Errors
/// [`Unencodable`] if its addresses are of different families.
pub fn put_expect(out: &mut Vec<u8>, exp: &Expectation) -> Result<(), Unencodable> {
    expect::put(out, exp)
}

/// Cuts the key out of a record without reading its body.
///
/// # Errors
/// [`WireError`] if the key is malformed.
pub fn split(record: &[u8]) -> Result<Split<'_>, WireError> {
    let mut r = Reader::new(record);
    let head = tuple::read_key(&mut r)?;
    if head.expect {
        expect::read_key_rest(&mut r, &head.tuple)?;
    }
    let len = record.len() - r.rest().len();
    Ok(Split {
        expect: head.expect,
        key: record.get(..len).unwrap_or_default(),
    })
}

/// True for an expectation's record.
pub fn is_expect(record: &[u8]) -> bool {
    split(record).is_ok_and(|s| s.expect)
}

/// The connection that a record says, if it is of one and can be read.
pub fn as_flow(record: &[u8]) -> Option<Flow> {
    match decode(record) {
        Ok(Record::Flow(flow)) => Some(flow),
        _ => None,
    }
}

/// True if the record is of this connection: its tuple and zone.
pub fn is_of(record: &[u8], flow: &Flow) -> bool {
    let mut key = Vec::new();
    put_flow_key(&mut key, flow).is_ok() && split(record).is_ok_and(|s| s.key == key)
}

/// Reads a record. `timeout` and identifiers are absent.
///
/// # Errors
/// [`WireError`] if a field is malformed, in another than its one form, or
/// unknown and critical.
pub fn decode(record: &[u8]) -> Result<Record, WireError> {
    let mut r = Reader::new(record);
    let head = tuple::read_key(&mut r)?;
    let record = if head.expect {
        Record::Expect(expect::read(&mut r, &head)?)
    } else {
        Record::Flow(flow::read(&mut r, &head)?)
    };
    r.end()?;
    Ok(record)
}

/// True if the record is a connection that came from an expectation.
pub fn has_master(record: &[u8]) -> bool {
    split(record).is_ok_and(|s| {
        let mut body = Reader::new(record.get(s.key.len()..).unwrap_or_default());
        !s.expect && body.varint("fields").is_ok_and(flow::says_master)
    })
}

/// Skips the extension area: `(tag, length, bytes)` until the record ends.
fn read_extensions(r: &mut Reader<'_>) -> Result<(), WireError> {
    while !r.is_empty() {
        let tag = r.varint("extension tag")?;
        if tag & 1 == 1 {
            return Err(WireError::Critical(tag));
        }
        r.counted("extension")?;
    }
    Ok(())
}

/// A name from a peer reaches logs, terminals and the kernel's module
/// loader: printable ASCII without slash only.
fn read_name(r: &mut Reader<'_>, what: &'static str) -> Result<Name, WireError> {
    let bytes = r.counted(what)?;
    let good = |b: &u8| b.is_ascii_graphic() && *b != b'/';
    if bytes.is_empty() || !bytes.iter().all(good) {
        return Err(WireError::Value(what));
    }
    Name::new(bytes).map_err(|_| WireError::Value(what))
}

#[cfg(test)]
pub(crate) mod tests;
