//! ctsync next to conntrackd.

pub mod burst;
pub mod churn;
pub mod latency;
pub mod rejoin;
pub mod takeover;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::netns::Namespace;
use lab::pair::Node;

use crate::contender::{Apply, Counts, Daemon, Kind, Setup};
use crate::link::{Link, inside};
use crate::load::{Act, Injector, Shape};
use crate::process;

/// Between two looks at a cache.
const LOOK: Duration = Duration::from_millis(10);
/// What a cache that is not complete may stay unchanged before it counts as
/// not going to be.
const STALLED: Duration = Duration::from_secs(4);
/// What acknowledgements may take after the last entry.
const SETTLE: Duration = Duration::from_millis(300);

/// Two nodes that mirror.
#[derive(Debug)]
pub struct World {
    pub link: Link,
    pub setup: Setup,
    pub one: Daemon,
    pub two: Daemon,
}

impl World {
    /// Starts both.
    pub fn new(kind: Kind, apply: Apply) -> Result<Self> {
        let link = Link::new()?;
        let setup = Setup::new(kind, apply)?;
        let one = setup.start(link.at(Node::One), Node::One)?;
        let two = setup.start(link.at(Node::Two), Node::Two)?;
        let world = Self {
            link,
            setup,
            one,
            two,
        };
        world.one.wait_connected()?;
        world.two.wait_connected()?;
        std::thread::sleep(SETTLE);
        Ok(world)
    }

    /// A socket to the first node's kernel.
    pub fn injector(&self) -> Result<Injector> {
        injector(self.link.at(Node::One))
    }

    /// Makes connections `from..to` at the first node, and waits until the
    /// second has them.
    pub fn fill(&self, from: u32, to: u32) -> Result<()> {
        self.injector()?.burst(from, to, Act::Create)?;
        let got = settled(&self.two, u64::from(to))?.0;
        anyhow::ensure!(got.external == u64::from(to), "{got:?}, wanted {to}");
        Ok(())
    }

    pub fn used(&self) -> Result<Used> {
        Ok(Used {
            cpu: [&self.one, &self.two].map(|d| process::cpu(d.pid())),
            memory: [&self.one, &self.two].map(|d| process::memory(d.pid())),
            bytes: self.link.bytes()?,
        })
    }

    /// Ends both, with the kernel's tables empty.
    pub fn end(self) -> Result<()> {
        self.one.stop()?;
        self.two.stop()?;
        self.link.flush()
    }
}

/// A socket to a namespace's kernel.
pub fn injector(at: &Namespace) -> Result<Injector> {
    inside(at, || Injector::open(Shape::default()))
}

/// What both daemons have used so far: sender, receiver.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    pub cpu: [Duration; 2],
    pub memory: [u64; 2],
    pub bytes: u64,
}

impl Used {
    /// Since `before`.
    pub fn since(&self, before: &Self) -> Self {
        let [a, b] = self.cpu;
        let [c, d] = before.cpu;
        let [e, f] = self.memory;
        let [g, h] = before.memory;
        Self {
            cpu: [a.saturating_sub(c), b.saturating_sub(d)],
            memory: [e.saturating_sub(g), f.saturating_sub(h)],
            bytes: self.bytes - before.bytes,
        }
    }
}

/// Waits until the external cache has `count` entries, or does not change any
/// more; its counts, and when they were first seen.
pub fn settled(daemon: &Daemon, count: u64) -> Result<(Counts, Instant)> {
    let mut last: Option<Counts> = None;
    let start = Instant::now();
    let mut changed = start;
    loop {
        // A daemon that is too busy to answer is not stalled.
        let counts = daemon.counts().context("asking for counts")?;
        let now = Instant::now();
        if counts.external == count {
            return Ok((counts, now));
        }
        if last != Some(counts) {
            last = Some(counts);
            changed = now;
        } else if changed.elapsed() > STALLED {
            return Ok((counts, changed));
        }
        // More often at first: each look costs the daemon something.
        let soon = now - start < LOOK * 2;
        std::thread::sleep(if soon { LOOK / 10 } else { LOOK });
    }
}

/// `100000` as `100k`.
pub fn short(n: u32) -> String {
    if n % 1_000_000 == 0 {
        format!("{}M", n / 1_000_000)
    } else {
        format!("{}k", n / 1000)
    }
}
