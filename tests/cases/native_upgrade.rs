//! ctsync beside builds of its own past, and in their place. With `--full`:
//! it takes the repository's history, and a build for each.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lab::inject::{Act, inject_in, injected};
use lab::nodes::Nodes;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::programs::{Older, older};
use lab::require::{Need, with_full};
use lab::wait::{patience, until, until_true};
use nix::sys::signal::Signal;
use serde_json::Value;

fn build(which: Older) -> Result<PathBuf> {
    older(which).with_context(|| format!("{which:?}"))
}

/// Waits until `at` has a complete copy of so many connections.
fn wait_copy(nodes: &Nodes, at: Node, flows: u64) -> Result<()> {
    let mut last = Value::Null;
    let there = until("a complete copy", patience() * 4, || {
        last = nodes.status(at).ok()?;
        let peer = last.pointer("/peers/0")?;
        let complete = peer.get("copy_synced")? == true && peer.get("flows")? == flows;
        complete.then_some(())
    });
    there.with_context(|| format!("{flows} connections at {at:?}: {last}"))
}

fn refused(nodes: &Nodes, node: Node) -> Result<()> {
    until_true(&format!("the refusal at {node:?}"), || {
        let refused = nodes.number(node, "/counters/refused_version");
        refused.is_ok_and(|count| count > 0)
    })
}

/// Both name it, stay apart, and nothing comes over.
#[test]
fn a_build_with_another_version_of_the_link_is_refused_by_name_on_both_sides() -> Result<()> {
    if !with_full("a_build_with_another_version_of_the_link_is_refused_by_name_on_both_sides") {
        return Ok(());
    }
    lab::require!(Need::Root, Need::Older(Older::OtherVersion));
    let pair = Pair::new()?;
    let mut nodes = Nodes::with("")?;
    nodes.set_program(Node::Two, Some(&build(Older::OtherVersion)?));
    let mut daemons = [
        nodes.start(&pair, Node::One)?,
        nodes.start(&pair, Node::Two)?,
    ];
    inject_in(&pair.fw_1, 0, 500, Act::Create)?;
    inject_in(&pair.fw_2, 1000, 1200, Act::Create)?;
    for (node, daemon) in Node::BOTH.into_iter().zip(&mut daemons) {
        refused(&nodes, node)?;
        daemon.wait_for_line("another version")?;
        let status = nodes.status(node)?;
        ensure!(
            status.pointer("/peers/0/state") == Some(&"down".into()),
            "{status}"
        );
        ensure!(
            status.pointer("/external/flows") == Some(&0.into()),
            "{status}"
        );
        ensure!(!daemon.log().contains("panic"), "{}", daemon.log());
        ensure!(daemon.ended().is_none(), "{}", daemon.log());
    }
    let doctor = nodes.ctsync(
        Node::One,
        &["doctor", "--config", &config(&nodes, Node::One)?],
    )?;
    ensure!(
        doctor.report().contains("another version"),
        "{}",
        doctor.report()
    );
    // Each goes on with what it has, and with the same build they are a pair.
    let [_one, two] = daemons;
    two.stop()?;
    nodes.set_program(Node::Two, None);
    let _two = nodes.start(&pair, Node::Two)?;
    wait_copy(&nodes, Node::Two, 500)?;
    wait_copy(&nodes, Node::One, 200)
}

fn config(nodes: &Nodes, node: Node) -> Result<String> {
    let path = nodes.file(node, "toml");
    Ok(path.to_str().context("path")?.to_owned())
}

/// Puts the new build in the place of an old one that was killed, and so has
/// left what it had.
fn replace(nodes: &mut Nodes, pair: &Pair, node: Node) -> Result<Peer> {
    ensure!(nodes.control(node).exists(), "its socket is gone");
    nodes.set_program(node, None);
    nodes.start(pair, node)
}

/// What the backup's kernel has when its new daemon starts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    /// What the old one has put there.
    Kept,
    /// Nothing: it was emptied.
    Emptied,
}

/// First the backup, then the primary, with connections that come and go in
/// between; the two builds mirror to each other if they speak the same version.
fn upgraded(from: Older, apply: &str, table: Table) -> Result<()> {
    let together = from == Older::SameVersion;
    let pair = Pair::new()?;
    let mut nodes = Nodes::with(&format!("apply = \"{apply}\"\npurge-after = \"1s\"\n"))?;
    for node in Node::BOTH {
        nodes.set_program(node, Some(&build(from)?));
    }
    let [mut one, mut two] = nodes.start_both(&pair)?;
    nodes.ctsync(Node::One, &["primary"])?.success()?;
    nodes.ctsync(Node::Two, &["backup"])?.success()?;
    inject_in(&pair.fw_1, 0, 1000, Act::Create)?;
    wait_copy(&nodes, Node::Two, 1000)?;

    two.signal(Signal::SIGKILL)?;
    two.wait()?;
    if table == Table::Emptied {
        pair.fw_2.run("conntrack", &["-F"])?;
    }
    two = replace(&mut nodes, &pair, Node::Two)?;
    nodes.ctsync(Node::Two, &["backup"])?.success()?;
    inject_in(&pair.fw_1, 1000, 1100, Act::Create)?;
    inject_in(&pair.fw_1, 0, 50, Act::Delete)?;
    if together {
        wait_copy(&nodes, Node::Two, 1050)?;
        ensure!(nodes.number(Node::Two, "/counters/refused_version")? == 0);
    } else {
        refused(&nodes, Node::Two)?;
        refused(&nodes, Node::One)?;
    }

    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    one = replace(&mut nodes, &pair, Node::One)?;
    nodes.ctsync(Node::One, &["primary"])?.success()?;
    nodes.wait_synced()?;
    // Where states are applied at once, a backup's new daemon that nobody tells
    // what its kernel has takes it for its own. What ended at the primary before
    // the two meet is brought back to it then.
    let ghosts = if together || apply == "commit" || table == Table::Emptied {
        0
    } else {
        50
    };
    wait_copy(&nodes, Node::Two, 1050 + ghosts)?;
    inject_in(&pair.fw_1, 50 - u32::try_from(ghosts)?, 1100, Act::Delete)?;
    inject_in(&pair.fw_1, 2000, 2700, Act::Create)?;
    wait_copy(&nodes, Node::Two, 700)?;
    let at_backup = if apply == "immediate" { 700 } else { 0 };
    until_true("what the backup's kernel is to have", || {
        injected(&pair.fw_2, 0).is_ok_and(|found| found.0 == at_backup)
    })?;

    nodes.ctsync(Node::Two, &["primary"])?.success()?;
    let (kept, _) = injected(&pair.fw_2, 0)?;
    ensure!(kept == 700, "{kept} of 700 connections came over");
    nodes.wait_mirrored(Node::Two)?;
    ensure!(nodes.number(Node::Two, "/internal/flows")? == 700);
    for daemon in [one, two] {
        let (status, log) = daemon.stop()?;
        ensure!(status.success() && !log.contains("panic"), "{log}");
    }
    Ok(())
}

#[test]
fn an_upgrade_from_the_first_build_of_this_version_loses_nothing() -> Result<()> {
    if !with_full("an_upgrade_from_the_first_build_of_this_version_loses_nothing") {
        return Ok(());
    }
    lab::require!(Need::Root, Need::Older(Older::SameVersion));
    upgraded(Older::SameVersion, "commit", Table::Kept)
}

#[test]
fn an_upgrade_from_the_first_build_of_this_version_loses_nothing_where_states_are_applied_at_once()
-> Result<()> {
    if !with_full(
        "an_upgrade_from_the_first_build_of_this_version_loses_nothing_where_states_are_applied_at_once",
    ) {
        return Ok(());
    }
    lab::require!(Need::Root, Need::Older(Older::SameVersion));
    upgraded(Older::SameVersion, "immediate", Table::Kept)
}

#[test]
fn an_upgrade_from_another_version_of_the_link_loses_nothing() -> Result<()> {
    if !with_full("an_upgrade_from_another_version_of_the_link_loses_nothing") {
        return Ok(());
    }
    lab::require!(Need::Root, Need::Older(Older::OtherVersion));
    upgraded(Older::OtherVersion, "commit", Table::Kept)
}

/// Nothing is lost, but see [`upgraded`] for what is too much.
#[test]
fn an_upgrade_from_another_version_brings_ended_connections_back_where_states_are_applied_at_once()
-> Result<()> {
    const TEST: &str = "an_upgrade_from_another_version_brings_ended_connections_back_where_states_are_applied_at_once";
    if !with_full(TEST) {
        return Ok(());
    }
    lab::require!(Need::Root, Need::Older(Older::OtherVersion));
    upgraded(Older::OtherVersion, "immediate", Table::Kept)
}

/// So docs/pair.md says to empty the backup's table first.
#[test]
fn an_upgrade_from_another_version_is_exact_where_the_backups_table_is_emptied() -> Result<()> {
    if !with_full("an_upgrade_from_another_version_is_exact_where_the_backups_table_is_emptied") {
        return Ok(());
    }
    lab::require!(
        Need::Root,
        Need::Older(Older::OtherVersion),
        Need::Program("conntrack")
    );
    upgraded(Older::OtherVersion, "immediate", Table::Emptied)
}
