//! How an attempt ends: what its handler returned decides what becomes of the job, and what follows
//! from that is stored in the same step.

use std::time::Duration;

use crate::again::again;
use crate::backend::{BackendError, Changes, Claim, KeyChange, Settlement};
use crate::context::Followed;
use crate::enqueue::header;
use crate::events::EventKind;
use crate::failure::{Failure, Verdict};
use crate::figures::{Count, Ran};
use crate::flow::{Ending, Outcome};
use crate::keys::{self, Record};
use crate::mill::Mill;
use crate::retention::NewRecord;
use crate::unique::Release;
use crate::waiters::Ended;
use crate::{JobId, KindOptions};

/// What a handler returned: its output, encoded, unless it is nothing.
pub(crate) type Returned = Result<Option<Vec<u8>>, Failure>;

/// The most attempts that backends count.
const MOST_ATTEMPTS: u32 = 250;
/// The most bytes of a reason that are kept.
const MOST_REASON: usize = 1024;

/// Ends an attempt as its handler says, and stores what is to follow from that, if anything is.
#[inline]
pub(crate) fn settle(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    kind: &KindOptions,
    returned: Returned,
    followed: Option<Followed>,
    ran: &Ran<'_>,
) {
    match returned {
        Ok(None) if followed.is_none() && ends_alone(mill, claim, id) => {
            match claim.settle(Settlement::Done(None)) {
                Ok(_) => note_end(mill, id, Ended::Done, Some(ran)),
                Err(error) => report(mill, id, Err(error), Ended::Done, Some(ran)),
            }
        }
        Ok(output) => {
            let followed = followed.unwrap_or_default();
            done(mill, claim, id, kind, output, followed, ran);
        }
        Err(failure) => {
            let followed = followed.unwrap_or_default();
            fail(mill, claim, id, kind, failure, followed, ran);
        }
    }
}

/// Whether nothing else is stored at the end of a job.
#[inline]
fn ends_alone(mill: &Mill, claim: &dyn Claim, id: &JobId) -> bool {
    let has = |key| claim.header(key).is_some();
    let has_more = claim.may_have_headers() && (has(header::UNIQUE) || has(header::FLOW));
    // A process that has cancelled it looks for the record of its completion.
    let leaves_record = mill.is_shared() && claim.is_cancelled();
    !(has_more || leaves_record || may_have_progress(mill, claim, id))
}

/// Whether an earlier attempt may have stored how far the job is.
#[inline]
fn may_have_progress(mill: &Mill, claim: &dyn Claim, id: &JobId) -> bool {
    claim.attempt() > 1 || claim.crashes() > 0 || mill.inner.progressed.has(id)
}

/// Tells how a job has ended, if that is stored.
fn report(
    mill: &Mill,
    id: &JobId,
    stored: Result<(), BackendError>,
    ended: Ended,
    ran: Option<&Ran<'_>>,
) {
    match stored {
        Ok(()) => {}
        Err(error @ BackendError::NotDurable(_)) => {
            tracing::error!(%id, %error, "the end of a job may not be durable");
        }
        // The backend has failed the attempt.
        Err(error) => {
            tracing::warn!(%id, %error, "the end of a job could not be stored");
            match (ran, error) {
                (None, _) => {}
                // It is not this attempt's any more, or comes again with the next process.
                (Some(ran), BackendError::Lost | BackendError::Closed) => {
                    ran.failed(mill, id, "", None);
                }
                (Some(ran), error) => ran.not_stored(mill, id, &not_stored(&error)),
            }
            return;
        }
    }
    note_end(mill, id, ended, ran);
}

/// Tells how a job has ended, which is stored.
#[inline]
fn note_end(mill: &Mill, id: &JobId, ended: Ended, ran: Option<&Ran<'_>>) {
    mill.inner.cancelling.forget(id);
    if let Some(ran) = ran {
        ran.ended(mill, id, &ended);
    }
    tell(mill, id, ended);
}

/// The reason of an attempt whose end could not be stored.
fn not_stored(error: &BackendError) -> String {
    let mut reason = format!("its end could not be stored: {error}");
    truncate(&mut reason);
    reason
}

/// Completes a job together with what follows from that.
fn done(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    kind: &KindOptions,
    output: Option<Vec<u8>>,
    followed: Followed,
    ran: &Ran<'_>,
) {
    let record = match output {
        Some(output) => Some(Record::Done {
            tag: mill.inner.codec.tag().map(|tag| tag.as_bytes().to_vec()),
            output,
        }),
        None if mill.is_shared() && claim.is_cancelled() => Some(record_of_unit()),
        None => None,
    };
    end_or_die(mill, claim, id, kind, (record, Ended::Done), followed, ran);
}

/// Ends a job. If that cannot be stored, the attempt has failed, which must not go on for ever.
fn end_or_die(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    kind: &KindOptions,
    (record, ended): (Option<Record>, Ended),
    followed: Followed,
    ran: &Ran<'_>,
) {
    if mill.inner.refused.count(id) > retries_of(claim, kind) {
        let reason = "its end could not be stored, at several attempts";
        note_death(mill, claim, id, reason);
        // Before those who wait are told, which the backend does.
        ran.failed(mill, id, reason, None);
        return settle_quietly(claim, id, Settlement::Dead { reason });
    }
    let stored = end(
        mill,
        claim,
        id,
        kind.keep_results,
        record.as_ref(),
        followed,
    );
    match stored {
        Ok(()) | Err(BackendError::NotDurable(_)) => mill.inner.refused.forget(id),
        Err(_) => mill.inner.refused.add(id, false),
    }
    report(mill, id, stored, ended, Some(ran));
}

fn end(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    keep: Option<Duration>,
    record: Option<&Record>,
    mut followed: Followed,
) -> Result<(), BackendError> {
    for job in &mut followed.jobs {
        job.stamp(mill);
    }
    let ended = again(mill, || end_once(mill, claim, id, keep, record, &followed));
    mill.inner.progressed.forget(id);
    ended
}

fn end_once(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    keep: Option<Duration>,
    record: Option<&Record>,
    followed: &Followed,
) -> Result<(), BackendError> {
    // Of a job without an output, a flow keeps the unit.
    let outcome = || Outcome::Record(record.cloned().unwrap_or_else(record_of_unit));
    let released = Release::of(mill, claim.kind(), claim.header(header::UNIQUE), false)?;
    let beside = followed.beside.clone();
    let ending = Ending::of(
        mill,
        claim.header(header::FLOW),
        outcome,
        beside,
        released.as_ref(),
    )?;
    let keep = keep.unwrap_or(mill.inner.keep_results);
    let record = record.map(|record| NewRecord::new(mill, id, record.to_bytes(), keep));
    let mut changes = Changes::default();
    if let Some(ending) = &ending {
        ending.add_to(&mut changes);
    }
    if let Some(record) = &record {
        changes.keys.extend(record.changes());
    }
    for step in &followed.steps {
        changes.keys.push(KeyChange::Remove(step));
    }
    let progress = keys::of_progress(id);
    if may_have_progress(mill, claim, id)
        && !followed.steps.contains(&progress)
        && mill.inner.backend.get(&progress)?.is_some()
    {
        changes.keys.push(KeyChange::Remove(&progress));
    }
    let of_flow = ending.iter().flat_map(|ending| &ending.jobs);
    let jobs: Vec<_> = followed.jobs.iter().chain(of_flow).collect();
    let headers: Vec<_> = jobs.iter().map(|job| job.headers()).collect();
    for (job, headers) in jobs.iter().zip(&headers) {
        changes.jobs.push((&job.place, job.new_job(headers)));
    }
    let kept = released.as_ref().map(Release::headers).unwrap_or_default();
    if let Some(released) = &released {
        released.add_to(&mut changes, &kept);
    }
    let settle = || claim.settle(Settlement::Done(Some(&changes)));
    let settled = mill.inner.counting(&changes.jobs, settle);
    drop(changes);
    drop((kept, headers, jobs));
    release(released, &settled);
    let settled = settled.map(|_| ());
    if let Some(record) = record {
        record.settled(mill, id, &settled);
    }
    if let Some(ending) = ending {
        ending.told_if(mill, &settled);
    }
    settled
}

/// What a job without an output leaves where it has to leave something.
fn record_of_unit() -> Record {
    Record::Done {
        tag: None,
        output: b"null".to_vec(),
    }
}

/// Notes in memory what was released, if that is stored.
pub(crate) fn release(
    released: Option<Release<'_>>,
    stored: &Result<Vec<Option<u64>>, BackendError>,
) {
    let Some(released) = released else {
        return;
    };
    match stored {
        Ok(numbers) => released.done(numbers),
        Err(BackendError::NotDurable(_)) => released.done(&[]),
        Err(_) => {}
    }
}

/// Ends a job before it begins, as this says: it has expired, or how it ends was stored before.
pub(crate) fn end_unbegun(mill: &Mill, claim: &mut dyn Claim, id: &JobId, record: Record) {
    let ended = match &record {
        Record::Done { .. } => Ended::Done,
        Record::Cancelled { reason } => Ended::Cancelled(reason.clone()),
        Record::Dead { reason, .. } => Ended::Dead(reason.clone()),
        Record::Expired => Ended::Expired,
    };
    // No attempt at it has begun.
    let (kind, failed) = (claim.kind().to_owned(), claim.attempt().saturating_sub(1));
    let refused = &mill.inner.refused;
    let is_unbegun = failed == 0 && claim.crashes() == 0 || refused.is_unbegun(id);
    // First: if its end cannot be stored, another worker may have it before this one hears of that.
    refused.add(id, is_unbegun);
    let stored = end(mill, claim, id, None, Some(&record), Followed::default());
    if let Ok(()) | Err(BackendError::NotDurable(_)) = stored {
        refused.forget(id);
        note_for_figures(mill, id, &kind, failed, &ended);
    }
    report(mill, id, stored, ended, None);
}

/// Ends an attempt that did not complete its job.
#[cold]
fn fail(
    mill: &Mill,
    claim: &mut dyn Claim,
    id: &JobId,
    kind: &KindOptions,
    failure: Failure,
    followed: Followed,
    ran: &Ran<'_>,
) {
    let Failure {
        mut reason,
        verdict,
    } = failure;
    truncate(&mut reason);
    let is_last = claim.attempt() > retries_of(claim, kind);
    if followed.steps.contains(&keys::of_progress(id)) {
        mill.inner.progressed.note(id);
    }
    let settlement = match verdict {
        Verdict::Cancel => {
            let kept = Followed {
                steps: followed.steps,
                ..Followed::default()
            };
            let record = Record::Cancelled {
                reason: reason.clone(),
            };
            let ended = (Some(record), Ended::Cancelled(reason));
            return end_or_die(mill, claim, id, kind, ended, kept, ran);
        }
        Verdict::Snooze(after) => Settlement::Snooze { after },
        Verdict::RateLimited(after) => {
            tracing::debug!(%id, ?after, reason, "the key of a job is held back");
            if mill.inner.limits.hold_key(id, kind.cost, claim, after) {
                return ran.snoozed(mill, id, after);
            }
            Settlement::Snooze { after }
        }
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
    if let Settlement::Dead { reason } = settlement {
        note_death(mill, claim, id, reason);
        // Before those who wait are told, which the backend does.
        ran.failed(mill, id, reason, None);
    }
    settle_quietly(claim, id, settlement);
    match settlement {
        Settlement::Snooze { after } => ran.snoozed(mill, id, after),
        Settlement::Retry { after, .. } => ran.failed(mill, id, &reason, Some(after)),
        Settlement::Dead { .. } | Settlement::Done(_) => {}
    }
}

/// Notes the death of a job of a flow before the job dies: a process that ends in between leaves a
/// job that is known to be dead, and not a flow that waits for ever.
fn note_death(mill: &Mill, claim: &dyn Claim, id: &JobId, reason: &str) {
    let outcome = || {
        let reason = reason.to_owned();
        Outcome::Record(Record::Dead {
            reason,
            told_by: None,
        })
    };
    let flow = claim.header(header::FLOW);
    let noted = again(mill, || {
        match Ending::of(mill, flow, outcome, Vec::new(), None)? {
            Some(ending) => ending.commit(mill),
            None => Ok(()),
        }
    });
    if let Err(error) = noted {
        // The backend tells of the death once more.
        tracing::warn!(%id, %error, "the death of a job of a flow could not be stored at once");
    }
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

/// Counts the end of a job that no handler has completed, and tells those who listen.
pub(crate) fn note_for_figures(mill: &Mill, id: &JobId, kind: &str, attempt: u32, how: &Ended) {
    let (count, what) = match how.clone() {
        Ended::Dead(reason) => (Count::Dead, EventKind::Dead { reason }),
        Ended::Cancelled(reason) => (Count::Cancelled, EventKind::Cancelled { reason }),
        Ended::Expired => (Count::Expired, EventKind::Expired),
        Ended::Done | Ended::Moved => return,
    };
    mill.inner.figures.count(id, kind, count);
    let events = &mill.inner.events;
    if events.is_on() {
        events.tell(mill, id, kind.into(), attempt, what);
    }
}

/// Tells those who wait for a job that it has ended.
#[inline]
pub(crate) fn tell(mill: &Mill, id: &JobId, ended: Ended) {
    if mill.inner.waiters.has_any() {
        mill.inner.waiters.end(id, ended);
    }
}
