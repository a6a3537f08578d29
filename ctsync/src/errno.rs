//! Errors with all their causes in one line, and errno by name.

use nix::errno::Errno;
use std::error::Error;
use std::fmt::Write;

/// The error and what it came from: `reading c.toml: no such file or
/// directory (ENOENT)`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(e) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        match errno(e) {
            Some(errno) => {
                let mut desc = errno.desc().chars();
                text.extend(desc.next().into_iter().flat_map(char::to_lowercase));
                let _ = write!(text, "{} ({errno:?})", desc.as_str());
            }
            None => {
                let _ = write!(text, "{e}");
            }
        }
        next = e.source();
    }
    text
}

fn errno(e: &(dyn Error + 'static)) -> Option<Errno> {
    if let Some(errno) = e.downcast_ref::<Errno>() {
        return Some(*errno);
    }
    let io = e.downcast_ref::<std::io::Error>()?;
    io.raw_os_error().map(Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn errno_is_told_by_name() {
        let missing = std::fs::read("/nonexistent").context("reading it");
        assert_eq!(
            chain(missing.unwrap_err().as_ref()),
            "reading it: no such file or directory (ENOENT)"
        );
    }
}
