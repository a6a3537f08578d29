//! ctsync and conntrackd, started, asked and ended the same way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::Client;
use lab::command::{self, command};
use lab::netns::Namespace;
use lab::pair::Node;
use lab::peer::Peer;
use lab::programs::built;
use lab::wait::{patience, until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::book::Who;
use crate::link::address;

/// Who mirrors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This workspace's.
    Ctsync,
    /// The peer: reliable mode, big buffers.
    Conntrackd,
}

impl Kind {
    /// Both, for loops; who comes first changes with the round.
    pub fn in_turn(round: usize) -> [Self; 2] {
        if round % 2 == 0 {
            [Self::Ctsync, Self::Conntrackd]
        } else {
            [Self::Conntrackd, Self::Ctsync]
        }
    }

    /// Whose column it is.
    pub fn who(self) -> Who {
        match self {
            Self::Ctsync => Who::Ours,
            Self::Conntrackd => Who::Peer,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ctsync => "ctsync",
            Self::Conntrackd => "conntrackd",
        }
    }
}

/// When states go into the other kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apply {
    /// On command.
    Commit,
    /// As they arrive.
    Immediate,
}

/// Configurations of two nodes.
#[derive(Debug)]
pub struct Setup {
    kind: Kind,
    dir: TempDir,
}

/// A running node.
#[derive(Debug)]
pub struct Daemon {
    peer: Peer,
    kind: Kind,
    config: PathBuf,
    control: PathBuf,
}

impl Setup {
    /// Writes keys and configurations; stock settings for ours.
    ///
    /// # Errors
    /// If keys can't be made.
    pub fn new(kind: Kind, apply: Apply) -> Result<Self> {
        let this = Self {
            kind,
            dir: tempfile::tempdir()?,
        };
        match kind {
            Kind::Ctsync => this.write_ctsync(apply)?,
            Kind::Conntrackd => this.write_conntrackd(apply)?,
        }
        Ok(this)
    }

    fn file(&self, node: Node, what: &str) -> PathBuf {
        let number = node.host();
        self.dir.path().join(format!("{number}.{what}"))
    }

    fn write_ctsync(&self, apply: Apply) -> Result<()> {
        let apply = match apply {
            Apply::Commit => "commit",
            Apply::Immediate => "immediate",
        };
        let mut public = Vec::new();
        for node in Node::BOTH {
            let key = self.file(node, "key").display().to_string();
            let mut keygen = command(&built("ctsync")?.display().to_string(), &["keygen"]);
            keygen.arg(key);
            let made = command::run(keygen, patience())?.success()?;
            public.push(made.trim().to_owned());
        }
        for (node, public) in Node::BOTH.into_iter().zip(public.iter().rev()) {
            let (here, there) = (address(node), address(node.peer()));
            let text = format!(
                "node = \"fw-{}\"\nprivate-key = \"{}\"\ncontrol = \"{}\"\napply = \"{apply}\"\n\
                 peer-timeout = \"1s\"\n\
                 [[link]]\nbind = \"{here}:3780\"\n\
                 [[peer]]\nname = \"fw-{}\"\npublic-key = \"{public}\"\n\
                 endpoints = [\"{there}:3780\"]\n",
                node.host(),
                self.file(node, "key").display(),
                self.file(node, "sock").display(),
                node.peer().host(),
            );
            std::fs::write(self.file(node, "conf"), text)?;
        }
        Ok(())
    }

    /// Its best settings: buffers so big that nothing is lost.
    fn write_conntrackd(&self, apply: Apply) -> Result<()> {
        let external = match apply {
            Apply::Commit => "Off",
            Apply::Immediate => "On",
        };
        for node in Node::BOTH {
            let (here, there) = (address(node), address(node.peer()));
            let text = format!(
                "Sync {{\n Mode FTFW {{\n ResendQueueSize 4194304\n \
                 DisableExternalCache {external}\n }}\n \
                 UDP {{\n IPv4_address {here}\n IPv4_Destination_Address {there}\n Port 3780\n \
                 Interface sync\n SndSocketBuffer 67108864\n RcvSocketBuffer 67108864\n \
                 Checksum on\n }}\n Options {{\n ExpectationSync on\n }}\n}}\n\
                 General {{\n HashSize 524288\n HashLimit 4194304\n LogFile off\n Syslog off\n \
                 LockFile {}\n UNIX {{\n Path {}\n }}\n NetlinkBufferSize 268435456\n \
                 NetlinkBufferSizeMaxGrowth 1073741824\n NetlinkOverrunResync on\n}}\n",
                self.file(node, "lock").display(),
                self.file(node, "sock").display(),
            );
            std::fs::write(self.file(node, "conf"), text)?;
        }
        Ok(())
    }

    /// Starts a node and waits until it answers.
    ///
    /// # Errors
    /// With its log.
    pub fn start(&self, at: &Namespace, node: Node) -> Result<Daemon> {
        let config = self.file(node, "conf");
        let text = config.display().to_string();
        let peer = match self.kind {
            Kind::Ctsync => {
                let program = built("ctsync")?.display().to_string();
                let run = command(&program, &["run", "--config", &text]);
                let mut peer = Peer::start(at, "ctsync", run)?;
                peer.wait_for_line("ready")?;
                peer
            }
            Kind::Conntrackd => {
                let run = command("conntrackd", &["-C", &text]);
                let mut peer = Peer::start(at, "conntrackd", run)?;
                peer.wait_for_line("starting in console mode")?;
                peer
            }
        };
        Ok(Daemon {
            peer,
            kind: self.kind,
            config,
            control: self.file(node, "sock"),
        })
    }
}

/// Entries of both caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Own.
    pub internal: u64,
    /// The peer's.
    pub external: u64,
}

impl Daemon {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.peer.pid()
    }

    /// `status` of ctsync.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub fn status(&self) -> Result<Value> {
        self.ask(&json!({"op": "status"}))
    }

    fn ask(&self, request: &Value) -> Result<Value> {
        let answer = Client::connect(&self.control)?.request(request)?;
        Ok(answer.get("result").cloned().unwrap_or(answer))
    }

    /// Sizes of its caches.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub fn counts(&self) -> Result<Counts> {
        match self.kind {
            Kind::Ctsync => {
                let status = self.status()?;
                let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64);
                let (internal, external) = (number("/internal/flows"), number("/external/flows"));
                let both = internal.zip(external);
                let (internal, external) = both.with_context(|| status.to_string())?;
                Ok(Counts { internal, external })
            }
            Kind::Conntrackd => {
                let text = self.command(&["-s"])?;
                let mut numbers = text
                    .lines()
                    .filter_map(|l| l.strip_prefix("current active connections:"))
                    .filter_map(|n| n.trim().parse().ok());
                let both = numbers.next().zip(numbers.next());
                let (internal, external) = both.with_context(|| text.clone())?;
                Ok(Counts { internal, external })
            }
        }
    }

    /// Runs the program's own client; all it printed.
    ///
    /// # Errors
    /// If it fails.
    pub fn command(&self, args: &[&str]) -> Result<String> {
        let (config, control) = (path(&self.config), path(&self.control));
        let run = match self.kind {
            Kind::Ctsync => {
                let mut run = command(&path(&built("ctsync")?), &["--control", &control]);
                run.args(args);
                run
            }
            Kind::Conntrackd => {
                let mut run = command("conntrackd", &["-C", &config]);
                run.args(args);
                run
            }
        };
        command::run(run, Duration::from_secs(300))?.success()
    }

    /// Puts the external cache into the kernel.
    ///
    /// # Errors
    /// If it fails.
    pub fn commit(&self) -> Result<()> {
        let args: &[&str] = match self.kind {
            Kind::Ctsync => &["commit"],
            Kind::Conntrackd => &["-c"],
        };
        self.command(args).map(drop)
    }

    /// Has the kernel's table read again.
    ///
    /// # Errors
    /// If it fails.
    pub fn resync(&self) -> Result<()> {
        let args: &[&str] = match self.kind {
            Kind::Ctsync => &["resync"],
            Kind::Conntrackd => &["-R"],
        };
        self.command(args).map(drop)
    }

    /// Makes the node the owner of the states, as the program's own notes say:
    /// conntrackd's `primary-backup.sh` commits, empties the caches, reads the
    /// kernel's table and offers it to the peer.
    ///
    /// # Errors
    /// If it fails.
    pub fn become_primary(&self) -> Result<()> {
        match self.kind {
            Kind::Ctsync => self.command(&["primary"]).map(drop),
            Kind::Conntrackd => ["-c", "-f", "-R", "-B"]
                .iter()
                .try_for_each(|step| self.command(&[step]).map(drop)),
        }
    }

    /// Waits until two nodes know each other.
    ///
    /// # Errors
    /// If they don't find each other.
    pub fn wait_connected(&self) -> Result<()> {
        if self.kind == Kind::Ctsync {
            until("peers in sync", patience(), || {
                let status = self.status().ok()?;
                (status.pointer("/peers/0/synced")? == &Value::Bool(true)).then_some(())
            })?;
        }
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it doesn't end.
    pub fn stop(self) -> Result<()> {
        let (status, log) = self.peer.stop()?;
        ensure!(status.success(), "{}: {status}\n{log}", self.kind.name());
        Ok(())
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
