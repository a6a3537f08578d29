//! The loaded ruleset, as far as a doctor has to understand it.
//!
//! Read from `nft --json --terse list ruleset`, whoever loaded it. A rule is
//! taken for what it may do, whatever it matches besides: what is asked is
//! "can a packet get there", not "does this one".

use std::process::Command;

use serde_json::Value;

/// Everything in nf_tables.
#[derive(Debug, Default)]
pub struct Rules {
    /// Chains.
    pub chains: Vec<Chain>,
    /// Rules, in order within their chain.
    pub rules: Vec<Rule>,
    /// `ct helper` objects.
    pub helpers: Vec<HelperObject>,
    /// Names of sets.
    pub sets: Vec<(Table, String)>,
    /// Tables.
    pub tables: Vec<Table>,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `inet`, `ip`, …
    pub family: String,
    /// Name.
    pub name: String,
}

/// A chain.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Its table.
    pub table: Table,
    /// Name within the table.
    pub name: String,
    /// Where it hooks in; a regular chain has none.
    pub base: Option<Base>,
}

/// Where a chain hooks in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Hook.
    pub hook: String,
    /// Priority.
    pub priority: i64,
    /// What no rule accepts is dropped.
    pub drops: bool,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Its table.
    pub table: Table,
    /// Its chain.
    pub chain: String,
    /// Statements.
    pub expr: Vec<Value>,
}

/// A `ct helper` object.
#[derive(Debug, Clone)]
pub struct HelperObject {
    /// Its table.
    pub table: Table,
    /// Name within the table.
    pub name: String,
    /// Name under which the helper is registered.
    pub helper: String,
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Table { family, name } = &self.table;
        write!(f, "{family} {name} {}", self.name)
    }
}

/// Why there is no listing.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// nft is not installed.
    #[error("nft(8) can't be started: {0}")]
    NoNft(std::io::Error),
    /// nft refused.
    #[error("nft list ruleset: {0}")]
    Refused(String),
}

/// Lists the ruleset of this network namespace.
///
/// # Errors
/// [`ListError`].
pub fn list() -> Result<Rules, ListError> {
    let output = Command::new("nft")
        .args(["--json", "--terse", "list", "ruleset"])
        .output()
        .map_err(ListError::NoNft)?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(ListError::Refused(text.trim().to_owned()));
    }
    let json = serde_json::from_slice(&output.stdout)
        .map_err(|error| ListError::Refused(format!("its JSON can't be read: {error}")))?;
    Ok(parse(&json))
}

/// Reads a listing; what is not known is left out.
#[must_use]
pub fn parse(json: &Value) -> Rules {
    let mut rules = Rules::default();
    let items = json.get("nftables").and_then(Value::as_array);
    for item in items.into_iter().flatten().filter_map(Value::as_object) {
        for (kind, body) in item {
            rules.take(kind, body);
        }
    }
    rules
}

fn text(body: &Value, key: &str) -> String {
    let value = body.get(key).and_then(Value::as_str);
    value.unwrap_or_default().to_owned()
}

fn table(body: &Value, name: &str) -> Table {
    Table {
        family: text(body, "family"),
        name: text(body, name),
    }
}

impl Rules {
    fn take(&mut self, kind: &str, body: &Value) {
        match kind {
            "table" => self.tables.push(table(body, "name")),
            "set" => self.sets.push((table(body, "table"), text(body, "name"))),
            "ct helper" => self.helpers.push(HelperObject {
                table: table(body, "table"),
                name: text(body, "name"),
                helper: text(body, "type"),
            }),
            "chain" => self.chains.push(Chain {
                table: table(body, "table"),
                name: text(body, "name"),
                base: body.get("hook").map(|_| Base {
                    hook: text(body, "hook"),
                    priority: body.get("prio").and_then(Value::as_i64).unwrap_or(0),
                    drops: text(body, "policy") == "drop",
                }),
            }),
            "rule" => self.rules.push(Rule {
                table: table(body, "table"),
                chain: text(body, "chain"),
                expr: body
                    .get("expr")
                    .and_then(Value::as_array)
                    .cloned()
                    .unwrap_or_default(),
            }),
            _ => {}
        }
    }

    /// Base chains of a hook.
    pub fn bases<'a>(&'a self, hook: &'a str) -> impl Iterator<Item = (&'a Chain, &'a Base)> {
        self.chains.iter().filter_map(move |chain| {
            let base = chain.base.as_ref().filter(|base| base.hook == hook)?;
            Some((chain, base))
        })
    }

    /// Rules that a packet can meet which enters by this chain: its own and
    /// those of chains that it jumps to.
    #[must_use]
    pub fn reached_from(&self, start: &Chain) -> Vec<&Rule> {
        let mut names = vec![start.name.clone()];
        let mut reached = Vec::new();
        let mut at = 0;
        while let Some(name) = names.get(at).cloned() {
            at += 1;
            let of_chain = |rule: &&Rule| rule.table == start.table && rule.chain == name;
            for rule in self.rules.iter().filter(of_chain) {
                reached.push(rule);
                for target in rule.jumps() {
                    if !names.contains(&target) {
                        names.push(target);
                    }
                }
            }
        }
        reached
    }

    /// Base chains from which a rule is reached.
    #[must_use]
    pub fn bases_of(&self, rule: &Rule) -> Vec<(&Chain, &Base)> {
        let based = self.chains.iter().filter_map(|chain| {
            let base = chain.base.as_ref()?;
            let reached = self.reached_from(chain);
            reached
                .iter()
                .any(|one| std::ptr::eq(*one, rule))
                .then_some((chain, base))
        });
        based.collect()
    }

    /// Names of the helpers that a rule assigns.
    #[must_use]
    pub fn assigned(&self, rule: &Rule) -> Vec<String> {
        let mut words = Vec::new();
        for statement in &rule.expr {
            if let Some(value) = statement.get("ct helper") {
                strings(value, &mut words);
            }
        }
        let chosen = |object: &&HelperObject| {
            // A map by name may hold any of them.
            object.table == rule.table
                && words
                    .iter()
                    .any(|word| *word == object.name || word.starts_with('@'))
        };
        let objects = self.helpers.iter().filter(chosen);
        objects.map(|object| object.helper.clone()).collect()
    }
}

impl Rule {
    /// Chains that it may jump or go to.
    fn jumps(&self) -> Vec<String> {
        let mut targets = Vec::new();
        for statement in &self.expr {
            verdicts(statement, &mut |kind, body| {
                if matches!(kind, "jump" | "goto") {
                    targets.push(text(body, "target"));
                }
            });
        }
        targets
    }

    /// Whether it may accept.
    #[must_use]
    pub fn accepts(&self) -> bool {
        self.expr.iter().any(|one| one.get("accept").is_some())
    }

    /// Whether it may drop or reject.
    #[must_use]
    pub fn refuses(&self) -> bool {
        let verdict = |one: &Value| one.get("drop").is_some() || one.get("reject").is_some();
        self.expr.iter().any(verdict)
    }

    /// Whether it has no condition at all.
    #[must_use]
    pub fn is_unconditional(&self) -> bool {
        let condition = |one: &Value| {
            ["match", "vmap", "limit", "xt"]
                .iter()
                .any(|key| one.get(key).is_some())
        };
        !self.expr.iter().any(condition)
    }

    /// Whether it has a statement of this name.
    #[must_use]
    pub fn has(&self, statement: &str) -> bool {
        self.expr.iter().any(|one| one.get(statement).is_some())
    }

    /// What a field is compared with, in every form: words, numbers, ends
    /// of ranges. `None` if the rule does not look at it.
    #[must_use]
    pub fn compared(&self, kind: &str, key: &str, value: &str) -> Option<Vec<String>> {
        let mut found = None;
        for statement in &self.expr {
            let Some(item) = statement.get("match") else {
                continue;
            };
            let left = item.get("left").and_then(|left| left.get(kind));
            if left.is_some_and(|left| text(left, key) == value) {
                let words = found.get_or_insert_with(Vec::new);
                strings(item.get("right").unwrap_or(&Value::Null), words);
            }
        }
        found
    }

    /// `ct KEY`.
    #[must_use]
    pub fn ct(&self, key: &str) -> Option<Vec<String>> {
        self.compared("ct", "key", key)
    }

    /// Whether it accepts packets in this connection state: because it says
    /// so, by a verdict map, or because it does not look at the state.
    #[must_use]
    pub fn accepts_state(&self, state: &str) -> bool {
        let by_map = self.expr.iter().any(|one| mapped(one, state));
        by_map || self.accepts() && self.ct("state").is_none_or(|words| has(&words, state))
    }

    /// Whether its condition or map names this connection state.
    #[must_use]
    pub fn names_state(&self, state: &str) -> bool {
        let by_map = self.expr.iter().any(|one| mapped(one, state));
        by_map || self.ct("state").is_some_and(|words| has(&words, state))
    }
}

fn has(words: &[String], word: &str) -> bool {
    words.iter().any(|one| one == word)
}

/// `ct state vmap { …, STATE : accept }`.
fn mapped(statement: &Value, state: &str) -> bool {
    let Some(map) = statement.get("vmap") else {
        return false;
    };
    let key = map.pointer("/key/ct/key").and_then(Value::as_str);
    let pairs = map.pointer("/data/set").and_then(Value::as_array);
    key == Some("state")
        && pairs.into_iter().flatten().any(|pair| {
            pair.get(0).and_then(Value::as_str) == Some(state)
                && pair.get(1).is_some_and(|to| to.get("accept").is_some())
        })
}

/// Every verdict in a statement, also those in maps.
fn verdicts(value: &Value, found: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(members) => {
            for (key, body) in members {
                found(key, body);
                verdicts(body, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| verdicts(item, found)),
        _ => {}
    }
}

/// Every word and number in a value, keys of objects left out.
fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(word) => found.push(word.clone()),
        Value::Number(number) => found.push(number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(members) => members.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Rules {
        let t = |body: Value| {
            let mut body = body;
            if let Some(members) = body.as_object_mut() {
                members.insert("family".to_owned(), "inet".into());
                members.insert("table".to_owned(), "t".into());
            }
            body
        };
        parse(&json!({ "nftables": [
            { "metainfo": {} },
            { "table": { "family": "inet", "name": "t" } },
            { "ct helper": t(json!({ "name": "o", "type": "nft-ftp" })) },
            { "chain": t(json!({ "name": "base", "hook": "forward", "prio": -5, "policy": "drop" })) },
            { "chain": t(json!({ "name": "sub" })) },
            { "chain": t(json!({ "name": "alone" })) },
            { "rule": t(json!({ "chain": "base", "expr": [
                { "vmap": { "key": { "ct": { "key": "state" } }, "data": { "set": [
                    ["established", { "accept": null }],
                    ["related", { "jump": { "target": "sub" } }],
                ] } } },
            ] })) },
            { "rule": t(json!({ "chain": "sub", "expr": [
                { "match": { "op": "==", "left": { "ct": { "key": "helper" } },
                             "right": { "set": ["a", "b"] } } },
                { "accept": null },
            ] })) },
            { "rule": t(json!({ "chain": "alone", "expr": [
                { "ct helper": { "map": { "key": {}, "data": { "set": [[21, "o"]] } } } },
            ] })) },
        ] }))
    }

    #[test]
    fn chains_are_followed_through_jumps_and_maps() {
        let rules = sample();
        let (chain, base) = rules.bases("forward").next().expect("a base chain");
        assert!(base.drops && base.priority == -5);
        assert_eq!(rules.reached_from(chain).len(), 2);
        let alone = rules.rules.last().expect("rules");
        assert!(rules.bases_of(alone).is_empty());
        assert_eq!(rules.assigned(alone), ["nft-ftp"]);
    }

    #[test]
    fn what_a_rule_may_accept_is_told_from_its_states() {
        let rules = sample();
        let [first, second, _] = rules.rules.as_slice() else {
            panic!("{rules:?}");
        };
        assert!(first.accepts_state("established") && !first.accepts_state("related"));
        assert!(second.accepts_state("related"), "it does not look");
        assert_eq!(second.ct("helper"), Some(vec!["a".into(), "b".into()]));
        assert!(!second.names_state("related") && !second.is_unconditional());
    }
}
