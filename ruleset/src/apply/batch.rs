//! One transaction: all messages in one buffer, each with a label.
//!
//! The kernel wants a transaction in one piece, so it leaves in one send
//! whatever its size. The sequence number of a message is the index of its
//! label: that is how an error finds the object that caused it.

use nftnl::nftnl_sys as sys;

use super::error::{Label, Module, Subject};
use super::nl::{self, Header};
use crate::elements::Elements;
use crate::ir::{
    Chain, ChainType, Family, Field, Key, Object, ObjectKind, Origin, Rule, Set, Statement,
};
use crate::plan::Step;
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
    pub const EVAL: u32 = 32;
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
    generation: u32,
}

/// The transaction that takes these steps.
#[must_use]
pub fn build(table: &str, steps: &[Step<'_>], generation: u32) -> Batch {
    let mut batch = Batch::new(table, generation);
    for step in steps {
        batch.step(*step);
    }
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
            generation,
        };
        batch.edge(libc::NFNL_MSG_BATCH_BEGIN, Some(generation));
        batch
    }

    /// The generation that it was built for.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
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

    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::AddTable => self.table_message("adding", libc::NFT_MSG_NEWTABLE),
            Step::DeleteTable => self.table_message("deleting", libc::NFT_MSG_DELTABLE),
            Step::FlushRules => self.flush_rules(),
            Step::DeleteChain(name) => self.delete_chain(name),
            Step::DeleteSet(name) => self.delete_set(name),
            Step::DeleteObject(name, kind) => self.delete_object(name, kind),
            Step::AddObject(object) => self.object(object),
            Step::AddSet(set) => self.set(set),
            Step::ReplaceElements(set) => self.replace_elements(set),
            Step::AddChain(chain) => self.chain(chain),
            Step::AddRules(chain) => {
                for rule in &chain.rules {
                    self.rule(&chain.name, rule);
                }
            }
        }
    }

    fn deletion(&mut self, kind: i32, what: String, subject: Subject) -> Header {
        self.header(kind, 0, label(what, subject, &Origin::default()))
    }

    fn flush_rules(&mut self) {
        let what = format!("deleting the rules of table inet {}", self.table);
        let header = self.deletion(libc::NFT_MSG_DELRULE, what, Subject::Table);
        nl::Rule::all(&self.table).write(&header, &mut self.buffer);
    }

    fn delete_chain(&mut self, name: &str) {
        let what = format!("deleting chain \"{name}\"");
        let header = self.deletion(libc::NFT_MSG_DELCHAIN, what, Subject::Old);
        nl::Chain::new(&self.table, name).write(&header, &mut self.buffer);
    }

    fn delete_set(&mut self, name: &str) {
        let what = format!("deleting set \"{name}\"");
        let header = self.deletion(libc::NFT_MSG_DELSET, what, Subject::Old);
        nl::Set::named(&self.table, name).write(&header, &mut self.buffer);
    }

    fn delete_object(&mut self, name: &str, kind: u32) {
        let what = format!("deleting object \"{name}\"");
        let header = self.deletion(libc::NFT_MSG_DELOBJ, what, Subject::Old);
        nl::Object::new(&self.table, name, kind).write(&header, &mut self.buffer);
    }

    fn replace_elements(&mut self, set: &Set) {
        let what = format!("deleting the elements of set \"{}\"", set.name);
        let header = self.deletion(libc::NFT_MSG_DELSETELEM, what, Subject::Old);
        nl::Set::named(&self.table, &set.name).write_elements(&header, &mut self.buffer);
        self.sets += 1;
        self.elements(set, self.sets);
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
            // nft's types of both, and no byte order of the whole.
            Key::Pairs {
                family: Family::Ip, ..
            } => (7 << 6 | 7, 8, NO_ENDIAN),
            Key::Pairs {
                family: Family::Ip6,
                ..
            } => (8 << 6 | 8, 32, NO_ENDIAN),
        };
        let interval = if set.key.interval() {
            flag::INTERVAL
        } else {
            0
        };
        let timeout = if set.timeout { flag::TIMEOUT } else { 0 };
        let mut message = nl::Set::new(&self.table, &set.name, self.sets);
        let mut eval = 0;
        if let Key::Pairs {
            timeout_secs, size, ..
        } = set.key
        {
            eval = flag::EVAL;
            message = message
                .u64(sys::NFTNL_SET_TIMEOUT, u64::from(timeout_secs) * 1000)
                .u32(sys::NFTNL_SET_DESC_SIZE, size);
        }
        message
            .u32(sys::NFTNL_SET_FLAGS, interval | timeout | eval)
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
            label(what, Subject::Rule(modules(rule)), &rule.origin),
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
pub(crate) const NO_ENDIAN: u32 = 0;
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

/// Modules that a rule needs besides nf_tables itself.
fn modules(rule: &Rule) -> Vec<Module> {
    let mut modules: Vec<_> = rule.statements.iter().filter_map(module).collect();
    modules.sort_unstable();
    modules.dedup();
    modules
}

fn module(statement: &Statement) -> Option<Module> {
    Some(match statement {
        Statement::Masquerade => ("nft_masq", "CONFIG_NFT_MASQ"),
        Statement::Nat { .. } => ("nft_nat", "CONFIG_NFT_NAT"),
        Statement::Log { .. } => ("nft_log", "CONFIG_NFT_LOG"),
        Statement::Limit { .. } => ("nft_limit", "CONFIG_NFT_LIMIT"),
        Statement::Update { .. } => ("nf_tables", "CONFIG_NF_TABLES"),
        Statement::CtHelperSpread(_) => ("nft_numgen", "CONFIG_NFT_NUMGEN"),
        Statement::CtEventSet(_) => ("nft_ct", "CONFIG_NF_CONNTRACK_EVENTS"),
        Statement::CtZoneSet(_) => ("nft_ct", "CONFIG_NF_CONNTRACK_ZONES"),
        Statement::Notrack | Statement::CtHelperSet(_) => ("nft_ct", "CONFIG_NFT_CT"),
        Statement::Match(item) => match item.field {
            Field::CtState | Field::CtStatus | Field::CtHelper | Field::CtZone => {
                ("nft_ct", "CONFIG_NFT_CT")
            }
            _ => return None,
        },
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Owner, Ruleset};
    use crate::live::Live;
    use crate::plan::plan;

    /// Types of the messages in a batch.
    fn kinds(mut buffer: &[u8]) -> Vec<i32> {
        let mut kinds = Vec::new();
        while let Some((len, kind)) = buffer.first_chunk::<4>().zip(buffer.get(4..6)) {
            kinds.push(i32::from(u16::from_ne_bytes([kind[0], kind[1]])));
            let len = usize::try_from(u32::from_ne_bytes(*len)).expect("length");
            buffer = buffer.get(len..).expect("whole messages");
        }
        kinds
    }

    #[test]
    fn hundred_thousand_elements_are_one_transaction() {
        let ruleset = Ruleset {
            table: "t".to_owned(),
            objects: Vec::new(),
            sets: vec![Set {
                name: "s".to_owned(),
                key: Key::Ipv6,
                timeout: false,
                elements: Elements::V6((0..100_000).map(|n| (2 * n, 2 * n)).collect()),
                owner: Owner::Policy,
                why: None,
                origin: Origin::default(),
            }],
            chains: Vec::new(),
        };
        let live = Live::default();
        let mut batch = build("t", &plan(&live, &ruleset), 7);
        batch.finish();
        let kinds = kinds(&batch.buffer);
        let count = |kind| kinds.iter().filter(|one| **one == kind).count();
        assert_eq!(count(libc::NFNL_MSG_BATCH_BEGIN), 1);
        assert_eq!(kinds.last(), Some(&libc::NFNL_MSG_BATCH_END));
        let elements = (libc::NFNL_SUBSYS_NFTABLES << 8) | libc::NFT_MSG_NEWSETELEM;
        assert_eq!(count(elements), 200);
        assert_eq!(
            kinds.len(),
            batch.labels.len(),
            "every message has its label"
        );
    }
}
