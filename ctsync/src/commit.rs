//! Putting peers' entries into the kernel.
//!
//! Masters go before the connections that refer to them, a helper's private
//! data after its connection (a second message: the kernel ignores it on
//! create), expectations last, then their remaining timeout. Many messages
//! per send; the kernel carries them out before the send returns and reports
//! each failure by its sequence number.

mod direct;
mod encode;
mod report;
mod results;
#[cfg(test)]
mod tests;
pub mod verify;

use crate::kernel::labels::Room;
use crate::record;
use crate::replica::{PeerId, Replica};
use crate::store::{Flags, Slot};
pub use direct::{is_used, was_used};
use netfilter::inject::Options;
use netfilter::socket::RecvBuf;
use netfilter::{Dir, Error, Socket};
pub use report::Report;
use std::collections::VecDeque;
use std::time::Duration;

/// Messages per send.
const BATCH: usize = 128;
/// For an entry that its owner kept alive past the time we know of.
const REVIVED_SECS: u32 = 30;

/// An entry meets something in its way so often before it counts as failed.
const MAX_TRIES: u8 = 3;
/// Entries in one step that need no message.
const KEPT: usize = 1024;
const CREATE: Step = Step::Create {
    help: true,
    master: true,
};

/// What a commit is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Connections that stand alone.
    Masters,
    /// Connections that came from an expectation.
    Related,
    /// Expectations.
    Expectations,
    /// Nothing is left to do.
    Done,
}

impl Stage {
    const fn next(self) -> Self {
        match self {
            Self::Masters => Self::Related,
            Self::Related => Self::Expectations,
            _ => Self::Done,
        }
    }
}

/// One message to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create {
        help: bool,
        master: bool,
    },
    /// What is there instead: by the original tuple, then by the reply's.
    Look(Dir),
    Update,
    Delete(Dir),
    Info,
    /// Is the helper still there? Kernels before 5.17 may take it away when
    /// they set up NAT (`__nf_ct_try_assign_helper`), and say nothing.
    Helper,
    Expect,
    ExpectTimeout,
    /// It is there as it should be.
    Keep,
}

#[derive(Debug, Clone, Copy)]
struct Op {
    peer: PeerId,
    slot: u32,
    step: Step,
    replaced: bool,
    /// How often something was in its way.
    tries: u8,
}

/// A commit under way, or the standing one of `apply = "immediate"`.
#[derive(Debug)]
pub struct Commit {
    socket: Socket,
    buf: RecvBuf,
    out: Vec<u8>,
    sent: Vec<Op>,
    first_seq: u32,
    todo: VecDeque<Op>,
    /// What came before its master, of what is applied at once.
    later: Vec<Op>,
    scan: Option<Scan>,
    /// Entries to look at, for progress.
    pub total: u64,
    /// Entries looked at.
    pub done: u64,
    /// So far.
    pub report: Report,
    /// Entries written into the kernel since the start of the program.
    pub written: u64,
    /// Entries the kernel has refused since the start of the program.
    pub refused: u64,
    options: Options,
    /// Entries are put into the kernel as they come (`apply = "immediate"`).
    pub applies: Applies,
    started: Duration,
    labels: Labels,
}

/// What is in the kernel of peers' entries before a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// Nothing, or what an earlier commit has left.
    OnDemand,
    /// Everything that could be put there, but for its timeout: one message
    /// instead of three (create, look, update).
    AtOnce,
    /// Everything as it should be: no event is missing that would have told
    /// otherwise. Nothing needs to be sent.
    Surely,
}

/// Room for labels in the kernel, from the first connection on that has some.
#[derive(Debug, Default)]
enum Labels {
    #[default]
    NotNeeded,
    Room(#[expect(dead_code, reason = "it is enough that it lives")] Room),
    /// The kernel can't: it was told once.
    NoRoom,
}

#[derive(Debug, Clone, Copy)]
struct Scan {
    stage: Stage,
    peer: PeerId,
    slot: u32,
}

/// Who learns which entries are in the kernel now.
pub trait Committed {
    /// The entry of `peer` in `slot` is in the kernel.
    fn committed(&mut self, replica: &mut Replica, peer: PeerId, slot: u32);
}

impl Commit {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(liberal: bool) -> Result<Self, Error> {
        let socket = Socket::open()?;
        socket.set_receive_buffer(4 << 20)?;
        socket.set_send_buffer(1 << 20)?;
        Ok(Self {
            socket,
            buf: RecvBuf::new(),
            out: Vec::new(),
            sent: Vec::new(),
            first_seq: 0,
            todo: VecDeque::new(),
            later: Vec::new(),
            scan: None,
            total: 0,
            done: 0,
            report: Report::default(),
            written: 0,
            refused: 0,
            options: Options {
                liberal,
                ..Options::default()
            },
            applies: Applies::OnDemand,
            started: Duration::ZERO,
            labels: Labels::default(),
        })
    }

    /// Whether TCP connections are written so that they accept packets
    /// outside of their window.
    pub const fn set_liberal(&mut self, liberal: bool) {
        self.options.liberal = liberal;
    }

    /// The socket's port id: events it causes carry it.
    pub fn portid(&self) -> u32 {
        self.socket.portid()
    }

    /// Begins with everything that the peers' copies hold.
    pub fn start(&mut self, replica: &Replica, now: Duration) {
        self.report = Report::default();
        self.started = now;
        self.done = 0;
        self.total = replica
            .peers
            .iter()
            .map(|p| p.inbound.store.len() as u64)
            .sum();
        self.scan = Some(Scan {
            stage: Stage::Masters,
            peer: 0,
            slot: 0,
        });
    }

    /// True while there is something to do.
    pub fn is_busy(&self) -> bool {
        self.scan.is_some() || !self.todo.is_empty()
    }

    /// True while [`Commit::start`]'s work goes on.
    pub const fn is_running(&self) -> bool {
        self.scan.is_some()
    }

    /// Queues entries of a peer: masters first, expectations last.
    pub fn push(&mut self, replica: &Replica, peer: PeerId, slots: &[u32]) {
        let Some(copy) = replica.peers.get(peer).map(|p| &p.inbound.store) else {
            return;
        };
        let op = |index: &u32| {
            let slot = copy.slot(*index).filter(|s| s.is_live())?;
            let stage = stage_of(slot, copy.bytes(slot))?;
            Some((stage, first_op(peer, *index, slot)))
        };
        let mut ops: Vec<(Stage, Op)> = slots.iter().filter_map(op).collect();
        ops.sort_by_key(|(stage, _)| *stage);
        self.todo.extend(ops.into_iter().map(|(_, op)| op));
    }

    /// Queues entries of a peer that are in the kernel, and have another
    /// timeout now.
    pub fn push_later(&mut self, replica: &Replica, peer: PeerId, slots: &[u32]) {
        let Some(copy) = replica.peers.get(peer).map(|p| &p.inbound.store) else {
            return;
        };
        for index in slots {
            let Some(slot) = copy.slot(*index).filter(|s| s.is_live()) else {
                continue;
            };
            let step = if slot.is_expect() {
                Step::ExpectTimeout
            } else {
                Step::Update
            };
            let op = first_op(peer, *index, slot);
            self.todo.push_back(Op { step, ..op });
        }
    }

    /// Tries again what came before its master.
    pub fn try_again(&mut self) {
        self.todo.extend(self.later.drain(..));
    }

    /// Does one batch; the report when [`Commit::start`]'s work is done.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn step(
        &mut self,
        replica: &mut Replica,
        now: Duration,
        committed: &mut dyn Committed,
    ) -> Result<Option<Report>, Error> {
        self.out.clear();
        self.sent.clear();
        self.first_seq = self.first_seq.wrapping_add(1 << 8);
        let mut kept = 0;
        while self.sent.len() < BATCH && kept < KEPT {
            let Some(op) = self.todo.pop_front().or_else(|| self.scan_next(replica)) else {
                break;
            };
            if op.step == Step::Keep {
                kept += 1;
                self.report.flows += 1;
                committed.committed(replica, op.peer, op.slot);
            } else {
                self.encode(replica, op, now);
            }
        }
        if !self.sent.is_empty() {
            self.socket.send(&self.out, "committing")?;
            self.on_results(replica, committed)?;
        }
        if self.todo.is_empty() && self.scan.is_some_and(|s| s.stage == Stage::Done) {
            self.scan = None;
            if matches!(self.labels, Labels::Room(_)) {
                self.labels = Labels::NotNeeded;
            }
            self.report.seconds = now.saturating_sub(self.started).as_secs_f64();
            return Ok(Some(std::mem::take(&mut self.report)));
        }
        Ok(None)
    }

    /// The next entry of the current stage; stages wait for one another.
    fn scan_next(&mut self, replica: &Replica) -> Option<Op> {
        let scan = self.scan.as_mut()?;
        while scan.stage != Stage::Done {
            let Some(peer) = replica.peers.get(scan.peer) else {
                if !self.sent.is_empty() {
                    return None;
                }
                scan.stage = scan.stage.next();
                (scan.peer, scan.slot) = (0, 0);
                continue;
            };
            let copy = &peer.inbound.store;
            if scan.slot as usize >= copy.slots() {
                scan.peer += 1;
                scan.slot = 0;
                continue;
            }
            let index = scan.slot;
            scan.slot += 1;
            let Some(slot) = copy.slot(index).filter(|s| s.is_live()) else {
                continue;
            };
            let bytes = copy.bytes(slot);
            if stage_of(slot, bytes) != Some(scan.stage) {
                continue;
            }
            self.done += 1;
            if replica.is_fenced(scan.peer) && owns(replica, bytes) {
                self.report.skipped += 1;
                continue;
            }
            return Some(scanned_op(scan.peer, index, slot, self.applies));
        }
        None
    }
}

const fn first_op(peer: PeerId, slot: u32, s: &Slot) -> Op {
    let step = if s.is_expect() { Step::Expect } else { CREATE };
    Op {
        peer,
        slot,
        step,
        replaced: false,
        tries: 0,
    }
}

/// What a commit of everything begins an entry with.
fn scanned_op(peer: PeerId, slot: u32, s: &Slot, applies: Applies) -> Op {
    let op = first_op(peer, slot, s);
    if s.is_expect() || !s.flags.contains(Flags::INSTALLED) {
        return op;
    }
    let step = match applies {
        Applies::OnDemand => op.step,
        Applies::AtOnce => Step::Update,
        Applies::Surely => Step::Keep,
    };
    Op { step, ..op }
}

/// In which stage an entry's turn comes; never, if it can't be used.
fn stage_of(slot: &Slot, bytes: &[u8]) -> Option<Stage> {
    if slot.flags.contains(Flags::REFUSED) {
        return None;
    }
    if slot.is_expect() {
        return Some(Stage::Expectations);
    }
    Some(if record::has_master(bytes) {
        Stage::Related
    } else {
        Stage::Masters
    })
}

/// True if this node has a live entry with the record's key.
pub fn owns(replica: &Replica, bytes: &[u8]) -> bool {
    let own = &replica.own;
    let key = record::split(bytes).map(|s| own.key(s.key));
    let index = key.ok().and_then(|k| own.find(k));
    index.and_then(|i| own.slot(i)).is_some_and(Slot::is_live)
}
