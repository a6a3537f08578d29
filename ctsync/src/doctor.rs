//! Looks for what keeps mirroring from working, and says what to do.
//! Changes nothing; asks the kernel, the running daemon, and nft(8) for the
//! ruleset.

use crate::cli::at;
use crate::config::{Config, Hold, Link, Peer};
use crate::errno::chain;
use crate::kernel::sysctl;
use crate::transport::key::{KeyError, Secret};
use daemon::Client;
use daemon::doctor::rules::{self, ListError, Rule, Rules};
use daemon::doctor::{self, Report};
use netfilter::Socket;
use netfilter::conntrack::group;
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::Value;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Checks configuration, keys, privileges, kernel, links, ruleset, clock
/// and, if it runs, the daemon and its peers.
#[must_use]
pub fn run(config: &Path, control: Option<&Path>) -> Report {
    let mut report = Report::default();
    doctor::privileges(&mut report);
    let config = configuration(&mut report, config);
    if let Some(config) = &config {
        keys(&mut report, config);
    }
    doctor::table(&mut report);
    kernel(&mut report);
    doctor::forwarding(&mut report);
    if let Some(config) = &config {
        links(&mut report, config);
    }
    ruleset(&mut report, config.as_ref());
    clock(&mut report);
    let control = control.map(Path::to_owned).or(config.map(|c| c.control));
    let control = control.unwrap_or_else(|| crate::config::DEFAULT_CONTROL.into());
    running(&mut report, &control);
    report
}

fn configuration(report: &mut Report, path: &Path) -> Option<Config> {
    const CHECK: &str = "config";
    match Config::read(path) {
        Ok(config) => {
            let mode = std::fs::metadata(path).map_or(0, |meta| meta.mode());
            if mode & 0o022 == 0 {
                report.ok(CHECK, format!("{}, node {}", path.display(), config.node));
            } else {
                report.warn(
                    CHECK,
                    format!("{} can be written by others than its owner", path.display()),
                    format!("chmod go-w {}", path.display()),
                );
            }
            if config.peers.is_empty() {
                report.fail(CHECK, "there is no [[peer]]", "add the other firewall");
            }
            Some(config)
        }
        Err(error) => {
            report.fail(CHECK, chain(&error), "see ctsync.toml(5)");
            None
        }
    }
}

fn keys(report: &mut Report, config: &Config) {
    const CHECK: &str = "key";
    match Secret::read(&config.private_key) {
        Ok(secret) => {
            let public = secret.public();
            report.ok(CHECK, format!("public key {public}, for the peers' files"));
            let is_ours = |p: &&Peer| p.public_keys().any(|k| k == public);
            for peer in config.peers.iter().filter(is_ours) {
                report.fail(
                    CHECK,
                    format!("the public-key of peer {} is this node's own", peer.name),
                    format!("on {}: ctsync pubkey FILE", peer.name),
                );
            }
        }
        Err(error) => bad_key(report, &config.private_key, &error, "ctsync keygen"),
    }
    for path in config.key_files().skip(1) {
        match Secret::read(path) {
            Ok(_) => report.ok(CHECK, format!("pre-shared key {}", path.display())),
            Err(error) => bad_key(report, path, &error, "ctsync keygen --psk"),
        }
    }
}

/// A new key would cut the peers off: it is advised only where there is none.
fn bad_key(report: &mut Report, path: &Path, error: &KeyError, make: &str) {
    let file = path.display();
    let todo = match error {
        KeyError::Mode(_) => format!("chmod 600 {file}"),
        KeyError::Owner(_) => format!("chown --reference={} {file}", directory(path).display()),
        KeyError::Io(_) if path.try_exists().ok() != Some(false) => {
            "let the daemon's user read it; it must be a regular file".to_owned()
        }
        KeyError::Format => {
            format!("put a copy of it back; without one: rm {file}; {make} {file}; tell the peers")
        }
        _ => format!("{make} {file}"),
    };
    report.fail("key", format!("{file}: {error}"), todo);
}

/// Whoever owns it is the daemon's user, or root.
fn directory(file: &Path) -> &Path {
    let parent = file.parent().filter(|dir| *dir != Path::new(""));
    parent.unwrap_or(Path::new("."))
}

/// Connections and expectations can be listened to, and all are reported.
fn kernel(report: &mut Report) {
    const CHECK: &str = "events";
    for (group, what) in [
        (group::NEW, "connections"),
        (group::EXP_NEW, "expectations"),
    ] {
        if let Err(error) = Socket::open().and_then(|socket| socket.join(group)) {
            report.fail(
                CHECK,
                format!("{what} can't be listened to: {error}"),
                "modprobe nf_conntrack_netlink (CONFIG_NF_CT_NETLINK)",
            );
        }
    }
    match sysctl::events() {
        Some(1) => report.ok(CHECK, "net.netfilter.nf_conntrack_events is 1"),
        Some(0) => report.fail(
            CHECK,
            "net.netfilter.nf_conntrack_events is 0: nothing is reported",
            "sysctl -w net.netfilter.nf_conntrack_events=1",
        ),
        Some(n) => report.warn(
            CHECK,
            format!(
                "net.netfilter.nf_conntrack_events is {n}: connections from before the \
                 daemon's start are never reported"
            ),
            "sysctl -w net.netfilter.nf_conntrack_events=1; the daemon does so when it may",
        ),
        None => report.fail(
            CHECK,
            "the kernel reports no events",
            "use a kernel built with CONFIG_NF_CONNTRACK_EVENTS",
        ),
    }
}

/// Both ends of each link, and what fits through it.
fn links(report: &mut Report, config: &Config) {
    for (index, link) in config.links.iter().enumerate() {
        for peer in &config.peers {
            if let Some(endpoint) = peer.endpoints.get(index) {
                path(report, config, link, peer, *endpoint);
            }
        }
    }
}

/// The route to a peer: a connected socket sends nothing.
fn path(report: &mut Report, config: &Config, link: &Link, peer: &Peer, endpoint: SocketAddr) {
    const CHECK: &str = "link";
    let local = SocketAddr::new(link.bind.ip(), 0);
    let socket = match UdpSocket::bind(local) {
        Ok(socket) => socket,
        Err(error) => {
            return report.fail(
                CHECK,
                format!("{} can't be used: {}", link.bind.ip(), chain(&error)),
                "give an interface this address, or correct bind under [[link]]",
            );
        }
    };
    if let Some(device) = &link.device {
        let name = std::ffi::OsString::from(device);
        if let Err(error) = nix::sys::socket::setsockopt(&socket, sockopt::BindToDevice, &name) {
            return report.fail(
                CHECK,
                format!("device {device} can't be used: {}", chain(&error)),
                "correct device under [[link]]",
            );
        }
    }
    if let Err(error) = socket.connect(endpoint) {
        return report.fail(
            CHECK,
            format!(
                "there is no way to {} at {endpoint}: {}",
                peer.name,
                chain(&error)
            ),
            "add a route, or correct endpoints under [[peer]]",
        );
    }
    let to = format!("{} -> {} {endpoint}", link.bind.ip(), peer.name);
    match mtu(&socket, endpoint) {
        Some(mtu) if mtu < config.mtu => report.fail(
            CHECK,
            format!(
                "{to}: MTU {mtu} is below mtu = {}: large datagrams are lost",
                config.mtu
            ),
            format!("set mtu = {mtu}, or raise the interface's"),
        ),
        Some(mtu) => report.ok(CHECK, format!("{to}: MTU {mtu}")),
        None => report.ok(CHECK, to),
    }
}

/// MTU of the route; for IPv6 that of the interface, which has no wrapper of
/// its own.
fn mtu(socket: &UdpSocket, endpoint: SocketAddr) -> Option<usize> {
    if endpoint.is_ipv4() {
        let mtu = getsockopt(socket, sockopt::IpMtu).ok()?;
        return usize::try_from(mtu).ok();
    }
    let local = socket.local_addr().ok()?.ip();
    let interface = nix::ifaddrs::getifaddrs().ok()?.find(|interface| {
        let address = interface.address.and_then(|a| a.as_sockaddr_in6().copied());
        address.is_some_and(|address| address.ip() == local)
    })?;
    let name = format!("net/ipv6/conf/{}/mtu", interface.interface_name);
    usize::try_from(doctor::sysctl_number(&name)?).ok()
}

fn ruleset(report: &mut Report, config: Option<&Config>) {
    const CHECK: &str = "ruleset";
    let rules = match rules::list() {
        Ok(rules) => rules,
        Err(error @ ListError::NoNft(_)) => {
            let todo = "apt install nftables, so that the ruleset can be examined";
            return report.warn(CHECK, error.to_string(), todo);
        }
        Err(error) => return report.fail(CHECK, error.to_string(), "run this as root"),
    };
    if rules.tables.is_empty() {
        report.warn(
            CHECK,
            "none is loaded: after a takeover nothing would be filtered or translated",
            "load the same ruleset on every node: nft-ftp-ruleset load",
        );
    }
    let Some(config) = config else { return };
    hold(report, &rules, config.hold.as_ref());
    for link in &config.links {
        input(report, &rules, link.bind.port());
        untracked(report, &rules, link.bind.port());
    }
}

/// The set is in the ruleset, and the configuration knows of it.
fn hold(report: &mut Report, rules: &Rules, hold: Option<&Hold>) {
    const CHECK: &str = "hold";
    let sets: Vec<_> = rules
        .sets
        .iter()
        .filter(|(table, _)| table.family == "inet")
        .map(|(table, name)| (table.name.as_str(), name.as_str()))
        .collect();
    match hold {
        Some(hold) if sets.contains(&(hold.table.as_str(), hold.set.as_str())) => {
            report.ok(CHECK, format!("set inet {} {}", hold.table, hold.set));
        }
        Some(hold) => report.fail(
            CHECK,
            format!("the ruleset has no set inet {} {}", hold.table, hold.set),
            "nft-ftp-ruleset load, with hold = true under [firewall]",
        ),
        None => {
            if let Some((table, _)) = sets.iter().find(|(_, name)| *name == "hold") {
                report.warn(
                    CHECK,
                    format!("the ruleset has a set inet {table} hold that nobody uses"),
                    format!("add to the configuration:\n[hold]\ntable = \"{table}\""),
                );
            }
        }
    }
}

fn has_port(rule: &Rule, port: u16) -> Option<bool> {
    let ports = rule.compared("payload", "field", "dport")?;
    Some(ports.contains(&port.to_string()))
}

/// Peers' datagrams get in.
fn input(report: &mut Report, rules: &Rules, port: u16) {
    for (chain, _) in rules.bases("input").filter(|(_, base)| base.drops) {
        let lets_in = |rule: &&Rule| {
            let lo = rule.compared("meta", "key", "iifname");
            let lo = lo.is_some_and(|names| names.iter().all(|name| name == "lo"));
            let protocol = rule.compared("meta", "key", "l4proto");
            let udp = protocol.is_none_or(|words| words.iter().any(|word| word == "udp"));
            rule.accepts_state("new") && has_port(rule, port).unwrap_or(true) && udp && !lo
        };
        if !rules.reached_from(chain).iter().any(lets_in) {
            report.fail(
                "ruleset",
                format!("{chain} drops what peers send to UDP port {port}"),
                format!("udp dport {port} accept, or [firewall.link] in the policy"),
            );
        }
    }
}

/// The mirror leaves its own packets out, but they still cost a lookup each.
fn untracked(report: &mut Report, rules: &Rules, port: u16) {
    let mut all = rules.rules.iter();
    if all.any(|rule| rule.has("notrack") && has_port(rule, port).unwrap_or(true)) {
        report.ok("ruleset", format!("UDP port {port} is not tracked"));
    } else {
        report.warn(
            "ruleset",
            format!("the link's own packets to UDP port {port} are tracked"),
            "[firewall.link] in the policy of nft-ftp-ruleset leaves them out",
        );
    }
}

/// Mirroring does not need the time of day, the comparison of logs does.
fn clock(report: &mut Report) {
    const CHECK: &str = "clock";
    /// 2025: older than this program.
    const EPOCH: u64 = 1_735_689_600;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    if now.map_or(0, |now| now.as_secs()) < EPOCH {
        return report.warn(
            CHECK,
            "the clock is years behind: logs of the nodes can't be compared",
            "set it; mirroring itself does not need it",
        );
    }
    let output = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .output();
    let answer = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match answer.as_deref() {
        Ok("yes") => report.ok(CHECK, "synchronized"),
        Ok("no") => report.warn(
            CHECK,
            "the clock is not synchronized: logs of the nodes can't be compared",
            "run systemd-timesyncd or chrony; mirroring itself does not need it",
        ),
        _ => report.ok(
            CHECK,
            "whether it is synchronized is not known; mirroring does not need it",
        ),
    }
}

fn running(report: &mut Report, control: &Path) {
    const CHECK: &str = "daemon";
    let status = Client::connect(control)
        .and_then(|mut client| client.request(&crate::run::answer::Ask::Status));
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return report.fail(
                CHECK,
                format!(
                    "it does not answer at {}: {}",
                    control.display(),
                    chain(&error)
                ),
                "systemctl start ctsync, or ctsync run",
            );
        }
    };
    let version = at(&status, "version").as_str();
    match version.unwrap_or("an older version") {
        version if version == VERSION => report.ok(CHECK, format!("runs, version {version}")),
        version => report.warn(
            CHECK,
            format!("{version} runs, this is {VERSION}"),
            "restart it: peers keep their copies meanwhile",
        ),
    }
    if let Some(n @ 1..) = at(at(&status, "counters"), "kernel_shortages").as_u64() {
        report.warn(
            CHECK,
            format!("the kernel had no memory for it {n} times"),
            "it has tried again; if the number grows, the machine needs memory",
        );
    }
    for peer in at(&status, "peers").as_array().into_iter().flatten() {
        one_peer(report, peer);
    }
    refusals(report, at(&status, "counters"));
}

fn one_peer(report: &mut Report, peer: &Value) {
    const CHECK: &str = "peer";
    let name = at(peer, "name").as_str().unwrap_or_default();
    if at(peer, "state") != "up" {
        return report.fail(
            CHECK,
            format!("{name} can't be reached"),
            "is ctsync running there? do rules on the way let the link's UDP port through? do \
             the public keys match?",
        );
    }
    if at(peer, "synced") != true {
        return report.warn(
            CHECK,
            format!("{name} is not in sync yet"),
            "ctsync status says why; if it lasts: ctsync resync",
        );
    }
    let own = u64::from(crate::replica::message::VERSION);
    match at(peer, "protocol").as_u64() {
        Some(theirs) if theirs != own => report.warn(
            CHECK,
            format!("{name} speaks version {theirs} of the protocol, this node {own}"),
            "update the older one: what only the newer one knows is not mirrored",
        ),
        _ => report.ok(CHECK, format!("{name} is in sync, protocol version {own}")),
    }
}

/// What arrived on the link and was refused.
fn refusals(report: &mut Report, counters: &Value) {
    for (counter, what, todo) in [
        (
            "refused_unknown_key",
            "handshakes with an unknown or wrong key",
            "compare public keys (ctsync doctor prints this node's) and pre-shared keys",
        ),
        (
            "refused_version",
            "frames of another version",
            "install the same version on every node",
        ),
        (
            "send_failures",
            "datagrams could not be sent",
            "see the link's MTU, route and rules above, and the log",
        ),
    ] {
        if let Some(n @ 1..) = at(counters, counter).as_u64() {
            report.warn("peer", format!("{n} {what}"), todo);
        }
    }
}
