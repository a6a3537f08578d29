//! `status` for people.

use super::{at, fail_on_error, say};
use crate::run::answer::Ask;
use anyhow::Result;
use daemon::Client;
use serde_json::{Value, json};
use std::time::Duration;

pub(super) fn status(client: &mut Client, json: bool) -> Result<bool> {
    let s = client.request(&Ask::Status)?;
    fail_on_error(&s)?;
    if json {
        return say(&serde_json::to_string_pretty(&s)?);
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let state = if at(&s, "in_sync") == true {
        "in sync"
    } else {
        "NOT IN SYNC"
    };
    say(&format!(
        "{}: {}, {state} since {}",
        text(at(&s, "node")),
        text(at(&s, "role")),
        ago(at(&s, "in_sync_for_ms"))
    ))?;
    for why in at(&s, "why").as_array().into_iter().flatten() {
        say(&format!("  because {}", text(why)))?;
    }
    for cache in ["internal", "external"] {
        let c = at(&s, cache);
        say(&format!(
            "  {cache}: {} connections, {} expectations",
            at(c, "flows"),
            at(c, "expectations")
        ))?;
    }
    for p in at(&s, "peers").as_array().into_iter().flatten() {
        say(&format!("  peer {}: {}", text(at(p, "name")), peer(p)))?;
        for l in at(p, "links").as_array().into_iter().flatten() {
            say(&format!("    link {}", link(l)))?;
        }
    }
    let counters = at(&s, "counters").as_object().into_iter().flatten();
    let odd = |name: &str| {
        [
            "refused",
            "overruns",
            "shortages",
            "malformed",
            "full",
            "diverged",
            "unencodable",
        ]
        .iter()
        .any(|w| name.contains(w))
    };
    for (name, value) in counters.filter(|(n, v)| odd(n) && **v != json!(0)) {
        say(&format!("  {name}: {value}"))?;
    }
    Ok(true)
}

/// Milliseconds for people.
fn ago(ms: &Value) -> String {
    let seconds = Duration::from_secs(ms.as_u64().unwrap_or(0) / 1000);
    humantime::format_duration(seconds).to_string()
}

fn peer(p: &Value) -> String {
    let copies = match (at(p, "copy_synced") == true, at(p, "peer_synced") == true) {
        (true, true) => "both copies complete",
        (true, false) => "its copy of us is not complete",
        (false, true) => "our copy of it is not complete",
        (false, false) => "neither copy is known to be complete",
    };
    let fenced = if at(p, "fenced") == true {
        ", fenced: it has lost its role"
    } else {
        ""
    };
    format!(
        "{}, {}, {copies}{fenced}, lag {} ms, {} queued; {} connections, {} expectations here",
        at(p, "state").as_str().unwrap_or_default(),
        at(p, "role").as_str().unwrap_or_default(),
        at(p, "lag_ms"),
        at(p, "queued"),
        at(p, "flows"),
        at(p, "expectations")
    )
}

fn link(l: &Value) -> String {
    let address = at(l, "address").as_str().unwrap_or("with unknown address");
    let heard = match at(l, "heard_ms").as_u64() {
        Some(ms) => format!("heard {ms} ms ago"),
        None => "never heard".to_owned(),
    };
    let active = if at(l, "active") == true {
        ", in use"
    } else {
        ""
    };
    match at(l, "rtt_us").as_u64() {
        Some(us) => format!("{address}: {heard}, round trip {us} us{active}"),
        None => format!("{address}: {heard}{active}"),
    }
}
