//! Putting peers' entries into the kernel.
//!
//! Masters go before the connections that refer to them, a helper's private
//! data after its connection (a second message: the kernel ignores it on
//! create), expectations last, then their remaining timeout. Many messages
//! per send; the kernel carries them out before the send returns and reports
//! each failure by its sequence number.

mod direct;
mod encode;
mod lane;
mod report;
mod results;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;

use crate::kernel::labels::Room;
use crate::record;
use crate::replica::{PeerId, Replica};
use crate::store::{Flags, Slot};
pub use direct::{is_used, was_used};
use lane::{Batch, Lane};
use netfilter::inject::Options;
use netfilter::socket::RecvBuf;
use netfilter::{Dir, Error, Socket, Status};
pub use report::Report;
use std::collections::VecDeque;
use std::time::Duration;

/// Messages per send.
pub const BATCH: usize = 128;
/// For an entry that its owner kept alive past the time we know of.
const REVIVED_SECS: u32 = 30;

/// An entry meets something in its way so often before it counts as failed.
const MAX_TRIES: u8 = 3;
/// So often the kernel may have no memory for an entry before it counts as
/// failed.
const MAX_SHORTAGES: u8 = 8;
/// Entries in one step that need no message.
const KEPT: usize = 1024;
const CREATE: Step = Step::Create {
    help: true,
    master: true,
};

/// Of a connection that is there as it should be, but for its timeout.
const UPDATE: Step = Step::Update(There {
    status: Status::empty(),
    marked: false,
    labelled: false,
});

/// What a commit is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stage {
    /// Connections that stand alone.
    #[default]
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
    Update(There),
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

impl Step {
    /// True if its entry is in the kernel once it is done.
    const fn is_write(self) -> bool {
        matches!(
            self,
            Self::Create { .. } | Self::Update(_) | Self::Expect | Self::ExpectTimeout
        )
    }
}

/// What an update has to know of the connection that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct There {
    /// Bits it has: none can be taken away.
    status: Status,
    /// It has a mark, and should have none.
    marked: bool,
    /// It has labels, and should have none.
    labelled: bool,
}

#[derive(Debug, Clone, Copy)]
struct Op {
    peer: PeerId,
    slot: u32,
    step: Step,
    replaced: bool,
    /// Applied at once, it goes into no batch behind an earlier stage: to replace a
    /// connection takes its expectations away. Of no meaning during a commit.
    stage: Stage,
    /// It has a helper.
    helped: bool,
    /// How often something was in its way.
    tries: u8,
    /// How often the kernel had no memory for it.
    shortages: u8,
}

/// A commit under way, or the standing one of `apply = "immediate"`.
#[derive(Debug)]
pub struct Commit {
    socket: Socket,
    buf: RecvBuf,
    out: Vec<u8>,
    batch: Batch,
    lane: Option<Lane>,
    first_seq: u32,
    todo: VecDeque<Op>,
    /// Of what is applied at once: what came before its master, and what the
    /// kernel had no memory or no room for.
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
    /// Why the kernel had no memory for a batch, or none to tell of it.
    pub shortages: Vec<Error>,
    /// Entries are marked as installed that may not be there.
    in_doubt: bool,
    /// Deletions wait: a full table will have room.
    pub room_comes: bool,
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

#[derive(Debug, Default)]
struct Scan {
    stage: Stage,
    peer: PeerId,
    slot: u32,
    /// Passed by, for later stages.
    related: VecDeque<(PeerId, u32)>,
    expectations: VecDeque<(PeerId, u32)>,
}

impl Scan {
    /// Where to look next in this stage.
    fn next(&mut self, replica: &Replica) -> Option<(PeerId, u32)> {
        match self.stage {
            Stage::Masters => loop {
                let copy = &replica.peers.get(self.peer)?.inbound.store;
                if (self.slot as usize) < copy.slots() {
                    self.slot += 1;
                    return Some((self.peer, self.slot - 1));
                }
                (self.peer, self.slot) = (self.peer + 1, 0);
            },
            Stage::Related => self.related.pop_front(),
            Stage::Expectations => self.expectations.pop_front(),
            Stage::Done => None,
        }
    }
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
        Ok(Self {
            socket: lane::open()?,
            buf: RecvBuf::new(),
            out: Vec::new(),
            batch: Batch::default(),
            lane: None,
            first_seq: 0,
            todo: VecDeque::new(),
            later: Vec::new(),
            scan: None,
            total: 0,
            done: 0,
            report: Report::default(),
            written: 0,
            refused: 0,
            shortages: Vec::new(),
            in_doubt: false,
            room_comes: false,
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

    /// The sockets' port ids: events they cause carry them.
    pub fn portids(&self) -> Vec<u32> {
        let lane = self.lane.as_ref().map(|lane| lane.portid);
        std::iter::once(self.socket.portid()).chain(lane).collect()
    }

    /// Begins with everything that the peers' copies hold, with a thread of
    /// its own if there can be one: its socket has another port id.
    pub fn start(&mut self, replica: &Replica, now: Duration) {
        self.report = Report::default();
        self.started = now;
        self.done = 0;
        self.total = replica
            .peers
            .iter()
            .map(|p| p.inbound.store.len() as u64)
            .sum();
        self.scan = Some(Scan::default());
        self.lane = Lane::start()
            .inspect_err(|error| tracing::warn!(%error, "committing on one thread"))
            .ok();
    }

    /// True while there is something to do.
    pub fn is_busy(&self) -> bool {
        self.scan.is_some() || !self.todo.is_empty()
    }

    /// True while [`Commit::start`]'s work goes on.
    pub const fn is_running(&self) -> bool {
        self.scan.is_some()
    }

    /// True, once, if a look at the tables must tell what the kernel has taken:
    /// it had no memory to say so. Not while [`Commit::start`]'s work goes on.
    pub fn take_doubt(&mut self) -> bool {
        !self.is_running() && std::mem::take(&mut self.in_doubt)
    }

    /// True while an entry waits of which that is not known.
    pub fn is_in_doubt(&self) -> bool {
        self.later.iter().any(|op| op.shortages > 0)
    }

    /// Queues entries of a peer: masters first, expectations last.
    pub fn push(&mut self, replica: &Replica, peer: PeerId, slots: &[u32]) {
        let Some(copy) = replica.peers.get(peer).map(|p| &p.inbound.store) else {
            return;
        };
        let op = |index: &u32| {
            let slot = copy.slot(*index).filter(|s| s.is_live())?;
            let stage = stage_of(slot, copy.bytes(slot))?;
            let op = first_op(peer, *index, slot);
            Some(Op { stage, ..op })
        };
        let mut ops: Vec<Op> = slots.iter().filter_map(op).collect();
        ops.sort_by_key(|op| op.stage);
        self.todo.extend(ops);
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
            let (step, stage) = if slot.is_expect() {
                (Step::ExpectTimeout, Stage::Expectations)
            } else {
                (UPDATE, Stage::Masters)
            };
            let op = first_op(peer, *index, slot);
            self.todo.push_back(Op { step, stage, ..op });
        }
    }

    /// Tries again what waits for its master, for memory or for room, and has not
    /// come there meanwhile.
    pub fn try_again(&mut self, replica: &Replica) {
        let mut later = std::mem::take(&mut self.later);
        later.retain(|op| op.shortages > 0 || !results::is_installed(replica, op));
        let again = later.into_iter().map(|op| Op { shortages: 0, ..op });
        self.todo.extend(again);
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
        self.first_seq = self.first_seq.wrapping_add(1 << 8);
        self.batch.first_seq = self.first_seq;
        let mut kept = 0;
        while self.batch.ops.len() < BATCH && kept < KEPT {
            let Some(op) = self.todo.pop_front().or_else(|| self.scan_next(replica)) else {
                break;
            };
            let before = self.batch.ops.last().filter(|_| !self.is_running());
            if before.is_some_and(|before| before.stage < op.stage) {
                self.todo.push_front(op);
                break;
            }
            if op.step == Step::Keep {
                kept += 1;
                self.report.flows += 1;
                committed.committed(replica, op.peer, op.slot);
            } else {
                self.encode(replica, op, now);
            }
        }
        if let Some(outcome) = self.hand_over()? {
            self.settle(replica, outcome, committed);
        }
        let over = self.scan.as_ref().is_some_and(|s| s.stage == Stage::Done);
        if over && self.todo.is_empty() && self.is_idle() {
            self.scan = None;
            self.lane = None;
            if matches!(self.labels, Labels::Room(_)) {
                self.labels = Labels::NotNeeded;
            }
            self.report.seconds = now.saturating_sub(self.started).as_secs_f64();
            return Ok(Some(std::mem::take(&mut self.report)));
        }
        Ok(None)
    }

    /// Gives the batch to the kernel, if it has something; what came of it,
    /// or of one before.
    fn hand_over(&mut self) -> Result<Option<lane::Outcome>, Error> {
        let empty = self.batch.ops.is_empty();
        let Some(lane) = &mut self.lane else {
            if empty {
                return Ok(None);
            }
            let batch = std::mem::take(&mut self.batch);
            return lane::carry_out(&mut self.socket, &mut self.buf, batch).map(Some);
        };
        if !empty {
            let next = lane.take_spare();
            lane.submit(std::mem::replace(&mut self.batch, next))?;
        }
        let wait = lane.is_full() || (empty && !lane.is_idle());
        wait.then(|| lane.wait()).transpose()
    }

    /// True if the kernel has answered everything.
    fn is_idle(&self) -> bool {
        self.batch.ops.is_empty() && self.lane.as_ref().is_none_or(Lane::is_idle)
    }

    /// The next entry of the current stage; stages wait for one another.
    fn scan_next(&mut self, replica: &Replica) -> Option<Op> {
        let idle = self.is_idle();
        let scan = self.scan.as_mut()?;
        while scan.stage != Stage::Done {
            let Some((peer, index)) = scan.next(replica) else {
                if !idle {
                    return None;
                }
                scan.stage = scan.stage.next();
                continue;
            };
            let copy = replica.peers.get(peer).map(|p| &p.inbound.store);
            let entry = copy.and_then(|c| Some((c, c.slot(index).filter(|s| s.is_live())?)));
            let Some((copy, slot)) = entry else {
                continue;
            };
            let bytes = copy.bytes(slot);
            match stage_of(slot, bytes) {
                Some(stage) if stage == scan.stage => {}
                Some(Stage::Related) if scan.stage == Stage::Masters => {
                    scan.related.push_back((peer, index));
                    continue;
                }
                Some(Stage::Expectations) if scan.stage == Stage::Masters => {
                    scan.expectations.push_back((peer, index));
                    continue;
                }
                _ => continue,
            }
            self.done += 1;
            if replica.is_fenced(peer) && owns(replica, bytes) {
                self.report.skipped += 1;
                continue;
            }
            return Some(scanned_op(peer, index, slot, self.applies));
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
        stage: Stage::Masters,
        helped: false,
        tries: 0,
        shortages: 0,
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
        Applies::AtOnce => UPDATE,
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
