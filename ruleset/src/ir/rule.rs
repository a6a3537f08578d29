//! Rules: statements, comparisons, verdicts.

use std::net::IpAddr;

use super::{Family, L4, Origin};

/// A rule: statements, evaluated in order until one does not match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Statements in order.
    pub statements: Vec<Statement>,
    /// Comment kept by the kernel, at most 127 bytes.
    pub comment: Option<String>,
    /// Why it is there, for the reader of the text.
    pub why: Option<String>,
    /// The part of the policy that asked for it.
    pub origin: Origin,
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Compare a field; the rule ends here unless it matches.
    Match(Match),
    /// Count in a named counter.
    Counter(String),
    /// `ct helper set "object"`.
    CtHelperSet(String),
    /// `ct helper set numgen inc mod N map { 0 : "object", … }`: connections
    /// take turns.
    CtHelperSpread(Vec<String>),
    /// `ct helper set tcp dport map { port : "object" }`.
    CtHelperMap(Vec<(u16, String)>),
    /// `ct expectation set "object"`.
    CtExpectationSet(String),
    /// `update @SET { ip saddr . ip daddr }`.
    Update {
        /// Name of a set of pairs.
        set: String,
        /// Its family.
        family: Family,
    },
    /// `ct event set`, `IPCT_*` bits.
    CtEventSet(u32),
    /// `ct zone set`.
    CtZoneSet(u16),
    /// `notrack`.
    Notrack,
    /// `limit rate R/second burst B packets`.
    Limit {
        /// Packets per second.
        rate: u32,
        /// Packets let through before the rate counts.
        burst: u32,
    },
    /// `log prefix "…"`.
    Log {
        /// Text before the packet.
        prefix: String,
        /// To NFLOG group instead of the kernel log.
        group: Option<u16>,
    },
    /// `masquerade`.
    Masquerade,
    /// `snat ip to` or `dnat ip to`.
    Nat {
        /// Which side is rewritten.
        kind: NatKind,
        /// New address.
        address: IpAddr,
        /// New port; none keeps it.
        port: Option<u16>,
    },
    /// A verdict ends the rule.
    Verdict(Verdict),
}

/// Which side a NAT statement rewrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// Source address.
    Snat,
    /// Destination address.
    Dnat,
}

impl NatKind {
    /// nft's keyword.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Snat => "snat",
            Self::Dnat => "dnat",
        }
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `accept`.
    Accept,
    /// `drop`.
    Drop,
    /// `return`.
    Return,
    /// `jump CHAIN`.
    Jump(String),
}

/// A comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// What is loaded.
    pub field: Field,
    /// How it is compared.
    pub op: Op,
    /// With what.
    pub value: Value,
}

/// Comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Equal, in the range, in the set, or one of the bits set.
    Eq,
    /// Not equal.
    Ne,
}

/// What a [`Match`] looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `meta nfproto`.
    Nfproto,
    /// `meta l4proto`.
    L4proto,
    /// `iifname`.
    Iifname,
    /// `oifname`.
    Oifname,
    /// `ip saddr` or `ip6 saddr`.
    Saddr(Family),
    /// `ip daddr` or `ip6 daddr`.
    Daddr(Family),
    /// `ip saddr . ip daddr`, looked up in a set of pairs.
    Ends(Family),
    /// `tcp sport` or `udp sport`.
    Sport(L4),
    /// `tcp dport` or `udp dport`.
    Dport(L4),
    /// `tcp flags & mask`.
    TcpFlags(u8),
    /// `icmpv6 type`.
    Icmpv6Type,
    /// `ct state`, `NF_CT_STATE_BIT` values.
    CtState,
    /// `ct status`, `IPS_*` bits.
    CtStatus,
    /// `ct direction`, 0 or 1.
    CtDirection,
    /// `ct helper`: the name of the master's helper.
    CtHelper,
    /// `ct zone`.
    CtZone,
}

/// Right-hand side of a [`Match`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// One value.
    One(Scalar),
    /// From, to; both inclusive.
    Range(Scalar, Scalar),
    /// An anonymous set, at least two values.
    Any(Vec<Scalar>),
    /// A named set.
    Named(String),
    /// At least one of these bits.
    Bits(u32),
}

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar {
    /// A number in host order.
    Number(u32),
    /// An address.
    Address(IpAddr),
    /// An interface or helper name.
    Text(String),
}
