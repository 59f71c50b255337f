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
            oldest_ready: dispatch.longest_wait().filter(|_| ready > 0),
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dispatch::source::Source;
    use crate::engine::Running;
    use crate::options::Builder;
    use crate::producer::Place;
    use crate::time::stopped;
    use crate::{EnqueueOptions, RetryPolicy};

    const START: u64 = 1_000_000;

    /// Opens a queue at a second.
    fn open_at(dir: &tempfile::TempDir, second: u64) -> Arc<Running> {
        stopped::set(Some(Duration::from_secs(START + second)));
        let policy = RetryPolicy::fixed(Duration::from_secs(5));
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        Arc::new(Running::open_idle(&builder.retry(policy)).unwrap().0)
    }

    fn enqueue(running: &Running, options: EnqueueOptions) {
        let place = Place::on(&running.dispatch().stripes()[0]);
        running.enqueue_with(place, b"job", &options).unwrap();
    }

    fn take(running: &Running, consumer: &Source<Arc<Running>>) -> Option<impl FnOnce(bool)> {
        let (lease, attempt, delivery) = running.begin(consumer.try_next()?).unwrap();
        Some(move |ack| match ack {
            true => running.ack(lease, delivery, attempt),
            false => running.fail(lease, delivery, attempt, "not yet".into()),
        })
    }

    /// The seconds for which the job has been due that waits longest, at a second.
    fn wait_at(running: &Running, second: u64) -> Option<u64> {
        stopped::set(Some(Duration::from_secs(START + second)));
        running.turn_timer();
        let wait = Stats::of(running).oldest_ready?;
        Some(wait.as_secs())
    }

    #[test]
    fn the_longest_wait_is_that_of_jobs_that_are_due_and_in_no_hands() {
        let dir = tempfile::tempdir().unwrap();
        let running = open_at(&dir, 0);
        let now = EnqueueOptions::new;
        let delay = |seconds| now().delay(Duration::from_secs(seconds));
        enqueue(&running, delay(3600));
        assert_eq!(wait_at(&running, 10), None);
        enqueue(&running, delay(20));
        enqueue(&running, now());
        enqueue(&running, now());
        // Behind two delayed ones, with no consumer.
        assert_eq!(wait_at(&running, 14), Some(4));
        // In the deque of a consumer that is busy.
        let consumer = Source::new(Arc::clone(&running));
        let first = take(&running, &consumer).unwrap();
        assert_eq!(wait_at(&running, 17), Some(7));
        let second = take(&running, &consumer).unwrap();
        assert_eq!(wait_at(&running, 29), None);
        // It comes back from the timer.
        assert_eq!(wait_at(&running, 30), Some(0));
        assert_eq!(wait_at(&running, 31), Some(1));
        let third = take(&running, &consumer).unwrap();
        assert_eq!(wait_at(&running, 32), None);
        // Retries wait from the end of their backoff.
        first(false);
        second(true);
        assert_eq!(wait_at(&running, 36), None);
        assert_eq!(wait_at(&running, 37), Some(0));
        assert_eq!(wait_at(&running, 40), Some(3));
        take(&running, &consumer).unwrap()(true);
        third(true);
        assert_eq!(wait_at(&running, 41), None);
        enqueue(&running, now());
        drop(consumer);
        drop(running);
        // Before anybody has looked at its segment.
        let running = open_at(&dir, 50);
        assert_eq!(Stats::of(&running).depth(), 2);
        let consumer = Source::new(Arc::clone(&running));
        take(&running, &consumer).unwrap()(true);
        assert_eq!(wait_at(&running, 51), None);
        enqueue(&running, now());
        assert_eq!(wait_at(&running, 55), Some(4));
        stopped::set(None);
    }

    #[test]
    fn the_longest_wait_is_known_of_jobs_found_at_open() {
        let dir = tempfile::tempdir().unwrap();
        let running = open_at(&dir, 0);
        enqueue(&running, EnqueueOptions::new());
        drop(running);
        let running = open_at(&dir, 50);
        assert_eq!(wait_at(&running, 55), Some(55));
        let consumer = Source::new(Arc::clone(&running));
        let job = take(&running, &consumer).unwrap();
        assert_eq!(wait_at(&running, 56), None);
        job(true);
        stopped::set(None);
    }
}
