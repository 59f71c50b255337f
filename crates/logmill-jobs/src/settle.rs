//! How an attempt ends: what its handler returned decides what becomes of the job, and what follows
//! from that is stored in the same step.

use crate::backend::{self, BackendError, Changes, Claim, End, Keep, KeyChange, Settlement};
use crate::context::Followed;
use crate::enqueue::header;
use crate::failure::{Failure, Verdict};
use crate::keys::{self, Record};
use crate::mill::Mill;
use crate::prepared::PreparedJob;
use crate::unique::Release;
use crate::waiters::Ended;
use crate::{JobId, KindOptions};

/// What a handler returned: its output, encoded, unless it is nothing.
pub(crate) type Returned = Result<Option<Vec<u8>>, Failure>;

/// The most attempts that backends count.
const MOST_ATTEMPTS: u32 = 250;
/// The most bytes of a reason that are kept.
const MOST_REASON: usize = 1024;

/// Ends an attempt as its handler says.
#[inline]
pub(crate) fn settle(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    kind: &KindOptions,
    returned: Returned,
    followed: Followed,
) {
    match returned {
        Ok(None) if followed.is_empty() && claim.header(header::UNIQUE).is_none() => {
            let done = claim.settle(Settlement::Done(None)).map(|_| Ended::Done);
            report(mill, id, done);
        }
        Ok(output) => done(mill, claim, id, kind, output, &followed),
        Err(failure) => fail(mill, claim, id, kind, failure, &followed),
    }
}

/// Tells how a job has ended, if that could be stored.
#[inline]
fn report(mill: &Mill, id: &JobId, ended: Result<Ended, BackendError>) {
    match ended {
        Ok(ended) => {
            mill.inner.cancelling.forget(id);
            tell(mill, id, ended);
        }
        // The backend has failed the attempt, except if it is not sure that it could not store it.
        Err(error @ BackendError::NotDurable(_)) => {
            tracing::error!(%id, %error, "the end of a job may not be durable");
        }
        Err(error) => tracing::warn!(%id, %error, "the end of a job could not be stored"),
    }
}

/// Completes a job together with what follows from that.
fn done(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    kind: &KindOptions,
    output: Option<Vec<u8>>,
    followed: &Followed,
) {
    // If what is to be stored is refused, the attempt has failed. That must not go on for ever.
    if mill.inner.refused.count(id) > retries_of(claim, kind) {
        let reason = "its completion could not be stored, at several attempts";
        return settle_quietly(claim, id, Settlement::Dead { reason });
    }
    let record = output.map(|output| Record::done(mill.inner.codec.tag(), &output));
    let ended = end(mill, claim, id, record, followed).map(|()| Ended::Done);
    match ended {
        Ok(_) => mill.inner.refused.forget(id),
        Err(_) => mill.inner.refused.add(id),
    }
    report(mill, id, ended);
}

fn end(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    record: Option<Vec<u8>>,
    followed: &Followed,
) -> Result<(), BackendError> {
    let released = Release::of(mill, claim.kind(), claim.header(header::UNIQUE))?;
    let record_key = keys::of_record(id);
    let mut changes = Changes::default();
    if let Some(record) = &record {
        let keep = Keep::For(mill.inner.keep_results);
        changes.keys.push(KeyChange::Put(&record_key, record, keep));
    }
    if let Some(released) = &released {
        changes.keys.extend(released.changes());
    }
    for step in &followed.steps {
        changes.keys.push(KeyChange::Remove(step));
    }
    let headers: Vec<_> = followed.jobs.iter().map(PreparedJob::headers).collect();
    let now = mill.inner.clock.wall();
    for (job, headers) in followed.jobs.iter().zip(&headers) {
        changes.jobs.push((&job.place, job.new_job(headers, now)));
    }
    claim.settle(Settlement::Done(Some(&changes)))?;
    Ok(())
}

/// Ends an attempt that did not complete its job.
#[cold]
fn fail(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    kind: &KindOptions,
    failure: Failure,
    followed: &Followed,
) {
    let Failure {
        mut reason,
        verdict,
    } = failure;
    truncate(&mut reason);
    let is_last = claim.attempt() > retries_of(claim, kind);
    let settlement = match verdict {
        Verdict::Cancel => {
            let kept = Followed {
                jobs: Vec::new(),
                steps: followed.steps.clone(),
            };
            let record = Record::cancelled(&reason);
            let ended = end(mill, claim, id, Some(record), &kept);
            return report(mill, id, ended.map(|()| Ended::Cancelled(reason)));
        }
        Verdict::Snooze(after) => Settlement::Snooze { after },
        Verdict::RetryIn(after) if !is_last => Settlement::Retry {
            after,
            reason: &reason,
        },
        Verdict::Retry if !is_last => Settlement::Retry {
            after: kind.backoff.after(claim.attempt(), fastrand::f64()),
            reason: &reason,
        },
        // Those who wait are told by the backend, as of all that die.
        Verdict::Retry | Verdict::RetryIn(_) | Verdict::Discard => {
            Settlement::Dead { reason: &reason }
        }
    };
    settle_quietly(claim, id, settlement);
}

fn truncate(reason: &mut String) {
    let mut most = MOST_REASON.min(reason.len());
    while !reason.is_char_boundary(most) {
        most -= 1;
    }
    reason.truncate(most);
}

fn settle_quietly(claim: &mut dyn Claim, id: &JobId, settlement: Settlement<'_>) {
    if let Err(error) = claim.settle(settlement) {
        tracing::warn!(%id, %error, "the end of an attempt could not be stored");
    }
}

/// Attempts that may follow the first.
fn retries_of(claim: &dyn Claim, kind: &KindOptions) -> u32 {
    let own = claim.header(header::RETRIES);
    let own = own.and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)));
    own.unwrap_or(kind.max_retries).min(MOST_ATTEMPTS - 1)
}

/// Stores what follows from the end of a job that no handler has completed.
pub(crate) fn ended_otherwise(mill: &Mill, ended: &backend::Ended<'_>) {
    let id = JobId::new(ended.queue, ended.number);
    let (record, told) = match ended.how {
        End::Dead(reason) => (Record::dead(reason), Ended::Dead(reason.to_owned())),
        End::Expired => (Record::expired(), Ended::Expired),
        End::Cancelled => {
            let reason = mill.inner.cancelling.take(&id);
            (Record::cancelled(&reason), Ended::Cancelled(reason))
        }
    };
    if let Err(error) = note_end(mill, &id, ended, &record) {
        tracing::warn!(%id, %error, "the end of a job could not be stored");
    }
    match ended.how {
        End::Cancelled => mill.inner.limits.forget(&id),
        // It was not waiting for a limit: a worker had it, or was about to get it.
        End::Dead(_) | End::Expired => mill.inner.limits.forget_grant(&id),
    }
    mill.inner.refused.forget(&id);
    tell(mill, &id, told);
}

/// Stores the record of a job that has ended, and releases its key.
fn note_end(
    mill: &Mill,
    id: &JobId,
    ended: &backend::Ended<'_>,
    record: &[u8],
) -> Result<(), BackendError> {
    let key = keys::of_record(id);
    let released = Release::of(mill, ended.kind, ended.unique)?;
    let mut changes = Changes::default();
    let keep = Keep::For(mill.inner.keep_results);
    changes.keys.push(KeyChange::Put(&key, record, keep));
    if let Some(released) = &released {
        changes.keys.extend(released.changes());
    }
    mill.inner.backend.commit(&changes)?;
    Ok(())
}

/// Tells those who wait for a job that it has ended.
#[inline]
fn tell(mill: &Mill, id: &JobId, ended: Ended) {
    if mill.inner.waiters.has_any() {
        mill.inner.waiters.end(id, ended);
    }
}
