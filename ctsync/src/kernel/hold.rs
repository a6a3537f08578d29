//! The ruleset's hold set: while it has the element `tcp`, packets from the
//! middle of unknown connections are dropped, so that their senders repeat
//! them until the connections have been committed.
//!
//! The element has a timeout in the kernel: whatever becomes of this daemon,
//! nothing is held for longer. By netlink, because a confined daemon can't
//! start nft(8).

use crate::config::Hold;
use netfilter::message::{NLM_F_ACK, NLM_F_CREATE, TooLong, append};
use netfilter::{Error, Header, Socket, Writer, tuple};
use std::time::Duration;

const NFNL_MSG_BATCH_BEGIN: u8 = 0x10;
const NFNL_MSG_BATCH_END: u8 = 0x11;
const SUBSYS_NFTABLES: u8 = 10;
const NFPROTO_INET: u8 = 1;
const NFT_MSG_NEWSETELEM: u8 = 12;
const NFT_MSG_DELSETELEM: u8 = 14;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
const NFTA_DATA_VALUE: u16 = 1;

/// A set of a loaded ruleset, if there is one to deal with.
#[derive(Debug)]
pub struct HoldSet {
    set: Option<(Hold, Socket)>,
    renew_at: Duration,
    failed: bool,
}

impl HoldSet {
    /// Opens a socket, if a set is configured.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(hold: Option<&Hold>) -> Result<Self, Error> {
        let open = |h: &Hold| Ok((h.clone(), Socket::open()?));
        Ok(Self {
            set: hold.map(open).transpose()?,
            renew_at: Duration::ZERO,
            failed: false,
        })
    }

    /// Holds back from now on, for the configured time.
    pub fn put(&mut self, now: Duration) {
        let Some((hold, socket)) = &mut self.set else {
            return;
        };
        self.renew_at = now + hold.limit / 3;
        let result = match replace(hold, socket) {
            // It is not in it: adding tells if there is no such set.
            Err(e) if e.errno == libc::ENOENT => add(hold, socket),
            other => other,
        };
        self.tell(result);
    }

    /// [`HoldSet::put`], if it has not been done lately.
    pub fn renew(&mut self, now: Duration) {
        if self.renew_at <= now {
            self.put(now);
        }
    }

    /// Lets everything through.
    pub fn release(&mut self) {
        let Some((hold, socket)) = &mut self.set else {
            return;
        };
        self.renew_at = Duration::ZERO;
        let result = delete(hold, socket);
        self.tell(result);
    }

    /// A failure keeps nobody from taking over; it is told once.
    fn tell(&mut self, result: Result<(), Error>) {
        if let (Err(error), false) = (&result, self.failed) {
            tracing::warn!(%error, "the hold set can't be changed");
        }
        self.failed = result.is_err();
    }
}

/// Adding what is there would not prolong it. One transaction: packets come
/// in between.
fn replace(hold: &Hold, socket: &mut Socket) -> Result<(), Error> {
    socket.exchange(
        "renewing the element of the hold set",
        |buf, seq| batch(buf, hold, &[NFT_MSG_DELSETELEM, NFT_MSG_NEWSETELEM], seq),
        |_| {},
    )
}

fn add(hold: &Hold, socket: &mut Socket) -> Result<(), Error> {
    socket.exchange(
        "adding to the hold set",
        |buf, seq| batch(buf, hold, &[NFT_MSG_NEWSETELEM], seq),
        |_| {},
    )
}

fn delete(hold: &Hold, socket: &mut Socket) -> Result<(), Error> {
    let result = socket.exchange(
        "deleting from the hold set",
        |buf, seq| batch(buf, hold, &[NFT_MSG_DELSETELEM], seq),
        |_| {},
    );
    match result {
        // Not in it, or no such set: adding tells that.
        Err(e) if e.errno == libc::ENOENT => Ok(()),
        other => other,
    }
}

/// Messages in a transaction of their own. Only the last is acknowledged;
/// what fails is told in any case.
fn batch(buf: &mut Vec<u8>, hold: &Hold, msgs: &[u8], seq: u32) -> Result<(), TooLong> {
    let edge = |msg| Header {
        msg,
        res_id: u16::from(SUBSYS_NFTABLES),
        seq,
        ..Header::default()
    };
    append(buf, edge(NFNL_MSG_BATCH_BEGIN), |_| {})?;
    for (left, msg) in (0..msgs.len()).rev().zip(msgs) {
        let new = *msg == NFT_MSG_NEWSETELEM;
        let acknowledged = if left == 0 { NLM_F_ACK } else { 0 };
        let created = if new { NLM_F_CREATE } else { 0 };
        let header = Header {
            subsys: SUBSYS_NFTABLES,
            msg: *msg,
            flags: acknowledged | created,
            family: NFPROTO_INET,
            res_id: 0,
            seq,
        };
        append(buf, header, |w| element(hold, new, w))?;
    }
    append(buf, edge(NFNL_MSG_BATCH_END), |_| {})
}

fn element(hold: &Hold, timed: bool, w: &mut Writer<'_>) {
    w.str(NFTA_SET_ELEM_LIST_TABLE, hold.table.as_bytes());
    w.str(NFTA_SET_ELEM_LIST_SET, hold.set.as_bytes());
    w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
        w.nest(NFTA_LIST_ELEM, |w| {
            w.nest(NFTA_SET_ELEM_KEY, |w| {
                w.put(NFTA_DATA_VALUE, &[tuple::IPPROTO_TCP]);
            });
            if timed {
                let millis = u64::try_from(hold.limit.as_millis()).unwrap_or(u64::MAX);
                w.be64(NFTA_SET_ELEM_TIMEOUT, millis);
            }
        });
    });
}
