//! Packets: found, refused, rewritten.

use nft_ftp_helper::core::{Dir, Edit, MangleError, Packet, PacketError, Rewrite, Text, mangle};
use proptest::prelude::*;

fn sum(bytes: &[u8]) -> u32 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn tcp(options: &[u8], flags: u8, urgent: u16, payload: &[u8]) -> Vec<u8> {
    let mut t = vec![0x9c, 0x41, 0, 21, 0, 0, 0x12, 0x34, 0, 0, 0xab, 0xcd];
    t.push(u8::try_from((20 + options.len()) / 4).unwrap() << 4);
    t.push(flags);
    t.extend([0x20, 0, 0xde, 0xad]);
    t.extend(urgent.to_be_bytes());
    t.extend(options);
    t.extend(payload);
    t
}

fn v4(ip_options: &[u8], segment: &[u8]) -> Vec<u8> {
    let header = 20 + ip_options.len();
    let total = u16::try_from(header + segment.len()).unwrap();
    let mut p = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    p.extend(total.to_be_bytes());
    p.extend([
        0x11, 0x11, 0x40, 0, 64, 6, 0xbe, 0xef, 10, 0, 0, 2, 192, 0, 2, 1,
    ]);
    p.extend(ip_options);
    p.extend(segment);
    p
}

fn v6(next: u8, headers: &[u8], segment: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0];
    p.extend(
        u16::try_from(headers.len() + segment.len())
            .unwrap()
            .to_be_bytes(),
    );
    p.extend([next, 64]);
    p.extend((0..32).map(|i| i * 7));
    p.extend(headers);
    p.extend(segment);
    p
}

fn check_sums(out: &[u8]) {
    let p = Packet::parse(out).unwrap();
    let addresses = if p.v4 {
        assert_eq!(sum(&out[..p.tcp]), 0xffff);
        &out[12..20]
    } else {
        &out[8..40]
    };
    let segment = &out[p.tcp..];
    let len = u32::try_from(segment.len()).unwrap();
    let all = sum(addresses) + 6 + sum(&len.to_be_bytes()) + sum(segment);
    let mut all = all;
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    assert_eq!(all, 0xffff);
}

fn rewritten(
    packet: &[u8],
    range: std::ops::Range<usize>,
    text: &str,
    keep: Option<usize>,
) -> Vec<u8> {
    let mut out = Vec::new();
    let rewrite = Rewrite {
        edit: Some(Edit {
            range,
            text: Text::from(text),
        }),
        keep,
    };
    mangle(&Packet::parse(packet).unwrap(), &rewrite, &mut out).unwrap();
    check_sums(&out);
    out
}

#[test]
fn segments_are_found_behind_options_and_extension_headers() {
    let t = tcp(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], 0x18, 0, b"NOOP\r\n");
    let hop = [43, 0, 0, 0, 0, 0, 0, 0];
    let routing = [60, 0, 0, 0, 0, 0, 0, 0];
    let dst = [44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let fragment = [6, 0, 0, 0, 0, 0, 0, 9];
    let all = [&hop[..], &routing, &dst, &fragment].concat();
    for p in [
        v4(&[], &t),
        v4(&[1; 40], &t),
        v6(6, &[], &t),
        v6(0, &all, &t),
    ] {
        let parsed = Packet::parse(&p).unwrap();
        let segment = parsed.segment(Dir::Orig);
        assert_eq!((segment.seq, segment.ack), (0x1234, Some(0xabcd)));
        assert_eq!(segment.payload, b"NOOP\r\n");
        assert!(parsed.rewritable);
        for short in 0..p.len() {
            assert!(Packet::parse(&p[..short]).is_err());
        }
        // Link layer padding is no payload.
        assert_eq!(
            Packet::parse(&[&p[..], &[0; 6]].concat())
                .unwrap()
                .segment(Dir::Orig)
                .payload,
            b"NOOP\r\n"
        );
    }
}

#[test]
fn what_is_no_tcp_segment_is_refused() {
    let t = tcp(&[], 0x18, 0, b"");
    let mut fragment = v4(&[], &t);
    fragment[6] = 0x20;
    let mut icmp = v4(&[], &t);
    icmp[9] = 1;
    let mut short = v4(&[], &t);
    short[32] = 0x40;
    for (p, error) in [
        (fragment, PacketError::Fragment),
        (icmp, PacketError::NotTcp),
        (short, PacketError::Malformed),
        (vec![0x50; 40], PacketError::Malformed),
        (v6(44, &[6, 0, 0, 1, 0, 0, 0, 9], &t), PacketError::Fragment),
        (v6(50, &[], &t), PacketError::NotTcp),
        (v6(59, &[], &t), PacketError::NotTcp),
    ] {
        assert_eq!(Packet::parse(&p).unwrap_err(), error);
    }
}

#[test]
fn signed_or_routed_payload_is_not_rewritable() {
    let md5 = tcp(
        &[19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
        0x18,
        0,
        b"x",
    );
    let odd = tcp(&[8, 40, 0, 0], 0x18, 0, b"x");
    let plain = tcp(&[], 0x18, 0, b"x");
    let routed = v6(
        43,
        &[
            6, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
        &plain,
    );
    let ah = v6(51, &[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &plain);
    let long = tcp(&[], 0x18, 0, &vec![0; 65490]);
    for p in [v4(&[], &md5), v4(&[], &odd), routed, ah, v4(&[], &long)] {
        let parsed = Packet::parse(&p).unwrap();
        let error = mangle(&parsed, &Rewrite::default(), &mut Vec::new());
        assert_eq!(error, Err(MangleError::NotRewritable));
    }
}

#[test]
fn the_rest_of_a_cut_segment_takes_fin_and_push_with_it() {
    let p = v4(&[], &tcp(&[], 0x39, 6, b"abcdef"));
    let out = rewritten(&p, 1..2, "xyz", Some(4));
    let new = Packet::parse(&out).unwrap();
    assert_eq!(new.segment(Dir::Orig).payload, b"axyzcd");
    assert_eq!(new.flags, 0x10);
    let p = v4(&[], &tcp(&[], 0x39, 3, b"abcdef"));
    let out = rewritten(&p, 1..2, "xyz", Some(4));
    let new = Packet::parse(&out).unwrap();
    assert_eq!((new.flags, out[39]), (0x30, 5));
}

proptest! {
    #[test]
    fn rewritten_packets_are_consistent(
        six in any::<bool>(), payload in prop::collection::vec(any::<u8>(), 1..400),
        a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(), text in "[0-9,]{0,60}",
    ) {
        let (a, b) = (a.index(payload.len()), b.index(payload.len()));
        let range = a.min(b)..a.max(b);
        let t = tcp(&[1, 1, 1, 0], 0x18, 0, &payload);
        let p = if six { v6(6, &[], &t) } else { v4(&[1, 1, 1, 0], &t) };
        let out = rewritten(&p, range.clone(), &text, None);
        let want = [&payload[..range.start], text.as_bytes(), &payload[range.end..]].concat();
        prop_assert_eq!(Packet::parse(&out).unwrap().segment(Dir::Orig).payload, &want[..]);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), version in 4u8..7) {
        let mut bytes = bytes;
        if let Some(b) = bytes.first_mut() { *b = version << 4 | *b & 15; }
        if let Ok(p) = Packet::parse(&bytes) {
            let mut out = Vec::new();
            let _ = mangle(&p, &Rewrite::default(), &mut out);
        }
    }
}
