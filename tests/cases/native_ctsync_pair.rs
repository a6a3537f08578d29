//! Two firewalls with a ctsync each, and a scripted FTP client. Included by
//! the ctsync cases.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::check::sha256;
use lab::command::{self, Finished};
use lab::firewall::{DEFAULT_DROP, KERNEL_HELPER, Nat, nat_rules};
use lab::ftp::server::FILE;
use lab::netns::Namespace;
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::programs::built;
use lab::topology::{Family, client_address, server_address};
use lab::wait::{patience, until};
use serde_json::Value;
use tempfile::TempDir;

/// Port of the link.
pub const PORT: u16 = 3780;

/// For an answer to a client: after an outage, TCP may wait as long again
/// before it repeats a segment, and a SYN is repeated after 1, 3, 7, 15 and
/// 31 s.
const ANSWER: Duration = Duration::from_secs(60);

/// Two configured nodes; none runs yet.
pub struct Nodes {
    dir: TempDir,
}

impl Nodes {
    /// Makes keys and configurations. `extra` goes to the top of each.
    pub fn new(link: &dyn Fn(Node) -> (SocketAddr, SocketAddr), extra: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let this = Self { dir };
        let mut public = Vec::new();
        for node in Node::BOTH {
            let key = this.file(node, "key");
            let args = ["keygen", key.to_str().context("path")?];
            let made = run(&args)?.success()?;
            public.push(made.trim().to_owned());
        }
        for (node, key) in Node::BOTH.iter().zip(public.iter().rev()) {
            let (bind, endpoint) = link(*node);
            let config = format!(
                "node = \"{}\"\nprivate-key = \"{}\"\ncontrol = \"{}\"\n{extra}\n\
                 [[link]]\nbind = \"{bind}\"\n\
                 [[peer]]\nname = \"{}\"\npublic-key = \"{key}\"\nendpoints = [\"{endpoint}\"]\n",
                name(*node),
                this.file(*node, "key").display(),
                this.control(*node).display(),
                name(node.peer()),
            );
            std::fs::write(this.file(*node, "toml"), config)?;
        }
        Ok(this)
    }

    /// The usual link.
    pub fn on(pair: &Pair, extra: &str) -> Result<Self> {
        let _ = pair;
        let end = |node: Node| SocketAddr::new(node.sync_address(Family::V4), PORT);
        Self::new(&|node| (end(node), end(node.peer())), extra)
    }

    pub fn file(&self, node: Node, what: &str) -> PathBuf {
        self.dir.path().join(format!("{}.{what}", name(node)))
    }

    pub fn control(&self, node: Node) -> PathBuf {
        self.file(node, "sock")
    }

    /// Starts a node's daemon and waits until it is ready.
    pub fn start(&self, pair: &Pair, node: Node) -> Result<Peer> {
        let mut peer = self.spawn(pair, node)?;
        peer.wait_for_line("ready")?;
        Ok(peer)
    }

    /// Starts both nodes' daemons and waits until they are in sync.
    pub fn start_both(&self, pair: &Pair) -> Result<[Peer; 2]> {
        let one = self.start(pair, Node::One)?;
        let two = self.start(pair, Node::Two)?;
        self.wait_synced()?;
        Ok([one, two])
    }

    /// Starts a node's daemon.
    pub fn spawn(&self, pair: &Pair, node: Node) -> Result<Peer> {
        let config = self.file(node, "toml");
        let config = config.to_str().context("path")?;
        let program = built("ctsync")?;
        let mut command = Command::new(program);
        command.args(["run", "--config", config]);
        Peer::start(pair.fw(node), name(node), command)
    }

    /// Runs a command of the client at a node.
    pub fn ctsync(&self, node: Node, args: &[&str]) -> Result<Finished> {
        let control = self.control(node);
        let mut all = vec!["--control", control.to_str().context("path")?];
        all.extend_from_slice(args);
        run(&all)
    }

    /// `status --json`.
    pub fn status(&self, node: Node) -> Result<Value> {
        let text = self.ctsync(node, &["status", "--json"])?.success()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// A number of the status by JSON pointer.
    pub fn number(&self, node: Node, pointer: &str) -> Result<u64> {
        let status = self.status(node)?;
        let value = status.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("no {pointer} in {status}"))
    }

    /// Waits until both nodes say that they are in sync with each other.
    pub fn wait_synced(&self) -> Result<()> {
        for node in Node::BOTH {
            let mut last = Value::Null;
            let synced = until("nodes in sync", patience(), || {
                last = self.status(node).ok()?;
                let up = last.pointer("/peers/0/synced")? == &Value::Bool(true);
                (up && last.pointer("/in_sync")? == &Value::Bool(true)).then_some(())
            });
            synced.with_context(|| last.to_string())?;
        }
        Ok(())
    }

    /// The entries of a cache, as sorted lines without their timeouts.
    pub fn entries(&self, node: Node, args: &[&str]) -> Result<Vec<String>> {
        let mut all = vec!["show"];
        all.extend_from_slice(args);
        all.push("--json");
        let text = self.ctsync(node, &all)?.success()?;
        let mut lines = Vec::new();
        for line in text.lines() {
            let mut value: Value = serde_json::from_str(line)?;
            if let Some(object) = value.as_object_mut() {
                object.remove("timeout");
            }
            lines.push(value.to_string());
        }
        lines.sort();
        Ok(lines)
    }

    /// Waits until the peer's cache equals what `node` owns.
    pub fn wait_mirrored(&self, node: Node) -> Result<()> {
        let mut both = (0, 0);
        let same = until("equal caches", patience(), || {
            for kind in [&[][..], &["--expectations"]] {
                let own = [&["internal"], kind].concat();
                let copy = [&["external"], kind].concat();
                let own = self.entries(node, &own).ok()?;
                let copy = self.entries(node.peer(), &copy).ok()?;
                both = (own.len(), copy.len());
                if own != copy {
                    return None;
                }
            }
            Some(())
        });
        same.with_context(|| format!("{} own, {} copied", both.0, both.1))
    }
}

/// Name of a node.
pub fn name(node: Node) -> &'static str {
    match node {
        Node::One => "fw-1",
        Node::Two => "fw-2",
    }
}

/// Runs ctsync.
pub fn run(args: &[&str]) -> Result<Finished> {
    let mut command = Command::new(built("ctsync")?);
    command.args(args);
    command::run(command, Duration::from_secs(120))
}

/// Loads the tests' firewall with the kernel's FTP helper at both nodes. A
/// connection that was not committed is not picked up from its middle.
pub fn load_rules(pair: &Pair, nat: Nat) -> Result<()> {
    for node in Node::BOTH {
        pair.fw(node)
            .sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        pair.fw(node).nft(DEFAULT_DROP)?;
        pair.fw(node).nft(KERNEL_HELPER)?;
        pair.fw(node).nft(&nat_rules(nat))?;
    }
    Ok(())
}

/// A connection from the client to the server, in the middle of a transfer.
pub struct Talk {
    pub client: TcpStream,
    pub server: TcpStream,
}

impl Talk {
    /// Opens it.
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

/// How data connections are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Passive,
    Active,
}

/// A control connection, command by command.
pub struct Ftp<'a> {
    client: &'a Namespace,
    family: Family,
    stream: BufReader<TcpStream>,
}

impl<'a> Ftp<'a> {
    /// Connects and logs in.
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

    pub fn ask(&mut self, command: &str, code: &str) -> Result<String> {
        let out = self.stream.get_mut();
        out.write_all(format!("{command}\r\n").as_bytes())?;
        self.reply(code).with_context(|| command.to_owned())
    }

    /// Downloads the published file.
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
pub fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let stream = until("data connection", ANSWER, || listener.accept().ok())?.0;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Fails unless the bytes are the published file.
pub fn is_file(bytes: &[u8], original: &std::path::Path) -> Result<()> {
    let local = tempfile::NamedTempFile::new()?;
    std::fs::write(local.path(), bytes)?;
    if sha256(local.path())? != sha256(original)? {
        bail!("{} bytes, not the published file", bytes.len());
    }
    Ok(())
}
