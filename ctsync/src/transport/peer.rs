//! A peer: its sessions, and which of its lives it is in.

use super::key::Public;
use super::path::Paths;
use super::peer_keys::{PeerKeys, Tries};
use super::session::Session;
use super::{EXPIRE, HANDSHAKE_RETRY, REKEY, REKEY_RESPONDER, RETIRED};
use snow::HandshakeState;
use std::collections::VecDeque;
use std::time::Duration;

pub(super) struct Attempt {
    pub(super) noise: HandshakeState,
    /// Whom we take the peer for.
    pub(super) public: Public,
    pub(super) local: u32,
}

pub(super) struct Peer {
    pub(super) keys: PeerKeys,
    pub(super) tries: Tries,
    /// Keys have changed, and no session has been made since.
    pub(super) renew: bool,
    pub(super) paths: Paths,
    /// The session in use, those that may still carry frames, and one that
    /// the peer has yet to confirm.
    pub(super) current: Option<Session>,
    pub(super) previous: VecDeque<Session>,
    pub(super) unconfirmed: Option<Session>,
    pub(super) attempt: Option<Attempt>,
    pub(super) retry_at: Duration,
    pub(super) retry: Duration,
    pub(super) ping_at: Duration,
    pub(super) heard: Option<Duration>,
    pub(super) up: bool,
    pub(super) incarnation: Option<u64>,
    pub(super) last_count: u64,
    pub(super) retired: VecDeque<u64>,
}

impl Peer {
    pub(super) fn has_seen(&self, incarnation: u64, count: u64) -> bool {
        let known = self.incarnation == Some(incarnation);
        (known && count <= self.last_count) || self.retired.contains(&incarnation)
    }

    /// Of the incarnation we know, remember the count at once; of another
    /// one only once it is confirmed, for anybody can replay.
    pub(super) fn pending_count(&mut self, incarnation: u64, count: u64) {
        if self.incarnation == Some(incarnation) {
            self.last_count = count;
        }
    }

    /// The peer has proved that it has the session's keys. Of another
    /// incarnation, it has to be announced.
    pub(super) fn confirm(&mut self, session: Session, now: Duration) {
        if self.adopt(session, now) {
            self.up = false;
        }
    }

    /// Makes `session` the one in use; true if its peer is another
    /// incarnation than the one before.
    fn adopt(&mut self, session: Session, now: Duration) -> bool {
        let changed = self.incarnation != Some(session.incarnation);
        if changed {
            if let Some(old) = self.incarnation.replace(session.incarnation) {
                self.retired.push_back(old);
                if self.retired.len() > RETIRED {
                    self.retired.pop_front();
                }
            }
            self.last_count = 0;
            self.previous.clear();
            self.current = None;
        }
        if let Some(old) = self.current.replace(session) {
            self.previous.push_front(old);
            self.previous.truncate(2);
        }
        self.attempt = None;
        self.tries = Tries::default();
        self.renew = false;
        self.retry = HANDSHAKE_RETRY;
        self.ping_at = now;
        changed
    }

    /// Keys are others: asks for a new session, as if for the first time.
    pub(super) fn renew(&mut self, now: Duration) {
        self.attempt = None;
        self.tries = Tries::default();
        self.renew = true;
        self.retry = HANDSHAKE_RETRY;
        self.retry_at = now;
    }

    pub(super) fn expire(&mut self, now: Duration) {
        let alive = |s: &Session| now < s.born + EXPIRE;
        self.previous.retain(alive);
        self.current = self.current.take().filter(alive);
        self.unconfirmed = self.unconfirmed.take().filter(alive);
    }

    /// Without keys, with old or other ones, or with a silent peer.
    pub(super) fn wants_handshake(&self, now: Duration) -> bool {
        let Some(session) = &self.current else {
            return true;
        };
        let age = if session.initiator {
            REKEY
        } else {
            REKEY_RESPONDER
        };
        !self.up || self.renew || now >= session.born + age
    }
}
