//! The ruleset as text for `nft -f` and `include`.

use std::fmt::{self, Write};
use std::net::IpAddr;

use crate::elements::{Elements, prefix_len};
use crate::ir::{
    Chain, Family, Field, Key, Match, Object, ObjectKind, Op, Rule, Ruleset, Scalar, Set,
    Statement, Value, Verdict, bit_names, event, state, status, tcp_flags,
};

/// Writes a complete, replaceable table.
///
/// Adding, deleting and adding the table again in one transaction replaces it
/// whether or not it exists, on every kernel.
///
/// # Errors
/// Only those of the writer.
pub fn render(ruleset: &Ruleset, out: &mut impl Write) -> fmt::Result {
    writeln!(
        out,
        "# Written by nft-ftp-ruleset. Edit the policy, not this file."
    )?;
    writeln!(
        out,
        "# The first two lines make it replace the table in one transaction."
    )?;
    writeln!(out, "table inet {}", ruleset.table)?;
    writeln!(out, "delete table inet {}\n", ruleset.table)?;
    writeln!(out, "table inet {} {{", ruleset.table)?;
    let mut first = true;
    for item in &ruleset.objects {
        separate(&mut first, out)?;
        object(item, out)?;
    }
    for item in &ruleset.sets {
        separate(&mut first, out)?;
        set(item, out)?;
    }
    for item in &ruleset.chains {
        separate(&mut first, out)?;
        chain(item, out)?;
    }
    writeln!(out, "}}")
}

fn separate(first: &mut bool, out: &mut impl Write) -> fmt::Result {
    if *first {
        *first = false;
        return Ok(());
    }
    writeln!(out)
}

fn why(text: Option<&str>, indent: &str, out: &mut impl Write) -> fmt::Result {
    for line in text.into_iter().flat_map(str::lines) {
        writeln!(out, "{indent}# {line}")?;
    }
    Ok(())
}

fn object(object: &Object, out: &mut impl Write) -> fmt::Result {
    why(object.why.as_deref(), "\t", out)?;
    writeln!(out, "\t{} {} {{", object.kind.keyword(), object.name)?;
    match &object.kind {
        ObjectKind::CtHelper { helper } => writeln!(out, "\t\ttype \"{helper}\" protocol tcp")?,
        ObjectKind::CtExpectation {
            family,
            dport,
            timeout_ms,
            size,
        } => {
            writeln!(out, "\t\tprotocol tcp")?;
            writeln!(out, "\t\tdport {dport}")?;
            writeln!(out, "\t\ttimeout {}", duration(*timeout_ms))?;
            writeln!(out, "\t\tsize {size}")?;
            writeln!(out, "\t\tl3proto {}", family.keyword())?;
        }
        ObjectKind::Counter => {}
    }
    writeln!(out, "\t}}")
}

/// Milliseconds in nft's spelling; nft's own parser takes no bare number here.
fn duration(milliseconds: u32) -> String {
    let (seconds, rest) = (milliseconds / 1000, milliseconds % 1000);
    if rest == 0 {
        format!("{seconds}s")
    } else {
        format!("{seconds}s{rest}ms")
    }
}

fn set(set: &Set, out: &mut impl Write) -> fmt::Result {
    why(set.why.as_deref(), "\t", out)?;
    writeln!(out, "\tset {} {{", set.name)?;
    writeln!(out, "\t\ttype {}", set.key.keyword())?;
    match set.key {
        Key::Pairs {
            timeout_secs, size, ..
        } => {
            writeln!(out, "\t\tsize {size}")?;
            writeln!(out, "\t\tflags dynamic,timeout")?;
            writeln!(out, "\t\ttimeout {timeout_secs}s")?;
        }
        key if key.interval() => writeln!(out, "\t\tflags interval")?,
        _ if set.timeout => writeln!(out, "\t\tflags timeout")?,
        _ => {}
    }
    elements(&set.elements, out)?;
    writeln!(out, "\t}}")
}

fn elements(elements: &Elements, out: &mut impl Write) -> fmt::Result {
    if elements.is_empty() {
        return Ok(());
    }
    out.write_str("\t\telements = {")?;
    for (index, (from, to)) in elements.ranges().enumerate() {
        out.write_str(if index == 0 { "\n\t\t\t" } else { ",\n\t\t\t" })?;
        range(from, to, out)?;
    }
    writeln!(out, "\n\t\t}}")
}

/// One address, a prefix if it is one, or a range.
pub(crate) fn range(from: IpAddr, to: IpAddr, out: &mut impl Write) -> fmt::Result {
    if from == to {
        return write!(out, "{from}");
    }
    match prefix_len(from, to) {
        Some(length) => write!(out, "{from}/{length}"),
        None => write!(out, "{from}-{to}"),
    }
}

fn chain(chain: &Chain, out: &mut impl Write) -> fmt::Result {
    why(chain.why.as_deref(), "\t", out)?;
    writeln!(out, "\tchain {} {{", chain.name)?;
    if let Some(base) = chain.base {
        writeln!(
            out,
            "\t\ttype {} hook {} priority {}; policy {};",
            base.kind.keyword(),
            base.hook.keyword(),
            base.priority,
            base.policy.keyword()
        )?;
    }
    for item in &chain.rules {
        why(item.why.as_deref(), "\t\t", out)?;
        writeln!(out, "\t\t{}", rule(item))?;
    }
    writeln!(out, "\t}}")
}

/// One rule on one line.
#[must_use]
pub fn rule(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.statements.iter().map(statement).collect();
    if let Some(comment) = &rule.comment {
        words.push(format!("comment \"{comment}\""));
    }
    words.join(" ")
}

pub(crate) fn statement(statement: &Statement) -> String {
    match statement {
        Statement::Match(item) => comparison(item),
        Statement::Counter(name) => format!("counter name \"{name}\""),
        Statement::CtHelperSet(name) => format!("ct helper set \"{name}\""),
        Statement::CtHelperSpread(objects) => helper_spread(objects),
        Statement::CtHelperMap(entries) => helper_map(entries),
        Statement::CtExpectationSet(name) => format!("ct expectation set \"{name}\""),
        Statement::Update { set, family } => format!("update @{set} {{ {} }}", ends(*family)),
        Statement::CtEventSet(bits) => format!("ct event set {}", names(*bits, event::NAMES)),
        Statement::CtZoneSet(zone) => format!("ct zone set {zone}"),
        Statement::Notrack => "notrack".to_owned(),
        Statement::Limit { rate, burst } => {
            format!("limit rate {rate}/second burst {burst} packets")
        }
        Statement::Log {
            prefix,
            group: None,
        } => format!("log prefix \"{prefix}\""),
        Statement::Log {
            prefix,
            group: Some(group),
        } => {
            format!("log prefix \"{prefix}\" group {group}")
        }
        Statement::Masquerade => "masquerade".to_owned(),
        Statement::Nat {
            kind,
            address,
            port,
        } => {
            let family = crate::ir::Family::of(*address).keyword();
            format!(
                "{} {family} to {}",
                kind.keyword(),
                endpoint(*address, *port)
            )
        }
        Statement::Verdict(verdict) => verdict_text(verdict),
    }
}

fn helper_spread(objects: &[String]) -> String {
    let pairs: Vec<_> = objects
        .iter()
        .enumerate()
        .map(|(turn, name)| format!("{turn} : \"{name}\""))
        .collect();
    format!(
        "ct helper set numgen inc mod {} map {{ {} }}",
        objects.len(),
        pairs.join(", ")
    )
}

fn helper_map(entries: &[(u16, String)]) -> String {
    let pairs: Vec<_> = entries
        .iter()
        .map(|(port, name)| format!("{port} : \"{name}\""))
        .collect();
    format!("ct helper set tcp dport map {{ {} }}", pairs.join(", "))
}

fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (_, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    }
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
    }
}

fn comparison(item: &Match) -> String {
    let op = match item.op {
        Op::Eq => "",
        Op::Ne => "!= ",
    };
    format!(
        "{} {op}{}",
        field(item.field),
        value(item.field, &item.value)
    )
}

fn ends(family: Family) -> String {
    format!("{0} saddr . {0} daddr", family.keyword())
}

fn field(field: Field) -> String {
    match field {
        Field::Nfproto => "meta nfproto".to_owned(),
        Field::L4proto => "meta l4proto".to_owned(),
        Field::Iifname => "iifname".to_owned(),
        Field::Oifname => "oifname".to_owned(),
        Field::Ends(family) => ends(family),
        Field::Saddr(family) => format!("{} saddr", family.keyword()),
        Field::Daddr(family) => format!("{} daddr", family.keyword()),
        Field::Sport(l4) => format!("{} sport", l4.keyword()),
        Field::Dport(l4) => format!("{} dport", l4.keyword()),
        Field::TcpFlags(mask) => {
            let flags: Vec<_> = bit_names(mask.into(), tcp_flags::NAMES).collect();
            format!("tcp flags & ({})", flags.join(" | "))
        }
        Field::Icmpv6Type => "icmpv6 type".to_owned(),
        Field::CtState => "ct state".to_owned(),
        Field::CtStatus => "ct status".to_owned(),
        Field::CtDirection => "ct direction".to_owned(),
        Field::CtHelper => "ct helper".to_owned(),
        Field::CtZone => "ct zone".to_owned(),
    }
}

fn value(field: Field, value: &Value) -> String {
    match value {
        Value::One(one) => scalar(field, one),
        Value::Range(from, to) => format!("{}-{}", scalar(field, from), scalar(field, to)),
        Value::Any(values) => {
            let values: Vec<_> = values.iter().map(|one| scalar(field, one)).collect();
            format!("{{ {} }}", values.join(", "))
        }
        Value::Named(name) => format!("@{name}"),
        Value::Bits(bits) => match field {
            Field::CtStatus => names(*bits, status::NAMES),
            _ => names(*bits, state::NAMES),
        },
    }
}

fn names(bits: u32, table: &[(u32, &str)]) -> String {
    bit_names(bits, table).collect::<Vec<_>>().join(",")
}

fn scalar(field: Field, scalar: &Scalar) -> String {
    match (field, scalar) {
        (_, Scalar::Text(text)) => format!("\"{text}\""),
        (_, Scalar::Address(address)) => address.to_string(),
        (_, Scalar::Number(number)) => {
            symbol(field, *number).map_or_else(|| number.to_string(), str::to_owned)
        }
    }
}

/// nft's word for a number, where it has one and needs no file to know it.
pub(super) fn symbol(field: Field, number: u32) -> Option<&'static str> {
    match (field, number) {
        (Field::Nfproto, 2) => Some("ipv4"),
        (Field::Nfproto, 10) => Some("ipv6"),
        (Field::CtDirection, 0) => Some("original"),
        (Field::CtDirection, 1) => Some("reply"),
        (Field::TcpFlags(_), tcp_flags::SYN) => Some("syn"),
        _ => None,
    }
}
