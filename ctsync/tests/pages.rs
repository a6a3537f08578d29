//! The man pages say what `--help` and the configuration know; the examples
//! can be used.

#[path = "../../tests/src/man.rs"]
mod man;

use clap::CommandFactory;
use ctsync::cli::Cli;
use ctsync::config::Config;
use std::path::Path;

fn page() -> String {
    man::plain(include_str!("../../man/ctsync.8"))
}

#[test]
fn options_on_the_page_are_generated() {
    man::options_are_generated("ctsync.8", Cli::command());
}

#[test]
fn every_command_and_option_is_on_the_page() {
    let page = page();
    let mut command = Cli::command();
    command.build();
    for sub in command.get_subcommands() {
        let name = sub.get_name();
        let bold = [
            format!(".B {name}\n"),
            format!(".BR {name} "),
            format!(" {name} \""),
            format!("\" {name}\n"),
        ];
        assert!(bold.iter().any(|b| page.contains(b)), "command {name}");
        for option in sub.get_arguments().filter_map(|a| a.get_long()) {
            assert!(page.contains(&format!("--{option}")), "{name} --{option}");
        }
    }
}

/// And nothing is on the page that `--help` does not know.
#[test]
fn every_option_on_the_page_exists() {
    man::options_exist(&page(), Cli::command(), &[]);
}

/// Every key of the examples is on the page of the file.
#[test]
fn every_key_is_on_the_page() {
    let page = man::plain(include_str!("../../man/ctsync.toml.5"));
    let example = include_str!("../../examples/ctsync-full.toml");
    let lines = example.lines().map(|l| l.strip_prefix('#').unwrap_or(l));
    for (key, _) in lines.filter_map(|l| l.split_once(" = ")) {
        if !key.contains(' ') {
            assert!(page.contains(&format!(".B {key}\n")), "key {key}");
        }
    }
}

#[test]
fn the_examples_are_valid() {
    for text in [
        include_str!("../../examples/ctsync.toml"),
        include_str!("../../examples/ctsync-full.toml"),
    ] {
        Config::parse(text, Path::new("example")).unwrap();
    }
}

/// What the full example shows as default is the default.
#[test]
fn commented_settings_are_the_defaults() {
    let text = include_str!("../../examples/ctsync-full.toml");
    let is_setting = |l: &str| {
        let key = l.strip_prefix('#').and_then(|l| l.split_once(" = "));
        key.is_some_and(|(k, _)| !k.is_empty() && !k.contains(' '))
    };
    let all: String = text
        .lines()
        .map(|l| {
            if is_setting(l) {
                l.trim_start_matches('#')
            } else {
                l
            }
        })
        .fold(String::new(), |s, l| s + l + "\n");
    let explicit = Config::parse(&all, Path::new("explicit")).unwrap();
    let implicit = Config::parse(text, Path::new("implicit")).unwrap();
    assert_eq!(format!("{explicit:?}"), format!("{implicit:?}"));
}

/// Steps of the wall clock must change nothing: nothing but `doctor`, which
/// only tells of it, reads it.
#[test]
fn nothing_is_decided_by_the_wall_clock() {
    fn look(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                look(&path, found);
            } else if !path.ends_with("doctor.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let wall = ["SystemTime", "CLOCK_REALTIME", "gettimeofday", "UNIX_EPOCH"];
                if wall.iter().any(|w| text.contains(w)) {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    let mut found = Vec::new();
    for sources in ["src", "../netfilter/src"] {
        look(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(sources),
            &mut found,
        );
    }
    assert!(found.is_empty(), "{found:?}");
}
