//! Churn, FTP sessions and faults all at once: what `cargo xtask soak` runs, for
//! `LAB_SOAK_SECONDS`. The summary goes to the
//! file named by `LAB_SOAK_SUMMARY`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::server::{Program, Server};
use lab::ftp::session::{Data, Ftp, is_file};
use lab::inject::{Act, inject_what_can_be};
use lab::netns::Namespace;
use lab::nodes::{Nodes, PORT, load_rules};
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::relay::Relay;
use lab::require::Need;
use lab::topology::Family;
use lab::wait::until;
use nix::sys::signal::Signal;
use serde_json::Value;

/// For everything that has to settle after a fault, however busy the machine.
const SETTLE: Duration = Duration::from_secs(90);
/// From one fault to the next.
const EVERY: Duration = Duration::from_secs(3);
/// Connections per burst of churn.
const BURST: u32 = 500;
/// From one burst to the next: 20,000 new connections a second, if the machine
/// can make them.
const BURST_EVERY: Duration = Duration::from_millis(25);
/// After so many bursts the first one's connections are replaced.
const BURSTS: u32 = 40;
/// What a burst leaves to others at least.
const BREATH: Duration = Duration::from_millis(1);
/// So late it may be.
const BEHIND: Duration = Duration::from_secs(5);
const CLIENTS: usize = 3;
/// Between two transfers.
const PAUSE: Duration = Duration::from_millis(300);

struct World<'a> {
    pair: &'a Pair,
    nodes: Nodes,
    relay: Relay,
    daemons: [Peer; 2],
    churn: &'a Churn,
    active: Node,
    random: u64,
    /// What happened, by name.
    faults: Vec<(&'static str, u32)>,
    /// Resident memory of both daemons at quiet moments, in KiB.
    memory: Vec<u64>,
    /// From the last packet through a firewall to the first that may pass
    /// the other one.
    outages: Vec<Duration>,
    /// What restarted daemons took to be ready.
    starts: Vec<Duration>,
}

impl<'a> World<'a> {
    fn new(pair: &'a Pair, churn: &'a Churn) -> Result<Self> {
        load_rules(pair, Nat::Snat)?;
        pair.activate(Node::One)?;
        let end = |node: Node| SocketAddr::new(node.sync_address(Family::V4), PORT);
        let (relay, [for_one, for_two]) = Relay::start(&pair.fw_1, end(Node::One), end(Node::Two))?;
        let via = move |node: Node| match node {
            Node::One => (end(node), for_one),
            Node::Two => (end(node), for_two),
        };
        let nodes = Nodes::new(&via, "purge-after = \"2s\"\n")?;
        let daemons = [nodes.start(pair, Node::One)?, nodes.start(pair, Node::Two)?];
        nodes.wait_synced()?;
        ensure!(nodes.ctsync(Node::One, &["primary"])?.ok());
        ensure!(nodes.ctsync(Node::Two, &["backup"])?.ok());
        Ok(Self {
            pair,
            nodes,
            relay,
            daemons,
            churn,
            active: Node::One,
            random: 1,
            faults: Vec::new(),
            memory: Vec::new(),
            outages: Vec::new(),
            starts: Vec::new(),
        })
    }

    fn below(&mut self, n: u64) -> u64 {
        let next = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = next.wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % n
    }

    fn count(&mut self, what: &'static str) {
        match self.faults.iter_mut().find(|(name, _)| *name == what) {
            Some((_, n)) => *n += 1,
            None => self.faults.push((what, 1)),
        }
    }

    /// Something goes wrong, or is made to.
    fn fault(&mut self) -> Result<()> {
        match self.below(6) {
            0 | 1 => self.kill(),
            2 => {
                self.count("30% of the link's datagrams lost");
                self.relay.lose(30);
                Ok(())
            }
            3 => {
                self.count("link cut");
                self.relay.lose(100);
                Ok(())
            }
            _ => self.fail_over(),
        }
    }

    fn kill(&mut self) -> Result<()> {
        let node = if self.below(2) == 0 {
            Node::One
        } else {
            Node::Two
        };
        self.count("daemon killed");
        let at = usize::from(node == Node::Two);
        let daemon = self.daemons.get_mut(at).context("a daemon")?;
        daemon.signal(Signal::SIGKILL)?;
        daemon.wait()?;
        let at = Instant::now();
        *daemon = self.nodes.spawn(self.pair, node)?;
        let ready = until("a restarted daemon", SETTLE, || {
            daemon.log().contains("ready").then_some(())
        });
        ready.with_context(|| daemon.log())?;
        self.starts.push(at.elapsed());
        let role = if node == self.active {
            "primary"
        } else {
            "backup"
        };
        let done = self.nodes.ctsync(node, &[role])?;
        ensure!(done.ok(), "{}", done.report());
        Ok(())
    }

    /// The active firewall loses its networks, but not the link: what its
    /// kernel knew last still reaches the other one. No packet comes to that
    /// before it has committed, so that none has to be held back.
    fn fail_over(&mut self) -> Result<()> {
        self.count("failover");
        self.settle()?;
        let churn = self.churn;
        let mut churn_at = churn.at();
        let since = Instant::now();
        self.cables(self.active, "down")?;
        let mirrored = until("the sessions' mirror", SETTLE, || {
            self.sessions_mirrored().ok()?
        });
        mirrored.with_context(|| self.unequal_sessions())?;
        let next = self.active.peer();
        let done = self.nodes.ctsync(next, &["primary"])?;
        ensure!(done.ok(), "{}", done.report());
        self.pair.activate(next)?;
        self.outages.push(since.elapsed());
        let done = self.nodes.ctsync(self.active, &["backup"])?;
        ensure!(done.ok(), "{}", done.report());
        self.cables(self.active, "up")?;
        self.active = next;
        *churn_at = next;
        Ok(())
    }

    /// What the kernel has of FTP sessions is in the cache (after a burst,
    /// events of it may still wait behind thousands of others), and in the
    /// other one's copy. What has ended vanishes while we look.
    fn sessions_mirrored(&self) -> Result<Option<()>> {
        let mut lacking = BTreeSet::new();
        for entry in self.sessions(self.active, "kernel")? {
            let essence = Essence::of(&entry)?;
            if !essence.has_ended() {
                lacking.insert(essence);
            }
        }
        let mut own = Vec::new();
        for entry in self.sessions(self.active, "internal")? {
            if lacking.remove(&Essence::of(&entry)?) {
                own.push(entry);
            }
        }
        let copy = self.sessions(self.active.peer(), "external")?;
        let copied = own.iter().all(|entry| copy.contains(entry));
        Ok((lacking.is_empty() && copied).then_some(()))
    }

    fn sessions(&self, node: Node, cache: &str) -> Result<Vec<String>> {
        let fw = self.pair.fw(node);
        let mut all = fw.enter(|| self.nodes.entries(node, &[cache, "--expectations"]))?;
        for end in ["10.0.1.2", "10.0.2.2"] {
            all.extend(fw.enter(|| self.nodes.entries(node, &[cache, "--src", end]))?);
        }
        Ok(all)
    }

    fn unequal_sessions(&self) -> String {
        let of = |node, cache| self.sessions(node, cache);
        let (active, other) = (self.active, self.active.peer());
        let all = [
            of(active, "kernel"),
            of(active, "internal"),
            of(other, "external"),
        ];
        format!("kernel, internal, external: {all:#?}")
    }

    fn cables(&self, node: Node, state: &str) -> Result<()> {
        let n = usize::from(node == Node::Two) + 1;
        let lines = format!("link set lan{n} {state}\nlink set wan{n} {state}\n");
        self.pair.switch.ip_batch(&lines)
    }

    /// The network is whole again, and both sides have found each other equal,
    /// while connections come and go.
    fn settle(&mut self) -> Result<()> {
        self.relay.lose(0);
        let nodes = &self.nodes;
        let both = || Node::BOTH.map(|n| nodes.status(n).map(|s| s.to_string()));
        until("nodes in sync", SETTLE, || nodes.wait_synced().ok())
            .with_context(|| format!("{:?}", both()))?;
        self.memory.push(self.daemons.iter().map(resident).sum());
        Ok(())
    }

    fn run(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            std::thread::sleep(EVERY);
            self.fault()?;
            if self.faults.iter().map(|(_, n)| n).sum::<u32>() % 3 == 0 {
                self.settle()?;
            }
        }
        self.settle()
    }

    /// The connections of the bursts, which nobody changes any more: nothing
    /// lost, no ghosts. Those of ended FTP sessions still time out.
    fn ends_equal(&self) -> Result<()> {
        let (active, other) = (self.active, self.active.peer());
        let of = |node, cache| {
            let fw = self.pair.fw(node);
            fw.enter(|| self.nodes.entries(node, &[cache, "--dport", "80"]))
        };
        let mut last = [0; 3];
        let same = until("equal caches", SETTLE, || {
            let (own, copy) = (of(active, "internal").ok()?, of(other, "external").ok()?);
            let kernel = essences(&of(active, "kernel").ok()?)?;
            last = [kernel.len(), own.len(), copy.len()];
            (own == copy && essences(&own)? == kernel).then_some(())
        });
        same.with_context(|| {
            let both = Node::BOTH.map(|n| self.nodes.status(n).map(|s| s.to_string()));
            format!("{last:?} in the kernel, its cache and the copy: {both:?}")
        })?;
        ensure!(last != [0; 3], "nothing to compare");
        let owned = self.nodes.number(other, "/internal/flows")?;
        ensure!(owned == 0, "the backup owns {owned} connections");
        Ok(())
    }

    fn summary(&self, took: Duration, sessions: &Sessions) -> String {
        let made = self.churn.made.load(Relaxed);
        let seconds = took.as_secs().max(1);
        let mut text = format!(
            "{seconds} s: {made} connections made, marked and deleted, {} a second; {} FTP \
             transfers in {} sessions, {} of them failed\n",
            made / seconds,
            sessions.transfers.load(Relaxed),
            sessions.begun.load(Relaxed),
            sessions.failed().len(),
        );
        for (what, times) in &self.faults {
            let _ = writeln!(text, "{times} times: {what}");
        }
        for (what, took) in [
            ("outage of a failover", &self.outages),
            ("start of a killed daemon", &self.starts),
        ] {
            let mut took = took.clone();
            took.sort();
            if let (Some(middle), Some(longest)) = (took.get(took.len() / 2), took.last()) {
                let _ = writeln!(text, "{what}: median {middle:.1?}, longest {longest:.1?}");
            }
        }
        let (least, most) = (self.memory.iter().min(), self.memory.iter().max());
        let _ = writeln!(
            text,
            "both daemons together: {} to {} KiB over {} looks, the last {} KiB",
            least.unwrap_or(&0),
            most.unwrap_or(&0),
            self.memory.len(),
            self.memory.last().unwrap_or(&0),
        );
        text
    }

    /// The last third of the looks is not above the others by more than a
    /// half: what grows with the table has grown by then.
    fn memory_is_flat(&self) -> Result<()> {
        let third = self.memory.len() / 3;
        let (before, after) = self.memory.split_at(self.memory.len() - third);
        let most = |m: &[u64]| m.iter().max().copied().unwrap_or(0);
        let flat = third < 2 || most(after) <= most(before) * 3 / 2;
        ensure!(flat, "memory grows: {:?}", self.memory);
        Ok(())
    }
}

/// Connections that come and go at the firewall that is active. Whoever holds
/// `at` keeps them from it.
struct Churn {
    at: Mutex<Node>,
    stop: AtomicBool,
    /// Connections made.
    made: AtomicU64,
}

impl Churn {
    fn new() -> Self {
        Self {
            at: Mutex::new(Node::One),
            stop: AtomicBool::new(false),
            made: AtomicU64::new(0),
        }
    }

    fn at(&self) -> MutexGuard<'_, Node> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At the rate that is wanted, or as fast as it goes: what a failover
    /// kept it from is made up for, if it was no more than [`BEHIND`].
    fn run(&self, pair: &Pair) {
        let (mut due, mut n) = (Instant::now(), 0);
        while !self.stop.load(Relaxed) {
            let made = burst(pair.fw(*self.at()), n);
            self.made.fetch_add(u64::from(made), Relaxed);
            n += 1;
            let now = Instant::now();
            due = (due + BURST_EVERY).max(now - BEHIND);
            std::thread::sleep(due.saturating_duration_since(now).max(BREATH));
        }
    }
}

/// How many connections it made.
fn burst(fw: &Namespace, n: u32) -> u32 {
    let from = n % BURSTS * BURST;
    // What is there already, or not there, is no error here.
    let refused = |act| inject_what_can_be(fw, from, from + BURST, act).unwrap_or(BURST);
    refused(Act::Delete);
    let made = BURST - refused(Act::Create);
    refused(Act::Mark(n));
    made
}

fn resident(daemon: &Peer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid()));
    let status = status.unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:"));
    let number = line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or(0)
}

/// An entry without what the kernel changes and tells nobody.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Essence {
    known: String,
    state: String,
}

impl Essence {
    fn of(entry: &str) -> Result<Self> {
        let entry: Value = serde_json::from_str(entry)?;
        let text = |key| entry.get(key).map(Value::to_string).unwrap_or_default();
        Ok(Self {
            known: ["orig", "reply", "tuple", "helper", "mark"]
                .map(text)
                .concat(),
            state: text("state"),
        })
    }

    fn has_ended(&self) -> bool {
        ["\"TIME_WAIT\"", "\"CLOSE\""].contains(&self.state.as_str())
    }
}

fn essences(entries: &[String]) -> Option<BTreeSet<Essence>> {
    entries.iter().map(|e| Essence::of(e).ok()).collect()
}

/// Sessions of the clients: each of some transfers, one after the other.
struct Sessions {
    began: Instant,
    stop: AtomicBool,
    begun: AtomicU64,
    transfers: AtomicU64,
    failed: Mutex<Vec<String>>,
}

impl Sessions {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            transfers: AtomicU64::new(0),
            failed: Mutex::default(),
        }
    }

    /// One after the other, whatever became of the one before.
    fn run(&self, pair: &Pair, server: &Server) {
        while !self.stop.load(Relaxed) {
            self.begun.fetch_add(1, Relaxed);
            if let Err(error) = self.session(pair, server) {
                let after = self.began.elapsed();
                self.failed().push(format!("after {after:.1?}: {error:#}"));
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn session(&self, pair: &Pair, server: &Server) -> Result<()> {
        let target = Nat::Snat.target(Family::V4);
        let mut ftp = Ftp::login(&pair.client, target, Family::V4).context("login")?;
        for data in [Data::Passive, Data::Active, Data::Passive, Data::Active] {
            is_file(&ftp.fetch(data)?, &server.tree.file())?;
            self.transfers.fetch_add(1, Relaxed);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn failed(&self) -> MutexGuard<'_, Vec<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn main() -> Result<()> {
    lab::require!(Need::Root, Need::KernelFtp, Need::Server("vsftpd"));
    let seconds = std::env::var("LAB_SOAK_SECONDS").ok();
    let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(20);
    let pair = Pair::new()?;
    let (churn, sessions) = (Churn::new(), Sessions::new());
    let mut world = World::new(&pair, &churn)?;
    let server = Server::start(Program::Vsftpd, &pair.server)?;
    let began = Instant::now();
    let soaked = std::thread::scope(|scope| {
        scope.spawn(|| churn.run(&pair));
        for _ in 0..CLIENTS {
            scope.spawn(|| sessions.run(&pair, &server));
        }
        let soaked = world.run(began + Duration::from_secs(seconds));
        churn.stop.store(true, Relaxed);
        sessions.stop.store(true, Relaxed);
        soaked
    });
    let summary = world.summary(began.elapsed(), &sessions);
    println!("{summary}");
    if let Some(path) = std::env::var_os("LAB_SOAK_SUMMARY") {
        std::fs::write(path, &summary)?;
    }
    let failed = sessions.failed().clone();
    soaked.with_context(|| format!("{failed:#?}\n{summary}"))?;
    ensure!(failed.is_empty(), "{failed:#?}\n{summary}");
    world.ends_equal()?;
    let transfers = sessions.transfers.load(Relaxed);
    ensure!(transfers > 0, "no transfer was made\n{summary}");
    world.memory_is_flat()
}
