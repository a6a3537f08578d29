//! FTP servers, unpacked from their Debian packages rather than installed:
//! an installed one would be started by the system, and they exclude each
//! other. One that is installed already is used as it is.
//!
//! Beside them, the nft of another suite, with all the libraries it needs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::shell::{command, output};
use crate::{fetch, workspace};

/// A server: its program, and its package.
const SERVERS: &[(&str, &str)] = &[
    ("vsftpd", "vsftpd"),
    ("proftpd", "proftpd-core"),
    ("pure-ftpd", "pure-ftpd"),
];

/// Directory that holds one directory per server that had to be unpacked.
pub fn get() -> Result<PathBuf> {
    let dir = workspace::lab().join("peers");
    fs::create_dir_all(&dir)?;
    for (program, package) in SERVERS {
        let server = dir.join(program);
        let installed = ["/usr/sbin", "/usr/bin"]
            .iter()
            .any(|bin| PathBuf::from(bin).join(program).is_file());
        if !installed && !server.is_dir() {
            let packages = missing_for(package)?;
            fetch::unpack(command("apt-get", &[]), &packages, &server)
                .with_context(|| format!("fetching {program}"))?;
        }
    }
    Ok(dir)
}

/// Suite whose nft is tried besides the system's.
const OTHER_NFT: &str = "trixie";

/// A program that runs the nft of [`OTHER_NFT`], with its own libraries and
/// its own loader.
pub fn other_nft() -> Result<PathBuf> {
    let root = workspace::lab()
        .join("peers")
        .join(format!("nft-{OTHER_NFT}"));
    if !root.is_dir() {
        let suite = fetch::Suite::open(OTHER_NFT)?;
        let packages = suite.closure("nftables")?;
        suite.unpack(&packages, &root).context("fetching nft")?;
    }
    let program = root.join("nft");
    fs::write(&program, launcher(&root)?)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// A shell script that starts nft with the loader and libraries below `root`.
fn launcher(root: &Path) -> Result<String> {
    let lib = root.join("usr/lib");
    let libraries = fs::read_dir(&lib)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with("-linux-gnu"))
        .with_context(|| format!("no libraries in {}", lib.display()))?;
    let loader = fs::read_dir(&libraries)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ld-linux")
        })
        .with_context(|| format!("no loader in {}", libraries.display()))?;
    Ok(format!(
        "#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n",
        loader.display(),
        libraries.display(),
        root.join("usr/sbin/nft").display()
    ))
}

/// The package and what it depends on, as far as this system lacks it: what
/// apt would install. Nothing is.
fn missing_for(package: &str) -> Result<Vec<String>> {
    let args = ["-s", "--no-install-recommends", "install", package];
    let text = output(command("apt-get", &args).env("LC_ALL", "C"))?;
    let packages = would_install(&text);
    ensure!(
        packages.iter().any(|name| name == package),
        "apt would not install {package}:\n{text}"
    );
    Ok(packages)
}

/// Names from `Inst NAME (…)`.
fn would_install(simulation: &str) -> Vec<String> {
    simulation
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::would_install;

    #[test]
    fn what_apt_would_install_is_listed_but_not_what_it_would_remove() {
        let text = "Remv vsftpd [3.0.3]\nInst libx (1 Debian:12)\nInst pure-ftpd (1)\nConf libx\n";
        assert_eq!(would_install(text), ["libx", "pure-ftpd"]);
    }
}
