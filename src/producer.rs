//! A handle for one thread that enqueues jobs.

#[cfg(feature = "async")]
mod asynchronous;

use std::sync::Arc;

use crate::JobId;
use crate::engine::enqueue::{Lane, Place};
use crate::engine::{Engine, Running};
use crate::error::EnqueueError;
use crate::options::EnqueueOptions;

/// The fastest way to enqueue: a handle for one thread, which stays on one stripe.
///
/// Jobs of one producer are claimed in the order in which they were enqueued. Producers on
/// different stripes append to separate memory. They share only the counter of
/// [`max_depth`](crate::Builder::max_depth), if that is set, and locks that they take now and then.
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// std::thread::scope(|scope| {
///     for _ in 0..2 {
///         // One producer for each thread.
///         let mut producer = queue.producer();
///         scope.spawn(move || {
///             for frame in 0..100_u32 {
///                 producer.enqueue(&frame.to_le_bytes()).expect("the queue has room");
///             }
///         });
///     }
/// });
/// assert_eq!(queue.stats().enqueued, 200);
/// # Ok(())
/// # }
/// ```
pub struct Producer {
    running: Arc<Running>,
    lane: Lane,
}

impl Producer {
    pub(crate) fn new(running: Arc<Running>) -> Self {
        let lane = running.new_lane();
        Self { running, lane }
    }

    /// Enqueues a job and returns its id, like [`Queue::enqueue`](crate::Queue::enqueue).
    ///
    /// # Errors
    /// Those of [`Queue::enqueue`](crate::Queue::enqueue).
    #[inline]
    pub fn enqueue(&mut self, payload: &[u8]) -> Result<JobId, EnqueueError> {
        let (engine, place) = self.place();
        engine.enqueue(place, payload)
    }

    /// Enqueues a job with options, like [`Queue::enqueue_with`](crate::Queue::enqueue_with).
    ///
    /// # Errors
    /// Those of [`Queue::enqueue_with`](crate::Queue::enqueue_with).
    #[inline]
    pub fn enqueue_with(
        &mut self,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<JobId, EnqueueError> {
        let (engine, place) = self.place();
        engine.enqueue_with(place, payload, &options)
    }

    /// Enqueues several jobs, all or none, like
    /// [`Queue::enqueue_batch`](crate::Queue::enqueue_batch).
    ///
    /// # Errors
    /// Those of [`Queue::enqueue_batch`](crate::Queue::enqueue_batch).
    pub fn enqueue_batch<P: AsRef<[u8]>>(
        &mut self,
        payloads: &[P],
    ) -> Result<Vec<JobId>, EnqueueError> {
        let (engine, place) = self.place();
        engine.enqueue_batch(place, payloads)
    }

    /// Enqueues several jobs, all or none, each with its own options, like
    /// [`Queue::enqueue_batch_with`](crate::Queue::enqueue_batch_with).
    ///
    /// # Errors
    /// Those of [`Queue::enqueue_batch_with`](crate::Queue::enqueue_batch_with).
    pub fn enqueue_batch_with<P: AsRef<[u8]>>(
        &mut self,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<Vec<JobId>, EnqueueError> {
        let (engine, place) = self.place();
        engine.enqueue_batch_with(place, jobs)
    }

    #[inline(always)]
    fn place(&mut self) -> (&Engine, Place<'_>) {
        let engine: &Engine = &self.running;
        (engine, Place::in_lane(engine, &mut self.lane))
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("stripe", &self.lane.stripe())
            .finish_non_exhaustive()
    }
}
