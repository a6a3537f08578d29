//! FTP control connections through a firewall with the kernel's helper,
//! conntrackd's and ours, in turns, in one boot.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::command;
use lab::conntrackd::{Conntrackd, unregister};
use lab::firewall::{DEFAULT_DROP, KERNEL_HELPER};
use lab::netns::Namespace;
use lab::ours::Helper;
use lab::peer::Peer;
use lab::topology::{Family, Topology, server_address};
use lab::wait::patience;
use tempfile::TempDir;

use crate::Plan;
use crate::book::{Book, Metric, Target, Who};
use crate::process::{cpu, memory};

pub mod least;

/// Connections at a time, where there are several.
const PARALLEL: u32 = 8;

/// Runs it.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    let topology = Topology::new()?;
    let server = Server::start(&topology)?;
    for round in 0..plan.rounds {
        let mut order = vec![Kind::Ours, Kind::Conntrackd, Kind::Least, Kind::Kernel];
        order.extend(plan.before.is_some().then_some(Kind::Before));
        let places = order.len();
        order.rotate_left(round % places);
        for kind in order {
            once(kind, plan, &topology, &server, book).with_context(|| format!("{kind:?}"))?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    /// Ours from another build.
    Before,
    Conntrackd,
    /// A loop that accepts what comes, in front of rules that do.
    Least,
    Kernel,
}

/// Who watches, while it does.
enum Watcher {
    None,
    Ours(Helper),
    Before(Peer, TempDir),
    Conntrackd(Conntrackd),
    Least(Peer),
}

impl Watcher {
    fn start(kind: Kind, plan: &Plan, fw: &Namespace) -> Result<Self> {
        fw.nft(DEFAULT_DROP)?;
        match kind {
            Kind::Least => {
                fw.run("nft", &["flush", "chain", "inet", "lab_fw", "forward"])?;
                fw.nft(&forward_all())?;
                let program = std::env::current_exe()?.display().to_string();
                let run = command(&program, &["accept"]);
                let mut peer = Peer::start(fw, "bench accept", run)?;
                peer.wait_for_line(least::READY)?;
                fw.nft(&helper_rules(least::NAME))?;
                Ok(Self::Least(peer))
            }
            Kind::Kernel => {
                fw.nft(KERNEL_HELPER)?;
                Ok(Self::None)
            }
            Kind::Ours => {
                let helper = Helper::start(fw, &[])?;
                fw.nft(&helper_rules("nft-ftp"))?;
                Ok(Self::Ours(helper))
            }
            Kind::Before => {
                let program = plan.before.as_deref().context("--before")?;
                let dir = tempfile::tempdir()?;
                let control = dir.path().join("control").display().to_string();
                let run = command(&program.to_string_lossy(), &["run", "--control", &control]);
                let mut peer = Peer::start(fw, "the other nft-ftp-helper", run)?;
                peer.wait_for_line("helper enabled")?;
                fw.nft(&helper_rules("nft-ftp"))?;
                Ok(Self::Before(peer, dir))
            }
            Kind::Conntrackd => Ok(Self::Conntrackd(Conntrackd::start(fw)?)),
        }
    }

    fn pid(&self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::Ours(helper) => Some(helper.pid()),
            Self::Conntrackd(peer) => Some(peer.pid()),
            Self::Before(peer, _) | Self::Least(peer) => Some(peer.pid()),
        }
    }

    fn stop(self, fw: &Namespace) -> Result<()> {
        fw.run("nft", &["flush", "ruleset"])?;
        fw.run("conntrack", &["-F"])?;
        match self {
            Self::None => Ok(()),
            Self::Ours(helper) => helper.stop().map(drop),
            Self::Before(peer, _dir) => peer.stop().map(drop),
            Self::Conntrackd(peer) => peer.stop(fw),
            Self::Least(peer) => {
                peer.stop()?;
                unregister(least::NAME)
            }
        }
    }
}

/// The lab's rules for the kernel's helper, with another one.
fn helper_rules(name: &str) -> String {
    KERNEL_HELPER.replace("type \"ftp\"", &format!("type \"{name}\""))
}

fn forward_all() -> String {
    "table inet lab_fw {\n\tchain forward {\n\t\ttype filter hook forward priority filter; \
     policy accept;\n\t\tct state established accept\n\t}\n}\n"
        .to_owned()
}

/// Where a kind's samples go: rows against the kernel's helper, and against
/// another build of ours, are rows of their own.
fn file(book: &mut Book, plan: &Plan, kind: Kind, metric: &Metric, value: f64) {
    let against = |peer| {
        let other = Metric {
            name: format!("{} (against {peer})", metric.name),
            target: None,
            ..metric.clone()
        };
        other.against(peer)
    };
    let (kernel, before) = (against("kernel"), against("before"));
    match kind {
        Kind::Ours => {
            book.add(metric, Who::Ours, value);
            book.add(&kernel, Who::Ours, value);
            if plan.before.is_some() {
                book.add(&before, Who::Ours, value);
            }
        }
        Kind::Conntrackd => book.add(metric, Who::Peer, value),
        Kind::Kernel => book.add(&kernel, Who::Peer, value),
        Kind::Before => book.add(&before, Who::Peer, value),
        Kind::Least => book.add(metric, Who::Limit, value),
    }
}

fn once(
    kind: Kind,
    plan: &Plan,
    topology: &Topology,
    server: &Server,
    book: &mut Book,
) -> Result<()> {
    let watcher = Watcher::start(kind, plan, &topology.fw)?;
    let time = Duration::from_secs(if plan.quick { 2 } else { 6 });

    let [mut noop, mut pasv] = round_trips(topology, time)?;
    // Its last port was never used, and the kernel's helper stalls a session to
    // which the server announces that port again.
    topology.fw.run("conntrack", &["-F"])?;
    let trip = Metric::less("helper: NOOP round trip, p50", "us").target(Target::Peer(1.0));
    file(book, plan, kind, &trip, median(&mut noop));
    let trip = Metric::less("helper: PASV round trip, p50", "us").target(Target::Peer(1.0));
    file(book, plan, kind, &trip, median(&mut pasv));

    let used = || watcher.pid().map(cpu);
    let before = used();
    let packets = 2 * in_parallel(|| noops(topology, time))?;
    let rate = Metric::more("helper: control packets, 8 connections", "1/s");
    file(
        book,
        plan,
        kind,
        &rate,
        f64::from(packets) / time.as_secs_f64(),
    );
    if let (Some(before), Some(now)) = (before, used()) {
        let busy = (now - before).as_secs_f64();
        let each =
            Metric::more("helper: control packets per CPU second", "1/s").target(Target::Peer(3.0));
        file(book, plan, kind, &each, f64::from(packets) / busy);
    }

    let failed = AtomicU32::new(0);
    let sessions = in_parallel(|| {
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < time {
            match session(topology, server) {
                Ok(()) => count += 1,
                Err(error) => {
                    eprintln!("    {kind:?}: a session failed: {error:#}");
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(count)
    })?;
    let lost = Metric::less("helper: sessions that failed", "").target(Target::Value(0.0));
    let failed = f64::from(failed.load(Ordering::Relaxed));
    file(book, plan, kind, &lost, failed);
    let rate = Metric::more("helper: sessions with a listing", "1/s");
    file(
        book,
        plan,
        kind,
        &rate,
        f64::from(sessions) / time.as_secs_f64(),
    );
    if let Some(pid) = watcher.pid().filter(|_| kind != Kind::Least) {
        let held = Metric::less("helper: memory", "MiB");
        let mib = crate::process::float(memory(pid)) / f64::from(1 << 20);
        file(book, plan, kind, &held, mib);
    }
    watcher.stop(&topology.fw)
}

/// Times of commands that nobody has to look at and of those that announce an
/// address, in turns, so that both meet the same machine. Those of the first
/// second do not count: under emulation code is slow when it is new.
fn round_trips(topology: &Topology, time: Duration) -> Result<[Vec<Duration>; 2]> {
    let mut client = Client::connect(topology)?;
    let mut times = [Vec::new(), Vec::new()];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) + 2 * time {
        let warm = start.elapsed() > Duration::from_secs(1);
        for (command, times) in [&b"NOOP\r\n"[..], b"PASV\r\n"].iter().zip(&mut times) {
            let took = client.timed(command)?;
            if warm {
                times.push(took);
            }
        }
    }
    Ok(times)
}

/// One connection's commands for a while; how many.
fn noops(topology: &Topology, time: Duration) -> Result<u32> {
    let mut client = Client::connect(topology)?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time {
        client.timed(b"NOOP\r\n")?;
        count += 1;
    }
    Ok(count)
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    middle.as_secs_f64() * 1e6
}

/// Several threads at once; the sum of what they counted.
fn in_parallel(each: impl Fn() -> Result<u32> + Sync) -> Result<u32> {
    let sum = AtomicU32::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let threads = (0..PARALLEL).map(|_| {
            scope.spawn(|| {
                sum.fetch_add(each()?, Ordering::Relaxed);
                Ok(())
            })
        });
        let threads: Vec<_> = threads.collect();
        let results = threads.into_iter().map(|t| t.join().expect("no panic"));
        results.collect::<Result<()>>()
    })?;
    Ok(sum.load(Ordering::Relaxed))
}

/// A login, a listing, an end.
fn session(topology: &Topology, server: &Server) -> Result<()> {
    let mut client = Client::connect(topology)?;
    client.ask(b"USER anonymous\r\n", "331")?;
    client.ask(b"PASS guest\r\n", "230")?;
    let line = client.ask(b"PASV\r\n", "227")?;
    let inside = line.split(['(', ')']).nth(1).context("227")?;
    let numbers: Vec<u16> = inside
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [.., high, low] = numbers.as_slice() else {
        anyhow::bail!("{line}");
    };
    let to = SocketAddr::new(server.address, high * 256 + low);
    let mut data = topology
        .client
        .enter(|| TcpStream::connect_timeout(&to, patience()))?;
    client.ask(b"LIST\r\n", "150")?;
    let mut text = Vec::new();
    data.read_to_end(&mut text)?;
    client.reply("226")?;
    client.ask(b"QUIT\r\n", "221").map(drop)
}

/// The client's end of a control connection.
struct Client {
    stream: BufReader<TcpStream>,
    line: String,
}

impl Client {
    fn connect(topology: &Topology) -> Result<Self> {
        let to = SocketAddr::new(server_address(Family::V4), 21);
        let stream = topology
            .client
            .enter(|| TcpStream::connect_timeout(&to, patience()))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience()))?;
        let mut client = Self {
            stream: BufReader::new(stream),
            line: String::new(),
        };
        client.reply("220")?;
        Ok(client)
    }

    fn reply(&mut self, code: &str) -> Result<()> {
        self.line.clear();
        self.stream.read_line(&mut self.line)?;
        ensure!(self.line.starts_with(code), "{code}: {:?}", self.line);
        Ok(())
    }

    fn ask(&mut self, command: &[u8], code: &str) -> Result<String> {
        self.stream.get_mut().write_all(command)?;
        self.reply(code)?;
        Ok(self.line.clone())
    }

    fn timed(&mut self, command: &[u8]) -> Result<Duration> {
        let start = Instant::now();
        self.stream.get_mut().write_all(command)?;
        self.reply("2")?;
        Ok(start.elapsed())
    }
}

/// A server that says what it is told to.
struct Server {
    address: IpAddr,
}

impl Server {
    fn start(topology: &Topology) -> Result<Self> {
        let address = server_address(Family::V4);
        let bind = |port| topology.server.enter(|| TcpListener::bind((address, port)));
        let listener = bind(21)?;
        // One listener for all data connections of a thread of the server.
        std::thread::spawn({
            let namespace = topology.server.name().to_owned();
            move || {
                for stream in listener.incoming().flatten() {
                    let namespace = namespace.clone();
                    std::thread::spawn(move || talk(stream, address, &namespace));
                }
            }
        });
        Ok(Self { address })
    }
}

/// Answers one connection.
fn talk(stream: TcpStream, address: IpAddr, namespace: &str) -> Result<()> {
    let enter = std::fs::File::open(format!("/run/netns/{namespace}"))?;
    nix::sched::setns(enter, nix::sched::CloneFlags::CLONE_NEWNET)?;
    stream.set_nodelay(true)?;
    let data = TcpListener::bind((address, 0))?;
    let port = data.local_addr()?.port();
    let IpAddr::V4(v4) = address else {
        anyhow::bail!("IPv4 only")
    };
    let host = v4.octets().map(|octet| octet.to_string()).join(",");
    let passive = format!(
        "227 Entering Passive Mode ({host},{},{}).\r\n",
        port / 256,
        port % 256
    );
    let mut lines = BufReader::new(stream);
    lines.get_mut().write_all(b"220 ready\r\n")?;
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let out = lines.get_mut();
        match line.get(..4).unwrap_or_default() {
            "NOOP" => out.write_all(b"200 Zzz...\r\n")?,
            "PASV" => out.write_all(passive.as_bytes())?,
            "USER" => out.write_all(b"331 password\r\n")?,
            "PASS" => out.write_all(b"230 logged in\r\n")?,
            "LIST" => {
                let (mut to, _) = data.accept()?;
                out.write_all(b"150 here it comes\r\n")?;
                to.write_all(b"-rw-r--r-- 1 ftp ftp 5 Jan 01 00:00 file\r\n")?;
                drop(to);
                out.write_all(b"226 done\r\n")?;
            }
            "QUIT" => {
                out.write_all(b"221 bye\r\n")?;
                return Ok(());
            }
            _ => out.write_all(b"500 what?\r\n")?,
        }
    }
}
