//! The timer: jobs that are not due yet, because their producer delayed them or because they back
//! off after a failure.
//!
//! A delay runs on the monotonic clock. A due time follows the wall clock, even if that is changed.
//! For each clock there is a map ordered by due time. A task of the runtime empties both.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::rest::Rest;
use crate::Timestamp;
use crate::log::lease::Lease;
use crate::runtime::Waker;
use crate::sequence::{Sequence, SequenceMap};
use crate::time::{Clock, Tick};

/// How often the wall clock is checked while a job waits for it: the clock may be set, or the
/// machine suspended, without notice.
const WALL_CLOCK_LOOK: Duration = Duration::from_secs(10);

/// When a job is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// After this much time, whatever the wall clock does.
    After(Tick),
    /// When the wall clock shows this time.
    At(Timestamp),
}

/// What became of a job that was to wait.
pub(crate) enum Scheduled {
    Waits,
    /// A handler whose delivery had timed out has acked it.
    Acked,
    Cancelled(Lease),
}

/// The same moment on both clocks.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) tick: Tick,
    pub(crate) wall: Timestamp,
}

impl Now {
    pub(crate) fn of(clock: &Clock) -> Self {
        Self {
            tick: clock.now(),
            wall: clock.wall(),
        }
    }

    /// How long until a job is due.
    pub(crate) fn until(self, when: When) -> Duration {
        match when {
            When::After(due) => due.since(self.tick),
            When::At(due) => due.since(self.wall),
        }
    }
}

/// Jobs ordered by due time, then by log order.
type ByDue<T> = BTreeMap<(T, Sequence), Lease>;

// The documented memory cost of a delayed job.
const _: () = assert!(size_of::<(Tick, Sequence, Lease)>() <= 32);

/// The jobs that are not due yet.
pub(crate) struct Timer {
    state: Mutex<State>,
    task: Waker,
    /// Set under the lock.
    rest: Rest,
}

struct State {
    after: ByDue<Tick>,
    at: ByDue<Timestamp>,
    /// Jobs that timed out and that a handler may still ack, with their due times.
    late: SequenceMap<When>,
    /// How many of the other jobs are in each segment, by its base.
    segments: SequenceMap<u32>,
    /// Jobs that compaction has taken out and that are not elsewhere yet.
    moving: usize,
    interrupted: bool,
}

impl State {
    fn take_due(&mut self, now: Now) -> Vec<Lease> {
        let mut due = Vec::new();
        take_first(&mut self.after, now.tick, &mut due);
        take_first(&mut self.at, now.wall, &mut due);
        // Consecutive jobs are usually in the same segment.
        for jobs in due.chunk_by(|one, next| one.segment_base() == next.segment_base()) {
            let counted = match self.late.is_empty() {
                true => jobs.len(),
                false => {
                    let is_counted = |job: &&Lease| self.late.remove(&job.sequence()).is_none();
                    jobs.iter().filter(is_counted).count()
                }
            };
            if let Some(job) = jobs.first() {
                self.uncount(job.segment_base(), counted as u32);
            }
        }
        due
    }

    fn uncount(&mut self, base: Sequence, count: u32) {
        if let Entry::Occupied(mut jobs) = self.segments.entry(base) {
            *jobs.get_mut() -= count;
            if *jobs.get() == 0 {
                jobs.remove();
            }
        }
    }

    /// How long until something may be due.
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

    fn each_after(&self) -> impl Iterator<Item = (When, &Lease)> {
        let after = self.after.iter();
        after.map(|(&(due, _), lease)| (When::After(due), lease))
    }

    fn each_at(&self) -> impl Iterator<Item = (When, &Lease)> {
        let at = self.at.iter();
        at.map(|(&(due, _), lease)| (When::At(due), lease))
    }
}

/// Most jobs that are taken while the lock is held and a consumer may wait for it: some tens of
/// microseconds. Much more than a consumer adds at once, so that the timer does not fill with due
/// jobs.
const MAX_DUE: usize = 1024;

/// Takes jobs that are due, earliest first.
fn take_first<T: Ord + Copy>(waiting: &mut ByDue<T>, now: T, due: &mut Vec<Lease>) {
    while due.len() < MAX_DUE
        && let Some(first) = waiting.first_entry()
        && first.key().0 <= now
    {
        due.push(first.remove());
    }
}

impl Timer {
    pub(crate) fn new(task: Waker) -> Self {
        Self {
            state: Mutex::new(State {
                after: BTreeMap::new(),
                at: BTreeMap::new(),
                late: SequenceMap::default(),
                segments: SequenceMap::default(),
                moving: 0,
                interrupted: false,
            }),
            task,
            rest: Rest::new(),
        }
    }

    /// Makes a job wait until it is due. `late`: some handler may still [ack](Self::take_late) it.
    /// A job that one has acked, or that was cancelled, does not wait.
    pub(crate) fn schedule(
        &self,
        lease: Lease,
        when: When,
        late: bool,
        is_cancelled: impl FnOnce(Sequence) -> bool,
    ) -> Scheduled {
        let sequence = lease.sequence();
        let mut state = self.state.lock();
        if lease.is_done() {
            return Scheduled::Acked;
        }
        // Asked under the lock under which a thread that cancels the job looks for it here.
        if is_cancelled(sequence) {
            return Scheduled::Cancelled(lease);
        }
        if !late {
            *state.segments.entry(lease.segment_base()).or_insert(0) += 1;
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
            self.task.wake();
        }
        Scheduled::Waits
    }

    /// Makes jobs of one segment wait; no handler of this process has had them. In return, takes
    /// some jobs that are due, since the timer thread comes late when every core is busy, and those
    /// that were cancelled.
    pub(crate) fn schedule_all(
        &self,
        jobs: Vec<(Lease, When)>,
        now: Now,
        is_cancelled: impl Fn(Sequence) -> bool,
    ) -> Vec<Lease> {
        let Some((first, _)) = jobs.first() else {
            return Vec::new();
        };
        let mut state = self.state.lock();
        let base = first.segment_base();
        *state.segments.entry(base).or_insert(0) += jobs.len() as u32;
        let mut is_earliest = false;
        let mut cancelled = Vec::new();
        for (lease, when) in jobs {
            let sequence = lease.sequence();
            if is_cancelled(sequence) {
                cancelled.push(lease);
                continue;
            }
            is_earliest |= match when {
                When::After(due) => insert(&mut state.after, (due, sequence), lease),
                When::At(due) => insert(&mut state.at, (due, sequence), lease),
            };
        }
        state.uncount(base, cancelled.len() as u32);
        let mut due = state.take_due(now);
        drop(state);
        due.append(&mut cancelled);
        if is_earliest {
            self.task.wake();
        }
        due
    }

    /// Takes out a job that a handler has acked after it had timed out.
    ///
    /// The caller has marked the job done: either it waits and is found here, or the thread that
    /// schedules it finds it done.
    pub(crate) fn take_late(&self, sequence: Sequence) -> Option<Lease> {
        let mut state = self.state.lock();
        match state.late.remove(&sequence)? {
            When::After(due) => state.after.remove(&(due, sequence)),
            When::At(due) => state.at.remove(&(due, sequence)),
        }
    }

    /// Takes out a job that is cancelled, if it is here. The caller has made an entry for it, so
    /// that it does not come here any more.
    ///
    /// Goes through the timer, unless no job of its segment is here.
    pub(crate) fn take_cancelled(&self, sequence: Sequence, base: Sequence) -> Option<Lease> {
        if let Some(late) = self.take_late(sequence) {
            return Some(late);
        }
        let mut state = self.state.lock();
        if !state.segments.contains_key(&base) {
            return None;
        }
        let is_it = |other: Sequence| other == sequence;
        let lease = take_one(&mut state, |state| &mut state.after, is_it)
            .or_else(|| take_one(&mut state, |state| &mut state.at, is_it))?;
        state.uncount(base, 1);
        Some(lease)
    }

    /// Takes out a job that is to be moved, if it still waits for this time and no handler may
    /// still ack it.
    pub(crate) fn take_to_move(&self, sequence: Sequence, when: When) -> Option<Lease> {
        let mut state = self.state.lock();
        if state.late.contains_key(&sequence) {
            return None;
        }
        let lease = match when {
            When::After(due) => state.after.remove(&(due, sequence)),
            When::At(due) => state.at.remove(&(due, sequence)),
        }?;
        state.uncount(lease.segment_base(), 1);
        state.moving += 1;
        Some(lease)
    }

    /// Whether a job waits for this time, and no handler may still ack it.
    pub(crate) fn has(&self, sequence: Sequence, when: When) -> bool {
        let state = self.state.lock();
        let waits = match when {
            When::After(due) => state.after.contains_key(&(due, sequence)),
            When::At(due) => state.at.contains_key(&(due, sequence)),
        };
        waits && !state.late.contains_key(&sequence)
    }

    /// Jobs that are not due yet, including those that compaction is moving.
    pub(crate) fn len(&self) -> usize {
        let state = self.state.lock();
        state.len() + state.moving
    }

    /// Whether jobs wait, for maintenance, which moves them. If none does, the thread that makes the
    /// first one wait is [told so](Self::take_watch).
    pub(crate) fn watch(&self) -> bool {
        let state = self.state.lock();
        let has_any = state.len() + state.moving > 0;
        self.rest.set(!has_any);
        has_any
    }

    /// Whether maintenance has to look, for a thread that has just made jobs wait.
    #[inline]
    pub(crate) fn take_watch(&self) -> bool {
        self.rest.end()
    }

    /// Records that this many of the jobs taken out have their copies, or are back.
    pub(crate) fn note_moved(&self, jobs: usize) {
        self.state.lock().moving -= jobs;
    }

    /// Takes the jobs that are due, earliest first; none if `also` is reached or the timer was
    /// interrupted. If there is nothing to do, returns how long until there is.
    pub(crate) fn check(
        &self,
        clock: &Clock,
        also: Option<Tick>,
    ) -> Result<Vec<Lease>, Option<Duration>> {
        let mut state = self.state.lock();
        let now = Now::of(clock);
        let due = state.take_due(now);
        let interrupted = std::mem::take(&mut state.interrupted);
        if interrupted || !due.is_empty() || also.is_some_and(|also| also <= now.tick) {
            return Ok(due);
        }
        let next = state.next(now);
        let also = also.map(|also| also.since(now.tick));
        Err(next.into_iter().chain(also).min())
    }

    /// Takes the jobs that are due at this time, without waiting.
    #[cfg(test)]
    pub(crate) fn take_due(&self, now: Now) -> Vec<Lease> {
        self.state.lock().take_due(now)
    }

    /// Takes all jobs that wait.
    #[cfg(test)]
    pub(crate) fn take_all(&self) -> Vec<Lease> {
        let mut state = self.state.lock();
        state.late.clear();
        state.segments.clear();
        let after = std::mem::take(&mut state.after).into_values();
        let at = std::mem::take(&mut state.at).into_values();
        after.chain(at).collect()
    }

    /// The ids of the jobs that wait.
    #[cfg(test)]
    pub(crate) fn jobs(&self) -> Vec<Sequence> {
        let state = self.state.lock();
        let all = state.each_after().chain(state.each_at());
        all.map(|(_, lease)| lease.job()).collect()
    }

    /// Makes the timer check again what else it waits for.
    pub(crate) fn interrupt(&self) {
        self.state.lock().interrupted = true;
        self.task.wake();
    }

    /// How many waiting jobs of a segment no handler may still ack.
    pub(crate) fn waiting_in(&self, base: Sequence) -> u32 {
        let state = self.state.lock();
        state.segments.get(&base).copied().unwrap_or(0)
    }

    /// Whether a job of this stripe waits that no handler may still ack.
    pub(crate) fn has_any_of(&self, stripe: u8) -> bool {
        let state = self.state.lock();
        state.segments.keys().any(|base| base.stripe() == stripe)
    }

    /// Which of these segments have a job that is due within `left`.
    pub(crate) fn soon_in(
        &self,
        bases: &HashSet<Sequence>,
        now: Now,
        left: Duration,
    ) -> HashSet<Sequence> {
        let state = self.state.lock();
        let is_soon = |(due, _): &(When, &Lease)| now.until(*due) <= left;
        // Each map is in the order of due times.
        let after = state.each_after().take_while(is_soon);
        let at = state.each_at().take_while(is_soon);
        let mut soon = HashSet::new();
        for (_, lease) in after.chain(at) {
            let base = lease.segment_base();
            if bases.contains(&base) && soon.insert(base) && soon.len() == bases.len() {
                break;
            }
        }
        soon
    }

    /// Takes the jobs of the given segments out, for compaction; leaves those that a handler may
    /// still ack.
    pub(crate) fn take_segments(&self, bases: &HashSet<Sequence>) -> Vec<(Lease, When)> {
        let mut taken = Vec::new();
        let mut state = self.state.lock();
        take_pieces(
            &mut state,
            |state| &mut state.after,
            bases,
            |due, lease| {
                taken.push((lease, When::After(due)));
            },
        );
        take_pieces(
            &mut state,
            |state| &mut state.at,
            bases,
            |due, lease| {
                taken.push((lease, When::At(due)));
            },
        );
        taken
    }
}

/// Most jobs that compaction examines before it lets another thread have the lock.
const PIECE: usize = 8192;

/// Takes the jobs of segments out of a map, piece by piece.
fn take_pieces<T: Ord + Copy>(
    state: &mut MutexGuard<'_, State>,
    map: impl Fn(&mut State) -> &mut ByDue<T>,
    bases: &HashSet<Sequence>,
    mut take: impl FnMut(T, Lease),
) {
    let mut from = Bound::Unbounded;
    loop {
        let late = std::mem::take(&mut state.late);
        let waiting = map(state);
        let last = waiting.range((from, Bound::Unbounded)).nth(PIECE);
        let to = last.map(|(last, _)| *last);
        let piece = (from, to.map_or(Bound::Unbounded, Bound::Included));
        let is_wanted = |(_, sequence): &(T, Sequence), lease: &mut Lease| {
            bases.contains(&lease.segment_base()) && !late.contains_key(sequence)
        };
        let taken: Vec<_> = waiting.extract_if(piece, is_wanted).collect();
        state.late = late;
        state.moving += taken.len();
        for ((due, _), lease) in taken {
            state.uncount(lease.segment_base(), 1);
            take(due, lease);
        }
        match to {
            Some(last) => from = Bound::Excluded(last),
            None => return,
        }
        MutexGuard::bump(state);
    }
}

/// Takes a job out of a map, which is searched piece by piece.
fn take_one<T: Ord + Copy>(
    state: &mut MutexGuard<'_, State>,
    map: impl Fn(&mut State) -> &mut ByDue<T>,
    is_it: impl Fn(Sequence) -> bool,
) -> Option<Lease> {
    let mut from = Bound::Unbounded;
    loop {
        let waiting = map(state);
        let mut last = None;
        for (key, _) in waiting.range((from, Bound::Unbounded)).take(PIECE) {
            if is_it(key.1) {
                let key = *key;
                return waiting.remove(&key);
            }
            last = Some(*key);
        }
        from = Bound::Excluded(last?);
        MutexGuard::bump(state);
    }
}

/// Inserts a job and returns whether it is the earliest.
fn insert<T: Ord + Copy>(waiting: &mut ByDue<T>, due: (T, Sequence), lease: Lease) -> bool {
    let earliest = waiting.keys().next().is_none_or(|first| due < *first);
    waiting.insert(due, lease);
    earliest
}
