//! Follows the guide for a pair on the laboratory's pair.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::guide::{self, Machine};
use crate::pair::Pair;
use crate::programs::built;
use anyhow::{Context, Result};

/// Where each machine has them.
const EXAMPLES: &str = "/etc/lab/examples";

/// The guide's machines.
pub struct Walk<'a> {
    machines: BTreeMap<&'static str, Machine<'a>>,
}

impl<'a> Walk<'a> {
    /// On a pair whose server runs.
    ///
    /// # Errors
    /// If ctsync isn't built.
    pub fn new(pair: &'a Pair) -> Result<Self> {
        let machines = BTreeMap::from([
            ("fw-1", Machine::new(&pair.fw_1)?),
            ("fw-2", Machine::new(&pair.fw_2)?),
            ("client", Machine::new(&pair.client)?),
        ]);
        // The package puts ctsync where the example says.
        let ctsync = built("ctsync")?;
        let keepalived = include_str!("../../examples/keepalived.conf");
        let keepalived = keepalived.replace("/usr/sbin/ctsync", &ctsync.to_string_lossy());
        for machine in machines.values() {
            let file = machine.file(&format!("{EXAMPLES}/keepalived.conf"));
            std::fs::create_dir_all(file.parent().context("a directory")?)?;
            std::fs::write(file, &keepalived)?;
        }
        Ok(Self { machines })
    }

    /// Runs the blocks of a text; what they printed. Words that a reader
    /// replaces are replaced.
    ///
    /// # Errors
    /// With the block that failed.
    pub fn follow(&mut self, text: &str) -> Result<String> {
        let machines = &self.machines;
        let mut known = |text: &str| -> Result<String> {
            let mut text = text.replace("EXAMPLES", EXAMPLES);
            // The package puts it there.
            let ctsync = built("ctsync")?;
            text = text.replace("/usr/sbin/ctsync", &ctsync.to_string_lossy());
            for (word, node) in [("FW-1", "fw-1"), ("FW-2", "fw-2")] {
                let word = format!("PUBLIC-KEY-OF-{word}");
                if text.contains(&word) {
                    let machine = machines.get(node).context("node")?;
                    let key = machine.run("ctsync pubkey /etc/ctsync/private.key")?;
                    text = text.replace(&word, key.trim());
                }
            }
            Ok(text)
        };
        Ok(guide::run(text, machines, &mut known)?.concat())
    }

    /// Where a machine's file is.
    ///
    /// # Errors
    /// If there is no such machine.
    pub fn file(&self, machine: &str, path: &str) -> Result<PathBuf> {
        Ok(self.machines.get(machine).context("machine")?.file(path))
    }

    /// Runs commands on a machine.
    ///
    /// # Errors
    /// With what they said.
    pub fn run(&self, machine: &str, script: &str) -> Result<String> {
        self.machines.get(machine).context("machine")?.run(script)
    }
}
