//! Helpers, expectations, events and zones: what has to happen to the first
//! packet of a connection, at the right moment.

use crate::ir::{
    Chain, ChainType, Field, Hook, L4, Object, ObjectKind, Origin, Policy as BasePolicy, Rule,
    Statement, Value, state,
};
use crate::policy::{Assign, Expectation, Helper};

use super::build::{base, destination, dports, family, interfaces, is, number, rule};
use super::{Ends, Lowering, name, origin};

/// Before conntrack (-200), which then does not see the packet, or sees the zone.
const RAW: i32 = -300;

/// After conntrack, which must have seen the packet, and before NAT (-100):
/// NAT makes room for sequence adjustments only if the helper is already
/// there (`nf_nat_setup_info`).
const AFTER_CONNTRACK_BEFORE_NAT: i32 = -150;

impl Lowering<'_> {
    /// `ct helper` and `ct expectation` objects.
    pub(super) fn ct_objects(&self) -> Vec<Object> {
        let mut objects: Vec<_> = self
            .helpers()
            .flat_map(|(helper, origin)| helper_objects(helper, &origin))
            .collect();
        for expectation in &self.policy.expectation {
            objects.extend(self.expectation_objects(expectation.get_ref(), &origin(expectation)));
        }
        objects
    }

    fn expectation_objects(&self, expectation: &Expectation, origin: &Origin) -> Vec<Object> {
        let count = expectation.ports.count();
        let size = expectation
            .size
            .as_ref()
            .map_or(count, |size| *size.get_ref());
        let mut objects = Vec::new();
        for family in self.policy.families.as_slice() {
            for dport in expectation.ports.iter() {
                objects.push(Object {
                    name: expectation_name(expectation, dport, *family),
                    kind: ObjectKind::CtExpectation {
                        family: *family,
                        dport,
                        timeout_ms: expectation.timeout.0,
                        size,
                    },
                    why: None,
                    origin: origin.clone(),
                });
            }
        }
        objects
    }

    /// The chains that see the first packet of a connection.
    pub(super) fn assignment_chains(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        let hooks = [("prerouting", Hook::Prerouting), ("output", Hook::Output)];
        for (suffix, hook) in hooks {
            let mut chain = base(
                &format!("helper_{suffix}"),
                ChainType::Filter,
                hook,
                AFTER_CONNTRACK_BEFORE_NAT,
                BasePolicy::Accept,
            );
            chain.why = Some(
                "The first packet of a connection gets its helper here: after conntrack\n\
                 (-200), which has to know the connection, and before NAT (-100), which\n\
                 prepares for a helper only if there is one."
                    .to_owned(),
            );
            chain.rules.extend(self.event_rule());
            chain.rules.extend(self.helper_rules());
            chain.rules.extend(self.expectation_rules());
            spare_known_connections(&mut chain.rules);
            chains.push(chain);
        }
        chains.retain(|chain| !chain.rules.is_empty());
        chains
    }

    fn event_rule(&self) -> Option<Rule> {
        let events = self.policy.events.as_ref()?;
        let bits = events.report.iter().fold(0, |bits, event| bits | event.0);
        let statements = [super::build::state(state::NEW), Statement::CtEventSet(bits)];
        let why = "The kernel reports only these changes of a connection.";
        Some(rule(statements).because(why))
    }

    fn helper_rules(&self) -> Vec<Rule> {
        let mut rules = self.dnat_rules();
        let mut mapped: Vec<(&Helper, Vec<(u16, String)>)> = Vec::new();
        for (helper, origin) in self.helpers() {
            if helper.assign == Assign::Rule {
                rules.extend(self.assign(helper, &origin, &set_helper(helper)));
                continue;
            }
            let ports = helper.ports.as_slice().iter();
            let entries = ports.map(|port| (*port, helper.name.as_str().to_owned()));
            match mapped
                .iter_mut()
                .find(|(first, _)| same_connections(first, helper))
            {
                Some((_, all)) => all.extend(entries),
                None => mapped.push((helper, entries.collect())),
            }
        }
        for (helper, mut entries) in mapped {
            entries.sort();
            entries.dedup_by_key(|(port, _)| *port);
            let statement = [Statement::CtHelperMap(entries)];
            rules.extend(self.assign(helper, &Origin::default(), &statement));
        }
        rules
    }

    /// One rule per family, or one for both.
    fn assign(&self, helper: &Helper, origin: &Origin, end: &[Statement]) -> Vec<Rule> {
        let ends = Ends {
            clients: name(helper.clients.as_ref()),
            servers: name(helper.servers.as_ref()),
        };
        let zone = helper
            .zone
            .map(|zone| is(Field::CtZone, Value::One(number(zone.0))));
        let mut rules = Vec::new();
        for matches in self.forward_matches(ends) {
            let counter = self.counter(&format!("{}_assigned", helper.name.as_str()));
            let statements = zone
                .clone()
                .into_iter()
                .chain(matches)
                .chain(end.iter().cloned());
            let count = match helper.queues.get_ref().0 {
                1 => self.new_only(counter),
                // These rules are for new connections only as it is.
                _ => counter.into_iter().collect(),
            };
            rules.push(rule(statements.chain(count)).from(origin));
        }
        rules
    }

    /// A counter that counts connections, not packets.
    fn new_only(&self, counter: Option<Statement>) -> Vec<Statement> {
        counter.map_or(Vec::new(), |counter| {
            vec![super::build::state(state::NEW), counter]
        })
    }

    /// Servers behind another address are watched under the address that
    /// clients use: destination NAT comes after this hook.
    fn dnat_rules(&self) -> Vec<Rule> {
        let Some(firewall) = &self.policy.firewall else {
            return Vec::new();
        };
        let mut rules = Vec::new();
        for dnat in &firewall.get_ref().dnat {
            let Some((helper, _)) = self.dnat_helper(dnat.get_ref()) else {
                continue;
            };
            let entry = dnat.get_ref();
            let statements = [destination(entry.address)]
                .into_iter()
                .chain(dports(L4::Tcp, &[entry.port.0]))
                .chain(chosen(helper));
            rules.push(rule(statements).from(&origin(dnat)));
        }
        rules
    }

    fn expectation_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for section in &self.policy.expectation {
            let expectation = section.get_ref();
            let ends = Ends {
                clients: name(expectation.clients.as_ref()),
                servers: name(expectation.servers.as_ref()),
            };
            for dport in expectation.ports.iter() {
                rules.extend(self.expect(expectation, ends, dport, &origin(section)));
            }
        }
        rules
    }

    fn expect(
        &self,
        expectation: &Expectation,
        ends: Ends<'_>,
        dport: u16,
        origin: &Origin,
    ) -> Vec<Rule> {
        let mut rules = Vec::new();
        for l3 in self.policy.families.as_slice() {
            let matches = if ends.any() {
                vec![family(*l3)]
            } else {
                super::endpoints(*l3, ends.clients, ends.servers)
            };
            let control = dports(L4::Tcp, expectation.control_ports.get_ref().as_slice());
            let object = expectation_name(expectation, dport, *l3);
            let statements = matches.into_iter().chain(control).chain([
                super::build::state(state::NEW),
                Statement::CtExpectationSet(object),
            ]);
            rules.push(rule(statements).from(origin));
        }
        rules
    }

    /// Before conntrack: zones, and the link that nobody should track.
    pub(super) fn raw_chains(&self) -> Vec<Chain> {
        let mut chains = Vec::new();
        let hooks = [
            ("raw_prerouting", Hook::Prerouting, Field::Iifname),
            ("raw_output", Hook::Output, Field::Oifname),
        ];
        for (name, hook, field) in hooks {
            let mut chain = base(name, ChainType::Filter, hook, RAW, BasePolicy::Accept);
            chain.rules.extend(self.link_untracked(field));
            for zone in &self.policy.zone {
                let statements = interfaces(field, &zone.get_ref().interfaces)
                    .into_iter()
                    .chain([Statement::CtZoneSet(zone.get_ref().id.0)]);
                chain.rules.push(rule(statements).from(&origin(zone)));
            }
            chains.push(chain);
        }
        chains.retain(|chain| !chain.rules.is_empty());
        chains
    }
}

/// Where there are many rules, packets of known connections skip them.
fn spare_known_connections(rules: &mut Vec<Rule>) {
    const MANY: usize = 4;
    if rules.len() >= MANY {
        let known = super::build::state(state::ESTABLISHED | state::RELATED);
        let why = "Nothing here is for later packets.";
        rules.insert(0, rule([known, super::build::accept()]).because(why));
    }
}

fn helper_objects(helper: &Helper, origin: &Origin) -> Vec<Object> {
    let object = |(name, kind)| Object {
        name,
        kind: ObjectKind::CtHelper { helper: kind },
        why: None,
        origin: origin.clone(),
    };
    helper.instances().map(object).collect()
}

fn set_helper(helper: &Helper) -> Vec<Statement> {
    dports(L4::Tcp, helper.ports.as_slice())
        .into_iter()
        .chain(chosen(helper))
        .collect()
}

/// The helper's object, or that of each queue in turn: connections take
/// turns, so later packets must not.
fn chosen(helper: &Helper) -> Vec<Statement> {
    let mut objects: Vec<_> = helper.instances().map(|(object, _)| object).collect();
    match objects.len() {
        0 | 1 => vec![Statement::CtHelperSet(objects.pop().unwrap_or_default())],
        _ => vec![
            super::build::state(state::NEW),
            Statement::CtHelperSpread(objects),
        ],
    }
}

fn same_connections(one: &Helper, other: &Helper) -> bool {
    name(one.servers.as_ref()) == name(other.servers.as_ref())
        && name(one.clients.as_ref()) == name(other.clients.as_ref())
        && one.zone == other.zone
}

fn expectation_name(expectation: &Expectation, dport: u16, family: crate::ir::Family) -> String {
    format!("{}-{dport}-{}", expectation.name.as_str(), family.keyword())
}
