//! conntrackd's own FTP helper, for the columns "conntrackd" of the docs: what
//! it opens when somebody tries, and what it makes of the scripted dialogues.
//! Today's behaviour, also where it is none to be wished for.
//!
//! It needs the name of the kernel's helper, which is gone for good then, so
//! this has a VM of its own, with --full.

use anyhow::{Context, Result, ensure};
use lab::conntrackd::Conntrackd;
use lab::firewall::DEFAULT_DROP;
use lab::ftp::adversary::{self, Case};
use lab::ftp::attack::unlike_the_table;
use lab::require::{Need, in_vm};
use lab::topology::Topology;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Cthelper,
    Need::NftQueue,
    Need::QueueConntrack,
    Need::Program("conntrack"),
    Need::Program("conntrackd"),
];

/// Does something to a firewall with conntrackd's helper.
fn under_conntrackd(f: impl FnOnce(&Topology) -> Result<()>) -> Result<()> {
    ensure!(in_vm(), "this would unload a module of a machine in use");
    let topology = Topology::new()?;
    topology.fw.nft(DEFAULT_DROP)?;
    let rival = Conntrackd::start(&topology.fw)?;
    let done = f(&topology).with_context(|| rival.log());
    rival.stop(&topology.fw)?;
    done
}

/// docs/security.md.
#[test]
fn conntrackds_helper_opens_what_the_table_says() -> Result<()> {
    lab::require!(needs NEEDS);
    under_conntrackd(|topology| {
        let wrong = unlike_the_table(topology, "conntrackd")?;
        ensure!(wrong.is_empty(), "otherwise: {wrong:?}");
        Ok(())
    })
}

/// docs/ftp-helpers.md.
#[test]
fn conntrackds_helper_does_what_the_table_says() -> Result<()> {
    lab::require!(needs NEEDS);
    under_conntrackd(|topology| adversary::play_all("conntrackd", topology, Case::conntrackd))
}
