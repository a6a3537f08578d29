//! Address translation, in either family.

use std::net::IpAddr;

use toml::Spanned;

use crate::ir::{
    Chain, ChainType, Family, Field, Hook, L4, NatKind, Policy as BasePolicy, Rule, Statement,
};
use crate::policy::values::{Interface, Name};
use crate::policy::{Dnat, Firewall, Masquerade, Passive, Snat};

use super::build::{base, destination, dports, family, interfaces, rule};
use super::passive::passive_ports;
use super::{Lowering, endpoints, name, origin};

/// nft's `dstnat` and `srcnat`.
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

impl Lowering<'_> {
    /// NAT chains, if there is anything to translate.
    pub(super) fn nat_chains(&self, firewall: &Firewall) -> Vec<Chain> {
        let mut before = base(
            "dstnat",
            ChainType::Nat,
            Hook::Prerouting,
            DSTNAT,
            BasePolicy::Accept,
        );
        for section in &firewall.dnat {
            before.rules.push(dnat(section));
            before.rules.extend(self.passive_dnat(section));
        }
        let mut after = base(
            "srcnat",
            ChainType::Nat,
            Hook::Postrouting,
            SRCNAT,
            BasePolicy::Accept,
        );
        for section in &firewall.snat {
            after.rules.extend(snat(section));
        }
        for section in &firewall.masquerade {
            after.rules.extend(self.masquerade(section));
        }
        let mut chains = vec![before, after];
        chains.retain(|chain| !chain.rules.is_empty());
        chains
    }

    /// A server's fixed passive ports are reached as its control port is.
    fn passive_dnat(&self, section: &Spanned<Dnat>) -> Vec<Rule> {
        let dnat = section.get_ref();
        let control = dnat.to_port.unwrap_or(dnat.port).0;
        let of_server = |passive: &&Spanned<Passive>| {
            let ports = &passive.get_ref().control_ports;
            ports.get_ref().as_slice().contains(&control)
        };
        let passive = self.policy.passive.iter().filter(of_server);
        let rules = passive.map(|passive| {
            let statements = interfaces(Field::Iifname, &dnat.interfaces)
                .into_iter()
                .chain([destination(dnat.address), passive_ports(passive.get_ref())])
                .chain([Statement::Nat {
                    kind: NatKind::Dnat,
                    address: *dnat.to.get_ref(),
                    port: None,
                }]);
            rule(statements).from(&origin(passive))
        });
        rules.collect()
    }

    fn masquerade(&self, section: &Spanned<Masquerade>) -> Vec<Rule> {
        let masquerade = section.get_ref();
        let families = masquerade
            .families
            .as_ref()
            .unwrap_or(&self.policy.families);
        let from = name(masquerade.from.as_ref());
        let leaving = |l3: Family| leaving(&masquerade.interfaces, from, l3);
        let rules = families
            .as_slice()
            .iter()
            .map(|l3| rule(leaving(*l3).into_iter().chain([Statement::Masquerade])));
        rules.map(|rule| rule.from(&origin(section))).collect()
    }
}

fn snat(section: &Spanned<Snat>) -> Option<Rule> {
    let snat = section.get_ref();
    let matches = leaving(
        &snat.interfaces,
        name(snat.from.as_ref()),
        Family::of(snat.to),
    );
    let statement = Statement::Nat {
        kind: NatKind::Snat,
        address: snat.to,
        port: None,
    };
    Some(rule(matches.into_iter().chain([statement])).from(&origin(section)))
}

fn dnat(section: &Spanned<Dnat>) -> Rule {
    let dnat = section.get_ref();
    let address: IpAddr = *dnat.to.get_ref();
    let port = dnat
        .to_port
        .filter(|port| *port != dnat.port)
        .map(|port| port.0);
    let statements = interfaces(Field::Iifname, &dnat.interfaces)
        .into_iter()
        .chain([destination(dnat.address)])
        .chain(dports(L4::Tcp, &[dnat.port.0]))
        .chain([Statement::Nat {
            kind: NatKind::Dnat,
            address,
            port,
        }]);
    rule(statements).from(&origin(section))
}

/// By these interfaces, from these addresses, of this family.
fn leaving(out: &[Interface], from: Option<&Name>, l3: Family) -> Vec<Statement> {
    let matches = match from {
        Some(_) => endpoints(l3, from, None),
        None => vec![family(l3)],
    };
    interfaces(Field::Oifname, out)
        .into_iter()
        .chain(matches)
        .collect()
}
