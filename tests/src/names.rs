//! Names of namespaces: unique per process and instance, and traceable to
//! the process that made them, so that leftovers can be told from live ones.
//!
//! `lab-PID.START-N-ROLE`: START is the process's start time in clock ticks
//! (proc_pid_stat(5), field 22), so that a reused PID is not mistaken for
//! the owner.

use std::fs;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where iproute2 keeps named namespaces.
pub const NETNS_DIR: &str = "/run/netns";

const PREFIX: &str = "lab-";

/// A prefix nobody else has: `lab-PID.START-N`. Reaps leftovers of dead
/// processes the first time it is called.
#[must_use]
pub fn unique() -> String {
    static REAPED: Once = Once::new();
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    REAPED.call_once(reap);
    let pid = std::process::id();
    let start = start_time(pid).unwrap_or(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{pid}.{start}-{n}")
}

/// Deletes the laboratory's namespaces whose process is gone, and ends the
/// processes in them. Failures are reported, not fatal.
pub fn reap() {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_orphan(&name) {
            eprintln!("lab: removing {name}, left behind by a dead process");
            crate::netns::destroy(&name);
        }
    }
}

/// True for a name of ours whose process no longer runs.
fn is_orphan(name: &str) -> bool {
    match owner(name) {
        Some((pid, start)) => start_time(pid) != Some(start),
        None => false,
    }
}

/// PID and start time from a name made by [`unique`].
fn owner(name: &str) -> Option<(u32, u64)> {
    let rest = name.strip_prefix(PREFIX)?;
    let (pid, rest) = rest.split_once('.')?;
    let (start, _) = rest.split_once('-')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

/// Start time of a process in clock ticks after boot, if it runs.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The command name may hold spaces and parentheses: skip to the last ')'.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_process() {
        let name = format!("{}-client", unique());
        let (pid, start) = owner(&name).unwrap();
        assert_eq!(pid, std::process::id());
        assert_eq!(Some(start), start_time(pid));
        assert!(!is_orphan(&name));
    }

    #[test]
    fn two_names_differ() {
        assert_ne!(unique(), unique());
    }

    #[test]
    fn a_dead_owner_or_a_reused_pid_makes_an_orphan() {
        let pid = std::process::id();
        assert!(is_orphan("lab-4194305.77-0-fw"), "no such process");
        assert!(is_orphan(&format!("lab-{pid}.1-0-fw")), "other start time");
    }

    #[test]
    fn names_of_others_are_left_alone() {
        for name in ["fw", "lab", "lab-", "lab-x.1-0-fw", "blue-1.1-0-fw"] {
            assert!(!is_orphan(name), "{name}");
        }
    }
}
