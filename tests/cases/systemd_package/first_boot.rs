//! Installing it: nothing changes before the administrator says so.

use std::fs;

use anyhow::{Result, ensure};

use crate::system::{
    CTSYNC, UNITS, attempt, has_table, helpers, inventory, ok, package, property, sh, shared,
};

/// As cloud-init has it: wants the network, and comes before sysinit.target.
/// A unit before the network that waits for basic.target would be in a cycle
/// with it, and systemd would not start one of them.
const EARLY: &str = "[Unit]
DefaultDependencies=no
After=network-pre.target
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/true
RemainAfterExit=yes
[Install]
WantedBy=sysinit.target
";

const KEEPALIVED: &str = "global_defs {
    router_id machine
}
";

/// The peer's address is our own; nobody listens there.
const MIRROR: &str = "node = \"fw-1\"
private-key = \"/etc/ctsync/private.key\"
[[link]]
bind = \"127.0.0.1:3780\"
[[peer]]
name = \"fw-2\"
public-key = \"PUBLIC\"
endpoints = [\"127.0.0.2:3780\"]
";

#[test]
fn a_fresh_install_changes_nothing_and_is_enabled_with_one_command() -> Result<()> {
    surroundings()?;
    let before = inventory()?;
    fs::write(shared("inventory")?, &before)?;
    sh(&format!("dpkg --install {}", package()?))?;
    ok("dpkg installs the package");
    nothing_runs()?;
    users()?;
    mirror_needs_keys()?;
    sh(&format!("systemctl enable {}", UNITS.join(" ")))?;
    for unit in UNITS {
        ensure!(property(unit, "UnitFileState")? == "enabled", "{unit}");
    }
    ok("systemctl enables all three; rebooting");
    // What they start with is what the second boot finds.
    fs::write(shared("reboot")?, "")?;
    Ok(())
}

/// What is there before, on a machine where the order at boot matters.
fn surroundings() -> Result<()> {
    fs::write("/etc/systemd/system/early.service", EARLY)?;
    fs::write("/etc/keepalived/keepalived.conf", KEEPALIVED)?;
    sh("systemctl enable early.service nftables.service keepalived.service").map(drop)
}

fn nothing_runs() -> Result<()> {
    for unit in UNITS {
        ensure!(property(unit, "ActiveState")? == "inactive", "{unit}");
        ensure!(property(unit, "UnitFileState")? == "disabled", "{unit}");
    }
    ensure!(!has_table(), "{}", sh("nft list ruleset")?);
    ensure!(helpers()?.trim().is_empty(), "{}", helpers()?);
    ok("no unit is enabled or active, no table and no helper is in the kernel");
    Ok(())
}

fn users() -> Result<()> {
    for user in ["nft-ftp", "ctsync"] {
        let entry = sh(&format!("getent passwd {user}"))?;
        ensure!(entry.trim().ends_with(":/:/usr/sbin/nologin"), "{entry}");
    }
    let mode = sh("stat -c '%U %G %a' /etc/ctsync")?;
    ensure!(mode.trim() == "ctsync ctsync 750", "/etc/ctsync: {mode}");
    ok("users nft-ftp and ctsync have no shell; /etc/ctsync is ctsync's alone");
    Ok(())
}

/// The daemon starts with a key and a peer's, and says what it lacks.
fn mirror_needs_keys() -> Result<()> {
    refused("ctsync.toml:22:14: not a key")?;
    ok("ctsync as installed fails: the peer's public-key is not one");
    let public = sh("ctsync keygen /etc/ctsync/other.key && rm /etc/ctsync/other.key")?;
    fs::write(
        "/etc/ctsync/ctsync.toml",
        MIRROR.replace("PUBLIC", public.trim()),
    )?;
    refused("reading key /etc/ctsync/private.key")?;
    ok("ctsync without a private key fails, and names the file");
    sh("ctsync keygen /etc/ctsync/private.key")?;
    let mode = sh("stat -c '%U %G %a' /etc/ctsync/private.key")?;
    ensure!(mode.trim() == "ctsync ctsync 600", "private.key: {mode}");
    sh("ctsync check-config")?;
    ok("root makes the daemon's key, and can look whether all is well");
    sh("systemctl reset-failed; systemctl start ctsync")?;
    sh("systemctl stop ctsync")?;
    ok("with a key made by root it starts and stops");
    Ok(())
}

/// Starting fails, and the journal says why.
fn refused(why: &str) -> Result<()> {
    let start = attempt("systemctl start ctsync")?;
    sh("systemctl stop ctsync")?;
    let journal = sh("journalctl --sync; journalctl -o cat -u ctsync")?;
    ensure!(!start.ok(), "{CTSYNC} started:\n{journal}");
    ensure!(journal.contains(why), "{journal}");
    Ok(())
}
