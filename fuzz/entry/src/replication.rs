//! What stands inside sealed frames: a peer that has the keys and is hostile.

use ctsync::hash::Seed;
use ctsync::record::{self, Record};
use ctsync::replica::message::{Message, Role};
use ctsync::replica::{Replica, Settings};
use ctsync::store::Entry;
use netfilter::inject::{self, Options};
use netfilter::{Flow, Tuple, expect};
use std::time::Duration;

/// Most bytes of a message.
const LIMIT: usize = 1300;
/// Most entries of a cache.
const ENTRIES: usize = 200;

/// A record. One form only; what is read goes into the kernel's messages.
pub fn record(input: &[u8]) {
    let split = record::split(input);
    let Ok(record) = record::decode(input) else {
        return;
    };
    let split = split.expect("a record has a key");
    let (mut key, mut whole, mut netlink) = (Vec::new(), Vec::new(), Vec::new());
    match &record {
        Record::Flow(flow) => {
            record::put_flow_key(&mut key, flow).expect("was read");
            record::put_flow(&mut whole, flow).expect("was read");
            inject::create(&mut netlink, flow, Options::default(), 1).expect("fits");
            inject::update(&mut netlink, flow, Options::default(), 2).expect("fits");
            inject::help_info(&mut netlink, flow, true, 3).expect("fits");
        }
        Record::Expect(exp) => {
            record::put_expect_key(&mut key, exp).expect("was read");
            record::put_expect(&mut whole, exp).expect("was read");
            expect::create(&mut netlink, exp, 1).expect("fits");
        }
    }
    crate::nfnetlink::messages(&netlink);
    assert_eq!(split.key, key);
    assert_eq!(split.expect, matches!(record, Record::Expect(_)));
    // Extensions of later versions are skipped and not written again.
    assert_eq!(record::decode(&whole), Ok(record));
    assert!(whole.len() <= input.len());
    let _ = record::has_master(input);
}

fn replica(name: &str, n: u64) -> Replica {
    let mut replica = Replica::new(Settings {
        name: name.into(),
        incarnation: n,
        seed: Seed::from_bytes([1; 16]),
        limit: ENTRIES,
        credit: 64,
    });
    replica.add_peer().expect("the first peer");
    replica.add_peer().expect("the second peer");
    replica
}

/// Messages of a peer, each behind two bytes of length, the upper bits of
/// which are time that passes. The node keeps its bounds and its own entries,
/// and goes on sending.
pub fn messages(input: &[u8]) {
    let mut node = replica("node", 1);
    let mut now = Duration::from_secs(5);
    for peer in [0, 1] {
        node.connected(peer, now);
    }
    for n in 0..20 {
        put(&mut node, n, now);
    }
    node.set_role(Role::Primary, 3, now);
    let mut out = Vec::new();
    let mut rest = input;
    while let [a, b, more @ ..] = rest {
        let len = usize::from(*a & 7) << 8 | usize::from(*b);
        let (message, more) = more.split_at(len.min(more.len()));
        rest = more;
        read(message);
        node.receive(0, message, now, &mut ());
        now += Duration::from_millis(u64::from(*a >> 3) * 20);
        for peer in [0, 1] {
            for _ in 0..50 {
                if !node.transmit(peer, now, LIMIT, &mut out) {
                    break;
                }
                assert!(out.len() <= LIMIT, "{} bytes", out.len());
                assert!(Message::decode(&out).is_ok());
            }
            let _ = node.deadline(peer);
        }
        let _ = (node.successor(), node.highest_epoch(), node.is_fenced(0));
    }
    for peer in &node.peers {
        assert!(peer.inbound.store.slots() <= 2 * ENTRIES);
    }
    // Whatever a peer says, our own entries are ours.
    assert_eq!(node.own.len(), 20);
    for n in 20..u16::try_from(ENTRIES).unwrap_or(0) {
        put(&mut node, n, now);
    }
    node.disconnected(0, now);
    node.disconnected(1, now);
}

fn put(node: &mut Replica, n: u16, now: Duration) {
    let [src, dst] = ["10.0.0.1", "192.0.2.1"].map(|a| a.parse().expect("an address"));
    let orig = Tuple::tcp(src, 1024 + n, dst, 21);
    let mut bytes = Vec::new();
    record::put_flow(&mut bytes, &Flow::new(orig, orig.inverse())).expect("one family");
    let key = record::split(&bytes).expect("a record").key;
    let entry = Entry {
        key: node.own.key(key),
        bytes: &bytes,
        expect: false,
        deadline: 1000,
    };
    node.put(&entry, now).expect("room for our own entries");
}

fn read(message: &[u8]) {
    match Message::decode(message) {
        Ok(Message::Data(_, mut items)) => while let Ok(Some(_)) = items.next() {},
        Ok(Message::List(_, mut segments)) => {
            while let Ok(Some(segment)) = segments.next() {
                for (key, _) in segment.entries() {
                    assert_eq!(key >> 48, u64::from(segment.leaf));
                }
            }
        }
        _ => {}
    }
}
