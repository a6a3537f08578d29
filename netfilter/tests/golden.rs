//! Decoders against bytes that real kernels sent. The files were written by
//! `cargo run -p netfilter --example capture -- TABLE`; the expected values
//! are what conntrack(8) and nfct(8) printed at the same moment.

use netfilter::conntrack::{self, Status};
use netfilter::cthelper::{Helper, HelperStatus, Policy};
use netfilter::expect::{self, Flags, Mask};
use netfilter::protoinfo::ProtoInfo;
use netfilter::queue::{CtInfo, Packet};
use netfilter::{Dir, Flow, L4, Messages, Tuple};

fn load(text: &str) -> Vec<Vec<u8>> {
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            line.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect()
        })
        .collect()
}

fn flows() -> Vec<Flow> {
    load(include_str!("golden/conntrack.hex"))
        .iter()
        .map(|bytes| {
            let message = Messages::new(bytes).next().unwrap();
            conntrack::Event::decode(&message).unwrap().unwrap().flow
        })
        .collect()
}

fn find(l4proto: u8, dport: u16) -> Flow {
    let mut found = flows()
        .into_iter()
        .filter(|f| f.orig.l4proto == l4proto && f.orig.dport() == dport);
    found.next().unwrap()
}

#[test]
fn a_natted_tcp_connection_is_read_whole() {
    let flow = flows()
        .into_iter()
        .find(|f| f.orig.sport() == 40000)
        .unwrap();
    assert_eq!(
        flow.orig.to_string(),
        "src=10.1.0.2 dst=10.2.0.2 sport=40000 dport=21"
    );
    assert_eq!(
        flow.reply.to_string(),
        "src=10.2.0.2 dst=10.2.0.1 sport=21 dport=41000"
    );
    let status = flow.status.unwrap();
    assert!(status.contains(Status::SRC_NAT | Status::ASSURED | Status::CONFIRMED));
    assert!(!status.contains(Status::DST_NAT));
    assert!((990..=1000).contains(&flow.timeout.unwrap()));
    let ProtoInfo::Tcp(tcp) = flow.protoinfo else {
        panic!("no TCP state");
    };
    assert_eq!(tcp.state, 3);
    assert_eq!(flow.help, None);
    assert!(flow.timestamp.unwrap().start > 1_600_000_000_000_000_000);
}

#[test]
fn a_control_connection_shows_its_helper_and_counters() {
    let flow = find(6, 21);
    let help = flows().iter().find_map(|f| f.help).unwrap();
    assert_eq!(help.name.as_str(), "ftp");
    assert_eq!(flow.counters_orig.unwrap().packets, 5);
    assert_eq!(flow.counters_orig.unwrap().bytes, 274);
    assert_eq!(flow.counters_reply.unwrap().packets, 4);
}

#[test]
fn other_protocols_have_their_own_identifiers() {
    let gre = flows().into_iter().find(|f| f.orig.l4proto == 47).unwrap();
    assert_eq!(gre.orig.l4, L4::Ports { src: 17, dst: 34 });
    let icmp = flows().into_iter().find(|f| f.orig.l4proto == 1).unwrap();
    let id = 4660;
    assert_eq!(icmp.orig.l4, L4::Icmp { id, ty: 8, code: 0 });
    assert_eq!(icmp.reply.l4, L4::Icmp { id, ty: 0, code: 0 });
    assert_eq!(find(17, 53).orig.src.to_string(), "fd01::2");
}

#[test]
fn untranslated_replies_are_the_inverse() {
    for flow in flows() {
        let translated = flow.status.unwrap().intersects(Status::NAT);
        assert_eq!(flow.reply == flow.orig.inverse(), !translated, "{flow:?}");
    }
}

#[test]
fn flows_encode_to_what_they_were_read_from() {
    for flow in flows() {
        let mut buf = Vec::new();
        flow.encode(&mut netfilter::Writer::new(&mut buf));
        assert_eq!(Flow::decode(netfilter::Attrs::new(&buf)), Ok(flow));
    }
}

#[test]
fn an_expectation_is_read_whole() {
    let bytes = load(include_str!("golden/expect.hex"));
    let message = Messages::new(bytes.first().unwrap()).next().unwrap();
    let event = expect::Event::decode(&message).unwrap().unwrap();
    let exp = event.expectation;
    let lo = "127.0.0.1".parse().unwrap();
    assert_eq!(exp.tuple, Tuple::tcp(lo, 0, lo, 30000));
    assert_eq!(exp.mask, Mask::any_sport(lo));
    assert_eq!(exp.master.dport(), 21);
    assert_eq!(exp.timeout, Some(299));
    assert_eq!(exp.helper.unwrap().as_str(), "ftp");
    assert_eq!((exp.class, exp.flags), (0, Flags::empty()));
    assert_eq!((exp.nat, exp.expectfn), (None, None));
}

#[test]
fn helpers_are_read_whole_and_written_back() {
    let helpers: Vec<Helper> = load(include_str!("golden/cthelper.hex"))
        .iter()
        .map(|bytes| {
            let message = Messages::new(bytes).next().unwrap();
            Helper::decode(message.netfilter().unwrap().attrs).unwrap()
        })
        .collect();
    let expected = |family| Helper {
        name: "nft-ftp".parse().unwrap(),
        family,
        l4proto: 6,
        queue: 121,
        policies: vec![Policy {
            name: "nft-ftp".parse().unwrap(),
            max: 3,
            timeout_secs: 300,
        }],
        priv_data_len: 32,
        status: HelperStatus::Disabled,
    };
    assert_eq!(helpers, [expected(10), expected(2)]);
    let mut request = Vec::new();
    netfilter::cthelper::new(&mut request, &expected(2), 1).unwrap();
    let message = Messages::new(&request).next().unwrap();
    let again = Helper::decode(message.netfilter().unwrap().attrs).unwrap();
    assert_eq!(again, expected(2));
}

#[test]
fn queued_packets_carry_their_connection() {
    let datagrams = load(include_str!("golden/queue.hex"));
    let packets: Vec<Packet<'_>> = datagrams
        .iter()
        .map(|bytes| {
            let message = Messages::new(bytes).next().unwrap();
            Packet::decode(&message).unwrap().unwrap()
        })
        .collect();
    let first = packets.first().unwrap();
    assert_eq!(first.ct_info, Some(CtInfo::New));
    assert_eq!((first.queue, first.hw_protocol), (121, 0x0800));
    // POSTROUTING: the packet is forwarded.
    assert_eq!(first.hook, 4);
    assert!(first.indev.is_some() && first.outdev.is_some());
    for (i, packet) in packets.iter().enumerate() {
        assert_eq!(packet.id, u32::try_from(i).unwrap() + 1);
        assert_eq!(packet.payload.len(), total_length(packet.payload));
        let flow = packet.flow().unwrap().unwrap();
        let help = flow.help.unwrap();
        assert_eq!(help.name.as_str(), "nft-ftp");
        assert_eq!(help.info.as_bytes(), [0; 32]);
        assert_eq!(flow.orig.dport(), 21);
        let confirmed = flow.status.unwrap().contains(Status::CONFIRMED);
        assert_eq!(confirmed, i > 0);
    }
    let texts: Vec<_> = packets
        .iter()
        .filter(|p| p.payload.ends_with(b"\r\n"))
        .map(|p| p.ct_info.unwrap())
        .collect();
    assert!(texts.contains(&CtInfo::Established(Dir::Orig)));
    assert!(texts.contains(&CtInfo::Established(Dir::Reply)));
}

/// The IPv4 header's own word on its packet.
fn total_length(packet: &[u8]) -> usize {
    let field = packet.get(2..4).unwrap();
    usize::from(u16::from_be_bytes(field.try_into().unwrap()))
}

#[test]
fn no_prefix_or_bit_flip_of_a_real_message_panics() {
    for text in [
        include_str!("golden/conntrack.hex"),
        include_str!("golden/expect.hex"),
        include_str!("golden/cthelper.hex"),
        include_str!("golden/queue.hex"),
    ] {
        for bytes in load(text) {
            for len in 0..bytes.len() {
                decode_all(&bytes[..len]);
            }
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                decode_all(&flipped);
            }
        }
    }
}

fn decode_all(datagram: &[u8]) {
    for message in Messages::new(datagram) {
        let _ = message.kind();
        let _ = conntrack::Event::decode(&message);
        let _ = expect::Event::decode(&message);
        let _ = Packet::decode(&message).map(|p| p.map(|p| p.flow()));
        let _ = message.netfilter().map(|nf| Helper::decode(nf.attrs));
    }
}
