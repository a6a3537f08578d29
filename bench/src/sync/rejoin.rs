//! A backup comes back: it has everything, 99%, or nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::pair::Node;
use lab::wait::until;
use serde_json::Value;

use super::{World, settled, short};
use crate::Plan;
use crate::book::{Book, Metric, Target};
use crate::contender::{Apply, Daemon, Kind};
use crate::load::Act;
use crate::process::cpu;

/// What any of it may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs it.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    for round in 0..plan.rounds {
        for kind in Kind::in_turn(round) {
            once(kind, plan, book)?;
        }
    }
    Ok(())
}

fn metric(count: u32, what: &str) -> Metric {
    Metric::less(format!("rejoin {}: {what}", short(count)), "ms")
}

fn once(kind: Kind, plan: &Plan, book: &mut Book) -> Result<()> {
    let count = if plan.quick { 100_000 } else { 500_000 };
    let mut world = World::new(kind, Apply::Commit)?;
    world.fill(0, count)?;
    let who = kind.who();
    let mut add = |what: &str, time: Duration| {
        book.add(&metric(count, what), who, time.as_secs_f64() * 1e3);
    };
    let full = match kind {
        Kind::Ctsync => {
            let same = cut(&world, count, || Ok(()))?;
            add("nothing differs, link's return to proved equal", same.all);
            let gone = count / 100;
            let delete = || world.injector()?.burst(0, gone, Act::Delete).map(drop);
            let one = cut(&world, count - gone, delete)?;
            add("1% differs, link's return to equal", one.all);
            add("1% differs, peers up to equal", one.since_up);
            add("1% differs, CPU of both sides from there", one.cpu);
            let sender = cpu(world.one.pid());
            let full = restart(&mut world, count - gone)?;
            add("all differs, peers up (or request) to equal", full);
            let used = cpu(world.one.pid()) - sender + cpu(world.two.pid());
            add("all differs, CPU of both sides", used);
            Some(full.as_secs_f64() / one.since_up.as_secs_f64())
        }
        Kind::Conntrackd => {
            let gone = count / 100;
            world.link.set("down")?;
            world.injector()?.burst(0, gone, Act::Delete)?;
            std::thread::sleep(Duration::from_secs(2));
            world.link.set("up")?;
            let start = Instant::now();
            let left = u64::from(count - gone);
            let (counts, at) = settled(&world.two, left)?;
            if counts.external == left {
                add("1% differs, link's return to equal", at - start);
            }
            let sender = cpu(world.one.pid());
            let full = request_all(&mut world, left)?;
            add("all differs, peers up (or request) to equal", full);
            let used = cpu(world.one.pid()) - sender + cpu(world.two.pid());
            add("all differs, CPU of both sides", used);
            None
        }
    };
    if let Some(times) = full {
        let name = format!("rejoin {}: 1% against all", short(count));
        let mut row = Metric::more(name, "times faster");
        if !plan.quick {
            // In a small table a round trip and the mark are most of it.
            row = row.target(Target::Value(10.0));
        }
        book.add(&row, who, times);
    }
    eprintln!("    {}", kind.name());
    world.end()
}

/// Times of a rejoin.
struct Times {
    all: Duration,
    since_up: Duration,
    /// Processor time of both since the peers are up.
    cpu: Duration,
}

/// Cuts the link until it is noticed, does something, and mends it.
fn cut(world: &World, count: u32, meanwhile: impl FnOnce() -> Result<()>) -> Result<Times> {
    world.link.set("down")?;
    for daemon in [&world.one, &world.two] {
        until("the peer to be down", LIMIT, || {
            (state(daemon)? == "down").then_some(())
        })?;
    }
    meanwhile()?;
    world.link.set("up")?;
    let start = Instant::now();
    let up = loop {
        if state(&world.two).context("status")? == "up" {
            break Instant::now();
        }
        anyhow::ensure!(start.elapsed() < LIMIT, "the peers don't find each other");
    };
    let both = || cpu(world.one.pid()) + cpu(world.two.pid());
    let before = both();
    let equal = equal(&world.two, count)?;
    Ok(Times {
        all: equal - start,
        since_up: equal - up,
        cpu: both() - before,
    })
}

fn state(daemon: &Daemon) -> Option<String> {
    let status = daemon.status().ok()?;
    let state = status.pointer("/peers/0/state")?.as_str()?;
    Some(state.to_owned())
}

/// Waits until the copy is proved equal and has `count` flows.
fn equal(daemon: &Daemon, count: u32) -> Result<Instant> {
    let start = Instant::now();
    loop {
        let status = daemon.status()?;
        let synced = status.pointer("/peers/0/copy_synced") == Some(&Value::Bool(true));
        let flows = status.pointer("/external/flows").and_then(Value::as_u64);
        if synced && flows == Some(count.into()) {
            return Ok(Instant::now());
        }
        anyhow::ensure!(start.elapsed() < LIMIT, "not equal: {status}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Starts the backup anew; from up to equal.
fn restart(world: &mut World, count: u32) -> Result<Duration> {
    let new = respawn(world)?;
    let start = Instant::now();
    while state(&new).context("status")? != "up" {
        anyhow::ensure!(start.elapsed() < LIMIT, "the peers don't find each other");
    }
    let up = Instant::now();
    let equal = equal(&new, count)?;
    world.two = new;
    Ok(equal - up)
}

/// Starts the backup anew and asks for everything.
fn request_all(world: &mut World, count: u64) -> Result<Duration> {
    world.two = respawn(world)?;
    std::thread::sleep(Duration::from_secs(1));
    let start = Instant::now();
    world.two.command(&["-n"])?;
    let (counts, at) = settled(&world.two, count)?;
    anyhow::ensure!(counts.external == count, "{counts:?}, wanted {count}");
    Ok(at - start)
}

fn respawn(world: &World) -> Result<Daemon> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(world.two.pid())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let gone = format!("/proc/{pid}/exe");
    until("the backup to end", LIMIT, || {
        std::fs::read_link(&gone).is_err().then_some(())
    })?;
    world.setup.start(world.link.at(Node::Two), Node::Two)
}
