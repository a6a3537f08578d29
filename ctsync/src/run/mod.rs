//! The daemon: one thread, one loop.

pub mod answer;
mod gone;
mod job;
mod keys;
mod network;
mod pace;
mod reload;
mod restrict;
mod role;
mod start;
mod status;

use crate::commit::Commit;
use crate::config::{Apply, Config};
use crate::kernel::Kernel;
use crate::kernel::hold::HoldSet;
use crate::kernel::track::{Note, Tracker};
use crate::render;
use crate::replica::Replica;
use crate::replica::message::Role;
use crate::transport::{self, Transport};
use crate::udp::Udp;
use anyhow::Result;
use daemon::metrics::Exporter;
use daemon::signal::{Request, Signals};
use daemon::{Alarm, Reactor, Server, notify};
use job::Job;
use netfilter::conntrack::Change;
use pace::Pace;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const EVENTS: u64 = 1;
const DUMPS: u64 = 2;
const ANSWERS: u64 = 3;
const CONTROL: u64 = 4;
const METRICS: u64 = 5;
const SIGNALS: u64 = 6;
const ALARM: u64 = 7;
const FIRST_LINK: u64 = 16;

/// Datagrams taken per link and turn.
const DATAGRAMS_PER_TURN: usize = 512;
/// Datagrams sent per peer and turn.
const SENDS_PER_TURN: usize = 256;
/// Batches of messages to the kernel in one turn, and as many of deletions.
const BATCHES_PER_TURN: usize = 32;
/// Bytes of the longest datagram there can be.
const DATAGRAM: usize = 1 << 16;
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
    alarm: Alarm,
    signals: Signals,
    server: Server,
    exporter: Option<Exporter>,
    links: Vec<Udp>,
    kernel: Kernel,
    tracker: Tracker,
    replica: Replica,
    transport: Transport,
    commit: Commit,
    /// What is to be deleted.
    gone: gone::Queue,
    /// A connection with a helper, of which no peer has anything, was taken over.
    adopted: bool,
    /// Peers whose states may not replace ours.
    fenced: Vec<bool>,
    job: Option<Job>,
    hold: HoldSet,
    monitors: Vec<daemon::ClientId>,
    role: role::State,
    datagram: Vec<u8>,
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
    daemon.delete_all_gone();
    result
}

impl Daemon {
    /// Monotonic time since the start.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn serve(&mut self) -> Result<()> {
        let mut tokens = Vec::new();
        let mut pace = Pace::new(self.now());
        while !self.stop {
            let now = self.now();
            let timeout = match self.deadline() {
                at if at <= now => Some(Duration::ZERO),
                at => {
                    self.alarm.set(at, now)?;
                    None
                }
            };
            tokens.clear();
            self.reactor.wait(timeout, &mut tokens)?;
            let events = self.turn(&tokens)?;
            if let Some(pause) = pace.pause(events, self.now()) {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    /// When there is something to do though nothing comes.
    fn deadline(&self) -> Duration {
        if self.commit.is_busy() || self.gone.is_due() {
            return Duration::ZERO;
        }
        let peers = (0..self.replica.peers.len()).filter_map(|i| self.replica.deadline(i));
        let next = peers
            .chain(self.tracker.deadline())
            .chain(self.transport.deadline(self.now()))
            .chain(self.role_deadline());
        next.fold(self.second_at, Duration::min)
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
                    let (tracker, replica) = (&mut self.tracker, &mut self.replica);
                    if self.kernel.on_dump(tracker, replica, now)? {
                        self.reactor.add(&self.kernel.dumps, DUMPS)?;
                    }
                }
                ANSWERS => {
                    self.kernel
                        .on_answers(&mut self.tracker, &mut self.replica, now)?;
                }
                CONTROL => self.on_control()?,
                METRICS => self.on_metrics()?,
                SIGNALS => self.on_signals()?,
                ALARM => self.alarm.ran_out()?,
                link => self.on_link(usize::try_from(link - FIRST_LINK)?),
            }
        }
        self.work()?;
        Ok(events)
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
        let mut dropped = BTreeMap::<_, Vec<_>>::new();
        for (peer, slot) in std::mem::take(&mut self.tracker.dropped) {
            dropped.entry(peer).or_default().push(slot);
        }
        if self.config.apply == Apply::Immediate {
            for (peer, slots) in dropped {
                self.commit.push(&self.replica, peer, &slots);
            }
        }
    }

    /// Does everything that is due.
    fn work(&mut self) -> Result<()> {
        let now = self.now();
        self.work_peers_first(now);
        let (tracker, replica) = (&mut self.tracker, &mut self.replica);
        if self.kernel.poll(tracker, replica, now)? {
            network::not_ours(tracker, self.gone.iter());
        }
        let asks = self.tracker.take_asks(now);
        if !asks.is_empty() {
            self.kernel.ask(&asks)?;
        }
        self.tracker.forget_withdrawn(&mut self.replica, now);
        self.work_monitors();
        self.work_dropped();
        self.work_fenced();
        self.work_commit(now)?;
        self.work_gone(now);
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

    fn every_second(&mut self, now: Duration) -> Result<()> {
        notify::alive();
        if self.helpers_at <= now {
            self.helpers_at = now + self.config.kernel.background_dump;
            self.kernel.look_at_helpers()?;
        }
        self.kernel.look_for_drops()?;
        self.commit.try_again(&self.replica);
        if !self.gone.is_due() {
            self.unapply_again(now);
        }
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
}
