//! The whole forward policy of a fault-tolerant pair.

use toml::Spanned;

use crate::elements::Elements;
use crate::ir::{
    Chain, ChainType, Field, Hook, Key, L4, Match, Op, Origin, Owner, Policy as BasePolicy, Rule,
    Scalar, Set, Statement, Value, state, status, tcp_flags,
};
use crate::policy::values::Name;
use crate::policy::{Firewall, Input, Protocol};

use super::build::{
    accept, any_of, base, destination, dports, drop, interfaces, is, number, rule, state,
};
use super::{Ends, Lowering, name, origin};

/// nft's `filter`.
const FILTER: i32 = 0;
/// After conntrack (-200), before helpers are assigned.
const HOLD: i32 = -160;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const VRRP: u8 = 112;

/// The set whose one element switches the hold chain on.
const HOLD_SET: &str = "hold";

impl Lowering<'_> {
    pub(super) fn firewall_chains(&self, section: &Spanned<Firewall>) -> Vec<Chain> {
        let firewall = section.get_ref();
        let mut chains = Vec::new();
        if firewall.hold {
            chains.push(self.hold_chain());
        }
        chains.extend(self.nat_chains(firewall));
        if let Some(input) = &firewall.input {
            chains.push(self.input_chain(firewall, input));
        }
        chains.push(self.forward_chain(firewall));
        for chain in &mut chains {
            chain.origin = origin(section);
        }
        chains
    }

    pub(super) fn hold_set(&self) -> Option<Set> {
        let firewall = self.policy.firewall.as_ref()?;
        firewall.get_ref().hold.then(|| Set {
            name: HOLD_SET.to_owned(),
            key: Key::Proto,
            timeout: true,
            elements: Elements::None,
            owner: Owner::Operator,
            why: Some(format!(
                "Hold on, before a takeover:  nft add element inet {0} hold '{{ tcp timeout 30s }}'\n\
                 Hold off, after the commit:  nft delete element inet {0} hold '{{ tcp }}'",
                self.policy.table.as_str()
            )),
            origin: origin(firewall),
        })
    }

    fn hold_chain(&self) -> Chain {
        let mut chain = base(
            "hold",
            ChainType::Filter,
            Hook::Prerouting,
            HOLD,
            BasePolicy::Accept,
        );
        chain.why = Some(
            "While connections are being committed after a takeover, a packet from the\n\
             middle of one is not known yet. It is dropped, so that its sender repeats\n\
             it: let through, it would meet a reset, or lose its NAT."
                .to_owned(),
        );
        // The set last: nft 1.1 cannot tell that a protocol from a set is TCP.
        let statements = [
            state(state::INVALID | state::NEW),
            Statement::Match(Match {
                field: Field::TcpFlags(tcp_flags::OPENING),
                op: Op::Ne,
                value: Value::One(number(tcp_flags::SYN)),
            }),
            is(Field::L4proto, Value::Named(HOLD_SET.to_owned())),
        ];
        chain.rules = vec![rule(
            statements
                .into_iter()
                .chain(self.counter("held"))
                .chain([drop()]),
        )];
        chain
    }

    fn forward_chain(&self, firewall: &Firewall) -> Chain {
        let mut chain = base(
            "forward",
            ChainType::Filter,
            Hook::Forward,
            FILTER,
            BasePolicy::Drop,
        );
        chain.why = Some("Everything that no rule accepts is dropped.".to_owned());
        chain.rules.extend(self.remember_rules());
        chain.rules.extend(self.common_rules("forward"));
        let mut related = self.related_rules();
        if let Some(first) = related.first_mut() {
            first.why = Some(
                "Data connections: of our helper only, to unprivileged ports only.".to_owned(),
            );
        }
        chain.rules.extend(related);
        chain.rules.extend(self.passive_rules());
        chain.rules.extend(self.control_rules(firewall));
        chain.rules.extend(self.dnat_control_rules(firewall));
        chain.rules.extend(self.allow_rules(firewall));
        chain.rules.extend(self.last_rules(firewall, "forward"));
        chain
    }

    /// Established connections, ICMP errors that belong to one, and refuse.
    fn common_rules(&self, place: &str) -> Vec<Rule> {
        let counter = |name: &str| self.counter(&format!("{place}_{name}"));
        let established = [state(state::ESTABLISHED)];
        let errors = any_of(Field::L4proto, vec![number(ICMP), number(ICMPV6)]);
        let invalid = [state(state::INVALID)];
        vec![
            rule(
                established
                    .into_iter()
                    .chain(counter("established"))
                    .chain([accept()]),
            ),
            rule(errors.into_iter().chain([state(state::RELATED), accept()]))
                .because("ICMP errors about connections that are allowed."),
            rule(
                invalid
                    .into_iter()
                    .chain(counter("invalid"))
                    .chain([drop()]),
            ),
        ]
    }

    fn control_rules(&self, firewall: &Firewall) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (helper, origin) in self.helpers() {
            let ends = Ends {
                clients: name(helper.clients.as_ref()),
                servers: name(helper.servers.as_ref()),
            };
            rules.extend(self.control(firewall, ends, helper.ports.as_slice(), &origin));
        }
        for section in &self.policy.expectation {
            let expectation = section.get_ref();
            let ends = Ends {
                clients: name(expectation.clients.as_ref()),
                servers: name(expectation.servers.as_ref()),
            };
            let ports = expectation.control_ports.get_ref().as_slice();
            rules.extend(self.control(firewall, ends, ports, &origin(section)));
        }
        for section in &self.policy.passive {
            let passive = section.get_ref();
            let ends = Ends {
                clients: name(passive.clients.as_ref()),
                servers: name(passive.servers.as_ref()),
            };
            let ports = passive.control_ports.get_ref().as_slice();
            rules.extend(self.control(firewall, ends, ports, &origin(section)));
        }
        if let Some(first) = rules.first_mut() {
            first.why = Some("New control connections.".to_owned());
        }
        rules
    }

    fn control(
        &self,
        firewall: &Firewall,
        ends: Ends<'_>,
        ports: &[u16],
        origin: &Origin,
    ) -> Vec<Rule> {
        let mut rules = Vec::new();
        for matches in self.forward_matches(ends) {
            let statements = between(firewall)
                .into_iter()
                .chain(matches)
                .chain(dports(L4::Tcp, ports))
                .chain([state(state::NEW)])
                .chain(self.counter("control_accepted"))
                .chain([accept()]);
            rules.push(rule(statements).from(origin));
        }
        rules
    }

    /// The forward hook sees the server's own address and port.
    fn dnat_control_rules(&self, firewall: &Firewall) -> Vec<Rule> {
        let mut rules = Vec::new();
        for section in &firewall.dnat {
            let dnat = section.get_ref();
            let port = dnat.to_port.unwrap_or(dnat.port).0;
            let statements = interfaces(Field::Iifname, &dnat.interfaces)
                .into_iter()
                .chain([destination(*dnat.to.get_ref())])
                .chain(dports(L4::Tcp, &[port]))
                .chain([
                    state(state::NEW),
                    is(Field::CtStatus, Value::Bits(status::DNAT)),
                ])
                .chain(self.counter("control_accepted"))
                .chain([accept()]);
            rules.push(rule(statements).from(&origin(section)));
        }
        rules
    }

    fn allow_rules(&self, firewall: &Firewall) -> Vec<Rule> {
        let mut rules = Vec::new();
        for section in &firewall.allow {
            let allow = section.get_ref();
            let l4 = match allow.protocol {
                Protocol::Tcp => L4::Tcp,
                Protocol::Udp => L4::Udp,
            };
            for matches in self.per_family(name(allow.from.as_ref()), name(allow.to.as_ref())) {
                let statements = matches
                    .into_iter()
                    .chain(dports(l4, allow.ports.as_slice()))
                    .chain([state(state::NEW)])
                    .chain(self.counter("allowed"))
                    .chain([accept()]);
                rules.push(rule(statements).from(&origin(section)));
            }
        }
        rules
    }

    /// Log and count what the chain's policy is about to drop.
    fn last_rules(&self, firewall: &Firewall, place: &str) -> Vec<Rule> {
        let log = &firewall.log;
        let mut rules = Vec::new();
        if log.rate > 0 {
            rules.push(rule([
                Statement::Limit {
                    rate: log.rate,
                    burst: log.burst.max(1),
                },
                Statement::Log {
                    prefix: log.prefix.as_str().to_owned(),
                    group: log.group,
                },
            ]));
        }
        rules.extend(
            self.counter(&format!("{place}_dropped"))
                .map(|counter| rule([counter])),
        );
        rules
    }

    fn input_chain(&self, firewall: &Firewall, input: &Input) -> Chain {
        let mut chain = base(
            "input",
            ChainType::Filter,
            Hook::Input,
            FILTER,
            BasePolicy::Drop,
        );
        chain.why = Some("The firewall itself.".to_owned());
        let loopback = is(Field::Iifname, Value::One(Scalar::Text("lo".to_owned())));
        chain.rules.push(rule([loopback, accept()]));
        chain.rules.extend(self.common_rules("input"));
        chain.rules.extend(
            any_of(Field::L4proto, vec![number(ICMP), number(ICMPV6)])
                .map(|icmp| rule([icmp, accept()]).because("Echo, neighbour discovery, path MTU.")),
        );
        chain.rules.extend(self.vrrp_rules(firewall));
        chain.rules.extend(self.link_rules(firewall));
        for (l4, ports) in [(L4::Tcp, &input.tcp), (L4::Udp, &input.udp)] {
            if ports.as_slice().is_empty() {
                continue;
            }
            for matches in self.per_family(name(input.from.as_ref()), None) {
                let ports = dports(l4, ports.as_slice());
                let statements = matches.into_iter().chain(ports);
                chain
                    .rules
                    .push(rule(statements.chain([state(state::NEW), accept()])));
            }
        }
        chain.rules.extend(self.last_rules(firewall, "input"));
        chain
    }

    fn vrrp_rules(&self, firewall: &Firewall) -> Vec<Rule> {
        let Some(vrrp) = &firewall.vrrp else {
            return Vec::new();
        };
        let protocol = is(Field::L4proto, Value::One(number(VRRP)));
        let matches = interfaces(Field::Iifname, &vrrp.interfaces)
            .into_iter()
            .chain([protocol]);
        self.peer_rules(
            matches.collect(),
            vrrp.peers.as_ref(),
            "VRRP from the other firewall.",
        )
    }

    fn link_rules(&self, firewall: &Firewall) -> Vec<Rule> {
        let Some(link) = &firewall.link else {
            return Vec::new();
        };
        let matches = interfaces(Field::Iifname, &link.interfaces)
            .into_iter()
            .chain(dports(L4::Udp, &[link.port.0]));
        self.peer_rules(
            matches.collect(),
            link.peers.as_ref(),
            "ctsync of the other firewall.",
        )
    }

    fn peer_rules(
        &self,
        matches: Vec<Statement>,
        peers: Option<&Spanned<Name>>,
        why: &str,
    ) -> Vec<Rule> {
        let mut rules: Vec<_> = self
            .per_family(name(peers), None)
            .into_iter()
            .map(|from| rule(from.into_iter().chain(matches.clone()).chain([accept()])))
            .collect();
        if let Some(first) = rules.first_mut() {
            first.why = Some(why.to_owned());
        }
        rules
    }

    /// Tracking the link would mirror the mirror's own packets.
    pub(super) fn link_untracked(&self, field: Field) -> Option<Rule> {
        let firewall = self.policy.firewall.as_ref()?;
        let link = firewall.get_ref().link.as_ref()?;
        let statements = interfaces(field, &link.interfaces)
            .into_iter()
            .chain(dports(L4::Udp, &[link.port.0]))
            .chain([Statement::Notrack]);
        let why = "The ctsync link: tracking it would mirror the mirror.";
        Some(rule(statements).because(why).from(&origin(firewall)))
    }
}

/// From the clients' interfaces to the servers'.
fn between(firewall: &Firewall) -> Vec<Statement> {
    let from = interfaces(Field::Iifname, &firewall.client_interfaces);
    let to = interfaces(Field::Oifname, &firewall.server_interfaces);
    from.into_iter().chain(to).collect()
}
