//! Our table as it is in the kernel.
//!
//! [`decode`] reads netlink messages into these types, [`exprs`] the
//! expressions of a rule, [`raise`] turns those back into statements. All
//! of it is pure; asking the kernel is the work of [`crate::apply`].

pub mod decode;
pub mod exprs;
pub mod raise;

use crate::elements::Elements;
use crate::ir::{Base, Key, ObjectKind};

/// The table and everything in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Live {
    /// The table itself; nothing else is there without it.
    pub table: Option<Table>,
    /// Stateful objects, in the kernel's order.
    pub objects: Vec<Object>,
    /// Named sets.
    pub sets: Vec<Set>,
    /// Chains with their rules.
    pub chains: Vec<Chain>,
    /// Flowtables, which no policy asks for.
    pub flowtables: Vec<String>,
}

/// The table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Table {
    /// Number that the kernel knows it by.
    pub handle: u64,
    /// `NFT_TABLE_F_*` (linux/netfilter/nf_tables.h): dormant, owned, …
    pub flags: u32,
}

/// A stateful object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Name within the table.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Number that the kernel knows it by.
    pub handle: u64,
    /// Rules and map elements that refer to it.
    pub uses: u32,
    /// What a counter has counted.
    pub count: Option<Count>,
}

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Something that a policy can ask for.
    Known(ObjectKind),
    /// Another `NFT_OBJECT_*`, or one of ours with settings that no policy
    /// can express.
    Other(u32),
}

/// What a counter has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, network headers included.
    pub bytes: u64,
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name within the table.
    pub name: String,
    /// Type of its keys; none for one that no policy asks for.
    pub key: Option<Key>,
    /// Elements may carry a timeout.
    pub timeout: bool,
    /// Number that the kernel knows it by.
    pub handle: u64,
    /// Its ranges, if its keys are addresses.
    pub elements: Elements,
    /// Elements of other sets.
    pub others: Vec<Vec<u8>>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name within the table.
    pub name: String,
    /// Where it hooks in.
    pub base: Hooked,
    /// Number that the kernel knows it by.
    pub handle: u64,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Where a chain hooks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooked {
    /// Nowhere: others jump to it.
    No,
    /// As a policy can ask for.
    Known(Base),
    /// At a hook, or as a type, that no policy asks for.
    Other,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Number that the kernel knows it by.
    pub handle: u64,
    /// As nft would write it, in a form that two rules share only if they
    /// do the same.
    pub text: String,
}
