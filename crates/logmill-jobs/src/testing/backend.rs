//! A backend around the engine that tells a probe of each call that stores something, and ends when
//! the probe says that the process crashes.

use std::sync::Arc;
use std::time::Instant;

use super::probe::Probe;
use super::report::{How, Ran};
use crate::JobId;
use crate::backend::{
    Backend, BackendError, Cancelled, Changes, Choice, Claim, Consumer, DeadJob, Held, KeyChange,
    KeyValue, NewJob, Next, Queue, QueueStats, Seen, Served, Settlement, forward_backend,
    forward_claim,
};

pub(super) struct Probed<B> {
    pub(super) inner: Arc<B>,
    pub(super) probe: Arc<Probe>,
}

/// What a call stores, in words.
fn said(changes: &Changes<'_>) -> String {
    let mut said: Vec<_> = changes.jobs.iter().map(|(_, job)| job_said(job)).collect();
    said.extend(changes.keys.iter().filter_map(|change| match change {
        KeyChange::Put(key, ..) | KeyChange::Insert(key, ..) => Some(format!("{}", Key(key))),
        KeyChange::Remove(key) => Some(format!("the removal of {}", Key(key))),
        KeyChange::Expect(..) => None,
    }));
    match said.is_empty() {
        true => "nothing".to_owned(),
        false => said.join(", "),
    }
}

fn job_said(job: &NewJob<'_>) -> String {
    format!("a job {:?}", job.kind)
}

struct Key<'a>(&'a [u8]);

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the key {}", self.0.escape_ascii())
    }
}

impl<B: Backend> Backend for Probed<B> {
    forward_backend!(inner: capabilities on_end wake_consumers extend damage close);

    fn queue(&self, name: &str) -> Result<Box<dyn Queue>, BackendError> {
        self.probe.check()?;
        Ok(Box::new(ProbedQueue {
            name: name.to_owned(),
            inner: self.inner.queue(name)?,
            probe: Arc::clone(&self.probe),
        }))
    }

    fn queue_names(&self) -> Result<Vec<String>, BackendError> {
        self.probe.check()?;
        self.inner.queue_names()
    }

    fn consumer(
        &self,
        queues: &[Served<'_>],
        choice: Choice,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        self.probe.check()?;
        Ok(Box::new(ProbedConsumer {
            inner: self.inner.consumer(queues, choice)?,
            probe: Arc::clone(&self.probe),
            postponed: None,
        }))
    }

    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, BackendError> {
        self.probe.check()?;
        self.inner.get(key)
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, KeyValue)>, BackendError> {
        self.probe.check()?;
        self.inner.keys(prefix)
    }

    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let what = || format!("which stores {}", said(changes));
        self.probe.store(what, || self.inner.commit(changes))
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.probe.check()?;
        self.inner.flush()
    }
}

struct ProbedQueue {
    name: String,
    inner: Box<dyn Queue>,
    probe: Arc<Probe>,
}

impl Queue for ProbedQueue {
    fn publish(&self, job: &NewJob<'_>) -> Result<u64, BackendError> {
        let what = || format!("which enqueues {}", job_said(job));
        self.probe.store(what, || self.inner.publish(job))
    }

    fn publish_all(&self, jobs: &[NewJob<'_>]) -> Result<Vec<u64>, BackendError> {
        let what = || {
            let jobs: Vec<_> = jobs.iter().map(job_said).collect();
            format!("which enqueues {}", jobs.join(", "))
        };
        self.probe.store(what, || self.inner.publish_all(jobs))
    }

    fn set_paused(&self, paused: bool) -> Result<(), BackendError> {
        let what = || format!("which pauses or resumes the queue {:?}", self.name);
        self.probe.store(what, || self.inner.set_paused(paused))
    }

    fn is_paused(&self) -> bool {
        self.inner.is_paused()
    }

    fn cancel(&self, number: u64) -> Result<Cancelled, BackendError> {
        let what = || format!("which cancels {}/{number}", self.name);
        self.probe.store(what, || self.inner.cancel(number))
    }

    fn look(&self, number: u64) -> Result<Option<Seen>, BackendError> {
        self.probe.check()?;
        self.inner.look(number)
    }

    fn contains(&self, number: u64) -> Result<bool, BackendError> {
        self.probe.check()?;
        self.inner.contains(number)
    }

    fn each(&self, from: u64, see: &mut dyn FnMut(&Seen) -> bool) -> Result<(), BackendError> {
        self.probe.check()?;
        self.inner.each(from, see)
    }

    fn stats(&self) -> Result<QueueStats, BackendError> {
        self.probe.check()?;
        self.inner.stats()
    }

    fn dead_letters(&self) -> Result<Vec<DeadJob>, BackendError> {
        self.probe.check()?;
        self.inner.dead_letters()
    }

    fn dead_letter(&self, letter: u64) -> Result<Option<DeadJob>, BackendError> {
        self.probe.check()?;
        self.inner.dead_letter(letter)
    }

    fn replay(&self, letter: u64) -> Result<Option<u64>, BackendError> {
        let what = || format!("which replays a dead job of {:?}", self.name);
        self.probe.store(what, || self.inner.replay(letter))
    }

    fn purge(&self, letter: u64) -> Result<bool, BackendError> {
        let what = || format!("which purges a dead job of {:?}", self.name);
        self.probe.store(what, || self.inner.purge(letter))
    }
}

struct ProbedConsumer {
    inner: Box<dyn Consumer>,
    probe: Arc<Probe>,
    /// A job that waits until another one has run.
    postponed: Option<Box<dyn Held>>,
}

impl Consumer for ProbedConsumer {
    fn next(
        &mut self,
        until: Option<Instant>,
        stopped: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&mut dyn Claim),
    ) -> Next {
        if self.probe.has_crashed() {
            return Next::Closed;
        }
        let probe = &self.probe;
        let before = self.postponed.take();
        let may_postpone = before.is_none();
        let postponed = &mut self.postponed;
        let mut take = |claim: &mut dyn Claim| {
            if probe.postpones() && may_postpone {
                // One that is not held was cancelled, and has ended.
                *postponed = claim.hold();
            } else {
                let inner = claim;
                take(&mut Tapped { inner, probe });
            }
        };
        let next = self.inner.next(until, stopped, &mut take);
        // It goes back to its queue.
        drop(before);
        match next {
            Next::Nothing if !may_postpone => self.inner.next(until, stopped, &mut take),
            next => next,
        }
    }
}

/// A claim whose end the probe is told.
struct Tapped<'a> {
    inner: &'a mut dyn Claim,
    probe: &'a Arc<Probe>,
}

/// As `Tapped`, on its own.
struct TappedOwned {
    inner: Box<dyn Claim + Send>,
    probe: Arc<Probe>,
}

/// Ends an attempt, and notes how it ended.
fn settle(
    claim: &mut dyn Claim,
    probe: &Probe,
    settlement: Settlement<'_>,
) -> Result<Vec<Option<u64>>, BackendError> {
    let mut ran = ran(claim, How::Lost);
    let what = || {
        let of = format!("{} ({:?})", ran.id, ran.kind);
        match settlement {
            Settlement::Done(None) => format!("which completes {of}"),
            Settlement::Done(Some(changes)) => {
                format!("which completes {of} and stores {}", said(changes))
            }
            Settlement::Retry { .. } => format!("which retries {of}"),
            Settlement::Snooze { .. } => format!("which snoozes {of}"),
            Settlement::Dead { .. } => format!("which gives up {of}"),
        }
    };
    let settled = probe.store(what, || claim.settle(settlement));
    if settled.is_ok() {
        ran.how = How::of(&settlement, &ran.id);
    }
    probe.note(ran);
    settled
}

fn ran(claim: &dyn Claim, how: How) -> Ran {
    Ran {
        id: JobId::new(claim.queue(), claim.number()),
        kind: claim.kind().to_owned(),
        attempt: claim.attempt(),
        how,
    }
}

macro_rules! tapped {
    ($type:ty) => {
        impl Claim for $type {
            forward_claim!(inner: queue number kind payload header attempt crashes);
            forward_claim!(inner: enqueued_at due_at is_cancelled lease);

            fn settle(
                &mut self,
                settlement: Settlement<'_>,
            ) -> Result<Vec<Option<u64>>, BackendError> {
                settle(&mut *self.inner, &self.probe, settlement)
            }

            fn hold(&mut self) -> Option<Box<dyn Held>> {
                let ran = ran(&*self.inner, How::Held);
                let held = self.inner.hold()?;
                self.probe.note(ran);
                Some(held)
            }

            fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
                Some(Box::new(TappedOwned {
                    inner: self.inner.detach()?,
                    probe: Arc::clone(&self.probe),
                }))
            }
        }
    };
}

tapped!(Tapped<'_>);
tapped!(TappedOwned);
