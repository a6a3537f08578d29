//! The packet with its payload rewritten: lengths, flags and checksums right.
//!
//! The kernel takes the new packet as it is (nfnetlink_queue.c, `nfqnl_mangle`)
//! and moves sequence numbers afterwards. Since 7.2 it refuses packets whose
//! length fields disagree with their length, or whose IP options changed.

use super::packet::{FIN, PSH, Packet, URG, u16_at};
use super::tracker::Rewrite;

/// Why a packet was not rewritten. It has to be dropped: its expectation and
/// its sequence adjustment assume the rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MangleError {
    /// The payload is signed, or a header stands in the way:
    /// [`Packet::rewritable`] said so.
    #[error("packet can not be rewritten")]
    NotRewritable,
    /// The new packet would exceed 65,535 bytes.
    #[error("rewritten packet is too long")]
    TooLong,
    /// The rewrite is not one of this payload.
    #[error("rewrite lies outside of the payload")]
    OutOfBounds,
}

/// Writes the rewritten packet to `out`, which is cleared first. `out` is
/// reused by its owner: with room for 64 KiB nothing is allocated.
///
/// # Errors
/// [`MangleError`]; `out` is then of no use.
pub fn mangle(
    packet: &Packet<'_>,
    rewrite: &Rewrite,
    out: &mut Vec<u8>,
) -> Result<(), MangleError> {
    if !packet.rewritable {
        return Err(MangleError::NotRewritable);
    }
    let payload = packet.bytes.get(packet.payload..).unwrap_or(&[]);
    let end = rewrite.keep.unwrap_or(payload.len());
    let (range, text) = match &rewrite.edit {
        Some(edit) => (edit.range.clone(), edit.text.as_bytes()),
        None => (end..end, &[][..]),
    };
    if range.start > range.end {
        return Err(MangleError::OutOfBounds);
    }
    let head = payload.get(..range.start);
    let tail = payload.get(range.end..end);
    let (Some(head), Some(tail), Some(headers)) = (head, tail, packet.bytes.get(..packet.payload))
    else {
        return Err(MangleError::OutOfBounds);
    };
    out.clear();
    for part in [headers, head, text, tail] {
        out.extend_from_slice(part);
    }
    let urgent = move_urgent(packet, &range, text.len(), end);
    patch_tcp(packet, out, end < payload.len(), urgent);
    patch_ip(packet, out).ok_or(MangleError::TooLong)?;
    patch_checksum(packet, out);
    Ok(())
}

/// The urgent pointer of the rewritten segment; `None` if it points to what was
/// cut off.
fn move_urgent(
    packet: &Packet<'_>,
    range: &std::ops::Range<usize>,
    new: usize,
    end: usize,
) -> Option<u16> {
    let old = u16_at(packet.bytes, packet.tcp + 18).unwrap_or(0);
    let at = usize::from(old);
    let moved = match at {
        _ if at > end => return None,
        _ if at >= range.end => at + new - range.len().min(at + new),
        _ if at > range.start => range.start + new,
        _ => at,
    };
    u16::try_from(moved).ok()
}

fn patch_tcp(packet: &Packet<'_>, out: &mut [u8], cut: bool, urgent: Option<u16>) {
    let mut flags = packet.flags;
    if cut {
        flags &= !(FIN | PSH);
    }
    if flags & URG != 0 && urgent.is_none() {
        flags &= !URG;
    }
    put(out, packet.tcp + 13, &[flags]);
    if packet.flags & URG != 0 {
        put(out, packet.tcp + 18, &urgent.unwrap_or(0).to_be_bytes());
    }
}

fn patch_ip(packet: &Packet<'_>, out: &mut [u8]) -> Option<()> {
    if !packet.v4 {
        let len = u16::try_from(out.len().checked_sub(40)?).ok()?;
        put(out, 4, &len.to_be_bytes());
        return Some(());
    }
    let len = u16::try_from(out.len()).ok()?;
    put(out, 2, &len.to_be_bytes());
    put(out, 10, &[0, 0]);
    let sum = fold(sum(out.get(..packet.tcp)?));
    put(out, 10, &(!sum).to_be_bytes());
    Some(())
}

/// RFC 9293 section 3.1, RFC 8200 section 8.1.
fn patch_checksum(packet: &Packet<'_>, out: &mut [u8]) {
    put(out, packet.tcp + 16, &[0, 0]);
    let addresses = if packet.v4 { 12..20 } else { 8..40 };
    let segment = out.get(packet.tcp..).unwrap_or(&[]);
    let pseudo =
        sum(out.get(addresses).unwrap_or(&[])) + u64::try_from(segment.len()).unwrap_or(0) + 6;
    let sum = fold(pseudo + sum(segment));
    put(out, packet.tcp + 16, &(!sum).to_be_bytes());
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = out.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// One's complement sum of big-endian words (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let mut sum = 0;
    for word in &mut words {
        sum += word
            .try_into()
            .map_or(0, |w| u64::from(u16::from_be_bytes(w)));
    }
    match words.remainder() {
        [last] => sum + (u64::from(*last) << 8),
        _ => sum,
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}
