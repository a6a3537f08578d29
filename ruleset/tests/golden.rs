//! Policies beside the text and JSON they are lowered to.
//!
//! `GOLDEN=write cargo test -p nft-ftp-ruleset --test golden` writes the
//! expected files anew; read what changed before you commit it.

use std::fs;
use std::path::{Path, PathBuf};

use nft_ftp_ruleset::{input, render};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn policies() -> Vec<PathBuf> {
    let entries = fs::read_dir(directory()).expect("golden directory");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    paths.sort();
    assert!(paths.len() > 5, "policies are found");
    paths
}

fn check(path: &Path, found: &str) {
    if std::env::var("GOLDEN").as_deref() == Ok("write") {
        fs::write(path, found).expect("golden file is written");
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(found, expected, "{}", path.display());
}

#[test]
fn text_is_as_expected() {
    for path in policies() {
        let input = input::read(Some(&path)).expect("valid policy");
        let mut text = String::new();
        render::nft::render(&input.ruleset, &mut text).expect("text");
        check(&path.with_extension("nft"), &text);
    }
}

#[test]
fn json_is_as_expected() {
    for path in policies() {
        let input = input::read(Some(&path)).expect("valid policy");
        let json = render::json::render(&input.ruleset);
        let text = serde_json::to_string_pretty(&json).expect("JSON") + "\n";
        check(&path.with_extension("json"), &text);
    }
}
