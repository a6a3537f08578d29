//! Man pages, examples, completions and unit agree with the program.

#[path = "../../tests/src/man.rs"]
mod man;

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use nft_ftp_ruleset::{cli::Cli, commands, input};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// Long options of every subcommand, and the subcommands' names.
fn defined() -> (Vec<String>, Vec<String>) {
    let mut command = Cli::command();
    command.build();
    let options = command
        .get_subcommands()
        .flat_map(|sub| sub.get_arguments().filter_map(|arg| arg.get_long()));
    let names = command.get_subcommands().map(|sub| sub.get_name());
    (
        options.map(str::to_owned).collect(),
        names.map(str::to_owned).collect(),
    )
}

#[test]
fn options_on_the_page_are_generated() {
    man::options_are_generated("nft-ftp-ruleset.8", Cli::command());
}

#[test]
fn every_command_and_option_is_on_the_page() {
    let page = man::plain(&read("man/nft-ftp-ruleset.8"));
    let (options, commands) = defined();
    assert!(options.len() > 8 && commands.len() > 8, "{options:?}");
    for name in commands {
        assert!(page.contains(&format!(".B {name}\n")), "command {name}");
    }
    for option in options
        .iter()
        .filter(|name| *name != "help" && *name != "version")
    {
        assert!(page.contains(&format!("--{option}")), "option --{option}");
    }
}

#[test]
fn every_option_on_the_page_exists() {
    let page = man::plain(&read("man/nft-ftp-ruleset.8"));
    man::options_exist(&page, Cli::command(), &["queue-num", "helper-name"]);
}

/// Every key of the commented policy, also those that are commented out.
#[test]
fn every_key_of_the_example_is_on_the_page() {
    let page = man::plain(&read("man/nft-ftp-ruleset.toml.5"));
    let mut keys = 0;
    for line in commands::EXAMPLE.lines() {
        let line = line.trim_start_matches("# ");
        let Some((key, _)) = line.split_once(" = ") else {
            continue;
        };
        if key.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
            keys += 1;
            assert!(page.contains(&format!("{key} ")), "key {key}");
        }
    }
    assert!(keys > 30, "{keys} keys");
}

#[test]
fn every_example_is_a_valid_policy() {
    let directory = root().join("examples");
    let entries = std::fs::read_dir(&directory).expect("examples");
    let mut count = 0;
    for path in entries.map(|entry| entry.expect("entry").path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("ruleset") && name.ends_with(".toml") {
            count += 1;
            if let Err(error) = input::read(Some(&path)) {
                panic!("{error}");
            }
        }
    }
    assert!(count > 0, "no examples in {}", directory.display());
}

#[test]
fn completions_name_every_command() {
    let (_, names) = defined();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Command::new(support::PROGRAM)
            .args(["completions", shell])
            .output()
            .expect("program starts");
        let script = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{shell}");
        for name in &names {
            assert!(script.contains(name.as_str()), "{shell}: {name}");
        }
    }
}

/// Exposure at most 2.0, as systemd counts it.
#[test]
fn unit_is_sandboxed() {
    let unit = root().join("systemd/nft-ftp-ruleset.service");
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=20"])
        .arg(&unit)
        .output();
    match output {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        ),
        Err(error) => support::skip(&format!("systemd-analyze: {error}")),
    }
}
