//! What clients and servers of FTP send.

use nft_ftp_helper::core::{
    Conn, Dir, Edit, Effects, Event, Expect, Flags, Kind, OpenError, Packet, Policy, PrivateData,
    Rewrite, Segment, SeqAdj, Text, Tuple, Verdict, mangle, on_segment,
};
use std::net::IpAddr;

#[derive(Default)]
struct Log {
    opened: Vec<(Kind, IpAddr, u16)>,
    taken: bool,
}

impl Effects for Log {
    fn open(&mut self, e: &Expect) -> Result<(), OpenError> {
        assert!(e.port >= 1024 && e.count >= 1 && e.count <= 64);
        assert!(e.each().any(|s| s.port == e.port));
        assert!(e.each().all(|s| s.port >= 1024));
        if self.taken && e.first % 3 != 0 {
            return Err(OpenError::Taken);
        }
        self.opened.push((e.kind, e.dest, e.port));
        Ok(())
    }

    fn withdraw(&mut self, _: &Expect) {}

    fn withdraw_all(&mut self) {}

    fn event(&mut self, _: Event) {}
}

struct Run {
    policy: Policy,
    conn: Conn,
    data: PrivateData,
    next: [u32; 2],
    log: Log,
}

impl Run {
    fn new(options: u8) -> Self {
        let addrs = match options & 3 {
            0 => ["10.0.0.2", "198.51.100.21", "198.51.100.21", "10.0.0.2"],
            1 => ["fd00::a:2", "fd00:1::21", "fd00:1::21", "fd00::a:2"],
            2 => ["10.0.0.2", "192.0.2.1", "172.16.0.21", "1.1.1.1"],
            _ => ["fd00::a:2", "2001:db8::1", "fd00:1::21", "2001:db8::2"],
        };
        let [c, v, s, f] = addrs.map(|a| a.parse().unwrap());
        Self {
            policy: Policy {
                block: 1 << (options >> 2 & 7),
                ..Policy::default()
            },
            conn: Conn {
                orig: Tuple::tcp(c, 40001, v, 21),
                reply: Tuple::tcp(s, 21, f, 40001),
                seq_adj: [SeqAdj::default(); 2],
            },
            data: PrivateData::default(),
            next: [0xffff_ff00, 1],
            log: Log {
                taken: options & 32 != 0,
                ..Log::default()
            },
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "by direction, of which there are two"
    )]
    fn segment(&mut self, dir: Dir, jump: u32, payload: &[u8]) {
        let me = usize::from(dir == Dir::Reply);
        let segment = Segment {
            dir,
            seq: self.next[me].wrapping_sub(jump),
            ack: Some(self.next[1 - me].wrapping_add_signed(self.conn.seq_adj[1 - me].after)),
            flags: Flags::default(),
            payload,
        };
        let out = on_segment(
            &self.policy,
            &self.conn,
            &self.data,
            &segment,
            &mut self.log,
        );
        let keep = out.rewrite.keep.unwrap_or(payload.len());
        assert!(keep <= payload.len());
        if let Some(edit) = &out.rewrite.edit {
            assert!(self.conn.translated());
            assert!(edit.range.start <= edit.range.end && edit.range.end <= keep);
        }
        self.data = out.state.unwrap_or(self.data);
        self.conn.seq_adj[me] = out.seq_adj.unwrap_or(self.conn.seq_adj[me]);
        if out.verdict == Verdict::Accept && jump == 0 {
            self.next[me] = self.next[me].wrapping_add(u32::try_from(keep).unwrap());
        }
    }
}

fn turns(mut input: &[u8]) -> Vec<(u8, &[u8])> {
    let mut turns = Vec::new();
    while let [head, len, rest @ ..] = input {
        let (text, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        turns.push((*head, text));
        input = rest;
    }
    turns
}

/// Text and its segmentation, or hostile private data, into the FTP core.
///
/// Input: a byte of options, then turns: a byte (direction, size of the
/// pieces), a length, text. Without NAT what opens must not depend on the
/// pieces; with it nothing may leave its bounds.
pub fn core(input: &[u8]) {
    let Some((&options, rest)) = input.split_first() else {
        return;
    };
    let (mut whole, mut pieces) = (Run::new(options), Run::new(options));
    let mut rest = rest;
    let data = rest.split_first_chunk::<32>();
    if let Some((data, more)) = data.filter(|_| options & 64 != 0) {
        whole.data = *data;
        pieces.data = *data;
        rest = more;
    }
    for (head, text) in turns(rest) {
        let dir = if head & 1 == 0 { Dir::Orig } else { Dir::Reply };
        whole.segment(dir, 0, text);
        for piece in text.chunks(usize::from(head >> 3) + 1) {
            pieces.segment(dir, 0, piece);
            if head & 4 != 0 {
                pieces.segment(dir, u32::try_from(piece.len()).unwrap(), piece);
            }
        }
    }
    if options & 64 == 0 && !whole.conn.translated() {
        assert_eq!(whole.log.opened, pieces.log.opened);
    }
}

/// Packets into the parser, and rewrites of what it accepts.
pub fn packet(input: &[u8]) {
    let Some((&[a, b, c], bytes)) = input.split_first_chunk::<3>() else {
        return;
    };
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    let payload = packet.segment(Dir::Orig).payload;
    let rewrite = Rewrite {
        edit: Some(Edit {
            range: usize::from(a)..usize::from(b),
            text: Text::from("192,0,2,1,156,64"),
        }),
        keep: (c > 0).then_some(usize::from(c)),
    };
    let mut out = Vec::new();
    if mangle(&packet, &rewrite, &mut out).is_ok() {
        let end = rewrite.keep.unwrap_or(payload.len());
        let new = Packet::parse(&out).unwrap();
        let text = new.segment(Dir::Orig).payload;
        assert_eq!(text.len(), end - usize::from(b - a) + 16);
        assert_eq!(new.tcp, packet.tcp);
    }
}
