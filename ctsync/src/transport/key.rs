//! Keys: X25519 pairs and pre-shared keys, 32 bytes each, as base64 text in
//! files that only their owner can read.

use super::noise::Pair;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes of a key.
pub const LEN: usize = 32;

/// Longest file, in bytes: a key and some room for white space.
const MAX_FILE: u64 = 4096;

/// A secret: a private or a pre-shared key. Wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; LEN]>);

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Public(pub [u8; LEN]);

/// Why a key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes in base64.
    #[error("not a key: expected 44 characters of base64")]
    Format,
    /// The file can't be read or written.
    #[error("{0}")]
    Io(String),
    /// Others may read the file.
    #[error("mode {0:04o} lets others read it; chmod 600")]
    Mode(u32),
    /// Somebody else may read it: it is his.
    #[error("it belongs to user {0}; it must be this one's or root's")]
    Owner(u32),
    /// The system has no randomness.
    #[error("no randomness: {0}")]
    Random(String),
}

impl From<io::Error> for KeyError {
    fn from(e: io::Error) -> Self {
        Self::Io(crate::errno::chain(&e))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Debug for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Public({self})")
    }
}

impl fmt::Display for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl std::str::FromStr for Public {
    type Err = KeyError;

    fn from_str(s: &str) -> Result<Self, KeyError> {
        decode(s.trim()).map(|k| Self(*k))
    }
}

/// Fills an array with randomness of the system.
///
/// # Errors
/// [`KeyError::Random`].
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| KeyError::Random(e.to_string()))?;
    Ok(bytes)
}

impl Secret {
    /// A new random one.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// From its bytes.
    pub fn from_bytes(bytes: [u8; LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; LEN] {
        &self.0
    }

    /// Reads base64 text.
    ///
    /// # Errors
    /// [`KeyError::Format`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        decode(text.trim()).map(Self)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`KeyError::Mode`] if group or others may read it, [`KeyError::Owner`]
    /// if it belongs to another user than this one or root.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let refuse = |meta: &std::fs::Metadata| match meta.mode() & 0o7777 {
            mode if mode & 0o077 != 0 => KeyError::Mode(mode),
            _ => KeyError::Owner(meta.uid()),
        };
        let text = Zeroizing::new(daemon::file::read_secret(path, MAX_FILE, refuse)?);
        Self::parse(&text)
    }

    /// Writes a new file with mode 0600. Root makes it for whoever owns the
    /// directory (who could replace it anyway): the daemon is not root.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut text = Zeroizing::new(encode(self.bytes()));
        text.push('\n');
        file.write_all(text.as_bytes())?;
        give_to_owner_of_directory(&file, path)?;
        file.sync_all()?;
        Ok(())
    }

    /// As text.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(encode(self.bytes()))
    }

    /// The public key of this private one.
    pub fn public(&self) -> Public {
        Public(*Pair::of(self).public())
    }
}

fn give_to_owner_of_directory(file: &File, path: &Path) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let (dir, own) = (std::fs::metadata(dir)?, file.metadata()?);
    if own.uid() != 0 || dir.uid() == 0 {
        return Ok(());
    }
    fchown(file, Some(dir.uid()), Some(dir.gid()))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(key: &[u8; LEN]) -> String {
    let mut text = String::with_capacity(44);
    for chunk in key.chunks(3) {
        let bits = (0..3).fold(0_u32, |b, i| {
            b << 8 | u32::from(chunk.get(i).copied().unwrap_or(0))
        });
        for i in 0..=chunk.len() {
            let at = (bits >> (18 - 6 * i)) & 63;
            let letter = ALPHABET.get(at as usize).copied();
            text.push(char::from(letter.unwrap_or(b'A')));
        }
    }
    text.push('=');
    text
}

fn decode(text: &str) -> Result<Zeroizing<[u8; LEN]>, KeyError> {
    let body = text.strip_suffix('=').ok_or(KeyError::Format)?;
    if body.len() != 43 {
        return Err(KeyError::Format);
    }
    let mut key = Zeroizing::new([0_u8; LEN]);
    let (mut bits, mut have) = (0_u32, 0);
    let mut bytes = key.iter_mut();
    for c in body.bytes() {
        let value = ALPHABET.iter().position(|a| *a == c);
        let value = value.and_then(|v| u32::try_from(v).ok());
        bits = bits << 6 | value.ok_or(KeyError::Format)?;
        have += 6;
        if have >= 8 {
            have -= 8;
            let byte = (bits >> have) & 0xff;
            let out = bytes.next().ok_or(KeyError::Format)?;
            *out = u8::try_from(byte).map_err(|_| KeyError::Format)?;
            bits &= (1 << have) - 1;
        }
    }
    // The last character has two bits that mean nothing: one form only.
    if bits != 0 {
        return Err(KeyError::Format);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748 section 6.1, Alice's pair.
    #[test]
    fn a_public_key_is_x25519_of_the_private_one() {
        let private = Secret::parse("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        let public = private.public();
        assert_eq!(
            public.to_string(),
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
        );
        assert_eq!(public.to_string().parse::<Public>().unwrap(), public);
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        for text in [
            "",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmp=",
            "hSDwCYkwp1R0i33ctD73Wg2 Og0mOBr066SpjqqbTmo=",
        ] {
            assert!(text.parse::<Public>().is_err(), "{text}");
        }
    }

    /// Needs root to give something away; otherwise there is nothing to see.
    #[test]
    fn a_key_made_by_root_belongs_to_the_owner_of_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let given = std::os::unix::fs::chown(dir.path(), Some(1234), Some(1235)).is_ok();
        let path = dir.path().join("key");
        Secret::generate().unwrap().write(&path).unwrap();
        let (dir, key) = (dir.path().metadata().unwrap(), path.metadata().unwrap());
        assert_eq!(key.uid(), dir.uid());
        assert_eq!(key.gid() == 1235, given);
        assert_eq!(key.mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_and_none_is_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = Secret::generate().unwrap();
        key.write(&path).unwrap();
        assert_eq!(Secret::read(&path).unwrap().bytes(), key.bytes());
        assert!(key.write(&path).is_err());
        let open = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(&path, open).unwrap();
        assert!(matches!(Secret::read(&path), Err(KeyError::Mode(0o640))));
    }
}
