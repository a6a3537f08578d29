//! Two firewalls' namespaces and the link between them.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use lab::names::NETNS_DIR;
use lab::netns::Namespace;
use lab::pair::Node;
use lab::topology::Family;
use nix::sched::{CloneFlags, setns};

/// `fw-1` and `fw-2`, with interface `sync` between them.
#[derive(Debug)]
pub struct Link {
    one: Namespace,
    two: Namespace,
}

impl Link {
    /// Builds them.
    ///
    /// # Errors
    /// Needs root.
    pub fn new() -> Result<Self> {
        let prefix = lab::names::unique();
        let link = Self {
            one: Namespace::new(&prefix, "fw-1")?,
            two: Namespace::new(&prefix, "fw-2")?,
        };
        let other = link.two.name();
        link.one.ip_batch(&format!(
            "link set lo up\nlink add sync type veth peer name sync netns {other}\n"
        ))?;
        for node in Node::BOTH {
            let address = address(node);
            link.at(node).ip_batch(&format!(
                "addr add {address}/24 dev sync\nlink set sync up\n"
            ))?;
        }
        Ok(link)
    }

    /// A firewall's namespace.
    pub fn at(&self, node: Node) -> &Namespace {
        match node {
            Node::One => &self.one,
            Node::Two => &self.two,
        }
    }

    /// Cuts the link, or mends it.
    ///
    /// # Errors
    /// With what iproute2 refused.
    pub fn set(&self, state: &str) -> Result<()> {
        self.one.ip_batch(&format!("link set sync {state}\n"))
    }

    /// Bytes that the link has carried, both ways, with Ethernet headers.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn bytes(&self) -> Result<u64> {
        let text = self.one.proc_net("dev")?;
        let line = text.lines().find_map(|l| l.trim().strip_prefix("sync:"));
        let fields: Vec<u64> = line
            .context("no interface sync")?
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let field = |i: usize| fields.get(i).copied().unwrap_or(0);
        Ok(field(0) + field(8))
    }

    /// Empties the kernel's tables: a namespace that goes with a full table
    /// is cleaned up by a kernel thread while the next measurement runs.
    ///
    /// # Errors
    /// If conntrack fails.
    pub fn flush(&self) -> Result<()> {
        for node in Node::BOTH {
            self.at(node).run("conntrack", &["-F"])?;
        }
        Ok(())
    }
}

/// Runs a closure in a namespace, on this thread: a netlink socket can't be
/// handed to another one.
///
/// # Errors
/// Needs root; else what the closure says.
pub fn inside<T>(at: &Namespace, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = fs::File::open("/proc/thread-self/ns/net")?;
    let other = fs::File::open(Path::new(NETNS_DIR).join(at.name()))?;
    setns(other, CloneFlags::CLONE_NEWNET)?;
    let value = body();
    setns(own, CloneFlags::CLONE_NEWNET)?;
    value
}

/// A firewall's address on the link.
pub fn address(node: Node) -> IpAddr {
    node.sync_address(Family::V4)
}

/// Connections in a namespace's table.
///
/// # Errors
/// If the kernel has no connection tracking.
pub fn connections(at: &Namespace) -> Result<u32> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    let text = at.enter(|| fs::read_to_string(path))?;
    Ok(text.trim().parse()?)
}

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";

/// Room for a million connections in two namespaces of one kernel; what was
/// set before comes back on drop.
#[derive(Debug)]
pub struct TableLimits([(&'static str, String); 2]);

impl TableLimits {
    /// Raises the limits.
    ///
    /// # Errors
    /// Needs root.
    pub fn raise() -> Result<Self> {
        // The table's own namespace may not have been used yet.
        let _ = Namespace::new(&lab::names::unique(), "load")?.run("conntrack", &["-L"]);
        let set = |path: &'static str, wanted: u64| -> Result<(&'static str, String)> {
            let old = fs::read_to_string(path).context(path)?;
            if old.trim().parse::<u64>()? < wanted {
                fs::write(path, wanted.to_string()).context(path)?;
            }
            Ok((path, old))
        };
        Ok(Self([set(MAX, 4 << 20)?, set(BUCKETS, 1 << 20)?]))
    }
}

impl Drop for TableLimits {
    fn drop(&mut self) {
        for (path, old) in &self.0 {
            if let Err(error) = fs::write(path, old) {
                eprintln!("bench: {path}: {error}");
            }
        }
    }
}
