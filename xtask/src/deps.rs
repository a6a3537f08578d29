//! Debian packages a task needs.

use anyhow::{Context, Result, bail};

use crate::shell::{command, is_root, output, run, step, succeeds};

/// What building takes.
const BUILD: &[&str] = &["gcc", "libmnl-dev", "libnftnl-dev", "pkg-config"];

/// What the laboratory takes on the machine itself.
const LAB: &[&str] = &[
    "conntrack",
    // It is started with its package, but mirrors nothing as it is configured.
    "conntrackd",
    "curl",
    "iproute2",
    "keepalived",
    "lftp",
    // Of conntrackd, for its helper.
    "nfct",
    "nftables",
    "openssl",
    // The guides call sysctl.
    "procps",
    "python3",
    // It lets system calls of a daemon fail.
    "strace",
    // For systemd-analyze.
    "systemd",
    "tnftp",
];

/// What a VM takes. Kernels come as packages too, but are only unpacked. The
/// initial file system is busybox alone, so it must not need a library.
const VM: &[&str] = &[
    "busybox-static",
    "debian-archive-keyring",
    "file",
    "kmod",
    "python3-venv",
    "qemu-system-x86",
];

/// What packaging takes.
const DEB: &[&str] = &["binutils", "dpkg-dev", "xz-utils"];

/// What a VM with a system of its own takes.
const MACHINE: &[&str] = &["busybox-static", "e2fsprogs", "qemu-system-x86"];

/// What making a root file system takes.
const ROOT: &[&str] = &["debian-archive-keyring", "mmdebstrap"];

/// Makes sure that a machine can be booted.
pub fn for_machine() -> Result<()> {
    ensure(MACHINE)
}

/// Makes sure that a root file system can be made.
pub fn for_root() -> Result<()> {
    ensure(ROOT)
}

/// Makes sure that the package can be built.
pub fn for_deb() -> Result<()> {
    ensure(&[BUILD, DEB].concat())
}

/// Makes sure that the laboratory can run, with or without a VM.
pub fn for_lab(vm: bool) -> Result<()> {
    let mut packages = [BUILD, LAB].concat();
    if vm {
        packages.extend(VM);
    }
    ensure(&packages)
}

/// Makes sure that the demo can run. Without root nothing but a VM comes into
/// question, and one line must name everything.
pub fn for_demo(vm: bool, with_conntrackd: bool) -> Result<()> {
    let mut packages = [BUILD, LAB].concat();
    if vm || !is_root() {
        packages.extend(VM);
    }
    if with_conntrackd {
        packages.extend(BENCH);
    }
    ensure(&packages)
}

/// What is measured beside our programs. Debian starts no daemon of these
/// that would mirror: conntrackd's own configuration only counts.
const BENCH: &[&str] = &["conntrackd"];

/// Makes sure that the benchmarks can run.
pub fn for_bench(vm: bool) -> Result<()> {
    let mut packages = [BUILD, LAB, BENCH].concat();
    if vm {
        packages.extend(VM);
    }
    ensure(&packages)
}

/// Makes sure that programs can be sampled.
pub fn for_profile() -> Result<()> {
    ensure(&["linux-perf"])
}

/// Makes sure that instructions can be counted.
pub fn for_count() -> Result<()> {
    ensure(&[BUILD, &["valgrind"]].concat())
}

/// Installs what is missing as root; otherwise says how.
fn ensure(packages: &[&str]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() {
        bail!(
            "packages are missing; install them with\n\n    \
             sudo apt-get install --no-install-recommends {list}\n"
        );
    }
    step(&format!("installing {list}"));
    install(&missing)
}

/// With the lists there are, if they know all packages; else with new ones.
fn install(packages: &[&str]) -> Result<()> {
    let known = packages.iter().all(|package| {
        let args = ["show", "--no-all-versions", package];
        succeeds(&mut command("apt-cache", &args))
    });
    if known && succeeds(&mut apt_install(packages)) {
        return Ok(());
    }
    run(&mut command("apt-get", &["-q", "update"]))?;
    run(&mut apt_install(packages))
}

fn apt_install(packages: &[&str]) -> std::process::Command {
    let args = ["-q", "-y", "--no-install-recommends", "install"];
    let mut apt = command("apt-get", &args);
    apt.args(packages).env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// Packages that aren't installed.
fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let args = ["-W", "-f", "${Package} ${db:Status-Status}\\n"];
    // It fails if it doesn't know a package, but lists the others.
    let query = command("dpkg-query", &args)
        .args(packages)
        .output()
        .context("dpkg-query: is this a Debian system?")?;
    let installed = String::from_utf8_lossy(&query.stdout);
    Ok(not_in(packages, &installed))
}

fn not_in<'a>(packages: &[&'a str], installed: &str) -> Vec<&'a str> {
    let has = |package: &&str| {
        let wanted = format!("{package} installed");
        installed.lines().any(|line| line == wanted)
    };
    packages.iter().copied().filter(|name| !has(name)).collect()
}

/// The Debian architecture of this machine, such as `amd64`.
pub fn architecture() -> Result<String> {
    let text = output(&mut command("dpkg", &["--print-architecture"]))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::not_in;

    #[test]
    fn a_package_that_was_removed_is_missing() {
        let known = "curl installed\nlftp config-files\n";
        assert_eq!(not_in(&["curl", "lftp", "tnftp"], known), ["lftp", "tnftp"]);
    }
}
