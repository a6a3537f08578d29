//! Kernel settings that mirroring depends on.

use std::fs;
use std::io;
use std::path::Path;

/// Where the kernel keeps them.
pub const DIR: &str = "/proc/sys/net/netfilter";
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// The value of `nf_conntrack_events`, if the kernel has it.
pub fn events() -> Option<u8> {
    fs::read_to_string(EVENTS).ok()?.trim().parse().ok()
}

/// Makes the kernel report connections that came before we listened
/// (`nf_conntrack_events` = 1; with 2, the default, it never does).
///
/// # Errors
/// The setting can't be written: it needs root, or an ExecStartPre.
pub fn enable_events() -> io::Result<()> {
    if events() == Some(1) {
        return Ok(());
    }
    fs::write(EVENTS, "1")
}

/// A number from `/proc/sys/net/netfilter`.
pub fn number(name: &str) -> Option<u64> {
    fs::read_to_string(Path::new(DIR).join(name))
        .ok()?
        .trim()
        .parse()
        .ok()
}
