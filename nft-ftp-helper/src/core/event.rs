//! What the core reports besides actions: reasons for counters and `watch`.

use super::Dir;
use std::fmt;
use std::net::IpAddr;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal $class:ident,)*) => {
        /// Why an event happened. Each has its counter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in a fixed order: `reason as usize` is its place.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Name for metrics and `watch`, stable.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What kind of event it is.
            pub const fn class(self) -> Class {
                match self { $(Self::$name => Class::$class,)* }
            }
        }
    };
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An expectation was made.
    Open,
    /// An announcement was refused.
    Refusal,
    /// The connection is not parsed from here on.
    Stop,
    /// A packet was dropped, shortened or passed unparsed; its sender repeats it.
    Transport,
    /// Worth counting, no consequence.
    Note,
}

reasons! {
    /// A new expectation.
    Opened = "opened" Open,
    /// A live block covered the port and was renewed.
    Reused = "reused" Open,
    /// The outer port differs from the announced one: it was taken.
    Renumbered = "renumbered" Open,
    /// The block was cut at the lowest permitted port.
    BlockClipped = "block-clipped" Note,
    /// The address is not the sender's.
    ThirdParty = "third-party" Refusal,
    /// A foreign address, allowed, but in pieces: it can not be kept.
    SplitThirdParty = "split-third-party" Refusal,
    /// The port is below the lowest permitted one.
    PrivilegedPort = "privileged-port" Refusal,
    /// A 227 or 229 nobody asked for, or the wrong one of the two.
    Unsolicited = "unsolicited" Refusal,
    /// A number exceeds 255, or a port 65535.
    BadNumber = "bad-number" Refusal,
    /// An announcement that is not one.
    BadSyntax = "bad-syntax" Refusal,
    /// `EPRT` for the other address family.
    WrongFamily = "wrong-family" Refusal,
    /// A port before any login.
    NoLogin = "no-login" Refusal,
    /// Every port in bounds is taken.
    PortTaken = "port-taken" Refusal,
    /// The client has as many live expectations as it may.
    ClientLimit = "client-limit" Refusal,
    /// There are as many live expectations as there may be.
    TotalLimit = "total-limit" Refusal,
    /// The kernel's table of expectations is full.
    TableFull = "table-full" Refusal,
    /// The kernel refused the expectation for another reason.
    OpenFailed = "open-failed" Refusal,
    /// Both sides are in the middle of an announcement: the later one loses.
    BusyPartial = "busy-partial" Refusal,
    /// A rewritten announcement would exceed its bounds.
    TooLong = "too-long" Refusal,
    /// `LPRT` or `LPSV` (RFC 1639): recognised, not followed.
    Lprt = "lprt" Note,
    /// `EPSV ALL`.
    EpsvAll = "epsv-all" Note,
    /// The server refused the client's `PORT`: its expectation is withdrawn.
    Withdrawn = "withdrawn" Note,
    /// 234: ciphertext from here on.
    Tls = "tls" Stop,
    /// The client spoke before the server's greeting.
    ClientFirst = "client-first" Stop,
    /// An HTTP request.
    Http = "http" Stop,
    /// The first command is none of FTP's.
    NotFtp = "not-ftp" Stop,
    /// Plain FTP again after TLS.
    Ccc = "ccc" Note,
    /// Picked up in the middle: no private data.
    PickedUp = "picked-up" Note,
    /// Private data of a layout this version does not know.
    BadState = "bad-state" Note,
    /// A segment behind a hole: dropped until the hole is filled.
    OutOfOrder = "out-of-order" Transport,
    /// The hole was not filled: parsing goes on behind it.
    Resync = "resync" Transport,
    /// Another rewrite has to wait until the last one is acknowledged.
    RewriteWaits = "rewrite-waits" Transport,
    /// A retransmission cut so that it can not be rewritten as before.
    OddRetransmit = "odd-retransmit" Transport,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Why.
    pub reason: Reason,
    /// Direction of the packet that caused it.
    pub dir: Dir,
    /// Announced address, where the text has one that is known.
    pub addr: Option<IpAddr>,
    /// Announced port, 0 if there is none.
    pub port: u16,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
