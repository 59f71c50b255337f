//! What a producer offers to async tasks.

use super::Producer;
use crate::engine::enqueue::Place;
use crate::engine::enqueue_async::Site;
use crate::error::EnqueueError;
use crate::options::EnqueueOptions;
use crate::{JobId, Ticket};

impl Producer {
    /// Enqueues a job in an async task, like
    /// [`Queue::enqueue_async`](crate::Queue::enqueue_async), on the stripe of this producer.
    ///
    /// # Errors
    /// Those of [`Queue::enqueue_with`](crate::Queue::enqueue_with).
    pub async fn enqueue_async(
        &mut self,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<JobId, EnqueueError> {
        let site = Site::Lane(&mut self.lane);
        self.running.enqueue_async(site, payload, options).await
    }

    /// Enqueues several jobs in an async task, all or none, like
    /// [`Queue::enqueue_batch_async`](crate::Queue::enqueue_batch_async).
    ///
    /// # Errors
    /// Those of [`Queue::enqueue_batch_with`](crate::Queue::enqueue_batch_with).
    pub async fn enqueue_batch_async<P: AsRef<[u8]>>(
        &mut self,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<Vec<JobId>, EnqueueError> {
        let site = Site::Lane(&mut self.lane);
        self.running.enqueue_batch_async(site, jobs).await
    }

    /// Enqueues a job, and returns before it is durable, like
    /// [`Queue::enqueue_ticketed`](crate::Queue::enqueue_ticketed).
    ///
    /// # Errors
    /// Those of [`Queue::enqueue_ticketed`](crate::Queue::enqueue_ticketed).
    pub fn enqueue_ticketed(
        &mut self,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<(JobId, Ticket), EnqueueError> {
        let place = Place::in_lane(&self.running, &mut self.lane);
        self.running.enqueue_ticketed(place, payload, &options)
    }

    /// Enqueues several jobs, all or none, and returns before they are durable, like
    /// [`Queue::enqueue_batch_ticketed`](crate::Queue::enqueue_batch_ticketed).
    ///
    /// # Errors
    /// Those of [`Queue::enqueue_batch_ticketed`](crate::Queue::enqueue_batch_ticketed).
    pub fn enqueue_batch_ticketed<P: AsRef<[u8]>>(
        &mut self,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<(Vec<JobId>, Ticket), EnqueueError> {
        let place = Place::in_lane(&self.running, &mut self.lane);
        self.running.enqueue_batch_ticketed(place, jobs)
    }
}
