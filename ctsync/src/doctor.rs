//! Looks for what keeps mirroring from working, and says what to do.

use crate::cli::at;
use crate::config::Config;
use crate::kernel::sysctl;
use crate::preflight;
use crate::transport::key::Secret;
use anyhow::Result;
use daemon::{Client, sandbox};
use netfilter::Socket;
use netfilter::conntrack::group;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

struct Findings {
    good: bool,
}

impl Findings {
    fn say(&mut self, good: bool, text: &str) -> Result<()> {
        self.good &= good;
        let mark = if good { "ok  " } else { "FAIL" };
        writeln!(std::io::stdout(), "{mark} {text}")?;
        Ok(())
    }
}

/// Checks configuration, privileges, kernel and, if it runs, the daemon.
///
/// # Errors
/// The findings can't be printed.
pub fn run(config: &Path, control: Option<&Path>) -> Result<bool> {
    let mut f = Findings { good: true };
    let config = match Config::read(config) {
        Ok(c) => {
            f.say(true, &format!("configuration of node {}", c.node))?;
            Some(c)
        }
        Err(e) => {
            f.say(false, &crate::errno::chain(&e))?;
            None
        }
    };
    if let Some(config) = &config {
        match Secret::read(&config.private_key) {
            Ok(_) => f.say(true, "private key")?,
            Err(e) => f.say(false, &format!("{}: {e}", config.private_key.display()))?,
        }
    }
    kernel(&mut f)?;
    for problem in preflight::problems(&BTreeMap::new(), 0) {
        f.say(false, &problem)?;
    }
    let control = control.map(Path::to_owned).or(config.map(|c| c.control));
    if let Some(control) = control {
        daemon(&mut f, &control)?;
    }
    Ok(f.good)
}

fn kernel(f: &mut Findings) -> Result<()> {
    if sandbox::has_net_admin() {
        f.say(true, "CAP_NET_ADMIN")?;
    } else {
        f.say(false, "CAP_NET_ADMIN is missing: run as root")?;
    }
    let joined = Socket::open().and_then(|s| s.join(group::NEW));
    match joined {
        Ok(()) => f.say(true, "connection events (CONFIG_NF_CONNTRACK_EVENTS)")?,
        Err(e) => f.say(
            false,
            &format!("nfnetlink_conntrack (CONFIG_NF_CT_NETLINK): {e}"),
        )?,
    }
    match sysctl::events() {
        Some(1) => f.say(true, "net.netfilter.nf_conntrack_events is 1"),
        Some(n) => f.say(
            false,
            &format!("net.netfilter.nf_conntrack_events is {n}: connections older than the daemon are not reported; set it to 1"),
        ),
        None => f.say(false, "nf_conntrack is not loaded"),
    }
}

fn daemon(f: &mut Findings, control: &Path) -> Result<()> {
    let status =
        Client::connect(control).and_then(|mut c| c.request(&crate::run::answer::Ask::Status));
    let status = match status {
        Ok(s) => s,
        Err(e) => return f.say(false, &format!("daemon at {}: {e}", control.display())),
    };
    f.say(true, "daemon answers")?;
    for peer in at(&status, "peers").as_array().into_iter().flatten() {
        let name = at(peer, "name").as_str().unwrap_or_default();
        f.say(
            at(peer, "state") == "up",
            &format!("peer {name} can be reached"),
        )?;
        f.say(
            at(peer, "synced") == true,
            &format!("peer {name} is in sync"),
        )?;
    }
    let wrong = at(at(&status, "counters"), "refused_unknown_key")
        .as_u64()
        .unwrap_or(0);
    if wrong > 0 {
        f.say(false, &format!("{wrong} handshakes with an unknown or wrong key: compare public keys and pre-shared keys"))?;
    }
    Ok(())
}
