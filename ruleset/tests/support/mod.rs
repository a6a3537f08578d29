//! Network namespaces for tests, and what to do when there are none.

#![allow(dead_code, reason = "no test file uses all of it")]

#[path = "../../../tests/src/skip.rs"]
mod skip;

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Path of the program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_nft-ftp-ruleset");

/// Whether kernel tests can run here; says what is missing, and fails if
/// `LAB=required`.
pub fn available() -> bool {
    let probe = Command::new("unshare")
        .args(["-n", "nft", "list", "ruleset"])
        .output();
    let missing = match probe {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    skip(&format!("root, unshare(1) and nft(8): {missing}"));
    false
}

/// Says that this test is skipped, and what it needs; fails if `LAB=required`.
pub fn skip(needs: &str) {
    skip::missing(std::thread::current().name().unwrap_or_default(), needs);
}

/// Runs a shell script in a network namespace of its own. `$PROGRAM` is the
/// program under test; `input` is its standard input and the file `$POLICY`.
pub fn in_namespace(script: &str, input: &str) -> Output {
    let mut policy = tempfile::NamedTempFile::new().expect("temporary file");
    policy
        .write_all(input.as_bytes())
        .expect("temporary file is written");
    let mut child = Command::new("unshare")
        .args(["-n", "bash", "-euc", script])
        .env("PROGRAM", PROGRAM)
        .env("POLICY", policy.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare starts");
    let mut stdin = child.stdin.take().expect("standard input");
    // A script that does not read its input may be gone already.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("script ends")
}

/// Standard output of a script that must succeed.
pub fn listing(script: &str, input: &str) -> String {
    let output = in_namespace(script, input);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{script}\n{errors}\ninput:\n{input}"
    );
    String::from_utf8(output.stdout).expect("text")
}
