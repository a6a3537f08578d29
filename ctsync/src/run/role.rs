//! Roles: who owns the states.
//!
//! A node that lost its role keeps its entries mirrored until a successor
//! has announced itself, which it does only once it has committed them. So
//! it does not matter which of two nodes hears of the change first.

use super::{Daemon, SECOND};
use crate::record;
use crate::replica::message::Role;
use anyhow::Result;
use std::time::Duration;

/// What a role change leaves to be done.
#[derive(Debug, Default)]
pub struct State {
    /// Somebody else owns the states: the kernel's events are not mirrored.
    pub released: bool,
    stale: Vec<Vec<u8>>,
    purge_at: Option<Duration>,
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
        if self.role.purge_at.is_some_and(|at| at <= now) {
            self.role.purge_at = None;
            self.purge(now)?;
        }
        Ok(())
    }

    /// Gives the entries up; what the kernel still has of them is stale.
    fn release(&mut self, now: Duration) {
        let own = &self.replica.own;
        self.role.stale = own.live().map(|(_, s)| own.bytes(s).to_vec()).collect();
        self.role.purge_at = Some(now + self.config.purge_after);
        self.role.released = true;
        self.tracker.paused = true;
        self.replica.clear(now);
    }

    /// Deletes stale entries from the kernel, unless a peer's state has been
    /// installed in their place.
    fn purge(&mut self, now: Duration) -> Result<()> {
        let stale = std::mem::take(&mut self.role.stale);
        let gone: Vec<(&[u8], Option<u32>)> = stale
            .iter()
            .map(Vec::as_slice)
            .filter(|b| {
                !record::split(b)
                    .is_ok_and(|s| crate::kernel::track::is_foreign(&self.replica, s.key))
            })
            .map(|b| (b, None))
            .collect();
        let (count, deleted) = (stale.len(), gone.len());
        let done = self.commit.delete(&gone);
        if !self.kernel.took(done)? {
            self.role.stale = stale;
            self.role.purge_at = Some(now + SECOND);
            return Ok(());
        }
        tracing::info!(stale = count, deleted, "stale states were deleted");
        Ok(())
    }
}
