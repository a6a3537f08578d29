//! What ctsync takes from one kernel and gives to the other, attribute by
//! attribute, and what it does about connections that are there already.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use lab::inject::flows;
use lab::netns::Namespace;
use lab::nodes::Nodes;
use lab::pair::{Node, Pair};
use lab::require::Need;
use lab::wait::{patience, until};
use netfilter::expect::{self, ExpectNat, Expectation, Mask};
use netfilter::flow::{Help, HelpInfo, Labels, SeqAdj, Synproxy};
use netfilter::inject::{self, Options};
use netfilter::message::TooLong;
use netfilter::protoinfo::{ProtoInfo, Tcp, TcpFlags};
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Dir, Flow, L4, Messages, Name, Socket, Status, Tuple, message::Kind};

#[path = "native_ctsync_fidelity/turn.rs"]
mod turn;

/// Labels exist once a rule uses them; NAT, once a chain does.
const RULES: &str = "\
table inet lab_labels {
	chain forward {
		type filter hook forward priority filter; policy accept;
		meta mark 77 ct label set 3
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
	}
}
";

const CLIENT: [u8; 4] = [10, 200, 0, 1];
const SERVER: [u8; 4] = [10, 201, 0, 1];
const PUBLIC: [u8; 4] = [192, 0, 2, 9];

fn tuple(l4proto: u8, l4: L4) -> Tuple {
    Tuple {
        src: CLIENT.into(),
        dst: SERVER.into(),
        l4proto,
        l4,
        zone: None,
    }
}

const fn ports(src: u16, dst: u16) -> L4 {
    L4::Ports { src, dst }
}

/// An assured connection.
fn flow(orig: Tuple) -> Flow {
    let mut flow = Flow::new(orig, orig.inverse());
    flow.timeout = Some(3600);
    flow.status = Some(Status::SEEN_REPLY | Status::ASSURED | Status::CONFIRMED);
    flow
}

/// TCP, established, with options of its own in each direction.
fn tcp(sport: u16, dport: u16) -> Flow {
    let mut f = flow(Tuple::tcp(CLIENT.into(), sport, SERVER.into(), dport));
    let flags = |flags| TcpFlags { flags, mask: 0x0f };
    f.protoinfo = ProtoInfo::Tcp(Tcp {
        state: 3,
        wscale_orig: 7,
        wscale_reply: 9,
        flags_orig: flags(0x0b),
        flags_reply: flags(0x09),
    });
    f
}

/// Sends messages and returns errors by sequence number.
fn send(build: impl FnOnce(&mut Vec<u8>) -> Result<(), TooLong>) -> Result<BTreeMap<u32, i32>> {
    let socket = Socket::open()?;
    let (mut out, mut buf) = (Vec::new(), RecvBuf::new());
    build(&mut out)?;
    socket.send(&out, "injecting")?;
    let mut errors = BTreeMap::new();
    while let Received::Datagram(d) = socket.try_receive(&mut buf)? {
        for m in Messages::new(d) {
            if let Kind::Error(e) = m.kind() {
                errors.insert(m.seq, e.errno);
            }
        }
    }
    Ok(errors)
}

fn create(at: &Namespace, name: &str, flow: &Flow, options: Options) -> Result<()> {
    let errors = at.enter(|| send(|out| inject::create(out, flow, options, 1)))?;
    ensure!(errors.is_empty(), "{name}: {errors:?}");
    Ok(())
}

fn expectations(at: &Namespace) -> Result<Vec<Expectation>> {
    at.enter(|| {
        let mut found = Vec::new();
        Socket::open()?.exchange(
            "dumping expectations",
            |buf, seq| expect::dump(buf, None, seq),
            |m| {
                let event = expect::Event::decode(m).ok().flatten();
                found.extend(event.map(|e| e.expectation));
            },
        )?;
        Ok(found)
    })
}

fn find(at: &Namespace, wanted: &Flow) -> Result<Option<Flow>> {
    let all = flows(at)?;
    Ok(all
        .into_iter()
        .find(|f| f.orig == wanted.orig && f.zone == wanted.zone))
}

/// Without what is the machine's own: identity, counters, the clock.
fn comparable(mut flow: Flow) -> Flow {
    (flow.id, flow.timestamp, flow.timeout) = (None, None, None);
    (flow.counters_orig, flow.counters_reply) = (None, None);
    flow
}

/// What was asked for, so that two kernels without it are not called equal.
fn essence(f: &Flow) -> impl PartialEq + use<> {
    let mut protoinfo = f.protoinfo;
    if let ProtoInfo::Tcp(tcp) = &mut protoinfo {
        // Dumps have no mask.
        (tcp.flags_orig.mask, tcp.flags_reply.mask) = (0, 0);
    }
    let seq = (f.seq_adj_orig, f.seq_adj_reply);
    let helper = f.help.map(|h| h.name);
    let labels = f.labels.unwrap_or_default();
    let mark = f.mark.unwrap_or(0);
    let synproxy = f.synproxy.unwrap_or_default();
    (
        f.reply, protoinfo, seq, helper, labels, mark, f.master, synproxy,
    )
}

/// The table: each connection with what is special about it.
fn table() -> Result<Vec<(&'static str, Flow)>> {
    let with = |mut f: Flow, change: fn(&mut Flow)| {
        change(&mut f);
        f
    };
    let echo = |id| L4::Icmp { id, ty: 8, code: 0 };
    let v6 = |ty| -> Result<Flow> {
        let mut t = tuple(ty, ports(4000, 443));
        (t.src, t.dst) = ("fd00:200::1".parse()?, "fd00:201::1".parse()?);
        Ok(flow(t))
    };
    let public: IpAddr = PUBLIC.into();
    let labels = u128::to_le_bytes((1 << 3) | (1 << 127));
    let mut labelled = tcp(1004, 80);
    labelled.labels = Some(Labels(labels));
    let helper = |name: &[u8]| -> Result<Option<Help>> {
        let name = Name::new(name)?;
        let info = HelpInfo::default();
        Ok(Some(Help { name, info }))
    };
    let mut helped = tcp(1005, 21);
    helped.help = helper(b"ftp")?;
    let mut irc = tcp(1010, 6667);
    irc.help = helper(b"irc")?;
    irc.reply.dst = public;
    let mut child = tcp(1006, 20);
    child.master = Some(helped.orig);
    let mut nat_v6 = v6(17)?;
    nat_v6.reply.dst = "fd00:202::9".parse()?;
    Ok(vec![
        ("TCP with window scales and flags", tcp(1001, 80)),
        ("mark", with(tcp(1002, 80), |f| f.mark = Some(0xdead_beef))),
        ("zone", with(tcp(1003, 80), |f| f.zone = 7)),
        ("same tuple, no zone", tcp(1003, 80)),
        ("labels", labelled),
        ("helper", helped),
        ("child of the one before", child),
        (MASTER, irc),
        ("SNAT with another port", {
            let mut f = tcp(1007, 80);
            f.reply.dst = public;
            f.reply.l4 = ports(80, 61007);
            f
        }),
        ("DNAT with another port", {
            let mut f = tcp(1008, 80);
            f.reply.src = [10, 201, 0, 2].into();
            f.reply.l4 = ports(8080, 1008);
            f
        }),
        ("sequence adjustment", {
            let mut f = tcp(1009, 80);
            f.reply.dst = public;
            f.seq_adj_orig = Some(SeqAdj {
                correction_pos: 0xffff_fff0,
                before: -3,
                after: 12,
            });
            f.seq_adj_reply = Some(SeqAdj {
                correction_pos: 5,
                before: 0,
                after: -2,
            });
            f
        }),
        ("UDP", flow(tuple(17, ports(2000, 53)))),
        ("UDP over IPv6 with SNAT", nat_v6),
        ("TCP over IPv6", {
            let mut f = v6(6)?;
            f.protoinfo = tcp(1, 1).protoinfo;
            f
        }),
        ("SCTP with verification tags", {
            let mut f = flow(tuple(132, ports(3000, 3868)));
            f.protoinfo = ProtoInfo::Sctp {
                state: 4,
                vtag_orig: 0x1234_5678,
                vtag_reply: 0x9abc_def0,
            };
            f
        }),
        ("GRE keys", flow(tuple(47, ports(0x55, 0x66)))),
        ("ICMP", flow(tuple(1, echo(100)))),
        ("ICMP with a translated id", {
            let mut f = flow(tuple(1, echo(101)));
            f.reply.dst = public;
            f.reply.l4 = L4::Icmp {
                id: 40101,
                ty: 0,
                code: 0,
            };
            f
        }),
        ("a protocol without ports", flow(tuple(89, L4::None))),
        ("a protocol without ports, SNAT", {
            let mut f = flow(tuple(50, L4::None));
            f.reply.dst = public;
            f
        }),
        ("a zone for the original direction", {
            let mut f = tcp(1011, 80);
            f.orig.zone = Some(7);
            f
        }),
        ("a zone for the reply direction", {
            let mut f = tcp(1012, 80);
            f.reply.zone = Some(8);
            f
        }),
        ("SYN proxy", {
            let mut f = tcp(1013, 80);
            f.synproxy = Some(Synproxy {
                isn: 0x8000_0001,
                its: 2,
                tsoff: 3,
            });
            f
        }),
        ("unreplied", {
            let mut f = tcp(1014, 80);
            f.status = Some(Status::CONFIRMED);
            f
        }),
        ("ICMPv6", {
            let mut f = v6(58)?;
            f.orig.l4 = L4::Icmp {
                id: 9,
                ty: 128,
                code: 0,
            };
            f.reply = f.orig.inverse();
            f
        }),
        ("UDP-Lite", flow(tuple(136, ports(2001, 53)))),
    ])
}

/// Linux has forgotten DCCP between 6.12 and 6.18: from then on it is a
/// protocol without ports for connection tracking, and is mirrored as that.
#[test]
fn dccp_arrives_as_far_as_the_kernel_knows_it() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    let one = w.pair.fw(Node::One);
    let mut dccp = flow(tuple(33, ports(4000, 5001)));
    dccp.protoinfo = ProtoInfo::Dccp {
        state: 5,
        role: 1,
        handshake_seq: 0x1234_5678_9abc,
    };
    create(one, "DCCP", &dccp, Options::default())?;
    let is_dccp = |f: &Flow| f.orig.l4proto == 33;
    let source = flows(one)?.into_iter().find(is_dccp);
    let source = source.context("not injected")?;
    if source.protoinfo == ProtoInfo::None {
        eprintln!("this kernel does not track DCCP");
        ensure!(source.orig.l4 == L4::None, "{source:?}");
    } else {
        ensure!(essence(&source) == essence(&dccp), "{source:?}");
    }
    w.nodes.wait_mirrored(Node::One)?;
    let committed = w.nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(committed.ok(), "{}", committed.report());
    let copy = flows(w.pair.fw(Node::Two))?.into_iter().find(is_dccp);
    ensure!(
        copy.map(comparable) == Some(comparable(source)),
        "{source:?} is there {copy:?}"
    );
    Ok(())
}

/// The kernel's IRC helper allows eight expectations per connection, its FTP
/// helper one.
const MASTER: &str = "SNAT and a helper: the expectations' master";

fn master() -> Result<Flow> {
    let table = table()?;
    let master = table.iter().find(|(name, _)| *name == MASTER);
    Ok(master.context("no master")?.1)
}

/// Ports that belong together, for any number of connections.
fn block(master: Tuple) -> Result<Vec<Expectation>> {
    let name = Name::new(b"nat-follow-master").context("name")?;
    Ok((0..4)
        .map(|i| {
            let tuple = Tuple::tcp(SERVER.into(), 0, PUBLIC.into(), 50_000 + i);
            let mut e = Expectation::new(master, tuple, Mask::any_sport(SERVER.into()));
            e.flags = expect::Flags::PERMANENT;
            e.expectfn = Some(name);
            e.nat = Some(ExpectNat {
                dir: Dir::Reply,
                addr: CLIENT.into(),
                port: 40_000 + i,
                l4proto: 6,
            });
            e
        })
        .collect())
}

/// Two nodes with [`RULES`].
struct World {
    pair: Pair,
    nodes: Nodes,
}

impl World {
    fn new(extra: &str) -> Result<Self> {
        let pair = Pair::new()?;
        for node in Node::BOTH {
            pair.fw(node).nft(RULES)?;
        }
        let nodes = Nodes::with(extra)?;
        Ok(Self { pair, nodes })
    }
}

#[test]
fn every_attribute_arrives_in_the_other_kernel() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("[kernel]\ntcp-liberal = false\n")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    let table = table()?;
    let options = Options {
        liberal: false,
        ..Options::default()
    };
    let one = w.pair.fw(Node::One);
    for (name, flow) in &table {
        create(one, name, flow, options)?;
    }
    let master = table.iter().find(|(name, _)| *name == MASTER);
    let block = block(master.context("no master")?.1.orig)?;
    let errors = one.enter(|| {
        send(|out| {
            (1..)
                .zip(&block)
                .try_for_each(|(seq, e)| expect::create(out, e, seq))
        })
    })?;
    ensure!(errors.is_empty(), "{errors:?}");
    // Less than what the helper gives, which a create sets.
    let errors = one.enter(|| {
        send(|out| {
            (1..).zip(&block).try_for_each(|(seq, e)| {
                let mut e = *e;
                e.timeout = Some(100);
                expect::update(out, &e, seq)
            })
        })
    })?;
    ensure!(errors.is_empty(), "{errors:?}");
    // No event tells that: the nodes look for themselves.
    let resync = w.nodes.ctsync(Node::One, &["resync"])?;
    ensure!(resync.ok(), "{}", resync.report());
    until("the remaining time to arrive", patience(), || {
        let args = ["show", "external", "--expectations", "--json"];
        let shown = w.nodes.ctsync(Node::Two, &args).ok()?;
        let left = |line: &str| {
            let e: serde_json::Value = serde_json::from_str(line).ok()?;
            e.get("timeout")?.as_u64()
        };
        let all: Vec<_> = shown.stdout.lines().map(left).collect();
        let arrived = all.iter().all(|t| t.is_some_and(|t| t <= 100));
        (arrived && !all.is_empty()).then_some(())
    })?;
    w.nodes.wait_mirrored(Node::One)?;

    let committed = w.nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(committed.ok(), "{}", committed.report());
    for e in expectations(w.pair.fw(Node::Two))? {
        let left = e.timeout.unwrap_or(0);
        ensure!((30..=100).contains(&left), "{left} s left");
    }
    let mut differ = Vec::new();
    for (name, flow) in &table {
        let source = find(one, flow)?.with_context(|| format!("{name}: not injected"))?;
        ensure!(essence(&source) == essence(flow), "{name}: {source:?}");
        let copy = find(w.pair.fw(Node::Two), flow)?;
        if copy.map(comparable) != Some(comparable(source)) {
            differ.push(format!("{name}: {source:#?} is there {copy:#?}"));
        }
        if let Some(left) = copy.and_then(|c| c.timeout) {
            ensure!((3500..=3600).contains(&left), "{name}: {left} s left");
        }
    }
    ensure!(differ.is_empty(), "{}", differ.join("\n"));

    let sorted = |node| -> Result<Vec<Expectation>> {
        let mut all = expectations(w.pair.fw(node))?;
        for e in &mut all {
            (e.id, e.timeout) = (None, None);
        }
        all.sort_by_key(|e| e.tuple);
        Ok(all)
    };
    let (source, copy) = (sorted(Node::One)?, sorted(Node::Two)?);
    ensure!(source.len() == 4, "{source:?}");
    ensure!(source == copy, "{source:#?} is there {copy:#?}");
    Ok(())
}

/// The same connection with other NAT, and another one whose reply it is.
#[test]
fn a_connection_that_is_there_otherwise_is_replaced() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    let snat = |port| {
        let mut f = tcp(port, 80);
        f.reply.dst = PUBLIC.into();
        f
    };
    let (other_nat, in_the_way, same) = (snat(1001), snat(1002), snat(1003));
    let (one, two) = (w.pair.fw(Node::One), w.pair.fw(Node::Two));
    create(two, "without NAT", &tcp(1001, 80), Options::default())?;
    let mut stranger = tcp(1002, 80);
    stranger.orig.src = [10, 200, 0, 99].into();
    stranger.reply = in_the_way.reply;
    create(two, "same reply", &stranger, Options::default())?;
    create(two, "the same", &same, Options::default())?;
    for flow in [&other_nat, &in_the_way, &same] {
        create(one, "wanted", flow, Options::default())?;
    }
    w.nodes.wait_mirrored(Node::One)?;
    // fw-2's own are those that were there; they are not newer.
    let committed = w.nodes.ctsync(Node::Two, &["commit", "--json"])?;
    ensure!(committed.ok(), "{}", committed.report());
    let report: serde_json::Value = serde_json::from_str(&committed.success()?)?;
    ensure!(report.get("flows").context("flows")? == 3, "{report}");
    ensure!(report.get("replaced").context("replaced")? == 2, "{report}");
    ensure!(report.get("updated").context("updated")? == 1, "{report}");
    for flow in [&other_nat, &in_the_way, &same] {
        let there = find(two, flow)?.context("not there")?;
        ensure!(there.reply == flow.reply, "{there:?}");
    }
    ensure!(find(two, &stranger)?.is_none());
    Ok(())
}

/// What fw-2's kernel has of a connection is more than the owner has.
#[test]
fn what_a_connection_does_not_have_is_taken_away() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    let (one, two) = (w.pair.fw(Node::One), w.pair.fw(Node::Two));
    let with = |port, change: fn(&mut Flow)| {
        let mut f = tcp(port, 80);
        change(&mut f);
        f
    };
    let adjusted = SeqAdj {
        correction_pos: 5,
        before: 0,
        after: 12,
    };
    let mut helped = tcp(1003, 80);
    helped.help = Some(Help {
        name: Name::new(b"ftp")?,
        info: HelpInfo::default(),
    });
    let mut shifted = tcp(1004, 80);
    shifted.seq_adj_orig = Some(adjusted);
    shifted.seq_adj_reply = Some(adjusted);
    let changed_in_place = [
        ("mark", with(1001, |f| f.mark = Some(7))),
        ("labels", with(1002, |f| f.labels = Some(Labels([1; 16])))),
    ];
    let replaced = [
        ("helper", helped),
        ("sequence adjustment", shifted),
        (
            "SYN proxy",
            with(1005, |f| {
                f.synproxy = Some(Synproxy {
                    isn: 1,
                    its: 2,
                    tsoff: 3,
                });
            }),
        ),
        (
            "fixed timeout",
            with(1006, |f| {
                f.status = f.status.map(|s| s | Status::FIXED_TIMEOUT);
            }),
        ),
        (
            "assured",
            with(1007, |f| f.status = f.status.map(|s| s | Status::ASSURED)),
        ),
    ];
    let all = || changed_in_place.iter().chain(&replaced);
    for (name, more) in all() {
        create(two, name, more, Options::default())?;
        let mut less = tcp(more.orig.sport(), 80);
        if *name == "assured" {
            less.status = Some(Status::CONFIRMED | Status::SEEN_REPLY);
        }
        create(one, name, &less, Options::default())?;
    }
    w.nodes.wait_mirrored(Node::One)?;
    let committed = w
        .nodes
        .ctsync(Node::Two, &["commit", "--json", "--verify"])?;
    ensure!(committed.ok(), "{}", committed.report());
    let report: serde_json::Value = serde_json::from_str(&committed.success()?)?;
    ensure!(report.get("updated").context("updated")? == 2, "{report}");
    ensure!(report.get("replaced").context("replaced")? == 5, "{report}");
    for (name, more) in all() {
        let source = find(one, more)?.map(comparable);
        let mut copy = find(two, more)?.map(comparable);
        if let Some(labels) = copy.as_mut().and_then(|c| c.labels.take()) {
            ensure!(labels == Labels::default(), "{labels:?}");
        }
        ensure!(copy.is_some(), "{name} is not there");
        ensure!(copy == source, "{name}: {source:?} is there {copy:?}");
    }
    Ok(())
}

/// A kernel without a rule on labels has no room for them and says nothing.
/// There is one while it matters, and nothing is left of it.
#[test]
fn labels_arrive_where_no_rule_uses_them() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let (one, two) = (pair.fw(Node::One), pair.fw(Node::Two));
    one.nft(RULES)?;
    let nodes = Nodes::with("")?;
    let _daemons = nodes.start_both(&pair)?;
    let mut labelled = tcp(1001, 80);
    labelled.labels = Some(Labels(u128::to_le_bytes(1 | 1 << 127)));
    create(one, "labels", &labelled, Options::default())?;
    nodes.wait_mirrored(Node::One)?;
    let committed = nodes.ctsync(Node::Two, &["commit", "--verify"])?;
    ensure!(committed.ok(), "{}", committed.report());
    let there = find(two, &labelled)?.context("not there")?;
    ensure!(there.labels == labelled.labels, "{there:?}");
    let tables = two.run("nft", &["list", "tables"])?;
    ensure!(tables.is_empty(), "{tables}");
    Ok(())
}

/// What a kernel takes from nobody, and why: fw-1 can't have it either.
#[test]
fn what_the_kernel_refuses() -> Result<()> {
    lab::require!(Need::Root);
    let pair = Pair::new()?;
    let one = pair.fw(Node::One);
    one.nft(RULES)?;
    let refused = |flow: &Flow| -> Result<i32> {
        let errors = one.enter(|| send(|out| inject::create(out, flow, Options::default(), 1)))?;
        errors.get(&1).copied().context("accepted")
    };
    // No helper of that name.
    let mut f = tcp(1001, 21);
    let name = Name::new(b"lab-absent")?;
    f.help = Some(Help {
        name,
        info: HelpInfo::default(),
    });
    ensure!(refused(&f)? == libc::EOPNOTSUPP);
    // No master.
    let mut f = tcp(1002, 20);
    f.master = Some(tcp(9, 21).orig);
    ensure!(refused(&f)? == libc::ENOENT);
    // Its reply belongs to another connection.
    create(one, "first", &tcp(1003, 80), Options::default())?;
    let mut f = tcp(1004, 80);
    f.reply = tcp(1003, 80).reply;
    ensure!(refused(&f)? == libc::EEXIST);
    Ok(())
}

/// An expectation for the same port that leads elsewhere.
#[test]
fn an_expectation_that_is_there_otherwise_is_replaced() -> Result<()> {
    lab::require!(Need::Root);
    let w = World::new("")?;
    let _daemons = w.nodes.start_both(&w.pair)?;
    let master = master()?;
    let wanted = block(master.orig)?;
    let mut other = wanted.clone();
    for nat in other.iter_mut().filter_map(|e| e.nat.as_mut()) {
        nat.port += 1000;
    }
    for (node, expectations) in [(Node::One, &wanted), (Node::Two, &other)] {
        let at = w.pair.fw(node);
        create(at, MASTER, &master, Options::default())?;
        let errors = at.enter(|| {
            send(|out| {
                (1..)
                    .zip(expectations)
                    .try_for_each(|(seq, e)| expect::create(out, e, seq))
            })
        })?;
        ensure!(errors.is_empty(), "{errors:?}");
    }
    w.nodes.wait_mirrored(Node::One)?;
    for _ in 0..2 {
        let committed = w.nodes.ctsync(Node::Two, &["commit"])?;
        ensure!(committed.ok(), "{}", committed.report());
        let mut ports: Vec<_> = expectations(w.pair.fw(Node::Two))?
            .iter()
            .filter_map(|e| e.nat.map(|n| n.port))
            .collect();
        ports.sort_unstable();
        ensure!(ports == [40_000, 40_001, 40_002, 40_003], "{ports:?}");
    }
    Ok(())
}
