//! ctsync in a pair of firewalls on this kernel: what is mirrored, and
//! whether it lives on after a failover.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::server::{Program, Server};
use lab::ftp::session::{Data, Ftp, is_file};
use lab::nodes::{Nodes, load_rules};
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::talk::Talk;
use lab::topology::Family;
use lab::wait::{patience, until};
use nix::sys::signal::Signal;

/// One firewall dies, the other commits; an FTP session goes on with its
/// next transfers in both modes.
fn session_survives(nat: Nat, family: Family) -> Result<()> {
    let pair = Pair::new()?;
    load_rules(&pair, nat)?;
    pair.activate(Node::One)?;
    let server = Server::start(Program::Vsftpd, &pair.server)?;
    let nodes = Nodes::with("")?;
    let _one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;

    let mut ftp = Ftp::login(&pair.client, nat.target(family), family)?;
    is_file(&ftp.fetch(Data::Passive)?, &server.tree.file())?;
    is_file(&ftp.fetch(Data::Active)?, &server.tree.file())?;
    // Announced, but not used yet: the expectation waits at fw-1.
    let waiting = ftp.passive()?;
    nodes.wait_synced()?;
    nodes.wait_mirrored(Node::One)?;
    ensure!(nodes.number(Node::Two, "/external/expectations")? == 1);
    let helper = nodes.entries(Node::Two, &["external", "--helper", "ftp"])?;
    ensure!(helper.len() == 1, "{helper:?}");

    pair.unplug(Node::One)?;
    let committed = nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(committed.ok(), "{}", committed.report());
    pair.activate(Node::Two)?;

    // The transfer that was announced through fw-1 ...
    let mut data = pair
        .client
        .enter(|| TcpStream::connect_timeout(&waiting, patience()))?;
    ftp.ask(&format!("RETR {}", lab::ftp::server::FILE), "150")?;
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes)?;
    is_file(&bytes, &server.tree.file())?;
    ftp.reply("226")?;
    // ... and the next ones, announced through fw-2.
    for data in [Data::Active, Data::Passive, Data::Active] {
        is_file(&ftp.fetch(data)?, &server.tree.file())?;
    }
    Ok(())
}

#[test]
fn an_ftp_session_survives_without_nat() -> Result<()> {
    lab::require!(Need::Root);
    session_survives(Nat::None, Family::V4)?;
    session_survives(Nat::None, Family::V6)
}

#[test]
fn an_ftp_session_survives_with_snat() -> Result<()> {
    lab::require!(Need::Root);
    session_survives(Nat::Snat, Family::V4)?;
    session_survives(Nat::Snat, Family::V6)
}

#[test]
fn an_ftp_session_survives_with_dnat() -> Result<()> {
    lab::require!(Need::Root);
    session_survives(Nat::Dnat, Family::V4)?;
    session_survives(Nat::Dnat, Family::V6)
}

#[test]
fn an_ftp_session_survives_with_both_nats() -> Result<()> {
    lab::require!(Need::Root);
    session_survives(Nat::Both, Family::V4)?;
    session_survives(Nat::Both, Family::V6)
}

#[test]
fn a_tcp_connection_goes_on_through_the_other_firewall() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    load_rules(&pair, Nat::Snat)?;
    pair.activate(Node::One)?;
    let nodes = Nodes::with("")?;
    let _one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;
    let mut talk = Talk::through(&pair, Family::V4)?;
    nodes.wait_synced()?;
    nodes.wait_mirrored(Node::One)?;

    pair.unplug(Node::One)?;
    let taken = nodes.ctsync(Node::Two, &["primary"])?;
    ensure!(taken.ok(), "{}", taken.report());
    pair.activate(Node::Two)?;
    talk.goes_on()?;
    ensure!(nodes.number(Node::Two, "/internal/flows")? >= 1, "owned");
    Ok(())
}

/// With `apply = "immediate"` nobody has to commit, nor anything to be
/// there when the other firewall dies but the kernel.
#[test]
fn states_that_are_applied_at_once_need_no_commit() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    load_rules(&pair, Nat::Snat)?;
    pair.activate(Node::One)?;
    let nodes = Nodes::with("apply = \"immediate\"")?;
    let [_one, two] = nodes.start_both(&pair)?;
    let mut talk = Talk::through(&pair, Family::V4)?;
    until("the connection in fw-2's kernel", patience(), || {
        let table = pair.fw_2.proc_net("nf_conntrack").ok()?;
        let mut lines = table.lines();
        lines
            .any(|l| l.contains("dport=21 ") && l.contains("[ASSURED]"))
            .then_some(())
    })?;
    // What was put there is not mirrored back.
    let own = nodes.entries(Node::Two, &["internal", "--dport", "21"])?;
    ensure!(own.is_empty(), "{own:?}");
    let (status, log) = two.stop()?;
    ensure!(status.success(), "{log}");

    pair.unplug(Node::One)?;
    pair.activate(Node::Two)?;
    talk.goes_on()
}

/// A line of `/proc/PID/status`.
fn process_status(pid: u32, name: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut lines = text.lines().filter_map(|l| l.split_once(':'));
    let value = lines.find(|(n, _)| *n == name).map(|(_, v)| v.trim());
    Ok(value.context("no such line")?.to_owned())
}

/// All that a daemon does works within what it has left itself.
#[test]
fn a_daemon_confines_itself_and_still_does_its_work() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    load_rules(&pair, Nat::Snat)?;
    let dir = tempfile::tempdir()?;
    let metrics = dir.path().join("metrics");
    let nodes = Nodes::with("")?;
    let config = nodes.file(Node::Two, "toml");
    let text = std::fs::read_to_string(&config)?;
    let served = format!("metrics = \"{}\"\n{text}", metrics.display());
    std::fs::write(&config, served)?;
    let [_one, mut two] = nodes.start_both(&pair)?;
    ensure!(process_status(two.pid(), "Seccomp")? == "2");
    ensure!(process_status(two.pid(), "NoNewPrivs")? == "1");
    // CAP_NET_ADMIN is bit 12.
    ensure!(process_status(two.pid(), "CapEff")? == "0000000000001000");

    two.signal(Signal::SIGHUP)?;
    two.wait_for_line("configuration was read again")?;
    for args in [&["commit", "--dry-run"][..], &["commit", "--verify"]] {
        let done = nodes.ctsync(Node::Two, args)?;
        ensure!(done.ok(), "{}", done.report());
    }
    for role in ["primary", "backup", "primary"] {
        let done = nodes.ctsync(Node::Two, &[role])?;
        ensure!(done.ok(), "{}", done.report());
    }
    let mut scrape = UnixStream::connect(&metrics)?;
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    scrape.read_to_string(&mut answer)?;
    ensure!(answer.contains("# EOF"), "{answer}");
    let (status, log) = two.stop()?;
    ensure!(status.success(), "{log}");
    ensure!(!metrics.exists(), "the metrics' socket is left");
    ensure!(
        !log.contains("EPERM") && !log.contains("not permitted"),
        "{log}"
    );
    ensure!(!nodes.control(Node::Two).exists(), "the socket is left");
    Ok(())
}

/// The set as the ruleset has it.
const HOLD: &str = "\
table inet nft_ftp {
	set hold {
		type inet_proto
		flags timeout
	}
}
";

/// A backup holds unknown connections back; it lets go of them once it is
/// primary and has committed.
#[test]
fn the_hold_set_is_released_when_the_commit_is_done() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let two = pair.fw(Node::Two);
    two.nft(HOLD)?;
    let nodes = Nodes::with("[hold]\ntable = \"nft_ftp\"\n")?;
    let [mut one, _two] = nodes.start_both(&pair)?;
    let held = || two.run("nft", &["list", "set", "inet", "nft_ftp", "hold"]);
    ensure!(!held()?.contains("tcp"), "{}", held()?);
    for _ in 0..2 {
        let waits = nodes.ctsync(Node::Two, &["backup"])?;
        ensure!(waits.ok(), "{}", waits.report());
        until("the set to hold", patience(), || {
            held().ok()?.contains("tcp timeout 30s").then_some(())
        })?;
        let taken = nodes.ctsync(Node::Two, &["primary"])?;
        ensure!(taken.ok(), "{}", taken.report());
        ensure!(!held()?.contains("tcp"), "{}", held()?);
    }
    // A ruleset without the set keeps nobody from taking over, and says so.
    let taken = nodes.ctsync(Node::One, &["primary"])?;
    ensure!(taken.ok(), "{}", taken.report());
    one.wait_for_line("the hold set can't be changed")?;
    Ok(())
}
