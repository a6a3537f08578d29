//! The client of a control socket.

use serde::Serialize;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to a daemon's control socket.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon that listens at `path`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` if no daemon runs there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self {
            reader: BufReader::new(UnixStream::connect(path)?),
        })
    }

    /// Sends one request.
    ///
    /// # Errors
    /// The daemon is gone.
    pub fn send(&mut self, request: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // Not to be taken for a broken pipe of our own output.
        self.reader.get_mut().write_all(&line).map_err(closed)
    }

    /// The next line of answer; `None` at the end.
    ///
    /// # Errors
    /// The daemon is gone, or what it says is no JSON.
    pub fn receive(&mut self) -> io::Result<Option<serde_json::Value>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).map_err(closed)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line)?))
    }

    /// Sends one request and waits for its one answer.
    ///
    /// # Errors
    /// `UnexpectedEof` if the daemon closes the connection without one: it
    /// refused the client or the request.
    pub fn request(&mut self, request: &impl Serialize) -> io::Result<serde_json::Value> {
        self.send(request)?;
        self.receive()?.ok_or_else(refused)
    }
}

fn closed(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => refused(),
        _ => error,
    }
}

fn refused() -> io::Error {
    let text = "the daemon closed the connection: it serves root and its own user, 64 at a time";
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_turned_away_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path).unwrap();
        drop(listener.accept().unwrap());
        let error = client.request(&"status").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
