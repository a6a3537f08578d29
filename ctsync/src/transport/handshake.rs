//! Agreeing on a session: who begins, who answers, and whom we don't answer.

use super::frame::Frame;
use super::key::{self, Public, Secret};
use super::noise::{self, PSK_AT};
use super::peer::{Attempt, Peer};
use super::session::Session;
use super::{Event, HANDSHAKE_BURST, HANDSHAKE_RATE, Outgoing, PeerId, Transport};
use crate::wire::Reader;
use std::net::SocketAddr;
use std::time::Duration;

impl Transport {
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

    pub(super) fn on_initiation(
        &mut self,
        sender: u32,
        noise: &[u8],
        now: Duration,
    ) -> Option<Vec<u8>> {
        if !self.allow_handshake(now) {
            self.refusals.limited += 1;
            return None;
        }
        let none = Secret::from_bytes([0; key::LEN]);
        let mut hs = noise::builder(&self.private, &none)?
            .build_responder()
            .ok()?;
        let mut payload = [0; 64];
        let read = hs.read_message(noise, &mut payload);
        let remote = hs.get_remote_static().and_then(<[u8]>::first_chunk);
        let public = remote.copied().map(Public);
        let id = public.and_then(|k| self.peers.iter().position(|p| p.keys.is(&k)));
        let (Ok(len), Some(id), Some(public)) = (read, id, public) else {
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
        let psk = peer.tries.answer(&peer.keys, (incarnation, count));
        hs.set_psk(usize::from(PSK_AT), psk.bytes()).ok()?;
        let mut message = [0; 128];
        let len = hs
            .write_message(&self.incarnation.to_be_bytes(), &mut message)
            .ok()?;
        let local = index()?;
        let noise = hs.into_stateless_transport_mode().ok()?;
        let session = Session::new(noise, public, (local, sender), incarnation, now);
        peer.unconfirmed = Some(session);
        peer.pending_count(incarnation, count);
        let mut bytes = Vec::new();
        Frame::Response {
            sender: local,
            receiver: sender,
            noise: message.get(..len)?,
        }
        .encode(&public, &mut bytes);
        Some(bytes)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one frame")]
    pub(super) fn on_response(
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
        let names = (receiver, sender);
        let session = Session::new(noise, attempt.public, names, incarnation, now);
        peer.confirm(session, now);
        self.on_authentic(id, receiver, origin, now, events);
        self.ping(id, now, out);
    }

    pub(super) fn initiate(&mut self, id: PeerId, out: &mut Vec<Outgoing>) -> Option<()> {
        self.handshakes += 1;
        let peer = self.peers.get_mut(id)?;
        let last = peer.current.as_ref().map(|s| s.public);
        let (public, psk) = peer.tries.begin(&peer.keys, last);
        let mut noise = noise::builder(&self.private, psk)?
            .remote_public_key(&public.0)
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
        .encode(&public, &mut bytes);
        peer.attempt = Some(Attempt {
            noise,
            public,
            local,
        });
        for (link, path) in peer.paths.all().iter().enumerate() {
            if let Some(to) = path.address {
                let bytes = bytes.clone();
                out.push(Outgoing { link, to, bytes });
            }
        }
        Some(())
    }
}

fn index() -> Option<u32> {
    key::random().ok().map(u32::from_be_bytes)
}
