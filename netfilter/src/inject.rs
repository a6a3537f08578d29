//! Putting connections into the kernel (`IPCTNL_MSG_CT_NEW`).
//!
//! What a dump shows is not what a create takes: the reply tuple must be the
//! plain inverse of the original one and NAT be given as `CTA_NAT_*`, status
//! bits that the kernel manages must be left out, TCP flags need a mask, and
//! a helper's private data is accepted only by a second message
//! (nf_conntrack_netlink.c, `ctnetlink_create_conntrack`,
//! `ctnetlink_change_conntrack`).

use crate::attr::Writer;
use crate::conntrack::{CT_NEW, Status};
use crate::flow::{self, Flow};
use crate::message::{
    Header, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, SUBSYS_CTNETLINK, TooLong, append,
};
use crate::protoinfo::{self, ProtoInfo};
use crate::tuple::{L4, Tuple};

const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_NAT_V6_MINIP: u16 = 4;
const CTA_NAT_V6_MAXIP: u16 = 5;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;

/// Status bits a create or update accepts besides `CONFIRMED`. An update that lacks
/// one leaves it as it is, or is refused (EBUSY).
pub const SETTABLE: Status = Status::SEEN_REPLY
    .union(Status::ASSURED)
    .union(Status::FIXED_TIMEOUT);
/// TCP flags that make sense on another machine. `MAXACK_SET` does not: the
/// number it vouches for is not restored.
const TCP_FLAGS: u8 = protoinfo::TCP_FLAG_WINDOW_SCALE
    | protoinfo::TCP_FLAG_SACK_PERM
    | protoinfo::TCP_FLAG_CLOSE_INIT
    | protoinfo::TCP_FLAG_BE_LIBERAL;

/// How to put flows into the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Set `BE_LIBERAL` for TCP: accept any window after the failover.
    pub liberal: bool,
    /// Give the helper's name. Without, a flow whose helper is not
    /// registered here can still be created.
    pub help: bool,
    /// Give the master's tuple.
    pub master: bool,
    /// Ask for an acknowledgement of success; errors come anyway.
    pub ack: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            liberal: true,
            help: true,
            master: true,
            ack: false,
        }
    }
}

const fn header(flow: &Flow, flags: u16, ack: bool, seq: u32) -> Header {
    Header {
        subsys: SUBSYS_CTNETLINK,
        msg: CT_NEW,
        flags: if ack { flags | NLM_F_ACK } else { flags },
        family: flow.orig.family(),
        res_id: 0,
        seq,
    }
}

/// Appends a create (`NLM_F_CREATE | NLM_F_EXCL`).
///
/// # Errors
/// [`TooLong`] never happens for a flow.
pub fn create(buf: &mut Vec<u8>, flow: &Flow, options: Options, seq: u32) -> Result<(), TooLong> {
    let header = header(flow, NLM_F_CREATE | NLM_F_EXCL, options.ack, seq);
    append(buf, header, |w| {
        flow.orig.encode(flow::CTA_TUPLE_ORIG, w);
        flow.orig
            .inverse_in_zone_of(&flow.reply)
            .encode(flow::CTA_TUPLE_REPLY, w);
        w.be32(flow::CTA_TIMEOUT, flow.timeout.unwrap_or(0));
        encode_state(flow, options, w);
        encode_nat(flow, w);
        if let (true, Some(help)) = (options.help, flow.help) {
            help.encode_name(w);
        }
        if let (true, Some(master)) = (options.master, flow.master) {
            master.encode(flow::CTA_TUPLE_MASTER, w);
        }
        encode_zone(flow, w);
    })
}

/// Appends an update of what may change on an existing connection: timeout,
/// status, protocol state, mark, labels, sequence adjustments, and the
/// helper's private data if `options.help`.
///
/// # Errors
/// [`TooLong`] never happens for a flow.
pub fn update(buf: &mut Vec<u8>, flow: &Flow, options: Options, seq: u32) -> Result<(), TooLong> {
    append(buf, header(flow, 0, options.ack, seq), |w| {
        flow.orig.encode(flow::CTA_TUPLE_ORIG, w);
        if let Some(timeout) = flow.timeout {
            w.be32(flow::CTA_TIMEOUT, timeout);
        }
        encode_state(flow, options, w);
        if let (true, Some(help)) = (options.help, flow.help) {
            help.encode(w);
        }
        encode_zone(flow, w);
    })
}

/// Appends the second message after a create: the helper's private data.
///
/// # Errors
/// [`TooLong`] never happens for a flow.
pub fn help_info(buf: &mut Vec<u8>, flow: &Flow, ack: bool, seq: u32) -> Result<(), TooLong> {
    append(buf, header(flow, 0, ack, seq), |w| {
        flow.orig.encode(flow::CTA_TUPLE_ORIG, w);
        if let Some(help) = flow.help {
            help.encode(w);
        }
        encode_zone(flow, w);
    })
}

/// Appends an update of the sequence adjustments, and of the helper's private
/// data if `flow.help` is given; takes effect for the packet in flight too and
/// raises an UPDATE event with both.
///
/// # Errors
/// [`TooLong`] never happens for a flow.
pub fn seq_adj(buf: &mut Vec<u8>, flow: &Flow, ack: bool, seq: u32) -> Result<(), TooLong> {
    append(buf, header(flow, 0, ack, seq), |w| {
        flow.orig.encode(flow::CTA_TUPLE_ORIG, w);
        flow.encode_seq_adj(w);
        if let Some(help) = flow.help {
            help.encode(w);
        }
        encode_zone(flow, w);
    })
}

fn encode_zone(flow: &Flow, w: &mut Writer<'_>) {
    if flow.zone != 0 {
        w.be16(flow::CTA_ZONE, flow.zone);
    }
}

fn encode_state(flow: &Flow, options: Options, w: &mut Writer<'_>) {
    let status = flow.status.unwrap_or_default() & SETTABLE | Status::CONFIRMED;
    w.be32(flow::CTA_STATUS, status.bits());
    restorable(flow.protoinfo, options.liberal).encode(flow::CTA_PROTOINFO, w);
    flow.encode_seq_adj(w);
    flow.encode_synproxy(w);
    if let Some(mark) = flow.mark {
        w.be32(flow::CTA_MARK, mark);
    }
    if let Some(labels) = flow.labels {
        w.put(flow::CTA_LABELS, &labels.0);
    }
}

/// A dump shows flags under mask 0; give the ones to restore their mask.
fn restorable(info: ProtoInfo, liberal: bool) -> ProtoInfo {
    let ProtoInfo::Tcp(mut tcp) = info else {
        return info;
    };
    for flags in [&mut tcp.flags_orig, &mut tcp.flags_reply] {
        flags.mask = TCP_FLAGS;
        flags.flags &= TCP_FLAGS;
        if liberal {
            flags.flags |= protoinfo::TCP_FLAG_BE_LIBERAL;
        }
    }
    ProtoInfo::Tcp(tcp)
}

/// NAT is what makes the reply tuple differ from the inverse: give address
/// and port both, or the port is lost.
fn encode_nat(flow: &Flow, w: &mut Writer<'_>) {
    let inverse = flow.orig.inverse();
    let (plain, real) = (&inverse, &flow.reply);
    if real.dst != plain.dst || real.dport() != plain.dport() || icmp_id(real) != icmp_id(plain) {
        let port = icmp_id(real).unwrap_or(real.dport());
        encode_range(flow::CTA_NAT_SRC, real.dst, port, real.l4, w);
    }
    if real.src != plain.src || real.sport() != plain.sport() {
        encode_range(flow::CTA_NAT_DST, real.src, real.sport(), real.l4, w);
    }
}

const fn icmp_id(tuple: &Tuple) -> Option<u16> {
    match tuple.l4 {
        L4::Icmp { id, .. } => Some(id),
        _ => None,
    }
}

fn encode_range(ty: u16, addr: std::net::IpAddr, port: u16, l4: L4, w: &mut Writer<'_>) {
    w.nest(ty, |w| {
        w.ip(CTA_NAT_V4_MINIP, CTA_NAT_V6_MINIP, addr);
        w.ip(CTA_NAT_V4_MAXIP, CTA_NAT_V6_MAXIP, addr);
        if l4 != L4::None {
            w.nest(CTA_NAT_PROTO, |w| {
                w.be16(CTA_PROTONAT_PORT_MIN, port);
                w.be16(CTA_PROTONAT_PORT_MAX, port);
            });
        }
    });
}

impl Tuple {
    /// The inverse of `self` in the directional zone that `reply` has.
    fn inverse_in_zone_of(&self, reply: &Self) -> Self {
        Self {
            zone: reply.zone,
            ..self.inverse()
        }
    }
}
