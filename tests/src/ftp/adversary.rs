//! Scripted dialogues in which segments are cut, swapped or lost, or one side
//! wants more than it should get; and what a helper makes of each.
//!
//! Every case is about port 45000: of the client (10.0.1.2), of the server
//! (10.0.2.2), or of somebody else. What is open is tried with a connection
//! through a firewall that refuses what isn't related.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use crate::firewall::Nat;
use crate::ftp::script::{Dialogue, data_passes, moment};
use crate::results;
use crate::topology::{Family, Topology, client_address, server_address};
use crate::wait::until_true;

/// What a case should come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The data connection passes.
    Open,
    /// It does not.
    Closed,
}

/// What it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Open, as wanted.
    Follows,
    /// Not open, as wanted.
    Refuses,
    /// Not open, but wanted.
    Misses,
    /// Open, and not wanted.
    Hole,
    /// A segment was never delivered: the control connection hangs.
    Stalls,
}

impl Outcome {
    /// In tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Follows => "follows",
            Self::Refuses => "refuses",
            Self::Misses => "misses",
            Self::Hole => "opens a hole",
            Self::Stalls => "stalls",
        }
    }
}

/// One thing that happens on the control connection.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// The client sends a segment, which is acknowledged.
    Client(&'static str),
    /// The server does.
    Server(&'static str),
    /// The client sends two segments, cut at the offset, one after the other
    /// is acknowledged.
    ClientCut(&'static str, usize),
    /// The server does.
    ServerCut(&'static str, usize),
    /// The client sends two segments, of which the second arrives first.
    ClientSwapped(&'static str, usize),
    /// The server does.
    ServerSwapped(&'static str, usize),
    /// Both close.
    Close,
}

/// A dialogue.
#[derive(Debug)]
pub struct Case {
    /// What is special about it.
    pub name: &'static str,
    /// Whether greeting and login come first.
    pub login: bool,
    /// What a helper should do.
    pub wanted: Wanted,
    /// What the kernel's nf_conntrack_ftp does, as it was measured.
    pub kernel: Outcome,
    /// The dialogue.
    pub steps: &'static [Step],
}

const PORT: &str = "PORT 10,0,1,2,175,200\r\n";
const EPRT: &str = "EPRT |1|10.0.1.2|45000|\r\n";
const REPLY_227: &str = "227 Entering Passive Mode (10,0,2,2,175,200).\r\n";
const REPLY_229: &str = "229 Extended Passive (|||45000|)\r\n";
const PASV: Step = Step::Client("PASV\r\n");
const EPSV: Step = Step::Client("EPSV\r\n");

use Outcome::{Follows, Hole, Misses, Refuses, Stalls};
use Step::{Client, ClientCut, ClientSwapped, Close, Server, ServerCut, ServerSwapped};

const fn open(name: &'static str, kernel: Outcome, steps: &'static [Step]) -> Case {
    Case {
        name,
        login: true,
        wanted: Wanted::Open,
        kernel,
        steps,
    }
}

const fn closed(name: &'static str, kernel: Outcome, steps: &'static [Step]) -> Case {
    Case {
        wanted: Wanted::Closed,
        ..open(name, kernel, steps)
    }
}

const fn stranger(name: &'static str, kernel: Outcome, steps: &'static [Step]) -> Case {
    Case {
        login: false,
        ..closed(name, kernel, steps)
    }
}

/// All of them.
pub const CASES: &[Case] = &[
    open("PORT in one segment", Follows, &[Client(PORT)]),
    open("EPRT in one segment", Follows, &[Client(EPRT)]),
    open("227 in one segment", Follows, &[PASV, Server(REPLY_227)]),
    open("229 in one segment", Follows, &[EPSV, Server(REPLY_229)]),
    open("PORT cut in the verb", Stalls, &[ClientCut(PORT, 2)]),
    open("PORT cut in the address", Stalls, &[ClientCut(PORT, 9)]),
    open("PORT cut in the port", Stalls, &[ClientCut(PORT, 19)]),
    open(
        "PORT cut before its line feed",
        Follows,
        &[ClientCut(PORT, 22)],
    ),
    open("EPRT cut in the verb", Stalls, &[ClientCut(EPRT, 3)]),
    open("EPRT cut in the port", Stalls, &[ClientCut(EPRT, 20)]),
    open(
        "227 cut in the code",
        Stalls,
        &[PASV, ServerCut(REPLY_227, 2)],
    ),
    open(
        "227 cut in the text",
        Stalls,
        &[PASV, ServerCut(REPLY_227, 12)],
    ),
    open(
        "227 cut in the port",
        Stalls,
        &[PASV, ServerCut(REPLY_227, 41)],
    ),
    open(
        "229 cut in the text",
        Stalls,
        &[EPSV, ServerCut(REPLY_229, 12)],
    ),
    open(
        "229 cut in the port",
        Stalls,
        &[EPSV, ServerCut(REPLY_229, 27)],
    ),
    open(
        "halves of a PORT swapped",
        Stalls,
        &[ClientSwapped(PORT, 9)],
    ),
    open(
        "halves of a 227 swapped",
        Stalls,
        &[PASV, ServerSwapped(REPLY_227, 30)],
    ),
    open(
        "NOOP lost, PORT arrives first",
        Misses,
        &[ClientSwapped("NOOP\r\nPORT 10,0,1,2,175,200\r\n", 6)],
    ),
    open(
        "PORT as the second line of a segment",
        Misses,
        &[Client("NOOP\r\nPORT 10,0,1,2,175,200\r\nTYPE I\r\n")],
    ),
    open(
        "227 behind another reply in a segment",
        Misses,
        &[
            Client("TYPE I\r\nPASV\r\n"),
            Server("200 ok\r\n227 Passive (10,0,2,2,175,200)\r\n"),
        ],
    ),
    open(
        "a 227 without parentheses",
        Follows,
        &[PASV, Server("227 Passive 10,0,2,2,175,200\r\n")],
    ),
    open(
        "a 227 that ends a multi-line reply",
        Misses,
        &[PASV, Server("227-Passive\r\n227 (10,0,2,2,175,200)\r\n")],
    ),
    open(
        "port in lower case",
        Follows,
        &[Client("port 10,0,1,2,175,200\r\n")],
    ),
    open(
        "PORT after a failed AUTH TLS",
        Follows,
        &[Client("AUTH TLS\r\n"), Server("500 no\r\n"), Client(PORT)],
    ),
    closed("a 227 that nobody asked for", Hole, &[Server(REPLY_227)]),
    closed(
        "a 227 after PASV was refused",
        Hole,
        &[PASV, Server("500 no\r\n"), Server(REPLY_227)],
    ),
    closed("a 229 that answers PASV", Hole, &[PASV, Server(REPLY_229)]),
    closed("a 227 that answers EPSV", Hole, &[EPSV, Server(REPLY_227)]),
    closed(
        "a 227 line inside a multi-line reply",
        Hole,
        &[
            Client("STAT\r\n"),
            Server("211-status\r\n"),
            Server(REPLY_227),
            Server("211 end\r\n"),
        ],
    ),
    closed(
        "a 227 for somebody else's address",
        Refuses,
        &[PASV, Server("227 Passive (10,0,2,1,175,200)\r\n")],
    ),
    closed(
        "a verb that only begins with PORT",
        Hole,
        &[Client("PORTX 10,0,1,2,175,200\r\n")],
    ),
    closed(
        "PORT that is not at the start of a line",
        Refuses,
        &[Client("SITE PORT 10,0,1,2,175,200\r\n")],
    ),
    closed(
        "PORT for somebody else's address",
        Refuses,
        &[Client("PORT 10,0,1,1,175,200\r\n")],
    ),
    closed(
        "PORT without an end",
        Stalls,
        &[Client("PORT 10,0,1,2,175,200")],
    ),
    closed(
        "a number above 255 in PORT",
        Hole,
        &[Client("PORT 10,0,1,2,175,456\r\n")],
    ),
    closed(
        "ciphertext after AUTH TLS that reads PORT",
        Hole,
        &[
            Client("AUTH TLS\r\n"),
            Server("234 go ahead\r\n"),
            Client("\x16\x03\x01\x02\r\n"),
            Client(PORT),
        ],
    ),
    stranger(
        "HTTP POST with a PORT line, no greeting",
        Hole,
        &[
            Client("POST / HTTP/1.1\r\nHost: 10.0.2.2:21\r\n\r\nx\r\n"),
            Client(PORT),
        ],
    ),
    stranger(
        "HTTP POST with a PORT line after a greeting",
        Hole,
        &[
            Server("220 ready\r\n"),
            Client("POST / HTTP/1.1\r\nHost: 10.0.2.2:21\r\n\r\nx\r\n"),
            Client(PORT),
        ],
    ),
    stranger(
        "PORT before a login",
        Hole,
        &[Server("220 ready\r\n"), Client("NOOP\r\n"), Client(PORT)],
    ),
    closed("PORT, then both ends close", Hole, &[Client(PORT), Close]),
];

/// Where conntrackd's helper does something else than the kernel's, as it was
/// measured.
const CONNTRACKD: &[(&str, Outcome)] = &[
    ("229 in one segment", Misses),
    ("PORT cut in the verb", Misses),
    ("PORT cut in the address", Misses),
    ("PORT cut in the port", Misses),
    ("EPRT cut in the verb", Misses),
    ("EPRT cut in the port", Misses),
    ("227 cut in the code", Misses),
    ("227 cut in the text", Misses),
    ("227 cut in the port", Misses),
    ("229 cut in the text", Misses),
    ("229 cut in the port", Misses),
    ("halves of a PORT swapped", Misses),
    ("halves of a 227 swapped", Misses),
    ("a 227 without parentheses", Misses),
    ("port in lower case", Misses),
    ("a 229 that answers PASV", Refuses),
    ("PORT without an end", Refuses),
];

impl Case {
    /// What conntrackd's helper makes of it.
    #[must_use]
    pub fn conntrackd(&self) -> Outcome {
        let other = CONNTRACKD.iter().find(|(name, _)| *name == self.name);
        other.map_or(self.kernel, |(_, outcome)| *outcome)
    }
}

/// Plays a case through the firewall, and says what became of it.
///
/// # Errors
/// If it could not be played.
pub fn play(topology: &Topology, case: &Case) -> Result<Outcome> {
    let mut dialogue = Dialogue::open(topology, Nat::None, Family::V4)?;
    if case.login {
        dialogue.login()?;
    }
    for step in case.steps {
        if matches!(step, Close) {
            let port = dialogue.client.local()?.port();
            drop(dialogue);
            gone(topology, port)?;
            break;
        }
        if !step.play(&mut dialogue)? {
            return Ok(Stalls);
        }
    }
    let open = is_open(topology)?;
    Ok(match (case.wanted, open) {
        (Wanted::Open, true) => Follows,
        (Wanted::Open, false) => Misses,
        (Wanted::Closed, true) => Hole,
        (Wanted::Closed, false) => Refuses,
    })
}

/// Plays all cases, records what became of them, and compares.
///
/// # Errors
/// With the cases that came to something else than `expected` says.
pub fn play_all(
    helper: &str,
    topology: &Topology,
    expected: impl Fn(&Case) -> Outcome,
) -> Result<()> {
    let mut wrong = Vec::new();
    for case in CASES {
        let outcome = play(topology, case).with_context(|| case.name)?;
        println!("{}: {}", case.name, outcome.name());
        results::record(&["script", helper, case.name, outcome.name()])?;
        if outcome != expected(case) {
            wrong.push((case.name, outcome));
        }
    }
    ensure!(wrong.is_empty(), "not as expected: {wrong:#?}");
    Ok(())
}

impl Step {
    /// False if a segment was not delivered.
    fn play(self, dialogue: &mut Dialogue<'_>) -> Result<bool> {
        let (text, cut, end, swapped) = match self {
            Client(text) => (text, 0, &mut dialogue.client, false),
            Server(text) => (text, 0, &mut dialogue.server, false),
            ClientCut(text, cut) => (text, cut, &mut dialogue.client, false),
            ServerCut(text, cut) => (text, cut, &mut dialogue.server, false),
            ClientSwapped(text, cut) => (text, cut, &mut dialogue.client, true),
            ServerSwapped(text, cut) => (text, cut, &mut dialogue.server, true),
            Close => return Ok(true),
        };
        let (first, second) = text.as_bytes().split_at(cut);
        if swapped {
            end.send_swapped(first, second)?;
            return Ok(end.acknowledged(3 * moment()).is_ok());
        }
        for segment in [first, second] {
            if !segment.is_empty() {
                end.write(segment)?;
                if end.acknowledged(moment()).is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Waits until both ends of the client's connection have seen its end.
fn gone(topology: &Topology, port: u16) -> Result<()> {
    until_true("the end of the control connection", || {
        [&topology.client, &topology.server]
            .iter()
            .all(|end| end.proc_net("tcp").is_ok_and(|table| !alive(&table, port)))
    })
}

/// Whether /proc/net/tcp has a connection from or to a port other than in
/// `TIME_WAIT` (6): columns sl, local, remote, state.
fn alive(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let &[_, local, remote, state, ..] = fields.as_slice() else {
            return false;
        };
        (local.ends_with(&port) || remote.ends_with(&port)) && state != "06"
    })
}

/// May the server connect to port 45000 of the client, or the other way?
fn is_open(topology: &Topology) -> Result<bool> {
    const DATA: u16 = 45000;
    let client = SocketAddr::new(client_address(Family::V4), DATA);
    let server = SocketAddr::new(server_address(Family::V4), DATA);
    Ok(data_passes(&topology.server, &topology.client, client)?
        || data_passes(&topology.client, &topology.server, server)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_cuts_lie_inside() {
        let mut names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CASES.len());
        for step in CASES.iter().flat_map(|case| case.steps) {
            if let ClientCut(text, at) | ServerCut(text, at) = step {
                assert!((1..text.len()).contains(at));
            }
        }
    }

    #[test]
    fn only_time_wait_counts_as_gone() {
        let table = |state: &str| format!("0: 0201000A:C350 0202000A:0015 {state} 0:0\n");
        assert!(alive(&table("01"), 0xc350) && alive(&table("01"), 21));
        assert!(!alive(&table("06"), 0xc350));
        assert!(!alive(&table("01"), 0xc351));
    }
}
