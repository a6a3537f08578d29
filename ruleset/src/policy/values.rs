//! Values that check themselves while they are read.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::keywords;
use crate::ir::{Family, event};

/// A name that nft accepts for tables, sets, chains and objects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Longest name: room is left for what is appended to it.
    const MAX: usize = 100;

    pub(super) fn new_unchecked(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !text.chars().all(letters) {
            return Err(format!(
                "{text:?} is no name: a letter first, then letters, digits, '_', '-' and '.'"
            ));
        }
        if text.len() > Self::MAX {
            return Err(format!(
                "name of {} characters; at most {} fit",
                text.len(),
                Self::MAX
            ));
        }
        if keywords::is_keyword(text) {
            return Err(format!("{text:?} is a keyword of nft and cannot be a name"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Name under which a helper is registered with the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperName(String);

impl HelperName {
    /// Longest name: `NF_CT_HELPER_NAME_LEN` less the NUL
    /// (net/netfilter/nf_conntrack_helper.h).
    pub const MAX: usize = 15;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for HelperName {
    fn default() -> Self {
        Self("nft-ftp".to_owned())
    }
}

impl FromStr for HelperName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if text.is_empty() || text.len() > Self::MAX || !text.chars().all(letters) {
            return Err(format!(
                "{text:?} is no helper: 1 to 15 letters, digits, '_', '-' and '.'"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Name of an interface; `eth*` is every interface that begins with `eth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface(String);

impl Interface {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// It stands for several.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.ends_with('*')
    }
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let beginning = text.strip_suffix('*').unwrap_or(text);
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@');
        if beginning.is_empty() || text.len() > 15 || !beginning.chars().all(letters) {
            return Err(format!("{text:?} is no interface name"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Addresses from one to another, both inclusive, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressRange {
    /// IPv4.
    V4(u32, u32),
    /// IPv6.
    V6(u128, u128),
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::V4(address.to_bits(), address.to_bits()));
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Self::V6(address.to_bits(), address.to_bits()));
        }
        if let Some((from, to)) = text.split_once('-') {
            return Self::between(from.trim(), to.trim(), text);
        }
        match text.parse::<IpNet>() {
            Ok(IpNet::V4(net)) => Ok(Self::V4(net.network().to_bits(), net.broadcast().to_bits())),
            Ok(IpNet::V6(net)) => Ok(Self::V6(net.network().to_bits(), net.broadcast().to_bits())),
            Err(_) => Err(format!("{text:?} is no address, prefix or range")),
        }
    }
}

impl AddressRange {
    fn between(from: &str, to: &str, text: &str) -> Result<Self, String> {
        let address = |part: &str| {
            part.parse::<IpAddr>()
                .map_err(|_| format!("{part:?} in {text:?} is no address"))
        };
        let range = match (address(from)?, address(to)?) {
            (IpAddr::V4(from), IpAddr::V4(to)) if from <= to => {
                Self::V4(from.to_bits(), to.to_bits())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) if from <= to => {
                Self::V6(from.to_bits(), to.to_bits())
            }
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                return Err(format!("{text:?} ends before it begins"));
            }
            _ => return Err(format!("{text:?} mixes families")),
        };
        Ok(range)
    }
}

/// Ports from one to another, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First.
    pub from: u16,
    /// Last.
    pub to: u16,
}

impl PortRange {
    /// Ports that a service of the system does not listen on.
    #[must_use]
    pub fn unprivileged() -> Self {
        Self {
            from: 1024,
            to: u16::MAX,
        }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (port(from)?, port(to)?);
        if from > to {
            return Err(format!("{text:?} ends before it begins"));
        }
        Ok(Self { from, to })
    }
}

/// A few ports that expectations are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortBlock(PortRange);

impl PortBlock {
    /// One object per port and family: more is not what this is for.
    const MAX: u16 = 64;

    /// Its ports.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.0.from..=self.0.to
    }

    /// Number of ports.
    #[must_use]
    pub fn count(self) -> u8 {
        u8::try_from(self.0.to - self.0.from + 1).unwrap_or(u8::MAX)
    }

    /// `30000/0xfffc`: the ports that are 30000 under the mask.
    fn masked(base: &str, mask: &str, text: &str) -> Result<PortRange, String> {
        let base = port(base)?;
        let digits = mask.trim().strip_prefix("0x").unwrap_or_default();
        let mask = u16::from_str_radix(digits, 16)
            .map_err(|_| format!("mask in {text:?} is not four digits after 0x"))?;
        if mask.count_ones() != mask.leading_ones() {
            return Err(format!(
                "mask in {text:?} is not a row of ones and a row of zeros"
            ));
        }
        if base & !mask != 0 {
            return Err(format!("{base} does not begin a block of mask {mask:#06x}"));
        }
        Ok(PortRange {
            from: base,
            to: base | !mask,
        })
    }
}

impl FromStr for PortBlock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = match text.split_once('/') {
            Some((base, mask)) => Self::masked(base, mask, text)?,
            None => text.parse()?,
        };
        if range.to - range.from >= Self::MAX {
            return Err(format!("{text:?} has more than {} ports", Self::MAX));
        }
        Ok(Self(range))
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.trim().parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no port: 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

/// One port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port(pub u16);

impl Port {
    /// Where ctsync listens by default.
    #[must_use]
    pub fn ctsync() -> Self {
        Self(3780)
    }
}

impl Default for Port {
    fn default() -> Self {
        Self(21)
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        port(text).map(Self)
    }
}

/// Different ports, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(Vec<u16>);

impl Ports {
    /// The control port of FTP.
    #[must_use]
    pub fn ftp() -> Self {
        Self(vec![21])
    }

    /// The port of SSH.
    #[must_use]
    pub fn ssh() -> Self {
        Self(vec![22])
    }

    /// No port.
    #[must_use]
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The ports.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut ports: Vec<Port> = Deserialize::deserialize(deserializer)?;
        ports.sort_unstable();
        ports.dedup();
        Ok(Self(ports.into_iter().map(|port| port.0).collect()))
    }
}

/// Number of a conntrack zone; 0 is the one that packets are in anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneId(pub u16);

impl FromStr for ZoneId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| format!("{text} is no zone: 0 to 65535"))
    }
}

/// How many queues a helper has: the numbers of nft-ftp-helper's
/// `--queue-num`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queues(pub u8);

impl Default for Queues {
    fn default() -> Self {
        Self(1)
    }
}

impl FromStr for Queues {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(number @ 1..=64) => Ok(Self(number)),
            _ => Err(format!("{text} is no number of queues: 1 to 64")),
        }
    }
}

/// A time, kept in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millis(pub u32);

impl Default for Millis {
    fn default() -> Self {
        Self(300_000)
    }
}

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time: Duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
        match u32::try_from(time.as_millis()) {
            // Older kernels read the value as seconds and multiply it.
            Ok(millis) if (1..=2_000_000_000).contains(&millis) => Ok(Self(millis)),
            _ => Err(format!("{text:?} is out of range: 1ms to 23 days")),
        }
    }
}

/// Families that rules are made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Families(Vec<Family>);

impl Families {
    /// The families, IPv4 first.
    #[must_use]
    pub fn as_slice(&self) -> &[Family] {
        &self.0
    }

    /// The one family, if there is only one.
    #[must_use]
    pub fn only(&self) -> Option<Family> {
        match self.0.as_slice() {
            [family] => Some(*family),
            _ => None,
        }
    }
}

impl Default for Families {
    fn default() -> Self {
        Self(vec![Family::Ip, Family::Ip6])
    }
}

impl<'de> Deserialize<'de> for Families {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut families = Vec::new();
        for word in Vec::<String>::deserialize(deserializer)? {
            families.push(match word.as_str() {
                "ip" => Family::Ip,
                "ip6" => Family::Ip6,
                _ => return Err(Error::unknown_variant(&word, &["ip", "ip6"])),
            });
        }
        families.sort_unstable();
        families.dedup();
        if families.is_empty() {
            return Err(Error::invalid_length(
                0,
                &"at least one of \"ip\" and \"ip6\"",
            ));
        }
        Ok(Self(families))
    }
}

/// A conntrack event, as its bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event(pub u32);

impl Event {
    /// What a mirror of the connections must hear.
    #[must_use]
    pub fn for_mirroring() -> Vec<Self> {
        const NAMES: [&str; 7] = [
            "new",
            "related",
            "destroy",
            "reply",
            "assured",
            "protoinfo",
            "seqadj",
        ];
        NAMES.iter().filter_map(|name| name.parse().ok()).collect()
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = event::NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(bit, _)| Self(*bit)).ok_or_else(|| {
            let names: Vec<_> = event::NAMES.iter().map(|(_, name)| *name).collect();
            format!(
                "{text:?} is no event that nft can load; there are {}",
                names.join(", ")
            )
        })
    }
}

/// Text before a logged packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPrefix(String);

impl LogPrefix {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogPrefix {
    fn default() -> Self {
        Self("nft-ftp drop: ".to_owned())
    }
}

impl FromStr for LogPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| (c.is_ascii_graphic() || c == ' ') && !matches!(c, '"' | '\\' | '$');
        if text.is_empty() || text.len() > 100 || !text.chars().all(fits) {
            return Err(
                "a prefix is 1 to 100 printable ASCII characters without '\"', '\\' and '$'"
                    .to_owned(),
            );
        }
        Ok(Self(text.to_owned()))
    }
}

/// Reads a value from a string or a whole number by way of `FromStr`.
struct FromText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a whole number")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

/// As [`FromText`], from strings only.
struct FromString<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = String>> Visitor<'_> for FromString<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Err(E::invalid_type(Unexpected::Signed(number), &self))
    }
}

macro_rules! read_as {
    ($visitor:ident, $method:ident: $($name:ident),+) => {
        $(impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.$method($visitor(std::marker::PhantomData))
            }
        })+
    };
}

read_as!(FromString, deserialize_str: Name, HelperName, Interface, AddressRange, Millis, Event, LogPrefix);
read_as!(FromText, deserialize_any: Queues, Port, PortRange, PortBlock, ZoneId);
