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
    /// Something that is in the way and has to go.
    Old,
    /// A rule, and the kernel modules that its statements live in.
    Rule(Vec<Module>),
}

/// A kernel module and the symbol that configures it.
pub type Module = (&'static str, &'static str);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        if let Some(hint) = self.hint() {
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
        .any(|refusal| missing(refusal) && !refusal.refers());
    let mut kept = refusals;
    if object_missing {
        kept.retain(|refusal| !(missing(refusal) && refusal.refers()));
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

impl Refusal {
    /// Rules and map elements refer to objects, which may be what is missing.
    fn refers(&self) -> bool {
        matches!(self.label.subject, Subject::Rule(_) | Subject::Elements)
    }

    /// Operation and object, errno, and the kernel's own words.
    #[must_use]
    pub fn message(&self) -> String {
        let mut message = format!("{}: {}", self.label.what, describe(self.errno));
        if let Some(text) = &self.text {
            message.push_str("; the kernel says: ");
            message.push_str(text);
        }
        message
    }

    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        hint(self)
    }
}

fn hint(refusal: &Refusal) -> Option<String> {
    match (&refusal.label.subject, refusal.errno) {
        (Subject::Helper(name), Errno::ENOENT) => Some(helper_hint(name)),
        (Subject::Helper(_), Errno::EOPNOTSUPP) => {
            Some("the kernel lacks ct helper objects (module nft_ct, CONFIG_NFT_CT)".to_owned())
        }
        (Subject::Rule(modules), Errno::ENOENT | Errno::EOPNOTSUPP) => modules_hint(modules),
        (Subject::Elements | Subject::Set, Errno::ENFILE) => {
            Some("a set of this table has a size limit that was reached".to_owned())
        }
        (Subject::Old, Errno::EBUSY) => Some(
            "something outside the table still refers to it: see `nft list ruleset`".to_owned(),
        ),
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

fn modules_hint(modules: &[Module]) -> Option<String> {
    if modules.is_empty() {
        return None;
    }
    let names: Vec<_> = modules
        .iter()
        .map(|(module, symbol)| format!("{module}, {symbol}"))
        .collect();
    Some(format!(
        "the kernel may lack what this rule needs (module {})",
        names.join("; ")
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(subject: Subject) -> Refusal {
        Refusal {
            label: Label {
                what: "adding".to_owned(),
                subject,
                origin: Origin::default(),
            },
            errno: Errno::ENOENT,
            text: None,
        }
    }

    #[test]
    fn what_follows_from_a_missing_helper_is_not_reported() {
        let cause = refusal(Subject::Helper("nft-ftp".to_owned()));
        let all = vec![
            cause.clone(),
            refusal(Subject::Elements),
            refusal(Subject::Rule(Vec::new())),
            refusal(Subject::Edge),
        ];
        assert_eq!(causes(all), [cause]);
    }

    /// Every kind of thing that a kernel may refuse for what it lacks.
    #[test]
    fn what_to_do_is_said_for_each_kind_of_thing() {
        let modules = vec![("nft_log", "CONFIG_NFT_LOG")];
        for (subject, errno, expected) in [
            (
                Subject::Helper("nft-ftp".to_owned()),
                Errno::ENOENT,
                "helper nft-ftp is not registered: start nft-ftp-helper first",
            ),
            (
                Subject::Helper("ftp".to_owned()),
                Errno::ENOENT,
                "CONFIG_NF_CONNTRACK_FTP",
            ),
            (
                Subject::Helper("nft-ftp".to_owned()),
                Errno::EOPNOTSUPP,
                "CONFIG_NFT_CT",
            ),
            (Subject::Expectation, Errno::EOPNOTSUPP, "CONFIG_NFT_CT"),
            (Subject::Table, Errno::EOPNOTSUPP, "CONFIG_NF_TABLES_INET"),
            (
                Subject::Chain { nat: true },
                Errno::ENOENT,
                "module nft_chain_nat",
            ),
            (
                Subject::Rule(modules),
                Errno::EOPNOTSUPP,
                "module nft_log, CONFIG_NFT_LOG",
            ),
            (Subject::Elements, Errno::ENFILE, "size limit"),
            (Subject::Set, Errno::ENFILE, "size limit"),
            (Subject::Old, Errno::EBUSY, "still refers to it"),
            (Subject::Object, Errno::EPERM, "CAP_NET_ADMIN"),
            (Subject::Edge, Errno::EMSGSIZE, "net.core.wmem_max"),
        ] {
            let mut refused = refusal(subject);
            refused.errno = errno;
            let text = refused.to_string();
            assert!(text.contains(expected), "no {expected:?} in {text}");
        }
    }

    #[test]
    fn rule_that_is_refused_for_itself_is_reported_with_its_module() {
        let modules = vec![("nft_masq", "CONFIG_NFT_MASQ")];
        let found = causes(vec![refusal(Subject::Rule(modules))]);
        let text = Error::Refused(found).to_string();
        assert!(text.contains("module nft_masq, CONFIG_NFT_MASQ"), "{text}");
    }
}
