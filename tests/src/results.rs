//! Results that go into documentation: one line each, tab-separated, in the
//! file named by `LAB_RESULTS`. `ftp-tables` makes tables of them.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

/// Names the file; without it nothing is written.
pub const RESULTS: &str = "LAB_RESULTS";

/// Appends one line: the kernel's release and `fields`.
///
/// # Errors
/// If the file can't be written.
pub fn record(fields: &[&str]) -> Result<()> {
    let Some(path) = std::env::var_os(RESULTS) else {
        return Ok(());
    };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let line = format!("{}\t{}\n", fields.join("\t"), release.trim());
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .with_context(|| format!("{RESULTS}: {}", Path::new(&path).display()))
}
