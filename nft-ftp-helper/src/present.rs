//! Values as the commands print them: lines for people, JSON for programs.

use crate::registry::PRIV_DATA_LEN;
use netfilter::conntrack::Change;
use netfilter::cthelper::{Helper, HelperStatus};
use netfilter::expect::{Expectation, Flags};
use netfilter::tuple::{AF_INET, Dir, L4, Tuple};
use serde_json::{Value, json};

/// A line about a helper, as `nft-ftp-helper list` prints it.
pub fn helper_line(h: &Helper) -> String {
    let policies: Vec<String> = h
        .policies
        .iter()
        .map(|p| format!("{} max {} timeout {}s", p.name, p.max, p.timeout_secs))
        .collect();
    let foreign = if h.priv_data_len == PRIV_DATA_LEN {
        ""
    } else {
        " (not ours)"
    };
    format!(
        "{} {} proto {} queue {} {} [{}]{foreign}",
        h.name,
        family(h.family),
        h.l4proto,
        h.queue,
        status(h.status),
        policies.join(", "),
    )
}

/// The same as JSON.
pub fn helper_json(h: &Helper) -> Value {
    let policies: Vec<Value> = h
        .policies
        .iter()
        .map(|p| {
            json!({
                "name": p.name.as_str(),
                "expect-max": p.max,
                "expect-timeout": p.timeout_secs,
            })
        })
        .collect();
    json!({
        "name": h.name.as_str(),
        "family": family(h.family),
        "l4proto": h.l4proto,
        "queue": h.queue,
        "status": status(h.status),
        "priv-data-len": h.priv_data_len,
        "policies": policies,
    })
}

const fn family(af: u8) -> &'static str {
    if af == AF_INET { "ip" } else { "ip6" }
}

const fn status(status: HelperStatus) -> &'static str {
    match status {
        HelperStatus::Enabled => "enabled",
        HelperStatus::Disabled => "disabled",
    }
}

/// `[NEW]`, `[DESTROY]` or nothing, as conntrack(8) marks events.
pub const fn change_tag(change: Change) -> &'static str {
    match change {
        Change::New => "    [NEW]",
        Change::Update => " [UPDATE]",
        Change::Destroy => "[DESTROY]",
    }
}

/// A change in JSON.
pub const fn change_name(change: Change) -> &'static str {
    match change {
        Change::New => "new",
        Change::Update => "update",
        Change::Destroy => "destroy",
    }
}

/// An expectation on one line, with the words of conntrack(8).
pub fn expectation_line(e: &Expectation) -> String {
    let mut line = e.timeout.map_or_else(String::new, |t| format!("{t} "));
    line += &format!(
        "proto={} {} mask-src={} mask-sport={:#06x} master-{}",
        e.tuple.l4proto,
        e.tuple,
        e.mask.src,
        e.mask.sport,
        e.master.to_string().replace(' ', " master-"),
    );
    line += &format!(" class={}", e.class);
    if e.flags.contains(Flags::PERMANENT) {
        line += " PERMANENT";
    }
    if e.flags.contains(Flags::INACTIVE) {
        line += " INACTIVE";
    }
    if let Some(nat) = e.nat {
        line += &format!(" nat-dir={} nat-port={}", dir(nat.dir), nat.port);
    }
    if let Some(expectfn) = e.expectfn {
        line += &format!(" fn={expectfn}");
    }
    if let Some(helper) = e.helper {
        line += &format!(" helper={helper}");
    }
    line
}

/// An expectation as JSON.
pub fn expectation_json(e: &Expectation) -> Value {
    json!({
        "timeout": e.timeout,
        "tuple": tuple_json(&e.tuple),
        "mask": {
            "src": e.mask.src, "dst": e.mask.dst,
            "sport": e.mask.sport, "dport": e.mask.dport,
        },
        "master": tuple_json(&e.master),
        "class": e.class,
        "permanent": e.flags.contains(Flags::PERMANENT),
        "inactive": e.flags.contains(Flags::INACTIVE),
        "nat": e.nat.map(|n| json!({
            "dir": dir(n.dir), "addr": n.addr, "port": n.port,
        })),
        "fn": e.expectfn.map(|n| n.to_string()),
        "helper": e.helper.map(|n| n.to_string()),
        "id": e.id,
    })
}

fn tuple_json(t: &Tuple) -> Value {
    let mut value = json!({"src": t.src, "dst": t.dst, "proto": t.l4proto});
    if let (L4::Ports { src, dst }, Some(map)) = (t.l4, value.as_object_mut()) {
        map.insert("sport".to_owned(), src.into());
        map.insert("dport".to_owned(), dst.into());
    }
    value
}

/// A direction's name.
pub const fn dir(dir: Dir) -> &'static str {
    match dir {
        Dir::Orig => "original",
        Dir::Reply => "reply",
    }
}

/// A daemon's status: the JSON itself, or a line per value.
pub fn status_text(status: &Value, json: bool) -> String {
    if json {
        return status.to_string();
    }
    let mut lines = Vec::new();
    flatten("", status, &mut lines);
    lines.join("\n")
}

fn flatten(prefix: &str, value: &Value, lines: &mut Vec<String>) {
    let join = |key: &str| match prefix {
        "" => key.to_owned(),
        prefix => format!("{prefix}.{key}"),
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&join(key), value, lines);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                flatten(&join(&i.to_string()), item, lines);
            }
        }
        Value::String(text) => lines.push(format!("{prefix}: {text}")),
        Value::Null => {}
        other => lines.push(format!("{prefix}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netfilter::expect::Mask;

    #[test]
    fn an_expectation_prints_like_conntrack() {
        let (client, server) = ("10.1.0.2".parse().unwrap(), "10.2.0.2".parse().unwrap());
        let mut e = Expectation::new(
            Tuple::tcp(client, 40000, server, 21),
            Tuple::tcp(client, 0, server, 30000),
            Mask::any_sport(server),
        );
        e.timeout = Some(300);
        e.helper = Some("nft-ftp".parse().unwrap());
        assert_eq!(
            expectation_line(&e),
            "300 proto=6 src=10.1.0.2 dst=10.2.0.2 sport=0 dport=30000 \
             mask-src=255.255.255.255 mask-sport=0x0000 master-src=10.1.0.2 \
             master-dst=10.2.0.2 master-sport=40000 master-dport=21 class=0 helper=nft-ftp"
        );
        assert_eq!(expectation_json(&e)["tuple"]["dport"], 30000);
    }
}
