//! Which connections are mirrored.

use crate::config::{self, Mirror};
use netfilter::bpf::EventFilter;
use netfilter::conntrack::DumpFilter;
use netfilter::tuple::IPPROTO_UDP;
use netfilter::{Flow, Status, Tuple};
use std::net::IpAddr;

/// The filter of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    mirror: Mirror,
    protocols: Vec<u8>,
    link_ends: Vec<(IpAddr, u16)>,
}

impl Filter {
    /// What `mirror` says, and never the links between the nodes.
    pub fn new(mirror: Mirror, link_ends: Vec<(IpAddr, u16)>) -> Self {
        let numbers = mirror.protocols.iter();
        Self {
            protocols: numbers.filter_map(|p| config::protocol_number(p)).collect(),
            mirror,
            link_ends,
        }
    }

    /// The part that the kernel can decide for events: protocols and zones,
    /// which never change. `ours` are sockets whose own events don't matter.
    pub fn of_events<'a>(&'a self, ours: &'a [u32]) -> EventFilter<'a> {
        EventFilter {
            not_by: ours,
            protocols: &self.protocols,
            zones: &self.mirror.zones,
        }
    }

    /// The part that the kernel can decide for dumps.
    pub fn of_dumps(&self) -> DumpFilter {
        let m = &self.mirror;
        let zone = match m.zones.as_slice() {
            [zone] if *zone != 0 => Some(*zone),
            _ => None,
        };
        DumpFilter {
            mark: m.mark.map(|k| (k.value & k.mask, k.mask)),
            status: m.assured_only.then_some(Status::ASSURED),
            zone,
            ..DumpFilter::default()
        }
    }

    /// True if expectations are mirrored.
    pub const fn expectations(&self) -> bool {
        !self.mirror.no_expectations
    }

    /// True if the connection is mirrored.
    pub fn passes(&self, flow: &Flow) -> bool {
        let m = &self.mirror;
        self.passes_tuple(&flow.orig)
            && (m.zones.is_empty() || m.zones.contains(&flow.zone))
            && self.passes_addresses(flow)
            && m.mark
                .is_none_or(|k| flow.mark.unwrap_or(0) & k.mask == k.value & k.mask)
            && (!m.assured_only || has(flow, Status::ASSURED))
            && (!m.helper_only || flow.help.is_some() || flow.master.is_some())
    }

    fn passes_tuple(&self, t: &Tuple) -> bool {
        let ports = &self.mirror.ports;
        (self.protocols.is_empty() || self.protocols.contains(&t.l4proto))
            && (ports.is_empty() || ports.contains(&t.dport()))
            && !(t.src.is_loopback() || t.dst.is_loopback())
            && !self.is_link(t)
    }

    fn passes_addresses(&self, flow: &Flow) -> bool {
        let m = &self.mirror;
        if m.only.is_empty() && m.ignore.is_empty() {
            return true;
        }
        let ends = [flow.orig.src, flow.orig.dst, flow.reply.src, flow.reply.dst];
        let inside =
            |nets: &[ipnet::IpNet]| ends.iter().any(|a| nets.iter().any(|n| n.contains(a)));
        (m.only.is_empty() || inside(&m.only)) && !inside(&m.ignore)
    }

    fn is_link(&self, t: &Tuple) -> bool {
        t.l4proto == IPPROTO_UDP
            && self
                .link_ends
                .iter()
                .any(|end| *end == (t.src, t.sport()) || *end == (t.dst, t.dport()))
    }
}

fn has(flow: &Flow, bit: Status) -> bool {
    flow.status.unwrap_or_default().contains(bit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{ip, tcp};

    fn filter(text: &str) -> Filter {
        let ends = vec![(ip("198.51.100.1"), 3780)];
        Filter::new(toml::from_str(text).unwrap(), ends)
    }

    #[test]
    fn every_condition_that_is_given_must_hold() {
        let flow = tcp(1);
        for (text, passes) in [
            ("", true),
            ("protocols = ['udp', '6']", true),
            ("protocols = ['udp']", false),
            ("ports = [80]", true),
            ("ports = [21]", false),
            ("only = ['10.0.0.0/8']", true),
            ("only = ['172.16.0.0/12']", false),
            ("ignore = ['192.0.2.0/24']", false),
            ("zones = [1]", false),
            ("mark = { value = 1 }", false),
            ("mark = { value = 0, mask = 1 }", true),
            ("assured-only = true", true),
            ("helper-only = true", false),
        ] {
            assert_eq!(filter(text).passes(&flow), passes, "{text}");
        }
    }

    #[test]
    fn the_link_and_loopback_are_never_mirrored() {
        let f = filter("");
        let mut flow = tcp(1);
        flow.orig.l4proto = IPPROTO_UDP;
        assert!(f.passes(&flow));
        flow.orig = Tuple {
            l4proto: IPPROTO_UDP,
            ..Tuple::tcp(ip("198.51.100.2"), 3780, ip("198.51.100.1"), 3780)
        };
        assert!(!f.passes(&flow));
        flow.orig = Tuple::tcp(ip("127.0.0.1"), 1, ip("127.0.0.1"), 2);
        assert!(!f.passes(&flow));
    }
}
