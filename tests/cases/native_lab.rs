//! The laboratory itself: does it build what it says, and does it leave
//! nothing behind?

use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::{Finished, command, run};
use lab::names::NETNS_DIR;
use lab::netns::Namespace;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::Need;
use lab::topology::{Family, Side, Topology, client_address, fw_address, server_address};
use lab::wait::{patience, until_true};

fn exists(name: &str) -> bool {
    Path::new(NETNS_DIR).join(name).exists()
}

/// One TCP connection in each family.
fn reaches(from: &Namespace, to: &Namespace, address: impl Fn(Family) -> IpAddr) -> Result<()> {
    for family in Family::BOTH {
        let ip = address(family);
        let listener = to.enter(|| TcpListener::bind((ip, 0)))?;
        let at = listener.local_addr()?;
        from.enter(|| TcpStream::connect_timeout(&at, patience()))
            .with_context(|| format!("{} to {at} in {}", from.name(), to.name()))?;
    }
    Ok(())
}

/// Runs a test of this file once more, in a process of its own, with
/// `LAB_HELPER` set: it plays the other part then.
fn again(test: &str) -> Result<Command> {
    let mut again = Command::new(std::env::current_exe()?);
    again
        .args(["--exact", test, "--nocapture"])
        .stdin(Stdio::null())
        .env("LAB_HELPER", "1");
    Ok(again)
}

fn is_helper() -> bool {
    std::env::var_os("LAB_HELPER").is_some()
}

#[test]
fn client_and_server_reach_each_other_through_the_firewall() -> Result<()> {
    lab::require!(Need::Root);
    let topology = Topology::new()?;
    reaches(&topology.client, &topology.server, server_address)?;
    reaches(&topology.server, &topology.client, client_address)
}

#[test]
fn the_virtual_address_moves_between_the_firewalls() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    for node in [Node::One, Node::Two, Node::One] {
        pair.activate(node)?;
        reaches(&pair.client, &pair.server, server_address)?;
        let held = pair.fw(node).run("ip", &["-o", "addr"])?;
        let other = pair.fw(node.peer()).run("ip", &["-o", "addr"])?;
        let vip = fw_address(Side::Lan, Family::V4).to_string();
        ensure!(held.contains(&format!(" {vip}/")), "{held}");
        ensure!(!other.contains(&format!(" {vip}/")), "{other}");
    }
    Ok(())
}

#[test]
fn the_sync_link_joins_the_firewalls_also_after_a_cable_was_pulled() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let sync = |node: Node| move |family| node.sync_address(family);
    reaches(&pair.fw_1, &pair.fw_2, sync(Node::Two))?;
    // Something that would answer, were the cable not pulled.
    let own = Node::One.sync_address(Family::V4);
    let listener = pair.fw_1.enter(|| TcpListener::bind((own, 0)))?;
    let at = listener.local_addr()?;
    pair.unplug(Node::One)?;
    let cut = pair
        .fw_2
        .enter(|| TcpStream::connect_timeout(&at, Duration::from_millis(200)));
    ensure!(cut.is_err(), "the cable is pulled");
    pair.plug(Node::One)?;
    reaches(&pair.fw_2, &pair.fw_1, sync(Node::One))
}

#[test]
fn a_panic_leaves_neither_namespace_nor_process() -> Result<()> {
    lab::require!(Need::Root);
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = std::thread::spawn(move || {
        let topology = Topology::new().unwrap();
        let peer = Peer::start(&topology.fw, "sleep", command("sleep", &["1000"])).unwrap();
        sender
            .send((topology.fw.name().to_owned(), peer.pid()))
            .unwrap();
        panic!("on purpose");
    })
    .join();
    ensure!(panicked.is_err(), "it was to panic");
    let (name, pid) = receiver.recv()?;
    ensure!(!exists(&name), "{name} is still there");
    ensure!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "process {pid} still runs"
    );
    Ok(())
}

#[test]
fn leftovers_of_a_killed_process_are_reaped() -> Result<()> {
    lab::require!(Need::Root);
    if is_helper() {
        let topology = Topology::new()?;
        let peer = Peer::start(&topology.fw, "sleep", command("sleep", &["1000"]))?;
        println!("made {} {}.", topology.fw.name(), peer.pid());
        std::thread::park();
    }
    let out = tempfile::NamedTempFile::new()?;
    let mut killed = again("leftovers_of_a_killed_process_are_reaped")?
        .stdout(out.reopen()?)
        .stderr(Stdio::null())
        .spawn()?;
    let mut found = None;
    let said = until_true("the helper's namespace", || {
        let text = std::fs::read_to_string(out.path()).unwrap_or_default();
        found = made(&text);
        found.is_some()
    });
    killed.kill()?;
    killed.wait()?;
    said?;
    let (name, pid) = found.unwrap_or_default();
    ensure!(exists(&name), "{name} survives its process");
    lab::names::reap();
    ensure!(!exists(&name), "{name} is still there");
    until_true("its process to end", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    })
}

/// Namespace and process from `made NAME PID.` anywhere in the output.
fn made(text: &str) -> Option<(String, String)> {
    let (_, rest) = text.split_once("made ")?;
    let (name, rest) = rest.split_once(' ')?;
    let (pid, _) = rest.split_once('.')?;
    Some((name.to_owned(), pid.to_owned()))
}

#[test]
fn what_a_peer_said_is_in_the_error_when_it_ends_too_soon() -> Result<()> {
    lab::require!(Need::Root);
    let topology = Topology::new()?;
    let dies = command("sh", &["-c", "echo cannot bind; exit 4"]);
    let mut peer = Peer::start(&topology.fw, "server", dies)?;
    let error = peer
        .wait_until("a listener", || topology.fw.listens(21))
        .unwrap_err()
        .to_string();
    ensure!(
        error.contains("cannot bind") && error.contains("exit status: 4"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_missing_feature_skips_by_name_and_fails_where_it_is_required() -> Result<()> {
    const TEST: &str = "a_missing_feature_skips_by_name_and_fails_where_it_is_required";
    if is_helper() {
        lab::require!(Need::Program("no-such-program"));
        unreachable!("it is missing");
    }
    let skips = tempfile::NamedTempFile::new()?;
    let helper = |lab: &str| -> Result<Finished> {
        let mut again = again(TEST)?;
        again.env("LAB", lab).env("LAB_SKIPS", skips.path());
        run(again, patience())
    };
    let skipped = helper("")?;
    ensure!(skipped.ok(), "{}", skipped.report());
    let line = std::fs::read_to_string(skips.path())?;
    let wanted = format!("native_lab::{TEST}: needs program no-such-program\n");
    ensure!(line == wanted, "{line}");
    let failed = helper("required")?;
    let said = failed.report();
    ensure!(!failed.ok(), "{said}");
    ensure!(said.contains("needs program no-such-program"), "{said}");
    Ok(())
}
