//! Faults around our helper: full tables, and a daemon that is killed while
//! many use it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use lab::command::command;
use lab::ftp::script::{Dialogue, connect};
use lab::ours::{self, Helper};
use lab::peer::Peer;
use lab::require::{Need, in_vm};
use lab::served::Served;
use lab::topology::{Family, server_address};
use lab::wait::{patience, until_true};
use nix::sys::signal::Signal;
use serde_json::Value;

const NEEDS: &[Need] = &[Need::OurHelper, Need::Program("conntrack")];

/// A limit of every namespace's table, put back on drop.
struct Limit {
    path: String,
    before: String,
}

impl Limit {
    fn set(name: &str, to: u32) -> Result<Self> {
        ensure!(in_vm(), "this would break a machine in use");
        let path = format!("/proc/sys/net/netfilter/{name}");
        let before = std::fs::read_to_string(&path)?;
        std::fs::write(&path, to.to_string())?;
        Ok(Self { path, before })
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.path, &self.before) {
            eprintln!("{}: {error}", self.path);
        }
    }
}

fn events(world: &Served, name: &str) -> Result<u64> {
    let status = world.helper.status(&world.topology.fw)?;
    let count = status.pointer(&format!("/events/{name}"));
    Ok(count.and_then(Value::as_u64).unwrap_or(0))
}

/// A client says that it listens, and the server agrees; whether the server's
/// connection passes.
fn transfer(world: &Served, dialogue: &mut Dialogue<'_>, port: u16) -> Result<bool> {
    announce(dialogue, port)?;
    world.client_is_open(port)
}

fn announce(dialogue: &mut Dialogue<'_>, port: u16) -> Result<()> {
    let line = format!("PORT 10,0,1,2,{},{}\r\n", port / 256, port % 256);
    dialogue.command(&line)?;
    dialogue.reply("200 PORT command successful\r\n")
}

/// What finds no room is refused and counted; its session goes on, and once
/// there is room it is served.
#[test]
fn a_full_expectation_table_refuses_and_the_session_lives() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let mut others = [world.dialogue(Family::V4)?, world.dialogue(Family::V4)?];
    let mut late = world.dialogue(Family::V4)?;
    let limit = Limit::set("nf_conntrack_expect_max", 2)?;
    for (other, port) in others.iter_mut().zip(50_100..) {
        announce(other, port)?;
    }
    ensure!(events(&world, "table-full")? == 0, "{}", world.helper.log());
    for n in 1..=3 {
        ensure!(!transfer(&world, &mut late, 50_200)?, "it passes");
        let counted = events(&world, "table-full")?;
        ensure!(counted == n, "{counted}: {}", world.helper.log());
        late.command("NOOP\r\n")?;
        late.reply("200 still here\r\n")?;
    }
    let [first, _] = &mut others;
    ensure!(world.client_is_open(50_100)?, "what was expected before");
    // Which makes room.
    ensure!(
        transfer(&world, &mut late, 50_201)?,
        "{}",
        world.helper.log()
    );
    drop(limit);
    ensure!(transfer(&world, first, 50_101)?, "{}", world.helper.log());
    Ok(())
}

/// No new connection finds room, a transfer's neither: control connections
/// go on, and once there is room transfers do.
#[test]
fn a_full_connection_table_stops_transfers_and_no_session() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = Served::start(&[])?;
    let fw = &world.topology.fw;
    let mut dialogue = world.dialogue(Family::V4)?;
    until_true("an assured connection", || {
        let table = fw.run("conntrack", &["-L"]).unwrap_or_default();
        table
            .lines()
            .any(|l| l.contains("dport=21 ") && l.contains("[ASSURED]"))
    })?;
    let limit = Limit::set("nf_conntrack_max", 1)?;
    for n in 0..3 {
        ensure!(!transfer(&world, &mut dialogue, 50_300 + n)?, "it passes");
        dialogue.command("NOOP\r\n")?;
        dialogue.reply("200 still here\r\n")?;
    }
    drop(limit);
    ensure!(
        transfer(&world, &mut dialogue, 50_310)?,
        "{}",
        world.helper.log()
    );
    Ok(())
}

/// Connections at once.
const MANY: usize = 40;

/// Answers each line.
fn serve(stream: TcpStream) {
    let mut out = &stream;
    let mut greeted = out.write_all(b"220 ready\r\n").is_ok();
    for line in BufReader::new(&stream).lines() {
        greeted = greeted && line.is_ok() && out.write_all(b"230 fine\r\n").is_ok();
        if !greeted {
            break;
        }
    }
}

/// What one client has seen.
#[derive(Default)]
struct Seen {
    answers: AtomicU64,
    /// Milliseconds, the longest.
    wait: AtomicU64,
}

/// Command by command, until it is stopped.
fn talk(stream: &TcpStream, seen: &Seen, stop: &AtomicBool) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience() * 6))?;
    let mut lines = BufReader::new(stream).lines();
    lines.next().context("no greeting")??;
    let mut commands = ["USER x\r\n", "PASS y\r\n"].into_iter();
    while !stop.load(Relaxed) {
        let since = Instant::now();
        let command = commands.next().unwrap_or("NOOP\r\n");
        { stream }.write_all(command.as_bytes())?;
        lines.next().context("the connection ended")??;
        let took = u64::try_from(since.elapsed().as_millis())?;
        seen.wait.fetch_max(took, Relaxed);
        seen.answers.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The daemon is killed again and again while many control connections talk,
/// and started as its unit does it. None of them dies; each waits no longer
/// than the restart takes and TCP needs to repeat itself.
#[test]
fn a_helper_killed_under_load_ends_no_session() -> Result<()> {
    lab::require!(needs NEEDS);
    let Served {
        mut helper,
        topology,
    } = Served::start(&[])?;
    let at = SocketAddr::new(server_address(Family::V4), 21);
    let listener = topology.server.enter(|| TcpListener::bind(at))?;
    let stop = AtomicBool::new(false);
    let all: Vec<Seen> = (0..MANY).map(|_| Seen::default()).collect();
    let mut restarts = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..MANY {
        ends.push((connect(&topology.client, at)?, listener.accept()?.0));
    }
    std::thread::scope(|scope| -> Result<()> {
        let mut talks = Vec::new();
        for (seen, (client, server)) in all.iter().zip(ends) {
            scope.spawn(move || serve(server));
            let stop = &stop;
            talks.push(scope.spawn(move || talk(&client, seen, stop)));
        }
        let mut kill_and_restart = || -> Result<()> {
            more_answers(&all)?;
            for _ in 0..3 {
                let since = Instant::now();
                helper.signal(Signal::SIGKILL)?;
                let exe = format!("/proc/{}/exe", helper.pid());
                until_true("the daemon's end", || !Path::new(&exe).exists())?;
                ours::run(&topology.fw, "nft-ftp-helper", &["disable"])?;
                helper = Helper::start(&topology.fw, &[])?;
                restarts.push(since.elapsed());
                more_answers(&all)?;
            }
            Ok(())
        };
        let done = kill_and_restart();
        stop.store(true, Relaxed);
        for talk in talks {
            let said = talk
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?;
            said.context("a control connection")?;
        }
        done
    })?;
    let longest = all.iter().map(|s| s.wait.load(Relaxed)).max();
    eprintln!("{MANY} sessions, restarts took {restarts:.1?}, longest wait {longest:?} ms");
    let packets = helper.status(&topology.fw)?;
    drop(listener);
    let world = Served { helper, topology };
    let mut dialogue = world.dialogue(Family::V4)?;
    ensure!(transfer(&world, &mut dialogue, 50_400)?, "{packets}");
    Ok(())
}

/// Every session goes on from here.
fn more_answers(all: &[Seen]) -> Result<()> {
    let now = |seen: &Seen| seen.answers.load(Relaxed);
    let before: Vec<u64> = all.iter().map(now).collect();
    until_true("answers to everybody", || {
        let mut both = all.iter().zip(&before);
        both.all(|(seen, before)| now(seen) >= before + 5)
    })
    .with_context(|| format!("{before:?} {:?}", all.iter().map(now).collect::<Vec<_>>()))
}

/// The kernel has no memory for what the helper sends, one time of two: packets
/// wait for it, and no session ends.
#[test]
fn a_kernel_without_memory_delays_packets_and_ends_no_session() -> Result<()> {
    const SENDS: &str = "inject=sendto,sendmsg,sendmmsg:error=ENOBUFS:when=1+2";
    lab::require!(needs & [NEEDS, &[Need::Program("strace")]].concat());
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V4)?;
    let pid = world.helper.pid();
    let mut tracer = command("strace", &["-f", "-qq", "-o", "/dev/null", "-p"]);
    tracer.arg(pid.to_string()).args(["-e", SENDS]);
    let tracer = Peer::start(&world.topology.fw, "strace", tracer)?;
    until_true("a tracer", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|text| !text.contains("TracerPid:\t0"))
    })?;
    for _ in 0..20 {
        dialogue.command("NOOP\r\n")?;
        dialogue.reply("200 still here\r\n")?;
    }
    let status = world.helper.status(&world.topology.fw)?.to_string();
    tracer.stop()?;
    ensure!(world.helper.pid() == pid, "{}", world.helper.log());
    ensure!(!status.contains("\"kernel_errors\":0"), "{status}");
    ensure!(
        transfer(&world, &mut dialogue, 50_300)?,
        "{}",
        world.helper.log()
    );
    Ok(())
}
