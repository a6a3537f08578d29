//! Counting what passed, failed and was skipped, from what runners print.

use std::fmt;

/// The sum over all runners.
#[derive(Debug, Default)]
pub struct Tally {
    /// Checks and tests that passed.
    pub passed: usize,
    /// Names of those that failed.
    pub failed: Vec<String>,
    /// Names of those that did not run, and why.
    pub skipped: Vec<String>,
}

/// The numbers of `test result:` lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    lines: usize,
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Tally {
    /// One check passed.
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    /// One check failed.
    pub fn fail(&mut self, what: &str) {
        eprintln!("FAILED {what}");
        self.failed.push(what.to_owned());
    }

    /// Something did not run.
    pub fn skip(&mut self, what: &str) {
        self.skipped.push(what.to_owned());
    }

    /// True if nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.passed == 0 && self.failed.is_empty() && self.skipped.is_empty()
    }

    /// Adds what a runner of libtest binaries printed. A runner that printed
    /// no result has failed, and so has one that ended badly without naming
    /// a failed test.
    pub fn add(&mut self, runner: &str, output: &str, success: bool) {
        let counts = count(output);
        self.passed += counts.passed;
        let failed = names(output, "FAILED");
        for name in &failed {
            self.failed.push(format!("{runner}: {name}"));
        }
        for name in names(output, "ignored") {
            self.skipped.push(format!("{runner}: {name}"));
        }
        if counts.lines == 0 {
            self.fail(&format!("{runner}: printed no test result"));
        } else if failed.len() != counts.failed {
            self.fail(&format!(
                "{runner}: {} tests failed, {} are named",
                counts.failed,
                failed.len()
            ));
        } else if !success && failed.is_empty() {
            self.fail(&format!("{runner}: failed outside its tests"));
        }
    }

    /// Tests of this run that counted as passed, but were skipped: a line
    /// each, as the laboratory writes them to `LAB_SKIPS`.
    pub fn add_skips(&mut self, runner: &str, lines: &str) {
        for line in lines.lines() {
            self.passed = self.passed.saturating_sub(1);
            self.skipped.push(format!("{runner}: {line}"));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.skipped {
            writeln!(f, "skipped: {name}")?;
        }
        for name in &self.failed {
            writeln!(f, "failed: {name}")?;
        }
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped.len());
        writeln!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Sums the `test result: ok. 3 passed; 0 failed; 1 ignored; …` lines.
fn count(output: &str) -> Counts {
    let mut counts = Counts::default();
    for line in output.lines() {
        let Some(rest) = line.strip_prefix("test result: ") else {
            continue;
        };
        counts.lines += 1;
        counts.passed += number_before(rest, "passed");
        counts.failed += number_before(rest, "failed");
        counts.ignored += number_before(rest, "ignored");
    }
    counts
}

/// The number in front of a word: `3 passed;`.
fn number_before(text: &str, word: &str) -> usize {
    let mut before = "";
    for field in text
        .split([' ', ';', '.'])
        .filter(|field| !field.is_empty())
    {
        if field == word {
            return before.parse().unwrap_or(0);
        }
        before = field;
    }
    0
}

/// Names from `test NAME ... FAILED` or `... ignored[, reason]`.
///
/// The verdict may come on a later line, if the test printed something in
/// between: then only its result line names it, in the list of failures.
fn names(output: &str, verdict: &str) -> Vec<String> {
    let mut names: Vec<String> = output
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "))
        .filter(|(_, said)| said.starts_with(verdict))
        .map(|(name, said)| match said.split_once(", ") {
            Some((_, reason)) => format!("{name}: {reason}"),
            None => name.to_owned(),
        })
        .collect();
    if verdict == "FAILED" {
        let listed = listed_failures(output);
        if listed.len() > names.len() {
            names = listed;
        }
    }
    names
}

/// Names from the `failures:` list that ends a binary's output.
fn listed_failures(output: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut block: Vec<String> = Vec::new();
    for line in output.lines() {
        match line.strip_prefix("    ") {
            _ if line == "failures:" => block.clear(),
            Some(name) if !name.contains(' ') => block.push(name.to_owned()),
            _ if line.starts_with("test result: ") => names.append(&mut block),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
running 3 tests
test a ... ok
test b ... ignored, needs a moon
test c ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.31s

running 1 test
test d ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.31s
";

    const BAD: &str = "
running 2 tests
test a ... ok
test b ... FAILED

failures:

---- b stdout ----
    indented

failures:
    b

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s
";

    fn tally(output: &str, success: bool) -> Tally {
        let mut tally = Tally::default();
        tally.add("run", output, success);
        tally
    }

    #[test]
    fn results_of_several_binaries_are_summed() {
        let tally = tally(GOOD, true);
        assert_eq!(tally.passed, 3);
        assert_eq!(tally.skipped, ["run: b: needs a moon"]);
        assert_eq!(
            tally.to_string(),
            "skipped: run: b: needs a moon\n3 passed, 0 failed, 1 skipped\n"
        );
    }

    #[test]
    fn a_failed_test_is_named() {
        let tally = tally(BAD, false);
        assert_eq!(tally.failed, ["run: b"]);
        assert_eq!(tally.passed, 1);
    }

    #[test]
    fn a_failed_test_is_named_although_it_printed_something() {
        let noisy = BAD.replace("test b ... FAILED", "test b ... SKIP x\nFAILED");
        assert_eq!(tally(&noisy, false).failed, ["run: b"]);
    }

    #[test]
    fn a_runner_without_a_result_has_failed() {
        assert_eq!(tally("Segmentation fault\n", true).failed.len(), 1);
        assert_eq!(tally("", true).failed.len(), 1);
    }

    #[test]
    fn a_runner_that_ends_badly_after_good_results_has_failed() {
        assert_eq!(tally(GOOD, false).failed, ["run: failed outside its tests"]);
    }

    #[test]
    fn a_skip_of_the_laboratory_is_not_a_pass() {
        let mut tally = tally(GOOD, true);
        tally.add_skips("run", "vm_x::a: needs root\n");
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.skipped.len(), 2);
    }
}
