//! The scripted control connection, with the kernel's own FTP helper: what
//! is known of it shows that segments are what the script says.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lab::firewall::{DEFAULT_DROP, KERNEL_HELPER, Nat};
use lab::ftp::adversary;
use lab::ftp::script::{Dialogue, data_passes, moment};
use lab::require::Need;
use lab::topology::{Family, Topology, client_address};

const PORT: &str = "PORT 10,0,1,2,117,48\r\n";
const PORT_NUMBER: u16 = 117 * 256 + 48;

fn world() -> Result<Topology> {
    let topology = Topology::new()?;
    topology.fw.nft(DEFAULT_DROP)?;
    topology.fw.nft(KERNEL_HELPER)?;
    Ok(topology)
}

/// Does the server reach the client's announced port?
fn is_open(topology: &Topology) -> Result<bool> {
    let at = SocketAddr::new(client_address(Family::V4), PORT_NUMBER);
    data_passes(&topology.server, &topology.client, at)
}

#[test]
fn a_port_command_in_one_segment_opens_its_port() -> Result<()> {
    lab::require!(Need::Root, Need::KernelFtp);
    let topology = world()?;
    let mut dialogue = Dialogue::open(&topology, Nat::None, Family::V4)?;
    dialogue.login()?;
    ensure!(!is_open(&topology)?, "open before the command");
    dialogue.command(PORT)?;
    ensure!(is_open(&topology)?, "not open after the command");
    ensure!(!is_open(&topology)?, "open twice");
    Ok(())
}

/// The kernel drops a segment with half a command, and so its
/// retransmissions (nf_conntrack_ftp.c, `help`: "partial" is `NF_DROP`).
#[test]
fn half_a_port_command_stalls_with_the_kernels_helper() -> Result<()> {
    lab::require!(Need::Root, Need::KernelFtp);
    let topology = world()?;
    let mut dialogue = Dialogue::open(&topology, Nat::None, Family::V4)?;
    dialogue.login()?;
    dialogue.client.write(b"PORT 10,0,1,")?;
    let stalled = dialogue.client.acknowledged(moment());
    ensure!(stalled.is_err(), "half a command was delivered");
    Ok(())
}

#[test]
fn halves_of_a_harmless_command_arrive_one_by_one() -> Result<()> {
    lab::require!(Need::Root, Need::KernelFtp);
    let topology = world()?;
    let mut dialogue = Dialogue::open(&topology, Nat::None, Family::V4)?;
    dialogue.login()?;
    dialogue.client.send_all(&[b"SY", b"ST\r", b"\n"])?;
    ensure!(dialogue.server.line()? == "SYST\r\n");
    Ok(())
}

#[test]
fn a_swapped_pair_of_segments_arrives_as_a_whole_stream() -> Result<()> {
    lab::require!(Need::Root, Need::KernelFtp);
    let topology = world()?;
    let mut dialogue = Dialogue::open(&topology, Nat::None, Family::V4)?;
    dialogue.login()?;
    dialogue.client.send_swapped(b"NOOP\r\n", PORT.as_bytes())?;
    ensure!(dialogue.server.line()? == "NOOP\r\n");
    ensure!(dialogue.server.line()? == PORT);
    Ok(())
}

/// Where it stalls, misses or opens what it shouldn't; the documentation's
/// table. A change here is news.
#[test]
fn the_kernels_helper_does_what_the_table_says() -> Result<()> {
    lab::require!(Need::Root, Need::KernelFtp);
    adversary::play_all("nf_conntrack_ftp", &world()?, |case| case.kernel)
}
