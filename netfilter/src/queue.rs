//! NFQUEUE (`NFNL_SUBSYS_QUEUE`, nfnetlink_queue.c): configuration, queued
//! packets, verdicts.

use crate::attr::{Attrs, DecodeError, Writer};
use crate::flow::{Flow, Help};
use crate::message::{Header, Message, NLM_F_ACK, SUBSYS_QUEUE, TooLong, append};
use crate::tuple::Dir;

const NFQNL_MSG_PACKET: u8 = 0;
const NFQNL_MSG_VERDICT: u8 = 1;
const NFQNL_MSG_CONFIG: u8 = 2;
const NFQNL_MSG_VERDICT_BATCH: u8 = 3;

const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_MARK: u16 = 3;
const NFQA_IFINDEX_INDEV: u16 = 5;
const NFQA_IFINDEX_OUTDEV: u16 = 6;
const NFQA_PAYLOAD: u16 = 10;
const NFQA_CT: u16 = 11;
const NFQA_CT_INFO: u16 = 12;
const NFQA_CAP_LEN: u16 = 13;
const NFQA_SKB_INFO: u16 = 14;

const NFQA_CFG_CMD: u16 = 1;
const NFQA_CFG_PARAMS: u16 = 2;
const NFQA_CFG_QUEUE_MAXLEN: u16 = 3;
const NFQA_CFG_MASK: u16 = 4;
const NFQA_CFG_FLAGS: u16 = 5;
const NFQNL_CFG_CMD_BIND: u8 = 1;
const NFQNL_CFG_CMD_UNBIND: u8 = 2;
const NFQNL_COPY_META: u8 = 1;
const NFQNL_COPY_PACKET: u8 = 2;

/// Packet bytes the kernel copies at most with range 0.
pub const MAX_COPY: u32 = 65531;

bitflags::bitflags! {
    /// `NFQA_CFG_F_*`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Flags: u32 {
        /// A full queue lets packets pass instead of dropping them.
        const FAIL_OPEN = 1;
        /// Packets carry their connection.
        const CONNTRACK = 2;
        /// GSO packets come whole.
        const GSO = 4;
    }
}

/// How much of a packet comes with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyMode {
    /// Nothing of it.
    Meta,
    /// All of it.
    Packet,
}

/// What to do with a packet (linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// `NF_DROP`.
    Drop,
    /// `NF_ACCEPT`.
    Accept,
    /// `NF_QUEUE` to another queue: how an IPS sees what we rewrote.
    Queue(u16),
}

impl Verdict {
    const fn bits(self) -> u32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Queue(num) => 3 | (num as u32) << 16,
        }
    }
}

const fn header(msg: u8, flags: u16, queue: u16, seq: u32) -> Header {
    Header {
        subsys: SUBSYS_QUEUE,
        msg,
        flags,
        family: 0,
        res_id: queue,
        seq,
    }
}

/// Appends a bind; the queue then belongs to the socket that sends it.
/// `EBUSY` or `EPERM`: it belongs to another.
///
/// # Errors
/// [`TooLong`] never happens.
pub fn bind(buf: &mut Vec<u8>, queue: u16, seq: u32) -> Result<(), TooLong> {
    command(buf, queue, NFQNL_CFG_CMD_BIND, seq)
}

/// Appends an unbind; packets that wait are dropped.
///
/// # Errors
/// [`TooLong`] never happens.
pub fn unbind(buf: &mut Vec<u8>, queue: u16, seq: u32) -> Result<(), TooLong> {
    command(buf, queue, NFQNL_CFG_CMD_UNBIND, seq)
}

fn command(buf: &mut Vec<u8>, queue: u16, cmd: u8, seq: u32) -> Result<(), TooLong> {
    append(buf, header(NFQNL_MSG_CONFIG, NLM_F_ACK, queue, seq), |w| {
        // struct nfqnl_msg_config_cmd: command, pad, be16 family (unused).
        w.put(NFQA_CFG_CMD, &[cmd, 0, 0, 0]);
    })
}

/// Appends the parameters of a bound queue.
/// `EOPNOTSUPP` with [`Flags::CONNTRACK`]: the kernel lacks
/// `CONFIG_NETFILTER_NETLINK_GLUE_CT`.
///
/// # Errors
/// [`TooLong`] never happens.
pub fn configure(
    buf: &mut Vec<u8>,
    queue: u16,
    copy: CopyMode,
    max_len: u32,
    flags: Flags,
    seq: u32,
) -> Result<(), TooLong> {
    let mode = match copy {
        CopyMode::Meta => NFQNL_COPY_META,
        CopyMode::Packet => NFQNL_COPY_PACKET,
    };
    append(buf, header(NFQNL_MSG_CONFIG, NLM_F_ACK, queue, seq), |w| {
        // struct nfqnl_msg_config_params: be32 range (0: all), u8 mode.
        w.put(NFQA_CFG_PARAMS, &[0, 0, 0, 0, mode]);
        w.be32(NFQA_CFG_QUEUE_MAXLEN, max_len);
        w.be32(NFQA_CFG_FLAGS, flags.bits());
        w.be32(NFQA_CFG_MASK, Flags::all().bits());
    })
}

/// Relation of a packet to its connection (`enum ip_conntrack_info`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtInfo {
    /// Belongs to it, in this direction.
    Established(Dir),
    /// Related to it (an ICMP error), in this direction.
    Related(Dir),
    /// Begins it.
    New,
    /// A number this codec does not know.
    Other(u32),
}

impl From<u32> for CtInfo {
    fn from(info: u32) -> Self {
        match info {
            0 => Self::Established(Dir::Orig),
            1 => Self::Related(Dir::Orig),
            2 => Self::New,
            3 => Self::Established(Dir::Reply),
            4 => Self::Related(Dir::Reply),
            other => Self::Other(other),
        }
    }
}

/// A queued packet; borrows the receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// Queue it came from.
    pub queue: u16,
    /// Identifier within the queue; the verdict names it.
    pub id: u32,
    /// Ethernet protocol, `ETH_P_IP` or `ETH_P_IPV6`.
    pub hw_protocol: u16,
    /// Hook it was queued at.
    pub hook: u8,
    /// Packet mark.
    pub mark: Option<u32>,
    /// Input interface.
    pub indev: Option<u32>,
    /// Output interface.
    pub outdev: Option<u32>,
    /// The packet from the network header on.
    pub payload: &'a [u8],
    /// Length before truncation, if it was truncated.
    pub cap_len: Option<u32>,
    /// `NFQA_SKB_*`.
    pub skb_info: u32,
    /// The connection's attributes; [`Flow::decode`] reads them.
    pub ct: Option<Attrs<'a>>,
    /// Relation to the connection.
    pub ct_info: Option<CtInfo>,
}

impl<'a> Packet<'a> {
    /// Reads an `NFQNL_MSG_PACKET`; `None` if it is another message.
    ///
    /// # Errors
    /// [`DecodeError`] if the header is missing or an attribute malformed.
    /// [`packet_id`] may still tell which packet waits for a verdict.
    pub fn decode(message: &Message<'a>) -> Result<Option<Self>, DecodeError> {
        let Some(nf) = message.netfilter() else {
            return Ok(None);
        };
        if (nf.subsys, nf.msg) != (SUBSYS_QUEUE, NFQNL_MSG_PACKET) {
            return Ok(None);
        }
        let mut p = Self {
            queue: nf.res_id,
            id: 0,
            hw_protocol: 0,
            hook: 0,
            mark: None,
            indev: None,
            outdev: None,
            payload: &[],
            cap_len: None,
            skb_info: 0,
            ct: None,
            ct_info: None,
        };
        let mut seen = false;
        for a in nf.attrs {
            match a.ty {
                NFQA_PACKET_HDR => {
                    let [i0, i1, i2, i3, h0, h1, hook] = a.array("NFQA_PACKET_HDR")?;
                    p.id = u32::from_be_bytes([i0, i1, i2, i3]);
                    p.hw_protocol = u16::from_be_bytes([h0, h1]);
                    p.hook = hook;
                    seen = true;
                }
                NFQA_MARK => p.mark = Some(a.be32("NFQA_MARK")?),
                NFQA_IFINDEX_INDEV => p.indev = Some(a.be32("NFQA_IFINDEX_INDEV")?),
                NFQA_IFINDEX_OUTDEV => p.outdev = Some(a.be32("NFQA_IFINDEX_OUTDEV")?),
                NFQA_PAYLOAD => p.payload = a.value,
                NFQA_CT => p.ct = Some(a.nested()),
                NFQA_CT_INFO => p.ct_info = Some(a.be32("NFQA_CT_INFO")?.into()),
                NFQA_CAP_LEN => p.cap_len = Some(a.be32("NFQA_CAP_LEN")?),
                NFQA_SKB_INFO => p.skb_info = a.be32("NFQA_SKB_INFO")?,
                _ => {}
            }
        }
        if seen {
            Ok(Some(p))
        } else {
            Err(DecodeError::Missing("NFQA_PACKET_HDR"))
        }
    }

    /// Whether the connection came through an expectation: it has a master.
    pub fn is_expected(&self) -> bool {
        self.ct
            .is_some_and(|ct| ct.find(crate::flow::CTA_TUPLE_MASTER).is_some())
    }

    /// The connection of the packet, if the message carries one.
    ///
    /// # Errors
    /// [`DecodeError`] if it is malformed.
    pub fn flow(&self) -> Result<Option<Flow>, DecodeError> {
        self.ct.map(Flow::decode).transpose()
    }
}

/// The queue and id of a packet message whose rest may be malformed, so that
/// it can be accepted instead of waiting for ever.
pub fn packet_id(message: &Message<'_>) -> Option<(u16, u32)> {
    let nf = message.netfilter()?;
    if (nf.subsys, nf.msg) != (SUBSYS_QUEUE, NFQNL_MSG_PACKET) {
        return None;
    }
    let header = nf.attrs.find(NFQA_PACKET_HDR)?;
    let id = header.value.first_chunk::<4>()?;
    Some((nf.res_id, u32::from_be_bytes(*id)))
}

/// What goes with a verdict.
#[derive(Debug, Clone, Copy, Default)]
pub struct With<'a> {
    /// The whole packet from the network header on, lengths and checksums
    /// right; the kernel fixes nothing.
    pub payload: Option<&'a [u8]>,
    /// Helper name and new private data. The name must be the connection's
    /// helper (else the kernel skips the rest of the nest).
    pub help: Option<Help>,
}

/// Appends a verdict. No acknowledgement is asked for; `ENOENT` comes back
/// for a packet that a ruleset reload flushed from the queue.
///
/// # Errors
/// [`TooLong`] if the payload is above 65531 bytes.
pub fn verdict(
    buf: &mut Vec<u8>,
    queue: u16,
    id: u32,
    verdict: Verdict,
    with: With<'_>,
    seq: u32,
) -> Result<(), TooLong> {
    append(buf, header(NFQNL_MSG_VERDICT, 0, queue, seq), |w| {
        encode_verdict(id, verdict, w);
        if let Some(help) = with.help {
            w.nest(NFQA_CT, |w| help.encode(w));
        }
        if let Some(payload) = with.payload {
            w.put(NFQA_PAYLOAD, payload);
        }
    })
}

/// Appends one verdict for every waiting packet up to `id`.
///
/// # Errors
/// [`TooLong`] never happens.
pub fn verdict_batch(
    buf: &mut Vec<u8>,
    queue: u16,
    id: u32,
    verdict: Verdict,
    seq: u32,
) -> Result<(), TooLong> {
    append(buf, header(NFQNL_MSG_VERDICT_BATCH, 0, queue, seq), |w| {
        encode_verdict(id, verdict, w);
    })
}

/// struct nfqnl_msg_verdict_hdr: be32 verdict, be32 id.
fn encode_verdict(id: u32, verdict: Verdict, w: &mut Writer<'_>) {
    let [v0, v1, v2, v3] = verdict.bits().to_be_bytes();
    let [i0, i1, i2, i3] = id.to_be_bytes();
    w.put(NFQA_VERDICT_HDR, &[v0, v1, v2, v3, i0, i1, i2, i3]);
}
