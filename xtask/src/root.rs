//! Root file systems of Debian suites, made by mmdebstrap below the cache.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell::{command, is_root, output, run};
use crate::{deps, fetch};

/// Makes one with the essential packages and these.
pub fn make(suite: &str, packages: &[&str], into: &Path) -> Result<()> {
    ensure!(is_root(), "making a root file system needs root");
    deps::for_root()?;
    run(&mut mmdebstrap(suite, packages, into)?)
        .with_context(|| format!("making a root file system of {suite}"))
}

fn mmdebstrap(suite: &str, packages: &[&str], into: &Path) -> Result<Command> {
    let mirror = fetch::mirror()?;
    let source = format!("deb [signed-by={}] {mirror} {suite} main", fetch::KEYRING);
    let include = format!("--include={}", packages.join(","));
    let args = [
        "--quiet",
        "--mode=root",
        "--variant=essential",
        "--format=directory",
        &include,
    ];
    let mut mmdebstrap = command("mmdebstrap", &args);
    // It does not look at this machine's settings; a proxy may be needed.
    let proxies = ["dump", "Acquire::http::Proxy", "Acquire::https::Proxy"];
    for line in output(&mut command("apt-config", &proxies))?.lines() {
        mmdebstrap.arg(format!("--aptopt={line}"));
    }
    mmdebstrap.arg(suite).arg(into).arg(source);
    Ok(mmdebstrap)
}
