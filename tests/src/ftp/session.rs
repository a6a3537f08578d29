//! An FTP client that a test leads command by command, with a real server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::check::sha256;
use crate::ftp::server::FILE;
use crate::netns::Namespace;
use crate::topology::{Family, client_address};
use crate::wait::until;

/// For an answer to a client: after an outage, TCP may wait as long again
/// before it repeats a segment, and a SYN is repeated after 1, 3, 7, 15 and
/// 31 s.
const ANSWER: Duration = Duration::from_secs(60);

/// How data connections are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// PASV or EPSV.
    Passive,
    /// PORT or EPRT.
    Active,
}

/// A control connection, command by command.
#[derive(Debug)]
pub struct Ftp<'a> {
    client: &'a Namespace,
    family: Family,
    stream: BufReader<TcpStream>,
}

impl<'a> Ftp<'a> {
    /// Connects and logs in.
    ///
    /// # Errors
    /// With the reply that was another.
    pub fn login(client: &'a Namespace, server: IpAddr, family: Family) -> Result<Self> {
        let stream = client.enter(|| TcpStream::connect_timeout(&(server, 21).into(), ANSWER))?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut ftp = Self {
            client,
            family,
            stream: BufReader::new(stream),
        };
        ftp.reply("220")?;
        ftp.ask("USER anonymous", "230")?;
        ftp.ask("TYPE I", "200")?;
        Ok(ftp)
    }

    /// Waits for a reply.
    ///
    /// # Errors
    /// If it is another.
    pub fn reply(&mut self, code: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            let got = self.stream.read_line(&mut line);
            got.with_context(|| format!("waiting for {code}"))?;
            let bytes = line.as_bytes();
            if bytes.get(3) == Some(&b' ') {
                ensure!(line.starts_with(code), "wanted {code}, got {line:?}");
                return Ok(line);
            }
            ensure!(!line.is_empty(), "control connection closed");
        }
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub fn ask(&mut self, command: &str, code: &str) -> Result<String> {
        let out = self.stream.get_mut();
        out.write_all(format!("{command}\r\n").as_bytes())?;
        self.reply(code).with_context(|| command.to_owned())
    }

    /// Downloads the published file.
    ///
    /// # Errors
    /// With the step that failed.
    pub fn fetch(&mut self, data: Data) -> Result<Vec<u8>> {
        let mut stream = match data {
            Data::Passive => {
                let to = self.passive()?;
                let stream = self
                    .client
                    .enter(|| TcpStream::connect_timeout(&to, ANSWER));
                let stream = stream.with_context(|| format!("data connection to {to}"))?;
                self.ask(&format!("RETR {FILE}"), "150")?;
                stream
            }
            Data::Active => {
                let listener = self.announce()?;
                self.ask(&format!("RETR {FILE}"), "150")?;
                accept(&listener)?
            }
        };
        let mut bytes = Vec::new();
        stream.set_read_timeout(Some(ANSWER))?;
        stream.read_to_end(&mut bytes)?;
        self.reply("226")?;
        Ok(bytes)
    }

    /// Sends PASV or EPSV; where to connect.
    ///
    /// # Errors
    /// If the reply says nothing.
    pub fn passive(&mut self) -> Result<SocketAddr> {
        let server = self.stream.get_ref().peer_addr()?.ip();
        if self.family == Family::V6 {
            let line = self.ask("EPSV", "229")?;
            let port = line.rsplit('|').nth(1).context("229")?.parse()?;
            return Ok((server, port).into());
        }
        let line = self.ask("PASV", "227")?;
        let inside = line.split(['(', ')']).nth(1).context("227")?;
        let n: Vec<u8> = inside
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [a, b, c, d, hi, lo] = n.try_into().map_err(|_| anyhow::anyhow!("227"))?;
        Ok((IpAddr::from([a, b, c, d]), u16::from_be_bytes([hi, lo])).into())
    }

    /// Listens and sends PORT or EPRT.
    ///
    /// # Errors
    /// If the server refuses it.
    pub fn announce(&mut self) -> Result<TcpListener> {
        let own = client_address(self.family);
        let listener = self.client.enter(|| TcpListener::bind((own, 0)))?;
        let port = listener.local_addr()?.port();
        let command = match own {
            IpAddr::V4(a) => {
                let [a, b, c, d] = a.octets();
                let [hi, lo] = port.to_be_bytes();
                format!("PORT {a},{b},{c},{d},{hi},{lo}")
            }
            IpAddr::V6(a) => format!("EPRT |2|{a}|{port}|"),
        };
        self.ask(&command, "200")?;
        Ok(listener)
    }
}

/// Accepts a data connection.
///
/// # Errors
/// If none comes.
pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let stream = until("data connection", ANSWER, || listener.accept().ok())?.0;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Fails unless the bytes are the published file.
///
/// # Errors
/// If they aren't.
pub fn is_file(bytes: &[u8], original: &std::path::Path) -> Result<()> {
    let local = tempfile::NamedTempFile::new()?;
    std::fs::write(local.path(), bytes)?;
    if sha256(local.path())? != sha256(original)? {
        bail!("{} bytes, not the published file", bytes.len());
    }
    Ok(())
}
