use super::*;
use netfilter::expect::{ExpectNat, Flags, Mask};
use netfilter::flow::{Help, HelpInfo, Labels, SeqAdj, Synproxy};
use netfilter::protoinfo::{ProtoInfo, Tcp, TcpFlags};
use netfilter::{Dir, L4, Status, Tuple};
use proptest::prelude::*;
use std::net::IpAddr;

pub(crate) fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// An established TCP connection as the injector of the benchmarks makes it.
pub(crate) fn tcp(n: u32) -> Flow {
    let [a, b, c, d] = n.to_be_bytes();
    let src = IpAddr::from([10, a, b, c]);
    let orig = Tuple::tcp(src, 1024 + u16::from(d), ip("192.0.2.1"), 80);
    let mut flow = Flow::new(orig, orig.inverse());
    flow.status = Some(Status::from_bits_retain(0x18e));
    flow.protoinfo = ProtoInfo::Tcp(Tcp {
        state: 3,
        wscale_orig: 7,
        wscale_reply: 8,
        flags_orig: TcpFlags { flags: 3, mask: 0 },
        flags_reply: TcpFlags { flags: 3, mask: 0 },
    });
    flow
}

fn encode(record: &Record) -> Vec<u8> {
    let mut out = Vec::new();
    match record {
        Record::Flow(f) => put_flow(&mut out, f).unwrap(),
        Record::Expect(e) => put_expect(&mut out, e).unwrap(),
    }
    out
}

#[test]
fn records_are_small() {
    let flow = tcp(1);
    assert_eq!(encode(&Record::Flow(flow)).len(), 19);
    let mut nat = flow;
    nat.reply.dst = ip("203.0.113.1");
    nat.mark = Some(7);
    assert_eq!(encode(&Record::Flow(nat)).len(), 28);
    let mut v6 = flow;
    v6.orig = Tuple::tcp(ip("2001:db8::1"), 1, ip("2001:db8::2"), 2);
    v6.reply = v6.orig.inverse();
    assert_eq!(encode(&Record::Flow(v6)).len(), 43);
}

fn addr(v6: bool) -> BoxedStrategy<IpAddr> {
    if v6 {
        any::<[u8; 16]>().prop_map(IpAddr::from).boxed()
    } else {
        any::<[u8; 4]>().prop_map(IpAddr::from).boxed()
    }
}

fn l4() -> impl Strategy<Value = L4> {
    prop_oneof![
        Just(L4::None),
        any::<(u16, u16)>().prop_map(|(src, dst)| L4::Ports { src, dst }),
        any::<(u16, u8, u8)>().prop_map(|(id, ty, code)| L4::Icmp { id, ty, code }),
    ]
}

fn tuple(v6: bool) -> impl Strategy<Value = Tuple> {
    let proto = prop_oneof![Just(6), Just(17), Just(1), Just(58), Just(132), any::<u8>()];
    let zone = prop::option::of(any::<u16>());
    (addr(v6), addr(v6), proto, l4(), zone).prop_map(|(src, dst, l4proto, l4, zone)| Tuple {
        src,
        dst,
        l4proto,
        l4,
        zone,
    })
}

fn protoinfo() -> impl Strategy<Value = ProtoInfo> {
    prop_oneof![
        Just(ProtoInfo::None),
        (any::<u8>(), 0..15_u8, 0..15_u8, 0..16_u8).prop_map(|(state, a, b, f)| {
            let flags = TcpFlags { flags: f, mask: 0 };
            ProtoInfo::Tcp(Tcp {
                state,
                wscale_orig: a,
                wscale_reply: b,
                flags_orig: flags,
                flags_reply: TcpFlags::default(),
            })
        }),
        any::<(u8, u32, u32)>().prop_map(|(state, vtag_orig, vtag_reply)| ProtoInfo::Sctp {
            state,
            vtag_orig,
            vtag_reply
        }),
        any::<(u8, u8, u64)>().prop_map(|(state, role, handshake_seq)| ProtoInfo::Dccp {
            state,
            role,
            handshake_seq
        }),
    ]
}

fn seq_adj() -> impl Strategy<Value = Option<SeqAdj>> {
    prop::option::of(
        any::<(u32, i32, i32)>().prop_map(|(correction_pos, before, after)| SeqAdj {
            correction_pos,
            before,
            after,
        }),
    )
}

fn help() -> impl Strategy<Value = Option<Help>> {
    let info = prop::collection::vec(any::<u8>(), 0..=32);
    prop::option::of(("[a-z-]{1,15}", info).prop_map(|(name, info)| Help {
        name: name.parse().unwrap(),
        info: HelpInfo::new(&info).unwrap(),
    }))
}

fn flow() -> impl Strategy<Value = Flow> {
    let base = any::<bool>().prop_flat_map(|v6| {
        let master = prop::option::of(tuple(v6));
        (tuple(v6), tuple(v6), any::<bool>(), master)
    });
    let state = (any::<u32>(), 1..=u32::MAX, protoinfo(), help());
    let more = (seq_adj(), seq_adj(), any::<[bool; 3]>(), any::<u16>());
    (base, state, more).prop_map(|(base, state, more)| {
        let (orig, mut reply, nat, master) = base;
        reply.l4proto = orig.l4proto;
        let mut f = Flow::new(orig, if nat { reply } else { orig.inverse() });
        f.master = master;
        f.status = Some(Status::from_bits_retain(state.0));
        f.protoinfo = state.2;
        f.help = state.3;
        (f.seq_adj_orig, f.seq_adj_reply) = (more.0, more.1);
        let [mark, labels, synproxy] = more.2;
        f.mark = mark.then_some(state.1);
        f.labels = labels.then_some(Labels([9; 16]));
        f.synproxy = synproxy.then_some(Synproxy {
            isn: 1,
            its: 2,
            tsoff: 3,
        });
        f.zone = more.3;
        f
    })
}

fn expectation() -> impl Strategy<Value = Expectation> {
    let parts = any::<bool>().prop_flat_map(|v6| {
        let nat = prop::option::of((addr(v6), any::<(bool, u16, u8)>()));
        (tuple(v6), tuple(v6), addr(v6), addr(v6), nat, any::<bool>())
    });
    let rest = (
        any::<[u16; 3]>(),
        any::<(u32, u32)>(),
        prop::option::of("[a-z-]{1,15}"),
    );
    (parts, rest).prop_map(|(p, r)| {
        let (master, tuple, src, dst, nat, plain) = p;
        let ([zone, sport, dport], (flags, class), name) = r;
        let mask = if plain {
            Mask::any_source(tuple.src)
        } else {
            Mask {
                src,
                dst,
                sport,
                dport,
            }
        };
        let mut e = Expectation::new(master, tuple, mask);
        (e.zone, e.class, e.flags) = (zone, class, Flags::from_bits_retain(flags));
        e.helper = name.as_ref().map(|n| n.parse().unwrap());
        e.expectfn = e.helper.filter(|_| sport % 2 == 0);
        e.nat = nat.map(|(addr, (reply, port, l4proto))| ExpectNat {
            dir: if reply { Dir::Reply } else { Dir::Orig },
            addr,
            port,
            l4proto,
        });
        e
    })
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        flow().prop_map(Record::Flow),
        expectation().prop_map(Record::Expect)
    ]
}

fn key_of(record: &Record) -> Vec<u8> {
    let mut key = Vec::new();
    match record {
        Record::Flow(f) => put_flow_key(&mut key, f).unwrap(),
        Record::Expect(e) => put_expect_key(&mut key, e).unwrap(),
    }
    key
}

proptest! {
    #[test]
    fn decode_gives_back_what_was_encoded(record in record()) {
        let bytes = encode(&record);
        prop_assert_eq!(decode(&bytes), Ok(record));
        let split = split(&bytes).unwrap();
        prop_assert_eq!(split.key, key_of(&record));
        prop_assert!(bytes.len() <= crate::store::MAX_LEN);
    }

    #[test]
    fn every_prefix_is_refused_and_every_bit_flip_has_one_form(record in record()) {
        let bytes = encode(&record);
        for len in 0..bytes.len() {
            prop_assert!(decode(&bytes[..len]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut b = bytes.clone();
            b[bit / 8] ^= 1 << (bit % 8);
            if let Ok(other) = decode(&b) {
                if !has_extensions(&other, &b) {
                    prop_assert_eq!(encode(&other), b);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = split(&bytes);
    }
}

/// An empty or unknown extension area is not written again.
fn has_extensions(record: &Record, bytes: &[u8]) -> bool {
    encode(record).len() != bytes.len() || {
        let key = key_of(record).len();
        let mut r = Reader::new(&bytes[key..]);
        let bit = match record {
            Record::Flow(_) => 1 << 12,
            Record::Expect(_) => 1 << 3,
        };
        r.varint("fields").unwrap() & bit != 0
    }
}

#[test]
fn unknown_extensions_are_skipped_unless_critical() {
    // fields = TCP | EXTENSIONS: 0x1001 as a varint.
    let plain = encode(&Record::Flow(tcp(1)));
    let key = split(&plain).unwrap().key.len();
    let mut bytes = plain[..key].to_vec();
    bytes.extend_from_slice(&[0x81, 0x20]);
    bytes.extend_from_slice(&plain[key + 1..]);
    let mut ignorable = bytes.clone();
    ignorable.extend_from_slice(&[4, 2, 0xaa, 0xbb]);
    assert_eq!(decode(&ignorable), Ok(Record::Flow(tcp(1))));
    let mut critical = bytes.clone();
    critical.extend_from_slice(&[5, 0]);
    assert_eq!(decode(&critical), Err(WireError::Critical(5)));
    let mut cut = bytes;
    cut.extend_from_slice(&[4, 9, 0]);
    assert_eq!(decode(&cut), Err(WireError::Short("extension")));
}

#[test]
fn a_helper_name_that_could_harm_is_refused() {
    let mut f = tcp(1);
    for name in [&b"../x"[..], b"a b", b"\x1b[2J"] {
        f.help = Some(Help {
            name: Name::new(name).unwrap(),
            info: HelpInfo::default(),
        });
        assert_eq!(
            decode(&encode(&Record::Flow(f))),
            Err(WireError::Value("helper"))
        );
    }
}
