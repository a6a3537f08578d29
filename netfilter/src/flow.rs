//! A connection as ctnetlink shows it, and its attributes.

use crate::attr::{Attr, Attrs, DecodeError, Writer};
use crate::conntrack::Status;
use crate::name::Name;
use crate::protoinfo::ProtoInfo;
use crate::tuple::Tuple;

pub(crate) const CTA_TUPLE_ORIG: u16 = 1;
pub(crate) const CTA_TUPLE_REPLY: u16 = 2;
pub(crate) const CTA_STATUS: u16 = 3;
pub(crate) const CTA_PROTOINFO: u16 = 4;
pub(crate) const CTA_HELP: u16 = 5;
pub(crate) const CTA_NAT_SRC: u16 = 6;
pub(crate) const CTA_TIMEOUT: u16 = 7;
pub(crate) const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
pub(crate) const CTA_ID: u16 = 12;
pub(crate) const CTA_NAT_DST: u16 = 13;
pub(crate) const CTA_TUPLE_MASTER: u16 = 14;
pub(crate) const CTA_SEQ_ADJ_ORIG: u16 = 15;
pub(crate) const CTA_SEQ_ADJ_REPLY: u16 = 16;
pub(crate) const CTA_ZONE: u16 = 18;
const CTA_TIMESTAMP: u16 = 20;
pub(crate) const CTA_MARK_MASK: u16 = 21;
pub(crate) const CTA_LABELS: u16 = 22;
pub(crate) const CTA_SYNPROXY: u16 = 24;
pub(crate) const CTA_STATUS_MASK: u16 = 26;

const CTA_HELP_NAME: u16 = 1;
const CTA_HELP_INFO: u16 = 2;
const CTA_SEQADJ_CORRECTION_POS: u16 = 1;
const CTA_SEQADJ_OFFSET_BEFORE: u16 = 2;
const CTA_SEQADJ_OFFSET_AFTER: u16 = 3;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;
const CTA_TIMESTAMP_START: u16 = 1;
const CTA_TIMESTAMP_STOP: u16 = 2;
const CTA_SYNPROXY_ISN: u16 = 1;
const CTA_SYNPROXY_ITS: u16 = 2;
const CTA_SYNPROXY_TSOFF: u16 = 3;

/// Sequence adjustment of one direction (`struct nf_ct_seqadj`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct SeqAdj {
    /// Sequence number, in the sender's numbers, after which `after` counts.
    pub correction_pos: u32,
    /// Bytes added up to `correction_pos`.
    pub before: i32,
    /// Bytes added behind it.
    pub after: i32,
}

/// Helper of a connection (`CTA_HELP`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Help {
    /// Name it is registered under.
    pub name: Name,
    /// Its private data; the kernel holds at most 32 bytes.
    pub info: HelpInfo,
}

/// Private data of a helper (`CTA_HELP_INFO`, `nf_conn_help.data`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HelpInfo {
    bytes: [u8; HelpInfo::MAX],
    len: u8,
}

impl HelpInfo {
    /// Bytes the kernel has for it (include/net/netfilter/nf_conntrack_helper.h).
    pub const MAX: usize = 32;

    /// Holds `data`.
    ///
    /// # Errors
    /// [`DecodeError::Length`] above [`HelpInfo::MAX`] bytes.
    pub fn new(data: &[u8]) -> Result<Self, DecodeError> {
        let too_long = DecodeError::Length {
            attr: "CTA_HELP_INFO",
            len: data.len(),
        };
        let mut bytes = [0; Self::MAX];
        bytes
            .get_mut(..data.len())
            .ok_or(too_long)?
            .copy_from_slice(data);
        let len = u8::try_from(data.len()).map_err(|_| too_long)?;
        Ok(Self { bytes, len })
    }

    /// The data, with the length it came with.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The data padded with zeros to what the kernel stores.
    pub const fn padded(&self) -> &[u8; Self::MAX] {
        &self.bytes
    }
}

/// Packets and bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the network header on.
    pub bytes: u64,
}

/// When the connection began and ended (`nf_conntrack_timestamp` sysctl).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Nanoseconds since the epoch.
    pub start: u64,
    /// Nanoseconds since the epoch; only in destroy events.
    pub stop: Option<u64>,
}

/// SYN proxy state (`struct nf_conn_synproxy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Synproxy {
    /// Initial sequence number.
    pub isn: u32,
    /// Initial timestamp.
    pub its: u32,
    /// Timestamp offset.
    pub tsoff: u32,
}

/// Connection labels: 128 bits, bit 0 is the lowest of byte 0
/// (include/net/netfilter/nf_conntrack_labels.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Labels(pub [u8; 16]);

/// A connection. Absent attributes are `None` (or `ProtoInfo::None`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Tuple of the original direction.
    pub orig: Tuple,
    /// Tuple of the reply direction, after NAT.
    pub reply: Tuple,
    /// Zone of both directions; 0 is the default zone.
    pub zone: u16,
    /// Status bits.
    pub status: Option<Status>,
    /// Seconds until it expires.
    pub timeout: Option<u32>,
    /// Mark.
    pub mark: Option<u32>,
    /// Protocol state.
    pub protoinfo: ProtoInfo,
    /// Helper and its private data.
    pub help: Option<Help>,
    /// Original tuple of the connection whose expectation it matched.
    pub master: Option<Tuple>,
    /// Sequence adjustment of the original direction.
    pub seq_adj_orig: Option<SeqAdj>,
    /// Sequence adjustment of the reply direction.
    pub seq_adj_reply: Option<SeqAdj>,
    /// Labels.
    pub labels: Option<Labels>,
    /// SYN proxy state.
    pub synproxy: Option<Synproxy>,
    /// Counters of the original direction.
    pub counters_orig: Option<Counters>,
    /// Counters of the reply direction.
    pub counters_reply: Option<Counters>,
    /// Start and stop time.
    pub timestamp: Option<Timestamp>,
    /// Identifier, unique while the connection lives.
    pub id: Option<u32>,
}

impl Flow {
    /// A flow with both tuples and nothing else.
    pub const fn new(orig: Tuple, reply: Tuple) -> Self {
        Self {
            orig,
            reply,
            zone: 0,
            status: None,
            timeout: None,
            mark: None,
            protoinfo: ProtoInfo::None,
            help: None,
            master: None,
            seq_adj_orig: None,
            seq_adj_reply: None,
            labels: None,
            synproxy: None,
            counters_orig: None,
            counters_reply: None,
            timestamp: None,
            id: None,
        }
    }

    /// Reads the attributes of an `IPCTNL_MSG_CT_NEW`/`DELETE` message or of
    /// `NFQA_CT` (nf_conntrack_netlink.c, `ctnetlink_fill_info`,
    /// `__ctnetlink_glue_build`). Unknown attributes are skipped.
    ///
    /// # Errors
    /// [`DecodeError`] if a tuple is missing or an attribute is malformed.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let mut it = attrs;
        let (mut orig, mut reply) = (None, None);
        // The kernel writes both tuples first.
        for _ in 0..2 {
            let mut ahead = it;
            match ahead.next() {
                Some(a) if a.ty == CTA_TUPLE_ORIG => orig = Some(Tuple::decode(&a)?),
                Some(a) if a.ty == CTA_TUPLE_REPLY => reply = Some(Tuple::decode(&a)?),
                _ => break,
            }
            it = ahead;
        }
        let tuple = |found: Option<Tuple>, ty, name| match found {
            Some(tuple) => Ok(tuple),
            None => Tuple::decode(&attrs.find(ty).ok_or(DecodeError::Missing(name))?),
        };
        let mut flow = Self::new(
            tuple(orig, CTA_TUPLE_ORIG, "CTA_TUPLE_ORIG")?,
            tuple(reply, CTA_TUPLE_REPLY, "CTA_TUPLE_REPLY")?,
        );
        for a in it {
            flow.set(&a)?;
        }
        Ok(flow)
    }

    #[inline]
    fn set(&mut self, a: &Attr<'_>) -> Result<(), DecodeError> {
        match a.ty {
            CTA_STATUS => self.status = Some(Status::from_bits_retain(a.be32("CTA_STATUS")?)),
            CTA_PROTOINFO => self.protoinfo = ProtoInfo::decode(a)?,
            CTA_HELP => self.help = Some(Help::decode(a)?),
            CTA_TIMEOUT => self.timeout = Some(a.be32("CTA_TIMEOUT")?),
            CTA_MARK => self.mark = Some(a.be32("CTA_MARK")?),
            CTA_COUNTERS_ORIG => self.counters_orig = Some(decode_counters(a)?),
            CTA_COUNTERS_REPLY => self.counters_reply = Some(decode_counters(a)?),
            CTA_ID => self.id = Some(a.be32("CTA_ID")?),
            CTA_TUPLE_MASTER => self.master = Some(Tuple::decode(a)?),
            CTA_SEQ_ADJ_ORIG => self.seq_adj_orig = Some(SeqAdj::decode(a)?),
            CTA_SEQ_ADJ_REPLY => self.seq_adj_reply = Some(SeqAdj::decode(a)?),
            CTA_ZONE => self.zone = a.be16("CTA_ZONE")?,
            CTA_TIMESTAMP => self.timestamp = Some(decode_timestamp(a)?),
            CTA_LABELS => self.labels = Some(decode_labels(a)?),
            CTA_SYNPROXY => self.synproxy = Some(decode_synproxy(a)?),
            _ => {}
        }
        Ok(())
    }

    /// Writes every attribute as the kernel dumps it. For putting a flow
    /// into the kernel use [`crate::inject`].
    pub fn encode(&self, w: &mut Writer<'_>) {
        self.orig.encode(CTA_TUPLE_ORIG, w);
        self.reply.encode(CTA_TUPLE_REPLY, w);
        if self.zone != 0 {
            w.be16(CTA_ZONE, self.zone);
        }
        if let Some(id) = self.id {
            w.be32(CTA_ID, id);
        }
        if let Some(status) = self.status {
            w.be32(CTA_STATUS, status.bits());
        }
        if let Some(timeout) = self.timeout {
            w.be32(CTA_TIMEOUT, timeout);
        }
        for (ty, counters) in [
            (CTA_COUNTERS_ORIG, self.counters_orig),
            (CTA_COUNTERS_REPLY, self.counters_reply),
        ] {
            if let Some(c) = counters {
                w.nest(ty, |w| {
                    w.be64(CTA_COUNTERS_PACKETS, c.packets);
                    w.be64(CTA_COUNTERS_BYTES, c.bytes);
                });
            }
        }
        if let Some(t) = self.timestamp {
            w.nest(CTA_TIMESTAMP, |w| {
                w.be64(CTA_TIMESTAMP_START, t.start);
                if let Some(stop) = t.stop {
                    w.be64(CTA_TIMESTAMP_STOP, stop);
                }
            });
        }
        self.protoinfo.encode(CTA_PROTOINFO, w);
        if let Some(help) = self.help {
            help.encode(w);
        }
        if let Some(master) = self.master {
            master.encode(CTA_TUPLE_MASTER, w);
        }
        self.encode_seq_adj(w);
        self.encode_synproxy(w);
        if let Some(mark) = self.mark {
            w.be32(CTA_MARK, mark);
        }
        if let Some(labels) = self.labels {
            w.put(CTA_LABELS, &labels.0);
        }
    }

    pub(crate) fn encode_seq_adj(&self, w: &mut Writer<'_>) {
        for (ty, adj) in [
            (CTA_SEQ_ADJ_ORIG, self.seq_adj_orig),
            (CTA_SEQ_ADJ_REPLY, self.seq_adj_reply),
        ] {
            if let Some(adj) = adj {
                adj.encode(ty, w);
            }
        }
    }

    pub(crate) fn encode_synproxy(&self, w: &mut Writer<'_>) {
        if let Some(s) = self.synproxy {
            w.nest(CTA_SYNPROXY, |w| {
                w.be32(CTA_SYNPROXY_ISN, s.isn);
                w.be32(CTA_SYNPROXY_ITS, s.its);
                w.be32(CTA_SYNPROXY_TSOFF, s.tsoff);
            });
        }
    }
}

impl SeqAdj {
    /// Writes the nest as attribute `ty`; the kernel wants all three values
    /// (nf_conntrack_netlink.c, `change_seq_adj`).
    pub fn encode(&self, ty: u16, w: &mut Writer<'_>) {
        w.nest(ty, |w| {
            w.be32(CTA_SEQADJ_CORRECTION_POS, self.correction_pos);
            w.put(CTA_SEQADJ_OFFSET_BEFORE, &self.before.to_be_bytes());
            w.put(CTA_SEQADJ_OFFSET_AFTER, &self.after.to_be_bytes());
        });
    }

    fn decode(attr: &Attr<'_>) -> Result<Self, DecodeError> {
        let mut adj = Self::default();
        for a in attr.nested() {
            match a.ty {
                CTA_SEQADJ_CORRECTION_POS => {
                    adj.correction_pos = a.be32("CTA_SEQADJ_CORRECTION_POS")?;
                }
                CTA_SEQADJ_OFFSET_BEFORE => {
                    adj.before = a
                        .array("CTA_SEQADJ_OFFSET_BEFORE")
                        .map(i32::from_be_bytes)?;
                }
                CTA_SEQADJ_OFFSET_AFTER => {
                    adj.after = a.array("CTA_SEQADJ_OFFSET_AFTER").map(i32::from_be_bytes)?;
                }
                _ => {}
            }
        }
        Ok(adj)
    }
}

impl Help {
    /// Writes `CTA_HELP` with the name and, unless empty, the private data.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.nest(CTA_HELP, |w| {
            w.str(CTA_HELP_NAME, self.name.as_bytes());
            if !self.info.as_bytes().is_empty() {
                w.put(CTA_HELP_INFO, self.info.as_bytes());
            }
        });
    }

    /// Writes `CTA_HELP` with the name alone: what a create may carry.
    pub fn encode_name(&self, w: &mut Writer<'_>) {
        w.nest(CTA_HELP, |w| w.str(CTA_HELP_NAME, self.name.as_bytes()));
    }

    fn decode(attr: &Attr<'_>) -> Result<Self, DecodeError> {
        let (mut name, mut info) = (None, HelpInfo::default());
        for a in attr.nested() {
            match a.ty {
                CTA_HELP_NAME => {
                    name = Some(
                        Name::from_attr(a.value)
                            .map_err(|_| DecodeError::Value("CTA_HELP_NAME"))?,
                    );
                }
                // Kernel helpers may dump nests of their own here; what does
                // not fit is not private data of a userspace helper.
                CTA_HELP_INFO => info = HelpInfo::new(a.value).unwrap_or_default(),
                _ => {}
            }
        }
        Ok(Self {
            name: name.ok_or(DecodeError::Missing("CTA_HELP_NAME"))?,
            info,
        })
    }
}

fn decode_counters(attr: &Attr<'_>) -> Result<Counters, DecodeError> {
    let mut c = Counters::default();
    for a in attr.nested() {
        match a.ty {
            CTA_COUNTERS_PACKETS => c.packets = a.be64("CTA_COUNTERS_PACKETS")?,
            CTA_COUNTERS_BYTES => c.bytes = a.be64("CTA_COUNTERS_BYTES")?,
            _ => {}
        }
    }
    Ok(c)
}

fn decode_timestamp(attr: &Attr<'_>) -> Result<Timestamp, DecodeError> {
    let mut t = Timestamp::default();
    for a in attr.nested() {
        match a.ty {
            CTA_TIMESTAMP_START => t.start = a.be64("CTA_TIMESTAMP_START")?,
            CTA_TIMESTAMP_STOP => t.stop = Some(a.be64("CTA_TIMESTAMP_STOP")?),
            _ => {}
        }
    }
    Ok(t)
}

fn decode_labels(attr: &Attr<'_>) -> Result<Labels, DecodeError> {
    let mut labels = Labels::default();
    labels
        .0
        .get_mut(..attr.value.len())
        .ok_or(DecodeError::Length {
            attr: "CTA_LABELS",
            len: attr.value.len(),
        })?
        .copy_from_slice(attr.value);
    Ok(labels)
}

fn decode_synproxy(attr: &Attr<'_>) -> Result<Synproxy, DecodeError> {
    let mut s = Synproxy::default();
    for a in attr.nested() {
        match a.ty {
            CTA_SYNPROXY_ISN => s.isn = a.be32("CTA_SYNPROXY_ISN")?,
            CTA_SYNPROXY_ITS => s.its = a.be32("CTA_SYNPROXY_ITS")?,
            CTA_SYNPROXY_TSOFF => s.tsoff = a.be32("CTA_SYNPROXY_TSOFF")?,
            _ => {}
        }
    }
    Ok(s)
}
