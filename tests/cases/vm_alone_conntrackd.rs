//! What conntrackd's own FTP helper opens when somebody tries: the column
//! "conntrackd" of docs/security.md. It needs the name of the kernel's helper,
//! which is gone for good then, so this has a VM of its own, with --full.

use anyhow::{Result, ensure};
use lab::conntrackd::Conntrackd;
use lab::firewall::DEFAULT_DROP;
use lab::ftp::attack::unlike_the_table;
use lab::require::{Need, in_vm};
use lab::topology::Topology;

/// Today's behaviour, also where it is none to be wished for: the kernel's.
#[test]
fn conntrackds_helper_opens_what_the_table_says() -> Result<()> {
    lab::require!(
        Need::Root,
        Need::Cthelper,
        Need::NftQueue,
        Need::QueueConntrack,
        Need::Program("conntrack"),
        Need::Program("conntrackd")
    );
    ensure!(in_vm(), "this would unload a module of a machine in use");
    let topology = Topology::new()?;
    topology.fw.nft(DEFAULT_DROP)?;
    let rival = Conntrackd::start(&topology.fw)?;
    let wrong = unlike_the_table(&topology, "conntrackd")?;
    ensure!(wrong.is_empty(), "otherwise: {wrong:?}\n{}", rival.log());
    rival.stop(&topology.fw)
}
