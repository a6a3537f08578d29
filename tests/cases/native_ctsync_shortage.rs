//! A kernel that has no memory for system calls: strace(1) lets those of a
//! daemon fail, without carrying them out.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::command;
use lab::inject::{Act, inject_in, injected};
use lab::nodes::Nodes;
use lab::ours::program;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::{Need, is_full};
use lab::wait::{patience, until};
use serde_json::Value;

const SENDS: &str = "sendto,sendmsg,sendmmsg";
const RECEIVES: &str = "recvfrom,recvmsg,recvmmsg";

/// Lets calls fail: `when` counts the calls of a thread, each kind by itself.
fn failing(calls: &str, errno: &str, when: &str) -> [String; 2] {
    [
        "-e".to_owned(),
        format!("inject={calls}:error={errno}:when={when}"),
    ]
}

/// Daemons whose calls fail from their start on, every so often, in every
/// place: `-D` makes strace the grandchild. A dump takes some twenty calls.
fn start_both_failing(pair: &Pair, nodes: &mut Nodes, errno: &str) -> Result<[Peer; 2]> {
    let sends = failing(SENDS, errno, "10+4");
    let receives = failing(RECEIVES, errno, "30+31");
    let mut line = vec!["strace", "-D", "-f", "-qq", "-o", "/dev/null"];
    line.extend(sends.iter().chain(&receives).map(String::as_str));
    nodes.start_by(&line);
    let one = nodes.start(pair, Node::One)?;
    let two = nodes.start(pair, Node::Two)?;
    Ok([one, two])
}

/// What fails takes longer.
fn long() -> Duration {
    patience() * 6
}

fn mirrored(nodes: &Nodes, node: Node) -> Result<()> {
    until("equal caches", long(), || nodes.wait_mirrored(node).ok())
}

/// The control socket's calls fail too: what is asked is asked again.
fn status(nodes: &Nodes, node: Node) -> Result<Value> {
    until("a status", long(), || nodes.status(node).ok())
}

fn becomes(nodes: &Nodes, node: Node, role: &str) -> Result<()> {
    until(&format!("{node:?} to be {role}"), long(), || {
        let done = nodes.ctsync(node, &[role]).ok()?;
        let is = nodes.status(node).ok()?;
        (done.ok() && is.get("role")? == role).then_some(())
    })
}

fn survives(extra: &str, errno: &str) -> Result<()> {
    let immediate = extra.contains("immediate");
    let pair = Pair::new()?;
    let mut nodes = Nodes::with(&format!("{extra}purge-after = \"1s\"\n"))?;
    let mut daemons = start_both_failing(&pair, &mut nodes, errno)?;
    becomes(&nodes, Node::One, "primary")?;
    becomes(&nodes, Node::Two, "backup")?;
    let rounds: u32 = if is_full() { 100 } else { 10 };
    for round in 0..rounds {
        let from = round * 200;
        inject_in(&pair.fw_1, from, from + 200, Act::Create)?;
        inject_in(&pair.fw_1, from, from + 100, Act::Mark(round + 1))?;
        inject_in(&pair.fw_1, from, from + 50, Act::Delete)?;
        for node in Node::BOTH {
            nodes.ctsync(node, &["resync"])?.success()?;
        }
    }
    let all = usize::try_from(rounds * 150)?;
    let in_kernel = |node: Node, expected: usize| {
        let mut count = 0;
        until("the right connections in the kernel", long(), || {
            count = injected(pair.fw(node), 0).ok()?.0;
            (count == expected).then_some(())
        })
        .with_context(|| {
            let seen = Node::BOTH.map(|node| nodes.status(node));
            format!("{count} of {expected} at {node:?}: {seen:?}")
        })
    };
    mirrored(&nodes, Node::One)?;
    in_kernel(Node::Two, if immediate { all } else { 0 })?;

    // The role moves there and back; what was in the way of it is stale.
    for node in [Node::Two, Node::One] {
        becomes(&nodes, node, "primary")?;
        in_kernel(node, all)?;
        mirrored(&nodes, node)?;
        in_kernel(node.peer(), if immediate { all } else { 0 })?;
    }
    for (node, daemon) in Node::BOTH.into_iter().zip(&mut daemons) {
        ensure!(daemon.ended().is_none(), "{node:?} ended\n{}", daemon.log());
        let status = status(&nodes, node)?;
        let counted = |name: &str| {
            let count = status.pointer(&format!("/counters/{name}"));
            count.and_then(Value::as_u64).unwrap_or(0)
        };
        let counts = ["kernel_shortages", "send_failures"].map(counted);
        eprintln!("{node:?}: kernel_shortages, send_failures: {counts:?}");
        ensure!(counts.iter().all(|count| *count > 0), "{counts:?}");
        ensure!(daemon.log().contains("tried again"), "{}", daemon.log());
    }
    Ok(())
}

#[test]
fn daemons_without_memory_in_the_kernel_go_on_and_agree() -> Result<()> {
    lab::require!(Need::Root, Need::Program("strace"));
    survives("", "ENOMEM")
}

#[test]
fn daemons_without_memory_in_the_kernel_agree_where_states_are_applied_at_once() -> Result<()> {
    lab::require!(Need::Root, Need::Program("strace"));
    survives("apply = \"immediate\"\n", "ENOBUFS")
}

/// The first twelve sends of a commit's thread fail. One batch is given up
/// after nine; two take turns and outlast that.
#[test]
fn a_commit_without_memory_in_the_kernel_says_so_and_can_be_repeated() -> Result<()> {
    lab::require!(Need::Root, Need::Program("strace"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let [_one, mut two] = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, 100, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;

    let pid = two.pid().to_string();
    let sends = failing(SENDS, "ENOMEM", "1..12");
    let mut line = vec!["-f", "-o", "/dev/null", "-p", &pid];
    line.extend(sends.iter().map(String::as_str));
    let mut strace = Peer::start(&pair.fw_2, "strace", command("strace", &line))?;
    strace.wait_for_line("attached")?;
    let failed = nodes.ctsync(Node::Two, &["commit"])?;
    ensure!(failed.status.code() == Some(1), "{}", failed.report());
    ensure!(failed.report().contains("ENOMEM"), "{}", failed.report());
    ensure!(injected(&pair.fw_2, 0)?.0 == 0, "nothing was sent");

    inject_in(&pair.fw_1, 100, 400, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let done = nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(done.ok(), "{}", done.report());
    ensure!(injected(&pair.fw_2, 0)?.0 == 400, "{}", done.report());
    ensure!(two.ended().is_none(), "{}", two.log());
    Ok(())
}

/// The daemon's socket for commits: of those to netfilter, it opens it first.
fn commit_socket(pid: &str) -> Result<String> {
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/netlink"))?;
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let inode = fields.last().filter(|_| fields.get(1) == Some(&"12"))?;
        Some(format!("socket:[{inode}]"))
    };
    let netfilter: Vec<String> = sockets.lines().filter_map(inode).collect();
    let fds = (0..1024).filter_map(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok());
    let mut names = fds.map(|to| to.to_string_lossy().into_owned());
    names
        .find(|name| netfilter.contains(name))
        .context("no socket to netfilter")
}

/// Its peer has dropped connections, and the kernel has no memory to delete
/// them: the daemon goes on, reads its tables, takes them for nobody's, and
/// deletes them in the end.
#[test]
fn what_can_not_be_deleted_for_lack_of_memory_is_deleted_later() -> Result<()> {
    lab::require!(Need::Root, Need::Program("strace"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("apply = \"immediate\"\n")?;
    let [_one, mut two] = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, 400, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let count = || injected(&pair.fw_2, 0).map_or(0, |found| found.0);
    until("all in the kernel", long(), || {
        (count() == 400).then_some(())
    })?;

    let pid = two.pid().to_string();
    let socket = commit_socket(&pid)?;
    let sends = failing(SENDS, "ENOBUFS", "1+");
    let mut line = vec!["-f", "-o", "/dev/null", "-P", &socket, "-p", &pid];
    line.extend(sends.iter().map(String::as_str));
    let mut strace = Peer::start(&pair.fw_2, "strace", command("strace", &line))?;
    strace.wait_for_line("attached")?;
    inject_in(&pair.fw_1, 0, 300, Act::Delete)?;
    nodes.wait_mirrored(Node::One)?;
    let number = |name: &str| nodes.number(Node::Two, name).unwrap_or(0);
    let before = number("/counters/reconciliations");
    nodes.ctsync(Node::Two, &["resync"])?.success()?;
    until("a look at the tables", long(), || {
        (number("/counters/reconciliations") > before).then_some(())
    })?;
    ensure!(number("/counters/kernel_shortages") > 0, "nothing failed");
    ensure!(count() == 400, "{} of 400 are still there", count());
    ensure!(number("/internal/flows") == 0, "another's are its own");
    drop(strace);
    until("what is left in the kernel", long(), || {
        (count() == 100).then_some(())
    })?;
    ensure!(number("/internal/flows") == 0, "another's are its own");
    ensure!(two.ended().is_none(), "{}", two.log());
    Ok(())
}

/// The client fails, not the daemon: it says so, and what it asked for is done.
#[test]
fn a_client_without_memory_in_the_kernel_says_so() -> Result<()> {
    lab::require!(Need::Root, Need::Program("strace"));
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let _daemons = nodes.start_both(&pair)?;
    inject_in(&pair.fw_1, 0, 500, Act::Create)?;
    nodes.wait_mirrored(Node::One)?;
    let control = nodes.control(Node::Two);
    let client = program("ctsync", &[])?;
    let client = client.get_program().to_string_lossy().into_owned();
    for calls in [SENDS, RECEIVES] {
        let options = failing(calls, "ENOMEM", "1");
        let mut line = vec!["-qq", "-o", "/dev/null"];
        line.extend(options.iter().map(String::as_str));
        line.extend([&client, "--control"]);
        line.push(control.to_str().context("path")?);
        line.push("commit");
        let said = pair.fw_2.finish(command("strace", &line))?;
        ensure!(said.status.code() == Some(2), "{}", said.report());
        ensure!(said.report().contains("ENOMEM"), "{}", said.report());
    }
    let done = nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(done.ok(), "{}", done.report());
    ensure!(injected(&pair.fw_2, 0)?.0 == 500, "{}", done.report());
    Ok(())
}
