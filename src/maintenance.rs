//! The upkeep thread: everything that no producer and no worker should wait for. It prepares
//! segments, writes dead letters, retires and seals segments, flushes at intervals, and compacts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::engine::Engine;
use crate::log::Stripe;

/// How often segments that a few delayed jobs keep alive are looked for.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(1);
/// How soon consumers look again at a segment that could not be checked.
const HELD_BACK_INTERVAL: Duration = Duration::from_millis(1100);
/// How soon something that failed (a full disk, mostly) is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Tells the upkeep thread that there is something to do.
pub(crate) struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    kicked: bool,
    stopped: bool,
    flush_at: Option<Instant>,
}

/// Why the thread woke up.
struct Wake {
    flush: bool,
}

impl Signal {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                // The first segments are to be prepared.
                kicked: true,
                stopped: false,
                flush_at: None,
            }),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn kick(&self) {
        self.state.lock().kicked = true;
        self.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_one();
    }

    /// Has everything flushed within `interval` from now.
    pub(crate) fn flush_within(&self, interval: Duration) {
        let Some(at) = Instant::now().checked_add(interval) else {
            return;
        };
        let mut state = self.state.lock();
        if state.flush_at.is_none_or(|before| at < before) {
            state.flush_at = Some(at);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Waits for something to do, at most until `deadline`; None once stopped.
    fn wait(&self, deadline: Option<Instant>) -> Option<Wake> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            let flush = state.flush_at.is_some_and(|at| at <= now);
            if flush {
                state.flush_at = None;
            }
            if std::mem::take(&mut state.kicked)
                || flush
                || deadline.is_some_and(|deadline| deadline <= now)
            {
                return Some(Wake { flush });
            }
            match state.flush_at.into_iter().chain(deadline).min() {
                Some(until) => {
                    self.changed.wait_until(&mut state, until);
                }
                None => self.changed.wait(&mut state),
            }
        }
    }
}

/// Runs until the signal is stopped.
pub(crate) fn run(engine: &Engine) {
    let stripes = engine.dispatch().stripes();
    let mut next_compaction = Instant::now() + COMPACTION_INTERVAL;
    let mut failed = false;
    let mut next_seal: Option<Duration> = None;
    let mut put_off: Option<Duration> = None;
    loop {
        let now = Instant::now();
        let retry = failed.then_some(RETRY_INTERVAL);
        // Something may be kept alive by jobs that wait.
        let has_waiting = engine.dispatch().timer.len() > 0;
        let compaction = has_waiting.then(|| next_compaction.saturating_duration_since(now));
        let spares = stripes.iter().filter_map(Stripe::look_again).min();
        // Consumers may be asleep beside a segment that could not be checked, and can be by now.
        let held_back = stripes
            .iter()
            .any(Stripe::has_failed_scan)
            .then_some(HELD_BACK_INTERVAL);
        let pauses = [put_off, next_seal, retry, compaction, spares, held_back];
        let deadline = pauses.into_iter().flatten().min().map(|pause| now + pause);
        next_seal = None;
        let Some(wake) = engine.signal.wait(deadline) else {
            return;
        };
        if held_back.is_some() {
            engine.dispatch().sleepers.notify_fenced(usize::MAX);
        }
        let mut result = engine.write_letters();
        let mut freed = false;
        for log in stripes.iter().chain([engine.dead().log()]) {
            match log.reclaim() {
                Ok(some) => freed |= some,
                Err(error) => result = result.and(Err(Arc::new(error))),
            }
        }
        put_off = stripes.iter().filter_map(Stripe::prepare).min();
        if freed {
            engine.room.notify_fenced(usize::MAX);
        }
        if engine.poison().is_none() {
            for log in stripes.iter().chain([engine.dead().log()]) {
                match log.seal(false) {
                    Ok(pause) => next_seal = next_seal.into_iter().chain(pause).min(),
                    Err(error) => result = result.and(Err(error)),
                }
            }
            if wake.flush
                && let Err(error) = engine.flush()
            {
                // Some of it may not have been; if it is a flush that failed, this ends here.
                engine.signal.flush_within(RETRY_INTERVAL);
                result = result.and(Err(error));
            }
            if Instant::now() >= next_compaction {
                result = result.and(engine.compact());
                next_compaction = Instant::now() + COMPACTION_INTERVAL;
            }
        }
        failed = false;
        if let Err(error) = result {
            engine.note_failed_flush(&error);
            if !error.is_failed_flush() {
                tracing::warn!(%error, "upkeep failed and will be tried again");
                failed = true;
            }
        }
    }
}
