//! The kernel's messages.

use netfilter::attr::Attrs;
use netfilter::conntrack;
use netfilter::cthelper::{self, Helper};
use netfilter::inject::{self, Options};
use netfilter::message::{Header, Kind, SUBSYS_CTNETLINK, SUBSYS_QUEUE, append};
use netfilter::{Dir, Expectation, Flow, Message, Messages, Name, expect, queue};
use nft_ftp_helper::core;
use nft_ftp_ruleset::live::decode::Decoder;

/// Deepest nesting that is looked into.
const DEPTH: u32 = 8;

/// A datagram: messages, errors, attributes however deep.
pub fn messages(input: &[u8]) {
    let mut messages = Messages::new(input);
    let mut left = input.len();
    while let Some(message) = messages.next() {
        assert!(messages.rest().len() < left, "no progress");
        left = messages.rest().len();
        match message.kind() {
            Kind::Netfilter(nf) => walk(nf.attrs, DEPTH),
            Kind::Error(failure) => assert!(failure.text.is_none_or(|t| !t.ends_with('\0'))),
            Kind::Ack | Kind::Done | Kind::Other => {}
        }
        decoders(&message);
    }
}

/// Every decoder must cope with every message.
fn decoders(message: &Message<'_>) {
    let _ = conntrack::Event::decode(message);
    let _ = expect::Event::decode(message);
    let _ = queue::packet_id(message);
    if let Ok(Some(packet)) = queue::Packet::decode(message) {
        let _ = packet.flow();
        let _ = packet.is_expected();
    }
}

fn walk(attrs: Attrs<'_>, depth: u32) {
    let mut it = attrs;
    let mut left = it.rest().len();
    while let Some(a) = it.next() {
        assert!(it.rest().len() < left, "no progress");
        left = it.rest().len();
        assert!(attrs.find(a.ty).is_some());
        let lengths = [
            (a.u8("u8").is_ok(), 1),
            (a.be16("be16").is_ok(), 2),
            (a.be32("be32").is_ok(), 4),
            (a.be64("be64").is_ok(), 8),
            (a.ipv6("ipv6").is_ok(), 16),
        ];
        for (ok, len) in lengths {
            assert_eq!(ok, a.value.len() == len);
        }
        if let Ok(name) = Name::from_attr(a.value) {
            assert!(a.value.starts_with(name.as_bytes()));
        }
        if let Some(depth) = depth.checked_sub(1) {
            walk(a.nested(), depth);
        }
    }
}

/// The attributes of the one message that `fill` appends.
fn again<T>(
    fill: impl FnOnce(&mut Vec<u8>) -> Result<(), netfilter::message::TooLong>,
    read: impl FnOnce(Attrs<'_>) -> T,
) -> T {
    let mut buf = Vec::new();
    fill(&mut buf).expect("fits a message");
    let mut messages = Messages::new(&buf);
    let message = messages.next().expect("a message");
    assert!(messages.rest().is_empty());
    read(message.netfilter().expect("of nfnetlink").attrs)
}

/// Attributes of a connection.
pub fn conntrack(input: &[u8]) {
    let Ok(flow) = Flow::decode(Attrs::new(input)) else {
        return;
    };
    let header = Header {
        subsys: SUBSYS_CTNETLINK,
        ..Header::default()
    };
    let written = |buf: &mut Vec<u8>| append(buf, header, |w| flow.encode(w));
    assert_eq!(again(written, Flow::decode), Ok(flow));
    let _ = flow.orig.to_string();
    let options = Options::default();
    // The kernel derives the translation; a create carries the plain inverse.
    let created = again(|b| inject::create(b, &flow, options, 1), Flow::decode);
    let created = created.expect("a create can be read");
    assert_eq!(created.orig, flow.orig);
    assert_eq!(created.mark, flow.mark.filter(|m| *m != 0).or(created.mark));
    for fill in [inject::help_info, inject::seq_adj] {
        again(|b| fill(b, &flow, true, 1), |attrs| walk(attrs, DEPTH));
    }
    again(|b| inject::update(b, &flow, options, 1), |a| walk(a, DEPTH));
    let get = again(
        |b| conntrack::get(b, netfilter::Dir::Orig, &flow.orig, flow.zone, 1),
        |attrs| conntrack::tuple(attrs, netfilter::Dir::Orig),
    );
    assert_eq!(get, Ok(flow.orig));
}

/// Attributes of an expectation.
pub fn expectation(input: &[u8]) {
    let Ok(exp) = Expectation::decode(Attrs::new(input)) else {
        return;
    };
    let mut known = exp;
    // Not written: the identifier is the kernel's, the helper the master's.
    (known.id, known.helper) = (None, None);
    known.flags &= expect::Flags::PERMANENT | expect::Flags::INACTIVE;
    let created = again(|b| expect::create(b, &exp, 1), Expectation::decode);
    assert_eq!(created, Ok(known));
    let updated = again(|b| expect::update(b, &exp, 1), Expectation::decode);
    assert_eq!(updated, Ok(known));
    let delete = |b: &mut Vec<u8>| expect::delete(b, &exp.tuple, exp.zone, exp.id, 1);
    again(delete, |attrs| walk(attrs, DEPTH));
    let dump = |b: &mut Vec<u8>| expect::dump(b, Some((&exp.master, exp.zone)), 1);
    again(dump, |attrs| walk(attrs, DEPTH));
}

/// Attributes of a helper's registration.
pub fn cthelper(input: &[u8]) {
    let Ok(mut helper) = Helper::decode(Attrs::new(input)) else {
        return;
    };
    helper.policies.truncate(cthelper::MAX_CLASSES);
    let written = again(|b| cthelper::new(b, &helper, 1), Helper::decode);
    assert_eq!(written, Ok(helper));
}

/// What the kernel says about our table: a datagram after the decoder's
/// input, printed and compared afterwards.
pub fn nftables(input: &[u8]) {
    let mut decoder = Decoder::new("nft_ftp");
    for message in Messages::new(input) {
        decoder.message(message.raw());
    }
    let live = decoder.finish();
    let _ = nft_ftp_ruleset::plan::plan(&live, &empty()).len();
}

fn empty() -> nft_ftp_ruleset::ir::Ruleset {
    let policy = nft_ftp_ruleset::policy::Policy::parse("").expect("the default policy");
    let addresses = nft_ftp_ruleset::policy::addresses::AddressSets::default();
    nft_ftp_ruleset::lower::lower(&policy, addresses)
}

/// A queue message, from decoder to answer: raw messages behind an odd byte,
/// the attributes of a packet behind an even one.
///
/// # Panics
/// What was decoded can't be answered.
pub fn queue_message(input: &[u8]) {
    match input.split_first() {
        Some((options, rest)) if options & 1 == 0 => answer(&packet_message(rest)),
        Some((_, rest)) => answer(rest),
        None => {}
    }
}

fn packet_message(attributes: &[u8]) -> Vec<u8> {
    let header = Header {
        subsys: SUBSYS_QUEUE,
        // NFQNL_MSG_PACKET
        msg: 0,
        flags: 0,
        family: 2,
        res_id: 121,
        seq: 0,
    };
    let mut bytes = Vec::new();
    let _ = append(&mut bytes, header, |w| w.raw(attributes));
    bytes
}

fn answer(bytes: &[u8]) {
    for message in Messages::new(bytes) {
        let id = queue::packet_id(&message);
        let Ok(Some(packet)) = queue::Packet::decode(&message) else {
            continue;
        };
        assert!(id.is_some());
        let mut with = queue::With::default();
        if let Ok(Some(flow)) = packet.flow() {
            with.help = flow.help;
        }
        if let Ok(tcp) = core::Packet::parse(packet.payload) {
            let segment = tcp.segment(Dir::Orig);
            assert!(segment.payload.len() <= packet.payload.len());
            with.payload = Some(tcp.bytes);
        }
        let (mut out, verdict) = (Vec::new(), queue::Verdict::Accept);
        if queue::verdict(&mut out, packet.queue, packet.id, verdict, with, 0).is_ok() {
            assert_eq!(Messages::new(&out).count(), 1);
        }
    }
}
