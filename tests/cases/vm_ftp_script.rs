//! Our helper against a scripted client and server: segmentation, order, and
//! peers that want more than they should get. What is open is tried with a
//! real connection through a firewall that refuses what isn't related.

use anyhow::{Context, Result, ensure};
use lab::ftp::adversary::{self, Outcome, Wanted};
use lab::require::Need;
use lab::served::Served;
use lab::topology::Family;

fn port_command(port: u16) -> String {
    format!("PORT 10,0,1,2,{},{}\r\n", port / 256, port % 256)
}

fn reply_227(port: u16) -> String {
    let (high, low) = (port / 256, port % 256);
    format!("227 Entering Passive Mode (10,0,2,2,{high},{low}).\r\n")
}

#[test]
fn a_port_command_is_followed_wherever_it_is_split() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V4)?;
    let length = port_command(40000).len();
    for (at, port) in (1..length).zip(40000..) {
        let line = port_command(port);
        let (one, other) = line.as_bytes().split_at(at);
        dialogue.client.send_all(&[one, other])?;
        ensure!(dialogue.server.line()? == line, "split at {at}");
        ensure!(world.client_is_open(port)?, "split at {at}: not open");
        dialogue.reply("200 ok\r\n")?;
    }
    Ok(())
}

#[test]
fn a_227_is_followed_wherever_it_is_split() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V4)?;
    let length = reply_227(41000).len();
    for (at, port) in (1..length).zip(41000..) {
        let line = reply_227(port);
        let (one, other) = line.as_bytes().split_at(at);
        dialogue.command("PASV\r\n")?;
        dialogue.server.send_all(&[one, other])?;
        ensure!(dialogue.client.line()? == line, "split at {at}");
        ensure!(
            world.server_is_open(port, Family::V4)?,
            "split at {at}: not open"
        );
    }
    Ok(())
}

#[test]
fn a_229_byte_by_byte_is_followed_over_ipv6() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V6)?;
    dialogue.command("EPSV\r\n")?;
    let line = "229 Extended Passive (|||42000|)\r\n";
    let bytes: Vec<_> = line.as_bytes().chunks(1).collect();
    dialogue.server.send_all(&bytes)?;
    ensure!(dialogue.client.line()? == line);
    ensure!(world.server_is_open(42000, Family::V6)?, "not open");
    Ok(())
}

#[test]
fn halves_that_arrive_in_the_wrong_order_are_followed() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V4)?;
    let line = port_command(43000);
    let (one, other) = line.as_bytes().split_at(9);
    dialogue.client.send_swapped(one, other)?;
    ensure!(dialogue.server.line()? == line);
    ensure!(world.client_is_open(43000)?, "not open");
    Ok(())
}

#[test]
fn every_line_of_a_segment_counts() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V4)?;
    let line = port_command(44000);
    dialogue
        .client
        .send(format!("NOOP\r\n{line}TYPE I\r\n").as_bytes())?;
    for wanted in ["NOOP\r\n", &line, "TYPE I\r\n"] {
        ensure!(dialogue.server.line()? == wanted);
    }
    ensure!(world.client_is_open(44000)?, "not open");
    Ok(())
}

/// Never a hole, a missed port, or a control connection that hangs.
#[test]
fn whatever_the_script_does_the_safe_and_useful_thing_happens() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    adversary::play_all("nft-ftp-helper", &world.topology, |case| {
        match case.wanted {
            Wanted::Open => Outcome::Follows,
            Wanted::Closed => Outcome::Refuses,
        }
    })
    .with_context(|| world.helper.log())
}

/// It stalls the session with the kernel's helper.
#[test]
fn a_port_announced_before_in_vain_opens_for_the_next_session() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    let session = || -> Result<_> {
        let mut dialogue = world.dialogue(Family::V4)?;
        dialogue.command("PASV\r\n")?;
        dialogue.reply(&reply_227(45000))?;
        Ok(dialogue)
    };
    drop(session()?);
    let _second = session()?;
    ensure!(world.server_is_open(45000, Family::V4)?, "not open");
    Ok(())
}

#[test]
fn privileged_ports_stay_closed() -> Result<()> {
    lab::require!(Need::OurHelper);
    let world = Served::start(&[])?;
    let mut dialogue = world.dialogue(Family::V4)?;
    for port in [22, 1023] {
        dialogue.command(&port_command(port))?;
        ensure!(!world.client_is_open(port)?, "port {port} of the client");
        dialogue.reply("200 ok\r\n")?;
    }
    Ok(())
}
