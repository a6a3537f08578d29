//! Where the programs spend their processor time, as `perf` samples it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::shell::command;

/// Samples a second and processor. Odd, so as not to be in step with timers.
const RATE: &str = "4999";

/// Programs that are reported, as the kernel calls them.
const PROGRAMS: &[&str] = &[
    "ctsync",
    "conntrackd",
    "nft-ftp-ruleset",
    "nft",
    "nft-ftp-helper",
    // The least helper there can be.
    "least",
    // The injector and the loops of the limit rows.
    "bench",
];

/// Functions that are named, of each program.
const FUNCTIONS: usize = 15;

/// `program`, all processors sampled until it ends.
pub fn sampled(program: &str, samples: &Path) -> Command {
    let mut perf = command("perf", &["record", "-q", "-a", "-F", RATE]);
    // Counters of the processor are rarely there in a virtual machine.
    perf.args(["-e", "cpu-clock", "-o"]);
    perf.arg(samples).args(["--", program]);
    perf
}

/// What was sampled, as text, to be read by [`print`]. One report of everything:
/// perf leaves the kernel out of a program's.
pub fn text(samples: &Path) -> Command {
    let args = ["report", "--stdio", "-t", "|", "--sort", "comm,dso,symbol"];
    let mut perf = command("perf", &args);
    perf.arg("-i").arg(samples);
    perf
}

/// Prints where each program has spent its time.
pub fn print(text: &str) {
    let spent = spent(text);
    for program in PROGRAMS {
        let of = |what: fn(&Spent) -> (String, f64)| {
            let own = spent.iter().filter(|s| s.program == *program);
            shares(own.map(what))
        };
        let objects = of(|s| (s.object.to_owned(), s.share));
        if objects.is_empty() {
            continue;
        }
        println!("\n{program}: where its processor time goes");
        let functions = of(|s| (format!("{} {}", s.object, s.function), s.share));
        for (what, percent) in objects.iter().chain(functions.iter().take(FUNCTIONS)) {
            println!("  {percent:5.1} %  {what}");
        }
    }
}

/// What a function has taken.
#[derive(Debug, PartialEq)]
struct Spent<'a> {
    program: &'a str,
    object: &'a str,
    function: &'a str,
    /// Percent of all that was sampled.
    share: f64,
}

fn spent(report: &str) -> Vec<Spent<'_>> {
    report.lines().filter_map(one).collect()
}

fn one(line: &str) -> Option<Spent<'_>> {
    let mut fields = line.split('|').map(str::trim);
    let share = fields.next()?.strip_suffix('%')?.parse().ok()?;
    let thread = fields.next()?;
    // The helper's threads that read packets have names of their own.
    let reads = thread.starts_with("queue-");
    Some(Spent {
        program: if reads { "nft-ftp-helper" } else { thread },
        object: fields.next()?,
        function: fields.next()?.split_once(' ')?.1,
        share,
    })
}

/// Percent of their sum that each takes, from half a percent on, the largest
/// first.
fn shares(all: impl Iterator<Item = (String, f64)>) -> Vec<(String, f64)> {
    let mut sums = BTreeMap::<_, f64>::new();
    for (what, share) in all {
        *sums.entry(what).or_default() += share;
    }
    let total: f64 = sums.values().sum();
    let mut shares: Vec<_> = sums
        .into_iter()
        .map(|(what, share)| (what, share * 100.0 / total))
        .filter(|(_, percent)| *percent >= 0.5)
        .collect();
    shares.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_perf_is_taken_apart() {
        let text = "# Overhead|Command|Shared Object|Symbol|IPC\n\n \
                    1.25%  |ctsync   |[kernel.kallsyms]  |[k] sock_rfree  |-  -\n";
        let expected = Spent {
            program: "ctsync",
            object: "[kernel.kallsyms]",
            function: "sock_rfree",
            share: 1.25,
        };
        assert_eq!(spent(text), [expected]);
        let text = "2.5%|queue-21|nft-ftp-helper|[.] core|-";
        let program = spent(text).first().map(|s| s.program);
        assert_eq!(program, Some("nft-ftp-helper"));
    }

    #[test]
    fn shares_are_of_the_sum() {
        let all = [("a", 1.0), ("b", 3.0), ("a", 1.0), ("c", 0.01)];
        let all = all.map(|(name, share)| (name.to_owned(), share));
        let names: Vec<_> = shares(all.into_iter()).into_iter().map(|s| s.0).collect();
        assert_eq!(names, ["b", "a"]);
    }
}
