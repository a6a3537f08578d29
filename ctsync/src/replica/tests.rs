//! Simulation: nodes on a network that loses, duplicates, reorders and
//! partitions, with restarts. Replay a failure with `CTSYNC_SIM_SEED=n`;
//! `CTSYNC_SIM_SEEDS=n` runs more.

use super::*;
use crate::record::{self, Record, tests::tcp};
use crate::rng::Rng;
use netfilter::Status;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

mod history;

const LIMIT: usize = 1300;
/// Datagrams that wait for a node at most.
const SOCKET: usize = 1000;

struct Node {
    replica: Replica,
    incarnation: u64,
    /// What its kernel has: flow number and a state that changes.
    kernel: BTreeMap<u32, u32>,
}

#[derive(Clone, Copy)]
struct Weather {
    loss: u32,
    duplicate: u32,
    delay_ms: u32,
}

type Wire = Reverse<(Duration, u64, usize, usize, u64, u64, Vec<u8>)>;

struct World {
    rng: Rng,
    now: Duration,
    nodes: Vec<Node>,
    wires: BinaryHeap<Wire>,
    count: u64,
    weather: Weather,
    /// Pairs that can't reach each other, and since when.
    cut: BTreeMap<(usize, usize), Duration>,
    restarts: u64,
    /// Larger datagrams never arrive.
    swallowed_above: usize,
    /// It gets no processor, and what it is sent waits.
    stalled: Option<usize>,
    waiting: Vec<Wire>,
    /// Of a datagram, in bytes.
    limit: usize,
}

fn bytes_of(n: u32, state: u32) -> Vec<u8> {
    let mut flow = tcp(n);
    flow.status = Some(Status::from_bits_retain(0x100 + state));
    let mut out = Vec::new();
    record::put_flow(&mut out, &flow).unwrap();
    out
}

fn own_seed(incarnation: u64) -> [u8; 16] {
    let mut seed = [1; 16];
    seed[..8].copy_from_slice(&incarnation.to_be_bytes());
    seed
}

fn start(name: usize, peers: usize, incarnation: u64) -> Replica {
    let mut replica = Replica::new(Settings {
        name: format!("fw-{name}"),
        incarnation,
        seed: Seed::from_bytes(own_seed(incarnation)),
        limit: 100_000,
        credit: 4096,
    });
    for _ in 0..peers {
        replica.add_peer().unwrap();
    }
    replica
}

/// A node's number for another node.
fn peer_of(me: usize, other: usize) -> PeerId {
    if other < me { other } else { other - 1 }
}

fn node_of(me: usize, peer: PeerId) -> usize {
    if peer < me { peer } else { peer + 1 }
}

impl World {
    fn new(seed: u64, n: usize, weather: Weather) -> Self {
        let nodes = (0..n).map(|i| Node {
            replica: start(i, n - 1, i as u64 + 1),
            incarnation: i as u64 + 1,
            kernel: BTreeMap::new(),
        });
        let mut world = Self {
            rng: Rng::new(seed),
            now: Duration::from_secs(1000),
            nodes: nodes.collect(),
            wires: BinaryHeap::new(),
            count: 0,
            weather,
            cut: BTreeMap::new(),
            restarts: 100,
            swallowed_above: usize::MAX,
            stalled: None,
            waiting: Vec::new(),
            limit: LIMIT,
        };
        world.connect_all();
        world
    }

    fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in 0..self.nodes.len() {
                if a != b {
                    self.connect(a, b);
                }
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        let now = self.now;
        self.nodes[a].replica.connected(peer_of(a, b), now);
    }

    fn put(&mut self, node: usize, n: u32, state: u32) {
        let now = self.now;
        let node = &mut self.nodes[node];
        node.kernel.insert(n, state);
        let bytes = bytes_of(n, state);
        let key = node.replica.own.key(record::split(&bytes).unwrap().key);
        let entry = Entry {
            key,
            bytes: &bytes,
            expect: false,
            deadline: u32::try_from(now.as_secs()).unwrap() + 100,
        };
        node.replica.put(&entry, now).unwrap();
    }

    fn delete(&mut self, node: usize, n: u32) {
        let now = self.now;
        let node = &mut self.nodes[node];
        if let Some(state) = node.kernel.remove(&n) {
            let bytes = bytes_of(n, state);
            let key = node.replica.own.key(record::split(&bytes).unwrap().key);
            let index = node.replica.own.find(key).unwrap();
            node.replica.delete(index, now);
        }
    }

    fn churn(&mut self, keys: u32) {
        let node = self.rng.below(u32::try_from(self.nodes.len()).unwrap()) as usize;
        let n = self.rng.below(keys);
        if self.rng.chance(35) {
            self.delete(node, n);
        } else {
            let state = self.rng.below(50);
            self.put(node, n, state);
        }
    }

    /// Kills a node and starts it again; it reads its kernel, the others
    /// notice by its new incarnation.
    fn restart(&mut self, a: usize) {
        self.restarts += 1;
        let n = self.nodes.len();
        self.nodes[a].incarnation = self.restarts;
        self.nodes[a].replica = start(a, n - 1, self.restarts);
        for (n, state) in self.nodes[a].kernel.clone() {
            self.put(a, n, state);
        }
        for b in (0..n).filter(|b| *b != a) {
            self.connect(a, b);
            if self.rng.chance(50) {
                let now = self.now;
                self.nodes[b].replica.disconnected(peer_of(b, a), now);
                self.connect(b, a);
            }
        }
    }

    fn toggle_cut(&mut self) {
        let n = u32::try_from(self.nodes.len()).unwrap();
        let (a, b) = (self.rng.below(n) as usize, self.rng.below(n) as usize);
        let pair = (a.min(b), a.max(b));
        if a == b {
            return;
        }
        match self.cut.remove(&pair) {
            None => {
                self.cut.insert(pair, self.now);
            }
            // Long enough to be noticed, perhaps by one side only.
            Some(since) if self.now > since + Duration::from_millis(300) => {
                let sides = self.rng.below(3);
                for (a, b, other) in [(a, b, 1), (b, a, 2)] {
                    if sides != other {
                        let now = self.now;
                        self.nodes[a].replica.disconnected(peer_of(a, b), now);
                        self.connect(a, b);
                    }
                }
            }
            Some(_) => {}
        }
    }

    fn send(&mut self, a: usize, b: usize, bytes: &[u8]) {
        if bytes.len() > self.swallowed_above {
            return;
        }
        let copies = 1 + u32::from(self.rng.chance(self.weather.duplicate));
        for _ in 0..copies {
            if self.rng.chance(self.weather.loss) || self.cut.contains_key(&(a.min(b), a.max(b))) {
                continue;
            }
            let delay = 50 + self.rng.below(self.weather.delay_ms * 1000);
            let at = self.now + Duration::from_micros(u64::from(delay));
            self.count += 1;
            let (from, to) = (self.nodes[a].incarnation, self.nodes[b].incarnation);
            self.wires
                .push(Reverse((at, self.count, a, b, from, to, bytes.to_vec())));
        }
    }

    fn step(&mut self, by: Duration) {
        self.now += by;
        let mut buf = Vec::new();
        let stalled = self.stalled;
        for a in (0..self.nodes.len()).filter(|a| stalled != Some(*a)) {
            for p in 0..self.nodes.len() - 1 {
                for _ in 0..200 {
                    let replica = &mut self.nodes[a].replica;
                    if !replica.transmit(p, self.now, self.limit, &mut buf) {
                        break;
                    }
                    assert!(buf.len() <= self.limit, "{} bytes", buf.len());
                    self.send(a, node_of(a, p), &buf);
                }
            }
        }
        while self.wires.peek().is_some_and(|w| w.0.0 <= self.now) {
            let wire = self.wires.pop().unwrap();
            if self.stalled == Some(wire.0.3) {
                if self.waiting.len() < SOCKET {
                    self.waiting.push(wire);
                }
                continue;
            }
            let Reverse((_, _, a, b, from, to, bytes)) = wire;
            // The transport accepts nothing from a peer's former life.
            if (self.nodes[a].incarnation, self.nodes[b].incarnation) == (from, to) {
                let now = self.now;
                let peer = peer_of(b, a);
                self.nodes[b].replica.receive(peer, &bytes, now, &mut ());
            }
        }
    }

    /// A node does nothing for a while, and then reads what has come.
    fn stall(&mut self, node: usize, ms: u32) {
        self.stalled = Some(node);
        for _ in 0..ms {
            self.step(Duration::from_millis(1));
        }
        self.stalled = None;
        self.wires.extend(self.waiting.drain(..));
    }

    fn settled(&self) -> Result<(), String> {
        for (b, node) in self.nodes.iter().enumerate() {
            for (p, peer) in node.replica.peers.iter().enumerate() {
                let origin = &self.nodes[node_of(b, p)];
                let copy = content(&peer.inbound.store);
                let own = content(&origin.replica.own);
                if copy != own {
                    return Err(format!("{b} has {} of {}", copy.len(), own.len()));
                }
                if own.len() != origin.kernel.len() {
                    return Err("the origin is not its kernel".into());
                }
                if !peer.inbound.is_synced(self.now) || !peer.outbound.peer_synced {
                    return Err(format!("{b} does not know it is in sync with {p}"));
                }
                if peer.outbound.lag(self.now) > Duration::ZERO {
                    return Err(format!("{b} lags"));
                }
            }
            let own = &node.replica.own;
            let used = (0..u32::try_from(own.slots()).unwrap()).filter(|i| own.slot(*i).is_some());
            if used.count() != own.len() {
                return Err(format!("{b} keeps tombstones"));
            }
        }
        Ok(())
    }

    fn settle(&mut self, what: &str) {
        let start = self.now;
        for _ in 0..20 {
            self.step(Duration::from_millis(1));
        }
        let mut last = self.settled();
        while last.is_err() && self.now < start + Duration::from_secs(120) {
            for _ in 0..20 {
                self.step(Duration::from_millis(1));
            }
            last = self.settled();
        }
        assert_eq!(last, Ok(()), "{what}");
    }
}

fn content(store: &Store) -> BTreeMap<Vec<u8>, ()> {
    store
        .live()
        .map(|(_, s)| (store.bytes(s).to_vec(), ()))
        .collect()
}

fn seeds(default: u64) -> Vec<u64> {
    let var = |name| std::env::var(name).ok().and_then(|v| v.parse().ok());
    if let Some(seed) = var("CTSYNC_SIM_SEED") {
        return vec![seed];
    }
    (1..=var("CTSYNC_SIM_SEEDS").unwrap_or(default)).collect()
}

fn simulate(seed: u64) {
    let mut rng = Rng::new(seed);
    let weather = Weather {
        loss: rng.below(4) * 10,
        duplicate: rng.below(3) * 10,
        delay_ms: [0, 1, 20][rng.below(3) as usize],
    };
    let nodes = 2 + rng.below(2) as usize;
    let keys = [20, 300, 3000][rng.below(3) as usize];
    let mut w = World::new(seed, nodes, weather);
    for _ in 0..4 {
        for _ in 0..600 {
            for _ in 0..rng.below(20) {
                w.churn(keys);
            }
            if rng.below(150) == 0 {
                w.restart(rng.below(u32::try_from(nodes).unwrap()) as usize);
            }
            if rng.below(100) == 0 {
                w.toggle_cut();
            }
            w.step(Duration::from_millis(1));
        }
        for pair in w.cut.clone().into_keys() {
            w.cut.remove(&pair);
            let now = w.now;
            for (a, b) in [pair, (pair.1, pair.0)] {
                w.nodes[a].replica.disconnected(peer_of(a, b), now);
                w.connect(a, b);
            }
        }
        w.settle(&format!("CTSYNC_SIM_SEED={seed}"));
    }
}

#[test]
fn copies_equal_their_origins_whatever_the_network_does() {
    for seed in seeds(15) {
        simulate(seed);
    }
}

#[test]
fn a_burst_arrives_whole_through_thirty_percent_loss() {
    for seed in seeds(2) {
        let weather = Weather {
            loss: 30,
            duplicate: 20,
            delay_ms: 5,
        };
        let mut w = World::new(seed, 2, weather);
        for n in 0..50_000 {
            w.put(0, n, 1);
            if n % 5000 == 0 {
                w.step(Duration::from_millis(1));
            }
        }
        w.settle("burst");
        for n in 0..50_000 {
            w.delete(0, n);
        }
        w.settle("deleted");
        assert_eq!(w.nodes[1].replica.peers[0].inbound.store.len(), 0);
    }
}

const CALM: Weather = Weather {
    loss: 0,
    duplicate: 0,
    delay_ms: 0,
};

/// After a partition in which some changed, these are sent and no others, and
/// to find them takes few messages: where half of all leaves have several
/// differences, too.
#[test]
fn a_rejoin_costs_what_differs() {
    let total = 60_000;
    for (differ, most) in [(total / 100, 320), (total / 2, 2_500)] {
        let mut w = World::new(1, 2, CALM);
        for n in 0..total {
            w.put(0, n, 1);
        }
        w.settle("first");
        let full = w.nodes[0].replica.peers[0].outbound.items;
        assert_eq!(full, u64::from(total));
        let now = w.now;
        w.nodes[0].replica.disconnected(0, now);
        w.nodes[1].replica.disconnected(0, now);
        for n in 0..differ {
            match n % 3 {
                0 => w.delete(0, n),
                1 => w.put(0, n, 2),
                _ => w.put(0, total + n, 1),
            }
        }
        w.connect_all();
        let before = w.count;
        while !w.nodes[1].replica.peers[0].inbound.is_synced(w.now) {
            w.step(Duration::from_millis(1));
            assert!(w.now < now + Duration::from_secs(10));
        }
        let messages = w.count - before;
        assert!(messages < most, "{messages} for {differ}");
        w.settle("rejoined");
        let sent = w.nodes[0].replica.peers[0].outbound.items - full;
        assert_eq!(sent, u64::from(differ));
    }
}

/// Digests are shown in part at first: what that part hides is found in the
/// same comparison, not in another one after a pause.
#[test]
fn a_difference_that_the_first_bits_hide_is_found_at_once() {
    let mut w = World::new(1, 2, CALM);
    for n in 0..500 {
        w.put(0, n, 1);
    }
    w.settle("first");
    let now = w.now;
    for i in [0, 1] {
        w.nodes[i].replica.disconnected(0, now);
    }
    let mut scratch = Store::new(Seed::from_bytes(own_seed(1)), 1);
    let hidden = (1000..).find(|n| {
        let bytes = bytes_of(*n, 1);
        let entry = Entry {
            key: scratch.key(record::split(&bytes).unwrap().key),
            bytes: &bytes,
            expect: false,
            deadline: 0,
        };
        let (index, _) = scratch.put(&entry).unwrap();
        let mark = scratch.slot(index).unwrap().mark();
        scratch.remove(index);
        mark & 0xffff == 0
    });
    w.put(0, hidden.unwrap(), 1);
    w.connect_all();
    while !w.nodes[1].replica.peers[0].inbound.is_synced(w.now) {
        w.step(Duration::from_millis(1));
        assert!(w.now < now + Duration::from_millis(100));
    }
}

/// A copy that was repaired is proved equal as soon as it is: what waits for
/// it does not wait for the usual time between marks.
#[test]
fn a_repaired_copy_is_soon_proved_equal() {
    let mut w = World::new(1, 2, CALM);
    for n in 0..5_000 {
        w.put(0, n, 1);
    }
    w.settle("first");
    for round in 1..=20 {
        let now = w.now;
        for i in [0, 1] {
            w.nodes[i].replica.disconnected(0, now);
        }
        for n in 0..round * 20 {
            w.put(0, n, 1 + round);
        }
        w.connect_all();
        let own = content(&w.nodes[0].replica.own);
        let mut equal = None;
        while !w.nodes[1].replica.peers[0].inbound.is_synced(w.now) {
            w.step(Duration::from_millis(1));
            let copy = || content(&w.nodes[1].replica.peers[0].inbound.store);
            if equal.is_none() && copy() == own {
                equal = Some(w.now);
            }
            assert!(w.now < now + Duration::from_secs(10));
        }
        let waited = w.now - equal.expect("equal before it is proved");
        assert!(
            waited < Duration::from_millis(4),
            "{waited:?} in round {round}"
        );
        w.settle("rejoined");
    }
}

/// A restarted origin has another seed; the copy is hashed anew and compared.
#[test]
fn a_restarted_origin_sends_only_what_differs() {
    let mut w = World::new(1, 2, CALM);
    for n in 0..20_000 {
        w.put(0, n, 1);
    }
    w.settle("first");
    w.nodes[0].kernel.remove(&7);
    w.nodes[0].kernel.insert(8, 2);
    w.restart(0);
    w.settle("restarted");
    assert_eq!(w.nodes[0].replica.peers[0].outbound.items, 2);
}

/// The path's MTU shrinks somewhere: only small datagrams pass from then on,
/// and nobody says so.
#[test]
fn a_path_that_swallows_large_datagrams_is_found_out() {
    let mut w = World::new(1, 2, CALM);
    for n in 0..2000 {
        w.put(0, n, 1);
    }
    w.settle("first");
    w.swallowed_above = width::SAFE;
    for n in 1000..5000 {
        w.put(0, n, 2);
    }
    let started = w.now;
    w.settle("narrow");
    assert!(w.now < started + Duration::from_secs(10));
    // A rejoin, too, has to do with less.
    let now = w.now;
    for i in [0, 1] {
        w.nodes[i].replica.disconnected(0, now);
    }
    for n in 0..3000 {
        w.put(0, n, 3);
    }
    w.connect_all();
    w.settle("rejoined over a narrow path");
}

/// A starved peer acknowledges nothing for 300 ms, reads what has come, and
/// starves again: what it has not acknowledged is late, not lost.
#[test]
fn what_a_starved_peer_is_late_with_is_not_sent_again() {
    let mut w = World::new(1, 2, CALM);
    w.put(0, 0, 1);
    w.settle("first");
    let total = 95_000;
    for n in 1..total {
        w.put(0, n, 1);
    }
    let start = w.now;
    let complete = |w: &World| {
        let inbound = &w.nodes[1].replica.peers[0].inbound;
        inbound.store.len() == total as usize && inbound.is_synced(w.now)
    };
    while !complete(&w) {
        w.stall(1, 300);
        for _ in 0..3 {
            w.step(Duration::from_millis(1));
        }
        assert!(w.now < start + Duration::from_secs(60), "never in sync");
    }
    let outbound = &w.nodes[0].replica.peers[0].outbound;
    let again = outbound.items - u64::from(total);
    assert!(
        outbound.lost * 20 < outbound.sent && again * 20 < u64::from(total),
        "{} of {} datagrams were given up, {again} entries sent again, in {:?}",
        outbound.lost,
        outbound.sent,
        w.now - start
    );
    w.settle("no longer starved");
}

/// A comparison, too, waits for a starved peer: either end may be the one.
#[test]
fn a_rejoin_with_a_starved_peer_costs_what_differs() {
    for starved in [0, 1] {
        let (total, differ) = (60_000, 30_000);
        let mut w = World::new(1, 2, CALM);
        for n in 0..total {
            w.put(0, n, 1);
        }
        w.settle("first");
        let now = w.now;
        for i in [0, 1] {
            w.nodes[i].replica.disconnected(0, now);
        }
        for n in 0..differ {
            w.put(0, n, 2);
        }
        w.connect_all();
        let (before, start) = (w.count, w.now);
        let full = w.nodes[0].replica.peers[0].outbound.items;
        while !w.nodes[1].replica.peers[0].inbound.is_synced(w.now) {
            w.stall(starved, 300);
            for _ in 0..3 {
                w.step(Duration::from_millis(1));
            }
            assert!(w.now < start + Duration::from_secs(60), "never in sync");
        }
        let sent = w.nodes[0].replica.peers[0].outbound.items - full;
        assert!(
            sent < u64::from(differ) * 11 / 10 && w.count - before < 2_500,
            "{} messages with {sent} entries",
            w.count - before
        );
        w.settle("no longer starved");
    }
}

/// More datagrams are lost than fitted into the bitmap of an acknowledgement;
/// or, where datagrams are small, than fit.
#[test]
fn a_link_that_was_cut_under_load_is_used_at_once() {
    for (limit, changes, least) in [(LIMIT, 60, 1024), (300, 150, 2000)] {
        let mut w = World::new(1, 2, CALM);
        w.limit = limit;
        for n in 0..60_000 {
            w.put(0, n, 1);
        }
        w.settle("first");
        let mut state = 1;
        let mut churn = |w: &mut World, ms| {
            let before = w.nodes[0].replica.peers[0].outbound.sent;
            for _ in 0..ms {
                state += 1;
                for n in 0..changes {
                    w.put(0, (state * changes + n) % 60_000, state);
                }
                w.step(Duration::from_millis(1));
            }
            w.nodes[0].replica.peers[0].outbound.sent - before
        };
        churn(&mut w, 1000);
        w.weather.loss = 100;
        let lost = churn(&mut w, 4000);
        assert!(lost > least, "{lost} datagrams of {limit} bytes");
        let start = w.now;
        w.weather.loss = 0;
        while w.settled().is_err() {
            w.step(Duration::from_millis(1));
            let late = w.now > start + Duration::from_secs(2);
            assert!(!late, "not after two seconds: {:?}", w.settled());
        }
    }
}

#[test]
fn an_unreachable_peer_costs_no_memory() {
    let mut w = World::new(1, 2, CALM);
    w.put(0, 1, 1);
    w.settle("first");
    w.cut.insert((0, 1), w.now);
    for round in 0..50 {
        for n in 0..1000 {
            w.put(0, n, round);
        }
        for n in 0..1000 {
            w.delete(0, n);
        }
        w.step(Duration::from_millis(1));
    }
    let own = &w.nodes[0].replica.own;
    assert!(own.slots() <= 1001, "{} slots", own.slots());
    assert!(w.nodes[0].replica.peers[0].outbound.queued() <= 1001);
}

#[test]
fn a_cleared_origin_empties_its_copies() {
    let mut w = World::new(1, 3, CALM);
    for n in 0..500 {
        w.put(0, n, 1);
        w.put(1, n, 1);
    }
    w.settle("first");
    let now = w.now;
    w.nodes[0].kernel.clear();
    w.nodes[0].replica.clear(now);
    w.settle("cleared");
    assert_eq!(w.nodes[2].replica.peers[1].inbound.store.len(), 500);
}

/// Changes what the store says behind the protocol's back: the digests find
/// it without anybody asking.
#[test]
fn silent_divergence_is_found_and_repaired() {
    let mut w = World::new(1, 2, CALM);
    for n in 0..5000 {
        w.put(0, n, 1);
    }
    w.settle("first");
    let copy = &mut w.nodes[1].replica.peers[0].inbound.store;
    for n in 0..10 {
        let key = copy.key(record::split(&bytes_of(n, 1)).unwrap().key);
        let index = copy.find(key).unwrap();
        copy.remove(index);
    }
    let ghost = bytes_of(9999, 3);
    let key = copy.key(record::split(&ghost).unwrap().key);
    copy.put(&Entry {
        key,
        bytes: &ghost,
        expect: false,
        deadline: 0,
    })
    .unwrap();
    for _ in 0..1500 {
        w.step(Duration::from_millis(1));
    }
    w.settle("repaired");
    assert_eq!(w.nodes[0].replica.peers[0].outbound.items, 5011);
}

#[test]
fn a_record_that_can_not_be_used_is_counted_and_does_not_disturb() {
    let mut w = World::new(1, 2, CALM);
    let mut bytes = bytes_of(1, 1);
    let key_len = record::split(&bytes).unwrap().key.len();
    bytes[key_len] = 0x7f; // fields no TCP connection can have
    let now = w.now;
    let node = &mut w.nodes[0].replica;
    let key = node.own.key(record::split(&bytes).unwrap().key);
    let entry = Entry {
        key,
        bytes: &bytes,
        expect: false,
        deadline: 0,
    };
    node.put(&entry, now).unwrap();
    w.put(0, 2, 1);
    for _ in 0..100 {
        w.step(Duration::from_millis(1));
    }
    let inbound = &w.nodes[1].replica.peers[0].inbound;
    assert!(inbound.is_synced(w.now));
    assert_eq!((inbound.faults.refused, inbound.refused()), (1, 1));
    assert_eq!(inbound.store.len(), 2);
    assert!(matches!(
        record::decode(&bytes_of(2, 1)),
        Ok(Record::Flow(_))
    ));
}

#[test]
fn garbage_from_a_peer_is_counted_and_harmless() {
    let mut w = World::new(5, 2, CALM);
    for n in 0..200 {
        w.put(0, n, 1);
    }
    w.settle("first");
    let mut rng = Rng::new(9);
    let mut samples: Vec<Vec<u8>> = Vec::new();
    w.put(0, 1, 9);
    let mut buf = Vec::new();
    w.now += Duration::from_secs(2);
    while w.nodes[0].replica.transmit(0, w.now, LIMIT, &mut buf) {
        samples.push(buf.clone());
    }
    for _ in 0..20_000 {
        let mut b = samples[rng.below(u32::try_from(samples.len()).unwrap()) as usize].clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(u32::try_from(b.len()).unwrap()) as usize;
            b[at] = u8::try_from(rng.below(256)).unwrap();
        }
        b.truncate(rng.below(u32::try_from(b.len()).unwrap() + 1) as usize);
        let now = w.now;
        w.nodes[1].replica.receive(0, &b, now, &mut ());
    }
    assert!(w.nodes[1].replica.malformed > 0);
}

#[test]
fn a_primary_with_a_lower_epoch_is_fenced_and_learns_its_successor() {
    let mut w = World::new(1, 2, CALM);
    let now = w.now;
    w.nodes[0].replica.set_role(Role::Primary, 1, now);
    w.settle("one primary");
    assert_eq!(w.nodes[1].replica.highest_epoch(), 1);
    w.nodes[1].replica.set_role(Role::Primary, 2, now);
    w.settle("two primaries");
    assert!(w.nodes[1].replica.is_fenced(0));
    assert_eq!(w.nodes[0].replica.successor(), Some(0));
    assert_eq!(w.nodes[1].replica.successor(), None);
    w.nodes[0].replica.set_role(Role::Primary, 2, now);
    w.settle("same epoch");
    let both = [0, 1].map(|i: usize| w.nodes[i].replica.successor().is_some());
    assert_eq!(both, [true, false], "the higher name wins");
}

/// A peer that greets under a new name each millisecond, and answers each of
/// our greetings: what we own and what we have of it is gone through at a
/// rate, and an honest start afterwards is not kept waiting.
#[test]
fn a_peer_can_not_make_us_go_through_everything_again_and_again() {
    let mut w = World::new(1, 2, CALM);
    for n in 0..2500 {
        w.put(0, n, 1);
        w.put(1, n + 5000, 1);
    }
    w.settle("first");
    let (start, mut out) = (w.now, Vec::new());
    let (mut names, mut passes) = (BTreeSet::new(), 0);
    for n in 0..4000_u32 {
        let now = start + Duration::from_millis(n.into());
        let node = &mut w.nodes[0].replica;
        let mut hello = node.peers[0].inbound.hello.clone().unwrap();
        (hello.incarnation, hello.serial) = (7000 + u64::from(n), n);
        out.clear();
        message::put_hello(&mut out, &hello);
        node.receive(0, &out, now, &mut ());
        names.insert(node.peers[0].inbound.hello.as_ref().unwrap().incarnation);
        out.clear();
        let serial = node.peers[0].serial;
        let was_up = node.peers[0].outbound.is_up();
        message::put_hello_ack(&mut out, serial, 1, 0);
        node.receive(0, &out, now, &mut ());
        passes += u32::from(!was_up && node.peers[0].outbound.is_up());
        if n % 7 == 0 {
            node.disconnected(0, now);
            node.connected(0, now);
        }
    }
    // 5 ms each.
    let taken = u32::try_from(names.len()).unwrap() + passes;
    assert!((700..=820).contains(&taken), "{} {passes}", names.len());
    w.now = start + Duration::from_secs(4);
    w.connect_all();
    w.settle("the honest one");
    w.restart(1);
    w.settle("its restart");
}
