//! Whether the ruleset gives control connections to the helper, at the
//! right moment, and accepts what the helper announces and not much more.

use daemon::doctor::Report;
use daemon::doctor::rules::{self, Base, Chain, ListError, Rule, Rules};
use netfilter::Name;
use std::fs;

const ASSIGN: &str = "assignment";
const RELATED: &str = "related";
const LOAD: &str = "nft-ftp-ruleset load makes a ruleset that does; see nft-ftp-ruleset(8)";

/// Connections are known from here on (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i64 = -200;
/// Destination NAT (`NF_IP_PRI_NAT_DST`).
const DSTNAT: i64 = -100;

/// Examines the ruleset of this network namespace.
pub fn examine(report: &mut Report, wanted: &[(Name, u16)], passes_on: bool) {
    let rules = match rules::list() {
        Ok(rules) => rules,
        Err(error @ ListError::NoNft(_)) => {
            let todo = "apt install nftables, so that the ruleset can be examined";
            return report.warn("ruleset", error.to_string(), todo);
        }
        Err(error) => return report.fail("ruleset", error.to_string(), "run this as root"),
    };
    let names: Vec<String> = wanted.iter().map(|(name, _)| name.to_string()).collect();
    assignment(report, &rules, &names);
    related(report, &rules, &names);
    other_queues(report, &rules, passes_on);
    legacy(report);
}

fn assignment(report: &mut Report, rules: &Rules, names: &[String]) {
    let is_ours = |helper: &String| names.contains(helper);
    for name in names {
        if !rules.helpers.iter().any(|object| object.helper == *name) {
            let other = rules.helpers.iter().map(|object| object.helper.as_str());
            let other: Vec<_> = other.filter(|helper| *helper == "ftp").collect();
            let besides = if other.is_empty() {
                ""
            } else {
                "; it has one for the kernel's own helper, ftp"
            };
            report.fail(
                ASSIGN,
                format!("the ruleset has no ct helper object of type {name}{besides}"),
                LOAD,
            );
        }
    }
    let assigning: Vec<&Rule> = rules
        .rules
        .iter()
        .filter(|rule| rules.assigned(rule).iter().any(is_ours))
        .collect();
    if assigning.is_empty() {
        if rules.helpers.iter().any(|object| is_ours(&object.helper)) {
            report.fail(ASSIGN, "no rule says \"ct helper set\" for it", LOAD);
        }
        return;
    }
    let mut forwarded = false;
    for rule in assigning {
        let bases = rules.bases_of(rule);
        if bases.is_empty() {
            report.fail(
                ASSIGN,
                format!(
                    "chain {} assigns it, but no base chain jumps there",
                    rule.chain
                ),
                "jump to it from a chain at hook prerouting, priority -150",
            );
        }
        for (chain, base) in bases {
            forwarded |= matches!(base.hook.as_str(), "prerouting" | "forward");
            place(report, rule, chain, base);
        }
    }
    if !forwarded {
        report.fail(
            ASSIGN,
            "it is assigned to connections of this machine only, not to forwarded ones",
            "assign it at hook prerouting, too",
        );
    }
}

/// Whether the hook and priority of an assignment are right.
fn place(report: &mut Report, rule: &Rule, chain: &Chain, base: &Base) {
    let at = format!("{chain} (hook {} priority {})", base.hook, base.priority);
    let early = matches!(base.hook.as_str(), "prerouting" | "output");
    if early && base.priority <= CONNTRACK {
        return report.fail(
            ASSIGN,
            format!("{at} is before conntrack: there is no connection yet, nothing is assigned"),
            "use priority -150",
        );
    }
    if !early || base.priority >= DSTNAT {
        return report.warn(
            ASSIGN,
            format!("{at} is after destination NAT: rewritten text gets no sequence adjustment"),
            "use hook prerouting, priority -150",
        );
    }
    if rule.names_state("established") && !rule.accepts_state("new") && !rule.names_state("new") {
        return report.fail(
            ASSIGN,
            format!("{at} assigns to established connections: only the first packet counts"),
            "leave the state out, or match ct state new",
        );
    }
    let ports = rule
        .compared("payload", "field", "dport")
        .unwrap_or_default();
    let ports = if ports.is_empty() {
        String::new()
    } else {
        format!(" for port {}", ports.join(", "))
    };
    report.ok(ASSIGN, format!("{at}{ports}"));
}

fn related(report: &mut Report, rules: &Rules, names: &[String]) {
    let drops = |(chain, base): &(&Chain, &Base)| {
        let own = |rule: &&Rule| rule.table == chain.table && rule.chain == chain.name;
        let last = rules.rules.iter().rfind(own);
        base.drops || last.is_some_and(|rule| rule.refuses() && rule.is_unconditional())
    };
    let filtering: Vec<_> = rules.bases("forward").filter(drops).collect();
    if filtering.is_empty() {
        return report.warn(
            RELATED,
            "no chain at hook forward drops what it does not accept: everything passes anyway",
            "a firewall needs one; [firewall] in /etc/nft-ftp/ruleset.toml makes it",
        );
    }
    let guarded = is_guarded(rules, names);
    for (chain, _) in filtering {
        let reached = rules.reached_from(chain);
        let accepting: Vec<&&Rule> = reached.iter().filter(|rule| lets_data_pass(rule)).collect();
        let others = |rule: &&&Rule| match rule.ct("helper") {
            Some(helpers) => !helpers.iter().any(|helper| names.contains(helper)),
            None => false,
        };
        if accepting.is_empty() {
            report.fail(
                RELATED,
                format!("{chain} drops data connections: nothing accepts ct state related"),
                "add the rule that nft-ftp-ruleset generate --snippet prints",
            );
        } else if accepting.iter().all(others) {
            let theirs: Vec<_> = accepting
                .iter()
                .filter_map(|rule| rule.ct("helper"))
                .collect();
            report.fail(
                RELATED,
                format!(
                    "{chain} accepts related connections of {}, not of {}",
                    theirs.concat().join(", "),
                    names.join(", ")
                ),
                "add the rule that nft-ftp-ruleset generate --snippet prints",
            );
        } else if accepting.iter().any(|rule| is_too_much(rule)) && !guarded {
            report.warn(
                RELATED,
                format!("{chain} accepts whatever any helper announces, to any port"),
                "replace it by what nft-ftp-ruleset generate --snippet prints, or set \
                 guard = true under [related] in the policy",
            );
        } else {
            report.ok(RELATED, format!("{chain} accepts data connections"));
        }
    }
}

/// Whether a rule may accept the first packet of a data connection.
fn lets_data_pass(rule: &Rule) -> bool {
    let protocol = rule.compared("meta", "key", "l4proto");
    let tcp = protocol.is_none_or(|words| words.iter().any(|word| word == "tcp" || word == "6"));
    rule.accepts_state("related") && tcp && (rule.names_state("related") || high_ports(rule))
}

/// Whether it has no port, or one that a data connection may have.
fn high_ports(rule: &Rule) -> bool {
    let ports = rule.compared("payload", "field", "dport");
    ports.is_none_or(|ports| {
        ports
            .iter()
            .any(|port| port.parse::<u16>().is_ok_and(|port| port >= 1024))
    })
}

/// Accepts related traffic without asking whose it is or where it goes.
fn is_too_much(rule: &Rule) -> bool {
    rule.names_state("related")
        && rule.ct("helper").is_none()
        && rule.compared("payload", "field", "dport").is_none()
        && rule.compared("meta", "key", "l4proto").is_none()
}

/// A chain that drops related connections of the helper, unless it had
/// accepted them before.
fn is_guarded(rules: &Rules, names: &[String]) -> bool {
    let guards = |rule: &&Rule| {
        let helpers = rule.ct("helper").unwrap_or_default();
        rule.refuses()
            && rule.names_state("related")
            && names.iter().all(|name| helpers.contains(name))
    };
    let mut bases = rules.bases("forward");
    bases.any(|(chain, _)| rules.reached_from(chain).iter().any(guards))
}

/// What else reads packets of control connections (nf_queue takes them away
/// before they are confirmed, and adjusts sequence numbers twice).
fn other_queues(report: &mut Report, rules: &Rules, passes_on: bool) {
    if passes_on {
        return;
    }
    for rule in rules.rules.iter().filter(|rule| rule.has("queue")) {
        for (chain, _) in rules.bases_of(rule) {
            report.warn(
                "queue",
                format!("{chain} queues packets to another program"),
                "exempt control connections there and set pass-to-queue, see nft-ftp-helper(8)",
            );
        }
    }
}

/// Rules that nft does not list.
fn legacy(report: &mut Report) {
    let mut tables = Vec::new();
    for path in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
        let text = fs::read_to_string(path).unwrap_or_default();
        tables.extend(text.lines().map(str::to_owned));
    }
    if !tables.is_empty() {
        report.warn(
            "ruleset",
            format!(
                "tables of iptables-legacy are not examined: {}",
                tables.join(", ")
            ),
            "move them to nftables: iptables-legacy-save | iptables-restore-translate",
        );
    }
}
