//! `cargo xtask demo`: FTP transfers through a firewall that drops by
//! default, which pass only because of nft-ftp-helper; and a pair of
//! firewalls of which one dies.
//!
//! Each line is printed after what it says has been checked; the first check
//! that fails ends the demo with exit status 1. Exit status 3: this kernel
//! lacks something (the runner then boots a VM).

mod failover;
mod ours;
mod rival;
mod scene;
mod screen;
mod session;
mod software;
mod transfers;

use std::process::ExitCode;

use anyhow::Result;
use lab::require::{self, Need};

use crate::failover::Story;
use crate::ours::Ours;
use crate::rival::Conntrackd;
use crate::scene::Scene;
use crate::screen::{Failure, Steps, title};
use crate::software::Software;

/// What the story takes.
const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::Server("vsftpd"),
    Need::Program("curl"),
    Need::Program("lftp"),
    Need::Program("conntrack"),
    Need::Program("keepalived"),
    Need::Built("ctsync"),
];

fn main() -> ExitCode {
    if let Some(missing) = require::missing(NEEDS) {
        eprintln!("missing here: {missing}");
        return ExitCode::from(3);
    }
    if std::env::args().any(|argument| argument == "--can-run") {
        return ExitCode::SUCCESS;
    }
    let told = if std::env::args().any(|argument| argument == "--with-conntrackd") {
        compare()
    } else {
        tell()
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            screen::failed(&error);
            ExitCode::FAILURE
        }
    }
}

/// The whole story, with the programs of this workspace.
fn tell() -> Result<()> {
    transfers::tell()?;
    let scene = Scene::new()?;
    let mut ours = Ours::new()?;
    let mut steps = Steps::new(Failure::Ends);
    let told = Story::new(&scene, &mut ours, &mut steps)?.tell();
    told.inspect_err(|_| println!("{}", ours.logs()))?;
    ours.stop(&scene)?;
    title("every line above was checked");
    Ok(())
}

/// The failover, with conntrackd: what fails is told, and is no failure of
/// the demo.
fn compare() -> Result<()> {
    let scene = Scene::new()?;
    let mut conntrackd = Conntrackd::new(&scene);
    let mut steps = Steps::new(Failure::IsTold);
    Story::new(&scene, &mut conntrackd, &mut steps)?.tell()?;
    if std::env::args().any(|argument| argument == "--logs") {
        println!("{}", conntrackd.logs());
    }
    conntrackd.stop(&scene)
}
