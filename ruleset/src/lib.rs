//! generates and loads nftables rulesets for FTP through a fault-tolerant firewall.
