//! Ways to a peer: one per link, used in order as long as they answer.

use std::net::SocketAddr;
use std::time::Duration;

/// A way without answers for so long is not used if another one has some.
const SILENT: Duration = Duration::from_millis(1600);

/// One way to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The peer's address there.
    pub address: Option<SocketAddr>,
    /// When something authentic last came this way.
    pub heard: Option<Duration>,
    /// When a probe last came back: the way works in both directions.
    pub answered: Option<Duration>,
    /// Round trip of the last probe.
    pub rtt: Option<Duration>,
}

/// All ways to a peer, the preferred one first.
#[derive(Debug)]
pub struct Paths(Vec<Path>);

impl Paths {
    /// Ways to these addresses, by link.
    pub fn new(endpoints: Vec<Option<SocketAddr>>) -> Self {
        let path = |address| Path {
            address,
            heard: None,
            answered: None,
            rtt: None,
        };
        Self(endpoints.into_iter().map(path).collect())
    }

    /// The ways.
    pub fn all(&self) -> &[Path] {
        &self.0
    }

    /// Something authentic came from `from`: the peer is there.
    pub fn heard(&mut self, link: usize, from: SocketAddr, now: Duration) {
        if let Some(path) = self.0.get_mut(link) {
            path.heard = Some(now);
            path.address = Some(from);
        }
    }

    /// A probe came back.
    pub fn on_pong(&mut self, link: usize, rtt: Duration, now: Duration) {
        if let Some(path) = self.0.get_mut(link) {
            path.rtt = Some(rtt);
            path.heard = Some(now);
            path.answered = Some(now);
        }
    }

    /// The first way that works in both directions, else the first one that
    /// the peer is heard on, else the one it was heard on last.
    pub fn active(&self, now: Duration) -> Option<usize> {
        let fresh = |at: Option<Duration>| at.is_some_and(|h| now < h + SILENT);
        let both = self.0.iter().position(|p| fresh(p.answered));
        both.or_else(|| self.0.iter().position(|p| fresh(p.heard)))
            .or_else(|| {
                let known = self.0.iter().enumerate();
                let known = known.filter(|(_, p)| p.address.is_some());
                known.max_by_key(|(_, p)| p.heard).map(|(i, _)| i)
            })
    }
}
