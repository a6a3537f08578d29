mod memory;

use super::*;
use crate::rng::Rng;

/// First byte of a handshake's first datagram.
const INITIATION: u8 = frame::VERSION << 4 | 1;

fn addr(n: u8, link: usize) -> SocketAddr {
    let port = 3780 + u16::try_from(link).unwrap();
    SocketAddr::from(([192, 0, 2, n], port))
}

struct Side {
    transport: Transport,
    events: Vec<Event>,
    messages: Vec<Vec<u8>>,
}

/// Two nodes, each with the other as peer 0, on `LINKS` links.
struct Pair {
    sides: [Side; 2],
    now: Duration,
    /// Every datagram ever sent: to, link, bytes.
    log: Vec<(usize, usize, Vec<u8>)>,
    dead_links: Vec<usize>,
}

fn secret(n: u8) -> Secret {
    Secret::from_bytes([n; 32])
}

fn side(n: u8, other: u8, incarnation: u64, psk: Option<u8>) -> Side {
    let timeout = Duration::from_secs(3);
    let mut transport = Transport::new(secret(n), incarnation, timeout);
    transport.add_peer(PeerSettings {
        keys: PeerKeys {
            psk: psk.map(secret),
            ..PeerKeys::of(secret(other).public())
        },
        endpoints: vec![Some(addr(other, 0)), Some(addr(other, 1))],
    });
    Side {
        transport,
        events: Vec::new(),
        messages: Vec::new(),
    }
}

impl Pair {
    fn new() -> Self {
        Self {
            sides: [side(1, 2, 11, Some(9)), side(2, 1, 12, Some(9))],
            now: Duration::from_secs(5),
            log: Vec::new(),
            dead_links: Vec::new(),
        }
    }

    fn deliver(&mut self, to: usize, link: usize, bytes: &[u8]) {
        let from = addr(u8::try_from(2 - to).unwrap(), link);
        let mut out = Vec::new();
        let mut plain = Vec::new();
        let mut events = Vec::new();
        let side = &mut self.sides[to];
        side.transport.receive(
            (link, from),
            bytes,
            self.now,
            &mut plain,
            &mut out,
            &mut events,
        );
        if events.contains(&Event::Message(0)) {
            side.messages.push(plain);
        }
        side.events.extend(events);
        self.send(to, out);
    }

    fn send(&mut self, from: usize, out: Vec<Outgoing>) {
        for o in out {
            self.log.push((1 - from, o.link, o.bytes.clone()));
            if !self.dead_links.contains(&o.link) {
                self.deliver(1 - from, o.link, &o.bytes);
            }
        }
    }

    fn poll(&mut self, i: usize) {
        let mut out = Vec::new();
        let mut events = Vec::new();
        self.sides[i]
            .transport
            .poll(self.now, &mut out, &mut events);
        self.sides[i].events.extend(events);
        self.send(i, out);
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.poll(0);
            self.poll(1);
            self.now += Duration::from_millis(50);
        }
    }

    fn say(&mut self, from: usize, text: &[u8]) -> bool {
        let mut bytes = Vec::new();
        let side = &mut self.sides[from].transport;
        let Some((link, _)) = side.seal(0, text, self.now, &mut bytes) else {
            return false;
        };
        self.send(
            from,
            vec![Outgoing {
                link,
                to: addr(0, link),
                bytes,
            }],
        );
        true
    }
}

#[test]
fn both_sides_come_up_and_talk() {
    let mut p = Pair::new();
    p.run(Duration::from_millis(100));
    assert_eq!(p.sides[0].events, [Event::Up(0)]);
    assert_eq!(p.sides[1].events, [Event::Up(0)]);
    assert!(p.say(0, b"hello") && p.say(1, b"world"));
    assert_eq!(p.sides[1].messages, [b"hello"]);
    assert_eq!(p.sides[0].messages, [b"world"]);
}

/// Both begin before either has heard of the other's beginning.
#[test]
fn two_handshakes_that_cross_leave_both_able_to_talk() {
    let mut p = Pair::new();
    let mut starts = Vec::new();
    for i in [0, 1] {
        let mut out = Vec::new();
        let now = p.now;
        p.sides[i].transport.poll(now, &mut out, &mut Vec::new());
        starts.push(out.remove(0).bytes);
    }
    let mut answers = Vec::new();
    for i in [0, 1] {
        let mut out = Vec::new();
        let origin = (0, addr(u8::try_from(2 - i).unwrap(), 0));
        let (now, start) = (p.now, &starts[1 - i]);
        let side = &mut p.sides[i].transport;
        side.receive(
            origin,
            start,
            now,
            &mut Vec::new(),
            &mut out,
            &mut Vec::new(),
        );
        answers.push(out.remove(0).bytes);
    }
    p.deliver(0, 0, &answers[1]);
    p.deliver(1, 0, &answers[0]);
    assert!(p.say(0, b"x") && p.say(1, b"y"));
    assert_eq!(
        (p.sides[0].messages.len(), p.sides[1].messages.len()),
        (1, 1)
    );
}

#[test]
fn keys_are_renewed_without_an_interruption() {
    let mut p = Pair::new();
    for n in 0..1000_u32 {
        p.run(Duration::from_millis(500));
        assert!(p.say(0, &n.to_be_bytes()) && p.say(1, &n.to_be_bytes()));
    }
    assert_eq!(p.sides[0].messages.len(), 1000);
    assert_eq!(p.sides[1].messages.len(), 1000);
    assert_eq!(
        p.sides[0]
            .events
            .iter()
            .filter(|e| **e == Event::Up(0))
            .count(),
        1
    );
    let starts = p.log.iter().filter(|(_, _, b)| b[0] == INITIATION).count();
    assert!((8..40).contains(&starts), "{starts}");
}

#[test]
fn a_stranger_gets_no_answer() {
    let mut p = Pair::new();
    p.sides[0] = side(3, 2, 11, Some(9));
    p.run(Duration::from_secs(2));
    assert!(p.sides[1].events.is_empty());
    assert!(p.sides[1].transport.refusals.unknown_key > 0);
    let answers = p
        .log
        .iter()
        .filter(|(to, _, b)| *to == 0 && b[0] != INITIATION);
    assert_eq!(answers.count(), 0);
}

#[test]
fn a_wrong_pre_shared_key_gets_no_session() {
    let mut p = Pair::new();
    p.sides[0] = side(1, 2, 11, Some(8));
    p.run(Duration::from_secs(2));
    assert!(p.sides[0].events.is_empty() && p.sides[1].events.is_empty());
    assert!(p.sides[0].transport.refusals.unknown_key > 0);
}

/// Everything that was ever on the wire, sent again: to a node that lives on
/// and to one that has restarted.
#[test]
fn replays_change_nothing() {
    let mut p = Pair::new();
    p.run(Duration::from_secs(1));
    p.say(0, b"once");
    let log = p.log.clone();
    for restarted in [false, true] {
        if restarted {
            p.sides[1] = side(2, 1, 99, Some(9));
        }
        p.sides[1].events.clear();
        p.sides[1].messages.clear();
        for (to, link, bytes) in &log {
            if *to == 1 {
                p.deliver(1, *link, bytes);
            }
        }
        assert!(p.sides[1].messages.is_empty());
        assert!(!p.sides[1].events.contains(&Event::Down(0)));
        p.run(Duration::from_secs(5));
        assert!(p.say(0, b"after"));
        assert_eq!(p.sides[1].messages, [b"after"]);
    }
    assert!(
        p.sides[0]
            .events
            .iter()
            .filter(|e| **e == Event::Up(0))
            .count()
            == 2
    );
}

#[test]
fn every_bit_flip_is_refused() {
    let mut p = Pair::new();
    p.run(Duration::from_millis(200));
    let mut frame = Vec::new();
    p.sides[0]
        .transport
        .seal(0, b"text", p.now, &mut frame)
        .unwrap();
    let starts: Vec<_> = p
        .log
        .iter()
        .filter(|(to, _, _)| *to == 1)
        .cloned()
        .collect();
    let mut frames: Vec<Vec<u8>> = starts.into_iter().map(|(_, _, b)| b).take(3).collect();
    frames.push(frame.clone());
    p.sides[1].messages.clear();
    let ups = p.sides[1].events.len();
    for f in frames {
        for bit in 0..f.len() * 8 {
            let mut b = f.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            p.deliver(1, 0, &b);
            p.deliver(1, 0, &b[..bit / 8]);
        }
    }
    assert!(p.sides[1].messages.is_empty());
    assert_eq!(p.sides[1].events.len(), ups);
    p.deliver(1, 0, &frame);
    assert_eq!(p.sides[1].messages, [b"text"]);
}

#[test]
fn a_restart_is_noticed_by_both() {
    let mut p = Pair::new();
    p.run(Duration::from_secs(1));
    p.sides[1] = side(2, 1, 77, Some(9));
    p.sides[0].events.clear();
    p.run(Duration::from_secs(1));
    assert_eq!(p.sides[0].events, [Event::Up(0)]);
    assert_eq!(p.sides[1].events, [Event::Up(0)]);
    assert!(p.say(0, b"x") && p.say(1, b"y"));
    assert_eq!(
        (p.sides[0].messages.len(), p.sides[1].messages.len()),
        (1, 1)
    );
}

#[test]
fn a_silent_peer_is_down_and_comes_back() {
    let mut p = Pair::new();
    p.run(Duration::from_secs(1));
    p.dead_links = vec![0, 1];
    p.run(Duration::from_secs(4));
    assert_eq!(p.sides[0].events, [Event::Up(0), Event::Down(0)]);
    p.dead_links.clear();
    p.run(Duration::from_secs(1));
    assert_eq!(p.sides[0].events.last(), Some(&Event::Up(0)));
    p.dead_links = vec![0, 1];
    p.run(Duration::from_secs(250));
    p.dead_links.clear();
    p.run(Duration::from_secs(3));
    assert!(p.say(0, b"x"));
    assert_eq!(p.sides[1].messages, [b"x"]);
}

#[test]
fn data_moves_to_the_link_that_works_and_back() {
    let mut p = Pair::new();
    p.run(Duration::from_secs(1));
    assert_eq!(p.sides[0].transport.active_path(0, p.now), Some(0));
    p.dead_links = vec![0];
    p.run(Duration::from_secs(2));
    assert_eq!(p.sides[0].transport.active_path(0, p.now), Some(1));
    assert!(p.say(0, b"x"));
    assert_eq!(p.sides[1].messages, [b"x"]);
    p.dead_links.clear();
    p.run(Duration::from_secs(1));
    assert_eq!(p.sides[0].transport.active_path(0, p.now), Some(0));
    assert!(!p.sides[0].events.contains(&Event::Down(0)));
}

#[test]
fn another_version_and_garbage_are_counted() {
    let mut p = Pair::new();
    let mut rng = Rng::new(1);
    p.deliver(1, 0, &[INITIATION + 0x10, 0, 0]);
    p.deliver(1, 0, &[]);
    for _ in 0..2000 {
        let len = rng.below(200) as usize;
        let bytes: Vec<u8> = (0..len)
            .map(|_| u8::try_from(rng.below(256)).unwrap())
            .collect();
        p.deliver(1, 0, &bytes);
    }
    let r = p.sides[1].transport.refusals;
    assert!(r.version > 0 && r.garbage > 0);
    assert!(p.log.is_empty());
}

#[test]
fn handshakes_beyond_the_rate_are_not_computed() {
    let mut p = Pair::new();
    let mut out = Vec::new();
    for _ in 0..300 {
        p.sides[0].transport.initiate(0, &mut out);
    }
    for o in out {
        p.deliver(1, o.link, &o.bytes);
    }
    assert!(p.sides[1].transport.refusals.limited >= 400);
}

impl Pair {
    /// Each says something to the other every 50 ms for a while.
    fn chat(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let before = [0, 1].map(|i| self.sides[i].messages.len());
            for i in [0, 1] {
                assert!(self.say(i, &[1]), "{i} can't talk");
            }
            let after = [0, 1].map(|i| self.sides[i].messages.len());
            assert_eq!(after, before.map(|n| n + 1), "a message is lost");
            self.run(Duration::from_millis(50));
        }
    }

    fn know(&mut self, at: usize, keys: PeerKeys) -> bool {
        let now = self.now;
        self.sides[at].transport.set_peer_keys(0, keys, now)
    }

    fn change(&mut self, at: usize, private: Secret) -> bool {
        let now = self.now;
        self.sides[at].transport.set_private(private, now)
    }

    fn made_with(&self, at: usize) -> Option<Public> {
        self.sides[at].transport.peer_public(0).copied()
    }
}

fn keys(public: u8, next: Option<u8>, psk: u8, next_psk: Option<u8>) -> PeerKeys {
    PeerKeys {
        public: secret(public).public(),
        next_public: next.map(|n| secret(n).public()),
        psk: Some(secret(psk)),
        next_psk: next_psk.map(secret),
    }
}

/// No message is lost while the first node's key pair is replaced, nor while
/// the pre-shared key is, whichever node reads its configuration first.
#[test]
fn keys_are_replaced_without_an_interruption() {
    let pause = Duration::from_secs(5);
    let mut p = Pair::new();
    p.run(Duration::from_millis(200));
    p.chat(pause);
    assert!(p.know(1, keys(1, Some(3), 9, None)));
    p.chat(pause);
    assert!(p.change(0, secret(3)));
    p.chat(pause);
    assert_eq!(p.made_with(1), Some(secret(3).public()));
    assert!(p.know(1, keys(3, None, 9, None)));
    p.chat(pause);
    for order in [[0, 1], [1, 0]] {
        let mine = |at: usize, psk, next| keys(if at == 0 { 2 } else { 3 }, None, psk, next);
        let [old, new] = if order == [0, 1] { [9, 10] } else { [10, 11] };
        for at in order {
            assert!(p.know(at, mine(at, old, Some(new))));
            p.chat(pause);
        }
        for at in order {
            assert!(p.know(at, mine(at, new, None)));
            p.chat(pause);
        }
    }
    // And through renewals.
    p.chat(Duration::from_secs(400));
    for side in &p.sides {
        assert_eq!(
            side.events
                .iter()
                .filter(|e| **e != Event::Message(0))
                .count(),
            1
        );
    }
}

/// A key that is no peer's any more ends what was made with it, at once.
#[test]
fn a_key_that_is_taken_away_ends_its_sessions() {
    let mut p = Pair::new();
    p.run(Duration::from_secs(1));
    let old = p.log.clone();
    assert!(p.know(1, keys(3, None, 9, None)));
    assert_eq!(p.made_with(1), None);
    assert!(!p.say(1, b"to whom?"));
    assert!(p.say(0, b"still me"));
    p.run(Duration::from_secs(10));
    assert!(p.sides[1].messages.is_empty());
    assert_eq!(p.sides[1].events, [Event::Up(0), Event::Down(0)]);
    for (to, link, bytes) in old {
        if to == 1 {
            p.deliver(1, link, &bytes);
        }
    }
    p.run(Duration::from_secs(5));
    assert_eq!(p.made_with(1), None);
    // Its new key is welcome.
    assert!(p.change(0, secret(3)));
    p.run(Duration::from_secs(3));
    assert!(p.say(0, b"new me"));
    assert_eq!(p.sides[1].messages, [b"new me"]);
}

/// Reading the same configuration again makes no handshakes.
#[test]
fn the_same_keys_again_change_nothing() {
    let mut p = Pair::new();
    p.run(Duration::from_secs(1));
    let starts = |p: &Pair| p.log.iter().filter(|(_, _, b)| b[0] == INITIATION).count();
    let before = starts(&p);
    for _ in 0..5 {
        assert!(!p.know(1, keys(1, None, 9, None)));
        assert!(!p.change(0, secret(1)));
        p.run(Duration::from_secs(1));
    }
    assert_eq!(starts(&p), before);
}

/// Two nodes that both have the other's old and new key start anew.
#[test]
fn nodes_that_restart_in_the_middle_of_a_change_find_each_other() {
    for (first, second) in [(1, 2), (3, 2), (1, 4), (3, 4)] {
        for psks in [(9, None), (9, Some(10)), (10, Some(9))] {
            let mut p = Pair::new();
            p.sides = [side(first, 2, 21, None), side(second, 1, 22, None)];
            p.know(0, keys(2, Some(4), 9, Some(10)));
            p.know(1, keys(1, Some(3), psks.0, psks.1));
            p.run(Duration::from_secs(15));
            assert!(
                p.say(0, b"x") && p.say(1, b"y"),
                "{first} {second} {psks:?}"
            );
            assert_eq!(p.sides[1].messages, [b"x"]);
        }
    }
}
