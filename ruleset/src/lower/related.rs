//! Which related data connections are allowed.
//!
//! `ct state related accept` lets any helper open any port to anyone. These
//! rules name the helper, keep to unprivileged ports and to the addresses
//! that the helper is meant for.

use std::collections::BTreeSet;

use crate::ir::{
    Chain, ChainType, Field, Hook, L4, Origin, Policy as BasePolicy, Rule, Scalar, Statement,
    Value, state,
};
use crate::policy::{Data, Dnat, Helper, Policy};

use super::build::{accept, any_of, base, destination, drop, is, number, rule, source};
use super::{Ends, Lowering, name, origin};

/// Before filter (0): what it drops, nobody accepts afterwards.
const BEFORE_FILTER: i32 = -5;

/// Rules for a chain of the operator's own, which cannot see our sets: limits
/// to addresses stay with the assignment of the helper.
#[must_use]
pub fn snippet(policy: &Policy) -> Vec<Rule> {
    let lowering = Lowering { policy };
    let related = lowering.kinds().into_iter().map(|kinds| {
        let matches = related_from(kinds);
        rule(matches.into_iter().chain([lowering.data_ports(), accept()]))
    });
    related.collect()
}

impl Lowering<'_> {
    /// Accepts what is allowed, one or more rules per helper.
    pub(super) fn related_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (helper, origin) in self.helpers() {
            let ends = Ends {
                clients: name(helper.clients.as_ref()),
                servers: name(helper.servers.as_ref()),
            };
            let chosen = self.policy.related.data.get_ref();
            let both = chosen.contains(&Data::Passive) && chosen.contains(&Data::Active);
            if ends.any() && both && self.policy.related.active_source_port.is_none() {
                let matches = self.per_family(None, None);
                rules.extend(self.data_rules(helper, &origin, matches, None));
                continue;
            }
            if chosen.contains(&Data::Passive) {
                let matches = self.forward_matches(ends);
                rules.extend(self.data_rules(helper, &origin, matches, None));
            }
            if chosen.contains(&Data::Active) {
                let matches = self.backward_matches(ends);
                rules.extend(self.data_rules(helper, &origin, matches, self.active_source()));
            }
        }
        rules.extend(self.dnat_data_rules());
        rules
    }

    fn data_rules(
        &self,
        helper: &Helper,
        origin: &Origin,
        families: Vec<Vec<Statement>>,
        extra: Option<Statement>,
    ) -> Vec<Rule> {
        let mut rules = Vec::new();
        for matches in families {
            let statements = related_from(kinds(helper))
                .into_iter()
                .chain(matches)
                .chain(extra.clone())
                .chain([self.data_ports()])
                .chain(self.counter("related_accepted"))
                .chain([accept()]);
            rules.push(rule(statements).from(origin));
        }
        rules
    }

    /// Behind destination NAT the forward hook sees the server's own address.
    fn dnat_data_rules(&self) -> Vec<Rule> {
        let Some(firewall) = &self.policy.firewall else {
            return Vec::new();
        };
        let mut rules = Vec::new();
        for dnat in &firewall.get_ref().dnat {
            let Some((helper, _)) = self.dnat_helper(dnat.get_ref()) else {
                continue;
            };
            let limited = helper.servers.is_some() || helper.clients.is_some();
            let address = *dnat.get_ref().to.get_ref();
            let chosen = self.policy.related.data.get_ref();
            if limited && chosen.contains(&Data::Passive) {
                let matches = vec![vec![destination(address)]];
                rules.extend(self.data_rules(helper, &origin(dnat), matches, None));
            }
            if limited && chosen.contains(&Data::Active) {
                let matches = vec![vec![source(address)]];
                let extra = self.active_source();
                rules.extend(self.data_rules(helper, &origin(dnat), matches, extra));
            }
        }
        rules
    }

    /// The helper that watches a server behind destination NAT.
    pub(super) fn dnat_helper(&self, dnat: &Dnat) -> Option<(&Helper, Origin)> {
        match name(dnat.helper.as_ref()) {
            Some(wanted) => self.helpers().find(|(helper, _)| helper.name == *wanted),
            None => self.helpers().next(),
        }
    }

    fn active_source(&self) -> Option<Statement> {
        let port = self.policy.related.active_source_port?;
        Some(is(Field::Sport(L4::Tcp), Value::One(number(port.0))))
    }

    fn data_ports(&self) -> Statement {
        let ports = self.policy.related.ports;
        let value = if ports.from == ports.to {
            Value::One(number(ports.from))
        } else {
            Value::Range(number(ports.from), number(ports.to))
        };
        is(Field::Dport(L4::Tcp), value)
    }

    /// The names that each helper has, once.
    fn kinds(&self) -> BTreeSet<Vec<String>> {
        self.helpers().map(|(helper, _)| kinds(helper)).collect()
    }

    /// A chain that only drops: related data connections of our helpers
    /// which no rule here allows.
    pub(super) fn guard_chain(&self) -> Chain {
        let mut chain = base(
            "related_guard",
            ChainType::Filter,
            Hook::Forward,
            BEFORE_FILTER,
            BasePolicy::Accept,
        );
        chain.why = Some(
            "Accepting here leaves the decision to later chains; dropping is final.\n\
             So `ct state related accept` elsewhere lets through only these."
                .to_owned(),
        );
        chain.rules = self.related_rules();
        for kinds in self.kinds() {
            let statements = related_from(kinds)
                .into_iter()
                .chain(self.counter("related_refused"))
                .chain([drop()]);
            chain.rules.push(rule(statements));
        }
        chain
    }
}

/// The names under which a helper is registered, one per queue.
fn kinds(helper: &Helper) -> Vec<String> {
    helper.instances().map(|(_, kind)| kind).collect()
}

/// Related to a connection that one of these helpers watches.
fn related_from(kinds: Vec<String>) -> Vec<Statement> {
    let names = kinds.into_iter().map(Scalar::Text).collect();
    [super::build::state(state::RELATED)]
        .into_iter()
        .chain(any_of(Field::CtHelper, names))
        .collect()
}
