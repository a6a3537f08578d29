//! Announcements under NAT: what is expected, what the receiver reads.

use crate::net::*;
use nft_ftp_helper::core::{Conn, Dir, ExpectNat, Policy, Reason, ThirdParty};

/// Case, connection: client, addressed, server, seen.
const V4: [(&str, [&str; 4]); 5] = [
    (
        "snat",
        ["10.0.0.2", "198.51.100.21", "198.51.100.21", "192.0.2.1"],
    ),
    (
        "dnat",
        ["10.0.0.2", "192.0.2.1", "172.16.100.121", "10.0.0.2"],
    ),
    (
        "both",
        ["10.0.0.2", "192.0.2.1", "172.16.100.121", "172.16.0.1"],
    ),
    (
        "hairpin",
        ["172.16.0.9", "192.0.2.1", "172.16.100.121", "172.16.0.1"],
    ),
    ("port", ["10.0.0.2", "192.0.2.1", "192.0.2.1", "10.0.0.2"]),
];
const V6: [(&str, [&str; 4]); 4] = [
    (
        "snat",
        [
            "fd00::2",
            "2001:db8::21",
            "2001:db8::21",
            "2001:db8:ffff:ffff::1",
        ],
    ),
    (
        "dnat",
        ["2001:db8::2", "2001:db8:1::1", "fd00:1::21", "2001:db8::2"],
    ),
    (
        "both",
        ["fd00::2", "2001:db8:1::1", "fd00:1::21", "fd00:1::1"],
    ),
    (
        "hairpin",
        ["fd00:1::9", "2001:db8:1::1", "fd00:1::21", "fd00:1::1"],
    ),
];

fn case(c: [&str; 4]) -> Conn {
    let mut conn = conn(c[0], c[1], c[2], c[3]);
    // Port translation alone must count as NAT, too.
    conn.reply.dport = 50001;
    conn
}

fn commas(addr: &str, port: u16) -> String {
    format!("{},{},{}", addr.replace('.', ","), port / 256, port % 256)
}

/// The four announcements of port 40000: command, reply, and both as read by
/// the other side with port `p`.
fn announcements(c: [&str; 4], v6: bool, p: u16) -> Vec<[String; 3]> {
    let [client, addressed, server, seen] = c;
    let af = if v6 { 2 } else { 1 };
    let mut all = vec![
        [
            format!("EPRT |{af}|{client}|40000|"),
            String::new(),
            format!("EPRT |{af}|{seen}|{p}|"),
        ],
        [
            "EPSV".into(),
            "229 ok (|||40000|)".into(),
            format!("229 ok (|||{p}|)"),
        ],
    ];
    if !v6 {
        all.push([
            format!("PORT {}", commas(client, 40000)),
            String::new(),
            format!("PORT {}", commas(seen, p)),
        ]);
        all.push([
            "PASV".into(),
            format!("227 ok ({}).", commas(server, 40000)),
            format!("227 ok ({}).", commas(addressed, p)),
        ]);
    }
    all
}

fn run(net: &mut Net, [command, reply, _]: &[String; 3], size: usize) -> Dir {
    for piece in format!("{command}\r\n").as_bytes().chunks(size) {
        net.send(Dir::Orig, piece);
        net.ack(Dir::Reply);
    }
    if reply.is_empty() {
        return Dir::Orig;
    }
    for piece in format!("{reply}\r\n").as_bytes().chunks(size) {
        net.send(Dir::Reply, piece);
        net.ack(Dir::Orig);
    }
    Dir::Reply
}

fn check(net: &Net, c: [&str; 4], sender: Dir, port: u16) {
    let [e] = net.table.opened[..] else {
        panic!("{:?}", net.table)
    };
    let [client, addressed, server, seen] = c;
    let (source, dest, dir) = match sender {
        Dir::Orig => (server, seen, Dir::Reply),
        Dir::Reply => (client, addressed, Dir::Orig),
    };
    assert_eq!((e.source, e.dest), (Some(addr(source)), addr(dest)));
    assert_eq!((e.port, e.first, e.count), (port, port, 1));
    assert_eq!(
        e.nat,
        Some(ExpectNat {
            dir,
            saved_port: 40000
        })
    );
    assert_eq!(net.drops, 0, "{:?}", net.table.events);
}

#[test]
fn the_matrix_is_rewritten_and_expected_where_it_arrives() {
    let v4 = V4.iter().map(|c| (c, false));
    for ((name, c), v6) in v4.chain(V6.iter().map(|c| (c, true))) {
        for (taken, port) in [(vec![], 40000), (vec![40000, 40001], 40002)] {
            for text in announcements(*c, v6, port) {
                let mut net = Net::logged_in(Policy::default(), case(*c));
                net.table.taken = taken.clone();
                let sender = run(&mut net, &text, usize::MAX);
                check(&net, *c, sender, port);
                assert_eq!(net.last_line(sender), text[2], "{name}");
                assert_eq!(
                    net.table.reasons().contains(&Reason::Renumbered),
                    port != 40000
                );
            }
        }
    }
}

/// Leading zeros of numbers do not count.
fn canonical(line: &str) -> String {
    let mut out = String::new();
    let mut number = String::new();
    let v6 = line.contains("EPRT |2|");
    for c in line.chars().chain(['\n']) {
        if c.is_ascii_digit() && !v6 {
            number.push(c);
            continue;
        }
        if !number.is_empty() {
            out += &number
                .parse::<u32>()
                .map_or(number.clone(), |n| n.to_string());
            number.clear();
        }
        out.push(c);
    }
    let out = out.trim_end().to_owned();
    match out.rsplit_once("|0") {
        Some((head, port)) if v6 => format!("{head}|{}", port.trim_start_matches('0')),
        _ => out,
    }
}

#[test]
fn split_at_every_offset_the_receiver_reads_the_same_endpoint() {
    let v4 = V4.iter().map(|c| (c, false));
    for ((name, c), v6) in v4.chain(V6.iter().map(|c| (c, true))) {
        for text in announcements(*c, v6, 40002) {
            let longest = text[0].len().max(text[1].len());
            for size in 1..longest + 2 {
                let mut net = Net::logged_in(Policy::default(), case(*c));
                net.table.taken = vec![40000, 40001];
                let sender = run(&mut net, &text, size);
                check(&net, *c, sender, 40002);
                assert_eq!(
                    canonical(&net.last_line(sender)),
                    text[2],
                    "{name} in {size}"
                );
                net.orig("NOOP\r\n");
                net.reply("200 ok\r\n");
                assert!(net.got(Dir::Orig).ends_with("\r\nNOOP\r\n"));
                assert!(net.got(Dir::Reply).ends_with("\r\n200 ok\r\n"));
            }
        }
    }
}

#[test]
fn every_segment_of_a_split_announcement_carries_a_byte() {
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    for piece in "PORT 10,0,0,2,156,64\r\n".as_bytes().chunks(1) {
        let before = net.streams[0].got.len();
        net.send(Dir::Orig, piece);
        assert!(net.streams[0].got.len() > before);
        net.ack(Dir::Reply);
    }
    assert_eq!(net.last_line(Dir::Orig), "PORT 192,0,2,1,00000156,64");
}

#[test]
fn rewrites_accumulate_in_the_sequence_adjustment() {
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    for i in 0..20 {
        let port = 40000 + i;
        net.orig(&format!("PORT {}\r\n", commas("10.0.0.2", port)));
        net.reply("200 ok\r\n");
        net.orig("LIST\r\n");
        net.reply("150 here\r\n226 done\r\n");
    }
    assert_eq!(net.table.opened.len(), 20);
    assert_eq!(net.conn.seq_adj[0].after, 20);
    assert_eq!(net.conn.seq_adj[0].before, 19);
    assert_eq!(net.drops, 0);
}

#[test]
fn a_retransmission_is_rewritten_as_the_first_time() {
    let text = "NOOP\r\nPORT 10,0,0,2,156,64\r\nLIST\r\n";
    for from in 0..text.len() {
        for to in from + 1..=text.len() {
            let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
            let at = net.streams[0].sent.len();
            net.orig(text);
            let (data, adj) = (net.data, net.conn.seq_adj);
            // The checking receiver compares what it is shown.
            net.resend(Dir::Orig, at + from, at + to);
            assert_eq!((net.data, net.conn.seq_adj), (data, adj));
            assert_eq!(net.table.opened.len(), 1);
        }
    }
}

/// The acknowledgement is lost behind the firewall, or still under way.
#[test]
fn a_retransmission_of_what_was_acknowledged_adds_nothing() {
    let text = "NOOP\r\nPORT 10,0,0,2,156,64\r\nLIST\r\n";
    for addrs in [
        V4[0].1,
        V4[4].1,
        ["10.0.0.200", "8.8.8.8", "8.8.8.8", "9.9.9.9"],
    ] {
        for from in 0..text.len() {
            for to in from + 1..=text.len() {
                let mut net = Net::logged_in(Policy::default(), case(addrs));
                let at = net.streams[0].sent.len();
                net.orig(&text.replace("10,0,0,2", &addrs[0].replace('.', ",")));
                net.ack(Dir::Reply);
                let before = net.clone();
                // The checking receiver compares what it is shown.
                net.resend(Dir::Orig, at + from, at + to);
                assert_eq!(net.got(Dir::Orig), before.got(Dir::Orig));
                net.orig("QUIT\r\n");
                assert!(net.got(Dir::Orig).ends_with("LIST\r\nQUIT\r\n"));
                assert_eq!(net.table.opened.len(), 1);
            }
        }
    }
}

#[test]
fn a_second_rewrite_waits_until_the_first_is_acknowledged() {
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    let at = net.streams[0].sent.len();
    let two = "PORT 10,0,0,2,156,64\r\nPORT 10,0,0,2,156,65\r\n";
    let out = net.orig(two);
    assert_eq!(out.rewrite.keep, Some(22));
    assert_eq!(net.table.ports(), [40000]);
    // Nothing acknowledged yet: the second half has to wait.
    let seq = net.streams[0].seq(at + 22);
    let stale = Some(net.streams[0].seq(at));
    net.raw(
        Dir::Reply,
        net.streams[1].seq(net.streams[1].sent.len()),
        stale,
        Default::default(),
        b"",
    );
    net.raw(
        Dir::Orig,
        seq,
        None,
        Default::default(),
        &two.as_bytes()[22..],
    );
    assert_eq!((net.drops, net.table.ports()), (1, vec![40000]));
    net.ack(Dir::Reply);
    net.resend(Dir::Orig, at + 22, at + 44);
    assert_eq!(net.table.ports(), [40000, 40001]);
    assert!(
        net.got(Dir::Orig)
            .ends_with("PORT 192,0,2,1,156,64\r\nPORT 192,0,2,1,156,65\r\n")
    );
}

#[test]
fn a_rewrite_whose_acknowledgement_is_never_seen_does_not_stall() {
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    net.orig("PORT 10,0,0,2,156,64\r\n");
    let at = net.streams[0].sent.len();
    net.streams[0]
        .sent
        .extend_from_slice(b"PORT 10,0,0,2,156,65\r\n");
    for _ in 0..4 {
        let (seq, bytes) = (net.streams[0].seq(at), net.streams[0].sent[at..].to_vec());
        net.raw(Dir::Orig, seq, None, Default::default(), &bytes);
    }
    assert_eq!((net.drops, net.table.ports()), (3, vec![40000, 40001]));
}

/// A first announcement that was lost behind the firewall, and a second one
/// that came three times. The rest of `text` is repeated from the first on.
fn second_before_first(second: &str, refused: bool) -> Net {
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    let first = "PORT 10,0,0,2,156,64\r\n";
    let at = net.streams[0].sent.len();
    let text = format!("{first}{second}LIST\r\n");
    net.streams[0].sent.extend_from_slice(text.as_bytes());
    let s = net.streams[0].clone();
    net.lost_behind(Dir::Orig, s.seq(at), first.as_bytes());
    net.table.broken = refused;
    for _ in 0..4 {
        net.lossy(Dir::Orig, s.seq(at + first.len()), second.as_bytes());
    }
    assert_eq!(net.drops, 3);
    let out = net.lossy(Dir::Orig, s.seq(at), &s.sent[at..at + first.len()]);
    assert_eq!(out.rewrite.keep, None, "cut before what is to be repeated");
    net
}

#[test]
fn a_rewrite_is_repeated_although_a_later_line_gave_up_waiting() {
    let mut net = second_before_first("PORT 10,0,0,2,156,65\r\n", true);
    assert_eq!(net.table.ports(), [40000]);
    net.ack(Dir::Reply);
    let at = net.streams[0].sent.len();
    net.resend(Dir::Orig, at - 28, at);
    assert!(
        net.got(Dir::Orig)
            .ends_with("PORT 192,0,2,1,156,64\r\nPORT 10,0,0,2,156,65\r\nLIST\r\n")
    );
}

/// Its rewrite has the same length and takes the place of the first one.
#[test]
fn a_rewrite_that_is_not_known_any_more_does_not_stall() {
    let net = second_before_first("PORT 10,0,0,02,156,65\r\n", false);
    assert_eq!(net.table.ports(), [40000, 40001]);
    assert!(net.got(Dir::Orig).ends_with("PORT 10,0,0,2,156,64\r\n"));
}

/// It takes the place of the one it waited for, and the next waits for it.
#[test]
fn of_two_lines_that_waited_long_enough_one_goes_on() {
    let second = "PORT 10,0,0,2,156,65\r\nPORT 10,0,0,2,156,66\r\n";
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    net.orig("PORT 10,0,0,2,156,64\r\n");
    let s = net.streams[0].clone();
    for _ in 0..4 {
        net.lossy(Dir::Orig, s.seq(s.sent.len()), second.as_bytes());
    }
    assert_eq!((net.drops, net.table.ports()), (3, vec![40000, 40001]));
    assert!(net.got(Dir::Orig).ends_with("PORT 192,0,2,1,156,65\r\n"));
    // The same with the beginning of one.
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    net.orig("PORT 10,0,0,2,156,64\r\n");
    for _ in 0..4 {
        net.lossy(Dir::Orig, s.seq(s.sent.len()), &second.as_bytes()[..30]);
    }
    assert_eq!((net.drops, net.table.ports()), (3, vec![40000, 40001]));
    net.streams[0].sent.extend_from_slice(second.as_bytes());
    let at = s.sent.len();
    net.resend(Dir::Orig, at, at + 22);
}

/// How the firewall comes to give up the place in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivesUp {
    /// The one hole it keeps is the other direction's.
    OtherHole,
    /// The same segment comes for the fourth time.
    Drops,
    /// More is missing than it waits for.
    Gap,
}

/// `PORT` is lost behind the firewall, what follows it before, and the third
/// segment makes the firewall give up its place.
#[test]
fn an_unacknowledged_rewrite_is_repeated_behind_a_hole_that_is_given_up() {
    for way in [GivesUp::OtherHole, GivesUp::Drops, GivesUp::Gap] {
        let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
        let (port, noop) = ("PORT 10,0,0,2,156,64\r\n", "NOOP\r\n");
        let noops = noop.repeat(if way == GivesUp::Gap { 7000 } else { 1 });
        let at = net.streams[0].sent.len();
        let third = at + port.len() + noops.len();
        let text = format!("{port}{noops}LIST\r\n");
        net.streams[0].sent.extend_from_slice(text.as_bytes());
        let s = net.streams.clone();
        if way == GivesUp::OtherHole {
            net.lossy(Dir::Reply, s[1].seq(s[1].sent.len() + 9), b"x");
        }
        net.lost_behind(Dir::Orig, s[0].seq(at), port.as_bytes());
        for _ in 0..if way == GivesUp::Drops { 4 } else { 1 } {
            net.lossy(Dir::Orig, s[0].seq(third), b"LIST\r\n");
        }
        assert_eq!(net.table.reasons().last(), Some(&Reason::Resync), "{way:?}");
        for (from, to) in [(at, at + port.len()), (at, third + 6)] {
            net.resend(Dir::Orig, from, to);
        }
        let want = format!("PORT 192,0,2,1,156,64\r\n{noops}LIST\r\n");
        assert!(net.got(Dir::Orig).ends_with(&want), "{way:?}");
        assert_eq!(net.table.ports(), [40000]);
        // And nothing is repeated once it is acknowledged.
        net.ack(Dir::Reply);
        let out = net.resend(Dir::Orig, at, third + 6);
        assert_eq!(out.rewrite.keep, Some(5), "{way:?}");
        net.orig("QUIT\r\n");
        assert!(net.got(Dir::Orig).ends_with("LIST\r\nQUIT\r\n"));
    }
}

/// The private data has no room for a distance above 64 KiB.
#[test]
fn a_gap_too_far_behind_a_rewrite_does_not_stall() {
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    let (s, at) = (net.streams[0].clone(), net.streams[0].sent.len());
    let port = b"PORT 10,0,0,2,156,64\r\n";
    net.lost_behind(Dir::Orig, s.seq(at), port);
    net.lossy(Dir::Orig, s.seq(at + 70_000), b"LIST\r\n");
    let out = net.lossy(Dir::Orig, s.seq(at), port);
    assert_eq!((out.rewrite.keep, net.drops), (None, 0));
}

/// The kernel has taken a sequence adjustment, and the packet was dropped: the
/// answer was lost, or the daemon died before its verdict.
#[test]
fn an_adjustment_without_its_packet_is_not_added_twice() {
    // The last one is rewritten without a change of length at first.
    for (addrs, taken) in [
        (V4[0].1, vec![]),
        (V4[4].1, vec![40000]),
        (["10.0.0.200", "8.8.8.8", "8.8.8.8", "9.9.9.9"], vec![]),
        (V4[0].1, (40000..=40059).collect()),
    ] {
        for again in 1..23 {
            let mut net = Net::logged_in(Policy::default(), case(addrs));
            let client = addrs[0].replace('.', ",");
            net.orig(&format!("PORT {client},156,1\r\n"));
            net.ack(Dir::Reply);
            let text = format!("PORT {client},156,64\r\nLIST\r\n");
            let at = net.streams[0].sent.len();
            net.streams[0].sent.extend_from_slice(text.as_bytes());
            let (data, seq) = (net.data, net.streams[0].seq(at));
            net.lost_behind(Dir::Orig, seq, text.as_bytes());
            net.data = data;
            net.table.taken.clone_from(&taken);
            // The checking receiver accepts no hole.
            net.resend(Dir::Orig, at, at + again);
            net.ack(Dir::Reply);
            net.resend(Dir::Orig, at + again, at + text.len());
            net.ack(Dir::Reply);
            net.orig("QUIT\r\n");
            assert!(net.got(Dir::Orig).ends_with("\r\nLIST\r\nQUIT\r\n"));
        }
    }
}

#[test]
fn a_refused_announcement_passes_as_it_is() {
    for text in [
        "PORT 9,9,9,9,156,64\r\n",
        "PORT 10,0,0,2,0,64\r\n",
        "PORT 10,0,0,2,156,300\r\n",
    ] {
        let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
        net.orig(text);
        assert_eq!(net.table.opened, []);
        assert!(net.got(Dir::Orig).ends_with(text));
    }
    let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
    net.table.broken = true;
    net.orig("PORT 10,0,0,2,156,64\r\n");
    assert!(net.got(Dir::Orig).ends_with("PORT 10,0,0,2,156,64\r\n"));
    net.table.broken = false;
    net.table.taken = (1..=65535).collect();
    net.orig("PORT 10,0,0,2,156,64\r\n");
    assert_eq!(net.table.reasons(), [Reason::OpenFailed, Reason::PortTaken]);
}

#[test]
fn a_split_announcement_that_is_refused_names_no_endpoint() {
    for text in [
        "PORT 10,0,0,2,0,64\r\n",
        "PORT 10,0,0,2,156,300\r\n",
        "PORT 10,0,0,2,156,x\r\n",
        "PORT 10,0,0,9,156,64\r\n",
    ] {
        for size in 1..text.len() {
            let mut net = Net::logged_in(Policy::default(), case(V4[0].1));
            for piece in text.as_bytes().chunks(size) {
                net.send(Dir::Orig, piece);
                net.ack(Dir::Reply);
            }
            assert_eq!(net.table.opened, []);
            let line = net.last_line(Dir::Orig);
            let mut numbers = line[5..].split(',').map(|n| n.parse::<u8>().is_ok());
            let endpoint = numbers.clone().count() == 6 && numbers.all(|ok| ok);
            assert!(
                !endpoint || text.starts_with(&line),
                "{text:?} in {size}: {line}"
            );
            net.orig("NOOP\r\n");
            assert_eq!(net.last_line(Dir::Orig), "NOOP");
        }
    }
}

#[test]
fn a_server_that_shows_its_outer_address_is_understood() {
    let mut net = Net::logged_in(Policy::default(), case(V4[1].1));
    net.orig("PASV\r\n");
    net.reply("227 ok (192,0,2,1,156,64)\r\n");
    check(&net, V4[1].1, Dir::Reply, 40000);
    assert_eq!(net.last_line(Dir::Reply), "227 ok (192,0,2,1,156,64)");
}

#[test]
fn a_server_behind_another_translator_is_taken_by_its_peer_address() {
    let policy = Policy {
        third_party: ThirdParty::PeerInstead,
        ..Policy::default()
    };
    for size in 1..30 {
        let mut net = Net::logged_in(policy, case(V4[0].1));
        let text = [
            "PASV".into(),
            "227 ok (10,99,99,99,156,64)".into(),
            String::new(),
        ];
        run(&mut net, &text, size);
        check(&net, V4[0].1, Dir::Reply, 40000);
        if size > 27 {
            assert_eq!(net.last_line(Dir::Reply), "227 ok (198,51,100,21,156,64)");
        }
    }
}
