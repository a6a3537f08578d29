//! A peer's keys: one of each kind, or two while they are being changed. Which
//! of them are tried in what order.

use super::key::{self, Public, Secret};
use std::sync::LazyLock;

/// What stands for no pre-shared key.
static NONE: LazyLock<Secret> = LazyLock::new(|| Secret::from_bytes([0; key::LEN]));

/// The keys of a peer. While one is being replaced both count.
#[derive(Debug, Clone)]
pub struct PeerKeys {
    /// Its public key.
    pub public: Public,
    /// One that it has besides, or will have.
    pub next_public: Option<Public>,
    /// The key shared with it, if any.
    pub psk: Option<Secret>,
    /// One that will be shared with it, or is already.
    pub next_psk: Option<Secret>,
}

impl PartialEq for PeerKeys {
    fn eq(&self, other: &Self) -> bool {
        fn bytes(key: &Option<Secret>) -> Option<&[u8; key::LEN]> {
            key.as_ref().map(Secret::bytes)
        }
        (self.public, self.next_public) == (other.public, other.next_public)
            && bytes(&self.psk) == bytes(&other.psk)
            && bytes(&self.next_psk) == bytes(&other.next_psk)
    }
}

impl PeerKeys {
    /// One public key and no other.
    pub const fn of(public: Public) -> Self {
        Self {
            public,
            next_public: None,
            psk: None,
            next_psk: None,
        }
    }

    /// True if this public key is one of the peer's.
    pub fn is(&self, public: &Public) -> bool {
        self.public == *public || self.next_public.as_ref() == Some(public)
    }

    /// The public key at a turn, those of even turns first.
    fn public(&self, turn: u32) -> Public {
        match self.next_public {
            Some(next) if turn % 2 == 1 => next,
            _ => self.public,
        }
    }

    fn psk(&self, turn: u32) -> &Secret {
        match &self.next_psk {
            Some(next) if turn % 2 == 1 => next,
            _ => self.psk.as_ref().unwrap_or(&NONE),
        }
    }
}

/// What has been tried since the last session was made. Who begins takes
/// another pre-shared key each time, who answers every other time: so they
/// meet, whichever of them has two.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tries {
    begun: u32,
    answered: u32,
    /// A handshake comes on each link, and is the same.
    last: Option<(u64, u64)>,
}

impl Tries {
    /// Keys for the next handshake of ours. `last` is the public key of the
    /// session in use: most likely it still is the peer's.
    pub fn begin<'a>(&mut self, keys: &'a PeerKeys, last: Option<Public>) -> (Public, &'a Secret) {
        let turn = self.begun;
        self.begun = turn.wrapping_add(1);
        let first = u32::from(last.is_some() && last == keys.next_public);
        let psks = if keys.next_psk.is_some() { 2 } else { 1 };
        (keys.public(turn / psks + first), keys.psk(turn))
    }

    /// The pre-shared key to answer with to a handshake of the peer's.
    pub fn answer<'a>(&mut self, keys: &'a PeerKeys, handshake: (u64, u64)) -> &'a Secret {
        if self.last != Some(handshake) {
            self.answered = self.answered.wrapping_add(u32::from(self.last.is_some()));
            self.last = Some(handshake);
        }
        keys.psk(self.answered / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(n: u8) -> Secret {
        Secret::from_bytes([n; 32])
    }

    fn keys(publics: (u8, Option<u8>), psks: (Option<u8>, Option<u8>)) -> PeerKeys {
        PeerKeys {
            public: Public([publics.0; 32]),
            next_public: publics.1.map(|n| Public([n; 32])),
            psk: psks.0.map(secret),
            next_psk: psks.1.map(secret),
        }
    }

    /// Whatever the one has of two keys and the other of two, if they share
    /// one they meet within a few handshakes.
    #[test]
    fn who_shares_a_key_meets_soon() {
        let some = [None, Some(1), Some(2)];
        let all: Vec<_> = some
            .into_iter()
            .flat_map(|a| some.map(|b| (a, b)))
            .collect();
        for one in &all {
            for two in &all {
                for publics in [(5, None), (5, Some(6)), (6, Some(5))] {
                    let (ours, theirs) = (keys(publics, *one), keys((7, None), *two));
                    let (mut begin, mut answer) = (Tries::default(), Tries::default());
                    let met = (0..12_u64).any(|n| {
                        let (public, psk) = begin.begin(&ours, None);
                        if public != Public([5; 32]) {
                            return false;
                        }
                        // On two links.
                        answer.answer(&theirs, (1, n));
                        answer.answer(&theirs, (1, n)).bytes() == psk.bytes()
                    });
                    let set = |(a, b): (Option<u8>, Option<u8>)| vec![a, b.or(a)];
                    let share = set(*one).iter().any(|k| set(*two).contains(k));
                    assert_eq!(met, share, "{one:?} {two:?} {publics:?}");
                }
            }
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let said = format!("{:?}", keys((5, Some(6)), (Some(171), Some(172))));
        assert_eq!(said.matches("Secret(..)").count(), 2, "{said}");
        for key in [171, 172] {
            let secret = secret(key);
            let bytes = [
                format!("{key}"),
                format!("{key:x}"),
                secret.to_text().to_string(),
            ];
            assert!(bytes.iter().all(|b| !said.contains(b)), "{said}");
        }
    }

    #[test]
    fn the_key_of_the_session_in_use_is_tried_first() {
        let both = keys((5, Some(6)), (None, None));
        for (last, first) in [(None, 5), (Some(5), 5), (Some(6), 6)] {
            let last = last.map(|n| Public([n; 32]));
            let (public, _) = Tries::default().begin(&both, last);
            assert_eq!(public, Public([first; 32]));
        }
    }
}
