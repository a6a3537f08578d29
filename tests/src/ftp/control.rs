//! A control connection driven by hand: what is sent, in which pieces, and
//! when, is up to the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::MsgFlags;

use crate::netns::Namespace;
use crate::wait::{patience, until};

/// A logged-in control connection.
#[derive(Debug)]
pub struct Control<'a> {
    client: &'a Namespace,
    reader: BufReader<TcpStream>,
}

impl<'a> Control<'a> {
    /// Connects from `client` and reads the greeting.
    ///
    /// # Errors
    /// If the server doesn't answer with 220.
    pub fn connect(client: &'a Namespace, server: IpAddr) -> Result<Self> {
        let to = SocketAddr::new(server, 21);
        let stream = client.enter(|| TcpStream::connect_timeout(&to, patience()))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience()))?;
        let mut control = Self {
            client,
            reader: BufReader::new(stream),
        };
        control.expect("220")?;
        Ok(control)
    }

    /// Connects and logs in as anonymous.
    ///
    /// # Errors
    /// If the server refuses.
    pub fn login(client: &'a Namespace, server: IpAddr) -> Result<Self> {
        let mut control = Self::connect(client, server)?;
        control.send("USER anonymous\r\n")?;
        // Some servers ask for no password of an anonymous user.
        if control.reply()?.starts_with("331") {
            control.command("PASS lab@", "230")?;
        }
        Ok(control)
    }

    /// The client's address on this connection.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn address(&self) -> Result<IpAddr> {
        Ok(self.reader.get_ref().local_addr()?.ip())
    }

    /// Sends bytes as they are, in a segment of their own.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn send(&mut self, bytes: &str) -> Result<()> {
        self.reader.get_mut().write_all(bytes.as_bytes())?;
        Ok(())
    }

    /// Waits until everything sent is acknowledged, so that what is sent next
    /// is a segment of its own even after a retransmission.
    ///
    /// # Errors
    /// If that takes too long: the segment was dropped or the connection
    /// stalls.
    pub fn flush(&mut self) -> Result<()> {
        let socket = self.reader.get_ref();
        until("an acknowledgement", patience(), || {
            (unacknowledged(socket) == Some(0)).then_some(())
        })
    }

    /// `ABOR` behind Telnet's Interrupt Process and Synch, the latter urgent.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn abort(&mut self) -> Result<()> {
        use std::os::fd::AsRawFd;
        // IAC IP IAC as urgent data, then DM: as BSD's client does.
        let socket = self.reader.get_ref().as_raw_fd();
        nix::sys::socket::send(socket, b"\xff\xf4\xff", MsgFlags::MSG_OOB)?;
        self.reader.get_mut().write_all(b"\xf2ABOR\r\n")?;
        Ok(())
    }

    /// Reads one reply; its last line.
    ///
    /// # Errors
    /// If none comes.
    pub fn reply(&mut self) -> Result<String> {
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            ensure!(!line.is_empty(), "connection closed");
            if line.get(3..4) == Some(" ") {
                return Ok(line);
            }
        }
    }

    /// Reads one reply, which must have this code.
    ///
    /// # Errors
    /// If it has another one, or none comes.
    pub fn expect(&mut self, code: &str) -> Result<String> {
        let line = self
            .reply()
            .with_context(|| format!("waiting for {code}"))?;
        ensure!(line.starts_with(code), "got {line:?}, wanted {code}");
        Ok(line)
    }

    /// Sends a line and reads its reply.
    ///
    /// # Errors
    /// If the reply isn't `code`.
    pub fn command(&mut self, line: &str, code: &str) -> Result<String> {
        self.send(&format!("{line}\r\n"))?;
        self.expect(code).with_context(|| line.to_owned())
    }

    /// Listens on `port` of the client, for an active transfer.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        let at = SocketAddr::new(self.address()?, port);
        let listener = self.client.enter(|| TcpListener::bind(at))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Asks for a list and receives it on `listener`, whose port was
    /// announced before.
    ///
    /// # Errors
    /// If no data connection arrives, or the server isn't content.
    pub fn list_to(&mut self, listener: &TcpListener) -> Result<String> {
        self.send("NLST\r\n")?;
        let accepted = until("a data connection", patience(), || {
            listener.accept().ok().map(|(stream, _)| stream)
        });
        let mut stream = accepted?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience()))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        self.expect("150")?;
        self.expect("226")?;
        Ok(text)
    }

    /// `PORT` with the client's address.
    ///
    /// # Errors
    /// If the client has no IPv4 address.
    pub fn port_line(&self, port: u16) -> Result<String> {
        let IpAddr::V4(v4) = self.address()? else {
            bail!("PORT is for IPv4");
        };
        let [high, low] = port.to_be_bytes();
        let address = v4.to_string().replace('.', ",");
        Ok(format!("PORT {address},{high},{low}"))
    }

    /// `EPRT` with the client's address.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn eprt_line(&self, port: u16) -> Result<String> {
        let address = self.address()?;
        let protocol = if address.is_ipv4() { 1 } else { 2 };
        Ok(format!("EPRT |{protocol}|{address}|{port}|"))
    }

    /// Asks for a list and fetches it from where the server says: `PASV` over
    /// IPv4, `EPSV` over IPv6.
    ///
    /// # Errors
    /// If the answer is none, names another host than the control connection
    /// goes to, or no data connection comes about.
    pub fn list_passively(&mut self) -> Result<String> {
        let host = self.reader.get_ref().peer_addr()?.ip();
        let port = match host {
            IpAddr::V4(v4) => {
                let reply = self.command("PASV", "227")?;
                let (address, port) = endpoint_of_227(&reply)?;
                ensure!(address == v4.to_string(), "{reply:?} names another host");
                port
            }
            IpAddr::V6(_) => {
                let reply = self.command("EPSV", "229")?;
                let port = reply.split('|').nth(3).context("no port in 229")?;
                port.parse()?
            }
        };
        let mut stream = self.connect_data(host, port)?;
        self.send("NLST\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        self.expect("150")?;
        self.expect("226")?;
        Ok(text)
    }

    /// Connects to `port` of `host`, as a passive transfer does.
    ///
    /// # Errors
    /// If the connection is refused or gets no answer.
    pub fn connect_data(&self, host: IpAddr, port: u16) -> Result<TcpStream> {
        let to = SocketAddr::new(host, port);
        let stream = self
            .client
            .enter(|| TcpStream::connect_timeout(&to, patience()))?;
        stream.set_read_timeout(Some(patience()))?;
        Ok(stream)
    }
}

/// Address and port in `227 Text (h1,h2,h3,h4,p1,p2)`.
fn endpoint_of_227(reply: &str) -> Result<(String, u16)> {
    let inside = reply
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'))
        .map(|(inside, _)| inside)
        .with_context(|| format!("no endpoint in {reply:?}"))?;
    let fields: Vec<&str> = inside.split(',').collect();
    let &[a, b, c, d, high, low] = fields.as_slice() else {
        bail!("no endpoint in {reply:?}");
    };
    let port = u16::from_be_bytes([high.parse()?, low.parse()?]);
    Ok((format!("{a}.{b}.{c}.{d}"), port))
}

/// Bytes in the send queue that the peer has not acknowledged.
fn unacknowledged(socket: &TcpStream) -> Option<libc::c_int> {
    use std::os::fd::AsRawFd;
    let mut bytes: libc::c_int = 0;
    #[expect(unsafe_code, reason = "SIOCOUTQ has no safe wrapper")]
    // SAFETY: SIOCOUTQ writes one int to the address it is given.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (rc == 0).then_some(bytes)
}
