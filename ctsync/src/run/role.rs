//! Roles: who owns the states.
//!
//! A node that lost its role keeps its entries mirrored until a successor
//! has announced itself, which it does only once it has committed them. So
//! it does not matter which of two nodes hears of the change first.

use super::{BATCHES_PER_TURN, Daemon, SECOND};
use crate::commit::BATCH;
use crate::kernel::track::is_wanted;
use crate::replica::message::Role;
use anyhow::Result;
use std::time::Duration;

/// What a role change leaves to be done.
#[derive(Debug, Default)]
pub struct State {
    /// Somebody else owns the states: the kernel's events are not mirrored.
    pub released: bool,
    purge: Option<Purge>,
}

/// What this node owned, and is to be deleted from its kernel.
#[derive(Debug)]
struct Purge {
    stale: Vec<Vec<u8>>,
    at: Duration,
    total: usize,
    deleted: usize,
}

impl Daemon {
    /// Owns the states from now on.
    pub(super) fn become_primary(&mut self, now: Duration) {
        self.role = State::default();
        self.tracker.paused = false;
        let epoch = self.replica.highest_epoch().saturating_add(1);
        self.replica.set_role(Role::Primary, epoch, now);
        self.kernel.reconcile();
        self.hold.release();
        tracing::info!(epoch, "this node is primary");
    }

    /// Takes a role other than primary.
    pub(super) fn step_down(&mut self, role: Role, now: Duration) {
        let (old, epoch) = self.replica.role();
        if old != role {
            self.replica.set_role(role, epoch, now);
            tracing::info!(role = role.name(), "role changed");
        }
    }

    /// When there is something to do though nothing comes. What a commit has under way
    /// may be there, and not be known to be: it is waited for.
    pub(super) fn role_deadline(&self) -> Option<Duration> {
        let purge = self.role.purge.as_ref().filter(|_| self.job.is_none());
        purge.map(|purge| purge.at)
    }

    pub(super) fn work_role(&mut self, now: Duration) -> Result<()> {
        if self.job.as_ref().is_some_and(|j| j.takeover) {
            return Ok(());
        }
        // Until the tables have been read, nobody knows what is to be purged.
        if !self.role.released && self.ready {
            if let Some(peer) = self.replica.successor() {
                let name = self.config.peers.get(peer).map_or("", |p| p.name.as_str());
                tracing::info!(successor = name, "states are owned by another node now");
                if self.replica.role().0 != Role::Fault {
                    self.step_down(Role::Backup, now);
                }
                self.release(now);
            }
        }
        if self.role_deadline().is_some_and(|at| at <= now) {
            if let Some(purge) = self.role.purge.take() {
                self.role.purge = self.purge(purge, now)?;
            }
        }
        Ok(())
    }

    /// Gives the entries up; what the kernel still has of them is stale.
    fn release(&mut self, now: Duration) {
        let own = &self.replica.own;
        let stale: Vec<_> = own.live().map(|(_, s)| own.bytes(s).to_vec()).collect();
        self.role.purge = Some(Purge {
            total: stale.len(),
            deleted: 0,
            at: now + self.config.purge_after,
            stale,
        });
        self.role.released = true;
        self.tracker.paused = true;
        self.replica.clear(now);
    }

    /// Deletes a share of the stale entries from the kernel, unless a peer's state has
    /// been installed in their place; returns what is left.
    fn purge(&mut self, mut purge: Purge, now: Duration) -> Result<Option<Purge>> {
        for _ in 0..BATCHES_PER_TURN {
            let rest = purge.stale.len().saturating_sub(BATCH);
            let batch = purge.stale.iter().skip(rest).map(Vec::as_slice);
            let batch = batch.filter(|r| !is_wanted(&self.replica, r));
            let told = self.commit.delete_if_there(&batch.collect::<Vec<_>>());
            let told = told.map(|count| purge.deleted += count);
            if !self.kernel.took(told)? {
                purge.at = now + SECOND;
                return Ok(Some(purge));
            }
            purge.stale.truncate(rest);
            if rest == 0 {
                let (stale, deleted) = (purge.total, purge.deleted);
                tracing::info!(stale, deleted, "stale states were deleted");
                return Ok(None);
            }
        }
        Ok(Some(purge))
    }
}
