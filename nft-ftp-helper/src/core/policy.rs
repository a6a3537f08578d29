//! What an administrator may choose about one helper.

/// Lowest port that is not privileged.
pub const FIRST_UNPRIVILEGED: u16 = 1024;

/// Largest block of ports one announcement may open.
pub const MAX_BLOCK: u16 = 64;

/// What happens to a packet whose announcement was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRefusal {
    /// It passes as it is; nothing is expected.
    #[default]
    Accept,
    /// It is dropped, and its retransmissions too: the control connection
    /// stalls until its ends give up.
    Drop,
}

/// When an active transfer's expectation is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActiveOpens {
    /// With `PORT`/`EPRT`, and withdrawn if the server says no. A client that
    /// sends `PORT` and `LIST` together loses nothing.
    #[default]
    OnCommand,
    /// With the server's 2xx, where no address is translated and the address
    /// is the client's own; else as [`ActiveOpens::OnCommand`].
    OnReply,
}

/// An address in the text that is not the sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThirdParty {
    /// Refused: it is how FTP is abused to reach others.
    #[default]
    Refuse,
    /// In a 227, the server's own address is expected instead, as most clients
    /// connect there anyway (a server behind a translator of its own). `PORT`
    /// and `EPRT` are refused.
    PeerInstead,
    /// Expected as announced (`loose`).
    Allow,
}

/// The policy of one helper; `Default` is the safe one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Foreign addresses.
    pub third_party: ThirdParty,
    /// Lowest port that may be expected, at least 1.
    pub min_port: u16,
    /// Ports opened per announcement: 1, 2, 4 … 64, an aligned block around the
    /// announced one. Anything else counts as the next lower power of two.
    pub block: u16,
    /// Expectations stay until their timeout and serve any number of
    /// connections (`NF_CT_EXPECT_PERMANENT`).
    pub permanent: bool,
    /// The data connection may come from any address.
    pub any_source: bool,
    /// The source port a server must use for active transfers; `None`: any.
    pub active_source_port: Option<u16>,
    /// What a refusal does to the packet.
    pub on_refusal: OnRefusal,
    /// When `PORT` and `EPRT` open.
    pub active_opens: ActiveOpens,
    /// Resume after TLS when the client speaks plain FTP again (RFC 4217 `CCC`).
    pub ccc: bool,
    /// Blocks tried under NAT when the announced one is taken, with the first.
    pub nat_tries: u16,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            third_party: ThirdParty::Refuse,
            min_port: FIRST_UNPRIVILEGED,
            block: 1,
            permanent: false,
            any_source: false,
            active_source_port: None,
            on_refusal: OnRefusal::Accept,
            active_opens: ActiveOpens::OnCommand,
            ccc: false,
            nat_tries: 128,
        }
    }
}

impl Policy {
    /// The block size in force: a power of two from 1 to [`MAX_BLOCK`].
    pub fn block_size(&self) -> u16 {
        let wanted = self.block.clamp(1, MAX_BLOCK);
        1 << wanted.ilog2()
    }
}
