//! Test laboratory: network namespaces, real FTP peers, virtual machines.
//!
//! A test describes a [`topology::Topology`] or a [`pair::Pair`], starts
//! [`peer::Peer`]s in its namespaces, and waits for conditions with
//! [`wait::until`]. Everything is torn down on drop, also while a test
//! panics; what a killed process left behind is reaped by the next one
//! ([`names::reap`]). What the kernel must be able to do is asked for with
//! [`require!`], which names what is missing.
//!
//! The laboratory needs root, and touches nothing but its own namespaces
//! and temporary directories.

pub mod check;
pub mod cluster;
pub mod command;
pub mod conntrackd;
pub mod firewall;
pub mod ftp;
pub mod guide;
pub mod inject;
#[cfg(target_arch = "x86_64")]
pub mod inside;
pub mod metric_names;
pub mod names;
pub mod netlink;
pub mod netns;
pub mod nodes;
pub mod ours;
pub mod pair;
pub mod peer;
pub mod programs;
pub mod relay;
pub mod require;
pub mod results;
pub mod served;
pub mod skip;
pub mod talk;
pub mod tap;
pub mod topology;
pub mod vrrp;
pub mod wait;
pub mod walk;
