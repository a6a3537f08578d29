//! conntrackd with its own FTP helper, under the same ruleset: configured as
//! its manual says, and called by keepalived as its primary-backup.sh does.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lab::check::set_mode;
use lab::command::command;
use lab::conntrackd::of_pair;
use lab::nodes::name;
use lab::ours;
use lab::pair::Node;
use lab::peer::Peer;
use lab::vrrp::Scripts;
use lab::wait::{patience, until, until_true};

use crate::ours::rules;
use crate::scene::Scene;
use crate::screen::Details;
use crate::software::Software;

const BUFFERS: &str = "    NetlinkBufferSize 2097152
    NetlinkBufferSizeMaxGrowth 8388608
";
const HELPER: &str = "Helper {
    Setup yes
    Type ftp inet tcp {
        QueueNum 121
        QueueLen 4096
        Policy ftp {
            ExpectMax 8
            ExpectTimeout 300
        }
    }
    Type ftp inet6 tcp {
        QueueNum 122
        QueueLen 4096
        Policy ftp {
            ExpectMax 8
            ExpectTimeout 300
        }
    }
}
";

/// conntrackd on both firewalls.
pub struct Conntrackd {
    dir: PathBuf,
    running: [Option<Peer>; 2],
}

impl Conntrackd {
    /// Writes nothing yet.
    pub fn new(scene: &Scene) -> Self {
        // The kernel's own helper has the name that conntrackd's needs. Not
        // modprobe: the VM does not show its modules' directory here.
        let _ = std::process::Command::new("rmmod")
            .args(["nf_nat_ftp", "nf_conntrack_ftp"])
            .status();
        Self {
            dir: scene.dir.path().to_owned(),
            running: [None, None],
        }
    }

    fn file(&self, node: Node, what: &str) -> PathBuf {
        self.dir.join(format!("{}.{what}", name(node)))
    }

    fn slot(&mut self, node: Node) -> &mut Option<Peer> {
        let [one, two] = &mut self.running;
        match node {
            Node::One => one,
            Node::Two => two,
        }
    }

    fn configuration(&self, node: Node) -> String {
        let path = |what: &str| self.file(node, what).display().to_string();
        let (log, lock, socket) = (path("log"), path("lock"), path("sock"));
        of_pair(node, [&log, &lock, &socket], BUFFERS) + HELPER
    }

    /// Runs conntrackd as a client of the daemon; what it printed.
    fn ask(&self, node: Node, args: &[&str]) -> Result<String> {
        let config = self.file(node, "conf");
        let mut client = command("conntrackd", &["-C"]);
        client.arg(config).args(args);
        lab::command::run(client, patience())?.success()
    }

    /// A script that runs the daemon's client once for each of `options`,
    /// and leaves the role's name in a file.
    fn script(&self, node: Node, role: &str, options: &[&str]) -> Result<String> {
        let config = self.file(node, "conf").display().to_string();
        let told = self.file(node, "role").display().to_string();
        let mut text = "#!/bin/sh\n".to_owned();
        for option in options {
            text += &format!("conntrackd -C {config} {option}\n");
        }
        text += &format!("echo {role} >>{told}\n");
        let path = self.file(node, role);
        fs::write(&path, text)?;
        set_mode(&path, 0o755)?;
        Ok(path.display().to_string())
    }

    fn log(&self, node: Node) -> String {
        fs::read_to_string(self.file(node, "log")).unwrap_or_default()
    }

    fn told(&self, node: Node) -> String {
        fs::read_to_string(self.file(node, "role")).unwrap_or_default()
    }
}

impl Software for Conntrackd {
    fn name(&self) -> String {
        let version = lab::command::run(command("conntrackd", &["-v"]), patience());
        let said = version.map(|v| v.stdout + &v.stderr).unwrap_or_default();
        let line = said.lines().find(|line| line.contains(" v1"));
        let version = line.and_then(|line| line.split(" v").nth(1));
        let number = version.and_then(|v| v.split_whitespace().next());
        let number = number.unwrap_or("of unknown version").trim_end_matches('.');
        format!("conntrackd {number} and its FTP helper")
    }

    fn boot(&mut self, scene: &Scene, node: Node) -> Result<Details> {
        let fw = scene.pair.fw(node);
        // Without it a packet that comes before the commit makes a connection
        // of its own, in the way of the one that is committed.
        fw.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        for old in ["log", "lock", "sock", "role"] {
            let _ = fs::remove_file(self.file(node, old));
        }
        let config = self.file(node, "conf");
        fs::write(&config, self.configuration(node))?;
        let mut daemon = command("conntrackd", &["-C"]);
        daemon.arg(&config);
        let mut daemon = Peer::start(fw, "conntrackd", daemon)?;
        daemon
            .wait_until("conntrackd to answer", || self.ask(node, &["-s"]).is_ok())
            .with_context(|| self.log(node))?;
        *self.slot(node) = Some(daemon);
        let policy = scene.policy("type = \"ftp\"\n")?;
        let policy = policy.to_str().context("path")?;
        ours::run(fw, "nft-ftp-ruleset", &["load", "--config", policy])?;
        let helper = registered(&fw.run("nfct", &["list", "helper"])?)?;
        Ok(vec![
            ("conntrackd", "FTFW over UDP, ExpectationSync on".to_owned()),
            ("helper", helper),
            ("ruleset", rules(scene, node)?),
        ])
    }

    fn scripts(&self, node: Node) -> Result<Scripts> {
        let config = self.file(node, "conf").display().to_string();
        Ok(Scripts {
            check: format!("conntrackd -C {config} -s"),
            primary: self.script(node, "primary", &["-c", "-f", "-R", "-B"])?,
            backup: self.script(node, "backup", &["-s", "-t", "-n"])?,
            fault: self.script(node, "fault", &["-t"])?,
        })
    }

    fn is_dead(&mut self, node: Node) {
        *self.slot(node) = None;
    }

    /// conntrackd can't tell whether it is in sync: the number of TCP
    /// connections that are established at one and known to the other has to
    /// do.
    fn wait_synced(&mut self, _: &Scene, from: Node) -> Result<Details> {
        let mut counts = (0, 0);
        let count = |text: &str| text.matches("ESTABLISHED").count();
        until_true("as many connections at both", || {
            let own = self.ask(from, &["-i"]);
            let copies = self.ask(from.peer(), &["-e"]);
            if let (Ok(own), Ok(copies)) = (own, copies) {
                counts = (count(&own), count(&copies));
                return counts.0 == counts.1;
            }
            false
        })
        .with_context(|| format!("{} own, {} copied", counts.0, counts.1))?;
        let text = format!("{} established connections of the other's", counts.1);
        Ok(vec![("conntrackd", text)])
    }

    fn wait_backup(&mut self, node: Node) -> Result<()> {
        until("the backup script", patience(), || {
            self.told(node).ends_with("backup\n").then_some(())
        })
    }

    fn mirrored_expectations(&mut self, node: Node) -> Result<Vec<String>> {
        let text = self.ask(node, &["-e", "expect"])?;
        let lines = text.lines().filter(|line| line.contains("dport="));
        Ok(lines.map(str::to_owned).collect())
    }

    fn reused(&mut self, _: &Scene, _: Node) -> Result<u64> {
        bail!("its expectations serve one connection each: none is left of them")
    }

    fn took_over(&mut self, node: Node, nth: usize) -> Result<Details> {
        until("the primary script", patience(), || {
            (self.told(node).matches("primary").count() >= nth).then_some(())
        })
        .with_context(|| self.log(node))?;
        let log = self.log(node);
        let said = |line: &&str| line.contains("ommitted") || line.contains("can't");
        let text = |line: &str| line.split("] ").last().unwrap_or(line).to_owned();
        let lines = log.lines().filter(said);
        let mut details: Details = lines.map(|line| ("log", text(line))).collect();
        details.push((
            "commit took",
            format!("{:.1} ms", committing(&log)? * 1000.0),
        ));
        Ok(details)
    }

    fn logs(&mut self) -> String {
        Node::BOTH
            .map(|node| format!("--- {node:?}\n{}", self.log(node)))
            .concat()
    }

    /// It leaves its helper registered and enabled.
    fn stop(&mut self, _: &Scene) -> Result<()> {
        self.running = [None, None];
        Ok(())
    }
}

/// From `nfct list helper`: the first, on one line.
fn registered(list: &str) -> Result<String> {
    let fields = ["name", "queuenum", "status"].map(|field| {
        let field = format!(".{field} = ");
        let value = list
            .lines()
            .find_map(|line| line.trim().strip_prefix(&field));
        value.map(|value| value.trim_end_matches(','))
    });
    let [Some(name), Some(queue), Some(status)] = fields else {
        bail!("no helper is registered: {list}");
    };
    Ok(format!("{name} queue {queue} {status}"))
}

/// Seconds of the commits in its log: one of connections, one of
/// expectations.
fn committing(log: &str) -> Result<f64> {
    let mut sum = 0.0;
    for rest in log.split("commit has taken ").skip(1) {
        let number = rest.split_whitespace().next().unwrap_or_default();
        sum += number.parse::<f64>().with_context(|| rest.to_owned())?;
    }
    Ok(sum)
}
