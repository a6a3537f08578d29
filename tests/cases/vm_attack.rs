//! Attacks on our helper: texts that must open nothing, segments that show
//! different text to helper and receiver, floods, and ways out of its
//! sandbox.

use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::ftp::attack::{ATTACKS, RawClient, is_expected, opened_by_ftp_elsewhere};
use lab::ftp::script::connect;
use lab::inside;
use lab::require::Need;
use lab::served::Served;
use lab::topology::{Family, server_address};
use lab::wait::patience;

const NEEDS: &[Need] = &[Need::OurHelper, Need::Program("conntrack")];

/// A client logs in, and what it announces is expected.
fn still_serves(world: &Served) -> Result<()> {
    let mut dialogue = world.dialogue(Family::V4)?;
    dialogue.command("PORT 10,0,1,2,175,200\r\n")?;
    ensure!(is_expected(&world.topology.fw)?, "{}", world.helper.log());
    Ok(())
}

#[test]
fn no_text_opens_what_it_must_not() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let mut opened = Vec::new();
    for attack in ATTACKS {
        attack.play(&world.topology).context(attack.name)?;
        if is_expected(&world.topology.fw)? {
            opened.push(attack.name);
            world.topology.fw.run("conntrack", &["-F", "expect"])?;
        }
    }
    ensure!(opened.is_empty(), "opened by {opened:?}");
    still_serves(&world)
}

/// What speaks FTP elsewhere is not read: only port 21 is configured.
#[test]
fn ftp_on_another_port_opens_nothing() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let opened = opened_by_ftp_elsewhere(&world.topology)?;
    ensure!(opened.is_empty(), "opened on {opened:?}");
    still_serves(&world)
}

fn login(client: &mut RawClient) -> Result<()> {
    for (says, line) in [("220 ready\r\n", "USER x\r\n"), ("230 in\r\n", "SYST\r\n")] {
        client.server.write_all(says.as_bytes())?;
        client.heard(u32::try_from(says.len())?);
        client.send(0, line.as_bytes())?;
        client.wait_received(line)?;
    }
    client.server.write_all(b"215 UNIX\r\n")?;
    client.heard(10);
    Ok(())
}

/// First the receiver gets one text, then the helper is shown another in the
/// same place; and the other way round, behind a hole.
#[test]
fn overlapping_segments_with_other_text_open_nothing() -> Result<()> {
    lab::require!(needs NEEDS);
    const GOOD: &[u8] = b"NOOP 10,0,1,2,175,200\r\n";
    const EVIL: &[u8] = b"PORT 10,0,1,2,175,200\r\n";
    let world = Served::start(&[])?;
    let mut client = RawClient::connect(&world.topology, 40999)?;
    login(&mut client)?;
    client.send(0, GOOD)?;
    client.wait_received("200\r\n")?;
    let length = i32::try_from(GOOD.len())?;
    client.send(-length, EVIL)?;
    // Longer than what it repeats: the rest is new.
    client.send(-length, &[EVIL, b"NOOP\r\n"].concat())?;
    client.send(6, b"")?;
    let got = client.wait_received("NOOP\r\n")?;
    ensure!(!got.contains("PORT"), "{got:?}");
    ensure!(
        !is_expected(&world.topology.fw)?,
        "opened by the second text"
    );
    drop(client);

    let mut client = RawClient::connect(&world.topology, 40998)?;
    login(&mut client)?;
    // The second line, of which the receiver must not keep this version.
    let first: &[u8] = b"NOOP\r\n";
    client.send(i32::try_from(first.len())?, EVIL)?;
    client.send(0, &[first, GOOD].concat())?;
    let got = client.wait_received("200\r\n")?;
    ensure!(got.contains("NOOP 10,0,1,2"), "{got:?}");
    ensure!(
        !is_expected(&world.topology.fw)?,
        "opened by the first text"
    );
    Ok(())
}

/// Text far from where the connection is: no helper reads it as its next.
#[test]
fn segments_out_of_place_open_nothing() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let mut client = RawClient::connect(&world.topology, 40999)?;
    login(&mut client)?;
    for offset in [1, 1000, 30_000, 60_000, -1000, i32::MAX, i32::MIN] {
        client.send(offset, b"PORT 10,0,1,2,175,200\r\n")?;
    }
    client.send(0, b"NOOP\r\n")?;
    ensure!(client.wait_received("NOOP\r\n")? == "NOOP\r\n");
    ensure!(!is_expected(&world.topology.fw)?, "opened out of place");
    still_serves(&world)
}

/// A line of 64 KiB, of NULs, and of nothing but line ends: it passes whole,
/// and what is on the next line counts again.
#[test]
fn endless_lines_pass_and_end() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V4)?;
    for byte in [b'x', 0, 0xff, b' '] {
        let line = [&[byte; 65_536][..], b"PORT 10,0,1,2,175,200\r\n"].concat();
        dialogue.client.send(&line)?;
        ensure!(
            dialogue
                .server
                .line()?
                .ends_with("PORT 10,0,1,2,175,200\r\n")
        );
        ensure!(
            !is_expected(&world.topology.fw)?,
            "opened by the end of a line of {byte}"
        );
    }
    dialogue.command("PORT 10,0,1,2,175,200\r\n")?;
    ensure!(is_expected(&world.topology.fw)?, "{}", world.helper.log());
    Ok(())
}

/// One connection fills the queue as fast as it can; another one's commands
/// keep moving.
#[test]
fn a_flood_on_one_connection_does_not_stop_another() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let listener = world
        .topology
        .server
        .enter(|| std::net::TcpListener::bind((server_address(Family::V4), 21)))?;
    let at = (server_address(Family::V4), 21).into();
    let mut flood = connect(&world.topology.client, at)?;
    let (sink, _) = listener.accept()?;
    drop(listener);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let swallow = |mut from: TcpStream| {
            let mut buf = [0; 1 << 16];
            while std::io::Read::read(&mut from, &mut buf).is_ok_and(|n| n > 0) {}
        };
        scope.spawn(move || swallow(sink));
        let stop = &stop;
        flood.set_write_timeout(Some(patience() / 10))?;
        flood.set_nodelay(true)?;
        scope.spawn(
            move || {
                while !stop.load(relaxed) && flood.write_all(b"NOOP\r\nNOOP\r\n").is_ok() {}
            },
        );
        let others = || -> Result<()> {
            for _ in 0..5 {
                let started = Instant::now();
                still_serves(&world)?;
                eprintln!(
                    "a login beside the flood: {} ms",
                    started.elapsed().as_millis()
                );
                world.topology.fw.run("conntrack", &["-F", "expect"])?;
            }
            Ok(())
        };
        let done = others();
        stop.store(true, relaxed);
        done
    })
}

/// Every thread of the daemon tries to get out.
#[test]
fn the_helper_can_not_leave_its_sandbox() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&["--queue-num", "121-122"])?;
    let outside = tempfile::tempdir()?;
    let file = outside.path().join("file");
    std::fs::write(&file, "precious")?;
    let threads = inside::threads(world.helper.pid())?;
    ensure!(threads.len() >= 3, "{threads:?}");
    for tid in threads {
        inside::check_confined(tid, &file)?;
    }
    ensure!(std::fs::read_to_string(&file)? == "precious");
    still_serves(&world)
}

/// One client wants more than his share: the oldest of his go, and another
/// client still gets his.
#[test]
fn one_client_can_not_use_up_the_expectations_of_others() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let mut greedy = world.dialogue(Family::V4)?;
    for port in 30_000..30_100_u16 {
        let line = format!("PORT 10,0,1,2,{},{}\r\n", port / 256, port % 256);
        greedy.command(&line)?;
    }
    let table = world.topology.fw.run("conntrack", &["-L", "expect"])?;
    let held = table.matches("dport=30").count();
    ensure!((1..=3).contains(&held), "{held} expectations: {table}");
    still_serves(&world)
}
