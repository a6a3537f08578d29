//! Counters that the queue threads write and the control thread reads.

use crate::core::Reason;
use std::sync::atomic::{AtomicU64, Ordering};

/// Figures besides the core's reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Packets received from queues.
    Packets,
    /// Packets that carry no text of a control connection (no data, not TCP,
    /// related, without conntrack).
    Passed,
    /// Packets of data connections, which some kernels give the helper too.
    DataPackets,
    /// Data connections that were taken off the queue.
    DataReleased,
    /// Queue messages or packets that could not be decoded; accepted.
    Malformed,
    /// Verdicts on packets that were gone (a ruleset reload flushes queues).
    Gone,
    /// Packets whose text was rewritten.
    Rewritten,
    /// Kernel expectations created.
    Expectations,
    /// Kernel expectations renewed.
    Renewed,
    /// Kernel expectations removed.
    Removed,
    /// Packets dropped because their rewrite failed.
    RewriteErrors,
    /// Kernel requests that failed.
    KernelErrors,
    /// Watch events dropped because nobody could take them in time.
    EventsLost,
}

impl Figure {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::Packets,
        Self::Passed,
        Self::DataPackets,
        Self::DataReleased,
        Self::Malformed,
        Self::Gone,
        Self::Rewritten,
        Self::Expectations,
        Self::Renewed,
        Self::Removed,
        Self::RewriteErrors,
        Self::KernelErrors,
        Self::EventsLost,
    ];

    /// Name in `status` and metrics, and what it counts.
    pub const fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::Packets => ("packets", "Packets received from queues"),
            Self::Passed => ("passed", "Packets without text of a control connection"),
            Self::DataPackets => ("data_packets", "Packets of data connections"),
            Self::DataReleased => ("data_released", "Data connections taken off the queue"),
            Self::Malformed => ("malformed", "Messages or packets that could not be decoded"),
            Self::Gone => ("gone", "Verdicts on packets that were gone"),
            Self::Rewritten => ("rewritten", "Packets whose text was rewritten"),
            Self::Expectations => ("expectations", "Kernel expectations created"),
            Self::Renewed => ("renewed", "Kernel expectations renewed"),
            Self::Removed => ("removed", "Kernel expectations removed"),
            Self::RewriteErrors => ("rewrite_errors", "Packets whose rewrite failed; dropped"),
            Self::KernelErrors => ("kernel_errors", "Kernel requests that failed"),
            Self::EventsLost => ("events_lost", "Watch events dropped"),
        }
    }
}

/// Counters of one queue thread.
#[derive(Debug)]
pub struct Stats {
    figures: [AtomicU64; Figure::ALL.len()],
    reasons: [AtomicU64; Reason::ALL.len()],
    /// Grows with every turn of the thread's loop.
    pub turns: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            figures: [const { AtomicU64::new(0) }; Figure::ALL.len()],
            reasons: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            turns: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// Adds one to `figure`.
    pub fn count(&self, figure: Figure) {
        self.add(figure, 1);
    }

    /// Adds `n` to `figure`.
    pub fn add(&self, figure: Figure, n: u64) {
        if let Some(cell) = self.figures.get(figure as usize) {
            cell.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Adds one to `reason`.
    pub fn reason(&self, reason: Reason) {
        if let Some(cell) = self.reasons.get(reason as usize) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The value of `figure`.
    pub fn figure(&self, figure: Figure) -> u64 {
        read(self.figures.get(figure as usize))
    }

    /// How often `reason` was given.
    pub fn reason_count(&self, reason: Reason) -> u64 {
        read(self.reasons.get(reason as usize))
    }
}

fn read(cell: Option<&AtomicU64>) -> u64 {
    cell.map_or(0, |c| c.load(Ordering::Relaxed))
}
