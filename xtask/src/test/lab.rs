//! The laboratory: builds the programs and the test binaries, runs those
//! for this kernel here, and hands the others to the VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Plan, machine, tally::Tally, vm};
use crate::shell::{cargo, output, step, tee};
use crate::{peers, workspace};

/// Tells the laboratory that it is a full run (`lab::require::FULL`).
pub const FULL: &str = "LAB_FULL";

/// True if nothing may be skipped (`LAB=required`, as in CI).
pub fn is_required() -> bool {
    std::env::var("LAB").is_ok_and(|lab| lab == "required")
}

/// The binary whose tests need older builds.
const UPGRADE: &str = "native_upgrade";

/// A test binary of the laboratory.
pub struct Binary {
    /// Name of its target.
    pub name: String,
    /// Where cargo put it.
    pub path: PathBuf,
}

impl Binary {
    /// True for those that need a kernel with everything: they run in the VM.
    pub fn is_for_vm(&self) -> bool {
        self.name.starts_with("vm_")
    }

    /// True for those that leave a kernel behind that others can't use.
    pub fn is_alone(&self) -> bool {
        self.name.starts_with("vm_alone_")
    }

    /// True for those that need a system of their own, with systemd.
    pub fn is_for_machine(&self) -> bool {
        self.name.starts_with("systemd_")
    }

    /// The filter for its tests: none if its own name contains the filter.
    pub fn filter<'a>(&self, filter: Option<&'a str>) -> Option<&'a str> {
        filter.filter(|filter| !self.name.contains(filter))
    }

    /// True if it, or one of its tests, has a name that contains the filter.
    pub fn matches(&self, filter: Option<&str>) -> bool {
        let Some(filter) = self.filter(filter) else {
            return true;
        };
        let mut list = Command::new(&self.path);
        list.args(["--list", filter]).stdin(Stdio::null());
        output(&mut list).is_ok_and(|names| names.contains(": test"))
    }
}

/// Runs what the plan says of the laboratory.
pub fn run(tally: &mut Tally, plan: &Plan, filter: Option<&str>, full: bool) {
    if !plan.native && plan.kernels.is_empty() {
        return;
    }
    step("building programs and laboratory");
    let prepared = build().and_then(|all| Ok((all, environment(full)?)));
    let (mut binaries, mut environment) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return tally.fail(&format!("laboratory: {error:#}")),
    };
    binaries.retain(|binary| binary.matches(filter));
    if full && plan.native && binaries.iter().any(|b| b.name == UPGRADE) {
        environment.extend(older());
    }
    let (for_machine, binaries): (Vec<_>, Vec<_>) =
        binaries.iter().partition(|b| b.is_for_machine());
    let (for_vm, native): (Vec<&Binary>, Vec<_>) =
        binaries.into_iter().partition(|b| b.is_for_vm());
    if plan.native {
        for binary in native {
            run_native(tally, binary, filter, &environment);
        }
    }
    let (alone, together): (Vec<_>, Vec<_>) = for_vm.iter().partition(|b| b.is_alone());
    for kernel in &plan.kernels {
        if !together.is_empty() {
            vm::run(tally, kernel, &together, filter, &environment);
        }
        for binary in &alone {
            match full {
                true => vm::run(tally, kernel, &[binary], filter, &environment),
                // It takes a boot.
                false => tally.skip(&format!("{}: runs with --full alone", binary.name)),
            }
        }
        for binary in &for_machine {
            machine::run(tally, kernel, binary, full);
        }
    }
    if plan.kernels.is_empty() {
        for binary in for_vm.into_iter().chain(for_machine) {
            tally.skip(&format!("{}: runs in the VM", binary.name));
        }
    }
}

/// Builds everything, and lists the laboratory's test binaries.
pub fn build() -> Result<Vec<Binary>> {
    crate::shell::run(&mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    let args = ["test", "-p", "lab", "--no-run", "--locked"];
    // What does not compile is told to people, not in JSON.
    crate::shell::run(&mut cargo(&args))?;
    let json = output(
        cargo(&args)
            .args(["--message-format", "json"])
            .stderr(Stdio::inherit()),
    )?;
    let binaries: Vec<_> = json.lines().filter_map(test_binary).collect();
    if binaries.is_empty() {
        bail!("cargo built no test binary of the laboratory");
    }
    Ok(binaries)
}

/// From one line of cargo's JSON: a test target or the library's own tests.
fn test_binary(line: &str) -> Option<Binary> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_test = message.pointer("/profile/test")?.as_bool()?;
    let path = message.get("executable")?.as_str()?;
    let name = message.pointer("/target/name")?.as_str()?;
    let kind = message.pointer("/target/kind/0")?.as_str()?;
    (is_test && kind != "bin").then(|| Binary {
        name: name.to_owned(),
        path: PathBuf::from(path),
    })
}

/// What the laboratory is told through the environment.
pub fn environment(full: bool) -> Result<Vec<(&'static str, String)>> {
    let bin = workspace::target().join("debug");
    let mut all = vec![
        ("LAB_BIN", bin.display().to_string()),
        ("LAB_PEERS", peers::get()?.display().to_string()),
        ("LAB_NFT", peers::other_nft()?.display().to_string()),
    ];
    if full {
        all.push((FULL, "1".to_owned()));
    }
    if let Ok(lab) = std::env::var("LAB") {
        all.push(("LAB", lab));
    }
    Ok(all)
}

/// Where older builds are. A tree without its history has none: what needs
/// them says so.
fn older() -> Option<(&'static str, String)> {
    match crate::older::get() {
        Ok(dir) => Some(("LAB_OLDER", dir.display().to_string())),
        Err(error) => {
            step(&format!("no older builds of ctsync: {error:#}"));
            None
        }
    }
}

fn run_native(
    tally: &mut Tally,
    binary: &Binary,
    filter: Option<&str>,
    environment: &[(&'static str, String)],
) {
    step(&format!("{} in namespaces of this kernel", binary.name));
    match native(binary, filter, environment) {
        Ok((output, success, skips)) => {
            tally.add(&binary.name, &output, success);
            tally.add_skips(&binary.name, &skips);
        }
        Err(error) => tally.fail(&format!("{}: {error:#}", binary.name)),
    }
}

fn native(
    binary: &Binary,
    filter: Option<&str>,
    environment: &[(&'static str, String)],
) -> Result<(String, bool, String)> {
    let skips = skips();
    let mut test = Command::new(&binary.path);
    test.args(binary.filter(filter))
        .current_dir(tests_dir())
        .env("LAB_SKIPS", &skips)
        .env("LAB_RESULTS", workspace::results())
        .envs(environment.iter().map(|(name, value)| (name, value)));
    let ran = tee(&mut test);
    let skipped = take(&skips)?;
    let (status, output) = ran?;
    Ok((output, status.success(), skipped))
}

/// The file for [`Tally::add_skips`], for `LAB_SKIPS`.
pub fn skips() -> PathBuf {
    workspace::lab().join(format!("skips-{}", std::process::id()))
}

/// Contents of a file that may not exist; it is gone afterwards.
pub fn take(path: &Path) -> Result<String> {
    if !path.exists() {
        return Ok(String::new());
    }
    let text = fs::read_to_string(path).context("LAB_SKIPS")?;
    fs::remove_file(path).context("LAB_SKIPS")?;
    Ok(text)
}

/// Where cargo would run these tests.
pub fn tests_dir() -> PathBuf {
    workspace::root().join("tests")
}

#[cfg(test)]
mod tests {
    use super::test_binary;

    #[test]
    fn only_test_binaries_are_listed() {
        let line = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["{kind}"],"name":"vm_x"}},
                "profile":{{"test":{test}}},"executable":"/t/vm_x-1"}}"#
            )
        };
        let found = test_binary(&line("test", true)).unwrap();
        assert_eq!(found.name, "vm_x");
        assert!(found.is_for_vm());
        assert!(test_binary(&line("bin", false)).is_none());
        assert!(test_binary(&line("bin", true)).is_none());
        assert!(test_binary(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
