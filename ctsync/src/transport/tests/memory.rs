//! What is left of keys in this process's memory.

use super::*;
use crate::transport::noise::tests::complements;
use std::fs::File;
use std::os::unix::fs::FileExt;
use zeroize::Zeroizing;

const CHUNK: usize = 1 << 16;

/// Everything this process can write to, read through a buffer that keeps
/// nothing.
fn for_each_chunk(mut look: impl FnMut(&[u8])) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut chunk = Zeroizing::new(vec![0; CHUNK]);
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (range, _) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let [mut from, to] = [from, to].map(|n| u64::from_str_radix(n, 16).unwrap());
        while from < to {
            // Another test's memory may be gone by now.
            let Ok(length @ 1..) = memory.read_at(&mut chunk, from) else {
                break;
            };
            let length = length.min(usize::try_from(to - from).unwrap());
            look(&chunk[..length]);
            // A key may lie across the end.
            let all = from + u64::try_from(length).unwrap() >= to;
            from += u64::try_from(if all { length } else { length - 31 }).unwrap();
        }
    }
}

/// Which of the keys with these complements are in memory.
fn found(complements: &[[u8; 32]]) -> Vec<bool> {
    let mut found = vec![false; complements.len()];
    let mut begins = [false; 256];
    for key in complements {
        begins[usize::from(!key[0])] = true;
    }
    for_each_chunk(|chunk| {
        for (at, byte) in chunk.iter().enumerate() {
            if begins[usize::from(*byte)] {
                let rest = &chunk[at..];
                for (key, found) in complements.iter().zip(&mut found) {
                    let same = rest.len() >= 32 && key.iter().zip(rest).all(|(k, b)| !k == *b);
                    *found |= same;
                }
            }
        }
    });
    found
}

/// Once a session has ended, neither its keys nor those of its handshake,
/// private ones included, are anywhere in memory: not where the sessions were,
/// and not on the stack.
#[test]
fn no_key_of_a_session_that_has_ended_is_in_memory() {
    let mut p = Pair::new();
    p.run(Duration::from_millis(200));
    assert!(p.say(0, b"hello") && p.say(1, b"world"));
    let keys = complements();
    let before = found(&keys);
    // One for each direction, known to both.
    let in_use = before.iter().filter(|found| **found).count();
    assert!(in_use >= 4, "{before:?}");
    for at in [0, 1] {
        assert!(p.know(at, PeerKeys::of(secret(77).public())));
        assert_eq!(p.made_with(at), None);
    }
    let after = found(&keys);
    assert!(!after.contains(&true), "{before:?}, {after:?}");
}
