//! No emulator outlives the task that started it, however that ends: a shell
//! reads from a pipe that only this process has the other end of, and kills
//! when it is closed. Signals need no handling for that.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use crate::shell::command;

/// A line means that nothing is left to kill.
const SCRIPT: &str = "read -r line || kill -s KILL -- \"-$0\"";

/// Watches over one process group.
pub struct Guard {
    shell: Child,
}

impl Guard {
    /// For the group of this leader.
    pub fn new(leader: &Child) -> Result<Self> {
        let mut shell = command("sh", &["-c", SCRIPT, &leader.id().to_string()]);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Apart from ours, which a terminal's interrupt reaches.
            .process_group(0);
        let shell = shell.spawn().context("starting the VM's guard")?;
        Ok(Self { shell })
    }

    /// The group has ended.
    pub fn stand_down(&mut self) {
        if let Some(mut pipe) = self.shell.stdin.take() {
            let _ = pipe.write_all(b"\n");
        }
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::run;

    /// A leader and another process, which speaks unless it is killed.
    fn group() -> Child {
        let mut leader = command("sh", &["-c", "(sleep 20; echo alive) & wait"]);
        leader.stdout(Stdio::piped()).process_group(0);
        leader.spawn().unwrap()
    }

    /// What a group says until all of it have ended.
    fn last_words(leader: Child) -> String {
        let output = leader.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_group_is_killed_when_the_pipe_is_closed() {
        let leader = group();
        let mut guard = Guard::new(&leader).unwrap();
        drop(guard.shell.stdin.take());
        assert!(guard.shell.wait().unwrap().success());
        assert_eq!(last_words(leader), "");
    }

    #[test]
    fn a_guard_that_stands_down_kills_nobody() {
        let mut leader = group();
        let mut guard = Guard::new(&leader).unwrap();
        guard.stand_down();
        assert!(leader.try_wait().unwrap().is_none());
        let group = format!("-{}", leader.id());
        run(&mut command("kill", &["-KILL", "--", &group])).unwrap();
        assert_eq!(last_words(leader), "");
    }
}
