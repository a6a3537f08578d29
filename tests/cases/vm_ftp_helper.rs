//! How our helper behaves in operation: blocks of ports, restarts, kills,
//! several queues, reloads, refusals to start.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::control::Control;
use lab::ftp::script::Dialogue;
use lab::ftp::suite::{Case, World};
use lab::netns::Namespace;
use lab::ours::{self, Helper, Watch, program};
use lab::require::Need;
use lab::topology::{Family, Topology};
use lab::wait::until_true;
use nix::sys::signal::Signal;
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

/// The scenario of the published kernel patch, on an unpatched kernel: four
/// lists on neighbouring ports, one block of expectations, reused.
#[test]
fn four_lists_on_neighbouring_ports_share_one_permanent_block() -> Result<()> {
    lab::require!(needs NEEDS);
    for nat in [Nat::None, Nat::Snat] {
        let (world, helper) = started(nat, &["--port-mask", "0xfffc", "--permanent"])?;
        let fw = &world.topology.fw;
        let watch = Watch::start(fw, &helper)?;
        let mut control = login(&world)?;
        for port in 50000..50004 {
            let listener = control.listen(port)?;
            let line = control.port_line(port)?;
            control.command(&line, "200")?;
            let names = control.list_to(&listener).with_context(|| helper.log())?;
            ensure!(!names.is_empty(), "an empty list");
        }
        let new = watch.wait_for("new", 4)?;
        ensure!(new.len() == 4, "{nat}: {new:?}");
        let table = fw.run("conntrack", &["-L", "expect"])?;
        ensure!(table.matches("PERMANENT").count() == 4, "{nat}: {table}");
        for port in 50000..50004 {
            ensure!(table.contains(&format!("dport={port} ")), "{nat}: {table}");
        }
        let status = helper.status(fw)?;
        ensure!(counter(&status, "events", "opened") == 1, "{status}");
        ensure!(counter(&status, "events", "reused") == 3, "{status}");
        // A block that is not the last one is renewed, too.
        for port in [50010, 50001] {
            let line = control.port_line(port)?;
            control.command(&line, "200")?;
        }
        let table = fw.run("conntrack", &["-L", "expect"])?;
        ensure!(table.matches("PERMANENT").count() == 8, "{nat}: {table}");
        let status = helper.status(fw)?;
        ensure!(counter(&status, "counters", "renewed") == 16, "{status}");
        ensure!(counter(&status, "events", "renumbered") == 0, "{status}");
        drop(control);
        helper.stop()?;
    }
    Ok(())
}

/// The state is in the kernel: the next daemon goes on in the middle of a
/// number, and rewrites the rest.
#[test]
fn a_restart_in_the_middle_of_a_command_loses_nothing() -> Result<()> {
    lab::require!(needs NEEDS);
    for nat in [Nat::None, Nat::Snat] {
        let (world, helper) = started(nat, &[])?;
        let mut control = login(&world)?;
        let listener = control.listen(50123)?;
        let line = control.port_line(50123)?;
        // Behind the first digit of the port's high byte.
        let (first, rest) = line.split_at(line.len() - 5);
        control.send(first)?;
        control.flush()?;
        helper.stop()?;
        let helper = Helper::start(&world.topology.fw, &[])?;
        control.send(&format!("{rest}\r\n"))?;
        control.expect("200")?;
        control
            .list_to(&listener)
            .with_context(|| format!("{nat}: {}", helper.log()))?;
        helper.stop()?;
    }
    Ok(())
}

/// Every piece of a command is a segment of its own, and none is held back.
#[test]
fn a_command_in_single_bytes_opens_and_is_rewritten() -> Result<()> {
    lab::require!(needs NEEDS);
    for nat in Nat::ALL {
        let (world, helper) = started(nat, &[])?;
        let mut control = login(&world)?;
        let listener = control.listen(50124)?;
        let line = control.port_line(50124)? + "\r\n";
        for piece in 0..line.len() {
            control.send(&line[piece..=piece])?;
            control
                .flush()
                .with_context(|| format!("{nat}: byte {piece} of {line:?}"))?;
        }
        control.expect("200")?;
        control
            .list_to(&listener)
            .with_context(|| format!("{nat}: {}", helper.log()))?;
        helper.stop()?;
    }
    Ok(())
}

/// Addresses of other lengths than those they replace, in both directions of
/// one connection, again and again: sequence adjustments add up, also for
/// IPv6, where the kernel's own arithmetic is wrong.
#[test]
fn rewrites_that_change_the_length_add_up() -> Result<()> {
    lab::require!(needs NEEDS);
    let outside = "10.0.2.111 fd00:2::1111:2222:3333";
    let inside = "10.0.1.111 fd00:1::1111:2222:3333";
    let (world, helper) = started(Nat::None, &[])?;
    let fw = &world.topology.fw;
    for (device, addresses) in [("wan", outside), ("lan", inside)] {
        for address in addresses.split(' ') {
            let (length, nodad) = match address.contains(':') {
                true => (64, " nodad"),
                false => (24, ""),
            };
            fw.ip_batch(&format!(
                "addr add {address}/{length} dev {device}{nodad}\n"
            ))?;
        }
    }
    fw.nft(
        "table inet lab_nat {
            chain pre {
                type nat hook prerouting priority dstnat;
                ip daddr 10.0.1.111 tcp dport 21 dnat ip to 10.0.2.2
                ip6 daddr fd00:1::1111:2222:3333 tcp dport 21 dnat ip6 to fd00:2::2
            }
            chain post {
                type nat hook postrouting priority srcnat;
                oifname wan snat ip to 10.0.2.111
                oifname wan snat ip6 to fd00:2::1111:2222:3333
            }
        }",
    )?;
    for address in inside.split(' ') {
        let server = address.parse()?;
        let mut control = Control::login(&world.topology.client, server)?;
        for round in 0..4 {
            let port = 50200 + round;
            let listener = control.listen(port)?;
            let line = control.eprt_line(port)?;
            control.command(&line, "200")?;
            let active = control.list_to(&listener);
            let active = active.with_context(|| format!("{line}\n{}", helper.log()))?;
            let passive = control.list_passively();
            let passive = passive.with_context(|| format!("round {round}\n{}", helper.log()))?;
            ensure!(active == passive, "{active:?} is not {passive:?}");
        }
        control.command("NOOP", "200")?;
    }
    let status = helper.status(fw)?;
    ensure!(counter(&status, "events", "opened") == 16, "{status}");
    // 8 EPRT, and 4 times 227; 229 has no address. More if TCP repeats one.
    ensure!(counter(&status, "counters", "rewritten") >= 12, "{status}");
    helper.stop()?;
    Ok(())
}

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

/// A client that tries TLS, is told no, and goes on; and one that aborts as
/// Telnet wants it, with urgent data (RFC 959 section 4.1.3).
#[test]
fn a_failed_auth_and_an_urgent_abort_leave_the_next_transfer_possible() -> Result<()> {
    lab::require!(needs NEEDS);
    let (world, helper) = started(Nat::Snat, &[])?;
    let mut control = login(&world)?;
    control.send("AUTH TLS\r\n")?;
    let said = control.reply()?;
    ensure!(said.starts_with('5'), "AUTH TLS: {said}");
    for port in [50127, 50128] {
        let listener = control.listen(port)?;
        let line = control.port_line(port)?;
        control.command(&line, "200")?;
        control.list_to(&listener).with_context(|| helper.log())?;
        control.abort()?;
        control.expect("225")?;
    }
    control.list_passively().with_context(|| helper.log())?;
    helper.stop()?;
    Ok(())
}

/// The largest block, and one that would reach below the lowest port allowed.
#[test]
fn a_block_of_64_is_opened_and_clipped_where_it_must_be() -> Result<()> {
    lab::require!(needs NEEDS);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("helper.toml");
    std::fs::write(&file, "port-mask = \"0xffc0\"\nmin-port = 1040\n")?;
    let config = file.to_string_lossy().into_owned();
    let (world, helper) = started(Nat::None, &["--config", &config, "--permanent"])?;
    let fw = &world.topology.fw;
    let mut control = login(&world)?;
    let line = control.port_line(50130)?;
    control.command(&line, "200")?;
    let table = fw.run("conntrack", &["-L", "expect"])?;
    let ports = |first: u16, last: u16| {
        let there = |port: &u16| table.contains(&format!("dport={port} "));
        (first..=last).filter(there).count()
    };
    // 50130 lies in 50112 to 50175.
    ensure!(ports(50112, 50175) == 64, "{table}");
    ensure!(table.matches("PERMANENT").count() == 64, "{table}");
    let line = control.port_line(1050)?;
    control.command(&line, "200")?;
    let table = fw.run("conntrack", &["-L", "expect"])?;
    ensure!(table.matches("PERMANENT").count() == 64 + 48, "{table}");
    ensure!(!table.contains("dport=1039 "), "{table}");
    let status = helper.status(fw)?;
    ensure!(counter(&status, "events", "block-clipped") == 1, "{status}");
    helper.stop()?;
    Ok(())
}

/// Some kernels give data connections their master's helper (6.1.176). Their
/// packets pass the queue until the answer to the first one, and no longer:
/// 2 MiB would be some 1,500. The connection keeps its translation and its
/// master.
#[test]
fn data_connections_leave_the_queue() -> Result<()> {
    lab::require!(needs NEEDS);
    for nat in [Nat::None, Nat::Both] {
        let (world, helper) = started(nat, &[])?;
        let fw = &world.topology.fw;
        for (mode, family) in [
            (Mode::Pasv, Family::V4),
            (Mode::Port, Family::V4),
            (Mode::Epsv, Family::V6),
        ] {
            let client = Client::Curl;
            let case = Case {
                client,
                mode,
                family,
            };
            world.passes(case).with_context(|| helper.log())?;
        }
        let status = helper.status(fw)?;
        let count = |name| counter(&status, "counters", name);
        let (released, packets) = (count("data_released"), count("data_packets"));
        println!("{nat}: {packets} packets of {released} connections");
        ensure!(packets <= 4 * released, "{nat}: {status}");
        ensure!(count("kernel_errors") == 0, "{nat}: {status}");
        helper.stop()?;
    }
    Ok(())
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
    let full = std::env::var_os(lab::ftp::matrix::FULL).is_some();
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
