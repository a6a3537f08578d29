//! A connection that a test holds open at both ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Result, ensure};

use crate::pair::Pair;
use crate::topology::{Family, server_address};
use crate::wait::patience;

/// A connection from the client to the server, in the middle of a transfer.
#[derive(Debug)]
pub struct Talk {
    /// The client's end.
    pub client: TcpStream,
    /// The server's end.
    pub server: TcpStream,
}

impl Talk {
    /// Opens it.
    ///
    /// # Errors
    /// If it doesn't pass.
    pub fn through(pair: &Pair, family: Family) -> Result<Self> {
        let at = (server_address(family), 21);
        let listener = pair.server.enter(|| TcpListener::bind(at))?;
        let client = pair
            .client
            .enter(|| TcpStream::connect_timeout(&at.into(), patience()))?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(patience()))?;
        client.set_read_timeout(Some(patience()))?;
        let mut talk = Self { client, server };
        talk.goes_on()?;
        Ok(talk)
    }

    /// Both ends say something and hear it.
    ///
    /// # Errors
    /// If one hears nothing.
    pub fn goes_on(&mut self) -> Result<()> {
        let mut buf = [0; 5];
        self.client.write_all(b"hello")?;
        self.server.read_exact(&mut buf)?;
        ensure!(&buf == b"hello");
        self.server.write_all(b"reply")?;
        self.client.read_exact(&mut buf)?;
        ensure!(&buf == b"reply");
        Ok(())
    }
}
