//! The golden policies in a real kernel: loaded by us, as text and as JSON,
//! by two versions of nft, they give one listing, which loads again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::netns::Namespace;
use lab::ours;
use lab::programs::other_nft;
use lab::require::Need;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::KernelFtp,
    Need::NftCtExpectation,
    Need::Built("nft-ftp-ruleset"),
];

fn golden() -> Result<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ruleset/tests/golden");
    let mut policies = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        let path = entry?.path();
        // Others need a helper that nobody registers here: the VM has them.
        let text = std::fs::read_to_string(path.with_extension("nft")).unwrap_or_default();
        if path.extension().is_some_and(|e| e == "toml") && !text.contains("type \"nft-ftp") {
            policies.push(path);
        }
    }
    policies.sort();
    ensure!(policies.len() > 5, "golden policies in {directory:?}");
    Ok(policies)
}

/// One version of nft.
struct Nft {
    path: String,
    /// Reads `ct expectation` from JSON: since 1.0.9.
    reads_expectations: bool,
}

impl Nft {
    fn new(fw: &Namespace, path: &str) -> Result<Self> {
        let version = fw.run(path, &["--version"])?;
        let numbers = version.split(['v', ' ']).find(|word| word.contains('.'));
        let mut numbers = numbers.context("nft --version")?.split('.').map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0u32);
        let version = (next(), next(), next());
        Ok(Self {
            path: path.to_owned(),
            reads_expectations: version >= (1, 0, 9),
        })
    }

    fn list(&self, fw: &Namespace) -> Result<String> {
        fw.run(&self.path, &["list", "table", "inet", "nft_ftp"])
    }
}

fn file(dir: &Path, name: &str, text: &str) -> Result<String> {
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}

fn all_ways(fw: &Namespace, nft: &Nft, policy: &Path) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let policy = policy.to_string_lossy();
    let ruleset = |args: &[&str]| {
        let args = [args, &["--config", &policy]].concat();
        ours::run(fw, "nft-ftp-ruleset", &args)
    };
    let flush = || fw.run(&nft.path, &["flush", "ruleset"]);
    flush()?;
    ruleset(&["check"])?;
    ruleset(&["load"])?;
    let ours = nft.list(fw)?;
    let text = file(dir.path(), "text", &ruleset(&["generate"])?)?;
    let listed = file(dir.path(), "listed", &ours)?;
    let mut ways = vec![
        ("text", vec!["-f", &text]),
        ("listing", vec!["-f", &listed]),
    ];
    let json = file(
        dir.path(),
        "json",
        &ruleset(&["generate", "--format", "json"])?,
    )?;
    if nft.reads_expectations || !ours.contains("ct expectation") {
        ways.push(("JSON", vec!["-j", "-f", &json]));
    }
    for (way, args) in ways {
        flush()?;
        fw.run(&nft.path, &args).context(way)?;
        let found = nft.list(fw)?;
        ensure!(found == ours, "{way}:\n{found}\nloaded by us:\n{ours}");
        ruleset(&["diff"]).context(way)?;
    }
    // Over what somebody else has loaded.
    ruleset(&["load"])?;
    ruleset(&["diff"])?;
    let found = nft.list(fw)?;
    ensure!(found == ours, "load over JSON:\n{found}\nfresh:\n{ours}");
    Ok(())
}

fn all_policies(path: &str) -> Result<()> {
    let fw = Namespace::new(&lab::names::unique(), "fw")?;
    let nft = Nft::new(&fw, path)?;
    for policy in golden()? {
        all_ways(&fw, &nft, &policy)
            .with_context(|| format!("{} with {path}", policy.display()))?;
    }
    Ok(())
}

#[test]
fn golden_policies_load_in_every_way_with_the_systems_nft() -> Result<()> {
    lab::require!(needs NEEDS);
    all_policies("nft")
}

#[test]
fn golden_policies_load_in_every_way_with_another_nft() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::OtherNft);
    let path = other_nft().context("LAB_NFT")?;
    all_policies(&path.to_string_lossy())
}
