//! TCP as it happens: loss, reordering, repetition, failover, restarts.

use crate::net::*;
use nft_ftp_helper::core::{Dir, Policy, Reason, Verdict};

const PORT: &[u8] = b"PORT 10,0,0,2,156,64\r\n";

fn logged_in() -> Net {
    Net::logged_in(Policy::default(), plain())
}

/// Queues bytes without sending them; returns where they begin.
fn queue(net: &mut Net, dir: Dir, bytes: &[u8]) -> usize {
    let s = &mut net.streams[ix(dir)].sent;
    s.extend_from_slice(bytes);
    s.len() - bytes.len()
}

#[test]
fn a_retransmission_is_not_taken_twice() {
    let mut net = logged_in();
    let at = queue(&mut net, Dir::Orig, PORT);
    net.resend(Dir::Orig, at, at + 22);
    let data = net.data;
    for from in 0..22 {
        net.resend(Dir::Orig, at + from, at + 22);
    }
    assert_eq!((net.data, net.table.ports()), (data, vec![40000]));
}

#[test]
fn a_segment_behind_a_hole_is_dropped_until_the_hole_is_filled() {
    let mut net = logged_in();
    let at = queue(&mut net, Dir::Orig, PORT);
    for _ in 0..2 {
        let out = net.resend(Dir::Orig, at + 9, at + 22);
        assert_eq!(out.verdict, Verdict::Drop(Reason::OutOfOrder));
    }
    net.resend(Dir::Orig, at, at + 9);
    net.resend(Dir::Orig, at + 9, at + 22);
    assert_eq!(net.table.ports(), [40000]);
}

#[test]
fn overlapping_segments_are_read_as_the_receiver_reads_them() {
    let mut net = logged_in();
    let at = queue(&mut net, Dir::Orig, PORT);
    let seq = net.streams[0].seq(at);
    net.raw(
        Dir::Orig,
        seq,
        None,
        Default::default(),
        b"PORT 10,0,0,2,15",
    );
    // The same place again with another text, and the rest.
    let mut other = PORT.to_vec();
    other[14..16].copy_from_slice(b"16");
    let out = net_send_unchecked(&mut net, seq, &other);
    assert_eq!(out, Verdict::Accept);
    assert_eq!(net.table.ports(), [40000]);
}

fn net_send_unchecked(net: &mut Net, seq: u32, bytes: &[u8]) -> Verdict {
    let mut copy = net.clone();
    let s = copy.streams[0].seq(0);
    let at = usize::try_from(seq.wrapping_sub(s)).unwrap();
    copy.streams[0].got.truncate(at);
    let out = copy.raw(Dir::Orig, seq, None, Default::default(), bytes);
    net.data = copy.data;
    net.table = copy.table;
    out.verdict
}

#[test]
fn a_hole_that_is_never_filled_does_not_stall() {
    let mut net = logged_in();
    // Bytes that passed while nobody listened.
    let at = queue(&mut net, Dir::Orig, b"NOOP\r\n") + 6;
    net.streams[0].got.extend_from_slice(b"NOOP\r\n");
    queue(&mut net, Dir::Orig, PORT);
    let mut tries = 0;
    while net.table.opened.is_empty() {
        let seq = net.streams[0].seq(at);
        net.raw(Dir::Orig, seq, None, Default::default(), PORT);
        tries += 1;
    }
    assert_eq!(tries, 4);
    assert_eq!(net.table.reasons().last(), Some(&Reason::Opened));
}

#[test]
fn the_receivers_acknowledgement_ends_a_hole() {
    let mut net = logged_in();
    let at = queue(&mut net, Dir::Orig, b"NOOP\r\n") + 6;
    net.streams[0].got.extend_from_slice(b"NOOP\r\n");
    queue(&mut net, Dir::Orig, PORT);
    net.resend(Dir::Orig, at, at + 22);
    net.ack(Dir::Reply);
    net.resend(Dir::Orig, at, at + 22);
    assert_eq!(net.table.ports(), [40000]);
}

#[test]
fn holes_in_both_directions_do_not_stall() {
    let mut net = logged_in();
    for dir in [Dir::Orig, Dir::Reply] {
        queue(&mut net, dir, b"200 lost\r\n");
        net.streams[ix(dir)].got.extend_from_slice(b"200 lost\r\n");
    }
    let a = queue(&mut net, Dir::Orig, PORT);
    let b = queue(&mut net, Dir::Reply, b"200 x\r\n");
    let mut turns = 0;
    while net.table.opened.is_empty() || !net.got(Dir::Reply).ends_with("200 x\r\n") {
        let (s, t) = (net.streams[0].seq(a), net.streams[1].seq(b));
        net.raw(Dir::Orig, s, None, Default::default(), PORT);
        net.raw(Dir::Reply, t, None, Default::default(), b"200 x\r\n");
        turns += 1;
        assert!(turns < 8);
    }
}

#[test]
fn private_data_far_behind_is_given_up_at_once() {
    let mut net = logged_in();
    let lost = vec![b'x'; 100_000];
    queue(&mut net, Dir::Orig, &lost);
    net.streams[0].got.extend_from_slice(&lost);
    net.send(Dir::Orig, PORT);
    assert_eq!((net.table.ports(), net.drops), (vec![40000], 0));
}

#[test]
fn after_a_failover_without_state_the_first_announcement_counts() {
    for translated in [false, true] {
        let conn = if translated {
            conn("10.0.0.2", "192.0.2.1", "172.16.0.21", "172.16.0.1")
        } else {
            plain()
        };
        let mut net = Net::new(Policy::default(), conn);
        net.send(Dir::Orig, PORT);
        assert_eq!(net.table.ports(), [40000]);
        assert!(net.table.reasons().contains(&Reason::PickedUp));
        let mut net = Net::new(Policy::default(), conn);
        net.orig("PASV\r\n");
        let shown = if translated {
            "172,16,0,21"
        } else {
            "198,51,100,21"
        };
        net.reply(&format!("227 ({shown},156,64)\r\n"));
        assert_eq!(net.table.ports(), [40000]);
    }
}

#[test]
fn unknown_private_data_is_picked_up_like_none() {
    let mut net = logged_in();
    net.data = [0xff; 32];
    net.send(Dir::Orig, PORT);
    assert_eq!(net.table.ports(), [40000]);
    assert_eq!(net.table.reasons().first(), Some(&Reason::BadState));
}

#[test]
fn bare_acknowledgements_change_nothing() {
    let mut net = logged_in();
    let data = net.data;
    net.ack(Dir::Orig);
    net.ack(Dir::Reply);
    assert_eq!(net.data, data);
    let mut net = Net::new(Policy::default(), plain());
    net.ack(Dir::Orig);
    assert_eq!(net.data, [0; 32]);
}

#[test]
fn both_sides_in_an_announcement_the_later_one_loses() {
    let mut net = logged_in();
    net.orig("PASV\r\n");
    net.orig("PORT 10,0,0,2");
    net.reply("227 (198,51");
    net.reply(",100,21,156,65)\r\n");
    net.orig(",156,64\r\n");
    assert_eq!(net.table.ports(), [40000]);
    assert!(net.table.reasons().contains(&Reason::BusyPartial));
}
