//! What is in a queue, and what has gone through it.

use std::time::Duration;

/// A look at a queue, from [`Queue::stats`](crate::Queue::stats).
///
/// Each job is counted once: `recovered + enqueued == acked + dead_lettered + depth() + lost`, and
/// [`depth`](Self::depth) is what [`max_depth`](crate::Builder::max_depth) limits. The figures are
/// read one after the other while the queue goes on, so under load they may be off by the jobs of a
/// moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that wait for a consumer, or for another job with a crash to be done first (see
    /// [`Job::crashes`](crate::Job::crashes)). A job that is not due yet counts as ready until a consumer
    /// claims it and finds that out.
    pub ready: u64,
    /// Jobs that wait for their due time or for the end of their backoff.
    pub delayed: u64,
    /// Jobs that were delivered and not yet settled. One whose delivery has
    /// [timed out](crate::Builder::lease_timeout) counts as what it is since then.
    pub in_flight: u64,
    /// Dead letters, those about to be written included.
    pub dead: u64,
    /// Bytes of the segments' files, the dead letter log's included. What is on the disk is more: ack files
    /// (about 13%), and the segments that each stripe has ready for use.
    pub bytes: u64,
    /// Segments that have jobs or letters in them, that are being appended to, or that are about to be
    /// removed; the dead letter log's included.
    pub segments: u64,
    /// How long ago the oldest job that is not settled was enqueued, delayed jobs included; None if
    /// there is none. The oldest by its place in the log: one that was delayed for long may have been moved to
    /// the end.
    pub oldest: Option<Duration>,
    /// For how long the job that waits longest for a consumer has been due; None if none waits. This is the
    /// figure to alert on: it grows when consumers are stuck or do not keep up, and no delay, no backoff and no
    /// handler's own time is part of it.
    ///
    /// At most 4,096 jobs of each stripe are looked at: behind more that are not due, and that no consumer has
    /// come to, one that is due is not found. Jobs that are delivered one at a time, as the process died with
    /// them in a handler, do not count.
    pub oldest_ready: Option<Duration>,
    /// Jobs found when the queue was opened, as in [`RecoveryReport`](crate::RecoveryReport): those
    /// of sealed segments, which are checked later, before their check.
    pub recovered: u64,
    /// Jobs enqueued since the queue was opened, replayed letters included.
    pub enqueued: u64,
    /// Jobs acked since the queue was opened, those found at the open included.
    pub acked: u64,
    /// Failed attempts since the queue was opened, timeouts included, after which the job came back.
    pub retried: u64,
    /// Jobs that became dead letters since the queue was opened.
    pub dead_lettered: u64,
    /// Of the jobs found at the open, those found damaged since, when their segment was checked.
    pub lost: u64,
    /// Damaged regions found and set aside since the queue was opened, not counting those in the
    /// [`RecoveryReport`](crate::RecoveryReport).
    pub quarantined: u64,
}

impl Stats {
    /// Jobs that are neither acked nor dead: `ready + delayed + in_flight`.
    pub fn depth(&self) -> u64 {
        self.ready + self.delayed + self.in_flight
    }
}
