//! `cargo xtask demo`: builds everything and runs the laboratory's demo, in
//! namespaces of this kernel if it can do all that is needed, else in a VM.

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cli::{DemoArgs, Rival};
use crate::kernels;
use crate::shell::{cargo, is_root, run as run_command, step};
use crate::test::lab;
use crate::vm::{Job, Vm, quoted, show};
use crate::{deps, workspace};

/// What the demo may take under emulation, boot not included.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Runs it; exit status 0 if every step was verified.
pub fn run(args: &DemoArgs) -> Result<ExitCode> {
    let rival = args.with == Some(Rival::Conntrackd);
    deps::for_demo(args.vm, rival)?;
    step("building");
    run_command(&mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    let environment = lab::environment(false)?;
    if !args.vm && can_run_here(args, &environment)? {
        return here(args, &environment);
    }
    deps::for_demo(true, rival)?;
    in_vm(args, &environment)
}

/// Path of the demo program.
fn program() -> String {
    let path = workspace::target().join("debug/demo");
    path.display().to_string()
}

/// Its arguments.
fn arguments(args: &DemoArgs) -> &'static [&'static str] {
    match args.with {
        None => &[],
        Some(Rival::Conntrackd) => &["--with-conntrackd"],
    }
}

fn demo(args: &DemoArgs, environment: &[(&'static str, String)]) -> Command {
    let mut demo = Command::new(program());
    demo.args(arguments(args))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null());
    demo
}

/// Says what is missing, if something is.
fn can_run_here(args: &DemoArgs, environment: &[(&'static str, String)]) -> Result<bool> {
    if !is_root() {
        return Ok(false);
    }
    Ok(demo(args, environment).arg("--can-run").status()?.success())
}

fn here(args: &DemoArgs, environment: &[(&'static str, String)]) -> Result<ExitCode> {
    step("demo in namespaces of this kernel");
    let status = demo(args, environment).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn in_vm(args: &DemoArgs, environment: &[(&'static str, String)]) -> Result<ExitCode> {
    let kernel = kernels::get(&args.kernel)?;
    step(&format!(
        "demo in a VM with Debian's kernel {}; booting takes about 30 s",
        kernel.release
    ));
    let job = Job {
        name: "demo".to_owned(),
        limit: LIMIT,
        command: format!("exec {} {}", quoted(&program()), arguments(args).join(" ")),
    };
    let mut vm = Vm::boot(&kernel, &[job], environment)?;
    let mut shown = 0;
    let outcome = vm.wait_for("demo", |output| shown = show(output, shown))?;
    show(&outcome.output, shown);
    vm.finish()?;
    match outcome.code {
        Some(0) => Ok(ExitCode::SUCCESS),
        Some(124 | 137) => bail!("the demo did not end within {} s", LIMIT.as_secs()),
        _ => Ok(ExitCode::FAILURE),
    }
}
