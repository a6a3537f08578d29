//! Our helper on a kernel that has everything, with a real server.

mod operation;
mod sessions;

use anyhow::Result;
use lab::firewall::Nat;
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::control::Control;
use lab::ftp::suite::{Case, World};
use lab::ours::{self, Helper};
use lab::require::Need;
use lab::topology::Family;
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::Server("vsftpd"),
    Need::Program("conntrack"),
];

fn counter(status: &Value, group: &str, name: &str) -> u64 {
    let group = status.get(group).and_then(|g| g.get(name));
    group.and_then(Value::as_u64).unwrap_or(0)
}

fn started(nat: Nat, options: &[&str]) -> Result<(World, Helper)> {
    let world = World::new(nat)?;
    let helper = Helper::start(&world.topology.fw, options)?;
    ours::run(&world.topology.fw, "nft-ftp-ruleset", &["load"])?;
    Ok((world, helper))
}

fn login(world: &World) -> Result<Control<'_>> {
    Control::login(&world.topology.client, world.target(Family::V4))
}

fn transfer(world: &World) -> Result<()> {
    world.passes(Case {
        client: Client::Curl,
        mode: Mode::Pasv,
        family: Family::V4,
    })
}
