//! What the daemon says of itself.

use super::Daemon;
use crate::replica::message::Role;
use crate::store::Store;
use daemon::metrics::{Kind, Metric};
use serde_json::{Map, Value, json};
use std::time::Duration;

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Daemon {
    /// The answer to `status`.
    pub(super) fn status(&self, now: Duration) -> Value {
        let (role, epoch) = self.replica.role();
        let copies = || self.replica.peers.iter().map(|p| &p.inbound.store);
        let (ok, why) = self.check(now);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.config.node,
            "role": role.name(),
            "epoch": epoch,
            "in_sync": ok,
            "in_sync_for_ms": self.in_sync.filter(|(was, _)| *was == ok).map_or(0, |(_, since)| millis(now.saturating_sub(since))),
            "why": why,
            "uptime_seconds": now.as_secs(),
            "public_key": self.transport.public().to_string(),
            "internal": {
                "flows": self.replica.own.flows(),
                "expectations": self.replica.own.expectations(),
                "memory_bytes": self.replica.own.memory(),
            },
            "external": {
                "flows": copies().map(Store::flows).sum::<usize>(),
                "expectations": copies().map(Store::expectations).sum::<usize>(),
                "memory_bytes": copies().map(Store::memory).sum::<usize>(),
            },
            "peers": (0..self.replica.peers.len()).map(|i| self.peer(i, now)).collect::<Vec<_>>(),
            "counters": self.counters(),
        })
    }

    fn peer(&self, id: usize, now: Duration) -> Value {
        let Some((config, peer)) = self.config.peers.get(id).zip(self.replica.peers.get(id)) else {
            return Value::Null;
        };
        let (role, epoch) = peer.inbound.role();
        let paths = self.transport.paths(id).iter().enumerate().map(|(i, p)| {
            json!({
                "address": p.address,
                "heard_ms": p.heard.map(|h| millis(now.saturating_sub(h))),
                "rtt_us": p.rtt.map(|r| u64::try_from(r.as_micros()).unwrap_or(u64::MAX)),
                "active": self.transport.active_path(id, now) == Some(i),
            })
        });
        json!({
            "name": config.name,
            "state": if self.replica.is_connected(id) { "up" } else { "down" },
            "synced": peer.inbound.is_synced(now) && peer.outbound.is_peer_synced(now),
            "lag_ms": millis(peer.outbound.lag(now)),
            "role": role.name(),
            "epoch": epoch,
            "public_key": self.transport.peer_public(id).map(ToString::to_string),
            "protocol": peer.inbound.hello.as_ref().map(|hello| hello.version),
            "fenced": self.replica.is_fenced(id),
            "copy_synced": peer.inbound.is_synced(now),
            "copy_synced_for_ms": millis(now.saturating_sub(peer.inbound.since)),
            "peer_synced": peer.outbound.is_peer_synced(now),
            "flows": peer.inbound.store.flows(),
            "expectations": peer.inbound.store.expectations(),
            "refused": peer.inbound.faults.refused,
            "queued": peer.outbound.queued(),
            "links": paths.collect::<Vec<_>>(),
        })
    }

    /// Whether this node is in sync, and if not, why.
    pub(super) fn check(&self, now: Duration) -> (bool, Vec<String>) {
        let mut why = Vec::new();
        let primary = self.replica.role().0 == Role::Primary;
        if self.replica.role().0 == Role::Fault {
            why.push("this node is in fault".to_owned());
        }
        if !self.ready {
            why.push("the kernel's tables have not been read yet".to_owned());
        } else if self.kernel.is_behind() && !self.role.released {
            why.push("the kernel's tables are being read again".to_owned());
        } else if self.kernel.backlog && !self.role.released {
            why.push("more events wait than can be read at once".to_owned());
        }
        for (id, peer) in self.replica.peers.iter().enumerate() {
            let name = self.config.peers.get(id).map_or("", |p| p.name.as_str());
            if !self.replica.is_connected(id) {
                if !primary && !peer.inbound.was_synced() {
                    why.push(format!(
                        "{name} can't be reached, and its copy here is not complete"
                    ));
                }
            } else if !peer.inbound.is_synced(now) || self.backlog != 0 {
                why.push(format!("the copy of {name} here is not complete"));
            } else if !primary && !peer.outbound.is_peer_synced(now) {
                why.push(format!("{name} has no complete copy of this node"));
            }
        }
        (why.is_empty(), why)
    }

    /// Since when this node has been in sync, or not.
    pub(super) fn note_sync(&mut self, now: Duration) {
        let (ok, why) = self.check(now);
        if self.in_sync.is_none_or(|(was, _)| was != ok) {
            if ok {
                tracing::info!("in sync");
            } else if self.in_sync.is_some() {
                tracing::warn!(why = why.join("; "), "not in sync");
            }
            self.in_sync = Some((ok, now));
        }
    }

    pub(super) fn one_line(&self, now: Duration) -> String {
        let (ok, why) = self.check(now);
        let copies = self.replica.peers.iter().map(|p| p.inbound.store.flows());
        let state = if ok {
            "in sync".to_owned()
        } else {
            format!("not in sync: {}", why.join("; "))
        };
        format!(
            "{}, {state}; {} own, {} mirrored connections",
            self.replica.role().0.name(),
            self.replica.own.flows(),
            copies.sum::<usize>()
        )
    }

    /// Every counter by name.
    pub(super) fn counters(&self) -> Map<String, Value> {
        self.figures()
            .into_iter()
            .map(|(name, _, value)| (name.to_owned(), value.into()))
            .collect()
    }

    fn figures(&self) -> Vec<(&'static str, &'static str, u64)> {
        let t = &self.tracker.counts;
        let r = &self.transport.refusals;
        let sum = |f: fn(&crate::replica::Peer) -> u64| self.replica.peers.iter().map(f).sum();
        vec![
            ("events", "Events taken from the kernel", t.events),
            (
                "events_filtered",
                "Events of what is not mirrored",
                t.filtered,
            ),
            (
                "events_malformed",
                "Kernel messages that could not be read",
                self.kernel.malformed,
            ),
            (
                "overruns",
                "Times the kernel dropped events",
                self.kernel.overruns,
            ),
            (
                "events_dropped",
                "Events the kernel dropped; dumps made up for them",
                self.kernel.dropped,
            ),
            (
                "kernel_shortages",
                "Times the kernel had no memory for a question or an answer",
                self.kernel.shortages,
            ),
            (
                "reconciliations",
                "Dumps that were compared with the cache",
                t.reconciled,
            ),
            ("reconciled_found", "Entries found only by a dump", t.found),
            (
                "reconciled_vanished",
                "Entries gone without an event",
                t.vanished,
            ),
            (
                "withdrawn",
                "Connections mirrored on although the kernel dropped them",
                t.withdrawn,
            ),
            ("unencodable", "Entries no record can hold", t.unencodable),
            ("cache_full", "Own entries there was no room for", t.full),
            (
                "written_entries",
                "Entries of peers written into the kernel",
                self.commit.written,
            ),
            (
                "write_failures",
                "Entries of peers that the kernel refused",
                self.commit.refused,
            ),
            (
                "sent_datagrams",
                "Data datagrams sent",
                sum(|p| p.outbound.sent),
            ),
            ("sent_entries", "Entries sent", sum(|p| p.outbound.items)),
            (
                "lost_datagrams",
                "Data datagrams that had to be made up for",
                sum(|p| p.outbound.lost),
            ),
            (
                "send_failures",
                "Datagrams that could not be sent",
                self.send_failures,
            ),
            (
                "received_entries",
                "Entries received",
                sum(|p| p.inbound.items),
            ),
            (
                "received_stale",
                "Datagrams that came twice or too late",
                sum(|p| p.inbound.faults.stale),
            ),
            (
                "received_malformed",
                "Messages that could not be read",
                self.replica.malformed + sum(|p| p.inbound.faults.malformed),
            ),
            (
                "received_refused",
                "Records that could not be used",
                sum(|p| p.inbound.faults.refused),
            ),
            (
                "received_full",
                "Records there was no room for",
                sum(|p| p.inbound.faults.full),
            ),
            (
                "diverged",
                "Copies found to differ",
                sum(|p| p.inbound.faults.diverged),
            ),
            (
                "refused_garbage",
                "Datagrams that were no frames",
                r.garbage,
            ),
            ("refused_version", "Frames of another version", r.version),
            (
                "refused_unknown_key",
                "Handshakes with an unknown or wrong key",
                r.unknown_key,
            ),
            (
                "refused_unknown_session",
                "Frames of unknown sessions",
                r.unknown_session,
            ),
            (
                "refused_replayed",
                "Frames or handshakes that came twice",
                r.replayed,
            ),
            ("refused_forged", "Frames that no key fits", r.forged),
            (
                "refused_limited",
                "Handshakes beyond the rate limit",
                r.limited,
            ),
        ]
    }

    /// Everything as metrics.
    pub(super) fn metrics(&self, now: Duration) -> Vec<Metric> {
        let counter = |(name, help, value)| {
            Metric::single(format!("ctsync_{name}"), help, Kind::Counter, value)
        };
        let mut all: Vec<Metric> = self.figures().into_iter().map(counter).collect();
        let entries = |name: &str, help, f: fn(&Store) -> usize| {
            let label = |v: &str| vec![("cache", v.to_owned())];
            let external: usize = self.replica.peers.iter().map(|p| f(&p.inbound.store)).sum();
            Metric {
                name: name.to_owned(),
                help,
                kind: Kind::Gauge,
                samples: vec![
                    (label("internal"), f(&self.replica.own) as u64),
                    (label("external"), external as u64),
                ],
            }
        };
        all.push(entries(
            "ctsync_flows",
            "Connections in the cache",
            Store::flows,
        ));
        all.push(entries(
            "ctsync_expectations",
            "Expectations in the cache",
            Store::expectations,
        ));
        all.push(entries(
            "ctsync_memory_bytes",
            "Memory of the cache",
            Store::memory,
        ));
        let (ok, _) = self.check(now);
        all.push(Metric::single(
            "ctsync_in_sync",
            "1 if this node is in sync",
            Kind::Gauge,
            u64::from(ok),
        ));
        let per_peer = |name: &str, help, f: &dyn Fn(usize, &crate::replica::Peer) -> u64| Metric {
            name: name.to_owned(),
            help,
            kind: Kind::Gauge,
            samples: self
                .config
                .peers
                .iter()
                .zip(self.replica.peers.iter().enumerate())
                .map(|(c, (i, p))| (vec![("peer", c.name.clone())], f(i, p)))
                .collect(),
        };
        all.push(per_peer(
            "ctsync_peer_up",
            "1 if the peer can be reached",
            &|i, _| u64::from(self.replica.is_connected(i)),
        ));
        all.push(per_peer(
            "ctsync_peer_synced",
            "1 if both copies are complete",
            &|_, p| u64::from(p.inbound.is_synced(now) && p.outbound.is_peer_synced(now)),
        ));
        all.push(per_peer(
            "ctsync_peer_lag_milliseconds",
            "Age of the oldest unconfirmed change",
            &|_, p| millis(p.outbound.lag(now)),
        ));
        all
    }

    pub(super) fn on_metrics(&mut self) -> anyhow::Result<()> {
        let Some(mut exporter) = self.exporter.take() else {
            return Ok(());
        };
        let now = self.now();
        let result = exporter.poll(|| self.metrics(now));
        self.exporter = Some(exporter);
        Ok(result?)
    }
}
