//! Short kernel names held inline: helpers, policies, expectfn.

use std::fmt;

/// A name of at most 31 bytes without NUL, as the kernel stores helper names
/// (`NF_CT_HELPER_NAME_LEN`, 16 with NUL) and expectation function names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    bytes: [u8; Name::MAX],
    len: u8,
}

/// A name is too long, or has a NUL inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("name is longer than {max} bytes or contains NUL", max = Name::MAX)]
pub struct NameError;

impl Name {
    /// Longest name, in bytes.
    pub const MAX: usize = 31;
    /// Longest helper name, in bytes (`NF_CT_HELPER_NAME_LEN` - 1).
    pub const HELPER_MAX: usize = 15;

    /// Holds `name`.
    ///
    /// # Errors
    /// [`NameError`] if it is longer than [`Name::MAX`] or contains NUL.
    pub fn new(name: &[u8]) -> Result<Self, NameError> {
        let mut bytes = [0; Self::MAX];
        let room = bytes.get_mut(..name.len()).ok_or(NameError)?;
        if name.contains(&0) {
            return Err(NameError);
        }
        room.copy_from_slice(name);
        let len = u8::try_from(name.len()).map_err(|_| NameError)?;
        Ok(Self { bytes, len })
    }

    /// Reads a NUL-terminated or unterminated attribute value.
    ///
    /// # Errors
    /// [`NameError`] if what comes before the NUL is too long.
    pub fn from_attr(value: &[u8]) -> Result<Self, NameError> {
        Self::new(value.split(|b| *b == 0).next().unwrap_or_default())
    }

    /// The name's bytes without NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The name as text; bytes that are no UTF-8 end it.
    pub fn as_str(&self) -> &str {
        match std::str::from_utf8(self.as_bytes()) {
            Ok(s) => s,
            Err(e) => self
                .as_bytes()
                .get(..e.valid_up_to())
                .and_then(|b| std::str::from_utf8(b).ok())
                .unwrap_or_default(),
        }
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        Self::new(s.as_bytes())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_nul_and_have_a_limit() {
        assert_eq!(Name::from_attr(b"ftp\0\0").unwrap().as_str(), "ftp");
        assert_eq!(Name::from_attr(b"ftp").unwrap().as_bytes(), b"ftp");
        assert_eq!(Name::new(&[b'a'; 32]), Err(NameError));
        assert_eq!(Name::new(b"a\0b"), Err(NameError));
        assert_eq!(Name::new(b"a\xffb").unwrap().as_str(), "a");
    }
}
