//! Random histories of two or three nodes with two links: the transport with
//! its handshakes, the replica, and the part of the daemon that takes and
//! gives up roles, under virtual time.
//!
//! A history is events, loss, duplication, reordering, one-way and two-way
//! cuts, restarts and deaths, role changes, silence for minutes, and peers
//! that speak a later version. When it is over and the network is whole, all
//! copies equal their origins; and then an orderly takeover loses nothing and
//! leaves no ghosts. Replay a failure with `CTSYNC_SIM_SEED=n`;
//! `CTSYNC_SIM_SEEDS=n` runs more.

use super::seeds;
use crate::replica::message::Role;
use std::time::Duration;
use world::World;

mod world;

const LINKS: usize = 2;
const KEYS: u32 = 40;

/// Runs a history; what went over the wires, in brief.
fn history(seed: u64) -> u64 {
    let mut w = World::new(seed);
    for _ in 0..2 {
        w.chaos();
        w.settle("after chaos");
        take_over_in_order(&mut w);
    }
    w.trace
}

/// Loses nothing and leaves no ghosts.
fn take_over_in_order(w: &mut World) {
    let everything = w.everything();
    let n = w.any();
    w.step_down(n, Role::Backup);
    w.settle("stepped down");
    w.take_over(n);
    w.settle("an orderly takeover");
    assert_eq!(
        w.nodes[n].kernel.keys().collect::<Vec<_>>(),
        everything.keys().collect::<Vec<_>>()
    );
    for (other, node) in w.nodes.iter().enumerate() {
        assert!(other == n || node.kernel.is_empty(), "{other} has ghosts");
    }
}

#[test]
fn histories_end_with_equal_copies_and_one_owner() {
    for seed in seeds(40) {
        let outcome = std::panic::catch_unwind(|| history(seed));
        assert!(outcome.is_ok(), "CTSYNC_SIM_SEED={seed}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    let traces = [7, 7, 8].map(history);
    assert_eq!(traces[0], traces[1]);
    assert_ne!(traces[0], traces[2]);
}

/// `primary`, `backup` and `fault` in any order on any node while connections
/// come and go and datagrams are lost: epochs only rise, a node knows whom to
/// fence off, and whenever it is quiet all copies are equal, at most one node
/// owns anything, and an orderly takeover loses nothing.
/// `CTSYNC_SIM_ROLES=n` makes so many changes instead of ten thousand.
#[test]
fn any_order_of_role_changes_leaves_one_owner() {
    let changes = std::env::var("CTSYNC_SIM_ROLES").ok();
    let changes: u32 = changes.map_or(10_000, |n| n.parse().unwrap());
    let mut w = World::new(11);
    let mut epochs = vec![0; w.nodes.len()];
    for change in 1..=changes {
        for _ in 0..w.rng.below(3) {
            w.event();
        }
        let n = w.any();
        match w.rng.below(3) {
            0 => w.take_over(n),
            1 => w.step_down(n, Role::Backup),
            _ => w.step_down(n, Role::Fault),
        }
        for _ in 0..w.rng.below(6) {
            let by = [0, 1, 5, 40][w.rng.below(4) as usize];
            w.step(Duration::from_millis(by));
        }
        for (node, epoch) in w.nodes.iter().zip(&mut epochs) {
            let replica = &node.replica;
            let (role, now) = replica.role();
            assert!(now >= *epoch, "change {change}: an epoch fell");
            *epoch = now;
            for (p, peer) in replica.peers.iter().enumerate() {
                let lost = role == Role::Primary && peer.inbound.role().1 < now;
                assert_eq!(replica.is_fenced(p), lost, "change {change}");
            }
        }
        if change % 100 == 0 {
            w.settle(&format!("after change {change}"));
            take_over_in_order(&mut w);
        }
    }
}

/// The link is down for an hour while connections come and go: nothing grows
/// with time, and afterwards all is equal.
#[test]
fn an_hour_apart_costs_no_memory_and_no_entry() {
    let mut w = World::new(3);
    w.settle("before");
    for a in 0..w.nodes.len() {
        for b in 0..w.nodes.len() {
            for link in 0..LINKS {
                w.cuts.insert((a, b, link), 100);
            }
        }
    }
    let end = w.now + Duration::from_secs(3600);
    while w.now < end {
        w.event();
        w.step(Duration::from_millis(250));
    }
    let keys = usize::try_from(KEYS).unwrap();
    for node in &w.nodes {
        assert!(node.replica.own.slots() <= 2 * keys, "tombstones");
        assert!((0..node.replica.peers.len()).all(|p| !node.replica.is_connected(p)));
    }
    assert!(w.wires.len() < 1000, "{} on the wires", w.wires.len());
    w.settle("an hour");
    take_over_in_order(&mut w);
}
