//! Netlink messages about a table, read.
//!
//! Attributes are those of linux/netfilter/nf_tables.h. What cannot be read
//! is left out or marked as something that no policy asks for: then `diff`
//! reports it and `load` replaces it.

use std::collections::BTreeMap;

use netfilter::attr::{Attr as Nla, Attrs};

use super::exprs::{self, data, text};
use super::{Chain, Count, Hooked, Kind, Live, Object, Rule, Set, Table, raise};
use crate::elements::{Elements, coalesce};
use crate::ir::{Base, ChainType, Family, Hook, Key, ObjectKind, Policy};
use crate::render::code::{AnonymousSet, Attr, Code, Expr};

/// `NFT_SET_*`.
mod flag {
    pub const ANONYMOUS: u32 = 1;
    pub const INTERVAL: u32 = 4;
    pub const MAP: u32 = 8;
    pub const TIMEOUT: u32 = 16;
    pub const EVAL: u32 = 32;
    pub const OBJECT: u32 = 64;
}

/// Collects the messages of one table.
#[derive(Debug)]
pub struct Decoder {
    table: String,
    live: Live,
    /// Sets that belong to one rule each, by name.
    anonymous: BTreeMap<String, AnonymousSet>,
    /// Chain of each rule; sets must be known before rules are read.
    rules: Vec<(String, u64, Code)>,
}

impl Decoder {
    /// Reads only what belongs to `table` of family `inet`.
    #[must_use]
    pub fn new(table: &str) -> Self {
        Self {
            table: table.to_owned(),
            live: Live::default(),
            anonymous: BTreeMap::new(),
            rules: Vec::new(),
        }
    }

    /// Takes one message, header included; others than those about our
    /// table are ignored.
    pub fn message(&mut self, message: &[u8]) {
        let kind = message.get(4..6).and_then(|kind| kind.first_chunk::<2>());
        let Some((kind, body)) = kind.zip(message.get(20..)) else {
            return;
        };
        let inet = message.get(16) == Some(&1);
        let kind = i32::from(u16::from_ne_bytes(*kind)) & 0xff;
        let attrs = Attrs::new(body);
        let ours = string(attrs, 1).is_some_and(|name| name == self.table);
        if inet && ours {
            self.ours(kind, attrs);
        }
    }

    fn ours(&mut self, kind: i32, attrs: Attrs<'_>) {
        match kind {
            libc::NFT_MSG_NEWTABLE => {
                self.live.table = Some(Table {
                    handle: be64(attrs, 4),
                    flags: be32(attrs, 2),
                });
            }
            libc::NFT_MSG_NEWOBJ => self.live.objects.extend(object(attrs)),
            libc::NFT_MSG_NEWSET => self.set(attrs),
            libc::NFT_MSG_NEWSETELEM => self.elements(attrs),
            libc::NFT_MSG_NEWCHAIN => self.live.chains.extend(chain(attrs)),
            libc::NFT_MSG_NEWRULE => self.rule(attrs),
            NFT_MSG_NEWFLOWTABLE => self.live.flowtables.extend(string(attrs, 2)),
            _ => {}
        }
    }

    fn set(&mut self, attrs: Attrs<'_>) {
        let Some(name) = string(attrs, 2) else { return };
        let flags = be32(attrs, 3);
        if flags & flag::ANONYMOUS != 0 {
            let set = AnonymousSet {
                key_type: be32(attrs, 4),
                key_len: be32(attrs, 5),
                elements: Vec::new(),
                object: (flags & flag::OBJECT != 0).then(|| be32(attrs, 15)),
            };
            self.anonymous.insert(name, set);
            return;
        }
        let key = pairs(attrs, flags).or_else(|| key(be32(attrs, 4), flags));
        self.live.sets.push(Set {
            name,
            key,
            timeout: flags & flag::TIMEOUT != 0,
            handle: be64(attrs, 16),
            elements: match key {
                Some(Key::Ipv4) => Elements::V4(Vec::new()),
                Some(Key::Ipv6) => Elements::V6(Vec::new()),
                _ => Elements::None,
            },
            others: Vec::new(),
        });
    }

    fn elements(&mut self, attrs: Attrs<'_>) {
        let Some((name, list)) = string(attrs, 2).zip(attrs.find(3)) else {
            return;
        };
        let elements = list.nested().filter_map(element);
        if let Some(set) = self.anonymous.get_mut(&name) {
            set.elements
                .extend(elements.map(|element| (element.key.to_vec(), element.object)));
            return;
        }
        let Some(set) = self.live.sets.iter_mut().find(|set| set.name == name) else {
            return;
        };
        match &mut set.elements {
            Elements::V4(bounds) => bounds.extend(elements.filter_map(|element| {
                let at = u32::from_be_bytes(element.key.try_into().ok()?);
                Some((at, u32::from(element.end)))
            })),
            Elements::V6(bounds) => bounds.extend(elements.filter_map(|element| {
                let at = u128::from_be_bytes(element.key.try_into().ok()?);
                Some((at, u128::from(element.end)))
            })),
            Elements::None => set.others.extend(elements.map(|e| e.key.to_vec())),
        }
    }

    fn rule(&mut self, attrs: Attrs<'_>) {
        let (Some(chain), Some(list)) = (string(attrs, 2), attrs.find(4)) else {
            return;
        };
        let code = Code {
            exprs: list.nested().filter_map(expr).collect(),
            sets: Vec::new(),
            comment: attrs.find(7).and_then(|data| comment(data.value)),
        };
        self.rules.push((chain, be64(attrs, 3), code));
    }

    /// Whether there is such a table.
    #[must_use]
    pub fn has_table(&self) -> bool {
        self.live.table.is_some()
    }

    /// Every set seen so far, also those that belong to one rule.
    #[must_use]
    pub fn set_names(&self) -> Vec<String> {
        let named = self.live.sets.iter().map(|set| set.name.clone());
        named.chain(self.anonymous.keys().cloned()).collect()
    }

    /// What has been read.
    #[must_use]
    pub fn finish(mut self) -> Live {
        for set in &mut self.live.sets {
            match &mut set.elements {
                Elements::V4(bounds) => *bounds = ranges(std::mem::take(bounds)),
                Elements::V6(bounds) => *bounds = ranges(std::mem::take(bounds)),
                Elements::None => {}
            }
        }
        for (chain, handle, mut code) in std::mem::take(&mut self.rules) {
            resolve(&mut code, &self.anonymous);
            let text = raise::text(&code);
            if let Some(chain) = self.live.chains.iter_mut().find(|c| c.name == chain) {
                chain.rules.push(Rule { handle, text });
            }
        }
        self.live
    }
}

/// `NFT_MSG_NEWFLOWTABLE`.
const NFT_MSG_NEWFLOWTABLE: i32 = 22;

fn string(attrs: Attrs<'_>, number: u16) -> Option<String> {
    attrs.find(number).map(|attr| text(attr.value))
}

/// A number, 0 if it is absent.
fn be32(attrs: Attrs<'_>, number: u16) -> u32 {
    let found = attrs.find(number);
    found.and_then(|attr| attr.be32("").ok()).unwrap_or(0)
}

fn be64(attrs: Attrs<'_>, number: u16) -> u64 {
    let found = attrs.find(number);
    found.and_then(|attr| attr.be64("").ok()).unwrap_or(0)
}

/// A set of pairs that rules fill.
fn pairs(attrs: Attrs<'_>, flags: u32) -> Option<Key> {
    let family = match be32(attrs, 4) {
        IPV4_PAIR => Family::Ip,
        IPV6_PAIR => Family::Ip6,
        _ => return None,
    };
    let size = attrs.find(9).map(|desc| be32(desc.nested(), 1));
    let (secs, rest) = (be64(attrs, 11) / 1000, be64(attrs, 11) % 1000);
    (flags == flag::TIMEOUT | flag::EVAL && rest == 0).then_some(Key::Pairs {
        family,
        timeout_secs: u32::try_from(secs).ok()?,
        size: size.unwrap_or(0),
    })
}

/// nft's numbers for `ipv4_addr . ipv4_addr` and `ipv6_addr . ipv6_addr`.
const IPV4_PAIR: u32 = 7 << 6 | 7;
const IPV6_PAIR: u32 = 8 << 6 | 8;

fn key(datatype: u32, flags: u32) -> Option<Key> {
    let interval = flags & flag::INTERVAL != 0;
    let plain = flags & (flag::MAP | flag::OBJECT) == 0;
    match datatype {
        7 if interval && plain => Some(Key::Ipv4),
        8 if interval && plain => Some(Key::Ipv6),
        12 if !interval && plain => Some(Key::Proto),
        _ => None,
    }
}

struct Element<'a> {
    key: &'a [u8],
    end: bool,
    object: Option<String>,
}

fn element(attr: Nla<'_>) -> Option<Element<'_>> {
    let attrs = attr.nested();
    Some(Element {
        key: data(attrs.find(1)?.value)?,
        end: be32(attrs, 3) & 1 != 0,
        object: string(attrs, 9),
    })
}

/// Ranges from bounds: where one begins (0) and where one has ended (1).
fn ranges<T>(mut bounds: Vec<(T, T)>) -> Vec<(T, T)>
where
    T: Copy + Ord + From<u8> + std::ops::Sub<Output = T> + std::ops::Not<Output = T>,
{
    let (zero, one) = (T::from(0), T::from(1));
    // An end at the address where the next range begins comes first.
    bounds.sort_unstable_by_key(|(at, end)| (*at, *end == zero));
    let mut ranges = Vec::with_capacity(bounds.len() / 2);
    let mut open = None;
    for (at, end) in bounds {
        match (open, end == zero) {
            (None, true) => open = Some(at),
            (Some(from), false) => {
                ranges.push((from, at - one));
                open = None;
            }
            (Some(from), true) => {
                ranges.push((from, at - one));
                open = Some(at);
            }
            // nft marks the space before the first range.
            (None, false) => {}
        }
    }
    ranges.extend(open.map(|from| (from, !zero)));
    coalesce(&mut ranges);
    ranges
}

fn object(attrs: Attrs<'_>) -> Option<Object> {
    let number = be32(attrs, 3);
    let data = attrs.find(4).map(|data| data.nested());
    let known = data.and_then(|data| object_kind(number, data));
    let counter = matches!(known, Some(ObjectKind::Counter));
    Some(Object {
        name: string(attrs, 2)?,
        kind: known.map_or(Kind::Other(number), Kind::Known),
        handle: be64(attrs, 6),
        uses: be32(attrs, 5),
        count: data.filter(|_| counter).map(|data| Count {
            packets: be64(data, 2),
            bytes: be64(data, 1),
        }),
    })
}

fn object_kind(number: u32, data: Attrs<'_>) -> Option<ObjectKind> {
    const TCP: u8 = 6;
    let l4 = |at| data.find(at).and_then(|attr| attr.u8("").ok()) == Some(TCP);
    let l3 = |at| data.find(at).and_then(|attr| attr.be16("").ok());
    match number {
        1 => Some(ObjectKind::Counter),
        // NFPROTO_INET: both families.
        3 if l4(3) && matches!(l3(2), None | Some(1)) => Some(ObjectKind::CtHelper {
            helper: string(data, 1)?,
        }),
        9 if l4(2) => Some(ObjectKind::CtExpectation {
            family: match l3(1)? {
                2 => Family::Ip,
                10 => Family::Ip6,
                _ => return None,
            },
            dport: data.find(3)?.be16("").ok()?,
            // The only number of nf_tables in host byte order.
            timeout_ms: u32::from_ne_bytes(data.find(4)?.array("").ok()?),
            size: data.find(5)?.u8("").ok()?,
        }),
        _ => None,
    }
}

fn chain(attrs: Attrs<'_>) -> Option<Chain> {
    let base = match attrs.find(4) {
        None => Hooked::No,
        Some(hook) => base(attrs, hook).map_or(Hooked::Other, Hooked::Known),
    };
    Some(Chain {
        name: string(attrs, 3)?,
        base,
        handle: be64(attrs, 2),
        rules: Vec::new(),
    })
}

fn base(attrs: Attrs<'_>, hook: Nla<'_>) -> Option<Base> {
    let hook = hook.nested();
    Some(Base {
        kind: match string(attrs, 7)?.as_str() {
            "filter" => ChainType::Filter,
            "nat" => ChainType::Nat,
            _ => return None,
        },
        hook: match be32(hook, 1) {
            0 => Hook::Prerouting,
            1 => Hook::Input,
            2 => Hook::Forward,
            3 => Hook::Output,
            4 => Hook::Postrouting,
            _ => return None,
        },
        priority: i32::from_be_bytes(hook.find(2)?.array("").ok()?),
        policy: match be32(attrs, 5) {
            0 => Policy::Drop,
            _ => Policy::Accept,
        },
    })
}

fn expr(attr: Nla<'_>) -> Option<Expr> {
    let attrs = attr.nested();
    let name = string(attrs, 1)?;
    let data = attrs.find(2).map_or(Attrs::new(&[]), |data| data.nested());
    Some(exprs::expr(&name, data))
}

/// The comment in a rule's user data: type 0, length, text.
fn comment(data: &[u8]) -> Option<String> {
    let (head, rest) = data.split_at_checked(2)?;
    match head {
        [0, len] => rest.get(..usize::from(*len)).map(text),
        _ => None,
    }
}

/// Puts the rule's own sets where their names are.
fn resolve(code: &mut Code, anonymous: &BTreeMap<String, AnonymousSet>) {
    let Code { exprs, sets, .. } = code;
    let attrs = exprs
        .iter_mut()
        .filter(|expr| matches!(expr.name.as_str(), "lookup" | "objref"))
        .flat_map(|expr| &mut expr.attrs);
    for (_, value) in attrs {
        if let Attr::Text(name) = value {
            if let Some(set) = anonymous.get(name) {
                sets.push(set.clone());
                *value = Attr::Set(sets.len() - 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_from_bounds_in_any_order() {
        let check = |bounds: &[(u32, u32)], expected: &[(u32, u32)]| {
            assert_eq!(ranges(bounds.to_vec()), expected, "{bounds:?}");
        };
        check(&[(9, 1), (5, 0)], &[(5, 8)]);
        check(&[(0, 1), (5, 0), (9, 1)], &[(5, 8)]);
        check(&[(5, 0)], &[(5, u32::MAX)]);
        check(&[(1, 0), (6, 0), (6, 1), (8, 1)], &[(1, 7)]);
        check(&[(1, 0), (2, 1), (4, 0), (5, 1)], &[(1, 1), (4, 4)]);
        check(&[(3, 1)], &[]);
    }

    #[test]
    fn truncated_messages_are_read_without_panic() {
        let mut message = vec![40, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        message.extend([6, 0, 1, 0, b't', 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 1]);
        for len in 0..=message.len() {
            let mut decoder = Decoder::new("t");
            decoder.message(message.get(..len).expect("prefix"));
            assert!(decoder.finish().table.is_none() || len >= 26, "{len}");
        }
    }
}
