//! What a process has used.

use std::time::Duration;

use anyhow::Result;
use lab::command::{command, run};

/// Processor time of a process and all its threads that live.
///
/// From `schedstat` (nanoseconds), not `stat`, whose ticks are 10 ms.
pub fn cpu(pid: u32) -> Duration {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    threads
        .flatten()
        .map(|thread| run_time(&thread.path().join("schedstat")))
        .sum()
}

/// Processor time of this thread.
pub fn thread_cpu() -> Duration {
    run_time("/proc/thread-self/schedstat".as_ref())
}

fn run_time(path: &std::path::Path) -> Duration {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let first = text.split_whitespace().next();
    let nanoseconds = first.and_then(|n| n.parse().ok()).unwrap_or(0);
    Duration::from_nanos(nanoseconds)
}

/// Gives a process, or the thread of this number, the real-time priority that
/// conntrackd takes by itself.
///
/// # Errors
/// With what chrt(1) said.
pub fn in_real_time(id: &str) -> Result<()> {
    let chrt = command("chrt", &["--fifo", "--pid", "99", id]);
    run(chrt, Duration::from_secs(5))?.success().map(drop)
}

/// Bytes of memory a process holds (`VmRSS`).
pub fn memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = field.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A count as a floating point number.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
pub const fn float(n: u64) -> f64 {
    n as f64
}

/// Microseconds per each of `n`.
pub fn micros_each(time: Duration, n: u32) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(n)
}
