//! ctsync with more than one link and more than two nodes.

use anyhow::{Context, Result, ensure};
use lab::cluster::{Cluster, address, ctsync};
use lab::inject::{Act, inject_in, injected};
use lab::peer::Peer;
use lab::require::Need;
use nix::sys::signal::Signal;
use serde_json::Value;

/// The cable of the first link is pulled, then the first link passes nothing
/// in one direction although its cable is in.
#[test]
fn mirroring_goes_on_over_the_other_link() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(2, 2, "peer-timeout = \"2s\"")?;
    let _zero = c.start(0)?;
    let _one = c.start(1)?;
    inject_in(c.node(0)?, 0, 1000, Act::Create)?;
    c.wait_copy(1, 0, 1000)?;
    c.wait_for("the first link in use", || {
        Ok(c.link_in_use(0, 1)? == Some(0))
    })?;

    c.switch.ip_batch("link set n0l0 down\n")?;
    c.wait_for("the second link in use at both", || {
        Ok(c.link_in_use(0, 1)? == Some(1) && c.link_in_use(1, 0)? == Some(1))
    })?;
    ensure!(
        c.peer(1, 0)?.get("state") == Some(&"up".into()),
        "it was down"
    );
    inject_in(c.node(0)?, 0, 500, Act::Delete)?;
    inject_in(c.node(0)?, 1000, 2000, Act::Create)?;
    c.wait_copy(1, 0, 1500)?;

    c.switch.ip_batch("link set n0l0 up\n")?;
    c.wait_for("the first link in use again", || {
        Ok(c.link_in_use(0, 1)? == Some(0) && c.link_in_use(1, 0)? == Some(0))
    })?;
    inject_in(c.node(0)?, 500, 1000, Act::Delete)?;
    c.wait_copy(1, 0, 1000)?;

    c.node(1)?.nft(
        "table ip deaf {\n\tchain input {\n\t\ttype filter hook input priority 0; policy accept;\n\
         \t\tiifname l0 drop\n\t}\n}\n",
    )?;
    inject_in(c.node(0)?, 1000, 1500, Act::Delete)?;
    c.wait_copy(1, 0, 500)?;
    c.wait_for("what fw-0 sends to take the second link", || {
        Ok(c.link_in_use(0, 1)? == Some(1))
    })?;
    inject_in(c.node(1)?, 5000, 5100, Act::Create)?;
    c.wait_copy(0, 1, 100)
}

/// Each node has a copy of each other; one dies and comes back, one takes
/// over from two.
#[test]
fn three_nodes_copy_one_another() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(3, 1, "peer-timeout = \"2s\"")?;
    let mut running = (0..3).map(|n| c.start(n)).collect::<Result<Vec<_>>>()?;
    for (n, flows) in [(0_u32, 300_u32), (1, 200), (2, 100)] {
        let node = usize::try_from(n)?;
        inject_in(c.node(node)?, n * 1000, n * 1000 + flows, Act::Create)?;
    }
    let all_equal = || -> Result<()> {
        for (of, flows) in [(0, 300), (1, 200), (2, 100)] {
            for at in (0..3).filter(|at| *at != of) {
                c.wait_copy(at, of, flows)?;
            }
        }
        Ok(())
    };
    all_equal()?;

    // The one in the middle is killed; the others go on with each other.
    let mut one = running.remove(1);
    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    inject_in(c.node(0)?, 300, 400, Act::Create)?;
    c.wait_copy(2, 0, 400)?;
    inject_in(c.node(0)?, 300, 400, Act::Delete)?;
    let one = c.start(1)?;
    all_equal()?;

    // Two die for good; the third has what both had.
    drop((one, running.remove(0)));
    let taken = c.ask(2, &["primary"])?;
    ensure!(taken.ok(), "{}", taken.report());
    let (count, _) = injected(c.node(2)?, 0)?;
    ensure!(count == 600, "{count} in fw-2's kernel");
    let own = c.status(2)?;
    ensure!(own.pointer("/internal/flows") == Some(&600.into()), "{own}");
    let check = c.ask(2, &["check"])?;
    ensure!(check.ok(), "{}", check.report());
    Ok(())
}

/// Of three nodes, one is primary; the role moves on, and the last one always
/// knows whose states count.
#[test]
fn a_role_moves_between_three_nodes() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(3, 1, "purge-after = \"1s\"")?;
    let _running = (0..3).map(|n| c.start(n)).collect::<Result<Vec<_>>>()?;
    c.wait_synced(&[0, 1, 2])?;
    for (turn, n) in [0, 1, 2, 0].into_iter().enumerate() {
        let taken = c.ask(n, &["primary"])?;
        ensure!(taken.ok(), "{}", taken.report());
        if turn == 0 {
            inject_in(c.node(0)?, 0, 500, Act::Create)?;
        }
        let mark = u32::try_from(turn)? + 1;
        inject_in(c.node(n)?, 0, 500, Act::Mark(mark))?;
        for other in (0..3).filter(|o| *o != n) {
            c.wait_role(other, "backup")?;
            c.wait_copy(other, n, 500)?;
            c.wait_for("stale states to go", || {
                Ok(injected(c.node(other)?, mark)?.0 == 0)
            })?;
        }
        ensure!(injected(c.node(n)?, mark)? == (500, 500), "at fw-{n}");
    }
    Ok(())
}

/// Everything else the same, the link over IPv6, on a device, with a key that
/// both share besides.
#[test]
fn a_link_over_ipv6_with_a_shared_key() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(2, 1, "")?;
    let psk = c.file(0, "psk");
    ctsync(&["keygen", "--psk", &psk])?.success()?;
    for n in 0..2 {
        let lines = format!("addr add fd00:30::{}/64 dev l0 nodad\n", 10 + n);
        c.node(n)?.ip_batch(&lines)?;
        let path = c.file(n, "toml");
        let mut text = std::fs::read_to_string(&path)?;
        for peer in 0..2 {
            let (v4, v6) = (address(peer, 0), format!("[fd00:30::{}]", 10 + peer));
            text = text.replace(&v4, &v6);
        }
        text = text.replace("[[peer]]", "device = \"l0\"\n[[peer]]");
        std::fs::write(&path, format!("{text}psk-file = \"{psk}\"\n"))?;
    }
    let _zero = c.start(0)?;
    let one = c.start(1)?;
    inject_in(c.node(0)?, 0, 1000, Act::Create)?;
    c.wait_copy(1, 0, 1000)?;
    // With the key of one of them only, they do not talk.
    drop(one);
    let path = c.file(1, "toml");
    let text = std::fs::read_to_string(&path)?;
    let without = text.lines().filter(|l| !l.starts_with("psk-file"));
    std::fs::write(&path, without.collect::<Vec<_>>().join("\n"))?;
    let _one = c.start(1)?;
    c.wait_for("handshakes to be refused", || {
        let refused = |n| -> Result<bool> {
            let status = c.status(n)?;
            let count = status.pointer("/counters/refused_unknown_key");
            Ok(count.and_then(Value::as_u64).unwrap_or(0) > 0)
        };
        Ok(refused(0)? || refused(1)?)
    })?;
    ensure!(
        c.peer(1, 0)?.get("state") == Some(&"down".into()),
        "it is up"
    );
    Ok(())
}

/// Where states are applied at once: what the old primary gives up is what
/// the new one has, and stays in the third one's kernel.
#[test]
fn a_third_node_keeps_what_moves_between_the_others() -> Result<()> {
    lab::require!(Need::Root);
    let c = Cluster::new(3, 1, "apply = \"immediate\"\npurge-after = \"1s\"")?;
    let mut running = (0..3).map(|n| c.start(n)).collect::<Result<Vec<_>>>()?;
    c.wait_synced(&[0, 1, 2])?;
    inject_in(c.node(0)?, 0, 500, Act::Create)?;
    for (turn, n) in (1..).zip([0, 1, 0]) {
        let taken = c.ask(n, &["primary"])?;
        ensure!(taken.ok(), "{}", taken.report());
        inject_in(c.node(n)?, 0, 500, Act::Mark(turn))?;
        for other in (0..3).filter(|o| *o != n) {
            c.wait_copy(other, n, 500)?;
            c.wait_for("the old primary to have given up", || {
                Ok(other == 2 || c.peer(n, other)?.get("flows") == Some(&0.into()))
            })?;
        }
        for node in 0..3 {
            c.wait_for(&format!("mark {turn} in fw-{node}'s kernel"), || {
                Ok(injected(c.node(node)?, turn)? == (500, 500))
            })?;
        }
    }
    // And after stale states have been deleted where the role was.
    let was_primary = running.get_mut(1).context("fw-1")?;
    was_primary.wait_for_line("stale states were deleted")?;
    for node in 0..3 {
        ensure!(injected(c.node(node)?, 3)? == (500, 500), "fw-{node}");
    }
    Ok(())
}

/// How the third node comes to the other two.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Joins {
    /// They have known it all along.
    Expected,
    /// They learn of it: new configurations, then a restart of each, for a
    /// reload takes no new peer.
    Added,
}

/// Two nodes mirror each other, connections come and go; a third one starts,
/// gets everything, follows, and takes over.
fn a_third_node_joins(joins: Joins, apply: &str) -> Result<()> {
    let c = Cluster::new(3, 1, &format!("apply = \"{apply}\"\npurge-after = \"1s\""))?;
    let pair = [0, 1];
    if joins == Joins::Added {
        for n in pair {
            c.configure(n, &pair)?;
        }
    }
    let mut running = pair
        .map(|n| c.start(n))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    c.ask(0, &["primary"])?.success()?;
    inject_in(c.node(0)?, 0, 1000, Act::Create)?;
    c.wait_copy(1, 0, 1000)?;
    if joins == Joins::Added {
        restart_with_a_third(&c, &mut running)?;
    } else {
        let away = c.peer(0, 2)?;
        ensure!(away.get("state") == Some(&"down".into()), "{away}");
    }

    inject_in(c.node(0)?, 1000, 1100, Act::Create)?;
    let _third = c.start(2)?;
    inject_in(c.node(0)?, 0, 100, Act::Delete)?;
    for at in [1, 2] {
        c.wait_copy(at, 0, 1000)?;
    }
    c.wait_synced(&[0, 1, 2])?;
    // Each changes the number, which is what is waited for.
    inject_in(c.node(0)?, 0, 100, Act::Create)?;
    for at in [1, 2] {
        c.wait_copy(at, 0, 1100)?;
    }
    inject_in(c.node(0)?, 1000, 1100, Act::Delete)?;
    for at in [1, 2] {
        c.wait_copy(at, 0, 1000)?;
    }

    for (mark, new, others) in [(1, 2, [0, 1]), (2, 1, [0, 2]), (3, 0, [1, 2])] {
        let taken = c.ask(new, &["primary"])?;
        ensure!(taken.ok(), "{}", taken.report());
        let there = injected(c.node(new)?, 0)?.0;
        ensure!(there == 1000, "{there} of 1000 came to fw-{new}");
        inject_in(c.node(new)?, 0, 1000, Act::Mark(mark))?;
        for other in others {
            c.wait_role(other, "backup")?;
            c.wait_copy(other, new, 1000)?;
            let expected = if apply == "immediate" { 1000 } else { 0 };
            c.wait_for(&format!("what fw-{new} has in fw-{other}'s kernel"), || {
                Ok(injected(c.node(other)?, mark)? == (expected, expected))
            })?;
        }
        ensure!(injected(c.node(new)?, mark)? == (1000, 1000), "fw-{new}");
    }
    for n in 0..3 {
        c.wait_for("check to be content", || Ok(c.ask(n, &["check"])?.ok()))?;
    }
    Ok(())
}

/// First the backup, then the primary, which owns what its kernel has again.
fn restart_with_a_third(c: &Cluster, running: &mut [Peer]) -> Result<()> {
    for (n, role) in [(1, "backup"), (0, "primary")] {
        c.configure(n, &[0, 1, 2])?;
        let daemon = running.get_mut(n).context("no such node")?;
        daemon.signal(Signal::SIGHUP)?;
        daemon.wait_for_line("changes of peers need a restart")?;
        daemon.signal(Signal::SIGTERM)?;
        daemon.wait()?;
        *daemon = c.start(n)?;
        c.ask(n, &[role])?.success()?;
        c.wait_copy(1, 0, 1000)?;
    }
    Ok(())
}

#[test]
fn a_node_joins_a_running_pair_that_expects_it() -> Result<()> {
    lab::require!(Need::Root);
    a_third_node_joins(Joins::Expected, "commit")
}

#[test]
fn a_node_is_added_to_a_running_pair() -> Result<()> {
    lab::require!(Need::Root);
    a_third_node_joins(Joins::Added, "commit")
}

#[test]
fn a_node_is_added_to_a_running_pair_where_states_are_applied_at_once() -> Result<()> {
    lab::require!(Need::Root);
    a_third_node_joins(Joins::Added, "immediate")
}
