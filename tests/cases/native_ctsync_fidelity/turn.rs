//! Applied at once: what many changes come to that a node takes in one turn of
//! its loop, because it has been away for a moment.

use super::*;
use lab::peer::Peer;
use netfilter::conntrack::{self, Change, group};
use nix::sys::signal::Signal;

/// Two nodes, of which the second writes at once.
struct AtOnce {
    w: World,
    one: Peer,
    two: Peer,
}

impl AtOnce {
    fn new() -> Result<Self> {
        let w = World::new("apply = \"immediate\"\npeer-timeout = \"5s\"")?;
        let [one, two] = w.nodes.start_both(&w.pair)?;
        Ok(Self { w, one, two })
    }

    fn tell(
        &self,
        node: Node,
        build: impl FnOnce(&mut Vec<u8>) -> Result<(), TooLong> + Send,
    ) -> Result<()> {
        let errors = self.w.pair.fw(node).enter(|| send(build))?;
        ensure!(errors.is_empty(), "{errors:?}");
        Ok(())
    }

    fn create(&self, flow: &Flow) -> Result<()> {
        self.tell(Node::One, |out| {
            inject::create(out, flow, Options::default(), 1)
        })
    }

    fn update(&self, node: Node, flow: &Flow) -> Result<()> {
        self.tell(node, |out| inject::update(out, flow, Options::default(), 1))
    }

    fn delete(&self, flow: &Flow) -> Result<()> {
        self.tell(Node::One, |out| {
            conntrack::delete(out, &flow.orig, 0, None, 1)
        })
    }

    /// The connections and expectations of a kernel, but for the link's own.
    fn kernel(&self, node: Node) -> Result<(Vec<Flow>, Vec<Expectation>)> {
        let at = self.w.pair.fw(node);
        let mut all = flows(at)?;
        all.retain(|f| f.orig.dport() != lab::nodes::PORT);
        let mut all: Vec<_> = all.into_iter().map(comparable).collect();
        all.sort_by_key(|f| f.orig);
        let mut expected = expectations(at)?;
        for e in &mut expected {
            (e.id, e.timeout) = (None, None);
        }
        Ok((all, expected))
    }

    /// Waits until both kernels have the same.
    fn same(&self) -> Result<()> {
        until("the same in both kernels", patience(), || {
            (self.kernel(Node::One).ok()? == self.kernel(Node::Two).ok()?).then_some(())
        })
        .with_context(|| {
            let [one, two] = Node::BOTH.map(|node| self.kernel(node));
            format!("{one:#?}\nis there {two:#?}")
        })?;
        let refused = self.w.nodes.number(Node::Two, "/counters/write_failures")?;
        ensure!(refused == 0, "{refused} refused");
        let own = self.w.nodes.number(Node::Two, "/internal/flows")?;
        ensure!(own == 0, "{own} belong to fw-2");
        Ok(())
    }

    /// Makes changes at fw-1 that fw-2 gets all at the same time. The last is a
    /// connection, which it returns.
    fn in_one_turn(&self, change: impl FnOnce() -> Result<()>) -> Result<Flow> {
        let last = tcp(9999, 80);
        self.two.signal(Signal::SIGSTOP)?;
        change()?;
        self.create(&last)?;
        until("the last of it to be sent", patience(), || {
            let own = self.w.nodes.entries(Node::One, &["internal"]).ok()?;
            let queued = self.w.nodes.number(Node::One, "/peers/0/queued").ok()?;
            let seen = own.iter().any(|e| e.contains("9999"));
            (seen && queued == 0).then_some(())
        })?;
        self.two.signal(Signal::SIGCONT)?;
        self.same()?;
        Ok(last)
    }
}

fn snat(port: u16, src: [u8; 4]) -> Flow {
    let mut f = tcp(port, 80);
    f.orig.src = src.into();
    f.reply = f.orig.inverse();
    f.reply.dst = PUBLIC.into();
    f
}

/// What is gone is deleted after what is new is written, and still nothing of it
/// is in the way, nor deleted under another's name.
#[test]
fn connections_that_go_and_come_in_one_turn_are_there_as_they_came() -> Result<()> {
    lab::require!(Need::Root);
    let nodes = AtOnce::new()?;
    let same = snat(1001, CLIENT);
    let (mut marked, unmarked) = (snat(1002, CLIENT), snat(1002, CLIENT));
    marked.mark = Some(7);
    let new = Flow {
        status: Some(Status::CONFIRMED),
        protoinfo: ProtoInfo::Tcp(Tcp {
            state: 1,
            ..Tcp::default()
        }),
        ..snat(1005, CLIENT)
    };
    let one_way = tcp(1006, 80);
    let mut soon_over = tcp(1007, 80);
    soon_over.timeout = Some(100);
    let inverse = |f: &Flow| {
        let mut f = *f;
        (f.orig, f.reply) = (f.reply, f.orig);
        f.timeout = Some(3600);
        f
    };
    let changes = [
        (same, same),
        (marked, unmarked),
        (snat(1003, CLIENT), tcp(1003, 80)),
        (snat(1004, CLIENT), snat(1004, [10, 200, 0, 99])),
        (snat(1005, CLIENT), new),
        (one_way, inverse(&one_way)),
        (soon_over, inverse(&soon_over)),
    ];
    let over = tcp(1008, 80);
    nodes.create(&over)?;
    for (old, _) in &changes {
        nodes.create(old)?;
    }
    nodes.same()?;
    let events = nodes.w.pair.fw(Node::Two).enter(|| -> Result<_> {
        let events = Socket::open()?;
        events.join(group::NEW)?;
        events.join(group::DESTROY)?;
        Ok(events)
    })?;
    let last = nodes.in_one_turn(|| {
        nodes.delete(&over)?;
        for (old, new) in &changes {
            nodes.delete(old)?;
            nodes.create(new)?;
        }
        Ok(())
    })?;
    let (mut seen, mut buf) = (Vec::new(), RecvBuf::new());
    while let Received::Datagram(d) = events.try_receive(&mut buf)? {
        let all = Messages::new(d).filter_map(|m| conntrack::Event::decode(&m).ok()?);
        seen.extend(all.map(|e| (e.change, e.flow.orig)));
    }
    let at = |what| seen.iter().position(|e| *e == what);
    let written = at((Change::New, last.orig)).context("never written")?;
    let deleted = at((Change::Destroy, over.orig)).context("never deleted")?;
    ensure!(written < deleted, "{seen:?}");
    Ok(())
}

/// One from one server, then one from all of its network: they are in each other's
/// way, and neither is found by the other's tuple.
#[test]
fn an_expectation_that_is_in_the_way_of_a_new_one_goes_first() -> Result<()> {
    lab::require!(Need::Root);
    let nodes = AtOnce::new()?;
    let master = master()?;
    let old = *block(master.orig)?.first().context("no block")?;
    let mut new = old;
    new.tuple.src = [10, 201, 0, 0].into();
    new.mask.src = [255, 255, 255, 0].into();
    nodes.create(&master)?;
    nodes.tell(Node::One, |out| expect::create(out, &old, 1))?;
    nodes.same()?;
    nodes.in_one_turn(|| {
        nodes.tell(Node::One, |out| expect::delete(out, &old.tuple, 0, None, 1))?;
        nodes.tell(Node::One, |out| expect::create(out, &new, 1))
    })?;
    ensure!(expectations(nodes.w.pair.fw(Node::Two))?.len() == 1);
    Ok(())
}

/// To replace a connection takes its expectations away: they come after. fw-1 is away
/// for a moment, and tells of the old connection and the new one in one record.
#[test]
fn an_expectation_comes_after_the_connection_that_replaces_its_master() -> Result<()> {
    lab::require!(Need::Root);
    let nodes = AtOnce::new()?;
    let old = master()?;
    let mut new = old;
    new.status = Some(Status::CONFIRMED | Status::SEEN_REPLY);
    let expected = *block(new.orig)?.first().context("no block")?;
    nodes.create(&old)?;
    nodes.same()?;
    nodes.one.signal(Signal::SIGSTOP)?;
    nodes.delete(&old)?;
    nodes.create(&new)?;
    nodes.tell(Node::One, |out| expect::create(out, &expected, 1))?;
    nodes.one.signal(Signal::SIGCONT)?;
    nodes.same()?;
    ensure!(expectations(nodes.w.pair.fw(Node::Two))?.len() == 1);
    Ok(())
}

#[test]
fn a_connection_that_lives_on_loses_its_mark() -> Result<()> {
    lab::require!(Need::Root);
    let nodes = AtOnce::new()?;
    let flow = tcp(1001, 80);
    nodes.create(&flow)?;
    for mark in [7, 0] {
        let mut f = flow;
        f.mark = Some(mark);
        nodes.update(Node::One, &f)?;
        nodes.same()?;
        let there = find(nodes.w.pair.fw(Node::Two), &flow)?.context("not there")?;
        ensure!(there.mark.unwrap_or(0) == mark, "{there:?}");
    }
    Ok(())
}

/// Its packets come through fw-2 by now: what is done to it there is no remnant, when
/// fw-1 tells something that it does not know of yet.
#[test]
fn what_this_node_does_to_a_connection_is_left() -> Result<()> {
    lab::require!(Need::Root);
    let nodes = AtOnce::new()?;
    let mut flow = tcp(1001, 80);
    flow.status = Some(Status::CONFIRMED | Status::SEEN_REPLY);
    nodes.create(&flow)?;
    nodes.same()?;
    let mut here = flow;
    here.mark = Some(7);
    here.seq_adj_orig = Some(SeqAdj {
        correction_pos: 5,
        before: 0,
        after: 12,
    });
    here.seq_adj_reply = Some(SeqAdj::default());
    nodes.one.signal(Signal::SIGSTOP)?;
    nodes.update(Node::Two, &here)?;
    until("fw-2 to own it", patience(), || {
        (nodes.w.nodes.number(Node::Two, "/internal/flows").ok()? == 1).then_some(())
    })?;
    let before = find(nodes.w.pair.fw(Node::Two), &flow)?.context("not there")?;
    flow.status = flow.status.map(|s| s | Status::ASSURED);
    nodes.update(Node::One, &flow)?;
    nodes.one.signal(Signal::SIGCONT)?;
    let after = until("what fw-1 says of it", patience(), || {
        let there = find(nodes.w.pair.fw(Node::Two), &flow).ok()??;
        there.status?.contains(Status::ASSURED).then_some(there)
    })?;
    ensure!(after.id == before.id, "it was replaced: {after:?}");
    ensure!(after.mark == Some(7), "{after:?}");
    ensure!(after.seq_adj_orig == here.seq_adj_orig, "{after:?}");
    Ok(())
}
