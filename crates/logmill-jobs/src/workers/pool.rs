//! A running pool, and its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::served::Served;
use crate::JobId;
#[cfg(feature = "tokio")]
use crate::backend::Claim;
use crate::backend::Held;
use crate::error::StartError;
use crate::mill::Mill;

/// What the threads and tasks of a pool share.
pub(crate) struct Shared {
    pub(super) mill: Mill,
    pub(super) served: Served,
    pub(super) stopping: Arc<AtomicBool>,
    /// Async handlers that may run at the same time.
    max_tasks: usize,
    /// Raised when a level of one of the queues is used for the first time.
    levels: AtomicU64,
    /// What the threads run.
    seats: Box<[Seat]>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that have not ended.
    threads: usize,
    /// What runs as tasks.
    tasks: HashMap<u64, JobId>,
    /// Jobs of async handlers that were taken while as many ran as may.
    held: Vec<Box<dyn Held>>,
    /// Tasks so far.
    #[cfg(feature = "tokio")]
    begun: u64,
}

/// What a thread runs, for reports.
pub(super) struct Seat {
    /// The number of the job, or [`IDLE`].
    number: AtomicU64,
    /// The job's queue; changes seldom.
    queue: Mutex<Option<Arc<str>>>,
}

/// No job has this number.
const IDLE: u64 = u64::MAX;

/// A task of a pool, until it is dropped.
#[cfg(feature = "tokio")]
pub(super) struct Task {
    shared: Arc<Shared>,
    number: u64,
}

impl State {
    fn have_ended(&self) -> bool {
        self.threads == 0 && self.tasks.is_empty()
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
                pool.levels.fetch_add(1, Ordering::SeqCst);
                pool.served.wake(&*pool.mill.inner.backend);
            }
        }
    }
}

impl Shared {
    pub(super) fn new(
        mill: &Mill,
        served: Served,
        threads: usize,
        max_tasks: usize,
    ) -> Result<Arc<Self>, StartError> {
        let seat = || Seat {
            number: AtomicU64::new(IDLE),
            queue: Mutex::default(),
        };
        let shared = Arc::new(Self {
            mill: mill.clone(),
            served,
            stopping: Arc::default(),
            max_tasks,
            levels: AtomicU64::new(0),
            seats: (0..threads).map(|_| seat()).collect(),
            state: Mutex::default(),
            changed: Condvar::new(),
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

    pub(super) fn begin_thread(&self) {
        self.state.lock().threads += 1;
    }

    pub(super) fn seat(&self, at: usize) -> &Seat {
        &self.seats[at]
    }

    /// Begins a task for this job; holds the job if as many run as may.
    #[cfg(feature = "tokio")]
    pub(super) fn begin_task(self: &Arc<Self>, id: &JobId, claim: &mut dyn Claim) -> Option<Task> {
        let mut state = self.state.lock();
        if state.tasks.len() >= self.max_tasks {
            drop(state);
            // Another thread was faster. At most one job a thread is held here. Not under the lock: to
            // hold one that was cancelled tells of its end.
            let held = claim.hold();
            let mut state = self.state.lock();
            if state.tasks.len() >= self.max_tasks && !self.is_stopping() {
                state.held.extend(held);
                return None;
            }
            drop(state);
            drop(held);
            return None;
        }
        state.begun += 1;
        let number = state.begun;
        state.tasks.insert(number, id.clone());
        Some(Task {
            shared: Arc::clone(self),
            number,
        })
    }

    pub(super) fn end_thread(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.threads -= 1;
        if state.threads == 0 {
            self.mill.inner.pools.leave(self);
        }
        self.changed.notify_all();
    }

    /// Waits until another task may begin. Returns false if the pool stops before.
    pub(super) fn wait_for_task(&self) -> bool {
        let mut state = self.state.lock();
        while state.tasks.len() >= self.max_tasks && !self.is_stopping() {
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
        self.changed.notify_all();
        self.served.wake(&*self.mill.inner.backend);
    }
}

impl Seat {
    #[inline]
    pub(super) fn begin(&self, id: &JobId, is_other_queue: bool) {
        if is_other_queue {
            *self.queue.lock() = Some(id.place_arc());
        }
        // Relaxed, here and below: read for reports.
        self.number.store(id.number(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn end(&self) {
        self.number.store(IDLE, Ordering::Relaxed);
    }

    fn job(&self) -> Option<JobId> {
        let number = self.number.load(Ordering::Relaxed);
        let queue = self.queue.lock().clone()?;
        (number != IDLE).then(|| JobId::new(queue, number))
    }
}

#[cfg(feature = "tokio")]
impl Task {
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
        let seats = self.shared.seats.iter();
        let on_threads = seats.filter_map(Seat::job).collect::<Vec<_>>();
        ShutdownReport {
            finished_in_time: state.have_ended(),
            still_running: state.tasks.values().cloned().chain(on_threads).collect(),
        }
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
