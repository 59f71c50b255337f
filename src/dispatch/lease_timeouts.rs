//! Lease timeouts: which deliveries are running, and when each times out.
//!
//! This is only used when a timeout is set. Every lease of the queue then owns a share of its
//! segment's mappings, since a job can have two leases: the one that timed out and its replacement.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::events::Mutex;
use crate::log::lease::{Acked, Lease};
use crate::sequence::{Sequence, SequenceMap};
use crate::time::Tick;

/// The number of a delivery. It tells the current lease of a job from one that has timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Delivery(u64);

impl Delivery {
    /// For queues without a lease timeout, where a job has only one lease.
    pub(crate) const ONLY: Self = Self(0);
}

/// A delivery that has timed out.
pub(crate) struct TimedOut {
    pub(crate) lease: Lease,
    pub(crate) attempts: u32,
}

/// The running deliveries.
pub(crate) struct Leases {
    timeout: Duration,
    state: Mutex<State>,
}

struct State {
    last: u64,
    /// By the job's sequence. The lease is dropped when the delivery ends, because it keeps a
    /// segment.
    current: SequenceMap<CurrentDelivery>,
    /// How many handlers still have a job although they do not hold its current delivery.
    late: SequenceMap<u32>,
    /// Ends in order, since these deliveries run equally long. Includes deliveries that ended
    /// earlier, and those that end at another time.
    ends: VecDeque<End>,
    /// Ends of the other deliveries: jobs with timeouts of their own, and handlers that asked for
    /// more time.
    other_ends: BTreeSet<(Tick, Sequence, Delivery)>,
}

/// What a delivery was to its job when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The current one. `others`: other handlers have the job too, and may ack it.
    Current { others: bool },
    /// One that had timed out, or whose job another handler had acked.
    Late,
}

struct CurrentDelivery {
    delivery: Delivery,
    lease: Lease,
    attempts: u32,
    timeout: Duration,
    ends: Tick,
}

struct End {
    at: Tick,
    sequence: Sequence,
    delivery: Delivery,
}

impl Leases {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            state: Mutex::new(State {
                last: 0,
                current: SequenceMap::default(),
                late: SequenceMap::default(),
                ends: VecDeque::new(),
                other_ends: BTreeSet::new(),
            }),
        }
    }

    /// Begins a delivery; None if the job was cancelled, or is done because a handler with an
    /// earlier delivery acked it. The second value is true if no other delivery ends earlier, so that the timer must be
    /// told. `own`: the job's own timeout.
    ///
    /// Here and below, delivery words in the ack file are changed under the lock, because several
    /// handlers may have the job.
    pub(crate) fn begin(
        &self,
        lease: &Lease,
        attempts: u32,
        own: Option<Duration>,
        now: Tick,
        is_cancelled: impl FnOnce(Sequence) -> bool,
    ) -> Option<(Delivery, bool)> {
        let mut state = self.state.lock();
        // Asked under the lock under which a thread that cancels the job looks for a handler.
        if lease.is_done() || is_cancelled(lease.sequence()) {
            return None;
        }
        lease.begin_delivery();
        state.last += 1;
        let delivery = Delivery(state.last);
        let timeout = own.unwrap_or(self.timeout);
        let ends = now.saturating_add(timeout);
        let first = state.next_end().is_none_or(|next| ends < next);
        if let Some(lease) = lease.duplicate() {
            let sequence = lease.sequence();
            match own {
                None => state.ends.push_back(End {
                    at: ends,
                    sequence,
                    delivery,
                }),
                Some(_) => _ = state.other_ends.insert((ends, sequence, delivery)),
            }
            let running = CurrentDelivery {
                delivery,
                lease,
                attempts,
                timeout,
                ends,
            };
            state.current.insert(sequence, running);
        }
        Some((delivery, first))
    }

    /// Lets a delivery run for its whole timeout again, from now on. Returns false if it is not its
    /// job's current one any more.
    pub(crate) fn touch(&self, lease: &Lease, delivery: Delivery, now: Tick) -> bool {
        let mut state = self.state.lock();
        let sequence = lease.sequence();
        let State {
            current,
            other_ends,
            ..
        } = &mut *state;
        let running = current.get_mut(&sequence);
        let Some(running) = running.filter(|running| running.delivery == delivery) else {
            return false;
        };
        other_ends.remove(&(running.ends, sequence, delivery));
        running.ends = now.saturating_add(running.timeout);
        other_ends.insert((running.ends, sequence, delivery));
        true
    }

    /// Ends a delivery without an attempt that failed.
    pub(crate) fn release(&self, lease: &Lease, delivery: Delivery) -> Ended {
        let mut state = self.state.lock();
        let sequence = lease.sequence();
        let ended = state.end(sequence, delivery);
        if !state.has_handler(sequence) {
            lease.end_delivery();
        }
        ended
    }

    /// Keeps a delivery from timing out, unless it has. Returns whether it is its job's current one.
    pub(crate) fn fence(&self, lease: &Lease, delivery: Delivery) -> bool {
        let mut state = self.state.lock();
        let State {
            current,
            other_ends,
            ..
        } = &mut *state;
        let sequence = lease.sequence();
        let running = current.get_mut(&sequence);
        let Some(running) = running.filter(|running| running.delivery == delivery) else {
            return false;
        };
        other_ends.remove(&(running.ends, sequence, delivery));
        running.ends = Tick::MAX;
        state.drop_ended();
        true
    }

    /// Acks a job and ends its delivery, if that is its current one; if not, returns the lease, and
    /// [`end_late`](Self::end_late) is to be called once the job is acked.
    ///
    /// The job is marked done under the lock: whoever cancels it finds that a handler has it, or
    /// that it is done.
    pub(crate) fn ack(&self, lease: Lease, delivery: Delivery) -> Result<Acked, Lease> {
        // Its lease may be the last one of a segment, which is unmapped then: not under the lock.
        let _running;
        let mut state = self.state.lock();
        let sequence = lease.sequence();
        if !state.is_current(sequence, delivery) {
            return Err(lease);
        }
        _running = state.remove(sequence);
        state.drop_ended();
        Ok(lease.ack())
    }

    /// Ends a delivery by a failure. A delivery that is not the current one has already failed, by
    /// its timeout.
    pub(crate) fn fail(&self, lease: &Lease, delivery: Delivery) -> Ended {
        let mut state = self.state.lock();
        let sequence = lease.sequence();
        let ended = state.end(sequence, delivery);
        match ended {
            Ended::Current { others } => lease.count_failure(others),
            Ended::Late if state.has_handler(sequence) => {}
            Ended::Late => lease.end_delivery(),
        }
        ended
    }

    /// Ends, by an ack, a delivery that is not its job's current one. The job is done, so it has no
    /// current delivery from here on. Until this call the handler counts as having the job, so that
    /// the writer of the job's letter remembers where the letter is.
    pub(crate) fn end_late(&self, sequence: Sequence) {
        let mut state = self.state.lock();
        if state.remove(sequence).is_some() {
            state.note_late(sequence);
        }
        state.end_late(sequence);
        state.drop_ended();
    }

    /// Whether a handler has a job, in time or late.
    pub(crate) fn has_handler(&self, sequence: Sequence) -> bool {
        self.state.lock().has_handler(sequence)
    }

    /// Whether a job has a current delivery.
    pub(crate) fn is_running(&self, sequence: Sequence) -> bool {
        self.state.lock().current.contains_key(&sequence)
    }

    /// How many jobs have a current delivery.
    pub(crate) fn running(&self) -> u64 {
        self.state.lock().current.len() as u64
    }

    /// Takes out the deliveries that have timed out; also returns when the next one will.
    pub(crate) fn time_out(&self, now: Tick) -> (Vec<TimedOut>, Option<Tick>) {
        let mut state = self.state.lock();
        let mut timed_out = Vec::new();
        state.drop_ended();
        while let Some((_, sequence)) = state.next().filter(|&(at, _)| at <= now) {
            if let Some(running) = state.remove(sequence) {
                // Its handler has the job until it acks or fails it.
                running.lease.count_failure(true);
                state.note_late(sequence);
                timed_out.push(TimedOut {
                    lease: running.lease,
                    attempts: running.attempts,
                });
            }
            state.drop_ended();
        }
        (timed_out, state.next_end())
    }
}

impl State {
    fn end(&mut self, sequence: Sequence, delivery: Delivery) -> Ended {
        let is_current = self.is_current(sequence, delivery);
        if is_current {
            self.remove(sequence);
        } else {
            self.end_late(sequence);
        }
        // Ended deliveries are dropped as they reach the front, so that the queue holds no more
        // than the deliveries of one timeout.
        self.drop_ended();
        if is_current {
            Ended::Current {
                others: self.late.contains_key(&sequence),
            }
        } else {
            Ended::Late
        }
    }

    fn end_late(&mut self, sequence: Sequence) {
        if let Some(late) = self.late.get_mut(&sequence) {
            *late -= 1;
            if *late == 0 {
                self.late.remove(&sequence);
            }
        }
    }

    fn has_handler(&self, sequence: Sequence) -> bool {
        self.late.contains_key(&sequence) || self.current.contains_key(&sequence)
    }

    fn is_current(&self, sequence: Sequence, delivery: Delivery) -> bool {
        let running = self.current.get(&sequence);
        running.is_some_and(|running| running.delivery == delivery)
    }

    /// Takes out the current delivery of a job.
    fn remove(&mut self, sequence: Sequence) -> Option<CurrentDelivery> {
        let running = self.current.remove(&sequence)?;
        let end = (running.ends, sequence, running.delivery);
        self.other_ends.remove(&end);
        Some(running)
    }

    /// The current delivery that ends first. What has ended was dropped from the front.
    fn next(&self) -> Option<(Tick, Sequence)> {
        let usual = self.ends.front().map(|end| (end.at, end.sequence));
        let other = self.other_ends.first();
        let other = other.map(|&(at, sequence, _)| (at, sequence));
        usual.into_iter().chain(other).min()
    }

    fn next_end(&self) -> Option<Tick> {
        self.next().map(|(at, _)| at)
    }

    fn note_late(&mut self, sequence: Sequence) {
        *self.late.entry(sequence).or_default() += 1;
    }

    fn drop_ended(&mut self) {
        let is_over = |end: &End, current: &SequenceMap<CurrentDelivery>| {
            let running = current.get(&end.sequence);
            running.is_none_or(|running| running.delivery != end.delivery || running.ends != end.at)
        };
        while let Some(end) = self.ends.front()
            && is_over(end, &self.current)
        {
            self.ends.pop_front();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Timestamp;
    use crate::log::header::Identity;
    use crate::log::record::NewRecord;
    use crate::log::segment::{Segment, Warm};
    use crate::time::Clock;

    const ALONE: Ended = Ended::Current { others: false };

    /// A full segment with one job, and the counted lease of it.
    fn segment_and_lease(dir: &std::path::Path, base: u64) -> (Arc<Segment>, Lease) {
        let identity = Identity {
            base: Sequence::new(base),
            segment_size: 16384,
            created_at: Timestamp::ZERO,
            salt: 1,
        };
        let segment =
            Segment::create(&crate::log::names::Names::at(dir), identity, Warm::All).unwrap();
        segment.append(&NewRecord {
            enqueued_at: Timestamp::ZERO,
            due_at: Timestamp::ZERO,
            name: b"",
            meta: b"",
            payload: b"job",
        });
        segment.close_now();
        let mut leases = Vec::new();
        let pinned = segment.pin().unwrap();
        pinned.claim_leases(1, usize::MAX, true, &mut leases);
        (segment, leases.remove(0))
    }

    #[test]
    fn a_delivery_that_has_ended_keeps_nothing_while_an_earlier_one_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (_first, slow) = segment_and_lease(dir.path(), 0);
        let (second, quick) = segment_and_lease(dir.path(), 1000);
        let leases = Leases::new(Duration::from_secs(3600));
        let now = Clock::start().now();
        leases.begin(&slow, 1, None, now, |_| false);
        let (delivery, _) = leases.begin(&quick, 1, None, now, |_| false).unwrap();
        let acked = leases.ack(quick, delivery).ok().unwrap();
        assert!(acked.segment_complete);
        let maps = second.retire().unwrap();
        assert_eq!(Arc::strong_count(&maps), 1);
    }

    #[test]
    fn only_the_current_delivery_fails_or_expires() {
        let dir = tempfile::tempdir().unwrap();
        let (_segment, lease) = segment_and_lease(dir.path(), 0);
        let leases = Leases::new(Duration::ZERO);
        let now = Clock::start().now();
        let (first, is_first) = leases.begin(&lease, 1, None, now, |_| false).unwrap();
        assert!(is_first);
        let (timed_out, next) = leases.time_out(now);
        assert_eq!((timed_out.len(), next), (1, None));
        assert_eq!(timed_out[0].lease.sequence(), lease.sequence());
        assert_eq!(leases.fail(&lease, first), Ended::Late);
        let (second, _) = leases.begin(&lease, 2, None, now, |_| false).unwrap();
        assert_eq!(leases.fail(&lease, first), Ended::Late);
        assert_eq!(leases.fail(&lease, second), ALONE);
        let (third, _) = leases.begin(&lease, 3, None, now, |_| false).unwrap();
        leases.time_out(now);
        assert!(!leases.fence(&lease, third));
        assert!(leases.ack(lease.duplicate().unwrap(), third).is_err());
        let (fourth, _) = leases.begin(&lease, 4, None, now, |_| false).unwrap();
        leases.end_late(lease.sequence());
        assert_eq!(leases.running(), 0);
        assert!(leases.has_handler(lease.sequence()));
        assert_eq!(leases.fail(&lease, fourth), Ended::Late);
        let (timed_out, next) = leases.time_out(now);
        assert_eq!((timed_out.len(), next), (0, None));
        assert!(leases.state.lock().late.is_empty());
    }

    #[test]
    fn a_job_that_is_done_is_not_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let (_segment, lease) = segment_and_lease(dir.path(), 0);
        let leases = Leases::new(Duration::ZERO);
        assert!(lease.duplicate().unwrap().ack().first);
        assert!(
            leases
                .begin(&lease, 1, None, Clock::start().now(), |_| false)
                .is_none()
        );
        assert_eq!(leases.running(), 0);
    }

    #[test]
    fn a_job_is_in_a_handler_until_the_last_one_is_done_with_it_whatever_has_timed_out() {
        let dir = tempfile::tempdir().unwrap();
        let (_segment, lease) = segment_and_lease(dir.path(), 0);
        let leases = Leases::new(Duration::ZERO);
        let now = Clock::start().now();
        let said = || {
            let deliveries = lease.deliveries();
            (deliveries.failed(), deliveries.is_running())
        };
        let (first, _) = leases.begin(&lease, 1, None, now, |_| false).unwrap();
        assert_eq!(said(), (0, true));
        leases.time_out(now);
        assert_eq!(said(), (1, true));
        let (second, _) = leases.begin(&lease, 2, None, now, |_| false).unwrap();
        leases.time_out(now);
        let (third, _) = leases.begin(&lease, 3, None, now, |_| false).unwrap();
        assert_eq!(said(), (2, true));
        assert_eq!(leases.fail(&lease, second), Ended::Late);
        assert_eq!(said(), (2, true));
        assert_eq!(leases.fail(&lease, third), Ended::Current { others: true });
        assert_eq!(said(), (3, true));
        assert_eq!(leases.fail(&lease, first), Ended::Late);
        assert_eq!(said(), (3, false));
    }
}
