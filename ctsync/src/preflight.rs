//! What must be there before a commit can succeed.

use crate::kernel::sysctl;
use netfilter::Socket;
use netfilter::cthelper::{self, HelperStatus};
use netfilter::message::{Header, Kind, NLM_F_DUMP, append};
use std::collections::BTreeMap;
use std::path::Path;

const SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_GETTABLE: u8 = 1;

/// What would make a commit incomplete: helpers by name with the number of
/// connections that need them.
pub fn problems(helpers: &BTreeMap<String, u64>) -> Vec<String> {
    let mut problems = Vec::new();
    let registered = userspace_helpers();
    for (name, flows) in helpers {
        match registered.get(name) {
            Some(true) => {}
            Some(false) => problems.push(format!(
                "helper {name} is registered but disabled; {flows} connections need it"
            )),
            None if is_kernel_helper(name) => {}
            None => problems.push(format!(
                "helper {name} is not registered; {flows} connections would be committed without it"
            )),
        }
    }
    if tables() == Some(0) {
        problems.push("no nftables ruleset is loaded".into());
    }
    problems
}

/// Says if the kernel's table has no room for so many more connections.
pub fn room(flows: u64) -> Option<String> {
    let max = sysctl::number("nf_conntrack_max")?;
    let count = sysctl::number("nf_conntrack_count")?;
    let left = max.saturating_sub(count);
    (left < flows).then(|| {
        format!(
            "the connection table has room for {left} of {flows}: {count} of nf_conntrack_max = {max} are in use"
        )
    })
}

/// Why connections could not get a helper.
pub fn why_missing(name: &str) -> String {
    match userspace_helpers().get(name) {
        Some(true) => "is registered here, but not for their family and protocol".into(),
        Some(false) => "is registered here, but disabled".into(),
        None if is_kernel_helper(name) => "is loaded, but not for their family and protocol".into(),
        None => "is not registered here".into(),
    }
}

/// Names of userspace helpers, and whether they are enabled.
fn userspace_helpers() -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    let Ok(mut socket) = Socket::open() else {
        return found;
    };
    // Kernels without nfnetlink_cthelper have none.
    let _ = socket.exchange("listing helpers", cthelper::dump, |m| {
        let helper = m.netfilter().map(|nf| cthelper::Helper::decode(nf.attrs));
        if let Some(Ok(h)) = helper {
            let enabled = h.status == HelperStatus::Enabled;
            found.insert(h.name.to_string(), enabled);
        }
    });
    found
}

fn is_kernel_helper(name: &str) -> bool {
    let module = name.replace('-', "_");
    Path::new("/sys/module")
        .join(format!("nf_conntrack_{module}"))
        .exists()
}

/// Number of nftables tables, if it can be known.
fn tables() -> Option<u64> {
    let mut socket = Socket::open().ok()?;
    let header = |seq| Header {
        subsys: SUBSYS_NFTABLES,
        msg: NFT_MSG_GETTABLE,
        flags: NLM_F_DUMP,
        seq,
        ..Header::default()
    };
    let mut count = 0;
    let done = socket.exchange(
        "listing tables",
        |buf, seq| append(buf, header(seq), |_| {}),
        |m| count += u64::from(matches!(m.kind(), Kind::Netfilter(_))),
    );
    done.ok().map(|()| count)
}
