//! What the daemon's control socket understands.

use serde::{Deserialize, Serialize};

/// A request: `{"op":"status"}`, `{"op":"watch"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// One object with settings and counters.
    Status,
    /// A line per event of the core, until the client goes.
    Watch,
}
