//! What a queue offers to async tasks.

use std::sync::Arc;

use super::Queue;
use crate::engine::enqueue::Place;
use crate::engine::enqueue_async::Site;
use crate::error::EnqueueError;
use crate::options::EnqueueOptions;
use crate::{AsyncConsumer, JobId, Ticket};

impl Queue {
    /// Returns a handle for taking jobs in an async task.
    pub fn async_consumer(&self) -> AsyncConsumer {
        AsyncConsumer::new(Arc::clone(&self.running))
    }

    /// Enqueues a job in an async task; resolves to its id once it is as durable as asked.
    ///
    /// As [`enqueue_with`](Self::enqueue_with), with two differences. Neither the wait for room
    /// ([`EnqueueOptions::wait`]) nor a flush (with `Sync`) holds up the thread: a thread of the
    /// queue flushes, and all tasks that came before its flush began share it. And the stripe is
    /// that of the thread which polls the future when there is room; where the order counts, use
    /// [`Producer::enqueue_async`](crate::Producer::enqueue_async).
    ///
    /// The poll may wait for the disk where it begins another segment, as `enqueue` may.
    ///
    /// The job is enqueued by the first poll that finds room. A future that is dropped before has
    /// enqueued nothing. One that is dropped later, while it waits for the flush, has enqueued the
    /// job, and the flush goes on.
    ///
    /// ```
    /// use logmill::{Durability, EnqueueOptions, Queue};
    /// use std::time::Duration;
    ///
    /// async fn order(queue: &Queue, number: u32) -> Result<(), logmill::EnqueueError> {
    ///     let options = EnqueueOptions::new()
    ///         .durability(Durability::Sync)
    ///         .wait(Duration::from_secs(2)); // for room, if the queue is full
    ///     queue.enqueue_async(&number.to_le_bytes(), options).await?;
    ///     Ok(()) // The order survives a power cut.
    /// }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// # futures_lite::future::block_on(order(&queue, 7))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`enqueue_with`](Self::enqueue_with).
    pub async fn enqueue_async(
        &self,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<JobId, EnqueueError> {
        self.running
            .enqueue_async(Site::Thread, payload, options)
            .await
    }

    /// Enqueues several jobs in an async task, all or none, each with its own options.
    ///
    /// To [`enqueue_batch_with`](Self::enqueue_batch_with) what
    /// [`enqueue_async`](Self::enqueue_async) is to [`enqueue_with`](Self::enqueue_with).
    ///
    /// # Errors
    /// Those of [`enqueue_batch_with`](Self::enqueue_batch_with).
    pub async fn enqueue_batch_async<P: AsRef<[u8]>>(
        &self,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<Vec<JobId>, EnqueueError> {
        self.running.enqueue_batch_async(Site::Thread, jobs).await
    }

    /// Enqueues a job, and returns before it is durable, with a [`Ticket`] that tells when it is.
    ///
    /// Waits for room as [`enqueue_with`](Self::enqueue_with) does, and never for a flush. The
    /// [durability](crate::Durability) decides when the flush begins: with `Sync` at once, with
    /// `Interval(d)` within `d`, and with `Process` not before somebody waits for the ticket. Under
    /// each of them, the ticket tells that the job is on stable storage.
    ///
    /// A thread of the queue flushes, for all who came before its flush began.
    ///
    /// # Errors
    /// Those of [`enqueue_with`](Self::enqueue_with), except
    /// [`NotDurable`](EnqueueError::NotDurable).
    pub fn enqueue_ticketed(
        &self,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<(JobId, Ticket), EnqueueError> {
        let place = Place::of_this_thread(&self.running);
        self.running.enqueue_ticketed(place, payload, &options)
    }

    /// Enqueues several jobs, all or none, and returns before they are durable, with a [`Ticket`]
    /// for all of them.
    ///
    /// To [`enqueue_batch_with`](Self::enqueue_batch_with) what
    /// [`enqueue_ticketed`](Self::enqueue_ticketed) is to [`enqueue_with`](Self::enqueue_with).
    ///
    /// # Errors
    /// Those of [`enqueue_batch_with`](Self::enqueue_batch_with), except
    /// [`NotDurable`](EnqueueError::NotDurable).
    pub fn enqueue_batch_ticketed<P: AsRef<[u8]>>(
        &self,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<(Vec<JobId>, Ticket), EnqueueError> {
        let place = Place::of_this_thread(&self.running);
        self.running.enqueue_batch_ticketed(place, jobs)
    }
}
