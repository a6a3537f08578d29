//! The guides for one firewall and for a pair, as they are written.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::server::{Program, Server};
use lab::ftp::suite::World;
use lab::guide::{self, Machine};
use lab::pair::Pair;
use lab::require::Need;
use lab::walk::Walk;

const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::Server("vsftpd"),
    Need::Program("curl"),
    Need::Program("keepalived"),
    Need::Built("ctsync"),
];

#[test]
fn quick_start_leads_to_a_firewall_that_ftp_passes() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    // No rules but the guide's own.
    world.topology.fw.nft("flush ruleset")?;
    let machines = BTreeMap::from([
        ("fw", Machine::new(&world.topology.fw)?),
        ("client", Machine::new(&world.topology.client)?),
    ]);
    let text = include_str!("../../docs/quick-start.md");
    let printed = guide::run(text, &machines, &mut |text| Ok(text.to_owned()))?;
    let all = printed.concat();
    for expected in [
        "nothing to do",
        "policy drop;",
        "counter related_accepted",
        "set servers4:\n+     10.0.2.3",
        "ct state related ct helper \"nft-ftp\"",
    ] {
        ensure!(all.contains(expected), "no {expected:?} in {all}");
    }
    // What the guide promises: others are dropped.
    let fw = machines.get("fw").context("fw")?;
    fw.run("systemctl stop nft-ftp-helper")?;
    let client = machines.get("client").context("client")?;
    let curl = "curl --silent --max-time 3 --output /dev/null ftp://10.0.2.2/file.bin";
    ensure!(client.run(curl).is_err(), "passed without the helper");
    Ok(())
}

#[test]
fn pair_guide_leads_to_a_pair_that_fails_over() -> Result<()> {
    lab::require!(needs NEEDS);
    let pair = Pair::new()?;
    let _server = Server::start(Program::Vsftpd, &pair.server)?;
    let mut walk = Walk::new(&pair)?;
    let all = walk.follow(include_str!("../../docs/pair.md"))?;
    ensure!(
        all.contains("in sync") && all.contains("fw-2: primary"),
        "{all}"
    );
    // On a pair where nothing is wrong, every command of this page succeeds.
    walk.follow(include_str!("../../docs/troubleshooting.md"))?;
    // Not enabled with nobody to read its queue when the machines go.
    for node in ["fw-1", "fw-2"] {
        walk.run(node, "systemctl stop nft-ftp-helper")?;
    }
    Ok(())
}
