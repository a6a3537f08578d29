//! Rulesets of the tests' own firewall: default drop, so that a data
//! connection only passes if something made it `related`.

use anyhow::{Context, Result};

use crate::netns::Namespace;
use crate::topology::{Family, Side, fw_address, server_address};

/// Address translation the firewall does between client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// None.
    None,
    /// The server sees the firewall as its client.
    Snat,
    /// The client sees the firewall as its server.
    Dnat,
    /// Both at once.
    Both,
}

impl Nat {
    /// All variants, for loops.
    pub const ALL: [Self; 4] = [Self::None, Self::Snat, Self::Dnat, Self::Both];

    fn source(self) -> bool {
        matches!(self, Self::Snat | Self::Both)
    }

    fn destination(self) -> bool {
        matches!(self, Self::Dnat | Self::Both)
    }

    /// The address the client has to connect to.
    #[must_use]
    pub fn target(self, family: Family) -> std::net::IpAddr {
        if self.destination() {
            fw_address(Side::Lan, family)
        } else {
            server_address(family)
        }
    }
}

impl std::fmt::Display for Nat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "no NAT",
            Self::Snat => "SNAT",
            Self::Dnat => "DNAT",
            Self::Both => "SNAT+DNAT",
        })
    }
}

/// Table `inet lab_fw`: forwards what is established or related, and new
/// connections to port 21 from the client's side. The rest is refused with
/// a reset, so that a client learns it at once. Each case has a named
/// counter: `established`, `related`, `control`, `refused`.
pub const DEFAULT_DROP: &str = "\
table inet lab_fw {
	counter established { }
	counter related { }
	counter control { }
	counter refused { }

	chain forward {
		type filter hook forward priority filter; policy drop;
		ct state established counter name established accept
		ct state related counter name related accept
		iifname lan tcp dport 21 ct state new counter name control accept
		meta l4proto tcp counter name refused reject with tcp reset
	}
}
";

/// Table `inet lab_helper`: the kernel's own FTP helper on port 21.
pub const KERNEL_HELPER: &str = "\
table inet lab_helper {
	ct helper ftp {
		type \"ftp\" protocol tcp
	}

	chain prerouting {
		type filter hook prerouting priority filter; policy accept;
		tcp dport 21 ct helper set \"ftp\"
	}
}
";

/// What nft-ftp-ruleset writes for `firewall.hold`.
pub const HOLD: &str = "\
table inet nft_ftp {
	set hold {
		type inet_proto
		flags timeout
	}

	chain hold {
		type filter hook prerouting priority -160; policy accept;
		meta l4proto @hold tcp flags & (fin | syn | rst | ack) != syn ct state { invalid, new } counter drop
	}
}
";

/// Table `inet lab_nat` for a variant; empty text for [`Nat::None`].
#[must_use]
pub fn nat_rules(nat: Nat) -> String {
    let mut chains = String::new();
    if nat.destination() {
        chains += "\tchain prerouting {\n\t\ttype nat hook prerouting priority dstnat;\n";
        for family in Family::BOTH {
            chains += &dnat_rule(family);
        }
        chains += "\t}\n";
    }
    if nat.source() {
        chains += "\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat;\n";
        for family in Family::BOTH {
            let (name, to) = (family.nft(), fw_address(Side::Wan, family));
            chains += &format!("\t\toifname wan snat {name} to {to}\n");
        }
        chains += "\t}\n";
    }
    if chains.is_empty() {
        return chains;
    }
    format!("table inet lab_nat {{\n{chains}}}\n")
}

fn dnat_rule(family: Family) -> String {
    let name = family.nft();
    let (at, to) = (fw_address(Side::Lan, family), server_address(family));
    format!("\t\t{name} daddr {at} tcp dport 21 dnat {name} to {to}\n")
}

/// Packets counted by a named counter of table `inet lab_fw`.
///
/// # Errors
/// If the table isn't loaded.
pub fn packets(fw: &Namespace, counter: &str) -> Result<u64> {
    let text = fw.run("nft", &["-j", "list", "counter", "inet", "lab_fw", counter])?;
    let json: serde_json::Value = serde_json::from_str(&text).context("nft -j")?;
    json.get("nftables")
        .and_then(|list| list.as_array())
        .and_then(|list| list.iter().find_map(|item| item.get("counter")))
        .and_then(|counter| counter.get("packets"))
        .and_then(serde_json::Value::as_u64)
        .with_context(|| format!("no packet count in {text}"))
}
