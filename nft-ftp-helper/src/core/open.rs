//! From an announced port to expectations: policy, blocks, reuse, and other
//! ports under NAT if the announced one is taken.

use super::conn::Dir;
use super::event::Reason;
use super::expect::{Block, Expect, ExpectNat, Kind, OpenError, build};
use super::policy::ActiveOpens;
use super::state::{Active, Last, Origin};
use super::tracker::{Effects, Run};
use std::net::IpAddr;

impl<E: Effects> Run<'_, E> {
    /// An endpoint was announced: `port` of the sender, or of `dest` if that is
    /// a third party. Returns the port the receiver shall read.
    pub fn announce(&mut self, kind: Kind, port: u16, dest: Option<IpAddr>) -> Result<u16, Reason> {
        if self.st.origin == Origin::Fresh && !self.st.login {
            return Err(Reason::NoLogin);
        }
        self.permit(port)?;
        let active = kind.sender() == Dir::Orig;
        if active
            && dest.is_none()
            && !self.translated
            && self.policy.active_opens == ActiveOpens::OnReply
        {
            self.st.last = Last {
                live: self.reuses(kind, port),
                sender: Some(Dir::Orig),
                inner: port,
                outer: port,
            };
            self.st.active = Active::Waiting;
            return Ok(port);
        }
        let outer = self.open(kind, port, dest)?;
        if active {
            self.st.active = Active::Opened;
        }
        Ok(outer)
    }

    fn permit(&self, port: u16) -> Result<(), Reason> {
        match port < self.policy.min_port.max(1) {
            true => Err(Reason::PrivilegedPort),
            false => Ok(()),
        }
    }

    /// The server agreed to the port that was waiting for it.
    pub fn open_waiting(&mut self) {
        let port = self.st.last.inner;
        let addr = self.conn.own_addr(Dir::Orig);
        let kind = if addr.is_ipv4() {
            Kind::Port
        } else {
            Kind::Eprt
        };
        if let Err(reason) = self.open(kind, port, None) {
            self.refuse(reason, Some(addr), port);
        }
    }

    /// Whether the port lies in the block this connection opened last.
    fn reuses(&self, kind: Kind, port: u16) -> bool {
        let last = self.st.last;
        last.live
            && last.sender == Some(kind.sender())
            && Block::around(last.inner, self.policy) == Block::around(port, self.policy)
    }

    fn open(&mut self, kind: Kind, port: u16, dest: Option<IpAddr>) -> Result<u16, Reason> {
        self.permit(port)?;
        let block = Block::around(port, self.policy);
        let renew = dest.is_none() && self.reuses(kind, port);
        let translate = self.translated && dest.is_none();
        let mut expect = Expect {
            count: block.count,
            renew,
            nat: translate.then_some(ExpectNat {
                dir: !kind.sender(),
                saved_port: block.first,
            }),
            ..build(self.policy, self.conn, kind, dest)
        };
        let first = if renew {
            self.last_first()
        } else {
            block.first
        };
        let tries = if translate {
            self.policy.nat_tries.max(1)
        } else {
            1
        };
        self.try_blocks(
            &mut expect,
            Block { first, ..block },
            port - block.first,
            tries,
        )?;
        let outer = expect.port;
        self.record(&expect, port, outer, dest, block.clipped);
        Ok(outer)
    }

    fn try_blocks(
        &mut self,
        expect: &mut Expect,
        at: Block,
        offset: u16,
        tries: u16,
    ) -> Result<(), Reason> {
        for attempt in 0..tries {
            // Private data of another policy may point anywhere.
            let first = at.moved(attempt, self.policy);
            let Some(first) = first.filter(|f| self.fits(*f, at.count)) else {
                continue;
            };
            expect.first = first;
            expect.port = first + offset;
            match self.fx.open(expect) {
                Ok(()) => return Ok(()),
                Err(OpenError::Taken) => expect.renew = false,
                Err(error) => return Err(error.into()),
            }
        }
        Err(OpenError::Taken.into())
    }

    fn fits(&self, first: u16, count: u16) -> bool {
        self.permit(first).is_ok() && first.checked_add(count.saturating_sub(1)).is_some()
    }

    fn record(
        &mut self,
        made: &Expect,
        port: u16,
        outer: u16,
        dest: Option<IpAddr>,
        clipped: bool,
    ) {
        let reason = if made.renew {
            Reason::Reused
        } else {
            Reason::Opened
        };
        self.event(reason, Some(made.dest), outer);
        if outer != port {
            self.event(Reason::Renumbered, Some(made.dest), outer);
        }
        if clipped {
            self.event(Reason::BlockClipped, Some(made.dest), port);
        }
        if dest.is_some() {
            return;
        }
        if self.st.last.live && !made.renew {
            self.withdraw_last();
        }
        self.st.last = Last {
            live: true,
            sender: Some(made.kind.sender()),
            inner: port,
            outer,
        };
    }

    /// First outer port of the last block.
    fn last_first(&self) -> u16 {
        let last = self.st.last;
        let inner = Block::around(last.inner, self.policy).first;
        last.outer.saturating_sub(last.inner - inner)
    }

    /// The last expectation is obsolete, unless it is to stay until its timeout.
    pub fn withdraw_last(&mut self) {
        let last = self.st.last;
        let Some(sender) = last.sender.filter(|_| last.live && !self.policy.permanent) else {
            return;
        };
        let kind = match sender {
            Dir::Orig => Kind::Port,
            Dir::Reply => Kind::Pasv,
        };
        let block = Block::around(last.inner, self.policy);
        let expect = Expect {
            first: self.last_first(),
            count: block.count,
            nat: self.translated.then_some(ExpectNat {
                dir: !sender,
                saved_port: block.first,
            }),
            ..build(self.policy, self.conn, kind, None)
        };
        self.fx.withdraw(&expect);
        self.st.last.live = false;
    }
}
