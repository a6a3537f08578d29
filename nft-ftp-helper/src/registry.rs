//! The helper's registration in the kernel: one per family and queue.
//!
//! The registry is global to the machine while queues belong to a network
//! namespace, and a registration outlives the process that made it. An
//! enabled helper with nobody on its queue stalls control connections, so
//! every way out ends with [`Registry::disable`].

use crate::support::{self, Failure};
use netfilter::cthelper::{self, Helper, HelperStatus, Policy};
use netfilter::tuple::{AF_INET, AF_INET6, IPPROTO_TCP};
use netfilter::{Name, Socket};
use std::ops::RangeInclusive;

/// Families a helper is registered for.
const FAMILIES: [u8; 2] = [AF_INET, AF_INET6];

/// What is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Name of the first helper; the others append `-1`, `-2`, …
    pub name: Name,
    /// One helper per queue.
    pub queues: RangeInclusive<u16>,
    /// Live expectations per control connection, 1 to 255.
    pub max_expected: u32,
    /// Seconds an expectation lives.
    pub expect_timeout_secs: u32,
}

/// Bytes of private data: all the kernel has.
pub const PRIV_DATA_LEN: u32 = 32;

impl Spec {
    /// Name and queue of every helper.
    ///
    /// # Errors
    /// A name with its suffix is above 15 bytes.
    pub fn helpers(&self) -> Result<Vec<(Name, u16)>, Failure> {
        self.queues
            .clone()
            .enumerate()
            .map(|(i, queue)| Ok((numbered(&self.name, i)?, queue)))
            .collect()
    }
}

/// `name` for the first queue, `name-1`, `name-2`, … for the others.
fn numbered(name: &Name, index: usize) -> Result<Name, Failure> {
    let text = match index {
        0 => name.to_string(),
        i => format!("{name}-{i}"),
    };
    match text.parse() {
        Ok(name) if text.len() <= Name::HELPER_MAX => Ok(name),
        _ => Err(Failure::Config(format!(
            "helper name {text:?} is longer than {} bytes",
            Name::HELPER_MAX
        ))),
    }
}

/// Access to the kernel's registry.
#[derive(Debug)]
pub struct Registry {
    socket: Socket,
}

impl Registry {
    /// Opens the registry.
    ///
    /// # Errors
    /// No nfnetlink, no privilege or no nfnetlink_cthelper.
    pub fn open() -> Result<Self, Failure> {
        let mut registry = Self {
            socket: Socket::open()?,
        };
        registry.list()?;
        Ok(registry)
    }

    /// All userspace helpers of the machine, whoever registered them.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn list(&mut self) -> Result<Vec<Helper>, Failure> {
        let mut helpers = Vec::new();
        self.socket
            .exchange("listing conntrack helpers", cthelper::dump, |message| {
                let decoded = message.netfilter().map(|nf| Helper::decode(nf.attrs));
                match decoded {
                    Some(Ok(helper)) => helpers.push(helper),
                    Some(Err(error)) => tracing::warn!(%error, "helper from the kernel"),
                    None => {}
                }
            })
            .map_err(support::registry)?;
        Ok(helpers)
    }

    /// Registers every helper of `spec`, or adopts and updates what a former
    /// process left behind.
    ///
    /// # Errors
    /// The name belongs to the kernel or to a helper of another shape, or a
    /// limit is out of range.
    pub fn register(&mut self, spec: &Spec, status: HelperStatus) -> Result<(), Failure> {
        for (name, queue) in spec.helpers()? {
            for family in FAMILIES {
                let helper = Helper {
                    name,
                    family,
                    l4proto: IPPROTO_TCP,
                    queue,
                    policies: vec![Policy {
                        name,
                        max: spec.max_expected,
                        timeout_secs: spec.expect_timeout_secs,
                    }],
                    priv_data_len: PRIV_DATA_LEN,
                    status,
                };
                self.socket
                    .request(&describe("registering", &name, family), |buf, seq| {
                        cthelper::new(buf, &helper, seq)
                    })
                    .map_err(|e| support::registration(e, name.as_str()))?;
            }
        }
        Ok(())
    }

    /// Lets control connections pass unqueued. Carries on after a failure and
    /// reports the first one; a helper that does not exist is none.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn disable(&mut self, spec: &Spec) -> Result<(), Failure> {
        let mut first = Ok(());
        let listed = self.list()?;
        for (name, family) in present(&listed, &spec.helpers()?) {
            let done = self
                .socket
                .request(&describe("disabling", &name, family), |buf, seq| {
                    cthelper::set_status(
                        buf,
                        &name,
                        family,
                        IPPROTO_TCP,
                        HelperStatus::Disabled,
                        seq,
                    )
                });
            if let Err(error) = done {
                first = first.and(Err(support::registry(error)));
            }
        }
        first
    }

    /// Disables and deletes. Returns whether all are gone: a helper that a
    /// ruleset or connection refers to stays, disabled.
    ///
    /// # Errors
    /// The kernel refused for another reason than use.
    pub fn unregister(&mut self, spec: &Spec) -> Result<bool, Failure> {
        self.disable(spec)?;
        let mut gone = true;
        let listed = self.list()?;
        for (name, family) in present(&listed, &spec.helpers()?) {
            let done = self
                .socket
                .request(&describe("deleting", &name, family), |buf, seq| {
                    cthelper::delete(buf, &name, family, IPPROTO_TCP, seq)
                });
            match done {
                Ok(()) => {}
                Err(error) if error.errno == libc::EBUSY => gone = false,
                Err(error) => return Err(support::registry(error)),
            }
        }
        Ok(gone)
    }
}

fn present(listed: &[Helper], wanted: &[(Name, u16)]) -> Vec<(Name, u8)> {
    listed
        .iter()
        .filter(|h| h.l4proto == IPPROTO_TCP && wanted.iter().any(|(name, _)| *name == h.name))
        .map(|h| (h.name, h.family))
        .collect()
}

fn describe(verb: &str, name: &Name, family: u8) -> String {
    let family = if family == AF_INET { "ip" } else { "ip6" };
    format!("{verb} helper {name} ({family} tcp)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, queues: RangeInclusive<u16>) -> Spec {
        Spec {
            name: name.parse().unwrap(),
            queues,
            max_expected: 4,
            expect_timeout_secs: 300,
        }
    }

    #[test]
    fn each_queue_has_a_helper_of_its_own() {
        let helpers = spec("nft-ftp", 121..=123).helpers().unwrap();
        let names: Vec<_> = helpers
            .iter()
            .map(|(name, queue)| (name.as_str(), *queue))
            .collect();
        assert_eq!(
            names,
            [("nft-ftp", 121), ("nft-ftp-1", 122), ("nft-ftp-2", 123)]
        );
    }

    #[test]
    fn a_name_too_long_for_the_kernel_is_refused() {
        assert!(spec("exactly15bytes-", 1..=1).helpers().is_ok());
        assert!(spec("exactly15bytes-", 1..=2).helpers().is_err());
        assert!(spec("more-than-15-bytes", 1..=1).helpers().is_err());
    }
}
