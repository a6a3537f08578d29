//! Frames: what a UDP datagram of the link looks like from outside.
//!
//! The first byte is the version (upper half) and the type. Handshakes end in
//! a check keyed with the receiver's public key, so that who does not know
//! that key can't make us compute.

use super::key::Public;
use crate::hash::Seed;
use crate::wire::Reader;

/// Version of the frames, and of everything in them that an older node would
/// misread. It is raised with every such change, so that the nodes refuse each
/// other by name; `tests/wire.rs` has the bytes of each.
///
/// 1 compared copies by digests of leaves alone. Its last builds already did
/// it as 2 does, under the old number.
pub const VERSION: u8 = 2;

const INITIATION: u8 = VERSION << 4 | 1;
const RESPONSE: u8 = VERSION << 4 | 2;
const SEALED: u8 = VERSION << 4 | 3;

/// Bytes of a sealed frame around its content: header and tag.
pub const OVERHEAD: usize = HEADER + 16;
/// Bytes before the sealed content.
pub const HEADER: usize = 1 + 4 + 8;
const CHECK: usize = 8;

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// First message of a handshake.
    Initiation {
        /// How the sender names the session.
        sender: u32,
        /// Noise message.
        noise: &'a [u8],
    },
    /// Second message of a handshake.
    Response {
        /// How the sender names the session.
        sender: u32,
        /// How the receiver does.
        receiver: u32,
        /// Noise message.
        noise: &'a [u8],
    },
    /// A message under a session's keys.
    Sealed {
        /// How the receiver names the session.
        receiver: u32,
        /// Nonce.
        counter: u64,
        /// Ciphertext and tag.
        sealed: &'a [u8],
    },
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFrame {
    /// Of another version.
    Version,
    /// Malformed, or its check is wrong.
    Garbage,
}

fn check(key: &Public, bytes: &[u8]) -> [u8; CHECK] {
    let half = key.0.first_chunk().copied().unwrap_or_default();
    let seed = Seed::from_bytes(half);
    let seed = seed.derive(seed.hash(&key.0));
    seed.hash(bytes).to_be_bytes()
}

impl<'a> Frame<'a> {
    /// Reads a datagram sent to the owner of public key `to`.
    ///
    /// # Errors
    /// [`NotFrame`].
    pub fn decode(bytes: &'a [u8], to: &Public) -> Result<Self, NotFrame> {
        let ty = *bytes.first().ok_or(NotFrame::Garbage)?;
        if ty >> 4 != VERSION {
            return Err(NotFrame::Version);
        }
        let body = if ty == SEALED {
            bytes
        } else {
            let at = bytes.len().checked_sub(CHECK).ok_or(NotFrame::Garbage)?;
            let (body, sum) = bytes.split_at_checked(at).ok_or(NotFrame::Garbage)?;
            if check(to, body) != sum {
                return Err(NotFrame::Garbage);
            }
            body
        };
        Self::read(ty, body).ok_or(NotFrame::Garbage)
    }

    fn read(ty: u8, body: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(body);
        r.u8("type").ok()?;
        Some(match ty {
            INITIATION => Self::Initiation {
                sender: r.u32("sender").ok()?,
                noise: r.rest(),
            },
            RESPONSE => Self::Response {
                sender: r.u32("sender").ok()?,
                receiver: r.u32("receiver").ok()?,
                noise: r.rest(),
            },
            SEALED => Self::Sealed {
                receiver: r.u32("receiver").ok()?,
                counter: r.u64("counter").ok()?,
                sealed: r.rest(),
            },
            _ => return None,
        })
    }

    /// The datagram, for the owner of public key `to`.
    pub fn encode(&self, to: &Public, out: &mut Vec<u8>) {
        out.clear();
        match *self {
            Self::Initiation { sender, noise } => {
                out.push(INITIATION);
                out.extend_from_slice(&sender.to_be_bytes());
                out.extend_from_slice(noise);
            }
            Self::Response {
                sender,
                receiver,
                noise,
            } => {
                out.push(RESPONSE);
                out.extend_from_slice(&sender.to_be_bytes());
                out.extend_from_slice(&receiver.to_be_bytes());
                out.extend_from_slice(noise);
            }
            Self::Sealed {
                receiver,
                counter,
                sealed,
            } => {
                out.extend_from_slice(&header(receiver, counter));
                out.extend_from_slice(sealed);
                return;
            }
        }
        let sum = check(to, out);
        out.extend_from_slice(&sum);
    }
}

/// The header of a sealed frame.
pub fn header(receiver: u32, counter: u64) -> [u8; HEADER] {
    let [a, b, c, d] = receiver.to_be_bytes();
    let [e, f, g, h, i, j, k, l] = counter.to_be_bytes();
    [SEALED, a, b, c, d, e, f, g, h, i, j, k, l]
}
