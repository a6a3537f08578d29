//! The link between nodes, seen by who has no keys.

use ctsync::transport::frame::{Frame, NotFrame, VERSION};
use ctsync::transport::key::{Public, Secret};
use ctsync::transport::{Event, Outgoing, PeerKeys, PeerSettings, Transport};
use std::net::SocketAddr;
use std::time::Duration;

fn secret(n: u8) -> Secret {
    Secret::from_bytes([n; 32])
}

fn public(n: u8) -> Public {
    secret(n).public()
}

/// A frame. What is read is written the same again.
pub fn frame(input: &[u8]) {
    let to = public(1);
    match Frame::decode(input, &to) {
        Ok(frame) => {
            let mut out = Vec::new();
            frame.encode(&to, &mut out);
            assert_eq!(out, input);
        }
        Err(NotFrame::Version) => assert_ne!(input.first().map(|b| b >> 4), Some(VERSION)),
        Err(NotFrame::Garbage) => {}
    }
    // The same bytes with a good check, as who knows the public key sends.
    let Some((&kind, rest)) = input.split_first() else {
        return;
    };
    let (head, noise) = rest.split_at(rest.len().min(8));
    let word = |at: usize| {
        let bytes = head.get(at..).and_then(|b| b.first_chunk());
        bytes.copied().map_or(0, u32::from_be_bytes)
    };
    let frame = match kind % 3 {
        0 => Frame::Initiation {
            sender: word(0),
            noise,
        },
        1 => Frame::Response {
            sender: word(0),
            receiver: word(4),
            noise,
        },
        _ => Frame::Sealed {
            receiver: word(0),
            counter: word(4).into(),
            sealed: noise,
        },
    };
    let mut out = Vec::new();
    frame.encode(&to, &mut out);
    assert_eq!(Frame::decode(&out, &to), Ok(frame));
    assert_ne!(Frame::decode(&out, &public(2)).is_ok(), kind % 3 < 2);
    stranger(&out);
}

/// A node answers nothing to who is no peer of it, and is not brought up.
fn stranger(datagram: &[u8]) {
    let mut node = node(1, 2);
    let (mut plain, mut out, mut events) = (Vec::new(), Vec::new(), Vec::new());
    let now = Duration::from_secs(1);
    for _ in 0..2 {
        let from = (0, address(9));
        node.receive(from, datagram, now, &mut plain, &mut out, &mut events);
    }
    assert!(out.is_empty() && events.is_empty());
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 3780))
}

fn node(n: u8, peer: u8) -> Transport {
    let timeout = Duration::from_secs(3);
    let mut node = Transport::new(secret(n), n.into(), timeout);
    node.add_peer(PeerSettings {
        keys: PeerKeys {
            psk: Some(secret(9)),
            ..PeerKeys::of(public(peer))
        },
        endpoints: vec![Some(address(peer))],
    });
    node
}

/// Two nodes and who stands between them.
struct Wire {
    nodes: [Transport; 2],
    now: Duration,
    /// Every datagram that was ever sent: to whom, and its bytes.
    seen: Vec<(usize, Vec<u8>)>,
    /// Datagrams on the way.
    queue: Vec<(usize, Vec<u8>)>,
    said: [Vec<Vec<u8>>; 2],
    heard: [Vec<Vec<u8>>; 2],
}

/// A link on which somebody delays, drops, repeats, swaps, reflects, changes
/// and forges, while keys are replaced. Input: operations of three bytes. No
/// message arrives that was not sent, none twice, and an undisturbed pair with
/// keys that fit can talk afterwards.
pub fn link(input: &[u8]) {
    let mut wire = Wire {
        nodes: [node(1, 2), node(2, 1)],
        now: Duration::from_secs(1),
        seen: Vec::new(),
        queue: Vec::new(),
        said: [Vec::new(), Vec::new()],
        heard: [Vec::new(), Vec::new()],
    };
    for op in input.chunks_exact(3).take(200) {
        if let &[op, a, b] = op {
            wire.step(op, usize::from(a), b);
        }
    }
    wire.check();
    wire.calm();
    wire.check();
}

impl Wire {
    fn step(&mut self, op: u8, a: usize, b: u8) {
        match op % 12 {
            0 => self.poll(a % 2),
            1 => self.now += Duration::from_millis(u64::from(b) * 8),
            2 if !self.queue.is_empty() => {
                let (to, bytes) = self.queue.remove(a % self.queue.len());
                self.deliver(to, &bytes, to);
            }
            3 if !self.queue.is_empty() => drop(self.queue.remove(a % self.queue.len())),
            4 => {
                self.say(a % 2, b);
            }
            5 => self.old(a, |bytes| bytes, 0),
            6 => self.old(a, |bytes| bytes, 1),
            7 => self.old(
                a,
                |mut bytes| {
                    let len = bytes.len().max(1);
                    if let Some(x) = bytes.get_mut(usize::from(b) % len) {
                        *x ^= 1 << (b % 8);
                    }
                    bytes
                },
                0,
            ),
            8 => self.old(
                a,
                |mut bytes| {
                    bytes.truncate(usize::from(b));
                    bytes
                },
                0,
            ),
            9 => {
                self.poll(0);
                self.poll(1);
                self.flush();
            }
            10 => self.become_owner(a % 2, b % 2 * 2),
            _ => self.know(a % 2, b),
        }
    }

    /// The node has its first key, or its second one.
    fn become_owner(&mut self, n: usize, which: u8) {
        let (now, first) = (self.now, if n == 0 { 1 } else { 2 });
        if let Some(node) = self.nodes.get_mut(n) {
            node.set_private(secret(first + which), now);
        }
    }

    /// The node knows the other one by one key or two, in either order, and
    /// shares one key or two with it.
    fn know(&mut self, n: usize, bits: u8) {
        let (now, first) = (self.now, if n == 0 { 2 } else { 1 });
        let [one, two] = if bits & 1 == 0 { [0, 2] } else { [2, 0] };
        let [old, new] = if bits & 2 == 0 { [9, 10] } else { [10, 9] };
        let keys = PeerKeys {
            public: public(first + one),
            next_public: (bits & 4 != 0).then(|| public(first + two)),
            psk: (bits & 16 == 0).then(|| secret(old)),
            next_psk: (bits & 8 != 0).then(|| secret(new)),
        };
        if let Some(node) = self.nodes.get_mut(n) {
            node.set_peer_keys(0, keys, now);
        }
    }

    /// Something that was seen before, changed, to its receiver or back to
    /// its sender.
    fn old(&mut self, at: usize, change: impl FnOnce(Vec<u8>) -> Vec<u8>, back: usize) {
        let Some((to, bytes)) = self.seen.get(at % self.seen.len().max(1)).cloned() else {
            return;
        };
        self.deliver((to + back) % 2, &change(bytes), (to + back) % 2);
    }

    fn deliver(&mut self, to: usize, bytes: &[u8], claimed: usize) {
        let (mut plain, mut out, mut events) = (Vec::new(), Vec::new(), Vec::new());
        let from = (0, address(if claimed == 0 { 2 } else { 1 }));
        let Some(node) = self.nodes.get_mut(to) else {
            return;
        };
        node.receive(from, bytes, self.now, &mut plain, &mut out, &mut events);
        if events.iter().any(|e| matches!(e, Event::Message(0))) {
            if let Some(heard) = self.heard.get_mut(to) {
                heard.push(plain);
            }
        }
        self.sent(1 - to, out);
    }

    fn sent(&mut self, to: usize, out: Vec<Outgoing>) {
        for o in out {
            if self.seen.len() < 1000 {
                self.seen.push((to, o.bytes.clone()));
            }
            if self.queue.len() < 1000 {
                self.queue.push((to, o.bytes));
            }
        }
    }

    fn poll(&mut self, n: usize) {
        let (mut out, mut events) = (Vec::new(), Vec::new());
        if let Some(node) = self.nodes.get_mut(n) {
            node.poll(self.now, &mut out, &mut events);
        }
        self.sent(1 - n, out);
    }

    /// Messages are all different, so that one that comes twice is seen.
    fn say(&mut self, from: usize, length: u8) -> bool {
        let (Some(node), Some(said)) = (self.nodes.get_mut(from), self.said.get_mut(from)) else {
            return false;
        };
        let mut text = vec![7; usize::from(length)];
        text.extend_from_slice(&said.len().to_be_bytes());
        // The first byte is a type, and some are the transport's own.
        text.insert(0, 1);
        let mut bytes = Vec::new();
        if node.seal(0, &text, self.now, &mut bytes).is_none() {
            return false;
        }
        said.push(text);
        self.seen.push((1 - from, bytes.clone()));
        self.queue.push((1 - from, bytes));
        true
    }

    fn flush(&mut self) {
        for _ in 0..20 {
            for (to, bytes) in std::mem::take(&mut self.queue) {
                self.deliver(to, &bytes, to);
            }
        }
    }

    fn check(&self) {
        for (heard, said) in self.heard.iter().zip(self.said.iter().rev()) {
            let mut left = said.clone();
            for text in heard {
                let at = left.iter().position(|t| t == text);
                left.remove(at.expect("a message that was not sent, or came twice"));
            }
        }
    }

    /// Keys that fit, and eight seconds in which nobody interferes: with two
    /// keys of each kind it may take some handshakes.
    fn calm(&mut self) {
        self.queue.clear();
        for n in [0, 1] {
            self.become_owner(n, 0);
            self.know(n, 4 | 8);
        }
        for _ in 0..80 {
            self.now += Duration::from_millis(100);
            self.poll(0);
            self.poll(1);
            self.flush();
        }
        for from in [0, 1] {
            let before = self.heard.get(1 - from).map_or(0, Vec::len);
            assert!(self.say(from, 3), "no session after eight calm seconds");
            self.flush();
            let after = self.heard.get(1 - from).map_or(0, Vec::len);
            assert_eq!(after, before + 1, "a message is lost on a calm link");
        }
    }
}
