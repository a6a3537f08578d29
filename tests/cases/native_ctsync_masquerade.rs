//! Masquerading, whose entries the kernel drops when the address goes: which
//! it does at the firewall that gives the virtual address up.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::firewall::{DEFAULT_DROP, HOLD};
use lab::nodes::Nodes;
use lab::pair::{Node, Pair};
use lab::programs::built;
use lab::require::Need;
use lab::talk::Talk;
use lab::topology::{Family, Side, address};
use lab::vrrp::{self, Scripts};
use lab::wait::until;
use nix::sys::signal::Signal;

/// As nft-ftp-ruleset writes it.
const MASQUERADE: &str = "\
table inet nft_ftp {
	chain srcnat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname wan masquerade
	}
}
";

/// Three advertisements and the time that two checks take, with room.
const SOON: Duration = Duration::from_secs(40);

/// A connection through fw-1, and then fw-1 gives the addresses up while all
/// its programs run: connections that it masquerades must live on.
fn survives(give_up: impl FnOnce(&Pair, &lab::peer::Peer) -> Result<()>) -> Result<()> {
    lab::require!(Need::Root, Need::Program("keepalived"));
    let pair = Pair::new()?;
    for node in Node::BOTH {
        let fw = pair.fw(node);
        fw.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        fw.nft(DEFAULT_DROP)?;
        fw.nft(HOLD)?;
        fw.nft(MASQUERADE)?;
        // The virtual address has to be the one that is taken.
        let own = address(Side::Wan, Family::V4, node.host());
        fw.ip_batch(&format!(
            "addr del {own}/24 dev wan\naddr add {own}/32 dev wan\n"
        ))?;
    }
    let nodes = Nodes::with("[hold]\ntable = \"nft_ftp\"\n")?;
    let dir = tempfile::tempdir()?;
    let mut daemons = Vec::new();
    for node in Node::BOTH {
        daemons.push(nodes.start(&pair, node)?);
    }
    nodes.wait_synced()?;
    let mut vrrp = Vec::new();
    for node in Node::BOTH {
        let command = built("ctsync")?;
        let command = format!(
            "{} --control {}",
            command.display(),
            nodes.control(node).display()
        );
        vrrp.push(vrrp::start(
            pair.fw(node),
            node,
            dir.path(),
            &Scripts::ctsync(&command),
        )?);
        until("fw-1 to be active", SOON, || {
            vrrp::is_active(&pair.fw_1).ok()?.then_some(())
        })?;
    }
    let mut talk = Talk::through(&pair, Family::V4)?;
    ensure!(talk.server.peer_addr()?.ip() == lab::topology::fw_address(Side::Wan, Family::V4));
    nodes.wait_mirrored(Node::One)?;
    let first = vrrp.first().context("keepalived")?;
    give_up(&pair, first)?;
    until("fw-2 to be active", SOON, || {
        vrrp::is_active(&pair.fw_2).ok()?.then_some(())
    })?;
    talk.client.set_read_timeout(Some(SOON))?;
    talk.server.set_read_timeout(Some(SOON))?;
    talk.goes_on()
        .with_context(|| daemons.iter().map(lab::peer::Peer::log).collect::<String>())
}

#[test]
fn a_masqueraded_connection_survives_a_pulled_cable() -> Result<()> {
    survives(|pair, _| pair.switch.ip_batch("link set lan1 down\n"))
}

#[test]
fn a_masqueraded_connection_survives_a_stop_of_keepalived() -> Result<()> {
    survives(|_, vrrp| vrrp.signal(Signal::SIGTERM))
}
