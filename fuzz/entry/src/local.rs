//! What comes from this machine: configuration and control sockets.

use daemon::Server;
use nft_ftp_ruleset::policy::addresses::{AddressSets, Ranges};
use nft_ftp_ruleset::policy::{Policy, source::Source};
use nft_ftp_ruleset::{lower, render};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The daemons' files: read, or refused with a place in the text.
pub fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let path = Path::new("file.toml");
    match ctsync::config::Config::parse(text, path) {
        Ok(config) => {
            assert!(!config.links.is_empty());
            let _ = (config.level(), config.link_ends());
        }
        Err(e) => assert!(e.to_string().starts_with("file.toml:")),
    }
    match nft_ftp_helper::config::parse(text, path) {
        Ok(file) => {
            let args = nft_ftp_helper::cli::RunArgs::default();
            if let Ok(settings) = nft_ftp_helper::config::settings(&file, &args, None) {
                let _ = settings.live();
                assert!(settings.policies.of([10, 0, 0, 1].into()).min_port > 0);
            }
        }
        Err(e) => assert!(e.to_string().contains("file.toml:")),
    }
}

/// A policy: lowered and rendered, or refused with the line shown.
pub fn ruleset(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let _ = Ranges::parse(text);
    let policy = match Policy::parse(text) {
        Ok(policy) => policy,
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            let source = Source {
                name: "policy.toml".into(),
                text: text.into(),
            };
            assert!(source.report(&mistakes).contains("policy.toml"));
            return;
        }
    };
    let ruleset = lower::lower(&policy, AddressSets::collect(&policy, BTreeMap::new()));
    let mut out = String::new();
    render::nft::render(&ruleset, &mut out).expect("text");
    // Whatever the policy's names and texts are, they stay inside the table.
    let outside = |l: &&str| !l.is_empty() && !l.starts_with(['#', '\t']);
    let outside: Vec<&str> = out.lines().filter(outside).collect();
    let table = format!("table inet {}", policy.table.as_str());
    let (delete, open) = (format!("delete {table}"), format!("{table} {{"));
    let expected = [&*table, &*delete, &*open, "}"];
    assert_eq!(outside, expected, "{out}");
    let _ = render::json::render(&ruleset);
}

thread_local! {
    static SERVER: RefCell<(Server, tempfile::TempDir)> = RefCell::new(serve());
}

fn serve() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::bind(&dir.path().join("control")).expect("a socket");
    (server, dir)
}

/// Bytes on the control socket: requests of both daemons, or a closed
/// connection.
pub fn control(input: &[u8]) {
    SERVER.with_borrow_mut(|(server, dir)| {
        let mut client = UnixStream::connect(dir.path().join("control")).expect("a client");
        client.set_nonblocking(true).expect("a socket");
        let _ = server.poll();
        let mut answers = 0;
        for part in input.chunks(50_000) {
            let _ = client.write_all(part);
            for (id, request) in server.poll().expect("the server lives") {
                let line = request.to_string();
                let theirs = serde_json::from_value::<ctsync::run::answer::Ask>(request.clone());
                let ours = serde_json::from_value::<nft_ftp_helper::control::Request>(request);
                if let (Err(a), Err(b)) = (&theirs, &ours) {
                    server.send(id, &format!("{a}, {b}"));
                } else {
                    server.send(id, &line);
                }
                answers += 1;
            }
        }
        let mut got = Vec::new();
        let _ = client.read_to_end(&mut got);
        let lines = got.iter().filter(|b| **b == b'\n').count();
        assert!(lines <= answers);
        drop(client);
        for _ in 0..3 {
            let _ = server.poll();
        }
    });
}
