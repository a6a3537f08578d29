//! Rules as the expressions that the kernel evaluates.
//!
//! This is nft's linearisation, so that `nft list table` shows the same rule
//! whoever loaded it: a port match first loads `meta l4proto`, an address
//! match in an `inet` table first loads `meta nfproto`, once per rule.
//! Attribute numbers are libnftnl's (`NFTNL_EXPR_*`, libnftnl/expr.h), which
//! do not change between versions; data is in the byte order of the wire.

use std::net::IpAddr;

use crate::ir::{
    Family, Field, L4, Match, NatKind, ObjectKind, Op, Rule, Scalar, Statement, Value, Verdict,
};

/// One kernel expression: its name and its attributes in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expr {
    /// Name the kernel knows it by.
    pub name: String,
    /// libnftnl attribute number and value.
    pub attrs: Vec<(u16, Attr)>,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attr {
    /// 8 bits.
    U8(u8),
    /// 16 bits, host order.
    U16(u16),
    /// 32 bits, host order.
    U32(u32),
    /// 64 bits, host order.
    U64(u64),
    /// A name.
    Text(String),
    /// Register contents.
    Data(Vec<u8>),
    /// Index into [`Code::sets`].
    Set(usize),
}

/// A rule as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Code {
    /// Expressions in order.
    pub exprs: Vec<Expr>,
    /// Anonymous sets that expressions refer to by index.
    pub sets: Vec<AnonymousSet>,
    /// Comment, from the rule's user data.
    pub comment: Option<String>,
}

/// A constant set that lives and dies with its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnonymousSet {
    /// nft's number for the key type.
    pub key_type: u32,
    /// Bytes per key.
    pub key_len: u32,
    /// Keys, ascending, each with the object it maps to.
    pub elements: Vec<(Vec<u8>, Option<String>)>,
    /// `NFT_OBJECT_*` if this is an object map.
    pub object: Option<u32>,
}

pub(crate) const REG_VERDICT: u32 = 0;
pub(crate) const REG_1: u32 = 1;
pub(crate) const REG_2: u32 = 2;

/// `NFTNL_EXPR_NAT_FLAGS`.
pub(crate) const NAT_FLAGS: u16 = 7;

/// `NFT_CMP_*` (linux/netfilter/nf_tables.h).
pub(crate) mod cmp {
    pub const EQ: u32 = 0;
    pub const NEQ: u32 = 1;
    pub const LTE: u32 = 3;
    pub const GTE: u32 = 5;
}

/// How a field is loaded and what its values look like.
pub(crate) struct Layout {
    pub(crate) load: Expr,
    pub(crate) len: usize,
    /// nft's number for the type (`enum datatypes` in its datatype.h), which
    /// the kernel stores with a set and nft reads back.
    datatype: u32,
    pub(crate) big_endian: bool,
}

/// Translates a rule.
#[must_use]
pub fn rule(rule: &Rule) -> Code {
    let mut builder = Builder::default();
    for statement in &rule.statements {
        builder.statement(statement);
    }
    builder.code.comment.clone_from(&rule.comment);
    builder.code
}

/// What a rule's matches have made known about the packet.
#[derive(Default)]
pub(crate) struct Known {
    /// Its family.
    pub family: Option<Family>,
    /// Its protocol.
    pub l4: Option<u8>,
}

impl Known {
    /// Remembers what an explicit match makes known.
    pub fn learn(&mut self, item: &Match) {
        if let (Op::Eq, Value::One(Scalar::Number(number))) = (item.op, &item.value) {
            match (item.field, number) {
                (Field::Nfproto, 2) => self.family = Some(Family::Ip),
                (Field::Nfproto, 10) => self.family = Some(Family::Ip6),
                (Field::L4proto, _) => self.l4 = u8::try_from(*number).ok(),
                _ => {}
            }
        }
    }
}

#[derive(Default)]
struct Builder {
    code: Code,
    known: Known,
}

impl Builder {
    fn push(&mut self, name: &str, attrs: Vec<(u16, Attr)>) {
        self.code.exprs.push(expr(name, attrs));
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Match(item) => self.comparison(item),
            Statement::Counter(name) => self.objref(ObjectKind::Counter.number(), name),
            Statement::CtHelperSet(name) => self.objref(3, name),
            Statement::CtExpectationSet(name) => self.objref(9, name),
            Statement::CtHelperSpread(objects) => self.helper_spread(objects),
            Statement::CtHelperMap(entries) => self.helper_map(entries),
            Statement::Update { set, family } => self.update(set, *family),
            Statement::CtEventSet(bits) => self.ct_set(CT_EVENTMASK, bits.to_ne_bytes().to_vec()),
            Statement::CtZoneSet(zone) => self.ct_set(CT_ZONE, zone.to_ne_bytes().to_vec()),
            Statement::Notrack => self.push("notrack", Vec::new()),
            Statement::Limit { rate, burst } => self.limit(*rate, *burst),
            Statement::Log { prefix, group } => self.log(prefix, *group),
            Statement::Masquerade => self.push("masq", Vec::new()),
            Statement::Nat {
                kind,
                address,
                port,
            } => self.nat(*kind, *address, *port),
            Statement::Verdict(verdict) => self.verdict(verdict),
        }
    }

    fn objref(&mut self, kind: u32, name: &str) {
        self.push(
            "objref",
            vec![(1, Attr::U32(kind)), (2, Attr::Text(name.to_owned()))],
        );
    }

    fn helper_map(&mut self, entries: &[(u16, String)]) {
        self.require_l4(L4::Tcp.number());
        let layout = layout(Field::Dport(L4::Tcp));
        self.code.exprs.push(layout.load);
        let mut elements: Vec<_> = entries
            .iter()
            .map(|(port, name)| (port.to_be_bytes().to_vec(), Some(name.clone())))
            .collect();
        elements.sort();
        let set = self.anonymous(AnonymousSet {
            key_type: layout.datatype,
            key_len: 2,
            elements,
            object: Some(3),
        });
        self.push("objref", vec![(3, Attr::U32(REG_1)), (4, set)]);
    }

    /// The kernel counts; what the count maps to is the object.
    fn helper_spread(&mut self, objects: &[String]) {
        let modulus = u32::try_from(objects.len()).unwrap_or(u32::MAX);
        self.push(
            "numgen",
            vec![
                (1, Attr::U32(REG_1)),
                (2, Attr::U32(modulus)),
                (3, Attr::U32(NFT_NG_INCREMENTAL)),
                (4, Attr::U32(0)),
            ],
        );
        let turns = (0u32..).map(|turn| turn.to_ne_bytes().to_vec());
        let elements = turns.zip(objects.iter().cloned().map(Some)).collect();
        let set = self.anonymous(AnonymousSet {
            key_type: TYPE_INTEGER,
            key_len: 4,
            elements,
            object: Some(3),
        });
        self.push("objref", vec![(3, Attr::U32(REG_1)), (4, set)]);
    }

    fn anonymous(&mut self, set: AnonymousSet) -> Attr {
        self.code.sets.push(set);
        Attr::Set(self.code.sets.len() - 1)
    }

    fn immediate(&mut self, register: u32, data: Vec<u8>) {
        self.push(
            "immediate",
            vec![(1, Attr::U32(register)), (2, Attr::Data(data))],
        );
    }

    fn ct_set(&mut self, key: u32, data: Vec<u8>) {
        self.immediate(REG_1, data);
        self.push("ct", vec![(2, Attr::U32(key)), (4, Attr::U32(REG_1))]);
    }

    fn limit(&mut self, rate: u32, burst: u32) {
        self.push(
            "limit",
            vec![
                (1, Attr::U64(rate.into())),
                (2, Attr::U64(1)),
                (3, Attr::U32(burst)),
                (4, Attr::U32(0)),
                (5, Attr::U32(0)),
            ],
        );
    }

    fn log(&mut self, prefix: &str, group: Option<u16>) {
        let mut attrs = vec![(1, Attr::Text(prefix.to_owned()))];
        attrs.extend(group.map(|group| (2, Attr::U16(group))));
        self.push("log", attrs);
    }

    fn nat(&mut self, kind: NatKind, address: IpAddr, port: Option<u16>) {
        self.immediate(REG_1, address_bytes(address));
        let mut attrs = vec![
            (
                1,
                Attr::U32(match kind {
                    NatKind::Snat => 0,
                    NatKind::Dnat => 1,
                }),
            ),
            (2, Attr::U32(Family::of(address).nfproto().into())),
            (3, Attr::U32(REG_1)),
        ];
        if let Some(port) = port {
            self.immediate(REG_2, port.to_be_bytes().to_vec());
            attrs.push((5, Attr::U32(REG_2)));
            attrs.push((NAT_FLAGS, Attr::U32(NF_NAT_RANGE_PROTO_SPECIFIED)));
        }
        self.push("nat", attrs);
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let (number, chain) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (NFT_JUMP, Some(chain.clone())),
            Verdict::Return => (NFT_RETURN, None),
        };
        let mut attrs = vec![(1, Attr::U32(REG_VERDICT)), (3, Attr::U32(number))];
        attrs.extend(chain.map(|chain| (4, Attr::Text(chain))));
        self.push("immediate", attrs);
    }

    /// Both addresses, side by side in the registers.
    fn ends(&mut self, family: Family) {
        self.require_family(family);
        self.code.exprs.extend(ends(family));
    }

    fn update(&mut self, set: &str, family: Family) {
        self.ends(family);
        self.push(
            "dynset",
            vec![
                (1, Attr::U32(REG_1)),
                (3, Attr::U32(NFT_DYNSET_OP_UPDATE)),
                (5, Attr::Text(set.to_owned())),
            ],
        );
    }

    fn comparison(&mut self, item: &Match) {
        self.require(item.field);
        let layout = layout(item.field);
        match item.field {
            Field::Ends(family) => self.ends(family),
            _ => self.code.exprs.push(layout.load.clone()),
        }
        if let Field::TcpFlags(mask) = item.field {
            self.mask(vec![mask]);
        }
        let ne = item.op == Op::Ne;
        let op = if ne { cmp::NEQ } else { cmp::EQ };
        match &item.value {
            Value::One(one) => self.cmp(op, encode(&layout, one)),
            Value::Range(from, to) => self.range(ne, encode(&layout, from), encode(&layout, to)),
            Value::Any(values) => self.any(&layout, values, ne),
            Value::Named(name) => self.lookup(Attr::Text(name.clone()), ne),
            Value::Bits(bits) => {
                self.mask(bits.to_ne_bytes().to_vec());
                self.cmp(if ne { cmp::EQ } else { cmp::NEQ }, vec![0; 4]);
            }
        }
        self.known.learn(item);
    }

    fn cmp(&mut self, op: u32, data: Vec<u8>) {
        self.push(
            "cmp",
            vec![
                (1, Attr::U32(REG_1)),
                (2, Attr::U32(op)),
                (3, Attr::Data(data)),
            ],
        );
    }

    /// An equal range is two comparisons, an unequal one an expression of its own.
    fn range(&mut self, ne: bool, from: Vec<u8>, to: Vec<u8>) {
        if ne {
            let attrs = vec![
                (1, Attr::U32(REG_1)),
                (2, Attr::U32(1)),
                (3, Attr::Data(from)),
                (4, Attr::Data(to)),
            ];
            return self.push("range", attrs);
        }
        self.cmp(cmp::GTE, from);
        self.cmp(cmp::LTE, to);
    }

    fn any(&mut self, layout: &Layout, values: &[Scalar], ne: bool) {
        let mut elements: Vec<_> = values
            .iter()
            .map(|one| (encode(layout, one), None))
            .collect();
        elements.sort();
        elements.dedup();
        let set = self.anonymous(AnonymousSet {
            key_type: layout.datatype,
            key_len: u32::try_from(layout.len).unwrap_or(0),
            elements,
            object: None,
        });
        self.lookup(set, ne);
    }

    fn lookup(&mut self, set: Attr, ne: bool) {
        let mut attrs = vec![(1, Attr::U32(REG_1)), (3, set)];
        if ne {
            attrs.push((5, Attr::U32(1)));
        }
        self.push("lookup", attrs);
    }

    fn mask(&mut self, mask: Vec<u8>) {
        let len = u32::try_from(mask.len()).unwrap_or(0);
        let xor = vec![0; mask.len()];
        self.push(
            "bitwise",
            vec![
                (1, Attr::U32(REG_1)),
                (2, Attr::U32(REG_1)),
                (3, Attr::U32(len)),
                (4, Attr::Data(mask)),
                (5, Attr::Data(xor)),
            ],
        );
    }

    /// Emits what nft would add before a load of `field`.
    fn require(&mut self, field: Field) {
        match field {
            Field::Saddr(family) | Field::Daddr(family) => self.require_family(family),
            Field::Sport(l4) | Field::Dport(l4) => self.require_l4(l4.number()),
            Field::TcpFlags(_) => self.require_l4(L4::Tcp.number()),
            Field::Icmpv6Type => {
                self.require_family(Family::Ip6);
                self.require_l4(58);
            }
            _ => {}
        }
    }

    fn require_family(&mut self, family: Family) {
        if self.known.family != Some(family) {
            self.code.exprs.push(layout(Field::Nfproto).load);
            self.cmp(cmp::EQ, vec![family.nfproto()]);
            self.known.family = Some(family);
        }
    }

    fn require_l4(&mut self, l4: u8) {
        if self.known.l4 != Some(l4) {
            self.code.exprs.push(layout(Field::L4proto).load);
            self.cmp(cmp::EQ, vec![l4]);
            self.known.l4 = Some(l4);
        }
    }
}

/// `NFT_CT_*` keys (linux/netfilter/nf_tables.h).
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_HELPER: u32 = 6;
pub(crate) const CT_ZONE: u32 = 17;
pub(crate) const CT_EVENTMASK: u32 = 18;

/// `NFT_META_*` keys.
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

/// Payload bases.
const NETWORK_HEADER: u32 = 1;
pub(crate) const TRANSPORT_HEADER: u32 = 2;

const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
/// Verdicts are signed on the wire.
pub(crate) const NFT_JUMP: u32 = 0xffff_fffd;
pub(crate) const NFT_RETURN: u32 = 0xffff_fffb;

/// `NFT_NG_INCREMENTAL` (linux/netfilter/nf_tables.h).
const NFT_NG_INCREMENTAL: u32 = 0;
/// nft's number for a plain number.
const TYPE_INTEGER: u32 = 4;

/// `NFT_DYNSET_OP_UPDATE` (linux/netfilter/nf_tables.h).
pub(crate) const NFT_DYNSET_OP_UPDATE: u32 = 1;

const IFNAMSIZ: usize = 16;

fn expr(name: &str, attrs: Vec<(u16, Attr)>) -> Expr {
    Expr {
        name: name.to_owned(),
        attrs,
    }
}

fn meta(key: u32) -> Expr {
    expr("meta", vec![(1, Attr::U32(key)), (2, Attr::U32(REG_1))])
}

fn ct(key: u32) -> Expr {
    expr("ct", vec![(1, Attr::U32(REG_1)), (2, Attr::U32(key))])
}

fn payload(base: u32, offset: u32, len: u32) -> Expr {
    expr(
        "payload",
        vec![
            (1, Attr::U32(REG_1)),
            (2, Attr::U32(base)),
            (3, Attr::U32(offset)),
            (4, Attr::U32(len)),
        ],
    )
}

/// Loads of source and destination address into neighbouring registers: the
/// second of 16 bytes each, or of 4 (`NFT_REG32_01`).
pub(crate) fn ends(family: Family) -> [Expr; 2] {
    const REG32_01: u32 = 9;
    let (source, destination) = (Field::Saddr(family), Field::Daddr(family));
    let second = match family {
        Family::Ip => REG32_01,
        Family::Ip6 => REG_2,
    };
    let mut last = layout(destination).load;
    for (number, value) in &mut last.attrs {
        if *number == 1 {
            *value = Attr::U32(second);
        }
    }
    [layout(source).load, last]
}

pub(crate) fn layout(field: Field) -> Layout {
    let of = |load, len, datatype, big_endian| Layout {
        load,
        len,
        datatype,
        big_endian,
    };
    match field {
        Field::Nfproto => of(meta(META_NFPROTO), 1, 2, false),
        Field::L4proto => of(meta(META_L4PROTO), 1, 12, false),
        Field::Iifname => of(meta(META_IIFNAME), IFNAMSIZ, 41, false),
        Field::Oifname => of(meta(META_OIFNAME), IFNAMSIZ, 41, false),
        // Of the first; there is no value to encode, only sets.
        Field::Ends(family) => layout(Field::Saddr(family)),
        Field::Saddr(Family::Ip) => of(payload(NETWORK_HEADER, 12, 4), 4, 7, true),
        Field::Daddr(Family::Ip) => of(payload(NETWORK_HEADER, 16, 4), 4, 7, true),
        Field::Saddr(Family::Ip6) => of(payload(NETWORK_HEADER, 8, 16), 16, 8, true),
        Field::Daddr(Family::Ip6) => of(payload(NETWORK_HEADER, 24, 16), 16, 8, true),
        Field::Sport(_) => of(payload(TRANSPORT_HEADER, 0, 2), 2, 13, true),
        Field::Dport(_) => of(payload(TRANSPORT_HEADER, 2, 2), 2, 13, true),
        Field::TcpFlags(_) => of(payload(TRANSPORT_HEADER, 13, 1), 1, 15, true),
        Field::Icmpv6Type => of(payload(TRANSPORT_HEADER, 0, 1), 1, 29, true),
        Field::CtState => of(ct(CT_STATE), 4, 26, false),
        Field::CtStatus => of(ct(CT_STATUS), 4, 28, false),
        Field::CtDirection => of(ct(CT_DIRECTION), 1, 27, false),
        Field::CtHelper => of(ct(CT_HELPER), 16, 5, false),
        Field::CtZone => of(ct(CT_ZONE), 2, 0, false),
    }
}

fn encode(layout: &Layout, scalar: &Scalar) -> Vec<u8> {
    match scalar {
        Scalar::Address(address) => address_bytes(*address),
        Scalar::Text(text) => name_bytes(text, layout.len),
        Scalar::Number(number) => number_bytes(*number, layout.len, layout.big_endian),
    }
}

/// A name fills its register with zeros; `eth*` compares only its beginning.
fn name_bytes(text: &str, len: usize) -> Vec<u8> {
    if let Some(beginning) = text.strip_suffix('*') {
        return beginning.as_bytes().to_vec();
    }
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(len, 0);
    bytes
}

fn number_bytes(number: u32, len: usize, big_endian: bool) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.truncate(len);
    if big_endian || cfg!(target_endian = "big") {
        bytes.reverse();
    }
    bytes
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
