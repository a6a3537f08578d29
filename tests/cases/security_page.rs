//! docs/security.md names a test for each promise: they exist.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// What every program of the workspace tests, and what it is tested with.
fn sources(directory: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found)?;
        } else if name.ends_with(".rs") {
            found.push(std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// The names in back quotes of the tables' last columns.
fn named(page: &str) -> BTreeSet<&str> {
    let rows = page.lines().filter(|l| l.starts_with('|'));
    let rows: Vec<Vec<&str>> = rows
        .map(|l| l.trim_matches('|').split('|').collect())
        .collect();
    let mut names = BTreeSet::new();
    let mut of_tests = false;
    for row in &rows {
        let Some(last) = row.last() else { continue };
        if row.iter().all(|cell| !cell.contains("---")) && last.trim() == "shown by" {
            of_tests = true;
        } else if row.first().is_some_and(|c| c.trim() == "attempt") {
            of_tests = false;
        } else if of_tests {
            names.extend(last.split('`').skip(1).step_by(2));
        }
    }
    names
}

#[test]
fn every_test_on_the_page_exists() -> Result<()> {
    let page = std::fs::read_to_string(root().join("docs/security.md"))?;
    let names = named(&page);
    ensure!(names.len() > 40, "{names:?}");
    let mut all = Vec::new();
    sources(root(), &mut all)?;
    for name in &names {
        let test = format!("fn {name}(");
        let is_test = |text: &String| {
            text.match_indices(&test).any(|(at, _)| {
                let before = text.get(..at).unwrap_or_default();
                let head = before.rsplit("\n\n").next().unwrap_or_default();
                head.contains("#[test]")
            })
        };
        let found = all.iter().any(is_test);
        ensure!(found, "docs/security.md names {name}, which is no test");
    }
    Ok(())
}
