//! The netlink socket: generation, commit, answers.
#![allow(unsafe_code, reason = "setsockopt and recv on a raw descriptor")]

use std::ffi::CStr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::batch::Batch;
use super::error::{Error, Refusal, causes};

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

    /// Number of the ruleset's current generation.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let operation = "reading the ruleset's generation";
        let mut request = Vec::with_capacity(20);
        request.extend(20u32.to_ne_bytes());
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8) | libc::NFT_MSG_GETGEN;
        request.extend(u16::try_from(kind).unwrap_or(0).to_ne_bytes());
        request.extend(
            u16::try_from(libc::NLM_F_REQUEST)
                .unwrap_or(0)
                .to_ne_bytes(),
        );
        request.extend([0; 12]);
        self.0.send(&request).map_err(failed(operation))?;
        for message in self.drain(operation)? {
            if let Some(errno) = error_code(&message) {
                return Err(Error::Socket { operation, errno });
            }
            if let Some(id) = message.get(24..28) {
                return be32(id).ok_or(Error::Answer { operation });
            }
        }
        Err(Error::Answer { operation })
    }

    /// Sends a transaction and reads every answer.
    pub fn commit(&mut self, mut batch: Batch) -> Result<(), Error> {
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
        let answers = self.drain("committing the transaction")?;
        let refusals: Vec<_> = answers
            .iter()
            .filter_map(|message| refusal(message, &batch))
            .collect();
        if refusals
            .iter()
            .any(|refusal| refusal.errno == Errno::ERESTART)
        {
            return Err(Error::Changed);
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(Error::Refused(causes(refusals)))
        }
    }

    /// Everything that is queued. The kernel works synchronously: when `send`
    /// returns, every answer is there.
    fn drain(&mut self, operation: &'static str) -> Result<Vec<Vec<u8>>, Error> {
        let mut buffer = vec![0u8; 1 << 16];
        let mut messages = Vec::new();
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
                    Errno::EAGAIN => Ok(messages),
                    Errno::EINTR => continue,
                    errno => Err(Error::Socket { operation, errno }),
                };
            };
            split(buffer.get(..received).unwrap_or_default(), &mut messages);
        }
    }
}

/// Splits a datagram into its messages.
fn split(mut datagram: &[u8], messages: &mut Vec<Vec<u8>>) {
    while let Some(len) = datagram
        .first_chunk::<4>()
        .map(|len| u32::from_ne_bytes(*len))
    {
        let len = usize::try_from(len).unwrap_or(0);
        let Some(message) = datagram.get(..len).filter(|message| message.len() >= 16) else {
            return;
        };
        messages.push(message.to_vec());
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
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
