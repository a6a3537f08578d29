//! What the operator wants, as written in TOML. Every field has a default.
//!
//! Values check themselves while they are read ([`values`]), so that an error
//! points at them; what only makes sense together is checked by [`validate`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

pub mod addresses;
pub mod keywords;
pub mod source;
pub mod validate;
pub mod values;

use values::{
    AddressRange, Event, Families, HelperName, Interface, LogPrefix, Millis, Name, Port, PortBlock,
    PortRange, Ports, Queues, ZoneId,
};

/// A whole policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// Name of our table.
    pub table: Name,
    /// Layer 3 families that rules are made for.
    pub families: Families,
    /// Named counters on the rules; by default only with a firewall.
    pub counters: Option<bool>,
    /// Named address sets.
    pub addresses: BTreeMap<Name, Spanned<Addresses>>,
    /// Conntrack helpers and where they are assigned.
    pub helper: Vec<Spanned<Helper>>,
    /// Conntrack zones of interfaces.
    pub zone: Vec<Spanned<Zone>>,
    /// Expectations for control connections that cannot be read.
    pub expectation: Vec<Spanned<Expectation>>,
    /// Fixed passive ports of servers whose control connections cannot be read.
    pub passive: Vec<Spanned<Passive>>,
    /// How data connections are allowed.
    pub related: Related,
    /// Conntrack events that the kernel reports.
    pub events: Option<Events>,
    /// The whole forward policy.
    pub firewall: Option<Spanned<Firewall>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            table: Name::new_unchecked("nft_ftp"),
            families: Families::default(),
            counters: None,
            addresses: BTreeMap::new(),
            helper: vec![Spanned::new(0..0, Helper::default())],
            zone: Vec::new(),
            expectation: Vec::new(),
            passive: Vec::new(),
            related: Related::default(),
            events: None,
            firewall: None,
        }
    }
}

/// Addresses of servers or clients: one set per family.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Addresses {
    /// Addresses, prefixes and ranges.
    pub elements: Vec<AddressRange>,
    /// A file with one of them per line, relative to the policy.
    pub file: Option<Spanned<PathBuf>>,
}

/// One `ct helper` object and the control connections it watches.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Helper {
    /// Name of the object.
    pub name: Name,
    /// Name under which the helper is registered with the kernel.
    #[serde(rename = "type")]
    pub kind: HelperName,
    /// Queues of the helper: one registration each, between which
    /// connections are spread.
    pub queues: Spanned<Queues>,
    /// Control ports.
    pub ports: Ports,
    /// One rule for all ports, or a map from port to object.
    pub assign: Assign,
    /// Addresses of servers, as clients see them; none means any.
    pub servers: Option<Spanned<Name>>,
    /// Addresses of clients; none means any.
    pub clients: Option<Spanned<Name>>,
    /// Only connections in this zone.
    pub zone: Option<ZoneId>,
}

impl Default for Helper {
    fn default() -> Self {
        Self {
            name: Name::new_unchecked("ftp"),
            kind: HelperName::default(),
            queues: Spanned::new(0..0, Queues::default()),
            ports: Ports::ftp(),
            assign: Assign::default(),
            servers: None,
            clients: None,
            zone: None,
        }
    }
}

impl Helper {
    /// Object and helper of each queue: `ftp` and `nft-ftp`, then `ftp-1`
    /// and `nft-ftp-1`, as nft-ftp-helper registers them.
    pub fn instances(&self) -> impl Iterator<Item = (String, String)> {
        (0..self.queues.get_ref().0).map(|queue| match queue {
            0 => (self.name.as_str().to_owned(), self.kind.as_str().to_owned()),
            _ => (
                format!("{}-{queue}", self.name.as_str()),
                format!("{}-{queue}", self.kind.as_str()),
            ),
        })
    }
}

/// How a helper is assigned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assign {
    /// A rule with `ct helper set "name"`.
    #[default]
    Rule,
    /// `ct helper set tcp dport map { … }`, shared by helpers that watch the
    /// same connections.
    Map,
}

/// The conntrack zone of some interfaces.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Zone {
    /// Number of the zone.
    pub id: ZoneId,
    /// Interfaces whose connections are in it.
    pub interfaces: Vec<Interface>,
}

/// `ct expectation` objects for control connections that cannot be read.
///
/// The kernel makes them from the replying side's view: the server connects
/// to the client's port (`nft_ct_expect_obj_eval`), which is active FTP.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Expectation {
    /// Beginning of the objects' names.
    pub name: Name,
    /// Ports of the control connections.
    pub control_ports: Spanned<Ports>,
    /// Data ports: `30000`, `30000-30003` or `30000/0xfffc`.
    pub ports: PortBlock,
    /// Life of an expectation.
    #[serde(default)]
    pub timeout: Millis,
    /// How many may be pending per connection; by default one per port.
    #[serde(default)]
    pub size: Option<Spanned<u8>>,
    /// Addresses of servers; none means any.
    #[serde(default)]
    pub servers: Option<Spanned<Name>>,
    /// Addresses of clients; none means any.
    #[serde(default)]
    pub clients: Option<Spanned<Name>>,
}

/// Fixed passive ports, open to clients that have just spoken to the server
/// on a control connection which it answers.
///
/// For FTP over TLS: nobody can read which port was announced, but a server
/// can be told to use few, and a client speaks before each transfer.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Passive {
    /// Beginning of the names of the sets of pairs.
    pub name: Name,
    /// Ports of the control connections; a helper may watch them as well.
    pub control_ports: Spanned<Ports>,
    /// Ports that the servers listen on for data connections.
    pub ports: Spanned<PortRange>,
    /// How long after a client's last packet.
    #[serde(default = "Passive::minute")]
    pub timeout: Spanned<Millis>,
    /// Most pairs of client and server per family.
    #[serde(default = "Passive::pairs")]
    pub size: Spanned<u32>,
    /// Addresses of servers, their own; none means any.
    #[serde(default)]
    pub servers: Option<Spanned<Name>>,
    /// Addresses of clients; none means any.
    #[serde(default)]
    pub clients: Option<Spanned<Name>>,
}

impl Passive {
    fn minute() -> Spanned<Millis> {
        Spanned::new(0..0, Millis(60_000))
    }

    fn pairs() -> Spanned<u32> {
        Spanned::new(0..0, 65_535)
    }
}

/// How related data connections are allowed.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Related {
    /// Drop related data connections of our helpers that no rule allows,
    /// whatever the rest of the ruleset says about related traffic.
    pub guard: bool,
    /// Destination ports of data connections.
    pub ports: PortRange,
    /// Who may open them.
    pub data: Spanned<Vec<Data>>,
    /// Source port of active data connections; none means any.
    pub active_source_port: Option<Port>,
}

impl Default for Related {
    fn default() -> Self {
        Self {
            guard: false,
            ports: PortRange::unprivileged(),
            data: Spanned::new(0..0, vec![Data::Passive, Data::Active]),
            active_source_port: None,
        }
    }
}

/// Who opens a data connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Data {
    /// The client.
    Passive,
    /// The server.
    Active,
}

/// Conntrack events that the kernel reports.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Events {
    /// What mirroring needs, by default.
    pub report: Vec<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            report: Event::for_mirroring(),
        }
    }
}

/// The whole forward policy of a fault-tolerant pair.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Firewall {
    /// Interfaces towards clients: control connections come from here.
    pub client_interfaces: Vec<Interface>,
    /// Interfaces towards servers: control connections leave here.
    pub server_interfaces: Vec<Interface>,
    /// Other connections that are forwarded.
    pub allow: Vec<Spanned<Allow>>,
    /// Packets to the firewall itself; without it they are not filtered.
    pub input: Option<Input>,
    /// VRRP between the firewalls.
    pub vrrp: Option<Vrrp>,
    /// The link between the firewalls' ctsync daemons.
    pub link: Option<Link>,
    /// Drop packets of unknown connections while the set `hold` says so.
    pub hold: bool,
    /// Log what is dropped.
    pub log: Log,
    /// Source becomes the address of the outgoing interface.
    pub masquerade: Vec<Spanned<Masquerade>>,
    /// Source becomes a fixed address.
    pub snat: Vec<Spanned<Snat>>,
    /// Servers behind another address.
    pub dnat: Vec<Spanned<Dnat>>,
}

impl Default for Firewall {
    fn default() -> Self {
        Self {
            client_interfaces: Vec::new(),
            server_interfaces: Vec::new(),
            allow: Vec::new(),
            input: None,
            vrrp: None,
            link: None,
            hold: true,
            log: Log::default(),
            masquerade: Vec::new(),
            snat: Vec::new(),
            dnat: Vec::new(),
        }
    }
}

/// New connections that are forwarded besides control connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Allow {
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Destination ports.
    pub ports: Ports,
    /// Source addresses; none means any.
    #[serde(default)]
    pub from: Option<Spanned<Name>>,
    /// Destination addresses; none means any.
    #[serde(default)]
    pub to: Option<Spanned<Name>>,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// Packets to the firewall itself: dropped unless listed.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Input {
    /// TCP ports open to `from`.
    pub tcp: Ports,
    /// UDP ports open to `from`.
    pub udp: Ports,
    /// Source addresses; none means any.
    pub from: Option<Spanned<Name>>,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            tcp: Ports::ssh(),
            udp: Ports::none(),
            from: None,
        }
    }
}

/// VRRP between the firewalls.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Vrrp {
    /// Interfaces it runs on; none means any.
    pub interfaces: Vec<Interface>,
    /// Addresses of the other firewalls; none means any.
    pub peers: Option<Spanned<Name>>,
}

/// The link between the firewalls' ctsync daemons.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Link {
    /// Interfaces it runs on; none means any.
    pub interfaces: Vec<Interface>,
    /// UDP port on both sides.
    pub port: Port,
    /// Addresses of the other firewalls; none means any.
    pub peers: Option<Spanned<Name>>,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            port: Port::ctsync(),
            peers: None,
        }
    }
}

/// Log of dropped packets.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Log {
    /// Packets per second; 0 logs nothing.
    pub rate: u32,
    /// Packets let through before the rate counts.
    pub burst: u32,
    /// Text before the packet.
    pub prefix: LogPrefix,
    /// NFLOG group instead of the kernel log.
    pub group: Option<u16>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            rate: 5,
            burst: 10,
            prefix: LogPrefix::default(),
            group: None,
        }
    }
}

/// Source becomes the address of the outgoing interface.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Masquerade {
    /// Interfaces that connections leave by.
    pub interfaces: Vec<Interface>,
    /// Original sources; none means any.
    #[serde(default)]
    pub from: Option<Spanned<Name>>,
    /// Families; by default those of the policy.
    #[serde(default)]
    pub families: Option<Families>,
}

/// Source becomes a fixed address.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Snat {
    /// Interfaces that connections leave by.
    pub interfaces: Vec<Interface>,
    /// Original sources; none means any.
    #[serde(default)]
    pub from: Option<Spanned<Name>>,
    /// New source.
    pub to: std::net::IpAddr,
}

/// A server behind another address.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Dnat {
    /// Interfaces that connections come from; none means any.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// Address that clients use.
    pub address: std::net::IpAddr,
    /// Control port that clients use.
    #[serde(default)]
    pub port: Port,
    /// The server's address.
    pub to: Spanned<std::net::IpAddr>,
    /// The server's control port, if it is another one.
    #[serde(default)]
    pub to_port: Option<Port>,
    /// Name of the helper that watches these connections; by default the first.
    #[serde(default)]
    pub helper: Option<Spanned<Name>>,
}

/// Something is wrong with the policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Mistake {
    /// What.
    pub message: String,
    /// Where, in bytes.
    pub span: Option<Range<usize>>,
    /// What would be right.
    pub help: Option<String>,
}

impl Policy {
    /// Reads a policy and checks it.
    ///
    /// # Errors
    /// Every mistake found; the reader of TOML stops at the first.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let policy: Self = toml::from_str(text).map_err(|error| {
            let message = error.message().trim_end().to_owned();
            vec![Mistake {
                message,
                span: error.span(),
                help: None,
            }]
        })?;
        let mistakes = validate::validate(&policy);
        if mistakes.is_empty() {
            Ok(policy)
        } else {
            Err(mistakes)
        }
    }

    /// Rules count packets.
    #[must_use]
    pub fn counting(&self) -> bool {
        self.counters.unwrap_or(self.firewall.is_some())
    }
}
