//! `cargo xtask deb`: the Debian package, as packaging/Cargo.toml describes it
//! to cargo-deb.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cli::DebArgs;
use crate::shell::{cargo, command, output, run as run_command, step, succeeds};
use crate::{deps, tools, workspace};

/// What is packaged, each with completions.
const PROGRAMS: &[&str] = &["ctsync", "nft-ftp-helper", "nft-ftp-ruleset"];

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// For use.
    Release,
    /// What tests have built anyway.
    Debug,
}

impl Profile {
    /// As tests build them, or no more than what is packaged.
    fn build(self) -> Command {
        let mut build = cargo(&["build", "--locked", "--bins"]);
        match self {
            Self::Debug => build.arg("--workspace"),
            Self::Release => build.arg("--release"),
        };
        for program in PROGRAMS {
            if self == Self::Release {
                build.args(["-p", program]);
            }
        }
        build
    }

    /// Its directory below cargo's target directory.
    fn dir(self) -> PathBuf {
        workspace::target().join(match self {
            Self::Release => "release",
            Self::Debug => "debug",
        })
    }
}

/// Builds it, prints where it is, and asks lintian where there is one.
pub fn run(args: &DebArgs) -> Result<ExitCode> {
    let profile = match args.debug {
        true => Profile::Debug,
        false => Profile::Release,
    };
    deps::for_deb()?;
    let deb = build(profile)?;
    let path = deb.display().to_string();
    if succeeds(&mut command("lintian", &["--version"])) {
        step("lintian");
        let args = ["--tag-display-limit", "0", "--fail-on", "error,warning"];
        run_command(command("lintian", &args).arg(&path))?;
    } else {
        step("lintian: not installed, so the package was not checked");
    }
    println!("{path}");
    Ok(ExitCode::SUCCESS)
}

/// The package, built from programs of this profile.
pub fn build(profile: Profile) -> Result<PathBuf> {
    step("building programs");
    run_command(&mut profile.build())?;
    let dir = profile.dir();
    let extra = dir.join("packaging");
    completions(&dir, &extra)?;
    changelog(&extra)?;
    step("building the package");
    let out = workspace::target().join("debian");
    fs::create_dir_all(&out)?;
    let deb = out.join("nft-ftp.part.deb");
    run_command(cargo_deb(profile)?.arg(&deb))?;
    named(&deb)
}

fn cargo_deb(profile: Profile) -> Result<Command> {
    let name = match profile {
        Profile::Release => "release",
        Profile::Debug => "dev",
    };
    let mut deb = Command::new(tools::cargo_deb()?);
    deb.args(["--quiet", "--no-build", "--locked", "--strip"])
        .args(["--package", "nft-ftp", "--profile", name])
        .args(["--compress-type", "xz", "--compress-system"])
        .arg("--output")
        .current_dir(workspace::root());
    Ok(deb)
}

/// Renames it as Debian names packages: NAME_VERSION_ARCHITECTURE.deb.
fn named(deb: &Path) -> Result<PathBuf> {
    let format = "${Package}_${Version}_${Architecture}.deb";
    let show = ["-W", "--showformat", format];
    let name = output(command("dpkg-deb", &show).arg(deb))?;
    ensure!(name.ends_with(".deb"), "dpkg-deb printed {name:?}");
    let path = deb.with_file_name(name.trim());
    fs::rename(deb, &path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// One file per program and shell, named as each shell looks for it.
fn completions(programs: &Path, into: &Path) -> Result<()> {
    for program in PROGRAMS {
        for (shell, file) in [
            ("bash", (*program).to_owned()),
            ("zsh", format!("_{program}")),
            ("fish", format!("{program}.fish")),
        ] {
            let path = programs.join(program);
            let script = output(Command::new(&path).args(["completions", shell]))?;
            ensure!(script.contains(program), "{program} completions {shell}");
            let dir = into.join(shell);
            fs::create_dir_all(&dir)?;
            fs::write(dir.join(file), script)?;
        }
    }
    Ok(())
}

/// Debian's changelog leads to ours; dated as the last commit is, so that the
/// same sources give the same package. In an unpacked archive, and for root in
/// a clone of somebody else's, git has nothing to say: then as the file is.
fn changelog(into: &Path) -> Result<()> {
    let dated =
        |program, args: &[&str]| output(command(program, args).current_dir(workspace::root()));
    let date = dated("git", &["log", "-1", "--format=%aD"])
        .or_else(|_| dated("date", &["-R", "-r", "CHANGELOG.md"]))?;
    let text = format!(
        "nft-ftp ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md of the source.\n\n \
         -- nft-ftp maintainers <maintainers@nft-ftp.example>  {}\n",
        env!("CARGO_PKG_VERSION"),
        date.trim()
    );
    let plain = into.join("changelog");
    fs::write(&plain, text)?;
    let compressed = File::create(into.join("changelog.gz"))?;
    run_command(command("gzip", &["-9nc"]).arg(&plain).stdout(compressed))
}
