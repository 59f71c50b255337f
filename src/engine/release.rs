//! Deliveries that end without an attempt, or go on: jobs that are given back, handlers that ask for
//! more time, and jobs that have expired.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use super::delivery::Attempt;
use crate::dispatch::KEPT_DELAY;
use crate::dispatch::lease_timeouts::{Delivery, Ended};
use crate::events::event;
use crate::log::lease::Lease;

/// For so long, delays that handlers named are gathered before they are stored with one flush.
const DELAY_GATHERING: Duration = Duration::from_millis(20);

impl Engine {
    /// Gives a job back without a failed attempt; it comes back after this delay.
    pub(crate) fn release(
        &self,
        lease: Lease,
        delivery: Delivery,
        attempt: Attempt,
        delay: Duration,
    ) {
        let ended = match &self.leases {
            None => {
                lease.end_delivery();
                Ended::Current { others: false }
            }
            Some(leases) => leases.release(&lease, delivery),
        };
        match (ended, &self.leases) {
            (Ended::Current { others }, _) => {
                let (job, attempts) = (lease.job(), attempt.number());
                let lease = match attempt.is_suspect() {
                    true => lease.into_suspect(),
                    false => lease,
                };
                let lease = self.unless_cancelled(lease, attempts);
                let seen = lease
                    .as_ref()
                    .map(|lease| self.observer.see(lease, attempts));
                let seen = seen.flatten();
                if let Some(lease) = lease
                    && self.dispatch.retry(lease, attempts, Some(delay), others)
                {
                    // Relaxed, here and below: counts for statistics.
                    self.snoozed.fetch_add(1, Ordering::Relaxed);
                    self.keep_delay(delay);
                    self.observer
                        .tell(seen, |observer, job| observer.snoozed(job, delay));
                    event!(debug, %job, attempts, "a job was given back");
                }
            }
            // Its delivery has timed out, so the attempt has failed, and the job has gone on.
            (Ended::Late, Some(leases)) => {
                let has_handler = || leases.has_handler(lease.sequence());
                self.dead.end_late(lease.job(), has_handler);
            }
            (Ended::Late, None) => {}
        }
        if attempt.is_suspect() {
            self.dispatch.end_suspect();
        }
    }

    /// Ends a delivery without an attempt, for a job that is to wait outside the queue. None if the
    /// delivery has timed out, or the job was cancelled.
    pub(crate) fn hold(&self, lease: Lease, delivery: Delivery, attempt: Attempt) -> Option<Lease> {
        let is_current = match &self.leases {
            None => {
                lease.end_delivery();
                true
            }
            Some(leases) => matches!(leases.release(&lease, delivery), Ended::Current { .. }),
        };
        let held = if is_current {
            let lease = match attempt.is_suspect() {
                true => lease.into_suspect(),
                false => lease,
            };
            self.unless_cancelled(lease, attempt.number())
        } else {
            // The attempt has failed, and the job has gone on.
            if let Some(leases) = &self.leases {
                let has_handler = || leases.has_handler(lease.sequence());
                self.dead.end_late(lease.job(), has_handler);
            }
            None
        };
        if attempt.is_suspect() {
            self.dispatch.end_suspect();
        }
        held
    }

    /// Has the maintenance thread store a delay that a handler named.
    pub(super) fn keep_delay(&self, delay: Duration) {
        if delay >= KEPT_DELAY {
            self.signal.turn_within(DELAY_GATHERING);
        }
    }

    /// Lets a delivery run for its whole lease timeout again. Returns false if it has timed out.
    pub(crate) fn touch(&self, lease: &Lease, delivery: Delivery) -> bool {
        match &self.leases {
            None => true,
            Some(leases) => leases.touch(lease, delivery, self.clock.now()),
        }
    }

    /// Ends a job that is not to be delivered any more.
    pub(super) fn expire(&self, lease: Lease) {
        let (job, failed) = (lease.job(), lease.failed());
        let seen = self.observer.see(&lease, failed);
        if self.keeps_expired {
            let reason = "the job has expired";
            let attempt = failed.saturating_add(1);
            let now = self.clock.wall_coarse();
            self.dead.failures.note(now, job, attempt, reason);
            if !self.dead_letter(lease, failed) {
                // A handler whose delivery had timed out has acked it in the meantime.
                return self.dead.failures.forget(job);
            }
            self.observer
                .tell(seen, |observer, job| observer.dead(job, reason));
            event!(warn, %job, attempts = failed, reason, "a job is dead");
        } else {
            self.dead.failures.forget(job);
            let cancels = &self.dispatch.cancels;
            let acked = match cancels.end_otherwise(lease.sequence(), lease, Lease::ack) {
                Ok(acked) => acked,
                Err(lease) => {
                    // Cancelled at this moment. If that fails, the next delivery finds it expired.
                    if let Some(lease) = self.unless_cancelled(lease, failed) {
                        self.dispatch.inject(lease);
                    }
                    return;
                }
            };
            if acked.segment_complete {
                self.signal.kick();
            }
            if !acked.first {
                return;
            }
            self.give_back_room(1);
            self.expired.fetch_add(1, Ordering::Relaxed);
            self.observer
                .tell(seen, |observer, job| observer.expired(job));
            event!(debug, %job, attempts = failed, "a job has expired");
        }
    }
}
