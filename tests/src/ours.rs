//! The programs of this workspace on a firewall: the helper daemon, its
//! watcher, and the ruleset.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::command::command;
use crate::netns::Namespace;
use crate::peer::Peer;
use crate::programs::built;
use crate::wait::until_true;

/// A program of this workspace with arguments.
///
/// # Errors
/// If it isn't built.
pub fn program(name: &str, args: &[&str]) -> Result<Command> {
    Ok(command(&built(name)?.to_string_lossy(), args))
}

/// Runs a program of this workspace that must succeed; what it printed.
///
/// # Errors
/// With all it said.
pub fn run(at: &Namespace, name: &str, args: &[&str]) -> Result<String> {
    at.finish(program(name, args)?)?
        .success()
        .with_context(|| format!("in namespace {}", at.name()))
}

/// A running `nft-ftp-helper run`.
#[derive(Debug)]
pub struct Helper {
    /// The daemon; `None` once stopped.
    peer: Option<Peer>,
    /// Holds its control socket.
    dir: TempDir,
}

impl Helper {
    /// Starts the daemon with options besides `--control`, and waits for its
    /// `READY=1`.
    ///
    /// # Errors
    /// With its log, if it doesn't get there.
    pub fn start(fw: &Namespace, options: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir().context("temporary directory")?;
        let ready = dir.path().join("notify");
        let notify = UnixDatagram::bind(&ready).context("notification socket")?;
        notify.set_nonblocking(true)?;
        let control = dir.path().join("control");
        let mut command = program("nft-ftp-helper", &["run"])?;
        command
            .arg("--control")
            .arg(&control)
            .args(options)
            .env("NOTIFY_SOCKET", &ready);
        let mut peer = Peer::start(fw, "nft-ftp-helper", command)?;
        peer.wait_until("READY=1", || is_ready(&notify))?;
        Ok(Self {
            peer: Some(peer),
            dir,
        })
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Its process id; 0 once stopped.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.peer.as_ref().map_or(0, Peer::pid)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let peer = self.peer.as_ref().context("the helper is stopped")?;
        peer.signal(signal)
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.peer.as_ref().map(Peer::log).unwrap_or_default()
    }

    /// What `nft-ftp-helper status --json` says.
    ///
    /// # Errors
    /// If the daemon doesn't answer, or not in JSON.
    pub fn status(&self, fw: &Namespace) -> Result<Value> {
        let control = self.control();
        let control = control.to_string_lossy();
        let args = ["status", "--json", "--control", &control];
        serde_json::from_str(&run(fw, "nft-ftp-helper", &args)?).context("status --json")
    }

    /// As [`Peer::crash`].
    ///
    /// # Errors
    /// If it lives on.
    pub fn crash(mut self, signal: Signal) -> Result<ExitStatus> {
        let mut peer = self.peer.take().context("the helper is stopped")?;
        peer.crash(signal)
    }

    /// Stops the daemon with SIGTERM; its log.
    ///
    /// # Errors
    /// If it doesn't end, or not with exit status 0.
    pub fn stop(mut self) -> Result<String> {
        let peer = self.peer.take().context("the helper is stopped already")?;
        let (status, log) = peer.stop()?;
        anyhow::ensure!(status.success(), "nft-ftp-helper: {status}\n{log}");
        Ok(log)
    }
}

/// Takes what has arrived; true if it said that the service is ready.
fn is_ready(notify: &UnixDatagram) -> bool {
    let mut buffer = [0; 4096];
    while let Ok(length) = notify.recv(&mut buffer) {
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        if text.lines().any(|line| line == "READY=1") {
            return true;
        }
    }
    false
}

/// A running `nft-ftp-helper watch --json`.
#[derive(Debug)]
pub struct Watch(Peer);

/// Groups of new and deleted expectations as bits
/// (`NFNLGRP_CONNTRACK_EXP_NEW`, 4, and `_DESTROY`, 6).
const EXPECTATION_GROUPS: u32 = 1 << 3 | 1 << 5;

impl Watch {
    /// Starts it and waits until it listens to expectation events.
    ///
    /// # Errors
    /// With what it said.
    pub fn start(fw: &Namespace, helper: &Helper) -> Result<Self> {
        let mut command = program("nft-ftp-helper", &["watch", "--json"])?;
        command.arg("--control").arg(helper.control());
        let count = || Ok::<_, anyhow::Error>(listeners(&fw.proc_net("netlink")?));
        // The daemon is one.
        let before = count()?;
        let mut peer = Peer::start(fw, "nft-ftp-helper watch", command)?;
        peer.wait_until("a listener to expectation events", || {
            count().is_ok_and(|now| now > before)
        })?;
        Ok(Self(peer))
    }

    /// All events so far, lines that aren't JSON left out.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        let log = self.0.log();
        log.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Waits until there are this many events of a kind ("new", "destroy"),
    /// and returns all of that kind.
    ///
    /// # Errors
    /// With all it has printed.
    pub fn wait_for(&self, kind: &str, count: usize) -> Result<Vec<Value>> {
        let of_kind = || -> Vec<Value> {
            let is_kind = |event: &Value| event.get("event").is_some_and(|name| name == kind);
            self.events().into_iter().filter(is_kind).collect()
        };
        until_true(&format!("{count} events {kind:?}"), || {
            of_kind().len() >= count
        })
        .with_context(|| self.0.log())?;
        Ok(of_kind())
    }
}

/// Counts `NETLINK_NETFILTER` (12) with the groups in /proc/net/netlink: columns
/// sk, Eth, Pid, Groups.
fn listeners(table: &str) -> usize {
    let listens = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let protocol = fields.next();
        let groups = fields
            .nth(1)
            .and_then(|hex| u32::from_str_radix(hex, 16).ok());
        protocol == Some("12")
            && groups.is_some_and(|bits| bits & EXPECTATION_GROUPS == EXPECTATION_GROUPS)
    };
    table.lines().filter(listens).count()
}

#[cfg(test)]
mod tests {
    use super::listeners;

    #[test]
    fn a_listener_is_told_by_its_protocol_and_groups() {
        let table = |protocol: &str, groups: &str| {
            format!("sk Eth Pid Groups Rmem\n0000000000000000 {protocol} 1234 {groups} 0\n")
        };
        assert_eq!(listeners(&table("12", "00000028")), 1);
        assert_eq!(listeners(&table("12", "000000ff")), 1);
        assert_eq!(listeners(&table("12", "00000008")), 0);
        assert_eq!(listeners(&table("0", "00000028")), 0);
    }
}
