//! How long one new connection takes to the other firewall.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::netns::Namespace;
use lab::pair::Node;
use netfilter::conntrack::{Change, Event, group};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Messages, Socket};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, recvfrom,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::{Pid, gettid};
use std::os::fd::{AsRawFd, OwnedFd};

use super::{World, injector};
use crate::Plan;
use crate::book::{Book, Metric, Target, Who};
use crate::contender::{Apply, Daemon, Kind};
use crate::link::{Link, address, inside};
use crate::load::{Act, Injector, Shape, flow, number};
use crate::process::{Processors, RealTime, SELF, awake, in_real_time};

/// Between two probes, and up to twice as long: long enough that everybody
/// waits again.
const PAUSE: Duration = Duration::from_millis(1);
/// What a probe may take before it counts as lost.
const LOST: Duration = Duration::from_secs(2);
/// Numbers of probes; the load's are lower.
const PROBES: u32 = 8_000_000;
/// Connections a second that come and go beside the probes, or none.
const LOADS: [Option<u32>; 2] = [None, Some(5000)];

/// Turns in a round: a processor may be faster by a third for half a minute, and
/// that must not meet one contender alone.
const TURNS: usize = 3;
/// The same of a quick run: who comes first changes once.
const QUICK_TURNS: usize = 2;

/// On which of two processors the probe, the sender and the receiver run, in
/// turns: the scheduler leaves a task that sleeps where it happens to be, and
/// who has to wake another processor is slower by more than programs differ.
const PLACES: [[usize; 3]; 4] = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]];

/// Runs it.
pub fn run(plan: &Plan, book: &mut Book) -> Result<()> {
    let (probes, turns) = if plan.quick {
        (100, QUICK_TURNS)
    } else {
        (400, TURNS)
    };
    let _awake = awake();
    let mut log = Log {
        book,
        all: Vec::new(),
    };
    for round in 0..plan.rounds * turns {
        limit_on_the_wire(probes, &mut log)?;
        for load in LOADS {
            limit(probes, load, &mut log)?;
        }
        for kind in Kind::in_turn(round) {
            on_the_wire(kind, probes, &mut log)?;
            for load in LOADS {
                applied(kind, probes, load, &mut log)?;
            }
        }
    }
    Ok(())
}

/// Two nodes that mirror, at the priority that conntrackd takes by itself.
fn world_in_real_time(kind: Kind, apply: Apply) -> Result<World> {
    let world = World::new(kind, apply)?;
    for pid in ends(&world)? {
        in_real_time(&pid.to_string())?;
    }
    Ok(world)
}

const IDLE_ON_THE_WIRE: &str = "idle: new flow until its datagram is there";

fn until_applied(load: Option<u32>) -> String {
    let load = load.map_or("idle".to_owned(), |n| format!("{}k/s churn", n / 1000));
    format!("{load}: new flow until in the other kernel (immediate)")
}

/// Times of the probes with everybody in each of [`PLACES`].
type Times = [Vec<Duration>; PLACES.len()];

/// Where the times go.
struct Log<'a> {
    book: &'a mut Book,
    /// Those of all turns so far.
    all: Vec<(Who, String, Times)>,
}

impl Log<'_> {
    /// Files a turn's percentiles, and with them those of all turns: the slowest of
    /// a thousand is chance in one turn.
    fn file(&mut self, who: Who, name: &str, times: &Times) {
        let known = self
            .all
            .iter()
            .position(|(w, n, _)| (*w, &**n) == (who, name));
        let at = known.unwrap_or_else(|| {
            self.all.push((who, name.to_owned(), Times::default()));
            self.all.len() - 1
        });
        let Some((.., all)) = self.all.get_mut(at) else {
            return;
        };
        for (all, times) in all.iter_mut().zip(times) {
            all.extend(times);
        }
        for ((quantile, part), (_, whole)) in quantiles(times).into_iter().zip(quantiles(all)) {
            let mut metric = Metric::less(format!("{name}, {quantile}"), "ms");
            if name.starts_with("idle") && quantile == "p50" {
                metric = metric.target(Target::Peer(1.0));
            }
            self.book.add_part(&metric, who, part, whole);
        }
    }
}

/// Percentiles in milliseconds: the mean of the places' medians, because the median
/// of all may fall between the fast ones and the slow ones; the others of all probes.
fn quantiles(times: &Times) -> [(&'static str, f64); 3] {
    let medians = times.iter().map(|t| percentile(t.clone(), 500));
    let p50 = medians.sum::<Duration>() / u32::try_from(PLACES.len()).unwrap_or(1);
    let all = times.concat();
    [
        ("p50", p50),
        ("p99", percentile(all.clone(), 990)),
        ("p99.9", percentile(all, 999)),
    ]
    .map(|(name, time)| (name, time.as_secs_f64() * 1e3))
}

fn percentile(mut times: Vec<Duration>, permille: usize) -> Duration {
    times.sort_unstable();
    let at = (times.len() * permille / 1000).min(times.len().saturating_sub(1));
    times.get(at).copied().unwrap_or_default()
}

/// Default settings: until the datagram with it is at the other firewall.
fn on_the_wire(kind: Kind, probes: usize, log: &mut Log) -> Result<()> {
    let world = world_in_real_time(kind, Apply::Commit)?;
    let tap = world.link.at(Node::Two).enter(tap)?;
    let mut injector = world.injector()?;
    let times = until_tapped(&mut injector, &tap, probes, ends(&world)?)?;
    log.file(kind.who(), IDLE_ON_THE_WIRE, &times);
    world.end()
}

/// One connection at a time; how long until each had a packet on the link.
fn until_tapped(
    injector: &mut Injector,
    tap: &OwnedFd,
    probes: usize,
    ends: [Pid; 2],
) -> Result<Times> {
    let mut buf = [0; 2048];
    each(probes, ends, |n| {
        while recv(tap.as_raw_fd(), &mut buf, MsgFlags::MSG_DONTWAIT).is_ok() {}
        let start = Instant::now();
        injector.send(n, n + 1, Act::Create)?;
        loop {
            let (_, from) = recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut buf)?;
            // What goes out there, an acknowledgement perhaps, is not it.
            if from.is_some_and(|from| from.pkttype() != OUTGOING) {
                return Ok(start.elapsed());
            }
        }
    })
}

/// Both daemons.
fn ends(world: &World) -> Result<[Pid; 2]> {
    let id = |daemon: &Daemon| i32::try_from(daemon.pid()).map(Pid::from_raw);
    Ok([id(&world.one)?, id(&world.two)?])
}

/// Makes so many probes with everybody in each of [`PLACES`].
fn each(
    probes: usize,
    [sender, receiver]: [Pid; 2],
    mut probe: impl FnMut(u32) -> Result<Duration>,
) -> Result<Times> {
    let _real_time = RealTime::begin()?;
    let processors = Processors::allowed()?;
    let mut times = Times::default();
    let mut numbers = PROBES..;
    for (places, times) in PLACES.into_iter().zip(&mut times) {
        for (id, place) in [SELF, sender, receiver].into_iter().zip(places) {
            processors.pin(id, place)?;
        }
        for n in numbers.by_ref().take(probes) {
            std::thread::sleep(pause(n));
            times.push(probe(n)?);
        }
    }
    Ok(times)
}

/// Before probe `n`. No two are the same, so that nobody's timer is in step
/// with the probes: the golden ratio spreads them.
fn pause(n: u32) -> Duration {
    PAUSE + PAUSE.mul_f64(f64::from(n) * 0.618_034 % 1.0)
}

/// `PACKET_OUTGOING`, the type of a packet that leaves.
const OUTGOING: u8 = 4;

/// Sees every packet of the namespace.
fn tap() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let all = SockProtocol::EthAll;
    let tap = socket(AddressFamily::Packet, SockType::Raw, flags, all)?;
    let limit = TimeVal::new(2, 0);
    setsockopt(&tap, sockopt::ReceiveTimeout, &limit)?;
    Ok(tap)
}

/// Written into the other kernel as it comes: until that one says so.
fn applied(kind: Kind, probes: usize, load: Option<u32>, log: &mut Log) -> Result<()> {
    let world = world_in_real_time(kind, Apply::Immediate)?;
    let times = until_written(&world.link, probes, load, ends(&world)?)?;
    log.file(kind.who(), &until_applied(load), &times);
    world.end()
}

/// One connection at a time, beside a load; how long until each was in the other
/// kernel.
fn until_written(link: &Link, probes: usize, load: Option<u32>, ends: [Pid; 2]) -> Result<Times> {
    let events = listen(link.at(Node::Two))?;
    let mut injector = injector(link.at(Node::One))?;
    let (stop, one) = (&AtomicBool::new(false), link.at(Node::One));
    std::thread::scope(|scope| {
        let busy = load.map(|rate| scope.spawn(move || churn(one, rate, stop)));
        let times = probe(&mut injector, &events, probes, ends);
        stop.store(true, Ordering::Relaxed);
        busy.map_or(Ok(()), |busy| busy.join().expect("no panic"))?;
        times
    })
}

fn listen(at: &Namespace) -> Result<Socket> {
    inside(at, || {
        let socket = Socket::open()?;
        socket.set_receive_buffer(64 << 20)?;
        socket.set_receive_timeout(LOST)?;
        socket.join(group::NEW)?;
        Ok(socket)
    })
}

/// One connection at a time; how long each took.
fn probe(injector: &mut Injector, events: &Socket, probes: usize, ends: [Pid; 2]) -> Result<Times> {
    let mut buf = RecvBuf::new();
    each(probes, ends, |n| {
        let wanted = flow(n, Shape::default()).orig;
        let start = Instant::now();
        injector.send(n, n + 1, Act::Create)?;
        loop {
            if start.elapsed() > LOST {
                bail!("connection {n} did not arrive");
            }
            let Received::Datagram(datagram) = events.receive(&mut buf)? else {
                continue;
            };
            let mut decoded = Messages::new(datagram).map(|m| Event::decode(&m));
            if decoded.any(|e| e.is_ok_and(|e| e.is_some_and(|e| e.flow.orig == wanted))) {
                return Ok(start.elapsed());
            }
        }
    })
}

/// Makes and deletes connections at a rate until told to stop.
fn churn(at: &Namespace, rate: u32, stop: &AtomicBool) -> Result<()> {
    let mut injector = injector(at)?;
    let (step, mut n) = (rate / 500, 0);
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        injector.send(n, n + step, Act::Create)?;
        if let Some(old) = n.checked_sub(rate) {
            injector.send(old, old + step, Act::Delete)?;
        }
        n += step;
        let due = Duration::from_secs_f64(f64::from(n) / f64::from(rate));
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// The shortest way onto the link: an event, a bare datagram. The thread that reads
/// it stands in for a receiver.
fn limit_on_the_wire(probes: usize, log: &mut Log) -> Result<()> {
    let link = Link::new()?;
    let tap = link.at(Node::Two).enter(tap)?;
    let mut injector = injector(link.at(Node::One))?;
    let read = |from: UdpSocket, all, tell| receive(&from, all, tell, |_| Ok(()));
    let times = between(&link, probes, read, |ends| {
        until_tapped(&mut injector, &tap, probes, ends)
    })?;
    log.file(Who::Limit, IDLE_ON_THE_WIRE, &times);
    link.flush()
}

/// The shortest way there is: events, a bare datagram, insertions and deletions.
fn limit(probes: usize, load: Option<u32>, log: &mut Log) -> Result<()> {
    let link = Link::new()?;
    let mut target = injector(link.at(Node::Two))?;
    let write =
        |from: UdpSocket, all, tell| receive(&from, all, tell, |news| write(&mut target, news));
    let times = between(&link, probes, write, |ends| {
        until_written(&link, probes, load, ends)
    })?;
    ensure!(target.failed == 0, "{} refused", target.failed);
    log.file(Who::Limit, &until_applied(load), &times);
    link.flush()
}

/// Measures with the least there can be at both ends: who makes datagrams of the
/// first node's events, and `get`, who gets them at the second.
fn between(
    link: &Link,
    probes: usize,
    get: impl FnOnce(UdpSocket, usize, Sender<Result<Pid>>) -> Result<()> + Send,
    measure: impl FnOnce([Pid; 2]) -> Result<Times>,
) -> Result<Times> {
    let (one, two) = (link.at(Node::One), link.at(Node::Two));
    let to = two.enter(|| UdpSocket::bind((address(Node::Two), 3780)))?;
    to.set_read_timeout(Some(LOST))?;
    let out = one.enter(|| UdpSocket::bind((address(Node::One), 3780)))?;
    out.connect((address(Node::Two), 3780))?;
    let (here, there) = (channel(), channel());
    let all = probes * PLACES.len();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| forward(one, &out, all, here.0));
        let receiver = scope.spawn(|| get(to, all, there.0));
        let begin = || measure([here.1.recv()??, there.1.recv()??]);
        // What broke off says why; the others have waited in vain.
        let times = begin();
        let (sender, receiver) = (sender.join(), receiver.join());
        let times = times?;
        sender.expect("no panic")?;
        receiver.expect("no panic")?;
        Ok(times)
    })
}

/// Gives this thread real-time priority; its number.
fn ready() -> Result<Pid> {
    in_real_time(&gettid().to_string()).map(|()| gettid())
}

/// Of a connection in a datagram: its number, the highest bit set if it is gone.
type News = [u8; 4];
const GONE: u32 = 1 << 31;
/// Connections in a datagram.
const MOST: usize = 300;

const fn is_probe(news: u32) -> bool {
    news & GONE == 0 && news >= PROBES
}

/// From events to datagrams, until all probes are through.
fn forward(
    at: &Namespace,
    out: &UdpSocket,
    probes: usize,
    tell: Sender<Result<Pid>>,
) -> Result<()> {
    let events = listen(at)?;
    inside(at, || Ok(events.join(group::DESTROY)?))?;
    tell.send(ready())?;
    let (mut buf, mut message, mut seen) = (RecvBuf::new(), Vec::<News>::new(), 0);
    while seen < probes {
        message.clear();
        let mut received = events.receive(&mut buf)?;
        while let Received::Datagram(datagram) = received {
            for event in Messages::new(datagram).filter_map(|m| Event::decode(&m).ok()?) {
                let gone = if event.change == Change::Destroy {
                    GONE
                } else {
                    0
                };
                let news = number(&event.flow.orig).context("whose?")? | gone;
                seen += usize::from(is_probe(news));
                message.push(news.to_be_bytes());
            }
            if message.len() >= MOST {
                break;
            }
            received = events.try_receive(&mut buf)?;
        }
        ensure!(!message.is_empty(), "no event: {received:?}");
        out.send(message.as_flattened())?;
    }
    Ok(())
}

/// Takes datagrams, until all probes are through.
fn receive(
    from: &UdpSocket,
    probes: usize,
    tell: Sender<Result<Pid>>,
    mut take: impl FnMut(&[u32]) -> Result<()>,
) -> Result<()> {
    tell.send(ready())?;
    let (mut buf, mut news, mut seen) = ([0; 65536], Vec::new(), 0);
    while seen < probes {
        let len = from.recv(&mut buf)?;
        let all = buf
            .get(..len)
            .unwrap_or_default()
            .chunks_exact(size_of::<News>());
        news.clear();
        news.extend(all.filter_map(|n| Some(u32::from_be_bytes(n.try_into().ok()?))));
        seen += news.iter().filter(|n| is_probe(**n)).count();
        take(&news)?;
    }
    Ok(())
}

/// From a datagram to the kernel: what is new first, and what follows one another in
/// one send.
fn write(target: &mut Injector, news: &[u32]) -> Result<()> {
    for (gone, act) in [(0, Act::Create), (GONE, Act::Delete)] {
        for run in news.chunk_by(|a, b| a.wrapping_add(1) == *b) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            if first & GONE == gone {
                target.send(first & !GONE, (last & !GONE) + 1, act)?;
            }
        }
    }
    Ok(())
}
