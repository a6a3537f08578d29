//! What is repeated. Every case does the same work each time.

use std::hint::black_box;

use ctsync::hash::Seed;
use ctsync::record;
use ctsync::store::{Entry, Store};
use netfilter::protoinfo::{ProtoInfo, Tcp};
use netfilter::{Flow, Messages, Status, Tuple, conntrack, inject};
use nft_ftp_helper::core::{
    Conn, Dir, Effects, Event, Expect, Flags, OpenError, Policy, PrivateData, Segment, SeqAdj,
    Tuple as FtpTuple, on_segment,
};

/// Does a case so often.
pub type Run = Box<dyn FnMut(u32)>;

/// A case: its name, and what makes it ready.
pub type Case = (&'static str, fn() -> Run);

/// All cases.
pub const CASES: &[Case] = &[
    ("netfilter-decode-event", decode_event),
    ("netfilter-encode-create", encode_create),
    ("ctsync-record-encode", record_encode),
    ("ctsync-record-decode", record_decode),
    ("ctsync-store-new-and-gone", store_new_and_gone),
    ("ctsync-store-same", store_same),
    ("ftp-noop", ftp_noop),
    ("ftp-pasv", ftp_pasv),
    ("ftp-commands-1448", ftp_commands),
    ("ftp-listing-1448", ftp_listing),
];

/// An established TCP connection.
fn flow(n: u32) -> Flow {
    let [a, b, c, d] = n.to_be_bytes();
    let src = [10, 128 | a, b, c].into();
    let orig = Tuple::tcp(src, 2000 + u16::from(d), [192, 0, 2, 1].into(), 80);
    let mut flow = Flow::new(orig, orig.inverse());
    flow.timeout = Some(300);
    flow.status = Some(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED);
    flow.protoinfo = ProtoInfo::Tcp(Tcp {
        state: 3,
        wscale_orig: 7,
        wscale_reply: 7,
        ..Tcp::default()
    });
    flow
}

/// Messages as the kernel sends them for new connections have the same
/// attributes as those that make them.
fn decode_event() -> Run {
    let mut bytes = Vec::new();
    inject::create(&mut bytes, &flow(1), inject::Options::default(), 1).expect("short");
    Box::new(move |times| {
        for _ in 0..times {
            for message in Messages::new(black_box(&bytes)) {
                let event = conntrack::Event::decode(&message);
                assert!(matches!(black_box(&event), Ok(Some(_))), "{event:?}");
            }
        }
    })
}

fn encode_create() -> Run {
    let (flow, mut bytes) = (flow(1), Vec::new());
    Box::new(move |times| {
        for n in 0..times {
            bytes.clear();
            let options = inject::Options::default();
            inject::create(&mut bytes, black_box(&flow), options, n).expect("short");
            black_box(&bytes);
        }
    })
}

fn record_encode() -> Run {
    let (flow, mut bytes) = (flow(1), Vec::new());
    Box::new(move |times| {
        for _ in 0..times {
            bytes.clear();
            record::put_flow(&mut bytes, black_box(&flow)).expect("TCP");
            black_box(&bytes);
        }
    })
}

fn record_decode() -> Run {
    let mut bytes = Vec::new();
    record::put_flow(&mut bytes, &flow(1)).expect("TCP");
    Box::new(move |times| {
        for _ in 0..times {
            assert!(black_box(record::decode(black_box(&bytes))).is_ok());
        }
    })
}

/// Entries of a cache of this size.
const HELD: u32 = 10_000;

fn filled() -> (Store, Vec<Vec<u8>>) {
    let mut store = Store::new(Seed::default(), 1 << 20);
    let records = (0..2 * HELD).map(|n| {
        let mut bytes = Vec::new();
        record::put_flow(&mut bytes, &flow(n)).expect("TCP");
        bytes
    });
    let records: Vec<_> = records.collect();
    for bytes in records.iter().take(HELD as usize) {
        put(&mut store, bytes);
    }
    (store, records)
}

fn put(store: &mut Store, bytes: &[u8]) -> u32 {
    let key = record::split(bytes).expect("a record").key;
    let entry = Entry {
        key: store.key(key),
        bytes,
        expect: false,
        deadline: 300,
    };
    store.put(&entry).expect("room").0
}

fn store_new_and_gone() -> Run {
    let (mut store, records) = filled();
    let mut fresh = (HELD as usize..records.len()).cycle();
    Box::new(move |times| {
        for at in fresh.by_ref().take(times as usize) {
            let index = put(&mut store, records.get(at).expect("in range"));
            store.remove(black_box(index));
        }
    })
}

fn store_same() -> Run {
    let (mut store, records) = filled();
    let mut held = (0..HELD as usize).cycle();
    Box::new(move |times| {
        for at in held.by_ref().take(times as usize) {
            black_box(put(&mut store, records.get(at).expect("in range")));
        }
    })
}

/// A kernel that agrees to everything.
struct Agree;

impl Effects for Agree {
    fn open(&mut self, expect: &Expect) -> Result<(), OpenError> {
        black_box(expect);
        Ok(())
    }

    fn withdraw(&mut self, expect: &Expect) {
        black_box(expect);
    }

    fn withdraw_all(&mut self) {}

    fn event(&mut self, event: Event) {
        black_box(event);
    }
}

/// A control connection, fed in order.
pub struct Feed {
    policy: Policy,
    conn: Conn,
    data: PrivateData,
    next: [u32; 2],
}

impl Default for Feed {
    fn default() -> Self {
        let (client, server) = ([10, 0, 0, 2].into(), [198, 51, 100, 21].into());
        Self {
            policy: Policy::default(),
            conn: Conn {
                orig: FtpTuple::tcp(client, 40001, server, 21),
                reply: FtpTuple::tcp(server, 21, client, 40001),
                seq_adj: [SeqAdj::default(); 2],
            },
            data: PrivateData::default(),
            next: [1, 1],
        }
    }
}

impl Feed {
    /// Gives the core the next segment of a direction.
    pub fn send(&mut self, dir: Dir, payload: &[u8]) {
        let [orig, reply] = &mut self.next;
        let (mine, other) = match dir {
            Dir::Orig => (orig, reply),
            Dir::Reply => (reply, orig),
        };
        let segment = Segment {
            dir,
            seq: *mine,
            ack: Some(*other),
            flags: Flags::default(),
            payload: black_box(payload),
        };
        *mine = mine.wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
        let out = on_segment(&self.policy, &self.conn, &self.data, &segment, &mut Agree);
        if let Some(data) = out.state {
            self.data = data;
        }
        black_box(out.verdict);
    }
}

/// Text and who says it.
type Script = Vec<(Dir, Vec<u8>)>;

fn script(script: Script) -> Run {
    let mut feed = Feed::default();
    Box::new(move |times| {
        for _ in 0..times {
            for (dir, text) in &script {
                feed.send(*dir, text);
            }
        }
    })
}

fn segment(line: &str) -> Vec<u8> {
    let lines = 1448 / line.len();
    line.repeat(lines).into_bytes()
}

fn ftp_noop() -> Run {
    script(vec![
        (Dir::Orig, b"NOOP\r\n".to_vec()),
        (Dir::Reply, b"200 Zzz...\r\n".to_vec()),
    ])
}

fn ftp_pasv() -> Run {
    let reply = b"227 Entering Passive Mode (198,51,100,21,156,64).\r\n";
    script(vec![
        (Dir::Orig, b"PASV\r\n".to_vec()),
        (Dir::Reply, reply.to_vec()),
    ])
}

fn ftp_commands() -> Run {
    let line = "RETR some/file/with/a/path/name.tar.gz\r\nNOOP\r\nTYPE I\r\nCWD /pub/linux\r\n";
    script(vec![(Dir::Orig, segment(line))])
}

fn ftp_listing() -> Run {
    let line = " -rw-r--r--   1 ftp ftp   1234567 Jan 01 00:00 some-file-name-12.34.tar.gz\r\n";
    script(vec![(Dir::Reply, segment(line))])
}

#[cfg(test)]
mod tests {
    use super::CASES;

    #[test]
    fn every_case_runs() {
        for (name, make) in CASES {
            let mut run = make();
            run(3);
            assert!(!name.contains(' '), "{name} is one word");
        }
    }
}
