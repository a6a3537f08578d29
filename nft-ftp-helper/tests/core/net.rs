//! A network of one connection: two TCP senders, the kernel's part of the
//! helper hook (private data, sequence adjustment, expectation table), and two
//! receivers that check what reaches them.

use nft_ftp_helper::core::{
    Conn, Dir, Edit, Effects, Event, Expect, Flags, OpenError, Outcome, Policy, PrivateData,
    Reason, Rewrite, Segment, SeqAdj, Tuple, Verdict, on_segment,
};
use std::net::IpAddr;

pub const CLIENT: &str = "10.0.0.2";
pub const SERVER: &str = "198.51.100.21";

/// The kernel's expectation table, and a log.
#[derive(Debug, Default, Clone)]
pub struct Table {
    pub opened: Vec<Expect>,
    pub withdrawn: Vec<Expect>,
    pub ended: usize,
    pub events: Vec<Event>,
    /// Destination ports another master holds.
    pub taken: Vec<u16>,
    pub broken: bool,
}

impl Effects for Table {
    fn open(&mut self, expect: &Expect) -> Result<(), OpenError> {
        if self.broken {
            return Err(OpenError::Failed);
        }
        if expect.each().any(|s| self.taken.contains(&s.port)) {
            return Err(OpenError::Taken);
        }
        self.opened.push(*expect);
        Ok(())
    }

    fn withdraw(&mut self, expect: &Expect) {
        self.withdrawn.push(*expect);
    }

    fn withdraw_all(&mut self) {
        self.ended += 1;
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}

impl Table {
    pub fn reasons(&self) -> Vec<Reason> {
        self.events.iter().map(|e| e.reason).collect()
    }

    pub fn ports(&self) -> Vec<u16> {
        self.opened.iter().map(|e| e.port).collect()
    }
}

pub fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A connection: client, what it addresses; server, what it sees as client.
pub fn conn(client: &str, addressed: &str, server: &str, seen: &str) -> Conn {
    Conn {
        orig: Tuple::tcp(addr(client), 40001, addr(addressed), 21),
        reply: Tuple::tcp(addr(server), 21, addr(seen), 40001),
        seq_adj: [SeqAdj::default(); 2],
    }
}

pub fn plain() -> Conn {
    conn(CLIENT, SERVER, SERVER, CLIENT)
}

/// One direction: what was sent and what arrived.
#[derive(Debug, Clone)]
pub struct Stream {
    pub isn: u32,
    pub sent: Vec<u8>,
    pub got: Vec<u8>,
    /// Of `got`, what an acknowledgement has passed for.
    pub acked: i32,
}

impl Stream {
    fn new(isn: u32) -> Self {
        Self {
            isn,
            sent: Vec::new(),
            got: Vec::new(),
            acked: 0,
        }
    }

    /// Sequence number of a byte of the stream.
    pub fn seq(&self, offset: usize) -> u32 {
        self.isn
            .wrapping_add(1)
            .wrapping_add(u32::try_from(offset).unwrap())
    }
}

#[derive(Debug, Clone)]
pub struct Net {
    pub policy: Policy,
    pub conn: Conn,
    pub data: PrivateData,
    pub table: Table,
    pub streams: [Stream; 2],
    pub drops: usize,
    holes: bool,
}

pub fn ix(dir: Dir) -> usize {
    match dir {
        Dir::Orig => 0,
        Dir::Reply => 1,
    }
}

pub fn apply(payload: &[u8], rewrite: &Rewrite) -> Vec<u8> {
    let end = rewrite.keep.unwrap_or(payload.len());
    let Some(Edit { range, text }) = &rewrite.edit else {
        return payload[..end].to_vec();
    };
    [
        &payload[..range.start],
        text.as_bytes(),
        &payload[range.end..end],
    ]
    .concat()
}

impl Net {
    pub fn new(policy: Policy, conn: Conn) -> Self {
        Self {
            policy,
            conn,
            data: PrivateData::default(),
            table: Table::default(),
            streams: [Stream::new(0xffff_fff0), Stream::new(1000)],
            drops: 0,
            holes: false,
        }
    }

    /// Connected from the first packet, greeted and logged in.
    pub fn logged_in(policy: Policy, conn: Conn) -> Self {
        let mut net = Self::new(policy, conn);
        net.handshake();
        net.reply("220 ready\r\n");
        net.orig("USER x\r\n");
        net.reply("331 password\r\n");
        net.orig("PASS y\r\n");
        net.reply("230 welcome\r\n");
        net.table = Table::default();
        net
    }

    pub fn handshake(&mut self) {
        let syn = Flags {
            syn: true,
            ..Flags::default()
        };
        let [c, s] = [self.streams[0].isn, self.streams[1].isn];
        self.raw(Dir::Orig, c, None, syn, b"");
        self.raw(Dir::Reply, s, Some(c.wrapping_add(1)), syn, b"");
        self.ack(Dir::Orig);
    }

    /// What the receiver of `dir` acknowledges.
    pub fn ack_of(&self, dir: Dir) -> u32 {
        let s = &self.streams[ix(dir)];
        s.isn
            .wrapping_add(1)
            .wrapping_add(u32::try_from(s.got.len()).unwrap())
    }

    /// Hands a segment to the core and carries out its outcome.
    pub fn raw(&mut self, dir: Dir, seq: u32, ack: Option<u32>, flags: Flags, p: &[u8]) -> Outcome {
        let segment = Segment {
            dir,
            seq,
            ack,
            flags,
            payload: p,
        };
        if let Some(ack) = ack {
            let stream = &mut self.streams[ix(!dir)];
            let acked = ack.wrapping_sub(stream.isn.wrapping_add(1)) as i32;
            stream.acked = stream.acked.max(acked);
        }
        let out = on_segment(
            &self.policy,
            &self.conn,
            &self.data,
            &segment,
            &mut self.table,
        );
        if let Some(data) = out.state {
            assert_ne!(data, self.data, "unchanged state reported as new");
            self.data = data;
        }
        if let Some(adj) = out.seq_adj {
            self.conn.seq_adj[ix(dir)] = adj;
        }
        match out.verdict {
            Verdict::Drop(_) => self.drops += 1,
            Verdict::Accept => {
                let payload = apply(p, &out.rewrite);
                self.deliver(dir, seq, &payload);
            }
        }
        out
    }

    /// As `raw`, but a receiver with a hole waits, as TCP does.
    pub fn lossy(&mut self, dir: Dir, seq: u32, p: &[u8]) -> Outcome {
        self.holes = true;
        let out = self.raw(dir, seq, None, Flags::default(), p);
        self.holes = false;
        out
    }

    /// A segment that is lost behind the firewall.
    pub fn lost_behind(&mut self, dir: Dir, seq: u32, p: &[u8]) {
        let segment = Segment {
            dir,
            seq,
            ack: None,
            flags: Flags::default(),
            payload: p,
        };
        let out = on_segment(
            &self.policy,
            &self.conn,
            &self.data,
            &segment,
            &mut self.table,
        );
        self.data = out.state.unwrap_or(self.data);
        if let (Some(adj), Verdict::Accept) = (out.seq_adj, out.verdict) {
            self.conn.seq_adj[ix(dir)] = adj;
        }
    }

    /// nf_ct_seq_adjust, then a receiver that takes data in any order.
    fn deliver(&mut self, dir: Dir, seq: u32, payload: &[u8]) {
        let adj = self.conn.seq_adj[ix(dir)];
        let later = (1..1 << 31).contains(&seq.wrapping_sub(adj.pos));
        let by = if later { adj.after } else { adj.before };
        let seq = seq.wrapping_add_signed(by);
        let stream = &mut self.streams[ix(dir)];
        let at = seq.wrapping_sub(stream.isn.wrapping_add(1)) as i32;
        let got = i32::try_from(stream.got.len()).unwrap();
        if payload.is_empty() {
            return;
        }
        if self.holes && at > got {
            return;
        }
        assert!(at <= got, "{dir:?}: data at {at} behind a hole at {got}");
        let end = at + i32::try_from(payload.len()).unwrap();
        if end > got {
            let new = usize::try_from(got - at).unwrap();
            stream.got.extend_from_slice(&payload[new..]);
        }
        // What it has acknowledged it doesn't look at.
        let whole = at.max(stream.acked);
        let skip = usize::try_from(whole - at).unwrap();
        let whole = usize::try_from(whole).unwrap();
        let shown = &payload[skip.min(payload.len())..];
        let got = stream.got.get(whole..whole + shown.len());
        assert_eq!(
            String::from_utf8_lossy(got.unwrap_or_default()),
            String::from_utf8_lossy(shown),
            "{dir:?}: a retransmission differs from what was delivered"
        );
    }

    /// The acknowledgement number of a packet in `dir`.
    fn acks(&self, dir: Dir) -> Option<u32> {
        Some(self.ack_of(match dir {
            Dir::Orig => Dir::Reply,
            Dir::Reply => Dir::Orig,
        }))
    }

    /// Sends new bytes in one segment.
    pub fn send(&mut self, dir: Dir, bytes: &[u8]) -> Outcome {
        let s = &mut self.streams[ix(dir)];
        let seq = s.seq(s.sent.len());
        s.sent.extend_from_slice(bytes);
        let ack = self.acks(dir);
        self.raw(dir, seq, ack, Flags::default(), bytes)
    }

    /// Sends again, or first, a part of what was queued to send.
    pub fn resend(&mut self, dir: Dir, from: usize, to: usize) -> Outcome {
        let s = &self.streams[ix(dir)];
        let (seq, bytes) = (s.seq(from), s.sent[from..to].to_vec());
        let ack = self.acks(dir);
        self.raw(dir, seq, ack, Flags::default(), &bytes)
    }

    /// A bare acknowledgement sent in `dir`.
    pub fn ack(&mut self, dir: Dir) {
        let s = &self.streams[ix(dir)];
        let (seq, ack) = (s.seq(s.sent.len()), self.acks(dir));
        self.raw(dir, seq, ack, Flags::default(), b"");
    }

    pub fn orig(&mut self, text: &str) -> Outcome {
        self.send(Dir::Orig, text.as_bytes())
    }

    pub fn reply(&mut self, text: &str) -> Outcome {
        self.send(Dir::Reply, text.as_bytes())
    }

    /// What the receiver of `dir` read last, from `offset` on.
    pub fn got(&self, dir: Dir) -> String {
        String::from_utf8_lossy(&self.streams[ix(dir)].got).into_owned()
    }

    /// The last line delivered in `dir`.
    pub fn last_line(&self, dir: Dir) -> String {
        let got = self.got(dir);
        got.lines().last().unwrap_or("").to_owned()
    }
}
