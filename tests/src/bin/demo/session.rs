//! One lftp that stays logged in: what is asked of it one after the other
//! goes over one control connection.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::command::command;
use lab::ftp::Mode;
use lab::netns::Namespace;
use lab::wait::{patience, until};
use tempfile::TempDir;

/// A running lftp that reads commands from a pipe.
pub struct Session {
    child: Child,
    input: ChildStdin,
    /// Holds its log and what it fetches.
    dir: TempDir,
    transfers: usize,
}

/// A transfer that has been asked for.
pub struct Transfer {
    /// Where the file will be.
    pub local: PathBuf,
    number: usize,
    name: String,
    /// Length of the log when it was asked for.
    from: usize,
}

impl Session {
    /// Starts lftp; it connects with its first transfer.
    pub fn start(client: &Namespace, server: IpAddr) -> Result<Self> {
        let dir = tempfile::tempdir().context("temporary directory")?;
        let log = File::create(dir.path().join("log"))?;
        let mut lftp = command("lftp", &["--norc"]);
        // A home without lftp's own files.
        lftp.env("LFTP_HOME", "/nonexistent")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let mut child = client.enter(|| lftp.spawn()).context("starting lftp")?;
        let input = child.stdin.take().context("lftp's input")?;
        let mut session = Self {
            child,
            input,
            dir,
            transfers: 0,
        };
        session.say(&format!(
            "set cmd:interactive no; set cmd:fail-exit no; set net:timeout 30; \
             set net:max-retries 1; set ftp:prefer-epsv no; \
             set ftp:fix-pasv-address no; set ftp:ssl-allow no; debug 5; \
             open ftp://{server}"
        ))?;
        Ok(session)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("lftp has ended")
    }

    /// Begins to fetch a file: with PASV, or with PORT at this port.
    pub fn begin(&mut self, name: &str, port: Option<u16>) -> Result<Transfer> {
        self.transfers += 1;
        let from = self.log().len();
        let number = self.transfers;
        let local = self.dir.path().join(format!("{number}-{name}"));
        let mode = match port {
            None => "set ftp:passive-mode yes".to_owned(),
            Some(port) => format!("set ftp:passive-mode no; set ftp:port-range {port}-{port}"),
        };
        self.say(&mode)?;
        let get = format!("get {name} -o {}", local.display());
        // The quotes keep the words apart from their echo in the log.
        self.say(&format!(
            "{get} && echo \"done\"-{number} || echo \"failed\"-{number}"
        ))?;
        Ok(Transfer {
            local,
            number,
            name: name.to_owned(),
            from,
        })
    }

    /// Waits until a transfer has ended; it must have succeeded.
    pub fn end(&mut self, transfer: &Transfer, limit: Duration) -> Result<()> {
        let number = transfer.number;
        let line = |word: &str| format!("{word}-{number}");
        let (done, failed) = (line("done"), line("failed"));
        let ended = until(&format!("transfer {number}"), limit, || {
            let log = self.log();
            let has = |line: &str| log.lines().any(|l| l == line);
            let gone = self.child.try_wait().ok().flatten().is_some();
            (gone || has(&done) || has(&failed)).then(|| has(&done))
        });
        match ended.with_context(|| self.tail())? {
            true => Ok(()),
            false => bail!("{}\n{}", self.trouble(transfer), self.tail()),
        }
    }

    /// Fetches a file, and looks whether lftp did it as it was told.
    pub fn fetch(&mut self, name: &str, port: Option<u16>) -> Result<Transfer> {
        let before = self.log().len();
        let transfer = self.begin(name, port)?;
        self.end(&transfer, patience())?;
        let log = self.log();
        let said = log.get(before..).unwrap_or_default();
        let mode = port.map_or(Mode::Pasv, |_| Mode::Port);
        for other in Mode::ALL {
            let sent = said.contains(&format!("---> {}", other.verb()));
            ensure!(
                sent == (other == mode),
                "wanted {} alone:\n{said}",
                mode.verb()
            );
        }
        Ok(transfer)
    }

    /// How often lftp has asked for a file in one transfer: more than once
    /// after it has lost a connection.
    pub fn requests(&self, transfer: &Transfer) -> usize {
        let log = self.log();
        let said = log.get(transfer.from..).unwrap_or_default();
        said.matches(&format!("---> RETR {}", transfer.name))
            .count()
    }

    /// The first line of the log after `from` that contains `text`.
    pub fn line(&self, from: usize, text: &str) -> Option<String> {
        let log = self.log();
        let rest = log.get(from..)?;
        rest.lines()
            .find(|line| line.contains(text))
            .map(str::to_owned)
    }

    /// All it has printed.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What was the first to go wrong with a transfer.
    fn trouble(&self, transfer: &Transfer) -> String {
        let log = self.log();
        let said = log.get(transfer.from..).unwrap_or_default();
        let bad = |line: &&str| {
            let reply = line.strip_prefix("<--- ").unwrap_or_default();
            line.starts_with("**** ") || reply.starts_with(['4', '5'])
        };
        let line = said.lines().find(bad).unwrap_or("lftp failed");
        line.trim_start_matches(['*', '<', '-', ' ']).to_owned()
    }

    /// The end of its log.
    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(15);
        lines.get(from..).unwrap_or_default().join("\n")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks at a file that grows, until it is told to stop: the longest time
/// without growth is what its receiver has seen of an outage.
pub struct Outage {
    stop: std::sync::mpsc::Sender<()>,
    watcher: std::thread::JoinHandle<Duration>,
}

impl Outage {
    /// Starts to look.
    pub fn watch(file: &Path) -> Self {
        const PAUSE: Duration = Duration::from_millis(10);
        let file = file.to_owned();
        let (stop, stopped) = std::sync::mpsc::channel();
        let watcher = std::thread::spawn(move || {
            let length = || std::fs::metadata(&file).map_or(0, |m| m.len());
            let (mut seen, mut since, mut longest) = (length(), Instant::now(), Duration::ZERO);
            while stopped.recv_timeout(PAUSE).is_err() {
                let now = length();
                if now > seen {
                    longest = longest.max(since.elapsed());
                    (seen, since) = (now, Instant::now());
                }
            }
            longest
        });
        Self { stop, watcher }
    }

    /// Stops looking; the longest pause.
    pub fn longest(self) -> Result<Duration> {
        let _ = self.stop.send(());
        let watched = self.watcher.join();
        watched.map_err(|_| anyhow::anyhow!("the watcher panicked"))
    }
}
