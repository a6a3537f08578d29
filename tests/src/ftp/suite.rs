//! The FTP suite: one set of transfers that runs against whatever helper
//! the firewall has, the kernel's or ours.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::check;
use crate::command::Finished;
use crate::firewall::{self, DEFAULT_DROP, Nat};
use crate::ftp::Mode;
use crate::ftp::client::{Client, Job, assert_used, sent};
use crate::ftp::server::{FILE, INCOMING, Program, Server, Tree};
use crate::topology::{Family, Topology};

/// A client, a firewall that drops by default, and a running server.
#[derive(Debug)]
pub struct World {
    /// The server program; before the topology, so that it ends first.
    pub server: Server,
    /// Its namespaces.
    pub topology: Topology,
    /// What the firewall translates.
    pub nat: Nat,
}

/// One way to transfer a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Case {
    /// Who asks.
    pub client: Client,
    /// How the data connection is agreed on.
    pub mode: Mode,
    /// Over which protocol.
    pub family: Family,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let client = self.client.name();
        write!(f, "{client} {} {}", self.mode.verb(), self.family)
    }
}

impl Case {
    /// Everything the client programs support.
    pub fn all() -> impl Iterator<Item = Self> {
        let modes = |client| {
            Mode::ALL.into_iter().flat_map(move |mode| {
                Family::BOTH.map(|family| Self {
                    client,
                    mode,
                    family,
                })
            })
        };
        Client::ALL
            .into_iter()
            .flat_map(modes)
            .filter(|case| case.client.supports(case.mode, case.family))
    }
}

impl World {
    /// Builds it, with the firewall's filter and NAT rules and no helper.
    ///
    /// # Errors
    /// With what couldn't be set up.
    pub fn new(nat: Nat) -> Result<Self> {
        Self::with_server(Program::Vsftpd, nat)
    }

    /// [`World::new`] with another server than vsftpd.
    ///
    /// # Errors
    /// With what couldn't be set up.
    pub fn with_server(program: Program, nat: Nat) -> Result<Self> {
        let topology = Topology::new()?;
        topology.fw.nft(DEFAULT_DROP)?;
        topology.fw.nft(&firewall::nat_rules(nat))?;
        let server = Server::start(program, &topology.server)?;
        Ok(Self {
            server,
            topology,
            nat,
        })
    }

    /// Lists, downloads and uploads; all must work, with the command asked
    /// for, and each data connection must have passed as `related`.
    ///
    /// # Errors
    /// With everything client and server said.
    pub fn passes(&self, case: Case) -> Result<()> {
        let before = firewall::packets(&self.topology.fw, "related")?;
        let dir = tempfile::tempdir()?;
        self.list(case)
            .and_then(|()| self.download(case, dir.path()))
            .and_then(|()| self.upload(case, dir.path()))
            .with_context(|| format!("{case}, {}\n{}", self.nat, self.server.log()))?;
        let related = firewall::packets(&self.topology.fw, "related")? - before;
        ensure!(related >= 3, "{case}: {related} related packets, wanted 3");
        Ok(())
    }

    /// A download must fail, because the firewall refused the data
    /// connection that the command asked for.
    ///
    /// # Errors
    /// If it works, or fails for another reason.
    pub fn is_refused(&self, case: Case) -> Result<()> {
        let before = firewall::packets(&self.topology.fw, "refused")?;
        let dir = tempfile::tempdir()?;
        let local = dir.path().join("down.bin");
        let said = self.run(case, Job::Get(FILE, &local))?;
        let same = check::same_contents(&local, &self.tree().file()).is_ok();
        ensure!(!same, "{case}: passed without a helper");
        let refused = firewall::packets(&self.topology.fw, "refused")? - before;
        ensure!(
            refused >= 1 && sent(&said, case.mode.verb()),
            "{case}: failed, but not at the firewall: {}",
            said.report()
        );
        Ok(())
    }

    /// Address the client connects to.
    #[must_use]
    pub fn target(&self, family: Family) -> IpAddr {
        self.nat.target(family)
    }

    /// What the server publishes.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.server.tree
    }

    fn list(&self, case: Case) -> Result<()> {
        let listing = self.works(case, Job::List)?;
        ensure!(
            listing.contains(FILE),
            "no {FILE} in the listing: {listing}"
        );
        Ok(())
    }

    /// Fetches the published file and compares it.
    ///
    /// # Errors
    /// If it isn't the same at both ends.
    pub fn download(&self, case: Case, dir: &Path) -> Result<()> {
        let local = dir.join("down.bin");
        let said = self.works(case, Job::Get(FILE, &local))?;
        check::same_contents(&local, &self.tree().file()).context(said)
    }

    fn upload(&self, case: Case, dir: &Path) -> Result<()> {
        let name = format!("{:?}-{}-{}", case.client, case.mode.verb(), case.family);
        let local = dir.join("up.bin");
        std::fs::write(&local, check::noise(11, 1 << 20))?;
        let said = self.works(case, Job::Put(&local, &format!("{INCOMING}/{name}")))?;
        let uploaded = self.tree().uploaded(&name).context(said)?;
        check::same_contents(&local, &uploaded)?;
        std::fs::remove_file(uploaded).context("removing the upload")
    }

    /// Runs a client that must succeed, with the right command.
    fn works(&self, case: Case, job: Job<'_>) -> Result<String> {
        let finished = self.run(case, job)?;
        ensure!(finished.ok(), "{}", finished.report());
        assert_used(case.mode, &finished)?;
        Ok(finished.report())
    }

    fn run(&self, case: Case, job: Job<'_>) -> Result<Finished> {
        let client = &self.topology.client;
        case.client
            .run(client, self.target(case.family), case.mode, job)
    }
}
