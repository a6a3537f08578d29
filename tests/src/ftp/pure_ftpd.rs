//! pure-ftpd: options on the command line, no file.

use std::process::Command;

use anyhow::Result;

use crate::ftp::server::{PASSIVE_MAX, PASSIVE_MIN, Tree};
use crate::programs;

/// The command that runs it. The directory of anonymous users is that of
/// the system user `ftp`, unless the environment says otherwise.
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
        "--altlog",
        "none",
        "--verboselog",
    ];
    let mut command = programs::server("pure-ftpd", &args);
    command.env("FTP_ANON_DIR", tree.root());
    Ok(command)
}
