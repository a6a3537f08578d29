//! The way of a packet through the daemon, from queue message to verdict,
//! without a kernel: what can't be read passes, nothing is allocated once the
//! buffers have grown, and memory is the same after 100,000 sessions as after the first thousands.
#![allow(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod support;

use netfilter::attr::Attrs;
use netfilter::flow::{Help, HelpInfo};
use netfilter::message::{Header, Messages, SUBSYS_QUEUE, append};
use netfilter::{Dir, Flow, SeqAdj, Tuple};
use nft_ftp_helper::cli::RunArgs;
use nft_ftp_helper::config;
use nft_ftp_helper::core::{Expect, OpenError, Reason};
use nft_ftp_helper::handler::Handler;
use nft_ftp_helper::kernel::Tables;
use nft_ftp_helper::stats::{Figure, Stats};
use nft_ftp_helper::support::Failure;
use nft_ftp_helper::worker::Shared;
use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::sync_channel;
use support::COUNT;

const NFQNL_MSG_PACKET: u8 = 0;
const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_PAYLOAD: u16 = 10;
const NFQA_CT: u16 = 11;
const NFQA_CT_INFO: u16 = 12;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_HELP: u16 = 5;
const CTA_ID: u16 = 12;
const CTA_TUPLE_MASTER: u16 = 14;
const CTA_SEQ_ADJ_ORIG: u16 = 15;
const CTA_SEQ_ADJ_REPLY: u16 = 16;
const CTA_HELP_INFO: u16 = 2;

const NF_ACCEPT: u8 = 1;

const SYN: u8 = 2;
const FIN: u8 = 1;
const ACK: u8 = 16;

/// What a kernel keeps of one connection.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    data: [u8; 32],
    adj: [SeqAdj; 2],
    opened: u32,
    released: u32,
}

/// Agrees to everything.
struct Agree(Rc<RefCell<Kept>>);

impl Tables for Agree {
    fn open(&mut self, _: &Flow, _: &Expect) -> Result<(), OpenError> {
        self.0.borrow_mut().opened += 1;
        Ok(())
    }

    fn remove(&mut self, _: &Flow, _: &Expect) {}

    fn remove_all(&mut self, _: &Flow) {}

    fn adjust(&mut self, flow: &Flow) -> Result<(), Failure> {
        let [orig, reply] = &mut self.0.borrow_mut().adj;
        *orig = flow.seq_adj_orig.unwrap_or(*orig);
        *reply = flow.seq_adj_reply.unwrap_or(*reply);
        Ok(())
    }

    fn release(&mut self, _: &Flow) -> Result<(), Failure> {
        self.0.borrow_mut().released += 1;
        Ok(())
    }

    fn set_timeout(&mut self, _: u32) {}
}

/// A session: who says what with which flags. `@` stands for the speaker's own
/// address.
const SESSION: &[(Dir, u8, &str)] = &[
    (Dir::Orig, SYN, ""),
    (Dir::Reply, SYN | ACK, ""),
    (Dir::Orig, ACK, ""),
    (Dir::Reply, ACK, "220-hello\r\n220 there\r\n"),
    (Dir::Orig, ACK, "USER anonymous\r\n"),
    (Dir::Reply, ACK, "331 password\r\n"),
    (Dir::Orig, ACK, "PASS lab@\r\n"),
    (Dir::Reply, ACK, "230 welcome\r\n"),
    (Dir::Orig, ACK, "PASV\r\n"),
    (Dir::Reply, ACK, "227 Passive (@,156,64).\r\n"),
    (Dir::Orig, ACK, "NOOP\r\nPORT @,15"),
    (Dir::Reply, ACK, ""),
    (Dir::Orig, ACK, "6,65\r\n"),
    (Dir::Reply, ACK, "200 zzz\r\n200 fine\r\n"),
    (Dir::Orig, ACK, "PORT 1,2,3,4,5,6\r\n"),
    (Dir::Reply, ACK, "500 no\r\n"),
    (Dir::Orig, ACK, "QUIT\r\n"),
    (Dir::Reply, ACK, "221 bye\r\n"),
    (Dir::Orig, FIN | ACK, ""),
    (Dir::Reply, FIN | ACK, ""),
];

struct World {
    handler: Handler<Agree>,
    kept: Rc<RefCell<Kept>>,
    stats: Arc<Stats>,
    packet: Vec<u8>,
    message: Vec<u8>,
    verdicts: Vec<u8>,
    help: Help,
}

impl World {
    fn new() -> Self {
        let file = tempfile_with("");
        let args = RunArgs {
            helper: nft_ftp_helper::cli::HelperArgs {
                config: Some(file.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        let settings = config::resolve(&args).unwrap();
        std::fs::remove_file(file).unwrap();
        let (sender, _receiver) = sync_channel(1);
        let shared = Arc::new(Shared::new(settings.live(), sender).unwrap());
        let (stats, kept) = (Arc::new(Stats::default()), Rc::default());
        let tables = Agree(Rc::clone(&kept));
        Self {
            handler: Handler::new(&settings, 121, tables, Arc::clone(&stats), shared),
            kept,
            stats,
            packet: Vec::new(),
            message: Vec::new(),
            verdicts: Vec::new(),
            help: Help {
                name: "nft-ftp".parse().unwrap(),
                info: HelpInfo::default(),
            },
        }
    }

    /// One session; every other one is translated at both ends.
    fn session(&mut self, number: u32) {
        let client = Ipv4Addr::from_bits(0x0a00_0001 + number);
        let (server, seen, firewall) = match number % 2 {
            0 => (
                Ipv4Addr::new(10, 9, 9, 9),
                Ipv4Addr::new(10, 9, 9, 9),
                client,
            ),
            _ => (
                Ipv4Addr::new(172, 16, 0, 21),
                Ipv4Addr::new(192, 0, 2, 1),
                Ipv4Addr::new(172, 16, 0, 1),
            ),
        };
        let mut flow = Flow::new(
            Tuple::tcp(client.into(), 40001, seen.into(), 21),
            Tuple::tcp(server.into(), 21, firewall.into(), 40001),
        );
        flow.id = Some(number);
        *self.kept.borrow_mut() = Kept::default();
        let mut next = [1000u32, 5000];
        for &(dir, flags, text) in SESSION {
            let own = if dir == Dir::Orig { client } else { server };
            let len = self.put_packet(dir, flags, text, own, next);
            self.put_message(dir, &flow);
            self.answer();
            let me = usize::from(dir == Dir::Reply);
            let marks = u32::from(flags & (SYN | FIN) != 0);
            next[me] = next[me].wrapping_add(len + marks);
        }
        // PASV and PORT, the latter in pieces; the foreign PORT is refused.
        assert_eq!(self.kept.borrow().opened, 2, "session {number}");
    }

    /// Writes an IPv4 packet without checksums; the length of its text.
    fn put_packet(
        &mut self,
        dir: Dir,
        flags: u8,
        text: &str,
        own: Ipv4Addr,
        next: [u32; 2],
    ) -> u32 {
        use std::io::Write;
        let me = usize::from(dir == Dir::Reply);
        let adj = self.kept.borrow().adj[1 - me].after;
        let packet = &mut self.packet;
        packet.clear();
        packet.resize(40, 0);
        (packet[0], packet[9], packet[32], packet[33]) = (0x45, 6, 0x50, flags);
        packet[24..28].copy_from_slice(&next[me].to_be_bytes());
        let ack = next[1 - me].wrapping_add_signed(adj);
        packet[28..32].copy_from_slice(&ack.to_be_bytes());
        let [a, b, c, d] = own.octets();
        for (i, part) in text.split('@').enumerate() {
            // Not the one in "lab@".
            if i > 0 && part.starts_with(',') {
                write!(packet, "{a},{b},{c},{d}").unwrap();
            } else if i > 0 {
                packet.push(b'@');
            }
            packet.extend_from_slice(part.as_bytes());
        }
        let total = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        u32::from(total) - 40
    }

    fn put_message(&mut self, dir: Dir, flow: &Flow) {
        let header = Header {
            subsys: SUBSYS_QUEUE,
            msg: NFQNL_MSG_PACKET,
            flags: 0,
            family: 2,
            res_id: 121,
            seq: 0,
        };
        let kept = *self.kept.borrow();
        let help = Help {
            info: HelpInfo::new(&kept.data).unwrap(),
            ..self.help
        };
        self.message.clear();
        append(&mut self.message, header, |w| {
            w.put(NFQA_PACKET_HDR, &[0, 0, 0, 7, 8, 0, 4]);
            w.nest(NFQA_CT, |w| {
                flow.orig.encode(CTA_TUPLE_ORIG, w);
                flow.reply.encode(CTA_TUPLE_REPLY, w);
                if let Some(master) = flow.master {
                    master.encode(CTA_TUPLE_MASTER, w);
                }
                w.be32(CTA_ID, flow.id.unwrap_or(0));
                help.encode(w);
                kept.adj[0].encode(CTA_SEQ_ADJ_ORIG, w);
                kept.adj[1].encode(CTA_SEQ_ADJ_REPLY, w);
            });
            w.be32(NFQA_CT_INFO, if dir == Dir::Orig { 0 } else { 3 });
            w.put(NFQA_PAYLOAD, &self.packet);
        })
        .unwrap();
    }

    /// Hands the message to the handler and keeps what a kernel would.
    fn answer(&mut self) {
        self.verdicts.clear();
        for message in Messages::new(&self.message) {
            self.handler.packet(&message, &mut self.verdicts);
        }
        let mut answered = 0;
        for message in Messages::new(&self.verdicts) {
            let nf = message.netfilter().unwrap();
            let attrs = if nf.subsys == SUBSYS_QUEUE {
                answered += 1;
                nf.attrs.find(NFQA_CT).map(|ct| ct.nested())
            } else {
                Some(nf.attrs)
            };
            if let Some(info) = attrs.and_then(private_data) {
                self.kept.borrow_mut().data = info;
            }
        }
        assert_eq!(answered, 1, "a packet has one verdict");
    }
}

/// What is wrong with a packet message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    NoConnection,
    CutTuple,
    ShortInfo,
    RelatedInfo,
    HasMaster,
    NoPayload,
    ShortHeader,
    Fragment,
    NotTcp,
}

impl World {
    /// A packet with a `PORT` that would open, but for what is wrong.
    fn put_wrong(&mut self, wrong: Wrong) {
        let (client, server) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 9, 9, 9));
        let tuple = Tuple::tcp(client.into(), 40001, server.into(), 21);
        self.put_packet(Dir::Orig, ACK, "PORT @,156,64\r\n", client, [1, 1]);
        match wrong {
            Wrong::NoPayload => self.packet.clear(),
            Wrong::ShortHeader => self.packet.truncate(30),
            Wrong::Fragment => self.packet[6] = 0x20,
            Wrong::NotTcp => self.packet[9] = 17,
            _ => {}
        }
        let header = Header {
            subsys: SUBSYS_QUEUE,
            msg: NFQNL_MSG_PACKET,
            flags: 0,
            family: 2,
            res_id: 121,
            seq: 0,
        };
        self.message.clear();
        append(&mut self.message, header, |w| {
            w.put(NFQA_PACKET_HDR, &[0, 0, 0, 7, 8, 0, 4]);
            if wrong != Wrong::NoConnection {
                w.nest(NFQA_CT, |w| {
                    match wrong {
                        Wrong::CutTuple => w.nest(CTA_TUPLE_ORIG, |w| w.put(1, &[0; 3])),
                        _ => tuple.encode(CTA_TUPLE_ORIG, w),
                    }
                    tuple.inverse().encode(CTA_TUPLE_REPLY, w);
                    if wrong == Wrong::HasMaster {
                        tuple.encode(CTA_TUPLE_MASTER, w);
                    }
                    self.help.encode(w);
                });
            }
            match wrong {
                Wrong::ShortInfo => w.put(NFQA_CT_INFO, &[0; 3]),
                Wrong::RelatedInfo => w.be32(NFQA_CT_INFO, 1),
                _ => w.be32(NFQA_CT_INFO, 0),
            }
            w.put(NFQA_PAYLOAD, &self.packet);
        })
        .unwrap();
    }
}

/// Each is accepted as it is, opens nothing, and has its counter.
#[test]
fn what_can_not_be_read_passes_and_is_counted() {
    for (wrong, figure) in [
        (Wrong::NoConnection, Figure::Passed),
        (Wrong::RelatedInfo, Figure::Passed),
        (Wrong::HasMaster, Figure::DataPackets),
        (Wrong::CutTuple, Figure::Malformed),
        (Wrong::ShortInfo, Figure::Malformed),
        (Wrong::NoPayload, Figure::Malformed),
        (Wrong::ShortHeader, Figure::Malformed),
        (Wrong::Fragment, Figure::Malformed),
        (Wrong::NotTcp, Figure::Malformed),
    ] {
        let mut world = World::new();
        world.put_wrong(wrong);
        world.answer();
        assert_eq!(world.stats.figure(figure), 1, "{wrong:?}");
        assert_eq!(world.kept.borrow().opened, 0, "{wrong:?}");
        let message = Messages::new(&world.verdicts).next().unwrap();
        let attrs = message.netfilter().unwrap().attrs;
        let verdict = attrs.find(NFQA_VERDICT_HDR).unwrap().value;
        assert_eq!(verdict, [0, 0, 0, NF_ACCEPT, 0, 0, 0, 7], "{wrong:?}");
        assert!(attrs.find(NFQA_PAYLOAD).is_none() && attrs.find(NFQA_CT).is_none());
    }
}

/// Neither the first segment nor what follows the answer: other packets may be
/// under way then.
#[test]
fn a_data_connection_leaves_the_queue_when_it_is_answered() {
    let mut world = World::new();
    let (server, client) = (Ipv4Addr::new(10, 9, 9, 9), Ipv4Addr::new(10, 0, 0, 1));
    let mut flow = Flow::new(
        Tuple::tcp(server.into(), 20, client.into(), 40000),
        Tuple::tcp(client.into(), 40000, server.into(), 20),
    );
    flow.master = Some(Tuple::tcp(client.into(), 40001, server.into(), 21));
    for (dir, flags, released) in [
        (Dir::Orig, SYN, 0),
        (Dir::Reply, ACK, 0),
        (Dir::Reply, SYN | ACK, 1),
        (Dir::Orig, SYN | ACK, 1),
    ] {
        world.put_packet(dir, flags, "", server, [1, 1]);
        world.put_message(dir, &flow);
        world.answer();
        assert_eq!(world.kept.borrow().released, released, "{dir:?} {flags}");
    }
    assert_eq!(world.stats.figure(Figure::DataPackets), 4);
    assert_eq!(world.stats.figure(Figure::DataReleased), 1);
}

/// The kernel took it, but its packet got no verdict, and what comes instead
/// needs no rewriting.
#[test]
fn an_adjustment_without_its_change_is_taken_back() {
    let mut world = World::new();
    let [client, server, seen] =
        [[10, 0, 0, 1], [172, 16, 0, 21], [192, 0, 2, 1]].map(Ipv4Addr::from);
    let flow = Flow::new(
        Tuple::tcp(client.into(), 40001, seen.into(), 21),
        Tuple::tcp(server.into(), 21, client.into(), 40001),
    );
    for (pos, after) in [(1002, 0), (1006, 1)] {
        world.kept.borrow_mut().adj[0] = SeqAdj {
            correction_pos: pos,
            before: 0,
            after: 1,
        };
        world.kept.borrow_mut().data = [0; 32];
        world.put_packet(Dir::Orig, ACK, "NOOP\r\n", client, [1000, 5000]);
        world.put_message(Dir::Orig, &flow);
        world.answer();
        assert_eq!(world.kept.borrow().adj[0].after, after, "at {pos}");
        // After what the daemon remembers.
        world.handler.set_now(std::time::Duration::from_secs(60));
    }
}

fn private_data(attrs: Attrs<'_>) -> Option<[u8; 32]> {
    let info = attrs.find(CTA_HELP)?.nested().find(CTA_HELP_INFO)?;
    info.value.try_into().ok()
}

fn tempfile_with(text: &str) -> std::path::PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("nft-ftp-handler-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Resident memory in KiB (proc(5), statm).
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4
}

/// Sessions to measure; `SESSIONS=100000 cargo test --release` for more.
fn wanted() -> u32 {
    let set = std::env::var("SESSIONS").ok();
    set.map_or(5000, |n| n.parse().unwrap())
}

#[test]
fn memory_is_flat_over_many_sessions_and_nothing_is_allocated() {
    const WARM: u32 = 2000;
    let (mut world, sessions) = (World::new(), wanted());
    for number in 0..WARM {
        world.session(number);
    }
    let (size, before) = (resident(), COUNT.get());
    for number in WARM..WARM + sessions {
        world.session(number);
    }
    let allocated = COUNT.get() - before;
    let grown = resident().saturating_sub(size);
    let packets = world.stats.figure(Figure::Packets);
    println!("{packets} packets, {allocated} allocations, {size} KiB, {grown} KiB more");
    assert_eq!(allocated, 0);
    assert!(grown < 256, "{grown} KiB");
    let all = u64::from(WARM + sessions);
    assert_eq!(world.stats.reason_count(Reason::ThirdParty), all);
    assert!(world.stats.figure(Figure::Rewritten) >= all);
    assert_eq!(world.stats.figure(Figure::Malformed), 0);
}
