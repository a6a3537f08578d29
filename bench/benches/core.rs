//! How fast the core reads, on one core: bytes of control text and segments
//! per second. `cargo bench -p bench --bench core`.

use bench::cases::Feed;
use nft_ftp_helper::core::Dir;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Processor time of this thread: others on the machine do not count.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Text and who says it.
type Script<'a> = &'a [(Dir, &'a [u8])];

fn run(name: &str, script: Script<'_>) {
    let mut feed = Feed::default();
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
