//! The 32 bytes the kernel keeps per control connection.
//!
//! All zeros mean "never seen": the kernel hands them out with a new
//! connection and with an injected one whose data was not restored. Everything
//! else begins with a version. Four little-endian words, each packed from its
//! low bits; the layout is the same on every machine, because ctsync carries it.
//!
//! | word | contents |
//! |---|---|
//! | 0 | version, dialogue, hole, line automatons, changes acknowledged |
//! | 1 | next sequence number of the client and of the server |
//! | 2 | reply code, last expectation, announcement: kind, delimiter, step |
//! | 3 | announcement: number, addresses still possible; unacknowledged rewrite |

use super::announce::{Hosts, Partial};
use super::verb::Prefix;
use super::{Dir, Kind};

/// Private data of one connection.
pub type PrivateData = [u8; 32];

/// Version of the layout; never 0.
const VERSION: u64 = 1;

/// How the helper came by the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Origin {
    /// In its middle: failover without private data, or a helper that was off.
    #[default]
    Joined,
    /// From its first packet: the whole dialogue is known.
    Fresh,
}

/// Why parsing has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stop {
    #[default]
    No,
    Tls,
    NotFtp,
}

/// The client's last `PORT` or `EPRT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Active {
    #[default]
    None,
    /// Expected; a refusal by the server withdraws it.
    Opened,
    /// To be expected once the server agrees.
    Waiting,
}

/// Telnet command in progress (RFC 854).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Telnet {
    #[default]
    Text,
    /// After IAC.
    Iac,
    /// After IAC WILL, WONT, DO or DONT.
    Option,
}

/// Where the client's line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ClientLine {
    #[default]
    Start,
    Verb(Prefix),
    /// `EPSV` and this many characters of ` ALL`; 0: right behind the verb.
    EpsvArg(u8),
    /// In the endpoint of `PORT` or `EPRT`.
    Args,
    /// Until the line feed.
    Skip,
}

/// Where the server's line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServerLine {
    /// Digits of the code read, 0 to 3; inside a multi-line reply digits that
    /// equal its code.
    Code(u8),
    /// In the text of a 227 or 229.
    Args,
    /// Until the line feed.
    Skip,
}

impl Default for ServerLine {
    fn default() -> Self {
        Self::Code(0)
    }
}

/// Segments dropped because one before them is missing, or because a rewrite
/// has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hole {
    pub dir: Dir,
    /// Bytes missing before the lowest dropped segment, below 2^15; 0: nothing
    /// is missing, a rewrite waits.
    pub missing: u16,
    /// Times that segment was dropped, 1 to 3.
    pub drops: u8,
}

/// The last expectation of this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Last {
    pub live: bool,
    pub sender: Option<Dir>,
    /// Port as announced.
    pub inner: u16,
    /// Port as expected: another one under NAT if that was taken.
    pub outer: u16,
}

/// A rewrite the receiver has not acknowledged yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change {
    pub dir: Dir,
    /// Sender's sequence number of the first replaced byte.
    pub start: u32,
    /// Bytes replaced, below 128.
    pub len: u8,
    pub kind: Kind,
    pub delim: u8,
    /// The announcement is complete: the replacement ends with the port.
    pub complete: bool,
}

/// Private data, unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct State {
    pub origin: Origin,
    /// The server has greeted (220).
    pub greeted: bool,
    /// The client has named itself, or the server has let it in.
    pub login: bool,
    /// The client has sent a command of FTP.
    pub ftp: bool,
    pub stop: Stop,
    /// `AUTH` is unanswered.
    pub auth: bool,
    /// `PASV` is unanswered.
    pub pasv: bool,
    /// `EPSV` is unanswered.
    pub epsv: bool,
    pub active: Active,
    /// FIN seen, per direction.
    pub fin: [bool; 2],
    /// `next` is known, per direction.
    pub known: [bool; 2],
    /// Commands without their final reply, at most 7.
    pub outstanding: u8,
    pub hole: Option<Hole>,
    pub telnet: [Telnet; 2],
    pub client: ClientLine,
    pub server: ServerLine,
    /// Inside a multi-line reply with this `code`.
    pub multi: bool,
    pub next: [u32; 2],
    /// Reply code so far, or of the multi-line reply; below 1000.
    pub code: u16,
    pub last: Last,
    /// The announcement in progress. It and `change` share the room for kind and
    /// delimiter: if both exist at the end of a segment they are of one line.
    pub partial: Option<Partial>,
    pub change: Option<Change>,
    /// The receiver has acknowledged the last change of length, per direction.
    pub settled: [bool; 2],
    /// Bytes of the rewritten text sent so far while its announcement is not
    /// complete, below 64.
    pub emitted: u8,
}

struct Pack(u64, u32);

impl Pack {
    fn put(&mut self, value: impl Into<u64>, bits: u32) {
        self.0 |= (value.into() & ((1 << bits) - 1)) << self.1;
        self.1 += bits;
    }
}

struct Unpack(u64);

impl Unpack {
    fn u16(&mut self, bits: u32) -> u16 {
        let value = self.0 & ((1 << bits) - 1);
        self.0 >>= bits;
        u16::try_from(value).unwrap_or(0)
    }

    fn u8(&mut self, bits: u32) -> u8 {
        u8::try_from(self.u16(bits)).unwrap_or(0)
    }

    fn bool(&mut self) -> bool {
        self.u16(1) != 0
    }

    fn dir(&mut self) -> Dir {
        if self.bool() { Dir::Reply } else { Dir::Orig }
    }
}

const fn dir_bit(dir: Dir) -> u8 {
    match dir {
        Dir::Orig => 0,
        Dir::Reply => 1,
    }
}

impl State {
    /// Reads private data. `None`: all zeros, or a layout this version does not
    /// know (then the second value is true).
    pub fn decode(data: &PrivateData) -> (Option<Self>, bool) {
        let mut words = [0u64; 4];
        for (word, bytes) in words.iter_mut().zip(data.chunks_exact(8)) {
            *word = bytes.try_into().map_or(0, u64::from_le_bytes);
        }
        if words == [0; 4] {
            return (None, false);
        }
        let [w0, w1, w2, w3] = words;
        if w0 & 15 != VERSION {
            return (None, true);
        }
        let mut s = Self::default();
        let (group, tail) = s.unpack_0(w0);
        s.unpack_1(w1);
        let (active, partial) = s.unpack_2(w2);
        let hosts = Hosts {
            group,
            tail,
            ..partial.hosts
        };
        s.unpack_3(w3, active, Partial { hosts, ..partial });
        (Some(s), false)
    }

    /// The private data of this state.
    pub fn encode(&self) -> PrivateData {
        let words = [self.pack_0(), self.pack_1(), self.pack_2(), self.pack_3()];
        let mut data = PrivateData::default();
        for (bytes, word) in data.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        data
    }

    fn pack_0(&self) -> u64 {
        let mut p = Pack(VERSION, 4);
        p.put(u8::from(self.origin == Origin::Fresh), 1);
        p.put(u8::from(self.greeted), 1);
        p.put(u8::from(self.login), 1);
        p.put(u8::from(self.ftp), 1);
        p.put(self.stop as u8, 2);
        p.put(u8::from(self.auth), 1);
        p.put(u8::from(self.pasv), 1);
        p.put(u8::from(self.epsv), 1);
        p.put(self.active as u8, 2);
        for flag in self.fin.iter().chain(&self.known) {
            p.put(u8::from(*flag), 1);
        }
        p.put(self.outstanding.min(7), 3);
        let hole = self.hole.unwrap_or(Hole {
            dir: Dir::Orig,
            missing: 0,
            drops: 0,
        });
        p.put(hole.drops, 2);
        p.put(dir_bit(hole.dir), 1);
        p.put(hole.missing, 15);
        for telnet in self.telnet {
            p.put(telnet as u8, 2);
        }
        p.put(pack_client(self.client), 9);
        p.put(pack_server(self.server), 3);
        p.put(u8::from(self.multi), 1);
        let hosts = self.partial.unwrap_or_default().hosts;
        p.put(hosts.group, 3);
        p.put(u8::from(hosts.tail), 1);
        for settled in self.settled {
            p.put(u8::from(settled), 1);
        }
        p.0
    }

    fn unpack_0(&mut self, word: u64) -> (u8, bool) {
        let mut u = Unpack(word >> 4);
        self.origin = if u.bool() {
            Origin::Fresh
        } else {
            Origin::Joined
        };
        self.greeted = u.bool();
        self.login = u.bool();
        self.ftp = u.bool();
        self.stop = match u.u8(2) {
            0 => Stop::No,
            1 => Stop::Tls,
            _ => Stop::NotFtp,
        };
        self.auth = u.bool();
        self.pasv = u.bool();
        self.epsv = u.bool();
        self.active = match u.u8(2) {
            0 => Active::None,
            1 => Active::Opened,
            _ => Active::Waiting,
        };
        self.fin = [u.bool(), u.bool()];
        self.known = [u.bool(), u.bool()];
        self.outstanding = u.u8(3);
        let (drops, dir, missing) = (u.u8(2), u.dir(), u.u16(15));
        self.hole = (drops > 0).then_some(Hole {
            dir,
            missing,
            drops,
        });
        self.telnet = [unpack_telnet(u.u8(2)), unpack_telnet(u.u8(2))];
        self.client = unpack_client(u.u16(9));
        self.server = unpack_server(u.u8(3));
        self.multi = u.bool();
        let hosts = (u.u8(3), u.bool());
        self.settled = [u.bool(), u.bool()];
        hosts
    }

    fn pack_1(&self) -> u64 {
        let [orig, reply] = self.next;
        u64::from(orig) | u64::from(reply) << 32
    }

    fn unpack_1(&mut self, word: u64) {
        let low = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        let high = u32::try_from(word >> 32).unwrap_or(0);
        self.next = [low, high];
    }

    fn pack_2(&self) -> u64 {
        let mut p = Pack(0, 0);
        p.put(self.code, 10);
        p.put(self.last.inner, 16);
        p.put(self.last.outer, 16);
        p.put(u8::from(self.last.live), 1);
        p.put(self.last.sender.map_or(0, dir_bit), 1);
        let (kind, delim) = match (self.partial, self.change) {
            (Some(p), _) => (p.kind, p.delim),
            (None, Some(c)) => (c.kind, c.delim),
            (None, None) => (Kind::Port, 0),
        };
        p.put(kind as u8, 2);
        p.put(delim, 8);
        p.put(u8::from(self.partial.is_some()), 1);
        let partial = self.partial.unwrap_or_default();
        p.put(partial.step, 3);
        p.put(partial.digits, 3);
        p.put(u8::from(self.last.sender.is_some()), 1);
        p.0
    }

    fn unpack_2(&mut self, word: u64) -> (bool, Partial) {
        let mut u = Unpack(word);
        self.code = u.u16(10);
        self.last.inner = u.u16(16);
        self.last.outer = u.u16(16);
        self.last.live = u.bool();
        let sender = u.dir();
        let kind = match u.u8(2) {
            0 => Kind::Port,
            1 => Kind::Eprt,
            2 => Kind::Pasv,
            _ => Kind::Epsv,
        };
        let delim = u.u8(8);
        let active = u.bool();
        let partial = Partial {
            kind,
            delim,
            step: u.u8(3),
            digits: u.u8(3),
            ..Partial::default()
        };
        self.last.sender = u.bool().then_some(sender);
        (active, partial)
    }

    fn pack_3(&self) -> u64 {
        let mut p = Pack(0, 0);
        let partial = self.partial.unwrap_or_default();
        p.put(partial.value, 16);
        for alive in partial.hosts.alive {
            p.put(alive, 8);
        }
        let change = self.change.unwrap_or(Change {
            dir: Dir::Orig,
            start: self.next(Dir::Orig),
            len: 0,
            kind: Kind::Port,
            delim: 0,
            complete: false,
        });
        p.put(u8::from(self.change.is_some()), 1);
        p.put(dir_bit(change.dir), 1);
        p.put(self.next(change.dir).wrapping_sub(change.start), 16);
        p.put(change.len, 7);
        p.put(self.emitted, 6);
        p.put(u8::from(change.complete), 1);
        p.0
    }

    fn unpack_3(&mut self, word: u64, active: bool, mut partial: Partial) {
        let mut u = Unpack(word);
        partial.value = u.u16(16);
        partial.hosts.alive = [u.u8(8), u.u8(8)];
        self.partial = active.then_some(partial);
        let (active, dir, back, len) = (u.bool(), u.dir(), u.u16(16), u.u8(7));
        self.emitted = u.u8(6);
        let complete = u.bool();
        self.change = active.then_some(Change {
            dir,
            start: self.next(dir).wrapping_sub(u32::from(back)),
            len,
            kind: partial.kind,
            delim: partial.delim,
            complete,
        });
    }

    /// Next sequence number of a direction; meaningless unless known.
    pub const fn next(&self, dir: Dir) -> u32 {
        let [orig, reply] = self.next;
        match dir {
            Dir::Orig => orig,
            Dir::Reply => reply,
        }
    }

    /// Sets the next sequence number of a direction.
    pub const fn set_next(&mut self, dir: Dir, seq: u32) {
        let [orig, reply] = &mut self.next;
        match dir {
            Dir::Orig => *orig = seq,
            Dir::Reply => *reply = seq,
        }
    }

    /// Whether the next sequence number of a direction is known.
    pub const fn known(&self, dir: Dir) -> bool {
        let [orig, reply] = self.known;
        match dir {
            Dir::Orig => orig,
            Dir::Reply => reply,
        }
    }

    /// Whether a direction's last change of length is acknowledged.
    pub const fn settled(&self, dir: Dir) -> bool {
        let [orig, reply] = self.settled;
        match dir {
            Dir::Orig => orig,
            Dir::Reply => reply,
        }
    }

    /// Sets whether a direction's last change of length is acknowledged.
    pub const fn set_settled(&mut self, dir: Dir, yes: bool) {
        let [orig, reply] = &mut self.settled;
        match dir {
            Dir::Orig => *orig = yes,
            Dir::Reply => *reply = yes,
        }
    }

    /// Whether no Telnet command is in progress in a direction.
    pub fn telnet_idle(&self, dir: Dir) -> bool {
        let [orig, reply] = self.telnet;
        Telnet::Text
            == match dir {
                Dir::Orig => orig,
                Dir::Reply => reply,
            }
    }

    /// Telnet command in progress in a direction.
    pub const fn telnet_mut(&mut self, dir: Dir) -> &mut Telnet {
        let [orig, reply] = &mut self.telnet;
        match dir {
            Dir::Orig => orig,
            Dir::Reply => reply,
        }
    }
}

fn unpack_telnet(bits: u8) -> Telnet {
    match bits {
        0 => Telnet::Text,
        1 => Telnet::Iac,
        _ => Telnet::Option,
    }
}

const FIRST_VERB: u16 = 8;

fn pack_client(line: ClientLine) -> u16 {
    match line {
        ClientLine::Start => 0,
        ClientLine::Skip => 1,
        ClientLine::Args => 2,
        ClientLine::EpsvArg(n) => 3 + u16::from(n.min(4)),
        ClientLine::Verb(p) => {
            FIRST_VERB + u16::from(p.place) * 4 + u16::from(p.len.clamp(1, 4) - 1)
        }
    }
}

fn unpack_client(bits: u16) -> ClientLine {
    match bits {
        0 => ClientLine::Start,
        2 => ClientLine::Args,
        3..FIRST_VERB => ClientLine::EpsvArg(u8::try_from(bits - 3).unwrap_or(0)),
        1 => ClientLine::Skip,
        _ => {
            let n = bits - FIRST_VERB;
            match u8::try_from(n / 4) {
                Ok(place) if place < Prefix::PLACES => ClientLine::Verb(Prefix {
                    place,
                    len: u8::try_from(n % 4).unwrap_or(0) + 1,
                }),
                _ => ClientLine::Skip,
            }
        }
    }
}

fn pack_server(line: ServerLine) -> u8 {
    match line {
        ServerLine::Code(n) => n.min(3),
        ServerLine::Args => 4,
        ServerLine::Skip => 5,
    }
}

fn unpack_server(bits: u8) -> ServerLine {
    match bits {
        0..=3 => ServerLine::Code(bits),
        4 => ServerLine::Args,
        _ => ServerLine::Skip,
    }
}
