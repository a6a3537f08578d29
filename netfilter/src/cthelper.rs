//! Userspace conntrack helpers (`NFNL_SUBSYS_CTHELPER`, nfnetlink_cthelper.c).
//!
//! The registry is one for the whole machine, whatever the network
//! namespace; the queue a helper names is looked up in the namespace of the
//! packet.

use crate::attr::{Attr, Attrs, DecodeError, Writer};
use crate::message::{
    Header, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, SUBSYS_CTHELPER, TooLong, append,
};
use crate::name::Name;

const CTHELPER_NEW: u8 = 0;
const CTHELPER_GET: u8 = 1;
const CTHELPER_DEL: u8 = 2;

const NFCTH_NAME: u16 = 1;
const NFCTH_TUPLE: u16 = 2;
const NFCTH_QUEUE_NUM: u16 = 3;
const NFCTH_POLICY: u16 = 4;
const NFCTH_PRIV_DATA_LEN: u16 = 5;
const NFCTH_STATUS: u16 = 6;
const NFCTH_TUPLE_L3PROTONUM: u16 = 1;
const NFCTH_TUPLE_L4PROTONUM: u16 = 2;
const NFCTH_POLICY_SET_NUM: u16 = 1;
const NFCTH_POLICY_SET1: u16 = 2;
const NFCTH_POLICY_NAME: u16 = 1;
const NFCTH_POLICY_EXPECT_MAX: u16 = 2;
const NFCTH_POLICY_EXPECT_TIMEOUT: u16 = 3;

/// Most classes a helper can have (`NF_CT_MAX_EXPECT_CLASSES`).
pub const MAX_CLASSES: usize = 4;
/// Most expectations of one class per connection (`NF_CT_EXPECT_MAX_CNT`).
pub const MAX_EXPECTED: u32 = 255;

/// Whether packets go to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HelperStatus {
    /// Packets pass as if there were no helper; it stays attached.
    Disabled,
    /// Packets go to the queue; with nobody on it connections stall.
    Enabled,
}

/// Limits of one class of expectations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Name of the class, at most 15 bytes.
    pub name: Name,
    /// Live expectations per connection, 1 to [`MAX_EXPECTED`]; one more
    /// evicts the oldest.
    pub max: u32,
    /// Seconds an expectation lives.
    pub timeout_secs: u32,
}

/// A registration for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Helper {
    /// Name, at most 15 bytes.
    pub name: Name,
    /// `AF_INET` or `AF_INET6`.
    pub family: u8,
    /// IP protocol.
    pub l4proto: u8,
    /// Queue number.
    pub queue: u16,
    /// One per class.
    pub policies: Vec<Policy>,
    /// Bytes of private data per connection, at most 32.
    pub priv_data_len: u32,
    /// Whether packets are queued.
    pub status: HelperStatus,
}

const fn header(msg: u8, flags: u16, seq: u32) -> Header {
    Header {
        subsys: SUBSYS_CTHELPER,
        msg,
        flags,
        family: 0,
        res_id: 0,
        seq,
    }
}

/// Appends a registration, or an update if name, family and protocol exist.
/// An update can't change the private data's length or the number and names
/// of classes (`EBUSY`).
///
/// # Errors
/// [`TooLong`] never happens with valid names.
pub fn new(buf: &mut Vec<u8>, helper: &Helper, seq: u32) -> Result<(), TooLong> {
    append(
        buf,
        header(CTHELPER_NEW, NLM_F_CREATE | NLM_F_ACK, seq),
        |w| {
            encode_key(&helper.name, helper.family, helper.l4proto, w);
            w.be32(NFCTH_QUEUE_NUM, helper.queue.into());
            w.nest(NFCTH_POLICY, |w| encode_policies(&helper.policies, w));
            w.be32(NFCTH_PRIV_DATA_LEN, helper.priv_data_len);
            encode_status(helper.status, w);
        },
    )
}

/// Appends an update of the status alone.
///
/// # Errors
/// [`TooLong`] never happens with valid names.
pub fn set_status(
    buf: &mut Vec<u8>,
    name: &Name,
    family: u8,
    l4proto: u8,
    status: HelperStatus,
    seq: u32,
) -> Result<(), TooLong> {
    append(buf, header(CTHELPER_NEW, NLM_F_ACK, seq), |w| {
        encode_key(name, family, l4proto, w);
        encode_status(status, w);
    })
}

/// Appends a DELETE. While an nft object refers to the helper: `EBUSY`
/// before 7.2, a dead object from then on.
///
/// # Errors
/// [`TooLong`] never happens with valid names.
pub fn delete(
    buf: &mut Vec<u8>,
    name: &Name,
    family: u8,
    l4proto: u8,
    seq: u32,
) -> Result<(), TooLong> {
    append(buf, header(CTHELPER_DEL, NLM_F_ACK, seq), |w| {
        encode_key(name, family, l4proto, w);
    })
}

/// Appends a dump of all userspace helpers.
///
/// # Errors
/// [`TooLong`] never happens.
pub fn dump(buf: &mut Vec<u8>, seq: u32) -> Result<(), TooLong> {
    append(buf, header(CTHELPER_GET, NLM_F_DUMP, seq), |_| {})
}

fn encode_key(name: &Name, family: u8, l4proto: u8, w: &mut Writer<'_>) {
    w.str(NFCTH_NAME, name.as_bytes());
    w.nest(NFCTH_TUPLE, |w| {
        w.be16(NFCTH_TUPLE_L3PROTONUM, family.into());
        w.u8(NFCTH_TUPLE_L4PROTONUM, l4proto);
    });
}

fn encode_status(status: HelperStatus, w: &mut Writer<'_>) {
    w.be32(NFCTH_STATUS, u32::from(status == HelperStatus::Enabled));
}

fn encode_policies(policies: &[Policy], w: &mut Writer<'_>) {
    let policies = policies.get(..MAX_CLASSES).unwrap_or(policies);
    w.be32(
        NFCTH_POLICY_SET_NUM,
        u32::try_from(policies.len()).unwrap_or(0),
    );
    for (ty, policy) in (NFCTH_POLICY_SET1..).zip(policies) {
        w.nest(ty, |w| {
            w.str(NFCTH_POLICY_NAME, policy.name.as_bytes());
            w.be32(NFCTH_POLICY_EXPECT_MAX, policy.max);
            w.be32(NFCTH_POLICY_EXPECT_TIMEOUT, policy.timeout_secs);
        });
    }
}

impl Helper {
    /// Reads an `NFNL_MSG_CTHELPER_NEW` as dumps give it
    /// (nfnetlink_cthelper.c, `nfnl_cthelper_fill_info`).
    ///
    /// # Errors
    /// [`DecodeError`] if the name or the tuple is missing or malformed.
    pub fn decode(attrs: Attrs<'_>) -> Result<Self, DecodeError> {
        let name = attrs
            .find(NFCTH_NAME)
            .ok_or(DecodeError::Missing("NFCTH_NAME"))?;
        let mut helper = Self {
            name: Name::from_attr(name.value).map_err(|_| DecodeError::Value("NFCTH_NAME"))?,
            family: 0,
            l4proto: 0,
            queue: 0,
            policies: Vec::new(),
            priv_data_len: 0,
            status: HelperStatus::Disabled,
        };
        for a in attrs {
            helper.set(&a)?;
        }
        Ok(helper)
    }

    fn set(&mut self, a: &Attr<'_>) -> Result<(), DecodeError> {
        match a.ty {
            NFCTH_TUPLE => self.set_tuple(a)?,
            NFCTH_QUEUE_NUM => {
                self.queue = u16::try_from(a.be32("NFCTH_QUEUE_NUM")?)
                    .map_err(|_| DecodeError::Value("NFCTH_QUEUE_NUM"))?;
            }
            NFCTH_POLICY => {
                self.policies = a
                    .nested()
                    .filter(|a| a.ty >= NFCTH_POLICY_SET1)
                    .map(|a| decode_policy(&a))
                    .collect::<Result<_, _>>()?;
            }
            NFCTH_PRIV_DATA_LEN => self.priv_data_len = a.be32("NFCTH_PRIV_DATA_LEN")?,
            NFCTH_STATUS => {
                self.status = match a.be32("NFCTH_STATUS")? {
                    0 => HelperStatus::Disabled,
                    _ => HelperStatus::Enabled,
                };
            }
            _ => {}
        }
        Ok(())
    }

    fn set_tuple(&mut self, attr: &Attr<'_>) -> Result<(), DecodeError> {
        for a in attr.nested() {
            match a.ty {
                NFCTH_TUPLE_L3PROTONUM => {
                    self.family = u8::try_from(a.be16("NFCTH_TUPLE_L3PROTONUM")?)
                        .map_err(|_| DecodeError::Value("NFCTH_TUPLE_L3PROTONUM"))?;
                }
                NFCTH_TUPLE_L4PROTONUM => self.l4proto = a.u8("NFCTH_TUPLE_L4PROTONUM")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn decode_policy(attr: &Attr<'_>) -> Result<Policy, DecodeError> {
    let nested = attr.nested();
    let find = |ty, name| nested.find(ty).ok_or(DecodeError::Missing(name));
    let name = find(NFCTH_POLICY_NAME, "NFCTH_POLICY_NAME")?;
    Ok(Policy {
        name: Name::from_attr(name.value).map_err(|_| DecodeError::Value("NFCTH_POLICY_NAME"))?,
        max: find(NFCTH_POLICY_EXPECT_MAX, "NFCTH_POLICY_EXPECT_MAX")?
            .be32("NFCTH_POLICY_EXPECT_MAX")?,
        timeout_secs: find(NFCTH_POLICY_EXPECT_TIMEOUT, "NFCTH_POLICY_EXPECT_TIMEOUT")?
            .be32("NFCTH_POLICY_EXPECT_TIMEOUT")?,
    })
}
