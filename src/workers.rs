//! The worker pool: threads that run a handler for each job.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::{Failure, Job, Sequence};

/// Builds a pool of workers; from [`Queue::workers`](crate::Queue::workers).
#[must_use = "call `run` to start the workers"]
pub struct WorkersBuilder {
    running: Arc<Running>,
    threads: usize,
    name: String,
    pin: bool,
}

/// A worker that runs no job.
const IDLE: u64 = u64::MAX;

struct Pool {
    stopping: AtomicBool,
    /// The job that each worker is running.
    current: Box<[CachePadded<AtomicU64>]>,
    /// Workers that have not ended.
    alive: Mutex<usize>,
    ended: Condvar,
}

impl WorkersBuilder {
    pub(crate) fn new(running: Arc<Running>, threads: usize) -> Self {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        Self {
            running,
            threads: if threads == 0 { cores() } else { threads },
            name: "logmill-worker".to_owned(),
            pin: false,
        }
    }

    /// What the threads are called; a number is added. Default: `logmill-worker`.
    pub fn thread_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Pins each thread to one of the cores that the process may use, in turn. Default: no. A
    /// thread that cannot be pinned runs unpinned, and a warning is logged.
    pub fn pin_to_cores(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// Starts the threads. Each runs `handler` for one job at a time: `Ok` acks the job, an error
    /// fails the attempt, see [`Failure`]; so does a panic, with its message as the reason.
    ///
    /// # Errors
    /// A thread could not be started; those that had been are stopped again.
    pub fn run<E: Into<Failure>>(
        self,
        handler: impl Fn(&Job<'_>) -> Result<(), E> + Send + Sync + 'static,
    ) -> io::Result<Workers> {
        let pool = Arc::new(Pool {
            stopping: AtomicBool::new(false),
            current: (0..self.threads)
                .map(|_| CachePadded::new(AtomicU64::new(IDLE)))
                .collect(),
            alive: Mutex::new(0),
            ended: Condvar::new(),
        });
        // Dropping it on an error stops the threads that were started.
        let workers = Workers {
            pool: Arc::clone(&pool),
            running: Arc::clone(&self.running),
        };
        let cores = if self.pin { usable_cores() } else { Vec::new() };
        let handler = Arc::new(handler);
        for at in 0..self.threads {
            let core = (!cores.is_empty()).then(|| cores[at % cores.len()]);
            let source = Source::new(Arc::clone(&self.running));
            let worker = Worker {
                running: Arc::clone(&self.running),
                pool: Alive::new(Arc::clone(&pool)),
                at,
            };
            let handler = Arc::clone(&handler);
            thread::Builder::new()
                .name(format!("{}-{at}", self.name))
                .spawn(move || {
                    if let Some(core) = core {
                        pin_to(core);
                    }
                    worker.run(&source, &*handler);
                    // Before the worker counts as ended, so that its jobs are back by then.
                    drop(source);
                    drop(worker);
                })?;
        }
        Ok(workers)
    }
}

/// Counts a worker from before its thread starts until it has ended, however it does.
struct Alive(Arc<Pool>);

impl Alive {
    fn new(pool: Arc<Pool>) -> Self {
        *pool.alive.lock() += 1;
        Self(pool)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        *self.0.alive.lock() -= 1;
        self.0.ended.notify_all();
    }
}

struct Worker {
    running: Arc<Running>,
    pool: Alive,
    at: usize,
}

impl Worker {
    fn run<E: Into<Failure>>(
        &self,
        source: &Source<Arc<Running>>,
        handler: &impl Fn(&Job<'_>) -> Result<(), E>,
    ) {
        let pool = &*self.pool.0;
        let current = &pool.current[self.at];
        // Relaxed: whoever stops the pool or closes the queue wakes this thread through a lock.
        let stopped = || pool.stopping.load(Ordering::Relaxed) || self.running.is_closed();
        while let Some(lease) = source.next(|| None, stopped) {
            let Some(job) = Job::begin(&self.running, lease) else {
                continue;
            };
            // Relaxed: read for reports only.
            current.store(job.sequence().get(), Ordering::Relaxed);
            // What a handler leaves broken by a panic is the handler's own; the job is whole.
            match catch_unwind(AssertUnwindSafe(|| handler(&job))) {
                Ok(Ok(())) => job.ack(),
                Ok(Err(error)) => job.fail(error.into()),
                Err(panic) => job.retry(panic_message(&*panic)),
            }
            current.store(IDLE, Ordering::Relaxed);
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    if let Some(message) = panic.downcast_ref::<&str>() {
        message
    } else if let Some(message) = panic.downcast_ref::<String>() {
        message
    } else {
        "the handler panicked"
    }
}

fn usable_cores() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&core| set.is_set(core))
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "workers are not pinned: the usable cores are unknown");
            Vec::new()
        }
    }
}

fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "a worker is not pinned");
    }
}

/// A running pool. Dropping it stops the workers after the jobs they are running, without
/// waiting for that; [`shutdown`](Self::shutdown) waits and reports.
#[must_use = "dropping the pool stops it"]
pub struct Workers {
    pool: Arc<Pool>,
    running: Arc<Running>,
}

/// How a pool ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Every worker has ended.
    pub finished_in_time: bool,
    /// Jobs that were still running at the deadline. Their threads go on and settle them if they
    /// ever end; if the process ends first, these jobs are delivered again by the next one.
    pub still_running: Vec<Sequence>,
}

impl Workers {
    /// Stops the pool: no job is begun any more, running jobs have up to `deadline` to finish, and
    /// jobs that were claimed and not begun are back in the queue for other consumers.
    pub fn shutdown(self, deadline: Duration) -> ShutdownReport {
        self.stop();
        let until = Instant::now().checked_add(deadline);
        let mut alive = self.pool.alive.lock();
        while *alive > 0 {
            match until {
                Some(until) => {
                    if self.pool.ended.wait_until(&mut alive, until).timed_out() {
                        break;
                    }
                }
                None => self.pool.ended.wait(&mut alive),
            }
        }
        let finished_in_time = *alive == 0;
        drop(alive);
        // A worker between two jobs at the deadline shows none, and is about to end.
        let still_running = self
            .pool
            .current
            .iter()
            .map(|current| current.load(Ordering::Relaxed))
            .filter(|&current| !finished_in_time && current != IDLE)
            .map(Sequence::new)
            .collect();
        ShutdownReport {
            finished_in_time,
            still_running,
        }
    }

    fn stop(&self) {
        self.pool.stopping.store(true, Ordering::Relaxed);
        self.running.dispatch().sleepers.notify_all();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("threads", &self.pool.current.len())
            .finish_non_exhaustive()
    }
}
