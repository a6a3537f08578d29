//! From the command, with the addresses moved, to the first packet that the
//! other firewall forwards.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::pair::{Node, Pair};
use lab::topology::{Family, server_address};

use super::{injector, settled, short};
use crate::Plan;
use crate::book::{Book, Metric};
use crate::contender::{Apply, Kind, Setup};
use crate::load::Act;

const PORT: u16 = 7007;

/// Only what is known passes: so the first answer means that the state is
/// there.
const KNOWN_ONLY: &str = "table inet bench {\n\tchain forward {\n\
    \t\ttype filter hook forward priority filter; policy drop;\n\
    \t\tct state established accept\n\t}\n}\n";
const OPEN: &str = "table inet bench {\n\tchain forward {\n\
    \t\ttype filter hook forward priority filter; policy accept;\n\
    \t\tct state established accept\n\t}\n}\n";

/// Runs it.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    let count = if plan.quick { 100_000 } else { 500_000 };
    for round in 0..plan.rounds {
        for kind in Kind::in_turn(round) {
            for apply in [Apply::Commit, Apply::Immediate] {
                once(kind, apply, count, book)?;
            }
        }
    }
    Ok(())
}

fn once(kind: Kind, apply: Apply, count: u32, book: &mut Book) -> Result<()> {
    let mode = match apply {
        Apply::Commit => "commit",
        Apply::Immediate => "immediate",
    };
    let row = |what: &str| Metric::less(format!("takeover {} {mode}: {what}", short(count)), "ms");
    let pair = Pair::new()?;
    pair.fw_1.nft(OPEN)?;
    pair.fw_2.nft(KNOWN_ONLY)?;
    pair.activate(Node::One)?;
    let setup = Setup::new(kind, apply)?;
    let one = setup.start(&pair.fw_1, Node::One)?;
    let two = setup.start(&pair.fw_2, Node::Two)?;
    one.wait_connected()?;
    // In the middle: both commit in an order of their own.
    let mut injector = injector(&pair.fw_1)?;
    injector.burst(0, count / 2, Act::Create)?;
    let echo = Echo::start(&pair)?;
    injector.burst(count / 2, count, Act::Create)?;
    match (kind, apply) {
        (Kind::Conntrackd, Apply::Immediate) => {
            let enough = || crate::link::connections(&pair.fw_2).ok();
            lab::wait::until("the other kernel to have all", super::STALLED * 5, || {
                enough().filter(|n| *n >= count)
            })?;
        }
        _ => {
            settled(&two, u64::from(count) + 1)?;
        }
    }
    pair.activate(Node::Two)?;
    let start = Instant::now();
    let (first, done) = std::thread::scope(|scope| -> Result<_> {
        let first = scope.spawn(|| echo.first_answer());
        two.become_primary()?;
        let done = Instant::now();
        Ok((first.join().expect("no panic")?, done))
    })?;
    let ms = |at: Instant| (at - start).as_secs_f64() * 1e3;
    book.add(&row("to the first packet forwarded"), kind.who(), ms(first));
    book.add(&row("to the command's end"), kind.who(), ms(done));
    eprintln!(
        "    {} {mode}: first packet {:.0} ms, command {:.0} ms",
        kind.name(),
        ms(first),
        ms(done)
    );
    drop(echo);
    one.stop()?;
    two.stop()?;
    for node in Node::BOTH {
        pair.fw(node).run("conntrack", &["-F"])?;
    }
    Ok(())
}

/// A UDP dialogue through the firewalls.
struct Echo {
    client: UdpSocket,
    stop: std::sync::Arc<AtomicBool>,
}

impl Echo {
    /// Begins it, so that the connection is assured.
    fn start(pair: &Pair) -> Result<Self> {
        let at: (IpAddr, u16) = (server_address(Family::V4), PORT);
        let server = pair.server.enter(|| UdpSocket::bind(at))?;
        server.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let over = stop.clone();
        std::thread::spawn(move || {
            let mut buf = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if let Ok((len, from)) = server.recv_from(&mut buf) {
                    let _ = server.send_to(buf.get(..len).unwrap_or_default(), from);
                }
            }
        });
        let client = pair.client.enter(|| UdpSocket::bind(("0.0.0.0", 0)))?;
        client.connect(at)?;
        let echo = Self { client, stop };
        for _ in 0..3 {
            echo.first_answer().context("before the takeover")?;
        }
        Ok(echo)
    }

    /// Asks every half millisecond until it is answered.
    fn first_answer(&self) -> Result<Instant> {
        self.client
            .set_read_timeout(Some(Duration::from_micros(500)))?;
        let start = Instant::now();
        let mut buf = [0; 64];
        while start.elapsed() < Duration::from_secs(60) {
            let _ = self.client.send(b"probe");
            if self.client.recv(&mut buf).is_ok() {
                return Ok(Instant::now());
            }
        }
        anyhow::bail!("no answer")
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
