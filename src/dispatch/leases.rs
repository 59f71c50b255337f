//! Lease timeouts: which deliveries are running, and since when.
//!
//! Only used when a timeout is set. Every lease of the queue then owns a share of its segment's
//! mappings, since a job can have two: the one that timed out and the one that replaced it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;

use crate::Sequence;
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
    current: HashMap<Sequence, Delivery>,
    /// In order of their end, as all run equally long.
    ends: VecDeque<Running>,
}

struct Running {
    end: Tick,
    delivery: Delivery,
    lease: Lease,
    attempts: u32,
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
            state.current.insert(lease.sequence(), delivery);
            state.ends.push_back(Running {
                end: now.saturating_add(self.timeout),
                delivery,
                lease,
                attempts,
            });
        }
        (delivery, first)
    }

    /// Ends a delivery. Returns whether it was still the job's current one.
    pub(crate) fn end(&self, sequence: Sequence, delivery: Delivery) -> bool {
        let mut state = self.state.lock();
        let is_current = state.current.get(&sequence) == Some(&delivery);
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
        while state.ends.front().is_some_and(|running| running.end <= now) {
            if let Some(running) = state.ends.pop_front() {
                state.current.remove(&running.lease.sequence());
                expired.push(Expired {
                    lease: running.lease,
                    attempts: running.attempts,
                });
            }
            state.drop_ended();
        }
        (expired, state.ends.front().map(|running| running.end))
    }
}

impl State {
    fn drop_ended(&mut self) {
        while self.ends.front().is_some_and(|running| {
            self.current.get(&running.lease.sequence()) != Some(&running.delivery)
        }) {
            self.ends.pop_front();
        }
    }
}
