//! Single entries of the kernel's tables, looked at and deleted outside of a
//! commit.

use super::{BATCH, Commit, REVIVED_SECS, lane};
use crate::record::{self, Record};
use netfilter::message::Kind;
use netfilter::protoinfo::{ProtoInfo, TCP_FLAG_MAXACK_SET};
use netfilter::socket::Received;
use netfilter::{Dir, Error, Flow, conntrack, expect};

impl Commit {
    /// For each record its connection as the kernel has it, if it is there; of an
    /// expectation, nothing. The kernel finds connections by either tuple: one that has
    /// a record's as its reply is not it.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn look(&mut self, records: &[&[u8]]) -> Result<Vec<Option<Flow>>, Error> {
        let mut all = Vec::new();
        for chunk in records.chunks(BATCH) {
            let first = self.socket.next_seq();
            let mut found = vec![None; chunk.len()];
            // What has no answer yet; what was answered once is not lost by
            // another try.
            let mut open: Vec<Option<Flow>> = chunk.iter().map(|r| record::as_flow(r)).collect();
            let is_open = |open: &[Option<Flow>]| open.iter().any(Option::is_some);
            if is_open(&open) {
                lane::insistently(|| {
                    self.out.clear();
                    let asked = (0..).zip(&open).filter_map(|(at, f)| Some((at, (*f)?)));
                    for (at, f) in asked {
                        let seq = first.wrapping_add(at);
                        conntrack::get(&mut self.out, Dir::Orig, &f.orig, f.zone, seq)
                            .map_err(|_| Error::new("looking into the kernel", libc::EMSGSIZE))?;
                    }
                    self.socket.send(&self.out, "looking into the kernel")?;
                    let told = lane::answers(&mut self.socket, &mut self.buf, first, |at, m| {
                        let short = |errno| Error::new("", errno).is_shortage();
                        if matches!(m.kind(), Kind::Error(e) if short(e.errno)) {
                            return;
                        }
                        if let (Some(open), Some(place)) = (open.get_mut(at), found.get_mut(at)) {
                            *open = None;
                            if let Ok(Some(event)) = conntrack::Event::decode(m) {
                                *place = Some(event.flow);
                            }
                        }
                    });
                    match told {
                        Err(error) if error.is_shortage() && !is_open(&open) => Ok(()),
                        Ok(()) if is_open(&open) => {
                            Err(Error::new("looking into the kernel", libc::ENOBUFS))
                        }
                        other => other,
                    }
                })?;
            }
            let found = found.into_iter().zip(chunk);
            all.extend(found.map(|(flow, record)| flow.filter(|f| record::is_of(record, f))));
        }
        Ok(all)
    }

    /// Deletes what these records say from the kernel; of a connection with an
    /// id, only the one that has it.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn delete(&mut self, records: &[(&[u8], Option<u32>)]) -> Result<(), Error> {
        for chunk in records.chunks(BATCH) {
            self.out.clear();
            for (record, id) in chunk {
                let seq = self.socket.next_seq();
                let built = match record::decode(record) {
                    Ok(Record::Flow(f)) => {
                        conntrack::delete(&mut self.out, &f.orig, f.zone, *id, seq)
                    }
                    Ok(Record::Expect(e)) => {
                        expect::delete(&mut self.out, &e.tuple, e.zone, None, seq)
                    }
                    Err(_) => Ok(()),
                };
                built.map_err(|_| Error::new("deleting", libc::EMSGSIZE))?;
            }
            if !self.out.is_empty() {
                lane::insistently(|| self.socket.send(&self.out, "deleting from the kernel"))?;
            }
            self.drain()?;
        }
        Ok(())
    }

    /// Deletes what these records say if it is there, but for no connection that has
    /// a record's tuple as its reply; how many. Of expectations nobody looks.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn delete_if_there(&mut self, records: &[&[u8]]) -> Result<usize, Error> {
        let there = self.look(records)?;
        let there = records.iter().zip(there).filter_map(|(record, there)| {
            let expect = record::is_expect(record).then_some(None);
            Some((*record, there.map(|flow| flow.id).or(expect)?))
        });
        let there: Vec<_> = there.collect();
        self.delete(&there).map(|()| there.len())
    }

    fn drain(&mut self) -> Result<(), Error> {
        while !matches!(self.socket.try_receive(&mut self.buf)?, Received::Empty) {}
        Ok(())
    }
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
