//! How it behaves in operation: kills, several queues, reloads, limits,
//! refusals to start.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::control::Control;
use lab::ftp::script::Dialogue;
use lab::ftp::suite::World;
use lab::netns::Namespace;
use lab::ours::{self, Helper, Watch, program};
use lab::topology::{Family, Topology};
use lab::wait::until_true;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{NEEDS, counter, login, started, transfer};

/// kill -9 leaves the helper enabled and nobody listening; what the unit
/// does then (`disable`) lets control connections go on, and the next
/// daemon takes over.
#[test]
fn a_killed_daemon_is_disabled_from_outside_and_succeeded() -> Result<()> {
    lab::require!(needs NEEDS);
    let (world, helper) = started(Nat::None, &[])?;
    let fw = &world.topology.fw;
    let mut control = login(&world)?;
    helper.signal(Signal::SIGKILL)?;
    let proc = format!("/proc/{}/exe", helper.pid());
    until_true("the daemon's end", || !Path::new(&proc).exists())?;
    ours::run(fw, "nft-ftp-helper", &["disable"])?;
    control.command("NOOP", "200")?;
    drop(helper);
    let helper = Helper::start(fw, &[])?;
    let listener = control.listen(50125)?;
    let line = control.port_line(50125)?;
    control.command(&line, "200")?;
    control.list_to(&listener).with_context(|| helper.log())?;
    helper.stop()?;
    Ok(())
}

#[test]
fn every_queue_of_a_range_has_a_helper_and_serves_it() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    let helper = Helper::start(fw, &["--queue-num", "121-124"])?;
    let list = ours::run(fw, "nft-ftp-helper", &["list"])?;
    for (name, queue) in [
        ("nft-ftp ", 121),
        ("nft-ftp-1 ", 122),
        ("nft-ftp-2 ", 123),
        ("nft-ftp-3 ", 124),
    ] {
        for family in ["ip", "ip6"] {
            let line = format!("{name}{family} proto 6 queue {queue} enabled");
            ensure!(list.contains(&line), "no {line:?} in {list}");
        }
    }
    fw.nft(
        "table inet lab_helper {
            ct helper third { type \"nft-ftp-2\" protocol tcp; }
            chain prerouting {
                type filter hook prerouting priority -150;
                tcp dport 21 ct helper set \"third\"
            }
        }",
    )?;
    transfer(&world)?;
    let status = helper.status(fw)?;
    let packets = |queue: usize| {
        let queue = status.get("queues").and_then(|q| q.get(queue));
        queue.and_then(|q| q.get("packets")).and_then(Value::as_u64)
    };
    ensure!(packets(2) > Some(0) && packets(0) == Some(0), "{status}");
    fw.run("nft", &["delete", "table", "inet", "lab_helper"])?;
    helper.stop()?;
    Ok(())
}

#[test]
fn a_reload_changes_the_policy_and_keeps_the_old_one_if_it_is_wrong() -> Result<()> {
    lab::require!(needs NEEDS);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("helper.toml");
    std::fs::write(&file, "min-port = 60000\n")?;
    let config = file.to_string_lossy().into_owned();
    let (world, helper) = started(Nat::None, &["--config", &config])?;
    let fw = &world.topology.fw;
    let mut control = login(&world)?;
    let line = control.port_line(50126)?;
    control.command(&line, "200")?;
    let refused = |n: u64| -> Result<()> {
        let status = helper.status(fw)?;
        ensure!(
            counter(&status, "events", "privileged-port") == n,
            "{status}"
        );
        Ok(())
    };
    refused(1)?;
    std::fs::write(&file, "min-port = \"many\"\n")?;
    helper.signal(Signal::SIGHUP)?;
    until_true("the complaint", || helper.log().contains("not reloaded"))?;
    ensure!(
        helper.log().contains("helper.toml:1:12"),
        "{}",
        helper.log()
    );
    control.command(&line, "200")?;
    refused(2)?;
    std::fs::write(&file, "min-port = 1024\n")?;
    helper.signal(Signal::SIGHUP)?;
    until_true("the reload", || helper.log().contains("reloaded\n"))?;
    let listener = control.listen(50126)?;
    control.command(&line, "200")?;
    control.list_to(&listener)?;
    refused(2)?;
    helper.stop()?;
    Ok(())
}

#[test]
fn what_keeps_it_from_starting_is_said_in_one_line() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    let helper = Helper::start(fw, &[])?;
    let control = helper.control().to_string_lossy().into_owned();
    for (options, expected) in [
        (["--control", control.as_str()], "another daemon listens"),
        (
            ["--control", "/run/lab-second-control"],
            "another process is bound to this queue",
        ),
        (["--config", "/nowhere.toml"], "reading /nowhere.toml"),
        (["--max-expected", "256"], "256 is not in 1..=255"),
    ] {
        refuses(fw, &options, expected)?;
    }
    helper.stop()?;
    // The kernel's own helper has this name.
    fw.nft(lab::firewall::KERNEL_HELPER)?;
    refuses(fw, &["--helper-name", "ftp"], "nf_conntrack_ftp")
}

/// A client that takes all it may have doesn't keep others from working. One
/// count for all queues: its connections come through both, and neither queue
/// alone has as many as are refused. It is the kernel's, so that it outlives
/// the daemon.
#[test]
fn a_client_at_its_limit_is_refused_and_others_are_not() -> Result<()> {
    lab::require!(needs NEEDS);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("helper.toml");
    std::fs::write(&file, "max-expected-client = 3\nmax-expected-total = 4\n")?;
    let config = file.to_string_lossy().into_owned();
    let options = ["--config", &config, "--queue-num", "121-122"];
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    let helper = Helper::start(fw, &options)?;
    let policy = dir.path().join("ruleset.toml");
    std::fs::write(&policy, "[[helper]]\nqueues = 2\n")?;
    let policy = policy.to_string_lossy();
    ours::run(fw, "nft-ftp-ruleset", &["load", "--config", &policy])?;
    let watch = Watch::start(fw, &helper)?;
    let mut greedy: Vec<_> = (0..4).map(|_| login(&world)).collect::<Result<_>>()?;
    let announce = |control: &mut Control<'_>, port: u16| -> Result<()> {
        let line = control.eprt_line(port)?;
        control.command(&line, "200").map(drop)
    };
    let listener = greedy.first().context("no client")?.listen(50140)?;
    for (control, port) in greedy.iter_mut().zip(50140..) {
        announce(control, port)?;
    }
    let refused = watch.wait_for("refused", 1)?;
    let reason = refused.first().and_then(|event| event.get("reason"));
    ensure!(reason.is_some_and(|r| r == "client-limit"), "{refused:?}");
    let events = |helper: &Helper, name: &str| -> Result<u64> {
        Ok(counter(&helper.status(fw)?, "events", name))
    };
    let live = |helper: &Helper| -> Result<u64> {
        Ok(counter(&helper.status(fw)?, "live", "expectations"))
    };
    ensure!(live(&helper)? == 3 && events(&helper, "client-limit")? == 1);
    let table = fw.run("conntrack", &["-L", "-p", "tcp", "--orig-port-dst", "21"])?;
    for name in ["helper=nft-ftp ", "helper=nft-ftp-1 "] {
        let through = table.matches(name).count();
        ensure!(through == 2, "{through} connections with {name}: {table}");
    }
    // Another client, by its IPv6 address, works; and then all is taken.
    let mut other = Control::login(&world.topology.client, world.target(Family::V6))?;
    other.list_passively().with_context(|| helper.log())?;
    announce(&mut other, 50150)?;
    announce(&mut other, 50151)?;
    ensure!(events(&helper, "total-limit")? == 1, "{}", helper.log());
    // The next daemon counts what is there.
    drop(watch);
    helper.stop()?;
    let helper = Helper::start(fw, &options)?;
    ensure!(live(&helper)? == 4, "{}", helper.status(fw)?);
    let last = greedy.last_mut().context("no client")?;
    announce(last, 50143)?;
    ensure!(
        events(&helper, "client-limit")? == 1,
        "{}",
        helper.status(fw)?
    );
    // What is consumed makes room at once.
    let first = greedy.first_mut().context("no client")?;
    first.list_to(&listener).with_context(|| helper.log())?;
    let last = greedy.last_mut().context("no client")?;
    announce(last, 50144)?;
    let status = helper.status(fw)?;
    ensure!(counter(&status, "events", "client-limit") == 1, "{status}");
    ensure!(counter(&status, "events", "opened") == 1, "{status}");
    // A reload lifts the limits.
    std::fs::write(&file, "max-expected-client = 0\n")?;
    helper.signal(Signal::SIGHUP)?;
    until_true("the reload", || helper.log().contains("reloaded\n"))?;
    announce(last, 50145)?;
    announce(&mut other, 50152)?;
    let status = helper.status(fw)?;
    ensure!(counter(&status, "events", "opened") == 3, "{status}");
    helper.stop()?;
    Ok(())
}

fn refuses(fw: &Namespace, options: &[&str], expected: &str) -> Result<()> {
    let mut command = program("nft-ftp-helper", &["run"])?;
    command.args(options);
    let said = fw.finish(command)?.report();
    ensure!(said.contains("exit status: 2"), "{options:?}: {said}");
    ensure!(said.contains(expected), "{options:?}: {said}");
    Ok(())
}

#[test]
fn it_keeps_one_capability_and_answers_for_metrics() -> Result<()> {
    lab::require!(needs NEEDS);
    let (world, helper) = started(Nat::None, &["--metrics", "127.0.0.1:9121"])?;
    let fw = &world.topology.fw;
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.pid()))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    // CAP_NET_ADMIN is bit 12.
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        ensure!(field(set) == "0000000000001000", "{set} {}", field(set));
    }
    ensure!(
        field("NoNewPrivs:") == "1" && field("Seccomp:") == "2",
        "{status}"
    );
    transfer(&world)?;
    let text = fw.enter(|| -> Result<String> {
        let mut stream = std::net::TcpStream::connect("127.0.0.1:9121")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
    ensure!(
        text.contains("nft_ftp_helper_events_total{reason=\"opened\"} 3"),
        "{text}"
    );
    ensure!(text.ends_with("# EOF\n"), "{text}");
    helper.stop()?;
    Ok(())
}

/// Memory of its own that a process has resident, in KiB (proc(5), status).
/// Not the pages of its program: they come as its code runs.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let number = line.and_then(|l| l.split_whitespace().next());
    number.context("no RssAnon")?.parse().context("RssAnon")
}

/// Sessions that announce a port and end without using it, one after the
/// other: neither memory nor expectations add up.
#[test]
fn memory_is_flat_over_sessions() -> Result<()> {
    lab::require!(needs NEEDS);
    let full = lab::require::is_full();
    let sessions = if full { 500 } else { 15 };
    let topology = Topology::new()?;
    topology.fw.nft(lab::firewall::DEFAULT_DROP)?;
    let helper = Helper::start(&topology.fw, &[])?;
    ours::run(&topology.fw, "nft-ftp-ruleset", &["load"])?;
    let session = || -> Result<()> {
        let mut dialogue = Dialogue::open(&topology, Nat::None, Family::V4)?;
        dialogue.login()?;
        dialogue.command("PORT 10,0,1,2,156,64\r\n")?;
        dialogue.reply("200 ok\r\n")
    };
    (0..10).try_for_each(|_| session())?;
    let before = resident(helper.pid())?;
    (0..sessions).try_for_each(|_| session())?;
    let after = resident(helper.pid())?;
    println!("{sessions} sessions: {before} KiB before, {after} KiB after");
    ensure!(after < before + 512, "{before} KiB, then {after} KiB");
    until_true("the end of all expectations", || {
        let status = helper.status(&topology.fw);
        status.is_ok_and(|s| counter(&s, "live", "expectations") == 0)
    })?;
    let status = helper.status(&topology.fw)?;
    ensure!(
        counter(&status, "events", "opened") == sessions + 10,
        "{status}"
    );
    helper.stop()?;
    Ok(())
}

/// An unprivileged user with the one capability is enough.
#[test]
fn it_runs_without_root() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    let dir = tempfile::tempdir()?;
    lab::check::set_mode(dir.path(), 0o777)?;
    let control = dir.path().join("control");
    let mut command = lab::command::command(
        "setpriv",
        &[
            "--reuid=nobody",
            "--regid=nogroup",
            "--clear-groups",
            "--inh-caps=+net_admin",
            "--ambient-caps=+net_admin",
        ],
    );
    command
        .arg(lab::programs::built("nft-ftp-helper")?)
        .args(["run", "--control"])
        .arg(&control);
    let mut peer = lab::peer::Peer::start(fw, "nft-ftp-helper", command)?;
    peer.wait_for_line("helper enabled")?;
    ours::run(fw, "nft-ftp-ruleset", &["load"])?;
    transfer(&world).with_context(|| peer.log())?;
    let (status, log) = peer.stop()?;
    ensure!(status.success(), "{status}\n{log}");
    Ok(())
}
