//! Real traffic through the complete firewall profile, with the kernel's
//! own helper: what has to pass passes, in both families and under every
//! translation, and what must not is dropped and counted.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::firewall::Nat;
use lab::ftp::Mode;
use lab::ftp::client::Client;
use lab::ftp::control::Control;
use lab::ftp::server::{FILE, PASSIVE_MIN, Program, Server};
use lab::ftp::suite::{Case, World};
use lab::netns::{Namespace, text_file};
use lab::ours;
use lab::require::Need;
use lab::topology::{Family, Side, Topology, fw_address, server_address};
use lab::wait::until_true;
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::KernelFtp,
    Need::Server("vsftpd"),
    Need::Program("curl"),
    Need::Program("conntrack"),
    Need::Built("nft-ftp-ruleset"),
];

/// The profile, but for NAT.
const PROFILE: &str = "
[addresses.servers]
elements = [\"10.0.2.0/24\", \"fd00:2::/64\"]
[addresses.clients]
elements = [\"10.0.1.0/24\", \"fd00:1::/64\"]
[[helper]]
type = \"ftp\"
servers = \"servers\"
clients = \"clients\"
[events]
[firewall]
client-interfaces = [\"lan\"]
server-interfaces = [\"wan\"]
[firewall.input]
[firewall.link]
interfaces = [\"wan\"]
";

fn load(fw: &Namespace, policy: &str) -> Result<()> {
    let file = text_file(policy)?;
    let path = file.path().to_string_lossy();
    ours::run(fw, "nft-ftp-ruleset", &["load", "--config", &path])?;
    // What was loaded is what the policy says.
    ours::run(fw, "nft-ftp-ruleset", &["diff", "--config", &path])?;
    Ok(())
}

/// The laboratory without a firewall of its own.
fn world(nat: Nat, policy: &str) -> Result<World> {
    let topology = Topology::new()?;
    load(&topology.fw, policy)?;
    let server = Server::start(Program::Vsftpd, &topology.server)?;
    Ok(World {
        server,
        topology,
        nat,
    })
}

/// Packets in a counter of ours, as `show` prints them.
fn packets(fw: &Namespace, counter: &str) -> Result<u64> {
    let text = ours::run(fw, "nft-ftp-ruleset", &["show", "--json"])?;
    let json: Value = serde_json::from_str(&text)?;
    let objects = json.get("objects").and_then(Value::as_array);
    objects
        .into_iter()
        .flatten()
        .find(|object| object.get("name").is_some_and(|name| name == counter))
        .and_then(|object| object.get("packets")?.as_u64())
        .with_context(|| format!("no counter {counter} in {text}"))
}

const CASES: [(Mode, Family); 5] = [
    (Mode::Pasv, Family::V4),
    (Mode::Port, Family::V4),
    (Mode::Epsv, Family::V4),
    (Mode::Epsv, Family::V6),
    (Mode::Eprt, Family::V6),
];

/// A download each way, its data connection counted as related.
fn passes(world: &World) -> Result<()> {
    let fw = &world.topology.fw;
    for (mode, family) in CASES {
        let before = packets(fw, "related_accepted")?;
        let dir = tempfile::tempdir()?;
        let case = Case {
            client: Client::Curl,
            mode,
            family,
        };
        world
            .download(case, dir.path())
            .with_context(|| format!("{case}\n{}", world.server.log()))?;
        let counted = packets(fw, "related_accepted")? - before;
        ensure!(counted == 1, "{case}: {counted} related packets");
    }
    Ok(())
}

#[test]
fn transfers_pass_and_what_nobody_announced_is_dropped() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = world(Nat::None, PROFILE)?;
    let fw = &world.topology.fw;
    passes(&world)?;
    let before = packets(fw, "forward_dropped")?;
    for family in Family::BOTH {
        let to = SocketAddr::new(server_address(family), 40999);
        let short = Duration::from_millis(300);
        let opened = world
            .topology
            .client
            .enter(|| TcpStream::connect_timeout(&to, short).is_ok());
        ensure!(!opened, "a connection to {to} was let through");
    }
    ensure!(packets(fw, "forward_dropped")? >= before + 2);
    ensure!(packets(fw, "ftp_assigned")? > 0);
    ensure!(packets(fw, "control_accepted")? > 0);
    Ok(())
}

#[test]
fn without_the_helper_the_data_connection_is_dropped() -> Result<()> {
    lab::require!(needs NEEDS);
    let policy = PROFILE.replace("[[helper]]", "[[helper]]\nports = [2121]")
        + "[[firewall.allow]]\nports = [21]\n";
    let world = world(Nat::None, &policy)?;
    let fw = &world.topology.fw;
    let mut control = Control::login(&world.topology.client, server_address(Family::V4))?;
    let reply = control.command("EPSV", "229")?;
    let port = reply.split('|').nth(3).context("229")?.parse()?;
    let before = packets(fw, "forward_dropped")?;
    let to = SocketAddr::new(server_address(Family::V4), port);
    let short = Duration::from_millis(300);
    let client = &world.topology.client;
    ensure!(client.enter(|| TcpStream::connect_timeout(&to, short).is_err()));
    ensure!(packets(fw, "forward_dropped")? > before);
    Ok(())
}

#[test]
fn transfers_pass_under_source_and_destination_nat() -> Result<()> {
    lab::require!(needs NEEDS);
    let masquerade = "[[firewall.masquerade]]\ninterfaces = [\"wan\"]\nfrom = \"clients\"\n";
    let mut snat = String::new();
    let mut dnat = String::new();
    for family in Family::BOTH {
        let (lan, wan) = (fw_address(Side::Lan, family), fw_address(Side::Wan, family));
        let server = server_address(family);
        snat += &format!("[[firewall.snat]]\ninterfaces = [\"wan\"]\nto = \"{wan}\"\n");
        dnat += &format!(
            "[[firewall.dnat]]\ninterfaces = [\"lan\"]\naddress = \"{lan}\"\nto = \"{server}\"\n"
        );
    }
    for (nat, rules) in [
        (Nat::Snat, masquerade.to_owned()),
        (Nat::Snat, snat.clone()),
        (Nat::Dnat, dnat.clone()),
        (Nat::Both, dnat + &snat),
    ] {
        let world = world(nat, &format!("{PROFILE}{rules}"))?;
        passes(&world).with_context(|| rules.clone())?;
        let seen = world.server.log();
        if matches!(nat, Nat::Snat | Nat::Both) {
            let wan = fw_address(Side::Wan, Family::V4).to_string();
            ensure!(seen.contains(&wan), "no client {wan} in {seen}");
        }
    }
    Ok(())
}

/// After a takeover: a packet from the middle of a connection that is not
/// known yet is dropped, so that it comes again, until the commit is done.
#[test]
fn hold_drops_packets_of_unknown_connections_until_it_is_off() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = world(Nat::None, PROFILE)?;
    let fw = &world.topology.fw;
    let mut control = Control::login(&world.topology.client, server_address(Family::V4))?;
    let set = |verb: &str, element: &str| {
        fw.run(
            "nft",
            &[verb, "element", "inet", "nft_ftp", "hold", element],
        )
    };
    set("add", "{ tcp timeout 1m }")?;
    // Of a known connection they pass.
    control.command("NOOP", "200")?;
    ensure!(packets(fw, "held")? == 0);
    fw.run("conntrack", &["-F"])?;
    control.send("NOOP\r\n")?;
    until_true("a held packet", || {
        packets(fw, "held").is_ok_and(|held| held > 0)
    })?;
    set("delete", "{ tcp }")?;
    // Repeated by its sender, and picked up.
    control.expect("200")?;
    Ok(())
}

#[test]
fn link_is_not_tracked_and_other_traffic_is() -> Result<()> {
    lab::require!(needs NEEDS);
    let topology = Topology::new()?;
    load(&topology.fw, PROFILE)?;
    let fw = &topology.fw;
    for family in Family::BOTH {
        let from = SocketAddr::new(fw_address(Side::Wan, family), 0);
        for port in [3780, 3781] {
            let to = SocketAddr::new(server_address(family), port);
            fw.enter(|| UdpSocket::bind(from)?.send_to(b"x", to))?;
        }
        let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let table = fw.run("conntrack", &["-L", "-f", name, "-p", "udp"])?;
        ensure!(table.contains("dport=3781"), "{table}");
        ensure!(!table.contains("dport=3780"), "{table}");
    }
    Ok(())
}

/// vsftpd with TLS and a certificate of its own.
fn tls_server(at: &Namespace, dir: &std::path::Path) -> Result<Server> {
    let key = dir.join("key.pem").to_string_lossy().into_owned();
    let request = "req -x509 -newkey rsa:2048 -nodes -subj /CN=ftp -days 9 -keyout";
    let args: Vec<_> = request.split(' ').chain([&*key, "-out", &*key]).collect();
    at.run("openssl", &args)?;
    let more = [
        "-ossl_enable=YES",
        "-oallow_anon_ssl=YES",
        "-orequire_ssl_reuse=NO",
        &format!("-orsa_cert_file={key}"),
        &format!("-opasv_max_port={TLS_MAX}"),
    ];
    Server::start_with(Program::Vsftpd, at, &more)
}

const TLS_MAX: u16 = PASSIVE_MIN + 9;

/// A download over TLS, control and data: curl's exit status, and whether
/// what came is the file.
fn fetch_tls(topology: &Topology, to: &str, tls: &Server, patience: &str) -> Result<bool> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("file");
    let url = format!("ftp://{to}/{FILE}");
    let out = file.to_string_lossy();
    let args = [
        "--silent",
        "--insecure",
        "--ssl-reqd",
        "--connect-timeout",
        patience,
    ];
    let finished = topology.client.finish(lab::command::command(
        "curl",
        &[&args[..], &["--max-time", "300", "--output", &out, &url]].concat(),
    ))?;
    if finished.stderr.contains("timed out") || finished.status.code() == Some(28) {
        return Ok(false);
    }
    finished.success().with_context(|| tls.log())?;
    ensure!(std::fs::read(&file)? == std::fs::read(tls.tree.file())?);
    Ok(true)
}

/// FTP over TLS, which no helper can read, to a server with few passive
/// ports: they are open to who has just spoken to it, also behind NAT.
#[test]
fn passive_ports_of_tls_servers_are_open_to_their_clients_only() -> Result<()> {
    lab::require!(needs NEEDS);
    lab::require!(Need::Program("openssl"));
    let topology = Topology::new()?;
    let fw = &topology.fw;
    let keys = tempfile::tempdir()?;
    let tls = tls_server(&topology.server, keys.path())?;
    let urls = ["10.0.2.2", "[fd00:2::2]"];
    load(fw, PROFILE)?;
    ensure!(
        !fetch_tls(&topology, urls[0], &tls, "5")?,
        "passed without a rule"
    );
    ensure!(packets(fw, "forward_dropped")? > 0, "failed otherwise");

    let passive = format!(
        "{PROFILE}[[passive]]\nname = \"tls\"\ncontrol-ports = [21, 2990]\n\
         ports = \"{PASSIVE_MIN}-{TLS_MAX}\"\nservers = \"servers\"\n"
    );
    let dnat = format!(
        "[[firewall.dnat]]\naddress = \"{}\"\nto = \"10.0.2.2\"\n\
         [[firewall.masquerade]]\ninterfaces = [\"wan\"]\n",
        fw_address(Side::Lan, Family::V4)
    );
    load(fw, &format!("{passive}{dnat}"))?;
    let pairs = |set: &str| fw.run("nft", &["list", "set", "inet", "nft_ftp", set]);
    let refused = || {
        let to = SocketAddr::new(server_address(Family::V4), PASSIVE_MIN);
        let short = Duration::from_millis(300);
        let client = &topology.client;
        // A refusal by the server would mean that the firewall let it pass.
        client.enter(|| {
            TcpStream::connect_timeout(&to, short)
                .err()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
        })
    };
    ensure!(refused(), "a stranger was let through");
    // Nobody listens on 2990: a first packet alone makes no pair.
    let to = SocketAddr::new(server_address(Family::V4), 2990);
    let client = &topology.client;
    ensure!(client.enter(|| TcpStream::connect(to).is_err()));
    ensure!(!pairs("tls4")?.contains("elements"), "{}", pairs("tls4")?);

    let through_nat = fw_address(Side::Lan, Family::V4).to_string();
    for to in [urls[0], urls[1], &through_nat] {
        let before = packets(fw, "passive_accepted")?;
        ensure!(
            fetch_tls(&topology, to, &tls, "60")?,
            "{to}: {}",
            fw.run("nft", &["list", "ruleset"])?
        );
        ensure!(packets(fw, "passive_accepted")? == before + 1, "{to}");
    }
    ensure!(
        pairs("tls6")?.contains("fd00:1::2 . fd00:2::2"),
        "{}",
        pairs("tls6")?
    );
    // Runtime state of nobody's policy: kept by a load, no difference.
    let policy = text_file(&format!("{passive}{dnat}"))?;
    let path = policy.path().to_string_lossy();
    ours::run(fw, "nft-ftp-ruleset", &["diff", "--config", &path])?;
    fw.run("nft", &["flush", "set", "inet", "nft_ftp", "tls4"])?;
    ensure!(refused(), "a client of the past was let through");
    Ok(())
}

/// While the policy is loaded again and again, and changed each time, nothing
/// passes that must not, and what may pass does.
#[test]
fn no_packet_meets_half_a_ruleset_while_it_is_loaded() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = world(Nat::None, PROFILE)?;
    let (fw, client) = (&world.topology.fw, &world.topology.client);
    let other = format!("{PROFILE}[[firewall.allow]]\nports = [8080]\n");
    let loading = std::sync::atomic::AtomicBool::new(true);
    let running = || loading.load(std::sync::atomic::Ordering::Relaxed);
    let server = |port| SocketAddr::new(server_address(Family::V4), port);
    let (mut allowed, mut forbidden) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let loader = scope.spawn(|| {
            let loaded = (0..20).try_for_each(|round| {
                let policy = if round % 2 == 0 { &other } else { PROFILE };
                load(fw, policy)
            });
            loading.store(false, std::sync::atomic::Ordering::Relaxed);
            loaded
        });
        client.enter(|| -> Result<()> {
            while running() {
                let opened = TcpStream::connect_timeout(&server(21), Duration::from_secs(60));
                opened.context("an allowed connection")?;
                allowed += 1;
                // Let through, it would be refused by the server.
                let short = Duration::from_millis(50);
                let error = TcpStream::connect_timeout(&server(40999), short).err();
                let kind = error.context("a forbidden connection")?.kind();
                ensure!(kind == std::io::ErrorKind::TimedOut, "it passed: {kind}");
                forbidden += 1;
            }
            Ok(())
        })?;
        loader.join().map_err(|_| anyhow::anyhow!("the loader"))?
    })?;
    ensure!(allowed > 5 && forbidden > 5, "{allowed} and {forbidden}");
    Ok(())
}
