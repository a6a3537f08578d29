//! A firewall that refuses data connections unless our helper expects them,
//! between a client and a server that a test plays.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::firewall::{DEFAULT_DROP, Nat};
use crate::ftp::script::{Dialogue, data_passes};
use crate::ours::{self, Helper};
use crate::topology::{Family, Topology, client_address, server_address};

/// Topology, helper and ruleset. The helper ends before its namespaces.
#[derive(Debug)]
pub struct Served {
    /// Our helper.
    pub helper: Helper,
    /// Client, firewall and server.
    pub topology: Topology,
}

impl Served {
    /// Starts the helper with options, and loads the default ruleset.
    ///
    /// # Errors
    /// One of them can't be had.
    pub fn start(options: &[&str]) -> Result<Self> {
        let topology = Topology::new()?;
        topology.fw.nft(DEFAULT_DROP)?;
        let helper = Helper::start(&topology.fw, options)?;
        ours::run(&topology.fw, "nft-ftp-ruleset", &["load"])?;
        Ok(Self { helper, topology })
    }

    /// A control connection on which the client has logged in.
    ///
    /// # Errors
    /// If a line doesn't arrive; with the helper's log.
    pub fn dialogue(&self, family: Family) -> Result<Dialogue<'_>> {
        let mut dialogue = Dialogue::open(&self.topology, Nat::None, family)?;
        dialogue.login().with_context(|| self.helper.log())?;
        Ok(dialogue)
    }

    /// May the server connect to this port of the client, over IPv4?
    ///
    /// # Errors
    /// If it can't be tried.
    pub fn client_is_open(&self, port: u16) -> Result<bool> {
        let at = SocketAddr::new(client_address(Family::V4), port);
        data_passes(&self.topology.server, &self.topology.client, at)
    }

    /// May the client connect to this port of the server?
    ///
    /// # Errors
    /// If it can't be tried.
    pub fn server_is_open(&self, port: u16, family: Family) -> Result<bool> {
        let at = SocketAddr::new(server_address(family), port);
        data_passes(&self.topology.client, &self.topology.server, at)
    }
}
