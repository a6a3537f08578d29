//! IP and TCP headers of a queued packet: where the text is, and the packet
//! again with another text.
//!
//! The kernel fixes nothing in a packet that comes back: total length, IPv4
//! header checksum and TCP checksum are made here (KERNEL: nfnetlink_queue.c,
//! `nfqnl_mangle`). Options and extension headers stay as they are; newer
//! kernels refuse a packet that changes them.

use crate::core::{Dir, Flags, Rewrite, Segment};
use std::ops::Range;

const IPPROTO_TCP: u8 = 6;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// IPv6 extension headers that may stand before TCP: hop-by-hop, routing,
/// destination options (RFC 8200 section 4.1). Fragments never come here.
const EXTENSIONS: [u8; 3] = [0, 43, 60];

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A packet that is no whole TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Shorter than its headers say.
    #[error("packet is truncated")]
    Truncated,
    /// Neither IPv4 nor IPv6, or not TCP, or a fragment.
    #[error("packet is not TCP")]
    NotTcp,
    /// The rewritten packet would be too large.
    #[error("rewritten packet exceeds 65535 bytes")]
    TooLong,
}

/// A packet with its parts found.
#[derive(Debug, Clone)]
pub struct TcpPacket<'a> {
    bytes: &'a [u8],
    v6: bool,
    tcp: usize,
    text: Range<usize>,
    seq: u32,
    ack: u32,
    flags: u8,
}

impl<'a> TcpPacket<'a> {
    /// Finds the TCP header and text of `bytes`, which begin with the network
    /// header.
    ///
    /// # Errors
    /// [`PacketError`] if there is no whole TCP segment.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let version = bytes.first().ok_or(PacketError::Truncated)? >> 4;
        let (tcp, end) = match version {
            4 => ipv4(bytes)?,
            6 => ipv6(bytes)?,
            _ => return Err(PacketError::NotTcp),
        };
        let header = bytes
            .get(tcp..end)
            .and_then(|s| s.first_chunk::<TCP_HEADER>())
            .ok_or(PacketError::Truncated)?;
        let [
            _,
            _,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            a0,
            a1,
            a2,
            a3,
            offset,
            flags,
            ..,
        ] = *header;
        let text = tcp + usize::from(offset >> 4) * 4;
        if text < tcp + TCP_HEADER || text > end {
            return Err(PacketError::Truncated);
        }
        Ok(Self {
            bytes,
            v6: version == 6,
            tcp,
            text: text..end,
            seq: u32::from_be_bytes([s0, s1, s2, s3]),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            flags,
        })
    }

    /// The segment as the core takes it.
    pub fn segment(&self, dir: Dir) -> Segment<'a> {
        let has = |flag| self.flags & flag != 0;
        Segment {
            dir,
            seq: self.seq,
            ack: has(ACK).then_some(self.ack),
            flags: Flags {
                syn: has(SYN),
                fin: has(FIN),
                rst: has(RST),
            },
            payload: self.bytes.get(self.text.clone()).unwrap_or_default(),
        }
    }

    /// Whether there is nothing in it that moves the core: no text, and no
    /// flag but ACK.
    pub fn is_bare(&self) -> bool {
        self.text.is_empty() && self.flags & (SYN | FIN | RST) == 0
    }

    /// Writes the packet with its text changed into `out`.
    ///
    /// # Errors
    /// [`PacketError::TooLong`]; `out` is then of no use.
    pub fn rewrite(&self, rewrite: &Rewrite, out: &mut Vec<u8>) -> Result<(), PacketError> {
        let text = self.bytes.get(self.text.clone()).unwrap_or_default();
        let kept = text
            .get(..rewrite.keep.unwrap_or(text.len()))
            .unwrap_or(text);
        out.clear();
        out.extend_from_slice(self.bytes.get(..self.text.start).unwrap_or_default());
        match &rewrite.edit {
            Some(edit) => {
                out.extend_from_slice(kept.get(..edit.range.start).unwrap_or(kept));
                out.extend_from_slice(edit.text.as_bytes());
                out.extend_from_slice(kept.get(edit.range.end..).unwrap_or_default());
            }
            None => out.extend_from_slice(kept),
        }
        if kept.len() < text.len() {
            // What is cut off comes again, and with it the end of the stream.
            if let Some(flags) = out.get_mut(self.tcp + 13) {
                *flags &= !(FIN | PSH);
            }
        }
        self.fix_lengths(out)?;
        self.fix_checksums(out);
        Ok(())
    }

    fn fix_lengths(&self, out: &mut [u8]) -> Result<(), PacketError> {
        let (at, covered) = if self.v6 {
            (4, out.len().saturating_sub(IPV6_HEADER))
        } else {
            (2, out.len())
        };
        let length = u16::try_from(covered).map_err(|_| PacketError::TooLong)?;
        put(out, at, length);
        Ok(())
    }

    fn fix_checksums(&self, out: &mut [u8]) {
        if !self.v6 {
            put(out, 10, 0);
            let header = out.get(..self.tcp).map_or(0, |h| sum(0, h));
            put(out, 10, fold(header));
        }
        put(out, self.tcp + 16, 0);
        let addresses = if self.v6 { 8..40 } else { 12..20 };
        let segment = out.get(self.tcp..).unwrap_or_default();
        // The pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
        let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
        let pseudo = sum(
            u64::from(length) + u64::from(IPPROTO_TCP),
            out.get(addresses).unwrap_or_default(),
        );
        put(out, self.tcp + 16, fold(sum(pseudo, segment)));
    }
}

fn put(out: &mut [u8], at: usize, value: u16) {
    if let Some(field) = out.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Adds big-endian 16-bit words (RFC 1071).
fn sum(start: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let whole = words.by_ref().fold(start, |total, word| {
        total
            + word
                .try_into()
                .map_or(0, |w| u64::from(u16::from_be_bytes(w)))
    });
    whole + words.remainder().first().map_or(0, |b| u64::from(*b) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Offset of the TCP header, and of the end of the packet.
fn ipv4(bytes: &[u8]) -> Result<(usize, usize), PacketError> {
    let header = bytes
        .first_chunk::<IPV4_HEADER>()
        .ok_or(PacketError::Truncated)?;
    let [vihl, _, l0, l1, _, _, f0, f1, _, protocol, ..] = *header;
    let fragment = u16::from_be_bytes([f0, f1]) & 0x3fff;
    if protocol != IPPROTO_TCP || fragment != 0 {
        return Err(PacketError::NotTcp);
    }
    let (start, end) = (
        usize::from(vihl & 15) * 4,
        usize::from(u16::from_be_bytes([l0, l1])),
    );
    if start < IPV4_HEADER || start > end || end > bytes.len() {
        return Err(PacketError::Truncated);
    }
    Ok((start, end))
}

fn ipv6(bytes: &[u8]) -> Result<(usize, usize), PacketError> {
    let header = bytes
        .first_chunk::<IPV6_HEADER>()
        .ok_or(PacketError::Truncated)?;
    let [_, _, _, _, l0, l1, next, ..] = *header;
    let end = IPV6_HEADER + usize::from(u16::from_be_bytes([l0, l1]));
    if end > bytes.len() {
        return Err(PacketError::Truncated);
    }
    let (mut next, mut at) = (next, IPV6_HEADER);
    while EXTENSIONS.contains(&next) {
        let [following, units] = *bytes
            .get(at..end)
            .and_then(|b| b.first_chunk::<2>())
            .ok_or(PacketError::Truncated)?;
        at += (usize::from(units) + 1) * 8;
        next = following;
    }
    if next != IPPROTO_TCP {
        return Err(PacketError::NotTcp);
    }
    if at > end {
        return Err(PacketError::Truncated);
    }
    Ok((at, end))
}

#[cfg(test)]
mod tests;
