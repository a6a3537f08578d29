//! Does it still build with the oldest compiler the workspace promises?
//!
//! The compiler itself is asked where rustup has it; with `--full`, Debian's
//! otherwise, in a root file system of its suite. Everywhere, three things are
//! checked that usually break the promise: a dependency that wants a newer
//! compiler, a newer function of the standard library (clippy's
//! `incompatible_msrv`, which knows the version from clippy.toml), and let
//! chains, which edition 2024 allows since 1.88 only.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::shell::{cargo, command, output, step};
use crate::workspace;

/// A compiler version as (major, minor, patch).
type Version = (u32, u32, u32);

/// Every dependency's `rust-version` is at most the workspace's.
pub fn dependencies() -> Result<()> {
    let metadata = metadata()?;
    let promised = promised(&metadata)?;
    let newer: Vec<_> = packages(&metadata)
        .filter_map(|package| too_new(package, promised))
        .collect();
    ensure!(newer.is_empty(), "{}", newer.join(", "));
    Ok(())
}

/// The dependency graph as cargo prints it, for this machine's platform.
pub fn metadata() -> Result<Value> {
    let args = ["metadata", "--format-version", "1", "--locked"];
    let host = ["--filter-platform", env!("XTASK_TARGET")];
    let text = output(cargo(&args).args(host))?;
    serde_json::from_str(&text).context("cargo metadata")
}

/// The packages of a dependency graph.
pub fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata
        .get("packages")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn promised(metadata: &Value) -> Result<Version> {
    packages(metadata)
        .find(|package| text(package, "name") == "netfilter")
        .and_then(|package| parse(text(package, "rust_version")))
        .context("the workspace states no rust-version")
}

fn too_new(package: &Value, promised: Version) -> Option<String> {
    let wanted = text(package, "rust_version");
    let (name, version) = (text(package, "name"), text(package, "version"));
    (parse(wanted)? > promised).then(|| format!("{name} {version} needs Rust {wanted}"))
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn parse(version: &str) -> Option<Version> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let major = parts.next()??;
    let minor = parts.next().flatten().unwrap_or(0);
    Some((major, minor, parts.next().flatten().unwrap_or(0)))
}

/// No let chains in any source file.
pub fn no_let_chains() -> Result<()> {
    let list = output(command("git", &["ls-files", "*.rs"]).current_dir(workspace::root()))?;
    let files: Vec<_> = list.lines().collect();
    ensure!(!files.is_empty(), "git knows no source files");
    parses_without_let_chains(&workspace::root(), &files)
}

/// rustfmt parses; told that the edition is 2021, it refuses let chains
/// ("let chains are only allowed in Rust 2024 or later").
fn parses_without_let_chains(dir: &Path, files: &[&str]) -> Result<()> {
    let args = ["--edition", "2021", "--style-edition", "2024", "--check"];
    let mut rustfmt = command("rustfmt", &args);
    let said = rustfmt.args(files).current_dir(dir).output()?;
    // Not the command: it names every file.
    let text = [said.stdout, said.stderr].concat();
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&text));
    Ok(())
}

/// The toolchain of the promised version, if rustup has it.
pub fn toolchain() -> Option<String> {
    let (major, minor, _) = promised(&metadata().ok()?).ok()?;
    let installed = output(&mut command("rustup", &["toolchain", "list"])).ok()?;
    let wanted = format!("{major}.{minor}");
    installed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .find(|name| {
            name.starts_with(&format!("{wanted}-")) || name.starts_with(&format!("{wanted}."))
        })
        .map(str::to_owned)
}

/// The workspace passes `cargo check` with that toolchain.
pub fn builds(toolchain: &str) -> Result<()> {
    let mut rustup = command("rustup", &["run", toolchain, "cargo", "check"]);
    rustup
        .args(["--workspace", "--all-targets", "--locked"])
        .arg("--target-dir")
        .arg(workspace::target().join("msrv"));
    crate::shell::run(rustup.current_dir(workspace::root()))
}

/// The suite of Debian whose compiler is of the promised version.
const SUITE: &str = "trixie";

/// What building takes there.
const PACKAGES: &[&str] = &[
    "cargo",
    "gcc",
    "libc6-dev",
    "libmnl-dev",
    "libnftnl-dev",
    "pkg-config",
    "rustc",
];

/// Checks in the root file system `$1` the workspace `$2`; `$3` is for
/// everything that is written, and has the sources of all dependencies. The
/// mounts are gone with the shell.
const CHECK: &str = "set -e
mkdir -p \"$1/workspace\" \"$1/output\"
mount --bind -o ro \"$2\" \"$1/workspace\"
mount --bind \"$3\" \"$1/output\"
mount -t proc proc \"$1/proc\"
cd \"$1/workspace\"
exec chroot \"$1\" sh -c '
	cd /workspace
	export HOME=/output CARGO_HOME=/output/home CARGO_TARGET_DIR=/output/target
	unset RUSTUP_HOME RUSTUP_TOOLCHAIN RUSTC CARGO
	PATH=/usr/sbin:/usr/bin
	case $(rustc --version) in \"rustc $0.\"*) ;; *) rustc --version; exit 3 ;; esac
	exec cargo check --workspace --all-targets --locked --offline \
		--config source.crates-io.replace-with=\\\"vendored\\\" \
		--config source.vendored.directory=\\\"/output/vendor\\\"
' \"$0\"";

/// The workspace passes `cargo check` with Debian's compiler.
pub fn builds_in_debian() -> Result<()> {
    let (major, minor, _) = promised(&metadata()?)?;
    let output_dir = workspace::lab().join("msrv");
    std::fs::create_dir_all(&output_dir)?;
    let vendor = output_dir.join("vendor");
    let vendored = ["vendor", "--quiet", "--locked", "--versioned-dirs"];
    output(cargo(&vendored).arg(&vendor))?;
    let mut check = command("unshare", &["--mount", "sh", "-c", CHECK]);
    check
        .arg(format!("{major}.{minor}"))
        .arg(compiler()?)
        .arg(workspace::root())
        .arg(&output_dir);
    crate::shell::run(&mut check)
}

/// The root file system with the compiler, made unless it is in the cache.
fn compiler() -> Result<PathBuf> {
    let dir = workspace::lab().join("roots");
    let root = dir.join(format!("{SUITE}-rust"));
    if !root.is_dir() {
        step(&format!("fetching the compiler of Debian {SUITE}"));
        std::fs::create_dir_all(&dir)?;
        let part = root.with_extension(format!("part-{}", std::process::id()));
        crate::root::make(SUITE, PACKAGES, &part)?;
        std::fs::rename(&part, &root).with_context(|| root.display().to_string())?;
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: &str = "fn main() {
    if let Some(y) = Some(1)
        && y > 0
    {
        println!(\"{y}\");
    }
}
";

    #[test]
    fn a_let_chain_is_found() {
        let dir = workspace::target().join(format!("lab/let-chains-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let nested = CHAIN.replace("\n        && y > 0\n    {", " {");
        std::fs::write(dir.join("chain.rs"), CHAIN).unwrap();
        std::fs::write(dir.join("plain.rs"), nested).unwrap();
        let plain = parses_without_let_chains(&dir, &["plain.rs"]);
        let chain = parses_without_let_chains(&dir, &["chain.rs"]);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(plain.is_ok(), "{plain:?}");
        let error = chain.unwrap_err().to_string();
        assert!(error.contains("let chains"), "{error}");
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(parse("1.85") < parse("1.85.1"));
        assert!(parse("1.9") < parse("1.85"));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_dependency_that_is_too_new_is_named() {
        let package = serde_json::json!({
            "name": "shiny", "version": "2.0.0", "rust_version": "1.88"
        });
        let named = too_new(&package, (1, 85, 0));
        assert_eq!(named.as_deref(), Some("shiny 2.0.0 needs Rust 1.88"));
        assert_eq!(too_new(&package, (1, 88, 0)), None);
    }
}
