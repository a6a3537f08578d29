//! A burst of new connections at the full rate of the injector, a commit of
//! all of them, and their end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::netns::Namespace;
use lab::pair::Node;
use netfilter::conntrack::{self, DumpFilter, Event, group};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Messages, Socket};

use super::{SETTLE, World, injector, settled, short};
use crate::Plan;
use crate::book::{Book, Metric, Target, Who};
use crate::contender::{Apply, Daemon, Kind};
use crate::link::{Link, connections, inside};
use crate::load::Act;
use crate::process::{cpu, float, micros_each, thread_cpu};

/// What a daemon that has done its work may at most use of a processor's
/// time, a tenth, and for how long.
const IDLE: Duration = Duration::from_millis(500);

/// Runs it for each size.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    let sizes: &[u32] = if plan.quick {
        &[10_000, 100_000]
    } else {
        &[10_000, 100_000, 500_000, 1_000_000]
    };
    for &count in sizes {
        let rows = Rows::new(count);
        book.begin(&[
            &rows.rate,
            &rows.lost,
            &rows.both,
            &rows.sender,
            &rows.receiver,
        ]);
        for round in 0..plan.rounds {
            limits(&rows, count, book)?;
            for kind in Kind::in_turn(round) {
                once(&rows, kind, count, book)?;
            }
        }
    }
    Ok(())
}

struct Rows {
    rate: Metric,
    lost: Metric,
    complete: Metric,
    both: Metric,
    sender: Metric,
    receiver: Metric,
    own: Metric,
    copy: Metric,
    link: Metric,
    read: Metric,
    commit: Metric,
    refused: Metric,
    ghosts: Metric,
}

impl Rows {
    fn new(count: u32) -> Self {
        let n = short(count);
        let less = |what: &str, unit| Metric::less(format!("burst {n}: {what}"), unit);
        Self {
            rate: Metric::more(format!("burst {n}: rate of the injector"), "k/s"),
            lost: less("flows lost", "flows").target(Target::Value(0.0)),
            complete: less("last flow made to peer complete", "ms"),
            both: less("CPU per flow, both sides", "us").target(Target::Peer(0.5)),
            sender: less("CPU per flow, sender", "us"),
            receiver: less("CPU per flow, receiver", "us"),
            own: less("memory per flow, own cache", "B").target(Target::Peer(0.4)),
            copy: less("memory per flow, peer's cache", "B").target(Target::Peer(0.4)),
            link: less("link bytes per flow", "B").target(Target::Peer(0.6)),
            read: Metric::less(
                format!("kernel's table of {n} read again: CPU per flow"),
                "us",
            ),
            commit: Metric::more(format!("commit {n}: rate"), "k/s").target(Target::Limit(0.9)),
            refused: Metric::less(format!("commit {n}: flows missing"), "flows")
                .target(Target::Value(0.0)),
            ghosts: less("ghosts after all are deleted", "flows").target(Target::Value(0.0)),
        }
    }
}

/// Thousands per second.
fn rate(count: u32, took: Duration) -> f64 {
    f64::from(count) / took.as_secs_f64() / 1000.0
}

fn once(rows: &Rows, kind: Kind, count: u32, book: &mut Book) -> Result<()> {
    let who = kind.who();
    let world = World::new(kind, Apply::Commit)?;
    let mut injector = world.injector()?;
    let before = world.used()?;
    let took = injector.burst(0, count, Act::Create)?;
    let made = Instant::now();
    let (counts, at) = settled(&world.two, count.into())?;
    std::thread::sleep(SETTLE);
    let used = world.used()?.since(&before);
    let lost = u64::from(count).abs_diff(counts.external);
    book.add(&rows.rate, who, rate(count, took));
    book.add(&rows.lost, who, float(lost));
    let late = at.saturating_duration_since(made);
    book.add(&rows.complete, who, late.as_secs_f64() * 1e3);
    let [sender, receiver] = used.cpu;
    book.add(&rows.both, who, micros_each(sender + receiver, count));
    book.add(&rows.sender, who, micros_each(sender, count));
    book.add(&rows.receiver, who, micros_each(receiver, count));
    let each = |bytes: u64| float(bytes) / f64::from(count);
    book.add(&rows.link, who, each(used.bytes));
    if count >= 100_000 {
        let [own, copy] = used.memory;
        book.add(&rows.own, who, each(own));
        book.add(&rows.copy, who, each(copy));
        let read = read_again(&world.one)?;
        book.add(&rows.read, who, micros_each(read, count));
        commit(rows, &world, kind, count, book)?;
    }
    injector.burst(0, count, Act::Delete)?;
    let (left, _) = settled(&world.two, 0)?;
    book.add(&rows.ghosts, who, float(left.external));
    eprintln!(
        "    {} {}: {lost} lost, {:.2} us per flow",
        kind.name(),
        short(count),
        micros_each(sender + receiver, count)
    );
    world.end()
}

/// Processor time of a look at the kernel's whole table.
fn read_again(daemon: &Daemon) -> Result<Duration> {
    let used = || cpu(daemon.pid());
    let before = used();
    daemon.resync()?;
    let (mut last, mut busy) = (used(), Instant::now());
    while busy.elapsed() < IDLE {
        std::thread::sleep(IDLE / 10);
        let now = used();
        if now > last + IDLE / 100 {
            busy = Instant::now();
        }
        last = now;
    }
    Ok(last - before)
}

fn commit(rows: &Rows, world: &World, kind: Kind, count: u32, book: &mut Book) -> Result<()> {
    let start = Instant::now();
    world.two.commit()?;
    book.add(&rows.commit, kind.who(), rate(count, start.elapsed()));
    let there = connections(world.link.at(Node::Two))?;
    let missing = count.saturating_sub(there);
    book.add(&rows.refused, kind.who(), f64::from(missing));
    Ok(())
}

/// The injector alone, as a commit finds the kernel: all namespaces share one
/// hash table, which has the other firewall's connections, and events are
/// written as soon as anybody listens in any of them.
fn inject_only(rows: &Rows, count: u32, book: &mut Book) -> Result<()> {
    let link = Link::new()?;
    injector(link.at(Node::One))?.burst(0, count, Act::Create)?;
    let listener = inside(link.at(Node::One), || {
        let socket = Socket::open()?;
        socket.join(group::NEW)?;
        Ok(socket)
    })?;
    let took = injector(link.at(Node::Two))?.burst(0, count, Act::Create)?;
    drop(listener);
    book.add(&rows.commit, Who::Limit, rate(count, took));
    link.flush()
}

/// The injector alone, and a loop that only reads events, with pauses.
fn limits(rows: &Rows, count: u32, book: &mut Book) -> Result<()> {
    if count >= 100_000 {
        inject_only(rows, count, book)?;
    }
    let link = Link::new()?;
    let mut injector = self::injector(link.at(Node::One))?;
    let stop = AtomicBool::new(false);
    let (cpu, took) = std::thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| read_events(link.at(Node::One), &stop));
        std::thread::sleep(SETTLE);
        let took = injector.burst(0, count, Act::Create);
        std::thread::sleep(SETTLE);
        stop.store(true, Ordering::Relaxed);
        let cpu = reader.join().expect("no panic")?;
        Ok((cpu, took?))
    })?;
    book.add(&rows.rate, Who::Limit, rate(count, took));
    if count >= 100_000 {
        // In less time the pauses before and after are most of it.
        book.add(&rows.sender, Who::Limit, micros_each(cpu, count));
        let cpu = inside(link.at(Node::One), dump)?;
        book.add(&rows.read, Who::Limit, micros_each(cpu, count));
    }
    link.flush()
}

/// Reads and decodes the whole table; the processor time.
fn dump() -> Result<Duration> {
    let start = thread_cpu();
    Socket::open()?.exchange(
        "reading the table",
        |buf, seq| conntrack::dump(buf, &DumpFilter::default(), seq),
        |message| {
            std::hint::black_box(Event::decode(message).ok());
        },
    )?;
    Ok(thread_cpu() - start)
}

/// Reads and decodes events until told to stop; its processor time.
fn read_events(at: &Namespace, stop: &AtomicBool) -> Result<Duration> {
    inside(at, || {
        let socket = Socket::open()?;
        socket.set_receive_buffer(1 << 30)?;
        socket.join(group::NEW)?;
        let mut buf = RecvBuf::new();
        let start = thread_cpu();
        while !stop.load(Ordering::Relaxed) {
            while let Received::Datagram(datagram) = socket.try_receive(&mut buf)? {
                for message in Messages::new(datagram) {
                    std::hint::black_box(Event::decode(&message).ok());
                }
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(thread_cpu() - start)
    })
}
