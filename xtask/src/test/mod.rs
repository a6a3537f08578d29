//! `cargo xtask test`: every check and test of the repository, summed up
//! truthfully in the last line.

mod checks;
pub mod lab;
mod licences;
mod machine;
mod msrv;
mod tally;
mod vm;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::TestArgs;
use crate::shell::{cargo, step, tee};
use crate::{deps, kernels};
use tally::Tally;

/// What a run consists of.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Formatting, lints, licences, oldest compiler.
    checks: bool,
    /// Unit and golden tests of all crates.
    unit: bool,
    /// The laboratory in namespaces of this kernel.
    native: bool,
    /// The laboratory in VMs with these kernels.
    kernels: Vec<String>,
}

impl Plan {
    fn new(args: &TestArgs) -> Self {
        let kernels = match (args.kernel.as_slice(), args.full) {
            ([], true) => kernels::names(),
            ([], false) => vec!["6.1".to_owned()],
            (chosen, _) => chosen.to_vec(),
        };
        let no_vm = args.no_vm || args.native;
        Self {
            checks: !args.vm && !args.native && args.filter.is_none(),
            unit: !args.vm && !args.native,
            native: !args.vm,
            kernels: if no_vm { Vec::new() } else { kernels },
        }
    }
}

/// Runs it all; the exit status is 0 if nothing failed.
pub fn run(args: &TestArgs) -> Result<ExitCode> {
    let plan = Plan::new(args);
    deps::for_lab(!plan.kernels.is_empty())?;
    let mut tally = Tally::default();
    let filter = args.filter.as_deref();
    if plan.checks {
        checks::run(&mut tally, args.full);
    }
    if plan.unit {
        unit_tests(&mut tally, filter, args.full);
    }
    lab::run(&mut tally, &plan, filter, args.full);
    if filter.is_some() && tally.is_empty() {
        tally.fail("no test has a name that contains the filter");
    }
    print!("{tally}");
    Ok(ExitCode::from(u8::from(!tally.failed.is_empty())))
}

/// Everything but the laboratory.
fn unit_tests(tally: &mut Tally, filter: Option<&str>, full: bool) {
    step("unit and golden tests");
    let mut cargo = cargo(&["test", "--workspace", "--exclude", "lab", "--no-fail-fast"]);
    match crate::peers::other_nft() {
        Ok(nft) => cargo.env("LAB_NFT", nft),
        Err(error) => return tally.fail(&format!("unit tests: {error:#}")),
    };
    let skips = lab::skips();
    cargo.env("LAB_SKIPS", &skips);
    if full {
        cargo.env("CTSYNC_SIM_SEEDS", "2000");
    }
    if let Some(filter) = filter {
        cargo.args(["--", filter]);
    }
    match tee(&mut cargo) {
        Ok((status, output)) => tally.add("unit tests", &output, status.success()),
        Err(error) => tally.fail(&format!("unit tests: {error:#}")),
    }
    match lab::take(&skips) {
        Ok(skips) => tally.add_skips("unit tests", &skips),
        Err(error) => tally.fail(&format!("unit tests: {error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> TestArgs {
        TestArgs {
            full: false,
            vm: false,
            native: false,
            no_vm: false,
            kernel: Vec::new(),
            filter: None,
        }
    }

    #[test]
    fn without_options_everything_runs_on_one_kernel() {
        let plan = Plan::new(&args());
        assert!(plan.checks && plan.unit && plan.native);
        assert_eq!(plan.kernels, ["6.1"]);
    }

    #[test]
    fn full_runs_every_kernel() {
        let full = TestArgs {
            full: true,
            ..args()
        };
        assert_eq!(Plan::new(&full).kernels, kernels::names());
    }

    #[test]
    fn vm_runs_nothing_else() {
        let plan = Plan::new(&TestArgs { vm: true, ..args() });
        assert!(!plan.checks && !plan.unit && !plan.native);
        assert_eq!(plan.kernels, ["6.1"]);
    }

    #[test]
    fn native_and_no_vm_boot_nothing() {
        let native = Plan::new(&TestArgs {
            native: true,
            ..args()
        });
        assert!(native.native && !native.unit && native.kernels.is_empty());
        let no_vm = Plan::new(&TestArgs {
            no_vm: true,
            ..args()
        });
        assert!(no_vm.native && no_vm.unit && no_vm.checks && no_vm.kernels.is_empty());
    }
}
