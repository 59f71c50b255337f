//! Jobs of kinds that no handler takes. They wait here, without an attempt, until workers with a
//! handler for them are started: an application that was rolled back, a handler that was forgotten.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::JobId;
use crate::backend::{Claim, Held, Settlement};
use crate::events::EventKind;
use crate::mill::Mill;

/// The jobs that wait for a handler, by kind.
#[derive(Default)]
pub(crate) struct Parked {
    kinds: Mutex<BTreeMap<String, Vec<ParkedJob>>>,
}

/// A job that waits for a handler.
struct ParkedJob {
    id: JobId,
    /// Dropped, it goes back to its queue.
    _held: Box<dyn Held>,
}

/// Jobs of a kind that no handler of the running workers takes, from [`Mill::parked`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedKind {
    /// The kind.
    pub kind: String,
    /// The jobs, in the order in which workers came to them.
    pub jobs: Vec<JobId>,
}

impl Parked {
    /// How many jobs wait.
    #[cfg(feature = "testing")]
    pub(crate) fn len(&self) -> usize {
        self.kinds.lock().values().map(Vec::len).sum()
    }

    /// Has a job wait for a handler.
    #[cold]
    pub(crate) fn park(&self, mill: &Mill, id: &JobId, claim: &mut dyn Claim) {
        let kind = claim.kind().to_owned();
        let attempt = claim.attempt();
        let Some(held) = claim.hold() else {
            // A backend that holds no jobs gives it out again later.
            let after = std::time::Duration::from_secs(60);
            let _ = claim.settle(Settlement::Snooze { after });
            return;
        };
        let is_first = {
            let mut kinds = self.kinds.lock();
            let jobs = kinds.entry(kind.clone()).or_default();
            jobs.push(ParkedJob {
                id: id.clone(),
                _held: held,
            });
            jobs.len() == 1
        };
        let events = &mill.inner.events;
        if events.is_on() {
            events.tell(mill, id, kind.as_str().into(), attempt, EventKind::Parked);
        }
        if is_first {
            tracing::warn!(kind, %id, "no handler takes this kind: its jobs are parked");
        }
    }

    /// Gives back the jobs of kinds that are handled from now on.
    pub(crate) fn release<'a>(&self, handled: impl Iterator<Item = &'a str>) {
        let mut kinds = self.kinds.lock();
        let released: Vec<_> = handled.filter_map(|kind| kinds.remove(kind)).collect();
        drop(kinds);
        // To give a job back may wake a worker, which needs the lock to park it again.
        drop(released);
    }

    /// Gives back a job that is to be looked at again, such as one that was cancelled.
    pub(crate) fn release_job(&self, id: &JobId) {
        let mut kinds = self.kinds.lock();
        let released = kinds.values_mut().find_map(|jobs| {
            let at = jobs.iter().position(|parked| parked.id == *id)?;
            Some(jobs.remove(at))
        });
        kinds.retain(|_, jobs| !jobs.is_empty());
        drop(kinds);
        drop(released);
    }

    /// Why a job waits here.
    pub(crate) fn reason_of(&self, id: &JobId) -> Option<String> {
        let kinds = self.kinds.lock();
        let mut kinds = kinds.iter();
        let (kind, _) = kinds.find(|(_, jobs)| jobs.iter().any(|parked| parked.id == *id))?;
        Some(format!("no handler takes the kind {kind:?}"))
    }

    /// Gives back all.
    pub(crate) fn release_all(&self) {
        let all = std::mem::take(&mut *self.kinds.lock());
        drop(all);
    }
}

impl Mill {
    /// The jobs that workers came to and have no handler for, by kind.
    ///
    /// They wait without an attempt, go on by themselves once workers with a handler are started, and
    /// can be [cancelled](Self::cancel).
    pub fn parked(&self) -> Vec<ParkedKind> {
        let kinds = self.inner.parked.kinds.lock();
        let parked = kinds.iter().map(|(kind, jobs)| ParkedKind {
            kind: kind.clone(),
            jobs: jobs.iter().map(|parked| parked.id.clone()).collect(),
        });
        parked.collect()
    }
}
