//! The whole FTP matrix against the kernel's own helper: three servers, four
//! clients, four modes, two families, four kinds of NAT. A subset that
//! covers each dimension by default, all with `LAB_FULL=1`.

use anyhow::Result;
use lab::firewall::{KERNEL_HELPER, Nat};
use lab::ftp::matrix;
use lab::ftp::server::Program;
use lab::require::Need;

fn run(program: Program, nat: Nat) -> Result<()> {
    lab::require!(
        Need::Root,
        Need::KernelFtp,
        Need::Server(program.name()),
        Need::Program("curl"),
        Need::Program("lftp"),
        Need::Program("tnftp"),
        Need::Program("/usr/bin/python3"),
    );
    matrix::run("nf_conntrack_ftp", program, nat, |world| {
        world.topology.fw.nft(KERNEL_HELPER)
    })
}

lab::matrix_tests!(run);
