//! Any policy that is accepted loads: by us, as text and as JSON, with the
//! same listing, which loads again, and `diff` sees no difference. With the
//! system's nft, and with the one that `LAB_NFT` names.

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use nft_ftp_ruleset::ir::{ObjectKind, Ruleset};
use nft_ftp_ruleset::{apply, diff, input, render};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "web-1", "x.y", "hold", "z_9", "servers"])
            .prop_map(str::to_owned),
        1 => "[a-z][a-z0-9]{0,7}",
    ]
}

fn interfaces() -> impl Strategy<Value = String> {
    let one = prop::sample::select(vec!["eth0", "eth*", "br-lan", "vlan.7", "lo", "veth@x"]);
    list(one.prop_map(|name| format!("{name:?}")), 3)
}

fn addresses() -> impl Strategy<Value = String> {
    let v4 = (any::<u32>(), 0u8..=32).prop_map(|(address, length)| {
        let address = std::net::Ipv4Addr::from(address);
        format!("\"{address}/{length}\"")
    });
    let range = (any::<[u16; 2]>()).prop_map(|[a, b]| {
        let (a, b) = (a.min(b), a.max(b));
        let address = |n: u16| format!("10.9.{}.{}", n >> 8, n & 255);
        format!("\"{}-{}\"", address(a), address(b))
    });
    let v6 = (any::<u128>(), 0u8..=128).prop_map(|(address, length)| {
        let address = std::net::Ipv6Addr::from(address);
        format!("\"{address}/{length}\"")
    });
    list(prop_oneof![v4, range, v6], 6)
}

fn list(one: impl Strategy<Value = String>, most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(one, 0..=most).prop_map(|all| format!("[{}]", all.join(", ")))
}

fn ports() -> impl Strategy<Value = String> {
    let port = prop_oneof![prop::sample::select(vec![21u16, 990, 2121]), any::<u16>()];
    list(port.prop_map(|port| port.to_string()), 3)
}

fn choice(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(values).prop_map(str::to_owned)
}

/// `key = value`, or nothing.
fn maybe(key: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    prop::option::of(value)
        .prop_map(move |value| value.map_or(String::new(), |value| format!("{key} = {value}\n")))
}

fn quoted(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    value.prop_map(|value| format!("{value:?}"))
}

fn section(title: &'static str, keys: Vec<BoxedStrategy<String>>) -> BoxedStrategy<String> {
    keys.prop_map(move |keys| format!("{title}\n{}", keys.concat()))
        .boxed()
}

/// One of the address sets that every policy here has.
fn ends() -> impl Strategy<Value = String> {
    quoted(choice(&["servers", "clients"]))
}

fn helper() -> BoxedStrategy<String> {
    section(
        "[[helper]]",
        vec![
            maybe("name", quoted(name())).boxed(),
            maybe("ports", ports()).boxed(),
            maybe("queues", choice(&["1", "2", "5"])).boxed(),
            maybe("assign", quoted(choice(&["rule", "map"]))).boxed(),
            maybe("servers", ends()).boxed(),
            maybe("clients", ends()).boxed(),
            maybe("zone", choice(&["0", "7", "65535"])).boxed(),
        ],
    )
}

fn expectation() -> BoxedStrategy<String> {
    section(
        "[[expectation]]\ncontrol-ports = [990, 991]",
        vec![
            quoted(name())
                .prop_map(|name| format!("name = {name}\n"))
                .boxed(),
            choice(&["30000", "\"30000/0xfffc\"", "\"40000-40002\"", "65535"])
                .prop_map(|ports| format!("ports = {ports}\n"))
                .boxed(),
            maybe(
                "timeout",
                quoted(choice(&["1ms", "2s500ms", "30s", "23days"])),
            )
            .boxed(),
            maybe("size", choice(&["1", "4", "255"])).boxed(),
            maybe("servers", ends()).boxed(),
        ],
    )
}

fn passive() -> BoxedStrategy<String> {
    section(
        "[[passive]]",
        vec![
            quoted(name())
                .prop_map(|name| format!("name = {name}\n"))
                .boxed(),
            ports()
                .prop_map(|ports| format!("control-ports = {ports}\n"))
                .boxed(),
            quoted(choice(&["1024-65535", "5000-5000", "30000-30099"]))
                .prop_map(|ports| format!("ports = {ports}\n"))
                .boxed(),
            maybe("timeout", quoted(choice(&["1s", "90s", "23days"]))).boxed(),
            maybe("size", choice(&["1", "65535", "4294967295"])).boxed(),
            maybe("servers", ends()).boxed(),
            maybe("clients", ends()).boxed(),
        ],
    )
}

fn zone() -> BoxedStrategy<String> {
    section(
        "[[zone]]",
        vec![
            any::<u16>().prop_map(|id| format!("id = {id}\n")).boxed(),
            interfaces()
                .prop_map(|all| format!("interfaces = {all}\n"))
                .boxed(),
        ],
    )
}

fn related() -> BoxedStrategy<String> {
    section(
        "[related]",
        vec![
            maybe("guard", choice(&["true", "false"])).boxed(),
            maybe(
                "ports",
                quoted(choice(&["1024-65535", "5000-5000", "1-65535"])),
            )
            .boxed(),
            maybe(
                "data",
                choice(&["[\"passive\"]", "[\"active\"]", "[\"passive\", \"active\"]"]),
            )
            .boxed(),
            maybe("active-source-port", choice(&["20"])).boxed(),
        ],
    )
}

fn events() -> BoxedStrategy<String> {
    let names = [
        "new",
        "related",
        "destroy",
        "reply",
        "assured",
        "protoinfo",
        "seqadj",
        "label",
    ];
    let some = prop::sample::subsequence(names.to_vec(), 1..=names.len());
    some.prop_map(|some| format!("[events]\nreport = {some:?}\n"))
        .boxed()
}

fn firewall() -> BoxedStrategy<String> {
    let prefix = "[ -!#%-\\[\\]-~]{1,100}".prop_filter("quotes", |text| !text.contains('"'));
    let main = section(
        "[firewall]",
        vec![
            maybe("client-interfaces", interfaces()).boxed(),
            maybe("server-interfaces", interfaces()).boxed(),
            maybe("hold", choice(&["true", "false"])).boxed(),
        ],
    );
    let log = section(
        "[firewall.log]",
        vec![
            maybe("rate", choice(&["0", "1", "1000000"])).boxed(),
            maybe("burst", choice(&["0", "1", "100000"])).boxed(),
            maybe("prefix", quoted(prefix)).boxed(),
            maybe("group", choice(&["0", "1", "65535"])).boxed(),
        ],
    );
    let input = section(
        "[firewall.input]",
        vec![
            maybe("tcp", ports()).boxed(),
            maybe("udp", ports()).boxed(),
            maybe("from", ends()).boxed(),
        ],
    );
    let link = section(
        "[firewall.link]",
        vec![
            maybe("interfaces", interfaces()).boxed(),
            maybe("peers", ends()).boxed(),
        ],
    );
    let vrrp = section(
        "[firewall.vrrp]",
        vec![
            maybe("interfaces", interfaces()).boxed(),
            maybe("peers", ends()).boxed(),
        ],
    );
    let allow = section(
        "[[firewall.allow]]",
        vec![
            maybe("protocol", quoted(choice(&["tcp", "udp"]))).boxed(),
            ports()
                .prop_map(|ports| format!("ports = {ports}\n"))
                .boxed(),
            maybe("from", ends()).boxed(),
            maybe("to", ends()).boxed(),
        ],
    );
    let parts = vec![log, input, link, vrrp, allow, nat()];
    let some = prop::sample::subsequence(parts, 0..=6).prop_flat_map(|parts| parts);
    (main, some)
        .prop_map(|(main, some)| main + &some.concat())
        .boxed()
}

fn nat() -> BoxedStrategy<String> {
    let to = || choice(&["192.0.2.1", "2001:db8::1"]);
    let masquerade = section(
        "[[firewall.masquerade]]",
        vec![
            interfaces()
                .prop_map(|all| format!("interfaces = {all}\n"))
                .boxed(),
            maybe("from", ends()).boxed(),
            maybe("families", choice(&["[\"ip\"]", "[\"ip6\"]"])).boxed(),
        ],
    );
    let snat = section(
        "[[firewall.snat]]",
        vec![
            interfaces()
                .prop_map(|all| format!("interfaces = {all}\n"))
                .boxed(),
            quoted(to()).prop_map(|to| format!("to = {to}\n")).boxed(),
            maybe("from", ends()).boxed(),
        ],
    );
    let dnat = section(
        "[[firewall.dnat]]",
        vec![
            quoted(to())
                .prop_map(|to| format!("address = {to}\n"))
                .boxed(),
            quoted(to()).prop_map(|to| format!("to = {to}\n")).boxed(),
            maybe("to-port", choice(&["21", "2121"])).boxed(),
            maybe("interfaces", interfaces()).boxed(),
        ],
    );
    (masquerade, snat, dnat)
        .prop_map(|(masquerade, snat, dnat)| masquerade + &snat + &dnat)
        .boxed()
}

fn policy() -> impl Strategy<Value = String> {
    let top = (
        maybe("table", quoted(name())),
        maybe(
            "families",
            choice(&["[\"ip\"]", "[\"ip6\"]", "[\"ip\", \"ip6\"]"]),
        ),
        maybe("counters", choice(&["true", "false"])),
        addresses(),
        addresses(),
    )
        .prop_map(|(table, families, counters, servers, clients)| {
            format!(
                "{table}{families}{counters}[addresses.servers]\nelements = {servers}\n\
                 [addresses.clients]\nelements = {clients}\n"
            )
        });
    let sections = vec![
        helper(),
        helper(),
        expectation(),
        zone(),
        related(),
        events(),
        passive(),
        firewall(),
    ];
    let some = prop::sample::subsequence(sections, 0..=8).prop_flat_map(|parts| parts);
    (top, some).prop_map(|(top, some)| top + &some.concat())
}

/// The kernel's own helper stands in for those that nobody registered here.
fn with_kernel_helper(ruleset: &mut Ruleset) {
    for object in &mut ruleset.objects {
        if let ObjectKind::CtHelper { helper } = &mut object.kind {
            "ftp".clone_into(helper);
        }
    }
}

/// One version of nft.
struct Nft {
    program: String,
    /// nft before 1.0.9 cannot read `ct expectation` from JSON.
    reads_expectations: bool,
}

/// Runs nft in this thread's namespace; what it printed.
fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    // nft may refuse before it has read everything.
    let _ = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn same(ruleset: &Ruleset) -> Result<(), String> {
    let live = apply::read(&ruleset.table).map_err(|error| error.to_string())?;
    let diff = diff::diff(&live, ruleset);
    if diff.is_same() {
        Ok(())
    } else {
        Err(diff.to_string())
    }
}

fn equal(what: &str, found: &str, expected: &str) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what} lists\n{found}\ninstead of\n{expected}"))
}

fn loads(ruleset: &Ruleset, version: &Nft) -> Result<(), String> {
    let nft = |args: &[&str], input: &str| run(&version.program, args, input);
    nft(&["flush", "ruleset"], "")?;
    apply::check(ruleset).map_err(|error| format!("check: {error}"))?;
    apply::load(ruleset).map_err(|error| format!("load: {error}"))?;
    same(ruleset)?;
    let list = || nft(&["list", "table", "inet", &ruleset.table], "");
    let ours = list()?;
    let mut text = String::new();
    render::nft::render(ruleset, &mut text).map_err(|error| error.to_string())?;
    nft(&["flush", "ruleset"], "")?;
    nft(&["-f", "-"], &text).map_err(|error| format!("{error}in\n{text}"))?;
    same(ruleset)?;
    equal("text", &list()?, &ours)?;
    nft(&["flush", "ruleset"], "")?;
    nft(&["-f", "-"], &ours).map_err(|error| format!("{error}in\n{ours}"))?;
    equal("listing", &list()?, &ours)?;
    let expects = |kind: &ObjectKind| matches!(kind, ObjectKind::CtExpectation { .. });
    let mut objects = ruleset.objects.iter();
    if version.reads_expectations || !objects.any(|object| expects(&object.kind)) {
        let json = render::json::render(ruleset).to_string();
        nft(&["-j", "-f", "-"], &json).map_err(|error| format!("{error}in\n{json}"))?;
        equal("JSON", &list()?, &ours)?;
    }
    // Over whatever is there.
    apply::load(ruleset).map_err(|error| format!("reload: {error}"))?;
    same(ruleset)?;
    equal("reload", &list()?, &ours)
}

#[test]
fn any_policy_that_check_accepts_loads_in_every_way() {
    if support::available() {
        accepted_policies_load(&Nft {
            program: "nft".to_owned(),
            reads_expectations: false,
        });
    }
}

#[test]
fn any_policy_loads_in_every_way_with_another_nft() {
    let Ok(program) = std::env::var("LAB_NFT") else {
        return support::skip("another nft, named by LAB_NFT");
    };
    if support::available() {
        accepted_policies_load(&Nft {
            program,
            reads_expectations: true,
        });
    }
}

fn accepted_policies_load(version: &Nft) {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace for this thread");
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("policy.toml");
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => Config::default().cases,
        None => 32,
    };
    let config = Config {
        cases,
        // About one in three is accepted.
        max_global_rejects: cases * 20,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&policy(), |policy| {
        std::fs::write(&path, &policy)?;
        let Ok(input) = input::read(Some(&path)) else {
            return Err(TestCaseError::reject("not a policy that is accepted"));
        };
        let mut ruleset = input.ruleset;
        with_kernel_helper(&mut ruleset);
        loads(&ruleset, version)
            .map_err(|error| TestCaseError::fail(format!("{error}\npolicy:\n{policy}")))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
