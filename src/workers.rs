//! The worker pool: threads that run a handler for each job.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::dispatch::source::Source;
use crate::engine::{Running, worker};
use crate::events::event;
use crate::{Failure, Job, JobId, user_code};

/// Most workers of a pool: more threads than a machine is likely to be able to run.
const MAX_WORKERS: usize = 64 * 1024;

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
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Workers that have not ended.
    alive: usize,
    /// Workers that ended though nobody had stopped them.
    died: usize,
}

impl Pool {
    /// Whether the caller is one of its workers: then it is a handler.
    fn is_own(&self) -> bool {
        worker::Worker::is_current_in(std::ptr::from_ref(self).addr())
    }
}

impl std::fmt::Debug for WorkersBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkersBuilder")
            .field("threads", &self.threads)
            .field("name", &self.name)
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
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

    /// The name of the threads, to which `-0`, `-1` and so on are added. Default: `logmill-worker`.
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
    /// A worker ends when the pool is stopped or the queue is closed, and for no other reason. A panic in the
    /// `Display` or the `Drop` of the handler's error ends none either: the attempt has failed as the error says.
    /// Before a worker counts as ended, it has dropped its share of the handler and of the queue.
    ///
    /// # Errors
    /// A thread could not be started; those that had been are stopped again, and not waited for.
    /// `InvalidInput` if the threads' name contains a NUL, or if there are to be more than 65,536.
    pub fn run<E: Into<Failure>>(
        self,
        handler: impl Fn(&Job<'_>) -> Result<(), E> + Send + Sync + 'static,
    ) -> io::Result<Workers> {
        let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if self.name.contains('\0') {
            return invalid("the name of a worker thread must not contain a NUL");
        }
        if self.threads > MAX_WORKERS {
            return invalid("a pool has at most 65,536 workers");
        }
        let pool = Arc::new(Pool {
            stopping: AtomicBool::new(false),
            current: (0..self.threads)
                .map(|_| CachePadded::new(AtomicU64::new(IDLE)))
                .collect(),
            state: Mutex::default(),
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
            let worker = Worker {
                handler: Arc::clone(&handler),
                source: Source::new(Arc::clone(&self.running)),
                running: Arc::clone(&self.running),
                alive: Alive::new(Arc::clone(&pool)),
                at,
            };
            thread::Builder::new()
                .name(format!("{}-{at}", self.name))
                .spawn(move || {
                    if let Some(core) = core {
                        pin_to(core);
                    }
                    worker.live();
                })?;
        }
        Ok(workers)
    }
}

/// Counts a worker from before its thread starts until it has ended, however it does.
struct Alive(Arc<Pool>);

impl Alive {
    fn new(pool: Arc<Pool>) -> Self {
        pool.state.lock().alive += 1;
        Self(pool)
    }

    /// Counts it as one that died.
    fn note_death(&self, at: usize) {
        self.0.state.lock().died += 1;
        if let Some(current) = self.0.current.get(at) {
            current.store(IDLE, Ordering::Relaxed);
        }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.state.lock().alive -= 1;
        self.0.ended.notify_all();
    }
}

struct Worker<H> {
    handler: Arc<H>,
    source: Source<Arc<Running>>,
    running: Arc<Running>,
    alive: Alive,
    at: usize,
}

impl<H, E> Worker<H>
where
    H: Fn(&Job<'_>) -> Result<(), E>,
    E: Into<Failure>,
{
    /// Works until the pool is stopped or the queue is closed.
    fn live(self) {
        worker::Worker::mark(&self.running, Arc::as_ptr(&self.alive.0).addr());
        // Nothing of ours panics. If it does all the same, the others go on, and it is told.
        if let Err(panic) = user_code::call(|| self.work()) {
            event!(error, panic, "a worker has died: a bug in logmill");
            self.alive.note_death(self.at);
        }
        // By the time it counts as ended its jobs are back, and what of it can hold the queue open
        // is gone. The handler is the user's, and the rest may be what closes the queue.
        let Self {
            handler,
            source,
            running,
            alive,
            ..
        } = self;
        user_code::discard(handler);
        user_code::discard(source);
        user_code::discard(running);
        drop(alive);
    }

    fn work(&self) {
        let pool = &*self.alive.0;
        let current = &pool.current[self.at];
        // Relaxed: whoever stops the pool or closes the queue wakes this thread through a lock.
        let stopped = || pool.stopping.load(Ordering::Relaxed) || self.running.is_closed();
        while let Some(lease) = self.source.next(|| None, stopped) {
            let Some(job) = Job::begin(&self.running, lease) else {
                continue;
            };
            // Relaxed: read for reports only.
            current.store(job.id().get(), Ordering::Relaxed);
            match user_code::call(|| (self.handler)(&job).map_err(Into::into)) {
                Ok(Ok(())) => job.ack(),
                Ok(Err(failure)) => job.fail(failure),
                Err(panic) => job.retry(panic),
            }
            current.store(IDLE, Ordering::Relaxed);
        }
    }
}

fn usable_cores() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&core| set.is_set(core))
            .collect(),
        Err(error) => {
            event!(warn, %error, "workers are not pinned: the usable cores are unknown");
            Vec::new()
        }
    }
}

fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if let Err(error) = sched_setaffinity(None, &set) {
        event!(warn, core, %error, "a worker is not pinned");
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
    /// Every worker has ended, and dropped its share of the handler and of the queue.
    pub finished_in_time: bool,
    /// Jobs that were still running at the deadline. Their threads go on and settle them if they
    /// ever end. If the process ends first, the next one delivers these jobs again, and counts a
    /// [crash](crate::Job::crashes) for each unless the queue was [closed](crate::Queue::close).
    pub still_running: Vec<JobId>,
    /// Workers that ended before the pool was stopped or the queue closed. Always 0, unless this
    /// library has a bug; an error event tells more.
    pub died: usize,
}

impl Workers {
    /// Workers that have not ended: as many as were asked for, until the pool is stopped or the
    /// queue is closed.
    pub fn alive(&self) -> usize {
        self.pool.state.lock().alive
    }

    /// Stops the pool: each worker begins at most the job that it is just taking, running jobs have up to
    /// `deadline` from now to finish, and a worker that ends gives the jobs that it has claimed and not begun back
    /// to other consumers.
    ///
    /// If all finished in time, no worker holds the handler or the queue any more: once the other
    /// handles are gone too, the directory can be opened again. (Thread locals of the handler's that
    /// hold the queue are dropped a moment later.)
    ///
    /// Called by one of the pool's own handlers, it waits for the others only; the caller's job is
    /// one of those still running.
    pub fn shutdown(self, deadline: Duration) -> ShutdownReport {
        self.stop();
        let until = Instant::now().checked_add(deadline);
        let not_waited_for = usize::from(self.pool.is_own());
        let mut state = self.pool.state.lock();
        while state.alive > not_waited_for {
            match until {
                Some(until) => {
                    if self.pool.ended.wait_until(&mut state, until).timed_out() {
                        break;
                    }
                }
                None => self.pool.ended.wait(&mut state),
            }
        }
        let State { alive, died } = *state;
        drop(state);
        let finished_in_time = alive == 0;
        // A worker between two jobs at the deadline shows none, and is about to end.
        let still_running = self
            .pool
            .current
            .iter()
            .map(|current| current.load(Ordering::Relaxed))
            .filter(|&current| !finished_in_time && current != IDLE)
            .map(JobId::new)
            .collect();
        ShutdownReport {
            finished_in_time,
            still_running,
            died,
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Builder;

    #[test]
    fn a_worker_that_dies_of_a_bug_is_reported_and_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let running = Arc::new(Running::open(&builder).unwrap().0);
        let pool = Arc::new(Pool {
            stopping: AtomicBool::new(false),
            current: Box::default(),
            state: Mutex::default(),
            ended: Condvar::new(),
        });
        let worker = Worker {
            handler: Arc::new(|_: &Job<'_>| Ok::<(), Failure>(())),
            source: Source::new(Arc::clone(&running)),
            running: Arc::clone(&running),
            alive: Alive::new(Arc::clone(&pool)),
            // The bug: there is no such place.
            at: 7,
        };
        let workers = Workers { pool, running };
        assert_eq!(workers.alive(), 1);
        thread::spawn(move || worker.live()).join().unwrap();
        assert_eq!(workers.alive(), 0);
        let report = workers.shutdown(Duration::MAX);
        assert!(report.finished_in_time);
        assert_eq!((report.still_running, report.died), (vec![], 1));
        assert!(Running::open(&builder).is_ok());
    }
}
