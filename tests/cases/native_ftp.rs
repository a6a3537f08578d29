//! Real clients and a real server through a firewall that drops by default,
//! with the kernel's own FTP helper: proves the laboratory, and is what the
//! same suite with our helper is compared with.

use anyhow::Result;
use lab::firewall::{KERNEL_HELPER, Nat};
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::suite::{Case, World};
use lab::require::Need;
use lab::topology::Family;

const NEEDS: [Need; 2] = [Need::Root, Need::KernelFtp];

/// All transfers of one client in one mode pass with the helper; the same
/// download is refused without it.
fn check(client: Client, mode: Mode) -> Result<()> {
    let cases = || Case::all().filter(|case| case.client == client && case.mode == mode);
    assert!(cases().count() > 0, "{client:?} can't do {mode:?}");
    let world = World::new(Nat::None)?;
    for case in cases() {
        world.is_refused(case)?;
    }
    world.topology.fw.nft(KERNEL_HELPER)?;
    for case in cases() {
        world.passes(case)?;
    }
    Ok(())
}

macro_rules! suite {
    ($($name:ident: $client:ident $mode:ident;)+) => {$(
        #[test]
        fn $name() -> Result<()> {
            let client = Client::$client;
            lab::require!(NEEDS[0], NEEDS[1], Need::Server("vsftpd"), Need::Program(client.program()));
            check(client, Mode::$mode)
        }
    )+};
}

suite! {
    curl_pasv: Curl Pasv;
    curl_epsv: Curl Epsv;
    curl_port: Curl Port;
    curl_eprt: Curl Eprt;
    lftp_pasv: Lftp Pasv;
    lftp_epsv: Lftp Epsv;
    lftp_port: Lftp Port;
    lftp_eprt: Lftp Eprt;
    tnftp_pasv: Tnftp Pasv;
    tnftp_epsv: Tnftp Epsv;
    tnftp_port: Tnftp Port;
    tnftp_eprt: Tnftp Eprt;
    ftplib_pasv: Ftplib Pasv;
    ftplib_epsv: Ftplib Epsv;
    ftplib_port: Ftplib Port;
    ftplib_eprt: Ftplib Eprt;
}

/// The list of what can't be done is not growing behind our backs.
#[test]
fn only_what_the_programs_cannot_do_is_left_out() {
    // 4 clients, 4 modes, 2 families, less PASV and PORT over IPv6 (8) and
    // lftp's EPRT over IPv4.
    assert_eq!(Case::all().count(), 4 * 4 * 2 - 8 - 1);
    assert!(!Client::Lftp.supports(Mode::Eprt, Family::V4));
}
