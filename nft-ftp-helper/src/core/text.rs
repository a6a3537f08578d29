//! The text an announcement is replaced with under NAT.
//!
//! Normally it is written whole. If the announcement comes in pieces, the first
//! ones must leave the firewall before the port is known (a sender under
//! Nagle's algorithm sends the rest only when they are acknowledged), each with
//! at least a byte. What they can carry is certain: the address, which NAT has
//! fixed, and behind it leading zeros of the port. So the text is
//! address, zeros as needed, port.

use super::Kind;
use std::fmt::Write;
use std::net::IpAddr;

/// Longest text: an IPv6 address, 63 zeros, a port.
const CAPACITY: usize = 112;

/// Most bytes that may be sent before the announcement is complete.
pub(super) const MAX_EMITTED: u8 = 63;

/// What spoils a refused announcement of which a part was sent.
pub(super) const SPOILED: Text = {
    let mut buf = [0; CAPACITY];
    buf[0] = b'-';
    Text { buf, len: 1 }
};

/// A short text without allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    buf: [u8; CAPACITY],
    len: usize,
}

impl Text {
    /// No text.
    pub const EMPTY: Self = Self {
        buf: [0; CAPACITY],
        len: 0,
    };

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.buf.get(..self.len).unwrap_or(&[])
    }

    /// Its bytes from `from` up to `to`, as far as they exist.
    pub(super) fn part(&self, from: usize, to: usize) -> Self {
        let mut part = Self::EMPTY;
        let to = to.min(self.len);
        part.push(self.buf.get(from.min(to)..to).unwrap_or(&[]));
        part
    }

    fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.buf.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    fn pad(&mut self, to: usize) {
        while self.len < to.min(CAPACITY) {
            self.push(b"0");
        }
    }
}

impl From<&str> for Text {
    /// The text, or nothing if it is longer than any replacement.
    fn from(text: &str) -> Self {
        let mut new = Self::EMPTY;
        new.push(text.as_bytes());
        new
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        self.push(s.as_bytes());
        Ok(())
    }
}

/// The replacement for an announcement of `addr`, of which `emitted` bytes are
/// sent already. Without `port`: what is certain.
pub(super) fn replacement(
    kind: Kind,
    delim: u8,
    addr: IpAddr,
    port: Option<u16>,
    emitted: u8,
) -> Text {
    let mut text = Text::EMPTY;
    push_address(&mut text, kind, delim, addr);
    match port {
        None => text.pad(usize::from(MAX_EMITTED) + 1),
        Some(port) => {
            text.pad(usize::from(emitted));
            push_port(&mut text, kind, port);
        }
    }
    text
}

// Writing into `Text` never fails.
fn push_address(text: &mut Text, kind: Kind, delim: u8, addr: IpAddr) {
    match (kind, addr) {
        (Kind::Port | Kind::Pasv, IpAddr::V4(a)) => {
            for octet in a.octets() {
                let _ = write!(text, "{octet},");
            }
        }
        (Kind::Eprt, _) => {
            let _ = write!(text, "{addr}");
            text.push(&[delim]);
        }
        (Kind::Port | Kind::Pasv, IpAddr::V6(_)) | (Kind::Epsv, _) => {}
    }
}

fn push_port(text: &mut Text, kind: Kind, port: u16) {
    let [high, low] = port.to_be_bytes();
    let _ = match kind {
        Kind::Port | Kind::Pasv => write!(text, "{high},{low}"),
        Kind::Eprt | Kind::Epsv => write!(text, "{port}"),
    };
}
