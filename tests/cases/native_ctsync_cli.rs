//! ctsync's commands as somebody meets them who does not know it yet, and
//! what they say when something is wrong.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::{self, Finished};
use lab::inject::{Act, inject_in};
use lab::nodes::{Nodes, run};
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::programs::built;
use lab::require::Need;
use lab::wait::{patience, until};
use nix::sys::signal::Signal;

/// As somebody without any right.
fn as_nobody(at: &Pair, args: &[&str]) -> Result<Finished> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(built("ctsync")?).args(args);
    at.fw_1.finish(command)
}

fn says(done: &Finished, code: i32, parts: &[&str]) -> Result<()> {
    let report = done.report();
    ensure!(done.status.code() == Some(code), "not {code}: {report}");
    for part in parts {
        ensure!(report.contains(part), "no {part:?} in {report}");
    }
    Ok(())
}

fn text(path: &std::path::Path) -> Result<String> {
    Ok(path.to_str().context("path")?.to_owned())
}

#[test]
fn what_can_not_be_done_is_told_with_operation_object_and_errno() -> Result<()> {
    lab::require!(Need::Root, Need::Program("setpriv"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let config = text(&nodes.file(Node::One, "toml"))?;
    let control = text(&nodes.control(Node::One))?;
    let enoent = "no such file or directory (ENOENT)";
    for command in ["status", "check", "resync", "primary", "commit", "monitor"] {
        let parts = [
            "connecting to",
            &control,
            "is `ctsync run` running?",
            enoent,
        ];
        says(&nodes.ctsync(Node::One, &[command])?, 2, &parts)?;
    }
    let missing = run(&["check-config", "--config", "/nonexistent.toml"])?;
    says(&missing, 2, &["reading /nonexistent.toml", enoent])?;

    let good = std::fs::read_to_string(&config)?;
    let key = text(&nodes.file(Node::One, "key"))?;
    let bad = nodes.file(Node::One, "bad.toml");
    for (from, to, parts) in [
        ("bind", "bnid", &["bad.toml:6:1: unknown field `bnid`"][..]),
        ("fw-2", "fw-1", &["bad.toml", "peer name \"fw-1\""]),
        (&key, "/nonexistent", &["reading key /nonexistent", enoent]),
        ("3780", "378000", &["bad.toml:6:8: invalid socket address"]),
    ] {
        std::fs::write(&bad, good.replacen(from, to, 1))?;
        says(&run(&["check-config", "--config", &text(&bad)?])?, 2, parts)?;
        let started = run(&["run", "--config", &text(&bad)?])?;
        says(&started, 2, parts)?;
    }
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let open = run(&["check-config", "--config", &config])?;
    says(
        &open,
        2,
        &[&key, "mode 0644 lets others read it; chmod 600"],
    )?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    says(
        &run(&["check-config", "--config", &config])?,
        0,
        &["node fw-1, 1 peer"],
    )?;

    std::fs::set_permissions(
        nodes.file(Node::One, "").parent().context("dir")?,
        PermissionsExt::from_mode(0o755),
    )?;
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o644))?;
    says(
        &as_nobody(&pair, &["run", "--config", &config])?,
        2,
        &["CAP_NET_ADMIN is missing"],
    )?;
    says(
        &as_nobody(&pair, &["show", "kernel"])?,
        2,
        &["dumping connections", "(EPERM)"],
    )?;

    let _one = nodes.start(&pair, Node::One)?;
    let mut second = Command::new(built("ctsync")?);
    second.args(["run", "--config", &config]);
    let second = pair.fw_1.finish(second)?;
    says(
        &second,
        2,
        &[
            "binding link 10.0.3.11:3780",
            "address already in use (EADDRINUSE)",
        ],
    )?;
    // Another link, the same control socket.
    std::fs::write(&bad, good.replacen("3780", "3781", 1))?;
    let mut third = Command::new(built("ctsync")?);
    third.args(["run", "--config", &text(&bad)?]);
    says(
        &pair.fw_1.finish(third)?,
        2,
        &["listening at", &control, "another daemon"],
    )?;

    for (args, part) in [
        (["-s", "nowhere"], "\"nowhere\" is no network"),
        (["-p", "nothing"], "protocol \"nothing\" is unknown"),
        (
            ["--state", "asleep"],
            "state \"asleep\" is unknown; those of TCP are NONE, SYN_SENT",
        ),
    ] {
        let shown = nodes.ctsync(Node::One, &[&["show", "internal"], &args[..]].concat())?;
        says(&shown, 2, &[part])?;
    }
    // Whoever gets at the socket is asked who they are.
    let refused = ["--control", control.as_str(), "status"];
    says(
        &as_nobody(&pair, &refused)?,
        2,
        &[&control, "permission denied (EACCES)"],
    )?;
    std::fs::set_permissions(&control, PermissionsExt::from_mode(0o666))?;
    let parts = ["closed the connection", "root and its own user"];
    for command in ["status", "primary", "resync"] {
        let refused = ["--control", control.as_str(), command];
        says(&as_nobody(&pair, &refused)?, 2, &parts)?;
    }
    says(
        &nodes.ctsync(Node::One, &["status"])?,
        0,
        &["fw-1: standalone"],
    )
}

#[test]
fn a_wrong_key_is_refused_and_told() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    // fw-2 has another key than the one that fw-1 knows.
    let other = nodes.file(Node::Two, "other");
    run(&["keygen", &text(&other)?])?.success()?;
    std::fs::rename(&other, nodes.file(Node::Two, "key"))?;
    let mut one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;
    one.wait_for_line("refused a datagram: an unknown key")?;
    until("refused handshakes", patience(), || {
        let n = nodes
            .number(Node::One, "/counters/refused_unknown_key")
            .ok()?;
        (n >= 2).then_some(())
    })?;
    let logged = one.log().matches("an unknown key").count();
    ensure!(logged == 1, "logged {logged} times");
    let why = "fw-2 can't be reached, and its copy here is not complete";
    says(&nodes.ctsync(Node::One, &["check"])?, 1, &[why])?;
    let parts = ["NOT IN SYNC since", why, "peer fw-2: down", "never heard"];
    says(&nodes.ctsync(Node::One, &["status"])?, 0, &parts)
}

/// Between the two firewalls, with one connection of each kind.
#[test]
fn status_show_and_monitor_read_well() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrack"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let [_one, two] = nodes.start_both(&pair)?;
    let watch = |json: bool| -> Result<Peer> {
        let mut command = Command::new(built("ctsync")?);
        command
            .arg("--control")
            .arg(nodes.control(Node::Two))
            .arg("monitor");
        command.args(json.then_some("--json"));
        Peer::start(&pair.fw_2, "monitor", command)
    };
    let (mut lines, mut objects) = (watch(false)?, watch(true)?);
    // A monitor that has just been started is not connected yet: the first
    // connections may come before it.
    until("the monitors", patience(), || {
        inject_in(&pair.fw_1, 100, 101, Act::Create).ok()?;
        inject_in(&pair.fw_1, 100, 101, Act::Delete).ok()?;
        (lines.log().contains("[destroy]") && objects.log().contains("destroy")).then_some(())
    })?;
    inject_in(&pair.fw_1, 0, 1, Act::Create)?;
    lines.wait_for_line("[new] external ipv4 tcp     6   ESTABLISHED src=10.200.0.0 dst=10.201.0.1 sport=3000 dport=80 ")?;
    objects.wait_for_line("\"sport\":3000")?;
    inject_in(&pair.fw_1, 0, 1, Act::Mark(9))?;
    lines.wait_for_line("[update] external")?;

    let reads = "ESTABLISHED src=10.200.0.0 dst=10.201.0.1 sport=3000 dport=80 src=10.201.0.1 dst=10.200.0.0 sport=80 dport=3000 [ASSURED] mark=9";
    for args in [
        &["external"][..],
        &["external", "-s", "10.200.0.0/16", "-d", "10.201.0.1"],
        &[
            "external",
            "-p",
            "tcp",
            "--dport",
            "80",
            "--state",
            "established",
        ],
        &["external", "--zone", "0"],
    ] {
        let shown = nodes.ctsync(Node::Two, &[&["show"], args].concat())?;
        says(&shown, 0, &[reads])?;
    }
    for args in [
        ["-s", "10.0.0.0/24"],
        ["-d", "10.200.0.0"],
        ["-p", "udp"],
        ["--dport", "443"],
        ["--state", "SYN_SENT"],
        ["--helper", "ftp"],
        ["--zone", "1"],
    ] {
        let shown = nodes.ctsync(Node::Two, &[&["show", "external"], &args[..]].concat())?;
        ensure!(shown.success()?.is_empty(), "{args:?}");
    }
    // The kernel's own list and ours have the same words.
    let ours = pair.fw_1.finish({
        let mut command = Command::new(built("ctsync")?);
        command.args(["show", "kernel", "-d", "10.201.0.1"]);
        command
    })?;
    let ours = ours.success()?;
    let theirs = pair.fw_1.run("conntrack", &["-L", "-d", "10.201.0.1"])?;
    let words = |text: &str| -> Vec<String> {
        let words = text
            .split_whitespace()
            .filter(|w| w.contains('=') && !w.starts_with("use="));
        words.map(str::to_owned).collect()
    };
    ensure!(words(&ours) == words(&theirs), "{ours}{theirs}");

    let parts = [
        "fw-2: standalone, in sync since",
        "internal: 0 connections, 0 expectations",
        "external: 1 connections, 0 expectations",
        "peer fw-1: up, standalone, both copies complete, lag 0 ms, 0 queued; 1 connections",
        "link 10.0.3.11:3780: heard",
        ", in use",
    ];
    says(&nodes.ctsync(Node::Two, &["status"])?, 0, &parts)?;
    let trial = nodes.ctsync(Node::Two, &["commit", "--dry-run"])?;
    let parts = [
        "would commit 1 connections and 0 expectations",
        "no nftables ruleset is loaded",
    ];
    says(&trial, 1, &parts)?;
    let done = nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    says(
        &done,
        0,
        &["flows: 1", "failed: 0", "verified: 1 good, 0 missing"],
    )?;
    inject_in(&pair.fw_1, 0, 1, Act::Delete)?;
    lines.wait_for_line("[destroy] external ipv4")?;
    let (status, log) = two.stop()?;
    ensure!(status.success(), "{log}");
    Ok(())
}

#[test]
fn a_reload_tells_what_needs_a_restart() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let mut one = nodes.start(&pair, Node::One)?;
    let config = nodes.file(Node::One, "toml");
    let good = std::fs::read_to_string(&config)?;
    let reload = |text: &str| -> Result<()> {
        std::fs::write(&config, text)?;
        one.signal(Signal::SIGHUP)
    };
    reload(&format!(
        "mtu = 1400\npeer-timeout = \"9s\"\n{}",
        good.replace(":3780\"\n", ":3790\"\n")
    ))?;
    one.wait_for_line("changes of peer-timeout, mtu, links need a restart")?;
    std::fs::write(&config, good.replace("bind", "bnid"))?;
    one.signal(Signal::SIGHUP)?;
    let line = one.wait_for_line("configuration was not changed")?;
    ensure!(line.contains("unknown field `bnid`"), "{line}");
    // And it goes on as it was.
    says(
        &nodes.ctsync(Node::One, &["status"])?,
        0,
        &["fw-1: standalone"],
    )
}

/// With "immediate" after a reload, what is known already is written too.
#[test]
fn apply_can_change_while_running() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let [_one, mut two] = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, 100, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    ensure!(lab::inject::injected(&pair.fw_2, 0)?.0 == 0, "too early");
    let config = nodes.file(Node::Two, "toml");
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("apply = \"immediate\"\n{text}"))?;
    two.signal(Signal::SIGHUP)?;
    two.wait_for_line("configuration was read again")?;
    until("the connections in the kernel", patience(), || {
        (lab::inject::injected(&pair.fw_2, 0).ok()?.0 == 100).then_some(())
    })
}

/// A long commit on a terminal.
#[test]
fn a_commit_shows_its_progress_on_a_terminal() -> Result<()> {
    lab::require!(Need::Root, Need::Program("script"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let _daemons = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, 20_000, Act::Create)?;
    until("a whole copy", Duration::from_secs(40), || {
        let n = nodes.number(Node::Two, "/external/flows").ok()?;
        (n == 20_000).then_some(())
    })?;
    let program = text(&built("ctsync")?)?;
    let control = text(&nodes.control(Node::Two))?;
    let line = format!("{program} --control {control} commit");
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let shown = command::run(command, Duration::from_secs(120))?.success()?;
    ensure!(shown.contains("/20000"), "{shown:?}");
    ensure!(shown.contains("flows: 20000"), "{shown:?}");
    Ok(())
}

#[test]
fn metrics_are_open_metrics() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("metrics");
    let nodes = Nodes::with(&format!("metrics = \"{}\"", path.display()))?;
    // One socket for two nodes: only one of them runs.
    let _one = nodes.start(&pair, Node::One)?;
    inject_in(&pair.fw_1, 0, 10, Act::Create)?;
    let mut answer = String::new();
    until("ten connections", patience(), || {
        let mut scrape = UnixStream::connect(&path).ok()?;
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        scrape.write_all(request).ok()?;
        answer.clear();
        scrape.read_to_string(&mut answer).ok()?;
        let line = "ctsync_flows{cache=\"internal\"} 10\n";
        answer.contains(line).then_some(())
    })
    .with_context(|| answer.clone())?;
    for part in [
        "HTTP/1.1 200",
        "application/openmetrics-text",
        "# TYPE ctsync_events counter\n",
        "ctsync_events_total 10\n",
        "# TYPE ctsync_in_sync gauge\n",
        "ctsync_peer_up{peer=\"fw-2\"} 0\n",
        "ctsync_written_entries_total 0\n",
    ] {
        ensure!(answer.contains(part), "no {part:?} in {answer}");
    }
    ensure!(answer.ends_with("# EOF\n"), "{answer}");
    Ok(())
}
