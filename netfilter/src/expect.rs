//! Expectations (`NFNL_SUBSYS_CTNETLINK_EXP`).

use crate::attr::{Attr, Attrs, DecodeError, Writer};
use crate::conntrack::Change;
use crate::message::{
    Header, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, SUBSYS_CTNETLINK_EXP,
    TooLong, append,
};
use crate::name::Name;
use crate::tuple::{Dir, L4, Tuple, exact, unspecified};
use std::net::IpAddr;

/// `IPCTNL_MSG_EXP_NEW`.
pub const EXP_NEW: u8 = 0;
/// `IPCTNL_MSG_EXP_GET`.
pub const EXP_GET: u8 = 1;
/// `IPCTNL_MSG_EXP_DELETE`.
pub const EXP_DELETE: u8 = 2;

const CTA_EXPECT_MASTER: u16 = 1;
const CTA_EXPECT_TUPLE: u16 = 2;
const CTA_EXPECT_MASK: u16 = 3;
const CTA_EXPECT_TIMEOUT: u16 = 4;
const CTA_EXPECT_ID: u16 = 5;
const CTA_EXPECT_HELP_NAME: u16 = 6;
const CTA_EXPECT_ZONE: u16 = 7;
const CTA_EXPECT_FLAGS: u16 = 8;
const CTA_EXPECT_CLASS: u16 = 9;
const CTA_EXPECT_NAT: u16 = 10;
const CTA_EXPECT_FN: u16 = 11;
const CTA_EXPECT_NAT_DIR: u16 = 1;
const CTA_EXPECT_NAT_TUPLE: u16 = 2;

bitflags::bitflags! {
    /// Flags of an expectation (`NF_CT_EXPECT_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Flags: u32 {
        /// Serves any number of connections until its timeout.
        const PERMANENT = 1;
        /// Matches nothing.
        const INACTIVE = 2;
        /// Made by a program; the kernel strips it on input.
        const USERSPACE = 4;
        /// Bits this codec has no name for.
        const _ = !0;
    }
}

/// Which bits of the expected tuple count. The kernel honours the source
/// alone; the destination is always compared whole, and dumped as all ones
/// (nf_conntrack_expect.c, `nf_ct_exp_equal`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mask {
    /// Bits of the source address.
    pub src: IpAddr,
    /// Bits of the destination address.
    pub dst: IpAddr,
    /// Bits of the source port.
    pub sport: u16,
    /// Bits of the destination port.
    pub dport: u16,
}

impl Mask {
    /// Source address exact, source port any: what FTP data needs.
    pub const fn any_sport(like: IpAddr) -> Self {
        Self {
            src: exact(like),
            dst: exact(like),
            sport: 0,
            dport: 0xffff,
        }
    }

    /// Source address and port any.
    pub const fn any_source(like: IpAddr) -> Self {
        Self {
            src: unspecified(like),
            ..Self::any_sport(like)
        }
    }

    fn encode(&self, l4proto: u8, w: &mut Writer<'_>) {
        let tuple = Tuple {
            src: self.src,
            dst: self.dst,
            l4proto,
            l4: L4::Ports {
                src: self.sport,
                dst: self.dport,
            },
            zone: None,
        };
        tuple.encode(CTA_EXPECT_MASK, w);
    }

    fn decode(attr: &Attr<'_>) -> Result<Self, DecodeError> {
        let tuple = Tuple::decode(attr)?;
        Ok(Self {
            src: tuple.src,
            dst: tuple.dst,
            sport: tuple.sport(),
            dport: tuple.dport(),
        })
    }
}

/// How an expected connection is translated (`CTA_EXPECT_NAT`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpectNat {
    /// Direction of the master that the expected connection follows.
    pub dir: Dir,
    /// Saved address (`saved_addr`).
    pub addr: IpAddr,
    /// Saved port (`saved_proto`).
    pub port: u16,
    /// Protocol of the saved tuple.
    pub l4proto: u8,
}

/// An expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Expectation {
    /// A tuple of the master, original or reply direction.
    pub master: Tuple,
    /// What is expected; the source counts under `mask` only.
    pub tuple: Tuple,
    /// Mask.
    pub mask: Mask,
    /// Seconds left. Ignored by the kernel on create: the class's policy
    /// counts then, and a second message sets this
    /// (nf_conntrack_netlink.c, `ctnetlink_change_expect`).
    pub timeout: Option<u32>,
    /// Identifier.
    pub id: Option<u32>,
    /// Helper of the master.
    pub helper: Option<Name>,
    /// Zone. Never in dumps and events: take the master's.
    pub zone: u16,
    /// Flags.
    pub flags: Flags,
    /// Index into the helper's policies.
    pub class: u32,
    /// NAT of the expected connection.
    pub nat: Option<ExpectNat>,
    /// Name of the expectation function, `nat-follow-master` for FTP.
    pub expectfn: Option<Name>,
}

impl Expectation {
    /// A plain expectation of class 0.
    pub const fn new(master: Tuple, tuple: Tuple, mask: Mask) -> Self {
        Self {
            master,
            tuple,
            mask,
            timeout: None,
            id: None,
            helper: None,
            zone: 0,
            flags: Flags::empty(),
            class: 0,
            nat: None,
            expectfn: None,
        }
    }

    /// Reads the attributes of an `IPCTNL_MSG_EXP_*` message
    /// (nf_conntrack_netlink.c, `ctnetlink_exp_dump_expect`).
    ///
    /// # Errors
    /// [`DecodeError`] if master, tuple or mask is missing, or an attribute
    /// is malformed.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let tuple = |ty, name| {
            let attr = attrs.find(ty).ok_or(DecodeError::Missing(name))?;
            Tuple::decode(&attr)
        };
        let mask = attrs
            .find(CTA_EXPECT_MASK)
            .ok_or(DecodeError::Missing("CTA_EXPECT_MASK"))?;
        let mut exp = Self::new(
            tuple(CTA_EXPECT_MASTER, "CTA_EXPECT_MASTER")?,
            tuple(CTA_EXPECT_TUPLE, "CTA_EXPECT_TUPLE")?,
            Mask::decode(&mask)?,
        );
        for a in attrs {
            exp.set(&a)?;
        }
        Ok(exp)
    }

    fn set(&mut self, a: &Attr<'_>) -> Result<(), DecodeError> {
        let name = |attr| Name::from_attr(a.value).map_err(|_| DecodeError::Value(attr));
        match a.ty {
            CTA_EXPECT_TIMEOUT => self.timeout = Some(a.be32("CTA_EXPECT_TIMEOUT")?),
            CTA_EXPECT_ID => self.id = Some(a.be32("CTA_EXPECT_ID")?),
            CTA_EXPECT_HELP_NAME => self.helper = Some(name("CTA_EXPECT_HELP_NAME")?),
            CTA_EXPECT_ZONE => self.zone = a.be16("CTA_EXPECT_ZONE")?,
            CTA_EXPECT_FLAGS => {
                self.flags = Flags::from_bits_retain(a.be32("CTA_EXPECT_FLAGS")?);
            }
            CTA_EXPECT_CLASS => self.class = a.be32("CTA_EXPECT_CLASS")?,
            CTA_EXPECT_NAT => self.nat = Some(ExpectNat::decode(a)?),
            CTA_EXPECT_FN => self.expectfn = Some(name("CTA_EXPECT_FN")?),
            _ => {}
        }
        Ok(())
    }

    /// Writes what the kernel takes back. The helper's name is left out: new
    /// kernels ignore it and old ones would attach it to the child
    /// (nf_conntrack_netlink.c, `ctnetlink_alloc_expect`).
    pub fn encode(&self, w: &mut Writer<'_>) {
        self.master.encode(CTA_EXPECT_MASTER, w);
        self.tuple.encode(CTA_EXPECT_TUPLE, w);
        self.mask.encode(self.tuple.l4proto, w);
        if let Some(timeout) = self.timeout {
            w.be32(CTA_EXPECT_TIMEOUT, timeout);
        }
        if self.zone != 0 {
            w.be16(CTA_EXPECT_ZONE, self.zone);
        }
        let flags = self.flags & (Flags::PERMANENT | Flags::INACTIVE);
        w.be32(CTA_EXPECT_FLAGS, flags.bits());
        w.be32(CTA_EXPECT_CLASS, self.class);
        if let Some(nat) = self.nat {
            nat.encode(w);
        }
        if let Some(expectfn) = self.expectfn {
            w.str(CTA_EXPECT_FN, expectfn.as_bytes());
        }
    }
}

impl ExpectNat {
    fn encode(&self, w: &mut Writer<'_>) {
        let saved = Tuple {
            src: self.addr,
            dst: unspecified(self.addr),
            l4proto: self.l4proto,
            l4: L4::Ports {
                src: self.port,
                dst: 0,
            },
            zone: None,
        };
        w.nest(CTA_EXPECT_NAT, |w| {
            w.be32(CTA_EXPECT_NAT_DIR, u32::from(self.dir == Dir::Reply));
            saved.encode(CTA_EXPECT_NAT_TUPLE, w);
        });
    }

    fn decode(attr: &Attr<'_>) -> Result<Self, DecodeError> {
        let dir = attr
            .nested()
            .find(CTA_EXPECT_NAT_DIR)
            .ok_or(DecodeError::Missing("CTA_EXPECT_NAT_DIR"))?;
        let tuple = attr
            .nested()
            .find(CTA_EXPECT_NAT_TUPLE)
            .ok_or(DecodeError::Missing("CTA_EXPECT_NAT_TUPLE"))?;
        let tuple = Tuple::decode(&tuple)?;
        let dir = match dir.be32("CTA_EXPECT_NAT_DIR")? {
            0 => Dir::Orig,
            1 => Dir::Reply,
            _ => return Err(DecodeError::Value("CTA_EXPECT_NAT_DIR")),
        };
        Ok(Self {
            dir,
            addr: tuple.src,
            port: tuple.sport(),
            l4proto: tuple.l4proto,
        })
    }
}

/// An event, dump entry or GET answer about an expectation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What happened; the kernel never reports updates.
    pub change: Change,
    /// Port id of the socket whose request caused it; 0 for packets.
    pub portid: u32,
    /// The expectation.
    pub expectation: Expectation,
}

impl Event {
    /// Reads an expectation message; `None` if it is about something else.
    /// Dump entries come as `Change::Update`.
    ///
    /// # Errors
    /// [`DecodeError`] if an attribute is malformed.
    pub fn decode(message: &Message<'_>) -> Result<Option<Self>, DecodeError> {
        let Some(nf) = message.netfilter() else {
            return Ok(None);
        };
        let created = NLM_F_CREATE | NLM_F_EXCL;
        let change = match (nf.subsys, nf.msg) {
            (SUBSYS_CTNETLINK_EXP, EXP_NEW) if message.flags & created == created => Change::New,
            (SUBSYS_CTNETLINK_EXP, EXP_NEW) => Change::Update,
            (SUBSYS_CTNETLINK_EXP, EXP_DELETE) => Change::Destroy,
            _ => return Ok(None),
        };
        Ok(Some(Self {
            change,
            portid: message.portid,
            expectation: Expectation::decode(nf.attrs)?,
        }))
    }
}

const fn header(msg: u8, flags: u16, family: u8, seq: u32) -> Header {
    Header {
        subsys: SUBSYS_CTNETLINK_EXP,
        msg,
        flags,
        family,
        res_id: 0,
        seq,
    }
}

/// Appends a create; an expectation on the same tuple makes it fail
/// (`EEXIST`, `EBUSY`). Asks for an acknowledgement.
///
/// # Errors
/// [`TooLong`] never happens for an expectation.
pub fn create(buf: &mut Vec<u8>, exp: &Expectation, seq: u32) -> Result<(), TooLong> {
    let flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK;
    append(buf, header(EXP_NEW, flags, exp.tuple.family(), seq), |w| {
        exp.encode(w)
    })
}

/// Appends an update, which changes nothing but the timeout of whatever
/// expectation covers the tuple. Asks for an acknowledgement.
///
/// # Errors
/// [`TooLong`] never happens for an expectation.
pub fn update(buf: &mut Vec<u8>, exp: &Expectation, seq: u32) -> Result<(), TooLong> {
    append(
        buf,
        header(EXP_NEW, NLM_F_ACK, exp.tuple.family(), seq),
        |w| exp.encode(w),
    )
}

/// Appends a DELETE by tuple; with `id`, only that very expectation.
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
    append(
        buf,
        header(EXP_DELETE, NLM_F_ACK, tuple.family(), seq),
        |w| {
            tuple.encode(CTA_EXPECT_TUPLE, w);
            if zone != 0 {
                w.be16(CTA_EXPECT_ZONE, zone);
            }
            if let Some(id) = id {
                w.be32(CTA_EXPECT_ID, id);
            }
        },
    )
}

/// Appends a dump of all expectations, or of those of the connection with
/// the tuple and zone `master`.
///
/// # Errors
/// [`TooLong`] never happens for a tuple.
pub fn dump(buf: &mut Vec<u8>, master: Option<(&Tuple, u16)>, seq: u32) -> Result<(), TooLong> {
    let Some((tuple, zone)) = master else {
        return append(buf, header(EXP_GET, NLM_F_DUMP, 0, seq), |_| {});
    };
    // A connection without helper gives no dump but an acknowledgement, if
    // one is asked for (nf_conntrack_netlink.c, `ctnetlink_dump_exp_ct`).
    let flags = NLM_F_DUMP | NLM_F_ACK;
    append(buf, header(EXP_GET, flags, tuple.family(), seq), |w| {
        tuple.encode(CTA_EXPECT_MASTER, w);
        if zone != 0 {
            w.be16(CTA_EXPECT_ZONE, zone);
        }
    })
}
