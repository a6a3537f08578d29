//! Where things are.

use std::path::{Path, PathBuf};

/// Root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Cargo's target directory.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What the laboratory has fetched: kernels, servers, virtme-ng. Safe to
/// delete; it is fetched again.
pub fn lab() -> PathBuf {
    target().join("lab")
}

/// Lines that tests recorded for documentation, of all runs; the latest of
/// its kind counts.
pub fn results() -> PathBuf {
    lab().join("results")
}
