//! `doctor`: in a namespace where something is broken, the finding names it;
//! where nothing is, nothing is found. Of the helper's, what a kernel
//! without nfnetlink_cthelper can show; the rest is in `vm_doctor`.

use anyhow::{Context, Result, ensure};
use lab::netns::{Namespace, text_file};
use lab::ours::{self, program};
use lab::require::Need;
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
        let findings = self.json.get("findings").and_then(Value::as_array);
        let is_it = |finding: &&Value| {
            let of = |key: &str| finding.get(key).and_then(Value::as_str).unwrap_or_default();
            of("check") == check && of("level") == level && of("found").contains(text)
        };
        let found = findings.into_iter().flatten().find(is_it);
        let found = found.with_context(|| format!("no {level} {check} {text:?}: {}", self.json))?;
        let told = found.get("todo").is_some();
        ensure!(told == (level != "ok"), "what to do: {found}");
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
        Ok(())
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
        let [first, rest @ ..] = wrapper else {
            continue;
        };
        let mut command = lab::command::command(first, rest);
        command.arg(&doctor).args(["doctor", "--json"]);
        let finished = fw.finish(command)?;
        let json = serde_json::from_str(&finished.stdout).with_context(|| finished.report())?;
        let status = finished.status.code();
        Visit { status, json }.expect("capability", "fail", text)?;
    }
    Ok(())
}
