//! nfnetlink codecs: conntrack, expectations, conntrack helpers and NFQUEUE,
//! and the netlink socket that the programs of this workspace share.
//!
//! The codecs are pure: bytes in, values out, no allocation on the hot path.
//! [`socket`] is the only module that talks to the kernel, and the only one
//! with `unsafe` code. Host byte order everywhere; big-endian stays inside
//! the codecs.

pub mod attr;
pub mod bpf;
pub mod conntrack;
pub mod cthelper;
pub mod expect;
pub mod flow;
pub mod inject;
pub mod message;
pub mod name;
pub mod protoinfo;
pub mod queue;
pub mod socket;
pub mod tuple;

pub use attr::{Attrs, DecodeError, Writer};
pub use conntrack::Status;
pub use expect::Expectation;
pub use flow::{Flow, SeqAdj};
pub use message::{Header, Message, Messages};
pub use name::Name;
pub use socket::{Error, Socket};
pub use tuple::{Dir, L4, Tuple};
