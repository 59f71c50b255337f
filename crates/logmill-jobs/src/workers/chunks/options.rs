//! How large chunks are, and how long a job waits for one; and how their handlers are registered.

use std::sync::Arc;
use std::time::Duration;

use crate::handler::{Blocking, ChunkHandler, RouteOfChunks};
use crate::{Job, Workers};

/// How large the chunks of a handler are, and how long a job waits for others, for
/// [`Workers::on_chunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it is for `Workers::on_chunk`"]
pub struct ChunkOptions {
    most: usize,
    /// `usize::MAX` if only a full one is enough.
    least: usize,
    within: Duration,
}

impl ChunkOptions {
    /// Chunks of at most so many jobs, at least 1.
    pub const fn up_to(jobs: usize) -> Self {
        Self {
            most: if jobs == 0 { 1 } else { jobs },
            least: usize::MAX,
            within: Duration::from_millis(10),
        }
    }

    /// Sets how long a job waits for others at most, by the clock of the mill. When the first job of a
    /// chunk has waited for so long, the chunk runs with what it has. Default: 10 milliseconds.
    pub const fn within(mut self, time: Duration) -> Self {
        self.within = time;
        self
    }

    /// Has a chunk run without a further wait once it has so many jobs: it takes those that are there, up
    /// to the [most](Self::up_to), and waits for no others. Default: it waits until it is full.
    ///
    /// With fewer jobs, it runs when the first one has waited for [`within`](Self::within), as without
    /// this. Chunks of what is there, without any wait, are those with `at_least(1)`.
    pub const fn at_least(mut self, jobs: usize) -> Self {
        self.least = if jobs == 0 { 1 } else { jobs };
        self
    }

    pub(super) fn least(&self) -> usize {
        self.least
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn longest_wait(&self) -> Duration {
        self.within
    }
}

impl<S: Clone + Send + Sync + 'static> Workers<S> {
    /// Registers a handler that takes several jobs of its kind at once, such as for one `INSERT` of many
    /// rows. It runs on a thread of the pool.
    ///
    /// Each job is taken, limited, counted and settled as a single one; only the call of the handler is
    /// one for all. It runs as soon as the chunk is full, on the thread that has filled it; when it has
    /// [enough](ChunkOptions::at_least) and there are no others to take; or when its first job has waited
    /// for [`within`](ChunkOptions::within), on the next thread that is free. While a chunk waits, threads
    /// run other jobs.
    ///
    /// Such a job takes no inputs. If it has an output, the handler says that by
    /// [`ChunkJob::done_with`](crate::ChunkJob::done_with). The timeout of its kind is that of the handler's
    /// call, and does not cover the wait. A job whose arguments cannot be decoded fails by itself. At a
    /// shutdown, jobs of chunks that have not begun are given back without an attempt.
    ///
    /// ```
    /// use logmill_jobs::{Chunk, ChunkOptions, Job, JobResult, Mill, State, Workers};
    /// use serde::{Deserialize, Serialize};
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Duration;
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "index_document")]
    /// struct IndexDocument {
    ///     document: u64,
    /// }
    ///
    /// type Index = Arc<Mutex<Vec<u64>>>;
    ///
    /// fn index(documents: Chunk<IndexDocument>, State(index): State<Index>) -> JobResult {
    ///     let mut index = index.lock().unwrap();
    ///     index.extend(documents.iter().map(|one| one.job.document));
    ///     Ok(())
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// let state = Index::default();
    /// let chunks = ChunkOptions::up_to(100).within(Duration::from_millis(20));
    /// let pool = Workers::new(state.clone()).on_chunk(index, chunks).start(&mill)?;
    /// let handles = mill.enqueue_all((0..250).map(|document| IndexDocument { document }))?;
    /// for handle in handles {
    ///     # match handle.wait() { Err(logmill_jobs::WaitError::NotKept) => Ok(()), other => other }?;
    ///     # continue;
    ///     handle.wait()?;
    /// }
    /// assert_eq!(state.lock().unwrap().len(), 250);
    /// # drop(pool);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_chunk<J, M, H>(mut self, handler: H, chunks: ChunkOptions) -> Self
    where
        J: Job<Inputs = ()>,
        M: 'static,
        H: ChunkHandler<J, S, M>,
    {
        let route = RouteOfChunks::<J, _>::new(Blocking::<H, M>::new(handler), chunks);
        self.has_blocking = true;
        self.routes.push(Arc::new(route));
        self
    }

    /// Registers an async handler that takes several jobs of its kind at once. It runs as a task of the
    /// tokio runtime in which the workers are started.
    ///
    /// Its jobs gather as those of [`on_chunk`](Self::on_chunk) do, and what it says of them counts in the
    /// same way. A chunk that runs counts as one of the [`tasks`](Self::tasks). One that is full or due
    /// while as many run as may has its thread wait until one of them ends. When the time of its kind is
    /// up, the future is dropped, and the jobs of which it has said nothing have failed an attempt. If the
    /// runtime ends, all jobs of its chunks are given back.
    ///
    /// ```
    /// use logmill_jobs::{Chunk, ChunkOptions, Job, JobResult, Mill, State, Workers, discard};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "push")]
    /// struct Push {
    ///     device: u64,
    /// }
    ///
    /// #[derive(Clone)]
    /// struct Gateway;
    ///
    /// impl Gateway {
    ///     /// Returns which devices are not there any more.
    ///     async fn push(&self, devices: &[u64]) -> std::io::Result<Vec<u64>> {
    ///         # let _ = devices;
    ///         Ok(vec![404])
    ///     }
    /// }
    ///
    /// async fn push(pushes: Chunk<Push>, State(gateway): State<Gateway>) -> JobResult {
    ///     let devices: Vec<_> = pushes.iter().map(|one| one.job.device).collect();
    ///     let gone = gateway.push(&devices).await?;
    ///     for one in pushes.iter().filter(|one| gone.contains(&one.job.device)) {
    ///         one.fail(discard("no such device"));
    ///     }
    ///     Ok(())
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let mill = Mill::open(dir.path().join("jobs"))?;
    /// let workers = Workers::new(Gateway).on_chunk_async(push, ChunkOptions::up_to(500));
    /// let pool = workers.start(&mill)?;
    /// let handle = mill.enqueue(Push { device: 404 })?;
    /// assert!(handle.wait_async().await.is_err());
    /// # drop(pool);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    pub fn on_chunk_async<J, M, H>(mut self, handler: H, chunks: ChunkOptions) -> Self
    where
        J: Job<Inputs = ()>,
        M: 'static,
        H: crate::handler::AsyncChunkHandler<J, S, M>,
    {
        let caller = crate::handler::Awaited::<H, M>::new(handler);
        let route = RouteOfChunks::<J, _>::new(caller, chunks);
        self.has_async = true;
        self.routes.push(Arc::new(route));
        self
    }
}
