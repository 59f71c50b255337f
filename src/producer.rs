//! A handle for one thread that enqueues.

use std::sync::Arc;

use crate::JobId;
use crate::engine::enqueue::{Lane, Place};
use crate::engine::{Engine, Running};
use crate::error::{BatchError, EnqueueError};
use crate::options::EnqueueOptions;

/// The fastest way to enqueue: a handle for one thread, which stays on one stripe.
///
/// Jobs of one producer are claimed in the order in which they were enqueued. Producers on different stripes
/// append to memory of their own: what they have in common is the counter of
/// [`max_depth`](crate::Builder::max_depth), if that is set, and locks that they take now and then.
pub struct Producer {
    running: Arc<Running>,
    lane: Lane,
}

impl Producer {
    pub(crate) fn new(running: Arc<Running>) -> Self {
        let lane = running.new_lane();
        Self { running, lane }
    }

    /// As [`Queue::enqueue`](crate::Queue::enqueue).
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn enqueue(&mut self, payload: &[u8]) -> Result<JobId, EnqueueError> {
        let (engine, place) = self.place();
        engine.enqueue(place, payload)
    }

    /// As [`Queue::enqueue_with`](crate::Queue::enqueue_with).
    ///
    /// # Errors
    /// As there.
    pub fn enqueue_with(
        &mut self,
        payload: &[u8],
        options: EnqueueOptions,
    ) -> Result<JobId, EnqueueError> {
        let (engine, place) = self.place();
        engine.enqueue_with(place, payload, &options)
    }

    /// As [`Queue::enqueue_batch`](crate::Queue::enqueue_batch).
    ///
    /// # Errors
    /// As there.
    pub fn enqueue_batch<P: AsRef<[u8]>>(
        &mut self,
        payloads: &[P],
    ) -> Result<Vec<JobId>, BatchError> {
        self.enqueue_batch_with(payloads, EnqueueOptions::new())
    }

    /// As [`Queue::enqueue_batch_with`](crate::Queue::enqueue_batch_with).
    ///
    /// # Errors
    /// As there.
    pub fn enqueue_batch_with<P: AsRef<[u8]>>(
        &mut self,
        payloads: &[P],
        options: EnqueueOptions,
    ) -> Result<Vec<JobId>, BatchError> {
        let (engine, place) = self.place();
        engine.enqueue_batch(place, payloads, &options)
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
