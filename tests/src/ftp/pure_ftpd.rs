//! pure-ftpd: options on the command line, no file.

use std::process::Command;

use anyhow::Result;

use crate::ftp::server::{PASSIVE_MAX, PASSIVE_MIN, Tree};
use crate::programs;

/// The command that runs it. Anonymous users are led to the home of the user
/// `ftp`.
pub(super) fn configure(tree: &Tree) -> Result<Command> {
    let ports = format!("{PASSIVE_MIN}:{PASSIVE_MAX}");
    let pid = tree.private().join("pid").display().to_string();
    let args = [
        "--anonymousonly",
        "--dontresolve",
        "--bind",
        "21",
        "--passiveportrange",
        &ports,
        "--pidfile",
        &pid,
        // It can write its dialogue to the system's log only.
        "--syslogfacility",
        "none",
    ];
    Ok(programs::server("pure-ftpd", &args))
}
