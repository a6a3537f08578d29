//! `nft-ftp-helper watch`: expectation events straight from the kernel, and
//! refusals from the daemon if one runs.

use crate::control::Request;
use crate::present::{change_name, change_tag, expectation_json, expectation_line};
use crate::support::Failure;
use daemon::{Client, Reactor, signal::Signals};
use netfilter::conntrack::group;
use netfilter::message::Messages;
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Name, Socket, expect};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

const KERNEL: u64 = 0;
const SIGNALS: u64 = 1;
/// Receive buffer: some 50,000 events.
const BUFFER: usize = 64 << 20;

/// Prints until a signal comes or the reader goes away.
///
/// # Errors
/// No privilege to listen to conntrack events.
pub fn run(control: &Path, helper: Option<Name>, json: bool) -> Result<(), Failure> {
    let signals = Signals::new().map_err(|e| Failure::system("blocking signals", e))?;
    let socket = Socket::open()?;
    socket.set_receive_buffer(BUFFER)?;
    for group in [group::EXP_NEW, group::EXP_DESTROY] {
        socket.join(group).map_err(crate::support::registry)?;
    }
    let reactor = Reactor::new().map_err(|e| Failure::system("creating epoll", e))?;
    let add = |fd: std::os::fd::BorrowedFd<'_>, token| {
        reactor
            .add(fd, token)
            .map_err(|e| Failure::system("watching a descriptor", e))
    };
    add(std::os::fd::AsFd::as_fd(&socket), KERNEL)?;
    add(std::os::fd::AsFd::as_fd(&signals), SIGNALS)?;
    std::thread::spawn({
        let control = control.to_owned();
        move || refusals(&control, json)
    });
    let mut buf = RecvBuf::new();
    let mut ready = Vec::new();
    loop {
        ready.clear();
        reactor
            .wait(None, &mut ready)
            .map_err(|e| Failure::system("waiting for events", e))?;
        if ready.contains(&SIGNALS) {
            return Ok(());
        }
        if !drain(&socket, &mut buf, helper, json)? {
            return Ok(());
        }
    }
}

/// Prints what the kernel reports; false if nobody reads any more.
fn drain(
    socket: &Socket,
    buf: &mut RecvBuf,
    helper: Option<Name>,
    json: bool,
) -> Result<bool, Failure> {
    loop {
        let datagram = match socket.try_receive(buf)? {
            Received::Empty => return Ok(true),
            Received::Overrun => {
                eprintln!("nft-ftp-helper: events were lost: the socket buffer was full");
                continue;
            }
            Received::Datagram(datagram) => datagram,
        };
        for message in Messages::new(datagram) {
            let Ok(Some(event)) = expect::Event::decode(&message) else {
                continue;
            };
            let e = &event.expectation;
            if helper.is_some() && e.helper != helper {
                continue;
            }
            let line = if json {
                json!({"event": change_name(event.change), "expectation": expectation_json(e)})
                    .to_string()
            } else {
                format!("{} {}", change_tag(event.change), expectation_line(e))
            };
            if print(&line).is_err() {
                return Ok(false);
            }
        }
    }
}

fn print(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Prints what the daemon refuses, as long as it runs. Without a daemon there
/// is nothing to print: expectations are shown all the same.
fn refusals(control: &Path, json: bool) {
    let Ok(mut client) = Client::connect(control) else {
        eprintln!(
            "nft-ftp-helper: no daemon at {}: refusals are not shown",
            control.display()
        );
        return;
    };
    if client.send(&Request::Watch).is_err() {
        return;
    }
    while let Ok(Some(event)) = client.receive() {
        let line = if json {
            event.to_string()
        } else {
            refusal_line(&event)
        };
        if print(&line).is_err() {
            return;
        }
    }
}

fn refusal_line(event: &Value) -> String {
    let text = |key: &str| match event.get(key) {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    format!(
        "{:>9} {} {} addr={} port={} master-src={} master-dst={}",
        format!("[{}]", text("event").to_uppercase()),
        text("reason"),
        text("dir"),
        text("addr"),
        text("port"),
        text("client"),
        text("server"),
    )
}
