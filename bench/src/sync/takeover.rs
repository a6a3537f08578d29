//! From the command, with the addresses moved, to the first packet that the
//! other firewall forwards.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::pair::{Node, Pair};
use lab::topology::{Family, server_address};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::time::TimeSpec;
use nix::unistd::gettid;
use std::os::fd::{AsFd, AsRawFd};

use super::{injector, settled, short};
use crate::Plan;
use crate::book::{Book, Metric, Who};
use crate::contender::{Apply, Kind, Setup};
use crate::load::Act;
use crate::process::{Processors, SELF, awake, in_real_time};

const PORT: u16 = 7007;
/// What an answer gets before it is asked for again.
const PATIENCE: Duration = Duration::from_micros(500);
/// Questions before a takeover.
const CONVERSATION: usize = 21;
/// Moves of the addresses that nobody is told of. Odd, for the median.
const MOVES: usize = 11;
/// Dialogues through a commit, begun at equal distances while the other connections
/// are made: ctsync commits in that order, conntrackd in that of its hash table.
const DIALOGUES: usize = 8;
/// Takeovers through immediate in a round: each is the way of a single packet.
const PACKETS: usize = 3;

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
    let _awake = awake();
    let packets = if plan.quick { 1 } else { PACKETS };
    for round in 0..plan.rounds {
        for kind in Kind::in_turn(round) {
            once(kind, Apply::Commit, count, book)?;
        }
        for turn in 0..packets {
            for kind in Kind::in_turn(round + turn) {
                once(kind, Apply::Immediate, count, book)?;
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
    let mut injector = injector(&pair.fw_1)?;
    let dialogues = match apply {
        Apply::Commit => DIALOGUES,
        Apply::Immediate => 1,
    };
    let echo = Echo::start(&pair, dialogues)?;
    let mut made = 0;
    let each = count / u32::try_from(dialogues)?;
    for begun in 1..=dialogues {
        // In the middle of its share.
        let until = u32::try_from(begun)? * each - each / 2;
        injector.burst(made, until, Act::Create)?;
        echo.converse(begun)?;
        made = until;
    }
    injector.burst(made, count, Act::Create)?;
    let total = count + u32::try_from(dialogues)?;
    match apply {
        Apply::Immediate => {
            let enough = || crate::link::connections(&pair.fw_2).ok();
            lab::wait::until("the other kernel to have all", super::STALLED * 5, || {
                enough().filter(|n| *n >= total)
            })?;
        }
        Apply::Commit => {
            settled(&two, total.into())?;
        }
    }
    std::thread::sleep(super::SETTLE);
    let untold = match apply {
        Apply::Immediate => {
            let time = untold(&pair, &echo).context("while nobody was told")?;
            std::thread::sleep(super::SETTLE);
            Some(time)
        }
        Apply::Commit => None,
    };
    give(&pair, Node::Two)?;
    let start = Instant::now();
    echo.ask(dialogues)?;
    two.become_primary()?;
    let done = Instant::now();
    let ms = |at: Instant| (at - start).as_secs_f64() * 1e3;
    let first: f64 = echo.first_answers()?.into_iter().map(ms).sum();
    let first = first / f64::from(u32::try_from(dialogues)?);
    let forwarded = row("to the first packet forwarded");
    book.add(&forwarded, kind.who(), first);
    if let Some(untold) = untold {
        let untold = untold.as_secs_f64() * 1e3;
        book.add(&forwarded, Who::Limit, untold);
        eprintln!("    {} untold: first packet {untold:.3} ms", kind.name());
    }
    book.add(&row("to the command's end"), kind.who(), ms(done));
    eprintln!(
        "    {} {mode}: first packet {first:.3} ms, command {:.0} ms",
        kind.name(),
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

/// Gives a firewall the addresses; it has to ask for the ends, as they for it.
fn give(pair: &Pair, to: Node) -> Result<()> {
    pair.activate(to)?;
    pair.fw(to)
        .ip_batch("neigh flush dev lan\nneigh flush dev wan\n")
}

/// The median time to the first packet after the other firewall was given the
/// addresses, of which neither program is told: what the kernel takes.
fn untold(pair: &Pair, echo: &Echo) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..MOVES {
        give(pair, Node::Two)?;
        let start = Instant::now();
        echo.ask(1)?;
        times.extend(echo.first_answers()?.into_iter().map(|at| at - start));
        give(pair, Node::One)?;
        echo.ask(1)?;
        echo.first_answers()?;
    }
    times.sort_unstable();
    Ok(times.get(MOVES / 2).copied().unwrap_or_default())
}

/// UDP dialogues through the firewalls. Their ends stand for other machines: they
/// get a processor whoever works.
struct Echo {
    ask: Sender<usize>,
    answered: Receiver<Option<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
}

impl Echo {
    /// Prepares so many.
    fn start(pair: &Pair, count: usize) -> Result<Self> {
        let at: (IpAddr, u16) = (server_address(Family::V4), PORT);
        let server = pair.server.enter(|| UdpSocket::bind(at))?;
        server.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let over = stop.clone();
        std::thread::spawn(move || {
            hurry();
            let mut buf = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if let Ok((len, from)) = server.recv_from(&mut buf) {
                    let _ = server.send_to(buf.get(..len).unwrap_or_default(), from);
                }
            }
        });
        let client = || {
            let client = pair.client.enter(|| UdpSocket::bind(("0.0.0.0", 0)))?;
            client.connect(at)?;
            Ok(client)
        };
        let clients = (0..count).map(|_| client());
        let clients = clients.collect::<std::io::Result<Vec<_>>>()?;
        let (ask, asked) = channel();
        let (tell, answered) = channel();
        std::thread::spawn(move || {
            hurry();
            for (number, count) in (0..).zip(asked) {
                let asked = clients.get(..count).unwrap_or_default();
                if tell.send(first_answers(asked, number)).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            ask,
            answered,
            stop,
        })
    }

    /// Some questions and answers, which assure the first `count` connections.
    fn converse(&self, count: usize) -> Result<()> {
        for _ in 0..CONVERSATION {
            self.ask(count)?;
            self.first_answers().context("before the takeover")?;
        }
        Ok(())
    }

    /// Begins to ask in the first `count` dialogues.
    fn ask(&self, count: usize) -> Result<()> {
        Ok(self.ask.send(count)?)
    }

    /// When the first answer in each came since [`Echo::ask`].
    fn first_answers(&self) -> Result<Vec<Instant>> {
        self.answered.recv()?.context("no answer")
    }
}

/// Gives this thread a processor whoever works, and both ends the same: a wake-up
/// on another one takes as long as the rest of the dialogue.
fn hurry() {
    let hurried =
        in_real_time(&gettid().to_string()).and_then(|()| Processors::allowed()?.pin(SELF, 0));
    if let Err(error) = hurried {
        eprintln!("    an end of the dialogue waits for its turn: {error:#}");
    }
}

/// Asks who has not answered, every half millisecond at least; when each did.
/// The number tells answers from those to questions before.
fn first_answers(clients: &[UdpSocket], number: u32) -> Option<Vec<Instant>> {
    let start = Instant::now();
    let mut open: Vec<_> = clients.iter().collect();
    let mut times = Vec::new();
    while !open.is_empty() {
        if start.elapsed() > Duration::from_secs(60) {
            return None;
        }
        for client in &open {
            let _ = client.send(&number.to_be_bytes());
        }
        let fds = open.iter().map(|client| client.as_fd());
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(PATIENCE)), None);
        open.retain(|client| {
            let here = std::iter::from_fn(|| received(client)).any(|n| n == number);
            times.extend(here.then(Instant::now));
            !here
        });
    }
    Some(times)
}

/// The number in a datagram, if one is there.
fn received(client: &UdpSocket) -> Option<u32> {
    let mut buf = [0; 4];
    recv(client.as_raw_fd(), &mut buf, MsgFlags::MSG_DONTWAIT).ok()?;
    Some(u32::from_be_bytes(buf))
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
