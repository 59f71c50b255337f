//! Lease timeouts: which deliveries are running, and since when.
//!
//! Only used when a timeout is set. Every lease of the queue then owns a share of its segment's
//! mappings, since a job can have two: the one that timed out and the one that replaced it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::Sequence;
use crate::events::Mutex;
use crate::log::segment::Lease;
use crate::time::Tick;

/// A delivery: tells the current lease of a job from one that has timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery(u64);

impl Delivery {
    /// For queues without a lease timeout, where every lease is the only one.
    pub(crate) const ONLY: Self = Self(0);
}

/// A delivery that has timed out.
pub(crate) struct Expired {
    pub(crate) lease: Lease,
    pub(crate) attempts: u32,
}

/// The deliveries that are running.
pub(crate) struct Leases {
    timeout: Duration,
    state: Mutex<State>,
}

struct State {
    last: u64,
    /// By the job's sequence. Its lease goes with the delivery's end: it keeps a segment.
    current: HashMap<Sequence, Running>,
    /// In order, as all run equally long; those of deliveries that ended before among them.
    ends: VecDeque<End>,
}

struct Running {
    delivery: Delivery,
    lease: Lease,
    attempts: u32,
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
                current: HashMap::new(),
                ends: VecDeque::new(),
            }),
        }
    }

    /// Begins a delivery. The second value: no other was running, so the timer must be told.
    pub(crate) fn begin(&self, lease: &Lease, attempts: u32, now: Tick) -> (Delivery, bool) {
        let mut state = self.state.lock();
        state.last += 1;
        let delivery = Delivery(state.last);
        let first = state.ends.is_empty();
        if let Some(lease) = lease.duplicate() {
            let sequence = lease.sequence();
            state.ends.push_back(End {
                at: now.saturating_add(self.timeout),
                sequence,
                delivery,
            });
            let running = Running {
                delivery,
                lease,
                attempts,
            };
            state.current.insert(sequence, running);
        }
        (delivery, first)
    }

    /// Ends a delivery. Returns whether it was still the job's current one.
    pub(crate) fn end(&self, sequence: Sequence, delivery: Delivery) -> bool {
        let mut state = self.state.lock();
        let is_current = state.is_current(sequence, delivery);
        if is_current {
            state.current.remove(&sequence);
        }
        // Those that ended go as they come to the front, so that the queue stays as long as the
        // deliveries of one timeout.
        state.drop_ended();
        is_current
    }

    /// Takes out the deliveries that have timed out, and says when the next one would.
    pub(crate) fn expire(&self, now: Tick) -> (Vec<Expired>, Option<Tick>) {
        let mut state = self.state.lock();
        let mut expired = Vec::new();
        state.drop_ended();
        while let Some(end) = state.ends.pop_front_if(|end| end.at <= now) {
            if let Some(running) = state.current.remove(&end.sequence) {
                expired.push(Expired {
                    lease: running.lease,
                    attempts: running.attempts,
                });
            }
            state.drop_ended();
        }
        (expired, state.ends.front().map(|end| end.at))
    }
}

impl State {
    fn is_current(&self, sequence: Sequence, delivery: Delivery) -> bool {
        let running = self.current.get(&sequence);
        running.is_some_and(|running| running.delivery == delivery)
    }

    fn drop_ended(&mut self) {
        while let Some(end) = self.ends.front()
            && !self.is_current(end.sequence, end.delivery)
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
        leases.begin(&slow, 1, now);
        let (delivery, _) = leases.begin(&quick, 1, now);
        assert!(leases.end(quick.sequence(), delivery));
        assert!(quick.ack().segment_complete);
        let maps = second.retire().unwrap();
        assert_eq!(Arc::strong_count(&maps), 1);
    }

    #[test]
    fn only_a_delivery_that_runs_can_end_or_expire() {
        let dir = tempfile::tempdir().unwrap();
        let (_segment, lease) = segment_and_lease(dir.path(), 0);
        let leases = Leases::new(Duration::ZERO);
        let now = Clock::start().now();
        let (first, is_first) = leases.begin(&lease, 1, now);
        assert!(is_first);
        let (expired, next) = leases.expire(now);
        assert_eq!((expired.len(), next), (1, None));
        assert_eq!(expired[0].lease.sequence(), lease.sequence());
        assert!(!leases.end(lease.sequence(), first));
        let (second, _) = leases.begin(&lease, 2, now);
        assert!(!leases.end(lease.sequence(), first));
        assert!(leases.end(lease.sequence(), second));
        let (expired, next) = leases.expire(now);
        assert_eq!((expired.len(), next), (0, None));
    }
}
