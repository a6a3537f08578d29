//! ctsync while the kernel's connection table is resized: the table is one for
//! all namespaces, so this has a VM of its own, with --full.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use lab::inject::{Act, inject_in};
use lab::nodes::Nodes;
use lab::ours::program;
use lab::pair::{Node, Pair};
use lab::require::{Need, in_vm};
use lab::wait::{patience, until};

const FLOWS: u32 = 5000;

/// What is said of a dump that may lack something.
const RESIZED: &str = "resized meanwhile";

/// Does something while somebody resizes the kernel's connection table.
fn while_resized<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";
    ensure!(in_vm(), "this would resize the table of a machine in use");
    let size = fs::read_to_string(BUCKETS)?;
    let buckets: u32 = size.trim().parse()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Not the same size again soon, which would look like none.
        let resizing = scope.spawn(|| -> Result<u32> {
            let mut times = 0;
            // Longer than a dump that has begun takes under emulation.
            while times < 150 || !stop.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                let other = buckets * 2 - times % 97 * (buckets / 128);
                fs::write(BUCKETS, other.to_string()).context(BUCKETS)?;
                times += 1;
            }
            fs::write(BUCKETS, &size).context(BUCKETS)?;
            Ok(times)
        });
        let done = f();
        stop.store(true, Relaxed);
        let times = resizing.join().map_err(|_| anyhow!("panicked"))??;
        eprintln!("resized {times} times");
        done
    })
}

/// Whoever resizes the kernel's connection table makes dumps show entries
/// again, or not at all: none of those counts as gone.
#[test]
fn a_table_that_is_resized_loses_no_entry() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let small = "[kernel]\nevent-buffer = 8192\nmax-event-buffer = 8192\n";
    let nodes = Nodes::with(small)?;
    let _daemons = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, FLOWS, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    // Each makes the kernel drop events, for which a dump makes up.
    while_resized(|| {
        (1..=8).try_for_each(|mark| inject_in(&pair.fw_1, 0, FLOWS, Act::Mark(mark)))
    })?;
    nodes.wait_synced()?;
    nodes.wait_mirrored(Node::One)?;
    ensure!(nodes.number(Node::One, "/counters/overruns")? > 0);
    let vanished = nodes.number(Node::One, "/counters/reconciled_vanished")?;
    ensure!(vanished == 0, "{vanished} were taken for gone");
    ensure!(nodes.number(Node::One, "/internal/flows")? == u64::from(FLOWS));
    Ok(())
}

/// A look into the kernel after a commit finds everything, or says why not.
#[test]
fn what_was_committed_is_not_missing_because_of_a_resize() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let _daemons = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, FLOWS, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let verified = || -> Result<serde_json::Value> {
        let done = nodes.ctsync(Node::Two, &["commit", "--verify", "--json"])?;
        let report: serde_json::Value =
            serde_json::from_str(&done.stdout).with_context(|| done.report())?;
        ensure!(report["failed"] == serde_json::json!({}), "{report}");
        Ok(report["verified"].clone())
    };
    let all = serde_json::json!({"good": FLOWS, "missing": 0, "differ": {}});
    for meanwhile in while_resized(|| (0..4).map(|_| verified()).collect::<Result<Vec<_>>>())? {
        let error = meanwhile["error"].as_str().unwrap_or_default();
        ensure!(meanwhile == all || error.contains(RESIZED), "{meanwhile}");
    }
    let then = verified()?;
    ensure!(then == all, "{then}");
    Ok(())
}

/// `show kernel` shows everything, or says that something may be missing.
#[test]
fn what_is_shown_of_a_table_that_is_resized_is_all_or_an_error() -> Result<()> {
    lab::require!(Need::Root, Need::Built("ctsync"));
    let pair = Pair::new()?;
    inject_in(&pair.fw_1, 0, FLOWS, Act::Create)?;
    let show = || pair.fw_1.finish(program("ctsync", &["show", "kernel"])?);
    let count = |text: &str| text.lines().filter(|l| l.contains("10.201.0.1")).count();
    while_resized(|| {
        until("a dump that met a resize", patience(), || {
            let shown = match show() {
                Ok(shown) => shown,
                Err(error) => return Some(Err(error)),
            };
            if shown.ok() {
                let lines = count(&shown.stdout);
                let all = lines == FLOWS as usize;
                return (!all).then(|| Err(anyhow!("{lines} of {FLOWS}, and no word of it")));
            }
            let told = shown.stderr.contains(RESIZED);
            Some(match told {
                true => Ok(()),
                false => Err(anyhow!("{}", shown.stderr)),
            })
        })?
    })?;
    let shown = show()?;
    ensure!(shown.ok() && count(&shown.stdout) == FLOWS as usize);
    Ok(())
}
