//! A scripted control connection: the test plays client and server, decides
//! which bytes travel in which segment, and which segments are lost.
//!
//! A segment is one write with `TCP_NODELAY`; the next one is written only
//! after the other end's kernel has acknowledged it. So what the firewall
//! sees is exactly what the test wrote.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::firewall::Nat;
use crate::netns::Namespace;
use crate::topology::{Family, Topology};
use crate::wait::{patience, until};

/// Limit for what should not happen at all: shorter than [`patience`],
/// because a passing test waits it out.
pub fn moment() -> Duration {
    patience() / 10
}

/// Client and server of one control connection.
#[derive(Debug)]
pub struct Dialogue<'a> {
    /// The client's end.
    pub client: End<'a>,
    /// The server's end.
    pub server: End<'a>,
}

/// One end of the connection.
#[derive(Debug)]
pub struct End<'a> {
    namespace: &'a Namespace,
    /// Where segments get lost: before anything else sees them.
    fw: &'a Namespace,
    stream: TcpStream,
    unread: Vec<u8>,
}

impl<'a> Dialogue<'a> {
    /// Connects to port 21 through the firewall.
    ///
    /// # Errors
    /// If the connection doesn't come about.
    pub fn open(topology: &'a Topology, nat: Nat, family: Family) -> Result<Self> {
        Self::open_at(topology, nat, family, 21)
    }

    /// The same on another port.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_at(topology: &'a Topology, nat: Nat, family: Family, port: u16) -> Result<Self> {
        let any: IpAddr = match family {
            Family::V4 => IpAddr::from([0; 4]),
            Family::V6 => IpAddr::from([0u16; 8]),
        };
        let listener = topology.server.enter(|| TcpListener::bind((any, port)))?;
        let target = SocketAddr::new(nat.target(family), port);
        let client = connect(&topology.client, target).context("control connection")?;
        let (server, _) = listener.accept()?;
        Ok(Self {
            client: End::new(&topology.client, &topology.fw, client)?,
            server: End::new(&topology.server, &topology.fw, server)?,
        })
    }

    /// The server greets and the client logs in, a line a segment.
    ///
    /// # Errors
    /// If a line doesn't arrive.
    pub fn login(&mut self) -> Result<()> {
        self.reply("220 ready\r\n")?;
        self.command("USER anonymous\r\n")?;
        self.reply("331 password\r\n")?;
        self.command("PASS lab@\r\n")?;
        self.reply("230 welcome\r\n")
    }

    /// The client sends one line in one segment, and it arrives unchanged.
    ///
    /// # Errors
    /// If it doesn't.
    pub fn command(&mut self, line: &str) -> Result<()> {
        self.client.send(line.as_bytes())?;
        let got = self.server.line()?;
        ensure!(got == line, "sent {line:?}, got {got:?}");
        Ok(())
    }

    /// The server sends one line in one segment, and it arrives unchanged.
    ///
    /// # Errors
    /// If it doesn't.
    pub fn reply(&mut self, line: &str) -> Result<()> {
        self.server.send(line.as_bytes())?;
        let got = self.client.line()?;
        ensure!(got == line, "sent {line:?}, got {got:?}");
        Ok(())
    }
}

impl<'a> End<'a> {
    fn new(namespace: &'a Namespace, fw: &'a Namespace, stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self {
            namespace,
            fw,
            stream,
            unread: Vec::new(),
        })
    }

    /// This end's address and port.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn local(&self) -> Result<SocketAddr> {
        self.stream.local_addr().context("own address")
    }

    /// Sends one segment, and waits until it is acknowledged.
    ///
    /// # Errors
    /// If it isn't: something between drops it.
    pub fn send(&mut self, segment: &[u8]) -> Result<()> {
        self.write(segment)?;
        self.acknowledged(patience())
    }

    /// Sends several segments, each acknowledged before the next.
    ///
    /// # Errors
    /// As [`End::send`].
    pub fn send_all(&mut self, segments: &[&[u8]]) -> Result<()> {
        segments.iter().try_for_each(|segment| self.send(segment))
    }

    /// Writes a segment without waiting for anything.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn write(&mut self, segment: &[u8]) -> Result<()> {
        self.stream.write_all(segment).context("sending")
    }

    /// Waits until the other end has acknowledged all that was sent.
    ///
    /// # Errors
    /// If it hasn't within `limit`.
    pub fn acknowledged(&self, limit: Duration) -> Result<()> {
        until("an acknowledgement", limit, || {
            (self.in_flight().ok()? == 0).then_some(())
        })
    }

    /// Sends two segments, of which the first gets lost on the wire before
    /// the firewall sees it; TCP sends it again by itself. So the second
    /// arrives first.
    ///
    /// # Errors
    /// If the first wasn't lost.
    pub fn send_swapped(&mut self, first: &[u8], second: &[u8]) -> Result<()> {
        let (local, remote) = (self.local()?.port(), self.stream.peer_addr()?.port());
        // IP and TCP headers with timestamps; the second packet is larger
        // than what is left of the quota.
        let headers = if self.local()?.is_ipv4() { 52 } else { 72 };
        let quota = headers + first.len() + 16;
        // Before conntrack (-200), and before fragments are joined (-400).
        self.fw.nft(&format!(
            "add table inet lab_loss
             add chain inet lab_loss wire {{ type filter hook prerouting priority -450; }}
             add rule inet lab_loss wire tcp sport {local} tcp dport {remote} \
                 tcp flags & psh == psh quota until {quota} bytes counter drop"
        ))?;
        self.write(first)?;
        self.write(second)?;
        let lost = until("the first segment to be lost", patience(), || {
            let list = ["list", "table", "inet", "lab_loss"];
            let rules = self.fw.run("nft", &list).ok()?;
            rules.contains("packets 1 ").then_some(())
        });
        self.fw.nft("delete table inet lab_loss")?;
        lost
    }

    /// The next line that arrives, with its end.
    ///
    /// # Errors
    /// With what has arrived, if no line is complete within [`patience`].
    pub fn line(&mut self) -> Result<String> {
        let complete = |bytes: &[u8]| bytes.iter().position(|&byte| byte == b'\n');
        let found = until("a line", patience(), || {
            self.fill();
            complete(&self.unread)
        });
        match found {
            Ok(end) => {
                let rest = self.unread.split_off(end + 1);
                let line = std::mem::replace(&mut self.unread, rest);
                Ok(String::from_utf8_lossy(&line).into_owned())
            }
            Err(error) => bail!("{error}; got {:?}", String::from_utf8_lossy(&self.unread)),
        }
    }

    /// Takes all that has arrived.
    fn fill(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.stream.read(&mut buffer) {
            self.unread
                .extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
    }

    /// Bytes sent and not yet acknowledged, from /proc/net/tcp.
    fn in_flight(&self) -> Result<u64> {
        let (local, remote) = (self.local()?, self.stream.peer_addr()?);
        let file = if local.is_ipv4() { "tcp" } else { "tcp6" };
        let table = self.namespace.proc_net(file)?;
        tx_queue(&table, local.port(), remote.port())
            .with_context(|| format!("no connection {local} {remote} in\n{table}"))
    }
}

/// Opens a TCP connection from a namespace.
///
/// # Errors
/// If it is refused, or not answered within [`moment`].
pub fn connect(from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    from.enter(|| TcpStream::connect_timeout(&to, moment()))
        .with_context(|| format!("{to} from {}", from.name()))
}

/// True if a data connection passes: one end listens, the other connects to
/// `target`, which is what it was told and may be translated on the way.
///
/// # Errors
/// If the port can't be listened on.
pub fn data_passes(from: &Namespace, to: &Namespace, at: SocketAddr) -> Result<bool> {
    let listener = to
        .enter(|| TcpListener::bind(at))
        .with_context(|| format!("listening on {at}"))?;
    let connected = connect(from, at).is_ok();
    drop(listener);
    Ok(connected)
}

/// Length of a connection's send queue in the text of /proc/net/tcp{,6}.
fn tx_queue(table: &str, local: u16, remote: u16) -> Option<u64> {
    let (local, remote) = (format!(":{local:04X}"), format!(":{remote:04X}"));
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let ends = fields.next()?.ends_with(&local) && fields.next()?.ends_with(&remote);
        let (tx, _) = fields.nth(1)?.split_once(':')?;
        if ends {
            u64::from_str_radix(tx, 16).ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::tx_queue;

    #[test]
    fn the_send_queue_is_found_by_both_ports() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue
   0: 0201000A:C350 0202000A:0015 01 0000001F:00000000 01:00000014
   1: 0201000A:C351 0202000A:0015 01 00000000:00000000 01:00000014
";
        assert_eq!(tx_queue(table, 50000, 21), Some(31));
        assert_eq!(tx_queue(table, 50001, 21), Some(0));
        assert_eq!(tx_queue(table, 50002, 21), None);
    }
}
