//! The first act: one firewall, with and without the helper.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use lab::check;
use lab::command::Finished;
use lab::firewall::{Nat, packets};
use lab::ftp::Mode;
use lab::ftp::client::{Client, Job, assert_used};
use lab::ftp::server::FILE;
use lab::ftp::suite::{Case, World};
use lab::ours::{self, Helper, Watch};
use lab::topology::{Family, client_address, server_address};
use serde_json::Value;

use crate::screen::{checked, detail, title};

/// Both families, active and passive, two clients.
const CASES: [Case; 4] = [
    case(Client::Curl, Mode::Pasv, Family::V4),
    case(Client::Lftp, Mode::Port, Family::V4),
    case(Client::Curl, Mode::Epsv, Family::V6),
    case(Client::Curl, Mode::Eprt, Family::V6),
];

const fn case(client: Client, mode: Mode, family: Family) -> Case {
    Case {
        client,
        mode,
        family,
    }
}

/// All of it, in order.
pub fn tell() -> Result<()> {
    let world = the_scene()?;
    title("without a helper");
    refused(&world)?;
    title("with nft-ftp-helper");
    let (helper, watch) = the_helper(&world)?;
    for (n, case) in CASES.into_iter().enumerate() {
        transfer(&world, &watch, case, n).with_context(|| format!("{case}\n{}", helper.log()))?;
    }
    title("the helper stops");
    helper.stop()?;
    let list = ours::run(&world.topology.fw, "nft-ftp-helper", &["list"])?;
    ensure!(!list.contains(" enabled"), "still enabled: {list}");
    checked("nft-ftp-helper ended and is disabled in the kernel");
    refused(&world)?;
    Ok(())
}

fn the_scene() -> Result<World> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    title(&format!(
        "client - firewall - server, kernel {}",
        kernel.trim()
    ));
    let world = World::new(Nat::None)?;
    ensure!(world.topology.server.listens(21), "vsftpd does not listen");
    let addresses = Family::BOTH.map(|family| server_address(family).to_string());
    checked(&format!(
        "vsftpd listens on port 21 of {}",
        addresses.join(" and ")
    ));
    let rules = world.topology.fw.run("nft", &["list", "ruleset"])?;
    for rule in [
        "policy drop",
        "ct state related",
        "tcp dport 21 ct state new",
    ] {
        ensure!(rules.contains(rule), "no {rule:?} in\n{rules}");
    }
    checked("the firewall drops all but port 21 and what is established or related");
    Ok(world)
}

/// The same transfers fail, each at the firewall.
fn refused(world: &World) -> Result<()> {
    let mut names = Vec::new();
    for case in CASES {
        world.is_refused(case)?;
        names.push(case.to_string());
    }
    checked("logins work, but each transfer fails: the firewall refuses its data connection");
    detail("refused", &names.join(", "));
    Ok(())
}

fn the_helper(world: &World) -> Result<(Helper, Watch)> {
    let fw = &world.topology.fw;
    let helper = Helper::start(fw, &[])?;
    let list = ours::run(fw, "nft-ftp-helper", &["list"])?;
    let families: Vec<_> = ["nft-ftp ip ", "nft-ftp ip6 "]
        .iter()
        .filter_map(|start| list.lines().find(|line| line.starts_with(start)))
        .filter(|line| line.contains(" enabled"))
        .collect();
    ensure!(families.len() == 2, "not registered and enabled: {list}");
    checked("nft-ftp-helper runs; registered in the kernel:");
    for line in families {
        detail("helper", line);
    }
    ours::run(fw, "nft-ftp-ruleset", &["load"])?;
    let table = fw.run("nft", &["list", "table", "inet", "nft_ftp"])?;
    let rules = [
        "type \"nft-ftp\" protocol tcp",
        "tcp dport 21 ct helper set \"ftp\"",
    ];
    for rule in rules {
        ensure!(table.contains(rule), "no {rule:?} in\n{table}");
    }
    checked("nft-ftp-ruleset loaded table inet nft_ftp:");
    for rule in rules {
        detail("rule", rule);
    }
    let watch = Watch::start(fw, &helper)?;
    Ok((helper, watch))
}

/// One transfer, number `n` of those with the helper.
fn transfer(world: &World, watch: &Watch, case: Case, n: usize) -> Result<()> {
    let fw = &world.topology.fw;
    let count = |name| packets(fw, name);
    let (related, refused) = (count("related")?, count("refused")?);
    let dir = tempfile::tempdir()?;
    let local = dir.path().join(FILE);
    let host = world.target(case.family);
    let client = &world.topology.client;
    let said = case
        .client
        .run(client, host, case.mode, Job::Get(FILE, &local))?;
    let log = said.report();
    ensure!(said.ok() && log.contains("230 Login successful"), "{log}");
    assert_used(case.mode, &said)?;
    checked(&format!("{case}: logged in to {host}, fetched {FILE}"));
    expectation(watch, case, n, announced_port(case.mode, &said)?)?;
    let (related, refused) = (count("related")? - related, count("refused")? - refused);
    ensure!(
        related == 1 && refused == 0,
        "{related} data connections related, {refused} refused"
    );
    detail(
        "firewall",
        "1 new data connection accepted as related, none refused",
    );
    let sums = (check::sha256(&world.tree().file())?, check::sha256(&local)?);
    ensure!(sums.0 == sums.1, "checksums differ: {sums:?}");
    detail("sha256", &format!("{} at both ends", sums.0));
    Ok(())
}

/// Exactly one more expectation, for the announced port, then consumed.
fn expectation(watch: &Watch, case: Case, n: usize, port: u16) -> Result<()> {
    let new = watch.wait_for("new", n + 1)?;
    let gone = watch.wait_for("destroy", n + 1)?;
    ensure!(
        new.len() == n + 1 && gone.len() == n + 1,
        "{} expectations made, {} consumed",
        new.len(),
        gone.len()
    );
    let (new, gone) = (
        new.last().context("no event")?,
        gone.last().context("no event")?,
    );
    let (from, to) = ends(case);
    for (field, wanted) in [
        ("/expectation/tuple/src", Value::from(from.to_string())),
        ("/expectation/tuple/dst", Value::from(to.to_string())),
        ("/expectation/tuple/dport", Value::from(port)),
    ] {
        for event in [new, gone] {
            let found = event.pointer(field);
            ensure!(
                found == Some(&wanted),
                "{field}: {found:?}, wanted {wanted}"
            );
        }
    }
    detail(
        "expectation",
        &format!("[NEW]     tcp {from} -> {to} port {port}"),
    );
    detail(
        "consumed",
        &format!("[DESTROY] tcp {from} -> {to} port {port}"),
    );
    Ok(())
}

/// Who opens the data connection, and to whom.
fn ends(case: Case) -> (IpAddr, IpAddr) {
    let (client, server) = (client_address(case.family), server_address(case.family));
    if case.mode.is_passive() {
        (client, server)
    } else {
        (server, client)
    }
}

/// The port that client or server announced, from the client's log.
fn announced_port(mode: Mode, said: &Finished) -> Result<u16> {
    let marks: &[&str] = match mode {
        Mode::Pasv => &["227 Entering"],
        Mode::Epsv => &["229 Entering"],
        Mode::Port => &["> PORT "],
        Mode::Eprt => &["> EPRT "],
    };
    let log = said.report();
    let line = log
        .lines()
        .find(|line| marks.iter().any(|mark| line.contains(mark)))
        .with_context(|| format!("no announcement in\n{log}"))?;
    let numbers: Vec<u16> = line
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    match (mode, numbers.as_slice()) {
        (Mode::Pasv | Mode::Port, [.., high, low]) => Ok(high * 256 + low),
        (Mode::Epsv | Mode::Eprt, [.., port]) => Ok(*port),
        _ => bail!("no port in {line:?}"),
    }
}
