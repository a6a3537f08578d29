//! Guides that are run as they are written: fenced blocks of a Markdown file.
//!
//! ```text
//! sh [on=fw-1,client]       commands, on these machines; by default on fw
//! toml|conf file=/etc/x     that file
//! sh install                installs the package, which other tests do
//! sh helper                 only with conntrackd's helper: see vm_alone_migration
//! anything else             only to be read
//! ```
//!
//! Each machine has an /etc and a /run of its own, and a systemctl that does
//! what the units of this repository say.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::command::command;
use crate::netns::Namespace;
use crate::programs::built;

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// First word after the fence.
    pub language: String,
    /// The other words: `key=value`, or a word alone.
    pub attributes: BTreeMap<String, String>,
    /// What it holds.
    pub text: String,
    /// Line of the fence, from 1.
    pub line: usize,
}

/// The fenced blocks of a Markdown text.
#[must_use]
pub fn blocks(markdown: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in markdown.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(info), None) => {
                let mut words = info.split_whitespace();
                let language = words.next().unwrap_or_default().to_owned();
                let attributes = words.map(|word| word.split_once('=').unwrap_or((word, "")));
                open = Some(Block {
                    language,
                    attributes: attributes
                        .map(|(key, value)| (key.to_owned(), value.to_owned()))
                        .collect(),
                    text: String::new(),
                    line: number + 1,
                });
            }
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    blocks
}

/// The daemon's user, who is not root.
const SOMEBODY: u32 = 65534;

/// A machine of a guide.
pub struct Machine<'a> {
    namespace: &'a Namespace,
    dir: TempDir,
}

/// Does what `systemctl` would, as far as guides use it. `$UNITS` and `$BIN`
/// are ours; a daemon is ready when it answers.
const SYSTEMCTL: &str = r#"#!/bin/bash
set -e
verb=$1; shift
run=; [ "$1" = --now ] && { run=1; shift; }
[ "$verb" = start ] || [ "$verb" = restart ] && run=1
for unit; do
    unit=${unit%.service}
    if [ "$unit" = keepalived ]; then
        start="keepalived --vrrp --dont-fork --log-console --no-syslog --use-file /etc/keepalived/keepalived.conf --pid /run/k.pid --vrrp_pid /run/v.pid"
        type=simple
    elif [ "$unit" = conntrackd ]; then
        start="conntrackd -C /etc/conntrackd/conntrackd.conf"
        type=simple
    else
        file=$UNITS/$unit.service
        start=$(sed -n 's/^ExecStart=\/usr\/s\?bin\///p' "$file")
        type=$(sed -n 's/^Type=//p' "$file")
        mkdir -p "/run/$(sed -n 's/^RuntimeDirectory=//p' "$file")"
    fi
    case $verb in
        stop|disable)
            [ "$verb" = stop ] || [ -n "$run" ] || continue
            main=$(cat "/run/$unit.main")
            kill "$main"
            # Whoever is its parent may not collect it.
            while [ -e "/proc/$main" ] && ! grep -q '^State:.Z' "/proc/$main/status"; do sleep 0.1; done
            continue ;;
        reload) [ "$type" = oneshot ] && $start || kill -HUP "$(cat "/run/$unit.main")"; continue ;;
    esac
    [ -n "$run" ] || continue
    if [ "$type" = oneshot ]; then
        $start
        continue
    fi
    setsid $start > "/run/$unit.log" 2>&1 < /dev/null &
    echo $! > "/run/$unit.main"
    [ "$type" = simple ] && continue
    for try in $(seq 600); do
        ${start%% *} status > /dev/null 2>&1 && break
        kill -0 "$(cat "/run/$unit.main")" 2> /dev/null || { cat "/run/$unit.log"; exit 1; }
        sleep 0.2
    done
done
"#;

impl<'a> Machine<'a> {
    /// A machine with a copy of this one's /etc, without what is ours.
    ///
    /// # Errors
    /// If it can't be copied.
    pub fn new(namespace: &'a Namespace) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let etc = dir.path().join("etc");
        let copied = crate::command::run(
            command("cp", &["-a", "/etc", &etc.to_string_lossy()]),
            crate::wait::patience(),
        )?;
        copied.success().context("copying /etc")?;
        for ours in ["nft-ftp", "ctsync", "keepalived"] {
            let ours = etc.join(ours);
            if ours.exists() {
                fs::remove_dir_all(&ours)?;
            }
            // As the packages leave them.
            fs::create_dir(&ours)?;
            if ours.ends_with("ctsync") {
                chown(&ours, Some(SOMEBODY), Some(SOMEBODY))?;
            }
        }
        fs::create_dir(dir.path().join("run"))?;
        // Not in a directory that its own /run would hide.
        let bin = etc.join("lab");
        fs::create_dir(&bin)?;
        let systemctl = bin.join("systemctl");
        fs::write(&systemctl, SYSTEMCTL)?;
        fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755))?;
        Ok(Self { namespace, dir })
    }

    /// Runs commands as root; what they printed.
    ///
    /// # Errors
    /// With all of it, if one fails.
    pub fn run(&self, script: &str) -> Result<String> {
        const INSIDE: &str = "mount --bind \"$0/etc\" /etc && mount --bind \"$0/run\" /run && \
                              exec bash -euo pipefail -c \"$1\"";
        let args = ["--mount", "sh", "-c", INSIDE];
        let mut command = command("unshare", &args);
        let ours = built("nft-ftp-ruleset")?;
        let ours = ours.parent().map(Path::to_owned).unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
        command
            .arg(self.dir.path())
            .arg(script)
            .env("UNITS", units.canonicalize()?)
            .env("PATH", format!("/etc/lab:{}:{path}", ours.display()));
        self.namespace.finish(command)?.success()
    }

    /// Where a file of this machine is.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }
}

/// Runs a guide on machines by name; `known` replaces words that a reader
/// replaces. Returns what the commands printed, block by block.
///
/// # Errors
/// At the first block that fails, with its line.
pub fn run(
    markdown: &str,
    machines: &BTreeMap<&str, Machine<'_>>,
    known: &mut dyn FnMut(&str) -> Result<String>,
) -> Result<Vec<String>> {
    let mut printed = Vec::new();
    for block in blocks(markdown) {
        let on = block.attributes.get("on").map_or("fw", String::as_str);
        if ["install", "helper"].map(|word| block.attributes.contains_key(word)) != [false; 2] {
            continue;
        }
        for name in on.split(',') {
            let machine = || {
                let machine = machines.get(name);
                machine.with_context(|| format!("line {}: no machine {name}", block.line))
            };
            if let Some(path) = block.attributes.get("file") {
                let path = machine()?.file(path);
                let parent = path.parent().context("a file in a directory")?;
                fs::create_dir_all(parent)?;
                fs::write(&path, known(&block.text)?)?;
            } else if block.language == "sh" {
                let script = known(&block.text)?;
                let output = machine()?.run(&script);
                let output = output.with_context(|| format!("line {} on {name}", block.line))?;
                printed.push(output);
            }
        }
    }
    ensure!(!printed.is_empty(), "no commands in the guide");
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_with_their_attributes() {
        let text = "a\n```sh on=fw-1,fw-2\nx\ny\n```\n```toml file=/etc/a\n```\nb\n";
        let found = blocks(text);
        let [first, second] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!((first.text.as_str(), first.line), ("x\ny\n", 2));
        assert_eq!(first.attributes.get("on").unwrap(), "fw-1,fw-2");
        assert_eq!(second.attributes.get("file").unwrap(), "/etc/a");
    }
}
