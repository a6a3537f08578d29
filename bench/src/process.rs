//! What a process has used; its priority and its processor.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use lab::command::{command, run};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};

/// The calling thread.
pub const SELF: Pid = Pid::from_raw(0);

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

/// While this is open and 0 was written, processors do not sleep.
const AWAKE: &str = "/dev/cpu_dma_latency";

/// Keeps processors awake until it is dropped, where the kernel can: to wake one
/// takes longer than much of what is measured.
pub fn awake() -> Option<File> {
    let open = || {
        let mut file = OpenOptions::new().write(true).open(AWAKE)?;
        file.write_all(&0_i32.to_ne_bytes())?;
        std::io::Result::Ok(file)
    };
    open()
        .inspect_err(|error| eprintln!("    processors may sleep: {AWAKE}: {error}"))
        .ok()
}

/// Processors that threads may be told to use.
#[derive(Debug, Clone, Copy)]
pub struct Processors(CpuSet);

impl Processors {
    /// Those that the calling thread may use.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn allowed() -> Result<Self> {
        Ok(Self(sched_getaffinity(SELF)?))
    }

    /// Leaves a thread, or a process of one, the processor in this place; any,
    /// if there are not so many.
    ///
    /// # Errors
    /// There is no such thread.
    pub fn pin(&self, id: Pid, place: usize) -> Result<()> {
        let mut all = (0..CpuSet::count()).filter(|cpu| self.0.is_set(*cpu).unwrap_or(false));
        let only = all.nth(place).map(|cpu| {
            let mut only = CpuSet::new();
            only.set(cpu).map(|()| only)
        });
        let set = only.transpose()?.unwrap_or(self.0);
        Ok(sched_setaffinity(id, &set)?)
    }
}

/// The calling thread at real-time priority. When this is dropped it is an
/// ordinary one again and may use all its processors, else what it starts could
/// not either.
#[derive(Debug)]
pub struct RealTime(Processors);

impl RealTime {
    /// As [`in_real_time`].
    ///
    /// # Errors
    /// With what chrt(1) said.
    pub fn begin() -> Result<Self> {
        let processors = Processors::allowed()?;
        in_real_time(&gettid().to_string())?;
        Ok(Self(processors))
    }

    fn end(&self) -> Result<()> {
        sched_setaffinity(SELF, &self.0.0)?;
        let chrt = command("chrt", &["--other", "--pid", "0", &gettid().to_string()]);
        run(chrt, Duration::from_secs(5))?.success().map(drop)
    }
}

impl Drop for RealTime {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("bench: this thread stays at real-time priority: {error:#}");
        }
    }
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
