//! Reading files that somebody else may have put there.

use std::fs::{Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Longest configuration, in bytes.
pub const CONFIG_LIMIT: u64 = 4 << 20;

/// Reads a regular file of at most `limit` bytes as text. A device, a pipe
/// or a file without end is an error, not a wait: a daemon that reads its
/// configuration again has packets to serve.
///
/// # Errors
/// `InvalidInput` for what is no regular file, `FileTooLarge`, `InvalidData`
/// for what is no UTF-8; else what the system says.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    read_checked(path, limit, |_| Ok(()))
}

/// Reads a secret: as [`read_text`], but only if it belongs to this user or
/// root, and nobody else may read or write it. To root it may also belong to
/// the owner of its directory, who could replace it anyway: a daemon's user,
/// whose configuration root looks at.
///
/// # Errors
/// Besides those of [`read_text`] what `refuse` makes of the file's mode or
/// owner.
pub fn read_secret<E: From<io::Error>>(
    path: &Path,
    limit: u64,
    refuse: impl FnOnce(&Metadata) -> E,
) -> Result<String, E> {
    read_checked(path, limit, |meta| {
        let own = nix::unistd::geteuid().as_raw();
        let trusted = [0, own].contains(&meta.uid())
            || (own == 0 && owner_of_directory(path) == Some(meta.uid()));
        let private = trusted && meta.mode() & 0o077 == 0;
        if private { Ok(()) } else { Err(refuse(meta)) }
    })
}

fn owner_of_directory(path: &Path) -> Option<u32> {
    let dir = path.parent().filter(|dir| *dir != Path::new(""));
    let meta = std::fs::metadata(dir.unwrap_or(Path::new("."))).ok()?;
    Some(meta.uid())
}

/// What is checked is the open file: the path may lead elsewhere by now.
fn read_checked<E: From<io::Error>>(
    path: &Path,
    limit: u64,
    check: impl FnOnce(&Metadata) -> Result<(), E>,
) -> Result<String, E> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file").into());
    }
    check(&meta)?;
    // Of a secret that moves while it grows, parts stay behind.
    let room = meta.len().min(limit).saturating_add(1);
    let mut text = String::with_capacity(usize::try_from(room).unwrap_or(0));
    file.take(limit + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > limit) {
        let message = format!("longer than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message).into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn devices_pipes_directories_and_endless_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let paths = [
            "/dev/zero".as_ref(),
            "/dev/null".as_ref(),
            dir.path(),
            &pipe,
        ];
        for path in paths {
            let error = read_text(path, 100).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        let huge = dir.path().join("huge");
        let file = std::fs::File::create(&huge).unwrap();
        file.set_len(1 << 40).unwrap();
        let error = read_text(&huge, 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        std::fs::write(&huge, "x".repeat(100)).unwrap();
        assert_eq!(read_text(&huge, 100).unwrap().len(), 100);
    }

    #[test]
    fn a_link_is_judged_by_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "text").unwrap();
        symlink(&file, &link).unwrap();
        let read = || read_secret(&link, 100, |m| io::Error::other(format!("{:o}", m.mode())));
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o602, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read().is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn a_secret_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            return crate::skip::missing("a_secret_of_another_user_is_refused", "root");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "text").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
        let read = || read_secret(&file, 100, |_| io::Error::other("owner"));
        assert!(read().is_err());
        // Whose directory it is could have put any other there.
        std::os::unix::fs::chown(dir.path(), Some(65533), None).unwrap();
        assert!(read().is_err());
        std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
        assert_eq!(read().unwrap(), "text");
    }
}
