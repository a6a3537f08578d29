//! Bits that rules compare, and their names.

/// `ct state` bits (linux/netfilter/nf_conntrack_common.h).
pub mod state {
    /// `invalid`.
    pub const INVALID: u32 = 1;
    /// `established`.
    pub const ESTABLISHED: u32 = 2;
    /// `related`.
    pub const RELATED: u32 = 4;
    /// `new`.
    pub const NEW: u32 = 8;
    /// `untracked`.
    pub const UNTRACKED: u32 = 64;

    /// Names in nft's order.
    pub const NAMES: &[(u32, &str)] = &[
        (INVALID, "invalid"),
        (ESTABLISHED, "established"),
        (RELATED, "related"),
        (NEW, "new"),
        (UNTRACKED, "untracked"),
    ];
}

/// `ct event` bits (linux/netfilter/nf_conntrack_common.h, `enum ip_conntrack_events`).
///
/// `helper`, `mark` and `secmark` are absent on purpose: nft cannot parse
/// its own listing of them (checked with 1.0.6 and 1.1.3).
pub mod event {
    /// Names in nft's order.
    pub const NAMES: &[(u32, &str)] = &[
        (1, "new"),
        (2, "related"),
        (4, "destroy"),
        (8, "reply"),
        (16, "assured"),
        (32, "protoinfo"),
        (256, "seqadj"),
        (1024, "label"),
    ];
}

/// `ct status` bits that rules use (linux/netfilter/nf_conntrack_common.h).
pub mod status {
    /// `dnat`: destination rewritten.
    pub const DNAT: u32 = 32;

    /// Names.
    pub const NAMES: &[(u32, &str)] = &[(DNAT, "dnat")];
}

/// TCP flags.
pub mod tcp_flags {
    /// Names, lowest bit first.
    pub const NAMES: &[(u32, &str)] = &[
        (1, "fin"),
        (2, "syn"),
        (4, "rst"),
        (8, "psh"),
        (16, "ack"),
        (32, "urg"),
    ];
    /// SYN alone, of FIN, SYN, RST and ACK, opens a connection.
    pub const OPENING: u8 = 0x17;
    /// The SYN bit.
    pub const SYN: u32 = 2;
}

/// Names of the bits set in `bits`, in table order.
pub fn bit_names<'a>(bits: u32, names: &'a [(u32, &'a str)]) -> impl Iterator<Item = &'a str> + 'a {
    names
        .iter()
        .filter(move |(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
}
