//! Expectations as the core asks for them: a block of ports on one address.
//!
//! The kernel compares an expectation's destination exactly and masks its
//! source only (nf_conntrack_expect.c), so a block of 2^k ports is 2^k kernel
//! expectations: [`Expect::each`] lists them.

use super::{Conn, Dir, Policy, Reason};
use std::net::IpAddr;

/// How an endpoint was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `PORT h1,h2,h3,h4,p1,p2`.
    Port,
    /// `EPRT |af|addr|port|`.
    Eprt,
    /// `227 … h1,h2,h3,h4,p1,p2 …`, the answer to `PASV`.
    Pasv,
    /// `229 … (|||port|)`, the answer to `EPSV`.
    Epsv,
}

impl Kind {
    /// Who sends it.
    pub const fn sender(self) -> Dir {
        match self {
            Self::Port | Self::Eprt => Dir::Orig,
            Self::Pasv | Self::Epsv => Dir::Reply,
        }
    }
}

/// NAT of an expected connection: with `expectfn` `nat-follow-master`, which
/// gives it the master's addresses and the saved port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectNat {
    /// Direction of the master whose addresses the connection follows
    /// (`CTA_EXPECT_NAT_DIR`).
    pub dir: Dir,
    /// The announced port that belongs to [`Expect::first`]
    /// (`CTA_EXPECT_NAT_TUPLE`, source port; its address is zero).
    pub saved_port: u16,
}

/// One announcement's expectations. TCP; helper class 0; its timeout is the
/// class's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// How it was announced.
    pub kind: Kind,
    /// Where the data connection must come from; `None`: any address.
    pub source: Option<IpAddr>,
    /// Its source port; `None`: any.
    pub source_port: Option<u16>,
    /// Where it goes to, as its first packet is addressed.
    pub dest: IpAddr,
    /// First destination port.
    pub first: u16,
    /// Number of ports from there, 1 to 64. `first + count - 1` fits.
    pub count: u16,
    /// The port in `first ..` that belongs to the announced one.
    pub port: u16,
    /// `NF_CT_EXPECT_PERMANENT`.
    pub permanent: bool,
    /// Present if the control connection is translated.
    pub nat: Option<ExpectNat>,
    /// This master made this block before and it may still live: an existing
    /// expectation is to be renewed (`EXP_NEW` without `NLM_F_EXCL`). Else one
    /// that exists is a clash (`NLM_F_EXCL`).
    pub renew: bool,
}

/// One kernel expectation of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Single {
    /// Destination port.
    pub port: u16,
    /// Port to translate it to; `None` without NAT.
    pub saved_port: Option<u16>,
}

impl Expect {
    /// The kernel expectations of this block, lowest port first.
    pub fn each(&self) -> impl Iterator<Item = Single> + use<> {
        let (first, saved) = (self.first, self.nat.map(|n| n.saved_port));
        (0..self.count).map(move |i| Single {
            port: first.wrapping_add(i),
            saved_port: saved.map(|s| s.wrapping_add(i)),
        })
    }
}

/// Why an expectation was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// Another expectation covers a port (`EEXIST`, `EBUSY`, `EALREADY`). Under
    /// NAT another block is tried.
    Taken,
    /// The client has as many as it may.
    ClientLimit,
    /// All clients together have as many as they may.
    TotalLimit,
    /// The kernel's table is full (`EMFILE`, `nf_conntrack_expect_max`).
    TableFull,
    /// Any other error.
    Failed,
}

/// An aligned block of ports, cut at the lowest permitted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub first: u16,
    pub count: u16,
    pub clipped: bool,
}

impl Block {
    /// The block of `policy` around `port`.
    pub fn around(port: u16, policy: &Policy) -> Self {
        let size = policy.block_size();
        let base = port & !(size - 1);
        let first = base.max(policy.min_port.max(1)).min(port);
        Self {
            first,
            count: size - (first - base),
            clipped: first != base,
        }
    }

    /// Where this block may go instead, for the `attempt`-th time: aligned like
    /// it, upwards from it, around at the end, never below the lowest permitted
    /// port. `None` if that place has not room for all of it.
    pub fn moved(&self, attempt: u16, policy: &Policy) -> Option<u16> {
        if attempt == 0 {
            return Some(self.first);
        }
        let size = policy.block_size();
        let base = self.first & !(size - 1);
        let low = u32::from(policy.min_port.max(1)).next_multiple_of(u32::from(size));
        let blocks = (0x1_0000 - low) / u32::from(size);
        if blocks == 0 {
            return None;
        }
        let here = u32::from(base).saturating_sub(low) / u32::from(size);
        let there = (here + u32::from(attempt)) % blocks;
        let first = low + there * u32::from(size) + u32::from(self.first - base);
        u16::try_from(first).ok()
    }
}

/// Fills in an [`Expect`] for an endpoint `kind`'s sender announced.
pub(super) fn build(policy: &Policy, conn: &Conn, kind: Kind, dest: Option<IpAddr>) -> Expect {
    let sender = kind.sender();
    let active = sender == Dir::Orig;
    Expect {
        kind,
        source: (!policy.any_source).then(|| conn.peer_addr(sender)),
        source_port: if active {
            policy.active_source_port
        } else {
            None
        },
        dest: dest.unwrap_or_else(|| conn.outer_addr(sender)),
        first: 0,
        count: 1,
        port: 0,
        permanent: policy.permanent,
        nat: None,
        renew: false,
    }
}

impl From<OpenError> for Reason {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Taken => Self::PortTaken,
            OpenError::ClientLimit => Self::ClientLimit,
            OpenError::TotalLimit => Self::TotalLimit,
            OpenError::TableFull => Self::TableFull,
            OpenError::Failed => Self::OpenFailed,
        }
    }
}
