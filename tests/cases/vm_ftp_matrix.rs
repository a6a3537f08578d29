//! The whole FTP matrix against our helper: the same as native_matrix runs
//! against the kernel's. A subset that covers each dimension by default, all
//! with `LAB_FULL=1`.

use anyhow::Result;
use lab::firewall::Nat;
use lab::ftp::matrix;
use lab::ftp::server::Program;
use lab::ours::{self, Helper};
use lab::require::Need;

fn run(program: Program, nat: Nat) -> Result<()> {
    lab::require!(
        Need::OurHelper,
        Need::Server(program.name()),
        Need::Program("curl"),
        Need::Program("lftp"),
        Need::Program("tnftp"),
        Need::Program("/usr/bin/python3"),
    );
    matrix::run("nft-ftp-helper", program, nat, |world| {
        let fw = &world.topology.fw;
        let helper = Helper::start(fw, &[])?;
        ours::run(fw, "nft-ftp-ruleset", &["load"])?;
        Ok(helper)
    })
}

lab::matrix_tests!(run);
