//! What the daemon gives up once its sockets are open.

use crate::config::Config;
use crate::kernel::sysctl;
use anyhow::{Context, Result};
use daemon::metrics::Address;
use daemon::sandbox::{self, Enforced, Files};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Keeps `CAP_NET_ADMIN`, the files of [`files`] and the system calls that a
/// daemon needs. What is returned must stay open: a grant for a directory of
/// /proc lasts only as long as the kernel remembers that directory.
///
/// # Errors
/// The kernel refuses, or lacks seccomp filters.
pub(super) fn restrict(config: &Config, config_path: &Path) -> Result<Option<File>> {
    let pinned = File::open(sysctl::DIR).ok();
    sandbox::keep_net_admin_only()?;
    let enforced = sandbox::restrict_files(&files(config, config_path))
        .context("giving up access to files")?;
    sandbox::restrict_syscalls().context("giving up system calls")?;
    if enforced == Enforced::No {
        tracing::info!("this kernel has no Landlock: access to files is not restricted");
    }
    Ok(pinned)
}

/// The configuration's directory and those of keys, because both are replaced
/// by other files; limits of the connection table; and the directories of
/// sockets, from which they are removed in the end.
fn files(config: &Config, config_path: &Path) -> Files {
    let metrics = config.metrics.as_deref().map(str::parse);
    let mut write = vec![parent(&config.control)];
    if let Some(Ok(Address::Unix(path))) = metrics {
        write.push(parent(&path));
    }
    let mut read = vec![parent(config_path), sysctl::DIR.into()];
    read.extend(config.key_files().map(parent));
    Files { read, write }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => ".".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_file_name_is_in_the_current_directory() {
        assert_eq!(parent(Path::new("ctsync.toml")), Path::new("."));
        assert_eq!(parent(Path::new("/etc/c.toml")), Path::new("/etc"));
    }
}
