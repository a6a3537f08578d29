//! ctsync with more than one link and more than two nodes.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::{self, Finished};
use lab::inject::{Act, inject_in, injected};
use lab::names;
use lab::netns::Namespace;
use lab::peer::Peer;
use lab::programs::built;
use lab::require::Need;
use lab::wait::until;
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(40);
const PORT: u16 = 3780;

/// Any number of nodes on links `a`, `b`, ..., each a switch of its own.
struct Cluster {
    switch: Namespace,
    nodes: Vec<Namespace>,
    dir: TempDir,
}

impl Cluster {
    /// `extra` goes to the top of each configuration.
    fn new(nodes: usize, links: usize, extra: &str) -> Result<Self> {
        let prefix = names::unique();
        let this = Self {
            switch: Namespace::new(&prefix, "switch")?,
            nodes: (0..nodes)
                .map(|n| Namespace::new(&prefix, &format!("fw-{n}")))
                .collect::<Result<_>>()?,
            dir: tempfile::tempdir()?,
        };
        for link in 0..links {
            this.wire(link)?;
        }
        this.configure(links, extra)?;
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

    fn configure(&self, links: usize, extra: &str) -> Result<()> {
        let mut keys = Vec::new();
        for n in 0..self.nodes.len() {
            let key = self.file(n, "key");
            keys.push(ctsync(&["keygen", &key])?.success()?.trim().to_owned());
        }
        for n in 0..self.nodes.len() {
            let mut text = format!(
                "node = \"fw-{n}\"\nprivate-key = \"{}\"\ncontrol = \"{}\"\n{extra}\n",
                self.file(n, "key"),
                self.file(n, "sock")
            );
            for link in 0..links {
                text += &format!("[[link]]\nbind = \"{}:{PORT}\"\n", address(n, link));
            }
            for (peer, key) in keys.iter().enumerate().filter(|(p, _)| *p != n) {
                let ends: Vec<_> = (0..links)
                    .map(|link| format!("\"{}:{PORT}\"", address(peer, link)))
                    .collect();
                text += &format!(
                    "[[peer]]\nname = \"fw-{peer}\"\npublic-key = \"{key}\"\nendpoints = [{}]\n",
                    ends.join(", ")
                );
            }
            std::fs::write(self.file(n, "toml"), text)?;
        }
        Ok(())
    }

    fn file(&self, n: usize, what: &str) -> String {
        let path = self.dir.path().join(format!("fw-{n}.{what}"));
        path.display().to_string()
    }

    fn node(&self, n: usize) -> Result<&Namespace> {
        self.nodes.get(n).context("no such node")
    }

    fn start(&self, n: usize) -> Result<Peer> {
        let mut command = Command::new(built("ctsync")?);
        command.args(["run", "--config", &self.file(n, "toml")]);
        let mut peer = Peer::start(self.node(n)?, &format!("fw-{n}"), command)?;
        peer.wait_for_line("ready")?;
        Ok(peer)
    }

    fn ask(&self, n: usize, args: &[&str]) -> Result<Finished> {
        let control = self.file(n, "sock");
        ctsync(&[&["--control", control.as_str()], args].concat())
    }

    fn status(&self, n: usize) -> Result<Value> {
        let text = self.ask(n, &["status", "--json"])?.success()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What node `n` says of its peer.
    fn peer(&self, n: usize, peer: usize) -> Result<Value> {
        let status = self.status(n)?;
        let peers = status.pointer("/peers").and_then(Value::as_array);
        let name = format!("fw-{peer}");
        let found = peers
            .context("peers")?
            .iter()
            .find(|p| p.get("name").and_then(Value::as_str) == Some(&name));
        found.cloned().context("no such peer")
    }

    fn wait_for(&self, what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
        let waited = until(what, SOON, || holds().unwrap_or(false).then_some(()));
        waited.with_context(|| {
            let all: Vec<_> = (0..self.nodes.len()).map(|n| self.status(n)).collect();
            format!("{all:?}")
        })
    }

    /// Waits until node `at` has a complete copy of `flows` connections.
    fn wait_copy(&self, at: usize, of: usize, flows: u64) -> Result<()> {
        self.wait_for(
            &format!("{flows} connections of fw-{of} at fw-{at}"),
            || {
                let p = self.peer(at, of)?;
                Ok(p.get("flows") == Some(&flows.into())
                    && p.get("copy_synced") == Some(&true.into()))
            },
        )
    }

    /// Which link node `n` uses to its peer.
    fn link_in_use(&self, n: usize, peer: usize) -> Result<Option<usize>> {
        let p = self.peer(n, peer)?;
        let links = p.get("links").and_then(Value::as_array).context("links")?;
        Ok(links
            .iter()
            .position(|l| l.get("active") == Some(&true.into())))
    }
}

fn address(node: usize, link: usize) -> String {
    format!("10.{}.0.{}", 30 + link, 10 + node)
}

fn ctsync(args: &[&str]) -> Result<Finished> {
    let mut command = Command::new(built("ctsync")?);
    command.args(args);
    command::run(command, Duration::from_secs(120))
}

/// The cable of the first link is pulled, then the first link passes nothing
/// in one direction although its cable is in.
#[test]
fn mirroring_goes_on_over_the_other_link() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(2, 2, "peer-timeout = \"2s\"")?;
    let _zero = c.start(0)?;
    let _one = c.start(1)?;
    inject_in(c.node(0)?, 0, 1000, Act::Create)?;
    c.wait_copy(1, 0, 1000)?;
    c.wait_for("the first link in use", || {
        Ok(c.link_in_use(0, 1)? == Some(0))
    })?;

    c.switch.ip_batch("link set n0l0 down\n")?;
    c.wait_for("the second link in use at both", || {
        Ok(c.link_in_use(0, 1)? == Some(1) && c.link_in_use(1, 0)? == Some(1))
    })?;
    ensure!(
        c.peer(1, 0)?.get("state") == Some(&"up".into()),
        "it was down"
    );
    inject_in(c.node(0)?, 0, 500, Act::Delete)?;
    inject_in(c.node(0)?, 1000, 2000, Act::Create)?;
    c.wait_copy(1, 0, 1500)?;

    c.switch.ip_batch("link set n0l0 up\n")?;
    c.wait_for("the first link in use again", || {
        Ok(c.link_in_use(0, 1)? == Some(0) && c.link_in_use(1, 0)? == Some(0))
    })?;
    inject_in(c.node(0)?, 500, 1000, Act::Delete)?;
    c.wait_copy(1, 0, 1000)?;

    c.node(1)?.nft(
        "table ip deaf {\n\tchain input {\n\t\ttype filter hook input priority 0; policy accept;\n\
         \t\tiifname l0 drop\n\t}\n}\n",
    )?;
    inject_in(c.node(0)?, 1000, 1500, Act::Delete)?;
    c.wait_copy(1, 0, 500)?;
    c.wait_for("what fw-0 sends to take the second link", || {
        Ok(c.link_in_use(0, 1)? == Some(1))
    })?;
    inject_in(c.node(1)?, 5000, 5100, Act::Create)?;
    c.wait_copy(0, 1, 100)
}

/// Each node has a copy of each other; one dies and comes back, one takes
/// over from two.
#[test]
fn three_nodes_copy_one_another() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(3, 1, "peer-timeout = \"2s\"")?;
    let mut running = (0..3).map(|n| c.start(n)).collect::<Result<Vec<_>>>()?;
    for (n, flows) in [(0_u32, 300_u32), (1, 200), (2, 100)] {
        let node = usize::try_from(n)?;
        inject_in(c.node(node)?, n * 1000, n * 1000 + flows, Act::Create)?;
    }
    let all_equal = || -> Result<()> {
        for (of, flows) in [(0, 300), (1, 200), (2, 100)] {
            for at in (0..3).filter(|at| *at != of) {
                c.wait_copy(at, of, flows)?;
            }
        }
        Ok(())
    };
    all_equal()?;

    // The one in the middle is killed; the others go on with each other.
    let mut one = running.remove(1);
    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    inject_in(c.node(0)?, 300, 400, Act::Create)?;
    c.wait_copy(2, 0, 400)?;
    inject_in(c.node(0)?, 300, 400, Act::Delete)?;
    let one = c.start(1)?;
    all_equal()?;

    // Two die for good; the third has what both had.
    drop((one, running.remove(0)));
    let taken = c.ask(2, &["primary"])?;
    ensure!(taken.ok(), "{}", taken.report());
    let (count, _) = injected(c.node(2)?, 0)?;
    ensure!(count == 600, "{count} in fw-2's kernel");
    let own = c.status(2)?;
    ensure!(own.pointer("/internal/flows") == Some(&600.into()), "{own}");
    let check = c.ask(2, &["check"])?;
    ensure!(check.ok(), "{}", check.report());
    Ok(())
}

/// Of three nodes, one is primary; the role moves on, and the last one always
/// knows whose states count.
#[test]
fn a_role_moves_between_three_nodes() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(3, 1, "purge-after = \"1s\"")?;
    let _running = (0..3).map(|n| c.start(n)).collect::<Result<Vec<_>>>()?;
    for n in 0..3 {
        c.wait_for("all peers", || {
            Ok(c.status(n)?.pointer("/in_sync") == Some(&true.into()))
        })?;
    }
    let role = |n: usize, role: &str| {
        c.wait_for(&format!("fw-{n} to be {role}"), || {
            Ok(c.status(n)?.pointer("/role") == Some(&role.into()))
        })
    };
    for (turn, n) in [0, 1, 2, 0].into_iter().enumerate() {
        let taken = c.ask(n, &["primary"])?;
        ensure!(taken.ok(), "{}", taken.report());
        if turn == 0 {
            inject_in(c.node(0)?, 0, 500, Act::Create)?;
        }
        let mark = u32::try_from(turn)? + 1;
        inject_in(c.node(n)?, 0, 500, Act::Mark(mark))?;
        for other in (0..3).filter(|o| *o != n) {
            role(other, "backup")?;
            c.wait_copy(other, n, 500)?;
            c.wait_for("stale states to go", || {
                Ok(injected(c.node(other)?, mark)?.0 == 0)
            })?;
        }
        ensure!(injected(c.node(n)?, mark)? == (500, 500), "at fw-{n}");
    }
    Ok(())
}

/// Everything else the same, the link over IPv6, on a device, with a key that
/// both share besides.
#[test]
fn a_link_over_ipv6_with_a_shared_key() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(2, 1, "")?;
    let psk = c.file(0, "psk");
    ctsync(&["keygen", "--psk", &psk])?.success()?;
    for n in 0..2 {
        let lines = format!("addr add fd00:30::{}/64 dev l0 nodad\n", 10 + n);
        c.node(n)?.ip_batch(&lines)?;
        let path = c.file(n, "toml");
        let mut text = std::fs::read_to_string(&path)?;
        for peer in 0..2 {
            let (v4, v6) = (address(peer, 0), format!("[fd00:30::{}]", 10 + peer));
            text = text.replace(&v4, &v6);
        }
        text = text.replace("[[peer]]", "device = \"l0\"\n[[peer]]");
        std::fs::write(&path, format!("{text}psk-file = \"{psk}\"\n"))?;
    }
    let _zero = c.start(0)?;
    let one = c.start(1)?;
    inject_in(c.node(0)?, 0, 1000, Act::Create)?;
    c.wait_copy(1, 0, 1000)?;
    // With the key of one of them only, they do not talk.
    drop(one);
    let path = c.file(1, "toml");
    let text = std::fs::read_to_string(&path)?;
    let without = text.lines().filter(|l| !l.starts_with("psk-file"));
    std::fs::write(&path, without.collect::<Vec<_>>().join("\n"))?;
    let _one = c.start(1)?;
    c.wait_for("handshakes to be refused", || {
        let refused = |n| -> Result<bool> {
            let status = c.status(n)?;
            let count = status.pointer("/counters/refused_unknown_key");
            Ok(count.and_then(Value::as_u64).unwrap_or(0) > 0)
        };
        Ok(refused(0)? || refused(1)?)
    })?;
    ensure!(
        c.peer(1, 0)?.get("state") == Some(&"down".into()),
        "it is up"
    );
    Ok(())
}

/// Where states are applied at once: what the old primary gives up is what
/// the new one has, and stays in the third one's kernel.
#[test]
fn a_third_node_keeps_what_moves_between_the_others() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(3, 1, "apply = \"immediate\"\npurge-after = \"1s\"")?;
    let mut running = (0..3).map(|n| c.start(n)).collect::<Result<Vec<_>>>()?;
    for n in 0..3 {
        c.wait_for("all peers", || {
            Ok(c.status(n)?.pointer("/in_sync") == Some(&true.into()))
        })?;
    }
    inject_in(c.node(0)?, 0, 500, Act::Create)?;
    for (turn, n) in (1..).zip([0, 1, 0]) {
        let taken = c.ask(n, &["primary"])?;
        ensure!(taken.ok(), "{}", taken.report());
        inject_in(c.node(n)?, 0, 500, Act::Mark(turn))?;
        for other in (0..3).filter(|o| *o != n) {
            c.wait_copy(other, n, 500)?;
            c.wait_for("the old primary to have given up", || {
                Ok(other == 2 || c.peer(n, other)?.get("flows") == Some(&0.into()))
            })?;
        }
        for node in 0..3 {
            c.wait_for(&format!("mark {turn} in fw-{node}'s kernel"), || {
                Ok(injected(c.node(node)?, turn)? == (500, 500))
            })?;
        }
    }
    // And after stale states have been deleted where the role was.
    let was_primary = running.get_mut(1).context("fw-1")?;
    was_primary.wait_for_line("stale states were deleted")?;
    for node in 0..3 {
        ensure!(injected(c.node(node)?, 3)? == (500, 500), "fw-{node}");
    }
    Ok(())
}
