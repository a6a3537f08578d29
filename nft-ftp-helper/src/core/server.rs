//! What the server says: replies (RFC 959 section 4.2).
//!
//! Of a multi-line reply only the last line counts, and it is the one that
//! repeats the code with a space: any line between may look like a reply.

use super::conn::Dir;
use super::event::Reason;
use super::expect::Kind;
use super::state::{Active, Origin, ServerLine, Stop};
use super::tracker::{Effects, Run};

impl<E: Effects> Run<'_, E> {
    /// One byte of the server's text, at offset `at` of the payload.
    pub fn server_byte(&mut self, byte: u8, at: usize) {
        match self.st.server {
            ServerLine::Code(n) if self.st.multi => self.closing_code(n, byte),
            ServerLine::Code(n) => self.code(n, byte),
            ServerLine::Args => self.announcement_byte(byte, at),
            ServerLine::Skip => {}
        }
    }

    /// Three digits and the byte behind them, at the start of a line.
    pub fn whole_code(&mut self, word: [u8; 4]) -> usize {
        if self.st.server != ServerLine::Code(0) || !self.st.telnet_idle(self.dir) {
            return 0;
        }
        let [a, b, c, end] = word;
        let digits = [a, b, c].map(|d| u16::from(d.wrapping_sub(b'0')));
        let [x, y, z] = digits;
        let code = x * 100 + y * 10 + z;
        let number = digits.iter().all(|d| *d < 10);
        match end {
            b' ' if number && (!self.st.multi || code == self.st.code) => {
                (self.st.multi, self.st.code) = (false, code);
                self.on_reply(code, end);
                4
            }
            b'-' if number && !self.st.multi => {
                self.st.code = code;
                self.multi_line();
                4
            }
            b'\r' | b'\n' => 0,
            _ => {
                self.skip_line();
                0
            }
        }
    }

    fn code(&mut self, n: u8, byte: u8) {
        match (n, byte) {
            (0, b'0'..=b'9') => self.st.code = u16::from(byte - b'0'),
            (1 | 2, b'0'..=b'9') => self.st.code = self.st.code % 100 * 10 + u16::from(byte - b'0'),
            (3, b' ' | b'\r' | b'\n') => return self.on_reply(self.st.code, byte),
            (3, b'-') => return self.multi_line(),
            _ => return self.skip_line(),
        }
        self.st.server = ServerLine::Code(n + 1);
    }

    fn multi_line(&mut self) {
        self.st.multi = true;
        self.note_greeting(self.st.code);
        self.skip_line();
    }

    /// Digits of a line inside a multi-line reply.
    fn closing_code(&mut self, n: u8, byte: u8) {
        let wanted = match n {
            0 => self.st.code / 100,
            1 => self.st.code / 10 % 10,
            _ => self.st.code % 10,
        };
        if n < 3 && u16::from(byte) == wanted + u16::from(b'0') {
            self.st.server = ServerLine::Code(n + 1);
        } else if n == 3 && matches!(byte, b' ' | b'\r' | b'\n') {
            self.st.multi = false;
            self.on_reply(self.st.code, byte);
        } else {
            self.skip_line();
        }
    }

    fn note_greeting(&mut self, code: u16) {
        if self.st.origin == Origin::Fresh && code == 220 {
            self.st.greeted = true;
        }
    }

    /// A reply's last line, up to the byte behind its code.
    fn on_reply(&mut self, code: u16, end: u8) {
        self.skip_line();
        if code < 200 {
            return self.on_preliminary(code);
        }
        let alone = self.st.outstanding <= 1;
        self.st.outstanding = self.st.outstanding.saturating_sub(1);
        self.note_greeting(code);
        match code {
            227 => self.on_passive(Kind::Pasv, end),
            229 => self.on_passive(Kind::Epsv, end),
            234 if self.st.auth => self.stop(Stop::Tls, Reason::Tls),
            230 | 232 => self.st.login = true,
            _ => {}
        }
        match code {
            200..300 => self.on_agreed(alone),
            400.. if alone => self.on_refused(),
            _ => {}
        }
    }

    /// 125 and 150: the data connection exists or is about to.
    fn on_preliminary(&mut self, code: u16) {
        if code == 125 || code == 150 {
            self.st.active = Active::None;
            if !self.policy.permanent && self.policy.block_size() == 1 {
                self.st.last.live = false;
            }
        }
    }

    fn on_passive(&mut self, kind: Kind, end: u8) {
        let asked = match kind {
            Kind::Pasv => std::mem::take(&mut self.st.pasv),
            _ => std::mem::take(&mut self.st.epsv),
        };
        if asked {
            self.begin_announcement(kind, end);
        } else {
            self.refuse(Reason::Unsolicited, None, 0);
        }
    }

    fn on_agreed(&mut self, alone: bool) {
        match self.st.active {
            Active::Waiting => {
                self.st.active = Active::None;
                self.open_waiting();
            }
            Active::Opened if alone => self.st.active = Active::None,
            Active::Opened | Active::None => {}
        }
    }

    /// The only command outstanding failed.
    fn on_refused(&mut self) {
        (self.st.auth, self.st.pasv, self.st.epsv) = (false, false, false);
        let active = std::mem::take(&mut self.st.active);
        if active == Active::Opened && self.st.last.sender == Some(Dir::Orig) {
            self.withdraw_last();
            self.event(Reason::Withdrawn, None, self.st.last.inner);
        }
    }
}
