//! What ctsync mirrors and what it leaves alone, condition by condition: each
//! by reading the tables (after a reload) and by events.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::nodes::{Nodes, PORT};
use lab::pair::{Node, Pair};
use lab::peer::Peer;
use lab::require::Need;
use lab::topology::Family;
use lab::wait::until;
use netfilter::expect::{self, Mask};
use netfilter::flow::{Help, HelpInfo};
use netfilter::inject::{self, Options};
use netfilter::{Expectation, Flow, L4, Name, Socket, Status, Tuple};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn flow(n: u8, l4proto: u8, l4: L4) -> Flow {
    let orig = Tuple {
        src: [10, 200, 0, n].into(),
        dst: [10, 201, 0, n].into(),
        l4proto,
        l4,
        zone: None,
    };
    let mut f = Flow::new(orig, orig.inverse());
    f.timeout = Some(3600);
    f.status = Some(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED);
    f
}

fn ports(dst: u16) -> L4 {
    L4::Ports { src: 4000, dst }
}

/// Number n has 10.200.0.n and 10.201.0.n.
fn flows() -> Result<Vec<Flow>> {
    let mut marked = flow(2, 6, ports(80));
    marked.mark = Some(0x15);
    let mut zoned = flow(3, 6, ports(80));
    zoned.zone = 7;
    let mut helped = flow(4, 6, ports(6667));
    helped.help = Some(Help {
        name: Name::new(b"irc")?,
        info: HelpInfo::default(),
    });
    let mut child = flow(5, 6, ports(5005));
    child.master = Some(helped.orig);
    let mut weak = flow(6, 17, ports(53));
    weak.status = Some(Status::CONFIRMED);
    let mut translated = flow(9, 6, ports(443));
    translated.reply.dst = [192, 0, 2, 9].into();
    let mut v6 = flow(10, 6, ports(80));
    (v6.orig.src, v6.orig.dst) = ("fd00:200::a".parse()?, "fd00:201::a".parse()?);
    v6.reply = v6.orig.inverse();
    let icmp = L4::Icmp {
        id: 1,
        ty: 8,
        code: 0,
    };
    Ok(vec![
        flow(1, 6, ports(80)),
        marked,
        zoned,
        helped,
        child,
        weak,
        flow(7, 17, ports(53)),
        flow(8, 1, icmp),
        translated,
        v6,
    ])
}

const ALL: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

/// A condition, and who meets it.
const CASES: &[(&str, &[u8])] = &[
    ("", ALL),
    ("protocols = ['udp', 'icmp']", &[6, 7, 8]),
    ("protocols = ['6']", &[1, 2, 3, 4, 5, 9, 10]),
    ("ports = [53, 443]", &[6, 7, 9]),
    ("mark = { value = 0x10, mask = 0xf0 }", &[2]),
    ("mark = { value = 0 }", &[1, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("zones = [7]", &[3]),
    ("zones = [0]", &[1, 2, 4, 5, 6, 7, 8, 9, 10]),
    ("only = ['10.200.0.0/30']", &[1, 2, 3]),
    ("only = ['192.0.2.0/24', 'fd00:200::/64']", &[9, 10]),
    ("ignore = ['10.201.0.8/29']", &[1, 2, 3, 4, 5, 6, 7, 10]),
    ("assured-only = true", &[1, 2, 3, 4, 5, 7, 8, 9, 10]),
    ("helper-only = true", &[4, 5]),
    (
        "protocols = ['tcp']\nports = [80]\nzones = [0]",
        &[1, 2, 10],
    ),
];

struct World {
    pair: Pair,
    nodes: Nodes,
    daemon: Peer,
    reloads: usize,
}

impl World {
    fn new() -> Result<Self> {
        let pair = Pair::new()?;
        // NAT, and labels, exist once a chain needs them.
        let nat = "table inet lab_nat {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority srcnat; policy accept;\n\t}\n}\n";
        pair.fw(Node::One).nft(nat)?;
        let nodes = Nodes::with("")?;
        let daemon = nodes.start(&pair, Node::One)?;
        Ok(Self {
            pair,
            nodes,
            daemon,
            reloads: 0,
        })
    }

    fn tell(
        &self,
        build: impl FnOnce(&mut Vec<u8>, u32) -> Result<(), netfilter::message::TooLong> + Send,
    ) -> Result<()> {
        let mut build = Some(build);
        self.pair.fw(Node::One).enter(|| {
            let send = |buf: &mut Vec<u8>, seq| match build.take() {
                Some(build) => build(buf, seq),
                None => Ok(()),
            };
            Socket::open()?.exchange("telling", send, |_| {})
        })?;
        Ok(())
    }

    fn inject(&self) -> Result<()> {
        let options = Options {
            ack: true,
            ..Options::default()
        };
        for f in flows()? {
            self.tell(|buf, seq| inject::create(buf, &f, options, seq))
                .with_context(|| format!("{f:?}"))?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.pair.fw(Node::One).run("conntrack", &["-F"]).map(drop)
    }

    fn reload(&mut self, mirror: &str) -> Result<()> {
        let path = self.nodes.file(Node::One, "toml");
        let text = std::fs::read_to_string(&path)?;
        let base = text.split("[mirror]").next().unwrap_or(&text);
        std::fs::write(&path, format!("{base}[mirror]\n{mirror}\n"))?;
        self.daemon.signal(Signal::SIGHUP)?;
        self.reloads += 1;
        self.daemon
            .wait_for_nth_line("configuration was read again", self.reloads)?;
        Ok(())
    }

    /// Numbers of the connections in a cache.
    fn numbers(&self, args: &[&str]) -> Result<BTreeSet<u8>> {
        let mut found = BTreeSet::new();
        for line in self.nodes.entries(Node::One, args)? {
            let entry: Value = serde_json::from_str(&line)?;
            let src = entry.pointer("/orig/src").and_then(Value::as_str);
            let src: std::net::IpAddr = src.context("no source")?.parse()?;
            let last = match src {
                std::net::IpAddr::V4(a) => a.octets().last().copied(),
                std::net::IpAddr::V6(a) => a.octets().last().copied(),
            };
            found.extend(last);
        }
        Ok(found)
    }

    fn wait_expectations(&self, wanted: u64) -> Result<()> {
        until("expectations", SOON, || {
            let n = self
                .nodes
                .number(Node::One, "/internal/expectations")
                .ok()?;
            (n == wanted).then_some(())
        })
    }

    fn wait_for(&self, wanted: &[u8], what: &str) -> Result<()> {
        let wanted: BTreeSet<u8> = wanted.iter().copied().collect();
        let mut last = BTreeSet::new();
        let same = until(what, SOON, || {
            last = self.numbers(&["internal"]).ok()?;
            (last == wanted).then_some(())
        });
        same.with_context(|| format!("{what}: {last:?} instead of {wanted:?}"))
    }
}

#[test]
fn only_what_meets_every_condition_is_mirrored() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrack"));
    let mut w = World::new()?;
    w.inject()?;
    w.wait_for(ALL, "everything")?;
    for (condition, wanted) in CASES {
        w.reload(condition)?;
        w.wait_for(wanted, &format!("after a reload: {condition}"))?;
        w.flush()?;
        w.wait_for(&[], "nothing")?;
        w.inject()?;
        w.wait_for(wanted, &format!("by events: {condition}"))?;
    }
    Ok(())
}

/// What is not wanted for its protocol or zone costs not even a wake-up.
#[test]
fn the_kernel_drops_events_that_are_not_wanted() -> Result<()> {
    lab::require!(Need::Root, Need::Program("conntrack"));
    let mut w = World::new()?;
    w.reload("protocols = ['icmp']\nzones = [0]")?;
    let before = w.nodes.number(Node::One, "/counters/events")?;
    w.inject()?;
    w.wait_for(&[8], "the ICMP connection")?;
    w.flush()?;
    w.wait_for(&[], "nothing")?;
    let events = w.nodes.number(Node::One, "/counters/events")? - before;
    // NEW and DESTROY of one connection, of twenty.
    ensure!(events == 2, "{events} events");
    Ok(())
}

/// A mark that goes and comes back takes the connection along.
#[test]
fn a_connection_leaves_and_comes_back_with_its_mark() -> Result<()> {
    lab::require!(Need::Root);
    let mut w = World::new()?;
    w.reload("mark = { value = 5 }")?;
    w.inject()?;
    let mut f = flow(1, 6, ports(80));
    let options = Options {
        ack: true,
        ..Options::default()
    };
    for (mark, wanted) in [(5, &[1][..]), (6, &[]), (5, &[1])] {
        f.mark = Some(mark);
        w.tell(|buf, seq| inject::update(buf, &f, options, seq))?;
        w.wait_for(wanted, &format!("mark {mark}"))?;
    }
    Ok(())
}

#[test]
fn expectations_can_be_left_out() -> Result<()> {
    lab::require!(Need::Root);
    let mut w = World::new()?;
    w.inject()?;
    let master = flow(4, 6, ports(6667)).orig;
    let tuple = Tuple::tcp(master.dst, 0, master.src, 50_000);
    let mut e = Expectation::new(master, tuple, Mask::any_sport(master.src));
    e.flags = expect::Flags::PERMANENT;
    w.tell(|buf, seq| expect::create(buf, &e, seq))?;
    w.wait_expectations(1)?;
    w.reload("no-expectations = true")?;
    w.wait_expectations(0)?;
    w.wait_for(ALL, "the connections")
}

/// The link's own connection is in the kernel, and mirrored it would never
/// come to rest.
#[test]
fn the_sync_link_is_never_mirrored() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    for node in Node::BOTH {
        pair.fw(node).nft(
            "table inet t {\n\tchain i {\n\t\ttype filter hook input priority 0; policy accept;\n\t\tct state new counter\n\t}\n}\n",
        )?;
    }
    let nodes = Nodes::with("")?;
    let _daemons = nodes.start_both(&pair)?;
    let link = format!("dport={PORT}");
    for node in Node::BOTH {
        let table = pair.fw(node).proc_net("nf_conntrack")?;
        ensure!(table.contains(&link), "not tracked: {table}");
        let address = node.sync_address(Family::V4).to_string();
        for cache in ["internal", "external"] {
            for end in ["-s", "-d"] {
                let shown = nodes.entries(node, &[cache, end, &address])?;
                ensure!(shown.is_empty(), "{cache}: {shown:?}");
            }
        }
    }
    Ok(())
}
