//! A shortcut past whole lines that change nothing but a counter: most of what
//! a busy control connection says. The automaton comes to the same, byte by
//! byte; the fuzz target `ftp_core` and the tests compare the two.

use super::conn::Dir;
use super::line::line_feed;
use super::state::{Active, ClientLine, ServerLine, Stop};
use super::tracker::{Effects, Run};
use super::verb;

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = LOW << 7;
/// The bytes of a word that can decide what a line is.
const FIRST_FIVE: u64 = (1 << 40) - 1;

/// Whether one of the first five bytes is a Telnet command's IAC, or looks so
/// far enough.
const fn has_iac(word: u64) -> bool {
    // A byte of all ones is a zero once inverted.
    let inverted = !word | !FIRST_FIVE;
    inverted.wrapping_sub(LOW) & word & HIGH & FIRST_FIVE != 0
}

impl<E: Effects> Run<'_, E> {
    /// Passes the plain lines from `at` on, where a line begins. Returns where
    /// the first other one does.
    pub fn skim(&mut self, at: usize) -> usize {
        if self.st.stop != Stop::No || !self.st.telnet_idle(self.dir) {
            return at;
        }
        let (counted, end) = match self.dir {
            Dir::Orig if self.st.ftp && self.st.client == ClientLine::Start => {
                self.plain_lines(at, plain_command)
            }
            Dir::Reply if self.st.server == ServerLine::Code(0) => {
                if self.awaits_nothing() {
                    self.plain_lines(at, plain_reply)
                } else {
                    self.plain_lines(at, plain_text)
                }
            }
            _ => return at,
        };
        if end > at {
            let outstanding = usize::from(self.st.outstanding);
            let outstanding = match self.dir {
                Dir::Orig => outstanding.saturating_add(counted).min(7),
                Dir::Reply => outstanding.saturating_sub(counted),
            };
            self.st.outstanding = u8::try_from(outstanding).unwrap_or(7);
            self.line_start(end);
        }
        end
    }

    /// Whether a reply that is none of the special ones decides nothing.
    fn awaits_nothing(&self) -> bool {
        let s = &self.st;
        !(s.multi || s.auth || s.pasv || s.epsv) && s.active == Active::None
    }

    /// How many commands or replies the plain and complete lines from `at` on
    /// are, and where these lines end.
    fn plain_lines(&self, mut at: usize, plain: impl Fn(u64) -> Option<usize>) -> (usize, usize) {
        let mut counted = 0;
        while let Some((rest, word)) = self.payload.get(at..).and_then(|rest| {
            let word = rest.first_chunk().map(|b| u64::from_le_bytes(*b))?;
            Some((rest, word))
        }) {
            // Both at once: neither has to wait for the other.
            let (Some(end), Some(count)) = (line_feed(rest), plain(word)) else {
                break;
            };
            at += end + 1;
            counted += count;
        }
        (counted, at)
    }
}

/// 1 if a line that begins so is a command that is only counted.
fn plain_command(word: u64) -> Option<usize> {
    let [a, b, c, d, ..] = word.to_le_bytes();
    let plain = !matches!(a, b'\r' | b'\n') && verb::special([a, b, c, d]).is_none();
    (plain && !has_iac(word)).then_some(1)
}

/// 1 if a line that begins so is a whole reply that only answers a command: 2xx
/// to 5xx, and none of 220 to 239, where the special ones are. 0 if it is none.
fn plain_reply(word: u64) -> Option<usize> {
    let [a, b, c, end, ..] = word.to_le_bytes();
    let reply = matches!(a, b'2'..=b'5')
        && b.is_ascii_digit()
        && c.is_ascii_digit()
        && end == b' '
        && !(a == b'2' && matches!(b, b'2' | b'3'));
    match reply && !has_iac(word) {
        true => Some(1),
        false => plain_text(word),
    }
}

/// 0 if a line that begins so is text between the lines of a reply: what does
/// not begin with a digit is nothing else.
fn plain_text(word: u64) -> Option<usize> {
    let [a, ..] = word.to_le_bytes();
    let plain = !a.is_ascii_digit() && !matches!(a, b'\r' | b'\n');
    (plain && !has_iac(word)).then_some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &[u8; 8]) -> u64 {
        u64::from_le_bytes(*text)
    }

    #[test]
    fn telnet_commands_are_seen_where_they_matter() {
        for at in 0..8 {
            let mut text = *b"NOOP\r\nNO";
            text[at] = 255;
            assert_eq!(has_iac(word(&text)), at < 5, "{at}");
        }
        assert!(!has_iac(word(b"NOOP\r\nNO")));
        assert!(!has_iac(word(&[254; 8])));
        assert!(!has_iac(word(&[127; 8])));
        assert!(!has_iac(word(&[0; 8])));
    }

    #[test]
    fn only_what_decides_nothing_is_plain() {
        for text in [b"NOOP\r\nNO", b"LIST\r\nLI", b"XPORT 10", b"PO\n\n\n\n\n\n"] {
            assert_eq!(plain_command(word(text)), Some(1));
        }
        for text in [b"PORT 10,", b"epsv\r\nNO", b"pasv\n\n\n\n", b"\r\nNOOP\r\n"] {
            assert_eq!(plain_command(word(text)), None);
        }
        for text in [b"200 ok\r\n", b"550 no\r\n", b"250 \r\n25"] {
            assert_eq!(plain_reply(word(text)), Some(1));
        }
        for text in [
            b"227 En (",
            b"230 in\r\n",
            b"200-ok\r\n",
            b"150 ok\r\n",
            b"20 0ok\r\n",
        ] {
            assert_eq!(plain_reply(word(text)), None);
        }
    }
}
