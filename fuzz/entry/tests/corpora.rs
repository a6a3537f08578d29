//! Every committed corpus file, every seed and every prefix of a seed, into
//! the same functions that the fuzzer calls.

use fuzz_entry::{TARGETS, seeds};
use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(fuzz().join("corpus").join(target)) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .map(|e| e.expect("an entry").path())
        .map(|path| (path.clone(), std::fs::read(&path).expect("an input")))
        .collect();
    files.sort();
    files
}

/// Runs `body`; what it panics with names the input.
fn run(target: &str, name: &str, body: fn(&[u8]), input: &[u8]) {
    let outcome = std::panic::catch_unwind(|| body(input));
    assert!(outcome.is_ok(), "{target}: {name} fails");
}

#[test]
fn committed_inputs_find_nothing() {
    for (target, body) in TARGETS {
        let files = corpus(target);
        assert!(!files.is_empty(), "{target} has no corpus");
        for (path, input) in files {
            run(target, &path.display().to_string(), body, &input);
        }
    }
}

#[test]
fn seeds_and_their_prefixes_find_nothing() {
    for (target, body) in TARGETS {
        for (n, seed) in seeds::of(target).iter().enumerate() {
            let step = (seed.len() / 50).max(1);
            for len in (0..=seed.len()).step_by(step).chain([seed.len()]) {
                run(target, &format!("seed {n} to {len}"), body, &seed[..len]);
            }
        }
    }
}

/// A target that exists for the fuzzer only would not be replayed.
#[test]
fn every_target_has_a_fuzzer_and_every_fuzzer_here_a_target() {
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).expect("the manifest");
    for (target, _) in TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{target}\"")),
            "{target}"
        );
    }
    let entries = std::fs::read_dir(fuzz().join("fuzz_targets")).expect("targets");
    for entry in entries {
        let path = entry.expect("an entry").path();
        let name = path
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let known = TARGETS.iter().any(|(t, _)| *t == name);
        assert!(known, "{name}");
    }
}
