//! Tests of the pure core through its public interface.
#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    reason = "a test that panics has failed"
)]
#![allow(dead_code, reason = "each test uses a part of the network")]

mod block;
mod dialogue;
mod model;
mod nat;
mod net;
mod packet;
mod plain;
mod random;
mod transport;
