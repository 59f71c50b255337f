//! A running pool, and its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::chunks::Chunks;
use super::concurrency::{Concurrency, Spawn};
use super::leases::Leases;
use super::scale::Scaling;
use super::seat::Seat;
use super::served::Served;
use super::watch::{StuckJob, Watch};
use crate::JobId;
#[cfg(feature = "tokio")]
use crate::backend::Claim;
use crate::backend::Held;
use crate::error::StartError;
use crate::locks::Lock;
use crate::mill::Mill;

/// What the threads and tasks of a pool share.
pub(crate) struct Shared {
    pub(super) mill: Mill,
    pub(super) served: Served,
    pub(super) stopping: Arc<AtomicBool>,
    /// Raised when threads have to look at what they serve, or whether they are still wanted: a
    /// level of one of the queues is used for the first time, fewer threads are wanted.
    levels: AtomicU64,
    /// What the numbers of threads and tasks are stored as, if they are.
    pub(super) concurrency: Concurrency,
    /// Held while these numbers are set, so that what is stored last is what holds.
    pub(super) setting: Lock,
    pub(super) watch: Arc<Watch>,
    pub(super) leases: Arc<Leases>,
    pub(super) chunks: Arc<Chunks>,
    /// What sets the number of threads by the load, if something does.
    pub(super) scaling: Option<Arc<Scaling>>,
    /// What starts a thread; None once the pool stops.
    pub(super) spawn: Mutex<Option<Arc<dyn Spawn>>>,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    /// Threads that have not ended.
    pub(super) threads: usize,
    /// Threads that are about to be started. While there are any, the pool goes on.
    pub(super) starting: usize,
    /// Those of them, and those that are being started, that are not stuck and not about to leave.
    pub(super) active: usize,
    /// How many are to be active.
    pub(super) wanted: usize,
    /// Whether the load decides that.
    pub(super) is_scaling: bool,
    /// Threads so far.
    pub(super) started: usize,
    /// What the threads run.
    pub(super) seats: Vec<Arc<Seat>>,
    /// Handlers that count as stuck.
    pub(super) stuck: Vec<(Arc<Seat>, StuckJob)>,
    /// Async handlers that may run at the same time.
    pub(super) max_tasks: usize,
    /// What runs as tasks.
    pub(super) tasks: HashMap<u64, JobsOfTask>,
    /// Jobs of async handlers that were taken while as many ran as may.
    pub(super) held: Vec<Box<dyn Held>>,
    /// Tasks so far.
    #[cfg(feature = "tokio")]
    begun: u64,
}

/// What a task runs.
#[cfg_attr(not(feature = "tokio"), expect(dead_code))]
pub(super) enum JobsOfTask {
    One(JobId),
    Chunk(Vec<JobId>),
}

impl JobsOfTask {
    fn ids(&self) -> &[JobId] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Chunk(ids) => ids,
        }
    }
}

/// A task of a pool, until it is dropped.
#[cfg(feature = "tokio")]
pub(super) struct Task {
    shared: Arc<Shared>,
    number: u64,
}

impl State {
    fn have_ended(&self) -> bool {
        self.threads == 0 && self.starting == 0 && self.tasks.is_empty()
    }
}

/// The pools of a mill that run.
#[derive(Default)]
pub(crate) struct Pools {
    pools: Mutex<Vec<Arc<Shared>>>,
}

impl Pools {
    /// Enters a pool, unless another one serves one of its queues.
    fn enter(&self, new: &Arc<Shared>) -> Result<(), StartError> {
        let mut pools = self.pools.lock();
        for queue in new.served.names() {
            let others = pools.iter().flat_map(|pool| pool.served.names());
            if others.into_iter().any(|other| other == queue) {
                return Err(StartError::QueueServed(queue.to_owned()));
            }
        }
        if let Some(name) = new.concurrency.stored_as() {
            let mut others = pools.iter();
            if others.any(|pool| pool.concurrency.stored_as() == Some(name)) {
                return Err(StartError::PoolName(name.to_owned()));
            }
        }
        pools.push(Arc::clone(new));
        Ok(())
    }

    fn leave(&self, pool: &Arc<Shared>) {
        self.pools.lock().retain(|one| !Arc::ptr_eq(one, pool));
    }

    /// Whether a pool serves a queue.
    pub(crate) fn serve(&self, queue: &str) -> bool {
        let pools = self.pools.lock();
        let mut served = pools.iter().flat_map(|pool| pool.served.names());
        served.any(|served| served == queue)
    }

    /// Has the pool that serves a queue also serve this level of it.
    pub(crate) fn note_new_level(&self, queue: &str) {
        for pool in self.pools.lock().iter() {
            if pool.served.names().any(|served| served == queue) {
                pool.have_threads_look();
            }
        }
    }
}

impl Shared {
    pub(super) fn new(
        mill: &Mill,
        served: Served,
        concurrency: Concurrency,
        chunks: Chunks,
    ) -> Result<Arc<Self>, StartError> {
        let numbers = concurrency.at_start(mill)?;
        let clock = &mill.inner.clock;
        let scaling = concurrency.scale;
        let scaling = scaling.map(|scale| Scaling::new(&concurrency.name, scale, clock.clone()));
        let shared = Arc::new(Self {
            mill: mill.clone(),
            served,
            stopping: Arc::default(),
            levels: AtomicU64::new(0),
            setting: Lock::default(),
            watch: Arc::new(Watch::new(clock.clone())),
            leases: Arc::new(Leases::new(mill)),
            chunks: Arc::new(chunks),
            spawn: Mutex::default(),
            state: Mutex::new(State {
                wanted: numbers.threads.unwrap_or(concurrency.threads),
                is_scaling: scaling.is_some() && numbers.threads.is_none(),
                max_tasks: numbers.tasks,
                ..State::default()
            }),
            changed: Condvar::new(),
            concurrency,
            scaling: scaling.map(Arc::new),
        });
        mill.inner.pools.enter(&shared)?;
        Ok(shared)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A number that changes with the levels that are to be served.
    pub(super) fn levels(&self) -> u64 {
        self.levels.load(Ordering::Relaxed)
    }

    /// Has the threads look at what they serve, and whether they are still wanted.
    pub(super) fn have_threads_look(&self) {
        self.levels.fetch_add(1, Ordering::SeqCst);
        self.served.wake(&*self.mill.inner.backend);
    }

    /// Has a thread that waits look whether a chunk is due.
    pub(super) fn have_chunks_looked_at(&self) {
        // Under the lock, so that nobody goes on waiting who has looked before.
        drop(self.state.lock());
        self.changed.notify_all();
        self.served.wake(&*self.mill.inner.backend);
    }

    /// Begins a task for this job; holds the job if as many run as may.
    #[cfg(feature = "tokio")]
    pub(super) fn begin_task(self: &Arc<Self>, id: &JobId, claim: &mut dyn Claim) -> Option<Task> {
        let mut state = self.state.lock();
        if state.tasks.len() >= state.max_tasks {
            drop(state);
            // Another thread was faster. At most one job a thread is held here. Not under the lock: to
            // hold one that was cancelled tells of its end.
            let held = claim.hold();
            let mut state = self.state.lock();
            if state.tasks.len() >= state.max_tasks && !self.is_stopping() {
                state.held.extend(held);
                return None;
            }
            drop(state);
            drop(held);
            return None;
        }
        Some(self.enter_task(&mut state, JobsOfTask::One(id.clone())))
    }

    /// Begins a task for a chunk, whose jobs [`Task::runs`] names. Waits while as many run as may; None
    /// if the pool stops before.
    #[cfg(feature = "tokio")]
    pub(super) fn begin_task_of_chunk(self: &Arc<Self>) -> Option<Task> {
        let mut state = self.state.lock();
        while state.tasks.len() >= state.max_tasks && !self.is_stopping() {
            self.changed.wait(&mut state);
        }
        let is_stopping = self.is_stopping();
        (!is_stopping).then(|| self.enter_task(&mut state, JobsOfTask::Chunk(Vec::new())))
    }

    #[cfg(feature = "tokio")]
    fn enter_task(self: &Arc<Self>, state: &mut State, jobs: JobsOfTask) -> Task {
        state.begun += 1;
        let number = state.begun;
        state.tasks.insert(number, jobs);
        Task {
            shared: Arc::clone(self),
            number,
        }
    }

    pub(super) fn leave_mill(self: &Arc<Self>) {
        self.mill.inner.pools.leave(self);
    }

    /// Waits until another task may begin, or a chunk is to run. Returns false if the pool stops before.
    pub(super) fn wait_for_task(&self) -> bool {
        let mut state = self.state.lock();
        let goes_on = || !self.is_stopping() && self.chunks.call().is_none();
        while state.tasks.len() >= state.max_tasks && goes_on() {
            self.changed.wait(&mut state);
        }
        !self.is_stopping()
    }

    pub(super) fn stop(&self) {
        let held = {
            // Under the lock, so that nobody goes on waiting who has looked before.
            let mut state = self.state.lock();
            self.stopping.store(true, Ordering::SeqCst);
            std::mem::take(&mut state.held)
        };
        drop(held);
        self.chunks.close();
        self.changed.notify_all();
        self.watch.wake();
        self.stop_scaling();
        self.leases.stop();
        self.forget_spawn();
        self.served.wake(&*self.mill.inner.backend);
    }
}

#[cfg(feature = "tokio")]
impl Task {
    /// Names the jobs of its chunk.
    pub(super) fn runs(&self, ids: Vec<JobId>) {
        let mut state = self.shared.state.lock();
        state.tasks.insert(self.number, JobsOfTask::Chunk(ids));
    }

    /// Stops the pool that it is of.
    pub(super) fn stop_pool(&self) {
        self.shared.stop();
    }
}

#[cfg(feature = "tokio")]
impl Drop for Task {
    fn drop(&mut self) {
        let held = {
            let mut state = self.shared.state.lock();
            state.tasks.remove(&self.number);
            std::mem::take(&mut state.held)
        };
        self.shared.changed.notify_all();
        // They go back to their queues.
        drop(held);
    }
}

/// Workers that run, from [`Workers::start`](super::Workers::start). Dropping it stops them, without
/// waiting for the jobs that run.
#[must_use = "dropping the pool stops it"]
pub struct Pool {
    pub(super) shared: Arc<Shared>,
}

/// How a pool ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "it says whether jobs were left running"]
pub struct ShutdownReport {
    /// Whether all handlers had ended by the deadline.
    pub finished_in_time: bool,
    /// Jobs whose handlers had not. They go on, and their jobs are settled when they end; if the
    /// process ends first, the jobs come again at the next start.
    pub still_running: Vec<JobId>,
}

impl Pool {
    /// Stops taking jobs, and waits for the handlers that run, up to this long.
    ///
    /// Handlers are told at once, by [`Context::is_stopping`](crate::Context::is_stopping).
    pub fn shutdown(self, deadline: Duration) -> ShutdownReport {
        self.shared.stop();
        let until = Instant::now().checked_add(deadline);
        let mut state = self.shared.state.lock();
        while !state.have_ended() {
            match until {
                None => self.shared.changed.wait(&mut state),
                Some(until) => {
                    if self
                        .shared
                        .changed
                        .wait_until(&mut state, until)
                        .timed_out()
                    {
                        break;
                    }
                }
            }
        }
        let in_tasks = state.tasks.values().flat_map(JobsOfTask::ids);
        let mut still_running: Vec<_> = in_tasks.cloned().collect();
        for job in state.seats.iter().flat_map(|seat| seat.jobs()) {
            // A thread may be about to leave a job that it has made a task of.
            if !still_running.contains(&job) {
                still_running.push(job);
            }
        }
        let report = ShutdownReport {
            finished_in_time: state.have_ended(),
            still_running,
        };
        drop(state);
        if report.finished_in_time {
            // The last thread does so too, but perhaps only in a moment, and the caller may go on to
            // start another pool for the same queues.
            self.shared.leave_mill();
        }
        report
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Pool")
            .field("threads", &state.threads)
            .field("tasks", &state.tasks.len())
            .finish_non_exhaustive()
    }
}
