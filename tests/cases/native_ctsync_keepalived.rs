//! A failover that nobody but keepalived asks for, with the example
//! configuration.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::firewall::{HOLD, Nat};
use lab::nodes::{Nodes, load_rules};
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::programs::built;
use lab::require::Need;
use lab::talk::Talk;
use lab::topology::Family;
use lab::wait::until;

const EXAMPLE: &str = include_str!("../../examples/keepalived.conf");

/// Three advertisements and the time that two checks take, with room.
const SOON: Duration = Duration::from_secs(40);

/// keepalived at a node, with the example's configuration but for the paths
/// and the second node's priority.
fn keepalived(pair: &Pair, nodes: &Nodes, node: Node) -> Result<Peer> {
    let control = nodes.control(node);
    let ctsync = format!(
        "{} --control {}",
        built("ctsync")?.display(),
        control.display()
    );
    let mut config = EXAMPLE.replace("/usr/sbin/ctsync", &ctsync);
    ensure!(config.contains("priority 100"), "the example has changed");
    if node == Node::Two {
        config = config.replace("priority 100", "priority 90");
    }
    let file = |what: &str| -> PathBuf { nodes.file(node, what) };
    std::fs::write(file("keepalived.conf"), config)?;
    let mut command = Command::new("keepalived");
    command
        .args(["--vrrp", "--dont-fork", "--log-console", "--no-syslog"])
        .arg("--use-file")
        .arg(file("keepalived.conf"))
        .arg("--pid")
        .arg(file("keepalived.pid"))
        .arg("--vrrp_pid")
        .arg(file("vrrp.pid"));
    Peer::start(pair.fw(node), "keepalived", command)
}

/// Waits until a node has a role.
fn becomes(nodes: &Nodes, node: Node, role: &str, by: &Peer) -> Result<()> {
    until(role, SOON, || {
        let status = nodes.status(node).ok()?;
        (status.pointer("/role")? == role).then_some(())
    })
    .with_context(|| by.log())
}

/// Both firewalls with ctsync and keepalived, fw-1 primary and fw-2 backup.
struct World {
    pair: Pair,
    nodes: Nodes,
}

impl World {
    fn new(extra: &str) -> Result<Self> {
        let pair = Pair::new()?;
        load_rules(&pair, Nat::Snat)?;
        for node in Node::BOTH {
            pair.fw(node).nft(HOLD)?;
        }
        let nodes = Nodes::with(&format!("{extra}\n[hold]\ntable = \"nft_ftp\"\n"))?;
        Ok(Self { pair, nodes })
    }

    /// The virtual addresses of both families are at a node, and nowhere else.
    fn addresses_at(&self, node: Node) -> Result<()> {
        let shown = |node: Node| -> Result<String> {
            let fw = self.pair.fw(node);
            Ok(fw.run("ip", &["-br", "addr", "show", "lan"])?
                + &fw.run("ip", &["-br", "addr", "show", "wan"])?)
        };
        let wanted = ["10.0.1.1/24", "10.0.2.1/24", "fd00:1::1/64", "fd00:2::1/64"];
        let mut last = String::new();
        until("virtual addresses", SOON, || {
            let (here, there) = (shown(node).ok()?, shown(node.peer()).ok()?);
            last = format!("{here}--\n{there}");
            let moved = wanted
                .iter()
                .all(|a| here.contains(a) && !there.contains(a));
            moved.then_some(())
        })
        .context(last)
    }

    fn held(&self, node: Node) -> Result<bool> {
        let set = ["list", "set", "inet", "nft_ftp", "hold"];
        Ok(self.pair.fw(node).run("nft", &set)?.contains("tcp"))
    }
}

fn patient(talk: &Talk) -> Result<()> {
    talk.client.set_read_timeout(Some(SOON))?;
    Ok(talk.server.set_read_timeout(Some(SOON))?)
}

/// A packet between the end of one hold and the next would be answered with a
/// reset. So the element that a backup has is replaced in one transaction, and
/// deleted alone only when all is committed.
#[test]
fn a_takeover_is_held_back_without_a_gap() -> Result<()> {
    lab::require!(Need::Root, Need::Program("nft"));
    let w = World::new("")?;
    let _one = w.nodes.start(&w.pair, Node::One)?;
    let _two = w.nodes.start(&w.pair, Node::Two)?;
    w.nodes.wait_synced()?;
    w.nodes.ctsync(Node::Two, &["backup"])?.success()?;
    until("a backup to hold", SOON, || {
        w.held(Node::Two).ok()?.then_some(())
    })?;
    let monitor = lab::command::command("nft", &["monitor"]);
    let monitor = Peer::start(&w.pair.fw_2, "nft monitor", monitor)?;
    // It is not known when it listens.
    until("nft monitor", SOON, || {
        w.pair.fw_2.nft("add table inet heard").ok()?;
        w.pair.fw_2.nft("delete table inet heard").ok()?;
        monitor.log().contains("inet heard").then_some(())
    })?;
    w.nodes.ctsync(Node::Two, &["primary"])?.success()?;
    let transactions = || -> Vec<String> {
        let log = monitor.log();
        let all = log.split("# new generation").map(str::to_owned);
        all.filter(|t| t.contains("hold { tcp")).collect()
    };
    let let_go = |t: &String| t.contains("delete element") && !t.contains("add element");
    until("the set to let go", SOON, || {
        transactions().iter().any(let_go).then_some(())
    })
    .with_context(|| monitor.log())?;
    ensure!(!w.held(Node::Two)?, "held");
    let seen = transactions();
    let gaps = seen.iter().filter(|t| let_go(t)).count();
    ensure!(gaps == 1 && seen.len() == 2, "{seen:?}");
    Ok(())
}

/// One connection of each family; fw-1 loses its power, comes back with empty
/// tables and waits; then fw-2 is in fault, and fw-1 has its role again.
#[test]
fn keepalived_fails_over_and_back_and_connections_go_on() -> Result<()> {
    lab::require!(
        Need::Root,
        Need::Program("keepalived"),
        Need::Program("conntrack")
    );
    let w = World::new("purge-after = \"1s\"")?;
    let (pair, nodes) = (&w.pair, &w.nodes);
    let one = nodes.start(pair, Node::One)?;
    let _two = nodes.start(pair, Node::Two)?;
    nodes.wait_synced()?;
    let vrrp_one = keepalived(pair, nodes, Node::One)?;
    becomes(nodes, Node::One, "primary", &vrrp_one)?;
    let vrrp_two = keepalived(pair, nodes, Node::Two)?;
    becomes(nodes, Node::Two, "backup", &vrrp_two)?;
    w.addresses_at(Node::One)?;
    let mut talks = vec![
        Talk::through(pair, Family::V4)?,
        Talk::through(pair, Family::V6)?,
    ];
    nodes.wait_mirrored(Node::One)?;
    let mut all_go_on = || -> Result<()> {
        for talk in &mut talks {
            patient(talk)?;
            talk.goes_on().with_context(|| vrrp_two.log())?;
        }
        Ok(())
    };

    // No word to anybody: the power goes.
    pair.unplug(Node::One)?;
    drop((one, vrrp_one));
    all_go_on()?;
    becomes(nodes, Node::Two, "primary", &vrrp_two)?;
    until("the set to let go", SOON, || {
        (!w.held(Node::Two).ok()?).then_some(())
    })?;
    ensure!(nodes.number(Node::Two, "/internal/flows")? >= 2, "owned");

    // It comes back as it boots: no addresses, no connections.
    // Its keepalived was killed and may have left them.
    let _ = pair.deactivate(Node::One);
    pair.fw_1.run("conntrack", &["-F"])?;
    pair.plug(Node::One)?;
    let one = nodes.start(pair, Node::One)?;
    let vrrp_one = keepalived(pair, nodes, Node::One)?;
    becomes(nodes, Node::One, "backup", &vrrp_one)?;
    nodes.wait_mirrored(Node::Two)?;
    w.addresses_at(Node::Two)?;
    until("a backup to hold", SOON, || {
        w.held(Node::One).ok()?.then_some(())
    })?;
    all_go_on()?;

    // An interface of fw-2 fails: keepalived calls the fault script.
    pair.fw_2.ip_batch("link set lan down\n")?;
    becomes(nodes, Node::Two, "fault", &vrrp_two)?;
    becomes(nodes, Node::One, "primary", &vrrp_one)?;
    let why = nodes.ctsync(Node::Two, &["check"])?;
    ensure!(
        !why.ok() && why.report().contains("this node is in fault"),
        "{}",
        why.report()
    );
    all_go_on()?;
    pair.fw_2
        .ip_batch("link set lan up\naddr replace fd00:1::c/64 dev lan nodad\n")?;
    becomes(nodes, Node::Two, "backup", &vrrp_two)?;
    w.addresses_at(Node::One)?;
    all_go_on()?;
    nodes.wait_mirrored(Node::One)?;
    let (status, log) = one.stop()?;
    ensure!(status.success(), "{log}");
    Ok(())
}
