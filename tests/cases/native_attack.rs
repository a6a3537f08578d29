//! Attacks on ctsync: on its link, its control socket, its configuration,
//! and from inside, by what somebody might make it do.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::command::{command, run};
use lab::inside;
use lab::nodes::{Nodes, PORT};
use lab::ours::program;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::Need;
use lab::tap::Tap;
use lab::topology::Family;
use lab::wait::{patience, until};

/// Who that is nobody.
const NOBODY: u32 = 65534;

fn end(node: Node) -> SocketAddr {
    SocketAddr::new(node.sync_address(Family::V4), PORT)
}

struct World {
    one: Peer,
    two: Peer,
    nodes: Nodes,
    tap: Tap,
    pair: Pair,
}

impl World {
    fn new() -> Result<Self> {
        let pair = Pair::new()?;
        let any = SocketAddr::new(end(Node::One).ip(), 0);
        let tap = Tap::start(&pair.fw_1, [any, any], Node::BOTH.map(end))?;
        let (for_one, for_two) = tap.instead_of_peer()?;
        let via = move |node: Node| match node {
            Node::One => (end(node), for_one),
            Node::Two => (end(node), for_two),
        };
        let nodes = Nodes::new(&via, "log = \"debug\"\n")?;
        let one = nodes.start(&pair, Node::One)?;
        let two = nodes.start(&pair, Node::Two)?;
        nodes.wait_synced()?;
        Ok(Self {
            one,
            two,
            nodes,
            tap,
            pair,
        })
    }

    fn connections(&self, from: u16, to: u16) -> Result<()> {
        for port in from..to {
            let port = port.to_string();
            self.pair.fw_1.run(
                "conntrack",
                &[
                    "-I",
                    "-p",
                    "tcp",
                    "-s",
                    "10.9.0.1",
                    "-d",
                    "10.9.0.2",
                    "--sport",
                    &port,
                    "--dport",
                    "21",
                    "--state",
                    "ESTABLISHED",
                    "-t",
                    "600",
                ],
            )?;
        }
        Ok(())
    }

    /// Both know that they are in sync, and they are.
    fn unharmed(&self) -> Result<()> {
        self.nodes.wait_synced()?;
        self.nodes.wait_mirrored(Node::One)?;
        self.nodes.wait_mirrored(Node::Two)
    }

    fn refusals(&self, node: Node, name: &str) -> Result<u64> {
        self.nodes.number(node, &format!("/counters/{name}"))
    }
}

/// Everything that was ever said is said again: to whom it was meant for, to
/// who said it, changed in a bit, cut short.
#[test]
fn replayed_reflected_and_forged_datagrams_change_nothing() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrack"));
    let w = World::new()?;
    w.connections(1000, 1030)?;
    w.unharmed()?;
    // A handshake whose answer somebody has, too.
    let seen = w.tap.seen();
    ensure!(seen.len() > 20, "{} datagrams", seen.len());
    let address = [10, 9, 0, 1];
    let mut all = seen.iter().flat_map(|(_, bytes)| bytes.windows(4));
    ensure!(!all.any(|four| four == address), "an address can be read");
    let before = w.nodes.entries(Node::Two, &["external"])?;
    for (n, (to, bytes)) in seen.iter().enumerate() {
        let mut flipped = bytes.clone();
        let at = (n * 7) % flipped.len();
        flipped[at] ^= 1 << (n % 8);
        w.tap.send(*to, bytes);
        w.tap.send(1 - *to, bytes);
        w.tap.send(*to, &flipped);
        w.tap.send(*to, &bytes[..at]);
    }
    for node in Node::BOTH {
        for name in [
            "refused_replayed",
            "refused_forged",
            "refused_unknown_session",
        ] {
            until(name, patience(), || {
                (w.refusals(node, name).ok()? > 0).then_some(())
            })?;
        }
        ensure!(w.nodes.number(node, "/peers/0/refused")? == 0);
    }
    w.unharmed()?;
    ensure!(w.nodes.entries(Node::Two, &["external"])? == before);
    w.connections(2000, 2005)?;
    w.unharmed()?;
    // The network can't fill the log.
    for peer in [&w.one, &w.two] {
        let lines = || peer.log().matches("refused a datagram").count();
        // Refusals are looked at once a second.
        until("a refusal in the log", patience(), || {
            (lines() > 0).then_some(())
        })?;
        ensure!(lines() <= 6, "{} lines", lines());
    }
    Ok(())
}

/// Somebody on the link without keys: nothing is answered, whatever he sends,
/// and however much of it.
#[test]
fn a_stranger_gets_no_answer_and_stops_nothing() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrack"));
    let w = World::new()?;
    let stranger = w
        .pair
        .fw_1
        .enter(|| UdpSocket::bind((end(Node::One).ip(), 0)))?;
    stranger.set_read_timeout(Some(std::time::Duration::from_millis(200)))?;
    let (seen, ends) = (w.tap.seen(), Node::BOTH.map(end));
    let mut sent = 0_u64;
    for round in 0..200_u64 {
        for (to, bytes) in &seen {
            // A session or key of his own, the rest as seen.
            let mut own = bytes.clone();
            if let Some(tail) = own.get_mut(5..) {
                for (b, n) in tail.iter_mut().zip(0_u64..) {
                    *b ^= u8::try_from((round + n) % 251)?;
                }
            }
            let _ = stranger.send_to(&own, ends[*to]);
            sent += 1;
        }
    }
    ensure!(sent > 2000, "{sent} datagrams");
    w.connections(1000, 1010)?;
    w.unharmed()?;
    let mut buf = [0; 2048];
    let answer = stranger.recv_from(&mut buf);
    ensure!(answer.is_err(), "answered with {answer:?}");
    for node in Node::BOTH {
        ensure!(w.refusals(node, "refused_garbage")? > 0);
        let status = w.nodes.ctsync(node, &["check"])?;
        ensure!(status.ok(), "{}", status.report());
    }
    Ok(())
}

/// The private key, in any form, is in no log and in no answer, even at the
/// level debug and after errors; nor could it get into a core file.
#[test]
fn keys_stay_where_they_are() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new()?;
    let mut said = String::new();
    for node in Node::BOTH {
        for args in [&["status", "--json"][..], &["doctor"], &["check"]] {
            said += &w.nodes.ctsync(node, args)?.report();
        }
    }
    for peer in [&w.one, &w.two] {
        said += &peer.log();
    }
    ensure!(said.len() > 500, "{said}");
    for node in Node::BOTH {
        let key = std::fs::read_to_string(w.nodes.file(node, "key"))?;
        ensure!(!said.contains(key.trim()), "a key is printed");
        ensure!(!said.contains(&key[..12]), "a part of a key is printed");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", w.one.pid()))?;
    let core = limits.lines().find(|l| l.starts_with("Max core file size"));
    let core: Vec<_> = core.context("no limit")?.split_whitespace().collect();
    ensure!(core.ends_with(&["0", "0", "bytes"]), "{core:?}");
    Ok(())
}

/// Only root and the daemon's own user are served, whatever the modes of the
/// socket and its directories; and others can't keep them from being served.
#[test]
fn an_unprivileged_user_can_neither_control_nor_block() -> Result<()> {
    lab::require!(Need::Root, Need::Program("python3"));
    let w = World::new()?;
    let socket = w.nodes.control(Node::One);
    let path = socket.to_str().context("path")?;
    let (_copy, ctsync) = lab::programs::for_everybody("ctsync")?;
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&ctsync);
        command.args(["--control", path]).args(args);
        command.uid(NOBODY).gid(NOBODY);
        run(command, patience())
    };
    // Everybody may reach and open it now.
    let directory = socket.parent().context("directory")?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777))?;
    for args in [
        &["status"][..],
        &["primary"],
        &["flush", "internal"],
        &["fault"],
    ] {
        let done = as_nobody(args)?;
        ensure!(!done.ok(), "{}", done.report());
    }
    ensure!(
        w.one.log().contains("control client refused"),
        "{}",
        w.one.log()
    );
    let role = w.nodes.status(Node::One)?;
    ensure!(
        role.get("role").is_some_and(|r| r == "standalone"),
        "{role}"
    );

    let crowd = "\
import socket, sys, time
held = []
for n in range(300):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(1)
    try:
        s.connect(sys.argv[1])
        s.send(b'{' * 70000)
    except OSError:
        pass
    held.append(s)
print('all', flush=True)
time.sleep(600)
";
    let mut python = command("python3", &["-c", crowd, path]);
    python.uid(NOBODY).gid(NOBODY);
    let mut crowd = Peer::start(&w.pair.fw_1, "crowd", python)?;
    crowd.wait_for_line("all")?;
    let status = w.nodes.ctsync(Node::One, &["status"])?;
    ensure!(status.ok(), "{}", status.report());
    w.unharmed()
}

/// Requests that are no requests, too long, too deep, too many.
#[test]
fn hostile_requests_close_their_connection_and_no_other() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new()?;
    let path = w.nodes.control(Node::One);
    let deep = "[".repeat(60_000) + "\n";
    let long = "x".repeat(1 << 20);
    let many = "{\"op\":\"status\"}\n".repeat(20_000);
    let odd = "{\"op\":\"show\",\"from\":[18446744073709551615,4294967295]}\n";
    let requests: [&[u8]; 7] = [
        deep.as_bytes(),
        long.as_bytes(),
        many.as_bytes(),
        odd.as_bytes(),
        b"{\"op\":\"show\",\"select\":{\"src\":\"not an address\"}}\n",
        b"\0\xff\xfe\n",
        b"{\"op\":\"no such\"}\n",
    ];
    for request in requests {
        let mut client = UnixStream::connect(&path)?;
        client.set_write_timeout(Some(patience() / 10))?;
        // It may be closed while we write.
        let _ = client.write_all(request);
        let status = w.nodes.ctsync(Node::One, &["status"])?;
        ensure!(status.ok(), "{}", status.report());
    }
    w.unharmed()
}

/// A configuration or key that is no plain file of sane size, or not ours, is
/// refused with its name, at once.
#[test]
fn hostile_files_are_refused_by_name() -> Result<()> {
    lab::require!(Need::Root);
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR)?;
    symlink("/dev/zero", at("zero"))?;
    symlink(at("loop"), at("loop"))?;
    std::fs::File::create(at("huge"))?.set_len(1 << 40)?;
    std::fs::write(at("deep"), "a = ".to_owned() + &"[".repeat(100_000))?;
    std::fs::write(
        at("tables"),
        "[".to_owned() + &"a.".repeat(100_000) + "a]\n",
    )?;
    std::fs::write(at("binary"), [0, 255, 254])?;
    std::fs::create_dir(at("directory"))?;
    let names = [
        "pipe",
        "zero",
        "loop",
        "huge",
        "deep",
        "tables",
        "binary",
        "directory",
    ];
    let mut wrong = Vec::new();
    for name in names {
        let path = at(name);
        let file = path.to_str().context("path")?;
        let runs = [
            ("ctsync", vec!["check-config", "--config", file]),
            ("nft-ftp-helper", vec!["register", "--config", file]),
            ("nft-ftp-ruleset", vec!["generate", "--config", file]),
        ];
        for (name, args) in runs {
            // A pipe is a fine policy for a program that ends.
            if name == "nft-ftp-ruleset" && file.ends_with("pipe") {
                continue;
            }
            let done = run(program(name, &args)?, patience());
            match done {
                Ok(done) if done.status.code() == Some(2) && done.stderr.contains(file) => {}
                Ok(done) => wrong.push(format!("{name}: {}", cut(&done.report()))),
                Err(error) => wrong.push(format!("{name}: {}", cut(&format!("{error:#}")))),
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn cut(text: &str) -> String {
    text.chars().take(400).collect()
}

#[test]
fn a_key_that_others_can_read_or_own_keeps_the_daemon_from_starting() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let nodes = Nodes::with("")?;
    let key = nodes.file(Node::One, "key");
    let config = nodes.file(Node::One, "toml");
    let refused = |expected: &str| -> Result<()> {
        let args = ["run", "--config", config.to_str().context("path")?];
        let done = pair.fw_1.finish(program("ctsync", &args)?)?;
        ensure!(done.status.code() == Some(2), "{}", done.report());
        ensure!(done.report().contains(expected), "{}", done.report());
        Ok(())
    };
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644))?;
    refused("lets others read it")?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(&key, Some(NOBODY), None)?;
    refused("belongs to user 65534")?;
    std::os::unix::fs::chown(&key, Some(0), None)?;
    let moved = key.with_extension("moved");
    std::fs::rename(&key, &moved)?;
    symlink(&moved, &key)?;
    let _one = nodes.start(&pair, Node::One)?;
    Ok(())
}

/// From inside, every thread of the daemon tries to get out.
#[test]
fn a_daemon_can_not_leave_its_sandbox() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new()?;
    let outside = tempfile::tempdir()?;
    let file = outside.path().join("file");
    std::fs::write(&file, "precious")?;
    for tid in inside::threads(w.one.pid())? {
        inside::check_confined(tid, &file)?;
    }
    ensure!(std::fs::read_to_string(&file)? == "precious");
    w.unharmed()?;
    looks_can_find_something(outside.path())
}

/// The same attempts succeed in a process without a sandbox, or they would
/// prove nothing.
fn looks_can_find_something(directory: &Path) -> Result<()> {
    let file = directory.join("other");
    std::fs::write(&file, "text")?;
    let sleep = Guard(std::process::Command::new("sleep").arg("600").spawn()?);
    let pid = sleep.0.id();
    until("the process to sleep", patience(), || {
        let wchan = std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?;
        wchan
            .starts_with(|c: char| c.is_ascii_digit())
            .then_some(())
    })?;
    let possible = inside::breakouts(pid, &file)?;
    for expected in [
        "read a file",
        "unlink a file",
        "packet socket",
        "raw socket",
    ] {
        ensure!(
            possible.iter().any(|p| p.starts_with(expected)),
            "{possible:?}"
        );
    }
    ensure!(!file.exists(), "it was not the process that did it");
    Ok(())
}

/// Ends a child also when a check fails.
struct Guard(std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Datagrams of another wire version are refused and counted, and the nodes
/// that speak ours go on.
#[test]
fn another_wire_version_is_refused_clearly() -> Result<()> {
    lab::require!(Need::Root);
    let mut w = World::new()?;
    for (to, bytes) in w.tap.seen() {
        let mut later = bytes;
        if let Some(first) = later.first_mut() {
            *first |= 0xf0;
        }
        w.tap.send(to, &later);
    }
    for node in Node::BOTH {
        until("the refusal", patience(), || {
            (w.refusals(node, "refused_version").ok()? > 0).then_some(())
        })?;
    }
    w.one.wait_for_line("another version")?;
    w.unharmed()
}
