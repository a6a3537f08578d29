//! What is in the kernel, for people and for programs.

use std::fmt::{self, Display};

use serde_json::{Value as Json, json};

use crate::ir::ObjectKind;
use crate::live::{Chain, Hooked, Kind, Live, Object, Set};
use crate::render::nft;

/// The table called `name`, in lines.
pub struct Text<'a> {
    /// Name of the table.
    pub name: &'a str,
    /// What is there.
    pub live: &'a Live,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(table) = self.live.table else {
            return writeln!(f, "table inet {} is not loaded", self.name);
        };
        writeln!(f, "table inet {}, handle {}", self.name, table.handle)?;
        for one in &self.live.objects {
            object(one, f)?;
        }
        for one in &self.live.sets {
            let (name, ty, handle) = (&one.name, key(one), one.handle);
            writeln!(
                f,
                "set {name}, handle {handle}: {ty}, {} elements",
                size(one)
            )?;
        }
        for one in &self.live.chains {
            writeln!(f, "chain {}, handle {}{}", one.name, one.handle, hook(one))?;
            for rule in &one.rules {
                writeln!(f, "  {:>4}  {}", rule.handle, rule.text)?;
            }
        }
        Ok(())
    }
}

fn object(object: &Object, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (kind, detail) = match &object.kind {
        Kind::Other(number) => ("object", format!("type {number}")),
        Kind::Known(kind) => (kind.keyword(), detail(kind, object)),
    };
    let (name, handle, uses) = (&object.name, object.handle, object.uses);
    writeln!(
        f,
        "{kind} {name}, handle {handle}: {detail}, used {uses} times"
    )
}

fn detail(kind: &ObjectKind, object: &Object) -> String {
    match kind {
        ObjectKind::Counter => object.count.map_or(String::new(), |count| {
            format!("{} packets, {} bytes", count.packets, count.bytes)
        }),
        ObjectKind::CtHelper { helper } => format!("type \"{helper}\""),
        ObjectKind::CtExpectation {
            family,
            dport,
            timeout_ms,
            size,
        } => format!(
            "{} dport {dport}, timeout {timeout_ms} ms, size {size}",
            family.keyword()
        ),
    }
}

fn key(set: &Set) -> &'static str {
    set.key.map_or("another type", |key| key.keyword())
}

fn size(set: &Set) -> usize {
    set.elements.len() + set.others.len()
}

fn hook(chain: &Chain) -> String {
    match chain.base {
        Hooked::No => String::new(),
        Hooked::Other => ": of another type".to_owned(),
        Hooked::Known(base) => format!(
            ": type {} hook {} priority {} policy {}",
            base.kind.keyword(),
            base.hook.keyword(),
            base.priority,
            base.policy.keyword()
        ),
    }
}

/// The table called `name`, as one JSON object.
#[must_use]
pub fn json(name: &str, live: &Live) -> Json {
    json!({
        "table": name,
        "loaded": live.table.is_some(),
        "handle": live.table.map(|table| table.handle),
        "objects": live.objects.iter().map(object_json).collect::<Vec<_>>(),
        "sets": live.sets.iter().map(set_json).collect::<Vec<_>>(),
        "chains": live.chains.iter().map(chain_json).collect::<Vec<_>>(),
    })
}

fn object_json(object: &Object) -> Json {
    let mut fields = match &object.kind {
        Kind::Other(number) => json!({ "kind": "other", "type": number }),
        Kind::Known(ObjectKind::CtHelper { helper }) => {
            json!({ "kind": "ct helper", "type": helper })
        }
        Kind::Known(ObjectKind::Counter) => json!({
            "kind": "counter",
            "packets": object.count.map(|count| count.packets),
            "bytes": object.count.map(|count| count.bytes),
        }),
        Kind::Known(ObjectKind::CtExpectation {
            family,
            dport,
            timeout_ms,
            size,
        }) => json!({
            "kind": "ct expectation", "family": family.keyword(), "dport": dport,
            "timeout_ms": timeout_ms, "size": size,
        }),
    };
    if let Json::Object(members) = &mut fields {
        members.insert("name".to_owned(), json!(object.name));
        members.insert("handle".to_owned(), json!(object.handle));
        members.insert("uses".to_owned(), json!(object.uses));
    }
    fields
}

fn set_json(set: &Set) -> Json {
    let ranges = set.elements.ranges().map(|(from, to)| {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = nft::range(from, to, &mut text);
        text
    });
    let others = set.others.iter().map(|key| {
        let hex = key.iter().map(|byte| format!("{byte:02x}"));
        format!("0x{}", hex.collect::<String>())
    });
    json!({
        "name": set.name, "handle": set.handle, "type": key(set),
        "elements": ranges.chain(others).collect::<Vec<_>>(),
    })
}

fn chain_json(chain: &Chain) -> Json {
    let base = match chain.base {
        Hooked::Known(base) => json!({
            "type": base.kind.keyword(), "hook": base.hook.keyword(),
            "priority": base.priority, "policy": base.policy.keyword(),
        }),
        Hooked::No | Hooked::Other => Json::Null,
    };
    let rules = chain
        .rules
        .iter()
        .map(|rule| json!({ "handle": rule.handle, "text": rule.text }));
    json!({
        "name": chain.name, "handle": chain.handle, "base": base,
        "rules": rules.collect::<Vec<_>>(),
    })
}
