//! `nft-ftp-helper doctor` where the kernel has everything: registration,
//! queue and daemon, broken one at a time.

use anyhow::{Context, Result, ensure};
use lab::metric_names;
use lab::netns::{Namespace, text_file};
use lab::ours::{self, Helper, program};
use lab::require::Need;
use netfilter::cthelper::{self, HelperStatus, Policy};
use nix::sys::signal::Signal;
use serde_json::Value;

const NEEDS: &[Need] = &[Need::OurHelper, Need::Program("curl")];

/// Names of its own: registrations outlive the tests that made them.
const NAME: &str = "lab-doctor";
const OTHER: &str = "lab-doctor-x";
const QUEUE: &str = "140";

struct Patient {
    fw: Namespace,
    control: String,
}

impl Patient {
    /// A finding of this check and level that says this.
    fn expect(&self, name: &str, queue: &str, wanted: [&str; 3]) -> Result<()> {
        let [check, level, text] = wanted;
        let args = ["doctor", "--json", "--helper-name", name];
        let more = ["--queue-num", queue, "--control", &self.control];
        let finished = self
            .fw
            .finish(program("nft-ftp-helper", &[&args[..], &more[..]].concat())?)?;
        let json: Value =
            serde_json::from_str(&finished.stdout).with_context(|| finished.report())?;
        let findings = json.get("findings").and_then(Value::as_array);
        let found = findings.into_iter().flatten().any(|finding| {
            let of = |key: &str| finding.get(key).and_then(Value::as_str).unwrap_or_default();
            of("check") == check && of("level") == level && of("found").contains(text)
        });
        ensure!(found, "no {level} {check} {text:?}: {json}");
        if level == "fail" {
            ensure!(finished.status.code() == Some(1), "{}", finished.report());
        }
        Ok(())
    }
}

#[test]
fn a_helper_that_is_not_served_is_named_and_one_that_is_needs_nothing() -> Result<()> {
    lab::require!(needs NEEDS);
    let fw = Namespace::new(&lab::names::unique(), "fw")?;
    fw.sysctl("net/ipv4/ip_forward", "1")?;
    fw.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    fw.ip_batch("link set lo up\n")?;
    let named = ["--helper-name", NAME, "--queue-num", QUEUE];
    let metrics = ["--metrics", "127.0.0.1:9121"];
    let helper = Helper::start(&fw, &[&named[..], &metrics[..]].concat())?;
    let served = fw.run("curl", &["--silent", "http://127.0.0.1:9121/metrics"])?;
    metric_names::examples_name_only(&served, "nft_ftp_helper_")?;
    let control = helper.control().to_string_lossy().into_owned();
    let policy = text_file(&format!("[[helper]]\ntype = \"{NAME}\"\n[firewall]\n"))?;
    let config = policy.path().to_string_lossy();
    ours::run(&fw, "nft-ftp-ruleset", &["load", "--config", &config])?;
    let args = ["doctor", "--helper-name", NAME, "--queue-num", QUEUE];
    let args = [&args[..], &["--control", &control]].concat();
    let text = ours::run(&fw, "nft-ftp-helper", &args)?;
    ensure!(text.ends_with("nothing to do\n"), "{text}");
    let patient = Patient { fw, control };
    let expect = |wanted| patient.expect(NAME, QUEUE, wanted);

    patient.expect(
        NAME,
        "141",
        ["registration", "fail", "uses queue 140, not 141"],
    )?;
    patient.fw.nft(
        "table inet ips {\nchain f {\ntype filter hook forward priority 10;\n\
         queue num 7 bypass\n}\n}",
    )?;
    expect([
        "queue",
        "warn",
        "inet ips f queues packets to another program",
    ])?;
    helper.signal(Signal::SIGKILL)?;
    lab::wait::until_true("the queue to be closed", || {
        let table = patient.fw.proc_net("netfilter/nfnetlink_queue");
        table.is_ok_and(|table| !table.split_whitespace().any(|word| word == QUEUE))
    })?;
    expect(["queue", "fail", "control connections stall"])?;
    expect(["daemon", "fail", "it does not answer"])?;
    let run = |command: &str| {
        ours::run(
            &patient.fw,
            "nft-ftp-helper",
            &[&[command], &named[..]].concat(),
        )
    };
    run("disable")?;
    expect(["registration", "fail", "lab-doctor (ip tcp) is disabled"])?;
    ours::run(&patient.fw, "nft-ftp-ruleset", &["unload"])?;
    run("unregister")?;
    expect([
        "registration",
        "fail",
        "lab-doctor (ip6 tcp) is not registered",
    ])?;

    // conntrackd's helpers have other private data.
    let name = OTHER.parse()?;
    let other = cthelper::Helper {
        name,
        family: netfilter::tuple::AF_INET,
        l4proto: netfilter::tuple::IPPROTO_TCP,
        queue: 140,
        policies: vec![Policy {
            name,
            max: 1,
            timeout_secs: 300,
        }],
        priv_data_len: 8,
        status: HelperStatus::Disabled,
    };
    let mut socket = netfilter::Socket::open()?;
    socket.request("registering", |buf, seq| cthelper::new(buf, &other, seq))?;
    patient.expect(
        OTHER,
        QUEUE,
        ["registration", "fail", "another program has registered"],
    )?;
    let gone =
        |buf: &mut Vec<u8>, seq| cthelper::delete(buf, &name, other.family, other.l4proto, seq);
    Ok(socket.request("deleting", gone)?)
}
