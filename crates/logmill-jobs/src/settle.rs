//! How an attempt ends: what its handler returned decides what becomes of the job, and what follows
//! from that is stored in the same step.

use std::time::Duration;

use crate::backend::{
    self, BackendError, Changes, Claim, End, Keep, KeyChange, NewJob, Settlement,
};
use crate::context::Followed;
use crate::enqueue::header;
use crate::failure::{Failure, Verdict};
use crate::keys::{self, Record};
use crate::mill::Mill;
use crate::unique;
use crate::waiters::Ended;
use crate::{JobId, KindOptions};

/// What a handler returned: its output, encoded, unless it is nothing.
pub(crate) type Returned = Result<Option<Vec<u8>>, Failure>;

/// A job that has ended, as far as its keys depend on it.
pub(crate) struct EndedJob<'a> {
    pub(crate) kind: &'a str,
    /// The header that says which key it releases.
    pub(crate) unique: Option<&'a [u8]>,
}

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
    let told = match returned {
        Ok(None) if followed.is_empty() && claim.header(header::UNIQUE).is_none() => {
            claim.settle(Settlement::Done(None)).map(|_| Ended::Done)
        }
        Ok(output) => done(mill, claim, id, output, &followed),
        Err(failure) => return fail(mill, claim, id, kind, failure),
    };
    match told {
        Ok(ended) => tell(mill, id, ended),
        // The backend has failed the attempt.
        Err(error) => tracing::warn!(%id, %error, "a job could not be completed, and comes back"),
    }
}

/// Completes a job together with what follows from that.
fn done(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    output: Option<Vec<u8>>,
    followed: &Followed,
) -> Result<Ended, BackendError> {
    let record = output.map(|output| Record::done(mill.inner.codec.tag(), &output));
    end(mill, claim, id, record, followed).map(|()| Ended::Done)
}

fn end(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    record: Option<Vec<u8>>,
    followed: &Followed,
) -> Result<(), BackendError> {
    let released = unique::key_to_release(claim.kind(), claim.header(header::UNIQUE));
    let record_key = keys::of_record(id);
    let mut changes = Changes::default();
    if let Some(record) = &record {
        let keep = Keep::For(mill.inner.keep_results);
        changes.keys.push(KeyChange::Put(&record_key, record, keep));
    }
    if let Some(key) = &released {
        changes.keys.push(KeyChange::Remove(key));
    }
    for step in &followed.steps {
        changes.keys.push(KeyChange::Remove(step));
    }
    let headers: Vec<_> = followed.jobs.iter().map(|job| job.headers()).collect();
    for (job, headers) in followed.jobs.iter().zip(&headers) {
        let new = NewJob {
            kind: job.kind,
            payload: &job.payload,
            headers,
            due: job.due,
            expires: job.expires,
            sync: false,
        };
        changes.jobs.push((&job.queue, new));
    }
    claim.settle(Settlement::Done(Some(&changes)))?;
    Ok(())
}

/// Ends an attempt that did not complete its job.
#[cold]
fn fail(mill: &Mill, claim: &mut dyn Claim, id: &JobId, kind: &KindOptions, failure: Failure) {
    let Failure { reason, verdict } = failure;
    let (reason, verdict) = match claim.is_cancelled() {
        true => ("cancelled while it ran".to_owned(), Verdict::Cancel),
        false => (reason, verdict),
    };
    let is_last = claim.attempt() > retries_of(claim, kind);
    let ended = match verdict {
        Verdict::Snooze(after) => return settle_quietly(claim, id, Settlement::Snooze { after }),
        Verdict::Retry | Verdict::RetryIn(_) if !is_last => {
            let backoff = || kind.backoff.after(claim.attempt(), fastrand::f64());
            let after = match verdict {
                Verdict::RetryIn(delay) => delay,
                _ => backoff(),
            };
            let reason = &reason;
            return settle_quietly(claim, id, Settlement::Retry { after, reason });
        }
        Verdict::Cancel => {
            let record = Record::cancelled(&reason);
            end(mill, claim, id, Some(record), &Followed::default())
                .map(|()| Ended::Cancelled(reason))
        }
        Verdict::Retry | Verdict::RetryIn(_) | Verdict::Discard => {
            // Those who wait are told by the backend, as of all that die.
            return settle_quietly(claim, id, Settlement::Dead { reason: &reason });
        }
    };
    match ended {
        Ok(ended) => tell(mill, id, ended),
        Err(error) => tracing::warn!(%id, %error, "the end of a job could not be stored"),
    }
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
    own.unwrap_or(kind.max_retries)
}

/// Stores the record of a job that has ended, and releases its key.
pub(crate) fn note_end(
    mill: &Mill,
    id: &JobId,
    ended: &EndedJob<'_>,
    record: Vec<u8>,
) -> Result<(), BackendError> {
    let key = keys::of_record(id);
    let released = unique::key_to_release(ended.kind, ended.unique);
    let keep = Keep::For(mill.inner.keep_results.max(Duration::from_secs(1)));
    let mut changes = Changes::default();
    changes.keys.push(KeyChange::Put(&key, &record, keep));
    if let Some(released) = &released {
        changes.keys.push(KeyChange::Remove(released));
    }
    mill.inner.backend.commit(&changes)?;
    Ok(())
}

/// Stores what follows from the end of a job that was neither completed nor cancelled.
pub(crate) fn ended_otherwise(mill: &Mill, ended: &backend::Ended<'_>) {
    let id = JobId::new(ended.queue, ended.number);
    let (record, told) = match ended.how {
        End::Dead(reason) => (Record::dead(reason), Ended::Dead(reason.to_owned())),
        End::Expired => (Record::expired(), Ended::Expired),
    };
    let job = EndedJob {
        kind: ended.kind,
        unique: ended.unique,
    };
    if let Err(error) = note_end(mill, &id, &job, record) {
        tracing::warn!(%id, %error, "the end of a job could not be stored");
    }
    tell(mill, &id, told);
}

/// Tells those who wait for a job that it has ended.
#[inline]
fn tell(mill: &Mill, id: &JobId, ended: Ended) {
    if mill.inner.waiters.has_any() {
        mill.inner.waiters.end(id, ended);
    }
}
