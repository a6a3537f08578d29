//! A commit that somebody waits for.

use super::{BATCHES_PER_TURN, Daemon};
use crate::commit::verify::{self, Marks, Verified, Verifier};
use crate::commit::{Applies, Committed, Report};
use crate::config::Apply;
use crate::kernel::track::Tracker;
use crate::record;
use crate::replica::message::Role;
use crate::replica::{PeerId, Replica, remaining};
use anyhow::Result;
use daemon::ClientId;
use serde_json::json;
use std::time::Duration;

/// A commit under way.
#[derive(Debug, Default)]
pub struct Job {
    /// Who waits for the report.
    pub waiting: Vec<ClientId>,
    /// This node becomes primary with it: what is committed becomes its own.
    pub takeover: bool,
    /// Look afterwards whether it is in the kernel.
    pub verify: bool,
    told: Duration,
    marks: Marks,
}

/// Makes committed entries our own, if this is a takeover.
struct Owner<'a> {
    tracker: &'a mut Tracker,
    takeover: bool,
    now: Duration,
}

impl Committed for Owner<'_> {
    fn committed(&mut self, replica: &mut Replica, peer: PeerId, slot: u32) {
        if !self.takeover {
            return;
        }
        let copy = replica.peers.get(peer).map(|p| &p.inbound.store);
        let Some((bytes, timeout)) = copy.and_then(|c| {
            let s = c.slot(slot)?;
            Some((c.bytes(s).to_vec(), remaining(s, self.now)))
        }) else {
            return;
        };
        self.tracker.take_over(replica, &bytes, timeout, self.now);
    }
}

impl Daemon {
    /// Starts a commit, or joins the one that runs.
    pub(super) fn commit(&mut self, client: ClientId, takeover: bool, verify: bool) {
        let now = self.now();
        let running = self.job.is_some();
        let job = self.job.get_or_insert_default();
        job.waiting.push(client);
        job.verify |= verify;
        if takeover && !job.takeover {
            // What a plain commit has put in so far is found by the
            // reconciliation at the end.
            job.takeover = true;
            self.hold.put(now);
            // What is taken over is offered to peers afterwards.
            self.replica.hold(true);
        }
        if !running {
            job.marks = verify::marks(&self.replica);
            self.commit.applies = match self.config.apply {
                Apply::Commit => Applies::OnDemand,
                Apply::Immediate
                    if takeover && !self.kernel.is_behind() && !self.commit.is_in_doubt() =>
                {
                    Applies::Surely
                }
                Apply::Immediate => Applies::AtOnce,
            };
            self.commit.start(&self.replica, now);
            self.mind_own_events();
            if self.commit.applies == Applies::OnDemand {
                self.kernel.ignore_new();
            }
        }
    }

    /// Events that commits cause are not news.
    fn mind_own_events(&mut self) {
        let (filter, ours) = (&self.tracker.filter, self.commit.portids());
        if let Err(error) = self.kernel.set_filter(filter, &ours) {
            tracing::warn!(%error, "a commit's own events can't be left out");
        }
    }

    pub(super) fn work_commit(&mut self, now: Duration) -> Result<()> {
        let mut owner = Owner {
            tracker: &mut self.tracker,
            takeover: self.job.as_ref().is_some_and(|j| j.takeover),
            now,
        };
        let mut report = None;
        for _ in 0..BATCHES_PER_TURN {
            if report.is_some() || !self.commit.is_busy() {
                break;
            }
            let moment = self.started.elapsed();
            report = self.commit.step(&mut self.replica, moment, &mut owner)?;
        }
        for error in self.commit.shortages.drain(..) {
            self.kernel.on_shortage(&error);
        }
        if self.commit.take_doubt() {
            self.kernel.reconcile();
        }
        match report {
            Some(report) => self.finish(report, now),
            None => {
                self.tell_progress(now);
                Ok(())
            }
        }
    }

    fn tell_progress(&mut self, now: Duration) {
        let Some(job) = self.job.as_mut().filter(|j| now >= j.told) else {
            return;
        };
        job.told = now + Duration::from_millis(100);
        let progress = json!({"progress": {"done": self.commit.done, "total": self.commit.total}});
        for client in &job.waiting {
            self.server.send(*client, &progress);
        }
    }

    fn finish(&mut self, mut report: Report, now: Duration) -> Result<()> {
        let Some(job) = self.job.take() else {
            return Ok(());
        };
        self.mind_own_events();
        self.kernel.heed_new()?;
        report.helper_missing_because = report
            .without_helper
            .keys()
            .map(|name| (name.clone(), crate::preflight::why_missing(name)))
            .collect();
        tracing::info!(
            flows = report.flows,
            expectations = report.expectations,
            failed = ?report.failed,
            without_helper = ?report.without_helper,
            helper_lost = ?report.helper_lost,
            seconds = report.seconds,
            "committed"
        );
        let mut answer = serde_json::to_value(&report)?;
        let mut clean = report.is_clean();
        let mut insert = |name: &str, value| {
            if let Some(object) = answer.as_object_mut() {
                object.insert(name.into(), value);
            }
        };
        if job.verify {
            let took = Duration::from_secs_f64(report.seconds) + self.now().saturating_sub(now);
            match self.verify(job.marks, took) {
                Ok(verified) => {
                    clean &= verified.is_clean();
                    insert("verified", serde_json::to_value(verified)?);
                }
                Err(e) => {
                    clean = false;
                    insert("verified", json!({"error": e.to_string()}));
                }
            }
        }
        if job.takeover {
            self.replica.hold(!self.ready);
            self.become_primary(now);
            insert("role", Role::Primary.name().into());
            insert("epoch", self.replica.role().1.into());
        }
        for client in job.waiting {
            self.server
                .send(client, &json!({"ok": clean, "result": answer}));
            self.server.finish(client);
        }
        Ok(())
    }

    fn verify(&mut self, marks: Marks, took: Duration) -> Result<Verified, netfilter::Error> {
        const TURNS: usize = 256;
        // This turn of the loop may have taken a while.
        let now = self.now();
        let mut verifier = Verifier::new(marks, now, took);
        verifier.dump(&mut self.replica)?;
        for _ in 0..TURNS {
            let (tracker, replica) = (&mut self.tracker, &mut self.replica);
            if self.kernel.on_events(tracker, replica, now)? == 0 {
                break;
            }
        }
        Ok(verifier.finish(&self.replica))
    }
}

/// Reads a record, for those who only want to look.
pub(super) fn decoded(bytes: &[u8]) -> Option<record::Record> {
    record::decode(bytes).ok()
}
