//! Room for labels: the kernel gives a connection room for labels only while
//! a rule sets some (`nf_connlabels_get`, `nft_ct_set_init`), and silently
//! drops those of a commit otherwise.
//!
//! So while labelled connections are written there is such a rule, in a chain
//! that nothing reaches, in a table that this socket owns: it goes with the
//! socket, whatever becomes of this program.

use netfilter::message::{NLM_F_ACK, NLM_F_CREATE, TooLong, append};
use netfilter::{Error, Header, Socket, Writer};

const NFNL_MSG_BATCH_BEGIN: u8 = 0x10;
const NFNL_MSG_BATCH_END: u8 = 0x11;
const SUBSYS_NFTABLES: u8 = 10;
const NFPROTO_INET: u8 = 1;
const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_NEWRULE: u8 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFT_CT_LABELS: u32 = 13;
const NFT_REG_1: u32 = 1;
const CHAIN: &[u8] = b"unreached";

/// While it lives, connections have room for labels.
#[derive(Debug)]
pub struct Room {
    _owner: Socket,
}

impl Room {
    /// Makes room.
    ///
    /// # Errors
    /// [`Error`]; kernels before 5.12 know no owned tables.
    pub fn new() -> Result<Self, Error> {
        let mut socket = Socket::open()?;
        // Its own name, for there may be more than one of us.
        let table = format!("ctsync_labels_{}", socket.portid());
        socket.exchange(
            "making room for labels",
            |buf, seq| batch(buf, table.as_bytes(), seq),
            |_| {},
        )?;
        Ok(Self { _owner: socket })
    }
}

fn batch(buf: &mut Vec<u8>, table: &[u8], seq: u32) -> Result<(), TooLong> {
    let edge = |msg| Header {
        msg,
        res_id: u16::from(SUBSYS_NFTABLES),
        seq,
        ..Header::default()
    };
    // Only the last message is acknowledged; errors come from any.
    let header = |msg, flags| Header {
        subsys: SUBSYS_NFTABLES,
        msg,
        flags: NLM_F_CREATE | flags,
        family: NFPROTO_INET,
        res_id: 0,
        seq,
    };
    append(buf, edge(NFNL_MSG_BATCH_BEGIN), |_| {})?;
    append(buf, header(NFT_MSG_NEWTABLE, 0), |w| {
        w.str(NFTA_TABLE_NAME, table);
        w.be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    })?;
    append(buf, header(NFT_MSG_NEWCHAIN, 0), |w| {
        w.str(NFTA_CHAIN_TABLE, table);
        w.str(NFTA_CHAIN_NAME, CHAIN);
    })?;
    append(buf, header(NFT_MSG_NEWRULE, NLM_F_ACK), |w| {
        w.str(NFTA_RULE_TABLE, table);
        w.str(NFTA_RULE_CHAIN, CHAIN);
        w.nest(NFTA_RULE_EXPRESSIONS, |w| {
            expression(w, b"immediate", |w| {
                w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
                w.nest(NFTA_IMMEDIATE_DATA, |w| w.put(NFTA_DATA_VALUE, &[0; 16]));
            });
            expression(w, b"ct", |w| {
                w.be32(NFTA_CT_KEY, NFT_CT_LABELS);
                w.be32(NFTA_CT_SREG, NFT_REG_1);
            });
        });
    })?;
    append(buf, edge(NFNL_MSG_BATCH_END), |_| {})
}

fn expression(w: &mut Writer<'_>, name: &[u8], data: impl FnOnce(&mut Writer<'_>)) {
    w.nest(NFTA_LIST_ELEM, |w| {
        w.str(NFTA_EXPR_NAME, name);
        w.nest(NFTA_EXPR_DATA, data);
    });
}
