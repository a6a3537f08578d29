//! Debian's stock kernels for the VM, unpacked from their packages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::fetch::Suite;
use crate::shell::{command, output};
use crate::{deps, workspace};

/// A kernel of the matrix and the suite it comes from. Backports come first
/// where they carry the same kernel: their package lists are small.
const MATRIX: &[(&str, &str)] = &[
    ("6.1", "bookworm"),
    ("6.12", "bookworm-backports"),
    ("newest", "trixie-backports"),
];

/// An unpacked kernel.
pub struct Kernel {
    /// Its name in the matrix.
    pub name: String,
    /// Its release, as uname(1) prints it.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

/// Names of all kernels of the matrix.
pub fn names() -> Vec<String> {
    MATRIX.iter().map(|(name, _)| (*name).to_owned()).collect()
}

/// The kernel of this name, fetched unless it is in the cache.
pub fn get(name: &str) -> Result<Kernel> {
    let Some((_, suite)) = MATRIX.iter().find(|(known, _)| *known == name) else {
        bail!("no kernel {name}; there are {}", names().join(", "));
    };
    let dir = workspace::lab().join("kernels").join(name);
    if !dir.is_dir() {
        fetch(suite, &dir).with_context(|| format!("fetching kernel {name}"))?;
    }
    unpacked(name, &dir)
}

/// The metapackage leads to the packages of the day: one image, or, from
/// 6.16 on, image, binary, modules and base.
fn fetch(suite: &str, dir: &Path) -> Result<()> {
    let architecture = deps::architecture()?;
    ensure!(architecture == "amd64", "the VM is for amd64 machines only");
    let suite = Suite::open(suite)?;
    let mut packages: Vec<String> = Vec::new();
    let mut unseen = vec!["linux-image-amd64".to_owned()];
    while let Some(package) = unseen.pop() {
        for name in suite.depends(&package)? {
            if is_part_of_kernel(&name) && !packages.contains(&name) {
                packages.push(name.clone());
                unseen.push(name);
            }
        }
    }
    ensure!(
        !packages.is_empty(),
        "linux-image-amd64 depends on no image"
    );
    suite.unpack(&packages, dir)
}

/// True for names such as `linux-modules-7.3.4+deb13-amd64`.
fn is_part_of_kernel(package: &str) -> bool {
    ["image", "binary", "modules", "base"].iter().any(|part| {
        package
            .strip_prefix(&format!("linux-{part}-"))
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    })
}

/// Older packages have the image in /boot, newer ones beside the modules.
fn unpacked(name: &str, dir: &Path) -> Result<Kernel> {
    let base = match dir.join("usr/lib/modules").is_dir() {
        true => dir.join("usr"),
        false => dir.to_owned(),
    };
    let modules = fs::read_dir(base.join("lib/modules"))?
        .flatten()
        .next()
        .with_context(|| format!("no modules below {}", dir.display()))?;
    let release = modules.file_name().to_string_lossy().into_owned();
    if !modules.path().join("modules.dep").is_file() {
        // Installing the package would have run depmod.
        let base = base.to_string_lossy();
        output(&mut command("/sbin/depmod", &["-b", &base, &release]))?;
    }
    let in_boot = dir.join("boot").join(format!("vmlinuz-{release}"));
    let image = [in_boot, modules.path().join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no kernel image below {}", dir.display()))?;
    Ok(Kernel {
        name: name.to_owned(),
        release,
        image,
        modules: modules.path(),
    })
}

#[cfg(test)]
mod tests {
    use super::is_part_of_kernel;

    #[test]
    fn only_packages_of_one_kernel_are_fetched() {
        for package in [
            "linux-image-6.1.0-50-amd64",
            "linux-modules-7.3.4+deb13-amd64",
        ] {
            assert!(is_part_of_kernel(package), "{package}");
        }
        for package in ["linux-base", "linux-base-amd64", "kmod", "linux-doc-7.3"] {
            assert!(!is_part_of_kernel(package), "{package}");
        }
    }
}
