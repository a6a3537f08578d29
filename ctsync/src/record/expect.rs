//! Keys and bodies of expectations.

use super::tuple::{self, Head};
use super::{Unencodable, read_extensions, read_name};
use crate::wire::{Reader, WireError, put_counted, put_varint};
use netfilter::expect::{ExpectNat, Flags, Mask};
use netfilter::tuple::{exact, unspecified};
use netfilter::{Dir, Expectation, Tuple};
use std::net::IpAddr;

const MASK_SRC: u8 = 0x01;
const MASK_DST: u8 = 0x02;
const MASK_SPORT: u8 = 0x04;
const MASK_DPORT: u8 = 0x08;
const MASK_ANY_SRC: u8 = 0x10;

const NAT: u64 = 1;
const FN: u64 = 1 << 1;
const HELPER: u64 = 1 << 2;
const EXTENSIONS: u64 = 1 << 3;

pub(super) fn put_key(out: &mut Vec<u8>, exp: &Expectation) -> Result<(), Unencodable> {
    tuple::put_key(out, true, &exp.tuple, exp.zone)?;
    put_mask(out, &exp.mask, exp.tuple.src)?;
    put_varint(out, u64::from(exp.class));
    Ok(())
}

pub(super) fn put(out: &mut Vec<u8>, exp: &Expectation) -> Result<(), Unencodable> {
    put_key(out, exp)?;
    let fields = [
        (exp.nat.is_some(), NAT),
        (exp.expectfn.is_some(), FN),
        (exp.helper.is_some(), HELPER),
    ]
    .iter()
    .fold(0, |f, (is, bit)| if *is { f | bit } else { f });
    put_varint(out, fields);
    put_varint(out, u64::from(exp.flags.bits()));
    tuple::put(out, &exp.master)?;
    if let Some(nat) = &exp.nat {
        if nat.addr.is_ipv4() != exp.tuple.src.is_ipv4() {
            return Err(Unencodable("expectation NAT of another family"));
        }
        out.extend_from_slice(&[u8::from(nat.dir == Dir::Reply), nat.l4proto]);
        out.extend_from_slice(&nat.port.to_be_bytes());
        tuple::put_addr(out, nat.addr);
    }
    for name in [exp.expectfn, exp.helper].into_iter().flatten() {
        put_counted(out, name.as_bytes());
    }
    Ok(())
}

fn put_mask(out: &mut Vec<u8>, mask: &Mask, like: IpAddr) -> Result<(), Unencodable> {
    if mask.src.is_ipv4() != like.is_ipv4() || mask.dst.is_ipv4() != like.is_ipv4() {
        return Err(Unencodable("mask of another family"));
    }
    let any = mask.src == unspecified(like);
    let bits = [
        (!any && mask.src != exact(like), MASK_SRC),
        (any, MASK_ANY_SRC),
        (mask.dst != exact(like), MASK_DST),
        (mask.sport != 0, MASK_SPORT),
        (mask.dport != 0xffff, MASK_DPORT),
    ];
    let form = bits
        .iter()
        .fold(0, |f, (is, bit)| if *is { f | bit } else { f });
    out.push(form);
    if form & MASK_SRC != 0 {
        tuple::put_addr(out, mask.src);
    }
    if form & MASK_DST != 0 {
        tuple::put_addr(out, mask.dst);
    }
    if form & MASK_SPORT != 0 {
        out.extend_from_slice(&mask.sport.to_be_bytes());
    }
    if form & MASK_DPORT != 0 {
        out.extend_from_slice(&mask.dport.to_be_bytes());
    }
    Ok(())
}

fn read_mask(r: &mut Reader<'_>, like: IpAddr) -> Result<Mask, WireError> {
    const WHAT: WireError = WireError::Value("mask");
    let form = r.u8("mask")?;
    let v6 = like.is_ipv6();
    let mut mask = Mask::any_sport(like);
    if form & MASK_ANY_SRC != 0 {
        mask.src = unspecified(like);
    }
    if form & MASK_SRC != 0 {
        mask.src = tuple::read_addr(r, v6)?;
    }
    if form & MASK_DST != 0 {
        mask.dst = tuple::read_addr(r, v6)?;
    }
    if form & MASK_SPORT != 0 {
        mask.sport = r.u16("mask")?;
    }
    if form & MASK_DPORT != 0 {
        mask.dport = r.u16("mask")?;
    }
    let mut again = Vec::new();
    put_mask(&mut again, &mask, like).map_err(|_| WHAT)?;
    if again.first() != Some(&form) {
        return Err(WHAT);
    }
    Ok(mask)
}

pub(super) fn read_key_rest(r: &mut Reader<'_>, tuple: &Tuple) -> Result<(Mask, u32), WireError> {
    Ok((read_mask(r, tuple.src)?, r.int("class")?))
}

pub(super) fn read(r: &mut Reader<'_>, head: &Head) -> Result<Expectation, WireError> {
    let (mask, class) = read_key_rest(r, &head.tuple)?;
    let fields = r.varint("fields")?;
    if fields & !(NAT | FN | HELPER | EXTENSIONS) != 0 {
        return Err(WireError::Value("fields"));
    }
    let flags = Flags::from_bits_retain(r.int("flags")?);
    let mut exp = Expectation::new(tuple::read(r)?, head.tuple, mask);
    exp.zone = head.zone;
    exp.class = class;
    exp.flags = flags;
    if fields & NAT != 0 {
        exp.nat = Some(read_nat(r, head.tuple.src.is_ipv6())?);
    }
    if fields & FN != 0 {
        exp.expectfn = Some(read_name(r, "expectation function")?);
    }
    if fields & HELPER != 0 {
        exp.helper = Some(read_name(r, "helper")?);
    }
    if fields & EXTENSIONS != 0 {
        read_extensions(r)?;
    }
    Ok(exp)
}

fn read_nat(r: &mut Reader<'_>, v6: bool) -> Result<ExpectNat, WireError> {
    let [dir, l4proto] = r.array("expectation NAT")?;
    let dir = match dir {
        0 => Dir::Orig,
        1 => Dir::Reply,
        _ => return Err(WireError::Value("expectation NAT")),
    };
    Ok(ExpectNat {
        dir,
        port: r.u16("expectation NAT")?,
        addr: tuple::read_addr(r, v6)?,
        l4proto,
    })
}
