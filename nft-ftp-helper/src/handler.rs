//! One queued packet: from netlink message to verdict.
//!
//! Whatever can't be understood is accepted and counted: the helper must
//! never be the reason that a connection stalls.

use crate::config::{Policies, Settings};
use crate::core::{
    self, Conn, Effects, Event, Expect, Known, OpenError, Outcome, PrivateData, Recent, SeqAdj,
};
use crate::kernel::Tables;
use crate::stats::{Figure, Stats};
use crate::support::Failure;
use crate::worker::{Live, Notice, Shared};
use netfilter::flow::{Help, HelpInfo};
use netfilter::message::Message;
use netfilter::queue::{self, CtInfo, Packet, Verdict, With};
use netfilter::{Dir, Flow, inject};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Connections whose latest decisions are kept for packets queued before.
const RECENT: usize = 4096;

/// Answers the packets of one queue.
#[derive(Debug)]
pub struct Handler<T> {
    queue: u16,
    accept: Verdict,
    policies: Arc<Policies>,
    tables: T,
    stats: Arc<Stats>,
    shared: Arc<Shared>,
    scratch: Vec<u8>,
    recent: Recent,
    now: Duration,
}

impl<T: Tables> Handler<T> {
    /// A handler for `queue` that makes expectations in `tables`.
    pub fn new(
        settings: &Settings,
        queue: u16,
        tables: T,
        stats: Arc<Stats>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            queue,
            accept: settings
                .pass_to_queue
                .map_or(Verdict::Accept, Verdict::Queue),
            policies: Arc::clone(&settings.policies),
            tables,
            stats,
            shared,
            scratch: Vec::new(),
            recent: Recent::new(RECENT),
            now: Duration::ZERO,
        }
    }

    /// Tells the time, of a clock that only goes forward: to a few
    /// milliseconds is enough.
    pub const fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    /// Puts `live` in force.
    pub fn set_live(&mut self, live: Live) {
        self.policies = live.policies;
        self.tables.set_timeout(live.expect_timeout_secs);
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
            self.stats.count(Figure::DataPackets);
            self.release(&packet);
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

    /// Some kernels (6.1.176) give data connections their master's helper, and
    /// their packets come here until it is taken away. With the answer to the
    /// first one no other is under way, so nothing can get in between.
    fn release(&mut self, packet: &Packet<'_>) {
        let answers = packet.ct_info == Some(CtInfo::Established(Dir::Reply))
            && core::Packet::parse(packet.payload).is_ok_and(|tcp| tcp.accepts());
        if !answers {
            return;
        }
        let Ok(Some(flow)) = packet.flow() else {
            return;
        };
        match self.tables.release(&flow) {
            Ok(()) => self.stats.count(Figure::DataReleased),
            Err(error) => {
                self.stats.count(Figure::KernelErrors);
                tracing::debug!(queue = self.queue, %error, "data connection");
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
        let segment = tcp.segment(dir);
        let ct = flow.id.unwrap_or(0);
        // The packet shows what held when it was queued.
        let mut known = self.recent.newest(ct, &segment, snapshot(flow), self.now);
        let conn = conn(flow, known.seq_adj);
        if conn.translated() && !tcp.rewritable {
            self.stats.count(Figure::Passed);
            return self.answer(id, self.accept, With::default(), out);
        }
        let policy = self.policies.of(flow.reply.src);
        let mut effects = InKernel {
            flow,
            tables: &mut self.tables,
            stats: &self.stats,
            shared: &self.shared,
        };
        let outcome = core::on_segment(policy, &conn, &known.data, &segment, &mut effects);
        if self.carry_out(id, dir, flow, tcp, &outcome, out) && known.take(dir, &outcome) {
            self.recent.decided(ct, known, self.now);
        }
    }

    /// Answers the packet; false if what the core decided could not be done.
    fn carry_out(
        &mut self,
        id: u32,
        dir: Dir,
        flow: &Flow,
        tcp: &core::Packet<'_>,
        outcome: &Outcome,
        out: &mut Vec<u8>,
    ) -> bool {
        let help = outcome.state.as_ref().and_then(|state| help(flow, state));
        let mut with = With {
            payload: None,
            help,
        };
        if matches!(outcome.verdict, core::Verdict::Drop(_)) {
            self.answer(id, Verdict::Drop, with, out);
            return true;
        }
        if outcome.rewrite.is_none() && outcome.seq_adj.is_none() {
            self.answer(id, self.accept, with, out);
            return true;
        }
        let mut packet = std::mem::take(&mut self.scratch);
        let rewritten = self.rewrite(dir, flow, tcp, outcome, &mut packet);
        match &rewritten {
            Ok(resized) => {
                with.payload = Some(&packet);
                if *resized {
                    self.store(flow, with.help.take(), out);
                }
                self.answer(id, self.accept, with, out);
            }
            // Its sender repeats it: text with wrong addresses must not pass,
            // and the state must not say that it did.
            Err(error) => {
                self.stats.count(Figure::RewriteErrors);
                tracing::debug!(queue = self.queue, %error, "rewriting a packet");
                self.answer(id, Verdict::Drop, With::default(), out);
            }
        }
        self.scratch = packet;
        rewritten.is_ok()
    }

    /// Stores private data ahead of a verdict that resizes its packet: a verdict
    /// with both makes the kernel adjust sequence numbers by itself, and wrongly
    /// for IPv6 (nf_conntrack_netlink.c, `ctnetlink_glue_seqadj`). In the batch
    /// like a verdict: earlier ones may carry older private data.
    fn store(&self, flow: &Flow, help: Option<Help>, out: &mut Vec<u8>) {
        let mut update = Flow::new(flow.orig, flow.reply);
        (update.zone, update.help) = (flow.zone, help);
        if help.is_some() && inject::help_info(out, &update, false, 0).is_err() {
            self.stats.count(Figure::KernelErrors);
        }
    }

    /// Makes the new packet and sets the sequence adjustment it needs. True if
    /// its length changes.
    fn rewrite(
        &mut self,
        dir: Dir,
        flow: &Flow,
        tcp: &core::Packet<'_>,
        outcome: &Outcome,
        packet: &mut Vec<u8>,
    ) -> Result<bool, Failure> {
        core::mangle(tcp, &outcome.rewrite, packet).map_err(|e| Failure::Daemon(e.to_string()))?;
        self.stats.count(Figure::Rewritten);
        if let Some(adj) = outcome.seq_adj.map(kernel_adj) {
            let mut update = Flow::new(flow.orig, flow.reply);
            update.zone = flow.zone;
            match dir {
                Dir::Orig => update.seq_adj_orig = Some(adj),
                Dir::Reply => update.seq_adj_reply = Some(adj),
            }
            self.tables.adjust(&update)?;
        }
        Ok(packet.len() != tcp.bytes.len())
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

fn conn(flow: &Flow, seq_adj: [SeqAdj; 2]) -> Conn {
    let tuple = |t: &netfilter::Tuple| core::Tuple::tcp(t.src, t.sport(), t.dst, t.dport());
    Conn {
        orig: tuple(&flow.orig),
        reply: tuple(&flow.reply),
        seq_adj,
    }
}

/// What the kernel knew of the connection when it queued the packet.
fn snapshot(flow: &Flow) -> Known {
    Known {
        data: flow.help.map_or([0; HelpInfo::MAX], |h| *h.info.padded()),
        seq_adj: [core_adj(flow.seq_adj_orig), core_adj(flow.seq_adj_reply)],
    }
}

/// What the core wants done while it looks at a segment, done at once.
struct InKernel<'a, T> {
    flow: &'a Flow,
    tables: &'a mut T,
    stats: &'a Stats,
    shared: &'a Shared,
}

impl<T: Tables> Effects for InKernel<'_, T> {
    fn open(&mut self, expect: &Expect) -> Result<(), OpenError> {
        self.tables.open(self.flow, expect)
    }

    fn withdraw(&mut self, expect: &Expect) {
        self.tables.remove(self.flow, expect);
    }

    fn withdraw_all(&mut self) {
        self.tables.remove_all(self.flow);
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
