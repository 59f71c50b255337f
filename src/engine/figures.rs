//! Statistics of an open queue, and verification of all its records.

use super::Engine;
use crate::log::LogStats;
use crate::log::recovery::VerifyReport;
use crate::{Stats, StorageError, Timestamp};

impl Engine {
    /// See [`Queue::stats`](crate::Queue::stats).
    pub(crate) fn stats(&self) -> Stats {
        let dispatch = self.dispatch();
        let mut log = LogStats::default();
        let mut quarantined = 0;
        let mut oldest: Option<Timestamp> = None;
        // Before the records are counted, and what has left its old place after that: a job that is
        // moved in the meantime is counted, if need be twice.
        let copied = dispatch.moved().copied;
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
            let first = stripe.oldest_enqueued_at(&|record| dispatch.is_gone(record));
            oldest = oldest.into_iter().chain(first).min();
        }
        let dead_log = self.dead().stats();
        let counters = self.counters();
        let moved = dispatch.moved().moved;
        // Counted as cancelled, and still in the log.
        let unmet = dispatch.cancels.waiting();
        // Under load, a count subtracted here may have changed after the one it is subtracted from
        // was read. The parts are capped by their total, so that they add up.
        let twice = copied.saturating_sub(moved);
        let depth = log.live.saturating_sub(dead_log.dying + twice + unmet);
        let delayed = (dispatch.timer.len() as u64).min(depth);
        let left = depth - delayed;
        let (ready, in_flight) = match self.leases() {
            // A consumer that takes a job out of a deque may find that it is already done.
            Some(leases) => {
                let in_flight = leases.running().min(left);
                (left - in_flight, in_flight)
            }
            None => {
                let waiting = log.unclaimed + dispatch.queued();
                let ready = waiting.saturating_sub(unmet).min(left);
                (ready, left - ready)
            }
        };
        Stats {
            ready,
            delayed,
            in_flight,
            dead: dead_log.letters,
            bytes: log.bytes + dead_log.bytes,
            segments: log.segments + dead_log.segments,
            oldest: oldest.map(|oldest| self.clock.wall().since(oldest)),
            oldest_ready: dispatch.longest_wait().filter(|_| ready > 0),
            recovered: self.recovered,
            lost: log.lost,
            enqueued: log.appended.saturating_sub(copied),
            acked: log
                .done
                .saturating_sub(moved + counters.dead_lettered + counters.expired)
                .saturating_sub(counters.cancelled - unmet.min(counters.cancelled)),
            retried: counters.retried,
            snoozed: counters.snoozed,
            expired: counters.expired,
            cancelled: counters.cancelled,
            dead_lettered: counters.dead_lettered + dead_log.dying,
            quarantined: quarantined + dead_log.quarantined,
        }
    }

    /// See [`Queue::verify`](crate::Queue::verify).
    pub(crate) fn verify(&self) -> Result<VerifyReport, StorageError> {
        let mut report = VerifyReport::default();
        for log in self.logs() {
            let one = log.verify()?;
            report.segments += one.segments;
            report.records += one.records;
            report.bytes += one.bytes;
            report.damaged.extend(one.damaged);
        }
        Ok(report)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use crate::dispatch::source::Source;
    use crate::engine::Running;
    use crate::engine::enqueue::Place;
    use crate::options::Builder;
    use crate::time::stopped;
    use crate::{EnqueueOptions, RetryPolicy};
    use std::time::Duration;

    const START: u64 = 1_000_000;

    /// Opens a queue on a clock stopped at this second.
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

    /// At this second, how many seconds the job that waits longest has been due.
    fn wait_at(running: &Running, second: u64) -> Option<u64> {
        stopped::set(Some(Duration::from_secs(START + second)));
        running.turn_timer();
        let wait = running.stats().oldest_ready?;
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
        // Behind two delayed jobs, without a consumer.
        assert_eq!(wait_at(&running, 14), Some(4));
        // In the deque of a busy consumer.
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
        // Before its segment is read for the first time.
        let running = open_at(&dir, 50);
        assert_eq!(running.stats().depth(), 2);
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
