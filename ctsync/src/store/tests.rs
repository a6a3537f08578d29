use super::*;
use std::collections::{BTreeMap, BTreeSet};

fn entry(store: &Store, key: u32, body: &[u8]) -> (u64, Vec<u8>) {
    let mut bytes = key.to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    (store.key(&key.to_be_bytes()), bytes)
}

fn put(store: &mut Store, key: u32, body: &[u8]) -> (u32, Change) {
    let (k, bytes) = entry(store, key, body);
    let e = Entry {
        key: k,
        bytes: &bytes,
        expect: key % 5 == 0,
        deadline: 7,
    };
    store.put(&e).unwrap()
}

fn key_of(b: &[u8]) -> Option<&[u8]> {
    b.get(..4)
}

#[test]
fn put_tells_new_from_changed_from_same() {
    let mut s = Store::new(Seed::default(), 10);
    assert_eq!(put(&mut s, 1, b"a").1, Change::New);
    assert_eq!(put(&mut s, 1, b"a").1, Change::Same);
    let root = s.digests().root();
    assert_eq!(put(&mut s, 1, b"b").1, Change::Changed);
    assert_ne!(s.digests().root(), root);
    assert_eq!(put(&mut s, 1, b"a").1, Change::Changed);
    assert_eq!(s.digests().root(), root);
    assert_eq!((s.flows(), s.expectations()), (1, 0));
}

#[test]
fn tombstones_leave_digests_and_can_live_again() {
    let mut s = Store::new(Seed::default(), 10);
    let (i, _) = put(&mut s, 5, b"a");
    let root = s.digests().root();
    s.kill(i);
    assert_eq!((s.digests().root(), s.len()), (0, 0));
    assert!(s.slot(i).unwrap().is_tomb());
    assert_eq!(put(&mut s, 5, b"a"), (i, Change::New));
    assert_eq!((s.digests().root(), s.expectations()), (root, 1));
    s.remove(i);
    assert_eq!(s.slot(i).map(|s| s.key), None);
    assert_eq!(s.find(s.key(&5_u32.to_be_bytes())), None);
}

fn try_put(s: &mut Store, key: u32) -> Result<(u32, Change), NoRoom> {
    let (key, bytes) = entry(s, key, b"");
    s.put(&Entry {
        key,
        bytes: &bytes,
        expect: false,
        deadline: 0,
    })
}

#[test]
fn the_limit_refuses_only_new_records() {
    let mut s = Store::new(Seed::default(), 2);
    put(&mut s, 1, b"");
    put(&mut s, 2, b"");
    assert_eq!(try_put(&mut s, 3), Err(NoRoom));
    assert_eq!(put(&mut s, 1, b"x").1, Change::Changed);
}

#[test]
fn tombstones_take_no_room_from_records_and_are_bounded_themselves() {
    let mut s = Store::new(Seed::default(), 4);
    let planted: Vec<_> = (100..110).filter(|k| s.plant(*k).is_ok()).collect();
    assert_eq!(planted, [100, 101]);
    let made: Vec<_> = (0..20).map_while(|k| try_put(&mut s, k).ok()).collect();
    assert_eq!(made.len(), 4);
    // What is deleted leaves a tombstone each, and then there is an end.
    for k in 10..30 {
        s.kill(made[k % 4].0);
        let _ = try_put(&mut s, u32::try_from(k).unwrap());
    }
    assert!(s.slots() <= 8 && s.len() <= 4);
    // A tombstone that lives again counts as new.
    s.clear();
    let (dead, _) = put(&mut s, 1, b"");
    s.kill(dead);
    for k in 2..6 {
        put(&mut s, k, b"");
    }
    assert_eq!(try_put(&mut s, 1), Err(NoRoom));
}

#[test]
fn a_refused_record_counts_in_the_digest_but_has_no_bytes() {
    let mut a = Store::new(Seed::default(), 2);
    let mut b = Store::new(Seed::default(), 2);
    put(&mut a, 1, b"odd");
    let (key, bytes) = entry(&b, 1, b"odd");
    let e = Entry {
        key,
        bytes: &bytes,
        expect: false,
        deadline: 0,
    };
    let i = b.put_refused(&e).unwrap();
    assert_eq!(a.digests().root(), b.digests().root());
    assert_eq!(b.bytes(b.slot(i).unwrap()), b"");
    assert_eq!(put(&mut b, 1, b"good").1, Change::Changed);
    assert!(!b.slot(i).unwrap().flags.contains(Flags::REFUSED));
}

/// Random operations against a map: same content, and digests that depend on
/// the content alone.
#[test]
fn store_equals_a_map_whatever_the_order() {
    let mut rng = crate::rng::Rng::new(1);
    let mut s = Store::new(Seed::default(), 10_000);
    let mut model = BTreeMap::new();
    for _ in 0..20_000 {
        let key = rng.below(500);
        if rng.below(3) == 0 {
            if let Some(i) = s.find(s.key(&key.to_be_bytes())) {
                s.remove(i);
            }
            model.remove(&key);
        } else {
            let body = vec![7; rng.below(60) as usize];
            put(&mut s, key, &body);
            model.insert(key, body);
        }
    }
    let mut fresh = Store::new(Seed::default(), 10_000);
    for (k, body) in &model {
        put(&mut fresh, *k, body);
    }
    assert_eq!(fresh.len(), s.len());
    assert_eq!(fresh.digests().root(), s.digests().root());
    assert_eq!(fresh.digests().groups(), s.digests().groups());
    let seen: BTreeSet<u32> = (0..=Leaf::MAX)
        .flat_map(|l| s.leaf(l).map(|(i, _)| i).collect::<Vec<_>>())
        .collect();
    assert_eq!(seen.len(), s.len(), "every record is in its leaf's list");
    assert_eq!(s.live().count(), s.len());

    let seed = Seed::from_bytes([3; 16]);
    s.reseed(seed, key_of);
    fresh.reseed(seed, key_of);
    assert_eq!(fresh.digests().root(), s.digests().root());
    assert_eq!(s.len(), model.len());
}

#[test]
fn a_slot_is_40_bytes() {
    assert_eq!(size_of::<Slot>(), 40);
}
