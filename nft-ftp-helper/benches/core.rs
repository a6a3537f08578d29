//! How fast the core reads, on one core: bytes of control text and segments
//! per second. `cargo bench -p nft-ftp-helper --bench core`.

use nft_ftp_helper::core::{
    Conn, Dir, Effects, Event, Expect, Flags, OpenError, Policy, PrivateData, Segment, SeqAdj,
    Tuple, on_segment,
};
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::time::Duration;

/// A caller that agrees to everything.
struct Agree;

impl Effects for Agree {
    fn open(&mut self, expect: &Expect) -> Result<(), OpenError> {
        black_box(expect);
        Ok(())
    }

    fn withdraw(&mut self, expect: &Expect) {
        black_box(expect);
    }

    fn withdraw_all(&mut self) {}

    fn event(&mut self, event: Event) {
        black_box(event);
    }
}

/// A connection in both directions, fed in order.
struct Feed {
    policy: Policy,
    conn: Conn,
    data: PrivateData,
    next: [u32; 2],
}

impl Feed {
    fn new() -> Self {
        let [client, server] =
            ["10.0.0.2", "198.51.100.21"].map(|a| a.parse().unwrap_or([0, 0, 0, 0].into()));
        Self {
            policy: Policy::default(),
            conn: Conn {
                orig: Tuple::tcp(client, 40001, server, 21),
                reply: Tuple::tcp(server, 21, client, 40001),
                seq_adj: [SeqAdj::default(); 2],
            },
            data: PrivateData::default(),
            next: [1, 1],
        }
    }

    fn send(&mut self, dir: Dir, payload: &[u8]) {
        let [orig, reply] = &mut self.next;
        let (mine, other) = match dir {
            Dir::Orig => (orig, reply),
            Dir::Reply => (reply, orig),
        };
        let segment = Segment {
            dir,
            seq: *mine,
            ack: Some(*other),
            flags: Flags::default(),
            payload: black_box(payload),
        };
        *mine = mine.wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
        let out = on_segment(&self.policy, &self.conn, &self.data, &segment, &mut Agree);
        if let Some(data) = out.state {
            self.data = data;
        }
        black_box(out.verdict);
    }
}

/// Processor time of this thread: others on the machine do not count.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Text and who says it.
type Script<'a> = &'a [(Dir, &'a [u8])];

fn run(name: &str, script: Script<'_>) {
    let mut feed = Feed::new();
    let bytes: usize = script.iter().map(|(_, text)| text.len()).sum();
    let mut best = (0.0, 0.0);
    for _ in 0..5 {
        let (start, mut rounds) = (cpu_time(), 0u32);
        while cpu_time() - start < Duration::from_millis(200) {
            for _ in 0..64 {
                for (dir, text) in script {
                    feed.send(*dir, text);
                }
                rounds += 1;
            }
        }
        let seconds = (cpu_time() - start).as_secs_f64();
        let rate =
            |n: usize| f64::from(rounds) * f64::from(u32::try_from(n).unwrap_or(0)) / seconds;
        let (gb, mp) = (rate(bytes) / 1e9, rate(script.len()) / 1e6);
        if mp > best.1 {
            best = (gb, mp);
        }
    }
    println!(
        "{name:<34} {:>7.2} GB/s {:>8.2} M segments/s",
        best.0, best.1
    );
}

fn repeated(line: &str, len: usize) -> Vec<u8> {
    line.as_bytes()
        .iter()
        .copied()
        .cycle()
        .take(len / line.len() * line.len())
        .collect()
}

fn main() {
    let commands = repeated(
        "RETR some/file/with/a/path/name.tar.gz\r\nNOOP\r\nTYPE I\r\nCWD /pub/linux/kernel\r\n",
        1448,
    );
    let replies = repeated(
        "250 Requested file action okay, completed.\r\n200 Command okay.\r\n",
        1448,
    );
    let listing = repeated(
        " -rw-r--r--   1 ftp ftp   1234567 Jan 01 00:00 some-file-name-12.34.tar.gz\r\n",
        1448,
    );
    let noops = repeated("NOOP\r\n", 1448);
    let asked = repeated("PASV\r\n", 6);
    run("commands, 1448 byte segments", &[(Dir::Orig, &commands)]);
    run("replies, 1448 byte segments", &[(Dir::Reply, &replies)]);
    run("multi-line reply, 1448 bytes", &[(Dir::Reply, &listing)]);
    run("NOOP lines, 1448 byte segments", &[(Dir::Orig, &noops)]);
    run(
        "NOOP, a segment each way",
        &[(Dir::Orig, b"NOOP\r\n"), (Dir::Reply, b"200 Zzz...\r\n")],
    );
    run(
        "PASV, a segment each way",
        &[
            (Dir::Orig, &asked),
            (
                Dir::Reply,
                b"227 Entering Passive Mode (198,51,100,21,156,64).\r\n",
            ),
        ],
    );
    run("bare acknowledgement", &[(Dir::Orig, b"")]);
}
