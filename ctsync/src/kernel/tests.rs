//! Dumps that go wrong, and what happens meanwhile.

use super::*;
use crate::commit::tests::{apart, commit, replica};
use crate::config;
use crate::record::tests::tcp;

/// Against a kernel that is in the middle of a dump and goes on with it only
/// for somebody who reads.
#[test]
fn a_dump_that_broke_off_is_begun_again() {
    let outcome = apart(|| {
        let flows: Vec<_> = (0..600).map(tcp).collect();
        let committed = commit(&mut replica(&flows)).flows;
        let settings = config::Kernel::default();
        let filter = Filter::default();
        let mut kernel = Kernel::open(&settings, &filter, &[]).unwrap();
        let (mut tracker, mut own) = (Tracker::new(filter), replica(&[]));
        let mut now = Duration::from_secs(1);
        kernel.reconcile();
        assert!(kernel.poll(&mut tracker, &mut own, now).unwrap());
        assert!(kernel.leave_dump(&mut tracker, &mut own, now).unwrap());
        assert!(
            !kernel.poll(&mut tracker, &mut own, now).unwrap(),
            "at once"
        );
        let mut begun = 0;
        for _ in 0..10 {
            now += REST;
            begun += u32::from(kernel.poll(&mut tracker, &mut own, now).unwrap());
            kernel.on_dump(&mut tracker, &mut own, now).unwrap();
        }
        (committed, begun, tracker.counts.reconciled, own.own.flows())
    });
    if let Some(outcome) = outcome {
        assert_eq!(outcome, (600, 1, 1, 600));
    }
}

/// A dump has passed it by while it was a peer's.
#[test]
fn what_is_adopted_during_a_dump_stays() {
    let (mut tracker, mut own) = (Tracker::default(), replica(&[]));
    let now = Duration::from_secs(1);
    tracker.begin_dump(&mut own, true);
    tracker.adopt(&mut own, &tcp(1), now);
    tracker.end_dump(&mut own, true, now);
    assert_eq!(own.own.flows(), 1);
}
