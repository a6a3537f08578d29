//! ctsync on any number of nodes, and on any number of links between them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::Finished;
use crate::names;
use crate::netns::Namespace;
use crate::nodes::PORT;
use crate::peer::Peer;
use crate::programs::built;
use crate::wait::until;

const SOON: Duration = Duration::from_secs(40);

/// Any number of nodes, each on every link, which is a switch of its own.
#[derive(Debug)]
pub struct Cluster {
    /// Holds the bridges; node n's port on link m is `n<n>l<m>`.
    pub switch: Namespace,
    nodes: Vec<Namespace>,
    /// Public keys.
    keys: Vec<String>,
    links: usize,
    extra: String,
    dir: TempDir,
}

impl Cluster {
    /// Each node knows all others. `extra` goes to the top of each
    /// configuration.
    ///
    /// # Errors
    /// With what iproute2 or ctsync refused.
    pub fn new(nodes: usize, links: usize, extra: &str) -> Result<Self> {
        let prefix = names::unique();
        let mut this = Self {
            switch: Namespace::new(&prefix, "switch")?,
            nodes: (0..nodes)
                .map(|n| Namespace::new(&prefix, &format!("fw-{n}")))
                .collect::<Result<_>>()?,
            keys: Vec::new(),
            links,
            extra: extra.to_owned(),
            dir: tempfile::tempdir()?,
        };
        for link in 0..links {
            this.wire(link)?;
        }
        for n in 0..nodes {
            let key = ctsync(&["keygen", &this.file(n, "key")])?.success()?;
            this.keys.push(key.trim().to_owned());
        }
        let all: Vec<usize> = (0..nodes).collect();
        for n in 0..nodes {
            this.configure(n, &all)?;
        }
        Ok(this)
    }

    fn wire(&self, link: usize) -> Result<()> {
        let mut lines = format!("link add br{link} type bridge\nlink set br{link} up\n");
        for (n, node) in self.nodes.iter().enumerate() {
            lines += &format!(
                "link add n{n}l{link} type veth peer name l{link} netns {}\n\
                 link set n{n}l{link} master br{link} up\n",
                node.name()
            );
        }
        self.switch.ip_batch(&lines)?;
        for (n, node) in self.nodes.iter().enumerate() {
            node.ip_batch(&format!(
                "link set lo up\nlink set l{link} up\naddr add {}/24 dev l{link}\n",
                address(n, link)
            ))?;
        }
        Ok(())
    }

    /// Writes the configuration of node `n`, with these peers, itself left out.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn configure(&self, n: usize, peers: &[usize]) -> Result<()> {
        let mut text = format!(
            "node = \"fw-{n}\"\nprivate-key = \"{}\"\ncontrol = \"{}\"\n{}\n",
            self.file(n, "key"),
            self.file(n, "sock"),
            self.extra
        );
        for link in 0..self.links {
            text += &format!("[[link]]\nbind = \"{}:{PORT}\"\n", address(n, link));
        }
        for peer in peers.iter().filter(|p| **p != n) {
            let key = self.keys.get(*peer).context("no such node")?;
            let ends: Vec<_> = (0..self.links)
                .map(|link| format!("\"{}:{PORT}\"", address(*peer, link)))
                .collect();
            text += &format!(
                "[[peer]]\nname = \"fw-{peer}\"\npublic-key = \"{key}\"\nendpoints = [{}]\n",
                ends.join(", ")
            );
        }
        Ok(std::fs::write(self.file(n, "toml"), text)?)
    }

    /// Where node `n` has its file of a kind: `key`, `toml`, `sock`.
    #[must_use]
    pub fn file(&self, n: usize, what: &str) -> String {
        let path = self.dir.path().join(format!("fw-{n}.{what}"));
        path.display().to_string()
    }

    /// Where a node is.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn node(&self, n: usize) -> Result<&Namespace> {
        self.nodes.get(n).context("no such node")
    }

    /// Starts a node's daemon and waits until it is ready.
    ///
    /// # Errors
    /// With its log.
    pub fn start(&self, n: usize) -> Result<Peer> {
        let mut command = Command::new(built("ctsync")?);
        command.args(["run", "--config", &self.file(n, "toml")]);
        let mut peer = Peer::start(self.node(n)?, &format!("fw-{n}"), command)?;
        peer.wait_for_line("ready")?;
        Ok(peer)
    }

    /// Runs a command of the client at a node.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn ask(&self, n: usize, args: &[&str]) -> Result<Finished> {
        let control = self.file(n, "sock");
        ctsync(&[&["--control", control.as_str()], args].concat())
    }

    /// `status --json`.
    ///
    /// # Errors
    /// If the node doesn't answer.
    pub fn status(&self, n: usize) -> Result<Value> {
        let text = self.ask(n, &["status", "--json"])?.success()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What node `n` says of its peer.
    ///
    /// # Errors
    /// If it does not know it.
    pub fn peer(&self, n: usize, peer: usize) -> Result<Value> {
        let status = self.status(n)?;
        let peers = status.pointer("/peers").and_then(Value::as_array);
        let name = format!("fw-{peer}");
        let found = peers
            .context("peers")?
            .iter()
            .find(|p| p.get("name").and_then(Value::as_str) == Some(&name));
        found.cloned().context("no such peer")
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// With all nodes' status.
    pub fn wait_for(&self, what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
        let waited = until(what, SOON, || holds().unwrap_or(false).then_some(()));
        waited.with_context(|| {
            let all: Vec<_> = (0..self.nodes.len()).map(|n| self.status(n)).collect();
            format!("{all:?}")
        })
    }

    /// Waits until node `at` has a complete copy of `flows` connections.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_copy(&self, at: usize, of: usize, flows: u64) -> Result<()> {
        self.wait_for(
            &format!("{flows} connections of fw-{of} at fw-{at}"),
            || {
                let p = self.peer(at, of)?;
                Ok(p.get("flows") == Some(&flows.into())
                    && p.get("copy_synced") == Some(&true.into()))
            },
        )
    }

    /// Waits until node `n` has a role.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_role(&self, n: usize, role: &str) -> Result<()> {
        self.wait_for(&format!("fw-{n} to be {role}"), || {
            Ok(self.status(n)?.pointer("/role") == Some(&role.into()))
        })
    }

    /// Waits until nodes are in sync with all their peers.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_synced(&self, nodes: &[usize]) -> Result<()> {
        for n in nodes {
            self.wait_for(&format!("fw-{n} in sync"), || {
                Ok(self.status(*n)?.pointer("/in_sync") == Some(&true.into()))
            })?;
        }
        Ok(())
    }

    /// Which link node `n` uses to its peer.
    ///
    /// # Errors
    /// As [`Self::peer`].
    pub fn link_in_use(&self, n: usize, peer: usize) -> Result<Option<usize>> {
        let p = self.peer(n, peer)?;
        let links = p.get("links").and_then(Value::as_array).context("links")?;
        Ok(links
            .iter()
            .position(|l| l.get("active") == Some(&true.into())))
    }
}

/// Address of a node on a link.
#[must_use]
pub fn address(node: usize, link: usize) -> String {
    format!("10.{}.0.{}", 30 + link, 10 + node)
}

/// Runs ctsync.
///
/// # Errors
/// If it isn't built or doesn't end.
pub fn ctsync(args: &[&str]) -> Result<Finished> {
    crate::nodes::run(args)
}
