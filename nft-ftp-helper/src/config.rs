//! Configuration file (TOML) and what file and command line give together.

use crate::cli::{DEFAULT_CONFIG, DEFAULT_CONTROL, RunArgs};
use crate::core::{ActiveOpens, MAX_BLOCK, OnRefusal, Policy, ThirdParty};
use crate::ledger::Limits;
use crate::registry::Spec;
use crate::support::Failure;
use crate::worker::Live;
use daemon::file::CONFIG_LIMIT;
use daemon::metrics;
use ipnet::IpNet;
use netfilter::Name;
use serde::Deserialize;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Live expectations of one client: not more than half of the table of a
/// kernel with its default size (nf_conntrack_expect_max is 1024 or more).
const CLIENT_LIMIT: u32 = 512;

/// A table of the file that has keys of the policy among its own.
macro_rules! table_with_policy {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($key:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        $vis struct $name {
            $($key: $ty,)*
            port_mask: Option<Mask>,
            permanent: Option<bool>,
            loose: Option<Loose>,
            min_port: Option<u16>,
            any_source: Option<bool>,
            active_source_port: Option<u16>,
            active_opens: Option<When>,
            on_refusal: Option<Refusal>,
            ccc: Option<bool>,
            nat_tries: Option<u16>,
        }

        impl $name {
            /// `base` with this table's keys in place.
            fn over(&self, base: Policy) -> Result<Policy, String> {
                let mut p = base;
                if let Some(mask) = &self.port_mask {
                    p.block = block_of_mask(mask.number()?)?;
                }
                if let Some(port) = self.min_port {
                    if port == 0 {
                        return Err("min-port is 0: port 0 can't be expected".to_owned());
                    }
                    p.min_port = port;
                }
                p.third_party = self.loose.map_or(p.third_party, Loose::third_party);
                p.permanent = self.permanent.unwrap_or(p.permanent);
                p.any_source = self.any_source.unwrap_or(p.any_source);
                p.active_source_port = self.active_source_port.or(p.active_source_port);
                p.active_opens = self.active_opens.map_or(p.active_opens, When::active_opens);
                p.on_refusal = self.on_refusal.map_or(p.on_refusal, Refusal::on_refusal);
                p.ccc = self.ccc.unwrap_or(p.ccc);
                p.nat_tries = self.nat_tries.unwrap_or(p.nat_tries);
                Ok(p)
            }
        }
    };
}

table_with_policy! {
    /// The file. Every key has a default; unknown keys are errors.
    pub struct File {
        helper_name: Option<String>,
        queue_num: Option<QueueNum>,
        queue_length: Option<u32>,
        fail_open: Option<bool>,
        expect_timeout: Option<Time>,
        max_expected: Option<u32>,
        max_expected_client: Option<u32>,
        max_expected_total: Option<u32>,
        pass_to_queue: Option<u16>,
        control: Option<PathBuf>,
        metrics: Option<String>,
        server: Vec<Server>,
    }
}

table_with_policy! {
    /// `[[server]]`: another policy for some servers.
    struct Server {
        addresses: Vec<Addresses>,
    }
}

/// A prefix, or an address that stands for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Addresses(IpNet);

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let net = text
            .parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Addresses).map_err(|_| {
            serde::de::Error::custom(format!("{text:?} is neither an address nor a prefix"))
        })
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a queue number or a range such as \"121-124\"")]
enum QueueNum {
    One(u16),
    Range(String),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a mask such as \"0xfffc\"")]
enum Mask {
    Number(u16),
    Text(String),
}

impl Mask {
    fn number(&self) -> Result<u16, String> {
        match self {
            Self::Number(mask) => Ok(*mask),
            Self::Text(text) => text
                .strip_prefix("0x")
                .and_then(|hex| u16::from_str_radix(hex, 16).ok())
                .ok_or_else(|| format!("port-mask {text:?} is not of the form 0xfffc")),
        }
    }
}

#[derive(Debug, Clone)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text)
            .map(Time)
            .map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Loose {
    Refuse,
    PeerInstead,
    Allow,
}

impl Loose {
    const fn third_party(self) -> ThirdParty {
        match self {
            Self::Refuse => ThirdParty::Refuse,
            Self::PeerInstead => ThirdParty::PeerInstead,
            Self::Allow => ThirdParty::Allow,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum When {
    OnCommand,
    OnReply,
}

impl When {
    const fn active_opens(self) -> ActiveOpens {
        match self {
            Self::OnCommand => ActiveOpens::OnCommand,
            Self::OnReply => ActiveOpens::OnReply,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Refusal {
    Accept,
    Drop,
}

impl Refusal {
    const fn on_refusal(self) -> OnRefusal {
        match self {
            Self::Accept => OnRefusal::Accept,
            Self::Drop => OnRefusal::Drop,
        }
    }
}

/// The policy for every server, and other ones for some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// For servers in no set.
    pub default: Policy,
    sets: Vec<(Vec<IpNet>, Policy)>,
}

impl Policies {
    /// The policy for the server with this address, its own as it knows it.
    /// The first set that has it counts.
    pub fn of(&self, server: IpAddr) -> &Policy {
        let set = self
            .sets
            .iter()
            .find(|(nets, _)| nets.iter().any(|net| net.contains(&server)));
        set.map_or(&self.default, |(_, policy)| policy)
    }

    fn largest_block(&self) -> u16 {
        let sets = self.sets.iter().map(|(_, policy)| policy.block);
        sets.fold(self.default.block, u16::max)
    }
}

/// What the daemon runs with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Registration.
    pub spec: Spec,
    /// What the core may open.
    pub policies: Arc<Policies>,
    /// Live expectations allowed beyond those of one connection.
    pub limits: Limits,
    /// Packets that may wait per queue.
    pub queue_length: u32,
    /// A full queue lets packets pass.
    pub fail_open: bool,
    /// Hand accepted packets to this queue next (an IPS).
    pub pass_to_queue: Option<u16>,
    /// Control socket.
    pub control: PathBuf,
    /// Metrics address.
    pub metrics: Option<metrics::Address>,
    /// File the settings came from, if any.
    pub source: Option<PathBuf>,
}

impl Settings {
    /// The part that a reload may change.
    pub fn live(&self) -> Live {
        Live {
            policies: Arc::clone(&self.policies),
            expect_timeout_secs: self.spec.expect_timeout_secs,
        }
    }

    /// The first key whose change needs a restart, if one differs.
    pub fn needs_restart(&self, new: &Self) -> Option<&'static str> {
        let keys = [
            ("helper-name", self.spec.name != new.spec.name),
            ("queue-num", self.spec.queues != new.spec.queues),
            ("queue-length", self.queue_length != new.queue_length),
            ("fail-open", self.fail_open != new.fail_open),
            ("pass-to-queue", self.pass_to_queue != new.pass_to_queue),
            ("control", self.control != new.control),
            ("metrics", self.metrics != new.metrics),
        ];
        keys.into_iter()
            .find_map(|(key, differs)| differs.then_some(key))
    }
}

/// Ports of a block under `mask`, whose bits must be ones and then zeros.
///
/// # Errors
/// The mask is no prefix mask, or its block is larger than the core opens.
pub fn block_of_mask(mask: u16) -> Result<u16, String> {
    let size = u32::from(!mask) + 1;
    if !size.is_power_of_two() {
        return Err(format!("{mask:#06x} is no mask of leading one bits"));
    }
    match u16::try_from(size) {
        Ok(size) if size <= MAX_BLOCK => Ok(size),
        _ => Err(format!(
            "{mask:#06x} makes blocks of {size} ports; at most {MAX_BLOCK} (0xffc0) are possible"
        )),
    }
}

/// `121` or `121-124`.
fn parse_queues(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is neither a queue number nor a range such as 121-124");
    let number = |s: &str| s.trim().parse::<u16>().map_err(|_| wrong());
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(format!("queue range {text:?} ends before it begins"));
    }
    if last - first >= 64 {
        return Err(format!("queue range {text:?} has more than 64 queues"));
    }
    Ok(first..=last)
}

/// Reads `path`, or the default file if it exists, or nothing.
///
/// # Errors
/// [`Failure::Config`] with file, line and column.
pub fn load(path: Option<&Path>) -> Result<(File, Option<PathBuf>), Failure> {
    let (path, required) = match path {
        Some(path) => (path, true),
        None => (Path::new(DEFAULT_CONFIG), false),
    };
    match daemon::file::read_text(path, CONFIG_LIMIT) {
        Ok(text) => Ok((parse(&text, path)?, Some(path.to_owned()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => {
            Ok((File::default(), None))
        }
        Err(e) => Err(Failure::system(format!("reading {}", path.display()), e)),
    }
}

/// Reads text as if it came from `path`.
///
/// # Errors
/// [`Failure::Config`] with file, line and column.
pub fn parse(text: &str, path: &Path) -> Result<File, Failure> {
    toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Failure::Config(format!(
            "{}:{line}:{column}: {}",
            path.display(),
            e.message()
        ))
    })
}

/// What file and command line give together; the command line wins.
///
/// # Errors
/// [`Failure::Config`] if a value makes no sense.
pub fn resolve(args: &RunArgs) -> Result<Settings, Failure> {
    let (file, source) = load(args.helper.config.as_deref())?;
    settings(&file, args, source).map_err(Failure::Config)
}

/// What `file`, read from `source`, and the command line give together.
///
/// # Errors
/// What makes no sense.
pub fn settings(file: &File, args: &RunArgs, source: Option<PathBuf>) -> Result<Settings, String> {
    let policies = policies(file, args)?;
    Ok(Settings {
        limits: limits(file, policies.largest_block())?,
        spec: spec(file, args, policies.largest_block())?,
        policies: Arc::new(policies),
        queue_length: file.queue_length.unwrap_or(4096),
        fail_open: file.fail_open.unwrap_or(true),
        pass_to_queue: file.pass_to_queue,
        control: args
            .control
            .clone()
            .or_else(|| file.control.clone())
            .unwrap_or_else(|| DEFAULT_CONTROL.into()),
        metrics: args
            .metrics
            .as_ref()
            .or(file.metrics.as_ref())
            .map(|s| s.parse())
            .transpose()?,
        source,
    })
}

fn spec(file: &File, args: &RunArgs, block: u16) -> Result<Spec, String> {
    let name = args
        .helper
        .helper_name
        .as_ref()
        .or(file.helper_name.as_ref());
    let name = name.map_or("nft-ftp", String::as_str);
    let name: Name = match name.parse() {
        Ok(parsed) if !name.is_empty() && name.len() <= Name::HELPER_MAX => parsed,
        _ => return Err(format!("helper name {name:?} is not 1 to 15 bytes long")),
    };
    let queues = match (&args.helper.queue_num, &file.queue_num) {
        (Some(text), _) | (None, Some(QueueNum::Range(text))) => parse_queues(text)?,
        (None, Some(QueueNum::One(num))) => *num..=*num,
        (None, None) => 121..=121,
    };
    let timeout = args
        .expect_timeout
        .or(file.expect_timeout.as_ref().map(|t| t.0))
        .unwrap_or(Duration::from_secs(300));
    let expect_timeout_secs = u32::try_from(timeout.as_secs())
        .ok()
        .filter(|secs| (1..=86_400).contains(secs))
        .ok_or("expect-timeout is not between 1s and 1day")?;
    let max_expected = args
        .max_expected
        .or(file.max_expected)
        .unwrap_or(u32::from(block) * 3);
    if !(u32::from(block)..=255).contains(&max_expected) {
        return Err(format!(
            "max-expected {max_expected} is not between {block} (one block) and 255"
        ));
    }
    Ok(Spec {
        name,
        queues,
        max_expected,
        expect_timeout_secs,
    })
}

/// A limit must have room for a block, or nothing could ever be expected.
fn limits(file: &File, block: u16) -> Result<Limits, String> {
    let checked = |key: &str, limit: Option<u32>, default: u32| match limit {
        Some(limit) if (1..u32::from(block)).contains(&limit) => Err(format!(
            "{key} {limit} is below {block} (one block); 0 means no limit"
        )),
        limit => Ok(limit.unwrap_or(default)),
    };
    Ok(Limits {
        client: checked(
            "max-expected-client",
            file.max_expected_client,
            CLIENT_LIMIT,
        )?,
        total: checked("max-expected-total", file.max_expected_total, 0)?,
    })
}

fn policies(file: &File, args: &RunArgs) -> Result<Policies, String> {
    let mut default = file.over(Policy::default())?;
    if let Some(mask) = args.port_mask {
        default.block = block_of_mask(mask)?;
    }
    default.permanent |= args.permanent;
    if args.loose {
        default.third_party = ThirdParty::Allow;
    }
    let set = |server: &Server| {
        let nets: Vec<IpNet> = server.addresses.iter().map(|a| a.0).collect();
        if nets.is_empty() {
            return Err("a [[server]] has no addresses".to_owned());
        }
        Ok((nets, server.over(default)?))
    };
    Ok(Policies {
        default,
        sets: file.server.iter().map(set).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Result<Settings, String> {
        let file = parse(text, Path::new("helper.toml")).map_err(|e| e.to_string())?;
        settings(&file, &RunArgs::default(), None)
    }

    #[test]
    fn nothing_configured_is_the_documented_default() {
        let s = from("").unwrap();
        assert_eq!(s.spec.name.as_str(), "nft-ftp");
        assert_eq!(s.spec.queues, 121..=121);
        assert_eq!(s.spec.expect_timeout_secs, 300);
        assert_eq!(s.policies.default, Policy::default());
        let (client, total) = (512, 0);
        assert_eq!(s.limits, Limits { client, total });
    }

    #[test]
    fn every_key_is_understood() {
        let text = include_str!("../../examples/helper.toml");
        let uncommented: String = text
            .lines()
            .map(|l| l.strip_prefix("#: ").unwrap_or(l))
            .fold(String::new(), |all, l| all + l + "\n");
        let s = from(&uncommented).unwrap();
        assert_eq!(s.spec.queues, 121..=124);
        assert_eq!(s.policies.default.block, 4);
        from(text).unwrap();
    }

    #[test]
    fn some_servers_have_another_policy() {
        let s = from(
            "permanent = true\n\
             [[server]]\naddresses = [\"10.1.0.0/16\", \"fd00::1\"]\nloose = \"allow\"\n\
             [[server]]\naddresses = [\"10.0.0.0/8\"]\nport-mask = \"0xfff0\"\n",
        )
        .unwrap();
        let of = |addr: &str| *s.policies.of(addr.parse().unwrap());
        assert_eq!(of("10.1.2.3").third_party, ThirdParty::Allow);
        assert_eq!(of("fd00::1").third_party, ThirdParty::Allow);
        assert_eq!(of("fd00::2"), s.policies.default);
        assert_eq!(of("10.2.0.1").block, 16);
        // What a set does not say is the file's.
        assert!(of("10.2.0.1").permanent);
        // The class must have room for the largest block.
        assert_eq!(s.spec.max_expected, 48);
    }

    #[test]
    fn what_needs_a_restart_is_named() {
        let old = from("").unwrap();
        assert_eq!(old.needs_restart(&from("permanent = true").unwrap()), None);
        assert_eq!(
            old.needs_restart(&from("fail-open = false").unwrap()),
            Some("fail-open")
        );
    }

    #[test]
    fn errors_name_file_line_and_column() {
        for (text, expected) in [
            (
                "\nqueue-nu = 1\n",
                "helper.toml:2:1: unknown field `queue-nu`",
            ),
            ("permanent = 3\n", "helper.toml:1:13: invalid type"),
            ("expect-timeout = \"x\"\n", "helper.toml:1:18:"),
        ] {
            let error = from(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for (text, expected) in [
            ("port-mask = \"0xfff5\"", "no mask of leading one bits"),
            ("port-mask = \"0xff00\"", "at most 64"),
            ("queue-num = \"9-7\"", "ends before it begins"),
            ("helper-name = \"sixteen-bytes-xx\"", "15 bytes"),
            ("port-mask = \"0xffc0\"\nmax-expected = 8", "not between 64"),
            ("expect-timeout = \"0s\"", "not between 1s"),
            ("max-expected = 256", "not between 1 (one block) and 255"),
            (
                "port-mask = \"0xfffc\"\nmax-expected-client = 3",
                "max-expected-client 3 is below 4",
            ),
            (
                "port-mask = \"0xfffc\"\nmax-expected-total = 2",
                "max-expected-total 2 is below 4",
            ),
            ("metrics = \"0.0.0.0:1\"", "loopback"),
            ("min-port = 0", "port 0"),
            ("[[server]]\nloose = \"allow\"", "no addresses"),
            (
                "[[server]]\naddresses = [\"ten\"]",
                "neither an address nor",
            ),
        ] {
            let error = from(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
