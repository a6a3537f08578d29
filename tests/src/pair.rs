//! client – {fw-1, fw-2} – server: the fault-tolerant pair.
//!
//! ```text
//!                 ┌── lan fw-1 wan ──┐
//!   client ─ br-lan       │ sync    br-wan ─ server
//!                 └── lan fw-2 wan ──┘
//! ```
//!
//! Client and server route through host 1 of their side, the virtual
//! address, which whoever is active holds (by [`Pair::activate`], or a VRRP
//! daemon). The firewalls' own addresses are hosts 11 and 12; the sync link
//! is 10.0.3.0/24 and fd00:3::/64 with the same host numbers. The bridges
//! are in a namespace of their own, `switch`.

use std::net::IpAddr;

use anyhow::Result;

use crate::names;
use crate::netns::Namespace;
use crate::topology::{self, Family, LOOPBACK, Side, end_host, forwarding, veth_line};

/// One of the two firewalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// fw-1.
    One,
    /// fw-2.
    Two,
}

impl Node {
    /// Both, for loops.
    pub const BOTH: [Self; 2] = [Self::One, Self::Two];

    /// The other one.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two => Self::One,
        }
    }

    /// Its host number on every link.
    #[must_use]
    pub fn host(self) -> u8 {
        match self {
            Self::One => 11,
            Self::Two => 12,
        }
    }

    /// Its address on the sync link.
    #[must_use]
    pub fn sync_address(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([10, 0, 3, self.host()]),
            Family::V6 => IpAddr::from([0xfd00, 3, 0, 0, 0, 0, 0, u16::from(self.host())]),
        }
    }
}

/// Five namespaces: the ends, the firewalls, and the switch between them.
#[derive(Debug)]
pub struct Pair {
    /// The FTP client's host.
    pub client: Namespace,
    /// First firewall.
    pub fw_1: Namespace,
    /// Second firewall.
    pub fw_2: Namespace,
    /// The FTP server's host.
    pub server: Namespace,
    /// Holds the bridges `br-lan` and `br-wan`; ports `client`, `server`,
    /// `lan1`, `lan2`, `wan1`, `wan2`.
    pub switch: Namespace,
}

impl Pair {
    /// Builds everything; neither firewall holds the virtual addresses yet.
    ///
    /// # Errors
    /// With what iproute2 refused; needs root.
    pub fn new() -> Result<Self> {
        let prefix = names::unique();
        let pair = Self {
            client: Namespace::new(&prefix, "client")?,
            fw_1: Namespace::new(&prefix, "fw-1")?,
            fw_2: Namespace::new(&prefix, "fw-2")?,
            server: Namespace::new(&prefix, "server")?,
            switch: Namespace::new(&prefix, "switch")?,
        };
        pair.wire()?;
        pair.address()?;
        Ok(pair)
    }

    /// The namespace of a firewall.
    #[must_use]
    pub fn fw(&self, node: Node) -> &Namespace {
        match node {
            Node::One => &self.fw_1,
            Node::Two => &self.fw_2,
        }
    }

    /// Moves the virtual addresses to a firewall, as VRRP would, and makes
    /// the neighbours forget where they were.
    ///
    /// # Errors
    /// With what iproute2 refused.
    pub fn activate(&self, node: Node) -> Result<()> {
        // The other one may not hold them: that is no error.
        let _ = self.deactivate(node.peer());
        self.fw(node).ip_batch(&virtual_addresses("replace"))?;
        for end in [&self.client, &self.server] {
            end.ip_batch("neigh flush dev eth0\n")?;
        }
        Ok(())
    }

    /// Takes the virtual addresses from a firewall.
    ///
    /// # Errors
    /// If it doesn't hold them.
    pub fn deactivate(&self, node: Node) -> Result<()> {
        self.fw(node).ip_batch(&virtual_addresses("del"))
    }

    /// Pulls a firewall's cables, also the sync link.
    ///
    /// # Errors
    /// With what iproute2 refused.
    pub fn unplug(&self, node: Node) -> Result<()> {
        self.set_links(node, "down")
    }

    /// Plugs a firewall's cables in again.
    ///
    /// # Errors
    /// With what iproute2 refused.
    pub fn plug(&self, node: Node) -> Result<()> {
        self.set_links(node, "up")
    }

    /// The far ends are set, so that the firewall keeps its addresses and
    /// sees its carrier go, as with a real cable.
    fn set_links(&self, node: Node, state: &str) -> Result<()> {
        let n = port_number(node);
        self.switch.ip_batch(&format!(
            "link set lan{n} {state}\nlink set wan{n} {state}\n"
        ))?;
        self.fw(node.peer())
            .ip_batch(&format!("link set sync {state}\n"))?;
        if state == "up" {
            // An interface that went down has lost its IPv6 address.
            let sync = attach_sync(node.peer(), "replace");
            self.fw(node.peer()).ip_batch(&sync)?;
        }
        Ok(())
    }

    fn wire(&self) -> Result<()> {
        let switch = &self.switch;
        let mut lines = LOOPBACK.to_owned();
        lines += "link add br-lan type bridge\nlink add br-wan type bridge\n";
        lines += &veth_line("client", &self.client, "eth0");
        lines += &veth_line("server", &self.server, "eth0");
        for node in Node::BOTH {
            let n = port_number(node);
            lines += &veth_line(&format!("lan{n}"), self.fw(node), "lan");
            lines += &veth_line(&format!("wan{n}"), self.fw(node), "wan");
        }
        switch.ip_batch(&(lines + &switch_ports()))?;
        self.fw_1.ip_batch(&veth_line("sync", &self.fw_2, "sync"))
    }

    fn address(&self) -> Result<()> {
        self.client.ip_batch(&end_host(Side::Lan))?;
        self.server.ip_batch(&end_host(Side::Wan))?;
        for node in Node::BOTH {
            let fw = self.fw(node);
            let lan = topology::attach("lan", Side::Lan, node.host());
            let wan = topology::attach("wan", Side::Wan, node.host());
            let sync = attach_sync(node, "add");
            fw.ip_batch(&format!("{LOOPBACK}{lan}{wan}link set sync up\n{sync}"))?;
            forwarding(fw)?;
        }
        Ok(())
    }
}

/// Number of a firewall's ports on the switch.
fn port_number(node: Node) -> u8 {
    match node {
        Node::One => 1,
        Node::Two => 2,
    }
}

/// Lines that put every port of the switch into its bridge.
fn switch_ports() -> String {
    let mut lines = String::from("link set br-lan up\nlink set br-wan up\n");
    for (bridge, ports) in [
        ("br-lan", ["client", "lan1", "lan2"]),
        ("br-wan", ["server", "wan1", "wan2"]),
    ] {
        for port in ports {
            lines += &format!("link set {port} master {bridge} up\n");
        }
    }
    lines
}

/// Lines that `verb` (add, replace) the sync link's addresses.
fn attach_sync(node: Node, verb: &str) -> String {
    Family::BOTH
        .map(|family| {
            let address = node.sync_address(family);
            let length = family.prefix_len();
            format!("addr {verb} {address}/{length} dev sync nodad\n")
        })
        .concat()
}

/// Lines that `verb` (replace, del) the virtual addresses.
fn virtual_addresses(verb: &str) -> String {
    let mut lines = String::new();
    for (interface, side) in [("lan", Side::Lan), ("wan", Side::Wan)] {
        for family in Family::BOTH {
            let address = topology::fw_address(side, family);
            let length = family.prefix_len();
            let nodad = if verb == "del" { "" } else { " nodad" };
            lines += &format!("addr {verb} {address}/{length} dev {interface}{nodad}\n");
        }
    }
    lines
}
