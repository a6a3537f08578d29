//! The link: authenticated and encrypted datagrams to known peers over UDP.
//!
//! Noise `IKpsk2`: both sides know each other's public key. Whoever starts
//! first begins; a session counts once its peer has proved that it has the
//! keys, so a replayed handshake replaces nothing. Nothing is answered to a
//! stranger. No sockets and no clock here: datagrams and `now` in, datagrams
//! and events out.

pub mod frame;
mod handshake;
pub mod key;
pub mod noise;
pub mod path;
mod peer;
pub mod peer_keys;
pub mod session;

use frame::{Frame, NotFrame};
use key::{Public, Secret};
use noise::wiping_stack;
use path::{Path, Paths};
use peer::Peer;
pub use peer_keys::PeerKeys;
use peer_keys::Tries;
use session::{Refused, Session};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

const REKEY: Duration = Duration::from_secs(120);
const REKEY_RESPONDER: Duration = Duration::from_secs(150);
const EXPIRE: Duration = Duration::from_secs(240);
/// Between attempts at a handshake: quick at first, then slow.
const HANDSHAKE_RETRY: Duration = Duration::from_millis(300);
const HANDSHAKE_RETRY_MAX: Duration = Duration::from_secs(2);
const PING_EVERY: Duration = Duration::from_millis(500);
const RETIRED: usize = 64;
/// Handshakes per second that we compute for.
const HANDSHAKE_RATE: u32 = 50;
const HANDSHAKE_BURST: u32 = 100;

const PING: u8 = 0xf0;
const PONG: u8 = 0xf1;
const BYE: u8 = 0xf2;

/// Number of a peer.
pub type PeerId = usize;

/// What the transport tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The peer can be reached; it is new, has restarted or was away.
    Up(PeerId),
    /// The peer can't be reached.
    Down(PeerId),
    /// The content of a frame is in the buffer.
    Message(PeerId),
}

/// Datagrams that were not accepted, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Not frames, or with a wrong check.
    pub garbage: u64,
    /// Of another frame version.
    pub version: u64,
    /// Handshakes of keys that no peer has, or with a wrong pre-shared key.
    pub unknown_key: u64,
    /// Frames of sessions that do not exist.
    pub unknown_session: u64,
    /// Frames or handshakes that came before.
    pub replayed: u64,
    /// Frames that no key fits.
    pub forged: u64,
    /// Handshakes beyond the rate we compute for.
    pub limited: u64,
}

/// Who a peer is.
#[derive(Debug, Clone)]
pub struct PeerSettings {
    /// Its keys.
    pub keys: PeerKeys,
    /// Its address on each link.
    pub endpoints: Vec<Option<SocketAddr>>,
}

/// Sessions with all peers.
pub struct Transport {
    private: Secret,
    public: Public,
    incarnation: u64,
    peers: Vec<Peer>,
    handshakes: u64,
    timeout: Duration,
    tokens: u32,
    refilled: Duration,
    /// What was not accepted.
    pub refusals: Refusals,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({} peers)", self.peers.len())
    }
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// On which link.
    pub link: usize,
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

impl Transport {
    /// A transport without peers. A peer that is silent for `timeout` is
    /// down.
    pub fn new(private: Secret, incarnation: u64, timeout: Duration) -> Self {
        Self {
            public: private.public(),
            private,
            incarnation,
            peers: Vec::new(),
            handshakes: 0,
            timeout,
            tokens: HANDSHAKE_BURST,
            refilled: Duration::ZERO,
            refusals: Refusals::default(),
        }
    }

    /// Our public key.
    pub const fn public(&self) -> &Public {
        &self.public
    }

    /// Adds a peer.
    pub fn add_peer(&mut self, settings: PeerSettings) -> PeerId {
        self.peers.push(Peer {
            keys: settings.keys,
            tries: Tries::default(),
            renew: false,
            paths: Paths::new(settings.endpoints),
            current: None,
            previous: VecDeque::new(),
            unconfirmed: None,
            attempt: None,
            retry_at: Duration::ZERO,
            retry: HANDSHAKE_RETRY,
            ping_at: Duration::ZERO,
            heard: None,
            up: false,
            incarnation: None,
            last_count: 0,
            retired: VecDeque::new(),
        });
        self.peers.len() - 1
    }

    /// From now on this node is the owner of `private`. Sessions that there
    /// are stay until the peer has agreed to new ones. False if the key is the
    /// one it has.
    pub fn set_private(&mut self, private: Secret, now: Duration) -> bool {
        let changed = private.bytes() != self.private.bytes();
        if changed {
            self.public = private.public();
            self.private = private;
            self.peers.iter_mut().for_each(|p| p.renew(now));
        }
        changed
    }

    /// From now on the peer has these keys. Sessions with one that is none of
    /// its any more end at once, others once there is a new one. False if the
    /// keys are those it had.
    pub fn set_peer_keys(&mut self, id: PeerId, keys: PeerKeys, now: Duration) -> bool {
        let Some(peer) = self.peers.get_mut(id).filter(|p| p.keys != keys) else {
            return false;
        };
        let known = |session: &Session| keys.is(&session.public);
        peer.previous.retain(known);
        peer.current = peer.current.take().filter(known);
        peer.unconfirmed = peer.unconfirmed.take().filter(known);
        peer.keys = keys;
        peer.renew(now);
        true
    }

    /// The key with which the peer made the session in use.
    pub fn peer_public(&self, id: PeerId) -> Option<&Public> {
        let session = self.peers.get(id)?.current.as_ref()?;
        Some(&session.public)
    }

    /// True if the peer can be reached.
    pub fn is_up(&self, id: PeerId) -> bool {
        self.peers.get(id).is_some_and(|p| p.up)
    }

    /// The ways to the peer.
    pub fn paths(&self, id: PeerId) -> &[Path] {
        self.peers.get(id).map_or(&[], |p| p.paths.all())
    }

    /// The path that carries data now.
    pub fn active_path(&self, id: PeerId, now: Duration) -> Option<usize> {
        self.peers.get(id).and_then(|p| p.paths.active(now))
    }

    /// Seals a message for the peer into `out`; where to send it.
    pub fn seal(
        &mut self,
        id: PeerId,
        plain: &[u8],
        now: Duration,
        out: &mut Vec<u8>,
    ) -> Option<(usize, SocketAddr)> {
        let peer = self.peers.get_mut(id)?;
        let link = peer.paths.active(now)?;
        let to = peer.paths.all().get(link)?.address?;
        peer.current.as_mut()?.seal(plain, out)?;
        Some((link, to))
    }

    /// Takes a datagram; the content of a message is in `plain` afterwards.
    pub fn receive(
        &mut self,
        (link, from): (usize, SocketAddr),
        bytes: &[u8],
        now: Duration,
        plain: &mut Vec<u8>,
        out: &mut Vec<Outgoing>,
        events: &mut Vec<Event>,
    ) {
        match Frame::decode(bytes, &self.public) {
            Err(NotFrame::Version) => self.refusals.version += 1,
            Err(NotFrame::Garbage) => self.refusals.garbage += 1,
            Ok(Frame::Initiation { sender, noise }) => {
                let answer = wiping_stack(|| self.on_initiation(sender, noise, now));
                if let Some(bytes) = answer {
                    out.push(Outgoing {
                        link,
                        to: from,
                        bytes,
                    });
                }
            }
            Ok(Frame::Response {
                sender,
                receiver,
                noise,
            }) => {
                let origin = (link, from);
                wiping_stack(|| {
                    self.on_response(sender, receiver, noise, origin, now, out, events);
                });
            }
            Ok(Frame::Sealed {
                receiver,
                counter,
                sealed,
            }) => {
                let Some(id) = self.open(receiver, counter, sealed, plain) else {
                    return;
                };
                self.on_authentic(id, receiver, (link, from), now, events);
                self.on_content(id, link, now, plain, out, events);
            }
        }
    }

    fn open(
        &mut self,
        receiver: u32,
        counter: u64,
        sealed: &[u8],
        plain: &mut Vec<u8>,
    ) -> Option<PeerId> {
        for (id, peer) in self.peers.iter_mut().enumerate() {
            let sessions = peer.current.iter_mut().chain(&mut peer.previous);
            let mut sessions = sessions.chain(&mut peer.unconfirmed);
            let Some(session) = sessions.find(|s| s.local == receiver) else {
                continue;
            };
            match session.open(counter, sealed, plain) {
                Ok(()) => return Some(id),
                Err(Refused::Replay) => self.refusals.replayed += 1,
                Err(Refused::Forged) => self.refusals.forged += 1,
            }
            return None;
        }
        self.refusals.unknown_session += 1;
        None
    }

    /// The owner of session `local` has proved that it has its keys.
    fn on_authentic(
        &mut self,
        id: PeerId,
        local: u32,
        origin: (usize, SocketAddr),
        now: Duration,
        events: &mut Vec<Event>,
    ) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if peer.unconfirmed.as_ref().is_some_and(|s| s.local == local) {
            if let Some(session) = peer.unconfirmed.take() {
                peer.confirm(session, now);
            }
        }
        peer.heard = Some(now);
        peer.paths.heard(origin.0, origin.1, now);
        if !peer.up {
            peer.up = true;
            events.push(Event::Up(id));
        }
    }

    fn on_content(
        &mut self,
        id: PeerId,
        link: usize,
        now: Duration,
        plain: &[u8],
        out: &mut Vec<Outgoing>,
        events: &mut Vec<Event>,
    ) {
        match plain.split_first() {
            Some((&PING, stamp)) => {
                let mut pong = vec![PONG];
                pong.extend_from_slice(stamp);
                self.send_on(id, link, &pong, out);
            }
            Some((&PONG, stamp)) => {
                let sent = stamp.first_chunk().map(|b| u64::from_be_bytes(*b));
                if let (Some(peer), Some(sent)) = (self.peers.get_mut(id), sent) {
                    let rtt = now.saturating_sub(Duration::from_micros(sent));
                    peer.paths.on_pong(link, rtt, now);
                }
            }
            Some((&BYE, _)) => {
                if let Some(peer) = self.peers.get_mut(id) {
                    peer.up = false;
                    events.push(Event::Down(id));
                }
            }
            Some(_) => events.push(Event::Message(id)),
            None => {}
        }
    }

    fn send_on(&mut self, id: PeerId, link: usize, plain: &[u8], out: &mut Vec<Outgoing>) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let to = peer.paths.all().get(link).and_then(|p| p.address);
        let (Some(to), Some(session)) = (to, &mut peer.current) else {
            return;
        };
        let mut bytes = Vec::new();
        if session.seal(plain, &mut bytes).is_some() {
            out.push(Outgoing { link, to, bytes });
        }
    }

    fn ping(&mut self, id: PeerId, now: Duration, out: &mut Vec<Outgoing>) {
        let stamp = u64::try_from(now.as_micros()).unwrap_or(0);
        let mut plain = vec![PING];
        plain.extend_from_slice(&stamp.to_be_bytes());
        for link in 0..self.paths(id).len() {
            self.send_on(id, link, &plain, out);
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.ping_at = now + PING_EVERY;
        }
    }

    /// Does what time demands: handshakes, probes, timeouts.
    pub fn poll(&mut self, now: Duration, out: &mut Vec<Outgoing>, events: &mut Vec<Event>) {
        for id in 0..self.peers.len() {
            let timeout = self.timeout;
            let Some(peer) = self.peers.get_mut(id) else {
                continue;
            };
            if peer.up && peer.heard.is_none_or(|h| h + timeout <= now) {
                peer.up = false;
                events.push(Event::Down(id));
            }
            peer.expire(now);
            if peer.wants_handshake(now) && peer.retry_at <= now {
                peer.retry_at = now + peer.retry;
                peer.retry = (peer.retry * 2).min(HANDSHAKE_RETRY_MAX);
                wiping_stack(|| self.initiate(id, out));
            }
            if self
                .peers
                .get(id)
                .is_some_and(|p| p.current.is_some() && p.ping_at <= now)
            {
                self.ping(id, now, out);
            }
        }
    }

    /// When [`Transport::poll`] has to be called again.
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        let of = |p: &Peer| {
            let ping = p.current.as_ref().map(|_| p.ping_at);
            let retry = p.wants_handshake(now).then_some(p.retry_at);
            [ping, retry].into_iter().flatten().min()
        };
        self.peers.iter().filter_map(of).min()
    }

    /// Tells every peer that we stop.
    pub fn bye(&mut self, out: &mut Vec<Outgoing>) {
        for id in 0..self.peers.len() {
            for link in 0..self.paths(id).len() {
                self.send_on(id, link, &[BYE], out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
