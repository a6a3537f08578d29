//! Makes the tables of docs/ftp-helpers.md of what tests recorded in
//! target/lab/results (or the file named): the latest result of a kind counts.
//!
//! `cargo xtask test --full ftp_matrix`, `native_matrix` and `script` record.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};
use lab::ftp::adversary::{CASES, Wanted};

const OURS: &str = "nft-ftp-helper";
const CONNTRACKDS: &str = "conntrackd";
const KERNELS: &str = "nf_conntrack_ftp";

/// Results by what they are about: everything in a line but its last two
/// fields, which are the result and the kernel.
type Results<'a> = BTreeMap<Vec<&'a str>, (&'a str, &'a str)>;

/// How many of how many cases passed, by helper.
type Passed<'a> = BTreeMap<&'a str, (u32, u32)>;

fn main() -> Result<()> {
    let path = std::env::args().nth(1);
    let path = path.unwrap_or_else(|| "target/lab/results".to_owned());
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let results = parse(&text);
    print!("{}\n{}", matrix(&results), script(&results));
    Ok(())
}

fn parse(text: &str) -> Results<'_> {
    let lines = text.lines().filter_map(|line| {
        let fields: Vec<_> = line.split('\t').collect();
        let (about, [result, kernel]) = fields.split_last_chunk()?;
        Some((about.to_vec(), (*result, *kernel)))
    });
    lines.collect()
}

/// How many of the cases passed, by server, NAT and helper.
fn matrix(results: &Results<'_>) -> String {
    let mut rows = BTreeMap::<_, Passed<'_>>::new();
    for (about, (result, _)) in results {
        if let ["matrix", helper, server, nat, ..] = about.as_slice() {
            let row = rows.entry((server, nat)).or_default();
            let (passed, all) = row.entry(helper).or_default();
            *passed += u32::from(*result == "pass");
            *all += 1;
        }
    }
    let mut table = header("server | NAT", results, "matrix", &[OURS, KERNELS]);
    for ((server, nat), row) in rows {
        let cell = |helper| match row.get(helper) {
            Some((passed, all)) => format!("{passed} of {all}"),
            None => "not run".to_owned(),
        };
        let (ours, kernels) = (cell(OURS), cell(KERNELS));
        let _ = writeln!(table, "| {server} | {nat} | {ours} | {kernels} |");
    }
    table
}

/// What became of each scripted dialogue.
fn script(results: &Results<'_>) -> String {
    let helpers = [OURS, CONNTRACKDS, KERNELS];
    let mut table = header("dialogue | wanted", results, "script", &helpers);
    for case in CASES {
        let cell = |helper| {
            let about: &[&str] = &["script", helper, case.name];
            results.get(about).map_or("not run", |(result, _)| result)
        };
        let wanted = match case.wanted {
            Wanted::Open => "open",
            Wanted::Closed => "closed",
        };
        let outcomes = helpers.map(cell).join(" | ");
        let _ = writeln!(table, "| {} | {wanted} | {outcomes} |", case.name);
    }
    table
}

/// The head of a table with a column per helper and its kernels.
fn header(columns: &str, results: &Results<'_>, kind: &str, helpers: &[&str]) -> String {
    let of = |wanted: &&str| {
        let mut kernels: Vec<_> = results
            .iter()
            .filter(|(about, _)| about.starts_with(&[kind, wanted]))
            .map(|(_, (_, kernel))| version(kernel))
            .collect();
        kernels.sort_unstable();
        kernels.dedup();
        format!(" {wanted} ({}) |", kernels.join(", "))
    };
    let names: String = helpers.iter().map(of).collect();
    let rule = "---|".repeat(2 + helpers.len());
    format!("| {columns} |{names}\n|{rule}\n")
}

/// Major and minor version in a kernel's release.
fn version(release: &str) -> &str {
    let dots = release.match_indices('.');
    let end = dots.skip(1).map(|(at, _)| at).next();
    release
        .get(..end.unwrap_or(release.len()))
        .unwrap_or(release)
}
