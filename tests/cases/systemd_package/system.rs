//! Asking and telling systemd, dpkg and the kernel of this machine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::command::{Finished, command, run};
use lab::wait::{patience, until_true};

pub const HELPER: &str = "nft-ftp-helper.service";
pub const RULESET: &str = "nft-ftp-ruleset.service";
pub const CTSYNC: &str = "ctsync.service";
pub const UNITS: [&str; 3] = [HELPER, RULESET, CTSYNC];

/// The directory shared with whoever booted us.
pub fn shared(file: &str) -> Result<PathBuf> {
    let dir = std::env::var_os("LAB_MACHINE").context("LAB_MACHINE: not on a machine")?;
    Ok(PathBuf::from(dir).join(file))
}

/// The package file.
pub fn package() -> Result<String> {
    std::env::var("LAB_DEB").context("LAB_DEB")
}

/// Says what has just been checked: past libtest, which would keep it.
pub fn ok(what: &str) {
    let _ = writeln!(std::io::stderr(), "  ok  {what}");
}

/// What a shell command did, whatever its exit status.
pub fn attempt(script: &str) -> Result<Finished> {
    run(command("sh", &["-c", script]), patience() * 3)
}

/// Standard output of a shell command that must succeed.
pub fn sh(script: &str) -> Result<String> {
    attempt(script)?.success()
}

/// One property of a unit.
pub fn property(unit: &str, name: &str) -> Result<String> {
    let text = sh(&format!("systemctl show --value -p {name} {unit}"))?;
    Ok(text.trim().to_owned())
}

/// A property that is a number: a process id, a time in microseconds.
pub fn number(unit: &str, name: &str) -> Result<u64> {
    let text = property(unit, name)?;
    text.parse()
        .with_context(|| format!("{name} of {unit} is {text:?}"))
}

pub fn is_active(unit: &str) -> bool {
    property(unit, "ActiveState").is_ok_and(|state| state == "active")
}

pub fn wait_active(unit: &str) -> Result<()> {
    until_true(&format!("{unit} to be active"), || is_active(unit))
}

/// What the kernel has registered, as the program lists it.
pub fn helpers() -> Result<String> {
    sh("nft-ftp-helper list")
}

pub fn is_enabled() -> bool {
    helpers().is_ok_and(|list| list.contains(" enabled"))
}

pub fn has_table() -> bool {
    attempt("nft list table inet nft_ftp").is_ok_and(|nft| nft.ok())
}

/// Settings of a unit until the next boot, or until [`Override`] is dropped.
pub struct Override {
    dir: PathBuf,
}

impl Override {
    /// # Errors
    /// If systemd doesn't take it.
    pub fn new(unit: &str, section: &str) -> Result<Self> {
        let dir = Path::new("/run/systemd/system").join(format!("{unit}.d"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("test.conf"), section)?;
        sh("systemctl daemon-reload")?;
        Ok(Self { dir })
    }
}

impl Drop for Override {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        let _ = sh("systemctl daemon-reload");
    }
}

/// Everything on the disk that a package could leave behind: names, types,
/// modes and owners of files, and the users.
pub fn inventory() -> Result<String> {
    // Logs, caches, backups and the package manager's journal change with
    // every installation.
    const IGNORED: [&str; 12] = [
        "/tmp",
        "/var/tmp",
        "/var/log",
        "/var/cache",
        "/var/backups",
        "/var/lib/dpkg/[a-hj-z]*",
        "/var/lib/systemd/random-seed",
        "/etc/.pwd.lock",
        "/etc/*-",
        "/etc/resolv.conf",
        "/lost+found",
        "/root/.*",
    ];
    let ignored: Vec<_> = IGNORED.iter().map(|p| format!("-path '{p}'")).collect();
    let find = format!(
        "find / -xdev \\( {} \\) -prune -o -printf '%p %y %m %U %G %l\\n' | sort",
        ignored.join(" -o ")
    );
    Ok(sh(&find)? + &sh("sort /etc/passwd /etc/group /etc/shadow /etc/gshadow")?)
}

/// Fails with the lines that only one of them has.
pub fn same_lines(before: &str, after: &str) -> Result<()> {
    let only = |a: &str, b: &str, sign: &str| -> Vec<String> {
        let known: std::collections::HashSet<_> = b.lines().collect();
        a.lines()
            .filter(|line| !known.contains(line))
            .map(|line| format!("{sign}{line}"))
            .collect()
    };
    let gone = only(before, after, "-");
    let new = only(after, before, "+");
    ensure!(
        gone.is_empty() && new.is_empty(),
        "{}",
        [gone, new].concat().join("\n")
    );
    Ok(())
}
