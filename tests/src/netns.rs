//! One network namespace, and doing things inside it.
//!
//! Code runs inside by a thread of its own that enters the namespace
//! (setns(2)); sockets it opens and processes it starts stay there. So no
//! `unsafe` is needed, and the test's own thread never changes.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{self, Finished, command};
use crate::wait::{patience, until_true};

/// A named network namespace, deleted with all its processes on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates `PREFIX-ROLE`, with IPv6 duplicate address detection off
    /// (addresses are usable at once). Its loopback is still down.
    ///
    /// Done as `ip netns add` does it, without the process: under emulation
    /// a process takes a quarter of a second.
    ///
    /// # Errors
    /// Needs root.
    pub fn new(prefix: &str, role: &str) -> Result<Self> {
        let name = format!("{prefix}-{role}");
        pin(&name).with_context(|| format!("creating namespace {name}"))?;
        let namespace = Self { name };
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        // Tests listen there: no connection may get one of them by chance.
        namespace.sysctl("net/ipv4/ip_local_reserved_ports", "50000-50999")?;
        Ok(namespace)
    }

    /// The name iproute2 knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure inside, in a thread of its own, and returns its value.
    ///
    /// # Panics
    /// If the namespace can't be entered, or if the closure panics.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let body = || {
            let file = File::open(path_of(&self.name)).expect("namespace exists");
            setns(file, CloneFlags::CLONE_NEWNET).expect("entering a namespace needs root");
            inside()
        };
        std::thread::scope(|scope| match scope.spawn(body).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs a command to its end inside, whatever its exit status.
    ///
    /// # Errors
    /// If it can't be started or doesn't end in time.
    pub fn finish(&self, command: Command) -> Result<Finished> {
        self.enter(|| command::run(command, patience() * 3))
    }

    /// Runs a command inside that must succeed; its standard output.
    ///
    /// # Errors
    /// Also if its exit status isn't 0: with all it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.finish(command(program, args))?
            .success()
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Runs lines of `ip -batch` inside, in one process.
    ///
    /// # Errors
    /// With iproute2's message and the line it refused.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let file = text_file(lines)?;
        let path = file.path().to_string_lossy();
        self.run("ip", &["-batch", &path])
            .map(drop)
            .with_context(|| format!("ip -batch:\n{lines}"))
    }

    /// Loads nftables text inside, as `nft -f` does.
    ///
    /// # Errors
    /// With nft's message and the text.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let file = text_file(rules)?;
        self.run("nft", &["-f", &file.path().to_string_lossy()])
            .map(drop)
            .with_context(|| format!("nft -f:\n{rules}"))
    }

    /// Writes a sysctl of this namespace; `key` with slashes.
    ///
    /// # Errors
    /// With the key, if the kernel refuses or doesn't know it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("sysctl {key}={value} in {}", self.name))
    }

    /// Reads a file below /proc/net as this namespace sees it.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn proc_net(&self, file: &str) -> Result<String> {
        // /proc/net shows the namespace of the process's first thread.
        let path = Path::new("/proc/thread-self/net").join(file);
        self.enter(|| fs::read_to_string(&path))
            .with_context(|| format!("{} in {}", path.display(), self.name))
    }

    /// Kills every process inside, as when a machine loses its power.
    ///
    /// # Errors
    /// If they don't end.
    pub fn kill_all(&self) -> Result<()> {
        kill_all(&self.name).with_context(|| format!("in namespace {}", self.name))
    }

    /// Waits until something listens on a TCP port, in either family.
    ///
    /// # Errors
    /// If nothing does within [`patience`].
    pub fn wait_for_listener(&self, port: u16) -> Result<()> {
        let what = format!("a listener on port {port} in {}", self.name);
        until_true(&what, || self.listens(port))
    }

    /// True if something listens on a TCP port, in either family.
    #[must_use]
    pub fn listens(&self, port: u16) -> bool {
        ["tcp", "tcp6"]
            .iter()
            .filter_map(|file| self.proc_net(file).ok())
            .any(|table| table_has_listener(&table, port))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        destroy(&self.name);
    }
}

/// Kills every process in a named namespace and deletes it; carries on and
/// reports on failure.
pub(crate) fn destroy(name: &str) {
    let gone = kill_all(name);
    let deleted = unpin(name);
    for error in [gone.err(), deleted.err()].into_iter().flatten() {
        eprintln!("lab: removing namespace {name}: {error:#}");
    }
}

/// Kills what runs in a namespace, and waits until nothing does.
fn kill_all(name: &str) -> Result<()> {
    until_true("the processes in it to end", || {
        let pids = processes_in(name);
        for pid in &pids {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        pids.is_empty()
    })
}

/// Running processes (not zombies) whose network namespace is this one.
fn processes_in(name: &str) -> Vec<Pid> {
    let Ok(wanted) = fs::metadata(path_of(name)) else {
        return Vec::new();
    };
    let same = |pid: &i32| {
        fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|ns| ns.ino() == wanted.ino() && ns.dev() == wanted.dev())
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(same)
        .map(Pid::from_raw)
        .collect()
}

/// Finds a listening socket (state 0A) in the text of /proc/net/tcp{,6}.
fn table_has_listener(table: &str, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        local.ends_with(&suffix) && fields.nth(1) == Some("0A")
    })
}

fn path_of(name: &str) -> PathBuf {
    Path::new(crate::names::NETNS_DIR).join(name)
}

/// Makes a namespace and gives it a name: a file it is mounted on.
fn pin(name: &str) -> Result<()> {
    fs::create_dir_all(crate::names::NETNS_DIR)?;
    let path = path_of(name);
    File::create_new(&path).with_context(|| path.display().to_string())?;
    let made = std::thread::scope(|scope| {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &path, NONE, MsFlags::MS_BIND, NONE)
        };
        scope.spawn(make).join()
    });
    match made {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) => {
            let _ = fs::remove_file(&path);
            Err(errno).context("unshare and mount")
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// For arguments of mount(2) that aren't used.
const NONE: Option<&str> = None;

/// Takes the name away; the namespace goes with its last process.
fn unpin(name: &str) -> Result<()> {
    let path = path_of(name);
    umount2(&path, MntFlags::MNT_DETACH).context("umount")?;
    fs::remove_file(&path).with_context(|| path.display().to_string())
}

/// A temporary file with this text.
pub fn text_file(text: &str) -> Result<tempfile::NamedTempFile> {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().context("temporary file")?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue
   0: 0100007F:0015 00000000:0000 0A 00000000:00000000
   1: 0100007F:0016 0100007F:C350 01 00000000:00000000
";

    #[test]
    fn a_listener_is_found_by_its_port_and_state() {
        assert!(table_has_listener(TABLE, 21));
        assert!(!table_has_listener(TABLE, 22), "established, not listening");
        assert!(!table_has_listener(TABLE, 50000), "remote port");
    }
}
