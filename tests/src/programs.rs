//! Finding programs: those of this workspace, and the system's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

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

/// The directory above `deps` or `examples`, where the running binary is.
fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("path of the running program")?;
    let dir = exe.parent().context("path of the running program")?;
    if dir.ends_with("deps") {
        return Ok(dir.parent().unwrap_or(dir).to_owned());
    }
    Ok(dir.to_owned())
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
