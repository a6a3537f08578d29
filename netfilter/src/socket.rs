//! The netlink socket, on libmnl. The only module with `unsafe` code and the
//! only one that makes system calls.

#![expect(
    unsafe_code,
    reason = "socket options and receiving into reused buffers"
)]

use crate::bpf::EventFilter;
use crate::message::{
    Failure, Kind, Message, Messages, NLM_F_ACK, NLM_F_REQUEST, NLMSG_HDRLEN, NLMSG_NOOP,
};
use nix::sys::socket::{MsgFlags, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// Bytes a datagram of the kernel can have: dumps are cut at 32 KiB, a queued
/// packet is at most 64 KiB and its attributes.
const DATAGRAM: usize = 1 << 17;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What was asked, e.g. `registering helper nft-ftp`.
    pub operation: String,
    /// errno.
    pub errno: i32,
    /// The kernel's own words, if it gave any.
    pub text: Option<String>,
}

impl Error {
    /// The failure of `operation` with `errno`.
    pub fn new(operation: impl Into<String>, errno: i32) -> Self {
        Self {
            operation: operation.into(),
            errno,
            text: None,
        }
    }

    /// True if the kernel had no memory or no room just then: what was asked
    /// for may be asked for again.
    pub const fn is_shortage(&self) -> bool {
        matches!(self.errno, libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN)
    }

    fn io(operation: &str, error: &io::Error) -> Self {
        Self::new(operation, error.raw_os_error().unwrap_or(libc::EIO))
    }

    fn failure(operation: &str, failure: &Failure<'_>) -> Self {
        Self {
            text: failure.text.map(str::to_owned),
            ..Self::new(operation, failure.errno)
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = nix::errno::Errno::from_raw(self.errno);
        let desc = errno.desc();
        write!(f, "{}: {} ({errno:?})", self.operation, lower_first(desc))?;
        if let Some(text) = &self.text {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

fn lower_first(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}

/// A reusable, aligned receive buffer.
pub struct RecvBuf(Box<[u64]>);

impl RecvBuf {
    /// Room for one datagram of any size the kernel sends.
    pub fn new() -> Self {
        Self(vec![0; DATAGRAM / 8].into_boxed_slice())
    }
}

impl Default for RecvBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBuf {
    /// No room at all: stands in while the real buffer is borrowed.
    fn none() -> Self {
        Self(Box::default())
    }
}

impl fmt::Debug for RecvBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBuf({} bytes)", self.0.len() * 8)
    }
}

/// Ends a wait in [`Socket::receive`], from another thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Makes the kernel send the socket a message: the acknowledgement of one
    /// that asks for nothing.
    ///
    /// # Errors
    /// The socket's buffers are full, or it is broken.
    pub fn wake(&self) -> io::Result<()> {
        let mut nothing = [0; NLMSG_HDRLEN];
        let (len, rest) = nothing.split_at_mut(4);
        len.copy_from_slice(&16_u32.to_ne_bytes());
        let [t0, t1] = NLMSG_NOOP.to_ne_bytes();
        let [f0, f1] = (NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes();
        for (byte, value) in rest.iter_mut().zip([t0, t1, f0, f1]) {
            *byte = value;
        }
        let flags = MsgFlags::MSG_DONTWAIT;
        nix::sys::socket::send(self.0.as_raw_fd(), &nothing, flags)?;
        Ok(())
    }
}

/// What a receive without waiting gave.
#[derive(Debug)]
pub enum Received<'b> {
    /// A datagram; walk it with [`Messages`].
    Datagram(&'b [u8]),
    /// Nothing there.
    Empty,
    /// `ENOBUFS` or `ENOMEM`: the kernel dropped messages for this socket, or
    /// had no memory to make one. What is still queued can be read; what was
    /// lost must be dumped.
    Overrun,
}

/// A netfilter netlink socket: close-on-exec, with extended ACKs.
pub struct Socket {
    mnl: mnl::Socket,
    seq: u32,
    buf: RecvBuf,
    out: Vec<u8>,
}

// SAFETY: libmnl's handle is a descriptor and an address on the heap, which no
// other handle shares and no thread owns (libmnl src/socket.c, `struct
// mnl_socket`).
unsafe impl Send for Socket {}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Socket(port id {})", self.portid())
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.mnl.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self.mnl` lives, and the
        // borrow can't outlive `self`.
        unsafe { BorrowedFd::borrow_raw(self.mnl.as_raw_fd()) }
    }
}

impl Socket {
    /// Opens and binds a socket in the current network namespace.
    ///
    /// # Errors
    /// [`Error`] if the kernel has no nfnetlink or descriptors ran out.
    pub fn open() -> Result<Self, Error> {
        const WHAT: &str = "opening netlink socket";
        let mnl = mnl::Socket::new(mnl::Bus::Netfilter).map_err(|e| Error::io(WHAT, &e))?;
        let socket = Self {
            mnl,
            seq: 0,
            buf: RecvBuf::new(),
            out: Vec::new(),
        };
        nix::fcntl::fcntl(
            &socket,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
        )
        .map_err(|e| Error::new(WHAT, e as i32))?;
        socket.set(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1, WHAT)?;
        socket.set(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1, WHAT)?;
        Ok(socket)
    }

    /// The socket's port id: events that its own requests cause carry it.
    pub fn portid(&self) -> u32 {
        self.mnl.portid()
    }

    /// Joins multicast group `group` ([`crate::conntrack::group`]).
    ///
    /// # Errors
    /// [`Error`], `EPERM` without `CAP_NET_ADMIN`.
    pub fn join(&self, group: u32) -> Result<(), Error> {
        let group =
            i32::try_from(group).map_err(|_| Error::new("joining netlink group", libc::EINVAL))?;
        self.set(
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            group,
            "joining netlink group",
        )
    }

    /// Leaves multicast group `group`.
    ///
    /// # Errors
    /// [`Error`] if it was never joined.
    pub fn leave(&self, group: u32) -> Result<(), Error> {
        let group =
            i32::try_from(group).map_err(|_| Error::new("leaving netlink group", libc::EINVAL))?;
        self.set(
            libc::SOL_NETLINK,
            libc::NETLINK_DROP_MEMBERSHIP,
            group,
            "leaving netlink group",
        )
    }

    /// Hides overruns: right for a queue socket, whose losses the kernel
    /// counts, wrong for events.
    ///
    /// # Errors
    /// [`Error`] if the kernel refuses the option.
    pub fn hide_overruns(&self) -> Result<(), Error> {
        self.set(
            libc::SOL_NETLINK,
            libc::NETLINK_NO_ENOBUFS,
            1,
            "setting NETLINK_NO_ENOBUFS",
        )
    }

    /// Keeps events that `filter` does not let pass from ever being queued
    /// here: they cost neither buffer nor wake-up. Replaces the filter before.
    ///
    /// # Errors
    /// [`Error`] if the kernel refuses the program.
    pub fn filter_events(&self, filter: &EventFilter<'_>) -> Result<(), Error> {
        const WHAT: &str = "filtering netlink events";
        let mut program = filter.program();
        let len = u16::try_from(program.len()).map_err(|_| Error::new(WHAT, libc::E2BIG))?;
        let prog = libc::sock_fprog {
            len,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: `prog` and the `len` instructions it points to are readable
        // for the call, during which the kernel copies them.
        let rc = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const prog).cast(),
                socklen::<libc::sock_fprog>(),
            )
        };
        if rc < 0 {
            return Err(Error::io(WHAT, &io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Sets the receive buffer, beyond `net.core.rmem_max` if privileged.
    /// Returns the bytes in force (the kernel doubles what is asked).
    ///
    /// # Errors
    /// [`Error`] if the size can't be set at all.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<usize, Error> {
        self.set_buffer(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes)
    }

    /// Sets the send buffer, beyond `net.core.wmem_max` if privileged: a
    /// batch must fit it whole (`EMSGSIZE` otherwise).
    ///
    /// # Errors
    /// [`Error`] if the size can't be set at all.
    pub fn set_send_buffer(&self, bytes: usize) -> Result<usize, Error> {
        self.set_buffer(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, bytes)
    }

    /// How many messages the kernel has dropped for lack of room, ever.
    ///
    /// `ENOBUFS` tells only of the first ones: it is not given again before
    /// the queue has been empty (af_netlink.c, `netlink_overrun`).
    ///
    /// # Errors
    /// [`Error`] if the kernel does not tell.
    pub fn drops(&self) -> Result<u32, Error> {
        const SK_MEMINFO_DROPS: usize = 8;
        let mut info = [0_u32; SK_MEMINFO_DROPS + 1];
        let mut len = socklen::<[u32; SK_MEMINFO_DROPS + 1]>();
        // SAFETY: `info` and `len` are valid for writes, and `len` is the
        // size of `info`.
        let rc = unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                (&raw mut info).cast(),
                &raw mut len,
            )
        };
        if rc < 0 {
            let error = io::Error::last_os_error();
            return Err(Error::io("counting dropped messages", &error));
        }
        Ok(info[SK_MEMINFO_DROPS])
    }

    fn set_buffer(&self, force: i32, plain: i32, bytes: usize) -> Result<usize, Error> {
        const WHAT: &str = "sizing netlink socket buffer";
        let value = i32::try_from(bytes).unwrap_or(i32::MAX / 2);
        if self.set(libc::SOL_SOCKET, force, value, WHAT).is_err() {
            self.set(libc::SOL_SOCKET, plain, value, WHAT)?;
        }
        let mut got: libc::c_int = 0;
        let mut len = socklen::<libc::c_int>();
        // SAFETY: `got` and `len` are valid for writes, and `len` is the size
        // of `got`.
        let rc = unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                plain,
                (&raw mut got).cast(),
                &raw mut len,
            )
        };
        if rc < 0 {
            return Err(Error::io(WHAT, &io::Error::last_os_error()));
        }
        Ok(usize::try_from(got).unwrap_or(0))
    }

    fn set(&self, level: i32, option: i32, value: i32, what: &str) -> Result<(), Error> {
        let value: libc::c_int = value;
        // SAFETY: `value` is readable and its size is given.
        let rc = unsafe {
            libc::setsockopt(
                self.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                socklen::<libc::c_int>(),
            )
        };
        if rc < 0 {
            return Err(Error::io(what, &io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Sends messages in one datagram. nfnetlink carries them out before
    /// this returns.
    ///
    /// # Errors
    /// [`Error`], `EMSGSIZE` if the datagram exceeds the send buffer.
    pub fn send(&self, messages: &[u8], operation: &str) -> Result<(), Error> {
        self.mnl
            .send(messages)
            .map(drop)
            .map_err(|e| Error::io(operation, &e))
    }

    /// Receives one datagram into `buf` without waiting.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn try_receive<'b>(&self, buf: &'b mut RecvBuf) -> Result<Received<'b>, Error> {
        self.receive_with(buf, libc::MSG_DONTWAIT)
    }

    /// Receives one datagram into `buf`, waiting for it, unless
    /// [`Socket::set_receive_timeout`] limits that.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn receive<'b>(&self, buf: &'b mut RecvBuf) -> Result<Received<'b>, Error> {
        self.receive_with(buf, 0)
    }

    fn receive_with<'b>(&self, buf: &'b mut RecvBuf, flags: i32) -> Result<Received<'b>, Error> {
        loop {
            // SAFETY: the pointer and length are those of `buf`'s allocation,
            // borrowed mutably for the call.
            let n = unsafe {
                libc::recv(
                    self.as_raw_fd(),
                    buf.0.as_mut_ptr().cast(),
                    size_of_val(&*buf.0),
                    flags,
                )
            };
            let Ok(n) = usize::try_from(n) else {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::EAGAIN) => return Ok(Received::Empty),
                    Some(libc::ENOBUFS | libc::ENOMEM) => return Ok(Received::Overrun),
                    _ => return Err(Error::io("receiving from netlink", &error)),
                }
            };
            // SAFETY: `recv` initialised the first `n` bytes, `n` is at most
            // that, and any byte is a valid u8.
            let datagram = unsafe { std::slice::from_raw_parts(buf.0.as_ptr().cast(), n) };
            return Ok(Received::Datagram(datagram));
        }
    }

    /// Limits waits in [`Socket::receive`], which gives [`Received::Empty`] then.
    ///
    /// # Errors
    /// [`Error`] if the kernel refuses the option.
    pub fn set_receive_timeout(&self, timeout: Duration) -> Result<(), Error> {
        let timeout = TimeVal::new(
            timeout.as_secs().try_into().unwrap_or(i64::MAX),
            timeout.subsec_micros().into(),
        );
        nix::sys::socket::setsockopt(self, ReceiveTimeout, &timeout)
            .map_err(|e| Error::new("setting SO_RCVTIMEO", e as i32))
    }

    /// What wakes this socket's thread.
    ///
    /// # Errors
    /// [`Error`] if descriptors ran out.
    pub fn waker(&self) -> Result<Waker, Error> {
        let fd = self.as_fd().try_clone_to_owned();
        fd.map(Waker)
            .map_err(|e| Error::io("duplicating a socket", &e))
    }

    /// A sequence number not used before on this socket; never 0, which
    /// events of packets carry.
    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Sends the message that `build` appends (with the sequence number it
    /// is given and `NLM_F_ACK`) and waits for its answer.
    ///
    /// # Errors
    /// [`Error`] with the kernel's errno and text.
    pub fn request(
        &mut self,
        operation: &str,
        build: impl FnOnce(&mut Vec<u8>, u32) -> Result<(), crate::message::TooLong>,
    ) -> Result<(), Error> {
        self.exchange(operation, build, |_| {})
    }

    /// Sends a request (or dump) and hands every message that answers it to
    /// `each`, until the acknowledgement, error or end of the dump.
    ///
    /// # Errors
    /// [`Error`] with the kernel's errno and text; `ENOBUFS` if answers were
    /// lost.
    pub fn exchange(
        &mut self,
        operation: &str,
        build: impl FnOnce(&mut Vec<u8>, u32) -> Result<(), crate::message::TooLong>,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), Error> {
        let seq = self.next_seq();
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let built = build(&mut out, seq).map_err(|_| Error::new(operation, libc::EMSGSIZE));
        let sent = built.and_then(|()| self.send(&out, operation));
        self.out = out;
        sent?;
        let mut buf = std::mem::replace(&mut self.buf, RecvBuf::none());
        let result = loop {
            match self.receive(&mut buf) {
                Err(e) => break Err(e),
                Ok(Received::Empty) => {}
                Ok(Received::Overrun) => break Err(Error::new(operation, libc::ENOBUFS)),
                Ok(Received::Datagram(datagram)) => {
                    if let Some(end) = answer(operation, seq, datagram, &mut each) {
                        break end;
                    }
                }
            }
        };
        self.buf = buf;
        result
    }

    /// Sends `count` messages in one datagram, each appended by `build` (with
    /// its index, the sequence number it is given and `NLM_F_ACK`), and hands
    /// each one's result to `each`. One failure does not stop the others.
    ///
    /// # Errors
    /// [`Error`] if sending or receiving failed as a whole.
    pub fn request_all(
        &mut self,
        operation: &str,
        count: u32,
        mut build: impl FnMut(&mut Vec<u8>, u32, u32) -> Result<(), crate::message::TooLong>,
        mut each: impl FnMut(u32, Result<(), Failure<'_>>),
    ) -> Result<(), Error> {
        // Sequence numbers of one batch never wrap to 0 in between.
        if self.seq.checked_add(count).is_none() {
            self.seq = 0;
        }
        let first = self.seq.wrapping_add(1);
        self.seq += count;
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let built = (0..count).try_for_each(|i| build(&mut out, i, first + i));
        let sent = built
            .map_err(|_| Error::new(operation, libc::EMSGSIZE))
            .and_then(|()| self.send(&out, operation));
        self.out = out;
        sent?;
        let mut buf = std::mem::replace(&mut self.buf, RecvBuf::none());
        let mut missing = count;
        let result = loop {
            if missing == 0 {
                break Ok(());
            }
            match self.receive(&mut buf) {
                Err(e) => break Err(e),
                Ok(Received::Empty) => {}
                Ok(Received::Overrun) => break Err(Error::new(operation, libc::ENOBUFS)),
                Ok(Received::Datagram(datagram)) => {
                    for message in Messages::new(datagram) {
                        let index = message.seq.wrapping_sub(first);
                        if index >= count {
                            continue;
                        }
                        match message.kind() {
                            Kind::Ack => each(index, Ok(())),
                            Kind::Error(failure) => each(index, Err(failure)),
                            _ => continue,
                        }
                        missing = missing.saturating_sub(1);
                    }
                }
            }
        };
        self.buf = buf;
        result
    }
}

/// Reads one datagram of an exchange; `Some` when the exchange is over.
fn answer(
    operation: &str,
    seq: u32,
    datagram: &[u8],
    each: &mut impl FnMut(&Message<'_>),
) -> Option<Result<(), Error>> {
    for message in Messages::new(datagram).filter(|m| m.seq == seq) {
        match message.kind() {
            Kind::Netfilter(_) => each(&message),
            Kind::Ack | Kind::Done => return Some(Ok(())),
            Kind::Error(failure) => return Some(Err(Error::failure(operation, &failure))),
            Kind::Other => {}
        }
    }
    None
}

/// `size_of::<T>()` as the system calls want it.
const fn socklen<T>() -> libc::socklen_t {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "option values are a few bytes"
    )]
    let len = size_of::<T>() as libc::socklen_t;
    len
}
