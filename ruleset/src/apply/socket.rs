//! The netlink socket: generation, commit, answers.
#![allow(unsafe_code, reason = "setsockopt and recv on a raw descriptor")]

use std::ffi::CStr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use netfilter::attr::Writer;

use super::Kernel;
use super::batch::Batch;
use super::error::{Error, Refusal, causes};
use crate::live::Live;
use crate::live::decode::Decoder;

/// A socket of the nfnetlink family.
pub struct Socket(mnl::Socket);

impl Socket {
    /// Opens it with extended acknowledgements.
    pub fn open() -> Result<Self, Error> {
        let socket = mnl::Socket::new(mnl::Bus::Netfilter).map_err(failed("opening netlink"))?;
        let socket = Self(socket);
        socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        Ok(socket)
    }

    /// Failure is not fatal: the kernel then says less, or refuses a
    /// transaction that is too big, which is reported as such.
    fn option(&self, level: i32, name: i32, value: i32) {
        let len = libc::socklen_t::try_from(size_of::<i32>()).unwrap_or(4);
        // SAFETY: the descriptor is open, `value` outlives the call and has `len` bytes.
        unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                len,
            );
        }
    }

    /// Sends one request without attributes but `attrs`.
    fn request(&self, kind: i32, flags: i32, attrs: &[u8]) -> Result<(), Error> {
        let len = u32::try_from(20 + attrs.len()).unwrap_or(u32::MAX);
        let mut request = Vec::with_capacity(20 + attrs.len());
        request.extend(len.to_ne_bytes());
        request.extend(small((libc::NFNL_SUBSYS_NFTABLES << 8) | kind).to_ne_bytes());
        request.extend(small(libc::NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend([0; 8]);
        request.extend([NFPROTO_INET, 0, 0, 0]);
        request.extend(attrs);
        self.0.send(&request).map_err(failed("asking nf_tables"))?;
        Ok(())
    }

    /// Everything of one kind; `attrs` narrow it down.
    fn dump(&self, kind: i32, attrs: &[u8], decoder: &mut Decoder) -> Result<(), Error> {
        let operation = "reading the table";
        self.request(kind, libc::NLM_F_DUMP, attrs)?;
        let mut outcome = Ok(());
        self.drain(operation, |message| {
            decoder.message(message);
            if let Some(errno) = error_code(message) {
                outcome = Err(Error::Socket { operation, errno });
            } else if interrupted(message) {
                outcome = Err(Error::Changed);
            }
        })?;
        outcome
    }
}

impl Kernel for Socket {
    fn generation(&mut self) -> Result<u32, Error> {
        let operation = "reading the ruleset's generation";
        self.request(libc::NFT_MSG_GETGEN, 0, &[])?;
        let mut answer = Err(Error::Answer { operation });
        self.drain(operation, |message| {
            if let Some(errno) = error_code(message) {
                answer = Err(Error::Socket { operation, errno });
            } else if let Some(id) = message.get(24..28).and_then(be32) {
                answer = Ok(id);
            }
        })?;
        answer
    }

    fn read(&mut self, table: &str, whole: bool) -> Result<Live, Error> {
        let mut decoder = Decoder::new(table);
        let named = attribute(1, table);
        // Objects of all tables: kernels differ in what they take as a filter.
        let all = [
            (libc::NFT_MSG_GETTABLE, Vec::new()),
            (libc::NFT_MSG_GETOBJ, Vec::new()),
            (libc::NFT_MSG_GETSET, named.clone()),
            (libc::NFT_MSG_GETCHAIN, Vec::new()),
            (NFT_MSG_GETFLOWTABLE, Vec::new()),
        ];
        for (kind, attrs) in all {
            match self.dump(kind, &attrs, &mut decoder) {
                // No such table, so no sets in it; no flowtables in this kernel.
                Err(Error::Socket {
                    errno: Errno::ENOENT | Errno::EOPNOTSUPP,
                    ..
                }) => {}
                other => other?,
            }
        }
        if whole && decoder.has_table() {
            for set in decoder.set_names() {
                let attrs = [named.clone(), attribute(2, &set)].concat();
                self.dump(libc::NFT_MSG_GETSETELEM, &attrs, &mut decoder)?;
            }
            self.dump(libc::NFT_MSG_GETRULE, &named, &mut decoder)?;
        }
        Ok(decoder.finish())
    }

    fn commit(&mut self, mut batch: Batch) -> Result<(), Error> {
        batch.finish();
        let room = i32::try_from(batch.buffer.len()).unwrap_or(i32::MAX / 4);
        self.option(
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            room.saturating_mul(2).max(1 << 20),
        );
        self.0
            .send(&batch.buffer)
            .map_err(failed("sending the transaction"))?;
        let mut refusals = Vec::new();
        self.drain("committing the transaction", |message| {
            refusals.extend(refusal(message, &batch));
        })?;
        if refusals.iter().any(|one| one.errno == Errno::ERESTART) {
            return Err(Error::Changed);
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(Error::Refused(causes(refusals)))
        }
    }
}

impl Socket {
    /// Everything that is queued. The kernel works synchronously: when `send`
    /// returns, every answer is there.
    fn drain(&self, operation: &'static str, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            // SAFETY: the descriptor is open and the buffer has `len` bytes.
            let received = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let Ok(received) = usize::try_from(received) else {
                return match Errno::last() {
                    Errno::EAGAIN => Ok(()),
                    Errno::EINTR => continue,
                    errno => Err(Error::Socket { operation, errno }),
                };
            };
            split(buffer.get(..received).unwrap_or_default(), &mut each);
        }
    }
}

/// Splits a datagram into its messages.
fn split(mut datagram: &[u8], each: &mut impl FnMut(&[u8])) {
    while let Some(len) = datagram
        .first_chunk::<4>()
        .map(|len| u32::from_ne_bytes(*len))
    {
        let len = usize::try_from(len).unwrap_or(0);
        let Some(message) = datagram.get(..len).filter(|message| message.len() >= 16) else {
            return;
        };
        each(message);
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

const NFPROTO_INET: u8 = 1;

/// `NFT_MSG_GETFLOWTABLE`.
const NFT_MSG_GETFLOWTABLE: i32 = 23;

/// Message types and flags are small constants that libc declares as int.
fn small(value: i32) -> u16 {
    u16::try_from(value).unwrap_or(0)
}

/// A netlink attribute that holds a string.
fn attribute(number: u16, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).str(number, text.as_bytes());
    bytes
}

/// `NLM_F_DUMP_INTR`: the ruleset changed during the dump.
fn interrupted(message: &[u8]) -> bool {
    let flags = message.get(6..8).and_then(|flags| flags.first_chunk::<2>());
    let intr = small(libc::NLM_F_DUMP_INTR);
    flags.is_some_and(|flags| u16::from_ne_bytes(*flags) & intr != 0)
}

fn failed(operation: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::Socket {
        operation,
        errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

fn ne32(bytes: &[u8]) -> Option<u32> {
    bytes
        .first_chunk::<4>()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes
        .first_chunk::<4>()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

/// The error in an `NLMSG_ERROR`, unless it is an acknowledgement.
fn error_code(message: &[u8]) -> Option<Errno> {
    let kind = message.get(4..6)?;
    if kind != u16::try_from(libc::NLMSG_ERROR).ok()?.to_ne_bytes() {
        return None;
    }
    let code = message
        .get(16..20)?
        .first_chunk::<4>()
        .map(|code| i32::from_ne_bytes(*code))?;
    (code != 0).then(|| Errno::from_raw(code.wrapping_neg()))
}

fn refusal(message: &[u8], batch: &Batch) -> Option<Refusal> {
    let errno = error_code(message)?;
    let seq = usize::try_from(ne32(message.get(8..12)?)?).ok()?;
    let label = batch.labels.get(seq)?.clone();
    Some(Refusal {
        label,
        errno,
        text: extended_text(message),
    })
}

/// The text in an extended acknowledgement (`NLMSGERR_ATTR_MSG`). With
/// `NETLINK_CAP_ACK` attributes follow the 16-byte header of our message.
fn extended_text(message: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let mut attrs = message.get(36..)?;
    while let Some([a, b, c, d]) = attrs.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([*a, *b]));
        let value = attrs.get(4..len)?;
        if u16::from_ne_bytes([*c, *d]) == NLMSGERR_ATTR_MSG {
            let text = CStr::from_bytes_until_nul(value).ok()?;
            return Some(text.to_string_lossy().into_owned());
        }
        attrs = attrs.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}
