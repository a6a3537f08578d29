//! Configuration: TOML, unknown keys are errors, every default is here.

use crate::transport::key::Public;
use daemon::file::CONFIG_LIMIT;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the control socket is if nothing else is said.
pub const DEFAULT_CONTROL: &str = "/run/ctsync/control.sock";
/// Where the configuration is if nothing else is said.
pub const DEFAULT_CONFIG: &str = "/etc/ctsync/ctsync.toml";

/// A configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// This node's name, unique among the peers.
    pub node: String,
    /// File with this node's private key.
    pub private_key: PathBuf,
    /// Control socket.
    #[serde(default = "default_control")]
    pub control: PathBuf,
    /// Where metrics are served, if at all.
    pub metrics: Option<String>,
    /// What is done with peers' states.
    #[serde(default)]
    pub apply: Apply,
    /// A peer that is silent for so long is down.
    #[serde(default = "default_peer_timeout", deserialize_with = "duration")]
    pub peer_timeout: Duration,
    /// After a release, stale kernel states are deleted after this time.
    #[serde(default = "default_purge_after", deserialize_with = "duration")]
    pub purge_after: Duration,
    /// Most entries per cache.
    #[serde(default = "default_max_entries")]
    pub max_entries: usize,
    /// Largest datagram on the link, IP header included, in bytes.
    #[serde(default = "default_mtu")]
    pub mtu: usize,
    /// Least severe messages that are logged.
    #[serde(default = "default_log")]
    pub log: String,
    /// Local ends of the links, the preferred one first.
    #[serde(rename = "link")]
    pub links: Vec<Link>,
    /// The other nodes.
    #[serde(rename = "peer", default)]
    pub peers: Vec<Peer>,
    /// What is mirrored.
    #[serde(default)]
    pub mirror: Mirror,
    /// Dealing with the kernel.
    #[serde(default)]
    pub kernel: Kernel,
    /// The ruleset's hold set, if it has one.
    pub hold: Option<Hold>,
}

/// A set of the ruleset that holds packets of unknown connections back
/// (nft-ftp-ruleset, `firewall.hold`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Hold {
    /// Its table, of family inet.
    pub table: String,
    /// Its name.
    #[serde(default = "default_hold_set")]
    pub set: String,
    /// Nothing is held for longer.
    #[serde(default = "default_hold_limit", deserialize_with = "duration")]
    pub limit: Duration,
}

/// What is done with peers' states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apply {
    /// They are held until `ctsync commit`.
    #[default]
    Commit,
    /// They are written into the kernel as they arrive.
    Immediate,
}

/// A local end of a link.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Link {
    /// Address and port to listen on and send from.
    pub bind: SocketAddr,
    /// Network device to stick to.
    pub device: Option<String>,
}

/// Another node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Peer {
    /// Its name for people.
    pub name: String,
    /// Its public key.
    #[serde(deserialize_with = "public_key")]
    pub public_key: Public,
    /// A public key that it has besides, or will have.
    #[serde(default, deserialize_with = "some_public_key")]
    pub next_public_key: Option<Public>,
    /// File with a key shared with it besides.
    pub psk_file: Option<PathBuf>,
    /// File with a key that takes the place of that one.
    pub next_psk_file: Option<PathBuf>,
    /// Its address on each link, in the links' order.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
}

/// Which connections are mirrored. Each condition that is given must hold.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Mirror {
    /// IP protocols by name or number.
    pub protocols: Vec<String>,
    /// An end of the connection is in one of these networks.
    pub only: Vec<IpNet>,
    /// No end of the connection is in any of these networks.
    pub ignore: Vec<IpNet>,
    /// Zones.
    pub zones: Vec<u16>,
    /// Destination ports of the original direction.
    pub ports: Vec<u16>,
    /// Mark.
    pub mark: Option<Mark>,
    /// The kernel has seen traffic that makes it worth keeping.
    pub assured_only: bool,
    /// It has a helper, or belongs to one that has.
    pub helper_only: bool,
    /// Expectations are not mirrored.
    pub no_expectations: bool,
}

/// A mark under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// Value.
    pub value: u32,
    /// Bits that count.
    #[serde(default = "all_ones")]
    pub mask: u32,
}

/// Dealing with the kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Kernel {
    /// Receive buffer for events at the start, in bytes; it grows when it
    /// has been too small.
    pub event_buffer: usize,
    /// It grows up to this, in bytes.
    pub max_event_buffer: usize,
    /// How often connections with a helper are read again, because the
    /// kernel does not report all of their changes.
    #[serde(deserialize_with = "duration")]
    pub background_dump: Duration,
    /// Committed TCP connections accept packets outside of their window.
    pub tcp_liberal: bool,
    /// Set `net.netfilter.nf_conntrack_events` to 1 at the start.
    pub set_events_sysctl: bool,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            event_buffer: 32 << 20,
            max_event_buffer: 256 << 20,
            background_dump: Duration::from_secs(20),
            tcp_liberal: true,
            set_events_sysctl: true,
        }
    }
}

fn default_control() -> PathBuf {
    DEFAULT_CONTROL.into()
}

const fn default_peer_timeout() -> Duration {
    Duration::from_secs(3)
}

const fn default_purge_after() -> Duration {
    Duration::from_secs(60)
}

const fn default_max_entries() -> usize {
    4 << 20
}

const fn default_mtu() -> usize {
    1500
}

fn default_hold_set() -> String {
    "hold".into()
}

const fn default_hold_limit() -> Duration {
    Duration::from_secs(30)
}

fn default_log() -> String {
    "info".into()
}

const fn all_ones() -> u32 {
    u32::MAX
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    humantime::parse_duration(&text).map_err(D::Error::custom)
}

fn public_key<'de, D: Deserializer<'de>>(d: D) -> Result<Public, D::Error> {
    let text = String::deserialize(d)?;
    text.parse().map_err(D::Error::custom)
}

fn some_public_key<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Public>, D::Error> {
    public_key(d).map(Some)
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading {0}")]
    Read(PathBuf, #[source] std::io::Error),
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{file}:{line}:{column}: {message}")]
    Parse {
        /// File.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Values that contradict one another.
    #[error("{0}: {1}")]
    Value(PathBuf, String),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with line and column where there is one.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = daemon::file::read_text(path, CONFIG_LIMIT)
            .map_err(|e| ConfigError::Read(path.to_owned(), e))?;
        Self::parse(&text, path)
    }

    /// Reads text as if it came from `path`.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| {
            let at = e.span().map_or(0, |s| s.start);
            let before = text.get(..at).unwrap_or_default();
            let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count());
            ConfigError::Parse {
                file: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: column + 1,
                message: e.message().to_owned(),
            }
        })?;
        config
            .check()
            .map_err(|e| ConfigError::Value(path.to_owned(), e))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let printable =
            |s: &str| !s.is_empty() && s.len() <= 63 && s.bytes().all(|b| b.is_ascii_graphic());
        if !printable(&self.node) {
            return Err(format!("node {:?} is no name", self.node));
        }
        if self.links.is_empty() {
            return Err("there is no [[link]]".into());
        }
        if self.peers.len() > crate::replica::MAX_PEERS {
            return Err(format!("more than {} peers", crate::replica::MAX_PEERS));
        }
        for (i, peer) in self.peers.iter().enumerate() {
            let others = || self.peers.iter().take(i);
            if !printable(&peer.name) || peer.name == self.node {
                return Err(format!("peer name {:?} can't be used", peer.name));
            }
            let same = |p: &Peer| p.public_keys().any(|k| peer.public_keys().any(|l| k == l));
            if others().any(|p| p.name == peer.name || same(p)) {
                return Err(format!("peer {} is there twice", peer.name));
            }
            if peer.next_public_key == Some(peer.public_key) {
                return Err(format!("peer {} has one key twice", peer.name));
            }
            if peer.endpoints.len() > self.links.len() {
                return Err(format!(
                    "peer {} has more endpoints than there are links",
                    peer.name
                ));
            }
        }
        if !(576..=65535).contains(&self.mtu) {
            return Err(format!("mtu {} is not in 576..=65535", self.mtu));
        }
        if let Some(hold) = &self.hold {
            if hold.limit < Duration::from_secs(3) {
                return Err("hold: a limit below 3s ends before it is renewed".into());
            }
        }
        for protocol in &self.mirror.protocols {
            protocol_number(protocol).ok_or(format!("protocol {protocol:?} is unknown"))?;
        }
        if let Some(metrics) = &self.metrics {
            metrics.parse::<daemon::metrics::Address>()?;
        }
        self.level()?;
        Ok(())
    }

    /// Least severe messages that are logged.
    ///
    /// # Errors
    /// The name is none of `error`, `warn`, `info`, `debug`.
    pub fn level(&self) -> Result<tracing::level_filters::LevelFilter, String> {
        self.log
            .parse()
            .map_err(|_| format!("log level {:?} is unknown", self.log))
    }

    /// What differs in `new` and can't be changed while running.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        // Written out the same, they are the same.
        fn text(value: &impl std::fmt::Debug) -> String {
            format!("{value:?}")
        }
        // Keys can be replaced while running.
        fn ends(peer: &Peer) -> (&str, &[SocketAddr]) {
            (&peer.name, &peer.endpoints)
        }
        let buffers = |k: &Kernel| (k.event_buffer, k.max_event_buffer, k.set_events_sysctl);
        [
            ("node", text(&self.node) != text(&new.node)),
            ("control", text(&self.control) != text(&new.control)),
            ("metrics", text(&self.metrics) != text(&new.metrics)),
            (
                "peer-timeout",
                text(&self.peer_timeout) != text(&new.peer_timeout),
            ),
            (
                "max-entries",
                text(&self.max_entries) != text(&new.max_entries),
            ),
            ("mtu", text(&self.mtu) != text(&new.mtu)),
            ("log", text(&self.log) != text(&new.log)),
            ("links", text(&self.links) != text(&new.links)),
            (
                "peers",
                !self.peers.iter().map(ends).eq(new.peers.iter().map(ends)),
            ),
            (
                "event buffers",
                buffers(&self.kernel) != buffers(&new.kernel),
            ),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }

    /// Files with secrets.
    pub fn key_files(&self) -> impl Iterator<Item = &Path> {
        let shared = self
            .peers
            .iter()
            .flat_map(|p| [&p.psk_file, &p.next_psk_file]);
        let shared = shared.flatten().map(PathBuf::as_path);
        std::iter::once(self.private_key.as_path()).chain(shared)
    }

    /// Both ends of the links: their traffic is never mirrored.
    pub fn link_ends(&self) -> Vec<(IpAddr, u16)> {
        let locals = self.links.iter().map(|l| l.bind);
        let remotes = self.peers.iter().flat_map(|p| p.endpoints.iter().copied());
        locals.chain(remotes).map(|a| (a.ip(), a.port())).collect()
    }
}

impl Peer {
    /// Each public key it may have.
    pub fn public_keys(&self) -> impl Iterator<Item = Public> {
        std::iter::once(self.public_key).chain(self.next_public_key)
    }
}

/// Number of an IP protocol given by name or number.
pub fn protocol_number(name: &str) -> Option<u8> {
    Some(match name {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "dccp" => 33,
        "gre" => 47,
        "icmpv6" | "ipv6-icmp" => 58,
        "sctp" => 132,
        "udplite" => 136,
        number => number.parse().ok()?,
    })
}

/// Name of an IP protocol.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        33 => "dccp".into(),
        47 => "gre".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
node = "fw-1"
private-key = "/etc/ctsync/fw-1.key"
[[link]]
bind = "192.0.2.1:3780"
[[peer]]
name = "fw-2"
public-key = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
endpoints = ["192.0.2.2:3780"]
"#;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("c.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_given_has_a_default() {
        let c = parse(GOOD).unwrap();
        assert_eq!(c.control, Path::new(DEFAULT_CONTROL));
        assert_eq!(c.apply, Apply::Commit);
        assert_eq!(c.peer_timeout, Duration::from_secs(3));
        assert!(c.kernel.tcp_liberal && !c.mirror.assured_only);
        assert_eq!(c.link_ends().len(), 2);
    }

    #[test]
    fn errors_name_line_and_column() {
        let unknown = GOOD.replace("bind", "bnid");
        assert!(
            parse(&unknown)
                .unwrap_err()
                .starts_with("c.toml:5:1: unknown field `bnid`")
        );
        let key = GOOD.replace("hSDw", "hSD");
        assert!(
            parse(&key)
                .unwrap_err()
                .starts_with("c.toml:8:14: not a key")
        );
        let time = format!("peer-timeout = \"soon\"\n{GOOD}");
        assert!(parse(&time).unwrap_err().starts_with("c.toml:1:16: "));
    }

    #[test]
    fn contradictions_are_refused() {
        for (from, to, why) in [
            ("\"fw-2\"", "\"fw-1\"", "can't be used"),
            (
                "endpoints = [",
                "endpoints = [\"192.0.2.3:1\", ",
                "more endpoints",
            ),
            ("[[link]]", "mtu = 10\n[[link]]", "mtu 10"),
            ("[[link]]", "log = \"loud\"\n[[link]]", "log level"),
            (
                "[[link]]",
                "metrics = \"0.0.0.0:1\"\n[[link]]",
                "not a loopback",
            ),
        ] {
            let e = parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(e.contains(why), "{e}");
        }
    }
}
