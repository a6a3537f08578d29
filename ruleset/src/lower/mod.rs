//! From what the operator wants to the ruleset that does it.
//!
//! Pure: a policy and its address sets in, a [`Ruleset`] out. Each part of a
//! policy has a file: [`assign`] helpers, expectations, zones and events,
//! [`related`] data connections, [`firewall`] and [`nat`] the rest.

mod assign;
mod build;
mod firewall;
mod nat;
mod passive;
mod related;

use std::collections::BTreeSet;

use toml::Spanned;

use crate::ir::{
    Family, Field, Key, Object, ObjectKind, Origin, Owner, Rule, Ruleset, Set, Statement, Value,
};
use crate::policy::addresses::AddressSets;
use crate::policy::values::Name;
use crate::policy::{Helper, Policy};

pub use related::snippet;

/// Lowers a policy.
#[must_use]
pub fn lower(policy: &Policy, mut addresses: AddressSets) -> Ruleset {
    let lowering = Lowering { policy };
    let mut chains = lowering.raw_chains();
    chains.extend(lowering.assignment_chains());
    if let Some(firewall) = &policy.firewall {
        chains.extend(lowering.firewall_chains(firewall));
    } else if policy.related.guard {
        chains.push(lowering.guard_chain());
    }
    let mut objects = lowering.ct_objects();
    objects.extend(counters(chains.iter().flat_map(|chain| &chain.rules)));
    let mut sets = lowering.address_sets(&mut addresses);
    sets.extend(lowering.pair_sets());
    sets.extend(lowering.hold_set());
    Ruleset {
        table: policy.table.as_str().to_owned(),
        objects,
        sets,
        chains,
    }
}

/// Everything that lowering a part needs to know about the whole.
struct Lowering<'a> {
    policy: &'a Policy,
}

/// Servers and clients that a rule is limited to.
#[derive(Clone, Copy, Default)]
struct Ends<'a> {
    clients: Option<&'a Name>,
    servers: Option<&'a Name>,
}

impl Ends<'_> {
    fn any(self) -> bool {
        self.clients.is_none() && self.servers.is_none()
    }
}

impl Lowering<'_> {
    fn helpers(&self) -> impl Iterator<Item = (&Helper, Origin)> {
        self.policy
            .helper
            .iter()
            .map(|helper| (helper.get_ref(), origin(helper)))
    }

    /// What a rule needs once per family: from clients to servers.
    fn forward_matches(&self, ends: Ends<'_>) -> Vec<Vec<Statement>> {
        self.per_family(ends.clients, ends.servers)
    }

    /// What a rule needs once per family: from servers to clients.
    fn backward_matches(&self, ends: Ends<'_>) -> Vec<Vec<Statement>> {
        self.per_family(ends.servers, ends.clients)
    }

    fn per_family(&self, from: Option<&Name>, to: Option<&Name>) -> Vec<Vec<Statement>> {
        let families = &self.policy.families;
        if from.is_none() && to.is_none() {
            return vec![families.only().map(build::family).into_iter().collect()];
        }
        families
            .as_slice()
            .iter()
            .map(|family| endpoints(*family, from, to))
            .collect()
    }

    /// A counter, if rules count.
    fn counter(&self, name: &str) -> Option<Statement> {
        self.policy
            .counting()
            .then(|| Statement::Counter(name.to_owned()))
    }

    fn address_sets(&self, addresses: &mut AddressSets) -> Vec<Set> {
        let mut sets = Vec::new();
        for (name, section) in &self.policy.addresses {
            for family in self.policy.families.as_slice() {
                sets.push(Set {
                    name: set_name(name, *family),
                    key: match family {
                        Family::Ip => Key::Ipv4,
                        Family::Ip6 => Key::Ipv6,
                    },
                    timeout: false,
                    elements: addresses.take(name, *family),
                    owner: Owner::Policy,
                    why: None,
                    origin: origin(section),
                });
            }
        }
        sets
    }
}

/// `ip saddr @from4 ip daddr @to4`.
fn endpoints(family: Family, from: Option<&Name>, to: Option<&Name>) -> Vec<Statement> {
    let named = |field, name: &Name| build::is(field, Value::Named(set_name(name, family)));
    let from = from.map(|name| named(Field::Saddr(family), name));
    let to = to.map(|name| named(Field::Daddr(family), name));
    from.into_iter().chain(to).collect()
}

fn set_name(name: &Name, family: Family) -> String {
    let digit = match family {
        Family::Ip => 4,
        Family::Ip6 => 6,
    };
    format!("{}{digit}", name.as_str())
}

/// A counter object for each name that a rule counts in.
fn counters<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<Object> {
    let statements = rules.flat_map(|rule| &rule.statements);
    let names: BTreeSet<_> = statements
        .filter_map(|statement| match statement {
            Statement::Counter(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    names
        .into_iter()
        .map(|name| Object {
            name,
            kind: ObjectKind::Counter,
            why: None,
            origin: Origin::default(),
        })
        .collect()
}

fn origin<T>(section: &Spanned<T>) -> Origin {
    let span = section.span();
    Origin((!span.is_empty()).then_some(span))
}

fn name(reference: Option<&Spanned<Name>>) -> Option<&Name> {
    reference.map(Spanned::get_ref)
}
