//! The commands of FTP, to tell its dialogue from others and to remember a
//! half-received verb in a few bits.

/// What a command means to the helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Port,
    Eprt,
    Pasv,
    Epsv,
    Auth,
    User,
    /// `LPRT`, `LPSV` (RFC 1639).
    Long,
    /// Any other command of FTP.
    Other,
    /// A request method of HTTP.
    Http,
}

use Verb::{Auth, Eprt, Epsv, Http, Long, Other, Pasv, Port, User};

/// Sorted. RFC 959, 775, 2228, 2389, 2428, 2640, 3659, 4217, 7151, 1639, 949,
/// and what clients in use send besides; the methods of HTTP that are no
/// commands of FTP (the first four letters of the longer ones).
static VERBS: &[(&[u8], Verb)] = &[
    (b"ABOR", Other),
    (b"ACCT", Other),
    (b"ADAT", Other),
    (b"ALLO", Other),
    (b"APPE", Other),
    (b"AUTH", Auth),
    (b"AVBL", Other),
    (b"CCC", Other),
    (b"CDUP", Other),
    (b"CLNT", Other),
    (b"COMB", Other),
    (b"CONF", Other),
    (b"CONN", Http),
    (b"CSID", Other),
    (b"CWD", Other),
    (b"DELE", Other),
    (b"DSIZ", Other),
    (b"ENC", Other),
    (b"EPRT", Eprt),
    (b"EPSV", Epsv),
    (b"ESTA", Other),
    (b"ESTP", Other),
    (b"FEAT", Other),
    (b"GET", Http),
    (b"HASH", Other),
    (b"HEAD", Http),
    (b"HELP", Other),
    (b"HOST", Other),
    (b"LANG", Other),
    (b"LIST", Other),
    (b"LPRT", Long),
    (b"LPSV", Long),
    (b"MACB", Other),
    (b"MD5", Other),
    (b"MDTM", Other),
    (b"MFCT", Other),
    (b"MFF", Other),
    (b"MFMT", Other),
    (b"MIC", Other),
    (b"MKD", Other),
    (b"MLSD", Other),
    (b"MLST", Other),
    (b"MMD5", Other),
    (b"MODE", Other),
    (b"NLST", Other),
    (b"NOOP", Other),
    (b"OPTI", Http),
    (b"OPTS", Other),
    (b"PASS", Other),
    (b"PASV", Pasv),
    (b"PATC", Http),
    (b"PBSZ", Other),
    (b"PORT", Port),
    (b"POST", Http),
    (b"PROT", Other),
    (b"PUT", Http),
    (b"PWD", Other),
    (b"QUIT", Other),
    (b"RANG", Other),
    (b"REIN", Other),
    (b"REST", Other),
    (b"RETR", Other),
    (b"RMD", Other),
    (b"RMDA", Other),
    (b"RNFR", Other),
    (b"RNTO", Other),
    (b"SITE", Other),
    (b"SIZE", Other),
    (b"SMNT", Other),
    (b"SPSV", Other),
    (b"SSCN", Other),
    (b"STAT", Other),
    (b"STOR", Other),
    (b"STOU", Other),
    (b"STRU", Other),
    (b"SYST", Other),
    (b"THMB", Other),
    (b"TRAC", Http),
    (b"TYPE", Other),
    (b"USER", User),
    (b"XCRC", Other),
    (b"XCUP", Other),
    (b"XCWD", Other),
    (b"XMD5", Other),
    (b"XMKD", Other),
    (b"XPWD", Other),
    (b"XRCP", Other),
    (b"XRMD", Other),
    (b"XRSQ", Other),
    (b"XSEM", Other),
    (b"XSEN", Other),
];

/// The verb four letters in any case spell, if it is one the helper follows.
pub(super) fn special(word: [u8; 4]) -> Option<Verb> {
    // Of all bytes only a letter's two cases give its upper case.
    Some(match &word.map(|b| b & 0xdf) {
        b"PORT" => Port,
        b"EPRT" => Eprt,
        b"PASV" => Pasv,
        b"EPSV" => Epsv,
        b"AUTH" => Auth,
        b"USER" => User,
        b"LPRT" | b"LPSV" => Long,
        _ => return None,
    })
}

/// Letters of a verb so far: the first command that begins with them, and how
/// many there are (1 to 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefix {
    /// Place in the table, below [`Prefix::PLACES`].
    pub place: u8,
    /// Letters read, 1 to 4.
    pub len: u8,
}

impl Prefix {
    /// Exclusive bound of [`Prefix::place`] that the private data has room for.
    pub const PLACES: u8 = 96;

    /// The prefix of one letter.
    pub fn first(letter: u8) -> Option<Self> {
        Self { place: 0, len: 0 }.push(letter)
    }

    /// One letter more; `None` if no command begins so.
    pub fn push(self, letter: u8) -> Option<Self> {
        let len = usize::from(self.len);
        let (known, _) = VERBS.get(usize::from(self.place))?;
        let known = known.get(..len)?;
        let upper = letter.to_ascii_uppercase();
        let rest = VERBS.get(usize::from(self.place)..)?;
        let ahead = rest
            .iter()
            .take_while(|(word, _)| word.starts_with(known))
            .position(|(word, _)| word.get(len) == Some(&upper))?;
        Some(Self {
            place: self.place.checked_add(u8::try_from(ahead).ok()?)?,
            len: self.len + 1,
        })
    }

    /// The verb, if the letters are one and not merely its beginning.
    pub fn verb(self) -> Option<Verb> {
        let (word, verb) = VERBS.get(usize::from(self.place))?;
        (word.len() == usize::from(self.len)).then_some(*verb)
    }
}

/// The verb a word of letters spells in any case. A longer method of HTTP is
/// known by its first four letters.
pub(super) fn lookup(word: &[u8]) -> Option<Verb> {
    let head = word.get(..4).unwrap_or(word);
    let mut prefix = None;
    for &letter in head {
        prefix = match prefix {
            None => Some(Prefix::first(letter)?),
            Some(p) => Some(Prefix::push(p, letter)?),
        };
    }
    let verb = prefix?.verb()?;
    (word.len() <= 4 || verb == Verb::Http).then_some(verb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_fits_the_private_data() {
        assert!(VERBS.is_sorted_by(|a, b| a.0 < b.0));
        assert!(VERBS.len() <= usize::from(Prefix::PLACES));
        assert!(VERBS.iter().all(|(w, _)| (3..=4).contains(&w.len())));
    }

    #[test]
    fn every_verb_is_found_letter_by_letter_in_any_case() {
        for (word, verb) in VERBS {
            assert_eq!(lookup(word), Some(*verb));
            assert_eq!(lookup(&word.to_ascii_lowercase()), Some(*verb));
            let special = word.first_chunk().copied().and_then(special);
            let plain = matches!(verb, Verb::Other | Verb::Http);
            assert_eq!(special, (!plain).then_some(*verb));
        }
        assert_eq!(lookup(b"PORTS"), None);
        assert_eq!(lookup(b"POR"), None);
        assert_eq!(lookup(b"OPTIONS"), Some(Verb::Http));
        assert_eq!(lookup(b"EHLO"), None);
    }
}
