//! The ruleset with our helper in a VM: the order at boot, several queues.

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::suite::{Case, World};
use lab::netns::text_file;
use lab::ours::{self, Helper};
use lab::require::Need;
use lab::topology::Family;
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::Server("vsftpd"),
    Need::Program("curl"),
];

const POLICY: &str = "
[[helper]]
queues = 4
[firewall]
client-interfaces = [\"lan\"]
server-interfaces = [\"wan\"]
[[firewall.masquerade]]
interfaces = [\"wan\"]
";

/// Through two firewalls' worth of rules: the laboratory's and the profile.
#[test]
fn connections_are_spread_over_every_queue() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    let file = text_file(POLICY)?;
    let config = file.path().to_string_lossy();
    let ruleset = |command: &str| ours::run(fw, "nft-ftp-ruleset", &[command, "--config", &config]);
    // Of one queue: for each helper that is missing the kernel runs modprobe,
    // which takes seconds under emulation. A name of its own: registrations
    // outlive the tests that made them.
    let absent = text_file("[[helper]]\ntype = \"lab-absent\"\n")?;
    let absent = absent.path().to_string_lossy();
    let refused = ours::run(fw, "nft-ftp-ruleset", &["load", "--config", &absent]).err();
    let refused = format!("{:#}", refused.context("loaded without the helper")?);
    let hint = "helper lab-absent is not registered: start nft-ftp-helper first";
    ensure!(refused.contains(hint), "{refused}");
    let helper = Helper::start(fw, &["--queue-num", "121-124"])?;
    ruleset("check")?;
    ruleset("load")?;
    ruleset("diff")?;
    let listed = fw.run("nft", &["list", "table", "inet", "nft_ftp"])?;
    fw.nft(&ruleset("generate")?)?;
    let by_nft = fw.run("nft", &["list", "table", "inet", "nft_ftp"])?;
    ensure!(listed == by_nft, "ours:\n{listed}\nby nft:\n{by_nft}");
    fw.nft(&format!("delete table inet nft_ftp\n{listed}"))?;
    // A list, a download and an upload: three control connections; and the
    // rule counts the turns of each family together.
    for (mode, family) in [(Mode::Pasv, Family::V4), (Mode::Eprt, Family::V6)] {
        let client = Client::Curl;
        world.passes(Case {
            client,
            mode,
            family,
        })?;
    }
    let status = helper.status(fw)?;
    let queues = status.get("queues").and_then(Value::as_array);
    let queues = queues.with_context(|| status.to_string())?;
    ensure!(queues.len() == 4, "{status}");
    for queue in queues {
        let packets = queue.get("packets").and_then(Value::as_u64);
        ensure!(packets > Some(0), "an idle queue: {status}");
    }
    ruleset("unload")?;
    helper.stop()?;
    Ok(())
}

/// On this kernel, too: golden policies load, by us and by nft, and `diff`
/// reads back from the kernel what they say. Some in CI, all with `--full`:
/// `native_ruleset` has them all on the machine's own kernel.
#[test]
fn golden_policies_are_read_back_as_they_were_loaded() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::NftCtExpectation);
    let fw = lab::netns::Namespace::new(&lab::names::unique(), "fw")?;
    let register = ["register", "--queue-num", "121-124"];
    ours::run(&fw, "nft-ftp-helper", &register)?;
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut read = 0;
    for entry in std::fs::read_dir(directory.join("../ruleset/tests/golden"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        const SOME: [&str; 4] = ["default", "expectations", "passive", "queues"];
        let full = lab::require::is_full();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if !full && !SOME.contains(&&*name) {
            continue;
        }
        let config = path.to_string_lossy();
        let ruleset =
            |command: &str| ours::run(&fw, "nft-ftp-ruleset", &[command, "--config", &config]);
        for command in ["check", "load", "diff"] {
            ruleset(command).with_context(|| config.to_string())?;
        }
        fw.nft(&ruleset("generate")?)?;
        ruleset("diff").with_context(|| format!("{config} by nft"))?;
        fw.run("nft", &["flush", "ruleset"])?;
        read += 1;
    }
    ensure!(read >= 4, "{read} golden policies");
    Ok(())
}
