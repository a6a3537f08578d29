//! A bad network between two programs that speak UDP: what kernels without
//! netem don't have.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::netns::Namespace;

/// Between two nodes: passes datagrams on, but for those it loses.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    /// Percent of datagrams lost; 100 is a partition.
    loss: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Runs in a namespace; each node takes its end for the other node.
    ///
    /// # Errors
    /// If it can't bind.
    pub fn start(
        at: &Namespace,
        one: SocketAddr,
        two: SocketAddr,
    ) -> Result<(Self, [SocketAddr; 2])> {
        let bind = || at.enter(|| UdpSocket::bind((one.ip(), 0)));
        let (for_one, for_two) = (bind()?, bind()?);
        let ends = [for_one.local_addr()?, for_two.local_addr()?];
        let stop = Arc::new(AtomicBool::new(false));
        let loss = Arc::new(AtomicU32::new(0));
        let shared = (stop.clone(), loss.clone());
        let thread = std::thread::spawn(move || {
            relay(&[(for_one, one), (for_two, two)], &shared.0, &shared.1);
        });
        let this = Self {
            stop,
            loss,
            thread: Some(thread),
        };
        Ok((this, ends))
    }

    /// From now on so many percent are lost, and of the others some are
    /// doubled and some overtaken; 100 is a partition, 0 is a good link.
    pub fn lose(&self, percent: u32) {
        self.loss.store(percent, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One end: a socket, and the node it speaks with.
type End = (UdpSocket, SocketAddr);

/// What arrives at one end goes out of the other.
fn relay(ends: &[End; 2], stop: &AtomicBool, loss: &AtomicU32) {
    let [one, two] = ends;
    for (socket, _) in ends {
        if socket.set_nonblocking(true).is_err() {
            return;
        }
    }
    let mut ways = [Way::new(one, two), Way::new(two, one)];
    while !stop.load(Ordering::Relaxed) {
        let lost = loss.load(Ordering::Relaxed);
        let idle = ways
            .iter_mut()
            .map(|w| w.pass(lost))
            .fold(true, |a, b| a & b);
        if idle {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// One direction.
struct Way<'a> {
    from: &'a End,
    to: &'a End,
    held: VecDeque<Vec<u8>>,
    random: u64,
}

impl<'a> Way<'a> {
    fn new(from: &'a End, to: &'a End) -> Self {
        Self {
            from,
            to,
            held: VecDeque::new(),
            random: 1,
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        let random = self.random.wrapping_mul(6_364_136_223_846_793_005);
        self.random = random.wrapping_add(1);
        (self.random >> 33) % 100 < u64::from(percent)
    }

    /// Passes on what is there; true if nothing was.
    fn pass(&mut self, loss: u32) -> bool {
        let (mut buf, mut idle) = ([0; 2048], true);
        while let Ok((len, _)) = self.from.0.recv_from(&mut buf) {
            idle = false;
            if self.chance(loss) {
                continue;
            }
            let bytes: Vec<u8> = buf.iter().take(len).copied().collect();
            if loss > 0 && self.chance(15) {
                self.held.push_back(bytes.clone());
            }
            self.held.push_back(bytes);
        }
        // Some wait for the next turn: they are overtaken.
        for bytes in std::mem::take(&mut self.held) {
            if loss > 0 && self.chance(20) {
                self.held.push_back(bytes);
            } else {
                let _ = self.to.0.send_to(&bytes, self.to.1);
            }
        }
        idle
    }
}
