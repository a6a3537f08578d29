//! ctsync on both firewalls of a [`Pair`].

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{self, Finished};
use crate::firewall::{DEFAULT_DROP, KERNEL_HELPER, Nat, nat_rules};
use crate::pair::{Node, Pair};
use crate::peer::Peer;
use crate::programs::built;
use crate::topology::Family;
use crate::wait::{patience, until};

/// Port of the link.
pub const PORT: u16 = 3780;

/// Two configured nodes; none runs yet.
#[derive(Debug)]
pub struct Nodes {
    dir: TempDir,
    /// Programs of fw-1 and fw-2, if they are other ones than the one built.
    other: [Option<PathBuf>; 2],
    /// What comes before them on the command line of the daemon.
    by: Vec<String>,
}

impl Nodes {
    /// Makes keys and configurations. `extra` goes to the top of each.
    ///
    /// # Errors
    /// If ctsync isn't built or refuses.
    pub fn new(link: &dyn Fn(Node) -> (SocketAddr, SocketAddr), extra: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let this = Self {
            dir,
            other: [None, None],
            by: Vec::new(),
        };
        let mut public = Vec::new();
        for node in Node::BOTH {
            let key = this.file(node, "key");
            let args = ["keygen", key.to_str().context("path")?];
            let made = run(&args)?.success()?;
            public.push(made.trim().to_owned());
        }
        for (node, key) in Node::BOTH.iter().zip(public.iter().rev()) {
            let (bind, endpoint) = link(*node);
            let config = format!(
                "node = \"{}\"\nprivate-key = \"{}\"\ncontrol = \"{}\"\n{extra}\n\
                 [[link]]\nbind = \"{bind}\"\n\
                 [[peer]]\nname = \"{}\"\npublic-key = \"{key}\"\nendpoints = [\"{endpoint}\"]\n",
                name(*node),
                this.file(*node, "key").display(),
                this.control(*node).display(),
                name(node.peer()),
            );
            std::fs::write(this.file(*node, "toml"), config)?;
        }
        Ok(this)
    }

    /// As [`Self::new`], on the sync link of a [`Pair`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with(extra: &str) -> Result<Self> {
        let end = |node: Node| SocketAddr::new(node.sync_address(Family::V4), PORT);
        Self::new(&|node| (end(node), end(node.peer())), extra)
    }

    /// From now on a node's daemon and client are another build.
    pub fn set_program(&mut self, node: Node, program: Option<&Path>) {
        if let Some(place) = self.other.get_mut(node as usize) {
            *place = program.map(Path::to_owned);
        }
    }

    /// From now on daemons are started by another program, which must leave its
    /// place to them.
    pub fn start_by(&mut self, line: &[&str]) {
        self.by = line.iter().map(|&word| word.to_owned()).collect();
    }

    fn program(&self, node: Node) -> Result<PathBuf> {
        match self.other.get(node as usize) {
            Some(Some(other)) => Ok(other.clone()),
            _ => built("ctsync"),
        }
    }

    /// Where a node has its file of a kind: `key`, `toml`, or one of the test's.
    #[must_use]
    pub fn file(&self, node: Node, what: &str) -> PathBuf {
        self.dir.path().join(format!("{}.{what}", name(node)))
    }

    /// A node's control socket.
    #[must_use]
    pub fn control(&self, node: Node) -> PathBuf {
        self.file(node, "sock")
    }

    /// Starts a node's daemon and waits until it is ready.
    ///
    /// # Errors
    /// With its log.
    pub fn start(&self, pair: &Pair, node: Node) -> Result<Peer> {
        let mut peer = self.spawn(pair, node)?;
        peer.wait_for_line("ready")?;
        Ok(peer)
    }

    /// Starts both nodes' daemons and waits until they are in sync.
    ///
    /// # Errors
    /// With a log or a status.
    pub fn start_both(&self, pair: &Pair) -> Result<[Peer; 2]> {
        let one = self.start(pair, Node::One)?;
        let two = self.start(pair, Node::Two)?;
        self.wait_synced()?;
        Ok([one, two])
    }

    /// Starts a node's daemon.
    ///
    /// # Errors
    /// If ctsync isn't built.
    pub fn spawn(&self, pair: &Pair, node: Node) -> Result<Peer> {
        let config = self.file(node, "toml");
        let config = config.to_str().context("path")?;
        let program = self.program(node)?;
        let mut line = self.by.iter().map(AsRef::as_ref);
        let mut command = match line.next() {
            Some(first) => Command::new::<&OsStr>(first),
            None => Command::new(&program),
        };
        if !self.by.is_empty() {
            command.args(line).arg(&program);
        }
        command.args(["run", "--config", config]);
        Peer::start(pair.fw(node), name(node), command)
    }

    /// Runs a command of the client at a node.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn ctsync(&self, node: Node, args: &[&str]) -> Result<Finished> {
        let control = self.control(node);
        let mut all = vec!["--control", control.to_str().context("path")?];
        all.extend_from_slice(args);
        let mut command = Command::new(self.program(node)?);
        command.args(all);
        command::run(command, Duration::from_secs(120))
    }

    /// `status --json`.
    ///
    /// # Errors
    /// If the node doesn't answer.
    pub fn status(&self, node: Node) -> Result<Value> {
        let text = self.ctsync(node, &["status", "--json"])?.success()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A number of the status by JSON pointer.
    ///
    /// # Errors
    /// If there is none.
    pub fn number(&self, node: Node, pointer: &str) -> Result<u64> {
        let status = self.status(node)?;
        let value = status.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("no {pointer} in {status}"))
    }

    /// Waits until both nodes say that they are in sync with each other.
    ///
    /// # Errors
    /// With the last status.
    pub fn wait_synced(&self) -> Result<()> {
        for node in Node::BOTH {
            let mut last = Value::Null;
            let synced = until("nodes in sync", patience(), || {
                last = self.status(node).ok()?;
                let up = last.pointer("/peers/0/synced")? == &Value::Bool(true);
                (up && last.pointer("/in_sync")? == &Value::Bool(true)).then_some(())
            });
            synced.with_context(|| last.to_string())?;
        }
        Ok(())
    }

    /// The entries of a cache, as sorted lines without their timeouts.
    ///
    /// # Errors
    /// If the node doesn't answer.
    pub fn entries(&self, node: Node, args: &[&str]) -> Result<Vec<String>> {
        let mut all = vec!["show"];
        all.extend_from_slice(args);
        all.push("--json");
        let text = self.ctsync(node, &all)?.success()?;
        let mut lines = Vec::new();
        for line in text.lines() {
            let mut value: Value = serde_json::from_str(line)?;
            if let Some(object) = value.as_object_mut() {
                object.remove("timeout");
            }
            lines.push(value.to_string());
        }
        lines.sort();
        Ok(lines)
    }

    /// Waits until the peer's cache equals what `node` owns.
    ///
    /// # Errors
    /// With how many each had.
    pub fn wait_mirrored(&self, node: Node) -> Result<()> {
        let mut both = (0, 0);
        let same = until("equal caches", patience(), || {
            for kind in [&[][..], &["--expectations"]] {
                let own = [&["internal"], kind].concat();
                let copy = [&["external"], kind].concat();
                let own = self.entries(node, &own).ok()?;
                let copy = self.entries(node.peer(), &copy).ok()?;
                both = (own.len(), copy.len());
                if own != copy {
                    return None;
                }
            }
            Some(())
        });
        same.with_context(|| format!("{} own, {} copied", both.0, both.1))
    }
}

/// Name of a node.
#[must_use]
pub fn name(node: Node) -> &'static str {
    match node {
        Node::One => "fw-1",
        Node::Two => "fw-2",
    }
}

/// Runs ctsync.
///
/// # Errors
/// If it isn't built or doesn't end.
pub fn run(args: &[&str]) -> Result<Finished> {
    let mut command = Command::new(built("ctsync")?);
    command.args(args);
    command::run(command, Duration::from_secs(120))
}

/// Loads the tests' firewall with the kernel's FTP helper at both nodes. A
/// connection that was not committed is not picked up from its middle.
///
/// # Errors
/// With what nft said.
pub fn load_rules(pair: &Pair, nat: Nat) -> Result<()> {
    for node in Node::BOTH {
        pair.fw(node)
            .sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        pair.fw(node).nft(DEFAULT_DROP)?;
        pair.fw(node).nft(KERNEL_HELPER)?;
        pair.fw(node).nft(&nat_rules(nat))?;
    }
    Ok(())
}
