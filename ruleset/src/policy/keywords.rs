//! Words that nft's scanner takes for itself. A name that is one of them
//! makes a ruleset that nft cannot read, not even from its own listing.

/// Whether `word` is one of nft's keywords.
#[must_use]
pub fn is_keyword(word: &str) -> bool {
    KEYWORDS
        .split_ascii_whitespace()
        .any(|keyword| keyword == word)
}

/// nft(8), versions 1.0.6 to 1.1; the test that loads them says which bite.
pub const KEYWORDS: &str = "
    accept add addrs ah all and arp at auto-merge avgpkt bad-hdr-length base bridge burst bypass
    bytes cfi cgroup cgroupv2 chain chains cgroup checksum classid code comment comp constant
    continue counter counters cpi cpu create ct daddr days dccp debug delete describe destroy
    device devices dnat dormant dport drop dscp dst dup dynamic ecn elements element
    emerg eq ether established ether exists exp expectation export exthdr fanout fib file flags
    flow flowtable flowtables flush frag-needed frag-off from fully-random fwd ge get gid goto
    group gt handle hash hbh hdrlength helper helpers hook hoplimit hour htype icmp icmpv6 id ids
    ifname iif iifgroup iifkind iifname iiftype import in include index inet inner insert
    integrity interval ip ip6 ipsec iptables jhash jump json kind l3proto l4proto label last le
    length level limit limits list log lsrr lt mac map maps mark masquerade max maxseg mh missing
    minute mod monitor mss mtu ne netdev nexthdr nh notrack numgen oif oifgroup oifkind
    oifname oiftype op opcode options or original osf out over packets parameter-problem
    performance persistent pkttype plen policy position postrouting prerouting
    prefix priority proto protocol queue quota quotas random range rate raw redefine redirect
    reject rename replace reply reqid reset ret return router-advertisement rr rs rt rtclassid
    rule rules ruleset sack saddr sctp second secmark secmarks seq sequence set sets sha
    size skgid skuid snaplen snat socket spi sport ssrr state stateless status statement sum symhash
    synproxy synproxys table tables tcp tcpopt th time timeout timestamp to tos total tproxy
    transparent ttl tunnel type typeof udp udplite unit until update used vlan vmap vrf vxlan
    wildcard window wscale xml xor xt year zone";
