//! Jobs that are not due yet: delayed by their producer, or backing off after a failure.
//!
//! A delay runs on the monotonic clock; a due time is waited for on the wall clock, wherever that
//! jumps to. For each a map ordered by due time, and a condition variable for the timer thread that empties it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::log::segment::Lease;
use crate::time::{Clock, Tick};
use crate::{Sequence, Timestamp};

/// How often the wall clock is looked at while a job waits for a time that it is to show: it may jump,
/// or the machine be suspended, and nobody would tell.
const WALL_CLOCK_LOOK: Duration = Duration::from_secs(10);

/// When a job is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// When so much time has passed, whatever the wall clock does.
    After(Tick),
    /// When the wall clock shows this time.
    At(Timestamp),
}

/// The same moment on both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) tick: Tick,
    pub(crate) wall: Timestamp,
}

impl Now {
    pub(crate) fn of(clock: Clock) -> Self {
        Self {
            tick: clock.now(),
            wall: Timestamp::now(),
        }
    }

    /// How long from now a job is due.
    pub(crate) fn until(self, when: When) -> Duration {
        match when {
            When::After(due) => due.since(self.tick),
            When::At(due) => due.since(self.wall),
        }
    }
}

/// Jobs by when they are due, then in log order.
type ByDue<T> = BTreeMap<(T, Sequence), Lease>;

// What a delayed job costs in memory, as documented.
const _: () = assert!(size_of::<(Tick, Sequence, Lease)>() <= 32);

/// The jobs that are not due yet.
pub(crate) struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    after: ByDue<Tick>,
    at: ByDue<Timestamp>,
    /// When those are due that a handler may still ack although they have timed out.
    late: HashMap<Sequence, When>,
    interrupted: bool,
    stopped: bool,
}

impl State {
    fn take_due(&mut self, now: Now) -> Vec<Lease> {
        let mut due = Vec::new();
        take_first(&mut self.after, now.tick, &mut due);
        take_first(&mut self.at, now.wall, &mut due);
        if !self.late.is_empty() {
            due.iter()
                .for_each(|lease| _ = self.late.remove(&lease.sequence()));
        }
        due
    }

    /// How long from now until there may be something to take.
    fn next(&self, now: Now) -> Option<Duration> {
        let after = self.after.keys().next().map(|&(due, _)| When::After(due));
        let at = self.at.keys().next().map(|&(due, _)| When::At(due));
        let after = after.map(|due| now.until(due));
        let at = at.map(|due| now.until(due).min(WALL_CLOCK_LOOK));
        after.into_iter().chain(at).min()
    }

    fn len(&self) -> usize {
        self.after.len() + self.at.len()
    }

    fn each(&self) -> impl Iterator<Item = (When, &Lease)> {
        let after = self.after.iter();
        let at = self.at.iter();
        after
            .map(|(&(due, _), lease)| (When::After(due), lease))
            .chain(at.map(|(&(due, _), lease)| (When::At(due), lease)))
    }
}

/// Takes what is due, earliest first.
fn take_first<T: Ord + Copy>(waiting: &mut ByDue<T>, now: T, due: &mut Vec<Lease>) {
    while let Some(first) = waiting.first_entry()
        && first.key().0 <= now
    {
        due.push(first.remove());
    }
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                after: BTreeMap::new(),
                at: BTreeMap::new(),
                late: HashMap::new(),
                interrupted: false,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Has a job wait until it is due. `late`: some handler may still [ack](Self::take_late) it.
    /// Returns false if one has, and then the job does not wait.
    pub(crate) fn schedule(&self, lease: Lease, when: When, late: bool) -> bool {
        let sequence = lease.sequence();
        let mut state = self.state.lock();
        if lease.is_done() {
            return false;
        }
        let earliest = match when {
            When::After(due) => insert(&mut state.after, (due, sequence), lease),
            When::At(due) => insert(&mut state.at, (due, sequence), lease),
        };
        if late {
            state.late.insert(sequence, when);
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
        match state.late.remove(&sequence)? {
            When::After(due) => state.after.remove(&(due, sequence)),
            When::At(due) => state.at.remove(&(due, sequence)),
        }
    }

    /// Jobs that are not due yet.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().len()
    }

    /// Waits until something is due, or `also` is reached, or somebody interrupts, and returns what
    /// is due, earliest first; None once stopped.
    pub(crate) fn wait(&self, clock: Clock, also: Option<Tick>) -> Option<Vec<Lease>> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = Now::of(clock);
            let due = state.take_due(now);
            let interrupted = std::mem::take(&mut state.interrupted);
            if interrupted || !due.is_empty() || also.is_some_and(|also| also <= now.tick) {
                return Some(due);
            }
            let next = state.next(now);
            let also = also.map(|also| also.since(now.tick));
            match next.into_iter().chain(also).min() {
                // At least a microsecond: a shorter wait would return at once, again and again.
                Some(next) => {
                    let left = next.max(Duration::from_micros(1));
                    self.changed.wait_for(&mut state, left);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// What is due at this time, without waiting.
    #[cfg(test)]
    pub(crate) fn take_due(&self, now: Now) -> Vec<Lease> {
        self.state.lock().take_due(now)
    }

    /// All that wait.
    #[cfg(test)]
    pub(crate) fn take_all(&self) -> Vec<Lease> {
        let mut state = self.state.lock();
        state.late.clear();
        let after = std::mem::take(&mut state.after).into_values();
        let at = std::mem::take(&mut state.at).into_values();
        after.chain(at).collect()
    }

    /// The ids of the jobs that wait.
    #[cfg(test)]
    pub(crate) fn jobs(&self) -> Vec<Sequence> {
        let state = self.state.lock();
        state.each().map(|(_, lease)| lease.job()).collect()
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

    /// Takes out the jobs in the given segment, for compaction; not those that a handler may still
    /// ack.
    pub(crate) fn take_segment(&self, base: Sequence) -> Vec<(Lease, When)> {
        let mut state = self.state.lock();
        let State {
            after, at, late, ..
        } = &mut *state;
        let is_wanted = |lease: &Lease| {
            lease.segment_base() == base
                && (late.is_empty() || !late.contains_key(&lease.sequence()))
        };
        let after = after.extract_if(.., |_, lease| is_wanted(lease));
        let at = at.extract_if(.., |_, lease| is_wanted(lease));
        after
            .map(|((due, _), lease)| (lease, When::After(due)))
            .chain(at.map(|((due, _), lease)| (lease, When::At(due))))
            .collect()
    }

    /// How many jobs wait in each segment, and how long from now the first of them is due. Without
    /// those that a handler may still ack.
    pub(crate) fn by_segment(&self, now: Now) -> HashMap<Sequence, (u32, Duration)> {
        let state = self.state.lock();
        let mut segments = HashMap::new();
        for (when, lease) in state.each() {
            if state.late.is_empty() || !state.late.contains_key(&lease.sequence()) {
                let left = now.until(when);
                let (count, least) = segments.entry(lease.segment_base()).or_insert((0, left));
                *count += 1;
                *least = left.min(*least);
            }
        }
        segments
    }
}

/// Returns whether it is the earliest.
fn insert<T: Ord + Copy>(waiting: &mut ByDue<T>, due: (T, Sequence), lease: Lease) -> bool {
    let earliest = waiting.keys().next().is_none_or(|first| due < *first);
    waiting.insert(due, lease);
    earliest
}
