//! Puts connections into the kernel at full rate: the workload, and the raw
//! limit of a commit.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::Result;
use netfilter::message::Kind;
use netfilter::protoinfo::{ProtoInfo, Tcp, TcpFlags};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Flow, Messages, Socket, Status, Tuple, conntrack, inject};

/// Messages per send.
const BATCH: u32 = 128;

/// What is done to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// They are made.
    Create,
    /// Their mark changes.
    Mark(u32),
    /// They are deleted.
    Delete,
}

/// Kinds of connections.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Shape {
    /// With source NAT and a mark.
    #[arg(long)]
    pub nat: bool,
    /// IPv6.
    #[arg(long)]
    pub v6: bool,
}

/// An established TCP connection, number `n`; addresses and ports scatter as
/// those of many clients of one server do.
pub fn flow(n: u32, shape: Shape) -> Flow {
    let [a, b, c, d] = n.to_be_bytes();
    let (src, dst) = if shape.v6 {
        let low = u16::from_be_bytes([b, c]);
        let src = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, u16::from(a), low);
        let dst = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
        (IpAddr::V6(src), IpAddr::V6(dst))
    } else {
        (
            IpAddr::from([10, 128 | a, b, c]),
            IpAddr::from([192, 0, 2, 1]),
        )
    };
    let orig = Tuple::tcp(src, 2000 + u16::from(d), dst, 80);
    let mut flow = Flow::new(orig, orig.inverse());
    if shape.nat {
        let to = IpAddr::from([198, 51, 100_u8.wrapping_add(a), b]);
        let port = u16::from_be_bytes([c, d]);
        flow.reply = Tuple::tcp(flow.reply.src, 80, to, port);
        flow.mark = Some(7);
    }
    flow.timeout = Some(86_400);
    flow.status = Some(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED);
    let flags = TcpFlags {
        flags: 3,
        mask: 0x0f,
    };
    flow.protoinfo = ProtoInfo::Tcp(Tcp {
        state: 3,
        wscale_orig: 7,
        wscale_reply: 7,
        flags_orig: flags,
        flags_reply: flags,
    });
    flow
}

/// The number of an IPv4 [`flow`], from its original tuple.
pub fn number(orig: &Tuple) -> Option<u32> {
    let IpAddr::V4(src) = orig.src else {
        return None;
    };
    let [_, a, b, c] = src.octets();
    let d = u8::try_from(orig.sport().checked_sub(2000)?).ok()?;
    Some(u32::from_be_bytes([a & 127, b, c, d]))
}

/// A socket in the namespace it was opened in.
#[derive(Debug)]
pub struct Injector {
    socket: Socket,
    out: Vec<u8>,
    buf: RecvBuf,
    shape: Shape,
    /// Messages the kernel refused.
    pub failed: u32,
}

impl Injector {
    /// Opens it.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`.
    pub fn open(shape: Shape) -> Result<Self> {
        let socket = Socket::open()?;
        socket.set_send_buffer(1 << 20)?;
        socket.set_receive_buffer(4 << 20)?;
        Ok(Self {
            socket,
            out: Vec::new(),
            buf: RecvBuf::new(),
            shape,
            failed: 0,
        })
    }

    /// Does something to connections `from..to` in one send.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn send(&mut self, from: u32, to: u32, act: Act) -> Result<()> {
        self.out.clear();
        for n in from..to {
            let mut f = flow(n, self.shape);
            match act {
                Act::Create => inject::create(&mut self.out, &f, inject::Options::default(), n)?,
                Act::Delete => conntrack::delete(&mut self.out, &f.orig, 0, None, n)?,
                Act::Mark(mark) => {
                    f.mark = Some(mark);
                    inject::update(&mut self.out, &f, inject::Options::default(), n)?;
                }
            }
        }
        self.socket.send(&self.out, "injecting")?;
        while let Received::Datagram(d) = self.socket.try_receive(&mut self.buf)? {
            let errors = Messages::new(d).filter(|m| matches!(m.kind(), Kind::Error(_)));
            self.failed += u32::try_from(errors.count())?;
        }
        Ok(())
    }

    /// The same at full rate, in batches; how long it took.
    ///
    /// # Errors
    /// As [`Injector::send`].
    pub fn burst(&mut self, from: u32, to: u32, act: Act) -> Result<Duration> {
        let start = Instant::now();
        let mut n = from;
        while n < to {
            let end = (n + BATCH).min(to);
            self.send(n, end, act)?;
            n = end;
        }
        Ok(start.elapsed())
    }
}

/// Options of `bench inject`.
#[derive(Debug, clap::Args)]
pub struct Inject {
    /// How many.
    count: u32,
    /// Number of the first.
    #[arg(long, default_value_t = 0)]
    from: u32,
    /// Delete them instead.
    #[arg(long)]
    delete: bool,
    #[command(flatten)]
    shape: Shape,
}

/// `bench inject`.
///
/// # Errors
/// If the socket is broken.
pub fn inject(options: &Inject) -> Result<()> {
    let mut injector = Injector::open(options.shape)?;
    let act = if options.delete {
        Act::Delete
    } else {
        Act::Create
    };
    let took = injector.burst(options.from, options.from + options.count, act)?;
    let (count, failed) = (options.count, injector.failed);
    let rate = f64::from(count) / took.as_secs_f64();
    println!(
        "count={count} failed={failed} seconds={:.3} rate={rate:.0}",
        took.as_secs_f64()
    );
    Ok(())
}
