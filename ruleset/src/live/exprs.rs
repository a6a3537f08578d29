//! Expressions as the kernel dumps them, in the terms of [`code`].
//!
//! The kernel numbers attributes in its own way (linux/netfilter/nf_tables.h)
//! and adds some that nobody sent; those with the value they have anyway are
//! left out, so that what was sent and what is dumped are the same.

use netfilter::attr::Attrs;

use crate::render::code::{Attr, Expr};

/// How the value of an attribute is read.
#[derive(Clone, Copy)]
enum Kind {
    U16,
    U32,
    U64,
    Text,
    Data,
    Verdict,
}

/// One attribute: the kernel's number, libnftnl's, and what it holds.
type Row = (u16, u16, Kind);

/// Attributes of the expressions that our rules are made of.
fn table(name: &str) -> Option<&'static [Row]> {
    use Kind::{Data, Text, U16, U32, U64, Verdict};
    Some(match name {
        "meta" => &[(1, 2, U32), (2, 1, U32)],
        "ct" => &[(1, 1, U32), (2, 2, U32), (4, 4, U32)],
        "payload" => &[(1, 1, U32), (2, 2, U32), (3, 3, U32), (4, 4, U32)],
        "cmp" => &[(1, 1, U32), (2, 2, U32), (3, 3, Data)],
        "bitwise" => &[
            (1, 1, U32),
            (2, 2, U32),
            (3, 3, U32),
            (4, 4, Data),
            (5, 5, Data),
        ],
        "lookup" => &[(2, 1, U32), (1, 3, Text), (5, 5, U32)],
        "range" => &[(1, 1, U32), (2, 2, U32), (3, 3, Data), (4, 4, Data)],
        "immediate" => &[(1, 1, U32), (2, 2, Verdict)],
        "objref" => &[(1, 1, U32), (2, 2, Text), (3, 3, U32), (4, 4, Text)],
        "numgen" => &[(1, 1, U32), (2, 2, U32), (3, 3, U32), (4, 4, U32)],
        "limit" => &[
            (1, 1, U64),
            (2, 2, U64),
            (3, 3, U32),
            (4, 4, U32),
            (5, 5, U32),
        ],
        "log" => &[(2, 1, Text), (1, 2, U16)],
        "nat" => &[(1, 1, U32), (2, 2, U32), (3, 3, U32), (5, 5, U32)],
        "dynset" => &[(4, 1, U32), (3, 3, U32), (1, 5, Text)],
        "masq" | "notrack" => &[],
        _ => return None,
    })
}

/// True for what the kernel adds to what was sent.
fn is_default(name: &str, number: u16, value: &[u8]) -> bool {
    let zero = value.iter().all(|byte| *byte == 0);
    match (name, number) {
        // NFTA_BITWISE_OP 0 is the mask and xor that we send.
        // NFTA_DYNSET_TIMEOUT 0 is the set's own; no flags.
        ("bitwise", 6) | ("masq", 1) | ("lookup", 5) | ("dynset", 6 | 9) => zero,
        // NFTA_NAT_REG_*_MAX repeat the minimum.
        ("nat", 4 | 6) => true,
        // NF_NAT_RANGE_MAP_IPS and _PROTO_SPECIFIED: the registers say it.
        ("nat", 7) => matches!(value, [0, 0, 0, 0..=3]),
        // NFTA_LOG_LEVEL 4 (warning) and no flags; NFTA_LOG_SNAPLEN and
        // _QTHRESHOLD of a group.
        ("log", 5) => value == [0, 0, 0, 4],
        ("log", 3 | 4 | 6) => zero,
        _ => false,
    }
}

/// Reads one expression: its name and its attributes.
#[must_use]
pub fn expr(name: &str, attrs: Attrs<'_>) -> Expr {
    let rows = table(name);
    let mut found = Vec::new();
    for attr in attrs {
        if is_default(name, attr.ty, attr.value) {
            continue;
        }
        let row = rows.and_then(|rows| rows.iter().find(|(kernel, ..)| *kernel == attr.ty));
        let read = row.and_then(|(_, ours, kind)| Some((*ours, read(*kind, attr.value)?)));
        match read {
            Some((number, Value::Plain(value))) => found.push((number, value)),
            Some((_, Value::Verdict(verdict))) => found.extend(verdict),
            // Nothing of ours: kept, so that it differs from everything.
            None => found.push((attr.ty | UNKNOWN, Attr::Data(attr.value.to_vec()))),
        }
    }
    found.sort_by_key(|(number, _)| *number);
    Expr {
        name: name.to_owned(),
        attrs: found,
    }
}

/// Marks an attribute that [`table`] does not know.
pub(super) const UNKNOWN: u16 = 0x8000;

enum Value {
    Plain(Attr),
    Verdict(Vec<(u16, Attr)>),
}

fn read(kind: Kind, value: &[u8]) -> Option<Value> {
    let value = match kind {
        Kind::U16 => Attr::U16(u16::from_be_bytes(value.try_into().ok()?)),
        Kind::U32 => Attr::U32(u32::from_be_bytes(value.try_into().ok()?)),
        Kind::U64 => Attr::U64(u64::from_be_bytes(value.try_into().ok()?)),
        Kind::Text => Attr::Text(text(value)),
        Kind::Data => Attr::Data(data(value)?.to_vec()),
        Kind::Verdict => return verdict(value),
    };
    Some(Value::Plain(value))
}

/// A string, up to its NUL.
pub(super) fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

/// `NFTA_DATA_VALUE`.
pub(super) fn data(value: &[u8]) -> Option<&[u8]> {
    Attrs::new(value).find(1).map(|attr| attr.value)
}

/// `NFTA_DATA_VERDICT`, or plain data.
fn verdict(value: &[u8]) -> Option<Value> {
    if let Some(value) = data(value) {
        return Some(Value::Plain(Attr::Data(value.to_vec())));
    }
    let verdict = Attrs::new(value).find(2)?;
    let code = verdict.nested().find(1)?.value.try_into().ok()?;
    let mut attrs = vec![(3, Attr::U32(u32::from_be_bytes(code)))];
    attrs.extend(
        verdict
            .nested()
            .find(2)
            .map(|chain| (4, Attr::Text(text(chain.value)))),
    );
    Some(Value::Verdict(attrs))
}
