//! The daemon: one thread, one loop.

pub mod answer;
mod job;
mod keys;
mod restrict;
mod role;
mod status;

use crate::commit::{self, Commit};
use crate::config::{Apply, Config};
use crate::hash::Seed;
use crate::kernel::filter::Filter;
use crate::kernel::hold::HoldSet;
use crate::kernel::track::{self, Inlet, Note, Tracker};
use crate::kernel::{Kernel, sysctl};
use crate::render;
use crate::replica::message::Role;
use crate::replica::{Replica, Settings};
use crate::transport::key;
use crate::transport::{self, Outgoing, PeerSettings, Transport, frame};
use crate::udp::Udp;
use anyhow::{Context, Result};
use daemon::metrics::Exporter;
use daemon::signal::{Request, Signals};
use daemon::{Reactor, Server, notify, sandbox};
use job::Job;
use keys::Keys;
use netfilter::conntrack::Change;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const EVENTS: u64 = 1;
const DUMPS: u64 = 2;
const ANSWERS: u64 = 3;
const CONTROL: u64 = 4;
const METRICS: u64 = 5;
const SIGNALS: u64 = 6;
const FIRST_LINK: u64 = 16;

/// Datagrams taken per link and turn.
const DATAGRAMS_PER_TURN: usize = 512;
/// Datagrams sent per peer and turn.
const SENDS_PER_TURN: usize = 256;
/// When so many events come in a millisecond, wait a moment: reading many at
/// once costs a third of reading each as it comes.
const BUSY: usize = 8;
const BUSY_TIME: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_micros(500);
/// IP and UDP headers.
const IP_UDP: usize = 48;
/// How long the first look at the tables waits for a peer that is there.
const PEERS_FIRST: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    config_path: PathBuf,
    started: Instant,
    reactor: Reactor,
    signals: Signals,
    server: Server,
    exporter: Option<Exporter>,
    links: Vec<Udp>,
    kernel: Kernel,
    tracker: Tracker,
    replica: Replica,
    transport: Transport,
    commit: Commit,
    job: Option<Job>,
    hold: HoldSet,
    monitors: Vec<daemon::ClientId>,
    role: role::State,
    message: Vec<u8>,
    sealed: Vec<u8>,
    second_at: Duration,
    helpers_at: Duration,
    in_sync: Option<(bool, Duration)>,
    /// Until when the first look at the tables waits for peers' copies.
    peers_first: Option<Duration>,
    logged_refusals: transport::Refusals,
    send_failures: u64,
    /// Links, a bit each, on which more datagrams wait than one turn of the
    /// loop takes.
    backlog: u64,
    ready: bool,
    stop: bool,
    _pinned: Option<File>,
}

/// Runs until told to stop.
///
/// # Errors
/// What the daemon needs can't be had.
pub fn run(config_path: &Path, control: Option<&Path>) -> Result<()> {
    let mut config = Config::read(config_path)?;
    if let Some(control) = control {
        config.control = control.to_owned();
    }
    daemon::log::init(config.level().map_err(anyhow::Error::msg)?);
    let mut daemon = Daemon::start(config, config_path)?;
    let result = daemon.serve();
    notify::stopping();
    let mut out = Vec::new();
    daemon.transport.bye(&mut out);
    daemon.send_all(out);
    result
}

impl Daemon {
    fn start(config: Config, config_path: &Path) -> Result<Self> {
        let signals = Signals::new().context("blocking signals")?;
        sandbox::hide_memory()?;
        if !sandbox::has_net_admin() {
            anyhow::bail!("CAP_NET_ADMIN is missing: start as root or with AmbientCapabilities=");
        }
        if config.kernel.set_events_sysctl {
            if let Err(e) = sysctl::enable_events() {
                tracing::warn!(
                    error = %e,
                    "setting net.netfilter.nf_conntrack_events to 1; connections older than this daemon may not be mirrored"
                );
            }
        }
        let (transport, incarnation) = transport(&config, Keys::read(&config)?)?;
        let links = config
            .links
            .iter()
            .map(|link| Udp::bind(link).with_context(|| format!("binding link {}", link.bind)));
        let links = links.collect::<Result<Vec<_>>>()?;
        let replica = replica(&config, incarnation, &links)?;
        let commit = Commit::open(config.kernel.tcp_liberal)?;
        let hold = HoldSet::open(config.hold.as_ref())?;
        let tracker = Tracker::new(Filter::new(config.mirror.clone(), config.link_ends()));
        let mut kernel = Kernel::open(&config.kernel, &tracker.filter, &[commit.portid()])?;
        // What is in the kernel for a peer is told from our own by the peer's
        // copy: after a restart that has to come first.
        let peers_first = config.apply == Apply::Immediate && !config.peers.is_empty();
        if !peers_first {
            kernel.reconcile();
        }
        let server = Server::bind(&config.control)
            .with_context(|| format!("listening at {}", config.control.display()))?;
        let exporter = match &config.metrics {
            None => None,
            Some(address) => {
                let parsed = address.parse().map_err(anyhow::Error::msg)?;
                let exporter = Exporter::bind(&parsed);
                Some(exporter.with_context(|| format!("serving metrics at {address}"))?)
            }
        };
        let peers_first = peers_first.then_some(config.peer_timeout);
        let reactor = Reactor::new()?;
        reactor.add(&signals, SIGNALS)?;
        reactor.add(&server, CONTROL)?;
        reactor.add(&kernel.events, EVENTS)?;
        reactor.add(&kernel.dumps, DUMPS)?;
        reactor.add(&kernel.questions, ANSWERS)?;
        if let Some(exporter) = &exporter {
            reactor.add(exporter, METRICS)?;
        }
        for (token, link) in (FIRST_LINK..).zip(&links) {
            reactor.add(&link.socket, token)?;
        }
        let pinned = restrict::restrict(&config, config_path)?;
        Ok(Self {
            _pinned: pinned,
            tracker,
            config,
            config_path: config_path.to_owned(),
            started: Instant::now(),
            reactor,
            signals,
            server,
            exporter,
            links,
            kernel,
            replica,
            transport,
            commit,
            job: None,
            hold,
            monitors: Vec::new(),
            role: role::State::default(),
            message: Vec::new(),
            sealed: Vec::new(),
            second_at: Duration::ZERO,
            helpers_at: Duration::ZERO,
            in_sync: None,
            peers_first,
            logged_refusals: transport::Refusals::default(),
            send_failures: 0,
            backlog: 0,
            ready: false,
            stop: false,
        })
    }

    /// Monotonic time since the start.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn serve(&mut self) -> Result<()> {
        let mut tokens = Vec::new();
        let (mut since, mut events) = (self.now(), 0);
        while !self.stop {
            let timeout = self.timeout();
            tokens.clear();
            self.reactor.wait(Some(timeout), &mut tokens)?;
            events += self.turn(&tokens)?;
            if events >= BUSY {
                std::thread::sleep(PAUSE);
                (since, events) = (self.now(), 0);
            } else if self.now() >= since + BUSY_TIME {
                (since, events) = (self.now(), 0);
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Duration {
        let now = self.now();
        if self.commit.is_busy() {
            return Duration::ZERO;
        }
        let peers = (0..self.replica.peers.len()).filter_map(|i| self.replica.deadline(i));
        let next = peers
            .chain(self.tracker.deadline())
            .chain(self.transport.deadline(now))
            .chain([self.second_at])
            .min();
        next.map_or(SECOND, |at| at.saturating_sub(now))
    }

    fn turn(&mut self, tokens: &[u64]) -> Result<usize> {
        let mut events = 0;
        for token in tokens {
            let now = self.now();
            match *token {
                EVENTS => {
                    events += self
                        .kernel
                        .on_events(&mut self.tracker, &mut self.replica, now)?;
                }
                DUMPS => {
                    self.kernel
                        .on_dump(&mut self.tracker, &mut self.replica, now)?;
                }
                ANSWERS => {
                    self.kernel
                        .on_answers(&mut self.tracker, &mut self.replica, now)?;
                }
                CONTROL => self.on_control()?,
                METRICS => self.on_metrics()?,
                SIGNALS => self.on_signals()?,
                link => self.on_link(usize::try_from(link - FIRST_LINK)?),
            }
        }
        self.work()?;
        Ok(events)
    }

    fn on_link(&mut self, link: usize) {
        let mut buf = [0; 1 << 16];
        let mut plain = std::mem::take(&mut self.message);
        let bit = 1_u64
            .checked_shl(u32::try_from(link).unwrap_or(u32::MAX))
            .unwrap_or(0);
        self.backlog |= bit;
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(udp) = self.links.get(link) else {
                break;
            };
            let Some((len, from)) = udp.receive(&mut buf) else {
                self.backlog &= !bit;
                break;
            };
            let (mut out, mut events) = (Vec::new(), Vec::new());
            let now = self.now();
            let bytes = buf.get(..len).unwrap_or_default();
            self.transport
                .receive((link, from), bytes, now, &mut plain, &mut out, &mut events);
            self.send_all(out);
            for event in events {
                self.on_transport(event, &plain, now);
            }
        }
        self.message = plain;
    }

    fn on_transport(&mut self, event: transport::Event, plain: &[u8], now: Duration) {
        let name = |id: usize| self.config.peers.get(id).map_or("", |p| p.name.as_str());
        match event {
            transport::Event::Up(id) => {
                tracing::info!(peer = name(id), "peer is up");
                self.replica.connected(id, now);
            }
            transport::Event::Down(id) => {
                tracing::warn!(peer = name(id), "peer is down");
                self.replica.disconnected(id, now);
            }
            transport::Event::Message(id) => self.on_message(id, plain, now),
        }
    }

    fn on_message(&mut self, id: usize, plain: &[u8], now: Duration) {
        let immediate = self.config.apply == Apply::Immediate && !self.replica.is_fenced(id);
        let watched = !self.monitors.is_empty();
        if !immediate && !watched {
            self.replica.receive(id, plain, now, &mut ());
            return;
        }
        let mut inlet = Inlet {
            journal: watched.then(Vec::new),
            ..Inlet::default()
        };
        let synced = |r: &Replica| r.peers.get(id).is_some_and(|p| p.inbound.is_synced(now));
        let was_synced = synced(&self.replica);
        self.replica.receive(id, plain, now, &mut inlet);
        if let Some(notes) = inlet.journal.take() {
            self.tell(&notes);
        }
        if immediate {
            self.apply(id, &inlet, was_synced, now);
        }
    }

    fn apply(&mut self, peer: usize, inlet: &Inlet, was_synced: bool, now: Duration) {
        self.commit.push(&self.replica, peer, &inlet.put);
        self.commit.push_later(&self.replica, peer, &inlet.later);
        if let Err(e) = self.unapply(&inlet.delete, was_synced, now) {
            tracing::warn!(error = %e, "deleting from the kernel");
        }
    }

    /// A peer has no such entries any more. Ours and other peers' stay, and
    /// so does a connection whose packets come through this node. It is ours
    /// now. If the peer has been away, they may have come for a while: what
    /// it says of its tables then may only mean that it has booted.
    fn unapply(
        &mut self,
        gone: &[(Vec<u8>, u32)],
        was_synced: bool,
        now: Duration,
    ) -> Result<(), netfilter::Error> {
        let gone: Vec<(&[u8], u32)> = gone
            .iter()
            .map(|(bytes, deadline)| (bytes.as_slice(), *deadline))
            .filter(|(bytes, _)| !track::is_wanted(&self.replica, bytes))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let records: Vec<&[u8]> = gone.iter().map(|(bytes, _)| *bytes).collect();
        let there = self.commit.look(&records)?;
        let mut delete = Vec::new();
        for ((bytes, deadline), there) in gone.into_iter().zip(there) {
            let left = u64::from(deadline).saturating_sub(now.as_secs());
            let used = |f: &netfilter::Flow| {
                commit::is_used(f, left) || (!was_synced && commit::was_used(f))
            };
            match there.filter(|f| !self.tracker.paused && used(f)) {
                Some(flow) => self.tracker.adopt(&mut self.replica, &flow, now),
                None => delete.push(bytes),
            }
        }
        self.commit.delete(&delete)
    }

    /// Tells those who watch.
    fn tell(&mut self, notes: &[Note]) {
        let server = &self.server;
        self.monitors.retain(|m| server.is_connected(*m));
        for note in notes {
            let Some(record) = job::decoded(&note.record) else {
                continue;
            };
            let line = serde_json::json!({
                "change": match note.change {
                    Change::New => "new",
                    Change::Update => "update",
                    Change::Destroy => "destroy",
                },
                "cache": if note.external { "external" } else { "internal" },
                "entry": render::line(&record, None),
                "object": render::json(&record, None),
            });
            for monitor in &self.monitors {
                self.server.send(*monitor, &line);
            }
        }
    }

    /// Journals own changes while somebody watches.
    fn work_monitors(&mut self) {
        if let Some(notes) = self.tracker.journal.take() {
            self.tell(&notes);
        }
        self.tracker.journal = (!self.monitors.is_empty()).then(Vec::new);
    }

    /// What the kernel has dropped of peers' entries is put back while they
    /// live, if they are to be there.
    fn work_dropped(&mut self) {
        for (peer, slot) in std::mem::take(&mut self.tracker.dropped) {
            if self.config.apply == Apply::Immediate {
                self.commit.push(&self.replica, peer, &[slot]);
            }
        }
    }

    fn send_all(&mut self, out: Vec<Outgoing>) {
        for o in out {
            let sent = self
                .links
                .get(o.link)
                .is_some_and(|l| l.send(o.to, &o.bytes));
            self.send_failures += u64::from(!sent);
        }
    }

    /// Does everything that is due.
    fn work(&mut self) -> Result<()> {
        let now = self.now();
        self.work_peers_first(now);
        self.kernel.poll(&mut self.tracker, &mut self.replica)?;
        let asks = self.tracker.take_asks(now);
        if !asks.is_empty() {
            self.kernel.ask(&asks)?;
        }
        self.tracker.forget_withdrawn(&mut self.replica, now);
        self.work_monitors();
        self.work_dropped();
        self.work_commit(now)?;
        let (mut out, mut events) = (Vec::new(), Vec::new());
        self.transport.poll(now, &mut out, &mut events);
        self.send_all(out);
        for event in events {
            self.on_transport(event, &[], now);
        }
        self.work_role(now)?;
        for id in 0..self.replica.peers.len() {
            self.transmit(id);
        }
        if self.second_at <= now {
            self.second_at = now + SECOND;
            self.every_second(now)?;
        }
        if !self.ready && self.peers_first.is_none() && !self.kernel.is_behind() {
            self.ready = true;
            self.replica.hold(false);
            tracing::info!(flows = self.replica.own.flows(), "ready");
            notify::ready();
        }
        Ok(())
    }

    /// Reads the tables for the first time once the copy of each peer that can
    /// be reached is complete and written, or after a while.
    fn work_peers_first(&mut self, now: Duration) {
        let Some(until) = self.peers_first else {
            return;
        };
        let settled = |(id, peer): (usize, &crate::replica::Peer)| {
            let away = until <= now && !self.replica.is_connected(id);
            away || peer.inbound.is_synced(now)
        };
        let mut peers = self.replica.peers.iter().enumerate();
        let there = peers.all(settled) && !self.commit.is_busy();
        if there || until + PEERS_FIRST <= now {
            self.peers_first = None;
            self.kernel.reconcile();
        }
    }

    fn transmit(&mut self, id: usize) {
        let limit = self.config.mtu - IP_UDP - frame::OVERHEAD;
        let mut message = std::mem::take(&mut self.message);
        for _ in 0..SENDS_PER_TURN {
            let now = self.now();
            if !self.replica.transmit(id, now, limit, &mut message) {
                break;
            }
            let to = self.transport.seal(id, &message, now, &mut self.sealed);
            let sent = to.is_some_and(|(link, to)| {
                self.links
                    .get(link)
                    .is_some_and(|l| l.send(to, &self.sealed))
            });
            self.send_failures += u64::from(!sent);
        }
        self.message = message;
    }

    fn every_second(&mut self, now: Duration) -> Result<()> {
        notify::alive();
        if self.helpers_at <= now {
            self.helpers_at = now + self.config.kernel.background_dump;
            self.kernel.look_at_helpers()?;
        }
        self.kernel.look_for_drops()?;
        self.commit.try_again();
        if self.replica.role().0 == Role::Backup && self.job.is_none() {
            self.hold.renew(now);
        }
        self.log_refusals();
        self.note_sync(now);
        if self.ready {
            notify::status(&self.one_line(now));
        }
        Ok(())
    }

    /// One line per kind of refusal, the first time.
    fn log_refusals(&mut self) {
        let (old, new) = (self.logged_refusals, self.transport.refusals);
        for (before, after, what) in [
            (old.garbage, new.garbage, "garbage"),
            (old.version, new.version, "another version"),
            (old.unknown_key, new.unknown_key, "an unknown key"),
            (old.replayed, new.replayed, "a replay"),
            (old.forged, new.forged, "a forged frame"),
        ] {
            if before == 0 && after > 0 {
                tracing::warn!("refused a datagram: {what}; more are only counted");
            }
        }
        self.logged_refusals = new;
    }

    fn on_signals(&mut self) -> Result<()> {
        while let Some(request) = self.signals.next()? {
            match request {
                Request::Stop => self.stop = true,
                Request::Reload => self.reload(),
                Request::User => {}
            }
        }
        Ok(())
    }

    /// Takes over what can change while running. The rest needs a restart,
    /// and says so.
    fn reload(&mut self) {
        notify::reloading();
        let read = Config::read(&self.config_path).map_err(anyhow::Error::from);
        let read = read.and_then(|new| Ok((Keys::read(&new)?, new)));
        match read.map(|(keys, new)| self.take_over(new, keys)) {
            Ok(Ok(restart)) if restart.is_empty() => {
                tracing::info!("configuration was read again");
            }
            Ok(Ok(restart)) => tracing::warn!(
                "configuration was read again; changes of {} need a restart",
                restart.join(", ")
            ),
            Ok(Err(e)) => tracing::error!(error = %e, "configuration was changed in part"),
            Err(e) => {
                let error = crate::errno::chain(e.as_ref());
                tracing::error!(error, "configuration was not changed");
            }
        }
        notify::ready();
    }

    /// The names of what has changed and needs a restart.
    fn take_over(
        &mut self,
        new: Config,
        keys: Keys,
    ) -> Result<Vec<&'static str>, netfilter::Error> {
        let restart = self.config.needs_restart(&new);
        let now = self.now();
        keys::replace(&mut self.transport, &self.config, &new, keys, now);
        self.tracker
            .set_filter(Filter::new(new.mirror.clone(), self.config.link_ends()));
        self.kernel
            .set_filter(&self.tracker.filter, &[self.commit.portid()])?;
        self.commit.set_liberal(new.kernel.tcp_liberal);
        self.config.kernel.background_dump = new.kernel.background_dump;
        self.config.kernel.tcp_liberal = new.kernel.tcp_liberal;
        if format!("{:?}", self.config.hold) != format!("{:?}", new.hold) {
            self.hold.release();
            self.hold = HoldSet::open(new.hold.as_ref())?;
            self.config.hold = new.hold;
        }
        if self.config.apply == Apply::Commit && new.apply == Apply::Immediate {
            self.push_all();
        }
        self.config.mirror = new.mirror;
        self.config.apply = new.apply;
        self.config.purge_after = new.purge_after;
        self.kernel.reconcile();
        Ok(restart)
    }

    /// Writes everything that peers own into the kernel.
    fn push_all(&mut self) {
        for (id, peer) in self.replica.peers.iter().enumerate() {
            if !self.replica.is_fenced(id) {
                let slots: Vec<u32> = peer.inbound.store.live().map(|(i, _)| i).collect();
                self.commit.push(&self.replica, id, &slots);
            }
        }
    }
}

fn transport(config: &Config, keys: Keys) -> Result<(Transport, u64)> {
    let incarnation = u64::from_be_bytes(key::random()?);
    let mut transport = Transport::new(keys.private, incarnation, config.peer_timeout);
    for (peer, keys) in config.peers.iter().zip(keys.peers) {
        let mut endpoints: Vec<_> = peer.endpoints.iter().copied().map(Some).collect();
        endpoints.resize(config.links.len(), None);
        transport.add_peer(PeerSettings { keys, endpoints });
    }
    Ok((transport, incarnation))
}

fn replica(config: &Config, incarnation: u64, links: &[Udp]) -> Result<Replica> {
    // A datagram costs the kernel about 2,300 bytes of buffer; keep half for
    // everything that is no data.
    let buffer = links.iter().map(|l| l.buffer).min().unwrap_or(0);
    let share = buffer / 4608 / config.peers.len().max(1);
    let mut replica = Replica::new(Settings {
        name: config.node.clone(),
        incarnation,
        seed: Seed::from_bytes(key::random()?),
        limit: config.max_entries,
        credit: u32::try_from(share.clamp(16, 4096))?,
    });
    for _ in &config.peers {
        replica.add_peer();
    }
    replica.hold(true);
    Ok(replica)
}
