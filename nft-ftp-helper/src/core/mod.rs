//! The pure core: bytes, direction and sequence number in; actions out.
//!
//! [`on_segment`] is a function of the policy, the connection's tuples, the
//! private data and one TCP segment. It has no sockets, clock, threads or
//! memory: everything it knows about a connection is 32 bytes that the kernel
//! keeps. A daemon that is restarted between two segments, or another firewall
//! that has been given the 32 bytes, goes on in the middle of a number.
//!
//! The decisions, and where they are explained:
//!
//! - Only what comes in order is parsed, and only what was parsed passes: the
//!   receiver reads the same text as the helper (`tracker`).
//! - An announcement in pieces is kept as numbers and compared with the two
//!   addresses it may show, never as text (`announce`). Both sides can not be in
//!   the middle of one at the same time: the later one is refused.
//! - Under NAT each piece leaves with a byte that is certain, and there is one
//!   unacknowledged rewrite at a time (`rewrite`, `text`).
//! - A 227 or 229 must answer its command; a client that was seen from its first
//!   packet must have waited for the greeting, spoken FTP and named itself
//!   (`client`, `server`). One that is picked up in its middle is believed.
//! - Packets that were queued before the last verdict carry old private data:
//!   the caller asks [`Recent`] what holds.
//!
//! Known gaps: a foreign address that policy allows is not followed if its
//! announcement comes in pieces; an IPv6 address with dotted decimals is a
//! syntax error; two announcements in one segment under NAT cost the second a
//! retransmission; packets over loopback pass the hook twice, and the caller has
//! to leave out the second time if they are translated.

mod announce;
mod client;
mod conn;
mod event;
mod expect;
mod line;
mod mangle;
mod open;
mod packet;
mod policy;
mod recent;
mod rewrite;
mod server;
mod skim;
mod state;
mod text;
mod tracker;
mod verb;

pub use conn::{Conn, Dir, SeqAdj, Tuple};
pub use event::{Class, Event, Reason};
pub use expect::{Expect, ExpectNat, Kind, OpenError, Single};
pub use mangle::{MangleError, mangle};
pub use packet::{Packet, PacketError};
pub use policy::{ActiveOpens, FIRST_UNPRIVILEGED, MAX_BLOCK, OnRefusal, Policy, ThirdParty};
pub use recent::{Known, Recent};
pub use state::PrivateData;
pub use text::Text;
pub use tracker::{Edit, Effects, Flags, Outcome, Rewrite, Segment, Verdict, on_segment};
