//! Jobs that are not due yet: delayed by their producer, or backing off after a failure.
//!
//! A map ordered by due time, and a condition variable for the timer thread that empties it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::Sequence;
use crate::log::segment::Lease;
use crate::time::{Clock, Tick};

// What a delayed job costs in memory, as documented.
const _: () = assert!(size_of::<(Due, Lease)>() <= 32);

/// When a job is due, and which it is: by due time, then in log order.
type Due = (Tick, Sequence);

/// The jobs that are not due yet.
pub(crate) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: BTreeMap<Due, Lease>,
    /// When those are due that a handler may still ack although they have timed out.
    late: HashMap<Sequence, Tick>,
    interrupted: bool,
    stopped: bool,
}

impl State {
    fn take_due(&mut self, now: Tick) -> Vec<Lease> {
        let mut due = Vec::new();
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            let ((_, sequence), lease) = first.remove_entry();
            self.late.remove(&sequence);
            due.push(lease);
        }
        due
    }
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: BTreeMap::new(),
                late: HashMap::new(),
                interrupted: false,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Has a job wait until it is due. `late`: some handler may still [ack](Self::take_late) it.
    /// Returns false if one has, and then the job does not wait.
    pub(crate) fn schedule(&self, lease: Lease, due: Tick, late: bool) -> bool {
        let sequence = lease.sequence();
        let mut state = self.state.lock();
        if lease.is_done() {
            return false;
        }
        let earliest = state
            .waiting
            .keys()
            .next()
            .is_none_or(|first| due < first.0);
        state.waiting.insert((due, sequence), lease);
        if late {
            state.late.insert(sequence, due);
        }
        drop(state);
        if earliest {
            self.changed.notify_one();
        }
        true
    }

    /// Takes out a job that a handler has acked although it had timed out.
    ///
    /// The job was marked done before: so either it waits and is found here, or whoever brings it
    /// finds it done.
    pub(crate) fn take_late(&self, sequence: Sequence) -> Option<Lease> {
        let mut state = self.state.lock();
        let due = state.late.remove(&sequence)?;
        state.waiting.remove(&(due, sequence))
    }

    /// Jobs that are not due yet.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().waiting.len()
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
            let next = state.waiting.keys().next().map(|first| first.0);
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
        let mut state = self.state.lock();
        state.late.clear();
        std::mem::take(&mut state.waiting).into_values().collect()
    }

    /// The ids of the jobs that wait.
    #[cfg(test)]
    pub(crate) fn jobs(&self) -> Vec<Sequence> {
        self.state.lock().waiting.values().map(Lease::job).collect()
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

    /// Takes out the jobs in the given segment that are due after `after`, for compaction; not those
    /// that a handler may still ack.
    pub(crate) fn take_segment(&self, base: Sequence, after: Tick) -> Vec<(Lease, Tick)> {
        let mut state = self.state.lock();
        let State { waiting, late, .. } = &mut *state;
        let is_wanted = |&(due, sequence): &Due, lease: &mut Lease| {
            due > after && lease.segment_base() == base && !late.contains_key(&sequence)
        };
        let taken = waiting.extract_if(.., is_wanted);
        taken.map(|((due, _), lease)| (lease, due)).collect()
    }

    /// How many jobs wait in each segment, and the earliest due time among them. Without those that
    /// a handler may still ack.
    pub(crate) fn by_segment(&self) -> HashMap<Sequence, (u32, Tick)> {
        let state = self.state.lock();
        let mut segments = HashMap::new();
        for (&(due, sequence), lease) in &state.waiting {
            if !state.late.contains_key(&sequence) {
                // The first one seen is the earliest.
                let (count, _) = segments.entry(lease.segment_base()).or_insert((0, due));
                *count += 1;
            }
        }
        segments
    }
}
