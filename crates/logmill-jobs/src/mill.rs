//! The mill: what an application opens, enqueues to and starts workers on.

use std::cell::RefCell;
#[cfg(feature = "embedded")]
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::backend::{Backend, BackendError, Changes, Damaged, NewJob, Queue, name_of_level};
use crate::before::Before;
use crate::cancelling::Cancelling;
use crate::clock::Clock;
use crate::codec::Codec;
use crate::enqueue::Enqueue;
use crate::error::EnqueueError;
#[cfg(feature = "embedded")]
use crate::error::OpenError;
use crate::events::Hub;
use crate::figures::{Arrivals, Figures, KindLoads, Loads};
use crate::flow::Flows;
use crate::handle::JobHandle;
use crate::limits::Limits;
use crate::locks::{Locks, Once};
use crate::middleware::Hook;
#[cfg(feature = "embedded")]
use crate::options::MillBuilder;
use crate::options::MillOptions;
use crate::order::{Ordered, Orders};
use crate::parked::Parked;
use crate::progress::Progressed;
use crate::queues::OpenQueues;
use crate::refused::Refused;
use crate::retention::Retention;
use crate::running::Running;
use crate::span::TraceContext;
use crate::unique::Tickets;
use crate::waiters::Waiters;
use crate::workers::Pools;
use crate::{Job, Priority};

/// A store of typed jobs, from which workers of this process take them.
///
/// A `Mill` is a handle: clone it to share it.
///
/// ```
/// use logmill_jobs::{Job, JobResult, Mill, Workers, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "send_welcome", output = String)]
/// struct SendWelcome {
///     user_id: u64,
/// }
///
/// fn send_welcome(job: SendWelcome) -> JobResult<String> {
///     Ok(format!("mail to user {}", job.user_id))
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("jobs");
/// let mill = Mill::open(path)?;
/// let workers = Workers::new(()).on(send_welcome).start(&mill)?;
///
/// // Once this returns, the job survives the death of the process.
/// let handle = mill.enqueue(SendWelcome { user_id: 42 })?;
/// assert_eq!(handle.wait()?, "mail to user 42");
///
/// workers.shutdown(secs(30));
/// mill.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Mill {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    /// A random number that no other mill has, and none that is opened later.
    pub(crate) identity: u64,
    pub(crate) backend: Box<dyn Backend>,
    /// Whether other processes may change what is stored.
    pub(crate) is_shared: bool,
    pub(crate) codec: Codec,
    pub(crate) clock: Clock,
    pub(crate) keep_results: Duration,
    pub(crate) retention: Retention,
    /// The queues that were used, by the names that the backend knows.
    pub(crate) queues: OpenQueues,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) running: Running,
    pub(crate) cancelling: Cancelling,
    pub(crate) refused: Refused,
    pub(crate) progressed: Progressed,
    pub(crate) unique_locks: Locks,
    pub(crate) flows: Flows,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) before: Before,
    /// Whether what an earlier process had begun is finished.
    pub(crate) finished: Once,
    pub(crate) pools: Pools,
    pub(crate) parked: Parked,
    pub(crate) limits: Arc<Limits>,
    #[cfg(feature = "schedules")]
    pub(crate) schedules: Arc<crate::schedules::Schedules>,
    pub(crate) hooks: Vec<Hook>,
    pub(crate) trace_context: Option<Arc<dyn TraceContext>>,
    pub(crate) events: Arc<Hub>,
    pub(crate) figures: Figures,
    pub(crate) loads: Arc<Loads>,
    pub(crate) kind_loads: KindLoads,
    pub(crate) orders: Arc<Orders>,
    is_closed: AtomicBool,
}

/// A queue of the backend.
pub(crate) struct OpenQueue {
    pub(crate) name: Arc<str>,
    pub(crate) queue: Box<dyn Queue>,
    /// Jobs are counted there before they are stored.
    pub(crate) arrivals: Arc<Arrivals>,
}

impl OpenQueue {
    /// How many jobs were there when the queue was opened, and how many are there. 0 for both if there
    /// were none.
    pub(crate) fn found(&self) -> Result<(u64, u64), BackendError> {
        if self.arrivals.has_found_none() {
            return Ok((0, 0));
        }
        let stats = self.queue.stats()?;
        Ok((self.arrivals.found_by(&stats), stats.left()))
    }
}

thread_local! {
    /// Where jobs are encoded; taken while one is.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that is larger than this after its use is not kept.
const KEPT_BUFFER: usize = 64 * 1024;

impl Mill {
    /// Opens a mill in this directory, or creates it, with the defaults.
    ///
    /// One process has a mill open at a time.
    ///
    /// # Errors
    /// Those of [`MillBuilder::open`].
    #[cfg(feature = "embedded")]
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::builder(path).open()
    }

    /// The options for opening a mill in this directory.
    #[cfg(feature = "embedded")]
    pub fn builder(path: impl AsRef<Path>) -> MillBuilder {
        MillBuilder::new(path.as_ref())
    }

    /// A mill on a backend, which other processes may share if it
    /// [says so](crate::backend::Capabilities::is_shared).
    pub fn with_backend(backend: impl Backend, options: MillOptions) -> Self {
        let MillOptions {
            format,
            layer,
            other_layers,
            keep_results,
            max_results,
            max_result_bytes,
            limits,
            hooks,
            trace_context,
            clock,
            orders,
        } = options;
        let limits = Limits::new(limits, clock.clone());
        let orders = Orders::new(orders, clock.clone(), &limits);
        let backend: Box<dyn Backend> = match orders.is_empty() {
            true => Box::new(backend),
            false => Box::new(Ordered::new(backend, &orders)),
        };
        let is_shared = backend.capabilities().is_shared;
        let inner = Arc::new(Inner {
            identity: crate::identity::new(),
            backend,
            is_shared,
            codec: Codec::new(format, layer, other_layers),
            clock: clock.clone(),
            keep_results,
            retention: Retention::new(max_results, max_result_bytes, clock.clone()),
            queues: OpenQueues::default(),
            waiters: Waiters::new(is_shared),
            running: Running::default(),
            cancelling: Cancelling::default(),
            refused: Refused::default(),
            progressed: Progressed::default(),
            unique_locks: Locks::default(),
            flows: Flows::default(),
            tickets: Arc::default(),
            before: Before::default(),
            finished: Once::default(),
            pools: Pools::default(),
            parked: Parked::default(),
            hooks,
            trace_context,
            events: Arc::default(),
            figures: Figures::default(),
            loads: Arc::new(Loads::new(clock.clone())),
            kind_loads: KindLoads::new(clock),
            limits,
            orders,
            #[cfg(feature = "schedules")]
            schedules: Arc::default(),
            is_closed: AtomicBool::new(false),
        });
        let told = Arc::downgrade(&inner);
        inner.backend.on_end(Box::new(move |ended| {
            if let Some(inner) = told.upgrade() {
                crate::ended::ended_otherwise(&Self { inner }, ended);
            }
        }));
        let mill = Self { inner };
        #[cfg(feature = "schedules")]
        crate::schedules::open(&mill);
        mill
    }

    /// Enqueues a job with the options of its kind.
    ///
    /// Returns once the job survives the death of the process. The handle waits for the result, and
    /// can be dropped.
    ///
    /// # Errors
    /// See [`EnqueueError`]; the job is not enqueued, except after `NotDurable`.
    pub fn enqueue<J: Job>(&self, job: J) -> Result<JobHandle<J>, EnqueueError> {
        self.job(job).enqueue()
    }

    /// Options for enqueueing a job: a delay, a priority, uniqueness.
    ///
    /// ```
    /// # use logmill_jobs::{Job, Mill, Priority, secs};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, Job)]
    /// # #[job(kind = "remind")]
    /// # struct Remind;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// mill.job(Remind).after(secs(3600)).priority(Priority::Low).enqueue()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn job<J: Job>(&self, job: J) -> Enqueue<'_, J> {
        Enqueue::new(self, job)
    }

    /// Enqueues jobs of a kind with its options: in one batch, all or none; those of a unique kind one
    /// after the other, up to the first error.
    ///
    /// # Errors
    /// See [`EnqueueError`].
    pub fn enqueue_all<J: Job>(
        &self,
        jobs: impl IntoIterator<Item = J>,
    ) -> Result<Vec<JobHandle<J>>, EnqueueError> {
        crate::enqueue::all(self, jobs)
    }

    /// What was found damaged since the mill was opened: by a power cut, by a failing disk, or by
    /// whoever writes to its files. Empty nearly always; a service that finds anything here has lost jobs or
    /// results, or runs jobs again, and says so to an operator.
    ///
    /// A queue is looked at when it is first used. Each finding is also logged as an error.
    pub fn damage(&self) -> Vec<Damaged> {
        self.inner.backend.damage()
    }

    /// Whether other processes may change what is stored.
    pub(crate) fn is_shared(&self) -> bool {
        self.inner.is_shared
    }

    /// Whether both are handles of one mill.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Makes durable what was enqueued and completed before.
    ///
    /// # Errors
    /// The storage failed.
    pub fn flush(&self) -> Result<(), BackendError> {
        self.inner.backend.flush()
    }

    /// Closes the mill: what is called after that is refused, workers end, and threads that wait for
    /// results return.
    ///
    /// Shut the workers down before, so that their jobs can end.
    ///
    /// The directory stays locked until the last clone of the mill is dropped, and what was had of it:
    /// queues, handles of jobs, pools.
    ///
    /// # Errors
    /// What was done before may not be durable.
    pub fn close(self) -> Result<(), BackendError> {
        self.inner.is_closed.store(true, Ordering::SeqCst);
        self.inner.waiters.wake_all();
        self.inner.parked.release_all();
        self.inner.before.paused.release_all();
        self.inner.limits.close();
        #[cfg(feature = "schedules")]
        self.inner.schedules.stop();
        let closed = self.inner.backend.close();
        self.inner.events.close();
        closed
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.limits.close();
        #[cfg(feature = "schedules")]
        self.schedules.stop();
        self.events.close();
        self.orders.close();
    }
}

impl Inner {
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// The queue of the backend for this level of a queue.
    #[inline]
    pub(crate) fn queue(
        &self,
        queue: &str,
        priority: Priority,
    ) -> Result<Arc<OpenQueue>, BackendError> {
        match priority {
            Priority::Normal => self.backend_queue(queue),
            other => self.backend_queue(&name_of_level(queue, other)),
        }
    }

    /// A queue by the name that the backend knows, if it exists.
    pub(crate) fn existing_queue(
        &self,
        name: &str,
    ) -> Result<Option<Arc<OpenQueue>>, BackendError> {
        if let Some(open) = self.queues.get(name) {
            return Ok(Some(open));
        }
        let exists = self.backend.queue_names()?.iter().any(|one| one == name);
        exists.then(|| self.open_queue(name)).transpose()
    }

    /// A queue by the name that the backend knows.
    #[inline]
    pub(crate) fn backend_queue(&self, name: &str) -> Result<Arc<OpenQueue>, BackendError> {
        if let Some(open) = self.queues.get(name) {
            return Ok(open);
        }
        self.open_queue(name)
    }

    #[cold]
    fn open_queue(&self, name: &str) -> Result<Arc<OpenQueue>, BackendError> {
        let queue = self.backend.queue(name)?;
        // A pause of the queue concerns all of its levels.
        let level = name.split_once('.');
        let normal = level
            .map(|(queue, _)| self.existing_queue(queue))
            .transpose()?;
        let normal = normal.flatten();
        if normal
            .as_ref()
            .is_some_and(|normal| normal.queue.is_paused())
        {
            queue.set_paused(true)?;
        }
        let arrivals = self.figures.arrivals(name);
        // If it fails, the next one who asks says so.
        if let Ok(stats) = queue.stats() {
            arrivals.found_by(&stats);
        }
        let open = self.queues.add(OpenQueue {
            name: name.into(),
            queue,
            arrivals,
        });
        // Who pauses or resumes the queue does so to its normal level first, and then looks for others:
        // either finds this one there, or is seen here.
        while let Some(normal) = &normal
            && normal.queue.is_paused() != open.queue.is_paused()
        {
            open.queue.set_paused(normal.queue.is_paused())?;
        }
        if let Some((queue, _)) = level {
            self.pools.note_new_level(queue);
        }
        Ok(open)
    }

    /// Makes changes, whose jobs are counted as enqueued.
    pub(crate) fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        self.counting(&changes.jobs, || self.backend.commit(changes))
    }

    /// Stores what has these jobs, which are counted as enqueued.
    pub(crate) fn counting<T>(
        &self,
        jobs: &[(&str, NewJob<'_>)],
        store: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        if jobs.is_empty() {
            return store();
        }
        let arrivals = |place: &str| match self.queues.get(place) {
            Some(open) => Arc::clone(&open.arrivals),
            None => self.figures.arrivals(place),
        };
        crate::figures::counting_all(jobs, arrivals, store)
    }

    /// Encodes a value and passes the bytes on.
    #[inline]
    pub(crate) fn encoded<T>(
        &self,
        value: &impl serde::Serialize,
        with: impl FnOnce(&[u8]) -> Result<T, EnqueueError>,
    ) -> Result<T, EnqueueError> {
        // Serializing a value may itself enqueue a job, which finds no buffer then.
        let mut buffer = BUFFER.try_with(RefCell::take).unwrap_or_default();
        buffer.clear();
        let encoded = crate::user_code::call(|| self.codec.encode(value, &mut buffer));
        let result = match encoded {
            Ok(Ok(())) => with(&buffer),
            Ok(Err(error)) => Err(EnqueueError::Encode(error)),
            Err(panic) => Err(EnqueueError::Encode(crate::codec::CodecError::from(panic))),
        };
        if buffer.capacity() <= KEPT_BUFFER {
            let _ = BUFFER.try_with(|kept| kept.replace(buffer));
        }
        result
    }
}

impl std::fmt::Debug for Mill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mill")
            .field("capabilities", &self.inner.backend.capabilities())
            .finish_non_exhaustive()
    }
}
