//! Somebody between two ends of a datagram link, who passes everything on and
//! remembers it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::netns::Namespace;

/// A datagram that passed: for which end, and its bytes.
pub type Seen = (usize, Vec<u8>);

/// Stands between two ends.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// To the first and the second end, with the addresses that they know
    /// each other by.
    sockets: [UdpSocket; 2],
    ends: [SocketAddr; 2],
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// What the first end takes for the second, what the second takes for the
    /// first, both in the namespace, and where they really are.
    ///
    /// # Errors
    /// If they can't be bound.
    pub fn start(at: &Namespace, instead: [SocketAddr; 2], ends: [SocketAddr; 2]) -> Result<Self> {
        let [for_one, for_two] = instead.map(|address| at.enter(|| UdpSocket::bind(address)));
        let sockets = [for_one?, for_two?];
        let stop = Arc::<AtomicBool>::default();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (stopped, log) = (stop.clone(), seen.clone());
        let [one, two] = &sockets;
        let ways = [
            (one.try_clone()?, two.try_clone()?, 1, ends[1]),
            (two.try_clone()?, one.try_clone()?, 0, ends[0]),
        ];
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        let thread = std::thread::spawn(move || {
            let mut buf = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                for (from, to, receiver, end) in &ways {
                    while let Ok((len, _)) = from.recv_from(&mut buf) {
                        let bytes: Vec<u8> = buf.iter().take(len).copied().collect();
                        let _ = to.send_to(&bytes, end);
                        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                        log.push((*receiver, bytes));
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(Self {
            stop,
            seen,
            sockets,
            ends,
            thread: Some(thread),
        })
    }

    /// Addresses that the first and the second end take for the other one.
    ///
    /// # Errors
    /// If a socket is gone.
    pub fn instead_of_peer(&self) -> Result<(SocketAddr, SocketAddr)> {
        let [one, two] = &self.sockets;
        Ok((one.local_addr()?, two.local_addr()?))
    }

    /// Everything that has passed.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    /// To an end, as if from the other one.
    pub fn send(&self, to: usize, bytes: &[u8]) {
        // What does not fit the receiver's buffer is lost, as anywhere.
        if let (Some(socket), Some(end)) = (self.sockets.get(to), self.ends.get(to)) {
            let _ = socket.send_to(bytes, end);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
