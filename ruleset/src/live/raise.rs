//! From expressions back to statements: what [`code`] does, undone.
//!
//! Two rules get the same text exactly if they do the same, so comparing
//! texts compares rules. What cannot be read is shown as it is, and equals
//! nothing that a policy makes.

use std::net::IpAddr;

use crate::ir::{
    Family, Field, L4, Match, NatKind, Op, Rule, Scalar, Statement, Value, Verdict, tcp_flags,
};
use crate::render::code::{
    self, Attr, CT_EVENTMASK, CT_ZONE, Code, Expr, Known, NAT_FLAGS, NFT_JUMP, NFT_RETURN, REG_1,
    REG_2, REG_VERDICT, TRANSPORT_HEADER, cmp, layout,
};
use crate::render::nft;

/// Text of a rule that a policy asks for, comparable with [`text`].
#[must_use]
pub fn expected(rule: &Rule) -> String {
    text(&code::rule(rule))
}

/// Text of a rule.
#[must_use]
pub fn text(code: &Code) -> String {
    let mut raiser = Raiser {
        code,
        known: Known::default(),
        statements: Vec::new(),
    };
    let mut exprs = code.exprs.as_slice();
    while let Some((first, rest)) = exprs.split_first() {
        let taken = raiser.step(exprs).unwrap_or(0);
        if taken == 0 {
            raiser.statements.push(Raised::Raw(raw(first)));
        }
        exprs = exprs.get(taken..).filter(|_| taken > 0).unwrap_or(rest);
    }
    let mut words: Vec<_> = raiser.statements.iter().map(Raised::text).collect();
    words.extend(
        code.comment
            .as_ref()
            .map(|text| format!("comment \"{text}\"")),
    );
    words.join(" ")
}

enum Raised {
    Statement(Statement),
    Raw(String),
}

impl Raised {
    fn text(&self) -> String {
        match self {
            Self::Statement(statement) => nft::statement(statement),
            Self::Raw(text) => text.clone(),
        }
    }
}

fn raw(expr: &Expr) -> String {
    let attrs: Vec<_> = expr
        .attrs
        .iter()
        .map(|(number, value)| format!("{number}={value:?}"))
        .collect();
    format!("[{} {}]", expr.name, attrs.join(" "))
}

struct Raiser<'a> {
    code: &'a Code,
    known: Known,
    statements: Vec<Raised>,
}

impl Raiser<'_> {
    fn push(&mut self, statement: Statement) {
        self.statements.push(Raised::Statement(statement));
    }

    /// Reads one statement, maybe two; how many expressions it took.
    fn step(&mut self, exprs: &[Expr]) -> Option<usize> {
        let (first, rest) = exprs.split_first()?;
        let statement = match (first.name.as_str(), first.attrs.as_slice()) {
            ("objref", [(1, Attr::U32(kind)), (2, Attr::Text(name))]) => object(*kind, name)?,
            ("notrack", []) => Statement::Notrack,
            ("masq", []) => Statement::Masquerade,
            ("limit", attrs) => limit(attrs)?,
            ("log", attrs) => log(attrs)?,
            ("immediate", [(1, Attr::U32(REG_VERDICT)), verdict @ ..]) => raise_verdict(verdict)?,
            ("immediate", [(1, Attr::U32(REG_1)), (2, Attr::Data(data))]) => {
                return self.immediate(data, rest);
            }
            ("numgen", attrs) => return self.spread(attrs, rest.first()?),
            _ => return self.comparison(exprs),
        };
        self.push(statement);
        Some(1)
    }

    /// A value on its way into conntrack or NAT.
    fn immediate(&mut self, data: &[u8], rest: &[Expr]) -> Option<usize> {
        let (next, rest) = rest.split_first()?;
        match (next.name.as_str(), next.attrs.as_slice()) {
            ("ct", [(2, Attr::U32(CT_EVENTMASK)), (4, Attr::U32(REG_1))]) => {
                let bits = u32::from_ne_bytes(data.try_into().ok()?);
                self.push(Statement::CtEventSet(bits));
                Some(2)
            }
            ("ct", [(2, Attr::U32(CT_ZONE)), (4, Attr::U32(REG_1))]) => {
                let zone = u16::from_ne_bytes(data.try_into().ok()?);
                self.push(Statement::CtZoneSet(zone));
                Some(2)
            }
            ("nat", attrs) => {
                self.push(nat(attrs, data, None)?);
                Some(2)
            }
            ("immediate", [(1, Attr::U32(REG_2)), (2, Attr::Data(port))]) => {
                let next = rest.first().filter(|next| next.name == "nat")?;
                let port = u16::from_be_bytes(port.as_slice().try_into().ok()?);
                self.push(nat(&next.attrs, data, Some(port))?);
                Some(3)
            }
            _ => None,
        }
    }

    fn spread(&mut self, attrs: &[(u16, Attr)], objref: &Expr) -> Option<usize> {
        let [
            (1, Attr::U32(REG_1)),
            (2, Attr::U32(modulus)),
            (3, Attr::U32(0)),
            (4, Attr::U32(0)),
        ] = attrs
        else {
            return None;
        };
        let set = self.objects(objref)?;
        let names: Option<Vec<_>> = (0..*modulus)
            .map(|turn| {
                let key = turn.to_ne_bytes();
                let found = set.iter().find(|(have, _)| *have == key);
                found.and_then(|(_, name)| name.clone())
            })
            .collect();
        let names = names.filter(|names| names.len() == set.len())?;
        self.push(Statement::CtHelperSpread(names));
        Some(2)
    }

    /// Elements of the anonymous map from which a helper is chosen.
    fn objects(&self, objref: &Expr) -> Option<&[(Vec<u8>, Option<String>)]> {
        match (objref.name.as_str(), objref.attrs.as_slice()) {
            ("objref", [(3, Attr::U32(REG_1)), (4, Attr::Set(index))]) => {
                let set = self.code.sets.get(*index)?;
                (set.object == Some(3)).then_some(set.elements.as_slice())
            }
            _ => None,
        }
    }

    /// A load, perhaps a mask, and what the register is compared with.
    fn comparison(&mut self, exprs: &[Expr]) -> Option<usize> {
        let (load, rest) = exprs.split_first()?;
        if let Some(taken) = self.both_ports(load, rest) {
            return Some(taken);
        }
        if let Some(taken) = self.pair(exprs) {
            return Some(taken);
        }
        let field = self.field(load)?;
        if let Some(taken) = self.helper_map(field, rest) {
            return Some(taken);
        }
        let (field, op, value, taken) = match mask(rest.first()?) {
            Some(mask) => masked(field, mask, rest.get(1)?)?,
            None => self.compared(field, rest)?,
        };
        self.forget_implied(field);
        let item = Match { field, op, value };
        self.known.learn(&item);
        self.push(Statement::Match(item));
        Some(1 + taken)
    }

    /// Source and destination address, put into a set or looked up in one.
    fn pair(&mut self, exprs: &[Expr]) -> Option<usize> {
        let (loads, rest) = exprs.split_at_checked(2)?;
        let family = self
            .known
            .family
            .filter(|family| code::ends(*family) == *loads)?;
        let next = rest.first()?;
        let statement = match (next.name.as_str(), next.attrs.as_slice()) {
            ("lookup", [(1, Attr::U32(REG_1)), (3, Attr::Text(set))]) => Statement::Match(Match {
                field: Field::Ends(family),
                op: Op::Eq,
                value: Value::Named(set.clone()),
            }),
            (
                "dynset",
                [
                    (1, Attr::U32(REG_1)),
                    (3, Attr::U32(code::NFT_DYNSET_OP_UPDATE)),
                    (5, Attr::Text(set)),
                ],
            ) => Statement::Update {
                set: set.clone(),
                family,
            },
            _ => return None,
        };
        self.forget_implied(Field::Saddr(family));
        self.push(statement);
        Some(3)
    }

    fn helper_map(&mut self, field: Field, rest: &[Expr]) -> Option<usize> {
        if field != Field::Dport(L4::Tcp) {
            return None;
        }
        let elements = self.objects(rest.first()?)?;
        let mut entries = Vec::new();
        for (key, name) in elements {
            let port = u16::from_be_bytes(key.as_slice().try_into().ok()?);
            entries.push((port, name.clone()?));
        }
        entries.sort();
        self.forget_implied(field);
        self.push(Statement::CtHelperMap(entries));
        Some(2)
    }

    fn compared(&self, field: Field, rest: &[Expr]) -> Option<(Field, Op, Value, usize)> {
        let (first, rest) = rest.split_first()?;
        let scalar = |data: &[u8]| scalar(field, data);
        let found = match (first.name.as_str(), first.attrs.as_slice()) {
            (
                "cmp",
                [
                    (1, Attr::U32(REG_1)),
                    (2, Attr::U32(op)),
                    (3, Attr::Data(data)),
                ],
            ) => match *op {
                cmp::EQ => (Op::Eq, Value::One(scalar(data)?), 1),
                cmp::NEQ => (Op::Ne, Value::One(scalar(data)?), 1),
                cmp::GTE => {
                    let to = upper(rest.first()?)?;
                    (Op::Eq, Value::Range(scalar(data)?, scalar(to)?), 2)
                }
                _ => return None,
            },
            (
                "range",
                [
                    (1, Attr::U32(REG_1)),
                    (2, Attr::U32(op)),
                    (3, Attr::Data(from)),
                    (4, Attr::Data(to)),
                ],
            ) => {
                let op = if *op == 0 { Op::Eq } else { Op::Ne };
                (op, Value::Range(scalar(from)?, scalar(to)?), 1)
            }
            ("lookup", [(1, Attr::U32(REG_1)), (3, set), flags @ ..]) => {
                let op = match flags {
                    [] => Op::Eq,
                    [(5, Attr::U32(1))] => Op::Ne,
                    _ => return None,
                };
                (op, self.set(field, set)?, 1)
            }
            _ => return None,
        };
        Some((field, found.0, found.1, found.2))
    }

    fn set(&self, field: Field, set: &Attr) -> Option<Value> {
        match set {
            Attr::Text(name) => Some(Value::Named(name.clone())),
            Attr::Set(index) => {
                let mut keys: Vec<_> = self.code.sets.get(*index)?.elements.iter().collect();
                keys.sort();
                let values: Option<Vec<_>> =
                    keys.iter().map(|(key, _)| scalar(field, key)).collect();
                values.map(Value::Any)
            }
            _ => None,
        }
    }

    /// What an expression loads, given what is known about the packet.
    fn field(&self, load: &Expr) -> Option<Field> {
        let fits = |field: &&Field| layout(**field).load == *load && self.knows(**field);
        FIELDS.iter().find(fits).copied()
    }

    fn knows(&self, field: Field) -> bool {
        match field {
            Field::Saddr(family) | Field::Daddr(family) => self.known.family == Some(family),
            Field::Sport(l4) | Field::Dport(l4) => self.known.l4 == Some(l4.number()),
            Field::TcpFlags(_) => self.known.l4 == Some(L4::Tcp.number()),
            Field::Icmpv6Type => self.known.l4 == Some(58),
            _ => true,
        }
    }

    /// nft makes one comparison of a source and a destination port.
    fn both_ports(&mut self, load: &Expr, rest: &[Expr]) -> Option<usize> {
        let ports = [
            (1, Attr::U32(REG_1)),
            (2, Attr::U32(TRANSPORT_HEADER)),
            (3, Attr::U32(0)),
            (4, Attr::U32(4)),
        ];
        let l4 = [L4::Tcp, L4::Udp]
            .into_iter()
            .find(|l4| self.known.l4 == Some(l4.number()))?;
        if load.name != "payload" || load.attrs != ports {
            return None;
        }
        let [
            (1, Attr::U32(REG_1)),
            (2, Attr::U32(cmp::EQ)),
            (3, Attr::Data(data)),
        ] = rest.first()?.attrs.as_slice()
        else {
            return None;
        };
        let (sport, dport) = data.split_at_checked(2)?;
        self.forget_implied(Field::Sport(l4));
        for (field, port) in [(Field::Sport(l4), sport), (Field::Dport(l4), dport)] {
            let value = Value::One(scalar(field, port)?);
            let op = Op::Eq;
            self.push(Statement::Match(Match { field, op, value }));
        }
        Some(2)
    }

    /// Takes back the match that `field` cannot do without.
    fn forget_implied(&mut self, field: Field) {
        let implied = match field {
            Field::Saddr(family) | Field::Daddr(family) => {
                (Field::Nfproto, u32::from(family.nfproto()))
            }
            Field::Sport(l4) | Field::Dport(l4) => (Field::L4proto, u32::from(l4.number())),
            Field::TcpFlags(_) => (Field::L4proto, u32::from(L4::Tcp.number())),
            _ => return,
        };
        if let Some(Raised::Statement(Statement::Match(last))) = self.statements.last() {
            let value = Value::One(Scalar::Number(implied.1));
            if last.field == implied.0 && last.op == Op::Eq && last.value == value {
                self.statements.pop();
            }
        }
    }
}

/// Every field that rules of ours load.
const FIELDS: &[Field] = &[
    Field::Nfproto,
    Field::L4proto,
    Field::Iifname,
    Field::Oifname,
    Field::Saddr(Family::Ip),
    Field::Daddr(Family::Ip),
    Field::Saddr(Family::Ip6),
    Field::Daddr(Family::Ip6),
    Field::Sport(L4::Tcp),
    Field::Sport(L4::Udp),
    Field::Dport(L4::Tcp),
    Field::Dport(L4::Udp),
    Field::TcpFlags(0),
    Field::Icmpv6Type,
    Field::CtState,
    Field::CtStatus,
    Field::CtDirection,
    Field::CtHelper,
    Field::CtZone,
];

fn object(kind: u32, name: &str) -> Option<Statement> {
    let name = name.to_owned();
    match kind {
        1 => Some(Statement::Counter(name)),
        3 => Some(Statement::CtHelperSet(name)),
        9 => Some(Statement::CtExpectationSet(name)),
        _ => None,
    }
}

fn limit(attrs: &[(u16, Attr)]) -> Option<Statement> {
    match attrs {
        [
            (1, Attr::U64(rate)),
            (2, Attr::U64(1)),
            (3, Attr::U32(burst)),
            (4, Attr::U32(0)),
            (5, Attr::U32(0)),
        ] => Some(Statement::Limit {
            rate: u32::try_from(*rate).ok()?,
            burst: *burst,
        }),
        _ => None,
    }
}

fn log(attrs: &[(u16, Attr)]) -> Option<Statement> {
    let (prefix, group) = match attrs {
        [(1, Attr::Text(prefix))] => (prefix, None),
        [(1, Attr::Text(prefix)), (2, Attr::U16(group))] => (prefix, Some(*group)),
        _ => return None,
    };
    let prefix = prefix.clone();
    Some(Statement::Log { prefix, group })
}

fn raise_verdict(attrs: &[(u16, Attr)]) -> Option<Statement> {
    let verdict = match attrs {
        [(3, Attr::U32(0))] => Verdict::Drop,
        [(3, Attr::U32(1))] => Verdict::Accept,
        [(3, Attr::U32(NFT_RETURN))] => Verdict::Return,
        [(3, Attr::U32(NFT_JUMP)), (4, Attr::Text(chain))] => Verdict::Jump(chain.clone()),
        _ => return None,
    };
    Some(Statement::Verdict(verdict))
}

fn nat(attrs: &[(u16, Attr)], data: &[u8], port: Option<u16>) -> Option<Statement> {
    let mut attrs: Vec<_> = attrs
        .iter()
        .filter(|(number, _)| *number != NAT_FLAGS)
        .collect();
    if port.is_some() {
        let last = attrs.pop()?;
        if *last != (5, Attr::U32(REG_2)) {
            return None;
        }
    }
    let [
        (1, Attr::U32(kind)),
        (2, Attr::U32(family)),
        (3, Attr::U32(REG_1)),
    ] = attrs.as_slice()
    else {
        return None;
    };
    let kind = match kind {
        0 => NatKind::Snat,
        1 => NatKind::Dnat,
        _ => return None,
    };
    let address = address(data)?;
    (u32::from(Family::of(address).nfproto()) == *family).then_some(Statement::Nat {
        kind,
        address,
        port,
    })
}

/// The mask of a bitwise AND with it.
fn mask(expr: &Expr) -> Option<&[u8]> {
    match (expr.name.as_str(), expr.attrs.as_slice()) {
        (
            "bitwise",
            [
                (1, Attr::U32(REG_1)),
                (2, Attr::U32(REG_1)),
                (3, _),
                (4, Attr::Data(mask)),
                (5, Attr::Data(xor)),
            ],
        ) if xor.iter().all(|byte| *byte == 0) => Some(mask),
        _ => None,
    }
}

/// A masked load: bits of a conntrack field, or flags of TCP.
fn masked(field: Field, mask: &[u8], next: &Expr) -> Option<(Field, Op, Value, usize)> {
    let [
        (1, Attr::U32(REG_1)),
        (2, Attr::U32(op)),
        (3, Attr::Data(data)),
    ] = next.attrs.as_slice()
    else {
        return None;
    };
    let equal = match *op {
        cmp::EQ => true,
        cmp::NEQ => false,
        _ => return None,
    };
    if field == Field::TcpFlags(0) {
        let (op, flags) = (if equal { Op::Eq } else { Op::Ne }, *mask.first()?);
        let value = Value::One(Scalar::Number(u32::from(*data.first()?)));
        return (flags == tcp_flags::OPENING).then_some((Field::TcpFlags(flags), op, value, 2));
    }
    let bits = u32::from_ne_bytes(mask.try_into().ok()?);
    let op = if equal { Op::Ne } else { Op::Eq };
    data.iter()
        .all(|byte| *byte == 0)
        .then_some((field, op, Value::Bits(bits), 2))
}

fn upper(expr: &Expr) -> Option<&[u8]> {
    match expr.attrs.as_slice() {
        [
            (1, Attr::U32(REG_1)),
            (2, Attr::U32(cmp::LTE)),
            (3, Attr::Data(data)),
        ] if expr.name == "cmp" => Some(data),
        _ => None,
    }
}

fn scalar(field: Field, data: &[u8]) -> Option<Scalar> {
    match field {
        Field::Saddr(_) | Field::Daddr(_) => address(data).map(Scalar::Address),
        Field::Iifname | Field::Oifname | Field::CtHelper => name(field, data).map(Scalar::Text),
        _ => number(field, data).map(Scalar::Number),
    }
}

fn address(data: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(data) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(data).ok().map(IpAddr::from)
}

/// A name, or the beginning of one with a star.
fn name(field: Field, data: &[u8]) -> Option<String> {
    let end = data.iter().position(|byte| *byte == 0);
    let text = std::str::from_utf8(data.get(..end.unwrap_or(data.len()))?).ok()?;
    let star = if end.is_none() && data.len() < layout(field).len {
        "*"
    } else {
        ""
    };
    Some(format!("{text}{star}"))
}

fn number(field: Field, data: &[u8]) -> Option<u32> {
    let layout = layout(field);
    if data.len() != layout.len || data.len() > 4 {
        return None;
    }
    let add = |sum: u32, byte: &u8| sum << 8 | u32::from(*byte);
    if layout.big_endian || cfg!(target_endian = "big") {
        Some(data.iter().fold(0, add))
    } else {
        Some(data.iter().rev().fold(0, add))
    }
}
