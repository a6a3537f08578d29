//! What differs between the table in the kernel and the one that is wanted.
//!
//! Order of objects, sets and chains does not matter, order of rules does.
//! Sets are compared by the addresses they hold, however they are written.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::elements::{Elements, coalesce, subtract};
use crate::ir::{Chain, ObjectKind, Owner, Policy, Ruleset, Set};
use crate::live::{self, Hooked, Kind, Live, raise};
use crate::plan::{same_object, same_set};
use crate::render::nft;

/// Everything that differs; empty if nothing does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Name of the table.
    pub table: String,
    /// Whether it is loaded at all.
    pub loaded: bool,
    /// What differs, in the order of the policy.
    pub differences: Vec<Difference>,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// What would have to be done.
    pub change: Change,
    /// The kind of thing: `table`, `ct helper`, `set`, `element`, `chain`, `rule`, …
    pub kind: &'static str,
    /// Set or chain that it is in.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What it is, in nft's spelling.
    pub text: String,
    /// Handle of what is in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<u64>,
}

/// What `load` would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Add what is missing.
    Add,
    /// Remove what no policy asks for.
    Remove,
}

impl Diff {
    /// True if nothing differs.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.differences.is_empty()
    }
}

impl Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.loaded {
            return writeln!(f, "table inet {} is not loaded", self.table);
        }
        let mut place = None;
        for difference in &self.differences {
            let sign = match difference.change {
                Change::Add => '+',
                Change::Remove => '-',
            };
            if difference.place != place {
                place.clone_from(&difference.place);
                if let Some(place) = &place {
                    writeln!(f, "  {place}:")?;
                }
            }
            let indent = if place.is_some() { "    " } else { "  " };
            let kind = match difference.kind {
                "rule" | "element" => String::new(),
                kind => format!("{kind} "),
            };
            writeln!(f, "{sign} {indent}{kind}{}", difference.text)?;
        }
        Ok(())
    }
}

/// Compares.
#[must_use]
pub fn diff(live: &Live, ruleset: &Ruleset) -> Diff {
    let mut diff = Diff {
        table: ruleset.table.clone(),
        loaded: live.table.is_some(),
        differences: Vec::new(),
    };
    if let Some(table) = live.table {
        diff.flags(table);
        diff.objects(live, ruleset);
        diff.sets(live, ruleset);
        diff.chains(live, ruleset);
        for name in &live.flowtables {
            diff.push(Change::Remove, "flowtable", None, name.clone(), None);
        }
    } else {
        let text = format!("inet {}", ruleset.table);
        diff.push(Change::Add, "table", None, text, None);
    }
    diff
}

impl Diff {
    fn push(
        &mut self,
        change: Change,
        kind: &'static str,
        place: Option<&str>,
        text: String,
        handle: Option<u64>,
    ) {
        self.differences.push(Difference {
            change,
            kind,
            place: place.map(str::to_owned),
            text,
            handle,
        });
    }

    fn flags(&mut self, table: live::Table) {
        const NAMES: [(u32, &str); 3] = [(1, "dormant"), (2, "owner"), (4, "persist")];
        for (bit, name) in NAMES {
            if table.flags & bit != 0 {
                let text = name.to_owned();
                self.push(Change::Remove, "flag", None, text, Some(table.handle));
            }
        }
    }

    fn objects(&mut self, live: &Live, ruleset: &Ruleset) {
        for have in &live.objects {
            if !ruleset.objects.iter().any(|one| same_object(have, one)) {
                let (kind, text) = describe(&have.name, &have.kind);
                self.push(Change::Remove, kind, None, text, Some(have.handle));
            }
        }
        for wanted in &ruleset.objects {
            if !live.objects.iter().any(|have| same_object(have, wanted)) {
                let (kind, text) = describe(&wanted.name, &Kind::Known(wanted.kind.clone()));
                self.push(Change::Add, kind, None, text, None);
            }
        }
    }

    fn sets(&mut self, live: &Live, ruleset: &Ruleset) {
        for have in &live.sets {
            if !ruleset.sets.iter().any(|wanted| same_set(have, wanted)) {
                let text = have.name.clone();
                self.push(Change::Remove, "set", None, text, Some(have.handle));
            }
        }
        for wanted in &ruleset.sets {
            match live.sets.iter().find(|have| same_set(have, wanted)) {
                None => {
                    let text = format!("{} ({})", wanted.name, wanted.key.keyword());
                    self.push(Change::Add, "set", None, text, None);
                }
                Some(have) if wanted.owner == Owner::Policy => self.elements(have, wanted),
                Some(_) => {}
            }
        }
    }

    fn elements(&mut self, have: &live::Set, wanted: &Set) {
        let (extra, missing) = match (&have.elements, &wanted.elements) {
            (Elements::V4(have), Elements::V4(wanted)) => {
                let (extra, missing) = both_ways(have, wanted);
                (Elements::V4(extra), Elements::V4(missing))
            }
            (Elements::V6(have), Elements::V6(wanted)) => {
                let (extra, missing) = both_ways(have, wanted);
                (Elements::V6(extra), Elements::V6(missing))
            }
            _ => return,
        };
        let place = format!("set {}", wanted.name);
        for (change, elements) in [(Change::Remove, extra), (Change::Add, missing)] {
            for (from, to) in elements.ranges() {
                let mut text = String::new();
                if nft::range(from, to, &mut text).is_ok() {
                    self.push(change, "element", Some(&place), text, None);
                }
            }
        }
    }

    fn chains(&mut self, live: &Live, ruleset: &Ruleset) {
        for have in &live.chains {
            if !ruleset.chains.iter().any(|one| one.name == have.name) {
                let text = chain_text(&have.name, have.base);
                self.push(Change::Remove, "chain", None, text, Some(have.handle));
            }
        }
        for wanted in &ruleset.chains {
            let base = wanted.base.map_or(Hooked::No, Hooked::Known);
            let have = live.chains.iter().find(|have| have.name == wanted.name);
            if let Some(have) = have.filter(|have| have.base != base) {
                let text = chain_text(&have.name, have.base);
                self.push(Change::Remove, "chain", None, text, Some(have.handle));
            }
            if have.is_none_or(|have| have.base != base) {
                let text = chain_text(&wanted.name, base);
                self.push(Change::Add, "chain", None, text, None);
            }
            let rules = have.map_or(&[][..], |have| &have.rules);
            self.rules(wanted, rules);
        }
    }

    fn rules(&mut self, chain: &Chain, have: &[live::Rule]) {
        let wanted: Vec<_> = chain.rules.iter().map(raise::expected).collect();
        let place = format!("chain {}", chain.name);
        for edit in edits(have, &wanted) {
            match edit {
                Edit::Remove(rule) => {
                    let text = rule.text.clone();
                    self.push(
                        Change::Remove,
                        "rule",
                        Some(&place),
                        text,
                        Some(rule.handle),
                    );
                }
                Edit::Add(text) => {
                    self.push(Change::Add, "rule", Some(&place), text.to_owned(), None);
                }
            }
        }
    }
}

fn describe(name: &str, kind: &Kind) -> (&'static str, String) {
    let known = match kind {
        Kind::Other(number) => return ("object", format!("{name} (type {number})")),
        Kind::Known(known) => known,
    };
    let text = match known {
        ObjectKind::Counter => name.to_owned(),
        ObjectKind::CtHelper { helper } => format!("{name} (type \"{helper}\")"),
        ObjectKind::CtExpectation {
            family,
            dport,
            timeout_ms,
            size,
        } => format!(
            "{name} ({} dport {dport} timeout {} ms size {size})",
            family.keyword(),
            timeout_ms
        ),
    };
    (known.keyword(), text)
}

fn chain_text(name: &str, base: Hooked) -> String {
    match base {
        Hooked::No => name.to_owned(),
        Hooked::Other => format!("{name} (of another type)"),
        Hooked::Known(base) => format!(
            "{name} (type {} hook {} priority {} policy {})",
            base.kind.keyword(),
            base.hook.keyword(),
            base.priority,
            match base.policy {
                Policy::Drop => "drop",
                Policy::Accept => "accept",
            }
        ),
    }
}

type Ranges<T> = Vec<(T, T)>;

/// What only `have`, and what only `wanted` holds.
fn both_ways<T>(have: &[(T, T)], wanted: &[(T, T)]) -> (Ranges<T>, Ranges<T>)
where
    T: Ord + Copy + From<u8> + std::ops::Sub<Output = T> + std::ops::Add<Output = T>,
{
    let mut wanted = wanted.to_vec();
    coalesce(&mut wanted);
    (subtract(have, &wanted), subtract(&wanted, have))
}

enum Edit<'a> {
    Remove(&'a live::Rule),
    Add(&'a str),
}

/// The fewest removals and additions that make `have` into `wanted`: a
/// longest common subsequence. Chains have tens of rules.
fn edits<'a>(have: &'a [live::Rule], wanted: &'a [String]) -> Vec<Edit<'a>> {
    let same = |at: usize, to: usize| match (have.get(at), wanted.get(to)) {
        (Some(have), Some(wanted)) => have.text == *wanted,
        _ => false,
    };
    let width = wanted.len() + 1;
    let mut common = vec![0u32; (have.len() + 1) * width];
    let cell = |table: &[u32], at: usize, to: usize| table.get(at * width + to).copied();
    for at in (0..have.len()).rev() {
        for to in (0..wanted.len()).rev() {
            let best = if same(at, to) {
                cell(&common, at + 1, to + 1).unwrap_or(0) + 1
            } else {
                cell(&common, at + 1, to)
                    .max(cell(&common, at, to + 1))
                    .unwrap_or(0)
            };
            if let Some(cell) = common.get_mut(at * width + to) {
                *cell = best;
            }
        }
    }
    let (mut at, mut to, mut edits) = (0, 0, Vec::new());
    while at < have.len() || to < wanted.len() {
        if same(at, to) {
            at += 1;
            to += 1;
        } else if to == wanted.len()
            || (at < have.len() && cell(&common, at + 1, to) >= cell(&common, at, to + 1))
        {
            edits.extend(have.get(at).map(Edit::Remove));
            at += 1;
        } else {
            edits.extend(wanted.get(to).map(|text| Edit::Add(text)));
            to += 1;
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_keep_what_is_common() {
        let have: Vec<_> = ["a", "x", "b", "c"]
            .iter()
            .zip(1u64..)
            .map(|(text, handle)| live::Rule {
                handle,
                text: (*text).to_owned(),
            })
            .collect();
        let wanted: Vec<_> = ["a", "b", "y", "c", "z"].map(str::to_owned).to_vec();
        let found: Vec<_> = edits(&have, &wanted)
            .iter()
            .map(|edit| match edit {
                Edit::Remove(rule) => format!("-{}", rule.text),
                Edit::Add(text) => format!("+{text}"),
            })
            .collect();
        assert_eq!(found, ["-x", "+y", "+z"]);
    }

    #[test]
    fn table_that_is_gone_is_said_to_be() {
        let ruleset = Ruleset {
            table: "t".to_owned(),
            objects: Vec::new(),
            sets: Vec::new(),
            chains: Vec::new(),
        };
        let diff = diff(&Live::default(), &ruleset);
        assert!(!diff.is_same());
        assert_eq!(diff.to_string(), "table inet t is not loaded\n");
    }
}
