//! Lines: the loop over new bytes, Telnet commands, and the ends of lines.
//!
//! Only a line feed ends a line. A bare carriage return or a NUL is text that no
//! command contains. Inside the part of a line that matters Telnet commands
//! (RFC 854) are left out; the rest is skipped up to the line feed.

use super::conn::Dir;
use super::state::{ClientLine, ServerLine, Stop, Telnet};
use super::tracker::{Effects, Run};
use memchr::memchr;

const IAC: u8 = 255;
const WILL: u8 = 251;
const DONT: u8 = 254;
/// Lowest Telnet command: SE.
const SE: u8 = 240;

impl Telnet {
    /// What the byte is to a reader of text, if anything.
    fn feed(&mut self, byte: u8) -> Option<u8> {
        let before = std::mem::take(self);
        match (before, byte) {
            (Self::Text, IAC) => *self = Self::Iac,
            (Self::Iac, WILL..=DONT) => *self = Self::Option,
            (Self::Iac, SE..WILL) | (Self::Option, _) => {}
            (Self::Text | Self::Iac, _) => return Some(byte),
        }
        None
    }
}

/// The next line feed. Most are near.
pub(super) fn line_feed(bytes: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    if let Some(first) = bytes.first_chunk::<8>() {
        let differs = u64::from_le_bytes(*first) ^ (LOW * u64::from(b'\n'));
        let zero = differs.wrapping_sub(LOW) & !differs & (LOW << 7);
        if zero != 0 {
            return usize::try_from(zero.trailing_zeros() / 8).ok();
        }
    }
    memchr(b'\n', bytes)
}

impl<E: Effects> Run<'_, E> {
    /// Parses the payload from `base` on.
    pub fn feed(&mut self, base: usize) {
        let mut at = self.words(base);
        while self.st.stop == Stop::No && self.denied.is_none() && self.cut.is_none() {
            if self.skipping() {
                let rest = self.payload.get(at..).unwrap_or(&[]);
                let Some(end) = line_feed(rest) else {
                    return;
                };
                at += end + 1;
                self.line_start(at);
                at = self.words(at);
                continue;
            }
            let Some(&byte) = self.payload.get(at) else {
                return;
            };
            at += 1;
            if let Some(byte) = self.st.telnet_mut(self.dir).feed(byte) {
                match self.dir {
                    Dir::Orig => self.client_byte(byte, at - 1),
                    Dir::Reply => self.server_byte(byte, at - 1),
                }
                if byte == b'\n' && self.cut.is_none() {
                    self.line_start(at);
                    at = self.words(at);
                }
            }
        }
    }

    /// What can be read in larger steps than bytes from `at` on: returns where
    /// the rest begins.
    fn words(&mut self, at: usize) -> usize {
        let at = self.skim(at);
        at + self.whole_word(at)
    }

    /// Reads a verb or a code at once if it begins a line at `at` and all of it
    /// is there, without Telnet commands: the usual case. Returns how many bytes
    /// it took; the rest is left to the automaton, which comes to the same.
    fn whole_word(&mut self, at: usize) -> usize {
        let Some(&[a, b, c, d, end]) = self.payload.get(at..).and_then(<[u8]>::first_chunk) else {
            return 0;
        };
        let word = [a, b, c, d];
        if word.contains(&IAC) || end == IAC || matches!(a, b'\r' | b'\n') {
            return 0;
        }
        match self.dir {
            Dir::Orig => self.whole_verb(word, end),
            Dir::Reply => self.whole_code(word),
        }
    }

    fn skipping(&self) -> bool {
        match self.dir {
            Dir::Orig => self.st.client == ClientLine::Skip,
            Dir::Reply => self.st.server == ServerLine::Skip,
        }
    }

    pub fn line_start(&mut self, at: usize) {
        match self.dir {
            Dir::Orig => self.st.client = ClientLine::Start,
            Dir::Reply => self.st.server = ServerLine::Code(0),
        }
        if self.translated {
            self.mark = Some((at, self.st));
        }
    }

    /// The rest of the line does not matter.
    pub fn skip_line(&mut self) {
        match self.dir {
            Dir::Orig => self.st.client = ClientLine::Skip,
            Dir::Reply => self.st.server = ServerLine::Skip,
        }
        self.region = None;
        self.st.partial = self.st.partial.filter(|p| p.kind.sender() != self.dir);
    }
}
