//! Announcements without NAT.

use crate::net::*;
use nft_ftp_helper::core::{Dir, Kind, Policy, Reason};

fn one(net: &Net, kind: Kind, source: &str, dest: &str, port: u16) {
    let [e] = net.table.opened[..] else {
        panic!("{:?}", net.table)
    };
    assert_eq!(e.kind, kind);
    assert_eq!(e.source, Some(addr(source)));
    assert_eq!(
        (e.dest, e.first, e.count, e.port),
        (addr(dest), port, 1, port)
    );
    assert_eq!(
        (e.source_port, e.nat, e.permanent, e.renew),
        (None, None, false, false)
    );
}

#[test]
fn the_four_announcements_open_their_port() {
    let replies = [
        (
            "PASV",
            "227 Entering Passive Mode (198,51,100,21,156,64).",
            Kind::Pasv,
        ),
        (
            "pasv",
            "227 Entering Passive Mode 198,51,100,21,156,64",
            Kind::Pasv,
        ),
        ("PaSv", "227 =198,51,100,21,156,64", Kind::Pasv),
        (
            "PASV",
            "227 mode 2 of 3,5 (198,51,100,21,156,064)",
            Kind::Pasv,
        ),
        (
            "EPSV",
            "229 Entering Extended Passive Mode (|||40000|)",
            Kind::Epsv,
        ),
        ("epsv 1", "229 (sic) ok (!!!40000!)", Kind::Epsv),
    ];
    for (command, reply, kind) in replies {
        let mut net = Net::logged_in(Policy::default(), plain());
        net.orig(&format!("{command}\r\n"));
        assert_eq!(net.table.opened, []);
        net.reply(&format!("{reply}\r\n"));
        one(&net, kind, CLIENT, SERVER, 40000);
    }
    for (command, kind) in [
        ("PORT 10,0,0,2,156,64", Kind::Port),
        ("port 10,0,0,2,156,64", Kind::Port),
        ("EPRT |1|10.0.0.2|40000|", Kind::Eprt),
        ("eprt !1!10.0.0.2!40000!", Kind::Eprt),
    ] {
        let mut net = Net::logged_in(Policy::default(), plain());
        net.orig(&format!("{command}\r\n"));
        one(&net, kind, SERVER, CLIENT, 40000);
    }
}

#[test]
fn ipv6_addresses_are_read_in_every_spelling() {
    let (c, s) = ("2001:db8::a:2", "2001:db8:0:1::21");
    for text in [
        "2001:db8::a:2",
        "2001:DB8:0:0:0:0:A:2",
        "2001:0db8:0000:0000:0000:0000:000a:0002",
        "2001:db8:0::0:a:2",
        "2001:db8:0:0:0::a:2",
    ] {
        let mut net = Net::logged_in(Policy::default(), conn(c, s, s, c));
        net.orig(&format!("EPRT |2|{text}|40000|\r\n"));
        one(&net, Kind::Eprt, s, c, 40000);
    }
    for text in [
        "2001:db8::2",
        "::a:2",
        "2001:db8:0:0:0:0:0:a:2",
        "2001:db8::a::2",
        "2001:db8::a:2:",
        ":2001:db8::a:2",
    ] {
        let mut net = Net::logged_in(Policy::default(), conn(c, s, s, c));
        net.orig(&format!("EPRT |2|{text}|40000|\r\n"));
        assert_eq!(net.table.opened, [], "{text}");
    }
    let mut net = Net::logged_in(Policy::default(), conn(c, s, s, c));
    net.orig("EPSV\r\n");
    net.reply("229 ok (|||40000|)\r\n");
    one(&net, Kind::Epsv, c, s, 40000);
}

#[test]
fn split_at_every_offset_opens_the_same() {
    let c6 = ("2001:db8::a:2", "2001:db8:0:1::21");
    let cases: [(&str, &str, bool); 4] = [
        ("PORT 10,0,0,2,156,64\r\n", "", false),
        ("EPRT |1|10.0.0.2|40000|\r\n", "", false),
        (
            "PASV\r\n",
            "227 Entering Passive Mode (198,51,100,21,156,64).\r\n",
            false,
        ),
        ("EPRT |2|2001:db8::a:2|40000|\r\n", "", true),
    ];
    for (command, reply, v6) in cases {
        let conn = if v6 {
            conn(c6.0, c6.1, c6.1, c6.0)
        } else {
            plain()
        };
        for size in 1..command.len().max(reply.len()) {
            let mut net = Net::logged_in(Policy::default(), conn);
            for piece in command.as_bytes().chunks(size) {
                net.send(Dir::Orig, piece);
            }
            for piece in reply.as_bytes().chunks(size) {
                net.send(Dir::Reply, piece);
            }
            assert_eq!(net.table.ports(), [40000], "{command} in {size}");
            assert_eq!(net.drops, 0);
        }
    }
}

#[test]
fn every_line_of_a_segment_counts() {
    let mut net = Net::logged_in(Policy::default(), plain());
    net.orig("NOOP\r\nPORT 10,0,0,2,156,64\r\nLIST\r\nEPRT |1|10.0.0.2|40001|\r\nPASV\r\n");
    net.reply("200 a\r\n200 b\r\n150 c\r\n226 d\r\n200 e\r\n227 (198,51,100,21,156,66)\r\n");
    assert_eq!(net.table.ports(), [40000, 40001, 40002]);
}

#[test]
fn text_that_is_no_command_or_reply_opens_nothing() {
    for text in [
        " PORT 10,0,0,2,156,64",
        "XPORT 10,0,0,2,156,64",
        "PORTS 10,0,0,2,156,64",
        "PORT10,0,0,2,156,64",
        "NOOP PORT 10,0,0,2,156,64",
        "NOOP\rPORT 10,0,0,2,156,64",
        "NOOP\0PORT 10,0,0,2,156,64",
        "PORT 10,0,0,2,156",
        "PORT 10,0,0,2,156,64,1",
        "PORT 10,0,0,2,156,64x",
        "PORT 10,0,0,2,256,64",
        "PORT 10,0,0,2,156,300",
        "PORT 10,0,0,2,,64",
        "PORT 10.0.0.2,156,64",
        "PORT",
        "EPRT |1|10.0.0.2|70000|",
        "EPRT |1|10.0.0.2|40000",
        "EPRT |1|10.0.0.2.3|40000|",
        "EPRT |3|10.0.0.2|40000|",
        "EPRT |2|::1|40000|",
        "EPRT |1|10.0.0.2||",
    ] {
        let mut net = Net::logged_in(Policy::default(), plain());
        net.orig(&format!("{text}\r\n"));
        assert_eq!(net.table.opened, [], "{text}");
    }
    for text in [
        "228 (198,51,100,21,156,64)",
        "227-(198,51,100,21,156,64)",
        "2270 (198,51,100,21,156,64)",
        " 227 (198,51,100,21,156,64)",
        "200 x\r227 (198,51,100,21,156,64)",
        "200-x\r\n227 (198,51,100,21,156,64)\r\n200 y",
        "227-x\r\n228 (198,51,100,21,156,64)\r\n227 y",
        "227 (198,51,100,21,156)",
        "227 (198,51,100,21,156,256)",
        "227 (198,51,100,21,1560,25)",
        "229 (|||40000|)",
    ] {
        let mut net = Net::logged_in(Policy::default(), plain());
        net.orig("PASV\r\n");
        net.reply(&format!("{text}\r\n"));
        assert_eq!(net.table.opened, [], "{text}");
    }
}

#[test]
fn an_answer_nobody_asked_for_opens_nothing() {
    let mut net = Net::logged_in(Policy::default(), plain());
    net.reply("227 (198,51,100,21,156,64)\r\n");
    net.orig("PASV\r\n");
    net.reply("227 (198,51,100,21,156,65)\r\n227 (198,51,100,21,156,66)\r\n");
    net.orig("EPSV ALL\r\n");
    net.reply("229 (|||40003|)\r\n");
    net.orig("PASV\r\n");
    net.reply("502 no\r\n");
    net.reply("227 (198,51,100,21,156,64)\r\n");
    assert_eq!(net.table.ports(), [40001]);
    let reasons = net.table.reasons();
    assert_eq!(
        reasons
            .iter()
            .filter(|r| **r == Reason::Unsolicited)
            .count(),
        4
    );
}
