//! Real FTP clients, each told which command to use for the data connection.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::command::{Finished, command};
use crate::ftp::Mode;
use crate::netns::{Namespace, text_file};
use crate::topology::Family;

/// Seconds a client may wait for a connection or a reply.
const TIMEOUT: &str = "20";

/// A client program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// curl(1).
    Curl,
    /// lftp(1).
    Lftp,
    /// tnftp(1), the BSD client.
    Tnftp,
    /// Python's ftplib.
    Ftplib,
}

/// What a client is asked to do, after an anonymous login.
#[derive(Debug, Clone, Copy)]
pub enum Job<'a> {
    /// List the top directory on standard output.
    List,
    /// Fetch a file by its remote name.
    Get(&'a str, &'a Path),
    /// Store a file under a remote name.
    Put(&'a Path, &'a str),
}

impl Client {
    /// All of them, for loops.
    pub const ALL: [Self; 4] = [Self::Curl, Self::Lftp, Self::Tnftp, Self::Ftplib];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Lftp => "lftp",
            Self::Tnftp => "tnftp",
            Self::Ftplib => "ftplib",
        }
    }

    /// The program to look for.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Lftp => "lftp",
            Self::Tnftp => "tnftp",
            // Not a shim of some version manager further up the path.
            Self::Ftplib => "/usr/bin/python3",
        }
    }

    /// False for what the program can't be made to do.
    #[must_use]
    pub fn supports(self, mode: Mode, family: Family) -> bool {
        if mode.is_v4_only() && family == Family::V6 {
            return false;
        }
        // lftp sends EPRT over IPv6 only.
        !(self == Self::Lftp && mode == Mode::Eprt && family == Family::V4)
    }

    /// Does one job on the server at `host`, port 21, from inside a
    /// namespace. Success of the program alone proves nothing: look at the
    /// files, and at [`assert_used`].
    ///
    /// # Errors
    /// If the program can't be started or doesn't end.
    pub fn run(self, at: &Namespace, host: IpAddr, mode: Mode, job: Job<'_>) -> Result<Finished> {
        match self {
            Self::Curl => at.finish(curl(host, mode, job)),
            Self::Lftp => at.finish(lftp(host, mode, job)),
            Self::Tnftp => tnftp(at, host, mode, job),
            Self::Ftplib => at.finish(ftplib(host, mode, job)),
        }
    }
}

/// Fails unless the client sent this mode's command and no other's: clients
/// fall back from one to another without being asked.
///
/// # Errors
/// With all the client said.
pub fn assert_used(mode: Mode, client: &Finished) -> Result<()> {
    for other in Mode::ALL {
        let sent = sent(client, other.verb());
        ensure!(
            sent == (other == mode),
            "wanted {} alone, but {} was{} sent:\n{}",
            mode.verb(),
            other.verb(),
            if sent { "" } else { " not" },
            client.report()
        );
    }
    Ok(())
}

/// True if the client's log shows a command. curl writes `> PASV`, lftp and
/// tnftp `---> PASV`, ftplib `*cmd* 'PASV'`.
#[must_use]
pub fn sent(client: &Finished, verb: &str) -> bool {
    let (arrow, quote) = (format!("> {verb}"), format!("*cmd* '{verb}"));
    client
        .stderr
        .lines()
        .chain(client.stdout.lines())
        .any(|line| line.contains(&arrow) || line.contains(&quote))
}

fn authority(host: IpAddr) -> String {
    match host {
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    }
}

fn curl(host: IpAddr, mode: Mode, job: Job<'_>) -> Command {
    // -q: no configuration file.
    let mut curl = command("curl", &["-q", "-v", "-sS", "--max-time", TIMEOUT]);
    curl.args(match mode {
        Mode::Pasv => ["--disable-epsv"].as_slice(),
        Mode::Epsv => &["--ftp-pasv"],
        Mode::Port => &["--disable-eprt", "--ftp-port", "-"],
        Mode::Eprt => &["--ftp-port", "-"],
    });
    let url = format!("ftp://{}/", authority(host));
    match job {
        Job::List => curl.arg(url),
        Job::Get(name, local) => curl.arg("-o").arg(local).arg(url + name),
        Job::Put(local, name) => curl.arg("-T").arg(local).arg(url + name),
    };
    curl
}

fn lftp(host: IpAddr, mode: Mode, job: Job<'_>) -> Command {
    let passive = if mode.is_passive() { "yes" } else { "no" };
    let epsv = if mode == Mode::Epsv { "yes" } else { "no" };
    let job = match job {
        Job::List => "ls".to_owned(),
        Job::Get(name, local) => format!("get {name} -o {}", local.display()),
        Job::Put(local, name) => format!("put {} -o {name}", local.display()),
    };
    let script = format!(
        "set cmd:fail-exit yes; set net:timeout {TIMEOUT}; set net:max-retries 1; \
         set ftp:passive-mode {passive}; set ftp:prefer-epsv {epsv}; \
         set ftp:fix-pasv-address no; set ftp:ssl-allow no; \
         debug 5; open ftp://{}; {job}; close",
        authority(host)
    );
    // A home without lftp's own files.
    let mut lftp = command("lftp", &["--norc", "-c", &script]);
    lftp.env("LFTP_HOME", "/nonexistent");
    lftp
}

/// tnftp is driven through standard input: only there can EPSV and EPRT be
/// switched off for IPv4.
fn tnftp(at: &Namespace, host: IpAddr, mode: Mode, job: Job<'_>) -> Result<Finished> {
    let passive = if mode.is_passive() { "on" } else { "off" };
    let epsv4 = if mode.is_v4_only() { "epsv4 off\n" } else { "" };
    let job = match job {
        Job::List => "dir".to_owned(),
        Job::Get(name, local) => format!("get {name} {}", local.display()),
        Job::Put(local, name) => format!("put {} {name}", local.display()),
    };
    let script = text_file(&format!(
        "passive {passive}\n{epsv4}open {host}\nuser anonymous lab@\nbinary\n{job}\nbye\n"
    ))?;
    let mut tnftp = command("tnftp", &["-n", "-i", "-v", "-d", "-q", TIMEOUT]);
    tnftp.stdin(script.reopen()?);
    at.finish(tnftp)
}

/// Uses EPSV and EPRT over IPv4 too, which ftplib knows but does not choose.
const FTPLIB: &str = r#"
import ftplib, sys
host, mode, job, name, local = sys.argv[1:6]

class FTP(ftplib.FTP):
    def makepasv(self):
        if mode == "EPSV":
            return ftplib.parse229(self.sendcmd("EPSV"), self.sock.getpeername())
        return super().makepasv()

    def sendport(self, host, port):
        if mode == "EPRT":
            return self.sendeprt(host, port)
        return super().sendport(host, port)

ftp = FTP()
ftp.set_debuglevel(1)
ftp.connect(host, 21, timeout=20)
ftp.login()
ftp.set_pasv(mode in ("PASV", "EPSV"))
if job == "list":
    ftp.retrlines("LIST")
elif job == "get":
    with open(local, "wb") as file:
        ftp.retrbinary("RETR " + name, file.write)
else:
    with open(local, "rb") as file:
        ftp.storbinary("STOR " + name, file)
ftp.quit()
"#;

fn ftplib(host: IpAddr, mode: Mode, job: Job<'_>) -> Command {
    let host = host.to_string();
    let (job, name, local) = match job {
        Job::List => ("list", "", None),
        Job::Get(name, local) => ("get", name, Some(local)),
        Job::Put(local, name) => ("put", name, Some(local)),
    };
    // -I: neither the user's environment nor site directory.
    let args = ["-I", "-c", FTPLIB, &host, mode.verb(), job, name];
    let mut python = command(Client::Ftplib.program(), &args);
    python.arg(local.unwrap_or(Path::new("-")));
    python
}
