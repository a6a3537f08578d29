//! Classic BPF for event sockets: which events the kernel queues at all.
//!
//! Only what never changes in the life of a connection is looked at, so that
//! an update can't hide that a connection has left the filter.

use crate::conntrack::{CT_DELETE, CT_NEW};
use crate::flow::{CTA_TUPLE_ORIG, CTA_ZONE};
use crate::message::SUBSYS_CTNETLINK;
use crate::tuple::{CTA_PROTO_NUM, CTA_TUPLE_PROTO};
use libc::sock_filter;

const NLMSG_TYPE: u32 = 4;
const NLMSG_PID: u32 = 12;
/// `struct nlmsghdr` and `struct nfgenmsg`: where the attributes begin.
const ATTRIBUTES: u32 = 20;
/// `struct nlattr`.
const NLA_HDR: u32 = 4;
/// `SKF_AD_OFF + SKF_AD_NLATTR`: with an offset in A and a type in X, the
/// offset of that attribute, or 0.
const NLATTR: u32 = 0xffff_f000 + 12;
/// The same inside of the nest at A.
const NLATTR_NEST: u32 = 0xffff_f000 + 16;
const ACCEPT: u32 = u32::MAX;
const DROP: u32 = 0;
/// Jumps are a byte; a longer list is left to the program.
const MAX_LIST: usize = 128;

/// Which events are queued. Empty lists let everything pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventFilter<'a> {
    /// Not what was caused by the sockets with these port ids.
    pub not_by: &'a [u32],
    /// Connections of these protocols.
    pub protocols: &'a [u8],
    /// Connections in these zones.
    pub zones: &'a [u16],
}

const fn op(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // The codes are a byte.
    #[expect(clippy::cast_possible_truncation, reason = "at most 0xff")]
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

const fn ret(k: u32) -> sock_filter {
    op(libc::BPF_RET | libc::BPF_K, 0, 0, k)
}

const fn load_abs(size: u32, at: u32) -> sock_filter {
    op(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, at)
}

const fn load_behind_x(size: u32, at: u32) -> sock_filter {
    op(libc::BPF_LD | size | libc::BPF_IND, 0, 0, at)
}

const fn if_equal(k: u32, then: u8, otherwise: u8) -> sock_filter {
    op(
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        then,
        otherwise,
        k,
    )
}

/// A = the offset of attribute `ty`, or 0: from A on, or in the nest at A.
fn find(how: u32, ty: u16) -> [sock_filter; 2] {
    [
        op(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, 0, 0, ty.into()),
        load_abs(libc::BPF_W, how),
    ]
}

const TO_X: sock_filter = op(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0);
const FROM_THE_START: sock_filter =
    op(libc::BPF_LD | libc::BPF_W | libc::BPF_IMM, 0, 0, ATTRIBUTES);

impl EventFilter<'_> {
    pub(crate) fn program(&self) -> Vec<sock_filter> {
        let mut p = vec![load_abs(libc::BPF_W, NLMSG_PID)];
        for portid in self.not_by {
            // The load takes the word as big-endian.
            p.push(if_equal(u32::from_be_bytes(portid.to_ne_bytes()), 0, 1));
            p.push(ret(DROP));
        }
        // The type is a half word in host order: message and subsystem.
        p.push(load_abs(libc::BPF_H, NLMSG_TYPE));
        for msg in [CT_NEW, CT_DELETE] {
            let ty = u16::from_be_bytes([SUBSYS_CTNETLINK, msg]);
            let ty = u16::from_be_bytes(ty.to_ne_bytes());
            p.push(if_equal(ty.into(), if msg == CT_NEW { 2 } else { 1 }, 0));
        }
        p.push(ret(ACCEPT));
        if (1..=MAX_LIST).contains(&self.protocols.len()) {
            p.push(FROM_THE_START);
            for (how, ty) in [
                (NLATTR, CTA_TUPLE_ORIG),
                (NLATTR_NEST, CTA_TUPLE_PROTO),
                (NLATTR_NEST, CTA_PROTO_NUM),
            ] {
                p.extend(find(how, ty));
                p.push(if_equal(0, 0, 1));
                p.push(ret(ACCEPT));
            }
            p.extend([TO_X, load_behind_x(libc::BPF_B, NLA_HDR)]);
            one_of(&mut p, self.protocols.iter().map(|n| u32::from(*n)));
        }
        if (1..=MAX_LIST).contains(&self.zones.len()) {
            p.push(FROM_THE_START);
            p.extend(find(NLATTR, CTA_ZONE));
            // Without the attribute A is 0, which is the zone.
            p.push(if_equal(0, 2, 0));
            p.extend([TO_X, load_behind_x(libc::BPF_H, NLA_HDR)]);
            one_of(&mut p, self.zones.iter().map(|n| u32::from(*n)));
        }
        p.push(ret(ACCEPT));
        p
    }
}

/// Goes on if A is one of these, else drops.
fn one_of(p: &mut Vec<sock_filter>, values: impl ExactSizeIterator<Item = u32>) {
    let mut left = u8::try_from(values.len()).unwrap_or(0);
    for value in values {
        p.push(if_equal(value, left, 0));
        left = left.saturating_sub(1);
    }
    p.push(ret(DROP));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it does what it should is seen with a kernel (ctsync's
    /// filters in the laboratory); here, that no jump leaves the program.
    #[test]
    fn no_jump_leaves_the_program() {
        let many: Vec<u8> = (0..128).collect();
        for (protocols, zones) in [(&[][..], &[][..]), (&[6, 17], &[0, 7]), (&many, &[1])] {
            let filter = EventFilter {
                not_by: &[5, 6],
                protocols,
                zones,
            };
            let program = filter.program();
            for (at, op) in program.iter().enumerate() {
                if u32::from(op.code) & 7 == libc::BPF_JMP {
                    for jump in [op.jt, op.jf] {
                        assert!(at + 1 + usize::from(jump) < program.len(), "{at}");
                    }
                }
            }
            assert_eq!(program.last().map(|op| op.k), Some(ACCEPT));
        }
    }
}
