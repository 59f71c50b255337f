//! The thread that enqueues the jobs of schedules: one for each mill that has schedules.
//!
//! It knows the next tick of each schedule, sleeps until the first of them, and is woken by changes. What
//! it knows is a copy: each tick begins with what the backend has, and is one transaction that expects
//! just that. So a tick is enqueued once, whoever else looks at it, and whenever the process dies.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::{Condvar, Mutex, ReentrantMutex};

use super::plan::{Enqueued, Plan};
use super::schedule::timestamp_of;
use super::store;
use crate::backend::BackendError;
use crate::clock::Advances;
use crate::mill::{Inner, Mill};
use crate::user_code;

/// It looks at the clock at least this often, in case that has been set.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);
/// The delay after the first failure of a tick; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// The most jobs of a schedule that are watched for their end.
const MOST_WATCHED: usize = 64;

/// What the thread knows, shared with those who change schedules.
#[derive(Default)]
pub(crate) struct Schedules {
    state: Mutex<Known>,
    changed: Condvar,
    advances: OnceLock<Advances>,
    /// Held while ticks are enqueued, so that once a manual clock was advanced, all of them are, also
    /// those that the thread came to first. Reentrant, as the backend calls subscribers.
    working: ReentrantMutex<()>,
}

#[derive(Default)]
struct Known {
    /// The next tick of each schedule that has one.
    by_id: HashMap<Arc<str>, Timestamp>,
    by_time: BTreeSet<(Timestamp, Arc<str>)>,
    /// Schedules whose last tick failed.
    failed: HashMap<Arc<str>, Failed>,
    /// When all schedules are to be read from the backend. None: when something says so.
    reads_at: Option<Instant>,
    runs: bool,
    is_stopped: bool,
}

/// A tick that could not be stored.
struct Failed {
    /// When it is tried again; None while it is.
    at: Option<Instant>,
    times: u32,
}

impl Known {
    fn set(&mut self, id: &str, next: Option<Timestamp>) {
        if let Some((id, former)) = self.by_id.remove_entry(id) {
            self.by_time.remove(&(former, id));
        }
        let Some(next) = next else {
            self.failed.remove(id);
            return;
        };
        let id: Arc<str> = id.into();
        self.by_id.insert(Arc::clone(&id), next);
        self.by_time.insert((next, id));
    }

    /// How long the thread sleeps.
    fn sleep(&self, now: Instant, wall: Timestamp) -> Duration {
        let next = self
            .by_time
            .first()
            .map(|(next, _)| wall.duration_until(*next));
        // A negative time is none.
        let next = next.map(|time| Duration::try_from(time).unwrap_or_default());
        let instants = self.failed.values().filter_map(|failed| failed.at);
        let instants = instants.chain(self.reads_at);
        let others = instants.map(|at| at.saturating_duration_since(now));
        others
            .chain(next)
            .min()
            .unwrap_or(LONGEST_SLEEP)
            .min(LONGEST_SLEEP)
    }
}

impl Schedules {
    /// Starts the thread, which reads all schedules first, unless it runs.
    pub(super) fn start(self: &Arc<Self>, mill: &Mill) -> std::io::Result<()> {
        let mut state = self.state.lock();
        if state.runs || state.is_stopped {
            return Ok(());
        }
        let clock = mill.inner.clock.clone();
        state.reads_at = Some(clock.now());
        let (schedules, mill) = (Arc::clone(self), Arc::downgrade(&mill.inner));
        // Who advances a manual clock does the thread's work; a tick that both come to is done once.
        let advanced = (Arc::downgrade(self), Weak::clone(&mill));
        let advances = clock.on_advance(move || {
            if let (Some(schedules), Some(inner)) = (advanced.0.upgrade(), advanced.1.upgrade()) {
                schedules.work(&Mill { inner });
            }
        });
        let _ = self.advances.set(advances);
        if !clock.is_stepped() {
            let thread = std::thread::Builder::new().name("jobs-schedules".to_owned());
            thread.spawn(move || schedules.run(&mill))?;
        }
        state.runs = true;
        Ok(())
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.changed.notify_all();
    }

    fn run(&self, mill: &Weak<Inner>) {
        loop {
            // Held only while it looks, so that the thread keeps no mill open.
            let Some(inner) = mill.upgrade() else {
                return;
            };
            let clock = inner.clock.clone();
            let mill = Mill { inner };
            let worked = user_code::call(|| self.work(&mill));
            drop(mill);
            let mut state = self.state.lock();
            if state.is_stopped {
                return;
            }
            let sleep = match worked {
                Ok(()) => state.sleep(clock.now(), timestamp_of(clock.wall())),
                Err(panic) => {
                    tracing::error!(panic, "schedules were interrupted by a panic");
                    FIRST_RETRY
                }
            };
            if !sleep.is_zero() {
                self.changed.wait_for(&mut state, sleep);
            }
        }
    }

    /// Enqueues what is due.
    fn work(&self, mill: &Mill) {
        let _working = self.working.lock();
        let now = mill.inner.clock.now();
        let reads = self.state.lock().reads_at.is_some_and(|at| at <= now);
        if reads && let Err(error) = self.read(mill) {
            tracing::error!(%error, "the schedules cannot be read; trying again");
            self.state.lock().reads_at = now.checked_add(LONGEST_SLEEP);
        }
        for id in self.retries(now) {
            self.refresh(mill, &id);
        }
        while let Some(id) = self.due(mill) {
            // A panic is one of an observer of the backend.
            let ticked = user_code::call(|| tick(mill, &id));
            let ticked = ticked.unwrap_or_else(|panic| Err(BackendError::Storage(panic.into())));
            let failure = match ticked {
                // Somebody else did it, or changed the schedule.
                Ok(()) | Err(BackendError::Conflict(_)) => None,
                Err(BackendError::Closed) => return self.stop(),
                Err(error @ BackendError::NotDurable(_)) => {
                    tracing::error!(%id, %error, "a scheduled job may not be durable");
                    None
                }
                Err(error) => Some(error),
            };
            if let Some(error) = failure {
                self.fail(mill, &id, &error);
            } else {
                self.state.lock().failed.remove(&id);
                self.refresh(mill, &id);
            }
        }
    }

    /// Reads all schedules.
    fn read(&self, mill: &Mill) -> Result<(), BackendError> {
        // Shared with other processes, they change without a word.
        let again = mill
            .is_shared()
            .then(|| mill.inner.clock.now().checked_add(LONGEST_SLEEP));
        // Before they are read, so that nothing is lost of what changes meanwhile.
        self.state.lock().reads_at = again.flatten();
        let all = store::all(mill)?;
        for (id, found) in all {
            // Logs what cannot be read; all others may have changed since.
            if found.readable(&id).is_some() {
                self.refresh(mill, &id);
            }
        }
        Ok(())
    }

    /// Reads the next tick of a schedule anew: after each change of it.
    pub(super) fn refresh(&self, mill: &Mill, id: &str) {
        let mut state = self.state.lock();
        // Under the lock, so that of two who refresh, the later one reads what both have stored.
        match store::get(mill, id) {
            Ok(found) => {
                let plan = found.and_then(|found| found.plan.ok());
                state.set(id, plan.and_then(|plan| plan.state.next));
            }
            Err(error) => {
                tracing::error!(id, %error, "a schedule cannot be read; trying again");
                state.reads_at = mill.inner.clock.now().checked_add(FIRST_RETRY);
            }
        }
        self.changed.notify_all();
    }

    /// A schedule whose tick is due.
    fn due(&self, mill: &Mill) -> Option<Arc<str>> {
        let wall = timestamp_of(mill.inner.clock.wall());
        let state = self.state.lock();
        let (next, id) = state.by_time.first()?;
        (!state.is_stopped && *next <= wall).then(|| Arc::clone(id))
    }

    /// Has a tick tried again later, without holding up those of others.
    fn fail(&self, mill: &Mill, id: &Arc<str>, error: &BackendError) {
        let mut state = self.state.lock();
        let times = state.failed.get(id).map_or(0, |failed| failed.times);
        let delay = FIRST_RETRY.saturating_mul(1 << times.min(16));
        let delay = delay.min(LONGEST_RETRY);
        tracing::error!(%id, %error, ?delay, "a scheduled job could not be enqueued; trying again");
        state.set(id, None);
        let failed = Failed {
            at: mill.inner.clock.now().checked_add(delay),
            times: times.saturating_add(1),
        };
        state.failed.insert(Arc::clone(id), failed);
    }

    /// Those that are to be tried again.
    fn retries(&self, now: Instant) -> Vec<Arc<str>> {
        let mut state = self.state.lock();
        let due = state.failed.iter_mut();
        let due = due.filter(|(_, failed)| failed.at.is_some_and(|at| at <= now));
        due.map(|(id, failed)| {
            failed.at = None;
            Arc::clone(id)
        })
        .collect()
    }
}

/// Does what is due of a schedule, in one transaction.
fn tick(mill: &Mill, id: &str) -> Result<(), BackendError> {
    let Some((mut plan, version)) = store::get(mill, id)?.and_then(|found| found.readable(id))
    else {
        return Ok(());
    };
    let now = timestamp_of(mill.inner.clock.wall());
    let Some(step) = plan.step(now) else {
        return Ok(());
    };
    if let Some(due) = plan.state.next
        && step.tick != Some(due)
    {
        tracing::warn!(id, %due, "ticks of a schedule were missed and are left out");
    }
    plan.state.next = step.next;
    let Some(tick) = step.tick else {
        return store::put(mill, id, Some(version), &plan, None).map(|_| ());
    };
    if plan.schedule.definition.unless_running && still_runs(mill, id, &mut plan)? {
        plan.state.skipped += 1;
        return store::put(mill, id, Some(version), &plan, None).map(|_| ());
    }
    plan.ran(tick);
    enqueue(mill, id, version, plan, tick).map(|_| ())
}

/// Enqueues the job of a plan, in one transaction with the plan. Returns its number, if it has one.
pub(super) fn enqueue(
    mill: &Mill,
    id: &str,
    version: u64,
    mut plan: Plan,
    tick: Timestamp,
) -> Result<Option<u64>, BackendError> {
    let is_watched = plan.schedule.definition.unless_running;
    if is_watched {
        let place = plan.job.place.clone();
        plan.state.jobs.truncate(MOST_WATCHED - 1);
        plan.state.jobs.push(Enqueued {
            tick,
            place,
            number: None,
        });
    } else {
        plan.state.jobs.clear();
    }
    let number = store::put(mill, id, Some(version), &plan, Some(tick))?;
    if let Some(number) = number.filter(|_| is_watched) {
        store::note_number(mill, id, tick, number);
    }
    Ok(number)
}

/// Whether a job of the schedule has not ended. Forgets those that have.
fn still_runs(mill: &Mill, id: &str, plan: &mut Plan) -> Result<bool, BackendError> {
    let mut running = Vec::new();
    for job in plan.state.jobs.drain(..) {
        if store::is_there(mill, id, &job)? {
            running.push(job);
        }
    }
    plan.state.jobs = running;
    Ok(!plan.state.jobs.is_empty())
}

/// The time of a run between ticks.
pub(super) fn now_of(mill: &Mill, plan: &Plan) -> Timestamp {
    let now = timestamp_of(mill.inner.clock.wall());
    // No other job of the schedule has this time.
    let last = plan.state.jobs.iter().map(|job| job.tick).max();
    let nano = SignedDuration::from_nanos(1);
    let after = last.and_then(|last| last.checked_add(nano).ok());
    after.map_or(now, |after| after.max(now))
}
