//! The control connection as conntrack sees it, and whose address is whose.

pub use netfilter::Dir;
use std::net::IpAddr;

/// Addresses and ports in one direction, host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

impl Tuple {
    /// A TCP tuple.
    pub const fn tcp(src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self {
            src,
            dst,
            sport,
            dport,
        }
    }
}

/// Sequence adjustment of one direction (`struct nf_ct_seqadj`): what is sent
/// after `pos` moves by `after`, the rest by `before`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeqAdj {
    /// Sender's sequence number of the last change of length.
    pub pos: u32,
    /// Bytes added up to there.
    pub before: i32,
    /// Bytes added behind it.
    pub after: i32,
}

/// The control connection a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conn {
    /// As the client's first packet went, before translation.
    pub orig: Tuple,
    /// As the server's packets come, before translation back.
    pub reply: Tuple,
    /// The client's and the server's sequence adjustment; zero if there is none.
    pub seq_adj: [SeqAdj; 2],
}

impl Conn {
    /// The tuple of one direction.
    pub const fn tuple(&self, dir: Dir) -> &Tuple {
        match dir {
            Dir::Orig => &self.orig,
            Dir::Reply => &self.reply,
        }
    }

    /// The sequence adjustment of what `dir` sends.
    pub const fn adj(&self, dir: Dir) -> SeqAdj {
        let [orig, reply] = self.seq_adj;
        match dir {
            Dir::Orig => orig,
            Dir::Reply => reply,
        }
    }

    /// Whether either side is translated: the tuples are no plain inverses.
    pub fn translated(&self) -> bool {
        self.orig.src != self.reply.dst
            || self.orig.dst != self.reply.src
            || self.orig.sport != self.reply.dport
            || self.orig.dport != self.reply.sport
    }

    /// The sender's address as it knows it itself: what its text should show.
    pub const fn own_addr(&self, sender: Dir) -> IpAddr {
        self.tuple(sender).src
    }

    /// The sender's address as the other side knows it: what the text must
    /// show there, and where the data connection will be addressed to.
    pub fn outer_addr(&self, sender: Dir) -> IpAddr {
        self.tuple(!sender).dst
    }

    /// The other side's address before translation: where the data connection
    /// comes from.
    pub fn peer_addr(&self, sender: Dir) -> IpAddr {
        self.tuple(!sender).src
    }
}
