//! A handle for taking jobs in async tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::event_count::Waiting;
use crate::job::{Job, OwnedJob};
use crate::log::lease::Lease;

/// Takes jobs from a queue in an async task, on any runtime.
///
/// Use one for each task that takes jobs: each claims runs of jobs for itself, and idle ones steal
/// from busy ones, also from the threads of a pool. Dropping it returns the jobs that it has claimed
/// to the others. As long as it lives, the queue stays open.
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// # queue.enqueue(b"resize cat.jpg")?;
/// let mut consumer = queue.async_consumer();
/// # let closer = queue.clone();
/// let worker = async move {
///     while let Some(job) = consumer.next().await {
///         println!("{}", String::from_utf8_lossy(job.payload()));
///         job.ack();
/// #       closer.clone().close().expect("closed");
///     }
/// };
/// # futures_lite::future::block_on(worker);
/// # assert_eq!(queue.stats().acked, 1);
/// # Ok(())
/// # }
/// ```
///
/// It is also a [`Stream`] of jobs, so that the combinators of a crate such as `futures` run several
/// jobs at a time in one task.
///
/// A stream that was polled and has not returned a job since counts as waiting, and the queue may
/// count on it to take the next job. So go on polling it, or drop it. A future of
/// [`next`](Self::next) that is dropped waits no more: use that in a `select!`.
///
/// While anyone holds a job that has a [crash](Job::crashes), no other such job is delivered.
#[must_use = "a consumer takes jobs when it is awaited"]
pub struct AsyncConsumer {
    source: Source<Arc<Running>>,
    running: Arc<Running>,
    /// For a job.
    waiting: Waiting,
    /// For the end of a pause.
    resting: Waiting,
}

impl AsyncConsumer {
    pub(crate) fn new(running: Arc<Running>) -> Self {
        Self {
            source: Source::new(Arc::clone(&running)),
            running,
            waiting: Waiting::default(),
            resting: Waiting::default(),
        }
    }

    /// Returns the next job if one is available, as
    /// [`Consumer::try_next`](crate::Consumer::try_next) does.
    pub fn try_next(&mut self) -> Option<OwnedJob> {
        loop {
            if self.running.is_resting() {
                return None;
            }
            let lease = self.source.try_next()?;
            if self.running.is_resting() {
                self.source.put_back(lease);
                return None;
            }
            if let Some(job) = self.begin(lease) {
                return Some(job);
            }
        }
    }

    /// Waits for the next job; None once the queue is closed.
    ///
    /// While the queue is [paused](crate::Queue::pause), no job comes, and a resume wakes the task.
    ///
    /// The future can be dropped at any time: it loses no job, and if it was just woken for one,
    /// another consumer is woken in its place. So it can be one branch of a `select!` or be given a
    /// timeout.
    ///
    /// Its poll may wait for the disk when it claims from a segment that has to be prepared first,
    /// as [`Consumer::try_next`](crate::Consumer::try_next) may: after a restart with a backlog, or
    /// where a backlog is larger than what the process can map.
    pub async fn next(&mut self) -> Option<OwnedJob> {
        Next { consumer: self }.await
    }

    fn poll_job(&mut self, context: &Context<'_>) -> Poll<Option<OwnedJob>> {
        loop {
            if !ready!(self.running.poll_resume(&mut self.resting, context)) {
                return Poll::Ready(None);
            }
            let is_resting = || self.running.is_resting();
            let polled = self
                .source
                .poll_next(&mut self.waiting, context, is_resting);
            // None: the queue was paused or closed meanwhile.
            if let Some(lease) = ready!(polled)
                && let Some(job) = self.begin(lease)
            {
                return Poll::Ready(Some(job));
            }
        }
    }

    fn begin(&self, lease: Lease) -> Option<OwnedJob> {
        let job = Job::begin(&self.running, lease)?;
        Some(OwnedJob::new(job, &self.running))
    }

    fn give_up(&mut self) {
        self.source.give_up(&mut self.waiting);
        self.running.give_up_resume(&mut self.resting);
    }
}

/// A stream of jobs, which ends when the queue is closed.
impl Stream for AsyncConsumer {
    type Item = OwnedJob;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<OwnedJob>> {
        self.get_mut().poll_job(context)
    }
}

impl Drop for AsyncConsumer {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl std::fmt::Debug for AsyncConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncConsumer").finish_non_exhaustive()
    }
}

/// The future of [`AsyncConsumer::next`].
struct Next<'a> {
    consumer: &'a mut AsyncConsumer,
}

impl Future for Next<'_> {
    type Output = Option<OwnedJob>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<OwnedJob>> {
        self.consumer.poll_job(context)
    }
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        self.consumer.give_up();
    }
}
