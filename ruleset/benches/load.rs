//! Loading 100,000 addresses: this program from the policy, and nft from the
//! text that was generated before, in turns.
//!
//!     cargo bench -p nft-ftp-ruleset --bench load [-- ROUNDS]
//!
//! Each run is a process of its own in a network namespace of its own, so
//! needs root. Time is the program's, from start to end; memory is its peak
//! (`ru_maxrss`).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nft-ftp-ruleset");
const ADDRESSES: u32 = 100_000;
const ROUNDS: usize = 11;

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((first, command)) if first == "measure" => measure(command),
        _ => compare(
            args.iter()
                .find_map(|arg| arg.parse().ok())
                .unwrap_or(ROUNDS),
        ),
    }
}

/// Runs one command in a fresh namespace and prints nanoseconds and KiB.
fn measure(command: &[String]) {
    let (program, args) = command.split_first().expect("a command");
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: needs root");
    let start = Instant::now();
    let status = Command::new(program).args(args).status();
    let took = start.elapsed();
    assert!(status.expect("program starts").success(), "{command:?}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    println!("{} {}", took.as_nanos(), usage.max_rss());
}

/// What runs of one kind took.
struct Runs {
    name: &'static str,
    command: Vec<String>,
    times: Vec<Duration>,
    peak_kib: u64,
}

impl Runs {
    fn new(name: &'static str, command: &[&str]) -> Self {
        Self {
            name,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            times: Vec::new(),
            peak_kib: 0,
        }
    }

    fn once(&mut self) {
        let output = Command::new(std::env::current_exe().expect("path of this program"))
            .arg("measure")
            .args(&self.command)
            .stderr(Stdio::inherit())
            .output()
            .expect("measurement starts");
        assert!(output.status.success(), "{:?}", self.command);
        let text = String::from_utf8(output.stdout).expect("numbers");
        let (nanoseconds, kib) = text.trim().split_once(' ').expect("two numbers");
        let nanoseconds = nanoseconds.parse().expect("a number");
        self.times.push(Duration::from_nanos(nanoseconds));
        self.peak_kib = self.peak_kib.max(kib.parse().expect("a number"));
    }

    fn report(&mut self) {
        self.times.sort();
        let median = self.times.get(self.times.len() / 2).copied();
        let (first, last) = (self.times.first(), self.times.last());
        println!(
            "{:<28} median {:>7.1?}  ({:.1?} to {:.1?}, {} runs)  peak {:.1} MiB",
            self.name,
            median.unwrap_or_default(),
            first.copied().unwrap_or_default(),
            last.copied().unwrap_or_default(),
            self.times.len(),
            f64::from(u32::try_from(self.peak_kib).unwrap_or(u32::MAX)) / 1024.0
        );
    }
}

fn compare(rounds: usize) {
    let dir = tempfile::tempdir().expect("directory");
    let policy = write_policy(dir.path());
    let text = dir.path().join("ruleset.nft").display().to_string();
    let generate = ["generate", "--config", &policy, "-o", &text];
    let status = Command::new(PROGRAM).args(generate).status();
    assert!(status.expect("program starts").success());
    let mut all = [
        Runs::new(
            "nft-ftp-ruleset load",
            &[PROGRAM, "load", "--config", &policy],
        ),
        Runs::new("nft -f", &["nft", "-f", &text]),
    ];
    for _ in 0..rounds {
        all.iter_mut().for_each(Runs::once);
    }
    println!("{ADDRESSES} addresses");
    all.iter_mut().for_each(Runs::report);
}

/// A policy with single IPv4 addresses, none next to another.
fn write_policy(dir: &Path) -> String {
    let addresses: String = (0..ADDRESSES)
        .map(|n| format!("{}\n", std::net::Ipv4Addr::from(0x0a00_0000 + 2 * n)))
        .collect();
    std::fs::write(dir.join("servers.txt"), addresses).expect("addresses");
    let policy = dir.join("policy.toml");
    let text = "[addresses.servers]\nfile = \"servers.txt\"\n\
                [[helper]]\ntype = \"ftp\"\nservers = \"servers\"\n";
    std::fs::write(&policy, text).expect("policy");
    policy.display().to_string()
}
