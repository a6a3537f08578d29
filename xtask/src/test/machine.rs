//! The package under a real systemd: it is installed on a machine of its own,
//! which is booted twice. Tests in the module `first_boot` run in the first,
//! which ends with a reboot, those in `second_boot` in the second.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::lab::Binary;
use super::tally::Tally;
use super::vm::status;
use crate::deb::{self, Profile};
use crate::shell::step;
use crate::vm::{Job, show};
use crate::{deps, kernels, machine};

/// What the tests of one boot may take, the boot included.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Later kernels run with this suite's systemd.
const LATER_SUITE: &str = "trixie";

/// Runs the binary on a kernel; what goes wrong is counted as failed.
pub fn run(tally: &mut Tally, kernel: &str, binary: &Binary, full: bool) {
    let name = format!("{} (kernel {kernel})", binary.name);
    let ran = suite(kernel).and_then(|suite| match machine::is_possible(&suite)? {
        true => boot_and_run(tally, &suite, kernel, binary, full),
        false => {
            let what = "making the machine's file system needs root";
            tally.skip(&format!("{name}: {what}"));
            Ok(())
        }
    });
    if let Err(error) = ran {
        tally.fail(&format!("{name}: {error:#}"));
    }
}

fn suite(kernel: &str) -> Result<String> {
    match kernel {
        "6.1" => machine::own_suite(),
        _ => Ok(LATER_SUITE.to_owned()),
    }
}

fn boot_and_run(
    tally: &mut Tally,
    suite: &str,
    kernel: &str,
    binary: &Binary,
    full: bool,
) -> Result<()> {
    deps::for_deb()?;
    // What is shipped takes minutes to build; the tests are built already.
    let profile = if full {
        Profile::Release
    } else {
        Profile::Debug
    };
    let deb = deb::build(profile)?;
    let kernel = kernels::get(kernel)?;
    step(&format!(
        "machine with the systemd of {suite} and kernel {}",
        kernel.release
    ));
    let jobs = ["first_boot", "second_boot"].map(|module| Job {
        name: module.to_owned(),
        limit: LIMIT,
        command: format!(
            "exec {0}/tests --test-threads=1 {module}::",
            machine::GUEST_DIR
        ),
    });
    let inside = |name: &str| format!("{}/{name}", machine::GUEST_DIR);
    let environment = [
        ("LAB", "required".to_owned()),
        ("LAB_BIN", "/usr/sbin".to_owned()),
        ("LAB_MACHINE", machine::GUEST_DIR.to_owned()),
        ("LAB_DEB", inside("package.deb")),
    ];
    let mut vm = machine::boot(suite, &kernel, &jobs, &environment, |dir| {
        fs::copy(&binary.path, dir.join("tests")).context("copying the tests")?;
        fs::copy(&deb, dir.join("package.deb")).context("copying the package")?;
        Ok(())
    })?;
    for job in &jobs {
        let mut shown = 0;
        let outcome = vm.wait_for(&job.name, |output| shown = show(output, shown))?;
        show(&outcome.output, shown);
        let runner = format!(
            "{}, {} ({suite}, kernel {})",
            binary.name, job.name, kernel.name
        );
        tally.add(&runner, &outcome.output, outcome.code == Some(0));
        let seconds = outcome.took.as_secs();
        step(&format!("{runner}: {}, {seconds} s", status(outcome.code)));
    }
    vm.finish()
}
