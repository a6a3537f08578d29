//! One transaction: all messages in one buffer, each with a label.
//!
//! The kernel wants a transaction in one piece, so it leaves in one send
//! whatever its size. The sequence number of a message is the index of its
//! label: that is how an error finds the object that caused it.

use nftnl::nftnl_sys as sys;

use super::error::{Label, Subject};
use super::nl::{self, Header};
use crate::elements::Elements;
use crate::ir::{Chain, ChainType, Key, Object, ObjectKind, Origin, Rule, Ruleset, Set};
use crate::render::{code, nft};

/// Elements per message. An element is at most 44 bytes here and an
/// attribute at most 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// `NFT_SET_*` (linux/netfilter/nf_tables.h).
mod flag {
    pub const ANONYMOUS: u32 = 1;
    pub const CONSTANT: u32 = 2;
    pub const INTERVAL: u32 = 4;
    pub const TIMEOUT: u32 = 16;
    pub const OBJECT: u32 = 64;
    /// `NFT_SET_ELEM_INTERVAL_END`.
    pub const END: u32 = 1;
}

/// A transaction ready to be sent.
pub struct Batch {
    pub(super) buffer: Vec<u8>,
    pub(super) labels: Vec<Label>,
    abandoned: bool,
    table: String,
    sets: u32,
}

/// The transaction that replaces the table: add, delete, add again works
/// whether or not it exists.
#[must_use]
pub fn replace(ruleset: &Ruleset, generation: u32) -> Batch {
    let mut batch = remove(&ruleset.table, generation);
    batch.table_message("adding", libc::NFT_MSG_NEWTABLE);
    for object in &ruleset.objects {
        batch.object(object);
    }
    for set in &ruleset.sets {
        batch.set(set);
    }
    for chain in &ruleset.chains {
        batch.chain(chain);
    }
    for chain in &ruleset.chains {
        for rule in &chain.rules {
            batch.rule(&chain.name, rule);
        }
    }
    batch
}

/// The transaction that removes the table, if it is there.
#[must_use]
pub fn remove(table: &str, generation: u32) -> Batch {
    let mut batch = Batch::new(table, generation);
    batch.table_message("adding", libc::NFT_MSG_NEWTABLE);
    batch.table_message("deleting", libc::NFT_MSG_DELTABLE);
    batch
}

impl Batch {
    fn new(table: &str, generation: u32) -> Self {
        let mut batch = Self {
            buffer: Vec::with_capacity(1 << 16),
            labels: Vec::new(),
            abandoned: false,
            table: table.to_owned(),
            sets: 0,
        };
        batch.edge(libc::NFNL_MSG_BATCH_BEGIN, Some(generation));
        batch
    }

    /// Makes the kernel check everything and then undo it: nfnetlink aborts
    /// a transaction whose end never comes.
    #[must_use]
    pub fn abandon(mut self) -> Self {
        self.abandoned = true;
        self
    }

    /// Closes the transaction.
    pub(super) fn finish(&mut self) {
        if !self.abandoned {
            self.edge(libc::NFNL_MSG_BATCH_END, None);
        }
    }

    /// Begin or end. `NFNL_BATCH_GENID` makes the kernel refuse the
    /// transaction (ERESTART) if the ruleset has changed since.
    fn edge(&mut self, kind: i32, generation: Option<u32>) {
        let len: u32 = if generation.is_some() { 28 } else { 20 };
        let header = self.header(
            kind,
            0,
            label("transaction", Subject::Edge, &Origin::default()),
        );
        self.buffer.extend(len.to_ne_bytes());
        self.buffer.extend(header.kind.to_ne_bytes());
        self.buffer
            .extend(number(libc::NLM_F_REQUEST).to_ne_bytes());
        self.buffer.extend(header.seq.to_ne_bytes());
        self.buffer.extend([0; 6]);
        self.buffer
            .extend(number(libc::NFNL_SUBSYS_NFTABLES).to_be_bytes());
        if let Some(generation) = generation {
            self.buffer.extend(8u16.to_ne_bytes());
            self.buffer.extend(NFNL_BATCH_GENID.to_ne_bytes());
            self.buffer.extend(generation.to_be_bytes());
        }
    }

    fn header(&mut self, kind: i32, flags: i32, label: Label) -> Header {
        let seq = u32::try_from(self.labels.len()).unwrap_or(u32::MAX);
        self.labels.push(label);
        Header {
            kind: number(kind),
            flags: number(flags),
            seq,
        }
    }

    fn table_message(&mut self, verb: &str, kind: i32) {
        let what = format!("{verb} table inet {}", self.table);
        let header = self.header(kind, 0, label(what, Subject::Table, &Origin::default()));
        nl::Table::new(&self.table).write(&header, &mut self.buffer);
    }

    fn object(&mut self, object: &Object) {
        let what = format!("adding {} \"{}\"", object.kind.keyword(), object.name);
        let subject = match &object.kind {
            ObjectKind::CtHelper { helper } => Subject::Helper(helper.clone()),
            ObjectKind::CtExpectation { .. } => Subject::Expectation,
            ObjectKind::Counter => Subject::Object,
        };
        let label = label(what, subject, &object.origin);
        let header = self.header(libc::NFT_MSG_NEWOBJ, libc::NLM_F_CREATE, label);
        native_object(&self.table, object).write(&header, &mut self.buffer);
    }

    fn set(&mut self, set: &Set) {
        let what = format!("adding set \"{}\"", set.name);
        let header = self.header(
            libc::NFT_MSG_NEWSET,
            libc::NLM_F_CREATE,
            label(what, Subject::Set, &set.origin),
        );
        self.sets += 1;
        let (datatype, len, byte_order) = match set.key {
            Key::Ipv4 => (7, 4, BIG_ENDIAN),
            Key::Ipv6 => (8, 16, BIG_ENDIAN),
            Key::Proto => (12, 1, BIG_ENDIAN),
        };
        let interval = if set.key.interval() {
            flag::INTERVAL
        } else {
            0
        };
        let timeout = if set.timeout { flag::TIMEOUT } else { 0 };
        nl::Set::new(&self.table, &set.name, self.sets)
            .u32(sys::NFTNL_SET_FLAGS, interval | timeout)
            .u32(sys::NFTNL_SET_KEY_TYPE, datatype)
            .u32(sys::NFTNL_SET_KEY_LEN, len)
            .userdata(&byte_order_userdata(byte_order))
            .write(&header, &mut self.buffer);
        self.elements(set, self.sets);
    }

    fn elements(&mut self, set: &Set, id: u32) {
        match &set.elements {
            Elements::V4(ranges) => self.ranges(set, id, ranges, |at: u32| at.to_be_bytes()),
            Elements::V6(ranges) => self.ranges(set, id, ranges, |at: u128| at.to_be_bytes()),
            Elements::None => {}
        }
    }

    fn ranges<T: Bound, const N: usize>(
        &mut self,
        set: &Set,
        id: u32,
        ranges: &[(T, T)],
        bytes: impl Fn(T) -> [u8; N],
    ) {
        for chunk in ranges.chunks(ELEMENTS_PER_MESSAGE / 2) {
            let mut message = nl::Set::new(&self.table, &set.name, id);
            for &(from, to) in chunk {
                message.element(&bytes(from), 0, None);
                if let Some(end) = to.successor() {
                    message.element(&bytes(end), flag::END, None);
                }
            }
            self.write_elements(&message, &set.name, &set.origin);
        }
    }

    fn write_elements(&mut self, message: &nl::Set, name: &str, origin: &Origin) {
        let what = format!("adding elements to set \"{name}\"");
        let header = self.header(
            libc::NFT_MSG_NEWSETELEM,
            libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            label(what, Subject::Elements, origin),
        );
        message.write_elements(&header, &mut self.buffer);
    }

    fn chain(&mut self, chain: &Chain) {
        let nat = chain.base.is_some_and(|base| base.kind == ChainType::Nat);
        let what = format!("adding chain \"{}\"", chain.name);
        let header = self.header(
            libc::NFT_MSG_NEWCHAIN,
            libc::NLM_F_CREATE,
            label(what, Subject::Chain { nat }, &chain.origin),
        );
        let mut message = nl::Chain::new(&self.table, &chain.name);
        if let Some(base) = chain.base {
            message = message
                .text(sys::NFTNL_CHAIN_TYPE, base.kind.keyword())
                .u32(sys::NFTNL_CHAIN_HOOKNUM, base.hook.number())
                .priority(base.priority)
                .u32(sys::NFTNL_CHAIN_POLICY, base.policy.number());
        }
        message.write(&header, &mut self.buffer);
    }

    fn rule(&mut self, chain: &str, rule: &Rule) {
        let code = code::rule(rule);
        let first_set = self.sets + 1;
        for set in &code.sets {
            self.anonymous_set(set, rule);
        }
        let what = format!("adding rule to chain \"{chain}\": {}", nft::rule(rule));
        let header = self.header(
            libc::NFT_MSG_NEWRULE,
            libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            label(what, Subject::Rule, &rule.origin),
        );
        let mut message = nl::Rule::new(&self.table, chain);
        for expr in &code.exprs {
            message.expr(expr, |index| set_reference(&code.sets, index, first_set));
        }
        if let Some(comment) = &code.comment {
            message = message.userdata(&comment_userdata(comment));
        }
        message.write(&header, &mut self.buffer);
    }

    fn anonymous_set(&mut self, set: &code::AnonymousSet, rule: &Rule) {
        self.sets += 1;
        let name = anonymous_name(set);
        let what = format!("adding an anonymous set for: {}", nft::rule(rule));
        let header = self.header(
            libc::NFT_MSG_NEWSET,
            libc::NLM_F_CREATE,
            label(what, Subject::Set, &rule.origin),
        );
        let object = if set.object.is_some() {
            flag::OBJECT
        } else {
            0
        };
        let size = u32::try_from(set.elements.len()).unwrap_or(u32::MAX);
        let mut message = nl::Set::new(&self.table, name, self.sets)
            .u32(
                sys::NFTNL_SET_FLAGS,
                flag::ANONYMOUS | flag::CONSTANT | object,
            )
            .u32(sys::NFTNL_SET_KEY_TYPE, set.key_type)
            .u32(sys::NFTNL_SET_KEY_LEN, set.key_len)
            .u32(sys::NFTNL_SET_DESC_SIZE, size)
            .userdata(&byte_order_userdata(set.byte_order()));
        if let Some(kind) = set.object {
            message = message.u32(sys::NFTNL_SET_OBJ_TYPE, kind);
        }
        message.write(&header, &mut self.buffer);
        for (key, object) in &set.elements {
            message.element(key, 0, object.as_deref());
        }
        self.write_elements(&message, name, &rule.origin);
    }
}

/// Netlink attribute of a batch's begin (linux/netfilter/nfnetlink.h).
const NFNL_BATCH_GENID: u16 = 1;
/// `BYTEORDER_*` in nft's expression.h.
pub(crate) const HOST_ENDIAN: u32 = 1;
pub(crate) const BIG_ENDIAN: u32 = 2;

/// An upper bound that has a next address, unless it is the last one.
trait Bound: Copy {
    fn successor(self) -> Option<Self>;
}

impl Bound for u32 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Bound for u128 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl code::AnonymousSet {
    /// What nft notes for its own listing.
    fn byte_order(&self) -> u32 {
        const HOST_ORDER: [u32; 4] = [2, 4, 5, 41];
        if HOST_ORDER.contains(&self.key_type) {
            HOST_ENDIAN
        } else {
            BIG_ENDIAN
        }
    }
}

fn anonymous_name(set: &code::AnonymousSet) -> &'static str {
    if set.object.is_some() {
        "__objmap%d"
    } else {
        "__set%d"
    }
}

fn set_reference(sets: &[code::AnonymousSet], index: usize, first: u32) -> (&'static str, u32) {
    let name = sets.get(index).map_or("", anonymous_name);
    (name, first + u32::try_from(index).unwrap_or(0))
}

fn native_object(table: &str, object: &Object) -> nl::Object {
    const TCP: u8 = 6;
    let message = nl::Object::new(table, &object.name, object.kind.number());
    match &object.kind {
        ObjectKind::Counter => message,
        ObjectKind::CtHelper { helper } => message
            .text(sys::NFTNL_OBJ_CT_HELPER_NAME, helper)
            .u8(sys::NFTNL_OBJ_CT_HELPER_L4PROTO, TCP),
        ObjectKind::CtExpectation {
            family,
            dport,
            timeout_ms,
            size,
        } => message
            .u16(sys::NFTNL_OBJ_CT_EXPECT_L3PROTO, family.nfproto().into())
            .u8(sys::NFTNL_OBJ_CT_EXPECT_L4PROTO, TCP)
            .u16(sys::NFTNL_OBJ_CT_EXPECT_DPORT, *dport)
            .u32(sys::NFTNL_OBJ_CT_EXPECT_TIMEOUT, *timeout_ms)
            .u8(sys::NFTNL_OBJ_CT_EXPECT_SIZE, *size),
    }
}

/// User data is a list of type, length, value, one byte each for the first two.
fn byte_order_userdata(order: u32) -> Vec<u8> {
    let mut data = vec![0, 4];
    data.extend(order.to_ne_bytes());
    data
}

fn comment_userdata(comment: &str) -> Vec<u8> {
    let len = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    let mut data = vec![0, len];
    data.extend(comment.bytes());
    data.push(0);
    data
}

fn label(what: impl Into<String>, subject: Subject, origin: &Origin) -> Label {
    Label {
        what: what.into(),
        subject,
        origin: origin.clone(),
    }
}

/// Message types and flags are small constants that libc declares as int.
fn number(value: i32) -> u16 {
    u16::try_from(value).unwrap_or(0)
}
