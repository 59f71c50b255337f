//! What happens to a job between its lease and its end: begin, ack, fail, retry or death.

use std::sync::atomic::Ordering;

use super::Engine;
use super::dead_log::Late;
use crate::dispatch::lease_timeouts::{Delivery, Ended, Leases};
use crate::events::event;
use crate::failure::{Failure, Verdict};
use crate::log::lease::{Acked, Lease};
use crate::log::meta::Meta;

/// The number of an attempt at a job; whether the job is a suspect: when such an attempt ends, the
/// next suspect may begin; and whether an observer is to be told of its end.
///
/// All are in one number, so that an ack checks with one comparison that it has nothing else to do,
/// and in one as wide as the other fields of a job: one that is moved right after it was made would
/// otherwise stall on its last bytes (a load of more bytes than the store before it wrote).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt(u64);

impl Attempt {
    const SUSPECT: u64 = 1 << 33;
    const OBSERVED: u64 = 1 << 32;

    #[inline]
    pub(crate) fn new(number: u32, is_suspect: bool) -> Self {
        Self(u64::from(number) | if is_suspect { Self::SUSPECT } else { 0 })
    }

    /// The attempt after so many that failed, at a job that is not a suspect.
    #[inline]
    pub(crate) fn after(failed: u8) -> Self {
        Self::new(u32::from(failed) + 1, false)
    }

    /// The number of the attempt, starting at 1.
    #[inline]
    pub(crate) fn number(self) -> u32 {
        self.0 as u32
    }

    fn observed(self) -> Self {
        Self(self.0 | Self::OBSERVED)
    }

    pub(crate) fn is_suspect(self) -> bool {
        self.0 & Self::SUSPECT != 0
    }

    /// Whether this is the first attempt, at a job that is not a suspect, and nobody observes it.
    #[inline]
    pub(crate) fn is_ordinary(self) -> bool {
        self.0 <= 1
    }
}

impl Engine {
    /// Whether beginning a delivery only has to count it.
    #[inline]
    pub(crate) fn is_only_counted(&self, lease: &Lease) -> bool {
        self.only_counts && lease.is_bare()
    }

    /// Begins the delivery of a job, and counts it before the handler gets the job. None if the job
    /// is done, or had used up its attempts and is now dead.
    pub(crate) fn begin(&self, lease: Lease) -> Option<(Lease, Attempt, Delivery)> {
        let is_suspect = lease.is_suspect();
        let begun = self.begin_any(lease);
        if begun.is_none() && is_suspect {
            self.dispatch.end_suspect();
        }
        let (mut lease, attempts, delivery) = begun?;
        lease.take_suspicion();
        let attempt = Attempt::new(attempts, is_suspect);
        let attempt = match self.observer.sees_all() {
            true => attempt.observed(),
            false => attempt,
        };
        Some((lease, attempt, delivery))
    }

    fn begin_any(&self, mut lease: Lease) -> Option<(Lease, u32, Delivery)> {
        if lease.is_done() {
            // Done by an earlier delivery that had timed out and succeeded after all.
            return None;
        }
        if self.is_resting() {
            self.dispatch.inject(lease);
            return None;
        }
        let failed = lease.failed();
        lease = self.unless_cancelled(lease, failed)?;
        let meta = match lease.has_meta() {
            true => lease.meta(),
            false => Meta::default(),
        };
        if meta
            .options
            .expires_at
            .is_some_and(|at| at <= self.clock.wall())
        {
            self.expire(lease);
            return None;
        }
        // The job comes from an earlier process, or was moved since.
        let has_past = lease.is_recovered() || meta.prior_attempts > 0 || meta.prior_crashes > 0;
        if has_past && let Some((attempt, reason)) = self.cause_of_death(&lease, failed) {
            let (job, crashes) = (lease.job(), lease.crashes());
            let seen = self.observer.see(&lease, failed);
            let now = self.clock.wall_coarse();
            self.dead.failures.note(now, job, attempt, &reason);
            // No late ack is possible: no handler of this process had the job.
            if !self.dead_letter(lease, failed) {
                // It was cancelled in the meantime.
                self.dead.failures.forget(job);
                return None;
            }
            self.observer
                .tell(seen, |observer, job| observer.dead(job, &reason));
            event!(warn, %job, attempts = failed, crashes, reason, "a job is dead");
            return None;
        }
        match &self.leases {
            None => {
                lease.begin_delivery();
                let lease = match self.gate().is_open() {
                    true => lease,
                    false => self.check_begun(lease, failed)?,
                };
                Some((lease, failed.saturating_add(1), Delivery::ONLY))
            }
            Some(leases) => {
                let attempts = failed.saturating_add(1);
                let own = meta.options.lease_timeout;
                let now = self.clock.now();
                let is_cancelled = |record| self.dispatch.is_cancelled(record);
                // A delivery that times out is followed by one of an ordinary job.
                let is_suspect = lease.take_suspicion();
                let Some((delivery, first)) =
                    leases.begin(&lease, attempts, own, now, is_cancelled)
                else {
                    if is_suspect {
                        lease = lease.into_suspect();
                    }
                    if let Some(lease) = self.unless_cancelled(lease, failed) {
                        // It is done; or its cancellation has failed at this moment.
                        self.put_back_if_live(lease);
                    }
                    return None;
                };
                if first {
                    self.dispatch.timer.interrupt();
                }
                Some((lease, attempts, delivery))
            }
        }
    }

    /// For a job that an earlier process had, or that was moved: the attempt that it died of and
    /// the reason, if it must not be delivered again after this many failed attempts.
    fn cause_of_death(&self, lease: &Lease, failed: u32) -> Option<(u32, String)> {
        let crashes = lease.crashes();
        if crashes >= self.dispatch.max_crashes() {
            let reason = format!("the process died with this job in a handler, {crashes} times");
            Some((failed.saturating_add(1), reason))
        } else if failed > 0 && !self.dispatch.may_retry(lease, failed) {
            let reason = "the process ended before it wrote the letter of this job";
            Some((failed, reason.to_owned()))
        } else {
            None
        }
    }

    #[inline(always)]
    pub(crate) fn ack(&self, lease: Lease, delivery: Delivery, attempt: Attempt) {
        if !attempt.is_ordinary() {
            return self.ack_marked(lease, delivery, attempt);
        }
        self.finish(lease, delivery);
    }

    /// Marks a job done that its handler acks. Returns whether this call was the first to do so.
    #[inline(always)]
    fn finish(&self, lease: Lease, delivery: Delivery) -> bool {
        let acked = match &self.leases {
            None => lease.ack(),
            Some(leases) => match leases.ack(lease, delivery) {
                Ok(acked) => acked,
                Err(late) => return self.ack_late(late, leases),
            },
        };
        self.complete(acked)
    }

    /// Gives back the room of a job that was acked. Returns whether it was not done before.
    #[inline(always)]
    pub(crate) fn complete(&self, acked: Acked) -> bool {
        let first = self.note_done(acked);
        if first {
            self.give_back_room(1);
        }
        first
    }

    /// Acks a job that failed before, or a suspect, or one whose end an observer is told.
    #[cold]
    fn ack_marked(&self, lease: Lease, delivery: Delivery, attempt: Attempt) {
        let sees_all = self.observer.sees_all();
        let seen = sees_all.then(|| self.observer.see(&lease, attempt.number()));
        let seen = seen.flatten();
        self.dead.failures.forget(lease.job());
        if self.finish(lease, delivery) {
            self.observer
                .tell(seen, |observer, job| observer.completed(job));
        }
        if attempt.is_suspect() {
            self.dispatch.end_suspect();
        }
    }

    /// Acks a job whose delivery has timed out. By then the job waits for its next delivery, is
    /// being delivered again, or is dying; it is removed from there, and nothing more is reported
    /// about it. If its letter is written, the letter is withdrawn.
    ///
    /// The job is marked done before it is looked for. Each place that takes a job checks whether
    /// it is done under the same lock under which this function looks for it. A job in a deque is
    /// found to be done when it is delivered.
    #[cold]
    fn ack_late(&self, lease: Lease, leases: &Leases) -> bool {
        let (job, sequence) = (lease.job(), lease.sequence());
        let mut acked = None;
        let mut cancelled = None;
        let late = self.dead.take_late(job, sequence, || {
            let (gate, cancels) = (self.gate(), &self.dispatch.cancels);
            cancelled = cancels.ack_late(gate, sequence, || acked = Some(lease.ack()));
        });
        if acked.is_some_and(|acked| acked.segment_complete) {
            self.signal.kick();
        }
        let mut first = acked.is_some_and(|acked| acked.first);
        if let Some(owed) = cancelled {
            // It was cancelled before, and counted as that.
            self.note_unsettled(owed);
            first = false;
        }
        match late {
            Late::Dead => event!(info, %job, "a dead job was acked late"),
            // A dying job no longer takes room.
            Late::Dying => {}
            Late::Live if first => self.give_back_room(1),
            Late::Live => {}
        }
        drop(self.dispatch.timer.take_late(sequence));
        leases.end_late(sequence);
        self.dead.failures.forget(job);
        // The segments that the job's other leases kept alive can be freed.
        self.signal.kick();
        first
    }

    /// Marks a job done. Returns whether this call was the first to do so.
    #[inline(always)]
    pub(super) fn mark_done(&self, lease: Lease) -> bool {
        self.note_done(lease.ack())
    }

    #[inline(always)]
    pub(super) fn note_done(&self, acked: Acked) -> bool {
        if acked.segment_complete {
            self.signal.kick();
        }
        acked.first
    }

    pub(crate) fn fail(
        &self,
        lease: Lease,
        delivery: Delivery,
        attempt: Attempt,
        failure: Failure,
    ) {
        if let Verdict::Snooze(delay) = failure.verdict {
            return self.release(lease, delivery, attempt, delay);
        }
        let ended = match &self.leases {
            None => {
                lease.count_failure(false);
                Ended::Current { others: false }
            }
            Some(leases) => leases.fail(&lease, delivery),
        };
        match (ended, &self.leases) {
            (Ended::Current { others }, _) => {
                let lease = match attempt.is_suspect() {
                    // It stays a suspect until it is acked: surviving one attempt may have been
                    // luck.
                    true => lease.into_suspect(),
                    false => lease,
                };
                self.fail_current(lease, attempt.number(), failure, others);
            }
            // The delivery has timed out, so the attempt has already failed.
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

    /// Settles a failed attempt. `late`: another handler has the job too, and may ack it.
    pub(super) fn fail_current(&self, lease: Lease, attempts: u32, failure: Failure, late: bool) {
        let Some(lease) = self.unless_cancelled(lease, attempts) else {
            return;
        };
        let job = lease.job();
        let seen = self.observer.see(&lease, attempts);
        let Failure { reason, verdict } = failure;
        let now = self.clock.wall_coarse();
        self.dead.failures.note(now, job, attempts, &reason);
        let comes_back =
            verdict != Verdict::DeadLetter && self.dispatch.may_retry(&lease, attempts);
        let is_acked = if comes_back {
            let delay = match verdict {
                Verdict::RetryAfter(delay) => Some(delay),
                Verdict::Retry | Verdict::DeadLetter | Verdict::Snooze(_) => None,
            };
            !self.dispatch.retry(lease, attempts, delay, late)
        } else {
            !self.dead_letter(lease, attempts)
        };
        if is_acked {
            // The other handler acked it in the meantime.
            return self.dead.failures.forget(job);
        }
        if comes_back {
            self.retried.fetch_add(1, Ordering::Relaxed);
            if let Verdict::RetryAfter(delay) = verdict {
                self.keep_delay(delay);
            }
        }
        self.observer.tell(seen, |observer, job| match comes_back {
            true => observer.failed(job, &reason),
            false => observer.dead(job, &reason),
        });
        // Reported last, so that the job is settled whatever the subscriber does.
        let last = (!comes_back).then(|| reason.clone());
        event!(debug, %job, attempts, reason, "an attempt failed");
        if let Some(reason) = last {
            event!(warn, %job, attempts, reason, "a job is dead");
        }
    }

    /// Hands a job that must not be delivered again to the dead letter log. Returns false if
    /// another handler has acked it in the meantime, or it was cancelled.
    pub(super) fn dead_letter(&self, mut lease: Lease, attempts: u32) -> bool {
        loop {
            let is_cancelled = |record| self.dispatch.is_cancelled(record);
            match self.dead.hand_over(lease, attempts, is_cancelled) {
                Ok(false) => return false,
                Ok(true) => {
                    self.give_back_room(1);
                    self.signal.kick();
                    return true;
                }
                Err(cancelled) => match self.unless_cancelled(cancelled, attempts) {
                    // Its cancellation has failed.
                    Some(live) => lease = live,
                    None => return false,
                },
            }
        }
    }
}
