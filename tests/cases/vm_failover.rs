//! The whole story in one kernel: two firewalls with our helper, our ruleset
//! and ctsync; one dies in the middle of an FTP session.

#[path = "native_ctsync_pair.rs"]
#[allow(dead_code, reason = "shared with cases that use all of it")]
mod ctsync_pair;

use anyhow::{Context, Result, ensure};
use ctsync_pair::Nodes;
use lab::firewall::{DEFAULT_DROP, Nat, nat_rules};
use lab::ftp::control::Control;
use lab::ftp::server::{Program, Server};
use lab::ours::{self, Helper};
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::topology::Family;
use nix::sys::signal::Signal;
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Cthelper,
    Need::NftQueue,
    Need::QueueConntrack,
    Need::Server("vsftpd"),
    Need::Program("conntrack"),
    Need::Built("nft-ftp-helper"),
    Need::Built("nft-ftp-ruleset"),
    Need::Built("ctsync"),
];

fn event(status: &Value, reason: &str) -> u64 {
    let count = status.get("events").and_then(|e| e.get(reason));
    count.and_then(Value::as_u64).unwrap_or(0)
}

/// The block of expectations that fw-1 made serves the next transfer through
/// fw-2, whose helper knows from the 32 bytes that it is this session's own.
fn a_session_with_a_permanent_block_survives(nat: Nat) -> Result<()> {
    let pair = Pair::new()?;
    let start = |node| -> Result<Helper> {
        let fw = pair.fw(node);
        fw.nft(DEFAULT_DROP)?;
        fw.nft(&nat_rules(nat))?;
        let helper = Helper::start(fw, &["--port-mask", "0xfffc", "--permanent"])?;
        ours::run(fw, "nft-ftp-ruleset", &["load"])?;
        Ok(helper)
    };
    let helper_1 = start(Node::One)?;
    let helper_2 = start(Node::Two)?;
    pair.activate(Node::One)?;
    let _server = Server::start(Program::Vsftpd, &pair.server)?;
    let nodes = Nodes::on(&pair, "")?;
    let _one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;

    let mut control = Control::login(&pair.client, nat.target(Family::V4))?;
    let listener = control.listen(50000)?;
    let line = control.port_line(50000)?;
    control.command(&line, "200")?;
    let before = control.list_to(&listener)?;
    nodes.wait_synced()?;
    nodes.wait_mirrored(Node::One)?;
    ensure!(nodes.number(Node::Two, "/external/expectations")? == 4);

    // Nothing of fw-1 gets to say goodbye: its daemon's end would disable
    // the helper, whose registration is one for the whole kernel.
    helper_1.signal(Signal::SIGKILL)?;
    pair.unplug(Node::One)?;
    let committed = nodes.ctsync(Node::Two, &["commit", "--verify", "--json"])?;
    ensure!(committed.ok(), "{nat}: {}", committed.report());
    pair.activate(Node::Two)?;

    let fw_2 = pair.fw(Node::Two);
    let table = fw_2.run("conntrack", &["-L", "expect"])?;
    ensure!(table.matches("PERMANENT").count() == 4, "{nat}: {table}");
    let listener = control.listen(50001)?;
    let line = control.port_line(50001)?;
    control.command(&line, "200")?;
    let after = control.list_to(&listener);
    let after = after.with_context(|| format!("{nat}: {}", helper_2.log()))?;
    ensure!(before == after, "{nat}: {before:?} then {after:?}");
    let status = helper_2.status(fw_2)?;
    ensure!(event(&status, "reused") == 1, "{nat}: {status}");
    ensure!(event(&status, "picked-up") == 0, "{nat}: {status}");
    let passive = control.list_passively();
    let passive = passive.with_context(|| format!("{nat}: {}", helper_2.log()))?;
    ensure!(passive == after, "{nat}: {after:?} then {passive:?}");
    helper_2.stop()?;
    Ok(())
}

#[test]
fn a_session_with_a_permanent_block_survives_without_nat() -> Result<()> {
    lab::require!(needs NEEDS);
    a_session_with_a_permanent_block_survives(Nat::None)
}

#[test]
fn a_session_with_a_permanent_block_survives_with_snat() -> Result<()> {
    lab::require!(needs NEEDS);
    a_session_with_a_permanent_block_survives(Nat::Snat)
}
