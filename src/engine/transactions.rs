//! Committing a transaction: appends it to the state log, the jobs to their queues, and completes
//! the job that it was given with.
//!
//! The order is that of every move. The transaction, which names the job that it completes, is
//! appended, and with `Sync` flushed; only then is that job marked done. Each new job names its
//! entry in the state log, and that entry is marked done once the new job is durable. Until then,
//! the segments with these names are kept where the next open finds them.

use std::sync::Arc;

use super::delivery::Attempt;
use super::enqueue::{new_record, options_of};
use super::{Engine, Running};
use crate::JobId;
use crate::dispatch::lease_timeouts::Delivery;
use crate::error::{EnqueueError, TransactionError};
use crate::failure::Failure;
use crate::log::RollError;
use crate::log::headers;
use crate::log::lease::Lease;
use crate::log::meta::{Elsewhere, MetaBytes};
use crate::log::record::NewRecord;
use crate::options::{Durability, EnqueueOptions};
use crate::state::entry::{Change, Completes, NewJob};
use crate::state::{Group, NotWritten};
use crate::storage::StorageError;
use crate::tree::Tree;

/// The delivery of the job that a transaction completes.
pub(crate) struct Source<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) lease: Lease,
    pub(crate) delivery: Delivery,
    pub(crate) attempt: Attempt,
}

/// What a transaction consists of.
pub(crate) struct Parts<'a> {
    pub(crate) jobs: &'a [NewJob],
    /// The queue of each job.
    pub(crate) queues: &'a [Arc<Running>],
    /// What it does to keys, each of which is in it once.
    pub(crate) changes: &'a [(Vec<u8>, Change)],
    pub(crate) conditions: &'a [(Vec<u8>, Option<u64>)],
    /// Whether the ids of the jobs hold after a power cut, if the transaction is `Sync`.
    pub(crate) has_durable_ids: bool,
}

impl Source<'_> {
    /// How the transaction names the job.
    fn completes(&self, tree: &Tree) -> Result<Completes, TransactionError> {
        let queue = self.engine.id_in(tree).ok_or(TransactionError::OtherTree)?;
        let lease = &self.lease;
        let (origin, before) = match lease.may_not_be_durable_yet() {
            true => (lease.meta().settles_elsewhere, lease.meta().settles),
            false => (None, None),
        };
        Ok(Completes {
            job: Elsewhere {
                home: queue,
                record: lease.sequence(),
            },
            origin: origin.and_then(|origin| tree.state().own(origin)),
            before: before.map(|record| Elsewhere {
                home: queue,
                record,
            }),
        })
    }

    /// Keeps the delivery from timing out. Returns whether it had not.
    fn fence(&self) -> bool {
        let leases = self.engine.leases();
        leases.is_none_or(|leases| leases.fence(&self.lease, self.delivery))
    }

    pub(crate) fn fail(self, error: &TransactionError) {
        let failure = format_args!("its transaction was not committed: {error}");
        let failure = Failure::retry(failure);
        self.engine
            .fail(self.lease, self.delivery, self.attempt, failure);
    }

    /// Leaves the job as it is for the next open, which finds out whether it is completed.
    fn withhold(self) {
        drop(self.lease);
        if self.attempt.is_suspect() {
            self.engine.dispatch.end_suspect();
        }
    }
}

/// Makes the entry of a job that a transaction enqueues.
pub(crate) fn new_job(
    running: &Running,
    tree: &Tree,
    payload: &[u8],
    options: &EnqueueOptions<'_>,
) -> Result<NewJob, TransactionError> {
    let queue = running.id_in(tree).ok_or(TransactionError::OtherTree)?;
    options.validate()?;
    running.check_len(options.len() + payload.len())?;
    let NewRecord {
        enqueued_at,
        due_at,
        ..
    } = new_record(options, &[], payload, &running.clock);
    let mut encoded = MetaBytes::new();
    headers::encode(options.headers, &mut encoded);
    Ok(NewJob {
        queue,
        enqueued_at,
        due_at,
        name: options.name.unwrap_or_default().as_bytes().to_vec(),
        options: options_of(options, &running.clock),
        headers: encoded.to_vec(),
        payload: payload.to_vec(),
    })
}

/// Commits a transaction. Returns the ids of its jobs; None where there is no segment for a job at
/// the moment.
///
/// After an error, the attempt at the job of `source` has failed, unless it was late, or the flush
/// has failed.
pub(crate) fn commit(
    tree: &Tree,
    parts: &Parts<'_>,
    durability: Option<Durability>,
    source: Option<Source<'_>>,
) -> Result<Vec<Option<JobId>>, TransactionError> {
    let durability = durability.unwrap_or_else(|| {
        let engines = parts.queues.iter().map(|running| &***running);
        let engines = engines.chain(source.iter().map(|source| source.engine));
        engines
            .map(Engine::durability)
            .fold(Durability::Process, Durability::stronger)
    });
    let completes = match prepare(tree, parts, durability, source.as_ref()) {
        Ok(completes) => completes,
        Err(error) => {
            if let Some(source) = source {
                source.fail(&error);
            }
            return Err(error);
        }
    };
    let state = tree.state();
    if let Some(late) = source.as_ref()
        && !late.fence()
    {
        leave_room(parts);
        if let Some(source) = source {
            // The attempt has failed already.
            source.fail(&TransactionError::LeaseLost);
        }
        return Err(TransactionError::LeaseLost);
    }
    let written = state.write(&Group {
        completes,
        jobs: parts.jobs,
        changes: parts.changes,
        conditions: parts.conditions,
    });
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            leave_room(parts);
            let error = TransactionError::from(error);
            if let Some(source) = source {
                source.fail(&error);
            }
            return Err(error);
        }
    };
    if durability == Durability::Sync
        && let Err(error) = state.flush_records()
    {
        leave_room(parts);
        // The disk may have nothing of it, so nothing is done that it is the reason for.
        if let Some(completes) = completes {
            state.note_uncertain(completes.job.home, &error);
        }
        if let Some(source) = source {
            source.withhold();
        }
        return Err(TransactionError::NotDurable(error));
    }
    let mut jobs = Vec::with_capacity(parts.jobs.len());
    for ((job, running), at) in parts.jobs.iter().zip(parts.queues).zip(0..) {
        jobs.push(running.take_in(state, job, written.first_job.plus(at)));
    }
    #[cfg(all(test, not(loom)))]
    crate::storage::faults::note_commit(tree.root().path());
    if let Some(Source {
        engine,
        lease,
        delivery,
        attempt,
    }) = source
    {
        engine.ack(lease, delivery, attempt);
        if let (Some(job), Some(completion)) = (completes, written.completion) {
            state.note_completion(job.job.home, completion);
        }
        if let Durability::Interval(interval) = durability {
            engine.signal.flush_within(interval);
        }
    }
    if let Durability::Interval(interval) = durability {
        for running in parts.queues {
            running.signal.flush_within(interval);
        }
        state.flush_within(interval);
    }
    if durability == Durability::Sync && parts.has_durable_ids {
        // Last: whatever comes of this, the transaction is durable.
        flush_queues(parts.queues).map_err(TransactionError::NotDurable)?;
    }
    Ok(jobs)
}

/// Makes the records of jobs durable that this thread has appended to their queues, and by that their
/// ids.
fn flush_queues(queues: &[Arc<Running>]) -> Result<(), Arc<StorageError>> {
    for (at, running) in queues.iter().enumerate() {
        let is_again = queues[..at].iter().any(|other| Arc::ptr_eq(other, running));
        if !is_again {
            running.flush_appended()?;
        }
    }
    Ok(())
}

/// Checks all that can refuse a transaction before anything is written, and takes room for its jobs.
/// Returns how the transaction names the job that it completes.
fn prepare(
    tree: &Tree,
    parts: &Parts<'_>,
    durability: Durability,
    source: Option<&Source<'_>>,
) -> Result<Option<Completes>, TransactionError> {
    if let Some(error) = tree.state().poison() {
        return Err(TransactionError::Poisoned(Arc::clone(error)));
    }
    let completes = match source {
        None => None,
        Some(source) => Some(source.completes(tree)?),
    };
    let engines = parts.queues.iter().map(|running| &***running);
    for engine in engines.chain(source.map(|source| source.engine)) {
        engine.check_poison(durability)?;
    }
    // The first job for the queue of the one that is completed is to get that one's room, which is
    // given back later: otherwise no job of a full queue could be followed by another.
    let mut heir_of = source.map(|source| source.engine);
    for (at, running) in parts.queues.iter().enumerate() {
        let engine: &Engine = running;
        let is_heir = heir_of
            .take_if(|source| std::ptr::eq(*source, engine))
            .is_some();
        let taken = match running.is_closed() {
            true => Err(EnqueueError::Closed),
            // Those that wait come first. If there is no room for them, the state log would grow.
            false => running
                .append_waiting()
                .unwrap_or_else(|error| Err(EnqueueError::Storage(error)))
                .and_then(|()| running.take_room_of(1, is_heir)),
        };
        if let Err(error) = taken {
            for running in &parts.queues[..at] {
                running.leave_room(1);
            }
            return Err(error.into());
        }
    }
    Ok(completes)
}

fn leave_room(parts: &Parts<'_>) {
    for running in parts.queues {
        running.leave_room(1);
    }
}

impl From<NotWritten> for TransactionError {
    fn from(error: NotWritten) -> Self {
        match error {
            NotWritten::Conflict(key) => Self::Conflict { key },
            NotWritten::TooLarge { size, max } => Self::TooLarge { size, max },
            NotWritten::Log(RollError::Storage(error)) if error.is_full() => {
                Self::StorageFull(Arc::new(error))
            }
            NotWritten::Log(RollError::Storage(error)) => Self::Storage(Arc::new(error)),
            // It has no budget, and is closed after the last queue.
            NotWritten::Log(RollError::OverBudget(_) | RollError::Closed) => Self::Closed,
        }
    }
}
