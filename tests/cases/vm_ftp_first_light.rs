//! A transfer through our own helper, in a real kernel: the thinnest slice
//! through everything.

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::suite::{Case, World};
use lab::ours::{self, Helper, Watch};
use lab::require::Need;
use lab::topology::Family;

const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::Server("vsftpd"),
    Need::Program("curl"),
];

/// Both families, active and passive, as curl does them.
const CASES: [(Mode, Family); 6] = [
    (Mode::Pasv, Family::V4),
    (Mode::Epsv, Family::V4),
    (Mode::Port, Family::V4),
    (Mode::Eprt, Family::V4),
    (Mode::Epsv, Family::V6),
    (Mode::Eprt, Family::V6),
];

fn cases() -> impl Iterator<Item = Case> {
    CASES
        .map(|(mode, family)| Case {
            client: Client::Curl,
            mode,
            family,
        })
        .into_iter()
}

#[test]
fn data_passes_because_of_our_helper_and_not_without() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    for case in cases() {
        world.is_refused(case)?;
    }
    let helper = Helper::start(fw, &[])?;
    ours::run(fw, "nft-ftp-ruleset", &["load"])?;
    let watch = Watch::start(fw, &helper)?;
    for (n, case) in cases().enumerate() {
        world.passes(case).with_context(|| helper.log())?;
        // A list, a download and an upload: an expectation each, consumed
        // by its data connection.
        watch.wait_for("new", 3 * (n + 1))?;
        let gone = watch.wait_for("destroy", 3 * (n + 1))?;
        ensure!(gone.len() == 3 * (n + 1), "{case}: {gone:?}");
    }
    helper.stop()?;
    // Disabled with the daemon: control connections still pass, data fails.
    for case in cases() {
        world.is_refused(case)?;
    }
    Ok(())
}

#[test]
fn the_helper_is_disabled_when_its_daemon_ends() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    let helper = Helper::start(fw, &[])?;
    let list = || ours::run(fw, "nft-ftp-helper", &["list"]);
    ensure!(list()?.contains("enabled"), "{}", list()?);
    helper.stop()?;
    ensure!(!list()?.contains("enabled"), "{}", list()?);
    Ok(())
}
