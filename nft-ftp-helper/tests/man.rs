//! The man pages say what `--help` and the configuration file know.

#[path = "../../tests/src/man.rs"]
mod man;

use clap::CommandFactory;
use nft_ftp_helper::cli::Cli;
use nft_ftp_helper::core::Reason;
use nft_ftp_helper::stats::Figure;

#[test]
fn options_on_the_page_are_generated() {
    man::options_are_generated("nft-ftp-helper.8", Cli::command());
}

#[test]
fn every_command_and_option_is_on_the_page() {
    let page = man::plain(include_str!("../../man/nft-ftp-helper.8"));
    let mut command = Cli::command();
    command.build();
    for sub in command.get_subcommands() {
        let name = sub.get_name();
        assert!(page.contains(&format!(".B {name}\n")), "command {name}");
        for option in sub.get_arguments().filter_map(|a| a.get_long()) {
            assert!(page.contains(&format!("--{option}")), "{name} --{option}");
        }
    }
}

/// And nothing is on the page that `--help` does not know.
#[test]
fn every_option_on_the_page_exists() {
    let page = man::plain(include_str!("../../man/nft-ftp-helper.8"));
    man::options_exist(&page, Cli::command(), &[]);
}

/// Every key of the example is on the page of the file.
#[test]
fn every_key_is_on_the_page() {
    let page = man::plain(include_str!("../../man/nft-ftp-helper.toml.5"));
    let example = include_str!("../../examples/helper.toml");
    let keys = example
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "));
    for (key, _) in keys {
        assert!(page.contains(&format!(".BR {key} ")), "key {key}");
    }
}

/// Every counter that `status` and the metrics have is explained.
#[test]
fn every_counter_is_on_the_page() {
    let page = man::plain(include_str!("../../man/nft-ftp-helper.8"));
    let (_, section) = page.split_once(".SH COUNTERS").unwrap();
    let (section, _) = section.split_once("\n.SH ").unwrap();
    let named = |name: &str| {
        let bold = section.lines().filter(|l| l.starts_with(".B"));
        bold.flat_map(|l| l.split([' ', '"', ',']))
            .any(|word| word == name)
    };
    for figure in Figure::ALL {
        assert!(named(figure.describe().0), "{figure:?}");
    }
    for reason in Reason::ALL {
        assert!(named(reason.as_str()), "{reason}");
    }
}
