//! Expectations: mirrored if their master is, in its zone, which the kernel
//! does not tell.

use super::{Ask, LOOK_AGAIN, Tracker, uninstall};
use crate::record;
use crate::replica::Replica;
use crate::store::Store;
use netfilter::conntrack::Change;
use netfilter::flow::Flow;
use netfilter::{Expectation, expect};
use std::time::Duration;

impl Tracker {
    /// Takes an event about an expectation. Its master has changed too,
    /// which no event tells.
    pub fn on_expect(&mut self, replica: &mut Replica, event: &expect::Event, now: Duration) {
        self.counts.events += 1;
        let mut exp = event.expectation;
        exp.zone = self.master_zone(&replica.own, &exp);
        if event.change == Change::Destroy {
            self.forget_expect(replica, &mut exp, now);
            return;
        }
        if self.paused {
            return;
        }
        if let Some(index) = self.put_expect(replica, &exp, now) {
            self.mark(&mut replica.own, index);
        }
        let ask = Ask {
            tuple: exp.master,
            zone: exp.zone,
        };
        self.asks.push(ask);
        for delay in LOOK_AGAIN {
            self.later.insert((now + delay, ask), ());
        }
    }

    fn forget_expect(&mut self, replica: &mut Replica, exp: &mut Expectation, now: Duration) {
        self.scratch.clear();
        if record::put_expect_key(&mut self.scratch, exp).is_err() {
            return;
        }
        let key = replica.own.key(&self.scratch);
        if self.has_withdrawn_master(&replica.own, exp) {
            // It went with its master, and it stays with it.
            self.withdrawn.add(key, now);
            return;
        }
        if let Some(index) = replica.own.find(key) {
            self.forget(replica, index, now);
        } else if let Some(destroyed) = &mut self.destroyed {
            destroyed.insert(key);
        }
        // A peer's, whose zone we don't know: used up or timed out here. It
        // is not put back.
        let zones: Vec<u16> = self.zones.iter().copied().collect();
        for zone in std::iter::once(0).chain(zones) {
            exp.zone = zone;
            self.scratch.clear();
            if record::put_expect_key(&mut self.scratch, exp).is_ok() {
                uninstall(replica, &self.scratch);
            }
        }
    }

    fn put_expect(
        &mut self,
        replica: &mut Replica,
        exp: &Expectation,
        now: Duration,
    ) -> Option<u32> {
        if !self.filter.expectations() || !self.has_master(&replica.own, exp) {
            self.counts.filtered += 1;
            return None;
        }
        self.scratch.clear();
        if record::put_expect(&mut self.scratch, exp).is_err() {
            self.counts.unencodable += 1;
            return None;
        }
        self.put(replica, true, exp.timeout, now)
    }

    fn has_withdrawn_master(&mut self, own: &Store, exp: &Expectation) -> bool {
        let mut master = Flow::new(exp.master, exp.master);
        master.zone = exp.zone;
        self.scratch.clear();
        record::put_flow_key(&mut self.scratch, &master).is_ok()
            && self.withdrawn.contains(own.key(&self.scratch))
    }

    /// An expectation is mirrored if its master is.
    pub(super) fn has_master(&mut self, own: &Store, exp: &Expectation) -> bool {
        let mut master = Flow::new(exp.master, exp.master);
        master.zone = exp.zone;
        let found = self.find_flow(own, &master);
        found.and_then(|i| own.slot(i)).is_some_and(|s| s.is_live())
    }

    /// The kernel does not tell an expectation's zone: it is its master's.
    pub(super) fn master_zone(&mut self, own: &Store, exp: &Expectation) -> u16 {
        let zones: Vec<u16> = self.zones.iter().copied().collect();
        let mut probe = *exp;
        for zone in std::iter::once(0).chain(zones) {
            probe.zone = zone;
            if self.has_master(own, &probe) {
                return zone;
            }
        }
        0
    }
}
