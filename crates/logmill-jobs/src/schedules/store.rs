//! Schedules in the backend: one key each, whose version each change expects.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::plan::{Enqueued, Plan};
use super::schedule::{system_time_of, timestamp_of};
use crate::JobId;
use crate::backend::{BackendError, Changes, Due, Keep, KeyChange, KeyValue, NewJob};
use crate::enqueue::header;
use crate::keys;
use crate::mill::Mill;

/// What is stored under the id of a schedule.
pub(super) struct Found {
    pub(super) version: u64,
    /// The error says why it cannot be read.
    pub(super) plan: Result<Plan, String>,
}

impl Found {
    fn of(value: &KeyValue) -> Self {
        Self {
            version: value.version,
            plan: Plan::parse(&value.value),
        }
    }

    /// The plan; logs why it cannot be read.
    pub(super) fn readable(self, id: &str) -> Option<(Plan, u64)> {
        match self.plan {
            Ok(plan) => Some((plan, self.version)),
            Err(error) => {
                tracing::error!(id, error, "a schedule cannot be read, and does not run");
                None
            }
        }
    }
}

/// A schedule by its id.
pub(super) fn get(mill: &Mill, id: &str) -> Result<Option<Found>, BackendError> {
    let stored = mill.inner.backend.get(&keys::of_plan(id))?;
    Ok(stored.as_ref().map(Found::of))
}

/// Whether a schedule was ever stored. Does not walk over keys, as [`all`] does.
pub(super) fn has_any(mill: &Mill) -> Result<bool, BackendError> {
    Ok(mill.inner.backend.get(keys::HAS_PLANS)?.is_some())
}

/// All schedules, by id.
pub(super) fn all(mill: &Mill) -> Result<BTreeMap<String, Found>, BackendError> {
    if !has_any(mill)? {
        return Ok(BTreeMap::new());
    }
    let stored = mill.inner.backend.keys(keys::PLANS)?;
    let found = stored.iter().filter_map(|(key, value)| {
        let id = std::str::from_utf8(key.strip_prefix(keys::PLANS)?).ok()?;
        Some((id.to_owned(), Found::of(value)))
    });
    Ok(found.collect())
}

/// Stores a plan in place of the version that is expected, together with a job of it if a tick is
/// given. Returns the number of that job, if it has one by then.
pub(super) fn put(
    mill: &Mill,
    id: &str,
    expected: Option<u64>,
    plan: &Plan,
    tick: Option<Timestamp>,
) -> Result<Option<u64>, BackendError> {
    let (key, value) = (keys::of_plan(id), bytes_of(plan)?);
    let mut changes = Changes {
        keys: vec![
            KeyChange::Expect(&key, expected),
            KeyChange::Put(&key, &value, Keep::Forever),
        ],
        sync: plan.state.sync,
        ..Changes::default()
    };
    if expected.is_none() {
        let has_plans = KeyChange::Put(keys::HAS_PLANS, b"", Keep::Forever);
        changes.keys.push(has_plans);
    }
    let by = tick.map(|tick| header_of(id, tick));
    let mut job = plan.job.clone();
    job.stamp(mill);
    let mut headers = job.headers();
    if let Some((tick, by)) = tick.zip(by.as_ref()) {
        headers.push((header::SCHEDULE, by));
        let new = NewJob {
            due: due_of(mill, id, plan, tick),
            sync: plan.state.sync,
            ..job.new_job(&headers)
        };
        changes.jobs.push((&job.place, new));
    }
    Ok(commit(mill, id, &changes)?.first().copied().flatten())
}

/// Removes a schedule.
pub(super) fn remove(mill: &Mill, id: &str, version: u64) -> Result<(), BackendError> {
    let key = keys::of_plan(id);
    let keys = vec![
        KeyChange::Expect(&key, Some(version)),
        KeyChange::Remove(&key),
    ];
    let changes = Changes {
        keys,
        ..Changes::default()
    };
    commit(mill, id, &changes).map(|_| ())
}

fn commit(mill: &Mill, id: &str, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
    // A backend may still take changes of keys when its queues are closed.
    if mill.inner.is_closed() {
        return Err(BackendError::Closed);
    }
    let committed = mill.inner.commit(changes);
    // Also after an error: what may not survive a power cut has changed.
    mill.inner.schedules.refresh(mill, id);
    committed
}

fn bytes_of(plan: &Plan) -> Result<Vec<u8>, BackendError> {
    plan.to_bytes()
        .map_err(|error| BackendError::Storage(error.into()))
}

/// When the job of a tick may begin.
fn due_of(mill: &Mill, id: &str, plan: &Plan, tick: Timestamp) -> Due {
    let jitter = plan.schedule.jitter_of(id, tick);
    // A run between ticks may be named by a time that is to come, and begins now all the same.
    let tick = tick.min(timestamp_of(mill.inner.clock.wall()));
    // Delays count from the tick, however late it is.
    match plan.job.due {
        Due::Now if jitter.is_zero() => Due::Now,
        Due::After(delay) => due_after(tick, delay.saturating_add(jitter)),
        Due::Now | Due::At(_) => due_after(tick, jitter),
    }
}

fn due_after(tick: Timestamp, delay: Duration) -> Due {
    let due = system_time_of(tick).and_then(|tick| tick.checked_add(delay));
    due.map_or(Due::After(delay), Due::At)
}

/// The header that names a schedule and a tick: nanoseconds since the epoch, and the id.
fn header_of(id: &str, tick: Timestamp) -> Vec<u8> {
    [&tick.as_nanosecond().to_le_bytes()[..], id.as_bytes()].concat()
}

/// The schedule and the tick that a header names.
pub(crate) fn parse_header(header: &[u8]) -> Option<(&str, SystemTime)> {
    let (tick, id) = header.split_first_chunk::<16>()?;
    let tick = Timestamp::from_nanosecond(i128::from_le_bytes(*tick)).ok()?;
    Some((std::str::from_utf8(id).ok()?, system_time_of(tick)?))
}

/// Whether a job of a schedule has not ended.
pub(super) fn is_there(mill: &Mill, id: &str, job: &Enqueued) -> Result<bool, BackendError> {
    let Some(queue) = mill.inner.existing_queue(&job.place)? else {
        return Ok(false);
    };
    if let Some(number) = job.number {
        if queue.queue.contains(number)? {
            return Ok(true);
        }
        // It may have been edited.
        let id = JobId::new(queue.name.clone(), number);
        let id = mill.current_id(&id)?;
        let queue = mill.inner.existing_queue(id.place())?;
        return queue.map_or(Ok(false), |queue| queue.queue.contains(id.number()));
    }
    // The process died before it had noted the number, so the job is looked for.
    let header = header_of(id, job.tick);
    let mut is_there = false;
    queue.queue.each(0, &mut |seen| {
        let mut headers = seen.headers.iter();
        is_there = headers.any(|(key, value)| key == header::SCHEDULE && *value == header);
        !is_there
    })?;
    Ok(is_there)
}

/// Notes the number of the job of a tick. If that fails, the job is looked for when it is needed.
pub(super) fn note_number(mill: &Mill, id: &str, tick: Timestamp, number: u64) {
    let noted = get(mill, id).and_then(|found| {
        let Some((mut plan, version)) = found.and_then(|found| found.readable(id)) else {
            return Ok(());
        };
        let jobs = &mut plan.state.jobs;
        let Some(job) = jobs.iter_mut().find(|job| job.tick == tick) else {
            return Ok(());
        };
        job.number = Some(number);
        put(mill, id, Some(version), &plan, None).map(|_| ())
    });
    if let Err(error) = noted {
        tracing::debug!(id, %error, "the number of a scheduled job could not be noted");
    }
}
