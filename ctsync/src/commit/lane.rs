//! A thread that hands batches to the kernel, while the next one is made: the
//! kernel carries a batch out inside of the send, which is where the time of a
//! commit goes.

use super::{BATCH, MAX_SHORTAGES, Op};
use netfilter::message::{Kind, Message};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Error, Flow, Messages, Socket, conntrack};
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Batches that the thread has or will find when it is done.
const DEPTH: usize = 2;

/// What the kernel gets to find memory.
const RELIEF: Duration = Duration::from_millis(10);

/// Messages for the kernel.
#[derive(Debug, Default)]
pub struct Batch {
    /// The messages.
    pub out: Vec<u8>,
    /// What each is for.
    pub ops: Vec<Op>,
    /// Sequence number of the first.
    pub first_seq: u32,
}

impl Batch {
    /// The same, to be used again.
    pub fn emptied(mut self) -> Self {
        self.out.clear();
        self.ops.clear();
        self
    }
}

/// What the kernel said to a batch.
#[derive(Debug)]
pub struct Outcome {
    /// The batch.
    pub batch: Batch,
    /// Of each message; 0 if it was carried out, or if that is not known.
    pub errnos: [i32; BATCH],
    /// The errno that kept the kernel from taking the batch, or from saying
    /// all that came of it.
    pub short: Option<i32>,
    /// The kernel has taken the batch.
    pub sent: bool,
    /// What was asked for.
    pub found: BTreeMap<usize, Flow>,
}

/// Receives what the kernel has to say to messages that were sent; `take` gets
/// each with the place of its message behind the first.
///
/// # Errors
/// [`Error`] if the socket is broken, or, once all there is has been taken, if
/// the kernel had no room for more ([`Error::is_shortage`]).
pub fn answers(
    socket: &mut Socket,
    buf: &mut RecvBuf,
    first_seq: u32,
    mut take: impl FnMut(usize, &Message<'_>),
) -> Result<(), Error> {
    let mut whole = Ok(());
    loop {
        match socket.try_receive(buf)? {
            Received::Empty => return whole,
            Received::Overrun => whole = Err(Error::new("receiving answers", libc::ENOBUFS)),
            Received::Datagram(datagram) => {
                for m in Messages::new(datagram) {
                    take(m.seq.wrapping_sub(first_seq) as usize, &m);
                }
            }
        }
    }
}

/// Does it again where the kernel has no memory for it, a few times, at once:
/// the daemon's loop can't wait, and comes back to it.
///
/// # Errors
/// [`Error`] of `act`.
pub fn insistently<T>(mut act: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 0..MAX_SHORTAGES {
        match act() {
            Err(error) if error.is_shortage() => {}
            other => return other,
        }
    }
    act()
}

/// Sends a batch; the kernel has carried it out when this returns. If it was
/// short of memory, it is given some time before anything is tried again.
pub fn carry_out(socket: &mut Socket, buf: &mut RecvBuf, batch: Batch) -> Result<Outcome, Error> {
    let (mut errnos, mut found) = ([0; BATCH], BTreeMap::new());
    let result = socket.send(&batch.out, "committing");
    let sent = result.is_ok();
    let told = result.and_then(|()| {
        answers(socket, buf, batch.first_seq, |at, m| {
            if let (Kind::Error(e), Some(errno)) = (m.kind(), errnos.get_mut(at)) {
                *errno = e.errno;
            } else if let Ok(Some(event)) = conntrack::Event::decode(m) {
                found.insert(at, event.flow);
            }
        })
    });
    let short = match told {
        Ok(()) => None,
        Err(error) if error.is_shortage() => {
            std::thread::sleep(RELIEF);
            Some(error.errno)
        }
        Err(error) => return Err(error),
    };
    Ok(Outcome {
        batch,
        errnos,
        short,
        sent,
        found,
    })
}

/// A socket for messages to conntrack.
pub fn open() -> Result<Socket, Error> {
    let socket = Socket::open()?;
    socket.set_receive_buffer(4 << 20)?;
    socket.set_send_buffer(1 << 20)?;
    Ok(socket)
}

fn ended() -> Error {
    Error::new("committing", libc::ESRCH)
}

/// The thread; it ends with this.
#[derive(Debug)]
pub struct Lane {
    batches: SyncSender<Batch>,
    outcomes: Receiver<Result<Outcome, Error>>,
    under_way: usize,
    /// Port id of its socket: events it causes carry it.
    pub portid: u32,
    spare: VecDeque<Batch>,
}

impl Lane {
    /// Starts the thread, as confined as the calling one.
    ///
    /// # Errors
    /// [`Error`] if there can be none, or no socket.
    pub fn start() -> Result<Self, Error> {
        const WHAT: &str = "starting a thread for a commit";
        let (batches, todo) = sync_channel::<Batch>(DEPTH);
        let (tell, outcomes) = sync_channel(DEPTH);
        let (ready, portid) = sync_channel(1);
        let work = move || {
            let mut socket = match open() {
                Ok(socket) => socket,
                Err(e) => return drop(ready.send(Err(e))),
            };
            let mut buf = RecvBuf::new();
            let _ = ready.send(Ok(socket.portid()));
            while let Ok(batch) = todo.recv() {
                if tell.send(carry_out(&mut socket, &mut buf, batch)).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("commit".into());
        let failed = |e: std::io::Error| Error::new(WHAT, e.raw_os_error().unwrap_or(libc::EAGAIN));
        thread.spawn(work).map_err(failed)?;
        let portid = portid.recv();
        Ok(Self {
            batches,
            outcomes,
            under_way: 0,
            portid: portid.unwrap_or_else(|_| Err(Error::new(WHAT, libc::ESRCH)))?,
            spare: VecDeque::new(),
        })
    }

    /// True if nothing is under way.
    pub const fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// True if the thread has enough to do.
    pub const fn is_full(&self) -> bool {
        self.under_way >= DEPTH
    }

    /// Gives the thread a batch; it must not be full.
    ///
    /// # Errors
    /// [`Error`] if the thread has ended.
    pub fn submit(&mut self, batch: Batch) -> Result<(), Error> {
        self.batches.send(batch).map_err(|_| ended())?;
        self.under_way += 1;
        Ok(())
    }

    /// Waits for the oldest batch that is under way.
    ///
    /// # Errors
    /// [`Error`] of the thread's socket.
    pub fn wait(&mut self) -> Result<Outcome, Error> {
        self.under_way = self.under_way.saturating_sub(1);
        self.outcomes.recv().map_err(|_| ended())?
    }

    /// An empty batch, with room.
    pub fn take_spare(&mut self) -> Batch {
        self.spare.pop_front().unwrap_or_default()
    }

    /// Takes a batch to be used again.
    pub fn give_back(&mut self, batch: Batch) {
        self.spare.push_back(batch.emptied());
    }
}
