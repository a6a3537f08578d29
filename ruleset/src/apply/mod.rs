//! Talks to the kernel: libnftnl builds the messages, libmnl carries them.
//!
//! The only module of the crate with `unsafe`: [`nl`] wraps libnftnl's
//! objects, [`socket`] the netlink socket. [`batch`] turns a ruleset into one
//! transaction and [`error`] the kernel's answer into the user's terms.

pub mod batch;
pub mod error;
mod nl;
mod socket;

pub use error::Error;

use crate::ir::Ruleset;

/// How often a transaction is rebuilt when someone else changes the ruleset
/// between reading the generation and committing.
const ATTEMPTS: u32 = 10;

/// Replaces our table by `ruleset`, in one transaction.
///
/// # Errors
/// What the kernel said, and which part of the ruleset it was about.
pub fn load(ruleset: &Ruleset) -> Result<(), Error> {
    transact(|generation| batch::replace(ruleset, generation))
}

/// Asks the kernel whether it would take `ruleset`; changes nothing.
///
/// # Errors
/// As [`load`].
pub fn check(ruleset: &Ruleset) -> Result<(), Error> {
    transact(|generation| batch::replace(ruleset, generation).abandon())
}

/// Removes our table, if it is there.
///
/// # Errors
/// What the kernel said.
pub fn unload(table: &str) -> Result<(), Error> {
    transact(|generation| batch::remove(table, generation))
}

fn transact(build: impl Fn(u32) -> batch::Batch) -> Result<(), Error> {
    for _ in 1..ATTEMPTS {
        let mut socket = socket::Socket::open()?;
        let generation = socket.generation()?;
        match socket.commit(build(generation)) {
            Err(Error::Changed) => {}
            other => return other,
        }
    }
    Err(Error::Changed)
}
