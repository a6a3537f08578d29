//! Metrics that the examples name, against what a daemon serves.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

/// Every name with this prefix in the examples, with the labels that are used
/// with it, is in the text that a daemon serves.
///
/// # Errors
/// With the name that isn't.
pub fn examples_name_only(served: &str, prefix: &str) -> Result<()> {
    let mut names = BTreeSet::new();
    for text in [
        include_str!("../../examples/prometheus-alerts.yml"),
        include_str!("../../examples/grafana.json"),
    ] {
        for (at, _) in text.match_indices(prefix) {
            let rest = text.get(at..).unwrap_or_default();
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let name = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
            let labels = rest
                .get(name.len()..)
                .and_then(|rest| rest.strip_prefix('{'));
            let label = labels.and_then(|labels| labels.split(['=', '!', '~']).next());
            // Prometheus adds this one.
            let label = label.filter(|label| *label != "instance");
            names.insert((name, label));
        }
    }
    ensure!(names.len() > 4, "names in the examples: {names:?}");
    for (name, label) in names {
        let line = |line: &str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| {
                rest.starts_with([' ', '{'])
                    && label.is_none_or(|label| rest.contains(&format!("{label}=\"")))
            })
        };
        ensure!(served.lines().any(line), "no {name} {label:?} in\n{served}");
    }
    Ok(())
}
