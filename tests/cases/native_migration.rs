//! A pair moves from conntrackd to ctsync as the guide says, while an FTP
//! session goes on: with the kernel's helper, which both can mirror.

use std::fs;
use std::io::Read;
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use lab::check::{noise, set_mode, write_readable};
use lab::conntrackd::of_pair;
use lab::firewall::Nat;
use lab::ftp::server::{Program, Server};
use lab::ftp::session::{Data, Ftp, is_file};
use lab::nodes::{load_rules, name};
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::topology::Family;
use lab::vrrp;
use lab::wait::{patience, until};
use lab::walk::Walk;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::KernelFtp,
    Need::Server("vsftpd"),
    Need::Program("conntrackd"),
    Need::Program("keepalived"),
    Need::Built("ctsync"),
];

/// More than the buffers on its way hold.
const LARGE: usize = 64 << 20;

/// What its manual recommends, and Debian's package has as an example.
const SCRIPT: &str = "#!/bin/sh
echo \"$1\" >> /run/conntrackd-told
case $1 in
primary) for what in -c -f -R -B; do conntrackd -C /etc/conntrackd/conntrackd.conf $what; done ;;
backup) for what in -s -t -n; do conntrackd -C /etc/conntrackd/conntrackd.conf $what; done ;;
fault) conntrackd -C /etc/conntrackd/conntrackd.conf -t ;;
esac
";

fn configuration(node: Node) -> String {
    let paths = ["on", "/run/conntrack.lock", "/run/conntrackd.ctl"];
    of_pair(node, paths, "")
}

/// keepalived.conf of a pair with conntrackd, from ours.
fn keepalived(node: Node) -> Result<String> {
    let text = vrrp::configuration(
        node,
        &vrrp::Scripts {
            check: "/bin/true".to_owned(),
            primary: "/etc/conntrackd/primary-backup.sh primary".to_owned(),
            backup: "/etc/conntrackd/primary-backup.sh backup".to_owned(),
            fault: "/etc/conntrackd/primary-backup.sh fault".to_owned(),
        },
    )?;
    ensure!(text.contains("conntrackd/primary-backup.sh primary"));
    Ok(text)
}

/// Both firewalls with conntrackd and keepalived; fw-1 is active.
fn under_conntrackd(walk: &Walk<'_>) -> Result<()> {
    for node in Node::BOTH {
        let name = name(node);
        for (path, text) in [
            ("/etc/conntrackd/conntrackd.conf", configuration(node)),
            ("/etc/conntrackd/primary-backup.sh", SCRIPT.to_owned()),
            ("/etc/keepalived/keepalived.conf", keepalived(node)?),
        ] {
            let file = walk.file(name, path)?;
            fs::create_dir_all(file.parent().context("a directory")?)?;
            fs::write(&file, text)?;
        }
        let script = walk.file(name, "/etc/conntrackd/primary-backup.sh")?;
        set_mode(&script, 0o755)?;
        walk.run(name, "systemctl start conntrackd")?;
        let answers = || walk.run(name, "conntrackd -s").ok();
        until("conntrackd to answer", patience(), answers)?;
        walk.run(name, "systemctl start keepalived")?;
        let role = match node {
            Node::One => "primary",
            Node::Two => "backup",
        };
        let told = walk.file(name, "/run/conntrackd-told")?;
        until("conntrackd's script to be called", patience(), || {
            let told = fs::read_to_string(&told).ok()?;
            (told.lines().last()? == role).then_some(())
        })
        .with_context(|| {
            walk.run(name, "cat /run/keepalived.log")
                .unwrap_or_default()
        })?;
    }
    Ok(())
}

/// conntrackd's copy of the session is complete.
fn mirrored_by_conntrackd(walk: &Walk<'_>) -> Result<()> {
    until("conntrackd's copies", patience(), || {
        let copies = walk.run("fw-2", "conntrackd -e").ok()?;
        (copies.matches("ESTABLISHED").count() >= 2).then_some(())
    })
}

#[test]
fn guide_from_conntrackd_moves_a_pair_without_losing_a_connection() -> Result<()> {
    lab::require!(needs NEEDS);
    let pair = Pair::new()?;
    let server = Server::start(Program::Vsftpd, &pair.server)?;
    let large = noise(7, LARGE);
    write_readable(server.tree.root().join("large.bin"), &large)?;
    load_rules(&pair, Nat::Snat)?;
    let mut walk = Walk::new(&pair)?;
    under_conntrackd(&walk)?;

    let outside = lab::topology::server_address(Family::V4);
    let mut ftp = Ftp::login(&pair.client, outside, Family::V4)?;
    let to = ftp.passive()?;
    let mut download = pair.client.enter(|| TcpStream::connect(to))?;
    ftp.ask("RETR large.bin", "150")?;
    let mut begun = vec![0; 1 << 20];
    download.read_exact(&mut begun)?;
    mirrored_by_conntrackd(&walk)?;

    let guide = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/from-conntrackd.md"
    ))?;
    let said = walk.follow(&guide)?;
    ensure!(said.contains("fw-2: primary"), "{said}");

    for name in ["fw-1", "fw-2"] {
        let told = fs::read_to_string(walk.file(name, "/run/conntrackd-told")?)?;
        ensure!(told.lines().count() <= 2, "{name}: still called: {told}");
        let runs = walk.run(name, "conntrackd -s");
        ensure!(runs.is_err(), "conntrackd runs at {name}");
    }
    download.set_read_timeout(Some(patience()))?;
    let mut all = begun;
    download.read_to_end(&mut all).context("the download")?;
    ensure!(all == large, "{} bytes arrived, or others", all.len());
    ftp.reply("226")?;
    let original = server.tree.file();
    for data in [Data::Passive, Data::Active] {
        is_file(&ftp.fetch(data)?, &original).with_context(|| format!("{data:?}"))?;
    }
    Ok(())
}
