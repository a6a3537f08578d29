//! The nodes of a history, their kernels and what is on the wires.

use super::super::{LIMIT, bytes_of, content, node_of, start};
use super::{KEYS, LINKS};
use crate::record;
use crate::replica::message::Role;
use crate::replica::{PeerId, Replica};
use crate::rng::Rng;
use crate::store::Entry;
use crate::transport::key::Secret;
use crate::transport::{Event, Outgoing, PeerKeys, PeerSettings, Transport};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(3);

/// One node: what the daemon's loop keeps.
pub struct Node {
    transport: Transport,
    pub replica: Replica,
    /// What its kernel has.
    pub kernel: BTreeMap<u32, u32>,
    /// Somebody else owns the states.
    released: bool,
    alive: bool,
    /// Its clock starts with it.
    born: Duration,
    /// It speaks a later version.
    later: bool,
}

/// When, tie-break, receiver, link, sender's address, bytes.
pub type Wire = Reverse<(Duration, u64, usize, usize, SocketAddr, Vec<u8>)>;

pub struct World {
    pub rng: Rng,
    pub now: Duration,
    pub nodes: Vec<Node>,
    pub wires: BinaryHeap<Wire>,
    count: u64,
    loss: u32,
    duplicate: u32,
    delay_us: u32,
    /// Percent lost from one node to another on a link; none: nothing.
    pub cuts: BTreeMap<(usize, usize, usize), u32>,
    starts: u64,
    /// Everything that went over the wires, in brief.
    pub trace: u64,
}

fn secret(n: usize) -> Secret {
    Secret::from_bytes([u8::try_from(n).unwrap() + 1; 32])
}

fn address(n: usize, link: usize) -> SocketAddr {
    let (n, link) = (u8::try_from(n).unwrap(), u16::try_from(link).unwrap());
    SocketAddr::from(([192, 0, 2, n + 1], 3780 + link))
}

fn boot(me: usize, nodes: usize, incarnation: u64) -> (Transport, Replica) {
    let mut transport = Transport::new(secret(me), incarnation, TIMEOUT);
    for other in (0..nodes).filter(|o| *o != me) {
        transport.add_peer(PeerSettings {
            keys: PeerKeys::of(secret(other).public()),
            endpoints: (0..LINKS).map(|l| Some(address(other, l))).collect(),
        });
    }
    (transport, start(me, nodes - 1, incarnation))
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let n = 2 + rng.below(2) as usize;
        let nodes = (0..n).map(|me| {
            let (transport, replica) = boot(me, n, me as u64 + 1);
            Node {
                transport,
                replica,
                kernel: BTreeMap::new(),
                released: false,
                alive: me < 2,
                born: Duration::ZERO,
                later: false,
            }
        });
        let nodes = nodes.collect();
        let mut world = Self {
            now: Duration::from_secs(10),
            nodes,
            wires: BinaryHeap::new(),
            count: 0,
            loss: [0, 5, 20, 30][rng.below(4) as usize],
            duplicate: [0, 10, 30][rng.below(3) as usize],
            delay_us: [1, 1000, 20_000, 60_000][rng.below(4) as usize],
            cuts: BTreeMap::new(),
            starts: 100,
            trace: seed,
            rng,
        };
        let skew = world.rng.below(3) as usize;
        for node in world.nodes.iter_mut().skip(1).take(skew) {
            node.later = true;
        }
        world
    }

    fn clock(&self, n: usize) -> Duration {
        self.now - self.nodes[n].born
    }

    pub fn any(&mut self) -> usize {
        let n = u32::try_from(self.nodes.len()).unwrap();
        self.rng.below(n) as usize
    }

    /// Stores what `node`'s kernel has of a flow.
    fn put(&mut self, n: usize, flow: u32, state: u32) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        node.kernel.insert(flow, state);
        let mut bytes = bytes_of(flow, state);
        if node.later {
            extend(&mut bytes);
        }
        store(&mut node.replica, &bytes, now);
    }

    fn delete(&mut self, n: usize, flow: u32) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        if node.kernel.remove(&flow).is_none() {
            return;
        }
        let key = record::split(&bytes_of(flow, 0)).unwrap().key.to_vec();
        let key = node.replica.own.key(&key);
        let index = node.replica.own.find(key).unwrap();
        node.replica.delete(index, now);
    }

    /// Only who owns states follows its kernel.
    pub fn event(&mut self) {
        let n = self.any();
        if !self.nodes[n].alive || self.nodes[n].released {
            return;
        }
        let flow = self.rng.below(KEYS);
        match self.rng.below(100) {
            0..35 => self.delete(n, flow),
            35 => self.clear(n),
            _ => {
                let state = self.rng.below(50);
                self.put(n, flow, state);
            }
        }
    }

    /// `conntrack -F` and a reconciliation that finds nothing.
    fn clear(&mut self, n: usize) {
        let now = self.clock(n);
        self.nodes[n].kernel.clear();
        self.nodes[n].replica.clear(now);
    }

    /// The daemon ends, with a word or without; its kernel may, too.
    fn stop(&mut self, n: usize) {
        if !self.nodes[n].alive {
            return;
        }
        if self.rng.chance(30) {
            let mut out = Vec::new();
            self.nodes[n].transport.bye(&mut out);
            self.send_all(n, out);
        }
        if self.rng.chance(50) {
            self.nodes[n].kernel.clear();
        }
        self.nodes[n].alive = false;
    }

    fn start(&mut self, n: usize) {
        if self.nodes[n].alive {
            return;
        }
        self.starts += 1;
        let (transport, replica) = boot(n, self.nodes.len(), self.starts);
        let node = &mut self.nodes[n];
        (node.transport, node.replica) = (transport, replica);
        (node.alive, node.released) = (true, false);
        node.born = self.now - Duration::from_secs(1);
        for (flow, state) in node.kernel.clone() {
            self.put(n, flow, state);
        }
    }

    /// `ctsync primary`: commit, then own it.
    pub fn take_over(&mut self, n: usize) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        if !node.alive || node.replica.role().0 == Role::Primary {
            return;
        }
        let copies = node.replica.peers.iter().map(|p| &p.inbound.store);
        let records: Vec<Vec<u8>> = copies
            .flat_map(|c| c.live().map(|(_, s)| c.bytes(s).to_vec()))
            .collect();
        for bytes in records {
            let (flow, state) = flow_of(&bytes);
            node.kernel.insert(flow, state);
            store(&mut node.replica, &bytes, now);
        }
        let epoch = node.replica.highest_epoch() + 1;
        node.replica.set_role(Role::Primary, epoch, now);
        node.released = false;
    }

    pub fn step_down(&mut self, n: usize, role: Role) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        let (old, epoch) = node.replica.role();
        if node.alive && old != role {
            node.replica.set_role(role, epoch, now);
            node.replica.resync();
        }
    }

    /// What the daemon does when somebody has taken over from it.
    fn work_role(&mut self, n: usize) {
        let now = self.clock(n);
        let node = &mut self.nodes[n];
        if node.released || node.replica.successor().is_none() {
            return;
        }
        let (role, epoch) = node.replica.role();
        if role != Role::Fault {
            node.replica.set_role(Role::Backup, epoch, now);
        }
        node.replica.clear(now);
        node.kernel.clear();
        node.released = true;
    }

    fn cut(&mut self) {
        let (a, b) = (self.any(), self.any());
        let link = self.rng.below(2) as usize;
        let percent = [100, 100, 60][self.rng.below(3) as usize];
        for link in [link, self.rng.below(2) as usize] {
            self.cuts.insert((a, b, link), percent);
            if self.rng.chance(70) {
                self.cuts.insert((b, a, link), percent);
            }
        }
    }

    fn send_all(&mut self, from: usize, out: Vec<Outgoing>) {
        for o in out {
            self.send(from, o.link, o.to, &o.bytes);
        }
    }

    fn send(&mut self, from: usize, link: usize, to: SocketAddr, bytes: &[u8]) {
        let Some(to) = (0..self.nodes.len()).find(|n| address(*n, link) == to) else {
            return;
        };
        let length = bytes.len() as u64;
        self.note(&[self.now.as_micros().try_into().unwrap(), length]);
        for _ in 0..=u32::from(self.rng.chance(self.duplicate)) {
            let cut = self.cuts.get(&(from, to, link)).copied().unwrap_or(0);
            if self.rng.chance(self.loss) || self.rng.chance(cut) {
                continue;
            }
            let delay = 10 + self.rng.below(self.delay_us);
            let at = self.now + Duration::from_micros(delay.into());
            self.count += 1;
            let origin = address(from, link);
            let wire = (at, self.count, to, link, origin, bytes.to_vec());
            self.wires.push(Reverse(wire));
        }
    }

    fn note(&mut self, words: &[u64]) {
        for word in words {
            self.trace = crate::hash::mix(self.trace ^ word);
        }
    }

    pub fn step(&mut self, by: Duration) {
        self.now += by;
        for n in 0..self.nodes.len() {
            if self.nodes[n].alive {
                self.work(n);
            }
        }
        while self.wires.peek().is_some_and(|w| w.0.0 <= self.now) {
            let Reverse((_, _, to, link, from, bytes)) = self.wires.pop().unwrap();
            if self.nodes[to].alive {
                self.deliver(to, (link, from), &bytes);
            }
        }
    }

    fn work(&mut self, n: usize) {
        let now = self.clock(n);
        let (mut out, mut events) = (Vec::new(), Vec::new());
        self.nodes[n].transport.poll(now, &mut out, &mut events);
        self.send_all(n, out);
        self.on_events(n, &events, &[]);
        self.work_role(n);
        for peer in 0..self.nodes.len() - 1 {
            self.transmit(n, peer);
        }
    }

    fn transmit(&mut self, n: usize, peer: PeerId) {
        let now = self.clock(n);
        let (mut message, mut sealed) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            let node = &mut self.nodes[n];
            if !node.replica.transmit(peer, now, LIMIT, &mut message) {
                break;
            }
            assert!(message.len() <= LIMIT, "{} bytes", message.len());
            if node.later {
                speak_later(&mut message);
            }
            if let Some((link, to)) = node.transport.seal(peer, &message, now, &mut sealed) {
                self.send(n, link, to, &sealed);
            }
        }
    }

    fn deliver(&mut self, to: usize, origin: (usize, SocketAddr), bytes: &[u8]) {
        let now = self.clock(to);
        let (mut plain, mut out, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let node = &mut self.nodes[to];
        node.transport
            .receive(origin, bytes, now, &mut plain, &mut out, &mut events);
        self.send_all(to, out);
        self.on_events(to, &events, &plain);
    }

    fn on_events(&mut self, n: usize, events: &[Event], plain: &[u8]) {
        let now = self.clock(n);
        let replica = &mut self.nodes[n].replica;
        for event in events {
            match *event {
                Event::Up(peer) => replica.connected(peer, now),
                Event::Down(peer) => replica.disconnected(peer, now),
                Event::Message(peer) => replica.receive(peer, plain, now, &mut ()),
            }
        }
    }

    fn settled(&self) -> Result<(), String> {
        for (b, node) in self.nodes.iter().enumerate() {
            let now = self.clock(b);
            let own = &node.replica.own;
            if own.len() != node.kernel.len() {
                return Err(format!("{b} is not its kernel"));
            }
            if node.released && !own.is_empty() {
                return Err(format!("{b} still owns what it gave up"));
            }
            if !node.released && node.replica.successor().is_some() {
                return Err(format!("{b} has not heard of its successor"));
            }
            if node.replica.malformed > 0 {
                return Err(format!("{b} could not read something"));
            }
            for (p, peer) in node.replica.peers.iter().enumerate() {
                let origin = &self.nodes[node_of(b, p)].replica;
                let (copy, theirs) = (content(&peer.inbound.store), content(&origin.own));
                if copy != theirs {
                    return Err(format!("{b} has {} of {}", copy.len(), theirs.len()));
                }
                if !peer.inbound.is_synced(now) || !peer.outbound.peer_synced {
                    return Err(format!("{b} does not know it is in sync with {p}"));
                }
                if peer.inbound.role() != origin.role() {
                    return Err(format!("{b} does not know the role of {p}"));
                }
            }
            let used = (0..u32::try_from(own.slots()).unwrap()).filter(|i| own.slot(*i).is_some());
            if used.count() != own.len() {
                return Err(format!("{b} keeps tombstones"));
            }
        }
        let owners = self.nodes.iter().filter(|n| {
            let (role, _) = n.replica.role();
            role == Role::Primary && !n.released
        });
        match owners.count() {
            0 | 1 => Ok(()),
            n => Err(format!("{n} primaries")),
        }
    }

    pub fn settle(&mut self, what: &str) {
        self.cuts.clear();
        for n in 0..self.nodes.len() {
            self.start(n);
        }
        let end = self.now + Duration::from_secs(180);
        let mut last = Err("not looked".to_owned());
        while last.is_err() && self.now < end {
            for _ in 0..10 {
                self.step(Duration::from_millis(10));
            }
            last = self.settled();
        }
        assert_eq!(last, Ok(()), "{what}");
    }

    /// What all nodes own together.
    pub fn everything(&self) -> BTreeMap<u32, u32> {
        let mut all = BTreeMap::new();
        for node in &self.nodes {
            all.extend(node.kernel.clone());
        }
        all
    }

    pub fn chaos(&mut self) {
        for _ in 0..150 {
            for _ in 0..self.rng.below(8) {
                self.event();
            }
            let n = self.any();
            match self.rng.below(60) {
                0 => self.stop(n),
                1..4 => self.start(n),
                4 => self.take_over(n),
                5 => self.step_down(n, Role::Backup),
                6 => self.step_down(n, Role::Fault),
                7..9 => self.cut(),
                9..12 => self.cuts.clear(),
                12 => self.silence(),
                _ => {}
            }
            let by = [1, 5, 40, 300][self.rng.below(4) as usize];
            self.step(Duration::from_millis(by));
        }
    }

    /// Long enough for keys to be renewed, or to expire.
    fn silence(&mut self) {
        for _ in 0..self.rng.below(700) {
            self.step(Duration::from_millis(400));
        }
    }
}

fn store(replica: &mut Replica, bytes: &[u8], now: Duration) {
    let entry = Entry {
        key: replica.own.key(record::split(bytes).unwrap().key),
        bytes,
        expect: false,
        deadline: u32::try_from(now.as_secs()).unwrap() + 1000,
    };
    replica.put(&entry, now).unwrap();
}

/// The inverse of [`bytes_of`].
fn flow_of(bytes: &[u8]) -> (u32, u32) {
    let key = record::split(bytes).unwrap().key;
    let flow = (0..KEYS).find(|n| record::split(&bytes_of(*n, 0)).unwrap().key == key);
    let flow = flow.expect("a record that nobody made");
    let plain = record::decode(bytes).unwrap();
    let state = (0..50).find(|s| record::decode(&bytes_of(flow, *s)).unwrap() == plain);
    (flow, state.expect("a state that nobody made"))
}

/// A record with a field of a later version, which may be ignored.
fn extend(bytes: &mut Vec<u8>) {
    let key = record::split(bytes).unwrap().key.len();
    let mut body = crate::wire::Reader::new(&bytes[key..]);
    let fields = body.varint("fields").unwrap();
    let rest = body.rest().to_vec();
    bytes.truncate(key);
    crate::wire::put_varint(bytes, fields | 1 << 12);
    bytes.extend_from_slice(&rest);
    bytes.extend_from_slice(&[4, 2, 0xaa, 0xbb]);
}

/// Makes a message one of a later version: a higher number and one more field
/// in greetings, one more item in data.
fn speak_later(message: &mut Vec<u8>) {
    match message.first() {
        Some(1) => {
            message[1] = 2;
            message.extend_from_slice(&[0xaa; 5]);
        }
        Some(2) => message.extend_from_slice(&[0xbb; 3]),
        Some(3) => message.extend_from_slice(&[2 << 2 | 2, 0xcc, 0xdd]),
        _ => {}
    }
}
