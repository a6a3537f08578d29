//! Short TCP connections through a firewall: what mirroring costs it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::netns::{Namespace, text_file};
use lab::ours;
use lab::pair::{Node, Pair};
use lab::topology::{Family, server_address};

use crate::Plan;
use crate::book::{Book, Metric, Target, Who};
use crate::contender::{Apply, Kind, Setup};
use crate::process::{cpu, micros_each};

/// Ports that the server listens on: a client port is used once per minute
/// for each.
const PORTS: std::ops::Range<u16> = 8000..8016;

/// What the server says.
const ANSWER: &[u8] = b"answer";

/// Tracking without our ruleset.
const TRACK: &str = "table inet bench {\n\tchain forward {\n\
    \t\ttype filter hook forward priority filter; policy accept;\n\
    \t\tct state established accept\n\t}\n}\n";

/// Our ruleset with its event mask; the kernel's helper, so that it loads
/// without ours.
const EVENTS: &str = "[[helper]]\ntype = \"ftp\"\n[events]\n";

/// Runs it.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    for round in 0..plan.rounds {
        once(plan, None, Rules::Track, book)?;
        for kind in Kind::in_turn(round) {
            for rules in [Rules::Track, Rules::Events] {
                once(plan, Some(kind), rules, book)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Track,
    Events,
}

fn once(plan: &Plan, kind: Option<Kind>, rules: Rules, book: &mut Book) -> Result<()> {
    let pair = Pair::new()?;
    pair.fw_1.nft(TRACK)?;
    if rules == Rules::Events {
        let policy = text_file(EVENTS)?;
        let path = policy.path().display().to_string();
        ours::run(&pair.fw_1, "nft-ftp-ruleset", &["load", "--config", &path])?;
    }
    pair.client
        .sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    pair.activate(Node::One)?;
    let mut daemons = Vec::new();
    if let Some(kind) = kind {
        let setup = Setup::new(kind, Apply::Commit)?;
        for node in Node::BOTH {
            daemons.push(setup.start(pair.fw(node), node)?);
        }
        for daemon in &daemons {
            daemon.wait_connected()?;
        }
    }
    let before: Duration = daemons.iter().map(|d| cpu(d.pid())).sum();
    let seconds = if plan.quick { 1 } else { 5 };
    let made = connections(&pair, Duration::from_secs(seconds))?;
    std::thread::sleep(Duration::from_millis(500));
    let used = daemons.iter().map(|d| cpu(d.pid())).sum::<Duration>() - before;
    let what = match rules {
        Rules::Track => "traffic",
        Rules::Events => "traffic, ct event set",
    };
    let rate = Metric::more(format!("{what}: TCP connections forwarded"), "k/s");
    let each = Metric::less(format!("{what}: CPU per connection, both daemons"), "us")
        .target(Target::Peer(0.5));
    let per_second = f64::from(made) / Duration::from_secs(seconds).as_secs_f64() / 1000.0;
    match kind {
        None => book.add(&rate, Who::Limit, per_second),
        Some(kind) => {
            book.add(&rate, kind.who(), per_second);
            book.add(&each, kind.who(), micros_each(used, made));
        }
    }
    eprintln!(
        "    {what}, {}: {per_second:.1} k/s, {:.1} us",
        kind.map_or("nobody", Kind::name),
        micros_each(used, made)
    );
    for daemon in daemons {
        daemon.stop()?;
    }
    for node in Node::BOTH {
        pair.fw(node).run("conntrack", &["-F"])?;
    }
    Ok(())
}

/// Opens connections, one question and answer in each; how many.
fn connections(pair: &Pair, time: Duration) -> Result<u32> {
    let server = server_address(Family::V4);
    let listeners = PORTS.map(|port| pair.server.enter(|| TcpListener::bind((server, port))));
    let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
    let (stop, made) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| -> Result<()> {
        for listener in &listeners {
            let stop = &stop;
            scope.spawn(move || serve(listener, stop));
        }
        let clients = (0..4).map(|i| {
            let made = &made;
            let client = &pair.client;
            scope.spawn(move || connect(client, server, time, i, made))
        });
        let clients: Vec<_> = clients.collect();
        let results = clients.into_iter().map(|c| c.join().expect("no panic"));
        let result = results.collect::<Result<()>>();
        stop.store(true, Ordering::Relaxed);
        // Each listener waits in accept.
        pair.client.enter(|| {
            for port in PORTS {
                let _ = TcpStream::connect((server, port));
            }
        });
        result
    })?;
    Ok(made.load(Ordering::Relaxed))
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let mut buf = [0; 16];
    while let Ok((mut stream, _)) = listener.accept() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if stream.read(&mut buf).is_ok() {
            let _ = stream.write_all(ANSWER);
            // Until the client has closed: then the waiting is its.
            let _ = stream.read(&mut buf);
        }
    }
}

fn connect(
    client: &Namespace,
    server: IpAddr,
    time: Duration,
    first: usize,
    made: &AtomicU32,
) -> Result<()> {
    client.enter(|| {
        let start = Instant::now();
        let mut buf = [0; ANSWER.len()];
        for port in PORTS.cycle().skip(first * 4) {
            if start.elapsed() > time {
                return Ok(());
            }
            let mut stream = TcpStream::connect(SocketAddr::new(server, port))?;
            stream.write_all(b"question")?;
            stream.read_exact(&mut buf)?;
            made.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}
