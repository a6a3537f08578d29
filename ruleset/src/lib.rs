//! Generates and loads nftables rulesets for FTP through a fault-tolerant firewall.
//!
//! A policy ([`policy`]) is lowered ([`lower`]) to a typed ruleset ([`ir`]),
//! from which text, JSON and kernel expressions are rendered ([`render`]).
//! What the kernel has is read into [`live`], compared with a ruleset by
//! [`diff`], printed by [`show`], and [`plan`] says how to get from one to
//! the other. All of that is pure. [`apply`] talks to the kernel.

pub mod apply;
pub mod cli;
pub mod commands;
pub mod diff;
pub mod elements;
pub mod input;
pub mod ir;
pub mod live;
pub mod lower;
pub mod plan;
pub mod policy;
pub mod render;
pub mod show;

pub use commands::{Outcome, run};
