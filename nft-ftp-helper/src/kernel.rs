//! Expectations and sequence adjustments in the kernel, by ctnetlink.
//!
//! They are made before the verdict, each acknowledged: an expectation that
//! clashes changes what the packet's text must say, and the verdict's own
//! `NFQA_EXP` would hide the clash (nfnetlink_queue.c, `nfqnl_recv_verdict`
//! ignores the result).

use crate::census::Census;
use crate::core::{Expect, OpenError};
use crate::ledger::Key;
use crate::stats::{Figure, Stats};
use crate::support::Failure;
use netfilter::expect::{self, ExpectNat, Expectation, Flags, Mask};
use netfilter::message::TooLong;
use netfilter::tuple::{IPPROTO_TCP, exact, unspecified};
use netfilter::{Error, Flow, Name, Socket, Tuple, conntrack, inject};
use std::sync::Arc;
use std::time::Duration;

/// What a [`crate::handler::Handler`] needs besides its queue: the kernel, or a
/// test's idea of it.
pub trait Tables {
    /// Makes every expectation of a block or none; with [`Expect::renew`]
    /// renews what this master made before.
    ///
    /// # Errors
    /// Why there is none.
    fn open(&mut self, master: &Flow, wanted: &Expect) -> Result<(), OpenError>;

    /// Removes the expectations of a block, as far as they still exist and
    /// are this master's: another connection may own the same tuple by now.
    fn remove(&mut self, master: &Flow, unwanted: &Expect);

    /// Removes all of this master's expectations that are not permanent.
    fn remove_all(&mut self, master: &Flow);

    /// Sets the sequence adjustments that `flow` carries.
    ///
    /// # Errors
    /// The connection is gone or has no room for them.
    fn adjust(&mut self, flow: &Flow) -> Result<(), Failure>;

    /// Takes the helper from a connection that has a master.
    ///
    /// # Errors
    /// The connection or its master is gone.
    fn release(&mut self, data: &Flow) -> Result<(), Failure>;

    /// Changes the seconds a renewed expectation gets.
    fn set_timeout(&mut self, secs: u32);
}

/// The kernel's tables, for one queue thread.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    stats: Arc<Stats>,
    census: Arc<Census>,
    timeout_secs: u32,
    follow_master: Name,
    /// Kept for its memory.
    found: Vec<(Tuple, Option<u32>)>,
}

impl Tables for Kernel {
    fn open(&mut self, master: &Flow, wanted: &Expect) -> Result<(), OpenError> {
        let template = self.template(master, wanted);
        let keys = keys(template, wanted);
        let new = self.census.admit(keys.clone(), self.timeout())?;
        // A block that is not the last one of its master may live, too.
        let opened = if wanted.renew || new.count_ones() < wanted.count.into() {
            self.renew(master, wanted)
        } else {
            self.create(master, wanted)
        };
        if opened.is_err() {
            self.census.withdraw(keys, new);
        }
        opened
    }

    fn remove(&mut self, master: &Flow, unwanted: &Expect) {
        self.remove_where(master, |e| {
            e.tuple.dst == unwanted.dest
                && unwanted.each().any(|single| single.port == e.tuple.dport())
        });
    }

    fn remove_all(&mut self, master: &Flow) {
        self.remove_where(master, |e| !e.flags.contains(Flags::PERMANENT));
    }

    fn adjust(&mut self, flow: &Flow) -> Result<(), Failure> {
        let done = self
            .socket
            .request("adjusting sequence numbers", |buf, seq| {
                inject::seq_adj(buf, flow, true, seq)
            });
        done.map_err(|error| {
            self.stats.count(Figure::KernelErrors);
            error.into()
        })
    }

    /// The kernel changes no helper of a connection that has a master
    /// (nf_conntrack_netlink.c, `ctnetlink_change_helper`: `EBUSY`). So the
    /// connection is deleted and made again, without. What it translates, its
    /// state, mark and labels stay; its counters begin anew.
    fn release(&mut self, data: &Flow) -> Result<(), Failure> {
        const OPERATION: &str = "taking a data connection off the queue";
        let options = inject::Options {
            liberal: false,
            help: false,
            master: true,
            ack: true,
        };
        let mut failed = None;
        self.socket.request_all(
            OPERATION,
            2,
            |buf, i, seq| match i {
                0 => conntrack::delete(buf, &data.orig, data.zone, data.id, seq),
                _ => inject::create(buf, data, options, seq),
            },
            |_, result| failed = failed.or(result.err().map(|failure| failure.errno)),
        )?;
        failed.map_or(Ok(()), |errno| Err(Error::new(OPERATION, errno).into()))
    }

    fn set_timeout(&mut self, secs: u32) {
        self.timeout_secs = secs;
    }
}

impl Kernel {
    /// Opens a socket of its own. `timeout_secs` is what a renewed
    /// expectation gets.
    ///
    /// # Errors
    /// No nfnetlink.
    pub fn new(stats: Arc<Stats>, census: Arc<Census>, timeout_secs: u32) -> Result<Self, Failure> {
        Ok(Self {
            socket: Socket::open()?,
            stats,
            census,
            timeout_secs,
            found: Vec::new(),
            follow_master: Name::new(b"nat-follow-master")
                .map_err(|e| Failure::Config(e.to_string()))?,
        })
    }

    fn create(&mut self, master: &Flow, wanted: &Expect) -> Result<(), OpenError> {
        let mut wrong = [0; crate::core::MAX_BLOCK as usize];
        let made = self.each(master, wanted, expect::create, &mut wrong)?;
        self.stats.add(Figure::Expectations, made);
        if wrong.iter().all(|errno| *errno == 0) {
            return Ok(());
        }
        self.undo(master, wanted, &wrong);
        let error = worst(&wrong);
        if error != OpenError::Taken {
            self.stats.count(Figure::KernelErrors);
            tracing::debug!(master = %master.orig, port = wanted.first, ?error, ?wrong);
        }
        Err(error)
    }

    /// Renews a block that this master made before; what has gone meanwhile
    /// is made again.
    fn renew(&mut self, master: &Flow, wanted: &Expect) -> Result<(), OpenError> {
        let mut wrong = [0; crate::core::MAX_BLOCK as usize];
        let renewed = self.each(master, wanted, expect::update, &mut wrong)?;
        self.stats.add(Figure::Renewed, renewed);
        for (single, errno) in wanted.each().zip(wrong) {
            if errno != 0 {
                let one = Expect {
                    first: single.port,
                    count: 1,
                    nat: wanted.nat.map(|nat| crate::core::ExpectNat {
                        saved_port: single.saved_port.unwrap_or(nat.saved_port),
                        ..nat
                    }),
                    ..*wanted
                };
                self.create(master, &one)?;
            }
        }
        Ok(())
    }

    fn remove_where(&mut self, master: &Flow, unwanted: impl Fn(&Expectation) -> bool) {
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        let dumped = self.socket.exchange(
            "listing expectations of a connection",
            |buf, seq| expect::dump(buf, Some((&master.orig, master.zone)), seq),
            |message| {
                if let Ok(Some(event)) = expect::Event::decode(message) {
                    if unwanted(&event.expectation) {
                        found.push((event.expectation.tuple, event.expectation.id));
                    }
                }
            },
        );
        if let Err(error) = dumped {
            // The connection has gone, and its expectations with it.
            tracing::debug!(%error);
        }
        for (tuple, id) in &found {
            let done = self.socket.request("removing expectation", |buf, seq| {
                expect::delete(buf, tuple, master.zone, *id, seq)
            });
            self.stats.add(Figure::Removed, u64::from(done.is_ok()));
        }
        self.found = found;
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_secs.into())
    }

    /// One message per port in one datagram; errnos by position. Returns how
    /// many succeeded.
    fn each(
        &mut self,
        master: &Flow,
        wanted: &Expect,
        message: impl Fn(&mut Vec<u8>, &Expectation, u32) -> Result<(), TooLong>,
        wrong: &mut [i32],
    ) -> Result<u64, OpenError> {
        let template = self.template(master, wanted);
        let mut made = 0;
        let done = self.socket.request_all(
            "adding expectations",
            wanted.count.into(),
            |buf, i, seq| message(buf, &nth(template, wanted, i), seq),
            |i, result| match (result, usize::try_from(i).map(|i| wrong.get_mut(i))) {
                (Err(failure), Ok(Some(slot))) => *slot = failure.errno,
                (Ok(()), _) => made += 1,
                (Err(_), _) => {}
            },
        );
        done.map_err(|error| {
            tracing::error!(%error);
            self.stats.count(Figure::KernelErrors);
            OpenError::Failed
        })?;
        Ok(made)
    }

    /// Removes those of a block whose errno is 0.
    fn undo(&mut self, master: &Flow, wanted: &Expect, wrong: &[i32]) {
        let template = self.template(master, wanted);
        let zone = master.zone;
        let mut removed = 0;
        for (i, errno) in (0..u32::from(wanted.count)).zip(wrong) {
            if *errno == 0 {
                let tuple = nth(template, wanted, i).tuple;
                let done = self.socket.request("removing expectation", |buf, seq| {
                    expect::delete(buf, &tuple, zone, None, seq)
                });
                removed += u64::from(done.is_ok());
            }
        }
        self.stats.add(Figure::Removed, removed);
    }

    fn template(&self, master: &Flow, wanted: &Expect) -> Expectation {
        let any = unspecified(wanted.dest);
        let source = wanted.source.unwrap_or(any);
        let tuple = Tuple::tcp(
            source,
            wanted.source_port.unwrap_or(0),
            wanted.dest,
            wanted.first,
        );
        let mask = Mask {
            src: wanted.source.map_or(any, exact),
            dst: exact(wanted.dest),
            sport: wanted.source_port.map_or(0, |_| 0xffff),
            dport: 0xffff,
        };
        let mut exp = Expectation::new(master.orig, tuple, mask);
        exp.zone = master.zone;
        exp.timeout = Some(self.timeout_secs);
        if wanted.permanent {
            exp.flags = Flags::PERMANENT;
        }
        if let Some(nat) = wanted.nat {
            exp.expectfn = Some(self.follow_master);
            exp.nat = Some(ExpectNat {
                dir: nat.dir,
                addr: any,
                port: nat.saved_port,
                l4proto: IPPROTO_TCP,
            });
        }
        exp
    }
}

/// The `i`-th expectation of the block that `first` begins.
fn nth(first: Expectation, wanted: &Expect, i: u32) -> Expectation {
    let mut exp = first;
    let single = usize::try_from(i).ok().and_then(|i| wanted.each().nth(i));
    if let Some(single) = single {
        exp.tuple = Tuple::tcp(
            first.tuple.src,
            first.tuple.sport(),
            first.tuple.dst,
            single.port,
        );
        if let (Some(nat), Some(port)) = (exp.nat.as_mut(), single.saved_port) {
            nat.port = port;
        }
    }
    exp
}

/// What the census calls the expectations of the block that `first` begins.
fn keys(first: Expectation, wanted: &Expect) -> impl Iterator<Item = Key> + Clone + use<'_> {
    (0..u32::from(wanted.count)).map(move |i| Key::of(&nth(first, wanted, i)))
}

/// The error that decides: ports that are taken can be tried elsewhere.
fn worst(wrong: &[i32]) -> OpenError {
    let taken = |errno: i32| [0, libc::EEXIST, libc::EBUSY, libc::EALREADY].contains(&errno);
    match wrong.iter().find(|errno| !taken(**errno)) {
        None => OpenError::Taken,
        Some(&libc::EMFILE) => OpenError::TableFull,
        Some(_) => OpenError::Failed,
    }
}
