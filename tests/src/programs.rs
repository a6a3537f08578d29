//! Finding programs: those of this workspace, and the system's.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::command::command;

/// Directory of this workspace's programs, set by the task runner.
pub const LAB_BIN: &str = "LAB_BIN";

/// Path of a program of this workspace: from `LAB_BIN`, else next to the
/// running test (target/debug).
///
/// # Errors
/// If it hasn't been built.
pub fn built(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os(LAB_BIN) {
        Some(dir) => PathBuf::from(dir),
        None => target_dir()?,
    };
    let path = dir.join(name);
    if !path.is_file() {
        bail!("{} is not built", path.display());
    }
    Ok(path)
}

/// A copy of a program of this workspace that every user can run: the clone may
/// be in a home that others can't enter. It goes with the directory.
///
/// # Errors
/// If it hasn't been built, or there is no room.
pub fn for_everybody(name: &str) -> Result<(TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    let path = directory.path().join(name);
    std::fs::copy(built(name)?, &path)?;
    Ok((directory, path))
}

/// The directory above `deps` or `examples`, where the running binary is.
fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("path of the running program")?;
    let dir = exe.parent().context("path of the running program")?;
    if dir.ends_with("deps") {
        return Ok(dir.parent().unwrap_or(dir).to_owned());
    }
    Ok(dir.to_owned())
}

/// Directory of unpacked server packages, set by the task runner.
pub const LAB_PEERS: &str = "LAB_PEERS";

/// A server program: unpacked from its package below `LAB_PEERS`, with the
/// libraries that came with it, else the system's.
#[must_use]
pub fn server(name: &str, args: &[&str]) -> Command {
    match unpacked(name) {
        Some((program, root)) => {
            let mut command = command(&program.to_string_lossy(), args);
            command.env("LD_LIBRARY_PATH", library_path(&root));
            command
        }
        None => command(name, args),
    }
}

/// Directory of older builds of ctsync, set by the task runner in a full run.
pub const LAB_OLDER: &str = "LAB_OLDER";

/// An older build of ctsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    /// The first that speaks the link's version of today.
    SameVersion,
    /// One that speaks another version of the link.
    OtherVersion,
}

/// The build, if `LAB_OLDER` has it.
#[must_use]
pub fn older(build: Older) -> Option<PathBuf> {
    let name = match build {
        Older::SameVersion => "same",
        Older::OtherVersion => "other",
    };
    let path = PathBuf::from(std::env::var_os(LAB_OLDER)?).join(name);
    path.is_file().then_some(path)
}

/// Path of another nft than the system's, set by the task runner.
pub const LAB_NFT: &str = "LAB_NFT";

/// The nft that `LAB_NFT` names, if it is there.
#[must_use]
pub fn other_nft() -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(LAB_NFT)?);
    path.is_file().then_some(path)
}

/// Program and root of an unpacked server.
fn unpacked(name: &str) -> Option<(PathBuf, PathBuf)> {
    let root = PathBuf::from(std::env::var_os(LAB_PEERS)?).join(name);
    ["usr/sbin", "usr/bin", "sbin", "bin"]
        .iter()
        .map(|bin| root.join(bin).join(name))
        .find(|program| program.is_file())
        .map(|program| (program, root.clone()))
}

/// The multiarch library directories below a root.
fn library_path(root: &Path) -> String {
    let dirs: Vec<_> = ["usr/lib", "lib"]
        .iter()
        .filter_map(|lib| std::fs::read_dir(root.join(lib)).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .map(|path| path.display().to_string())
        .collect();
    dirs.join(":")
}

/// True if [`server`] would find the program.
#[must_use]
pub fn has_server(name: &str) -> bool {
    unpacked(name).is_some() || on_path(name)
}

/// True if the search path, or a directory only root searches, has it.
#[must_use]
pub fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|dir: PathBuf| is_file(&dir, name))
}

fn is_file(dir: &Path, name: &str) -> bool {
    dir.join(name).is_file()
}
