//! Random dialogues over a network that loses, repeats and cuts, against the
//! model's reading of them.

use crate::model::{Reading, Turn, read, without_telnet};
use crate::net::*;
use nft_ftp_helper::core::{Conn, Dir, Flags, Policy, Segment, on_segment};
use proptest::prelude::*;

/// What happens to the next piece.
#[derive(Debug, Clone, Copy)]
enum Op {
    /// New bytes, so many.
    Send(usize),
    /// New bytes, lost before the firewall.
    LostBefore(usize),
    /// New bytes, lost behind it.
    LostBehind(usize),
    /// So many bytes again, from the first unacknowledged one.
    Again(usize),
    /// An acknowledgement comes back.
    Ack,
    /// An acknowledgement, lost behind the firewall.
    AckLost,
    /// A byte of the other direction's next text, but so many before it are
    /// missing: with a hole there, one here is given up.
    Ahead(usize),
    /// New bytes, for which the daemon dies before its verdict: the kernel has
    /// their sequence adjustment only.
    NoVerdict(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![1usize..4, 1usize..40, Just(2000)];
    prop_oneof![
        4 => size.clone().prop_map(Op::Send),
        1 => size.clone().prop_map(Op::LostBefore),
        1 => size.clone().prop_map(Op::LostBehind),
        1 => size.prop_map(Op::Again),
        3 => Just(Op::Ack),
        1 => Just(Op::AckLost),
    ]
}

/// As `op`, with what makes the firewall give up its place in a stream.
fn hard_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => op(),
        1 => (1usize..40).prop_map(Op::Ahead),
        1 => Just(Op::LostBehind(2000)),
        1 => (20usize..40).prop_map(Op::LostBehind),
        1 => (1usize..8).prop_map(Op::LostBefore),
    ]
}

/// As `op`, with a daemon that dies.
fn crash_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => op(),
        1 => (1usize..40).prop_map(Op::NoVerdict),
    ]
}

fn conns() -> impl Strategy<Value = Conn> {
    prop_oneof![
        Just(plain()),
        Just(conn(
            "10.0.0.2",
            "198.51.100.21",
            "198.51.100.21",
            "192.0.2.1"
        )),
        Just(conn(
            "10.10.100.200",
            "9.9.9.9",
            "172.16.100.121",
            "10.10.100.200"
        )),
        Just(conn("10.0.0.2", "192.0.2.111", "172.16.0.1", "1.1.1.1")),
        Just(conn(
            "fd00::2",
            "2001:db8::1",
            "fd00:1::21",
            "2001:db8:ffff::1:1"
        )),
        Just(conn("fd00::2", "2001:db8::21", "2001:db8::21", "fd00::2")),
    ]
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (1024u32..65536).prop_map(|p| p.to_string()),
        1 => (0u32..99999).prop_map(|p| p.to_string()),
    ]
}

fn six(host: String) -> impl Strategy<Value = String> {
    let host = prop_oneof![
        8 => Just(host.replace('.', ",")),
        1 => "[0-9]{1,3},[0-9]{1,3},[0-9]{0,3},[0-9]{1,4}",
    ];
    (host, 4u32..256, 0u32..270).prop_map(|(h, a, b)| format!("{h},{a},{b}"))
}

fn command(conn: &Conn) -> impl Strategy<Value = String> + use<> {
    let own = conn.own_addr(Dir::Orig).to_string();
    let af = if own.contains(':') { "2" } else { "1" };
    let free = prop_oneof![
        Just("NOOP".to_owned()),
        Just("LIST".to_owned()),
        Just("EPSV ALL".to_owned()),
        Just("PORTS 1,2".to_owned()),
        Just("".to_owned()),
        Just("AUTH TLS".to_owned()),
        Just("XXXX PORT 1".to_owned()),
        Just("noop\rPORT".to_owned()),
    ];
    prop_oneof![
        2 => free,
        2 => Just("PASV".to_owned()),
        2 => prop_oneof![Just("EPSV".to_owned()), Just("epsv 1".to_owned())],
        3 => six(own.clone()).prop_map(|s| format!("PORT {s}")),
        3 => (prop_oneof![9 => Just(own), 1 => "[0-9a-f:.]{1,12}"], number(), "[|!;]")
            .prop_map(move |(h, p, d)| format!("EPRT {d}{af}{d}{h}{d}{p}{d}")),
    ]
}

fn reply(conn: &Conn) -> impl Strategy<Value = String> + use<> {
    let own = conn.own_addr(Dir::Reply).to_string();
    let free = prop_oneof![
        Just("200 fine".to_owned()),
        Just("150 here".to_owned()),
        Just("500 no".to_owned()),
        Just("226-listing\r\n227 (1,2,3,4,5,6)\r\n226 end".to_owned()),
        Just("234 tls".to_owned()),
        Just("226-listing\r\n226-a\r\n 226 b\r\n226 end".to_owned()),
        Just("227-x\r\n227 y".to_owned()),
    ];
    let noise = prop_oneof![Just(""), Just("mode 2 ("), Just("7,8 ("), Just("=")];
    prop_oneof![
        3 => free,
        4 => (noise, six(own)).prop_map(|(n, s)| format!("227 {n}{s}).")),
        3 => (number(), "[|!]").prop_map(|(p, d)| format!("229 ok ({d}{d}{d}{p}{d})")),
    ]
}

/// Telnet commands at places given by `at`.
fn sprinkle(text: &str, at: &[usize]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for place in at {
        let place = place % bytes.len().max(1);
        // Not into another one.
        if !bytes.contains(&0xff) {
            bytes.splice(place..place, [0xff, 0xf1]);
        }
    }
    bytes
}

fn dialogue() -> impl Strategy<Value = (Conn, Vec<Turn>)> {
    conns().prop_flat_map(|conn| {
        let turn = (
            prop::collection::vec(command(&conn), 1..3),
            prop::collection::vec(reply(&conn), 1..3),
            prop::collection::vec(any::<usize>(), 0..2),
        );
        (Just(conn), prop::collection::vec(turn, 1..6)).prop_map(|(conn, rounds)| {
            let mut turns = vec![
                (Dir::Reply, b"220-hi\r\n220 hello\r\n".to_vec()),
                (Dir::Orig, b"USER x\r\n".to_vec()),
                (Dir::Reply, b"230 in\r\n".to_vec()),
            ];
            for (commands, replies, telnet) in rounds {
                let text = commands.join("\r\n") + "\r\n";
                turns.push((Dir::Orig, sprinkle(&text, &telnet)));
                turns.push((Dir::Reply, (replies.join("\r\n") + "\r\n").into_bytes()));
            }
            (conn, turns)
        })
    })
}

/// One direction's sender.
struct Sender<'a> {
    net: &'a mut Net,
    dir: Dir,
    una: usize,
    next: usize,
    /// What the other side sends next.
    other: &'a [u8],
}

impl Sender<'_> {
    fn end(&self) -> usize {
        self.net.streams[ix(self.dir)].sent.len()
    }

    fn segment(&mut self, from: usize, to: usize, arrives: bool) {
        let s = &self.net.streams[ix(self.dir)];
        let (seq, bytes) = (s.seq(from), s.sent[from..to].to_vec());
        if arrives {
            self.net.lossy(self.dir, seq, &bytes);
        } else {
            self.net.lost_behind(self.dir, seq, &bytes);
        }
    }

    fn ack(&mut self) {
        let ack = self.net.ack_of(self.dir);
        self.net.ack(!self.dir);
        // nf_ct_seq_adjust of the acknowledgement.
        let adj = self.net.conn.seq_adj[ix(self.dir)];
        let later =
            (1..1 << 31).contains(&ack.wrapping_add_signed(-adj.before).wrapping_sub(adj.pos));
        let by = if later { adj.after } else { adj.before };
        let back = ack.wrapping_add_signed(-by);
        let first = self.net.streams[ix(self.dir)].seq(0);
        let una = back.wrapping_sub(first) as i32;
        if let Ok(una) = usize::try_from(una) {
            assert!(una <= self.end(), "acknowledged {una} of {}", self.end());
            self.una = self.una.max(una);
            self.next = self.next.max(self.una);
        }
    }

    fn run(&mut self, ops: &[Op]) {
        for op in ops {
            let (next, end) = (self.next, self.end());
            let to = |n: usize| (next + n).min(end);
            match *op {
                Op::Send(n) | Op::LostBefore(n) | Op::LostBehind(n) | Op::NoVerdict(n)
                    if next < end =>
                {
                    self.next = to(n);
                    match op {
                        Op::Send(_) => self.segment(next, to(n), true),
                        Op::LostBehind(_) => self.segment(next, to(n), false),
                        Op::NoVerdict(_) => {
                            let data = self.net.data;
                            self.segment(next, to(n), false);
                            self.net.data = data;
                        }
                        _ => {}
                    }
                }
                Op::Again(n) if self.una < next => {
                    self.segment(self.una, (self.una + n).min(next), true);
                }
                Op::Ack => self.ack(),
                Op::AckLost => self.net.ack(!self.dir),
                Op::Ahead(n) if n < self.other.len() => {
                    let s = &self.net.streams[ix(!self.dir)];
                    let seq = s.seq(s.sent.len() + n);
                    self.net.lossy(!self.dir, seq, &self.other[n..=n]);
                }
                _ => {}
            }
        }
        // The timer: everything unacknowledged again, until it has arrived.
        for _ in 0..60 {
            self.ack();
            if self.una == self.end() {
                return;
            }
            self.next = self.end();
            self.segment(self.una, self.end(), true);
        }
        panic!("{:?}: stalled at {} of {}", self.dir, self.una, self.end());
    }
}

fn play(conn: Conn, turns: &[Turn], ops: &[Op]) -> Net {
    let mut net = Net::new(Policy::default(), conn);
    net.handshake();
    let mut ops = ops.chunks(7).cycle();
    for (i, (dir, bytes)) in turns.iter().enumerate() {
        let start = net.streams[ix(*dir)].sent.len();
        net.streams[ix(*dir)].sent.extend_from_slice(bytes);
        let mut sender = Sender {
            net: &mut net,
            dir: *dir,
            una: start,
            next: start,
            other: match turns.get(i + 1) {
                Some((other, bytes)) if other != dir => bytes,
                _ => &[],
            },
        };
        sender.run(ops.next().unwrap_or(&[]));
    }
    net
}

/// Numbers without leading zeros, outside of IPv6 addresses.
fn canonical(line: &str) -> String {
    let v6 = line.contains("::");
    let mut out = String::new();
    for field in line.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits = field.len() - field.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, rest) = field.split_at(digits);
        let short = number.trim_start_matches('0');
        let keep = v6 && !out.ends_with(['|', '!', ';']);
        out += match short {
            _ if keep => number,
            "" if !number.is_empty() => "0",
            _ => short,
        };
        out += rest;
    }
    out
}

/// Each line, up to the first byte a rewrite may change.
fn plain_lines(stream: &[u8]) -> Vec<String> {
    let lines = stream.split(|b| *b == b'\n').map(|line| {
        let line = without_telnet(line);
        let head = line.split(|b| b",|(".contains(b) || b.is_ascii_digit());
        String::from_utf8_lossy(head.into_iter().next().unwrap_or(&[])).into_owned()
    });
    lines.collect()
}

fn compare(net: &Net, want: &Reading, turns: &[Turn]) -> Result<(), TestCaseError> {
    let opened: Vec<_> = net
        .table
        .opened
        .iter()
        .map(|e| (e.kind, e.dest, e.port))
        .collect();
    prop_assert_eq!(&opened, &want.opened, "{:?}", net.table.events);
    for dir in [Dir::Orig, Dir::Reply] {
        let stream = &net.streams[ix(dir)];
        if !net.conn.translated() {
            prop_assert_eq!(&stream.got, &stream.sent);
        }
        let sent: Vec<u8> = turns
            .iter()
            .filter(|t| t.0 == dir)
            .flat_map(|t| t.1.clone())
            .collect();
        let got: Vec<_> = stream.got.split(|b| *b == b'\n').collect();
        prop_assert_eq!(got.len(), sent.split(|b| *b == b'\n').count());
        let lines = want.lines.iter().filter(|l| l.0 == dir);
        for ((_, line), got) in lines.zip(got) {
            let got = without_telnet(got);
            let got = String::from_utf8_lossy(&got).into_owned();
            if let Some(line) = line {
                prop_assert_eq!(canonical(got.trim_end_matches('\r')), canonical(line));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases * 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_reads_what_the_model_reads(
        Script { conn, turns, ops } in script(op()),
    ) {
        let net = play(conn, &turns, &ops);
        compare(&net, &read(&conn, &turns), &turns)?;
    }

    /// What was given up is not read, or as another line; what was read in vain
    /// is expected again. But nothing stalls,
    /// and no text moves.
    #[test]
    fn the_receiver_gets_every_line_whatever_is_given_up(
        Script { conn, turns, ops } in prop_oneof![script(hard_op()), script(crash_op())],
    ) {
        let net = play(conn, &turns, &ops);
        for stream in &net.streams {
            let (sent, got) = (plain_lines(&stream.sent), plain_lines(&stream.got));
            prop_assert_eq!(got, sent);
        }
    }

    #[test]
    fn no_private_data_and_no_bytes_panic(
        data in prop::array::uniform32(any::<u8>()), version in any::<bool>(),
        conn in conns(), segments in prop::collection::vec((any::<bool>(), -40i32..40, 0usize..8, "[0-9A-Z,.:|()\\r\\n \\xff]{0,60}"), 1..8),
        min_port in any::<u16>(), block in 0u16..100,
    ) {
        let mut net = Net::new(Policy { min_port, block, ..Policy::default() }, conn);
        net.data = data;
        if version { net.data[0] = net.data[0] & 0xf0 | 1; }
        for (reply, jump, kind, text) in segments {
            let dir = if reply { Dir::Reply } else { Dir::Orig };
            let word = if reply { 12 } else { 8 };
            let next = u32::from_le_bytes(net.data[word..word + 4].try_into().unwrap());
            let head = ["", "PORT ", "227 (", "EPRT |1|", "EPRT |2|", "229 (|||", "PASV\r\n", "EPSV\r\n"][kind];
            let text = head.to_owned() + &text;
            let flags = Flags { syn: jump == -40, fin: jump == -39, rst: jump == -38 };
            let segment = Segment { dir, seq: next.wrapping_add_signed(jump.min(2)), ack: Some(next), flags, payload: text.as_bytes() };
            let out = on_segment(&net.policy, &net.conn, &net.data, &segment, &mut net.table);
            if let Some(edit) = &out.rewrite.edit {
                let end = out.rewrite.keep.unwrap_or(segment.payload.len());
                prop_assert!(edit.range.start <= edit.range.end && edit.range.end <= end && end <= segment.payload.len());
            }
            if let Some(data) = out.state { net.data = data; }
        }
    }
}

/// A dialogue and its fate, printed short.
struct Script {
    conn: Conn,
    turns: Vec<Turn>,
    ops: Vec<Op>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (orig, reply) = (self.conn.orig, self.conn.reply);
        writeln!(f, "{} {} {} {}", orig.src, orig.dst, reply.src, reply.dst)?;
        for (dir, bytes) in &self.turns {
            writeln!(f, "{dir:?} {}", bytes.escape_ascii())?;
        }
        write!(f, "{:?}", self.ops)
    }
}

fn script(op: impl Strategy<Value = Op>) -> impl Strategy<Value = Script> {
    let ops = prop::collection::vec(op, 0..60);
    (dialogue(), ops).prop_map(|((conn, turns), ops)| Script { conn, turns, ops })
}
