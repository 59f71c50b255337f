//! How an async task waits for a job: as a thread does in `source.rs`, with a waker in place of the
//! sleep, and without looking more than once before it.

use std::task::{Context, Poll};

use super::Dispatch;
use super::source::Source;
use crate::event_count::Waiting;
use crate::log::lease::Lease;

impl<D: AsRef<Dispatch>> Source<D> {
    /// The next job; None while `stopped`. A caller that makes `stopped` true wakes the sleepers.
    pub(crate) fn poll_next(
        &self,
        waiting: &mut Waiting,
        context: &Context<'_>,
        stopped: impl Fn() -> bool,
    ) -> Poll<Option<Lease>> {
        let dispatch = self.dispatch();
        let look = || {
            if stopped() {
                return Some(None);
            }
            let lease = self.try_next()?;
            // Checked again, so that no job is taken that came after `stopped` was made true.
            match stopped() {
                false => Some(Some(lease)),
                true => {
                    self.put_back(lease);
                    Some(None)
                }
            }
        };
        let may_have_work = || stopped() || dispatch.may_have_work();
        dispatch
            .sleepers
            .poll(waiting, context, look, may_have_work)
    }

    /// Ends a wait without a look. If the task has been woken, another sleeper is.
    pub(crate) fn give_up(&self, waiting: &mut Waiting) {
        self.dispatch().sleepers.give_up(waiting);
    }
}
