//! Reads the policy and the files it names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::ir::Ruleset;
use crate::lower;
use crate::policy::addresses::{AddressSets, Ranges};
use crate::policy::source::Source;
use crate::policy::values::Name;
use crate::policy::{Mistake, Policy};

/// Where the policy is unless told otherwise; it need not exist.
const DEFAULT_POLICY: &str = "/etc/nft-ftp/ruleset.toml";

/// Longest policy, in bytes.
const POLICY_LIMIT: u64 = 4 << 20;
/// Longest file of addresses, in bytes: some millions of them.
const ADDRESSES_LIMIT: u64 = 128 << 20;

/// A policy, its text, and the ruleset that does what it says.
#[derive(Debug)]
pub struct Input {
    /// The policy.
    pub policy: Policy,
    /// Its text, which origins point into.
    pub source: Source,
    /// What it is lowered to.
    pub ruleset: Ruleset,
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("reading {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// What is written there is wrong; complete, with source lines.
    #[error("{0}")]
    Mistakes(String),
}

/// Reads the policy at `path`, or the default one, or none at all.
///
/// # Errors
/// What cannot be read, or every mistake with its source line.
pub fn read(path: Option<&Path>) -> Result<Input, Error> {
    let (source, base) = text(path)?;
    let policy = Policy::parse(&source.text)
        .map_err(|mistakes| Error::Mistakes(source.report(&mistakes)))?;
    let files = files(&policy, &base, &source)?;
    let addresses = AddressSets::collect(&policy, files);
    let ruleset = lower::lower(&policy, addresses);
    Ok(Input {
        policy,
        source,
        ruleset,
    })
}

/// Reads text that ends: a pipe may be a policy, a device without end not.
fn bounded(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?
        .take(limit + 1)
        .read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > limit) {
        let message = format!("longer than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

fn text(path: Option<&Path>) -> Result<(Source, PathBuf), Error> {
    let chosen = path.unwrap_or(Path::new(DEFAULT_POLICY));
    let mut name = chosen.display().to_string();
    let text = match bounded(chosen, POLICY_LIMIT) {
        Ok(text) => text,
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
            name = format!("the defaults: there is no {name}");
            String::new()
        }
        Err(error) => {
            return Err(Error::Read {
                path: chosen.to_owned(),
                error,
            });
        }
    };
    let base = chosen.parent().map(Path::to_owned).unwrap_or_default();
    Ok((Source { name, text }, base))
}

fn files(policy: &Policy, base: &Path, source: &Source) -> Result<BTreeMap<Name, Ranges>, Error> {
    let mut files = BTreeMap::new();
    for (name, addresses) in &policy.addresses {
        let Some(file) = &addresses.get_ref().file else {
            continue;
        };
        let path = base.join(file.get_ref());
        let text = bounded(&path, ADDRESSES_LIMIT).map_err(|error| {
            let message = format!("reading {}: {error}", path.display());
            let mistake = Mistake {
                message,
                span: Some(file.span()),
                help: None,
            };
            Error::Mistakes(source.report(&[mistake]))
        })?;
        let ranges = Ranges::parse(&text).map_err(|mistake| {
            let source = Source {
                name: path.display().to_string(),
                text: text.clone(),
            };
            Error::Mistakes(source.report(&[mistake]))
        })?;
        files.insert(name.clone(), ranges);
    }
    Ok(files)
}
