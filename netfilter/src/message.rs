//! Netlink messages: header, nfnetlink header, walking a datagram, errors.

use crate::attr::{Attrs, Writer};
use thiserror::Error;

/// Bytes of `struct nlmsghdr`.
pub const NLMSG_HDRLEN: usize = 16;
/// Bytes of `struct nfgenmsg`.
pub const NFGEN_HDRLEN: usize = 4;

/// `NLM_F_REQUEST`.
pub const NLM_F_REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: answer with an error of 0 on success.
pub const NLM_F_ACK: u16 = 0x4;
/// `NLM_F_DUMP`: all objects.
pub const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const NLM_F_REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`: fail if the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// `NLM_F_CREATE`: create the object if it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// `NLM_F_CAPPED`: an error carries only the header of what it answers.
const NLM_F_CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: an error carries extended-ACK attributes.
const NLM_F_ACK_TLVS: u16 = 0x200;

pub(crate) const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSG_MIN_TYPE: u16 = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// `NFNL_SUBSYS_CTNETLINK`.
pub const SUBSYS_CTNETLINK: u8 = 1;
/// `NFNL_SUBSYS_CTNETLINK_EXP`.
pub const SUBSYS_CTNETLINK_EXP: u8 = 2;
/// `NFNL_SUBSYS_QUEUE`.
pub const SUBSYS_QUEUE: u8 = 3;
/// `NFNL_SUBSYS_CTHELPER`.
pub const SUBSYS_CTHELPER: u8 = 9;

/// What goes into a message's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// `NFNL_SUBSYS_*` (linux/netfilter/nfnetlink.h).
    pub subsys: u8,
    /// Message within the subsystem (`IPCTNL_MSG_*`, `NFQNL_MSG_*`, …).
    pub msg: u8,
    /// `NLM_F_*`; `NLM_F_REQUEST` is added by the builder.
    pub flags: u16,
    /// `nfgen_family`: `AF_INET`, `AF_INET6` or 0.
    pub family: u8,
    /// `res_id`, host order: the queue number for NFQUEUE, else 0.
    pub res_id: u16,
    /// Sequence number; errors and acknowledgements carry it back.
    pub seq: u32,
}

/// A message or attribute was longer than its length field can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("netlink message too long")]
pub struct TooLong;

/// Appends one message to `buf`; `fill` writes its attributes.
///
/// # Errors
/// [`TooLong`]; `buf` is then as it was.
pub fn append(
    buf: &mut Vec<u8>,
    header: Header,
    fill: impl FnOnce(&mut Writer<'_>),
) -> Result<(), TooLong> {
    let start = buf.len();
    let flags = header.flags | NLM_F_REQUEST;
    buf.extend_from_slice(&[0; 4]);
    let ty = u16::from(header.subsys) << 8 | u16::from(header.msg);
    buf.extend_from_slice(&ty.to_ne_bytes());
    buf.extend_from_slice(&flags.to_ne_bytes());
    buf.extend_from_slice(&header.seq.to_ne_bytes());
    buf.extend_from_slice(&[0; 4]);
    buf.extend_from_slice(&[header.family, 0]);
    buf.extend_from_slice(&header.res_id.to_be_bytes());
    let mut writer = Writer::new(buf);
    fill(&mut writer);
    let overflowed = writer.overflowed();
    let len = u32::try_from(buf.len() - start);
    match (overflowed, len, buf.get_mut(start..start + 4)) {
        (false, Ok(len), Some(field)) => {
            field.copy_from_slice(&len.to_ne_bytes());
            Ok(())
        }
        _ => {
            buf.truncate(start);
            Err(TooLong)
        }
    }
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    ty: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Sequence number of the request it answers; 0 in events of packets.
    pub seq: u32,
    /// Port id of the socket that caused it; 0 if the kernel did.
    pub portid: u32,
    body: &'a [u8],
    raw: &'a [u8],
}

/// A message by what it means to the receiver.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    /// nfnetlink payload.
    Netfilter(Netfilter<'a>),
    /// The request `seq` was carried out.
    Ack,
    /// The request `seq` failed.
    Error(Failure<'a>),
    /// End of a dump.
    Done,
    /// `NLMSG_NOOP` or something this codec does not know.
    Other,
}

/// An nfnetlink message: `struct nfgenmsg` and attributes.
#[derive(Debug, Clone, Copy)]
pub struct Netfilter<'a> {
    /// `NFNL_SUBSYS_*`.
    pub subsys: u8,
    /// Message within the subsystem.
    pub msg: u8,
    /// `nfgen_family`.
    pub family: u8,
    /// `res_id`, host order.
    pub res_id: u16,
    /// Attributes.
    pub attrs: Attrs<'a>,
}

/// `struct nlmsgerr` with a non-zero error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure<'a> {
    /// errno, positive.
    pub errno: i32,
    /// The kernel's own words (`NLMSGERR_ATTR_MSG`), if it gave any.
    pub text: Option<&'a str>,
    /// Byte offset of the offending attribute in the request.
    pub offset: Option<u32>,
}

impl<'a> Message<'a> {
    /// The whole message, header included, padding not.
    pub const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The body as nfnetlink, if it is.
    pub fn netfilter(&self) -> Option<Netfilter<'a>> {
        if self.ty < NLMSG_MIN_TYPE {
            return None;
        }
        let [family, _version, r0, r1] = *self.body.first_chunk::<NFGEN_HDRLEN>()?;
        let [subsys, msg] = self.ty.to_be_bytes();
        Some(Netfilter {
            subsys,
            msg,
            family,
            res_id: u16::from_be_bytes([r0, r1]),
            attrs: Attrs::new(self.body.get(NFGEN_HDRLEN..)?),
        })
    }

    /// What kind of message this is.
    pub fn kind(&self) -> Kind<'a> {
        match self.ty {
            NLMSG_ERROR => self.error(),
            NLMSG_DONE => self.done(),
            NLMSG_OVERRUN => Kind::Error(Failure {
                errno: libc::ENOBUFS,
                text: None,
                offset: None,
            }),
            _ => self.netfilter().map_or(Kind::Other, Kind::Netfilter),
        }
    }

    /// A dump that fails midway ends with a negative errno in its DONE.
    fn done(&self) -> Kind<'a> {
        match self.body.first_chunk().map(|b| i32::from_ne_bytes(*b)) {
            Some(errno) if errno < 0 => Kind::Error(Failure {
                errno: errno.saturating_neg(),
                text: None,
                offset: None,
            }),
            _ => Kind::Done,
        }
    }

    fn error(&self) -> Kind<'a> {
        let Some((errno, echo)) = self.body.split_first_chunk::<4>() else {
            return Kind::Other;
        };
        let errno = i32::from_ne_bytes(*errno).saturating_neg();
        if errno == 0 {
            return Kind::Ack;
        }
        let (text, offset) = self.extended_ack(echo).unwrap_or_default();
        Kind::Error(Failure {
            errno,
            text,
            offset,
        })
    }

    /// The TLVs after the echoed request (af_netlink.c, `netlink_ack`).
    fn extended_ack(&self, echo: &'a [u8]) -> Option<(Option<&'a str>, Option<u32>)> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let echoed = if self.flags & NLM_F_CAPPED != 0 {
            NLMSG_HDRLEN
        } else {
            usize::try_from(u32::from_ne_bytes(*echo.first_chunk()?)).ok()?
        };
        let tlvs = Attrs::new(echo.get(echoed.next_multiple_of(4)..)?);
        let text = tlvs
            .find(NLMSGERR_ATTR_MSG)
            .and_then(|a| std::str::from_utf8(a.value).ok())
            .map(|s| s.trim_end_matches('\0'));
        let offset = tlvs
            .find(NLMSGERR_ATTR_OFFS)
            .and_then(|a| a.array("NLMSGERR_ATTR_OFFS").ok())
            .map(u32::from_ne_bytes);
        Some((text, offset))
    }
}

/// Iterates over the messages of a datagram; stops at a malformed one.
#[derive(Debug, Clone, Copy)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Reads messages from `datagram`.
    pub const fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }

    /// Bytes not consumed yet; not empty after the end means malformed input.
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    #[inline]
    fn next(&mut self) -> Option<Message<'a>> {
        let [
            l0,
            l1,
            l2,
            l3,
            t0,
            t1,
            f0,
            f1,
            s0,
            s1,
            s2,
            s3,
            p0,
            p1,
            p2,
            p3,
        ] = *self.0.first_chunk::<NLMSG_HDRLEN>()?;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = self.0.get(NLMSG_HDRLEN..len)?;
        let raw = self.0.get(..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Message {
            ty: u16::from_ne_bytes([t0, t1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            portid: u32::from_ne_bytes([p0, p1, p2, p3]),
            body,
            raw,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_message_is_walked_back() {
        let mut buf = Vec::new();
        let header = Header {
            subsys: SUBSYS_QUEUE,
            msg: 2,
            flags: NLM_F_ACK,
            family: 2,
            res_id: 121,
            seq: 9,
        };
        append(&mut buf, header, |w| w.be32(1, 5)).unwrap();
        append(&mut buf, header, |w| w.u8(2, 6)).unwrap();
        let messages: Vec<_> = Messages::new(&buf).collect();
        assert_eq!(messages.len(), 2);
        let nf = messages[1].netfilter().unwrap();
        assert_eq!((nf.subsys, nf.msg, nf.family, nf.res_id), (3, 2, 2, 121));
        assert_eq!(messages[1].flags, NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(nf.attrs.find(2).unwrap().u8("x").unwrap(), 6);
    }

    #[test]
    fn every_truncation_and_bit_flip_is_survived() {
        let mut buf = Vec::new();
        append(&mut buf, Header::default(), |w| w.be32(1, 5)).unwrap();
        for len in 0..buf.len() {
            assert_eq!(Messages::new(&buf[..len]).count(), 0);
        }
        for bit in 0..buf.len() * 8 {
            let mut flipped = buf.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            for message in Messages::new(&flipped) {
                let _ = message.kind();
            }
        }
    }

    /// `nft add rule inet nosuch c` on 6.18 with `NETLINK_EXT_ACK` and
    /// `NETLINK_CAP_ACK`, reduced to the error layout of `netlink_ack`.
    #[test]
    fn an_error_gives_errno_text_and_offset() {
        let mut buf = Vec::new();
        let mut body = Vec::new();
        body.extend_from_slice(&(-libc::EOPNOTSUPP).to_ne_bytes());
        body.extend_from_slice(&[0; NLMSG_HDRLEN]);
        let mut w = Writer::new(&mut body);
        w.str(NLMSGERR_ATTR_MSG, b"no helper");
        w.put(NLMSGERR_ATTR_OFFS, &44u32.to_ne_bytes());
        let len = u32::try_from(NLMSG_HDRLEN + body.len()).unwrap();
        buf.extend_from_slice(&len.to_ne_bytes());
        buf.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
        buf.extend_from_slice(&(NLM_F_CAPPED | NLM_F_ACK_TLVS).to_ne_bytes());
        buf.extend_from_slice(&[7, 0, 0, 0, 0, 0, 0, 0]);
        buf.extend_from_slice(&body);
        let message = Messages::new(&buf).next().unwrap();
        let Kind::Error(failure) = message.kind() else {
            panic!("not an error: {message:?}");
        };
        assert_eq!(failure.errno, libc::EOPNOTSUPP);
        assert_eq!(failure.text, Some("no helper"));
        assert_eq!(failure.offset, Some(44));
    }
}
