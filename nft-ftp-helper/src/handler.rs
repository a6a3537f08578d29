//! One queued packet: from netlink message to verdict.
//!
//! Whatever can't be understood is accepted and counted: the helper must
//! never be the reason that a connection stalls.

use crate::config::{Policies, Settings};
use crate::core::{self, Conn, Effects, Event, Expect, OpenError, Outcome, PrivateData, SeqAdj};
use crate::kernel::Kernel;
use crate::stats::{Figure, Stats};
use crate::support::Failure;
use crate::worker::{Live, Notice, Shared};
use netfilter::flow::{Help, HelpInfo};
use netfilter::message::Message;
use netfilter::queue::{self, CtInfo, Packet, Verdict, With};
use netfilter::{Dir, Flow};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Answers the packets of one queue.
#[derive(Debug)]
pub struct Handler {
    queue: u16,
    accept: Verdict,
    policies: Arc<Policies>,
    kernel: Kernel,
    stats: Arc<Stats>,
    shared: Arc<Shared>,
    scratch: Vec<u8>,
}

impl Handler {
    /// Opens what it needs besides the queue.
    ///
    /// # Errors
    /// No nfnetlink.
    pub fn open(
        settings: &Settings,
        queue: u16,
        stats: Arc<Stats>,
        shared: Arc<Shared>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            queue,
            accept: settings
                .pass_to_queue
                .map_or(Verdict::Accept, Verdict::Queue),
            policies: Arc::clone(&settings.policies),
            kernel: Kernel::open(Arc::clone(&stats), settings.spec.expect_timeout_secs)?,
            stats,
            shared,
            scratch: Vec::new(),
        })
    }

    /// Puts `live` in force.
    pub fn set_live(&mut self, live: Live) {
        self.policies = live.policies;
        self.kernel.set_timeout(live.expect_timeout_secs);
    }

    /// Handles one message from the queue; appends its verdict to `out`.
    pub fn packet(&mut self, message: &Message<'_>, out: &mut Vec<u8>) {
        let packet = match Packet::decode(message) {
            Ok(Some(packet)) => packet,
            Ok(None) => return,
            Err(error) => {
                self.stats.count(Figure::Malformed);
                tracing::debug!(queue = self.queue, %error, "queue message");
                if let Some((_, id)) = queue::packet_id(message) {
                    self.answer(id, self.accept, With::default(), out);
                }
                return;
            }
        };
        self.stats.count(Figure::Packets);
        if packet.is_expected() {
            // Some kernels (6.1.176) give data connections their master's
            // helper, and nothing takes it away.
            self.stats.count(Figure::DataPackets);
            return self.answer(packet.id, self.accept, With::default(), out);
        }
        let Some((dir, flow)) = self.control_connection(&packet) else {
            self.stats.count(Figure::Passed);
            self.answer(packet.id, self.accept, With::default(), out);
            return;
        };
        match core::Packet::parse(packet.payload) {
            Ok(tcp) => self.segment(packet.id, dir, &flow, &tcp, out),
            Err(error) => {
                self.stats.count(Figure::Malformed);
                tracing::debug!(queue = self.queue, %error, "packet");
                self.answer(packet.id, self.accept, With::default(), out);
            }
        }
    }

    fn segment(
        &mut self,
        id: u32,
        dir: Dir,
        flow: &Flow,
        tcp: &core::Packet<'_>,
        out: &mut Vec<u8>,
    ) {
        let conn = conn(flow);
        let data = flow.help.map_or([0; HelpInfo::MAX], |h| *h.info.padded());
        let mut effects = InKernel {
            flow,
            kernel: &mut self.kernel,
            stats: &self.stats,
            shared: &self.shared,
        };
        let policy = self.policies.of(flow.reply.src);
        let segment = tcp.segment(dir);
        let outcome = core::on_segment(policy, &conn, &data, &segment, &mut effects);
        self.carry_out(id, dir, flow, tcp, &outcome, out);
    }

    fn carry_out(
        &mut self,
        id: u32,
        dir: Dir,
        flow: &Flow,
        tcp: &core::Packet<'_>,
        outcome: &Outcome,
        out: &mut Vec<u8>,
    ) {
        let mut with = With {
            payload: None,
            help: outcome.state.as_ref().and_then(|state| help(flow, state)),
        };
        if matches!(outcome.verdict, core::Verdict::Drop(_)) {
            return self.answer(id, Verdict::Drop, with, out);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        if !outcome.rewrite.is_none() {
            match self.rewrite(dir, flow, tcp, outcome, &mut scratch) {
                Ok(()) => with.payload = Some(&scratch),
                // Its sender repeats it; text with wrong addresses must not
                // pass, and the state must not say that it did.
                Err(error) => {
                    tracing::warn!(queue = self.queue, %error, "rewriting a packet");
                    self.scratch = scratch;
                    return self.answer(id, Verdict::Drop, With::default(), out);
                }
            }
        }
        self.answer(id, self.accept, with, out);
        self.scratch = scratch;
    }

    /// Makes the new packet and sets the sequence adjustment it needs.
    fn rewrite(
        &mut self,
        dir: Dir,
        flow: &Flow,
        tcp: &core::Packet<'_>,
        outcome: &Outcome,
        packet: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        core::mangle(tcp, &outcome.rewrite, packet).map_err(|e| Failure::Daemon(e.to_string()))?;
        if let Some(adj) = outcome.seq_adj {
            let mut adjusted = Flow::new(flow.orig, flow.reply);
            adjusted.zone = flow.zone;
            match dir {
                Dir::Orig => adjusted.seq_adj_orig = Some(kernel_adj(adj)),
                Dir::Reply => adjusted.seq_adj_reply = Some(kernel_adj(adj)),
            }
            self.kernel.adjust(&adjusted)?;
        }
        self.stats.count(Figure::Rewritten);
        Ok(())
    }

    fn answer(&self, id: u32, verdict: Verdict, with: With<'_>, out: &mut Vec<u8>) {
        if queue::verdict(out, self.queue, id, verdict, with, 0).is_err() {
            self.stats.count(Figure::KernelErrors);
        }
    }

    /// The connection of a packet that can carry text, and its direction.
    fn control_connection(&self, packet: &Packet<'_>) -> Option<(Dir, Flow)> {
        let dir = match packet.ct_info? {
            CtInfo::Established(dir) => dir,
            CtInfo::New => Dir::Orig,
            CtInfo::Related(_) | CtInfo::Other(_) => return None,
        };
        match packet.flow() {
            Ok(flow) => flow.map(|flow| (dir, flow)),
            Err(error) => {
                self.stats.count(Figure::Malformed);
                tracing::debug!(queue = self.queue, %error, "connection of a packet");
                None
            }
        }
    }
}

/// New private data for the connection's helper.
fn help(flow: &Flow, state: &PrivateData) -> Option<Help> {
    let name = flow.help?.name;
    let info = HelpInfo::new(state).ok()?;
    Some(Help { name, info })
}

fn core_adj(adj: Option<netfilter::SeqAdj>) -> SeqAdj {
    adj.map_or_else(SeqAdj::default, |a| SeqAdj {
        pos: a.correction_pos,
        before: a.before,
        after: a.after,
    })
}

const fn kernel_adj(adj: SeqAdj) -> netfilter::SeqAdj {
    netfilter::SeqAdj {
        correction_pos: adj.pos,
        before: adj.before,
        after: adj.after,
    }
}

fn conn(flow: &Flow) -> Conn {
    let tuple = |t: &netfilter::Tuple| core::Tuple::tcp(t.src, t.sport(), t.dst, t.dport());
    Conn {
        orig: tuple(&flow.orig),
        reply: tuple(&flow.reply),
        seq_adj: [core_adj(flow.seq_adj_orig), core_adj(flow.seq_adj_reply)],
    }
}

/// What the core wants done while it looks at a segment, done at once.
struct InKernel<'a> {
    flow: &'a Flow,
    kernel: &'a mut Kernel,
    stats: &'a Stats,
    shared: &'a Shared,
}

impl Effects for InKernel<'_> {
    fn open(&mut self, expect: &Expect) -> Result<(), OpenError> {
        if expect.renew {
            self.kernel.renew(self.flow, expect)
        } else {
            self.kernel.create(self.flow, expect)
        }
    }

    fn withdraw(&mut self, expect: &Expect) {
        self.kernel.remove(self.flow, expect);
    }

    fn withdraw_all(&mut self) {
        self.kernel.remove_all(self.flow);
    }

    fn event(&mut self, event: Event) {
        self.stats.reason(event.reason);
        if !self.shared.watched.load(Ordering::Relaxed) {
            return;
        }
        let notice = Notice {
            reason: event.reason,
            dir: event.dir,
            addr: event.addr,
            port: event.port,
            ends: (self.flow.orig.src, self.flow.orig.dst),
        };
        if !self.shared.notify(notice) {
            self.stats.count(Figure::EventsLost);
        }
    }
}
