//! Looks for what keeps FTP from working through this firewall, and says
//! what to do. Changes nothing; asks the kernel, the running daemon, and
//! nft(8) for the ruleset ([`ruleset`]).

mod ruleset;

use crate::cli::{DoctorArgs, RunArgs};
use crate::config::{self, Settings};
use crate::registry::{PRIV_DATA_LEN, Registry};
use crate::serve::request_status;
use crate::support::{self, Failure};
use daemon::doctor::{self, Report};
use netfilter::cthelper::{Helper, HelperStatus};
use netfilter::queue::{self, CopyMode, Flags};
use netfilter::tuple::{AF_INET, AF_INET6, IPPROTO_TCP};
use netfilter::{Name, Socket};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Name of the kernel's own helper (nf_conntrack_ftp).
const KERNELS_OWN: &str = "ftp";

/// Checks everything; what was found.
#[must_use]
pub fn run(args: &DoctorArgs) -> Report {
    let mut report = Report::default();
    doctor::privileges(&mut report);
    let Some(settings) = configuration(&mut report, args) else {
        return report;
    };
    let wanted = settings.spec.helpers().unwrap_or_default();
    doctor::table(&mut report);
    expectations(&mut report);
    doctor::forwarding(&mut report);
    automatic_assignment(&mut report);
    if wanted.iter().all(|(name, _)| name.as_str() == KERNELS_OWN) {
        report.ok("registration", "ftp is the kernel's own helper: no daemon");
    } else {
        queueing(&mut report);
        let status = running(&mut report, args, &settings);
        registration(&mut report, &wanted);
        queues(&mut report, &wanted, status.is_some());
    }
    ruleset::examine(&mut report, &wanted, settings.pass_to_queue.is_some());
    report
}

fn configuration(report: &mut Report, args: &DoctorArgs) -> Option<Settings> {
    let run = RunArgs {
        helper: args.helper.clone(),
        ..RunArgs::default()
    };
    match config::resolve(&run) {
        Ok(settings) => {
            match &settings.source {
                None => report.ok("config", "no file: the defaults"),
                Some(path) => file(report, path),
            }
            Some(settings)
        }
        Err(error) => {
            let todo = "mend it; what follows is about the defaults";
            report.fail("config", error.to_string(), todo);
            let mut defaults = RunArgs::default();
            defaults.helper.config = Some("/dev/null".into());
            config::resolve(&defaults).ok()
        }
    }
}

fn file(report: &mut Report, path: &Path) {
    let mode = fs::metadata(path).map_or(0, |meta| meta.mode());
    if mode & 0o022 == 0 {
        report.ok("config", path.display().to_string());
    } else {
        report.warn(
            "config",
            format!("{} can be written by others than its owner", path.display()),
            format!("chmod go-w {}", path.display()),
        );
    }
}

/// One more expectation than this is refused (EMFILE).
fn expectations(report: &mut Report) {
    if let Some(max) = doctor::sysctl_number("net.netfilter.nf_conntrack_expect_max") {
        if max < 64 {
            report.warn(
                "expectations",
                format!("net.netfilter.nf_conntrack_expect_max is only {max}"),
                "raise it to the number of data connections that begin at once",
            );
        } else {
            report.ok("expectations", format!("room for {max}"));
        }
    }
}

/// Kernels before 6.0: without a rule, and with the kernel's helper.
fn automatic_assignment(report: &mut Report) {
    if doctor::sysctl_number("net.netfilter.nf_conntrack_helper") == Some(1) {
        report.warn(
            "assignment",
            "net.netfilter.nf_conntrack_helper is 1: helpers are assigned without a rule",
            "sysctl -w net.netfilter.nf_conntrack_helper=0",
        );
    }
}

/// Binds a queue that nobody uses, as the daemon will bind its own.
fn queueing(report: &mut Report) {
    const UNUSED: u16 = 65_533;
    let tried = Socket::open()
        .map_err(Failure::from)
        .and_then(|mut socket| {
            let mut last = Ok(());
            // EAGAIN: the module has just been loaded.
            for _ in 0..3 {
                last = socket.request("binding a queue", |buf, seq| queue::bind(buf, UNUSED, seq));
                if !matches!(&last, Err(error) if error.errno == libc::EAGAIN) {
                    break;
                }
            }
            last.and_then(|()| {
                socket.request("asking for the connection of queued packets", |buf, seq| {
                    queue::configure(buf, UNUSED, CopyMode::Packet, 1, Flags::CONNTRACK, seq)
                })
            })
            .map_err(support::queue)
        });
    match tried {
        Ok(()) => report.ok("nfqueue", "queued packets come with their connection"),
        Err(error) => unsupported(report, "nfqueue", &error),
    }
}

/// A module or privilege that is missing; the message says which.
fn unsupported(report: &mut Report, check: &'static str, error: &Failure) {
    let todo = match error {
        Failure::Missing { .. } => "Debian's kernels have it; on others let the kernel's own \
             helper do it: type = \"ftp\" in /etc/nft-ftp/ruleset.toml"
            .to_owned(),
        Failure::Privilege(_) => "run this as root".to_owned(),
        _ => "see the error".to_owned(),
    };
    report.fail(check, error.to_string(), todo);
}

fn running(report: &mut Report, args: &DoctorArgs, settings: &Settings) -> Option<Value> {
    const CHECK: &str = "daemon";
    let control = args.control.as_deref().unwrap_or(&settings.control);
    let status = match request_status(control) {
        Ok(status) => status,
        Err(error) => {
            report.fail(
                CHECK,
                format!("it does not answer: {error}"),
                "systemctl start nft-ftp-helper, or nft-ftp-helper run",
            );
            return None;
        }
    };
    let version = status.get("version").and_then(Value::as_str);
    let version = version.unwrap_or("an older version");
    if version == env!("CARGO_PKG_VERSION") {
        report.ok(CHECK, format!("runs, version {version}"));
    } else {
        report.warn(
            CHECK,
            format!("{version} runs, this is {}", env!("CARGO_PKG_VERSION")),
            "restart it: nothing is lost",
        );
    }
    if let Some(errors @ 1..) = status
        .pointer("/counters/kernel_errors")
        .and_then(Value::as_u64)
    {
        report.warn(
            CHECK,
            format!("the kernel refused {errors} of its requests"),
            "see its log: journalctl -u nft-ftp-helper",
        );
    }
    Some(status)
}

/// Every helper of the configuration in the kernel's registry, enabled.
fn registration(report: &mut Report, wanted: &[(Name, u16)]) {
    const CHECK: &str = "registration";
    let listed = match Registry::open().and_then(|mut registry| registry.list()) {
        Ok(listed) => listed,
        Err(error) => return unsupported(report, CHECK, &error),
    };
    for (name, queue) in wanted {
        for (family, word) in [(AF_INET, "ip"), (AF_INET6, "ip6")] {
            let is_it =
                |h: &&Helper| h.name == *name && h.family == family && h.l4proto == IPPROTO_TCP;
            let found = listed.iter().find(is_it);
            registered(report, found, &format!("{name} ({word} tcp)"), *queue);
        }
    }
}

fn registered(report: &mut Report, found: Option<&Helper>, who: &str, queue: u16) {
    const CHECK: &str = "registration";
    const RUN: &str = "nft-ftp-helper run registers and enables it";
    match found {
        None => report.fail(CHECK, format!("{who} is not registered"), RUN),
        Some(h) if h.priv_data_len != PRIV_DATA_LEN => report.fail(
            CHECK,
            format!("another program has registered {who}"),
            "stop that program, or choose another --helper-name here and type in the policy",
        ),
        Some(h) if h.queue != queue => report.fail(
            CHECK,
            format!("{who} uses queue {}, not {queue}", h.queue),
            "give every command the same --config and --queue-num",
        ),
        Some(h) if h.status == HelperStatus::Disabled => report.fail(
            CHECK,
            format!("{who} is disabled: control connections pass, transfers do not"),
            RUN,
        ),
        Some(_) => report.ok(CHECK, format!("{who} is enabled")),
    }
}

/// An enabled helper without a reader stalls control connections.
fn queues(report: &mut Report, wanted: &[(Name, u16)], runs: bool) {
    const CHECK: &str = "queue";
    let bound = fs::read_to_string("/proc/net/netfilter/nfnetlink_queue").unwrap_or_default();
    for (name, queue) in wanted {
        let fields = bound
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields.first().and_then(|n| n.parse().ok()) == Some(*queue));
        let dropped = |at: usize| -> u64 {
            let field = fields.as_ref().and_then(|fields| fields.get(at));
            field.and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        match &fields {
            None if is_enabled(name) => report.fail(
                CHECK,
                format!("nobody reads queue {queue} here, but {name} is enabled: control connections stall"),
                "start nft-ftp-helper in this network namespace, or nft-ftp-helper disable",
            ),
            None => {}
            Some(_) if !runs => report.warn(
                CHECK,
                format!("a program reads queue {queue}, but no daemon answers at its control socket"),
                "name the daemon's socket with --control",
            ),
            Some(_) if dropped(5) + dropped(6) > 0 => report.warn(
                CHECK,
                format!("queue {queue} was full {} times", dropped(5) + dropped(6)),
                "raise queue-length, or use more queues",
            ),
            Some(_) => report.ok(CHECK, format!("queue {queue} is read")),
        }
    }
}

fn is_enabled(name: &Name) -> bool {
    let listed = Registry::open().and_then(|mut registry| registry.list());
    let enabled = |h: &Helper| h.name == *name && h.status == HelperStatus::Enabled;
    listed.is_ok_and(|listed| listed.iter().any(enabled))
}
