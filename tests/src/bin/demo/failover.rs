//! The story of a failover: fw-1 dies in the middle of a download, fw-2 goes
//! on, fw-1 comes back and takes over again; all the while one FTP session.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::ftp::server::FILE;
use lab::pair::Node;
use lab::peer::Peer;
use lab::topology::{Family, Side, client_address, fw_address, server_address};
use lab::vrrp;
use lab::wait::{patience, until};

use crate::scene::{DYING, HANDOVER, Large, Scene};
use crate::screen::{Details, Steps, title};
use crate::session::{Outage, Session, Transfer};
use crate::software::Software;

/// What a download may take, an outage included.
const DOWNLOAD: Duration = Duration::from_secs(180);
/// Three advertisements, and what emulation adds.
const TAKEOVER: Duration = Duration::from_secs(60);
/// So much of a download, one in, has arrived before its firewall fails.
const BEGUN: u64 = 8;
/// Ports the client announces, of one block of four.
const ACTIVE: [u16; 3] = [50000, 50001, 50002];

/// What is special about two firewalls in one kernel.
const ONE_KERNEL: &str = "registers a helper once, for fw-1 and fw-2: had fw-1's \
                          stopped in good order, fw-2's would be disabled, too";

/// A download that runs while a firewall fails.
struct Download {
    transfer: Transfer,
    outage: Outage,
    /// Control connections the server had accepted when it began.
    logins: usize,
}

/// The scene, and what happens on it.
pub struct Story<'a> {
    scene: &'a Scene,
    software: &'a mut dyn Software,
    steps: &'a mut Steps,
    session: Session,
    vrrp: [Option<Peer>; 2],
    download: Option<Download>,
    /// For the summary.
    times: Details,
}

impl<'a> Story<'a> {
    /// Before it begins.
    pub fn new(
        scene: &'a Scene,
        software: &'a mut dyn Software,
        steps: &'a mut Steps,
    ) -> Result<Self> {
        let session = Session::start(&scene.pair.client, server_address(Family::V4))?;
        Ok(Self {
            scene,
            software,
            steps,
            session,
            vrrp: [None, None],
            download: None,
            times: Vec::new(),
        })
    }

    /// All of it, in order.
    pub fn tell(mut self) -> Result<()> {
        let name = self.software.name();
        title(&format!("two firewalls, fw-1 and fw-2, with {name}"));
        self.boot()?;
        title("an FTP session through fw-1");
        self.session_begins()?;
        title("fw-1 dies");
        self.failover()?;
        title("fw-1 comes back");
        self.failback()?;
        title("summary");
        for (name, text) in &self.times {
            println!("  {text:<10} {name}");
        }
        self.steps.table(&name);
        Ok(())
    }

    fn boot(&mut self) -> Result<()> {
        let (scene, software) = (self.scene, &mut *self.software);
        self.steps
            .must("rules, helper and mirror run on both", || {
                let details = software.boot(scene, Node::One)?;
                software.boot(scene, Node::Two)?;
                Ok(details)
            })?;
        let vrrp = &mut self.vrrp;
        self.steps
            .step("keepalived on both: fw-1 is active, fw-2 waits", || {
                start_vrrp(vrrp, scene, software, Node::One)?;
                wait_active(vrrp, scene, Node::One)?;
                software.took_over(Node::One, 1)?;
                start_vrrp(vrrp, scene, software, Node::Two)?;
                wait_backup(vrrp, scene, software, Node::Two)?;
                let lan = fw_address(Side::Lan, Family::V4);
                let wan = fw_address(Side::Wan, Family::V4);
                let synced = software.wait_synced(scene, Node::One)?;
                Ok([
                    vec![("addresses", format!("{lan} and {wan} are at fw-1"))],
                    synced,
                ]
                .concat())
            })
    }

    fn session_begins(&mut self) -> Result<()> {
        let (scene, software) = (self.scene, &mut *self.software);
        let session = &mut self.session;
        self.steps
            .step("lftp logs in, fetches a file with PORT", || {
                let fetched = fetch(scene, session, Some(ACTIVE[0]))?;
                let client = client_address(Family::V4);
                let wan = fw_address(Side::Wan, Family::V4);
                let logins = scene.logins();
                ensure!(
                    logins.len() == 1 && logins.iter().all(|from| from.ends_with(&wan.to_string())),
                    "the server sees {logins:?}"
                );
                let nat = (
                    "masquerade",
                    format!("client {client}, the server sees {wan}"),
                );
                Ok([vec![nat], fetched].concat())
            })?;
        self.steps
            .step("fetches it again with PASV", || fetch(scene, session, None))?;
        self.steps.step(
            "permanent expectations for blocks of four ports wait on fw-1",
            || two_blocks(&permanent(scene, Node::One)?, "kernel"),
        )?;
        self.steps.step("fw-2 has a copy of each", || {
            let details = software.wait_synced(scene, Node::One)?;
            let lines = software.mirrored_expectations(Node::Two)?;
            let copies = two_blocks(&blocks(lines.iter().map(String::as_str))?, "external")?;
            Ok([details, copies].concat())
        })?;
        self.begin_download(DYING, Node::One)
    }

    fn begin_download(&mut self, file: Large, through: Node) -> Result<()> {
        let (scene, software) = (self.scene, &mut *self.software);
        let (session, download) = (&mut self.session, &mut self.download);
        let what = format!("a download of {} MB runs", file.length / 1_000_000);
        self.steps.step(&what, || {
            let transfer = session.begin(file.name, None)?;
            let arrived = || std::fs::metadata(&transfer.local).map_or(0, |m| m.len());
            until("the download", patience(), || {
                (arrived() > file.length / BEGUN).then_some(())
            })
            .with_context(|| session.log())?;
            let outage = Outage::watch(&transfer.local);
            software.wait_synced(scene, through)?;
            let arrived = arrived();
            ensure!(arrived < file.length, "it is over already");
            *download = Some(Download {
                transfer,
                outage,
                logins: scene.logins().len(),
            });
            Ok(vec![(
                "arrived",
                format!("{} MB so far", arrived / 1_000_000),
            )])
        })
    }

    /// Ends it, and fetches the small file through the heir; what of both is
    /// still the connection from before. A client that connects anew and asks
    /// for the rest gets a whole file, too.
    fn end_download(&mut self, file: Large, heir: &str, name: &'static str) -> Result<()> {
        let (scene, session) = (self.scene, &mut self.session);
        let (download, times) = (self.download.take(), &mut self.times);
        let mut before = None;
        self.steps.step("the download is complete", || {
            let download = download.context("it had not begun")?;
            let transfer = &download.transfer;
            let ended = session.end(transfer, DOWNLOAD);
            let longest = download.outage.longest()?;
            before = Some((session.requests(transfer), download.logins));
            ended?;
            let sum = scene.same(file.name, &transfer.local)?;
            times.push((name, format!("{:.1} s", longest.as_secs_f64())));
            Ok(vec![
                ("sha256", format!("{sum} at both ends")),
                (
                    "outage",
                    format!("no byte arrived for {:.1} s", longest.as_secs_f64()),
                ),
            ])
        })?;
        self.steps
            .step("on the data connection it began with", || {
                let (requests, _) = before.context("no download ran")?;
                ensure!(
                    requests == 1,
                    "it was lost: lftp gave it up and asked for the rest on another"
                );
                Ok(vec![("control", "1 RETR".to_owned())])
            })?;
        self.steps.step(&format!("PASV through {heir}"), || {
            fetch(scene, session, None)
        })?;
        self.steps
            .step("on the control connection from before", || {
                let (_, logins) = before.context("no download ran")?;
                let more = scene.logins().len() - logins;
                ensure!(
                    more == 0,
                    "that one was lost: {more} more in the server's log"
                );
                Ok(vec![("server", "no new login in its log".to_owned())])
            })
    }

    fn failover(&mut self) -> Result<()> {
        let (scene, software) = (self.scene, &mut *self.software);
        let (vrrp, times) = (&mut self.vrrp, &mut self.times);
        let since = Instant::now();
        self.steps
            .step("fw-1 has no power: links down, processes killed", || {
                scene.power_off(Node::One)?;
                software.is_dead(Node::One);
                *slot(vrrp, Node::One) = None;
                Ok(vec![("one kernel", ONE_KERNEL.to_owned())])
            })?;
        self.steps.step(
            "keepalived makes fw-2 active and calls it to take over",
            || {
                wait_active(vrrp, scene, Node::Two)?;
                let noticed = since.elapsed().as_secs_f64();
                let committed = software.took_over(Node::Two, 1)?;
                times.push((
                    "until keepalived at fw-2 was active",
                    format!("{noticed:.1} s"),
                ));
                let took = committed.iter().find(|(name, _)| *name == "commit took");
                times.extend(took.map(|(_, text)| ("commit at fw-2", text.clone())));
                Ok([vec![("after", format!("{noticed:.1} s"))], committed].concat())
            },
        )?;
        self.steps
            .step("fw-1's expectations are in fw-2's kernel", || {
                two_blocks(&permanent(scene, Node::Two)?, "kernel")
            })?;
        let silence = "longest silence of the download, fw-1 dead";
        self.end_download(DYING, "fw-2", silence)?;
        let (software, session) = (&mut *self.software, &mut self.session);
        self.steps
            .step("it met an expectation that fw-1 has made", || {
                reused(scene, software, Node::Two)
            })?;
        self.steps.step("PORT through fw-2", || {
            fetch(scene, session, Some(ACTIVE[1]))
        })?;
        self.steps
            .step("all of it on one control connection", || one_login(scene))
    }

    fn failback(&mut self) -> Result<()> {
        let (scene, software) = (self.scene, &mut *self.software);
        let vrrp = &mut self.vrrp;
        self.steps
            .step("fw-1 boots, with nothing in memory, and waits", || {
                scene.power_on(Node::One)?;
                software.boot(scene, Node::One)?;
                start_vrrp(vrrp, scene, software, Node::One)?;
                wait_backup(vrrp, scene, software, Node::One)?;
                Ok(Vec::new())
            })?;
        self.steps.step("fw-1 has a copy of everything", || {
            software.wait_synced(scene, Node::Two)
        })?;
        self.begin_download(HANDOVER, Node::Two)?;
        let (software, vrrp) = (&mut *self.software, &mut self.vrrp);
        self.steps
            .step("keepalived at fw-2 is stopped; fw-1 takes over", || {
                let two = slot(vrrp, Node::Two).take().context("it does not run")?;
                two.stop()?;
                wait_active(vrrp, scene, Node::One)?;
                let committed = software.took_over(Node::One, 1)?;
                start_vrrp(vrrp, scene, software, Node::Two)?;
                wait_backup(vrrp, scene, software, Node::Two)?;
                Ok(committed)
            })?;
        let silence = "longest silence of the download, handed over";
        self.end_download(HANDOVER, "fw-1", silence)?;
        let (software, session) = (&mut *self.software, &mut self.session);
        self.steps
            .step("it met an expectation that fw-2 has made", || {
                reused(scene, software, Node::One)
            })?;
        self.steps.step("PORT through fw-1", || {
            fetch(scene, session, Some(ACTIVE[2]))
        })?;
        self.steps
            .step("all of it on one control connection", || one_login(scene))
    }
}

/// keepalived's place for a node.
fn slot(vrrp: &mut [Option<Peer>; 2], node: Node) -> &mut Option<Peer> {
    let [one, two] = vrrp;
    match node {
        Node::One => one,
        Node::Two => two,
    }
}

fn start_vrrp(
    vrrp: &mut [Option<Peer>; 2],
    scene: &Scene,
    software: &dyn Software,
    node: Node,
) -> Result<()> {
    let scripts = software.scripts(node)?;
    let fw = scene.pair.fw(node);
    *slot(vrrp, node) = Some(vrrp::start(fw, node, scene.dir.path(), &scripts)?);
    Ok(())
}

/// Waits until keepalived and what it calls know that they wait.
fn wait_backup(
    vrrp: &mut [Option<Peer>; 2],
    scene: &Scene,
    software: &mut dyn Software,
    node: Node,
) -> Result<()> {
    let peer = slot(vrrp, node);
    let log = || peer.as_ref().map(Peer::log).unwrap_or_default();
    until("keepalived to be backup", patience(), || {
        log().contains("Entering BACKUP STATE").then_some(())
    })
    .with_context(log)?;
    software.wait_backup(node)?;
    ensure!(!vrrp::is_active(scene.pair.fw(node))?, "both are active");
    Ok(())
}

fn wait_active(vrrp: &mut [Option<Peer>; 2], scene: &Scene, node: Node) -> Result<()> {
    let peer = slot(vrrp, node);
    let log = || peer.as_ref().map(Peer::log).unwrap_or_default();
    until("keepalived to be master", TAKEOVER, || {
        log().contains("Entering MASTER STATE").then_some(())
    })
    .with_context(log)?;
    until("the virtual addresses", patience(), || {
        vrrp::is_active(scene.pair.fw(node)).ok()?.then_some(())
    })
}

/// Fetches the small file, and compares it.
fn fetch(scene: &Scene, session: &mut Session, port: Option<u16>) -> Result<Details> {
    let from = session.log().len();
    let transfer = session.fetch(FILE, port)?;
    let sum = scene.same(FILE, &transfer.local)?;
    let asked = if port.is_some() { "PORT " } else { "227 " };
    let line = session.line(from, asked).unwrap_or_default();
    Ok(vec![
        ("control", line.trim().to_owned()),
        ("sha256", format!("{sum} at both ends")),
    ])
}

/// Fails unless the helper has met one announcement, the first since it was
/// started that it could, with an expectation that was there.
fn reused(scene: &Scene, software: &mut dyn Software, node: Node) -> Result<Details> {
    let reused = software.reused(scene, node)?;
    ensure!(reused == 1, "{reused} announcements did, wanted 1");
    Ok(vec![("helper", "1 announcement reused".to_owned())])
}

/// Expectations between the same ends.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    ends: String,
    ports: Vec<u16>,
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (first, last) = (self.ports.first(), self.ports.last());
        let (first, last) = (first.unwrap_or(&0), last.unwrap_or(&0));
        write!(f, "tcp {} ports {first}-{last}", self.ends)
    }
}

/// From lines of `conntrack -L expect` or `ctsync show --expectations`.
fn blocks<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<Block>> {
    let mut blocks: BTreeMap<String, Vec<u16>> = BTreeMap::new();
    for line in lines {
        let field = |name: &str| {
            let value = line.split_whitespace().find_map(|w| w.strip_prefix(name));
            value.with_context(|| format!("no {name} in {line:?}"))
        };
        let ends = format!("{} -> {}", field("src=")?, field("dst=")?);
        blocks
            .entry(ends)
            .or_default()
            .push(field("dport=")?.parse()?);
    }
    let block = |(ends, mut ports): (String, Vec<u16>)| {
        ports.sort_unstable();
        Block { ends, ports }
    };
    Ok(blocks.into_iter().map(block).collect())
}

/// The kernel's permanent expectations.
fn permanent(scene: &Scene, node: Node) -> Result<Vec<Block>> {
    let table = scene.pair.fw(node).run("conntrack", &["-L", "expect"])?;
    blocks(table.lines().filter(|line| line.contains("PERMANENT")))
}

/// Fails unless there are the two blocks of four that the session has made.
fn two_blocks(blocks: &[Block], name: &'static str) -> Result<Details> {
    let whole = |block: &Block| {
        matches!(block.ports.as_slice(),
        [a, b, c, d] if a % 4 == 0 && [a + 1, a + 2, a + 3] == [*b, *c, *d])
    };
    ensure!(
        blocks.len() == 2 && blocks.iter().all(whole),
        "there are {}",
        if blocks.is_empty() {
            "none".to_owned()
        } else {
            format!("{blocks:?}")
        }
    );
    Ok(blocks
        .iter()
        .map(|block| (name, block.to_string()))
        .collect())
}

/// Fails unless the server has seen one control connection only.
fn one_login(scene: &Scene) -> Result<Details> {
    let logins = scene.logins();
    ensure!(
        logins.len() == 1,
        "the server saw {} logins: lftp connects anew after a transfer that failed",
        logins.len()
    );
    Ok(vec![("server", "1 login in its log".to_owned())])
}
