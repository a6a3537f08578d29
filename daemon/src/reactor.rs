//! The event loop: level-triggered epoll over any descriptors.

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Ready descriptors reported per wait.
const BATCH: usize = 32;

/// Waits for descriptors, each known by a number of the caller's choice.
#[derive(Debug)]
pub struct Reactor {
    epoll: Epoll,
}

impl Reactor {
    /// An empty reactor.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Reports `token` while `fd` is readable (or broken).
    ///
    /// # Errors
    /// `fd` can't be polled, or is there already.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        Ok(self
            .epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Reports `token` while `fd` is readable, and, if `write`, writable.
    ///
    /// # Errors
    /// `fd` is not in the reactor.
    pub fn interest(&self, fd: impl AsFd, token: u64, write: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, write);
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, token))?)
    }

    /// Forgets `fd`.
    ///
    /// # Errors
    /// `fd` is not in the reactor.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until a descriptor is ready, `timeout` passes or a signal
    /// handler runs, and appends the tokens of what is ready to `tokens`.
    /// A timeout is rounded up to milliseconds; `None` waits for ever.
    ///
    /// # Errors
    /// The reactor is broken.
    pub fn wait(&self, timeout: Option<Duration>, tokens: &mut Vec<u64>) -> io::Result<()> {
        let timeout = timeout.map_or(EpollTimeout::NONE, |t| {
            let millis = t.as_micros().div_ceil(1000);
            EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
        });
        let mut events = [EpollEvent::empty(); BATCH];
        let ready = match self.epoll.wait(&mut events, timeout) {
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        tokens.extend(events.iter().take(ready).map(EpollEvent::data));
        Ok(())
    }
}

impl AsFd for Reactor {
    /// A reactor is itself readable while something in it is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
