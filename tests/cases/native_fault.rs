//! Faults: daemons that are killed in the middle of a commit or of a role
//! change, links that flap or shrink, file systems that can't be written.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::inject::{Act, inject_in, injected};
use lab::nodes::Nodes;
use lab::ours::program;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::{Need, is_full};
use lab::wait::{patience, until, until_true};
use nix::sys::signal::Signal;
use serde_json::Value;

fn count(pair: &Pair, node: Node) -> Result<usize> {
    Ok(injected(pair.fw(node), 0)?.0)
}

/// The daemon that commits dies at every so many entries; the next one, and
/// the next commit, finish what it began, and nothing is there twice.
fn killed_while_it_works(command: &str) -> Result<()> {
    let flows = if is_full() { 40_000 } else { 12_000 };
    let steps = if is_full() { 12 } else { 4 };
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let [_one, mut two] = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, flows, Act::Create)?;
    let mirrored = |node: Node| {
        until("the mirror", patience() * 4, || {
            let copied = nodes.number(node, "/external/flows").ok()?;
            (copied == u64::from(flows)).then_some(())
        })
    };
    let mut reached = Vec::new();
    for step in 1..=steps {
        mirrored(Node::Two)?;
        let control = nodes.control(Node::Two);
        let control = control.to_str().context("path")?;
        let mut asked = program("ctsync", &["--control", control, command])?;
        let mut asked = asked.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let goal = flows as usize * step / (steps + 1);
        // The kernel's own count: looking at the whole table takes longer
        // than a commit.
        until("a part of the commit", patience(), || {
            let number = pair
                .fw_2
                .enter(|| std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"));
            let number: usize = number.ok()?.trim().parse().ok()?;
            (number >= goal).then_some(())
        })?;
        two.signal(Signal::SIGKILL)?;
        two.wait()?;
        let said = asked.wait()?;
        reached.push(count(&pair, Node::Two)?);
        // It was answered only if it was done.
        if said.success() {
            ensure!(reached.last() == Some(&(flows as usize)), "{reached:?}");
        }
        two = nodes.start(&pair, Node::Two)?;
        nodes.wait_synced()?;
        if step < steps {
            pair.fw_2.run("conntrack", &["-F"])?;
        }
    }
    mirrored(Node::Two)?;
    let done = nodes.ctsync(Node::Two, &[command])?;
    ensure!(done.ok(), "{}\nafter {reached:?}", done.report());
    ensure!(
        count(&pair, Node::Two)? == flows as usize,
        "after {reached:?}"
    );
    eprintln!("killed with {reached:?} of {flows} connections committed");
    nodes.wait_synced()
}

#[test]
fn a_commit_that_is_killed_anywhere_can_be_repeated() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrack"));
    killed_while_it_works("commit")
}

#[test]
fn a_takeover_that_is_killed_anywhere_can_be_repeated() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrack"));
    killed_while_it_works("primary")
}

/// The cable comes and goes while connections do.
#[test]
fn a_link_that_flaps_costs_nothing_but_time() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("peer-timeout = \"1s\"\n")?;
    let _daemons = nodes.start_both(&pair)?;
    let rounds = if is_full() { 60 } else { 6 };
    for round in 0..rounds {
        pair.fw_2.ip_batch("link set sync down\n")?;
        inject_in(&pair.fw_1, round * 100, round * 100 + 100, Act::Create)?;
        if round % 3 == 2 {
            // Long enough to be noticed.
            until("the peer to be down", patience(), || {
                let status = nodes.status(Node::One).ok()?;
                (status.pointer("/peers/0/state")? == "down").then_some(())
            })?;
            inject_in(&pair.fw_1, round * 100 - 50, round * 100, Act::Delete)?;
        }
        pair.fw_2.ip_batch("link set sync up\n")?;
    }
    nodes.wait_synced()?;
    nodes.wait_mirrored(Node::One)
}

/// The link's MTU shrinks below what datagrams are made for, at one end and
/// then at both, and grows again.
#[test]
fn a_link_that_shrinks_still_carries_everything() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let _daemons = nodes.start_both(&pair)?;
    let mut from = 0;
    for (one, two) in [(1400, 1500), (1400, 1400), (700, 700), (1500, 1500)] {
        pair.fw_1.ip_batch(&format!("link set sync mtu {one}\n"))?;
        pair.fw_2.ip_batch(&format!("link set sync mtu {two}\n"))?;
        inject_in(&pair.fw_1, from, from + 500, Act::Create)?;
        inject_in(&pair.fw_2, 100_000 + from, 100_200 + from, Act::Create)?;
        nodes
            .wait_mirrored(Node::One)
            .with_context(|| format!("{one}, {two}"))?;
        nodes
            .wait_mirrored(Node::Two)
            .with_context(|| format!("{one}, {two}"))?;
        from += 500;
    }
    nodes.wait_synced()
}

/// Where nothing can be written a daemon says so and ends; one that runs
/// already goes on.
#[test]
fn a_read_only_file_system_is_named_and_disturbs_no_running_daemon() -> Result<()> {
    lab::require!(Need::Root, Need::Program("unshare"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let config = nodes.file(Node::One, "toml");
    let config = config.to_str().context("path")?;
    let directory = nodes.control(Node::One);
    let directory = directory
        .parent()
        .context("directory")?
        .to_str()
        .context("path")?;
    let binary = program("ctsync", &[])?;
    let binary = binary.get_program().to_string_lossy().into_owned();
    let script = format!(
        "mount --bind {directory} {directory} && mount -o remount,bind,ro {directory} && \
         exec {binary} run --config {config}"
    );
    let mut command = lab::command::command("unshare", &["-m", "sh", "-c", &script]);
    command.stdin(Stdio::null());
    let done = pair.fw_1.finish(command)?;
    ensure!(done.status.code() == Some(2), "{}", done.report());
    ensure!(done.report().contains("EROFS"), "{}", done.report());

    let [one, _two] = nodes.start_both(&pair)?;
    // In the daemon's own view of the file system.
    let pid = one.pid().to_string();
    let remount =
        format!("mount --bind {directory} {directory} && mount -o remount,bind,ro {directory}");
    let enter = ["-t", &pid, "-m", "unshare", "-m", "sh", "-c", &remount];
    pair.fw_1.run("nsenter", &enter)?;
    one.signal(Signal::SIGHUP)?;
    inject_in(&pair.fw_1, 0, 100, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let (status, log) = one.stop()?;
    ensure!(status.success(), "{log}");
    Ok(())
}

/// Roles are given in any order to both nodes, a daemon is killed now and
/// then, and in the end one owns what there is.
#[test]
fn many_role_changes_end_with_one_owner_of_everything() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("purge-after = \"1s\"\n")?;
    let mut daemons = [
        nodes.start(&pair, Node::One)?,
        nodes.start(&pair, Node::Two)?,
    ];
    nodes.wait_synced()?;
    inject_in(&pair.fw_1, 0, 200, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let changes = if is_full() { 400 } else { 30 };
    let mut random: u32 = 1;
    let mut given = [0; 3];
    for n in 0..changes {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let at = usize::from(random >> 16 & 1 == 1);
        let node = if at == 0 { Node::One } else { Node::Two };
        let which = usize::try_from(random >> 17)? % 3;
        copies_are_equal(&nodes).with_context(|| format!("before change {n}"))?;
        let role = ["primary", "backup", "fault"].get(which).context("role")?;
        let done = nodes.ctsync(node, &[role])?;
        ensure!(done.ok(), "change {n}: {}", done.report());
        if let Some(times) = given.get_mut(which) {
            *times += 1;
        }
        if n % 7 == 6 {
            if let Some(daemon) = daemons.get_mut(at) {
                daemon.signal(Signal::SIGKILL)?;
                daemon.wait()?;
                *daemon = nodes.start(&pair, node)?;
            }
        }
    }
    ensure!(given.iter().all(|times| *times > 0), "{given:?}");
    eprintln!("primary, backup, fault: {given:?}");
    copies_are_equal(&nodes)?;
    let last = Node::Two;
    let done = nodes.ctsync(last, &["primary"])?;
    ensure!(done.ok(), "{}", done.report());
    nodes.ctsync(last.peer(), &["backup"])?;
    until("one owner of everything", Duration::from_secs(60), || {
        let own = nodes.number(last, "/internal/flows").ok()?;
        let rest = nodes.number(last.peer(), "/internal/flows").ok()?;
        (own >= 200 && rest == 0).then_some(())
    })
    .with_context(|| format!("{:?} {:?}", nodes.status(last), nodes.status(last.peer())))?;
    nodes.wait_mirrored(last)?;
    let kept = count(&pair, last)?;
    ensure!(kept == 200, "{kept} of 200 connections are left");
    Ok(())
}

/// Apart, both are primary for a while (a minute with `LAB_FULL`), with
/// connections of their own: together again, one of them is.
#[test]
fn two_primaries_that_meet_again_are_one() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("peer-timeout = \"1s\"\npurge-after = \"1s\"\n")?;
    let _daemons = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, 500, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    pair.fw_2.ip_batch("link set sync down\n")?;
    for node in Node::BOTH {
        until("the peer to be down", patience(), || {
            let status = nodes.status(node).ok()?;
            (status.pointer("/peers/0/state")? == "down").then_some(())
        })?;
        nodes.ctsync(node, &["primary"])?.success()?;
    }
    let end = Instant::now() + Duration::from_secs(if is_full() { 60 } else { 3 });
    let mut mark = 0;
    while mark < 3 || Instant::now() < end {
        mark += 1;
        for (fw, from) in [(&pair.fw_1, 1000), (&pair.fw_2, 2000)] {
            let act = if mark == 1 {
                Act::Create
            } else {
                Act::Mark(mark)
            };
            inject_in(fw, from, from + 100, act)?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    pair.fw_2.ip_batch("link set sync up\n")?;
    // Their epochs are equal, and the name of the second one is higher.
    let roles =
        || Node::BOTH.map(|n| Some(nodes.status(n).ok()?.get("role")?.as_str()?.to_owned()));
    let expected = ["backup", "primary"].map(|role| Some(role.to_owned()));
    until_true("one primary", || roles() == expected).with_context(|| format!("{:?}", roles()))?;
    copies_are_equal(&nodes)?;
    nodes.wait_mirrored(Node::Two)?;
    ensure!(nodes.number(Node::Two, "/internal/flows")? == 600);
    until("one owner", patience(), || {
        (nodes.number(Node::One, "/internal/flows").ok()? == 0).then_some(())
    })?;
    let (all, marked) = injected(&pair.fw_2, mark)?;
    ensure!(
        (all, marked) == (600, 100),
        "{all}, {marked} of them marked"
    );
    Ok(())
}

/// Each has all of the other's, whatever the role it has.
fn copies_are_equal(nodes: &Nodes) -> Result<()> {
    let equal = || {
        Node::BOTH.iter().all(|node| {
            let status = nodes.status(*node).unwrap_or_default();
            status.pointer("/peers/0/synced").and_then(Value::as_bool) == Some(true)
        })
    };
    until_true("equal copies", equal)
        .with_context(|| format!("{:?}", Node::BOTH.map(|n| nodes.status(n))))
}

/// A daemon ends in good order and another one, as a package brings it, takes
/// its place: first at the backup, then at the primary, whose kernel goes on
/// meanwhile. Nothing is lost, and what ended then is no ghost.
fn upgraded_in_place(extra: &str) -> Result<()> {
    let pair = Pair::new()?;
    let nodes = Nodes::with(extra)?;
    let [mut one, mut two] = nodes.start_both(&pair)?;
    nodes.ctsync(Node::One, &["primary"])?.success()?;
    nodes.ctsync(Node::Two, &["backup"])?.success()?;
    inject_in(&pair.fw_1, 0, 1000, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let upgrade = |daemon: &mut Peer, node: Node, role: &str| -> Result<()> {
        daemon.signal(Signal::SIGTERM)?;
        daemon.wait()?;
        match node {
            Node::One => {
                inject_in(&pair.fw_1, 1000, 1100, Act::Create)?;
                inject_in(&pair.fw_1, 0, 50, Act::Delete)?;
            }
            Node::Two => inject_in(&pair.fw_1, 900, 950, Act::Delete)?,
        }
        *daemon = nodes.start(&pair, node)?;
        nodes.ctsync(node, &[role])?.success()?;
        nodes.wait_synced()?;
        nodes.wait_mirrored(Node::One)
    };
    upgrade(&mut two, Node::Two, "backup")?;
    ensure!(nodes.number(Node::Two, "/external/flows")? == 950);
    upgrade(&mut one, Node::One, "primary")?;
    ensure!(count(&pair, Node::One)? == 1000, "the primary's kernel");
    // What ended while the backup's daemon was away has been purged from its
    // kernel, if it was there.
    until("no ghosts at the backup", patience(), || {
        (count(&pair, Node::Two).ok()? <= 1000).then_some(())
    })?;
    nodes.ctsync(Node::Two, &["primary"])?.success()?;
    let kept = count(&pair, Node::Two)?;
    ensure!(kept == 1000, "{kept} of 1000 connections came over");
    Ok(())
}

#[test]
fn an_upgrade_in_place_loses_nothing() -> Result<()> {
    lab::require!(Need::Root);
    upgraded_in_place("purge-after = \"1s\"\n")
}

#[test]
fn an_upgrade_in_place_loses_nothing_where_states_are_applied_at_once() -> Result<()> {
    lab::require!(Need::Root);
    upgraded_in_place("apply = \"immediate\"\npurge-after = \"1s\"\n")
}
