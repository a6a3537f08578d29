//! What a session may ask for: blocks of ports, commands in pieces, rewrites
//! of another length, aborts.

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::control::Control;
use lab::ftp::suite::Case;
use lab::ours::{Helper, Watch};
use lab::topology::Family;

use crate::{NEEDS, counter, login, started};

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
