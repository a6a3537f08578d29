//! Puts connections into the kernel at full rate, or deletes them: the
//! workload of the benchmarks. `inject COUNT [--nat] [--v6] [--delete]
//! [--rate PER_SECOND] [--from N]`.

use anyhow::{Context, Result};
use netfilter::protoinfo::{ProtoInfo, Tcp, TcpFlags};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Flow, Messages, Socket, Status, Tuple, conntrack, inject, message::Kind};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

const BATCH: u32 = 128;

struct Options {
    count: u32,
    from: u32,
    nat: bool,
    v6: bool,
    delete: bool,
    rate: Option<u32>,
}

fn options() -> Result<Options> {
    let mut o = Options {
        count: 0,
        from: 0,
        nat: false,
        v6: false,
        delete: false,
        rate: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || {
            args.next()
                .context("number missing")?
                .parse()
                .context("number")
        };
        match arg.as_str() {
            "--nat" => o.nat = true,
            "--v6" => o.v6 = true,
            "--delete" => o.delete = true,
            "--rate" => o.rate = Some(number()?),
            "--from" => o.from = number()?,
            n => o.count = n.parse().context("COUNT")?,
        }
    }
    Ok(o)
}

fn flow(n: u32, o: &Options) -> Flow {
    let [a, b, c, d] = n.to_be_bytes();
    let src = if o.v6 {
        IpAddr::V6(Ipv6Addr::new(
            0x2001,
            0xdb8,
            0,
            0,
            0,
            0,
            u16::from(a),
            u16::from_be_bytes([b, c]),
        ))
    } else {
        IpAddr::from([10, 128 | a, b, c])
    };
    let dst = if o.v6 {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1))
    } else {
        IpAddr::from([192, 0, 2, 1])
    };
    let orig = Tuple::tcp(src, 2000 + u16::from(d), dst, 80);
    let mut flow = Flow::new(orig, orig.inverse());
    if o.nat {
        flow.reply.dst = IpAddr::from([198, 51, 100 + a, b]);
        flow.reply = Tuple::tcp(
            flow.reply.src,
            80,
            flow.reply.dst,
            u16::from_be_bytes([c, d]),
        );
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

fn main() -> Result<()> {
    let o = options()?;
    let socket = Socket::open()?;
    socket.set_send_buffer(1 << 20)?;
    socket.set_receive_buffer(4 << 20)?;
    let (mut out, mut buf, mut failed) = (Vec::new(), RecvBuf::new(), 0_u32);
    let start = Instant::now();
    let mut n = 0;
    while n < o.count {
        out.clear();
        let batch = o.rate.map_or(BATCH, |r| (r / 1000).clamp(1, BATCH));
        for i in n..(n + batch).min(o.count) {
            let f = flow(o.from + i, &o);
            if o.delete {
                conntrack::delete(&mut out, &f.orig, 0, None, i)?;
            } else {
                inject::create(&mut out, &f, inject::Options::default(), i)?;
            }
        }
        socket.send(&out, "injecting")?;
        while let Received::Datagram(d) = socket.try_receive(&mut buf)? {
            let errors = Messages::new(d).filter(|m| matches!(m.kind(), Kind::Error(_)));
            failed += u32::try_from(errors.count())?;
        }
        n += batch;
        if let Some(rate) = o.rate {
            let due = Duration::from_secs_f64(f64::from(n) / f64::from(rate));
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "count={} failed={failed} seconds={seconds:.3} rate={:.0}",
        o.count,
        f64::from(o.count) / seconds
    );
    Ok(())
}
