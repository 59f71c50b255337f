//! A limit and the jobs that it lets through: for each key, those that run, the rate's memory, and
//! those that wait in the order in which workers came to them.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::bucket::{Bucket, Refusal, Waiting};
use super::limit::Limit;
use super::lines::Weights;
use crate::JobId;
use crate::backend::{Claim, Settlement};
use crate::clock::Clock;
use crate::identity::Same;

pub(super) struct Gate {
    pub(super) limit: Limit,
    /// Whether it knows only the keys that it was closed for, and lets all others through.
    is_for_held: bool,
    clock: Clock,
    opened: Instant,
    /// Whether it was ever closed for a time.
    was_closed: AtomicBool,
    /// How many keys it knows, if it is for those that are held back. Changed under the lock.
    known: AtomicUsize,
    weights: Weights,
    /// The last number that was given to a job which came to wait, at whichever gate.
    comings: Arc<AtomicU64>,
    state: Mutex<State>,
}

/// By what a gate counts a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Jobs share places if these agree.
    pub(super) bucket: u64,
    /// They wait in the same line if these agree, too.
    pub(super) line: u64,
}

#[derive(Default)]
struct State {
    buckets: HashMap<u64, Bucket, BuildHasherDefault<Same>>,
    /// Keys whose first waiting job may begin at that time, as far as the rate is concerned.
    times: BTreeSet<(Instant, u64)>,
    /// Buckets are looked through for idle ones when there are as many as this.
    sweep_at: usize,
}

/// What became of a job that asked for a place.
pub(super) enum Taken {
    Place,
    /// The gate does not concern its key.
    Free,
    /// It waits; until this time, if that is known.
    Waits(Option<Instant>),
    /// There was nothing to hold: it was cancelled, or goes back to its queue for a while. Another one
    /// may be the first of the line.
    NotHeld,
}

/// What became of a job that was let through, and comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Begins,
    /// Another job was told to slow down since.
    Closed,
    /// It comes late, with others of the same time.
    TooMany,
}

/// How far a job came that gives its place back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was let through, and did not come.
    LetThrough,
    /// It came, and did not begin, as something else kept it.
    AboutToBegin,
    Begun,
}

/// The fewest buckets that are worth looking through.
const FEW: usize = 64;
/// What is added to the numbers of jobs that come to wait: those that were told to slow down go first.
const BEHIND_HELD: u64 = 1 << 63;
/// A backend that holds no jobs gives one that has to wait out again after this time.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

impl State {
    /// The bucket of a key, with room made for it if there are many: each look through all of them
    /// is paid by as many that were added since the last one.
    fn bucket(&mut self, key: u64, limit: &Limit, now: Instant) -> &mut Bucket {
        if self.buckets.len() >= self.sweep_at.max(FEW) && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| !bucket.is_idle(now));
            self.sweep_at = 2 * self.buckets.len();
            self.buckets.shrink_to(self.sweep_at.max(FEW));
        }
        self.buckets
            .entry(key)
            .or_insert_with(|| Bucket::new(limit))
    }

    /// Enters when a key's first waiting job may begin.
    fn set_time(&mut self, key: u64, time: Option<Instant>) {
        let Some(bucket) = self.buckets.get_mut(&key) else {
            return;
        };
        if let Some(old) = std::mem::replace(&mut bucket.time, time) {
            self.times.remove(&(old, key));
        }
        if let Some(time) = time {
            self.times.insert((time, key));
        }
    }
}

impl Gate {
    pub(super) fn new(
        limit: Limit,
        weights: Weights,
        clock: Clock,
        comings: Arc<AtomicU64>,
    ) -> Self {
        Self {
            limit,
            weights,
            comings,
            is_for_held: false,
            opened: clock.now(),
            clock,
            was_closed: AtomicBool::new(false),
            known: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    /// The gate of jobs that no limit concerns and whose handlers were told to slow down.
    pub(super) fn for_held(clock: Clock, comings: Arc<AtomicU64>) -> Self {
        Self {
            is_for_held: true,
            ..Self::new(Limit::of_held(), Weights::default(), clock, comings)
        }
    }

    /// The time, as far as the limit depends on it.
    pub(super) fn now(&self) -> Instant {
        // Relaxed: it is set under the lock under which what depends on it is changed.
        match self.limit.rate.is_some() || self.was_closed.load(Ordering::Relaxed) {
            true => self.clock.now(),
            false => self.opened,
        }
    }

    pub(super) fn is_for_held(&self) -> bool {
        self.is_for_held
    }

    /// How many keys it knows, if it is for those that are held back.
    #[inline]
    pub(super) fn known(&self) -> usize {
        // Relaxed: a job that misses that its key was closed at this moment came before that.
        self.known.load(Ordering::Relaxed)
    }

    /// Whether it knows a key.
    pub(super) fn knows_any(&self) -> bool {
        !self.state.lock().buckets.is_empty()
    }

    /// A number for a job that comes to wait. Taken under the lock, so that lines are in their order.
    fn next_coming(&self) -> u64 {
        // Relaxed: only the number counts.
        self.comings.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn note_known(&self, state: &State) {
        if self.is_for_held {
            self.known.store(state.buckets.len(), Ordering::Relaxed);
        }
    }

    /// Takes a place for a job, or has it wait behind the others of its key; in its place, if it came
    /// to a gate before.
    pub(super) fn take_or_wait(
        &self,
        key: Key,
        id: &JobId,
        (cost, came): (u32, Option<u64>),
        claim: &mut dyn Claim,
    ) -> Taken {
        let now = self.now();
        let mut state = self.state.lock();
        if self.is_for_held && !state.buckets.contains_key(&key.bucket) {
            return Taken::Free;
        }
        let bucket = state.bucket(key.bucket, &self.limit, now);
        let refusal = bucket.refusal(&self.limit, now, cost);
        if refusal.is_none() && bucket.waiting.is_empty() {
            bucket.take_and_begin(&self.limit, now, cost);
            return Taken::Place;
        }
        let came = came.unwrap_or_else(|| BEHIND_HELD + self.next_coming());
        let waiting = Waiting {
            id: id.clone(),
            cost,
            came,
            held: None,
        };
        bucket.waiting.push(key.line, waiting, &self.weights);
        let is_next = bucket.waiting.front().is_some_and(|next| next.id == *id);
        let until = match refusal {
            Some(Refusal::Until(until)) if is_next => Some(until),
            // One that costs more waits for its time, and it is not its turn any more.
            None if is_next => {
                drop(bucket.waiting.pop_front());
                bucket.take_and_begin(&self.limit, now, cost);
                return Taken::Place;
            }
            _ => None,
        };
        if until.is_some() {
            state.set_time(key.bucket, until);
        }
        drop(state);
        match self.hold(key, came, id, claim) {
            true => Taken::Waits(until),
            false => {
                let _ = claim.settle(Settlement::Snooze { after: AGAIN });
                Taken::NotHeld
            }
        }
    }

    /// Closes a key until this time: no job of it is let through before. Returns when to look at the
    /// key again.
    pub(super) fn close(&self, key: u64, until: Instant) -> Option<Instant> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        self.was_closed.store(true, Ordering::Relaxed);
        let bucket = state.bucket(key, &self.limit, now);
        bucket.close(&self.limit, until);
        let until = match bucket.refusal_of_first(&self.limit, now) {
            Some(Refusal::Until(until)) => Some(until),
            // The key is to be forgotten then.
            _ if self.is_for_held => bucket.closed,
            _ => None,
        };
        state.set_time(key, until);
        self.note_known(&state);
        until
    }

    /// A job comes that was let through before.
    pub(super) fn arrive(&self, key: u64, cost: u32) -> Arrived {
        // Relaxed: a job that misses that its key was closed at this moment came before that.
        if self.limit.rate.is_none() && !self.was_closed.load(Ordering::Relaxed) {
            return Arrived::Begins;
        }
        let now = self.clock.now();
        let mut state = self.state.lock();
        // A rate may have forgotten the key since: those that were let through are not counted. Many may
        // come together, which is to be noted.
        let bucket = state.bucket(key, &self.limit, now);
        if bucket.closed.is_some_and(|closed| closed > now) {
            return Arrived::Closed;
        }
        match bucket.begin(&self.limit, now, cost) {
            None => Arrived::Begins,
            Some(_) => Arrived::TooMany,
        }
    }

    /// Has a job that was let through before wait before all of its key but those that wait like this.
    /// Returns false if it is not held.
    pub(super) fn wait_as_first(
        &self,
        key: Key,
        until: Instant,
        (id, cost): (&JobId, u32),
        claim: &mut dyn Claim,
    ) -> bool {
        let mut state = self.state.lock();
        let came = self.next_coming();
        let waiting = Waiting {
            id: id.clone(),
            cost,
            came,
            held: None,
        };
        let bucket = state.bucket(key.bucket, &self.limit, self.clock.now());
        bucket.waiting.push(key.line, waiting, &self.weights);
        state.set_time(key.bucket, Some(until));
        self.note_known(&state);
        drop(state);
        self.hold(key, came, id, claim)
    }

    /// Holds a job that has its place in the line. Returns false if there was nothing to hold.
    ///
    /// Without the lock: to hold a job that was cancelled tells of its end, which comes back to this
    /// gate.
    fn hold(&self, key: Key, came: u64, id: &JobId, claim: &mut dyn Claim) -> bool {
        let held = claim.hold();
        if held.is_none() {
            drop(self.forget(key, id));
            return false;
        }
        let mut state = self.state.lock();
        let bucket = state.buckets.get_mut(&key.bucket);
        let entry = bucket.and_then(|bucket| bucket.waiting.find(key.line, came, id));
        let late = match entry {
            Some(entry) => {
                entry.held = held;
                None
            }
            // It was granted a place meanwhile, or forgotten.
            None => held,
        };
        drop(state);
        drop(late);
        true
    }

    /// Gives a place back; with its turn, if the job did not begin. Returns whether a job waits for
    /// one.
    pub(super) fn give_back(&self, key: u64, cost: u32, ended: Ended) -> bool {
        let counts_running = self.limit.counts_running();
        let has_begun = ended == Ended::Begun;
        if has_begun && !counts_running {
            // It leaves no room, and its cells stay taken.
            return false;
        }
        let mut state = self.state.lock();
        let Some(bucket) = state.buckets.get_mut(&key) else {
            return false;
        };
        bucket.running -= u32::from(counts_running);
        if !has_begun {
            let was_about_to = ended == Ended::AboutToBegin;
            bucket.give_back_cells(&self.limit, self.now(), cost, was_about_to);
        }
        let is_awaited = !bucket.waiting.is_empty();
        if self.is_for_held {
            self.forget_held(&mut state, key, self.now());
        }
        is_awaited
    }

    /// The first job that waits, if there is a place for it, which it has then; and when there may be
    /// one for the next.
    pub(super) fn next(&self, key: u64, now: Instant) -> (Option<Waiting>, Option<Instant>) {
        let mut state = self.state.lock();
        let Some(bucket) = state.buckets.get_mut(&key) else {
            return (None, None);
        };
        let mut first = None;
        if bucket.refusal_of_first(&self.limit, now).is_none() {
            first = bucket.waiting.pop_front();
        }
        if let Some(first) = &first {
            bucket.take(&self.limit, now, first.cost);
        }
        let until = match bucket.refusal_of_first(&self.limit, now) {
            Some(Refusal::Until(until)) => Some(until),
            _ => bucket
                .closed
                .filter(|closed| self.is_for_held && *closed > now),
        };
        state.set_time(key, until);
        if self.is_for_held {
            self.forget_held(&mut state, key, now);
        }
        (first, until)
    }

    /// Forgets a key that was closed for a time and is idle: it concerns no job any more.
    fn forget_held(&self, state: &mut State, key: u64, now: Instant) {
        let bucket = state.buckets.get(&key);
        if bucket.is_some_and(|bucket| bucket.is_idle(now)) {
            state.set_time(key, None);
            state.buckets.remove(&key);
            self.note_known(state);
        }
    }

    /// Takes out a job that waits. Looks through those of its key. The caller gives the next one its
    /// turn: it may be one for which there is a place.
    pub(super) fn forget(&self, key: Key, id: &JobId) -> Option<Waiting> {
        let mut state = self.state.lock();
        let waiting = &mut state.buckets.get_mut(&key.bucket)?.waiting;
        waiting.remove(key.line, id)
    }

    pub(super) fn has_waiting(&self, id: &JobId) -> bool {
        let state = self.state.lock();
        let mut buckets = state.buckets.values();
        buckets.any(|bucket| bucket.waiting.contains(id))
    }

    /// Jobs that have a place, jobs that wait.
    #[cfg(any(all(test, feature = "embedded"), feature = "testing"))]
    pub(super) fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        let buckets = state.buckets.values();
        buckets.fold((0, 0), |(running, waiting), bucket| {
            let more = u64::try_from(bucket.waiting.len()).unwrap_or(u64::MAX);
            (running + u64::from(bucket.running), waiting + more)
        })
    }

    /// Takes out the keys whose time has come.
    pub(super) fn ripe(&self, now: Instant) -> Vec<u64> {
        let mut state = self.state.lock();
        let mut ripe = Vec::new();
        while let Some((_, key)) = state
            .times
            .first()
            .filter(|(time, _)| *time <= now)
            .copied()
        {
            state.times.pop_first();
            if let Some(bucket) = state.buckets.get_mut(&key) {
                bucket.time = None;
            }
            ripe.push(key);
        }
        ripe
    }

    /// When the next key's time comes.
    pub(super) fn next_time(&self) -> Option<Instant> {
        self.state.lock().times.first().map(|(time, _)| *time)
    }

    /// All jobs that wait.
    pub(super) fn take_all(&self) -> Vec<Waiting> {
        let mut state = self.state.lock();
        state.times.clear();
        let buckets = state.buckets.values_mut();
        buckets
            .flat_map(|bucket| {
                bucket.time = None;
                bucket.waiting.take_all()
            })
            .collect()
    }
}
