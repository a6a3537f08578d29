//! Protocol state of a connection (`CTA_PROTOINFO`).

use crate::attr::{Attr, DecodeError, Writer};

const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_DCCP: u16 = 2;
const CTA_PROTOINFO_SCTP: u16 = 3;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_PROTOINFO_TCP_WSCALE_ORIGINAL: u16 = 2;
const CTA_PROTOINFO_TCP_WSCALE_REPLY: u16 = 3;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
const CTA_PROTOINFO_DCCP_STATE: u16 = 1;
const CTA_PROTOINFO_DCCP_ROLE: u16 = 2;
const CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ: u16 = 3;
const CTA_PROTOINFO_SCTP_STATE: u16 = 1;
const CTA_PROTOINFO_SCTP_VTAG_ORIGINAL: u16 = 2;
const CTA_PROTOINFO_SCTP_VTAG_REPLY: u16 = 3;

/// `IP_CT_TCP_FLAG_WINDOW_SCALE`.
pub const TCP_FLAG_WINDOW_SCALE: u8 = 0x01;
/// `IP_CT_TCP_FLAG_SACK_PERM`.
pub const TCP_FLAG_SACK_PERM: u8 = 0x02;
/// `IP_CT_TCP_FLAG_CLOSE_INIT`.
pub const TCP_FLAG_CLOSE_INIT: u8 = 0x04;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`.
pub const TCP_FLAG_BE_LIBERAL: u8 = 0x08;

/// `IP_CT_TCP_FLAG_MAXACK_SET`: this kernel has seen an acknowledgement of
/// that direction (nf_conntrack_proto_tcp.c, `tcp_in_window`).
pub const TCP_FLAG_MAXACK_SET: u8 = 0x20;

/// Names of TCP states in the kernel's order (`enum tcp_conntrack`).
pub const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// Flags of one direction (`struct nf_ct_tcp_flags`). A dump carries mask 0;
/// written back, only bits under the mask are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags {
    /// `IP_CT_TCP_FLAG_*`.
    pub flags: u8,
    /// Which of them count.
    pub mask: u8,
}

/// TCP state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tcp {
    /// `enum tcp_conntrack`, an index into [`TCP_STATES`].
    pub state: u8,
    /// Window scale of the original direction.
    pub wscale_orig: u8,
    /// Window scale of the reply direction.
    pub wscale_reply: u8,
    /// Flags of the original direction.
    pub flags_orig: TcpFlags,
    /// Flags of the reply direction.
    pub flags_reply: TcpFlags,
}

/// Protocol state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProtoInfo {
    /// None, or not in this message.
    #[default]
    None,
    /// TCP.
    Tcp(Tcp),
    /// DCCP.
    Dccp {
        /// `enum ct_dccp_states`.
        state: u8,
        /// Role of the original direction.
        role: u8,
        /// Handshake sequence number.
        handshake_seq: u64,
    },
    /// SCTP.
    Sctp {
        /// `enum sctp_conntrack`.
        state: u8,
        /// Verification tag of the original direction.
        vtag_orig: u32,
        /// Verification tag of the reply direction.
        vtag_reply: u32,
    },
}

impl ProtoInfo {
    /// Reads `CTA_PROTOINFO`; protocols it does not know give `None`.
    ///
    /// # Errors
    /// [`DecodeError`] on a wrong length.
    pub fn decode(attr: &Attr<'_>) -> Result<Self, DecodeError> {
        let mut info = Self::None;
        for a in attr.nested() {
            match a.ty {
                CTA_PROTOINFO_TCP => info = Self::Tcp(decode_tcp(&a)?),
                CTA_PROTOINFO_DCCP => info = decode_dccp(&a)?,
                CTA_PROTOINFO_SCTP => info = decode_sctp(&a)?,
                _ => {}
            }
        }
        Ok(info)
    }

    /// Writes the nest as attribute `ty`, if there is anything to write.
    pub fn encode(&self, ty: u16, w: &mut Writer<'_>) {
        match *self {
            Self::None => {}
            Self::Tcp(tcp) => w.nest(ty, |w| w.nest(CTA_PROTOINFO_TCP, |w| encode_tcp(&tcp, w))),
            Self::Dccp {
                state,
                role,
                handshake_seq,
            } => w.nest(ty, |w| {
                w.nest(CTA_PROTOINFO_DCCP, |w| {
                    w.u8(CTA_PROTOINFO_DCCP_STATE, state);
                    w.u8(CTA_PROTOINFO_DCCP_ROLE, role);
                    w.be64(CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ, handshake_seq);
                });
            }),
            Self::Sctp {
                state,
                vtag_orig,
                vtag_reply,
            } => w.nest(ty, |w| {
                w.nest(CTA_PROTOINFO_SCTP, |w| {
                    w.u8(CTA_PROTOINFO_SCTP_STATE, state);
                    w.be32(CTA_PROTOINFO_SCTP_VTAG_ORIGINAL, vtag_orig);
                    w.be32(CTA_PROTOINFO_SCTP_VTAG_REPLY, vtag_reply);
                });
            }),
        }
    }
}

fn encode_tcp(tcp: &Tcp, w: &mut Writer<'_>) {
    w.u8(CTA_PROTOINFO_TCP_STATE, tcp.state);
    w.u8(CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, tcp.wscale_orig);
    w.u8(CTA_PROTOINFO_TCP_WSCALE_REPLY, tcp.wscale_reply);
    for (ty, f) in [
        (CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, tcp.flags_orig),
        (CTA_PROTOINFO_TCP_FLAGS_REPLY, tcp.flags_reply),
    ] {
        w.put(ty, &[f.flags, f.mask]);
    }
}

fn decode_tcp(attr: &Attr<'_>) -> Result<Tcp, DecodeError> {
    let mut tcp = Tcp::default();
    let flags = |a: &Attr<'_>| {
        let [flags, mask] = a.array("CTA_PROTOINFO_TCP_FLAGS")?;
        Ok(TcpFlags { flags, mask })
    };
    for a in attr.nested() {
        match a.ty {
            CTA_PROTOINFO_TCP_STATE => tcp.state = a.u8("CTA_PROTOINFO_TCP_STATE")?,
            CTA_PROTOINFO_TCP_WSCALE_ORIGINAL => {
                tcp.wscale_orig = a.u8("CTA_PROTOINFO_TCP_WSCALE_ORIGINAL")?;
            }
            CTA_PROTOINFO_TCP_WSCALE_REPLY => {
                tcp.wscale_reply = a.u8("CTA_PROTOINFO_TCP_WSCALE_REPLY")?;
            }
            CTA_PROTOINFO_TCP_FLAGS_ORIGINAL => tcp.flags_orig = flags(&a)?,
            CTA_PROTOINFO_TCP_FLAGS_REPLY => tcp.flags_reply = flags(&a)?,
            _ => {}
        }
    }
    Ok(tcp)
}

fn decode_dccp(attr: &Attr<'_>) -> Result<ProtoInfo, DecodeError> {
    let (mut state, mut role, mut handshake_seq) = (0, 0, 0);
    for a in attr.nested() {
        match a.ty {
            CTA_PROTOINFO_DCCP_STATE => state = a.u8("CTA_PROTOINFO_DCCP_STATE")?,
            CTA_PROTOINFO_DCCP_ROLE => role = a.u8("CTA_PROTOINFO_DCCP_ROLE")?,
            CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ => {
                handshake_seq = a.be64("CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ")?;
            }
            _ => {}
        }
    }
    Ok(ProtoInfo::Dccp {
        state,
        role,
        handshake_seq,
    })
}

fn decode_sctp(attr: &Attr<'_>) -> Result<ProtoInfo, DecodeError> {
    let (mut state, mut vtag_orig, mut vtag_reply) = (0, 0, 0);
    for a in attr.nested() {
        match a.ty {
            CTA_PROTOINFO_SCTP_STATE => state = a.u8("CTA_PROTOINFO_SCTP_STATE")?,
            CTA_PROTOINFO_SCTP_VTAG_ORIGINAL => {
                vtag_orig = a.be32("CTA_PROTOINFO_SCTP_VTAG_ORIGINAL")?;
            }
            CTA_PROTOINFO_SCTP_VTAG_REPLY => {
                vtag_reply = a.be32("CTA_PROTOINFO_SCTP_VTAG_REPLY")?;
            }
            _ => {}
        }
    }
    Ok(ProtoInfo::Sctp {
        state,
        vtag_orig,
        vtag_reply,
    })
}
