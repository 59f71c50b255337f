//! The thread that looks at the queues and the threads of a pool once a second, and has the pool grow
//! and shrink. It ends with the pool, and keeps neither that nor the mill alive.

use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Scale;
use super::decision::{Decision, Look, Scaler};
use crate::backend::BackendError;
use crate::clock::{Advances, Clock};
use crate::error::StartError;
use crate::user_code;
use crate::workers::pool::Shared;

/// From one look to the next.
const EVERY: Duration = Duration::from_secs(1);

/// The scaling of a pool.
pub(in crate::workers) struct Scaling {
    /// The pool's name.
    name: String,
    scale: Scale,
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
    advances: OnceLock<Advances>,
}

struct State {
    scaler: Scaler,
    /// When it looks next.
    next: Instant,
    is_stopped: bool,
    /// Whether the last look failed, which is told once.
    is_failing: bool,
}

impl Scaling {
    pub(in crate::workers) fn new(name: &str, scale: Scale, clock: Clock) -> Self {
        Self {
            name: name.to_owned(),
            scale,
            state: Mutex::new(State {
                scaler: Scaler::new(scale),
                next: clock.now(),
                is_stopped: false,
                is_failing: false,
            }),
            clock,
            changed: Condvar::new(),
            advances: OnceLock::new(),
        }
    }

    pub(in crate::workers) fn bounds(&self) -> (usize, usize) {
        self.scale.bounds()
    }

    /// Starts the thread.
    pub(in crate::workers) fn start(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
    ) -> Result<(), StartError> {
        if shared.threads_to_scale().is_none() {
            let pool = &*self.name;
            tracing::info!(
                pool,
                "the number of threads was set before this start, and the pool does \
                not scale until it is reset"
            );
        }
        // What the later looks begin from.
        self.look(shared);
        let (scaling, shared) = (Arc::clone(self), Arc::downgrade(shared));
        // Who advances a manual clock does the thread's work.
        let advanced = (Arc::downgrade(self), Weak::clone(&shared));
        let advances = self.clock.on_advance(move || {
            if let (Some(scaling), Some(shared)) = (advanced.0.upgrade(), advanced.1.upgrade()) {
                scaling.look(&shared);
            }
        });
        let _ = self.advances.set(advances);
        let thread = std::thread::Builder::new().name(format!("{}-scale", self.name));
        thread
            .spawn(move || scaling.run(&shared))
            .map_err(StartError::Thread)?;
        Ok(())
    }

    /// Ends the thread.
    pub(in crate::workers) fn stop(&self) {
        self.state.lock().is_stopped = true;
        self.changed.notify_all();
    }

    /// Forgets what was seen: the number of threads was set by somebody else meanwhile.
    pub(in crate::workers) fn begin_anew(&self) {
        self.state.lock().scaler = Scaler::new(self.scale);
    }

    fn run(&self, shared: &Weak<Shared>) {
        while self.sleep() {
            // Held only while it looks.
            let Some(shared) = shared.upgrade() else {
                return;
            };
            self.look(&shared);
        }
    }

    /// Sleeps until the next look; false if the pool has ended.
    fn sleep(&self) -> bool {
        let mut state = self.state.lock();
        while !state.is_stopped && self.clock.now() < state.next {
            match self.clock.sleeps_until(state.next) {
                Some(time) => _ = self.changed.wait_until(&mut state, time),
                None => self.changed.wait(&mut state),
            }
        }
        !state.is_stopped
    }

    /// Looks, if it is time, and does what follows from that.
    fn look(&self, shared: &Arc<Shared>) {
        let now = self.clock.now();
        {
            let mut state = self.state.lock();
            if state.is_stopped || now < state.next {
                return;
            }
            state.next = now + EVERY;
        }
        // A panic is one of a subscriber, or of an observer of the backend.
        let looked = user_code::call(|| self.try_look(shared, now));
        let failure = match looked {
            Ok(Ok(())) | Ok(Err(StartError::Storage(BackendError::Closed))) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(panic),
        };
        let was_failing = {
            let mut state = self.state.lock();
            std::mem::replace(&mut state.is_failing, failure.is_some())
        };
        if let Some(error) = failure.filter(|_| !was_failing) {
            let pool = &*self.name;
            let _ = user_code::call(|| {
                tracing::error!(pool, error, "the pool could not be scaled; trying again");
            });
        }
    }

    fn try_look(&self, shared: &Arc<Shared>, now: Instant) -> Result<(), StartError> {
        let Some((threads, busy, wanted)) = shared.threads_to_scale() else {
            return Ok(());
        };
        let mut look = Look {
            at: now,
            ready: 0,
            enqueued: 0,
            ended: 0,
            threads,
            busy,
            wanted,
        };
        let inner = &shared.mill.inner;
        for (place, _) in shared.served.levels(&inner.backend.queue_names()?) {
            let stats = inner.backend_queue(&place)?.queue.stats()?;
            look.ready += stats.ready;
            look.enqueued += stats.enqueued;
            look.ended += stats.ended;
        }
        let decision = self.state.lock().scaler.look(look);
        let scaled = shared.scale_from(wanted, decision.threads);
        if let Some((true, _)) = scaled {
            self.tell(&look, decision);
        }
        scaled.map_or(Ok(()), |(_, started)| started)
    }

    fn tell(&self, look: &Look, decision: Decision) {
        let (pool, ready, before) = (&*self.name, look.ready, look.wanted);
        let Decision {
            threads,
            time_to_drain,
        } = decision;
        if threads > before {
            tracing::info!(
                pool,
                threads,
                before,
                ready,
                ?time_to_drain,
                "the pool grows: its \
                threads are busy, and the ready jobs would take too long"
            );
        } else {
            tracing::info!(
                pool,
                threads,
                before,
                ready,
                ?time_to_drain,
                "the pool shrinks: it has \
                had more threads than it needs"
            );
        }
    }
}

impl Shared {
    /// The threads that take jobs, how many of them run a handler, and how many are wanted; None if
    /// the pool does not scale.
    fn threads_to_scale(&self) -> Option<(usize, usize, usize)> {
        let state = self.state.lock();
        if !state.is_scaling || self.is_stopping() || state.threads == 0 {
            return None;
        }
        let busy = state.seats.iter().filter_map(|seat| seat.job()).count();
        // Others are in the place of those that are stuck.
        let busy = busy.saturating_sub(state.stuck.len());
        let threads = state.active.min(state.threads);
        Some((threads, busy, state.wanted))
    }

    /// Has this number of threads, as the load wants, and starts those that could not be started
    /// before. Returns whether the number is another one; None if it was set meanwhile.
    fn scale_from(
        self: &Arc<Self>,
        before: usize,
        threads: usize,
    ) -> Option<(bool, Result<(), StartError>)> {
        let _setting = self.setting.lock().ok()?;
        {
            let state = self.state.lock();
            if !state.is_scaling || self.is_stopping() || state.wanted != before {
                return None;
            }
        }
        Some((threads != before, self.have_threads(threads)))
    }
}
