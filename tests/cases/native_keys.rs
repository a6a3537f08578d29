//! ctsync's keys: replaced while both nodes run, and out of sight.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::{command, run};
use lab::inject::{Act, inject_in, injected};
use lab::netns::Namespace;
use lab::nodes::{Nodes, name};
use lab::ours::program;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::programs::built;
use lab::require::Need;
use lab::wait::{patience, until};
use nix::sys::signal::Signal;

/// Who that is nobody.
const NOBODY: u32 = 65534;
/// Connections per step of churn.
const STEP: u32 = 20;

/// Connections that come all the time.
#[derive(Default)]
struct Churn {
    stop: AtomicBool,
    made: AtomicU32,
}

impl Churn {
    fn run(&self, at: &Namespace) -> Result<()> {
        while !self.stop.load(Relaxed) {
            let from = self.made.fetch_add(STEP, Relaxed);
            inject_in(at, from, from + STEP, Act::Create)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// A running pair.
struct World<'a> {
    nodes: Nodes,
    daemons: [Peer; 2],
    churn: &'a Churn,
}

impl<'a> World<'a> {
    fn new(pair: &Pair, churn: &'a Churn) -> Result<Self> {
        let nodes = Nodes::with("")?;
        let daemons = [nodes.start(pair, Node::One)?, nodes.start(pair, Node::Two)?];
        nodes.wait_synced()?;
        Ok(Self {
            nodes,
            daemons,
            churn,
        })
    }

    /// What the first node makes from now on arrives at the second.
    fn wait_for_more(&self) -> Result<()> {
        let goal = u64::from(self.churn.made.load(Relaxed) + STEP);
        let copied = until("more of the mirror", patience(), || {
            let copied = self.nodes.number(Node::Two, "/external/flows").ok()?;
            (copied >= goal).then_some(())
        });
        copied.with_context(|| format!("{:?}", self.nodes.status(Node::Two)))
    }

    fn edit(&self, node: Node, change: impl Fn(&str) -> String) -> Result<()> {
        let path = self.nodes.file(node, "toml");
        let old = std::fs::read_to_string(&path)?;
        let new = change(&old);
        ensure!(new != old, "nothing to change in {old}");
        std::fs::write(&path, new)?;
        Ok(())
    }

    /// As `systemctl reload` does; nothing may need a restart.
    fn reload(&mut self, node: Node) -> Result<()> {
        let at = usize::from(node == Node::Two);
        let daemon = self.daemons.get_mut(at).context("a daemon")?;
        let said = "configuration was read again";
        let before = daemon.log().matches(said).count();
        daemon.signal(Signal::SIGHUP)?;
        let line = daemon.wait_for_nth_line(said, before + 1)?;
        ensure!(!line.contains("restart"), "{line}");
        self.wait_for_more()
    }

    /// The key of the other one that `node` works with.
    fn key_in_use(&self, node: Node) -> Result<String> {
        let status = self.nodes.status(node)?;
        let key = status.pointer("/peers/0/public_key");
        Ok(key.and_then(|k| k.as_str()).unwrap_or_default().to_owned())
    }

    fn wait_for_key(&self, node: Node, key: &str) -> Result<()> {
        until("a session with the new key", patience(), || {
            (self.key_in_use(node).ok()? == key).then_some(())
        })
    }

    fn keygen(&self, file: &Path, psk: bool) -> Result<String> {
        let mut args = vec!["keygen", file.to_str().context("path")?];
        args.extend(psk.then_some("--psk"));
        let made = run(program("ctsync", &args)?, patience())?.success()?;
        Ok(made.trim().to_owned())
    }

    /// A node gets another key pair, as ctsync(8) says.
    fn replace_pair(&mut self, node: Node) -> Result<()> {
        let private = self.nodes.file(node, "key");
        let next = self.nodes.file(node, "key.next");
        let public = self.keygen(&next, false)?;
        let peer = node.peer();
        let old = self.key_in_use(peer)?;
        let line = |key: &str| format!("public-key = \"{key}\"\n");
        self.edit(peer, |text| {
            let both = format!("{}next-{}", line(&old), line(&public));
            text.replace(&line(&old), &both)
        })?;
        self.reload(peer)?;
        std::fs::rename(&next, &private)?;
        self.reload(node)?;
        self.wait_for_key(peer, &public)?;
        self.edit(peer, |text| {
            let next = format!("next-{}", line(&public));
            text.replace(&next, "").replace(&line(&old), &line(&public))
        })?;
        self.reload(peer)?;
        ensure!(self.key_in_use(peer)? == public);
        Ok(())
    }

    fn psk(&self, n: u32) -> PathBuf {
        self.nodes.file(Node::One, &format!("psk-{n}"))
    }

    /// Both get the `n`th pre-shared key instead of the one before.
    fn replace_psk(&mut self, n: u32) -> Result<()> {
        let line = |n: u32| format!("psk-file = \"{}\"\n", self.psk(n).display());
        let (old, new) = (line(n - 1), line(n));
        self.keygen(&self.psk(n), true)?;
        for node in Node::BOTH {
            self.edit(node, |text| format!("{text}next-{new}"))?;
            self.reload(node)?;
        }
        for node in Node::BOTH {
            self.edit(node, |text| {
                let text = text.replace(&format!("next-{new}"), "");
                text.replace(&old, "") + &new
            })?;
            self.reload(node)?;
        }
        Ok(())
    }
}

/// Both nodes get other key pairs and another pre-shared key while
/// connections come: neither finds the other down, nothing is missing, and the
/// old keys are worth nothing.
#[test]
fn keys_are_replaced_while_both_nodes_run() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let churn = Churn::default();
    let mut w = World::new(&pair, &churn)?;
    let stolen = w.nodes.file(Node::One, "stolen");
    std::fs::copy(w.nodes.file(Node::One, "key"), &stolen)?;
    let done = std::thread::scope(|scope| {
        let churning = scope.spawn(|| churn.run(&pair.fw_1));
        let mut replace = || {
            w.replace_pair(Node::One)?;
            w.replace_pair(Node::Two)?;
            w.replace_psk(1)?;
            w.replace_psk(2)
        };
        let done = replace();
        churn.stop.store(true, Relaxed);
        let churned = churning.join();
        done.and(churned.map_err(|_| anyhow::anyhow!("the churn panicked"))?)
    });
    done?;
    let made = churn.made.load(Relaxed);
    w.nodes.wait_synced()?;
    w.nodes.wait_mirrored(Node::One)?;
    ensure!(injected(&pair.fw_1, 0)?.0 == made as usize);
    for daemon in &w.daemons {
        let log = daemon.log();
        ensure!(log.matches("peer is up").count() == 1, "{log}");
        ensure!(!log.contains("peer is down"), "{log}");
        ensure!(!log.contains("not in sync"), "{log}");
    }
    let [one, _two] = &mut w.daemons;
    one.signal(Signal::SIGTERM)?;
    one.wait()?;
    std::fs::rename(&stolen, w.nodes.file(Node::One, "key"))?;
    let refused = || w.nodes.number(Node::Two, "/counters/refused_unknown_key");
    let before = refused()?;
    let thief = w.nodes.spawn(&pair, Node::One)?;
    until("a thief to be refused", patience(), || {
        (refused().ok()? > before + 2).then_some(())
    })
    .with_context(|| thief.log())?;
    ensure!(!thief.log().contains("peer is up"), "{}", thief.log());
    Ok(())
}

/// The daemon's memory belongs to root and not to its own user: nobody but
/// root reads it, and no core file is made of it.
#[test]
fn a_daemons_memory_is_not_its_users() -> Result<()> {
    lab::require!(Need::Root, Need::Program("setpriv"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let one = Node::One;
    for path in [nodes.file(one, "key"), nodes.file(one, "toml")] {
        std::os::unix::fs::chown(&path, Some(NOBODY), None)?;
    }
    let directory = nodes.file(one, "key");
    let directory = directory.parent().context("directory")?;
    std::os::unix::fs::chown(directory, Some(NOBODY), None)?;
    let as_nobody = |rest: &[&str]| {
        let id = format!("--reuid={NOBODY}");
        let mut args = vec![id.as_str(), "--clear-groups", "--inh-caps=+net_admin"];
        args.push("--ambient-caps=+net_admin");
        args.extend_from_slice(rest);
        command("setpriv", &args)
    };
    let config = nodes.file(one, "toml");
    let ctsync = built("ctsync")?;
    let [config, ctsync] = [&config, &ctsync].map(|p| p.to_str().context("path"));
    let run_it = as_nobody(&[ctsync?, "run", "--config", config?]);
    let mut daemon = Peer::start(&pair.fw_1, name(one), run_it)?;
    daemon.wait_for_line("ready")?;
    let other = Peer::start(&pair.fw_1, "sleep", as_nobody(&["sleep", "1000"]))?;
    let owner = |pid: u32| std::fs::metadata(format!("/proc/{pid}/environ")).map(|m| m.uid());
    until("a program of nobody's", patience(), || {
        (owner(other.pid()).ok()? == NOBODY).then_some(())
    })?;
    ensure!(owner(daemon.pid())? == 0, "its memory is its user's");
    let look = |pid: u32| {
        let mem = format!("/proc/{pid}/environ");
        let look = as_nobody(&["head", "-c1", &mem]);
        anyhow::Ok(run(look, patience())?.ok())
    };
    ensure!(look(other.pid())?, "nobody can't look at what is nobody's");
    ensure!(!look(daemon.pid())?, "nobody can look into the daemon");
    Ok(())
}
