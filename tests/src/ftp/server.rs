//! Real FTP servers: each configured by files and options of our own, none
//! of the host's are read. All publish the same tree to anonymous users, on
//! port 21, IPv4 and IPv6.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, chown};
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
        Self::start_with(program, namespace, &[])
    }

    /// The same with more arguments for the program.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(program: Program, namespace: &Namespace, more: &[&str]) -> Result<Self> {
        let tree = Tree::new()?;
        let mut command = isolated(&tree, &program.configure(&tree)?);
        command.args(more);
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
/// The user anonymous sessions run as. Only the servers know it: they see a
/// list of users of their own ([`isolated`]).
pub const FTP_USER: &str = "ftp";
/// Its id, and that of its group.
const FTP_ID: u32 = 2121;

/// The command in a mount namespace of its own, where the system's users are
/// the tree's: so that no server needs a user on this machine.
fn isolated(tree: &Tree, server: &Command) -> Command {
    const SCRIPT: &str = "mount --bind \"$0/passwd\" /etc/passwd && \
                          mount --bind \"$0/group\" /etc/group && exec \"$@\"";
    let mut command = crate::command::command("unshare", &["--mount", "sh", "-c", SCRIPT]);
    command
        .arg(tree.private())
        .arg(server.get_program())
        .args(server.get_args());
    for (name, value) in server.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

/// The published tree, in a temporary directory.
#[derive(Debug)]
pub struct Tree {
    dir: TempDir,
}

impl Tree {
    /// Makes the tree: [`FILE`], and [`INCOMING`] owned by [`FTP_USER`].
    ///
    /// # Errors
    /// Needs root.
    pub fn new() -> Result<Self> {
        let dir = check::readable_dir()?;
        fs::create_dir(dir.path().join("pub"))?;
        check::set_mode(&dir.path().join("pub"), 0o755)?;
        let tree = Self { dir };
        check::write_readable(tree.file(), &check::noise(7, FILE_LENGTH))?;
        let incoming = tree.root().join(INCOMING);
        fs::create_dir(&incoming)?;
        let owner = (Uid::from_raw(FTP_ID), Gid::from_raw(FTP_ID));
        chown(&incoming, Some(owner.0), Some(owner.1)).context("chown (needs root)")?;
        check::set_mode(&incoming, 0o755)?;
        tree.write_users()?;
        Ok(tree)
    }

    /// The host's users and groups, with [`FTP_USER`] as we want it: its home
    /// is the tree, which is where pure-ftpd leads anonymous users.
    fn write_users(&self) -> Result<()> {
        let home = self.root().display().to_string();
        let user = format!("{FTP_USER}:x:{FTP_ID}:{FTP_ID}::{home}:/usr/sbin/nologin\n");
        let group = format!("{FTP_USER}:x:{FTP_ID}:\n");
        for (name, own) in [("passwd", user), ("group", group)] {
            let text = fs::read_to_string(Path::new("/etc").join(name))?;
            let others = text
                .split_inclusive('\n')
                .filter(|line| !line.starts_with(&format!("{FTP_USER}:")));
            let all = others.collect::<String>() + &own;
            check::write_readable(self.private().join(name), all.as_bytes())?;
        }
        Ok(())
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
