//! Generates and loads nftables rulesets for FTP through a fault-tolerant firewall.
//!
//! A policy ([`policy`]) is lowered ([`lower`]) to a typed ruleset ([`ir`]),
//! from which text, JSON and kernel expressions are rendered ([`render`]).
//! All of that is pure. [`apply`] talks to the kernel.

pub mod apply;
pub mod cli;
pub mod commands;
pub mod elements;
pub mod input;
pub mod ir;
pub mod lower;
pub mod policy;
pub mod render;

pub use commands::{Outcome, run};
