//! The link: authenticated and encrypted datagrams to known peers over UDP.
//!
//! Noise `IKpsk2`: both sides know each other's public key. Whoever starts
//! first begins; a session counts once its peer has proved that it has the
//! keys, so a replayed handshake replaces nothing. Nothing is answered to a
//! stranger. No sockets and no clock here: datagrams and `now` in, datagrams
//! and events out.

pub mod frame;
pub mod key;
pub mod path;
pub mod session;

use crate::wire::Reader;
use frame::{Frame, NotFrame};
use key::{KeyError, Public, Secret};
use path::{Path, Paths};
use session::{Refused, Session};
use snow::{Builder, HandshakeState};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

const PATTERN: &str = "Noise_IKpsk2_25519_AESGCM_BLAKE2s";
const PROLOGUE: &[u8] = b"ctsync link 1";
/// The pre-shared key goes into the second message.
const PSK_AT: u8 = 2;
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
    /// Its public key.
    pub public: Public,
    /// The key shared with it besides, if any.
    pub psk: Option<Secret>,
    /// Its address on each link.
    pub endpoints: Vec<Option<SocketAddr>>,
}

struct Attempt {
    noise: HandshakeState,
    local: u32,
}

struct Peer {
    public: Public,
    psk: Secret,
    paths: Paths,
    /// The session in use, those that may still carry frames, and one that
    /// the peer has yet to confirm.
    current: Option<Session>,
    previous: VecDeque<Session>,
    unconfirmed: Option<Session>,
    attempt: Option<Attempt>,
    retry_at: Duration,
    retry: Duration,
    ping_at: Duration,
    heard: Option<Duration>,
    up: bool,
    incarnation: Option<u64>,
    last_count: u64,
    retired: VecDeque<u64>,
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
    ///
    /// # Errors
    /// [`KeyError`] if the private key is none.
    pub fn new(private: Secret, incarnation: u64, timeout: Duration) -> Result<Self, KeyError> {
        Ok(Self {
            public: private.public()?,
            private,
            incarnation,
            peers: Vec::new(),
            handshakes: 0,
            timeout,
            tokens: HANDSHAKE_BURST,
            refilled: Duration::ZERO,
            refusals: Refusals::default(),
        })
    }

    /// Our public key.
    pub const fn public(&self) -> &Public {
        &self.public
    }

    /// Adds a peer.
    pub fn add_peer(&mut self, settings: PeerSettings) -> PeerId {
        self.peers.push(Peer {
            public: settings.public,
            psk: settings
                .psk
                .unwrap_or_else(|| Secret::from_bytes([0; key::LEN])),
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
                if let Some(bytes) = self.on_initiation(sender, noise, now) {
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
                self.on_response(sender, receiver, noise, origin, now, out, events);
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

    fn builder<'a>(private: &'a Secret, psk: &'a Secret) -> Option<Builder<'a>> {
        Builder::new(PATTERN.parse().ok()?)
            .local_private_key(private.bytes())
            .and_then(|b| b.prologue(PROLOGUE))
            .and_then(|b| b.psk(PSK_AT, psk.bytes()))
            .ok()
    }

    fn allow_handshake(&mut self, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.refilled);
        let earned = elapsed.as_millis() * u128::from(HANDSHAKE_RATE) / 1000;
        if let Ok(earned @ 1..) = u32::try_from(earned.min(u128::from(HANDSHAKE_BURST))) {
            self.tokens = self.tokens.saturating_add(earned).min(HANDSHAKE_BURST);
            self.refilled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }

    fn on_initiation(&mut self, sender: u32, noise: &[u8], now: Duration) -> Option<Vec<u8>> {
        if !self.allow_handshake(now) {
            self.refusals.limited += 1;
            return None;
        }
        let none = Secret::from_bytes([0; key::LEN]);
        let mut hs = Self::builder(&self.private, &none)?
            .build_responder()
            .ok()?;
        let mut payload = [0; 64];
        let read = hs.read_message(noise, &mut payload);
        let remote = hs.get_remote_static().map(<[u8]>::to_vec);
        let id = remote.and_then(|k| self.peers.iter().position(|p| p.public.0 == *k));
        let (Ok(len), Some(id)) = (read, id) else {
            self.refusals.unknown_key += 1;
            return None;
        };
        let mut r = Reader::new(payload.get(..len)?);
        let (incarnation, count) = (r.u64("incarnation").ok()?, r.u64("count").ok()?);
        let peer = self.peers.get_mut(id)?;
        if peer.has_seen(incarnation, count) {
            self.refusals.replayed += 1;
            return None;
        }
        hs.set_psk(usize::from(PSK_AT), peer.psk.bytes()).ok()?;
        let mut message = [0; 128];
        let len = hs
            .write_message(&self.incarnation.to_be_bytes(), &mut message)
            .ok()?;
        let local = index()?;
        let noise = hs.into_stateless_transport_mode().ok()?;
        let session = Session::new(noise, local, sender, incarnation, now);
        peer.unconfirmed = Some(session);
        peer.pending_count(incarnation, count);
        let mut bytes = Vec::new();
        Frame::Response {
            sender: local,
            receiver: sender,
            noise: message.get(..len)?,
        }
        .encode(&peer.public, &mut bytes);
        Some(bytes)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one frame")]
    fn on_response(
        &mut self,
        sender: u32,
        receiver: u32,
        noise: &[u8],
        origin: (usize, SocketAddr),
        now: Duration,
        out: &mut Vec<Outgoing>,
        events: &mut Vec<Event>,
    ) {
        let is_ours = |p: &Peer| p.attempt.as_ref().is_some_and(|a| a.local == receiver);
        let Some(id) = self.peers.iter().position(is_ours) else {
            self.refusals.unknown_session += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(mut attempt) = peer.attempt.take() else {
            return;
        };
        let mut payload = [0; 64];
        let read = attempt.noise.read_message(noise, &mut payload);
        let incarnation = read
            .ok()
            .and_then(|len| payload.get(..len)?.first_chunk().copied())
            .map(u64::from_be_bytes);
        let Some(incarnation) = incarnation else {
            // Somebody else's answer does not end the attempt for good: the
            // next one starts when this one would have been repeated.
            self.refusals.unknown_key += 1;
            return;
        };
        let Ok(noise) = attempt.noise.into_stateless_transport_mode() else {
            return;
        };
        let session = Session::new(noise, receiver, sender, incarnation, now);
        peer.confirm(session, now);
        self.on_authentic(id, receiver, origin, now, events);
        self.ping(id, now, out);
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
                self.initiate(id, out);
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

    fn initiate(&mut self, id: PeerId, out: &mut Vec<Outgoing>) -> Option<()> {
        self.handshakes += 1;
        let peer = self.peers.get_mut(id)?;
        let mut noise = Self::builder(&self.private, &peer.psk)?
            .remote_public_key(&peer.public.0)
            .ok()?
            .build_initiator()
            .ok()?;
        let mut payload = self.incarnation.to_be_bytes().to_vec();
        payload.extend_from_slice(&self.handshakes.to_be_bytes());
        let mut message = [0; 192];
        let len = noise.write_message(&payload, &mut message).ok()?;
        let local = index()?;
        let mut bytes = Vec::new();
        Frame::Initiation {
            sender: local,
            noise: message.get(..len)?,
        }
        .encode(&peer.public, &mut bytes);
        peer.attempt = Some(Attempt { noise, local });
        for (link, path) in peer.paths.all().iter().enumerate() {
            if let Some(to) = path.address {
                let bytes = bytes.clone();
                out.push(Outgoing { link, to, bytes });
            }
        }
        Some(())
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

fn index() -> Option<u32> {
    key::random().ok().map(u32::from_be_bytes)
}

impl Peer {
    fn has_seen(&self, incarnation: u64, count: u64) -> bool {
        let known = self.incarnation == Some(incarnation);
        (known && count <= self.last_count) || self.retired.contains(&incarnation)
    }

    /// Of the incarnation we know, remember the count at once; of another
    /// one only once it is confirmed, for anybody can replay.
    fn pending_count(&mut self, incarnation: u64, count: u64) {
        if self.incarnation == Some(incarnation) {
            self.last_count = count;
        }
    }

    /// The peer has proved that it has the session's keys. Of another
    /// incarnation, it has to be announced.
    fn confirm(&mut self, session: Session, now: Duration) {
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
        self.retry = HANDSHAKE_RETRY;
        self.ping_at = now;
        changed
    }

    fn expire(&mut self, now: Duration) {
        let alive = |s: &Session| now < s.born + EXPIRE;
        self.previous.retain(alive);
        self.current = self.current.take().filter(alive);
        self.unconfirmed = self.unconfirmed.take().filter(alive);
    }

    /// Without keys, with old ones, or with a silent peer.
    fn wants_handshake(&self, now: Duration) -> bool {
        let Some(session) = &self.current else {
            return true;
        };
        let age = if session.initiator {
            REKEY
        } else {
            REKEY_RESPONDER
        };
        !self.up || now >= session.born + age
    }
}

#[cfg(test)]
mod tests;
