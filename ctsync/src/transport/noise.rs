//! The handshake's parameters, its key pairs and its ciphers: what the library
//! keeps of private keys, static and ephemeral, and of a session's keys is
//! wiped when it is dropped.

use super::key::Secret;
use curve25519_dalek::MontgomeryPoint;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver, FallbackResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error};
use zeroize::{Zeroizing, optimization_barrier};

const PATTERN: &str = "Noise_IKpsk2_25519_AESGCM_BLAKE2s";
const PROLOGUE: &[u8] = b"ctsync link 1";
/// The pre-shared key goes into the second message.
pub const PSK_AT: u8 = 2;

/// A handshake with these keys of ours.
pub fn builder<'a>(private: &'a Secret, psk: &'a Secret) -> Option<Builder<'a>> {
    let rest = FallbackResolver::new(Box::new(RingResolver), Box::new(DefaultResolver));
    let resolver = FallbackResolver::new(Box::new(Wiped), Box::new(rest));
    Builder::with_resolver(PATTERN.parse().ok()?, Box::new(resolver))
        .local_private_key(private.bytes())
        .and_then(|b| b.prologue(PROLOGUE))
        .and_then(|b| b.psk(PSK_AT, psk.bytes()))
        .ok()
}

/// Key pairs and ciphers from here, everything else from the library.
struct Wiped;

impl CryptoResolver for Wiped {
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

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::AESGCM => Some(Box::new(Aes::default())),
            CipherChoice::ChaChaPoly => None,
        }
    }
}

/// AES-256-GCM.
struct Aes(LessSafeKey);

const KEY: usize = 32;
const TAG: usize = 16;

fn schedule(key: &[u8; KEY]) -> LessSafeKey {
    let key = UnboundKey::new(&AES_256_GCM, key);
    LessSafeKey::new(key.expect("a key of AES-256 has 32 bytes"))
}

impl Default for Aes {
    fn default() -> Self {
        Self(schedule(&[0; KEY]))
    }
}

impl Drop for Aes {
    /// Another key, which is none, in the same place.
    fn drop(&mut self) {
        self.0 = schedule(&[0; KEY]);
        optimization_barrier(self);
    }
}

/// Noise, section 12.4: 32 bits of zeros and the counter, big-endian.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    if let Some(low) = bytes.last_chunk_mut() {
        *low = counter.to_be_bytes();
    }
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher for Aes {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; KEY]) {
        #[cfg(test)]
        tests::note(key);
        self.0 = schedule(key);
    }

    fn encrypt(&self, counter: u64, with: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let sealed = plain.len() + TAG;
        let (text, tag) = out
            .get_mut(..sealed)
            .and_then(|out| out.split_at_mut_checked(plain.len()))
            .expect("the library has looked whether there is room");
        text.copy_from_slice(plain);
        let made = self
            .0
            .seal_in_place_separate_tag(nonce(counter), Aad::from(with), text)
            .expect("a message is far below 64 GiB");
        tag.copy_from_slice(made.as_ref());
        sealed
    }

    fn decrypt(
        &self,
        counter: u64,
        with: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let (text, tag) = sealed.split_last_chunk::<TAG>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(Error::Decrypt)?;
        out.copy_from_slice(text);
        let (with, tag) = (Aad::from(with), Tag::from(*tag));
        self.0
            .open_in_place_separate_tag(nonce(counter), with, tag, out, 0..)
            .map_err(|_| Error::Decrypt)?;
        Ok(text.len())
    }
}

/// Does what computes keys, and overwrites what that has left on the stack:
/// the library works with copies there.
pub fn wiping_stack<T>(work: impl FnOnce() -> T) -> T {
    let done = below(work);
    overwrite();
    done
}

#[inline(never)]
fn below<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// Deeper than a handshake goes.
#[inline(never)]
fn overwrite() {
    let stack = [0_u8; 32 << 10];
    optimization_barrier(&stack);
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
        #[cfg(test)]
        tests::note(&self.private);
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
pub(super) mod tests {
    use super::*;
    use std::cell::RefCell;

    thread_local! {
        static KEYS: RefCell<Vec<[u8; KEY]>> = const { RefCell::new(Vec::new()) };
    }

    /// Remembers a key, as something else.
    pub fn note(key: &[u8; KEY]) {
        KEYS.with_borrow_mut(|keys| keys.push(key.map(|byte| !byte)));
    }

    /// The complements of all keys that this thread's ciphers have been given,
    /// and of the private keys that were made for handshakes.
    pub fn complements() -> Vec<[u8; KEY]> {
        KEYS.take()
    }

    /// Ours seal as the library's, and open what it has sealed, whole or not.
    #[test]
    fn ciphers_agree_with_the_librarys() {
        let mut theirs = RingResolver.resolve_cipher(&CipherChoice::AESGCM).unwrap();
        let mut ours = Wiped.resolve_cipher(&CipherChoice::AESGCM).unwrap();
        for n in 0..200_u8 {
            let (key, counter) = ([n; KEY], u64::from(n) << (n % 57));
            theirs.set(&key);
            ours.set(&key);
            let (with, plain) = (vec![n; usize::from(n % 40)], vec![!n; usize::from(n) * 7]);
            let length = plain.len() + TAG;
            let (mut x, mut y) = (vec![0; length + 3], vec![0; length + 3]);
            assert_eq!(ours.encrypt(counter, &with, &plain, &mut x), length);
            theirs.encrypt(counter, &with, &plain, &mut y);
            assert_eq!(x, y);
            let sealed = &mut x[..length];
            let mut open = vec![0; plain.len()];
            let opened = ours.decrypt(counter, &with, sealed, &mut open);
            assert_eq!((opened.unwrap(), &open), (plain.len(), &plain));
            sealed[usize::from(n) % length] ^= 1;
            assert!(ours.decrypt(counter, &with, sealed, &mut open).is_err());
            assert!(
                ours.decrypt(counter, &with, &sealed[..15], &mut open)
                    .is_err()
            );
        }
    }

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
        let mut dh = Wiped.resolve_dh(&DHChoice::Curve25519).unwrap();
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
