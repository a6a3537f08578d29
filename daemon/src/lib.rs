//! What the daemons of this workspace share: event loop, control socket,
//! metrics, service manager, logs, privileges.
//!
//! Everything here is single-threaded and never blocks the loop it is used
//! from: a slow or hostile client of the control or metrics socket costs a
//! bounded buffer and is then closed.

pub mod alarm;
pub mod client;
pub mod control;
pub mod doctor;
pub mod file;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod notify;
pub mod reactor;
pub mod sandbox;
pub mod signal;

#[cfg(test)]
#[path = "../../tests/src/skip.rs"]
mod skip;
mod stream;

pub use alarm::Alarm;
pub use client::Client;
pub use control::{ClientId, Server};
pub use reactor::Reactor;
