//! conntrackd: what ours is compared with.

use std::path::PathBuf;

use anyhow::Result;
use netfilter::tuple::{AF_INET, IPPROTO_TCP};
use netfilter::{Name, Socket, cthelper};
use tempfile::TempDir;

use crate::command::{self, command};
use crate::firewall::KERNEL_HELPER;
use crate::netns::Namespace;
use crate::pair::Node;
use crate::peer::Peer;
use crate::topology::Family;
use crate::wait::{patience, until};

/// A running conntrackd that follows FTP over IPv4, with the rules that give
/// it port 21. The kernel's own helper, which has the same name, is unloaded.
#[derive(Debug)]
pub struct Conntrackd {
    peer: Peer,
    /// Holds configuration, lock and socket.
    _dir: TempDir,
}

impl Conntrackd {
    /// Starts it and loads the rules.
    ///
    /// # Errors
    /// The kernel's helper is built in or in use, or conntrackd doesn't start.
    pub fn start(fw: &Namespace) -> Result<Self> {
        unload_the_kernels()?;
        let dir = tempfile::tempdir()?;
        let config = write_config(&dir)?.display().to_string();
        let run = command("conntrackd", &["-C", &config]);
        let mut peer = Peer::start(fw, "conntrackd", run)?;
        peer.wait_for_line("starting in console mode")?;
        fw.nft(KERNEL_HELPER)?;
        Ok(Self { peer, _dir: dir })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.peer.pid()
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        self.peer.log()
    }

    /// Stops it, with all rules and connections of the firewall, and deletes
    /// the helper, which it leaves behind.
    ///
    /// # Errors
    /// It doesn't end, or the helper stays.
    pub fn stop(self, fw: &Namespace) -> Result<()> {
        fw.run("nft", &["flush", "ruleset"])?;
        fw.run("conntrack", &["-F"])?;
        self.peer.stop()?;
        unregister("ftp")
    }
}

/// Unloads the kernel's own helper, whose name conntrackd's needs.
///
/// # Errors
/// It is built in, or in use for too long.
pub fn unload_the_kernels() -> Result<()> {
    until("the kernel's helper to go", patience(), || {
        let rmmod = command("rmmod", &["nf_nat_ftp", "nf_conntrack_ftp"]);
        let _ = command::run(rmmod, patience());
        let modules = std::fs::read_to_string("/proc/modules").ok()?;
        (!modules.contains("nf_conntrack_ftp ")).then_some(())
    })
}

/// Deletes a userspace helper for FTP over IPv4, once nothing refers to it.
///
/// # Errors
/// Something does for too long.
pub fn unregister(name: &str) -> Result<()> {
    let name = Name::new(name.as_bytes())?;
    until("the helper to be deleted", patience(), || {
        let mut socket = Socket::open().ok()?;
        let build =
            |buf: &mut Vec<u8>, seq| cthelper::delete(buf, &name, AF_INET, IPPROTO_TCP, seq);
        socket.request("deleting a helper", build).ok()
    })
}

fn write_config(dir: &TempDir) -> Result<PathBuf> {
    let path = dir.path().join("conf");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let text = of_helper(&file("lock"), &file("sock"));
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Configuration of a conntrackd that follows FTP over IPv4, and no more.
#[must_use]
pub fn of_helper(lock: &str, socket: &str) -> String {
    format!(
        "Helper {{\n Setup yes\n Type ftp inet tcp {{\n QueueNum 3\n QueueLen 10240\n \
         Policy ftp {{\n ExpectMax 1\n ExpectTimeout 300\n }}\n }}\n}}\n\
         General {{\n LogFile off\n Syslog off\n LockFile {lock}\n UNIX {{\n Path {socket}\n \
         }}\n}}\n"
    )
}

/// Configuration of a node of a pair that mirrors over its link, expectations
/// included, as the manual says. `paths` are of log, lock and socket;
/// `general` is what its section General has besides.
#[must_use]
pub fn of_pair(node: Node, paths: [&str; 3], general: &str) -> String {
    let [log, lock, socket] = paths;
    let own = node.sync_address(Family::V4);
    let peer = node.peer().sync_address(Family::V4);
    format!(
        "General {{
    HashSize 32768
    HashLimit 131072
    LogFile {log}
    LockFile {lock}
    UNIX {{
        Path {socket}
    }}
{general}    Filter From Userspace {{
        Address Ignore {{
            IPv4_address 127.0.0.1
            IPv4_address {own}
            IPv4_address {peer}
        }}
    }}
}}
Sync {{
    Mode FTFW {{
    }}
    UDP {{
        IPv4_address {own}
        IPv4_Destination_Address {peer}
        Port 3780
        Interface sync
        Checksum on
    }}
    Options {{
        ExpectationSync on
    }}
}}
"
    )
}
