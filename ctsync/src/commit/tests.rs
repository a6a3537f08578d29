//! Against a kernel, in a network namespace that ends with its thread.

use super::*;
use crate::hash::Seed;
use crate::preflight;
use crate::record::tests::tcp;
use crate::replica::Settings;
use crate::store::Entry;
use netfilter::conntrack::DumpFilter;
use netfilter::flow::{Help, HelpInfo};
use nix::sched::{CloneFlags, unshare};

struct Nobody;

impl Committed for Nobody {
    fn committed(&mut self, _: &mut Replica, _: PeerId, _: u32) {}
}

/// A node with a peer that owns these connections.
fn replica(flows: &[Flow]) -> Replica {
    let mut replica = Replica::new(Settings {
        name: "fw-2".into(),
        incarnation: 1,
        seed: Seed::from_bytes([1; 16]),
        limit: 100,
        credit: 16,
    });
    replica.add_peer();
    let copy = &mut replica.peers[0].inbound.store;
    for flow in flows {
        let (mut bytes, mut key) = (Vec::new(), Vec::new());
        record::put_flow(&mut bytes, flow).unwrap();
        record::put_flow_key(&mut key, flow).unwrap();
        let entry = Entry {
            key: copy.key(&key),
            bytes: &bytes,
            expect: false,
            deadline: 3600,
        };
        copy.put(&entry).unwrap();
    }
    replica
}

fn commit(replica: &mut Replica) -> Report {
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
    let dump = |buf: &mut Vec<u8>, seq| conntrack::dump(buf, &DumpFilter::default(), seq);
    let each = |m: &netfilter::Message<'_>| {
        found.extend(conntrack::Event::decode(m).unwrap().map(|e| e.flow));
    };
    let mut socket = Socket::open().unwrap();
    socket.exchange("dumping", dump, each).unwrap();
    found
}

/// In a namespace of its own; `None` where that takes more rights.
fn apart<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let inside = || unshare(CloneFlags::CLONE_NEWNET).ok().map(|()| f());
    std::thread::spawn(inside).join().unwrap()
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
        return eprintln!("skipped: a network namespace needs root");
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

#[test]
fn a_missing_helper_is_told_beforehand() {
    let outcome = apart(|| {
        let helpers = BTreeMap::from([("lab-absent".to_owned(), 3)]);
        (preflight::problems(&helpers, 0), kernel())
    });
    let Some((problems, kernel)) = outcome else {
        return eprintln!("skipped: a network namespace needs root");
    };
    let wanted = "helper lab-absent is not registered; 3 connections would be committed without it";
    assert!(problems.iter().any(|p| p == wanted), "{problems:?}");
    assert!(kernel.is_empty());
}
