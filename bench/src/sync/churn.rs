//! Connections that come, change and go, held for a while.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::pair::Node;

use super::{SETTLE, World, settled};
use crate::Plan;
use crate::book::{Book, Metric, Target};
use crate::contender::{Apply, Kind};
use crate::link::connections;
use crate::load::Act;
use crate::process::{float, micros_each};

/// Connections a second; each has three events.
pub const RATE: u32 = 8000;
/// Connections alive at a time.
const ALIVE: u32 = 40_000;
/// Between two batches.
const TICK: Duration = Duration::from_millis(2);

/// Runs it.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    let seconds = if plan.quick { 8 } else { 60 };
    for round in 0..plan.rounds {
        for kind in Kind::in_turn(round) {
            once(kind, seconds, book)?;
        }
    }
    Ok(())
}

fn once(kind: Kind, seconds: u32, book: &mut Book) -> Result<()> {
    let who = kind.who();
    let row = |what: &str, unit| Metric::less(format!("churn {}k/s: {what}", RATE / 1000), unit);
    let world = World::new(kind, Apply::Commit)?;
    let before = world.used()?;
    let mut injector = world.injector()?;
    let (per_tick, ticks) = per_tick(seconds);
    let start = Instant::now();
    for tick in 0..ticks {
        let n = tick * per_tick;
        injector.send(n, n + per_tick, Act::Create)?;
        if let Some(middle) = n.checked_sub(ALIVE / 2) {
            injector.send(middle, middle + per_tick, Act::Mark(tick))?;
        }
        if let Some(old) = n.checked_sub(ALIVE) {
            injector.send(old, old + per_tick, Act::Delete)?;
        }
        let due = TICK * (tick + 1);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let alive = connections(world.link.at(Node::One))?;
    let (counts, _) = settled(&world.two, alive.into())?;
    std::thread::sleep(SETTLE);
    let used = world.used()?.since(&before);
    let events = ticks * per_tick * 3 - ALIVE / 2 * 3;
    let [sender, receiver] = used.cpu;
    let cpu = row("CPU per event, both sides", "us").target(Target::Peer(0.5));
    book.add(&cpu, who, micros_each(sender + receiver, events));
    let sent = row("CPU per event, sender", "us");
    book.add(&sent, who, micros_each(sender, events));
    let received = row("CPU per event, receiver", "us");
    book.add(&received, who, micros_each(receiver, events));
    let bytes = row("link bytes per connection", "B").target(Target::Peer(0.6));
    let made = f64::from(ticks * per_tick);
    book.add(&bytes, who, float(used.bytes) / made);
    let off = row("entries wrong at the end", "flows").target(Target::Value(0.0));
    let wrong = counts.external.abs_diff(alive.into());
    book.add(&off, who, float(wrong));
    eprintln!(
        "    {}: {:.2} us per event, {wrong} wrong of {alive}",
        kind.name(),
        micros_each(sender + receiver, events)
    );
    world.end()
}

/// Connections per tick, and ticks in so many seconds.
fn per_tick(seconds: u32) -> (u32, u32) {
    let ticks_a_second = 1000 / 2;
    (RATE / ticks_a_second, ticks_a_second * seconds)
}
