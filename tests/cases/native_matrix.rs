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

macro_rules! matrix {
    ($($name:ident: $program:ident $nat:ident;)+) => {$(
        #[test]
        fn $name() -> Result<()> {
            run(Program::$program, Nat::$nat)
        }
    )+};
}

matrix! {
    vsftpd_without_nat: Vsftpd None;
    vsftpd_with_snat: Vsftpd Snat;
    vsftpd_with_dnat: Vsftpd Dnat;
    vsftpd_with_both: Vsftpd Both;
    proftpd_without_nat: Proftpd None;
    proftpd_with_snat: Proftpd Snat;
    proftpd_with_dnat: Proftpd Dnat;
    proftpd_with_both: Proftpd Both;
    pure_ftpd_without_nat: PureFtpd None;
    pure_ftpd_with_snat: PureFtpd Snat;
    pure_ftpd_with_dnat: PureFtpd Dnat;
    pure_ftpd_with_both: PureFtpd Both;
}
