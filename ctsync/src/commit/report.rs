//! What a commit tells.

use serde::Serialize;
use std::collections::BTreeMap;

/// What a commit has done. Counts of entries.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Connections that are in the kernel now.
    pub flows: u64,
    /// Expectations that are in the kernel now.
    pub expectations: u64,
    /// Failures by errno.
    pub failed: BTreeMap<String, u64>,
    /// Seconds it took.
    pub seconds: f64,
    /// Of the connections, those that were there and have been updated.
    pub updated: u64,
    /// Of the connections, those that were there otherwise and have been
    /// replaced.
    pub replaced: u64,
    /// Connections committed without their helper, by helper: it is not
    /// registered here.
    pub without_helper: BTreeMap<String, u64>,
    /// Connections from which the kernel has taken the helper again, by
    /// helper.
    pub helper_lost: BTreeMap<String, u64>,
    /// Why helpers are missing, by helper.
    pub helper_missing_because: BTreeMap<String, String>,
    /// Connections committed without their master: it is gone.
    pub without_master: u64,
    /// Helpers whose private data could not be restored, by errno.
    pub helper_data_failed: BTreeMap<String, u64>,
    /// Entries left out because this node owns newer ones.
    pub skipped: u64,
}

impl Report {
    /// True if nothing failed and no helper is missing or lost.
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty()
            && self.without_helper.is_empty()
            && self.helper_lost.is_empty()
            && self.helper_data_failed.is_empty()
    }
}
