//! Talks to the kernel: libnftnl builds the messages, libmnl carries them.
//!
//! The only module of the crate with `unsafe`: [`nl`] wraps libnftnl's
//! objects, [`socket`] the netlink socket. [`batch`] turns steps into one
//! transaction and [`error`] the kernel's answer into the user's terms.

pub mod batch;
pub mod error;
mod nl;
mod socket;

pub use error::Error;

use crate::ir::Ruleset;
use crate::live::Live;
use crate::plan::{self, Step};
use batch::Batch;

/// How often a transaction is rebuilt when someone else changes the ruleset
/// between reading it and committing.
const ATTEMPTS: u32 = 20;

/// What is asked of the kernel.
trait Kernel {
    /// Number of the ruleset's current generation.
    fn generation(&mut self) -> Result<u32, Error>;

    /// Our table; its rules and elements only if `whole`.
    fn read(&mut self, table: &str, whole: bool) -> Result<Live, Error>;

    /// Carries out a transaction, or none of it.
    fn commit(&mut self, batch: Batch) -> Result<(), Error>;
}

/// What becomes of a transaction that the kernel would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    Abandon,
}

/// Makes our table what `ruleset` says, in one transaction.
///
/// # Errors
/// What the kernel said, and which part of the ruleset it was about.
pub fn load(ruleset: &Ruleset) -> Result<(), Error> {
    replace(&mut socket::Socket::open()?, ruleset, End::Commit)
}

/// Asks the kernel whether it would take `ruleset`; changes nothing.
///
/// # Errors
/// As [`load`].
pub fn check(ruleset: &Ruleset) -> Result<(), Error> {
    replace(&mut socket::Socket::open()?, ruleset, End::Abandon)
}

/// Removes our table, if it is there.
///
/// # Errors
/// What the kernel said.
pub fn unload(table: &str) -> Result<(), Error> {
    let mut kernel = socket::Socket::open()?;
    again(|| {
        let generation = kernel.generation()?;
        kernel.commit(batch::build(table, &plan::removal(), generation))
    })
}

/// Our table as it is, all from one generation.
///
/// # Errors
/// What the kernel said.
pub fn read(table: &str) -> Result<Live, Error> {
    let mut kernel = socket::Socket::open()?;
    again(|| {
        let before = kernel.generation()?;
        let live = kernel.read(table, true)?;
        if kernel.generation()? == before {
            Ok(live)
        } else {
            Err(Error::Changed)
        }
    })
}

/// The generation read before the table is part of the transaction: the
/// kernel refuses it if anything has changed since.
fn replace(kernel: &mut impl Kernel, ruleset: &Ruleset, end: End) -> Result<(), Error> {
    again(|| {
        let generation = kernel.generation()?;
        let live = kernel.read(&ruleset.table, false)?;
        let steps: Vec<Step<'_>> = plan::plan(&live, ruleset);
        let batch = batch::build(&ruleset.table, &steps, generation);
        kernel.commit(match end {
            End::Commit => batch,
            End::Abandon => batch.abandon(),
        })
    })
}

fn again<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(Error::Changed) => {}
            other => return other,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Someone else commits a number of times just before we do.
    struct Busy {
        generation: u32,
        others: u32,
        committed: bool,
    }

    impl Kernel for Busy {
        fn generation(&mut self) -> Result<u32, Error> {
            Ok(self.generation)
        }

        fn read(&mut self, _: &str, _: bool) -> Result<Live, Error> {
            Ok(Live::default())
        }

        fn commit(&mut self, batch: Batch) -> Result<(), Error> {
            if self.others > 0 {
                self.others -= 1;
                self.generation += 1;
            }
            if batch.generation() != self.generation {
                return Err(Error::Changed);
            }
            self.committed = true;
            Ok(())
        }
    }

    fn load_while(others: u32) -> (Result<(), Error>, bool) {
        let ruleset = Ruleset {
            table: "t".to_owned(),
            objects: Vec::new(),
            sets: Vec::new(),
            chains: Vec::new(),
        };
        let mut kernel = Busy {
            generation: 7,
            others,
            committed: false,
        };
        let result = replace(&mut kernel, &ruleset, End::Commit);
        (result, kernel.committed)
    }

    #[test]
    fn transaction_is_built_anew_after_a_concurrent_change() {
        let (result, committed) = load_while(5);
        assert!(result.is_ok() && committed);
    }

    #[test]
    fn ruleset_that_never_stands_still_is_reported() {
        let (result, committed) = load_while(ATTEMPTS);
        assert!(matches!(result, Err(Error::Changed)) && !committed);
    }
}
