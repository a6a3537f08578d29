//! The scene of the failover: client, two firewalls, server.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::check::{self, sha256};
use lab::ftp::server::{FILE, Program, Server};
use lab::netns::Namespace;
use lab::pair::{Node, Pair};
use lab::topology::{Family, Side, address};
use lab::vrrp;
use tempfile::TempDir;

/// A file that takes a while.
#[derive(Debug, Clone, Copy)]
pub struct Large {
    /// What the server calls it.
    pub name: &'static str,
    /// Bytes.
    pub length: u64,
}

/// Is being downloaded while fw-1 dies.
pub const DYING: Large = Large {
    name: "large.bin",
    length: 200_000_000,
};
/// Is being downloaded while fw-2 hands over.
pub const HANDOVER: Large = Large {
    name: "medium.bin",
    length: 120_000_000,
};
/// The server sends no faster than this: so that a download can't be over
/// before the firewall has died. Bytes per second.
const RATE: usize = 25_000_000;

/// The pair's policy: that of examples/ for the laboratory's interfaces.
const POLICY: &str = include_str!("../../../../examples/ruleset-pair.toml");

/// Everything but the firewalls' software.
pub struct Scene {
    /// Before the namespaces, so that it ends first.
    pub server: Server,
    /// The namespaces.
    pub pair: Pair,
    /// For configurations.
    pub dir: TempDir,
    sums: Vec<(&'static str, String)>,
}

impl Scene {
    /// Builds it. Neither firewall holds the virtual addresses yet.
    pub fn new() -> Result<Self> {
        let pair = Pair::new()?;
        for node in Node::BOTH {
            own_address_apart(pair.fw(node), node)?;
        }
        let rate = format!("-oanon_max_rate={RATE}");
        let more = [&rate, "-opasv_min_port=40000", "-opasv_max_port=40003"];
        let server = Server::start_with(Program::Vsftpd, &pair.server, &more)?;
        let tree = &server.tree;
        let mut sums = vec![(FILE, sha256(&tree.file())?)];
        for large in [DYING, HANDOVER] {
            let path = tree.root().join(large.name);
            let path = check::write_readable(path, &random(large.length)?)?;
            sums.push((large.name, sha256(&path)?));
        }
        Ok(Self {
            server,
            pair,
            dir: TempDir::new()?,
            sums,
        })
    }

    /// Fails unless a fetched file is the published one; its checksum.
    pub fn same(&self, name: &str, local: &std::path::Path) -> Result<String> {
        let published = self.sums.iter().find(|(n, _)| *n == name);
        let (_, wanted) = published.context("no such file")?;
        let sum = sha256(local)?;
        ensure!(sum == *wanted, "{name}: sha256 {sum}, published {wanted}");
        fs::remove_file(local)?;
        Ok(sum)
    }

    /// Connections the server has accepted on port 21: who from.
    pub fn logins(&self) -> Vec<String> {
        let log = self.server.log();
        let lines = log.lines().filter(|line| line.contains("CONNECT: Client"));
        let from = lines.filter_map(|line| Some(line.split('"').nth(1)?.to_owned()));
        from.collect()
    }

    /// Writes the policy for `nft-ftp-ruleset`; `helper` is the helper's type
    /// and number of queues.
    pub fn policy(&self, helper: &str) -> Result<PathBuf> {
        let mut policy = POLICY.to_owned();
        let own = Node::BOTH.map(|node| {
            [Side::Lan, Side::Wan]
                .map(|side| address(side, Family::V4, node.host()))
                .into_iter()
                .chain([node.sync_address(Family::V4)])
                .map(|address| format!("\"{address}\""))
                .collect::<Vec<_>>()
                .join(", ")
        });
        for (old, new) in [
            ("\"192.168.255.0/30\"", own.join(", ").as_str()),
            (
                "\"10.0.0.0/8\", \"fd00::/8\"",
                "\"10.0.1.0/24\", \"fd00:1::/64\"",
            ),
            ("\"eth0\"", "\"wan\""),
            ("\"eth1\"", "\"lan\""),
            ("\"eth2\"", "\"sync\""),
            ("queues = 2\n", helper),
        ] {
            ensure!(policy.contains(old), "no {old} in ruleset-pair.toml");
            policy = policy.replace(old, new);
        }
        let path = self.dir.path().join("ruleset.toml");
        fs::write(&path, policy)?;
        Ok(path)
    }

    /// The power goes: every process is gone, and the links lose their
    /// carrier. In this order, so that nobody there sees the links go and has
    /// a last word.
    pub fn power_off(&self, node: Node) -> Result<()> {
        self.pair.fw(node).kill_all()?;
        self.pair.unplug(node)
    }

    /// The power is back: links, and nothing of what was in memory.
    pub fn power_on(&self, node: Node) -> Result<()> {
        let fw = self.pair.fw(node);
        vrrp::forget_addresses(fw)?;
        fw.run("nft", &["flush", "ruleset"])?;
        fw.run("conntrack", &["-F"])?;
        let left = fw.run("conntrack", &["-L", "expect"])?;
        ensure!(left.is_empty(), "expectations are left: {left}");
        self.pair.plug(node)
    }
}

/// `masquerade` takes the interface's first address in the next hop's
/// network: that has to be the virtual one, which the other firewall will
/// have. So the firewalls' own addresses are outside that network.
fn own_address_apart(fw: &Namespace, node: Node) -> Result<()> {
    let own = address(Side::Wan, Family::V4, node.host());
    fw.ip_batch(&format!(
        "addr del {own}/24 dev wan\naddr add {own}/32 dev wan\n"
    ))
}

/// Random bytes: from the kernel, which is faster at it under emulation.
fn random(length: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open("/dev/urandom")?
        .take(length)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
