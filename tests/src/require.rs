//! What a test needs from kernel and machine, and what happens without it.
//!
//! A test that lacks something is skipped: it says so by name on stderr,
//! and appends a line to the file named by `LAB_SKIPS`, so that a runner can
//! count it as skipped rather than passed. With `LAB=required` in the
//! environment, which CI sets, it fails instead.

use nix::sched::{CloneFlags, unshare};

use crate::command::{command, run};
use crate::netlink::{NFNL_SUBSYS_CTHELPER, NFNL_SUBSYS_QUEUE, NLM_F_DUMP, ask, attribute};
use crate::programs::Older;
use crate::wait::patience;

/// Set for a full run, with everything that takes long.
pub const FULL: &str = "LAB_FULL";

/// Set to the kernel's version inside the laboratory's VM.
pub const IN_VM: &str = "LAB_VM";

/// True inside the laboratory's VM.
#[must_use]
pub fn in_vm() -> bool {
    std::env::var_os(IN_VM).is_some()
}

/// Something a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root in the initial user namespace.
    Root,
    /// Userspace conntrack helpers.
    Cthelper,
    /// The `queue` statement of nftables.
    NftQueue,
    /// The conntrack of a queued packet in NFQUEUE messages.
    QueueConntrack,
    /// All that a test of nft-ftp-helper with its ruleset takes.
    OurHelper,
    /// `ct helper` objects, with the kernel's own FTP helper.
    KernelFtp,
    /// `ct expectation` objects.
    NftCtExpectation,
    /// A program on the search path.
    Program(&'static str),
    /// A server program ([`crate::programs::server`]).
    Server(&'static str),
    /// The nft of another version ([`crate::programs::other_nft`]).
    OtherNft,
    /// A build of ctsync from this repository's history
    /// ([`crate::programs::older`]).
    Older(Older),
    /// A program of this workspace, built ([`crate::programs`]).
    Built(&'static str),
}

impl Need {
    /// `None` if it is there; otherwise what is missing, by name.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let (there, name) = match self {
            Self::Root => (nix::unistd::geteuid().is_root(), "root".to_owned()),
            Self::Cthelper => (
                has_cthelper(),
                kernel("nfnetlink_cthelper", "CONFIG_NF_CT_NETLINK_HELPER"),
            ),
            Self::NftQueue => (nft_takes(QUEUE), kernel("nft_queue", "CONFIG_NFT_QUEUE")),
            Self::QueueConntrack => (
                has_queue_conntrack(),
                kernel("nfnetlink_queue", "CONFIG_NETFILTER_NETLINK_GLUE_CT"),
            ),
            Self::OurHelper => return missing(OUR_HELPER),
            Self::KernelFtp => (
                nft_takes(KERNEL_FTP),
                kernel("nf_conntrack_ftp", "CONFIG_NF_CONNTRACK_FTP"),
            ),
            Self::NftCtExpectation => (nft_takes(EXPECTATION), kernel("nft_ct", "CONFIG_NFT_CT")),
            Self::Program(name) => (crate::programs::on_path(name), format!("program {name}")),
            Self::Server(name) => (crate::programs::has_server(name), format!("server {name}")),
            Self::OtherNft => (
                crate::programs::other_nft().is_some(),
                "another nft (set LAB_NFT)".to_owned(),
            ),
            Self::Older(build) => (
                crate::programs::older(build).is_some(),
                format!("ctsync of the past, {build:?} (this repository's history; set LAB_OLDER)"),
            ),
            Self::Built(name) => (
                crate::programs::built(name).is_ok(),
                format!("program {name} (set LAB_BIN)"),
            ),
        };
        (!there).then_some(name)
    }
}

/// True in a full run.
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os(FULL).is_some()
}

/// True in a full run; otherwise says that the test is left out.
pub fn with_full(test: &str) -> bool {
    let full = is_full();
    if !full {
        crate::skip::left_out(test, "runs with --full alone");
    }
    full
}

/// [`Need::OurHelper`].
const OUR_HELPER: &[Need] = &[
    Need::Root,
    Need::Cthelper,
    Need::NftQueue,
    Need::QueueConntrack,
    Need::Built("nft-ftp-helper"),
    Need::Built("nft-ftp-ruleset"),
];

/// `None` if everything is there; otherwise what is missing, by name.
#[must_use]
pub fn missing(needs: &[Need]) -> Option<String> {
    let missing: Vec<_> = needs.iter().filter_map(|need| need.missing()).collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

fn kernel(module: &str, symbol: &str) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("module {module} ({symbol}) in kernel {}", release.trim())
}

const QUEUE: &str = "add table inet t
add chain inet t c { type filter hook input priority 0; }
add rule inet t c queue num 0";

const KERNEL_FTP: &str = "add table inet t
add ct helper inet t h { type \"ftp\" protocol tcp; }";

const EXPECTATION: &str = "add table ip t
add ct expectation ip t e { protocol tcp; dport 2000; timeout 1s; size 1; l3proto ip; }";

/// Dumps the registered helpers: a kernel without the subsystem answers
/// EINVAL (nfnetlink.c, `nfnetlink_rcv_msg`).
fn has_cthelper() -> bool {
    const NFNL_MSG_CTHELPER_GET: u8 = 1;
    let answer = ask(
        NFNL_SUBSYS_CTHELPER,
        NFNL_MSG_CTHELPER_GET,
        NLM_F_DUMP,
        0,
        &[],
    );
    matches!(answer, Ok(Ok(())))
}

/// Binds a queue with `NFQA_CFG_F_CONNTRACK`: refused with EOPNOTSUPP if the
/// glue is missing (nfnetlink_queue.c, `nfqnl_recv_config`). A queue that
/// is new because the module has just been loaded needs a second try
/// (EAGAIN).
fn has_queue_conntrack() -> bool {
    const NFQNL_MSG_CONFIG: u8 = 2;
    const BIND: [u8; 4] = [1, 0, 0, 0];
    const CONNTRACK: [u8; 4] = [0, 0, 0, 2];
    let mut attributes = attribute(1, &BIND);
    attributes.extend(attribute(4, &CONNTRACK));
    attributes.extend(attribute(5, &CONNTRACK));
    in_fresh_namespace(|| {
        (0..3).any(|_| {
            let answer = ask(NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG, 0, 0, &attributes);
            matches!(answer, Ok(Ok(())))
        })
    })
}

/// True if nft and the kernel take these commands.
fn nft_takes(rules: &str) -> bool {
    let Ok(file) = crate::netns::text_file(rules) else {
        return false;
    };
    let nft = command("nft", &["-f", &file.path().to_string_lossy()]);
    in_fresh_namespace(|| run(nft, patience()).is_ok_and(|nft| nft.ok()))
}

/// Runs in a thread whose network namespace is new and dies with it.
fn in_fresh_namespace(probe: impl FnOnce() -> bool + Send) -> bool {
    std::thread::scope(|scope| {
        scope
            .spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok() && probe())
            .join()
            .unwrap_or(false)
    })
}

/// What a skipped test returns: so that [`require!`] fits tests with and
/// without a result.
pub trait Skipped {
    /// The value of a test that did nothing.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Reports what is missing; true if the test has to be skipped.
///
/// # Panics
/// If something is missing and `LAB=required`.
#[must_use]
pub fn skip(test: &str, needs: &[Need]) -> bool {
    let Some(missing) = missing(needs) else {
        return false;
    };
    let test = test.strip_suffix("::lab_test_name").unwrap_or(test);
    crate::skip::missing(test, &missing);
    true
}

/// Skips the test (returns from it) unless everything named is there; with
/// `needs LIST`, everything in a slice.
///
/// ```no_run
/// # fn main() {
/// use lab::require::Need;
/// lab::require!(Need::Root, Need::Cthelper, Need::Program("vsftpd"));
/// # }
/// ```
#[macro_export]
macro_rules! require {
    (needs $needs:expr) => {{
        fn lab_test_name() {}
        let name = std::any::type_name_of_val(&lab_test_name);
        if $crate::require::skip(name, $needs) {
            return $crate::require::Skipped::skipped();
        }
    }};
    ($($need:expr),+ $(,)?) => {
        $crate::require!(needs &[$($need),+])
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let missing = Need::Program("no-such-program").missing();
        assert_eq!(missing.as_deref(), Some("program no-such-program"));
        assert_eq!(Need::Program("sh").missing(), None);
    }
}
