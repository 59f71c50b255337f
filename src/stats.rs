//! What is in a queue, and what has gone through it.

use std::time::Duration;

use crate::Timestamp;
use crate::engine::Engine;
use crate::log::StripeStats;

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
    /// Dead letters.
    pub dead: u64,
    /// Bytes of segment files, the dead letter log's included; without the ack files.
    pub bytes: u64,
    /// Segments, the dead letter log's included.
    pub segments: u64,
    /// How long ago the oldest job that is not settled was enqueued; None if there is none.
    pub oldest: Option<Duration>,
    /// Jobs found when the queue was opened, as in [`RecoveryReport`](crate::RecoveryReport): those
    /// of sealed segments, which are checked later, before their check.
    pub recovered: u64,
    /// Jobs enqueued since the queue was opened, replayed letters included.
    pub enqueued: u64,
    /// Jobs acked since the queue was opened, those found at the open included.
    pub acked: u64,
    /// Failed attempts since the queue was opened after which the job came back.
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

    pub(crate) fn of(engine: &Engine) -> Self {
        let dispatch = engine.dispatch();
        let mut log = StripeStats::default();
        let mut quarantined = 0;
        let mut oldest: Option<Timestamp> = None;
        for stripe in dispatch.stripes() {
            let one = stripe.stats();
            log.live += one.live;
            log.unclaimed += one.unclaimed;
            log.appended += one.appended;
            log.done += one.done;
            log.lost += one.lost;
            log.bytes += one.bytes;
            log.segments += one.segments;
            quarantined += stripe.damaged_regions();
            oldest = oldest.into_iter().chain(stripe.oldest_enqueued_at()).min();
        }
        let dead_log = engine.dead().stats();
        let counters = engine.counters();
        let moved = dispatch.moved();
        // Under load, one of what is subtracted here may have changed since the other was read: the
        // parts are kept within their whole, so that the sum is right.
        let twice = moved.copied - moved.moved;
        let depth = log.live.saturating_sub(dead_log.dying + twice);
        let delayed = (dispatch.timer.len() as u64).min(depth);
        let left = depth - delayed;
        let (ready, in_flight) = match engine.leases() {
            // Whoever takes a job out of a deque may find that it is done.
            Some(leases) => {
                let in_flight = leases.running().min(left);
                (left - in_flight, in_flight)
            }
            None => {
                let ready = (log.unclaimed + dispatch.queued()).min(left);
                (ready, left - ready)
            }
        };
        Self {
            ready,
            delayed,
            in_flight,
            dead: dead_log.letters,
            bytes: log.bytes + dead_log.bytes,
            segments: log.segments + dead_log.segments,
            oldest: oldest.map(|oldest| Timestamp::now().since(oldest)),
            recovered: engine.recovered,
            lost: log.lost,
            enqueued: log.appended.saturating_sub(moved.copied),
            acked: log
                .done
                .saturating_sub(moved.moved + counters.dead_lettered),
            retried: counters.retried,
            dead_lettered: counters.dead_lettered + dead_log.dying,
            quarantined: quarantined + dead_log.quarantined,
        }
    }
}
