//! Promises in docs/security.md name the tests that show them; they exist.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust text of the workspace that may hold tests.
fn sources(directory: &Path, all: &mut String) {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, all);
        } else if name.ends_with(".rs") {
            all.push_str(&fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// Words in backticks that can only be names of tests.
fn named(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.matches('_').count() >= 2 && word.chars().all(letters)
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

#[test]
fn every_promise_names_tests_that_exist() {
    let text = fs::read_to_string(root().join("docs/security.md")).expect("the document");
    let mut all = String::new();
    sources(&root(), &mut all);
    let names = named(&text);
    assert!(names.len() > 40, "{} tests are named", names.len());
    for name in names {
        let test = format!("fn {name}(");
        let before = all.split(&test).next().expect("a part");
        assert!(before.len() < all.len(), "no test {name}");
        let marked = before
            .rfind("#[test]")
            .is_some_and(|at| before.len() - at < 300);
        assert!(marked, "{name} is no test");
    }
    let mut promises = false;
    for line in text.lines() {
        match line {
            _ if line.ends_with("| shown by |") => promises = true,
            _ if !line.starts_with("| ") => promises &= line.starts_with("|-"),
            _ => assert!(!promises || line.contains('`'), "nothing shows: {line}"),
        }
    }
}
