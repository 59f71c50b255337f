//! Options for opening a mill.

#[cfg(feature = "embedded")]
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "embedded")]
use crate::backend::embedded::Embedded;
use crate::clock::Clock;
use crate::codec::{Format, Layer};
#[cfg(feature = "embedded")]
use crate::error::OpenError;
use crate::limits::Limit;
use crate::middleware::{Enqueueing, Hook};
#[cfg(feature = "embedded")]
use crate::mill::Mill;
use crate::order::Order;
use crate::span::TraceContext;

/// How long an open waits for the end of another one.
#[cfg(feature = "embedded")]
const WAIT_FOR_LOCK: Duration = Duration::from_secs(1);
/// How long results are kept by default.
const KEEP_RESULTS: Duration = Duration::from_secs(86_400);
/// How many results are kept by default.
const MAX_RESULTS: usize = 100_000;
/// How many bytes of results are kept by default.
const MAX_RESULT_BYTES: u64 = 256 * 1024 * 1024;

/// Options for opening a mill, from [`Mill::builder`].
#[cfg(feature = "embedded")]
#[must_use]
pub struct MillBuilder {
    path: PathBuf,
    sync: bool,
    options: MillOptions,
}

/// Options of a mill that do not depend on its backend.
#[derive(Clone)]
#[must_use]
pub struct MillOptions {
    pub(crate) format: Format,
    pub(crate) layer: Option<Arc<dyn Layer>>,
    pub(crate) other_layers: Vec<Arc<dyn Layer>>,
    pub(crate) keep_results: Duration,
    pub(crate) max_results: usize,
    pub(crate) max_result_bytes: u64,
    pub(crate) limits: Vec<Limit>,
    pub(crate) orders: Vec<Order>,
    pub(crate) hooks: Vec<Hook>,
    pub(crate) trace_context: Option<Arc<dyn TraceContext>>,
    pub(crate) clock: Clock,
}

impl Default for MillOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl MillOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            format: Format::default(),
            layer: None,
            other_layers: Vec::new(),
            keep_results: KEEP_RESULTS,
            max_results: MAX_RESULTS,
            max_result_bytes: MAX_RESULT_BYTES,
            limits: Vec::new(),
            orders: Vec::new(),
            hooks: Vec::new(),
            trace_context: None,
            clock: Clock::default(),
        }
    }

    /// Sets the format of new jobs and results. Jobs of other formats are decoded as well.
    ///
    /// Default: JSON.
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Sets the layer that new jobs and results are wrapped in, such as a compression.
    pub fn layer(mut self, layer: impl Layer) -> Self {
        self.layer = Some(Arc::new(layer));
        self
    }

    /// Adds a layer that only unwraps: that of jobs enqueued before.
    pub fn former_layer(mut self, layer: impl Layer) -> Self {
        self.other_layers.push(Arc::new(layer));
        self
    }

    /// Adds a limit. A job runs when all limits that concern it let it.
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limits.push(limit);
        self
    }

    /// Adds a strict order within each key.
    pub fn order(mut self, order: Order) -> Self {
        self.orders.push(order);
        self
    }

    /// Sets the clock of the mill, for tests. Default: the system's.
    ///
    /// It drives the engine as well, if the mill is opened by [`MillBuilder`]. How long a call waits
    /// for a result or for the end of workers is real time.
    #[cfg(feature = "testing")]
    pub fn clock(mut self, clock: &crate::testing::ManualClock) -> Self {
        self.clock = Clock::manual(clock);
        self
    }

    /// Adds a hook that sees each job before it is stored: it may add headers, or refuse the job with
    /// a reason, which is [`EnqueueError::Refused`](crate::EnqueueError::Refused) then. A panic refuses
    /// it as well. Hooks are called in their order, on the thread that enqueues, under no lock.
    ///
    /// A job that [follows](crate::Context::then) from another is seen when the handler names it. A dead
    /// job that is replayed is not seen again.
    ///
    /// ```
    /// use logmill_jobs::{EnqueueError, Job, Mill, MillOptions};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "export")]
    /// struct Export {
    ///     rows: Vec<u64>,
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// let options = MillOptions::new().on_enqueue(|job| {
    ///     if job.payload().len() > 1000 {
    ///         return Err(format!("{} has too many arguments", job.kind()));
    ///     }
    ///     job.set_header("version", "7");
    ///     Ok(())
    /// });
    /// let mill = Mill::builder(dir.path().join("jobs")).options(options).open()?;
    /// mill.enqueue(Export { rows: vec![1, 2] })?;
    /// let refused = mill.enqueue(Export { rows: vec![7; 1000] });
    /// assert!(matches!(refused, Err(EnqueueError::Refused(_))));
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_enqueue(
        mut self,
        hook: impl Fn(&mut Enqueueing<'_>) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.push(Arc::new(hook));
        self
    }

    /// Carries traces from the code that enqueues to the handlers.
    pub fn trace_context(mut self, trace_context: impl TraceContext) -> Self {
        self.trace_context = Some(Arc::new(trace_context));
        self
    }

    /// Sets how long results are kept, and other records of how jobs ended. Default: a day.
    /// [`KindOptions::keep_results`](crate::KindOptions::keep_results) sets it for the results of a
    /// kind.
    pub fn keep_results(mut self, time: Duration) -> Self {
        self.keep_results = time;
        self
    }

    /// Sets how many results are kept, and other records of how jobs ended; at least 1. Default:
    /// 100,000.
    ///
    /// When there are more, the oldest are removed, with the next ones that are stored; those that
    /// somebody [waits](crate::JobHandle::wait) for in this moment stay. Each takes 32 bytes of memory
    /// beside its own.
    pub fn max_results(mut self, results: usize) -> Self {
        self.max_results = results;
        self
    }

    /// Sets how many bytes of results are kept, counting their keys. Default: 256 MiB.
    ///
    /// As for [`max_results`](Self::max_results). A result that is larger than that is kept until the
    /// next one is stored.
    pub fn max_result_bytes(mut self, bytes: u64) -> Self {
        self.max_result_bytes = bytes;
        self
    }
}

impl std::fmt::Debug for MillOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MillOptions")
            .field("format", &self.format)
            .field("keep_results", &self.keep_results)
            .finish_non_exhaustive()
    }
}

#[cfg(feature = "embedded")]
impl MillBuilder {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            sync: false,
            options: MillOptions::new(),
        }
    }

    /// Sets whether an enqueue and a completion with results return only once they survive a power
    /// cut; otherwise they survive the death of the process. Default: no.
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Sets the options that do not depend on the backend.
    pub fn options(mut self, options: MillOptions) -> Self {
        self.options = options;
        self
    }

    /// Opens the mill, or creates it.
    ///
    /// # Errors
    /// Another process has it open, the directory has other files in it, or the storage failed.
    pub fn open(self) -> Result<Mill, OpenError> {
        // The threads of workers that were shut down let go of a mill a moment later.
        let options = logmill::Queues::options(&self.path);
        #[cfg(feature = "testing")]
        let options = match self.options.clock.as_manual() {
            None => options,
            Some(clock) => options.clock(clock),
        };
        let queues = options.wait_for_lock(WAIT_FOR_LOCK).open();
        let queues = queues.map_err(|error| OpenError(Box::new(error)))?;
        let durability = match self.sync {
            true => logmill::Durability::Sync,
            false => logmill::Durability::Process,
        };
        let backend = Embedded::on_clock(queues, durability, self.options.clock.clone());
        backend.keep_what_was_found()?;
        Ok(Mill::with_backend(backend, self.options))
    }
}

#[cfg(feature = "embedded")]
impl std::fmt::Debug for MillBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MillBuilder")
            .field("path", &self.path)
            .field("sync", &self.sync)
            .field("options", &self.options)
            .finish()
    }
}
