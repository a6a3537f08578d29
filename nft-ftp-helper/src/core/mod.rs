//! The pure core: bytes, direction and sequence number in; actions out.
//!
//! [`on_segment`] is a function of the policy, the connection's tuples, the
//! private data and one TCP segment. It has no sockets, clock, threads or
//! memory: everything it knows about a connection is 32 bytes that the kernel
//! keeps. A daemon that is restarted between two segments, or another firewall
//! that has been given the 32 bytes, goes on in the middle of a number.

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
