//! The core allocates nothing, whatever comes.

mod support;

use nft_ftp_helper::core::{
    Conn, Dir, Effects, Event, Expect, Flags, OpenError, Packet, Policy, PrivateData, Segment,
    SeqAdj, Tuple, mangle, on_segment,
};
use support::COUNT;

#[derive(Default)]
struct Count {
    opened: usize,
    events: usize,
}

impl Effects for Count {
    fn open(&mut self, _: &Expect) -> Result<(), OpenError> {
        self.opened += 1;
        Ok(())
    }

    fn withdraw(&mut self, _: &Expect) {}

    fn withdraw_all(&mut self) {}

    fn event(&mut self, _: Event) {
        self.events += 1;
    }
}

const DIALOGUE: [(Dir, &str); 8] = [
    (Dir::Orig, "PASV\r\n"),
    (Dir::Reply, "227 ok (172,16,0,21,156,64)\r\n"),
    (Dir::Orig, "EPRT |1|10.0.0.2|40000|\r\nPORT 10,0,0,2,"),
    (Dir::Reply, "200 fine\r\n"),
    (Dir::Orig, "156,64\r\n"),
    (Dir::Reply, "200 fine\r\n227 (1,2,3,4,5,6)\r\n"),
    (
        Dir::Orig,
        "PORT 1,2,3,4,5,6\r\nEPRT |1|1.2.3.4|40000|\r\nFOO\r\n",
    ),
    (Dir::Reply, "500-multi\r\n500 line\r\n"),
];

#[test]
fn a_dialogue_under_nat_allocates_nothing() {
    let [c, v, s, f] =
        ["10.0.0.2", "192.0.2.1", "172.16.0.21", "172.16.0.1"].map(|a| a.parse().unwrap());
    let conn = Conn {
        orig: Tuple::tcp(c, 40001, v, 21),
        reply: Tuple::tcp(s, 21, f, 40001),
        seq_adj: [SeqAdj::default(); 2],
    };
    let (mut conn, mut data, mut effects) = (conn, PrivateData::default(), Count::default());
    let mut next = [1u32, 1];
    let mut packet = vec![0; 40];
    packet[0] = 0x45;
    packet[9] = 6;
    packet[32] = 0x50;
    packet.reserve(65536);
    let mut out = Vec::with_capacity(65536);
    let mut rewritten = 0;
    let before = COUNT.get();
    for _ in 0..1000 {
        for (dir, text) in DIALOGUE {
            let me = usize::from(dir == Dir::Reply);
            packet.truncate(40);
            packet.extend_from_slice(text.as_bytes());
            let total = u16::try_from(packet.len()).unwrap();
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            let parsed = Packet::parse(&packet).unwrap();
            let segment = Segment {
                seq: next[me],
                ack: Some(next[1 - me].wrapping_add_signed(conn.seq_adj[1 - me].after)),
                flags: Flags::default(),
                ..parsed.segment(dir)
            };
            next[me] = next[me].wrapping_add(u32::try_from(text.len()).unwrap());
            let outcome = on_segment(&Policy::default(), &conn, &data, &segment, &mut effects);
            if !outcome.rewrite.is_none() {
                mangle(&parsed, &outcome.rewrite, &mut out).unwrap();
                rewritten += 1;
            }
            data = outcome.state.unwrap_or(data);
            conn.seq_adj[me] = outcome.seq_adj.unwrap_or(conn.seq_adj[me]);
        }
    }
    assert_eq!(COUNT.get(), before);
    assert!(effects.opened > 1000 && effects.events > 1000 && rewritten > 1000);
}
