//! Connections made of nothing, by netlink.

use anyhow::{Result, ensure};
use netfilter::message::Kind;
use netfilter::protoinfo::{ProtoInfo, Tcp};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Flow, Messages, Socket, Status, Tuple, conntrack, inject};

use crate::netns::Namespace;

/// Connection number `n`: TCP, established.
#[must_use]
pub fn flow(n: u32) -> Flow {
    let [_, b, c, d] = n.to_be_bytes();
    let orig = Tuple::tcp(
        [10, 200, b, c].into(),
        3000 + u16::from(d),
        [10, 201, 0, 1].into(),
        80,
    );
    let mut flow = Flow::new(orig, orig.inverse());
    flow.timeout = Some(3600);
    flow.status = Some(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED);
    flow.protoinfo = ProtoInfo::Tcp(Tcp {
        state: 3,
        ..Tcp::default()
    });
    flow
}

/// What to do to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Make them.
    Create,
    /// Give them a mark.
    Mark(u32),
    /// Delete them.
    Delete,
}

/// Does something to connections `from..to` in a namespace, at full rate.
///
/// # Errors
/// If the kernel refuses it.
pub fn inject_in(at: &Namespace, from: u32, to: u32, act: Act) -> Result<()> {
    let refused = inject_what_can_be(at, from, to, act)?;
    ensure!(refused == 0, "injecting: {refused} of {} failed", to - from);
    Ok(())
}

/// As [`inject_in`], whatever the kernel refuses: how many connections.
///
/// # Errors
/// If it can't be asked.
pub fn inject_what_can_be(at: &Namespace, from: u32, to: u32, act: Act) -> Result<u32> {
    at.enter(|| inject_here(from, to, act))
}

fn inject_here(from: u32, to: u32, act: Act) -> Result<u32> {
    let socket = Socket::open()?;
    socket.set_send_buffer(1 << 20)?;
    socket.set_receive_buffer(4 << 20)?;
    let (mut out, mut buf) = (Vec::new(), RecvBuf::new());
    let all: Vec<u32> = (from..to).collect();
    let mut refused = 0;
    for chunk in all.chunks(128) {
        out.clear();
        for n in chunk {
            let mut f = flow(*n);
            match act {
                Act::Create => inject::create(&mut out, &f, inject::Options::default(), *n)?,
                Act::Delete => conntrack::delete(&mut out, &f.orig, 0, None, *n)?,
                Act::Mark(mark) => {
                    f.mark = Some(mark);
                    inject::update(&mut out, &f, inject::Options::default(), *n)?;
                }
            }
        }
        socket.send(&out, "injecting")?;
        while let Received::Datagram(d) = socket.try_receive(&mut buf)? {
            for m in Messages::new(d) {
                refused += u32::from(matches!(m.kind(), Kind::Error(_)));
            }
        }
    }
    Ok(refused)
}

/// The connections of a namespace.
///
/// The table is one for all namespaces. Whoever resizes it makes a dump that
/// runs, and a reader of `/proc/net/nf_conntrack`, go on in the same bucket of
/// another table: it shows connections again, or not at all. Such a dump is
/// made again.
///
/// # Errors
/// If the kernel refuses the dump.
pub fn flows(at: &Namespace) -> Result<Vec<Flow>> {
    let buckets = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_buckets");
    at.enter(|| {
        loop {
            let before = buckets()?;
            let found = dump()?;
            if buckets()? == before {
                return Ok(found);
            }
        }
    })
}

fn dump() -> Result<Vec<Flow>> {
    let mut found = Vec::new();
    Socket::open()?.exchange(
        "dumping connections",
        |buf, seq| conntrack::dump(buf, &conntrack::DumpFilter::default(), seq),
        |m| found.extend(conntrack::Event::decode(m).ok().flatten().map(|e| e.flow)),
    )?;
    Ok(found)
}

/// Of the connections that [`inject_in`] makes, how many there are, and how
/// many of them have the mark.
///
/// # Errors
/// As [`flows`].
pub fn injected(at: &Namespace, mark: u32) -> Result<(usize, usize)> {
    let ours = flow(0).orig.dst;
    let all = flows(at)?;
    let mut of_ours = all.iter().filter(|f| f.orig.dst == ours);
    let marked = of_ours.clone().filter(|f| f.mark.unwrap_or(0) == mark);
    let marked = marked.count();
    Ok((of_ours.by_ref().count(), marked))
}
