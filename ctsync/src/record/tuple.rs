//! Tuples, and the head byte that starts every key.

use super::Unencodable;
use crate::wire::{Reader, WireError, put_varint};
use netfilter::tuple::{
    IPPROTO_DCCP, IPPROTO_GRE, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP,
    IPPROTO_UDP, IPPROTO_UDPLITE,
};
use netfilter::{L4, Tuple};
use std::net::IpAddr;

const EXPECT: u8 = 0x01;
const V6: u8 = 0x02;
const ZONE: u8 = 0x04;
const TUPLE_ZONE: u8 = 0x08;

/// Protocols with a code of their own in the head byte's upper half; the
/// form of their `L4` follows from it. Code 0 spells both out.
const CODES: [u8; 9] = [
    0,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_SCTP,
    IPPROTO_DCCP,
    IPPROTO_GRE,
    IPPROTO_UDPLITE,
];

/// What a key starts with.
pub(super) struct Head {
    pub expect: bool,
    pub zone: u16,
    pub tuple: Tuple,
}

/// Form of an `L4`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    None,
    Ports,
    Icmp,
}

impl Form {
    const fn of(l4: L4) -> Self {
        match l4 {
            L4::None => Self::None,
            L4::Ports { .. } => Self::Ports,
            L4::Icmp { .. } => Self::Icmp,
        }
    }

    const fn implied(l4proto: u8) -> Self {
        match l4proto {
            IPPROTO_ICMP | IPPROTO_ICMPV6 => Self::Icmp,
            _ => Self::Ports,
        }
    }

    const fn from_byte(b: u8) -> Option<Self> {
        match b {
            0 => Some(Self::None),
            1 => Some(Self::Ports),
            2 => Some(Self::Icmp),
            _ => None,
        }
    }
}

fn code(l4proto: u8, form: Form) -> u8 {
    if form != Form::implied(l4proto) {
        return 0;
    }
    let at = CODES.iter().skip(1).position(|p| *p == l4proto);
    at.and_then(|i| u8::try_from(i + 1).ok()).unwrap_or(0)
}

pub(super) fn put_key(
    out: &mut Vec<u8>,
    expect: bool,
    tuple: &Tuple,
    zone: u16,
) -> Result<(), Unencodable> {
    let mut head = if expect { EXPECT } else { 0 };
    if zone != 0 {
        head |= ZONE;
    }
    let at = out.len();
    put_headed(out, head, tuple)?;
    if zone != 0 {
        out.splice(at + 1..at + 1, zone.to_be_bytes());
    }
    Ok(())
}

pub(super) fn read_key(r: &mut Reader<'_>) -> Result<Head, WireError> {
    let head = r.u8("head")?;
    let zone = if head & ZONE != 0 {
        nonzero(r.u16("zone")?)?
    } else {
        0
    };
    Ok(Head {
        expect: head & EXPECT != 0,
        zone,
        tuple: read_headed(r, head)?,
    })
}

const fn nonzero(zone: u16) -> Result<u16, WireError> {
    match zone {
        0 => Err(WireError::Value("zone")),
        z => Ok(z),
    }
}

/// A tuple that stands alone, such as a master's.
pub(super) fn put(out: &mut Vec<u8>, tuple: &Tuple) -> Result<(), Unencodable> {
    put_headed(out, 0, tuple)
}

pub(super) fn read(r: &mut Reader<'_>) -> Result<Tuple, WireError> {
    let head = r.u8("tuple head")?;
    if head & (EXPECT | ZONE) != 0 {
        return Err(WireError::Value("tuple head"));
    }
    read_headed(r, head)
}

fn put_headed(out: &mut Vec<u8>, mut head: u8, t: &Tuple) -> Result<(), Unencodable> {
    if t.src.is_ipv4() != t.dst.is_ipv4() {
        return Err(Unencodable("tuple of two families"));
    }
    let form = Form::of(t.l4);
    let code = code(t.l4proto, form);
    head |= code << 4;
    if t.src.is_ipv6() {
        head |= V6;
    }
    if t.zone.is_some() {
        head |= TUPLE_ZONE;
    }
    out.push(head);
    if let Some(zone) = t.zone {
        out.extend_from_slice(&zone.to_be_bytes());
    }
    if code == 0 {
        out.extend_from_slice(&[t.l4proto, form as u8]);
    }
    put_addr(out, t.src);
    put_addr(out, t.dst);
    put_l4(out, t.l4);
    Ok(())
}

fn read_headed(r: &mut Reader<'_>, head: u8) -> Result<Tuple, WireError> {
    let zone = if head & TUPLE_ZONE != 0 {
        Some(r.u16("tuple zone")?)
    } else {
        None
    };
    let (l4proto, form) = read_proto(r, head >> 4)?;
    let v6 = head & V6 != 0;
    Ok(Tuple {
        src: read_addr(r, v6)?,
        dst: read_addr(r, v6)?,
        l4proto,
        l4: read_l4(r, form)?,
        zone,
    })
}

fn read_proto(r: &mut Reader<'_>, coded: u8) -> Result<(u8, Form), WireError> {
    const WHAT: WireError = WireError::Value("protocol");
    if coded != 0 {
        let l4proto = *CODES.get(usize::from(coded)).ok_or(WHAT)?;
        return Ok((l4proto, Form::implied(l4proto)));
    }
    let [l4proto, form] = r.array("protocol")?;
    let form = Form::from_byte(form).ok_or(WHAT)?;
    if code(l4proto, form) != 0 {
        return Err(WHAT);
    }
    Ok((l4proto, form))
}

pub(super) fn put_addr(out: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(a) => out.extend_from_slice(&a.octets()),
        IpAddr::V6(a) => out.extend_from_slice(&a.octets()),
    }
}

pub(super) fn read_addr(r: &mut Reader<'_>, v6: bool) -> Result<IpAddr, WireError> {
    if v6 {
        r.array::<16>("address").map(IpAddr::from)
    } else {
        r.array::<4>("address").map(IpAddr::from)
    }
}

fn put_l4(out: &mut Vec<u8>, l4: L4) {
    match l4 {
        L4::None => {}
        L4::Ports { src, dst } => {
            out.extend_from_slice(&src.to_be_bytes());
            out.extend_from_slice(&dst.to_be_bytes());
        }
        L4::Icmp { id, ty, code } => {
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(&[ty, code]);
        }
    }
}

fn read_l4(r: &mut Reader<'_>, form: Form) -> Result<L4, WireError> {
    Ok(match form {
        Form::None => L4::None,
        Form::Ports => L4::Ports {
            src: r.u16("source port")?,
            dst: r.u16("destination port")?,
        },
        Form::Icmp => {
            let id = r.u16("ICMP id")?;
            let [ty, code] = r.array("ICMP type and code")?;
            L4::Icmp { id, ty, code }
        }
    })
}

const DIFF_SRC: u8 = 0x01;
const DIFF_DST: u8 = 0x02;
const DIFF_L4_FIRST: u8 = 0x04;
const DIFF_L4_SECOND: u8 = 0x08;
const DIFF_ZONE: u8 = 0x10;
const DIFF_FORM: u8 = 0x20;

/// A reply tuple as its difference from the plain inverse `base`.
pub(super) fn put_diff(out: &mut Vec<u8>, base: &Tuple, t: &Tuple) -> Result<(), Unencodable> {
    if t.l4proto != base.l4proto || t.src.is_ipv4() != base.src.is_ipv4() {
        return Err(Unencodable("reply of another family or protocol"));
    }
    let (base_first, base_second) = halves(base.l4);
    let (first, second) = halves(t.l4);
    let form = Form::of(t.l4);
    let reformed = form != Form::of(base.l4);
    let bits = [
        (t.src != base.src, DIFF_SRC),
        (t.dst != base.dst, DIFF_DST),
        (!reformed && first != base_first, DIFF_L4_FIRST),
        (!reformed && second != base_second, DIFF_L4_SECOND),
        (t.zone != base.zone, DIFF_ZONE),
        (reformed, DIFF_FORM),
    ];
    let diff = bits
        .iter()
        .fold(0, |d, (is, bit)| if *is { d | bit } else { d });
    out.push(diff);
    if diff & DIFF_SRC != 0 {
        put_addr(out, t.src);
    }
    if diff & DIFF_DST != 0 {
        put_addr(out, t.dst);
    }
    if diff & DIFF_L4_FIRST != 0 {
        out.extend_from_slice(&first.to_be_bytes());
    }
    if diff & DIFF_L4_SECOND != 0 {
        out.extend_from_slice(&second.to_be_bytes());
    }
    if diff & DIFF_ZONE != 0 {
        put_varint(out, t.zone.map_or(0, |z| u64::from(z) + 1));
    }
    if reformed {
        out.push(form as u8);
        put_l4(out, t.l4);
    }
    Ok(())
}

pub(super) fn read_diff(r: &mut Reader<'_>, base: &Tuple) -> Result<Tuple, WireError> {
    const WHAT: WireError = WireError::Value("reply tuple");
    let diff = r.u8("reply tuple")?;
    if diff == 0 || diff & !0x3f != 0 {
        return Err(WHAT);
    }
    let v6 = base.src.is_ipv6();
    let mut t = *base;
    if diff & DIFF_SRC != 0 {
        t.src = read_addr(r, v6)?;
    }
    if diff & DIFF_DST != 0 {
        t.dst = read_addr(r, v6)?;
    }
    let (mut first, mut second) = halves(base.l4);
    if diff & DIFF_L4_FIRST != 0 {
        first = r.u16("reply tuple")?;
    }
    if diff & DIFF_L4_SECOND != 0 {
        second = r.u16("reply tuple")?;
    }
    t.l4 = from_halves(Form::of(base.l4), first, second);
    if diff & DIFF_ZONE != 0 {
        t.zone = match r.int::<u32>("reply zone")? {
            0 => None,
            z => Some(u16::try_from(z - 1).map_err(|_| WHAT)?),
        };
    }
    if diff & DIFF_FORM != 0 {
        let form = Form::from_byte(r.u8("reply tuple")?).ok_or(WHAT)?;
        t.l4 = read_l4(r, form)?;
    }
    // One encoding only: what is announced as different must differ.
    let mut again = Vec::new();
    put_diff(&mut again, base, &t).map_err(|_| WHAT)?;
    if again.first() != Some(&diff) {
        return Err(WHAT);
    }
    Ok(t)
}

const fn halves(l4: L4) -> (u16, u16) {
    match l4 {
        L4::None => (0, 0),
        L4::Ports { src, dst } => (src, dst),
        L4::Icmp { id, ty, code } => (id, u16::from_be_bytes([ty, code])),
    }
}

const fn from_halves(form: Form, first: u16, second: u16) -> L4 {
    match form {
        Form::None => L4::None,
        Form::Ports => L4::Ports {
            src: first,
            dst: second,
        },
        Form::Icmp => {
            let [ty, code] = second.to_be_bytes();
            L4::Icmp {
                id: first,
                ty,
                code,
            }
        }
    }
}
