//! Single entries of the kernel's tables, looked at and deleted outside of a
//! commit.

use super::{BATCH, Commit, REVIVED_SECS, lane};
use crate::record::{self, Record};
use netfilter::message::Kind;
use netfilter::protoinfo::{ProtoInfo, TCP_FLAG_MAXACK_SET};
use netfilter::socket::Received;
use netfilter::{Dir, Error, Flow, conntrack, expect};

impl Commit {
    /// The connections of these records as the kernel has them: for each the one
    /// of which its original tuple is one of both.
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
            let mut open: Vec<bool> = chunk.iter().map(|r| is_flow(r)).collect();
            if open.contains(&true) {
                lane::insistently(|| {
                    self.out.clear();
                    for ((at, record), _) in (0..).zip(chunk).zip(&open).filter(|(_, open)| **open)
                    {
                        if let Ok(Record::Flow(f)) = record::decode(record) {
                            let seq = first.wrapping_add(at);
                            conntrack::get(&mut self.out, Dir::Orig, &f.orig, f.zone, seq)
                                .map_err(|_| {
                                    Error::new("looking into the kernel", libc::EMSGSIZE)
                                })?;
                        }
                    }
                    self.socket.send(&self.out, "looking into the kernel")?;
                    let told = lane::answers(&mut self.socket, &mut self.buf, first, |at, m| {
                        let short = |errno| Error::new("", errno).is_shortage();
                        if matches!(m.kind(), Kind::Error(e) if short(e.errno)) {
                            return;
                        }
                        if let (Some(open), Some(place)) = (open.get_mut(at), found.get_mut(at)) {
                            *open = false;
                            if let Ok(Some(event)) = conntrack::Event::decode(m) {
                                *place = Some(event.flow);
                            }
                        }
                    });
                    match told {
                        Err(error) if error.is_shortage() && !open.contains(&true) => Ok(()),
                        Ok(()) if open.contains(&true) => {
                            Err(Error::new("looking into the kernel", libc::ENOBUFS))
                        }
                        other => other,
                    }
                })?;
            }
            all.append(&mut found);
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

    fn drain(&mut self) -> Result<(), Error> {
        while !matches!(self.socket.try_receive(&mut self.buf)?, Received::Empty) {}
        Ok(())
    }
}

fn is_flow(record: &[u8]) -> bool {
    record::split(record).is_ok_and(|split| !split.expect)
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
