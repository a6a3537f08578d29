//! Who may open a port, and when: login, TLS, other protocols, multi-line
//! replies, Telnet.

use crate::net::*;
use nft_ftp_helper::core::{
    ActiveOpens, Dir, Flags, OnRefusal, Policy, Reason, ThirdParty, Verdict,
};

fn logged_in() -> Net {
    Net::logged_in(Policy::default(), plain())
}

fn port(net: &mut Net) {
    net.orig("PORT 10,0,0,2,156,64\r\n");
}

#[test]
fn ciphertext_is_not_parsed_and_a_failed_auth_changes_nothing() {
    for (answer, opened) in [
        ("234 go on", 0),
        ("234-multi\r\n234 go on", 0),
        ("502 no", 1),
        ("431 not now", 1),
        ("334 more", 1),
    ] {
        let mut net = logged_in();
        net.orig("AUTH TLS\r\n");
        net.reply(&format!("{answer}\r\n"));
        port(&mut net);
        assert_eq!(net.table.opened.len(), opened, "{answer}");
        let state = net.data;
        net.send(Dir::Orig, b"\x16\x03\x01\n");
        port(&mut net);
        assert_eq!(net.data == state, opened == 0);
    }
    let mut net = logged_in();
    net.reply("234 nobody asked\r\n");
    port(&mut net);
    assert_eq!(net.table.opened.len(), 1);
}

#[test]
fn plain_text_after_tls_is_parsed_only_by_option() {
    for ccc in [false, true] {
        let policy = Policy {
            ccc,
            ..Policy::default()
        };
        let mut net = Net::logged_in(policy, plain());
        net.orig("AUTH TLS\r\n");
        net.reply("234 go on\r\n");
        net.send(Dir::Orig, b"\x17\x03\x03\x00\x20PORT 10,0,0,2,1,1\r\n");
        net.send(Dir::Reply, b"\x17\x03\x03\x00\x20zzz");
        net.send(Dir::Orig, b"PORT 10,0,0,2,156,64\r\xff\r\n");
        assert_eq!(net.table.opened, []);
        port(&mut net);
        assert_eq!(net.table.opened.len(), usize::from(ccc));
    }
}

#[test]
fn a_client_that_speaks_first_is_no_ftp_client() {
    let mut net = Net::new(Policy::default(), plain());
    net.handshake();
    net.orig("USER x\r\n");
    net.reply("220 ready\r\n331 password\r\n");
    net.orig("PASS y\r\n");
    net.reply("230 welcome\r\n");
    port(&mut net);
    assert_eq!(net.table.opened, []);
    assert_eq!(net.table.reasons(), [Reason::ClientFirst]);
}

#[test]
fn other_protocols_open_nothing() {
    for (first, reason) in [
        ("POST / HTTP/1.1\r\nHost: x\r\n\r\n", Reason::Http),
        ("GET / HTTP/1.1\r\n\r\n", Reason::Http),
        ("OPTIONS * HTTP/1.1\r\n\r\n", Reason::Http),
        ("DELETE /x HTTP/1.1\r\n\r\n", Reason::NotFtp),
        ("\r\nPOST / HTTP/1.1\r\n\r\n", Reason::Http),
        ("EHLO x\r\n", Reason::NotFtp),
        ("REGISTER sip:x SIP/2.0\r\n", Reason::NotFtp),
        ("\x16\x03\x01\r\n", Reason::NotFtp),
    ] {
        let mut net = Net::new(Policy::default(), plain());
        net.handshake();
        net.reply("220 ready\r\n");
        net.orig(first);
        net.orig("USER x\r\n");
        port(&mut net);
        assert_eq!(net.table.opened, [], "{first}");
        assert_eq!(net.table.reasons(), [reason], "{first}");
    }
}

#[test]
fn nothing_opens_before_a_login() {
    let mut net = Net::new(Policy::default(), plain());
    net.handshake();
    net.reply("220 ready\r\n");
    port(&mut net);
    assert_eq!(net.table.reasons(), [Reason::NoLogin]);
    net.reply("530 log in\r\n");
    net.orig("USER x\r\n");
    net.reply("230 in\r\n");
    port(&mut net);
    assert_eq!(net.table.ports(), [40000]);
}

#[test]
fn a_multi_line_greeting_is_one() {
    let mut net = Net::new(Policy::default(), plain());
    net.handshake();
    net.reply("220-hello\r\n220 is not the end?\r\n");
    net.orig("USER x\r\n");
    net.reply("331 password\r\n");
    port(&mut net);
    assert_eq!(net.table.ports(), [40000]);
}

#[test]
fn telnet_commands_are_no_text() {
    for (dir, text) in [
        (Dir::Orig, &b"\xff\xf4\xff\xf2PORT 10,0,0,2,156,64\r\n"[..]),
        (Dir::Orig, b"PO\xff\xf1RT 10,0,\xff\xfb\x01 0,2,156,64\r\n"),
        (Dir::Orig, b"NOOP\r\n\xff\xfd\nPORT 10,0,0,2,156,64\r\n"),
        (
            Dir::Reply,
            b"\xff\xfb\x0a227 (198,51,\xff\xf1100,21,156,64)\r\n",
        ),
    ] {
        for size in 1..text.len() + 1 {
            let mut net = logged_in();
            net.orig("PASV\r\n");
            for piece in text.chunks(size) {
                net.send(dir, piece);
            }
            let spaced = text.contains(&b' ') && text.windows(3).any(|w| w == b"\x01 0");
            assert_eq!(net.table.opened.len(), usize::from(!spaced), "{text:?}");
        }
    }
    let mut net = logged_in();
    net.send(Dir::Orig, b"\xff\xf4\xff");
    net.send(Dir::Orig, b"\xf2ABOR\r\nPORT 10,0,0,2,156,64\r\n");
    assert_eq!(net.table.ports(), [40000]);
}

#[test]
fn endless_lines_and_odd_bytes_do_no_harm() {
    let mut net = logged_in();
    let long = [vec![b'A'; 65000], vec![0; 500]].concat();
    net.send(Dir::Orig, &long);
    net.orig("PORT 10,0,0,2,156,64\r\n");
    assert_eq!(net.table.opened, []);
    net.orig("PORT 10,0,0,2,156,65\n");
    net.orig("PASV\r\n");
    let digits = "1,".repeat(30000);
    net.reply(&format!("227 {digits}\r\n"));
    assert_eq!(net.table.ports(), [40001]);
}

#[test]
fn foreign_addresses_follow_the_policy() {
    let cases = [
        ("PORT 10,0,0,9,156,64", "", Some("10.0.0.9")),
        ("EPRT |1|10.0.0.9|40000|", "", Some("10.0.0.9")),
        ("PASV", "227 (10,0,0,9,156,64)", Some("10.0.0.9")),
        ("EPRT |1|999.0.0.9|40000|", "", None),
    ];
    for (command, reply, loose) in cases {
        for third_party in [
            ThirdParty::Refuse,
            ThirdParty::PeerInstead,
            ThirdParty::Allow,
        ] {
            let policy = Policy {
                third_party,
                ..Policy::default()
            };
            let mut net = Net::logged_in(policy, plain());
            net.orig(&format!("{command}\r\n"));
            net.reply(&format!("{reply}\r\n"));
            let want = match third_party {
                ThirdParty::Refuse => None,
                ThirdParty::PeerInstead => (!reply.is_empty()).then_some(SERVER),
                ThirdParty::Allow => loose,
            };
            let dests: Vec<_> = net.table.opened.iter().map(|e| e.dest).collect();
            assert_eq!(dests, want.map(addr).into_iter().collect::<Vec<_>>());
            if want.is_none() {
                let reason = net.table.reasons().first().copied();
                assert!(matches!(
                    reason,
                    Some(Reason::ThirdParty | Reason::BadNumber)
                ));
            }
        }
    }
}

#[test]
fn privileged_ports_are_refused() {
    for (min_port, port, opens) in [
        (1024, 1023, false),
        (1024, 1024, true),
        (1, 22, true),
        (0, 0, false),
        (50000, 40000, false),
    ] {
        let policy = Policy {
            min_port,
            ..Policy::default()
        };
        let mut net = Net::logged_in(policy, plain());
        net.orig("EPSV\r\n");
        net.reply(&format!("229 (|||{port}|)\r\n"));
        assert_eq!(net.table.opened.len(), usize::from(opens), "{port}");
        if !opens {
            assert_eq!(net.table.reasons(), [Reason::PrivilegedPort]);
        }
    }
}

#[test]
fn a_refusal_drops_the_packet_by_policy_and_forgets_it() {
    let policy = Policy {
        on_refusal: OnRefusal::Drop,
        ..Policy::default()
    };
    let mut net = Net::logged_in(policy, plain());
    let before = net.data;
    let out = net.orig("PORT 9,9,9,9,156,64\r\n");
    assert_eq!(out.verdict, Verdict::Drop(Reason::ThirdParty));
    assert_eq!(net.data, before);
}

#[test]
fn a_port_the_server_refuses_is_withdrawn() {
    let mut net = logged_in();
    port(&mut net);
    net.reply("500 no\r\n");
    assert_eq!(net.table.withdrawn.len(), 1);
    assert_eq!(net.table.withdrawn[0].first, 40000);
    // Another answer is not the port's.
    let mut net = logged_in();
    port(&mut net);
    net.reply("200 fine\r\n");
    net.orig("LIST x\r\n");
    net.reply("550 no such file\r\n");
    assert_eq!(net.table.withdrawn, []);
}

#[test]
fn the_servers_consent_opens_by_policy() {
    let policy = Policy {
        active_opens: ActiveOpens::OnReply,
        ..Policy::default()
    };
    let mut net = Net::logged_in(policy, plain());
    port(&mut net);
    assert_eq!(net.table.opened, []);
    net.reply("200 fine\r\n");
    assert_eq!(net.table.ports(), [40000]);
    port(&mut net);
    net.reply("500 no\r\n200 what\r\n");
    assert_eq!(net.table.opened.len(), 1);
}

#[test]
fn an_unused_expectation_makes_room_for_the_next() {
    let mut net = logged_in();
    for (n, used) in [(0, false), (1, true), (2, false)] {
        net.orig("EPSV\r\n");
        net.reply(&format!("229 (|||{}|)\r\n", 40000 + n));
        net.orig("LIST\r\n");
        net.reply(if used {
            "150 here\r\n226 done\r\n"
        } else {
            "425 no\r\n"
        });
    }
    let gone: Vec<_> = net.table.withdrawn.iter().map(|e| e.first).collect();
    assert_eq!(gone, [40000]);
}

#[test]
fn the_end_of_the_connection_ends_its_expectations() {
    let fin = Flags {
        fin: true,
        ..Flags::default()
    };
    let rst = Flags {
        rst: true,
        ..Flags::default()
    };
    let mut net = logged_in();
    let (c, s) = (
        net.streams[0].seq(net.streams[0].sent.len()),
        net.streams[1].seq(net.streams[1].sent.len()),
    );
    net.raw(Dir::Orig, c, None, fin, b"");
    assert_eq!(net.table.ended, 0);
    net.raw(Dir::Reply, s, None, fin, b"");
    net.raw(Dir::Reply, s, None, fin, b"");
    assert_eq!(net.table.ended, 1);
    net.raw(Dir::Orig, c, None, rst, b"");
    assert_eq!(net.table.ended, 2);
}

#[test]
fn rfc_1639_is_recognised_only() {
    let mut net = logged_in();
    net.orig("LPRT 4,4,10,0,0,2,2,156,64\r\nLPSV\r\n");
    net.reply("228 (4,4,198,51,100,21,2,156,64)\r\n");
    assert_eq!(net.table.reasons(), [Reason::Lprt, Reason::Lprt]);
}
