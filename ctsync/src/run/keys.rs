//! Keys, at the start and when the configuration is read again.

use crate::config::{Config, Peer};
use crate::transport::key::Secret;
use crate::transport::{PeerKeys, Transport};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

/// Every key that a configuration names.
#[derive(Debug)]
pub(super) struct Keys {
    pub private: Secret,
    /// Of each peer, in the configuration's order.
    pub peers: Vec<PeerKeys>,
}

impl Keys {
    /// Reads them all, or none.
    ///
    /// # Errors
    /// One can't be read, or is of this node and a peer.
    pub fn read(config: &Config) -> Result<Self> {
        let private = secret(&config.private_key)?;
        let own = private.public();
        if let Some(peer) = config
            .peers
            .iter()
            .find(|p| p.public_keys().any(|k| k == own))
        {
            bail!("peer {} has this node's own public key", peer.name);
        }
        let peers = config.peers.iter().map(of_peer).collect::<Result<_>>()?;
        Ok(Self { private, peers })
    }
}

fn secret(path: &Path) -> Result<Secret> {
    Secret::read(path).with_context(|| format!("reading key {}", path.display()))
}

fn of_peer(peer: &Peer) -> Result<PeerKeys> {
    Ok(PeerKeys {
        public: peer.public_key,
        next_public: peer.next_public_key,
        psk: peer.psk_file.as_deref().map(secret).transpose()?,
        next_psk: peer.next_psk_file.as_deref().map(secret).transpose()?,
    })
}

/// Gives the link keys that are new, by the peers' names: `running` is what
/// the daemon started with. Its sessions stay in use until others are made.
pub(super) fn replace(
    transport: &mut Transport,
    running: &Config,
    new: &Config,
    keys: Keys,
    now: Duration,
) {
    if transport.set_private(keys.private, now) {
        let public = transport.public();
        tracing::info!(%public, "this node has another key");
    }
    for (peer, keys) in new.peers.iter().zip(keys.peers) {
        let id = running.peers.iter().position(|p| p.name == peer.name);
        if id.is_some_and(|id| transport.set_peer_keys(id, keys, now)) {
            tracing::info!(peer = peer.name, "the peer has other keys");
        }
    }
}
