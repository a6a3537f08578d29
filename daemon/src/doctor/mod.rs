//! What a `doctor` command finds, and how it says it.
//!
//! A finding names what was looked at, what was found, and what to do. The
//! checks that every program needs are here too; [`rules`] reads rulesets.

pub mod rules;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::sandbox;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well or as safely as it could.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at, a short name that does not change.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

/// Everything a doctor found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn push(&mut self, check: &'static str, level: Level, found: String, todo: Option<String>) {
        self.findings.push(Finding {
            check,
            level,
            found,
            todo,
        });
    }

    /// As it should be.
    pub fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.push(check, Level::Ok, found.into(), None);
    }

    /// Could be better.
    pub fn warn(&mut self, check: &'static str, found: impl Into<String>, todo: impl Into<String>) {
        self.push(check, Level::Warn, found.into(), Some(todo.into()));
    }

    /// Does not work.
    pub fn fail(&mut self, check: &'static str, found: impl Into<String>, todo: impl Into<String>) {
        self.push(check, Level::Fail, found.into(), Some(todo.into()));
    }

    /// Whether nothing failed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.count(Level::Fail) == 0
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|f| f.level == level).count()
    }

    /// Lines for people: a mark, the check, what was found; what to do below.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.level {
                Level::Ok => "ok  ",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{mark}  {:<12} {}", finding.check, finding.found);
            for line in finding.todo.iter().flat_map(|todo| todo.lines()) {
                let _ = writeln!(text, "{:>21}{line}", "-> ");
            }
        }
        let (failed, warned) = (self.count(Level::Fail), self.count(Level::Warn));
        let _ = match (failed, warned) {
            (0, 0) => writeln!(text, "nothing to do"),
            _ => writeln!(text, "{failed} failed, {warned} could be better"),
        };
        text
    }

    /// One object: `program`, `version`, `ok`, `findings`.
    #[must_use]
    pub fn json(&self, program: &str, version: &str) -> serde_json::Value {
        serde_json::json!({
            "program": program,
            "version": version,
            "ok": self.is_good(),
            "findings": self.findings,
        })
    }
}

/// Whether this process may configure the network: `CAP_NET_ADMIN`, in the
/// initial user namespace.
pub fn privileges(report: &mut Report) {
    const CHECK: &str = "capability";
    if !sandbox::has_net_admin() {
        report.fail(
            CHECK,
            "CAP_NET_ADMIN is missing: what needs it below is not known",
            "run this as root",
        );
    } else if is_initial_user_namespace() {
        report.ok(CHECK, "CAP_NET_ADMIN in the initial user namespace");
    } else {
        report.fail(
            CHECK,
            "CAP_NET_ADMIN counts only in a user namespace of its own",
            "run this outside of the unprivileged container",
        );
    }
}

/// Only the initial user namespace maps every user to itself.
fn is_initial_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// A setting below `/proc/sys`, if the kernel has it.
#[must_use]
pub fn sysctl(name: &str) -> Option<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// A setting that is a number.
#[must_use]
pub fn sysctl_number(name: &str) -> Option<u64> {
    sysctl(name)?.parse().ok()
}

/// A firewall forwards, in the families that it has rules for.
pub fn forwarding(report: &mut Report) {
    for (name, family) in [
        ("net.ipv4.ip_forward", "IPv4"),
        ("net.ipv6.conf.all.forwarding", "IPv6"),
    ] {
        match sysctl_number(name) {
            Some(0) => report.warn(
                "forwarding",
                format!("{name} is 0: {family} is not forwarded"),
                format!("unless this machine has no {family} to forward: sysctl -w {name}=1"),
            ),
            Some(_) => report.ok("forwarding", format!("{name} is on")),
            None => {}
        }
    }
}

/// Whether the connection table exists and has room.
pub fn table(report: &mut Report) {
    const CHECK: &str = "conntrack";
    let number = |name: &str| sysctl_number(&format!("net.netfilter.{name}"));
    let Some(max) = number("nf_conntrack_max") else {
        return report.fail(
            CHECK,
            "connections are not tracked: this kernel has not loaded nf_conntrack",
            "modprobe nf_conntrack, or use a kernel built with CONFIG_NF_CONNTRACK",
        );
    };
    let count = number("nf_conntrack_count").unwrap_or(0);
    let found = format!("{count} of {max} connections");
    let room = "raise net.netfilter.nf_conntrack_max, and nf_conntrack_buckets with it";
    if max > 0 && count >= max {
        report.fail(CHECK, format!("the table is full: {found}"), room);
    } else if count >= max - max / 10 {
        report.warn(CHECK, format!("the table is nearly full: {found}"), room);
    } else {
        report.ok(CHECK, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_come_with_what_to_do_and_a_sum() {
        let mut report = Report::default();
        report.ok("first", "fine");
        assert!(report.is_good());
        assert!(report.text().ends_with("nothing to do\n"));
        report.warn("second", "so so", "this");
        assert!(report.is_good(), "a warning is no failure");
        report.fail("third", "broken", "one\ntwo");
        let text = report.text();
        assert!(!report.is_good());
        for line in [
            "ok    first        fine",
            "FAIL  third        broken",
            "                  -> two",
            "1 failed, 1 could be better",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
        let json = report.json("p", "1");
        assert_eq!(json.pointer("/ok"), Some(&false.into()));
        assert_eq!(json.pointer("/findings/2/level"), Some(&"fail".into()));
        assert_eq!(json.pointer("/findings/0/todo"), None);
    }
}
