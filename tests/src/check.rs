//! Files with known contents, and comparing them at both ends.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Bytes that look random, the same for the same seed and length.
#[must_use]
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    // xorshift64*: enough to notice a lost, doubled or moved block.
    let mut state = seed | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}

/// Fails unless both files exist with the same contents.
///
/// # Errors
/// Says how they differ.
pub fn same_contents(one: &Path, other: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let (a, b) = (read(one)?, read(other)?);
    if a == b {
        return Ok(());
    }
    let at = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    bail!(
        "{} ({} bytes) and {} ({} bytes) differ from byte {at}",
        one.display(),
        a.len(),
        other.display(),
        b.len()
    );
}

/// SHA-256 of a file as sha256sum(1) prints it.
///
/// # Errors
/// If the file can't be read.
pub fn sha256(path: &Path) -> Result<String> {
    let path = path.to_string_lossy();
    let command = crate::command::command("sha256sum", &[&path]);
    let line = crate::command::run(command, crate::wait::patience())?.success()?;
    let sum = line.split_whitespace().next();
    sum.map(str::to_owned)
        .with_context(|| format!("sha256sum printed {line:?}"))
}

/// A temporary directory that others than its owner may enter and read.
///
/// # Errors
/// If it can't be made.
pub fn readable_dir() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().context("temporary directory")?;
    set_mode(dir.path(), 0o755)?;
    Ok(dir)
}

/// Sets a file's permissions.
///
/// # Errors
/// With the path.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("mode of {}", path.display()))
}

/// Writes a file anyone may read.
///
/// # Errors
/// With the path.
pub fn write_readable(path: PathBuf, bytes: &[u8]) -> Result<PathBuf> {
    fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    set_mode(&path, 0o644)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_length_asked_for_and_depends_on_the_seed() {
        assert_eq!(noise(1, 1021).len(), 1021);
        assert_eq!(noise(1, 64), noise(1, 64));
        assert_ne!(noise(1, 64), noise(5, 64));
    }

    #[test]
    fn the_first_difference_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, b"abcd").unwrap();
        fs::write(&b, b"abXd").unwrap();
        let error = same_contents(&a, &b).unwrap_err().to_string();
        assert!(error.ends_with("from byte 2"), "{error}");
        assert!(same_contents(&a, &a).is_ok());
    }
}
