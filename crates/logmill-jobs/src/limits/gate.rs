//! A limit and the jobs that it lets through: for each key, those that run, the rate's memory, and
//! those that wait in the order in which workers came to them.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use parking_lot::Mutex;

use super::Limit;
use crate::JobId;
use crate::backend::{Claim, Held, Settlement};
use crate::clock::Clock;

pub(super) struct Gate {
    pub(super) limit: Limit,
    clock: Clock,
    opened: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buckets: HashMap<u64, Bucket, BuildHasherDefault<Same>>,
    /// Keys whose first waiting job may begin at that time, as far as the rate is concerned.
    times: BTreeSet<(Instant, u64)>,
    /// Buckets are looked through for idle ones when there are as many as this.
    sweep_at: usize,
}

/// A hash of keys that are hashes.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes
            .iter()
            .fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The jobs of a key.
#[derive(Default)]
struct Bucket {
    running: u32,
    /// When the next job may begin at the earliest if there is no burst.
    next: Option<Instant>,
    waiting: VecDeque<Waiting>,
    /// Its entry in the times.
    time: Option<Instant>,
}

/// A job that waits; it goes back to its queue when it is dropped.
pub(super) struct Waiting {
    pub(super) id: JobId,
    /// None until its worker holds it.
    pub(super) held: Option<Box<dyn Held>>,
}

/// What became of a job that asked for a place.
pub(super) enum Taken {
    Place,
    /// It waits; until this time, if that is known.
    Waits(Option<Instant>),
    /// There was nothing to hold: it was cancelled, or goes back to its queue for a while.
    NotHeld,
}

/// Why there is no place.
enum Refusal {
    Full,
    Until(Instant),
}

/// The fewest buckets that are worth looking through.
const FEW: usize = 64;
/// A backend that holds no jobs gives one that has to wait out again after this time.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

impl Bucket {
    fn refusal(&self, limit: &Limit, now: Instant) -> Option<Refusal> {
        if limit.at_once.is_some_and(|most| self.running >= most) {
            return Some(Refusal::Full);
        }
        let (rate, next) = (limit.rate?, self.next?);
        let early = rate.interval.saturating_mul(rate.burst - 1);
        let until = next.checked_sub(early)?;
        (until > now).then_some(Refusal::Until(until))
    }

    fn take(&mut self, limit: &Limit, now: Instant) {
        self.running += 1;
        if let Some(rate) = limit.rate {
            let from = self.next.map_or(now, |next| next.max(now));
            // A time that overflows is one that never comes, and limits nothing here.
            self.next = from.checked_add(rate.interval);
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.running == 0 && self.waiting.is_empty() && self.next.is_none_or(|next| next <= now)
    }
}

impl State {
    /// The bucket of a key, with room made for it if there are many.
    fn bucket(&mut self, key: u64, now: Instant) -> &mut Bucket {
        if self.buckets.len() >= self.sweep_at.max(FEW) && !self.buckets.contains_key(&key) {
            self.buckets.retain(|_, bucket| !bucket.is_idle(now));
            self.sweep_at = 2 * self.buckets.len();
        }
        self.buckets.entry(key).or_default()
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
    pub(super) fn new(limit: Limit, clock: Clock) -> Self {
        Self {
            limit,
            opened: clock.now(),
            clock,
            state: Mutex::default(),
        }
    }

    /// The time, as far as the limit depends on it.
    pub(super) fn now(&self) -> Instant {
        match self.limit.rate {
            Some(_) => self.clock.now(),
            None => self.opened,
        }
    }

    /// Takes a place for a job, or has it wait behind the others of its key.
    pub(super) fn take_or_wait(&self, key: u64, id: &JobId, claim: &mut dyn Claim) -> Taken {
        let now = self.now();
        let mut state = self.state.lock();
        let bucket = state.bucket(key, now);
        let refusal = bucket.refusal(&self.limit, now);
        if refusal.is_none() && bucket.waiting.is_empty() {
            bucket.take(&self.limit, now);
            return Taken::Place;
        }
        // Its place in the line. The job is held without the lock: to hold one that was cancelled tells
        // of its end, which comes back to this gate.
        bucket.waiting.push_back(Waiting {
            id: id.clone(),
            held: None,
        });
        let is_first = bucket.waiting.len() == 1;
        let until = match refusal {
            Some(Refusal::Until(until)) if is_first => Some(until),
            _ => None,
        };
        if until.is_some() {
            state.set_time(key, until);
        }
        drop(state);
        let held = claim.hold();
        if held.is_none() {
            self.forget(id);
            let _ = claim.settle(Settlement::Snooze { after: AGAIN });
            return Taken::NotHeld;
        }
        let mut state = self.state.lock();
        let bucket = state.buckets.get_mut(&key);
        let waiting = bucket.map(|bucket| bucket.waiting.iter_mut());
        // From the end, where it was put a moment ago.
        let late = match waiting.and_then(|waiting| waiting.rev().find(|one| one.id == *id)) {
            Some(entry) => {
                entry.held = held;
                None
            }
            // It was granted a place meanwhile, or forgotten.
            None => held,
        };
        drop(state);
        drop(late);
        Taken::Waits(until)
    }

    /// Gives a place back; with its turn, if the job did not begin. Returns whether a job waits for
    /// one.
    pub(super) fn give_back(&self, key: u64, has_begun: bool) -> bool {
        let mut state = self.state.lock();
        let Some(bucket) = state.buckets.get_mut(&key) else {
            return false;
        };
        bucket.running -= 1;
        if let (Some(rate), false) = (self.limit.rate, has_begun) {
            bucket.next = bucket.next.and_then(|next| next.checked_sub(rate.interval));
        }
        !bucket.waiting.is_empty()
    }

    /// The first job that waits, if there is a place for it, which it has then; and when there may be
    /// one for the next.
    pub(super) fn next(&self, key: u64, now: Instant) -> (Option<Waiting>, Option<Instant>) {
        let mut state = self.state.lock();
        let Some(bucket) = state.buckets.get_mut(&key) else {
            return (None, None);
        };
        let mut first = None;
        if !bucket.waiting.is_empty() && bucket.refusal(&self.limit, now).is_none() {
            bucket.take(&self.limit, now);
            first = bucket.waiting.pop_front();
        }
        let until = match bucket.refusal(&self.limit, now) {
            Some(Refusal::Until(until)) if !bucket.waiting.is_empty() => Some(until),
            _ => None,
        };
        state.set_time(key, until);
        (first, until)
    }

    /// Takes out a job that waits.
    pub(super) fn forget(&self, id: &JobId) -> Option<Waiting> {
        let mut state = self.state.lock();
        state.buckets.values_mut().find_map(|bucket| {
            let at = bucket.waiting.iter().position(|one| one.id == *id)?;
            bucket.waiting.remove(at)
        })
    }

    pub(super) fn has_waiting(&self, id: &JobId) -> bool {
        let state = self.state.lock();
        let mut waiting = state.buckets.values().flat_map(|bucket| &bucket.waiting);
        waiting.any(|one| one.id == *id)
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
                std::mem::take(&mut bucket.waiting)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::secs;

    /// Takes places until there is none, and returns how many there were.
    fn places(gate: &Gate, key: u64, now: Instant) -> u32 {
        let mut state = gate.state.lock();
        let bucket = state.bucket(key, now);
        let mut places = 0;
        while bucket.refusal(&gate.limit, now).is_none() && places < 1000 {
            bucket.take(&gate.limit, now);
            places += 1;
        }
        places
    }

    #[test]
    fn a_rate_lets_through_what_it_says_in_any_period() {
        let gate = Gate::new(
            Limit::on_queue("q").rate(10, secs(1)).burst(3),
            Clock::default(),
        );
        let start = Instant::now();
        assert_eq!(places(&gate, 0, start), 3);
        let mut later = 0;
        for tick in 1..=1000 {
            later += places(&gate, 0, start + Duration::from_millis(tick));
        }
        assert_eq!(later, 10);
        // After a long pause, no more than the burst.
        assert_eq!(places(&gate, 0, start + secs(100)), 3);
    }

    #[test]
    fn a_number_at_once_is_one_of_each_key() {
        let gate = Gate::new(Limit::on_queue("q").by_key().at_once(2), Clock::default());
        let now = Instant::now();
        assert_eq!((places(&gate, 1, now), places(&gate, 2, now)), (2, 2));
        gate.give_back(1, true);
        assert_eq!((places(&gate, 1, now), places(&gate, 2, now)), (1, 0));
    }

    #[test]
    fn keys_that_are_idle_are_forgotten() {
        let gate = Gate::new(
            Limit::on_queue("q").by_key().rate(1, secs(1)),
            Clock::default(),
        );
        let start = Instant::now();
        for key in 0..100_000 {
            let now = start + Duration::from_millis(key);
            assert_eq!(places(&gate, key, now), 1);
            gate.state.lock().bucket(key, now).running = 0;
        }
        let left = gate.state.lock().buckets.len();
        assert!(left < 5000, "{left}");
    }
}
