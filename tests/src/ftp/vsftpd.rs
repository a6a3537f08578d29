//! vsftpd.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::ftp::server::{FTP_USER, PASSIVE_MAX, PASSIVE_MIN, Tree};
use crate::programs;

/// Writes the configuration; the command that runs it.
pub(super) fn configure(tree: &Tree) -> Result<Command> {
    let config = tree.private().join("vsftpd.conf");
    fs::create_dir(tree.private().join("empty"))?;
    fs::write(&config, configuration(tree))?;
    Ok(programs::server("vsftpd", &[&config.to_string_lossy()]))
}

/// vsftpd.conf(5).
fn configuration(tree: &Tree) -> String {
    let root = tree.root().display().to_string();
    let private = tree.private().display().to_string();
    let (min, max) = (PASSIVE_MIN.to_string(), PASSIVE_MAX.to_string());
    let log = tree.log().display().to_string();
    let empty = format!("{private}/empty");
    let settings: &[(&str, &str)] = &[
        // One socket serves both families (IPv4 mapped).
        ("listen", "NO"),
        ("listen_ipv6", "YES"),
        ("background", "NO"),
        ("anonymous_enable", "YES"),
        ("no_anon_password", "YES"),
        ("anon_root", &root),
        ("ftp_username", FTP_USER),
        ("nopriv_user", "nobody"),
        ("secure_chroot_dir", &empty),
        ("write_enable", "YES"),
        ("anon_upload_enable", "YES"),
        ("anon_umask", "022"),
        ("pasv_min_port", &min),
        ("pasv_max_port", &max),
        ("connect_from_port_20", "YES"),
        // The sandboxes need what a test environment may forbid.
        ("seccomp_sandbox", "NO"),
        ("isolate", "NO"),
        ("isolate_network", "NO"),
        ("xferlog_enable", "YES"),
        ("log_ftp_protocol", "YES"),
        ("vsftpd_log_file", &log),
    ];
    settings
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect()
}
