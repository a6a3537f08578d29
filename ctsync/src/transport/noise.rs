//! The handshake's parameters, and its key pairs: what the library keeps of
//! private keys, static and ephemeral, is wiped when it is dropped.

use super::key::Secret;
use curve25519_dalek::MontgomeryPoint;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver, FallbackResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error};
use zeroize::Zeroizing;

const PATTERN: &str = "Noise_IKpsk2_25519_AESGCM_BLAKE2s";
const PROLOGUE: &[u8] = b"ctsync link 1";
/// The pre-shared key goes into the second message.
pub const PSK_AT: u8 = 2;

/// A handshake with these keys of ours.
pub fn builder<'a>(private: &'a Secret, psk: &'a Secret) -> Option<Builder<'a>> {
    let rest = FallbackResolver::new(Box::new(RingResolver), Box::new(DefaultResolver));
    let resolver = FallbackResolver::new(Box::new(OwnPairs), Box::new(rest));
    Builder::with_resolver(PATTERN.parse().ok()?, Box::new(resolver))
        .local_private_key(private.bytes())
        .and_then(|b| b.prologue(PROLOGUE))
        .and_then(|b| b.psk(PSK_AT, psk.bytes()))
        .ok()
}

/// Key pairs from here, everything else from the library.
struct OwnPairs;

impl CryptoResolver for OwnPairs {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        None
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(Pair::default())),
            _ => None,
        }
    }

    fn resolve_hash(&self, _: &HashChoice) -> Option<Box<dyn Hash>> {
        None
    }

    fn resolve_cipher(&self, _: &CipherChoice) -> Option<Box<dyn Cipher>> {
        None
    }
}

/// An X25519 key pair.
#[derive(Default)]
pub struct Pair {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Pair {
    /// The pair of a private key.
    pub fn of(secret: &Secret) -> Self {
        let mut pair = Self::default();
        pair.private.copy_from_slice(secret.bytes());
        pair.derive();
        pair
    }

    /// Its public key.
    pub const fn public(&self) -> &[u8; 32] {
        &self.public
    }

    fn derive(&mut self) {
        self.public = MontgomeryPoint::mul_base_clamped(*self.private).to_bytes();
    }
}

impl Dh for Pair {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        for (to, from) in self.private.iter_mut().zip(private) {
            *to = *from;
        }
        self.derive();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(self.private.as_mut())?;
        self.derive();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.private.as_ref()
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = public.first_chunk().ok_or(Error::Dh)?;
        let shared = MontgomeryPoint(*public).mul_clamped(*self.private);
        let out = out.first_chunk_mut::<32>().ok_or(Error::Dh)?;
        *out = shared.to_bytes();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ours agree with the library's, as a pair of either kind would.
    #[test]
    fn key_pairs_agree_with_the_librarys() {
        let library = || DefaultResolver.resolve_dh(&DHChoice::Curve25519).unwrap();
        for n in 0..50 {
            let (a, b) = ([n; 32], [n ^ 0x55; 32]);
            let ours = Pair::of(&Secret::from_bytes(a));
            let (mut theirs, mut other) = (library(), library());
            theirs.set(&a);
            other.set(&b);
            assert_eq!(ours.public().as_slice(), theirs.pubkey());
            let (mut x, mut y) = ([0; 32], [0; 32]);
            ours.dh(other.pubkey(), &mut x).unwrap();
            theirs.dh(other.pubkey(), &mut y).unwrap();
            assert_eq!(x, y);
        }
    }

    #[test]
    fn a_pair_is_generated_anew_and_lengths_are_checked() {
        let mut dh = OwnPairs.resolve_dh(&DHChoice::Curve25519).unwrap();
        let mut rng = RingResolver.resolve_rng().unwrap();
        dh.generate(&mut *rng).unwrap();
        let first = dh.privkey().to_vec();
        dh.generate(&mut *rng).unwrap();
        assert_ne!(dh.privkey(), first);
        let mut short = [0; 31];
        assert!(dh.dh(&[1; 32], &mut short).is_err());
        assert!(dh.dh(&[1; 31], &mut [0; 32]).is_err());
    }
}
