//! Replication: keeps a copy of this node's entries at every peer and a copy
//! of every peer's here. Pure: no sockets, no clock.
//!
//! Each node owns what it mirrors; a peer only copies. So there is one
//! writer per cache, and a copy is right when it equals its origin, which a
//! digest in the data stream proves.

pub mod allowance;
pub mod inbound;
pub mod message;
pub mod outbound;
pub mod repair;
pub mod timer;
pub mod width;

use crate::hash::Seed;
use crate::store::{Change, Entry, NoRoom, Slot, Store};
use allowance::Allowance;
use inbound::Inbound;
use message::{Hello, Message, Role};
use outbound::Outbound;
use std::time::Duration;

/// Most peers a node can have: one bit each in a slot.
pub const MAX_PEERS: usize = 16;

const HELLO_RETRY: Duration = Duration::from_millis(250);

/// Gets told what changes in a copy, as it changes.
pub trait Sink {
    /// An entry was put; its slot is live.
    fn put(&mut self, copy: &mut Store, index: u32, change: Change);
    /// An entry is about to go; its slot is still live.
    fn delete(&mut self, copy: &mut Store, index: u32);
}

/// Ignores everything.
impl Sink for () {
    fn put(&mut self, _: &mut Store, _: u32, _: Change) {}
    fn delete(&mut self, _: &mut Store, _: u32) {}
}

/// What a replica needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node's name.
    pub name: String,
    /// Random per start.
    pub incarnation: u64,
    /// Random per start.
    pub seed: Seed,
    /// Most entries per cache.
    pub limit: usize,
    /// Datagrams a peer may have on the way to us.
    pub credit: u32,
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    /// What it has of ours.
    pub outbound: Outbound,
    /// What we have of its.
    pub inbound: Inbound,
    connected: bool,
    session: u32,
    serial: u32,
    hello_at: Option<Duration>,
    ack_hello: bool,
    answers: Vec<Vec<u8>>,
    passes: Allowance,
}

/// Number of a peer.
pub type PeerId = usize;

/// A node.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
    /// This node's own entries.
    pub own: Store,
    /// Its peers.
    pub peers: Vec<Peer>,
    role: Role,
    epoch: u64,
    changes: u32,
    items: Vec<u8>,
    /// Messages that could not be read.
    pub malformed: u64,
}

impl Replica {
    /// A node without peers.
    pub fn new(settings: Settings) -> Self {
        Self {
            own: Store::new(settings.seed, settings.limit),
            settings,
            peers: Vec::new(),
            role: Role::Standalone,
            epoch: 0,
            changes: 0,
            items: Vec::new(),
            malformed: 0,
        }
    }

    /// Adds a peer; `None` beyond [`MAX_PEERS`].
    pub fn add_peer(&mut self) -> Option<PeerId> {
        let id = self.peers.len();
        if id >= MAX_PEERS {
            return None;
        }
        self.peers.push(Peer {
            outbound: Outbound::new(1 << id),
            inbound: Inbound::new(self.settings.limit, self.settings.credit),
            connected: false,
            session: 0,
            serial: 0,
            hello_at: None,
            ack_hello: false,
            answers: Vec::new(),
            passes: Allowance::default(),
        });
        Some(id)
    }

    /// This node's role and epoch.
    pub const fn role(&self) -> (Role, u64) {
        (self.role, self.epoch)
    }

    /// Changes role and epoch and tells the peers.
    pub fn set_role(&mut self, role: Role, epoch: u64, now: Duration) {
        self.role = role;
        self.epoch = epoch;
        for peer in &mut self.peers {
            peer.greet(now);
        }
    }

    /// While true, peers keep the copies they have: what we own is being
    /// read.
    pub fn hold(&mut self, held: bool) {
        for peer in &mut self.peers {
            peer.outbound.held = held;
        }
    }

    /// The highest epoch heard of.
    pub fn highest_epoch(&self) -> u64 {
        let theirs = self.peers.iter().map(|p| p.inbound.role().1).max();
        theirs.unwrap_or(0).max(self.epoch)
    }

    /// True if the peer's states may not replace ours: it lost its role.
    pub fn is_fenced(&self, peer: PeerId) -> bool {
        let epoch = self.peers.get(peer).map_or(0, |p| p.inbound.role().1);
        self.role == Role::Primary && self.epoch > epoch
    }

    /// The peer that took over from us, if one did: it is primary with a
    /// higher epoch, or with the same one and a higher name.
    pub fn successor(&self) -> Option<PeerId> {
        let mine = (self.epoch, self.settings.name.as_str());
        self.peers.iter().position(|p| {
            p.inbound.hello.as_ref().is_some_and(|h| {
                let theirs = (h.epoch, h.name.as_str());
                h.role == Role::Primary
                    && theirs > mine
                    && (h.epoch > self.epoch || self.role == Role::Primary)
            })
        })
    }

    /// The peer can be reached (again).
    pub fn connected(&mut self, id: PeerId, now: Duration) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.outbound.stop(&mut self.own);
        peer.connected = true;
        peer.session = peer.session.wrapping_add(1);
        peer.greet(now);
    }

    /// The peer can't be reached.
    pub fn disconnected(&mut self, id: PeerId, now: Duration) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.connected = false;
        peer.hello_at = None;
        peer.ack_hello = false;
        peer.answers.clear();
        peer.outbound.stop(&mut self.own);
        peer.inbound.stop(now);
    }

    /// True between [`Replica::connected`] and [`Replica::disconnected`].
    pub fn is_connected(&self, id: PeerId) -> bool {
        self.peers.get(id).is_some_and(|p| p.connected)
    }

    /// Compares the copies of all peers with them again.
    pub fn resync(&mut self) {
        for peer in self.peers.iter_mut().filter(|p| p.connected) {
            peer.inbound.start_round();
        }
    }

    /// Stores one of our own entries and queues it if it changed, or if its
    /// timeout is by far not what peers have been told.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn put(&mut self, entry: &Entry<'_>, now: Duration) -> Result<(u32, Change), NoRoom> {
        let (index, change) = self.own.put(entry)?;
        if change != Change::Same {
            self.changed(index, now);
        } else if self.is_late(index, entry.deadline, now) {
            self.own.set_deadline(index, entry.deadline);
            self.changed(index, now);
        }
        Ok((index, change))
    }

    /// True if a deadline is off by more than a quarter of the time that is
    /// left. Packets set timeouts anew, and to tell each time would cost more
    /// than the states.
    fn is_late(&self, index: u32, deadline: u32, now: Duration) -> bool {
        const SLACK: u64 = 10;
        let left = u64::from(deadline).saturating_sub(now.as_secs());
        let told = self.own.slot(index).map_or(deadline, |s| s.deadline);
        u64::from(told.abs_diff(deadline)) > SLACK.max(left / 4)
    }

    fn changed(&mut self, index: u32, now: Duration) {
        self.changes = self.changes.wrapping_add(1);
        if let Some(slot) = self.own.slot_mut(index) {
            slot.version = self.changes;
        }
        for peer in self.peers.iter_mut().filter(|p| p.outbound.is_up()) {
            peer.outbound.enqueue(&mut self.own, index, now);
        }
    }

    /// Deletes one of our own entries.
    pub fn delete(&mut self, index: u32, now: Duration) {
        self.own.kill(index);
        let pending = (0..)
            .zip(&self.peers)
            .filter(|(_, p)| p.outbound.is_up())
            .fold(0, |bits, (i, _)| bits | (1_u16 << i));
        if pending == 0 {
            self.own.bury(index);
            return;
        }
        if let Some(slot) = self.own.slot_mut(index) {
            slot.pending = pending;
        }
        self.changed(index, now);
    }

    /// Drops all of our own entries; peers are told in one word.
    pub fn clear(&mut self, now: Duration) {
        for peer in &mut self.peers {
            let up = peer.outbound.is_up();
            peer.outbound.stop(&mut self.own);
            if up {
                peer.outbound.start();
            }
            peer.outbound.touch();
        }
        self.own.clear();
        for peer in self.peers.iter_mut().filter(|p| p.connected) {
            peer.session = peer.session.wrapping_add(1);
            peer.greet(now);
        }
    }

    /// Takes a message of a peer.
    pub fn receive(&mut self, id: PeerId, bytes: &[u8], now: Duration, sink: &mut dyn Sink) {
        let Self { own, peers, .. } = self;
        let Some(peer) = peers.get_mut(id).filter(|p| p.connected) else {
            return;
        };
        let ok = match Message::decode(bytes) {
            Ok(message) => peer.on_message(own, 1 << id, message, now, sink),
            Err(_) => false,
        };
        if !ok {
            self.malformed += 1;
        }
    }

    /// Builds the next message for a peer, at most `limit` bytes; false if
    /// there is none now.
    pub fn transmit(&mut self, id: PeerId, now: Duration, limit: usize, out: &mut Vec<u8>) -> bool {
        out.clear();
        let hello = self.hello(id);
        let Some(peer) = self.peers.get_mut(id).filter(|p| p.connected) else {
            return false;
        };
        if peer.hello_at.is_some_and(|at| at <= now) {
            peer.hello_at = Some(now + HELLO_RETRY);
            message::put_hello(out, &hello);
            return true;
        }
        if std::mem::take(&mut peer.ack_hello) {
            if let Some(h) = &peer.inbound.hello {
                let held = peer.inbound.store.len() as u64;
                message::put_hello_ack(out, h.serial, h.incarnation, held);
                return true;
            }
        }
        peer.inbound.poll(now);
        peer.outbound.poll(&mut self.own, now);
        if peer.inbound.fill_ack(now, limit, out) {
            return true;
        }
        if let Some(answer) = peer.answers.pop() {
            *out = answer;
            return true;
        }
        if let Some(round) = &mut peer.inbound.round {
            if round.fill(&peer.inbound.store, now, limit.min(width::SAFE), out) {
                return true;
            }
        }
        peer.outbound
            .fill(&mut self.own, now, limit, out, &mut self.items)
    }

    fn hello(&self, id: PeerId) -> Hello {
        let (session, serial, next) = self.peers.get(id).map_or((0, 0, 0), |p| {
            (p.session, p.serial, p.outbound.next_number())
        });
        Hello {
            version: message::VERSION,
            incarnation: self.settings.incarnation,
            session,
            serial,
            seed: self.settings.seed,
            role: self.role,
            epoch: self.epoch,
            next,
            name: self.settings.name.clone(),
        }
    }

    /// When [`Replica::transmit`] will have something for the peer without
    /// new input.
    pub fn deadline(&self, id: PeerId) -> Option<Duration> {
        let peer = self.peers.get(id).filter(|p| p.connected)?;
        if peer.ack_hello || !peer.answers.is_empty() {
            return Some(Duration::ZERO);
        }
        let parts = [
            peer.hello_at,
            peer.inbound.deadline(),
            peer.outbound.deadline(),
        ];
        parts.into_iter().flatten().min()
    }
}

impl Peer {
    fn greet(&mut self, now: Duration) {
        if self.connected {
            self.serial = self.serial.wrapping_add(1);
            self.hello_at = Some(now);
        }
    }

    /// False if the message is malformed inside.
    fn on_message(
        &mut self,
        own: &mut Store,
        bit: u16,
        message: Message<'_>,
        now: Duration,
        sink: &mut dyn Sink,
    ) -> bool {
        match message {
            Message::Hello(hello) => self.on_hello(own, hello, now),
            Message::HelloAck { serial, held, .. } => self.on_hello_ack(own, serial, held, now),
            Message::Data(data, items) => self.inbound.on_data(&data, items, now, sink),
            Message::Ack(ack) => self.outbound.on_ack(own, &ack, now),
            Message::Answer(query, bitmap) => {
                if let Some(round) = &mut self.inbound.round {
                    round.on_answer(query, bitmap, now);
                }
            }
            Message::Ours(query, ours) => {
                let inbound = &mut self.inbound;
                if let Some(round) = &mut inbound.round {
                    return round.on_ours(&inbound.store, query, ours, now).is_ok();
                }
            }
            Message::Unknown(_) => {}
            query if self.outbound.may_tell() => {
                let mut out = Vec::new();
                let answered = repair::answer(own, &mut self.outbound, bit, query, now, &mut out);
                if answered.is_err() {
                    return false;
                }
                self.answer(out);
            }
            _ => {}
        }
        true
    }

    /// Answers wait for their turn; a peer that asks faster than it reads
    /// asks again.
    fn answer(&mut self, out: Vec<u8>) {
        if self.answers.len() < 256 {
            self.answers.push(out);
        }
    }

    fn on_hello(&mut self, own: &mut Store, hello: Hello, now: Duration) {
        // A first hello counts too: whom we greeted may have been its
        // predecessor.
        let restarted = self
            .inbound
            .hello
            .as_ref()
            .is_none_or(|h| h.incarnation != hello.incarnation);
        let entries = own.len().max(self.inbound.store.len());
        if restarted && !self.passes.take(entries, now) {
            // It greets again until it is answered.
            return;
        }
        self.inbound.on_hello(hello, now);
        self.ack_hello = true;
        if restarted && self.outbound.is_up() {
            // It has lost its copy of us and does not know us.
            self.outbound.stop(own);
            self.session = self.session.wrapping_add(1);
            self.greet(now);
        }
    }

    fn on_hello_ack(&mut self, own: &mut Store, serial: u32, held: u64, now: Duration) {
        if serial != self.serial || self.hello_at.is_none() {
            return;
        }
        if !self.outbound.is_up() && !self.passes.take(own.len(), now) {
            // We greet again, and are answered later.
            return;
        }
        self.hello_at = None;
        if self.outbound.is_up() {
            return;
        }
        self.outbound.start();
        if held == 0 {
            self.outbound.enqueue_all(own, now);
        }
    }
}

/// A slot's remaining seconds.
pub fn remaining(slot: &Slot, now: Duration) -> u32 {
    u32::try_from(u64::from(slot.deadline).saturating_sub(now.as_secs())).unwrap_or(0)
}

#[cfg(test)]
mod tests;
