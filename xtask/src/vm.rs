//! A VM under plain emulation that shares this machine's files read-only,
//! boots one of Debian's kernels, and works through a list of jobs.
//!
//! What a job printed and how it ended comes back in files, not through the
//! console: so it is complete and true, and a VM that crashed, hung or never
//! came up can't look like success.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::VmArgs;
use crate::guard::Guard;
use crate::kernels::{self, Kernel};
use crate::shell::command;
use crate::test::lab;
use crate::{deps, virtme, workspace};

/// What boot and shutdown may take under emulation.
const BOOT: Duration = Duration::from_secs(240);

/// Between two looks at the guest's files.
const PAUSE: Duration = Duration::from_millis(200);

/// A second, cached view of the host's files: guest.sh says why.
const CACHED_ROOT: &str = "--qemu-opts=-fsdev local,id=lab-root,path=/,security_model=none,\
                           readonly=on,multidevs=remap \
                           -device virtio-9p-pci,fsdev=lab-root,mount_tag=lab-root";

const GUEST: &str = include_str!("guest.sh");

/// One command to run inside.
pub struct Job {
    /// Names its files and its line in reports.
    pub name: String,
    /// How long it may take.
    pub limit: Duration,
    /// For sh(1).
    pub command: String,
}

/// How a job ended.
pub struct Outcome {
    /// The job's name.
    pub name: String,
    /// Its exit status; `None` if the VM ended before the job did.
    pub code: Option<i32>,
    /// All it printed.
    pub output: String,
    /// Wall clock time, as the host saw it.
    pub took: Duration,
}

/// A booted VM with its list of jobs.
pub struct Vm {
    dir: PathBuf,
    child: Child,
    guard: Guard,
    deadline: Instant,
    since: Instant,
}

impl Vm {
    /// Boots a kernel and gives it its jobs. `environment` is set for each.
    pub fn boot(kernel: &Kernel, jobs: &[Job], environment: &[(&str, String)]) -> Result<Self> {
        Self::start(&kernel.name, jobs, environment, |dir| vng(kernel, dir))
    }

    /// Writes the list of jobs, and starts what `emulator` returns for the
    /// directory it is in.
    pub fn start(
        name: &str,
        jobs: &[Job],
        environment: &[(&str, String)],
        emulator: impl FnOnce(&Path) -> Result<Command>,
    ) -> Result<Self> {
        let dir = fresh_dir(name)?;
        fs::write(dir.join("jobs"), jobs.iter().map(line).collect::<String>())?;
        for job in jobs {
            fs::write(dir.join(format!("{}.sh", job.name)), &job.command)?;
        }
        fs::write(dir.join("environment"), exports(environment))?;
        fs::write(dir.join("guest.sh"), GUEST)?;
        let child = emulator(&dir)?.spawn().context("starting the VM")?;
        let guard = Guard::new(&child)?;
        let limit: Duration = jobs.iter().map(|job| job.limit).sum();
        let since = Instant::now();
        Ok(Self {
            dir,
            child,
            guard,
            deadline: since + BOOT + limit,
            since,
        })
    }

    /// The directory the guest writes to.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits for a job to end, in the order of the list. If the VM ends
    /// first, the outcome has no exit status and the console's end as output.
    ///
    /// `partial` is called now and then with all that the job has printed.
    pub fn wait_for(&mut self, name: &str, mut partial: impl FnMut(&str)) -> Result<Outcome> {
        let status = self.dir.join(format!("{name}.rc"));
        let code = loop {
            // Looked at before the files, so that none is missed.
            let alive = self.is_alive()?;
            partial(&self.output_of(name));
            if status.is_file() {
                break Some(fs::read_to_string(&status)?.trim().parse()?);
            }
            if !alive {
                break None;
            }
            std::thread::sleep(PAUSE);
        };
        let mut output = self.output_of(name);
        if code.is_none() {
            output += &format!("the VM ended before this job did\n{}", self.console_tail());
        }
        let took = self.since.elapsed();
        self.since = Instant::now();
        Ok(Outcome {
            name: name.to_owned(),
            code,
            output,
            took,
        })
    }

    /// Waits for an orderly end after the last job.
    pub fn finish(mut self) -> Result<()> {
        while self.is_alive()? {
            std::thread::sleep(PAUSE);
        }
        if !self.dir.join("finished").is_file() {
            bail!("the VM did not finish:\n{}", self.console_tail());
        }
        Ok(())
    }

    /// False once the VM has ended, or used up its time and been killed.
    fn is_alive(&mut self) -> Result<bool> {
        if self.child.try_wait().context("the VM")?.is_some() {
            return Ok(false);
        }
        if Instant::now() > self.deadline {
            self.kill();
            return Ok(false);
        }
        Ok(true)
    }

    fn output_of(&self, name: &str) -> String {
        let bytes = fs::read(self.dir.join(format!("{name}.out"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines of the console: a panic is there.
    fn console_tail(&self) -> String {
        let bytes = fs::read(self.dir.join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(40);
        let tail = lines.get(from..).unwrap_or_default().join("\n");
        format!("--- end of {}/console\n{tail}\n---\n", self.dir.display())
    }

    /// Ends the emulator and what started it: its process group.
    fn kill(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = command("kill", &["-KILL", "--", &group]).status();
        let _ = self.child.wait();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
        self.guard.stand_down();
    }
}

/// `cargo xtask vm`: one command, its output as it comes, its exit status.
pub fn run(args: &VmArgs) -> Result<ExitCode> {
    deps::for_lab(true)?;
    let kernel = kernels::get(&args.kernel)?;
    let root = workspace::root().display().to_string();
    let job = Job {
        name: "command".to_owned(),
        limit: Duration::from_secs(args.limit),
        command: format!("cd {}\n{}", quoted(&root), args.command),
    };
    let environment = lab::environment(false)?;
    let mut vm = Vm::boot(&kernel, &[job], &environment)?;
    let mut shown = 0;
    let outcome = vm.wait_for("command", |output| shown = show(output, shown))?;
    show(&outcome.output, shown);
    vm.finish()?;
    let code = outcome.code.and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Prints what has come since; how much has been printed now.
pub fn show(output: &str, shown: usize) -> usize {
    let new = output.get(shown..).unwrap_or_default();
    print!("{new}");
    // The end of a line isn't the end of what there is.
    let _ = std::io::stdout().flush();
    shown + new.len()
}

/// The command that boots the kernel and runs the guest's script.
fn vng(kernel: &Kernel, dir: &Path) -> Result<Command> {
    let bin = virtme::bin()?;
    let console = File::create(dir.join("console"))?;
    let mut vng = Command::new(bin.join("vng"));
    // virtme-run must be on the path, and so must depmod and qemu.
    let path = std::env::var("PATH").unwrap_or_default();
    vng.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", bin.display()))
        .env("HOME", dir)
        .env("TMPDIR", dir)
        .current_dir(workspace::root())
        .arg("--verbose")
        .arg("--run")
        .arg(&kernel.image)
        .args(["--force-9p", "--memory", "2G", "--cpus", "2"])
        .args(["--user", "root", "--rwdir"])
        .arg(dir)
        .args(["--exec", &format!("sh {0}/guest.sh {0}", dir.display())])
        .arg(CACHED_ROOT)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .process_group(0);
    // The same everywhere, unless someone knows that KVM works and wants it.
    if std::env::var_os("LAB_KVM").is_none() {
        vng.arg("--disable-kvm");
    }
    Ok(vng)
}

/// target/lab/vm/KERNEL-PID: kept afterwards for whoever looks into a
/// failure, until the next run.
fn fresh_dir(kernel: &str) -> Result<PathBuf> {
    let all = workspace::lab().join("vm");
    for old in fs::read_dir(&all).into_iter().flatten().flatten() {
        let name = old.file_name().to_string_lossy().into_owned();
        let pid = name.rsplit('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(old.path());
        }
    }
    let dir = all.join(format!("{kernel}-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

fn line(job: &Job) -> String {
    format!("{} {}\n", job.name, job.limit.as_secs())
}

fn exports(environment: &[(&str, String)]) -> String {
    environment
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
        .collect()
}

/// A word for sh(1).
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        for word in ["plain", "two words", "it's", "$HOME `id`", ""] {
            let echo = format!("printf %s {}", quoted(word));
            let out = command("sh", &["-c", &echo]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), word);
        }
    }

    #[test]
    fn a_job_is_one_line() {
        let job = Job {
            name: "vm_x".to_owned(),
            limit: Duration::from_secs(90),
            command: "true --flag".to_owned(),
        };
        assert_eq!(line(&job), "vm_x 90\n");
    }
}
