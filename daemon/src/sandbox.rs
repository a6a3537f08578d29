//! Giving up what a daemon no longer needs, once it has started.

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use std::path::PathBuf;
use thiserror::Error;

/// A restriction that could not be put in place.
#[derive(Debug, Error)]
pub enum Error {
    /// Capabilities.
    #[error("dropping capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// `PR_SET_NO_NEW_PRIVS`.
    #[error("setting no-new-privileges: {0}")]
    NoNewPrivileges(#[from] nix::Error),
    /// Landlock.
    #[error("restricting file access: {0}")]
    Landlock(#[from] landlock::RulesetError),
}

/// Whether this process may configure the network.
pub fn has_net_admin() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}

/// Keeps `CAP_NET_ADMIN` alone, for this process and whatever it starts,
/// and forbids gaining privileges by executing a file.
///
/// # Errors
/// [`Error`] if the kernel refuses.
pub fn keep_net_admin_only() -> Result<(), Error> {
    nix::sys::prctl::set_no_new_privs()?;
    let keep = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
    caps::clear(None, CapSet::Ambient)?;
    // Without CAP_SETPCAP the bounding set can't shrink; it only matters to
    // executed files, and no-new-privileges covers those.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for cap in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *cap)?;
        }
    }
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = held.intersection(&keep).copied().collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    Ok(())
}

/// Which files a daemon may still touch.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Files and directories to read.
    pub read: Vec<PathBuf>,
    /// Directories in which it makes and removes sockets and files.
    pub write: Vec<PathBuf>,
}

/// How far the kernel enforces a restriction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforced {
    /// All of it, or all this kernel knows.
    Yes,
    /// The kernel has no Landlock.
    No,
}

/// Limits file access to `files` (Landlock), as far as the kernel can. Paths
/// that do not exist are left out.
///
/// # Errors
/// [`Error`] if the kernel knows Landlock and refuses.
pub fn restrict_files(files: &Files) -> Result<Enforced, Error> {
    let abi = ABI::V3;
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    let grants = files
        .read
        .iter()
        .map(|path| (path, AccessFs::from_read(abi)))
        .chain(files.write.iter().map(|p| (p, AccessFs::from_all(abi))));
    for (path, access) in grants {
        if let Ok(fd) = PathFd::new(path) {
            let access = if path.is_dir() {
                access
            } else {
                access & AccessFs::from_file(abi)
            };
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Enforced::No,
        _ => Enforced::Yes,
    })
}
