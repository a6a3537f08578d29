//! Tests that do not run say so. Included by the tests of other crates, too.

use std::fs::OpenOptions;
use std::io::Write;

/// Says that a test is skipped, because of what is missing here.
///
/// # Panics
/// If `LAB=required`.
pub fn missing(test: &str, what: &str) {
    assert!(
        std::env::var("LAB").as_deref() != Ok("required"),
        "LAB=required, but {test}: needs {what}"
    );
    left_out(test, &format!("needs {what}"));
}

/// Says on stderr that a test is left out, and in the file named by
/// `LAB_SKIPS`, so that a runner counts it as skipped rather than passed.
///
/// # Panics
/// If that can't be written.
pub fn left_out(test: &str, why: &str) {
    // Not eprintln!: libtest would swallow it.
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {why}");
    if let Some(path) = std::env::var_os("LAB_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        // In one piece: other tests write, too.
        let line = format!("{test}: {why}\n");
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        assert!(written.is_ok(), "LAB_SKIPS: {written:?}");
    }
}
