//! The kernel's side: events, dumps and questions.

pub mod filter;
pub mod hold;
pub mod labels;
pub mod sysctl;
pub mod table;
#[cfg(test)]
mod tests;
pub mod track;
pub mod withdrawn;

use crate::replica::Replica;
use filter::Filter;
use netfilter::conntrack::{self, DumpFilter, group};
use netfilter::message::Kind;
use netfilter::socket::{Received, RecvBuf};
use netfilter::{Dir, Error, Messages, Socket, Status, expect};
use std::time::Duration;
use track::{Ask, Source, Tracker, is_foreign};

/// Events taken per turn of the loop.
const EVENTS_PER_TURN: usize = 4096;
/// Datagrams of a dump taken per turn; each has about 130 connections.
const DUMPS_PER_TURN: usize = 24;

/// Until the kernel may have memory again for what came to nothing; to begin
/// costs a look at every entry.
const REST: Duration = Duration::from_millis(20);

/// What a dump is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dump {
    /// Connections; expectations come next.
    Flows,
    Expectations,
    /// Connections with a helper, whose changes no event tells; their
    /// expectations come next.
    Helpers,
    /// Expectations, of which no event tells that their timeout was set anew.
    HelperExpectations,
}

impl Dump {
    /// True if the cache will equal the tables afterwards.
    const fn is_reconciliation(self) -> bool {
        matches!(self, Self::Flows | Self::Expectations)
    }
}

/// Sockets to the kernel and how far they are.
#[derive(Debug)]
pub struct Kernel {
    /// Events.
    pub events: Socket,
    /// Dumps.
    pub dumps: Socket,
    /// Answers to questions about single connections.
    pub questions: Socket,
    buf: RecvBuf,
    out: Vec<u8>,
    shown: DumpFilter,
    dump: Option<Dump>,
    /// Of the connection table when the dump began.
    size: table::Size,
    seq: u32,
    again: bool,
    /// A reconciliation that came to nothing is not repeated before.
    rests_until: Duration,
    buffer: usize,
    max_buffer: usize,
    /// Dropped events that a dump makes up for, or has.
    drops: u32,
    /// Times that the kernel dropped events.
    pub overruns: u64,
    /// Events that the kernel dropped.
    pub dropped: u64,
    /// Times the kernel had no memory for a question, or for an answer.
    pub shortages: u64,
    /// Messages of the kernel that could not be read.
    pub malformed: u64,
    /// More events wait than one turn of the loop takes.
    pub backlog: bool,
    /// Events of new connections are not asked for.
    deaf: bool,
}

impl Kernel {
    /// Opens the sockets and subscribes to events that `filter` wants, except
    /// to those that the sockets `ours` cause.
    ///
    /// # Errors
    /// [`Error`], `EPERM` without `CAP_NET_ADMIN`.
    pub fn open(
        settings: &crate::config::Kernel,
        filter: &Filter,
        ours: &[u32],
    ) -> Result<Self, Error> {
        let events = Socket::open()?;
        let buffer = events.set_receive_buffer(settings.event_buffer)?;
        events.filter_events(&filter.of_events(ours))?;
        for group in [
            group::NEW,
            group::UPDATE,
            group::DESTROY,
            group::EXP_NEW,
            group::EXP_DESTROY,
        ] {
            events.join(group)?;
        }
        let dumps = Socket::open()?;
        let questions = Socket::open()?;
        questions.set_receive_buffer(4 << 20)?;
        Ok(Self {
            events,
            dumps,
            questions,
            buf: RecvBuf::new(),
            out: Vec::new(),
            shown: filter.of_dumps(),
            dump: None,
            size: table::Size::now(),
            seq: 0,
            again: false,
            rests_until: Duration::ZERO,
            buffer,
            max_buffer: settings.max_event_buffer,
            drops: 0,
            overruns: 0,
            dropped: 0,
            shortages: 0,
            malformed: 0,
            backlog: false,
            deaf: false,
        })
    }

    /// Another filter; reconcile afterwards.
    ///
    /// # Errors
    /// [`Error`] if the kernel refuses it.
    pub fn set_filter(&mut self, filter: &Filter, ours: &[u32]) -> Result<(), Error> {
        self.shown = filter.of_dumps();
        self.events.filter_events(&filter.of_events(ours))
    }

    /// Asks for no events of new connections while many are made: the kernel
    /// takes a third of a commit's time to write them, only to throw them away
    /// because they are ours.
    pub fn ignore_new(&mut self) {
        self.deaf = self.events.leave(group::NEW).is_ok();
    }

    /// Asks for them again, and reads the tables for what was not told.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn heed_new(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.deaf) {
            self.events.join(group::NEW)?;
            self.again = true;
        }
        Ok(())
    }

    /// Bytes of the event socket's buffer.
    pub const fn buffer(&self) -> usize {
        self.buffer
    }

    /// Takes events; how many.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn on_events(
        &mut self,
        tracker: &mut Tracker,
        replica: &mut Replica,
        now: Duration,
    ) -> Result<usize, Error> {
        let mut events = 0;
        self.backlog = true;
        while events < EVENTS_PER_TURN {
            let datagram = match self.events.try_receive(&mut self.buf)? {
                Received::Datagram(d) => d,
                Received::Empty => {
                    self.backlog = false;
                    break;
                }
                Received::Overrun => {
                    self.on_overrun();
                    continue;
                }
            };
            for message in Messages::new(datagram) {
                events += 1;
                let ok = match conntrack::Event::decode(&message) {
                    Ok(Some(event)) => {
                        tracker.on_flow(replica, &event, now);
                        true
                    }
                    Ok(None) => match expect::Event::decode(&message) {
                        Ok(Some(event)) => {
                            tracker.on_expect(replica, &event, now);
                            true
                        }
                        Ok(None) => true,
                        Err(_) => false,
                    },
                    Err(_) => false,
                };
                self.malformed += u64::from(!ok);
            }
        }
        Ok(events)
    }

    /// Events were lost: more room, and a look at the tables.
    fn on_overrun(&mut self) {
        self.overruns += 1;
        self.again = true;
        let wanted = (self.buffer.saturating_mul(2)).min(self.max_buffer);
        if wanted > self.buffer {
            // The kernel doubles what is asked.
            if let Ok(got) = self.events.set_receive_buffer(wanted / 2) {
                self.buffer = got;
            }
        } else if self.overruns > 1 {
            // The counter goes on.
            return;
        }
        tracing::warn!(
            buffer = self.buffer,
            "the kernel dropped events; reconciling with its tables"
        );
    }

    /// Looks for events that were dropped without a word: the kernel tells of
    /// an overrun once, and of the next one only after the queue was empty.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn look_for_drops(&mut self) -> Result<(), Error> {
        let drops = self.events.drops()?;
        let new = drops.wrapping_sub(self.drops);
        if new != 0 {
            self.drops = drops;
            self.dropped += u64::from(new);
            self.again = true;
        }
        Ok(())
    }

    /// Asks for a reconciliation as soon as none runs.
    pub const fn reconcile(&mut self) {
        self.again = true;
    }

    /// True if the cache may differ from the kernel's tables.
    pub fn is_behind(&self) -> bool {
        self.again || self.dump.is_some_and(Dump::is_reconciliation)
    }

    /// Starts what waits: a reconciliation; true if it has begun. Where the
    /// kernel has no memory for it, it waits on.
    ///
    /// # Errors
    /// [`Error`] if the kernel refuses the dump.
    pub fn poll(
        &mut self,
        tracker: &mut Tracker,
        replica: &mut Replica,
        now: Duration,
    ) -> Result<bool, Error> {
        if self.again && self.dump.is_none() && self.rests_until <= now {
            // What was dropped before the dump begins is in the tables.
            self.look_for_drops()?;
            self.again = false;
            tracker.begin_dump(replica, self.shown == DumpFilter::default());
            self.size = table::Size::now();
            if self.start(Dump::Flows)? {
                return Ok(true);
            }
            self.break_off(tracker, replica, now);
        }
        Ok(false)
    }

    /// A reconciliation came to nothing; the next one makes up for it.
    fn break_off(&mut self, tracker: &mut Tracker, replica: &mut Replica, now: Duration) {
        tracker.end_dump(replica, false, now);
        self.again = true;
        self.rests_until = now + REST;
    }

    /// Reads connections with a helper again, unless a dump runs.
    ///
    /// # Errors
    /// As [`Kernel::poll`].
    pub fn look_at_helpers(&mut self) -> Result<(), Error> {
        if self.dump.is_none() {
            self.start(Dump::Helpers)?;
        }
        Ok(())
    }

    /// False if the kernel had no memory for the question.
    fn start(&mut self, dump: Dump) -> Result<bool, Error> {
        self.seq = self.dumps.next_seq();
        self.out.clear();
        let mut filter = self.shown;
        if dump == Dump::Helpers {
            filter.status = Some(filter.status.unwrap_or_default() | Status::HELPER);
        }
        let built = match dump {
            Dump::Expectations | Dump::HelperExpectations => {
                expect::dump(&mut self.out, None, self.seq)
            }
            _ => conntrack::dump(&mut self.out, &filter, self.seq),
        };
        built.map_err(|_| Error::new("building a dump", libc::EMSGSIZE))?;
        let sent = self.dumps.send(&self.out, "dumping the kernel's tables");
        let begun = self.took(sent)?;
        self.dump = begun.then_some(dump);
        Ok(begun)
    }

    /// False if the kernel had no memory for what it was told.
    ///
    /// # Errors
    /// Any other [`Error`].
    pub fn took(&mut self, told: Result<(), Error>) -> Result<bool, Error> {
        match told {
            Err(error) if error.is_shortage() => {
                self.on_shortage(&error);
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Counts that the kernel had no memory for something.
    pub fn on_shortage(&mut self, error: &Error) {
        self.shortages += 1;
        if self.shortages == 1 {
            tracing::warn!(%error, "tried again; more of this is only counted");
        }
    }

    /// Takes what a dump has to say; true if the socket is another one now.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn on_dump(
        &mut self,
        tracker: &mut Tracker,
        replica: &mut Replica,
        now: Duration,
    ) -> Result<bool, Error> {
        for _ in 0..DUMPS_PER_TURN {
            let (mut end, seq) = (None, self.seq);
            let source = match self.dump {
                Some(Dump::Helpers | Dump::HelperExpectations) => Source::Answer,
                _ => Source::Dump,
            };
            match self.dumps.try_receive(&mut self.buf)? {
                Received::Empty => return Ok(false),
                Received::Overrun => {
                    self.on_shortage(&Error::new("reading the kernel's tables", libc::ENOBUFS));
                    end = Some(false);
                }
                Received::Datagram(datagram) => {
                    for m in Messages::new(datagram).filter(|m| m.seq == seq) {
                        match m.kind() {
                            Kind::Done => end = Some(true),
                            Kind::Error(_) => end = Some(false),
                            _ => {
                                let ok = on_entry(tracker, replica, &m, source, now);
                                self.malformed += u64::from(!ok);
                            }
                        }
                    }
                }
            }
            match end {
                Some(true) => self.finish(tracker, replica, true, now)?,
                Some(false) => return self.leave_dump(tracker, replica, now),
                None => {}
            }
        }
        Ok(false)
    }

    /// The kernel does not go on with a dump. Until that has come to its end,
    /// which it may never, there can't be another on the socket (`EBUSY`,
    /// af_netlink.c): so another socket. True if there is one now.
    fn leave_dump(
        &mut self,
        tracker: &mut Tracker,
        replica: &mut Replica,
        now: Duration,
    ) -> Result<bool, Error> {
        let opened = Socket::open().map(|socket| self.dumps = socket);
        self.rests_until = now + REST;
        self.finish(tracker, replica, false, now)?;
        self.took(opened)
    }

    fn finish(
        &mut self,
        tracker: &mut Tracker,
        replica: &mut Replica,
        complete: bool,
        now: Duration,
    ) -> Result<(), Error> {
        let dump = self.dump.take();
        // What else comes of one that broke off is not looked at.
        self.seq = 0;
        let complete = complete && !(dump == Some(Dump::Flows) && self.size.has_changed());
        match dump {
            Some(Dump::Flows) if complete => {
                if !self.start(Dump::Expectations)? {
                    self.break_off(tracker, replica, now);
                }
                Ok(())
            }
            Some(Dump::Flows | Dump::Expectations) => {
                // Events lost meanwhile make what we saw of the tables stale.
                self.look_for_drops()?;
                tracker.end_dump(replica, complete && !self.again, now);
                self.again |= !complete;
                Ok(())
            }
            Some(Dump::Helpers) if complete => self.start(Dump::HelperExpectations).map(drop),
            Some(Dump::Helpers | Dump::HelperExpectations) | None => Ok(()),
        }
    }

    /// Asks about single connections. What can't be asked is read with the
    /// tables.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn ask(&mut self, asks: &[Ask]) -> Result<(), Error> {
        for chunk in asks.chunks(64) {
            self.out.clear();
            for ask in chunk {
                let seq = self.questions.next_seq();
                conntrack::get(&mut self.out, Dir::Orig, &ask.tuple, ask.zone, seq)
                    .map_err(|_| Error::new("asking for a connection", libc::EMSGSIZE))?;
            }
            let sent = self.questions.send(&self.out, "asking for a connection");
            self.again |= !self.took(sent)?;
        }
        Ok(())
    }

    /// Takes answers.
    ///
    /// # Errors
    /// [`Error`] if the socket is broken.
    pub fn on_answers(
        &mut self,
        tracker: &mut Tracker,
        replica: &mut Replica,
        now: Duration,
    ) -> Result<(), Error> {
        loop {
            match self.questions.try_receive(&mut self.buf)? {
                Received::Datagram(datagram) => {
                    for m in Messages::new(datagram) {
                        if matches!(m.kind(), Kind::Netfilter(_)) {
                            on_entry(tracker, replica, &m, Source::Answer, now);
                        }
                    }
                }
                Received::Overrun => {
                    self.on_shortage(&Error::new("asking for a connection", libc::ENOBUFS));
                    self.again = true;
                }
                Received::Empty => return Ok(()),
            }
        }
    }
}

fn on_entry(
    tracker: &mut Tracker,
    replica: &mut Replica,
    message: &netfilter::Message<'_>,
    source: Source,
    now: Duration,
) -> bool {
    match conntrack::Event::decode(message) {
        Ok(Some(event)) => {
            tracker.on_dumped_flow(replica, &event.flow, source, is_foreign, now);
            true
        }
        Ok(None) => match expect::Event::decode(message) {
            Ok(Some(event)) => {
                tracker.on_dumped_expect(replica, &event.expectation, source, is_foreign, now);
                true
            }
            Ok(None) => true,
            Err(_) => false,
        },
        Err(_) => false,
    }
}
