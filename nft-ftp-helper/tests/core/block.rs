//! Masked and permanent expectations.

use crate::net::*;
use nft_ftp_helper::core::{Policy, Reason};

fn policy(block: u16, permanent: bool) -> Policy {
    Policy {
        block,
        permanent,
        ..Policy::default()
    }
}

fn epsv(net: &mut Net, port: u16) {
    net.orig("EPSV\r\n");
    net.reply(&format!("229 (|||{port}|)\r\n"));
    net.orig("LIST\r\n");
    net.reply("150 here\r\n226 done\r\n");
}

fn blocks(net: &Net) -> Vec<(u16, u16, bool)> {
    net.table
        .opened
        .iter()
        .map(|e| (e.first, e.count, e.renew))
        .collect()
}

#[test]
fn four_transfers_on_neighbouring_ports_use_one_block() {
    let mut net = Net::logged_in(policy(4, true), plain());
    for port in [30001, 30003, 30000, 30002] {
        epsv(&mut net, port);
    }
    assert_eq!(
        blocks(&net),
        [
            (30000, 4, false),
            (30000, 4, true),
            (30000, 4, true),
            (30000, 4, true)
        ]
    );
    assert!(net.table.opened.iter().all(|e| e.permanent));
    let ports: Vec<_> = net.table.opened[0]
        .each()
        .map(|s| (s.port, s.saved_port))
        .collect();
    assert_eq!(
        ports,
        [(30000, None), (30001, None), (30002, None), (30003, None)]
    );
    epsv(&mut net, 30004);
    assert_eq!(blocks(&net)[4..], [(30004, 4, false)]);
    assert_eq!(net.table.withdrawn, []);
}

#[test]
fn the_old_block_goes_unless_it_is_permanent() {
    let mut net = Net::logged_in(policy(4, false), plain());
    epsv(&mut net, 30001);
    epsv(&mut net, 40001);
    let gone: Vec<_> = net
        .table
        .withdrawn
        .iter()
        .map(|e| (e.first, e.count))
        .collect();
    assert_eq!(gone, [(30000, 4)]);
}

#[test]
fn sizes_are_powers_of_two_up_to_64() {
    for (block, first, count) in [
        (0, 30001, 1),
        (1, 30001, 1),
        (3, 30000, 2),
        (64, 29952, 64),
        (1000, 29952, 64),
    ] {
        let mut net = Net::logged_in(policy(block, false), plain());
        epsv(&mut net, 30001);
        assert_eq!(blocks(&net), [(first, count, false)]);
    }
    let mut net = Net::logged_in(policy(64, false), plain());
    epsv(&mut net, 65535);
    assert_eq!(blocks(&net), [(65472, 64, false)]);
}

#[test]
fn a_block_is_cut_at_the_lowest_permitted_port() {
    let policy = Policy {
        min_port: 30002,
        ..policy(4, false)
    };
    let mut net = Net::logged_in(policy, plain());
    epsv(&mut net, 30003);
    assert_eq!(blocks(&net), [(30002, 2, false)]);
    assert!(net.table.reasons().contains(&Reason::BlockClipped));
}

#[test]
fn under_nat_the_whole_block_moves() {
    let conn = conn("10.0.0.2", "192.0.2.1", "172.16.0.21", "10.0.0.2");
    let mut net = Net::logged_in(policy(4, true), conn);
    net.table.taken = vec![30002, 30004];
    for (port, outer) in [(30001, 30009), (30003, 30011)] {
        net.orig("PASV\r\n");
        net.reply(&format!(
            "227 (172,16,0,21,{},{})\r\n",
            port / 256,
            port % 256
        ));
        assert_eq!(
            net.last_line(nft_ftp_helper::core::Dir::Reply),
            format!("227 (192,0,2,1,{},{})", outer / 256, outer % 256)
        );
    }
    assert_eq!(blocks(&net), [(30008, 4, false), (30008, 4, true)]);
    let saved: Vec<_> = net.table.opened[1].each().map(|s| s.saved_port).collect();
    assert_eq!(saved, [Some(30000), Some(30001), Some(30002), Some(30003)]);
}

#[test]
fn the_search_for_a_free_port_is_bounded_and_wraps() {
    let conn = conn("10.0.0.2", "192.0.2.1", "172.16.0.21", "10.0.0.2");
    let mut net = Net::logged_in(Policy::default(), conn);
    net.table.taken = (65000..=65535).collect();
    net.orig("EPSV\r\n");
    net.reply("229 (|||65530|)\r\n");
    assert_eq!(net.table.ports(), [1024]);
    net.table.taken = (30000..30128).collect();
    net.orig("EPSV\r\n");
    net.reply("229 (|||30000|)\r\n");
    assert_eq!(net.table.reasons().last(), Some(&Reason::PortTaken));
}

#[test]
fn the_source_follows_the_policy() {
    let policy = Policy {
        any_source: true,
        active_source_port: Some(20),
        ..Policy::default()
    };
    let mut net = Net::logged_in(policy, plain());
    net.orig("PORT 10,0,0,2,156,64\r\nEPSV\r\n");
    net.reply("200 fine\r\n229 (|||40001|)\r\n");
    let sources: Vec<_> = net
        .table
        .opened
        .iter()
        .map(|e| (e.source, e.source_port))
        .collect();
    assert_eq!(sources, [(None, Some(20)), (None, None)]);
}
