//! conntrackd's link under the attacks on ours (`native_attack`): the measure
//! for it, and the column "conntrackd" of docs/security.md.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::{command, run};
use lab::inject::{Act, inject_in};
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::Need;
use lab::tap::Tap;
use lab::wait::{patience, until, until_true};
use tempfile::TempDir;

const PORT: u16 = 3780;
/// Flags of a message.
const RESYNC: u8 = 0x02;
const HELLO: u8 = 0x20;
/// First byte of a message: version and type.
const NEW: u8 = 0x10;
const UPDATE: u8 = 0x11;
const DELETE: u8 = 0x12;
const CONTROL: u8 = 0x1a;

/// Where a node's daemon listens; the stranger's and the tap's addresses are
/// the server's.
fn end(node: Node) -> SocketAddr {
    SocketAddr::from(([10, 0, 2, node.host()], PORT))
}

/// What a node takes for the other one.
fn instead(node: Node) -> SocketAddr {
    SocketAddr::from(([10, 0, 2, node.host() + 10], PORT))
}

struct World {
    pair: Pair,
    tap: Tap,
    daemons: [Peer; 2],
    dir: TempDir,
}

impl World {
    fn new() -> Result<Self> {
        let pair = Pair::new()?;
        for node in Node::BOTH {
            let line = format!("addr add {}/24 dev eth0\n", instead(node).ip());
            pair.server.ip_batch(&line)?;
        }
        let tap = Tap::start(&pair.server, Node::BOTH.map(instead), Node::BOTH.map(end))?;
        let dir = tempfile::tempdir()?;
        let start = |node: Node| -> Result<Peer> {
            let config = file(&dir, node, "conf");
            std::fs::write(&config, configuration(&dir, node))?;
            let path = config.to_str().context("path")?;
            let mut peer = Peer::start(
                pair.fw(node),
                "conntrackd",
                command("conntrackd", &["-C", path]),
            )?;
            // Its socket is there before it hears of connections.
            let log = file(&dir, node, "log");
            let started = || std::fs::read_to_string(&log).unwrap_or_default();
            peer.wait_until("it to start", || {
                started().contains("starting in console mode")
            })?;
            Ok(peer)
        };
        let daemons = [start(Node::One)?, start(Node::Two)?];
        let world = Self {
            pair,
            tap,
            daemons,
            dir,
        };
        // Once both have greeted, numbers count.
        inject_in(&world.pair.fw_1, 0, 1, Act::Create)?;
        world.wait_external(1)?;
        until_true("a message without greeting", || {
            let seen = world.tap.seen();
            let last = seen.iter().rev().find(|(to, _)| *to == 1);
            last.is_some_and(|(_, bytes)| bytes.get(1).is_some_and(|f| f & HELLO == 0))
        })?;
        inject_in(&world.pair.fw_1, 0, 1, Act::Delete)?;
        world.wait_external(0)?;
        inject_in(&world.pair.fw_1, 0, 1, Act::Create)?;
        world.wait_external(1)?;
        Ok(world)
    }

    fn ask(&self, node: Node, args: &[&str]) -> Result<String> {
        let config = file(&self.dir, node, "conf");
        let mut client = command("conntrackd", &["-C"]);
        client.arg(config).args(args);
        run(client, patience())?.success()
    }

    /// What a node has of the other one.
    fn external(&self, node: Node) -> Result<Vec<String>> {
        let text = self.ask(node, &["-e", "ct"])?;
        Ok(text
            .lines()
            .filter(|l| l.contains("src="))
            .map(str::to_owned)
            .collect())
    }

    /// Messages that the second node has dropped for their numbers.
    fn old_messages(&self) -> Result<u64> {
        let text = self.ask(Node::Two, &["-s", "network"])?;
        let line = text.lines().find(|l| l.contains("Packets before:"));
        let count = line.and_then(|l| l.split_whitespace().last());
        Ok(count.context(text.clone())?.parse()?)
    }

    fn wait_external(&self, count: usize) -> Result<()> {
        let mut last = Vec::new();
        let there = until("conntrackd's mirror", patience(), || {
            last = self.external(Node::Two).ok()?;
            (last.len() == count).then_some(())
        });
        there.with_context(|| format!("{count} wanted: {last:?}"))
    }

    /// It still does what it is for.
    fn still_mirrors(&self, from: u32) -> Result<bool> {
        let before = self.external(Node::Two)?.len();
        inject_in(&self.pair.fw_1, from, from + 5, Act::Create)?;
        Ok(until("the mirror", patience(), || {
            (self.external(Node::Two).ok()?.len() >= before + 5).then_some(())
        })
        .is_ok())
    }

    fn stranger(&self) -> Result<UdpSocket> {
        let bind = || UdpSocket::bind(("10.0.2.2", 0));
        Ok(self.pair.server.enter(bind)?)
    }

    /// The message with which the first node told of connection `n`.
    fn told(&self, n: u8) -> Result<Vec<u8>> {
        let address = [10, 200, 0, 0];
        let port = (3000 + u16::from(n)).to_be_bytes();
        let is_it = |bytes: &&Vec<u8>| {
            let first = bytes.first().copied().unwrap_or(0);
            [NEW, UPDATE].contains(&first)
                && bytes.windows(4).any(|w| w == address)
                && bytes.windows(2).any(|w| w == port)
        };
        let seen = self.tap.seen();
        let to_two = seen.iter().filter(|(to, _)| *to == 1).map(|(_, b)| b);
        to_two.rev().find(is_it).cloned().context("no such message")
    }
}

fn file(dir: &TempDir, node: Node, what: &str) -> PathBuf {
    dir.path().join(format!("{}.{what}", node.host()))
}

fn configuration(dir: &TempDir, node: Node) -> String {
    let path = |what: &str| file(dir, node, what).display().to_string();
    format!(
        "General {{
    HashSize 32768
    HashLimit 131072
    LogFile {}
    LockFile {}
    UNIX {{
        Path {}
    }}
    NetlinkBufferSize 2097152
    NetlinkBufferSizeMaxGrowth 8388608
}}
Sync {{
    Mode FTFW {{
    }}
    UDP {{
        IPv4_address {}
        IPv4_Destination_Address {}
        Port {PORT}
        Interface wan
        Checksum on
    }}
}}
",
        path("log"),
        path("lock"),
        path("sock"),
        end(node).ip(),
        instead(node).ip(),
    )
}

/// Messages of one connection as a stranger sends them.
fn with(message: &[u8], kind: u8, flags: u8) -> Vec<u8> {
    let mut out = message.to_vec();
    if let [first, second, ..] = out.as_mut_slice() {
        (*first, *second) = (kind, flags);
    }
    out
}

/// Another source address of the connection.
fn moved(message: &[u8], to: [u8; 4]) -> Vec<u8> {
    let mut out = message.to_vec();
    let at = out.windows(4).position(|w| w == [10, 200, 0, 0]);
    if let Some(place) = at.and_then(|at| out.get_mut(at..at + 4)) {
        place.copy_from_slice(&to);
    }
    out
}

/// What it takes from anybody. Today's behaviour, also where it is none to be
/// wished for.
#[test]
fn conntrackd_believes_whoever_reaches_its_port() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrackd"));
    let w = World::new()?;
    let (stranger, two) = (w.stranger()?, end(Node::Two));
    let real = w.told(0)?;
    // [`World::told`] has found it by its address: what is said can be read.
    // An entry of nobody's, and into the kernel with it.
    let forged = moved(&with(&real, NEW, HELLO), [10, 250, 0, 1]);
    stranger.send_to(&forged, two)?;
    w.wait_external(2)?;
    w.ask(Node::Two, &["-c"])?;
    until_true("a connection that never was", || {
        let table = w.pair.fw_2.proc_net("nf_conntrack").unwrap_or_default();
        table.contains("src=10.250.0.1")
    })?;
    // A real entry goes at a stranger's word.
    stranger.send_to(&with(&real, DELETE, HELLO), two)?;
    w.wait_external(1)?;
    // What ended comes back by what was said of it: a ghost.
    let ends = || {
        let seen = w.tap.seen();
        let first = |bytes: &[u8]| bytes.first() == Some(&DELETE);
        seen.iter().filter(|(to, b)| *to == 1 && first(b)).count()
    };
    let before = ends();
    inject_in(&w.pair.fw_1, 0, 1, Act::Delete)?;
    until_true("the end of it", || ends() > before)?;
    w.tap.send(1, &real);
    until_true("an old message to be counted", || {
        w.old_messages().is_ok_and(|n| n > 0)
    })?;
    ensure!(w.external(Node::Two)?.len() == 1, "repeated as it was");
    w.tap.send(1, &with(&real, real[0], HELLO));
    w.wait_external(2)?;
    // Its own words come back to it.
    ensure!(w.external(Node::One)?.is_empty());
    w.tap.send(0, &with(&real, real[0], HELLO));
    until_true("its own entry as its peer's", || {
        w.external(Node::One).is_ok_and(|all| all.len() == 1)
    })?;
    Ok(())
}

/// One message with a number far ahead, and what the peer says afterwards is
/// taken for old.
#[test]
fn conntrackd_stops_mirroring_at_a_strangers_word() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrackd"));
    let w = World::new()?;
    ensure!(w.still_mirrors(100)?, "it never did");
    let mut ahead = with(&w.told(0)?, UPDATE, HELLO);
    let number = ahead.get_mut(4..8).context("a message")?;
    if let [first, ..] = number {
        *first = first.wrapping_add(0x40);
    }
    w.stranger()?.send_to(&ahead, end(Node::Two))?;
    ensure!(!w.still_mirrors(200)?, "it does");
    Ok(())
}

/// A word of 16 bytes makes it send its table, as often as one likes.
#[test]
fn conntrackd_sends_its_table_for_16_bytes_of_anybody() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrackd"));
    let w = World::new()?;
    inject_in(&w.pair.fw_1, 1, 1000, Act::Create)?;
    w.wait_external(1000)?;
    let bytes = || -> usize {
        let seen = w.tap.seen();
        seen.iter()
            .filter(|(to, _)| *to == 1)
            .map(|(_, b)| b.len())
            .sum()
    };
    let (stranger, before) = (w.stranger()?, bytes());
    let mut resync = vec![CONTROL, RESYNC | HELLO, 0, 16];
    resync.extend([0; 12]);
    for n in 1..=10 {
        stranger.send_to(&resync, end(Node::One))?;
        until("the table, again", patience(), || {
            (bytes() >= before + n * 1000 * 60).then_some(())
        })?;
    }
    println!(
        "conntrackd: 160 bytes of a stranger cost {} bytes",
        bytes() - before
    );
    Ok(())
}

/// Garbage and datagrams that are cut short, long, or changed in a bit.
#[test]
fn conntrackd_survives_garbage() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrackd"));
    let mut w = World::new()?;
    let (stranger, two) = (w.stranger()?, end(Node::Two));
    let real = w.told(0)?;
    let mut random = 1_u64;
    let mut next = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        u32::try_from(random >> 33).unwrap_or(0)
    };
    for n in 0..20_000_u32 {
        let mut bytes = match n % 3 {
            0 => with(&real, real[0], HELLO),
            1 => (0..next() % 300).map(|_| next().to_le_bytes()[0]).collect(),
            _ => real.repeat(usize::try_from(next() % 400)? + 1),
        };
        let at = usize::try_from(next())? % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= next().to_le_bytes()[0];
        }
        if n % 4 == 0 {
            bytes.truncate(at);
        }
        bytes.truncate(65_000);
        let _ = stranger.send_to(&bytes, two);
        if n % 200 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let [_, daemon] = &mut w.daemons;
    let ended = daemon.ended();
    ensure!(ended.is_none(), "{ended:?}: {}", daemon.log());
    // That it mirrors, or believes nothing of it, is another matter: numbers
    // were among it, and a changed bit makes another connection.
    Ok(())
}
