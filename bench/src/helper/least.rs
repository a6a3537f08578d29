//! The least a userspace helper can do: receive what waits, and accept it, with
//! nothing read but the packets' numbers. What remains is the kernel's: the
//! packet's way to the queue, the wake-up, and the way on, which it goes inside
//! the system call with the verdict.

use anyhow::Result;
use netfilter::cthelper::{self, Helper, HelperStatus, Policy};
use netfilter::queue::{self, CopyMode, Flags, Verdict, With};
use netfilter::socket::{Received, RecvBuf};
use netfilter::tuple::{AF_INET, IPPROTO_TCP};
use netfilter::{Messages, Name, Socket};

/// Its name in the ruleset.
pub const NAME: &str = "least";
/// What it prints once it serves.
pub const READY: &str = "serving";
const QUEUE: u16 = 4;

/// Accepts what comes, until it is killed.
pub fn run() -> Result<()> {
    // So that a profile tells it from what measures.
    std::fs::write("/proc/thread-self/comm", NAME)?;
    let mut socket = Socket::open()?;
    socket.request("binding", |buf, seq| queue::bind(buf, QUEUE, seq))?;
    socket.request("configuring", |buf, seq| {
        queue::configure(buf, QUEUE, CopyMode::Meta, 1024, Flags::empty(), seq)
    })?;
    let helper = registration()?;
    socket.request("registering", |buf, seq| cthelper::new(buf, &helper, seq))?;
    println!("{READY}");
    let (mut buf, mut out) = (RecvBuf::new(), Vec::new());
    loop {
        let mut received = socket.receive(&mut buf)?;
        out.clear();
        while let Received::Datagram(datagram) = received {
            for (_, id) in Messages::new(datagram).filter_map(|m| queue::packet_id(&m)) {
                queue::verdict(&mut out, QUEUE, id, Verdict::Accept, With::default(), 0)?;
            }
            received = socket.try_receive(&mut buf)?;
        }
        socket.send(&out, "sending verdicts")?;
    }
}

fn registration() -> Result<Helper> {
    let name = Name::new(NAME.as_bytes())?;
    Ok(Helper {
        name,
        family: AF_INET,
        l4proto: IPPROTO_TCP,
        queue: QUEUE,
        policies: vec![Policy {
            name,
            max: 1,
            timeout_secs: 300,
        }],
        priv_data_len: 32,
        status: HelperStatus::Enabled,
    })
}
