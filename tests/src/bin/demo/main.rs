//! `cargo xtask demo`: an FTP transfer through a firewall that drops by
//! default, whose data connection passes only because of nft-ftp-helper.
//!
//! Each line is printed after what it says has been checked; the first check
//! that fails ends the demo with exit status 1. Exit status 3: this kernel
//! lacks something (the runner then boots a VM).

mod screen;
mod story;

use std::process::ExitCode;

use lab::require::Need;

/// What the story takes.
const NEEDS: [Need; 9] = [
    Need::Root,
    Need::Cthelper,
    Need::NftQueue,
    Need::QueueConntrack,
    Need::Server("vsftpd"),
    Need::Program("curl"),
    Need::Program("lftp"),
    Need::Built("nft-ftp-helper"),
    Need::Built("nft-ftp-ruleset"),
];

fn main() -> ExitCode {
    let missing: Vec<_> = NEEDS.iter().filter_map(|need| need.missing()).collect();
    if !missing.is_empty() {
        eprintln!("missing here: {}", missing.join(", "));
        return ExitCode::from(3);
    }
    if std::env::args().any(|argument| argument == "--can-run") {
        return ExitCode::SUCCESS;
    }
    match story::tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen::failed(&error);
            ExitCode::FAILURE
        }
    }
}
