//! The whole story in one kernel: two firewalls with our helper, our ruleset
//! and ctsync; one dies in the middle of an FTP session.
//!
//! One variant for each kind of NAT by default, which together cover every
//! dimension; all of them with `LAB_FULL=1`, those whose description contains
//! it with any other text (`LAB_FULL=Others`).

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::firewall::{DEFAULT_DROP, Nat, nat_rules};
use lab::ftp::control::Control;
use lab::ftp::server::{Program, Server};
use lab::inject::{Act, inject_in};
use lab::nodes::Nodes;
use lab::ours::{self, Helper};
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::{FULL, Need};
use lab::topology::Family;
use lab::wait::{patience, until};
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::OurHelper,
    Need::Server("vsftpd"),
    Need::Program("conntrack"),
    Need::Built("ctsync"),
];

/// What is done to the pair besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// The daemons of the firewall that will die start again first.
    RestartOfDying,
    /// The daemons of the other firewall start again first.
    RestartOfHeir,
    /// The firewall dies when it has seen one half of a command.
    SplitCommand,
    /// So many other connections live.
    Others(u32),
}

/// One way to fail.
#[derive(Debug, Clone, Copy)]
struct Variant {
    nat: Nat,
    family: Family,
    /// Who dies.
    dying: Node,
    /// It comes back, and then the other one dies.
    and_back: bool,
    trouble: Trouble,
}

impl Variant {
    /// All, of one kind of NAT.
    fn all(nat: Nat) -> Vec<Self> {
        let mut all = Vec::new();
        for family in Family::BOTH {
            for dying in Node::BOTH {
                for trouble in [
                    Trouble::None,
                    Trouble::RestartOfDying,
                    Trouble::RestartOfHeir,
                    Trouble::SplitCommand,
                ] {
                    all.push(Self {
                        nat,
                        family,
                        dying,
                        and_back: trouble == Trouble::None,
                        trouble,
                    });
                }
            }
        }
        all.push(others(nat, 100_000));
        all
    }
}

/// Among many connections.
const fn others(nat: Nat, count: u32) -> Variant {
    Variant {
        nat,
        family: Family::V4,
        dying: Node::One,
        and_back: false,
        trouble: Trouble::Others(count),
    }
}

/// Both firewalls with everything, and what goes through them.
struct World<'a> {
    pair: &'a Pair,
    variant: Variant,
    running: [Option<(Helper, Peer)>; 2],
    nodes: Nodes,
    _server: Server,
}

/// Of an expectation: longer than 100,000 connections take under emulation.
const LIFE: &str = "--expect-timeout=3600s";

/// What a firewall's background dump may take to notice.
const MIRROR: &str = "[kernel]\nbackground-dump = \"1s\"\n";

impl<'a> World<'a> {
    fn new(pair: &'a Pair, variant: Variant) -> Result<Self> {
        let mut world = Self {
            pair,
            variant,
            running: [None, None],
            nodes: Nodes::with(MIRROR)?,
            _server: Server::start(Program::Vsftpd, &pair.server)?,
        };
        for node in Node::BOTH {
            world.boot(node)?;
        }
        world.pair.activate(variant.dying)?;
        world.nodes.wait_synced()?;
        Ok(world)
    }

    fn slot(&mut self, node: Node) -> &mut Option<(Helper, Peer)> {
        let [one, two] = &mut self.running;
        match node {
            Node::One => one,
            Node::Two => two,
        }
    }

    fn log(&self) -> String {
        let running = self.running.iter().flatten();
        running.map(|(h, c)| h.log() + &c.log()).collect()
    }

    /// Rules and daemons of a machine whose memory is empty.
    fn boot(&mut self, node: Node) -> Result<()> {
        let fw = self.pair.fw(node);
        fw.nft("flush ruleset")?;
        fw.nft(DEFAULT_DROP)?;
        fw.nft(&nat_rules(self.variant.nat))?;
        self.start_daemons(node)?;
        ours::run(fw, "nft-ftp-ruleset", &["load"])?;
        Ok(())
    }

    fn start_daemons(&mut self, node: Node) -> Result<()> {
        let options = ["--port-mask", "0xfffc", "--permanent", LIFE];
        let helper = Helper::start(self.pair.fw(node), &options)?;
        let ctsync = self.nodes.start(self.pair, node)?;
        *self.slot(node) = Some((helper, ctsync));
        Ok(())
    }

    /// In good order, as `systemctl restart` does it. The helper's end
    /// disables the helper, which is one for both firewalls: they are in one
    /// kernel; its start enables it again.
    fn restart_daemons(&mut self, node: Node) -> Result<()> {
        let (helper, ctsync) = self.slot(node).take().context("it does not run")?;
        helper.stop()?;
        let (status, log) = ctsync.stop()?;
        ensure!(status.success(), "ctsync: {status}\n{log}");
        self.start_daemons(node)
    }

    /// The power goes. Nothing of it gets to say goodbye: its helper's end
    /// would disable the helper, whose registration is one for the whole
    /// kernel.
    fn dies(&mut self, node: Node) -> Result<()> {
        self.pair.fw(node).kill_all()?;
        *self.slot(node) = None;
        self.pair.unplug(node)
    }

    /// It has power again, and nothing of what it knew.
    fn comes_back(&mut self, node: Node) -> Result<()> {
        let fw = self.pair.fw(node);
        fw.run("conntrack", &["-F"])?;
        let left = fw.run("conntrack", &["-L", "expect"])?;
        ensure!(left.is_empty(), "expectations are left: {left}");
        // It doesn't hold the addresses: the other one took them.
        self.boot(node)?;
        self.pair.plug(node)?;
        self.nodes.wait_synced()
    }

    /// What keepalived would do at the other one; before it, a look whether
    /// all of it gets into the kernel, unless that takes minutes.
    fn takes_over(&self, node: Node) -> Result<()> {
        if !matches!(self.variant.trouble, Trouble::Others(_)) {
            let committed = self.nodes.ctsync(node, &["commit", "--verify", "--json"])?;
            ensure!(committed.ok(), "{}", committed.report());
        }
        let primary = self.nodes.ctsync(node, &["primary"])?;
        ensure!(primary.ok(), "{}", primary.report());
        self.pair.activate(node)
    }

    /// Permanent expectations for the client's ports 50000 to 50003.
    fn has_the_block(&self, node: Node) -> Result<()> {
        let family = match self.variant.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let list = ["-L", "expect", "-f", family];
        let table = self.pair.fw(node).run("conntrack", &list)?;
        let block = table.lines().filter(|line| line.contains("PERMANENT"));
        let ports = (50000..50004).map(|port| format!("dport={port} "));
        let block: Vec<_> = block.collect();
        for port in ports {
            let found = block.iter().any(|line| line.contains(&port));
            ensure!(found, "no {port}in\n{table}");
        }
        Ok(())
    }

    fn events(&mut self, node: Node, reason: &str) -> Result<u64> {
        let fw = self.pair.fw(node);
        let (helper, _) = self.slot(node).as_ref().context("it does not run")?;
        let status = helper.status(fw)?;
        let count = status.get("events").and_then(|e| e.get(reason));
        Ok(count.and_then(Value::as_u64).unwrap_or(0))
    }

    /// Waits for copies of so many, and says how they come: under emulation it
    /// takes long, and what takes longer than usual should show why.
    fn wait_copied(&self, node: Node, count: u32) -> Result<()> {
        const PAUSE: Duration = Duration::from_secs(5);
        let number = |node, name: &str| self.nodes.number(node, name).ok();
        let mut said = Instant::now();
        until("the other connections' copies", PATIENCE, || {
            let copies = number(node.peer(), "/external/flows")?;
            if said.elapsed() > PAUSE {
                said = Instant::now();
                let counters = COUNTERS.map(|name| {
                    let n = number(node, &format!("/counters/{name}"));
                    format!("{name} {}", n.unwrap_or(0))
                });
                println!("  {copies} copied; {}", counters.join(", "));
            }
            (copies >= u64::from(count)).then_some(())
        })
    }

    /// Waits until the other one knows what the helper has written down of
    /// the control connection.
    fn wait_helper_state_mirrored(&self, node: Node) -> Result<()> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        until("the helper's state at the other one", patience(), || {
            let show = |cache| ["show", cache, "--json", "--dport", "21"];
            let kernel = ours::run(self.pair.fw(node), "ctsync", &show("kernel")).ok()?;
            let copy = self.nodes.ctsync(node.peer(), &show("external")).ok()?;
            (here, there) = (helper_data(&kernel), helper_data(&copy.stdout));
            (here.len() == 1 && here == there).then_some(())
        })
        .with_context(|| format!("{here:?} in the kernel, {there:?} at the other one"))
    }
}

/// What can keep copies from coming.
const COUNTERS: [&str; 5] = [
    "events_dropped",
    "reconciliations",
    "sent_datagrams",
    "sent_entries",
    "lost_datagrams",
];

/// The 32 bytes of each connection in lines of JSON.
fn helper_data(lines: &str) -> Vec<String> {
    let data = |line: &str| {
        let entry: Value = serde_json::from_str(line).ok()?;
        Some(entry.get("helper_data")?.as_str()?.to_owned())
    };
    lines.lines().filter_map(data).collect()
}

/// `PORT` or `EPRT`, with its end of line.
fn announcement(control: &Control<'_>, family: Family, port: u16) -> Result<String> {
    let line = match family {
        Family::V4 => control.port_line(port)?,
        Family::V6 => control.eprt_line(port)?,
    };
    Ok(line + "\r\n")
}

/// An active transfer, announced in one piece.
fn list_actively(control: &mut Control<'_>, family: Family, port: u16) -> Result<String> {
    let listener = control.listen(port)?;
    let line = announcement(control, family, port)?;
    control.command(line.trim_end(), "200")?;
    control.list_to(&listener)
}

/// Half a command through the firewall that dies.
struct Half {
    listener: TcpListener,
    rest: String,
}

/// The block of expectations that one firewall made serves the next transfer
/// through the other, whose helper knows from the 32 bytes that it is this
/// session's own.
fn survives(variant: Variant) -> Result<()> {
    let (family, dying) = (variant.family, variant.dying);
    let pair = Pair::new()?;
    let mut world = World::new(&pair, variant)?;
    let mut control = Control::login(&pair.client, variant.nat.target(family))?;
    let before = list_actively(&mut control, family, 50000)?;
    world.has_the_block(dying)?;
    match variant.trouble {
        Trouble::RestartOfDying => world.restart_daemons(dying)?,
        Trouble::RestartOfHeir => world.restart_daemons(dying.peer())?,
        Trouble::Others(count) => {
            // It doesn't change any more, and to look among many takes minutes.
            world.wait_helper_state_mirrored(dying)?;
            inject_in(world.pair.fw(dying), 0, count, Act::Create)?;
            println!("{count} connections made");
            world.wait_copied(dying, count)?;
        }
        Trouble::None | Trouble::SplitCommand => {}
    }
    world.nodes.wait_synced()?;
    let half = if variant.trouble == Trouble::SplitCommand {
        let listener = control.listen(50001)?;
        let line = announcement(&control, family, 50001)?;
        let (first, rest) = line.split_at(line.len() - 5);
        control.send(first)?;
        control.flush()?;
        let rest = rest.to_owned();
        Some(Half { listener, rest })
    } else {
        None
    };
    if !matches!(variant.trouble, Trouble::Others(_)) {
        world.nodes.wait_mirrored(dying)?;
        world.wait_helper_state_mirrored(dying)?;
    }

    world.dies(dying)?;
    if let Trouble::Others(_) = variant.trouble {
        println!("mirrored; the other one takes over");
    }
    world.takes_over(dying.peer())?;
    goes_on(&mut world, &mut control, dying.peer(), half, &before)?;
    if let Trouble::Others(count) = variant.trouble {
        let text = world.pair.fw(dying.peer()).run("conntrack", &["-C"])?;
        let alive: u32 = text.trim().parse()?;
        ensure!(alive >= count, "{alive} connections after the commit");
    }
    if variant.and_back {
        world.comes_back(dying)?;
        world.nodes.wait_mirrored(dying.peer())?;
        world.wait_helper_state_mirrored(dying.peer())?;
        world.dies(dying.peer())?;
        world.takes_over(dying)?;
        let again = list_actively(&mut control, family, 50003);
        let again = again.with_context(|| world.log())?;
        ensure!(again == before, "{before:?} then {again:?}");
        ensure!(world.events(dying, "picked-up")? == 0, "picked up");
        let passive = control.list_passively();
        ensure!(passive.with_context(|| world.log())? == before);
    }
    Ok(())
}

/// Three transfers through the heir.
fn goes_on(
    world: &mut World<'_>,
    control: &mut Control<'_>,
    heir: Node,
    half: Option<Half>,
    before: &str,
) -> Result<()> {
    let family = world.variant.family;
    world.has_the_block(heir)?;
    let first = match half {
        Some(half) => {
            control.send(&half.rest)?;
            control.expect("200").with_context(|| world.log())?;
            control.list_to(&half.listener)
        }
        None => list_actively(control, family, 50001),
    };
    let first = first.with_context(|| world.log())?;
    ensure!(first == before, "{before:?} then {first:?}");
    ensure!(world.events(heir, "reused")? == 1, "not on fw-1's block");
    ensure!(world.events(heir, "picked-up")? == 0, "picked up");
    let passive = control.list_passively().with_context(|| world.log())?;
    ensure!(passive == before, "{before:?} then {passive:?}");
    let active = list_actively(control, family, 50002);
    ensure!(active.with_context(|| world.log())? == before);
    Ok(())
}

/// For 100,000 connections under emulation.
const PATIENCE: Duration = Duration::from_secs(900);

/// The kernel's limit on connections is one for all namespaces.
fn make_room(variants: &[Variant]) -> Result<()> {
    const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let many = |v: &Variant| matches!(v.trouble, Trouble::Others(_));
    if variants.iter().any(many) && lab::require::in_vm() {
        std::fs::write(LIMIT, "1000000").context(LIMIT)?;
    }
    Ok(())
}

/// One variant, or all of this NAT.
fn run(variant: Variant) -> Result<()> {
    lab::require!(needs NEEDS);
    let variants = match std::env::var(FULL) {
        Ok(all) if all == "1" => Variant::all(variant.nat),
        Ok(text) => {
            let wanted = |v: &Variant| format!("{v:?}").contains(&text);
            let all = Variant::all(variant.nat);
            all.into_iter().filter(wanted).collect()
        }
        Err(_) => vec![variant],
    };
    ensure!(!variants.is_empty(), "no variant is so described");
    make_room(&variants)?;
    let mut failures = String::new();
    for variant in variants {
        let since = Instant::now();
        let done = survives(variant);
        let verdict = if done.is_ok() { "pass" } else { "FAIL" };
        println!("{verdict} {:>3} s  {variant:?}", since.elapsed().as_secs());
        if let Err(error) = done {
            failures += &format!("--- {variant:?}: {error:#}\n");
        }
    }
    ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

#[test]
fn a_session_survives_among_many_connections_without_nat() -> Result<()> {
    // As many as emulation can do in a minute.
    run(others(Nat::None, 10_000))
}

#[test]
fn a_session_survives_there_and_back_with_snat() -> Result<()> {
    run(Variant {
        nat: Nat::Snat,
        family: Family::V4,
        dying: Node::One,
        and_back: true,
        trouble: Trouble::RestartOfHeir,
    })
}

#[test]
fn a_session_survives_in_the_middle_of_a_command_with_dnat() -> Result<()> {
    run(Variant {
        nat: Nat::Dnat,
        family: Family::V6,
        dying: Node::Two,
        and_back: false,
        trouble: Trouble::SplitCommand,
    })
}

#[test]
fn a_session_survives_a_restart_before_the_failover_with_both_nats() -> Result<()> {
    run(Variant {
        nat: Nat::Both,
        family: Family::V6,
        dying: Node::One,
        and_back: false,
        trouble: Trouble::RestartOfDying,
    })
}
