//! Opens everything that a daemon needs.

use super::keys::Keys;
use super::{
    ALARM, ANSWERS, CONTROL, DATAGRAM, DUMPS, Daemon, EVENTS, FIRST_LINK, METRICS, SIGNALS,
    restrict, role,
};
use crate::commit::Commit;
use crate::config::{Apply, Config};
use crate::hash::Seed;
use crate::kernel::filter::Filter;
use crate::kernel::hold::HoldSet;
use crate::kernel::track::Tracker;
use crate::kernel::{Kernel, sysctl};
use crate::replica::{Replica, Settings};
use crate::transport::key;
use crate::transport::{self, PeerSettings, Transport};
use crate::udp::Udp;
use anyhow::{Context, Result};
use daemon::metrics::Exporter;
use daemon::signal::Signals;
use daemon::{Alarm, Reactor, Server, sandbox};
use std::path::Path;
use std::time::{Duration, Instant};

impl Daemon {
    pub(super) fn start(config: Config, config_path: &Path) -> Result<Self> {
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
        let mut kernel = Kernel::open(&config.kernel, &tracker.filter, &commit.portids())?;
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
        let (reactor, alarm) = (Reactor::new()?, Alarm::new()?);
        reactor.add(&alarm, ALARM)?;
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
            alarm,
            signals,
            server,
            exporter,
            links,
            kernel,
            replica,
            transport,
            commit,
            gone: super::gone::Queue::default(),
            adopted: false,
            fenced: Vec::new(),
            job: None,
            hold,
            monitors: Vec::new(),
            role: role::State::default(),
            datagram: vec![0; DATAGRAM],
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
