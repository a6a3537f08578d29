//! Licences and sources of all dependencies against deny.toml, without
//! another program: what can't be combined with GPL-2.0-or-later, or comes
//! from elsewhere than crates.io, is an error.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::msrv::{metadata, packages};
use crate::workspace;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

#[derive(Deserialize)]
struct Deny {
    licenses: Licences,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

/// Every package has a licence that deny.toml allows, and is ours or comes
/// from crates.io.
pub fn check() -> Result<()> {
    let text = fs::read_to_string(workspace::root().join("deny.toml")).context("deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("deny.toml")?;
    let metadata = metadata()?;
    let problems: Vec<_> = packages(&metadata)
        .filter_map(|package| problem(package, &deny.licenses.allow))
        .collect();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(())
}

fn problem(package: &Value, allow: &[String]) -> Option<String> {
    let field = |key| package.get(key).and_then(Value::as_str);
    let name = format!("{} {}", field("name")?, field("version")?);
    match field("source") {
        None | Some(CRATES_IO) => {}
        Some(other) => return Some(format!("{name} comes from {other}")),
    }
    let Some(expression) = field("license") else {
        return Some(format!("{name} states no licence"));
    };
    (!allows(expression, allow)).then(|| format!("{name}: {expression} is not allowed"))
}

/// Evaluates an SPDX expression: true if what it asks for is in the list.
/// `/` is how `OR` was written once. Something malformed is not allowed.
fn allows(expression: &str, allow: &[String]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut tokens = spaced.split_whitespace().peekable();
    let result = any(&mut tokens, allow);
    tokens.next().is_none() && result == Some(true)
}

type Tokens<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// `A OR B`: binds weaker than AND.
fn any(tokens: &mut Tokens<'_>, allow: &[String]) -> Option<bool> {
    let mut result = all(tokens, allow)?;
    while tokens.next_if_eq(&"OR").is_some() {
        let right = all(tokens, allow)?;
        result = result || right;
    }
    Some(result)
}

fn all(tokens: &mut Tokens<'_>, allow: &[String]) -> Option<bool> {
    let mut result = term(tokens, allow)?;
    while tokens.next_if_eq(&"AND").is_some() {
        let right = term(tokens, allow)?;
        result = result && right;
    }
    Some(result)
}

/// `( … )`, `ID` or `ID WITH EXCEPTION`.
fn term(tokens: &mut Tokens<'_>, allow: &[String]) -> Option<bool> {
    let first = tokens.next()?;
    if first == "(" {
        let inside = any(tokens, allow);
        return tokens.next_if_eq(&")").and(inside);
    }
    let mut id = first.to_owned();
    if tokens.next_if_eq(&"WITH").is_some() {
        id = format!("{id} WITH {}", tokens.next()?);
    }
    Some(allow.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated() {
        let allow = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        for good in [
            "MIT",
            "MIT OR GPL-3.0-only",
            "GPL-3.0-only/MIT",
            "(MIT OR X) AND ISC",
            "X OR (MIT AND ISC)",
            "Apache-2.0 WITH LLVM-exception OR X",
        ] {
            assert!(allows(good, &allow), "{good}");
        }
        for bad in [
            "",
            "Apache-2.0",
            "MIT AND X",
            "(MIT",
            "MIT)",
            "MIT ISC",
            "X AND MIT OR X",
            "MIT WITH",
        ] {
            assert!(!allows(bad, &allow), "{bad}");
        }
    }

    #[test]
    fn a_foreign_source_is_named() {
        let package = serde_json::json!({
            "name": "x", "version": "1.0.0", "license": "MIT",
            "source": "git+https://example.org/x"
        });
        let problem = problem(&package, &["MIT".to_owned()]).unwrap();
        assert!(problem.contains("comes from git+"), "{problem}");
    }
}
