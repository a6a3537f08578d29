//! The little netlink that probing a kernel takes, by hand: a probe that
//! used the codecs under test could not tell a missing feature from a bug.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// nfnetlink subsystem: queue (linux/netfilter/nfnetlink.h).
pub const NFNL_SUBSYS_QUEUE: u8 = 3;
/// nfnetlink subsystem: userspace conntrack helpers.
pub const NFNL_SUBSYS_CTHELPER: u8 = 9;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub const NLM_F_DUMP: u16 = 0x300;

/// Sends one nfnetlink request and returns the kernel's first answer: `Ok`
/// for an acknowledgement, the end of an empty dump, or a message.
///
/// `res_id` is in host order here, big-endian on the wire.
///
/// # Errors
/// The errno the kernel answered, inside, or a failure to ask, outside.
pub fn ask(
    subsystem: u8,
    message: u8,
    flags: u16,
    res_id: u16,
    attributes: &[u8],
) -> Result<std::result::Result<(), Errno>> {
    let socket = open()?;
    let request = request(subsystem, message, flags, res_id, attributes)?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &request, &kernel, MsgFlags::empty()).context("netlink send")?;
    let mut answer = [0u8; 8192];
    let length =
        recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).context("netlink recv")?;
    parse_answer(answer.get(..length).unwrap_or_default())
}

fn open() -> Result<OwnedFd> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .context("opening a NETLINK_NETFILTER socket")
}

/// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
fn request(subsystem: u8, message: u8, flags: u16, res_id: u16, attrs: &[u8]) -> Result<Vec<u8>> {
    let kind = u16::from(subsystem) << 8 | u16::from(message);
    let flags = flags
        | NLM_F_REQUEST
        | if flags & NLM_F_DUMP == 0 {
            NLM_F_ACK
        } else {
            0
        };
    let length = u32::try_from(20 + attrs.len()).context("message length")?;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0, 0]);
    bytes.extend(res_id.to_be_bytes());
    bytes.extend(attrs);
    Ok(bytes)
}

/// An attribute, padded; `value` as it is on the wire.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn parse_answer(answer: &[u8]) -> Result<std::result::Result<(), Errno>> {
    let field = |range: std::ops::Range<usize>| answer.get(range);
    let Some(&[a, b]) = field(4..6) else {
        bail!("netlink answer of {} bytes", answer.len());
    };
    if u16::from_ne_bytes([a, b]) != NLMSG_ERROR {
        return Ok(Ok(()));
    }
    let Some(&[a, b, c, d]) = field(16..20) else {
        bail!("netlink error of {} bytes", answer.len());
    };
    Ok(match i32::from_ne_bytes([a, b, c, d]) {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno.wrapping_neg())),
    })
}
