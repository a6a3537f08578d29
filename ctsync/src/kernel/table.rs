//! Dumps of the connection table that leave nothing out without a word.

use super::sysctl;
use netfilter::conntrack::{self, DumpFilter};
use netfilter::{Error, Flow, Socket};

const DUMPING: &str = "dumping connections";

/// How many buckets the connection table has, if the kernel tells.
///
/// A dump is continued by number of bucket (nf_conntrack_netlink.c,
/// `ctnetlink_dump_table`). If somebody writes `nf_conntrack_buckets`
/// meanwhile, in whatever namespace, it goes on in another table: entries come
/// twice where that has become larger, and not at all where it has become
/// smaller, without `NLM_F_DUMP_INTR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(Option<u64>);

impl Size {
    /// At this moment.
    pub fn now() -> Self {
        Self(sysctl::number("nf_conntrack_buckets"))
    }

    /// True if a dump that began when the table had this size, and has just
    /// ended, may lack entries.
    pub fn has_changed(self) -> bool {
        self != Self::now()
    }
}

/// Hands each connection of the kernel to `each`.
///
/// # Errors
/// [`Error`] of the kernel; `EINTR` if the table was resized meanwhile
/// ([`was_resized`]): entries may be missing, or have come twice.
pub fn dump(socket: &mut Socket, mut each: impl FnMut(&Flow)) -> Result<(), Error> {
    let begun = Size::now();
    socket.exchange(
        DUMPING,
        |buf, seq| conntrack::dump(buf, &DumpFilter::default(), seq),
        |m| {
            if let Ok(Some(event)) = conntrack::Event::decode(m) {
                each(&event.flow);
            }
        },
    )?;
    match begun.has_changed() {
        true => Err(resized()),
        false => Ok(()),
    }
}

fn resized() -> Error {
    Error {
        text: Some("the connection table was resized meanwhile, try again".into()),
        ..Error::new(DUMPING, libc::EINTR)
    }
}

/// True for the error of a dump that is to be made again.
pub fn was_resized(error: &Error) -> bool {
    *error == resized()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_of_a_table_that_is_resized_is_told_from_other_failures() {
        // No table has so many.
        assert!(Size(Some(0)).has_changed());
        assert!(was_resized(&resized()));
        assert!(!was_resized(&Error::new(DUMPING, libc::EINTR)));
        assert_eq!(
            resized().to_string(),
            "dumping connections: interrupted system call (EINTR): \
             the connection table was resized meanwhile, try again"
        );
    }
}
