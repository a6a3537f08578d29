//! Running a command to its end, with a limit, and with all it said.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// What a command that came to its end left behind.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// Wall clock time it took.
    pub took: Duration,
}

impl Finished {
    /// True for exit status 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.status.success()
    }

    /// Standard output of a command that succeeded.
    ///
    /// # Errors
    /// Names the command, its status and what it said, if it failed.
    pub fn success(self) -> Result<String> {
        if self.ok() {
            return Ok(self.stdout);
        }
        bail!("{}", self.report());
    }

    /// The command, its status and both outputs, for a message.
    #[must_use]
    pub fn report(&self) -> String {
        format!(
            "`{}`: {}\n{}{}",
            self.line, self.status, self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end. It gets no input unless the caller set one.
///
/// # Errors
/// If it can't be started, or hasn't ended within `limit`: then it and its
/// process group are killed and what it had said is in the message.
pub fn run(mut command: Command, limit: Duration) -> Result<Finished> {
    let line = line_of(&command);
    let mut out = tempfile::tempfile().context("temporary file")?;
    let mut err = tempfile::tempfile().context("temporary file")?;
    command
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .process_group(0);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let ended = has_ended(&child, limit)?;
    let took = start.elapsed();
    if !ended {
        kill_group(&mut child, Signal::SIGKILL);
    }
    let status = child.wait()?;
    let (stdout, stderr) = (contents(&mut out)?, contents(&mut err)?);
    if !ended {
        let seconds = limit.as_secs_f32();
        bail!("waited {seconds} s for `{line}`\n{stdout}{stderr}");
    }
    Ok(Finished {
        line,
        status,
        stdout,
        stderr,
        took,
    })
}

/// Waits until a child has ended, but not longer than `limit`. Its number stays
/// its own.
fn has_ended(child: &Child, limit: Duration) -> Result<bool> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags) == Err(Errno::EINTR) {}
        tell.send(())
    });
    Ok(told.recv_timeout(limit).is_ok())
}

/// Signals a child's process group and, if the signal can't be ignored,
/// collects the child.
pub(crate) fn kill_group(child: &mut Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // ESRCH: it is gone, which is what was wanted.
        let _ = killpg(Pid::from_raw(pid), signal);
    }
    if signal == Signal::SIGKILL {
        let _ = child.wait();
    }
}

/// A command with no input, from a program and its arguments.
#[must_use]
pub fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// Program and arguments in one line, for messages.
pub(crate) fn line_of(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

fn contents(file: &mut File) -> Result<String> {
    use std::io::Seek;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_failing_command_says_what_it_said() {
        let command = command(
            "sh",
            &["-c", "echo $((6 * 7)); echo $((7 * 11)) >&2; exit 3"],
        );
        let finished = run(command, crate::wait::patience()).unwrap();
        assert_eq!(finished.status.code(), Some(3));
        let message = finished.success().unwrap_err().to_string();
        assert!(
            message.contains("42") && message.contains("77"),
            "{message}"
        );
    }

    #[test]
    fn a_command_that_never_ends_is_killed_and_its_output_kept() {
        let command = command("sh", &["-c", "echo pid=$$; sleep 1000"]);
        let error = run(command, Duration::from_millis(300)).unwrap_err();
        let error = format!("{error:#}");
        let pid = error.rsplit("pid=").next().unwrap_or_default();
        let pid: u32 = pid.trim().parse().expect(&error);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{error}");
    }
}
