//! Command line.

use crate::config::{Config, DEFAULT_CONFIG, DEFAULT_CONTROL};
use crate::render::{self, Select, Selector};
use crate::run::answer::{Ask, Page};
use crate::transport::key::Secret;
use anyhow::{Context, Result};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use daemon::Client;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Mirrors connections, expectations and helper state between firewalls
#[derive(Debug, Parser)]
#[command(name = "ctsync", version, max_term_width = 100)]
pub struct Cli {
    /// Control socket of the daemon
    ///
    /// Several daemons can run on one machine with different ones. Without the
    /// option: the variable CTSYNC_CONTROL, else /run/ctsync/control.sock. Only
    /// root and the daemon's own user are served.
    #[arg(long, global = true, value_name = "PATH", env = "CTSYNC_CONTROL")]
    control: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run(ConfigArg),
    /// Show how it goes
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List what a cache or the kernel has
    Show {
        /// Which
        cache: Cache,
        /// Expectations instead of connections
        #[arg(long)]
        expectations: bool,
        /// As JSON lines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        select: Select,
    },
    /// Put the peers' entries into the kernel
    Commit {
        /// Only look whether it would be complete
        ///
        /// Helpers registered and enabled, a ruleset loaded, room in the table.
        #[arg(long)]
        dry_run: bool,
        /// Look into the kernel afterwards
        ///
        /// Dumps its tables and compares: NAT, helper, mark, labels, master, SYN
        /// proxy, protocol state, sequence adjustments, the helper's private
        /// data, status and timeout of each connection; master, flags, NAT,
        /// function, helper and timeout of each expectation. What traffic has
        /// changed since is no difference.
        #[arg(long)]
        verify: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Exit 0 if this node is in sync with its peers, 1 if not
    Check,
    /// Take over: commit, own the states, announce it
    Primary(Json),
    /// Wait: give the states up to whoever takes over
    Backup(Json),
    /// Be out of order
    Fault(Json),
    /// Forget a cache
    Flush {
        /// Which
        cache: Side,
    },
    /// Compare the caches with the kernel and with the peers now
    Resync,
    /// Print what changes as it happens
    Monitor {
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Make a private key; prints the public key
    Keygen {
        /// File to write; standard output if not given
        file: Option<PathBuf>,
        /// Make a pre-shared key instead
        #[arg(long)]
        psk: bool,
    },
    /// Print the public key of a private one
    Pubkey {
        /// File with the private key
        file: PathBuf,
    },
    /// Read the configuration and say what is wrong with it
    CheckConfig(ConfigArg),
    /// Look for what keeps mirroring from working, and say what to do
    Doctor {
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct Json {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// What this node owns
    Internal,
    /// What its peers own
    External,
    /// What the kernel has
    Kernel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    /// What this node owns
    Internal,
    /// What its peers own
    External,
}

/// Parses the arguments and runs the command. The exit code: 0 done, 1 the
/// answer is no, 2 it could not be carried out.
pub fn main() -> u8 {
    match execute(Cli::parse()) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(e) if is_broken_pipe(&e) => 0,
        Err(e) => {
            eprintln!("ctsync: {}", crate::errno::chain(e.as_ref()));
            2
        }
    }
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn execute(cli: Cli) -> Result<bool> {
    let control = cli.control;
    match cli.command {
        Command::Run(arg) => crate::run::run(&arg.config, control.as_deref()).map(|()| true),
        Command::CheckConfig(arg) => check_config(&arg.config),
        Command::Keygen { file, psk } => keygen(file.as_deref(), psk),
        Command::Pubkey { file } => {
            let secret = Secret::read(&file).with_context(|| file.display().to_string())?;
            say(&secret.public().to_string())
        }
        Command::Completions { shell } => {
            let mut out = std::io::stdout();
            clap_complete::generate(shell, &mut Cli::command(), "ctsync", &mut out);
            Ok(true)
        }
        Command::Doctor { config, json } => {
            let report = crate::doctor::run(&config, control.as_deref());
            let text = if json {
                report.json("ctsync", env!("CARGO_PKG_VERSION")).to_string()
            } else {
                report.text().trim_end().to_owned()
            };
            say(&text).map(|_| report.is_good())
        }
        Command::Show {
            cache: Cache::Kernel,
            expectations,
            json,
            select,
        } => show_kernel(expectations, json, select),
        command => {
            let path = control.unwrap_or_else(|| DEFAULT_CONTROL.into());
            let client = Client::connect(&path);
            let client = client.with_context(|| {
                format!(
                    "connecting to {} (is `ctsync run` running?)",
                    path.display()
                )
            })?;
            ask(client, command)
        }
    }
}

fn say(line: &str) -> Result<bool> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(true)
}

fn ask(mut client: Client, command: Command) -> Result<bool> {
    match command {
        Command::Status { json } => status(&mut client, json),
        Command::Show {
            cache,
            expectations,
            json,
            select,
        } => show(
            &mut client,
            Page {
                external: cache == Cache::External,
                expectations,
                json,
                select,
                from: (0, 0),
            },
        ),
        Command::Commit {
            dry_run,
            verify,
            json,
        } => {
            let ask = Ask::Commit { dry_run, verify };
            report(&mut client, &ask, json)
        }
        Command::Primary(j) => report(&mut client, &Ask::Primary, j.json),
        Command::Backup(j) => report(&mut client, &Ask::Backup, j.json),
        Command::Fault(j) => report(&mut client, &Ask::Fault, j.json),
        Command::Check => check(&mut client),
        Command::Flush { cache } => {
            let external = cache == Side::External;
            done(&client.request(&Ask::Flush { external })?)
        }
        Command::Resync => done(&client.request(&Ask::Resync)?),
        Command::Monitor { json } => monitor(&mut client, json),
        _ => Ok(true),
    }
}

fn done(answer: &Value) -> Result<bool> {
    fail_on_error(answer)?;
    Ok(at(answer, "ok") == true)
}

fn fail_on_error(answer: &Value) -> Result<()> {
    match at(answer, "error").as_str() {
        Some(e) => anyhow::bail!("{e}"),
        None => Ok(()),
    }
}

fn status(client: &mut Client, json: bool) -> Result<bool> {
    let s = client.request(&Ask::Status)?;
    fail_on_error(&s)?;
    if json {
        return say(&serde_json::to_string_pretty(&s)?);
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let state = if at(&s, "in_sync") == true {
        "in sync"
    } else {
        "NOT IN SYNC"
    };
    say(&format!(
        "{}: {}, {state} since {}",
        text(at(&s, "node")),
        text(at(&s, "role")),
        ago(at(&s, "in_sync_for_ms"))
    ))?;
    for why in at(&s, "why").as_array().into_iter().flatten() {
        say(&format!("  because {}", text(why)))?;
    }
    for cache in ["internal", "external"] {
        let c = at(&s, cache);
        say(&format!(
            "  {cache}: {} connections, {} expectations",
            at(c, "flows"),
            at(c, "expectations")
        ))?;
    }
    for p in at(&s, "peers").as_array().into_iter().flatten() {
        say(&format!("  peer {}: {}", text(at(p, "name")), peer(p)))?;
        for l in at(p, "links").as_array().into_iter().flatten() {
            say(&format!("    link {}", link(l)))?;
        }
    }
    let counters = at(&s, "counters").as_object().into_iter().flatten();
    let odd = |name: &str| {
        [
            "refused",
            "overruns",
            "malformed",
            "full",
            "diverged",
            "unencodable",
        ]
        .iter()
        .any(|w| name.contains(w))
    };
    for (name, value) in counters.filter(|(n, v)| odd(n) && **v != json!(0)) {
        say(&format!("  {name}: {value}"))?;
    }
    Ok(true)
}

/// Milliseconds for people.
fn ago(ms: &Value) -> String {
    let seconds = Duration::from_secs(ms.as_u64().unwrap_or(0) / 1000);
    humantime::format_duration(seconds).to_string()
}

fn peer(p: &Value) -> String {
    let copies = match (at(p, "copy_synced") == true, at(p, "peer_synced") == true) {
        (true, true) => "both copies complete",
        (true, false) => "its copy of us is not complete",
        (false, true) => "our copy of it is not complete",
        (false, false) => "neither copy is known to be complete",
    };
    let fenced = if at(p, "fenced") == true {
        ", fenced: it has lost its role"
    } else {
        ""
    };
    format!(
        "{}, {}, {copies}{fenced}, lag {} ms, {} queued; {} connections, {} expectations here",
        at(p, "state").as_str().unwrap_or_default(),
        at(p, "role").as_str().unwrap_or_default(),
        at(p, "lag_ms"),
        at(p, "queued"),
        at(p, "flows"),
        at(p, "expectations")
    )
}

fn link(l: &Value) -> String {
    let address = at(l, "address").as_str().unwrap_or("with unknown address");
    let heard = match at(l, "heard_ms").as_u64() {
        Some(ms) => format!("heard {ms} ms ago"),
        None => "never heard".to_owned(),
    };
    let active = if at(l, "active") == true {
        ", in use"
    } else {
        ""
    };
    match at(l, "rtt_us").as_u64() {
        Some(us) => format!("{address}: {heard}, round trip {us} us{active}"),
        None => format!("{address}: {heard}{active}"),
    }
}

fn show(client: &mut Client, mut page: Page) -> Result<bool> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    loop {
        let answer = client.request(&Ask::Show(page.clone()))?;
        fail_on_error(&answer)?;
        for entry in at(&answer, "entries").as_array().into_iter().flatten() {
            match entry {
                Value::String(line) => writeln!(out, "{line}")?,
                object => writeln!(out, "{object}")?,
            }
        }
        match serde_json::from_value(at(&answer, "next").clone()) {
            Ok(Some(next)) => page.from = next,
            _ => break,
        }
    }
    out.flush()?;
    Ok(true)
}

fn show_kernel(expectations: bool, json: bool, select: Select) -> Result<bool> {
    use crate::record::Record;
    use netfilter::{Socket, conntrack, expect};
    let selector = Selector::new(select).map_err(anyhow::Error::msg)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    let mut print = |record: &Record, timeout| {
        if written.is_ok() && selector.matches(record) {
            written = if json {
                writeln!(out, "{}", render::json(record, timeout))
            } else {
                writeln!(out, "{}", render::line(record, timeout))
            };
        }
    };
    let mut socket = Socket::open()?;
    if expectations {
        socket.exchange(
            "dumping expectations",
            |buf, seq| expect::dump(buf, None, seq),
            |m| {
                if let Ok(Some(e)) = expect::Event::decode(m) {
                    print(&Record::Expect(e.expectation), e.expectation.timeout);
                }
            },
        )?;
    } else {
        socket.exchange(
            "dumping connections",
            |buf, seq| conntrack::dump(buf, &conntrack::DumpFilter::default(), seq),
            |m| {
                if let Ok(Some(e)) = conntrack::Event::decode(m) {
                    print(&Record::Flow(e.flow), e.flow.timeout);
                }
            },
        )?;
    }
    written?;
    out.flush()?;
    Ok(true)
}

fn check(client: &mut Client) -> Result<bool> {
    let answer = client.request(&Ask::Check)?;
    fail_on_error(&answer)?;
    if at(&answer, "ok") == true {
        return say("in sync");
    }
    for why in at(&answer, "why").as_array().into_iter().flatten() {
        say(why.as_str().unwrap_or_default())?;
    }
    Ok(false)
}

/// Asks for something that takes a while; shows progress on a terminal.
fn report(client: &mut Client, ask: &Ask, json: bool) -> Result<bool> {
    client.send(ask)?;
    let mut terminal = std::io::stderr();
    let bar = terminal.is_terminal() && !json;
    let mut drawn = false;
    while let Some(line) = client.receive()? {
        if let Some(progress) = line.get("progress") {
            if bar {
                drawn = true;
                draw(&mut terminal, progress)?;
            }
            continue;
        }
        if drawn {
            write!(terminal, "\r\x1b[K")?;
        }
        fail_on_error(&line)?;
        if json {
            say(&at(&line, "result").to_string())?;
        } else {
            print_report(at(&line, "result"))?;
        }
        return Ok(at(&line, "ok") == true);
    }
    anyhow::bail!(
        "the daemon closed the connection without an answer; only root and its own user are served"
    )
}

fn draw(terminal: &mut impl Write, progress: &Value) -> std::io::Result<()> {
    const WIDTH: u64 = 40;
    let number = |name: &str| at(progress, name).as_u64().unwrap_or(0);
    let (done, total) = (number("done"), number("total").max(1));
    let filled = usize::try_from(WIDTH * done.min(total) / total).unwrap_or(0);
    let rest = usize::try_from(WIDTH).unwrap_or(0) - filled;
    let (filled, rest) = ("#".repeat(filled), " ".repeat(rest));
    write!(terminal, "\r[{filled}{rest}] {done}/{total}")?;
    terminal.flush()
}

fn print_report(r: &Value) -> Result<bool> {
    if let Some(role) = at(r, "role").as_str() {
        say(&format!("role: {role} (epoch {})", at(r, "epoch")))?;
    }
    if r.get("flows").is_none() {
        return Ok(true);
    }
    if at(r, "dry_run") == true {
        return print_trial(r);
    }
    let seconds = at(r, "seconds").as_f64().unwrap_or(0.0);
    say(&format!("flows: {}", at(r, "flows")))?;
    say(&format!("expectations: {}", at(r, "expectations")))?;
    let failed = at(r, "failed").as_object();
    let total: u64 = failed
        .into_iter()
        .flatten()
        .filter_map(|(_, v)| v.as_u64())
        .sum();
    say(&format!("failed: {total}"))?;
    for (errno, n) in failed.into_iter().flatten() {
        say(&format!("  {errno}: {n}{}", hint(errno)))?;
    }
    for (what, text) in [
        ("updated", "were there and have been updated"),
        ("replaced", "were there otherwise and have been replaced"),
        (
            "without_master",
            "committed without their master, which is gone",
        ),
        ("skipped", "left out: this node owns newer ones"),
    ] {
        if let Some(n @ 1..) = at(r, what).as_u64() {
            say(&format!("  {n} {text}"))?;
        }
    }
    for (name, n) in at(r, "without_helper").as_object().into_iter().flatten() {
        let why = at(at(r, "helper_missing_because"), name);
        let why = why.as_str().unwrap_or("is not registered here");
        say(&format!(
            "  {n} committed without helper {name}, which {why}"
        ))?;
    }
    for (name, n) in at(r, "helper_lost").as_object().into_iter().flatten() {
        say(&format!(
            "  {n} have lost helper {name} again: this kernel takes it away when it sets up NAT"
        ))?;
    }
    for (errno, n) in at(r, "helper_data_failed")
        .as_object()
        .into_iter()
        .flatten()
    {
        say(&format!(
            "  {n} helpers without their private data: {errno}"
        ))?;
    }
    if let Some(v) = r.get("verified") {
        if let Some(e) = at(v, "error").as_str() {
            return say(&format!("not verified: {e}"));
        }
        say(&format!(
            "verified: {} good, {} missing",
            at(v, "good"),
            at(v, "missing")
        ))?;
        for (what, n) in at(v, "differ").as_object().into_iter().flatten() {
            say(&format!("  {n} differ in {what}"))?;
        }
    }
    say(&format!("seconds: {seconds:.3}"))
}

/// What the kernel means by an errno when it refuses an entry.
fn hint(errno: &str) -> &'static str {
    match errno {
        "ENOMEM" => " (no room: see net.netfilter.nf_conntrack_max)",
        "ENOENT" => " (expectations without their master)",
        "EEXIST" | "EBUSY" => " (something else is in the way)",
        "EOPNOTSUPP" | "EINVAL" => " (this kernel does not take it)",
        _ => "",
    }
}

fn print_trial(r: &Value) -> Result<bool> {
    say(&format!(
        "would commit {} connections and {} expectations",
        at(r, "flows"),
        at(r, "expectations")
    ))?;
    for (name, n) in at(r, "helpers").as_object().into_iter().flatten() {
        say(&format!("  {n} with helper {name}"))?;
    }
    let problems = at(r, "problems").as_array();
    for problem in problems.into_iter().flatten() {
        let problem = problem.as_str().unwrap_or_default();
        say(&format!("problem: {problem}"))?;
    }
    if problems.is_none_or(Vec::is_empty) {
        say("no problem found")?;
    }
    Ok(true)
}

fn monitor(client: &mut Client, json: bool) -> Result<bool> {
    client.send(&Ask::Monitor)?;
    while let Some(line) = client.receive()? {
        fail_on_error(&line)?;
        if json {
            say(&line.to_string())?;
        } else {
            let text = |name: &str| at(&line, name).as_str().unwrap_or_default().to_owned();
            say(&format!(
                "[{}] {:<8} {}",
                text("change"),
                text("cache"),
                text("entry")
            ))?;
        }
    }
    Ok(true)
}

fn keygen(file: Option<&Path>, psk: bool) -> Result<bool> {
    let secret = Secret::generate()?;
    match file {
        Some(path) => {
            let written = secret.write(path);
            written.with_context(|| format!("writing key {}", path.display()))?;
            if psk {
                return Ok(true);
            }
            say(&secret.public().to_string())
        }
        None => say(&secret.to_text()),
    }
}

fn check_config(path: &Path) -> Result<bool> {
    match Config::read(path) {
        Ok(config) => {
            for key in config.key_files() {
                Secret::read(key).with_context(|| format!("reading key {}", key.display()))?;
            }
            say(&format!(
                "{}: node {}, {} peers",
                path.display(),
                config.node,
                config.peers.len()
            ))
        }
        Err(e) => Err(e.into()),
    }
}

/// A member of an object; null if it is not there.
pub(crate) fn at<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}
