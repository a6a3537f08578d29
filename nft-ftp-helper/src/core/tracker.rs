//! One segment of a control connection: where it lies in its stream, what of it
//! is new, and what becomes of it.
//!
//! The tracker sees to it that the receiver never gets a byte before this side
//! has parsed all bytes before it: a segment behind a hole is dropped, as if
//! the network had lost it, and its sender repeats it. So helper and receiver
//! read the same text, nothing is buffered, and the automaton fits 32 bytes.
//! A hole nobody fills (private data older than the connection, after a
//! failover) ends when the receiver acknowledges what is behind it, or when the
//! same segment comes for the fourth time.

use super::conn::{Conn, Dir};
use super::event::{Event, Reason};
use super::expect::{Expect, OpenError};
use super::policy::Policy;
use super::rewrite::Region;
use super::state::{
    Change, ClientLine, Hole, Origin, PrivateData, ServerLine, State, Stop, Telnet,
};
use super::text::Text;
use std::net::IpAddr;
use std::ops::Range;

/// What the caller does for the core while it handles a segment.
pub trait Effects {
    /// Makes an expectation, all of its ports or none, before the packet's
    /// verdict.
    ///
    /// # Errors
    /// Whether the ports are taken or it failed otherwise. Without NAT a caller
    /// may answer `Ok` at once and make it together with the verdict.
    fn open(&mut self, expect: &Expect) -> Result<(), OpenError>;

    /// An earlier expectation of this connection is obsolete: the server has
    /// refused it, or another took its place unused. It may have been consumed,
    /// and another connection may own the same tuple by now: remove only this
    /// master's.
    fn withdraw(&mut self, expect: &Expect);

    /// The control connection has ended: every expectation of it that is not
    /// permanent is obsolete.
    fn withdraw_all(&mut self);

    /// Something worth a counter.
    fn event(&mut self, event: Event);
}

/// The TCP flags that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// SYN.
    pub syn: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
}

/// One TCP segment as the helper hook sees it: headers translated, sequence
/// numbers the sender's own.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Direction in the connection, from `NFQA_CT_INFO`.
    pub dir: Dir,
    /// Sequence number in the header.
    pub seq: u32,
    /// Acknowledgement number, if the ACK flag is set.
    pub ack: Option<u32>,
    /// Other flags.
    pub flags: Flags,
    /// What follows the TCP header.
    pub payload: &'a [u8],
}

/// What to do with the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass, rewritten if [`Outcome::rewrite`] says so.
    Accept,
    /// Drop it. Its sender will repeat it.
    Drop(Reason),
}

/// A part of the payload to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// What is replaced, in bytes of the original payload; may be empty.
    pub range: Range<usize>,
    /// With what.
    pub text: Text,
}

/// How the payload changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    /// At most one part is replaced.
    pub edit: Option<Edit>,
    /// Bytes of the original payload that pass, if not all: the rest is cut
    /// off (with FIN and PSH) and its sender repeats it. Never less than the
    /// edit's end.
    pub keep: Option<usize>,
}

impl Rewrite {
    /// Whether a payload of `len` bytes comes out with another length.
    pub fn resizes(&self, len: usize) -> bool {
        let cut = self.keep.is_some_and(|keep| keep != len);
        let edit = self.edit.as_ref();
        cut || edit.is_some_and(|e| e.range.len() != e.text.as_bytes().len())
    }

    /// Whether the packet passes as it is.
    pub const fn is_none(&self) -> bool {
        self.edit.is_none() && self.keep.is_none()
    }
}

/// Everything to be done about one segment besides [`Effects`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// New private data; `None`: unchanged. If the rewrite changes the length
    /// ([`Rewrite::resizes`]) it must be stored by an update of the connection,
    /// not with the verdict: a verdict with `NFQA_CT` and another length makes
    /// the kernel adjust sequence numbers by itself, and wrongly for IPv6.
    pub state: Option<PrivateData>,
    /// Change of the payload. Only under NAT.
    pub rewrite: Rewrite,
    /// New sequence adjustment of the packet's direction, to be set before the
    /// verdict; `None`: unchanged.
    pub seq_adj: Option<super::conn::SeqAdj>,
}

/// Bytes that may be missing before a segment that is not given up at once.
const MAX_HOLE: u32 = 0x7fff;
/// Times a segment is dropped before the hole is given up.
const MAX_DROPS: u8 = 3;
/// Bytes that may follow a rewrite before it is acknowledged.
const MAX_BEHIND_CHANGE: u32 = 0xffff;

/// Handles one segment. Pure but for `effects`: the same arguments give the
/// same result, whoever handled the segments before.
pub fn on_segment<E: Effects>(
    policy: &Policy,
    conn: &Conn,
    data: &PrivateData,
    segment: &Segment<'_>,
    effects: &mut E,
) -> Outcome {
    let (state, unknown) = State::decode(data);
    let joined = state.is_none();
    let mut run = Run {
        policy,
        conn,
        dir: segment.dir,
        seq: segment.seq.wrapping_add(u32::from(segment.flags.syn)),
        payload: segment.payload,
        addrs: [conn.own_addr(segment.dir), conn.outer_addr(segment.dir)],
        translated: conn.translated(),
        st: state.unwrap_or_default(),
        fx: effects,
        region: None,
        mark: None,
        cut: None,
        denied: None,
        impatient: false,
        adj: conn.adj(segment.dir),
        rewrite: Rewrite::default(),
        seq_adj: None,
    };
    // Private data that says otherwise is not this connection's.
    if !run.translated {
        run.st.change = None;
    }
    if unknown {
        run.event(Reason::BadState, None, 0);
    }
    let verdict = run.segment(segment, joined);
    run.finish(verdict, data)
}

/// One segment being handled.
pub(super) struct Run<'a, E> {
    pub policy: &'a Policy,
    pub conn: &'a Conn,
    pub dir: Dir,
    /// Sequence number of the payload's first byte.
    pub seq: u32,
    pub payload: &'a [u8],
    /// The addresses the sender's text may show: as it knows itself, and as the
    /// other side does.
    pub addrs: [IpAddr; 2],
    pub translated: bool,
    pub st: State,
    pub fx: &'a mut E,
    /// The announcement at hand, as far as it lies in this payload.
    pub region: Option<Region>,
    /// Where to cut if a rewrite has to wait: offset, and the state there.
    pub mark: Option<(usize, State)>,
    /// Parsing ends here, the rest is cut off.
    pub cut: Option<usize>,
    /// Policy drops the packet for this reason.
    pub denied: Option<Reason>,
    /// A line here has waited long enough for the acknowledgement of another
    /// rewrite: it may take its place.
    pub impatient: bool,
    /// Sequence adjustment of the direction: the kernel's, as far as the text
    /// it is for was parsed.
    pub adj: super::conn::SeqAdj,
    pub rewrite: Rewrite,
    pub seq_adj: Option<super::conn::SeqAdj>,
}

/// Where a payload lies relative to what was parsed.
enum Place {
    /// Its bytes from here on are new.
    New(usize),
    /// So many bytes before it were not seen.
    Ahead(u32),
}

impl<E: Effects> Run<'_, E> {
    fn segment(&mut self, segment: &Segment<'_>, joined: bool) -> Verdict {
        self.on_syn(segment, joined);
        if let Some(ack) = segment.ack {
            self.on_ack(ack);
        }
        if segment.flags.rst {
            self.fx.withdraw_all();
        }
        let verdict = match self.payload {
            [] => Verdict::Accept,
            _ => self.on_payload(joined),
        };
        if segment.flags.fin && verdict == Verdict::Accept && self.rewrite.keep.is_none() {
            self.on_fin();
        }
        verdict
    }

    fn finish(self, verdict: Verdict, data: &PrivateData) -> Outcome {
        if let Some(reason) = self.denied {
            return Outcome {
                verdict: Verdict::Drop(reason),
                state: None,
                rewrite: Rewrite::default(),
                seq_adj: None,
            };
        }
        let state = self.st.encode();
        let untouched = State::default().encode();
        Outcome {
            verdict,
            state: (state != *data && (state != untouched || *data != PrivateData::default()))
                .then_some(state),
            rewrite: self.rewrite,
            seq_adj: self.seq_adj,
        }
    }

    pub fn event(&mut self, reason: Reason, addr: Option<IpAddr>, port: u16) {
        self.fx.event(Event {
            reason,
            dir: self.dir,
            addr,
            port,
        });
    }

    /// An announcement is refused.
    pub fn refuse(&mut self, reason: Reason, addr: Option<IpAddr>, port: u16) {
        self.event(reason, addr, port);
        if self.policy.on_refusal == super::policy::OnRefusal::Drop {
            self.denied = Some(reason);
        }
    }

    pub fn stop(&mut self, stop: Stop, reason: Reason) {
        self.st.stop = stop;
        self.st.partial = None;
        self.event(reason, None, 0);
    }

    fn on_syn(&mut self, segment: &Segment<'_>, joined: bool) {
        if !segment.flags.syn {
            return;
        }
        if joined && segment.ack.is_none() && self.dir == Dir::Orig {
            self.st.origin = Origin::Fresh;
        }
        if !self.st.known(self.dir) {
            self.learn(self.seq);
        }
    }

    fn learn(&mut self, seq: u32) {
        let [orig, reply] = &mut self.st.known;
        match self.dir {
            Dir::Orig => *orig = true,
            Dir::Reply => *reply = true,
        }
        self.st.set_next(self.dir, seq);
    }

    fn on_fin(&mut self) {
        let [orig, reply] = &mut self.st.fin;
        let before = *orig && *reply;
        match self.dir {
            Dir::Orig => *orig = true,
            Dir::Reply => *reply = true,
        }
        if *orig && *reply && !before {
            self.fx.withdraw_all();
        }
    }

    /// `ack` counts what the receiver got, rewrites included.
    fn on_ack(&mut self, ack: u32) {
        let sender = !self.dir;
        let adj = self.conn.adj(sender);
        let got = ack.wrapping_add_signed(adj.after.wrapping_neg());
        if let Some(c) = self.st.change {
            let end = c.start.wrapping_add(u32::from(c.len));
            if c.dir == sender && !before(got, end) {
                self.st.change = None;
                self.st.hole = self.st.hole.filter(|h| h.missing > 0);
                if !before(c.start, adj.pos) {
                    self.st.set_settled(sender, true);
                }
            }
        }
        if let Some(h) = self.st.hole {
            let filled = self.st.next(sender).wrapping_add(u32::from(h.missing));
            if h.dir == sender && h.missing > 0 && !before(got, filled) {
                self.forget(sender);
            }
        }
    }

    /// Gives up a direction's place in its stream; the next segment is taken to
    /// begin a line.
    fn forget(&mut self, dir: Dir) {
        self.event(Reason::Resync, None, 0);
        self.st.hole = None;
        self.restart(dir);
    }

    pub fn restart(&mut self, dir: Dir) {
        let [orig, reply] = &mut self.st.known;
        match dir {
            Dir::Orig => {
                *orig = false;
                self.st.client = ClientLine::Start;
            }
            Dir::Reply => {
                *reply = false;
                self.st.server = ServerLine::default();
                self.st.multi = false;
            }
        }
        *self.st.telnet_mut(dir) = Telnet::Text;
        self.st.partial = self.st.partial.filter(|p| p.kind.sender() != dir);
    }

    fn on_payload(&mut self, joined: bool) -> Verdict {
        if self.st.stop == Stop::Tls && self.resumes() {
            self.st.stop = Stop::No;
            self.event(Reason::Ccc, None, 0);
            self.restart(Dir::Orig);
            self.restart(Dir::Reply);
        }
        if self.st.stop != Stop::No {
            return self.repeat(self.payload.len());
        }
        if !self.st.known(self.dir) {
            if joined && self.st.origin == Origin::Joined {
                self.event(Reason::PickedUp, None, 0);
            }
            self.learn(self.seq);
        }
        match self.place() {
            Place::New(base) => self.in_order(base),
            Place::Ahead(missing) => self.ahead(missing),
        }
    }

    /// Whether the client speaks plain FTP again.
    fn resumes(&self) -> bool {
        if !self.policy.ccc || self.dir != Dir::Orig {
            return false;
        }
        let Some((b'\n', line)) = self.payload.split_last() else {
            return false;
        };
        let end = line.iter().position(|b| !b.is_ascii_alphabetic());
        let word = line.get(..end.unwrap_or(line.len())).unwrap_or(&[]);
        super::verb::lookup(word).is_some_and(|v| v != super::verb::Verb::Http)
            && line
                .iter()
                .all(|b| matches!(b, b' '..=b'~' | b'\r' | b'\n'))
    }

    fn place(&self) -> Place {
        let next = self.st.next(self.dir);
        if before(next, self.seq) {
            return Place::Ahead(self.seq.wrapping_sub(next));
        }
        let seen = usize::try_from(next.wrapping_sub(self.seq)).unwrap_or(usize::MAX);
        Place::New(seen.min(self.payload.len()))
    }

    fn ahead(&mut self, missing: u32) -> Verdict {
        let missing = match u16::try_from(missing) {
            Ok(m) if missing <= MAX_HOLE => m,
            _ => return self.behind_hole(),
        };
        let mut hole = Hole {
            dir: self.dir,
            missing,
            drops: 1,
        };
        if let Some(h) = self.st.hole.filter(|h| h.missing > 0) {
            if h.dir != self.dir || h.missing == missing && h.drops >= MAX_DROPS {
                return self.behind_hole();
            }
            if h.missing <= missing {
                hole.missing = h.missing;
                hole.drops = h.drops + u8::from(h.missing == missing);
            }
        }
        self.st.hole = Some(hole);
        self.event(Reason::OutOfOrder, None, 0);
        Verdict::Drop(Reason::OutOfOrder)
    }

    /// A rewrite is kept: it may be what the receiver waits for.
    fn behind_hole(&mut self) -> Verdict {
        if !before(self.conn.adj(self.dir).pos, self.st.next(self.dir)) {
            // Older private data: the last change of length lies in the hole.
            self.st.set_settled(self.dir, false);
        }
        self.forget(self.dir);
        let near = |c: &Change| self.seq.wrapping_sub(c.start) <= MAX_BEHIND_CHANGE;
        let change = self.st.change.filter(|c| c.dir != self.dir || near(c));
        self.st.change = change;
        self.learn(self.seq);
        self.in_order(0)
    }

    /// The payload's bytes from `base` on are the next ones.
    fn in_order(&mut self, base: usize) -> Verdict {
        let repeated = self.repeat(base);
        if base >= self.payload.len() || repeated != Verdict::Accept || self.cut.is_some() {
            return repeated;
        }
        let waiting = self.st.hole.filter(|h| h.dir == self.dir && h.missing == 0);
        self.impatient = base == 0 && waiting.is_some_and(|h| h.drops >= MAX_DROPS);
        if self.impatient && self.far_behind_change() {
            self.st.change = None;
        }
        self.st.hole = self.st.hole.filter(|h| h.dir != self.dir);
        self.adopt_adj(base);
        self.mark = Some((base, self.st));
        if self.far_behind_change() {
            self.cut = Some(base);
        } else {
            self.feed(base);
            self.end_of_payload();
        }
        self.correct_adj(self.cut.unwrap_or(self.payload.len()));
        match self.cut {
            Some(at) => self.shorten(base, at, waiting),
            None => {
                self.advance(self.payload.len());
                Verdict::Accept
            }
        }
    }

    /// A change of length in what was not parsed yet was set for a packet that
    /// then got no verdict: the kernel's answer was lost, or the daemon died.
    fn adopt_adj(&mut self, base: usize) {
        if !before(self.adj.pos, self.seq_at(base)) {
            self.adj.after = self.adj.before;
        }
    }

    /// Takes back such a change if the payload up to `end` has it no more.
    fn correct_adj(&mut self, end: usize) {
        let kernel = self.conn.adj(self.dir);
        if self.adj != kernel && before(kernel.pos, self.seq_at(end)) {
            self.seq_adj = Some(self.adj);
        }
    }

    fn far_behind_change(&self) -> bool {
        let end = self.seq_at(self.payload.len());
        let mine = self.st.change.filter(|c| c.dir == self.dir);
        mine.is_some_and(|c| end.wrapping_sub(c.start) > MAX_BEHIND_CHANGE)
    }

    /// Passes the payload up to `at` only.
    fn shorten(&mut self, base: usize, at: usize, waiting: Option<Hole>) -> Verdict {
        let progress = at > base;
        self.event(Reason::RewriteWaits, None, 0);
        self.advance(at);
        self.st.hole = Some(Hole {
            dir: self.dir,
            missing: 0,
            drops: match waiting {
                Some(h) if !progress => h.drops + 1,
                _ => 1,
            },
        });
        if at == 0 {
            return Verdict::Drop(Reason::RewriteWaits);
        }
        self.rewrite.keep = Some(at);
        Verdict::Accept
    }

    fn advance(&mut self, to: usize) {
        self.st.set_next(self.dir, self.seq_at(to));
    }

    /// Sequence number of a byte of the payload.
    pub fn seq_at(&self, offset: usize) -> u32 {
        self.seq
            .wrapping_add(u32::try_from(offset).unwrap_or(u32::MAX))
    }
}

/// Whether sequence number `a` comes before `b` (RFC 9293 section 3.4).
pub(super) const fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) >= 1 << 31
}
