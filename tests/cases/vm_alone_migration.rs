//! A firewall moves from conntrackd's FTP helper to ours as the guide says,
//! while a session is open. The rest of the guide is `native_migration`'s.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use lab::conntrackd::{of_helper, unload_the_kernels};
use lab::firewall::{DEFAULT_DROP, KERNEL_HELPER};
use lab::ftp::control::Control;
use lab::ftp::server::{Program, Server};
use lab::guide::{self, Block, Machine};
use lab::require::Need;
use lab::topology::{Family, Topology, server_address};
use lab::wait::{patience, until};

const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::Server("vsftpd"),
    Need::Program("conntrack"),
    Need::Program("conntrackd"),
    Need::Program("nfct"),
];

/// The guide's commands for who has conntrackd's helper, and the one between
/// them that stops it.
fn steps() -> Result<[Block; 4]> {
    let blocks = guide::blocks(include_str!("../../docs/from-conntrackd.md"));
    let mut steps: Vec<_> = blocks
        .into_iter()
        .filter(|block| {
            let stop = block.text.contains("disable --now conntrackd");
            stop || block.attributes.contains_key("helper")
        })
        .collect();
    let last = steps.pop().context("steps")?;
    match <[Block; 3]>::try_from(steps) {
        Ok([start, load, stop]) if stop.text.contains("conntrackd") => {
            Ok([start, load, stop, last])
        }
        other => anyhow::bail!("other steps: {other:?}"),
    }
}

/// conntrackd's helper, and rules that give it port 21.
fn under_conntrackd(topology: &Topology, machine: &Machine<'_>) -> Result<()> {
    unload_the_kernels()?;
    let config = machine.file("/etc/conntrackd/conntrackd.conf");
    fs::create_dir_all(config.parent().context("a directory")?)?;
    fs::write(
        config,
        of_helper("/run/conntrackd.lock", "/run/conntrackd.ctl"),
    )?;
    machine.run("systemctl start conntrackd")?;
    until("conntrackd's helper", patience(), || {
        let list = machine.run("nfct list helper").ok()?;
        list.contains(".name = ftp").then_some(())
    })?;
    topology.fw.nft(DEFAULT_DROP)?;
    topology.fw.nft(KERNEL_HELPER)
}

/// How many control connections have a helper of this name.
fn served_by(topology: &Topology, helper: &str) -> Result<usize> {
    let table = topology.fw.run("conntrack", &["-L", "-p", "tcp"])?;
    let word = format!("helper={helper}");
    let lines = table.lines().filter(|line| line.contains("dport=21 "));
    Ok(lines
        .filter(|line| line.split_whitespace().any(|w| w == word))
        .count())
}

#[test]
fn guide_moves_from_conntrackds_helper_to_ours() -> Result<()> {
    lab::require!(needs NEEDS);
    let [start, load, stop, disable] = steps()?;
    let topology = Topology::new()?;
    let _server = Server::start(Program::Vsftpd, &topology.server)?;
    let machine = Machine::new(&topology.fw)?;
    let run = |step: &Block| {
        let done = machine.run(&step.text);
        done.with_context(|| format!("line {}", step.line))
    };
    let login = || Control::login(&topology.client, server_address(Family::V4));
    under_conntrackd(&topology, &machine)?;
    let mut old = login()?;
    let listed = old.list_passively()?;
    ensure!(served_by(&topology, "ftp")? == 1, "not conntrackd's");

    run(&start)?;
    // What the guide leaves to the reader: whatever the rules are called.
    topology
        .fw
        .run("nft", &["delete", "table", "inet", "lab_helper"])?;
    run(&load)?;
    let mut new = login()?;
    ensure!(new.list_passively()? == listed, "another list");
    ensure!(served_by(&topology, "nft-ftp")? == 1, "not ours");
    // Promised: as long as conntrackd runs.
    ensure!(old.list_passively()? == listed, "another list");
    ensure!(served_by(&topology, "ftp")? == 1, "no longer conntrackd's");

    run(&stop)?;
    run(&disable)?;
    ensure!(new.list_passively()? == listed, "another list");
    ensure!(login()?.list_passively()? == listed, "another list");
    // Promised: it goes on, but can't begin a transfer.
    old.command("NOOP", "200")?;
    ensure!(old.list_passively().is_err(), "a transfer without a helper");
    ensure!(served_by(&topology, "ftp")? == 1, "the old session is gone");

    drop(old);
    let machine = BTreeMap::from([("fw", machine)]);
    let fw = machine.get("fw").context("fw")?;
    fw.run("conntrack -D -p tcp --dport 21 --state ESTABLISHED || true")?;
    until("the helper to be deleted", patience(), || {
        fw.run("nfct delete helper ftp inet tcp").ok()
    })?;
    fw.run("systemctl stop nft-ftp-helper")?;
    Ok(())
}
