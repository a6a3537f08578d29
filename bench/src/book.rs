//! What was measured: rows of samples per contender, as a table and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Less is better.
    Less,
    /// More is better.
    More,
}

/// What our value is compared with for a target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A multiple of the peer's.
    Peer(f64),
    /// A multiple of the limit.
    Limit(f64),
    /// A value.
    Value(f64),
}

/// Whose sample it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// This workspace's program.
    Ours,
    /// conntrackd, nft or the kernel's helper.
    Peer,
    /// A minimal loop of our own, or the kernel without any of us.
    Limit,
}

/// A row before it has samples.
#[derive(Debug, Clone)]
pub struct Metric {
    /// What is measured.
    pub name: String,
    /// Unit of every sample.
    pub unit: &'static str,
    /// Which direction is good.
    pub better: Better,
    /// Who the peer is.
    pub peer: &'static str,
    /// What is wanted.
    pub target: Option<Target>,
}

impl Metric {
    /// A row where less is better and conntrackd is the peer.
    pub fn less(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            better: Better::Less,
            peer: "conntrackd",
            target: None,
        }
    }

    /// The same where more is better.
    pub fn more(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            better: Better::More,
            ..Self::less(name, unit)
        }
    }

    /// Against somebody else.
    pub fn against(self, peer: &'static str) -> Self {
        Self { peer, ..self }
    }

    /// What is wanted.
    pub fn target(self, target: Target) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }
}

/// Samples of one contender.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Series {
    median: f64,
    min: f64,
    max: f64,
    samples: Vec<f64>,
    /// What the samples' parts give together, where that says more than a median.
    #[serde(default)]
    whole: Option<f64>,
}

impl Series {
    fn value(&self) -> f64 {
        self.whole.unwrap_or(self.median)
    }

    fn push(&mut self, value: f64) {
        self.samples.push(value);
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        self.median = if sorted.len() % 2 == 0 {
            f64::midpoint(at(middle - 1), at(middle))
        } else {
            at(middle)
        };
        (self.min, self.max) = (at(0), at(sorted.len() - 1));
    }

    fn shown(&self) -> String {
        if self.samples.is_empty() {
            return "-".to_owned();
        }
        if self.samples.len() == 1 {
            return number(self.value());
        }
        let (value, min, max) = (number(self.value()), number(self.min), number(self.max));
        format!("{value} ({min} to {max})")
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    name: String,
    unit: String,
    better: Better,
    peer_name: String,
    ours: Series,
    peer: Series,
    limit: Series,
    ratio: Option<f64>,
    ratio_to_limit: Option<f64>,
    target: Option<Target>,
    holds: Option<bool>,
}

impl Row {
    fn new(metric: &Metric) -> Self {
        Self {
            name: metric.name.clone(),
            unit: metric.unit.to_owned(),
            better: metric.better,
            peer_name: metric.peer.to_owned(),
            ours: Series::default(),
            peer: Series::default(),
            limit: Series::default(),
            ratio: None,
            ratio_to_limit: None,
            target: metric.target,
            holds: None,
        }
    }

    fn series(&mut self, who: Who) -> &mut Series {
        match who {
            Who::Ours => &mut self.ours,
            Who::Peer => &mut self.peer,
            Who::Limit => &mut self.limit,
        }
    }

    fn settle(&mut self) {
        self.ratio = ratio(&self.ours, &self.peer);
        self.ratio_to_limit = ratio(&self.ours, &self.limit);
        let (value, bound) = match self.target {
            None => (None, 0.0),
            Some(Target::Peer(bound)) => (self.ratio, bound),
            Some(Target::Limit(bound)) => (self.ratio_to_limit, bound),
            Some(Target::Value(bound)) if self.ours.samples.is_empty() => (None, bound),
            Some(Target::Value(bound)) => (Some(self.ours.value()), bound),
        };
        self.holds = value.map(|value| match self.better {
            Better::Less => value <= bound,
            Better::More => value >= bound,
        });
    }

    fn verdict(&self) -> String {
        let sign = match self.better {
            Better::Less => "<=",
            Better::More => ">=",
        };
        let Some(target) = self.target else {
            return String::new();
        };
        let wanted = match target {
            Target::Peer(bound) => format!("{sign} {bound}x"),
            Target::Limit(bound) => format!("{sign} {bound}x limit"),
            Target::Value(bound) => format!("{sign} {bound}"),
        };
        match self.holds {
            Some(true) => format!("{wanted}  held"),
            Some(false) => format!("{wanted}  MISSED"),
            None => wanted,
        }
    }
}

fn ratio(ours: &Series, other: &Series) -> Option<f64> {
    let both = !ours.samples.is_empty() && !other.samples.is_empty();
    (both && other.value() != 0.0).then(|| ours.value() / other.value())
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        a if a >= 100.0 || a == 0.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Where it was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    memory_mib: u64,
    load: String,
}

impl Machine {
    fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|rest| rest.trim_matches([' ', '\t', ':']).to_owned())
                .unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.trim_end_matches(" kB").parse::<u64>();
        Self {
            kernel: kernel_version(&read("/proc/version")),
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory.unwrap_or(0) / 1024,
            load: read("/proc/loadavg").trim().to_owned(),
        }
    }
}

/// The upstream version: Debian has it after its name, as its release stays the
/// same for as long as modules fit. What else a builder calls it says nothing.
fn kernel_version(version: &str) -> String {
    let mut words = version.split_whitespace();
    let release = words.nth(2).unwrap_or_default();
    let debian = words.skip_while(|word| *word != "Debian").nth(1);
    let text = debian.unwrap_or(release);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let number = end.map_or(text, |end| text.split_at(end).0);
    number.trim_end_matches('.').to_owned()
}

/// All rows of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Book {
    machines: Vec<Machine>,
    rows: Vec<Row>,
}

impl Book {
    /// Adds a sample; the row is made when it is the first.
    pub fn add(&mut self, metric: &Metric, who: Who, value: f64) {
        self.put(metric, who, value, None);
    }

    /// Adds a sample, and in place of their median what all of them are together: a
    /// quantile of everything that was measured, say, where each sample is one of a
    /// part.
    pub fn add_part(&mut self, metric: &Metric, who: Who, value: f64, whole: f64) {
        self.put(metric, who, value, Some(whole));
    }

    fn put(&mut self, metric: &Metric, who: Who, value: f64, whole: Option<f64>) {
        if self.machines.is_empty() {
            self.machines.push(Machine::here());
        }
        let row = self.row(metric);
        let series = row.series(who);
        series.push(value);
        series.whole = whole;
        row.settle();
    }

    /// Makes rows in this order, whose sample comes first.
    pub fn begin(&mut self, metrics: &[&Metric]) {
        for metric in metrics {
            self.row(metric);
        }
    }

    fn row(&mut self, metric: &Metric) -> &mut Row {
        if !self.rows.iter().any(|row| row.name == metric.name) {
            self.rows.push(Row::new(metric));
        }
        let row = self.rows.iter_mut().find(|row| row.name == metric.name);
        row.expect("it was added")
    }

    /// Adds another run's rows.
    pub fn append(&mut self, mut other: Self) {
        self.machines.append(&mut other.machines);
        self.rows.append(&mut other.rows);
    }

    /// Reads what [`Book::write`] wrote.
    ///
    /// # Errors
    /// If it isn't there, or isn't that.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// With what the system says about the path.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }

    /// The table for people: medians, or what is in their place, with the smallest
    /// and the largest sample.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for m in &self.machines {
            let _ = writeln!(
                out,
                "{}, {} cores, {} MiB, kernel {}, load {}",
                m.processor, m.cores, m.memory_mib, m.kernel, m.load
            );
        }
        let head = ["", "unit", "ours", "peer", "limit", "ours/peer", "target"];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(self.rows.iter().map(cells));
        let widths = (0..head.len()).map(|i| {
            let of = |line: &[String; 7]| line.get(i).map_or(0, |cell| cell.chars().count());
            lines.iter().map(of).max().unwrap_or(0)
        });
        let widths: Vec<_> = widths.collect();
        for line in &lines {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "{cell:<width$}  ");
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
        out
    }
}

fn cells(row: &Row) -> [String; 7] {
    let mut peer = row.peer.shown();
    if row.peer_name != "conntrackd" && !row.peer.samples.is_empty() {
        peer = format!("{}: {peer}", row.peer_name);
    }
    [
        row.name.clone(),
        row.unit.clone(),
        row.ours.shown(),
        peer,
        row.limit.shown(),
        row.ratio.map_or_else(String::new, |r| format!("{r:.2}x")),
        row.verdict(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let mut series = Series::default();
        for value in [4.0, 1.0, 3.0, 2.0] {
            series.push(value);
        }
        assert_eq!((series.median, series.min, series.max), (2.5, 1.0, 4.0));
    }

    #[test]
    fn what_all_samples_give_together_stands_in_for_their_median() {
        let metric = Metric::less("x", "s").target(Target::Peer(0.5));
        let mut book = Book::default();
        for (part, whole) in [(1.0, 1.0), (3.0, 4.0)] {
            book.add_part(&metric, Who::Ours, part, whole);
        }
        book.add(&metric, Who::Peer, 10.0);
        assert!(
            book.table().contains("4.00 (1.00 to 3.00)"),
            "{}",
            book.table()
        );
        assert!(book.table().contains("0.40x"), "{}", book.table());
    }

    #[test]
    fn a_kernel_is_called_by_its_upstream_version() {
        for (version, wanted) in [
            (
                "Linux version 6.18.44-name (user@host) (gcc 15.3.0) #1 SMP",
                "6.18.44",
            ),
            (
                "Linux version 6.1.0-50-amd64 (debian-kernel@lists.debian.org) (gcc-12 \
                 (Debian 12.2.0-14) 12.2.0) #1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-01)",
                "6.1.176",
            ),
        ] {
            assert_eq!(kernel_version(version), wanted);
        }
    }

    #[test]
    fn a_target_says_whether_it_is_held() {
        let metric = Metric::less("x", "s").target(Target::Peer(0.5));
        let mut book = Book::default();
        book.add(&metric, Who::Peer, 10.0);
        assert_eq!(book.rows.first().and_then(|row| row.holds), None);
        book.add(&metric, Who::Ours, 5.0);
        assert_eq!(book.rows.first().and_then(|row| row.holds), Some(true));
        book.add(&metric, Who::Ours, 7.0);
        assert!(book.table().contains("0.60x"), "{}", book.table());
        assert!(book.table().contains("MISSED"), "{}", book.table());
    }
}
