//! Kernel errors in the administrator's terms.

use netfilter::Error;
use std::time::Duration;
use thiserror::Error as ThisError;

/// Time since some moment, to a few milliseconds, that never goes back. Where
/// the processor's counter can't be used, asking for the exact time is a system
/// call; this is none.
pub fn coarse_now() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    now.map_or(Duration::ZERO, Duration::from)
}

/// A command could not be carried out.
#[derive(Debug, ThisError)]
pub enum Failure {
    /// The kernel lacks a part; names the module and the Kconfig symbol.
    #[error(
        "{operation}: this kernel has no {module}; load the module, or use a kernel built with {symbol}"
    )]
    Missing {
        /// What was tried.
        operation: String,
        /// Kernel module.
        module: &'static str,
        /// Kconfig symbol.
        symbol: &'static str,
    },
    /// No privilege.
    #[error("{0}: needs CAP_NET_ADMIN in the initial user namespace")]
    Privilege(String),
    /// Another helper has the name.
    #[error("{operation}: another helper has this name for the same protocol{hint}")]
    NameTaken {
        /// What was tried.
        operation: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Another process owns the queue.
    #[error("{0}: another process is bound to this queue")]
    QueueTaken(String),
    /// Anything else.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The operating system, outside netlink.
    #[error("{operation}: {error}")]
    System {
        /// What was tried.
        operation: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The configuration, with its place.
    #[error("{0}")]
    Config(String),
    /// The daemon does not run or refused.
    #[error("{0}")]
    Daemon(String),
}

impl Failure {
    /// A system error of `operation`.
    pub fn system(operation: impl Into<String>, error: std::io::Error) -> Self {
        Self::System {
            operation: operation.into(),
            error,
        }
    }
}

/// Reads an error of the helper registry (nfnetlink.c, `nfnetlink_rcv_msg`:
/// a subsystem that is not there gives `EINVAL` whatever the request).
pub fn registry(error: Error) -> Failure {
    match error.errno {
        libc::EPERM => Failure::Privilege(error.operation),
        libc::EINVAL | libc::EOPNOTSUPP => Failure::Missing {
            operation: error.operation,
            module: "nfnetlink_cthelper",
            symbol: "CONFIG_NF_CT_NETLINK_HELPER",
        },
        _ => Failure::Kernel(error),
    }
}

/// Reads an error of a registration, once the registry is known to be there.
pub fn registration(error: Error, name: &str) -> Failure {
    let hint = if name == "ftp" {
        ": the kernel's own (module nf_conntrack_ftp); choose another --helper-name"
    } else {
        ""
    };
    match error.errno {
        libc::EPERM => Failure::Privilege(error.operation),
        libc::EBUSY | libc::EEXIST => Failure::NameTaken {
            operation: error.operation,
            hint,
        },
        _ => Failure::Kernel(error),
    }
}

/// Reads an error of binding or configuring a queue.
pub fn queue(error: Error) -> Failure {
    match error.errno {
        // The kernel says EPERM to strangers of a bound queue, too.
        libc::EPERM if daemon::sandbox::has_net_admin() => Failure::QueueTaken(error.operation),
        libc::EPERM => Failure::Privilege(error.operation),
        libc::EBUSY => Failure::QueueTaken(error.operation),
        libc::EINVAL => Failure::Missing {
            operation: error.operation,
            module: "nfnetlink_queue",
            symbol: "CONFIG_NETFILTER_NETLINK_QUEUE",
        },
        libc::EOPNOTSUPP => Failure::Missing {
            operation: error.operation,
            module: "conntrack support in nfnetlink_queue",
            symbol: "CONFIG_NETFILTER_NETLINK_GLUE_CT",
        },
        _ => Failure::Kernel(error),
    }
}
