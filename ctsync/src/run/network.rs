//! Datagrams of peers, and what follows from them for the kernel.

use super::gone::Gone;
use super::{BATCHES_PER_TURN, DATAGRAMS_PER_TURN, Daemon, IP_UDP, SENDS_PER_TURN};
use crate::commit::{self, BATCH};
use crate::config::Apply;
use crate::kernel::track::{self, Inlet, Tracker};
use crate::record;
use crate::replica::Replica;
use crate::transport::{self, Outgoing, frame};
use std::time::Duration;

/// Entries of peers that wait to be deleted while the kernel has no memory for it.
const MAX_GONE: usize = 1 << 16;
/// For deletions at the end; the unit gives the daemon 10 s to stop.
const LAST: Duration = Duration::from_secs(5);

impl Daemon {
    pub(super) fn on_link(&mut self, link: usize) {
        let mut buf = std::mem::take(&mut self.datagram);
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
        self.datagram = buf;
    }

    pub(super) fn on_transport(&mut self, event: transport::Event, plain: &[u8], now: Duration) {
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

    /// What a peer sends while it is fenced is not written into the kernel: it
    /// may be the successor, and its hello, which says so, come late.
    pub(super) fn work_fenced(&mut self) {
        let peers = self.replica.peers.len();
        self.fenced.resize(peers, false);
        for id in 0..peers {
            let is = self.replica.is_fenced(id);
            let was = self.fenced.get_mut(id);
            let was = was.is_some_and(|was| std::mem::replace(was, is));
            if was && !is && self.config.apply == Apply::Immediate {
                self.push_all_of(id);
            }
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
            self.apply(id, inlet, was_synced, now);
        }
    }

    fn apply(&mut self, peer: usize, inlet: Inlet, was_synced: bool, now: Duration) {
        self.commit.push(&self.replica, peer, &inlet.put);
        self.commit.push_later(&self.replica, peer, &inlet.later);
        let own = &self.replica.own;
        let gone = inlet.delete.into_iter().filter_map(|(record, deadline)| {
            Some(Gone {
                key: own.key(record::split(&record).ok()?.key),
                record,
                deadline,
                was_synced,
            })
        });
        self.unapply(gone.collect(), now);
    }

    /// Notes what peers no longer have, to be deleted after a share of what is new was
    /// written: that is more urgent. An expectation may be in a new one's way, so it
    /// does not wait for that. What the kernel has no memory for waits, and all that
    /// comes behind it.
    fn unapply(&mut self, gone: Vec<Gone>, now: Duration) {
        if gone.is_empty() {
            return;
        }
        not_ours(&mut self.tracker, &gone);
        if self.gone.is_short() {
            return self.hold_gone(gone);
        }
        let is_expect = |g: &Gone| record::is_expect(&g.record);
        let (first, rest): (Vec<_>, Vec<_>) = gone.into_iter().partition(is_expect);
        first.iter().for_each(|gone| self.gone.remove(gone.key));
        if self.try_delete(first, now) {
            rest.into_iter().for_each(|gone| self.gone.push(gone));
        } else {
            self.hold_gone(rest);
        }
    }

    /// Keeps these, up to a limit, until the kernel has memory. What is kept already
    /// stays.
    fn hold_gone(&mut self, gone: Vec<Gone>) {
        let most = self.gone.len().max(MAX_GONE);
        gone.into_iter().for_each(|gone| self.gone.push(gone));
        if self.gone.len() > most {
            self.gone.truncate(most);
            // The rest is found in the tables.
            self.kernel.reconcile();
        }
    }

    /// Deletes a share of what was noted.
    pub(super) fn work_gone(&mut self, now: Duration) {
        if self.gone.is_due() {
            self.unapply_again(now);
        }
        if self.gone.is_empty() && std::mem::take(&mut self.adopted) {
            // Expectations of it may have come, and were nobody's.
            self.kernel.reconcile();
        }
        for peer in &mut self.replica.peers {
            peer.inbound.set_busy(self.gone.may_live(), now);
        }
        self.commit.room_comes = !self.gone.is_empty();
    }

    /// Deletes all that was noted before the daemon ends: what is left of a peer would
    /// be taken for its own at the next start.
    pub(super) fn delete_all_gone(&mut self) {
        let until = self.now() + LAST;
        self.gone.try_again();
        while self.gone.is_due() && self.now() < until {
            self.unapply_again(self.now());
        }
        if !self.gone.is_empty() {
            let left = self.gone.len();
            tracing::warn!(left, "connections that peers no longer have are left");
        }
    }

    /// Deletes a share of what has not been deleted yet, up to where the kernel has no
    /// memory for it.
    pub(super) fn unapply_again(&mut self, now: Duration) {
        self.gone.try_again();
        for _ in 0..BATCHES_PER_TURN {
            let batch = self.gone.take(BATCH);
            if !self.try_delete(batch, now) {
                return;
            }
        }
    }

    /// False if the kernel has no memory for it: then it waits.
    fn try_delete(&mut self, gone: Vec<Gone>, now: Duration) -> bool {
        let deleted = self.delete_gone(&gone, now);
        match self.kernel.took(deleted) {
            Ok(true) => {}
            Ok(false) => {
                self.gone.put_back(gone);
                return false;
            }
            Err(e) => tracing::warn!(error = %e, "deleting from the kernel"),
        }
        true
    }

    /// A peer has no such entries any more. Ours and other peers' stay, and
    /// so does a connection whose packets come through this node. It is ours
    /// now. If the peer has been away, they may have come for a while: what
    /// it says of its tables then may only mean that it has booted.
    fn delete_gone(&mut self, gone: &[Gone], now: Duration) -> Result<(), netfilter::Error> {
        // What a commit has under way may be there, and not be known to be.
        let comes = |r: &[u8]| self.commit.is_running() && track::comes(&self.replica, r);
        let gone: Vec<&Gone> = gone
            .iter()
            .filter(|g| !track::is_wanted(&self.replica, &g.record) && !comes(&g.record))
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let records: Vec<&[u8]> = gone.iter().map(|g| g.record.as_slice()).collect();
        let there = self.commit.look(&records)?;
        let mut delete = Vec::new();
        for (gone, there) in gone.into_iter().zip(there) {
            let record = gone.record.as_slice();
            let Some(flow) = there else {
                if record::is_expect(record) {
                    delete.push((record, None));
                }
                continue;
            };
            let left = u64::from(gone.deadline).saturating_sub(now.as_secs());
            let used =
                commit::is_used(&flow, left) || (!gone.was_synced && commit::was_used(&flow));
            if used && !self.tracker.paused {
                let adopted = self.tracker.adopt(&mut self.replica, &flow, now);
                self.adopted |= adopted && flow.help.is_some();
            } else {
                delete.push((record, flow.id));
            }
        }
        self.commit.delete(&delete)
    }

    pub(super) fn send_all(&mut self, out: Vec<Outgoing>) {
        for o in out {
            let sent = self
                .links
                .get(o.link)
                .is_some_and(|l| l.send(o.to, &o.bytes));
            self.send_failures += u64::from(!sent);
        }
    }

    pub(super) fn transmit(&mut self, id: usize) {
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
}

/// A dump that runs may still show what is to be deleted: it is nobody's.
pub(super) fn not_ours<'g>(tracker: &mut Tracker, gone: impl IntoIterator<Item = &'g Gone>) {
    for gone in gone {
        tracker.on_deletion(gone.key);
    }
}
