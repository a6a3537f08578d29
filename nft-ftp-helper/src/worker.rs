//! A queue thread: receives packets in batches, asks the core, makes what it
//! wants in the kernel, and answers the batch with one message.

use crate::census::Census;
use crate::config::{Policies, Settings};
use crate::core::{Class, Reason};
use crate::handler::Handler;
use crate::kernel::Kernel;
use crate::stats::{Figure, Stats};
use crate::support::{self, Failure};
use netfilter::message::{Kind, Message, Messages};
use netfilter::queue::{self, CopyMode, Flags};
use netfilter::socket::{Received, RecvBuf, Waker};
use netfilter::{Dir, Name, Socket};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Packets answered together at most.
const BATCH: u32 = 16;
/// Bytes of verdicts above which no more packets are read for the batch.
const FULL: usize = 1 << 18;
/// After so many turns with one packet each, only one turn of so many looks for
/// a second one.
const ALONE: u32 = 8;
/// Longest wait, so that a stuck thread shows.
const TURN: Duration = Duration::from_secs(1);
/// Between two tries where the kernel has no memory.
const RELIEF: Duration = Duration::from_millis(1);
/// Bytes of a thread's stack. The kernel may make one huge page of two
/// megabytes, of which little is used.
const STACK: usize = 1 << 18;
/// Receive buffer of a queue socket. What does not fit is dropped, or passes
/// with fail-open.
const BUFFER: usize = 8 << 20;

/// What a reload may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// What the core may open.
    pub policies: Arc<Policies>,
    /// Seconds a renewed expectation gets.
    pub expect_timeout_secs: u32,
}

/// What all threads share.
#[derive(Debug)]
pub struct Shared {
    live: Mutex<Live>,
    generation: AtomicU64,
    sender: SyncSender<Notice>,
    /// Readable while notices wait.
    pub wake: EventFd,
    /// Whether anybody wants notices.
    pub watched: AtomicBool,
}

impl Shared {
    /// Threads begin with `live` and report through `sender`.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn new(live: Live, sender: SyncSender<Notice>) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            live: Mutex::new(live),
            generation: AtomicU64::new(0),
            sender,
            wake: EventFd::from_value_and_flags(0, flags)?,
            watched: AtomicBool::new(false),
        })
    }

    /// What is in force.
    pub fn live(&self) -> Live {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts `live` in force for packets from now on.
    pub fn set_live(&self, live: Live) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Hands a notice to the control thread; false if it could not take it.
    pub fn notify(&self, notice: Notice) -> bool {
        let sent = self.sender.try_send(notice).is_ok();
        let _ = self.wake.write(1);
        sent
    }

    /// Makes [`Shared::wake`] unreadable until the next notice.
    pub fn drain_wake(&self) {
        let _ = self.wake.read();
    }
}

/// An event of the core, for `watch`.
#[derive(Debug, Clone, Copy)]
pub struct Notice {
    /// Why.
    pub reason: Reason,
    /// Direction of the packet that caused it.
    pub dir: Dir,
    /// Announced address.
    pub addr: Option<IpAddr>,
    /// Announced port, 0 if there is none.
    pub port: u16,
    /// Client and server of the control connection.
    pub ends: (IpAddr, IpAddr),
}

impl Notice {
    /// As `watch --json` prints it.
    pub fn to_json(&self) -> Value {
        json!({
            "event": class_name(self.reason.class()),
            "reason": self.reason.as_str(),
            "dir": crate::present::dir(self.dir),
            "addr": self.addr,
            "port": self.port,
            "client": self.ends.0,
            "server": self.ends.1,
        })
    }
}

const fn class_name(class: Class) -> &'static str {
    match class {
        Class::Open => "open",
        Class::Refusal => "refused",
        Class::Stop => "stop",
        Class::Transport => "transport",
        Class::Note => "note",
    }
}

/// A running thread.
#[derive(Debug)]
pub struct Worker {
    /// Helper it serves.
    pub name: Name,
    /// Its queue.
    pub queue: u16,
    /// Its counters.
    pub stats: Arc<Stats>,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: JoinHandle<()>,
    seen: (u64, Instant),
}

impl Worker {
    /// Starts a thread and waits until it owns its queue.
    ///
    /// # Errors
    /// The queue is taken, or the kernel lacks something.
    pub fn start(
        settings: &Settings,
        name: Name,
        queue: u16,
        shared: Arc<Shared>,
        census: Arc<Census>,
    ) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let stats = Arc::new(Stats::default());
        let (ready, started) = sync_channel::<Result<_, Failure>>(1);
        let thread = std::thread::Builder::new()
            .name(format!("queue-{queue}"))
            .stack_size(STACK)
            .spawn({
                let (stop, stats, settings) =
                    (Arc::clone(&stop), Arc::clone(&stats), settings.clone());
                let open = move || {
                    let worker = Loop::open(&settings, queue, stats, shared, census)?;
                    Ok((worker.socket.waker()?, worker))
                };
                move || match open() {
                    Ok((waker, mut worker)) => {
                        let _ = ready.send(Ok(waker));
                        drop(ready);
                        if let Err(error) = worker.run(&stop) {
                            tracing::error!(queue, %error, "queue thread ended");
                        }
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .map_err(|e| Failure::system("starting a thread", e))?;
        let waker = started
            .recv()
            .map_err(|_| Failure::Daemon("a queue thread died at its start".into()))??;
        Ok(Self {
            name,
            queue,
            stats,
            stop,
            waker,
            thread,
            seen: (0, Instant::now()),
        })
    }

    /// Whether the thread is no more.
    pub fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// How long the thread's loop has not turned.
    pub fn idle_since(&mut self, now: Instant) -> Duration {
        let turns = self.stats.turns.load(Ordering::Relaxed);
        if turns != self.seen.0 {
            self.seen = (turns, now);
        }
        now.saturating_duration_since(self.seen.1)
    }

    /// Asks the thread to end.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::Release);
        // If it can't be woken, its wait ends by itself.
        let _ = self.waker.wake();
    }

    /// Waits for its end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!(queue = self.queue, "queue thread panicked");
        }
    }
}

struct Loop {
    queue: u16,
    socket: Socket,
    stats: Arc<Stats>,
    shared: Arc<Shared>,
    handler: Handler<Kernel>,
    generation: u64,
}

impl Loop {
    fn open(
        settings: &Settings,
        queue: u16,
        stats: Arc<Stats>,
        shared: Arc<Shared>,
        census: Arc<Census>,
    ) -> Result<Self, Failure> {
        let mut socket = Socket::open()?;
        socket.set_receive_buffer(BUFFER)?;
        socket.set_send_buffer(BUFFER)?;
        socket.hide_overruns()?;
        socket.set_receive_timeout(TURN)?;
        socket
            .request(&format!("binding queue {queue}"), |buf, seq| {
                queue::bind(buf, queue, seq)
            })
            .map_err(support::queue)?;
        let mut flags = Flags::CONNTRACK;
        flags.set(Flags::FAIL_OPEN, settings.fail_open);
        let length = settings.queue_length;
        socket
            .request(&format!("configuring queue {queue}"), |buf, seq| {
                queue::configure(buf, queue, CopyMode::Packet, length, flags, seq)
            })
            .map_err(support::queue)?;
        let timeout = settings.spec.expect_timeout_secs;
        let kernel = Kernel::new(Arc::clone(&stats), census, timeout)?;
        let (counters, common) = (Arc::clone(&stats), Arc::clone(&shared));
        let handler = Handler::new(settings, queue, kernel, counters, common);
        Ok(Self {
            queue,
            socket,
            stats,
            generation: shared.generation.load(Ordering::Acquire),
            shared,
            handler,
        })
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<(), Failure> {
        let (mut buf, mut out) = (RecvBuf::new(), Vec::new());
        // Looking for a second packet costs a system call, which is in vain while
        // one connection speaks at a time.
        let mut alone = 0;
        while !stop.load(Ordering::Acquire) {
            let first = self.socket.receive(&mut buf)?;
            self.begin_turn();
            out.clear();
            let mut packets = self.take(&first, &mut out);
            if alone <= ALONE {
                while (1..BATCH).contains(&packets) && out.len() < FULL {
                    let next = self.socket.try_receive(&mut buf)?;
                    if matches!(next, Received::Empty) {
                        break;
                    }
                    packets += self.take(&next, &mut out);
                }
            }
            alone = match alone + 1 {
                _ if packets > 1 => 0,
                turns if turns < 2 * ALONE => turns,
                _ => ALONE,
            };
            self.send(&out, stop)?;
        }
        Ok(())
    }

    /// Sends verdicts; packets wait for them while the kernel has no memory.
    fn send(&mut self, verdicts: &[u8], stop: &AtomicBool) -> Result<(), Failure> {
        while !verdicts.is_empty() && !stop.load(Ordering::Acquire) {
            match self.socket.send(verdicts, "sending verdicts") {
                Err(error) if error.is_shortage() => {
                    self.stats.count(Figure::KernelErrors);
                    std::thread::sleep(RELIEF);
                }
                sent => return Ok(sent?),
            }
        }
        Ok(())
    }

    fn begin_turn(&mut self) {
        self.stats.turns.fetch_add(1, Ordering::Relaxed);
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.handler.set_live(self.shared.live());
        }
        self.handler.set_now(support::coarse_now());
    }

    /// Handles what was received; how many datagrams that were.
    fn take(&mut self, received: &Received<'_>, out: &mut Vec<u8>) -> u32 {
        let Received::Datagram(datagram) = received else {
            return 0;
        };
        for message in Messages::new(datagram) {
            self.message(&message, out);
        }
        1
    }

    fn message(&mut self, message: &Message<'_>, out: &mut Vec<u8>) {
        match message.kind() {
            Kind::Netfilter(_) => self.handler.packet(message, out),
            Kind::Error(failure) if failure.errno == libc::ENOENT => {
                self.stats.count(Figure::Gone);
            }
            Kind::Error(failure) => {
                self.stats.count(Figure::KernelErrors);
                tracing::warn!(queue = self.queue, errno = failure.errno, "verdict");
            }
            _ => {}
        }
    }
}
