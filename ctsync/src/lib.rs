//! Mirrors connections, expectations and helper state between firewalls, and
//! commits them into the kernel on failover.

pub mod hash;
pub mod record;
pub mod replica;
pub mod rng;
pub mod store;
pub mod wire;
