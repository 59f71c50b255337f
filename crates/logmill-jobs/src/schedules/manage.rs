//! What applications and operators do with schedules.

use std::time::SystemTime;

use super::error::ScheduleError;
use super::plan::Plan;
use super::schedule::{Schedule, system_time_of, timestamp_of};
use super::store::{self, Found};
use super::ticker;
use crate::backend::{BackendError, Due};
use crate::enqueue::Enqueue;
use crate::error::EnqueueError;
use crate::mill::Mill;
use crate::{Job, JobId};

/// What [`Enqueue::schedule`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheduled {
    /// There was no schedule of this id.
    Created,
    /// There was one, which had another definition or another job.
    Replaced,
    /// It is there as it was.
    Unchanged,
}

/// A schedule that is stored, from [`Mill::schedule`] and [`Mill::schedules`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScheduleInfo {
    /// Its id.
    pub id: String,
    /// The kind of its job.
    pub kind: String,
    /// The queue of its job.
    pub queue: String,
    /// Its timing, such as `cron 0 3 * * * in Europe/Berlin` or `every 5m`.
    pub timing: String,
    /// The next tick. None while it is paused, and once it has ended.
    pub next_tick: Option<SystemTime>,
    /// The last tick that enqueued a job.
    pub last_tick: Option<SystemTime>,
    /// Whether it is paused.
    pub is_paused: bool,
    /// Ticks that have enqueued a job.
    pub runs: u64,
    /// Ticks that have not, as the job of an earlier one had not ended; see
    /// [`Schedule::unless_running`].
    pub skipped: u64,
}

/// The most bytes of an id.
const MOST_BYTES: usize = 200;
/// A change that meets so many others is given up.
const MOST_CONFLICTS: usize = 1000;

impl<J: Job> Enqueue<'_, J> {
    /// Stores a schedule, which enqueues the job again and again, with these options.
    ///
    /// Call it at each start of the application: a schedule of this id is replaced, and one with the
    /// same definition is left as it is. The next tick stays unless the timing has changed. A pause
    /// stays. It runs from now on, also after a restart, whether this is called again or not, until it
    /// is [removed](Mill::remove_schedule). Ticks go on while workers are busy and while jobs fail.
    ///
    /// A tick is enqueued exactly once, in one transaction with what is stored of the schedule. A delay
    /// and an expiry count from the tick and from the enqueue. With [`sync`](Self::sync), each tick
    /// survives a power cut before it counts; without it, a power cut may repeat the last ones.
    ///
    /// # Errors
    /// See [`ScheduleError`]; the schedule is as it was, except after `NotDurable` or `Thread`. A job
    /// of a unique kind, or with a fixed time, cannot be scheduled.
    pub fn schedule(
        self,
        id: impl Into<String>,
        schedule: Schedule,
    ) -> Result<Scheduled, ScheduleError> {
        let id = id.into();
        check_id(&id)?;
        schedule.check()?;
        let (mill, sync) = (self.mill, self.is_sync());
        let job = self.prepare()?;
        if let Due::At(_) = job.due {
            let why = "the job of a schedule has no fixed time; its ticks say when it begins";
            return Err(ScheduleError::Invalid(why.to_owned()));
        }
        let now = mill.inner.clock.wall();
        let new = Plan::new(schedule, job, sync, now);
        let scheduled = retried(&id, || {
            let (plan, expected, done) = match store::get(mill, &id)? {
                None => (Some(new.clone()), None, Scheduled::Created),
                Some(Found { version, plan }) => {
                    let plan = match plan {
                        Ok(old) => old.replaced_by(new.clone()),
                        Err(_) => Some(new.clone()),
                    };
                    (plan, Some(version), Scheduled::Replaced)
                }
            };
            match plan {
                None => Ok(Scheduled::Unchanged),
                Some(plan) => store::put(mill, &id, expected, &plan, None).map(|_| done),
            }
        })?;
        let schedules = &mill.inner.schedules;
        schedules.start(mill).map_err(ScheduleError::Thread)?;
        Ok(scheduled)
    }
}

impl Mill {
    /// The schedules that are stored, by id.
    ///
    /// Walks over all keys that are stored, such as results.
    ///
    /// # Errors
    /// The storage failed.
    pub fn schedules(&self) -> Result<Vec<ScheduleInfo>, BackendError> {
        let all = store::all(self)?.into_iter();
        let readable = all.filter_map(|(id, found)| Some((found.readable(&id)?.0, id)));
        Ok(readable.map(|(plan, id)| info_of(id, &plan)).collect())
    }

    /// A schedule. None if there is none of this id.
    ///
    /// # Errors
    /// The storage failed.
    pub fn schedule(&self, id: &str) -> Result<Option<ScheduleInfo>, BackendError> {
        let found = store::get(self, id)?.and_then(|found| found.readable(id));
        Ok(found.map(|(plan, _)| info_of(id.to_owned(), &plan)))
    }

    /// Pauses a schedule, also after a restart, until it is resumed. Returns whether there is one of
    /// this id.
    ///
    /// # Errors
    /// The storage failed.
    pub fn pause_schedule(&self, id: &str) -> Result<bool, BackendError> {
        self.set_schedule_paused(id, true)
    }

    /// Ends a pause. Ticks of the pause are not made up for. Returns whether there is a schedule of this
    /// id.
    ///
    /// # Errors
    /// The storage failed.
    pub fn resume_schedule(&self, id: &str) -> Result<bool, BackendError> {
        self.set_schedule_paused(id, false)
    }

    fn set_schedule_paused(&self, id: &str, is_paused: bool) -> Result<bool, BackendError> {
        self.change(id, |mut plan, version| {
            if plan.state.is_paused != is_paused {
                plan.set_paused(is_paused, timestamp_of(self.inner.clock.wall()));
                store::put(self, id, Some(version), &plan, None)?;
            }
            Ok(())
        })
        .map(|done| done.is_some())
    }

    /// Removes a schedule. Jobs that it has enqueued go on. Returns whether there was one of this id.
    ///
    /// # Errors
    /// The storage failed.
    pub fn remove_schedule(&self, id: &str) -> Result<bool, BackendError> {
        retried(id, || match store::get(self, id)? {
            Some(found) => store::remove(self, id, found.version).map(|()| true),
            None => Ok(false),
        })
    }

    /// Enqueues the job of a schedule at once, whether that is paused or not. Returns its id; None if
    /// there is no such schedule.
    ///
    /// Its ticks come as before, and it counts as none. With [`Schedule::unless_running`], they are
    /// skipped while it has not ended.
    ///
    /// # Errors
    /// The queue is full, or the storage failed.
    pub fn run_schedule_now(&self, id: &str) -> Result<Option<JobId>, EnqueueError> {
        let enqueued = self.change(id, |plan, version| {
            let (place, now) = (plan.job.place.clone(), ticker::now_of(self, &plan));
            let number = ticker::enqueue(self, id, version, plan, now)?;
            let number = number.ok_or_else(|| {
                let why = "it enters its queue once the disk has room";
                BackendError::NotDurable(why.into())
            })?;
            Ok(JobId::new(place, number))
        });
        Ok(enqueued?)
    }

    /// Changes a schedule, if there is one.
    fn change<T>(
        &self,
        id: &str,
        change: impl Fn(Plan, u64) -> Result<T, BackendError>,
    ) -> Result<Option<T>, BackendError> {
        retried(id, || {
            let found = store::get(self, id)?.and_then(|found| found.readable(id));
            found
                .map(|(plan, version)| change(plan, version))
                .transpose()
        })
    }
}

/// Tries again while somebody else changes the same schedule.
fn retried<T>(id: &str, change: impl Fn() -> Result<T, BackendError>) -> Result<T, BackendError> {
    for _ in 0..MOST_CONFLICTS {
        match change() {
            Err(BackendError::Conflict(_)) => std::thread::yield_now(),
            done => return done,
        }
    }
    Err(BackendError::Conflict(format!("of the schedule {id}")))
}

/// The queue and the kind of each schedule, by id.
pub(crate) fn kinds(mill: &Mill) -> Result<Vec<(String, String, String)>, BackendError> {
    let all = store::all(mill)?.into_iter();
    let readable = all.filter_map(|(id, found)| Some((found.readable(&id)?.0, id)));
    let kinds = readable.map(|(plan, id)| {
        let queue = queue_of(&plan);
        (queue, plan.job.kind, id)
    });
    Ok(kinds.collect())
}

fn queue_of(plan: &Plan) -> String {
    JobId::new(plan.job.place.as_str(), 0).queue().to_owned()
}

fn info_of(id: String, plan: &Plan) -> ScheduleInfo {
    ScheduleInfo {
        id,
        kind: plan.job.kind.clone(),
        queue: queue_of(plan),
        timing: plan.schedule.to_string(),
        next_tick: plan.state.next.and_then(system_time_of),
        last_tick: plan.state.last.and_then(system_time_of),
        is_paused: plan.state.is_paused,
        runs: plan.state.runs,
        skipped: plan.state.skipped,
    }
}

fn check_id(id: &str) -> Result<(), ScheduleError> {
    match matches!(id.len(), 1..=MOST_BYTES) && !id.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(ScheduleError::Id(id.to_owned())),
    }
}
