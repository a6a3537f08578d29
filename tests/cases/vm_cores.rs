//! Daemons that crash leave no core file: ctsync's memory has keys in it, and
//! the helper's the passwords that packets carry.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, Result, ensure};
use lab::command::command;
use lab::nodes::Nodes;
use lab::ours::{self, Helper};
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::{Need, in_vm};
use lab::wait::{patience, until};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::Signal;

const DIR: &str = "/run/lab-cores";
const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// Collects core files, as long as it lives.
struct Cores {
    /// The kernel's pattern before.
    pattern: String,
}

impl Cores {
    fn collect(pattern: &str) -> Result<Self> {
        ensure!(in_vm(), "core_pattern is the whole machine's");
        let _ = fs::remove_dir_all(DIR);
        fs::create_dir(DIR)?;
        fs::set_permissions(DIR, fs::Permissions::from_mode(0o777))?;
        let handler = format!("#!/bin/sh\nexec cat >{DIR}/core.$1\n");
        fs::write("/run/lab-core-handler", handler)?;
        fs::set_permissions("/run/lab-core-handler", fs::Permissions::from_mode(0o755))?;
        // Whatever is started inherits it.
        setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY)?;
        let before = fs::read_to_string(PATTERN)?;
        fs::write(PATTERN, pattern)?;
        Ok(Self { pattern: before })
    }

    fn found() -> Result<Vec<String>> {
        let entries = fs::read_dir(DIR)?;
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        Ok(entries.map(|e| e.map(name)).collect::<Result<_, _>>()?)
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        if let Err(error) = fs::write(PATTERN, &self.pattern) {
            eprintln!("{PATTERN}: {error}");
        }
    }
}

/// It ended by the signal, and the kernel made no core file.
fn left_none(what: &str, signal: Signal, status: ExitStatus) -> Result<()> {
    let by = status.signal();
    ensure!(by == Some(signal as i32), "{what}: {status}");
    ensure!(!status.core_dumped(), "{what}: {status}");
    let found = Cores::found()?;
    ensure!(found.is_empty(), "{what}: {found:?}");
    Ok(())
}

/// A program that doesn't mind leaves one: the test can fail.
fn others_leave_one(pair: &Pair, signal: Signal) -> Result<()> {
    let mut sleep = Peer::start(&pair.client, "sleep", command("sleep", &["1000"]))?;
    let pid = sleep.pid();
    let status = sleep.crash(signal)?;
    ensure!(status.core_dumped(), "sleep: {status}");
    // A handler may still be writing it.
    until("a core file", patience(), || {
        let file = Path::new(DIR).join(format!("core.{pid}"));
        let length = fs::metadata(&file).ok()?.len();
        (length > 0).then(|| fs::remove_file(file))
    })??;
    Ok(())
}

fn crash_everything(pair: &Pair, nodes: &Nodes, pattern: &str) -> Result<()> {
    let _cores = Cores::collect(pattern)?;
    for (node, signal) in [(Node::One, Signal::SIGSEGV), (Node::Two, Signal::SIGABRT)] {
        let mut ctsync = nodes.start(pair, node)?;
        let helper = Helper::start(pair.fw(node), &[])?;
        others_leave_one(pair, signal)?;
        left_none("ctsync", signal, ctsync.crash(signal)?)?;
        left_none("nft-ftp-helper", signal, helper.crash(signal)?)?;
        ours::run(pair.fw(node), "nft-ftp-helper", &["disable"])?;
    }
    Ok(())
}

/// Into a file, and to a program that keeps it: for such a one the kernel
/// doesn't look at the limit (core(5)).
#[test]
fn a_daemon_that_crashes_leaves_no_core_file() -> Result<()> {
    lab::require!(Need::OurHelper, Need::Built("ctsync"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    for pattern in [&format!("{DIR}/core.%p"), "|/run/lab-core-handler %p"] {
        crash_everything(&pair, &nodes, pattern).with_context(|| pattern.to_owned())?;
    }
    Ok(())
}
