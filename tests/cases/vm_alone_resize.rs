//! ctsync while the kernel's connection table is resized: the table is one for
//! all namespaces, so this has a VM of its own, with --full.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::inject::{Act, inject_in};
use lab::nodes::Nodes;
use lab::pair::{Node, Pair};
use lab::require::{Need, in_vm};

/// Whoever resizes the kernel's connection table makes dumps show entries
/// again, or not at all: none of those counts as gone.
#[test]
fn a_table_that_is_resized_loses_no_entry() -> Result<()> {
    const FLOWS: u32 = 5000;
    const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";
    lab::require!(Need::Root);
    ensure!(in_vm(), "this would resize the table of a machine in use");
    let pair = Pair::new()?;
    let small = "[kernel]\nevent-buffer = 8192\nmax-event-buffer = 8192\n";
    let nodes = Nodes::with(small)?;
    let _daemons = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, FLOWS, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let size = std::fs::read_to_string(BUCKETS)?;
    let buckets: u32 = size.trim().parse()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Never twice the same size, which would look like none.
        let resizing = scope.spawn(|| -> Result<u32> {
            let mut times = 0;
            while times < 40 || !stop.load(Relaxed) {
                times += 1;
                std::thread::sleep(Duration::from_millis(20));
                let smaller = buckets * 4 - (times * 1024).min(buckets * 3);
                std::fs::write(BUCKETS, smaller.to_string()).context(BUCKETS)?;
            }
            std::fs::write(BUCKETS, &size).context(BUCKETS)?;
            Ok(times)
        });
        // Each makes the kernel drop events, for which a dump makes up.
        let marked = (1..=4).try_for_each(|mark| inject_in(&pair.fw_1, 0, FLOWS, Act::Mark(mark)));
        stop.store(true, Relaxed);
        let times = resizing.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        eprintln!("resized {times} times");
        marked
    })?;
    nodes.wait_synced()?;
    nodes.wait_mirrored(Node::One)?;
    ensure!(nodes.number(Node::One, "/counters/overruns")? > 0);
    let vanished = nodes.number(Node::One, "/counters/reconciled_vanished")?;
    ensure!(vanished == 0, "{vanished} were taken for gone");
    ensure!(nodes.number(Node::One, "/internal/flows")? == u64::from(FLOWS));
    Ok(())
}
