//! Pausing a queue: consumers get no jobs until it is resumed, in this process or a later one.
//!
//! A file in the queue's directory says that the queue is paused. It is durable before the call that
//! pauses returns, and durably gone before consumers get jobs again.

#[cfg(feature = "async")]
use std::task::{Context, Poll};
use std::time::Instant;

use super::Engine;
use crate::dispatch::gate::Gate;
use crate::event_count::EventCount;
#[cfg(feature = "async")]
use crate::event_count::Waiting;
use crate::storage::{Entry, StorageError};

const FILE: &str = "PAUSED";

impl Engine {
    fn pause_file(&self) -> Entry {
        self.home.directory().entry(FILE)
    }

    pub(crate) fn pause(&self) -> Result<(), StorageError> {
        let _one_at_a_time = self.pausing.lock();
        self.pause_file().create_or_open()?;
        self.home.directory().flush()?;
        self.gate().set(Gate::PAUSED);
        // Those that sleep go and wait for the end of the pause.
        self.wake_consumers();
        Ok(())
    }

    pub(crate) fn resume(&self) -> Result<(), StorageError> {
        let _one_at_a_time = self.pausing.lock();
        self.pause_file().remove()?;
        self.home.directory().flush()?;
        self.gate().clear(Gate::PAUSED);
        self.wake_consumers();
        Ok(())
    }

    /// Has all consumers that sleep look at what has changed: the state of the queue, or that their
    /// pool is stopped.
    pub(crate) fn wake_consumers(&self) {
        self.dispatch.sleepers.notify_all();
        self.resumed.notify_all();
    }

    /// Whether an earlier process has paused the queue.
    pub(super) fn finds_pause(&self) -> Result<bool, StorageError> {
        Ok(self.pause_file().kind()?.is_some())
    }

    /// Consumers that wait for the end of a pause.
    pub(crate) fn resumed(&self) -> &EventCount {
        &self.resumed
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.gate().has(Gate::PAUSED)
    }

    /// Whether consumers get no jobs: the queue is paused or closed.
    #[inline]
    pub(crate) fn is_resting(&self) -> bool {
        self.gate().has(Gate::CLOSED | Gate::PAUSED)
    }

    /// Waits while the queue is paused, and neither closed nor `stopped`. Returns whether it was
    /// resumed before the deadline.
    #[cold]
    pub(crate) fn wait_for_resume(
        &self,
        deadline: Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> bool {
        loop {
            let registered = self.resumed.register();
            let is_resting = self.is_resting();
            let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
            if !is_resting || self.is_closed() || stopped() || is_over {
                self.resumed.cancel(registered);
                return !is_resting && !stopped();
            }
            self.resumed.wait(registered, deadline);
        }
    }

    /// Waits, as a task, while the queue is paused and not closed. Returns whether consumers get
    /// jobs: false once it is closed.
    #[cfg(feature = "async")]
    pub(crate) fn poll_resume(&self, waiting: &mut Waiting, context: &Context<'_>) -> Poll<bool> {
        let look = || match self.is_resting() {
            false => Some(true),
            true => self.is_closed().then_some(false),
        };
        self.resumed
            .poll(waiting, context, look, || look().is_some())
    }

    /// Ends a wait without a look.
    #[cfg(feature = "async")]
    pub(crate) fn give_up_resume(&self, waiting: &mut Waiting) {
        self.resumed.give_up(waiting);
    }
}
