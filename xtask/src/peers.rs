//! FTP servers, unpacked from their Debian packages rather than installed:
//! an installed one would be started by the system, and they exclude each
//! other. One that is installed already is used as it is.

use std::fs;
use std::path::PathBuf;

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
