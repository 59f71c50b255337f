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

mod gate;
mod timer;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use self::gate::{Gate, Taken};
use self::timer::Timer;
use crate::JobId;
use crate::backend::Claim;
use crate::clock::Clock;
use crate::enqueue::header;

/// A limit on jobs that run at the same time, or that begin in a time.
///
/// ```
/// use logmill_jobs::{Limit, Mill, MillOptions, secs};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let options = MillOptions::new()
///     // Each tenant has at most two exports running.
///     .limit(Limit::on_kind("export").by_key().at_once(2))
///     // The mail API takes ten a second, and five of them together.
///     .limit(Limit::on_queue("mail").rate(10, secs(1)).burst(5));
/// let mill = Mill::builder(dir.path().join("jobs")).options(options).open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Limit {
    scope: Scope,
    by_key: bool,
    at_once: Option<u32>,
    rate: Option<Rate>,
}

/// Which jobs a limit concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Queue(String),
    Kind(String),
}

/// So many jobs in a time, as the generic cell rate algorithm (ITU-T I.371) counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    /// The time between two jobs.
    interval: Duration,
    /// How many may begin together after a pause.
    burst: u32,
}

impl Limit {
    /// Limits the jobs of a queue, all kinds and priorities together.
    pub fn on_queue(queue: impl Into<String>) -> Self {
        Self::on(Scope::Queue(queue.into()))
    }

    /// Limits the jobs of a kind, in all queues.
    pub fn on_kind(kind: impl Into<String>) -> Self {
        Self::on(Scope::Kind(kind.into()))
    }

    fn on(scope: Scope) -> Self {
        Self {
            scope,
            by_key: false,
            at_once: None,
            rate: None,
        }
    }

    /// Counts the jobs of each key by themselves, as each tenant's. Jobs without a key are not
    /// limited then.
    ///
    /// The key is that of `#[job(key = "tenant")]` or of [`Enqueue::key`](crate::Enqueue::key).
    pub fn by_key(mut self) -> Self {
        self.by_key = true;
        self
    }

    /// At most so many run at the same time; at least 1.
    pub fn at_once(mut self, jobs: u32) -> Self {
        self.at_once = Some(jobs.max(1));
        self
    }

    /// At most so many begin in this time, evenly: ten in a second means one in each tenth.
    ///
    /// In any period of this length, at most so many jobs and one begin, or as many more as
    /// [`burst`](Self::burst) says. Each attempt counts. The count is in memory, and begins anew
    /// with the process.
    pub fn rate(mut self, jobs: u32, period: Duration) -> Self {
        let burst = self.rate.map_or(1, |rate| rate.burst);
        let interval = period / jobs.max(1);
        self.rate = Some(Rate { interval, burst });
        self
    }

    /// Lets so many begin together after a time in which fewer began than might have; at least 1,
    /// the default. Has no effect without a [`rate`](Self::rate).
    pub fn burst(mut self, jobs: u32) -> Self {
        if let Some(rate) = &mut self.rate {
            rate.burst = jobs.max(1);
        }
        self
    }

    fn concerns(&self, id: &JobId, claim: &dyn Claim) -> bool {
        match &self.scope {
            Scope::Queue(queue) => queue == id.queue(),
            Scope::Kind(kind) => kind == claim.kind(),
        }
    }
}

/// What the limit is called where it is the reason for which a job waits.
impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.scope {
            Scope::Queue(queue) => write!(f, "the limit of the queue {queue:?}")?,
            Scope::Kind(kind) => write!(f, "the limit of the kind {kind:?}")?,
        }
        if self.by_key {
            f.write_str(", of each key")?;
        }
        if let Some(at_once) = self.at_once {
            write!(f, ", {at_once} at once")?;
        }
        if let Some(rate) = self.rate {
            write!(f, ", one in {:?}", rate.interval)?;
        }
        Ok(())
    }
}

/// The limits of a mill.
pub(crate) struct Limits {
    gates: Vec<Gate>,
    /// Jobs that were put back with a place at a gate kept for them.
    granted: Mutex<HashMap<JobId, Grant>>,
    /// How many there are, so that a job without a grant costs a load. Changed under the lock.
    grants: AtomicUsize,
    hasher: RandomState,
    timer: Arc<Timer>,
}

/// A place at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    gate: usize,
    key: u64,
}

/// The places that a job has at gates, until its attempt has ended.
pub(crate) struct Permit {
    limits: Option<Arc<Limits>>,
    has_begun: bool,
    places: SmallVec<[Grant; 2]>,
}

/// What became of a job that asked to run.
pub(crate) enum Admission {
    Runs(Permit),
    /// It is held, and is put back when there is a place for it.
    Waits,
}

impl Limits {
    pub(crate) fn new(limits: Vec<Limit>, clock: Clock) -> Arc<Self> {
        let timer = Arc::new(Timer::new(clock.clone()));
        let has_rates = limits.iter().any(|limit| limit.rate.is_some());
        let limits = Arc::new(Self {
            gates: limits
                .into_iter()
                .map(|limit| Gate::new(limit, clock.clone()))
                .collect(),
            granted: Mutex::default(),
            grants: AtomicUsize::new(0),
            hasher: RandomState::new(),
            timer: Arc::clone(&timer),
        });
        if has_rates {
            timer.start(&limits);
        }
        limits
    }

    /// Whether a job may run; holds it if it may not.
    #[inline]
    pub(crate) fn admit(self: &Arc<Self>, id: &JobId, claim: &mut dyn Claim) -> Admission {
        if self.gates.is_empty() {
            return Admission::Runs(Permit::none());
        }
        self.admit_slow(id, claim)
    }

    fn admit_slow(self: &Arc<Self>, id: &JobId, claim: &mut dyn Claim) -> Admission {
        let granted = self.take_grant(id);
        let mut permit = Permit {
            limits: Some(Arc::clone(self)),
            has_begun: false,
            places: granted.into_iter().collect(),
        };
        for (at, gate) in self.gates.iter().enumerate() {
            if granted.is_some_and(|grant| grant.gate == at) || !gate.limit.concerns(id, claim) {
                continue;
            }
            let Some(key) = self.key_of(&gate.limit, claim) else {
                continue;
            };
            match gate.take_or_wait(key, id, claim) {
                Taken::Place => permit.places.push(Grant { gate: at, key }),
                Taken::Waits(until) => {
                    if let Some(until) = until {
                        self.timer.ring_at(until);
                    }
                    // The places at other gates are free again when the permit is dropped.
                    return Admission::Waits;
                }
                Taken::NotHeld => return Admission::Waits,
            }
        }
        Admission::Runs(permit)
    }

    /// What a limit counts a job by; None if it does not count it.
    fn key_of(&self, limit: &Limit, claim: &dyn Claim) -> Option<u64> {
        match limit.by_key {
            false => Some(0),
            true => Some(self.hasher.hash_one(claim.header(header::KEY)?)),
        }
    }

    fn take_grant(&self, id: &JobId) -> Option<Grant> {
        // Relaxed: a job that was granted a place was put back after that.
        if self.grants.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut granted = self.granted.lock();
        let grant = granted.remove(id);
        self.grants.store(granted.len(), Ordering::Relaxed);
        grant
    }

    /// Gives a place back, and the next job that waits for it its turn.
    fn give_back(&self, place: Grant, has_begun: bool) {
        if self.gates[place.gate].give_back(place.key, has_begun) {
            self.grant(place.gate, place.key);
        }
    }

    /// Puts back the jobs for which there is a place at a gate.
    fn grant(&self, gate: usize, key: u64) {
        loop {
            // A job is in the line or granted for whoever looks for it under this lock.
            let mut granted = self.granted.lock();
            let (next, until) = self.gates[gate].next(key, self.gates[gate].now());
            let next = next.map(|next| {
                granted.insert(next.id, Grant { gate, key });
                self.grants.store(granted.len(), Ordering::Relaxed);
                next.held
            });
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
            self.give_back(place, false);
        }
    }

    /// Forgets a job that was cancelled, perhaps while it waited. Looks through all that wait.
    pub(crate) fn forget(&self, id: &JobId) {
        if self.gates.is_empty() {
            return;
        }
        let granted = {
            let mut granted = self.granted.lock();
            let waiting: Vec<_> = self.gates.iter().map(|gate| gate.forget(id)).collect();
            let grant = granted.remove(id);
            self.grants.store(granted.len(), Ordering::Relaxed);
            drop(granted);
            drop(waiting);
            grant
        };
        if let Some(place) = granted {
            self.give_back(place, false);
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
        for (at, gate) in self.gates.iter().enumerate() {
            for key in gate.ripe(now) {
                self.grant(at, key);
            }
            next = match (next, gate.next_time()) {
                (Some(one), Some(other)) => Some(std::cmp::min(one, other)),
                (one, other) => one.or(other),
            };
        }
        next
    }

    /// Puts back all jobs that wait, and ends the timer.
    pub(crate) fn close(&self) {
        self.timer.stop();
        for gate in &self.gates {
            drop(gate.take_all());
        }
    }
}

impl Permit {
    /// The attempt begins: it has had its turn.
    pub(crate) fn begin(&mut self) {
        self.has_begun = true;
    }

    pub(crate) fn none() -> Self {
        Self {
            limits: None,
            has_begun: false,
            places: SmallVec::new(),
        }
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        if let Some(limits) = &self.limits {
            for place in self.places.drain(..) {
                limits.give_back(place, self.has_begun);
            }
        }
    }
}
