//! Inputs to start from: what kernels sent, what the workspace's samples
//! say, what two nodes tell each other.

use ctsync::hash::Seed;
use ctsync::record;
use ctsync::replica::message::{self, Hello, Query, Role};
use ctsync::replica::{Replica, Settings};
use ctsync::store::Entry;
use netfilter::{Expectation, Flow, Messages, Tuple};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of the netlink and nfnetlink headers.
const HEADERS: usize = 20;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Inputs for the target of this name, at least one.
///
/// # Panics
/// A file of the workspace is missing.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "ftp_core" => dialogues(),
        "ftp_packet" => packets(),
        "netlink" => ["conntrack", "expect", "cthelper", "queue"]
            .into_iter()
            .flat_map(golden)
            .collect(),
        "conntrack" => attributes("conntrack"),
        "expect" => attributes("expect"),
        "cthelper" => attributes("cthelper"),
        "queue_message" => queue_messages(),
        "sync_frame" => (0..3).map(|kind| vec![kind; 40]).collect(),
        "sync_link" => links(),
        "sync_record" => records(),
        "sync_message" => vec![dialogue(), strangers(), Vec::from([0, 1, 1])],
        "config" => files(
            "examples",
            &["ctsync.toml", "ctsync-full.toml", "helper.toml"],
        ),
        "ruleset" => policies(),
        "control" => requests(),
        _ => vec![vec![0]],
    }
}

/// Attributes of packet messages behind an even byte, whole messages behind an
/// odd one.
fn queue_messages() -> Vec<Vec<u8>> {
    let with = |option: u8, bytes: &[u8]| [&[option], bytes].concat();
    let attributes = attributes("queue").into_iter().map(|a| with(0, &a));
    attributes
        .chain(golden("queue").iter().map(|message| with(1, message)))
        .collect()
}

/// A turn of a client or a server: with the options for `ftp_core`.
type Said = (u8, &'static str);

/// Sessions with each kind of command, for each kind of addresses.
fn dialogues() -> Vec<Vec<u8>> {
    const LOGIN: [Said; 5] = [
        (1, "220 ready\r\n"),
        (0, "USER x\r\n"),
        (1, "331 password\r\n"),
        (0, "PASS y\r\n"),
        (1, "230-hello\r\n230 in\r\n"),
    ];
    let talks: [&[Said]; 6] = [
        &[
            (0, "PASV\r\n"),
            (1, "227 Entering (198,51,100,21,156,64).\r\n"),
        ],
        &[(0, "EPSV\r\n"), (1, "229 Entering (|||40000|)\r\n")],
        &[(0, "PORT 10,0,0,2,156,64\r\n"), (1, "200 fine\r\n")],
        &[(0, "EPRT |2|fd00::a:2|40000|\r\n"), (1, "200 fine\r\n")],
        &[(0, "EPRT |1|10.0.0.2|40000|\r\n"), (1, "500 no\r\n")],
        &[
            (0, "AUTH TLS\r\n"),
            (1, "234 go\r\n"),
            (0, "\u{16}\u{3}\u{1}"),
        ],
    ];
    let mut all = Vec::new();
    for options in [0, 1, 2, 3, 8 | 2, 32] {
        for talk in talks {
            let mut input = vec![options];
            for (side, text) in LOGIN.iter().chain(talk) {
                input.extend([side | 4 | 3 << 3, u8::try_from(text.len()).unwrap_or(0)]);
                input.extend_from_slice(text.as_bytes());
            }
            all.push(input);
        }
    }
    all
}

/// A TCP segment in a packet of each version, behind what is to be changed.
fn packets() -> Vec<Vec<u8>> {
    let text = b"PORT 10,0,0,2,156,64\r\n";
    let mut tcp = vec![
        0x9c, 0x41, 0, 21, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
    ];
    tcp.extend_from_slice(text);
    let length = |more: usize| u16::try_from(tcp.len() + more).unwrap_or(0).to_be_bytes();
    let mut four = vec![0x45, 0];
    four.extend(length(20));
    four.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 198, 51, 100, 21]);
    let mut six = vec![0x60, 0, 0, 0];
    six.extend(length(0));
    six.extend([6, 64]);
    six.extend([0xfd; 32]);
    let change = [5, 20, 0];
    [four, six]
        .map(|head| [&change[..], &head, &tcp].concat())
        .to_vec()
}

fn golden(table: &str) -> Vec<Vec<u8>> {
    let path = root().join(format!("netfilter/tests/golden/{table}.hex"));
    let text = std::fs::read_to_string(path).expect("golden bytes");
    let lines = text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty());
    lines.map(bytes).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    let pair = |p| u8::from_str_radix(std::str::from_utf8(p).ok()?, 16).ok();
    digits.filter_map(pair).collect()
}

fn attributes(table: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for datagram in golden(table) {
        let messages = Messages::new(&datagram);
        all.extend(messages.filter_map(|m| m.raw().get(HEADERS..).map(<[u8]>::to_vec)));
    }
    all
}

fn files(directory: &str, names: &[&str]) -> Vec<Vec<u8>> {
    let read = |name| std::fs::read(root().join(directory).join(name)).expect("a sample");
    names.iter().map(read).collect()
}

fn policies() -> Vec<Vec<u8>> {
    let directory = root().join("ruleset/tests/golden");
    let entries = std::fs::read_dir(directory).expect("golden policies");
    let paths = entries.map(|e| e.expect("an entry").path());
    let mut paths: Vec<_> = paths
        .filter(|p| p.extension().is_some_and(|e| e == "toml"))
        .collect();
    paths.sort();
    let read = |path| std::fs::read(path).expect("a policy");
    paths.into_iter().map(read).collect()
}

fn links() -> Vec<Vec<u8>> {
    let (both, tick) = ([9, 0, 0], [1, 0, 60]);
    let say = |from| [4, from, 5];
    let ops = [
        vec![both, say(0), say(1), both],
        vec![
            both,
            say(0),
            [5, 1, 0],
            [6, 2, 0],
            [7, 3, 9],
            [8, 4, 20],
            both,
        ],
        vec![
            [0, 0, 0],
            [0, 1, 0],
            [2, 0, 0],
            [2, 0, 0],
            [2, 0, 0],
            both,
            say(0),
        ],
        vec![
            both,
            [11, 1, 4],
            say(0),
            [10, 0, 1],
            both,
            say(0),
            [11, 1, 1],
            both,
            [11, 0, 8],
            [11, 1, 9],
            say(1),
            both,
        ],
        vec![
            both,
            tick,
            both,
            tick,
            both,
            [1, 0, 255],
            [1, 0, 255],
            both,
            say(1),
        ],
    ];
    ops.into_iter().map(|ops| ops.concat()).collect()
}

fn records() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for attrs in attributes("conntrack") {
        let mut out = Vec::new();
        let flow = Flow::decode(netfilter::Attrs::new(&attrs));
        if flow.is_ok_and(|flow| record::put_flow(&mut out, &flow).is_ok()) {
            all.push(out);
        }
    }
    for attrs in attributes("expect") {
        let mut out = Vec::new();
        let exp = Expectation::decode(netfilter::Attrs::new(&attrs));
        if exp.is_ok_and(|exp| record::put_expect(&mut out, &exp).is_ok()) {
            all.push(out);
        }
    }
    all
}

fn node(n: u64) -> Replica {
    let mut node = Replica::new(Settings {
        name: format!("node-{n}"),
        incarnation: n,
        seed: Seed::from_bytes([1; 16]),
        limit: 1000,
        credit: 64,
    });
    node.add_peer().expect("a peer");
    node
}

fn put(node: &mut Replica, n: u16, mark: u32, now: Duration) -> u32 {
    let [src, dst] = ["10.0.0.1", "192.0.2.1"].map(|a| a.parse().expect("an address"));
    let orig = Tuple::tcp(src, 1024 + n, dst, 21);
    let mut flow = Flow::new(orig, orig.inverse());
    flow.mark = Some(mark);
    let mut bytes = Vec::new();
    record::put_flow(&mut bytes, &flow).expect("one family");
    let entry = Entry {
        key: node.own.key(record::split(&bytes).expect("a record").key),
        bytes: &bytes,
        expect: false,
        deadline: 1000,
    };
    node.put(&entry, now).expect("room").0
}

/// All that one node says to another: greeting, records, deletions, marks,
/// acknowledgements, a repair.
fn dialogue() -> Vec<u8> {
    let (mut a, mut b) = (node(2), node(1));
    let mut now = Duration::from_secs(5);
    let (mut said, mut out) = (Vec::new(), Vec::new());
    for n in 0..20 {
        put(&mut b, n, 0, now);
    }
    for round in 0..3_u16 {
        a.connected(0, now);
        b.connected(0, now);
        for step in 0..20 {
            let index = put(&mut a, round * 40 + step, u32::from(step), now);
            if step % 4 == 0 {
                a.delete(index, now);
            }
            now += Duration::from_millis(30);
            while a.transmit(0, now, 1300, &mut out) {
                let [.., high, low] = out.len().to_be_bytes();
                said.extend([high, low]);
                said.extend_from_slice(&out);
                b.receive(0, &out, now, &mut ());
            }
            while b.transmit(0, now, 1300, &mut out) {
                a.receive(0, &out, now, &mut ());
            }
        }
        a.disconnected(0, now);
        b.disconnected(0, now);
        put(&mut a, 5, 99, now);
        put(&mut b, 7, 98, now);
    }
    said
}

fn said(out: &mut Vec<u8>, message: &[u8]) {
    let [.., high, low] = message.len().to_be_bytes();
    out.extend([high, low]);
    out.extend_from_slice(message);
}

/// A peer that asks about entries that never existed, hundreds of them, and
/// acknowledges nothing.
fn strangers() -> Vec<u8> {
    let mut all = Vec::new();
    let mut out = Vec::new();
    let hello = Hello {
        version: 1,
        incarnation: 7,
        session: 1,
        serial: 1,
        seed: Seed::from_bytes([2; 16]),
        role: Role::Backup,
        epoch: 1,
        next: 1,
        name: "peer".into(),
    };
    message::put_hello(&mut out, &hello);
    said(&mut all, &out);
    // Serials of ours that the greeting may have by then.
    for serial in 1..4 {
        out.clear();
        message::put_hello_ack(&mut out, serial, 1, 1);
        said(&mut all, &out);
    }
    for id in 0..6_u16 {
        out.clear();
        message::put_list(&mut out, Query { round: 1, id: 1 });
        let key = |n: u64| (u64::from(id) << 48 | n << 40, 9);
        let entries: Vec<_> = (0..100).map(key).collect();
        message::put_segment(&mut out, id, 0, 255, &entries);
        said(&mut all, &out);
    }
    all
}

fn requests() -> Vec<Vec<u8>> {
    let text = [
        "{\"op\":\"status\"}\n",
        "{\"op\":\"show\",\"external\":true,\"json\":true,\"select\":{},\"from\":[0,7]}\n",
        "{\"op\":\"commit\",\"dry_run\":true,\"verify\":true}\n{\"op\":\"flush\",\"external\":true}\n",
        "{\"op\":\"watch\"}\n{\"op\":\"monitor\"}\n[]\n",
        "{nonsense\n",
    ];
    text.iter().map(|t| t.as_bytes().to_vec()).collect()
}
