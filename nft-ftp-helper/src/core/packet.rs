//! From a packet's network header to its TCP segment.

use super::conn::Dir;
use super::tracker::{Flags, Segment};

/// A packet the core can do nothing with. All of them pass as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PacketError {
    /// A header or the payload ends before its length says so.
    #[error("packet is truncated")]
    Truncated,
    /// Neither IPv4 nor IPv6, or a header length that can not be.
    #[error("packet header is malformed")]
    Malformed,
    /// A fragment.
    #[error("packet is a fragment")]
    Fragment,
    /// Another protocol: ICMP errors of a connection come to the helper, too.
    #[error("packet is not TCP")]
    NotTcp,
}

const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_DSTOPTS: u8 = 60;
const IPPROTO_MH: u8 = 135;
const IPPROTO_HIP: u8 = 139;
const IPPROTO_SHIM6: u8 = 140;

const TCPOPT_EOL: u8 = 0;
const TCPOPT_NOP: u8 = 1;
const TCPOPT_MD5SIG: u8 = 19;
const TCPOPT_AO: u8 = 29;

pub(super) const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
pub(super) const PSH: u8 = 8;
const ACK: u8 = 16;
pub(super) const URG: u8 = 32;

/// A TCP segment in an IP packet: where its parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The packet from the network header to the end of its payload.
    pub bytes: &'a [u8],
    /// IPv4, not IPv6.
    pub v4: bool,
    /// Offset of the TCP header.
    pub tcp: usize,
    /// Offset of the TCP payload.
    pub payload: usize,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; `None` without the ACK flag.
    pub ack: Option<u32>,
    /// The flags, as in byte 13 of the header (RFC 9293 section 3.1).
    pub flags: u8,
    /// Nothing authenticates the payload (AH, TCP-AO, TCP MD5), no routing
    /// header changes the checksum, and there is room to grow.
    pub rewritable: bool,
}

/// Room a rewrite may need.
const GROWTH: usize = 128;

impl<'a> Packet<'a> {
    /// Finds the TCP segment in a packet that begins with its network header.
    ///
    /// # Errors
    /// [`PacketError`]: the packet is none that FTP could be in.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PacketError> {
        match bytes.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) => Err(PacketError::Malformed),
            None => Err(PacketError::Truncated),
        }
    }

    fn parse_v4(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let header = usize::from(u8_at(bytes, 0)? & 15) * 4;
        let total = usize::from(u16_at(bytes, 2)?);
        let fragment = u16_at(bytes, 6)?;
        let protocol = u8_at(bytes, 9)?;
        if header < 20 || total < header {
            return Err(PacketError::Malformed);
        }
        // More fragments, or an offset.
        if fragment & 0x3fff != 0 {
            return Err(PacketError::Fragment);
        }
        if protocol != IPPROTO_TCP {
            return Err(PacketError::NotTcp);
        }
        let bytes = bytes.get(..total).ok_or(PacketError::Truncated)?;
        Self::parse_tcp(bytes, true, header, true)
    }

    fn parse_v6(bytes: &'a [u8]) -> Result<Self, PacketError> {
        let total = 40 + usize::from(u16_at(bytes, 4)?);
        let bytes = bytes.get(..total).ok_or(PacketError::Truncated)?;
        let (mut next, mut at, mut rewritable) = (u8_at(bytes, 6)?, 40, true);
        loop {
            let len = match next {
                IPPROTO_TCP => return Self::parse_tcp(bytes, false, at, rewritable),
                IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS | IPPROTO_MH | IPPROTO_HIP
                | IPPROTO_SHIM6 => 8 * (usize::from(u8_at(bytes, at + 1)?) + 1),
                IPPROTO_AH => 4 * (usize::from(u8_at(bytes, at + 1)?) + 2),
                IPPROTO_FRAGMENT if u16_at(bytes, at + 2)? & 0xfff9 == 0 => 8,
                IPPROTO_FRAGMENT => return Err(PacketError::Fragment),
                _ => return Err(PacketError::NotTcp),
            };
            let routed = next == IPPROTO_ROUTING && u8_at(bytes, at + 3)? > 0;
            rewritable &= next != IPPROTO_AH && !routed;
            next = u8_at(bytes, at)?;
            at += len;
        }
    }

    fn parse_tcp(
        bytes: &'a [u8],
        v4: bool,
        tcp: usize,
        rewritable: bool,
    ) -> Result<Self, PacketError> {
        let flags = u8_at(bytes, tcp + 13)?;
        let header = usize::from(u8_at(bytes, tcp + 12)? >> 4) * 4;
        if header < 20 {
            return Err(PacketError::Malformed);
        }
        let payload = tcp + header;
        let options = bytes.get(tcp + 20..payload).ok_or(PacketError::Truncated)?;
        let ack = u32_at(bytes, tcp + 8)?;
        Ok(Self {
            bytes,
            v4,
            tcp,
            payload,
            seq: u32_at(bytes, tcp + 4)?,
            ack: (flags & ACK != 0).then_some(ack),
            flags,
            rewritable: rewritable && !signed(options) && bytes.len() + GROWTH <= 0xffff,
        })
    }

    /// Whether it is the answer to the first segment of a connection.
    pub const fn accepts(&self) -> bool {
        self.flags & (SYN | ACK) == SYN | ACK
    }

    /// The segment for [`super::on_segment`]; `dir` from `NFQA_CT_INFO`.
    pub fn segment(&self, dir: Dir) -> Segment<'a> {
        Segment {
            dir,
            seq: self.seq,
            ack: self.ack,
            flags: Flags {
                syn: self.flags & SYN != 0,
                fin: self.flags & FIN != 0,
                rst: self.flags & RST != 0,
            },
            payload: self.bytes.get(self.payload..).unwrap_or(&[]),
        }
    }
}

/// Whether the options sign the payload (RFC 2385, RFC 5925), or can not be
/// read.
fn signed(mut options: &[u8]) -> bool {
    while let Some((&kind, rest)) = options.split_first() {
        options = match kind {
            TCPOPT_EOL => return false,
            TCPOPT_NOP => rest,
            TCPOPT_MD5SIG | TCPOPT_AO => return true,
            _ => {
                let len = rest.first().map_or(0, |l| usize::from(*l));
                match options.get(len..) {
                    Some(rest) if len >= 2 => rest,
                    _ => return true,
                }
            }
        };
    }
    false
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], PacketError> {
    let array = bytes.get(at..).and_then(|b| b.first_chunk());
    array.copied().ok_or(PacketError::Truncated)
}

pub(super) fn u8_at(bytes: &[u8], at: usize) -> Result<u8, PacketError> {
    bytes.get(at).copied().ok_or(PacketError::Truncated)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<u16, PacketError> {
    array_at(bytes, at).map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, PacketError> {
    array_at(bytes, at).map(u32::from_be_bytes)
}
