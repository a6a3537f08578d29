//! The endpoint in `PORT`, `EPRT`, 227 and 229, one byte at a time.
//!
//! The automaton keeps numbers, never text, so that it fits the private data at
//! any byte. Addresses are not kept at all: each group is compared with the two
//! addresses the text may show (the sender's as it knows itself, and as the
//! other side knows it). Behind the `::` of an IPv6 address the position of the
//! groups is open until its end: a bit per possible start.

use super::{Kind, Reason};
use std::net::IpAddr;

/// Digits of a number that can not be an octet, in the text of a 227.
const OVERFLOW: u8 = 7;
/// IPv6: behind the colon that ended a group.
const COLON: u8 = 5;
/// IPv6: behind `::`.
const DOUBLE: u8 = 6;
/// IPv6: behind a leading colon.
const LEADING: u8 = 7;

/// Which of the two addresses the text can still be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hosts {
    /// Per address: 0 if it is not. Else 1, or behind `::` bit `s - 1` for each
    /// group `s` the rest may begin at.
    pub alive: [u8; 2],
    /// Octet (`EPRT`) or group at hand, counted from the `::` behind it.
    pub group: u8,
    /// Behind `::`.
    pub tail: bool,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            alive: [1, 1],
            group: 0,
            tail: false,
        }
    }
}

impl Hosts {
    /// Whether the text is neither address.
    pub fn foreign(self) -> bool {
        self.alive == [0, 0]
    }

    /// Whether the text is the second address: the one the peer knows.
    pub fn outer(self) -> bool {
        let [_, outer] = self.alive;
        outer != 0
    }

    fn octet(&mut self, place: u8, value: u16, addrs: &[IpAddr; 2]) {
        for (alive, addr) in self.alive.iter_mut().zip(addrs) {
            let same = match addr {
                IpAddr::V4(a) => {
                    a.octets().get(usize::from(place)).map(|o| u16::from(*o)) == Some(value)
                }
                IpAddr::V6(_) => false,
            };
            *alive &= u8::from(same);
        }
    }

    fn group(&mut self, value: u16, addrs: &[IpAddr; 2]) {
        let place = usize::from(self.group);
        for (alive, addr) in self.alive.iter_mut().zip(addrs) {
            let groups = v6_groups(addr);
            if self.tail {
                for start in 1..=8usize {
                    if groups.get(start + place) != Some(&value) {
                        *alive &= !(1 << (start - 1));
                    }
                }
            } else if groups.get(place) != Some(&value) {
                *alive = 0;
            }
        }
    }

    /// `::` behind `self.group` groups.
    fn double(&mut self, addrs: &[IpAddr; 2]) {
        let from = usize::from(self.group);
        for (alive, addr) in self.alive.iter_mut().zip(addrs) {
            let groups = v6_groups(addr);
            let zeros = groups.iter().skip(from).take_while(|g| **g == 0).count();
            let mut starts = 0;
            for start in from + 1..=(from + zeros).min(8) {
                starts |= 1 << (start - 1);
            }
            *alive = if *alive == 0 { 0 } else { starts };
        }
        self.group = 0;
        self.tail = true;
    }

    /// The end, with `groups` of them behind `::`, if there is one.
    fn end(&mut self, groups: u8) {
        for alive in &mut self.alive {
            let start = 8u8.checked_sub(groups).filter(|s| *s > 0);
            let matches = match start {
                _ if !self.tail => *alive != 0,
                Some(start) => *alive & 1 << (start - 1) != 0,
                None => false,
            };
            *alive = u8::from(matches);
        }
        self.group = 0;
        self.tail = false;
    }
}

fn v6_groups(addr: &IpAddr) -> [u16; 8] {
    match addr {
        IpAddr::V6(a) => a.segments(),
        IpAddr::V4(_) => [0; 8],
    }
}

/// An announcement in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partial {
    pub kind: Kind,
    /// `EPRT`'s or 229's delimiter.
    pub delim: u8,
    /// Field at hand. `PORT`, 227: number 0 to 5. `EPRT`: delimiter, protocol,
    /// delimiter, address, port. 229: parenthesis, three delimiters, port.
    pub step: u8,
    /// Digits of the number at hand, or one of the marks above.
    pub digits: u8,
    /// The number at hand. In number 5 of a `PORT` its high byte is number 4.
    pub value: u16,
    pub hosts: Hosts,
}

impl Default for Partial {
    fn default() -> Self {
        Self::new(Kind::Port)
    }
}

/// What a byte did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    More,
    /// The text so far was none; there may be one further on (replies only).
    Reset,
    /// The byte ends the endpoint and is not part of what is rewritten.
    Done,
    Bad(Reason),
}

impl Partial {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            delim: 0,
            step: 0,
            digits: 0,
            value: 0,
            hosts: Hosts::default(),
        }
    }

    /// Whether the text so far can be the beginning of one of the addresses.
    /// Only in a 227, whose text may have other numbers before the endpoint.
    pub fn plausible(&self, addrs: &[IpAddr; 2]) -> bool {
        if self.kind != Kind::Pasv || self.step > 3 {
            return self.kind != Kind::Pasv || !self.hosts.foreign();
        }
        self.hosts.alive.iter().zip(addrs).any(|(alive, addr)| {
            let octet = match addr {
                IpAddr::V4(a) => a.octets().get(usize::from(self.step)).copied(),
                IpAddr::V6(_) => None,
            };
            let octet = octet.map_or(0, u16::from);
            let begins = [octet, octet / 10, octet / 100].contains(&self.value);
            *alive != 0 && self.digits != OVERFLOW && (begins || self.value == 0)
        })
    }

    /// Whether the part that NAT rewrites has begun, or begins with the next
    /// byte.
    pub const fn begun(&self) -> bool {
        match self.kind {
            Kind::Port | Kind::Pasv => self.step > 0 || self.digits > 0,
            Kind::Eprt => self.step >= 3,
            Kind::Epsv => self.step >= 4,
        }
    }

    /// Whether the byte that began that part belongs to it.
    pub const fn begins_with_digit(&self) -> bool {
        matches!(self.kind, Kind::Port | Kind::Pasv)
    }

    /// Takes one byte. `addrs`: the addresses the text may show.
    pub fn feed(&mut self, byte: u8, addrs: &[IpAddr; 2]) -> Fed {
        match self.kind {
            Kind::Port | Kind::Pasv => self.feed_six(byte, addrs),
            Kind::Eprt => self.feed_eprt(byte, addrs),
            Kind::Epsv => self.feed_epsv(byte),
        }
    }

    fn restart(&mut self) -> Fed {
        *self = Self::new(self.kind);
        Fed::Reset
    }

    fn feed_six(&mut self, byte: u8, addrs: &[IpAddr; 2]) -> Fed {
        match byte {
            b'0'..=b'9' => self.six_digit(byte - b'0'),
            b',' if self.digits == OVERFLOW => Fed::Bad(Reason::BadNumber),
            b',' if self.digits > 0 && self.step < 5 => {
                self.six_comma(addrs);
                Fed::More
            }
            _ => self.six_other(byte),
        }
    }

    fn six_digit(&mut self, digit: u8) -> Fed {
        if self.digits == OVERFLOW {
            return Fed::More;
        }
        let number = (self.value & 0xff) * 10 + u16::from(digit);
        if self.digits >= 3 || number > 255 {
            if self.kind == Kind::Pasv && self.step == 0 {
                self.digits = OVERFLOW;
                return Fed::More;
            }
            return Fed::Bad(Reason::BadNumber);
        }
        self.value = self.value & 0xff00 | number;
        self.digits += 1;
        Fed::More
    }

    fn six_comma(&mut self, addrs: &[IpAddr; 2]) {
        if self.step < 4 {
            self.hosts.octet(self.step, self.value, addrs);
            self.value = 0;
        } else {
            self.value <<= 8;
        }
        self.step += 1;
        self.digits = 0;
    }

    fn six_other(&mut self, byte: u8) -> Fed {
        let whole = self.step == 5 && (1..=3).contains(&self.digits);
        match self.kind {
            Kind::Port if whole && matches!(byte, b'\r' | b'\n' | b' ' | b'\t') => Fed::Done,
            Kind::Port if !self.begun() && byte == b' ' => Fed::More,
            Kind::Pasv if whole => Fed::Done,
            Kind::Pasv if byte != b'\n' && self.begun() => self.restart(),
            Kind::Pasv if byte != b'\n' => Fed::More,
            _ => Fed::Bad(Reason::BadSyntax),
        }
    }

    fn feed_eprt(&mut self, byte: u8, addrs: &[IpAddr; 2]) -> Fed {
        let [own, _] = addrs;
        match self.step {
            0 if byte == b' ' => return Fed::More,
            0 if byte.is_ascii_punctuation() && byte != b'.' && byte != b':' => self.delim = byte,
            1 if byte == b'1' && own.is_ipv4() || byte == b'2' && own.is_ipv6() => {}
            1 if byte == b'1' || byte == b'2' => return Fed::Bad(Reason::WrongFamily),
            2 if byte == self.delim => {}
            3 if byte == self.delim => return self.eprt_address_end(addrs),
            3 if own.is_ipv4() => return self.eprt_v4(byte, addrs),
            3 => return self.eprt_v6(byte, addrs),
            4 => return self.port(byte),
            _ => return Fed::Bad(Reason::BadSyntax),
        }
        self.step += 1;
        Fed::More
    }

    fn eprt_v4(&mut self, byte: u8, addrs: &[IpAddr; 2]) -> Fed {
        match byte {
            b'0'..=b'9' => self.six_digit(byte - b'0'),
            b'.' if self.digits > 0 && self.hosts.group < 3 => {
                self.hosts.octet(self.hosts.group, self.value, addrs);
                self.hosts.group += 1;
                (self.digits, self.value) = (0, 0);
                Fed::More
            }
            _ => Fed::Bad(Reason::BadSyntax),
        }
    }

    fn eprt_v6(&mut self, byte: u8, addrs: &[IpAddr; 2]) -> Fed {
        let hex = char::from(byte)
            .to_digit(16)
            .and_then(|h| u16::try_from(h).ok());
        match (hex, self.digits) {
            (Some(h), 0 | COLON | DOUBLE) => (self.digits, self.value) = (1, h),
            (Some(h), 1..=3) => (self.digits, self.value) = (self.digits + 1, self.value << 4 | h),
            (None, 0) if byte == b':' => self.digits = LEADING,
            (None, 1..=4) if byte == b':' && self.hosts.group < 7 => {
                self.hosts.group(self.value, addrs);
                self.hosts.group += 1;
                self.digits = COLON;
            }
            (None, COLON | LEADING) if byte == b':' && !self.hosts.tail => {
                self.hosts.double(addrs);
                self.digits = DOUBLE;
            }
            _ => return Fed::Bad(Reason::BadSyntax),
        }
        Fed::More
    }

    fn eprt_address_end(&mut self, addrs: &[IpAddr; 2]) -> Fed {
        let [own, _] = addrs;
        let number = (1..=4).contains(&self.digits);
        if own.is_ipv4() {
            if !number || self.hosts.group != 3 {
                return Fed::Bad(Reason::BadSyntax);
            }
            self.hosts.octet(3, self.value, addrs);
            self.hosts.group = 0;
        } else if number && (self.hosts.tail || self.hosts.group == 7) {
            self.hosts.group(self.value, addrs);
            let groups = self.hosts.group + 1;
            self.hosts.end(groups);
        } else if self.digits == DOUBLE {
            self.hosts.end(0);
        } else {
            return Fed::Bad(Reason::BadSyntax);
        }
        (self.step, self.digits, self.value) = (4, 0, 0);
        Fed::More
    }

    fn feed_epsv(&mut self, byte: u8) -> Fed {
        let graphic = byte.is_ascii_graphic() && !byte.is_ascii_digit();
        match self.step {
            _ if byte == b'\n' => return Fed::Bad(Reason::BadSyntax),
            0 if byte == b'(' => self.step = 1,
            0 => {}
            1 if graphic => (self.delim, self.step) = (byte, 2),
            2 | 3 if byte == self.delim => self.step += 1,
            4 if byte.is_ascii_digit() || byte == self.delim && self.digits > 0 => {
                return self.port(byte);
            }
            _ => {
                let fed = self.restart();
                self.step = u8::from(byte == b'(');
                return fed;
            }
        }
        Fed::More
    }

    fn port(&mut self, byte: u8) -> Fed {
        if byte == self.delim {
            return match self.digits {
                0 => Fed::Bad(Reason::BadSyntax),
                _ => Fed::Done,
            };
        }
        if !byte.is_ascii_digit() {
            return Fed::Bad(Reason::BadSyntax);
        }
        let number = u32::from(self.value) * 10 + u32::from(byte - b'0');
        match u16::try_from(number) {
            Ok(value) if self.digits < 5 => {
                self.value = value;
                self.digits += 1;
                Fed::More
            }
            _ => Fed::Bad(Reason::BadNumber),
        }
    }
}

/// The address in the text of a whole announcement: from the first byte that
/// NAT would rewrite to the end of the port.
pub(super) fn host(kind: Kind, delim: u8, text: &[u8]) -> Option<IpAddr> {
    match kind {
        Kind::Port | Kind::Pasv => {
            let mut octets = [0u8; 4];
            let mut fields = text.split(|b| *b == b',');
            for octet in &mut octets {
                *octet = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            }
            Some(IpAddr::from(octets))
        }
        Kind::Eprt => {
            let field = text.split(|b| *b == delim).next()?;
            std::str::from_utf8(field).ok()?.parse().ok()
        }
        Kind::Epsv => None,
    }
}
