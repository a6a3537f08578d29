//! ctsync on the kernels of the matrix: every attribute again, and what can
//! only be done to a machine of one's own: its clock, its table's size.

#[path = "native_ctsync_fidelity.rs"]
mod fidelity;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::inject::{Act, flows, inject_in, injected};
use lab::nodes::Nodes;
use lab::pair::{Node, Pair};
use lab::require::{Need, in_vm};
use lab::wait::{patience, until};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::Value;

/// The wall clock, put right again on drop.
struct WallClock {
    began: Duration,
    at: Instant,
}

impl WallClock {
    fn new() -> Result<Self> {
        ensure!(in_vm(), "this would step the clock of a machine in use");
        let began = clock_gettime(ClockId::CLOCK_REALTIME)?;
        Ok(Self {
            began: began.into(),
            at: Instant::now(),
        })
    }

    /// Sets it to what it should be, and so many seconds.
    fn step(&self, seconds: i64) -> Result<()> {
        let right = self.began + self.at.elapsed();
        let now = right.as_secs().checked_add_signed(seconds);
        let now = TimeSpec::from_duration(Duration::from_secs(now.context("time")?));
        clock_settime(ClockId::CLOCK_REALTIME, now).context("clock_settime")
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        if let Err(error) = self.step(0) {
            eprintln!("the clock is wrong now: {error:#}");
        }
    }
}

/// An hour ahead, then two back: nobody notices.
#[test]
fn steps_of_the_clock_change_nothing() -> Result<()> {
    lab::require!(Need::Root);
    let clock = WallClock::new()?;
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let _one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;
    nodes.wait_synced()?;
    inject_in(&pair.fw_1, 0, 300, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let number = |node, pointer: &str| nodes.number(node, pointer);
    let mut synced_for = number(Node::Two, "/in_sync_for_ms")?;
    for (turn, seconds) in (1..).zip([3600, -3600, 0]) {
        clock.step(seconds)?;
        inject_in(&pair.fw_1, 0, 300, Act::Mark(turn))?;
        until("the change to arrive", patience(), || {
            let shown = nodes.ctsync(Node::Two, &["show", "external"]).ok()?;
            let mark = format!("mark={turn}");
            (shown.stdout.matches(&mark).count() == 300).then_some(())
        })?;
        for node in Node::BOTH {
            let status = nodes.status(node)?;
            ensure!(
                status.pointer("/peers/0/state") == Some(&"up".into()),
                "{status}"
            );
            ensure!(
                status.pointer("/in_sync") == Some(&Value::Bool(true)),
                "{status}"
            );
        }
        // Never out of sync in between, and time goes on.
        let longer = number(Node::Two, "/in_sync_for_ms")?;
        ensure!(longer >= synced_for, "{longer} ms after {synced_for} ms");
        synced_for = longer;
        let text = nodes.ctsync(Node::Two, &["show", "external", "--json"])?;
        for line in text.success()?.lines() {
            let entry: Value = serde_json::from_str(line)?;
            let left = entry.get("timeout").and_then(Value::as_u64);
            ensure!(left.is_some_and(|t| (3000..=3600).contains(&t)), "{entry}");
        }
    }
    clock.step(3600)?;
    let committed = nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(committed.ok(), "{}", committed.report());
    for flow in flows(&pair.fw_2)? {
        let left = flow.timeout.unwrap_or(0);
        ensure!(
            flow.orig.dport() != 80 || (2900..=3600).contains(&left),
            "{flow:?}"
        );
    }
    Ok(())
}

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// The size of every namespace's table, put back on drop.
struct TableSize(String);

impl TableSize {
    fn set(size: usize) -> Result<Self> {
        ensure!(in_vm(), "this would break a machine in use");
        let before = std::fs::read_to_string(MAX)?;
        std::fs::write(MAX, size.to_string())?;
        Ok(Self(before))
    }
}

impl Drop for TableSize {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(MAX, &self.0) {
            eprintln!("{MAX}: {error}");
        }
    }
}

/// What has no room is counted by errno; the rest is committed.
#[test]
fn a_full_table_is_told_before_and_after() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let _one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;
    nodes.wait_synced()?;
    inject_in(&pair.fw_1, 0, 300, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let size = TableSize::set(100)?;
    let trial = nodes.ctsync(Node::Two, &["commit", "--dry-run"])?;
    let report = trial.report();
    ensure!(trial.status.code() == Some(1), "{report}");
    ensure!(report.contains("nf_conntrack_max"), "{report}");
    let done = nodes.ctsync(Node::Two, &["commit"])?;
    let report = done.report();
    ensure!(done.status.code() == Some(1), "{report}");
    ensure!(report.contains("  ENOMEM: "), "{report}");
    let done = nodes.ctsync(Node::Two, &["commit", "--json"])?;
    ensure!(done.status.code() == Some(1), "{}", done.report());
    let report: Value = serde_json::from_str(&done.stdout)?;
    let (there, _) = injected(&pair.fw_2, 0)?;
    let failed = report.pointer("/failed/ENOMEM").and_then(Value::as_u64);
    let committed = report.pointer("/flows").and_then(Value::as_u64);
    ensure!(committed == Some(there as u64), "{report}, {there} there");
    ensure!(
        failed == Some(300 - there as u64),
        "{report}, {there} there"
    );
    ensure!((1..=100).contains(&there), "{there} there");
    // With room again, the rest comes too.
    drop(size);
    let done = nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(done.ok(), "{}", done.report());
    ensure!(injected(&pair.fw_2, 0)?.0 == 300, "not all");
    Ok(())
}
