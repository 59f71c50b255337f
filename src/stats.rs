//! Figures of what is in a queue and what has gone through it.

use std::time::Duration;

/// A snapshot of a queue's figures, from [`Queue::stats`](crate::Queue::stats).
///
/// Each job is counted once: `recovered + enqueued == acked + expired + cancelled + dead_lettered +
/// depth() + lost`, and [`depth`](Self::depth) is what [`max_depth`](crate::Builder::max_depth) limits. The figures are
/// read one after the other while the queue is in use, so under load they may differ by the few
/// jobs that change state meanwhile.
///
/// ```
/// use logmill::Queue;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// queue.enqueue(b"resize cat.jpg")?;
///
/// let stats = queue.stats();
/// assert_eq!((stats.enqueued, stats.ready, stats.depth()), (1, 1, 1));
/// if stats.oldest_ready > Some(Duration::from_secs(60)) {
///     println!("consumers are stuck or too slow: {stats:?}");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Jobs that wait for a consumer.
    ///
    /// Includes jobs that wait for another job with a crash to finish first (see
    /// [`Job::crashes`](crate::Job::crashes)). A job that is not due yet counts as ready until a
    /// consumer claims it and finds out.
    pub ready: u64,
    /// Jobs that wait for their due time or for the end of their backoff.
    pub delayed: u64,
    /// Jobs that were delivered and are not settled yet.
    ///
    /// A job whose delivery has [timed out](crate::Builder::lease_timeout) counts under the state
    /// that it has had since then.
    pub in_flight: u64,
    /// Dead letters, including those about to be written.
    pub dead: u64,
    /// Bytes of the segment files, including the dead letter log's.
    ///
    /// The disk holds more: ack files (about 13%), and the segments that each stripe keeps ready
    /// for use.
    pub bytes: u64,
    /// Segments in use, including the dead letter log's.
    ///
    /// These hold jobs or letters, are being appended to, or are about to be removed.
    pub segments: u64,
    /// How long ago the oldest unsettled job was enqueued, delayed jobs included; None if there is
    /// none.
    ///
    /// The oldest is the first in the log: a job that was delayed for long may have been moved to
    /// the end.
    pub oldest: Option<Duration>,
    /// For how long the job that has waited longest for a consumer has been due; None if none
    /// waits.
    ///
    /// This is the figure to alert on: it grows when consumers are stuck or too slow, and it
    /// includes no delay, no backoff and no handler's own time.
    ///
    /// At most 4,096 jobs of each stripe are examined: a due job behind more than that many jobs
    /// which are not due, and which no consumer has reached, is not found. Jobs that are delivered
    /// one at a time, because the process died while a handler had them, do not count.
    pub oldest_ready: Option<Duration>,
    /// Jobs found when the queue was opened, as in [`RecoveryReport`](crate::RecoveryReport).
    ///
    /// Jobs of sealed segments, which are checked later, are counted before their check.
    pub recovered: u64,
    /// Jobs enqueued since the queue was opened, including replayed letters.
    pub enqueued: u64,
    /// Jobs acked since the queue was opened, including those found at the open.
    pub acked: u64,
    /// Failed attempts since the queue was opened, including timeouts, after which the job came
    /// back.
    pub retried: u64,
    /// Jobs given back by [`Job::snooze`](crate::Job::snooze) since the queue was opened, each time.
    pub snoozed: u64,
    /// Jobs that were cancelled, from when they take no more room: a waiting one when it is
    /// cancelled, one in a handler when that ends other than by an ack.
    pub cancelled: u64,
    /// Jobs that [expired](crate::EnqueueOptions::expires_after) since the queue was opened, except
    /// those that became dead letters.
    pub expired: u64,
    /// Jobs that became dead letters since the queue was opened.
    pub dead_lettered: u64,
    /// Jobs found at the open that turned out to be damaged when their segment was checked.
    pub lost: u64,
    /// Damaged regions quarantined since the queue was opened.
    ///
    /// Does not count those in the [`RecoveryReport`](crate::RecoveryReport).
    pub quarantined: u64,
}

impl Stats {
    /// Jobs that are neither acked nor dead: `ready + delayed + in_flight`.
    pub fn depth(&self) -> u64 {
        self.ready + self.delayed + self.in_flight
    }
}
