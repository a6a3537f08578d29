//! Small words that rules are put together from.

use std::net::IpAddr;

use crate::ir::{
    Base, Chain, ChainType, Family, Field, Hook, L4, Match, Op, Origin, Policy, Rule, Scalar,
    Statement, Value, Verdict,
};
use crate::policy::values::Interface;

/// A rule of these statements.
pub fn rule(statements: impl IntoIterator<Item = Statement>) -> Rule {
    Rule {
        statements: statements.into_iter().collect(),
        ..Rule::default()
    }
}

impl Rule {
    pub(super) fn because(mut self, why: &str) -> Self {
        self.why = Some(why.to_owned());
        self
    }

    pub(super) fn from(mut self, origin: &Origin) -> Self {
        self.origin = origin.clone();
        self
    }
}

/// An empty base chain.
pub fn base(name: &str, kind: ChainType, hook: Hook, priority: i32, policy: Policy) -> Chain {
    Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind,
            hook,
            priority,
            policy,
        }),
        rules: Vec::new(),
        why: None,
        origin: Origin::default(),
    }
}

/// `field value`.
pub fn is(field: Field, value: Value) -> Statement {
    Statement::Match(Match {
        field,
        op: Op::Eq,
        value,
    })
}

/// A number.
pub fn number(value: impl Into<u32>) -> Scalar {
    Scalar::Number(value.into())
}

/// One value, or an anonymous set of them; nothing for none. What is said
/// twice counts once: nft 1.0.6 and 1.1 differ over a set of one element.
pub fn any_of(field: Field, values: Vec<Scalar>) -> Option<Statement> {
    let mut different: Vec<Scalar> = Vec::with_capacity(values.len());
    for value in values {
        if !different.contains(&value) {
            different.push(value);
        }
    }
    let mut values = different;
    match values.len() {
        0 => None,
        1 => values.pop().map(|one| is(field, Value::One(one))),
        _ => Some(is(field, Value::Any(values))),
    }
}

/// `tcp dport { … }`.
pub fn dports(l4: L4, ports: &[u16]) -> Option<Statement> {
    any_of(
        Field::Dport(l4),
        ports.iter().map(|port| number(*port)).collect(),
    )
}

/// `iifname { … }` or `oifname { … }`; nothing for any interface.
pub fn interfaces(field: Field, interfaces: &[Interface]) -> Option<Statement> {
    let names = interfaces
        .iter()
        .map(|one| Scalar::Text(one.as_str().to_owned()));
    any_of(field, names.collect())
}

/// `ct state …`.
pub fn state(bits: u32) -> Statement {
    is(Field::CtState, Value::Bits(bits))
}

/// `meta nfproto …`.
pub fn family(family: Family) -> Statement {
    is(Field::Nfproto, Value::One(number(family.nfproto())))
}

/// `ip saddr A` in the family of the address.
pub fn source(address: IpAddr) -> Statement {
    is(
        Field::Saddr(Family::of(address)),
        Value::One(Scalar::Address(address)),
    )
}

/// `ip daddr A` in the family of the address.
pub fn destination(address: IpAddr) -> Statement {
    is(
        Field::Daddr(Family::of(address)),
        Value::One(Scalar::Address(address)),
    )
}

/// `accept`.
pub fn accept() -> Statement {
    Statement::Verdict(Verdict::Accept)
}

/// `drop`.
pub fn drop() -> Statement {
    Statement::Verdict(Verdict::Drop)
}
