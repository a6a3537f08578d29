//! What only makes sense together: references, clashes, ambiguities.

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;

use super::values::{Families, HelperName, Interface, Name};
use crate::ir::Family;

use super::{Assign, Data, Dnat, Firewall, Helper, Mistake, Policy};

/// Every mistake in a policy that could be read.
#[must_use]
pub fn validate(policy: &Policy) -> Vec<Mistake> {
    let mut checker = Checker {
        policy,
        mistakes: Vec::new(),
    };
    checker.helpers();
    checker.expectations();
    checker.passive();
    checker.related();
    checker.zones();
    if let Some(firewall) = &policy.firewall {
        checker.firewall(firewall.get_ref());
    }
    checker.mistakes
}

struct Checker<'a> {
    policy: &'a Policy,
    mistakes: Vec<Mistake>,
}

impl Checker<'_> {
    fn mistake(&mut self, span: Range<usize>, message: String, help: Option<&str>) {
        let span = (!span.is_empty()).then_some(span);
        self.mistakes.push(Mistake {
            message,
            span,
            help: help.map(str::to_owned),
        });
    }

    fn addresses(&mut self, name: Option<&Spanned<Name>>) {
        let Some(name) = name else { return };
        if !self.policy.addresses.contains_key(name.get_ref()) {
            let message = format!("no addresses are called {:?}", name.get_ref().as_str());
            let help = format!("add a section [addresses.{}]", name.get_ref().as_str());
            self.mistake(name.span(), message, Some(&help));
        }
    }

    fn interfaces(&mut self, interfaces: &[Interface], span: Range<usize>) {
        if interfaces.len() > 1 {
            if let Some(wildcard) = interfaces.iter().find(|one| one.is_wildcard()) {
                let message = format!("wildcard {:?} must stand alone", wildcard.as_str());
                self.mistake(
                    span,
                    message,
                    Some("nft cannot mix it with others in one rule"),
                );
            }
        }
    }

    fn helpers(&mut self) {
        let mut names = BTreeSet::new();
        for helper in &self.policy.helper {
            let (span, helper) = (helper.span(), helper.get_ref());
            for (name, _) in helper.instances() {
                if let Some(name) = names.replace(name) {
                    let message = format!("two helpers are called {name:?}");
                    self.mistake(span.clone(), message, None);
                }
            }
            self.queues(helper);
            if helper.ports.as_slice().is_empty() {
                self.mistake(
                    span,
                    "a helper without ports is assigned to nothing".to_owned(),
                    None,
                );
            }
            self.addresses(helper.servers.as_ref());
            self.addresses(helper.clients.as_ref());
        }
    }

    fn queues(&mut self, helper: &Helper) {
        let span = helper.queues.span();
        if helper.queues.get_ref().0 == 1 {
            return;
        }
        if helper.kind.as_str() == "ftp" {
            let message = "the kernel's own helper has no queues".to_owned();
            self.mistake(span.clone(), message, None);
        }
        if helper.assign == Assign::Map {
            self.mistake(
                span.clone(),
                "a map from ports cannot spread connections over queues".to_owned(),
                Some("leave assign = \"map\" out"),
            );
        }
        let longest = helper.instances().map(|(_, kind)| kind).last();
        if let Some(kind) = longest.filter(|kind| kind.len() > HelperName::MAX) {
            let message = format!("the last queue's helper would be {kind:?}");
            let help = format!("a helper's name has at most {} characters", HelperName::MAX);
            self.mistake(span, message, Some(&help));
        }
    }

    /// A connection that has a helper cannot get expectations from an
    /// object, and the other way round
    /// (`nft_ct_helper_obj_eval`: the helper extension exists already).
    fn expectations(&mut self) {
        let mut names = BTreeSet::new();
        for expectation in &self.policy.expectation {
            let (span, expectation) = (expectation.span(), expectation.get_ref());
            if !names.insert(&expectation.name) {
                let message = format!(
                    "two expectations are called {:?}",
                    expectation.name.as_str()
                );
                self.mistake(span, message, None);
            }
            let control = &expectation.control_ports;
            if control.get_ref().as_slice().is_empty() {
                self.mistake(control.span(), "no control ports".to_owned(), None);
            }
            let clash = control
                .get_ref()
                .as_slice()
                .iter()
                .find(|port| self.watched(**port));
            if let Some(port) = clash.copied() {
                self.mistake(
                    control.span(),
                    format!("a helper already watches port {port}"),
                    Some("a connection has either a helper or expectations of its own"),
                );
            }
            if let Some(size) = expectation
                .size
                .as_ref()
                .filter(|size| *size.get_ref() == 0)
            {
                self.mistake(
                    size.span(),
                    "size 0 allows no expectation at all".to_owned(),
                    None,
                );
            }
            self.addresses(expectation.servers.as_ref());
            self.addresses(expectation.clients.as_ref());
        }
    }

    fn passive(&mut self) {
        let mut names = BTreeSet::new();
        for section in &self.policy.passive {
            let (span, passive) = (section.span(), section.get_ref());
            let name = passive.name.as_str();
            if self.policy.firewall.is_none() {
                self.mistake(
                    span.clone(),
                    "passive ports without a firewall".to_owned(),
                    Some("rules of other tables cannot see the sets: add [firewall]"),
                );
            }
            if !names.insert(name) || self.policy.addresses.contains_key(&passive.name) {
                let message = format!("two sets are called {name:?}");
                self.mistake(span, message, None);
            }
            let control = &passive.control_ports;
            if control.get_ref().as_slice().is_empty() {
                self.mistake(control.span(), "no control ports".to_owned(), None);
            }
            if passive.ports.get_ref().from < 1024 {
                self.mistake(
                    passive.ports.span(),
                    "these are ports of the system's services".to_owned(),
                    Some("give the servers passive ports from 1024 on"),
                );
            }
            let timeout = passive.timeout.get_ref().0;
            if timeout < 1000 || timeout % 1000 != 0 {
                let message = "the timeout is not in whole seconds".to_owned();
                self.mistake(passive.timeout.span(), message, None);
            }
            if *passive.size.get_ref() == 0 {
                let message = "size 0 lets nobody in".to_owned();
                self.mistake(passive.size.span(), message, None);
            }
            self.addresses(passive.servers.as_ref());
            self.addresses(passive.clients.as_ref());
        }
    }

    fn watched(&self, port: u16) -> bool {
        let mut helpers = self.policy.helper.iter();
        helpers.any(|helper| helper.get_ref().ports.as_slice().contains(&port))
    }

    /// Without addresses a passive data connection looks like an active one.
    fn related(&mut self) {
        let related = &self.policy.related;
        let span = related.data.span();
        let anonymous = self.policy.helper.iter().any(|helper| {
            let helper = helper.get_ref();
            helper.servers.is_none() && helper.clients.is_none()
        });
        match related.data.get_ref().as_slice() {
            [] => self.mistake(span, "no data connection would be allowed".to_owned(), None),
            [Data::Passive] if anonymous => self.mistake(
                span,
                "passive cannot be told from active without addresses".to_owned(),
                Some("give the helper servers or clients"),
            ),
            [Data::Active] if anonymous && related.active_source_port.is_none() => self.mistake(
                span,
                "active cannot be told from passive without addresses".to_owned(),
                Some("give the helper servers or clients, or set active-source-port = 20"),
            ),
            _ => {}
        }
    }

    fn zones(&mut self) {
        for zone in &self.policy.zone {
            let (span, zone) = (zone.span(), zone.get_ref());
            if zone.interfaces.is_empty() {
                self.mistake(
                    span.clone(),
                    "a zone without interfaces holds nothing".to_owned(),
                    None,
                );
            }
            self.interfaces(&zone.interfaces, span);
        }
    }

    fn firewall(&mut self, firewall: &Firewall) {
        let span = self.policy.firewall.as_ref().map_or(0..0, Spanned::span);
        self.interfaces(&firewall.client_interfaces, span.clone());
        self.interfaces(&firewall.server_interfaces, span.clone());
        for allow in &firewall.allow {
            self.addresses(allow.get_ref().from.as_ref());
            self.addresses(allow.get_ref().to.as_ref());
            if allow.get_ref().ports.as_slice().is_empty() {
                self.mistake(allow.span(), "no ports".to_owned(), None);
            }
        }
        if let Some(input) = &firewall.input {
            self.addresses(input.from.as_ref());
        }
        if let Some(vrrp) = &firewall.vrrp {
            self.interfaces(&vrrp.interfaces, span.clone());
            self.addresses(vrrp.peers.as_ref());
        }
        if let Some(link) = &firewall.link {
            self.interfaces(&link.interfaces, span);
            self.addresses(link.peers.as_ref());
        }
        self.nat(firewall);
    }

    fn nat(&mut self, firewall: &Firewall) {
        for masquerade in &firewall.masquerade {
            self.interfaces(&masquerade.get_ref().interfaces, masquerade.span());
            self.addresses(masquerade.get_ref().from.as_ref());
            for family in masquerade
                .get_ref()
                .families
                .iter()
                .flat_map(Families::as_slice)
            {
                self.family(*family, masquerade.span());
            }
        }
        for snat in &firewall.snat {
            self.interfaces(&snat.get_ref().interfaces, snat.span());
            self.addresses(snat.get_ref().from.as_ref());
            self.family(Family::of(snat.get_ref().to), snat.span());
        }
        for dnat in &firewall.dnat {
            self.interfaces(&dnat.get_ref().interfaces, dnat.span());
            self.family(Family::of(dnat.get_ref().address), dnat.span());
            self.dnat(dnat.get_ref());
        }
    }

    fn family(&mut self, family: Family, span: Range<usize>) {
        if !self.policy.families.as_slice().contains(&family) {
            let message = format!("the policy has no rules for {}", family.keyword());
            self.mistake(span, message, Some("add the family to families"));
        }
    }

    fn dnat(&mut self, dnat: &Dnat) {
        if dnat.address.is_ipv4() != dnat.to.get_ref().is_ipv4() {
            let message = "a server of the other family cannot be reached by NAT".to_owned();
            self.mistake(dnat.to.span(), message, None);
        }
        if let Some(name) = &dnat.helper {
            let known = self
                .policy
                .helper
                .iter()
                .any(|one| one.get_ref().name == *name.get_ref());
            if !known {
                let message = format!("no helper is called {:?}", name.get_ref().as_str());
                self.mistake(name.span(), message, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Policy;

    /// The first mistake in a policy.
    fn mistake(policy: &str) -> String {
        let mistakes = Policy::parse(policy).expect_err(policy);
        mistakes
            .first()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    #[test]
    fn passive_ports_that_make_no_sense_are_refused() {
        let good = "[[passive]]\nname = \"a\"\ncontrol-ports = [990]\nports = \"2000-2009\"\n";
        let firewall = "[firewall]\n";
        assert!(Policy::parse(&format!("{good}{firewall}")).is_ok());
        assert_eq!(mistake(good), "passive ports without a firewall");
        for (from, to, expected) in [
            (
                "2000-2009",
                "1000-2009",
                "these are ports of the system's services",
            ),
            ("[990]", "[]", "no control ports"),
            ("[990]", "[990]\nsize = 0", "size 0 lets nobody in"),
            (
                "[990]",
                "[990]\ntimeout = \"1500ms\"",
                "the timeout is not in whole seconds",
            ),
            (
                "[990]",
                "[990]\nservers = \"b\"",
                "no addresses are called \"b\"",
            ),
        ] {
            let policy = good.replace(from, to) + firewall;
            assert_eq!(mistake(&policy), expected);
        }
        let twice = format!("{good}{firewall}[addresses.a]\n");
        assert_eq!(mistake(&twice), "two sets are called \"a\"");
    }
}
