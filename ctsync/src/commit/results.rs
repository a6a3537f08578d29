//! What the kernel says to each step, and what follows from it.

use super::lane::Outcome;
use super::{
    Commit, Committed, MAX_SHORTAGES, MAX_TRIES, Op, Stage, Step, There, first_op, owns, was_used,
};
use crate::record;
use crate::replica::Replica;
use crate::store::{Flags, Slot, Store};
use netfilter::flow::{Labels, SeqAdj, Synproxy};
use netfilter::{Dir, Error, Flow, Status, inject};
use std::collections::BTreeMap;

impl Commit {
    /// Takes what the kernel said to a batch.
    pub(super) fn settle(
        &mut self,
        replica: &mut Replica,
        outcome: Outcome,
        committed: &mut dyn Committed,
    ) {
        let Outcome {
            batch,
            errnos,
            short,
            sent,
            found,
        } = outcome;
        if let Some(errno) = short {
            self.shortages.push(Error::new("committing", errno));
        }
        // From the last: what is retried at the front then comes in order.
        for (at, (op, errno)) in batch.ops.iter().zip(errnos).enumerate().rev() {
            let unknown = short.filter(|_| errno == 0 && !found.contains_key(&at));
            if let Some(short) = unknown {
                if sent && op.step.is_write() {
                    may_be_there(replica, op);
                    self.in_doubt = true;
                }
                self.on_shortage(*op, short);
            } else if let (Step::Look(dir), 0) = (op.step, errno) {
                self.on_found(replica, *op, dir, found.get(&at));
            } else if let (Step::Helper, 0) = (op.step, errno) {
                self.on_helper(replica, *op, found.get(&at));
            } else if errno == 0 {
                self.on_success(replica, *op, committed);
            } else {
                self.on_failure(replica, *op, errno, committed);
            }
        }
        match &mut self.lane {
            Some(lane) => lane.give_back(batch),
            None => self.batch = batch.emptied(),
        }
    }

    /// Nobody knows whether the kernel has done it. It is done again: what was
    /// done before is found then.
    fn on_shortage(&mut self, op: Op, errno: i32) {
        if op.shortages < MAX_SHORTAGES {
            let shortages = op.shortages + 1;
            // What is in its way now may be what was done before.
            let again = Op {
                shortages,
                tries: 0,
                ..op
            };
            self.retry(again, op.step);
        } else if self.is_running() {
            self.fail(op, errno);
        } else {
            self.later.push(op);
        }
    }

    fn on_success(&mut self, replica: &mut Replica, op: Op, committed: &mut dyn Committed) {
        match op.step {
            Step::Create { help, .. } => {
                self.count_flow(replica, op, committed);
                self.report.replaced += u64::from(op.replaced);
                match op.helped.then(|| helper_name(replica, &op)).flatten() {
                    Some(name) if !help => {
                        *self.report.without_helper.entry(name).or_default() += 1;
                    }
                    Some(_) if has_info(replica, &op) => self.retry(op, Step::Info),
                    Some(_) => self.retry(op, Step::Helper),
                    None => {}
                }
            }
            Step::Update(_) => {
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

    /// What an update can't change on a connection that is there decides: its
    /// NAT, its master, and what is taken as the mark of an earlier connection.
    fn on_found(&mut self, replica: &Replica, op: Op, dir: Dir, there: Option<&Flow>) {
        let Some((wanted, there)) = flow_of(replica, &op).zip(there) else {
            return self.retry(op, Step::Delete(dir));
        };
        let same = wanted.orig == there.orig && wanted.reply == there.reply;
        // What came from us may be without its master because that is gone.
        let installed = is_installed(replica, &op);
        let same_master = wanted.master.is_none() || wanted.master == there.master || installed;
        // If its packets come through here, what it has more is this node's doing.
        let lives = match (was_used(there), is_own(replica, &op)) {
            (used, own) if self.is_running() => used && own,
            (used, own) => used || own,
        };
        let another = !same || !same_master || (!lives && is_earlier(&wanted, there, installed));
        let step = if another {
            Step::Delete(dir)
        } else {
            Step::Update(There {
                status: status(there),
                marked: !lives && there.mark.unwrap_or(0) != 0 && wanted.mark.is_none(),
                labelled: !lives && has_labels(there) && !has_labels(&wanted),
            })
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

    /// What is applied at once goes on before others that may belong to it; nothing
    /// waits for what only adds to a connection.
    fn retry(&mut self, op: Op, step: Step) {
        let stage = match step {
            Step::Info | Step::Helper => Stage::Expectations,
            _ => op.stage,
        };
        let op = Op { step, stage, ..op };
        if self.is_running() {
            self.todo.push_back(op);
        } else {
            self.todo.push_front(op);
        }
    }

    fn on_failure(
        &mut self,
        replica: &mut Replica,
        op: Op,
        errno: i32,
        committed: &mut dyn Committed,
    ) {
        // Whatever may have come of an earlier try.
        let is_create = matches!(op.step, Step::Create { .. } | Step::Expect);
        if is_create && errno != libc::EEXIST {
            not_there(replica, &op);
        }
        match (op.step, errno) {
            (Step::Create { .. }, libc::EEXIST) if op.tries < MAX_TRIES => {
                let tries = op.tries + 1;
                self.retry(Op { tries, ..op }, Step::Look(Dir::Orig));
            }
            (Step::Look(Dir::Orig), libc::ENOENT) => self.retry(op, Step::Look(Dir::Reply)),
            // Gone meanwhile.
            (Step::Look(Dir::Reply) | Step::Delete(_) | Step::Update(_), libc::ENOENT) => {
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
            (Step::Create { .. }, libc::ENOMEM) if self.room_comes => self.later.push(op),
            // The table is full: what is gone may be about to be deleted.
            (Step::Create { .. }, libc::ENOMEM) if !self.is_running() && op.tries < MAX_TRIES => {
                let tries = op.tries + 1;
                self.later.push(Op { tries, ..op });
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
            (Step::Update(_), libc::EBUSY | libc::EOPNOTSUPP) => {
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
            (_, errno) => {
                if is_create {
                    // What is there is not this.
                    not_there(replica, &op);
                }
                self.fail(op, errno);
            }
        }
    }

    /// Counts what can't be done.
    pub(super) fn fail(&mut self, op: Op, errno: i32) {
        if op.step == Step::Info {
            // The connection itself is there.
            count(&mut self.report.helper_data_failed, errno);
        } else {
            self.refused += 1;
            count(&mut self.report.failed, errno);
        }
    }
}

/// Should its owner give it up before it is done again, it has to be deleted.
fn may_be_there(replica: &mut Replica, op: &Op) {
    let copy = replica.peers.get_mut(op.peer).map(|p| &mut p.inbound.store);
    if let Some(slot) = copy.and_then(|c| c.slot_mut(op.slot)) {
        // Seen, as far as a dump that runs is concerned.
        slot.flags.insert(Flags::INSTALLED | Flags::SEEN);
    }
}

/// The kernel has refused it: a later commit has to try again.
fn not_there(replica: &mut Replica, op: &Op) {
    let copy = replica.peers.get_mut(op.peer).map(|p| &mut p.inbound.store);
    if let Some(slot) = copy.and_then(|c| c.slot_mut(op.slot)) {
        slot.flags.remove(Flags::INSTALLED);
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

/// The entry that it is about.
fn entry<'r>(replica: &'r Replica, op: &Op) -> Option<(&'r Store, &'r Slot)> {
    let copy = &replica.peers.get(op.peer)?.inbound.store;
    Some((copy, copy.slot(op.slot)?))
}

/// How it begins again.
fn first_step(replica: &Replica, op: &Op) -> Step {
    match entry(replica, op) {
        Some((_, slot)) => first_op(op.peer, op.slot, slot).step,
        None => op.step,
    }
}

fn flow_of(replica: &Replica, op: &Op) -> Option<Flow> {
    let (copy, slot) = entry(replica, op)?;
    record::as_flow(copy.bytes(slot))
}

/// True if the connection that is there has what hardly any loses while it lives: it
/// is taken as an earlier one of the same tuple. What was `installed` from here may have
/// been given a helper by the kernel, by its port (before 6.0).
fn is_earlier(wanted: &Flow, there: &Flow, installed: bool) -> bool {
    let adjusted = |a: Option<SeqAdj>| a.is_some_and(|a| a != SeqAdj::default());
    let proxied = |f: &Flow| f.synproxy.is_some_and(|s| s != Synproxy::default());
    !status(wanted).contains(status(there))
        || (there.help.is_some() && wanted.help.is_none() && !installed)
        || (adjusted(there.seq_adj_orig) && wanted.seq_adj_orig.is_none())
        || (adjusted(there.seq_adj_reply) && wanted.seq_adj_reply.is_none())
        || (proxied(there) && !proxied(wanted))
}

fn status(flow: &Flow) -> Status {
    flow.status.unwrap_or_default() & inject::SETTABLE
}

fn has_labels(flow: &Flow) -> bool {
    flow.labels.is_some_and(|l| l != Labels::default())
}

/// The helper that should be there and is not.
pub(super) fn lost_helper(wanted: &Flow, there: &Flow) -> Option<String> {
    let name = wanted.help?.name;
    (there.help.map(|h| h.name) != Some(name)).then(|| name.to_string())
}

pub(super) fn is_installed(replica: &Replica, op: &Op) -> bool {
    entry(replica, op).is_some_and(|(_, s)| s.flags.contains(Flags::INSTALLED))
}

fn is_own(replica: &Replica, op: &Op) -> bool {
    entry(replica, op).is_some_and(|(copy, slot)| owns(replica, copy.bytes(slot)))
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
