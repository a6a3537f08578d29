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
        self.reader.get_mut().write_all(&line)
    }

    /// The next line of answer; `None` at the end.
    ///
    /// # Errors
    /// The daemon is gone, or what it says is no JSON.
    pub fn receive(&mut self) -> io::Result<Option<serde_json::Value>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
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
        self.receive()?
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
