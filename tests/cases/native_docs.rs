//! Guides, pages and examples say what there is: commands, options, keys,
//! findings, files and metrics. What needs a kernel with everything is in
//! `vm_guides`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::ftp::server::{Program, Server};
use lab::guide::{self, Machine};
use lab::metric_names;
use lab::netns::Namespace;
use lab::nodes::Nodes;
use lab::ours::{self, program};
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::topology::Topology;
use lab::walk::Walk;

const PROGRAMS: [&str; 3] = ["nft-ftp-ruleset", "nft-ftp-helper", "ctsync"];

const NEEDS: &[Need] = &[
    Need::Root,
    Need::KernelFtp,
    Need::Built("nft-ftp-helper"),
    Need::Built("nft-ftp-ruleset"),
    Need::Built("ctsync"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

/// README, guides and pages, with their names.
fn texts() -> Result<Vec<(String, String)>> {
    let mut texts = vec![("README.md".to_owned(), read("README.md")?)];
    for directory in ["docs", "man"] {
        for entry in fs::read_dir(root().join(directory))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(&path)?;
            texts.push((format!("{directory}/{name}"), unroffed(&text)));
        }
    }
    ensure!(texts.len() > 10, "{} texts", texts.len());
    Ok(texts)
}

fn unroffed(text: &str) -> String {
    let fonts = ["\\fB", "\\fI", "\\fR", "\\fP"];
    let text = fonts
        .iter()
        .fold(text.to_owned(), |text, font| text.replace(font, ""));
    text.replace("\\-", "-")
}

/// Subcommands of a program, and the options of each.
fn commands(name: &str) -> Result<BTreeMap<String, String>> {
    let help = |args: &[&str]| -> Result<String> {
        let command = program(name, args)?;
        lab::command::run(command, lab::wait::patience())?.success()
    };
    let mut found = BTreeMap::new();
    let list = help(&["--help"])?;
    let (_, list) = list.split_once("Commands:").context("Commands:")?;
    for line in list.lines().take_while(|line| !line.contains("Options:")) {
        let word = line
            .strip_prefix("  ")
            .and_then(|line| line.split(' ').next());
        if let Some(word) = word.filter(|word| !word.is_empty() && *word != "help") {
            found.insert(word.to_owned(), help(&[word, "--help"])?);
        }
    }
    ensure!(found.len() > 6, "{name}: {found:?}");
    Ok(found)
}

/// A command line in a text: code, up to what ends it.
fn mentions<'a>(text: &'a str, program: &str) -> Vec<&'a str> {
    let ends = ['`', '\n', '|', ';', '"', '&', '#', ')', ','];
    let word = format!("{program} ");
    let found = text.match_indices(&word).map(|(at, _)| at);
    found
        .filter(|at| {
            // In code: at the start of a line, after a prompt, in backticks.
            let before = text.get(..*at).unwrap_or_default();
            let line = before.rsplit('\n').next().unwrap_or_default();
            line.trim().is_empty()
                || before.ends_with(['`', '/'])
                || line.trim_end().ends_with(['#', '$', '!'])
        })
        .filter_map(|at| text.get(at + program.len() + 1..)?.split(ends).next())
        .collect()
}

#[test]
fn every_command_in_a_text_exists_with_its_options() -> Result<()> {
    lab::require!(needs NEEDS);
    let mut checked = 0;
    for name in PROGRAMS {
        let known = commands(name)?;
        for (path, text) in texts()? {
            for mention in mentions(&text, name) {
                let mut words = mention
                    .split_whitespace()
                    .skip_while(|word| word.starts_with("--control"));
                let Some(first) = words.next() else { continue };
                // A picture.
                if mention.starts_with(' ') {
                    continue;
                }
                // A sentence that begins with the program's name.
                if !known.contains_key(first) {
                    let prose =
                        text.contains(&format!("{name} {first}")) && path.starts_with("man/");
                    let word = first.chars().all(|c| c.is_ascii_alphabetic());
                    ensure!(prose || !word, "{path}: {name} {mention}");
                    continue;
                }
                checked += 1;
                let help = known.get(first).map_or("", String::as_str);
                for option in words.filter(|word| word.starts_with("--")) {
                    let option = option.split(['=', ']']).next().unwrap_or(option);
                    ensure!(
                        help.contains(option),
                        "{path}: {name} {mention}: no {option}"
                    );
                }
            }
        }
    }
    ensure!(checked > 60, "{checked} commands");
    Ok(())
}

#[test]
fn links_lead_to_files() -> Result<()> {
    let mut checked = 0;
    for (path, text) in texts()? {
        let Some(directory) = root().join(&path).parent().map(Path::to_owned) else {
            continue;
        };
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            if path.ends_with(".md") && !target.is_empty() && !target.contains("://") {
                ensure!(directory.join(target).exists(), "{path}: {target}");
                checked += 1;
            }
        }
    }
    ensure!(checked > 8, "{checked} links");
    Ok(())
}

/// Pages that refer to each other are there.
#[test]
fn pages_refer_to_pages_that_exist() -> Result<()> {
    let mut checked = 0;
    for (path, text) in texts()?.iter().filter(|(path, _)| path.starts_with("man/")) {
        let see = text.split_once(".SH SEE ALSO").context(path.clone())?.1;
        for line in see.lines().filter_map(|line| line.strip_prefix(".BR ")) {
            let Some((name, section)) = line.split_once(" (") else {
                continue;
            };
            let section = section.split(')').next().unwrap_or_default();
            let ours = name.starts_with("nft-ftp") || name.starts_with("ctsync");
            let page = root().join(format!("man/{name}.{section}"));
            ensure!(!ours || page.exists(), "{path}: {name}({section})");
            checked += usize::from(ours);
        }
    }
    ensure!(checked > 8, "{checked} references");
    Ok(())
}

/// What a page shows as an example of a file is one that the program takes.
#[test]
fn files_shown_on_pages_are_valid() -> Result<()> {
    lab::require!(needs NEEDS);
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let run = |name: &str, args: &[&str]| -> Result<String> {
        lab::command::run(program(name, args)?, lab::wait::patience())?.success()
    };
    run("ctsync", &["keygen", &path("key")])?;
    let mut checked = 0;
    for (page, name, command) in [
        ("man/nft-ftp-ruleset.toml.5", "nft-ftp-ruleset", "generate"),
        ("man/ctsync.toml.5", "ctsync", "check-config"),
    ] {
        let text = unroffed(&read(page)?);
        let examples = text.split_once(".SH EXAMPLES").context(page)?.1;
        let mut file = None;
        for line in examples.lines() {
            match line {
                ".nf" | ".EX" => file = Some(String::new()),
                ".fi" | ".EE" => {
                    let shown = file.take().context("an example that begins")?;
                    let shown = shown.replace("/etc/ctsync/private.key", &path("key"));
                    fs::write(path("example"), &shown)?;
                    run(name, &[command, "--config", &path("example")])
                        .with_context(|| format!("{page}:\n{shown}"))?;
                    checked += 1;
                }
                line if line.starts_with('.') => {}
                line => file
                    .iter_mut()
                    .for_each(|file| *file += &format!("{line}\n")),
            }
        }
    }
    ensure!(checked == 2, "{checked} examples");
    // The helper's page refers to the sample.
    let sample = root().join("examples/helper.toml");
    run(
        "nft-ftp-helper",
        &["check-config", "--config", &sample.to_string_lossy()],
    )?;
    Ok(())
}

/// What troubleshooting quotes, a doctor can say.
#[test]
fn quoted_findings_are_in_the_doctors() -> Result<()> {
    let mut said = String::new();
    for path in [
        "daemon/src/doctor/mod.rs",
        "nft-ftp-helper/src/doctor/mod.rs",
        "nft-ftp-helper/src/doctor/ruleset.rs",
        "ctsync/src/doctor.rs",
    ] {
        said += &read(path)?;
    }
    let said = said.replace("\\\n", "");
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = one_line(&said);
    let text = one_line(&read("docs/troubleshooting.md")?);
    let mut checked = 0;
    for quotes in text.split("*doctor: ").skip(2) {
        let quotes = quotes.split('*').next().unwrap_or_default();
        for quote in quotes.split('`').skip(1).step_by(2) {
            ensure!(said.contains(quote), "no doctor says {quote:?}");
            checked += 1;
        }
    }
    ensure!(checked > 15, "{checked} findings");
    Ok(())
}

/// Keys on the right side of the tables of conntrackd's options.
#[test]
fn keys_that_replace_conntrackds_exist() -> Result<()> {
    let pages = unroffed(&(read("man/ctsync.toml.5")? + &read("man/nft-ftp-helper.toml.5")?));
    let text = read("docs/from-conntrackd.md")?;
    let table = text.split("## Configuration").nth(1).context("table")?;
    let table = table.split("## Commands").next().unwrap_or_default();
    let mut checked = 0;
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let right = row
            .trim_end_matches('|')
            .rsplit('|')
            .next()
            .unwrap_or_default();
        for word in right.split('`').skip(1).step_by(2) {
            let key = word.split([' ', '[', ']']).find(|word| !word.is_empty());
            let key = key
                .unwrap_or_default()
                .rsplit('.')
                .next()
                .unwrap_or_default();
            let ours = key.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            if ours && !word.starts_with("ctsync ") {
                ensure!(pages.contains(key), "{row}: no key {key}");
                checked += 1;
            }
        }
    }
    ensure!(checked > 20, "{checked} keys");
    Ok(())
}

#[test]
fn guide_from_the_kernels_helper_can_be_followed() -> Result<()> {
    lab::require!(needs NEEDS);
    let fw = Namespace::new(&lab::names::unique(), "fw")?;
    let machines = BTreeMap::from([("fw", Machine::new(&fw)?)]);
    let text = read("docs/from-kernel-helper.md")?;
    let printed = guide::run(&text, &machines, &mut |text| Ok(text.to_owned()))?;
    ensure!(
        printed.concat().contains("ct helper \"ftp\""),
        "{printed:?}"
    );
    Ok(())
}

/// Both guides where only the kernel's own helper is to be had: policies name
/// it, commands of ours are left out. `vm_guides` runs them as they are.
fn for_the_kernels_helper(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("nft-ftp-helper"));
    let text = lines.map(|line| format!("{line}\n")).collect::<String>();
    text.replace("[[helper]]\n", "[[helper]]\ntype = \"ftp\"\n")
}

#[test]
fn quick_start_can_be_followed_with_the_kernels_helper() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::Server("vsftpd"), Need::Program("curl"));
    let topology = Topology::new()?;
    let _server = Server::start(Program::Vsftpd, &topology.server)?;
    let machines = BTreeMap::from([
        ("fw", Machine::new(&topology.fw)?),
        ("client", Machine::new(&topology.client)?),
    ]);
    let text = for_the_kernels_helper(&read("docs/quick-start.md")?);
    let printed = guide::run(&text, &machines, &mut |text| Ok(text.to_owned()))?;
    let all = printed.concat();
    for expected in ["policy drop;", "counter related_accepted", "10.0.2.3"] {
        ensure!(all.contains(expected), "no {expected:?} in {all}");
    }
    Ok(())
}

#[test]
fn pair_guide_can_be_followed_with_the_kernels_helper() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(
        Need::Server("vsftpd"),
        Need::Program("curl"),
        Need::Program("keepalived")
    );
    let pair = Pair::new()?;
    let _server = Server::start(Program::Vsftpd, &pair.server)?;
    let mut walk = Walk::new(&pair)?;
    let text = for_the_kernels_helper(&read("docs/pair.md")?);
    let all = walk.follow(&text)?;
    ensure!(
        all.contains("in sync") && all.contains("fw-2: primary"),
        "{all}"
    );
    // On a pair where nothing is wrong, every command of this page succeeds.
    let page = for_the_kernels_helper(&read("docs/troubleshooting.md")?);
    walk.follow(&page)?;
    Ok(())
}

/// The example includes what we generate, and loads with both versions of nft.
#[test]
fn nftables_conf_includes_what_is_generated() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::OtherNft);
    let other = lab::programs::other_nft().context("LAB_NFT")?;
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    // The kernel's helper: ours is not registered here.
    fs::write(path("policy"), "[[helper]]\ntype = \"ftp\"\n")?;
    let policy = path("policy");
    let example = read("examples/nftables.conf")?;
    let fw = Namespace::new(&lab::names::unique(), "fw")?;
    for line in example.lines().filter_map(|line| line.strip_prefix("#   ")) {
        let line = line.replace("/etc/nft-ftp/", &format!("{}/", dir.path().display()));
        let args: Vec<_> = line
            .split(' ')
            .skip(1)
            .chain(["--config", &policy])
            .collect();
        ours::run(&fw, "nft-ftp-ruleset", &args)?;
    }
    let conf = example.replace("/etc/nft-ftp/", &format!("{}/", dir.path().display()));
    ensure!(conf != example, "the example has changed");
    fs::write(path("conf"), conf)?;
    for nft in ["nft", &other.to_string_lossy()] {
        fw.run(nft, &["--check", "--file", &path("conf")])?;
        // Twice: the first line makes it replace what is there.
        fw.run(nft, &["--file", &path("conf")])?;
        fw.run(nft, &["--file", &path("conf")])?;
        ours::run(&fw, "nft-ftp-ruleset", &["diff", "--config", &policy])?;
        let listed = fw.run(nft, &["list", "table", "inet", "filter"])?;
        ensure!(
            listed.contains("ct helper \"ftp\" tcp dport 1024-65535 accept"),
            "{listed}"
        );
        let args = ["doctor", "--helper-name", "ftp"];
        ours::run(&fw, "nft-ftp-helper", &args)?;
    }
    Ok(())
}

#[test]
fn metrics_in_the_examples_are_ctsyncs() -> Result<()> {
    lab::require!(needs NEEDS);
    let pair = Pair::new()?;
    let nodes = Nodes::with("metrics = \"127.0.0.1:9122\"\n")?;
    let _one = nodes.start(&pair, Node::One)?;
    let text = pair
        .fw_1
        .run("curl", &["--silent", "http://127.0.0.1:9122/metrics"])?;
    metric_names::examples_name_only(&text, "ctsync_")
}

/// Every panel has a place of its own and a query.
#[test]
fn dashboard_is_complete() -> Result<()> {
    let json: serde_json::Value = serde_json::from_str(&read("examples/grafana.json")?)?;
    let panels = json.get("panels").and_then(|panels| panels.as_array());
    let panels = panels.context("panels")?;
    let mut places = BTreeSet::new();
    for panel in panels {
        let place = panel.get("gridPos").context("gridPos")?;
        ensure!(places.insert(place.to_string()), "two panels at {place}");
        let query = panel
            .pointer("/targets/0/expr")
            .and_then(|expr| expr.as_str());
        ensure!(
            query.is_some_and(|query| query.contains("instance")),
            "{panel}"
        );
    }
    ensure!(panels.len() > 10, "{} panels", panels.len());
    Ok(())
}
