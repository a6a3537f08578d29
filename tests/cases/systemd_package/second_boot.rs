//! Running it: what the units promise, one test each. Every test finds the
//! three running and leaves them so; the last one removes the package.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::check::same_contents;
use lab::ftp::Mode;
use lab::ftp::client::{Client, Job, assert_used};
use lab::ftp::server::{FILE, Program, Server};
use lab::netns::Namespace;
use lab::wait::until_true;

use crate::system::{
    CTSYNC, HELPER, Override, RULESET, UNITS, attempt, has_table, helpers, inventory, is_active,
    is_enabled, number, ok, package, property, same_lines, sh, shared, wait_active,
};

#[test]
fn boot_brings_them_up_in_order() -> Result<()> {
    sh("systemctl is-system-running --wait || systemctl --failed --no-legend")?;
    for unit in UNITS {
        ensure!(
            is_active(unit),
            "{}",
            sh(&format!("journalctl -b -u {unit}"))?
        );
    }
    ok("helper, ruleset and ctsync are active after a boot");
    let cycles = sh("journalctl -b -o cat | grep -i 'ordering cycle' || true")?;
    ensure!(cycles.is_empty(), "{cycles}");
    ensure!(is_active("early.service"), "early.service did not start");
    ok("no ordering cycle with a unit that needs the network before sysinit.target");
    let order = [
        ("nftables.service", RULESET),
        (HELPER, RULESET),
        (RULESET, "network-pre.target"),
        (RULESET, CTSYNC),
        (HELPER, CTSYNC),
        (CTSYNC, "keepalived.service"),
    ];
    for (first, second) in order {
        let up = number(first, "ActiveEnterTimestampMonotonic")?;
        let begun = number(second, "InactiveExitTimestampMonotonic")
            .ok()
            .filter(|begun| *begun > 0)
            .map_or_else(|| number(second, "ActiveEnterTimestampMonotonic"), Ok)?;
        ensure!(
            up > 0 && begun >= up,
            "{first} {up} us, {second} {begun} us"
        );
        ok(&format!("{first} was up before {second} began"));
    }
    Ok(())
}

#[test]
fn daemons_are_confined_and_say_how_they_are() -> Result<()> {
    for (unit, user) in [(HELPER, "nft-ftp"), (CTSYNC, "ctsync")] {
        let pid = number(unit, "MainPID")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        // 12: CAP_NET_ADMIN.
        for line in [
            "CapEff:\t0000000000001000",
            "CapBnd:\t0000000000001000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            ensure!(status.contains(line), "{unit}: {line} is not in\n{status}");
        }
        let owner = sh(&format!("ps -o user= -p {pid}"))?;
        ensure!(owner.trim() == user, "{unit} runs as {owner}");
        ok(&format!(
            "{unit} is {user}'s, with CAP_NET_ADMIN and a call filter"
        ));
    }
    let shown = sh(&format!("systemctl status --no-pager {HELPER}"))?;
    ensure!(
        shown.contains("Status: \"serving helper nft-ftp\""),
        "{shown}"
    );
    ensure!(is_enabled(), "{}", helpers()?);
    ok("systemctl status says: serving helper nft-ftp; it is enabled in the kernel");
    let status = sh("nft-ftp-helper status")?;
    ensure!(status.contains("nft-ftp"), "{status}");
    let status = sh("ctsync status --json")?;
    ensure!(status.contains("\"fw-1\""), "{status}");
    ok("nft-ftp-helper status and ctsync status are answered");
    let events = sh("cat /proc/sys/net/netfilter/nf_conntrack_events")?;
    ensure!(events.trim() == "1", "nf_conntrack_events = {events}");
    ok("ctsync has set net.netfilter.nf_conntrack_events without root");
    Ok(())
}

#[test]
fn exposure_is_at_most_2_0_and_units_are_valid() -> Result<()> {
    for unit in UNITS {
        let report = sh(&format!("systemd-analyze --no-pager security {unit}"))?;
        let line = report
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .context("systemd-analyze gives no level")?;
        let level = line.split_whitespace().find_map(|word| word.parse().ok());
        ensure!(level.is_some_and(|level: f64| level <= 2.0), "{report}");
        ok(line.trim_start_matches(['→', ' ']));
    }
    let units = UNITS.map(|unit| format!("/usr/lib/systemd/system/{unit}"));
    let verify = format!("systemd-analyze --man=no verify {}", units.join(" "));
    let said = attempt(&verify)?;
    ensure!(
        said.ok() && said.stderr.trim().is_empty(),
        "{}",
        said.report()
    );
    ok("systemd-analyze verify has nothing to say");
    Ok(())
}

#[test]
fn ftp_passes_through_the_installed_helper() -> Result<()> {
    let link = Link::new()?;
    let server = Server::start(Program::Vsftpd, &link.server)?;
    let dir = lab::check::readable_dir()?;
    for mode in [Mode::Pasv, Mode::Port] {
        let local = dir.path().join(mode.verb());
        let client = Client::Curl.run(&link.client, SERVER, mode, Job::Get(FILE, &local))?;
        assert_used(mode, &client)?;
        ensure!(client.ok(), "{}\n{}", client.report(), server.log());
        same_contents(&local, &server.tree.file())?;
        ok(&format!(
            "{} through the firewall: the file is the same",
            mode.verb()
        ));
    }
    sh(&format!("systemctl stop {HELPER}"))?;
    let local = dir.path().join("stopped");
    let client = Client::Curl.run(&link.client, SERVER, Mode::Pasv, Job::Get(FILE, &local))?;
    sh(&format!("systemctl start {HELPER}"))?;
    ensure!(!client.ok(), "{}", client.report());
    ensure!(client.stderr.contains("227 "), "{}", client.report());
    ok("with the helper stopped: logged in, but the data connection is refused");
    Ok(())
}

#[test]
fn helper_that_hangs_is_replaced_and_disabled_meanwhile() -> Result<()> {
    let slow = Override::new(HELPER, "[Service]\nWatchdogSec=4s\nRestartSec=4s\n")?;
    sh(&format!("systemctl restart {HELPER}"))?;
    let pid = number(HELPER, "MainPID")?;
    sh(&format!("kill -STOP {pid}"))?;
    until_true("the helper to be disabled", || !is_enabled())?;
    ok("stopped with SIGSTOP: the watchdog's end, and the helper is disabled");
    until_true("a new daemon", || {
        is_active(HELPER) && number(HELPER, "MainPID").is_ok_and(|new| new != pid)
    })?;
    ensure!(is_enabled(), "{}", helpers()?);
    ok("restarted, and enabled again");
    let journal = sh(&format!(
        "journalctl --sync; journalctl -b -o cat -u {HELPER}"
    ))?;
    ensure!(journal.contains("Watchdog timeout"), "{journal}");
    ok("the journal has: Watchdog timeout");
    drop(slow);
    sh(&format!("systemctl restart {HELPER}")).map(drop)
}

#[test]
fn killed_helper_is_disabled_and_comes_back() -> Result<()> {
    let slow = Override::new(HELPER, "[Service]\nRestartSec=4s\n")?;
    let (pid, restarts) = (number(HELPER, "MainPID")?, number(HELPER, "NRestarts")?);
    sh(&format!("systemctl kill -s KILL --kill-whom=main {HELPER}"))?;
    until_true("the helper to be disabled", || !is_enabled())?;
    ok("after kill -9 ExecStopPost has disabled the helper");
    wait_active(HELPER)?;
    ensure!(number(HELPER, "NRestarts")? == restarts + 1);
    ensure!(number(HELPER, "MainPID")? != pid);
    ensure!(is_enabled() && has_table(), "{}", helpers()?);
    ok("Restart= has brought it back, enabled; the ruleset never left");
    let json = sh(&format!(
        "journalctl --sync; journalctl -b -o json -u {HELPER}"
    ))?;
    let entry = |wanted: &[(&str, &str)]| {
        json.lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .any(|entry| wanted.iter().all(|(key, value)| entry[*key] == *value))
    };
    ensure!(
        entry(&[("EXIT_STATUS", "9"), ("EXIT_CODE", "killed")]),
        "{json}"
    );
    ok("the journal has EXIT_CODE=killed EXIT_STATUS=9");
    ensure!(
        entry(&[
            ("MESSAGE", "helper enabled"),
            ("HELPER", "nft-ftp"),
            ("_SYSTEMD_UNIT", HELPER)
        ]),
        "{json}"
    );
    ok("the journal has fields: MESSAGE=helper enabled, HELPER=nft-ftp");
    drop(slow);
    Ok(())
}

#[test]
fn mirror_restarts_and_reloads() -> Result<()> {
    let pid = number(CTSYNC, "MainPID")?;
    sh(&format!("systemctl reload {CTSYNC}"))?;
    ensure!(number(CTSYNC, "MainPID")? == pid && is_active(CTSYNC));
    ok("ctsync reloads in place");
    sh(&format!("systemctl kill -s KILL --kill-whom=main {CTSYNC}"))?;
    until_true("a new ctsync", || {
        is_active(CTSYNC) && number(CTSYNC, "MainPID").is_ok_and(|new| new != pid)
    })?;
    sh("ctsync status")?;
    ok("after kill -9 it is back and answers");
    Ok(())
}

#[test]
fn nftables_service_takes_the_ruleset_along() -> Result<()> {
    for action in ["reload", "restart"] {
        sh("nft flush ruleset")?;
        ensure!(!has_table());
        sh(&format!("systemctl {action} nftables.service"))?;
        until_true("the table to be back", has_table)?;
        wait_active(RULESET)?;
        // nftables.conf has run, too.
        sh("nft list table inet filter && nft-ftp-ruleset diff")?;
        ok(&format!(
            "systemctl {action} nftables: our table is back, as the policy says"
        ));
    }
    sh("nft flush ruleset")?;
    let diff = attempt("nft-ftp-ruleset diff")?;
    ensure!(diff.status.code() == Some(1), "{}", diff.report());
    sh(&format!(
        "systemctl reload {RULESET} && nft-ftp-ruleset diff"
    ))?;
    ok("nft flush ruleset by hand: diff notices, systemctl reload repairs");
    sh("systemctl stop nftables.service")?;
    ensure!(!has_table() && !is_active(RULESET));
    sh(&format!("systemctl start nftables.service {RULESET}"))?;
    ensure!(has_table());
    ok("systemctl stop nftables takes ours away, too; start brings it back");
    Ok(())
}

#[test]
fn reload_takes_a_new_configuration() -> Result<()> {
    let path = "/etc/nft-ftp/helper.toml";
    let before = fs::read_to_string(path)?;
    let pid = number(HELPER, "MainPID")?;
    let changed = before.replace("expect-timeout = \"300s\"", "expect-timeout = \"77s\"");
    ensure!(changed != before);
    fs::write(path, &changed)?;
    sh(&format!("systemctl reload {HELPER}"))?;
    until_true("the new timeout", || {
        helpers().is_ok_and(|list| list.contains("77s"))
    })?;
    ensure!(number(HELPER, "MainPID")? == pid, "restarted");
    ok("systemctl reload: the kernel's policy has the new timeout, the daemon is the same");
    fs::write(path, &before)?;
    sh(&format!("systemctl reload {HELPER}"))?;
    until_true("the old timeout", || {
        helpers().is_ok_and(|list| list.contains("300s"))
    })
}

#[test]
fn stopped_helper_is_disabled() -> Result<()> {
    sh(&format!("systemctl stop {HELPER}"))?;
    ensure!(
        !is_enabled() && helpers()?.contains("nft-ftp"),
        "{}",
        helpers()?
    );
    ok("systemctl stop: registered, and disabled");
    sh(&format!("systemctl start {HELPER}"))?;
    ensure!(is_enabled(), "{}", helpers()?);
    ok("systemctl start returns when it is enabled");
    Ok(())
}

#[test]
fn upgrade_keeps_the_ruleset_and_restarts_the_daemons() -> Result<()> {
    let pids = [number(HELPER, "MainPID")?, number(CTSYNC, "MainPID")?];
    let handle = table_handle()?;
    sh(&format!("dpkg --install {}", package()?))?;
    for (unit, pid) in [HELPER, CTSYNC].into_iter().zip(pids) {
        wait_active(unit)?;
        ensure!(number(unit, "MainPID")? != pid, "{unit} is the old one");
    }
    ensure!(is_enabled(), "{}", helpers()?);
    ok("after an upgrade both daemons are new and running");
    ensure!(table_handle()? == handle, "the table was deleted meanwhile");
    ok("the table is the one that was there before");
    let config = fs::read_to_string("/etc/ctsync/ctsync.toml")?;
    ensure!(config.contains("127.0.0.2"), "{config}");
    ok("changed configuration is kept");
    Ok(())
}

fn table_handle() -> Result<String> {
    sh("nft -a list table inet nft_ftp | head -1")
}

/// The last by name: nothing runs afterwards.
#[test]
fn without_the_package_nothing_is_left() -> Result<()> {
    // Somebody must still be able to ask the kernel.
    sh("cp /usr/sbin/nft-ftp-helper /run/asker && dpkg --remove nft-ftp")?;
    let helpers = sh("/run/asker list")?;
    ensure!(!has_table() && helpers.trim().is_empty(), "{helpers}");
    for unit in UNITS {
        ensure!(property(unit, "LoadState")? != "loaded" || !is_active(unit));
    }
    ok("removed: daemons, table and helper are gone from the kernel");
    sh("test -e /etc/ctsync/private.key && test -e /etc/nft-ftp/helper.toml")?;
    ok("configuration and keys are still there");
    sh("dpkg --purge nft-ftp")?;
    let before = fs::read_to_string(shared("inventory")?)?;
    same_lines(&before, &inventory()?)?;
    ok("purged: files, links, modes, owners, users and groups are as before");
    Ok(())
}

const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 2, 2));

/// A client and a server in namespaces, the machine itself between them.
struct Link {
    client: Namespace,
    server: Namespace,
}

impl Link {
    fn new() -> Result<Self> {
        let prefix = lab::names::unique();
        let link = Self {
            client: Namespace::new(&prefix, "client")?,
            server: Namespace::new(&prefix, "server")?,
        };
        for (end, here, net) in [(&link.client, "lan", 1), (&link.server, "wan", 2)] {
            sh(&format!(
                "ip link add {here} type veth peer name eth0 netns {} && \
                 ip addr add 10.0.{net}.1/24 dev {here} && ip link set {here} up",
                end.name()
            ))?;
            end.ip_batch(&format!(
                "link set lo up\nlink set eth0 up\naddr add 10.0.{net}.2/24 dev eth0\n\
                 route add default via 10.0.{net}.1\n"
            ))?;
        }
        sh("sysctl -q net.ipv4.ip_forward=1")?;
        sh("nft -f - <<'END'
table inet test_filter {
	chain forward {
		type filter hook forward priority 10; policy drop
		ct state established accept
		ct state related ct helper \"nft-ftp\" tcp dport 1024-65535 accept
		tcp dport 21 ct state new accept
		reject with tcp reset
	}
}
END")?;
        Ok(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for script in [
            "nft delete table inet test_filter",
            "ip link del lan",
            "ip link del wan",
        ] {
            let _ = sh(script);
        }
    }
}
