//! What the client says: commands.

use super::event::Reason;
use super::expect::Kind;
use super::state::{ClientLine, Origin, Stop};
use super::tracker::{Effects, Run};
use super::verb::{self, Prefix, Verb};

const EPSV_ALL: &[u8] = b" ALL";

impl<E: Effects> Run<'_, E> {
    /// One byte of the client's text, at offset `at` of the payload.
    pub fn client_byte(&mut self, byte: u8, at: usize) {
        match self.st.client {
            ClientLine::Start => self.client_start(byte),
            ClientLine::Verb(prefix) => self.client_verb(prefix, byte),
            ClientLine::EpsvArg(n) => self.epsv_argument(n, byte),
            ClientLine::Args => self.announcement_byte(byte, at),
            ClientLine::Skip => {}
        }
    }

    /// A verb and the byte behind it, at the start of a line.
    pub fn whole_verb(&mut self, word: [u8; 4], end: u8) -> usize {
        let at_start = self.st.client == ClientLine::Start && self.st.telnet_idle(self.dir);
        if !at_start || !self.st.ftp {
            return 0;
        }
        match verb::special(word) {
            Some(verb) if matches!(end, b' ' | b'\t' | b'\r' | b'\n') => {
                if end == b'\n' {
                    return 0;
                }
                self.on_command(verb, end);
                5
            }
            // Once the dialogue is known to be FTP's, the others are alike.
            _ => {
                self.count_command();
                self.skip_line();
                0
            }
        }
    }

    fn client_start(&mut self, byte: u8) {
        let fresh = self.st.origin == Origin::Fresh;
        if fresh && !self.st.greeted {
            return self.stop(Stop::NotFtp, Reason::ClientFirst);
        }
        match (Prefix::first(byte), byte) {
            (Some(prefix), _) => self.st.client = ClientLine::Verb(prefix),
            (None, b'\n') => {}
            (None, b'\r') => self.skip_line(),
            (None, _) => self.unknown_command(),
        }
    }

    fn client_verb(&mut self, prefix: Prefix, byte: u8) {
        if byte.is_ascii_alphabetic() {
            return match (prefix.push(byte), prefix.verb()) {
                (Some(longer), _) => self.st.client = ClientLine::Verb(longer),
                (None, Some(Verb::Http)) if prefix.len == 4 => self.on_http(),
                (None, _) => self.unknown_command(),
            };
        }
        match (prefix.verb(), byte) {
            (Some(Verb::Http), _) => self.on_http(),
            (Some(verb), b' ' | b'\t' | b'\r' | b'\n') => self.on_command(verb, byte),
            _ => self.unknown_command(),
        }
    }

    fn unknown_command(&mut self) {
        if self.st.origin == Origin::Fresh && !self.st.ftp {
            return self.stop(Stop::NotFtp, Reason::NotFtp);
        }
        self.count_command();
        self.skip_line();
    }

    fn on_http(&mut self) {
        if !self.st.ftp {
            return self.stop(Stop::NotFtp, Reason::Http);
        }
        self.unknown_command();
    }

    fn count_command(&mut self) {
        self.st.outstanding = (self.st.outstanding + 1).min(7);
    }

    fn on_command(&mut self, verb: Verb, end: u8) {
        self.st.ftp = true;
        self.count_command();
        self.skip_line();
        match verb {
            Verb::Port => self.begin_announcement(Kind::Port, end),
            Verb::Eprt => self.begin_announcement(Kind::Eprt, end),
            Verb::Pasv => self.st.pasv = true,
            Verb::Epsv => {
                self.st.client = ClientLine::EpsvArg(0);
                self.epsv_argument(0, end);
            }
            Verb::Auth => self.st.auth = true,
            Verb::User => self.st.login = true,
            Verb::Long => self.event(Reason::Lprt, None, 0),
            Verb::Other | Verb::Http => {}
        }
    }

    /// `EPSV ALL` asks for no port (RFC 2428 section 4).
    fn epsv_argument(&mut self, n: u8, byte: u8) {
        if EPSV_ALL.get(usize::from(n)) == Some(&byte.to_ascii_uppercase()) {
            self.st.client = ClientLine::EpsvArg(n + 1);
            return;
        }
        if usize::from(n) == EPSV_ALL.len() && matches!(byte, b'\r' | b'\n') {
            self.event(Reason::EpsvAll, None, 0);
        } else {
            self.st.epsv = true;
        }
        self.skip_line();
    }
}
