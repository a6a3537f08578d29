//! keepalived on a firewall of the [`crate::pair`], with the configuration
//! of `examples/`.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::command::command;
use crate::netns::Namespace;
use crate::pair::Node;
use crate::peer::Peer;
use crate::topology::{Family, Side, fw_address};

const EXAMPLE: &str = include_str!("../../examples/keepalived.conf");

/// Commands for keepalived.
#[derive(Debug, Clone)]
pub struct Scripts {
    /// Exit status 0 if the node is in sync.
    pub check: String,
    /// Take over.
    pub primary: String,
    /// Wait.
    pub backup: String,
    /// Be out of order.
    pub fault: String,
}

impl Scripts {
    /// What the example calls: a ctsync with this command line.
    #[must_use]
    pub fn ctsync(program: &str) -> Self {
        let command = |name: &str| format!("{program} {name}");
        Self {
            check: command("check"),
            primary: command("primary"),
            backup: command("backup"),
            fault: command("fault"),
        }
    }
}

/// The example's configuration for a node: other scripts, and fw-2 with a
/// lower priority.
///
/// # Errors
/// If the example lacks what is replaced.
pub fn configuration(node: Node, scripts: &Scripts) -> Result<String> {
    let mut text = EXAMPLE.to_owned();
    let mut replace = |old: &str, new: &str| -> Result<()> {
        ensure!(text.contains(old), "no {old:?} in keepalived.conf");
        text = text.replace(old, new);
        Ok(())
    };
    replace("/usr/sbin/ctsync check", &scripts.check)?;
    replace("/usr/sbin/ctsync primary", &scripts.primary)?;
    replace("/usr/sbin/ctsync backup", &scripts.backup)?;
    replace("/usr/sbin/ctsync fault", &scripts.fault)?;
    // A workspace belongs to its user: keepalived would refuse its programs.
    replace("    enable_script_security\n", "")?;
    if node == Node::Two {
        replace("priority 100", "priority 90")?;
    }
    Ok(text)
}

/// Starts it; its files go into `dir`.
///
/// # Errors
/// If it can't be started.
pub fn start(fw: &Namespace, node: Node, dir: &Path, scripts: &Scripts) -> Result<Peer> {
    let file = |what: &str| dir.join(format!("{}.{what}", fw.name()));
    // A killed one leaves them, as no machine does that has lost its power.
    for pid in ["keepalived.pid", "vrrp.pid"] {
        let _ = std::fs::remove_file(file(pid));
    }
    let config = file("keepalived.conf");
    std::fs::write(&config, configuration(node, scripts)?)
        .with_context(|| config.display().to_string())?;
    let mut keepalived = command("keepalived", &["--vrrp", "--dont-fork"]);
    keepalived
        .args(["--log-console", "--log-detail", "--no-syslog", "--use-file"])
        .arg(&config)
        .arg("--pid")
        .arg(file("keepalived.pid"))
        .arg("--vrrp_pid")
        .arg(file("vrrp.pid"));
    Peer::start(fw, "keepalived", keepalived)
}

/// The example's virtual addresses, with their interfaces.
fn virtual_addresses() -> Vec<(&'static str, &'static str)> {
    let (mut interface, mut all) = ("", Vec::new());
    for line in EXAMPLE.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("interface ") {
            interface = name;
        }
        let address = line.split('/').next().unwrap_or_default();
        if address.parse::<IpAddr>().is_ok() {
            all.push((interface, line));
        }
    }
    all
}

/// Takes the virtual addresses away from a firewall whose keepalived was
/// killed.
///
/// # Errors
/// If iproute2 can't be run.
pub fn forget_addresses(fw: &Namespace) -> Result<()> {
    for (interface, address) in virtual_addresses() {
        // One that it doesn't hold is no error.
        let args = ["addr", "del", address, "dev", interface];
        fw.finish(command("ip", &args))?;
    }
    Ok(())
}

/// True if a firewall holds the virtual addresses of both sides.
///
/// # Errors
/// With what iproute2 said.
pub fn is_active(fw: &Namespace) -> Result<bool> {
    let addresses = fw.run("ip", &["-br", "-4", "addr"])?;
    Ok([Side::Lan, Side::Wan]
        .map(|side| format!(" {}/", fw_address(side, Family::V4)))
        .iter()
        .all(|address| addresses.contains(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_used_with_other_programs() {
        let scripts = Scripts::ctsync("/bin/true --control /x");
        let one = configuration(Node::One, &scripts).unwrap();
        let two = configuration(Node::Two, &scripts).unwrap();
        assert!(one.contains("notify_master \"/bin/true --control /x primary\""));
        assert!(one.contains("priority 100") && two.contains("priority 90"));
        assert!(!one.contains("/usr/sbin"));
    }

    #[test]
    fn the_virtual_addresses_are_those_of_the_topology() {
        let all = virtual_addresses();
        for (interface, side) in [("lan", Side::Lan), ("wan", Side::Wan)] {
            let address = format!("{}/24", fw_address(side, Family::V4));
            assert!(all.contains(&(interface, address.as_str())), "{all:?}");
        }
    }
}
