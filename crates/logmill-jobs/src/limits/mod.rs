//! Limits: how many jobs run at the same time, and how many begin in a time; of a queue, of a kind,
//! and of each key. A job that has to wait for one is held outside its queue's order, so that it
//! takes no worker and no attempt, and holds up no job that the limit does not concern.
//!
//! ```text
//!            admit                              end of an attempt, or time
//!  worker ──────────▶ gate: free?  ── yes ─▶ run ──────────────┐
//!                       │ no                                    ▼
//!                       └─▶ waits, first in first out ◀── a place for the first: it is put back
//! ```
//!
//! A handler that was told to slow down closes its key: the gates that concern its job let nobody
//! through for a time, and the job waits there as the first. If no limit concerns it, one more gate,
//! the last, does: it knows only the keys that it was closed for.

mod bucket;
mod gate;
#[cfg(all(test, feature = "embedded"))]
mod handovers;
mod hold;
mod limit;
mod lines;
mod permit;
mod rate;
#[cfg(all(test, feature = "embedded"))]
mod stress;
mod timer;

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use smallvec::SmallVec;

use self::gate::{Arrived, Ended, Gate, Key, Taken};
use self::limit::Keys;
pub use self::limit::Limit;
pub(crate) use self::limit::Subject;
use self::lines::Weights;
use self::permit::Of;
pub(crate) use self::permit::Permit;
use self::timer::Timer;
use crate::JobId;
use crate::backend::Claim;
use crate::clock::Clock;
use crate::enqueue::header;

/// The limits of a mill.
pub(crate) struct Limits {
    /// Those of the options, and the one of jobs whose handlers were told to slow down.
    gates: Vec<Gate>,
    /// Whether it matters to any of them what a job costs.
    has_costs: bool,
    /// Jobs that were put back with a place at a gate kept for them.
    granted: Mutex<HashMap<JobId, Grant>>,
    /// How many there are, so that a job without a grant costs a load. Changed under the lock.
    grants: AtomicUsize,
    hasher: RandomState,
    clock: Clock,
    timer: Arc<Timer>,
}

/// A place at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    /// Of the places, see [`Key::bucket`].
    key: u64,
    gate: u32,
    /// How many cells of the rate it took.
    cost: u32,
    /// When its job came to wait, at this gate or at another one before; 0 if it did not wait.
    came: u64,
}

/// What limits have at a moment.
#[cfg(any(all(test, feature = "embedded"), feature = "testing"))]
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) granted: u64,
    pub(crate) held_keys: u64,
}

impl Limits {
    pub(crate) fn new(limits: Vec<Limit>, clock: Clock) -> Arc<Self> {
        let has_rates = limits.iter().any(|limit| limit.rate.is_some());
        let has_costs = has_rates || limits.iter().any(Limit::is_in_turn);
        let hasher = RandomState::default();
        let comings = Arc::new(AtomicU64::new(0));
        let gates = limits.into_iter().map(|limit| {
            let weights = match &limit.keys {
                Keys::InTurn(weights) => weights
                    .iter()
                    .flat_map(|(key, weight)| forms_of(key).map(move |form| (form, *weight)))
                    .map(|(form, weight)| (hasher.hash_one(form.as_bytes()), weight))
                    .collect(),
                _ => Weights::default(),
            };
            Gate::new(limit, weights, clock.clone(), Arc::clone(&comings))
        });
        let mut gates: Vec<_> = gates.collect();
        gates.push(Gate::for_held(clock.clone(), comings));
        let limits = Arc::new(Self {
            gates,
            has_costs,
            granted: Mutex::default(),
            grants: AtomicUsize::new(0),
            hasher,
            timer: Arc::new(Timer::new(clock.clone())),
            clock,
        });
        if has_rates {
            limits.timer.start(&limits);
        }
        limits
    }

    /// Logs which limits these jobs never wait for, so that keys do not take turns there: as many of
    /// them run at once as there are workers for them.
    pub(crate) fn warn_of_few_workers<'a>(
        &self,
        jobs: impl Iterator<Item = (Subject<'a>, usize)> + Clone,
    ) {
        for Gate { limit, .. } in &self.gates {
            let Some(at_once) = limit.at_once.filter(|_| limit.is_in_turn()) else {
                continue;
            };
            let mut few = jobs.clone().filter(|(job, workers)| {
                limit.concerns(job) && usize::try_from(at_once).is_ok_and(|most| *workers <= most)
            });
            if let Some((job, workers)) = few.next() {
                tracing::warn!(%limit, kind = job.kind, queue = job.queue, workers, "keys do not take \
                    turns at this limit: that takes more threads (or tasks, for async handlers) than \
                    may run at once");
            }
        }
    }

    /// Whether a job may run that costs so many cells of rates: then the permit, which is that of no
    /// other job, has its places. One that may not is held, and is put back when there is a place for it.
    #[inline]
    pub(crate) fn admit<'a>(
        self: &'a Arc<Self>,
        id: &JobId,
        cost: u32,
        claim: &mut dyn Claim,
        permit: &mut Permit<'a>,
    ) -> bool {
        if self.gates.len() == 1 && self.gates.last().is_none_or(|held| held.known() == 0) {
            return true;
        }
        permit.limits = Some(Of::Borrowed(self));
        permit.granted = self.take_grant(id);
        self.admit_slow(id, cost, claim, permit)
    }

    fn admit_slow(
        self: &Arc<Self>,
        id: &JobId,
        cost: u32,
        claim: &mut dyn Claim,
        permit: &mut Permit<'_>,
    ) -> bool {
        let cost = self.cost_of(claim, cost);
        // At whichever gate it has to wait now, its place is that of its first wait.
        let came = permit.granted.map(|grant| grant.came);
        for (gate, number) in self.gates.iter().zip(0..) {
            if gate.is_for_held() && gate.known() == 0 {
                continue;
            }
            if let Some(grant) = permit.granted.take_if(|grant| grant.gate == number) {
                let ended = match gate.arrive(grant.key, grant.cost) {
                    Arrived::Begins if grant.cost == cost => {
                        permit.places.push(grant);
                        continue;
                    }
                    // Arguments that cost another amount have replaced those that waited.
                    Arrived::Begins => Ended::AboutToBegin,
                    Arrived::Closed => Ended::LetThrough,
                    // The time for which it was let through has passed.
                    Arrived::TooMany => Ended::Begun,
                };
                self.give_back(grant, ended);
            }
            let Some(key) = self.key_of(gate, &subject(id, claim)) else {
                continue;
            };
            match gate.take_or_wait(key, id, (cost, came), claim) {
                Taken::Free => {}
                Taken::Place => permit.places.push(Grant {
                    key: key.bucket,
                    gate: number,
                    cost,
                    came: 0,
                }),
                Taken::Waits(until) => {
                    if let Some(until) = until {
                        self.timer.start(self);
                        self.timer.ring_at(until);
                    }
                    // The places at other gates are free again when the permit is dropped.
                    return false;
                }
                Taken::NotHeld => {
                    self.grant(number, key.bucket);
                    return false;
                }
            }
        }
        true
    }

    /// What a job costs whose kind costs so much.
    fn cost_of(&self, claim: &dyn Claim, cost: u32) -> u32 {
        let own = || {
            let bytes = claim.header(header::COST)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        match self.has_costs {
            true => own().unwrap_or(cost),
            false => cost,
        }
    }

    /// What a gate counts a job by; None if it does not concern it.
    fn key_of(&self, gate: &Gate, job: &Subject<'_>) -> Option<Key> {
        let limit = &gate.limit;
        if gate.is_for_held() {
            let bucket = self.hasher.hash_one((job.kind, job.key));
            return Some(Key { bucket, line: 0 });
        }
        if !limit.concerns(job) {
            return None;
        }
        let (bucket, line) = match limit.keys {
            Keys::Same => (0, 0),
            Keys::Apart => (self.hasher.hash_one(job.key?), 0),
            Keys::InTurn(_) => (0, self.hasher.hash_one(job.key.unwrap_or_default())),
        };
        Some(Key { bucket, line })
    }

    fn take_grant(&self, id: &JobId) -> Option<Grant> {
        // Relaxed: a job that is granted a place is put back by the thread that has counted the grant
        // before, or by one that has not found it in its line, under the lock of that, since.
        if self.grants.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut granted = self.granted.lock();
        let grant = granted.remove(id);
        self.grants.store(granted.len(), Ordering::Relaxed);
        grant
    }

    /// Gives a place back, and the next job that waits for it its turn.
    fn give_back(&self, place: Grant, ended: Ended) {
        if let Some(gate) = self.gate(place.gate)
            && gate.give_back(place.key, place.cost, ended)
        {
            self.grant(place.gate, place.key);
        }
    }

    fn gate(&self, number: u32) -> Option<&Gate> {
        self.gates.get(usize::try_from(number).ok()?)
    }

    /// Puts back the jobs for which there is a place at a gate.
    fn grant(&self, number: u32, key: u64) {
        let Some(gate) = self.gate(number) else {
            return;
        };
        loop {
            // A job is in the line or granted for whoever looks for it under this lock.
            let mut granted = self.granted.lock();
            // Before the job is taken out of the line: the thread that is about to hold it does not find
            // it there then, and puts it back at once, and a worker is to look for its grant.
            self.grants.store(granted.len() + 1, Ordering::Relaxed);
            let (next, until) = gate.next(key, gate.now());
            let next = next.map(|next| {
                let grant = Grant {
                    key,
                    gate: number,
                    cost: next.cost,
                    came: next.came,
                };
                granted.insert(next.id, grant);
                next.held
            });
            self.grants.store(granted.len(), Ordering::Relaxed);
            drop(granted);
            if let Some(until) = until {
                self.timer.ring_at(until);
            }
            match next {
                // A worker that gets the job finds the grant.
                Some(held) => drop(held),
                None => return,
            }
        }
    }

    /// Gives back the place that is kept for a job which will not run: it has ended since it was put
    /// back, or has no handler.
    pub(crate) fn forget_grant(&self, id: &JobId) {
        if let Some(place) = self.take_grant(id) {
            self.give_back(place, Ended::LetThrough);
        }
    }

    /// Forgets a job that was cancelled, perhaps while it waited. Looks through the jobs of its key
    /// that wait.
    pub(crate) fn forget(&self, id: &JobId, job: &Subject<'_>) {
        if self.gates.len() == 1 && !self.gates.iter().any(Gate::knows_any) {
            return;
        }
        let mut granted = self.granted.lock();
        let mut waited = SmallVec::<[_; 4]>::new();
        for (gate, number) in self.gates.iter().zip(0..) {
            if let Some(key) = self.key_of(gate, job)
                && let Some(waiting) = gate.forget(key, id)
            {
                waited.push((number, key.bucket, waiting));
            }
        }
        let grant = granted.remove(id);
        self.grants.store(granted.len(), Ordering::Relaxed);
        drop(granted);
        for (number, key, waiting) in waited {
            drop(waiting);
            // It may have been the first of its line, and the next one may begin at once.
            self.grant(number, key);
        }
        if let Some(place) = grant {
            self.give_back(place, Ended::LetThrough);
        }
    }

    /// The limit that a job waits for.
    pub(crate) fn reason_of(&self, id: &JobId) -> Option<String> {
        let mut gates = self.gates.iter();
        let gate = gates.find(|gate| gate.has_waiting(id))?;
        Some(gate.limit.to_string())
    }

    /// Puts back the jobs whose time has come. Returns when it will be the next one's.
    fn ring(&self, now: Instant) -> Option<Instant> {
        let mut next = None;
        for (gate, number) in self.gates.iter().zip(0..) {
            for key in gate.ripe(now) {
                self.grant(number, key);
            }
            next = match (next, gate.next_time()) {
                (Some(one), Some(other)) => Some(std::cmp::min(one, other)),
                (one, other) => one.or(other),
            };
        }
        next
    }

    #[cfg(any(all(test, feature = "embedded"), feature = "testing"))]
    pub(crate) fn counts(&self) -> Counts {
        let gates = self.gates.iter().map(Gate::counts);
        let (running, waiting) = gates.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        Counts {
            running,
            waiting,
            granted: self.granted.lock().len() as u64,
            held_keys: self.gates.last().map_or(0, Gate::known) as u64,
        }
    }

    /// Puts back all jobs that wait, and ends the timer.
    pub(crate) fn close(&self) {
        self.timer.stop();
        for gate in &self.gates {
            drop(gate.take_all());
        }
    }
}

/// The keys of jobs that an application means by this text: itself, and one that is made of a field with
/// this value, which is a JSON list of one.
fn forms_of(key: &str) -> impl Iterator<Item = String> + use<> {
    let text = serde_json::Value::from(key);
    let other = serde_json::from_str(key).ok();
    let lists = std::iter::once(text).chain(other);
    let lists = lists.map(|value: serde_json::Value| serde_json::json!([value]).to_string());
    std::iter::once(key.to_owned()).chain(lists)
}

/// What limits look at in a job that a worker has.
fn subject<'a>(id: &'a JobId, claim: &'a dyn Claim) -> Subject<'a> {
    Subject {
        queue: id.queue(),
        kind: claim.kind(),
        key: claim.header(header::KEY),
    }
}
