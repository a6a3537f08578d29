//! Against a kernel, in a network namespace that ends with its thread.

use super::results::lost_helper;
use super::verify::{self, Verified, Verifier};
use super::*;
use crate::hash::Seed;
use crate::kernel::table;
use crate::preflight;
use crate::record::tests::tcp;
use crate::replica::Settings;
use crate::store::{Entry, Store};
use netfilter::expect::Mask;
use netfilter::flow::{Help, HelpInfo};
use netfilter::inject;
use netfilter::message::TooLong;
use netfilter::{Expectation, Flow, L4, Tuple, conntrack, expect};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;

#[path = "../../../tests/src/skip.rs"]
mod skip;

struct Nobody;

impl Committed for Nobody {
    fn committed(&mut self, _: &mut Replica, _: PeerId, _: u32) {}
}

/// A node with a peer that owns these connections.
pub fn replica(flows: &[Flow]) -> Replica {
    let mut replica = Replica::new(Settings {
        name: "fw-2".into(),
        incarnation: 1,
        seed: Seed::from_bytes([1; 16]),
        limit: 1000,
        credit: 16,
    });
    replica.add_peer();
    let copy = &mut replica.peers[0].inbound.store;
    for flow in flows {
        let (mut bytes, mut key) = (Vec::new(), Vec::new());
        record::put_flow(&mut bytes, flow).unwrap();
        record::put_flow_key(&mut key, flow).unwrap();
        put(copy, &key, &bytes, false, 3600);
    }
    replica
}

fn put(copy: &mut Store, key: &[u8], bytes: &[u8], expect: bool, deadline: u32) {
    let entry = Entry {
        key: copy.key(key),
        bytes,
        expect,
        deadline,
    };
    copy.put(&entry).unwrap();
}

fn add_expectation(replica: &mut Replica, exp: &Expectation, deadline: u32) {
    let (mut bytes, mut key) = (Vec::new(), Vec::new());
    record::put_expect(&mut bytes, exp).unwrap();
    record::put_expect_key(&mut key, exp).unwrap();
    put(
        &mut replica.peers[0].inbound.store,
        &key,
        &bytes,
        true,
        deadline,
    );
}

pub fn commit(replica: &mut Replica) -> Report {
    let mut commit = Commit::open(true).unwrap();
    commit.start(replica, Duration::ZERO);
    loop {
        let step = commit.step(replica, Duration::ZERO, &mut Nobody);
        if let Some(report) = step.unwrap() {
            return report;
        }
    }
}

fn kernel() -> Vec<Flow> {
    let mut found = Vec::new();
    table::dump(&mut Socket::open().unwrap(), |flow| found.push(*flow)).unwrap();
    found
}

/// In a namespace of its own; `None`, and said to be skipped, where that takes
/// more rights.
pub fn apart<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let inside = || unshare(CloneFlags::CLONE_NEWNET).ok().map(|()| f());
    let outcome = std::thread::spawn(inside).join().unwrap();
    if outcome.is_none() {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        skip::missing(&test, "root, for a network namespace");
    }
    outcome
}

/// A helper that is registered nowhere: this kernel's registry is one for
/// all namespaces.
#[test]
fn a_connection_whose_helper_is_missing_is_committed_without_it() {
    let outcome = apart(|| {
        let mut helped = tcp(1);
        helped.help = Some(Help {
            name: "lab-absent".parse().unwrap(),
            info: HelpInfo::new(&[1, 2, 3]).unwrap(),
        });
        let mut replica = replica(&[helped, tcp(2)]);
        let report = commit(&mut replica);
        let again = commit(&mut replica);
        (report, again, kernel())
    });
    let Some((report, again, kernel)) = outcome else {
        return;
    };
    let missing = BTreeMap::from([("lab-absent".to_owned(), 1)]);
    assert_eq!(report.flows, 2);
    assert_eq!(report.without_helper, missing);
    assert!(report.failed.is_empty() && report.helper_data_failed.is_empty());
    assert!(!report.is_clean());
    assert_eq!(kernel.len(), 2);
    assert!(kernel.iter().all(|f| f.help.is_none()));
    // And just so when it is there already.
    assert_eq!(again.without_helper, missing);
    assert_eq!((again.flows, again.failed), (2, BTreeMap::new()));
}

/// A record that was taken in and can't be made into a message.
#[test]
fn an_entry_that_can_not_be_sent_is_told() {
    let outcome = apart(|| {
        let mut replica = replica(&[tcp(1)]);
        let (mut bytes, mut key) = (Vec::new(), Vec::new());
        record::put_flow(&mut bytes, &tcp(2)).unwrap();
        record::put_flow_key(&mut key, &tcp(2)).unwrap();
        bytes.truncate(record::split(&bytes).unwrap().key.len());
        put(&mut replica.peers[0].inbound.store, &key, &bytes, false, 1);
        (commit(&mut replica), kernel())
    });
    let Some((report, kernel)) = outcome else {
        return;
    };
    assert_eq!((report.flows, kernel.len()), (1, 1));
    assert_eq!(report.failed, BTreeMap::from([("EBADMSG".to_owned(), 1)]));
    assert!(!report.is_clean());
}

#[test]
fn a_missing_helper_is_told_beforehand() {
    let outcome = apart(|| {
        let helpers = BTreeMap::from([("lab-absent".to_owned(), 3)]);
        (preflight::problems(&helpers), kernel())
    });
    let Some((problems, kernel)) = outcome else {
        return;
    };
    let wanted = "helper lab-absent is not registered; 3 connections would be committed without it";
    assert!(problems.iter().any(|p| p == wanted), "{problems:?}");
    assert!(kernel.is_empty());
}

fn verify(replica: &mut Replica) -> Verified {
    let marks = verify::marks(replica);
    let mut verifier = Verifier::new(marks, Duration::ZERO, Duration::ZERO);
    // What the first one has shown doesn't count.
    verifier.dump(replica).unwrap();
    verifier.dump(replica).unwrap();
    verifier.finish(replica)
}

/// Sends one message; it must be accepted.
fn tell(build: impl FnOnce(&mut Vec<u8>, u32) -> Result<(), TooLong>) {
    let mut socket = Socket::open().unwrap();
    socket.exchange("telling", build, |_| {}).unwrap();
}

/// Whatever somebody else does to what was committed is seen, by field.
#[test]
fn a_look_into_the_kernel_tells_what_differs() {
    let outcome = apart(|| {
        // The kernel's IRC helper allows eight expectations.
        let mut master = tcp(1);
        master.orig.l4 = L4::Ports {
            src: 1025,
            dst: 6667,
        };
        master.reply = master.orig.inverse();
        master.help = Some(Help {
            name: "irc".parse().unwrap(),
            info: HelpInfo::default(),
        });
        let block: Vec<Expectation> = (0..4)
            .map(|i| {
                let to = master.orig.src;
                let tuple = Tuple::tcp(master.orig.dst, 0, to, 50_000 + i);
                let mut e = Expectation::new(master.orig, tuple, Mask::any_sport(to));
                e.flags = expect::Flags::PERMANENT;
                e.helper = Some("irc".parse().unwrap());
                e
            })
            .collect();
        let flows = [master, tcp(2), tcp(3), tcp(4)];
        let mut replica = replica(&flows);
        for e in &block {
            add_expectation(&mut replica, e, 100);
        }
        let report = commit(&mut replica);
        let at_first = verify(&mut replica);

        let mut marked = tcp(2);
        (marked.mark, marked.timeout) = (Some(9), Some(3600));
        let options = Options {
            ack: true,
            ..Options::default()
        };
        tell(|buf, seq| inject::update(buf, &marked, options, seq));
        tell(|buf, seq| conntrack::delete(buf, &tcp(3).orig, 0, None, seq));
        tell(|buf, seq| expect::delete(buf, &block[0].tuple, 0, None, seq));
        let mut longer = block[1];
        longer.timeout = Some(250);
        tell(|buf, seq| expect::update(buf, &longer, seq));
        (report, at_first, verify(&mut replica))
    });
    let Some((report, at_first, then)) = outcome else {
        return;
    };
    assert_eq!(report.flows, 4, "{report:?}");
    assert_eq!(report.expectations, 4, "{report:?}");
    assert_eq!(
        (at_first.good, at_first.is_clean()),
        (8, true),
        "{at_first:?}"
    );
    let differ = [("mark", 1), ("expectation timeout", 1)];
    assert_eq!(
        then,
        Verified {
            good: 4,
            missing: 2,
            differ: differ.map(|(what, n)| (what.to_owned(), n)).into(),
        }
    );
}

#[test]
fn a_helper_that_was_taken_away_is_told() {
    let mut wanted = tcp(1);
    assert_eq!(lost_helper(&wanted, &tcp(1)), None);
    wanted.help = Some(Help {
        name: "ftp".parse().unwrap(),
        info: HelpInfo::default(),
    });
    assert_eq!(lost_helper(&wanted, &wanted), None);
    assert_eq!(lost_helper(&wanted, &tcp(1)), Some("ftp".to_owned()));
    let mut report = Report::default();
    assert!(report.is_clean());
    report.helper_lost.insert("ftp".into(), 1);
    assert!(!report.is_clean());
}

/// What a commit has queued, and whether the copy's entry counts as installed.
fn settled(
    commit: &mut Commit,
    replica: &mut Replica,
    step: Step,
    (errno, short): (i32, Option<i32>),
) -> (Vec<Step>, bool) {
    let first = commit.todo.pop_front();
    let op =
        first.unwrap_or_else(|| first_op(0, 0, replica.peers[0].inbound.store.slot(0).unwrap()));
    let mut errnos = [0; BATCH];
    errnos[0] = errno;
    let outcome = lane::Outcome {
        batch: Batch {
            ops: vec![Op { step, ..op }],
            ..Batch::default()
        },
        errnos,
        short,
        sent: true,
        found: BTreeMap::new(),
    };
    commit.settle(replica, outcome, &mut Nobody);
    let slot = replica.peers[0].inbound.store.slot(0).unwrap();
    let installed = slot.flags.contains(Flags::INSTALLED);
    (commit.todo.iter().map(|op| op.step).collect(), installed)
}

const UNANSWERED: (i32, Option<i32>) = (0, Some(libc::ENOBUFS));

/// What the kernel had no memory to answer may be there until it is refused.
#[test]
fn what_is_refused_after_a_shortage_is_not_there() {
    apart(|| {
        for errno in [libc::ENOSPC, libc::EINVAL] {
            let (mut commit, mut replica) = (Commit::open(true).unwrap(), replica(&[tcp(1)]));
            let mut tell = |answer| settled(&mut commit, &mut replica, CREATE, answer);
            assert_eq!(tell(UNANSWERED), (vec![CREATE], true));
            assert_eq!(tell((errno, None)), (vec![], false));
            assert!(commit.take_doubt() && !commit.take_doubt());
            assert_eq!((commit.refused, commit.shortages.len()), (1, 1));
        }
    });
}

/// Nothing was written by it.
#[test]
fn what_was_only_looked_at_is_not_ours() {
    apart(|| {
        let (mut commit, mut replica) = (Commit::open(true).unwrap(), replica(&[tcp(1)]));
        for step in [Step::Look(Dir::Orig), Step::Delete(Dir::Orig), Step::Helper] {
            let told = settled(&mut commit, &mut replica, step, UNANSWERED);
            assert_eq!(told, (vec![step], false));
            commit.todo.clear();
        }
        assert!(!commit.take_doubt());
    });
}

/// It was put there, and the kernel had no memory to say so.
#[test]
fn an_expectation_that_its_own_first_try_is_in_the_way_of_is_put_there() {
    apart(|| {
        let (mut commit, mut replica) = (Commit::open(true).unwrap(), replica(&[tcp(1)]));
        let mut tell = |step, answer| settled(&mut commit, &mut replica, step, answer).0;
        let deletes = vec![Step::Delete(Dir::Orig)];
        let exists = (libc::EEXIST, None);
        assert_eq!(tell(Step::Expect, exists), deletes);
        assert_eq!(tell(Step::Expect, UNANSWERED), [Step::Expect]);
        assert_eq!(tell(Step::Expect, exists), deletes);
        assert!(commit.report.failed.is_empty());
    });
}

/// It waits for memory: what is known of it must not count in a takeover.
#[test]
fn what_waits_for_memory_is_in_doubt() {
    apart(|| {
        let (mut commit, mut replica) = (Commit::open(true).unwrap(), replica(&[tcp(1)]));
        for _ in 0..MAX_SHORTAGES {
            settled(&mut commit, &mut replica, CREATE, UNANSWERED);
            assert!(!commit.is_in_doubt());
        }
        let told = settled(&mut commit, &mut replica, CREATE, UNANSWERED);
        assert_eq!((told, commit.is_in_doubt()), ((vec![], true), true));
        commit.try_again(&replica);
        assert!(!commit.is_in_doubt() && commit.is_busy());
        let told = settled(&mut commit, &mut replica, CREATE, UNANSWERED);
        assert_eq!(told.0, [CREATE]);
    });
}

/// The table was full: what is gone may be deleted by then.
#[test]
fn what_the_full_table_refused_is_tried_again() {
    apart(|| {
        let (mut commit, mut replica) = (Commit::open(true).unwrap(), replica(&[tcp(1)]));
        let full = (libc::ENOMEM, None);
        // As long as something waits to be deleted, each time.
        commit.room_comes = true;
        for _ in 0..=MAX_TRIES {
            settled(&mut commit, &mut replica, CREATE, full);
            commit.try_again(&replica);
            assert!(commit.is_busy() && commit.refused == 0);
        }
        commit.room_comes = false;
        for _ in 0..MAX_TRIES {
            let told = settled(&mut commit, &mut replica, CREATE, full);
            assert_eq!((told, commit.refused), ((vec![], false), 0));
            commit.try_again(&replica);
            assert!(commit.is_busy());
        }
        let told = settled(&mut commit, &mut replica, CREATE, full);
        assert_eq!((told, commit.refused), ((vec![], false), 1));
        commit.try_again(&replica);
        assert!(!commit.is_busy());
        // It has come there with its next change.
        settled(&mut commit, &mut replica, CREATE, full);
        settled(&mut commit, &mut replica, CREATE, (0, None));
        commit.try_again(&replica);
        assert!(!commit.is_busy());
    });
}
