//! The message of each step.

use super::{Commit, Labels, Op, REVIVED_SECS, Room, Step};
use crate::record::{self, Record};
use crate::replica::{Replica, remaining};
use crate::store::{Slot, Store};
use netfilter::flow;
use netfilter::inject::{self, Options};
use netfilter::message::TooLong;
use netfilter::{Dir, Expectation, Flow, Tuple, conntrack, expect};
use std::time::Duration;

impl Commit {
    /// Appends the message of a step; what can't be sent is counted.
    pub(super) fn encode(&mut self, replica: &Replica, mut op: Op, now: Duration) {
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
        let at = u32::try_from(self.batch.ops.len()).unwrap_or(0);
        let seq = self.first_seq.wrapping_add(at);
        let built = match record::decode(copy.bytes(slot)) {
            Ok(Record::Flow(flow)) => {
                op.helped = flow.help.is_some();
                self.encode_flow(flow, op.step, timeout, seq)
            }
            Ok(Record::Expect(exp)) => self.encode_expect(exp, op.step, timeout, seq),
            Err(_) => return self.fail(op, libc::EBADMSG),
        };
        match built {
            Ok(()) => self.batch.ops.push(op),
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
        let out = &mut self.batch.out;
        match step {
            Step::Create { help, master } => {
                let options = Options {
                    help,
                    master,
                    ..self.options
                };
                inject::create(out, &flow, options, seq)
            }
            Step::Update(there) => {
                flow.status = Some(flow.status.unwrap_or_default() | there.status);
                if there.marked {
                    flow.mark = Some(0);
                }
                if there.labelled {
                    flow.labels = Some(flow::Labels::default());
                }
                inject::update(out, &flow, self.options, seq)
            }
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
            Step::Expect => expect::create(&mut self.batch.out, &exp, seq),
            Step::ExpectTimeout => expect::update(&mut self.batch.out, &exp, seq),
            Step::Delete(_) => expect::delete(&mut self.batch.out, &exp.tuple, exp.zone, None, seq),
            _ => Err(TooLong),
        }
    }
}

const fn tuple(flow: &Flow, dir: Dir) -> &Tuple {
    match dir {
        Dir::Orig => &flow.orig,
        Dir::Reply => &flow.reply,
    }
}
