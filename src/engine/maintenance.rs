//! Maintenance: the work that no producer or worker should wait for. It prepares segments, writes
//! dead letters, retires and seals segments, flushes at intervals, and compacts.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::Engine;
use crate::events::event;
use crate::lasting::Lasting;
use crate::log::Log;
use crate::planned_flush::PlannedFlush;
use crate::runtime::{Serve, Waker};
use crate::storage::StorageError;
use crate::{time, user_code};

/// When a queue that starts idle has its first turn. It seals what an earlier process left, which
/// takes flushes, and would slow down the opens of other queues.
const FIRST_TURN: Duration = Duration::from_secs(2);
/// How often to look for segments that only a few delayed jobs keep alive.
const COMPACTION_INTERVAL: Duration = Duration::from_secs(1);
/// How soon consumers look again at a segment that could not be checked.
const HELD_BACK_INTERVAL: Duration = Duration::from_millis(1100);
/// How often to look for cancelled jobs whose handlers have acked them.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// How soon an operation that failed, usually because the disk is full, is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Maintenance counts as recovered when nothing has failed for this long. Longer than the pause
/// between two attempts at any of its operations.
const WELL_AGAIN: Duration = Duration::from_secs(2);

/// Wakes maintenance when there is something to do.
pub(crate) struct Signal {
    state: Mutex<State>,
    task: Waker,
}

struct State {
    kicked: bool,
    flush: PlannedFlush,
    turn_at: Option<Instant>,
}

/// Why there is a turn.
pub(crate) struct Wake {
    flush: bool,
}

impl Signal {
    pub(crate) fn new(task: Waker, starts_idle: bool) -> Self {
        Self {
            state: Mutex::new(State {
                // The first segments have to be prepared.
                kicked: !starts_idle,
                flush: PlannedFlush::default(),
                turn_at: starts_idle.then(|| time::now() + FIRST_TURN),
            }),
            task,
        }
    }

    pub(crate) fn kick(&self) {
        self.state.lock().kicked = true;
        self.task.wake();
    }

    /// Requests a flush of everything within `interval` from now.
    pub(crate) fn flush_within(&self, interval: Duration) {
        let now = time::now();
        let is_next = self.state.lock().flush.ask(now, interval);
        if is_next {
            self.task.wake();
        }
    }

    /// Requests a turn within `interval` from now.
    pub(crate) fn turn_within(&self, interval: Duration) {
        let at = time::now() + interval;
        let mut state = self.state.lock();
        if state.turn_at.is_none_or(|before| at < before) {
            state.turn_at = Some(at);
            drop(state);
            self.task.wake();
        }
    }

    /// What there is to do, from `deadline` on in any case.
    fn take_by(&self, deadline: Option<Instant>) -> Option<Wake> {
        self.state.lock().take(deadline)
    }

    /// The earliest time for which something was requested.
    fn requested(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.flush.at().into_iter().chain(state.turn_at).min()
    }

    /// What there is to do, without waiting.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Option<Wake> {
        self.state.lock().take(None)
    }
}

impl State {
    fn take(&mut self, deadline: Option<Instant>) -> Option<Wake> {
        let now = time::now();
        let flush = self.flush.take_due(now);
        let is_asked = self.turn_at.is_some_and(|at| at <= now);
        if is_asked {
            self.turn_at = None;
        }
        let kicked = std::mem::take(&mut self.kicked) || is_asked;
        let is_due = deadline.is_some_and(|deadline| deadline <= now);
        (kicked || flush || is_due).then_some(Wake { flush })
    }
}

/// The maintenance of a queue, as a task of its runtime.
pub(crate) struct MaintenanceTask {
    engine: Weak<Engine>,
    /// Locked by one turn at a time.
    state: Mutex<TaskState>,
}

struct TaskState {
    maintenance: Maintenance,
    /// When the next turn is due if nothing asks for one before.
    next: Option<Instant>,
}

impl MaintenanceTask {
    pub(crate) fn new(engine: &Arc<Engine>) -> Self {
        let maintenance = Maintenance::new();
        let next = maintenance.deadline(engine);
        Self {
            engine: Arc::downgrade(engine),
            state: Mutex::new(TaskState { maintenance, next }),
        }
    }
}

impl Serve for MaintenanceTask {
    fn turn(&self) -> Option<Instant> {
        let engine = self.engine.upgrade()?;
        let mut state = self.state.lock();
        let TaskState { maintenance, next } = &mut *state;
        let result = user_code::call_here(|| {
            if let Some(wake) = engine.signal.take_by(*next) {
                maintenance.turn(&engine, &wake);
                *next = maintenance.deadline(&engine);
            }
        });
        if let Err(panic) = result {
            event!(error, panic, "maintenance has panicked: a bug in logmill");
            *next = None;
        }
        let next = *next;
        drop(state);
        let requested = engine.signal.requested();
        // This may close the files of the queue.
        drop(engine);
        next.into_iter().chain(requested).min()
    }
}

#[cfg(feature = "manual-clock")]
impl MaintenanceTask {
    /// Does a turn on this thread, after one that another thread is in.
    pub(super) fn turn_now(&self) {
        let Some(engine) = self.engine.upgrade() else {
            return;
        };
        let mut state = self.state.lock();
        let TaskState { maintenance, next } = &mut *state;
        maintenance.turn(&engine, &Wake { flush: false });
        *next = maintenance.deadline(&engine);
    }
}

/// The state that maintenance keeps between turns.
pub(crate) struct Maintenance {
    next_compaction: Instant,
    /// When jobs may next be moved to make room if room is short: a move that made none is not
    /// repeated immediately.
    next_relief: Instant,
    failed: bool,
    failures: Lasting,
    next_seal: Option<Duration>,
    put_off: Option<Duration>,
    /// Whether jobs of transactions wait for room.
    has_waiting: bool,
}

impl Maintenance {
    pub(crate) fn new() -> Self {
        Self {
            next_compaction: time::now() + COMPACTION_INTERVAL,
            next_relief: time::now(),
            failed: false,
            failures: Lasting::default(),
            next_seal: None,
            put_off: None,
            has_waiting: false,
        }
    }

    /// When the next turn is due if nothing wakes the thread earlier.
    fn deadline(&self, engine: &Engine) -> Option<Instant> {
        let now = time::now();
        let stripes = engine.dispatch().stripes();
        let retry = self.failed.then_some(RETRY_INTERVAL);
        // Waiting jobs may keep segments alive.
        let has_waiting = engine.dispatch().timer.watch();
        let compaction = (has_waiting && has_place_to_move_to(engine))
            .then(|| self.next_compaction.saturating_duration_since(now));
        let logs = stripes.iter().chain([engine.dead().log()]);
        let spares = logs.filter_map(Log::look_again).min();
        // Consumers may be asleep beside a segment that could not be checked, and may be checkable
        // by now.
        let held_back = stripes
            .iter()
            .any(Log::has_held_back)
            .then_some(HELD_BACK_INTERVAL);
        let waiting = self.has_waiting.then_some(RETRY_INTERVAL);
        let pauses = [
            waiting,
            self.put_off,
            self.next_seal,
            retry,
            compaction,
            spares,
            held_back,
            self.failures.is_on().then_some(WELL_AGAIN),
            engine.has_cancels_to_sweep().then_some(SWEEP_INTERVAL),
        ];
        pauses.into_iter().flatten().min().map(|pause| now + pause)
    }

    /// Does one turn of maintenance.
    pub(crate) fn turn(&mut self, engine: &Engine, wake: &Wake) {
        let stripes = engine.dispatch().stripes();
        self.failed = false;
        let (failed, failures) = (&mut self.failed, &self.failures);
        let mut note = |error: Arc<StorageError>| {
            if !error.is_failed_flush() {
                if let Some(times) = failures.met_error(&error) {
                    event!(warn, %error, times, "maintenance fails and is tried again");
                }
                *failed = true;
            }
        };
        engine.sweep_cancels();
        engine.write_letters().unwrap_or_else(&mut note);
        let mut freed = false;
        for log in stripes.iter().chain([engine.dead().log()]) {
            match log.reclaim() {
                Ok(some) => freed |= some,
                Err(error) => note(Arc::new(error)),
            }
        }
        // One wake-up per stripe: a consumer that wakes looks at all stripes.
        let held_back = stripes.iter().filter(|stripe| stripe.has_held_back());
        engine.dispatch().sleepers.notify_fenced(held_back.count());
        self.put_off = None;
        if stripes.iter().any(Log::warm_up) {
            // One stripe per turn, so that other work does not wait for all of them. Segments in
            // use are warmed up before the next ones are prepared.
            engine.signal.kick();
        } else {
            self.put_off = stripes.iter().filter_map(Log::prepare).min();
        }
        if freed {
            engine.room.notify_all();
        }
        self.has_waiting = engine.maintain_elsewhere().unwrap_or_else(|error| {
            note(error);
            true
        });
        self.next_seal = None;
        if engine.poison().is_none() {
            let mut logs = stripes.iter().chain([engine.dead().log()]);
            if logs.any(Log::has_unsettled) {
                engine.settle_deaths().unwrap_or_else(&mut note);
            }
            for log in stripes.iter().chain([engine.dead().log()]) {
                match log.seal(false) {
                    Ok(pause) => self.next_seal = self.next_seal.into_iter().chain(pause).min(),
                    Err(error) => note(error),
                }
            }
            if wake.flush {
                if let Err(error) = engine.flush() {
                    // Something may not have been flushed, so the flush is retried. If the flush
                    // itself failed, the poison ends the retries.
                    engine.signal.flush_within(RETRY_INTERVAL);
                    note(error);
                }
                stripes.iter().for_each(Log::make_writable_ahead);
            }
            for stripe in stripes {
                stripe.flush_ahead().unwrap_or_else(&mut note);
            }
            if has_place_to_move_to(engine) {
                engine.keep_delays().unwrap_or_else(&mut note);
            }
            let now = time::now();
            let is_due = now >= self.next_compaction;
            let is_short = stripes.iter().any(Log::is_short);
            if has_place_to_move_to(engine) && (is_due || is_short && now >= self.next_relief) {
                if is_due {
                    self.next_compaction = now + COMPACTION_INTERVAL;
                }
                stripes.iter().for_each(Log::end_shortage);
                let moved = engine.compact(is_short).unwrap_or_else(|error| {
                    note(error);
                    false
                });
                if !moved {
                    self.next_relief = now + RETRY_INTERVAL;
                }
            }
        }
        for failure in self.failures.over_since(WELL_AGAIN) {
            event!(info, failure, "maintenance is well again");
        }
    }
}

/// Whether jobs may be moved. In a queue that is closed, or in which a flush has failed, there is
/// nowhere to move them to.
fn has_place_to_move_to(engine: &Engine) -> bool {
    engine.poison().is_none() && !engine.is_closed()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::Running;
    use crate::events::recorded;
    use crate::storage::faults;
    use crate::time::stopped;
    use crate::{Builder, Consumer};

    /// A queue without threads, on a clock that is stopped at the time that is returned.
    fn idle(dir: &tempfile::TempDir) -> (Arc<Running>, Duration) {
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let now = Duration::from_secs(1);
        stopped::set(Some(now));
        (Arc::new(Running::open_idle(&builder).unwrap().0), now)
    }

    /// Runs like the thread for so many seconds of a stopped clock; returns how many turns it took.
    fn turns_in(
        seconds: u64,
        now: &mut Duration,
        maintenance: &mut Maintenance,
        running: &Running,
    ) -> u32 {
        let end = *now + Duration::from_secs(seconds);
        let mut turns = 0;
        while *now < end {
            maintenance.turn(running, &Wake { flush: false });
            turns += 1;
            let next = maintenance.deadline(running);
            let pause = next.map(|next| next.duration_since(time::now()));
            *now += pause.unwrap_or(end - *now).max(Duration::from_millis(1));
            stopped::set(Some(*now));
        }
        turns
    }

    #[test]
    fn maintenance_comes_to_rest_though_jobs_wait_also_after_a_failed_flush_and_once_closed() {
        let dir = tempfile::tempdir().unwrap();
        let (running, mut now) = idle(&dir);
        let place = crate::engine::enqueue::Place::of_this_thread(&running);
        let hour = crate::EnqueueOptions::new().delay(Duration::from_secs(3600));
        running.enqueue_with(place, b"later", &hour).unwrap();
        let consumer = Consumer::new(Arc::clone(&running));
        assert!(consumer.try_next().is_none());
        let mut maintenance = Maintenance::new();
        let mut turns_in = |seconds| turns_in(seconds, &mut now, &mut maintenance, &running);
        // One turn per second, and a few for the segments to be prepared.
        assert!(turns_in(10) < 40);
        let stripe = &running.dispatch().stripes()[0];
        let failing = faults::fail_flushes(stripe.active().paths().segment.path());
        assert!(running.flush().is_err());
        drop(failing);
        assert!(turns_in(10) < 40);
        assert!(running.close().is_err());
        assert!(turns_in(10) < 40);
        stopped::set(None);
    }

    #[test]
    fn a_job_that_begins_to_wait_while_maintenance_rests_has_it_look() {
        let dir = tempfile::tempdir().unwrap();
        let (running, mut now) = idle(&dir);
        let mut maintenance = Maintenance::new();
        let consumer = Consumer::new(Arc::clone(&running));
        let hour = crate::EnqueueOptions::new().delay(Duration::from_secs(3600));
        for is_first in [true, false] {
            let place = crate::engine::enqueue::Place::of_this_thread(&running);
            running.enqueue_with(place, b"later", &hour).unwrap();
            turns_in(10, &mut now, &mut maintenance, &running);
            let rests = maintenance.deadline(&running).is_none();
            assert_eq!(rests, is_first);
            let _ = running.signal.take();
            // The claimed job is put into the timer.
            assert!(consumer.try_next().is_none());
            assert_eq!(running.signal.take().is_some(), is_first);
            assert!(maintenance.deadline(&running).is_some());
        }
        stopped::set(None);
    }

    #[test]
    fn a_cancelled_job_that_runs_while_maintenance_rests_has_it_look() {
        let dir = tempfile::tempdir().unwrap();
        let (running, mut now) = idle(&dir);
        let mut maintenance = Maintenance::new();
        let consumer = Consumer::new(Arc::clone(&running));
        for _ in 0..2 {
            let place = crate::engine::enqueue::Place::of_this_thread(&running);
            running.enqueue(place, b"runs").unwrap();
            let job = consumer.try_next().unwrap();
            turns_in(10, &mut now, &mut maintenance, &running);
            assert!(maintenance.deadline(&running).is_none());
            let _ = running.signal.take();
            running.cancel(job.id().sequence()).unwrap();
            assert!(running.signal.take().is_some());
            job.ack();
            turns_in(10, &mut now, &mut maintenance, &running);
            assert!(!running.has_cancels_to_sweep());
        }
        stopped::set(None);
    }

    #[test]
    fn what_fails_for_long_is_told_rarely_and_when_it_is_well_again() {
        let dir = tempfile::tempdir().unwrap();
        let (running, mut now) = idle(&dir);
        let place = crate::engine::enqueue::Place::of_this_thread(&running);
        running.enqueue(place, b"dies").unwrap();
        let consumer = Consumer::new(Arc::clone(&running));
        consumer.try_next().unwrap().dead_letter("no use");
        let full = faults::fill_disk(&dir.path().join("dead"));
        let mut maintenance = Maintenance::new();
        let mut told_in = |seconds: u64| {
            let mut told = recorded::during(|| {
                turns_in(seconds, &mut now, &mut maintenance, &running);
            });
            told.retain(|event| event.contains("maintenance"));
            told
        };
        let fails = "WARN maintenance fails and is tried again";
        assert_eq!(told_in(5), [fails]);
        assert_eq!(told_in(57), [fails]);
        drop(full);
        assert_eq!(told_in(5), ["INFO maintenance is well again"]);
        assert_eq!(running.dead().stats().dying, 0);
        stopped::set(None);
    }
}
