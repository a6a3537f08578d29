//! The OPTIONS of a manual page, from the definition of the command line.
//!
//! Included by the tests of each program, which compares its page with what
//! this makes of it, and rewrites the page with `MAN=write`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command};

/// Compares the OPTIONS of `man/PAGE` with the command line.
///
/// # Panics
/// If they differ, unless `MAN=write`: then the page is rewritten.
pub fn options_are_generated(page: &str, mut command: Command) {
    command.build();
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../man")
        .join(page);
    let text = std::fs::read_to_string(&path).expect(page);
    let (before, rest) = text.split_once(".SH OPTIONS\n").expect("OPTIONS");
    let (_, after) = rest.split_once("\n.SH ").expect("a section after OPTIONS");
    let wanted = format!("{before}.SH OPTIONS\n{}.SH {after}", options(&command));
    if std::env::var("MAN").as_deref() == Ok("write") {
        std::fs::write(&path, &wanted).expect(page);
    } else if text != wanted {
        panic!("{page} is not what --help says; MAN=write cargo test rewrites it:\n{wanted}");
    }
}

/// Roff text without its escapes.
#[must_use]
pub fn plain(page: &str) -> String {
    let fonts = ["\\fB", "\\fI", "\\fR"];
    let text = fonts
        .iter()
        .fold(page.to_owned(), |text, font| text.replace(font, ""));
    text.replace("\\-", "-").replace('\\', "")
}

/// Fails if a page names a long option that no command has, but for `others`.
///
/// # Panics
/// With that option.
pub fn options_exist(page: &str, mut command: Command, others: &[&str]) {
    command.build();
    let arguments = command.get_subcommands().flat_map(Command::get_arguments);
    let known: Vec<&str> = arguments.filter_map(Arg::get_long).collect();
    for rest in page.split("--").skip(1) {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let option = end.map_or(rest, |end| rest.split_at(end).0);
        let is_known = known.contains(&option) || option == "version";
        assert!(is_known || others.contains(&option), "no option --{option}");
    }
}

/// What clap adds.
const HELP: &str = "\
.TP
\\fB\\-h\\fR, \\fB\\-\\-help\\fR
Print help.
.TP
\\fB\\-V\\fR, \\fB\\-\\-version\\fR
Print version.
";

/// An option and the commands that have it.
struct Shared<'a> {
    arg: &'a Arg,
    commands: Vec<&'a str>,
}

fn options(command: &Command) -> String {
    let mut order = Vec::new();
    let mut all: BTreeMap<&str, Shared<'_>> = BTreeMap::new();
    for sub in command.get_subcommands() {
        for arg in sub.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            if matches!(long, "help" | "version") {
                continue;
            }
            if !all.contains_key(long) {
                order.push(long);
            }
            let commands = Vec::new();
            let shared = all.entry(long).or_insert(Shared { arg, commands });
            // The first description counts, unless another is longer.
            if arg.get_long_help().is_some() && shared.arg.get_long_help().is_none() {
                shared.arg = arg;
            }
            shared.commands.push(sub.get_name());
        }
    }
    let count = command.get_subcommands().count();
    let mut text = String::new();
    for shared in order.iter().filter_map(|long| all.get(long)) {
        // Every command but `help` has an option that all share.
        let everywhere = shared.commands.len() + 1 >= count;
        entry(&mut text, shared, everywhere);
    }
    text + HELP
}

fn help(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    help.map(ToString::to_string).unwrap_or_default()
}

fn entry(out: &mut String, shared: &Shared<'_>, everywhere: bool) {
    let arg = shared.arg;
    let mut names = Vec::new();
    names.extend(arg.get_short().map(|short| format!("\\fB\\-{short}\\fR")));
    names.extend(
        arg.get_long()
            .map(|long| format!("\\fB\\-\\-{}\\fR", roff(long))),
    );
    let mut tag = names.join(", ");
    if arg.get_action().takes_values() {
        let values: Vec<_> = arg
            .get_value_names()
            .unwrap_or_default()
            .iter()
            .map(|value| roff(value))
            .collect();
        let _ = write!(tag, " \\fI{}\\fR", values.join(" "));
    }
    let _ = writeln!(out, ".TP\n{tag}");
    let help = help(arg);
    let mut paragraphs: Vec<String> = help.split("\n\n").map(sentence).collect();
    let possible = arg.get_possible_values();
    if arg.get_action().takes_values() && !possible.is_empty() {
        let names: Vec<_> = possible.iter().map(|value| value.get_name()).collect();
        paragraphs.push(format!("One of {}.", names.join(", ")));
    }
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        paragraphs.push(format!("Default: {}.", defaults.join(", ")));
    }
    if !everywhere {
        paragraphs.push(format!("With {}.", shared.commands.join(", ")));
    }
    let text = paragraphs.join(" ");
    for line in wrapped(&text) {
        let _ = writeln!(out, "{line}");
    }
}

/// One line that ends with a full stop.
fn sentence(paragraph: &str) -> String {
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.ends_with(['.', ':', '!', '?']) {
        line
    } else {
        line + "."
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let full = lines
            .last()
            .is_some_and(|line| !line.is_empty() && line.len() + word.len() > 78);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&roff(word));
        }
    }
    // A line must not begin like a request.
    lines
        .into_iter()
        .map(|line| {
            if line.starts_with(['.', '\'']) {
                format!("\\&{line}")
            } else {
                line
            }
        })
        .collect()
}

fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
