//! Announcements as they come in, byte for byte, and their rewriting under NAT.
//!
//! A rewrite changes lengths, and the kernel's sequence adjustment knows one
//! change per direction (`struct nf_ct_seqadj`). So there is one rewrite at a
//! time: until the receiver acknowledges it, its place and what is needed to
//! repeat it are part of the private data, and a segment that needs another is
//! cut before it (its sender repeats the rest). A retransmission is thereby
//! always rewritten as the first time.

use super::announce::{Fed, Partial};
use super::conn::{Dir, SeqAdj};
use super::event::Reason;
use super::expect::Kind;
use super::policy::ThirdParty;
use super::state::{Change, ClientLine, ServerLine};
use super::text::{self, MAX_EMITTED, Text, replacement};
use super::tracker::{Edit, Effects, Run, Verdict, before};

/// Most bytes of an announcement that are replaced at once.
const MAX_REPLACED: usize = 127;

/// The rewritable part of an announcement within the payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    /// Offset of its first byte.
    pub start: usize,
    /// It begins in this payload; else an earlier one has its beginning.
    pub whole: bool,
}

impl<E: Effects> Run<'_, E> {
    /// The line announces an endpoint; `end` is the byte behind verb or code.
    pub fn begin_announcement(&mut self, kind: Kind, end: u8) {
        let [own, _] = self.addrs;
        let refusal = match kind {
            _ if matches!(end, b'\r' | b'\n') => Some(Reason::BadSyntax),
            Kind::Port | Kind::Pasv if own.is_ipv6() => Some(Reason::WrongFamily),
            _ if self.st.partial.is_some() => Some(Reason::BusyPartial),
            _ => None,
        };
        if let Some(reason) = refusal {
            return self.refuse(reason, None, 0);
        }
        match self.dir {
            Dir::Orig => self.st.client = ClientLine::Args,
            Dir::Reply => self.st.server = ServerLine::Args,
        }
        self.region = None;
        self.st.partial = Some(Partial::new(kind));
    }

    /// One byte of the announcement at hand.
    pub fn announcement_byte(&mut self, byte: u8, at: usize) {
        let Some(mut partial) = self.st.partial else {
            return self.skip_line();
        };
        let begun = partial.begun();
        if begun && self.region.is_none() {
            self.region = Some(self.continued());
        }
        match partial.feed(byte, &self.addrs) {
            Fed::More => {
                if !begun && partial.begun() {
                    let start = at + usize::from(!partial.begins_with_digit());
                    self.region = Some(Region { start, whole: true });
                }
                self.st.partial = Some(partial);
            }
            Fed::Reset => {
                self.region = None;
                self.st.partial = Some(partial);
            }
            Fed::Done => self.complete(&partial, at),
            Fed::Bad(reason) => {
                self.refuse(reason, None, partial.value);
                self.spoil(&partial, at);
            }
        }
    }

    /// The announcement began in an earlier segment: everything new belongs to
    /// it up to its end.
    fn continued(&self) -> Region {
        Region {
            start: self.mark.map_or(0, |(base, _)| base),
            whole: false,
        }
    }

    /// Whether what the receiver shall read differs from the text: under NAT,
    /// unless the text shows the outer address already.
    fn differs(&self, partial: &Partial, region: Region) -> bool {
        let [own, outer] = self.addrs;
        let hosts = partial.hosts;
        let same = partial.kind == Kind::Epsv || hosts.outer() || own == outer && !hosts.foreign();
        self.translated && !(same && region.whole)
    }

    fn complete(&mut self, partial: &Partial, end: usize) {
        let region = self.region.unwrap_or_else(|| self.continued());
        let foreign = partial.kind != Kind::Epsv && partial.hosts.foreign();
        let dest = match (foreign, self.policy.third_party) {
            (false, _) => None,
            (true, ThirdParty::PeerInstead) if partial.kind == Kind::Pasv => None,
            (true, ThirdParty::Allow) if region.whole => {
                let text = self.payload.get(region.start..end).unwrap_or(&[]);
                match super::announce::host(partial.kind, partial.delim, text) {
                    Some(addr) => Some(addr),
                    None => return self.reject(Reason::BadSyntax, partial, region, end),
                }
            }
            (true, ThirdParty::Allow) => {
                return self.reject(Reason::SplitThirdParty, partial, region, end);
            }
            (true, _) => return self.reject(Reason::ThirdParty, partial, region, end),
        };
        if self.translated && end - region.start > MAX_REPLACED {
            return self.reject(Reason::TooLong, partial, region, end);
        }
        let differs = dest.is_none() && self.differs(partial, region);
        // The port of an unacknowledged rewrite is that of the last expectation.
        if self.translated && dest.is_none() && self.must_wait() {
            return self.wait();
        }
        let port = match self.announce(partial.kind, partial.value, dest) {
            Ok(port) => port,
            Err(reason) => return self.reject(reason, partial, region, end),
        };
        if dest.is_none() {
            self.st.change = None;
        }
        if differs || port != partial.value {
            let text = self.final_text(partial, port, region);
            self.replace(region.start..end, text, partial, true);
        }
        self.skip_line();
    }

    /// The announcement is complete and refused.
    fn reject(&mut self, reason: Reason, partial: &Partial, region: Region, end: usize) {
        let addr = self
            .payload
            .get(region.start..end)
            .filter(|_| region.whole)
            .and_then(|text| super::announce::host(partial.kind, partial.delim, text));
        self.refuse(reason, addr, partial.value);
        self.spoil(partial, end);
    }

    /// A refused announcement passes as it is. But if a part of it was rewritten
    /// in an earlier segment, the rest must not make another endpoint of it: the
    /// receiver gets a character there that none contains.
    fn spoil(&mut self, partial: &Partial, end: usize) {
        let region = self.region.unwrap_or_else(|| self.continued());
        let sent = !region.whole && self.st.emitted > 0;
        if self.translated && sent && partial.begun() && self.denied.is_none() {
            if self.must_wait() {
                return self.wait();
            }
            let end = end.min(region.start + MAX_REPLACED);
            self.replace(region.start..end, text::SPOILED, partial, false);
            self.st.emitted = 0;
        }
        self.skip_line();
    }

    fn final_text(&self, partial: &Partial, port: u16, region: Region) -> Text {
        let [_, outer] = self.addrs;
        let emitted = if region.whole { 0 } else { self.st.emitted };
        let text = replacement(partial.kind, partial.delim, outer, Some(port), emitted);
        text.part(usize::from(emitted), usize::MAX)
    }

    /// Whether another rewrite has to be acknowledged first. It is forgotten
    /// only by what takes its place: its sender may still repeat it.
    const fn must_wait(&self) -> bool {
        self.st.change.is_some() && !self.impatient
    }

    /// Another rewrite is not acknowledged yet: the line is left for later.
    fn wait(&mut self) {
        if let Some((at, state)) = self.mark {
            self.cut = Some(at);
            self.st = state;
        }
    }

    /// What the end of a payload cuts in two.
    pub fn end_of_payload(&mut self) {
        let Some(partial) = self.st.partial.filter(|p| p.kind.sender() == self.dir) else {
            return;
        };
        if self.cut.is_some() || self.denied.is_some() {
            return;
        }
        // In a reply another endpoint may follow.
        if partial.kind.sender() == Dir::Orig && partial.hosts.foreign() {
            let reason = match self.policy.third_party {
                ThirdParty::Allow => Reason::SplitThirdParty,
                _ => Reason::ThirdParty,
            };
            self.refuse(reason, None, 0);
            return self.spoil(&partial, self.payload.len());
        }
        if !self.translated {
            return;
        }
        if self.must_wait() {
            return self.wait();
        }
        // The private data has room for one kind and delimiter.
        self.st.change = None;
        let peer = self.policy.third_party == ThirdParty::PeerInstead;
        if partial.begun() && (peer || partial.plausible(&self.addrs)) {
            self.hold(&partial);
        } else {
            self.st.emitted = 0;
        }
    }

    /// Sends one certain byte instead of the unfinished part of an announcement.
    fn hold(&mut self, partial: &Partial) {
        let region = self.region.unwrap_or_else(|| self.continued());
        let emitted = if region.whole { 0 } else { self.st.emitted };
        let end = self.payload.len();
        if region.start >= end {
            self.st.emitted = emitted;
            return;
        }
        if emitted >= MAX_EMITTED || end - region.start > MAX_REPLACED {
            self.refuse(Reason::TooLong, None, 0);
            return self.spoil(partial, end);
        }
        let [_, outer] = self.addrs;
        let text = replacement(partial.kind, partial.delim, outer, None, 0);
        let byte = text.part(usize::from(emitted), usize::from(emitted) + 1);
        self.replace(region.start..end, byte, partial, false);
        self.st.emitted = emitted + 1;
    }

    fn replace(
        &mut self,
        range: std::ops::Range<usize>,
        text: Text,
        partial: &Partial,
        complete: bool,
    ) {
        let old = self.payload.get(range.clone()).unwrap_or(&[]);
        if old == text.as_bytes() {
            return;
        }
        self.impatient = false;
        let start = self.seq_at(range.start);
        self.adjust(start, text.as_bytes().len(), old.len());
        self.st.change = u8::try_from(old.len()).ok().map(|len| Change {
            dir: self.dir,
            start,
            len,
            kind: partial.kind,
            delim: partial.delim,
            complete,
        });
        if complete && self.region.is_some_and(|r| r.whole) {
            self.st.emitted = 0;
        }
        self.rewrite.edit = Some(Edit { range, text });
    }

    /// The sequence adjustment behind a change of length (nf_conntrack_seqadj.c,
    /// `nf_ct_seqadj_set`; the position is the first changed byte, so that what
    /// is before it in the same segment keeps the old offset).
    fn adjust(&mut self, pos: u32, new: usize, old: usize) {
        let (new, old) = (
            i32::try_from(new).unwrap_or(0),
            i32::try_from(old).unwrap_or(0),
        );
        if new != old {
            let before = self.adj.after;
            let after = before.wrapping_add(new - old);
            self.adj = SeqAdj { pos, before, after };
            self.seq_adj = (self.adj != self.conn.adj(self.dir)).then_some(self.adj);
            self.st.set_settled(self.dir, false);
        }
    }

    /// Rewrites what was parsed before (the payload up to `seen`) as it was
    /// rewritten then.
    pub fn repeat(&mut self, seen: usize) -> Verdict {
        if let Some(at) = self.acknowledged_change().filter(|at| *at < seen) {
            self.cut = Some(at);
            self.rewrite.keep = Some(at);
            return Verdict::Accept;
        }
        let Some(c) = self.st.change.filter(|c| c.dir == self.dir) else {
            return Verdict::Accept;
        };
        let start = c.start.wrapping_sub(self.seq);
        let (from, behind) = if before(c.start, self.seq) {
            (
                0,
                usize::try_from(self.seq.wrapping_sub(c.start)).unwrap_or(usize::MAX),
            )
        } else {
            (usize::try_from(start).unwrap_or(usize::MAX), 0)
        };
        let len = usize::from(c.len);
        if from >= seen || behind >= len.max(1) {
            return Verdict::Accept;
        }
        let to = (from + (len - behind.min(len))).min(seen);
        let left = len - behind - (to - from);
        let text = self.sent(&c);
        self.repeat_part(from..to, behind, left, text)
    }

    /// Where in the payload the last change of length begins, if its
    /// acknowledgement has passed the firewall. A sender that repeats it has
    /// not seen that. What was sent instead is forgotten, and the text as it is
    /// has another length: what is behind it would land elsewhere in the
    /// receiver's stream. So the payload ends there, the receiver acknowledges
    /// again, and what is new comes again. Without the acknowledgement the text
    /// passes as it is: the receiver may wait for it.
    fn acknowledged_change(&self) -> Option<usize> {
        let adj = self.conn.adj(self.dir);
        let known = adj.before != adj.after && self.st.settled(self.dir);
        let at = usize::try_from(adj.pos.wrapping_sub(self.seq)).ok();
        at.filter(|_| known)
    }

    /// Replaces `range`, which begins `behind` bytes into the rewritten part and
    /// ends `left` bytes before its end. The kernel moves what lies behind the
    /// first changed byte by the new offset: the texts' ends correspond.
    fn repeat_part(
        &mut self,
        range: std::ops::Range<usize>,
        behind: usize,
        left: usize,
        text: Text,
    ) -> Verdict {
        let new = text.as_bytes().len();
        let from = match behind {
            0 => Some(0),
            _ => new.checked_sub(left + range.len()),
        };
        let to = new.checked_sub(left);
        let part = match (from, to) {
            (Some(from), Some(to)) => text.part(from, to),
            _ => {
                self.event(Reason::OddRetransmit, None, 0);
                return Verdict::Drop(Reason::OddRetransmit);
            }
        };
        if self.payload.get(range.clone()) != Some(part.as_bytes()) {
            self.rewrite.edit = Some(Edit { range, text: part });
        }
        Verdict::Accept
    }

    /// The text of the rewrite that is not acknowledged.
    fn sent(&self, c: &Change) -> Text {
        let [_, outer] = self.addrs;
        let emitted = usize::from(self.st.emitted);
        if c.complete {
            let port = Some(self.st.last.outer);
            let text = replacement(c.kind, c.delim, outer, port, self.st.emitted);
            return text.part(emitted, usize::MAX);
        }
        if emitted == 0 {
            return text::SPOILED;
        }
        let text = replacement(c.kind, c.delim, outer, None, 0);
        text.part(emitted.saturating_sub(1), emitted)
    }
}
