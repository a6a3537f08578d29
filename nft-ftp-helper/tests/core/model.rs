//! The slow, obvious reading of a dialogue: whole streams, split into lines,
//! no segments. What the core must come to, however the text is cut.

use crate::net::addr;
use nft_ftp_helper::core::{Conn, Dir, Kind};
use std::net::IpAddr;

/// Something said: a direction and whole lines.
pub type Turn = (Dir, Vec<u8>);

/// What a dialogue opens, and what the other side reads for a line where that
/// is determined (without Telnet commands, numbers without leading zeros).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub opened: Vec<(Kind, IpAddr, u16)>,
    pub lines: Vec<(Dir, Option<String>)>,
}

#[derive(Default)]
struct Model {
    greeted: bool,
    ftp: bool,
    login: bool,
    stopped: bool,
    auth: bool,
    pasv: bool,
    epsv: bool,
    outstanding: u32,
    multi: Option<String>,
}

/// Reads a dialogue that begins with the connection.
pub fn read(conn: &Conn, turns: &[Turn]) -> Reading {
    let mut model = Model::default();
    let mut reading = Reading::default();
    for (dir, bytes) in turns {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let line = without_telnet(line);
            let line = String::from_utf8_lossy(&line).into_owned();
            let line = line.trim_end_matches('\n');
            let found = match dir {
                _ if model.stopped => None,
                Dir::Orig => model.command(line),
                Dir::Reply => model.reply(line),
            };
            reading.add(conn, *dir, line, found, model.login);
        }
    }
    reading
}

/// An announcement: kind, what stands before and after the endpoint, address
/// (229 has none), port.
struct Found {
    kind: Kind,
    before: String,
    after: String,
    host: Option<IpAddr>,
    delim: char,
    port: u32,
}

impl Reading {
    fn add(&mut self, conn: &Conn, dir: Dir, line: &str, found: Option<Found>, login: bool) {
        let outer = conn.outer_addr(dir);
        let known = [Some(conn.own_addr(dir)), Some(outer), None];
        let line_as_is = Some(line.trim_end_matches('\r').to_owned());
        let Some(f) = found else {
            let announces = ["PORT", "EPRT", "227", "229"];
            let head = line.get(..4.min(line.len())).unwrap_or("").to_uppercase();
            let free = announces.iter().any(|a| head.starts_with(a));
            return self.lines.push((dir, line_as_is.filter(|_| !free)));
        };
        if !login || f.port < 1024 || f.port > 65535 || !known.contains(&f.host) {
            return self.lines.push((dir, None));
        }
        let port = u16::try_from(f.port).unwrap();
        self.opened.push((f.kind, outer, port));
        let endpoint = match f.kind {
            Kind::Port | Kind::Pasv => {
                let host = outer.to_string().replace('.', ",");
                format!("{host},{},{}", port / 256, port % 256)
            }
            Kind::Eprt => format!("{outer}{}{port}", f.delim),
            Kind::Epsv => port.to_string(),
        };
        let text = format!("{}{endpoint}{}", f.before, f.after);
        self.lines
            .push((dir, Some(text.trim_end_matches('\r').to_owned())));
    }
}

/// IAC NOP and IAC WILL ECHO are all the tests use.
pub fn without_telnet(line: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = line;
    while let Some((first, more)) = rest.split_first() {
        match rest {
            [0xff, 0xf1, more @ ..] | [0xff, 0xfb, 1, more @ ..] => rest = more,
            _ => {
                out.push(*first);
                rest = more;
            }
        }
    }
    out
}

const VERBS: &str = "USER PASS NOOP PASV EPSV PORT EPRT LIST AUTH QUIT TYPE STAT LPRT";

impl Model {
    fn command(&mut self, line: &str) -> Option<Found> {
        if !self.greeted {
            self.stopped = true;
            return None;
        }
        if line.is_empty() || line.starts_with('\r') {
            return None;
        }
        let letters = line.find(|c: char| !c.is_ascii_alphabetic());
        let (verb, rest) = line.split_at(letters.unwrap_or(line.len()));
        let verb = verb.to_ascii_uppercase();
        let ends = rest.is_empty() || rest.starts_with([' ', '\t', '\r']);
        if !ends || !VERBS.split(' ').any(|v| v == verb) {
            self.stopped = !self.ftp;
            self.outstanding += u32::from(self.ftp);
            return None;
        }
        self.ftp = true;
        self.outstanding += 1;
        match verb.as_str() {
            "USER" => self.login = true,
            "AUTH" => self.auth = true,
            "PASV" => self.pasv = true,
            "EPSV" => self.epsv |= !rest.trim_end_matches('\r').eq_ignore_ascii_case(" ALL"),
            "PORT" => return port(line, rest),
            "EPRT" => return eprt(line, rest),
            _ => {}
        }
        None
    }

    fn reply(&mut self, line: &str) -> Option<Found> {
        let code = line.get(..3)?.to_owned();
        let end = line.get(3..).and_then(|l| l.chars().next());
        let last = matches!(end, None | Some(' ' | '\r'));
        if let Some(open) = &self.multi {
            if *open != code || !last {
                return None;
            }
            self.multi = None;
        } else if !code.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        } else if end == Some('-') {
            self.greeted |= code == "220";
            self.multi = Some(code);
            return None;
        }
        if !last || code.as_str() < "200" {
            return None;
        }
        self.answer(line, &code)
    }

    fn answer(&mut self, line: &str, code: &str) -> Option<Found> {
        let alone = self.outstanding <= 1;
        self.outstanding = self.outstanding.saturating_sub(1);
        let spaced = line.as_bytes().get(3) == Some(&b' ');
        match code {
            "220" => self.greeted = true,
            "230" => self.login = true,
            "234" => self.stopped = self.auth,
            "227" if std::mem::take(&mut self.pasv) && spaced => return pasv(line),
            "229" if std::mem::take(&mut self.epsv) && spaced => return epsv(line),
            _ if code >= "400" && alone => {
                (self.auth, self.pasv, self.epsv) = (false, false, false);
            }
            _ => {}
        }
        None
    }
}

fn octet(field: &str) -> Option<u32> {
    let digits = (1..=3).contains(&field.len()) && field.bytes().all(|b| b.is_ascii_digit());
    field.parse().ok().filter(|n| digits && *n < 256)
}

fn six(kind: Kind, line: &str, at: usize, text: &str) -> Option<Found> {
    let n: Vec<u32> = text.split(',').map(octet).collect::<Option<_>>()?;
    let [a, b, c, d, high, low] = n[..] else {
        return None;
    };
    Some(Found {
        kind,
        before: line[..at].to_owned(),
        after: line[at + text.len()..].to_owned(),
        host: Some(addr(&format!("{a}.{b}.{c}.{d}"))),
        delim: ',',
        port: high * 256 + low,
    })
}

fn port(line: &str, rest: &str) -> Option<Found> {
    let skipped = rest.strip_prefix(['\t', ' '])?.trim_start_matches(' ');
    let at = line.len() - skipped.len();
    let text = skipped.split(['\r', ' ', '\t']).next()?;
    six(Kind::Port, line, at, text)
}

fn eprt(line: &str, rest: &str) -> Option<Found> {
    let skipped = rest.strip_prefix(['\t', ' '])?.trim_start_matches(' ');
    let delim = skipped.chars().next()?;
    let fields: Vec<&str> = skipped.split(delim).collect();
    let [_, family, host, port, ..] = fields[..] else {
        return None;
    };
    let ip: IpAddr = host.parse().ok()?;
    let digits = (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    let family_fits = family == if ip.is_ipv4() { "1" } else { "2" };
    let closed = fields.len() > 4;
    (digits && family_fits && closed && !delim.is_ascii_alphanumeric()).then(|| Found {
        kind: Kind::Eprt,
        before: format!(
            "{}{delim}{family}{delim}",
            &line[..line.len() - skipped.len()]
        ),
        after: format!("{delim}{}", fields[4..].join(&delim.to_string())),
        host: Some(ip),
        delim,
        port: port.parse().unwrap(),
    })
}

/// The first six numbers between commas.
fn pasv(line: &str) -> Option<Found> {
    let mut at = 4;
    while at < line.len() {
        let rest = &line[at..];
        let run = rest.find(|c: char| !c.is_ascii_digit() && c != ',');
        let run = &rest[..run.unwrap_or(rest.len())];
        let fields: Vec<&str> = run.split(',').collect();
        let good = fields.iter().take_while(|f| octet(f).is_some()).count();
        if good >= 6 {
            let text = fields[..6].join(",");
            return six(Kind::Pasv, line, at, &text);
        }
        // A number too large spoils the line, unless it stands alone.
        if fields.get(good).is_some_and(|f| !f.is_empty()) && (good > 0 || fields.len() > 1) {
            return None;
        }
        let skipped: usize = fields.iter().take(good + 1).map(|f| f.len() + 1).sum();
        at += skipped.max(1);
    }
    None
}

fn epsv(line: &str) -> Option<Found> {
    for (open, _) in line.match_indices('(') {
        let mut chars = line[open + 1..].chars();
        let Some(delim) = chars
            .next()
            .filter(|d| d.is_ascii_graphic() && !d.is_ascii_digit())
        else {
            continue;
        };
        let (Some(second), Some(third)) = (chars.next(), chars.next()) else {
            return None;
        };
        if second != delim || third != delim {
            continue;
        }
        let rest = chars.as_str();
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let port = &rest[..digits];
        if port.parse::<u32>().is_ok_and(|p| p > 65535) || port.len() > 5 {
            return None;
        }
        if digits > 0 && rest[digits..].starts_with(delim) {
            let start = line.len() - rest.len();
            return Some(Found {
                kind: Kind::Epsv,
                before: line[..start].to_owned(),
                after: rest[digits..].to_owned(),
                host: None,
                delim,
                port: port.parse().unwrap(),
            });
        }
    }
    None
}
