//! Fixed passive ports of servers whose control connections cannot be read.
//!
//! A packet of a client on a control connection that the server answers puts
//! the pair of addresses into a set, for a while; the passive ports are open
//! to pairs in the set. A made up source address does not get there: the
//! connection has to be established. After a failover the first command of a
//! client does, so nothing has to be mirrored.

use crate::elements::Elements;
use crate::ir::{Family, Field, Key, L4, Owner, Rule, Set, Statement, Value, state};
use crate::policy::Passive;

use super::build::{accept, dports, is, number, rule, state};
use super::{Lowering, endpoints, name, origin, set_name};

/// `IP_CT_DIR_ORIGINAL`.
const ORIGINAL: u32 = 0;

impl Lowering<'_> {
    /// One set of pairs per family.
    pub(super) fn pair_sets(&self) -> Vec<Set> {
        let mut sets = Vec::new();
        for section in &self.policy.passive {
            let passive = section.get_ref();
            for family in self.policy.families.as_slice() {
                sets.push(Set {
                    name: set_name(&passive.name, *family),
                    key: Key::Pairs {
                        family: *family,
                        timeout_secs: passive.timeout.get_ref().0 / 1000,
                        size: *passive.size.get_ref(),
                    },
                    timeout: true,
                    elements: Elements::None,
                    owner: Owner::Operator,
                    why: Some(format!(
                        "Clients and the servers they speak to on ports {}.",
                        listed(passive)
                    )),
                    origin: origin(section),
                });
            }
        }
        sets
    }

    /// Before established connections are accepted: who speaks to whom.
    pub(super) fn remember_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (passive, family, matches, section) in self.passive() {
            let statements = dports(L4::Tcp, passive.control_ports.get_ref().as_slice())
                .into_iter()
                .chain([
                    state(state::ESTABLISHED),
                    is(Field::CtDirection, Value::One(number(ORIGINAL))),
                ])
                .chain(matches)
                .chain([Statement::Update {
                    set: set_name(&passive.name, family),
                    family,
                }]);
            rules.push(rule(statements).from(&section));
        }
        if let Some(first) = rules.first_mut() {
            first.why = Some(
                "Control connections that cannot be read: who speaks to whom, once the\n\
                 server has answered."
                    .to_owned(),
            );
        }
        rules
    }

    /// Passive data connections of those.
    pub(super) fn passive_rules(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (passive, family, _, section) in self.passive() {
            let set = Value::Named(set_name(&passive.name, family));
            let statements = [
                is(Field::Ends(family), set),
                passive_ports(passive),
                state(state::NEW),
            ];
            let statements = statements
                .into_iter()
                .chain(self.counter("passive_accepted"))
                .chain([accept()]);
            rules.push(rule(statements).from(&section));
        }
        if let Some(first) = rules.first_mut() {
            first.why = Some("Their data connections, to the servers' passive ports.".to_owned());
        }
        rules
    }

    /// Each section in each family, with its limits to addresses.
    fn passive(
        &self,
    ) -> impl Iterator<Item = (&Passive, Family, Vec<Statement>, crate::ir::Origin)> {
        self.policy.passive.iter().flat_map(|section| {
            let passive = section.get_ref();
            let (clients, servers) = (
                name(passive.clients.as_ref()),
                name(passive.servers.as_ref()),
            );
            let families = self.policy.families.as_slice().iter();
            families.map(move |family| {
                let matches = endpoints(*family, clients, servers);
                (passive, *family, matches, origin(section))
            })
        })
    }
}

/// `tcp dport FROM-TO`.
pub(super) fn passive_ports(passive: &Passive) -> Statement {
    let ports = passive.ports.get_ref();
    let value = if ports.from == ports.to {
        Value::One(number(ports.from))
    } else {
        Value::Range(number(ports.from), number(ports.to))
    };
    is(Field::Dport(L4::Tcp), value)
}

fn listed(passive: &Passive) -> String {
    let ports = passive.control_ports.get_ref().as_slice().iter();
    let ports: Vec<_> = ports.map(ToString::to_string).collect();
    ports.join(", ")
}
