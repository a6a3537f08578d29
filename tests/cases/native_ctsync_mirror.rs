//! ctsync's mirror: both caches equal the kernel's table, whatever happens
//! on the way.

#[path = "native_ctsync_pair.rs"]
#[expect(dead_code, reason = "shared with the failover cases")]
mod ctsync_pair;

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ctsync_pair::{Nodes, PORT};
use lab::netns::Namespace;
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::topology::Family;
use lab::wait::until;
use netfilter::protoinfo::{ProtoInfo, Tcp};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Flow, Messages, Socket, Status, Tuple, conntrack, inject, message::Kind};
use nix::sys::signal::Signal;

/// Between the nodes: loses, duplicates and reorders datagrams.
struct Relay {
    stop: Arc<AtomicBool>,
    /// Percent of datagrams lost; 100 is a partition.
    loss: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Runs in `fw-1`; each node takes its end for the other node.
    fn start(at: &Namespace, one: SocketAddr, two: SocketAddr) -> Result<(Self, [SocketAddr; 2])> {
        let bind = || at.enter(|| UdpSocket::bind((one.ip(), 0)));
        let (for_one, for_two) = (bind()?, bind()?);
        let ends = [for_one.local_addr()?, for_two.local_addr()?];
        let stop = Arc::new(AtomicBool::new(false));
        let loss = Arc::new(AtomicU32::new(0));
        let shared = (stop.clone(), loss.clone());
        let thread = std::thread::spawn(move || {
            relay(&[(for_one, one), (for_two, two)], &shared.0, &shared.1);
        });
        let this = Self {
            stop,
            loss,
            thread: Some(thread),
        };
        Ok((this, ends))
    }

    fn lose(&self, percent: u32) {
        self.loss.store(percent, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One end: a socket, and the node it speaks with.
type End = (UdpSocket, SocketAddr);

/// What arrives at one end goes out of the other.
fn relay(ends: &[End; 2], stop: &AtomicBool, loss: &AtomicU32) {
    let [one, two] = ends;
    for (socket, _) in ends {
        socket.set_nonblocking(true).unwrap();
    }
    let mut ways = [Way::new(one, two), Way::new(two, one)];
    while !stop.load(Ordering::Relaxed) {
        let lost = loss.load(Ordering::Relaxed);
        let idle = ways
            .iter_mut()
            .map(|w| w.pass(lost))
            .fold(true, |a, b| a & b);
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// One direction.
struct Way<'a> {
    from: &'a End,
    to: &'a End,
    held: VecDeque<Vec<u8>>,
    random: u64,
}

impl<'a> Way<'a> {
    fn new(from: &'a End, to: &'a End) -> Self {
        Self {
            from,
            to,
            held: VecDeque::new(),
            random: 1,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        let random = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = random.wrapping_add(1);
        (self.random >> 33) % 100 < u64::from(percent)
    }

    /// Passes on what is there; true if nothing was.
    fn pass(&mut self, loss: u32) -> bool {
        let (mut buf, mut idle) = ([0; 2048], true);
        while let Ok((len, _)) = self.from.0.recv_from(&mut buf) {
            idle = false;
            if self.chance(loss) {
                continue;
            }
            let bytes: Vec<u8> = buf.iter().take(len).copied().collect();
            if loss > 0 && self.chance(15) {
                self.held.push_back(bytes.clone());
            }
            self.held.push_back(bytes);
        }
        // Some wait for the next turn: they are overtaken.
        for bytes in std::mem::take(&mut self.held) {
            if loss > 0 && self.chance(20) {
                self.held.push_back(bytes);
            } else {
                let _ = self.to.0.send_to(&bytes, self.to.1);
            }
        }
        idle
    }
}

fn flow(n: u32) -> Flow {
    let [_, b, c, d] = n.to_be_bytes();
    let orig = Tuple::tcp(
        [10, 200, b, c].into(),
        3000 + u16::from(d),
        [10, 201, 0, 1].into(),
        80,
    );
    let mut flow = Flow::new(orig, orig.inverse());
    flow.timeout = Some(3600);
    flow.status = Some(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED);
    flow.protoinfo = ProtoInfo::Tcp(Tcp {
        state: 3,
        ..Tcp::default()
    });
    flow
}

enum Act {
    Create,
    Mark(u32),
    Delete,
}

/// Does something to connections `from..to` in a namespace, at full rate.
fn inject_in(at: &Namespace, from: u32, to: u32, act: &Act) -> Result<()> {
    at.enter(|| inject_here(from, to, act))
}

fn inject_here(from: u32, to: u32, act: &Act) -> Result<()> {
    let socket = Socket::open()?;
    socket.set_send_buffer(1 << 20)?;
    socket.set_receive_buffer(4 << 20)?;
    let (mut out, mut buf) = (Vec::new(), RecvBuf::new());
    let all: Vec<u32> = (from..to).collect();
    for chunk in all.chunks(128) {
        out.clear();
        for n in chunk {
            let mut f = flow(*n);
            match act {
                Act::Create => inject::create(&mut out, &f, inject::Options::default(), *n)?,
                Act::Delete => conntrack::delete(&mut out, &f.orig, 0, None, *n)?,
                Act::Mark(mark) => {
                    f.mark = Some(*mark);
                    inject::update(&mut out, &f, inject::Options::default(), *n)?;
                }
            }
        }
        socket.send(&out, "injecting")?;
        while let Received::Datagram(d) = socket.try_receive(&mut buf)? {
            for m in Messages::new(d) {
                ensure!(
                    !matches!(m.kind(), Kind::Error(_)),
                    "injecting failed: {m:?}"
                );
            }
        }
    }
    Ok(())
}

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
    let _one = w.nodes.start(&w.pair, Node::One)?;
    let _two = w.nodes.start(&w.pair, Node::Two)?;
    w.nodes.wait_synced()?;
    inject_in(&w.pair.fw_1, 0, 60_000, &Act::Create)?;
    w.settles_at(60_000, SOON)?;
    inject_in(&w.pair.fw_1, 0, 60_000, &Act::Delete)?;
    w.settles_at(0, SOON)
}

/// The smallest event buffer: the kernel drops most events.
#[test]
fn dropped_events_are_made_up_for_by_a_dump() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("[kernel]\nevent-buffer = 8192\nmax-event-buffer = 16384\n")?;
    let _one = w.nodes.start(&w.pair, Node::One)?;
    let _two = w.nodes.start(&w.pair, Node::Two)?;
    w.nodes.wait_synced()?;
    inject_in(&w.pair.fw_1, 0, 20_000, &Act::Create)?;
    w.settles_at(20_000, SOON)?;
    inject_in(&w.pair.fw_1, 0, 10_000, &Act::Delete)?;
    inject_in(&w.pair.fw_1, 10_000, 20_000, &Act::Mark(5))?;
    w.settles_at(10_000, SOON)?;
    ensure!(w.nodes.number(Node::One, "/counters/overruns")? > 0);
    Ok(())
}

#[test]
fn loss_duplication_and_reordering_cost_nothing_but_time() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let _one = w.nodes.start(&w.pair, Node::One)?;
    let _two = w.nodes.start(&w.pair, Node::Two)?;
    w.nodes.wait_synced()?;
    w.relay.lose(30);
    for mark in 1..4 {
        inject_in(&w.pair.fw_1, 0, 10_000, &Act::Create)?;
        inject_in(&w.pair.fw_1, 0, 10_000, &Act::Mark(mark))?;
        inject_in(&w.pair.fw_1, 0, 5000, &Act::Delete)?;
        w.settles_at(5000, SOON)?;
        inject_in(&w.pair.fw_1, 5000, 10_000, &Act::Delete)?;
        w.settles_at(0, SOON)?;
    }
    Ok(())
}

#[test]
fn a_partition_heals_by_itself() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("peer-timeout = \"2s\"\n")?;
    let _one = w.nodes.start(&w.pair, Node::One)?;
    let _two = w.nodes.start(&w.pair, Node::Two)?;
    w.nodes.wait_synced()?;
    inject_in(&w.pair.fw_1, 0, 20_000, &Act::Create)?;
    w.settles_at(20_000, SOON)?;
    w.relay.lose(100);
    until("the partition to be noticed", SOON, || {
        let status = w.nodes.status(Node::One).ok()?;
        (status.pointer("/peers/0/state")? == "down").then_some(())
    })?;
    let before = w.nodes.number(Node::One, "/counters/sent_entries")?;
    inject_in(&w.pair.fw_1, 0, 100, &Act::Delete)?;
    inject_in(&w.pair.fw_1, 20_000, 20_100, &Act::Create)?;
    inject_in(&w.pair.fw_1, 100, 200, &Act::Mark(9))?;
    w.relay.lose(0);
    w.settles_at(20_000, SOON)?;
    let sent = w.nodes.number(Node::One, "/counters/sent_entries")? - before;
    ensure!(sent < 1000, "{sent} entries sent for 300 that differ");
    Ok(())
}

#[test]
fn nodes_that_are_killed_come_back_equal() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let mut one = w.nodes.start(&w.pair, Node::One)?;
    let mut two = w.nodes.start(&w.pair, Node::Two)?;
    w.nodes.wait_synced()?;
    inject_in(&w.pair.fw_1, 0, 10_000, &Act::Create)?;
    w.settles_at(10_000, SOON)?;

    two.signal(Signal::SIGKILL)?;
    two.wait()?;
    inject_in(&w.pair.fw_1, 0, 1000, &Act::Delete)?;
    two = w.nodes.start(&w.pair, Node::Two)?;
    w.settles_at(9000, SOON)?;

    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    inject_in(&w.pair.fw_1, 1000, 2000, &Act::Delete)?;
    inject_in(&w.pair.fw_1, 10_000, 10_500, &Act::Create)?;
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
