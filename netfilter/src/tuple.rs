//! Connection tuples: addresses, ports and protocol in one direction.

use crate::attr::{Attr, DecodeError, Writer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const CTA_TUPLE_IP: u16 = 1;
pub(crate) const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
pub(crate) const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const CTA_PROTO_ICMPV6_TYPE: u16 = 8;
const CTA_PROTO_ICMPV6_CODE: u16 = 9;

/// Direction of a connection (`enum ip_conntrack_dir`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dir {
    /// As the first packet went: `IP_CT_DIR_ORIGINAL`.
    Orig,
    /// The way back: `IP_CT_DIR_REPLY`.
    Reply,
}

impl std::ops::Not for Dir {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::Orig => Self::Reply,
            Self::Reply => Self::Orig,
        }
    }
}

/// What identifies a flow above the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum L4 {
    /// Nothing: a protocol the kernel tracks by address only.
    #[default]
    None,
    /// TCP, UDP, UDP-Lite, SCTP, DCCP ports; GRE keys.
    Ports {
        /// Source port or key.
        src: u16,
        /// Destination port or key.
        dst: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Identifier.
        id: u16,
        /// Type.
        ty: u8,
        /// Code.
        code: u8,
    },
}

/// A tuple (`struct nf_conntrack_tuple`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address; always of the family of `src`.
    pub dst: IpAddr,
    /// IP protocol number.
    pub l4proto: u8,
    /// Ports or ids.
    pub l4: L4,
    /// Zone of this direction only (`CTA_TUPLE_ZONE`).
    pub zone: Option<u16>,
}

impl Tuple {
    /// A TCP tuple.
    pub fn tcp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self {
            src,
            dst,
            l4proto: IPPROTO_TCP,
            l4: L4::Ports {
                src: sport,
                dst: dport,
            },
            zone: None,
        }
    }

    /// `AF_INET` or `AF_INET6`.
    pub const fn family(&self) -> u8 {
        match self.src {
            IpAddr::V4(_) => AF_INET,
            IpAddr::V6(_) => AF_INET6,
        }
    }

    /// Source port; 0 without ports.
    pub const fn sport(&self) -> u16 {
        match self.l4 {
            L4::Ports { src, .. } => src,
            _ => 0,
        }
    }

    /// Destination port; 0 without ports.
    pub const fn dport(&self) -> u16 {
        match self.l4 {
            L4::Ports { dst, .. } => dst,
            _ => 0,
        }
    }

    /// The tuple of the packets that come back when nothing is translated
    /// (nf_conntrack_core.c, `nf_ct_invert_tuple`).
    #[must_use]
    pub fn inverse(&self) -> Self {
        let l4 = match self.l4 {
            L4::None => L4::None,
            L4::Ports { src, dst } => L4::Ports { src: dst, dst: src },
            L4::Icmp { id, ty, code } => L4::Icmp {
                id,
                ty: inverse_icmp(self.l4proto, ty),
                code,
            },
        };
        Self {
            src: self.dst,
            dst: self.src,
            l4proto: self.l4proto,
            l4,
            zone: self.zone,
        }
    }

    /// Writes the tuple as attribute `ty` (nf_conntrack_netlink.c,
    /// `ctnetlink_dump_tuples` and `ctnetlink_parse_tuple`).
    pub fn encode(&self, ty: u16, w: &mut Writer<'_>) {
        w.nest(ty, |w| {
            w.nest(CTA_TUPLE_IP, |w| {
                w.ip(CTA_IP_V4_SRC, CTA_IP_V6_SRC, self.src);
                w.ip(CTA_IP_V4_DST, CTA_IP_V6_DST, self.dst);
            });
            w.nest(CTA_TUPLE_PROTO, |w| self.encode_proto(w));
            if let Some(zone) = self.zone {
                w.be16(CTA_TUPLE_ZONE, zone);
            }
        });
    }

    fn encode_proto(&self, w: &mut Writer<'_>) {
        w.u8(CTA_PROTO_NUM, self.l4proto);
        match self.l4 {
            L4::None => {}
            L4::Ports { src, dst } => {
                w.be16(CTA_PROTO_SRC_PORT, src);
                w.be16(CTA_PROTO_DST_PORT, dst);
            }
            L4::Icmp { id, ty, code } if self.l4proto == IPPROTO_ICMPV6 => {
                w.be16(CTA_PROTO_ICMPV6_ID, id);
                w.u8(CTA_PROTO_ICMPV6_TYPE, ty);
                w.u8(CTA_PROTO_ICMPV6_CODE, code);
            }
            L4::Icmp { id, ty, code } => {
                w.be16(CTA_PROTO_ICMP_ID, id);
                w.u8(CTA_PROTO_ICMP_TYPE, ty);
                w.u8(CTA_PROTO_ICMP_CODE, code);
            }
        }
    }

    /// Reads a tuple attribute.
    ///
    /// # Errors
    /// [`DecodeError`] if an address or the protocol is missing, families
    /// differ, or a length is wrong.
    pub fn decode(attr: &Attr<'_>) -> Result<Self, DecodeError> {
        let (mut src, mut dst, mut zone) = (None, None, None);
        let mut proto = Proto::default();
        for a in attr.nested() {
            match a.ty {
                CTA_TUPLE_IP => (src, dst) = decode_ip(&a)?,
                CTA_TUPLE_PROTO => proto = Proto::decode(&a)?,
                CTA_TUPLE_ZONE => zone = Some(a.be16("CTA_TUPLE_ZONE")?),
                _ => {}
            }
        }
        let src = src.ok_or(DecodeError::Missing("CTA_IP_*_SRC"))?;
        let dst: IpAddr = dst.ok_or(DecodeError::Missing("CTA_IP_*_DST"))?;
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(DecodeError::Value("CTA_TUPLE_IP"));
        }
        Ok(Self {
            src,
            dst,
            l4proto: proto.num.ok_or(DecodeError::Missing("CTA_PROTO_NUM"))?,
            l4: proto.l4(),
            zone,
        })
    }
}

impl fmt::Display for Tuple {
    /// As conntrack(8) prints it: `src=… dst=… sport=… dport=…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src={} dst={}", self.src, self.dst)?;
        match self.l4 {
            L4::None => Ok(()),
            L4::Ports { src, dst } if self.l4proto == IPPROTO_GRE => {
                write!(f, " srckey={src:#x} dstkey={dst:#x}")
            }
            L4::Ports { src, dst } => write!(f, " sport={src} dport={dst}"),
            L4::Icmp { id, ty, code } => write!(f, " type={ty} code={code} id={id}"),
        }
    }
}

type Addresses = (Option<IpAddr>, Option<IpAddr>);

fn decode_ip(attr: &Attr<'_>) -> Result<Addresses, DecodeError> {
    let (mut src, mut dst) = (None, None);
    for a in attr.nested() {
        match a.ty {
            CTA_IP_V4_SRC => src = Some(a.ipv4("CTA_IP_V4_SRC")?),
            CTA_IP_V4_DST => dst = Some(a.ipv4("CTA_IP_V4_DST")?),
            CTA_IP_V6_SRC => src = Some(a.ipv6("CTA_IP_V6_SRC")?),
            CTA_IP_V6_DST => dst = Some(a.ipv6("CTA_IP_V6_DST")?),
            _ => {}
        }
    }
    Ok((src, dst))
}

#[derive(Default)]
struct Proto {
    num: Option<u8>,
    sport: Option<u16>,
    dport: Option<u16>,
    icmp_id: Option<u16>,
    icmp_type: u8,
    icmp_code: u8,
}

impl Proto {
    fn decode(attr: &Attr<'_>) -> Result<Self, DecodeError> {
        let mut p = Self::default();
        for a in attr.nested() {
            match a.ty {
                CTA_PROTO_NUM => p.num = Some(a.u8("CTA_PROTO_NUM")?),
                CTA_PROTO_SRC_PORT => p.sport = Some(a.be16("CTA_PROTO_SRC_PORT")?),
                CTA_PROTO_DST_PORT => p.dport = Some(a.be16("CTA_PROTO_DST_PORT")?),
                CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID => {
                    p.icmp_id = Some(a.be16("CTA_PROTO_ICMP_ID")?);
                }
                CTA_PROTO_ICMP_TYPE | CTA_PROTO_ICMPV6_TYPE => {
                    p.icmp_type = a.u8("CTA_PROTO_ICMP_TYPE")?;
                }
                CTA_PROTO_ICMP_CODE | CTA_PROTO_ICMPV6_CODE => {
                    p.icmp_code = a.u8("CTA_PROTO_ICMP_CODE")?;
                }
                _ => {}
            }
        }
        Ok(p)
    }

    fn l4(&self) -> L4 {
        match (self.sport, self.dport, self.icmp_id) {
            (None, None, None) => L4::None,
            (None, None, Some(id)) => L4::Icmp {
                id,
                ty: self.icmp_type,
                code: self.icmp_code,
            },
            (src, dst, _) => L4::Ports {
                src: src.unwrap_or(0),
                dst: dst.unwrap_or(0),
            },
        }
    }
}

/// nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c, `invmap`.
const fn inverse_icmp(l4proto: u8, ty: u8) -> u8 {
    match (l4proto, ty) {
        (IPPROTO_ICMP, 0) => 8,
        (IPPROTO_ICMP, 8) => 0,
        (IPPROTO_ICMP, 13) => 14,
        (IPPROTO_ICMP, 14) => 13,
        (IPPROTO_ICMP, 15) => 16,
        (IPPROTO_ICMP, 16) => 15,
        (IPPROTO_ICMP, 17) => 18,
        (IPPROTO_ICMP, 18) => 17,
        (IPPROTO_ICMPV6, 128) => 129,
        (IPPROTO_ICMPV6, 129) => 128,
        (IPPROTO_ICMPV6, 139) => 140,
        (IPPROTO_ICMPV6, 140) => 139,
        (_, ty) => ty,
    }
}

/// `IPPROTO_ICMP`.
pub const IPPROTO_ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const IPPROTO_TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const IPPROTO_UDP: u8 = 17;
/// `IPPROTO_DCCP`.
pub const IPPROTO_DCCP: u8 = 33;
/// `IPPROTO_GRE`.
pub const IPPROTO_GRE: u8 = 47;
/// `IPPROTO_ICMPV6`.
pub const IPPROTO_ICMPV6: u8 = 58;
/// `IPPROTO_SCTP`.
pub const IPPROTO_SCTP: u8 = 132;
/// `IPPROTO_UDPLITE`.
pub const IPPROTO_UDPLITE: u8 = 136;
/// `AF_INET`.
pub const AF_INET: u8 = 2;
/// `AF_INET6`.
pub const AF_INET6: u8 = 10;

/// The unspecified address of the family of `like`.
pub const fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// The all-ones address of the family of `like`: an exact mask.
pub const fn exact(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::BROADCAST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
    }
}
