//! A look into the kernel after a commit: is there what was committed?
//!
//! Packets go on meanwhile, and a peer may still change its entries. What
//! traffic may change (protocol state, sequence adjustments, a helper's
//! private data, status, timeout) only counts as different if nothing shows
//! that there was traffic, and if the copy has not changed since.

use crate::kernel::table;
use crate::record::{self, Record};
use crate::replica::outbound::low;
use crate::replica::{Replica, remaining};
use crate::store::{Flags, Slot, Store};
use netfilter::protoinfo::{ProtoInfo, TCP_FLAG_SACK_PERM, TCP_FLAG_WINDOW_SCALE};
use netfilter::{Error, Expectation, Flow, Message, Socket, Status, expect};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Seconds by which timeouts may be apart, for rounding at both ends; the time
/// that the commit took comes on top: a timeout counts from when the kernel
/// took it, not from when it was computed.
const SLACK: u32 = 5;

/// Looks at a table that somebody resizes again and again.
const LOOKS: usize = 5;

/// What a look into the kernel after a commit has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Entries that are there as they should be.
    pub good: u64,
    /// Entries that are not there.
    pub missing: u64,
    /// Entries that differ, by what.
    pub differ: BTreeMap<String, u64>,
}

impl Verified {
    /// True if everything is as it should be.
    pub fn is_clean(&self) -> bool {
        self.missing == 0 && self.differ.is_empty()
    }
}

/// Newest datagram of each peer when the commit began.
pub type Marks = Vec<u32>;

/// See [`Marks`].
pub fn marks(replica: &Replica) -> Marks {
    let newest = replica.peers.iter().map(|p| low(p.inbound.newest()));
    newest.collect()
}

/// A comparison under way.
#[derive(Debug)]
pub struct Verifier {
    marks: Marks,
    zones: BTreeSet<u16>,
    /// Monotonic time of the daemon at `begun`.
    now: Duration,
    begun: Instant,
    slack: u32,
    key: Vec<u8>,
    result: Verified,
}

impl Verifier {
    /// Compares what is marked as installed in the peers' copies.
    /// It is `now`, and the commit took `took`.
    pub fn new(marks: Marks, now: Duration, took: Duration) -> Self {
        Self {
            marks,
            zones: BTreeSet::new(),
            now,
            slack: SLACK.saturating_add(u32::try_from(took.as_secs()).unwrap_or(0)),
            begun: Instant::now(),
            key: Vec::new(),
            result: Verified::default(),
        }
    }

    /// Dumps the kernel's tables. What an earlier dump has shown is forgotten.
    ///
    /// # Errors
    /// [`Error`] if they can't be dumped, or not whole.
    pub fn dump(&mut self, replica: &mut Replica) -> Result<(), Error> {
        let mut socket = Socket::open()?;
        let mut looks = 0;
        loop {
            looks += 1;
            self.begin(replica);
            match table::dump(&mut socket, |flow| self.on_flow(replica, flow)) {
                Err(error) if looks < LOOKS && table::was_resized(&error) => {}
                done => break done?,
            }
        }
        socket.exchange(
            "dumping expectations",
            |buf, seq| expect::dump(buf, None, seq),
            |m| self.on_expect(replica, m),
        )
    }

    /// Nothing was seen yet.
    fn begin(&mut self, replica: &mut Replica) {
        self.result = Verified::default();
        for peer in &mut replica.peers {
            let copy = &mut peer.inbound.store;
            for index in 0..u32::try_from(copy.slots()).unwrap_or(u32::MAX) {
                if let Some(slot) = copy.slot_mut(index) {
                    slot.flags.remove(Flags::SEEN);
                }
                let slot = copy
                    .slot(index)
                    .filter(|s| is_installed(s) && s.is_expect());
                if let Some(Ok(Record::Expect(e))) = slot.map(|s| record::decode(copy.bytes(s))) {
                    self.zones.insert(e.zone);
                }
            }
        }
    }

    fn on_flow(&mut self, replica: &mut Replica, flow: &Flow) {
        self.key.clear();
        if record::put_flow_key(&mut self.key, flow).is_err() {
            return;
        }
        if let Some((Record::Flow(wanted), may_differ, left)) = self.take(replica) {
            let found = flow_difference(&wanted, flow, may_differ, (left, self.slack));
            self.tell(found);
        }
    }

    fn on_expect(&mut self, replica: &mut Replica, message: &Message<'_>) {
        let Ok(Some(event)) = expect::Event::decode(message) else {
            return;
        };
        let mut exp = event.expectation;
        // The kernel does not tell the zone.
        for zone in self.zones.clone() {
            exp.zone = zone;
            self.key.clear();
            if record::put_expect_key(&mut self.key, &exp).is_err() {
                return;
            }
            if let Some((Record::Expect(wanted), may_differ, left)) = self.take(replica) {
                let found = expect_difference(&wanted, &exp, may_differ, (left, self.slack));
                return self.tell(found);
            }
        }
    }

    /// Finds what was committed under the key, in each copy, and what is
    /// wanted of it: the record, whether it has changed since, and the
    /// seconds it has left.
    fn take(&self, replica: &mut Replica) -> Option<(Record, bool, u32)> {
        let mut found = None;
        for (peer, mark) in replica.peers.iter_mut().zip(&self.marks) {
            let copy = &mut peer.inbound.store;
            let Some(index) = copy.find(copy.key(&self.key)) else {
                continue;
            };
            let Some(slot) = copy.slot_mut(index).filter(|s| is_installed(s)) else {
                continue;
            };
            slot.flags.insert(Flags::SEEN);
            let slot = *slot;
            let changed = (1..u32::MAX / 2).contains(&slot.version.wrapping_sub(*mark));
            let left = remaining(&slot, self.now + self.begun.elapsed());
            found = record::decode(copy.bytes(&slot))
                .ok()
                .map(|r| (r, changed, left))
                .or(found);
        }
        found
    }

    fn tell(&mut self, difference: Option<&'static str>) {
        match difference {
            None => self.result.good += 1,
            Some(what) => *self.result.differ.entry(what.into()).or_default() += 1,
        }
    }

    /// The result. All events must have been taken by now, so that what has
    /// ended or was used up is not marked as installed any more.
    pub fn finish(mut self, replica: &Replica) -> Verified {
        let missing = |copy: &Store| {
            let gone = |s: &Slot| is_installed(s) && !s.flags.contains(Flags::SEEN);
            copy.live().filter(|(_, s)| gone(s)).count() as u64
        };
        let copies = replica.peers.iter().map(|p| &p.inbound.store);
        self.result.missing = copies.map(missing).sum();
        self.result
    }
}

fn is_installed(slot: &Slot) -> bool {
    slot.is_live() && slot.flags.contains(Flags::INSTALLED)
}

/// What is not as it was committed. `left` is what the timeout should be, give
/// or take `slack`.
fn flow_difference(
    wanted: &Flow,
    is: &Flow,
    changed: bool,
    (left, slack): (u32, u32),
) -> Option<&'static str> {
    if changed {
        return None;
    }
    let fixed = if wanted.reply != is.reply {
        Some("nat")
    } else if wanted.help.map(|h| h.name) != is.help.map(|h| h.name) {
        Some("helper")
    } else if wanted.mark.unwrap_or(0) != is.mark.unwrap_or(0) {
        Some("mark")
    } else if wanted.labels.unwrap_or_default() != is.labels.unwrap_or_default() {
        Some("labels")
    } else if wanted.master != is.master {
        Some("master")
    } else if wanted.synproxy.unwrap_or_default() != is.synproxy.unwrap_or_default() {
        Some("synproxy")
    } else {
        None
    };
    if fixed.is_some() {
        return fixed;
    }
    let timeout = is.timeout.unwrap_or(0);
    let kept = wanted.status.unwrap_or_default() & (Status::SEEN_REPLY | Status::ASSURED);
    let moved = if proto(&wanted.protoinfo) != proto(&is.protoinfo) {
        Some("state")
    } else if wanted.seq_adj_orig != is.seq_adj_orig || wanted.seq_adj_reply != is.seq_adj_reply {
        Some("seqadj")
    } else if info(wanted) != info(is) {
        Some("helper data")
    } else if !is.status.unwrap_or_default().contains(kept) {
        Some("status")
    } else {
        None
    };
    let expected = if left == 0 { super::REVIVED_SECS } else { left };
    match moved {
        // Each packet sets the timeout anew.
        Some(what) if timeout.abs_diff(expected) <= slack => Some(what),
        None if timeout.saturating_add(slack) < expected => Some("timeout"),
        _ => None,
    }
}

/// What was restored of the protocol's state.
const fn proto(info: &ProtoInfo) -> (u8, u8, u8, u8, u8, u32, u32) {
    const FLAGS: u8 = TCP_FLAG_WINDOW_SCALE | TCP_FLAG_SACK_PERM;
    match info {
        ProtoInfo::None => (0, 0, 0, 0, 0, 0, 0),
        ProtoInfo::Tcp(t) => (
            t.state,
            t.wscale_orig,
            t.wscale_reply,
            t.flags_orig.flags & FLAGS,
            t.flags_reply.flags & FLAGS,
            0,
            0,
        ),
        ProtoInfo::Dccp { state, role, .. } => (*state, *role, 0, 0, 0, 0, 0),
        ProtoInfo::Sctp {
            state,
            vtag_orig,
            vtag_reply,
        } => (*state, 0, 0, 0, 0, *vtag_orig, *vtag_reply),
    }
}

/// A helper's private data; the kernel pads it with zeros.
fn info(flow: &Flow) -> [u8; netfilter::flow::HelpInfo::MAX] {
    flow.help.map(|h| *h.info.padded()).unwrap_or_default()
}

fn expect_difference(
    wanted: &Expectation,
    is: &Expectation,
    changed: bool,
    (left, slack): (u32, u32),
) -> Option<&'static str> {
    let kept = expect::Flags::PERMANENT | expect::Flags::INACTIVE;
    let expected = if left == 0 { super::REVIVED_SECS } else { left };
    if changed {
        None
    } else if wanted.master != is.master {
        Some("expectation master")
    } else if wanted.flags & kept != is.flags & kept {
        Some("expectation flags")
    } else if wanted.nat != is.nat {
        Some("expectation nat")
    } else if wanted.expectfn != is.expectfn {
        Some("expectation function")
    } else if wanted.helper.is_some() && wanted.helper != is.helper {
        Some("expectation helper")
    } else if is.timeout.unwrap_or(0).abs_diff(expected) > slack {
        Some("expectation timeout")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{ip, tcp};
    use netfilter::expect::{ExpectNat, Mask};
    use netfilter::flow::{Help, HelpInfo, Labels, SeqAdj, Synproxy};
    use netfilter::{Dir, Tuple};

    fn flow() -> Flow {
        let mut f = tcp(1);
        f.timeout = Some(600);
        f.help = Some(Help {
            name: "ftp".parse().unwrap(),
            info: HelpInfo::new(&[1, 2]).unwrap(),
        });
        f.seq_adj_orig = Some(SeqAdj::default());
        f
    }

    /// Each field alone.
    #[test]
    fn what_differs_in_a_connection_is_named() {
        type Change = fn(&mut Flow);
        let changes: [(&str, Change); 10] = [
            ("nat", |f| f.reply.dst = ip("203.0.113.1")),
            ("helper", |f| f.help = None),
            ("mark", |f| f.mark = Some(1)),
            ("labels", |f| f.labels = Some(Labels([1; 16]))),
            ("master", |f| f.master = Some(f.orig)),
            ("synproxy", |f| {
                f.synproxy = Some(Synproxy {
                    isn: 1,
                    its: 2,
                    tsoff: 3,
                })
            }),
            ("state", |f| f.protoinfo = ProtoInfo::None),
            ("seqadj", |f| f.seq_adj_orig = None),
            ("helper data", |f| {
                f.help.as_mut().unwrap().info = HelpInfo::default()
            }),
            ("status", |f| f.status = None),
        ];
        for (what, change) in changes {
            let mut is = flow();
            change(&mut is);
            assert_eq!(
                flow_difference(&flow(), &is, false, (600, SLACK)),
                Some(what)
            );
            assert_eq!(
                flow_difference(&flow(), &is, true, (600, SLACK)),
                None,
                "{what}"
            );
        }
        assert_eq!(flow_difference(&flow(), &flow(), false, (600, SLACK)), None);
        assert_eq!(
            flow_difference(&flow(), &flow(), false, (3600, SLACK)),
            Some("timeout")
        );
    }

    #[test]
    fn what_traffic_has_changed_is_no_difference() {
        let mut is = flow();
        is.seq_adj_orig = None;
        is.timeout = Some(432_000);
        assert_eq!(flow_difference(&flow(), &is, false, (600, SLACK)), None);
        // Its NAT can't have changed.
        is.reply.dst = ip("203.0.113.1");
        assert_eq!(
            flow_difference(&flow(), &is, false, (600, SLACK)),
            Some("nat")
        );
    }

    #[test]
    fn what_differs_in_an_expectation_is_named() {
        type Change = fn(&mut Expectation);
        let tuple = Tuple::tcp(ip("192.0.2.1"), 0, ip("10.0.0.1"), 5000);
        let mut e = Expectation::new(tcp(1).orig, tuple, Mask::any_sport(ip("10.0.0.1")));
        e.flags = expect::Flags::PERMANENT;
        e.timeout = Some(100);
        e.helper = Some("ftp".parse().unwrap());
        e.expectfn = Some("nat-follow-master".parse().unwrap());
        e.nat = Some(ExpectNat {
            dir: Dir::Reply,
            addr: ip("10.0.0.9"),
            port: 7,
            l4proto: 6,
        });
        let changes: [(&str, Change); 6] = [
            ("expectation master", |e| e.master = e.tuple),
            ("expectation flags", |e| e.flags = expect::Flags::empty()),
            ("expectation nat", |e| e.nat = None),
            ("expectation function", |e| e.expectfn = None),
            ("expectation helper", |e| e.helper = None),
            ("expectation timeout", |e| e.timeout = Some(300)),
        ];
        for (what, change) in changes {
            let mut is = e;
            change(&mut is);
            assert_eq!(expect_difference(&e, &is, false, (100, SLACK)), Some(what));
        }
        assert_eq!(expect_difference(&e, &e, false, (100, SLACK)), None);
        assert_eq!(expect_difference(&e, &e, true, (300, SLACK)), None);
    }
}
