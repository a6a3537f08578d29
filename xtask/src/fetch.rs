//! Fetching Debian packages without installing them, for any suite of the
//! mirror that apt is configured for.
//!
//! Each suite has an apt state of its own below the cache, so the machine's
//! own package lists are never touched. apt verifies all it fetches with the
//! Debian archive keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell::{command, is_root, output, run, step};
use crate::{deps, workspace};

/// The Debian archive keys.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt of its own for one suite.
pub struct Suite {
    name: String,
    config: PathBuf,
    dir: PathBuf,
}

impl Suite {
    /// Prepares it and fetches the suite's package lists, unless they are
    /// there.
    pub fn open(name: &str) -> Result<Self> {
        let dir = workspace::lab().join("apt").join(name);
        let suite = Self {
            name: name.to_owned(),
            config: dir.join("apt.conf"),
            dir,
        };
        if !suite.dir.join("ready").is_file() {
            suite.update()?;
        }
        Ok(suite)
    }

    fn update(&self) -> Result<()> {
        step(&format!("package lists of {}", self.name));
        for part in ["state/lists/partial", "cache/archives/partial", "empty"] {
            fs::create_dir_all(self.dir.join(part))?;
        }
        let mirror = mirror()?;
        let source = format!("deb [signed-by={KEYRING}] {mirror} {} main\n", self.name);
        fs::write(self.dir.join("sources.list"), source)?;
        fs::write(self.dir.join("state/status"), "")?;
        fs::write(&self.config, config(&self.dir, &deps::architecture()?))?;
        output(&mut self.apt("apt-get", &["-q", "update"]))?;
        fs::write(self.dir.join("ready"), "").context("marking the lists as complete")
    }

    /// What a package depends on directly, by name.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = output(&mut self.apt("apt-cache", &["depends", package]))?;
        Ok(parse_depends(&text))
    }

    /// A package and all that it depends on, by name.
    pub fn closure(&self, package: &str) -> Result<Vec<String>> {
        let args = [
            "depends",
            "--recurse",
            "--no-recommends",
            "--no-suggests",
            "--no-enhances",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
            package,
        ];
        let text = output(&mut self.apt("apt-cache", &args))?;
        let mut names = parse_depends(&text);
        // In angle brackets: virtual packages, whose providers are not ours
        // to choose.
        names.retain(|name| !name.starts_with('<'));
        names.push(package.to_owned());
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// [`unpack`] from this suite.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        unpack(self.apt("apt-get", &[]), packages, into)
    }

    fn apt(&self, program: &str, args: &[&str]) -> Command {
        let mut apt = command(program, args);
        apt.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        apt
    }
}

/// Downloads packages with `apt` (an apt-get command) and unpacks them below
/// `into`, which appears only once all are complete.
pub fn unpack(mut apt: Command, packages: &[String], into: &Path) -> Result<()> {
    let part = into.with_extension(format!("part-{}", std::process::id()));
    fs::create_dir_all(&part)?;
    step(&format!("fetching {}", packages.join(" ")));
    output(
        apt.args(["-q", "download"])
            .args(packages)
            .current_dir(&part),
    )?;
    for entry in fs::read_dir(&part)? {
        let deb = entry?.path();
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&part))?;
        fs::remove_file(&deb)?;
    }
    fs::rename(&part, into).with_context(|| into.display().to_string())
}

/// apt.conf(5): the machine's own settings hold (proxies, for example), but
/// sources, lists and cache are ours.
fn config(dir: &Path, architecture: &str) -> String {
    let dir = dir.display();
    format!(
        "Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
         Dir::Etc::sourceparts \"{dir}/empty\";\n\
         Dir::Etc::preferencesparts \"{dir}/empty\";\n\
         Dir::State \"{dir}/state\";\n\
         Dir::State::status \"{dir}/state/status\";\n\
         Dir::Cache \"{dir}/cache\";\n\
         APT::Architecture \"{architecture}\";\n\
         APT::Architectures {{ \"{architecture}\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         APT::Update::Post-Invoke-Success \"\";\n\
         Acquire::Languages \"none\";\n"
    )
}

/// Address of the mirror that apt gets Debian from.
pub fn mirror() -> Result<String> {
    if let Some(mirror) = configured_mirror()? {
        return Ok(mirror);
    }
    // Without lists apt doesn't know which of its sources is Debian.
    ensure!(
        is_root(),
        "apt has no package lists; run\n\n    sudo apt-get update\n"
    );
    run(&mut command("apt-get", &["-q", "update"]))?;
    configured_mirror()?.context("apt is not configured for a Debian mirror")
}

fn configured_mirror() -> Result<Option<String>> {
    let args = [
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
    ];
    let text = output(&mut command("apt-get", &args))?;
    Ok(text.lines().next().map(str::to_owned))
}

/// Names after `Depends:`.
fn parse_depends(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .map(|name| name.trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse_depends;

    #[test]
    fn only_dependencies_count() {
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-50-amd64\n  Suggests: x\n";
        assert_eq!(parse_depends(text), ["linux-image-6.1.0-50-amd64"]);
    }
}
