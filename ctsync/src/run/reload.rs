//! A configuration that is read again.

use super::Daemon;
use super::keys::{self, Keys};
use crate::config::{Apply, Config};
use crate::kernel::filter::Filter;
use crate::kernel::hold::HoldSet;
use daemon::notify;

impl Daemon {
    /// Takes over what can change while running. The rest needs a restart,
    /// and says so.
    pub(super) fn reload(&mut self) {
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
            .set_filter(&self.tracker.filter, &self.commit.portids())?;
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
        for id in 0..self.replica.peers.len() {
            if !self.replica.is_fenced(id) {
                self.push_all_of(id);
            }
        }
    }

    pub(super) fn push_all_of(&mut self, id: usize) {
        let peer = self.replica.peers.get(id);
        let live = peer.into_iter().flat_map(|p| p.inbound.store.live());
        let slots: Vec<u32> = live.map(|(i, _)| i).collect();
        self.commit.push(&self.replica, id, &slots);
    }
}
