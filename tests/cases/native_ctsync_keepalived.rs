//! A failover that nobody but keepalived asks for, with the example
//! configuration.

#[path = "native_ctsync_pair.rs"]
#[expect(dead_code, reason = "shared with the failover cases")]
mod ctsync_pair;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ctsync_pair::{Nodes, Talk, load_rules};
use lab::firewall::Nat;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::programs::built;
use lab::require::Need;
use lab::wait::until;

const EXAMPLE: &str = include_str!("../../examples/keepalived.conf");

/// What nft-ftp-ruleset writes for `firewall.hold`.
const HOLD: &str = "\
table inet nft_ftp {
	set hold {
		type inet_proto
		flags timeout
	}

	chain hold {
		type filter hook prerouting priority -160; policy accept;
		meta l4proto @hold tcp flags & (fin | syn | rst | ack) != syn ct state { invalid, new } counter drop
	}
}
";

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

#[test]
fn keepalived_fails_over_and_a_connection_goes_on() -> Result<()> {
    lab::require!(Need::Root, Need::Program("keepalived"));
    let pair = Pair::new()?;
    load_rules(&pair, Nat::Snat)?;
    for node in Node::BOTH {
        pair.fw(node).nft(HOLD)?;
    }
    let nodes = Nodes::on(&pair, "[hold]\ntable = \"nft_ftp\"\n")?;
    let one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;
    nodes.wait_synced()?;
    let vrrp_one = keepalived(&pair, &nodes, Node::One)?;
    becomes(&nodes, Node::One, "primary", &vrrp_one)?;
    let vrrp_two = keepalived(&pair, &nodes, Node::Two)?;
    becomes(&nodes, Node::Two, "backup", &vrrp_two)?;
    let mut talk = Talk::through(&pair)?;
    nodes.wait_mirrored(Node::One)?;

    // No word to anybody: the power goes.
    pair.unplug(Node::One)?;
    drop((one, vrrp_one));
    talk.client.set_read_timeout(Some(SOON))?;
    talk.server.set_read_timeout(Some(SOON))?;
    talk.goes_on().with_context(|| vrrp_two.log())?;
    becomes(&nodes, Node::Two, "primary", &vrrp_two)?;
    let addresses = pair.fw_2.run("ip", &["-br", "addr", "show", "lan"])?;
    ensure!(addresses.contains("10.0.1.1/24"), "{addresses}");
    let set = pair
        .fw_2
        .run("nft", &["list", "set", "inet", "nft_ftp", "hold"])?;
    ensure!(!set.contains("tcp"), "{set}");
    ensure!(nodes.number(Node::Two, "/internal/flows")? >= 1, "owned");
    Ok(())
}
