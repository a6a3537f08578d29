//! What the kernel's own FTP helper opens when somebody tries: the measure
//! for ours (`vm_attack`), and the column "kernel" of docs/security.md.

use anyhow::{Result, ensure};
use lab::firewall::{DEFAULT_DROP, KERNEL_HELPER, Nat};
use lab::ftp::attack::{RawClient, is_expected, opened_by_ftp_elsewhere, unlike_the_table};
use lab::ftp::script::{Dialogue, moment};
use lab::require::Need;
use lab::topology::{Family, Topology};

const NEEDS: &[Need] = &[Need::Root, Need::KernelFtp, Need::Program("conntrack")];

fn world() -> Result<Topology> {
    let topology = Topology::new()?;
    topology.fw.nft(DEFAULT_DROP)?;
    topology.fw.nft(KERNEL_HELPER)?;
    Ok(topology)
}

/// Today's behaviour of the kernel, also where it is none to be wished for.
#[test]
fn the_kernels_helper_opens_what_the_table_says() -> Result<()> {
    lab::require!(needs NEEDS);
    let topology = world()?;
    let wrong = unlike_the_table(&topology, "kernel")?;
    ensure!(wrong.is_empty(), "otherwise: {wrong:?}");
    Ok(())
}

/// The receiver has these bytes already, as other text. The kernel's helper
/// does not take the second version for a line, for it begins where no line
/// has ended.
#[test]
fn another_text_in_the_same_place_opens_nothing_in_the_kernels_helper() -> Result<()> {
    lab::require!(needs NEEDS);
    let topology = world()?;
    let mut client = RawClient::connect(&topology, 40999)?;
    client.send(0, b"NOOP 10,0,1,2,175,200\r\n")?;
    client.wait_received("200\r\n")?;
    client.send(-23, b"PORT 10,0,1,2,175,200\r\n")?;
    client.send(0, b"QUIT\r\n")?;
    ensure!(client.wait_received("QUIT\r\n")? == "QUIT\r\n");
    ensure!(!is_expected(&topology.fw)?, "it does");
    Ok(())
}

#[test]
fn ftp_on_another_port_opens_nothing_in_the_kernels_helper() -> Result<()> {
    lab::require!(needs NEEDS);
    let topology = world()?;
    let opened = opened_by_ftp_elsewhere(&topology)?;
    ensure!(opened.is_empty(), "opened on {opened:?}");
    Ok(())
}

/// A port was announced and not used, the session has ended, and another one
/// gets the same port: the kernel's helper can't expect it twice, drops the
/// reply, and whatever is sent again (nf_conntrack_ftp.c, `help`), as long as it
/// remembers the first session.
#[test]
fn a_port_announced_before_in_vain_stalls_the_kernels_helper() -> Result<()> {
    const REPLY: &str = "227 Entering Passive Mode (10,0,2,2,160,40).\r\n";
    const OTHER: &str = "227 Entering Passive Mode (10,0,2,2,160,41).\r\n";
    lab::require!(needs NEEDS);
    let topology = world()?;
    let session = || -> Result<Dialogue<'_>> {
        let mut session = Dialogue::open(&topology, Nat::None, Family::V4)?;
        session.login()?;
        session.command("PASV\r\n")?;
        Ok(session)
    };
    session()?.reply(REPLY)?;
    session()?.reply(OTHER)?;
    let mut second = session()?;
    second.server.write(REPLY.as_bytes())?;
    let got = second.server.acknowledged(moment());
    ensure!(got.is_err(), "it passes");
    Ok(())
}
