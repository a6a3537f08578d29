//! `doctor`: in a namespace where something is broken, the finding names it;
//! where nothing is, nothing is found. Of the helper's, what a kernel
//! without nfnetlink_cthelper can show; the rest is in `vm_doctor`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::netns::{Namespace, text_file};
use lab::nodes::Nodes;
use lab::ours::{self, program};
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::wait::until_true;
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::KernelFtp,
    Need::Program("nft"),
    Need::Built("nft-ftp-helper"),
    Need::Built("nft-ftp-ruleset"),
];

/// What a doctor found: exit status and the JSON it printed.
struct Visit {
    status: Option<i32>,
    json: Value,
}

impl Visit {
    /// `helper` is the name that the ruleset is examined for: `ftp` is the
    /// kernel's own, which every kernel of the laboratory can have.
    fn helper(fw: &Namespace, helper: &str) -> Result<Self> {
        let args = ["doctor", "--json", "--helper-name", helper];
        Self::of("nft-ftp-helper", fw, &args)
    }

    fn ctsync(fw: &Namespace, config: &Path) -> Result<Self> {
        let config = config.to_string_lossy();
        Self::of("ctsync", fw, &["doctor", "--json", "--config", &config])
    }

    fn of(name: &str, fw: &Namespace, args: &[&str]) -> Result<Self> {
        let finished = fw.finish(program(name, args)?)?;
        let json = serde_json::from_str(&finished.stdout).with_context(|| finished.report())?;
        Ok(Self {
            status: finished.status.code(),
            json,
        })
    }

    /// The finding of this check and level that says this.
    fn expect(&self, check: &str, level: &str, text: &str) -> Result<()> {
        self.todo(check, level, text).map(|_| ())
    }

    /// As [`Visit::expect`]; what it says to do.
    fn todo(&self, check: &str, level: &str, text: &str) -> Result<String> {
        let findings = self.json.get("findings").and_then(Value::as_array);
        let is_it = |finding: &&Value| {
            let of = |key: &str| finding.get(key).and_then(Value::as_str).unwrap_or_default();
            of("check") == check && of("level") == level && of("found").contains(text)
        };
        let found = findings.into_iter().flatten().find(is_it);
        let found = found.with_context(|| format!("no {level} {check} {text:?}: {}", self.json))?;
        let todo = found.get("todo").and_then(Value::as_str);
        ensure!(todo.is_some() == (level != "ok"), "what to do: {found}");
        let failed = if level == "fail" {
            Some(1)
        } else {
            self.status
        };
        ensure!(
            self.status == failed,
            "exit {:?}: {}",
            self.status,
            self.json
        );
        Ok(todo.unwrap_or_default().to_owned())
    }
}

fn firewall() -> Result<Namespace> {
    let fw = Namespace::new(&lab::names::unique(), "fw")?;
    fw.sysctl("net/ipv4/ip_forward", "1")?;
    fw.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    Ok(fw)
}

const PROFILE: &str = "
[[helper]]
type = \"ftp\"
[firewall]
client-interfaces = [\"lan\"]
";

#[test]
fn a_ruleset_of_ours_needs_nothing() -> Result<()> {
    lab::require!(needs NEEDS);
    let fw = firewall()?;
    let policy = text_file(PROFILE)?;
    let path = policy.path().to_string_lossy();
    ours::run(&fw, "nft-ftp-ruleset", &["load", "--config", &path])?;
    let visit = Visit::helper(&fw, "ftp")?;
    visit.expect("assignment", "ok", "hook prerouting priority -150")?;
    visit.expect(
        "related",
        "ok",
        "inet nft_ftp forward accepts data connections",
    )?;
    ensure!(visit.status == Some(0), "{}", visit.json);
    let text = ours::run(&fw, "nft-ftp-helper", &["doctor", "--helper-name", "ftp"])?;
    ensure!(text.ends_with("nothing to do\n"), "{text}");
    Ok(())
}

/// A table with what a doctor has to find, but for one thing.
fn table(assignment: &str, forward: &str) -> String {
    format!(
        "table inet mine {{
            ct helper o {{ type \"ftp\" protocol tcp; }}
            chain assign {{
                {assignment}
            }}
            chain forward {{
                type filter hook forward priority 0; policy drop;
                ct state established accept
                {forward}
                tcp dport 21 ct state new accept
            }}
        }}"
    )
}

const HOOK: &str = "type filter hook prerouting priority -150;";
const RIGHT: &str = "type filter hook prerouting priority -150; tcp dport 21 ct helper set \"o\"";
const NARROW: &str = "ct state related ct helper \"ftp\" tcp dport 1024-65535 accept";

#[test]
fn each_mistake_in_a_ruleset_is_named() -> Result<()> {
    lab::require!(needs NEEDS);
    let set = "tcp dport 21 ct helper set \"o\"";
    let at = |place: &str| format!("type filter hook {place}; {set}");
    let cases: &[(String, &str, &str, &str, &str)] = &[
        (String::new(), NARROW, "assignment", "fail", "no rule says"),
        (
            set.to_owned(),
            NARROW,
            "assignment",
            "fail",
            "no base chain jumps there",
        ),
        (
            at("prerouting priority -300"),
            NARROW,
            "assignment",
            "fail",
            "before conntrack",
        ),
        (
            at("prerouting priority 0"),
            NARROW,
            "assignment",
            "warn",
            "after destination NAT",
        ),
        (
            at("forward priority 0"),
            NARROW,
            "assignment",
            "warn",
            "after destination NAT",
        ),
        (
            at("output priority -150"),
            NARROW,
            "assignment",
            "fail",
            "not to forwarded ones",
        ),
        (
            format!("{HOOK} ct state established {set}"),
            NARROW,
            "assignment",
            "fail",
            "only the first packet counts",
        ),
        (
            RIGHT.to_owned(),
            "",
            "related",
            "fail",
            "nothing accepts ct state related",
        ),
        (
            RIGHT.to_owned(),
            "meta l4proto icmp ct state related accept",
            "related",
            "fail",
            "nothing accepts ct state related",
        ),
        (
            RIGHT.to_owned(),
            "ct state related ct helper \"sip\" accept",
            "related",
            "fail",
            "accepts related connections of sip, not of ftp",
        ),
        (
            RIGHT.to_owned(),
            "ct state related accept",
            "related",
            "warn",
            "whatever any helper announces",
        ),
        (
            RIGHT.to_owned(),
            "ct state vmap { related : accept }",
            "related",
            "warn",
            "whatever any helper announces",
        ),
        (
            RIGHT.to_owned(),
            NARROW,
            "related",
            "ok",
            "accepts data connections",
        ),
    ];
    for (assignment, forward, check, level, text) in cases {
        let fw = firewall()?;
        let rules = table(assignment, forward);
        fw.nft(&rules)?;
        let visit = Visit::helper(&fw, "ftp")?;
        visit.expect(check, level, text).context(rules)?;
    }
    Ok(())
}

#[test]
fn our_guard_makes_up_for_a_rule_that_accepts_too_much() -> Result<()> {
    lab::require!(needs NEEDS);
    let fw = firewall()?;
    fw.nft(&table(RIGHT, "ct state related accept"))?;
    let policy = text_file("[[helper]]\ntype = \"ftp\"\n[related]\nguard = true\n")?;
    let path = policy.path().to_string_lossy();
    ours::run(&fw, "nft-ftp-ruleset", &["load", "--config", &path])?;
    Visit::helper(&fw, "ftp")?.expect("related", "ok", "inet mine forward")
}

#[test]
fn a_machine_that_is_no_firewall_yet_is_told_what_is_missing() -> Result<()> {
    lab::require!(needs NEEDS);
    let fw = Namespace::new(&lab::names::unique(), "fw")?;
    // A new namespace may have taken the machine's own value.
    fw.sysctl("net/ipv4/ip_forward", "0")?;
    fw.sysctl("net/ipv6/conf/all/forwarding", "0")?;
    let visit = Visit::helper(&fw, "nft-ftp")?;
    visit.expect("forwarding", "warn", "net.ipv4.ip_forward is 0")?;
    visit.expect("forwarding", "warn", "net.ipv6.conf.all.forwarding is 0")?;
    visit.expect("assignment", "fail", "no ct helper object of type nft-ftp")?;
    visit.expect("related", "warn", "no chain at hook forward drops")?;
    visit.expect("daemon", "fail", "it does not answer")?;
    fw.nft("table ip t {\nct helper o {\ntype \"ftp\" protocol tcp;\n}\n}")?;
    let visit = Visit::helper(&fw, "nft-ftp")?;
    visit.expect(
        "assignment",
        "fail",
        "it has one for the kernel's own helper",
    )
}

/// Without them the module and the Kconfig symbol are named; where they are
/// there, that is said.
#[test]
fn missing_kernel_support_names_module_and_symbol() -> Result<()> {
    lab::require!(needs NEEDS);
    let fw = firewall()?;
    let visit = Visit::helper(&fw, "nft-ftp")?;
    if Need::QueueConntrack.missing().is_some() {
        visit.expect("nfqueue", "fail", "CONFIG_NETFILTER_NETLINK_GLUE_CT")?;
    } else {
        visit.expect("nfqueue", "ok", "come with their connection")?;
    }
    if Need::Cthelper.missing().is_some() {
        visit.expect("registration", "fail", "nfnetlink_cthelper")?;
        visit.expect("registration", "fail", "CONFIG_NF_CT_NETLINK_HELPER")
    } else {
        visit.expect("registration", "fail", "nft-ftp (ip tcp) is not registered")
    }
}

#[test]
fn a_bad_or_unsafe_configuration_is_named() -> Result<()> {
    lab::require!(needs NEEDS);
    use std::os::unix::fs::PermissionsExt;
    let fw = firewall()?;
    let file = text_file("port-mask = \"0xfff3\"\n")?;
    let path = file.path().to_string_lossy();
    let args = ["doctor", "--json", "--config", &path];
    let visit = Visit::of("nft-ftp-helper", &fw, &args)?;
    visit.expect("config", "fail", "0xfff3 is no mask")?;
    let file = text_file("helper-name = \"ftp\"\n")?;
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o666))?;
    let path = file.path().to_string_lossy();
    let args = ["doctor", "--json", "--config", &path];
    let visit = Visit::of("nft-ftp-helper", &fw, &args)?;
    visit.expect("config", "warn", "can be written by others")
}

/// As nobody, and as root of a user namespace of its own.
#[test]
fn missing_privileges_are_named() -> Result<()> {
    lab::require!(needs NEEDS);
    let doctor = lab::programs::built("nft-ftp-helper")?;
    for (wrapper, text) in [
        (
            &[
                "setpriv",
                "--bounding-set",
                "-net_admin",
                "--inh-caps",
                "-net_admin",
                "--",
            ][..],
            "CAP_NET_ADMIN is missing",
        ),
        (
            &["unshare", "--user", "--map-root-user", "--net", "--"][..],
            "user namespace",
        ),
    ] {
        let fw = firewall()?;
        let (first, rest) = wrapper.split_first().context("no program")?;
        let mut command = lab::command::command(first, rest);
        command.arg(&doctor).args(["doctor", "--json"]);
        let finished = fw.finish(command)?;
        let json = serde_json::from_str(&finished.stdout).with_context(|| finished.report())?;
        let status = finished.status.code();
        Visit { status, json }.expect("capability", "fail", text)?;
    }
    Ok(())
}

/// Two nodes that are as they should be: policy, hold set, daemons.
fn healthy() -> Result<(Pair, Nodes)> {
    let pair = Pair::new()?;
    let policy = text_file(&format!("{PROFILE}[firewall.link]\n[firewall.input]\n"))?;
    let path = policy.path().to_string_lossy();
    for node in Node::BOTH {
        ours::run(
            pair.fw(node),
            "nft-ftp-ruleset",
            &["load", "--config", &path],
        )?;
    }
    let nodes = Nodes::with("[hold]\ntable = \"nft_ftp\"\n")?;
    Ok((pair, nodes))
}

/// Rewrites a node's configuration.
fn edit(nodes: &Nodes, from: &str, to: &str) -> Result<()> {
    let path = nodes.file(Node::One, "toml");
    let text = std::fs::read_to_string(&path)?;
    ensure!(text.contains(from), "no {from:?} in {text}");
    Ok(std::fs::write(&path, text.replace(from, to))?)
}

#[test]
fn a_pair_in_sync_needs_nothing() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::Built("ctsync"));
    let (pair, nodes) = healthy()?;
    let _one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;
    nodes.wait_synced()?;
    let visit = Visit::ctsync(&pair.fw_1, &nodes.file(Node::One, "toml"))?;
    for (check, text) in [
        ("key", "public key "),
        ("events", "nf_conntrack_events is 1"),
        ("link", "10.0.3.11 -> fw-2 10.0.3.12:3780: MTU 1500"),
        ("ruleset", "UDP port 3780 is not tracked"),
        ("hold", "set inet nft_ftp hold"),
        ("daemon", "runs, version"),
        ("peer", "fw-2 is in sync, protocol version 1"),
    ] {
        visit.expect(check, "ok", text)?;
    }
    ensure!(visit.status == Some(0), "{}", visit.json);
    Ok(())
}

#[test]
fn each_mistake_of_a_node_is_named() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::Built("ctsync"));
    use std::os::unix::fs::PermissionsExt;
    let (pair, nodes) = healthy()?;
    let fw = &pair.fw_1;
    let config = nodes.file(Node::One, "toml");
    let expect = |check: &str, level: &str, text: &str| {
        Visit::ctsync(fw, &config)?.expect(check, level, text)
    };
    expect("daemon", "fail", "it does not answer")?;

    fw.sysctl("net/netfilter/nf_conntrack_events", "2")?;
    expect("events", "warn", "are never reported")?;
    fw.sysctl("net/netfilter/nf_conntrack_events", "0")?;
    expect("events", "fail", "nothing is reported")?;

    fw.run("ip", &["link", "set", "sync", "mtu", "1400"])?;
    expect("link", "fail", "MTU 1400 is below mtu = 1500")?;
    edit(&nodes, "node =", "mtu = 1400\nnode =")?;
    expect("link", "ok", "MTU 1400")?;
    edit(&nodes, "10.0.3.12:3780", "198.51.100.7:3780")?;
    expect("link", "fail", "there is no way to fw-2")?;
    edit(&nodes, "bind = \"10.0.3.11", "bind = \"192.0.2.77")?;
    expect("link", "fail", "192.0.2.77 can't be used")?;

    let key = nodes.file(Node::One, "key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640))?;
    expect("key", "fail", "lets others read it")?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    let public = |node: Node| -> Result<String> {
        let file = nodes.file(node, "key");
        let args = ["pubkey", &*file.to_string_lossy()];
        Ok(ours::run(fw, "ctsync", &args)?.trim().to_owned())
    };
    edit(&nodes, &public(Node::Two)?, &public(Node::One)?)?;
    expect("key", "fail", "is this node's own")?;

    fw.run(
        "nft",
        &["delete", "chain", "inet", "nft_ftp", "raw_prerouting"],
    )?;
    fw.run("nft", &["delete", "chain", "inet", "nft_ftp", "raw_output"])?;
    expect("ruleset", "warn", "UDP port 3780 are tracked")?;
    edit(&nodes, "table = \"nft_ftp\"", "table = \"other\"")?;
    expect("hold", "fail", "no set inet other hold")?;
    edit(&nodes, "[hold]\ntable = \"other\"\n", "")?;
    expect("hold", "warn", "hold that nobody uses")?;
    fw.nft("flush ruleset")?;
    expect("ruleset", "warn", "none is loaded")?;
    fw.nft(
        "table inet t {\nchain in {\ntype filter hook input priority 0; policy drop;\n\
         iifname lo accept\nct state established,related accept\ntcp dport 22 accept\n}\n}",
    )?;
    expect("ruleset", "fail", "drops what peers send to UDP port 3780")?;
    fw.nft("add rule inet t in udp dport 3780 accept")?;
    let visit = Visit::ctsync(fw, &config)?;
    ensure!(
        !visit.json.to_string().contains("drops what peers"),
        "{}",
        visit.json
    );

    edit(&nodes, "node =", "nodes =")?;
    expect("config", "fail", "unknown field `nodes`")
}

/// What is advised does away with what was found, and only where there is no
/// key is another one made: the peer would not know it.
#[test]
fn advice_about_a_key_keeps_it() -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    lab::require!(needs NEEDS);
    lab::require!(Need::Built("ctsync"));
    let (pair, nodes) = healthy()?;
    let fw = &pair.fw_1;
    let key = nodes.file(Node::One, "key");
    let visit = || Visit::ctsync(fw, &nodes.file(Node::One, "toml"));
    let healed = || visit()?.expect("key", "ok", "public key");
    let secret = std::fs::read_to_string(&key)?;

    chown(&key, Some(1234), Some(1234))?;
    let todo = visit()?.todo("key", "fail", "belongs to user 1234")?;
    ensure!(todo.starts_with("chown "), "{todo}");
    fw.run("sh", &["-c", &todo])?;
    healed()?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    let todo = visit()?.todo("key", "fail", "lets others read it")?;
    ensure!(todo.starts_with("chmod "), "{todo}");
    fw.run("sh", &["-c", &todo])?;
    healed()?;
    ensure!(std::fs::read_to_string(&key)? == secret, "another key");

    std::fs::write(&key, "rubbish\n")?;
    let todo = visit()?.todo("key", "fail", "not a key")?;
    ensure!(todo.starts_with("put a copy of it back"), "{todo}");
    std::fs::remove_file(&key)?;
    std::fs::create_dir(&key)?;
    let todo = visit()?.todo("key", "fail", "not a regular file")?;
    ensure!(!todo.contains("keygen"), "{todo}");
    std::fs::remove_dir(&key)?;
    let todo = visit()?.todo("key", "fail", "(ENOENT)")?;
    ensure!(todo.starts_with("ctsync keygen "), "{todo}");
    let (_, file) = todo.split_once("keygen ").context("a file")?;
    ours::run(fw, "ctsync", &["keygen", file])?;
    healed()
}

/// A wrong key at the other end: both say so, each what it can know.
#[test]
fn a_peer_with_a_wrong_key_is_named() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::Built("ctsync"));
    let (pair, nodes) = healthy()?;
    // fw-2 makes a new key and tells nobody.
    let key = nodes.file(Node::Two, "key");
    std::fs::remove_file(&key)?;
    ours::run(&pair.fw_2, "ctsync", &["keygen", &key.to_string_lossy()])?;
    let _one = nodes.start(&pair, Node::One)?;
    let _two = nodes.start(&pair, Node::Two)?;
    until_true("a refused handshake", || {
        let refused = nodes.number(Node::One, "/counters/refused_unknown_key");
        refused.is_ok_and(|n| n > 0)
    })?;
    let visit = Visit::ctsync(&pair.fw_1, &nodes.file(Node::One, "toml"))?;
    visit.expect("peer", "fail", "fw-2 can't be reached")?;
    visit.expect("peer", "warn", "handshakes with an unknown or wrong key")
}

/// What only another version of a daemon says comes from one that is made up.
#[test]
fn daemons_and_peers_of_other_versions_are_named() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::Built("ctsync"));
    let fw = firewall()?;
    let dir = tempfile::tempdir()?;
    let control = dir.path().join("control");
    let listener = UnixListener::bind(&control)?;
    let answer = serde_json::json!({
        "version": "0.0.9",
        "peers": [{ "name": "fw-2", "state": "up", "synced": true, "protocol": 9 },
                  { "name": "fw-3", "state": "up", "synced": false }],
        "counters": { "refused_version": 3, "send_failures": 1, "kernel_errors": 4 },
    });
    let daemon = std::thread::spawn(move || -> Result<()> {
        for _ in 0..2 {
            let (mut client, _) = listener.accept()?;
            let mut line = String::new();
            BufReader::new(client.try_clone()?).read_line(&mut line)?;
            writeln!(client, "{answer}")?;
        }
        Ok(())
    });
    let socket = control.to_string_lossy();
    let args = ["--control", &socket, "doctor", "--json"];
    let visit = Visit::of("ctsync", &fw, &args)?;
    visit.expect("daemon", "warn", "0.0.9 runs")?;
    visit.expect("peer", "warn", "fw-2 speaks version 9")?;
    visit.expect("peer", "warn", "fw-3 is not in sync yet")?;
    visit.expect("peer", "warn", "3 frames of another version")?;
    visit.expect("peer", "warn", "1 datagrams could not be sent")?;
    let args = ["doctor", "--json", "--control", &socket];
    let visit = Visit::of("nft-ftp-helper", &fw, &args)?;
    visit.expect("daemon", "warn", "0.0.9 runs")?;
    visit.expect("daemon", "warn", "the kernel refused 4 of its requests")?;
    daemon
        .join()
        .map_err(|_| anyhow::anyhow!("the made up daemon"))?
}

#[test]
fn a_clock_that_nobody_sets_is_named() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::Built("ctsync"));
    use std::os::unix::fs::PermissionsExt;
    let fw = firewall()?;
    let dir = tempfile::tempdir()?;
    let program = dir.path().join("timedatectl");
    for (answer, level, text) in [
        ("no", "warn", "not synchronized"),
        ("yes", "ok", "synchronized"),
    ] {
        std::fs::write(&program, format!("#!/bin/sh\necho {answer}\n"))?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        let mut command = ours::program("ctsync", &["doctor", "--json"])?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", dir.path().display()));
        let finished = fw.finish(command)?;
        let json = serde_json::from_str(&finished.stdout).with_context(|| finished.report())?;
        let status = finished.status.code();
        Visit { status, json }.expect("clock", level, text)?;
    }
    Ok(())
}
