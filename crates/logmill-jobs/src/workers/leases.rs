//! Keeps jobs with the pool whose handlers run, on a backend that gives them out for a time only: a
//! thread extends the claim of each at a third of that time. There is none on other backends.

#[cfg(all(test, feature = "embedded"))]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::JobId;
use crate::backend::{Claim, Lease};
use crate::clock::{Advances, Clock};
use crate::error::StartError;
use crate::mill::{Inner, Mill};
use crate::user_code;

pub(super) struct Leases {
    /// From one extension to the next; None where jobs stay with the process.
    every: Option<Duration>,
    mill: Weak<Inner>,
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
    advances: OnceLock<Advances>,
}

struct State {
    running: HashMap<u64, (JobId, Arc<dyn Lease>)>,
    begun: u64,
    /// When claims are extended next.
    next: Instant,
    is_stopped: bool,
}

/// A job that is kept, until this is dropped.
pub(super) struct Kept {
    leases: Arc<Leases>,
    number: u64,
}

/// Claims are extended no more often than this, whatever a backend says.
const SHORTEST: Duration = Duration::from_millis(1);
/// A time that no process comes to.
const FAR: Duration = Duration::from_secs(365 * 86_400);

impl Leases {
    pub(super) fn new(mill: &Mill) -> Self {
        let clock = mill.inner.clock.clone();
        let lease = mill.inner.backend.capabilities().lease;
        Self {
            every: lease.map(|lease| (lease / 3).max(SHORTEST)),
            mill: Arc::downgrade(&mill.inner),
            state: Mutex::new(State {
                running: HashMap::new(),
                begun: 0,
                next: clock.now(),
                is_stopped: false,
            }),
            clock,
            changed: Condvar::new(),
            advances: OnceLock::new(),
        }
    }

    /// Starts the thread, if one is needed.
    pub(super) fn start(self: &Arc<Self>, name: &str) -> Result<(), StartError> {
        let Some(every) = self.every else {
            return Ok(());
        };
        // Who advances a manual clock does the thread's work.
        let advanced = Arc::downgrade(self);
        let advances = self.clock.on_advance(move || {
            if let Some(leases) = advanced.upgrade() {
                leases.extend(every);
            }
        });
        let _ = self.advances.set(advances);
        let leases = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("{name}-leases"));
        thread
            .spawn(move || {
                while leases.sleep() {
                    leases.extend(every);
                }
            })
            .map_err(StartError::Thread)?;
        Ok(())
    }

    /// Ends the thread once no handler runs.
    pub(super) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.changed.notify_all();
    }

    /// Keeps a job whose handler is about to run.
    #[inline]
    pub(super) fn keep(self: &Arc<Self>, id: &JobId, claim: &dyn Claim) -> Option<Kept> {
        self.every?;
        let lease = claim.lease()?;
        let mut state = self.state.lock();
        state.begun += 1;
        let number = state.begun;
        state.running.insert(number, (id.clone(), lease.into()));
        Some(Kept {
            leases: Arc::clone(self),
            number,
        })
    }

    /// Sleeps until claims are to be extended; false if the pool has ended.
    fn sleep(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.is_stopped && state.running.is_empty() {
                return false;
            }
            if self.clock.now() >= state.next {
                return true;
            }
            match self.clock.sleeps_until(state.next) {
                Some(time) => _ = self.changed.wait_until(&mut state, time),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Extends all claims, if it is time.
    fn extend(&self, every: Duration) {
        let now = self.clock.now();
        let running: Vec<_> = {
            let mut state = self.state.lock();
            if now < state.next {
                return;
            }
            state.next = now.checked_add(every).unwrap_or_else(|| now + FAR);
            let running = state.running.iter();
            running
                .map(|(number, (id, lease))| (*number, id.clone(), Arc::clone(lease)))
                .collect()
        };
        if running.is_empty() {
            return;
        }
        // Without the lock: it may take as long as the network does.
        let panicked = user_code::call(|| {
            let Some(inner) = self.mill.upgrade() else {
                return;
            };
            let leases: Vec<_> = running.iter().map(|(_, _, lease)| &**lease).collect();
            inner.backend.extend(&leases, &mut |at, extended| {
                let Some((number, id, _)) = running.get(at) else {
                    return;
                };
                match extended {
                    Ok(true) => {}
                    Ok(false) => self.lose(*number, id),
                    Err(error) => {
                        tracing::warn!(%id, %error, "a claim could not be extended, and will be tried again");
                    }
                }
            });
        });
        if let Err(panic) = panicked {
            tracing::error!(
                panic,
                "claims could not be extended, and will be tried again"
            );
        }
        // Their handlers may have ended meanwhile, and leases are the backend's.
        user_code::discard(running);
    }

    /// Another consumer has a job, or will.
    fn lose(&self, number: u64, id: &JobId) {
        let mut state = self.state.lock();
        // One that has ended meanwhile is not lost.
        let lost = state.running.remove(&number);
        let mut others = state.running.iter();
        let is_here_again = others.any(|(other, (of, _))| *other > number && of == id);
        drop(state);
        let was_lost = lost.is_some();
        user_code::discard(lost);
        if !was_lost {
            return;
        }
        // A later attempt of this pool has the job rightly, and it is the one that would be told.
        if !is_here_again && let Some(inner) = self.mill.upgrade() {
            inner.running.lose(id);
        }
        tracing::warn!(%id, "the job is not this consumer's any more, and its handler is told to stop");
    }
}

impl Kept {
    /// Whether the backend has taken the job back.
    pub(super) fn is_lost(&self) -> bool {
        let state = self.leases.state.lock();
        !state.running.contains_key(&self.number)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut state = self.leases.state.lock();
        let ended = state.running.remove(&self.number);
        let is_last = state.is_stopped && state.running.is_empty();
        drop(state);
        // It is the backend's, and may do anything.
        user_code::discard(ended);
        if is_last {
            self.leases.changed.notify_all();
        }
    }
}
