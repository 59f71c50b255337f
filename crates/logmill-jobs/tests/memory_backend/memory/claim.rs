//! A job that a consumer has, or that is held.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use logmill_jobs::backend::{BackendError, Changes, Claim, Held, Lease, Settlement};

use super::Process;
use super::jobs::{BACKOFF, Failed, Job, Jobs};
use super::store::State;

/// A claim, settled or not. Dropped before it is settled, its attempt has failed.
pub(super) struct MemoryClaim {
    job: Arc<Job>,
    place: Claimed,
    is_settled: bool,
}

/// Which job of which queue it is, and by which number its claim has it.
#[derive(Clone)]
struct Claimed {
    process: Arc<Process>,
    queue: String,
    number: u64,
    claim: u64,
}

struct MemoryHeld {
    job: Arc<Job>,
    place: Claimed,
}

struct MemoryLease {
    place: Claimed,
    lease: Duration,
}

impl Claimed {
    /// The queue of the job, if the claim still has it.
    fn queue_of<'a>(&self, state: &'a mut State) -> Result<&'a mut Jobs, BackendError> {
        let queue = state.queue_mut(&self.queue);
        let queue = queue.ok_or(BackendError::Lost)?;
        match queue.has(self.number, self.claim) {
            true => Ok(queue),
            false => Err(BackendError::Lost),
        }
    }

    fn fail(&self, how: Failed<'_>) -> Result<(), BackendError> {
        self.process.change(|state, ends| {
            self.queue_of(state)?.fail(self.number, how, ends);
            Ok(())
        })
    }

    fn fail_unsettled(&self) {
        let reason = "the attempt has ended without an outcome";
        // An error says that another consumer has it by now.
        let _ = self.fail(Failed::Retry(BACKOFF, reason));
    }

    fn settle(&self, settlement: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        self.process.check_open()?;
        match settlement {
            Settlement::Done(changes) => self
                .process
                .change(|state, _| self.complete(state, changes)),
            Settlement::Retry { after, reason } => self.end(Failed::Retry(after, reason)),
            Settlement::Snooze { after } => self.end(Failed::Snooze(after)),
            Settlement::Dead { reason } => self.end(Failed::Dead(reason)),
        }
    }

    fn end(&self, how: Failed<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        self.fail(how).map(|()| Vec::new())
    }

    /// Completes the job, and makes the changes.
    fn complete(
        &self,
        state: &mut State,
        changes: Option<&Changes<'_>>,
    ) -> Result<Vec<Option<u64>>, BackendError> {
        self.queue_of(state)?;
        let numbers = changes.map(|changes| state.apply(changes)).transpose()?;
        self.queue_of(state)?.complete(self.number);
        Ok(numbers.unwrap_or_default())
    }
}

impl MemoryClaim {
    pub(super) fn new(process: &Arc<Process>, queue: String, job: Job, claim: u64) -> Self {
        let place = Claimed {
            process: Arc::clone(process),
            queue,
            number: job.number,
            claim,
        };
        Self {
            job: Arc::new(job),
            place,
            is_settled: false,
        }
    }
}

impl Claim for MemoryClaim {
    fn queue(&self) -> &str {
        &self.place.queue
    }

    fn number(&self) -> u64 {
        self.job.number
    }

    fn kind(&self) -> &str {
        &self.job.kind
    }

    fn payload(&self) -> &[u8] {
        &self.job.payload
    }

    fn header(&self, key: &str) -> Option<&[u8]> {
        self.job.header(key)
    }

    fn attempt(&self) -> u32 {
        self.job.failed + 1
    }

    fn crashes(&self) -> u32 {
        self.job.crashes
    }

    fn enqueued_at(&self) -> SystemTime {
        self.job.enqueued_at
    }

    fn due_at(&self) -> Option<SystemTime> {
        self.job.due_at
    }

    fn is_cancelled(&self) -> bool {
        let state = self.place.process.store.lock();
        let queue = state.queue(&self.place.queue);
        queue.is_some_and(|queue| queue.is_cancelled(self.job.number))
    }

    fn lease(&self) -> Option<Box<dyn Lease>> {
        let lease = self.place.process.capabilities.lease?;
        let place = self.place.clone();
        Some(Box::new(MemoryLease { place, lease }))
    }

    fn settle(&mut self, settlement: Settlement<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        if std::mem::replace(&mut self.is_settled, true) {
            return Err(BackendError::Lost);
        }
        let settled = self.place.settle(settlement);
        match settled {
            // It may be settled again; if it is not, it fails when it is dropped.
            Err(BackendError::Conflict(_)) => self.is_settled = false,
            Err(_) => self.place.fail_unsettled(),
            Ok(_) => {}
        }
        settled
    }

    fn hold(&mut self) -> Option<Box<dyn Held>> {
        // Nobody would extend the lease of a job that is held.
        if self.is_settled || self.place.process.capabilities.lease.is_some() {
            return None;
        }
        self.is_settled = true;
        let place = &self.place;
        let held = place.process.change(|state, ends| {
            let queue = place.queue_of(state)?;
            Ok::<_, BackendError>(queue.hold(place.number, place.claim, ends))
        });
        let held = MemoryHeld {
            job: held.is_ok_and(|held| held).then(|| Arc::clone(&self.job))?,
            place: place.clone(),
        };
        Some(Box::new(held))
    }

    fn detach(&mut self) -> Option<Box<dyn Claim + Send>> {
        if std::mem::replace(&mut self.is_settled, true) {
            return None;
        }
        Some(Box::new(Self {
            job: Arc::clone(&self.job),
            place: self.place.clone(),
            is_settled: false,
        }))
    }
}

impl Drop for MemoryClaim {
    fn drop(&mut self) {
        if !self.is_settled {
            self.place.fail_unsettled();
        }
    }
}

impl Held for MemoryHeld {
    fn payload(&self) -> &[u8] {
        &self.job.payload
    }
}

impl Drop for MemoryHeld {
    fn drop(&mut self) {
        let Claimed {
            queue,
            number,
            claim,
            ..
        } = &self.place;
        self.place.process.change(|state, _| {
            if let Some(queue) = state.queue_mut(queue) {
                queue.release(*number, *claim);
            }
        });
    }
}

impl Lease for MemoryLease {
    fn extend(&self) -> Result<bool, BackendError> {
        let Claimed {
            queue,
            number,
            claim,
            ..
        } = &self.place;
        self.place.process.change_if_open(|state, _| {
            let queue = state.queue_mut(queue);
            Ok(queue.is_some_and(|queue| queue.extend(*number, *claim, self.lease)))
        })
    }
}
