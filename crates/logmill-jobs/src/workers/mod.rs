//! Workers: the handlers of an application, and the threads and tasks that run them.

mod chunks;
mod concurrency;
#[cfg(feature = "testing")]
mod inline;
mod leases;
mod numbers;
mod pool;
mod scale;
mod seat;
mod served;
mod start;
#[cfg(feature = "tokio")]
mod task;
mod thread;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::chunks::ChunkOptions;
pub use self::concurrency::PoolHealth;
#[cfg(feature = "testing")]
pub(crate) use self::inline::Inline;
#[cfg(all(feature = "testing", feature = "tokio"))]
pub(crate) use self::inline::wait_for;
pub(crate) use self::pool::Pools;
pub use self::pool::{Pool, ShutdownReport};
pub use self::scale::Scale;
pub use self::watch::StuckJob;
use crate::Job;
use crate::backend::Choice;
use crate::handler::{Handler, Route, SyncRoute};
use crate::middleware::Middleware;

/// The handlers of an application, to be started on a mill.
///
/// Each handler takes the jobs of one kind. A pool serves the queues of its kinds; others can be
/// named by [`queue`](Self::queue).
///
/// ```
/// use logmill_jobs::{Job, JobResult, Mill, State, Workers, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "resize", queue = "images")]
/// struct Resize {
///     image: u64,
/// }
///
/// #[derive(Clone)]
/// struct Studio;
///
/// fn resize(job: Resize, State(_studio): State<Studio>) -> JobResult {
///     println!("resizing {}", job.image);
///     Ok(())
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let pool = Workers::new(Studio).on(resize).threads(4).start(&mill)?;
/// mill.enqueue(Resize { image: 7 })?.wait()?;
///
/// let report = pool.shutdown(secs(30));
/// assert!(report.finished_in_time);
/// # Ok(())
/// # }
/// ```
#[must_use = "workers run once they are started"]
pub struct Workers<S> {
    state: S,
    routes: Vec<Arc<dyn Route<S>>>,
    threads: Option<usize>,
    scale: Option<Scale>,
    tasks: usize,
    has_blocking: bool,
    #[cfg_attr(not(feature = "tokio"), expect(dead_code))]
    has_async: bool,
    name: String,
    is_dynamic: bool,
    /// Queues with their weights, beside those of the kinds.
    queues: BTreeMap<String, u32>,
    choice: Choice,
    middleware: Vec<Arc<dyn Middleware>>,
}

/// Async handlers that run at the same time by default.
const TASKS: usize = 100;
impl<S: Clone + Send + Sync + 'static> Workers<S> {
    /// Workers of an application with this state, which handlers take as
    /// [`State`](crate::State).
    pub fn new(state: S) -> Self {
        Self {
            state,
            routes: Vec::new(),
            threads: None,
            scale: None,
            tasks: TASKS,
            has_blocking: false,
            has_async: false,
            name: "jobs".to_owned(),
            is_dynamic: false,
            queues: BTreeMap::new(),
            choice: Choice::Weight,
            middleware: Vec::new(),
        }
    }

    /// Registers a handler, which runs on a thread of the pool.
    pub fn on<J, M, H>(mut self, handler: H) -> Self
    where
        J: Job,
        M: 'static,
        H: Handler<J, S, M>,
    {
        let route = SyncRoute::<J, H, M>::new(handler);
        self.has_blocking = true;
        self.routes.push(Arc::new(route));
        self
    }

    /// Registers an async handler, which runs as a task of the tokio runtime in which the workers
    /// are started.
    #[cfg(feature = "tokio")]
    pub fn on_async<J, M, H>(mut self, handler: H) -> Self
    where
        J: Job,
        M: 'static,
        H: crate::handler::AsyncHandler<J, S, M>,
    {
        let route = crate::handler::AsyncRoute::<J, H, M>::new(handler);
        self.has_async = true;
        self.routes.push(Arc::new(route));
        self
    }

    /// Registers a service of `tower`, so that layers can be put around a handler.
    ///
    /// Its attempts are those of an async handler. Each one clones the service, waits until the clone
    /// is ready, calls it, and drops it. An attempt that waits counts among the [`tasks`](Self::tasks),
    /// and the kind's timeout covers the wait. A service keeps what it needs of the application itself.
    /// One that takes requests of several types is registered once for each:
    /// `on_service::<Fetch, _>(service.clone())`.
    ///
    /// ```
    /// use logmill_jobs::{Job, JobRequest, JobResult, Mill, Workers, secs};
    /// use serde::{Deserialize, Serialize};
    /// use tower::ServiceBuilder;
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "fetch", output = u16)]
    /// struct Fetch {
    ///     url: String,
    /// }
    ///
    /// async fn fetch(request: JobRequest<Fetch>) -> JobResult<u16> {
    ///     println!("{} at attempt {}", request.job.url, request.context.attempt());
    ///     Ok(200)
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// let service = ServiceBuilder::new().concurrency_limit(20).timeout(secs(10)).service_fn(fetch);
    /// let pool = Workers::new(()).on_service(service).start(&mill)?;
    /// let handle = mill.enqueue(Fetch { url: "https://example.com".to_owned() })?;
    /// assert_eq!(handle.wait_async().await?, 200);
    /// # drop(pool);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tower")]
    pub fn on_service<J, T>(self, service: T) -> Self
    where
        J: Job,
        T: tower_service::Service<crate::JobRequest<J>, Response = J::Output>
            + Clone
            + Send
            + Sync
            + 'static,
        T::Error: Into<crate::Failure>,
        T::Future: Send + 'static,
    {
        use crate::handler::{OfService, ServiceHandler};
        self.on_async::<J, OfService, _>(ServiceHandler(service))
    }

    /// Sets how many threads take jobs, and run those of handlers that are not async: how many of
    /// these run at the same time.
    ///
    /// Default: one for each core; one if all handlers are async.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// Has the number of threads follow the load: the pool grows while its threads are busy and its
    /// queues would take longer to drain than [`Scale::drain_within`] says, to at most twice as many in
    /// a second; and shrinks in small steps when fewer threads have been enough for a minute.
    ///
    /// It starts with the lower bound, or with [`threads`](Self::threads) within the bounds. Each change
    /// is logged with its reason. [`Pool::set_threads`] fixes the number until
    /// [`Pool::reset_concurrency`]; with [`dynamic`](Self::dynamic), so does a number that is stored.
    ///
    /// All queues that the pool serves count, together. Jobs that wait for a limit or the end of a pause
    /// do not have it grow, as more threads would not get them done. The jobs of async handlers end
    /// faster than threads tell, so give those workers of their own. Tasks are not scaled: one that does
    /// not run costs nothing.
    pub fn scale(mut self, scale: Scale) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Sets how many async handlers run at the same time.
    ///
    /// While so many run, no job is taken, also none of a blocking handler: where both kinds of
    /// handlers are busy, give them queues and workers of their own. Default: 100.
    pub fn tasks(mut self, tasks: usize) -> Self {
        self.tasks = tasks.max(1);
        self
    }

    /// Serves a queue with this weight: its share of the turns while several queues have jobs.
    ///
    /// The queues of the kinds are served with weight 1 if they are not named here.
    pub fn queue(mut self, queue: impl Into<String>, weight: u32) -> Self {
        self.queues.insert(queue.into(), weight.max(1));
        self
    }

    /// Serves the queues strictly: one with a lower weight gets a turn only while those with higher
    /// weights have no jobs.
    pub fn strictly(mut self) -> Self {
        self.choice = Choice::Priority;
        self
    }

    /// Sets the name of the pool and its threads. Default: `jobs`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Keeps what [`Pool::set_threads`] and [`Pool::set_tasks`] set across restarts, under the pool's
    /// name: an operator's change outlives a deploy. [`threads`](Self::threads) and
    /// [`tasks`](Self::tasks) say what a pool starts with for which nothing was set.
    ///
    /// ```
    /// # use logmill_jobs::{Job, JobResult, Mill, Workers, secs};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Serialize, Deserialize, Job)]
    /// # #[job(kind = "resize")]
    /// # struct Resize;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// let workers = || Workers::new(()).on(|_: Resize| JobResult::Ok(())).name("images");
    /// let pool = workers().threads(2).dynamic().start(&mill)?;
    /// pool.set_threads(6)?;
    /// # let _ = pool.shutdown(secs(30));
    ///
    /// // After a restart:
    /// let pool = workers().threads(2).dynamic().start(&mill)?;
    /// assert_eq!(pool.health().wanted_threads, 6);
    /// # let _ = pool.shutdown(secs(30));
    /// # Ok(())
    /// # }
    /// ```
    pub fn dynamic(mut self) -> Self {
        self.is_dynamic = true;
        self
    }

    /// Runs code of the application around each attempt. The first one that was added is the outermost.
    pub fn with(mut self, middleware: impl Middleware) -> Self {
        self.middleware.push(Arc::new(middleware));
        self
    }
}

impl<S> std::fmt::Debug for Workers<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("handlers", &self.routes.len())
            .field("threads", &self.threads)
            .field("scale", &self.scale)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
