//! ctnetlink requests and events for connections (`NFNL_SUBSYS_CTNETLINK`).

use crate::attr::{Attr, Attrs, DecodeError, Writer};
use crate::flow::{self, Flow};
use crate::message::{Header, Message, NLM_F_ACK, NLM_F_DUMP, SUBSYS_CTNETLINK, TooLong, append};
use crate::tuple::{Dir, Tuple};

/// `IPCTNL_MSG_CT_NEW`.
pub const CT_NEW: u8 = 0;
/// `IPCTNL_MSG_CT_GET`.
pub const CT_GET: u8 = 1;
/// `IPCTNL_MSG_CT_DELETE`.
pub const CT_DELETE: u8 = 2;

/// Multicast groups (`enum nfnetlink_groups`).
pub mod group {
    /// `NFNLGRP_CONNTRACK_NEW`.
    pub const NEW: u32 = 1;
    /// `NFNLGRP_CONNTRACK_UPDATE`.
    pub const UPDATE: u32 = 2;
    /// `NFNLGRP_CONNTRACK_DESTROY`.
    pub const DESTROY: u32 = 3;
    /// `NFNLGRP_CONNTRACK_EXP_NEW`.
    pub const EXP_NEW: u32 = 4;
    /// `NFNLGRP_CONNTRACK_EXP_DESTROY`.
    pub const EXP_DESTROY: u32 = 6;
}

bitflags::bitflags! {
    /// Status bits (`enum ip_conntrack_status`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Status: u32 {
        /// Came through an expectation.
        const EXPECTED = 1 << 0;
        /// Packets were seen in both directions.
        const SEEN_REPLY = 1 << 1;
        /// Not dropped early when the table is full.
        const ASSURED = 1 << 2;
        /// In the table.
        const CONFIRMED = 1 << 3;
        /// Source NAT in the original direction.
        const SRC_NAT = 1 << 4;
        /// Destination NAT in the original direction.
        const DST_NAT = 1 << 5;
        /// Sequence numbers are adjusted.
        const SEQ_ADJUST = 1 << 6;
        /// Source NAT was decided.
        const SRC_NAT_DONE = 1 << 7;
        /// Destination NAT was decided.
        const DST_NAT_DONE = 1 << 8;
        /// On the way out.
        const DYING = 1 << 9;
        /// The timeout does not change.
        const FIXED_TIMEOUT = 1 << 10;
        /// A template.
        const TEMPLATE = 1 << 11;
        /// `IPS_UNTRACKED`, `IPS_NAT_CLASH`.
        const NAT_CLASH = 1 << 12;
        /// A helper was assigned explicitly.
        const HELPER = 1 << 13;
        /// Offloaded to a flow table.
        const OFFLOAD = 1 << 14;
        /// Offloaded to hardware.
        const HW_OFFLOAD = 1 << 15;
        /// Bits this codec has no name for.
        const _ = !0;
    }
}

impl Status {
    /// Source or destination NAT.
    pub const NAT: Self = Self::SRC_NAT.union(Self::DST_NAT);
}

/// What happened to a connection or expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// Created.
    New,
    /// Changed; dumps and GET answers are also of this kind.
    Update,
    /// Gone.
    Destroy,
}

/// An event, dump entry or GET answer about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// Port id of the socket whose request caused it; 0 for packets.
    pub portid: u32,
    /// The connection.
    pub flow: Flow,
}

/// Whether a creation is told by its flags (`ctnetlink_conntrack_event`).
const NEW_FLAGS: u16 = 0x600;

impl Event {
    /// Reads a ctnetlink message; `None` if it is about something else.
    ///
    /// # Errors
    /// [`DecodeError`] if an attribute is malformed.
    pub fn decode(message: &Message<'_>) -> Result<Option<Self>, DecodeError> {
        let Some(nf) = message.netfilter() else {
            return Ok(None);
        };
        let change = match (nf.subsys, nf.msg) {
            (SUBSYS_CTNETLINK, CT_NEW) if message.flags & NEW_FLAGS == NEW_FLAGS => Change::New,
            (SUBSYS_CTNETLINK, CT_NEW) => Change::Update,
            (SUBSYS_CTNETLINK, CT_DELETE) => Change::Destroy,
            _ => return Ok(None),
        };
        Ok(Some(Self {
            change,
            portid: message.portid,
            flow: Flow::decode(nf.attrs)?,
        }))
    }
}

/// Which connections a dump shows; kernels filter by what they know (status
/// since 5.11, zone since 6.12), so check again what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DumpFilter {
    /// `AF_INET`, `AF_INET6` or 0 for both.
    pub family: u8,
    /// Mark and mask.
    pub mark: Option<(u32, u32)>,
    /// Status bits that must be set.
    pub status: Option<Status>,
    /// Zone.
    pub zone: Option<u16>,
}

/// Appends a dump request.
///
/// # Errors
/// [`TooLong`] never happens for a filter.
pub fn dump(buf: &mut Vec<u8>, filter: &DumpFilter, seq: u32) -> Result<(), TooLong> {
    let header = Header {
        subsys: SUBSYS_CTNETLINK,
        msg: CT_GET,
        flags: NLM_F_DUMP,
        family: filter.family,
        res_id: 0,
        seq,
    };
    append(buf, header, |w| {
        if let Some((mark, mask)) = filter.mark {
            w.be32(flow::CTA_MARK, mark);
            w.be32(flow::CTA_MARK_MASK, mask);
        }
        if let Some(status) = filter.status {
            w.be32(flow::CTA_STATUS, status.bits());
            w.be32(flow::CTA_STATUS_MASK, status.bits());
        }
        if let Some(zone) = filter.zone {
            w.be16(flow::CTA_ZONE, zone);
        }
    })
}

/// Appends a GET of one connection by one of its tuples; the answer is an
/// entry and an acknowledgement, or `ENOENT`.
///
/// # Errors
/// [`TooLong`] never happens for a tuple.
pub fn get(buf: &mut Vec<u8>, dir: Dir, tuple: &Tuple, zone: u16, seq: u32) -> Result<(), TooLong> {
    one(buf, CT_GET, NLM_F_ACK, dir, tuple, zone, seq, |_| {})
}

/// Appends a DELETE of one connection; with `id`, only that incarnation.
///
/// # Errors
/// [`TooLong`] never happens for a tuple.
pub fn delete(
    buf: &mut Vec<u8>,
    tuple: &Tuple,
    zone: u16,
    id: Option<u32>,
    seq: u32,
) -> Result<(), TooLong> {
    one(
        buf,
        CT_DELETE,
        NLM_F_ACK,
        Dir::Orig,
        tuple,
        zone,
        seq,
        |w| {
            if let Some(id) = id {
                w.be32(flow::CTA_ID, id);
            }
        },
    )
}

#[expect(clippy::too_many_arguments, reason = "the parts of one request")]
fn one(
    buf: &mut Vec<u8>,
    msg: u8,
    flags: u16,
    dir: Dir,
    tuple: &Tuple,
    zone: u16,
    seq: u32,
    more: impl FnOnce(&mut Writer<'_>),
) -> Result<(), TooLong> {
    let header = Header {
        subsys: SUBSYS_CTNETLINK,
        msg,
        flags,
        family: tuple.family(),
        res_id: 0,
        seq,
    };
    append(buf, header, |w| {
        let ty = match dir {
            Dir::Orig => flow::CTA_TUPLE_ORIG,
            Dir::Reply => flow::CTA_TUPLE_REPLY,
        };
        tuple.encode(ty, w);
        if zone != 0 {
            w.be16(flow::CTA_ZONE, zone);
        }
        more(w);
    })
}

/// The tuple of one direction straight from attributes, for callers that
/// need nothing else.
///
/// # Errors
/// [`DecodeError`] if it is missing or malformed.
pub fn tuple(attrs: Attrs<'_>, dir: Dir) -> Result<Tuple, DecodeError> {
    let (ty, name) = match dir {
        Dir::Orig => (flow::CTA_TUPLE_ORIG, "CTA_TUPLE_ORIG"),
        Dir::Reply => (flow::CTA_TUPLE_REPLY, "CTA_TUPLE_REPLY"),
    };
    let attr: Attr<'_> = attrs.find(ty).ok_or(DecodeError::Missing(name))?;
    Tuple::decode(&attr)
}
