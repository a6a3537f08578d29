//! Connections that the kernel drops although they live.
//!
//! It drops what it masquerades when the address goes (nf_nat_masquerade.c,
//! `masq_inet_event`), as it does at a firewall that gives the virtual
//! address up: to the peer that takes over, they have to stay. So they stay
//! in our own entries, and mirrored, for a while.

use netfilter::conntrack::{Change, Event};
use netfilter::protoinfo::ProtoInfo;
use netfilter::{Flow, Status};
use std::collections::HashMap;
use std::time::Duration;

/// What a peer may take to become primary.
const KEEP: Duration = Duration::from_secs(30);

/// `TCP_CONNTRACK_TIME_WAIT`; after it comes CLOSE. A connection in these
/// makes room for a new one with the same ports.
const TIME_WAIT: u8 = 7;

/// Keys of connections and their expectations, and until when they stay.
#[derive(Debug, Default)]
pub struct Withdrawn {
    until: HashMap<u64, Duration>,
}

/// True if a connection was dropped by the kernel itself, before its time,
/// while both ends used it and its source was translated. `known` is what we
/// had of it. Nothing but masquerading does that: an early drop spares what
/// is assured, and a command has a port id.
pub fn is_withdrawn(event: &Event, known: &Flow) -> bool {
    let status = event.flow.status.unwrap_or_default();
    let ended = match known.protoinfo {
        ProtoInfo::Tcp(tcp) => tcp.state >= TIME_WAIT,
        _ => false,
    };
    event.change == Change::Destroy
        && event.portid == 0
        && event.flow.timeout.is_some_and(|left| left > 0)
        && status.contains(Status::ASSURED)
        && status.contains(Status::SRC_NAT)
        && !ended
}

impl Withdrawn {
    /// Stays for a while.
    pub fn add(&mut self, key: u64, now: Duration) {
        self.until.insert(key, now + KEEP);
    }

    /// Is in the kernel again, or gone for good.
    pub fn remove(&mut self, key: u64) {
        if !self.until.is_empty() {
            self.until.remove(&key);
        }
    }

    /// True for what stays.
    pub fn contains(&self, key: u64) -> bool {
        self.until.contains_key(&key)
    }

    /// Takes those whose time is over.
    pub fn take_due(&mut self, now: Duration) -> Vec<u64> {
        let due: Vec<u64> = self
            .until
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(key, _)| *key)
            .collect();
        for key in &due {
            self.until.remove(key);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netfilter::Tuple;
    use netfilter::protoinfo::Tcp;

    fn flow(state: u8) -> Flow {
        let orig = Tuple::tcp([10, 0, 1, 2].into(), 4000, [10, 0, 2, 2].into(), 21);
        let mut flow = Flow::new(orig, orig.inverse());
        flow.timeout = Some(100);
        flow.status = Some(Status::ASSURED | Status::SRC_NAT);
        flow.protoinfo = ProtoInfo::Tcp(Tcp {
            state,
            ..Tcp::default()
        });
        flow
    }

    fn destroyed(change: impl FnOnce(&mut Event)) -> bool {
        let mut event = Event {
            change: Change::Destroy,
            portid: 0,
            flow: flow(3),
        };
        change(&mut event);
        let known = event.flow;
        is_withdrawn(&event, &known)
    }

    #[test]
    fn only_what_the_kernel_drops_before_its_time_stays() {
        assert!(destroyed(|_| {}));
        assert!(!destroyed(|e| e.portid = 1), "conntrack -D");
        assert!(!destroyed(|e| e.flow.timeout = None), "timed out");
        assert!(!destroyed(|e| e.flow = flow(TIME_WAIT)), "port reused");
        assert!(!destroyed(|e| e.flow.status = Some(Status::ASSURED)));
        assert!(!destroyed(|e| e.flow.status = Some(Status::SRC_NAT)));
    }

    #[test]
    fn it_stays_for_a_while_unless_it_is_there_again() {
        let mut withdrawn = Withdrawn::default();
        withdrawn.add(1, Duration::ZERO);
        withdrawn.add(2, Duration::ZERO);
        withdrawn.remove(2);
        assert!(withdrawn.contains(1) && !withdrawn.contains(2));
        assert!(withdrawn.take_due(KEEP / 2).is_empty());
        assert_eq!(withdrawn.take_due(KEEP), [1]);
        assert!(!withdrawn.contains(1));
    }
}
