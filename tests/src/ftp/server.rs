//! What real servers have in common: a directory tree that is published to
//! anonymous users, and a place for uploads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, chown};
use tempfile::TempDir;

use crate::check;

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
