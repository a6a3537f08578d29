//! Entries as people and programs read them.

use crate::config::protocol_name;
use crate::record::Record;
use clap::Args;
use ipnet::IpNet;
use netfilter::protoinfo::{ProtoInfo, TCP_STATES};
use netfilter::{Expectation, Flow, L4, Status, Tuple, expect};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt::Write;

const STATUS_NAMES: [(Status, &str); 9] = [
    (Status::EXPECTED, "EXPECTED"),
    (Status::SEEN_REPLY, "SEEN_REPLY"),
    (Status::ASSURED, "ASSURED"),
    (Status::CONFIRMED, "CONFIRMED"),
    (Status::SRC_NAT, "SRC_NAT"),
    (Status::DST_NAT, "DST_NAT"),
    (Status::SEQ_ADJUST, "SEQ_ADJUST"),
    (Status::HELPER, "HELPER"),
    (Status::OFFLOAD, "OFFLOAD"),
];

const DCCP_STATES: [&str; 10] = [
    "NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT", "IGNORE",
    "INVALID",
];
const SCTP_STATES: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// Which entries are shown. Each condition that is given must hold.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct Select {
    /// Source address or network of the original direction
    #[arg(short = 's', long, value_name = "NET")]
    pub src: Option<String>,
    /// Destination address or network of the original direction
    #[arg(short = 'd', long, value_name = "NET")]
    pub dst: Option<String>,
    /// Protocol, by name or number
    #[arg(short = 'p', long, value_name = "PROTO")]
    pub protocol: Option<String>,
    /// Destination port of the original direction
    #[arg(long, value_name = "PORT")]
    pub dport: Option<u16>,
    /// Protocol state, such as ESTABLISHED
    #[arg(long)]
    pub state: Option<String>,
    /// Name of the helper
    #[arg(long, value_name = "NAME")]
    pub helper: Option<String>,
    /// Zone
    #[arg(long)]
    pub zone: Option<u16>,
}

/// A checked [`Select`].
#[derive(Debug, Clone, Default)]
pub struct Selector {
    src: Option<IpNet>,
    dst: Option<IpNet>,
    protocol: Option<u8>,
    select: Select,
}

impl Selector {
    /// Checks what is asked for.
    ///
    /// # Errors
    /// A text that names the part that can't be understood.
    pub fn new(select: Select) -> Result<Self, String> {
        let net = |text: &Option<String>| match text {
            None => Ok(None),
            Some(t) => {
                let address = t.parse::<std::net::IpAddr>().map(IpNet::from);
                let net = address.or_else(|_| t.parse::<IpNet>());
                net.map(Some).map_err(|_| format!("{t:?} is no network"))
            }
        };
        let protocol = match &select.protocol {
            None => None,
            Some(p) => {
                let number = crate::config::protocol_number(p);
                Some(number.ok_or(format!("protocol {p:?} is unknown"))?)
            }
        };
        let known = |s: &str| {
            let names = TCP_STATES.iter().chain(&SCTP_STATES).chain(&DCCP_STATES);
            names.into_iter().any(|n| n.eq_ignore_ascii_case(s)) || s.parse::<u8>().is_ok()
        };
        if let Some(state) = select.state.as_deref().filter(|s| !known(s)) {
            return Err(format!(
                "state {state:?} is unknown; those of TCP are {}",
                TCP_STATES.join(", ")
            ));
        }
        Ok(Self {
            src: net(&select.src)?,
            dst: net(&select.dst)?,
            protocol,
            select,
        })
    }

    /// True if the entry is asked for.
    pub fn matches(&self, record: &Record) -> bool {
        let (tuple, zone, helper, state) = match record {
            Record::Flow(f) => (
                &f.orig,
                f.zone,
                f.help.map(|h| h.name),
                state_name(&f.protoinfo),
            ),
            Record::Expect(e) => (&e.tuple, e.zone, e.helper, None),
        };
        let s = &self.select;
        let same = |wanted: &Option<String>, has: Option<&str>| match wanted {
            None => true,
            Some(w) => has.is_some_and(|h| h.eq_ignore_ascii_case(w)),
        };
        self.src.is_none_or(|n| n.contains(&tuple.src))
            && self.dst.is_none_or(|n| n.contains(&tuple.dst))
            && self.protocol.is_none_or(|p| p == tuple.l4proto)
            && s.dport.is_none_or(|p| p == tuple.dport())
            && s.zone.is_none_or(|z| z == zone)
            && same(&s.state, state.as_deref())
            && same(&s.helper, helper.as_ref().map(netfilter::Name::as_str))
    }
}

fn state_name(info: &ProtoInfo) -> Option<String> {
    let (names, state): (&[&str], u8) = match info {
        ProtoInfo::None => return None,
        ProtoInfo::Tcp(t) => (&TCP_STATES, t.state),
        ProtoInfo::Sctp { state, .. } => (&SCTP_STATES, *state),
        ProtoInfo::Dccp { state, .. } => (&DCCP_STATES, *state),
    };
    let name = names.get(usize::from(state));
    Some(name.map_or_else(|| state.to_string(), |n| (*n).to_owned()))
}

const fn family(tuple: &Tuple) -> (&'static str, u8) {
    if tuple.src.is_ipv4() {
        ("ipv4", 2)
    } else {
        ("ipv6", 10)
    }
}

/// One line, much like conntrack(8) prints it.
pub fn line(record: &Record, timeout: Option<u32>) -> String {
    match record {
        Record::Flow(flow) => flow_line(flow, timeout),
        Record::Expect(exp) => expect_line(exp, timeout),
    }
}

fn flow_line(f: &Flow, timeout: Option<u32>) -> String {
    let proto = protocol_name(f.orig.l4proto);
    let mut s = format!(
        "{:<4} {:<7} {:<3}",
        family(&f.orig).0,
        proto,
        f.orig.l4proto
    );
    if let Some(timeout) = timeout {
        let _ = write!(s, " {timeout}");
    }
    if let Some(state) = state_name(&f.protoinfo) {
        let _ = write!(s, " {state}");
    }
    let status = f.status.unwrap_or_default();
    let _ = write!(s, " {}", f.orig);
    if !status.contains(Status::SEEN_REPLY) {
        s.push_str(" [UNREPLIED]");
    }
    let _ = write!(s, " {}", f.reply);
    if status.contains(Status::ASSURED) {
        s.push_str(" [ASSURED]");
    }
    let _ = write!(s, " mark={}", f.mark.unwrap_or(0));
    if f.zone != 0 {
        let _ = write!(s, " zone={}", f.zone);
    }
    if let Some(labels) = f.labels {
        let _ = write!(s, " labels=0x{}", hex(labels.0.iter().rev()));
    }
    if let Some(help) = &f.help {
        let _ = write!(s, " helper={}", help.name);
        if !help.info.as_bytes().is_empty() {
            let _ = write!(s, " helper-data={}", hex(help.info.as_bytes()));
        }
    }
    for (name, adj) in [("orig", f.seq_adj_orig), ("reply", f.seq_adj_reply)] {
        if let Some(a) = adj {
            let _ = write!(
                s,
                " seqadj-{name}={}:{}:{}",
                a.correction_pos, a.before, a.after
            );
        }
    }
    if let Some(master) = &f.master {
        let _ = write!(s, " master {master}");
    }
    s
}

fn expect_line(e: &Expectation, timeout: Option<u32>) -> String {
    let mut s = String::new();
    if let Some(timeout) = timeout {
        let _ = write!(s, "{timeout} ");
    }
    let (_, number) = family(&e.tuple);
    let _ = write!(
        s,
        "l3proto = {number} proto={} {}",
        e.tuple.l4proto, e.tuple
    );
    let _ = write!(
        s,
        " mask-src={} mask-dst={} sport={} dport={}",
        e.mask.src, e.mask.dst, e.mask.sport, e.mask.dport
    );
    let _ = write!(s, " master {} class={}", e.master, e.class);
    if let Some(helper) = e.helper {
        let _ = write!(s, " helper={helper}");
    }
    if let Some(nat) = &e.nat {
        let _ = write!(s, " nat={}:{} dir={:?}", nat.addr, nat.port, nat.dir);
    }
    if let Some(name) = e.expectfn {
        let _ = write!(s, " fn={name}");
    }
    if e.flags.contains(expect::Flags::PERMANENT) {
        s.push_str(" PERMANENT");
    }
    if e.flags.contains(expect::Flags::INACTIVE) {
        s.push_str(" INACTIVE");
    }
    if e.zone != 0 {
        let _ = write!(s, " zone={}", e.zone);
    }
    s
}

fn hex<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> String {
    bytes.into_iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// As a JSON object; what is absent is left out.
pub fn json(record: &Record, timeout: Option<u32>) -> Value {
    let mut map = match record {
        Record::Flow(flow) => flow_json(flow),
        Record::Expect(exp) => expect_json(exp),
    };
    if let Some(timeout) = timeout {
        map.insert("timeout".into(), timeout.into());
    }
    Value::Object(map)
}

fn tuple_json(t: &Tuple) -> Value {
    let mut v = json!({"src": t.src, "dst": t.dst});
    let l4 = match t.l4 {
        L4::None => json!({}),
        L4::Ports { src, dst } => json!({"sport": src, "dport": dst}),
        L4::Icmp { id, ty, code } => json!({"id": id, "type": ty, "code": code}),
    };
    if let (Value::Object(v), Value::Object(l4)) = (&mut v, l4) {
        v.extend(l4);
        if let Some(zone) = t.zone {
            v.insert("zone".into(), zone.into());
        }
    }
    v
}

fn base_json(t: &Tuple, zone: u16) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("family".into(), family(t).0.into());
    map.insert("protocol".into(), protocol_name(t.l4proto).into());
    if zone != 0 {
        map.insert("zone".into(), zone.into());
    }
    map
}

fn flow_json(f: &Flow) -> Map<String, Value> {
    let mut m = base_json(&f.orig, f.zone);
    let mut set = |name: &str, value: Value| m.insert(name.into(), value);
    set("orig", tuple_json(&f.orig));
    set("reply", tuple_json(&f.reply));
    let status = f.status.unwrap_or_default();
    let names = STATUS_NAMES.iter().filter(|(bit, _)| status.contains(*bit));
    set("status", names.map(|(_, name)| *name).collect());
    set("mark", f.mark.unwrap_or(0).into());
    if let Some(state) = state_name(&f.protoinfo) {
        set("state", state.into());
    }
    match f.protoinfo {
        ProtoInfo::Tcp(t) => {
            set("wscale", json!([t.wscale_orig, t.wscale_reply]));
            set(
                "tcp_flags",
                json!([t.flags_orig.flags, t.flags_reply.flags]),
            );
        }
        ProtoInfo::Sctp {
            vtag_orig,
            vtag_reply,
            ..
        } => {
            set("vtags", json!([vtag_orig, vtag_reply]));
        }
        _ => {}
    }
    if let Some(help) = &f.help {
        set("helper", help.name.to_string().into());
        set("helper_data", hex(help.info.as_bytes()).into());
    }
    if let Some(labels) = f.labels {
        set("labels", hex(labels.0.iter().rev()).into());
    }
    for (name, adj) in [
        ("seq_adj_orig", f.seq_adj_orig),
        ("seq_adj_reply", f.seq_adj_reply),
    ] {
        if let Some(a) = adj {
            let value = json!({"pos": a.correction_pos, "before": a.before, "after": a.after});
            set(name, value);
        }
    }
    if let Some(master) = &f.master {
        set("master", tuple_json(master));
    }
    m
}

fn expect_json(e: &Expectation) -> Map<String, Value> {
    let mut m = base_json(&e.tuple, e.zone);
    let mut set = |name: &str, value: Value| m.insert(name.into(), value);
    set("tuple", tuple_json(&e.tuple));
    let mask = json!({"src": e.mask.src, "dst": e.mask.dst,
        "sport": e.mask.sport, "dport": e.mask.dport});
    set("mask", mask);
    set("master", tuple_json(&e.master));
    set("class", e.class.into());
    set(
        "permanent",
        e.flags.contains(expect::Flags::PERMANENT).into(),
    );
    set("inactive", e.flags.contains(expect::Flags::INACTIVE).into());
    if let Some(helper) = e.helper {
        set("helper", helper.to_string().into());
    }
    if let Some(name) = e.expectfn {
        set("fn", name.to_string().into());
    }
    if let Some(nat) = &e.nat {
        let dir = if nat.dir == netfilter::Dir::Orig {
            "orig"
        } else {
            "reply"
        };
        set(
            "nat",
            json!({"dir": dir, "addr": nat.addr, "port": nat.port}),
        );
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::tcp;

    #[test]
    fn a_connection_reads_like_conntrack_prints_it() {
        let mut flow = tcp(1);
        flow.reply.dst = "203.0.113.9".parse().unwrap();
        assert_eq!(
            line(&Record::Flow(flow), Some(9)),
            "ipv4 tcp     6   9 ESTABLISHED src=10.0.0.0 dst=192.0.2.1 sport=1025 dport=80 \
             src=192.0.2.1 dst=203.0.113.9 sport=80 dport=1025 [ASSURED] mark=0"
        );
        let json = json(&Record::Flow(flow), Some(9));
        assert_eq!(json["orig"]["sport"], 1025);
        assert_eq!(json["state"], "ESTABLISHED");
    }

    #[test]
    fn only_what_is_asked_for_is_shown() {
        let record = Record::Flow(tcp(1));
        let select = |f: fn(&mut Select)| {
            let mut s = Select::default();
            f(&mut s);
            Selector::new(s).map(|s| s.matches(&record))
        };
        assert_eq!(select(|_| {}), Ok(true));
        assert_eq!(select(|s| s.src = Some("10.0.0.0/8".into())), Ok(true));
        assert_eq!(select(|s| s.dst = Some("192.0.2.2".into())), Ok(false));
        assert_eq!(select(|s| s.protocol = Some("udp".into())), Ok(false));
        assert_eq!(select(|s| s.state = Some("established".into())), Ok(true));
        assert_eq!(select(|s| s.helper = Some("ftp".into())), Ok(false));
        assert_eq!(select(|s| s.zone = Some(0)), Ok(true));
        assert!(select(|s| s.src = Some("nowhere".into())).is_err());
    }
}
