//! The ruleset as libnftables JSON, for `nft -j -f`.
//!
//! nft before 1.0.9 cannot read `ct expectation` from JSON, not even from
//! its own listing; such a ruleset is for newer ones.

use std::net::IpAddr;

use serde_json::{Value as Json, json};

use crate::elements::prefix_len;
use crate::ir::{
    Chain, Family, Field, Key, Match, Object, ObjectKind, Op, Rule, Ruleset, Scalar, Set,
    Statement, Value, Verdict, bit_names, event, state, status, tcp_flags,
};

/// The commands that replace the table, as one JSON document.
#[must_use]
pub fn render(ruleset: &Ruleset) -> Json {
    let table = json!({ "table": { "family": "inet", "name": ruleset.table } });
    let mut commands = vec![json!({ "metainfo": { "json_schema_version": 1 } })];
    commands.push(json!({ "add": table }));
    commands.push(json!({ "delete": table }));
    let mut add = |what: Json| commands.push(json!({ "add": what }));
    add(table.clone());
    for item in &ruleset.objects {
        add(object(&ruleset.table, item));
    }
    for item in &ruleset.sets {
        add(set(&ruleset.table, item));
    }
    for item in &ruleset.chains {
        add(chain(&ruleset.table, item));
    }
    for chain in &ruleset.chains {
        for item in &chain.rules {
            add(rule(&ruleset.table, &chain.name, item));
        }
    }
    json!({ "nftables": commands })
}

fn object(table: &str, object: &Object) -> Json {
    let body = match &object.kind {
        ObjectKind::CtHelper { helper } => json!({
            "family": "inet", "table": table, "name": object.name,
            "type": helper, "protocol": "tcp",
        }),
        ObjectKind::CtExpectation {
            family,
            dport,
            timeout_ms,
            size,
        } => json!({
            "family": "inet", "table": table, "name": object.name,
            "l3proto": family.keyword(), "protocol": "tcp", "dport": dport,
            "timeout": timeout_ms, "size": size,
        }),
        ObjectKind::Counter => json!({ "family": "inet", "table": table, "name": object.name }),
    };
    json!({ object.kind.keyword(): body })
}

fn set(table: &str, set: &Set) -> Json {
    let mut flags = Vec::new();
    if set.key.interval() {
        flags.push("interval");
    }
    if set.timeout {
        flags.push("timeout");
    }
    let mut body = json!({
        "family": "inet", "table": table, "name": set.name,
        "type": set.key.keyword(), "flags": flags,
    });
    if let Key::Pairs {
        timeout_secs, size, ..
    } = set.key
    {
        let types: Vec<_> = set.key.keyword().split(" . ").collect();
        put(&mut body, "type", json!(types));
        // nft before 1.0.9 cannot read "dynamic"; the rule that fills the set
        // makes it so.
        put(&mut body, "flags", json!(["timeout"]));
        put(&mut body, "timeout", json!(timeout_secs));
        put(&mut body, "size", json!(size));
    }
    let elements: Vec<_> = set
        .elements
        .ranges()
        .map(|(from, to)| range(from, to))
        .collect();
    if !elements.is_empty() {
        put(&mut body, "elem", json!(elements));
    }
    json!({ "set": body })
}

fn range(from: IpAddr, to: IpAddr) -> Json {
    if from == to {
        return json!(from);
    }
    match prefix_len(from, to) {
        Some(len) => json!({ "prefix": { "addr": from, "len": len } }),
        None => json!({ "range": [from, to] }),
    }
}

fn chain(table: &str, chain: &Chain) -> Json {
    let body = match chain.base {
        None => json!({ "family": "inet", "table": table, "name": chain.name }),
        Some(base) => json!({
            "family": "inet", "table": table, "name": chain.name,
            "type": base.kind.keyword(), "hook": base.hook.keyword(),
            "prio": base.priority, "policy": base.policy.keyword(),
        }),
    };
    json!({ "chain": body })
}

fn rule(table: &str, chain: &str, rule: &Rule) -> Json {
    let statements: Vec<_> = rule.statements.iter().map(statement).collect();
    let mut body = json!({ "family": "inet", "table": table, "chain": chain, "expr": statements });
    if let Some(comment) = &rule.comment {
        put(&mut body, "comment", json!(comment));
    }
    json!({ "rule": body })
}

fn statement(statement: &Statement) -> Json {
    match statement {
        Statement::Match(item) => comparison(item),
        Statement::Counter(name) => json!({ "counter": name }),
        Statement::CtHelperSet(name) => json!({ "ct helper": name }),
        Statement::CtHelperSpread(objects) => {
            let turns: Vec<_> = objects.iter().enumerate().collect();
            json!({ "ct helper": { "map": {
                "key": { "numgen": { "mode": "inc", "mod": objects.len(), "offset": 0 } },
                "data": { "set": turns },
            } } })
        }
        Statement::CtHelperMap(entries) => json!({ "ct helper": { "map": {
            "key": payload("tcp", "dport"), "data": { "set": entries },
        } } }),
        Statement::CtExpectationSet(name) => json!({ "ct expectation": name }),
        Statement::Update { set, family } => json!({ "set": {
            "op": "update", "elem": field(Field::Ends(*family)), "set": format!("@{set}"),
        } }),
        Statement::CtEventSet(bits) => ct_set("event", names(*bits, event::NAMES)),
        Statement::CtZoneSet(zone) => ct_set("zone", json!(zone)),
        Statement::Notrack => json!({ "notrack": null }),
        Statement::Limit { rate, burst } => {
            json!({ "limit": { "rate": rate, "burst": burst, "per": "second" } })
        }
        Statement::Log {
            prefix,
            group: None,
        } => json!({ "log": { "prefix": prefix } }),
        Statement::Log {
            prefix,
            group: Some(group),
        } => {
            json!({ "log": { "prefix": prefix, "group": group } })
        }
        Statement::Masquerade => json!({ "masquerade": null }),
        Statement::Nat {
            kind,
            address,
            port,
        } => {
            let mut body = json!({ "family": Family::of(*address).keyword(), "addr": address });
            if let Some(port) = port {
                put(&mut body, "port", json!(port));
            }
            json!({ kind.keyword(): body })
        }
        Statement::Verdict(Verdict::Accept) => json!({ "accept": null }),
        Statement::Verdict(Verdict::Drop) => json!({ "drop": null }),
        Statement::Verdict(Verdict::Return) => json!({ "return": null }),
        Statement::Verdict(Verdict::Jump(chain)) => json!({ "jump": { "target": chain } }),
    }
}

fn put(body: &mut Json, key: &str, value: Json) {
    if let Json::Object(members) = body {
        members.insert(key.to_owned(), value);
    }
}

fn ct_set(key: &str, value: Json) -> Json {
    json!({ "mangle": { "key": { "ct": { "key": key } }, "value": value } })
}

fn comparison(item: &Match) -> Json {
    let op = match (item.op, &item.value) {
        (Op::Ne, _) => "!=",
        (Op::Eq, Value::Bits(_)) => "in",
        (Op::Eq, _) => "==",
    };
    let (left, right) = (field(item.field), value(item.field, &item.value));
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn meta(key: &str) -> Json {
    json!({ "meta": { "key": key } })
}

fn ct(key: &str) -> Json {
    json!({ "ct": { "key": key } })
}

fn payload(protocol: &str, field: &str) -> Json {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn field(field: Field) -> Json {
    match field {
        Field::Nfproto => meta("nfproto"),
        Field::L4proto => meta("l4proto"),
        Field::Iifname => meta("iifname"),
        Field::Oifname => meta("oifname"),
        Field::Ends(family) => {
            let end = |name| payload(family.keyword(), name);
            json!({ "concat": [end("saddr"), end("daddr")] })
        }
        Field::Saddr(family) => payload(family.keyword(), "saddr"),
        Field::Daddr(family) => payload(family.keyword(), "daddr"),
        Field::Sport(l4) => payload(l4.keyword(), "sport"),
        Field::Dport(l4) => payload(l4.keyword(), "dport"),
        Field::TcpFlags(mask) => {
            let flags: Vec<_> = bit_names(mask.into(), tcp_flags::NAMES).collect();
            json!({ "&": [payload("tcp", "flags"), flags] })
        }
        Field::Icmpv6Type => payload("icmpv6", "type"),
        Field::CtState => ct("state"),
        Field::CtStatus => ct("status"),
        Field::CtDirection => ct("direction"),
        Field::CtHelper => ct("helper"),
        Field::CtZone => ct("zone"),
    }
}

fn value(field: Field, value: &Value) -> Json {
    match value {
        Value::One(one) => scalar(field, one),
        Value::Range(from, to) => json!({ "range": [scalar(field, from), scalar(field, to)] }),
        Value::Any(values) => {
            let values: Vec<_> = values.iter().map(|one| scalar(field, one)).collect();
            json!({ "set": values })
        }
        Value::Named(name) => json!(format!("@{name}")),
        Value::Bits(bits) => match field {
            Field::CtStatus => names(*bits, status::NAMES),
            _ => names(*bits, state::NAMES),
        },
    }
}

/// nft spells one bit as a word and several as a list.
fn names(bits: u32, table: &[(u32, &str)]) -> Json {
    let mut words: Vec<_> = bit_names(bits, table).collect();
    if words.len() == 1 {
        json!(words.pop())
    } else {
        json!(words)
    }
}

fn scalar(field: Field, scalar: &Scalar) -> Json {
    match scalar {
        Scalar::Text(text) => json!(text),
        Scalar::Address(address) => json!(address),
        Scalar::Number(number) => {
            super::nft::symbol(field, *number).map_or_else(|| json!(number), |word| json!(word))
        }
    }
}
