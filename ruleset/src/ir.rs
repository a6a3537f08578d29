//! The lowered ruleset: one table with typed objects, sets, chains and rules.
//!
//! Text, JSON and netlink messages are all rendered from these types, so they
//! cannot disagree. Nothing here knows about policies or about the kernel.

mod bits;
mod rule;

use std::net::IpAddr;

use crate::elements::Elements;

pub use bits::{bit_names, event, state, status, tcp_flags};
pub use rule::{Field, Match, NatKind, Op, Rule, Scalar, Statement, Value, Verdict};

/// One `inet` table and everything in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Name of the table; nothing outside it is ever touched.
    pub table: String,
    /// `ct helper`, `ct expectation` and `counter` objects, in order.
    pub objects: Vec<Object>,
    /// Named sets, in order.
    pub sets: Vec<Set>,
    /// Chains, in order.
    pub chains: Vec<Chain>,
}

/// Layer 3 family of an address or of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

impl Family {
    /// nft's keyword: `ip` or `ip6`.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// `NFPROTO_IPV4` or `NFPROTO_IPV6` (linux/netfilter.h).
    #[must_use]
    pub fn nfproto(self) -> u8 {
        match self {
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// The family an address belongs to.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ip,
            IpAddr::V6(_) => Self::Ip6,
        }
    }
}

/// Layer 4 protocol of a port match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl L4 {
    /// nft's keyword.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// IANA protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A named stateful object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Name within the table.
    pub name: String,
    /// What it is.
    pub kind: ObjectKind,
    /// Why it is there, for the reader of the text.
    pub why: Option<String>,
    /// The part of the policy that asked for it.
    pub origin: Origin,
}

/// What an [`Object`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectKind {
    /// `ct helper`, for TCP and both families.
    CtHelper {
        /// Name under which the helper is registered with the kernel.
        helper: String,
    },
    /// `ct expectation`, TCP. The kernel refuses `inet` here (EAFNOSUPPORT).
    CtExpectation {
        /// Family of the expectation.
        family: Family,
        /// Destination port of the expected connection, host order.
        dport: u16,
        /// Life of the expectation in milliseconds.
        timeout_ms: u32,
        /// How many may be pending per connection.
        size: u8,
    },
    /// `counter`.
    Counter,
}

impl ObjectKind {
    /// `NFT_OBJECT_*` (linux/netfilter/nf_tables.h).
    #[must_use]
    pub fn number(&self) -> u32 {
        match self {
            Self::Counter => 1,
            Self::CtHelper { .. } => 3,
            Self::CtExpectation { .. } => 9,
        }
    }

    /// nft's keyword.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::CtHelper { .. } => "ct helper",
            Self::CtExpectation { .. } => "ct expectation",
        }
    }
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name within the table.
    pub name: String,
    /// Type of its keys.
    pub key: Key,
    /// Elements may carry a timeout.
    pub timeout: bool,
    /// Elements; empty for a runtime set.
    pub elements: Elements,
    /// Who owns the elements.
    pub owner: Owner,
    /// Why it is there.
    pub why: Option<String>,
    /// The part of the policy that asked for it.
    pub origin: Origin,
}

/// Who decides what a set contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The policy: a load replaces the elements, `diff` compares them.
    Policy,
    /// The operator at run time: a load keeps them, `diff` ignores them.
    Operator,
}

/// Key type of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `ipv4_addr`, with `flags interval`.
    Ipv4,
    /// `ipv6_addr`, with `flags interval`.
    Ipv6,
    /// `inet_proto`.
    Proto,
    /// Source and destination address, `ipv4_addr . ipv4_addr`, that rules
    /// put in and that go by themselves.
    Pairs {
        /// Family of both.
        family: Family,
        /// Seconds that a pair stays.
        timeout_secs: u32,
        /// Most pairs.
        size: u32,
    },
}

impl Key {
    /// nft's name of the type.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Proto => "inet_proto",
            Self::Pairs {
                family: Family::Ip, ..
            } => "ipv4_addr . ipv4_addr",
            Self::Pairs {
                family: Family::Ip6,
                ..
            } => "ipv6_addr . ipv6_addr",
        }
    }

    /// Elements are ranges.
    #[must_use]
    pub fn interval(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Ipv6)
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name within the table.
    pub name: String,
    /// Where it hooks in; a regular chain has none.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
    /// Why it is there.
    pub why: Option<String>,
    /// The part of the policy that asked for it.
    pub origin: Origin,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `filter` or `nat`.
    pub kind: ChainType,
    /// Hook.
    pub hook: Hook,
    /// Priority; smaller runs earlier.
    pub priority: i32,
    /// Verdict for packets that no rule decided.
    pub policy: Policy,
}

/// Type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainType {
    /// `type filter`.
    Filter,
    /// `type nat`.
    Nat,
}

impl ChainType {
    /// nft's keyword.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// Hook of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `NF_INET_PRE_ROUTING`.
    Prerouting = 0,
    /// `NF_INET_LOCAL_IN`.
    Input = 1,
    /// `NF_INET_FORWARD`.
    Forward = 2,
    /// `NF_INET_LOCAL_OUT`.
    Output = 3,
    /// `NF_INET_POST_ROUTING`.
    Postrouting = 4,
}

impl Hook {
    /// nft's keyword.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        }
    }

    /// Hook number (linux/netfilter.h, `enum nf_inet_hooks`).
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// Policy of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// `policy drop`.
    Drop,
    /// `policy accept`.
    Accept,
}

impl Policy {
    /// nft's keyword.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Accept => "accept",
        }
    }

    /// `NF_DROP` or `NF_ACCEPT` (linux/netfilter.h).
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
        }
    }
}

/// The part of the policy that asked for something: a byte range in its text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin(pub Option<std::ops::Range<usize>>);
