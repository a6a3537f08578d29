//! Texts by which somebody tries to have a port opened that he must not,
//! besides those of [`super::adversary`], and a client that writes its own TCP
//! segments.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};

use super::script::Dialogue;
use crate::netns::Namespace;
use crate::topology::{Family, Topology, client_address, server_address};
use crate::wait::{patience, until};

/// The port that every text is after: 175 * 256 + 200.
pub const PORT: u16 = 45000;

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// What it is, for people.
    pub name: &'static str,
    /// Segments: `C` from the client, `S` from the server.
    pub segments: &'static [&'static str],
    /// Whether a login comes before.
    pub login: bool,
    /// Whether the kernel's own helper falls for it.
    pub opens_kernel: bool,
}

const fn attack(
    name: &'static str,
    login: bool,
    opens_kernel: bool,
    segments: &'static [&'static str],
) -> Attack {
    Attack {
        name,
        segments,
        login,
        opens_kernel,
    }
}

/// All of them.
pub const ATTACKS: &[Attack] = &[
    attack(
        "web page posts, server answers as if it had logged in",
        false,
        true,
        &[
            "S220 ready\r\n",
            "CPOST / HTTP/1.1\r\nHost: server:21\r\nContent-Length: 99\r\n\r\n",
            "S331 password\r\n",
            "S230 welcome\r\n",
            "CPORT 10,0,1,2,175,200\r\n",
        ],
    ),
    attack(
        "TLS hello to port 21, PORT in the next segment",
        false,
        true,
        &[
            "S220 ready\r\n",
            "C\x16\x03\x01\x01\x2e\x01\x00\x01\x2a\x03\x03abcdefgh\r\n",
            "CPORT 10,0,1,2,175,200\r\n",
        ],
    ),
    attack(
        "SIP message to port 21, PORT in the next segment",
        false,
        true,
        &[
            "S220 ready\r\n",
            "CREGISTER sip:server SIP/2.0\r\nVia: SIP/2.0/TCP 10.0.1.2\r\n\r\n",
            "CPORT 10,0,1,2,175,200\r\n",
        ],
    ),
    attack(
        "client speaks before the server",
        false,
        false,
        &["CPORT 10,0,1,2,175,200\r\n"],
    ),
    attack(
        "227 in the greeting",
        false,
        true,
        &[
            "S220-welcome\r\n",
            "S227 Entering Passive Mode (10,0,2,2,175,200)\r\n",
            "S220 ready\r\n",
        ],
    ),
    attack(
        "227 in the reply to SITE",
        true,
        true,
        &[
            "CSITE HELP\r\n",
            "S214-help\r\n",
            "S227 Entering Passive Mode (10,0,2,2,175,200)\r\n",
            "S214 end\r\n",
        ],
    ),
    attack(
        "227 in a listing, as STAT has it",
        true,
        true,
        &[
            "CSTAT /pub\r\n",
            "S213-status of /pub\r\n",
            "S227 Entering Passive Mode (10,0,2,2,175,200)\r\n",
            "S213 end\r\n",
        ],
    ),
    attack(
        "227 that answers another command",
        true,
        true,
        &[
            "CNOOP\r\n",
            "S227 Entering Passive Mode (10,0,2,2,175,200)\r\n",
        ],
    ),
    attack(
        "EPRT for a third party",
        true,
        false,
        &["CEPRT |1|10.0.1.1|45000|\r\n"],
    ),
    attack(
        "NUL in the verb",
        true,
        false,
        &["CPO\0RT 10,0,1,2,175,200\r\n"],
    ),
    attack(
        "NUL in the address",
        true,
        false,
        &["CPORT 10,0,1,2\0,175,200\r\n"],
    ),
    attack(
        "PORT in a segment of its own, but not at the start of a line",
        true,
        false,
        &["CSITE ", "CPORT 10,0,1,2,175,200\r\n"],
    ),
    attack(
        "PORT behind a carriage return",
        true,
        false,
        &["CSITE x\rPORT 10,0,1,2,175,200\r\n"],
    ),
    attack(
        "PORT as an argument of itself",
        true,
        false,
        &["CPORT PORT 10,0,1,2,175,200\r\n"],
    ),
];

impl Attack {
    /// Plays it. A segment may be held back: then what follows is not sent.
    ///
    /// # Errors
    /// If the connection can't be had.
    pub fn play(&self, topology: &Topology) -> Result<()> {
        let mut dialogue = Dialogue::open(topology, crate::firewall::Nat::None, Family::V4)?;
        if self.login {
            dialogue.login()?;
        }
        for segment in self.segments {
            let (end, text) = match segment.split_at_checked(1) {
                Some(("C", text)) => (&mut dialogue.client, text),
                Some((_, text)) => (&mut dialogue.server, text),
                None => bail!("{}: an empty segment", self.name),
            };
            end.write(text.as_bytes())?;
            if end.acknowledged(super::script::moment() * 2).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// A whole FTP session on ports of HTTP, TLS and SIP, which the firewall lets
/// pass: on which of them PORT opens something.
///
/// # Errors
/// If a connection can't be had.
pub fn opened_by_ftp_elsewhere(topology: &Topology) -> Result<Vec<u16>> {
    let ports = [80, 443, 5060];
    let pass = "insert rule inet lab_fw forward tcp dport { 80, 443, 5060 } accept";
    topology.fw.nft(pass)?;
    let mut opened = Vec::new();
    for port in ports {
        let nat = crate::firewall::Nat::None;
        let mut dialogue = Dialogue::open_at(topology, nat, Family::V4, port)?;
        dialogue.login()?;
        dialogue.command("PORT 10,0,1,2,175,200\r\n")?;
        if is_expected(&topology.fw)? {
            opened.push(port);
        }
    }
    Ok(opened)
}

/// Plays all of them through a firewall with a helper that is not ours, says
/// what it opens, and returns those where that isn't what the table says.
///
/// # Errors
/// If one can't be played.
pub fn unlike_the_table(topology: &Topology, helper: &str) -> Result<Vec<&'static str>> {
    let mut wrong = Vec::new();
    for attack in ATTACKS {
        attack.play(topology).context(attack.name)?;
        let opened = is_expected(&topology.fw)?;
        println!(
            "{helper} {} {}",
            if opened { "opens" } else { "     " },
            attack.name
        );
        if opened != attack.opens_kernel {
            wrong.push(attack.name);
        }
        topology.fw.run("conntrack", &["-F"])?;
        topology.fw.run("conntrack", &["-F", "expect"])?;
    }
    Ok(wrong)
}

/// Whether the firewall expects a connection to [`PORT`].
///
/// # Errors
/// If conntrack(8) fails.
pub fn is_expected(fw: &Namespace) -> Result<bool> {
    let table = fw.run("conntrack", &["-L", "expect"])?;
    Ok(table.contains(&format!("dport={PORT} ")))
}

/// A client that makes each TCP segment by hand, as no kernel would.
#[derive(Debug)]
pub struct RawClient {
    socket: OwnedFd,
    from: SocketAddrV4,
    to: SocketAddrV4,
    /// Number of the next byte to send, and of the next to be received.
    next: u32,
    expected: u32,
    /// The server's end, which is a kernel's.
    pub server: TcpStream,
}

const SYN: u8 = 0x02;
const PSH_ACK: u8 = 0x18;
const ACK: u8 = 0x10;

impl RawClient {
    /// Connects to port 21 through the firewall.
    ///
    /// # Errors
    /// If the handshake doesn't come about.
    pub fn connect(topology: &Topology, port: u16) -> Result<Self> {
        let (client, server) = (client_address(Family::V4), server_address(Family::V4));
        let listener = topology.server.enter(|| TcpListener::bind((server, 21)))?;
        // The client's kernel knows nothing of this connection.
        topology.client.nft(&format!(
            "table ip lab_raw {{
               chain out {{
                 type filter hook output priority 0
                 tcp sport {port} tcp flags & rst == rst drop
               }}
             }}"
        ))?;
        let socket = topology.client.enter(|| {
            let (family, tcp) = (AddressFamily::Inet, SockProtocol::Tcp);
            socket(family, SockType::Raw, SockFlag::SOCK_NONBLOCK, tcp)
        })?;
        let end = |address, port| match SocketAddr::new(address, port) {
            SocketAddr::V4(end) => Ok(end),
            SocketAddr::V6(_) => bail!("IPv6"),
        };
        let (from, to) = (end(client, port)?, end(server, 21)?);
        let (next, expected) = (0x7000_0000, 0);
        listener.set_nonblocking(true)?;
        let mut half = Half {
            socket,
            from,
            to,
            next,
            expected,
        };
        half.send_at(half.next, SYN, b"")?;
        half.next += 1;
        let answer = until("an answer to SYN", patience(), || half.receive())?;
        half.expected = answer.wrapping_add(1);
        half.send_at(half.next, ACK, b"")?;
        let (server, _) = until("the connection", patience(), || listener.accept().ok())?;
        server.set_nonblocking(false)?;
        server.set_read_timeout(Some(Duration::from_millis(50)))?;
        let Half {
            socket,
            next,
            expected,
            ..
        } = half;
        Ok(Self {
            socket,
            from,
            to,
            next,
            expected,
            server,
        })
    }

    /// Sends bytes as the next ones, or, moved by `offset`, as others.
    ///
    /// # Errors
    /// If it can't be sent.
    pub fn send(&mut self, offset: i32, text: &[u8]) -> Result<()> {
        let seq = self.next.wrapping_add_signed(offset);
        send(
            &self.socket,
            self.from,
            self.to,
            (seq, self.expected),
            PSH_ACK,
            text,
        )?;
        if offset == 0 {
            self.next = self.next.wrapping_add(u32::try_from(text.len())?);
        }
        Ok(())
    }

    /// Notes that the server has said this many bytes.
    pub fn heard(&mut self, bytes: u32) {
        self.expected = self.expected.wrapping_add(bytes);
    }

    /// What the server's program has received in the end.
    ///
    /// # Errors
    /// If nothing like `wanted` arrives.
    pub fn wait_received(&mut self, wanted: &str) -> Result<String> {
        let mut got = String::new();
        let done = until("text at the server", patience(), || {
            let mut buf = [0; 4096];
            if let Ok(length) = self.server.read(&mut buf) {
                let bytes = buf.get(..length).unwrap_or_default();
                got += &String::from_utf8_lossy(bytes);
            }
            got.ends_with(wanted).then_some(())
        });
        ensure!(done.is_ok(), "{wanted:?} does not arrive; {got:?}");
        Ok(got)
    }
}

/// A connection before it is one.
struct Half {
    socket: OwnedFd,
    from: SocketAddrV4,
    to: SocketAddrV4,
    next: u32,
    expected: u32,
}

impl Half {
    fn send_at(&self, seq: u32, flags: u8, text: &[u8]) -> Result<()> {
        let numbers = (seq, self.expected);
        send(&self.socket, self.from, self.to, numbers, flags, text)
    }

    /// The sequence number of the next segment for us.
    fn receive(&self) -> Option<u32> {
        let mut buf = [0; 2048];
        let length = recv(self.socket.as_raw_fd(), &mut buf, MsgFlags::empty()).ok()?;
        let packet = buf.get(..length)?;
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let tcp = packet.get(header..)?;
        let field = |at: usize| tcp.get(at..)?.first_chunk::<2>().copied();
        let port = |at| field(at).map(u16::from_be_bytes);
        let ours = port(0)? == self.to.port() && port(2)? == self.from.port();
        let seq = tcp
            .get(4..)?
            .first_chunk()
            .copied()
            .map(u32::from_be_bytes)?;
        ours.then_some(seq)
    }
}

fn send(
    socket: &OwnedFd,
    from: SocketAddrV4,
    to: SocketAddrV4,
    (seq, ack): (u32, u32),
    flags: u8,
    text: &[u8],
) -> Result<()> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(text);
    let sum = checksum(*from.ip(), *to.ip(), &segment).to_be_bytes();
    if let Some(field) = segment.get_mut(16..18) {
        field.copy_from_slice(&sum);
    }
    let target = SockaddrIn::from(to);
    sendto(socket.as_raw_fd(), &segment, &target, MsgFlags::empty()).context("raw segment")?;
    Ok(())
}

/// RFC 9293 section 3.1.
fn checksum(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> u16 {
    let mut bytes = [from.octets(), to.octets()].concat();
    bytes.extend([0, 6]);
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_be_bytes());
    bytes.extend_from_slice(segment);
    let word = |pair: &[u8]| {
        let high = pair.first().copied().unwrap_or(0);
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([high, low]))
    };
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_makes_the_whole_add_up_to_nothing() {
        let (from, to) = (Ipv4Addr::new(10, 0, 1, 2), Ipv4Addr::new(10, 0, 2, 2));
        let mut segment = vec![7; 31];
        let zero = [0, 0];
        segment[16..18].copy_from_slice(&zero);
        let sum = checksum(from, to, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(from, to, &segment), 0);
    }
}
