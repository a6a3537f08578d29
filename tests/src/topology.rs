//! client – fw – server, each in its own namespace, IPv4 and IPv6.
//!
//! ```text
//!   client                    fw                     server
//!   10.0.1.2 ── lan: 10.0.1.1   wan: 10.0.2.1 ── 10.0.2.2
//!   fd00:1::2      fd00:1::1        fd00:2::1     fd00:2::2
//! ```
//!
//! The interfaces are `eth0` at the ends, `lan` and `wan` on the firewall.

use std::net::IpAddr;

use anyhow::Result;

use crate::names;
use crate::netns::Namespace;

/// Address family of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for loops.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The name nft has for it.
    #[must_use]
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// Length of the prefixes used on the laboratory's links.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A side of the firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the client is.
    Lan,
    /// Where the server is.
    Wan,
}

/// Address number `host` on a side of the firewall.
///
/// 1 is the firewall (the virtual address, if there are two), 2 the client
/// or server, 11 and 12 two firewalls' own.
#[must_use]
pub fn address(side: Side, family: Family, host: u8) -> IpAddr {
    let net = match side {
        Side::Lan => 1,
        Side::Wan => 2,
    };
    match family {
        Family::V4 => IpAddr::from([10, 0, net, host]),
        Family::V6 => IpAddr::from([0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)]),
    }
}

/// Address of the client.
#[must_use]
pub fn client_address(family: Family) -> IpAddr {
    address(Side::Lan, family, 2)
}

/// Address of the server.
#[must_use]
pub fn server_address(family: Family) -> IpAddr {
    address(Side::Wan, family, 2)
}

/// Address of the firewall on a side.
#[must_use]
pub fn fw_address(side: Side, family: Family) -> IpAddr {
    address(side, family, 1)
}

/// Three namespaces in a row.
#[derive(Debug)]
pub struct Topology {
    /// The FTP client's host.
    pub client: Namespace,
    /// The router between them; it forwards, and has no rules.
    pub fw: Namespace,
    /// The FTP server's host.
    pub server: Namespace,
}

impl Topology {
    /// Builds the namespaces, links, addresses and routes.
    ///
    /// # Errors
    /// With what iproute2 refused; needs root.
    pub fn new() -> Result<Self> {
        let prefix = names::unique();
        let topology = Self {
            client: Namespace::new(&prefix, "client")?,
            fw: Namespace::new(&prefix, "fw")?,
            server: Namespace::new(&prefix, "server")?,
        };
        topology.connect()?;
        Ok(topology)
    }

    /// As few processes as can be: under emulation each takes its time.
    fn connect(&self) -> Result<()> {
        let to_client = veth_line("eth0", &self.fw, "lan");
        let to_server = veth_line("eth0", &self.fw, "wan");
        self.client.ip_batch(&(to_client + &end_host(Side::Lan)))?;
        self.server.ip_batch(&(to_server + &end_host(Side::Wan)))?;
        let lan = attach("lan", Side::Lan, 1);
        let wan = attach("wan", Side::Wan, 1);
        self.fw.ip_batch(&format!("{LOOPBACK}{lan}{wan}"))?;
        forwarding(&self.fw)
    }
}

/// Line of `ip -batch` that brings the loopback up.
pub(crate) const LOOPBACK: &str = "link set lo up\n";

/// Line of `ip -batch` that makes a veth pair between the namespace it runs
/// in and another; both ends are still down.
pub(crate) fn veth_line(here: &str, other: &Namespace, there: &str) -> String {
    let other = other.name();
    format!("link add {here} type veth peer name {there} netns {other}\n")
}

/// Lines of `ip -batch` that bring an interface up with an address of each
/// family.
pub(crate) fn attach(interface: &str, side: Side, host: u8) -> String {
    let mut lines = format!("link set {interface} up\n");
    for family in Family::BOTH {
        let address = address(side, family, host);
        let length = family.prefix_len();
        // "nodad" is for IPv6; IPv4 ignores it.
        lines += &format!("addr add {address}/{length} dev {interface} nodad\n");
    }
    lines
}

/// Lines for client or server: host 2 on its side, default route through
/// host 1.
pub(crate) fn end_host(side: Side) -> String {
    let mut lines = LOOPBACK.to_owned() + &attach("eth0", side, 2);
    for family in Family::BOTH {
        lines += &format!("route add default via {}\n", fw_address(side, family));
    }
    lines
}

/// Makes a namespace a router for both families.
pub(crate) fn forwarding(namespace: &Namespace) -> Result<()> {
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_picture() {
        let shown = |side, family, host| address(side, family, host).to_string();
        assert_eq!(shown(Side::Lan, Family::V4, 2), "10.0.1.2");
        assert_eq!(shown(Side::Wan, Family::V4, 1), "10.0.2.1");
        assert_eq!(shown(Side::Lan, Family::V6, 1), "fd00:1::1");
        assert_eq!(shown(Side::Wan, Family::V6, 12), "fd00:2::c");
    }
}
