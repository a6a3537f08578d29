//! What can go wrong when the kernel is asked, in the user's terms.

use std::fmt;

use nix::errno::Errno;

use crate::ir::Origin;

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket operation failed.
    #[error("{operation}: {}", describe(*errno))]
    Socket {
        /// What was being done.
        operation: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// The ruleset changed under us more often than we tried.
    #[error("the nftables ruleset keeps changing: another program is loading rules (ERESTART)")]
    Changed,
    /// The kernel refused parts of the transaction; nothing was changed.
    #[error("{}", join(.0))]
    Refused(Vec<Refusal>),
    /// The kernel's answer made no sense.
    #[error("{operation}: unexpected answer from the kernel")]
    Answer {
        /// What was being done.
        operation: &'static str,
    },
}

/// One thing the kernel refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked for.
    pub label: Label,
    /// Why not.
    pub errno: Errno,
    /// The kernel's own words, if it had any.
    pub text: Option<String>,
}

/// What a message of a transaction is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Operation and object: `adding chain "assign"`.
    pub what: String,
    /// The kind of thing, for messages that depend on it.
    pub subject: Subject,
    /// The part of the policy that asked for it.
    pub origin: Origin,
}

/// The kind of thing a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Begin or end of the transaction.
    Edge,
    /// The table.
    Table,
    /// A `ct helper` object for this helper.
    Helper(String),
    /// A `ct expectation` object.
    Expectation,
    /// Another object.
    Object,
    /// A set.
    Set,
    /// Elements of a set.
    Elements,
    /// A chain; true if it does NAT.
    Chain {
        /// `type nat`.
        nat: bool,
    },
    /// A rule.
    Rule,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.label.what, describe(self.errno))?;
        if let Some(text) = &self.text {
            write!(f, "; the kernel says: {text}")?;
        }
        if let Some(hint) = hint(self) {
            write!(f, "\n{hint}")?;
        }
        Ok(())
    }
}

/// The kernel reports every message that failed because an earlier one did;
/// only causes are worth reading.
#[must_use]
pub fn causes(refusals: Vec<Refusal>) -> Vec<Refusal> {
    let missing = |refusal: &Refusal| refusal.errno == Errno::ENOENT;
    let object_missing = refusals
        .iter()
        .any(|refusal| missing(refusal) && refusal.label.subject != Subject::Rule);
    let mut kept = refusals;
    if object_missing {
        kept.retain(|refusal| !(missing(refusal) && refusal.label.subject == Subject::Rule));
    }
    if kept
        .iter()
        .any(|refusal| refusal.label.subject != Subject::Edge)
    {
        kept.retain(|refusal| refusal.label.subject != Subject::Edge);
    }
    kept
}

fn join(refusals: &[Refusal]) -> String {
    let lines: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

fn hint(refusal: &Refusal) -> Option<String> {
    match (&refusal.label.subject, refusal.errno) {
        (Subject::Helper(name), Errno::ENOENT) => Some(helper_hint(name)),
        (Subject::Expectation, Errno::EOPNOTSUPP) => Some(
            "the kernel lacks ct expectation objects (module nft_ct, CONFIG_NFT_CT)".to_owned(),
        ),
        (Subject::Chain { nat: true }, Errno::ENOENT | Errno::EOPNOTSUPP) => {
            Some("the kernel lacks NAT chains (module nft_chain_nat, CONFIG_NFT_NAT)".to_owned())
        }
        (Subject::Table, Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => Some(
            "the kernel lacks inet tables (module nf_tables, CONFIG_NF_TABLES_INET)".to_owned(),
        ),
        _ => None,
    }
}

fn helper_hint(name: &str) -> String {
    if name == "ftp" {
        return "the kernel's ftp helper is missing (module nf_conntrack_ftp, \
                CONFIG_NF_CONNTRACK_FTP)"
            .to_owned();
    }
    format!("helper {name} is not registered: start nft-ftp-helper first")
}

/// Text and name of an errno, and what to do where that is known.
#[must_use]
pub fn describe(errno: Errno) -> String {
    let text = format!("{} ({errno:?})", errno.desc().to_lowercase());
    match errno {
        Errno::EPERM => format!("{text}: CAP_NET_ADMIN in this network namespace is needed"),
        Errno::EMSGSIZE => format!("{text}: raise net.core.wmem_max or run as root"),
        Errno::EPROTONOSUPPORT => {
            format!("{text}: the kernel lacks nfnetlink (CONFIG_NETFILTER_NETLINK)")
        }
        _ => text,
    }
}
