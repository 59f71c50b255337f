//! Jobs that are not due yet: delayed by their producer, or backing off after a failure.
//!
//! A heap ordered by due time, and a condition variable for the timer thread that empties it.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::Sequence;
use crate::log::segment::Lease;
use crate::time::{Clock, Tick};

/// A lease and when it is due.
struct Entry {
    due: Tick,
    lease: Lease,
}

// What a delayed job costs in memory, as documented.
const _: () = assert!(size_of::<Entry>() <= 32);

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed, for the earliest to be the heap's greatest; then in log order.
        (other.due, other.lease.sequence()).cmp(&(self.due, self.lease.sequence()))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

/// The jobs that are not due yet.
pub(crate) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    heap: BinaryHeap<Entry>,
    interrupted: bool,
    stopped: bool,
}

impl State {
    fn take_due(&mut self, now: Tick) -> Vec<Lease> {
        let mut due = Vec::new();
        while self.heap.peek().is_some_and(|first| first.due <= now) {
            due.extend(self.heap.pop().map(|entry| entry.lease));
        }
        due
    }
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                heap: BinaryHeap::new(),
                interrupted: false,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn schedule(&self, lease: Lease, due: Tick) {
        let mut state = self.state.lock();
        let earliest = state.heap.peek().is_none_or(|first| due < first.due);
        state.heap.push(Entry { due, lease });
        drop(state);
        if earliest {
            self.changed.notify_one();
        }
    }

    /// Jobs that are not due yet.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().heap.len()
    }

    /// Waits until something is due, or `also` is reached, or somebody interrupts, and returns what
    /// is due, earliest first; None once stopped.
    pub(crate) fn wait(&self, clock: Clock, also: Option<Tick>) -> Option<Vec<Lease>> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = clock.now();
            let due = state.take_due(now);
            let interrupted = std::mem::take(&mut state.interrupted);
            if interrupted || !due.is_empty() || also.is_some_and(|also| also <= now) {
                return Some(due);
            }
            let next = state.heap.peek().map(|first| first.due);
            match next.into_iter().chain(also).min() {
                // At least a microsecond: a shorter wait would return at once, again and again.
                Some(next) => {
                    let left = next.since(now).max(Duration::from_micros(1));
                    self.changed.wait_for(&mut state, left);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// What is due at this time, without waiting.
    #[cfg(test)]
    pub(crate) fn take_due(&self, now: Tick) -> Vec<Lease> {
        self.state.lock().take_due(now)
    }

    /// All that wait.
    #[cfg(test)]
    pub(crate) fn take_all(&self) -> Vec<Lease> {
        let heap = std::mem::take(&mut self.state.lock().heap);
        heap.into_sorted_vec()
            .into_iter()
            .map(|entry| entry.lease)
            .collect()
    }

    /// Has the timer thread look again at what else it waits for.
    pub(crate) fn interrupt(&self) {
        self.state.lock().interrupted = true;
        self.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Takes out the jobs in the given segment that are due after `after`, for compaction.
    pub(crate) fn take_segment(&self, base: Sequence, after: Tick) -> Vec<(Lease, Tick)> {
        let mut state = self.state.lock();
        let mut taken = Vec::new();
        let mut kept = Vec::with_capacity(state.heap.len());
        for entry in std::mem::take(&mut state.heap).into_vec() {
            if entry.due > after && entry.lease.segment_base() == base {
                taken.push((entry.lease, entry.due));
            } else {
                kept.push(entry);
            }
        }
        state.heap = BinaryHeap::from(kept);
        taken
    }

    /// How many jobs wait in each segment, and the earliest due time among them.
    pub(crate) fn by_segment(&self) -> std::collections::HashMap<Sequence, (u32, Tick)> {
        let state = self.state.lock();
        let mut segments = std::collections::HashMap::new();
        for entry in &state.heap {
            let (count, earliest) = segments
                .entry(entry.lease.segment_base())
                .or_insert((0, entry.due));
            *count += 1;
            *earliest = entry.due.min(*earliest);
        }
        segments
    }
}
