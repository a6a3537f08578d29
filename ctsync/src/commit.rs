//! Putting peers' entries into the kernel.
//!
//! Masters go before the connections that refer to them, a helper's private
//! data after its connection (a second message: the kernel ignores it on
//! create), expectations last, then their remaining timeout. Many messages
//! per send; the kernel carries them out before the send returns and reports
//! each failure by its sequence number.

mod report;
#[cfg(test)]
mod tests;
pub mod verify;

use crate::kernel::labels::Room;
use crate::record::{self, Record};
use crate::replica::{PeerId, Replica, remaining};
use crate::store::{Flags, Slot, Store};
use netfilter::inject::{self, Options};
use netfilter::message::{Kind, TooLong};
use netfilter::protoinfo::{ProtoInfo, TCP_FLAG_MAXACK_SET};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Dir, Error, Expectation, Flow, Messages, Socket, Tuple, conntrack, expect};
pub use report::Report;
use std::collections::{BTreeMap, VecDeque};
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

    /// The connections of these records as the kernel has them.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn look(&mut self, records: &[&[u8]]) -> Result<Vec<Option<Flow>>, Error> {
        let mut all = Vec::new();
        for chunk in records.chunks(BATCH) {
            let first = self.socket.next_seq();
            self.out.clear();
            for (at, record) in (0..).zip(chunk) {
                if let Ok(Record::Flow(f)) = record::decode(record) {
                    let seq = first.wrapping_add(at);
                    conntrack::get(&mut self.out, Dir::Orig, &f.orig, f.zone, seq)
                        .map_err(|_| Error::new("looking into the kernel", libc::EMSGSIZE))?;
                }
            }
            let mut found = vec![None; chunk.len()];
            if !self.out.is_empty() {
                self.socket.send(&self.out, "looking into the kernel")?;
            }
            while let Received::Datagram(datagram) = self.socket.try_receive(&mut self.buf)? {
                for m in Messages::new(datagram) {
                    let at = m.seq.wrapping_sub(first) as usize;
                    if let (Some(place), Ok(Some(event))) =
                        (found.get_mut(at), conntrack::Event::decode(&m))
                    {
                        *place = Some(event.flow);
                    }
                }
            }
            all.append(&mut found);
        }
        Ok(all)
    }

    /// Deletes what these records say from the kernel.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn delete(&mut self, records: &[&[u8]]) -> Result<(), Error> {
        for chunk in records.chunks(BATCH) {
            self.out.clear();
            for record in chunk {
                let seq = self.socket.next_seq();
                let built = match record::decode(record) {
                    Ok(Record::Flow(f)) => {
                        conntrack::delete(&mut self.out, &f.orig, f.zone, None, seq)
                    }
                    Ok(Record::Expect(e)) => {
                        expect::delete(&mut self.out, &e.tuple, e.zone, None, seq)
                    }
                    Err(_) => Ok(()),
                };
                built.map_err(|_| Error::new("deleting", libc::EMSGSIZE))?;
            }
            if !self.out.is_empty() {
                self.socket.send(&self.out, "deleting from the kernel")?;
            }
            self.drain()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Error> {
        while !matches!(self.socket.try_receive(&mut self.buf)?, Received::Empty) {}
        Ok(())
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

    fn encode(&mut self, replica: &Replica, op: Op, now: Duration) {
        let copy = replica.peers.get(op.peer).map(|p| &p.inbound.store);
        // It may have ended since it was queued.
        let live = |c: &&Store| c.slot(op.slot).is_some_and(Slot::is_live);
        let Some((copy, slot)) = copy.filter(live).and_then(|c| Some((c, c.slot(op.slot)?))) else {
            return;
        };
        let timeout = match remaining(slot, now) {
            0 => REVIVED_SECS,
            t => t,
        };
        let at = u32::try_from(self.sent.len()).unwrap_or(0);
        let seq = self.first_seq.wrapping_add(at);
        let built = match record::decode(copy.bytes(slot)) {
            Ok(Record::Flow(flow)) => self.encode_flow(flow, op.step, timeout, seq),
            Ok(Record::Expect(exp)) => self.encode_expect(exp, op.step, timeout, seq),
            Err(_) => return self.fail(op, libc::EBADMSG),
        };
        match built {
            Ok(()) => self.sent.push(op),
            Err(TooLong) => self.fail(op, libc::EMSGSIZE),
        }
    }

    fn encode_flow(
        &mut self,
        mut flow: Flow,
        step: Step,
        timeout: u32,
        seq: u32,
    ) -> Result<(), TooLong> {
        flow.timeout = Some(timeout);
        if flow.labels.is_some() && matches!(self.labels, Labels::NotNeeded) {
            self.labels = Room::new().map_or_else(
                |error| {
                    tracing::warn!(%error, "labels may not be committed");
                    Labels::NoRoom
                },
                Labels::Room,
            );
        }
        let out = &mut self.out;
        match step {
            Step::Create { help, master } => {
                let options = Options {
                    help,
                    master,
                    ..self.options
                };
                inject::create(out, &flow, options, seq)
            }
            Step::Update => inject::update(out, &flow, self.options, seq),
            Step::Info => inject::help_info(out, &flow, false, seq),
            Step::Look(dir) => conntrack::get(out, dir, tuple(&flow, dir), flow.zone, seq),
            Step::Helper => conntrack::get(out, Dir::Orig, &flow.orig, flow.zone, seq),
            Step::Delete(Dir::Orig) => conntrack::delete(out, &flow.orig, flow.zone, None, seq),
            // Its name for the other connection, whose reply this is too.
            Step::Delete(Dir::Reply) => conntrack::delete(out, &flow.reply, flow.zone, None, seq),
            Step::Expect | Step::ExpectTimeout | Step::Keep => Err(TooLong),
        }
    }

    fn encode_expect(
        &mut self,
        mut exp: Expectation,
        step: Step,
        timeout: u32,
        seq: u32,
    ) -> Result<(), TooLong> {
        exp.timeout = Some(timeout);
        match step {
            Step::Expect => expect::create(&mut self.out, &exp, seq),
            Step::ExpectTimeout => expect::update(&mut self.out, &exp, seq),
            Step::Delete(_) => expect::delete(&mut self.out, &exp.tuple, exp.zone, None, seq),
            _ => Err(TooLong),
        }
    }

    fn on_results(
        &mut self,
        replica: &mut Replica,
        committed: &mut dyn Committed,
    ) -> Result<(), Error> {
        let mut errnos = [0; BATCH];
        let mut found = BTreeMap::new();
        loop {
            match self.socket.try_receive(&mut self.buf)? {
                Received::Empty => break,
                Received::Overrun => {}
                Received::Datagram(datagram) => {
                    for m in Messages::new(datagram) {
                        let at = m.seq.wrapping_sub(self.first_seq) as usize;
                        if let (Kind::Error(e), Some(slot)) = (m.kind(), errnos.get_mut(at)) {
                            *slot = e.errno;
                        } else if let Ok(Some(event)) = conntrack::Event::decode(&m) {
                            found.insert(at, event.flow);
                        }
                    }
                }
            }
        }
        let sent = std::mem::take(&mut self.sent);
        for (at, (op, errno)) in sent.iter().zip(errnos).enumerate() {
            if let (Step::Look(dir), 0) = (op.step, errno) {
                self.on_found(replica, *op, dir, found.get(&at));
            } else if let (Step::Helper, 0) = (op.step, errno) {
                self.on_helper(replica, *op, found.get(&at));
            } else if errno == 0 {
                self.on_success(replica, *op, committed);
            } else {
                self.on_failure(replica, *op, errno, committed);
            }
        }
        self.sent = sent;
        Ok(())
    }

    fn on_success(&mut self, replica: &mut Replica, op: Op, committed: &mut dyn Committed) {
        match op.step {
            Step::Create { help, .. } => {
                self.count_flow(replica, op, committed);
                self.report.replaced += u64::from(op.replaced);
                match helper_name(replica, &op) {
                    Some(name) if !help => {
                        *self.report.without_helper.entry(name).or_default() += 1;
                    }
                    Some(_) if has_info(replica, &op) => self.retry(op, Step::Info),
                    Some(_) => self.retry(op, Step::Helper),
                    None => {}
                }
            }
            Step::Update => {
                self.report.updated += 1;
                self.count_flow(replica, op, committed);
            }
            Step::Delete(_) => self.create_again(replica, op),
            Step::Expect => self.retry(op, Step::ExpectTimeout),
            Step::ExpectTimeout => self.count_expect(replica, op, committed),
            Step::Info => self.retry(op, Step::Helper),
            Step::Look(_) | Step::Helper | Step::Keep => {}
        }
    }

    /// What can't be changed on a connection that is there decides: its NAT
    /// and its master. An update would leave them and report success.
    fn on_found(&mut self, replica: &Replica, op: Op, dir: Dir, there: Option<&Flow>) {
        let Some((wanted, there)) = flow_of(replica, &op).zip(there) else {
            return self.retry(op, Step::Delete(dir));
        };
        let same = wanted.orig == there.orig && wanted.reply == there.reply;
        // What came from us may be without its master because that is gone.
        let same_master =
            wanted.master.is_none() || wanted.master == there.master || is_installed(replica, &op);
        let step = if same && same_master {
            Step::Update
        } else {
            Step::Delete(dir)
        };
        self.retry(op, step);
    }

    /// A connection was created with its helper.
    fn on_helper(&mut self, replica: &Replica, op: Op, there: Option<&Flow>) {
        let Some((wanted, there)) = flow_of(replica, &op).zip(there) else {
            return;
        };
        if let Some(name) = lost_helper(&wanted, there) {
            *self.report.helper_lost.entry(name).or_default() += 1;
        }
    }

    /// What was in the way is gone. First in the queue, before a packet
    /// makes another one.
    fn create_again(&mut self, replica: &Replica, op: Op) {
        self.todo.push_front(Op {
            step: first_step(replica, &op),
            replaced: true,
            ..op
        });
    }

    fn count_expect(&mut self, replica: &mut Replica, op: Op, committed: &mut dyn Committed) {
        self.report.expectations += 1;
        self.written += 1;
        done(replica, op, committed);
    }

    fn count_flow(&mut self, replica: &mut Replica, op: Op, committed: &mut dyn Committed) {
        self.report.flows += 1;
        self.written += 1;
        done(replica, op, committed);
    }

    fn retry(&mut self, op: Op, step: Step) {
        self.todo.push_back(Op { step, ..op });
    }

    fn on_failure(
        &mut self,
        replica: &mut Replica,
        op: Op,
        errno: i32,
        committed: &mut dyn Committed,
    ) {
        match (op.step, errno) {
            (Step::Create { .. }, libc::EEXIST) if op.tries < MAX_TRIES => {
                let tries = op.tries + 1;
                self.retry(Op { tries, ..op }, Step::Look(Dir::Orig));
            }
            (Step::Look(Dir::Orig), libc::ENOENT) => self.retry(op, Step::Look(Dir::Reply)),
            // Gone meanwhile.
            (Step::Look(Dir::Reply) | Step::Delete(_) | Step::Update, libc::ENOENT) => {
                self.retry(op, first_step(replica, &op));
            }
            (Step::Create { help: true, master }, libc::EOPNOTSUPP)
                if helper_name(replica, &op).is_some() =>
            {
                let step = Step::Create {
                    help: false,
                    master,
                };
                self.retry(op, step);
            }
            // Applied at once, its master may still be on the way.
            (Step::Create { master: true, .. } | Step::Expect, libc::ENOENT)
                if !self.is_running() && op.tries < MAX_TRIES =>
            {
                let tries = op.tries + 1;
                self.later.push(Op { tries, ..op });
            }
            (Step::Create { help, master: true }, libc::ENOENT) if has_master(replica, &op) => {
                self.report.without_master += 1;
                let step = Step::Create {
                    help,
                    master: false,
                };
                self.retry(op, step);
            }
            // It is there, but not so that it can be changed into this.
            (Step::Update, libc::EBUSY | libc::EOPNOTSUPP) => {
                self.retry(op, Step::Delete(Dir::Orig));
            }
            // An update would change its timeout and nothing else.
            (Step::Expect, libc::EEXIST | libc::EBUSY | libc::EALREADY) if op.tries == 0 => {
                let tries = op.tries + 1;
                self.retry(Op { tries, ..op }, Step::Delete(Dir::Orig));
            }
            // It has ended meanwhile.
            (Step::Info | Step::Helper, libc::ENOENT) => {}
            // Used up between the two messages.
            (Step::ExpectTimeout, libc::ENOENT) => self.count_expect(replica, op, committed),
            (_, errno) => self.fail(op, errno),
        }
    }

    /// Counts what can't be done.
    fn fail(&mut self, op: Op, errno: i32) {
        if op.step == Step::Info {
            // The connection itself is there.
            count(&mut self.report.helper_data_failed, errno);
        } else {
            self.refused += 1;
            count(&mut self.report.failed, errno);
        }
    }
}

fn done(replica: &mut Replica, op: Op, committed: &mut dyn Committed) {
    let copy = replica.peers.get_mut(op.peer).map(|p| &mut p.inbound.store);
    if let Some(slot) = copy.and_then(|c| c.slot_mut(op.slot)) {
        // Newer than what a dump that runs has to say.
        slot.flags.insert(Flags::INSTALLED | Flags::SEEN);
    }
    committed.committed(replica, op.peer, op.slot);
}

fn count(by_errno: &mut BTreeMap<String, u64>, errno: i32) {
    let name = format!("{:?}", nix::errno::Errno::from_raw(errno));
    *by_errno.entry(name).or_default() += 1;
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

/// How it begins again.
fn first_step(replica: &Replica, op: &Op) -> Step {
    let copy = replica.peers.get(op.peer).map(|p| &p.inbound.store);
    match copy.and_then(|c| c.slot(op.slot)) {
        Some(slot) => first_op(op.peer, op.slot, slot).step,
        None => op.step,
    }
}

const fn tuple(flow: &Flow, dir: Dir) -> &Tuple {
    match dir {
        Dir::Orig => &flow.orig,
        Dir::Reply => &flow.reply,
    }
}

fn flow_of(replica: &Replica, op: &Op) -> Option<Flow> {
    let copy = &replica.peers.get(op.peer)?.inbound.store;
    match record::decode(copy.bytes(copy.slot(op.slot)?)) {
        Ok(Record::Flow(flow)) => Some(flow),
        _ => None,
    }
}

/// The helper that should be there and is not.
fn lost_helper(wanted: &Flow, there: &Flow) -> Option<String> {
    let name = wanted.help?.name;
    (there.help.map(|h| h.name) != Some(name)).then(|| name.to_string())
}

fn is_installed(replica: &Replica, op: &Op) -> bool {
    let copy = replica.peers.get(op.peer).map(|p| &p.inbound.store);
    copy.and_then(|c| c.slot(op.slot))
        .is_some_and(|s| s.flags.contains(Flags::INSTALLED))
}

fn helper_name(replica: &Replica, op: &Op) -> Option<String> {
    flow_of(replica, op)?.help.map(|h| h.name.to_string())
}

fn has_info(replica: &Replica, op: &Op) -> bool {
    let help = flow_of(replica, op).and_then(|f| f.help);
    help.is_some_and(|h| !h.info.as_bytes().is_empty())
}

fn has_master(replica: &Replica, op: &Op) -> bool {
    flow_of(replica, op).is_some_and(|f| f.master.is_some())
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

/// True if packets of a connection that was written for a peer come through
/// this node: each sets the timeout anew. `left` is what it should be.
pub fn is_used(flow: &Flow, left: u64) -> bool {
    const SLACK: u64 = 3;
    let given = if left == 0 {
        u64::from(REVIVED_SECS)
    } else {
        left
    };
    u64::from(flow.timeout.unwrap_or(0)) > given + SLACK
}

/// True if packets of a TCP connection that was written for a peer have come
/// through this node, ever.
pub const fn was_used(flow: &Flow) -> bool {
    match flow.protoinfo {
        ProtoInfo::Tcp(t) => (t.flags_orig.flags | t.flags_reply.flags) & TCP_FLAG_MAXACK_SET != 0,
        _ => false,
    }
}

/// True if this node has a live entry with the record's key.
pub fn owns(replica: &Replica, bytes: &[u8]) -> bool {
    let own = &replica.own;
    let key = record::split(bytes).map(|s| own.key(s.key));
    let index = key.ok().and_then(|k| own.find(k));
    index.and_then(|i| own.slot(i)).is_some_and(Slot::is_live)
}
