//! A long-running program in a namespace: a server, a daemon, a monitor.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::command::{kill_group, line_of};
use crate::netns::Namespace;
use crate::wait::{patience, until};

/// How long a peer may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A running program; its output goes to a log. On drop it and its process
/// group are ended; while a test panics, the end of the log is printed.
#[derive(Debug)]
pub struct Peer {
    name: String,
    child: Child,
    /// Holds the log.
    dir: TempDir,
}

impl Peer {
    /// Starts a program inside a namespace, without input, both outputs in
    /// one log.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(namespace: &Namespace, name: &str, mut command: Command) -> Result<Self> {
        let dir = tempfile::tempdir().context("temporary directory")?;
        let log = File::create(dir.path().join("log"))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = namespace
            .enter(|| command.spawn())
            .with_context(|| format!("starting `{}`", line_of(&command)))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            dir,
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a line of the log that contains `text`, and returns it.
    ///
    /// # Errors
    /// With the whole log, if none comes within [`patience`] or the program
    /// ends first.
    pub fn wait_for_line(&mut self, text: &str) -> Result<String> {
        self.wait_for_nth_line(text, 1)
    }

    /// Waits for the `nth` (from 1) line that contains `text`.
    ///
    /// # Errors
    /// As [`Peer::wait_for_line`].
    pub fn wait_for_nth_line(&mut self, text: &str, nth: usize) -> Result<String> {
        let what = format!("line {nth} with {text:?} from {}", self.name);
        let found = until(&what, patience(), || {
            // Looked at first: what it wrote before it ended counts.
            let ended = self.ended().is_some();
            match nth_line(&self.log(), text, nth) {
                None if ended => Some(None),
                None => None,
                line => Some(line),
            }
        });
        match found {
            Ok(Some(line)) => Ok(line),
            Ok(None) => bail!("{} ended without {what}\n{}", self.name, self.log()),
            Err(error) => Err(error.context(self.log())),
        }
    }

    /// Waits until `ready` holds, or fails at once if the program ends.
    ///
    /// # Errors
    /// With the log.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let met = until(what, patience(), || match self.ended() {
            Some(status) => Some(Err(status)),
            None => ready().then_some(Ok(())),
        });
        match met.with_context(|| self.log())? {
            Ok(()) => Ok(()),
            Err(status) => bail!(
                "{}: {status} while waiting for {what}\n{}",
                self.name,
                self.log()
            ),
        }
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to the program alone, not to its children.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Ends it with a signal that means a crash; its exit status.
    ///
    /// # Errors
    /// If it lives on.
    pub fn crash(&mut self, signal: Signal) -> Result<ExitStatus> {
        let what = format!("{} to end with {signal}", self.name);
        until(&what, patience(), || {
            // Rust's own handler of SIGSEGV gives way to the default after
            // the first one that means no overflow of a stack.
            let _ = self.signal(signal);
            self.ended()
        })
    }

    /// Ends it with SIGTERM and returns its exit status and log.
    ///
    /// # Errors
    /// If it ignores SIGTERM: it is killed then, and the log is in the message.
    pub fn stop(mut self) -> Result<(ExitStatus, String)> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait().with_context(|| self.log())?;
        Ok((status, self.log()))
    }

    /// Waits for the program to end by itself, within [`patience`].
    ///
    /// # Errors
    /// If it doesn't.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        until(&what, patience(), || self.ended())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if self.ended().is_none() {
            kill_group(&mut self.child, Signal::SIGTERM);
            let _ = until("end", GRACE, || self.ended());
        }
        // Also when it has ended: its children may live on.
        kill_group(&mut self.child, Signal::SIGKILL);
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}---", self.name, self.log());
        }
    }
}

fn nth_line(log: &str, text: &str, nth: usize) -> Option<String> {
    log.lines()
        .filter(|line| line.contains(text))
        .nth(nth.checked_sub(1)?)
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::nth_line;

    #[test]
    fn lines_are_counted_from_one() {
        let log = "ready a\nnoise\nready b\n";
        assert_eq!(nth_line(log, "ready", 2).as_deref(), Some("ready b"));
        assert_eq!(nth_line(log, "ready", 3), None);
        assert_eq!(nth_line(log, "ready", 0), None);
    }
}
