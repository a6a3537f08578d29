//! The bytes of each version of the link, which nodes of other builds rely on.
//!
//! `golden/wire-FRAMES.MESSAGES.hex` is written once, when a version is new
//! (`GOLDEN=write cargo test -p ctsync --test wire`), and never changed. If
//! this test fails, builds of the same version no longer understand each
//! other: raise `transport::frame::VERSION`, or `replica::message::VERSION` if
//! what is new stands behind what was there and older nodes skip it.

use ctsync::hash::Seed;
use ctsync::record;
use ctsync::replica::message::{self, Ack, Data, Hello, Mark, Message, Query, Role};
use ctsync::store::{Entry, Store};
use ctsync::transport::frame::{self, Frame, NotFrame};
use ctsync::transport::key::{Public, Secret};
use ctsync::transport::{PeerKeys, PeerSettings, Transport};
use netfilter::expect::{ExpectNat, Flags, Mask};
use netfilter::flow::{Help, HelpInfo, Labels, SeqAdj, Synproxy};
use netfilter::protoinfo::{ProtoInfo, Tcp, TcpFlags};
use netfilter::{Dir, Expectation, Flow, Status, Tuple};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

type Named = (String, Vec<u8>);

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn read(text: &str) -> Vec<Named> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let byte = |at: &[u8]| u8::from_str_radix(std::str::from_utf8(at).unwrap(), 16).unwrap();
    lines
        .map(|line| {
            let (name, hex) = line.split_once(' ').unwrap();
            (
                name.to_owned(),
                hex.as_bytes().chunks(2).map(byte).collect(),
            )
        })
        .collect()
}

/// Every file, with its versions.
fn recorded() -> Vec<((u8, u8), Vec<Named>)> {
    let files = std::fs::read_dir(directory()).unwrap();
    let mut all: Vec<_> = files
        .map(|file| {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let (frames, messages) = name.strip_prefix("wire-").unwrap().split_once('.').unwrap();
            let versions = (frames.parse().unwrap(), messages.parse().unwrap());
            (versions, read(&std::fs::read_to_string(path).unwrap()))
        })
        .collect();
    all.sort();
    all
}

fn secret(n: u8) -> Secret {
    Secret::from_bytes([n; 32])
}

fn public(n: u8) -> Public {
    secret(n).public()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// With nothing but what each has, and with everything.
fn flows() -> [Flow; 3] {
    let orig = Tuple::tcp(ip("10.0.0.1"), 1024, ip("192.0.2.1"), 21);
    let mut plain = Flow::new(orig, orig.inverse());
    plain.status = Some(Status::from_bits_retain(0x18e));
    plain.protoinfo = ProtoInfo::Tcp(Tcp {
        state: 3,
        wscale_orig: 7,
        wscale_reply: 8,
        flags_orig: TcpFlags { flags: 3, mask: 0 },
        flags_reply: TcpFlags { flags: 1, mask: 0 },
    });
    let mut full = plain;
    full.reply.dst = ip("203.0.113.1");
    full.zone = 5;
    full.mark = Some(7);
    full.help = Some(Help {
        name: "nft-ftp".parse().unwrap(),
        info: HelpInfo::new(&[1, 2, 3, 4]).unwrap(),
    });
    full.master = Some(orig.inverse());
    let moved = |correction_pos| SeqAdj {
        correction_pos,
        before: -3,
        after: 4,
    };
    (full.seq_adj_orig, full.seq_adj_reply) = (Some(moved(10)), Some(moved(20)));
    full.labels = Some(Labels([9; 16]));
    full.synproxy = Some(Synproxy {
        isn: 1,
        its: 2,
        tsoff: 3,
    });
    let orig = Tuple::tcp(ip("2001:db8::1"), 1, ip("2001:db8::2"), 2);
    let mut six = Flow::new(orig, orig.inverse());
    six.status = plain.status;
    [plain, full, six]
}

fn expectations() -> [Expectation; 2] {
    let master = Tuple::tcp(ip("10.0.0.1"), 1024, ip("192.0.2.1"), 21);
    let tuple = Tuple::tcp(ip("192.0.2.1"), 0, ip("10.0.0.1"), 2000);
    let plain = Expectation::new(master, tuple, Mask::any_source(tuple.src));
    let mut full = plain;
    full.mask.dport = 0xfffc;
    (full.zone, full.class, full.flags) = (5, 1, Flags::from_bits_retain(1));
    full.helper = Some("nft-ftp".parse().unwrap());
    full.expectfn = Some("nat-follow-master".parse().unwrap());
    full.nat = Some(ExpectNat {
        dir: Dir::Reply,
        addr: ip("10.0.0.9"),
        port: 2000,
        l4proto: 6,
    });
    [plain, full]
}

fn records() -> Vec<Named> {
    let mut all = Vec::new();
    for flow in flows() {
        let mut out = Vec::new();
        record::put_flow(&mut out, &flow).unwrap();
        all.push(("record".to_owned(), out));
    }
    for expectation in expectations() {
        let mut out = Vec::new();
        record::put_expect(&mut out, &expectation).unwrap();
        all.push(("record".to_owned(), out));
    }
    all
}

/// What both ends compute of the same records, and compare.
fn store() -> Store {
    let mut store = Store::new(Seed::from_bytes([3; 16]), 100);
    for (_, bytes) in records() {
        let split = record::split(&bytes).unwrap();
        let entry = Entry {
            key: store.key(split.key),
            bytes: &bytes,
            expect: split.expect,
            deadline: 100,
        };
        store.put(&entry).unwrap();
    }
    store
}

fn digests() -> Vec<Named> {
    let store = store();
    let (_, slot) = store.live().next().unwrap();
    let block = u16::try_from(slot.key >> 55).unwrap();
    let mut sums = Vec::new();
    message::put_block(&mut sums, block, 0, store.digests().block(block));
    let root = store.digests().root().to_be_bytes();
    vec![
        ("digest".to_owned(), slot.key.to_be_bytes().to_vec()),
        ("digest".to_owned(), root.to_vec()),
        ("digest".to_owned(), sums),
    ]
}

fn messages() -> Vec<Named> {
    const QUERY: Query = Query { round: 1, id: 2 };
    let mut all = Vec::new();
    let mut add = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        all.push(("message".to_owned(), out));
    };
    add(&|out| {
        let hello = Hello {
            version: message::VERSION,
            incarnation: 1,
            session: 2,
            serial: 3,
            seed: Seed::from_bytes([4; 16]),
            role: Role::Primary,
            epoch: 300,
            next: 400,
            name: "fw-1".to_owned(),
        };
        message::put_hello(out, &hello);
    });
    add(&|out| message::put_hello_ack(out, 1, 2, 300));
    let mark = Mark {
        root: 1,
        flows: 2,
        expectations: 3,
    };
    for mark in [None, Some(mark)] {
        add(&|out| {
            let (number, back) = (5, 6);
            message::put_data(out, &Data { number, back, mark });
            message::put_item(out, 432_000, &[1, 2, 3]);
            message::put_delete(out, 7);
        });
    }
    let ack = Ack {
        base: 1,
        credit: 512,
        synced: true,
        bitmap: &[5],
    };
    add(&|out| message::put_ack(out, &ack));
    add(&|out| message::put_groups(out, QUERY, 128, &[1, 2]));
    let store = store();
    let sums = store.digests().block(3);
    add(&|out| {
        message::put_blocks(out, QUERY);
        message::put_block(out, 3, 1, sums);
    });
    for room in [0, 1000] {
        add(&|out| {
            message::put_ours(out, QUERY);
            message::put_ours_block(out, 3, sums, &[0, 9], room);
        });
    }
    add(&|out| message::put_wanted(out, QUERY, [1, 2].into_iter()));
    add(&|out| message::put_ghosts(out, QUERY, &[3, 4]));
    add(&|out| {
        message::put_list(out, QUERY);
        message::put_segment(out, 1, 2, 3, &[(4, 5)]);
    });
    add(&|out| message::put_answer(out, QUERY, &[1, 2]));
    all
}

fn frames() -> Vec<Named> {
    let noise = &[1, 2, 3][..];
    let all = [
        Frame::Initiation { sender: 1, noise },
        Frame::Response {
            sender: 1,
            receiver: 2,
            noise,
        },
        Frame::Sealed {
            receiver: 2,
            counter: 3,
            sealed: noise,
        },
    ];
    let encoded = all.iter().map(|frame| {
        let mut out = Vec::new();
        frame.encode(&public(1), &mut out);
        ("frame".to_owned(), out)
    });
    encoded.collect()
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 3780))
}

fn node(n: u8, peer: u8) -> Transport {
    let mut node = Transport::new(secret(n), n.into(), Duration::from_secs(3));
    node.add_peer(PeerSettings {
        keys: PeerKeys {
            psk: Some(secret(9)),
            ..PeerKeys::of(public(peer))
        },
        endpoints: vec![Some(address(peer))],
    });
    node
}

/// Fresh keys in each run: it is recorded, to be answered.
fn handshake() -> Named {
    let (mut out, mut events) = (Vec::new(), Vec::new());
    node(2, 1).poll(Duration::from_secs(1), &mut out, &mut events);
    ("handshake".to_owned(), out.remove(0).bytes)
}

fn is_answered(datagram: &[u8]) -> bool {
    let mut node = node(1, 2);
    let (mut plain, mut out, mut events) = (Vec::new(), Vec::new(), Vec::new());
    let now = Duration::from_secs(1);
    node.receive(
        (0, address(2)),
        datagram,
        now,
        &mut plain,
        &mut out,
        &mut events,
    );
    !out.is_empty()
}

fn today() -> Vec<Named> {
    [records(), digests(), messages(), frames()].concat()
}

fn write(versions: (u8, u8)) {
    let mut text = String::from("# Written by tests/wire.rs; never to be changed.\n");
    for (name, bytes) in today().into_iter().chain([handshake()]) {
        let hex = bytes.iter().fold(String::new(), |mut hex, b| {
            let _ = write!(hex, "{b:02x}");
            hex
        });
        let _ = writeln!(text, "{name} {hex}");
    }
    std::fs::create_dir_all(directory()).unwrap();
    let name = format!("wire-{}.{}.hex", versions.0, versions.1);
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .open(directory().join(name));
    std::io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
}

#[test]
fn the_wire_does_not_change_without_its_version() {
    let versions = (frame::VERSION, message::VERSION);
    if std::env::var("GOLDEN").as_deref() == Ok("write") {
        write(versions);
    }
    let all = recorded();
    let (_, golden) = all
        .iter()
        .find(|(of, _)| *of == versions)
        .expect("a new version: GOLDEN=write records its bytes");
    let (handshakes, golden): (Vec<_>, Vec<_>) = golden
        .iter()
        .cloned()
        .partition(|(name, _)| name == "handshake");
    let today = today();
    for (was, is) in golden.iter().zip(&today) {
        assert_eq!(was, is, "changed under versions {versions:?}");
    }
    assert_eq!(golden.len(), today.len(), "raise a version for what is new");
    assert_eq!(handshakes.len(), 1);
    for (_, datagram) in handshakes {
        assert!(is_answered(&datagram), "handshakes are other ones");
    }
}

#[test]
fn frames_of_other_versions_are_refused_and_older_messages_are_read() {
    for ((frames, messages), golden) in recorded() {
        for (name, bytes) in golden {
            let read = Frame::decode(&bytes, &public(1));
            match name.as_str() {
                "frame" if frames == frame::VERSION => assert!(read.is_ok()),
                "frame" | "handshake" if frames != frame::VERSION => {
                    assert_eq!(read, Err(NotFrame::Version));
                }
                "message" if frames == frame::VERSION && messages <= message::VERSION => {
                    let known = Message::decode(&bytes).unwrap();
                    assert!(!matches!(known, Message::Unknown(_)), "{bytes:02x?}");
                }
                "record" if frames == frame::VERSION => {
                    record::decode(&bytes).unwrap();
                }
                _ => {}
            }
        }
    }
}
