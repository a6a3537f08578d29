//! The VM itself: is it what the tests in it take for granted?

use anyhow::{Result, ensure};
use lab::firewall::KERNEL_HELPER;
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::suite::{Case, World};
use lab::require::{Need, in_vm};
use lab::topology::Family;

#[test]
fn the_kernel_has_everything_the_programs_need() {
    // Asserted, not required: if one of these were skipped, so would be
    // everything the VM is for.
    for need in [
        Need::Root,
        Need::Cthelper,
        Need::NftQueue,
        Need::QueueConntrack,
        Need::KernelFtp,
        Need::NftCtExpectation,
    ] {
        assert_eq!(need.missing(), None);
    }
}

#[test]
fn tests_can_tell_that_they_run_in_it() {
    assert!(in_vm());
}

/// The same suite as natively, one case: namespaces, server, client and the
/// kernel's helper all work here.
#[test]
fn a_transfer_passes_with_the_kernels_helper_and_not_without() -> Result<()> {
    lab::require!(Need::Server("vsftpd"), Need::Program("curl"));
    let world = World::new(lab::firewall::Nat::None)?;
    let case = Case {
        client: Client::Curl,
        mode: Mode::Pasv,
        family: Family::V4,
    };
    world.is_refused(case)?;
    world.topology.fw.nft(KERNEL_HELPER)?;
    world.passes(case)?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(kernel.contains("amd64"), "a Debian kernel: {kernel}");
    Ok(())
}
