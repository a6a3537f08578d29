//! UDP sockets of the links.

use crate::config::Link;
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Receive buffer asked for, in bytes; the kernel doubles it.
const BUFFER: usize = 8 << 20;

/// One local end.
#[derive(Debug)]
pub struct Udp {
    /// The socket, non-blocking.
    pub socket: UdpSocket,
    /// Bytes of its receive buffer.
    pub buffer: usize,
}

impl Udp {
    /// Binds. The address need not exist yet.
    ///
    /// # Errors
    /// The address is taken, or the device does not exist.
    pub fn bind(link: &Link) -> io::Result<Self> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};
        let family = if link.bind.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::Udp;
        let fd = nix::sys::socket::socket(family, SockType::Datagram, flags, protocol)?;
        if let Some(device) = &link.device {
            setsockopt(&fd, sockopt::BindToDevice, &device.into())?;
        }
        // An address that keepalived or the network manager adds later.
        let _ = setsockopt(&fd, sockopt::IpFreebind, &true);
        if setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &BUFFER)?;
        }
        if setsockopt(&fd, sockopt::SndBufForce, &(BUFFER / 4)).is_err() {
            setsockopt(&fd, sockopt::SndBuf, &(BUFFER / 4))?;
        }
        let buffer = nix::sys::socket::getsockopt(&fd, sockopt::RcvBuf)?;
        let address = nix::sys::socket::SockaddrStorage::from(link.bind);
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address)?;
        Ok(Self {
            socket: UdpSocket::from(fd),
            buffer,
        })
    }

    /// Sends; a datagram that can't be sent counts as lost on the way.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> bool {
        self.socket.send_to(bytes, to).is_ok()
    }

    /// The next datagram, without waiting.
    pub fn receive(&self, buf: &mut [u8]) -> Option<(usize, SocketAddr)> {
        loop {
            match self.socket.recv_from(buf) {
                Ok(got) => return Some(got),
                // Errors of earlier sends (ICMP) come here too.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) if is_of_earlier_send(&e) => {}
                Err(_) => return None,
            }
        }
    }
}

fn is_of_earlier_send(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EINTR)
    )
}
