//! The worker pool: threads that run a handler for each job. The threads are in `workers/thread.rs`.

mod thread;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex};

use self::thread::{Alive, One, Worker, usable_cores};
use crate::engine::Running;
use crate::engine::worker::WorkerMark;
use crate::several::{Several, Sources};
use crate::transaction::Completion;
use crate::{Failure, Job, JobId};

/// Most workers in a pool: more threads than a machine is likely to be able to run.
const MAX_WORKERS: usize = 64 * 1024;

/// Options of a worker pool, from [`Queue::workers`](crate::Queue::workers).
///
/// ```
/// use logmill::{Failure, Job, Queue};
/// # use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// let workers = queue
///     .workers(2)
///     .thread_name("mailer")
///     .run(|job: &Job<'_>| {
///         println!("sending mail {}", job.id());
///         Ok::<(), Failure>(())
///     })?;
/// # workers.shutdown(Duration::from_secs(5));
/// # Ok(())
/// # }
/// ```
#[must_use = "call `run` to start the workers"]
pub struct WorkersBuilder {
    served: Served,
    threads: usize,
    name: String,
    pin: bool,
}

/// What a pool serves.
#[derive(Clone)]
enum Served {
    One(Arc<Running>),
    Several(Several),
}

impl Served {
    fn queues(&self) -> Vec<&Running> {
        match self {
            Self::One(running) => vec![running],
            Self::Several(several) => several.queues.iter().map(|(queue, _)| &**queue).collect(),
        }
    }
}

/// Marks a worker that is not running a job.
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
    /// Workers that ended before the pool was stopped or the queue closed.
    died: usize,
}

impl Pool {
    fn new(threads: usize) -> Self {
        let idle = || CachePadded::new(AtomicU64::new(IDLE));
        Self {
            stopping: AtomicBool::new(false),
            current: (0..threads).map(|_| idle()).collect(),
            state: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// Whether the calling thread is a worker of this pool, and so runs a handler.
    fn is_own(&self) -> bool {
        WorkerMark::is_current_in(std::ptr::from_ref(self).addr())
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
        Self::of(Served::One(running), threads)
    }

    pub(crate) fn of_several(several: Several, threads: usize) -> Self {
        Self::of(Served::Several(several), threads)
    }

    fn of(served: Served, threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            served,
            threads: if threads == 0 { cores() } else { threads },
            name: "logmill-worker".to_owned(),
            pin: false,
        }
    }

    /// Sets the name of the threads; each adds its number, as in `-0`, `-1`. Default:
    /// `logmill-worker`.
    pub fn thread_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Pins each thread to one of the cores that the process may use, round robin. Default: no.
    ///
    /// A thread that cannot be pinned runs unpinned, and a warning is logged.
    pub fn pin_to_cores(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// Starts the threads.
    ///
    /// Each thread runs `handler` for one job at a time. `Ok(())` acks the job, and `Ok(transaction)`
    /// acks it [with](Job::ack_with) what follows from it, see [`Completion`]. An error fails the
    /// attempt, see [`Failure`]. A panic fails the attempt too, with the panic message as the
    /// reason.
    ///
    /// A worker ends only when the pool is stopped or the queue is closed. A panic in the `Display`
    /// or `Drop` of the handler's error does not end it either: the attempt fails in the way that
    /// the error asks for. A worker drops its references to the handler and to the queue before it
    /// counts as ended.
    ///
    /// # Errors
    /// A thread could not be started; those already started are stopped, and not waited for.
    /// `InvalidInput` if the thread name contains a NUL, or if more than 65,536 threads are asked
    /// for.
    pub fn run<C: Into<Completion>, E: Into<Failure>>(
        self,
        handler: impl Fn(&Job<'_>) -> Result<C, E> + Send + Sync + 'static,
    ) -> io::Result<Workers> {
        let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if self.name.contains('\0') {
            return invalid("the name of a worker thread must not contain a NUL");
        }
        if self.threads > MAX_WORKERS {
            return invalid("a pool has at most 65,536 workers");
        }
        let pool = Arc::new(Pool::new(self.threads));
        // If this function returns an error, dropping the pool stops the threads already started.
        let workers = Workers {
            pool: Arc::clone(&pool),
            served: self.served.clone(),
        };
        let cores = if self.pin { usable_cores() } else { Vec::new() };
        let handler = Arc::new(handler);
        for at in 0..self.threads {
            let core = (!cores.is_empty()).then(|| cores[at % cores.len()]);
            let (handler, alive) = (Arc::clone(&handler), Alive::new(Arc::clone(&pool)));
            let thread = std::thread::Builder::new().name(format!("{}-{at}", self.name));
            match &self.served {
                Served::One(running) => {
                    let feed = One::new(running);
                    Worker::new(handler, feed, &self.served, alive, at).spawn(thread, core)?;
                }
                Served::Several(several) => {
                    let feed = Sources::new(several);
                    Worker::new(handler, feed, &self.served, alive, at).spawn(thread, core)?;
                }
            }
        }
        Ok(workers)
    }
}

/// A running worker pool; dropping it stops the workers.
///
/// A drop lets each worker finish the job that it is running, and does not wait for that.
/// [`shutdown`](Self::shutdown) waits and reports.
///
/// ```
/// use logmill::{Failure, Job, Queue};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// let workers = queue.workers(2).run(|job: &Job<'_>| {
///     println!("{} bytes", job.payload().len());
///     Ok::<(), Failure>(())
/// })?;
/// queue.enqueue(b"resize cat.jpg")?;
///
/// // Running jobs get up to 30 seconds to finish.
/// let report = workers.shutdown(Duration::from_secs(30));
/// assert!(report.finished_in_time, "still running: {:?}", report.still_running);
/// queue.close()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping the pool stops it"]
pub struct Workers {
    pool: Arc<Pool>,
    served: Served,
}

/// How a pool ended, from [`Workers::shutdown`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Whether every worker ended in time and dropped its references to the handler and the queue.
    pub finished_in_time: bool,
    /// Jobs that were still running at the deadline.
    ///
    /// Their threads go on, and settle the jobs when their handlers return. If the process ends
    /// first, the next process delivers these jobs again, and counts a [crash](crate::Job::crashes)
    /// for each unless the queue was [closed](crate::Queue::close).
    pub still_running: Vec<JobId>,
    /// Workers that ended before the pool was stopped or the queue closed.
    ///
    /// Always 0 unless this library has a bug; an error event gives the details.
    pub died: usize,
}

impl Workers {
    /// Counts the workers that have not ended.
    ///
    /// This is the size of the pool until the pool is stopped or the queue is closed.
    pub fn alive(&self) -> usize {
        self.pool.state.lock().alive
    }

    /// Stops the pool and waits for its workers, up to `deadline` from now.
    ///
    /// Each worker starts at most the one job that it is just taking, and running jobs have until
    /// the deadline to finish. A worker that ends returns the jobs that it has claimed and not
    /// started to the other consumers.
    ///
    /// If all workers finished in time, none holds the handler or the queue any more: once the
    /// other handles are dropped too, the directory can be opened again. (Thread locals of the
    /// handler that hold the queue are dropped a moment later.)
    ///
    /// When one of the pool's own handlers calls this, it waits for the other workers only, and the
    /// caller's job is among those still running.
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
        // A worker that is between two jobs at the deadline shows no job, and is about to end.
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
        for queue in self.served.queues() {
            queue.wake_consumers();
        }
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
