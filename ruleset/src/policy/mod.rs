//! What the operator wants, as written in TOML. Every field has a default.

use serde::Deserialize;

/// A whole policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// Name of our table.
    pub table: String,
    /// Conntrack helpers and where they are assigned.
    pub helper: Vec<Helper>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            table: "nft_ftp".to_owned(),
            helper: vec![Helper::default()],
        }
    }
}

/// One `ct helper` object and the control ports it watches.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Helper {
    /// Name of the object.
    pub name: String,
    /// Name under which the helper is registered with the kernel.
    #[serde(rename = "type")]
    pub kind: String,
    /// Control ports.
    pub ports: Vec<u16>,
}

impl Default for Helper {
    fn default() -> Self {
        Self {
            name: "ftp".to_owned(),
            kind: "nft-ftp".to_owned(),
            ports: vec![21],
        }
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// Line, column and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}
