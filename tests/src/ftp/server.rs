//! Real FTP servers: each configured by files and options of our own, none
//! of the host's are read. All publish the same tree to anonymous users, on
//! port 21, IPv4 and IPv6.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, chown};
use tempfile::TempDir;

use crate::check;
use crate::ftp::{proftpd, pure_ftpd, vsftpd};
use crate::netns::Namespace;
use crate::peer::Peer;

/// A server program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// vsftpd(8).
    Vsftpd,
    /// proftpd(8).
    Proftpd,
    /// pure-ftpd(8).
    PureFtpd,
}

impl Program {
    /// All of them, for loops.
    pub const ALL: [Self; 3] = [Self::Vsftpd, Self::Proftpd, Self::PureFtpd];

    /// What it is called, also as a file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd",
            Self::PureFtpd => "pure-ftpd",
        }
    }

    /// Writes its configuration and says how to start it, in the foreground.
    fn configure(self, tree: &Tree) -> Result<Command> {
        match self {
            Self::Vsftpd => vsftpd::configure(tree),
            Self::Proftpd => proftpd::configure(tree),
            Self::PureFtpd => pure_ftpd::configure(tree),
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Which program it is.
    pub program: Program,
    /// What it publishes.
    pub tree: Tree,
    peer: Peer,
}

impl Server {
    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// With its log, if it doesn't come up.
    pub fn start(program: Program, namespace: &Namespace) -> Result<Self> {
        let tree = Tree::new()?;
        let command = program.configure(&tree)?;
        let mut peer = Peer::start(namespace, program.name(), command)?;
        let what = format!("{} to listen", program.name());
        peer.wait_until(&what, || namespace.listens(21))?;
        Ok(Self {
            program,
            tree,
            peer,
        })
    }

    /// Its log, if it keeps one, and what it printed.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.tree.log()).unwrap_or_default();
        log + &self.peer.log()
    }
}

/// Name of the file every server publishes.
pub const FILE: &str = "file.bin";
/// Its length in bytes: several windows full.
pub const FILE_LENGTH: usize = 1 << 20;
/// Directory anonymous users may upload to.
pub const INCOMING: &str = "incoming";
/// First passive port of every server.
pub const PASSIVE_MIN: u16 = 40000;
/// Last passive port of every server.
pub const PASSIVE_MAX: u16 = 40999;
/// The system user anonymous sessions run as (created by Debian's packages).
pub const FTP_USER: &str = "ftp";

/// The published tree, in a temporary directory.
#[derive(Debug)]
pub struct Tree {
    dir: TempDir,
}

impl Tree {
    /// Makes the tree: [`FILE`], and [`INCOMING`] owned by [`FTP_USER`].
    ///
    /// # Errors
    /// If that user doesn't exist.
    pub fn new() -> Result<Self> {
        let user = User::from_name(FTP_USER)?.context("no user ftp")?;
        let dir = check::readable_dir()?;
        fs::create_dir(dir.path().join("pub"))?;
        check::set_mode(&dir.path().join("pub"), 0o755)?;
        let tree = Self { dir };
        check::write_readable(tree.file(), &check::noise(7, FILE_LENGTH))?;
        let incoming = tree.root().join(INCOMING);
        fs::create_dir(&incoming)?;
        chown(&incoming, Some(user.uid), Some(user.gid))?;
        check::set_mode(&incoming, 0o755)?;
        Ok(tree)
    }

    /// The directory anonymous users see as `/`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("pub")
    }

    /// Place for configuration and logs, not published.
    #[must_use]
    pub fn private(&self) -> &Path {
        self.dir.path()
    }

    /// Where the server may write its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.private().join("log")
    }

    /// The published file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.root().join(FILE)
    }

    /// An uploaded file.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn uploaded(&self, name: &str) -> Result<PathBuf> {
        let path = self.root().join(INCOMING).join(name);
        ensure!(path.is_file(), "{name} was not uploaded");
        Ok(path)
    }
}
