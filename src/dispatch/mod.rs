//! Dispatch: from the logs of the stripes into the hands of consumers.
//!
//! A consumer claims runs of records into a deque of its own, from which idle consumers steal;
//! what comes back (retries, due jobs) goes through an injector that all of them look at first.
//! The deques are Chase and Lev's (SPAA 2005), as crossbeam builds them.

mod compaction;
pub(crate) mod leases;
#[cfg(all(loom, test))]
mod loom_models;
pub(crate) mod sleep;
pub(crate) mod source;
pub(crate) mod timer;

use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam_deque::{Injector, Steal, Stealer, Worker};
use parking_lot::Mutex;

use self::sleep::EventCount;
use self::timer::Timer;
use crate::RetryPolicy;
use crate::Timestamp;
use crate::log::Stripe;
use crate::log::segment::{Claim, Lease};
use crate::time::Clock;

/// Most jobs that one claim takes: enough to pay for the cache lines that a claim moves between
/// cores, few enough that thieves find work. Measured in `benches/`.
const CLAIM_JOBS: u32 = 256;
/// Bytes of records after which a claim ends, so that one consumer does not take all large jobs.
const CLAIM_BYTES: usize = 256 * 1024;

/// What the consumers of a queue share.
pub(crate) struct Dispatch {
    stripes: Box<[Stripe]>,
    /// Jobs that are due again, and jobs that a consumer gave back.
    injector: Injector<Lease>,
    stealers: ArcSwap<Vec<Stealer<Lease>>>,
    /// Serializes the registration of deques.
    registration: Mutex<Registration>,
    pub(crate) sleepers: EventCount,
    pub(crate) timer: Timer,
    clock: Clock,
    retry: RetryPolicy,
    /// Leases own a share of their mappings, as a job can have two (lease timeouts).
    counted: bool,
}

#[derive(Default)]
struct Registration {
    next_home: usize,
    /// The names of the deques in `stealers`, in the same order.
    names: Vec<u64>,
    next_name: u64,
}

impl Dispatch {
    pub(crate) fn new(
        stripes: Box<[Stripe]>,
        clock: Clock,
        retry: RetryPolicy,
        counted: bool,
    ) -> Self {
        Self {
            stripes,
            injector: Injector::new(),
            stealers: ArcSwap::default(),
            registration: Mutex::default(),
            sleepers: EventCount::new(),
            timer: Timer::new(),
            clock,
            retry,
            counted,
        }
    }

    pub(crate) fn stripes(&self) -> &[Stripe] {
        &self.stripes
    }

    /// Jobs that are claimed and wait for a consumer.
    pub(crate) fn queued(&self) -> u64 {
        let deques = self.stealers.load();
        let in_deques: usize = deques.iter().map(Stealer::len).sum();
        (in_deques + self.injector.len()) as u64
    }

    /// Makes a job available to all consumers at once.
    pub(crate) fn inject(&self, lease: Lease) {
        self.injector.push(lease);
        self.sleepers.notify_fenced(1);
    }

    /// Makes jobs available to all consumers.
    pub(crate) fn inject_all(&self, leases: Vec<Lease>) {
        let count = leases.len();
        for lease in leases {
            self.injector.push(lease);
        }
        self.sleepers.notify_fenced(count);
    }

    /// The next job for the consumer that owns `deque` and whose home is the stripe `home`.
    ///
    /// Looks into its own deque, then at what came back, then into the logs, and then steals.
    fn find(&self, deque: &Worker<Lease>, home: usize, claimed: &mut Vec<Lease>) -> Option<Lease> {
        if let Some(lease) = deque.pop() {
            return Some(lease);
        }
        if let Some(lease) = steal(|| self.injector.steal_batch_and_pop(deque)) {
            return Some(lease);
        }
        for at in 0..self.stripes.len() {
            let stripe = &self.stripes[(home + at) % self.stripes.len()];
            if self.claim(stripe, deque, claimed) {
                return deque.pop();
            }
        }
        let stealers = self.stealers.load();
        // The neighbours' order does not matter: whoever has work has a run of it.
        stealers
            .iter()
            .find_map(|stealer| steal(|| stealer.steal_batch_and_pop(deque)))
    }

    /// Claims a run of jobs into `deque`. Returns whether any of them is due.
    fn claim(&self, stripe: &Stripe, deque: &Worker<Lease>, claimed: &mut Vec<Lease>) -> bool {
        loop {
            match stripe.claim(CLAIM_JOBS, CLAIM_BYTES, self.counted, claimed) {
                Claim::Taken { plain } => {
                    let mut due = 0;
                    for lease in claimed.drain(..) {
                        if let Some(lease) = if plain { Some(lease) } else { self.hold_back(lease) } {
                            deque.push(lease);
                            due += 1;
                        }
                    }
                    if due > 1 {
                        // One more consumer, to steal; it wakes the next one in the same way.
                        self.sleepers.notify_fenced(1);
                    }
                    if due > 0 {
                        return true;
                    }
                }
                Claim::Empty | Claim::Exhausted => return false,
            }
        }
    }

    /// Puts a claimed job into the timer if it is not due yet.
    fn hold_back(&self, lease: Lease) -> Option<Lease> {
        let due_at = lease.record().header().due_at;
        let mut delay = due_at.since(Timestamp::now());
        let deliveries = lease.deliveries();
        if lease.is_recovered() && deliveries > 0 {
            // It failed, or was running when the process died. A job that used up its attempts
            // is not delivered again, so it need not wait.
            let attempts = u32::from(deliveries) + lease.meta().prior_attempts;
            if self.may_retry(&lease, attempts) {
                delay = delay.max(self.retry.backoff(attempts));
            }
        }
        if delay.is_zero() {
            return Some(lease);
        }
        self.timer
            .schedule(lease, self.clock.now().saturating_add(delay));
        None
    }

    /// Whether a job may be delivered again after this many attempts.
    pub(crate) fn may_retry(&self, lease: &Lease, attempts: u32) -> bool {
        let limit = match lease.meta().max_attempts {
            Some(own) => own,
            None => self.retry.attempts_limit(),
        };
        limit.is_none_or(|limit| attempts < u32::from(limit))
    }

    /// Brings a failed job back after `delay`, or after the policy's backoff.
    pub(crate) fn retry(&self, lease: Lease, attempts: u32, delay: Option<std::time::Duration>) {
        let delay = delay.unwrap_or_else(|| self.retry.backoff(attempts));
        if delay.is_zero() {
            self.inject(lease);
        } else {
            self.timer
                .schedule(lease, self.clock.now().saturating_add(delay));
        }
    }

    /// Whether a consumer that has registered as a sleeper, and fenced, must look again.
    fn may_have_work(&self) -> bool {
        !self.injector.is_empty()
            || self.stripes.iter().any(Stripe::may_have_work)
            || self.stealers.load().iter().any(|deque| !deque.is_empty())
    }

    /// Registers a consumer's deque; returns its name and its home stripe.
    fn register(&self, stealer: Stealer<Lease>) -> (u64, usize) {
        let mut registration = self.registration.lock();
        let name = registration.next_name;
        registration.next_name += 1;
        let home = registration.next_home;
        registration.next_home = (home + 1) % self.stripes.len();
        registration.names.push(name);
        let mut stealers = Vec::clone(&self.stealers.load());
        stealers.push(stealer);
        self.stealers.store(Arc::new(stealers));
        (name, home)
    }

    fn unregister(&self, name: u64) {
        let mut registration = self.registration.lock();
        if let Some(at) = registration.names.iter().position(|&other| other == name) {
            registration.names.remove(at);
            let mut stealers = Vec::clone(&self.stealers.load());
            stealers.remove(at);
            self.stealers.store(Arc::new(stealers));
        }
    }
}

/// Repeats an operation for as long as it loses races.
fn steal<T>(mut attempt: impl FnMut() -> Steal<T>) -> Option<T> {
    loop {
        match attempt() {
            Steal::Success(value) => return Some(value),
            Steal::Empty => return None,
            Steal::Retry => std::hint::spin_loop(),
        }
    }
}
