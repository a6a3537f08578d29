use super::*;
use crate::core::{Edit, Text};
use std::fmt::Write;

/// `USER anonymous` over IPv4 with a TCP timestamp option, as sent.
fn v4(text: &[u8]) -> Vec<u8> {
    let mut p = vec![
        0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2,
    ];
    p.extend(tcp());
    p.extend(text);
    finish(p, 20)
}

fn v6(text: &[u8], extensions: bool) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0, 0, 0, if extensions { 0 } else { 6 }, 64];
    p.extend([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    p.extend([0xfd, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    if extensions {
        p.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        p.extend([6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let at = p.len();
    p.extend(tcp());
    p.extend(text);
    finish(p, at)
}

fn tcp() -> Vec<u8> {
    let mut t = vec![
        0x9c, 0x40, 0, 21, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x80, 0x18, 1, 0, 0, 0, 0, 0,
    ];
    t.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    t
}

/// Lengths and checksums, by an independent slow sum.
fn finish(mut p: Vec<u8>, tcp: usize) -> Vec<u8> {
    let v6 = p[0] >> 4 == 6;
    let length = if v6 { p.len() - 40 } else { p.len() };
    let at = if v6 { 4 } else { 2 };
    p[at] = u8::try_from(length >> 8).unwrap();
    p[at + 1] = u8::try_from(length & 255).unwrap();
    if !v6 {
        let c = slow(&p[..20]);
        p[10..12].copy_from_slice(&c.to_be_bytes());
    }
    let mut covered = p[if v6 { 8..40 } else { 12..20 }].to_vec();
    covered.extend(u32::try_from(p.len() - tcp).unwrap().to_be_bytes());
    covered.extend([0, 0, 0, 6]);
    covered.extend(&p[tcp..]);
    let c = slow(&covered);
    p[tcp + 16..tcp + 18].copy_from_slice(&c.to_be_bytes());
    p
}

fn slow(bytes: &[u8]) -> u16 {
    let mut total = 0u32;
    for (i, b) in bytes.iter().enumerate() {
        total += u32::from(*b) << if i % 2 == 0 { 8 } else { 0 };
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap()
}

fn rewrite(packet: &[u8], rewrite: &Rewrite) -> Vec<u8> {
    let mut out = Vec::new();
    TcpPacket::parse(packet)
        .unwrap()
        .rewrite(rewrite, &mut out)
        .unwrap();
    out
}

#[test]
fn text_and_numbers_are_found_behind_options_and_extensions() {
    for packet in [
        v4(b"PASV\r\n"),
        v6(b"PASV\r\n", false),
        v6(b"PASV\r\n", true),
    ] {
        let parsed = TcpPacket::parse(&packet).unwrap();
        let segment = parsed.segment(Dir::Orig);
        assert_eq!(segment.payload, b"PASV\r\n");
        assert_eq!((segment.seq, segment.ack), (0x1000, Some(0x2000)));
        assert_eq!(segment.flags, Flags::default());
        assert!(!parsed.is_bare());
    }
    assert!(TcpPacket::parse(&v4(b"")).unwrap().is_bare());
}

#[test]
fn bytes_behind_the_packet_are_not_text() {
    let mut packet = v4(b"PASV\r\n");
    packet.extend(b"Ethernet padding");
    let parsed = TcpPacket::parse(&packet).unwrap();
    assert_eq!(parsed.segment(Dir::Orig).payload, b"PASV\r\n");
}

#[test]
fn a_rewrite_equals_a_packet_built_with_that_text() {
    let text = |t: &str| {
        let mut all = Text::EMPTY;
        all.write_str(t).unwrap();
        all
    };
    let edit = Rewrite {
        edit: Some(Edit {
            range: 5..8,
            text: text("10,20,30,40,50,61"),
        }),
        keep: None,
    };
    let (before, after) = (b"PORT 1,2\r\n", b"PORT 10,20,30,40,50,61\r\n");
    assert_eq!(rewrite(&v4(before), &edit), v4(after));
    assert_eq!(rewrite(&v6(before, false), &edit), v6(after, false));
    assert_eq!(rewrite(&v6(before, true), &edit), v6(after, true));
}

#[test]
fn a_shortened_packet_loses_its_end_and_push() {
    let keep = Rewrite {
        edit: None,
        keep: Some(4),
    };
    let short = rewrite(&v4(b"PORT 1,2\r\n"), &keep);
    let mut expected = v4(b"PORT");
    expected[20 + 13] &= !PSH;
    assert_eq!(short, finish_again(expected));
}

fn finish_again(mut p: Vec<u8>) -> Vec<u8> {
    p[10..12].fill(0);
    p[36..38].fill(0);
    finish(p, 20)
}

#[test]
fn no_prefix_or_bit_flip_panics() {
    for packet in [v4(b"PASV\r\n"), v6(b"PASV\r\n", true)] {
        for len in 0..packet.len() {
            assert!(TcpPacket::parse(&packet[..len]).is_err());
        }
        for bit in 0..packet.len() * 8 {
            let mut flipped = packet.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(parsed) = TcpPacket::parse(&flipped) {
                let mut out = Vec::new();
                let _ = parsed.rewrite(&Rewrite::default(), &mut out);
            }
        }
    }
}
