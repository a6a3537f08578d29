//! Mirrors connections, expectations and helper state between firewalls, and
//! commits them into the kernel on failover.

pub mod cli;
pub mod commit;
pub mod config;
mod doctor;
mod errno;
pub mod hash;
pub mod kernel;
mod preflight;
pub mod record;
pub mod render;
pub mod replica;
pub mod rng;
pub mod run;
pub mod store;
pub mod transport;
pub mod udp;
pub mod wire;
