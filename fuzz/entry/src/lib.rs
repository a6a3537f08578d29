//! What the fuzz targets do with their input. `fuzz/fuzz_targets` hands it
//! bytes from libFuzzer, `tests/corpora.rs` the committed ones.
//!
//! Each function panics if the decoder it tries does, or if a promise of the
//! decoder's does not hold: what was read is written the same again, nothing
//! authentic comes out of what nobody sealed, sizes stay within bounds.

pub mod ftp;
pub mod local;
pub mod nfnetlink;
pub mod replication;
pub mod sealed;
pub mod seeds;

/// A target's name and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: [Target; 15] = [
    ("ftp_core", ftp::core),
    ("ftp_packet", ftp::packet),
    ("netlink", nfnetlink::messages),
    ("conntrack", nfnetlink::conntrack),
    ("expect", nfnetlink::expectation),
    ("cthelper", nfnetlink::cthelper),
    ("queue_message", nfnetlink::queue_message),
    ("nftables", nfnetlink::nftables),
    ("sync_frame", sealed::frame),
    ("sync_link", sealed::link),
    ("sync_record", replication::record),
    ("sync_message", replication::messages),
    ("config", local::configuration),
    ("ruleset", local::ruleset),
    ("control", local::control),
];
