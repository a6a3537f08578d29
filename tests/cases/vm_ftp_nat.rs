//! Our helper under the less usual kinds of address translation, with a real
//! server and data connections: masquerade, hairpin, a second translator in
//! front of or behind the firewall, and ports that are taken.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::firewall::{KERNEL_HELPER, Nat};
use lab::ftp::Mode;
use lab::ftp::client::{Client, Job, assert_used};
use lab::ftp::control::Control;
use lab::ftp::server::{FILE, Program, Server};
use lab::ftp::suite::World;
use lab::netns::Namespace;
use lab::ours::{self, Helper};
use lab::require::Need;
use lab::topology::{Family, Side, Topology, fw_address, server_address};
use lab::{check, firewall, names};
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::KernelFtp,
    Need::Server("vsftpd"),
    Need::Program("curl"),
];

fn start(fw: &Namespace, options: &[&str]) -> Result<Helper> {
    let helper = Helper::start(fw, options)?;
    ours::run(fw, "nft-ftp-ruleset", &["load"])?;
    Ok(helper)
}

/// Lists twice in active and in passive mode, from `client`.
fn transfers(client: &Namespace, server: IpAddr, helper: &Helper) -> Result<()> {
    let mut control = Control::login(client, server)?;
    for port in [50300, 50301] {
        let listener = control.listen(port)?;
        let line = control.eprt_line(port)?;
        let taken = control.command(&line, "200");
        taken.with_context(|| helper.log())?;
        let active = control.list_to(&listener);
        let active = active.with_context(|| format!("{line}\n{}", helper.log()))?;
        let passive = control.list_passively().with_context(|| helper.log())?;
        ensure!(active == passive && active.contains(FILE), "{active:?}");
    }
    Ok(())
}

#[test]
fn masqueraded_clients_transfer_both_ways() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    fw.nft(
        "table inet lab_nat {
            chain post {
                type nat hook postrouting priority srcnat;
                oifname wan masquerade
            }
        }",
    )?;
    let helper = start(fw, &[])?;
    for family in Family::BOTH {
        transfers(&world.topology.client, world.target(family), &helper)
            .with_context(|| format!("{family}"))?;
    }
    helper.stop()?;
    Ok(())
}

/// Client and server are on the same side (here even the same host), the
/// client knows the server by the firewall's address: every packet turns
/// around at the firewall, translated at both ends.
#[test]
fn a_hairpin_leads_back_to_the_side_it_came_from() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::None)?;
    let fw = &world.topology.fw;
    let mut rules = String::new();
    for family in Family::BOTH {
        let (name, server) = (family.nft(), server_address(family));
        let at = fw_address(Side::Wan, family);
        rules += &format!(
            "add rule inet lab_nat pre iifname wan {name} daddr {at} tcp dport 21 \
                 dnat {name} to {server}
             add rule inet lab_nat post oifname wan {name} saddr {server} snat {name} to {at}\n"
        );
    }
    fw.nft(&format!(
        "add table inet lab_nat
         add chain inet lab_nat pre {{ type nat hook prerouting priority dstnat; }}
         add chain inet lab_nat post {{ type nat hook postrouting priority srcnat; }}
         {rules}
         insert rule inet lab_fw forward iifname wan tcp dport 21 ct state new accept"
    ))?;
    let helper = start(fw, &[])?;
    for family in Family::BOTH {
        let at = fw_address(Side::Wan, family);
        transfers(&world.topology.server, at, &helper).with_context(|| format!("{family}"))?;
    }
    helper.stop()?;
    Ok(())
}

/// A network behind an end host of the topology: its only host, whose way out
/// leads through that host.
fn behind(host: &Namespace) -> Result<Namespace> {
    let inner = Namespace::new(&names::unique(), "inner")?;
    inner.ip_batch(&format!(
        "link set lo up
         link add eth0 type veth peer name inner netns {}
         link set eth0 up
         addr add 192.168.7.2/24 dev eth0\n",
        host.name()
    ))?;
    host.ip_batch("link set inner up\naddr add 192.168.7.1/24 dev inner\n")?;
    inner.ip_batch("route add default via 192.168.7.1\n")?;
    host.sysctl("net/ipv4/ip_forward", "1")?;
    Ok(inner)
}

/// The clients' own router translates, with the kernel's helper, and then our
/// firewall does once more.
#[test]
fn a_client_behind_another_translator_transfers_both_ways() -> Result<()> {
    lab::require!(needs NEEDS);
    let world = World::new(Nat::Both)?;
    let router = &world.topology.client;
    let home = behind(router)?;
    router.nft(KERNEL_HELPER)?;
    router.nft(
        "table inet lab_nat {
            chain post {
                type nat hook postrouting priority srcnat;
                oifname eth0 masquerade
            }
        }",
    )?;
    let helper = start(&world.topology.fw, &[])?;
    transfers(&home, world.target(Family::V4), &helper).with_context(|| world.server.log())?;
    helper.stop()?;
    Ok(())
}

/// The server's own router translates and knows nothing of FTP: a 227 shows
/// an address that isn't the server's. `loose = "peer-instead"` follows it.
#[test]
fn a_server_behind_a_translator_without_helper_needs_peer_instead() -> Result<()> {
    lab::require!(needs NEEDS);
    let topology = Topology::new()?;
    topology.fw.nft(firewall::DEFAULT_DROP)?;
    let inner = behind(&topology.server)?;
    topology.server.nft(
        "table ip lab_nat {
            chain pre {
                type nat hook prerouting priority dstnat;
                iifname eth0 tcp dport { 21, 40000-40999 } dnat to 192.168.7.2
            }
        }",
    )?;
    let server = Server::start(Program::Vsftpd, &inner)?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("helper.toml");
    std::fs::write(&file, "loose = \"peer-instead\"\n")?;
    let (config, local) = (file.to_string_lossy().into_owned(), dir.path().join("down"));
    for (options, passes) in [([].as_slice(), false), (&["--config", &config], true)] {
        let helper = start(&topology.fw, options)?;
        let same = fetched(&topology, &server, &local);
        ensure!(
            same.is_ok() == passes,
            "{options:?}: {same:?}\n{}",
            helper.log()
        );
        let status = helper.status(&topology.fw)?;
        ensure!(
            event(&status, "third-party") == u64::from(!passes),
            "{status}"
        );
        helper.stop()?;
    }
    Ok(())
}

/// curl connects to the server whatever the 227 says.
fn fetched(topology: &Topology, server: &Server, local: &Path) -> Result<()> {
    let (at, mode) = (server_address(Family::V4), Mode::Pasv);
    let said = Client::Curl.run(&topology.client, at, mode, Job::Get(FILE, local))?;
    assert_used(mode, &said)?;
    check::same_contents(local, &server.tree.file()).with_context(|| said.report())
}

fn event(status: &Value, name: &str) -> u64 {
    let events = status.get("events").and_then(|events| events.get(name));
    events.and_then(Value::as_u64).unwrap_or(0)
}

/// Three clients announce one port behind one address. The first two get
/// ports of their own on the outside; with `nat-tries = 2` the third gets none,
/// and its text passes as it is.
#[test]
fn a_port_that_is_taken_outside_is_renumbered_within_bounds() -> Result<()> {
    lab::require!(needs NEEDS);
    const PORT: u16 = 50310;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("helper.toml");
    std::fs::write(&file, "nat-tries = 2\n")?;
    let config = file.to_string_lossy().into_owned();
    let world = World::new(Nat::Snat)?;
    let (fw, client) = (&world.topology.fw, &world.topology.client);
    let helper = start(fw, &["--config", &config])?;
    // Each client is another address of the host.
    let login = |host: u8| -> Result<Control<'_>> {
        client.ip_batch(&format!(
            "addr add 10.0.1.{host}/24 dev eth0
             route replace default via 10.0.1.1 src 10.0.1.{host}\n"
        ))?;
        Control::login(client, world.target(Family::V4))
    };
    let (mut one, mut two, mut three) = (login(11)?, login(12)?, login(13)?);
    let (first, second) = (one.listen(PORT)?, two.listen(PORT)?);
    let line = one.port_line(PORT)?;
    one.command(&line, "200")?;
    let line = two.port_line(PORT)?;
    two.command(&line, "200").with_context(|| helper.log())?;
    // The server sees the client's own address, which isn't its peer's.
    let line = three.port_line(PORT)?;
    let refused = three.command(&line, "500");
    let status = helper.status(fw)?;
    let table = fw.run("conntrack", &["-L", "expect"])?;
    refused.with_context(|| format!("{status}\n{table}"))?;
    for (name, count) in [("opened", 2), ("renumbered", 1), ("port-taken", 1)] {
        ensure!(event(&status, name) == count, "{name}: {status}");
    }
    two.list_to(&second).with_context(|| helper.log())?;
    one.list_to(&first).with_context(|| helper.log())?;
    helper.stop()?;
    Ok(())
}
