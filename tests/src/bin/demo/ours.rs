//! The three programs of this workspace on both firewalls.

use anyhow::{Context, Result, ensure};
use lab::nodes::Nodes;
use lab::ours::{self, Helper};
use lab::pair::Node;
use lab::peer::Peer;
use lab::programs::built;
use lab::vrrp::Scripts;
use lab::wait::{patience, until};

use serde_json::Value;

use crate::scene::Scene;
use crate::screen::Details;
use crate::software::Software;

/// Of ctsync, besides names, keys and addresses.
const SETTINGS: &str = "\
[hold]
table = \"nft_ftp\"

[kernel]
background-dump = \"1s\"
";

/// What runs on one firewall.
struct Running {
    helper: Helper,
    ctsync: Peer,
}

/// Ours.
pub struct Ours {
    nodes: Nodes,
    running: [Option<Running>; 2],
}

impl Ours {
    /// Makes keys and configurations; nothing runs yet.
    pub fn new() -> Result<Self> {
        Ok(Self {
            nodes: Nodes::with(SETTINGS)?,
            running: [None, None],
        })
    }

    fn slot(&mut self, node: Node) -> &mut Option<Running> {
        let [one, two] = &mut self.running;
        match node {
            Node::One => one,
            Node::Two => two,
        }
    }

    /// Waits until the other firewall knows what the helper has written down
    /// last of each control connection: no event tells it.
    fn wait_helper_state(&self, scene: &Scene, from: Node) -> Result<()> {
        let show = |cache| ["show", cache, "--json", "--dport", "21"];
        until(
            "the helper's state at the other firewall",
            patience(),
            || {
                let kernel = ours::run(scene.pair.fw(from), "ctsync", &show("kernel")).ok()?;
                let copy = self.nodes.ctsync(from.peer(), &show("external")).ok()?;
                (helper_data(&kernel) == helper_data(&copy.stdout)).then_some(())
            },
        )
    }

    fn ctsync_log(&mut self, node: Node) -> String {
        let running = self.slot(node).as_ref();
        running.map_or_else(String::new, |r| r.ctsync.log())
    }
}

impl Software for Ours {
    fn name(&self) -> String {
        "nft-ftp-ruleset, nft-ftp-helper and ctsync".to_owned()
    }

    fn boot(&mut self, scene: &Scene, node: Node) -> Result<Details> {
        let fw = scene.pair.fw(node);
        let policy = scene.policy("queues = 2\n")?;
        let policy = policy.to_str().context("path")?;
        let options = [
            "--queue-num",
            "121-122",
            "--port-mask",
            "0xfffc",
            "--permanent",
            // So that emulation can't be too slow for them.
            "--expect-timeout",
            "900s",
        ];
        let helper = Helper::start(fw, &options)?;
        ours::run(fw, "nft-ftp-ruleset", &["load", "--config", policy])?;
        let ctsync = self.nodes.start(&scene.pair, node)?;
        *self.slot(node) = Some(Running { helper, ctsync });
        let list = ours::run(fw, "nft-ftp-helper", &["list"])?;
        ensure!(
            list.contains("nft-ftp ip proto 6 queue 121 enabled"),
            "{list}"
        );
        Ok(vec![
            ("helper", options.join(" ")),
            ("ruleset", rules(scene, node)?),
        ])
    }

    fn scripts(&self, node: Node) -> Result<Scripts> {
        let control = self.nodes.control(node);
        let program = built("ctsync")?;
        let command = format!("{} --control {}", program.display(), control.display());
        Ok(Scripts::ctsync(&command))
    }

    fn is_dead(&mut self, node: Node) {
        *self.slot(node) = None;
    }

    fn wait_synced(&mut self, scene: &Scene, from: Node) -> Result<Details> {
        self.nodes.wait_synced()?;
        self.nodes.wait_mirrored(from)?;
        self.wait_helper_state(scene, from)?;
        let count = |what: &str| self.nodes.number(from.peer(), &format!("/external/{what}"));
        Ok(vec![(
            "ctsync",
            format!(
                "{} connections and {} expectations of the other's",
                count("flows")?,
                count("expectations")?
            ),
        )])
    }

    fn wait_backup(&mut self, node: Node) -> Result<()> {
        until("role backup", patience(), || {
            let status = self.nodes.status(node).ok()?;
            (status.pointer("/role")? == "backup").then_some(())
        })
    }

    fn mirrored_expectations(&mut self, node: Node) -> Result<Vec<String>> {
        let show = ["show", "external", "--expectations"];
        let text = self.nodes.ctsync(node, &show)?.success()?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn reused(&mut self, scene: &Scene, node: Node) -> Result<u64> {
        let fw = scene.pair.fw(node);
        let running = self.slot(node).as_ref().context("no helper runs")?;
        let status = running.helper.status(fw)?;
        let count = status.pointer("/events/reused");
        Ok(count.and_then(Value::as_u64).unwrap_or(0))
    }

    fn took_over(&mut self, node: Node, nth: usize) -> Result<Details> {
        until("ctsync primary", patience(), || {
            let log = self.ctsync_log(node);
            (log.matches("this node is primary").count() >= nth).then_some(())
        })
        .with_context(|| self.ctsync_log(node))?;
        let log = self.ctsync_log(node);
        let mut committed = log.lines().filter(|line| line.contains("committed"));
        let line = committed.next_back().context("no commit in the log")?;
        let value = |name: &str| -> Result<&str> {
            let rest = line.split(&format!("{name}=")).nth(1);
            let rest = rest.with_context(|| format!("no {name} in {line}"))?;
            Ok(rest.split_whitespace().next().unwrap_or_default())
        };
        ensure!(value("failed")? == "{}", "{line}");
        let seconds: f64 = value("seconds")?.parse()?;
        let committed = format!(
            "{} connections, {} expectations, none failed",
            value("flows")?,
            value("expectations")?
        );
        let took = format!("{:.1} ms", seconds * 1000.0);
        Ok(vec![("committed", committed), ("commit took", took)])
    }

    fn logs(&mut self) -> String {
        let mut text = String::new();
        for node in Node::BOTH {
            if let Some(running) = self.slot(node) {
                text += &format!(
                    "--- {node:?}\n{}{}",
                    running.helper.log(),
                    running.ctsync.log()
                );
            }
        }
        text
    }

    fn stop(&mut self, scene: &Scene) -> Result<()> {
        for node in Node::BOTH {
            if let Some(running) = self.slot(node).take() {
                running.helper.stop()?;
            }
        }
        let list = ours::run(scene.pair.fw(Node::One), "nft-ftp-helper", &["list"])?;
        ensure!(!list.contains(" enabled"), "still enabled: {list}");
        Ok(())
    }
}

/// The helper's 32 bytes of each connection in lines of JSON.
fn helper_data(lines: &str) -> Vec<String> {
    let data = |line: &str| {
        let entry: Value = serde_json::from_str(line).ok()?;
        Some(entry.get("helper_data")?.as_str()?.to_owned())
    };
    lines.lines().filter_map(data).collect()
}

/// Fails unless the ruleset is what the policy says; its parts in words.
pub fn rules(scene: &Scene, node: Node) -> Result<String> {
    let fw = scene.pair.fw(node);
    let table = fw.run("nft", &["list", "table", "inet", "nft_ftp"])?;
    let parts = [
        ("hook forward priority filter; policy drop", "default drop"),
        ("ct helper set", "ct helper"),
        ("masquerade", "masquerade"),
        ("chain hold", "hold chain"),
        ("@firewalls4 iifname { \"lan\", \"wan\" }", "VRRP"),
        ("udp dport 3780 notrack", "sync link"),
    ];
    for (text, _) in parts {
        ensure!(table.contains(text), "no {text:?} in\n{table}");
    }
    Ok(parts.map(|(_, name)| name).join(", "))
}
