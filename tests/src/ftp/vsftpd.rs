//! vsftpd, configured by a file of our own; nothing of the host's is read.

use std::fs;

use anyhow::Result;

use crate::ftp::server::{FTP_USER, PASSIVE_MAX, PASSIVE_MIN, Tree};
use crate::netns::Namespace;
use crate::peer::Peer;
use crate::programs;

/// A running vsftpd on port 21, IPv4 and IPv6, anonymous users only.
#[derive(Debug)]
pub struct Vsftpd {
    /// What it publishes.
    pub tree: Tree,
    peer: Peer,
}

impl Vsftpd {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// With its log, if it doesn't come up.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let tree = Tree::new()?;
        let config = tree.private().join("vsftpd.conf");
        fs::create_dir(tree.private().join("empty"))?;
        fs::write(&config, configuration(&tree))?;
        let command = programs::server("vsftpd", &[&config.to_string_lossy()]);
        let mut peer = Peer::start(namespace, "vsftpd", command)?;
        peer.wait_until("vsftpd to listen", || namespace.listens(21))?;
        Ok(Self { tree, peer })
    }

    /// Its log of commands and replies, and what it printed.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.tree.private().join("log")).unwrap_or_default();
        log + &self.peer.log()
    }
}

/// vsftpd.conf(5).
fn configuration(tree: &Tree) -> String {
    let root = tree.root().display().to_string();
    let private = tree.private().display().to_string();
    let (min, max) = (PASSIVE_MIN.to_string(), PASSIVE_MAX.to_string());
    let log = format!("{private}/log");
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
