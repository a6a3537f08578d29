//! Cargo tools of pinned versions, built into the cache once; nothing is
//! installed on the machine.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::{cargo, run, step};
use crate::workspace;

/// Builds packages. Without its default features: xz(1) compresses.
const CARGO_DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
    options: &["--no-default-features"],
};

/// Checks licences and sources. Advisories would need its database.
const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    options: &[],
};

struct Tool {
    name: &'static str,
    version: &'static str,
    options: &'static [&'static str],
}

/// Path of cargo-deb.
pub fn cargo_deb() -> Result<PathBuf> {
    CARGO_DEB.get()
}

/// Path of cargo-deny.
pub fn cargo_deny() -> Result<PathBuf> {
    CARGO_DENY.get()
}

impl Tool {
    /// Its program, built unless it is there. Without optimisation: building
    /// it is what takes the time.
    fn get(&self) -> Result<PathBuf> {
        let name = format!("{}-{}", self.name, self.version);
        let root = workspace::lab().join("tools").join(&name);
        let program = root.join("bin").join(self.name);
        if program.is_file() {
            return Ok(program);
        }
        step(&format!("building {name}"));
        let mut install = cargo(&["install", "--quiet", "--locked", "--debug"]);
        install
            .args(["--version", self.version, self.name])
            .args(self.options)
            .arg("--root")
            .arg(&root)
            .arg("--target-dir")
            .arg(root.join("build"));
        run(&mut install).with_context(|| format!("building {name}"))?;
        let _ = std::fs::remove_dir_all(root.join("build"));
        Ok(program)
    }
}
