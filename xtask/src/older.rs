//! Older builds of ctsync, from this repository's own history, for tests of
//! what becomes of two versions that meet, and of an upgrade.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{cargo, command, output, run, step};
use crate::workspace;

/// A build: how tests call it (`lab::programs::Older`), and what its commit
/// says in its first line, for a history that is written anew has other names.
struct Build {
    name: &'static str,
    subject: &'static str,
    /// The commit before that one.
    before: bool,
}

const BUILDS: &[Build] = &[
    // The first that speaks the link's version of today.
    Build {
        name: "same",
        subject: "ctsync: raise the link's version for what changed in it",
        before: false,
    },
    // The last one whose messages are other ones.
    Build {
        name: "other",
        subject: "ctsync: find single differences without listing leaves",
        before: true,
    },
];

/// Directory that has each build under its name.
///
/// # Errors
/// The history is not here (no clone, or a shallow one), or it does not build.
pub fn get() -> Result<PathBuf> {
    let dir = workspace::lab().join("older");
    for build in BUILDS {
        let commit = find(build)?;
        let made = dir.join(&commit);
        if !made.is_file() {
            step(&format!("building ctsync of commit {commit}"));
            make(&commit, &made).with_context(|| format!("ctsync of commit {commit}"))?;
        }
        // A hard link, for it may run.
        let name = dir.join(build.name);
        let _ = fs::remove_file(&name);
        fs::hard_link(&made, &name)?;
    }
    Ok(dir)
}

fn git(args: &[&str]) -> Command {
    let mut git = command("git", args);
    git.current_dir(workspace::root());
    git
}

fn find(build: &Build) -> Result<String> {
    let log = output(&mut git(&["log", "--format=%H %s"])).context("no history here")?;
    let commit = commit_of(&log, build.subject)
        .with_context(|| format!("no commit {:?} in this history", build.subject))?;
    let commit = format!("{commit}{}", if build.before { "^" } else { "" });
    let commit = output(&mut git(&["rev-parse", "--verify", &commit]))?;
    Ok(commit.trim().to_owned())
}

fn commit_of<'a>(log: &'a str, subject: &str) -> Option<&'a str> {
    let mut lines = log.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(_, s)| *s == subject).map(|(commit, _)| commit)
}

fn make(commit: &str, to: &Path) -> Result<()> {
    let sources = workspace::lab().join(format!("older-sources-{commit}"));
    fs::create_dir_all(&sources)?;
    unpack(commit, &sources)?;
    // One for all: dependencies are built once.
    let target = workspace::lab().join("older-target");
    let mut build = cargo(&["build", "-p", "ctsync", "--bins", "--locked"]);
    build.current_dir(&sources).env("CARGO_TARGET_DIR", &target);
    run(&mut build)?;
    fs::remove_dir_all(&sources)?;
    fs::create_dir_all(to.parent().context("path")?)?;
    let part = to.with_extension("part");
    fs::copy(target.join("debug/ctsync"), &part)?;
    Ok(fs::rename(&part, to)?)
}

fn unpack(commit: &str, to: &Path) -> Result<()> {
    let mut archive = git(&["archive", commit])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("git archive")?;
    let Some(tree) = archive.stdout.take() else {
        bail!("git archive: no output");
    };
    // With the time of now: cargo would take crates of another commit, which it
    // built later than these were written, for built from these.
    let tar = command("tar", &["-x", "-m"])
        .current_dir(to)
        .stdin(tree)
        .status();
    let status = tar.context("tar")?;
    ensure!(archive.wait()?.success() && status.success(), "git archive");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::commit_of;

    #[test]
    fn a_commit_is_found_by_the_whole_of_its_first_line() {
        let log = "3 lab: a: b c\n2 lab: a: b\n1 a: b\n";
        assert_eq!(commit_of(log, "a: b"), Some("1"));
        assert_eq!(commit_of(log, "lab: a: b"), Some("2"));
        assert_eq!(commit_of(log, "b"), None);
    }
}
