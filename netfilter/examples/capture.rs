//! Prints netlink messages of this kernel as hex, one a line: the source of
//! the golden files.
//!
//! `capture conntrack|expect|cthelper` dumps a table; `capture queue NUM NAME`
//! binds a queue, enables the registered IPv4 helper NAME, prints (and
//! accepts) packets until 5 seconds pass without one, and disables it again.

use netfilter::cthelper::HelperStatus;
use netfilter::message::{Message, Messages};
use netfilter::queue::{self, Verdict, With};
use netfilter::socket::{Received, RecvBuf};
use netfilter::tuple::{AF_INET, IPPROTO_TCP};
use netfilter::{Error, Name, Socket, conntrack, cthelper, expect};
use std::os::fd::AsFd;

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let table = args.next().unwrap_or_default();
    let mut socket = Socket::open()?;
    match table.as_str() {
        "conntrack" => socket.exchange(
            "dumping conntrack",
            |buf, seq| conntrack::dump(buf, &conntrack::DumpFilter::default(), seq),
            print,
        ),
        "expect" => socket.exchange(
            "dumping expectations",
            |buf, seq| expect::dump(buf, None, seq),
            print,
        ),
        "cthelper" => socket.exchange("dumping helpers", cthelper::dump, print),
        "queue" => {
            let num = args.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let name = args.next().unwrap_or_default();
            let name = name.parse().expect("helper name");
            enable(&mut socket, &name, HelperStatus::Enabled)?;
            capture_queue(&mut socket, num)?;
            enable(&mut socket, &name, HelperStatus::Disabled)
        }
        _ => {
            eprintln!("usage: capture conntrack|expect|cthelper|queue NUM NAME");
            std::process::exit(2);
        }
    }
}

fn print(message: &Message<'_>) {
    let hex: String = message.raw().iter().map(|b| format!("{b:02x}")).collect();
    println!("{hex}");
}

fn enable(socket: &mut Socket, name: &Name, status: HelperStatus) -> Result<(), Error> {
    socket.request("setting helper status", |buf, seq| {
        cthelper::set_status(buf, name, AF_INET, IPPROTO_TCP, status, seq)
    })
}

fn capture_queue(socket: &mut Socket, num: u16) -> Result<(), Error> {
    socket.request("binding queue", |buf, seq| queue::bind(buf, num, seq))?;
    socket.request("configuring queue", |buf, seq| {
        queue::configure(
            buf,
            num,
            queue::CopyMode::Packet,
            1024,
            queue::Flags::CONNTRACK,
            seq,
        )
    })?;
    let mut buf = RecvBuf::new();
    let idle = nix::poll::PollTimeout::from(5000u16);
    loop {
        let mut fds = [nix::poll::PollFd::new(
            socket.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        if nix::poll::poll(&mut fds, idle).unwrap_or(0) == 0 {
            return Ok(());
        }
        let Received::Datagram(datagram) = socket.try_receive(&mut buf)? else {
            continue;
        };
        for message in Messages::new(datagram) {
            print(&message);
            let Some((_, id)) = queue::packet_id(&message) else {
                continue;
            };
            let mut out = Vec::new();
            if queue::verdict(&mut out, num, id, Verdict::Accept, With::default(), 0).is_ok() {
                socket.send(&out, "sending verdict")?;
            }
        }
    }
}
