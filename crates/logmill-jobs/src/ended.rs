//! Jobs that end without a handler's completion, as the backend tells: what follows from that is stored,
//! counted and told.

use crate::JobId;
use crate::again::again;
use crate::backend::{self, BackendError, Changes, End, KeyChange};
use crate::cancelling;
use crate::flow::{Ending, Outcome};
use crate::keys::{self, Record};
use crate::limits::Subject;
use crate::mill::Mill;
use crate::retention::NewRecord;
use crate::settle::{note_for_figures, release, tell};
use crate::unique::Release;
use crate::waiters::Ended;

/// Stores what follows from the end of a job that no handler has completed.
pub(crate) fn ended_otherwise(mill: &Mill, ended: &backend::Ended<'_>) {
    let id = JobId::new(ended.queue, ended.number);
    let job = Subject {
        queue: id.queue(),
        kind: ended.kind,
        key: ended.key,
    };
    if mill.inner.before.moves.has_moved(&id) {
        // Its new record has its key, and who waits follows it.
        mill.inner.cancelling.forget(&id);
        mill.inner.limits.forget(&id, &job);
        mill.inner.refused.forget(&id);
        return tell(mill, &id, Ended::Moved);
    }
    let (record, told) = match ended.how {
        End::Dead(reason) => {
            let reason = reason.to_owned();
            (
                Record::Dead {
                    reason: reason.clone(),
                    told_by: Some(mill.inner.identity),
                },
                Ended::Dead(reason),
            )
        }
        End::Cancelled => {
            let reason = mill.inner.cancelling.reason_of(&id);
            let told = || cancelling::told_by_others(mill, &id).ok().flatten();
            let reason = reason.or_else(told).unwrap_or_default();
            (
                Record::Cancelled {
                    reason: reason.clone(),
                },
                Ended::Cancelled(reason),
            )
        }
    };
    let noted = again(mill, || note_end(mill, &id, ended, &record));
    // Before those who wait are told, and after the record is there: who finds neither the job nor this
    // looks for the record.
    mill.inner.cancelling.forget(&id);
    match ended.how {
        End::Cancelled => mill.inner.limits.forget(&id, &job),
        // It was not waiting for a limit: a worker had it, or was about to get it.
        End::Dead(_) => mill.inner.limits.forget_grant(&id),
    }
    mill.inner.refused.forget(&id);
    mill.inner.progressed.forget(&id);
    note_for_figures(mill, &id, ended.kind, ended.attempt, &told);
    tell(mill, &id, told);
    // Last, as a subscriber may panic.
    if let Err(error) = noted {
        tracing::warn!(%id, %error, "the end of a job could not be stored");
    }
}

/// Stores the record of a job that has ended, and releases its key.
fn note_end(
    mill: &Mill,
    id: &JobId,
    ended: &backend::Ended<'_>,
    record: &Record,
) -> Result<(), BackendError> {
    let (bytes, progress) = (record.to_bytes(), keys::of_progress(id));
    let has_died = matches!(ended.how, End::Dead(_));
    let released = Release::of(mill, ended.kind, ended.unique, has_died)?;
    let outcome = || Outcome::Record(record.clone());
    let ending = Ending::of(mill, ended.flow, outcome, Vec::new(), released.as_ref())?;
    let has_progress = mill.inner.backend.get(&progress)?.is_some();
    let record = NewRecord::new(mill, id, bytes, mill.inner.keep_results);
    let mut changes = Changes::default();
    changes.keys.extend(record.changes());
    if has_progress {
        changes.keys.push(KeyChange::Remove(&progress));
    }
    if let Some(ending) = &ending {
        ending.add_to(&mut changes);
    }
    let jobs = ending.iter().flat_map(|ending| &ending.jobs);
    let jobs: Vec<_> = jobs.map(|job| (job, job.headers())).collect();
    for (job, headers) in &jobs {
        changes.jobs.push((&job.place, job.new_job(headers)));
    }
    let kept = released.as_ref().map(Release::headers).unwrap_or_default();
    if let Some(released) = &released {
        released.add_to(&mut changes, &kept);
    }
    let stored = mill.inner.commit(&changes);
    drop(changes);
    drop((kept, jobs));
    release(released, &stored);
    let stored = stored.map(|_| ());
    record.settled(mill, id, &stored);
    if let Some(ending) = ending {
        ending.told_if(mill, &stored);
    }
    stored
}
