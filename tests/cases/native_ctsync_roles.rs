//! Who owns the states: fencing, commands that come at once and in any
//! order, and nodes that write what they hear into their kernels at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::server::{Program, Server};
use lab::ftp::session::{Data, Ftp, is_file};
use lab::inject::{Act, inject_in, injected};
use lab::nodes::{Nodes, load_rules};
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::talk::Talk;
use lab::topology::{Family, server_address};
use lab::wait::until;
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(40);

struct World {
    pair: Pair,
    nodes: Nodes,
}

impl World {
    fn new(extra: &str) -> Result<Self> {
        let pair = Pair::new()?;
        let nodes = Nodes::with(extra)?;
        Ok(Self { pair, nodes })
    }

    fn kernel(&self, node: Node, mark: u32) -> Result<(usize, usize)> {
        injected(self.pair.fw(node), mark)
    }

    /// Waits until a kernel has so many connections, all with the mark.
    fn kernel_has(&self, node: Node, count: usize, mark: u32) -> Result<()> {
        let mut last = (0, 0);
        let there = until("connections in the kernel", SOON, || {
            last = self.kernel(node, mark).ok()?;
            (last == (count, count)).then_some(())
        });
        there.with_context(|| {
            format!(
                "{node:?} has {last:?}, wanted {count} with mark {mark}; {:?}",
                self.nodes.status(node)
            )
        })
    }

    fn role(&self, node: Node, role: &str) -> Result<()> {
        let done = self.nodes.ctsync(node, &[role])?;
        ensure!(done.ok(), "{role}: {}", done.report());
        Ok(())
    }

    fn wait_role(&self, node: Node, role: &str) -> Result<()> {
        until(role, SOON, || {
            let status = self.nodes.status(node).ok()?;
            (status.pointer("/role")? == role).then_some(())
        })
        .with_context(|| format!("{node:?}: {:?}", self.nodes.status(node)))
    }

    /// Cuts or mends the sync link alone.
    fn link(&self, state: &str) -> Result<()> {
        let lines = format!("link set sync {state}\n");
        self.pair.fw_2.ip_batch(&lines)
    }

    fn wait_peer(&self, node: Node, state: &str) -> Result<()> {
        until(&format!("the peer to be {state}"), SOON, || {
            let status = self.nodes.status(node).ok()?;
            (status.pointer("/peers/0/state")? == state).then_some(())
        })
    }
}

/// Cut off from each other, both are primary, with connections of their own
/// and different states of the same ones. When they hear of each other again
/// the later one stays, whatever the other sends.
fn fenced(extra: &str) -> Result<()> {
    let extra = format!("peer-timeout = \"1s\"\npurge-after = \"1s\"\n{extra}");
    let w = World::new(&extra)?;
    let [one, _two] = w.nodes.start_both(&w.pair)?;
    w.role(Node::One, "primary")?;
    w.role(Node::Two, "backup")?;
    inject_in(w.pair.fw(Node::One), 0, 1000, Act::Create)?;
    inject_in(w.pair.fw(Node::One), 0, 1000, Act::Mark(1))?;
    w.nodes.wait_mirrored(Node::One)?;

    w.link("down")?;
    w.wait_peer(Node::Two, "down")?;
    w.role(Node::Two, "primary")?;
    inject_in(w.pair.fw(Node::Two), 0, 1000, Act::Mark(2))?;
    // fw-1 has not heard of it and goes on.
    inject_in(w.pair.fw(Node::One), 0, 100, Act::Delete)?;
    inject_in(w.pair.fw(Node::One), 100, 1000, Act::Mark(3))?;
    w.link("up")?;
    w.wait_role(Node::One, "backup")?;
    w.nodes.wait_mirrored(Node::Two)?;
    w.kernel_has(Node::Two, 1000, 2)?;
    // What fw-1 still had is gone there, and can't come back here.
    w.kernel_has(Node::One, 0, 2)?;
    let again = w.nodes.ctsync(Node::Two, &["commit"])?;
    ensure!(again.ok(), "{}", again.report());
    w.kernel_has(Node::Two, 1000, 2)?;

    // Even a daemon that knows nothing of all this can't.
    drop(one);
    inject_in(w.pair.fw(Node::One), 0, 50, Act::Create)?;
    inject_in(w.pair.fw(Node::One), 0, 50, Act::Mark(4))?;
    let _one = w.nodes.start(&w.pair, Node::One)?;
    w.wait_role(Node::One, "backup")?;
    w.nodes.wait_mirrored(Node::Two)?;
    w.nodes.ctsync(Node::Two, &["commit"])?;
    w.kernel_has(Node::Two, 1000, 2)
}

#[test]
fn a_node_that_lost_its_role_overwrites_nothing() -> Result<()> {
    lab::require!(Need::Root);
    fenced("")
}

#[test]
fn nor_does_it_where_states_are_applied_at_once() -> Result<()> {
    lab::require!(Need::Root);
    // fw-1 as a backup gets what fw-2 owns; its stale ones go before.
    let w = World::new("apply = \"immediate\"\npeer-timeout = \"1s\"\npurge-after = \"1s\"")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    w.role(Node::One, "primary")?;
    w.role(Node::Two, "backup")?;
    inject_in(w.pair.fw(Node::One), 0, 1000, Act::Create)?;
    inject_in(w.pair.fw(Node::One), 0, 1000, Act::Mark(1))?;
    w.kernel_has(Node::Two, 1000, 1)?;
    w.link("down")?;
    w.wait_peer(Node::Two, "down")?;
    w.role(Node::Two, "primary")?;
    inject_in(w.pair.fw(Node::Two), 0, 1000, Act::Mark(2))?;
    inject_in(w.pair.fw(Node::One), 0, 100, Act::Delete)?;
    inject_in(w.pair.fw(Node::One), 100, 1000, Act::Mark(3))?;
    w.link("up")?;
    w.wait_role(Node::One, "backup")?;
    w.kernel_has(Node::Two, 1000, 2)?;
    w.kernel_has(Node::One, 1000, 2)
}

/// What a node no longer owns is deleted from its kernel, and no connection that
/// has come since and whose reply has the same tuple.
#[test]
fn what_is_stale_is_deleted_and_not_what_has_its_tuple_as_reply() -> Result<()> {
    lab::require!(Need::Root);
    const FLOWS: usize = 40_000;
    let w = World::new("purge-after = \"3s\"")?;
    let [mut one, _two] = w.nodes.start_both(&w.pair)?;
    w.role(Node::One, "primary")?;
    let conntrack = |what: &[&str], from: &str, to: &str| {
        let args = [what, &["-p", "udp", "-s", from, "-d", to]].concat();
        let ports = ["--sport", "9", "--dport", "9"];
        w.pair.fw_1.run("conntrack", &[&args, &ports[..]].concat())
    };
    const NEW: &[&str] = &["-I", "--timeout", "600"];
    conntrack(NEW, "10.9.0.1", "10.9.0.2")?;
    inject_in(&w.pair.fw_1, 0, FLOWS.try_into()?, Act::Create)?;
    w.nodes.wait_mirrored(Node::One)?;
    w.role(Node::Two, "primary")?;
    one.wait_for_line("states are owned by another node now")?;
    one.signal(Signal::SIGSTOP)?;
    conntrack(&["-D"], "10.9.0.1", "10.9.0.2")?;
    conntrack(NEW, "10.9.0.2", "10.9.0.1")?;
    one.signal(Signal::SIGCONT)?;
    let line = one.wait_for_line("stale states were deleted")?;
    let counts = format!("stale={} deleted={FLOWS}", FLOWS + 1);
    ensure!(line.contains(&counts), "{line}");
    w.kernel_has(Node::One, 0, 0)?;
    let table = w.pair.fw_1.proc_net("nf_conntrack")?;
    let new = |l: &str| {
        l.find("src=10.9.0.2")
            .is_some_and(|at| l.find("src=10.9.0.1") > Some(at))
    };
    ensure!(table.lines().any(new), "{table}");
    w.kernel_has(Node::Two, FLOWS, 0)
}

/// What notify scripts do when everything happens at once.
#[test]
fn roles_may_be_given_twice_at_once_and_in_any_order() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("purge-after = \"1s\"")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    inject_in(w.pair.fw(Node::One), 0, 5000, Act::Create)?;
    w.nodes.wait_mirrored(Node::One)?;
    let nodes = &w.nodes;
    for _ in 0..3 {
        // The same role at one node, twice at once: one commit, one epoch.
        let epochs = std::thread::scope(|scope| {
            let ask = || -> Result<u64> {
                let text = nodes.ctsync(Node::Two, &["primary", "--json"])?.success()?;
                let answer: serde_json::Value = serde_json::from_str(&text)?;
                answer
                    .get("epoch")
                    .and_then(|e| e.as_u64())
                    .context("epoch")
            };
            let asked: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            let joined = asked.into_iter().map(|t| t.join().expect("asked"));
            joined.collect::<Result<Vec<_>>>()
        })?;
        ensure!(epochs.windows(2).all(|w| w[0] == w[1]), "{epochs:?}");
        w.kernel_has(Node::Two, 5000, 0)?;
        w.wait_role(Node::One, "backup")?;

        // Everything at both nodes at once: nothing fails, and in the end one
        // of them owns.
        std::thread::scope(|scope| {
            let mut asked = Vec::new();
            for node in Node::BOTH {
                for role in ["backup", "primary", "backup", "fault", "primary"] {
                    asked.push(scope.spawn(move || nodes.ctsync(node, &[role])));
                }
            }
            for done in asked {
                let done = done.join().expect("asked")?;
                ensure!(done.ok(), "{}", done.report());
            }
            Ok(())
        })?;
        w.role(Node::Two, "backup")?;
        w.role(Node::One, "backup")?;
        w.role(Node::One, "primary")?;
        w.wait_role(Node::Two, "backup")?;
        w.kernel_has(Node::One, 5000, 0)?;
        w.nodes.wait_mirrored(Node::One)?;
        let status = w.nodes.status(Node::One)?;
        ensure!(
            status.pointer("/role") == Some(&"primary".into()),
            "{status}"
        );
    }
    Ok(())
}

/// Both nodes own connections at the same time, and each kernel has all.
#[test]
fn two_active_nodes_have_each_others_connections() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("apply = \"immediate\"\npeer-timeout = \"1s\"")?;
    let [mut one, _two] = w.nodes.start_both(&w.pair)?;
    inject_in(w.pair.fw(Node::One), 0, 3000, Act::Create)?;
    inject_in(w.pair.fw(Node::Two), 10_000, 12_000, Act::Create)?;
    for node in Node::BOTH {
        w.kernel_has(node, 5000, 0)?;
    }
    // Nothing is mirrored back.
    for (node, own) in [(Node::One, 3000), (Node::Two, 2000)] {
        ensure!(w.nodes.number(node, "/internal/flows")? == own, "{node:?}");
    }
    inject_in(w.pair.fw(Node::One), 0, 3000, Act::Mark(7))?;
    inject_in(w.pair.fw(Node::Two), 10_000, 12_000, Act::Mark(7))?;
    for node in Node::BOTH {
        w.kernel_has(node, 5000, 7)?;
    }
    inject_in(w.pair.fw(Node::One), 0, 1000, Act::Delete)?;
    w.kernel_has(Node::Two, 4000, 7)?;

    // A daemon that dies and comes back costs the other kernel nothing.
    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    inject_in(w.pair.fw(Node::One), 1000, 1500, Act::Delete)?;
    let _one = w.nodes.start(&w.pair, Node::One)?;
    for node in Node::BOTH {
        w.kernel_has(node, 3500, 7)?;
    }
    w.nodes.wait_mirrored(Node::One)?;
    w.nodes.wait_mirrored(Node::Two)?;
    // Nor does it take what it holds for the other for its own: that could
    // never be deleted again.
    ensure!(w.nodes.number(Node::One, "/internal/flows")? == 1500);
    inject_in(w.pair.fw(Node::Two), 10_000, 10_500, Act::Delete)?;
    for node in Node::BOTH {
        w.kernel_has(node, 3000, 7)?;
    }
    Ok(())
}

/// A node that writes at once, and is to delete much, does so beside its other work. It
/// does not say before that the copies are equal, nor does it end before.
#[test]
fn a_node_answers_while_it_deletes_what_a_peer_no_longer_has() -> Result<()> {
    lab::require!(Need::Root);
    const FLOWS: usize = 100_000;
    let w = World::new("apply = \"immediate\"")?;
    let [mut one, mut two] = w.nodes.start_both(&w.pair)?;
    inject_in(&w.pair.fw_1, 0, FLOWS.try_into()?, Act::Create)?;
    w.kernel_has(Node::Two, FLOWS, 0)?;
    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    w.pair.fw_1.run("conntrack", &["-F"])?;
    let _one = w.nodes.start(&w.pair, Node::One)?;
    let left = |n: usize| 0 < n && n < FLOWS;
    until("connections to go", SOON, || {
        left(w.kernel(Node::Two, 0).ok()?.0).then_some(())
    })?;
    w.nodes.status(Node::Two)?;
    two.signal(Signal::SIGSTOP)?;
    let (count, _) = w.kernel(Node::Two, 0)?;
    ensure!(left(count), "{count} are left at its answer");
    let told = w.nodes.status(Node::One)?;
    two.signal(Signal::SIGTERM)?;
    two.signal(Signal::SIGCONT)?;
    two.wait()?;
    let synced = told.pointer("/peers/0/synced");
    ensure!(synced == Some(&false.into()), "{told}");
    w.kernel_has(Node::Two, 0, 0)
}

/// Hot standby without roles: fw-1 dies and comes back with empty tables.
/// What goes through fw-2 by then stays, with its FTP session.
#[test]
fn a_node_that_comes_back_empty_takes_nothing_along() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    load_rules(&pair, Nat::Snat)?;
    pair.activate(Node::One)?;
    let server = Server::start(Program::Vsftpd, &pair.server)?;
    let nodes = Nodes::with("apply = \"immediate\"\npeer-timeout = \"1s\"")?;
    let [mut one, _two] = nodes.start_both(&pair)?;
    let mut ftp = Ftp::login(&pair.client, server_address(Family::V4), Family::V4)?;
    is_file(&ftp.fetch(Data::Passive)?, &server.tree.file())?;
    until("the session in fw-2's kernel", SOON, || {
        let table = pair.fw_2.proc_net("nf_conntrack").ok()?;
        let mut lines = table.lines();
        lines
            .any(|l| l.contains("dport=21 ") && l.contains("[ASSURED]"))
            .then_some(())
    })?;

    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    pair.activate(Node::Two)?;
    is_file(&ftp.fetch(Data::Active)?, &server.tree.file())?;
    // "Booted": its tables are empty.
    pair.fw_1.run("conntrack", &["-F"])?;
    let _one = nodes.start(&pair, Node::One)?;
    nodes.wait_synced()?;
    is_file(&ftp.fetch(Data::Passive)?, &server.tree.file())?;
    // It belongs to fw-2 now, and fw-1 stands by.
    until("the session in fw-1's kernel", SOON, || {
        let table = pair.fw_1.proc_net("nf_conntrack").ok()?;
        let mut lines = table.lines();
        lines.any(|l| l.contains("dport=21 ")).then_some(())
    })?;
    let own = nodes.entries(Node::Two, &["internal", "--dport", "21"])?;
    ensure!(own.len() == 1, "{own:?}");
    Ok(())
}

/// The kernel of a node that waits loses connections, and drops the events
/// that would tell: they are put back, and belong to the node as soon as it
/// takes over, which has nothing to write then.
#[test]
fn connections_that_are_lost_without_a_word_are_put_back() -> Result<()> {
    const FLOWS: u32 = 4000;
    lab::require!(Need::Root);
    let w = World::new(
        "apply = \"immediate\"\n[kernel]\nevent-buffer = 8192\nmax-event-buffer = 8192",
    )?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    inject_in(&w.pair.fw_1, 0, FLOWS, Act::Create)?;
    inject_in(&w.pair.fw_1, 0, FLOWS, Act::Mark(7))?;
    w.kernel_has(Node::Two, FLOWS as usize, 7)?;
    inject_in(&w.pair.fw_2, 0, FLOWS, Act::Delete)?;
    w.kernel_has(Node::Two, FLOWS as usize, 7)?;
    ensure!(w.nodes.number(Node::Two, "/counters/overruns")? > 0);
    w.nodes.wait_synced()?;

    let written = w.nodes.number(Node::Two, "/counters/written_entries")?;
    w.role(Node::Two, "primary")?;
    ensure!(w.nodes.number(Node::Two, "/internal/flows")? == u64::from(FLOWS));
    ensure!(w.nodes.number(Node::Two, "/counters/written_entries")? == written);
    w.kernel_has(Node::Two, FLOWS as usize, 7)
}

/// An expectation that is applied at once serves a transfer through the
/// other node, which needs no commit.
#[test]
fn expectations_are_applied_at_once() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    load_rules(&pair, Nat::None)?;
    pair.activate(Node::One)?;
    let server = Server::start(Program::Vsftpd, &pair.server)?;
    let nodes = Nodes::with("apply = \"immediate\"")?;
    let _daemons = nodes.start_both(&pair)?;
    let mut ftp = Ftp::login(&pair.client, server_address(Family::V4), Family::V4)?;
    let waiting = ftp.passive()?;
    until("the expectation in fw-2's kernel", SOON, || {
        let table = pair.fw_2.proc_net("nf_conntrack_expect").ok()?;
        let port = format!("dport={}", waiting.port());
        table.contains(&port).then_some(())
    })
    .with_context(|| format!("{:?}", nodes.status(Node::Two)))?;
    pair.unplug(Node::One)?;
    pair.activate(Node::Two)?;
    let mut data = pair
        .client
        .enter(|| std::net::TcpStream::connect_timeout(&waiting, SOON))?;
    ftp.ask(&format!("RETR {}", lab::ftp::server::FILE), "150")?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut data, &mut bytes)?;
    is_file(&bytes, &server.tree.file())?;
    ftp.reply("226")?;
    is_file(&ftp.fetch(Data::Active)?, &server.tree.file())
}

/// A connection that has been idle all the time goes on too, if the role was
/// given: `primary` makes everything its node's own.
#[test]
fn a_primary_keeps_idle_connections_when_the_other_comes_back_empty() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    load_rules(&pair, Nat::Snat)?;
    pair.activate(Node::One)?;
    let nodes = Nodes::with("apply = \"immediate\"\npeer-timeout = \"1s\"")?;
    let [mut one, _two] = nodes.start_both(&pair)?;
    let mut talk = Talk::through(&pair, Family::V4)?;
    nodes.wait_mirrored(Node::One)?;
    one.signal(Signal::SIGKILL)?;
    one.wait()?;
    pair.activate(Node::Two)?;
    let taken = nodes.ctsync(Node::Two, &["primary"])?;
    ensure!(taken.ok(), "{}", taken.report());
    pair.fw_1.run("conntrack", &["-F"])?;
    let _one = nodes.start(&pair, Node::One)?;
    nodes.wait_mirrored(Node::Two)?;
    talk.goes_on()
}
