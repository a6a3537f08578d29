//! ctsync's mirror: both caches equal the kernel's table, whatever happens
//! on the way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::inject::{Act, inject_in};
use lab::nodes::{Nodes, PORT};
use lab::pair::{Node, Pair};
use lab::relay::Relay;
use lab::require::{Need, is_full};
use lab::topology::Family;
use lab::wait::until;
use nix::sys::signal::Signal;

struct World {
    pair: Pair,
    nodes: Nodes,
    relay: Relay,
}

impl World {
    fn new(extra: &str) -> Result<Self> {
        let pair = Pair::new()?;
        let end = |node: Node| SocketAddr::new(node.sync_address(Family::V4), PORT);
        let (relay, [for_one, for_two]) = Relay::start(&pair.fw_1, end(Node::One), end(Node::Two))?;
        let via = move |node: Node| match node {
            Node::One => (end(node), for_one),
            Node::Two => (end(node), for_two),
        };
        let nodes = Nodes::new(&via, extra)?;
        Ok(Self { pair, nodes, relay })
    }

    fn counts(&self) -> Result<(u64, u64)> {
        Ok((
            self.nodes.number(Node::One, "/internal/flows")?,
            self.nodes.number(Node::Two, "/external/flows")?,
        ))
    }

    /// Waits until both caches have `count` entries, are proved equal and
    /// equal the kernel's table.
    fn settles_at(&self, count: u64, within: Duration) -> Result<()> {
        let mut last = (0, 0);
        let settled = until("equal caches", within, || {
            last = self.counts().ok()?;
            let synced = self.nodes.status(Node::Two).ok()?;
            let synced = synced.pointer("/peers/0/copy_synced")? == &serde_json::Value::Bool(true);
            (last == (count, count) && synced).then_some(())
        });
        settled.with_context(|| {
            format!(
                "{last:?}, wanted {count}; {:?}",
                self.nodes.status(Node::One)
            )
        })?;
        if count <= 20_000 {
            self.nodes.wait_mirrored(Node::One)?;
        }
        Ok(())
    }
}

const SOON: Duration = Duration::from_secs(40);

#[test]
fn a_burst_with_stock_settings_arrives_whole_and_leaves_no_ghosts() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    inject_in(&w.pair.fw_1, 0, 60_000, Act::Create)?;
    w.settles_at(60_000, SOON)?;
    inject_in(&w.pair.fw_1, 0, 60_000, Act::Delete)?;
    w.settles_at(0, SOON)
}

/// The smallest event buffer: the kernel drops most events.
#[test]
fn dropped_events_are_made_up_for_by_a_dump() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("[kernel]\nevent-buffer = 8192\nmax-event-buffer = 16384\n")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    inject_in(&w.pair.fw_1, 0, 20_000, Act::Create)?;
    w.settles_at(20_000, SOON)?;
    inject_in(&w.pair.fw_1, 0, 10_000, Act::Delete)?;
    inject_in(&w.pair.fw_1, 10_000, 20_000, Act::Mark(5))?;
    w.settles_at(10_000, SOON)?;
    ensure!(w.nodes.number(Node::One, "/counters/overruns")? > 0);
    Ok(())
}

/// The kernel tells of an overrun once and drops on without a word until the
/// queue has been empty: a burst that outlasts the dump that the first
/// overrun began.
#[test]
fn events_that_are_dropped_without_a_word_are_found() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("[kernel]\nevent-buffer = 524288\nmax-event-buffer = 1048576\n")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    for round in 0..3 {
        let from = round * 30_000;
        inject_in(&w.pair.fw_1, from, from + 30_000, Act::Create)?;
        w.settles_at(u64::from(round + 1) * 30_000, SOON)?;
    }
    let told = w.nodes.number(Node::One, "/counters/overruns")?;
    let dropped = w.nodes.number(Node::One, "/counters/events_dropped")?;
    eprintln!("{told} overruns told, {dropped} events dropped");
    ensure!(dropped > told, "{dropped} dropped, {told} overruns");
    inject_in(&w.pair.fw_1, 0, 90_000, Act::Delete)?;
    w.settles_at(0, SOON)?;
    let reconciled = w.nodes.number(Node::One, "/counters/reconciliations")?;
    ensure!(reconciled < 100, "{reconciled} reconciliations");
    Ok(())
}

#[test]
fn loss_duplication_and_reordering_cost_nothing_but_time() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    w.relay.lose(30);
    for mark in 1..4 {
        inject_in(&w.pair.fw_1, 0, 10_000, Act::Create)?;
        inject_in(&w.pair.fw_1, 0, 10_000, Act::Mark(mark))?;
        inject_in(&w.pair.fw_1, 0, 5000, Act::Delete)?;
        w.settles_at(5000, SOON)?;
        inject_in(&w.pair.fw_1, 5000, 10_000, Act::Delete)?;
        w.settles_at(0, SOON)?;
    }
    Ok(())
}

/// As long as it takes to be noticed; a minute with `LAB_FULL`.
#[test]
fn a_partition_heals_by_itself() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("peer-timeout = \"2s\"\n")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    inject_in(&w.pair.fw_1, 0, 20_000, Act::Create)?;
    w.settles_at(20_000, SOON)?;
    w.relay.lose(100);
    let minute = Duration::from_secs(if is_full() { 60 } else { 0 });
    let (cut, mut noticed, mut rounds) = (Instant::now(), false, 0);
    until(
        "the partition to be noticed and over",
        SOON + minute,
        || {
            // Nothing of this is news to the other side when it is over.
            let (from, to) = (30_000 + rounds, 30_100 + rounds);
            inject_in(&w.pair.fw_1, from, to, Act::Create).ok()?;
            inject_in(&w.pair.fw_1, from, to, Act::Delete).ok()?;
            rounds += 100;
            let status = w.nodes.status(Node::One).ok()?;
            noticed |= status.pointer("/peers/0/state")? == "down";
            (noticed && cut.elapsed() >= minute).then_some(())
        },
    )?;
    eprintln!("{rounds} connections came and went in {:?}", cut.elapsed());
    let before = w.nodes.number(Node::One, "/counters/sent_entries")?;
    inject_in(&w.pair.fw_1, 0, 100, Act::Delete)?;
    inject_in(&w.pair.fw_1, 20_000, 20_100, Act::Create)?;
    inject_in(&w.pair.fw_1, 100, 200, Act::Mark(9))?;
    // What fw-2 has kept of it meanwhile can be committed.
    let why = w.nodes.ctsync(Node::Two, &["check"])?;
    ensure!(why.ok(), "its copy was complete: {}", why.report());
    w.relay.lose(0);
    w.settles_at(20_000, SOON)?;
    let sent = w.nodes.number(Node::One, "/counters/sent_entries")? - before;
    ensure!(sent < 1000, "{sent} entries sent for 300 that differ");
    Ok(())
}

fn resident_kib(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find(|l| l.starts_with("VmRSS:"));
    let number = line.and_then(|l| l.split_whitespace().nth(1));
    Ok(number.context("VmRSS")?.parse()?)
}

/// A peer that takes nothing, and is not known to be gone: what waits for it
/// is bounded by the table, however much changes.
#[test]
fn a_peer_that_takes_nothing_costs_no_memory() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("peer-timeout = \"10m\"\n")?;
    let [one, two] = w.nodes.start_both(&w.pair)?;
    inject_in(&w.pair.fw_1, 0, 5000, Act::Create)?;
    w.settles_at(5000, SOON)?;
    two.signal(Signal::SIGSTOP)?;
    let mut after_first = 0;
    for round in 0..40 {
        inject_in(&w.pair.fw_1, 0, 5000, Act::Mark(round + 1))?;
        inject_in(&w.pair.fw_1, 5000, 7000, Act::Create)?;
        inject_in(&w.pair.fw_1, 5000, 7000, Act::Delete)?;
        until("the events to be taken", SOON, || {
            (w.nodes.number(Node::One, "/internal/flows").ok()? == 5000).then_some(())
        })?;
        if round == 9 {
            after_first = resident_kib(one.pid())?;
        }
    }
    let grown = resident_kib(one.pid())?.saturating_sub(after_first);
    let queued = w.nodes.number(Node::One, "/peers/0/queued")?;
    eprintln!("{queued} queued, {grown} KiB more");
    ensure!((5000..=7000).contains(&queued), "{queued} queued");
    ensure!(grown < 2048, "{grown} KiB more");
    let lag = w.nodes.number(Node::One, "/peers/0/lag_ms")?;
    ensure!(lag > 0, "nothing is behind");
    two.signal(Signal::SIGCONT)?;
    w.settles_at(5000, SOON)
}

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Room for so many connections in each namespace, until it is dropped. The
/// limit is the machine's; it is only ever raised.
struct Room(Option<String>);

impl Room {
    fn make(flows: u64) -> Result<Self> {
        let before = std::fs::read_to_string(MAX)?;
        if before.trim().parse::<u64>()? > flows {
            return Ok(Self(None));
        }
        std::fs::write(MAX, (flows + flows / 10).to_string())?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let back = self.0.take().map(|before| std::fs::write(MAX, before));
        if let Some(Err(error)) = back {
            eprintln!("{MAX}: {error}");
        }
    }
}

/// Mirrored, committed, verified, and gone again: 1,000,000 connections with
/// `LAB_FULL`, else 100,000.
#[test]
fn a_large_table_is_mirrored_and_committed() -> Result<()> {
    lab::require!(Need::Root);
    let full = is_full();
    let flows: u32 = if full { 1_000_000 } else { 100_000 };
    let patient = Duration::from_secs(if full { 600 } else { 120 });
    let _room = Room::make(flows.into())?;
    let w = World::new("")?;
    let [one, two] = w.nodes.start_both(&w.pair)?;
    let clock = Instant::now();
    let lap = |what: &str| eprintln!("{what}: {:.1} s", clock.elapsed().as_secs_f32());
    inject_in(&w.pair.fw_1, 0, flows, Act::Create)?;
    lap("injected");
    w.settles_at(flows.into(), patient)?;
    lap("mirrored");
    for (name, node) in [("fw-1", &one), ("fw-2", &two)] {
        eprintln!("{name}: {} KiB", resident_kib(node.pid())?);
    }
    let committed = w.nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(committed.ok(), "{}", committed.report());
    eprint!("{}", committed.stdout);
    lap("committed and verified");
    let parts = [format!("flows: {flows}"), format!("verified: {flows} good")];
    for part in parts {
        ensure!(committed.stdout.contains(&part), "{}", committed.report());
    }
    let (status, log) = two.stop()?;
    ensure!(status.success(), "{log}");
    // It reads the kernel's table before it is ready.
    let two = w.nodes.spawn(&w.pair, Node::Two)?;
    w.settles_at(flows.into(), patient)?;
    lap("restarted");
    inject_in(&w.pair.fw_1, 0, flows, Act::Delete)?;
    w.settles_at(0, patient)?;
    lap("deleted");
    eprintln!("fw-2: {} KiB", resident_kib(two.pid())?);
    Ok(())
}

#[test]
fn nodes_that_are_killed_come_back_equal() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let [mut one, mut two] = w.nodes.start_both(&w.pair)?;
    inject_in(&w.pair.fw_1, 0, 10_000, Act::Create)?;
    w.settles_at(10_000, SOON)?;

    two.signal(Signal::SIGKILL)?;
    two.wait()?;
    inject_in(&w.pair.fw_1, 0, 1000, Act::Delete)?;
    two = w.nodes.start(&w.pair, Node::Two)?;
    w.settles_at(9000, SOON)?;

    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    inject_in(&w.pair.fw_1, 1000, 2000, Act::Delete)?;
    inject_in(&w.pair.fw_1, 10_000, 10_500, Act::Create)?;
    let started = Instant::now();
    let _one = w.nodes.start(&w.pair, Node::One)?;
    w.settles_at(8500, SOON)?;
    eprintln!(
        "complete {} ms after the restart",
        started.elapsed().as_millis()
    );
    let (status, log) = two.stop()?;
    ensure!(status.success(), "{log}");
    let _two = w.nodes.start(&w.pair, Node::Two)?;
    w.settles_at(8500, SOON)
}
