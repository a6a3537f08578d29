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

impl<E: Effects> Run<'_, E> {
    /// Parses the payload from `base` on.
    pub fn feed(&mut self, base: usize) {
        let mut at = base;
        while let Some(&byte) = self.payload.get(at) {
            if self.st.stop != Stop::No || self.denied.is_some() || self.cut.is_some() {
                return;
            }
            if self.skipping() {
                let Some(end) = memchr(b'\n', self.payload.get(at..).unwrap_or(&[])) else {
                    return;
                };
                at += end + 1;
                self.line_start(at);
                continue;
            }
            if let Some(byte) = self.st.telnet_mut(self.dir).feed(byte) {
                match self.dir {
                    Dir::Orig => self.client_byte(byte, at),
                    Dir::Reply => self.server_byte(byte, at),
                }
                if byte == b'\n' && self.cut.is_none() {
                    self.line_start(at + 1);
                }
            }
            at += 1;
        }
    }

    fn skipping(&self) -> bool {
        match self.dir {
            Dir::Orig => self.st.client == ClientLine::Skip,
            Dir::Reply => self.st.server == ServerLine::Skip,
        }
    }

    fn line_start(&mut self, at: usize) {
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
