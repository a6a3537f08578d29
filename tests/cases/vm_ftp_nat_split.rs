//! Announcements in pieces under NAT, in a real kernel: each piece must be
//! acknowledged before the next is sent, and what the other end reads must
//! lead a data connection to the right host.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use lab::firewall::{self, DEFAULT_DROP, Nat};
use lab::ftp::script::{Dialogue, connect};
use lab::netns::Namespace;
use lab::ours::{self, Helper};
use lab::require::Need;
use lab::topology::{Family, Topology, client_address, server_address};

/// The endpoint in a line, leading zeros allowed.
fn endpoint(line: &str, family: Family) -> Option<SocketAddr> {
    if let Some((_, rest)) = line.split_once("EPRT |") {
        let mut fields = rest.split('|').skip(1);
        let host: IpAddr = fields.next()?.parse().ok()?;
        return Some(SocketAddr::new(host, fields.next()?.parse().ok()?));
    }
    if let Some((_, rest)) = line.split_once("(|||") {
        let port = rest.split('|').next()?.parse().ok()?;
        return Some(SocketAddr::new(server_address(family), port));
    }
    let start = line.get(4..)?.find(|c: char| c.is_ascii_digit())? + 4;
    let text = line.get(start..)?.trim_end_matches(['\r', '\n', '.', ')']);
    let n: Vec<u16> = text
        .split(',')
        .map(|f| f.parse().ok())
        .collect::<Option<_>>()?;
    let [a, b, c, d, high, low] = n.as_slice() else {
        return None;
    };
    let host: IpAddr = format!("{a}.{b}.{c}.{d}").parse().ok()?;
    Some(SocketAddr::new(host, high * 256 + low))
}

/// A connection from one end to what it read reaches the other.
fn reaches(from: &Namespace, to: &Namespace, at: SocketAddr, listen: SocketAddr) -> Result<()> {
    let listener = to.enter(|| TcpListener::bind(listen))?;
    let made = connect(from, at)?;
    let (accepted, _) = listener.accept()?;
    ensure!(made.peer_addr()?.port() == at.port() && accepted.local_addr()? == listen);
    Ok(())
}

fn split(nat: Nat, family: Family, size: usize) -> Result<()> {
    lab::require!(Need::OurHelper);
    let t = Topology::new()?;
    t.fw.nft(DEFAULT_DROP)?;
    t.fw.nft(&firewall::nat_rules(nat))?;
    let helper = Helper::start(&t.fw, &[])?;
    ours::run(&t.fw, "nft-ftp-ruleset", &["load"])?;
    let mut dialogue = Dialogue::open(&t, nat, family)?;
    dialogue.login()?;
    let (client, server) = (client_address(family), server_address(family));
    let comma = |a: IpAddr| a.to_string().replace('.', ",");
    for round in 0..3u16 {
        let port = 40000 + round;
        let (high, low) = (port / 256, port % 256);
        let (active, asked, answer) = match family {
            Family::V4 => (
                format!("PORT {},{high},{low}\r\n", comma(client)),
                "PASV\r\n",
                format!("227 Passive ({},{high},{low}).\r\n", comma(server)),
            ),
            Family::V6 => (
                format!("EPRT |2|{client}|{port}|\r\n"),
                "EPSV\r\n",
                format!("229 Extended Passive (|||{port}|)\r\n"),
            ),
        };
        let pieces: Vec<_> = active.as_bytes().chunks(size).collect();
        dialogue
            .client
            .send_all(&pieces)
            .with_context(|| helper.log())?;
        let line = dialogue.server.line()?;
        let at = endpoint(&line, family).with_context(|| line.clone())?;
        reaches(&t.server, &t.client, at, SocketAddr::new(client, port)).with_context(|| line)?;
        dialogue.reply("200 ok\r\n")?;
        dialogue.command(asked)?;
        let pieces: Vec<_> = answer.as_bytes().chunks(size).collect();
        dialogue
            .server
            .send_all(&pieces)
            .with_context(|| helper.log())?;
        let line = dialogue.client.line()?;
        let mut at = endpoint(&line, family).with_context(|| line.clone())?;
        if family == Family::V6 {
            at.set_ip(nat.target(family));
        }
        reaches(&t.client, &t.server, at, SocketAddr::new(server, port)).with_context(|| line)?;
        dialogue.command("NOOP\r\n")?;
        dialogue.reply("200 ok\r\n")?;
    }
    Ok(())
}

fn every(nat: Nat) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        for size in [1, 9, 17] {
            split(nat, family, size).with_context(|| format!("{family:?} in pieces of {size}"))?;
        }
    }
    Ok(())
}

#[test]
fn split_announcements_are_followed_under_snat() -> Result<()> {
    every(Nat::Snat)
}

#[test]
fn split_announcements_are_followed_under_dnat() -> Result<()> {
    every(Nat::Dnat)
}

#[test]
fn split_announcements_are_followed_under_both_nats() -> Result<()> {
    every(Nat::Both)
}
