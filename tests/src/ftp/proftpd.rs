//! proftpd.

use std::fs;
use std::process::Command;

use anyhow::Result;

use crate::ftp::server::{FTP_USER, INCOMING, PASSIVE_MAX, PASSIVE_MIN, Tree};
use crate::programs;
use crate::topology::{Family, server_address};

/// Writes the configuration; the command that runs it.
pub(super) fn configure(tree: &Tree) -> Result<Command> {
    let config = tree.private().join("proftpd.conf");
    fs::write(&config, configuration(tree))?;
    let args = ["--nodaemon", "--config", &config.to_string_lossy()];
    Ok(programs::server("proftpd", &args))
}

/// The addresses are named, because it would look up the host's name.
fn configuration(tree: &Tree) -> String {
    let private = tree.private().display();
    let root = tree.root().display().to_string();
    let log = tree.log().display().to_string();
    let addresses = Family::BOTH.map(|family| server_address(family).to_string());
    let addresses = addresses.join(" ");
    format!(
        "ServerType standalone
DefaultAddress {addresses}
DefaultServer on
Port 21
UseIPv6 on
UseReverseDNS off
User nobody
Group nogroup
PidFile {private}/pid
ScoreboardFile {private}/scoreboard
DelayTable {private}/delay
SystemLog {log}
WtmpLog off
TransferLog none
AuthOrder mod_auth_unix.c
RequireValidShell off
PassivePorts {PASSIVE_MIN} {PASSIVE_MAX}
AllowOverwrite on
<Anonymous {root}>
  User {FTP_USER}
  Group nogroup
  UserAlias anonymous {FTP_USER}
  <Directory *>
    <Limit WRITE>
      DenyAll
    </Limit>
  </Directory>
  <Directory {INCOMING}>
    <Limit STOR>
      AllowAll
    </Limit>
  </Directory>
</Anonymous>
"
    )
}
